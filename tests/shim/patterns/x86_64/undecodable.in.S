// SPDX-License-Identifier: Apache-2.0
// sites: LEFT
#include "pattern.h"
    // Something unknown hides who jumps where.
    mov     $1, %eax
    syscall
    .byte   0x06
    ret
