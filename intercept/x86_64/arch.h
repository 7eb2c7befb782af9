// SPDX-License-Identifier: Apache-2.0
// What each architecture provides, under the same names in each (aarch64/ has the twin of this file).
//
//   arch_syscall()      the kernel's entry, from here: never rewritten, because this library is not scanned
//   arch_next_hit()     the next bytes that look like a system call instruction
//   arch_survey()       decodes a function and says what stands around one such instruction
//   arch_crossings()    branches from anywhere else in the object into what a plan would overwrite
//   arch_choose()       how to rewrite the site (the tiers below)
//   arch_pack(), arch_unpack()    such a choice as one word
//   arch_stub_write(), arch_site_write()    do it
//   arch_on_stack()     calls a function on another stack
//   arch_preserve()     calls a function that may touch vector registers, and puts these back
//   arch_peek(), arch_copy(), arch_touch(), arch_has_dots()    memory of the application's, which may not be there
//   arch_fault, arch_restore    where the kernel enters the handler of SIGSEGV and SIGBUS, and what it returns to
//   madfs_entry         where stubs jump: saves registers, asks madfs_filter(), goes back
#ifndef MADFS_ARCH_H
#define MADFS_ARCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARCH_ELF_MACHINE EM_X86_64
#define ARCH_AUDIT AUDIT_ARCH_X86_64  // what filters of system calls see
#define ARCH_BREAKPOINT 0xcc  // the first byte of what a debugger writes
#define ARCH_POINTER_MAX 0x7ffffffff000UL  // end of the addresses a program can have

#define ARCH_IS_PIPE(number) ((number) == SYS_pipe)
#define ARCH_IS_DUP2(number) ((number) == SYS_dup2)
#define ARCH_IS_POLL(number) ((number) == SYS_poll)
#define ARCH_IS_VFORK(number) ((number) == SYS_vfork)

// Descriptor-making calls that other architectures do not have.
#define ARCH_CREATORS \
  SYS_open, SYS_creat, SYS_pipe, SYS_dup2, SYS_epoll_create, SYS_eventfd, SYS_signalfd, SYS_inotify_init
#define ARCH_IS_SETRLIMIT(number) ((number) == SYS_setrlimit)
#define ARCH_POLLS SYS_poll, SYS_epoll_wait
enum { ARCH_CLONE_TLS = 4 };  // argument of clone() with the thread pointer

static inline void arch_flush(const void *code, size_t size) { (void)code, (void)size; }  // caches are coherent

static inline long arch_syscall(long number, long a, long b, long c, long d, long e, long f) {
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}

static inline void arch_pause(void) { __asm__ volatile("pause"); }

static inline unsigned long arch_thread_pointer(void) {
  unsigned long value;
  __asm__("mov %%fs:0, %0" : "=r"(value));
  return value;
}

// --- memory that may not be there -----------------------------------------------------------------------------------

// An instruction of the table "madfs_guards" that faults goes on elsewhere (fault.c).
#define ARCH_GUARD(from, to) \
  ".pushsection madfs_guards, \"a\"\n.balign 4\n.long " from " - ., " to " - .\n.popsection\n"

#define ARCH_PROGRAM_COUNTER(context) ((context)->uc_mcontext.gregs[REG_RIP])

// What is loaded is 0 when the address cannot be read.
static inline uint64_t arch_peek(const void *at) {
  uint64_t word;
  __asm__ volatile("1: mov (%1), %0\n2:\n.subsection 1\n3: xor %k0, %k0\n jmp 2b\n.previous\n" ARCH_GUARD("1b", "3b")
                   : "=&r"(word)
                   : "r"(at));
  return word;
}

static inline char arch_peek_byte(const char *at) {
  uint32_t byte;
  __asm__ volatile("1: movzbl (%1), %0\n2:\n.subsection 1\n3: xor %0, %0\n jmp 2b\n.previous\n" ARCH_GUARD("1b", "3b")
                   : "=&r"(byte)
                   : "r"(at));
  return (char)byte;
}

// Whether "/." or "//" stands in a path, or a dot or slash at its beginning when `after_slash`; it ends where it cannot
// be read.
bool arch_has_dots(const char *path, bool after_slash);

// How many bytes were not copied.
static inline size_t arch_copy(void *out, const void *in, size_t size) {
  __asm__ volatile("1: rep movsb\n2:\n" ARCH_GUARD("1b", "2b") : "+D"(out), "+S"(in), "+c"(size) : : "memory");
  return size;
}

// Whether the byte can be read, or also be written.
static inline bool arch_touch(const char *at, bool write) {
  uint32_t failed = 0;
  if (write)
    __asm__ volatile("1: lock orb $0, (%1)\n2:\n.subsection 1\n3: mov $1, %0\n jmp 2b\n.previous\n" ARCH_GUARD(
                         "1b", "3b")
                     : "+r"(failed)
                     : "r"(at)
                     : "memory", "cc");
  else
    __asm__ volatile("1: testb $0, (%1)\n2:\n.subsection 1\n3: mov $1, %0\n jmp 2b\n.previous\n" ARCH_GUARD("1b",
                                                                                                           "3b")
                     : "+r"(failed)
                     : "r"(at)
                     : "cc");
  return !failed;
}

// --- decode.c -------------------------------------------------------------------------------------------------------

enum arch_kind {
  ARCH_PLAIN,     // may be executed elsewhere (after its rip-relative displacement was corrected)
  ARCH_JUMP,      // jmp rel8, rel32
  ARCH_BRANCH,    // jcc rel8, rel32
  ARCH_LOOP,      // loop, jrcxz: rel8 only
  ARCH_CALL,      // call rel32, and every indirect call
  ARCH_INDIRECT,  // jmp *: a switch, perhaps
  ARCH_RETURN,
  ARCH_SYSCALL,
  ARCH_MARK,  // endbr64: must stay where it is
  ARCH_STOP,  // hlt, ud2, int3
  ARCH_INVALID,
};

struct arch_instruction {
  const uint8_t *address;
  uint8_t length;
  uint8_t kind;
  uint8_t displacement;   // offset of a rip-relative disp32 in the instruction; 0: none
  uint8_t condition;      // BRANCH: low four bits of its opcode
  bool address_of;        // lea
  const uint8_t *target;  // JUMP, BRANCH, LOOP, direct CALL; what a rip-relative operand names
};

// Length and kind of the instruction at `at`, of which `room` bytes can be read.  INVALID: length is 0.
void arch_decode(const uint8_t *at, size_t room, struct arch_instruction *out);

// --- rewrite.c ------------------------------------------------------------------------------------------------------

enum { ARCH_BEFORE_MAX = 5, ARCH_NEXT_MAX = 4, ARCH_WINDOW = 32, ARCH_PADS_MAX = 2, ARCH_SITE_BYTES = 2 };

// Unused bytes between two functions.
struct arch_pad {
  const uint8_t *start;
  size_t length;
};

// The function around a site: where it begins and ends, and the padding on both sides of it.
struct madfs_code {
  const uint8_t *text, *text_end;       // the mapping
  const uint8_t *start, *end;           // the function
  const uint8_t *padding_end;           // the next function
  struct arch_pad pads[ARCH_PADS_MAX];  // after it and before it
  const uint8_t *pad_taken;             // start of the padding that was used last
  const void *(*table)(const struct madfs_code *, const uint8_t *address,
                       size_t *room);  // read-only data of the object
  const void *image;
  const struct madfs_breakpoint *breakpoints;  // of a debugger, lifted while the code is looked at
  unsigned breakpoints_count;
};

enum arch_tier {
  ARCH_NONE,      // not decided
  ARCH_IN_PLACE,  // A: what stands before makes room; the instruction stays
  ARCH_BEFORE,    // B: before and the instruction itself
  ARCH_AFTER,     // C: the instruction and what follows (and what stands before)
  ARCH_RELOCATE,  // D: as C, and a branch among it is encoded anew
  ARCH_SHORT,     // E: a short jump to padding, which has room
  ARCH_IDLE,      // its number is known and never ours: nothing to do
  ARCH_LEFT,      // cannot be rewritten
  ARCH_NO_SITE,   // the bytes are no instruction
};

struct madfs_plan {
  const uint8_t *site;
  uint64_t targets;  // bit i: something jumps to site - ARCH_WINDOW + i
  uint8_t tier, befores, nexts;
  uint8_t overwritten_before, overwritten_after;  // bytes on both sides of the site that change or are displaced
  uint8_t first;                                  // in before[], of what is displaced
  uint8_t displaced;                              // instructions after the site that are
  int number;                                     // of the system call; -1 not known
  struct arch_instruction before[ARCH_BEFORE_MAX], next[ARCH_NEXT_MAX];  // before[]: the last `befores` ones in order
  struct arch_pad pad;
  uint8_t *stub;
  const struct madfs_site *record;
};

const uint8_t *arch_next_hit(const uint8_t *from, const uint8_t *end);
bool arch_is_rewritten(const uint8_t *site, const uint8_t *text);  // by us, in place
bool arch_is_sigreturn(const uint8_t *site, const uint8_t *text);
// Fills plans[0..count), whose sites lie in code's function in ascending order.
void arch_survey(const struct madfs_code *code, struct madfs_plan *plans, unsigned count);
// Decides about plans[0..count) of one function, in order.
void arch_choose(struct madfs_code *code, struct madfs_plan *plans, unsigned count);
// Calls found() for each direct branch in [text, end) whose target is marked; `marked` has a bit per 16 bytes of text.
void arch_crossings(const uint8_t *text, const uint8_t *end, const uint8_t *marked,
                    void (*found)(void *context, const uint8_t *branch, const uint8_t *target), void *context);

// As arch_crossings(), for one plan about which nothing else is known: everything in [from, to) that looks like a
// branch.
void arch_suspect(struct madfs_plan *plan, const uint8_t *from, const uint8_t *to);
// Whether `at` is an instruction that only fills space, and which.
static inline bool arch_is_trap(const uint8_t *at) { return *at == 0xcc; }  // int3

// cmp $-4095, %rax
static inline bool arch_looks_at_result(const uint8_t *at, const uint8_t *end) {
  return end - at >= 6 && at[0] == 0x48 && at[1] == 0x3d && at[2] == 0x01 && at[3] == 0xf0 && at[4] == 0xff &&
         at[5] == 0xff;
}

bool arch_is_padding(const uint8_t *at, size_t room, struct arch_instruction *out);

// A plan of tiers A to E as one word, relative to the text; and back, when the code is what it was.
uint64_t arch_pack(const struct madfs_plan *plan, const struct madfs_code *code);
bool arch_unpack(uint64_t word, const struct madfs_code *code, struct madfs_plan *plan);

enum { ARCH_STUB_MAX = 160 };
// Writes the stub of plan->stub and fills the record; its size, or 0 when an operand cannot be reached from there.
size_t arch_stub_write(const struct madfs_plan *plan, uint8_t *stub, struct madfs_site *record);
void arch_site_write(const struct madfs_plan *plan);  // REQUIRES: the text is writable

// --- entry.S --------------------------------------------------------------------------------------------------------

void madfs_entry(void);
void arch_fault(void);
void arch_restore(void);
long arch_on_stack(void *top, long (*function)(void *), void *argument);
long arch_preserve(long (*function)(void *), void *argument);

#endif
