// SPDX-License-Identifier: Apache-2.0
// sites: IN_PLACE
#include "pattern.h"
    // Instructions that move together; one of them names memory by its own place.
    endbr64
    lea     data(%rip), %rdi
    xor     %eax, %eax
    syscall
    ret
data:
    .long   0
