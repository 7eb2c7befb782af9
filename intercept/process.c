// SPDX-License-Identifier: Apache-2.0
// What a new process inherits, and what it must not change: a child of vfork runs on its parent's memory.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

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

// Once another process was given this memory: whose it is.
static _Atomic int memory_process;

bool madfs_shares_memory(void) { return atomic_load(&memory_process) != 0; }

// The number of this process, on a page that a child of fork finds empty: every lock asks for it.
static _Atomic int *noted;

static void note_process(void) {
  void *page = (void *)RAW(SYS_mmap, 0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (madfs_failed((long)page)) return;
  if (!RAW(SYS_madvise, page, 4096, MADV_WIPEONFORK)) noted = page;
  else RAW(SYS_munmap, page, 4096);  // Linux before 4.14
}

static int this_process(void) {
  int process = noted ? atomic_load_explicit(noted, memory_order_relaxed) : 0;
  if (process) return process;
  process = (int)RAW(SYS_getpid);
  if (noted) atomic_store(noted, process);
  return process;
}

int madfs_memory_owner(void) {
  int process = atomic_load_explicit(&memory_process, memory_order_relaxed);
  if (MADFS_UNLIKELY(process)) return process;
  return madfs_in_vfork() ? madfs_local.thread->vfork_parent[0] : this_process();
}

static void note_vfork(void) {
  const uint64_t all = ~0UL;
  uint64_t before;
  RAW(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof before);
  struct madfs_thread *t = madfs_thread();
  madfs_in_vfork();  // forgets those that are over
  madfs_fds_need();  // the child cannot make the table: it could not give it to us
  if (t && !madfs_local.vfork_depth && madfs_runtime_loaded()) madfs_agent_need();
  if (t && madfs_local.vfork_depth < MADFS_VFORK_DEPTH) {
    if (!madfs_local.vfork_depth) {
      t->cwd_changed = false;
      t->table_fd = 0;
      t->taken_count = 0;
    }
    t->vfork_parent[madfs_local.vfork_depth] = (int)RAW(SYS_getpid);
    madfs_local.vfork_depth++;
  }
  RAW(SYS_rt_sigprocmask, SIG_SETMASK, &before, 0, sizeof before);
}

// --- copies of this process -----------------------------------------------------------------------------------------

// Of the fork under way; the runtime's lock guards it.
static struct {
  int process;
  bool shares_files;  // the child has our table of descriptors, and its own memory
} forking;

static void fork_begins(void) {
  madfs_runtime_fork_begins();
  madfs_cwd_hold(true);
  forking.process = (int)RAW(SYS_getpid);
  forking.shares_files = false;
  madfs_local.forking = FORKS;
  madfs_local.fork_made = false;
}

static void fork_ends(void) {
  madfs_local.forking = FORKS_NOT;
  madfs_cwd_hold(false);
  bool child = forking.process != (int)RAW(SYS_getpid);
  if (child) {
    atomic_store(&memory_process, 0);
    madfs_tables_forget();
  }
  if (child && forking.shares_files) madfs_runtime_leave();
  else madfs_runtime_fork_ends(child);
}

static long on_hook_stack(void *begins) {
  if (!madfs_local.thread->registered) madfs_thread_register(madfs_local.thread);
  if (begins) fork_begins();
  else fork_ends();
  return 0;
}

static void on_stack(bool begins) {
  madfs_twin_enters();
  madfs_local.inside |= 1;
  arch_on_stack(madfs_local.thread, on_hook_stack, begins ? "" : NULL);
  madfs_local.inside &= ~1;
}

// libc's fork() calls these before it and after it.  Who registers first comes last before a fork and first after it.
// So ours, registered before everybody's, let the program's own handlers do what they like.  But an allocator of the
// program's that locks itself then (jemalloc, tcmalloc) must come after us: waiting for another thread of the runtime
// would wait for ever if that one wants memory, and in the child we could not free any.  Where there is such a one,
// ours are registered again when it has registered its own.  The first pair that comes before a fork begins it and
// ends it.
enum pair { PAIR_NONE, PAIR_START, PAIR_THREAD, PAIR_RUNTIME };

static void handler_before(enum pair pair) {
  uint64_t before;
  if (madfs_local.inside & ~INSIDE_FORK || madfs_in_vfork() || madfs_filtered()) return;  // by the runtime itself
  if (madfs_local.forking) return;
  RAW(SYS_rt_sigprocmask, SIG_SETMASK, &madfs_asynchronous, &before, sizeof before);
  if (madfs_thread()) {
    on_stack(true);
    madfs_local.fork_signals = before;
    madfs_local.fork_pair = pair;
  } else {
    RAW(SYS_rt_sigprocmask, SIG_SETMASK, &before, 0, sizeof before);
  }
}

static void handler_after(enum pair pair) {
  if (madfs_local.fork_pair != (int)pair || madfs_local.inside & ~INSIDE_FORK) return;
  if (madfs_local.forking) on_stack(false);
  madfs_local.fork_pair = PAIR_NONE;
  RAW(SYS_rt_sigprocmask, SIG_SETMASK, &madfs_local.fork_signals, 0, sizeof madfs_local.fork_signals);
}

bool madfs_fork_interrupt(void) {
  if (madfs_local.forking != FORKS || !madfs_local.fork_pair) return false;
  on_stack(false);
  return !madfs_local.fork_made;
}

void madfs_fork_resume(void) { on_stack(true); }

static void start_before(void) { handler_before(PAIR_START); }
static void start_after(void) { handler_after(PAIR_START); }
static void thread_before(void) { handler_before(PAIR_THREAD); }
static void thread_after(void) { handler_after(PAIR_THREAD); }
static void runtime_before(void) { handler_before(PAIR_RUNTIME); }
static void runtime_after(void) { handler_after(PAIR_RUNTIME); }

// What glibc's pthread_atfork() is made of.  Weak, so that the loader of another C library can load us at all.
extern int __register_atfork(void (*)(void), void (*)(void), void (*)(void), void *) __attribute__((weak));
extern void *__dso_handle __attribute__((visibility("hidden")));

bool madfs_fork_can_be_told(void) { return __register_atfork != NULL; }

static void tell_me(void (*before)(void), void (*after)(void)) {
  if (__register_atfork(before, after, after, __dso_handle))
    madfs_die(127, "no memory for a fork handler: run without LD_PRELOAD", NULL);
}

static bool other_allocator;  // than libc's own, which fork() itself locks and unlocks

static long meet_allocator(void *unused) {
  Dl_info its, libcs;
  other_allocator = dladdr((const void *)(unsigned long)&malloc, &its) &&
                    dladdr((const void *)(unsigned long)&__register_atfork, &libcs) && its.dli_fbase != libcs.dli_fbase;
  if (other_allocator) free(malloc(1));  // jemalloc registers its handlers at the first use
  return (long)unused;
}

void madfs_fork_start(void) {
  note_process();
  arch_preserve(meet_allocator, NULL);
  tell_me(start_before, start_after);
}

static long tell_me_again(void *thread) {
  if (thread) tell_me(thread_before, thread_after);
  else tell_me(runtime_before, runtime_after);
  return 0;
}

void madfs_fork_again(bool thread) {
  static _Atomic bool done[2];
  uint64_t before;
  if (!other_allocator || atomic_load(&done[thread]) || atomic_exchange(&done[thread], true)) return;
  RAW(SYS_rt_sigprocmask, SIG_SETMASK, &madfs_asynchronous, &before, sizeof before);
  arch_preserve(tell_me_again, thread ? "" : NULL);
  RAW(SYS_rt_sigprocmask, SIG_SETMASK, &before, 0, sizeof before);
}

void madfs_fork_finish(void) {
  uint64_t before;
  if (madfs_local.forking != FORKS_IN_PLACE) return;
  RAW(SYS_rt_sigprocmask, SIG_SETMASK, &madfs_asynchronous, &before, sizeof before);
  on_stack(false);
  RAW(SYS_rt_sigprocmask, SIG_SETMASK, &before, 0, sizeof before);
}

// What a child has of its own.
enum kind { KIND_COPY, KIND_VFORK, KIND_FILES, KIND_THREAD };

struct new_process {
  unsigned long flags, stack, thread_pointer;
};

static bool read_clone3(const struct madfs_frame *f, struct new_process *out) {
  const struct clone_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
  } *a = (const void *)f->argument[0];
  if (f->argument[0] < MADFS_POINTER_MIN || f->argument[1] < sizeof *a) return false;
  *out = (struct new_process){arch_peek(&a->flags), arch_peek(&a->stack), arch_peek(&a->tls)};
  return true;
}

static bool read_request(const struct madfs_frame *f, struct new_process *out) {
  *out = (struct new_process){0};
  if (f->number == SYS_clone3) return read_clone3(f, out);
  if (f->number == SYS_clone)
    *out = (struct new_process){f->argument[0], f->argument[1], f->argument[ARCH_CLONE_TLS]};
  else if (ARCH_IS_VFORK(f->number)) out->flags = CLONE_VM | CLONE_VFORK;
  return true;
}

static enum kind kind_of(const struct new_process *p) {
  if (!(p->flags & CLONE_VM)) return KIND_COPY;
  if (p->flags & CLONE_VFORK) return KIND_VFORK;
  return p->flags & CLONE_FILES ? KIND_THREAD : KIND_FILES;
}

// A thread that the runtime starts is inside for its whole life; its local variables are there already.
void madfs_clone_inside(const struct madfs_frame *f) {
  struct new_process p;
  if (f->number != SYS_clone && f->number != SYS_clone3 && f->number != SYS_fork && !ARCH_IS_VFORK(f->number)) return;
  if (!read_request(f, &p)) return;
  if (!(p.flags & CLONE_FILES)) madfs_fds_shared();
  if (!(p.flags & CLONE_SETTLS) || !(p.flags & CLONE_THREAD)) return;
  struct madfs_local *its =
      (struct madfs_local *)(p.thread_pointer + ((unsigned long)&madfs_local - arch_thread_pointer()));
  its->inside = 1;
}

// A process that lives beside this one on the same memory, perhaps with the same thread-local variables.
static void note_companion(const struct new_process *p) {
  if (p->flags & CLONE_THREAD) return;
  atomic_store(&memory_process, madfs_memory_owner());
  if (!(p->flags & CLONE_SETTLS)) madfs_tables_twins();
}

// True: a copy of the process is made past libc's fork(), whose handlers have not run.  All else is executed where it
// stands: nothing of ours is on the stack, so a child may return from there.
static bool clone_concerns(struct madfs_frame *f) {
  struct new_process p;
  if (!read_request(f, &p)) return false;
  enum kind kind = kind_of(&p);
  if (p.flags & CLONE_NEWNS) madfs_identity_keep();
  if (kind == KIND_COPY && !madfs_local.forking && !madfs_in_vfork()) return true;
  if (kind == KIND_COPY) madfs_local.fork_made = true;
  if (!(p.flags & CLONE_FILES)) madfs_fds_fork_begins();
  if (kind == KIND_VFORK) note_vfork();
  if (kind == KIND_FILES) madfs_tables_clone();
  if (kind == KIND_FILES || kind == KIND_THREAD) note_companion(&p);
  if (kind == KIND_THREAD) madfs_fork_again(true);
  if (kind == KIND_THREAD) madfs_filter_inherited();
  return false;
}

void madfs_clone_filtered(const struct madfs_frame *f) {
  struct new_process p;
  if (read_request(f, &p) && (kind_of(&p) == KIND_FILES || kind_of(&p) == KIND_THREAD)) madfs_filter_inherited();
}

static enum madfs_verdict clone_work(struct madfs_frame *f) {
  const unsigned long *a = f->argument;
  struct new_process p;
  read_request(f, &p);
  fork_begins();
  madfs_fds_fork_begins();
  if (p.flags & CLONE_FILES) {
    madfs_fds_need();
    madfs_fds_distrust();
    forking.shares_files = true;
  }
  if (p.stack || (p.flags & CLONE_SETTLS)) {  // the child cannot return from here
    madfs_local.forking = FORKS_IN_PLACE;
    return MADFS_PASS;
  }
  f->number = arch_syscall(f->number, (long)a[0], (long)a[1], (long)a[2], (long)a[3], (long)a[4], (long)a[5]);
  madfs_fds_fork_ended();
  fork_ends();
  return MADFS_DONE;
}

const struct madfs_shim madfs_shim_fork = {clone_concerns, clone_work};
const struct madfs_shim madfs_shim_vfork = {clone_concerns, NULL};
const struct madfs_shim madfs_shim_clone = {clone_concerns, clone_work};
const struct madfs_shim madfs_shim_clone3 = {clone_concerns, clone_work};

// --- the end --------------------------------------------------------------------------------------------------------

// The end of a process on the memory of another one's is not the end of the runtime.
static bool exit_concerns(struct madfs_frame *f) {
  (void)f;
  int owner = atomic_load(&memory_process);
  return madfs_runtime_loaded() && !madfs_filtered() && !madfs_in_vfork() && (!owner || owner == (int)RAW(SYS_getpid));
}

static _Atomic int exiting;  // the thread that ends this process

// The kernel would have ended the other threads by now: none of them may see that descriptors are closed.
void madfs_exit_waits(void) {
  int thread = atomic_load_explicit(&exiting, memory_order_relaxed);
  if (thread && thread != (int)RAW(SYS_gettid))
    while (!madfs_failed(RAW(SYS_tgkill, RAW(SYS_getpid), thread, 0))) RAW(SYS_ppoll, 0, 0, 0, 0);
}

static enum madfs_verdict exit_work(struct madfs_frame *f) {
  (void)f;
  atomic_store(&exiting, (int)RAW(SYS_gettid));
  madfs_fds_exit();
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
  long fd = madfs_open("/proc/self/status", O_RDONLY | O_CLOEXEC), n = 0;
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
