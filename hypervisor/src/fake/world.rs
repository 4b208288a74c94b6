//! Whole domains on the fake machine, for tests of hypercalls.
use core::cell::Cell;
use std::boxed::Box;
use std::vec::Vec;

use pv_abi::DomId;

use super::{COUNTER_FREQUENCY, FakeHardware, LeakedStorage};
use crate::addr::{FrameAddr, Ipa, Mfn};
use crate::devicetree::{DomainConfig, Enhanced, GuestGic, Paging, PhysRange, Quotas};
use crate::domain::Domain;
use crate::domain_build::{Builder, Host, Shape};
use crate::hardware::{CpuId, Hardware, Vmid};
use crate::life::{Action, Plans, Policy, Reaper};
use crate::machine::{Current, Machine};
use crate::sched::pool::{Kind, Pool};
use crate::sched::{MAX_POOLS, Scheduler};
use crate::selfcheck::{Violation, check};
use crate::vcpu::{Vcpu, VcpuIndex};

/// RAM of each domain of a [`World`], KiB: a block of 2 MiB, and pages.
pub const MEMORY_KIB: u64 = (4 << 10) + 128;
/// Where a domain's RAM starts.
pub const RAM: u64 = pv_abi::layout::RAM0_BASE;

/// A machine with one to eight domains of two vCPUs each, nothing run yet. Stage 1 of whoever calls is the identity.
pub struct World {
    /// The machine.
    pub machine: Machine<FakeHardware>,
    reschedule: Cell<bool>,
}

impl World {
    /// A machine with so many domains, ids from 1.
    ///
    /// # Panics
    /// There are too many.
    pub fn new(domains: u16) -> Self {
        Self::numbered(1, domains, u64::from(domains) * 2048 + 1024, None)
    }

    /// A machine as of [`Self::new`] with little free memory: what walks all of it is quick.
    ///
    /// # Panics
    /// There are too many.
    pub fn tight(domains: u16) -> Self {
        Self::numbered(1, domains, u64::from(domains) * 1100 + 400, None)
    }

    /// [`World::tight`] with so many CPUs, at most eight.
    ///
    /// # Panics
    /// There are too many domains.
    pub fn with_cpus(domains: u16, cpus: u8) -> Self {
        Self::built(1, domains, u64::from(domains) * 1100 + 400, &Made { cpus, ..PLAIN })
    }

    /// [`World::tight`], with the first domain's page tables of this kind.
    ///
    /// # Panics
    /// There are too many domains.
    pub fn with_paging(domains: u16, paging: Paging) -> Self {
        Self::built(1, domains, u64::from(domains) * 1100 + 400, &Made { paging, ..PLAIN })
    }

    /// A machine with so many domains, the first of which has a PV console.
    ///
    /// # Panics
    /// There are too many.
    pub fn with_console(domains: u16) -> Self {
        Self::built(1, domains, u64::from(domains) * 2048 + 1024, &Made { console: true, ..PLAIN })
    }

    /// A machine with a control domain and one other, to which that happens when it ends.
    ///
    /// # Panics
    /// Never.
    pub fn limited(policy: Policy) -> Self {
        Self::built(0, 2, 2 * 2048 + 1024, &Made { policy, ..PLAIN })
    }

    /// A machine with so many domains, which share one VMID.
    ///
    /// # Panics
    /// There are too many.
    pub fn of_one_name(domains: u16) -> Self {
        Self::built(1, domains, u64::from(domains) * 2048 + 1024, &Made { one_name: true, ..PLAIN })
    }

    /// A machine with a control domain and so many others, ids from 1.
    ///
    /// # Panics
    /// There are too many.
    pub fn with_control(domains: u16) -> Self {
        Self::numbered(0, domains + 1, u64::from(domains + 1) * 2048 + 1024, None)
    }

    /// [`World::with_paging`] beside a control domain.
    ///
    /// # Panics
    /// There are too many domains.
    pub fn with_control_beside(domains: u16, paging: Paging) -> Self {
        Self::built(0, domains + 1, u64::from(domains + 1) * 1100 + 400, &Made { paging, ..PLAIN })
    }

    /// A machine with a control domain and one other, with page tables of this kind and a PV console.
    ///
    /// # Panics
    /// Never.
    pub fn with_control_and(paging: Paging) -> Self {
        Self::built(0, 2, 2 * 2048 + 1024, &Made { paging, console: true, ..PLAIN })
    }

    /// A machine with so many domains, one of which keeps to itself.
    ///
    /// # Panics
    /// There are too many.
    pub fn with_isolated(domains: u16, isolated: u16) -> Self {
        Self::numbered(1, domains, u64::from(domains) * 2048 + 1024, Some(isolated))
    }

    fn numbered(first: u16, domains: u16, free: u64, isolated: Option<u16>) -> Self {
        Self::built(first, domains, free, &Made { isolated, ..PLAIN })
    }

    fn built(first: u16, domains: u16, free: u64, made: &Made) -> Self {
        let Made { isolated, paging, console, one_name, cpus, policy } = *made;
        let image_base = Mfn::new(0x4_0000).unwrap();
        let free_base = Mfn::new(0x4_0001).unwrap();
        let hw = FakeHardware::new(image_base, free + 1);
        hw.watch_caches();
        hw.clear(image_base);
        hw.write(FrameAddr::new(image_base, 56).unwrap(), b"ARM\x64");
        let frames = super::free_frames(free_base, free);
        let host = Host {
            cpu_compatible: b"arm,armv8\0",
            cpu_clock_hz: None,
            timer_clock_hz: None,
            gic: GuestGic::V3,
            virtual_interface: None,
        };
        let builder = Builder { hw: &hw, frames: &frames, host, storage: &LeakedStorage };
        let kernel = PhysRange::new(image_base.base().get(), 4096).unwrap();
        let config = |id: u16| DomainConfig {
            paging: if id == 1 { paging } else { Paging::Nested },
            isolated: isolated == Some(id),
            console: console && id == 1,
            policy,
            ..config(DomId(id), kernel)
        };
        let build = |id: u16| {
            let shape = Shape {
                vmid: if one_name { Vmid(1) } else { Vmid(id + 1) },
                first_vcpu: VcpuIndex((id - first) * 2),
                first_cpu: CpuId(0),
                cpus,
                spis: 32,
            };
            builder.build(&config(id), &shape, &mut [0; 8192]).expect("a small domain").domain
        };
        let domains: Vec<Domain> = (first..first + domains).map(build).collect();
        let configs = domains.iter().map(|domain| config(domain.id.0)).collect::<Box<[_]>>();
        let count = u16::try_from(domains.len()).unwrap();
        let domains: &'static [Domain] = Box::leak(domains.into_boxed_slice());
        let vcpus = domains.iter().flat_map(|domain| domain.vcpus.iter().map(move |vcpu| (domain, vcpu)));
        let machine = Machine {
            domains,
            first_id: first,
            reaper: Reaper::new(usize::from(count)),
            plans: Plans::new(Box::leak(configs), host, 32),
            vcpus: Box::leak(vcpus.collect::<Box<[_]>>()),
            sched: Scheduler::new(&LeakedStorage, usize::from(cpus), 16, COUNTER_FREQUENCY, pools(cpus))
                .expect("storage"),
            keyboard: crate::console::keyboard::Keyboard::default(),
            wall_clock: crate::wallclock::WallClock::default(),
            hw,
            frames,
        };
        machine.hw.set_identity(true);
        machine.hw.take_ops();
        Self { machine, reschedule: Cell::new(false) }
    }

    /// A domain.
    pub fn domain(&self, id: u16) -> &Domain {
        self.machine.domain(DomId(id)).unwrap()
    }

    /// vCPU `vcpu` of a domain as the caller, on CPU 0; what TLBs remember of it is that of the CPU with its number.
    pub fn current(&self, id: u16, vcpu: u32) -> Current<'_> {
        let domain = self.domain(id);
        self.machine.hw.run_on(CpuId(u8::try_from(vcpu).unwrap_or(0)));
        Current { domain, vcpu: domain.vcpu(vcpu).unwrap(), cpu: CpuId(0), reschedule: &self.reschedule }
    }

    /// Lets a CPU that runs nobody choose: who runs there now.
    pub fn pick(&self, cpu: CpuId) -> Option<&Vcpu> {
        self.machine.sched.choose(&self.machine, cpu, self.machine.hw.counter(), None).next
    }

    /// Whether a call asked for another vCPU to run, since the last time.
    pub fn take_reschedule(&self) -> bool {
        self.reschedule.take()
    }

    /// Writes a domain's memory as the domain would.
    ///
    /// # Panics
    /// It may not write there.
    pub fn guest_write(&self, id: u16, ipa: u64, bytes: &[u8]) {
        let domain = self.domain(id);
        let at = Ipa::new(ipa).unwrap();
        self.machine.hw.guest_write(domain.vmid, domain.stage2_root, at, bytes).unwrap();
    }

    /// Reads a domain's memory as the domain would.
    ///
    /// # Panics
    /// It may not read there.
    pub fn guest_read<const N: usize>(&self, id: u16, ipa: u64) -> [u8; N] {
        let (domain, mut bytes) = (self.domain(id), [0; N]);
        let at = Ipa::new(ipa).unwrap();
        self.machine.hw.guest_read(domain.vmid, domain.stage2_root, at, &mut bytes).unwrap();
        bytes
    }

    /// Checks the whole machine, the TLB included.
    ///
    /// # Panics
    /// Something is wrong.
    pub fn check(&self) {
        assert_eq!(check(&self.machine), Ok::<(), Violation>(()));
        assert_eq!(self.machine.hw.stale_translation(), None, "the TLB remembers what is not there");
    }
}

/// What a world is made with.
struct Made {
    /// Keeps to itself.
    isolated: Option<u16>,
    /// The page tables of domain 1.
    paging: Paging,
    /// Domain 1 has a PV console.
    console: bool,
    /// All have one VMID.
    one_name: bool,
    /// CPUs, at most eight.
    cpus: u8,
    /// What becomes of all of them.
    policy: Policy,
}

const PLAIN: Made =
    Made { isolated: None, paging: Paging::Nested, console: false, one_name: false, cpus: 2, policy: POLICY };
const POLICY: Policy = Policy { on_reboot: Action::Restart, max_restarts: u32::MAX, ..Policy::NONE };

/// One pool of all CPUs.
fn pools(cpus: u8) -> [Pool; MAX_POOLS] {
    let mut cpus = (1 << cpus) - 1;
    [(); MAX_POOLS].map(|()| Pool::new(Kind::Fair, std::mem::take(&mut cpus)))
}

fn config(id: DomId, kernel: PhysRange) -> DomainConfig<'static> {
    DomainConfig {
        id,
        name: "test",
        memory_kib: MEMORY_KIB,
        vcpus: 2,
        vpl011: false,
        console: false,
        enhanced: Enhanced::NoXenstore,
        paging: Paging::Nested,
        isolated: false,
        kernel,
        bootargs: b"",
        ramdisk: None,
        device_tree: None,
        channels: heapless::Vec::new(),
        quotas: Quotas {
            max_ports: 1024,
            grant_frames: 4,
            maptrack_frames: 1,
            stage2_frames: 32,
            memory_kib: MEMORY_KIB,
        },
        policy: POLICY,
        scheduling: crate::sched::plan::Scheduling::default(),
    }
}
