// SPDX-License-Identifier: Apache-2.0
// Addresses that a program gives us and that may not be its own: EFAULT is the answer, as from the kernel.
//
// What reads and writes there is in a table of guarded instructions (arch.h), and the handler of SIGSEGV and SIGBUS
// sends a fault of theirs to where it is noticed: this costs nothing as long as all is well.  The two handlers are ours
// from the start; the one that the program wants is remembered, is what rt_sigaction() tells, and gets every other
// fault on the stack, with the mask and the arguments that the kernel gave: we jump there.  Without a handler of the
// program's, the signal's default comes back and the instruction faults again, so that a core shows the place.
//
// SIGILL and SIGABRT are treated the same way, so that every crash of ours can say in one line what happened where.  A
// thread that makes calls of ours has an alternate stack, for the case that our own one overflows; the program is told
// that it has none (sigaltstack), and gets its own in place of it whenever it wants one.
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "intercept.h"

enum { PAGE = 4096, PROBED_BYTEWISE = 64 << 10 };

#define RESTORER 0x04000000UL  // SA_RESTORER, which libc keeps to itself

// The kernel's struct sigaction.
struct action {
  unsigned long handler, flags, restorer;
  uint64_t mask;
};

static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGABRT};
static const char *const signal_names[] = {"SIGSEGV", "SIGBUS", "SIGILL", "SIGABRT"};
enum { SIGNALS = sizeof signals / sizeof *signals };

static struct action actions[SIGNALS];  // what the program asked for

static struct madfs_lock lock;

static int index_of(unsigned long signal) {
  for (int i = 0; i < SIGNALS; i++)
    if (signals[i] == (int)signal) return i;
  return -1;
}

// --- memory ---------------------------------------------------------------------------------------------------------

bool madfs_user_in(void *out, const void *in, size_t size) { return arch_copy(out, in, size) == 0; }

bool madfs_user_out(void *out, const void *in, size_t size) { return arch_copy(out, in, size) == 0; }

long madfs_user_text(char *out, size_t room, const char *in) {
  size_t n = 0;
  for (;;) {
    size_t some = PAGE - ((unsigned long)(in + n) & (PAGE - 1));
    if (some > 64) some = 64;
    if (some > room - n) some = room - n;
    if (!some) return -ENAMETOOLONG;
    if (arch_copy(out + n, in + n, some)) return -EFAULT;
    for (size_t i = 0; i < some; i++)
      if (!out[n + i]) return (long)(n + i);
    n += some;
  }
}

static size_t touch_pages(const char *address, size_t length, bool write) {
  for (size_t n = 0; n < length; n = (((unsigned long)address + n) & ~(PAGE - 1UL)) + PAGE - (unsigned long)address)
    if (!arch_touch(address + n, write)) return n;
  return length;
}

// Large buffers are not touched everywhere: pages that the call will not need would be made.
size_t madfs_user_probe(const void *at, size_t length, bool write) {
  const char *address = at;
  unsigned long first = (unsigned long)at & ~(PAGE - 1UL);
  if (!length) return 0;
  if (length > ARCH_POINTER_MAX || (unsigned long)at > ARCH_POINTER_MAX - length) return 0;
  if (length <= PROBED_BYTEWISE) return touch_pages(address, length, write);
  if (arch_touch(address, write) && arch_touch(address + length - 1, write) &&
      !madfs_failed(RAW(SYS_msync, first, (unsigned long)at + length - first, MS_ASYNC)))
    return length;
  return touch_pages(address, length, write);
}

// --- the handler ----------------------------------------------------------------------------------------------------

extern const struct guard {
  int32_t from, to;  // relative to themselves
} __start_madfs_guards[], __stop_madfs_guards[];

static unsigned long guarded(unsigned long counter) {
  for (const struct guard *g = __start_madfs_guards; g < __stop_madfs_guards; g++)
    if ((unsigned long)&g->from + (unsigned long)(long)g->from == counter)
      return (unsigned long)&g->to + (unsigned long)(long)g->to;
  return 0;
}

static long install(int signal, const struct action *wanted) {
  struct action own = {.handler = (unsigned long)arch_fault,
                       .flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | RESTORER,
                       .restorer = (unsigned long)arch_restore};
  if (wanted->handler > (unsigned long)SIG_IGN) {
    own = *wanted;
    own.handler = (unsigned long)arch_fault;
    own.flags |= SA_SIGINFO;
  } else if (wanted->handler == (unsigned long)SIG_IGN) {
    own = *wanted;  // so that a program to be executed inherits it
  }
  return RAW(SYS_rt_sigaction, signal, &own, 0, sizeof own.mask);
}

// "libc.so.6+0x1234": what stands at `address`.  `out` has room for a path.
static const char *place(unsigned long address, char *out) {
  char digits[24];
  unsigned long start = 0;
  size_t n = madfs_scan_name(address, out, MADFS_PATH_MAX, &start);
  if (!n) return madfs_copy(out, MADFS_PATH_MAX, madfs_hexadecimal(digits, address)), out;
  n += madfs_copy(out + n, MADFS_PATH_MAX - n, "+");
  madfs_copy(out + n, MADFS_PATH_MAX - n, madfs_hexadecimal(digits, address - start));
  return out;
}

// A crash of ours says so in one line; what happens then is the program's affair.  It runs once in a process: the texts
// need no stack.
static void report(int signal, unsigned long counter, unsigned long address) {
  static _Atomic bool reported;
  static char where[MADFS_PATH_MAX], site[MADFS_PATH_MAX];
  char number[24];
  const struct madfs_thread *t = madfs_local.inside & ~INSIDE_FORK ? madfs_local.thread : NULL;
  const struct madfs_frame *f = t ? t->frame : NULL;
  bool here = counter >= madfs_settings.text_start && counter < madfs_settings.text_end;
  if ((!f && !here) || atomic_exchange(&reported, true)) return;
  bool overflow = t && address >= madfs_thread_guard(t) && address < madfs_thread_guard(t) + PAGE;
  const char *name = f ? madfs_call_name(t->number) : "";
  madfs_say("version ", madfs_version, here ? " crashed: " : " crashed in the client: ",
            signal_names[index_of((unsigned long)signal)], overflow ? " (its stack is full)" : "", " at ",
            place(counter, where), f ? ", in system call " : "", *name ? name : "", f ? " (" : "",
            f ? madfs_decimal(number, (unsigned long)t->number) : "", f ? ") made at " : "",
            f ? place((unsigned long)f->site->address, site) : "", NULL);
}

// Where arch_fault goes on: the program's handler, or 0 to return to what was interrupted.
unsigned long madfs_fault(int signal, siginfo_t *info, ucontext_t *context) {
  struct action *wanted = &actions[index_of((unsigned long)signal)];
  unsigned long counter = (unsigned long)ARCH_PROGRAM_COUNTER(context), to = info->si_code > 0 ? guarded(counter) : 0;
  unsigned long handler = wanted->handler;
  if (to) {
    ARCH_PROGRAM_COUNTER(context) = (long)to;
    if (wanted->flags & SA_RESETHAND) install(signal, wanted);
    return 0;
  }
  bool own = info->si_code > 0 || (signal == SIGABRT && info->si_pid == (int)RAW(SYS_getpid));
  if (own) report(signal, counter, signal == SIGABRT ? 0 : (unsigned long)info->si_addr);
  if (handler > (unsigned long)SIG_IGN) {
    if (wanted->flags & SA_RESETHAND) {
      *wanted = (struct action){.handler = (unsigned long)SIG_DFL};
      install(signal, wanted);
    }
    return handler;
  }
  struct action none = {.handler = (unsigned long)SIG_DFL};
  RAW(SYS_rt_sigaction, signal, &none, 0, sizeof none.mask);
  if (info->si_code <= 0)  // sent by somebody: the instruction would not fault again
    RAW(SYS_rt_tgsigqueueinfo, RAW(SYS_getpid), RAW(SYS_gettid), signal, info);
  return 0;
}

void madfs_fault_start(void) {
  for (int i = 0; i < SIGNALS; i++) {
    struct action *wanted = &actions[i];
    if (madfs_failed(RAW(SYS_rt_sigaction, signals[i], 0, wanted, sizeof wanted->mask))) continue;
    if (wanted->handler == (unsigned long)SIG_DFL) install(signals[i], wanted);
  }
}

// --- rt_sigaction ---------------------------------------------------------------------------------------------------

// A child of vfork has its own handlers, but the parent's memory: there the kernel's are the truth.
static bool sigaction_concerns(struct madfs_frame *f) {
  return index_of(f->argument[0]) >= 0 && f->argument[3] == sizeof(uint64_t) && !madfs_in_vfork();
}

static enum madfs_verdict sigaction_work(struct madfs_frame *f) {
  int signal = (int)f->argument[0];
  struct action *wanted = &actions[index_of(f->argument[0])], new, old;
  f->number = -EFAULT;
  if (f->argument[1] && !madfs_user_in(&new, (const void *)f->argument[1], sizeof new)) return MADFS_DONE;
  madfs_lock(&lock);
  old = *wanted;
  f->number = 0;
  if (f->argument[1]) {
    *wanted = new;
    f->number = install(signal, wanted);
    if (madfs_failed(f->number)) *wanted = old;
  }
  madfs_unlock(&lock);
  if (!f->number && f->argument[2] && !madfs_user_out((void *)f->argument[2], &old, sizeof old)) f->number = -EFAULT;
  return MADFS_DONE;
}

const struct madfs_shim madfs_shim_rt_sigaction = {sigaction_concerns, sigaction_work};

// --- sigaltstack ----------------------------------------------------------------------------------------------------

// The stack that this thread has from us while the program has given it none.
static stack_t alternate_of(const struct madfs_thread *t) {
  return (stack_t){.ss_sp = (void *)madfs_thread_alternate(t), .ss_size = MADFS_ALTERNATE_BYTES};
}

void madfs_alternate_install(const struct madfs_thread *t) {
  stack_t now, ours = alternate_of(t);
  if (!madfs_failed(RAW(SYS_sigaltstack, 0, &now)) && (now.ss_flags & SS_DISABLE)) RAW(SYS_sigaltstack, &ours, 0);
}

void madfs_alternate_remove(const struct madfs_thread *t) {
  stack_t now, none = {.ss_flags = SS_DISABLE};
  if (!madfs_failed(RAW(SYS_sigaltstack, 0, &now)) && now.ss_sp == alternate_of(t).ss_sp)
    RAW(SYS_sigaltstack, &none, 0);
}

static bool alternate_concerns(struct madfs_frame *f) { return (void)f, madfs_local.thread != NULL; }

// Here the stack pointer is on our own stack, so what the kernel knows from it is told from the frame.
static enum madfs_verdict alternate_work(struct madfs_frame *f) {
  const struct madfs_thread *t = madfs_local.thread;
  const unsigned long *a = f->argument;
  stack_t now, new, ours = alternate_of(t);
  f->number = RAW(SYS_sigaltstack, 0, &now);
  if (madfs_failed(f->number)) return MADFS_DONE;
  unsigned long start = (unsigned long)now.ss_sp;
  bool none = now.ss_sp == ours.ss_sp || (now.ss_flags & SS_DISABLE);
  bool on = !none && (unsigned long)f >= start && (unsigned long)f < start + now.ss_size;
  if (none) now = (stack_t){.ss_flags = SS_DISABLE};
  else if (on) now.ss_flags |= SS_ONSTACK;
  if (a[0] && !madfs_user_in(&new, (const void *)a[0], sizeof new)) f->number = -EFAULT;
  else if (a[0] && on) f->number = -EPERM;
  else if (a[0]) f->number = RAW(SYS_sigaltstack, (new.ss_flags & SS_DISABLE) ? &ours : &new, 0);
  if (!madfs_failed(f->number) && a[1] && !madfs_user_out((void *)a[1], &now, sizeof now)) f->number = -EFAULT;
  return MADFS_DONE;
}

const struct madfs_shim madfs_shim_sigaltstack = {.concerns = alternate_concerns, .work = alternate_work};
