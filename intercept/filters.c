// SPDX-License-Identifier: Apache-2.0
// Filters of system calls (seccomp).  What the client does when a process ends is done by system calls, too; where a
// filter would end the process for one of them, its exit is left to the kernel, and the servers learn of it as they
// learn of a killed one.  Whether it would is found by running the filter here before the kernel gets it: to ask later
// may be what it forbids.
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "intercept.h"

_Atomic bool madfs_filtered_everywhere;

void madfs_filter_inherited(void) {
  if (madfs_local.filtered) atomic_store(&madfs_filtered_everywhere, true);
}

struct machine {
  uint32_t a, x, memory[BPF_MEMWORDS];
  struct seccomp_data data;
};

static uint32_t compute(uint32_t a, uint32_t operand, unsigned operation) {
  switch (operation) {
    case BPF_ADD: return a + operand;
    case BPF_SUB: return a - operand;
    case BPF_MUL: return a * operand;
    case BPF_DIV: return operand ? a / operand : 0;
    case BPF_AND: return a & operand;
    case BPF_OR: return a | operand;
    case BPF_XOR: return a ^ operand;
    case BPF_LSH: return a << (operand & 31);
    case BPF_RSH: return a >> (operand & 31);
    default: return -a;
  }
}

static bool holds(uint32_t a, uint32_t operand, unsigned condition) {
  if (condition == BPF_JEQ) return a == operand;
  if (condition == BPF_JGT) return a > operand;
  return condition == BPF_JGE ? a >= operand : (a & operand) != 0;
}

static uint32_t loaded(const struct machine *m, const struct sock_filter *i) {
  uint32_t word = sizeof m->data;
  if (BPF_MODE(i->code) == BPF_IMM) return i->k;
  if (BPF_MODE(i->code) == BPF_MEM) return m->memory[i->k % BPF_MEMWORDS];
  if (BPF_MODE(i->code) == BPF_ABS && i->k <= sizeof m->data - sizeof word)
    memcpy(&word, (const char *)&m->data + i->k, sizeof word);
  return word;
}

// One instruction; how many to go on by, or 0 at the end with the result in A.
static uint32_t step(struct machine *m, const struct sock_filter *i) {
  uint32_t operand = BPF_SRC(i->code) == BPF_X ? m->x : i->k;
  switch (BPF_CLASS(i->code)) {
    case BPF_LD: m->a = loaded(m, i); break;
    case BPF_LDX: m->x = loaded(m, i); break;
    case BPF_ST: m->memory[i->k % BPF_MEMWORDS] = m->a; break;
    case BPF_STX: m->memory[i->k % BPF_MEMWORDS] = m->x; break;
    case BPF_ALU: m->a = compute(m->a, operand, BPF_OP(i->code)); break;
    case BPF_JMP:
      if (BPF_OP(i->code) == BPF_JA) return 1 + i->k;
      return 1 + (holds(m->a, operand, BPF_OP(i->code)) ? i->jt : i->jf);
    case BPF_RET:
      if (BPF_RVAL(i->code) == BPF_K) m->a = i->k;
      return 0;
    default:
      if (BPF_MISCOP(i->code) == BPF_TAX) m->x = m->a;
      else m->a = m->x;
  }
  return 1;
}

// Whether the filter ends the thread, or asks somebody else, at a call.  Jumps go forward only, so there is an end.
static bool forbids(const struct sock_fprog *filter, int number) {
  struct machine m = {.data = {.nr = number, .arch = ARCH_AUDIT}};
  uint32_t more = 1;
  for (uint32_t at = 0; more && at < filter->len; at += more) {
    struct sock_filter instruction;
    if (!madfs_user_in(&instruction, filter->filter + at, sizeof instruction)) return false;
    more = step(&m, &instruction);
  }
  uint32_t action = m.a & SECCOMP_RET_ACTION_FULL;
  return !more && action != SECCOMP_RET_ALLOW && action != SECCOMP_RET_LOG && action != SECCOMP_RET_ERRNO;
}

// The kernel takes a filter of those only who gain nothing by it.  Who has one already may be forbidden to ask.
static bool may_filter(void) {
  static _Atomic bool has_one;
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};
  if (atomic_load(&has_one)) return true;
  bool may = RAW(SYS_prctl, PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 ||
             (!madfs_failed(RAW(SYS_capget, &header, data)) && data[0].effective >> CAP_SYS_ADMIN & 1);
  if (may) atomic_store(&has_one, true);
  return may;
}

static bool concerns(struct madfs_frame *f) {
  // What an exit does in any case; others follow.
  static const int needed[] = {SYS_rt_sigprocmask, SYS_getpid, SYS_gettid, SYS_futex, SYS_sendto, SYS_close};
  const unsigned long *a = f->argument;
  struct sock_fprog filter;
  bool all = f->number == SYS_seccomp;
  int what = (int)a[0];
  if (all ? what != SECCOMP_SET_MODE_FILTER : what != PR_SET_SECCOMP || a[1] != SECCOMP_MODE_FILTER) return false;
  if (madfs_in_vfork() || !madfs_user_in(&filter, (const void *)a[2], sizeof filter) || !may_filter()) return false;
  for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
    if (!forbids(&filter, needed[i])) continue;
    madfs_local.filtered = true;
    if (all && a[1] & SECCOMP_FILTER_FLAG_TSYNC) atomic_store(&madfs_filtered_everywhere, true);
  }
  return false;
}

const struct madfs_shim madfs_shim_filter = {concerns, NULL};

// --- calls of a thread under such a filter ---------------------------------------------------------------------------

// close_range() around descriptors of the client's.
static long close_around(unsigned first, unsigned last) {
  unsigned top = (unsigned)atomic_load(&madfs_fds_top);
  long result = 0;
  for (unsigned fd = first; fd <= last && fd <= top; fd++) {
    int slot = madfs_fd_slot((int)fd);
    if (slot >= 0) madfs_fds_free((int)fd);
    if (slot != FD_INTERNAL) continue;
    if (fd > first) result = RAW(SYS_close_range, first, fd - 1, 0);
    if (madfs_failed(result)) return result;
    first = fd + 1;
  }
  return first && first <= last ? RAW(SYS_close_range, first, last, 0) : result;
}

static bool is_copied(const struct madfs_frame *f) {
  const unsigned long *a = f->argument;
  if (f->number == SYS_dup3 || ARCH_IS_DUP2(f->number)) return madfs_fd_slot((int)a[1]) == FD_HOST;
  int command = (int)a[1];
  return f->number == SYS_dup || command == F_GETFD || command == F_SETFD || command == F_GETFL ||
         command == F_DUPFD || command == F_DUPFD_CLOEXEC;
}

static int done(struct madfs_frame *f, long result) {
  f->number = result;
  return MADFS_DONE;
}

// What C does for the call alone, without any that the program did not make.
static int done_alone(struct madfs_frame *f) {
  long number = f->number;
  const unsigned long *a = f->argument;
  const struct madfs_shim *shim = madfs_rows[number].shim;
  if (!shim->concerns(f)) return MADFS_PASS;
  if (shim->work(f) == MADFS_DONE) return MADFS_DONE;
  return done(f, arch_syscall(number, (long)a[0], (long)a[1], (long)a[2], (long)a[3], (long)a[4], (long)a[5]));
}

static int lseek_alone(struct madfs_frame *f, int slot) {
  if (slot == FD_HOST) return MADFS_PASS;
  if (slot < 0 || (unsigned)f->argument[2] > SEEK_CUR || madfs_slot_flags(slot) & (O_DIRECTORY | O_PATH)) return -1;
  return done(f, madfs_slot_seek(slot, (long)f->argument[1], (int)f->argument[2]));
}

static int chdir_alone(struct madfs_frame *f) {
  if (madfs_path_concerns(AT_FDCWD, (const char *)f->argument[0])) return -1;
  long result = RAW(SYS_chdir, f->argument[0]);
  if (!madfs_failed(result)) madfs_cwd_clear();
  return done(f, result);
}

// What is closed here ends for the servers with the process.
int madfs_filter_answers(struct madfs_frame *f) {
  const unsigned long *a = f->argument;
  switch (f->number) {
    case SYS_close:
      if (madfs_fd_slot((int)a[0]) == FD_INTERNAL) return done(f, -EBADF);
      madfs_fds_free((int)a[0]);
      return MADFS_PASS;
    case SYS_close_range:
      if ((unsigned)a[2] || atomic_load(&madfs_fds_top) < 0) return MADFS_PASS;
      return done(f, close_around((unsigned)a[0], (unsigned)a[1]));
    case SYS_lseek: return lseek_alone(f, madfs_fd_slot((int)a[0]));
    case SYS_chdir: return chdir_alone(f);
    case SYS_fchdir: return madfs_fd_slot((int)a[0]) == FD_HOST ? done_alone(f) : -1;
    case SYS_fcntl:
    case SYS_dup:
    case SYS_dup3:
#ifdef SYS_dup2
    case SYS_dup2:
#endif
      return madfs_fd_slot((int)a[0]) == FD_HOST && f->number == SYS_fcntl ? MADFS_PASS
                                                                           : is_copied(f) ? done_alone(f) : -1;
    case SYS_mmap:
      return a[3] & MAP_ANONYMOUS || madfs_fd_slot((int)a[4]) == FD_HOST ? MADFS_PASS : -1;
    case SYS_rt_sigaction:
    case SYS_sigaltstack: return done_alone(f);
    case SYS_clone:
    case SYS_clone3: madfs_clone_filtered(f); return MADFS_PASS;
    case SYS_setuid:
    case SYS_setgid:
    case SYS_setreuid:
    case SYS_setregid:
    case SYS_setresuid:
    case SYS_setresgid:
    case SYS_setfsuid:
    case SYS_setfsgid:
    case SYS_setgroups:
    case SYS_unshare:
    case SYS_execve:
    case SYS_execveat:
    case SYS_sendmsg:
    case SYS_sendmmsg:
    case SYS_recvmsg:
    case SYS_recvmmsg:
    case SYS_munmap:
    case SYS_mprotect: return MADFS_PASS;
    default: return f->number == SYS_fork || ARCH_IS_VFORK(f->number) ? MADFS_PASS : -1;
  }
}
