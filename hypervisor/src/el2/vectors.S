/* EL2's exception vectors.
 *
 * From a guest: the frame (struct Frame) is made at the top of this CPU's stack, so SP_EL2 is there whenever a guest runs.
 *   Calls and interrupts save what the C ABI may clobber (x0-x18, x29, x30) and call
 *     hvc_entry(frame, ESR) / irq_entry(frame) -> 0: go on with this guest, else: ask the scheduler.
 *   So do data aborts at first, which call load_entry(frame, ESR) -> 1: go on with this guest, 0: all of it, as below.
 *   Everything else saves all registers and calls sync_entry(frame, ESR) / serror_entry(frame), same result.
 *   The scheduler is switch_entry(frame) -> where the next guest's registers are: in that frame, or where they were kept (16-byte aligned).
 *     They are loaded from there; only the word of calls is moved to the stack, where the next exception leaves it.
 *   ELR_EL2 and SPSR_EL2 stay in their registers: EL2 takes no exception while it serves a guest.
 * From EL2 itself: an SError is counted (serror_el2 says when that is expected), an AT that aborts is a translation that failed
 *   (el2_translation), everything else is a bug of ours: bug_entry(kind) prints and halts.
 */
    .macro  save_clobbered
    stp     x0, x1, [sp, #-{FRAME}]!
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    str     x18, [sp, #144]
    stp     x29, x30, [sp, #232]
    .endm

    .macro  load_clobbered from         /* but x0 and x1 */
    ldp     x2, x3, [\from, #16]
    ldp     x4, x5, [\from, #32]
    ldp     x6, x7, [\from, #48]
    ldp     x8, x9, [\from, #64]
    ldp     x10, x11, [\from, #80]
    ldp     x12, x13, [\from, #96]
    ldp     x14, x15, [\from, #112]
    ldp     x16, x17, [\from, #128]
    ldr     x18, [\from, #144]
    ldp     x29, x30, [\from, #232]
    .endm

    .macro  restore_clobbered
    load_clobbered sp
    ldp     x0, x1, [sp], #{FRAME}
    .endm

    .macro  save_preserved
    stp     x19, x20, [sp, #152]
    stp     x21, x22, [sp, #168]
    stp     x23, x24, [sp, #184]
    stp     x25, x26, [sp, #200]
    stp     x27, x28, [sp, #216]
    .endm

    .macro  load_preserved from
    ldp     x19, x20, [\from, #152]
    ldp     x21, x22, [\from, #168]
    ldp     x23, x24, [\from, #184]
    ldp     x25, x26, [\from, #200]
    ldp     x27, x28, [\from, #216]
    .endm

    /* No straight-line speculation past the return (XSA-312). */
    .macro  return_to_guest
    eret
    dsb     nsh
    isb
    .endm

    /* Each vector has 128 bytes, 32 instructions; the assembler refuses to go back, should one be longer. */
    .macro  vector offset
    .org    el2_vectors + \offset
    .endm

    .macro  bug kind, offset
    vector  \offset
    mov     x0, #\kind
    b       el2_bug
    .endm

    .section .text.vectors, "ax"
    .balign 2048
    .global el2_vectors
el2_vectors:
    bug     0, 0x000
    bug     1, 0x080
    bug     2, 0x100
    bug     3, 0x180

    vector  0x200
    b       el2_translation

    bug     5, 0x280
    bug     6, 0x300
    vector  0x380
    b       el2_serror

    vector  0x400
    save_clobbered
    mrs     x1, esr_el2
    mov     x0, sp
    lsr     x2, x1, #26
    cmp     x2, #0x16                   /* EC: HVC from AArch64 */
    b.ne    el2_sync_other
    bl      hvc_entry
    cbnz    x0, el2_switch
    restore_clobbered
    return_to_guest

    vector  0x480
    save_clobbered
    mov     x0, sp
    b       el2_irq

    vector  0x500
    save_clobbered                      /* FIQ: handled as an interrupt, nothing is in group 0 */
    mov     x0, sp
    b       el2_irq

    vector  0x580
    save_clobbered
    save_preserved
    mov     x0, sp
    bl      serror_entry
    b       el2_leave_all

    bug     12, 0x600
    bug     13, 0x680
    bug     14, 0x700
    bug     15, 0x780
    .org    el2_vectors + 0x800

el2_irq:
    bl      irq_entry
    cbnz    x0, el2_switch
    restore_clobbered
    return_to_guest

el2_sync_other:
    cmp     x2, #0x24                   /* EC: data abort of a guest */
    b.ne    1f
    bl      load_entry
    cbz     x0, 2f
    restore_clobbered
    return_to_guest
2:  mov     x0, sp                      /* x19 to x28 are the guest's still, by the C ABI */
    mrs     x1, esr_el2
1:  save_preserved
    bl      sync_entry
el2_leave_all:
    cbnz    x0, el2_switch_saved
    load_preserved sp
    restore_clobbered
    return_to_guest

el2_switch:
    save_preserved
el2_switch_saved:
    mov     x0, sp
    bl      switch_entry
    ldr     x1, [x0, #{CALLS}]
    str     x1, [sp, #{CALLS}]
    load_preserved x0
    load_clobbered x0
    add     sp, sp, #{FRAME}            /* EL2 takes nothing here that would write below it: SErrors are masked too */
    ldp     x0, x1, [x0]
    return_to_guest

/* The first guest of a CPU: from enter_guests(stack top), with no frame yet. */
    .global enter_guests
enter_guests:
    mov     sp, x0
    sub     sp, sp, #{FRAME}
    b       el2_switch_saved

el2_serror:
    stp     x0, x1, [sp, #-16]!
    mrs     x0, tpidr_el2
    ldr     x1, [x0, #{SERRORS}]
    add     x1, x1, #1
    str     x1, [x0, #{SERRORS}]
    ldp     x0, x1, [sp], #16
    eret
    dsb     nsh
    isb

/* A data abort by an AT (arm.rs, `translation`: it names x14 and x15 as clobbered, and puts ELR_EL2 and SPSR_EL2 back): PAR_EL1 says "failed",
 * and EL2 goes on behind it. No stack: that may be what is broken. What took a data abort was fetched, so it can be read. */
el2_translation:
    mrs     x14, esr_el2
    lsr     x14, x14, #26
    cmp     x14, #0x25                  /* EC: data abort, same level */
    b.ne    1f
    mrs     x14, elr_el2
    ldr     w15, [x14]
    mov     w14, #0x7800
    movk    w14, #0xd508, lsl #16       /* AT op, Xt: SYS #op1, C7, C8, #op2, Xt */
    eor     w15, w15, w14
    and     w15, w15, #0xffffff00       /* op2 [7:5], Xt [4:0] */
    tst     w15, #0xfff8ffff            /* op1 [18:16] */
    b.ne    1f
    mov     x15, #1                     /* F; S is clear: it is not tried again */
    msr     par_el1, x15
    mrs     x14, elr_el2
    add     x14, x14, #4
    msr     elr_el2, x14
    eret
    dsb     nsh
    isb
1:  mov     x0, #4
    b       el2_bug

el2_bug:
    mrs     x1, esr_el2
    mrs     x2, elr_el2
    mrs     x3, far_el2
    mov     x4, sp
    ldr     x5, ={STACKS} + {BUG_STACK_TOP}        /* the stack itself may be what is broken */
    mov     sp, x5
    bl      bug_entry
1:  wfe
    b       1b
    .ltorg
