//! What two domains do with one grant's entry.
//!
//! The entry's flags are the one word of a grant that its owner changes while EL2 does: a guest ends access with a compare-and-exchange of its
//! own, on another CPU, while a call marks the entry as used, takes the frame, and takes the mark back. Its orderings are not the library's:
//! [`Hardware`]'s words are one step each, and acquire and release (`el2/arm.rs`). What can go wrong here is the order of the steps.
use hypervisor::addr::{FrameAddr, Gfn};
use hypervisor::fake::{FakeHardware, RAM, World};
use hypervisor::hardware::Hardware;
use hypervisor::hypercall::{Outcome, hypercall};
use hypervisor::machine::{Current, Machine};
use hypervisor::stage2;
use pv_abi::DomId;

use crate::protocols::{both, built, current};

/// Where arguments lie in a guest's memory, and the pages that are copied from and to.
const ARG: u64 = RAM + 0x1_0000;
const PAGE: u64 = RAM + 0x3_0000;
/// A reference, and flags of an entry (`GTF_*`).
const GREF: u32 = 8;
const PERMIT: u32 = 1;
const IN_USE: u32 = 8 | 16;
const GRANT_TABLE_OP: u64 = 20;

/// Makes a call to its end; its result, and the structure after it.
fn call<const N: usize>(
    machine: &Machine<FakeHardware>,
    caller: &Current<'_>,
    number: u64,
    cmd: u64,
    words: [u32; N],
) -> (i64, [u32; N]) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    // Each vCPU has a page for them.
    let at = frame(machine, caller.domain.id, ARG + u64::from(caller.cpu.0) * 0x1000);
    machine.hw.write(at, &bytes);
    let mut args = [cmd, ARG + u64::from(caller.cpu.0) * 0x1000, 1, 0, 0];
    for _ in 0..8 {
        match hypercall(machine, caller, number, args) {
            Outcome::Done(result) => {
                let mut after = [0; N];
                for (index, word) in after.iter_mut().enumerate() {
                    *word = machine.hw.load_u32(FrameAddr::new(at.frame(), at.offset() + index * 4).unwrap());
                }
                return (result, after);
            }
            Outcome::Restart(left) => args = left,
        }
    }
    panic!("it never ends");
}

/// A domain's byte of RAM.
fn frame(machine: &Machine<FakeHardware>, id: DomId, at: u64) -> FrameAddr {
    let root = machine.domain(id).unwrap().stage2_root;
    FrameAddr::start(stage2::lookup(&machine.hw, root, Gfn::new(at >> 12).unwrap()).unwrap().mfn)
}

/// A granter ends access, and writes to its page what the other may not see, while the other copies from it.
pub fn entry() {
    let machine: &'static Machine<FakeHardware> = built(|| Box::leak(Box::new(World::tight(2).machine)));
    let (user, granter) = (current(machine, 1, 0), current(machine, 2, 1));
    let table = granter.domain.state.lock().grants.frame(0).unwrap();
    let entry = FrameAddr::new(table, GREF as usize * 8).unwrap();
    let (from, to) = (frame(machine, DomId(2), PAGE), frame(machine, DomId(1), PAGE));
    let gfn = u32::try_from(PAGE >> 12).unwrap();
    let granted = PERMIT | 1 << 16;
    machine.hw.write(entry, &[granted.to_le_bytes(), gfn.to_le_bytes()].concat());
    machine.hw.write(from, b"free");
    // From the reference to the page: two ends of 16 bytes, 4 bytes, the source by reference, a status.
    let copy = [GREF, 0, 2, 0, gfn, 0, u32::from(DomId::SELF.0), 0, 4 | 1 << 16, 0];
    model_core::begin();
    // Rehearsal.
    assert_eq!(call(machine, &user, GRANT_TABLE_OP, 5, copy), (0, copy));
    machine.hw.write(to, &[0; 4]);
    let copies = move || call(machine, &user, GRANT_TABLE_OP, 5, copy).1[9] == 0;
    let ends = move || {
        // As guests do: not while it is in use.
        let flags = machine.hw.load_u32(entry);
        let ended = flags & IN_USE == 0
            && machine.hw.compare_exchange_u32(entry, flags, flags & !0xFFFF) == Ok(flags);
        if ended {
            machine.hw.write(from, b"mine");
        }
        ended
    };
    let (copied, ended) = both(copies, ends);
    let seen = machine.hw.load_u32(to).to_le_bytes();
    assert!(
        seen == if copied { *b"free" } else { [0; 4] },
        "what was written after the end of access is copied"
    );
    let expected = if ended { 1 << 16 } else { granted };
    assert_eq!(machine.hw.load_u32(entry), expected, "the marks are gone with the use, and nothing else is");
}
