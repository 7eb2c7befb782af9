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
    .cfi_startproc
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
    // For who unwinds from here: the caller is the site, where r11, the record, says.
    .cfi_def_cfa %rbp, 16 + 64 + 128
    .cfi_offset %rbp, -(16 + 64 + 128)
    .cfi_escape 0x16, 16, 7, 0x76, 0xc8, 0x00, 0x06, 0x23, 0x08, 0x06  // *(*(rbp + 72) + 8): its `after`
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
    .cfi_endproc
    .size madfs_entry, . - madfs_entry

// The handler of SIGSEGV and SIGBUS: madfs_fault() says where to go on, with the kernel's arguments and stack as they
// are, or 0: return.
    .p2align 4
    .globl arch_fault
    .hidden arch_fault
    .type arch_fault, @function
arch_fault:
    endbr64
    push    %rdi
    push    %rsi
    push    %rdx
    call    madfs_fault
    pop     %rdx
    pop     %rsi
    pop     %rdi
    test    %rax, %rax
    jz      1f
    notrack jmp *%rax
1:  ret
    .size arch_fault, . - arch_fault

// What a signal handler returns to.  Debuggers know it by these very bytes.
    .p2align 4
    .globl arch_restore
    .hidden arch_restore
    .type arch_restore, @function
    nop
arch_restore:
    mov     $15, %rax
    syscall
    .size arch_restore, . - arch_restore

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
    // gdb takes a caller whose stack is lower for an error, unless this is its name: that of what continues stacks for
    // gcc -fsplit-stack.
    .type __morestack, @function
__morestack:
    mov     %rdx, %rdi
    call    *%rsi
    lea     -8(%rbp), %rsp
    popfq
    pop     %rbp
    .cfi_def_cfa %rsp, 8
    ret
    .cfi_endproc
    .size arch_on_stack, . - arch_on_stack
    .size __morestack, . - __morestack

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

// bool arch_has_dots(const char *path, bool after_slash)
// Sixteen bytes at a time, because this is what every path of the host's costs.  The vector registers are the
// application's: they are put aside below the stack.
    .p2align 4
    .globl arch_has_dots
    .hidden arch_has_dots
    .type arch_has_dots, @function
arch_has_dots:
    endbr64
    movups  %xmm0, -24(%rsp)
    movups  %xmm1, -40(%rsp)
    movups  %xmm2, -56(%rsp)
1:  mov     %edi, %eax
    and     $4095, %eax
    cmp     $4080, %eax
    ja      5f
2:  movdqu  (%rdi), %xmm0
3:  movdqa  bytes_2f(%rip), %xmm1
    movdqa  %xmm0, %xmm2
    pcmpeqb %xmm1, %xmm2
    pmovmskb %xmm2, %ecx                // slashes
    movdqa  bytes_01(%rip), %xmm2
    por     %xmm0, %xmm2
    pcmpeqb %xmm1, %xmm2
    pmovmskb %xmm2, %edx                // slashes and dots, which differ in the lowest bit
    pxor    %xmm1, %xmm1
    pcmpeqb %xmm1, %xmm0
    pmovmskb %xmm0, %eax                // ends
    lea     (%rsi,%rcx,2), %r8d
    and     %edx, %r8d                  // after a slash
    test    %eax, %eax
    jnz     4f
    test    %r8d, %r8d
    jnz     4f
    shr     $15, %ecx
    mov     %ecx, %esi
    add     $16, %rdi
    jmp     1b
4:  mov     %eax, %ecx
    neg     %ecx
    and     %eax, %ecx
    dec     %ecx                        // all ones when the end is not here
    xor     %eax, %eax
    test    %r8d, %ecx
    setnz   %al
    jmp     7f
    // What lies on the next page is not read before the end was looked for on this one.
5:  pxor    %xmm0, %xmm0
    movups  %xmm0, -88(%rsp)
    xor     %ecx, %ecx
6:  movzbl  (%rdi,%rcx), %eax
    mov     %al, -88(%rsp,%rcx)
    inc     %ecx
    cmp     $16, %ecx
    je      8f
    test    %al, %al
    jnz     6b
8:  movups  -88(%rsp), %xmm0
    jmp     3b
    // It cannot be read.
9:  xor     %eax, %eax
7:  movups  -24(%rsp), %xmm0
    movups  -40(%rsp), %xmm1
    movups  -56(%rsp), %xmm2
    ret
    .size arch_has_dots, . - arch_has_dots
    .pushsection madfs_guards, "a"
    .balign 4
    .long   2b - ., 9b - .
    .long   6b - ., 9b - .
    .popsection

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
bytes_2f: .fill 16, 1, 0x2f
bytes_01: .fill 16, 1, 0x01
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
