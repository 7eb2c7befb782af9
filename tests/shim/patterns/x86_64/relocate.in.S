// SPDX-License-Identifier: Apache-2.0
// sites: RELOCATE
#include "pattern.h"
    mov     $3, %eax
1:  syscall
    test    %eax, %eax
    js      1b
    ret
