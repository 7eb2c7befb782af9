// SPDX-License-Identifier: Apache-2.0
// What a new process inherits, and what it must not change: a child of vfork runs on its parent's memory.
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>

#include "intercept.h"

// --- children -------------------------------------------------------------------------------------------------------

// A child of vfork runs on its parent's memory, thread-local variables included, while the parent's thread waits.  The
// parent's process number, noted before, tells which of the two is running.
bool madfs_in_vfork(void) {
  if (!madfs_local.vfork_depth) return false;
  int self = (int)RAW(SYS_getpid);
  const struct madfs_thread *t = madfs_local.thread;
  while (madfs_local.vfork_depth && t->vfork_parent[madfs_local.vfork_depth - 1] == self) madfs_local.vfork_depth--;
  return madfs_local.vfork_depth != 0;
}

int madfs_memory_owner(void) { return madfs_in_vfork() ? madfs_local.thread->vfork_parent[0] : (int)RAW(SYS_getpid); }

static void note_vfork(void) {
  const uint64_t all = ~0UL;
  uint64_t before;
  RAW(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof before);
  struct madfs_thread *t = madfs_thread();
  madfs_in_vfork();  // forgets those that are over
  madfs_fds_need();  // the child cannot make the table: it could not give it to us
  if (t && madfs_local.vfork_depth < MADFS_VFORK_DEPTH) {
    if (!madfs_local.vfork_depth) t->cwd_changed = false;
    t->vfork_parent[madfs_local.vfork_depth] = (int)RAW(SYS_getpid);
    madfs_local.vfork_depth++;
  }
  RAW(SYS_rt_sigprocmask, SIG_SETMASK, &before, 0, sizeof before);
}

// All of these are executed where they stand: nothing of ours is on the stack, so a child may return from there.
static bool fork_concerns(struct madfs_frame *f) {
  (void)f;
  madfs_fds_fork_begins();
  return false;
}

static bool vfork_concerns(struct madfs_frame *f) {
  (void)f;
  madfs_fds_fork_begins();
  note_vfork();
  return false;
}

// A thread that the runtime starts is inside for its whole life; its local variables are there already.
static void note_clone(unsigned long flags, unsigned long thread_pointer) {
  if (!(flags & CLONE_FILES)) madfs_fds_fork_begins();
  if ((flags & CLONE_VM) && (flags & CLONE_VFORK)) note_vfork();
  if (!madfs_local.inside || !(flags & CLONE_SETTLS) || !(flags & CLONE_THREAD)) return;
  struct madfs_local *its =
      (struct madfs_local *)(thread_pointer + ((unsigned long)&madfs_local - arch_thread_pointer()));
  its->inside = 1;
}

static bool clone_concerns(struct madfs_frame *f) {
  note_clone(f->argument[0], f->argument[ARCH_CLONE_TLS]);
  return false;
}

static bool clone3_concerns(struct madfs_frame *f) {
  const struct clone_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
  } *a = (const void *)f->argument[0];
  if (f->argument[0] >= MADFS_POINTER_MIN && f->argument[1] >= sizeof *a)
    note_clone(arch_peek(&a->flags), arch_peek(&a->tls));
  return false;
}

const struct madfs_shim madfs_shim_fork = {fork_concerns, NULL};
const struct madfs_shim madfs_shim_vfork = {vfork_concerns, NULL};
const struct madfs_shim madfs_shim_clone = {clone_concerns, NULL};
const struct madfs_shim madfs_shim_clone3 = {clone3_concerns, NULL};

// --- the end --------------------------------------------------------------------------------------------------------

static bool exit_concerns(struct madfs_frame *f) { return (void)f, madfs_runtime_loaded() && !madfs_in_vfork(); }

static enum madfs_verdict exit_work(struct madfs_frame *f) {
  (void)f;
  madfs_runtime_exiting();
  return MADFS_PASS;
}

const struct madfs_shim madfs_shim_exit_group = {exit_concerns, exit_work};

// --- umask ----------------------------------------------------------------------------------------------------------

// -1: not known yet.  The kernel tells it without changing it only as text.
static _Atomic int mask = -1;

unsigned madfs_umask(void) {
  int known = atomic_load(&mask);
  if (known >= 0 && !madfs_in_vfork()) return (unsigned)known;
  char text[1024];
  long fd = RAW(SYS_openat, AT_FDCWD, "/proc/self/status", O_RDONLY | O_CLOEXEC, 0), n = 0;
  if (!madfs_failed(fd)) {
    n = RAW(SYS_read, fd, text, sizeof text - 1);
    RAW(SYS_close, fd);
  }
  text[n > 0 ? n : 0] = 0;
  unsigned long value = 022;
  for (const char *at = text; *at; at++)
    if (madfs_starts(at, "Umask:\t") && madfs_number(at + 7, 8, &value)) break;
  if (!madfs_in_vfork()) atomic_store(&mask, (int)value);
  return (unsigned)value;
}

static bool umask_concerns(struct madfs_frame *f) {
  if (!madfs_in_vfork()) atomic_store(&mask, (int)(f->argument[0] & 0777));
  return false;
}

const struct madfs_shim madfs_shim_umask = {umask_concerns, NULL};
