//! The executable specification: what two or three domains own, grant, signal and have mapped, and how each call changes that.
//!
//! Written from Xen's interface (`public/*.h`), its semantics and DESIGN.md, in sets and maps; it shares no code with the hypervisor but the names of
//! `pv-abi`. What real Xen decides is left to it (`cargo xtask conformance --on xen`); where Pavo differs on purpose, ARCHITECTURE.md has a
//! line, and so has the method here ("ours").
//!
//! Where the interface leaves a choice (which frame, which handle) the machine chooses, and the specification says whether it may.
//!
//! Invariants, by their names in the plan of assurance; [`Spec::check`] asks those that the maps do not make true by themselves.
//! - I1 a frame is RAM of one domain at most, or the hypervisor's ([`Domain::ram`] are disjoint).
//! - I2 a frame that becomes a domain's is nobody's before, has no reference and holds zeroes.
//! - I3 a domain maps its own RAM, its own shared pages, and grants that it holds a handle for.
//! - I4 a frame's references are counted from its holders ([`Spec::references`]), never kept.
//! - I5 a table is written by nobody, and each of its entries may be there (`paging`).
//! - I6 a frame of RAM is in one place at most.
//! - I7 the uses of a reference are the handles that name it; the shared entry says that it is in use exactly while it is.
//! - I8 a channel's two ends name each other; ports notify vCPUs that exist; a free port is not pending. With queues: what the words say is what a
//!   guest was promised (`fifo`).
//! - I11 RAM, ports, handles, table frames stay within what the domain may have.
mod event;
pub mod fifo;
mod grant;
mod memory;
pub mod paging;
mod watched;

use std::collections::{BTreeMap, BTreeSet};

pub use event::{InfoAt, Polls, Port, PortFacts, Vcpu};
pub use fifo::Fifo;
pub use grant::{Entry, Held, MapArgs, Side, Use};
pub use memory::{Place, SharedPage};
pub use paging::{Paging, Role};
pub use watched::Watched;

/// A domain's number.
pub type Dom = u16;
/// A frame of the machine.
pub type Frame = u64;
/// A guest frame number.
pub type Gfn = u64;

/// `DOMID_SELF`.
pub const SELF: Dom = 0x7FF0;
/// Guest frames that exist: 40 bits of address.
pub const GFN_LIMIT: Gfn = 1 << 28;

/// What a domain may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quota {
    /// Ports, port 0 included.
    pub ports: u32,
    /// Frames of its grant table.
    pub grant_frames: u32,
    /// Mappings of others' grants.
    pub handles: u32,
    /// Frames of RAM.
    pub ram: u64,
}

/// One domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Domain {
    /// What it may have.
    pub quota: Quota,
    /// Its RAM, mapped or not.
    pub ram: BTreeSet<Frame>,
    /// What its guest frames show.
    pub places: Watched<BTreeMap<Gfn, Place>>,
    /// The highest guest frame that was ever mapped.
    pub highest: Gfn,
    /// Frames of its grant table.
    pub grant_frames: u32,
    /// Entries of its grant table that are not zero.
    pub entries: Watched<BTreeMap<u32, Entry>>,
    /// References of its table that are in use.
    pub uses: Watched<BTreeMap<u32, Use>>,
    /// Mappings of others' grants, by handle.
    pub held: Watched<BTreeMap<u32, Held>>,
    /// Ports that are not free: what for, and the vCPU they notify.
    pub ports: BTreeMap<u32, (Port, u32)>,
    /// Ports below this one may be named by operations.
    pub known_ports: u32,
    /// Ports whose event is pending.
    pub pending: BTreeSet<u32>,
    /// Ports that the guest has masked.
    pub masked: BTreeSet<u32>,
    /// Its queues of events, once it uses them; what is in `pending` then is kept for them.
    pub fifo: Option<Fifo>,
    /// Its vCPUs.
    pub vcpus: Vec<Vcpu>,
    /// How often the control domain has paused it.
    pub pauses: u32,
    /// Watchdogs that are set.
    pub watchdogs: [bool; 2],
    /// If its page tables are checked.
    pub paging: Option<Paging>,
}

/// The whole machine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Spec {
    /// By number.
    pub domains: BTreeMap<Dom, Domain>,
    /// Bytes of frames that somebody wrote or that became RAM since the start.
    pub bytes: BTreeMap<Frame, Vec<u8>>,
    /// References that a frame may have.
    pub most_references: u32,
    /// The guest changes the word before a new event more often than it may: what the call links is lost.
    pub hopeless: bool,
    /// Upcalls that the last call raised: domain and vCPU.
    pub upcalls: Vec<(Dom, u32)>,
}

impl Spec {
    /// A domain by its number, `DOMID_SELF` included.
    fn any(&self, who: Dom, named: Dom) -> Option<Dom> {
        let id = if named == SELF { who } else { named };
        self.domains.contains_key(&id).then_some(id)
    }

    /// A domain that exists.
    pub fn of(&self, id: Dom) -> &Domain {
        &self.domains[&id]
    }

    /// A domain that exists.
    pub fn of_mut(&mut self, id: Dom) -> &mut Domain {
        self.domains.get_mut(&id).expect("it exists")
    }

    /// I4: how many hold this frame of a domain's, beside page tables: references of grants in use, and what the hypervisor writes to.
    pub fn references(&self, owner: Dom, frame: Frame) -> u32 {
        let domain = self.of(owner);
        let uses = domain.uses.values().filter(|used| used.frame == frame).count();
        let areas = domain.vcpus.iter().flat_map(Vcpu::areas).filter(|area| *area == frame).count();
        let queues = domain.fifo.iter().flat_map(Fifo::frames).filter(|of| *of == frame).count();
        u32::try_from(uses + areas + queues).expect("few")
    }

    /// Who owns a frame of RAM.
    pub fn owner(&self, frame: Frame) -> Option<Dom> {
        self.domains.iter().find(|(_, domain)| domain.ram.contains(&frame)).map(|(id, _)| *id)
    }

    /// The invariants that are more than the shape of the maps.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn check(&self) -> Result<(), String> {
        // I7: by granter, reference and user, the handles for reading and for writing; each use takes its own away.
        let mut handles: BTreeMap<(Dom, u32, Dom), (usize, usize)> = BTreeMap::new();
        for (user, domain) in &self.domains {
            for held in domain.held.values() {
                let (reads, writes) = handles.entry((held.granter, held.gref, *user)).or_default();
                *(if held.writable { writes } else { reads }) += 1;
            }
        }
        for (id, domain) in &self.domains {
            self.check_paging(*id)?;
            let says = |what: &str| Err(format!("specification: domain {id}: {what}"));
            let permits = |held: &Held, frame: Frame, writable: bool| {
                let used = self.of(held.granter).uses.get(&held.gref);
                (held.writable || !writable) && used.is_some_and(|used| used.frame == frame)
            };
            let at: BTreeSet<(Gfn, &Held)> = domain.held.values().map(|held| (held.gfn, held)).collect();
            let mut placed = Vec::new();
            for (gfn, place) in domain.places.iter() {
                match place {
                    Place::Ram(frame) => placed.push(*frame),
                    Place::Grant { frame, writable } => {
                        let here = at.range((*gfn, &Held::LEAST)..).take_while(|(at, _)| at == gfn);
                        if !here.into_iter().any(|(_, held)| permits(held, *frame, *writable)) {
                            return says("I3: maps a grant without a handle");
                        }
                    }
                    Place::Shared(_) => {}
                }
            }
            placed.sort_unstable();
            if placed.windows(2).any(|two| two[0] == two[1]) {
                return says("I6: RAM is in two places");
            }
            let mut own = domain.ram.iter();
            if !placed.iter().all(|frame| own.any(|own| own == frame)) {
                return says("I3: maps RAM that is not its own");
            }
            for (gref, used) in domain.uses.iter() {
                if handles.remove(&(*id, *gref, used.user)) != Some((used.reads, used.writes)) {
                    return says("I7: a reference is used by others than its handles");
                }
                if !domain.ram.contains(&used.frame) {
                    return says("I2: a frame in use is not its owner's any more");
                }
            }
            for (port, (kind, vcpu)) in &domain.ports {
                if *vcpu as usize >= domain.vcpus.len() {
                    return says("I8: a port notifies nobody");
                }
                if let Port::Channel { dom, port: peer } = kind
                    && self.of(*dom).ports.get(peer).map(|(kind, _)| *kind)
                        != Some(Port::Channel { dom: *id, port: *port })
                {
                    return says("I8: a channel has one end");
                }
            }
            if domain.pending.iter().any(|port| !domain.ports.contains_key(port)) {
                return says("I8: a free port is pending");
            }
            let quota = domain.quota;
            if domain.ram.len() as u64 > quota.ram
                || domain.ports.keys().any(|port| *port >= quota.ports)
                || domain.held.len() > quota.handles as usize
                || domain.grant_frames > quota.grant_frames
            {
                return says("I11: more than it may have");
            }
        }
        match handles.keys().next() {
            Some(left) => Err(format!("specification: I7: a handle names what is not in use: {left:?}")),
            None => Ok(()),
        }
    }
}
