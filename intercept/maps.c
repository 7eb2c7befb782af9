// SPDX-License-Identifier: Apache-2.0
// Where files of ours are mapped to be shared.
//
// Such a mapping is one of the kernel's, of an image that all processes of the node have in common
// (pymadfs/syscalls/images.py): loads and stores cost nothing.  What the kernel does not do is to carry stores to the
// servers, so the runtime is told when a part of a mapping goes away or is to be synchronised.  That is after the
// kernel has done it: what was stored is in the image, mapped or not.
//
// As long as nothing is mapped, munmap(), mremap() and msync() are no calls of ours: their class is CLASS_NONE.
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>

#include "intercept.h"

enum { RANGES_MAX = 65536, PAGE = 4096 };  // so many mappings may a process have: vm.max_map_count

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

struct range {
  unsigned long start, end, offset;  // addresses; where `start` is in the file
  uint64_t file;
};

static struct range ranges[RANGES_MAX];
static _Atomic unsigned ranges_count;
static struct range gone[RANGES_MAX];  // parts that are not mapped any more, to be told
static _Atomic unsigned gone_count;
static struct madfs_lock lock;

static const uint16_t dormant[] = {SYS_munmap, SYS_mremap, SYS_msync};

bool madfs_maps_dormant(long number) {
  for (unsigned i = 0; i < sizeof dormant / sizeof *dormant; i++)
    if (dormant[i] == number) return true;
  return false;
}

static void wake(uint8_t class) {
  for (unsigned i = 0; i < sizeof dormant / sizeof *dormant; i++) madfs_classes[dormant[i]] = class;
}

void madfs_maps_start(void) { wake(CLASS_NONE); }

static unsigned long page_end(unsigned long address) { return (address + PAGE - 1) & ~(PAGE - 1UL); }

bool madfs_maps_any(void) { return atomic_load_explicit(&ranges_count, memory_order_relaxed) != 0; }

bool madfs_maps_overlap(unsigned long start, unsigned long length) {
  unsigned long end = page_end(start + length);
  for (unsigned i = 0, n = atomic_load(&ranges_count); i < n; i++)
    if (ranges[i].start < end && start < ranges[i].end) return true;
  return false;
}

// --- the table, with the lock held ----------------------------------------------------------------------------------

static void remove_range(unsigned i) {
  unsigned last = atomic_load(&ranges_count) - 1;
  ranges[i] = ranges[last];
  atomic_store(&ranges_count, last);
}

// Takes [start, end) out; the parts go to gone[].
static void cut(unsigned long start, unsigned long end) {
  for (unsigned i = 0; i < atomic_load(&ranges_count);) {
    struct range r = ranges[i], part = r;
    if (r.start >= end || start >= r.end) {
      i++;
      continue;
    }
    if (part.start < start) part.start = start;
    if (part.end > end) part.end = end;
    part.offset += part.start - r.start;
    unsigned told = atomic_load(&gone_count);
    if (told < RANGES_MAX) {
      gone[told] = part;
      atomic_store(&gone_count, told + 1);
    }
    if (r.start < part.start && part.end < r.end && atomic_load(&ranges_count) < RANGES_MAX) {
      unsigned n = atomic_load(&ranges_count);
      ranges[n] = (struct range){part.end, r.end, r.offset + (part.end - r.start), r.file};
      atomic_store(&ranges_count, n + 1);
    }
    if (r.start < part.start) ranges[i++].end = part.start;
    else if (part.end < r.end) ranges[i++] = (struct range){part.end, r.end, r.offset + (part.end - r.start), r.file};
    else remove_range(i);
  }
}

static bool add(const struct range *r) {
  unsigned n = atomic_load(&ranges_count);
  if (n == RANGES_MAX) return false;
  ranges[n] = *r;
  atomic_store(&ranges_count, n + 1);
  return true;
}

static bool is_mapped(uint64_t file) {
  for (unsigned i = 0, n = atomic_load(&ranges_count); i < n; i++)
    if (ranges[i].file == file) return true;
  return false;
}

// --- for the runtime ------------------------------------------------------------------------------------------------

int madfs_maps_add(unsigned long start, unsigned long length, uint64_t file, unsigned long offset) {
  struct range r = {start, page_end(start + length), offset, file};
  madfs_lock(&lock);
  cut(r.start, r.end);  // MAP_FIXED
  bool added = add(&r);
  if (added) wake(CLASS_ASK);
  madfs_unlock(&lock);
  return added ? 0 : -ENOMEM;
}

int madfs_maps_has(uint64_t file) {
  madfs_lock(&lock);
  bool found = is_mapped(file);
  madfs_unlock(&lock);
  return found;
}

// --- telling the runtime --------------------------------------------------------------------------------------------

static long tell(int number, const struct range *r, long flags) {
  struct madfs_call call = {.number = number, .count = 4};
  const long values[] = {(long)r->file, (long)r->offset, (long)(r->end - r->start), flags};
  int ignored;
  for (int i = 0; i < 4; i++) call.arg[i] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = values[i]};
  return madfs_runtime_call(&call, &ignored);
}

void madfs_maps_settle(void) {
  while (atomic_load(&gone_count)) {
    struct range part = {0};
    madfs_lock(&lock);
    unsigned n = atomic_load(&gone_count);
    if (n) {
      part = gone[n - 1];
      atomic_store(&gone_count, n - 1);
    }
    bool last = n && !is_mapped(part.file);
    madfs_unlock(&lock);
    if (!n) return;
    tell(last ? CALL_map_end : CALL_map_sync, &part, 0);
  }
}

void madfs_maps_replaced(unsigned long start, unsigned long length) {
  if (!madfs_maps_overlap(start, length)) return;
  madfs_lock(&lock);
  cut(start, page_end(start + length));
  madfs_unlock(&lock);
  madfs_maps_settle();
}

void madfs_maps_sync(void) {
  struct range all = {0};
  if (madfs_maps_any() && !madfs_in_vfork()) tell(CALL_map_sync_all, &all, 0);
}

// --- munmap, msync, mremap ------------------------------------------------------------------------------------------

static enum madfs_verdict answer(struct madfs_frame *f, long result) {
  f->number = result;
  return MADFS_DONE;
}

// A length of 0 may mean something to the kernel, but nothing to a mapping of ours, except for mremap().
static bool concerns(struct madfs_frame *f) {
  const unsigned long *a = f->argument;
  if (!madfs_maps_any()) return false;
  if (f->number != SYS_mremap) return madfs_maps_overlap(a[0], a[1]);
  return madfs_maps_overlap(a[0], a[1] ? a[1] : 1) || ((a[3] & MREMAP_FIXED) && madfs_maps_overlap(a[4], a[2]));
}

static enum madfs_verdict munmap_work(struct madfs_frame *f) {
  unsigned long start = f->argument[0], length = f->argument[1];
  // In one: another thread may map something of ours there at once, which add() must not find cut out again.
  madfs_lock(&lock);
  long result = RAW(SYS_munmap, start, length);
  if (!madfs_failed(result)) cut(start, page_end(start + length));
  madfs_unlock(&lock);
  madfs_maps_settle();
  return answer(f, result);
}

const struct madfs_shim madfs_shim_munmap = {concerns, munmap_work};

// The kernel says what is wrong with the arguments and with what else is mapped there.
static enum madfs_verdict msync_work(struct madfs_frame *f) {
  unsigned long start = f->argument[0], end = page_end(start + f->argument[1]);
  long result = RAW(SYS_msync, start, f->argument[1], f->argument[2]);
  if (madfs_failed(result)) return answer(f, result);
  for (unsigned i = 0;; i++) {
    struct range part;
    madfs_lock(&lock);
    bool done = i >= atomic_load(&ranges_count);
    if (!done) part = ranges[i];
    madfs_unlock(&lock);
    if (done) break;
    unsigned long first = part.start;
    if (part.start < start) part.start = start;
    if (part.end > end) part.end = end;
    if (part.start >= part.end) continue;
    part.offset += part.start - first;
    long synced = tell(CALL_map_sync, &part, (long)f->argument[2]);
    if (madfs_failed(synced)) result = synced;
  }
  return answer(f, result);
}

const struct madfs_shim madfs_shim_msync = {concerns, msync_work};

// What is mapped at `address`, if it is ours.  REQUIRES: the lock.
static bool find(unsigned long address, struct range *out) {
  bool found = false;
  for (unsigned i = 0, n = atomic_load(&ranges_count); i < n && !found; i++)
    if (ranges[i].start <= address && address < ranges[i].end) {
      *out = ranges[i];
      found = true;
    }
  return found;
}

static enum madfs_verdict mremap_work(struct madfs_frame *f) {
  const unsigned long *a = f->argument;
  unsigned long old = a[0], old_length = page_end(a[1]), new_length = page_end(a[2]);
  struct range was = {0};
  madfs_lock(&lock);  // as for munmap
  bool ours = find(old, &was);
  long result = RAW(SYS_mremap, a[0], a[1], a[2], a[3], a[4]);
  if (madfs_failed(result)) {
    madfs_unlock(&lock);
    return answer(f, result);
  }
  bool stays = !old_length || (a[3] & MREMAP_DONTUNMAP);
  unsigned long at = (unsigned long)result;
  struct range now = {at, at + new_length, was.offset + (old - was.start), was.file};
  if (ours && !stays) {
    // What moves is not gone; what a smaller length cuts off is.
    unsigned told = atomic_load(&gone_count);
    cut(old, old + (new_length < old_length ? new_length : old_length));
    atomic_store(&gone_count, told);
    cut(old, old + old_length);
  }
  cut(now.start, now.end);
  if (ours) add(&now);
  madfs_unlock(&lock);
  if (ours && new_length > old_length) {
    now.offset += old_length;
    now.start += old_length;
    tell(CALL_map_grow, &now, 0);
  }
  madfs_maps_settle();
  return answer(f, result);
}

const struct madfs_shim madfs_shim_mremap = {concerns, mremap_work};
