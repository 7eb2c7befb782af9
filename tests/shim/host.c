// SPDX-License-Identifier: Apache-2.0
// What programs do that is hard on an interposed library; one sub-command each, which says "ok" when all went well.
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                               \
  do {                                                                 \
    if (!(condition)) {                                                \
      printf("line %d: %s (errno %d)\n", __LINE__, #condition, errno); \
      exit(1);                                                         \
    }                                                                  \
  } while (0)

extern char **environ;

static int ended(pid_t child) {
  int status;
  CHECK(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// --- threads and cancellation ---------------------------------------------------------------------------------------

static int pipes[2];
static _Atomic int waiting, cleaned;

static void clean(void *unused) {
  (void)unused;
  atomic_fetch_add(&cleaned, 1);
}

static void *blocks(void *how) {
  char byte;
  pthread_cleanup_push(clean, NULL);
  atomic_store(&waiting, 1);
  if (how) (void)!read(pipes[0], &byte, 1);
  else poll(NULL, 0, -1);
  pthread_cleanup_pop(0);
  return NULL;
}

// A thread that blocks in the kernel is cancelled and cleans up.
static void cancel(void) {
  CHECK(pipe(pipes) == 0);
  for (int i = 0; i < 100; i++) {
    pthread_t thread;
    void *result;
    atomic_store(&waiting, 0);
    CHECK(pthread_create(&thread, NULL, blocks, i & 1 ? &pipes : NULL) == 0);
    while (!atomic_load(&waiting)) sched_yield();
    CHECK(pthread_cancel(thread) == 0);
    CHECK(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
  }
  CHECK(atomic_load(&cleaned) == 100);
}

static void *writes(void *number) {
  char name[64], text[64], back[64];
  for (int i = 0; i < 50; i++) {
    snprintf(name, sizeof name, "/madfs/t%ld", (long)number);
    int n = snprintf(text, sizeof text, "%ld:%d", (long)number, i);
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
    CHECK(fd >= 0 && write(fd, text, (size_t)n) == n && lseek(fd, 0, SEEK_SET) == 0);
    CHECK(read(fd, back, sizeof back) == n && memcmp(text, back, (size_t)n) == 0);
    CHECK(close(fd) == 0);
  }
  return NULL;
}

static void threads(void) {
  pthread_t all[8];
  for (long i = 0; i < 8; i++) CHECK(pthread_create(&all[i], NULL, writes, (void *)i) == 0);
  for (int i = 0; i < 8; i++) CHECK(pthread_join(all[i], NULL) == 0);
}

// Threads that come and go leave no stack behind.
static void *touches(void *unused) { return (void)unused, (void)access("/madfs", F_OK), NULL; }

static long mapped_pages(void) {
  long pages = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  CHECK(file && fscanf(file, "%ld", &pages) == 1);
  fclose(file);
  return pages;
}

static void stacks(void) {
  long before = 0;
  for (int i = 0; i < 200; i++) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, touches, NULL) == 0 && pthread_join(thread, NULL) == 0);
    if (i == 20) before = mapped_pages();
  }
  CHECK(mapped_pages() - before < 256);
}

// --- processes ------------------------------------------------------------------------------------------------------

static void vforks(void) {
  int fd = open("/madfs/v", O_RDWR | O_CREAT, 0644);
  CHECK(fd >= 0);
  for (int i = 0; i < 100; i++) {
    pid_t child = vfork();
    if (child == 0) {
      close(fd);  // in the child only
      _exit(i & 63);
    }
    CHECK(ended(child) == (i & 63));
    CHECK(write(fd, "x", 1) == 1);
  }
  struct stat file;
  CHECK(fstat(fd, &file) == 0 && file.st_size == 100);
}

static void forks(void) {
  pthread_t all[4];
  int fd = open("/madfs/shared", O_WRONLY | O_CREAT | O_TRUNC, 0644);
  CHECK(fd >= 0);
  for (long i = 0; i < 4; i++) CHECK(pthread_create(&all[i], NULL, writes, (void *)i) == 0);
  for (int i = 0; i < 20; i++) {
    pid_t child = fork();
    if (child == 0) _exit(write(fd, "child", 5) == 5 ? 0 : 1);
    CHECK(ended(child) == 0);
    CHECK(write(fd, "parent", 6) == 6);
  }
  for (int i = 0; i < 4; i++) pthread_join(all[i], NULL);
  CHECK(lseek(fd, 0, SEEK_CUR) == 20 * 11);
}

// posix_spawn's child shares our memory: what it does to descriptors must not show here.
static void spawn(void) {
  int in = open("/madfs/in", O_RDWR | O_CREAT | O_TRUNC, 0644),
      out = open("/madfs/out", O_RDWR | O_CREAT | O_TRUNC, 0644);
  CHECK(in >= 0 && out >= 0 && write(in, "spawned", 7) == 7 && lseek(in, 0, SEEK_SET) == 0);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in, 0);
  posix_spawn_file_actions_adddup2(&actions, out, 1);
  posix_spawn_file_actions_addclose(&actions, in);
  posix_spawn_file_actions_addclose(&actions, out);
  pid_t child;
  CHECK(posix_spawnp(&child, "cat", &actions, NULL, (char *[]){"cat", NULL}, environ) == 0);
  CHECK(ended(child) == 0);
  char back[8] = "";
  CHECK(pread(out, back, 7, 0) == 7 && strcmp(back, "spawned") == 0);
  CHECK(lseek(in, 0, SEEK_CUR) == 7);
  CHECK(posix_spawnp(&child, "/no/such/program", &actions, NULL, (char *[]){"x", NULL}, environ) == ENOENT);
  posix_spawn_file_actions_destroy(&actions);
}

// The same with a file that the child opens, and a directory that it changes to.
static void spawn_open(void) {
  posix_spawn_file_actions_t actions;
  CHECK(access("/madfs", F_OK) == 0);
  mkdir("/madfs/dir", 0755);
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, "/madfs/opened", O_WRONLY | O_CREAT, 0644);
  posix_spawn_file_actions_addchdir_np(&actions, "/madfs/dir");
  pid_t child;
  CHECK(posix_spawnp(&child, "pwd", &actions, NULL, (char *[]){"pwd", NULL}, environ) == 0);
  CHECK(ended(child) == 0);
  posix_spawn_file_actions_destroy(&actions);
  char back[32] = "", here[64];
  int fd = open("/madfs/opened", O_RDONLY);
  CHECK(fd >= 0 && read(fd, back, sizeof back) == 11 && strcmp(back, "/madfs/dir\n") == 0);
  CHECK(getcwd(here, sizeof here) && strncmp(here, "/madfs", 6) != 0);
}

// --- signals --------------------------------------------------------------------------------------------------------

static _Atomic long ticks;

static void tick(int signal) {
  (void)signal;
  struct stat file;
  int saved = errno;
  atomic_fetch_add(&ticks, 1);
  stat("/madfs/s", &file);  // a handler may use the file system, too
  errno = saved;
}

static void signals(void) {
  struct itimerval each = {{0, 1000}, {0, 1000}};
  char back[16];
  signal(SIGALRM, tick);
  CHECK(setitimer(ITIMER_REAL, &each, NULL) == 0);
  int fd = open("/madfs/s", O_RDWR | O_CREAT, 0644);
  CHECK(fd >= 0);
  while (atomic_load(&ticks) < 500) {
    CHECK(pwrite(fd, "0123456789", 10, 0) == 10);
    CHECK(pread(fd, back, 10, 0) == 10 && memcmp(back, "0123456789", 10) == 0);
    sigset_t now;
    CHECK(sigprocmask(SIG_SETMASK, NULL, &now) == 0 && !sigismember(&now, SIGALRM));
  }
}

// --- registers ------------------------------------------------------------------------------------------------------

#ifdef __x86_64__
// A site of the main program: whatever number is in eax.  The instructions before it set nothing.
__asm__(
    ".text\n.p2align 4\n.type raw_site, @function\nraw_site:\n.cfi_startproc\n nopl 0(%rax,%rax)\n syscall\n "
    "ret\n.cfi_endproc\n"
    ".size raw_site, . - raw_site\n");
extern char raw_site[];
static void *volatile raw_site_pointer = raw_site;
#endif

// Everything that the kernel leaves alone must be as it was after a call of ours, too.
static void registers(void) {
  int fd = open("/madfs/r", O_RDWR | O_CREAT, 0644);
  CHECK(fd >= 0);
#ifdef __x86_64__
  double x = 1.5, y = 2.5, sum;
  uint64_t regs[8] = {0};
  for (int i = 0; i < 100; i++) {
    long result = SYS_lseek;
    double a = x, b = y;
    errno = 77;
    __asm__ volatile(
        "movsd %[a], %%xmm1; movsd %[b], %%xmm15; fldl %[a]; mov $11, %%r8; mov $12, %%r9; mov $13, %%r10; mov $14, "
        "%%rbx;"
        "mov $15, %%r12; xor %%edx, %%edx; stc; pushfq; popq 48(%[regs]);"
        "call *%[go];"
        "pushfq; popq 56(%[regs]); mov %%r8, (%[regs]); mov %%r9, 8(%[regs]); mov %%r10, 16(%[regs]); mov %%rbx, "
        "24(%[regs]);"
        "mov %%r12, 32(%[regs]); mov %%rdi, 40(%[regs]);"
        "movsd %%xmm1, %[a]; movsd %%xmm15, %[b]; fstpl %[s]"
        : "+a"(result), [a] "+m"(a), [b] "+m"(b), [s] "=m"(sum)
        : "D"((long)fd), "S"(2L), [regs] "r"(regs), [go] "m"(raw_site_pointer)
        : "rdx", "rcx", "r8", "r9", "r10", "r11", "r12", "rbx", "xmm1", "xmm15", "memory", "cc");
    CHECK(a == x && b == y && sum == x && errno == 77);
    CHECK(regs[0] == 11 && regs[1] == 12 && regs[2] == 13 && regs[3] == 14 && regs[4] == 15 && regs[5] == (uint64_t)fd);
    CHECK(((regs[6] ^ regs[7]) & 0x8d5) == 0 && result >= 0);
  }
#endif
}

// --- descriptors ----------------------------------------------------------------------------------------------------

static void lowest(void) {
  close(0);
  int fd = open("/madfs/low", O_RDWR | O_CREAT, 0644);
  CHECK(fd == 0);
  int copy = dup(fd), high = fcntl(fd, F_DUPFD, 50), exact = dup2(fd, 60), third = dup3(fd, 61, O_CLOEXEC);
  CHECK(high == 50 && exact == 60 && third == 61 && copy > 0);
  CHECK(fcntl(third, F_GETFD) == FD_CLOEXEC && fcntl(exact, F_GETFD) == 0);
  CHECK(write(copy, "abc", 3) == 3 && lseek(exact, 0, SEEK_CUR) == 3);
  CHECK((fcntl(high, F_GETFL) & O_ACCMODE) == O_RDWR && fcntl(high, F_SETFL, O_APPEND) == 0);
  CHECK(fcntl(fd, F_GETFL) & O_APPEND);
  CHECK(close(fd) == 0 && write(fd, "x", 1) == -1 && errno == EBADF);
  int host = open("/dev/null", O_WRONLY);
  CHECK(host == 0 && dup2(host, 60) == 60 && write(60, "zzz", 3) == 3 && lseek(high, 0, SEEK_CUR) == 3);
  CHECK(dup2(high, host) == 0 && lseek(0, 0, SEEK_END) == 3);
}

// As daemons do; what is ours must survive where it is not theirs to close.
static void closing(void) {
  int fd = open("/madfs/c", O_RDWR | O_CREAT, 0644), other = open("/madfs/c", O_RDONLY);
  CHECK(fd >= 0 && other >= 0);
  for (int i = 3; i < 4096; i++) close(i);
  CHECK(fcntl(fd, F_GETFD) == -1 && lseek(other, 0, SEEK_CUR) == -1);
  fd = open("/madfs/c", O_RDWR);
  CHECK(fd == 3 && write(fd, "again", 5) == 5);
  int low = open("/madfs/c", O_RDONLY);
  CHECK(low == 4 && close_range(3, ~0U, 0) == 0 && fcntl(3, F_GETFD) == -1 && fcntl(4, F_GETFD) == -1);
  CHECK(open("/madfs/c", O_RDONLY) == 3);
  CHECK(syscall(SYS_close_range, 3, ~0U, 4) == 0 && fcntl(3, F_GETFD) == FD_CLOEXEC);
  // Every number can be had, but for the internal descriptors' far above, which stay theirs.
  int taken = 0, here = sysconf(_SC_OPEN_MAX) < 4096 ? (int)sysconf(_SC_OPEN_MAX) : 4096;
  for (int i = 5; i < here; i++) CHECK(dup2(3, i) == i && close(i) == 0);
  for (int i = here; i < here + 64; i++) {
    if (fcntl(i, F_GETFD) == -1) continue;
    taken++;
    CHECK(close(i) == -1 && errno == EBADF);
  }
  CHECK(taken >= 2);
  CHECK(lseek(3, 0, SEEK_END) == 5 && open("/madfs/c", O_RDONLY) == 4);
}

static void limit(void) {
  struct rlimit few = {32, 32};
  CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
  int fd, last = -1;
  while ((fd = open("/madfs/l", O_RDWR | O_CREAT, 0644)) >= 0) last = fd;
  CHECK(errno == EMFILE && last > 10);
  CHECK(close(last) == 0 && open("/madfs/l", O_RDONLY) == last);
}

// --- signals and calls that wait ------------------------------------------------------------------------------------

static int lock_fd;

static int lock_it(int command, short type) {
  struct flock lock = {.l_type = type, .l_whence = SEEK_SET};
  return fcntl(lock_fd, command, &lock);
}

// A child that has the lock; it ends when `pipes` is closed or written to.
static pid_t child_with_lock(void) {
  int ready[2];
  char byte;
  CHECK(pipe(pipes) == 0 && pipe(ready) == 0);
  lock_fd = open("/madfs/lock", O_RDWR | O_CREAT, 0644);
  CHECK(lock_fd >= 0);
  pid_t child = fork();
  if (child == 0) {
    if (lock_it(F_SETLK, F_WRLCK)) _exit(1);
    close(pipes[1]);
    (void)!write(ready[1], "x", 1);
    (void)!read(pipes[0], &byte, 1);
    _exit(lock_it(F_SETLK, F_UNLCK) ? 2 : 0);
  }
  close(pipes[0]);
  CHECK(read(ready[0], &byte, 1) == 1);
  close(ready[0]), close(ready[1]);
  CHECK(lock_it(F_SETLK, F_WRLCK) == -1 && errno == EAGAIN);
  return child;
}

static _Atomic int alarms;

static void count_alarms(int signal) {
  (void)signal;
  if (atomic_fetch_add(&alarms, 1) == 4) close(pipes[1]);  // the child lets go
}

static void alarm_with(int flags, long us) {
  struct sigaction action = {.sa_handler = count_alarms, .sa_flags = flags};
  struct itimerval each = {{0, us}, {0, us}};
  atomic_store(&alarms, 0);
  CHECK(sigaction(SIGALRM, &action, NULL) == 0 && setitimer(ITIMER_REAL, &each, NULL) == 0);
}

// A wait for a lock is interrupted as the handler's flags say.
static void lock_waits(void) {
  pid_t child = child_with_lock();
  alarm_with(0, 2000);
  CHECK(lock_it(F_SETLKW, F_WRLCK) == -1 && errno == EINTR);
  alarm_with(SA_RESTART, 2000);
  CHECK(lock_it(F_SETLKW, F_WRLCK) == 0 && atomic_load(&alarms) >= 5);
  setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
  CHECK(ended(child) == 0 && lock_it(F_SETLK, F_UNLCK) == 0);
}

static void *waits_for_lock(void *unused) {
  pthread_cleanup_push(clean, NULL);
  atomic_store(&waiting, 1);
  lock_it(F_SETLKW, F_WRLCK);
  pthread_cleanup_pop(0);
  return unused;
}

static void cancel_lock(void) {
  pid_t child = child_with_lock();
  for (int i = 0; i < 20; i++) {
    pthread_t thread;
    void *result;
    atomic_store(&waiting, 0);
    CHECK(pthread_create(&thread, NULL, waits_for_lock, NULL) == 0);
    while (!atomic_load(&waiting)) sched_yield();
    CHECK(pthread_cancel(thread) == 0);
    CHECK(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
  }
  CHECK(atomic_load(&cleaned) == 20);
  close(pipes[1]);
  CHECK(ended(child) == 0 && access("/madfs/lock", F_OK) == 0);
}

static sigjmp_buf back_to;

static void jump(int signal) { siglongjmp(back_to, signal); }

// Handlers may leave a call of ours, for good.
static void jumps(void) {
  pid_t child = child_with_lock();
  struct itimerval soon = {{0, 0}, {0, 1000}};
  signal(SIGALRM, jump);
  for (volatile int i = 0; i < 50; i++) {
    if (sigsetjmp(back_to, 1) == 0) {
      CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
      lock_it(F_SETLKW, F_WRLCK);
      CHECK(!"the lock is not ours");
    }
    CHECK(access("/madfs/lock", F_OK) == 0);
  }
  close(pipes[1]);
  CHECK(ended(child) == 0);
}

// Handlers on the smallest alternate stack, ten thousand times a second, that read and write files of ours.
static void io_in_handler(int signal) {
  char byte;
  (void)signal;
  if (pread(lock_fd, &byte, 1, 0) == 1 && pwrite(lock_fd, "y", 1, 1) == 1) atomic_fetch_add(&ticks, 1);
}

static void alternate(void) {
  stack_t stack = {.ss_size = getauxval(AT_MINSIGSTKSZ) + 2048};
  struct sigaction action = {.sa_handler = io_in_handler, .sa_flags = SA_ONSTACK | SA_RESTART};
  struct itimerval each = {{0, 100}, {0, 100}};
  char back[2];
  stack.ss_sp = malloc(stack.ss_size);
  lock_fd = open("/madfs/s", O_RDWR | O_CREAT, 0644);
  CHECK(lock_fd >= 0 && write(lock_fd, "xx", 2) == 2 && sigaltstack(&stack, NULL) == 0);
  CHECK(sigaction(SIGALRM, &action, NULL) == 0 && setitimer(ITIMER_REAL, &each, NULL) == 0);
  while (atomic_load(&ticks) < 500) CHECK(pread(lock_fd, back, 2, 0) == 2 && back[0] == 'x');
}

// --- faults ---------------------------------------------------------------------------------------------------------

static char *hole;
static sigset_t mask_seen;

static void at_fault(int signal, siginfo_t *info, void *context) {
  CHECK(signal == SIGSEGV && info->si_addr == hole && context);
  CHECK(sigprocmask(SIG_BLOCK, NULL, &mask_seen) == 0);
  siglongjmp(back_to, 1);
}

// Bad addresses in calls are EFAULT, and the program's own faults reach its own handler as if nobody stood between.
static void faults(void) {
  struct sigaction action = {.sa_sigaction = at_fault, .sa_flags = SA_SIGINFO}, old;
  hole = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(sigaction(SIGSEGV, NULL, &old) == 0 && old.sa_handler == SIG_DFL);
  sigaddset(&action.sa_mask, SIGUSR1);
  for (int i = 0; i < 3; i++) {
    CHECK(access(hole, F_OK) == -1 && errno == EFAULT);
    int fd = open("/madfs/f", O_RDWR | O_CREAT, 0644);
    CHECK(write(fd, hole, 5) == -1 && errno == EFAULT && close(fd) == 0);
    CHECK(sigaction(SIGSEGV, &action, &old) == 0);
    if (sigsetjmp(back_to, 1) == 0) *(volatile char *)hole = 1;
    CHECK(sigismember(&mask_seen, SIGUSR1) && sigismember(&mask_seen, SIGSEGV));
    CHECK(sigaction(SIGSEGV, NULL, &old) == 0);
    if (action.sa_flags & SA_RESETHAND) CHECK(old.sa_handler == SIG_DFL);  // it was there for one signal
    else CHECK(old.sa_sigaction == at_fault && old.sa_flags & SA_SIGINFO);
    action.sa_flags ^= SA_RESETHAND;
  }
  for (int i = 0; i < 3; i++) {  // without a handler: the end
    pid_t child = fork();
    if (child == 0) {
      if (i == 0) signal(SIGSEGV, SIG_DFL), *(volatile char *)hole = 1;
      if (i == 1) signal(SIGSEGV, SIG_DFL), raise(SIGSEGV);
      if (i == 2) signal(SIGSEGV, SIG_IGN), raise(SIGSEGV), _exit(7);
    }
    CHECK(ended(child) == (i == 2 ? 7 : 128 + SIGSEGV));
  }
}

// --- descriptors of other processes ---------------------------------------------------------------------------------

static void send_fd(int socket, int fd) {
  char byte = 'x', room[CMSG_SPACE(sizeof fd)] = {0};
  struct iovec data = {&byte, 1};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  *header = (struct cmsghdr){CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS};
  memcpy(CMSG_DATA(header), &fd, sizeof fd);
  CHECK(sendmsg(socket, &message, 0) == 1);
}

static int receive_fd(int socket, bool many) {
  char byte, room[CMSG_SPACE(sizeof(int))];
  int fd = -1;
  struct iovec data = {&byte, 1};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
  struct mmsghdr list = {.msg_hdr = message};
  if (many) CHECK(recvmmsg(socket, &list, 1, 0, NULL) == 1);
  else CHECK(recvmsg(socket, &list.msg_hdr, 0) == 1);
  memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&list.msg_hdr)), sizeof fd);
  return fd;
}

static void passing(void) {
  int pair[2];
  char text[8] = "", byte;
  CHECK(access("/madfs", F_OK) == 0 && close(open("/madfs/first", O_RDWR | O_CREAT, 0644)) == 0);
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
  pid_t child = fork();
  if (child == 0) {
    int fd = open("/madfs/sent", O_RDWR | O_CREAT, 0644);
    CHECK(write(fd, "text", 4) == 4);
    send_fd(pair[1], fd);
    send_fd(pair[1], fd);
    CHECK(close(fd) == 0 && read(pair[1], &byte, 1) == 1);
    fd = open("/madfs/other", O_RDWR | O_CREAT, 0644);  // takes no slot from the one that was sent
    CHECK(fd >= 0 && write(pair[1], &fd, sizeof fd) == sizeof fd && read(pair[1], &byte, 1) == 1);
    CHECK(close(fd) == 0 && open("/madfs/third", O_RDWR | O_CREAT, 0644) == fd && write(fd, "3", 1) == 1);
    (void)!write(pair[1], "x", 1);
    _exit(read(pair[1], &byte, 1) == 1 ? 0 : 1);
  }
  int fd = receive_fd(pair[0], true), again = receive_fd(pair[0], false), theirs;
  CHECK(lseek(again, 1, SEEK_SET) == 1 && lseek(fd, 3, SEEK_CUR) == 4);
  CHECK(pread(fd, text, 4, 0) == 4 && strcmp(text, "text") == 0 && lseek(fd, 0, SEEK_CUR) == 4);
  CHECK(write(pair[0], "x", 1) == 1 && read(pair[0], &theirs, sizeof theirs) == sizeof theirs);
  int process = (int)syscall(SYS_pidfd_open, child, 0), got = (int)syscall(SYS_pidfd_getfd, process, theirs, 0);
  CHECK(got >= 0 && write(got, "taken", 5) == 5);
  CHECK(write(pair[0], "x", 1) == 1 && read(pair[0], &byte, 1) == 1);
  CHECK(lseek(got, 0, SEEK_END) == 5 && close(got) == 0);
  CHECK(write(pair[0], "x", 1) == 1 && ended(child) == 0);
  struct stat file;
  CHECK(stat("/madfs/other", &file) == 0 && file.st_size == 5 && stat("/madfs/sent", &file) == 0 && file.st_size == 4);
}

// --- what the kernel answers in our place ---------------------------------------------------------------------------

static void answers(void) {
  int fd = open("/madfs/f", O_RDWR | O_CREAT, 0644), pair[2];
  struct sockaddr_un address;
  struct pollfd poll_it = {.fd = fd, .events = POLLIN | POLLOUT};
  struct itimerspec soon = {0};
  sigset_t none;
  socklen_t size = sizeof address;
  sigemptyset(&none);
  CHECK(fd >= 0 && pipe(pair) == 0);
  CHECK(poll(&poll_it, 1, 0) == 1 && poll_it.revents == (POLLIN | POLLOUT));
  CHECK(accept(fd, NULL, NULL) == -1 && errno == ENOTSOCK);
  CHECK(getsockname(fd, (struct sockaddr *)&address, &size) == -1 && errno == ENOTSOCK);
  CHECK(send(fd, "x", 1, 0) == -1 && errno == ENOTSOCK);
  CHECK(tee(fd, pair[1], 1, 0) == -1 && errno == EINVAL);
  CHECK(signalfd(fd, &none, 0) == -1 && errno == EINVAL);
  CHECK(timerfd_settime(fd, 0, &soon, NULL) == -1 && errno == EINVAL);
  CHECK(inotify_rm_watch(fd, 1) == -1 && errno == EINVAL);
  CHECK(syscall(SYS_mq_getsetattr, fd, NULL, NULL) == -1 && errno == EBADF);
  CHECK(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) == -1 && errno == EBADF);
  CHECK(setns(fd, 0) == -1 && errno == EINVAL);
}

static void requests(void) {
  aio_context_t context = 0;
  char byte;
  int ours = open("/madfs/f", O_RDWR | O_CREAT, 0644), host = open("/proc/self/exe", O_RDONLY);
  CHECK(ours >= 0 && host >= 0 && syscall(SYS_io_setup, 4, &context) == 0);
  struct iocb one = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (unsigned)host, .aio_buf = (uintptr_t)&byte};
  struct iocb two = one, *list[] = {&one, &two, (struct iocb *)16};
  one.aio_nbytes = two.aio_nbytes = 1;
  two.aio_fildes = (unsigned)ours;
  CHECK(syscall(SYS_io_submit, context, 1, list) == 1);
  CHECK(syscall(SYS_io_submit, context, 2, list) == 1);  // the fake client has no preadv2
  CHECK(syscall(SYS_io_submit, context, 1, list + 1) == -1 && errno == ENOSYS);
  CHECK(syscall(SYS_io_submit, 4711, 1, list + 1) == -1 && errno == EINVAL);
  CHECK(syscall(SYS_io_submit, context, 1, list + 2) == -1 && errno == EFAULT);
  CHECK(syscall(SYS_io_submit, context, 1, NULL) == -1 && errno == EFAULT);
  struct io_event events[2];
  CHECK(syscall(SYS_io_getevents, context, 2, 2, events, NULL) == 2 && events[0].res == 1 && byte == 0x7f);
}

static const struct {
  const char *name;
  void (*run)(void);
} commands[] = {{"cancel", cancel},       {"threads", threads}, {"stacks", stacks},         {"vforks", vforks},
                {"forks", forks},         {"spawn", spawn},     {"spawn_open", spawn_open}, {"signals", signals},
                {"registers", registers}, {"lowest", lowest},   {"closing", closing},       {"limit", limit},
                {"lock_waits", lock_waits}, {"cancel_lock", cancel_lock}, {"jumps", jumps}, {"alternate", alternate},
                {"faults", faults}, {"passing", passing}, {"answers", answers}, {"requests", requests}};

int main(int count, char **words) {
  for (size_t i = 0; count == 2 && i < sizeof commands / sizeof *commands; i++) {
    if (strcmp(words[1], commands[i].name) != 0) continue;
    commands[i].run();
    puts("ok");
    return 0;
  }
  fprintf(stderr, "host: one of the sub-commands\n");
  return 2;
}
