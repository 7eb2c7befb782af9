// SPDX-License-Identifier: Apache-2.0
// sites: NO_SITE
#include "pattern.h"
    // The two bytes are part of a constant.
    mov     $0x050f, %eax
    ret
