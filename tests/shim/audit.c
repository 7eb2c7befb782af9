// SPDX-License-Identifier: Apache-2.0
// A library to be preloaded behind the shim: with Syscall User Dispatch every system call instruction of the process
// traps, and the handler looks whether the shim had its chance at it.
//
//   allowed   a call that never concerns files; a call of the shim itself; one from where a stub of the shim sent it
//   reported  anything else: a system call that left an unpatched site
//
// What is a patched site is told from the code alone: a jump stands before the instruction (or the instruction is in a
// stub), and in the stub the question that intercept/x86_64/rewrite.c writes, with a record whose `pass` is the site.
// The call itself is then made by a trampoline, from a place that does not trap, with the program's own registers and
// stack.  MADFS_AUDIT names the file for counts and reports, of AUDIT_BYTES.
//
// Armed are the first thread, threads of pthread_create(), children of fork() and every program that is executed; a
// child of vfork() runs unseen until it executes another program.
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

enum { AUDIT_BYTES = 1 << 20, SEEN = 1 << 14, AROUND = 64, LINE = 512, RED_ZONE = 128, MAPS = 256 << 10 };
enum { BLOCK = 1, DISPATCH = 59, ON = 1 };  // prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, ...)

static const char *const kinds[512] = {
#define SYSCALL(name, kind, ...) [SYS_##name] = #kind,
#include "../../intercept/syscalls.def"
#undef SYSCALL
};

static struct audit {
  _Atomic uint64_t processes, threads, traps, judged, reported, text;
  char lines[];
} *audit;

// --- what does not trap ---------------------------------------------------------------------------------------------

extern const char audit_begin[], audit_end[];
extern const char audit_call[], audit_vfork[], audit_return[];
long audit_raw(long number, long a, long b, long c, long d, long e, long f);
__thread unsigned long audit_back __attribute__((tls_model("initial-exec"), used));

__asm__(
    ".text\n.p2align 12\n"
    ".globl audit_begin, audit_end, audit_call, audit_vfork, audit_return, audit_raw\n"
    ".hidden audit_begin, audit_end, audit_call, audit_vfork, audit_return, audit_raw\n"
    "audit_begin:\n"
    "audit_raw: mov %rdi, %rax\n mov %rsi, %rdi\n mov %rdx, %rsi\n mov %rcx, %rdx\n mov %r8, %r10\n mov %r9, %r8\n"
    " mov 8(%rsp), %r9\n syscall\n ret\n"
    // On the stack: where to go on, and the stack to go on with.
    "audit_call: syscall\n mov (%rsp), %rcx\n mov 8(%rsp), %rsp\n jmp *%rcx\n"
    // The child's frames will be where the parent's stack ends, so nothing may be kept there.
    "audit_vfork: syscall\n mov audit_back@gottpoff(%rip), %rcx\n mov %fs:(%rcx), %rcx\n jmp *%rcx\n"
    "audit_return: mov $15, %eax\n syscall\n"
    ".p2align 12\naudit_end:\n");

struct action {
  void *handler;
  unsigned long flags;
  const void *restorer;
  uint64_t mask;
};

static const uint64_t ours = 1UL << (SIGSYS - 1);

static void arm(void) {
  static char selector = BLOCK;
  audit_raw(SYS_rt_sigprocmask, SIG_UNBLOCK, (long)&ours, 0, sizeof ours, 0, 0);
  long result = audit_raw(SYS_prctl, DISPATCH, ON, (long)audit_begin, audit_end - audit_begin, (long)&selector, 0);
  if (!result) atomic_fetch_add(&audit->threads, 1);
}

// --- the verdict ----------------------------------------------------------------------------------------------------

static unsigned long shim_start, shim_end;
static _Atomic unsigned long seen[SEEN];

static bool is_new(unsigned long site) {
  for (unsigned long i = site * 0x9e3779b97f4a7c15UL >> 50, n = 0; n < SEEN; i = (i + 1) % SEEN, n++) {
    unsigned long there = 0;
    if (atomic_compare_exchange_strong(&seen[i], &there, site)) return true;
    if (there == site) return false;
  }
  return true;
}

static bool copy_in(void *out, unsigned long from, size_t size) {
  struct iovec here = {out, size}, there = {(void *)from, size};
  long pid = audit_raw(SYS_getpid, 0, 0, 0, 0, 0, 0);
  return audit_raw(SYS_process_vm_readv, pid, (long)&here, 1, (long)&there, 1, 0) == (long)size;
}

// Whether the question of a stub stands in `code`, which is at `address`, with a record that sends calls to `site`.
static bool asks(const uint8_t *code, size_t size, unsigned long site) {
  static const uint8_t begin[] = {0x0f, 0xb7, 0xc8, 0x49, 0xbb}, middle[] = {0x41, 0x0f, 0xb6, 0x0c, 0x0b, 0xe3, 0x17,
                                                                            0x49, 0xbb};
  for (size_t i = 0; i + sizeof begin + 8 + sizeof middle + 8 <= size; i++) {
    const uint8_t *at = code + i;
    unsigned long record, pass;
    if (memcmp(at, begin, sizeof begin) || memcmp(at + sizeof begin + 8, middle, sizeof middle)) continue;
    memcpy(&record, at + sizeof begin + 8 + sizeof middle, 8);
    if (copy_in(&pass, record, 8) && pass == site) return true;
  }
  return false;
}

static bool is_patched(unsigned long site) {
  uint8_t before[AROUND], stub[2 * AROUND];
  if (!copy_in(before, site - AROUND, AROUND)) return false;
  if (asks(before, AROUND, site)) return true;  // within a stub
  for (int i = AROUND - 5; i >= AROUND - 32; i--) {
    int32_t distance;
    if (before[i] != 0xe9) continue;
    memcpy(&distance, before + i + 1, 4);
    unsigned long target = site - AROUND + (unsigned long)i + 5 + (unsigned long)(long)distance;
    if (copy_in(stub, target, sizeof stub) && asks(stub, sizeof stub, site)) return true;
  }
  return false;
}

static size_t put(char *out, size_t at, const char *text) {
  while (*text && at < LINE - 1) out[at++] = *text++;
  return at;
}

static size_t put_number(char *out, size_t at, unsigned long value, unsigned base) {
  char digits[24], *d = digits + 23;
  *d = 0;
  do *--d = "0123456789abcdef"[value % base];
  while (value /= base);
  return put(out, at, d);
}

// The line of /proc/self/maps around an address, after its protection.
static const char *object_of(unsigned long address) {
  static char maps[MAPS];
  long fd = audit_raw(SYS_openat, AT_FDCWD, (long)"/proc/self/maps", O_RDONLY | O_CLOEXEC, 0, 0, 0), n, size = 0;
  while (fd >= 0 && (n = audit_raw(SYS_read, fd, (long)maps + size, MAPS - 1 - size, 0, 0, 0)) > 0) size += n;
  audit_raw(SYS_close, fd, 0, 0, 0, 0, 0);
  maps[size] = 0;
  for (char *line = maps; *line;) {
    unsigned long range[2] = {0, 0};
    char *end = line;
    for (int i = 0; i < 2; i++, end++)
      for (; (*end >= '0' && *end <= '9') || (*end >= 'a' && *end <= 'f'); end++)
        range[i] = range[i] * 16 + (unsigned long)(*end <= '9' ? *end - '0' : *end - 'a' + 10);
    char *text = end;
    while (*end && *end != '\n') end++;
    bool last = !*end;
    *end = 0;
    if (address >= range[0] && address < range[1]) return text;
    if (last) break;
    line = end + 1;
  }
  return "?";
}

static void report(long number, unsigned long site) {
  char line[LINE];
  size_t n = put(line, 0, "system call ");
  n = put_number(line, n, (unsigned long)number, 10);
  n = put(line, n, " of process ");
  n = put_number(line, n, (unsigned long)audit_raw(SYS_getpid, 0, 0, 0, 0, 0, 0), 10);
  n = put(line, n, " left an unpatched site at 0x");
  n = put_number(line, n, site, 16);
  n = put(line, n, " in ");
  n = put(line, n, object_of(site));
  line[n++] = '\n';
  uint64_t at = atomic_fetch_add(&audit->text, n);
  if (at + n < AUDIT_BYTES - sizeof *audit) memcpy(audit->lines + at, line, n);
  atomic_fetch_add(&audit->reported, 1);
}

static void judge(long number, unsigned long site) {
  atomic_fetch_add(&audit->traps, 1);
  if (site >= shim_start && site < shim_end) return;
  const char *kind = number >= 0 && number < 512 ? kinds[number] : NULL;
  if (!kind || !strcmp(kind, ".kind = ROW_KERNEL")) return;
  atomic_fetch_add(&audit->judged, 1);
  if (is_new(site) && !is_patched(site)) report(number, site);
}

// --- making the call ------------------------------------------------------------------------------------------------

// Room on the program's stack, below what it uses.
static void *take(greg_t *g, size_t size) {
  g[REG_RSP] = (g[REG_RSP] - (long)size) & -16L;
  return (void *)g[REG_RSP];
}

static void spare_mask(greg_t *g, int which, size_t at, size_t size) {
  if (!g[which]) return;
  char copy[64];
  if (size > sizeof copy || !copy_in(copy, (unsigned long)g[which], size)) return;
  uint64_t mask;
  memcpy(&mask, copy + at, 8);
  mask &= ~ours;
  memcpy(copy + at, &mask, 8);
  g[which] = (long)memcpy(take(g, size), copy, size);
}

// A child on a stack of its own finds there what audit_call needs.
static long prepare_stack(long top, unsigned long back) {
  unsigned long *words = (unsigned long *)(top - 16);
  words[0] = back;
  words[1] = (unsigned long)top;
  return (long)words;
}

static void change_clone3(greg_t *g, unsigned long back) {
  uint64_t words[16] = {0};
  size_t size = (size_t)g[REG_RSI];
  if (size < 64 || size > sizeof words || !copy_in(words, (unsigned long)g[REG_RDI], size)) return;
  if (!words[5]) return;
  words[6] = (uint64_t)prepare_stack((long)(words[5] + words[6]), back) - words[5];
  g[REG_RDI] = (long)memcpy(take(g, size), words, size);
}

static bool is_vfork(const greg_t *g, long number) {
  uint64_t words[8] = {0};
  const uint64_t both = CLONE_VM | CLONE_VFORK;
  if (number == SYS_clone) return ((uint64_t)g[REG_RDI] & both) == both && !g[REG_RSI];
  if (number == SYS_clone3 && copy_in(words, (unsigned long)g[REG_RDI], 64))
    return (words[0] & both) == both && !words[5];
  return number == SYS_vfork;
}

static void on_trap(int signal, siginfo_t *info, void *context) {
  (void)signal;
  greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
  unsigned long back = (unsigned long)info->si_call_addr;
  long number = info->si_syscall, stack = g[REG_RSP];
  judge(number, back - 2);
  if (number == SYS_rt_sigreturn) {
    g[REG_RIP] = (long)audit_return;
    return;
  }
  if (number == SYS_rt_sigaction && g[REG_RDI] == SIGSYS) {
    g[REG_RAX] = 0;  // the signal is taken
    return;
  }
  if (is_vfork(g, number)) {
    audit_back = back;
    g[REG_RIP] = (long)audit_vfork;
    return;
  }
  g[REG_RSP] -= RED_ZONE;
  if (number == SYS_rt_sigprocmask) spare_mask(g, REG_RSI, 0, 8);
  else if (number == SYS_rt_sigaction) spare_mask(g, REG_RSI, offsetof(struct action, mask), sizeof(struct action));
  else if (number == SYS_rt_sigsuspend) spare_mask(g, REG_RDI, 0, 8);
  else if (number == SYS_ppoll) spare_mask(g, REG_R10, 0, 8);
  else if (number == SYS_epoll_pwait || number == SYS_epoll_pwait2) spare_mask(g, REG_R8, 0, 8);
  else if (number == SYS_clone && g[REG_RSI]) g[REG_RSI] = prepare_stack(g[REG_RSI], back);
  else if (number == SYS_clone3) change_clone3(g, back);
  unsigned long *words = take(g, 16);
  words[0] = back;
  words[1] = (unsigned long)stack;
  g[REG_RIP] = (long)audit_call;
}

// --- start ----------------------------------------------------------------------------------------------------------

static int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

struct thread {
  void *(*function)(void *);
  void *argument;
};

static void *begin(void *value) {
  struct thread t = *(struct thread *)value;
  arm();
  free(value);
  return t.function(t.argument);
}

int pthread_create(pthread_t *id, const pthread_attr_t *attributes, void *(*function)(void *), void *argument) {
  struct thread *t = malloc(sizeof *t);
  if (!create) *(void **)&create = dlsym(RTLD_NEXT, "pthread_create");
  if (!audit || !t) return create(id, attributes, function, argument);
  *t = (struct thread){function, argument};
  return create(id, attributes, begin, t);
}

static int find_shim(struct dl_phdr_info *info, size_t size, void *unused) {
  (void)size, (void)unused;
  if (!strstr(info->dlpi_name, "libmadfs_intercept.so")) return 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *s = &info->dlpi_phdr[i];
    if (s->p_type != PT_LOAD || !(s->p_flags & PF_X)) continue;
    shim_start = info->dlpi_addr + s->p_vaddr;
    shim_end = shim_start + s->p_memsz;
  }
  return 0;
}

__attribute__((constructor)) static void start(void) {
  const char *path = getenv("MADFS_AUDIT");
  dl_iterate_phdr(find_shim, NULL);
  int fd = path && shim_start ? open(path, O_RDWR | O_CLOEXEC) : -1;  // only what is preloaded is judged
  if (fd < 0) return;
  void *pages = mmap(NULL, AUDIT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (pages == MAP_FAILED) return;
  audit = pages;
  struct action action = {.handler = on_trap, .flags = SA_SIGINFO | SA_NODEFER | 0x04000000, .restorer = audit_return};
  audit_raw(SYS_rt_sigaction, SIGSYS, (long)&action, 0, 8, 0, 0);
  pthread_atfork(NULL, NULL, arm);
  atomic_fetch_add(&audit->processes, 1);
  arm();
}
