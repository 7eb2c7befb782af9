// SPDX-License-Identifier: Apache-2.0
// sites: AFTER
#include "pattern.h"
    // Behind the function there is padding to write on.
    test    %edi, %edi
    je      1f
    mov     $60, %eax
1:  syscall
    ret
    .section .pad, "ax"
    nopw    0(%rax,%rax)
