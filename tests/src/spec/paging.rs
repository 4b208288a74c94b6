//! Paravirtual page tables (DESIGN.md, section 4): what role each frame of a domain has, and what each call makes of that. What an entry and a control
//! register may say: [`entry`].
//!
//! A frame whose role is not noted is data. What a table holds is [`Spec::bytes`]: nothing about entries is kept beside it, so that counts
//! and the entries' right to be there can be asked from scratch at any time ([`Spec::counted`], `Spec::check_paging`).
pub mod entry;

use std::collections::{BTreeMap, BTreeSet};

use pv_abi::Errno;

use super::{Dom, Frame, Gfn, Place, Spec, Watched};
use entry::{Controls, Meaning, bit, half, indices, meaning, sound};

/// Entries of a table.
pub const ENTRIES: usize = 512;
/// A page that the hypervisor shows: which frame it is, is not specified.
pub const SHOWN: Frame = Frame::MAX;
/// Emulated devices, and room for grants: data may be mapped there though nothing is.
const BELOW_RAM: core::ops::Range<Gfn> = 0x3001..0x4_0000;

/// What a frame is, other than data.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// A table of this level, 0 the root.
    Table(u8),
    /// Executed at EL1.
    KernelText,
    /// Executed at EL0.
    UserText,
    /// A table that is being made or unmade: the first `held` entries are held.
    Between {
        /// Its level.
        level: u8,
        /// How many.
        held: usize,
        /// Whether it is being made.
        rises: bool,
    },
}

/// A root in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Root {
    /// Its frame.
    pub frame: Frame,
    /// Where it is for the guest.
    pub gfn: Gfn,
    /// What goes with it.
    pub asid: u16,
}

/// What there is of a domain whose page tables are checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Paging {
    /// Frames that are not data.
    pub roles: Watched<BTreeMap<Frame, Role>>,
    /// By vCPU: roots of the lower and of the upper half.
    pub roots: Vec<[Option<Root>; 2]>,
    /// The roots that ended the trust.
    pub first: [Option<Root>; 2],
    /// The controls, since the trust has ended.
    pub fixed: Option<Controls>,
    /// No kernel text from here on.
    pub sealed: bool,
    /// By vCPU: whether it is on.
    pub on: Vec<bool>,
}

/// How far an interrupted pin or unpin has come, as the machine notes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Entries held.
    pub held: usize,
    /// Whether the table is being made.
    pub rises: bool,
}

/// What a guest does at an address of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Loads at EL1.
    Read,
    /// Stores at EL1.
    Write,
    /// Fetches at EL1.
    Execute,
    /// Fetches at EL0.
    ExecuteUser,
}

impl Spec {
    /// The role of a frame of a domain's.
    pub fn role(&self, id: Dom, frame: Frame) -> Option<Role> {
        self.of(id).paging.as_ref()?.roles.get(&frame).copied()
    }

    fn paging_mut(&mut self, id: Dom) -> &mut Paging {
        self.of_mut(id).paging.as_mut().expect("it has them")
    }

    fn set_role(&mut self, id: Dom, frame: Frame, role: Option<Role>) {
        let roles = &mut self.paging_mut(id).roles;
        match role {
            Some(role) => roles.insert(frame, role),
            None => roles.remove(&frame),
        };
    }

    /// An entry of a page.
    pub fn entry(&self, frame: Frame, index: usize) -> u64 {
        let bytes = self.bytes.get(&frame).expect("what is a table is known");
        u64::from_le_bytes(bytes[8 * index..8 * index + 8].try_into().expect("eight"))
    }

    /// The level of a table, and how many of its entries are held.
    const fn held(role: Role) -> Option<(u8, usize)> {
        match role {
            Role::Table(level) => Some((level, ENTRIES)),
            Role::Between { level, held, .. } => Some((level, held)),
            Role::KernelText | Role::UserText => None,
        }
    }

    /// I4: how many entries and roots name each frame of a domain's.
    pub fn counted(&self, id: Dom) -> BTreeMap<Frame, u32> {
        let mut counts = BTreeMap::new();
        let Some(paging) = &self.of(id).paging else { return counts };
        for (frame, role) in paging.roles.iter() {
            let Some((level, held)) = Self::held(*role) else { continue };
            let bytes = &self.bytes[frame];
            for word in bytes.as_chunks::<8>().0.iter().take(held) {
                if word[0] & 1 == 1
                    && let Some(Meaning::Counted(gfn, _)) = meaning(u64::from_le_bytes(*word), level)
                    && let Some(named) = self.own(id, gfn)
                {
                    *counts.entry(named).or_default() += 1;
                }
            }
        }
        for root in paging.roots.iter().chain([&paging.first]).flatten().flatten() {
            *counts.entry(root.frame).or_default() += 1;
        }
        counts
    }

    /// All that refer to a frame.
    fn count(&self, id: Dom, frame: Frame) -> u32 {
        self.references(id, frame) + self.counted(id).get(&frame).copied().unwrap_or(0)
    }

    /// Whether what an entry says may be, and has room in the count of what it names.
    fn may_hold(&self, id: Dom, meaning: Meaning) -> Result<(), Errno> {
        match meaning {
            Meaning::Empty => Ok(()),
            Meaning::Data(gfn) if BELOW_RAM.contains(&gfn) || self.of(id).places.contains_key(&gfn) => Ok(()),
            Meaning::Data(_) => Err(Errno::Einval),
            Meaning::Counted(gfn, role) => {
                let frame = self.own(id, gfn).ok_or(Errno::Einval)?;
                if self.role(id, frame) != Some(role) {
                    return Err(Errno::Einval);
                }
                if self.count(id, frame) >= self.most_references { Err(Errno::Ebusy) } else { Ok(()) }
            }
        }
    }

    /// `MMUEXT_PIN_*`: a page becomes a table, from the bottom of a tree up. To its end, or as far as it was seen to come.
    ///
    /// # Errors
    /// As the call.
    pub fn pin_table(&mut self, id: Dom, gfn: Gfn, level: u8, seen: Option<Seen>) -> Result<(), Errno> {
        let frame = self.own(id, gfn).ok_or(Errno::Einval)?;
        let first = match self.role(id, frame) {
            None if self.count(id, frame) != 0 => return Err(Errno::Ebusy),
            None => 0,
            Some(Role::Table(is)) if is == level => return Ok(()),
            Some(Role::Between { level: is, held, rises: true }) if is == level => held,
            Some(Role::Between { rises: false, .. }) => {
                self.fall(id, frame, seen);
                return Err(Errno::Einval);
            }
            Some(_) => return Err(Errno::Ebusy),
        };
        for index in first..=ENTRIES {
            self.set_role(id, frame, Some(Role::Between { level, held: index, rises: true }));
            if seen == Some(Seen { held: index, rises: true }) && index != first {
                return Ok(());
            }
            if index == ENTRIES {
                break;
            }
            let lawful = meaning(self.entry(frame, index), level)
                .is_some_and(|meaning| self.may_hold(id, meaning).is_ok());
            if !lawful {
                self.set_role(id, frame, Some(Role::Between { level, held: index, rises: false }));
                self.fall(id, frame, seen);
                return Err(Errno::Einval);
            }
        }
        self.set_role(id, frame, Some(Role::Table(level)));
        Ok(())
    }

    /// A table gives back what its entries hold, and is data at the end.
    fn fall(&mut self, id: Dom, frame: Frame, seen: Option<Seen>) {
        let Some(Role::Between { level, held, rises: false }) = self.role(id, frame) else { return };
        let role = seen
            .filter(|seen| !seen.rises && seen.held < held && seen.held != 0)
            .map(|seen| Role::Between { level, held: seen.held, rises: false });
        self.set_role(id, frame, role);
    }

    /// `MMUEXT_UNPIN_TABLE`: a table or text is data again.
    ///
    /// # Errors
    /// As the call.
    pub fn unpin_page(&mut self, id: Dom, gfn: Gfn, seen: Option<Seen>) -> Result<(), Errno> {
        let frame = self.own(id, gfn).ok_or(Errno::Einval)?;
        let role = self.role(id, frame).ok_or(Errno::Einval)?;
        match role {
            Role::Between { level, held, .. } => {
                self.set_role(id, frame, Some(Role::Between { level, held, rises: false }));
            }
            _ if self.count(id, frame) != 0 => return Err(Errno::Ebusy),
            Role::Table(level) => {
                self.set_role(id, frame, Some(Role::Between { level, held: ENTRIES, rises: false }));
            }
            Role::KernelText | Role::UserText => {
                self.set_role(id, frame, None);
                return Ok(());
            }
        }
        self.fall(id, frame, seen);
        Ok(())
    }

    /// Ours: a page becomes text.
    ///
    /// # Errors
    /// As the call.
    pub fn pin_text(&mut self, id: Dom, gfn: Gfn, text: Role) -> Result<(), Errno> {
        if text == Role::KernelText && self.paging_mut(id).sealed {
            return Err(Errno::Eperm);
        }
        let frame = self.own(id, gfn).ok_or(Errno::Einval)?;
        match self.role(id, frame) {
            None if self.count(id, frame) == 0 => {
                self.set_role(id, frame, Some(text));
                Ok(())
            }
            Some(role) if role == text => Ok(()),
            _ => Err(Errno::Ebusy),
        }
    }

    /// Ours: no kernel text any more.
    pub fn seal(&mut self, id: Dom) {
        self.paging_mut(id).sealed = true;
    }

    /// One request of `mmu_update`: an entry of a table is written.
    ///
    /// # Errors
    /// As the call.
    pub fn write_entry(&mut self, id: Dom, at: u64, new: u64) -> Result<(), Errno> {
        // No machine has so long addresses.
        if at >> 52 != 0 {
            return Err(Errno::Einval);
        }
        // The low two bits are a command, of which there is one.
        if at & 3 != 0 {
            return Err(Errno::Enosys);
        }
        if at & 7 != 0 {
            return Err(Errno::Einval);
        }
        let frame = self.own(id, at >> 12).ok_or(Errno::Einval)?;
        let Some(Role::Table(level)) = self.role(id, frame) else { return Err(Errno::Einval) };
        let index = (at & 0xFFF) as usize / 8;
        let says = meaning(new, level).ok_or(Errno::Einval)?;
        if self.entry(frame, index) == new {
            return Ok(());
        }
        self.may_hold(id, says)?;
        let bytes = self.bytes.get_mut(&frame).expect("what is a table is known");
        bytes[8 * index..8 * index + 8].copy_from_slice(&new.to_le_bytes());
        Ok(())
    }

    /// `update_va_mapping`: where the entry of level 3 for an address is, by the vCPU's roots.
    ///
    /// # Errors
    /// As the call.
    pub fn entry_of(&self, id: Dom, vcpu: u32, va: u64) -> Result<u64, Errno> {
        let paging = self.of(id).paging.as_ref().ok_or(Errno::Enosys)?;
        let half = half(va).ok_or(Errno::Einval)?;
        let root = paging.roots[vcpu as usize][half].ok_or(Errno::Einval)?;
        let [zero, one, two, three] = indices(va);
        let mut gfn = root.gfn;
        for (level, index) in [(0, zero), (1, one), (2, two)] {
            let frame = self.own(id, gfn).ok_or(Errno::Einval)?;
            match meaning(self.entry(frame, index), level) {
                Some(Meaning::Counted(next, _)) => gfn = next,
                _ => return Err(Errno::Einval),
            }
        }
        Ok((gfn << 12) | (8 * three as u64))
    }

    /// `MMUEXT_NEW_BASEPTR` (`half` 1) and `MMUEXT_NEW_USER_BASEPTR` (0): a vCPU takes a root. The first for the upper half ends the trust.
    ///
    /// # Errors
    /// As the call.
    pub fn take_root(
        &mut self,
        id: Dom,
        vcpu: u32,
        half: usize,
        gfn: Gfn,
        asid: u64,
        controls: Controls,
    ) -> Result<(), Errno> {
        let asid = u16::try_from(asid).map_err(|_| Errno::Einval)?;
        let frame = self.own(id, gfn).ok_or(Errno::Einval)?;
        if self.role(id, frame) != Some(Role::Table(0)) {
            return Err(Errno::Einval);
        }
        // Counted anew before what it replaces is given back.
        let mut counts = self.counted(id);
        let (most, mut fits) = (self.most_references, true);
        let mut refer = |frame: Frame| {
            let count = counts.entry(frame).or_default();
            *count += 1;
            fits &= *count <= most;
            fits
        };
        let paging = self.of(id).paging.as_ref().expect("it has them");
        let ends = half == 1 && paging.fixed.is_none();
        let lower = paging.roots[vcpu as usize][0];
        if !refer(frame) {
            return Err(Errno::Ebusy);
        }
        if ends {
            let lower = lower.ok_or(Errno::Einval)?;
            let others = paging.on.iter().enumerate().any(|(other, on)| *on && other != vcpu as usize);
            if !refer(lower.frame) || !refer(frame) || others {
                return Err(Errno::Ebusy);
            }
            if !sound(controls) {
                return Err(Errno::Einval);
            }
        }
        let root = Root { frame, gfn, asid };
        let paging = self.paging_mut(id);
        paging.roots[vcpu as usize][half] = Some(root);
        if ends {
            (paging.first, paging.fixed) = ([lower, Some(root)], Some(controls));
        }
        Ok(())
    }

    /// PSCI `CPU_ON`: a vCPU begins by the roots that ended the trust, those that there is room to count; without, as it likes.
    pub fn switch_on(&mut self, id: Dom, vcpu: u32) -> Option<[Root; 2]> {
        let most = self.most_references;
        let paging = self.paging_mut(id);
        paging.on[vcpu as usize] = true;
        paging.fixed?;
        let [Some(lower), Some(upper)] = paging.first else { return None };
        for (half, root) in [lower, upper].into_iter().enumerate() {
            if self.counted(id).get(&root.frame).copied().unwrap_or(0) < most {
                self.paging_mut(id).roots[vcpu as usize][half] = Some(root);
            }
        }
        Some([lower, upper])
    }

    /// PSCI `CPU_OFF`.
    pub fn switch_off(&mut self, id: Dom, vcpu: u32) {
        self.paging_mut(id).on[vcpu as usize] = false;
    }

    /// `MMUEXT_CLEAR_PAGE`, or `MMUEXT_COPY_PAGE` from another page: of the domain's own, and what is written is data.
    ///
    /// # Errors
    /// As the calls.
    pub fn fill_page(&mut self, id: Dom, to: Gfn, from: Option<Gfn>) -> Result<Frame, Errno> {
        let frame = self.ram_at(id, to).ok_or(Errno::Einval)?;
        let bytes = match from {
            None => Some(vec![0; 4096]),
            Some(from) => self.bytes.get(&self.own(id, from).ok_or(Errno::Einval)?).cloned(),
        };
        // Where the hypervisor writes too, nobody knows what is there.
        let shared = self.of(id).vcpus.iter().flat_map(super::Vcpu::areas).any(|area| area == frame);
        self.overwritten(frame);
        match bytes.filter(|_| !shared) {
            Some(bytes) => self.bytes.insert(frame, bytes),
            None => self.bytes.remove(&frame),
        };
        Ok(frame)
    }

    /// What comes of a guest's access by its own tables: the frame, or the stage that refuses it.
    ///
    /// # Errors
    /// 1 or 2.
    pub fn access(&self, id: Dom, vcpu: u32, va: u64, how: Access) -> Result<Frame, u8> {
        let paging = self.of(id).paging.as_ref().ok_or(1)?;
        let root = half(va).and_then(|half| paging.roots[vcpu as usize][half]).ok_or(1)?;
        let mut frame = root.frame;
        for (level, index) in (0_u8..).zip(indices(va)) {
            let entry = self.entry(frame, index);
            if let Some(Meaning::Counted(gfn, Role::Table(_))) = meaning(entry, level) {
                frame = self.own(id, gfn).ok_or(2)?;
                continue;
            }
            if meaning(entry, level).ok_or(1)? == Meaning::Empty {
                return Err(1);
            }
            let refused = match how {
                Access::Read => 0,
                Access::Write => entry & bit::READ_ONLY,
                Access::Execute => entry & bit::PXN,
                Access::ExecuteUser => entry & bit::UXN,
            };
            if refused != 0 {
                return Err(1);
            }
            let within = (1_u64 << (12 + 9 * (3 - level))) - 1;
            return self.access_page(id, ((entry & bit::OUTPUT) | (va & within)) >> 12, how);
        }
        Err(1)
    }

    /// What stage 2 lets a guest do with a page.
    fn access_page(&self, id: Dom, gfn: Gfn, how: Access) -> Result<Frame, u8> {
        let executes = matches!(how, Access::Execute | Access::ExecuteUser);
        let (frame, writable, executable) = match self.of(id).places.get(&gfn) {
            Some(Place::Ram(frame)) => match self.role(id, *frame) {
                None => (*frame, true, false),
                Some(Role::KernelText | Role::UserText) => (*frame, false, true),
                Some(Role::Table(_) | Role::Between { .. }) => (*frame, false, false),
            },
            Some(Place::Grant { frame, writable }) => (*frame, *writable, false),
            Some(Place::Shared(_)) => (SHOWN, true, false),
            None => return Err(2),
        };
        let refused = (how == Access::Write && !writable) || (executes && !executable);
        if refused { Err(2) } else { Ok(frame) }
    }

    /// I4 and I5, from what the tables hold: who has a role is in one place, is written by nobody, and each entry has the right to be there.
    ///
    /// # Errors
    /// The first that does not hold.
    pub(super) fn check_paging(&self, id: Dom) -> Result<(), String> {
        let domain = self.of(id);
        let Some(paging) = &domain.paging else { return Ok(()) };
        let says = |what: &str, frame: Frame| Err(format!("specification: domain {id}: {what}: {frame:#x}"));
        let counts = self.counted(id);
        for (frame, count) in &counts {
            let counted = self.role(id, *frame).is_some_and(|role| !matches!(role, Role::Between { .. }));
            if !counted || *count > self.most_references {
                return says("I5: an entry or root names what is no table and no text", *frame);
            }
        }
        let mut seen = BTreeSet::new();
        let mut placed = BTreeSet::new();
        for place in self.domains.values().flat_map(|other| other.places.values()) {
            if let Place::Grant { frame, .. } = place {
                seen.insert(*frame);
            }
        }
        for place in domain.places.values() {
            if let Place::Ram(frame) = place
                && paging.roles.contains_key(frame)
            {
                placed.insert(*frame);
            }
        }
        for (frame, role) in paging.roles.iter() {
            if !placed.contains(frame) {
                return says("I6: a table or text is in no place", *frame);
            }
            if seen.contains(frame) || self.references(id, *frame) != 0 {
                return says("I5: somebody else may write a table or text", *frame);
            }
            let Some((level, held)) = Self::held(*role) else { continue };
            for word in self.bytes[frame].as_chunks().0.iter().take(held) {
                let lawful = match meaning(u64::from_le_bytes(*word), level) {
                    None => false,
                    Some(Meaning::Empty | Meaning::Data(_)) => true,
                    Some(Meaning::Counted(gfn, role)) => {
                        self.own(id, gfn).and_then(|named| self.role(id, named)) == Some(role)
                    }
                };
                if !lawful {
                    return says("I5: an entry has no right to be in", *frame);
                }
            }
        }
        for root in paging.roots.iter().chain([&paging.first]).flatten().flatten() {
            if self.role(id, root.frame) != Some(Role::Table(0)) || self.own(id, root.gfn) != Some(root.frame)
            {
                return says("I5: a root is none", root.frame);
            }
        }
        Ok(())
    }
}
