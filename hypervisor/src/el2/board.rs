//! The board's own devices: power and the mailbox to its firmware, where the device tree has them, and CPUs that wait at a spin table.
//!
//! Invariants
//! 1. Devices are mapped before they are noted here, and stay mapped and EL2's for ever.
//! 2. The first CPU alone asks the mailbox, during boot.
#![expect(unsafe_code, reason = "device registers, a buffer that firmware writes, and the release of CPUs")]

use core::arch::asm;
use core::cell::UnsafeCell;
use core::ptr::with_exposed_provenance;
use core::sync::atomic::{AtomicUsize, Ordering};

use hypervisor::devicetree::{Tree, find_device};
use platform::mailbox::{self, Mailbox, Message, Question};
use platform::power::{self, PowerManager};

use super::finish::Power;
use super::mmu::{self, Kind};
use super::{bug, direct};

/// Address of the power manager's registers; 0 for none.
static POWER: AtomicUsize = AtomicUsize::new(0);
/// Address of the mailbox's.
static MAILBOX: AtomicUsize = AtomicUsize::new(0);

struct Letter(UnsafeCell<Message>);
// SAFETY: invariant 2.
unsafe impl Sync for Letter {}
static LETTER: Letter = Letter(UnsafeCell::new(Message::EMPTY));

/// Looks for the devices.
pub fn find(tree: &Tree<'_>) {
    for (wanted, place) in [(power::COMPATIBLE, &POWER), (mailbox::COMPATIBLE, &MAILBOX)] {
        if let Ok(Some(registers)) = find_device(tree, wanted)
            && mmu::map(registers.start(), registers.size(), Kind::Device).is_ok()
        {
            place.store(direct::virt(registers.start()), Ordering::Relaxed);
        }
    }
}

/// What the firmware answers; none without a mailbox.
pub fn ask(question: Question) -> Option<u32> {
    let registers = with_exposed_provenance::<Mailbox>(MAILBOX.load(Ordering::Relaxed));
    // SAFETY: null, or invariant 1.
    let mailbox = unsafe { registers.as_ref() }?;
    let letter = LETTER.0.get();
    // SAFETY: invariant 2.
    unsafe { letter.write_volatile(Message::new(question)) };
    // The firmware reads and writes memory, not our caches; the message has its cache line for itself, so that nothing of it is written back
    // over the answer, and a line that was fetched early is dropped before the answer is read.
    direct::clean_range(letter.addr(), size_of::<Message>());
    let answered = mailbox.ask(mmu::image_pa(letter.addr()));
    direct::clean_range(letter.addr(), size_of::<Message>());
    // SAFETY: as above.
    let message = unsafe { letter.read_volatile() };
    message.answer().filter(|_| answered)
}

/// Switches the board off or resets it, where it can be.
pub fn leave(how: Power) {
    let registers = with_exposed_provenance::<PowerManager>(POWER.load(Ordering::Relaxed));
    // SAFETY: null, or invariant 1.
    if let Some(power) = unsafe { registers.as_ref() } {
        match how {
            Power::Off => power.off(),
            Power::Reset => power.reset(),
        }
        bug::halt()
    }
}

/// Tells a CPU that waits at `release` (physical, `cpu-release-addr`) to enter at physical address `entry`. It polls with its caches off:
/// the word must reach memory, and the event comes after that (Linux's `Documentation/arch/arm64/booting.rst`, "spin-table").
pub fn release(release: u64, entry: u64) -> bool {
    let size = size_of::<u64>() as u64;
    if !release.is_multiple_of(size) || mmu::map(release, size, Kind::Memory).is_err() {
        return false;
    }
    let word = direct::virt(release);
    let place = core::ptr::with_exposed_provenance_mut::<u64>(word);
    // SAFETY: mapped; the tree says that it is the CPU's release word.
    unsafe { place.write_volatile(entry.to_le()) };
    direct::clean_range(word, size_of::<u64>());
    // SAFETY: an event; `clean_range` ends with a full barrier.
    unsafe { asm!("sev", options(nostack, preserves_flags)) };
    true
}
