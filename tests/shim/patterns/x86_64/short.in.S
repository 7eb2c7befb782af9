// SPDX-License-Identifier: Apache-2.0
// sites: SHORT
#include "pattern.h"
    // A call cannot move, because it says where it was called from; the padding is what is left.
1:  syscall
    call    1b
    hlt
    .section .pad, "ax"
    nopw    0(%rax,%rax)
