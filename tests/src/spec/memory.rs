//! RAM, and what guest frames show.
use pv_abi::Errno;

use super::{Dom, Frame, GFN_LIMIT, Gfn, Spec};

/// A page of the hypervisor's that a domain may place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SharedPage {
    /// The shared-info page.
    Info,
    /// A frame of the grant table.
    Grant(u32),
}

/// What a guest frame shows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// The domain's own RAM.
    Ram(Frame),
    /// A page of the hypervisor's.
    Shared(SharedPage),
    /// A page that was granted.
    Grant {
        /// Another's frame, or one's own.
        frame: Frame,
        /// Whether it may be written.
        writable: bool,
    },
}

impl Spec {
    /// The domain's own RAM at a guest frame, used as data.
    pub fn ram_at(&self, id: Dom, gfn: Gfn) -> Option<Frame> {
        self.own(id, gfn).filter(|frame| self.role(id, *frame).is_none())
    }

    /// The domain's own RAM at a guest frame, used for whatever.
    pub fn own(&self, id: Dom, gfn: Gfn) -> Option<Frame> {
        match self.of(id).places.get(&gfn) {
            Some(Place::Ram(frame)) => Some(*frame),
            Some(Place::Shared(_) | Place::Grant { .. }) | None => None,
        }
    }

    /// Whether a table or text is at a guest frame: nothing takes its place.
    pub fn is_held(&self, id: Dom, gfn: Gfn) -> bool {
        self.own(id, gfn).is_some_and(|frame| self.role(id, frame).is_some())
    }

    /// Something appears at a guest frame, whatever was there; RAM that was there stays the domain's, in no place.
    pub(super) fn put(&mut self, id: Dom, gfn: Gfn, place: Place) {
        let domain = self.of_mut(id);
        domain.places.insert(gfn, place);
        domain.highest = domain.highest.max(gfn);
    }

    /// Nothing is in these places any more: those of an extent that was populated, failed in the middle and was undone.
    pub fn empty(&mut self, id: Dom, gfns: Vec<Gfn>) {
        let domain = self.of_mut(id);
        for gfn in gfns {
            domain.places.remove(&gfn);
            domain.highest = domain.highest.max(gfn);
        }
    }

    /// Whether a domain may have so many frames more.
    pub fn may_have(&self, who: Dom, frames: u64) -> bool {
        let domain = self.of(who);
        domain.ram.len() as u64 + frames <= domain.quota.ram
    }

    /// I2: a frame that was nobody's becomes a domain's: empty in a place, or in none, where nobody ever sees what is in it.
    ///
    /// # Errors
    /// It is somebody's.
    pub fn gain(&mut self, who: Dom, frame: Frame, gfn: Option<Gfn>) -> Result<(), String> {
        if let Some(owner) = self.owner(frame) {
            return Err(format!("frame {frame:#x} is given to domain {who} and is domain {owner}'s"));
        }
        self.of_mut(who).ram.insert(frame);
        if let Some(gfn) = gfn {
            self.bytes.insert(frame, vec![0; 4096]);
            self.put(who, gfn, Place::Ram(frame));
        }
        Ok(())
    }

    /// A page of `XENMEM_decrease_reservation`: RAM that nobody refers to (ours; Xen takes it all the same); a page of the hypervisor's leaves its
    /// place.
    pub fn lose(&mut self, who: Dom, gfn: Gfn) -> bool {
        if matches!(self.of(who).places.get(&gfn), Some(Place::Shared(_))) {
            self.of_mut(who).places.remove(&gfn);
            return true;
        }
        let Some(frame) = self.ram_at(who, gfn) else { return false };
        if self.references(who, frame) != 0 {
            return false;
        }
        let domain = self.of_mut(who);
        domain.places.remove(&gfn);
        domain.ram.remove(&frame);
        self.bytes.remove(&frame);
        true
    }

    /// `XENMEM_add_to_physmap` of the shared-info page (space 0) or of a frame of the grant table (1), which grows up to there
    /// when the page can be placed.
    ///
    /// # Errors
    /// As the call.
    pub fn add(&mut self, who: Dom, dom: Dom, space: u32, index: u64, gfn: Gfn) -> Result<(), Errno> {
        let id = self.any(who, dom);
        // Foreign pages are a toolstack's, and asked about before anything else.
        if space == 4 {
            return Err(Errno::Enosys);
        }
        let id = id.ok_or(Errno::Esrch)?;
        if id != who {
            return Err(Errno::Eperm);
        }
        if gfn == u64::MAX {
            return Err(Errno::Einval);
        }
        let page = match (space, u32::try_from(index & 0xFFFF_FFFF)) {
            (0, _) if index == 0 => SharedPage::Info,
            (1, Ok(index)) if index < self.of(who).quota.grant_frames => SharedPage::Grant(index),
            (0 | 1, _) => return Err(Errno::Einval),
            _ => return Err(Errno::Enosys),
        };
        if self.of(who).places.values().any(|place| *place == Place::Shared(page)) {
            return Err(Errno::Ebusy);
        }
        if gfn >= GFN_LIMIT {
            return Err(Errno::Einval);
        }
        if let SharedPage::Grant(index) = page {
            let domain = self.of_mut(who);
            domain.grant_frames = domain.grant_frames.max(index + 1);
        }
        if self.is_held(id, gfn) {
            return Err(Errno::Ebusy);
        }
        self.put(who, gfn, Place::Shared(page));
        Ok(())
    }

    /// Whether `XENMEM_add_to_physmap_batch` looks at its elements at all.
    ///
    /// # Errors
    /// As the call.
    pub fn may_place(&self, who: Dom, dom: Dom, space: u16) -> Result<(), Errno> {
        match (space, self.any(who, dom)) {
            // Ranges are no batch's; devices are nobody's here.
            (3, _) => Err(Errno::Eopnotsupp),
            (_, None) => Err(Errno::Esrch),
            (5, _) => Err(Errno::Eacces),
            (_, Some(id)) if id != who => Err(Errno::Eperm),
            _ => Ok(()),
        }
    }

    /// Why a page of another domain is not placed: that is a toolstack's.
    pub fn foreign(&self, owner: Dom) -> Errno {
        // `DOMID_XEN` names what is nobody's.
        if owner == 0x7FF2 || self.domains.contains_key(&owner) { Errno::Eperm } else { Errno::Esrch }
    }

    /// `XENMEM_remove_from_physmap`: RAM and pages of the hypervisor's; RAM stays the domain's.
    ///
    /// # Errors
    /// As the call.
    pub fn remove(&mut self, who: Dom, dom: Dom, gfn: Gfn) -> Result<(), Errno> {
        if self.any(who, dom).ok_or(Errno::Esrch)? != who {
            return Err(Errno::Eperm);
        }
        if self.is_held(who, gfn) {
            return Err(Errno::Ebusy);
        }
        match self.of(who).places.get(&gfn) {
            Some(Place::Ram(_) | Place::Shared(_)) => {
                self.of_mut(who).places.remove(&gfn);
                Ok(())
            }
            Some(Place::Grant { .. }) | None => Err(Errno::Enoent),
        }
    }

    /// `XENMEM_exchange` of one page for one, of which `done` are done: no page can be taken from its domain on ARM.
    ///
    /// # Errors
    /// As the call; it succeeds only when nothing is left to do.
    pub fn exchange(&self, who: Dom, dom: Dom, gfn: Gfn, done: u64) -> Result<(), Errno> {
        match done {
            0 => {}
            1 => return Ok(()),
            _ => return Err(Errno::Einval),
        }
        if self.any(who, dom).ok_or(Errno::Esrch)? != who {
            return Err(Errno::Eperm);
        }
        match self.of(who).places.get(&gfn) {
            Some(Place::Ram(_) | Place::Shared(_) | Place::Grant { .. }) => Err(Errno::Eopnotsupp),
            None => Err(Errno::Einval),
        }
    }

    /// `XENMEM_claim_pages`: the control domain's.
    ///
    /// # Errors
    /// Always. `DOMID_SELF` is not understood there.
    pub fn claim_pages(&self, dom: Dom) -> Result<(), Errno> {
        Err(if self.domains.contains_key(&dom) { Errno::Eperm } else { Errno::Einval })
    }

    /// `domctl` of a domain that is not the control domain: the version is looked at first, then the domain that it is about.
    ///
    /// # Errors
    /// Always.
    pub fn domctl(&self, version: u32, dom: Dom) -> Result<(), Errno> {
        Err(match (version, self.domains.contains_key(&dom)) {
            (0x17, true) => Errno::Eperm,
            (0x17, false) => Errno::Esrch,
            _ => Errno::Eacces,
        })
    }

    /// A guest writes a word of a page that it sees; false when it may not.
    pub fn write(&mut self, who: Dom, gfn: Gfn, offset: usize, value: u64) -> bool {
        let frame = match self.of(who).places.get(&gfn) {
            Some(Place::Ram(_)) if self.is_held(who, gfn) => return false,
            Some(Place::Ram(frame) | Place::Grant { frame, writable: true }) => *frame,
            Some(Place::Shared(_) | Place::Grant { .. }) | None => return false,
        };
        self.overwritten(frame);
        if let Some(bytes) = self.bytes.get_mut(&frame) {
            bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        }
        true
    }
}
