// SPDX-License-Identifier: Apache-2.0
// How one svc #0 becomes a branch to a stub. arch.h says what is to be provided.
#include "../intercept.h"
