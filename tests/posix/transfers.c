// SPDX-License-Identifier: Apache-2.0
// sendfile, splice, copy_file_range, tee and vmsplice between all kinds of descriptors: `transfers HOST`, where HOST is
// a directory that is never on the mount, shows what each of some thousand calls does.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { FILE_, HOST, READ_END, WRITE_END, SOCKET, APPENDING, READING, WRITING, DIRECTORY, ZERO, HOST_END, KINDS };
enum call { SENDFILE, SPLICE, COPY, TEE, VMSPLICE, CALLS };
static const char *const names[] = {"file",    "host",    "read end",  "write end", "socket", "appending",
                                    "reading", "writing", "directory", "zero",      "host end"};
static const unsigned on_host = 1 << HOST | 1 << READ_END | 1 << WRITE_END | 1 << SOCKET | 1 << ZERO | 1 << HOST_END;
static const char *host;
static int pipes[2], sockets[2];

static int open_host(const char *name, int flags) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", host, name);
  return open(path, flags | O_CREAT, 0600);
}

static int get(enum kind kind, int out) {
  const char *name = out ? "out" : "in";
  switch (kind) {
    case FILE_: return open(name, O_RDWR);
    case HOST: return open_host(name, O_RDWR);
    case READ_END: return dup(pipes[0]);
    case WRITE_END: return dup(pipes[1]);
    case SOCKET: return dup(sockets[out]);
    case APPENDING: return open(name, O_RDWR | O_APPEND);
    case READING: return open(name, O_RDONLY);
    case WRITING: return open(name, O_WRONLY);
    case DIRECTORY: return open(".", O_RDONLY);
    case ZERO: return open("/dev/zero", O_RDWR);
    case HOST_END: return open_host(name, O_RDWR | O_APPEND);
    default: return -1;
  }
}

static void put(int fd, const char *data, size_t size) {
  if (write(fd, data, size) != (ssize_t)size || close(fd)) perror("write");
}

static void begin(enum kind in) {
  char data[5000];
  for (int i = 0; i < 5000; i++) data[i] = (char)('a' + i % 26);
  put(open("in", O_RDWR | O_CREAT | O_TRUNC, 0600), data, 5000);
  put(open("out", O_RDWR | O_CREAT | O_TRUNC, 0600), "0123456789", 10);
  put(open_host("in", O_RDWR | O_TRUNC), data, 5000);
  put(open_host("out", O_RDWR | O_TRUNC), "0123456789", 10);
  pipe2(pipes, O_NONBLOCK);
  socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sockets);
  if (in == READ_END) write(pipes[1], data, 3000);
  if (in == SOCKET) write(sockets[1], data, 3000);
}

static void show(const char *what, int fd) {
  char data[9000];
  unsigned sum = 0;
  ssize_t n = read(fd, data, sizeof data);
  for (ssize_t i = 0; i < n; i++) sum = sum * 31 + (unsigned char)data[i];
  printf(", %s %zd %x", what, n, sum);
  close(fd);
}

static void end(int in, int out) {
  printf(", at %ld %ld", (long)lseek(in, 0, SEEK_CUR), (long)lseek(out, 0, SEEK_CUR));
  close(in);
  close(out);
  show("pipe", pipes[0]);
  show("socket", sockets[0]);
  show("out", open("out", O_RDONLY));
  show("host", open_host("out", O_RDONLY));
  close(pipes[1]);
  close(sockets[1]);
  puts("");
}

static long transfer(enum call call, int in, loff_t *from, int out, loff_t *to) {
  struct iovec data = {"vmsplice", 8};
  switch (call) {
    case SENDFILE: return sendfile(out, in, from, 100);
    case SPLICE: return splice(in, from, out, to, 200, SPLICE_F_NONBLOCK);
    case COPY: return copy_file_range(in, from, out, to, 300, 0);
    case TEE: return tee(in, out, 50, SPLICE_F_NONBLOCK);
    default: return vmsplice(out, &data, 1, SPLICE_F_NONBLOCK);
  }
}

static const char *reason(long result) { return result < 0 ? strerrorname_np(errno) : ""; }

static void one(enum call call, enum kind from, enum kind to, loff_t at, loff_t until) {
  begin(from);
  int in = get(from, 0), out = get(to, 1);
  loff_t here = at, there = until;
  long result = transfer(call, in, at == -2 ? NULL : &here, out, until == -2 ? NULL : &there);
  printf("%d %s, %ld -> %s, %ld: %ld %s, %ld %ld", (int)call, names[from], (long)at, names[to], (long)until, result,
         reason(result), (long)here, (long)there);
  end(in, out);
}

static void sizes(void) {
  static const struct {
    size_t size;
    unsigned flags;
  } all[] = {{0, 0}, {1UL << 40, 0}, {~0UL, 0}, {SIZE_MAX / 2 + 1, 0}, {10, 1}, {10, ~0U}, {4990, 0}};
  char data[70000];
  begin(FILE_);
  int in = get(FILE_, 0), out = get(FILE_, 1);
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    for (int call = 0; call < CALLS - 1; call++) {
      lseek(in, 0, SEEK_SET);
      lseek(out, 0, SEEK_SET);
      size_t size = all[i].size;
      long result = call == SENDFILE ? sendfile(out, in, NULL, size)
                    : call == SPLICE ? splice(in, NULL, pipes[1], NULL, size, all[i].flags | SPLICE_F_NONBLOCK)
                    : call == COPY   ? copy_file_range(in, NULL, out, NULL, size, all[i].flags)
                                     : tee(in, pipes[1], size, all[i].flags);
      printf("%d %zx %x: %ld %s\n", call, size, all[i].flags, result, reason(result));
      while (read(pipes[0], data, sizeof data) > 0) continue;
    }
  }
  end(in, out);
}

int main(int count, char **words) {
  static const loff_t from[] = {-2, 7, -5, 6000};
  if (count != 2) return 2;
  host = words[1];
  signal(SIGPIPE, SIG_IGN);
  setvbuf(stdout, NULL, _IOFBF, 1 << 20);
  for (int in = 0; in < KINDS; in++)
    for (int out = 0; out < KINDS; out++)
      for (int call = 0; call < CALLS && !(on_host >> in & on_host >> out & 1); call++)
        for (int i = 0; i < (call > COPY ? 1 : 4); i++)
          for (int to = 0; to < (call == SPLICE || call == COPY ? 2 : 1) && !(i > 1 && to); to++)
            one((enum call)call, (enum kind)in, (enum kind)out, from[i], to ? 13 : -2);
  sizes();
  return 0;
}
