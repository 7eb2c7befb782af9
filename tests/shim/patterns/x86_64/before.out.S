// SPDX-License-Identifier: Apache-2.0
#include "pattern.h"
    test    %edi, %edi
    je      1f
    mov     %rsi, %rdi
1:  TO_STUB 0
back:
    ret
    STUB 0
    mov     %rdx, %rax
    QUESTION
    syscall
    .byte   0xe9; .long back - . - 4
