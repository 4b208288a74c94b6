//! Grants as owned values: a [`Grant`] is a page that a peer may map; a [`MappedGrant`] is a peer's page mapped here.
//!
//! 1. A granted page is given back only after its permission has ended; if the peer still uses it, ending returns the grant, and
//!    dropping the grant leaks the page: memory in use by a peer is never reused.
//! 2. Table frames occupy the lower half of the grant region, mappings of foreign pages the upper half: no RAM is covered.
//! 3. A mapped page's window slot is reused only after a successful unmapping.
#![expect(unsafe_code, reason = "places table frames and maps foreign pages")]
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;

use pv_abi::grant::{
    CopyFlags, CopyPtr, ENTRIES_PER_FRAME, GrantCopy, GrantOp, GrantStatus, MapFlags, MapGrantRef,
    UnmapGrantRef,
};
use pv_abi::layout::{GRANT_TABLE_BASE, GRANT_TABLE_SIZE};
use pv_abi::memory::{AddToPhysmap, MapSpace};
use pv_abi::{DomId, Errno, GrantHandle, GrantRef, PAGE_SIZE};

pub use crate::entry::{Access, InUse};
use crate::entry::{References, SharedEntry};
use crate::frame::Frame;
use crate::lock::Lock;
use crate::tree::Region;
use crate::{cpu, hypercall, paging};

/// Why a grant operation failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GrantError {
    /// The call was refused.
    Refused(Errno),
    /// The element was refused.
    Status(GrantStatus),
    /// No reference, or no room for a mapping, is left; or the page cannot be named by a version-1 entry.
    Exhausted,
}

impl From<Errno> for GrantError {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

struct Table {
    references: References,
    /// Frames placed, and the most there may be; 0 before the first use.
    frames: u32,
    limit: u32,
    /// Free slots of the mapping window: those given back, then those never used.
    free_slots: Vec<u32>,
    next_slot: u32,
}

static TABLE: Lock<Table> = Lock::new(Table {
    references: References::new(),
    frames: 0,
    limit: 0,
    free_slots: Vec::new(),
    next_slot: 0,
});

/// Slots in the mapping window.
const SLOTS: u32 = (GRANT_TABLE_SIZE / 2 / PAGE_SIZE as u64) as u32;
/// Most frames that fit the lower half.
const MAX_FRAMES: u32 = SLOTS;
const WINDOW: u64 = GRANT_TABLE_BASE + GRANT_TABLE_SIZE / 2;

impl Table {
    /// Asks how large the table may be and maps the region. Once.
    fn start(&mut self) -> Result<(), GrantError> {
        if self.limit == 0 {
            let size = hypercall::grant_query_size()?;
            paging::map_memory(Region { start: GRANT_TABLE_BASE, size: GRANT_TABLE_SIZE })
                .map_err(|_| GrantError::Exhausted)?;
            self.limit = size.max_nr_frames.min(MAX_FRAMES);
        }
        Ok(())
    }

    /// Places one more frame of the table.
    fn grow(&mut self) -> Result<(), GrantError> {
        self.start()?;
        if self.frames >= self.limit {
            return Err(GrantError::Exhausted);
        }
        let mut place = AddToPhysmap {
            domid: DomId::SELF,
            space: MapSpace::GrantTable.number(),
            idx: u64::from(self.frames),
            gpfn: GRANT_TABLE_BASE / PAGE_SIZE as u64 + u64::from(self.frames),
            ..Default::default()
        };
        // SAFETY: the address belongs to the grant region, where no RAM is (public/arch-arm.h), and nothing refers to it yet.
        unsafe { hypercall::add_to_physmap(&mut place) }?;
        self.frames += 1;
        self.references.grow(self.frames * ENTRIES_PER_FRAME);
        Ok(())
    }

    fn take_reference(&mut self) -> Result<GrantRef, GrantError> {
        if let Some(reference) = self.references.take() {
            return Ok(reference);
        }
        self.grow()?;
        self.references.take().ok_or(GrantError::Exhausted)
    }

    fn take_slot(&mut self) -> Result<u32, GrantError> {
        self.start()?;
        if let Some(slot) = self.free_slots.pop() {
            return Ok(slot);
        }
        if self.next_slot >= SLOTS {
            return Err(GrantError::Exhausted);
        }
        self.next_slot += 1;
        Ok(self.next_slot - 1)
    }
}

fn with_table<R>(work: impl FnOnce(&mut Table) -> R) -> R {
    cpu::without_interrupts(|| work(&mut TABLE.lock()))
}

/// The shared entry of a reference that `take_reference` gave out.
fn shared_entry(reference: GrantRef) -> &'static SharedEntry {
    let offset = reference.0 as usize * size_of::<SharedEntry>();
    let entry = core::ptr::with_exposed_provenance::<SharedEntry>(GRANT_TABLE_BASE as usize + offset);
    // SAFETY: the reference lies in a placed and mapped frame, which stays for ever; entries are atomics.
    unsafe { &*entry }
}

/// A page that a peer may use.
pub struct Grant {
    frame: ManuallyDrop<Box<Frame>>,
    reference: GrantRef,
    access: Access,
}

impl Grant {
    /// Lets `peer` use `frame`.
    ///
    /// # Errors
    /// The page comes back with the reason.
    pub fn new(frame: Box<Frame>, peer: DomId, access: Access) -> Result<Self, (GrantError, Box<Frame>)> {
        let Ok(gfn) = u32::try_from(core::ptr::from_ref(&*frame).expose_provenance() / PAGE_SIZE) else {
            return Err((GrantError::Exhausted, frame));
        };
        match with_table(Table::take_reference) {
            Ok(reference) => {
                shared_entry(reference).permit(peer, gfn, access);
                Ok(Self { frame: ManuallyDrop::new(frame), reference, access })
            }
            Err(error) => Err((error, frame)),
        }
    }

    /// The reference to tell the peer.
    pub const fn reference(&self) -> GrantRef {
        self.reference
    }

    /// The page.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// The flags in its entry (`GTF_*`), where the hypervisor says how the peer uses the page.
    pub fn flags(&self) -> u16 {
        shared_entry(self.reference).flags()
    }

    /// Ends the permission and gives the page back.
    ///
    /// # Errors
    /// The grant itself, while the peer uses the page.
    pub fn end(self) -> Result<Box<Frame>, Self> {
        if shared_entry(self.reference).end(self.access).is_err() {
            return Err(self);
        }
        with_table(|table| table.references.give_back(self.reference));
        let mut grant = ManuallyDrop::new(self);
        // SAFETY: the grant is not dropped and its frame not used again: this takes it out once.
        Ok(unsafe { ManuallyDrop::take(&mut grant.frame) })
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if shared_entry(self.reference).end(self.access).is_ok() {
            with_table(|table| table.references.give_back(self.reference));
            // SAFETY: the permission has ended and the value is going away: the frame is dropped once.
            unsafe { ManuallyDrop::drop(&mut self.frame) }
        }
        // Else the page and its reference are leaked (invariant 1).
    }
}

/// A peer's page, mapped here until dropped.
pub struct MappedGrant {
    slot: u32,
    handle: GrantHandle,
    access: Access,
}

impl MappedGrant {
    /// Maps the page behind `peer`'s `reference`.
    ///
    /// # Errors
    /// [`GrantError::Status`] with [`GrantStatus::BadGntref`] while the peer has not granted it.
    pub fn map(peer: DomId, reference: GrantRef, access: Access) -> Result<Self, GrantError> {
        // SAFETY: `map_with` names a free slot of the window, to which nothing refers.
        Self::map_with(peer, reference, access, |element| unsafe {
            hypercall::grant(GrantOp::MapGrantRef, element)
        })
    }

    /// [`MappedGrant::map`] with the call itself left to `call`.
    pub(crate) fn map_with(
        peer: DomId,
        reference: GrantRef,
        access: Access,
        call: impl FnOnce(&mut MapGrantRef) -> Result<u64, Errno>,
    ) -> Result<Self, GrantError> {
        let slot = with_table(Table::take_slot)?;
        let flags = match access {
            Access::ReadOnly => MapFlags::HOST_MAP.union(MapFlags::READONLY),
            Access::ReadWrite => MapFlags::HOST_MAP,
        };
        let mut element = MapGrantRef {
            host_addr: address(slot),
            flags: flags.bits(),
            gref: reference,
            dom: peer,
            ..Default::default()
        };
        let outcome = call(&mut element).map_err(GrantError::Refused).and_then(|_| status(element.status));
        match outcome {
            Ok(()) => Ok(Self { slot, handle: element.handle, access }),
            Err(error) => {
                with_table(|table| table.free_slots.push(slot));
                Err(error)
            }
        }
    }

    /// The page, for writing too; `None` if it was mapped for reading only.
    pub fn frame(&self) -> Option<&Frame> {
        match self.access {
            Access::ReadWrite => Some(self.any_frame()),
            Access::ReadOnly => None,
        }
    }

    /// Copies the page's beginning into `bytes`; returns how many bytes were copied.
    pub fn read(&self, bytes: &mut [u8]) -> usize {
        self.any_frame().read(bytes)
    }

    /// Where the page is mapped. It is not there any more when `self` is gone.
    pub const fn address(&self) -> usize {
        address(self.slot) as usize
    }

    fn any_frame(&self) -> &Frame {
        // SAFETY: the page is mapped at this address while `self` lives, and consists of atomics.
        unsafe { &*core::ptr::with_exposed_provenance::<Frame>(address(self.slot) as usize) }
    }

    /// Unmaps the page.
    ///
    /// # Errors
    /// The hypervisor's reason; the mapping and its slot are then lost.
    pub fn unmap(self) -> Result<(), GrantError> {
        // SAFETY: nothing refers to the page any more: references from `any_frame` borrow `self`.
        self.unmap_with(|element| unsafe { hypercall::grant(GrantOp::UnmapGrantRef, element) })
    }

    /// [`MappedGrant::unmap`] with the call itself left to `call`.
    pub(crate) fn unmap_with(
        self,
        call: impl FnOnce(&mut UnmapGrantRef) -> Result<u64, Errno>,
    ) -> Result<(), GrantError> {
        ManuallyDrop::new(self).release(call)
    }

    fn release(&self, call: impl FnOnce(&mut UnmapGrantRef) -> Result<u64, Errno>) -> Result<(), GrantError> {
        let mut element =
            UnmapGrantRef { host_addr: address(self.slot), handle: self.handle, ..Default::default() };
        call(&mut element)?;
        status(element.status)?;
        with_table(|table| table.free_slots.push(self.slot));
        Ok(())
    }
}

impl Drop for MappedGrant {
    fn drop(&mut self) {
        // On a refusal the slot is not reused (invariant 3); there is nobody to tell.
        // SAFETY: nothing refers to the page any more: references from `any_frame` borrow `self`.
        let _ = self.release(|element| unsafe { hypercall::grant(GrantOp::UnmapGrantRef, element) });
    }
}

/// Copies `length` bytes from the beginning of the page behind `peer`'s `reference` to the beginning of `to`, without mapping it.
///
/// # Errors
/// [`GrantError`]: those of `grant_table_op.copy` in docs/abi.md.
pub fn copy(peer: DomId, reference: GrantRef, to: &Frame, length: u16) -> Result<(), GrantError> {
    // SAFETY: the destination is a page of atomics; the hypervisor refuses lengths beyond a page.
    copy_with(peer, reference, to, length, |element| unsafe { hypercall::grant(GrantOp::Copy, element) })
}

/// [`copy`] with the call itself left to `call`.
pub(crate) fn copy_with(
    peer: DomId,
    reference: GrantRef,
    to: &Frame,
    length: u16,
    call: impl FnOnce(&mut GrantCopy) -> Result<u64, Errno>,
) -> Result<(), GrantError> {
    let gfn = core::ptr::from_ref(to).expose_provenance() / PAGE_SIZE;
    let mut element = GrantCopy {
        source: CopyPtr { ref_or_gfn: u64::from(reference.0), domid: peer, ..Default::default() },
        dest: CopyPtr { ref_or_gfn: gfn as u64, domid: DomId::SELF, ..Default::default() },
        len: length,
        flags: CopyFlags::SOURCE_GREF.bits(),
        ..Default::default()
    };
    call(&mut element)?;
    status(element.status)
}

const fn address(slot: u32) -> u64 {
    WINDOW + slot as u64 * PAGE_SIZE as u64
}

fn status(value: i16) -> Result<(), GrantError> {
    match GrantStatus::from_value(value) {
        GrantStatus::Okay => Ok(()),
        other => Err(GrantError::Status(other)),
    }
}
