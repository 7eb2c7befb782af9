// SPDX-License-Identifier: Apache-2.0
// What a new process or program inherits: memory in a child of vfork, the table and our variables across execve.
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
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
  if (f->argument[0] >= MADFS_POINTER_MIN && f->argument[1] >= sizeof *a) note_clone(a->flags, a->tls);
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

// --- execve ---------------------------------------------------------------------------------------------------------

struct builder {
  char **list;  // grows upwards; text behind it
  char *text, *end;
  size_t count;
};

static void add(struct builder *b, const char *name, const char *value, const char *more) {
  char *at = b->text;
  b->list[b->count++] = at;
  for (const char *part = name; part; part = part == name ? value : part == value ? more : NULL)
    at += madfs_copy(at, (size_t)(b->end - at), part);
  b->text = at + 1;
}

// Whether one of the libraries in an LD_PRELOAD list is this library, of whatever version.
static bool preloads_us(const char *list) {
  static const char name[] = "libmadfs_intercept.so";
  for (; *list; list++)
    if (madfs_starts(list, name) &&
        (list[sizeof name - 1] == 0 || list[sizeof name - 1] == ':' || list[sizeof name - 1] == ' '))
      return true;
  return false;
}

// Pages for `size` bytes that stay until the thread's next execve.  They are the thread's, because a child of vfork
// that succeeds cannot give them back.
static char *exec_pages(struct madfs_thread *t, size_t size) {
  size = (size + 4095) & ~4095UL;
  if (!t->exec_busy && t->exec_size >= size) return t->exec_area;
  if (!t->exec_busy && t->exec_area) RAW(SYS_munmap, t->exec_area, t->exec_size);
  t->exec_area = NULL;
  t->exec_size = 0;
  long got = RAW(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (madfs_failed(got)) return NULL;
  t->exec_area = (char *)got;
  t->exec_size = size;
  return t->exec_area;
}

// The caller's environment with what the next program needs to be on the mount as this one is.  MADFS_PRELOAD=0 in it
// says that it shall not: servers and mpirun are started so, also from a process that is preloaded itself.
static char **environment(struct madfs_thread *t, char *const *theirs) {
  const char *preload = NULL;
  bool cluster = false, mount = false, version = false;
  size_t count = 0;
  for (; theirs && theirs[count]; count++) {
    if (madfs_starts(theirs[count], "LD_PRELOAD=")) preload = theirs[count] + 11;
    cluster |= madfs_starts(theirs[count], "MADFS_CLUSTER=");
    mount |= madfs_starts(theirs[count], "MADFS_MOUNT=");
    version |= madfs_starts(theirs[count], "MADFS_VERSION=");
    if (strcmp(theirs[count], "MADFS_PRELOAD=0") == 0) return (char **)theirs;
  }
  size_t texts = 5 * MADFS_PATH_MAX + (preload ? strlen(preload) : 0);
  char *pages = exec_pages(t, (count + 8) * sizeof(char *) + texts);
  if (!pages) return NULL;
  struct builder b = {.list = (char **)pages, .text = pages + (count + 8) * sizeof(char *)};
  b.end = b.text + texts;
  for (size_t i = 0; i < count; i++) {
    if (madfs_starts(theirs[i], "MADFS_STATE=") || madfs_starts(theirs[i], "MADFS_CWD=")) continue;
    if (preload && theirs[i] == preload - 11 && !preloads_us(preload)) continue;
    b.list[b.count++] = theirs[i];
  }
  if (!preload || !*preload) add(&b, "LD_PRELOAD=", madfs_settings.library, NULL);
  else if (!preloads_us(preload)) {
    add(&b, "LD_PRELOAD=", madfs_settings.library, ":");
    b.text = (char *)memcpy(b.text - 1, preload, strlen(preload) + 1) + strlen(preload) + 1;
  }
  if (!cluster && madfs_settings.in_cluster) add(&b, "MADFS_CLUSTER=", madfs_settings.cluster, NULL);
  if (!mount) add(&b, "MADFS_MOUNT=", madfs_settings.mount, NULL);
  if (!version && madfs_settings.in_version) add(&b, "MADFS_VERSION=", madfs_version, NULL);
  char state[64];
  if (madfs_fds_state(state, sizeof state)) add(&b, state, NULL, NULL);
  if (madfs_cwd_get(t->scratch)) add(&b, "MADFS_CWD=", t->scratch, NULL);
  b.list[b.count] = NULL;
  return b.list;
}

// execve keeps the signal mask, so it is done on the application's stack once our own is lifted.
static enum madfs_verdict execute(struct madfs_frame *f, unsigned environment_at) {
  struct madfs_thread *t = madfs_local.thread;
  char **list = environment(t, (char *const *)f->argument[environment_at]);
  if (!list) {
    f->number = -ENOMEM;
    return MADFS_DONE;
  }
  for (unsigned i = 0; i < 5; i++) t->exec_argument[i] = f->argument[i];
  t->exec_argument[environment_at] = (unsigned long)list;
  t->exec_frame = f;
  return MADFS_DONE;
}

long madfs_exec_finish(struct madfs_thread *t) {
  const unsigned long *a = t->exec_argument;
  struct madfs_frame *f = t->exec_frame;
  t->exec_frame = NULL;
  t->exec_busy = true;
  long result = RAW(f->number, a[0], a[1], a[2], a[3], a[4]);
  t->exec_busy = false;
  return result;
}

// A program that lies on the mount cannot be executed yet.
static enum madfs_verdict execute_at(struct madfs_frame *f, int directory, const char *path, unsigned environment_at) {
  size_t length;
  int where = path ? madfs_path_locate(directory, path, madfs_local.thread->path[0], &length) : PATH_HOST;
  if (where != PATH_HOST) {
    f->number = where < 0 ? where : -EACCES;
    return MADFS_DONE;
  }
  return execute(f, environment_at);
}

static bool always(struct madfs_frame *f) { return (void)f, true; }

static enum madfs_verdict execve_work(struct madfs_frame *f) {
  return execute_at(f, AT_FDCWD, (const char *)f->argument[0], 2);
}

static enum madfs_verdict execveat_work(struct madfs_frame *f) {
  return execute_at(f, (int)f->argument[0], (const char *)f->argument[1], 3);
}

const struct madfs_shim madfs_shim_execve = {always, execve_work};
const struct madfs_shim madfs_shim_execveat = {always, execveat_work};
