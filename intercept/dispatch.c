// SPDX-License-Identifier: Apache-2.0
// The hot path.  madfs_filter() runs on the application's stack at every system call of a class that may be ours, and
// lets go what is not within nanoseconds.  What may be ours goes on with asynchronous signals blocked, on the thread's
// hook stack: canonical arguments are built from the row, and the runtime answers.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "intercept.h"

#define AT(d, p) {PARAMETER_AT, d, p, 0}
#define AT_CWD(p) {PARAMETER_AT, -1, p, 0}
#define FD(a) {PARAMETER_FD, 0, a, 0}
#define STR(a) {PARAMETER_STR, 0, a, 0}
#define INT(a) {PARAMETER_INT, 0, a, 0}
#define NARROW(a) {PARAMETER_NARROW, 0, a, 0}  // of 32 bits
#define CONSTANT(v) {PARAMETER_CONSTANT, 0, 0, v}
#define ARGUMENT(a) (1 + (a))
#define SYSCALL(name, ...) [SYS_##name] = {__VA_ARGS__},
const struct madfs_row madfs_rows[MADFS_ROWS] = {
#include "syscalls.def"
};
#undef SYSCALL

// What makes a descriptor, for when the runtime makes one.
static const uint16_t creators[] = {
    SYS_openat,         SYS_openat2,         SYS_socket,        SYS_socketpair,    SYS_accept,     SYS_accept4,
    SYS_eventfd2,       SYS_pipe2,           SYS_epoll_create1, SYS_dup,           SYS_dup3,       SYS_fcntl,
    SYS_memfd_create,   SYS_timerfd_create,  SYS_signalfd4,     SYS_inotify_init1, SYS_pidfd_open, SYS_userfaultfd,
    SYS_io_uring_setup, SYS_perf_event_open, ARCH_CREATORS,
};

uint8_t madfs_classes[MADFS_CLASSES];

static bool makes_descriptor[MADFS_ROWS];
static bool names_path[MADFS_ROWS];    // the kernel may come to a link that leads to us
static bool pipe_answers[MADFS_ROWS];  // the descriptor may be an open FIFO of the mount

// Calls that are ours only when their first argument is, so that the entry code can let them go without asking.
static bool is_fd_call(long number) {
  const struct madfs_row *row = &madfs_rows[number];
  if (row->kind == ROW_CALL && madfs_pipe_answers(row->call)) return false;
  return row->kind == ROW_SHIM ? number == SYS_close || number == SYS_dup || number == SYS_fcntl
                               : row->route == ROUTE_FD;
}

static void find_paths(void) {
  for (long i = 0; i < MADFS_ROWS; i++)
    pipe_answers[i] = madfs_rows[i].kind == ROW_CALL && madfs_pipe_answers(madfs_rows[i].call);
  for (long i = 0; i < MADFS_ROWS; i++)
    for (unsigned p = 0; madfs_rows[i].kind == ROW_CALL && p < madfs_rows[i].count; p++)
      names_path[i] |= madfs_rows[i].parameter[p].kind == PARAMETER_AT;
}

void madfs_classes_fill(void) {
  find_paths();
  for (unsigned i = 0; i < sizeof creators / sizeof *creators; i++) {
    makes_descriptor[creators[i]] = true;
    madfs_classes[creators[i]] = CLASS_ASK;
  }
  for (long i = 0; i < MADFS_ROWS; i++)
    if (madfs_rows[i].kind > ROW_KERNEL) madfs_classes[i] = is_fd_call(i) ? CLASS_FD : CLASS_ASK;
    else if (madfs_rows[i].kind == ROW_KERNEL && madfs_tracing()) madfs_classes[i] = CLASS_ASK;
}

bool madfs_never_ours(long number) {
  return !madfs_classes[number & (MADFS_CLASSES - 1)] && !madfs_maps_dormant(number) &&
         !madfs_numbers_dormant(number);
}

bool madfs_creates_descriptor(long number) { return number >= 0 && number < MADFS_ROWS && makes_descriptor[number]; }

// --- the answer, on the hook stack ----------------------------------------------------------------------------------

static enum madfs_verdict answer(struct madfs_frame *f, long result) {
  f->number = result;
  return MADFS_DONE;
}

static long integer(const struct madfs_frame *f, const struct madfs_parameter *p) {
  if (p->kind == PARAMETER_CONSTANT) return p->value;
  long value = (long)f->argument[(int)p->argument];
  return p->kind == PARAMETER_NARROW && value >> 32 && value >> 32 != -1 ? (int)value : value;
}

static int directory_of(const struct madfs_frame *f, const struct madfs_parameter *p) {
  return p->directory < 0 ? AT_FDCWD : (int)f->argument[(int)p->directory];
}

// The names in a call: how many are ours and how many are not.
struct names {
  int ours, theirs, error;
  bool second;  // the error is that of the second one
  bool nameless;  // a path is empty or NULL: the directory is meant, or it is wrong
  bool unreadable;  // a path is empty, too long or no address: the kernel refuses the call, too
  bool closed;  // a host's path begins at a descriptor that is not open
};

// A path of the host's as the runtime can use it, for calls with two paths whose errors depend on both.
static size_t host_path(int directory, const char *path, char out[MADFS_PATH_MAX]) {
  char number[24];
  size_t n = 0;
  if (*path != '/' && directory != AT_FDCWD) {
    n = madfs_copy(out, MADFS_PATH_MAX, "/proc/self/fd/");
    n += madfs_copy(out + n, MADFS_PATH_MAX - n, madfs_decimal(number, (unsigned)directory));
    n += madfs_copy(out + n, MADFS_PATH_MAX - n, "/");
  }
  return n + madfs_copy(out + n, MADFS_PATH_MAX - n, path);
}

static void build_path(const struct madfs_frame *f, const struct madfs_parameter *p, struct madfs_arg *out,
                       struct names *names) {
  struct madfs_thread *t = madfs_local.thread;
  int which = names->ours + names->theirs > 0;
  char *path = t->given[which], *room = t->path[which];
  long given = madfs_user_text(path, MADFS_GIVEN_MAX, (const char *)f->argument[(int)p->argument]);
  names->second = which;
  if (given < 0) {
    names->ours += p->directory >= 0 && madfs_path_concerns(directory_of(f, p), NULL);
    names->nameless |= !f->argument[(int)p->argument];
    names->error = (int)given;
    names->unreadable = true;
    return;
  }
  int magic = *out->text ? madfs_path_magic(path) : -1;
  int where = PATH_OURS;
  if (magic >= 0) out->length = madfs_slot_path(madfs_fd_slot(magic), room);
  else where = madfs_path_locate(directory_of(f, p), path, room, &out->length);
  if (where < 0) names->error = where;
  else if (where == PATH_HOST || (!*out->text && madfs_path_link(path)))
    names->theirs++, out->length = host_path(directory_of(f, p), path, room);
  else if (names->ours++, !*path) names->error = -ENOENT, names->nameless = names->unreadable = true;
  if (where == PATH_HOST && *path != '/' && p->directory >= 0 && directory_of(f, p) != AT_FDCWD &&
      madfs_failed(RAW(SYS_fcntl, directory_of(f, p), F_GETFD)))
    names->closed = true;
  out->kind = MADFS_ARG_PATH;
  out->text = room;
}

// What the runtime is given for a descriptor: the handle of a slot, or the inode of an open FIFO of the mount.
enum { PIPE_SHIFT = 62 };

static void build_fd(int fd, int call, struct madfs_arg *out, struct names *names) {
  int slot = madfs_fd_slot(fd);
  uint64_t pipe = slot == FD_HOST && madfs_pipe_answers(call) ? madfs_pipe_inode(fd) : 0;
  if (slot >= 0 || pipe) names->ours++;
  else if (slot == FD_INTERNAL) names->error = -EBADF;
  else if (madfs_failed(RAW(SYS_fcntl, fd, F_GETFD))) names->error = -EBADF;
  else names->theirs++;
  long handle = pipe ? (long)(pipe | 1UL << PIPE_SHIFT) : -1;
  *out = (struct madfs_arg){.kind = MADFS_ARG_FD, .value = slot >= 0 ? (long)madfs_fd_handle(slot) : handle};
}

// A text that is no path of ours: the target of a symbolic link, beside one path.
static void build_text(const char *text, struct madfs_arg *out, struct names *names) {
  char *given = madfs_local.thread->given[1];
  long length = madfs_user_text(given, MADFS_GIVEN_MAX, text);
  if (length < 0) names->error = (int)length;
  else *out = (struct madfs_arg){.kind = MADFS_ARG_STR, .text = given, .length = (size_t)length};
}

// `follow`: paths such as /proc/self/fd/3 mean the file, not the link.
static struct names build(const struct madfs_frame *f, const struct madfs_parameter *parameters, unsigned count,
                          bool follow, struct madfs_call *call) {
  struct names names = {0};
  call->count = (int)count;
  for (unsigned i = 0; i < count; i++) {
    const struct names before = names;
    const struct madfs_parameter *p = &parameters[i];
    struct madfs_arg *out = &call->arg[i];
    unsigned long value = f->argument[(int)p->argument];
    switch (p->kind) {
      case PARAMETER_AT:
        out->text = follow ? "follow" : "";
        build_path(f, p, out, &names);
        break;
      case PARAMETER_FD: build_fd((int)value, call->number, out, &names); break;
      case PARAMETER_STR:
        build_text((const char *)value, out, &names);
        break;
      default:
        *out = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = integer(f, p)};
    }
    if (before.error) names.error = before.error, names.second = before.second;  // the first counts
  }
  return names;
}

// Opening a FIFO may block, so the kernel gets the application's signals, on the application's stack.
enum { ESCAPED_MAX = 256 };

static bool open_escaped(struct madfs_thread *t) {
  struct madfs_frame *f = t->later_frame;
  const struct madfs_parameter *p = madfs_rows[f->number].parameter;
  char path[ESCAPED_MAX];  // a handler may come by here again
  madfs_copy(path, sizeof path, t->escaped);
  t->later_frame = NULL;
  long flags = integer(f, &p[1]), mode = integer(f, &p[2]);
  struct open_how how;
  if (f->number == SYS_openat2) {
    if (!madfs_user_in(&how, (const void *)f->argument[2], sizeof how)) how = (struct open_how){.flags = 0};
    flags = (long)how.flags;
    mode = (long)how.mode;
  }
  f->number = arch_syscall(SYS_openat, AT_FDCWD, (long)path, flags, mode, 0, 0);
  return true;
}

enum { CROSSINGS_MAX = 40 };  // of the mount's border, by links there and back

static bool cross(struct madfs_frame *f);

// The path led out of the mount: the original call with the path it came to, which may lead back.
static enum madfs_verdict escape(struct madfs_frame *f, const struct madfs_row *row,
                                 const struct madfs_parameter *parameters, int which, int paths) {
  if (paths > 1) return answer(f, -EXDEV);
  if (which < 0 || which >= row->count || parameters[which].kind != PARAMETER_AT) return answer(f, -EIO);
  struct madfs_thread *t = madfs_local.thread;
  const struct madfs_parameter *p = &parameters[which];
  long a[6];
  for (int i = 0; i < 6; i++) a[i] = (long)f->argument[i];
  a[(int)p->argument] = (long)t->escaped;
  if (p->directory >= 0) a[(int)p->directory] = AT_FDCWD;
  bool opens = (row->call == CALL_openat || row->call == CALL_openat2) && strlen(t->escaped) < ESCAPED_MAX;
  long result = opens ? RAW(SYS_faccessat, AT_FDCWD, t->escaped, F_OK)
                      : arch_syscall(f->number, a[0], a[1], a[2], a[3], a[4], a[5]);
  if (result == -ENOENT && madfs_links_suspect(AT_FDCWD, t->escaped)) {
    if (++t->crossings > CROSSINGS_MAX) return answer(f, -ELOOP);
    struct madfs_frame back = *f;
    for (int i = 0; i < 6; i++) back.argument[i] = (unsigned long)a[i];
    if (cross(&back)) {
      if (t->later_frame == &back) t->later_frame = f;
      return answer(f, back.number);
    }
  }
  if (!opens) return answer(f, result);
  if (madfs_pipe_named(t->escaped)) madfs_fds_note_pipe();
  t->later = open_escaped;
  t->later_frame = f;
  return MADFS_DONE;
}

// Calls to which a NULL path is an empty one.
static bool takes_null(int empty_call) {
  switch (empty_call) {
    case CALL_fstat:
    case CALL_fstatx:
    case CALL_fsetxattrat:
    case CALL_fgetxattrat:
    case CALL_flistxattrat:
    case CALL_fremovexattrat: return true;
    default: return false;
  }
}

static bool has_empty_path(const struct madfs_frame *f, const struct madfs_row *row) {
  if (!row->empty_count || row->parameter[0].kind != PARAMETER_AT) return false;
  const char *path = (const char *)f->argument[(int)row->parameter[0].argument];
  bool flagged = row->call == CALL_readlinkat || (row->flags && (f->argument[row->flags - 1] & AT_EMPTY_PATH));
  if (!path && row->null) return directory_of(f, &row->parameter[0]) != AT_FDCWD;
  if (!path) return flagged && row->flags && takes_null(row->empty_call);
  return flagged && arch_touch(path, false) && !arch_peek_byte(path);
}

static enum madfs_verdict answer_row(struct madfs_frame *f, const struct madfs_row *row);

// The call once more: directories that relative paths begin in may have lost their names.
static enum madfs_verdict answer_by_inode(struct madfs_frame *f, const struct madfs_row *row) {
  madfs_local.thread->by_inode = true;
  enum madfs_verdict verdict = answer_row(f, row);
  madfs_local.thread->by_inode = false;
  return verdict;
}

// Whether that may be why there is no such file.
static bool is_a_step(const struct madfs_frame *f, const struct madfs_row *row) {
  for (unsigned i = 0; i < row->count && !madfs_local.thread->by_inode; i++) {
    const struct madfs_parameter *p = &row->parameter[i];
    if (p->kind != PARAMETER_AT) continue;
    if (madfs_path_is_step(directory_of(f, p), (const char *)f->argument[(int)p->argument])) return true;
  }
  return false;
}

// fstatat(fd, "", ..., AT_EMPTY_PATH) and its like: the descriptor alone, or the working directory.
static enum madfs_verdict answer_empty(struct madfs_frame *f, const struct madfs_row *row) {
  struct madfs_thread *t = madfs_local.thread;
  struct madfs_call call = {.number = row->empty_call};
  int ignored;
  if (directory_of(f, &row->parameter[0]) != AT_FDCWD) {
    struct names names = build(f, row->empty_parameter, row->empty_count, false, &call);
    if (names.error) return answer(f, names.error);
    // Without a path there is nothing that flags could be about.
    bool pathless = row->null && row->flags && !f->argument[(int)row->parameter[0].argument];
    if (pathless && call.arg[2].value) call.arg[2].value = -1;
    return names.ours ? answer(f, madfs_runtime_call(&call, &ignored)) : MADFS_PASS;
  }
  size_t length = 0;
  if (!madfs_cwd_virtual()) return MADFS_PASS;
  if (!row->flags) return answer(f, -ENOENT);
  int where = madfs_path_locate(AT_FDCWD, "", t->path[0], &length);
  if (where != PATH_OURS) return answer(f, where);
  call.number = row->call;
  struct names names = build(f, row->parameter + 1, row->count - 1U, false, &call);
  if (names.error) return answer(f, names.error);
  for (int i = call.count++; i > 0; i--) call.arg[i] = call.arg[i - 1];
  call.arg[0] = (struct madfs_arg){.kind = MADFS_ARG_PATH, .text = t->path[0], .length = length};
  long result = madfs_runtime_call(&call, &ignored);
  return result == -ENOENT && !t->by_inode ? answer_by_inode(f, row) : answer(f, result);
}

// Whether the call means what a link at the path's end points to.
static bool follows(const struct madfs_frame *f, const struct madfs_row *row) {
  const struct madfs_parameter *flags;
  switch (row->call) {
    case CALL_openat:
    case CALL_openat2:
    case CALL_truncate:
    case CALL_statfs:
    case CALL_faccessat:
    case CALL_futimesat:
    case CALL_utime: return true;
    case CALL_statx:
    case CALL_setxattrat:
    case CALL_getxattrat:
    case CALL_listxattrat:
    case CALL_removexattrat: flags = &row->parameter[1]; break;
    case CALL_newfstatat:
    case CALL_fchmodat:
    case CALL_removexattr:
    case CALL_utimensat: flags = &row->parameter[2]; break;
    case CALL_listxattr:
    case CALL_fchownat: flags = &row->parameter[3]; break;
    case CALL_linkat: flags = &row->parameter[2]; break;
    case CALL_getxattr: flags = &row->parameter[4]; break;
    case CALL_setxattr: flags = &row->parameter[5]; break;
    default: return false;
  }
  long value = integer(f, flags);
  return row->call == CALL_linkat ? (value & AT_SYMLINK_FOLLOW) != 0 : !(value & AT_SYMLINK_NOFOLLOW);
}

// chmod("/proc/self/fd/N") and its like: the same call of the open file, with as many of its arguments.
static bool names_file(struct madfs_frame *f, const struct madfs_row *row) {
  static const struct {
    int call, instead, count;
  } like[] = {{CALL_fchmodat, CALL_fchmod, 3},       {CALL_fchownat, CALL_fchown, 4},
              {CALL_futimesat, CALL_futimes, 2},     {CALL_utimensat, CALL_futimens, 3},
              {CALL_faccessat, CALL_faccess, 3},     {CALL_truncate, CALL_truncate_again, 2},
              {CALL_setxattr, CALL_fsetxattr, 5},    {CALL_getxattr, CALL_fgetxattr, 4},
              {CALL_listxattr, CALL_flistxattr, 3},  {CALL_removexattr, CALL_fremovexattr, 2}};
  size_t i = 0;
  while (i < sizeof like / sizeof *like && like[i].call != row->call) i++;
  if (i == sizeof like / sizeof *like || !follows(f, row)) return false;
  int fd = madfs_path_magic((const char *)f->argument[(int)row->parameter[0].argument]), ignored;
  if (fd < 0 || (madfs_slot_flags(madfs_fd_slot(fd)) & O_PATH)) return false;
  struct madfs_call call = {.number = like[i].instead, .count = like[i].count};
  call.arg[0] = (struct madfs_arg){.kind = MADFS_ARG_FD, .value = (long)madfs_fd_handle(madfs_fd_slot(fd))};
  for (int n = 1; n < call.count; n++)
    call.arg[n] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = integer(f, &row->parameter[n])};
  f->number = madfs_runtime_call(&call, &ignored);
  return true;
}

// stat("/proc/self/fd/N") and its like mean the open file, which may have no name any more.
static bool names_descriptor(struct madfs_frame *f, const struct madfs_row *row) {
  if (names_file(f, row)) return true;
  if (!row->empty_count || row->parameter[0].directory < 0 || !follows(f, row)) return false;
  int fd = madfs_path_magic((const char *)f->argument[(int)row->parameter[0].argument]);
  if (fd < 0) return false;
  struct madfs_frame by_descriptor = *f;
  by_descriptor.argument[(int)row->parameter[0].directory] = (unsigned long)fd;
  answer_empty(&by_descriptor, row);
  f->number = by_descriptor.number;
  return true;
}

// readlink("/proc/self/fd/N") of a descriptor of ours, and its like: the answer is in the thread's first path.
static enum madfs_verdict read_magic_link(struct madfs_frame *f, const struct madfs_row *row, size_t size_of_path) {
  char *path = madfs_local.thread->path[0], *out = (char *)f->argument[(int)row->parameter[1].argument];
  long size = (int)f->argument[(int)row->parameter[2].argument],
       length = (long)size_of_path;
  if (size <= 0) return answer(f, -EINVAL);
  if (length > size) length = size;
  return answer(f, madfs_user_out(out, path, (size_t)length) ? length : -EFAULT);
}

// A program or library that lies on the mount becomes executable: its system calls are rewritten as any other's.
static void scan_ours(const struct madfs_frame *f, const struct madfs_call *mapped, long at) {
  struct stat file;
  int ignored;
  size_t length = f->argument[1];
  unsigned long offset = f->argument[5];
  struct madfs_call call = {.number = CALL_fstat, .count = 2, .arg = {mapped->arg[0]}};
  call.arg[1] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = (long)&file};
  if (!(f->argument[2] & PROT_READ) || madfs_failed(madfs_runtime_call(&call, &ignored))) return;
  if ((unsigned long)file.st_size <= offset) return;
  if (length > (unsigned long)file.st_size - offset) length = (unsigned long)file.st_size - offset;
  if (!arch_next_hit((const uint8_t *)at, (const uint8_t *)at + length)) return;
  call = *mapped;
  const long whole[] = {0, file.st_size, PROT_READ, MAP_PRIVATE, 0};
  for (int i = 0; i < 5; i++) call.arg[i + 1].value = whole[i];
  long image = madfs_runtime_call(&call, &ignored);
  if (madfs_failed(image)) return;
  madfs_scan_part((unsigned long)at, length, offset, (int)f->argument[2], (const void *)image, (size_t)file.st_size);
  RAW(SYS_munmap, image, file.st_size);
}

static bool is_hosts_mapping(const struct madfs_frame *f) {
  return (f->argument[3] & MAP_ANONYMOUS) || madfs_fd_slot((int)f->argument[4]) == FD_HOST;
}

// What is shared is not rewritten: the file would change.
static bool is_private_file(const struct madfs_frame *f) {
  return (f->argument[3] & (MAP_TYPE | MAP_ANONYMOUS)) == MAP_PRIVATE;
}

// Something was mapped in place of what was there.  What is shared entered itself in the table of mappings.
static void mapped_over(const struct madfs_frame *f, long at) {
  if ((f->argument[3] & MAP_TYPE) == MAP_PRIVATE) madfs_maps_replaced((unsigned long)at, f->argument[1]);
  madfs_maps_settle();
}

// Flags of open() that Linux refuses before it looks at the path.
static bool is_no_way_to_open(long flags) {
  long unnamed = O_TMPFILE & ~O_DIRECTORY;
  if (flags & O_PATH) return false;
  if (flags & unnamed) return (flags & (O_TMPFILE | O_CREAT)) != O_TMPFILE || (flags & O_ACCMODE) == O_RDONLY;
  return (flags & O_CREAT) && (flags & O_DIRECTORY);
}

// What openat2() refuses before it looks at the path.
static bool refuses_how(const struct open_how *how) {
  const uint64_t known = 0x3f, either = RESOLVE_BENEATH | RESOLVE_IN_ROOT, unnamed = O_TMPFILE & ~O_DIRECTORY;
  const uint64_t with_path = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
  if (how->resolve & ~known || (how->resolve & either) == either || how->mode & ~07777UL) return true;
  if (how->mode && !(how->flags & (O_CREAT | unnamed))) return true;
  return (how->flags & O_PATH && how->flags & ~with_path) || is_no_way_to_open((long)how->flags);
}

// What an openat() or openat2() asks for; false: that is not to be read, or refused.
static bool opening(const struct madfs_frame *f, const struct madfs_row *row, struct open_how *how) {
  if (row->call == CALL_openat2)
    return f->argument[3] == sizeof *how && madfs_user_in(how, (const void *)f->argument[2], sizeof *how) &&
           !refuses_how(how);
  *how = (struct open_how){.flags = (uint64_t)integer(f, &row->parameter[1]),
                           .mode = (uint64_t)integer(f, &row->parameter[2])};
  return true;
}

// open("/proc/self/fd/N") means the file that is open there, which may have no name any more, or another one's; and the
// link itself, which is the kernel's, when links are not to be followed.
static bool reopens(struct madfs_frame *f, const struct madfs_row *row, enum madfs_verdict *verdict) {
  const char *path = (const char *)f->argument[(int)row->parameter[0].argument];
  struct open_how how;
  if (!madfs_path_link(path) || !opening(f, row, &how)) return false;
  *verdict = MADFS_PASS;
  if (how.flags & O_NOFOLLOW || how.resolve & ~(uint64_t)RESOLVE_CACHED) return true;
  int fd = madfs_path_magic(path), which = -1;
  if (fd < 0) return false;
  bool exclusive = (how.flags & (O_CREAT | O_EXCL | O_PATH)) == (O_CREAT | O_EXCL);
  if (is_no_way_to_open((long)how.flags) || exclusive) {
    *verdict = answer(f, is_no_way_to_open((long)how.flags) ? -EINVAL : -EEXIST);
    return true;
  }
  struct madfs_call call = {.number = CALL_reopen, .count = 3};
  call.arg[0] = (struct madfs_arg){.kind = MADFS_ARG_FD, .value = (long)madfs_fd_handle(madfs_fd_slot(fd))};
  call.arg[1] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = (long)how.flags};
  call.arg[2] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = (long)how.mode};
  long result = madfs_runtime_call(&call, &which);
  *verdict = result == MADFS_HOST_PATH ? escape(f, row, row->parameter, 0, 1) : answer(f, result);
  return true;
}

// openat2() of an absolute path from a directory of ours that is to be left by no means, or is to be the root.
static bool is_rooted(const struct madfs_frame *f, uint64_t *resolve) {
  struct open_how how;
  const char *path = (const char *)f->argument[1];
  if (f->argument[1] < MADFS_POINTER_MIN || arch_peek_byte(path) != '/') return false;
  if (!madfs_user_in(&how, (const void *)f->argument[2], sizeof how)) return false;
  *resolve = how.resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT);
  return *resolve && f->argument[3] >= sizeof how;
}

static enum madfs_verdict open_rooted(struct madfs_frame *f, const struct madfs_row *row, uint64_t resolve) {
  int directory = (int)f->argument[0];
  bool ours = directory == AT_FDCWD ? madfs_cwd_virtual() : madfs_fd_slot(directory) >= 0;
  if (!ours) return MADFS_PASS;
  struct open_how how;
  if (madfs_user_in(&how, (const void *)f->argument[2], sizeof how) && refuses_how(&how)) return answer(f, -EINVAL);
  if (resolve & RESOLVE_BENEATH) return answer(f, -EXDEV);
  const unsigned long given = f->argument[1];
  const char *path = (const char *)given;
  while (arch_peek_byte(path) == '/') path++;
  f->argument[1] = (unsigned long)(arch_peek_byte(path) ? path : "./");
  enum madfs_verdict verdict = answer_row(f, row);
  f->argument[1] = given;
  return verdict;
}

// ioctl(FIONBIO), which every descriptor has.
static long set_blocking(const struct madfs_frame *f, int slot) {
  int on;
  uint32_t flags = madfs_slot_flags(slot);
  if (flags & O_PATH) return -EBADF;
  if (!madfs_user_in(&on, (const void *)f->argument[2], sizeof on)) return -EFAULT;
  madfs_slot_set_flags(slot, on ? flags | O_NONBLOCK : flags & ~(uint32_t)O_NONBLOCK);
  return 0;
}

// Calls of which C knows more than their row says.
static enum madfs_verdict answer_special(struct madfs_frame *f, const struct madfs_row *row, bool *answered) {
  uint64_t resolve;
  enum madfs_verdict verdict;
  *answered = true;
  if (row->call == CALL_lseek || row->call == CALL_ioctl) {
    int slot = madfs_fd_slot((int)f->argument[0]);
    if (slot == FD_INTERNAL) return answer(f, -EBADF);
    unsigned request = (unsigned)f->argument[1], whence = (unsigned)f->argument[2];
    if (row->call == CALL_ioctl && slot >= 0 && (request == FIOCLEX || request == FIONCLEX)) return MADFS_PASS;
    if (row->call == CALL_ioctl && slot >= 0 && request == FIONBIO) return answer(f, set_blocking(f, slot));
    if (row->call == CALL_lseek && slot >= 0 && whence <= 1 && !(madfs_slot_flags(slot) & (O_DIRECTORY | O_PATH)))
      return answer(f, madfs_slot_seek(slot, (long)f->argument[1], (int)whence));
  } else if (row->call == CALL_readlinkat) {
    const char *path = (const char *)f->argument[(int)row->parameter[0].argument];
    int fd = madfs_path_magic(path);
    if (fd >= 0 && madfs_starts(path, "/dev/std")) return MADFS_PASS;  // a link to the link
    if (fd >= 0) return read_magic_link(f, row, madfs_slot_path(madfs_fd_slot(fd), madfs_local.thread->path[0]));
    if (madfs_path_cwd(path)) return read_magic_link(f, row, madfs_cwd_get(madfs_local.thread->path[0]));
    if (madfs_path_program(path))
      return read_magic_link(f, row, madfs_copy(madfs_local.thread->path[0], MADFS_PATH_MAX, madfs_settings.program));
  } else if (row->call == CALL_openat2 && is_rooted(f, &resolve)) {
    return open_rooted(f, row, resolve);
  } else if ((row->call == CALL_openat || row->call == CALL_openat2) && reopens(f, row, &verdict)) {
    return verdict;
  } else if (row->call == CALL_mmap && is_hosts_mapping(f)) {
    // A library is being loaded: nobody runs its text yet.
    long at =
        RAW(SYS_mmap, f->argument[0], f->argument[1], f->argument[2], f->argument[3], f->argument[4], f->argument[5]);
    if (!madfs_failed(at) && (f->argument[3] & MAP_FIXED)) madfs_maps_replaced((unsigned long)at, f->argument[1]);
    if (!madfs_failed(at) && (f->argument[2] & PROT_EXEC) && is_private_file(f))
      madfs_scan_mapping((unsigned long)at, f->argument[1], (int)f->argument[4], f->argument[5], (int)f->argument[2]);
    return answer(f, at);
  }
  *answered = false;
  return MADFS_PASS;
}

// Asks the server.
static bool status(int slot, struct stat *file) {
  int ignored;
  struct madfs_call call = {.number = CALL_fstat, .count = 2};
  call.arg[0] = (struct madfs_arg){.kind = MADFS_ARG_FD, .value = (long)madfs_fd_handle(slot)};
  call.arg[1] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = (long)file};
  return !madfs_failed(madfs_runtime_call(&call, &ignored));
}

static bool is_directory(int slot) {
  struct stat file;
  return !status(slot, &file) || S_ISDIR(file.st_mode);
}

// A buffer of which nothing is there matters only if there is something to store in it.
static bool wants_no_buffer(int slot, struct madfs_call *call) {
  struct stat file;
  if (!status(slot, &file) || S_ISDIR(file.st_mode)) return true;
  bool fills = call->number == CALL_read || call->number == CALL_pread;
  long offset = call->count > 3 ? call->arg[3].value : madfs_fds_offset_get((uint64_t)madfs_fd_handle(slot));
  if (!fills || offset < file.st_size) return false;
  call->arg[2].value = 0;
  return true;
}

// The part of a buffer that is there is what the kernel would use, too; EFAULT when there is none.
static bool check_buffer(const struct madfs_frame *f, struct madfs_call *call) {
  enum { COUNT_MAX = 0x7ffff000 };
  bool fills = call->number == CALL_read || call->number == CALL_pread;
  if (!fills && call->number != CALL_write && call->number != CALL_pwrite) return true;
  uint32_t flags = madfs_slot_flags(madfs_fd_slot((int)f->argument[0]));
  if ((flags & O_PATH) || (flags & O_ACCMODE) == (fills ? O_WRONLY : O_RDONLY)) return true;  // EBADF
  long *count = &call->arg[2].value;
  if (call->count > 3 && call->arg[3].value < 0) return true;  // EINVAL
  unsigned long at = (unsigned long)call->arg[1].value, size = (unsigned long)*count;
  if (size > ARCH_POINTER_MAX || at > ARCH_POINTER_MAX - size) return false;
  if (call->count > 3 && call->arg[3].value > LONG_MAX - *count) return true;  // EINVAL
  if (*count > COUNT_MAX) *count = COUNT_MAX;
  if (!*count) return true;
  long there = (long)madfs_user_probe((const void *)call->arg[1].value, (size_t)*count, fills);
  if (there) *count = there;
  return there || wants_no_buffer(madfs_fd_slot((int)f->argument[0]), call);
}

// The second of two paths is none: Linux finds that out when it has looked at the first one, or at the way to it.
static long check_first(const struct madfs_frame *f, const struct madfs_row *row, const struct madfs_call *call) {
  bool links = row->call == CALL_linkat;
  if ((!links && row->call != CALL_renameat2) || call->arg[0].kind != MADFS_ARG_PATH) return 0;
  char *path = madfs_local.thread->path[0];
  size_t length = call->arg[0].length;
  if (!links) {
    while (length > 1 && path[length - 1] == '/') length--;
    while (length > 1 && path[length - 1] != '/') length--;
    path[length++] = '.';
    path[length] = 0;
  }
  int ignored, flags = AT_EACCESS | (links && follows(f, row) ? 0 : AT_SYMLINK_NOFOLLOW);
  struct madfs_call look = {.number = CALL_faccessat, .count = 3};
  look.arg[0] = (struct madfs_arg){.kind = MADFS_ARG_PATH, .text = path, .length = length};
  look.arg[1] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = F_OK};
  look.arg[2] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = flags};
  long result = madfs_runtime_call(&look, &ignored);
  return madfs_failed(result) ? result : 0;
}

// A path that is none, the first one: the kernel knows which of the other arguments come before it.  Nothing of ours is
// shown to it.
static long kernels_refusal(const struct madfs_frame *f, const struct madfs_row *row) {
  long a[6], path = 0;
  for (int i = 0; i < 6; i++) a[i] = (long)f->argument[i];
  for (unsigned i = row->count; i-- > 0;)
    if (row->parameter[i].kind == PARAMETER_AT) path = a[(int)row->parameter[i].argument];
  for (unsigned i = 0; i < row->count; i++) {
    const struct madfs_parameter *p = &row->parameter[i];
    if (p->kind != PARAMETER_AT) continue;
    a[(int)p->argument] = path;
    if (p->directory >= 0) a[(int)p->directory] = AT_FDCWD;
  }
  return arch_syscall(f->number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

// Flags of calls with two paths that Linux refuses before it looks at either.
static bool refuses_flags(const struct madfs_frame *f, const struct madfs_row *row) {
  long flags = integer(f, &row->parameter[row->count - 1]);
  if (row->call == CALL_linkat) return flags & ~(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH);
  return row->call == CALL_renameat2 && (flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT) ||
                                         (flags & RENAME_EXCHANGE && flags & (RENAME_NOREPLACE | RENAME_WHITEOUT)));
}

// Whether a relative path starts at a descriptor of ours that is no directory: what has no name leads nowhere, but
// ENOTDIR comes before ENOENT.
static bool starts_at_file(const struct madfs_frame *f, const struct madfs_row *row) {
  for (unsigned i = 0; i < row->count; i++) {
    const struct madfs_parameter *p = &row->parameter[i];
    if (p->kind != PARAMETER_AT || p->directory < 0) continue;
    int slot = madfs_fd_slot(directory_of(f, p));
    if (slot < 0 || (madfs_slot_flags(slot) & O_DIRECTORY)) continue;
    if (arch_peek_byte((const char *)f->argument[(int)p->argument]) == '/') continue;
    if (!is_directory(slot)) return true;
  }
  return false;
}

// A call that is refused, unless what it names is not there, or the host's.
static enum madfs_verdict refuse(struct madfs_frame *f, const struct madfs_row *row, const struct madfs_call *call,
                                 int paths) {
  for (int i = 0; i < call->count; i++) {
    if (call->arg[i].kind != MADFS_ARG_PATH || !call->arg[i].length) continue;
    int ignored;
    struct madfs_call look = {.number = CALL_faccessat, .count = 3, .arg = {call->arg[i]}};
    look.arg[1] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = F_OK};
    look.arg[2] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = AT_EACCESS};
    long result = madfs_runtime_call(&look, &ignored);
    if (result == MADFS_HOST_PATH) return escape(f, row, row->parameter, i, paths);
    if (madfs_failed(result)) return answer(f, result);
  }
  return answer(f, -row->refuse);
}

static enum madfs_verdict answer_row(struct madfs_frame *f, const struct madfs_row *row) {
  bool answered;
  if (row->kind == ROW_SHIM) return row->shim->work(f);
  if (row->kind == ROW_CALL) {
    enum madfs_verdict verdict = answer_special(f, row, &answered);
    if (answered) return verdict;
  }
  if (has_empty_path(f, row)) return answer_empty(f, row);
  if (names_descriptor(f, row)) return MADFS_DONE;
  struct madfs_call call = {.number = row->call};
  struct names names = build(f, row->parameter, row->count, follows(f, row), &call);
  if (!names.ours && names.error != -ENAMETOOLONG) return names.error == -EBADF ? answer(f, -EBADF) : MADFS_PASS;
  if (names.closed && !names.error) names.error = -EBADF;
  if (names.unreadable && !names.second && row->kind == ROW_CALL) return answer(f, kernels_refusal(f, row));
  if (names.error && refuses_flags(f, row)) return answer(f, -EINVAL);
  if (names.error && names.ours && names.second) {
    long first = check_first(f, row, &call);
    if (first) return answer(f, first == -ENOENT && starts_at_file(f, row) ? -ENOTDIR : first);
  }
  bool pathless = names.nameless && (names.error == -ENOENT || f->number == SYS_fanotify_mark);
  if (names.error && !(row->kind == ROW_REFUSE && pathless)) return answer(f, names.error);
  if (row->kind == ROW_REFUSE) return refuse(f, row, &call, names.ours);
  if (names.theirs && row->call != CALL_linkat) return answer(f, -EXDEV);
  if (!check_buffer(f, &call)) return answer(f, -EFAULT);
  int which = -1;
  long result = madfs_runtime_call(&call, &which);
  if (result == MADFS_HOST_PATH) return escape(f, row, row->parameter, which, names.ours);
  if (result == -ENOENT && is_a_step(f, row)) return answer_by_inode(f, row);
  if (result == -ENOENT && starts_at_file(f, row)) result = -ENOTDIR;
  if (row->call == CALL_mmap && !madfs_failed(result)) {
    if (f->argument[3] & MAP_FIXED) mapped_over(f, result);
    if ((f->argument[2] & PROT_EXEC) && is_private_file(f)) scan_ours(f, &call, result);
  }
  return answer(f, result);
}

static long on_hook_stack(void *value) {
  struct madfs_frame *f = value;
  if (!madfs_local.thread->registered) madfs_thread_register(madfs_local.thread);
  madfs_local.thread->crossings = 0;
  return answer_row(f, &madfs_rows[f->number]);
}

// The call once more, with the paths that links of the host's lead to; false when none of them does.
static bool cross(struct madfs_frame *f) {
  struct madfs_thread *t = madfs_local.thread;
  const struct madfs_row *row = &madfs_rows[f->number];
  const struct madfs_frame original = *f;
  bool last = follows(f, row), ours = false;
  size_t length;
  unsigned which = 0;
  for (unsigned i = 0; i < row->count; i++) {
    const struct madfs_parameter *p = &row->parameter[i];
    if (p->kind != PARAMETER_AT) continue;
    char *given = t->given[0], *out = t->through[which++];
    if (madfs_user_text(given, MADFS_PATH_MAX, (const char *)f->argument[(int)p->argument]) < 0) continue;
    if (madfs_links_follow(directory_of(f, p), given, last, out, &length) != PATH_OURS) continue;
    ours = true;
    f->argument[(int)p->argument] = (unsigned long)out;
    if (p->directory >= 0) f->argument[(int)p->directory] = (unsigned long)AT_FDCWD;
  }
  if (!ours || answer_row(f, row) == MADFS_PASS) f->number = -ENOENT;
  memcpy(f->argument, original.argument, sizeof f->argument);
  return ours;
}

static void count(long number, enum madfs_verdict verdict, long result) {
  bool refuses = madfs_rows[number].kind == ROW_REFUSE && result == -madfs_rows[number].refuse;
  madfs_trace_count(number, verdict == MADFS_PASS  ? TRACE_PASSED
                            : refuses              ? TRACE_REFUSED
                            : madfs_failed(result) ? TRACE_FAILED
                                                   : TRACE_EMULATED);
}

static long through_links(void *value) {
  struct madfs_frame *f = value;
  long number = f->number;
  if (!madfs_local.thread->registered) madfs_thread_register(madfs_local.thread);
  madfs_local.thread->crossings = 0;
  if (cross(f) && madfs_tracing()) count(number, MADFS_DONE, f->number);
  return MADFS_DONE;
}

// --- the way there --------------------------------------------------------------------------------------------------

// Asynchronous signals wait until the call is over: their handlers may do anything, and our locks are held.
const uint64_t madfs_asynchronous =
    ~(1UL << (SIGSEGV - 1) | 1UL << (SIGBUS - 1) | 1UL << (SIGFPE - 1) | 1UL << (SIGILL - 1) | 1UL << (SIGTRAP - 1) |
      1UL << (SIGABRT - 1) | 1UL << (SIGSYS - 1));

static enum madfs_verdict forward_to(struct madfs_frame *f, long (*work)(void *)) {
  uint64_t before;
  long number = f->number;
  RAW(SYS_rt_sigprocmask, SIG_SETMASK, &madfs_asynchronous, &before, sizeof before);
  madfs_exit_waits();
  bool resume = MADFS_UNLIKELY(madfs_local.forking) && madfs_fork_interrupt();
  struct madfs_thread *t = madfs_thread();
  enum madfs_verdict verdict = MADFS_DONE;
  if (t) {
    madfs_twin_enters();
    madfs_local.inside |= 1;
    t->frame = f;
    t->number = f->number;
    t->signals = before;
    verdict = (enum madfs_verdict)arch_on_stack(t, work, f);
    madfs_exit_waits();  // what was closed meanwhile, because the process ends, is nothing that the program may see
    madfs_local.inside &= ~1;
  } else {
    f->number = -ENOMEM;
  }
  if (MADFS_UNLIKELY(resume)) madfs_fork_resume();
  RAW(SYS_rt_sigprocmask, SIG_SETMASK, &before, 0, sizeof before);
  if (MADFS_UNLIKELY(t && (t->cancels_at_once || t->cancellation_point))) madfs_runtime_left(t);
  if (t && t->later_frame == f && !t->later(t)) return forward_to(f, work);
  if (MADFS_UNLIKELY(madfs_tracing()) && work == on_hook_stack) count(number, verdict, f->number);
  return verdict;
}

__attribute__((noinline)) static enum madfs_verdict forward(struct madfs_frame *f) {
  return forward_to(f, on_hook_stack);
}

static bool concerns(const struct madfs_frame *f, const struct madfs_row *row) {
  uint64_t resolve;
  if (MADFS_UNLIKELY(f->number == SYS_openat2) && is_rooted(f, &resolve)) return true;
  for (unsigned i = 0; i < row->count; i++) {
    const struct madfs_parameter *p = &row->parameter[i];
    unsigned long value = f->argument[(int)p->argument];
    if (p->kind == PARAMETER_FD && madfs_fd_concerns((int)value)) return true;
    if (p->kind == PARAMETER_AT && madfs_path_concerns(directory_of(f, p), (const char *)value)) return true;
  }
  return false;
}

__attribute__((noinline)) static bool mmap_concerns(const struct madfs_frame *f) {
  if ((f->argument[3] & MAP_FIXED) && madfs_maps_any() && madfs_maps_overlap(f->argument[0], f->argument[1]))
    return true;
  if ((f->argument[3] & MAP_ANONYMOUS) || (int)f->argument[4] < 0) return false;
  madfs_late_mapped();
  return (f->argument[2] & PROT_EXEC) || madfs_fd_concerns((int)f->argument[4]);
}

// A call that is the kernel's whatever it names.
__attribute__((noinline)) static enum madfs_verdict filter_kernel(const struct madfs_frame *f,
                                                                  const struct madfs_row *row) {
  if (row->kind == ROW_KERNEL && madfs_tracing() && concerns(f, row)) madfs_trace_count(f->number, TRACE_PASSED);
  return MADFS_PASS;
}

static long original(const struct madfs_frame *f) {
  const unsigned long *a = f->argument;
  return arch_syscall(f->number, (long)a[0], (long)a[1], (long)a[2], (long)a[3], (long)a[4], (long)a[5]);
}

// A call about a descriptor of the kernel's, which may be an open FIFO of the mount.  A status is looked at when it is
// there, so that it costs nothing; other calls ask first.
__attribute__((noinline)) static enum madfs_verdict let_pass_fd(struct madfs_frame *f, int call, int fd, int status) {
  if (call != CALL_fstat && call != CALL_fstatx) return madfs_pipe_inode(fd) ? forward(f) : answer(f, original(f));
  long result = original(f);
  bool fifo = !result && madfs_pipe_seen(call, (const void *)f->argument[status]);
  return fifo && madfs_pipe_inode(fd) ? forward(f) : answer(f, result);
}

// readlinkat(fd, "") of a link of the kernel's that means something of ours, opened with O_PATH and O_NOFOLLOW: what it
// is called.
static bool reads_link(const struct madfs_frame *f, const struct madfs_row *row, char name[64]) {
  char own[40], number[24];
  if (row->call != CALL_readlinkat || !has_empty_path(f, row)) return false;
  size_t n = madfs_copy(own, sizeof own, "/proc/self/fd/");
  madfs_copy(own + n, sizeof own - n, madfs_decimal(number, (unsigned)directory_of(f, &row->parameter[0])));
  long length = RAW(SYS_readlinkat, AT_FDCWD, own, name, 63);
  name[length > 0 ? length : 0] = 0;
  return madfs_path_link(name);
}

// The kernel's, unless it says ENOENT because a link of the host's leads into the mount.
__attribute__((noinline)) static enum madfs_verdict let_pass(struct madfs_frame *f, const struct madfs_row *row) {
  const unsigned long *a = f->argument;
  if (madfs_fds_pipes() && row->empty_count && madfs_pipe_answers(row->empty_call) && has_empty_path(f, row)) {
    int status = row->empty_call == CALL_fstatx ? 4 : 2;
    return let_pass_fd(f, row->empty_call, directory_of(f, &row->parameter[0]), status);
  }
  char name[64];
  if (reads_link(f, row, name)) {
    struct madfs_frame named = *f;
    named.argument[0] = (unsigned long)AT_FDCWD;
    named.argument[1] = (unsigned long)name;
    return answer(f, forward(&named) == MADFS_DONE ? named.number : original(f));
  }
  long result = original(f);
  bool suspect = false;
  for (unsigned i = 0; result == -ENOENT && i < row->count; i++) {
    const struct madfs_parameter *p = &row->parameter[i];
    suspect |= p->kind == PARAMETER_AT && madfs_links_suspect(directory_of(f, p), (const char *)a[(int)p->argument]);
  }
  return suspect ? forward_to(f, through_links) : answer(f, result);
}

__attribute__((noinline)) static enum madfs_verdict filter_names(struct madfs_frame *f, const struct madfs_row *row) {
  if (row->kind == ROW_SHIM && !row->shim->concerns(f)) return MADFS_PASS;
  if (row->kind == ROW_SHIM) return row->shim->work ? forward(f) : MADFS_DONE;
  if (f->number == SYS_mmap) return mmap_concerns(f) ? forward(f) : MADFS_PASS;
  enum madfs_verdict verdict = concerns(f, row) ? forward(f) : MADFS_PASS;
  return verdict == MADFS_PASS && names_path[f->number] ? let_pass(f, row) : verdict;
}

__attribute__((noinline)) static enum madfs_verdict filter_inside(struct madfs_frame *f) {
  madfs_clone_inside(f);
  return madfs_fds_inside(f);
}

// A thread that a filter leaves nothing but its own calls.
__attribute__((noinline)) static bool answer_filtered(struct madfs_frame *f, const struct madfs_row *row,
                                                      enum madfs_verdict *verdict) {
  int answer = madfs_filter_answers(f);
  if (answer < 0 && row->kind == ROW_CALL && !concerns(f, row)) answer = MADFS_PASS;
  if (answer >= 0) *verdict = (enum madfs_verdict)answer;
  return answer >= 0;
}

enum madfs_verdict madfs_filter(struct madfs_frame *f) {
  enum madfs_verdict verdict;
  if (MADFS_UNLIKELY((unsigned long)f->number >= MADFS_ROWS)) {
    if ((unsigned)f->number >= MADFS_ROWS) return MADFS_PASS;
    f->number = (unsigned)f->number;  // as Linux takes it
  }
  if (MADFS_UNLIKELY(madfs_local.inside & INSIDE_FORK)) madfs_fds_fork_ended();
  if (MADFS_UNLIKELY(madfs_local.inside) && !madfs_twin_waits()) return filter_inside(f);
  const struct madfs_row *row = &madfs_rows[f->number];
  if (row->kind <= ROW_KERNEL) return filter_kernel(f, row);
  if (MADFS_UNLIKELY(madfs_filtered()) && answer_filtered(f, row, &verdict)) return verdict;
  if (row->route == ROUTE_FD && row->kind != ROW_SHIM) {
    int fd = (int)f->argument[0];
    if (madfs_fd_concerns(fd)) return forward(f);
    bool pipe = pipe_answers[f->number] && madfs_fds_pipes();
    return MADFS_UNLIKELY(pipe) ? let_pass_fd(f, row->call, fd, 1) : MADFS_PASS;
  }
  return filter_names(f, row);
}
