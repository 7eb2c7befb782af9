// SPDX-License-Identifier: Apache-2.0
// The limit of descriptors (RLIMIT_NOFILE), and the internal ones above it.
//
// The limit is raised for the moment in which an internal descriptor is made.  A process that lowers its hard limit
// could never do that again, so that part is done here: the kernel has the soft limit that the program asked for and
// keeps the hard one that it had.  What the program is told, and may set from then on, is
// its own, also in the programs that it executes (MADFS_NOFILE).  The same goes for the size of files (RLIMIT_FSIZE),
// which is not meant for files of ours in memory.
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sys/resource.h>

#include "intercept.h"

enum {
  HIGH_MAX = 1024,  // where spare placeholders go: below this and below the limit
  HIGH_ROOM = 128,
  INTERNAL_FROM = 4096,  // where internal descriptors go, or from a lower limit on: higher ones make fork slow
  INTERNAL_ROOM = 16384,
  INTERNAL_FEW = 1024,  // room enough as it is; when it is used up, there is madfs_rise_above()
};

// --- above the limit ------------------------------------------------------------------------------------------------

// Internal descriptors go where no program looks for one: at or above its limit, which is raised for that moment.
struct madfs_height madfs_rise(void) {
  struct madfs_height h = {.from = INTERNAL_FROM, .limit = {INTERNAL_FROM, INTERNAL_FROM}};
  RAW(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, &h.limit);
  if (h.limit.rlim_cur >= INTERNAL_FROM + INTERNAL_FEW) return h;
  if (h.limit.rlim_cur < INTERNAL_FROM) h.from = (int)h.limit.rlim_cur;
  struct rlimit higher = {(rlim_t)h.from + INTERNAL_ROOM, h.limit.rlim_max};
  if (higher.rlim_max < higher.rlim_cur) higher.rlim_max = higher.rlim_cur;  // root may
  h.raised = !madfs_failed(RAW(SYS_prlimit64, 0, RLIMIT_NOFILE, &higher, 0));
  higher.rlim_cur = higher.rlim_max = h.limit.rlim_max;  // who else may not may use what there is
  if (!h.raised && higher.rlim_max >= (rlim_t)h.from + HIGH_ROOM)
    h.raised = !madfs_failed(RAW(SYS_prlimit64, 0, RLIMIT_NOFILE, &higher, 0));
  if (!h.raised) h.from = h.limit.rlim_cur > 2 * HIGH_ROOM ? (int)h.limit.rlim_cur - HIGH_ROOM : h.from / 2;
  return h;
}

void madfs_fall(const struct madfs_height *h) {
  if (h->raised) RAW(SYS_prlimit64, 0, RLIMIT_NOFILE, &h->limit, 0);
}

// The lowest number that spare placeholders may get.
int madfs_spares_from(void) {
  struct rlimit limit = {HIGH_MAX, HIGH_MAX};
  RAW(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, &limit);
  long top = limit.rlim_cur < HIGH_MAX ? (long)limit.rlim_cur : HIGH_MAX;
  return (int)(top > 2 * HIGH_ROOM ? top - HIGH_ROOM : top / 2);
}

// Above a limit that is high itself, when all numbers are used up.
struct madfs_height madfs_rise_above(void) {
  struct madfs_height h = {.limit = {INTERNAL_FROM, INTERNAL_FROM}};
  RAW(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, &h.limit);
  h.from = (int)h.limit.rlim_cur;
  struct rlimit higher = {h.limit.rlim_cur + INTERNAL_ROOM, h.limit.rlim_max};
  if (higher.rlim_max < higher.rlim_cur) higher.rlim_cur = higher.rlim_max;
  h.raised = !madfs_failed(RAW(SYS_prlimit64, 0, RLIMIT_NOFILE, &higher, 0));
  return h;
}

// Under a number that the runtime does not take for another one.
static long copy_from(int fd, int command, long from) {
  long high = RAW(SYS_fcntl, fd, command, from);
  while (!madfs_failed(high) && madfs_number_given((int)high)) {
    long next = RAW(SYS_fcntl, fd, command, high + 1);
    RAW(SYS_close, high);
    high = next;
  }
  return high;
}

long madfs_copy_up(int fd, int command, bool stay) {
  struct madfs_height height = madfs_rise();
  bool up = fd >= height.from;
  long high = up && stay && !madfs_number_given(fd) ? fd : -EINVAL;
  if (up && madfs_failed(high)) high = copy_from(fd, command, fd + HIGH_ROOM);
  if (madfs_failed(high)) high = copy_from(fd, command, height.from);
  madfs_fall(&height);
  if (high != -EMFILE) return high;
  height = madfs_rise_above();
  high = copy_from(fd, command, height.from);
  madfs_fall(&height);
  return high;
}

long madfs_open(const char *path, int flags) {
  long fd = RAW(SYS_openat, AT_FDCWD, path, flags, 0);
  if (fd != -EMFILE) return fd;
  struct madfs_height height = madfs_rise_above();
  fd = RAW(SYS_openat, AT_FDCWD, path, flags, 0);
  madfs_fall(&height);
  return fd;
}

// --- the program's limit --------------------------------------------------------------------------------------------

static struct own_limit {
  int resource;
  const char *mark;
  struct madfs_lock lock;
  _Atomic uint64_t hard;  // 1 + the program's hard limit, where the kernel's is higher; 0: it is the kernel's
} limits[MADFS_LIMITS] = {{RLIMIT_NOFILE, "MADFS_NOFILE=", {0}, 0}, {RLIMIT_FSIZE, "MADFS_FSIZE=", {0}, 0}};

static bool may_raise(void) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};
  return !madfs_failed(RAW(SYS_capget, &header, data)) && data[0].effective >> CAP_SYS_RESOURCE & 1;
}

static long change(struct own_limit *l, const struct rlimit *new, struct rlimit *old) {
  struct rlimit kernel;
  long result = RAW(SYS_prlimit64, 0, l->resource, 0, &kernel);
  if (madfs_failed(result)) return result;
  uint64_t hard = atomic_load(&l->hard);
  bool lowered = hard && hard - 1 < kernel.rlim_max;
  *old = (struct rlimit){kernel.rlim_cur, lowered ? hard - 1 : kernel.rlim_max};
  if (!new) return 0;
  if (new->rlim_cur > new->rlim_max) return -EINVAL;
  if (lowered && new->rlim_max > hard - 1 && !may_raise()) return -EPERM;
  struct rlimit wanted = *new;
  if (wanted.rlim_max < kernel.rlim_max) wanted.rlim_max = kernel.rlim_max;
  result = RAW(SYS_prlimit64, 0, l->resource, &wanted, 0);
  if (!madfs_failed(result)) atomic_store(&l->hard, new->rlim_max < wanted.rlim_max ? new->rlim_max + 1 : 0);
  return result;
}

static long answer(struct own_limit *l, const void *new, void *old) {
  struct rlimit wanted, was;
  if (new && !madfs_user_in(&wanted, new, sizeof wanted)) return -EFAULT;
  madfs_lock(&l->lock);
  long result = change(l, new ? &wanted : NULL, &was);
  madfs_unlock(&l->lock);
  if (!madfs_failed(result) && old && !madfs_user_out(old, &was, sizeof was)) return -EFAULT;
  return result;
}

// A child of vfork has limits of its own, but its parent's memory.
static bool concerns(struct madfs_frame *f) {
  const unsigned long *a = f->argument;
  bool both = f->number == SYS_prlimit64;
  int resource = (int)a[both ? 1 : 0];
  struct own_limit *l = limits;
  while (l < limits + MADFS_LIMITS && l->resource != resource) l++;
  if (l == limits + MADFS_LIMITS || madfs_in_vfork()) return false;
  if (both && (int)a[0] && (int)a[0] != (int)RAW(SYS_getpid)) return false;
  const void *new = both ? (const void *)a[2] : ARCH_IS_SETRLIMIT(f->number) ? (const void *)a[1] : NULL;
  if (!both && !a[1]) return false;  // EFAULT
  f->number = answer(l, new, both ? (void *)a[3] : new ? NULL : (void *)a[1]);
  return true;
}

const struct madfs_shim madfs_shim_limit = {concerns, NULL};

// Makes a file of memory `size` bytes long, or as long as it may become but not shorter than `least`.  Growing past the
// limit, which is meant for files that take space, would send a signal that kills.
long madfs_limits_grow(int fd, size_t size, size_t least) {
  struct rlimit limit;
  long result = RAW(SYS_prlimit64, 0, RLIMIT_FSIZE, 0, &limit);
  if (madfs_failed(result)) return result;
  struct rlimit enough = {size, limit.rlim_max < size ? size : limit.rlim_max};
  bool raises = limit.rlim_cur < size;
  if (raises && madfs_failed(RAW(SYS_prlimit64, 0, RLIMIT_FSIZE, &enough, 0))) {
    enough.rlim_cur = enough.rlim_max = size = limit.rlim_max;
    RAW(SYS_prlimit64, 0, RLIMIT_FSIZE, &enough, 0);
  }
  result = size < least ? -EFBIG : RAW(SYS_ftruncate, fd, size);
  if (raises) RAW(SYS_prlimit64, 0, RLIMIT_FSIZE, &limit, 0);
  return result;
}

bool madfs_limits_state(unsigned which, char *text, size_t size) {
  char number[24];
  uint64_t hard = atomic_load(&limits[which].hard);
  if (!hard) return false;
  size_t n = madfs_copy(text, size, limits[which].mark);
  madfs_copy(text + n, size - n, madfs_decimal(number, hard - 1));
  return true;
}

void madfs_limits_adopt(unsigned which, const char *state) {
  unsigned long hard;
  if (state && madfs_number(state, 10, &hard)) atomic_store(&limits[which].hard, hard + 1);
}
