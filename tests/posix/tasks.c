// SPDX-License-Identifier: Apache-2.0
// New processes and threads of every kind, with files of the directory in their hands:
//
//   tasks CASE DIRECTORY ROUNDS
//
// Each round is a process of its own, which has not touched the directory before.  Prints "ok" when all went well.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                                        \
  do {                                                                                          \
    if (!(condition)) {                                                                         \
      dprintf(2, "line %d: %s (%s)\n", __LINE__, #condition, strerror(errno));                 \
      _exit(1);                                                                                 \
    }                                                                                           \
  } while (0)

enum { STACK = 1 << 18, LIMIT_S = 50 };

extern char **environ;
static char stack[STACK];
static void *volatile nowhere = (void *)16;  // an address that is not there
static const char *top;
static int round_number;

static int ended(pid_t child) {
  int status;
  CHECK(waitpid(child, &status, __WALL) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int new_file(const char *name) {
  int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
  CHECK(fd >= 0);
  return fd;
}

// Whether the descriptor is of a file that can be written and read.
static bool works(int fd, const char *text) {
  char back[100];
  ssize_t n = (ssize_t)strlen(text);
  return pwrite(fd, text, (size_t)n, 0) == n && pread(fd, back, (size_t)n, 0) == n && !memcmp(back, text, (size_t)n);
}

static bool is_closed(int fd) { return write(fd, "x", 1) == -1 && errno == EBADF; }

static long size_of(int fd) {
  struct stat file;
  CHECK(fstat(fd, &file) == 0);
  return file.st_size;
}

// --- tables of descriptors that part --------------------------------------------------------------------------------

static pthread_barrier_t barrier;
static int shared;

static void meet(void) { pthread_barrier_wait(&barrier); }

static void *of_the_second(void *unused) {
  CHECK(works(shared, "second") && close(new_file("more")) == 0);  // it has the same table
  return unused;
}

static void *with_own_table(void *how) {
  pthread_t second;
  if (how) CHECK(close_range((unsigned)shared, (unsigned)shared, CLOSE_RANGE_UNSHARE) == 0);
  else CHECK(unshare(CLONE_FILES) == 0 && close(shared) == 0);
  CHECK(is_closed(shared));
  int own = new_file("own");
  CHECK(own == shared && works(own, "own file"));
  meet();
  meet();  // the other thread writes to its file of this number
  CHECK(size_of(own) == 8);
  CHECK(pthread_create(&second, NULL, of_the_second, NULL) == 0 && pthread_join(second, NULL) == 0);
  int copy = dup(own);
  CHECK(copy > own && close(own) == 0 && works(copy, "the copy"));
  pid_t child = fork();
  if (child == 0) _exit(works(copy, "a child's") && works(new_file("child"), "its own") ? 0 : 1);
  CHECK(ended(child) == 0);
  struct stat file;
  CHECK(mkdir("d", 0700) == 0 && stat("d", &file) == 0 && rmdir("d") == 0 && access("none", F_OK) == -1);
  CHECK(fstat(copy, nowhere) == -1 && errno == EFAULT && stat(".", nowhere) == -1 && errno == EFAULT);
  CHECK(pread(copy, stack, 5, -1) == -1 && errno == EINVAL && pread(copy, nowhere, 5, 0) == -1 && errno == EFAULT);
  meet();
  return NULL;
}

static void part(void *how) {
  pthread_t thread;
  char back[10];
  shared = new_file("shared");
  CHECK(works(shared, "shared") && pthread_barrier_init(&barrier, NULL, 2) == 0);
  CHECK(pthread_create(&thread, NULL, with_own_table, how) == 0);
  meet();
  CHECK(works(shared, "again!") && size_of(shared) == 6);
  int other = new_file("other");
  CHECK(works(other, "other"));
  meet();
  meet();
  CHECK(lseek(shared, 0, SEEK_SET) == 0 && read(shared, back, sizeof back) == 6 && works(other, "third"));
  CHECK(pthread_join(thread, NULL) == 0 && works(shared, "the end"));
}

static void unshared(void) { part(NULL); }
static void range_unshared(void) { part(""); }

// Alone, a process has nobody to part from, and unshare() of a user namespace must not find threads of ours.
static void alone(void) {
  int fd = new_file("alone");
  CHECK(unshare(CLONE_FILES) == 0 && works(fd, "alone") && close(fd) == 0);
  CHECK(works(new_file("again"), "again"));
}

static atomic_int step;

static void wait_for(int value) {
  while (step != value) sched_yield();
}

static int beside(void *unused) {
  (void)unused;
  if (close(shared) || !is_closed(shared)) return 2;
  int own = open("beside", O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (own != shared || !works(own, "in the child")) return 3;
  step = 1;
  wait_for(2);
  return size_of(own) == 12 && close(own) == 0 ? 0 : 4;
}

// A process on this memory, thread-local variables included, with a copy of the table.
static void memory_only(void) {
  shared = new_file("shared");
  CHECK(works(shared, "shared"));
  pid_t child = clone(beside, stack + STACK, CLONE_VM | SIGCHLD, NULL);
  CHECK(child > 0);
  wait_for(1);
  CHECK(works(shared, "again!"));
  step = 2;
  CHECK(ended(child) == 0 && works(shared, "third!") && works(new_file("more"), "more"));
}

static int companion(void *unused) {
  (void)unused;
  return works(shared, "companion") && works(new_file("its"), "text") ? 0 : 2;
}

// A process on this memory and this table; its end is not that of the client.
static void memory_and_files(void) {
  shared = new_file("shared");
  for (int i = 0; i < 3; i++) {
    pid_t child = clone(companion, stack + STACK, CLONE_VM | CLONE_FS | CLONE_FILES | SIGCHLD, NULL);
    CHECK(child > 0 && ended(child) == 0);
    CHECK(works(shared, "parent") && works(shared + 1 + i, "left open"));
  }
}

static int busy(void *name) {
  char path[16], text[4];
  for (int i = 0; i < 60; i++) {
    snprintf(path, sizeof path, "%s%d", (char *)name, i % 3);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600), host = open("/etc/passwd", O_RDONLY);
    if (fd < 0 || host < 0 || host > 100 || !works(fd, path)) return 2;
    if (read(host, text, 4) != 4 || close(fd) || close(host)) return 3;
  }
  return 0;
}

// Two processes with the same thread-local variables at work at the same time.
static void twins(void) {
  pid_t child = clone(busy, stack + STACK, CLONE_VM | SIGCHLD, "c");
  CHECK(child > 0 && busy("p") == 0 && ended(child) == 0);
}

static long raw_clone3(unsigned long flags, int *pidfd) {
  struct clone_args wanted = {.flags = flags, .exit_signal = SIGCHLD, .pidfd = (unsigned long)pidfd};
  return syscall(SYS_clone3, &wanted, sizeof wanted);
}

static void third_clone(void) {
  int fd = new_file("c3"), pidfd = -1;
  long child = raw_clone3(CLONE_PIDFD, &pidfd);
  if (child == 0) _exit(works(fd, "child") ? 0 : 1);
  CHECK(child > 0 && pidfd == fd + 1 && ended((pid_t)child) == 0 && close(pidfd) == 0);
  child = raw_clone3(CLONE_VFORK, NULL);
  if (child == 0) _exit(works(new_file("c4"), "child") ? 0 : 1);
  CHECK(child > 0 && ended((pid_t)child) == 0 && works(fd, "parent"));
}

// --- vfork ----------------------------------------------------------------------------------------------------------

static void nested_vfork(void) {
  int fd = new_file("first"), out = new_file("second");
  for (int i = 0; i < 3; i++) {
    pid_t child = vfork();
    if (child == 0) {
      close(fd);
      pid_t inner = vfork();
      if (inner == 0) {
        int made = open("made", O_RDWR | O_CREAT, 0600);
        if (made < 0 || write(made, "g", 1) != 1 || dup2(out, 1) != 1 || close(out)) _exit(9);
        execl("/bin/echo", "echo", "x", NULL);
        _exit(8);
      }
      int status;
      waitpid(inner, &status, 0);
      if (status || write(out, "y", 1) != 1) _exit(7);
      execl("/no/such/program", "x", NULL);
      _exit(errno == ENOENT ? 0 : 6);
    }
    CHECK(ended(child) == 0 && works(fd, "after"));
  }
  CHECK(size_of(out) == 9 && access("made", F_OK) == 0);
}

static void vfork_changes(void) {
  int fd = new_file("one"), other = new_file("two");
  for (int i = 0; i < 5; i++) {
    pid_t child = vfork();
    if (child == 0) {
      if (dup2(other, fd) != fd || fcntl(fd, F_DUPFD, 40) < 40 || close(other) || write(fd, "1", 1) != 1) _exit(1);
      if (chdir("/") || close_range(3, ~0U, 0) || !is_closed(fd)) _exit(2);
      _exit(0);
    }
    CHECK(ended(child) == 0 && works(fd, "parent") && fcntl(40, F_GETFD) == -1 && access("one", F_OK) == 0);
  }
  CHECK(size_of(other) == 5);
}

static void spawned(void) {
  posix_spawn_file_actions_t a;
  char back[300] = "";
  pid_t child;
  int in = new_file("in");
  CHECK(write(in, "input\n", 6) == 6 && lseek(in, 0, SEEK_SET) == 0 && mkdir("d", 0700) == 0);
  int directory = open("d", O_RDONLY | O_DIRECTORY);
  posix_spawn_file_actions_init(&a);
  posix_spawn_file_actions_adddup2(&a, in, 0);
  posix_spawn_file_actions_addfchdir_np(&a, directory);
  posix_spawn_file_actions_addopen(&a, 1, "out", O_WRONLY | O_CREAT, 0600);
  posix_spawn_file_actions_addchdir_np(&a, "..");
  posix_spawn_file_actions_adddup2(&a, 1, 2);
  posix_spawn_file_actions_addopen(&a, 9, "d", O_RDONLY | O_DIRECTORY, 0);
  posix_spawn_file_actions_addclosefrom_np(&a, 10);
  char *const words[] = {"sh", "-c", "cat; ls d; pwd >&2; ls /dev/fd/9/; ! test -e /dev/fd/10", NULL};
  CHECK(posix_spawn(&child, "/bin/sh", &a, NULL, words, environ) == 0 && ended(child) == 0);
  int out = open("d/out", O_RDONLY);
  CHECK(out >= 0 && read(out, back, sizeof back - 1) > 0);
  char wanted[300];
  snprintf(wanted, sizeof wanted, "input\nout\n%s\nout\n", top);
  CHECK(strcmp(back, wanted) == 0 && access("d", F_OK) == 0 && fcntl(9, F_GETFD) == -1);
}

// --- fork -----------------------------------------------------------------------------------------------------------

static void *spins(void *number) {
  char name[16], data[5000];
  memset(data, 7, sizeof data);
  snprintf(name, sizeof name, "t%ld", (long)number);
  for (;;) {
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0 && write(fd, data, sizeof data) == sizeof data && pread(fd, data, sizeof data, 0) == sizeof data);
    CHECK(close(fd) == 0);
  }
  return NULL;
}

// The process ends while its threads are at work: they see nothing of that.
static void forks_of_threads(void) {
  pthread_t threads[3];
  for (long i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, spins, (void *)i) == 0);
  int fd = new_file("parent");
  for (int i = 0; i < 4; i++) {
    pid_t child = fork();
    if (child == 0) {
      alarm(LIMIT_S / 2);
      int own = open("own", O_RDWR | O_CREAT, 0600);
      _exit(own >= 0 && works(own, "child") && works(fd, "parent") && close(own) == 0 ? 0 : 1);
    }
    CHECK(ended(child) == 0);
  }
  exit(0);
}

static void *touches(void *delay_us) {
  struct stat file;
  usleep((useconds_t)(long)delay_us);
  return (void *)(long)stat(top, &file);
}

// A fork at some moment of the other thread's first touch.  REQUIRES: nothing was touched before.
static void fork_at_the_first_touch(void) {
  pthread_t thread;
  struct stat file;
  void *result;
  CHECK(pthread_create(&thread, NULL, touches, (void *)(long)(round_number % 7 * 100)) == 0);
  usleep((useconds_t)(round_number * 700 % 40000));
  pid_t child = fork();
  if (child == 0) {
    alarm(LIMIT_S / 2);
    _exit(stat(top, &file) ? 3 : 0);
  }
  CHECK(ended(child) == 0 && pthread_join(thread, &result) == 0 && !result);
}

static void daemons(void) {
  char answer[8];
  int ends[2], fd = new_file("log");
  CHECK(works(fd, "begin ") && pipe(ends) == 0);
  pid_t child = fork();
  if (child == 0) {
    setsid();
    if (fork()) _exit(0);
    for (int i = 0; i < 4096 + 2000; i++)
      if (i != ends[1]) close(i);
    bool good = open("/dev/null", O_RDWR) == 0 && dup(0) == 1 && dup(0) == 2;
    umask(0);
    int log = open("log", O_WRONLY | O_APPEND);
    good = good && log >= 0 && write(log, "daemon", 6) == 6 && size_of(log) == 12 && chdir("/") == 0;
    (void)!write(ends[1], good ? "y" : "n", 1);
    _exit(0);
  }
  CHECK(ended(child) == 0 && close(ends[1]) == 0 && read(ends[0], answer, 8) == 1 && *answer == 'y');
  CHECK(pread(fd, answer, 8, 6) == 6);
}

static void without_standard_streams(void) {
  int report = dup(2);
  CHECK(report >= 0 && fcntl(report, F_DUPFD, 20) == 20 && close(report) == 0);
  close(0), close(1), close(2);
  bool good = open("z", O_RDWR | O_CREAT, 0600) == 0 && open("/dev/null", O_RDWR) == 1 &&
              open("y", O_RDWR | O_CREAT, 0600) == 2 && works(0, "zero") && works(2, "two");
  if (!good) _exit(1);
  execl("/bin/sh", "sh", "-c", "cat >&2; echo hello >&2; test -e y", NULL);
}

static const struct {
  const char *name;
  void (*run)(void);
} cases[] = {{"unshared", unshared}, {"range_unshared", range_unshared}, {"alone", alone},
             {"memory_only", memory_only}, {"memory_and_files", memory_and_files}, {"twins", twins},
             {"third_clone", third_clone}, {"nested_vfork", nested_vfork}, {"vfork_changes", vfork_changes},
             {"spawned", spawned}, {"forks_of_threads", forks_of_threads},
             {"fork_at_the_first_touch", fork_at_the_first_touch}, {"daemons", daemons},
             {"without_standard_streams", without_standard_streams}};

static void one_round(unsigned which) {
  char name[32];
  alarm(LIMIT_S);
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  if (cases[which].run != fork_at_the_first_touch) {
    char *path = malloc(strlen(top) + sizeof name);
    sprintf(path, "%s/%d", top, round_number);
    CHECK(mkdir(path, 0700) == 0 && chdir(path) == 0);
    top = path;
  }
  cases[which].run();
  _exit(0);
}

int main(int count, char **words) {
  top = words[2];
  for (unsigned i = 0; count == 4 && i < sizeof cases / sizeof *cases; i++) {
    if (strcmp(words[1], cases[i].name) != 0) continue;
    for (round_number = 0; round_number < atoi(words[3]); round_number++) {
      pid_t child = fork();
      if (child == 0) one_round(i);
      int result = ended(child);
      if (result) return fprintf(stderr, "round %d ended with %d\n", round_number, result), 1;
    }
    return puts("ok") < 0;
  }
  fprintf(stderr, "tasks: one of the cases\n");
  return 2;
}
