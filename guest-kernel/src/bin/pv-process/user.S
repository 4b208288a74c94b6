// Programs of `guest:pv-process`, at EL0: position-independent, one page. Entered at the start with x0 = which one.
// System calls: `svc #0`, the number in x8, arguments in x0 and x1, the answer in x0. 0 exit(value), 1 fork -> 0 in the new one,
// 2 wait -> the value of a child that has ended, 3 protect(pages, writable), 4 exec(which), 5 yield.

.equ EXIT,    0
.equ FORK,    1
.equ WAIT,    2
.equ PROTECT, 3
.equ EXEC,    4
.equ YIELD,   5

.macro call number
    mov     x8, #\number
    svc     #0
.endm
// x20 = the process's data: `process::DATA`.
.macro data
    movz    x20, #0x80, lsl #32
    movk    x20, #0x4000, lsl #16
.endm

.section .rodata.user, "a"
.balign 16
.global user_program, user_program_end
user_program:
    data
    cmp     x0, #0
    b.eq    family
    cmp     x0, #1
    b.eq    fills
    cmp     x0, #2
    b.eq    writes_kernel
    cmp     x0, #3
    b.eq    writes_text
    cmp     x0, #4
    b.eq    runs_data
    cmp     x0, #5
    b.eq    below_stack
    cmp     x0, #6
    b.eq    protected
    cmp     x0, #7
    b.eq    executes
    cmp     x0, #8
    b.eq    becomes
    cmp     x0, #9
    b.eq    stack_deep
    cmp     x0, #10
    b.eq    spins
    b       reads_kernel

// Two processes write to what both have had, and see their own: 40 + 2.
family:
    mov     x1, #7
    str     x1, [x20]
    str     x1, [sp, #-16]!
    call    FORK
    cbz     x0, 1f
    mov     x1, #40
    str     x1, [x20]
    call    WAIT
    ldr     x1, [x20]
    add     x0, x0, x1
    ldr     x1, [sp]
    cmp     x1, #7
    b.eq    2f
    mov     x0, #-1
2:  call    EXIT
1:  ldr     x1, [x20]
    cmp     x1, #7
    b.ne    3f
    mov     x1, #8
    str     x1, [sp]
    mov     x1, #2
    str     x1, [x20]
    call    YIELD
    ldr     x0, [x20]
    call    EXIT
3:  mov     x0, #-2
    call    EXIT

// Writes a word to each of x1 pages (left in x1 by the kernel), adds them up again, forks and waits; the new one executes another program.
fills:
    mov     x21, x1
    mov     x2, #0
1:  add     x3, x20, x2, lsl #12
    str     x2, [x3]
    add     x2, x2, #1
    cmp     x2, x21
    b.lo    1b
    call    FORK
    cbz     x0, 3f
    call    WAIT
    mov     x3, x0
    mov     x0, #0
    mov     x2, #0
2:  add     x4, x20, x2, lsl #12
    ldr     x1, [x4]
    add     x0, x0, x1
    add     x2, x2, #1
    cmp     x2, x21
    b.lo    2b
    add     x0, x0, x3
    call    EXIT
3:  mov     x0, #8
    call    EXEC

writes_kernel:
    movz    x1, #0x4000, lsl #16
    str     x1, [x1]
    mov     x0, #0
    call    EXIT
reads_kernel:
    movz    x1, #0x4000, lsl #16
    ldr     x0, [x1]
    call    EXIT
writes_text:
    adr     x1, user_program
    str     x1, [x1]
    mov     x0, #0
    call    EXIT
runs_data:
    movz    w1, #0x03c0                 // ret
    movk    w1, #0xd65f, lsl #16
    str     w1, [x20]
    dsb     ish
    isb
    blr     x20
    mov     x0, #0
    call    EXIT

// The first address below the stack.
below_stack:
    sub     x1, sp, #0x10000
    str     x1, [x1, #-8]
    mov     x0, #0
    call    EXIT

// All of the stack, page by page.
stack_deep:
    mov     x2, #16
1:  sub     sp, sp, #0x1000
    str     x2, [sp]
    subs    x2, x2, #1
    b.ne    1b
    mov     x0, #16
    call    EXIT

// Writes, gives the right away, reads, takes it back, writes, gives it away, and writes.
protected:
    mov     x1, #5
    str     x1, [x20]
    mov     x0, #1
    mov     x1, #0
    call    PROTECT
    ldr     x2, [x20]
    mov     x0, #1
    mov     x1, #1
    call    PROTECT
    str     x2, [x20, #8]
    mov     x0, #1
    mov     x1, #0
    call    PROTECT
    str     x2, [x20, #16]
    mov     x0, #0
    call    EXIT

executes:
    mov     x0, #8
    call    EXEC
becomes:
    ldr     x0, [x20]                   // zero again
    add     x0, x0, #99
    call    EXIT

// Never ends by itself.
spins:
    b       spins
user_program_end:
