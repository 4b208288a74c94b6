/* Entry of the image, on every CPU.
 *
 * _start: from the firmware or QEMU, by the arm64 boot protocol: EL2, MMU off, x0 = physical address of the device tree,
 *   image clean to the point of coherency. Maps the image at its link address, turns the MMU on, clears .bss and calls
 *   boot_primary(device tree, load address). Never returns.
 * secondary_start: from PSCI CPU_ON or a spin table, MMU off, nothing in registers. Uses the tables that the first CPU made, finds its
 *   number and stack in percpu's ENTRIES by its affinity; calls boot_secondary(number). Never returns.
 *
 * What stops it here is said on the UART at `early_uart`, if anybody filled that in.
 *
 * Memory is Device-nGnRnE while the MMU is off: no exclusives, no unaligned access. What is written then must not be hidden by
 * stale cache lines later: the tables are invalidated to the point of coherency before the walker reads them (Arm ARM D7.4.9).
 */
    .section .head.text, "ax"
    .global _start
_start:
    b       primary_start
    .word   0
    .quad   0                           /* text_offset: none */
    .quad   __image_size
    .quad   0xA                         /* little-endian, 4 KiB pages, anywhere in memory */
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .word   0

    /* Where a packer of images (`cargo xtask image`) says which UART may be polled before the device tree is read, as struct Early in
     * platform/src/uart.rs: address, status offset, mask, value when ready, and whether the firmware's stub lets EL2 set CPUACTLR_EL1. All
     * zero: nothing is said, nothing is set. At byte 64 of the image. */
    .global early_uart
early_uart_mark:
    .ascii  "PAVOUART"
early_uart:
    .quad   0
    .word   0, 0, 0, 0

entered_text:
    .asciz  "pavo: entered\r\n"
not_el2_text:
    .asciz  "pavo: cannot start: not entered at EL2\r\n"
misaligned_text:
    .asciz  "pavo: cannot start: not loaded at a multiple of 64 KiB\r\n"
misplaced_text:
    .asciz  "pavo: cannot start: loaded where its tables cannot map it\r\n"
    .balign 4

/* Prints the string at x0 before the MMU is on, wherever the image is. Returns by x30; clobbers x0, x9-x15. */
early_print:
    adr     x9, early_uart
    ldr     x10, [x9]
    cbz     x10, 3f
    ldp     w11, w12, [x9, #8]          /* status offset, mask */
    ldr     w13, [x9, #16]              /* ready */
1:  ldrb    w9, [x0], #1
    cbz     w9, 3f
    mov     w15, #0x100000              /* a UART that is off must not hold the boot up */
2:  ldr     w14, [x10, x11]
    and     w14, w14, w12
    sub     w15, w15, #1
    cbz     w15, 3f
    cmp     w14, w13
    b.ne    2b
    str     w9, [x10]
    b       1b
3:  ret

/* Says why, and stops. */
    .macro  stop_unless condition, text
    b.\condition 9f
    adr     x0, \text
    b       say_and_halt
9:
    .endm
say_and_halt:
    bl      early_print
    b       halt

/* x1 = physical address of symbol, by its distance from here. */
    .macro  phys reg, symbol
    adrp    \reg, \symbol
    add     \reg, \reg, :lo12:\symbol
    .endm

/* Cortex-A72 erratum 859971: instructions are prefetched from the page behind an executable one, execute-never or not; a guest could have
 * that page be a device of its own, or its interrupt controller, and hang the CPU. CPUACTLR_EL1[32] (A72 TRM 4.3.66: before the MMU is on)
 * stops prefetching, as TF-A does. The Raspberry Pi's stub does not, but lets EL2 (its ACTLR_EL3); elsewhere the write would trap to
 * firmware that may not expect it, hence the word. Clobbers x9, x10. */
    .macro  stop_prefetch
    adr     x9, early_uart
    ldr     w10, [x9, #20]
    cbz     w10, 9f
    mrs     x9, midr_el1
    ubfx    x9, x9, #4, #12
    mov     x10, #0xD08                 /* Cortex-A72 */
    cmp     x9, x10
    b.ne    9f
    mrs     x9, s3_1_c15_c2_0           /* CPUACTLR_EL1 */
    orr     x9, x9, #(1 << 32)
    msr     s3_1_c15_c2_0, x9
    isb
9:
    .endm

/* Registers that both paths need before and at the moment the MMU goes on. Clobbers x9-x11; x8 = physical root. */
    .macro  mmu_on
    ldr     x9, ={MAIR}
    msr     mair_el2, x9
    mrs     x10, id_aa64mmfr0_el1
    and     x10, x10, #0xF              /* PARange */
    cmp     x10, #5                     /* 48 bits are enough and what the tables can say */
    mov     x11, #5
    csel    x10, x10, x11, lo
    ldr     x9, ={TCR}
    orr     x9, x9, x10, lsl #16        /* PS */
    msr     tcr_el2, x9
    msr     ttbr0_el2, x8
    dsb     sy
    isb
    tlbi    alle2
    ic      iallu
    dsb     sy
    isb
    ldr     x9, ={SCTLR}
    msr     sctlr_el2, x9
    isb
    .endm

primary_start:
    msr     daifset, #0xF
    msr     spsel, #1                   /* firmware may enter on SP_EL0 */
    mov     x20, x0                     /* device tree */
    adr     x0, entered_text
    bl      early_print
    mrs     x9, CurrentEL
    cmp     x9, #(2 << 2)
    stop_unless eq, not_el2_text
    ldr     x9, ={SCTLR_OFF}
    msr     sctlr_el2, x9
    msr     hcr_el2, xzr                /* E2H off: EL2 registers keep their own formats */
    isb
    msr     amair_el2, xzr
    mov     x9, #0x33FF                 /* RES1: nothing that EL2 uses traps */
    msr     cptr_el2, x9
    stop_prefetch
    adr     x21, _start                 /* load address; page-relative addresses are true only if it is aligned */
    tst     x21, #0xFFFF                /* the boot protocol promises 64 KiB here: log tags and page offsets rest on it */
    stop_unless eq, misaligned_text
    lsr     x9, x21, #39
    cmp     x9, #0                      /* what the boot tables can name */
    stop_unless eq, misplaced_text

    /* Empty tables. A dirty line that the loader left over them must not be written back later. */
    phys    x8, boot_tables
    mov     x9, x8
    add     x10, x8, #(4 * 4096)
0:  dc      ivac, x9
    add     x9, x9, #64
    cmp     x9, x10
    b.lo    0b
    dsb     sy
    mov     x9, x8
1:  stp     xzr, xzr, [x9], #16
    cmp     x9, x10
    b.lo    1b

    /* root[3] -> L2 of the image -> L3 of the image: one page each with the rights of its part. */
    add     x11, x8, #4096              /* L2 of the image */
    add     x12, x8, #8192              /* L3 of the image */
    orr     x9, x11, #3
    str     x9, [x8, #(3 * 8)]
    orr     x9, x12, #3
    str     x9, [x11]
    mov     x13, x21                    /* page */
    phys    x14, __text_end
    phys    x15, __rodata_end
    phys    x16, __image_end
    ldr     x9, ={TEXT}
2:  orr     x10, x13, x9
    str     x10, [x12], #8
    add     x13, x13, #4096
    cmp     x13, x14
    b.lo    2b
    ldr     x9, ={RODATA}
    cmp     x13, x15
    b.lo    2b
    ldr     x9, ={DATA}
    cmp     x13, x16
    b.lo    2b

    /* The 2 MiB around the image, executable where it is, for the instructions around the switch. */
    lsr     x9, x21, #30
    cmp     x9, #3
    b.ne    3f
    /* Same gigabyte as the link address: share its L2, unless the very block is taken. */
    ubfx    x10, x21, #21, #9
    cbz     x10, 5f
    b       4f
3:  add     x11, x8, #(3 * 4096)
    orr     x12, x11, #3
    str     x12, [x8, x9, lsl #3]
    ubfx    x10, x21, #21, #9
4:  lsr     x12, x21, #21
    lsl     x12, x12, #21
    ldr     x13, ={IDENTITY}
    orr     x13, x13, x12
    str     x13, [x11, x10, lsl #3]
    /* The image may reach into the next block; mmu_on and its surroundings stand in its first page. */
    b       6f
5:  ldr     x9, =__image_start          /* loaded in the block of the link address: fine only when exactly there */
    cmp     x9, x21
    stop_unless eq, misplaced_text
6:
    dsb     sy
    mov     x9, x8
    add     x10, x8, #(4 * 4096)
7:  dc      ivac, x9                    /* lines may be as small as 16 bytes; 64 is the smallest of a v8 core */
    add     x9, x9, #64
    cmp     x9, x10
    b.lo    7b
    dsb     sy

    mmu_on
    ldr     x9, =8f
    br      x9
8:  ldr     x9, ={STACK} + {STACK_TOP}
    mov     sp, x9
    ldr     x9, =el2_vectors
    msr     vbar_el2, x9
    ldr     x9, =__bss_start
    ldr     x10, =__bss_end
9:  stp     xzr, xzr, [x9], #16
    cmp     x9, x10
    b.lo    9b
    mov     x0, x20
    mov     x1, x21
    mov     x29, xzr
    mov     x30, xzr
    bl      boot_primary
halt:
    wfe
    b       halt

    .global secondary_start
secondary_start:
    msr     daifset, #0xF
    msr     spsel, #1
    mrs     x9, CurrentEL
    cmp     x9, #(2 << 2)
    b.ne    halt
    ldr     x9, ={SCTLR_OFF}
    msr     sctlr_el2, x9
    msr     hcr_el2, xzr
    msr     amair_el2, xzr
    mov     x9, #0x33FF
    msr     cptr_el2, x9
    isb
    stop_prefetch
    phys    x8, boot_tables
    mmu_on
    ldr     x9, =1f
    br      x9
1:  ldr     x9, =el2_vectors
    msr     vbar_el2, x9
    isb
    mrs     x10, mpidr_el1
    ldr     x11, ={AFFINITY}
    and     x10, x10, x11
    ldr     x9, ={ENTRIES}
    mov     x0, xzr
2:  ldp     x12, x13, [x9], #16         /* struct Entry */
    cmp     x12, x10
    b.eq    3f
    add     x0, x0, #1
    cmp     x0, #{MAX_CPUS}
    b.lo    2b
    b       halt                        /* nobody asked for this CPU */
3:  mov     sp, x13
    mov     x29, xzr
    mov     x30, xzr
    bl      boot_secondary
    b       halt
    .ltorg

    .section .boot_tables, "aw", %nobits
    .balign 4096
    .global boot_tables
boot_tables:
    .skip   4 * 4096
