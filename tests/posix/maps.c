// SPDX-License-Identifier: Apache-2.0
// Mappings of files: `maps NAME [ROUNDS]` does what the function of that name does, in the working directory, and shows
// what a program can see of it.  test_maps.py compares the mount with a local directory.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096L
#define RW (PROT_READ | PROT_WRITE)
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

static sigjmp_buf back;
static void caught(int signal) { siglongjmp(back, signal); }

// What reading a byte there gives: the byte, or -signal.
static int look(volatile char *at) {
  int signal = sigsetjmp(back, 1);
  return signal ? -signal : (unsigned char)*at;
}

static int store(volatile char *at, char byte) {
  int signal = sigsetjmp(back, 1);
  if (signal) return -signal;
  *at = byte;
  return 0;
}

static void say(const char *what, long value) { printf("%s %ld\n", what, value); }

static void result(const char *what, long value) {
  if (value == -1) printf("%s %s\n", what, strerrorname_np(errno));
  else printf("%s ok\n", what);
}

static void xsay(const char *what, const void *data, size_t size) {
  uint64_t sum = 14695981039346656037UL;
  for (size_t i = 0; i < size; i++) sum = (sum ^ ((const unsigned char *)data)[i]) * 1099511628211UL;
  printf("%s %zu %016lx\n", what, size, sum);
}

static int make(const char *name, size_t size) {
  int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
  char *data = malloc(size + 1);
  for (size_t i = 0; i < size; i++) data[i] = (char)('a' + (i / 7 + i / PAGE) % 26);
  for (size_t done = 0; done < size;) done += (size_t)write(fd, data + done, size - done);
  free(data);
  return fd;
}

static void content(const char *name) {
  int fd = open(name, O_RDONLY);
  off_t size = lseek(fd, 0, SEEK_END);
  char *data = malloc((size_t)size + 1);
  ssize_t n = pread(fd, data, (size_t)size, 0);
  xsay(name, data, (size_t)n);
  free(data);
  close(fd);
}

static char *map(int fd, long length, int prot, int flags, long offset) {
  char *at = mmap(NULL, (size_t)length, prot, flags, fd, offset);
  if (at == MAP_FAILED) {
    result("mmap", -1);
    exit(1);
  }
  return at;
}

// --- what is refused ------------------------------------------------------------------------------------------------

static void try(const char *what, int fd, unsigned long length, int prot, int flags, long offset) {
  void *at = mmap(NULL, length, prot, flags, fd, offset);
  result(what, at == MAP_FAILED ? -1 : 0);
  if (at != MAP_FAILED) munmap(at, length);
}

static void errors(void) {
  int fd = make("f", 3 * PAGE), reads = open("f", O_RDONLY), writes = open("f", O_WRONLY), path = open("f", O_PATH);
  int directory = open(".", O_RDONLY), closed = dup(fd);
  close(closed);
  for (int i = 0; i < 2; i++) {
    int type = i ? MAP_SHARED : MAP_PRIVATE;
    try("plain", fd, PAGE, RW, type, 0);
    try("length 0", fd, 0, PROT_READ, type, 0);
    try("odd length", fd, 5, PROT_READ, type, PAGE);
    try("odd offset", fd, PAGE, PROT_READ, type, 5);
    try("odd offset of nothing", closed, PAGE, PROT_READ, type, 5);
    try("negative offset", fd, PAGE, PROT_READ, type, -PAGE);
    try("large offset", fd, PAGE, PROT_READ, type, INT64_MAX & -PAGE);
    try("huge", fd, 1UL << 60, PROT_READ, type, 0);
    try("hugest", fd, ~0UL, PROT_READ, type, 0);
    try("reads", reads, PAGE, RW, type, 0);
    try("writes", writes, PAGE, PROT_READ, type, 0);
    try("writes only", writes, PAGE, PROT_WRITE, type, 0);
    try("none", writes, PAGE, PROT_NONE, type, 0);
    try("path", path, PAGE, PROT_READ, type, 0);
    try("directory", directory, PAGE, PROT_READ, type, 0);
    try("directory for writing", directory, PAGE, RW, type, 0);
    try("closed", closed, PAGE, PROT_READ, type, 0);
    try("hugetlb", fd, PAGE, PROT_READ, type | MAP_HUGETLB, 0);
    try("growsdown", fd, PAGE, PROT_READ, type | MAP_GROWSDOWN, 0);
    try("denywrite", fd, PAGE, PROT_READ, type | MAP_DENYWRITE, 0);
    try("noreserve", fd, PAGE, RW, type | MAP_NORESERVE | MAP_POPULATE, 0);
  }
  try("no type", fd, PAGE, PROT_READ, 0, 0);
  try("validate", fd, PAGE, RW, MAP_SHARED_VALIDATE, 0);
  try("validate populate", fd, PAGE, RW, MAP_SHARED_VALIDATE | MAP_POPULATE, 0);
  try("validate sync", fd, PAGE, RW, MAP_SHARED_VALIDATE | MAP_SYNC, 0);
  try("validate sizes", fd, PAGE, RW, MAP_SHARED_VALIDATE | 1 << 27, 0);
  try("validate unknown", fd, PAGE, RW, MAP_SHARED_VALIDATE | 1 << 21, 0);
  char *at = map(fd, 2 * PAGE, RW, MAP_SHARED, 0);
  result("noreplace", mmap(at, PAGE, RW, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0) == MAP_FAILED ? -1 : 0);
  result("fixed odd", mmap(at + 5, PAGE, RW, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ? -1 : 0);
  result("fixed", mmap(at, PAGE, RW, MAP_SHARED | MAP_FIXED, fd, PAGE) == at ? 0 : -1);
  say("fixed shows", look(at));
  char *free_ = at + 2 * PAGE;
  munmap(at, 2 * PAGE);
  result("noreplace", mmap(at, PAGE, RW, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0) == at ? 0 : -1);
  (void)free_;
}

// --- the end of the file --------------------------------------------------------------------------------------------

static void end_of_file(void) {
  int fd = make("f", 5000);
  for (int i = 0; i < 4; i++) {
    int prot = i & 1 ? RW : PROT_READ, type = i & 2 ? MAP_SHARED : MAP_PRIVATE;
    char *at = map(fd, 4 * PAGE + 100, prot, type, 0);
    say("last", look(at + 4999));
    say("behind it", look(at + 5000));
    say("end of page", look(at + 2 * PAGE - 1));
    say("next page", look(at + 2 * PAGE));
    say("last page", look(at + 4 * PAGE + 50));
    char *past = map(fd, PAGE, prot, type, 8 * PAGE);
    say("past", look(past));
    munmap(at, 4 * PAGE + 100);
    munmap(past, PAGE);
  }
  char *at = map(fd, 2 * PAGE, RW, MAP_SHARED, 0);
  say("store behind", store(at + 6000, 'x'));
  munmap(at, 2 * PAGE);
  content("f");
}

static void grow(void) {
  int fd = make("f", 0);
  char *at = map(fd, 4 * PAGE, RW, MAP_SHARED, 0);
  say("empty", look(at));
  say("store", store(at, 'x'));
  ftruncate(fd, 100);
  say("now", look(at));
  say("store", store(at + 99, 'y'));
  say("store", store(at + 100, 'z'));
  say("second page", look(at + PAGE));
  ftruncate(fd, 3 * PAGE);
  say("second page", store(at + PAGE, 'q'));
  say("third page", store(at + 2 * PAGE + 7, 'r'));
  say("fourth page", look(at + 3 * PAGE));
  content("f");
  ftruncate(fd, PAGE + 10);
  say("cut", look(at + 2 * PAGE));
  say("kept", look(at + PAGE));
  ftruncate(fd, 3 * PAGE);
  say("grown again", look(at + 2 * PAGE + 7));
  truncate("f", 1);
  say("cut by path", look(at + PAGE));
  say("kept", look(at + 99));
  close(open("f", O_WRONLY | O_TRUNC));
  say("truncated", look(at));
  pwrite(fd, "hello", 5, PAGE);
  say("zero", look(at + 1));
  say("written", look(at + PAGE + 1));
  content("f");
  munmap(at, 4 * PAGE);
  content("f");
}

// --- together with read and write -----------------------------------------------------------------------------------

static void mixed(void) {
  int fd = make("f", 200000), other = open("f", O_RDWR | O_APPEND), plain = make("g", 70000);
  char buffer[64] = "", *at = map(fd, 200000, RW, MAP_SHARED, 0), *view = map(fd, PAGE, PROT_READ, MAP_SHARED, PAGE);
  memcpy(at + 10, "stored", 6);
  memcpy(at + PAGE + 1, "STORED", 6);
  pread(other, buffer, 20, 5);
  puts(buffer);
  say("view", look(view + 1));
  pwrite(fd, "written", 7, 12);
  printf("%.20s\n", at + 5);
  pwrite(fd, "far", 3, 150000);
  printf("%.3s\n", at + 150000);
  say("append", write(other, "appended", 8));
  char *tail = map(fd, PAGE, RW, MAP_SHARED, 200000 / PAGE * PAGE);
  printf("%.8s\n", tail + 200000 % PAGE);
  memcpy(tail + 200000 % PAGE, "APP", 3);
  char *copy = map(fd, PAGE, RW, MAP_PRIVATE, 0);
  printf("%.20s\n", copy + 5);
  copy[10] = '!';
  say("private", at[10]);
  say("sync", msync(at, 200000, MS_SYNC) | msync(at, PAGE, MS_ASYNC) | msync(view, PAGE, MS_INVALIDATE | MS_SYNC));
  say("read into it", pread(plain, at + 20000, 50000, 0));
  say("write from it", pwrite(plain, at, 30000, 100));
  lseek(plain, 0, SEEK_SET);
  loff_t to = 90000;
  say("copied", copy_file_range(plain, NULL, fd, &to, 1000, 0));
  printf("%.10s\n", at + 90000);
  at[100000] = '#';
  say("synced", fsync(fd));
  content("f");
  munmap(at, 200000);
  munmap(tail, PAGE);
  content("f");
  content("g");
}

static void errors_of_msync(void) {
  int fd = make("f", 2 * PAGE);
  char *at = map(fd, 2 * PAGE, RW, MAP_SHARED, 0);
  result("both", msync(at, PAGE, MS_SYNC | MS_ASYNC));
  result("unknown", msync(at, PAGE, 64));
  result("odd", msync(at + 1, PAGE, MS_SYNC));
  result("nothing", msync(at, 0, MS_SYNC));
  munmap(at + PAGE, PAGE);
  result("hole", msync(at, 2 * PAGE, MS_SYNC));
  result("odd munmap", munmap(at + 1, PAGE));
  result("empty munmap", munmap(at, 0));
  result("odd length", msync(at, 5, MS_SYNC));
  say("still", look(at));
}

// --- moving and cutting ---------------------------------------------------------------------------------------------

static void moving(void) {
  int fd = make("f", 6 * PAGE);
  char *at = map(fd, 2 * PAGE, RW, MAP_SHARED, PAGE), *wall = at;
  at[1] = '1';
  at = mremap(at, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE);
  say("grown", look(at + 3 * PAGE));
  at[3 * PAGE] = '2';
  (void)wall;
  char *room = mmap(NULL, 8 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  at = mremap(at, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room + PAGE);
  say("moved", at == room + PAGE);
  at[PAGE] = '3';
  char *twin = mremap(at, 0, 2 * PAGE, MREMAP_MAYMOVE);
  say("twin", look(twin + PAGE));
  twin[2] = '4';
  say("seen", look(at + 2));
  at = mremap(at, 4 * PAGE, PAGE, 0);
  at[3] = '5';
  content("f");
  munmap(at, PAGE);
  twin[4] = '6';
  content("f");
  munmap(twin, 2 * PAGE);
  content("f");
  char *past = map(fd, 6 * PAGE, RW, MAP_SHARED, 0);
  past = mremap(past, 6 * PAGE, 8 * PAGE, MREMAP_MAYMOVE);
  say("past the end", look(past + 6 * PAGE));
  ftruncate(fd, 7 * PAGE);
  say("now there", store(past + 6 * PAGE, '7'));
  content("f");
  result("growing in place", mremap(room, PAGE, 1 << 30, 0) == MAP_FAILED ? -1 : 0);
}

static void cutting(void) {
  int fd = make("f", 8 * PAGE);
  char *at = map(fd, 8 * PAGE, RW, MAP_SHARED, 0);
  for (int i = 0; i < 8; i++) at[i * PAGE + 9] = (char)('0' + i);
  munmap(at + 2 * PAGE, 2 * PAGE);
  say("hole", look(at + 2 * PAGE));
  mmap(at + 5 * PAGE, PAGE, RW, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  say("anonymous", look(at + 5 * PAGE + 9));
  mmap(at, PAGE, RW, MAP_FIXED | MAP_PRIVATE, fd, 7 * PAGE);
  say("private", look(at + 9));
  at[9] = '!';
  mmap(at + PAGE, PAGE, RW, MAP_FIXED | MAP_SHARED, fd, 6 * PAGE);
  at[PAGE + 10] = '*';
  say("two views", look(at + 6 * PAGE + 10));
  content("f");
  munmap(at, 8 * PAGE);
  content("f");
}

static void protection(void) {
  int fd = make("f", 2 * PAGE), reads = open("f", O_RDONLY);
  char *at = map(fd, 2 * PAGE, PROT_NONE, MAP_SHARED, 0);
  say("none", look(at));
  mprotect(at, PAGE, PROT_READ);
  say("read", look(at));
  say("store", store(at, 'x'));
  say("other page", look(at + PAGE));
  mprotect(at, 2 * PAGE, RW);
  say("store", store(at, 'x'));
  char *view = map(reads, PAGE, PROT_READ, MAP_SHARED, 0);
  say("seen", look(view));
  result("no writing through it", mprotect(view, PAGE, RW));
  char *own = map(reads, PAGE, PROT_READ, MAP_PRIVATE, 0);
  result("a copy", mprotect(own, PAGE, RW));
  say("store", store(own, 'y'));
  say("not seen", look(at));
  munmap(at, 2 * PAGE);
  content("f");
}

static void advice(void) {
  int fd = make("f", 4 * PAGE);
  char *at = map(fd, 4 * PAGE, RW, MAP_SHARED, 0), *own = map(fd, 2 * PAGE, RW, MAP_PRIVATE, PAGE);
  unsigned char there[4] = {0};
  at[0] = '1';
  own[0] = '2';
  result("shared", madvise(at, PAGE, MADV_DONTNEED));
  say("kept", look(at));
  result("private", madvise(own, PAGE, MADV_DONTNEED));
  say("read again", look(own));
  result("mlock", mlock(at, 2 * PAGE));
  say("mincore", mincore(at, 2 * PAGE, there));
  say("in core", (there[0] & 1) + (there[1] & 1));
  result("munlock", munlock(at, 2 * PAGE));
  result("willneed", madvise(at, 4 * PAGE, MADV_WILLNEED));
  result("sequential", madvise(at, 4 * PAGE, MADV_SEQUENTIAL));
  munmap(at, 4 * PAGE);
  content("f");
}

// --- life -----------------------------------------------------------------------------------------------------------

static void closed(void) {
  int fd = make("f", 3 * PAGE);
  char *at = map(fd, 3 * PAGE, RW, MAP_SHARED, 0);
  close(fd);
  at[5] = '1';
  msync(at, 3 * PAGE, MS_SYNC);
  content("f");
  at[PAGE] = '2';
  rename("f", "g");
  munmap(at + PAGE, PAGE);
  content("g");
  unlink("g");
  say("readable", look(at + 2 * PAGE));
  say("store", store(at + 2 * PAGE, '3'));
  result("msync", msync(at, PAGE, MS_SYNC));
  result("msync", msync(at + 2 * PAGE, PAGE, MS_SYNC));
  say("still", look(at + 2 * PAGE));
  munmap(at, 3 * PAGE);
  fd = make("h", PAGE);
  at = map(fd, PAGE, RW, MAP_SHARED, 0);
  unlink("h");
  at[1] = 'u';
  char buffer[4] = "";
  pread(fd, buffer, 3, 0);
  puts(buffer);
}

static void wait_for(pid_t child) {
  int status;
  waitpid(child, &status, 0);
  say("status", status);
}

static void children(void) {
  int fd = make("f", 4 * PAGE), to[2], from[2];
  char byte, *at = map(fd, 4 * PAGE, RW, MAP_SHARED, 0), *own = map(fd, PAGE, RW, MAP_PRIVATE, 0);
  pipe(to);
  pipe(from);
  fflush(stdout);
  pid_t child = fork();
  if (!child) {
    at[0] = '1';
    own[1] = '2';
    write(from[1], "x", 1);
    read(to[0], &byte, 1);
    int again = open("f", O_RDWR);
    char *view = map(again, PAGE, RW, MAP_SHARED, 3 * PAGE);
    view[8] = at[4];
    munmap(at, PAGE);
    _exit(at[PAGE + 1] == 'P' ? 3 : 4);
  }
  read(from[0], &byte, 1);
  say("shared", look(at));
  say("private", look(own + 1));
  at[4] = 'Q';
  at[PAGE + 1] = 'P';
  write(to[1], "x", 1);
  wait_for(child);
  say("view", look(at + 3 * PAGE + 8));
  content("f");
  fflush(stdout);
  if (!(child = fork())) {
    munmap(at, 4 * PAGE);
    _exit(0);
  }
  wait_for(child);
  say("still", store(at + 2, 'R'));
  fflush(stdout);
  if (!(child = vfork())) {
    execlp("true", "true", NULL);
    _exit(1);
  }
  wait_for(child);
  content("f");
}

// Ends without munmap: by exit, by exec, and as the child of a fork whose parent has ended.
static void ends(void) {
  int fd = make("f", 4 * PAGE);
  pid_t child = fork();
  if (!child) {
    map(fd, PAGE, RW, MAP_SHARED, 0)[0] = '1';
    _exit(0);
  }
  wait_for(child);
  if (!(child = fork())) {
    map(fd, PAGE, RW, MAP_SHARED, PAGE)[0] = '2';
    execlp("true", "true", NULL);
    _exit(1);
  }
  wait_for(child);
  int pipes[2];
  char byte;
  pipe(pipes);
  if (!(child = fork())) {
    char *at = map(fd, PAGE, RW, MAP_SHARED, 2 * PAGE);
    pid_t parent = getpid();
    if (!fork()) {
      close(pipes[0]);
      while (getppid() == parent) usleep(1000);
      at[0] = '3';
      munmap(at, PAGE);
      _exit(0);
    }
    at[1] = '4';
    _exit(0);
  }
  close(pipes[1]);
  wait_for(child);
  read(pipes[0], &byte, 1);
  content("f");
}

// Stores of a process that is killed are not lost to the others of the node.
static void killed(void) {
  int fd = make("f", 4 * PAGE);
  fflush(stdout);
  char byte, *at = map(fd, PAGE, RW, MAP_SHARED, PAGE);
  int pipes[2];
  pipe(pipes);
  for (int round = 0; round < 2; round++) {
    pid_t child = fork();
    if (!child) {
      char *own = map(open("f", O_RDWR), 4 * PAGE, RW, MAP_SHARED, 0);
      own[3] = (char)('1' + round);
      own[3 * PAGE] = (char)('3' + round);
      write(pipes[1], "x", 1);
      pause();
    }
    read(pipes[0], &byte, 1);
    kill(child, SIGKILL);
    wait_for(child);
    if (!round) {
      say("mapped", look(at));
      munmap(at, PAGE);
    }
    content("f");
  }
}

static void many(void) {
  enum { FILES = 20, MAPS = 8 };
  char *at[FILES][MAPS], name[16];
  for (int i = 0; i < FILES; i++) {
    snprintf(name, sizeof name, "f%d", i);
    int fd = make(name, 3 * PAGE);
    for (int n = 0; n < MAPS; n++) at[i][n] = map(fd, 3 * PAGE, RW, MAP_SHARED, 0);
    close(fd);
  }
  for (int n = 0; n < MAPS; n++)
    for (int i = 0; i < FILES; i++) at[i][n][n * 100] = (char)('A' + n);
  for (int n = 0; n < MAPS; n++)
    for (int i = 0; i < FILES; i++) munmap(at[i][n], 3 * PAGE);
  for (int i = 0; i < FILES; i++) {
    snprintf(name, sizeof name, "f%d", i);
    content(name);
  }
}

// More files than there are descriptors: each is closed when it is mapped.
static void closed_files(void) {
  enum { FILES = 600 };
  struct rlimit few = {300, 0};
  char *at[FILES], name[16];
  getrlimit(RLIMIT_NOFILE, &few);
  int files = few.rlim_max < 4096 ? 150 : FILES;
  few.rlim_cur = 300;
  setrlimit(RLIMIT_NOFILE, &few);
  for (int i = 0; i < files; i++) {
    snprintf(name, sizeof name, "f%d", i);
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
    ftruncate(fd, 100);
    at[i] = map(fd, 100, RW, MAP_SHARED, 0);
    close(fd);
    at[i][99] = '*';
  }
  say("next", open("f0", O_RDONLY));
  for (int i = 0; i < files; i++) munmap(at[i], 100);
  content("f149");
}

// More parts than anybody would expect, and all of them gone by one call.
static void pieces(void) {
  enum { PARTS = 1500, FILES = 3 };
  char *all = mmap(NULL, PARTS * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), name[16];
  for (int i = 0; i < FILES; i++) {
    snprintf(name, sizeof name, "f%d", i);
    int fd = make(name, PARTS * PAGE);
    for (int n = i; n < PARTS; n += FILES) {  // backwards: the kernel cannot join them
      char *at = all + (PARTS - 1 - n) * PAGE;
      if (mmap(at, PAGE, RW, MAP_SHARED | MAP_FIXED, fd, n * PAGE) == MAP_FAILED) result("mmap", -1);
    }
    close(fd);
  }
  for (int n = 0; n < PARTS; n++) all[n * PAGE + n % PAGE] = '#';
  result("munmap", munmap(all, PARTS * PAGE));
  for (int i = 0; i < FILES; i++) {
    snprintf(name, sizeof name, "f%d", i);
    content(name);
  }
  int fd = open("f0", O_RDWR);
  for (int n = 0; n < 5000; n++) {
    char *at = mmap(NULL, PAGE, RW, MAP_SHARED, fd, n % 2 ? 0 : 2 * PAGE);
    if (at == MAP_FAILED) return result("mmap", -1);
    at[n % PAGE] = '*';
  }
  content("f0");
}

static void sparse(void) {
  int fd = open("f", O_RDWR | O_CREAT | O_TRUNC, 0644);
  const long size = 40L << 20;
  ftruncate(fd, size);
  pwrite(fd, "middle", 6, size / 2);
  char *at = map(fd, size, RW, MAP_SHARED, 0);
  for (long i = 0; i < size; i += 1234567) at[i] = (char)i;
  memset(at + (5L << 20), 'b', 3 << 20);
  printf("%.6s\n", at + size / 2);
  at[size - 1] = 'e';
  munmap(at, size);
  content("f");
  at = map(fd, size, PROT_READ, MAP_PRIVATE, 0);
  xsay("private", at, size);
}

// --- races ----------------------------------------------------------------------------------------------------------

// Mapping, storing, writing and unmapping by several threads of several processes, each of which owns some bytes of
// each page and finds in them what it put there last.
enum { PROCESSES = 3, THREADS = 2, PAGES = 40 };
static int rounds = 12;

static void *racer(void *number) {
  long self = (long)number;
  unsigned char stored[PAGES] = {0}, written[PAGES] = {0}, byte;
  for (int round = 1; round <= rounds; round++) {
    int first = (int)(self * 7 + round * 3) % (PAGES / 2), pages = 1 + (round * 5) % (PAGES / 2);
    int fd = open("f", O_RDWR);
    char *at = mmap(NULL, (size_t)(pages * PAGE), RW, MAP_SHARED, fd, first * PAGE);
    if (at == MAP_FAILED) return "mmap";
    for (int page = 0; page < pages; page++) {
      char *own = at + page * PAGE + self * 8;
      if ((unsigned char)own[0] != stored[first + page]) return "what was stored";
      if ((unsigned char)own[4] != written[first + page]) return "what was written";
      own[0] = (char)(stored[first + page] = (unsigned char)round);
      if (page % 4) continue;
      byte = written[first + page] = (unsigned char)(round + 100);
      if (pwrite(fd, &byte, 1, (first + page) * PAGE + self * 8 + 4) != 1) return "pwrite";
      if ((unsigned char)own[4] != byte) return "written and not seen";
      if (pread(fd, &byte, 1, (first + page) * PAGE + self * 8) != 1 || byte != (unsigned char)round) return "pread";
    }
    if (round % 3 == 0 && msync(at, (size_t)(pages * PAGE), MS_SYNC)) return "msync";
    if (round % 5) close(fd);
    munmap(at, (size_t)(pages * PAGE));
    if (round % 5 == 0) close(fd);
  }
  return NULL;
}

static void race(void) {
  int fd = open("f", O_RDWR | O_CREAT | O_TRUNC, 0644);
  ftruncate(fd, PAGES * PAGE);
  close(fd);
  fflush(stdout);
  for (long p = 0; p < PROCESSES; p++) {
    if (fork()) continue;
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, racer, (void *)(p * THREADS + i));
    for (long i = 0; i < THREADS; i++) {
      void *wrong;
      pthread_join(threads[i], &wrong);
      if (wrong) printf("%ld.%ld: %s\n", p, i, (char *)wrong);
    }
    fflush(stdout);
    _exit(0);
  }
  for (int p = 0; p < PROCESSES; p++) wait_for(-1);
  content("f");
}

// Holes are neither read nor compared: this is larger than what could be within the time of a test.
static void holes(void) {
  const long size = 16L << 30, at = 7L << 30;
  int fd = open("f", O_RDWR | O_CREAT | O_TRUNC, 0644);
  char bytes[8] = "";
  ftruncate(fd, size);
  pwrite(fd, "middle", 6, at);
  char *all = map(fd, size, RW, MAP_SHARED, 0);
  printf("%.6s %d %d\n", all + at, look(all), look(all + size - 1));
  memcpy(all + (3L << 30), "stored", 6);
  result("msync", msync(all, (size_t)size, MS_SYNC));
  munmap(all, (size_t)size);
  pread(fd, bytes, 6, 3L << 30);
  puts(bytes);
  unlink("f");
}

static const struct {
  const char *name;
  void (*run)(void);
} tests[] = {
    {"errors", errors},         {"end_of_file", end_of_file}, {"grow", grow},         {"mixed", mixed},
    {"msync", errors_of_msync}, {"moving", moving},           {"cutting", cutting},   {"protection", protection},
    {"advice", advice},         {"closed", closed},           {"children", children}, {"ends", ends},
    {"killed", killed},         {"many", many},               {"sparse", sparse},
    {"pieces", pieces},         {"closed_files", closed_files},
    {"race", race},             {"holes", holes},
};

int main(int count, char **arguments) {
  struct sigaction action = {.sa_handler = caught, .sa_flags = SA_NODEFER};
  sigaction(SIGBUS, &action, NULL);
  sigaction(SIGSEGV, &action, NULL);
  setvbuf(stdout, NULL, _IOFBF, 1 << 16);
  if (count > 2) rounds = atoi(arguments[2]);
  for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
    if (count > 1 && strcmp(arguments[1], tests[i].name) == 0) {
      tests[i].run();
      return 0;
    }
  fprintf(stderr, "usage: maps NAME [ROUNDS]\n");
  return 2;
}
