//! What the library asks of the machine, by the fake one.
use super::{COUNTER_FREQUENCY, FakeHardware, Inner, Op};
use crate::addr::{FrameAddr, Gfn, GuestVa, Ipa, Mfn};
use crate::hardware::{Access, Contended, CpuId, Hardware, Untranslatable, Vmid};
use crate::log::Event;
use crate::pagetable::Half;
use crate::pagetable::control::Controls;
use crate::tlb::{Barrier, Maintenance};
use crate::vcpu::VcpuIndex;
use crate::vgic::PrivateIntid;

impl Hardware for FakeHardware {
    fn read(&self, at: FrameAddr, into: &mut [u8]) {
        self.record(Op::Read { at, len: into.len() }).ram.read(at, into);
    }

    fn write(&self, at: FrameAddr, from: &[u8]) {
        self.seen();
        let mut inner = self.record(Op::Write { at, len: from.len() });
        inner.caches.written(at.frame());
        inner.ram.write(at, from);
    }

    fn copy(&self, to: FrameAddr, from: FrameAddr, len: usize) {
        let mut inner = self.record(Op::Copy { to, from, len });
        let mut bytes = std::vec![0; len.min(to.left()).min(from.left())];
        inner.ram.read(from, &mut bytes);
        inner.caches.written(to.frame());
        inner.ram.write(to, &bytes);
    }

    fn clear(&self, frame: Mfn) {
        let mut inner = self.record(Op::Clear(frame));
        inner.caches.cleared(frame);
        inner.ram.clear(frame);
    }

    fn clean_to_memory(&self, frame: Mfn) {
        self.seen();
        let mut inner = self.record(Op::CleanToMemory(frame));
        inner.caches.cleaned(frame);
        inner.ram.check(frame);
        inner.ram.invalidate(frame);
        drop(inner);
        self.maintains(Vmid(0)).wait(Barrier::Everywhere);
    }

    fn sync_instructions(&self, frame: Mfn) {
        let inner = self.record(Op::SyncInstructions(frame));
        inner.caches.fetched(frame);
        inner.ram.check(frame);
        drop(inner);
        self.maintains(Vmid(0)).wait(Barrier::Everywhere);
    }

    fn load_u64(&self, at: FrameAddr) -> u64 {
        self.load(at, 8).ram.word(at)
    }

    fn load_u32(&self, at: FrameAddr) -> u32 {
        let mut inner = self.load(at, 4);
        let found = inner.ram.half(at);
        inner.looked_at(at);
        found
    }

    fn or_u64(&self, at: FrameAddr, bits: u64) -> Result<u64, Contended> {
        self.atomic(at, |ram| {
            let old = ram.word(at);
            ram.write(at, &(old | bits).to_le_bytes());
            old
        })
    }

    fn clear_u64(&self, at: FrameAddr, bits: u64) -> Result<u64, Contended> {
        self.atomic(at, |ram| {
            let old = ram.word(at);
            ram.write(at, &(old & !bits).to_le_bytes());
            old
        })
    }

    fn swap_u8(&self, at: FrameAddr, value: u8) -> Result<u8, Contended> {
        self.atomic(at, |ram| {
            let mut old = [0];
            ram.read(at, &mut old);
            ram.write(at, &[value]);
            let [old] = old;
            old
        })
    }

    fn compare_exchange_u32(&self, at: FrameAddr, old: u32, new: u32) -> Result<u32, Contended> {
        self.atomic(at, |ram| {
            let found = ram.half(at);
            if found == old {
                ram.write(at, &new.to_le_bytes());
            }
            found
        })
    }

    fn table_read(&self, table: Mfn, index: usize) -> u64 {
        self.inner().ram.entry(table, index)
    }

    /// One look at the whole table: checks of whole machines read millions of entries.
    fn table_entries(&self, table: Mfn, mut visit: impl FnMut(usize, u64) -> bool) -> bool {
        let Some(entries) = self.inner().ram.entries(table) else { return true };
        entries.iter().enumerate().all(|(index, entry)| *entry == 0 || visit(index, *entry))
    }

    fn table_write(&self, table: Mfn, index: usize, entry: u64) {
        let mut inner = self.record(Op::TableWrite { table, index, entry });
        let Inner { caches, ram, tlbs, .. } = &mut *inner;
        tlbs.writes(ram, table, index, entry, !caches.is_handed(table));
        caches.table_written(table, entry, ram.frames());
        inner.ram.set_entry(table, index, entry);
    }

    fn tables_written(&self) {
        drop(self.record(Op::TablesWritten));
        self.maintains(Vmid(0)).wait(Barrier::Stores);
    }

    fn flush_page(&self, vmid: Vmid, ipa: Ipa) {
        self.seen();
        drop(self.record(Op::FlushPage(vmid, ipa)));
        crate::tlb::forget_page(&self.maintains(vmid), ipa);
    }

    fn flush_all(&self, vmid: Vmid) {
        drop(self.record(Op::FlushAll(vmid)));
        crate::tlb::forget_all(&self.maintains(vmid));
    }

    fn flush_stage1(&self, vmid: Vmid) {
        drop(self.record(Op::FlushStage1(vmid)));
        crate::tlb::forget_stage1(&self.maintains(vmid));
    }

    fn flush_stage1_address(&self, vmid: Vmid, va: GuestVa) {
        drop(self.record(Op::FlushStage1Address(vmid, va)));
        crate::tlb::forget_address(&self.maintains(vmid), va);
    }

    fn set_base(&self, half: Half, base: u64) {
        self.record(Op::SetBase(half, base)).tlbs.set_base(half as usize, base);
    }

    fn translation_controls(&self) -> Controls {
        self.inner().controls
    }

    fn translate(&self, va: GuestVa, access: Access) -> Result<Ipa, Untranslatable> {
        let inner = self.inner();
        let page = va.get() >> 12;
        let base = match inner.pages.get(&page) {
            Some((ipa, writable)) => (access == Access::Read || *writable).then_some(*ipa),
            None if inner.identity => Gfn::new(page).map(Gfn::base),
            None => None,
        };
        base.and_then(|base| base.checked_add(va.get() & 0xFFF)).ok_or(Untranslatable)
    }

    fn budget(&self, usual: u32) -> u32 {
        self.inner().budget.unwrap_or(usual)
    }

    fn microseconds_since(&self, _began: u64) -> u64 {
        if self.inner().impatient { u64::MAX } else { 0 }
    }

    fn counter(&self) -> u64 {
        self.inner().counter
    }

    fn counter_frequency(&self) -> u64 {
        COUNTER_FREQUENCY
    }

    #[track_caller]
    fn kick(&self, cpu: CpuId) {
        let at = core::panic::Location::caller();
        // As the image's barrier: what was written before is seen by who is kicked.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        let mut inner = self.record(Op::Kick(cpu));
        inner.kicks.insert((at.file(), at.line()));
        if inner.deaf.is_none_or(|(file, line)| line != at.line() || !at.file().ends_with(file)) {
            inner.kicked |= 1 << cpu.0;
        }
    }

    #[track_caller]
    fn look_by(&self, here: CpuId, at: u64) {
        let caller = core::panic::Location::caller();
        let mut inner = self.record(Op::LookBy(here, at));
        inner.kicks.insert((caller.file(), caller.line()));
        if inner.deaf.is_none_or(|(file, line)| line != caller.line() || !caller.file().ends_with(file)) {
            let look = inner.looks.entry(here.0).or_insert(at);
            *look = at.min(*look);
        }
    }

    fn is_out(&self, vcpu: VcpuIndex) -> bool {
        !self.inner().loaded.contains(&vcpu.0)
    }

    fn raise_current(&self, irq: PrivateIntid) {
        drop(self.record(Op::Raise(irq)));
    }

    fn unmask_current(&self) {
        drop(self.record(Op::Unmask));
    }

    fn console(&self, text: &[u8]) -> bool {
        let mut inner = self.inner();
        let fits = inner.console.len().saturating_add(text.len()) <= inner.console_room.unwrap_or(usize::MAX);
        if fits {
            inner.console.extend_from_slice(text);
        }
        fits
    }

    fn console_last(&self, text: &[u8]) {
        self.inner().console.extend_from_slice(text);
    }

    fn console_log(&self, from: Option<u32>, into: &mut [u8]) -> (u32, usize) {
        let inner = self.inner();
        let first = from.map_or(0, |from| from as usize).max(inner.console_read as usize);
        let left = inner.console.get(first..).unwrap_or_default();
        let count = left.len().min(into.len());
        into.iter_mut().zip(left).for_each(|(to, byte)| *to = *byte);
        (u32::try_from(first).unwrap_or(0), count)
    }

    fn console_read(&self, until: u32) {
        self.inner().console_read = until;
    }

    fn log(&self, event: Event) {
        self.inner().events.push(event);
    }
}
