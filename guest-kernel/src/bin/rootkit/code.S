// What `guest:rootkit` executes: one attempt each, x0 and x1 as its caller says, back by `ret`.

.section .text.rootkit, "ax"
.global rootkit_store, rootkit_load, rootkit_jump, rootkit_at
rootkit_store:
    str     x1, [x0]
    ret
rootkit_load:
    ldr     x1, [x0]
    ret
rootkit_jump:                           // to x0, which returns by the same x30 if it is executed
    br      x0

.macro control name, register
.global rootkit_write_\name
rootkit_write_\name:
    msr     \register, x0
    isb
    ret
.endm
    control sctlr, sctlr_el1
    control tcr,   tcr_el1
    control mair,  mair_el1
    control lower, ttbr0_el1
    control upper, ttbr1_el1

// What a further vCPU begins with: x0 = where to leave SCTLR_EL1, TTBR0_EL1, TTBR1_EL1 and TCR_EL1, and then 1. Goes off.
.global rootkit_second
rootkit_second:
    mrs     x1, sctlr_el1
    mrs     x2, ttbr0_el1
    stp     x1, x2, [x0]
    mrs     x1, ttbr1_el1
    mrs     x2, tcr_el1
    stp     x1, x2, [x0, #16]
    mov     x1, #1
    add     x2, x0, #32
    stlr    x1, [x2]
    movz    x0, #0x8400, lsl #16        // PSCI CPU_OFF
    movk    x0, #2
    hvc     #0
    b       .

// A program of EL0, and of EL1 if that could be: x0 = 0x55, then a system call.
.global rootkit_user, rootkit_user_end
rootkit_user:
    mov     x0, #0x55
    svc     #0
    ret
rootkit_user_end:
