//! Paravirtual page tables: the calls that make pages tables and text, change entries, and take roots.
//!
//! 1. A page that is a table or text is written by nobody: what is here as a `Table` is changed by calls only from its pin to its unpin.
//! 2. [`is_on`] is set once, by the first vCPU, before there is a second.
#![expect(unsafe_code, reason = "hypercalls that change what is behind addresses")]
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pv_abi::paging::{ExtOp, MmuExtOp, MmuUpdate, flush};
use pv_abi::version::Features;
use pv_abi::{DomId, Errno, Hypercall, PAGE_SHIFT};

use crate::{hypercall, record};

static ON: AtomicBool = AtomicBool::new(false);

/// Whether this domain's page tables are checked by the hypervisor.
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

fn call(call: Hypercall, args: [u64; 5]) -> i64 {
    CALLS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: what is here makes calls by their meaning; what they change is the caller's promise.
    unsafe { hypercall::raw(u64::from(call.number()), args) }
}

static CALLS: AtomicU64 = AtomicU64::new(0);

/// How many hypercalls have been made from here.
pub fn calls() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// Asks the hypervisor whether they are.
pub(crate) fn ask() -> bool {
    let features = hypercall::features(0).map(Features::from_bits_retain);
    let on = features.is_ok_and(|features| !features.contains(Features::WRITABLE_PAGE_TABLES));
    ON.store(on, Ordering::Relaxed);
    on
}

/// What a page is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Page {
    /// A table of a level, 0 to 3.
    Table(usize),
    /// What EL1 executes.
    KernelText,
    /// What EL0 executes.
    UserText,
}

/// An operation of `mmuext_op`.
pub const fn op(op: ExtOp, arg1: u64, arg2: u64) -> MmuExtOp {
    MmuExtOp { cmd: op.number(), pad: 0, arg1, arg2 }
}

/// Makes operations, one after the other; the first that is refused ends it.
///
/// # Errors
/// That of the first operation that is refused (`mmuext_op` in docs/abi.md, a row each), and how many were done before.
///
/// # Safety
/// What they change must be the caller's to change.
pub unsafe fn extended(operations: &[MmuExtOp]) -> Result<(), (Errno, u32)> {
    // SAFETY: the caller's promise.
    let result =
        unsafe { batch(Hypercall::MmuExtOp, operations.as_ptr().expose_provenance(), operations.len()) };
    let done = result.map_or_else(|(_, done)| done as usize, |()| operations.len());
    for (index, op) in operations.iter().enumerate().take(done.saturating_add(1)) {
        let answer = if index < done { Ok(()) } else { result.map_err(|(errno, _)| errno) };
        record::sub_call(u64::from(Hypercall::MmuExtOp.number()), op.cmd, answer);
    }
    result
}

/// Writes entries of tables, one after the other; the first that is refused ends it.
///
/// # Errors
/// That of the first entry that is refused, of those of `mmu_update.mmu_update` in docs/abi.md, and how many were done before.
///
/// # Safety
/// What is mapped by them must be the caller's to map.
pub unsafe fn update(updates: &[MmuUpdate]) -> Result<(), (Errno, u32)> {
    // SAFETY: the caller's promise.
    unsafe { batch(Hypercall::MmuUpdate, updates.as_ptr().expose_provenance(), updates.len()) }
}

/// # Safety
/// The caller's, for each request.
unsafe fn batch(number: Hypercall, at: usize, count: usize) -> Result<(), (Errno, u32)> {
    let mut done = 0_u32;
    let done_at = (&raw mut done).expose_provenance() as u64;
    let args = [at as u64, count as u64, done_at, u64::from(DomId::SELF.0), 0];
    let result = Errno::check(call(number, args));
    // SAFETY: the hypervisor wrote it behind the compiler's back.
    let done = unsafe { (&raw const done).read_volatile() };
    result.map(drop).map_err(|errno| (errno, done))
}

/// Changes the mapping of one page of this address space.
///
/// # Errors
/// Those of `update_va_mapping.update_va_mapping` in docs/abi.md.
///
/// # Safety
/// What is mapped must be the caller's to map, and nobody may rely on what was.
pub unsafe fn update_va(address: u64, entry: u64) -> Result<(), Errno> {
    let args = [address, entry, flush::NONE, 0, 0];
    Errno::check(call(Hypercall::UpdateVaMapping, args)).map(drop)
}

/// The call that makes a page what it is to be.
pub const fn pin_op(page: Page, address: u64) -> MmuExtOp {
    let cmd = match page {
        Page::Table(0) => ExtOp::PinLevel0,
        Page::Table(1) => ExtOp::PinLevel1,
        Page::Table(2) => ExtOp::PinLevel2,
        Page::Table(_) => ExtOp::PinLevel3,
        Page::KernelText => ExtOp::PinKernelText,
        Page::UserText => ExtOp::PinUserText,
    };
    op(cmd, address >> PAGE_SHIFT, 0)
}

/// Makes a page, at its guest physical address, a table or text.
///
/// # Errors
/// Those of `mmuext_op.pin_l1_table` to `mmuext_op.pin_l4_table`, `mmuext_op.pin_kernel_text` and `mmuext_op.pin_user_text` in
/// docs/abi.md; the page then stays data.
///
/// Whoever writes to it from here on faults.
pub fn pin(page: Page, address: u64) -> Result<(), Errno> {
    // SAFETY: it changes no mapping and no byte.
    unsafe { extended(&[pin_op(page, address)]) }.map_err(|(errno, _)| errno)
}

/// Makes a page data again.
///
/// # Errors
/// Those of `mmuext_op.unpin_table` in docs/abi.md; the page then stays what it is.
pub fn unpin(address: u64) -> Result<(), Errno> {
    // SAFETY: a page that is in use is refused.
    unsafe { extended(&[op(ExtOp::Unpin, address >> PAGE_SHIFT, 0)]) }.map_err(|(errno, _)| errno)
}
