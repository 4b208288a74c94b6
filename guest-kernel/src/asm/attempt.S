// Attempts (attempt.rs): code that may take an exception, with registers of its own.
//
// attempt_enter(x0 = `attempt::Context`, x1 = where to begin, x2 = SPSR) -> x0 = 0 if it came back by `ret`, else 1.
// Masks interrupts, keeps what the C ABI preserves on the stack and the stack pointer in the context, loads x0-x30 from the context
// and begins by `eret`. Ends at attempt_return, which is in its x30 (EL1 only), or at attempt_taken, where the exception handler
// resumes with the stack pointer that the context has.

.equ CONTEXT_SP,  31 * 8
.equ KEPT,        16 * 8                // x19-x30, context, DAIF, scratch, padding
.equ KEPT_CONTEXT, 96
.equ KEPT_SCRATCH, 112

.section .text.attempt, "ax"
.global attempt_enter, attempt_return, attempt_taken
attempt_enter:
    sub     sp, sp, #KEPT
    stp     x19, x20, [sp]
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    stp     x29, x30, [sp, #80]
    mrs     x3, daif
    stp     x0, x3, [sp, #KEPT_CONTEXT]
    msr     daifset, #0xf
    mov     x3, sp
    str     x3, [x0, #CONTEXT_SP]
    msr     elr_el1, x1
    msr     spsr_el1, x2
    mov     x30, x0
    ldp     x0, x1, [x30]
    ldp     x2, x3, [x30, #16]
    ldp     x4, x5, [x30, #32]
    ldp     x6, x7, [x30, #48]
    ldp     x8, x9, [x30, #64]
    ldp     x10, x11, [x30, #80]
    ldp     x12, x13, [x30, #96]
    ldp     x14, x15, [x30, #112]
    ldp     x16, x17, [x30, #128]
    ldp     x18, x19, [x30, #144]
    ldp     x20, x21, [x30, #160]
    ldp     x22, x23, [x30, #176]
    ldp     x24, x25, [x30, #192]
    ldp     x26, x27, [x30, #208]
    ldp     x28, x29, [x30, #224]
    ldr     x30, [x30, #240]
    eret

attempt_return:
    msr     daifset, #0xf
    msr     spsel, #1
    str     x30, [sp, #KEPT_SCRATCH]
    ldr     x30, [sp, #KEPT_CONTEXT]
    stp     x0, x1, [x30]
    stp     x2, x3, [x30, #16]
    stp     x4, x5, [x30, #32]
    stp     x6, x7, [x30, #48]
    stp     x8, x9, [x30, #64]
    stp     x10, x11, [x30, #80]
    stp     x12, x13, [x30, #96]
    stp     x14, x15, [x30, #112]
    stp     x16, x17, [x30, #128]
    stp     x18, x19, [x30, #144]
    stp     x20, x21, [x30, #160]
    stp     x22, x23, [x30, #176]
    stp     x24, x25, [x30, #192]
    stp     x26, x27, [x30, #208]
    stp     x28, x29, [x30, #224]
    mov     x0, #0
    b       1f
attempt_taken:
    mov     x0, #1
1:  ldr     x3, [sp, #KEPT_CONTEXT + 8]
    msr     daif, x3
    ldp     x19, x20, [sp]
    ldp     x21, x22, [sp, #16]
    ldp     x23, x24, [sp, #32]
    ldp     x25, x26, [sp, #48]
    ldp     x27, x28, [sp, #64]
    ldp     x29, x30, [sp, #80]
    add     sp, sp, #KEPT
    ret
