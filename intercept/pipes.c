// SPDX-License-Identifier: Apache-2.0
// Open FIFOs of the mount.  The kernel's own pipe is what is open (nodes.py), but its attributes are not those of the
// mount's inode: calls about them are answered by the runtime, which knows the inode by the name of the kernel's pipe:
//
//   /dev/shm/madfs-nodes-JOB/PRIVATE/pipe-INODE
//
// Nobody is asked for that name before some process of the tree has opened a FIFO of the mount: pipes are common, and a
// filter of system calls may not allow the question.
#include <fcntl.h>
#include <sys/stat.h>
#include <linux/stat.h>

#include "intercept.h"

enum { LINK_MAX = 256 };

static bool is_fifo(int fd) {
  struct stat info;
  return !madfs_failed(RAW(SYS_fstat, fd, &info)) && S_ISFIFO(info.st_mode);
}

// What follows the first `part` of a text; NULL when it is not there.
static const char *behind(const char *text, const char *part) {
  for (; text && *text; text++)
    if (madfs_starts(text, part)) return text + strlen(part);
  return NULL;
}

bool madfs_pipe_named(const char *path) { return behind(behind(path, "/madfs-nodes-"), "/pipe-"); }

uint64_t madfs_pipe_inode(int fd) {
  char path[32], target[LINK_MAX + 1], digits[24];
  if (!madfs_fds_pipes() || !is_fifo(fd)) return 0;
  size_t n = madfs_copy(path, sizeof path, "/proc/self/fd/");
  madfs_copy(path + n, sizeof path - n, madfs_decimal(digits, (unsigned)fd));
  long size = RAW(SYS_readlinkat, AT_FDCWD, path, target, LINK_MAX);
  if (madfs_failed(size) || size >= LINK_MAX) return 0;
  target[size] = 0;
  const char *name = behind(behind(target, "/madfs-nodes-"), "/pipe-");
  uint64_t inode = 0;
  for (; name && *name; name++) {
    if (*name >= '0' && *name <= '9') inode = inode << 4 | (uint64_t)(*name - '0');
    else if (*name >= 'a' && *name <= 'f') inode = inode << 4 | (uint64_t)(*name - 'a' + 10);
    else return 0;
  }
  return inode;
}

bool madfs_pipe_answers(int call) {
  switch (call) {
    case CALL_fstat:
    case CALL_fstatx:
    case CALL_fchmod:
    case CALL_fchown:
    case CALL_futimens:
    case CALL_faccess:
    case CALL_fsetxattr:
    case CALL_fgetxattr:
    case CALL_flistxattr:
    case CALL_fremovexattr: return true;
    default: return false;
  }
}

bool madfs_pipe_seen(int call, const void *status) {
  uint16_t mode;
  if (call == CALL_fstatx) {
    struct statx copy;
    if (!madfs_user_in(&copy, status, sizeof copy)) return false;
    mode = copy.stx_mode;
  } else {
    struct stat copy;
    if (!madfs_user_in(&copy, status, sizeof copy)) return false;
    mode = (uint16_t)copy.st_mode;
  }
  return S_ISFIFO(mode);
}
