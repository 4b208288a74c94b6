/* frame_copy(to, from): the 256 bytes of an exception frame (context.rs), 16-byte aligned. */
    .text
    .global frame_copy
frame_copy:
    .macro  copy_64 at
    ldp     x2, x3, [x1, #\at]
    ldp     x4, x5, [x1, #\at + 16]
    ldp     x6, x7, [x1, #\at + 32]
    ldp     x8, x9, [x1, #\at + 48]
    stp     x2, x3, [x0, #\at]
    stp     x4, x5, [x0, #\at + 16]
    stp     x6, x7, [x0, #\at + 32]
    stp     x8, x9, [x0, #\at + 48]
    .endm
    copy_64 0
    copy_64 64
    copy_64 128
    copy_64 192
    ret
