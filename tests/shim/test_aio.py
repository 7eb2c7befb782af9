# SPDX-License-Identifier: Apache-2.0
"""libaio's system calls on files of the mount, alone and among files of this node: as on a local file."""
import subprocess

import pytest

PROGRAM = """
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
static aio_context_t queue;
static struct iocb request(int operation, int fd, void *buffer, size_t size, long offset) {
  return (struct iocb){.aio_data = (uint64_t)(uintptr_t)buffer + 1, .aio_lio_opcode = (uint16_t)operation,
                       .aio_fildes = (uint32_t)fd, .aio_buf = (uintptr_t)buffer, .aio_nbytes = size,
                       .aio_offset = offset};
}
static int order(const void *a, const void *b) {
  const struct io_event *x = a, *y = b;
  return x->obj < y->obj ? -1 : x->obj > y->obj;
}
// Submits all, waits for those that were taken, and prints what came of them in the order of the requests.
static void submit(const char *what, struct iocb *first, int count) {
  struct iocb *list[16], before[16];
  struct io_event events[16];
  for (int i = 0; i < count; i++) list[i] = first + i;
  memcpy(before, first, sizeof *first * (size_t)count);
  long taken = syscall(SYS_io_submit, queue, (long)count, list);
  printf("%s: %ld %s:", what, taken, taken < 0 ? strerror(errno) : "");
  if (taken > 0 && syscall(SYS_io_getevents, queue, taken, taken, events, NULL) != taken) printf(" lost");
  if (taken > 0) qsort(events, (size_t)taken, sizeof *events, order);
  for (long i = 0; i < taken; i++) {
    if (events[i].obj != (uintptr_t)list[i] || events[i].data != list[i]->aio_data || events[i].res2) printf(" odd");
    printf(" %ld", (long)events[i].res);
  }
  for (int i = 0; i < count; i++) before[i].aio_key = first[i].aio_key;
  puts(memcmp(before, first, sizeof *first * (size_t)count) ? " changed" : "");
}
int main(int count, char **words) {
  static char data[300000], back[300000], other[10];
  char far[64];
  int fd = open(words[1], O_RDWR | O_CREAT | O_TRUNC, 0600), only = open(words[1], O_RDONLY);
  int local = open(words[2], O_RDONLY), event = eventfd(0, EFD_NONBLOCK);
  memset(data, 'x', sizeof data);
  if (fd < 0 || only < 0 || local < 0 || syscall(SYS_io_setup, 32L, &queue)) return 1;
  struct iocb one = request(IOCB_CMD_PWRITE, fd, data, sizeof data, 0);
  submit("write", &one, 1);
  one = request(IOCB_CMD_PREAD, fd, back, sizeof back, 5);
  submit("read", &one, 1);
  printf("same: %d\\n", memcmp(data + 5, back, sizeof data - 5));
  one = request(IOCB_CMD_PREAD, fd, back, 10, 1 << 20);
  submit("behind the end", &one, 1);
  struct iovec two[2] = {{"ab", 2}, {"cde", 3}}, three[2] = {{far, 1}, {far + 8, 4}};
  one = request(IOCB_CMD_PWRITEV, fd, two, 2, 100);
  submit("writev", &one, 1);
  one = request(IOCB_CMD_PREADV, fd, three, 2, 100);
  submit("readv", &one, 1);
  printf("%c%.4s\\n", far[0], far + 8);
  struct iocb many[4] = {request(IOCB_CMD_PREAD, local, other, 4, 0), request(IOCB_CMD_PWRITE, fd, "hello", 5, 10),
                         request(IOCB_CMD_PREAD, local, other + 4, 4, 4), request(IOCB_CMD_PREAD, fd, back, 7, 9)};
  submit("mixed", many, 4);
  printf("%.8s %.7s\\n", other, back);
  one = request(IOCB_CMD_FSYNC, fd, 0, 0, 0);
  submit("fsync", &one, 1);
  one = request(IOCB_CMD_FDSYNC, fd, 0, 0, 0);
  submit("fdsync", &one, 1);
  one = request(IOCB_CMD_PWRITE, only, data, 5, 0);
  submit("not open for writing", &one, 1);
  one = request(IOCB_CMD_PREAD, fd, data, 5, -1);
  submit("negative", &one, 1);
  one = request(77, fd, data, 5, 0);
  submit("unknown", &one, 1);
  one = request(IOCB_CMD_POLL, fd, (void *)POLLIN, 0, 0);
  submit("poll", &one, 1);
  one = request(IOCB_CMD_PWRITE, fd, data, 5, 0);
  one.aio_reserved2 = 1;
  submit("reserved", &one, 1);
  struct iocb wrong[3] = {request(IOCB_CMD_PREAD, fd, back, 3, 0), request(IOCB_CMD_PWRITE, only, data, 5, 0),
                          request(IOCB_CMD_PREAD, fd, back, 3, 0)};
  submit("the second is wrong", wrong, 3);
  one = request(IOCB_CMD_PWRITE, fd, "event", 5, 0);
  one.aio_flags = IOCB_FLAG_RESFD;
  one.aio_resfd = (uint32_t)event;
  submit("event", &one, 1);
  uint64_t told = 0;
  printf("told: %zd %ld\\n", read(event, &told, 8), (long)told);
  one = request(IOCB_CMD_PWRITE, fd, "sync", 4, 0);
  one.aio_rw_flags = RWF_DSYNC;
  submit("with a flag", &one, 1);
  queue += 4096;
  submit("no queue", &one, 1);
  return count != 3;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory, compiler):
    directory = tmp_path_factory.mktemp("aio")
    (directory / "aio.c").write_text(PROGRAM)
    return compiler(directory / "aio", directory / "aio.c")


def test_as_on_a_local_file(on_mount, program, tmp_path):
    (tmp_path / "local").write_text("12345678")
    local = subprocess.run([program, tmp_path / "file", tmp_path / "local"], capture_output=True, text=True, timeout=60,
                           check=False)
    ours = on_mount(program, "/madfs/aio", tmp_path / "local")
    assert local.returncode == 0 and len(local.stdout.splitlines()) > 20
    assert (ours.stdout, ours.stderr, ours.returncode) == (local.stdout, "", 0)
    here, there = (tmp_path / "file").read_bytes(), on_mount("cat", "/madfs/aio")
    assert there.stdout.encode() == here


def test_requests_of_a_child(on_mount, program, tmp_path):
    """A queue made after a fork, and the client with it."""
    (tmp_path / "local").write_text("12345678")
    script = f"for i in 1 2; do {program} /madfs/aio-$i {tmp_path}/local | tail -1 & done; wait"
    done = on_mount("bash", "-c", f"exec 3> /madfs/held; {script}")
    assert done.stdout == "no queue: -1 Invalid argument:\n" * 2
