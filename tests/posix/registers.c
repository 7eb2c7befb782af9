// SPDX-License-Identifier: Apache-2.0
// System calls whose arguments of 32 bits have something else in the upper half of their registers, which Linux does
// not look at.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#define N(value) (0x5a5a5a5a00000000L | (unsigned)(value))  // of 32 bits
#define TRY(name, ...) try(#name, SYS_##name, (const long[6]){__VA_ARGS__})

static void try(const char *name, long number, const long *a) {
  long result;
  register long r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = a[5];
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  if (result < 0) printf("%s: %s\n", name, strerror((int)-result));
  else printf("%s: %ld\n", name, result);
}

static char text[4096];
static struct stat file;

static void descriptors(int fd, int directory) {
  struct iovec vector = {text, 4};
  TRY(pread64, N(fd), (long)text, 5, 0);
  TRY(lseek, N(fd), 3, N(SEEK_SET));
  TRY(lseek, N(fd), 0, N(SEEK_END));
  TRY(lseek, N(fd), 0, N(77));
  TRY(preadv2, N(fd), (long)&vector, 1, 2, 0, N(0));
  TRY(preadv2, N(fd), (long)&vector, 1, 2, 0, N(0x8000));
  TRY(pwritev2, N(fd), (long)&vector, 1, 0, 0, N(RWF_APPEND));
  TRY(fstat, N(fd), (long)&file);
  printf("%ld bytes\n", (long)file.st_size);
  TRY(dup2, N(fd), N(40));
  TRY(dup3, N(fd), N(41), N(O_CLOEXEC));
  TRY(fcntl, N(41), N(F_GETFD));
  TRY(fcntl, N(41), N(F_SETFD), N(0));
  TRY(fcntl, N(41), N(F_GETFL));
  TRY(flock, N(fd), N(LOCK_EX | LOCK_NB));
  TRY(ioctl, N(41), N(FIOCLEX));
  TRY(fcntl, N(41), N(F_GETFD));
  TRY(ioctl, N(fd), N(FIONREAD), (long)text);
  TRY(close_range, N(40), N(45), N(0));
  TRY(fcntl, N(41), N(F_GETFD));
  TRY(fallocate, N(fd), N(FALLOC_FL_KEEP_SIZE), 0, 100);
  TRY(fallocate, N(fd), N(0x4000), 0, 100);
  TRY(fadvise64, N(fd), 0, 0, N(POSIX_FADV_DONTNEED));
  TRY(sync_file_range, N(fd), 0, 0, N(SYNC_FILE_RANGE_WRITE));
  TRY(fchmod, N(fd), N(0640));
  TRY(fchown, N(fd), N(-1), N(-1));
  TRY(copy_file_range, N(fd), (long)(long[1]){0}, N(fd), (long)(long[1]){1000}, 5, N(0));
  TRY(fsetxattr, N(fd), (long)"user.a", (long)"b", 1, N(XATTR_REPLACE));
  TRY(getdents64, N(directory), (long)text, N(1));
  TRY(close, N(60));
}

static void names(int directory) {
  TRY(openat, N(AT_FDCWD), (long)"f", N(O_RDONLY), 0);
  TRY(openat, N(directory), (long)"g", N(O_CREAT | O_WRONLY | O_EXCL), N(0604));
  TRY(open, (long)"g", N(O_RDWR), 0);
  TRY(creat, (long)"h", N(0600));
  TRY(newfstatat, N(directory), (long)"g", (long)&file, N(0));
  printf("%o\n", file.st_mode);
  TRY(newfstatat, N(directory), (long)"", (long)&file, N(AT_EMPTY_PATH));
  TRY(newfstatat, N(directory), (long)"g", (long)&file, N(0x40000));
  TRY(statx, N(directory), (long)"g", N(AT_SYMLINK_NOFOLLOW), N(STATX_BASIC_STATS), (long)text);
  TRY(access, (long)"g", N(R_OK));
  TRY(faccessat2, N(directory), (long)"g", N(R_OK), N(AT_EACCESS));
  TRY(mkdirat, N(directory), (long)"d", N(0750));
  TRY(mkdir, (long)"e", N(0700));
  TRY(mknodat, N(directory), (long)"n", N(S_IFREG | 0600), N(0));
  TRY(unlinkat, N(directory), (long)"d", N(AT_REMOVEDIR));
  TRY(unlinkat, N(directory), (long)"n", N(0));
  TRY(renameat2, N(directory), (long)"g", N(AT_FDCWD), (long)"h", N(RENAME_EXCHANGE));
  TRY(renameat2, N(directory), (long)"g", N(AT_FDCWD), (long)"h", N(RENAME_NOREPLACE));
  TRY(symlinkat, (long)"g", N(directory), (long)"s");
  TRY(readlinkat, N(directory), (long)"s", (long)text, N(10));
  TRY(readlink, (long)"s", (long)text, N(0));
  TRY(linkat, N(directory), (long)"s", N(directory), (long)"l", N(AT_SYMLINK_FOLLOW));
  TRY(fchmodat, N(directory), (long)"l", N(0611));
  TRY(chmod, (long)"e", N(0711));
  TRY(fchownat, N(directory), (long)"s", N(-1), N(-1), N(AT_SYMLINK_NOFOLLOW));
  TRY(utimensat, N(directory), (long)"s", 0, N(AT_SYMLINK_NOFOLLOW));
  TRY(setxattr, (long)"l", (long)"user.a", (long)"b", 1, N(XATTR_REPLACE));
}

void restorer(void);  // what the kernel wants with each handler
__asm__("restorer: mov $15, %eax\n syscall");

static void handler(int number) {
  printf("signal %d\n", number);
  fflush(stdout);
  _exit(0);
}

// A handler that is set so gets what is the program's, and an address that is not there stays EFAULT.
static void signals(int fd) {
  struct {
    void (*handler)(int);
    unsigned long flags;
    void (*restorer)(void);
    unsigned long mask;
  } action = {handler, SA_NODEFER | 0x04000000, restorer, 0};
  TRY(rt_sigaction, N(SIGSEGV), (long)&action, 0, 8);
  TRY(fstat, N(fd), 100000);
  *(volatile char *)100000 = 1;
}

int main(void) {
  setbuf(stdout, NULL);
  int fd = open("f", O_RDWR | O_CREAT, 0600), directory = open(".", O_RDONLY | O_DIRECTORY);
  if (write(fd, "0123456789", 10) != 10) return 1;
  descriptors(fd, directory);
  names(directory);
  try("a number", N(SYS_access), (const long[6]){(long)"g", R_OK});
  signals(fd);
  return 2;
}
