// SPDX-License-Identifier: Apache-2.0
// Tasks that share this memory but not its table of descriptors: threads that called unshare(CLONE_FILES), children of
// clone(CLONE_VM) without CLONE_FILES.
//
// From the first of them on, what is remembered about descriptors is true of one table only, so everybody asks the
// kernel.  What the client opens, connections above all, must be in one table: that of the agent, a thread that is made
// before the tables part and does the calls of tasks with another one.  A marker tells which table a task has: a
// descriptor of the agent's under a number that every copy of the table has, too, but with another file behind it,
// because the agent puts a new one there whenever tables have parted.
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "intercept.h"

enum { IDLE, POSTED, ANSWERED, TAKEN };  // what of a job the agent waits for or has done

static struct {
  struct madfs_lock lock;
  _Atomic int process, thread;  // the agent's
  _Atomic int parting;          // clones under way whose child gets a table of its own
  _Atomic bool twins;           // some share their thread-local memory, too
  int marker;
  _Atomic uint64_t marked;  // the inode behind it in the agent's table
  _Atomic int step;
  const struct madfs_call *call;  // NULL: mark anew
  long result;
  int escaped_argument, slot;
  char escaped[MADFS_PATH_MAX];
} agent;

// --- the agent ------------------------------------------------------------------------------------------------------

static void tell(int step) {
  atomic_store(&agent.step, step);
  RAW(SYS_futex, &agent.step, FUTEX_WAKE, INT32_MAX, 0, 0, 0);
}

// False: the agent's process has ended, which a child with a process number of its own may outlive.
static bool wait_for(int step) {
  static const struct timespec moment = {0, 100 * 1000 * 1000};
  for (int now; (now = atomic_load(&agent.step)) != step;) {
    RAW(SYS_futex, &agent.step, FUTEX_WAIT, now, &moment, 0, 0);
    if (RAW(SYS_tgkill, agent.process, agent.thread, 0) == -ESRCH) return false;
  }
  return true;
}

static void mark(void) {
  struct stat file;
  long fd = RAW(SYS_memfd_create, "madfs-marker", MFD_CLOEXEC);  // close-on-exec
  if (madfs_failed(fd)) return;
  if (!madfs_failed(RAW(SYS_fstat, fd, &file)) && RAW(SYS_dup3, fd, madfs_number_real(agent.marker), O_CLOEXEC) >= 0)
    atomic_store(&agent.marked, file.st_ino);
  RAW(SYS_close, fd);
}

static void do_call(void) {
  if (agent.call->number == CALL_EXITING) madfs_runtime_exiting();
  else agent.result = madfs_runtime_call(agent.call, &agent.escaped_argument);
  bool opens = agent.call->number == CALL_openat || agent.call->number == CALL_openat2;
  agent.slot = opens && agent.result >= 0 ? madfs_fd_slot((int)agent.result) : FD_HOST;
  memcpy(agent.escaped, madfs_local.thread->escaped, sizeof agent.escaped);
  int fd = (int)agent.result;
  tell(ANSWERED);
  wait_for(TAKEN);
  if (agent.slot >= 0) madfs_fds_done(fd, agent.slot);
}

static void *serve(void *unused) {
  uint64_t most = madfs_asynchronous;  // but not libc's own: setuid() waits until every thread has answered one
  for (int number = 32; number < SIGRTMIN; number++) most &= ~(1UL << (number - 1));
  RAW(SYS_rt_sigprocmask, SIG_SETMASK, &most, 0, sizeof most);
  madfs_local.inside = 1;  // what it asks the kernel is the client's
  atomic_store(&agent.thread, (int)RAW(SYS_gettid));
  if (!madfs_thread()) return unused;
  for (tell(IDLE);; tell(IDLE)) {
    wait_for(POSTED);
    if (agent.call) {
      do_call();
      continue;
    }
    mark();
    tell(ANSWERED);
    wait_for(TAKEN);
  }
}

static long make_agent(void *unused) {
  pthread_t id;
  pthread_attr_t attributes;
  int saved = errno, failed = pthread_attr_init(&attributes);
  (void)unused;
  if (!failed) failed = pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  if (!failed) failed = pthread_create(&id, &attributes, serve, NULL);
  errno = saved;
  return -failed;
}

static long need_agent(void) {
  int self = madfs_memory_owner();
  if (atomic_load(&agent.process) == self) return 0;
  long fd = madfs_fds_hide(RAW(SYS_memfd_create, "madfs-marker", MFD_CLOEXEC));
  if (madfs_failed(fd)) return fd;
  agent.marker = (int)fd;
  agent.process = self;
  agent.thread = (int)RAW(SYS_gettid);  // lives for as long as the agent is not there yet
  atomic_store(&agent.step, TAKEN);
  long result = arch_preserve(make_agent, NULL);
  if (!result) wait_for(IDLE);
  else agent.process = 0;
  return result;
}

static long agent_on_hook_stack(void *unused) {
  (void)unused;
  if (!madfs_local.thread->registered) madfs_thread_register(madfs_local.thread);
  return need_agent();
}

void madfs_agent_need(void) {
  if (atomic_load(&agent.process) == madfs_memory_owner()) return;
  madfs_local.inside |= 1;
  arch_on_stack(madfs_local.thread, agent_on_hook_stack, NULL);
  madfs_local.inside &= ~1;
}

bool madfs_agent_there(void) { return atomic_load(&agent.process) == madfs_memory_owner(); }

// With the lock held: what the agent answers, or -EIO.
static long ask_agent(const struct madfs_call *call) {
  if (!wait_for(IDLE)) return -EIO;
  agent.call = call;
  tell(POSTED);
  return wait_for(ANSWERED) ? 0 : -EIO;
}

static void mark_anew(void) {
  if (!ask_agent(NULL)) tell(TAKEN);
}

// --- whose table this task has --------------------------------------------------------------------------------------

bool madfs_table_own(void) {
  struct stat file;
  if (!madfs_tables_many || atomic_load(&agent.process) == 0 || RAW(SYS_gettid) == atomic_load(&agent.thread))
    return false;
  if (atomic_load(&agent.parting)) {
    madfs_lock(&agent.lock);
    mark_anew();
    madfs_unlock(&agent.lock);
  }
  int marker = madfs_number_real(agent.marker);
  return madfs_failed(RAW(SYS_fstat, marker, &file)) || file.st_ino != atomic_load(&agent.marked);
}

long madfs_table_call(const struct madfs_call *call, int *escaped_argument) {
  madfs_lock(&agent.lock);
  long result = ask_agent(call);
  if (!result) {
    result = agent.result;
    *escaped_argument = agent.escaped_argument;
    memcpy(madfs_local.thread->escaped, agent.escaped, sizeof agent.escaped);
    bool cloexec = call->number == CALL_openat && (call->arg[1].value & O_CLOEXEC);
    if (agent.slot >= 0) result = madfs_fds_borrow(agent.slot, cloexec);
    tell(TAKEN);
  }
  madfs_unlock(&agent.lock);
  return result;
}

// Before the tables part; 0 or -errno.
static long part(void) {
  long result = madfs_fds_need();  // who makes it later could not give it to the others
  if (!result) result = need_agent();
  if (result) return result;
  madfs_fds_distrust();
  madfs_fds_shared();
  return 0;
}

static long part_on_hook_stack(void *unused) {
  (void)unused;
  if (!madfs_local.thread->registered) madfs_thread_register(madfs_local.thread);
  return part();
}

void madfs_tables_twins(void) { atomic_store(&agent.twins, true); }

void madfs_tables_clone(void) {
  const uint64_t all = ~0UL;
  uint64_t before;
  RAW(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof before);
  madfs_local.inside |= 1;
  if (madfs_thread() && !arch_on_stack(madfs_local.thread, part_on_hook_stack, NULL)) {
    atomic_fetch_add(&agent.parting, 1);
    madfs_local.parting = true;
  }
  madfs_local.inside &= ~1;
  RAW(SYS_rt_sigprocmask, SIG_SETMASK, &before, 0, sizeof before);
}

// The task that cloned, or its child when that has the same thread-local memory, is heard of again.
void madfs_tables_cloned(void) {
  if (!madfs_local.parting) return;
  madfs_local.parting = false;
  madfs_table_own();
  atomic_fetch_sub(&agent.parting, 1);
}

// After a fork, in the child: it has a table for itself, and no agent.
void madfs_tables_forget(void) {
  atomic_store(&agent.process, 0);
  atomic_store(&agent.parting, 0);
  atomic_store(&agent.twins, false);
  madfs_local.parting = false;
}

// --- unshare --------------------------------------------------------------------------------------------------------

// No other task has this table: nothing parts.  The directory of tasks has three links then.
bool madfs_alone(void) {
  struct stat tasks;
  if (madfs_tables_many || madfs_shares_memory()) return false;
  return !madfs_failed(RAW(SYS_newfstatat, AT_FDCWD, "/proc/self/task", &tasks, 0)) && tasks.st_nlink == 3;
}

long madfs_tables_unshare(unsigned long flags) {
  long result = part();
  if (result) return result;
  result = RAW(SYS_unshare, flags);
  madfs_lock(&agent.lock);
  mark_anew();
  madfs_unlock(&agent.lock);
  return result;
}

static bool unshare_concerns(struct madfs_frame *f) {
  if (f->argument[0] & CLONE_NEWNS) madfs_identity_keep();
  return (f->argument[0] & CLONE_FILES) && !madfs_in_vfork() && !madfs_alone();
}

static enum madfs_verdict unshare_work(struct madfs_frame *f) {
  f->number = madfs_tables_unshare(f->argument[0]);
  return MADFS_DONE;
}

const struct madfs_shim madfs_shim_unshare = {unshare_concerns, unshare_work};

// --- two tasks with the same thread-local memory ---------------------------------------------------------------------

bool madfs_twin_waits(void) {
  if (!atomic_load(&agent.twins)) return false;
  int self = (int)RAW(SYS_gettid);
  if (!madfs_local.inside_task || madfs_local.inside_task == self) return false;
  const struct timespec moment = {0, 50 * 1000};
  while ((madfs_local.inside & ~INSIDE_FORK) && madfs_local.inside_task != self) RAW(SYS_nanosleep, &moment, 0);
  return true;
}

void madfs_twin_enters(void) {
  _Atomic int *word = (_Atomic int *)&madfs_local.inside;
  if (!atomic_load(&agent.twins)) return;
  int self = (int)RAW(SYS_gettid);
  for (int now = atomic_load(word);; now = atomic_load(word)) {
    if (now & 1) madfs_twin_waits();
    else if (atomic_compare_exchange_strong(word, &now, now | 1)) break;
  }
  madfs_local.inside_task = self;
}
