// SPDX-License-Identifier: Apache-2.0
#include "pattern.h"
    TO_STUB 0
1:  syscall
    TO_STUB 1
2:  syscall
    ret
    STUB 0
    mov     $1, %eax
    QUESTION
    .byte   0xe9; .long 1b - . - 4
    STUB 1
    mov     $3, %eax
    QUESTION
    .byte   0xe9; .long 2b - . - 4
