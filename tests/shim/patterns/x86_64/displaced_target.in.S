// SPDX-License-Identifier: Apache-2.0
// sites: AFTER
#include "pattern.h"
    // Somebody jumps between the number and the instruction, which is in the way of a jump that starts before.
    test    %edi, %edi
    jz      1f
    mov     $1, %eax
1:  syscall
    mov     %rax, %rdx
    ret
