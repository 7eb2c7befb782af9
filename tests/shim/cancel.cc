// SPDX-License-Identifier: Apache-2.0
// Threads that wait for a lock on the mount are cancelled, and C++ destroys what they had.
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#include <sys/wait.h>
static std::atomic<int> waiting, destroyed;
struct Guard { ~Guard() { destroyed++; } };
static int file;
static int take(int command) { struct flock l = {}; l.l_type = F_WRLCK; return fcntl(file, command, &l); }
static void *waits(void *) { Guard guard; waiting = 1; take(F_SETLKW); return nullptr; }
int main() {
  int ready[2], hold[2]; char byte;
  if (pipe(ready) || pipe(hold)) return 1;
  file = open("/madfs/lock", O_RDWR | O_CREAT, 0644);
  if (fork() == 0) { take(F_SETLK); close(hold[1]); (void)!write(ready[1], "x", 1); (void)!read(hold[0], &byte, 1); _exit(0); }
  (void)!read(ready[0], &byte, 1);
  for (int i = 0; i < 10; i++) {
    pthread_t t; void *r; waiting = 0;
    pthread_create(&t, nullptr, waits, nullptr);
    while (!waiting) sched_yield();
    pthread_cancel(t); pthread_join(t, &r);
    if (r != PTHREAD_CANCELED) return 2;
  }
  printf("%d\n", destroyed.load()); close(hold[1]); wait(nullptr); return 0;
}
