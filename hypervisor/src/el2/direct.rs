//! The direct map: every byte of RAM at a fixed distance, except the image's own; and where devices are mapped.
//!
//! Invariants
//! 1. [`at`] gives a pointer for any place in RAM that the frame table knows; the mapping is writable, never executable, Normal
//!    write-back inner-shareable, and stays for ever.
//! 2. Guests write the same bytes at any time, so nothing here makes a reference: volatile and atomic accesses only, through
//!    instructions chosen here.
#![expect(unsafe_code, reason = "the one place that touches guest memory")]

use core::arch::asm;

use hypervisor::addr::{FrameAddr, Mfn};
use hypervisor::hardware::Contended;
use pv_abi::PAGE_SIZE;

/// EL2 virtual address of physical address 0.
pub const BASE: usize = 0x40_0000_0000;
/// Physical addresses below this are in the direct map.
pub const LIMIT: u64 = 0x40_0000_0000;

/// How often an exclusive pair is tried: the other side wins that often only on purpose (XSA-295).
const TRIES: u32 = 256;

/// The virtual address of a physical one.
#[inline(always)]
pub fn virt(pa: u64) -> usize {
    // Both are far below 2^63.
    BASE.wrapping_add(pa as usize)
}

#[inline(always)]
fn at(place: FrameAddr) -> usize {
    virt(place.pa().get())
}

/// Copies bytes of a frame into `into`, at most to the frame's end.
#[inline]
pub fn read(place: FrameAddr, into: &mut [u8]) {
    let len = into.len().min(place.left());
    // SAFETY: `place` is in RAM (invariant 1), `len` stays in its frame and in `into`.
    unsafe { copy_bytes(into.as_mut_ptr().expose_provenance(), at(place), len) };
}

/// Copies `from` into a frame, at most to its end.
#[inline]
pub fn write(place: FrameAddr, from: &[u8]) {
    let len = from.len().min(place.left());
    // SAFETY: as in `read`.
    unsafe { copy_bytes(at(place), from.as_ptr().expose_provenance(), len) };
}

/// Copies between frames, at most to the end of either.
#[inline]
pub fn copy(to: FrameAddr, from: FrameAddr, len: usize) {
    let len = len.min(to.left()).min(from.left());
    // SAFETY: both are in RAM and `len` stays in both frames.
    unsafe { copy_blocks(at(to), at(from), len) };
}

/// Whether `N` words stand at a place: aligned as such, and all in its frame.
#[inline(always)]
fn holds<const N: usize>(place: FrameAddr) -> bool {
    let words = PAGE_SIZE.wrapping_sub(N.wrapping_mul(8));
    place.offset().trailing_zeros() >= 3 && place.offset() <= words
}

/// Reads `N` words of a frame, each by one load; `None` where they are not aligned, or not all in the frame.
#[inline(always)]
pub fn read_words<const N: usize>(place: FrameAddr) -> Option<[u64; N]> {
    if !holds::<N>(place) {
        return None;
    }
    let words = core::ptr::with_exposed_provenance::<u64>(at(place));
    // SAFETY: in RAM (invariant 1), aligned, and in the frame.
    Some(core::array::from_fn(|index| unsafe { words.wrapping_add(index).read_volatile() }))
}

/// Writes `N` words of a frame, each by one store; false, and nothing is written, where they are not aligned, or not all in the frame.
#[inline(always)]
pub fn write_words<const N: usize>(place: FrameAddr, from: [u64; N]) -> bool {
    if !holds::<N>(place) {
        return false;
    }
    let words = core::ptr::with_exposed_provenance_mut::<u64>(at(place));
    for (index, word) in from.into_iter().enumerate() {
        // SAFETY: as in `read_words`.
        unsafe { words.wrapping_add(index).write_volatile(word) };
    }
    true
}

/// Writes two bytes of a frame; false, and nothing is written, where the second is not in it. At an odd address too: the memory is Normal and
/// `SCTLR_EL2.A` is 0.
#[inline(always)]
pub fn write_u16(place: FrameAddr, value: u16) -> bool {
    if place.offset() > PAGE_SIZE.wrapping_sub(2) {
        return false;
    }
    // SAFETY: in RAM, and in the frame.
    unsafe {
        asm!("strh {:w}, [{}]", in(reg) u32::from(value), in(reg) at(place), options(nostack, preserves_flags));
    };
    true
}

/// Stores an aligned word.
#[inline(always)]
pub fn store_u64(place: FrameAddr, value: u64) {
    // SAFETY: in RAM and aligned.
    unsafe { asm!("str {}, [{}]", in(reg) value, in(reg) at(place) & !7, options(nostack, preserves_flags)) };
}

/// Copies `len` bytes that a guest may change meanwhile, 512 a turn and then as [`copy_bytes`]: each byte is read once.
///
/// However they are aligned: both sides are Normal memory and `SCTLR_EL2.A` is 0, so a load or store of registers may cross words (Arm ARM
/// B2.8.2); no order within the copy is promised to anybody.
///
/// # Safety
/// As [`copy_bytes`].
#[inline(never)]
unsafe fn copy_blocks(to: usize, from: usize, len: usize) {
    let (mut to, mut from) = (to, from);
    let blocks = len / 512;
    if blocks != 0 {
        // SAFETY: 512 bytes a turn are left on both sides, `blocks` turns.
        unsafe {
            asm!(
                "2:",
                "ldp {a}, {b}, [{from}]", "ldp {c}, {d}, [{from}, #16]", "ldp {e}, {f}, [{from}, #32]", "ldp {g}, {h}, [{from}, #48]",
                "stp {a}, {b}, [{to}]", "stp {c}, {d}, [{to}, #16]", "stp {e}, {f}, [{to}, #32]", "stp {g}, {h}, [{to}, #48]",
                "ldp {a}, {b}, [{from}, #64]", "ldp {c}, {d}, [{from}, #80]", "ldp {e}, {f}, [{from}, #96]", "ldp {g}, {h}, [{from}, #112]",
                "stp {a}, {b}, [{to}, #64]", "stp {c}, {d}, [{to}, #80]", "stp {e}, {f}, [{to}, #96]", "stp {g}, {h}, [{to}, #112]",
                "ldp {a}, {b}, [{from}, #128]", "ldp {c}, {d}, [{from}, #144]", "ldp {e}, {f}, [{from}, #160]", "ldp {g}, {h}, [{from}, #176]",
                "stp {a}, {b}, [{to}, #128]", "stp {c}, {d}, [{to}, #144]", "stp {e}, {f}, [{to}, #160]", "stp {g}, {h}, [{to}, #176]",
                "ldp {a}, {b}, [{from}, #192]", "ldp {c}, {d}, [{from}, #208]", "ldp {e}, {f}, [{from}, #224]", "ldp {g}, {h}, [{from}, #240]",
                "stp {a}, {b}, [{to}, #192]", "stp {c}, {d}, [{to}, #208]", "stp {e}, {f}, [{to}, #224]", "stp {g}, {h}, [{to}, #240]",
                "ldp {a}, {b}, [{from}, #256]", "ldp {c}, {d}, [{from}, #272]", "ldp {e}, {f}, [{from}, #288]", "ldp {g}, {h}, [{from}, #304]",
                "stp {a}, {b}, [{to}, #256]", "stp {c}, {d}, [{to}, #272]", "stp {e}, {f}, [{to}, #288]", "stp {g}, {h}, [{to}, #304]",
                "ldp {a}, {b}, [{from}, #320]", "ldp {c}, {d}, [{from}, #336]", "ldp {e}, {f}, [{from}, #352]", "ldp {g}, {h}, [{from}, #368]",
                "stp {a}, {b}, [{to}, #320]", "stp {c}, {d}, [{to}, #336]", "stp {e}, {f}, [{to}, #352]", "stp {g}, {h}, [{to}, #368]",
                "ldp {a}, {b}, [{from}, #384]", "ldp {c}, {d}, [{from}, #400]", "ldp {e}, {f}, [{from}, #416]", "ldp {g}, {h}, [{from}, #432]",
                "stp {a}, {b}, [{to}, #384]", "stp {c}, {d}, [{to}, #400]", "stp {e}, {f}, [{to}, #416]", "stp {g}, {h}, [{to}, #432]",
                "ldp {a}, {b}, [{from}, #448]", "ldp {c}, {d}, [{from}, #464]", "ldp {e}, {f}, [{from}, #480]", "ldp {g}, {h}, [{from}, #496]",
                "stp {a}, {b}, [{to}, #448]", "stp {c}, {d}, [{to}, #464]", "stp {e}, {f}, [{to}, #480]", "stp {g}, {h}, [{to}, #496]",
                "add {from}, {from}, #512", "add {to}, {to}, #512", "subs {n}, {n}, #1", "b.ne 2b",
                a = out(reg) _, b = out(reg) _, c = out(reg) _, d = out(reg) _,
                e = out(reg) _, f = out(reg) _, g = out(reg) _, h = out(reg) _,
                n = inout(reg) blocks => _,
                from = inout(reg) from, to = inout(reg) to,
                options(nostack),
            );
        }
    }
    // SAFETY: what is left on both sides.
    unsafe { copy_bytes(to, from, len & 511) };
}

/// Copies `len` bytes that a guest may change meanwhile: each byte is read once.
///
/// 32 bytes a turn where there are so many, however they are aligned ([`copy_blocks`]). Then words where both sides are 8-byte aligned, or 4-byte
/// aligned, else bytes.
///
/// # Safety
/// Both ranges are mapped and the destination is writable; they do not overlap, or only as a forward copy allows.
#[inline]
unsafe fn copy_bytes(to: usize, from: usize, len: usize) {
    let mut to = to;
    let mut from = from;
    let mut left = len;
    while left >= 32 {
        // SAFETY: 32 bytes are left on both sides.
        unsafe {
            asm!("ldp {a}, {b}, [{from}], #16", "ldp {c}, {d}, [{from}], #16", "stp {a}, {b}, [{to}], #16", "stp {c}, {d}, [{to}], #16",
                a = out(reg) _, b = out(reg) _, c = out(reg) _, d = out(reg) _,
                from = inout(reg) from, to = inout(reg) to, options(nostack, preserves_flags));
        }
        left = left.wrapping_sub(32);
    }
    if (to | from).trailing_zeros() >= 3 {
        while left >= 8 {
            // SAFETY: 8 bytes are left on both sides, both 8-byte aligned.
            unsafe {
                asm!("ldr {a}, [{from}], #8", "str {a}, [{to}], #8", a = out(reg) _,
                    from = inout(reg) from, to = inout(reg) to, options(nostack, preserves_flags));
            }
            left = left.wrapping_sub(8);
        }
    } else if (to | from).trailing_zeros() >= 2 {
        while left >= 4 {
            // SAFETY: 4 bytes are left on both sides, both 4-byte aligned.
            unsafe {
                asm!("ldr {a:w}, [{from}], #4", "str {a:w}, [{to}], #4", a = out(reg) _,
                    from = inout(reg) from, to = inout(reg) to, options(nostack, preserves_flags));
            }
            left = left.wrapping_sub(4);
        }
    }
    while left > 0 {
        // SAFETY: a byte is left on both sides.
        unsafe {
            asm!("ldrb {a:w}, [{from}], #1", "strb {a:w}, [{to}], #1", a = out(reg) _,
                from = inout(reg) from, to = inout(reg) to, options(nostack, preserves_flags));
        }
        left = left.wrapping_sub(1);
    }
}

/// Bytes that `dc zva` zeroes, if it is permitted and they divide a quarter of a frame.
#[inline(always)]
fn zeroed_at_once() -> Option<usize> {
    let zva: u64;
    // SAFETY: reads an identification register.
    unsafe { asm!("mrs {}, dczid_el0", out(reg) zva, options(nomem, nostack, preserves_flags)) };
    // Bit 4: prohibited; bits 3:0: binary logarithm of the words a block has. A block of 16 bytes to a quarter of a page divides the frame.
    let block = 4_usize << (zva & 0xF);
    (zva & 0x10 == 0 && (16..=PAGE_SIZE / 4).contains(&block)).then_some(block)
}

/// [`clear`] and [`clean_to_memory`], line by line where a line is what is zeroed at once (as on the Cortex-A72): the maintenance of a line comes behind
/// stores of the same PE to that line in program order, where they are to Normal write-back memory (Arm ARM D7.5.9, "Ordering and completion of data and
/// instruction cache instructions"), which is all that cleaning behind the whole clearing relies on too.
pub fn clear_to_memory(frame: Mfn) {
    let step = line();
    if zeroed_at_once() != Some(step) || step > PAGE_SIZE / 8 {
        clear(frame);
        return clean_to_memory(frame);
    }
    let mut place = at(FrameAddr::start(frame));
    let end = place.wrapping_add(PAGE_SIZE);
    while place < end {
        // SAFETY: eight lines inside the frame: all are powers of two and the frame is at least as large.
        unsafe {
            asm!("dc zva, {place}", "dc civac, {place}", "add {place}, {place}, {step}",
                "dc zva, {place}", "dc civac, {place}", "add {place}, {place}, {step}",
                "dc zva, {place}", "dc civac, {place}", "add {place}, {place}, {step}",
                "dc zva, {place}", "dc civac, {place}", "add {place}, {place}, {step}",
                "dc zva, {place}", "dc civac, {place}", "add {place}, {place}, {step}",
                "dc zva, {place}", "dc civac, {place}", "add {place}, {place}, {step}",
                "dc zva, {place}", "dc civac, {place}", "add {place}, {place}, {step}",
                "dc zva, {place}", "dc civac, {place}", "add {place}, {place}, {step}",
                place = inout(reg) place, step = in(reg) step, options(nostack, preserves_flags));
        }
    }
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}

/// Zeroes a frame with the cache-line instruction where the CPU allows it.
pub fn clear(frame: Mfn) {
    let mut place = at(FrameAddr::start(frame));
    let end = place.wrapping_add(PAGE_SIZE);
    if let Some(block) = zeroed_at_once() {
        while place < end {
            // SAFETY: four blocks inside the frame: all are powers of two and the frame is at least as large.
            unsafe {
                asm!("dc zva, {place}", "add {place}, {place}, {block}", "dc zva, {place}", "add {place}, {place}, {block}",
                    "dc zva, {place}", "add {place}, {place}, {block}", "dc zva, {place}", "add {place}, {place}, {block}",
                    place = inout(reg) place, block = in(reg) block, options(nostack, preserves_flags));
            }
        }
        return;
    }
    while place < end {
        // SAFETY: 16 bytes inside the frame.
        unsafe { asm!("stp xzr, xzr, [{}]", in(reg) place, options(nostack, preserves_flags)) };
        place = place.wrapping_add(16);
    }
}

/// Smallest data cache line in bytes (`CTR_EL0.DminLine`).
fn line() -> usize {
    let ctr: u64;
    // SAFETY: reads an identification register.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
    4_usize << ((ctr >> 16) & 0xF)
}

/// Cleans and invalidates a frame to the point of coherency and waits for it: before a domain gets a frame that EL2 wrote through its
/// cacheable mapping.
///
/// Why: of the types that stage 1 and stage 2 give, the access has the weaker one (Arm ARM D8.6, combining attributes; `HCR_EL2.FWB` is
/// 0). Stage 2 says write-back, but a guest starts with `SCTLR_EL1.{M,C,I}` 0, when its data accesses are Device and its fetches
/// Non-cacheable (`HCR_EL2.DC` is 0), and may map pages Non-cacheable for ever: then it reads memory, where without this what the frame held
/// for its last owner still stands. `HCR_EL2.{CD,ID}` would only make everybody Non-cacheable. Accesses with mismatched attributes are
/// coherent only behind maintenance to the point of coherency (B2.16): by address, since set/way reaches one CPU's caches and no system
/// cache. Invalidated as well as cleaned, so that EL2 does not read a line that it kept when a guest wrote past it.
///
/// What was left dirty by the last owner, cacheable, is overwritten in the coherent caches by EL2's clearing; what it wrote past them was in
/// memory before its mapping was gone (DSB behind the TLB invalidation), and is overwritten by this cleaning.
pub fn clean_to_memory(frame: Mfn) {
    let step = line();
    let mut place = at(FrameAddr::start(frame));
    let end = place.wrapping_add(PAGE_SIZE);
    if step > PAGE_SIZE / 4 {
        return clean_range(place, PAGE_SIZE);
    }
    while place < end {
        // SAFETY: maintenance by address of four lines of the frame: all are powers of two and the frame is at least as large.
        unsafe {
            asm!("dc civac, {place}", "add {place}, {place}, {step}", "dc civac, {place}", "add {place}, {place}, {step}",
                "dc civac, {place}", "add {place}, {place}, {step}", "dc civac, {place}", "add {place}, {place}, {step}",
                place = inout(reg) place, step = in(reg) step, options(nostack, preserves_flags));
        }
    }
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}

/// Cleans and invalidates mapped bytes to the point of coherency and waits for it.
pub fn clean_range(start: usize, size: usize) {
    let step = line();
    let mut place = start & !step.wrapping_sub(1);
    let end = start.wrapping_add(size);
    while place < end {
        // SAFETY: maintenance by address of mapped memory.
        unsafe { asm!("dc civac, {}", in(reg) place, options(nostack, preserves_flags)) };
        place = place.wrapping_add(step);
    }
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}

/// Makes instruction fetches of every CPU see the bytes of a frame that was cleaned to memory, and so to the point of unification
/// (Arm ARM B2.7.4.2). The instruction cache is invalidated as a whole: guests fetch through other virtual addresses than this one.
pub fn sync_instructions() {
    // SAFETY: cache maintenance and barriers.
    unsafe { asm!("ic ialluis", "dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// Loads an aligned word with acquire.
#[inline(always)]
pub fn load_u64(place: FrameAddr) -> u64 {
    let value: u64;
    // SAFETY: in RAM; the callers' offsets are multiples of eight (`FrameAddr` of a shared structure).
    unsafe {
        asm!("ldar {}, [{}]", out(reg) value, in(reg) at(place) & !7, options(nostack, preserves_flags));
    };
    value
}

/// Loads an aligned word with acquire.
#[inline(always)]
pub fn load_u32(place: FrameAddr) -> u32 {
    let value: u32;
    // SAFETY: in RAM and aligned.
    unsafe {
        asm!("ldar {:w}, [{}]", out(reg) value, in(reg) at(place) & !3, options(nostack, preserves_flags));
    };
    value
}

/// Full barrier around an exclusive: what came before is seen before, what comes after after.
#[inline(always)]
fn barrier() {
    // SAFETY: a barrier.
    unsafe { asm!("dmb ish", options(nostack, preserves_flags)) };
}

macro_rules! exclusive {
    ($(#[$doc:meta])* $name:ident, $T:ty, $op:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(place: FrameAddr, bits: $T) -> Result<$T, Contended> {
            let address = at(place) & !7;
            for _ in 0..TRIES {
                let old: $T;
                let failed: u32;
                // SAFETY: an exclusive pair on an aligned word of RAM, which is cacheable (invariant 1).
                unsafe {
                    asm!(
                        "ldaxr {old}, [{at}]",
                        concat!($op, " {new}, {old}, {bits}"),
                        "stlxr {failed:w}, {new}, [{at}]",
                        old = out(reg) old, new = out(reg) _, failed = out(reg) failed,
                        bits = in(reg) bits, at = in(reg) address,
                        options(nostack, preserves_flags),
                    );
                }
                if failed == 0 {
                    barrier();
                    return Ok(old);
                }
            }
            Err(Contended)
        }
    };
}

exclusive! {
    /// Sets bits.
    or_u64, u64, "orr"
}
exclusive! {
    /// Clears bits.
    clear_u64, u64, "bic"
}

/// Exchanges a byte.
#[inline(always)]
pub fn swap_u8(place: FrameAddr, value: u8) -> Result<u8, Contended> {
    for _ in 0..TRIES {
        let old: u32;
        let failed: u32;
        // SAFETY: an exclusive pair on a byte of cacheable RAM.
        unsafe {
            asm!(
                "ldaxrb {old:w}, [{at}]",
                "stlxrb {failed:w}, {value:w}, [{at}]",
                old = out(reg) old, failed = out(reg) failed,
                value = in(reg) u32::from(value), at = in(reg) at(place),
                options(nostack, preserves_flags),
            );
        }
        if failed == 0 {
            barrier();
            return Ok(old as u8);
        }
    }
    Err(Contended)
}

/// Replaces a word if it is `old`; returns what was there.
#[inline]
pub fn compare_exchange_u32(place: FrameAddr, old: u32, new: u32) -> Result<u32, Contended> {
    let address = at(place) & !3;
    for _ in 0..TRIES {
        let seen: u32;
        let failed: u32;
        // SAFETY: an exclusive pair on an aligned word of cacheable RAM, with nothing between; the monitor is given back when the
        // word is another.
        unsafe {
            asm!(
                "ldaxr {seen:w}, [{at}]",
                "cmp {seen:w}, {old:w}",
                "b.ne 2f",
                "stlxr {failed:w}, {new:w}, [{at}]",
                "b 3f",
                "2: clrex",
                "mov {failed:w}, wzr",
                "3:",
                seen = out(reg) seen, failed = out(reg) failed, old = in(reg) old, new = in(reg) new, at = in(reg) address,
                options(nostack),
            );
        }
        if failed == 0 {
            barrier();
            return Ok(seen);
        }
    }
    Err(Contended)
}

/// Reads a translation table entry.
#[inline(always)]
pub fn table_read(table: Mfn, index: usize) -> u64 {
    let address = virt(table.base().get()) | ((index & 0x1FF) << 3);
    let value: u64;
    // SAFETY: inside a frame of RAM.
    unsafe {
        asm!("ldr {}, [{}]", out(reg) value, in(reg) address, options(nostack, preserves_flags, readonly));
    };
    value
}

/// Writes a translation table entry with one store.
#[inline(always)]
pub fn table_write(table: Mfn, index: usize, entry: u64) {
    let address = virt(table.base().get()) | ((index & 0x1FF) << 3);
    // SAFETY: inside a frame of RAM that the frame table says is a table.
    unsafe { asm!("str {}, [{}]", in(reg) entry, in(reg) address, options(nostack, preserves_flags)) };
}
