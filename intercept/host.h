// SPDX-License-Identifier: Apache-2.0
// What the shim (libmadfs_intercept.so) and the runtime (libmadfs_runtime.so) are to each other: two tables of
// functions, exchanged once when the runtime starts.  Nothing else crosses between the two libraries.
#ifndef MADFS_HOST_H
#define MADFS_HOST_H

#include <stddef.h>
#include <stdint.h>

#define MADFS_HOST_ABI 5
#define MADFS_GIVEN_MAX 4096  // a path as programs may give it, with its end: PATH_MAX
#define MADFS_PATH_MAX 8192   // an absolute path: where a program is, and what it gives

enum { MADFS_ARG_INT, MADFS_ARG_FD, MADFS_ARG_PATH, MADFS_ARG_STR };

// One argument of a canonical call.  FD: `value` is the handle of an open file (slot | generation << 20).
// PATH: `text` is an absolute host path, e.g. "/madfs/a/b/"; a trailing slash is kept, ".." is not collapsed.
// STR: `text` as the application gave it.
struct madfs_arg {
  int kind;
  long value;
  const char *text;
  size_t length;
};

// `number` is the index in ops.canonical_calls().
struct madfs_call {
  int number;
  int count;
  struct madfs_arg arg[6];
};

// What the runtime may ask of the shim.  All of it may be called from any thread that is inside the runtime.
struct madfs_host {
  uint32_t abi;
  const char *version;
  // A new open file: its descriptor, or -errno.  `flags` are open(2)'s, with O_DIRECTORY when it is a directory.
  int (*open_fd)(uint32_t flags, const void *record, size_t record_length, const char *path, size_t path_length,
                 int cloexec);
  // 0 or -EBADF; `record` has room for 128 bytes, `path` for MADFS_PATH_MAX.
  int (*slot_read)(uint64_t handle, uint32_t *flags, void *record, size_t *record_length, char *path,
                   size_t *path_length);
  // The shared file offset.  offset_get: -EBADF when the handle is stale.  offset_add returns the value before.
  int64_t (*offset_get)(uint64_t handle);
  void (*offset_set)(uint64_t handle, int64_t value);
  int (*offset_cas)(uint64_t handle, int64_t old, int64_t new_);
  int64_t (*offset_add)(uint64_t handle, int64_t n);
  void (*set_cwd)(const char *path, size_t length, uint64_t inode);  // a path in the mount
  unsigned (*umask)(void);
  // Whether this thread's system calls are the runtime's own; returns what held before.  For what the runtime does
  // outside of a call: fork handlers.
  int (*inside)(int inside);
  // Memory of the application's, which may not be there: whether all was copied, and how many bytes from `at` on can be
  // read, or also written.
  int (*copy)(void *out, const void *in, size_t size);
  size_t (*probe)(const void *at, size_t length, int write);
  // A shared mapping of a file (its inode number) that the kernel made for the runtime: 0 or -ENOMEM.  And whether the
  // process has one.
  int (*mapped)(unsigned long start, unsigned long length, uint64_t file, unsigned long offset);
  int (*is_mapped)(uint64_t file);
  // The thread's user and group as far as files are concerned.
  void (*identity)(unsigned *user, unsigned *group);
  int (*cluster)(void);  // the cluster file, kept open for who may no longer open it; or -1
  // A directory was renamed, or two names exchanged: open files and working directories below go along.
  void (*moved)(const char *old, size_t old_length, const char *new_, size_t new_length, int exchange);
  // The numbers of directories that are open at a path, working directory included; and one of them was removed.
  size_t (*open_at)(const char *path, size_t length, uint64_t *inodes, size_t room);
  void (*gone)(uint64_t inode);
  // A connection by which a server knows that this process lives: with locks, it goes along to the next program.
  void (*keep)(int fd);
};

// The result of a call is >= 0, -errno (down to -4095), or this: the path leads out of the mount, run the original
// call on the kernel with `escaped` in place of the path of argument `*escaped_arg`.
#define MADFS_HOST_PATH (-5000L)

struct madfs_runtime {
  long (*call)(const struct madfs_call *, char escaped[MADFS_PATH_MAX], int *escaped_arg);
  void (*exiting)(void);  // before exit_group: flush what is pending; must not block longer than 200 ms
  // Around every fork, by the thread that forks: in between, no other thread is inside the runtime.
  void (*fork_begins)(void);
  void (*fork_ends)(int child);  // in the parent, and in the child
};

// The one symbol the runtime exports.  NULL: the message is in `error`.
const struct madfs_runtime *madfs_runtime_start(const struct madfs_host *host, char *error, size_t error_size);

#endif
