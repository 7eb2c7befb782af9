// SPDX-License-Identifier: Apache-2.0
// Sockets with a path in the mount, and what messages carry: names and descriptors.
//
// The entry lives with the servers; the socket is bound to a path of the kernel's,
// in a directory of this job and node that is reached through a descriptor of the runtime's, so that /proc/net/unix
// does not tell where it is.  What the program called it is the target of a link, from which addresses that the kernel
// gives are translated back:
//
//   /proc/self/fd/N/madfs-JOB-INODE     what the kernel knows, relative to the private directory (nodes.py)
//   /dev/shm/madfs-nodes-JOB/INODE      a link to the name as bind() got it
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "intercept.h"

enum {
  PATH_AT = offsetof(struct sockaddr_un, sun_path),
  PATH_SIZE = sizeof(((struct sockaddr_un *)0)->sun_path),
  JOB_DIGITS = 16,
};

static enum madfs_verdict answer(struct madfs_frame *f, long result) {
  f->number = result;
  return MADFS_DONE;
}

static bool answered(struct madfs_frame *f, long result) {
  f->number = result;
  return true;
}

// --- addresses that programs give -----------------------------------------------------------------------------------

// The path in an address, NUL-terminated; false when it has none.
static bool path_of(unsigned long address, size_t size, char path[PATH_SIZE + 1]) {
  struct sockaddr_un copy;
  if (size <= PATH_AT || size > sizeof copy || address < MADFS_POINTER_MIN) return false;
  if (!madfs_user_in(&copy, (const void *)address, size) || copy.sun_family != AF_UNIX || !copy.sun_path[0])
    return false;
  memcpy(path, copy.sun_path, size - PATH_AT);
  path[size - PATH_AT] = 0;
  return true;
}

static bool is_ours(unsigned long address, size_t size) {
  char path[PATH_SIZE + 1];
  if (!path_of(address, size, path)) return false;
  return madfs_path_concerns(AT_FDCWD, path) ||
         (RAW(SYS_faccessat, AT_FDCWD, path, F_OK) == -ENOENT && madfs_links_suspect(AT_FDCWD, path));
}

// Where the path leads, as the runtime takes it: PATH_OURS, PATH_HOST or -errno.  `last`: through a link at its end.
static int locate(unsigned long address, size_t size, bool last, struct madfs_call *call) {
  struct madfs_thread *t = madfs_local.thread;
  size_t length;
  if (!path_of(address, size, t->given[0])) return PATH_HOST;
  int where = madfs_path_locate(AT_FDCWD, t->given[0], t->path[0], &length);
  if (where == PATH_HOST) where = madfs_links_follow(AT_FDCWD, t->given[0], last, t->path[0], &length);
  *call = (struct madfs_call){.count = 1};
  call->arg[0] = (struct madfs_arg){.kind = MADFS_ARG_PATH, .text = t->path[0], .length = length};
  return where;
}

static int option(int fd, int name) {
  int value = -1;
  socklen_t size = sizeof value;
  RAW(SYS_getsockopt, fd, SOL_SOCKET, name, &value, &size);
  return value;
}

// The address of what the runtime found: a path of the kernel's.  0, or -errno.
static long address_of(const char *path, struct sockaddr_un *out) {
  *out = (struct sockaddr_un){.sun_family = AF_UNIX};
  return madfs_copy(out->sun_path, PATH_SIZE, path) >= PATH_SIZE - 1 ? -ENAMETOOLONG : 0;
}

// --- bind -----------------------------------------------------------------------------------------------------------

static bool address_concerns(struct madfs_frame *f) {
  return is_ours(f->argument[1], f->argument[2] & 0xffffffff);
}

// The entry first, then the socket: who finds the entry in between is told that nobody listens.
static enum madfs_verdict bind_work(struct madfs_frame *f) {
  struct madfs_thread *t = madfs_local.thread;
  struct sockaddr_un address;
  struct madfs_call call;
  struct stat file;
  int fd = (int)f->argument[0], ignored;
  if (option(fd, SO_DOMAIN) != AF_UNIX || madfs_failed(RAW(SYS_fstat, fd, &file))) return MADFS_PASS;
  int where = locate(f->argument[1], f->argument[2] & 0xffffffff, false, &call);
  if (where != PATH_OURS) return where < 0 ? answer(f, where) : MADFS_PASS;
  call.number = CALL_socket_bind;
  call.count = 4;
  call.arg[1] = (struct madfs_arg){.kind = MADFS_ARG_STR, .text = t->given[0], .length = strlen(t->given[0])};
  call.arg[2] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = (long)file.st_mode & 07777};
  call.arg[3] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = (long)t->scratch};
  long result = madfs_runtime_call(&call, &ignored);
  if (madfs_failed(result)) return answer(f, result == -EEXIST ? -EADDRINUSE : result);
  const char *path = result == MADFS_HOST_PATH ? t->escaped : t->scratch;
  long error = address_of(path, &address);
  if (!error) error = RAW(SYS_bind, fd, &address, PATH_AT + strlen(address.sun_path) + 1);
  if (result == MADFS_HOST_PATH) return answer(f, error);
  if (!error) {
    RAW(SYS_fchmodat, AT_FDCWD, path, 0666);  // who may connect is checked at the entry
    return answer(f, 0);
  }
  call.number = CALL_unlinkat;
  call.count = 2;
  call.arg[1] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = 0};
  madfs_runtime_call(&call, &ignored);
  return answer(f, error);
}

const struct madfs_shim madfs_shim_bind = {.concerns = address_concerns, .work = bind_work};

// --- connect, and messages to an address ----------------------------------------------------------------------------

static struct msghdr *message_of(const struct madfs_frame *f) {
  return f->number == SYS_sendmmsg ? &((struct mmsghdr *)f->argument[1])->msg_hdr : (struct msghdr *)f->argument[1];
}

// The call with the address at `path`.  It may block, so the kernel gets the application's signals.
static long call_with(const struct madfs_frame *f, const struct sockaddr_un *address) {
  size_t size = PATH_AT + strlen(address->sun_path) + 1;
  const unsigned long *a = f->argument;
  if (f->number == SYS_connect) return arch_syscall(SYS_connect, (long)a[0], (long)address, (long)size, 0, 0, 0);
  if (f->number == SYS_sendto)
    return arch_syscall(SYS_sendto, (long)a[0], (long)a[1], (long)a[2], (long)a[3], (long)address, (long)size);
  struct msghdr message;
  if (!madfs_user_in(&message, message_of(f), sizeof message)) return -EFAULT;
  message.msg_name = (void *)address;
  message.msg_namelen = (socklen_t)size;
  long flags = (long)a[f->number == SYS_sendmmsg ? 3 : 2];
  long result = arch_syscall(SYS_sendmsg, (long)a[0], (long)&message, flags, 0, 0, 0);
  if (f->number != SYS_sendmmsg || result < 0) return result;
  unsigned count = (unsigned)result;
  return madfs_user_out(&((struct mmsghdr *)a[1])->msg_len, &count, sizeof count) ? 1 : -EFAULT;
}

static bool send_later(struct madfs_thread *t) {
  struct madfs_frame *f = t->later_frame;
  struct sockaddr_un address;
  bool here = t->later_size != 0;  // bound below the mount, on this node
  t->later_frame = NULL;
  long result = address_of(t->escaped, &address);  // a handler may come by here again
  if (!result) result = call_with(f, &address);
  f->number = here && result == -ENOENT ? -ECONNREFUSED : result;
  return true;
}

static enum madfs_verdict send_to(struct madfs_frame *f, unsigned long address, size_t size) {
  struct madfs_thread *t = madfs_local.thread;
  struct madfs_call call;
  int ignored;
  if (option((int)f->argument[0], SO_DOMAIN) != AF_UNIX) return MADFS_PASS;
  if (f->number != SYS_connect && option((int)f->argument[0], SO_TYPE) != SOCK_DGRAM) return MADFS_PASS;
  int where = locate(address, size, true, &call);
  if (where != PATH_OURS) return where < 0 ? answer(f, where) : MADFS_PASS;
  call.number = CALL_socket_find;
  call.count = 2;
  call.arg[1] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = (long)t->scratch};
  long result = madfs_runtime_call(&call, &ignored);
  if (madfs_failed(result)) return answer(f, result);
  if (result != MADFS_HOST_PATH) madfs_copy(t->escaped, MADFS_PATH_MAX, t->scratch);
  t->later = send_later;
  t->later_frame = f;
  t->later_size = result != MADFS_HOST_PATH;
  return MADFS_DONE;
}

static enum madfs_verdict connect_work(struct madfs_frame *f) {
  return send_to(f, f->argument[1], f->argument[2] & 0xffffffff);
}

const struct madfs_shim madfs_shim_connect = {.concerns = address_concerns, .work = connect_work};

static bool sendto_concerns(struct madfs_frame *f) {
  return f->argument[4] && is_ours(f->argument[4], f->argument[5] & 0xffffffff);
}

static enum madfs_verdict sendto_work(struct madfs_frame *f) {
  return send_to(f, f->argument[4], f->argument[5] & 0xffffffff);
}

const struct madfs_shim madfs_shim_sendto = {.concerns = sendto_concerns, .work = sendto_work};

static bool message_is_ours(const struct msghdr *message) {
  struct msghdr copy;
  return (unsigned long)message >= MADFS_POINTER_MIN && arch_peek(&message->msg_name) &&
         madfs_user_in(&copy, message, sizeof copy) && is_ours((unsigned long)copy.msg_name, copy.msg_namelen);
}

// SCM_RIGHTS carries descriptors away.
static void note_descriptors(const struct madfs_frame *f) {
  const struct msghdr *message = (const struct msghdr *)f->argument[1];
  if (!madfs_fds_any() || (unsigned long)message < MADFS_POINTER_MIN) return;
  // One message is looked at; several are taken to carry some.
  if (f->number == SYS_sendmmsg || arch_peek(&message->msg_control)) madfs_fds_shared();
}

// Of several messages those before the first that is ours go to the kernel, and this one alone when it leads.
static bool sendmsg_concerns(struct madfs_frame *f) {
  note_descriptors(f);
  if (f->number != SYS_sendmmsg) return message_is_ours(message_of(f));
  const struct mmsghdr *list = (const struct mmsghdr *)f->argument[1];
  for (unsigned i = 0; i < (unsigned)f->argument[2] && arch_touch((const char *)&list[i], false); i++)
    if (message_is_ours(&list[i].msg_hdr)) return true;
  return false;
}

static enum madfs_verdict sendmsg_work(struct madfs_frame *f) {
  const struct mmsghdr *list = (const struct mmsghdr *)f->argument[1];
  struct msghdr message;
  unsigned before = 0;
  while (f->number == SYS_sendmmsg && !message_is_ours(&list[before].msg_hdr)) before++;
  if (before) return answer(f, RAW(SYS_sendmmsg, f->argument[0], list, before, f->argument[3]));
  if (!madfs_user_in(&message, message_of(f), sizeof message)) return answer(f, -EFAULT);
  return send_to(f, (unsigned long)message.msg_name, message.msg_namelen);
}

const struct madfs_shim madfs_shim_sendmsg = {.concerns = sendmsg_concerns, .work = sendmsg_work};

// --- addresses that the kernel gives --------------------------------------------------------------------------------

static const char *after(const char *text, const char *prefix) {
  size_t length = strlen(prefix);
  return memcmp(text, prefix, length) == 0 ? text + length : NULL;
}

// What the program called the socket, in place of what the kernel calls it: the new size, or 0 when it is none of ours.
static size_t translate(struct sockaddr_un *address, size_t size) {
  char path[PATH_SIZE + 1] = {0}, link[sizeof "/dev/shm/madfs-nodes-" + JOB_DIGITS + 1 + PATH_SIZE];
  if (size <= PATH_AT || size > sizeof *address + 1 || address->sun_family != AF_UNIX) return 0;
  memcpy(path, address->sun_path, size - PATH_AT < PATH_SIZE ? size - PATH_AT : PATH_SIZE);
  const char *at = after(path, "/proc/self/fd/");
  while (at && *at >= '0' && *at <= '9') at++;
  if (!at || !(at = after(at, "/madfs-")) || strlen(at) <= JOB_DIGITS + 1 || at[JOB_DIGITS] != '-') return 0;
  for (const char *digit = at; *digit; digit++)
    if (*digit == '/' || *digit == '.') return 0;
  size_t n = madfs_copy(link, sizeof link, "/dev/shm/madfs-nodes-");
  n += madfs_copy(link + n, sizeof link - n, at);
  link[n - strlen(at) + JOB_DIGITS] = '/';
  long length = RAW(SYS_readlinkat, AT_FDCWD, link, address->sun_path, PATH_SIZE);
  if (length <= 0) return 0;
  if (length < PATH_SIZE) address->sun_path[length] = 0;
  return PATH_AT + (size_t)length + 1;
}

static socklen_t size_at(unsigned long place) {
  socklen_t size = 0;
  return place && madfs_user_in(&size, (const void *)place, sizeof size) ? size : 0;
}

// An address at `out`, where the program has `room`, and its size at `place`.
static void put_back(const struct sockaddr_un *address, size_t size, unsigned long out, size_t room,
                     unsigned long place) {
  socklen_t length = (socklen_t)size;
  if (size > sizeof *address) size = sizeof *address;
  madfs_user_out((void *)out, address, size < room ? size : room);
  madfs_user_out((void *)place, &length, sizeof length);
}

// getsockname, getpeername, accept, recvfrom: done by the kernel, then the address is translated.
static bool name_concerns(struct madfs_frame *f) {
  bool receives = f->number == SYS_recvfrom;
  unsigned long out = f->argument[receives ? 4 : 1], place = f->argument[receives ? 5 : 2];
  if (out < MADFS_POINTER_MIN || place < MADFS_POINTER_MIN) return false;
  socklen_t room = size_at(place);
  if ((int)room < 0) return false;
  long number = f->number;
  const unsigned long *a = f->argument;
  long result = arch_syscall(number, (long)a[0], (long)a[1], (long)a[2], (long)a[3], (long)a[4], (long)a[5]);
  socklen_t size = madfs_failed(result) ? 0 : size_at(place);
  struct sockaddr_un address;
  if (size <= PATH_AT || size > sizeof address + 1 || (room && arch_peek_byte((const char *)out) != AF_UNIX))
    return answered(f, result);
  if (size <= room) {
    memset(&address, 0, sizeof address);
    if (!madfs_user_in(&address, (const void *)out, size < sizeof address ? size : sizeof address)) size = 0;
  } else if (!receives) {  // it was cut off
    bool accepts = number == SYS_accept || number == SYS_accept4;
    socklen_t whole = sizeof address;
    if (madfs_failed(RAW(accepts || number == SYS_getpeername ? SYS_getpeername : SYS_getsockname,
                         accepts ? result : (long)a[0], &address, &whole)))
      size = 0;
  } else {
    size = 0;
  }
  size_t named = size ? translate(&address, size) : 0;
  if (named) put_back(&address, named, out, room, place);
  return answered(f, result);
}

const struct madfs_shim madfs_shim_getsockname = {.concerns = name_concerns};

// --- messages that come ---------------------------------------------------------------------------------------------

// The sender's name in a received message, for which there was `room`.
static void name_sender(struct msghdr *message, size_t room) {
  struct msghdr m;
  struct sockaddr_un address = {0};
  if (!madfs_user_in(&m, message, sizeof m) || !m.msg_name || m.msg_namelen > room || m.msg_namelen <= PATH_AT) return;
  size_t size = m.msg_namelen;
  if (!madfs_user_in(&address, m.msg_name, size < sizeof address ? size : sizeof address)) return;
  size_t named = translate(&address, size);
  if (named) put_back(&address, named, (unsigned long)m.msg_name, room, (unsigned long)&message->msg_namelen);
}

// Descriptors among what a message brought.
static void meet_all(const struct msghdr *message) {
  struct msghdr m;
  struct cmsghdr header;
  if (!madfs_user_in(&m, message, sizeof m) || !m.msg_control) return;
  for (size_t at = 0; at + sizeof header <= m.msg_controllen; at += CMSG_ALIGN(header.cmsg_len)) {
    const char *place = (const char *)m.msg_control + at;
    if (!madfs_user_in(&header, place, sizeof header) || header.cmsg_len < sizeof header) return;
    if (header.cmsg_level != SOL_SOCKET || header.cmsg_type != SCM_RIGHTS) continue;
    for (size_t n = CMSG_LEN(0); n + sizeof(int) <= header.cmsg_len && at + n < m.msg_controllen; n += sizeof(int)) {
      int fd;
      if (madfs_user_in(&fd, place + n, sizeof fd)) madfs_fds_meet(fd);
    }
  }
}

enum { ROOMS_MAX = 64 };  // of the senders' names in several messages; those of more are only as long as the kernel's

static bool receive_concerns(struct madfs_frame *f) {
  const unsigned long *a = f->argument;
  bool several = f->number == SYS_recvmmsg, any = madfs_fds_any();
  struct mmsghdr *list = (struct mmsghdr *)a[1];
  socklen_t room[ROOMS_MAX] = {0};
  if (a[1] < MADFS_POINTER_MIN || madfs_in_vfork()) return false;
  if (!several && !arch_peek(&list->msg_hdr.msg_name) && !(any && arch_peek(&list->msg_hdr.msg_control)))
    return false;
  unsigned asked = !several ? 1 : (unsigned)a[2] < ROOMS_MAX ? (unsigned)a[2] : ROOMS_MAX;
  for (unsigned i = 0; i < asked; i++) room[i] = (socklen_t)arch_peek(&list[i].msg_hdr.msg_namelen);
  long result = arch_syscall(f->number, (long)a[0], (long)a[1], (long)a[2], (long)a[3], (long)a[4], (long)a[5]);
  long count = several || result < 0 ? result : 1;
  for (long i = 0; i < count; i++) {
    struct msghdr *message = &list[i].msg_hdr;
    if (any) meet_all(message);
    name_sender(message, i < ROOMS_MAX ? room[i] : (socklen_t)arch_peek(&message->msg_namelen));
  }
  return answered(f, result);
}

const struct madfs_shim madfs_shim_recvmsg = {.concerns = receive_concerns};
