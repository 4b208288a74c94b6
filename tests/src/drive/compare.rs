//! The state of the machine against the specification's.
use std::collections::{BTreeMap, BTreeSet};

use hypervisor::addr::{FrameAddr, Gfn, Mfn};
use hypervisor::domain::{Domain, Life};
use hypervisor::evtchn::{PortKind, check_channels, find, held};
use hypervisor::fake::World;
use hypervisor::frame::Role;
use hypervisor::grant::Track;
use hypervisor::selfcheck::{check_counts, check_mappings_of};
use hypervisor::stage2::{Entry as TableEntry, Kind, walk};
use hypervisor::vcpu::Run as RunState;
use pv_abi::grant::GrantEntry;
use pv_abi::{DomId, Port as PortNumber};
use zerocopy::{FromBytes, IntoBytes};

use super::Run;
use crate::spec::{
    Domain as Wanted, Entry, Fifo, Held, InfoAt, Place, Polls, Port, Quota, SharedPage, Spec, Use, Vcpu,
    Watched,
};

/// Mappings that a domain of a [`World`] may hold: one frame of 16-byte entries, as Xen counts.
const HANDLES: u32 = 255;
/// Ports that can be named before any is in use.
const FIRST_PORTS: u32 = 64;

/// The specification of a machine as it was built: what RAM it has, and where.
pub(super) fn observe(world: &World, domains: impl Iterator<Item = u16>) -> Spec {
    let mut spec = Spec { most_references: world.machine.frames.table.most(), ..Spec::default() };
    for id in domains {
        let domain = world.domain(id);
        let places = places(world, domain);
        let ram: BTreeSet<u64> = places
            .values()
            .filter_map(|place| match place {
                Place::Ram(frame) => Some(*frame),
                Place::Shared(_) | Place::Grant { .. } => None,
            })
            .collect();
        let state = domain.state.lock();
        let quota = Quota {
            ports: u32::try_from(domain.ports.len()).expect("few"),
            grant_frames: state.grants.max_frames(),
            handles: HANDLES,
            ram: state.memory.max_frames,
        };
        // What is loaded at boot is not the specification's; the pages that steps use are empty.
        for gfn in super::act::RAM_POOL.into_iter().chain(super::act::POOL) {
            if let Some(Place::Ram(frame)) = places.get(&gfn) {
                spec.bytes.insert(*frame, vec![0; 4096]);
            }
        }
        let vcpu = |number: usize| Vcpu {
            info: if number == 0 { InfoAt::SharedInfo } else { InfoAt::Nowhere },
            selector: 0,
            upcall: false,
            blocked: false,
            polls: Polls::Nothing,
            runstate: Vec::new(),
        };
        let wanted = Wanted {
            quota,
            ram,
            places: Watched::new(places),
            highest: state.stage2.highest_gfn().get(),
            grant_frames: 1,
            entries: Watched::new(BTreeMap::new()),
            uses: Watched::new(BTreeMap::new()),
            held: Watched::new(BTreeMap::new()),
            ports: BTreeMap::new(),
            known_ports: FIRST_PORTS,
            pending: BTreeSet::new(),
            masked: BTreeSet::new(),
            vcpus: (0..domain.vcpus.len()).map(vcpu).collect(),
            fifo: None,
            pauses: 0,
            watchdogs: [false; 2],
            paging: super::paging::observe(world, id),
        };
        spec.domains.insert(id, wanted);
    }
    spec
}

/// What every guest frame of a domain shows.
fn places(world: &World, domain: &Domain) -> BTreeMap<u64, Place> {
    let mut found = BTreeMap::new();
    each_place(world, domain, |gfn, place| {
        found.insert(gfn, place);
        true
    });
    found
}

/// Shows what every guest frame of a domain shows, in order, until `visit` says false.
fn each_place(world: &World, domain: &Domain, mut visit: impl FnMut(u64, Place) -> bool) {
    let state = domain.state.lock();
    let shared = |mfn: Mfn| {
        if mfn == domain.shared_info {
            return SharedPage::Info;
        }
        let index = (0..state.grants.frames()).find(|index| state.grants.frame(*index) == Some(mfn));
        SharedPage::Grant(index.unwrap_or(u32::MAX))
    };
    walk(&world.machine.hw, domain.stage2_root, |entry| {
        let TableEntry::Leaf { gfn, order, mapping, .. } = entry else { return true };
        (0..1 << order).all(|offset| {
            let frame = mapping.mfn.get() + offset;
            let place = match mapping.kind {
                Kind::Ram | Kind::Data | Kind::Table | Kind::Text => Place::Ram(frame),
                Kind::Shared => Place::Shared(shared(mapping.mfn)),
                Kind::GrantWritable => Place::Grant { frame, writable: true },
                Kind::GrantReadOnly => Place::Grant { frame, writable: false },
                Kind::Device => return true,
            };
            visit(gfn.get() + offset, place)
        })
    });
}

/// The first of two maps' entries that differ, for a message.
fn differ<K: Ord + std::fmt::Debug + Copy, V: PartialEq + std::fmt::Debug>(
    what: &str,
    found: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
) -> Result<(), String> {
    if found == wanted {
        return Ok(());
    }
    let keys: BTreeSet<K> = found.keys().chain(wanted.keys()).copied().collect();
    let key = keys.into_iter().find(|key| found.get(key) != wanted.get(key)).expect("they differ");
    Err(format!("{what} {key:x?}: {:x?}, specified {:x?}", found.get(&key), wanted.get(&key)))
}

fn same<T: PartialEq + std::fmt::Debug>(
    what: impl FnOnce() -> String,
    found: &T,
    wanted: &T,
) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{}: {found:x?}, specified {wanted:x?}", what())) }
}

/// What a step may have changed on the machine.
#[derive(Default)]
struct Traces {
    /// The frame table, and what the hypervisor remembers of grants: what counts depend on.
    counts: bool,
    /// By domain: stage-2 tables; and frames of the grant table, shared or not.
    domains: [(bool, bool); MOST_DOMAINS],
}

/// Domains of a machine, and one: ids begin with 1.
const MOST_DOMAINS: usize = 5;

impl Run {
    /// What was written since the last time. Guests' own data is not looked at: it is compared where a call writes it.
    fn traces(&mut self) -> Traces {
        let (machine, states, mut traces) = (&self.world.machine, &mut self.states, Traces::default());
        let table = &machine.frames.table;
        let mut everything = false;
        machine.hw.take_written(|mfn| {
            let Some(state) = table.state(mfn) else { return };
            let of_owner = traces.domains.get_mut(usize::from(state.owner.0));
            match (state.role, of_owner) {
                (Role::Stage2Table, Some((tables, _))) => *tables = true,
                (Role::DomainTable, Some((_, grants))) => (traces.counts, *grants) = (true, true),
                (Role::Shared, Some((_, grants))) => {
                    // The shared-info page is compared after every step.
                    *grants |= self.world.domain(state.owner.0).shared_info != mfn;
                }
                (role, _) if role.is_ram() || role == Role::Hypervisor => {}
                // It was something else when it was written.
                _ => everything = true,
            }
        });
        if !table.words().eq(states.iter().copied()) {
            states.clear();
            states.extend(table.words());
            traces.counts = true;
        }
        if everything { Traces { counts: true, domains: [(true, true); MOST_DOMAINS] } } else { traces }
    }

    /// Compares everything; what has not changed, neither on the machine nor in the specification, only `thoroughly`.
    pub(crate) fn agree(&mut self, thoroughly: bool) -> Result<(), String> {
        let traces = self.traces();
        if thoroughly {
            self.spec.check()?;
            check_channels(&self.world.machine).map_err(|one| format!("self-check: {one:?}"))?;
        }
        let machine = &self.world.machine;
        let any_table = thoroughly || traces.domains.iter().any(|(tables, _)| *tables);
        let checked = if traces.counts || thoroughly { check_counts(machine) } else { Ok(()) };
        checked
            .and_then(|()| {
                let mut written = machine.domains.iter().filter(|domain| {
                    let traces = traces.domains.get(usize::from(domain.id.0));
                    thoroughly || traces.is_none_or(|(tables, _)| *tables)
                });
                written.try_for_each(|domain| check_mappings_of(machine, domain))
            })
            .map_err(|violation| format!("self-check: {violation:x?}"))?;
        // What a TLB remembers was there when it looked: only who changes tables makes it stale.
        if any_table && let Some(stale) = machine.hw.stale_translation() {
            return Err(format!("the TLB remembers what is not there: {stale:x?}"));
        }
        machine.hw.take_ops();
        for id in self.spec.domains.keys().copied().collect::<Vec<_>>() {
            let (mut tables, mut grants) = traces.domains.get(usize::from(id)).copied().unwrap_or_default();
            let wanted = self.spec.of_mut(id);
            let roles = wanted.paging.as_mut().is_some_and(|paging| paging.roles.take_touched());
            tables |= wanted.places.take_touched() || roles || thoroughly;
            for touched in
                [wanted.uses.take_touched(), wanted.held.take_touched(), wanted.entries.take_touched()]
            {
                grants |= touched || thoroughly;
            }
            let compared = self.domain(id, self.spec.of(id), (tables, grants), thoroughly);
            compared.map_err(|error| format!("domain {id}: {error}"))?;
        }
        if thoroughly {
            self.spec.domains.keys().try_for_each(|id| self.promised(*id))?;
            for frame in self.spec.bytes.keys() {
                self.holds(*frame)?;
            }
        }
        Ok(())
    }

    /// Compares the bytes of a frame, if they are known.
    pub(super) fn holds(&self, frame: u64) -> Result<(), String> {
        let Some(wanted) = self.spec.bytes.get(&frame) else { return Ok(()) };
        let found = self.world.machine.hw.frame_bytes(Mfn::new(frame).expect("a frame"));
        if found[..] == wanted[..] {
            return Ok(());
        }
        match found.iter().zip(wanted).position(|(found, wanted)| found != wanted) {
            None => Ok(()),
            Some(at) => Err(format!(
                "byte {at:#x} of frame {frame:#x}: {:#x}, specified {:#x}",
                found[at], wanted[at]
            )),
        }
    }

    fn domain(
        &self,
        id: u16,
        wanted: &Wanted,
        (tables, grants): (bool, bool),
        thoroughly: bool,
    ) -> Result<(), String> {
        let domain = self.world.domain(id);
        same(|| "life".into(), &domain.life.get(), &Life::Running)?;
        self.events(domain, wanted)?;
        let frames = domain.state.lock().grants.frames();
        same(|| "frames of the grant table".into(), &frames, &wanted.grant_frames)?;
        if grants {
            self.grants(domain, wanted)?;
        }
        self.frames(id, domain, wanted, thoroughly)?;
        if tables {
            self.roles(id)?;
            let mut all = wanted.places.iter();
            let mut agrees = true;
            each_place(&self.world, domain, |gfn, place| {
                agrees = all.next() == Some((&gfn, &place));
                agrees
            });
            if !agrees || all.next().is_some() {
                differ("guest frame", &places(&self.world, domain), &wanted.places)?;
            }
        }
        Ok(())
    }

    fn events(&self, domain: &Domain, wanted: &Wanted) -> Result<(), String> {
        let wanted_pauses = wanted.pauses != 0;
        let port = |number: u32| {
            let word = find(domain, PortNumber(number)).ok()?;
            let kind = match word.kind {
                PortKind::Free => return None,
                PortKind::Unbound(by) => Port::Unbound { by: by.0 },
                PortKind::Interdomain(dom, port) => Port::Channel { dom: dom.0, port: port.0 },
                PortKind::Virq(virq) => Port::Virq(u32::from(virq)),
                PortKind::Ipi => Port::Ipi,
            };
            Some((number, (kind, u32::from(word.vcpu))))
        };
        let ports = || (0..wanted.known_ports).filter_map(port);
        if !ports().eq(wanted.ports.iter().map(|(number, port)| (*number, *port))) {
            differ("port", &ports().collect(), &wanted.ports)?;
        }
        let known = wanted.known_ports;
        if known != 0 && find(domain, PortNumber(known - 1)).is_err() {
            return Err(format!("port {} cannot be named", known - 1));
        }
        if find(domain, PortNumber(known)).is_ok() {
            return Err(format!("port {known} can be named"));
        }
        let mut words = [0_u64; 128];
        let at = FrameAddr::new(domain.shared_info, crate::PENDING).expect("in the page");
        self.world.machine.hw.peek(at, words.as_mut_bytes());
        let (pending, masked) = words.split_at(64);
        for (what, words, wanted) in
            [("pending", pending, &wanted.pending), ("masked", masked, &wanted.masked)]
        {
            let set = || {
                (0_u32..).zip(words).filter(|(_, word)| **word != 0).flat_map(|(index, word)| {
                    (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 64 + bit)
                })
            };
            if !set().eq(wanted.iter().copied()) {
                return Err(format!("{what}: {:x?}, specified {wanted:x?}", set().collect::<Vec<_>>()));
            }
        }
        let mut queues: Vec<u64> = held(domain).map(Mfn::get).collect();
        let mut specified: Vec<u64> = wanted.fifo.iter().flat_map(Fifo::frames).collect();
        queues.sort_unstable();
        specified.sort_unstable();
        same(|| "pages of queues".into(), &queues, &specified)?;
        specified.dedup();
        specified.into_iter().try_for_each(|frame| self.holds(frame))?;
        for (vcpu, wanted) in domain.vcpus.iter().zip(&wanted.vcpus) {
            let number = vcpu.number;
            let at = vcpu.info_at();
            let found = match at {
                None => InfoAt::Nowhere,
                Some(at) if at == FrameAddr::start(domain.shared_info) => InfoAt::SharedInfo,
                Some(at) => InfoAt::Frame(at.frame().get(), u16::try_from(at.offset()).expect("inside")),
            };
            same(|| format!("vcpu_info of {number}"), &found, &wanted.info)?;
            if let Some(at) = at {
                let (selector, upcall) = self.words(at);
                same(|| format!("selector of {number}"), &selector, &wanted.selector)?;
                same(|| format!("upcall of {number}"), &upcall, &wanted.upcall)?;
            }
            let paused = vcpu.run.get() == RunState::Paused;
            let is_on = !matches!(vcpu.run.get(), RunState::Offline | RunState::Blocked);
            same(|| format!("{number} is paused"), &paused, &(is_on && wanted_pauses))?;
            same(|| format!("{number} waits"), &(vcpu.run.get() == RunState::Blocked), &wanted.blocked)?;
            let areas = || vcpu.runstate.area().into_iter().flatten().map(|at| at.frame().get());
            if !areas().eq(wanted.runstate.iter().copied()) {
                let found = areas().collect::<Vec<_>>();
                return Err(format!(
                    "run-state area of {number}: {found:x?}, specified {:x?}",
                    wanted.runstate
                ));
            }
        }
        Ok(())
    }

    /// Selector and upcall byte of a `vcpu_info`.
    pub(super) fn words(&self, at: FrameAddr) -> (u64, bool) {
        let mut bytes = [0; 16];
        self.world.machine.hw.peek(at, &mut bytes);
        let selector: [u8; 8] = std::array::from_fn(|index| bytes[8 + index]);
        (u64::from_le_bytes(selector), bytes[0] != 0)
    }

    fn grants(&self, domain: &Domain, wanted: &Wanted) -> Result<(), String> {
        let (machine, state) = (&self.world.machine, domain.state.lock());
        let mut uses = BTreeMap::new();
        state.grants.pinned(machine, |gref, active| {
            let (reads, writes) = active.pins();
            if let Some((frame, user)) = active.mfn().zip(active.user()) {
                let (reads, writes) = (usize::from(reads), usize::from(writes));
                uses.insert(gref.0, Use { frame: frame.get(), user: user.0, reads, writes });
            }
        });
        differ("use of reference", &uses, &wanted.uses)?;
        let (mut held, mut next) = (BTreeMap::new(), Some(0));
        while let Some(from) = next {
            next = state.grants.mappings(&machine.hw, from, |handle, track| {
                if let Track::Mapped { granter, gref, gfn, writable } = track {
                    held.insert(handle, Held { granter: granter.0, gref: gref.0, gfn: gfn.get(), writable });
                }
            });
        }
        differ("handle", &held, &wanted.held)?;
        let mut wanted = wanted
            .entries
            .iter()
            .map(|(gref, entry)| (*gref, *entry))
            .filter(|(_, entry)| *entry != Entry::default());
        for (first, frame) in (0..state.grants.frames()).map(|index| (index * 512, state.grants.frame(index)))
        {
            let mut words = [0_u64; 512];
            machine.hw.peek(
                FrameAddr::start(frame.ok_or("a frame of the grant table is missing")?),
                words.as_mut_bytes(),
            );
            for (gref, word) in (first..).zip(words).filter(|(_, word)| *word != 0) {
                let found = GrantEntry::read_from_bytes(&word.to_le_bytes()).expect("8 bytes");
                let found = Entry { flags: found.flags, domid: found.domid.0, frame: found.frame };
                same(|| format!("entry {gref}"), &Some((gref, found)), &wanted.next())?;
            }
        }
        same(|| "an entry".into(), &None, &wanted.next())?;
        Ok(())
    }

    fn frames(&self, id: u16, domain: &Domain, wanted: &Wanted, thoroughly: bool) -> Result<(), String> {
        let table = &self.world.machine.frames.table;
        let count = wanted.ram.len() as u64;
        same(|| "frames of RAM".into(), &table.ram_total(DomId(id)), &count)?;
        let (memory, highest) = {
            let state = domain.state.lock();
            (state.memory.frames, state.stage2.highest_gfn())
        };
        same(|| "RAM that is counted".into(), &memory, &count)?;
        same(|| "the highest guest frame".into(), &Some(highest), &Gfn::new(wanted.highest))?;
        let held: Vec<u64> = wanted
            .uses
            .values()
            .map(|used| used.frame)
            .chain(wanted.vcpus.iter().flat_map(Vcpu::areas))
            .chain(wanted.fifo.iter().flat_map(Fifo::frames))
            .collect();
        let counted = self.spec.counted(id);
        let agrees = |frame: u64| {
            let found = Mfn::new(frame).and_then(|mfn| table.state(mfn));
            let found = found.map(|found| (found.owner.0, found.role, found.count));
            let count = held.iter().filter(|held| **held == frame).count() as u32;
            let count = count + counted.get(&frame).copied().unwrap_or(0);
            let role = super::paging::as_found(self.spec.role(id, frame));
            same(|| format!("frame {frame:#x}"), &found, &Some((id, role, count)))
        };
        if thoroughly {
            return wanted.ram.iter().copied().try_for_each(agrees);
        }
        // The self-check compares every count with the holders that the machine itself knows.
        held.iter().copied().try_for_each(agrees)?;
        for gfn in super::act::RAM_POOL {
            if let Some(Place::Ram(frame)) = wanted.places.get(&gfn) {
                agrees(*frame)?;
            }
        }
        Ok(())
    }
}
