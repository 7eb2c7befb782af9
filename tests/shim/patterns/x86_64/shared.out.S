// SPDX-License-Identifier: Apache-2.0
#include "pattern.h"
1:  TO_STUB 0
2:  syscall
    call    1b
    hlt
    STUB 0
    QUESTION
    syscall
    mov     %rbx, %rax
    .byte   0xe9; .long 2b - . - 4
