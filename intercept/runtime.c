// SPDX-License-Identifier: Apache-2.0
// The other library: loaded at the first call that is ours, from the directory this one lies in, and called on the
// thread's hook stack with the vector registers put aside.  Everything here that libc does happens in arch_preserve().
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "intercept.h"

enum {
  ENVIRONMENT_MAX = 4096,
  MESSAGE = 512,
  GUARD = 4096,
  THREAD_BYTES = MADFS_ALTERNATE_BYTES + GUARD + MADFS_HOOK_STACK_BYTES,
  LOADING_WAITS = 30,  // of 100 ms
};

static struct {
  _Atomic(const struct madfs_runtime *) table;
  _Atomic bool failed;  // said so once; every call is EIO
  bool apart;   // because this process has another one's descriptors: not said yet
  _Atomic int loading;  // threads that are in the loader, which a fork must not find at work
  struct madfs_lock lock;
} runtime;
static __thread bool loads;

static int set_inside(int inside) {
  int before = madfs_local.inside;
  madfs_local.inside = inside;
  return before;
}

static int copy(void *out, const void *in, size_t size) { return madfs_user_in(out, in, size); }

static size_t probe(const void *at, size_t length, int write) { return madfs_user_probe(at, length, write != 0); }

static const struct madfs_host host = {
    .abi = MADFS_HOST_ABI,
    .version = madfs_version,
    .open_fd = madfs_fds_open,
    .slot_read = madfs_fds_slot_read,
    .offset_get = madfs_fds_offset_get,
    .offset_set = madfs_fds_offset_set,
    .offset_cas = madfs_fds_offset_cas,
    .offset_add = madfs_fds_offset_add,
    .set_cwd = madfs_cwd_set,
    .moved = madfs_moves_add,
    .open_at = madfs_moves_at,
    .gone = madfs_moves_gone,
    .umask = madfs_umask,
    .inside = set_inside,
    .copy = copy,
    .probe = probe,
    .mapped = madfs_maps_add,
    .is_mapped = madfs_maps_has,
    .identity = madfs_identity_get,
    .cluster = madfs_identity_cluster,
    .keep = madfs_locks_keep,
};

// --- threads --------------------------------------------------------------------------------------------------------

__thread struct madfs_local madfs_local;
static pthread_key_t key;

static void thread_ends(void *value) {
  struct madfs_thread *t = value;
  madfs_local.thread = NULL;
  if (t->exec_area) RAW(SYS_munmap, t->exec_area, t->exec_size);
  madfs_alternate_remove(t);
  RAW(SYS_munmap, madfs_thread_alternate(t), THREAD_BYTES);
}

unsigned long madfs_thread_guard(const struct madfs_thread *t) {
  return (unsigned long)(t + 1) - MADFS_HOOK_STACK_BYTES - GUARD;
}

unsigned long madfs_thread_alternate(const struct madfs_thread *t) {
  return (unsigned long)(t + 1) - THREAD_BYTES;
}

// Early, so that the key is among those whose values need no memory.
void madfs_thread_key(void) {
  if (pthread_key_create(&key, thread_ends)) madfs_die(127, "no pthread key is free: run without LD_PRELOAD", NULL);
}

struct madfs_thread *madfs_thread(void) {
  if (madfs_local.thread) return madfs_local.thread;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  long base = RAW(SYS_mmap, 0, THREAD_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (madfs_failed(base)) return NULL;
  RAW(SYS_mprotect, base + MADFS_ALTERNATE_BYTES, GUARD, PROT_NONE);
  struct madfs_thread *t = (struct madfs_thread *)(base + THREAD_BYTES) - 1;
  t->self = t;
  madfs_alternate_install(t);
  return madfs_local.thread = t;
}

static long thread_register(void *value) {
  int saved = errno;
  pthread_setspecific(key, value);
  errno = saved;
  return 0;
}

void madfs_thread_register(struct madfs_thread *t) {
  t->registered = true;
  arch_preserve(thread_register, t);
}

// --- start ----------------------------------------------------------------------------------------------------------

static char *kept(int which, const char *name, const char *value) {
  static char text[2][MADFS_PATH_MAX + 32];
  size_t n = madfs_copy(text[which], sizeof *text, name);
  madfs_copy(text[which] + n, sizeof *text - n, value);
  return text[which];
}

// The runtime's UCX must not take over the application's settings, nor its signals, nor its memory functions.
static void environment_for_runtime(char **list) {
  static char *const ours[] = {"UCX_MEM_EVENTS=n",   "UCX_ERROR_SIGNALS=", "UCX_HANDLE_ERRORS=none",
                               "UCX_DEBUG_SIGNO=0",  "UCX_VFS_ENABLE=n",   "UCX_WARN_UNUSED_ENV_VARS=n",
                               "UCX_LOG_FILE=stderr"};
  size_t n = 0;
  bool cluster = false, mount = false;
  for (char **at = environ; at && *at && n < ENVIRONMENT_MAX; at++) {
    if (!madfs_starts(*at, "UCX_")) list[n++] = *at;
    cluster |= madfs_starts(*at, "MADFS_CLUSTER=");
    mount |= madfs_starts(*at, "MADFS_MOUNT=");
  }
  // The program may have emptied its environment meanwhile (env -i), and is on the mount all the same.
  if (!cluster && madfs_settings.in_cluster) list[n++] = kept(0, "MADFS_CLUSTER=", madfs_settings.cluster);
  if (!mount) list[n++] = kept(1, "MADFS_MOUNT=", madfs_settings.mount);
  for (size_t i = 0; i < sizeof ours / sizeof *ours; i++) list[n++] = ours[i];
  list[n] = NULL;
}

// Several threads may be about to start it: the first one puts it there, the last one takes it away.
static void change_environment(int by) {
  static char *list[ENVIRONMENT_MAX + 16], **theirs;
  static struct madfs_lock lock;
  static int count;
  madfs_lock(&lock);
  if (by > 0 && !count) {
    theirs = environ;
    environment_for_runtime(list);
    environ = list;
  }
  count += by;
  if (!count) environ = theirs;
  madfs_unlock(&lock);
}

static void fail(const char *why) {
  if (atomic_exchange(&runtime.failed, true)) return;
  madfs_say("the client cannot start, every file below ", madfs_settings.mount, " is an input/output error: ", why,
            NULL);
}

typedef const struct madfs_runtime *(*begin_t)(const struct madfs_host *, char *, size_t);

// The library calls this when it is loaded, so that the loader's lock is held: the client loads more of them.  Who has
// that lock (a thread that loads what lies on the mount) may wait for ours, but never the other way round.
__attribute__((visibility("default"))) void madfs_runtime_begins(begin_t begin);
void madfs_runtime_begins(begin_t begin) {
  char message[MESSAGE] = "it does not say why";
  madfs_lock(&runtime.lock);
  if (!atomic_load(&runtime.table) && !runtime.failed) {
    const struct madfs_runtime *table = begin(&host, message, sizeof message);
    if (!table) fail(message);
    atomic_store(&runtime.table, table);
  }
  madfs_unlock(&runtime.lock);
}

static void loading(int by) {
  madfs_lock(&runtime.lock);  // while a fork is under way nobody begins
  atomic_fetch_add(&runtime.loading, by);
  loads = by > 0;
  madfs_unlock(&runtime.lock);
  if (by < 0) RAW(SYS_futex, &runtime.loading, FUTEX_WAKE, INT_MAX, 0, 0, 0);
}

// What the loader says when it fails, or NULL.
static const char *load(const char *path) {
  loading(1);
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  loading(-1);
  if (!library) return dlerror();
  if (atomic_load(&runtime.table) || runtime.failed) return NULL;
  begin_t begin;  // of a library that did not call us
  *(void **)&begin = dlsym(library, "madfs_runtime_start");
  if (!begin) return dlerror();
  madfs_runtime_begins(begin);
  return NULL;
}

static long start(void *unused) {
  char path[MADFS_PATH_MAX];
  (void)unused;
  size_t n = madfs_copy(path, sizeof path, madfs_settings.library);
  while (n && path[n - 1] != '/') n--;
  madfs_copy(path + n, sizeof path - n, "libmadfs_runtime.so");
  int saved = errno;
  change_environment(1);
  const char *error = load(path);
  change_environment(-1);
  errno = saved;
  if (error) fail(error);
  return 0;
}

bool madfs_runtime_loaded(void) { return atomic_load_explicit(&runtime.table, memory_order_relaxed) != NULL; }

// --- fork -----------------------------------------------------------------------------------------------------------

static long tell_fork_begins(void *table) {
  int saved = errno;
  ((const struct madfs_runtime *)table)->fork_begins();
  errno = saved;
  return 0;
}

static long tell_fork_ends(void *child) {
  int saved = errno;
  atomic_load(&runtime.table)->fork_ends(*(bool *)child);
  errno = saved;
  return 0;
}

// A child must not find the runtime, or the loader's lists, half made by another thread, which it does not have.  Who
// forks in a constructor has the loader's lock, for which the other thread waits then: so this wait ends.
void madfs_runtime_fork_begins(void) {
  static const struct timespec moment = {0, 100 * 1000 * 1000};
  int now;
  madfs_lock(&runtime.lock);
  for (int waits = 0; !loads && (now = atomic_load(&runtime.loading)) && waits < LOADING_WAITS; waits++) {
    madfs_unlock(&runtime.lock);
    RAW(SYS_futex, &runtime.loading, FUTEX_WAIT, now, &moment, 0, 0);
    madfs_lock(&runtime.lock);
  }
  const struct madfs_runtime *table = atomic_load(&runtime.table);
  if (table) arch_preserve(tell_fork_begins, (void *)table);
}

void madfs_runtime_fork_ends(bool child) {
  if (atomic_load(&runtime.table)) arch_preserve(tell_fork_ends, &child);
  if (child) atomic_store(&runtime.loading, 0);
  madfs_unlock(&runtime.lock);
}

void madfs_runtime_leave(void) {
  atomic_store(&runtime.table, NULL);
  runtime.failed = true;
  runtime.apart = true;
  madfs_unlock(&runtime.lock);
}

static const struct madfs_runtime *need(void) {
  const struct madfs_runtime *table = atomic_load(&runtime.table);
  if (MADFS_UNLIKELY(runtime.apart)) {
    runtime.apart = false;
    madfs_say("a process made by clone() with CLONE_FILES but without CLONE_VM cannot use ", madfs_settings.mount,
              ", its calls fail with EIO: let it share memory, too, or nothing", NULL);
  }
  if (table || runtime.failed) return table;
  madfs_fork_again(false);
  arch_preserve(start, NULL);
  return atomic_load(&runtime.table);
}

// --- calls ----------------------------------------------------------------------------------------------------------

struct job {
  const struct madfs_runtime *table;
  const struct madfs_call *call;
  int escaped;
};

static long perform(void *value) {
  struct job *job = value;
  int saved = errno, state, type;
  // Nothing in the runtime may be cancelled.  With the asynchronous type, libc's own calls there leave the type alone:
  // putting it back they would wait for the signal of a cancellation, and that waits for the end of this call.
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
  pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &type);
  long result = job->table->call(job->call, madfs_local.thread->escaped, &job->escaped);
  // With the deferred type, what has come does not unwind from here: it waits for madfs_runtime_left().
  pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, NULL);
  pthread_setcancelstate(state, NULL);
  madfs_local.thread->cancels_at_once |= type == PTHREAD_CANCEL_ASYNCHRONOUS;
  errno = saved;
  return result;
}

static long cancel_now(void *unused) {
  int saved = errno;
  pthread_testcancel();
  errno = saved;
  return (long)unused;
}

static long cancel_at_once(void *unused) {
  int saved = errno;
  pthread_testcancel();
  pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
  errno = saved;
  return (long)unused;
}

void madfs_runtime_left(struct madfs_thread *t) {
  bool at_once = t->cancels_at_once;
  t->cancels_at_once = t->cancellation_point = false;
  arch_preserve(at_once ? cancel_at_once : cancel_now, NULL);
}

// Before the first call after something like setuid: who this thread is now.  A child of vfork has the thread-local
// variables of its parent, but not its identity: whichever of them comes next tells its own.
static void tell_identity(const struct madfs_runtime *table) {
  unsigned now, user, group;
  if (!MADFS_UNLIKELY(madfs_identity_changed(&now))) return;
  madfs_identity_get(&user, &group);
  struct madfs_call call = {.number = CALL_identity, .count = 2};
  call.arg[0] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = (long)user};
  call.arg[1] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = (long)group};
  struct job job = {.table = table, .call = &call};
  if (arch_preserve(perform, &job) == 0 && !madfs_in_vfork()) madfs_local.identity = now;
}

// --- in a child of vfork --------------------------------------------------------------------------------------------

// What opens and changes directories in a child of vfork must not happen on the parent's memory: connections the
// runtime makes there would be descriptors the parent does not have.  So a copy of the process does it and says what
// came out.
struct errand {
  const struct madfs_call *call;
  long result;
  int escaped_argument, slot;
  _Atomic int answered;  // 1: the result is there; 2: it was taken
  size_t cwd_length;
  uint64_t cwd_inode;
  char cwd[MADFS_PATH_MAX], escaped[MADFS_PATH_MAX];
};

// False when the process `alive` (0: nobody in particular) ended instead.
static bool wait_for(_Atomic int *word, int value, long alive) {
  static const struct timespec moment = {0, 100 * 1000 * 1000};
  for (int now; (now = atomic_load(word)) < value;) {
    RAW(SYS_futex, word, FUTEX_WAIT, now, &moment, 0, 0);
    if (alive && RAW(SYS_wait4, alive, 0, WNOHANG | __WALL, 0) == alive) return false;
  }
  return true;
}

static void tell(_Atomic int *word, int value) {
  atomic_store(word, value);
  RAW(SYS_futex, word, FUTEX_WAKE, 1, 0, 0, 0);
}

static void run_errand(struct errand *e) {
  struct madfs_thread *t = madfs_local.thread;
  madfs_fds_follow();
  RAW(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
  e->result = madfs_runtime_call(e->call, &e->escaped_argument);
  e->slot = e->result >= 0 ? madfs_fd_slot((int)e->result) : FD_HOST;
  e->cwd_length = madfs_cwd_get(e->cwd);
  e->cwd_inode = madfs_cwd_inode();
  memcpy(e->escaped, t->escaped, sizeof e->escaped);
  tell(&e->answered, 1);
  wait_for(&e->answered, 2, 0);
  for (;;) RAW(SYS_exit_group, 0);
}

static long send_out(void *value) {
  struct errand *e = value;
  int saved = errno;
  madfs_runtime_fork_begins();
  pid_t copy = fork();  // libc's, which sees to the locks of malloc()
  madfs_runtime_fork_ends(copy == 0);
  if (copy == 0) run_errand(e);
  errno = saved;
  return copy;
}

static long call_beside(const struct madfs_call *call, int *escaped_argument) {
  static const struct timespec at_once = {0, 0};
  const uint64_t child_ended = 1UL << (SIGCHLD - 1);
  uint64_t pending = 0;
  long pages = RAW(SYS_mmap, 0, sizeof(struct errand), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (madfs_failed(pages)) return pages;
  struct errand *e = (struct errand *)pages;
  e->call = call;
  RAW(SYS_rt_sigpending, &pending, sizeof pending);
  long copy = arch_preserve(send_out, e), result = -EAGAIN;
  if (copy > 0 && wait_for(&e->answered, 1, copy)) {
    result = e->result;
    *escaped_argument = e->escaped_argument;
    memcpy(madfs_local.thread->escaped, e->escaped, sizeof e->escaped);
    if (result >= 0 && (call->number == CALL_openat || call->number == CALL_openat2)) {
      result = madfs_fds_borrow(e->slot, call->number == CALL_openat && (call->arg[1].value & O_CLOEXEC));
    } else if (result >= 0 && (call->number == CALL_chdir_path || call->number == CALL_chdir_fd)) {
      madfs_cwd_set(e->cwd, e->cwd_length, e->cwd_inode);
    }
    tell(&e->answered, 2);
    RAW(SYS_wait4, copy, 0, __WALL, 0);
    if (!(pending & child_ended)) RAW(SYS_rt_sigtimedwait, &child_ended, 0, &at_once, sizeof child_ended);
  }
  RAW(SYS_munmap, e, sizeof *e);
  return result;
}

// What else a child of vfork asks for may use the parent's runtime when it runs already.  When not, results that go to
// memory would be lost with the copy.
static long call_in_vfork(const struct madfs_call *call, int *escaped_argument, bool *answered) {
  *answered = true;
  switch (call->number) {
    case CALL_openat:
    case CALL_openat2:
    case CALL_program:
    case CALL_program_opened:
    case CALL_libraries:
    case CALL_chdir_path:
    case CALL_chdir_fd: return call_beside(call, escaped_argument);
    case CALL_faccessat:
    case CALL_mkdirat:
    case CALL_unlinkat:
      if (!madfs_runtime_loaded()) return call_beside(call, escaped_argument);
      break;
    default:
      if (!madfs_runtime_loaded()) return -EAGAIN;
  }
  // A connection that is made here would be a descriptor of the child's only.
  if (madfs_agent_there()) return madfs_table_call(call, escaped_argument);
  *answered = false;
  return 0;
}

long madfs_runtime_call(const struct madfs_call *call, int *escaped_argument) {
  bool answered = false;
  long special = madfs_in_vfork() ? call_in_vfork(call, escaped_argument, &answered) : 0;
  if (answered) return special;
  if (MADFS_UNLIKELY(madfs_tables_many) && madfs_table_own()) return madfs_table_call(call, escaped_argument);
  struct job job = {.table = need(), .call = call};
  if (!job.table) return -EIO;
  tell_identity(job.table);
  long result = arch_preserve(perform, &job);
  *escaped_argument = job.escaped;
  return result;
}

static long say_exiting(void *table) {
  int saved = errno;
  ((const struct madfs_runtime *)table)->exiting();
  errno = saved;
  return 0;
}

void madfs_runtime_exiting(void) {
  static const struct madfs_call call = {.number = CALL_EXITING};
  int ignored;
  if (MADFS_UNLIKELY(madfs_tables_many) && madfs_table_own()) madfs_table_call(&call, &ignored);
  else arch_preserve(say_exiting, (void *)atomic_load(&runtime.table));
}
