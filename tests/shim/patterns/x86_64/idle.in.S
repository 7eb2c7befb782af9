// SPDX-License-Identifier: Apache-2.0
// sites: IDLE
#include "pattern.h"
    // futex never concerns a file.
    mov     $202, %eax
    syscall
    ret
