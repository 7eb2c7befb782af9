// SPDX-License-Identifier: Apache-2.0
// sites: BEFORE
#include "pattern.h"
    // Only three bytes before it may move: a jump goes to them.
    test    %edi, %edi
    je      1f
    mov     %rsi, %rdi
1:  mov     %rdx, %rax
    syscall
    ret
