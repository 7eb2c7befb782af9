// SPDX-License-Identifier: Apache-2.0
// Runs a program and says what of the mount the kernel gets to see in its system calls:
//
//   observer MOUNT REPORT FD FD -- PROGRAM ARGUMENTS...
//
// REPORT gets one line for each call that enters the kernel with one of the descriptors, or a text that begins with
// MOUNT, as an argument: the number of the call, then ARGUMENT:fd and ARGUMENT:path.  Children are not watched.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ARGUMENTS = 6, TEXT_MAX = 64, SYSCALL_STOP = SIGTRAP | 0x80 };

static int begins_with_mount(pid_t child, unsigned long address, const char *mount) {
  char text[TEXT_MAX];
  size_t size = strlen(mount);
  struct iovec here = {text, size}, there = {(void *)address, size};
  return process_vm_readv(child, &here, 1, &there, 1, 0) == (ssize_t)size && memcmp(text, mount, size) == 0;
}

static void look(pid_t child, char **words, FILE *report) {
  struct __ptrace_syscall_info info;
  if (ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof info, &info) <= 0 || info.op != PTRACE_SYSCALL_INFO_ENTRY) return;
  char line[128];
  int used = 0;
  for (int i = 0; i < ARGUMENTS; i++) {
    unsigned long value = info.entry.args[i];
    if ((int)value == atoi(words[3]) || (int)value == atoi(words[4]))
      used += snprintf(line + used, sizeof line - (size_t)used, " %d:fd", i);
    else if (begins_with_mount(child, value, words[1]))
      used += snprintf(line + used, sizeof line - (size_t)used, " %d:path", i);
  }
  if (used) fprintf(report, "%lld%s\n", (long long)info.entry.nr, line);
}

int main(int count, char **words) {
  if (count < 7 || strlen(words[1]) > TEXT_MAX) return 127;
  FILE *report = fopen(words[2], "we");
  pid_t child = fork();
  if (child == 0) {
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    execvp(words[6], words + 6);
    _exit(127);
  }
  int status, forwarded = 0;
  if (!report || waitpid(child, &status, 0) != child) return 126;
  ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL);
  while (ptrace(PTRACE_SYSCALL, child, 0, forwarded) == 0 && waitpid(child, &status, 0) == child) {
    if (WIFEXITED(status)) return WEXITSTATUS(status);
    if (WIFSIGNALED(status)) return 128 + WTERMSIG(status);
    int stop = WSTOPSIG(status);
    forwarded = 0;
    if (stop == SYSCALL_STOP) look(child, words, report);
    else if (stop != SIGTRAP) forwarded = stop;  // SIGTRAP: the program begins
  }
  return 125;
}
