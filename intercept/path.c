// SPDX-License-Identifier: Apache-2.0
// Which paths are ours, and the working directory when it is.
//
// A path is ours when, read from left to right, it comes to the mount: at a component's end, so /madfs2 is not inside
// /madfs.  "//", "." and ".." are resolved on the way there only; what follows is the runtime's to resolve, because
// symbolic links matter there, and it says when the path leaves the mount again (MADFS_HOST_PATH).
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "intercept.h"

// What the functions of the first part read may be anything that an application passes: it ends where memory does.
#define BYTE(at) arch_peek_byte(at)

static bool readable(const char *path) {
  return (unsigned long)path >= MADFS_POINTER_MIN && (unsigned long)path < ARCH_POINTER_MAX;
}

static bool dots(const char *component, bool *parent) {
  if (BYTE(component) != '.') return false;
  *parent = BYTE(component + 1) == '.';
  char end = BYTE(component + (*parent ? 2 : 1));
  return end == 0 || end == '/';
}

// Whether an absolute path must be resolved before one can say where it leads.
static bool is_odd(const char *path) {
  bool parent;
  if (!arch_has_dots(path, false)) return false;
  for (char c; (c = BYTE(path)); path++)
    if (c == '/' && (BYTE(path + 1) == '/' || dots(path + 1, &parent))) return true;
  return false;
}

static bool under_mount(const char *path) {
  const char *mount = madfs_settings.mount;
  while (*mount && *mount == BYTE(path)) mount++, path++;
  if (*mount) return false;
  char end = BYTE(path);
  return end == 0 || end == '/';
}

// What follows in a path into the stage of this program's first libraries, which stands for the mount; or NULL.
static const char *in_stage(const char *path) {
  const char *stage = madfs_settings.stage;
  if (!*stage) return NULL;
  while (*stage && *stage == BYTE(path)) stage++, path++;
  return !*stage && (!BYTE(path) || BYTE(path) == '/') ? path : NULL;
}

// Whether the component at `path` is one of the mount's, as "b" is of "/a/b".
static bool is_on_the_way(const char *path) {
  char first = BYTE(path);
  for (const char *mount = madfs_settings.mount; *mount; mount++) {
    if (mount[0] != '/' || mount[1] != first) continue;
    const char *at = path, *name = mount + 1;
    while (*name && *name != '/' && *name == BYTE(at)) name++, at++;
    char end = BYTE(at);
    if ((*name == 0 || *name == '/') && (end == 0 || end == '/')) return true;
  }
  return false;
}

// Whether a relative path may lead into the mount from a directory outside it: upwards, or by a name in its path.
static bool may_enter(const char *path) {
  bool parent = false, begins = true;
  if (arch_has_dots(path, true)) {
    char c;
    for (const char *at = path; (c = BYTE(at)); at++) {
      if (begins && dots(at, &parent) && parent) return true;
      begins = c == '/';
    }
    while (dots(path, &parent)) {
      while ((c = BYTE(path)) && c != '/') path++;
      while (BYTE(path) == '/') path++;
    }
  }
  return is_on_the_way(path);
}

static bool through_link(const char *path);
static size_t cwd_read(char out[MADFS_PATH_MAX], uint64_t *inode);

static bool base_is_ours(int directory) {
  return directory == AT_FDCWD ? madfs_cwd_virtual() : madfs_fd_concerns(directory);
}

bool madfs_path_concerns(int directory, const char *path) {
  if (!path) return base_is_ours(directory);
  if (!readable(path)) return false;
  if (BYTE(path) != '/') return base_is_ours(directory) || may_enter(path);
  // What most paths are: plain, and the second letter says that it is neither ours nor in /dev or /proc.
  char second = BYTE(path + 1);
  if (second != madfs_settings.mount[1] && second != 'd' && second != 'p' && second != madfs_settings.stage[1] &&
      !arch_has_dots(path, false))
    return false;
  return under_mount(path) || in_stage(path) || is_odd(path) || through_link(path);
}

static bool begins_with(const char *path, const char *prefix) {
  while (*prefix && *prefix == BYTE(path)) prefix++, path++;
  return !*prefix;
}

// The text after a number, or NULL when there is none.
static const char *number_after(const char *at, unsigned long *value) {
  const char *start = at;
  *value = 0;
  for (char c; (c = BYTE(at)) >= '0' && c <= '9' && *value <= INT32_MAX; at++)
    *value = *value * 10 + (unsigned long)(c - '0');
  return at == start || *value > INT32_MAX ? NULL : at;
}

static const char *name_after(const char *at, const char *name) {
  return begins_with(at, name) ? at + strlen(name) : NULL;
}

// What follows "/proc/self" and its synonyms; NULL when the path is of no process or of another one.
static const char *own_process(const char *path) {
  unsigned long number;
  const char *at = name_after(path, "/proc/"), *after;
  if (!at) return NULL;
  if ((after = name_after(at, "self"))) at = after;
  else if ((after = name_after(at, "thread-self"))) return after;
  else if ((after = number_after(at, &number)) && number == (unsigned long)RAW(SYS_getpid)) at = after;
  else return NULL;
  const char *task = name_after(at, "/task/");
  if (task && (after = number_after(task, &number))) return after;
  return at;
}

// Links of the kernel's that mean something of ours: which one, its descriptor, and what follows it in the path.
enum { LINK_NONE, LINK_FD, LINK_CWD, LINK_ROOT, LINK_PROGRAM };

static int link_of(const char *path, int *fd, const char **rest) {
  static const char *const standard[] = {"/dev/stdin", "/dev/stdout", "/dev/stderr"};
  unsigned long number;
  int which = LINK_NONE;
  if (!readable(path) || (BYTE(path + 1) != 'd' && BYTE(path + 1) != 'p')) return LINK_NONE;
  const char *own = own_process(path), *after = NULL, *digits = name_after(path, "/dev/fd/");
  if (own) digits = name_after(own, "/fd/");
  if (digits && (after = number_after(digits, &number))) {
    *fd = (int)number;
    which = LINK_FD;
  } else if (own && (after = name_after(own, "/cwd"))) {
    which = LINK_CWD;
  } else if (own && (after = name_after(own, "/root"))) {
    which = LINK_ROOT;
  } else if (own && (after = name_after(own, "/exe"))) {
    which = LINK_PROGRAM;
  }
  for (int i = 0; !own && !digits && i < 3; i++) {
    if (!(after = name_after(path, standard[i]))) continue;
    *fd = i;
    which = LINK_FD;
    break;
  }
  if (!which || (BYTE(after) && BYTE(after) != '/')) return LINK_NONE;
  *rest = after;
  return which;
}

bool madfs_path_program(const char *path) {
  const char *rest;
  int fd;
  return madfs_settings.program[0] && link_of(path, &fd, &rest) == LINK_PROGRAM && !BYTE(rest);
}

int madfs_path_magic(const char *path) {
  const char *rest;
  int fd;
  if (atomic_load(&madfs_fds_top) < 0 || link_of(path, &fd, &rest) != LINK_FD || BYTE(rest)) return -1;
  return madfs_fd_slot(fd) >= 0 ? fd : -1;
}

bool madfs_path_cwd(const char *path) {
  const char *rest;
  int fd;
  return madfs_cwd_virtual() && link_of(path, &fd, &rest) == LINK_CWD && !BYTE(rest);
}

// Whether the path goes through one of these links into the mount, perhaps.
static bool through_link(const char *path) {
  const char *rest;
  int fd;
  switch (link_of(path, &fd, &rest)) {
    case LINK_FD: return madfs_fd_slot(fd) >= 0;
    case LINK_CWD: return madfs_cwd_virtual();
    case LINK_ROOT: return BYTE(rest) != 0;
    case LINK_PROGRAM: return madfs_settings.program[0] && !BYTE(rest);
    default: return false;
  }
}

bool madfs_path_link(const char *path) {
  const char *rest;
  int fd;
  return link_of(path, &fd, &rest) && !BYTE(rest) && through_link(path);
}

// Resolves an absolute `text` up to the mount.
static int enter(const char *text, char *out, size_t *length) {
  size_t n = 0;
  for (;;) {
    bool parent;
    while (*text == '/') text++;
    if (!*text) return PATH_HOST;
    const char *end = text;
    while (*end && *end != '/') end++;
    if (dots(text, &parent)) {
      while (parent && n && out[--n] != '/') continue;
      text = end;
      continue;
    }
    size_t size = (size_t)(end - text);
    if (n + 1 + size >= MADFS_PATH_MAX) return -ENAMETOOLONG;
    out[n++] = '/';
    memcpy(out + n, text, size);
    n += size;
    text = end;
    if (n != madfs_settings.mount_length || memcmp(out, madfs_settings.mount, n) != 0) continue;
    size_t rest = strlen(text);
    if (n + rest >= MADFS_PATH_MAX) return -ENAMETOOLONG;
    memcpy(out + n, text, rest + 1);
    *length = n + rest;
    return PATH_OURS;
  }
}

static int join(size_t base, const char *path, size_t size, char *out, size_t *length) {
  if (base + 1 + size >= MADFS_PATH_MAX) return -ENAMETOOLONG;
  if (size) out[base++] = '/';
  memcpy(out + base, path, size);
  out[base + size] = 0;
  *length = base + size;
  return PATH_OURS;
}

// The same, from a directory that is meant by its inode, whatever has its name now: pymadfs/removed.py.
static int join_inode(size_t base, uint64_t inode, const char *path, size_t size, char *out, size_t *length) {
  char number[24];
  const char *digits = madfs_decimal(number, inode & ~MADFS_GONE);
  if (base + 1 + strlen(digits) >= MADFS_PATH_MAX) return -ENAMETOOLONG;
  out[base++] = 0;
  base += madfs_copy(out + base, MADFS_PATH_MAX - base, digits);
  return join(base, path, size, out, length);
}

static int join_to(size_t base, uint64_t inode, const char *path, size_t size, char *out, size_t *length) {
  if (size >= MADFS_GIVEN_MAX) return -ENAMETOOLONG;
  bool by_inode = inode & MADFS_GONE || madfs_local.thread->by_inode;
  if (MADFS_UNLIKELY(by_inode) && inode > MADFS_ROOT) return join_inode(base, inode, path, size, out, length);
  return join(base, path, size, out, length);
}

// A relative path from a directory outside the mount.
static int from_outside(int directory, const char *path, size_t size, char *out, size_t *length) {
  char name[40], number[24], *scratch = madfs_local.thread->scratch;
  long n;
  if (!may_enter(path)) return PATH_HOST;
  if (directory == AT_FDCWD) {
    n = RAW(SYS_getcwd, scratch, MADFS_PATH_MAX) - 1;
  } else {
    size_t at = madfs_copy(name, sizeof name, "/proc/self/fd/");
    madfs_copy(name + at, sizeof name - at, madfs_decimal(number, (unsigned)directory));
    n = RAW(SYS_readlinkat, AT_FDCWD, name, scratch, MADFS_PATH_MAX - 1);
  }
  if (n <= 0 || scratch[0] != '/' || (size_t)n + 1 + size >= MADFS_PATH_MAX) return PATH_HOST;
  size_t joined;
  join((size_t)n, path, size, scratch, &joined);
  return enter(scratch, out, length);
}

// An absolute path through a link of the kernel's to something of ours.
static int behind_link(const char *path, char *out, size_t *length) {
  const char *rest;
  int fd, slot;
  size_t base = 0;
  uint64_t inode = 0;
  switch (link_of(path, &fd, &rest)) {
    case LINK_FD:
      slot = *rest ? madfs_fd_slot(fd) : FD_HOST;
      if (slot < 0) break;
      base = madfs_slot_path(slot, out);
      inode = madfs_slot_inode(slot);
      break;
    case LINK_CWD:
      base = cwd_read(out, &inode);
      if (!*rest) inode = 0;  // what the link says
      break;
    case LINK_ROOT: return *rest && under_mount(rest) ? madfs_path_locate(AT_FDCWD, rest, out, length) : PATH_HOST;
    case LINK_PROGRAM:
      if (!*rest) base = madfs_copy(out, MADFS_PATH_MAX, madfs_settings.program);
      break;
    default: break;
  }
  return base ? join_to(base, inode, rest, strlen(rest), out, length) : PATH_HOST;
}

int madfs_path_locate(int directory, const char *path, char out[MADFS_PATH_MAX], size_t *length) {
  size_t size = strlen(path);
  if (*path == '/') {
    if (size >= MADFS_GIVEN_MAX) return PATH_HOST;  // the kernel's answer is ENAMETOOLONG
    if (under_mount(path)) {
      memcpy(out, path, size + 1);
      *length = size;
      return PATH_OURS;
    }
    const char *inside = in_stage(path);
    if (inside) {
      *length = madfs_copy(out, MADFS_PATH_MAX, madfs_settings.mount);
      *length += madfs_copy(out + *length, MADFS_PATH_MAX - *length, inside);
      return PATH_OURS;
    }
    int where = behind_link(path, out, length);
    if (where != PATH_HOST) return where;
    return is_odd(path) ? enter(path, out, length) : PATH_HOST;
  }
  if (directory == AT_FDCWD) {
    uint64_t inode;
    size_t base = cwd_read(out, &inode);
    if (base) return join_to(base, inode, path, size, out, length);
  } else {
    int slot = madfs_fd_slot(directory);
    if (slot == FD_INTERNAL) return -EBADF;
    if (slot >= 0) return join_to(madfs_slot_path(slot, out), madfs_slot_inode(slot), path, size, out, length);
  }
  return size >= MADFS_GIVEN_MAX ? PATH_HOST : from_outside(directory, path, size, out, length);
}

// --- the working directory ------------------------------------------------------------------------------------------

// Read without a lock: `version` is odd while it changes.
static struct {
  _Atomic unsigned version;
  _Atomic size_t length;  // 0: the working directory is the kernel's
  _Atomic uint64_t moves;  // renames that it has followed
  _Atomic uint64_t inode;  // its number, with MADFS_GONE once it was removed
  char path[MADFS_PATH_MAX];
  struct madfs_lock lock;
} cwd;

// A child of vfork has its own working directory, but its parent's memory.
static struct madfs_thread *own_cwd(void) {
  struct madfs_thread *t = madfs_local.thread;
  return MADFS_UNLIKELY(madfs_local.vfork_depth) && madfs_in_vfork() && t && t->cwd_changed ? t : NULL;
}

bool madfs_cwd_virtual(void) {
  const struct madfs_thread *t = own_cwd();
  return t ? t->cwd_length != 0 : atomic_load_explicit(&cwd.length, memory_order_relaxed) != 0;
}

// Directories above were renamed.
static void cwd_follow(void) {
  uint64_t count = madfs_moves_count();
  madfs_lock(&cwd.lock);
  size_t length = atomic_load(&cwd.length);
  uint64_t inode = atomic_load(&cwd.inode);
  atomic_fetch_add(&cwd.version, 1);
  if (length) madfs_moves_follow(atomic_load(&cwd.moves), count, cwd.path, &length, &inode);
  atomic_store(&cwd.length, length);
  atomic_store(&cwd.inode, inode);
  atomic_store(&cwd.moves, count);
  atomic_fetch_add(&cwd.version, 1);
  madfs_unlock(&cwd.lock);
}

static size_t cwd_read(char out[MADFS_PATH_MAX], uint64_t *inode) {
  const struct madfs_thread *t = own_cwd();
  if (!t && atomic_load(&cwd.length) && atomic_load(&cwd.moves) != madfs_moves_count()) cwd_follow();
  if (t) {
    memcpy(out, t->cwd, t->cwd_length + 1);
    *inode = t->cwd_inode;
    return t->cwd_length;
  }
  for (;;) {
    unsigned version = atomic_load(&cwd.version);
    size_t length = atomic_load(&cwd.length);
    *inode = atomic_load(&cwd.inode);
    memcpy(out, cwd.path, length);
    out[length] = 0;
    atomic_thread_fence(memory_order_acquire);
    if (!(version & 1) && atomic_load(&cwd.version) == version) return length;
    arch_pause();
  }
}

size_t madfs_cwd_get(char out[MADFS_PATH_MAX]) {
  uint64_t inode;
  return cwd_read(out, &inode);
}

uint64_t madfs_cwd_inode(void) {
  const struct madfs_thread *t = own_cwd();
  return t ? t->cwd_inode : atomic_load(&cwd.inode);
}

void madfs_cwd_gone(uint64_t inode) {
  struct madfs_thread *t = own_cwd();
  if (t && t->cwd_inode == inode) t->cwd_inode |= MADFS_GONE;
  if (!t) atomic_compare_exchange_strong(&cwd.inode, &inode, inode | MADFS_GONE);
}

static void cwd_store(const char *path, size_t length, uint64_t inode) {
  struct madfs_thread *t = madfs_local.thread;
  if (madfs_in_vfork() && t) {
    t->cwd_changed = true;
    t->cwd_length = length;
    t->cwd_inode = inode;
    memcpy(t->cwd, path, length);
    t->cwd[length] = 0;
    return;
  }
  madfs_lock(&cwd.lock);
  atomic_fetch_add(&cwd.version, 1);
  memcpy(cwd.path, path, length);
  cwd.path[length] = 0;
  atomic_store(&cwd.length, length);
  atomic_store(&cwd.inode, inode);
  atomic_store(&cwd.moves, madfs_moves_count());
  atomic_fetch_add(&cwd.version, 1);
  madfs_unlock(&cwd.lock);
}

// While the working directory is in the mount, the kernel's is a directory that no longer exists: whatever relative
// path slips past us fails with ENOENT there, and creates nothing.
static void park(void) {
  static const char *const places[] = {"/tmp", "/dev/shm", "/run", "/var/tmp", NULL};
  char name[64], number[24];
  for (int i = 0; places[i]; i++) {
    size_t n = madfs_copy(name, sizeof name, places[i]);
    n += madfs_copy(name + n, sizeof name - n, "/.madfs-cwd-");
    madfs_copy(name + n, sizeof name - n, madfs_decimal(number, (unsigned long)RAW(SYS_gettid)));
    if (madfs_failed(RAW(SYS_mkdirat, AT_FDCWD, name, 0700))) continue;
    bool there = !madfs_failed(RAW(SYS_chdir, name));
    RAW(SYS_unlinkat, AT_FDCWD, name, AT_REMOVEDIR);
    if (there) return;
  }
  RAW(SYS_chdir, "/proc");  // nobody can create anything there
}

void madfs_cwd_set(const char *path, size_t length, uint64_t inode) {
  if (!length || length >= MADFS_PATH_MAX) return;
  if (!madfs_cwd_virtual()) park();
  if (!madfs_in_vfork()) madfs_fds_need();  // children that rename it tell so there
  cwd_store(path, length, inode);
}

void madfs_cwd_hold(bool hold) {
  if (hold) madfs_lock(&cwd.lock);
  else madfs_unlock(&cwd.lock);
}

void madfs_cwd_clear(void) {
  if (madfs_cwd_virtual()) cwd_store("", 0, 0);
}

static enum madfs_verdict answer(struct madfs_frame *f, long result) {
  f->number = result;
  return MADFS_DONE;
}

// The runtime looked at the directory: it is ours and madfs_cwd_set() was called, or it lies outside.
static enum madfs_verdict changed(struct madfs_frame *f, const struct madfs_call *call) {
  int which;
  long result = madfs_runtime_call(call, &which);
  if (result == MADFS_HOST_PATH) {
    result = RAW(SYS_chdir, madfs_local.thread->escaped);
    if (!madfs_failed(result)) madfs_cwd_clear();
  }
  return answer(f, result);
}

// fchdir(), and chdir("/proc/self/fd/N").
static enum madfs_verdict enter_slot(struct madfs_frame *f, int slot) {
  struct madfs_call call = {.number = CALL_chdir_fd, .count = 1};
  call.arg[0] = (struct madfs_arg){.kind = MADFS_ARG_FD, .value = (long)madfs_fd_handle(slot)};
  return changed(f, &call);
}

// Whether the directory `path` is still there, and has the number `inode` unless that is 0.
static long check_directory(const char *path, size_t length, uint64_t inode) {
  struct stat file;
  int ignored;
  struct madfs_call call = {.number = CALL_newfstatat, .count = 3};
  call.arg[0] = (struct madfs_arg){.kind = MADFS_ARG_PATH, .text = path, .length = length};
  call.arg[1] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = (long)&file};
  call.arg[2] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = AT_SYMLINK_NOFOLLOW};
  long result = madfs_runtime_call(&call, &ignored);
  if (result == 0 && inode > MADFS_ROOT && file.st_ino != inode) return -ENOENT;
  return result == -ENOENT || result == -ENOTDIR ? -ENOENT : 0;
}

// Whether a path begins in a directory of ours by a step up or on the spot, which leads somewhere also when that has
// lost its name; but not when a name after it may be what is not there.
bool madfs_path_is_step(int directory, const char *path) {
  bool parent = false, up = false;
  char *base = madfs_local.thread->scratch;
  size_t length;
  if (!BYTE(path) || BYTE(path) == '/') return false;
  while (dots(path, &parent)) {
    up |= parent;
    while (BYTE(path) && BYTE(path) != '/') path++;
    while (BYTE(path) == '/') path++;
  }
  if (BYTE(path) && !up) return false;
  if (madfs_path_locate(directory, "", base, &length) != PATH_OURS) return false;
  return !BYTE(path) || check_directory(base, length, 0) == -ENOENT;
}

static bool locate_by_inode(const char *path, char out[MADFS_PATH_MAX], size_t *length) {
  madfs_local.thread->by_inode = true;
  int where = madfs_path_locate(AT_FDCWD, path, out, length);
  madfs_local.thread->by_inode = false;
  return where == PATH_OURS;
}

static bool chdir_concerns(struct madfs_frame *f) { return (void)f, true; }

static enum madfs_verdict chdir_work(struct madfs_frame *f) {
  const char *path = madfs_local.thread->given[0];
  char *out = madfs_local.thread->path[0];
  size_t length;
  long given = madfs_user_text(madfs_local.thread->given[0], MADFS_GIVEN_MAX, (const char *)f->argument[0]);
  if (given < 0) return answer(f, given);
  int magic = madfs_path_magic(path);
  if (magic >= 0) return enter_slot(f, madfs_fd_slot(magic));
  int where = madfs_path_locate(AT_FDCWD, path, out, &length);
  if (where < 0) return answer(f, where);
  if (where == PATH_HOST) {
    long result = RAW(SYS_chdir, path);
    if (!madfs_failed(result)) madfs_cwd_clear();
    if (result != -ENOENT || !madfs_links_suspect(AT_FDCWD, path)) return answer(f, result);
    if (madfs_links_follow(AT_FDCWD, path, true, out, &length) != PATH_OURS) return answer(f, result);
  }
  if (!*path) return answer(f, -ENOENT);
  struct madfs_call call = {.number = CALL_chdir_path, .count = 1};
  call.arg[0] = (struct madfs_arg){.kind = MADFS_ARG_PATH, .text = out, .length = length};
  enum madfs_verdict verdict = changed(f, &call);
  if (f->number != -ENOENT || !madfs_path_is_step(AT_FDCWD, path)) return verdict;
  return locate_by_inode(path, out, &call.arg[0].length) ? changed(f, &call) : verdict;
}

const struct madfs_shim madfs_shim_chdir = {chdir_concerns, chdir_work};

static bool fchdir_concerns(struct madfs_frame *f) {
  return madfs_cwd_virtual() || madfs_fd_concerns((int)f->argument[0]);
}

static enum madfs_verdict fchdir_work(struct madfs_frame *f) {
  int slot = madfs_fd_slot((int)f->argument[0]);
  if (slot == FD_INTERNAL) return answer(f, -EBADF);
  if (slot == FD_HOST) {
    long result = RAW(SYS_fchdir, f->argument[0]);
    if (!madfs_failed(result)) madfs_cwd_clear();
    return answer(f, result);
  }
  return enter_slot(f, slot);
}

const struct madfs_shim madfs_shim_fchdir = {fchdir_concerns, fchdir_work};

static bool getcwd_concerns(struct madfs_frame *f) { return (void)f, madfs_cwd_virtual(); }

// Enters the working directory anew when others have renamed it; false: it was removed.
static bool find_cwd(void) {
  char *path = madfs_local.thread->path[0];
  int ignored;
  struct madfs_call call = {.number = CALL_chdir_path, .count = 1};
  if (!locate_by_inode(".", path, &call.arg[0].length)) return false;
  call.arg[0].kind = MADFS_ARG_PATH;
  call.arg[0].text = path;
  return !madfs_failed(madfs_runtime_call(&call, &ignored)) && !(madfs_cwd_inode() & MADFS_GONE);
}

static enum madfs_verdict getcwd_work(struct madfs_frame *f) {
  char *path = madfs_local.thread->scratch;
  size_t size = madfs_cwd_get(path) + 1;
  if (size == 1) return MADFS_PASS;
  long gone = check_directory(path, size - 1, madfs_cwd_inode());
  if (gone && !find_cwd()) return answer(f, gone);
  if (gone) size = madfs_cwd_get(path) + 1;
  if (size > f->argument[1]) return answer(f, -ERANGE);
  return answer(f, madfs_user_out((char *)f->argument[0], path, size) ? (long)size : -EFAULT);
}

const struct madfs_shim madfs_shim_getcwd = {getcwd_concerns, getcwd_work};
