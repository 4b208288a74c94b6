//! Steps of grant tables.
use hypervisor::addr::{FrameAddr, Mfn};
use hypervisor::hardware::Hardware;
use pv_abi::grant::{
    CopyPtr, GetVersion, GrantCopy, GrantEntry, GrantOp, GrantStatus, MapGrantRef, QuerySize, SetupTable,
    SwapGrantRef, UnmapGrantRef,
};
use pv_abi::{DomId, GrantHandle, GrantRef, GuestHandle};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::numbers::Numbers;
use super::{FIELD, LIST, RAM_POOL, Run, address, code};
use crate::spec::{Entry, InfoAt, MapArgs, SELF, Side};
use crate::{ARG, number};

impl Run {
    pub(super) fn grant_step(
        &mut self,
        who: (u16, u32),
        kind: u8,
        n: &mut Numbers<'_>,
    ) -> Result<(), String> {
        match kind {
            0x60..0x70 => {
                self.offer(who.0, n);
                Ok(())
            }
            0x70..0x86 => {
                let args = MapArgs {
                    gref: n.gref(),
                    dom: n.one(&[1, 2, 1, 2, 1, 2, 1, 3]),
                    address: address(n.gfn()) | u64::from(n.below(4) / 3 * 0x10),
                    flags: n.one(&[2, 6, 2, 6, 2, 6, 2, 6, 2, 6, 0, 1, 3, 10, 18, 34]),
                };
                self.map(who, &[args])
            }
            0x86 => self.hoard(who, n),
            0x87 | 0x88 => {
                // Many, over places of their own: batches that restart.
                let (gref, dom, first) = (n.gref(), n.one(&[1, 2]), u64::from(n.next()) * 4);
                let flags = n.one(&[2, 6]);
                let count = 1 + u64::from(n.below(20));
                let element = |index| MapArgs { address: address(FIELD + first + index), flags, gref, dom };
                self.map(who, &(0..count).map(element).collect::<Vec<_>>())
            }
            0x89..0x99 => {
                let (handle, gfn, mode) = (n.handle(), n.gfn(), n.next());
                self.unmap(who, &[(handle, self.place_of(who.0, handle, gfn, mode))])
            }
            0x99..0x9C => {
                let (first, gfn) = (u32::from(n.next()), n.gfn());
                let count = 1 + u32::from(n.below(20));
                let element = |handle| (handle, self.place_of(who.0, handle, gfn, 1));
                self.unmap(who, &(first..first + count).map(element).collect::<Vec<_>>())
            }
            0x9C..0xAA => self.copy_step(who, n),
            0xAA..0xB0 => {
                let (a, b) = (n.gref(), n.gref());
                let (id, vcpu) = who;
                self.tell(|| format!("d{id}v{vcpu} swap {a} and {b}"));
                let wanted = status(&self.spec.swap(id, a, b));
                let arg = SwapGrantRef { ref_a: GrantRef(a), ref_b: GrantRef(b), status: 1, pad: 0 };
                let out = self.grant(who, GrantOp::SwapGrantRef, arg)?;
                status_is("swap", out.status, wanted)
            }
            _ => self.table_step(who, kind, n),
        }
    }

    /// Both guests work together on all the handles that there are, and all the uses of a reference.
    fn hoard(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (dom, page, gref) = (n.one(&[1, 2]), n.below(12), 8 + u32::from(n.below(7)));
        let (first, flags) = (u64::from(n.next()) * 4, n.one(&[2, 6]));
        let Some(frame) = self.world.domain(dom).state.lock().grants.frame(0) else { return Ok(()) };
        let mut entry = self.spec.of(dom).entries.get(&gref).copied().unwrap_or_default();
        if !self.spec.of(dom).uses.contains_key(&gref) {
            let gfn = u32::try_from(RAM_POOL[usize::from(page)]).expect("small");
            entry = Entry { flags: 1, domid: who.0, frame: gfn };
        }
        self.tell(|| format!("d{dom} offers by {gref}: {entry:x?}"));
        self.spec.of_mut(dom).entries.insert(gref, entry);
        let written = GrantEntry { flags: entry.flags, domid: DomId(entry.domid), frame: entry.frame };
        let at = FrameAddr::new(frame, gref as usize * 8).expect("in the frame");
        self.world.machine.hw.write(at, written.as_bytes());
        let element = |index| MapArgs { address: address(FIELD + first + index), flags, gref, dom };
        self.map(who, &(0..60).map(element).collect::<Vec<_>>())
    }

    fn grant<T: IntoBytes + FromBytes + Immutable + Copy>(
        &mut self,
        who: (u16, u32),
        op: GrantOp,
        arg: T,
    ) -> Result<T, String> {
        match self.with(who, number::GRANT_TABLE_OP, u64::from(op.number()), arg)? {
            (0, arg) => Ok(arg),
            (result, _) => Err(format!("{op:?}: {result}, specified 0")),
        }
    }

    /// Where a handle's mapping is, now and then not.
    fn place_of(&self, id: u16, handle: u32, else_at: u64, mode: u8) -> u64 {
        match (mode, self.spec.of(id).held.get(&handle)) {
            (0..8, _) => 0,
            (8..0x18, _) | (_, None) => address(else_at),
            (_, Some(held)) => address(held.gfn),
        }
    }

    /// The guest writes an entry of its table.
    fn offer(&mut self, id: u16, n: &mut Numbers<'_>) {
        let (gref, gfn) = (n.gref(), n.ram());
        let to = n.one(&[1, 2, 1, 2, 1, 2, 3, 1]);
        let mut flags = n.one(&[1, 1, 1, 1, 5, 5, 1, 1, 5, 0, 2, 3, 0x101, 9, 0x19, 1]);
        let Some(frame) = self.world.domain(id).state.lock().grants.frame(gref / 512) else { return };
        if n.below(4) != 0
            && let Some(entry) = self.spec.of(id).entries.get(&gref)
        {
            // A guest that behaves leaves the marks alone.
            flags |= entry.flags & 0x18;
        }
        self.tell(|| format!("d{id} offers {gfn:#x} to {to} by {gref}, flags {flags:#x}"));
        let entry = Entry { flags, domid: to, frame: u32::try_from(gfn).expect("small") };
        self.spec.of_mut(id).entries.insert(gref, entry);
        let entry = GrantEntry { flags, domid: DomId(to), frame: entry.frame };
        let at = FrameAddr::new(frame, gref as usize % 512 * 8).expect("in the frame");
        self.world.machine.hw.write(at, entry.as_bytes());
    }

    fn map(&mut self, who: (u16, u32), elements: &[MapArgs]) -> Result<(), String> {
        let (id, vcpu) = who;
        self.tell(|| format!("d{id}v{vcpu} map {elements:x?}"));
        let element = |args: &MapArgs| MapGrantRef {
            host_addr: args.address,
            flags: args.flags,
            gref: GrantRef(args.gref),
            dom: DomId(args.dom),
            status: 1,
            ..MapGrantRef::default()
        };
        let ops: Vec<_> = elements.iter().map(element).collect();
        let ops = self.batch(who, GrantOp::MapGrantRef, &ops)?;
        for (args, op) in elements.iter().zip(ops) {
            let wanted = self.spec.map(id, *args);
            status_is("map", op.status, status(&wanted))?;
            if let Ok(held) = wanted {
                self.spec.take_handle(id, op.handle.0, held)?;
                let frame = self.spec.of(held.granter).uses[&held.gref].frame;
                if op.dev_bus_addr != address(frame) {
                    return Err(format!("map: address {:#x}, specified {frame:#x}000", op.dev_bus_addr));
                }
            }
        }
        Ok(())
    }

    fn unmap(&mut self, who: (u16, u32), elements: &[(u32, u64)]) -> Result<(), String> {
        let (id, vcpu) = who;
        self.tell(|| format!("d{id}v{vcpu} unmap {elements:x?}"));
        let element = |(handle, host_addr): &(u32, u64)| UnmapGrantRef {
            host_addr: *host_addr,
            handle: GrantHandle(*handle),
            status: 1,
            ..UnmapGrantRef::default()
        };
        let ops: Vec<_> = elements.iter().map(element).collect();
        let ops = self.batch(who, GrantOp::UnmapGrantRef, &ops)?;
        for ((handle, address), op) in elements.iter().zip(ops) {
            let wanted = self.spec.unmap(id, *address, *handle);
            status_is("unmap", op.status, status(&wanted))?;
        }
        Ok(())
    }

    fn batch<T: IntoBytes + FromBytes + Immutable + Copy>(
        &mut self,
        (id, vcpu): (u16, u32),
        op: GrantOp,
        elements: &[T],
    ) -> Result<Vec<T>, String> {
        let at = |index: usize| ARG + (index * size_of::<T>()) as u64;
        for (index, element) in elements.iter().enumerate() {
            self.guest(id, vcpu).write(at(index), element.as_bytes());
        }
        let args = [u64::from(op.number()), ARG, elements.len() as u64, 0, 0];
        match self.call(id, vcpu, number::GRANT_TABLE_OP, args)? {
            0 => Ok((0..elements.len()).map(|index| self.guest(id, vcpu).read(at(index))).collect()),
            result => Err(format!("{op:?}: {result}, specified 0")),
        }
    }

    fn copy_step(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let flags = u16::from(n.below(4));
        let mut side = |by_reference: bool| Side {
            number: if by_reference { u64::from(n.gref()) } else { n.gfn() },
            dom: match (by_reference, n.next()) {
                (true, byte) => [1, 2, 1, 2, 1, SELF, 2, 3][usize::from(byte % 8)],
                (false, 0..0xF0) => SELF,
                (false, byte) => u16::from(byte % 4),
            },
            by_reference,
            offset: u16::from(n.next()) * 16,
        };
        let (from, to) = (side(flags & 1 != 0), side(flags & 2 != 0));
        let len = [0, 1, 8, 63, 64, 512, 2048, 4095, 4096, 4097, 16, 32, 100, 200, 300, 400]
            [usize::from(n.below(16))];
        self.tell(|| format!("d{id}v{vcpu} copy {len} from {from:x?} to {to:x?}"));
        let wanted = self.spec.copy(id, from, to, len);
        let ptr = |side: Side| CopyPtr {
            ref_or_gfn: side.number,
            domid: DomId(side.dom),
            offset: side.offset,
            pad: 0,
        };
        let arg = GrantCopy { source: ptr(from), dest: ptr(to), len, flags, status: 1, pad: 0 };
        let out = self.grant(who, GrantOp::Copy, arg)?;
        status_is("copy", out.status, status(&wanted))?;
        if let Ok(Some(frame)) = wanted {
            self.holds(frame)?;
            self.seen(frame);
        }
        Ok(())
    }

    /// Event words that a guest has overwritten are what they are now.
    pub(in crate::drive) fn seen(&mut self, frame: u64) {
        if self.spec.holds_queues(frame) && !self.spec.bytes.contains_key(&frame) {
            let mfn = Mfn::new(frame).expect("a frame");
            self.spec.bytes.insert(frame, self.world.machine.hw.frame_bytes(mfn).to_vec());
        }
        for id in self.spec.domains.keys().copied().collect::<Vec<_>>() {
            for index in 0..self.spec.of(id).vcpus.len() {
                let InfoAt::Frame(at, offset) = self.spec.of(id).vcpus[index].info else { continue };
                if at == frame {
                    let at = Mfn::new(at).and_then(|mfn| FrameAddr::new(mfn, usize::from(offset)));
                    let (selector, upcall) = self.words(at.expect("a place"));
                    self.spec.misses(id);
                    let vcpu = &mut self.spec.of_mut(id).vcpus[index];
                    (vcpu.selector, vcpu.upcall) = (selector, upcall);
                }
            }
        }
    }

    fn table_step(&mut self, who: (u16, u32), kind: u8, n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let dom = n.one(&[SELF, SELF, SELF, id, 1, 2, 3, 0]);
        match kind {
            0xB0..0xB3 => {
                let frames = n.one(&[0, 1, 1, 2, 3, 4, 5, u32::MAX]);
                self.tell(|| format!("d{id}v{vcpu} setup_table of {dom} to {frames}"));
                let wanted = self.spec.setup_table(id, dom, frames);
                let arg = SetupTable {
                    dom: DomId(dom),
                    nr_frames: frames,
                    status: 1,
                    frame_list: GuestHandle(LIST),
                    ..SetupTable::default()
                };
                let out = self.grant(who, GrantOp::SetupTable, arg)?;
                status_is("setup_table", out.status, status(&wanted))?;
                for (index, gfn) in (0..).zip(wanted.into_iter().flatten()) {
                    let told: u64 = self.guest(id, vcpu).read(LIST + index * 8);
                    if told != gfn.unwrap_or(u64::MAX) {
                        return Err(format!("setup_table: frame {index} at {told:#x}, specified {gfn:x?}"));
                    }
                }
                Ok(())
            }
            0xB3..0xB6 => {
                self.tell(|| format!("d{id}v{vcpu} query_size of {dom}"));
                let wanted = self.spec.query_size(id, dom);
                let arg = QuerySize { dom: DomId(dom), status: 1, ..QuerySize::default() };
                let out = self.grant(who, GrantOp::QuerySize, arg)?;
                status_is("query_size", out.status, status(&wanted))?;
                match wanted {
                    Ok(sizes) if sizes != (out.nr_frames, out.max_nr_frames) => {
                        Err(format!("query_size: {out:?}, specified {sizes:?}"))
                    }
                    _ => Ok(()),
                }
            }
            _ => {
                self.tell(|| format!("d{id}v{vcpu} get_version of {dom}"));
                let wanted = code(&self.spec.get_version(id, dom));
                let arg = GetVersion { dom: DomId(dom), pad: 0, version: 9 };
                let (result, out) =
                    self.with(who, number::GRANT_TABLE_OP, u64::from(GrantOp::GetVersion.number()), arg)?;
                let version = if wanted == 0 { 1 } else { 9 };
                let agrees = (result, out.version) == (wanted, version);
                if agrees {
                    Ok(())
                } else {
                    Err(format!("get_version: {result} {out:?}, specified {wanted}"))
                }
            }
        }
    }
}

fn status_is(what: &str, found: i16, wanted: i16) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what}: status {found}, specified {wanted}")) }
}

fn status<T>(result: &Result<T, GrantStatus>) -> i16 {
    result.as_ref().map_or_else(|status| status.value(), |_| 0)
}
