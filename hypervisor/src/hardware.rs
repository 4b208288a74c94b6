//! What the portable half needs of a machine. The image implements it on registers and the direct map; [`crate::fake`] on plain
//! memory, recording every operation and failing what a test tells it to fail.
//!
//! Invariants
//! 1. Guest memory is reached through [`FrameAddr`] only: no call crosses a frame, none makes a reference to guest memory.
//! 2. A guest may write any of its words at any time. Words that both sides change go through the `*_u8/u32/u64` calls, whose
//!    exclusives are bounded: [`Contended`] means that a guest kept the word busy, and that guest is at fault (XSA-295).
//! 3. Stage-2 maintenance is complete on every CPU when the call returns.
use zerocopy::IntoBytes;

use crate::addr::{FrameAddr, GuestVa, Ipa, Mfn};
use crate::log::Event;
use crate::pagetable::Half;
use crate::pagetable::control::Controls;
use crate::stage2::ENTRIES;
use crate::vcpu::VcpuIndex;
use crate::vgic::PrivateIntid;

/// Bytes of a word.
const WORD: usize = 8;

/// A physical CPU, counted from 0 in the device tree's order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuId(pub u8);

/// Names a stage-2 address space to the TLB (`VTTBR_EL2.VMID`). Two domains may share a name: the image then takes care that no CPU's TLB ever holds
/// translations of both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vmid(pub u16);

/// What a handle is translated for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The hypervisor will read.
    Read,
    /// The hypervisor will write.
    Write,
}

/// The guest's own stage 1 does not permit the access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Untranslatable;

/// A guest kept a shared word busy for longer than the hypervisor tries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Contended;

/// The machine below the portable half.
pub trait Hardware: Sync {
    /// Reads bytes of a frame; what would lie beyond its end is left as it is.
    fn read(&self, at: FrameAddr, into: &mut [u8]);
    /// Writes bytes of a frame; what would lie beyond its end is dropped.
    fn write(&self, at: FrameAddr, from: &[u8]);
    /// Copies `len` bytes between frames, at most to the end of either.
    fn copy(&self, to: FrameAddr, from: FrameAddr, len: usize);
    /// Reads neighbouring words, each once; `None` where they are not aligned as words, or not all in the frame.
    fn read_words<const N: usize>(&self, at: FrameAddr) -> Option<[u64; N]> {
        let mut words = [0; N];
        let bytes = words.as_mut_bytes();
        if !at.offset().is_multiple_of(WORD) || bytes.len() > at.left() {
            return None;
        }
        self.read(at, bytes);
        Some(words)
    }
    /// Writes neighbouring words; false, and nothing is written, where they are not aligned as words, or not all in the frame.
    fn write_words<const N: usize>(&self, at: FrameAddr, from: [u64; N]) -> bool {
        let bytes = from.as_bytes();
        let fits = at.offset().is_multiple_of(WORD) && bytes.len() <= at.left();
        if fits {
            self.write(at, bytes);
        }
        fits
    }
    /// Writes two bytes; false, and nothing is written, where the second is not in the frame.
    fn write_u16(&self, at: FrameAddr, value: u16) -> bool {
        let bytes = value.to_le_bytes();
        let fits = bytes.len() <= at.left();
        if fits {
            self.write(at, &bytes);
        }
        fits
    }
    /// Stores an aligned word of the hypervisor's own, which no guest sees and one lock guards: in no order to anything else.
    fn store_u64(&self, at: FrameAddr, value: u64) {
        self.write(at, &value.to_le_bytes());
    }
    /// Fills a frame with zeroes.
    fn clear(&self, frame: Mfn);
    /// Cleans and invalidates a frame to the point of coherency, so that a guest with its caches off sees the same bytes.
    fn clean_to_memory(&self, frame: Mfn);
    /// [`Self::clear`] and [`Self::clean_to_memory`].
    fn clear_to_memory(&self, frame: Mfn) {
        self.clear(frame);
        self.clean_to_memory(frame);
    }
    /// Makes instruction fetches see what was written to a frame before it was cleaned ([`Hardware::clean_to_memory`]; Arm ARM B2.7.4.2).
    fn sync_instructions(&self, frame: Mfn);

    /// Loads an aligned word that a guest shares (acquire).
    fn load_u64(&self, at: FrameAddr) -> u64;
    /// Loads an aligned word that a guest shares (acquire).
    fn load_u32(&self, at: FrameAddr) -> u32;
    /// Sets bits of an aligned shared word (full barrier); returns the word before.
    ///
    /// # Errors
    /// [`Contended`]; the word may be unchanged.
    fn or_u64(&self, at: FrameAddr, bits: u64) -> Result<u64, Contended>;
    /// Clears bits of an aligned shared word (full barrier); returns the word before.
    ///
    /// # Errors
    /// [`Contended`]; the word may be unchanged.
    fn clear_u64(&self, at: FrameAddr, bits: u64) -> Result<u64, Contended>;
    /// Exchanges a shared byte (full barrier).
    ///
    /// # Errors
    /// [`Contended`]; the byte may be unchanged.
    fn swap_u8(&self, at: FrameAddr, value: u8) -> Result<u8, Contended>;
    /// Replaces an aligned shared word if it is `old` (full barrier); returns what was there.
    ///
    /// # Errors
    /// [`Contended`]; the word is unchanged.
    fn compare_exchange_u32(&self, at: FrameAddr, old: u32, new: u32) -> Result<u32, Contended>;

    /// Reads entry `index` (0..512) of a translation table.
    fn table_read(&self, table: Mfn, index: usize) -> u64;
    /// Shows every entry of a translation table that is not zero, with its index, until `visit` says false; whether it never did.
    fn table_entries(&self, table: Mfn, mut visit: impl FnMut(usize, u64) -> bool) -> bool {
        (0..ENTRIES).all(|index| match self.table_read(table, index) {
            0 => true,
            entry => visit(index, entry),
        })
    }
    /// Writes entry `index` (0..512) of a translation table, with one 64-bit store.
    fn table_write(&self, table: Mfn, index: usize, entry: u64);
    /// Makes table writes visible to the walkers of all CPUs; enough for invalid-to-valid changes.
    fn tables_written(&self);
    /// Forgets every translation of one page of an address space.
    fn flush_page(&self, vmid: Vmid, ipa: Ipa);
    /// Forgets every translation of an address space.
    fn flush_all(&self, vmid: Vmid);

    /// Forgets every translation of stage 1 of an address space, of all ASIDs, tables on the way included, on every CPU; the writes
    /// before it are seen by every walk after it.
    fn flush_stage1(&self, vmid: Vmid);
    /// Forgets what an address is translated to, in all ASIDs, on every CPU.
    fn flush_stage1_address(&self, vmid: Vmid, va: GuestVa);
    /// Gives the current vCPU's half another root: the value of its `TTBR`.
    fn set_base(&self, half: Half, base: u64);
    /// What the current vCPU's translation is controlled by.
    fn translation_controls(&self) -> Controls;

    /// Translates an address of the current vCPU with EL1's rights, ignoring PAN, through its stage 1 only.
    ///
    /// # Errors
    /// [`Untranslatable`] when stage 1 refuses, or its walk does.
    fn translate(&self, va: GuestVa, access: Access) -> Result<Ipa, Untranslatable>;

    /// Translates an address of the current vCPU for reading through both of its stages at once, where the machine can and the place is
    /// ordinary memory. `None` says nothing: ask [`Self::translate`] and the tables of stage 2.
    #[inline(always)]
    fn locate_for_reading(&self, _va: GuestVa) -> Option<FrameAddr> {
        None
    }

    /// How many units of work a run of a long call may do where `usual` are: always those, but for tests, which let calls restart at every unit.
    #[inline(always)]
    fn budget(&self, usual: u32) -> u32 {
        usual
    }

    /// Whole microseconds since the counter had this value: what the length of runs is measured by ([`crate::stretch`]). Tests say what they like.
    fn microseconds_since(&self, began: u64) -> u64;

    /// Ticks of the system counter.
    fn counter(&self) -> u64;
    /// Ticks per second of the counter.
    fn counter_frequency(&self) -> u64;
    /// Makes another CPU enter the hypervisor and look at its pending work.
    fn kick(&self, cpu: CpuId);
    /// Makes the CPU that executes this, which is `here`, enter the hypervisor and ask the scheduler when the counter comes to `at`, unless something else
    /// makes it earlier.
    fn look_by(&self, here: CpuId, at: u64);
    /// How many exits a CPU has taken, how many of them for a WFI or WFE, and how often it has waited with nothing to do; zero where there is no such CPU.
    fn exits(&self, _cpu: CpuId) -> (u64, u64, u64) {
        (0, 0, 0)
    }
    /// Stops every other CPU where it has done with what it looked up, until [`Self::let_go`]; false when another CPU is stopping this one.
    /// In builds with the self-check.
    fn stop_others(&self, _cpu: CpuId) -> bool {
        true
    }
    /// Lets the others go on.
    fn let_go(&self) {}
    /// Whether no CPU has registers of a vCPU that is off.
    fn is_out(&self, _vcpu: VcpuIndex) -> bool {
        true
    }
    /// Gives a vCPU that is off and out of every CPU the registers of a CPU after reset, with this program counter and x0.
    fn reset_vcpu(&self, _vcpu: VcpuIndex, _pc: Ipa, _x0: Ipa) {}
    /// Raises a private interrupt of the vCPU that is loaded on this CPU.
    fn raise_current(&self, irq: PrivateIntid);
    /// Lets the vCPU that is loaded on this CPU take interrupts (`PSTATE.I`), as `SCHEDOP_block` does.
    fn unmask_current(&self);
    /// Writes to the machine's console, if it has room now for the text as a whole; false, and nothing is written, if not.
    fn console(&self, text: &[u8]) -> bool;
    /// Writes to the machine's console what cannot be written again, into room that is kept for that.
    fn console_last(&self, text: &[u8]);
    /// Records an event in the hypervisor's log.
    fn log(&self, event: Event);
    /// Copies what was on the console from a byte on, counted since the start modulo 2^32; from the first that is there and was not said to be read
    /// ([`Hardware::console_read`]) for `None`, or for what is not there any more. Returns the first byte's number and how many were copied.
    fn console_log(&self, _from: Option<u32>, _into: &mut [u8]) -> (u32, usize) {
        (0, 0)
    }
    /// What came before this byte is read.
    fn console_read(&self, _until: u32) {}
}
