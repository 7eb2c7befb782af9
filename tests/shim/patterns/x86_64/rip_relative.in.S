// SPDX-License-Identifier: Apache-2.0
// sites: IN_PLACE
#include "pattern.h"
    // What is addressed from where the instruction stands is addressed from the stub as well.
    lea     1f(%rip), %rsi
    syscall
1:  ret
