// SPDX-License-Identifier: Apache-2.0
#include "pattern.h"
1:  .byte   0xeb, pad - . - 1
back:
    call    1b
    hlt
pad:
    TO_STUB 0
    .byte   0
    STUB 0
    QUESTION
    syscall
    .byte   0xe9; .long back - . - 4
