// SPDX-License-Identifier: Apache-2.0
// Numbers of internal descriptors that the program takes for itself, by dup2().
//
// The runtime has the numbers of its descriptors in its memory, and UCX in its own, so they cannot change there.  When
// the program wants such a number the descriptor moves to another one, and from then on the system calls of the runtime
// mean that: those with a descriptor among their arguments come by here.  Sets of epoll know their members by number,
// too, and are told.  Until something was moved nothing is asked: the calls that are otherwise the kernel's are of
// CLASS_NONE.
//
// A child of vfork has a table of its own, and the runtime's descriptors there are of no use to it: it just takes the
// number, and notes that on the memory that it shares with its parent.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "intercept.h"

enum { MOVED_MAX = 256, POLLED_MAX = 64, LINE = 160 };

static struct {
  struct madfs_lock lock;
  _Atomic int count;
  struct {
    _Atomic int was, is;
  } at[MOVED_MAX];
} moved;

// Calls with descriptors that are the kernel's when the program makes them.
static const uint16_t dormant[] = {
    SYS_ppoll,       SYS_epoll_ctl,   SYS_epoll_pwait,      SYS_epoll_pwait2, SYS_shutdown,
    SYS_setsockopt,  SYS_getsockopt,  SYS_timerfd_settime,  SYS_listen,       ARCH_POLLS,
};

bool madfs_numbers_dormant(long number) {
  for (unsigned i = 0; i < sizeof dormant / sizeof *dormant; i++)
    if (dormant[i] == number) return true;
  return false;
}

bool madfs_numbers_any(void) { return atomic_load_explicit(&moved.count, memory_order_relaxed) != 0; }

int madfs_number_real(int fd) {
  for (int i = 0, n = atomic_load(&moved.count); i < n; i++)
    if (atomic_load(&moved.at[i].was) == fd) return atomic_load(&moved.at[i].is);
  return fd;
}

bool madfs_number_given(int fd) {
  for (int i = 0, n = atomic_load(&moved.count); i < n; i++)
    if (atomic_load(&moved.at[i].was) == fd) return true;
  return false;
}

// --- moving ---------------------------------------------------------------------------------------------------------

static const char *hexadecimal(const char *at, uint64_t *value) {
  *value = 0;
  while (*at == ' ') at++;
  for (;; at++) {
    int digit = *at >= '0' && *at <= '9' ? *at - '0' : *at >= 'a' && *at <= 'f' ? *at - 'a' + 10 : -1;
    if (digit < 0) return at;
    *value = *value << 4 | (uint64_t)digit;
  }
}

// "tfd:       12 events:       19 data:         1000000000c ..." about the member `old` of the set `set`.
static void move_member(int set, const char *line, int old, int new) {
  uint64_t events, data;
  unsigned long member;
  const char *at = line + 4;
  if (!madfs_starts(line, "tfd:")) return;
  while (*at == ' ') at++;
  at = madfs_number(at, 10, &member);
  if (!at || (int)member != old || !madfs_starts(at, " events:")) return;
  at = hexadecimal(at + strlen(" events:"), &events);
  if (!madfs_starts(at, " data:")) return;
  hexadecimal(at + strlen(" data:"), &data);
  struct epoll_event event = {.events = (uint32_t)events, .data.u64 = data};
  if (!madfs_failed(RAW(SYS_epoll_ctl, set, EPOLL_CTL_DEL, old, 0)))
    RAW(SYS_epoll_ctl, set, EPOLL_CTL_ADD, new, &event);
}

static void move_in_set(int set, int old, int new) {
  char name[48], number[24], text[4096];
  size_t held = madfs_copy(name, sizeof name, "/proc/self/fdinfo/");
  madfs_copy(name + held, sizeof name - held, madfs_decimal(number, (unsigned)set));
  long fd = madfs_open(name, O_RDONLY | O_CLOEXEC), got;
  if (madfs_failed(fd)) return;
  for (held = 0; (got = RAW(SYS_read, fd, text + held, sizeof text - 1 - held)) > 0;) {
    size_t start = 0, end = held + (size_t)got;
    for (size_t i = start; i < end; i++) {
      if (text[i] != '\n') continue;
      text[i] = 0;
      move_member(set, text + start, old, new);
      start = i + 1;
    }
    held = end - start < LINE ? end - start : 0;
    memmove(text, text + start, held);
  }
  RAW(SYS_close, fd);
}

static bool note_moved(int old, int new) {
  int i = 0, n = atomic_load(&moved.count);
  while (i < n && atomic_load(&moved.at[i].is) != old) i++;  // it has been moved before
  if (i == MOVED_MAX) return false;
  atomic_store(&moved.at[i].is, new);
  if (i < n) return true;
  atomic_store(&moved.at[i].was, old);
  atomic_store(&moved.count, n + 1);
  for (unsigned k = 0; k < sizeof dormant / sizeof *dormant; k++) madfs_classes[dormant[k]] = CLASS_ASK;
  return true;
}

bool madfs_number_give(int fd) {
  madfs_runtime_fork_begins();  // nobody is about to use it
  madfs_lock(&moved.lock);
  int new = madfs_fds_move(fd);
  bool done = new >= 0 && note_moved(fd, new);
  if (done) {
    for (int set = 0, top = atomic_load(&madfs_fds_top); set <= top; set++)
      if (madfs_fd_slot(set) == FD_INTERNAL) move_in_set(set, fd, new);
    madfs_fds_internal(new);
    madfs_fds_free(fd);
  } else if (new >= 0) {
    RAW(SYS_close, new);
  }
  madfs_unlock(&moved.lock);
  madfs_runtime_fork_ends(false);
  return done;
}

static void forget(int fd) {
  madfs_lock(&moved.lock);
  int n = atomic_load(&moved.count);
  for (int i = 0; i < n; i++) {
    if (atomic_load(&moved.at[i].was) != fd) continue;
    madfs_fds_free(atomic_load(&moved.at[i].is));
    atomic_store(&moved.at[i].was, atomic_load(&moved.at[n - 1].was));
    atomic_store(&moved.at[i].is, atomic_load(&moved.at[n - 1].is));
    atomic_store(&moved.count, n - 1);
    break;
  }
  madfs_unlock(&moved.lock);
}

// --- the runtime's calls --------------------------------------------------------------------------------------------

static long poll_moved(const struct madfs_frame *f, bool *differs) {
  struct pollfd *theirs = (struct pollfd *)f->argument[0], real[POLLED_MAX];
  unsigned long n = f->argument[1];
  if (n > POLLED_MAX) return 0;
  for (unsigned long i = 0; i < n; i++) {
    real[i] = theirs[i];
    real[i].fd = madfs_number_real(theirs[i].fd);
    *differs |= real[i].fd != theirs[i].fd;
  }
  if (!*differs) return 0;
  const unsigned long *a = f->argument;
  long result = arch_syscall(f->number, (long)real, (long)a[1], (long)a[2], (long)a[3], (long)a[4], (long)a[5]);
  for (unsigned long i = 0; i < n; i++) theirs[i].revents = real[i].revents;
  return result;
}

// Which arguments are descriptors, as bits.
static unsigned descriptors_of(long number) {
  const struct madfs_row *row = &madfs_rows[number];
  unsigned bits = 0;
  for (unsigned i = 0; i < row->count; i++) {
    const struct madfs_parameter *p = &row->parameter[i];
    if (p->kind == PARAMETER_FD) bits |= 1U << p->argument;
    if (p->kind == PARAMETER_AT && p->directory >= 0) bits |= 1U << p->directory;
  }
  switch (number) {
    case SYS_close:
    case SYS_dup:
    case SYS_dup3:
    case SYS_fcntl:
    case SYS_sendmsg:
    case SYS_recvmsg:
    case SYS_sendmmsg:
    case SYS_recvmmsg:
    case SYS_sendto:
    case SYS_recvfrom:
    case SYS_connect:
    case SYS_bind:
    case SYS_accept:
    case SYS_accept4:
    case SYS_getsockname:
    case SYS_getpeername:
    case SYS_flock:
    case SYS_fchdir: return bits | 1;
    case SYS_sendfile:
    case SYS_copy_file_range: return bits | 3;
    default: return bits;
  }
}

bool madfs_numbers_translate(struct madfs_frame *f, struct madfs_frame *real) {
  bool differs = false;
  *real = *f;
  if (f->number == SYS_ppoll || ARCH_IS_POLL(f->number)) {
    long result = poll_moved(f, &differs);
    if (differs) real->number = result;
    return differs;
  }
  unsigned bits = descriptors_of(f->number);
  for (unsigned i = 0; i < 6; i++) {
    if (!(bits >> i & 1)) continue;
    int fd = madfs_number_real((int)f->argument[i]);
    differs |= fd != (int)f->argument[i];
    real->argument[i] = (unsigned long)(long)fd;
  }
  if (!differs) return false;
  if (f->number == SYS_close) {
    forget((int)f->argument[0]);
    madfs_locks_forget((int)f->argument[0]);
  }
  if (madfs_fds_inside(real) == MADFS_DONE) return true;
  const unsigned long *a = real->argument;
  real->number = arch_syscall(f->number, (long)a[0], (long)a[1], (long)a[2], (long)a[3], (long)a[4], (long)a[5]);
  return true;
}

// --- in other tables ------------------------------------------------------------------------------------------------

static _Atomic int apart[MOVED_MAX];  // 1 + the number
static _Atomic unsigned apart_count;

static bool taken_apart(int fd) {
  for (unsigned i = 0, n = atomic_load(&apart_count); i < n && i < MOVED_MAX; i++)
    if (atomic_load(&apart[i]) == fd + 1) return madfs_table_own();
  return false;
}

bool madfs_number_take_apart(int fd) {
  if (taken_apart(fd)) return true;
  unsigned i = atomic_fetch_add(&apart_count, 1);
  if (i >= MOVED_MAX) return false;
  atomic_store(&apart[i], fd + 1);
  return true;
}

// --- in a child of vfork --------------------------------------------------------------------------------------------

bool madfs_number_taken(int fd) {
  const struct madfs_thread *t = madfs_local.thread;
  for (unsigned i = 0; madfs_in_vfork() && i < t->taken_count; i++)
    if (t->taken[i] == fd) return true;
  return taken_apart(fd);
}

bool madfs_number_take(int fd) {
  struct madfs_thread *t = madfs_local.thread;
  if (t->taken_count == sizeof t->taken / sizeof *t->taken) return false;
  t->taken[t->taken_count++] = fd;
  return true;
}
