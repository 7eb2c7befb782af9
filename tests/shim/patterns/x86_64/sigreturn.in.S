// SPDX-License-Identifier: Apache-2.0
// sites: none
#include "pattern.h"
    mov     $15, %rax
    syscall
    ret
