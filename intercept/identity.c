// SPDX-License-Identifier: Apache-2.0
// Who the process is.  Requests go out in the name of the calling thread's file system user and groups, which the
// runtime reads when it starts and again after a call that may have changed them passed by here.
//
// Only the job's user can read the cluster file.  A process that gives up being that user keeps it open before it does,
// and hands it to the programs that it executes; so does one that gets mounts of its own, which may hide it (bwrap).
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "intercept.h"

static _Atomic unsigned epoch;         // calls that may have changed somebody's identity
static _Atomic int cluster = -1;       // the cluster file, kept open
static _Atomic int apart;              // where another table of descriptors has it, or 0
static const char mark[] = "MADFS_CLUSTER_FD=";

void madfs_identity_keep(void) {
  struct madfs_thread *t = madfs_local.thread;
  int none = -1;
  if (!madfs_settings.in_cluster || madfs_identity_cluster() >= 0) return;
  long fd = madfs_fds_hide(RAW(SYS_openat, AT_FDCWD, madfs_settings.cluster, O_RDONLY | O_CLOEXEC, 0));
  if (madfs_failed(fd)) return;  // whoever cannot read it need not keep it
  if (madfs_in_vfork()) {
    t->cluster = (int)fd + 1;  // a descriptor of the child's, in memory of the parent's
    t->cluster_owner = (int)RAW(SYS_getpid);
  } else if (!atomic_compare_exchange_strong(&cluster, &none, (int)fd)) {
    RAW(SYS_close, fd);  // another thread was faster
    madfs_fds_forget((int)fd);
  }
}

int madfs_identity_cluster(void) {
  const struct madfs_thread *t = madfs_local.thread;
  int fd = atomic_load(&cluster);
  if (fd < 0 && madfs_in_vfork() && t->cluster && t->cluster_owner == (int)RAW(SYS_getpid)) return t->cluster - 1;
  return fd;
}

static bool set_concerns(struct madfs_frame *f) {
  (void)f;
  madfs_identity_keep();
  atomic_fetch_add(&epoch, 1);
  return false;  // the kernel does it where it stands; setuid(3) has each thread do it in a signal handler
}

const struct madfs_shim madfs_shim_set_identity = {set_concerns, NULL};

void madfs_identity_get(unsigned *user, unsigned *group) {
  *user = (unsigned)RAW(SYS_setfsuid, -1);  // changes nothing and tells what it is
  *group = (unsigned)RAW(SYS_setfsgid, -1);
}

bool madfs_identity_changed(unsigned *now) {
  *now = atomic_load(&epoch);
  return madfs_local.identity != *now;
}

void madfs_identity_move(int fd) {
  if (fd != madfs_number_real(madfs_identity_cluster()) && fd != atomic_load(&apart)) return;
  long high = madfs_copy_up(fd, F_DUPFD_CLOEXEC, false);
  if (madfs_failed(high)) return;
  madfs_fds_internal((int)high);
  atomic_store(&apart, (int)high);
}

bool madfs_identity_state(char *text, size_t size) {
  char number[24];
  struct stat file;
  int fd = madfs_number_real(madfs_identity_cluster());
  if (fd >= 0 && madfs_number_taken(fd)) fd = atomic_load(&apart);
  if (fd < 0 || madfs_failed(RAW(SYS_fstat, fd, &file))) return false;
  RAW(SYS_fcntl, fd, F_SETFD, 0);
  size_t n = madfs_copy(text, size, mark);
  n += madfs_copy(text + n, size - n, madfs_decimal(number, (unsigned long)fd));
  n += madfs_copy(text + n, size - n, ":");
  madfs_copy(text + n, size - n, madfs_decimal(number, file.st_ino));
  return true;
}

void madfs_identity_adopt(const char *state) {
  unsigned long fd, inode;
  struct stat file;
  if (!state || !(state = madfs_number(state, 10, &fd)) || *state != ':' || !madfs_number(state + 1, 10, &inode))
    return;
  if (madfs_failed(RAW(SYS_fstat, fd, &file)) || file.st_ino != inode) return;
  RAW(SYS_fcntl, fd, F_SETFD, FD_CLOEXEC);
  atomic_store(&cluster, (int)madfs_fds_hide((long)fd));
}
