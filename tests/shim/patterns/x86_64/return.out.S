// SPDX-License-Identifier: Apache-2.0
#include "pattern.h"
    test    %edi, %edi
    je      1f
    mov     $60, %eax
1:  TO_STUB 0
    .byte   0, 0, 0, 0
    STUB 0
    QUESTION
    syscall
    ret
