// SPDX-License-Identifier: Apache-2.0
// How long the data of a file will live, as a program says with F_SET_RW_HINT.  Linux remembers it with the inode for
// as long as that is in memory, and few of its file systems do anything with it: here all who have the file open do.
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "intercept.h"

static long hint_set(int slot, const void *from) {
  struct stat file;
  uint64_t hint;
  unsigned user, group;
  int ignored;
  struct madfs_call call = {.number = CALL_fstat, .count = 2};
  call.arg[0] = (struct madfs_arg){.kind = MADFS_ARG_FD, .value = (long)madfs_fd_handle(slot)};
  call.arg[1] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = (long)&file};
  long result = madfs_runtime_call(&call, &ignored);
  if (madfs_failed(result)) return result;
  madfs_identity_get(&user, &group);
  if (user && user != file.st_uid) return -EPERM;
  if (!madfs_user_in(&hint, from, sizeof hint)) return -EFAULT;
  if (hint > RWH_WRITE_LIFE_EXTREME) return -EINVAL;
  madfs_slot_set_hint(slot, (uint32_t)hint);
  return 0;
}

enum madfs_verdict madfs_hints_fcntl(struct madfs_frame *f, int slot) {
  void *at = (void *)f->argument[2];
  uint64_t hint = madfs_slot_hint(slot);
  if (madfs_slot_flags(slot) & O_PATH) f->number = -EBADF;
  else if ((int)f->argument[1] == F_SET_RW_HINT) f->number = hint_set(slot, at);
  else f->number = madfs_user_out(at, &hint, sizeof hint) ? 0 : -EFAULT;
  return MADFS_DONE;
}
