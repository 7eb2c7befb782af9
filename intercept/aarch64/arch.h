// SPDX-License-Identifier: Apache-2.0
// What x86_64/arch.h is there: the same types and functions, for ARM64.
//
//   arch_syscall()      svc #0 with the number in x8, arguments in x0-x5
//   arch_next_hit()     the word 0xd4000001; every instruction is a word, so a hit is a site
//   arch_survey(), arch_crossings(), arch_suspect()    branches are b, bl, b.cond, cbz and tbz; adr takes addresses
//   arch_choose()       in place when the instruction before may move, else the svc itself becomes `b stub`
//   arch_stub_write()   x16 and x17 are not free at an svc: the stub saves what it uses
//   arch_on_stack(), arch_preserve()    q0-q31, fpcr, fpsr; NZCV with mrs
//   arch_flush()        dc cvau, dsb, ic ivau, dsb, isb: stubs first, then sites
#ifndef MADFS_ARCH_H
#define MADFS_ARCH_H

#error "MadFS: ARM64 interception is not built yet; build on x86_64, or use the Python package without the preload"

#endif
