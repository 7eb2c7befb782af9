// SPDX-License-Identifier: Apache-2.0
#include "pattern.h"
    mov     $1, %eax
    jmp     1f
    mov     $202, %eax
1:  TO_STUB 0
back:
    ret
    STUB 0
    QUESTION
    syscall
    mov     %rax, %rbx
    .byte   0xe9; .long back - . - 4
