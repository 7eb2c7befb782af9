// SPDX-License-Identifier: Apache-2.0
// Makes system calls as its arguments say and prints one JSON object for each: {"ret": .., "errno": .., "data": ".."}.
//
//   sys openat -100 /madfs/f 66 0644 , write $0 text 4 , close $0
//
// Calls are separated by ",".  An argument is a number, $N (the result of call N), buf:SIZE (a buffer, printed as
// "data" as far as the call filled it), null, bad (an address that is not mapped), hole (nor is this one, but it is an
// address as others are), guard:N (N bytes before a page that is not there), noread (a page that can be neither read
// nor written), readonly, or else a string; str:TEXT is a string always, and tail:TEXT one that ends where a page
// does that is followed by none; word:N is the address of a number, unix:PATH that of a socket's address.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

enum { CALLS = 128, ARGUMENTS = 6, BUFFER_MAX = 1 << 20 };

static const struct {
  const char *name;
  long number;
} numbers[] = {
#define SYSCALL(name, ...) {#name, SYS_##name},
#include "../../intercept/syscalls.def"
#undef SYSCALL
    {"getpid", SYS_getpid},
    {"socket", SYS_socket},
    {"epoll_create1", SYS_epoll_create1},
    {"inotify_init1", SYS_inotify_init1},
    {"pipe2", SYS_pipe2},
    {"memfd_create", SYS_memfd_create},
};

static long number_of(const char *name) {
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    if (strcmp(numbers[i].name, name) == 0) return numbers[i].number;
  fprintf(stderr, "sys: %s is not in intercept/syscalls.def\n", name);
  exit(2);
}

// A page of its own, with nothing behind it.
static char *page_of(int protection) {
  char *pages = mmap(NULL, 3 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect(pages, 4096, protection);
  munmap(pages + 4096, 2 * 4096);
  return pages;
}

static long value_of(char *text, const long *results, char **buffer) {
  char *end;
  if (text[0] == '$') return results[atoi(text + 1)];
  if (strcmp(text, "null") == 0) return 0;
  if (strcmp(text, "bad") == 0) return 16;
  if (strncmp(text, "word:", 5) == 0) {
    long *word = malloc(sizeof *word);
    *word = atol(text + 5);
    return (long)word;
  }
  if (strncmp(text, "unix:", 5) == 0) {
    struct sockaddr_un *address = calloc(1, sizeof *address);
    address->sun_family = AF_UNIX;
    strncpy(address->sun_path, text + 5, sizeof address->sun_path - 1);
    return (long)address;
  }
  if (strcmp(text, "hole") == 0) return (long)(page_of(PROT_READ) + 4096);
  if (strcmp(text, "noread") == 0) return (long)page_of(PROT_NONE);
  if (strcmp(text, "readonly") == 0) return (long)page_of(PROT_READ);
  if (strncmp(text, "guard:", 6) == 0) return (long)(page_of(PROT_READ | PROT_WRITE) + 4096 - atol(text + 6));
  if (strncmp(text, "tail:", 5) == 0)
    return (long)strcpy(page_of(PROT_READ | PROT_WRITE) + 4096 - strlen(text + 5) - 1, text + 5);
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
