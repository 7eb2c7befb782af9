// SPDX-License-Identifier: Apache-2.0
// What was found in libraries that every process has, kept in a file beside this library so that a process need not
// look again: 3 ms become 1.  It is made when the project is built (MADFS_SITES_WRITE=FILE has a process write down
// what it found).  A library that is not in it, or another build of it, is scanned.
//
//   file := header, entry*        entry := build id, place of the text in its file, number of sites, site*
//   site := one word that arch_pack() makes and arch_unpack() checks against the code
//
// The header names the version and a sum of the classes of system calls, because these decide what is rewritten.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "intercept.h"

enum { ROOM = 1 << 20 };

#define MAGIC 0x5345544953464d31UL  // "1MFSITES"

struct header {
  uint64_t magic, classes, size;
  char version[16];
};

struct entry {
  uint8_t build_id[MADFS_BUILD_ID];
  uint32_t count, idle;
  uint64_t offset, length;
  uint64_t sites[];
};

static const struct header *table;  // NULL: there is none, or it is of no use
static struct header *written;      // NULL: nothing is to be written

static uint64_t classes_sum(void) {
  uint64_t sum = 0xcbf29ce484222325;
  for (unsigned i = 0; i < MADFS_ROWS; i++) sum = (sum ^ madfs_classes[i]) * 0x100000001b3;
  return sum;
}

static size_t entry_size(unsigned count) { return sizeof(struct entry) + count * sizeof(uint64_t); }

static void header_fill(struct header *h) {
  *h = (struct header){.magic = MAGIC, .classes = classes_sum(), .size = sizeof *h};
  madfs_copy(h->version, sizeof h->version, madfs_version);
}

void madfs_sites_open(bool writes) {
  char path[MADFS_PATH_MAX];
  struct stat file;
  struct header now;
  if (writes) {
    long pages = RAW(SYS_mmap, 0, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (madfs_failed(pages)) return;
    written = (struct header *)pages;
    header_fill(written);
    return;
  }
  size_t n = madfs_copy(path, sizeof path, madfs_settings.library);
  while (n && path[n - 1] != '/') n--;
  madfs_copy(path + n, sizeof path - n, "libmadfs_intercept.sites");
  long fd = RAW(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
  if (madfs_failed(fd)) return;
  if (!madfs_failed(RAW(SYS_fstat, fd, &file)) && file.st_size >= (long)sizeof *table) {
    long pages = RAW(SYS_mmap, 0, file.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (!madfs_failed(pages)) table = (const struct header *)pages;
  }
  RAW(SYS_close, fd);
  header_fill(&now);
  if (table && (table->magic != MAGIC || table->classes != now.classes || table->size != (uint64_t)file.st_size ||
                memcmp(table->version, now.version, sizeof now.version) != 0))
    table = NULL;
}

// The plans of a text that is in the table; -1 when it is not, or not what it was.
int madfs_sites_find(const uint8_t *build_id, uint64_t offset, const struct madfs_code *code, struct madfs_plan *plans,
                     unsigned room, unsigned *idle) {
  if (!table) return -1;
  for (uint64_t at = sizeof *table; at + sizeof(struct entry) <= table->size;) {
    const struct entry *e = (const struct entry *)((const char *)table + at);
    at += entry_size(e->count);
    if (at > table->size) return -1;
    if (memcmp(e->build_id, build_id, MADFS_BUILD_ID) != 0 || e->offset != offset) continue;
    if (e->length != (uint64_t)(code->text_end - code->text) || e->count > room) return -1;
    for (unsigned i = 0; i < e->count; i++)
      if (!arch_unpack(e->sites[i], code, &plans[i])) return -1;
    *idle = e->idle;
    return (int)e->count;
  }
  return -1;
}

void madfs_sites_note(const uint8_t *build_id, uint64_t offset, const struct madfs_code *code,
                      const struct madfs_plan *plans, unsigned count) {
  if (!written) return;
  struct entry *e = (struct entry *)((char *)written + written->size);
  if (written->size + entry_size(count) > ROOM) return;
  *e = (struct entry){.offset = offset, .length = (uint64_t)(code->text_end - code->text)};
  memcpy(e->build_id, build_id, MADFS_BUILD_ID);
  for (unsigned i = 0; i < count; i++) {
    if (plans[i].tier == ARCH_LEFT) return;  // perhaps another one can do better
    if (plans[i].tier == ARCH_IDLE) e->idle++;
    else if (plans[i].tier != ARCH_NO_SITE) e->sites[e->count++] = arch_pack(&plans[i], code);
  }
  written->size += entry_size(e->count);
}

void madfs_sites_write(const char *path) {
  if (!written || !path) return;
  long fd = RAW(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (madfs_failed(fd) || RAW(SYS_write, fd, written, written->size) != (long)written->size)
    madfs_die(127, "MADFS_SITES_WRITE=", path, ": cannot be written", NULL);
  RAW(SYS_close, fd);
  RAW(SYS_munmap, written, ROOM);
  written = NULL;
}
