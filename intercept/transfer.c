// SPDX-License-Identifier: Apache-2.0
// Calls that take two descriptors: copies from one file to another, or to and from a pipe.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "intercept.h"

enum { PIECE = 256 << 10, COPY_MAX = 16 << 20 };

static enum madfs_verdict answer(struct madfs_frame *f, long result) {
  f->number = result;
  return MADFS_DONE;
}

// --- sendfile, copy_file_range --------------------------------------------------------------------------------------

// One side of a copy.
struct side {
  int fd, slot;
  unsigned long pointer;  // where its offset is; 0: the descriptor's own is used, and moves
  bool still;             // a device of memory, such as /dev/zero: nothing moves
  int64_t offset;
};

static bool side_open(struct side *s, int fd, unsigned long pointer, long *error) {
  *s = (struct side){.fd = fd, .slot = madfs_fd_slot(fd), .pointer = pointer};
  *error = 0;
  bool there = !pointer || madfs_user_in(&s->offset, (const void *)pointer, sizeof s->offset);
  if (s->slot == FD_INTERNAL || (s->slot >= 0 && madfs_slot_flags(s->slot) & O_PATH)) *error = -EBADF;
  else if (!there) *error = -EFAULT;
  else if (pointer && s->offset < 0) *error = -EINVAL;
  else if (s->slot >= 0 && (madfs_slot_flags(s->slot) & O_DIRECTORY)) *error = -EISDIR;
  return !*error;
}

static long move(const struct side *s, bool writes, char *buffer, size_t size) {
  int ignored;
  if (s->slot < 0) {
    if (s->pointer) return RAW(writes ? SYS_pwrite64 : SYS_pread64, s->fd, buffer, size, s->offset);
    return RAW(writes ? SYS_write : SYS_read, s->fd, buffer, size);
  }
  struct madfs_call call = {.number = writes ? CALL_write : CALL_read, .count = 3};
  call.arg[0] = (struct madfs_arg){.kind = MADFS_ARG_FD, .value = (long)madfs_fd_handle(s->slot)};
  call.arg[1] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = (long)buffer};
  call.arg[2] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = (long)size};
  if (s->pointer) {
    call.number = writes ? CALL_pwrite : CALL_pread;
    call.arg[call.count++] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = s->offset};
  }
  return madfs_runtime_call(&call, &ignored);
}

// What was read and not written was not read, either.
static void give_back(const struct side *s, long size) {
  if (s->pointer || s->still || !size) return;
  if (s->slot < 0) RAW(SYS_lseek, s->fd, -size, SEEK_CUR);
  else madfs_slot_seek(s->slot, -size, SEEK_CUR);
}

static void advance(struct side *s, long size) {
  if (s->pointer && !s->still) s->offset += size;
}

static long side_close(const struct side *s, long result) {
  if (!s->pointer || madfs_user_out((void *)s->pointer, &s->offset, sizeof s->offset)) return result;
  return -EFAULT;
}

static long copy_pieces(struct side *in, struct side *out, char *buffer, size_t size) {
  long done = 0, result = 0;
  while ((size_t)done < size) {
    size_t piece = size - (size_t)done < PIECE ? size - (size_t)done : PIECE;
    long got = move(in, false, buffer, piece);
    if (got <= 0) {
      result = got;
      break;
    }
    advance(in, got);
    result = move(out, true, buffer, (size_t)got);
    long put = result > 0 ? result : 0;
    advance(out, put);
    give_back(in, got - put);
    advance(in, put - got);
    done += put;
    if (put < got) break;
  }
  return done ? done : result;
}

// sendfile to a socket or pipe: it may block, so it is written on the application's stack with its signals.
static bool send_piece(struct madfs_thread *t) {
  struct madfs_frame *f = t->later_frame;
  struct side in;
  long error, got = t->later_size;
  char *buffer = t->later_buffer;
  t->later_frame = NULL;
  side_open(&in, (int)f->argument[1], f->argument[2], &error);
  int fd = (int)f->argument[0];
  long put = RAW(SYS_write, fd, buffer, got);
  long sent = put > 0 ? put : 0;
  give_back(&in, got - sent);
  advance(&in, sent);
  RAW(SYS_munmap, buffer, PIECE);
  f->number = side_close(&in, put);
  return true;
}

// 0 for what can be copied from and to, or -errno.
static long check_host(struct side *s) {
  enum { MEMORY_DEVICES = 1 };
  struct stat file;
  long result = s->slot < 0 ? RAW(SYS_fstat, s->fd, &file) : 0;
  if (s->slot >= 0 || madfs_failed(result)) return result;
  s->still = S_ISCHR(file.st_mode) && file.st_rdev >> 8 == MEMORY_DEVICES;
  if (s->still) return 0;
  return S_ISREG(file.st_mode) || S_ISBLK(file.st_mode) ? 0 : -EINVAL;
}

static long copy_file(struct madfs_frame *f, struct side *in, struct side *out, size_t size, bool sends) {
  struct madfs_thread *t = madfs_local.thread;
  if (size > COPY_MAX) size = COPY_MAX;
  if (!size) return 0;
  long pages = RAW(SYS_mmap, 0, PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (madfs_failed(pages)) return pages;
  char *buffer = (char *)pages;
  long result;
  if (sends && out->slot < 0) {
    result = move(in, false, buffer, size < PIECE ? size : PIECE);
    if (result > 0) {
      t->later = send_piece;
      t->later_frame = f;
      t->later_buffer = buffer;
      t->later_size = result;
      return 0;
    }
  } else {
    result = copy_pieces(in, out, buffer, size);
    if (result > 0) result = side_close(in, side_close(out, result));
  }
  RAW(SYS_munmap, pages, PIECE);
  return sends && result == -EISDIR ? -EINVAL : result;
}

static bool sendfile_concerns(struct madfs_frame *f) {
  return madfs_fd_concerns((int)f->argument[0]) || madfs_fd_concerns((int)f->argument[1]);
}

static bool copy_concerns(struct madfs_frame *f) {
  return madfs_fd_concerns((int)f->argument[0]) || madfs_fd_concerns((int)f->argument[2]);
}

static long status_of(const struct side *s, struct stat *file) {
  int ignored;
  struct madfs_call call = {.number = CALL_fstat, .count = 2};
  call.arg[0] = (struct madfs_arg){.kind = MADFS_ARG_FD, .value = (long)madfs_fd_handle(s->slot)};
  call.arg[1] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = (long)file};
  return madfs_runtime_call(&call, &ignored);
}

static int64_t position(const struct side *s) {
  return s->pointer ? s->offset : madfs_fds_offset_get(madfs_fd_handle(s->slot));
}

// Within one file: `size` becomes what there is to copy now; -EINVAL when it would be copied onto itself.
static long check_overlap(const struct side *in, const struct side *out, size_t *size) {
  struct stat from, to;
  long error = status_of(in, &from);
  if (!error) error = status_of(out, &to);
  if (error || from.st_ino != to.st_ino) return error;
  int64_t left = from.st_size - position(in), apart = position(in) - position(out);
  if (left < 0) left = 0;
  if (*size > (size_t)left) *size = (size_t)left;
  return (size_t)(apart < 0 ? -apart : apart) < *size ? -EINVAL : 0;
}

// Type and flags of what is open, from its slot or from the kernel.
static long kind_of(const struct side *s, uint32_t *mode, uint32_t *flags) {
  struct {
    uint64_t ino, size;
    uint32_t chunk_size, mode;
    char rest[128];
  } record;  // RECORD of files.py
  size_t length = sizeof record, path_length;
  struct stat file;
  if (s->slot >= 0) {
    char *path = madfs_local.thread->scratch;
    if (madfs_fds_slot_read(madfs_fd_handle(s->slot), flags, &record, &length, path, &path_length))
      return -EBADF;
    *mode = record.mode;
    return 0;
  }
  long result = RAW(SYS_fcntl, s->fd, F_GETFL);
  if (madfs_failed(result) || result & O_PATH) return -EBADF;
  *flags = (uint32_t)result;
  result = RAW(SYS_fstat, s->fd, &file);
  *mode = file.st_mode;
  return madfs_failed(result) ? result : 0;
}

// In the order of Linux's do_sendfile().
static long check_send(const struct side *in, const struct side *out, size_t size) {
  uint32_t mode, flags;
  if (kind_of(in, &mode, &flags) || (flags & O_ACCMODE) == O_WRONLY) return -EBADF;
  if (in->pointer && (S_ISFIFO(mode) || S_ISSOCK(mode))) return -ESPIPE;
  if ((in->pointer && in->offset < 0) || (ssize_t)size < 0) return -EINVAL;
  uint32_t in_mode = mode;
  if (kind_of(out, &mode, &flags) || (flags & O_ACCMODE) == O_RDONLY) return -EBADF;
  if (flags & O_APPEND) return -EINVAL;
  return size && S_ISDIR(in_mode) ? -EINVAL : 0;
}

static enum madfs_verdict sendfile_work(struct madfs_frame *f) {
  struct side in, out;
  long error, failed;
  size_t size = f->argument[3];
  side_open(&in, (int)f->argument[1], f->argument[2], &error);
  side_open(&out, (int)f->argument[0], 0, &failed);
  if (in.slot < 0 && out.slot < 0 && error != -EBADF && failed != -EBADF) return MADFS_PASS;
  if (error == -EFAULT) return answer(f, -EFAULT);
  if (error != -EBADF) error = check_send(&in, &out, size);
  if (!error && size) error = check_host(&in);
  if (error || !size) return answer(f, side_close(&in, error));
  struct madfs_thread *t = madfs_local.thread;
  long result = copy_file(f, &in, &out, size, true);
  return t->later_frame == f ? MADFS_DONE : answer(f, result);
}

const struct madfs_shim madfs_shim_sendfile = {sendfile_concerns, sendfile_work};

// In the order of Linux's generic_copy_file_checks().
static long check_copy(const struct side *in, const struct side *out, uint64_t size) {
  uint32_t in_mode, out_mode, in_flags, out_flags;
  if (kind_of(in, &in_mode, &in_flags) || kind_of(out, &out_mode, &out_flags)) return -EBADF;
  if (S_ISDIR(in_mode) || S_ISDIR(out_mode)) return -EISDIR;
  if (!S_ISREG(in_mode) || !S_ISREG(out_mode)) return -EINVAL;
  if ((in_flags & O_ACCMODE) == O_WRONLY || (out_flags & O_ACCMODE) == O_RDONLY || out_flags & O_APPEND) return -EBADF;
  const struct side *sides[] = {in, out};
  bool negative = false;
  for (int i = 0; i < 2; i++) {
    uint64_t at = (uint64_t)(sides[i]->pointer ? sides[i]->offset : sides[i]->slot >= 0 ? position(sides[i]) : 0);
    if (at + size < at) return -EOVERFLOW;
    negative |= (int64_t)at < 0;
  }
  return negative ? -EINVAL : 0;
}

static enum madfs_verdict copy_work(struct madfs_frame *f) {
  struct side in = {.fd = (int)f->argument[0]}, out = {.fd = (int)f->argument[2]};
  long error, failed;
  size_t size = f->argument[4];
  side_open(&in, in.fd, f->argument[1], &error);
  side_open(&out, out.fd, f->argument[3], &failed);
  if (in.slot < 0 && out.slot < 0 && error != -EBADF && failed != -EBADF) return MADFS_PASS;
  bool bad = error == -EBADF || failed == -EBADF || madfs_failed(RAW(SYS_fcntl, in.fd, F_GETFD)) ||
             madfs_failed(RAW(SYS_fcntl, out.fd, F_GETFD));
  if (bad) return answer(f, -EBADF);
  if (error == -EFAULT || failed == -EFAULT) return answer(f, -EFAULT);
  if ((unsigned)f->argument[5]) return answer(f, -EINVAL);
  error = check_copy(&in, &out, size);
  if (!error && in.slot >= 0 && out.slot >= 0) error = check_overlap(&in, &out, &size);
  if (error) return answer(f, error);
  return answer(f, copy_file(f, &in, &out, size, false));
}

const struct madfs_shim madfs_shim_copy_file_range = {copy_concerns, copy_work};

// --- splice ---------------------------------------------------------------------------------------------------------

enum { SPLICE_FLAGS = SPLICE_F_MOVE | SPLICE_F_NONBLOCK | SPLICE_F_MORE | SPLICE_F_GIFT };

static enum madfs_verdict on_pipe(struct madfs_frame *f, bool (*later)(struct madfs_thread *), char *buffer,
                                  long size) {
  struct madfs_thread *t = madfs_local.thread;
  t->later = later;
  t->later_frame = f;
  t->later_buffer = buffer;
  t->later_size = size;
  return MADFS_DONE;
}

// vmsplice, because it takes what fits and blocks like splice; the pipe keeps the pages when they are unmapped here.
static bool fill_pipe(struct madfs_thread *t) {
  struct madfs_frame *f = t->later_frame;
  struct iovec data = {t->later_buffer, (size_t)t->later_size};
  struct side in;
  long error;
  t->later_frame = NULL;
  side_open(&in, (int)f->argument[0], f->argument[1], &error);
  unsigned flags = f->argument[5] & SPLICE_F_NONBLOCK;
  int pipe = (int)f->argument[2];
  if (RAW(SYS_fcntl, pipe, F_GETFL) & O_NONBLOCK) flags |= SPLICE_F_NONBLOCK;
  long put = RAW(SYS_vmsplice, pipe, &data, 1, flags);
  long moved = put > 0 ? put : 0;
  give_back(&in, (long)data.iov_len - moved);
  advance(&in, moved);
  RAW(SYS_munmap, data.iov_base, PIECE);
  f->number = side_close(&in, put);
  return true;
}

// Reads from the pipe as the application would, then writes in its name.
static bool drain_pipe(struct madfs_thread *t) {
  struct madfs_frame *f = t->later_frame, write = *f;
  char *buffer = t->later_buffer;
  long size = t->later_size, done = 0, result = 0, error;
  struct side out;
  t->later_frame = NULL;
  side_open(&out, (int)f->argument[2], f->argument[3], &error);
  struct pollfd pipe = {.fd = (int)f->argument[0], .events = POLLIN};
  struct timespec now = {0, 0};
  bool waits = !(f->argument[5] & SPLICE_F_NONBLOCK) || RAW(SYS_ppoll, &pipe, 1, &now, 0, 0);
  long got = waits ? RAW(SYS_read, pipe.fd, buffer, size) : -EAGAIN;
  while (done < got && result >= 0) {
    write.number = out.pointer ? SYS_pwrite64 : SYS_write;
    const unsigned long arguments[] = {(unsigned)out.fd, (unsigned long)buffer + (unsigned long)done,
                                       (unsigned long)(got - done), (unsigned long)out.offset};
    memcpy(write.argument, arguments, sizeof arguments);
    result = madfs_filter(&write) == MADFS_DONE ? write.number : -EBADF;
    if (result <= 0) break;
    done += result;
    advance(&out, result);
  }
  RAW(SYS_munmap, buffer, PIECE);
  f->number = side_close(&out, done ? done : got > 0 ? result : got);
  return true;
}

static bool is_pipe(const struct side *s, long *error) {
  struct stat file;
  *error = s->slot < 0 ? RAW(SYS_fstat, s->fd, &file) : 0;
  return s->slot < 0 && !*error && S_ISFIFO(file.st_mode);
}

static long open_mode(const struct side *s) {
  return s->slot >= 0 ? (long)madfs_slot_flags(s->slot) : RAW(SYS_fcntl, s->fd, F_GETFL);
}

// In the kernel's order.
static long check_splice(const struct madfs_frame *f, struct side *in, struct side *out) {
  long error, in_error, out_error;
  if (f->argument[5] & ~(unsigned)SPLICE_FLAGS) return -EINVAL;
  *in = (struct side){.fd = (int)f->argument[0], .slot = madfs_fd_slot((int)f->argument[0])};
  *out = (struct side){.fd = (int)f->argument[2], .slot = madfs_fd_slot((int)f->argument[2])};
  if (in->slot == FD_INTERNAL || out->slot == FD_INTERNAL) return -EBADF;
  bool from_pipe = is_pipe(in, &in_error), to_pipe = is_pipe(out, &out_error);
  if (in_error || out_error) return -EBADF;
  if ((from_pipe && f->argument[1]) || (to_pipe && f->argument[3])) return -ESPIPE;
  if (!side_open(in, in->fd, f->argument[1], &error) && error == -EFAULT) return error;
  if (!side_open(out, out->fd, f->argument[3], &error) && error == -EFAULT) return error;
  long from = open_mode(in), to = open_mode(out);
  if (from & O_PATH || to & O_PATH || (from & O_ACCMODE) == O_WRONLY || (to & O_ACCMODE) == O_RDONLY) return -EBADF;
  if (!from_pipe && !to_pipe) return -EINVAL;
  if (from & O_DIRECTORY || (!to_pipe && to & O_APPEND)) return -EINVAL;
  return in->offset < 0 || out->offset < 0 || (ssize_t)f->argument[4] < 0 ? -EINVAL : 0;
}

static enum madfs_verdict splice_work(struct madfs_frame *f) {
  struct side in, out;
  size_t size = f->argument[4] < PIECE ? f->argument[4] : PIECE;
  if (!size) return answer(f, 0);
  long error = check_splice(f, &in, &out);
  if (error) return answer(f, error);
  if (in.slot < 0 && out.slot < 0) return MADFS_PASS;
  long room = in.slot >= 0 ? RAW(SYS_fcntl, out.fd, F_GETPIPE_SZ) : PIECE;
  if (room > 0 && (size_t)room < size) size = (size_t)room;
  long pages = RAW(SYS_mmap, 0, PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (madfs_failed(pages)) return answer(f, pages);
  if (out.slot >= 0) return on_pipe(f, drain_pipe, (char *)pages, (long)size);
  long got = move(&in, false, (char *)pages, size);
  if (got > 0) return on_pipe(f, fill_pipe, (char *)pages, got);
  RAW(SYS_munmap, pages, PIECE);
  return answer(f, got == -EISDIR ? -EINVAL : got);
}

const struct madfs_shim madfs_shim_splice = {copy_concerns, splice_work};

// --- tee ------------------------------------------------------------------------------------------------------------

static bool tee_concerns(struct madfs_frame *f) {
  return madfs_fd_concerns((int)f->argument[0]) || madfs_fd_concerns((int)f->argument[1]);
}

// At least one of the two is no pipe.
static enum madfs_verdict tee_work(struct madfs_frame *f) {
  if (f->argument[3] & ~(unsigned)SPLICE_FLAGS) return answer(f, -EINVAL);
  if (!f->argument[2]) return answer(f, 0);
  long mode[2];
  for (int i = 0; i < 2; i++) {
    struct side s = {.fd = (int)f->argument[i], .slot = madfs_fd_slot((int)f->argument[i])};
    mode[i] = s.slot == FD_INTERNAL ? -EBADF : open_mode(&s);
    if (madfs_failed(mode[i]) || mode[i] & O_PATH) return answer(f, -EBADF);
  }
  bool possible = (mode[0] & O_ACCMODE) != O_WRONLY && (mode[1] & O_ACCMODE) != O_RDONLY;
  return answer(f, possible ? -EINVAL : -EBADF);
}

const struct madfs_shim madfs_shim_tee = {tee_concerns, tee_work};
