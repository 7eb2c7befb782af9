// SPDX-License-Identifier: Apache-2.0
// Programs that the loader will not preload: static ones, those of another user, those of another architecture.  To
// them our descriptors are empty files that cannot be written, and our paths do not exist.  When one of them is
// executed with something of ours in its hands, a line says so: silence could be taken for success.
#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "intercept.h"

enum { HEAD = 4096, SCRIPT_LINE = 256, SCRIPTS_MAX = 5, STANDARD = 3 };

struct target {
  int directory, memory;  // memory: a copy of the program, or -1
  const char *path;
  char head[HEAD + 1];
  long size;  // of the head
  struct stat file;
};

static bool names_mount(const char *text) {
  const char *mount = madfs_settings.mount;
  size_t n = madfs_settings.mount_length;
  for (; *text; text++)
    if (*text == *mount && madfs_starts(text, mount) && (!text[n] || text[n] == '/')) return true;
  return false;
}

// Whether the program is given anything of ours: a descriptor as its standard input or output, the working directory,
// or a path.
static bool has_ours(char *const *arguments) {
  for (int fd = 0; fd < STANDARD; fd++)
    if (madfs_fd_slot(fd) >= 0) return true;
  if (madfs_cwd_virtual()) return true;
  for (; arguments && *arguments; arguments++)
    if (names_mount(*arguments)) return true;
  return false;
}

static bool read_head(struct target *t) {
  long fd = t->memory;
  if (fd < 0) fd = RAW(SYS_openat, t->directory, t->path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0);
  if (madfs_failed(fd)) return false;
  t->size = RAW(SYS_pread64, fd, t->head, HEAD, 0);
  bool good = t->size > 0 && !madfs_failed(RAW(SYS_fstat, fd, &t->file));
  if (t->memory < 0) RAW(SYS_close, fd);
  if (good) t->head[t->size] = 0;
  return good;
}

// The interpreter that the script's first line names, terminated within it; NULL when it is no script.
static char *interpreter(struct target *t) {
  char *at = t->head + 2;
  if (t->size < 3 || t->head[0] != '#' || t->head[1] != '!') return NULL;
  t->head[t->size < SCRIPT_LINE ? t->size : SCRIPT_LINE] = 0;
  while (*at == ' ' || *at == '\t') at++;
  char *end = at;
  while (*end && *end != ' ' && *end != '\t' && *end != '\n') end++;
  *end = 0;
  return *at ? at : NULL;
}

static bool is_loader(const char *path) {
  const char *name = path;
  for (; *path; path++)
    if (*path == '/') name = path + 1;
  return madfs_starts(name, "ld-linux") || madfs_starts(name, "ld-musl") || madfs_starts(name, "ld64.so") ||
         madfs_starts(name, "ld.so");
}

static bool has_interpreter(const struct target *t) {
  const Elf64_Ehdr *head = (const Elf64_Ehdr *)t->head;
  if (head->e_phentsize != sizeof(Elf64_Phdr) ||
      head->e_phoff + head->e_phnum * sizeof(Elf64_Phdr) > (unsigned long)t->size)
    return true;  // it cannot be told
  const Elf64_Phdr *segments = (const Elf64_Phdr *)(t->head + head->e_phoff);
  for (unsigned i = 0; i < head->e_phnum; i++)
    if (segments[i].p_type == PT_INTERP) return true;
  return false;
}

static bool has_rights(const struct target *t) {
  if (t->memory >= 0) return false;
  if ((t->file.st_mode & S_ISUID) && t->file.st_uid != (uid_t)RAW(SYS_getuid)) return true;
  if ((t->file.st_mode & S_ISGID) && t->file.st_gid != (gid_t)RAW(SYS_getgid)) return true;
  return t->directory == AT_FDCWD && RAW(SYS_geteuid) != 0 &&
         !madfs_failed(RAW(SYS_getxattr, t->path, "security.capability", 0, 0));
}

// Why the program is not preloaded, or NULL when it is.
static const char *why_not(const struct target *t) {
  const Elf64_Ehdr *head = (const Elf64_Ehdr *)t->head;
  if (t->size < (long)sizeof *head || memcmp(head->e_ident, ELFMAG, SELFMAG) != 0) return NULL;
  if (head->e_ident[EI_CLASS] != ELFCLASS64) return " is a 32-bit program";
  if (head->e_machine != ARCH_ELF_MACHINE) return " is built for another kind of processor";
  if (!has_interpreter(t) && !is_loader(t->path)) return " is statically linked";
  return has_rights(t) ? " runs with rights that its file gives" : NULL;
}

static void say(const char *path, const char *why) {
  char text[MADFS_PATH_MAX + 256];
  size_t n = 0;
  const char *const parts[] = {"madfs: warning: ", path, why, ", so it cannot be preloaded and does not see the mount ",
                               madfs_settings.mount, " (see `madfs doctor`)\n"};
  for (unsigned i = 0; i < sizeof parts / sizeof *parts; i++) n += madfs_copy(text + n, sizeof text - n, parts[i]);
  int slot = madfs_fd_slot(2), ignored;
  if (slot < 0) {
    RAW(SYS_write, 2, text, n);
    return;
  }
  struct madfs_call call = {.number = CALL_write, .count = 3};
  call.arg[0] = (struct madfs_arg){.kind = MADFS_ARG_FD, .value = (long)madfs_fd_handle(slot)};
  call.arg[1] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = (long)text};
  call.arg[2] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = (long)n};
  madfs_runtime_call(&call, &ignored);
}

static uint64_t sum_of(const char *text) {
  uint64_t sum = 0xcbf29ce484222325;
  for (; *text; text++) sum = (sum ^ (unsigned char)*text) * 0x100000001b3;
  return sum;
}

void madfs_unreached_warn(int directory, const char *path, int memory, char *const *arguments) {
  if (!has_ours(arguments)) return;
  struct target t = {.directory = directory, .memory = memory, .path = path};
  char *next;
  for (int i = 0; i <= SCRIPTS_MAX && read_head(&t); i++) {
    if (!(next = interpreter(&t))) {
      const char *why = why_not(&t);
      if (why && madfs_fds_say_once(sum_of(t.path))) say(t.path, why);
      return;
    }
    // The name stands in what is read next.
    madfs_copy(madfs_local.thread->scratch, MADFS_PATH_MAX, next);
    t.path = madfs_local.thread->scratch;
    t.directory = AT_FDCWD;
    t.memory = -1;
  }
}
