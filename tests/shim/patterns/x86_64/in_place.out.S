// SPDX-License-Identifier: Apache-2.0
#include "pattern.h"
    TO_STUB 0
site:
    syscall
    ret
    STUB 0
    mov     $1, %eax
    QUESTION
    .byte   0xe9; .long site - . - 4
