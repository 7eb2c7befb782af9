// SPDX-License-Identifier: Apache-2.0
// sites: AFTER
#include "pattern.h"
    // Where indirect branches may land stays where it is: what follows makes room.
    endbr64
    syscall
    mov     %eax, %edx
    mov     %edx, %eax
    ret
