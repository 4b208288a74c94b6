//! Grants of version 1.
use pv_abi::Errno;
use pv_abi::grant::GrantStatus as Status;

use super::{Dom, Frame, Gfn, Place, SELF, Spec};

/// `GTF_permit_access`, and the mask of types.
const PERMIT: u16 = 1;
const TYPE: u16 = 3;
const READONLY: u16 = 4;
const READING: u16 = 8;
const WRITING: u16 = 16;
/// `GTF_sub_page`: not in a table of version 1.
const SUB_PAGE: u16 = 0x100;
/// `GNTMAP_*`.
const MAP_DEVICE: u32 = 1;
const MAP_HOST: u32 = 2;
const MAP_READONLY: u32 = 4;
const MAP_APPLICATION: u32 = 8;
const MAP_PTE: u32 = 16;
/// Uses of one kind that a reference may have: another is refused once there are so many.
const MOST_USES: usize = 128;
/// Entries of a frame of the table.
const ENTRIES: u32 = 512;

/// An entry of the shared table, as the guest sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Entry {
    /// `GTF_*`.
    pub flags: u16,
    /// Who may use it.
    pub domid: Dom,
    /// The granted guest frame.
    pub frame: u32,
}

/// A reference in use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Use {
    /// The granted frame.
    pub frame: Frame,
    /// Who uses it.
    pub user: Dom,
    /// Read-only mappings.
    pub reads: usize,
    /// Writable mappings.
    pub writes: usize,
}

/// What a handle names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Held {
    /// Whose table.
    pub granter: Dom,
    /// The reference.
    pub gref: u32,
    /// Where it was mapped.
    pub gfn: Gfn,
    /// Whether for writing.
    pub writable: bool,
}

impl Held {
    /// Not above any other, in their order.
    pub(super) const LEAST: Self = Self { granter: 0, gref: 0, gfn: 0, writable: false };
}

/// An element of `GNTTABOP_map_grant_ref`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapArgs {
    /// Where to.
    pub address: u64,
    /// `GNTMAP_*`.
    pub flags: u32,
    /// The reference.
    pub gref: u32,
    /// Whose.
    pub dom: Dom,
}

/// A side of `GNTTABOP_copy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Side {
    /// Whose.
    pub dom: Dom,
    /// Reference, if `by_reference`, else guest frame.
    pub number: u64,
    /// Which.
    pub by_reference: bool,
    /// First byte in the page.
    pub offset: u16,
}

/// Whether a use marks the entry again, and whether it is the first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    Map,
    Copy,
}

impl Spec {
    /// Takes a use of a reference: the entry says so, the frame is held.
    fn pin(
        &mut self,
        granter: Dom,
        gref: u32,
        by: Dom,
        writable: bool,
        purpose: For,
    ) -> Result<Frame, Status> {
        let domain = self.of(granter);
        if gref >= domain.grant_frames * ENTRIES {
            return Err(Status::BadGntref);
        }
        let used = domain.uses.get(&gref).copied();
        if let Some(used) = used
            && (used.user != by || (if writable { used.writes } else { used.reads }) >= MOST_USES)
        {
            return Err(Status::GeneralError);
        }
        let writers = used.map_or(0, |used| used.writes);
        let marks = used.is_none() || (writable && writers == 0);
        let entry = domain.entries.get(&gref).copied().unwrap_or_default();
        if marks {
            let mask = if purpose == For::Map { TYPE | SUB_PAGE } else { TYPE };
            if used.is_none() && (entry.flags & mask != PERMIT || entry.domid != by) {
                return Err(Status::GeneralError);
            }
            if writable && entry.flags & READONLY != 0 {
                return Err(Status::GeneralError);
            }
            // Nobody marks again what the guest takes away later.
            let marks = if writable { READING | WRITING } else { READING };
            self.of_mut(granter).entries.entry(gref).or_default().flags |= marks;
        }
        let named = self.ram_at(granter, u64::from(entry.frame)).ok_or(Status::BadPage);
        let frame = match used {
            None => named.and_then(|frame| {
                let full = self.references(granter, frame) >= self.most_references;
                if full { Err(Status::BadPage) } else { Ok(frame) }
            }),
            Some(used) if marks && purpose == For::Copy => named
                .and_then(|frame| if frame == used.frame { Ok(frame) } else { Err(Status::GeneralError) }),
            Some(used) => Ok(used.frame),
        };
        let domain = self.of_mut(granter);
        match frame {
            Ok(frame) => {
                let used = domain.uses.entry(gref).or_insert(Use { frame, user: by, reads: 0, writes: 0 });
                *(if writable { &mut used.writes } else { &mut used.reads }) += 1;
            }
            Err(_) => self.reduce(granter, gref, writable),
        }
        frame
    }

    /// Gives a use back.
    fn unpin(&mut self, granter: Dom, gref: u32, writable: bool) {
        let domain = self.of_mut(granter);
        if let Some(used) = domain.uses.get_mut(&gref) {
            *(if writable { &mut used.writes } else { &mut used.reads }) -= 1;
            if used.reads + used.writes == 0 {
                domain.uses.remove(&gref);
            }
        }
        self.reduce(granter, gref, writable);
    }

    /// After a use has gone the entry keeps the marks of those that are left.
    fn reduce(&mut self, granter: Dom, gref: u32, writable: bool) {
        let domain = self.of_mut(granter);
        let used = domain.uses.get(&gref);
        let mut gone = 0;
        if used.is_none() {
            gone |= READING;
        }
        if writable && used.is_none_or(|used| used.writes == 0) {
            gone |= WRITING;
        }
        if let Some(entry) = domain.entries.get_mut(&gref) {
            entry.flags &= !gone;
        }
    }

    /// Maps a grant; the machine chooses the handle ([`Self::take_handle`]).
    ///
    /// # Errors
    /// The element's status.
    pub fn map(&mut self, who: Dom, args: MapArgs) -> Result<Held, Status> {
        let MapArgs { address, flags, gref, dom } = args;
        if flags & (MAP_HOST | MAP_DEVICE) == 0 {
            return Err(Status::BadGntref);
        }
        if flags & (MAP_DEVICE | MAP_APPLICATION | MAP_PTE) != 0 {
            return Err(Status::GeneralError);
        }
        if !self.domains.contains_key(&dom) {
            return Err(Status::BadDomain);
        }
        let domain = self.of(who);
        if domain.held.len() >= domain.quota.handles as usize {
            return Err(Status::NoSpace);
        }
        let writable = flags & MAP_READONLY == 0;
        let frame = self.pin(dom, gref, who, writable, For::Map)?;
        let gfn = address >> 12;
        let there = self.of(who).places.get(&gfn);
        // Ours: a grant is not mapped over another.
        let taken = matches!(there, Some(Place::Grant { .. })) || self.is_held(who, gfn);
        let free = gfn < super::GFN_LIMIT && !taken;
        if flags & !MAP_READONLY != MAP_HOST || !free {
            self.unpin(dom, gref, writable);
            return Err(Status::GeneralError);
        }
        self.put(who, gfn, Place::Grant { frame, writable });
        Ok(Held { granter: dom, gref, gfn, writable })
    }

    /// A mapping gets the handle that the machine chose.
    ///
    /// # Errors
    /// It names a mapping already, or is beyond what the domain may have.
    pub fn take_handle(&mut self, who: Dom, handle: u32, held: Held) -> Result<(), String> {
        let domain = self.of_mut(who);
        if handle >= domain.quota.handles || domain.held.insert(handle, held).is_some() {
            return Err(format!("handle {handle} is not free"));
        }
        Ok(())
    }

    /// Undoes a mapping. Without an address nothing is undone, and that is no error.
    ///
    /// # Errors
    /// The element's status.
    pub fn unmap(&mut self, who: Dom, address: u64, handle: u32) -> Result<(), Status> {
        let held = *self.of(who).held.get(&handle).ok_or(Status::BadHandle)?;
        if address == 0 {
            return Ok(());
        }
        // Ours: the address is the one it was mapped at.
        if address >> 12 != held.gfn {
            return Err(Status::GeneralError);
        }
        let used = self.of(held.granter).uses[&held.gref];
        match self.of(who).places.get(&held.gfn) {
            Some(Place::Grant { frame, .. }) if *frame == used.frame => {
                self.of_mut(who).places.remove(&held.gfn);
            }
            // The guest put something else there.
            Some(_) => return Err(Status::GeneralError),
            None => {}
        }
        self.of_mut(who).held.remove(&handle);
        self.unpin(held.granter, held.gref, held.writable);
        Ok(())
    }

    /// Copies bytes between frames of the caller's own and frames granted to it. Returns the frame that was written.
    ///
    /// # Errors
    /// The element's status.
    pub fn copy(&mut self, who: Dom, from: Side, to: Side, len: u16) -> Result<Option<Frame>, Status> {
        if len == 0 {
            return Ok(None);
        }
        let mut owners = [0; 2];
        for (owner, side) in owners.iter_mut().zip([from, to]) {
            if side.dom != SELF && !side.by_reference {
                return Err(Status::PermissionDenied);
            }
            *owner = self.any(who, side.dom).ok_or(Status::BadDomain)?;
        }
        let [source_owner, dest_owner] = owners;
        let source = self.claim(who, source_owner, from, false)?;
        let result = self.claim(who, dest_owner, to, true).and_then(|dest| {
            let fits = |offset: u16| usize::from(offset) + usize::from(len) <= 4096;
            let copied = if fits(from.offset) && fits(to.offset) {
                self.move_bytes((source, from.offset), (dest, to.offset), len);
                Ok(Some(dest))
            } else {
                Err(Status::BadCopyArg)
            };
            self.give_back(dest_owner, to, true);
            copied
        });
        self.give_back(source_owner, from, false);
        result
    }

    #[expect(clippy::cast_possible_truncation, reason = "a reference is the low half")]
    fn claim(&mut self, who: Dom, owner: Dom, side: Side, writable: bool) -> Result<Frame, Status> {
        if side.by_reference {
            self.pin(owner, side.number as u32, who, writable, For::Copy)
        } else {
            let frame = self.ram_at(owner, side.number).ok_or(Status::BadPage)?;
            // Ours: what is written is held meanwhile, so that it does not become a table.
            let held = writable && self.of(owner).paging.is_some();
            if held && self.references(owner, frame) >= self.most_references {
                return Err(Status::BadPage);
            }
            Ok(frame)
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "a reference is the low half")]
    fn give_back(&mut self, owner: Dom, side: Side, writable: bool) {
        if side.by_reference {
            self.unpin(owner, side.number as u32, writable);
        }
    }

    fn move_bytes(&mut self, from: (Frame, u16), to: (Frame, u16), len: u16) {
        let range = |at: u16| usize::from(at)..usize::from(at) + usize::from(len);
        self.overwritten(to.0);
        let Some(bytes) = self.bytes.get(&from.0).map(|bytes| bytes[range(from.1)].to_vec()) else {
            // Nobody knows what was copied.
            self.bytes.remove(&to.0);
            return;
        };
        if let Some(there) = self.bytes.get_mut(&to.0) {
            there[range(to.1)].copy_from_slice(&bytes);
        }
    }

    /// Exchanges two entries that are not in use.
    ///
    /// # Errors
    /// The element's status.
    pub fn swap(&mut self, who: Dom, a: u32, b: u32) -> Result<(), Status> {
        let domain = self.of_mut(who);
        let end = domain.grant_frames * ENTRIES;
        if a >= end || b >= end {
            return Err(Status::BadGntref);
        }
        if a == b {
            return Ok(());
        }
        if domain.uses.contains_key(&a) || domain.uses.contains_key(&b) {
            return Err(Status::Eagain);
        }
        let (in_a, in_b) = (domain.entries.remove(&a), domain.entries.remove(&b));
        domain.entries.extend(in_a.map(|entry| (b, entry)));
        domain.entries.extend(in_b.map(|entry| (a, entry)));
        Ok(())
    }

    /// `GNTTABOP_setup_table`: the table has so many frames at least; where each is mapped.
    ///
    /// # Errors
    /// The status.
    pub fn setup_table(&mut self, who: Dom, dom: Dom, frames: u32) -> Result<Vec<Option<Gfn>>, Status> {
        match self.any(who, dom) {
            None => return Err(Status::BadDomain),
            Some(id) if id != who => return Err(Status::PermissionDenied),
            Some(_) => {}
        }
        let domain = self.of_mut(who);
        if frames > domain.quota.grant_frames {
            return Err(Status::GeneralError);
        }
        domain.grant_frames = domain.grant_frames.max(frames);
        let at = |index| {
            domain.places.iter().find(|(_, place)| **place == Place::Shared(super::SharedPage::Grant(index)))
        };
        Ok((0..frames).map(|index| at(index).map(|(gfn, _)| *gfn)).collect())
    }

    /// `GNTTABOP_query_size`: frames that the table has and may have.
    ///
    /// # Errors
    /// The status.
    pub fn query_size(&self, who: Dom, dom: Dom) -> Result<(u32, u32), Status> {
        match self.any(who, dom) {
            None => Err(Status::BadDomain),
            Some(id) if id != who => Err(Status::PermissionDenied),
            Some(_) => Ok((self.of(who).grant_frames, self.of(who).quota.grant_frames)),
        }
    }

    /// `GNTTABOP_cache_flush` of bytes of a frame: one's own, or one that is used by a grant of its owner's.
    ///
    /// # Errors
    /// As the call.
    pub fn cache_flush(&self, who: Dom, frame: Frame, offset: u16, len: u16, op: u32) -> Result<(), Errno> {
        // Clean 1, invalidate 2; by reference (bit 31) is not on ARM.
        if offset >= 4096 || u32::from(offset) + u32::from(len) > 4096 || op & !3 != 0 {
            return Err(Errno::Einval);
        }
        let owner = self.owner(frame);
        if len == 0 || op == 0 || owner == Some(who) {
            return Ok(());
        }
        let is_used = |used: &Use| used.user == who && used.frame == frame;
        if owner.is_some_and(|owner| self.of(owner).uses.values().any(is_used)) {
            Ok(())
        } else {
            Err(Errno::Einval)
        }
    }

    /// `GNTTABOP_get_version`.
    ///
    /// # Errors
    /// As the call.
    pub fn get_version(&self, who: Dom, dom: Dom) -> Result<u32, Errno> {
        match self.any(who, dom) {
            None => Err(Errno::Esrch),
            Some(id) if id != who => Err(Errno::Eperm),
            Some(_) => Ok(1),
        }
    }
}
