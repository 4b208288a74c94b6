// Exception vectors of EL1 (Arm ARM D1.3.1.5). The kernel runs on SP_EL1.
// TPIDR_EL1 holds the address of this vCPU's `smp::Block`, whose first word is the top of its fault stack.
// IRQ from EL1: saves what the C ABI may clobber on the current stack, calls `guest_kernel_irq`, returns.
// Everything else: saves all registers on the fault stack (the current one may be the cause), calls
// `guest_kernel_exception(frame, vector)`, and returns with what that left in the frame, if it returns.

.equ FRAME_SIZE, 34 * 8                 // `exception::Frame`: x0-x30, sp, elr, spsr
.equ FRAME_SP,   31 * 8
.equ FRAME_ELR,  32 * 8
.equ FRAME_SPSR, 33 * 8
.equ IRQ_SIZE,   24 * 8                 // x0-x18, x29, x30, elr, spsr, padding

.macro vector name
.balign 128
    b       \name
.endm

.macro fault index
    msr     tpidr_el0, x0               // scratch: nothing else uses it
    mov     x0, sp
    msr     tpidrro_el0, x0             // the interrupted stack pointer
    mrs     x0, tpidr_el1
    ldr     x0, [x0]                    // `smp::Block`: the top of the fault stack
    sub     x0, x0, #FRAME_SIZE
    mov     sp, x0
    mrs     x0, tpidr_el0
    stp     x0, x1, [sp]
    mov     x1, #\index
    b       fault_common
.endm

.section .text.vectors, "ax"
.balign 2048
.global vectors
vectors:
    vector  fault_0
    vector  fault_1
    vector  fault_2
    vector  fault_3
    vector  fault_4
    vector  irq_el1
    vector  fault_6
    vector  fault_7
    vector  fault_8
    vector  fault_9
    vector  fault_10
    vector  fault_11
    vector  fault_12
    vector  fault_13
    vector  fault_14
    vector  fault_15
.balign 128

// The same table for measurements: the interrupt's first instruction reads the counter, into x9. Returns with interrupts masked,
// so that the interrupt stays pending and the ordinary code takes it. Clobbers x9 and x10, which `measure` sets aside.
.balign 2048
.global measure_vectors
measure_vectors:
    vector  fault_0
    vector  fault_1
    vector  fault_2
    vector  fault_3
    vector  fault_4
.balign 128
    mrs     x9, cntvct_el0
    mrs     x10, spsr_el1
    orr     x10, x10, #0x80             // PSTATE.I
    msr     spsr_el1, x10
    eret
    vector  fault_6
    vector  fault_7
    vector  fault_8
    vector  fault_9
    vector  fault_10
    vector  fault_11
    vector  fault_12
    vector  fault_13
    vector  fault_14
    vector  fault_15
.balign 128

fault_0:  fault 0
fault_1:  fault 1
fault_2:  fault 2
fault_3:  fault 3
fault_4:  fault 4
fault_6:  fault 6
fault_7:  fault 7
fault_8:  fault 8
fault_9:  fault 9
fault_10: fault 10
fault_11: fault 11
fault_12: fault 12
fault_13: fault 13
fault_14: fault 14
fault_15: fault 15

fault_common:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    str     x30, [sp, #240]
    mrs     x2, tpidrro_el0
    mrs     x3, elr_el1
    mrs     x4, spsr_el1
    str     x2, [sp, #FRAME_SP]
    str     x3, [sp, #FRAME_ELR]
    str     x4, [sp, #FRAME_SPSR]
    mov     x0, sp
    bl      guest_kernel_exception
    ldr     x3, [sp, #FRAME_ELR]
    ldr     x4, [sp, #FRAME_SPSR]
    msr     elr_el1, x3
    msr     spsr_el1, x4
    ldr     x2, [sp, #FRAME_SP]
    msr     tpidrro_el0, x2
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldr     x30, [sp, #240]
    ldp     x0, x1, [sp]
    msr     tpidr_el0, x0
    mrs     x0, tpidrro_el0
    mov     sp, x0
    mrs     x0, tpidr_el0
    eret

irq_el1:
    sub     sp, sp, #IRQ_SIZE
    stp     x0, x1, [sp]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x29, [sp, #144]
    mrs     x0, elr_el1
    mrs     x1, spsr_el1
    stp     x30, x0, [sp, #160]
    str     x1, [sp, #176]
    bl      guest_kernel_irq
    ldp     x30, x0, [sp, #160]
    ldr     x1, [sp, #176]
    msr     elr_el1, x0
    msr     spsr_el1, x1
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x29, [sp, #144]
    ldp     x0, x1, [sp]
    add     sp, sp, #IRQ_SIZE
    eret
