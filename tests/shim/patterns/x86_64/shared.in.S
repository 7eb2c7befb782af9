// SPDX-License-Identifier: Apache-2.0
// sites: AFTER LEFT
#include "pattern.h"
    // What the first one moves, the second cannot have, too.
1:  syscall
    mov     %rbx, %rax
2:  syscall
    call    1b
    hlt
