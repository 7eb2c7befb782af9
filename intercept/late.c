// SPDX-License-Identifier: Apache-2.0
// Text of a file that becomes executable after it was mapped: loaders of their own, and objects whose text the loader
// relocates.  It is rewritten before anybody can execute it.  What a just-in-time compiler made is no file's and is
// left alone, also when it lies in a file that it maps shared.
#include <sys/mman.h>

#include "intercept.h"

// Where the last searches found nothing of a file, so that a compiler that makes page after page executable does not
// pay for a look at all mappings each time.  Forgotten when a file is mapped.
enum { ANONYMOUS_MAX = 8 };

static _Atomic unsigned long anonymous[ANONYMOUS_MAX][2];
static _Atomic unsigned anonymous_next;
static _Atomic bool anonymous_any;

void madfs_late_mapped(void) {
  if (!atomic_load_explicit(&anonymous_any, memory_order_relaxed)) return;
  for (unsigned i = 0; i < ANONYMOUS_MAX; i++) atomic_store(&anonymous[i][1], 0);
  atomic_store(&anonymous_any, false);
}

static bool known_anonymous(unsigned long start, unsigned long end) {
  for (unsigned i = 0; i < ANONYMOUS_MAX; i++)
    if (atomic_load(&anonymous[i][0]) <= start && end <= atomic_load(&anonymous[i][1])) return true;
  return false;
}

static void note_anonymous(unsigned long start, unsigned long end) {
  unsigned i = atomic_fetch_add(&anonymous_next, 1) % ANONYMOUS_MAX;
  atomic_store(&anonymous[i][1], 0);
  atomic_store(&anonymous[i][0], start);
  atomic_store(&anonymous[i][1], end);
  atomic_store(&anonymous_any, true);
}

static bool concerns(struct madfs_frame *f) {
  return (f->argument[2] & PROT_EXEC) && !known_anonymous(f->argument[0], f->argument[0] + f->argument[1]);
}

// The kernel has the last word, also about arguments that make no sense.
static enum madfs_verdict work(struct madfs_frame *f) {
  unsigned long start = f->argument[0], end = start + f->argument[1], until;
  if (end > start && !(start & 4095) && !madfs_scan_range(start, end, (int)f->argument[2], &until) && until >= end)
    note_anonymous(start, until);
  f->number = RAW(f->number, start, f->argument[1], f->argument[2], f->argument[3]);
  return MADFS_DONE;
}

const struct madfs_shim madfs_shim_mprotect = {concerns, work};
