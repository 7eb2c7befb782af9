// SPDX-License-Identifier: Apache-2.0
// sites: LEFT
#include "pattern.h"
    // Somebody jumps to the instruction and somebody to what follows it: no five bytes are free.
    test    %edi, %edi
    jz      1f
    mov     $1, %eax
1:  syscall
2:  mov     %rax, %rdx
    jns     2b
    jmp     2b
