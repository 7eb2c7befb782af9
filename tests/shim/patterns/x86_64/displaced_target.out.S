// SPDX-License-Identifier: Apache-2.0
#include "pattern.h"
    test    %edi, %edi
    jz      1f
    mov     $1, %eax
1:  TO_STUB 0
back:
    ret
    STUB 0
    QUESTION
    syscall
    mov     %rax, %rdx
    .byte   0xe9; .long back - . - 4
