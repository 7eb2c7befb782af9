// SPDX-License-Identifier: Apache-2.0
// sites: BEFORE
#include "pattern.h"
    // A jump over the prefix ends within an instruction.
    jmp     1f
    .byte   0x48
1:  .byte   0x89, 0xc8                  // mov %rcx, %rax, or mov %ecx, %eax for who jumps
    mov     %rdi, %rax
    syscall
    ret
