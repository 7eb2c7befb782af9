// SPDX-License-Identifier: Apache-2.0
#include "pattern.h"
    mov     $3, %eax
1:  TO_STUB 0
    .byte   0
back:
    je      1b
    ret
    STUB 0
    QUESTION
    syscall
    cmp     $-4, %rax
    .byte   0xe9; .long back - . - 4
