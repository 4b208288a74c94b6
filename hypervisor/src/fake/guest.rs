//! What a guest of the fake machine reads and writes by itself, through stage 2 and what the TLB remembers of it.
use super::{FakeHardware, GuestAccess, GuestFault, Stage2Fault};
use crate::addr::{FrameAddr, Ipa, Mfn};
use crate::hardware::{Access, Vmid};

impl FakeHardware {
    /// Lets the current vCPU's stage 1 map the page of `va` to that of `ipa`.
    pub fn map_va(&self, va: u64, ipa: Ipa, writable: bool) {
        self.inner().pages.insert(va >> 12, (ipa.frame().base(), writable));
    }

    /// Takes a page out of the current vCPU's stage 1.
    pub fn unmap_va(&self, va: u64) {
        self.inner().pages.remove(&(va >> 12));
    }

    /// Whether stage 1 maps every page that [`Self::map_va`] does not name to the same number (as a guest with its MMU off).
    pub fn set_identity(&self, identity: bool) {
        self.inner().identity = identity;
    }

    /// A guest of this address space reads bytes, at most to the end of the page, through what the TLB remembers.
    ///
    /// # Errors
    /// The fault that the guest would take.
    pub fn guest_read(&self, vmid: Vmid, root: Mfn, ipa: Ipa, into: &mut [u8]) -> Result<(), Stage2Fault> {
        let inner = &mut *self.inner();
        let at = inner.tlbs.access(&inner.ram, vmid, root, ipa, Access::Read)?;
        inner.ram.read(at, into);
        Ok(())
    }

    /// A guest of this address space writes bytes, at most to the end of the page, through what the TLB remembers.
    ///
    /// # Errors
    /// The fault that the guest would take.
    pub fn guest_write(&self, vmid: Vmid, root: Mfn, ipa: Ipa, from: &[u8]) -> Result<(), Stage2Fault> {
        let inner = &mut *self.inner();
        let at = inner.tlbs.access(&inner.ram, vmid, root, ipa, Access::Write)?;
        inner.ram.write(at, from);
        Ok(())
    }

    /// [`Self::guest_write`] by an alias that bypasses the caches: memory has the bytes, and EL2 sees what was there before until the frame is
    /// cleaned and invalidated (or written by somebody else, which stands for an eviction).
    ///
    /// # Errors
    /// The fault that the guest would take.
    pub fn guest_write_uncached(
        &self,
        vmid: Vmid,
        root: Mfn,
        ipa: Ipa,
        from: &[u8],
    ) -> Result<(), Stage2Fault> {
        let inner = &mut *self.inner();
        let at = inner.tlbs.access(&inner.ram, vmid, root, ipa, Access::Write)?;
        inner.ram.write_behind(at, from);
        Ok(())
    }

    /// A guest accesses an address of its own on the current CPU, through both stages and what the TLB remembers of either. By `base`, a `TTBR`; the half that
    /// the address is in is bits 63:48 of it.
    ///
    /// # Errors
    /// The stage whose fault the guest would take.
    pub fn guest_access(
        &self,
        vmid: Vmid,
        root: Mfn,
        base: u64,
        va: u64,
        access: GuestAccess,
    ) -> Result<FrameAddr, GuestFault> {
        let inner = &mut *self.inner();
        inner.tlbs.access_both(&inner.ram, vmid, root, base, va, access)
    }
}
