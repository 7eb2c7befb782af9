// SPDX-License-Identifier: Apache-2.0
// Directories that processes of this tree have renamed: open files and working directories below go along.
//
// The table of open files has a ring of the last renames.  Who renames writes it there, and the paths of open files
// anew; a process follows with its working directory when it next needs it.  What other trees and nodes rename is not
// seen here.  A directory that was removed is told of in the same way, by its number.
#include <string.h>

#include "intercept.h"

enum { MOVES = 8, PATIENCE = 100000 };

struct move {
  _Atomic uint64_t number;  // 0 while it is written, then 1 for the first of all
  uint32_t old_length, new_length, exchange;
  uint64_t gone;  // the number of a directory that was removed; 0: this is a rename
  char old[MADFS_PATH_MAX], new_[MADFS_PATH_MAX];
};

struct madfs_moves {
  _Atomic uint64_t count;
  struct move ring[MOVES];
};
_Static_assert(sizeof(struct madfs_moves) <= MADFS_MOVES_BYTES, "the ring has its own part of the table");

static bool replace(const char *from, size_t from_length, const char *to, size_t to_length, char *path,
                    size_t *length) {
  if (*length < from_length || memcmp(path, from, from_length) != 0) return false;
  if ((path[from_length] && path[from_length] != '/') || *length - from_length + to_length >= MADFS_PATH_MAX)
    return false;
  memmove(path + to_length, path + from_length, *length - from_length + 1);
  memcpy(path, to, to_length);
  *length += to_length - from_length;
  return true;
}

static bool follow(const struct move *m, char *path, size_t *length, bool gone) {
  if (gone && (*length == m->old_length || *length == m->new_length)) return false;  // another one has its name
  return replace(m->old, m->old_length, m->new_, m->new_length, path, length) ||
         (m->exchange && replace(m->new_, m->new_length, m->old, m->old_length, path, length));
}

uint64_t madfs_moves_count(void) {
  struct madfs_moves *moves = madfs_fds_moves();
  return moves ? atomic_load(&moves->count) : 0;
}

void madfs_moves_follow(uint64_t from, uint64_t to, char path[MADFS_PATH_MAX], size_t *length,
                        uint64_t *inode) {
  struct madfs_moves *moves = madfs_fds_moves();
  if (!moves) return;
  for (uint64_t n = from + MOVES < to ? to - MOVES : from; n < to; n++) {
    struct move *m = &moves->ring[n % MOVES];
    // Its writer may have been killed: wait for as long as writing takes.
    for (int i = 0; i < PATIENCE && !atomic_load(&m->number); i++) arch_pause();
    if (atomic_load(&m->number) != n + 1) continue;
    if (m->gone && m->gone == *inode) *inode |= MADFS_GONE;
    if (!m->gone) follow(m, path, length, *inode & MADFS_GONE);
  }
}

// Begins the next entry of the ring, `number`.
static struct move *begin(struct madfs_moves *moves, uint64_t *number, uint64_t gone) {
  *number = atomic_fetch_add(&moves->count, 1);
  struct move *m = &moves->ring[*number % MOVES];
  atomic_store(&m->number, 0);
  m->gone = gone;
  return m;
}

size_t madfs_moves_at(const char *path, size_t length, uint64_t *inodes, size_t room) {
  static char other[MADFS_PATH_MAX];
  static struct madfs_lock lock;
  size_t n = 0;
  if (!madfs_fds_moves()) return 0;
  madfs_lock(&lock);
  if (madfs_cwd_get(other) == length && memcmp(other, path, length) == 0 && room) inodes[n++] = madfs_cwd_inode();
  for (int slot = -1; n < room && (slot = madfs_slot_next(slot)) >= 0;)
    if (madfs_slot_path(slot, other) == length && memcmp(other, path, length) == 0)
      inodes[n++] = madfs_slot_inode(slot);
  madfs_unlock(&lock);
  return n;
}

void madfs_moves_gone(uint64_t inode) {
  struct madfs_moves *moves = madfs_fds_moves();
  if (!moves) return;
  for (int slot = -1; (slot = madfs_slot_next(slot)) >= 0;)
    if (madfs_slot_inode(slot) == inode) madfs_slot_gone(slot);
  madfs_cwd_gone(inode);
  uint64_t n;
  struct move *m = begin(moves, &n, inode);
  atomic_store(&m->number, n + 1);
}

void madfs_moves_add(const char *old, size_t old_length, const char *new_, size_t new_length, int exchange) {
  static char path[MADFS_PATH_MAX];
  static struct madfs_lock lock;
  if (madfs_failed(madfs_fds_need()) || old_length >= MADFS_PATH_MAX || new_length >= MADFS_PATH_MAX) return;
  struct madfs_moves *moves = madfs_fds_moves();
  madfs_lock(&lock);
  uint64_t n;
  struct move *m = begin(moves, &n, 0);
  m->old_length = (uint32_t)old_length, m->new_length = (uint32_t)new_length, m->exchange = (uint32_t)exchange;
  memcpy(m->old, old, old_length);
  memcpy(m->new_, new_, new_length);
  atomic_store(&m->number, n + 1);
  for (int slot = -1; (slot = madfs_slot_next(slot)) >= 0;) {
    size_t length = madfs_slot_path(slot, path);
    if (length && follow(m, path, &length, madfs_slot_inode(slot) & MADFS_GONE)) madfs_slot_rename(slot, path, length);
  }
  madfs_unlock(&lock);
}
