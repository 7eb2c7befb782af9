// SPDX-License-Identifier: Apache-2.0
// Makes system calls as its arguments say and prints one JSON object for each: {"ret": .., "errno": .., "data": ".."}.
//
//   sys openat -100 /madfs/f 66 0644 , write $0 text 4 , close $0
//
// Calls are separated by ",".  An argument is a number, $N (the result of call N), buf:SIZE (a buffer, printed as
// "data" as far as the call filled it), null, bad (an address that is not mapped) or else a string; str:TEXT is a
// string always.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { CALLS = 64, ARGUMENTS = 6, BUFFER_MAX = 1 << 20 };

static const struct {
  const char *name;
  long number;
} numbers[] = {
#define SYSCALL(name, ...) {#name, SYS_##name},
#include "../../intercept/syscalls.def"
#undef SYSCALL
    {"getpid", SYS_getpid},
    {"poll", SYS_poll},
    {"pipe2", SYS_pipe2},
    {"memfd_create", SYS_memfd_create},
};

static long number_of(const char *name) {
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    if (strcmp(numbers[i].name, name) == 0) return numbers[i].number;
  fprintf(stderr, "sys: %s is not in intercept/syscalls.def\n", name);
  exit(2);
}

static long value_of(char *text, const long *results, char **buffer) {
  char *end;
  if (text[0] == '$') return results[atoi(text + 1)];
  if (strcmp(text, "null") == 0) return 0;
  if (strcmp(text, "bad") == 0) return 16;
  if (strncmp(text, "str:", 4) == 0) return (long)(text + 4);
  if (strncmp(text, "buf:", 4) == 0) return (long)(*buffer = calloc(1, (size_t)atol(text + 4) + 1));
  long value = strtol(text, &end, 0);
  return *end || end == text ? (long)text : value;
}

static void print(long ret, const char *data) {
  printf("{\"ret\": %ld, \"errno\": %d", ret < 0 && ret > -4096 ? -1 : ret, ret < 0 && ret > -4096 ? errno : 0);
  if (data && ret > 0 && ret < BUFFER_MAX) {
    printf(", \"data\": \"");
    for (long i = 0; i < ret; i++)
      printf(data[i] < 32 || data[i] == '"' || data[i] == '\\' || data[i] > 126 ? "\\u%04x" : "%c",
             (unsigned char)data[i]);
    printf("\"");
  }
  printf("}\n");
}

int main(int count, char **words) {
  long results[CALLS];
  int calls = 0;
  for (int i = 1; i < count && calls < CALLS; i++, calls++) {
    long number = number_of(words[i]), a[ARGUMENTS] = {0};
    char *buffer = NULL;
    for (int n = 0; i + 1 < count && strcmp(words[i + 1], ",") != 0; n++) {
      i++;
      if (n < ARGUMENTS) a[n] = value_of(words[i], results, &buffer);
    }
    i++;
    fflush(stdout);
    results[calls] = syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    print(results[calls], buffer);
    free(buffer);
  }
  return 0;
}
