// SPDX-License-Identifier: Apache-2.0
// A debugger that starts a program may have put breakpoints into libraries before the shim sees them.  The bytes under
// them say where instructions begin, so they are put back while the text is looked at and rewritten; what the debugger
// will overwrite again when it removes a breakpoint is not used for a jump.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "intercept.h"

#ifndef PR_GET_MDWE
#define PR_GET_MDWE 66
#endif

static bool is_traced(void) {
  char text[1024];
  unsigned long tracer = 0;
  long fd = RAW(SYS_openat, AT_FDCWD, "/proc/self/status", O_RDONLY | O_CLOEXEC, 0), n = 0;
  if (!madfs_failed(fd)) {
    n = RAW(SYS_read, fd, text, sizeof text - 1);
    RAW(SYS_close, fd);
  }
  text[n > 0 ? n : 0] = 0;
  for (const char *at = text; *at; at++)
    if (madfs_starts(at, "TracerPid:\t")) return madfs_number(at + 11, 10, &tracer) && tracer;
  return false;
}

// Where a breakpoint stands in place of the byte that the file has.
static unsigned compare(const uint8_t *text, const uint8_t *file, size_t length, struct madfs_breakpoint *found) {
  unsigned count = 0;
  for (size_t i = 0; i < length && count < MADFS_BREAKPOINTS; i++)
    if (text[i] == ARCH_BREAKPOINT && file[i] != ARCH_BREAKPOINT)
      found[count++] = (struct madfs_breakpoint){(uint8_t *)text + i, file[i]};
  return count;
}

unsigned madfs_debugger_lift(const uint8_t *text, size_t length, unsigned long offset, const char *path,
                             struct madfs_breakpoint *found) {
  static int traced = -1;
  if (traced < 0) traced = is_traced();
  if (!traced || RAW(SYS_prctl, PR_GET_MDWE, 0, 0, 0, 0) > 0) return 0;
  long fd = RAW(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
  if (madfs_failed(fd)) return 0;
  long file = RAW(SYS_mmap, 0, length, PROT_READ, MAP_PRIVATE, fd, offset);
  RAW(SYS_close, fd);
  if (madfs_failed(file)) return 0;
  unsigned count = compare(text, (const uint8_t *)file, length, found);
  RAW(SYS_munmap, file, length);
  if (!count || madfs_failed(RAW(SYS_mprotect, text, length, PROT_READ | PROT_WRITE))) return 0;
  for (unsigned i = 0; i < count; i++) *found[i].at = found[i].byte;
  return count;
}

void madfs_debugger_restore(const uint8_t *text, size_t length, int protection, const struct madfs_breakpoint *found,
                            unsigned count) {
  if (!count) return;
  RAW(SYS_mprotect, text, length, PROT_READ | PROT_WRITE);
  for (unsigned i = 0; i < count; i++) *found[i].at = ARCH_BREAKPOINT;
  arch_flush(text, length);
  if (madfs_failed(RAW(SYS_mprotect, text, length, protection)))
    madfs_die(127, "the system does not let code become executable again: start the program without breakpoints", NULL);
}
