//! The state of the machine against the specification's.
use std::collections::{BTreeMap, BTreeSet};

use hypervisor::addr::{FrameAddr, Gfn, Mfn};
use hypervisor::domain::{Domain, Life};
use hypervisor::evtchn::{PortKind, check_channels, find};
use hypervisor::fake::World;
use hypervisor::frame::Role;
use hypervisor::grant::Track;
use hypervisor::hardware::Hardware;
use hypervisor::selfcheck::{check_counts, check_mappings};
use hypervisor::stage2::{Entry as TableEntry, Kind, walk};
use hypervisor::vcpu::Run as RunState;
use pv_abi::grant::GrantEntry;
use pv_abi::{DomId, Port as PortNumber};
use zerocopy::FromBytes;

use super::Run;
use crate::spec::{Domain as Wanted, Held, InfoAt, Place, Polls, Port, Quota, SharedPage, Spec, Use, Vcpu};

/// Mappings that a domain of a [`World`] may hold: one frame of 16-byte entries, as Xen counts.
const HANDLES: u32 = 256;
/// Ports that can be named before any is in use.
const FIRST_PORTS: u32 = 64;

/// The specification of a machine as it was built: what RAM it has, and where.
pub(super) fn observe(world: &World, domains: u16) -> Spec {
    let mut spec = Spec::default();
    for id in 1..=domains {
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
        for gfn in super::act::RAM_POOL {
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
            places,
            highest: state.stage2.highest_gfn().get(),
            grant_frames: 1,
            entries: BTreeMap::new(),
            uses: BTreeMap::new(),
            held: BTreeMap::new(),
            ports: BTreeMap::new(),
            known_ports: FIRST_PORTS,
            pending: BTreeSet::new(),
            masked: BTreeSet::new(),
            vcpus: (0..domain.vcpus.len()).map(vcpu).collect(),
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

impl Run {
    /// Compares everything; what never changes without a trace on the machine only when there is one, or `thoroughly`.
    pub(crate) fn agree(&mut self, thoroughly: bool) -> Result<(), String> {
        if thoroughly {
            self.spec.check()?;
        }
        let tables = core::mem::take(&mut self.tables) || thoroughly;
        let machine = &self.world.machine;
        check_counts(machine)
            .and_then(|()| if tables { check_mappings(machine) } else { Ok(()) })
            .map_err(|violation| format!("self-check: {violation:x?}"))?;
        check_channels(&self.world.machine).map_err(|one| format!("self-check: {one:?}"))?;
        if let Some(stale) = self.world.machine.hw.stale_translation() {
            return Err(format!("the TLB remembers what is not there: {stale:x?}"));
        }
        self.world.machine.hw.take_ops();
        for (id, wanted) in &self.spec.domains {
            let in_domain = |error: String| format!("domain {id}: {error}");
            self.domain(*id, wanted, tables, thoroughly).map_err(in_domain)?;
        }
        if thoroughly {
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
        match found.iter().zip(wanted).position(|(found, wanted)| found != wanted) {
            None => Ok(()),
            Some(at) => Err(format!(
                "byte {at:#x} of frame {frame:#x}: {:#x}, specified {:#x}",
                found[at], wanted[at]
            )),
        }
    }

    fn domain(&self, id: u16, wanted: &Wanted, tables: bool, thoroughly: bool) -> Result<(), String> {
        let domain = self.world.domain(id);
        same(|| "life".into(), &domain.life.get(), &Life::Running)?;
        self.events(domain, wanted)?;
        self.grants(domain, wanted)?;
        self.frames(id, domain, wanted, thoroughly)?;
        if tables {
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
        let mut ports = BTreeMap::new();
        for number in 0..wanted.known_ports {
            let word =
                find(domain, PortNumber(number)).map_err(|_| format!("port {number} cannot be named"))?;
            let kind = match word.kind {
                PortKind::Free => continue,
                PortKind::Unbound(by) => Port::Unbound { by: by.0 },
                PortKind::Interdomain(dom, port) => Port::Channel { dom: dom.0, port: port.0 },
                PortKind::Virq(virq) => Port::Virq(u32::from(virq)),
                PortKind::Ipi => Port::Ipi,
            };
            ports.insert(number, (kind, u32::from(word.vcpu)));
        }
        differ("port", &ports, &wanted.ports)?;
        if find(domain, PortNumber(wanted.known_ports)).is_ok() {
            return Err(format!("port {} can be named", wanted.known_ports));
        }
        let page = self.world.machine.hw.frame_bytes(domain.shared_info);
        let bits = |at: usize| {
            let (words, _) = page[at..at + 512].as_chunks::<8>();
            let set =
                words.iter().enumerate().filter(|(_, word)| **word != [0; 8]).flat_map(|(index, word)| {
                    let word = u64::from_le_bytes(*word);
                    (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index as u32 * 64 + bit)
                });
            set.collect::<BTreeSet<u32>>()
        };
        same(|| "pending".into(), &bits(crate::PENDING), &wanted.pending)?;
        same(|| "masked".into(), &bits(crate::MASK), &wanted.masked)?;
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
            same(|| format!("{number} waits"), &(vcpu.run.get() == RunState::Blocked), &wanted.blocked)?;
            let areas = vcpu.runstate.area().into_iter().flatten().map(|at| at.frame().get());
            same(|| format!("run-state area of {number}"), &areas.collect::<Vec<_>>(), &wanted.runstate)?;
        }
        Ok(())
    }

    /// Selector and upcall byte of a `vcpu_info`.
    pub(super) fn words(&self, at: FrameAddr) -> (u64, bool) {
        let mut bytes = [0; 16];
        self.world.machine.hw.read(at, &mut bytes);
        let selector: [u8; 8] = std::array::from_fn(|index| bytes[8 + index]);
        (u64::from_le_bytes(selector), bytes[0] != 0)
    }

    fn grants(&self, domain: &Domain, wanted: &Wanted) -> Result<(), String> {
        let (machine, state) = (&self.world.machine, domain.state.lock());
        same(|| "frames of the grant table".into(), &state.grants.frames(), &wanted.grant_frames)?;
        let mut uses = BTreeMap::new();
        state.grants.pinned(machine, |gref, active| {
            let (reads, writes) = active.pins();
            if let Some((frame, user)) = active.mfn().zip(active.user()) {
                let (reads, writes) = (usize::from(reads), usize::from(writes));
                uses.insert(gref.0, Use { frame: frame.get(), user: user.0, reads, writes });
            }
        });
        differ("use of reference", &uses, &wanted.uses)?;
        let (mut held, mut from) = (BTreeMap::new(), 0);
        while let Some((handle, track)) = state.grants.mapping_from(&machine.hw, from, None) {
            from = handle + 1;
            if let Track::Mapped { granter, gref, gfn, writable } = track {
                held.insert(handle, Held { granter: granter.0, gref: gref.0, gfn: gfn.get(), writable });
            }
        }
        differ("handle", &held, &wanted.held)?;
        for gref in wanted.entries.keys().copied().chain(0..24) {
            let Some(frame) = state.grants.frame(gref / 512) else { continue };
            let at = FrameAddr::new(frame, gref as usize % 512 * 8).expect("in the frame");
            let found = GrantEntry::read_from_bytes(&machine.hw.load_u64(at).to_le_bytes()).expect("8 bytes");
            let wanted = wanted.entries.get(&gref).copied().unwrap_or_default();
            let found = crate::spec::Entry { flags: found.flags, domid: found.domid.0, frame: found.frame };
            same(|| format!("entry {gref}"), &found, &wanted)?;
        }
        Ok(())
    }

    fn frames(&self, id: u16, domain: &Domain, wanted: &Wanted, thoroughly: bool) -> Result<(), String> {
        let table = &self.world.machine.frames.table;
        let count = wanted.ram.len() as u64;
        same(|| "frames of RAM".into(), &table.total(DomId(id), Role::Data), &count)?;
        let (memory, highest) = {
            let state = domain.state.lock();
            (state.memory.frames, state.stage2.highest_gfn())
        };
        same(|| "RAM that is counted".into(), &memory, &count)?;
        same(|| "the highest guest frame".into(), &Some(highest), &Gfn::new(wanted.highest))?;
        let mut references = BTreeMap::new();
        for used in wanted.uses.values() {
            *references.entry(used.frame).or_insert(0) += 1;
        }
        for frame in wanted.vcpus.iter().flat_map(Vcpu::areas) {
            *references.entry(frame).or_insert(0) += 1;
        }
        // The self-check compares every count with the holders that the machine itself knows.
        let few = references.keys().copied().chain(super::act::RAM_POOL.iter().filter_map(|gfn| {
            match wanted.places.get(gfn) {
                Some(Place::Ram(frame)) => Some(*frame),
                Some(Place::Shared(_) | Place::Grant { .. }) | None => None,
            }
        }));
        let asked: Vec<u64> = if thoroughly { wanted.ram.iter().copied().collect() } else { few.collect() };
        for frame in &asked {
            let found = Mfn::new(*frame).and_then(|mfn| table.state(mfn));
            let found = found.map(|found| (found.owner.0, found.role, found.count));
            let wanted = (id, Role::Data, references.get(frame).copied().unwrap_or(0));
            same(|| format!("frame {frame:#x}"), &found, &Some(wanted))?;
        }
        Ok(())
    }
}
