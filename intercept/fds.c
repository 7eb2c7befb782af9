// SPDX-License-Identifier: Apache-2.0
// Descriptors, and the table of open files.
//
// Every descriptor of ours is a real one: open("/proc/self/fd/T") of the table T, a memfd that all processes of the
// tree share, with 2^40 + slot as its kernel file offset.  The kernel carries it through dup, fork, exec and
// SCM_RIGHTS.
//
//   T := header, moves, slots       header := magic, version, hint, one bit per slot      moves: moves.c
//   slot := generation, state, flags, lengths, offset, record, path     (paths that do not fit lie behind the slots)
//
// A lock on byte `slot` of T, held by the placeholder's open file description, says that some process still has it:
// the kernel releases it with the last copy, even when that process was killed.
//
// madfs_fds_known caches by descriptor what the kernel would say.  It is cleared before the kernel closes and set after
// the kernel has opened, so a number is never thought to be ours while it is somebody else's.  A child of vfork shares
// the cache with its parent but not the descriptors: it always asks the kernel, and writes nothing.
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "intercept.h"

enum {
  SLOTS = 1 << 16,
  RECORD_MAX = 128,
  SLOT_BYTES = 512,
  PATH_INLINE = SLOT_BYTES - 40 - RECORD_MAX,
  HEADER_BYTES = (64 << 10) + MADFS_MOVES_BYTES,
  KNOWN = 1 << 16,  // descriptors the cache can tell about
  STATE_TEXT = 64,
  SAID = 1 << 14,
};

enum { SLOT_FREE, SLOT_SETUP, SLOT_LIVE, SLOT_CLOSING };
enum { KNOWN_NO = 0, KNOWN_INTERNAL = UINT32_MAX };  // else slot + 1

#define SLOT_SHARED 0x80000000U  // among the flags: another process took a copy
#define SLOT_LOCKED 0x40000000U  // it was locked: its end is the end of its locks
#define SLOT_HINT 0x07000000U    // what F_SET_RW_HINT said, of every slot of the file
#define SLOT_GONE 0x20000000U    // of a directory: it was removed
#define SLOT_OWN (SLOT_SHARED | SLOT_LOCKED | SLOT_HINT | SLOT_GONE)
#define TAG (1L << 40)
#define MAGIC 0x454c42415446444dUL  // "MDFTABLE"

struct slot {
  _Atomic uint32_t generation, state, flags;
  uint16_t record_length, path_length;
  _Atomic int64_t offset;
  _Atomic uint64_t version;  // of the path: odd while it changes
  _Atomic uint64_t owner;  // process that sets it up
  uint8_t record[RECORD_MAX];
  char path[PATH_INLINE];
};
_Static_assert(sizeof(struct slot) == SLOT_BYTES, "a slot is half a kilobyte");

struct header {
  uint64_t magic;
  uint32_t version, slot_bytes;
  _Atomic uint32_t hint;
  _Atomic uint64_t used[SLOTS / 64];
  _Atomic uint64_t said[SAID / 64];  // what was said once, by a sum of it
  _Atomic uint32_t pipes;  // a FIFO of the mount was opened
};
_Static_assert(sizeof(struct header) <= HEADER_BYTES - MADFS_MOVES_BYTES, "the header has its own pages");

enum { TABLE_VERSION = 5 };
#define TABLE_BYTES (HEADER_BYTES + (size_t)SLOTS * SLOT_BYTES)

static struct {
  _Atomic int fd;  // -1: none yet
  _Atomic int apart;  // where another table of descriptors has it, or 0
  dev_t device;
  ino_t inode;
  struct header *header;
  struct slot *slots;
  unsigned count;  // of slots: SLOTS, or fewer where files must be short
  char name[32];  // "/proc/self/fd/T"
  struct madfs_lock lock;
} table = {.fd = -1};

_Atomic uint32_t madfs_fds_known[KNOWN];
_Atomic int madfs_fds_top = -1;
_Atomic bool madfs_tables_many;  // the cache may be wrong: see tables.c

// --- the cache ------------------------------------------------------------------------------------------------------

static void learn(int fd, uint32_t what) {
  if (fd < 0 || fd >= KNOWN || madfs_in_vfork()) return;
  if (madfs_tables_many && what != KNOWN_INTERNAL && atomic_load(&madfs_fds_known[fd]) != KNOWN_INTERNAL) return;
  atomic_store(&madfs_fds_known[fd], what);
  int top = atomic_load(&madfs_fds_top);
  while (what && fd > top && !atomic_compare_exchange_weak(&madfs_fds_top, &top, fd)) continue;
}

// What the kernel says about a descriptor: its slot, FD_HOST or FD_INTERNAL.
static int ask(int fd) {
  struct stat file;
  if (atomic_load(&table.fd) < 0 || madfs_failed(RAW(SYS_fstat, fd, &file))) return FD_HOST;
  if (file.st_ino != table.inode || file.st_dev != table.device) return FD_HOST;
  long at = RAW(SYS_lseek, fd, 0, 1) - TAG;
  return at >= 0 && at < SLOTS ? (int)at : FD_INTERNAL;
}

bool madfs_fd_concerns(int fd) {
  if (fd < 0) return false;
  if (MADFS_UNLIKELY(fd >= KNOWN || madfs_local.vfork_depth || madfs_tables_many))
    return atomic_load(&madfs_fds_top) >= 0 && madfs_fd_slot(fd) != FD_HOST;
  return atomic_load_explicit(&madfs_fds_known[fd], memory_order_relaxed) != KNOWN_NO;
}

int madfs_fd_slot(int fd) {
  if (fd < 0) return FD_HOST;
  if (fd >= KNOWN) return madfs_filtered() ? FD_HOST : ask(fd);
  uint32_t what = atomic_load(&madfs_fds_known[fd]);
  if (madfs_tables_many || madfs_in_vfork()) {
    if (what != KNOWN_INTERNAL) return ask(fd);
    return madfs_number_taken(fd) ? ask(fd) : FD_INTERNAL;
  }
  return what == KNOWN_NO ? FD_HOST : what == KNOWN_INTERNAL ? FD_INTERNAL : (int)(what - 1);
}

// --- descriptors out of the way -------------------------------------------------------------------------------------

// Moves `fd` up with close-on-exec as told; the new number, or `fd` when there is no room.
static int move_up(int fd, bool cloexec) {
  long high = madfs_copy_up(fd, cloexec ? F_DUPFD_CLOEXEC : F_DUPFD, true);
  if (madfs_failed(high) || high == fd) return fd;
  RAW(SYS_close, fd);
  return (int)high;
}

int madfs_fds_move(int fd) {
  bool cloexec = RAW(SYS_fcntl, fd, F_GETFD) & FD_CLOEXEC;
  return (int)madfs_copy_up(fd, cloexec ? F_DUPFD_CLOEXEC : F_DUPFD, false);
}

void madfs_fds_free(int fd) { learn(fd, KNOWN_NO); }

void madfs_fds_meet(int fd) {
  int slot = ask(fd);
  if (slot >= 0) atomic_fetch_or(&table.slots[slot].flags, SLOT_SHARED);
  if (slot >= 0 || (fd >= 0 && fd < KNOWN && madfs_fds_known[fd] != KNOWN_NO)) learn(fd, (uint32_t)(slot + 1));
}

long madfs_fds_hide(long fd) {
  if (madfs_failed(fd)) return fd;
  fd = move_up((int)fd, true);  // no program to be executed has a use for it
  learn((int)fd, KNOWN_INTERNAL);
  return fd;
}

void madfs_fds_forget(int fd) {
  learn(fd, KNOWN_NO);
  madfs_locks_forget(fd);
}

void madfs_fds_distrust(void) {
  if (atomic_exchange(&madfs_tables_many, true)) return;
  atomic_store(&madfs_fds_top, KNOWN - 1);
  for (unsigned i = 0; i < MADFS_CLASSES; i++)
    if (madfs_classes[i] == CLASS_FD) madfs_classes[i] = CLASS_ASK;
}

void madfs_fds_internal(int fd) { learn(fd, KNOWN_INTERNAL); }

// --- the table ------------------------------------------------------------------------------------------------------

// Its descriptor.  A child of vfork, and a task with a table of descriptors of its own, may have put something else
// under that number.
static int table_fd(void) {
  const struct madfs_thread *t = madfs_local.thread;
  int fd = atomic_load(&table.fd), apart = atomic_load(&table.apart);
  if (MADFS_UNLIKELY(madfs_local.vfork_depth) && t->table_fd && madfs_in_vfork()) return t->table_fd;
  return MADFS_UNLIKELY(apart) && ask(fd) != FD_INTERNAL && ask(apart) == FD_INTERNAL ? apart : fd;
}

static void table_rename(int fd) {
  char number[24];
  size_t n = madfs_copy(table.name, sizeof table.name, "/proc/self/fd/");
  madfs_copy(table.name + n, sizeof table.name - n, madfs_decimal(number, (unsigned long)fd));
  atomic_store(&table.fd, fd);
  learn(fd, KNOWN_INTERNAL);
}

static long table_map(int fd) {
  struct stat file;
  long result = RAW(SYS_fstat, fd, &file);
  if (madfs_failed(result)) return result;
  result = RAW(SYS_mmap, 0, TABLE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (madfs_failed(result)) return result;
  size_t count = ((size_t)file.st_size - HEADER_BYTES) / (SLOT_BYTES + MADFS_PATH_MAX) & ~63UL;
  table.count = count < SLOTS ? (unsigned)count : SLOTS;
  table.header = (struct header *)result;
  table.slots = (struct slot *)(result + HEADER_BYTES);
  table.device = file.st_dev;
  table.inode = file.st_ino;
  return 0;
}

// File offset of the room for a slot's path when that is long.
static long path_at(int slot) {
  return (long)(HEADER_BYTES + table.count * (size_t)SLOT_BYTES + (size_t)slot * MADFS_PATH_MAX);
}

static long table_make(void) {
  long fd = RAW(SYS_memfd_create, "madfs", 0);  // open across exec: the next program finds it by MADFS_STATE
  if (madfs_failed(fd)) return fd;
  fd = move_up((int)fd, false);
  // Where files must be short the table is, too.
  long result = madfs_limits_grow((int)fd, TABLE_BYTES + (size_t)SLOTS * MADFS_PATH_MAX,
                                  HEADER_BYTES + 64 * (size_t)(SLOT_BYTES + MADFS_PATH_MAX));
  if (!madfs_failed(result)) result = table_map((int)fd);
  if (madfs_failed(result)) {
    RAW(SYS_close, fd);
    return result;
  }
  table.header->version = TABLE_VERSION;
  table.header->slot_bytes = SLOT_BYTES;
  table.header->magic = MAGIC;
  table_rename((int)fd);
  return 0;
}

long madfs_fds_need(void) {
  if (atomic_load(&table.fd) >= 0) return 0;
  madfs_lock(&table.lock);
  long result = atomic_load(&table.fd) >= 0 ? 0 : table_make();
  madfs_unlock(&table.lock);
  return result;
}

void madfs_fds_note_pipe(void) {
  if (!madfs_failed(madfs_fds_need())) atomic_store(&table.header->pipes, 1);
}

bool madfs_fds_pipes(void) { return atomic_load(&table.fd) >= 0 && atomic_load(&table.header->pipes); }

bool madfs_fds_say_once(uint64_t what) {
  uint64_t bit = 1UL << what % 64, word = what / 64 % (SAID / 64);
  return atomic_load(&table.fd) < 0 || !(atomic_fetch_or(&table.header->said[word], bit) & bit);
}

// --- slots ----------------------------------------------------------------------------------------------------------

// Whether any process still has a descriptor of the slot.
static bool held(int slot) {
  struct flock lock = {.l_type = F_WRLCK, .l_whence = 0, .l_start = slot, .l_len = 1};
  long result = RAW(SYS_fcntl, table_fd(), F_OFD_GETLK, &lock);
  return madfs_failed(result) || lock.l_type != F_UNLCK;
}

static void slot_free(int slot) {
  struct slot *s = &table.slots[slot];
  atomic_fetch_add(&s->generation, 1);
  atomic_store(&s->state, SLOT_FREE);
  atomic_fetch_and(&table.header->used[slot / 64], ~(1UL << slot % 64));
}

// Slots whose processes were killed.
static void collect_garbage(void) {
  for (int slot = 0; slot < (int)table.count; slot++) {
    struct slot *s = &table.slots[slot];
    uint32_t state = atomic_load(&s->state);
    bool orphan = state == SLOT_SETUP && RAW(SYS_kill, atomic_load(&s->owner), 0) == -ESRCH;
    if (!orphan && !((state == SLOT_LIVE || state == SLOT_CLOSING) && !held(slot))) continue;
    if (atomic_compare_exchange_strong(&s->state, &state, SLOT_FREE)) slot_free(slot);
  }
}

static int slot_take(void) {
  for (int round = 0; round < 2; round++) {
    uint32_t hint = atomic_load(&table.header->hint);
    for (unsigned i = 0; i < SLOTS / 64; i++) {
      unsigned word = (hint / 64 + i) % (SLOTS / 64);
      uint64_t used = word * 64 < table.count ? atomic_load(&table.header->used[word]) : ~0UL;
      while (~used) {
        unsigned bit = (unsigned)__builtin_ctzl(~used);
        if (!atomic_compare_exchange_weak(&table.header->used[word], &used, used | 1UL << bit)) continue;
        atomic_store(&table.header->hint, word * 64);
        return (int)(word * 64 + bit);
      }
    }
    collect_garbage();
  }
  return -ENFILE;
}

uint64_t madfs_fd_handle(int slot) {
  return (uint64_t)slot | (uint64_t)atomic_load(&table.slots[slot].generation) << 20;
}

// The slot of a handle that is still what the handle means; NULL otherwise.
static struct slot *of_handle(uint64_t handle) {
  unsigned slot = handle & (SLOTS - 1);
  if (atomic_load(&table.fd) < 0 || (handle & 0xfffff) >= SLOTS) return NULL;
  return madfs_fd_handle((int)slot) == handle ? &table.slots[slot] : NULL;
}

uint32_t madfs_slot_flags(int slot) { return atomic_load(&table.slots[slot].flags) & ~SLOT_OWN; }

void madfs_slot_set_flags(int slot, uint32_t flags) {
  atomic_store(&table.slots[slot].flags, flags | (atomic_load(&table.slots[slot].flags) & SLOT_OWN));
}

void madfs_slot_lock(int slot) { atomic_fetch_or(&table.slots[slot].flags, SLOT_LOCKED); }

bool madfs_slot_locked(int slot) { return atomic_load(&table.slots[slot].flags) & SLOT_LOCKED; }

// The record begins with the inode's number.
static bool same_file(int slot, int other) {
  return memcmp(table.slots[slot].record, table.slots[other].record, sizeof(uint64_t)) == 0;
}

uint64_t madfs_slot_inode(int slot) {
  uint64_t inode;
  memcpy(&inode, table.slots[slot].record, sizeof inode);
  return atomic_load(&table.slots[slot].flags) & SLOT_GONE ? inode | MADFS_GONE : inode;
}

void madfs_slot_gone(int slot) { atomic_fetch_or(&table.slots[slot].flags, SLOT_GONE); }

uint32_t madfs_slot_hint(int slot) {
  uint32_t hint = 0;
  for (int other = -1; !hint && (other = madfs_slot_next(other)) >= 0;)
    if (same_file(slot, other)) hint = (atomic_load(&table.slots[other].flags) & SLOT_HINT) / (SLOT_HINT & -SLOT_HINT);
  return hint;
}

void madfs_slot_set_hint(int slot, uint32_t hint) {
  for (int other = -1; (other = madfs_slot_next(other)) >= 0;) {
    if (!same_file(slot, other)) continue;
    atomic_fetch_and(&table.slots[other].flags, ~SLOT_HINT);
    atomic_fetch_or(&table.slots[other].flags, hint * (SLOT_HINT & -SLOT_HINT));
  }
}

static size_t path_read_once(int slot, char *path) {
  struct slot *s = &table.slots[slot];
  size_t length = s->path_length < MADFS_PATH_MAX ? s->path_length : MADFS_PATH_MAX - 1;
  if (length < PATH_INLINE) memcpy(path, s->path, length);
  else if (RAW(SYS_pread64, table_fd(), path, length, path_at(slot)) != (long)length)
    length = 0;
  path[length] = 0;
  return length;
}

static size_t path_read(int slot, char *path) {
  struct slot *s = &table.slots[slot];
  for (int i = 0;; i++) {
    uint64_t version = atomic_load(&s->version);
    size_t length = path_read_once(slot, path);
    atomic_thread_fence(memory_order_acquire);
    // Who changes it may have been killed: wait for as long as changing takes.
    if ((!(version & 1) && atomic_load(&s->version) == version) || i == 10000) return length;
    arch_pause();
  }
}

size_t madfs_slot_path(int slot, char path[MADFS_PATH_MAX]) { return path_read(slot, path); }

int madfs_slot_next(int slot) {
  while (++slot < SLOTS) {
    uint64_t used = atomic_load(&table.header->used[slot / 64]) >> slot % 64;
    if (!used) slot |= 63;
    else if (used & 1 && atomic_load(&table.slots[slot].state) == SLOT_LIVE) return slot;
  }
  return -1;
}

static long path_write(int slot, const char *path, size_t length) {
  struct slot *s = &table.slots[slot];
  s->path_length = (uint16_t)length;
  if (length < PATH_INLINE) {
    memcpy(s->path, path, length);
    s->path[length] = 0;
    return 0;
  }
  // Written in memory, because `ulimit -f` is not meant for it.
  long room = RAW(SYS_mmap, 0, MADFS_PATH_MAX, PROT_READ | PROT_WRITE, MAP_SHARED, table_fd(), path_at(slot));
  if (madfs_failed(room)) return room;
  memcpy((char *)room, path, length);
  RAW(SYS_munmap, room, MADFS_PATH_MAX);
  return 0;
}

void madfs_slot_rename(int slot, const char *path, size_t length) {
  struct slot *s = &table.slots[slot];
  uint64_t version = atomic_load(&s->version);
  if (version & 1 || !atomic_compare_exchange_strong(&s->version, &version, version + 1)) return;
  path_write(slot, path, length);
  atomic_store(&s->version, version + 2);
}

struct madfs_moves *madfs_fds_moves(void) {
  return atomic_load(&table.fd) < 0 ? NULL : (struct madfs_moves *)((char *)table.header + (64 << 10));
}

long madfs_slot_seek(int slot, long offset, int whence) {
  struct slot *s = &table.slots[slot];
  int64_t now = atomic_load(&s->offset), then;
  do {
    if (__builtin_add_overflow(whence == 0 ? 0 : now, offset, &then)) return -EINVAL;
    if (then < 0) return -EINVAL;
  } while (!atomic_compare_exchange_weak(&s->offset, &now, then));
  return then;
}

static long slot_fill(int slot, uint32_t flags, const void *record, size_t record_length, const char *path,
                      size_t length) {
  struct slot *s = &table.slots[slot];
  atomic_store(&s->owner, (uint64_t)madfs_memory_owner());
  atomic_store(&s->state, SLOT_SETUP);
  atomic_store(&s->flags, flags);
  atomic_store(&s->offset, 0);
  memcpy(s->record, record, record_length);
  s->record_length = (uint16_t)record_length;
  atomic_store(&s->version, 0);
  return path_write(slot, path, length);
}

// A descriptor for the slot, tagged and locked.
static long placeholder(int slot, bool cloexec) {
  char other[48], number[24];
  const char *name = table.name;
  if (MADFS_UNLIKELY(madfs_tables_many || table_fd() != atomic_load(&table.fd))) {
    size_t n = madfs_copy(other, sizeof other, "/proc/thread-self/fd/");
    madfs_copy(other + n, sizeof other - n, madfs_decimal(number, (unsigned long)table_fd()));
    name = other;
  }
  long fd = RAW(SYS_openat, AT_FDCWD, name, O_RDONLY | (cloexec ? O_CLOEXEC : 0), 0);
  if (madfs_failed(fd)) return fd;
  struct flock lock = {.l_type = F_RDLCK, .l_whence = 0, .l_start = slot, .l_len = 1};
  long result = RAW(SYS_lseek, fd, TAG + slot, 0);
  if (!madfs_failed(result)) result = RAW(SYS_fcntl, fd, F_OFD_SETLK, &lock);
  if (!madfs_failed(result)) return fd;
  RAW(SYS_close, fd);
  return result;
}

// --- spare placeholders ---------------------------------------------------------------------------------------------

// Opening a placeholder takes the kernel four times as long as copying one.  So the placeholder of a file that only
// this process ever had open is kept, with its slot, when the file is closed: under a high number, until it is copied
// to where the next open wants it.  `epoch` says what only this process has: it changes whenever descriptors may have
// gone to another process, and a file is `solo` when it was opened in the present epoch and not copied since.
enum { SPARES_MAX = 16, SPARES_FROM_MIN = 384 };  // where numbers are scarce, they take none

static struct {
  struct madfs_lock lock;
  int count, from;  // internal descriptors begin at `from`
  int fd[SPARES_MAX], slot[SPARES_MAX];
  int process;            // whose spares these are
  _Atomic uint32_t epoch;
  _Atomic int forks;  // under way: the child may get what is opened meanwhile
} spares = {.epoch = 1};

static _Atomic uint32_t solo[SLOTS];  // epoch of the opening; 0: a copy was made

static void spares_drop(void) {
  bool mine = spares.process == atomic_load(&spares.lock.owner);
  while (spares.count) {
    int fd = spares.fd[--spares.count];
    learn(fd, KNOWN_NO);
    RAW(SYS_close, fd);
    if (mine) slot_free(spares.slot[spares.count]);
  }
}

void madfs_fds_shared(void) {
  if (atomic_load(&table.fd) < 0 || madfs_in_vfork()) return;
  madfs_lock(&spares.lock);
  atomic_fetch_add(&spares.epoch, 1);
  spares_drop();
  madfs_unlock(&spares.lock);
}

void madfs_fds_fork_begins(void) {
  if (madfs_in_vfork()) return;
  atomic_fetch_add(&spares.forks, 1);
  madfs_local.inside |= INSIDE_FORK;
  madfs_fds_shared();
}

void madfs_fds_fork_ended(void) {
  madfs_local.inside &= ~INSIDE_FORK;
  atomic_fetch_sub(&spares.forks, 1);
  madfs_tables_cloned();
  madfs_fork_finish();
}

// --- descriptors from and to other processes ------------------------------------------------------------------------

bool madfs_fds_any(void) { return atomic_load(&table.fd) >= 0; }

static bool getfd_concerns(struct madfs_frame *f) { return (void)f, madfs_fds_any(); }

static enum madfs_verdict getfd_work(struct madfs_frame *f) {
  f->number = RAW(SYS_pidfd_getfd, f->argument[0], f->argument[1], f->argument[2]);
  if (!madfs_failed(f->number)) madfs_fds_meet((int)f->number);
  return MADFS_DONE;
}

const struct madfs_shim madfs_shim_pidfd_getfd = {getfd_concerns, getfd_work};

static bool only_ours(int slot) {
  return !(atomic_load(&table.slots[slot].flags) & SLOT_SHARED) && !atomic_load(&spares.forks) &&
         atomic_load(&solo[slot]) == atomic_load(&spares.epoch) && !madfs_tables_many && !madfs_in_vfork();
}

// Keeps the placeholder `fd` of `slot` and closes that number.  false: nothing was done.
static bool spare_give(int fd, int slot) {
  bool kept = false;
  madfs_lock(&spares.lock);
  int self = atomic_load(&spares.lock.owner);
  if (spares.process != self) {
    spares_drop();  // a child's copies of its parent's
    spares.process = self;
    spares.from = madfs_spares_from();
  }
  if (spares.count < SPARES_MAX && spares.from >= SPARES_FROM_MIN && only_ours(slot)) {
    long high = RAW(SYS_fcntl, fd, F_DUPFD_CLOEXEC, spares.from);
    if (!madfs_failed(high)) {
      learn((int)high, KNOWN_INTERNAL);
      RAW(SYS_close, fd);
      struct slot *s = &table.slots[slot];
      atomic_fetch_add(&s->generation, 1);
      atomic_store(&s->owner, (uint64_t)self);
      atomic_store(&s->state, SLOT_SETUP);
      spares.fd[spares.count] = (int)high;
      spares.slot[spares.count++] = slot;
      kept = true;
    }
  }
  madfs_unlock(&spares.lock);
  return kept;
}

// A spare's slot, or -1, and its descriptor.
static int spare_take(int *fd) {
  int slot = -1;
  if (!spares.count || madfs_tables_many) return slot;
  madfs_lock(&spares.lock);
  if (spares.count && spares.process == atomic_load(&spares.lock.owner) && !madfs_in_vfork()) {
    *fd = spares.fd[--spares.count];
    slot = spares.slot[spares.count];
  }
  madfs_unlock(&spares.lock);
  return slot;
}

static bool spare_is(int fd) {
  bool found = false;
  madfs_lock(&spares.lock);
  for (int i = 0; i < spares.count; i++) found |= spares.fd[i] == fd;
  madfs_unlock(&spares.lock);
  return found;
}

// Moves a spare to the lowest number.
static long spare_use(int fd, int slot, bool cloexec) {
  long result = RAW(SYS_fcntl, fd, cloexec ? F_DUPFD_CLOEXEC : F_DUPFD, 0);
  learn(fd, KNOWN_NO);
  RAW(SYS_close, fd);
  return result == -EMFILE ? placeholder(slot, cloexec) : result;  // it had the last number itself
}

int madfs_fds_open(uint32_t flags, const void *record, size_t record_length, const char *path, size_t path_length,
                   int cloexec) {
  if (record_length > RECORD_MAX) return -EINVAL;
  if (path_length >= MADFS_PATH_MAX) return -ENAMETOOLONG;
  long result = madfs_fds_need();
  if (madfs_failed(result)) return (int)result;
  uint32_t epoch = atomic_load(&spares.forks) ? 0 : atomic_load(&spares.epoch);
  int spare = -1, slot = spare_take(&spare);
  if (slot < 0) slot = slot_take();
  if (slot < 0) return slot;
  result = slot_fill(slot, flags, record, record_length, path, path_length);
  if (spare >= 0) {
    long made = spare_use(spare, slot, cloexec != 0);
    if (!madfs_failed(result)) result = made;
    else if (!madfs_failed(made)) RAW(SYS_close, made);
  } else if (!madfs_failed(result)) {
    result = placeholder(slot, cloexec != 0);
  }
  if (madfs_failed(result)) {
    slot_free(slot);
    return (int)result;
  }
  atomic_store(&solo[slot], epoch);
  atomic_store(&table.slots[slot].state, SLOT_LIVE);
  learn((int)result, (uint32_t)slot + 1);
  return (int)result;
}

long madfs_fds_borrow(int slot, int cloexec) { return placeholder(slot, cloexec != 0); }

int madfs_fds_slot_read(uint64_t handle, uint32_t *flags, void *record, size_t *record_length, char *path,
                        size_t *path_length) {
  struct slot *s = of_handle(handle);
  if (!s) return -EBADF;
  *flags = atomic_load(&s->flags) & ~SLOT_OWN;
  *record_length = s->record_length;
  memcpy(record, s->record, s->record_length < RECORD_MAX ? s->record_length : RECORD_MAX);
  *path_length = path_read((int)(s - table.slots), path);
  return 0;
}

int64_t madfs_fds_offset_get(uint64_t handle) {
  struct slot *s = of_handle(handle);
  return s ? atomic_load(&s->offset) : -EBADF;
}

void madfs_fds_offset_set(uint64_t handle, int64_t value) {
  struct slot *s = of_handle(handle);
  if (s) atomic_store(&s->offset, value);
}

int madfs_fds_offset_cas(uint64_t handle, int64_t old, int64_t new_) {
  struct slot *s = of_handle(handle);
  return s && atomic_compare_exchange_strong(&s->offset, &old, new_);
}

int64_t madfs_fds_offset_add(uint64_t handle, int64_t n) {
  struct slot *s = of_handle(handle);
  return s ? atomic_fetch_add(&s->offset, n) : -EBADF;
}

// The open file ends: the runtime hears of it.  false: somebody else ended it.
static bool ended(int slot) {
  uint32_t live = SLOT_LIVE;
  if (!atomic_compare_exchange_strong(&table.slots[slot].state, &live, SLOT_CLOSING)) return false;
  if (madfs_slot_locked(slot)) madfs_locks_end(slot);
  struct madfs_call call = {.number = CALL_release, .count = 1};
  call.arg[0] = (struct madfs_arg){.kind = MADFS_ARG_FD, .value = (long)madfs_fd_handle(slot)};
  int ignored;
  if (madfs_runtime_loaded()) madfs_runtime_call(&call, &ignored);
  return true;
}

// A descriptor of the slot went away: when it was the last one anywhere, the open file ends.
static void dropped(int slot) {
  if (!madfs_in_vfork() && !held(slot) && ended(slot)) slot_free(slot);
}

void madfs_fds_done(int fd, int slot) {
  RAW(SYS_close, fd);
  dropped(slot);
}

static void leave(int slot) {
  struct madfs_call call = {.number = CALL_leave, .count = 1};
  call.arg[0] = (struct madfs_arg){.kind = MADFS_ARG_FD, .value = (long)madfs_fd_handle(slot)};
  int ignored;
  madfs_runtime_call(&call, &ignored);
}

// The process becomes another program, which goes on with the descriptors that stay open.
void madfs_fds_exec(void) {
  int top = atomic_load(&madfs_fds_top);
  if (!madfs_runtime_loaded() || madfs_in_vfork()) return;
  for (int fd = 0; fd <= top; fd++) {
    int slot = madfs_fd_slot(fd);
    if (slot >= 0 && !(RAW(SYS_fcntl, fd, F_GETFD) & FD_CLOEXEC)) leave(slot);
  }
}

// The process ends: others may go on with what it has open.  Only when its own descriptors are closed one can tell.
void madfs_fds_exit(void) {
  static uint64_t seen[SLOTS / 64];
  int top = atomic_load(&madfs_fds_top);
  bool any = false;
  for (int fd = 0; fd <= top; fd++) {
    int slot = madfs_fd_slot(fd);
    if (slot < 0 || only_ours(slot)) continue;
    RAW(SYS_close, fd);  // still known as ours: other threads' calls on it wait for the end
    seen[slot / 64] |= 1UL << slot % 64;
    any = true;
  }
  for (int slot = 0; any && slot < SLOTS; slot++) {
    if (!(seen[slot / 64] >> slot % 64 & 1)) continue;
    if (held(slot)) leave(slot);
    else dropped(slot);
  }
}

// --- close, dup, fcntl ----------------------------------------------------------------------------------------------

static enum madfs_verdict answer(struct madfs_frame *f, long result) {
  f->number = result;
  return MADFS_DONE;
}

static bool first_concerns(struct madfs_frame *f) { return madfs_fd_concerns((int)f->argument[0]); }

static enum madfs_verdict close_work(struct madfs_frame *f) {
  int fd = (int)f->argument[0], slot = madfs_fd_slot(fd);
  if (slot == FD_INTERNAL) return answer(f, -EBADF);
  if (slot == FD_HOST) return MADFS_PASS;
  learn(fd, KNOWN_NO);
  if (only_ours(slot) && ended(slot)) {
    if (spare_give(fd, slot)) return answer(f, 0);
    long result = RAW(SYS_close, fd);
    slot_free(slot);
    return answer(f, result);
  }
  madfs_locks_closing(slot);
  long result = RAW(SYS_close, fd);
  dropped(slot);
  return answer(f, result);
}

const struct madfs_shim madfs_shim_close = {first_concerns, close_work};

// Runs a call of the kernel's that makes a copy of descriptor `old`; the copy is what `old` is.
static enum madfs_verdict copy(struct madfs_frame *f, int old, long result) {
  int slot = madfs_fd_slot(old);
  if (!madfs_failed(result) && slot >= 0) {
    atomic_store(&solo[slot], 0);
    learn((int)result, (uint32_t)slot + 1);
  }
  return answer(f, result);
}

static enum madfs_verdict dup_work(struct madfs_frame *f) {
  int old = (int)f->argument[0];
  if (madfs_fd_slot(old) == FD_INTERNAL) return answer(f, -EBADF);
  return copy(f, old, RAW(SYS_dup, old));
}

const struct madfs_shim madfs_shim_dup = {first_concerns, dup_work};

static bool either_concerns(struct madfs_frame *f) {
  return madfs_fd_concerns((int)f->argument[0]) || madfs_fd_concerns((int)f->argument[1]);
}

static bool make_room_in_vfork(int fd) {
  madfs_identity_move(fd);
  if (fd == table_fd()) {
    long high = madfs_copy_up(fd, F_DUPFD, false);
    if (madfs_failed(high)) return false;
    madfs_local.thread->table_fd = (int)high;
    if (!madfs_number_take((int)high)) return false;  // in the parent it may be something else
  }
  return madfs_number_take(fd);
}

void madfs_fds_follow(void) {
  struct madfs_thread *t = madfs_local.thread;
  for (unsigned i = 0; i < t->taken_count; i++) {
    int slot = ask(t->taken[i]);
    atomic_store(&madfs_fds_known[t->taken[i]], (uint32_t)(slot + 1));
  }
  int fd = table_fd();
  madfs_local.vfork_depth = 0;
  t->taken_count = 0;
  t->table_fd = 0;
  if (fd != atomic_load(&table.fd)) table_rename(fd);
}

static bool make_room_apart(int fd) {
  madfs_identity_move(fd);
  if (fd == table_fd()) {
    long high = madfs_copy_up(fd, F_DUPFD, false);
    if (madfs_failed(high)) return false;
    learn((int)high, KNOWN_INTERNAL);
    atomic_store(&table.apart, (int)high);
  }
  return madfs_number_take_apart(fd);
}

// Makes room when somebody wants the number of an internal descriptor.  EBUSY, when there is none, is what the kernel
// says of a number that is being taken by somebody else.
static bool make_room(int fd) {
  if (madfs_fd_slot(fd) != FD_INTERNAL) return true;
  if (madfs_in_vfork()) return make_room_in_vfork(fd);
  if (spare_is(fd)) madfs_fds_shared();
  if (madfs_fd_slot(fd) != FD_INTERNAL) return true;
  if (madfs_table_own()) return make_room_apart(fd);
  if (fd != atomic_load(&table.fd)) return madfs_number_give(fd);
  madfs_lock(&table.lock);
  long high = madfs_copy_up(fd, F_DUPFD, false);
  if (!madfs_failed(high)) {
    table_rename((int)high);
    learn(fd, KNOWN_NO);
  }
  madfs_unlock(&table.lock);
  return !madfs_failed(high);
}

static enum madfs_verdict replace(struct madfs_frame *f, int flags) {
  int old = (int)f->argument[0], new = (int)f->argument[1];
  if (madfs_fd_slot(old) == FD_INTERNAL) return answer(f, -EBADF);
  if (!make_room(new)) return answer(f, -EBUSY);
  if (old == new) return MADFS_PASS;
  int lost = madfs_fd_slot(new);
  if (lost >= 0) {
    learn(new, KNOWN_NO);
    madfs_locks_closing(lost);
  }
  long result = RAW(SYS_dup3, old, new, flags);
  if (madfs_failed(result)) {
    if (lost >= 0) learn(new, (uint32_t)lost + 1);
    return answer(f, result);
  }
  copy(f, old, result);
  if (lost >= 0) dropped(lost);
  return MADFS_DONE;
}

static enum madfs_verdict dup2_work(struct madfs_frame *f) { return replace(f, 0); }
static enum madfs_verdict dup3_work(struct madfs_frame *f) { return replace(f, (int)f->argument[2]); }

const struct madfs_shim madfs_shim_dup2 = {either_concerns, dup2_work};
const struct madfs_shim madfs_shim_dup3 = {either_concerns, dup3_work};

static bool range_concerns(struct madfs_frame *f) {
  int top = atomic_load(&madfs_fds_top);
  unsigned flags = (unsigned)f->argument[2];
  if (flags & CLOSE_RANGE_UNSHARE) return true;
  return top >= 0 && (unsigned)f->argument[0] <= (unsigned)top && !(flags & CLOSE_RANGE_CLOEXEC);
}

// close_range is cut around our own descriptors.  In a process without any, and for CLOSE_RANGE_CLOEXEC (execve takes
// care of the table), the kernel does it alone.
static enum madfs_verdict range_work(struct madfs_frame *f) {
  unsigned first = (unsigned)f->argument[0], last = (unsigned)f->argument[1], flags = (unsigned)f->argument[2];
  unsigned top = (unsigned)atomic_load(&madfs_fds_top);
  long result = 0;
  if (first > last || (flags & ~(unsigned)(CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC))) return MADFS_PASS;
  if ((flags & CLOSE_RANGE_UNSHARE) && !madfs_in_vfork() && !madfs_alone()) {
    result = madfs_tables_unshare(CLONE_FILES);
    if (result) return answer(f, result);
    flags &= ~(unsigned)CLOSE_RANGE_UNSHARE;
  }
  if (flags & CLOSE_RANGE_CLOEXEC) return answer(f, RAW(SYS_close_range, first, last, flags));
  for (unsigned fd = first; fd <= last && fd <= top; fd++) {
    int slot = madfs_fd_slot((int)fd);
    if (slot == FD_HOST) continue;
    if (fd > first) result = RAW(SYS_close_range, first, fd - 1, flags);
    if (madfs_failed(result)) return answer(f, result);
    first = fd + 1;
    if (slot == FD_INTERNAL) continue;
    learn((int)fd, KNOWN_NO);
    madfs_locks_closing(slot);
    RAW(SYS_close, fd);
    dropped(slot);
  }
  if (first && first <= last) result = RAW(SYS_close_range, first, last, flags);
  return answer(f, result);
}

const struct madfs_shim madfs_shim_close_range = {range_concerns, range_work};

static enum madfs_verdict fcntl_work(struct madfs_frame *f) {
  enum { CHANGEABLE = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME | O_ASYNC, GETOWNER_UIDS = 17 };
  int fd = (int)f->argument[0], command = (int)f->argument[1], slot = madfs_fd_slot(fd);
  if (slot == FD_HOST) return MADFS_PASS;
  // F_GETFD tells the truth about internal descriptors, so that a program that looks for a free number finds another.
  if (slot == FD_INTERNAL) return command == F_GETFD ? MADFS_PASS : answer(f, -EBADF);
  uint32_t flags = madfs_slot_flags(slot);
  switch (command) {
    case F_DUPFD:
    case F_DUPFD_CLOEXEC: return copy(f, fd, RAW(SYS_fcntl, fd, command, f->argument[2]));
    case F_GETFD:
    case F_SETFD:
    case F_GETOWN:
    case F_SETOWN:
    case F_GETOWN_EX:
    case F_SETOWN_EX:
    case GETOWNER_UIDS:
    case F_GETSIG:
    case F_SETSIG: return flags & O_PATH && command != F_GETFD && command != F_SETFD ? answer(f, -EBADF) : MADFS_PASS;
    case F_GETFL: return answer(f, flags & O_TMPFILE & ~O_DIRECTORY ? flags | O_TMPFILE : flags);
    case F_SETFL:
      if (flags & O_PATH) return answer(f, -EBADF);
      madfs_slot_set_flags(slot, (flags & ~(uint32_t)CHANGEABLE) | ((uint32_t)f->argument[2] & CHANGEABLE));
      return answer(f, 0);
    case F_GETLK:
    case F_SETLK:
    case F_SETLKW:
    case F_OFD_GETLK:
    case F_OFD_SETLK:
    case F_OFD_SETLKW: return madfs_locks_fcntl(f, slot);
    case F_GET_RW_HINT:
    case F_SET_RW_HINT: return madfs_hints_fcntl(f, slot);
    case F_GETPIPE_SZ:
    case F_SETPIPE_SZ: return answer(f, -EBADF);
    case F_GETLEASE: return answer(f, flags & O_PATH ? -EBADF : F_UNLCK);
    case F_NOTIFY:
      if (flags & O_PATH) return answer(f, -EBADF);
      return answer(f, f->argument[2] & ~(unsigned)DN_MULTISHOT ? -EINVAL : 0);  // 0 asks for no more of it
    default:  // leases, seals, notification
      return answer(f, -EINVAL);
  }
}

const struct madfs_shim madfs_shim_fcntl = {first_concerns, fcntl_work};

// --- across exec ----------------------------------------------------------------------------------------------------

bool madfs_fds_state(char *text, size_t size) {
  char number[24];
  int fd = table_fd();
  if (fd < 0) return false;
  RAW(SYS_fcntl, fd, F_SETFD, 0);  // a loop over all descriptors may have set close-on-exec
  size_t n = madfs_copy(text, size, "MADFS_STATE=");
  n += madfs_copy(text + n, size - n, madfs_decimal(number, (unsigned long)fd));
  n += madfs_copy(text + n, size - n, ":");
  n += madfs_copy(text + n, size - n, madfs_decimal(number, table.inode));
  madfs_locks_state(text + n, size - n);
  return true;
}

struct directory_entry {
  uint64_t inode;
  int64_t next;
  uint16_t length;
  uint8_t type;
  char name[];
};

// Which of the inherited descriptors are ours.
static void learn_inherited(void) {
  _Alignas(8) char block[4096];
  unsigned long fd;
  long n, directory = RAW(SYS_openat, AT_FDCWD, "/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  if (madfs_failed(directory)) return;
  while ((n = RAW(SYS_getdents64, directory, block, sizeof block)) > 0)
    for (long at = 0; at < n;) {
      const struct directory_entry *entry = (const struct directory_entry *)(block + at);
      at += entry->length;
      if (!madfs_number(entry->name, 10, &fd)) continue;
      int slot = ask((int)fd);
      if (slot >= 0) learn((int)fd, (uint32_t)slot + 1);
    }
  RAW(SYS_close, directory);
}

void madfs_fds_adopt(const char *state) {
  unsigned long fd, inode;
  struct stat file;
  if (!state || !(state = madfs_number(state, 10, &fd)) || *state != ':' ||
      !(state = madfs_number(state + 1, 10, &inode)))
    return;
  if (madfs_failed(RAW(SYS_fstat, fd, &file)) || file.st_ino != inode || file.st_size < HEADER_BYTES) return;
  if (madfs_failed(table_map((int)fd))) return;
  if (table.header->magic != MAGIC || table.header->version != TABLE_VERSION ||
      table.header->slot_bytes != SLOT_BYTES) {
    RAW(SYS_munmap, table.header, TABLE_BYTES);
    return;
  }
  table_rename((int)fd);
  learn_inherited();
  madfs_locks_adopt(state);
}

// --- inside the runtime ---------------------------------------------------------------------------------------------

static void hide_pair(int *pair) {
  pair[0] = (int)madfs_fds_hide(pair[0]);
  pair[1] = (int)madfs_fds_hide(pair[1]);
}

// The call was made by the runtime itself: the kernel does it, and descriptors it makes go out of the way.
enum madfs_verdict madfs_fds_inside(struct madfs_frame *f) {
  unsigned long *a = f->argument;
  long number = f->number;
  struct madfs_frame real;
  if (MADFS_UNLIKELY(madfs_numbers_any()) && madfs_numbers_translate(f, &real)) return answer(f, real.number);
  if (number == SYS_close) {
    madfs_fds_forget((int)a[0]);
    return MADFS_PASS;
  }
  if (number == SYS_fcntl && (int)a[1] != F_DUPFD && (int)a[1] != F_DUPFD_CLOEXEC) return MADFS_PASS;
  if (!madfs_creates_descriptor(number)) return MADFS_PASS;
  long result = arch_syscall(number, (long)a[0], (long)a[1], (long)a[2], (long)a[3], (long)a[4], (long)a[5]);
  if (result == -EMFILE) {  // the program's numbers are used up, not ours
    struct madfs_height height = madfs_rise_above();
    result = arch_syscall(number, (long)a[0], (long)a[1], (long)a[2], (long)a[3], (long)a[4], (long)a[5]);
    madfs_fall(&height);
  }
  if (!madfs_failed(result)) {
    if (number == SYS_pipe2 || ARCH_IS_PIPE(number)) hide_pair((int *)a[0]);
    else if (number == SYS_socketpair) hide_pair((int *)a[3]);
    else if (number == SYS_dup3 || ARCH_IS_DUP2(number)) learn((int)result, KNOWN_INTERNAL);
    else result = madfs_fds_hide(result);
  }
  return answer(f, result);
}
