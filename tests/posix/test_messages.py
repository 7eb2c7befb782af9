# SPDX-License-Identifier: Apache-2.0
"""A descriptor that was sent away and closed here is not taken for the next file that is opened."""
import subprocess

import pytest

PROGRAM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int send_away(int socket, int fd, const char *how) {
  char byte = 'x';
  struct iovec data = {&byte, 1};
  union { struct cmsghdr header; char room[CMSG_SPACE(sizeof fd)]; } control = {0};
  struct mmsghdr message = {{.msg_iov = &data, .msg_iovlen = 1}};
  message.msg_hdr.msg_control = &control, message.msg_hdr.msg_controllen = sizeof control;
  struct cmsghdr *header = CMSG_FIRSTHDR(&message.msg_hdr);
  header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof fd);
  memcpy(CMSG_DATA(header), &fd, sizeof fd);
  return strcmp(how, "sendmsg") ? sendmmsg(socket, &message, 1, 0) == 1 : sendmsg(socket, &message.msg_hdr, 0) == 1;
}

static int receive(int socket) {
  char byte;
  struct iovec data = {&byte, 1};
  union { struct cmsghdr header; char room[CMSG_SPACE(sizeof(int))]; } control;
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
  message.msg_control = &control, message.msg_controllen = sizeof control;
  int fd = -1;
  if (recvmsg(socket, &message, 0) == 1) memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
  return fd;
}

int main(int count, char **words) {
  int ends[2], first, second;
  for (int i = 0; i < 3; i++) close(open(words[3], O_RDONLY));  // there is something to use again
  if (count != 4 || socketpair(AF_UNIX, SOCK_STREAM, 0, ends) || (first = open(words[2], O_RDONLY)) < 0) return 1;
  if (!send_away(ends[0], first, words[1]) || close(first)) return 2;
  if ((second = open(words[3], O_RDONLY)) < 0) return 3;
  int received = receive(ends[1]);
  if (received < 0 || dup2(received, 0) || dup2(second, 3) != 3) return 4;
  execlp("sh", "sh", "-c", "cat; cat <&3", NULL);
  return 5;
}
"""


@pytest.mark.parametrize("how", ["sendmsg", "sendmmsg"])
def test_sent_and_closed(on_mount, tmp_path, how):
    source = tmp_path / "send.c"
    source.write_text(PROGRAM)
    subprocess.run(["cc", "-O1", "-o", tmp_path / "send", source], check=True, timeout=60)
    script = f"echo first > /madfs/{how}.1; echo second > /madfs/{how}.2; " \
             f"{tmp_path}/send {how} /madfs/{how}.1 /madfs/{how}.2; echo $?; rm /madfs/{how}.?"
    done = on_mount("sh", "-c", script)
    assert (done.stdout, done.stderr) == ("first\nsecond\n0\n", "")
