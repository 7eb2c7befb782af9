// SPDX-License-Identifier: Apache-2.0
// sites: AFTER
#include "pattern.h"
    // The instruction itself is jumped to: it cannot stay, nor can what stands before it move.
    mov     $3, %eax
1:  syscall
    cmp     $-4, %rax
    je      1b
    ret
