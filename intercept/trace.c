// SPDX-License-Identifier: Apache-2.0
// What happened to the calls that may be ours, counted in memory that all processes of a job on this node share
// (`madfs doctor --trace`).  Nothing is counted, and nothing is slower, unless MADFS_TRACE names the file.
//
//   file := header, call*       one call for each system call number: its name, and a count for each outcome
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "intercept.h"

#define MAGIC 0x3145434152544d46UL  // "FMTRACE1"

struct trace {
  uint64_t magic;
  uint32_t rows, outcomes;
  _Atomic uint64_t processes, sites_left;
  struct {
    char name[32];
    _Atomic uint64_t counts[TRACE_OUTCOMES];
  } call[MADFS_ROWS];
};
_Static_assert(sizeof(struct trace) == 32 + MADFS_ROWS * (32 + TRACE_OUTCOMES * 8), "pymadfs/trace.py reads it");

static struct trace *trace;

bool madfs_tracing(void) { return trace != NULL; }

void madfs_trace_start(const char *path) {
  struct stat file;
  if (!path || !*path) return;
  long fd = RAW(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
  long pages = fd;
  if (!madfs_failed(fd)) {
    bool whole = !madfs_failed(RAW(SYS_fstat, fd, &file)) && file.st_size >= (long)sizeof *trace;
    pages = whole ? RAW(SYS_mmap, 0, sizeof *trace, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : -1;
    RAW(SYS_close, fd);
  }
  if (madfs_failed(pages)) {
    madfs_say("MADFS_TRACE=", path, ": nothing is counted there: let `madfs doctor --trace` or `madfs run --trace` "
              "make the file", NULL);
    return;
  }
  madfs_copy(madfs_settings.trace, sizeof madfs_settings.trace, path);
  trace = (struct trace *)pages;
  trace->rows = MADFS_ROWS;
  trace->outcomes = TRACE_OUTCOMES;
  for (long i = 0; i < MADFS_ROWS; i++)
    madfs_copy(trace->call[i].name, sizeof trace->call[i].name, madfs_call_name(i));
  trace->magic = MAGIC;
  atomic_fetch_add(&trace->processes, 1);
}

void madfs_trace_count(long number, enum madfs_outcome outcome) {
  if (trace && (unsigned long)number < MADFS_ROWS) atomic_fetch_add(&trace->call[number].counts[outcome], 1);
}

void madfs_trace_left(unsigned sites) {
  if (trace) atomic_fetch_add(&trace->sites_left, sites);
}

// --- names ----------------------------------------------------------------------------------------------------------

// One block of text and offsets into it: pointers would have to be relocated at every start.
static const struct {
  char none[1];
#define SYSCALL(name, ...) char name[sizeof #name];
#include "syscalls.def"
#undef SYSCALL
} names = {"",
#define SYSCALL(name, ...) #name,
#include "syscalls.def"
#undef SYSCALL
};

static const uint16_t name_at[MADFS_ROWS] = {
#define SYSCALL(name, ...) [SYS_##name] = offsetof(__typeof__(names), name),
#include "syscalls.def"
#undef SYSCALL
};

const char *madfs_call_name(long number) {
  return (const char *)&names + ((unsigned long)number < MADFS_ROWS ? name_at[number] : 0);
}
