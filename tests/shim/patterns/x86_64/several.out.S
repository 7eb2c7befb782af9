// SPDX-License-Identifier: Apache-2.0
#include "pattern.h"
    endbr64
    TO_STUB 0
    .byte   0, 0, 0, 0                  // what is left of lea and xor, never executed
site:
    syscall
    ret
data:
    .long   0
    STUB 0
    lea     data(%rip), %rdi
    xor     %eax, %eax
    QUESTION
    .byte   0xe9; .long site - . - 4
