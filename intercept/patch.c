// SPDX-License-Identifier: Apache-2.0
// Writes the jumps of one mapping, and their stubs within reach of it.
//
// REQUIRES: nobody executes the mapping meanwhile: the process is starting, the object is being loaded, or its text is
// not executable yet.  Pages are
// never writable and executable at once, and the text is not touched before the stubs are known to work.
#include <errno.h>
#include <sys/mman.h>

#include "intercept.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x10U
#endif

enum { PAGE = 4096, STEP = 64 << 10 };

static const long reach = 0x7ff00000;  // of a 32-bit displacement, with a margin for the size of what is jumped to

static size_t round_up(size_t size) { return (size + PAGE - 1) & ~(size_t)(PAGE - 1); }

// Fresh pages from which every byte of [text, end) can be reached; NULL when there is no room.
static uint8_t *pages_near(const uint8_t *text, const uint8_t *end, size_t size) {
  unsigned long low = (unsigned long)text & ~(STEP - 1UL), high = ((unsigned long)end + STEP - 1) & ~(STEP - 1UL);
  for (long step = 1; step * STEP < reach - (long)(high - low); step++) {
    unsigned long try[2] = {low - (unsigned long)step * STEP - round_up(size), high + (unsigned long)step * STEP};
    for (int i = 0; i < 2; i++) {
      if (try[i] < MADFS_POINTER_MIN || try[i] > ARCH_POINTER_MAX - size || (i == 0 && try[i] > low)) continue;
      unsigned long at = try[i] & ~(unsigned long)(PAGE - 1);
      long got =
          RAW(SYS_mmap, at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
      if (got == (long)at) return (uint8_t *)at;
      if (!madfs_failed(got)) RAW(SYS_munmap, got, size);  // a kernel before 4.17 takes the flag for a hint
    }
  }
  return NULL;
}

static bool needs_stub(const struct madfs_plan *plan) {
  return plan->tier >= ARCH_IN_PLACE && plan->tier <= ARCH_SHORT;
}

// Records first, then stubs: both in pages that become read-only, so nothing of ours can be overwritten by accident.
static void write_stubs(struct madfs_plan *plans, unsigned count, unsigned stubs, uint8_t *pages) {
  struct madfs_site *record = (struct madfs_site *)pages;
  uint8_t *stub = pages + ((stubs * sizeof *record + 15) & ~15UL);
  for (unsigned i = 0; i < count; i++) {
    if (!needs_stub(&plans[i])) continue;
    size_t size = arch_stub_write(&plans[i], stub, record);
    if (!size) {  // an operand is out of reach from there
      plans[i].tier = ARCH_LEFT;
      continue;
    }
    plans[i].stub = stub;
    plans[i].record = record++;
    stub += (size + 15) & ~15UL;
  }
}

// Makes finished pages executable.  Where what was writable may not become so (PR_SET_MDWE), a copy of them takes their
// place, which never was.
static bool make_executable(const uint8_t *pages, size_t size, int protection) {
  if (!madfs_failed(RAW(SYS_mprotect, pages, size, protection))) return true;
  size = round_up(size);
  long fd = RAW(SYS_memfd_create, "madfs-text", MFD_CLOEXEC | MFD_EXEC);
  if (fd == -EINVAL) fd = RAW(SYS_memfd_create, "madfs-text", MFD_CLOEXEC);
  if (madfs_failed(fd)) return false;
  bool done = RAW(SYS_write, fd, pages, size) == (long)size &&
              RAW(SYS_mmap, pages, size, protection, MAP_PRIVATE | MAP_FIXED, fd, 0) == (long)pages;
  RAW(SYS_close, fd);
  return done;
}

// --- stubs of texts that are no more --------------------------------------------------------------------------------

// So that a library which is closed and opened again does not take new pages each time.
enum { TEXTS_MAX = 256 };

static struct {
  unsigned long start, end, pages;
  size_t size;
} texts[TEXTS_MAX];
static struct madfs_lock lock;

static void note(const struct madfs_code *code, const uint8_t *pages, size_t size) {
  madfs_lock(&lock);
  for (unsigned i = 0; i < TEXTS_MAX; i++)
    if (!texts[i].pages) {
      texts[i].start = (unsigned long)code->text;
      texts[i].end = (unsigned long)code->text_end;
      texts[i].pages = (unsigned long)pages;
      texts[i].size = size;
      break;
    }
  madfs_unlock(&lock);
}

void madfs_patch_forget(unsigned long start, size_t length) {
  madfs_lock(&lock);
  for (unsigned i = 0; i < TEXTS_MAX; i++) {
    if (!texts[i].pages || texts[i].start >= start + length || texts[i].end <= start) continue;
    RAW(SYS_munmap, texts[i].pages, texts[i].size);
    texts[i].pages = 0;
  }
  madfs_unlock(&lock);
}

// --- one mapping ----------------------------------------------------------------------------------------------------

unsigned madfs_patch(const struct madfs_code *code, struct madfs_plan *plans, unsigned count, int protection) {
  unsigned stubs = 0;
  for (unsigned i = 0; i < count; i++) stubs += needs_stub(&plans[i]);
  if (!stubs) return 0;
  size_t size = round_up(stubs * (sizeof(struct madfs_site) + ARCH_STUB_MAX));
  uint8_t *pages = pages_near(code->text, code->text_end, size);
  if (!pages) return 0;
  size_t length = (size_t)(code->text_end - code->text);
  write_stubs(plans, count, stubs, pages);
  if (!make_executable(pages, size, PROT_READ | PROT_EXEC) ||
      madfs_failed(RAW(SYS_mprotect, code->text, length, PROT_READ | PROT_WRITE))) {
    RAW(SYS_munmap, pages, size);
    return 0;
  }
  unsigned written = 0;
  for (unsigned i = 0; i < count; i++) {
    if (!needs_stub(&plans[i])) continue;
    arch_site_write(&plans[i]);
    written++;
  }
  note(code, pages, size);
  arch_flush(pages, size);
  arch_flush(code->text, length);
  // The process cannot go on with text that may not be executed.
  if (!make_executable(code->text, length, protection))
    madfs_die(127, "the system does not let rewritten code become executable again: run without LD_PRELOAD", NULL);
  return written;
}
