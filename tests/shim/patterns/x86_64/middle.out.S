// SPDX-License-Identifier: Apache-2.0
#include "pattern.h"
    jmp     1f
    .byte   0x48
1:  .byte   0x89, 0xc8
    TO_STUB 0
back:
    ret
    STUB 0
    mov     %rdi, %rax
    QUESTION
    syscall
    .byte   0xe9; .long back - . - 4
