//! Steps of memory: what a domain gets and gives, and what a guest stores.
use hypervisor::addr::{Ipa, Mfn};
use hypervisor::frame::Role;
use pv_abi::control::Domctl;
use pv_abi::memory::{AddToPhysmap, MemoryExchange, RemoveFromPhysmap, Reservation};
use pv_abi::{DomId, Errno, GuestHandle};
use zerocopy::{FromZeros, IntoBytes};

use super::numbers::Numbers;
use super::{LIST, Run, SPARE, address, code};
use crate::spec::{GFN_LIMIT, Place, SELF};
use crate::{ARG, number};

impl Run {
    pub(super) fn memory_step(
        &mut self,
        who: (u16, u32),
        kind: u8,
        n: &mut Numbers<'_>,
    ) -> Result<(), String> {
        let (id, vcpu) = who;
        match kind {
            0xB8..0xC4 => {
                let (first, mode) = (n.gfn(), n.next());
                let (order, count) = match mode {
                    0..0xC0 => (0, 1 + u64::from(mode % 3)),
                    0xC0..0xE0 => (u32::from(mode % 3), 1),
                    // More than one run does.
                    _ => (0, 14),
                };
                self.populate(who, first, order, count)
            }
            0xC4..0xD0 => {
                let (gfn, spare) = (n.gfn(), n.next());
                let first = if spare < 0x60 { SPARE + u64::from(spare) } else { gfn };
                self.decrease(who, first, 1 + u64::from(n.below(16)) / 14 * 13)
            }
            0xD0..0xD2 => self.increase(who, 1 + u64::from(n.below(3))),
            0xD2..0xDC => {
                let (dom, space) = (n.one(&[SELF, SELF, SELF, id, 1, 2, 3]), n.one(&[0, 1, 1, 1, 2, 4]));
                let (idx, gfn) = (n.one(&[0, 0, 0, 1, 2, 3, 4, u64::MAX]), n.gfn());
                self.tell(|| {
                    format!("d{id}v{vcpu} add_to_physmap of {dom}, space {space}, {idx} at {gfn:#x}")
                });
                let wanted = code(&self.spec.add(id, dom, space, idx, gfn));
                let arg = AddToPhysmap { domid: DomId(dom), size: 1, space, idx, gpfn: gfn };
                let (result, _) = self.with(who, number::MEMORY_OP, 7, arg)?;
                if result == wanted {
                    Ok(())
                } else {
                    Err(format!("add_to_physmap: {result}, specified {wanted}"))
                }
            }
            0xDC..0xE0 => {
                let (dom, gfn) = (n.one(&[SELF, SELF, SELF, id, 1, 2, 3]), n.gfn());
                self.tell(|| format!("d{id}v{vcpu} remove_from_physmap of {dom}, {gfn:#x}"));
                let wanted = code(&self.spec.remove(id, dom, gfn));
                let arg = RemoveFromPhysmap { domid: DomId(dom), pad: [0; 3], gpfn: gfn };
                let (result, _) = self.with(who, number::MEMORY_OP, 15, arg)?;
                if result == wanted { Ok(()) } else { Err(format!("remove: {result}, specified {wanted}")) }
            }
            0xE0 => self.totals(who, n),
            0xE1 => self.not_a_guests(who, n),
            _ => self.store(who.0, n),
        }
    }

    fn reservation(
        &mut self,
        (id, vcpu): (u16, u32),
        cmd: u64,
        gfns: impl Iterator<Item = u64>,
        order: u32,
        count: u64,
    ) -> Result<u64, String> {
        for (index, gfn) in (0..).zip(gfns) {
            self.guest(id, vcpu).write(LIST + index * 8, &gfn.to_le_bytes());
        }
        let arg = Reservation {
            extent_start: GuestHandle(LIST),
            nr_extents: count,
            extent_order: order,
            mem_flags: 0,
            domid: DomId::SELF,
            pad: [0; 3],
        };
        let (result, _) = self.with((id, vcpu), number::MEMORY_OP, cmd, arg)?;
        u64::try_from(result).map_err(|_| format!("reservation: {result}"))
    }

    fn populate(&mut self, who: (u16, u32), first: u64, order: u32, count: u64) -> Result<(), String> {
        let (id, vcpu) = who;
        self.tell(|| format!("d{id}v{vcpu} populate {count} of order {order} at {first:#x}"));
        let size = 1 << order;
        let gfns = (0..count).map(|index| first.wrapping_add(index * size));
        let result = self.reservation(who, 6, gfns, order, count)?;
        let (mut done, mut pages, mut undone) = (0, Vec::new(), Vec::new());
        'extents: for extent in 0..count {
            if !self.spec.may_have(id, size + pages.len() as u64) {
                break;
            }
            for page in 0..size {
                let gfn = first.wrapping_add(extent * size + page);
                if gfn >= GFN_LIMIT || self.spec.is_held(id, gfn) {
                    undone = pages.split_off(pages.len() - page as usize);
                    break 'extents;
                }
                pages.push(gfn);
            }
            done += 1;
        }
        self.spec.empty(id, undone);
        for gfn in pages {
            let mapping = self.guest(id, vcpu).mapping(gfn).ok_or("populate: nothing is there")?;
            self.spec.gain(id, mapping.mfn.get(), Some(gfn))?;
            self.holds(mapping.mfn.get())?;
        }
        if result == done { Ok(()) } else { Err(format!("populate: {result}, specified {done}")) }
    }

    fn decrease(&mut self, who: (u16, u32), first: u64, count: u64) -> Result<(), String> {
        let (id, vcpu) = who;
        self.tell(|| format!("d{id}v{vcpu} decrease {count} at {first:#x}"));
        let gfns = (0..count).map(|index| first.wrapping_add(index));
        let result = self.reservation(who, 1, gfns.clone(), 0, count)?;
        let mut done = 0;
        for gfn in gfns {
            if !self.spec.lose(id, gfn) {
                break;
            }
            done += 1;
        }
        if result == done { Ok(()) } else { Err(format!("decrease: {result}, specified {done}")) }
    }

    /// RAM in no place: the machine's table alone tells which.
    fn increase(&mut self, who: (u16, u32), count: u64) -> Result<(), String> {
        let (id, vcpu) = who;
        self.tell(|| format!("d{id}v{vcpu} increase {count}"));
        let result = self.reservation(who, 0, std::iter::empty(), 0, count)?;
        let done = (1..=count).take_while(|count| self.spec.may_have(id, *count)).count() as u64;
        if done != 0 {
            let table = &self.world.machine.frames.table;
            let is_new = |frame: &u64| {
                let state = Mfn::new(*frame).and_then(|mfn| table.state(mfn));
                state.is_some_and(|state| state.owner == DomId(id) && state.role == Role::Data)
                    && !self.spec.of(id).ram.contains(frame)
            };
            let new: Vec<u64> = (table.base().get()..table.end()).filter(is_new).collect();
            for frame in new {
                self.spec.gain(id, frame, None)?;
            }
        }
        if result == done { Ok(()) } else { Err(format!("increase: {result}, specified {done}")) }
    }

    fn totals(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let (cmd, dom) = (n.one(&[3, 4, 14]), n.one(&[SELF, SELF, id, 1, 2, 3]));
        self.tell(|| format!("d{id}v{vcpu} memory_op {cmd} about {dom}"));
        let domain = self.spec.of(id);
        let wanted = match (dom == SELF || dom == id, cmd) {
            (false, _) if self.spec.domains.contains_key(&dom) => Errno::Eperm.to_result(),
            (false, _) => Errno::Esrch.to_result(),
            (true, 3) => domain.ram.len() as i64,
            (true, 4) => domain.quota.ram.cast_signed(),
            (true, _) => domain.highest.cast_signed(),
        };
        let (result, _) = self.with(who, number::MEMORY_OP, cmd, DomId(dom))?;
        if result == wanted { Ok(()) } else { Err(format!("memory_op {cmd}: {result}, specified {wanted}")) }
    }

    /// What a toolstack asks for, and what ARM has not: refused, and nothing is changed.
    fn not_a_guests(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let (kind, dom, gfn) = (n.below(3), n.dom(), n.gfn());
        // Behind the largest structure.
        let list = ARG + 256;
        let of = |nr_extents: u64| Reservation {
            extent_start: GuestHandle(list),
            nr_extents,
            extent_order: 0,
            mem_flags: 0,
            domid: DomId(dom),
            pad: [0; 3],
        };
        let (what, wanted, (result, ())) = match kind {
            0 => {
                let done = u64::from(n.below(3));
                let wanted = self.spec.exchange(id, dom, gfn, done);
                self.guest(id, vcpu).write(list, &gfn.to_le_bytes());
                let arg = MemoryExchange { input: of(1), output: of(1), nr_exchanged: done };
                let (result, arg) = self.with(who, number::MEMORY_OP, 11, arg)?;
                if arg.nr_exchanged != done {
                    return Err(format!("exchange: {} done, specified {done}", arg.nr_exchanged));
                }
                ("exchange", wanted, (result, ()))
            }
            1 => {
                let arg = Reservation { extent_start: GuestHandle(0), ..of(1 + u64::from(n.below(3))) };
                let (result, _) = self.with(who, number::MEMORY_OP, 24, arg)?;
                ("claim_pages", self.spec.claim_pages(dom), (result, ()))
            }
            _ => {
                // Destroy, pause, unpause, tell.
                let (cmd, version) = (2 + u32::from(n.below(4)), n.one(&[0x17, 0x17, 0x17, 0x16]));
                let arg =
                    Domctl { cmd, interface_version: version, domain: DomId(dom), ..Domctl::new_zeroed() };
                self.guest(id, vcpu).write(ARG, arg.as_bytes());
                let result = self.call(id, vcpu, number::DOMCTL, [ARG, 0, 0, 0, 0])?;
                ("domctl", self.spec.domctl(version, dom), (result, ()))
            }
        };
        self.tell(|| format!("d{id}v{vcpu} {what} about {dom}, {gfn:#x}"));
        let wanted = code(&wanted);
        if result == wanted { Ok(()) } else { Err(format!("{what}: {result}, specified {wanted}")) }
    }

    /// A guest stores a word where it sees something, or faults.
    fn store(&mut self, id: u16, n: &mut Numbers<'_>) -> Result<(), String> {
        let (gfn, offset) = (n.gfn(), usize::from(n.next()) * 16);
        let value = u64::from_le_bytes(std::array::from_fn(|_| n.next() | 1));
        self.store_word(id, gfn, offset, value)
    }

    /// A guest stores a word, where that is not the hypervisor's too.
    pub(in crate::drive) fn store_word(
        &mut self,
        id: u16,
        gfn: u64,
        offset: usize,
        value: u64,
    ) -> Result<(), String> {
        let place = self.spec.of(id).places.get(&gfn).copied();
        if let Some(Place::Ram(frame) | Place::Grant { frame, .. }) = place
            && self.spec.domains.values().any(|domain| {
                domain.vcpus.iter().flat_map(crate::spec::Vcpu::areas).any(|area| area == frame)
            })
        {
            return Ok(());
        }
        if matches!(place, Some(Place::Shared(_))) {
            return Ok(());
        }
        self.tell(|| format!("d{id} stores {value:#x} at {gfn:#x}000 + {offset:#x}"));
        let wanted = self.spec.write(id, gfn, offset, value);
        let Some(ipa) = Ipa::new(address(gfn) + offset as u64) else { return Ok(()) };
        let domain = self.world.domain(id);
        let bytes = value.to_le_bytes();
        let stored = self.world.machine.hw.guest_write(domain.vmid, domain.stage2_root, ipa, &bytes);
        if stored.is_ok() == wanted { Ok(()) } else { Err(format!("a store: {stored:?}, allowed: {wanted}")) }
    }
}
