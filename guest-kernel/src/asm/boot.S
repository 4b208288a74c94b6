// Boot: from the hypervisor's entry to the first Rust instruction.
// Entered at _start at EL1 with the MMU off, interrupts masked and x0 = physical address of the device tree, as Linux's
// arm64 boot protocol says. Ends in `guest_kernel_start(x0 = device tree)`; never returns. Further vCPUs enter at secondary_start.
// Until the MMU is on, nothing is written to memory: it would go behind the caches.

.equ SCTLR_RES1,   0x30d00980           // Arm ARM D24.2.175: bits that are one where their feature is absent
.equ SCTLR_M,      1 << 0               // MMU
.equ SCTLR_C,      1 << 2               // data caches
.equ SCTLR_SA,     1 << 3               // stack pointer alignment check
.equ SCTLR_I,      1 << 12              // instruction cache
.equ SCTLR_WXN,    1 << 19              // what is writable is never executable
.equ MAIR_NORMAL,  0xff << 0            // index 0: Normal, write-back, read- and write-allocate
.equ MAIR_DEVICE,  0x04 << 8            // index 1: Device-nGnRE
.equ TCR_T0SZ,     16 << 0              // 48-bit addresses, walks start at level 0
.equ TCR_IRGN0,    1 << 8               // walks: inner write-back
.equ TCR_ORGN0,    1 << 10              // walks: outer write-back
.equ TCR_SH0,      3 << 12              // walks: inner shareable
.equ TCR_EPD1,     1 << 23              // no upper half yet; the rest of it as for the lower half
.equ TCR_UPPER,    16 << 16 | 1 << 24 | 1 << 26 | 3 << 28 | 2 << 30
.equ TCR_IPS_40,   2 << 32              // 40-bit output addresses
.equ BLOCK,        1                    // a valid block
.equ TABLE,        3                    // a valid link
.equ ATTR_NORMAL,  0 << 2
.equ ATTR_DEVICE,  1 << 2
.equ INNER_SHARED, 3 << 8
.equ ACCESSED,     1 << 10
.equ NOT_GLOBAL,   1 << 11              // so that the final tables, under another ASID, never meet these entries in the TLB
.equ XN,           3 << 53              // neither EL1 nor EL0 executes
.equ EL1,          1 << 2               // CurrentEL
.equ BLOCK_FAULT_STACK, 0               // `smp::Block`
.equ BLOCK_STACK,       8
.equ BLOCK_TRANSLATION, 16

// MMU on, with the identity map below. Clobbers x1.
.macro mmu_on
    ldr     x1, =MAIR_NORMAL | MAIR_DEVICE
    msr     mair_el1, x1
    ldr     x1, =TCR_T0SZ | TCR_IRGN0 | TCR_ORGN0 | TCR_SH0 | TCR_EPD1 | TCR_UPPER | TCR_IPS_40
    msr     tcr_el1, x1
    ldr     x1, =boot_root
    msr     ttbr0_el1, x1
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    ldr     x1, =SCTLR_RES1 | SCTLR_M | SCTLR_C | SCTLR_SA | SCTLR_I
    msr     sctlr_el1, x1
    isb
.endm

.section .head, "ax"
.global _start
_start:
    b       1f                          // code0
    .long   0                           // code1
    .quad   0                           // text_offset
    .quad   __image_size
    .quad   2                           // flags: little-endian, 4 KiB pages, close to the start of RAM
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

1:  msr     daifset, #0xf
    mrs     x1, CurrentEL
    cmp     x1, #EL1
    b.ne    park
    adr     x1, _start
    ldr     x2, =_start
    cmp     x1, x2
    b.ne    misplaced
    mov     x19, x0

    mmu_on

    ldr     x1, =__bss_start
    ldr     x2, =__bss_end
2:  cmp     x1, x2
    b.hs    3f
    stp     xzr, xzr, [x1], #16
    b       2b
3:  ldr     x1, =__stack_top
    mov     sp, x1
    ldr     x1, =guest_kernel_blocks    // vCPU 0's is the first
    ldr     x2, =__fault_stack_top
    str     x2, [x1, #BLOCK_FAULT_STACK]
    msr     tpidr_el1, x1
    ldr     x1, =vectors
    msr     vbar_el1, x1
    isb
    mov     x0, x19
    mov     x29, xzr
    mov     x30, xzr
    bl      guest_kernel_start
park:
    wfi
    b       park

// A further vCPU, started by PSCI CPU_ON: MMU off, interrupts masked, x0 = address of its `smp::Block`. What other vCPUs wrote is
// read, and exclusives are used, only with the MMU on: first with the identity map, then with the final tables.
// Ends in `guest_kernel_secondary()`; never returns.
.global secondary_start
secondary_start:
    msr     daifset, #0xf
    mov     x19, x0
    ldr     x1, =SCTLR_RES1             // Xen 4.20 starts it with the MMU as it was, if it is still on its way off
    msr     sctlr_el1, x1
    isb
    mmu_on
    msr     tpidr_el1, x19
    ldr     x1, =vectors
    msr     vbar_el1, x1
    ldr     x1, [x19, #BLOCK_TRANSLATION]
    msr     ttbr0_el1, x1
    isb
    ldr     x1, =SCTLR_RES1 | SCTLR_M | SCTLR_C | SCTLR_SA | SCTLR_I | SCTLR_WXN
    msr     sctlr_el1, x1
    isb
    tlbi    vmalle1
    dsb     nsh
    isb
1:  ldr     x1, [x19, #BLOCK_STACK]
    mov     sp, x1
    mov     x29, xzr
    mov     x30, xzr
    bl      guest_kernel_secondary
    b       park

// The same with paravirtual page tables: entered with the MMU on, by the first vCPU's tables and controls.
.global secondary_start_checked
secondary_start_checked:
    msr     daifset, #0xf
    mov     x19, x0
    msr     tpidr_el1, x19
    ldr     x1, =vectors
    msr     vbar_el1, x1
    isb
    b       1b

// The image runs elsewhere than where it was linked: say so and crash. console_io(write), then sched_op(shutdown).
misplaced:
    mov     x0, #0
    mov     x1, #(misplaced_text_end - misplaced_text)
    adr     x2, misplaced_text
    mov     x16, #18
    hvc     #0xEA1
    mov     x0, #2
    adr     x1, misplaced_reason
    mov     x16, #29
    hvc     #0xEA1
    b       park
misplaced_reason:
    .long   3                           // SHUTDOWN_crash
misplaced_text:
    .ascii  "guest-kernel: not loaded at 0x40000000, where it was linked\n"
misplaced_text_end:
    .balign 4
    .ltorg

// Identity map of the first 4 GiB until Rust has built the final one: devices below RAM, memory above. Level 1, 1 GiB a block.
.section .rodata.boot, "a"
.balign 4096
boot_root:
    .quad   boot_tables + TABLE
    .fill   511, 8, 0
boot_tables:
    .quad   0x00000000 | BLOCK | ATTR_DEVICE | ACCESSED | NOT_GLOBAL | XN
    .quad   0x40000000 | BLOCK | ATTR_NORMAL | INNER_SHARED | ACCESSED | NOT_GLOBAL
    .quad   0x80000000 | BLOCK | ATTR_NORMAL | INNER_SHARED | ACCESSED | NOT_GLOBAL | XN
    .quad   0xc0000000 | BLOCK | ATTR_NORMAL | INNER_SHARED | ACCESSED | NOT_GLOBAL | XN
    .fill   508, 8, 0
