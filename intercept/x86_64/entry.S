// SPDX-License-Identifier: Apache-2.0
// From a stub to C and back, on the application's thread.

    .text
    .hidden madfs_classes, madfs_fds_known, madfs_local

// A stub jumps here with the site's record in r11.  rcx is free.  The call is answered by madfs_filter() or left to
// the kernel; either way every other register and the flags are as they were.  The words pushed below are
// struct madfs_frame.
    .p2align 6
    .globl madfs_entry
    .hidden madfs_entry
    .type madfs_entry, @function
madfs_entry:
    endbr64
    lea     -128(%rsp), %rsp            // the red zone
    push    %r11
    // The shortest way: a call of class CLASS_FD, whose first argument is a descriptor that is not ours.  Nothing here
    // changes the flags, so they need not be saved.
    mov     madfs_local@gottpoff(%rip), %rcx
    mov     %fs:(%rcx), %rcx            // inside and vfork_depth
    jrcxz   1f
    jmp     4f
1:  movzwl  %ax, %ecx
    lea     madfs_classes(%rip), %r11
    movzbl  (%r11,%rcx), %ecx
    lea     -1(%rcx), %ecx
    jrcxz   2f
    jmp     4f
2:  push    %rdi
    movzwl  2(%rsp), %ecx               // a descriptor of more than 16 bits is nothing for the table
    jrcxz   3f
    pop     %rdi
    jmp     4f
3:  movzwl  (%rsp), %ecx
    pop     %rdi
    lea     madfs_fds_known(%rip), %r11
    movl    (%r11,%rcx,4), %ecx
    jrcxz   5f
    jmp     4f
5:  pop     %r11
    lea     128(%rsp), %rsp
    mov     (%r11), %r11
    notrack jmp *%r11
    // Otherwise C decides.
4:  mov     (%rsp), %r11
    push    %r9
    push    %r8
    push    %r10
    push    %rdx
    push    %rsi
    push    %rdi
    push    %rax
    lahf                                // cheaper than pushf; the direction flag is handled by arch_on_stack
    seto    %al
    push    %rax
    push    %rbp
    mov     %rsp, %rbp
    and     $-16, %rsp
    lea     16(%rbp), %rdi
    call    madfs_filter
    mov     %eax, %ecx
    mov     %rbp, %rsp
    pop     %rbp
    pop     %rax
    add     $0x7f, %al                  // sets the overflow flag from what seto stored
    sahf
    pop     %rax
    pop     %rdi
    pop     %rsi
    pop     %rdx
    pop     %r10
    pop     %r8
    pop     %r9
    pop     %r11
    lea     128(%rsp), %rsp
    jrcxz   1f                          // MADFS_PASS
    mov     8(%r11), %r11
    notrack jmp *%r11
1:  mov     (%r11), %r11
    notrack jmp *%r11
    .size madfs_entry, . - madfs_entry

// long arch_on_stack(void *top, long (*function)(void *), void *argument)
    .p2align 4
    .globl arch_on_stack
    .hidden arch_on_stack
    .type arch_on_stack, @function
arch_on_stack:
    .cfi_startproc
    endbr64
    push    %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    mov     %rsp, %rbp
    .cfi_def_cfa_register %rbp
    pushfq
    cld
    mov     %rdi, %rsp
    and     $-16, %rsp
    mov     %rdx, %rdi
    call    *%rsi
    lea     -8(%rbp), %rsp
    popfq
    pop     %rbp
    .cfi_def_cfa %rsp, 8
    ret
    .cfi_endproc
    .size arch_on_stack, . - arch_on_stack

// long arch_preserve(long (*function)(void *), void *argument)
// Everything the processor can save is saved, and the function finds the state the ABI promises at program start.
    .p2align 4
    .globl arch_preserve
    .hidden arch_preserve
    .type arch_preserve, @function
arch_preserve:
    .cfi_startproc
    endbr64
    push    %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    mov     %rsp, %rbp
    .cfi_def_cfa_register %rbp
    push    %rbx
    .cfi_offset %rbx, -24
    push    %r12
    .cfi_offset %r12, -32
    mov     %rdi, %rbx
    mov     %rsi, %r12
    cmpl    $0, state_kind(%rip)
    jge     0f
    call    find_state
0:  sub     state_size(%rip), %rsp
    and     $-64, %rsp
    mov     state_mask(%rip), %eax
    mov     state_mask+4(%rip), %edx
    cmpl    $1, state_kind(%rip)
    ja      2f
    je      1f
    fxsave64 (%rsp)
    jmp     4f
1:  call    clear_header
    xsave64 (%rsp)
    jmp     3f
2:  call    clear_header
    xsavec64 (%rsp)
3:  testl   $4, state_mask(%rip)        // AVX: upper halves in use would slow every SSE instruction of the runtime
    jz      4f
    vzeroupper
4:  fninit
    ldmxcsr default_mxcsr(%rip)
    mov     %r12, %rdi
    call    *%rbx
    mov     %rax, %rbx
    mov     state_mask(%rip), %eax
    mov     state_mask+4(%rip), %edx
    cmpl    $0, state_kind(%rip)
    jne     5f
    fxrstor64 (%rsp)
    jmp     6f
5:  xrstor64 (%rsp)
6:  mov     %rbx, %rax
    lea     -16(%rbp), %rsp
    pop     %r12
    pop     %rbx
    pop     %rbp
    .cfi_def_cfa %rsp, 8
    ret
    .cfi_endproc
    .size arch_preserve, . - arch_preserve

// The header of an XSAVE area must be zero where the instruction does not write it.
clear_header:
    movq    $0, 520(%rsp)
    movq    $0, 528(%rsp)
    movq    $0, 536(%rsp)
    movq    $0, 544(%rsp)
    movq    $0, 552(%rsp)
    movq    $0, 560(%rsp)
    movq    $0, 568(%rsp)
    movq    $0, 576(%rsp)
    ret

// What to save and how much room it takes.  At the first use, because under a hypervisor cpuid takes tens of
// microseconds, which most processes can do without.
    .p2align 4
    .type find_state, @function
find_state:
    .cfi_startproc
    push    %rbx
    .cfi_def_cfa_offset 16
    .cfi_offset %rbx, -16
    xor     %r8d, %r8d                  // the kind found so far
    mov     $1, %eax
    xor     %ecx, %ecx
    cpuid
    bt      $27, %ecx                   // OSXSAVE
    jnc     1f
    xor     %ecx, %ecx
    xgetbv
    mov     %eax, state_mask(%rip)
    mov     %edx, state_mask+4(%rip)
    mov     $0xd, %eax
    xor     %ecx, %ecx
    cpuid
    mov     %ebx, state_size(%rip)
    mov     $1, %r8d
    mov     $0xd, %eax
    mov     $1, %ecx
    cpuid
    test    $2, %eax                    // XSAVEC
    jz      1f
    mov     $2, %r8d
1:  mov     %r8d, state_kind(%rip)      // last: another thread may be on its way here
    pop     %rbx
    .cfi_def_cfa_offset 8
    ret
    .cfi_endproc
    .size find_state, . - find_state

// unsigned arch_hit_mask(const uint8_t *block): bit i when block[i] is 0f and block[i + 1] is 05
    .p2align 4
    .globl arch_hit_mask
    .hidden arch_hit_mask
    .type arch_hit_mask, @function
arch_hit_mask:
    endbr64
    movdqu  (%rdi), %xmm0
    movdqu  1(%rdi), %xmm1
    pcmpeqb bytes_0f(%rip), %xmm0
    pcmpeqb bytes_05(%rip), %xmm1
    pand    %xmm1, %xmm0
    pmovmskb %xmm0, %eax
    ret
    .size arch_hit_mask, . - arch_hit_mask

// unsigned arch_branch_mask(const uint8_t *block): bit i when e9, or 0f 80 ... 0f 8f, stands at block[i]
    .p2align 4
    .globl arch_branch_mask
    .hidden arch_branch_mask
    .type arch_branch_mask, @function
arch_branch_mask:
    endbr64
    movdqu  (%rdi), %xmm0
    movdqu  1(%rdi), %xmm1
    movdqa  %xmm0, %xmm2
    pcmpeqb bytes_0f(%rip), %xmm0
    pand    bytes_f0(%rip), %xmm1
    pcmpeqb bytes_80(%rip), %xmm1
    pand    %xmm1, %xmm0
    pcmpeqb bytes_e9(%rip), %xmm2
    por     %xmm2, %xmm0
    pmovmskb %xmm0, %eax
    ret
    .size arch_branch_mask, . - arch_branch_mask

    .section .rodata
    .p2align 4
bytes_0f: .fill 16, 1, 0x0f
bytes_05: .fill 16, 1, 0x05
bytes_f0: .fill 16, 1, 0xf0
bytes_80: .fill 16, 1, 0x80
bytes_e9: .fill 16, 1, 0xe9
default_mxcsr: .long 0x1f80

    .data
    .p2align 3
state_mask: .quad 3                     // XCR0
state_size: .quad 512                   // bytes of FXSAVE, or of XSAVE, which XSAVEC never exceeds
state_kind: .long -1                    // not known yet; 0 FXSAVE, 1 XSAVE, 2 XSAVEC

    .section .note.GNU-stack, "", @progbits
