// SPDX-License-Identifier: Apache-2.0
// From a stub to C and back.  arch.h says what is to be provided.
#error "MadFS: ARM64 interception is not built yet; build on x86_64, or use the Python package without the preload"
