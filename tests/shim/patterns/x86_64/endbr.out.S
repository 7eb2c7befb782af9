// SPDX-License-Identifier: Apache-2.0
#include "pattern.h"
    endbr64
    TO_STUB 0
    .byte   0
back:
    ret
    STUB 0
    QUESTION
    syscall
    mov     %eax, %edx
    mov     %edx, %eax
    .byte   0xe9; .long back - . - 4
