// SPDX-License-Identifier: Apache-2.0
// sites: LEFT
#include "pattern.h"
    // No room anywhere.
1:  syscall
    call    1b
    hlt
