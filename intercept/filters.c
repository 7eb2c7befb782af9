// SPDX-License-Identifier: Apache-2.0
// Filters of system calls (seccomp).  What the client does when a process ends is done by system calls, too; where a
// filter would end the process for one of them, its exit is left to the kernel, and the servers learn of it as they
// learn of a killed one.  Whether it would is found by running the filter here before the kernel gets it: to ask later
// may be what it forbids.
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

#include "intercept.h"

static _Atomic bool everywhere;  // it holds for threads whose own memory does not say so

bool madfs_filtered(void) { return madfs_local.filtered || atomic_load_explicit(&everywhere, memory_order_relaxed); }

void madfs_filter_inherited(void) {
  if (madfs_local.filtered) atomic_store(&everywhere, true);
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
  if (all ? a[0] != SECCOMP_SET_MODE_FILTER : (a[0] != PR_SET_SECCOMP || a[1] != SECCOMP_MODE_FILTER)) return false;
  if (madfs_in_vfork() || !madfs_user_in(&filter, (const void *)a[2], sizeof filter) || !may_filter()) return false;
  for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
    if (!forbids(&filter, needed[i])) continue;
    madfs_local.filtered = true;
    if (all && a[1] & SECCOMP_FILTER_FLAG_TSYNC) atomic_store(&everywhere, true);
  }
  return false;
}

const struct madfs_shim madfs_shim_filter = {concerns, NULL};
