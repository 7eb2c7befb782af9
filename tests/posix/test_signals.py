# SPDX-License-Identifier: Apache-2.0
"""Signals, small stacks and cancellation around calls that the mount answers: as on a local directory."""
import subprocess

import pytest
from support import TIMEOUT_S

PROGRAM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      fprintf(stderr, "line %d: %s (errno %d)\n", __LINE__, #condition, errno); \
      _exit(1);                                                                 \
    }                                                                           \
  } while (0)

static char data[20000];
static __thread char back[20000];

// Writes and reads a file of its own again and again, and finds what it wrote.
static void work(const char *name, int rounds) {
  for (int i = 0; i < rounds; i++) {
    size_t size = (size_t)(i * 977 % 19000 + 1);
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0 && write(fd, data, size) == (ssize_t)size && lseek(fd, 0, SEEK_SET) == 0);
    CHECK(read(fd, back, sizeof back) == (ssize_t)size && memcmp(data, back, size) == 0 && close(fd) == 0);
  }
}

static atomic_int ticks;
static void counts(int signal) { (void)signal, ticks++; }

// A handler that uses the mount itself, also in the middle of a call of the thread's.
static void reads(int signal) {
  char text[8];
  int saved = errno, fd = open("small", O_RDONLY);
  (void)signal;
  CHECK(fd >= 0 && read(fd, text, 8) == 5 && memcmp(text, "small", 5) == 0 && close(fd) == 0);
  ticks++;
  errno = saved;
}

// With a stack of hardly any size: raw calls, no buffers.
static void opens(int signal) {
  int saved = errno;
  (void)signal;
  long fd = syscall(SYS_openat, AT_FDCWD, "small", O_RDONLY);
  CHECK(fd >= 0 && syscall(SYS_lseek, fd, 3, SEEK_SET) == 3 && syscall(SYS_close, fd) == 0);
  ticks++;
  errno = saved;
}

static void handle(int signal, void (*handler)(int), int flags) {
  struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
  CHECK(sigaction(signal, &action, NULL) == 0);
}

static void timers(int which, int signal, void (*handler)(int), int flags, int us) {
  struct itimerval often = {{0, us}, {0, us}}, never = {{0, 0}, {0, 0}};
  handle(signal, handler, flags);
  CHECK(setitimer(which, &often, NULL) == 0);
  for (int rounds = 0; rounds < 20 || (ticks < 20 && rounds < 2000); rounds++) work("f", 5);
  CHECK(setitimer(which, &never, NULL) == 0 && ticks >= 20);
}

static void posix_timer(void) {
  timer_t timer;
  struct itimerspec often = {{0, 100000}, {0, 100000}};
  handle(SIGRTMIN, counts, SA_RESTART);
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
  CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &often, NULL) == 0);
  for (int rounds = 0; rounds < 20 || ticks < 20; rounds++) work("f", 5);
  CHECK(timer_delete(timer) == 0);
}

// The same on an alternate stack of the smallest size, with the kernel's frame on it, too.
static void small_stack(void) {
  stack_t small = {.ss_size = (size_t)sysconf(_SC_MINSIGSTKSZ) + 2048};
  small.ss_sp = malloc(small.ss_size);
  CHECK(sigaltstack(&small, NULL) == 0);
  timers(ITIMER_REAL, SIGALRM, opens, SA_ONSTACK | SA_RESTART, 5000);
}

// 10,000 times a second, by two timers, while several threads are at work: one in a hundred ticks writes to a file.
static int log_fd;
static atomic_int logged;
static void logs(int signal) {
  int saved = errno;
  (void)signal;
  if (ticks++ % 100 == 0) {
    CHECK(write(log_fd, ".", 1) == 1);
    logged++;
  }
  errno = saved;
}

static void *works(void *name) { return work(name, 40), NULL; }

static void storm(void) {
  pthread_t threads[2];
  struct itimerval often = {{0, 100}, {0, 100}}, never = {{0, 0}, {0, 0}};
  log_fd = open("log", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600);
  handle(SIGALRM, logs, SA_RESTART);
  handle(SIGPROF, logs, 0);
  CHECK(log_fd >= 0 && setitimer(ITIMER_REAL, &often, NULL) == 0 && setitimer(ITIMER_PROF, &often, NULL) == 0);
  CHECK(pthread_create(&threads[0], NULL, works, "s0") == 0 && pthread_create(&threads[1], NULL, works, "s1") == 0);
  for (int rounds = 0; rounds < 10 || (logged < 3 && rounds < 500); rounds++) work("s2", 1);
  CHECK(pthread_join(threads[0], NULL) == 0 && pthread_join(threads[1], NULL) == 0);
  CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0 && setitimer(ITIMER_PROF, &never, NULL) == 0);
  CHECK(logged >= 3 && lseek(log_fd, 0, SEEK_END) == logged);
}

static sigjmp_buf out;
static void jumps(int signal) { (void)signal, siglongjmp(out, 1); }

// Out of whatever the thread was doing, thirty times.
static void jump(void) {
  volatile int times = 0;
  handle(SIGALRM, jumps, 0);
  if (sigsetjmp(out, 1)) times++;
  if (times < 30) {
    struct itimerval once = {{0, 0}, {0, 500 + 37 * times}};
    CHECK(setitimer(ITIMER_REAL, &once, NULL) == 0);
    for (;;) {
      int fd = open("f", O_RDWR | O_CREAT, 0600);
      CHECK(fd >= 0 || errno == EMFILE);
      (void)!write(fd, data, 3000);
      close(fd);
    }
  }
  work("g", 20);
}

static atomic_int begun, cleaned;
static void clean(void *unused) { (void)unused, cleaned++; }

static void *until_cancelled(void *kind) {
  pthread_setcanceltype(kind ? PTHREAD_CANCEL_ASYNCHRONOUS : PTHREAD_CANCEL_DEFERRED, NULL);
  pthread_cleanup_push(clean, NULL);
  int fd = open("f", O_RDWR | O_CREAT, 0600);
  for (begun = 1;;) CHECK(pwrite(fd, data, 3000, 0) == 3000 && pread(fd, data, 3000, 0) == 3000);
  pthread_cleanup_pop(0);
  return NULL;
}

static void cancel(void) {
  for (long i = 0; i < 20; i++) {
    pthread_t thread;
    void *result;
    begun = 0;
    CHECK(pthread_create(&thread, NULL, until_cancelled, (void *)(i & 1)) == 0);
    while (!begun) sched_yield();
    CHECK(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
  }
  CHECK(cleaned == 20);
  work("g", 20);
}

// Coroutines on stacks as small as goroutines', raw system calls from there.
static ucontext_t scheduler, routines[8];
static int steps;

static void routine(int number) {
  char name[8] = {'r', (char)('0' + number), 0}, text[4];
  for (int i = 0; i < 20; i++, steps++) {
    long fd = syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && syscall(SYS_write, fd, "abc", 3) == 3 && syscall(SYS_pread64, fd, text, 3, 0) == 3);
    CHECK(memcmp(text, "abc", 3) == 0 && syscall(SYS_close, fd) == 0);
    swapcontext(&routines[number], &scheduler);
  }
}

static void coroutines(void) {
  for (int i = 0; i < 8; i++) {
    char *page = mmap(NULL, 12288, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED && mprotect(page, 4096, PROT_NONE) == 0 && getcontext(&routines[i]) == 0);
    routines[i].uc_stack.ss_sp = page + 4096;
    routines[i].uc_stack.ss_size = 8192;
    routines[i].uc_link = &scheduler;
    makecontext(&routines[i], (void (*)(void))routine, 1, i);
  }
  for (int round = 0; round < 20; round++)
    for (int i = 0; i < 8; i++) CHECK(swapcontext(&scheduler, &routines[i]) == 0);
  CHECK(steps == 8 * 19);
}

int main(int count, char **words) {
  for (size_t i = 0; i < sizeof data; i++) data[i] = (char)(i * 31);
  CHECK(count == 3 && chdir(words[2]) == 0);
  int fd = open("small", O_WRONLY | O_CREAT, 0600);
  CHECK(write(fd, "small", 5) == 5 && close(fd) == 0);
  if (!strcmp(words[1], "real")) timers(ITIMER_REAL, SIGALRM, counts, 0, 100);
  if (!strcmp(words[1], "profile")) timers(ITIMER_PROF, SIGPROF, counts, SA_RESTART, 100);
  if (!strcmp(words[1], "handler")) timers(ITIMER_REAL, SIGALRM, reads, SA_RESTART, 20000);
  if (!strcmp(words[1], "timer")) posix_timer();
  if (!strcmp(words[1], "small_stack")) small_stack();
  if (!strcmp(words[1], "storm")) storm();
  if (!strcmp(words[1], "jump")) jump();
  if (!strcmp(words[1], "cancel")) cancel();
  if (!strcmp(words[1], "coroutines")) coroutines();
  puts("ok");
  return 0;
}
"""


CASES = ["real", "profile", "handler", "timer", "jump", "cancel", "coroutines", "small_stack", "storm"]


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("signals") / "program"
    subprocess.run(["gcc", "-O1", "-o", path, "-x", "c", "-", "-lpthread"], input=PROGRAM, text=True, check=True,
                   timeout=TIMEOUT_S)
    return str(path)


@pytest.mark.parametrize("case", CASES)
def test_signals(runner, program, tmp_path, case):
    for directory, environment in ((tmp_path, runner.plain), (f"{runner.mount}/signals-{case}", runner.loaded)):
        subprocess.run(["mkdir", "-p", directory], env=environment, check=True, timeout=TIMEOUT_S)
        done = subprocess.run([program, case, directory], env=environment, text=True, capture_output=True,
                              timeout=2 * TIMEOUT_S, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES)
def test_a_hundred_times(runner, program, case):
    directory = f"{runner.mount}/signals-often-{case}"
    subprocess.run(["mkdir", "-p", directory], env=runner.loaded, check=True, timeout=TIMEOUT_S)
    for _ in range(100):
        done = subprocess.run([program, case, directory], env=runner.loaded, text=True, capture_output=True,
                              timeout=2 * TIMEOUT_S, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")
