// SPDX-License-Identifier: Apache-2.0
// Libraries on the mount that a program starts with.  The dynamic loader opens them before anything of ours runs in the
// process, so whoever executes the program copies them to the stage, a directory of the host's
// (pymadfs/syscalls/startup.py); the program is told by MADFS_STAGE=LOCK:STAGE:NAMES and finds them by LD_LIBRARY_PATH.
// When it has, the copies are removed, and its variables are what they would be without all this.
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>

#include "intercept.h"

enum { HEAD = 4096, DYNAMIC = 4096, TEXT = 4096, SCRIPTS_MAX = 5, OUT = 512 << 10 };

// --- before the program is executed ---------------------------------------------------------------------------------

static bool on_mount(const char *path) {
  size_t n = madfs_settings.mount_length;
  return madfs_starts(path, madfs_settings.mount) && (!path[n] || path[n] == '/' || path[n] == ':' || path[n] == ' ');
}

// Whether one of a list of paths lies on the mount, or may when the working directory does.
static bool names_mount(const char *list) {
  if (!list) return false;
  bool relative = madfs_cwd_virtual(), begins = true;
  for (; *list; begins = *list == ':' || *list == ';' || *list == ' ', list++)
    if (begins && (on_mount(list) || (relative && *list != '/'))) return true;
  return begins && relative;
}

static bool file_offset(const Elf64_Phdr *segments, unsigned count, unsigned long address, unsigned long *offset) {
  for (unsigned i = 0; i < count; i++) {
    const Elf64_Phdr *s = &segments[i];
    if (s->p_type != PT_LOAD || address < s->p_vaddr || address - s->p_vaddr >= s->p_filesz) continue;
    *offset = s->p_offset + (address - s->p_vaddr);
    return true;
  }
  return false;
}

static bool text_names_mount(int fd, unsigned long offset) {
  char text[TEXT + 1];
  long size = RAW(SYS_pread64, fd, text, TEXT, offset);
  if (size <= 0) return false;
  text[size] = 0;
  for (const char *at = text; *at; at++)
    if ((at == text || at[-1] == ':') && on_mount(at)) return true;
  return false;
}

static bool dynamic_names_mount(int fd, const Elf64_Phdr *segments, unsigned count, const Elf64_Phdr *dynamic) {
  Elf64_Dyn entries[DYNAMIC / sizeof(Elf64_Dyn)];
  unsigned long size = dynamic->p_filesz < sizeof entries ? dynamic->p_filesz : sizeof entries, strings = 0, at;
  long got = RAW(SYS_pread64, fd, entries, size, dynamic->p_offset);
  if (got <= 0) return false;
  size_t number = (size_t)got / sizeof *entries;
  for (size_t i = 0; i < number && entries[i].d_tag != DT_NULL; i++)
    if (entries[i].d_tag == DT_STRTAB) strings = entries[i].d_un.d_ptr;
  for (size_t i = 0; i < number && entries[i].d_tag != DT_NULL; i++)
    if ((entries[i].d_tag == DT_RPATH || entries[i].d_tag == DT_RUNPATH) &&
        file_offset(segments, count, strings + entries[i].d_un.d_val, &at) && text_names_mount(fd, at))
      return true;
  return false;
}

// Whether a program of the host's names the mount as the place of its libraries, or of its loader.
static bool program_names_mount(int fd, unsigned type) {
  char head[HEAD] __attribute__((aligned(8)));
  long size = RAW(SYS_pread64, fd, head, HEAD, 0);
  const Elf64_Ehdr *header = (const Elf64_Ehdr *)head;
  if (size < (long)sizeof *header || memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) return false;
  if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_phentsize != sizeof(Elf64_Phdr)) return false;
  if (header->e_phoff + header->e_phnum * sizeof(Elf64_Phdr) > (unsigned long)size) return false;
  const Elf64_Phdr *segments = (const Elf64_Phdr *)(head + header->e_phoff);
  for (unsigned i = 0; i < header->e_phnum; i++) {
    if (segments[i].p_type != type) continue;
    if (type == PT_INTERP ? text_names_mount(fd, segments[i].p_offset)
                          : dynamic_names_mount(fd, segments, header->e_phnum, &segments[i]))
      return true;
  }
  return false;
}

bool madfs_startup_loader(int fd) { return program_names_mount(fd, PT_INTERP); }

// The program that interprets a script in the end; takes `fd` and gives another one.
static long interpreter_of(long fd) {
  char head[HEAD];
  for (int i = 0; i < SCRIPTS_MAX && !madfs_failed(fd); i++) {
    long size = RAW(SYS_pread64, fd, head, HEAD / 16, 0);
    if (size < 3 || head[0] != '#' || head[1] != '!') return fd;
    head[size < HEAD / 16 ? size : HEAD / 16 - 1] = 0;
    char *at = head + 2;
    while (*at == ' ' || *at == '\t') at++;
    char *end = at;
    while (*end && *end != ' ' && *end != '\t' && *end != '\n') end++;
    *end = 0;
    RAW(SYS_close, fd);
    fd = RAW(SYS_openat, AT_FDCWD, at, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0);
  }
  return fd;
}

static long open_program(int directory, const char *path) {
  char name[40], number[24];
  if (!*path) {
    size_t n = madfs_copy(name, sizeof name, "/proc/self/fd/");
    madfs_copy(name + n, sizeof name - n, madfs_decimal(number, (unsigned long)directory));
    directory = AT_FDCWD;
    path = name;
  }
  return interpreter_of(RAW(SYS_openat, directory, path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0));
}

// The path of an open file of the host's.
static void path_of(int fd, char *out, size_t room) {
  char name[40], number[24];
  size_t n = madfs_copy(name, sizeof name, "/proc/self/fd/");
  madfs_copy(name + n, sizeof name - n, madfs_decimal(number, (unsigned long)fd));
  long size = RAW(SYS_readlinkat, AT_FDCWD, name, out, room - 1);
  out[size > 0 ? size : 0] = 0;
}

static struct madfs_arg string(const char *text) {
  return (struct madfs_arg){.kind = MADFS_ARG_STR, .text = text, .length = strlen(text)};
}

// The copies: another process may make them (a child of vfork asks for that), so the answer is in shared pages.
static long stage(struct madfs_startup *s, const char *path, int fd, const char *library_path, const char *preload) {
  struct madfs_thread *t = madfs_local.thread;
  int ignored;
  long pages = RAW(SYS_mmap, 0, OUT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (madfs_failed(pages)) return pages;
  if (!madfs_cwd_get(t->scratch)) *t->scratch = 0;
  struct madfs_call call = {.number = CALL_libraries, .count = 6};
  call.arg[0] = string(path);
  call.arg[1] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = fd};
  call.arg[2] = string(library_path ? library_path : "");
  call.arg[3] = string(preload ? preload : "");
  call.arg[4] = string(t->scratch);
  call.arg[5] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = pages};
  long result = madfs_runtime_call(&call, &ignored);
  if (result <= 0) {
    RAW(SYS_munmap, pages, OUT);
    return result == MADFS_HOST_PATH ? 0 : result;
  }
  s->pages = (char *)pages;
  s->library_path = s->pages + strlen(s->pages) + 1;
  s->preload = s->library_path + strlen(s->library_path) + 1;
  // Whoever removes abandoned stages sees that this one is in use.
  char top[MADFS_PATH_MAX];
  size_t n = madfs_copy(top, sizeof top, s->pages);
  for (size_t i = 0; i < n; i++)
    if (top[i] == ':') top[i] = 0;
  s->lock = (int)madfs_fds_hide(RAW(SYS_openat, AT_FDCWD, top, O_RDONLY | O_DIRECTORY, 0));
  if (s->lock >= 0) {
    RAW(SYS_flock, s->lock, LOCK_SH);
    RAW(SYS_fcntl, s->lock, F_SETFD, 0);
  }
  return 0;
}

long madfs_startup_prepare(struct madfs_startup *s, int directory, const char *path, int memory, const char *name,
                           const char *library_path, const char *preload) {
  char host[MADFS_PATH_MAX];
  *s = (struct madfs_startup){.lock = -1};
  if (memory >= 0) return stage(s, name, memory, library_path, preload);
  bool named = names_mount(library_path) || names_mount(preload);
  long fd = open_program(directory, path), result = 0;
  if (madfs_failed(fd)) return 0;
  if (named || program_names_mount((int)fd, PT_DYNAMIC)) {
    path_of((int)fd, host, sizeof host);
    if (*host == '/') result = stage(s, host, ~(int)fd, library_path, preload);
  }
  RAW(SYS_close, fd);
  return result == -ENOMEM || result == -E2BIG ? result : 0;  // else the loader says what it does not find
}

// --- in the program -------------------------------------------------------------------------------------------------

// "STAGE:NAME:NAME...", directories with a slash at their end, the innermost first.
static void remove_stage(const char *list) {
  char path[2 * MADFS_PATH_MAX];
  size_t n = 0;
  while (list[n] && list[n] != ':' && n < MADFS_PATH_MAX) n++;
  memcpy(path, list, n);
  list += n;
  while (*list) {
    size_t length = 0;
    for (list++; list[length] && list[length] != ':'; length++) continue;
    if (length < MADFS_PATH_MAX) {
      path[n] = '/';
      memcpy(path + n + 1, list, length);
      path[n + 1 + length] = 0;
      bool directory = length && list[length - 1] == '/';
      RAW(SYS_unlinkat, AT_FDCWD, path, directory ? AT_REMOVEDIR : 0);
    }
    list += length;
  }
  path[n] = 0;
  RAW(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR);
}

void madfs_startup_free(struct madfs_startup *s) {
  if (s->pages) RAW(SYS_munmap, s->pages, OUT);
  s->pages = NULL;
}

// What follows the number of the lock in MADFS_STAGE, or NULL.
static const char *stage_of(const char *text, int *lock) {
  unsigned long number;
  const char *list = text ? madfs_number(text, 10, &number) : NULL;
  if (!list || *list != ':') return NULL;
  *lock = (int)number;
  return list + 1;
}

void madfs_startup_failed(const char *text) {
  int lock;
  const char *list = stage_of(text, &lock);
  if (!list) return;
  remove_stage(list);
  RAW(SYS_close, lock);
  madfs_fds_forget(lock);
}

// Takes the variables of ours out, and puts back those that were replaced.
static void restore(char **environment) {
  char **to = environment, **from;
  const char *library_path = NULL, *preload = NULL;
  for (from = environment; *from; from++) {
    if (madfs_starts(*from, "MADFS_WAS=LD_LIBRARY_PATH=")) library_path = *from + 10;
    if (madfs_starts(*from, "MADFS_WAS=LD_PRELOAD=")) preload = *from + 10;
  }
  for (from = environment; *from; from++) {
    if (madfs_starts(*from, "MADFS_STAGE=") || madfs_starts(*from, "MADFS_WAS=")) continue;
    if (madfs_starts(*from, "LD_LIBRARY_PATH=")) {
      if (library_path) *to++ = (char *)library_path;
    } else if (preload && madfs_starts(*from, "LD_PRELOAD=")) {
      *to++ = (char *)preload;
    } else {
      *to++ = *from;
    }
  }
  *to = NULL;
}

void madfs_startup_done(const char *text, char **environment) {
  int lock;
  const char *list = stage_of(text, &lock);
  if (!list) return;
  size_t n = 0;
  while (list[n] && list[n] != ':' && n < sizeof madfs_settings.stage - 1) n++;
  memcpy(madfs_settings.stage, list, n);
  madfs_settings.stage[n] = 0;
  madfs_settings.stage_length = n;
  remove_stage(list);
  RAW(SYS_close, lock);
  restore(environment);
}
