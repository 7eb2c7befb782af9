// SPDX-License-Identifier: Apache-2.0
// `allocator FORKS`: forks while threads use the mount and memory, with an allocator of its own that locks itself for
// the time of a fork, as jemalloc and tcmalloc do; and with handlers of its own that use the mount then.
// Compiled with WHEN: 0 the allocator's handlers are registered at its first use, 1 in a constructor, 2 there is none.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#if WHEN < 2
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static pthread_mutex_t memory = PTHREAD_MUTEX_INITIALIZER;
static void lock(void) { pthread_mutex_lock(&memory); }
static void unlock(void) { pthread_mutex_unlock(&memory); }
static void anew(void) { pthread_mutex_init(&memory, NULL); }

static void enter(void) {
  static int known;
  if (!WHEN && !__atomic_exchange_n(&known, 1, __ATOMIC_SEQ_CST)) pthread_atfork(lock, unlock, anew);
  lock();
}

#define LOCKED(type, call) enter(); type result = call; unlock(); return result
void *malloc(size_t size) { LOCKED(void *, __libc_malloc(size)); }
void *calloc(size_t n, size_t size) { LOCKED(void *, __libc_calloc(n, size)); }
void *realloc(void *old, size_t size) { LOCKED(void *, __libc_realloc(old, size)); }
void *memalign(size_t to, size_t size) { LOCKED(void *, __libc_memalign(to, size)); }
void *aligned_alloc(size_t to, size_t size) { return memalign(to, size); }
int posix_memalign(void **out, size_t to, size_t size) { return (*out = memalign(to, size)) ? 0 : 12; }
void free(void *old) { enter(); __libc_free(old); unlock(); }
#endif

#if WHEN == 1
__attribute__((constructor)) static void at_load(void) { pthread_atfork(lock, unlock, anew); }
#endif

static int note(const char *phase) {
  int fd = open("/madfs/handlers", O_WRONLY | O_CREAT | O_APPEND, 0600);
  int good = write(fd, phase, 1) == 1 && !close(fd);
  return good ? 0 : (puts("a handler failed"), 1);
}

static int heard;
static void before(void) { heard += note("b"); }
static void in_parent(void) { heard += note("p"); }
static void in_child(void) { heard += note("c"); }

static int use(const char *name) {
  char *data = malloc(70000), *back = malloc(70000);
  memset(data, name[7], 70000);
  int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
  int good = fd >= 0 && write(fd, data, 70000) == 70000 && pread(fd, back, 70000, 0) == 70000 &&
             !memcmp(data, back, 70000) && !close(fd);
  free(data);
  free(back);
  return good ? 0 : 1;
}

static volatile int over;

static void *work(void *number) {
  char name[] = "/madfs/x";
  name[7] = (char)('a' + (long)number);
  while (!over)
    if (use(name)) return "a thread failed";
  return NULL;
}

int main(int count, char **words) {
  pthread_t thread[3];
  alarm(50);
  pthread_atfork(before, in_parent, in_child);
  for (long i = 0; i < 3; i++) pthread_create(&thread[i], NULL, work, (void *)i);
  for (int i = 0; i < atoi(words[count - 1]); i++) {
    int status;
    pid_t child = fork();
    if (!child) _exit(heard + use("/madfs/z"));
    if (waitpid(child, &status, 0) != child || status) return printf("a child ended with %d\n", status), 1;
  }
  over = 1;
  for (int i = 0; i < 3; i++) {
    void *wrong;
    pthread_join(thread[i], &wrong);
    if (wrong) return puts(wrong), 1;
  }
  return puts(heard ? "bad" : "ok") < 0;
}
