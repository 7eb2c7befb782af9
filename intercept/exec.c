// SPDX-License-Identifier: Apache-2.0
// execve: the next program finds the table of open files, the working directory and this library.  A program that lies
// on the mount is copied to a memfd, which the kernel executes; a script is its interpreter with the script's path.
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "intercept.h"

enum {
  HEAD = 256,      // as much of a script's first line as Linux looks at
  SCRIPTS_MAX = 5, // interpreters that are scripts themselves, until ELOOP
  PAGE = 4096,
};

#ifndef MFD_EXEC
#define MFD_EXEC 0x10U
#endif

// What comes of the application's arguments.
struct program {
  int directory;
  const char *path;     // what to execute there
  unsigned long flags;  // of execveat
  int memory;           // the memfd of a program that lies on the mount, or -1
  int slot;             // of the open file that was named, or -1
  const char *name;     // its path then, or NULL
  char *const *arguments, *const *environment;  // the application's
  const char *before[3 * SCRIPTS_MAX];          // instead of its first argument, from the last to the first
  unsigned before_count;
  unsigned scripts;
  int loaded;           // the memfd of a program on the mount that the loader is told to execute, or -1
  size_t loaded_at;     // which argument that is
  bool loaded_named;    // the loader is told the program's name, too
  const char *library_path;  // what the loader is told, or NULL
  struct madfs_startup startup;
  char heads[SCRIPTS_MAX][HEAD + 1];
  char names[3][MADFS_PATH_MAX];  // the path in the mount, the script's, the host's that one led to
};

// --- the environment ------------------------------------------------------------------------------------------------

struct builder {
  char **list;  // grows upwards; text behind it
  char *text, *end;
  size_t count;
};

static void add(struct builder *b, const char *name, const char *value, const char *more) {
  char *at = b->text;
  b->list[b->count++] = at;
  for (const char *part = name; part; part = part == name ? value : part == value ? more : NULL)
    at += madfs_copy(at, (size_t)(b->end - at), part);
  b->text = at + 1;
}

// Whether one of the libraries in an LD_PRELOAD list is this library, of whatever version.
static bool preloads_us(const char *list) {
  static const char name[] = "libmadfs_intercept.so";
  for (; *list; list++)
    if (madfs_starts(list, name) &&
        (list[sizeof name - 1] == 0 || list[sizeof name - 1] == ':' || list[sizeof name - 1] == ' '))
      return true;
  return false;
}

// Pages for `size` bytes that stay until the thread's next execve.  They are the thread's, because a child of vfork
// that succeeds cannot give them back.
static char *exec_pages(struct madfs_thread *t, size_t size) {
  bool busy = t->exec_busy && t->exec_busy == (int)RAW(SYS_getpid);
  size = (size + PAGE - 1) & ~(size_t)(PAGE - 1);
  if (!busy && t->exec_size >= size) return t->exec_area;
  if (!busy && t->exec_area) RAW(SYS_munmap, t->exec_area, t->exec_size);
  t->exec_area = NULL;
  t->exec_size = 0;
  long got = RAW(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (madfs_failed(got)) return NULL;
  t->exec_area = (char *)got;
  t->exec_size = size;
  return t->exec_area;
}

// The length of a list of strings; -EFAULT when one of them cannot be read.
static long count_strings(char *const *list) {
  long count = 0;
  for (; list; count++) {
    const char *at = (const char *)&list[count];
    if (!arch_touch(at, false) || !arch_touch(at + sizeof *list - 1, false)) return -EFAULT;
    const char *text = (const char *)arch_peek(&list[count]);
    if (!text) break;
    while (arch_peek_byte(text)) text++;
    if (!arch_touch(text, false)) return -EFAULT;
  }
  return count;
}

// More text at the end of what was added last.
static void append(struct builder *b, const char *text) {
  b->text += madfs_copy(b->text - 1, (size_t)(b->end - b->text), text);
}

// The variables by which the program finds copies of its first libraries, and what they would be else.
static void add_startup(struct builder *b, struct madfs_thread *t, const struct madfs_startup *s,
                        const char *library_path, const char *preload) {
  char number[24];
  t->exec_stage = b->text + strlen("MADFS_STAGE=");
  add(b, "MADFS_STAGE=", madfs_decimal(number, (unsigned long)(s->lock < 0 ? INT32_MAX : s->lock)), ":");
  append(b, s->pages);
  add(b, "LD_LIBRARY_PATH=", s->library_path, NULL);
  if (library_path) add(b, "MADFS_WAS=LD_LIBRARY_PATH=", library_path, NULL);
  if (!*s->preload) return;
  bool ours = preloads_us(s->preload);
  add(b, "LD_PRELOAD=", ours ? "" : madfs_settings.library, ours ? NULL : ":");
  append(b, s->preload);
  add(b, "MADFS_WAS=LD_PRELOAD=", ours ? "" : madfs_settings.library, ours ? NULL : ":");
  append(b, preload);
}

static const char *variable(char *const *list, size_t count, const char *name) {
  for (size_t i = 0; i < count; i++)
    if (madfs_starts(list[i], name)) return list[i] + strlen(name);
  return NULL;
}

static void build_environment(struct builder *b, struct madfs_thread *t, const struct program *p, size_t count,
                              const char *preload) {
  char *const *theirs = p->environment;
  const struct madfs_startup *s = &p->startup;
  bool cluster = false, other = false, mount = false, version = false, trace = false;
  for (size_t i = 0; i < count; i++) {
    if (madfs_starts(theirs[i], "MADFS_CLUSTER=")) {
      cluster = true;
      other = strcmp(theirs[i] + 14, madfs_settings.cluster) != 0;
    }
    mount |= madfs_starts(theirs[i], "MADFS_MOUNT=");
    version |= madfs_starts(theirs[i], "MADFS_VERSION=");
    trace |= madfs_starts(theirs[i], "MADFS_TRACE=");
    if (madfs_starts(theirs[i], "MADFS_STATE=") || madfs_starts(theirs[i], "MADFS_CWD=") ||
        madfs_starts(theirs[i], "MADFS_PROGRAM=") || madfs_starts(theirs[i], "MADFS_CLUSTER_FD=") ||
        madfs_starts(theirs[i], "MADFS_STAGE=") || madfs_starts(theirs[i], "MADFS_WAS=") ||
        madfs_starts(theirs[i], "MADFS_NOFILE=") || madfs_starts(theirs[i], "MADFS_FSIZE=") ||
        madfs_starts(theirs[i], "MADFS_LOADED="))
      continue;
    if (s->pages && madfs_starts(theirs[i], "LD_LIBRARY_PATH=")) continue;
    if (s->pages && *s->preload && madfs_starts(theirs[i], "LD_PRELOAD=")) continue;
    if (preload && theirs[i] == preload - 11 && !preloads_us(preload)) continue;
    b->list[b->count++] = theirs[i];
  }
  if (s->pages) add_startup(b, t, s, variable(theirs, count, "LD_LIBRARY_PATH="), preload);
  if (s->pages && *s->preload) preload = s->preload;
  else if (!preload || !*preload) add(b, "LD_PRELOAD=", madfs_settings.library, NULL);
  else if (!preloads_us(preload)) {
    add(b, "LD_PRELOAD=", madfs_settings.library, ":");
    append(b, preload);
  }
  if (!cluster && madfs_settings.in_cluster) add(b, "MADFS_CLUSTER=", madfs_settings.cluster, NULL);
  if (!mount) add(b, "MADFS_MOUNT=", madfs_settings.mount, NULL);
  if (!version && madfs_settings.in_version) add(b, "MADFS_VERSION=", madfs_version, NULL);
  if (!trace && *madfs_settings.trace) add(b, "MADFS_TRACE=", madfs_settings.trace, NULL);
  char state[512];
  if (madfs_fds_state(state, sizeof state)) add(b, state, NULL, NULL);
  for (unsigned i = 0; i < MADFS_LIMITS; i++)
    if (madfs_limits_state(i, state, sizeof state)) add(b, state, NULL, NULL);
  if (!other && madfs_identity_state(state, sizeof state)) add(b, state, NULL, NULL);
  char number[24];
  if (madfs_cwd_get(t->scratch)) {
    add(b, "MADFS_CWD=", madfs_decimal(number, madfs_cwd_inode()), ":");
    append(b, t->scratch);
  }
  if (p->name) add(b, "MADFS_PROGRAM=", p->name, NULL);
  if (p->loaded >= 0) add(b, "MADFS_LOADED=", madfs_decimal(number, (unsigned)p->loaded), NULL);
  b->list[b->count] = NULL;
}

// --- programs on the mount ------------------------------------------------------------------------------------------

static void forget_memory(int fd) {
  if (fd < 0) return;
  RAW(SYS_close, fd);
  madfs_fds_forget(fd);
}

// An executable file in memory with the last part of a path for its name.
static long make_memory(const char *path) {
  const char *name = path;
  for (const char *at = path; *at; at++)
    if (*at == '/' && at[1]) name = at + 1;
  char title[64];
  madfs_copy(title, sizeof title, name);
  long fd = RAW(SYS_memfd_create, title, MFD_CLOEXEC | MFD_EXEC);
  if (fd == -EINVAL) fd = RAW(SYS_memfd_create, title, MFD_CLOEXEC);
  return madfs_fds_hide(fd);
}

// Copies the program at p->names[0] to a memfd.  MADFS_HOST_PATH: a link of it leads out of the mount.
static long copy_program(struct program *p, size_t length) {
  int ignored;
  long fd = make_memory(p->names[0]);
  if (madfs_failed(fd)) return fd;
  struct madfs_call call = {.number = CALL_program, .count = 3};
  call.arg[0] = (struct madfs_arg){.kind = MADFS_ARG_PATH, .text = p->names[0], .length = length};
  call.arg[1] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = (long)p->flags};
  call.arg[2] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = fd};
  if (p->slot >= 0) {  // which may have no name any more
    call.number = CALL_program_opened;
    call.count = 2;
    call.arg[0] = (struct madfs_arg){.kind = MADFS_ARG_FD, .value = (long)madfs_fd_handle(p->slot)};
    call.arg[1] = call.arg[2];
  }
  long result = madfs_runtime_call(&call, &ignored);
  if (result < 0) {
    forget_memory((int)fd);
    return result;
  }
  p->memory = (int)fd;
  return 0;
}

static bool is_blank(char c) { return c == ' ' || c == '\t'; }

// Takes "#!interpreter argument" apart as Linux does.  Not true: `head` is no such line, or not one that can be used.
static bool parse_head(char *head, size_t size, char **interpreter, char **argument) {
  char *at = head + 2, *end = head;
  if (size < 2 || head[0] != '#' || head[1] != '!') return false;
  while (end < head + size && *end && *end != '\n') end++;
  bool cut = end == head + HEAD;
  while (end > at && is_blank(end[-1])) end--;
  while (at < end && is_blank(*at)) at++;
  *interpreter = at;
  while (at < end && !is_blank(*at)) at++;
  if (at == *interpreter || (cut && at == end)) return false;
  *argument = NULL;
  if (at < end) {
    *at++ = 0;
    while (is_blank(*at)) at++;
    *argument = at;
  }
  *end = 0;
  return true;
}

// When the first bytes of `fd` say that another program interprets it: this becomes what is to be executed.
static long follow_script(struct program *p, int fd, const char *name) {
  char *head = p->heads[p->scripts < SCRIPTS_MAX ? p->scripts : 0], *interpreter, *argument;
  long size = RAW(SYS_pread64, fd, head, HEAD, 0);
  if (size < 2 || head[0] != '#' || head[1] != '!') return 0;
  if (!parse_head(head, (size_t)size, &interpreter, &argument)) return -ENOEXEC;
  if (p->scripts == SCRIPTS_MAX) return -ELOOP;
  p->scripts++;
  if (p->before_count) p->before_count--;  // the interpreter's name, which the path replaces
  p->before[p->before_count++] = name;
  if (argument) p->before[p->before_count++] = argument;
  p->before[p->before_count++] = interpreter;
  p->directory = AT_FDCWD;
  p->path = interpreter;
  p->flags = 0;
  return 1;
}

// Where p->path leads: PATH_HOST, PATH_OURS with the path in p->names[0], or -errno.
static int locate(struct program *p, size_t *length) {
  int slot = FD_HOST, magic = madfs_path_magic(p->path);
  p->slot = -1;
  if (magic >= 0) slot = madfs_fd_slot(magic);
  else if (!*p->path && (p->flags & AT_EMPTY_PATH)) slot = madfs_fd_slot(p->directory);
  else if (!*p->path) return madfs_path_concerns(p->directory, NULL) ? -ENOENT : PATH_HOST;
  else return madfs_path_locate(p->directory, p->path, p->names[0], length);
  if (slot == FD_INTERNAL) return -EBADF;
  if (slot == FD_HOST) return PATH_HOST;
  *length = madfs_slot_path(slot, p->names[0]);
  p->slot = slot;
  return PATH_OURS;
}

// Finds out what is executed in the end: p->memory, or p->path for the kernel.
static long resolve(struct program *p) {
  for (;;) {
    size_t length;
    int where = locate(p, &length);
    if (where != PATH_OURS) return where;
    long result = copy_program(p, length);
    if (result == MADFS_HOST_PATH) {
      madfs_copy(p->names[2], MADFS_PATH_MAX, madfs_local.thread->escaped);
      p->directory = AT_FDCWD;
      p->path = p->names[2];
      p->flags = 0;
      return 0;
    }
    if (result < 0) return result;
    // The interpreter gets the path that the caller gave, unless that means something in this process only.
    const char *name = p->path;
    if (p->scripts == 0 && (!*p->path || p->directory != AT_FDCWD || madfs_path_magic(p->path) >= 0)) {
      madfs_copy(p->names[1], MADFS_PATH_MAX, p->names[0]);
      name = p->names[1];
    }
    bool closes = *p->path != '/' && p->directory != AT_FDCWD && RAW(SYS_fcntl, p->directory, F_GETFD) & FD_CLOEXEC;
    result = follow_script(p, p->memory, name);
    if (result <= 0) {
      p->name = p->names[0];
      return result;
    }
    forget_memory(p->memory);
    p->memory = -1;
    bool readable = count_strings(p->arguments) >= 0 && count_strings(p->environment) >= 0;
    // Linux would name the script by a descriptor that the interpreter does not have.
    if (closes) return readable ? -ENOENT : -EFAULT;
  }
}

// A program of the host's whose loader lies on the mount becomes a copy, which can be told of a copy of that.
static long copy_host_program(struct program *p, int from) {
  long fd = make_memory(p->path), done;
  if (madfs_failed(fd)) return fd;
  while ((done = RAW(SYS_sendfile, fd, from, 0, 1 << 30)) > 0) continue;
  if (done < 0) {
    forget_memory((int)fd);
    return done;
  }
  p->memory = (int)fd;
  char name[40], number[24];
  size_t n = madfs_copy(name, sizeof name, "/proc/self/fd/");
  madfs_copy(name + n, sizeof name - n, madfs_decimal(number, (unsigned long)from));
  done = RAW(SYS_readlinkat, AT_FDCWD, name, p->names[0], MADFS_PATH_MAX - 1);
  p->names[0][done > 0 ? done : 0] = 0;
  p->name = p->names[0];
  return 0;
}

// A script of the host's may have an interpreter that only we can find: the kernel said ENOENT.
static long resolve_script(struct program *p) {
  size_t length;
  if (*p->path == 0 || locate(p, &length) != PATH_HOST) return -ENOENT;
  char *through = madfs_local.thread->through[0];
  if (madfs_links_follow(p->directory, p->path, !(p->flags & AT_SYMLINK_NOFOLLOW), through, &length) == PATH_OURS) {
    p->directory = AT_FDCWD;
    p->path = through;
    return resolve(p);
  }
  long fd = RAW(SYS_openat, p->directory, p->path, O_RDONLY | O_CLOEXEC, 0);
  if (madfs_failed(fd)) return -ENOENT;
  long result = follow_script(p, (int)fd, p->path);
  if (result == 0 && madfs_startup_loader((int)fd)) {
    result = copy_host_program(p, (int)fd);
    RAW(SYS_close, fd);
    return result;
  }
  RAW(SYS_close, fd);
  if (result <= 0 || locate(p, &length) != PATH_OURS) return -ENOENT;
  return resolve(p);
}

// --- the loader, executed by its name -------------------------------------------------------------------------------

static bool is_loader(const char *path) {
  const char *name = path;
  for (const char *at = path; *at; at++)
    if (*at == '/') name = at + 1;
  return madfs_starts(name, "ld-linux") || madfs_starts(name, "ld.so") || madfs_starts(name, "ld-2.");
}

// Which argument is the program, after the loader's own; 0: none.
static size_t find_program(struct program *p, size_t words) {
  static const char *const with_value[] = {"--library-path", "--glibc-hwcaps-prepend", "--glibc-hwcaps-mask",
                                           "--inhibit-rpath", "--audit", "--preload", "--argv0"};
  for (size_t i = 1; i < words; i++) {
    if (!madfs_starts(p->arguments[i], "--")) return i;
    for (unsigned k = 0; i + 1 < words && k < sizeof with_value / sizeof *with_value; k++) {
      if (strcmp(p->arguments[i], with_value[k])) continue;
      p->loaded_named |= k + 1 == sizeof with_value / sizeof *with_value;
      i++;
      if (k == 0) p->library_path = p->arguments[i];
      break;
    }
  }
  return 0;
}

// ld.so PROGRAM: the loader opens the program before anything of ours is there.  It gets a descriptor of a copy.
static void load_by_name(struct program *p, size_t words) {
  if (p->memory >= 0 || p->before_count || !is_loader(p->path)) return;
  size_t at = find_program(p, words), length;
  const char *path = at ? p->arguments[at] : "";
  bool slash = false;
  for (const char *c = path; *c; c++) slash |= *c == '/';
  if (!slash || strlen(path) >= MADFS_PATH_MAX) return;
  p->slot = -1;
  if (madfs_path_locate(AT_FDCWD, path, p->names[0], &length) != PATH_OURS || copy_program(p, length) != 0) return;
  p->loaded = p->memory;
  p->loaded_at = at;
  p->memory = -1;
  RAW(SYS_fcntl, p->loaded, F_SETFD, 0);
}

static void add_loader_arguments(struct builder *b, const struct program *p, size_t words) {
  char number[24];
  const char *library_path = p->startup.pages && p->library_path ? p->startup.library_path : NULL;
  for (size_t i = 0; i < words; i++) {
    if (i == p->loaded_at && !p->loaded_named) {
      add(b, "--argv0", NULL, NULL);
      b->list[b->count++] = p->arguments[i];
    }
    if (i == p->loaded_at) add(b, "/proc/self/fd/", madfs_decimal(number, (unsigned)p->loaded), NULL);
    else if (library_path && i && p->arguments[i] == p->library_path) add(b, library_path, NULL, NULL);
    else b->list[b->count++] = p->arguments[i];
  }
  b->list[b->count] = NULL;
}

// --- execve ---------------------------------------------------------------------------------------------------------

// The caller's environment with what the next program needs to be on the mount as this one is, and its arguments.
// MADFS_PRELOAD=0 in it says that it shall not: servers and mpirun are started so, also from a process that is
// preloaded itself.
static long build_lists(struct madfs_thread *t, struct program *p, char ***arguments, char ***environment) {
  const char *preload = NULL, *library_path;
  bool leave = false;
  long count = count_strings(p->environment), words = count_strings(p->arguments), result;
  if (count < 0 || words < 0) return -EFAULT;
  for (long i = 0; i < count; i++) {
    if (madfs_starts(p->environment[i], "LD_PRELOAD=")) preload = p->environment[i] + 11;
    leave |= strcmp(p->environment[i], "MADFS_PRELOAD=0") == 0;
  }
  library_path = variable(p->environment, (size_t)count, "LD_LIBRARY_PATH=");
  if (!leave) load_by_name(p, (size_t)words);
  bool loads = p->loaded >= 0;
  if (!leave && (result = madfs_startup_prepare(&p->startup, p->directory, p->path, loads ? p->loaded : p->memory,
                                                loads ? p->names[0] : p->name,
                                                p->library_path ? p->library_path : library_path, preload)) < 0)
    return result;
  size_t pointers = ((size_t)count + 16 + (size_t)words + p->before_count + 1) * sizeof(char *);
  size_t texts = (8 + p->before_count) * (size_t)MADFS_PATH_MAX + (preload ? 2 * strlen(preload) : 0);
  if (p->startup.pages)
    texts += strlen(p->startup.pages) + strlen(p->startup.library_path) + strlen(p->startup.preload) +
             (library_path ? strlen(library_path) : 0) + 3 * MADFS_PATH_MAX;
  char *pages = exec_pages(t, pointers + texts);
  if (!pages) return -ENOMEM;
  struct builder b = {.list = (char **)pages, .text = pages + pointers, .end = pages + pointers + texts};
  *environment = (char **)p->environment;
  if (!leave) {
    *environment = b.list;
    build_environment(&b, t, p, (size_t)count, preload);
    b.list += b.count + 1;
    b.count = 0;
  }
  *arguments = p->before_count || loads ? b.list : (char **)p->arguments;
  if (loads) add_loader_arguments(&b, p, (size_t)words);
  madfs_startup_free(&p->startup);
  if (!p->before_count) return 0;
  for (unsigned i = p->before_count; i > 0; i--) add(&b, p->before[i - 1], NULL, NULL);
  for (long i = 1; i < words; i++) b.list[b.count++] = p->arguments[i];
  b.list[b.count] = NULL;
  return 0;
}

// False: there is an interpreter of ours to try.
static bool exec_finish(struct madfs_thread *t) {
  struct madfs_frame *f = t->later_frame;
  bool again = t->exec_again;
  long result;
  t->later_frame = NULL;
  t->exec_busy = (int)RAW(SYS_getpid);
  t->exec_again = false;
  if (t->exec_number == SYS_execve) {
    result = RAW(SYS_execve, t->given[1], t->exec_list[0], t->exec_list[1]);
  } else {
    const char *path = t->exec_memory >= 0 ? "" : t->given[1];
    result = RAW(SYS_execveat, t->exec_directory, path, t->exec_list[0], t->exec_list[1], t->exec_flags);
  }
  t->exec_busy = 0;
  forget_memory(t->exec_memory);
  forget_memory(t->exec_loaded);
  madfs_startup_failed(t->exec_stage);
  if (result == -ENOENT && !again && t->exec_memory < 0) {
    t->exec_again = true;
    return false;
  }
  f->number = result;
  return true;
}

// execve keeps the signal mask, so it is done on the application's stack once our own is lifted.
static long execute(struct madfs_frame *f, struct program *p) {
  struct madfs_thread *t = madfs_local.thread;
  char **arguments, **environment;
  t->exec_stage = NULL;
  long result = build_lists(t, p, &arguments, &environment);
  if (result < 0) return result;
  if (environment != (char **)p->environment)
    madfs_unreached_warn(p->directory, p->name ? p->name : p->path, p->memory, arguments);
  madfs_copy(t->given[1], MADFS_PATH_MAX, p->path);
  t->exec_number = p->memory >= 0 || p->flags || p->directory != AT_FDCWD ? SYS_execveat : SYS_execve;
  t->exec_memory = p->memory;
  t->exec_loaded = p->loaded;
  t->exec_list[0] = arguments;
  t->exec_list[1] = environment;
  t->exec_directory = p->memory >= 0 ? p->memory : p->directory;
  t->exec_flags = p->memory >= 0 ? AT_EMPTY_PATH : p->flags;
  t->later = exec_finish;
  t->later_frame = f;
  return 0;
}

static enum madfs_verdict execute_at(struct madfs_frame *f, unsigned first, unsigned long flags) {
  struct madfs_thread *t = madfs_local.thread;
  const unsigned long *a = f->argument + first;
  long pages = RAW(SYS_mmap, 0, sizeof(struct program), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (madfs_failed(pages)) {
    f->number = pages;
    return MADFS_DONE;
  }
  struct program *p = (struct program *)pages;
  p->directory = first ? (int)f->argument[0] : AT_FDCWD;
  p->flags = flags;
  p->arguments = (char *const *)a[1];
  p->environment = (char *const *)a[2];
  p->path = t->given[0];
  p->memory = -1;
  p->loaded = -1;
  madfs_maps_sync();
  long result = madfs_user_text(t->given[0], MADFS_GIVEN_MAX, (const char *)a[0]);
  if (result >= 0) result = t->exec_again ? resolve_script(p) : resolve(p);
  bool host = result >= 0 && p->memory < 0 && p->path == t->given[0];
  if (result >= 0) madfs_fds_exec();
  if (result >= 0) result = execute(f, p);
  bool unreadable = host && result == -EFAULT;  // the kernel knows what comes before that
  if (result < 0) {
    f->number = result;
    t->exec_again = false;
    forget_memory(p->memory);
    forget_memory(p->loaded);
  }
  RAW(SYS_munmap, pages, sizeof *p);
  if (!unreadable) return MADFS_DONE;
  f->number = t->number;
  return MADFS_PASS;
}

static bool always(struct madfs_frame *f) { return (void)f, true; }

static enum madfs_verdict execve_work(struct madfs_frame *f) { return execute_at(f, 0, 0); }
static enum madfs_verdict execveat_work(struct madfs_frame *f) { return execute_at(f, 1, (unsigned)f->argument[4]); }

const struct madfs_shim madfs_shim_execve = {always, execve_work};
const struct madfs_shim madfs_shim_execveat = {always, execveat_work};

void madfs_loaded(const char *text) {
  unsigned long fd;
  if (text && madfs_number(text, 10, &fd)) RAW(SYS_close, fd);
}
