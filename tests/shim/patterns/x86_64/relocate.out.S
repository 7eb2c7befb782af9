// SPDX-License-Identifier: Apache-2.0
#include "pattern.h"
    mov     $3, %eax
1:  TO_STUB 0
    .byte   0
back:
    ret
    STUB 0
    QUESTION
    syscall
    test    %eax, %eax
    .byte   0x0f, 0x88; .long 1b - . - 4
    .byte   0xe9; .long back - . - 4
