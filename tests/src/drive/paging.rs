//! Steps about page tables that are checked: the calls, what the guest writes into pages that are to be tables, its accesses by them, and
//! vCPUs that come and go.
mod beside;

use hypervisor::addr::Mfn;
use hypervisor::fake::World;
use hypervisor::frame::Role as Found;
use hypervisor::hardware::Hardware;
use hypervisor::hypercall::{Outcome, hypercall};
use hypervisor::pagetable::Level;
use hypervisor::pagetable::control::Controls;
use pv_abi::Errno;

use super::Run;
use super::act::{HOLE, Numbers, RAM_POOL, address, code};
use crate::ARG;
use crate::spec::paging::{ENTRIES, Paging, Role, Seen};
use crate::spec::{SELF, Spec};

const MMU_UPDATE: u64 = 1;
const UPDATE_VA_MAPPING: u64 = 14;
const MMUEXT_OP: u64 = 26;
/// `MMUEXT_*`, and ours.
const PIN: [u32; 4] = [3, 2, 1, 0];
const UNPIN: u32 = 4;
const NEW_BASE: [u32; 2] = [15, 5];
const CLEAR: u32 = 16;
const COPY: u32 = 17;
const TEXT: [(u32, Role); 2] = [(0x8000, Role::KernelText), (0x8001, Role::UserText)];
const SEAL: u32 = 0x8002;
/// Where the count of what a batch did is told.
const DONE: u64 = ARG + 0xFF8;

/// Entries that steps write: at both ends of a table, and of the runs in which one is checked.
const INDICES: [usize; 8] = [0, 1, 2, 127, 128, 256, 510, 511];

const LINK: u64 = 3;
/// Page, normal memory, inner shareable, accessed.
const PAGE: u64 = 3 | 3 << 8 | 1 << 10;
const BLOCK: u64 = 1 | 3 << 8 | 1 << 10;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
const READ_ONLY: u64 = 1 << 7;
const EL0: u64 = 1 << 6;

/// Controls with which the trust may end.
const SCTLR: u64 = 0x30D0_1805 | 1 << 12;
const TCR: u64 = 16 | 1 << 8 | 1 << 10 | 3 << 12 | 16 << 16 | 1 << 24 | 1 << 26 | 3 << 28 | 2 << 30 | 2 << 32;

/// What the specification knows of a domain's page tables at first: vCPU 0 is on.
pub(super) fn observe(world: &World, id: u16) -> Option<Paging> {
    world.domain(id).paging()?;
    let vcpus = world.domain(id).vcpus.len();
    Some(Paging {
        roles: crate::spec::Watched::default(),
        roots: vec![[None; 2]; vcpus],
        first: [None; 2],
        fixed: None,
        sealed: false,
        on: (0..vcpus).map(|vcpu| vcpu == 0).collect(),
    })
}

/// What the frame table calls a role.
pub(super) fn as_found(role: Option<Role>) -> Found {
    match role {
        None => Found::Data,
        Some(Role::Table(level)) => Level::ALL[usize::from(level)].role(),
        Some(Role::KernelText) => Found::KernelText,
        Some(Role::UserText) => Found::UserText,
        Some(Role::Between { rises: true, .. }) => Found::Validating,
        Some(Role::Between { rises: false, .. }) => Found::Releasing,
    }
}

fn is_table(role: Option<Role>) -> bool {
    matches!(role, Some(Role::Table(_)))
}

impl Run {
    fn domain_role(&self, id: u16, gfn: u64) -> Option<Role> {
        self.spec.own(id, gfn).and_then(|frame| self.spec.role(id, frame))
    }

    /// A page of the domain's, mostly one whose role is wanted.
    fn page(&self, id: u16, n: &mut Numbers<'_>, wanted: impl Fn(Option<Role>) -> bool) -> u64 {
        let (how, which) = (n.next(), n.gfn());
        let fits = |gfn: &u64| self.spec.own(id, *gfn).is_some_and(|frame| wanted(self.spec.role(id, frame)));
        let some: Vec<u64> = RAM_POOL.into_iter().chain(HOLE..HOLE + 4).filter(fits).collect();
        if how < 0x18 || some.is_empty() { which } else { some[usize::from(how) % some.len()] }
    }

    /// An entry, mostly one that may be in a table of a level.
    fn new_entry(&self, id: u16, level: u8, n: &mut Numbers<'_>) -> u64 {
        let how = n.next();
        let data = PAGE | PXN | UXN;
        let (flags, gfn) = match (how & 0x1F, level) {
            (0..10, 0..=2) => (LINK, self.page(id, n, |role| role == Some(Role::Table(level + 1)))),
            (0..4, _) => (PAGE | READ_ONLY | UXN, self.page(id, n, |role| role == Some(Role::KernelText))),
            (4..8, _) => {
                (PAGE | READ_ONLY | PXN | EL0, self.page(id, n, |role| role == Some(Role::UserText)))
            }
            (8..14, 3) => (data, self.page(id, n, |role| role.is_none())),
            (8..14, _) => (BLOCK | PXN | UXN, n.gfn() & !0x1FF),
            (14 | 15, _) => (data | READ_ONLY, n.gfn()),
            (16 | 17, _) => (LINK, self.page(id, n, is_table)),
            (18, _) => (BLOCK | PXN | UXN, n.gfn()),
            (19, _) => (PAGE | n.one(&[0, UXN, PXN, UXN | EL0, PXN | EL0]), n.gfn()),
            (20, _) => (data, n.one(&[0x3000, 0x3001, 0x2_2000, 0x3_8000, 0x3_FFFF, 0x4_FFFF, 1 << 28])),
            (21, _) => (2, n.gfn()),
            (22, _) => (PAGE | UXN | 1 << 55, self.page(id, n, |role| role == Some(Role::KernelText))),
            (24, _) => (PAGE | UXN | EL0, self.page(id, n, |role| role == Some(Role::KernelText))),
            (23, 3) => (data | 1 << 56 | EL0, self.page(id, n, |role| role.is_none())),
            // From 25 on, at level 3; 23 at others.
            _ => return 0,
        };
        let extra = if how >> 5 == 7 { 1 << n.below(64) } else { 0 };
        // Some for one ASID, some for all.
        let not_global = if flags == LINK { 0 } else { u64::from(how >> 5 & 1) << 11 };
        address(gfn) | flags | not_global | extra
    }

    /// One element for `mmuext_op`, executed to its end.
    fn ext(&mut self, (id, vcpu): (u16, u32), cmd: u32, arg1: u64, arg2: u64) -> Result<i64, String> {
        let words = [u64::from(cmd), arg1, arg2];
        self.guest(id, vcpu).write(ARG, &words.map(u64::to_le_bytes).concat());
        self.call(id, vcpu, MMUEXT_OP, [ARG, 1, 0, u64::from(SELF), 0])
    }

    fn ext_is<T>(
        &mut self,
        who: (u16, u32),
        (cmd, arg1, arg2): (u32, u64, u64),
        wanted: &Result<T, Errno>,
    ) -> Result<(), String> {
        let (result, wanted) = (self.ext(who, cmd, arg1, arg2)?, code(wanted));
        if result == wanted { Ok(()) } else { Err(format!("mmuext {cmd:#x}: {result}, specified {wanted}")) }
    }

    /// A pin or unpin: to its end, or one run of it.
    fn change(
        &mut self,
        who: (u16, u32),
        cmd: u32,
        gfn: u64,
        interrupted: bool,
        specified: impl FnOnce(&mut Spec, Option<Seen>) -> Result<(), Errno>,
    ) -> Result<(), String> {
        self.know(who.0, gfn);
        if !interrupted {
            let wanted = specified(&mut self.spec, None);
            return self.ext_is(who, (cmd, gfn, 0), &wanted);
        }
        let (id, vcpu) = who;
        self.calls += 1;
        let words = [u64::from(cmd), gfn, 0];
        self.guest(id, vcpu).write(ARG, &words.map(u64::to_le_bytes).concat());
        let args = [ARG, 1, 0, u64::from(SELF), 0];
        let outcome = hypercall(&self.world.machine, &self.world.current(id, vcpu), MMUEXT_OP, args);
        let (result, seen) = match outcome {
            Outcome::Done(result) => (Some(result), None),
            Outcome::Restart(_) => (None, self.progress(id, gfn)),
        };
        let wanted = specified(&mut self.spec, seen);
        match (result, wanted) {
            (Some(result), wanted) if result == code(&wanted) => Ok(()),
            // What is refused in the end may be interrupted while it is undone.
            (None, Ok(())) if seen.is_some() => Ok(()),
            (None, Err(Errno::Einval)) if seen.is_some_and(|seen| !seen.rises) => Ok(()),
            (result, wanted) => Err(format!("mmuext {cmd:#x}: {result:?} {seen:?}, specified {wanted:?}")),
        }
    }

    /// How far the machine says that a change of a page is.
    fn progress(&self, id: u16, gfn: u64) -> Option<Seen> {
        let mfn = Mfn::new(self.spec.own(id, gfn)?)?;
        let table = &self.world.machine.frames.table;
        let rises = match table.state(mfn)?.role {
            Found::Validating => true,
            Found::Releasing => false,
            _ => return None,
        };
        Some(Seen { held: (table.progress(mfn) & 0xFFFF) as usize, rises })
    }

    /// What is to be a table is known: the guest clears a page whose bytes are not.
    fn know(&mut self, id: u16, gfn: u64) {
        if let Some(frame) = self.spec.ram_at(id, gfn)
            && !self.spec.bytes.contains_key(&frame)
            && self.spec.references(id, frame) == 0
        {
            self.fill(id, gfn, &[0; 4096]);
        }
    }

    /// The guest writes a whole page of its own, if it may and nothing of the hypervisor's is in it; whether it did.
    pub(super) fn fill(&mut self, id: u16, gfn: u64, bytes: &[u8; 4096]) -> bool {
        let Some(frame) = self.spec.ram_at(id, gfn) else { return false };
        if self.spec.references(id, frame) != 0 {
            return false;
        }
        self.world.guest_write(id, address(gfn), bytes);
        self.spec.bytes.insert(frame, bytes.to_vec());
        true
    }

    /// A step about page tables.
    pub(super) fn paging_step(
        &mut self,
        who: (u16, u32),
        kind: u8,
        n: &mut Numbers<'_>,
    ) -> Result<(), String> {
        let (id, vcpu) = who;
        if self.spec.of(id).paging.is_none() {
            return self.not_offered(who, n);
        }
        match kind {
            0..0x10 => {
                let (level, index) = (n.below(4), n.one(&INDICES));
                let gfn = self.page(id, n, |role| role.is_none());
                let value = self.new_entry(id, level, n);
                self.know(id, gfn);
                self.store_word(id, gfn, 8 * index, value)
            }
            0x10..0x40 => self.compose(who, n),
            0x40..0x50 => {
                let (level, interrupted) = (n.below(4), n.below(4) == 0);
                let gfn = self.page(id, n, |role| matches!(role, None | Some(Role::Between { .. })));
                self.tell(|| format!("d{id}v{vcpu} pin {gfn:#x} as level {level}, one run: {interrupted}"));
                let cmd = PIN[usize::from(level)];
                self.change(who, cmd, gfn, interrupted, |spec, seen| spec.pin_table(id, gfn, level, seen))
            }
            0x50..0x68 => {
                let interrupted = n.below(4) == 0;
                let gfn = self.page(id, n, |role| role.is_some());
                self.tell(|| format!("d{id}v{vcpu} unpin {gfn:#x}, one run: {interrupted}"));
                self.change(who, UNPIN, gfn, interrupted, |spec, seen| spec.unpin_page(id, gfn, seen))
            }
            0x68..0x74 => {
                let (cmd, text) = n.one(&TEXT);
                let gfn = self.page(id, n, |role| role.is_none());
                self.tell(|| format!("d{id}v{vcpu} pin {gfn:#x} as {text:?}"));
                let wanted = self.spec.pin_text(id, gfn, text);
                self.ext_is(who, (cmd, gfn, 0), &wanted)
            }
            0x74 => {
                // Rarely: it is for ever.
                if n.below(8) != 0 {
                    return Ok(());
                }
                self.tell(|| format!("d{id}v{vcpu} seal"));
                self.spec.seal(id);
                self.ext_is(who, (SEAL, 0, 0), &Ok(()))
            }
            0x75..0x9C => self.update(who, n),
            0x9C..0xB0 => self.update_address(who, n),
            0xB0..0xBC => self.take_root(who, n),
            0xBC | 0xBD => self.leave_root(who, n),
            0xBE..0xC8 => {
                let copies = n.below(2) == 1;
                let to = self.page(id, n, |role| role.is_none());
                let from = copies.then(|| n.gfn());
                self.tell(|| format!("d{id}v{vcpu} fill {to:#x} from {from:x?}"));
                let wanted = self.spec.fill_page(id, to, from);
                let cmd = if copies { COPY } else { CLEAR };
                self.ext_is(who, (cmd, to, from.unwrap_or(0)), &wanted)?;
                if let Ok(frame) = wanted {
                    self.holds(frame)?;
                    self.seen(frame);
                    // Caches forget by themselves, some time or other: that the page was cleared is no news to its owner.
                    self.world.machine.hw.clean_to_memory(Mfn::new(frame).ok_or("no frame")?);
                }
                Ok(())
            }
            0xC8..0xCC => {
                let cmd = u32::from(n.below(24));
                // A mask of vCPUs, which is there or not.
                let mask = if n.below(2) == 0 { ARG } else { 0 };
                let (cmd, wanted) = match cmd {
                    8 | 9 if mask == 0 => (cmd, Err(Errno::Efault)),
                    6..=11 => (cmd, Ok(())),
                    12..=14 | 18..24 => (cmd, Err(Errno::Enosys)),
                    _ => (0x8003 + cmd, Err(Errno::Enosys)),
                };
                self.ext_is(who, (cmd, n.gfn(), mask), &wanted)
            }
            0xCC..0xE0 => self.guest_accesses(who, n),
            0xE0..0xE4 => self.write_control(id, n),
            0xE4..0xEC => self.switch(id, n),
            0xEC..0xF4 => self.by_an_alias(who, n),
            0xF4..0xFA => self.full_table(who, n),
            0xFA..=0xFF => self.batch_of_ops(who, n),
        }
    }

    /// Nothing of it is there for other domains.
    fn not_offered(&mut self, (id, vcpu): (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let number = n.one(&[MMU_UPDATE, UPDATE_VA_MAPPING, MMUEXT_OP]);
        let args = [ARG, u64::from(n.below(3)), 0, u64::from(n.one(&[SELF, 1, 2, 9])), 0];
        self.tell(|| format!("d{id}v{vcpu} call {number} {args:x?}, which it does not have"));
        match self.call(id, vcpu, number, args)? {
            result if result == Errno::Enosys.to_result() => Ok(()),
            result => Err(format!("call {number}: {result}, specified -ENOSYS")),
        }
    }

    /// A page is cleared, gets a few entries, and is pinned.
    fn compose(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let (level, count) = (n.below(4), n.below(3));
        let gfn = self.page(id, n, |role| role.is_none());
        if !self.fill(id, gfn, &[0; 4096]) {
            return Ok(());
        }
        let mut told = Vec::new();
        for _ in 0..count {
            let (index, value) = (n.one(&INDICES), self.new_entry(id, level, n));
            self.store_word(id, gfn, 8 * index, value)?;
            told.push((index, value));
        }
        self.tell(|| format!("d{id}v{vcpu} pin {gfn:#x} as level {level} with {told:x?}"));
        let cmd = PIN[usize::from(level)];
        self.change(who, cmd, gfn, false, |spec, seen| spec.pin_table(id, gfn, level, seen))
    }

    /// Where a request of `mmu_update` writes, and what.
    fn request(&self, id: u16, n: &mut Numbers<'_>) -> (u64, u64) {
        let gfn = self.page(id, n, is_table);
        let level = match (self.domain_role(id, gfn), n.below(4)) {
            (Some(Role::Table(level)), _) | (_, level) => level,
        };
        let low = n.one(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 7]);
        (address(gfn) + 8 * n.one(&INDICES) as u64 + low, self.new_entry(id, level, n))
    }

    fn update(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let (mode, first) = (n.next(), self.request(id, n));
        // One, two that differ, many alike, more than a run does.
        let requests = match mode {
            0..0xA0 => vec![first],
            0xA0..0xE0 => vec![first, self.request(id, n)],
            0xE0..0xF0 => (0..40).map(|index| (first.0.wrapping_add(8 * index), first.1)).collect(),
            _ => (0..100).map(|index| (first.0.wrapping_add(8 * index), first.1)).collect::<Vec<_>>(),
        };
        let domain =
            n.one(&[SELF, SELF, SELF, SELF, SELF, SELF, id, id, SELF, SELF, 2, 9, SELF, SELF, SELF, 1]);
        let foreign = u64::from(n.below(32) / 31);
        let named = u64::from(domain) | foreign << 16;
        self.tell(|| {
            let few = &requests[..requests.len().min(2)];
            format!("d{id}v{vcpu} mmu_update {} {few:x?} of {named:#x}", requests.len())
        });
        let list = ARG + 0x1000;
        for (index, (at, value)) in (0..).zip(&requests) {
            self.guest(id, vcpu).write(list + 16 * index, &[*at, *value].map(u64::to_le_bytes).concat());
        }
        self.guest(id, vcpu).write(DONE, &[0xFF; 4]);
        let (mut done, mut wanted) = (u32::MAX, self.whose(id, domain, foreign));
        if wanted.is_ok() {
            done = 0;
            for (at, value) in &requests {
                wanted = self.spec.write_entry(id, *at, *value);
                if wanted.is_err() {
                    break;
                }
                done += 1;
            }
        }
        let result = self.call(id, vcpu, MMU_UPDATE, [list, requests.len() as u64, DONE, named, 0])?;
        let told: u32 = self.guest(id, vcpu).read(DONE);
        let wanted = (code(&wanted), done);
        if (result, told) == wanted {
            Ok(())
        } else {
            Err(format!("mmu_update: {result}, {told} done, specified {wanted:?}"))
        }
    }

    /// Nobody changes another's tables.
    fn whose(&self, id: u16, domain: u16, foreign: u64) -> Result<(), Errno> {
        if foreign == 0 && (domain == SELF || domain == id) {
            return Ok(());
        }
        Err(if self.spec.domains.contains_key(&domain) { Errno::Eperm } else { Errno::Esrch })
    }

    /// An address that the vCPU's tables map, as far as they go.
    fn address_by(&self, id: u16, vcpu: u32, n: &mut Numbers<'_>) -> u64 {
        let half = usize::from(n.below(2));
        let paging = self.spec.of(id).paging.as_ref().expect("it has them");
        let mut table = paging.roots[vcpu as usize][half].map(|root| root.frame);
        let mut va = if half == 1 { 0xFFFF << 48 } else { 0 };
        for shift in [39, 30, 21, 12] {
            let pick = usize::from(n.next());
            let entry = |frame: u64, index: usize| self.spec.entry(frame, index);
            let there: Vec<usize> = table.map_or(Vec::new(), |frame| {
                (0..ENTRIES).filter(|index| entry(frame, *index) & 1 == 1).collect()
            });
            let index = if there.is_empty() || pick >= 0xE8 {
                INDICES[pick % INDICES.len()]
            } else {
                there[pick % there.len()]
            };
            let linked = |entry: u64| self.spec.own(id, (entry & 0xFFFF_FFFF_F000) >> 12);
            let is_known = |frame: &u64| is_table(self.spec.role(id, *frame));
            table = table.and_then(|frame| linked(entry(frame, index))).filter(is_known);
            va |= (index as u64) << shift;
        }
        va
    }

    fn update_address(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let mut va = self.address_by(id, vcpu, n);
        if n.next() >= 0xF0 {
            va ^= n.one(&[1 << 48, 1 << 55, 1 << 63, 0xFFFF << 48]);
        }
        let value = self.new_entry(id, 3, n);
        // A mask of vCPUs is there, or not; without a flush nobody looks.
        let flags = n.one(&[0, 0, 1, 2, 4, 5, 6, ARG | 1, ARG | 2, 0, 0, 8, 3, 7, 8 | 1, 1 << 62 | 2]);
        self.tell(|| format!("d{id}v{vcpu} update_va_mapping {va:#x} {value:#x} {flags:#x}"));
        let wanted = match (flags & 3, flags & !3) {
            (3, _) => Err(Errno::Einval),
            (1 | 2, 8 | 0x4000_0000_0000_0000) => Err(Errno::Efault),
            _ => self.spec.entry_of(id, vcpu, va).and_then(|at| self.spec.write_entry(id, at, value)),
        };
        let result = self.call(id, vcpu, UPDATE_VA_MAPPING, [va, value, flags, 0, 0])?;
        let wanted = code(&wanted);
        if result == wanted { Ok(()) } else { Err(format!("update_va: {result}, specified {wanted}")) }
    }

    fn take_root(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let half = usize::from(n.below(3) == 2);
        let gfn = self.page(id, n, |role| role == Some(Role::Table(0)));
        let asid = if half == 1 { 0 } else { n.one(&[0, 1, 5, 0xFF, 0xFFFF, 0x1_0000, u64::MAX, 2]) };
        let mut controls = [SCTLR, TCR | u64::from(n.below(2)) << 36, 0x04FF];
        if n.next() >= 0xC0 {
            controls[usize::from(n.below(2))] ^= 1 << n.below(64);
        }
        self.tell(|| format!("d{id}v{vcpu} root {half} {gfn:#x} ASID {asid:#x}, controls {controls:x?}"));
        let [sctlr, tcr, mair] = controls;
        self.world.machine.hw.set_controls(Controls { sctlr, tcr, mair });
        let was_trusted = self.fixed(id).is_none();
        let wanted = self.spec.take_root(id, vcpu, half, gfn, asid, controls);
        self.ext_is(who, (NEW_BASE[half], gfn, asid), &wanted)?;
        let paging = self.spec.of(id).paging.as_ref().expect("it has them");
        if wanted.is_ok() {
            let bases = self.world.machine.hw.bases();
            // When the trust ends both are given: the guest may have written either before.
            for half in if half == 1 && was_trusted { 0..2 } else { half..half + 1 } {
                let root = paging.roots[vcpu as usize][half].ok_or("no root")?;
                let base = u64::from(root.asid) << 48 | address(root.gfn);
                if bases[half] != base {
                    return Err(format!("base {half}: {:#x}, specified {base:#x}", bases[half]));
                }
            }
        }
        Ok(())
    }

    /// A vCPU that has used its root for the lower half takes another; the old one is data again, and is written.
    fn leave_root(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let paging = self.spec.of(id).paging.as_ref().expect("it has them");
        let Some(old) = paging.roots[vcpu as usize][0] else { return Ok(()) };
        let gfn = self.page(id, n, |role| role.is_none());
        if !self.fill(id, gfn, &[0; 4096]) {
            return Ok(());
        }
        self.tell(|| format!("d{id}v{vcpu} leaves its root {:#x} for {gfn:#x}", old.gfn));
        self.change(who, PIN[0], gfn, false, |spec, seen| spec.pin_table(id, gfn, 0, seen))?;
        // From here on nothing flushes but the unpin.
        self.guest_accesses(who, &mut Numbers(&[]))?;
        let wanted = self.spec.take_root(id, vcpu, 0, gfn, 7, [0; 3]);
        self.ext_is(who, (NEW_BASE[0], gfn, 7), &wanted)?;
        self.change(who, UNPIN, old.gfn, false, |spec, seen| spec.unpin_page(id, old.gfn, seen))?;
        self.store_word(id, old.gfn, 8 * n.one(&INDICES), 0)
    }

    fn fixed(&self, id: u16) -> Option<[u64; 3]> {
        self.spec.of(id).paging.as_ref().and_then(|paging| paging.fixed)
    }

    /// A page full of one entry, the k-th of which may be a bad one (XSA-299).
    fn full_table(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let (level, bad) = (n.below(4), usize::from(n.next()) * 4);
        let gfn = self.page(id, n, |role| role.is_none());
        let (entry, other) = (self.new_entry(id, level, n), self.new_entry(id, level, n));
        let mut bytes = [0; 4096];
        for (index, word) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *word = (if index == bad { other | 1 << 59 } else { entry }).to_le_bytes();
        }
        if !self.fill(id, gfn, &bytes) {
            return Ok(());
        }
        let interrupted = n.below(2) == 0;
        self.tell(|| {
            format!(
                "d{id}v{vcpu} pin {gfn:#x} at {level} full of {entry:#x}, {bad} bad, one run: {interrupted}"
            )
        });
        let cmd = PIN[usize::from(level)];
        self.change(who, cmd, gfn, interrupted, |spec, seen| spec.pin_table(id, gfn, level, seen))
    }

    /// Several operations at once: those before the first that is refused are done, and counted.
    fn batch_of_ops(&mut self, who: (u16, u32), n: &mut Numbers<'_>) -> Result<(), String> {
        let (id, vcpu) = who;
        let (mut ops, mut done, mut wanted) = (Vec::new(), 0, Ok(()));
        for _ in 0..=n.below(3) {
            let (kind, gfn, level) = (n.below(8), self.page(id, n, |_| true), n.below(4));
            self.know(id, gfn);
            let (cmd, result) = match kind {
                0..3 => (10, Ok(())),
                3 | 4 => {
                    (PIN[usize::from(level)], wanted.and_then(|()| self.spec.pin_table(id, gfn, level, None)))
                }
                5 | 6 => (UNPIN, wanted.and_then(|()| self.spec.unpin_page(id, gfn, None))),
                _ => (13, Err(Errno::Enosys)),
            };
            ops.push([u64::from(cmd), gfn, 0]);
            wanted = wanted.and(result);
            done += u32::from(wanted.is_ok());
        }
        self.tell(|| format!("d{id}v{vcpu} mmuext_op {ops:x?}"));
        for (index, op) in (0..).zip(&ops) {
            self.guest(id, vcpu).write(ARG + 24 * index, &op.map(u64::to_le_bytes).concat());
        }
        let result = self.call(id, vcpu, MMUEXT_OP, [ARG, ops.len() as u64, DONE, u64::from(SELF), 0])?;
        let told: u32 = self.guest(id, vcpu).read(DONE);
        let wanted = (code(&wanted), done);
        if (result, told) == wanted {
            Ok(())
        } else {
            Err(format!("mmuext_op: {result}, {told} done, specified {wanted:?}"))
        }
    }
}
