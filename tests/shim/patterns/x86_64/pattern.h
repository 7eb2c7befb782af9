// SPDX-License-Identifier: Apache-2.0
// A file of this folder is a function; NAME.out.S is what rewriting makes of NAME.in.S: the function, then its stubs.
// The first lines of NAME.in.S name the tier of each site.
    .text
base:
// The jump to a stub that takes the place of a site.
.macro TO_STUB number
    .byte   0xe9
    .long   base + 0x10000 + \number * 0x100 - . - 4
.endm
.macro STUB number
    .org 0x10000 + \number * 0x100
.endm
// The question each stub asks; the test sets its three addresses to zero.
.macro QUESTION
    movzwl  %ax, %ecx
    movabs  $0x1111111111111111, %r11
    movzbl  (%r11,%rcx), %ecx
    .byte   0xe3, 0x17
    movabs  $0x1111111111111111, %r11
    movabs  $0x1111111111111111, %rcx
    notrack jmp *%rcx
.endm
