// SPDX-License-Identifier: Apache-2.0
#include "pattern.h"
    TO_STUB 0
    .byte   0, 0
site:
    syscall
operand:
    ret
    STUB 0
    .byte   0x48, 0x8d, 0x35; .long operand - . - 4
    QUESTION
    .byte   0xe9; .long site - . - 4
