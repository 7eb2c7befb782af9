// SPDX-License-Identifier: Apache-2.0
// A runtime in plain C for the tests of the shim: a flat in-memory tree that all processes of a test share through a
// file (FAKE_STORE in the environment), with just enough of POSIX to show what the shim must do.  It is as careless
// with the processor as a real one: it uses vector registers, errno and descriptors of its own.
#include <errno.h>
#include <fcntl.h>
#include <linux/stat.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../intercept/host.h"

enum {
#define CALL(name, number) CALL_##name = number,
#include "../../intercept/syscalls.def"
#undef CALL
};

enum { FILES = 128, NAME = 256, DATA = 1 << 18 };

struct file {
  char path[NAME];  // below the mount, "/a"; empty: unused
  int directory, opens, releases;
  int locker;  // the process that has a lock on it
  unsigned mode;
  long size;
  char data[DATA];
};

struct store {
  _Atomic int lock;
  _Atomic long calls;
  struct file files[FILES];
};

static const struct madfs_host *host;
static struct store *store;
static char mount[MADFS_PATH_MAX] = "/madfs";

static void lock(void) {
  while (atomic_exchange(&store->lock, 1)) continue;
}

static void unlock(void) { atomic_store(&store->lock, 0); }

static struct file *find(const char *path) {
  for (int i = 0; i < FILES; i++)
    if (store->files[i].path[0] && strcmp(store->files[i].path, path) == 0) return &store->files[i];
  return NULL;
}

static struct file *make(const char *path, int directory, unsigned mode) {
  for (int i = 0; i < FILES; i++) {
    struct file *f = &store->files[i];
    if (f->path[0]) continue;
    memset(f, 0, sizeof *f);
    snprintf(f->path, NAME, "%s", path);
    f->directory = directory;
    f->mode = mode;
    return f;
  }
  return NULL;
}

// The path below the mount, resolved lexically.  Leaving it: the host path in `escaped`, and NULL.
static char *below(const struct madfs_arg *a, char *out, char *escaped) {
  char text[MADFS_PATH_MAX], *saved = NULL;
  char whole[MADFS_PATH_MAX] = "";
  snprintf(text, sizeof text, "%s", a->text);
  for (char *part = strtok_r(text, "/", &saved); part; part = strtok_r(NULL, "/", &saved)) {
    char *last = strrchr(whole, '/');
    if (strcmp(part, ".") == 0) continue;
    if (strcmp(part, "..") == 0) {
      if (last) *last = 0;
    } else {
      size_t n = strlen(whole);
      snprintf(whole + n, sizeof whole - n, "/%s", part);
    }
  }
  size_t n = strlen(mount);
  if (strncmp(whole, mount, n) != 0 || (whole[n] && whole[n] != '/')) {
    snprintf(escaped, MADFS_PATH_MAX, "%s", whole[0] ? whole : "/");
    return NULL;
  }
  snprintf(out, MADFS_PATH_MAX, "%s", whole[n] ? whole + n : "/");
  return out;
}

static struct file *of_handle(uint64_t handle, uint32_t *flags) {
  char record[128], path[MADFS_PATH_MAX];
  size_t record_length, path_length;
  uint32_t ignored;
  if (host->slot_read(handle, flags ? flags : &ignored, record, &record_length, path, &path_length)) return NULL;
  int index;
  memcpy(&index, record, sizeof index);
  return &store->files[index];
}

static long fill_stat(const struct file *f, struct stat *out) {
  memset(out, 0, sizeof *out);
  out->st_ino = (ino_t)(f - store->files + 1);
  out->st_mode = f->directory ? S_IFDIR | f->mode : S_IFREG | f->mode;
  out->st_nlink = 1;
  out->st_size = f->size;
  out->st_blksize = 4096;
  return 0;
}

static long fill_statx(const struct file *f, struct statx *out) {
  memset(out, 0, sizeof *out);
  out->stx_mask = STATX_BASIC_STATS;
  out->stx_ino = (unsigned long)(f - store->files + 1);
  out->stx_mode = (unsigned short)(f->directory ? S_IFDIR | f->mode : S_IFREG | f->mode);
  out->stx_nlink = 1;
  out->stx_size = (unsigned long)f->size;
  return 0;
}

static long open_path(const char *path, const char *whole, long flags, long mode) {
  struct file *f = find(path);
  if (f && (flags & O_CREAT) && (flags & O_EXCL)) return -EEXIST;
  if (!f && !(flags & O_CREAT)) return -ENOENT;
  if (!f && !(f = make(path, 0, (unsigned)mode & ~host->umask() & 0777))) return -ENOSPC;
  if (f->directory && (flags & O_ACCMODE) != O_RDONLY) return -EISDIR;
  if (!f->directory && (flags & O_DIRECTORY)) return -ENOTDIR;
  if (flags & O_TRUNC) f->size = 0;
  // The shim looks at the mode, where the record of files.py has it.
  struct {
    int index;
    char others[16];
    uint32_t mode;
  } record = {.index = (int)(f - store->files), .mode = (f->directory ? S_IFDIR : S_IFREG) | f->mode};
  f->opens++;
  uint32_t kept = (uint32_t)(flags & ~(O_CREAT | O_EXCL | O_TRUNC | O_CLOEXEC)) | (f->directory ? O_DIRECTORY : 0);
  return host->open_fd(kept, &record, sizeof record, whole, strlen(whole), (flags & O_CLOEXEC) != 0);
}

static long transfer(const struct madfs_call *c, int writing, long offset) {
  uint32_t flags;
  uint64_t handle = (uint64_t)c->arg[0].value;
  struct file *f = of_handle(handle, &flags);
  char *buffer = (char *)c->arg[1].value;
  long n = c->arg[2].value, at = offset;
  if (!f || (flags & O_ACCMODE) == (writing ? O_RDONLY : O_WRONLY)) return -EBADF;
  if (f->directory) return -EISDIR;
  if (offset < 0) {
    if (writing && (flags & O_APPEND)) host->offset_set(handle, f->size);
    at = host->offset_get(handle);
  }
  if (!writing) n = at >= f->size ? 0 : n < f->size - at ? n : f->size - at;
  else if (at + n > DATA) return -ENOSPC;
  if (writing) memcpy(f->data + at, buffer, (size_t)n);
  else memcpy(buffer, f->data + at, (size_t)n);
  if (writing && at + n > f->size) f->size = at + n;
  if (offset < 0) host->offset_add(handle, n);
  return n;
}

static long seek(const struct madfs_call *c) {
  uint64_t handle = (uint64_t)c->arg[0].value;
  struct file *f = of_handle(handle, NULL);
  if (!f) return -EBADF;
  if (c->arg[2].value != SEEK_END) return -EINVAL;
  host->offset_set(handle, f->size + c->arg[1].value);
  return host->offset_get(handle);
}

// What is executed, with permission to do so.
static long copy_program(const struct file *f, long flags, int fd) {
  if (!f) return -ENOENT;
  if (flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)) return -EINVAL;
  if (f->directory || !(f->mode & 0111)) return -EACCES;
  return write(fd, f->data, (size_t)f->size) == f->size ? 0 : -EIO;
}

static long map(const struct madfs_call *c) {
  const struct file *f = of_handle((uint64_t)c->arg[0].value, NULL);
  long length = c->arg[2].value, offset = c->arg[5].value, have = f->size - offset;
  char *at = mmap((void *)c->arg[1].value, (size_t)length, PROT_READ | PROT_WRITE,
                  ((int)c->arg[4].value & ~MAP_TYPE) | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return -errno;
  if (have > 0) memcpy(at, f->data + offset, (size_t)(have < length ? have : length));
  return mprotect(at, (size_t)length, (int)c->arg[3].value) ? -errno : (long)at;
}

static long lock_file(struct file *f, int command, struct flock *wanted) {
  bool others = f->locker && f->locker != getpid();
  if (command == F_GETLK) wanted->l_type = others ? F_WRLCK : F_UNLCK;
  else if (wanted->l_type == F_UNLCK) f->locker = others ? f->locker : 0;
  else if (others) return -EAGAIN;  // after a while, when F_SETLKW asks
  else f->locker = getpid();
  return 0;
}

static long on_path(const struct madfs_call *c, const char *path) {
  struct file *f = find(path);
  switch (c->number) {
    case CALL_openat: return open_path(path, c->arg[0].text, c->arg[1].value, c->arg[2].value);
    case CALL_newfstatat: return f ? fill_stat(f, (struct stat *)c->arg[1].value) : -ENOENT;
    case CALL_statx: return f ? fill_statx(f, (struct statx *)c->arg[3].value) : -ENOENT;
    case CALL_faccessat: return f ? 0 : -ENOENT;
    case CALL_mkdirat: return f ? -EEXIST : make(path, 1, (unsigned)c->arg[1].value & ~host->umask()) ? 0 : -ENOSPC;
    case CALL_fchmodat: return f ? (long)((f->mode = (unsigned)c->arg[1].value) & 0) : -ENOENT;
    case CALL_program: return copy_program(f, c->arg[1].value, (int)c->arg[2].value);
    case CALL_unlinkat: return f ? (f->path[0] = 0) : -ENOENT;
    case CALL_linkat: return strncmp(c->arg[1].text, "/madfs/", 7) == 0 ? -EPERM : -EXDEV;
    case CALL_socket_bind: return -EOPNOTSUPP;
    case CALL_socket_find: return -ECONNREFUSED;
    case CALL_truncate: return f ? (f->size = c->arg[1].value) * 0 : -ENOENT;
    case CALL_chdir_path:
      if (!f) return -ENOENT;
      if (!f->directory) return -ENOTDIR;
      host->set_cwd(c->arg[0].text, c->arg[0].length, 0);
      return 0;
    default: return -ENOSYS;
  }
}

static long on_handle(const struct madfs_call *c) {
  char path[MADFS_PATH_MAX], record[128];
  size_t path_length, record_length;
  uint32_t flags;
  struct file *f = of_handle((uint64_t)c->arg[0].value, &flags);
  if (!f) return -EBADF;
  switch (c->number) {
    case CALL_read: return transfer(c, 0, -1);
    case CALL_write: return transfer(c, 1, -1);
    case CALL_pread: return transfer(c, 0, c->arg[3].value);
    case CALL_pwrite: return transfer(c, 1, c->arg[3].value);
    case CALL_lseek: return seek(c);
    case CALL_fstat: return fill_stat(f, (struct stat *)c->arg[1].value);
    case CALL_fstatx: return fill_statx(f, (struct statx *)c->arg[2].value);
    case CALL_program_opened: return copy_program(f, 0, (int)c->arg[1].value);
    case CALL_ftruncate: return (f->size = c->arg[1].value) * 0;
    case CALL_fsync:
    case CALL_fadvise: return 0;
    case CALL_fcntl_lock: return lock_file(f, (int)c->arg[1].value, (struct flock *)c->arg[2].value);
    case CALL_mmap: return map(c);
    case CALL_ioctl: return -ENOTTY;
    case CALL_reopen:
      host->slot_read((uint64_t)c->arg[0].value, &flags, record, &record_length, path, &path_length);
      return open_path(f->path, path, c->arg[1].value & ~O_CREAT, c->arg[2].value);
    case CALL_release: return (f->releases++, 0);
    case CALL_chdir_fd:
      host->slot_read((uint64_t)c->arg[0].value, &flags, record, &record_length, path, &path_length);
      if (!f->directory) return -ENOTDIR;
      host->set_cwd(path, path_length, 0);
      return 0;
    default: return -ENOSYS;
  }
}

// Leaves nothing as it was, as compiled code may.
static void spoil(void) {
  errno = 12345;
#ifdef __x86_64__
  __asm__ volatile(
      "pcmpeqd %%xmm0, %%xmm0; movdqa %%xmm0, %%xmm1; movdqa %%xmm0, %%xmm7; movdqa %%xmm0, %%xmm15; fninit; fldpi" ::
          : "xmm0", "xmm1", "xmm7", "xmm15");
#endif
}

static long fill_stack(long n) {
  volatile char some[1024];
  some[0] = (char)n;
  return n < 1L << 40 ? fill_stack(n + 1) + some[0] : 0;
}

// As a defect of the client would.
static void crash(const char *how) {
  if (strcmp(how, "abort") == 0) abort();
  if (strcmp(how, "ill") == 0) __builtin_trap();
  if (strcmp(how, "overflow") == 0) fill_stack(0);
  if (strcmp(how, "bus") == 0) {
    int fd = memfd_create("short", 0);
    *(volatile char *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) = 1;
  }
  *(volatile char *)4096 = 0;
}

static long call(const struct madfs_call *c, char escaped[MADFS_PATH_MAX], int *escaped_arg) {
  char path[MADFS_PATH_MAX];
  long result;
  atomic_fetch_add(&store->calls, 1);
  if (getenv("FAKE_CRASH")) crash(getenv("FAKE_CRASH"));
  // A descriptor that comes and goes, as a client's sockets do: it must not take the application's numbers.
  int own = epoll_create1(EPOLL_CLOEXEC);
  lock();
  int at = -1;
  for (int i = 0; i < c->count; i++)
    if (c->arg[i].kind == MADFS_ARG_PATH) at = at < 0 ? i : at;
  if (c->number == CALL_libraries) {
    result = 0;  // none lies on the mount
  } else if (at < 0) {
    result = on_handle(c);
  } else if (!below(&c->arg[at], path, escaped)) {
    *escaped_arg = at;
    result = MADFS_HOST_PATH;
  } else {
    result = on_path(c, path);
  }
  unlock();
  if (own >= 0) close(own);
  spoil();
  return result;
}

static void exiting(void) {
  if (getenv("FAKE_EXITING")) dprintf(2, "exiting\n");
}

// Forks come in pairs of these, in the parent and in the child.
static _Atomic int forking;

static void fork_begins(void) {
  if (forking++) abort();
}

static void fork_ends(int child) {
  (void)child;
  if (--forking) abort();
}

const struct madfs_runtime *madfs_runtime_start(const struct madfs_host *table, char *error, size_t error_size) {
  static const struct madfs_runtime runtime = {call, exiting, fork_begins, fork_ends};
  const char *path = getenv("FAKE_STORE"), *at = getenv("MADFS_MOUNT");
  if (table->abi != MADFS_HOST_ABI || !path) {
    snprintf(error, error_size, "FAKE_STORE is not set");
    return NULL;
  }
  host = table;
  if (at) snprintf(mount, sizeof mount, "%s", at);
  while (mount[strlen(mount) - 1] == '/') mount[strlen(mount) - 1] = 0;
  int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0 || ftruncate(fd, sizeof *store)) {
    snprintf(error, error_size, "%s: %s", path, strerror(errno));
    return NULL;
  }
  store = mmap(NULL, sizeof *store, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, (int[2]){0, 0})) return NULL;  // stays open, hidden
  lock();
  if (!find("/")) make("/", 1, 0755);
  unlock();
  return &runtime;
}
