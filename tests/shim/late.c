// SPDX-License-Identifier: Apache-2.0
// A library that makes system calls of its own, to be loaded late: open_it(path) is openat(AT_FDCWD, path, O_RDWR |
// O_CREAT, 0644) by an instruction of this object.
//
// TEXT_RELOCATION: the address that the loader writes into the text is in what a rewritten site overwrites.
// CONSTRUCTOR: the library also opens FAKE_LATE (environment) before anybody calls it.
#include <stdlib.h>

long open_it(const char *path) {
  long result;
  register long mode __asm__("r10") = 0644;
  __asm__ volatile("mov $257, %%eax\n syscall"
                   : "=a"(result)
                   : "D"(-100L), "S"(path), "d"(66L), "r"(mode)
                   : "rcx", "r11", "memory");
  return result;
}

// A branch into what would be overwritten before the instruction: what stands after it makes room.
long open_jumping(const char *path, long jump) {
  long result = 257;
  register long mode __asm__("r10") = 0644;
  __asm__ volatile("test %5, %5\n jz 1f\n mov $999, %%eax\n nop\n nop\n1: syscall\n mov %%rax, %%rcx\n"
                   "lea 0(%%rcx), %%rax"
                   : "+a"(result)
                   : "D"(-100L), "S"(path), "d"(66L), "r"(mode), "r"(jump)
                   : "rcx", "r11", "memory");
  return result;
}

#ifdef TEXT_RELOCATION
extern const char relocated_path[];
__asm__(".data\n.globl relocated_path\nrelocated_path: .asciz \"/madfs/relocated\"\n.text\n"
        ".globl open_relocated\n.type open_relocated, @function\nopen_relocated:\n.cfi_startproc\n"
        "mov $-100, %rdi\n mov $66, %edx\n mov $0644, %r10d\n mov $257, %eax\n movabs $relocated_path, %rsi\n"
        "syscall\n ret\n"
        ".cfi_endproc\n.size open_relocated, . - open_relocated\n");
#endif

#ifdef CONSTRUCTOR
long opened_first = -1;
__attribute__((constructor)) static void first(void) {
  if (getenv("FAKE_LATE")) opened_first = open_it(getenv("FAKE_LATE"));
}
#endif
