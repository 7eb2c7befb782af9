// SPDX-License-Identifier: Apache-2.0
// Kinds of instructions, and where branches go. arch.h says what is to be provided.
#include "../intercept.h"
