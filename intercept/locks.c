// SPDX-License-Identifier: Apache-2.0
// Locks: calls that wait, what the end of a descriptor means for them, and how they outlive execve.
//
// A server keeps the locks of a process or open file while a connection of a process that has them lives.  execve would
// end the connections: those of a process that keeps locks go along to the next program, which knows them from
// MADFS_STATE and has no other use for them.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>

#include "intercept.h"

enum { KEPT_MAX = 64 };

static struct {
  struct madfs_lock lock;
  int count, fd[KEPT_MAX];
} kept;

static _Atomic int holder;  // the process that may hold record locks of its own; a child of it does not
static bool inherited;      // they may come from the program before

static enum madfs_verdict answer(struct madfs_frame *f, long result) {
  f->number = result;
  return MADFS_DONE;
}

static struct madfs_call call_of(int number, int slot, int count, long first, long second) {
  struct madfs_call call = {.number = number, .count = count};
  call.arg[0] = (struct madfs_arg){.kind = MADFS_ARG_FD, .value = (long)madfs_fd_handle(slot)};
  call.arg[1] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = first};
  call.arg[2] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = second};
  return call;
}

// --- waiting --------------------------------------------------------------------------------------------------------

enum { SIGNAL_WAITS_NOT, SIGNAL_RESTARTS, SIGNAL_INTERRUPTS };

// What the signals that the application would have got by now mean for a call that waits.
static int signals_pending(const struct madfs_thread *t) {
  const uint64_t ignored = 1UL << (SIGCHLD - 1) | 1UL << (SIGCONT - 1) | 1UL << (SIGURG - 1) | 1UL << (SIGWINCH - 1);
  uint64_t pending = 0;
  RAW(SYS_rt_sigpending, &pending, sizeof pending);
  pending &= ~t->signals;
  // A thread that is to be cancelled at once is told so by no signal while it is in here: it goes out and looks.
  int meaning = pending || t->cancels_at_once ? SIGNAL_RESTARTS : SIGNAL_WAITS_NOT;
  for (int signal = 1; pending; signal++, pending >>= 1) {
    struct {
      unsigned long handler, flags, restorer;
      uint64_t mask;
    } action = {0};
    if (!(pending & 1)) continue;
    RAW(SYS_rt_sigaction, signal, 0, &action, sizeof action.mask);
    if (action.handler == (unsigned long)SIG_IGN || (!action.handler && (ignored >> (signal - 1) & 1))) continue;
    if (!(action.flags & SA_RESTART)) meaning = SIGNAL_INTERRUPTS;
  }
  return meaning;
}

static bool once_more(struct madfs_thread *t) {
  t->later_frame = NULL;
  return false;
}

// The server answers EAGAIN after a while, so that signals are seen to.
static enum madfs_verdict wait_for_lock(struct madfs_frame *f, const struct madfs_call *call, long *result) {
  struct madfs_thread *t = madfs_local.thread;
  int ignored;
  for (;;) {
    *result = madfs_runtime_call(call, &ignored);
    if (*result != -EAGAIN) return answer(f, *result);
    int meaning = signals_pending(t);
    if (meaning == SIGNAL_INTERRUPTS) return answer(f, -EINTR);
    // From glibc 2.41 on nothing tells that the thread is cancelled: fcntl(), a cancellation point, goes out and looks.
    t->cancellation_point = f->number == SYS_fcntl;
    if (meaning == SIGNAL_WAITS_NOT && !t->cancellation_point) continue;
    t->later = once_more;
    t->later_frame = f;
    return MADFS_DONE;
  }
}

// --- fcntl and flock ------------------------------------------------------------------------------------------------

enum madfs_verdict madfs_locks_fcntl(struct madfs_frame *f, int slot) {
  int command = (int)f->argument[1], ignored;
  if (madfs_slot_flags(slot) & O_PATH) return answer(f, -EBADF);
  bool own = command == F_SETLK || command == F_SETLKW;
  if (own) atomic_store(&holder, (int)RAW(SYS_getpid));
  if (command == F_OFD_SETLK || command == F_OFD_SETLKW) madfs_slot_lock(slot);
  struct madfs_call call = call_of(CALL_fcntl_lock, slot, 3, command, (long)f->argument[2]);
  long result;
  if (command == F_SETLKW || command == F_OFD_SETLKW) return wait_for_lock(f, &call, &result);
  return answer(f, madfs_runtime_call(&call, &ignored));
}

static bool flock_concerns(struct madfs_frame *f) { return madfs_fd_concerns((int)f->argument[0]); }

static enum madfs_verdict flock_work(struct madfs_frame *f) {
  int slot = madfs_fd_slot((int)f->argument[0]), ignored;
  long operation = (int)f->argument[1], result;
  if (slot == FD_HOST) return MADFS_PASS;
  if (slot == FD_INTERNAL) return answer(f, -EBADF);
  struct madfs_call call = call_of(CALL_flock, slot, 2, operation, 0);
  if (operation & (LOCK_SH | LOCK_EX)) madfs_slot_lock(slot);
  if (!(operation & LOCK_NB)) return wait_for_lock(f, &call, &result);
  result = madfs_runtime_call(&call, &ignored);
  return answer(f, result);
}

const struct madfs_shim madfs_shim_flock = {flock_concerns, flock_work};

// --- the end of descriptors -----------------------------------------------------------------------------------------

void madfs_locks_closing(int slot) {
  int ignored;
  if (!atomic_load(&holder) || madfs_in_vfork() || atomic_load(&holder) != (int)RAW(SYS_getpid)) return;
  struct madfs_call call = call_of(CALL_closing, slot, 2, inherited, 0);
  madfs_runtime_call(&call, &ignored);
}

void madfs_locks_end(int slot) {
  int ignored;
  struct madfs_call call = call_of(CALL_unlock_file, slot, 1, 0, 0);
  madfs_runtime_call(&call, &ignored);
}

// --- connections that go along --------------------------------------------------------------------------------------

void madfs_locks_keep(int fd) {
  madfs_lock(&kept.lock);
  bool known = kept.count == KEPT_MAX;
  for (int i = 0; i < kept.count; i++) known |= kept.fd[i] == fd;
  if (!known) kept.fd[kept.count++] = fd;
  madfs_unlock(&kept.lock);
}

void madfs_locks_forget(int fd) {
  if (!kept.count || madfs_in_vfork()) return;
  madfs_lock(&kept.lock);
  for (int i = 0; i < kept.count; i++)
    if (kept.fd[i] == fd) kept.fd[i] = kept.fd[--kept.count];
  madfs_unlock(&kept.lock);
}

// Whether the program to be executed gets an open file that was locked.  What is closed on the way there ends the
// process's record locks on it, as every close does.
static bool passes_locked_file(bool own) {
  int top = atomic_load(&madfs_fds_top);
  bool found = false;
  for (int fd = 0; fd <= top; fd++) {
    if (!madfs_fd_concerns(fd)) continue;
    int slot = madfs_fd_slot(fd);
    if (slot < 0) continue;
    if (RAW(SYS_fcntl, fd, F_GETFD) & FD_CLOEXEC) {
      if (own) madfs_locks_closing(slot);
    } else if (madfs_slot_locked(slot)) {
      found = true;
    }
  }
  return found;
}

void madfs_locks_state(char *text, size_t size) {
  char number[24];
  size_t n = 0;
  *text = 0;
  if (!kept.count) return;
  bool own = atomic_load(&holder) && !madfs_in_vfork() && atomic_load(&holder) == (int)RAW(SYS_getpid);
  if (!passes_locked_file(own) && !own) return;
  for (int i = 0; i < kept.count && size - n > sizeof number; i++) {
    int fd = madfs_number_real(kept.fd[i]);
    if (madfs_number_taken(fd)) continue;
    if (madfs_failed(RAW(SYS_fcntl, fd, F_SETFD, 0))) continue;
    n += madfs_copy(text + n, size - n, ":");
    n += madfs_copy(text + n, size - n, madfs_decimal(number, (unsigned long)fd));
  }
}

void madfs_locks_adopt(const char *text) {
  unsigned long fd;
  while (*text == ':' && (text = madfs_number(text + 1, 10, &fd))) {
    if (madfs_failed(RAW(SYS_fcntl, fd, F_SETFD, FD_CLOEXEC))) continue;
    madfs_fds_internal((int)fd);
    madfs_locks_keep((int)fd);
    atomic_store(&holder, (int)RAW(SYS_getpid));
    inherited = true;
  }
}
