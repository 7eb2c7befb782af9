// SPDX-License-Identifier: Apache-2.0
// sites: AFTER
#include "pattern.h"
    // It looks like futex, but somebody comes with another number.
    mov     $1, %eax
    jmp     1f
    mov     $202, %eax
1:  syscall
    mov     %rax, %rbx
    ret
