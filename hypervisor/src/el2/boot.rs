//! The steps of the boot, in the order in which `main.rs` takes them.
#![expect(unsafe_code, reason = "hands out memory and devices that the device tree names")]

use core::ptr::with_exposed_provenance;
use core::slice;
use core::sync::atomic::Ordering;

use hypervisor::addr::Mfn;
use hypervisor::devicetree::{
    CpuStart, DomainConfig, Domains, HostGic, HostMachine, PhysRange, PsciConduit, RangeSet, Tree,
    has_dom0_modules,
};
use hypervisor::domain::{Domain, MAX_DOMAINS};
use hypervisor::domain_build::{BootState, Builder, Host, Shape, Storage, storage_of};
use hypervisor::frame::{FrameEntry, FrameTable};
use hypervisor::frame_alloc::Frames;
use hypervisor::hardware::CpuId;
use hypervisor::sched::plan::{self, Plan};
use hypervisor::sched::{MAX_CPUS, MAX_VCPUS};
use hypervisor::vcpu::{Vcpu, VcpuIndex};
use platform::mailbox::Question;
use platform::uart::{Console, Early, Kind as UartKind};
use pv_abi::PAGE_SIZE;

use super::arm::Arm;
use super::bug::stop;
use super::carve::Carve;
use super::context::ArchVcpu;
use super::finish::{Conduit, cpu_on, set_conduit};
use super::mmu::{self, Kind};
use super::percpu::{ENTRIES, PerCpu, STACKS};
use super::{Interrupts, board, console, direct, gic, passthrough, speculation, timer};

const PAGE: u64 = PAGE_SIZE as u64;
/// Regions that RAM is in use for at boot: reserved ones, modules, image, tree, storage.
const MAX_HOLES: usize = 704;
/// Boot storage besides the frame table and what each domain needs ([`storage`]).
const STORAGE_BASE: u64 = 256 << 10;
/// Bytes of a GICv2's CPU interface with `GICC_DIR`, and of a virtual one.
const GICC_SIZE: u64 = 0x2000;
/// Shared interrupts of a guest's distributor, as Xen gives its dom0less guests without devices.
pub const GUEST_SPIS: usize = 32;

/// Prints to the UART that a packer named in the image, until the device tree names one.
pub fn early_console() {
    unsafe extern "C" {
        static early_uart: Early;
    }
    // SAFETY: two words behind the image's header, which nobody writes.
    let early = unsafe { (&raw const early_uart).read_volatile() };
    let size = u64::from(early.status).saturating_add(4);
    if early.address != 0 && mmu::map(early.address, size, Kind::Device).is_ok() {
        console::init(Console::Early(early, direct::virt(early.address)));
    }
}

/// Maps and checks the device tree at a physical address.
pub fn tree(pa: u64) -> Tree<'static> {
    if pa & 7 != 0 || pa >= direct::LIMIT || mmu::map(pa, PAGE, Kind::Memory).is_err() {
        stop("x0 holds no address of a device tree");
    }
    let first = with_exposed_provenance::<u32>(direct::virt(pa));
    // SAFETY: mapped just now; the page is RAM by the boot protocol and nobody writes it.
    let start = unsafe { first.cast::<[u32; 2]>().read() };
    let Ok(length) = Tree::length(start) else { stop("x0 points to no device tree") };
    if mmu::map(pa, u64::from(length), Kind::Memory).is_err() {
        stop("the device tree cannot be mapped");
    }
    // SAFETY: mapped, RAM, and kept for ever by `memory`, which reserves the tree's range.
    let words = unsafe { slice::from_raw_parts(first, (length as usize).div_ceil(4)) };
    match Tree::new(words) {
        Ok(tree) => tree,
        Err(_) => stop("the device tree is damaged"),
    }
}

/// Reads the machine's description, brings up the console.
pub fn machine(tree: &Tree<'static>, pa: u64) -> HostMachine<'static> {
    let Ok(host) = HostMachine::read(tree, pa) else {
        stop("the device tree does not describe a machine with memory, CPUs, GIC and timer")
    };
    board::find(tree);
    if let Some(uart) = host.uart {
        let registers = uart.registers;
        let driver = UartKind::ALL.iter().find(|(name, _)| uart.is_compatible(name));
        if let Some((_, kind)) = driver
            && mmu::map(registers.start(), registers.size(), Kind::Device).is_ok()
        {
            let clock = || board::ask(kind.clock());
            // SAFETY: the tree says that such a UART is there; it is mapped as a device and given to no guest.
            let console = unsafe { Console::open(*kind, direct::virt(registers.start()), uart.baud, clock) };
            if let Some(console) = console {
                console::init(console);
            }
        }
    }
    if !timer::set_frequency(host.timer_clock_hz) {
        stop("nobody says the counter's frequency: CNTFRQ_EL0 is 0, and the timer has no clock-frequency");
    }
    if host.psci == Some(PsciConduit::Smc) {
        speculation::decide();
    }
    if let Some(conduit) = host.psci {
        set_conduit(match conduit {
            PsciConduit::Smc => Conduit::Smc,
            PsciConduit::Hvc => Conduit::Hvc,
        });
    }
    host
}

/// Sets the interrupt controller up; returns the interrupts that EL2 serves.
pub fn interrupt_controller(host: &HostMachine<'_>) -> Interrupts {
    let map = |range: &PhysRange| {
        if mmu::map(range.start(), range.size(), Kind::Device).is_err() {
            stop("the interrupt controller cannot be mapped");
        }
        direct::virt(range.start())
    };
    let (responds, maintenance) = match &host.gic {
        HostGic::V2 { distributor, cpu_interface, hypervisor_interface, virtual_interface, maintenance } => {
            if cpu_interface.size() < GICC_SIZE {
                stop("the GICv2's CPU interface has no second page: end of interrupt cannot be split");
            }
            // Guests get these pages: nothing else may be in them.
            if virtual_interface.start() % PAGE != 0 || virtual_interface.size() < GICC_SIZE {
                stop("the GICv2's virtual CPU interface is not two pages of its own");
            }
            let frames = gic::Frames {
                distributor: map(distributor),
                cpu_interface: map(cpu_interface),
                virtual_interface: map(hypervisor_interface),
            };
            // SAFETY: mapped as devices for ever; nothing else uses them.
            (unsafe { gic::init_distributor(frames) }.is_ok(), *maintenance)
        }
        HostGic::V3 { distributor, redistributors, maintenance, .. } => {
            for range in redistributors {
                map(range);
            }
            // SAFETY: mapped as a device; nothing else uses the distributor.
            (unsafe { platform::gicv3::init_distributor(map(distributor)) }.is_ok(), *maintenance)
        }
    };
    if !responds {
        stop("the interrupt controller does not respond");
    }
    Interrupts { virtual_timer: host.timer.virtual_, hypervisor_timer: host.timer.hypervisor, maintenance }
}

/// Sets this CPU's part of the interrupt controller up.
pub fn cpu_interrupts(host: &HostMachine<'_>, interrupts: Interrupts, cpu: &PerCpu) {
    let enabled = [gic::KICK, interrupts.virtual_timer, interrupts.hypervisor_timer, interrupts.maintenance];
    match &host.gic {
        HostGic::V2 { .. } => gic::init_private(&enabled),
        HostGic::V3 { redistributors, .. } => wake_redistributor(redistributors, &enabled, cpu),
    }
    gic::init_cpu(cpu);
}

/// Sets this CPU's redistributor up.
fn wake_redistributor(redistributors: &[PhysRange], enabled: &[u32], cpu: &PerCpu) {
    let mpidr = super::regs::mpidr_el1::read();
    let found = redistributors.iter().find_map(|region| {
        // SAFETY: `interrupt_controller` mapped the region as a device.
        unsafe {
            platform::gicv3::find_redistributor(direct::virt(region.start()), region.size() as usize, mpidr)
        }
    });
    let Some(address) = found else { stop("this CPU has no redistributor") };
    // SAFETY: it is this CPU's.
    if unsafe { platform::gicv3::init_redistributor(address, enabled) }.is_err() {
        stop("a redistributor does not respond");
    }
    cpu.redistributor.set(address);
}

/// RAM as the boot leaves it: what is free, and storage for ever.
pub struct Memory {
    /// Every frame.
    pub frames: Frames,
    /// Storage for the domains.
    pub carve: Carve,
    /// Bytes of the image, of storage and of the frame table.
    pub resident: u64,
}

/// Maps all RAM, makes the frame table, and frees what nothing uses.
pub fn memory(tree: &Tree<'static>, host: &HostMachine<'static>) -> Memory {
    let mut holes = RangeSet::<MAX_HOLES>::new();
    let mut keep = |range: Option<PhysRange>| {
        if range.is_some_and(|range| holes.insert(pages(range)).is_err()) {
            stop("the device tree reserves too many regions");
        }
    };
    let image = PhysRange::new(mmu::load_address(), super::image_size());
    keep(image);
    keep(Some(host.tree));
    for range in host.reserved.as_slice() {
        keep(Some(*range));
    }
    let mut domains = 0_u64;
    for config in configs(tree).flatten() {
        domains = domains.saturating_add(storage(&config));
        keep(Some(config.kernel));
        keep(config.ramdisk);
        keep(config.device_tree);
    }
    let mut no_map = RangeSet::<192>::new();
    for range in host.no_map.as_slice() {
        if no_map.insert(pages(*range)).is_err() {
            stop("the device tree reserves too many regions");
        }
    }
    for bank in host.ram.as_slice() {
        map_around(*bank, no_map.as_slice());
    }
    let banks = || host.ram.as_slice().iter().filter(|bank| bank.end() <= direct::LIMIT);
    let lowest = banks().map(|bank| bank.start()).min().unwrap_or(0) / PAGE;
    let highest = banks().map(|bank| bank.end()).max().unwrap_or(0) / PAGE;
    let count = highest.saturating_sub(lowest);
    let table_size = count.saturating_mul(size_of::<FrameEntry>() as u64).next_power_of_two();
    let storage_size = STORAGE_BASE.saturating_add(domains);
    let size = table_size.saturating_add(storage_size);
    let size = size.saturating_add(PAGE - 1) & !(PAGE - 1);
    let place = banks().find_map(|bank| last_gap(*bank, holes.as_slice(), size, table_size));
    let Some(place) = place else { stop("no room for the frame table in RAM") };
    // SAFETY: RAM that nothing uses, mapped; it becomes a hole below, so nobody else gets it.
    let carve = unsafe { Carve::new(place.start(), place.size() as usize) };
    let entries = carve.slice(count as usize, |_| FrameEntry::new());
    let table = entries.and_then(|entries| FrameTable::new(Mfn::new(lowest)?, entries));
    let Some(table) = table else { stop("no room for the frame table in RAM") };
    for range in [Some(place), image].into_iter().flatten() {
        for frame in range.start() / PAGE..range.end() / PAGE {
            let _ = Mfn::new(frame).map(|mfn| table.claim(mfn));
        }
    }
    if holes.insert(place).is_err() {
        stop("the device tree reserves too many regions");
    }
    let frames = Frames::new(table);
    for bank in banks() {
        give(&frames, *bank, holes.as_slice());
    }
    let resident = super::image_size().saturating_add(place.size());
    Memory { frames, carve, resident }
}

/// Maps a bank without what nobody may map: a cacheable mapping alone lets the CPU read ahead there.
fn map_around(bank: PhysRange, no_map: &[PhysRange]) {
    let map = |start: u64, end: u64| {
        if start < end && mmu::map(start, end.wrapping_sub(start), Kind::Memory).is_err() {
            stop("RAM is scattered over more regions than EL2's tables can map");
        }
    };
    let mut at = bank.start();
    for hole in no_map.iter().filter(|hole| hole.overlaps(bank)) {
        map(at, hole.start());
        at = at.max(hole.end());
    }
    map(at, bank.end());
}

/// Boot storage that a domain needs: its own slices, and its part of those that hold all domains and all vCPUs, which may take up to twice what is in
/// them.
fn storage(config: &DomainConfig<'_>) -> u64 {
    let domain =
        size_of::<Option<Domain>>().wrapping_add(size_of::<Option<DomainConfig<'_>>>()).wrapping_mul(2);
    let vcpu = size_of::<ArchVcpu>().wrapping_add(size_of::<(&Domain, &Vcpu)>());
    let vcpus = (config.vcpus as usize).saturating_mul(vcpu);
    storage_of(config).saturating_add(domain.saturating_add(vcpus).saturating_mul(2) as u64)
}

/// A range widened to whole pages.
fn pages(range: PhysRange) -> PhysRange {
    let start = range.start() & !(PAGE - 1);
    let end = range.end().saturating_add(PAGE - 1) & !(PAGE - 1);
    PhysRange::new(start, end.saturating_sub(start)).unwrap_or(range)
}

/// The highest gap of `size` bytes in a bank, which `holes` (sorted) leave, at a multiple of `step`, a power of two: the storage is cut in
/// blocks that stand at multiples of their size.
fn last_gap(bank: PhysRange, holes: &[PhysRange], size: u64, step: u64) -> Option<PhysRange> {
    let below = |end: u64| {
        let start = end.checked_sub(size)? & !step.saturating_sub(1);
        PhysRange::new(start, size).filter(|_| start >= bank.start())
    };
    let mut end = bank.end();
    for hole in holes.iter().rev().filter(|hole| hole.overlaps(bank)) {
        if below(end).is_some_and(|gap| gap.start() >= hole.end()) {
            break;
        }
        end = end.min(hole.start());
    }
    below(end).filter(|gap| !holes.iter().any(|hole| hole.overlaps(*gap)))
}

/// Frees the frames of a bank that no hole covers.
fn give(frames: &Frames, bank: PhysRange, holes: &[PhysRange]) {
    let mut at = bank.start();
    for hole in holes.iter().filter(|hole| hole.overlaps(bank)) {
        give_range(frames, at, hole.start());
        at = at.max(hole.end());
    }
    give_range(frames, at, bank.end());
}

fn give_range(frames: &Frames, start: u64, end: u64) {
    let first = Mfn::new(start.saturating_add(PAGE - 1) / PAGE);
    let last = Mfn::new(end / PAGE);
    if let (Some(first), Some(last)) = (first, last)
        && first < last
    {
        frames.give(first..last);
    }
}

/// The domains' configurations, without the refused ones' reasons.
fn configs(tree: &Tree<'static>) -> impl Iterator<Item = Result<DomainConfig<'static>, ()>> {
    Domains::new(tree).ok().into_iter().flatten().take(MAX_DOMAINS).map(|config| config.map_err(|_| ()))
}

/// The domains, and how each starts.
pub struct Guests {
    /// Domains in order of ids.
    pub domains: &'static [Domain],
    /// For each domain, how its first vCPU starts.
    pub starts: heapless::Vec<BootState, MAX_DOMAINS>,
    /// Every vCPU of the machine, with its domain.
    pub vcpus: &'static [(&'static Domain, &'static Vcpu)],
    /// What each domain was built of, in the same order.
    pub configs: &'static [DomainConfig<'static>],
    /// The pools of CPUs.
    pub plan: Plan,
}

/// Builds every domain that the tree describes; each that cannot be is one line in the log.
pub fn domains(tree: &Tree<'static>, host: &HostMachine<'static>, memory: &Memory, cpus: u8) -> Guests {
    match has_dom0_modules(tree) {
        Ok(false) => {}
        Ok(true) => defmt::warn!("d0: refused: there is no dom0 here, its modules are ignored"),
        Err(_) => stop("the device tree is damaged"),
    }
    let Ok(found) = Domains::new(tree) else { stop("the device tree is damaged") };
    let builder = Builder { hw: &Arm, frames: &memory.frames, host: Host::of(host), storage: &memory.carve };
    let expected = configs(tree).flatten().count();
    let Some(slots) = memory.carve.slice(expected, |_| None) else { stop("no room for the domains") };
    let mut plan = Plan::new(cpus);
    configs(tree).flatten().for_each(|config| plan.make_pool(&config.scheduling));
    let Some(configs) = memory.carve.slice(expected, |_| None) else { stop("no room for the domains") };
    let mut built = 0_usize;
    let mut given = passthrough::Given::new();
    let mut control = None;
    let mut starts = heapless::Vec::<BootState, MAX_DOMAINS>::new();
    let mut vcpus = heapless::Vec::<(u16, u16), MAX_VCPUS>::new();
    for config in found {
        let config = match config {
            Ok(config) => config,
            Err(refusal) => {
                let id = refusal.id.map_or(0, |id| id.0);
                defmt::error!("d{=u16}: refused: {}", id, defmt::Display2Format(&refusal.reason));
                continue;
            }
        };
        let id = config.id.0;
        if built >= MAX_DOMAINS {
            defmt::error!("d{=u16}: refused: there are {=usize} domains already, the most", id, MAX_DOMAINS);
            continue;
        }
        if vcpus.len().saturating_add(config.vcpus as usize) > MAX_VCPUS {
            defmt::error!(
                "d{=u16}: refused: more than {=usize} vCPUs in all: give domains fewer",
                id,
                MAX_VCPUS
            );
            continue;
        }
        let place = match plan.place(&config.scheduling, config.vcpus) {
            Ok(place) => place,
            Err(error) => {
                defmt::error!("d{=u16}: refused: {}", id, defmt::Display2Format(&error));
                continue;
            }
        };
        let shape = Shape {
            vmid: hypervisor::vmid::of(built),
            first_vcpu: VcpuIndex(vcpus.len() as u16),
            first_cpu: CpuId(built.checked_rem(usize::from(cpus)).unwrap_or(0) as u8),
            cpus,
            spis: GUEST_SPIS,
        };
        let scratch = super::scratch();
        let made = passthrough::devices(tree, host, &config, &given).and_then(|devices| {
            let ready = builder.build_with(&config, &shape, devices.as_ref(), scratch)?;
            plan::settle(&ready.domain, place, &config.scheduling, built);
            if let (Some(devices), Some(first)) = (devices, ready.domain.vcpus.first()) {
                passthrough::give(host, config.id, first.home.get(), &devices.assigned, &mut given);
            }
            Ok(ready)
        });
        match made {
            Ok(ready) => {
                if ready.domain.is_control() {
                    control = Some(built);
                }
                for number in 0..config.vcpus {
                    let _ = vcpus.push((built as u16, number as u16));
                }
                defmt::info!(
                    "d{=u16}: {=str}, {=u64} KiB, {=u32} vCPUs",
                    id,
                    config.name,
                    config.memory_kib,
                    config.vcpus
                );
                let _ = starts.push(ready.boot);
                if let Some(slot) = configs.get_mut(built) {
                    *slot = Some(config);
                }
                if let Some(slot) = slots.get_mut(built) {
                    *slot = Some(ready.domain);
                    built = built.saturating_add(1);
                }
            }
            Err(refusal) => defmt::error!("d{=u16}: refused: {}", id, defmt::Display2Format(&refusal)),
        }
    }
    if let Some(control) = control {
        put_first(control, slots, configs, &mut starts, &mut vcpus);
    }
    let domains = slots.get_mut(..built).and_then(|slots| all_present(slots, &memory.carve));
    let vcpus = domains.and_then(|domains| all_vcpus(domains, &vcpus, &memory.carve));
    let configs = configs.get_mut(..built).and_then(|configs| all_present(configs, &memory.carve));
    match (domains, vcpus, configs) {
        (Some(domains), Some(vcpus), Some(configs)) => Guests { domains, starts, vcpus, configs, plan },
        _ => stop("no room for the domains"),
    }
}

/// Ids ascend: the control domain comes first, wherever the tree has it.
fn put_first<D, C>(
    control: usize,
    slots: &mut [D],
    configs: &mut [C],
    starts: &mut [BootState],
    vcpus: &mut [(u16, u16)],
) {
    if let Some((slots, starts)) = slots.get_mut(..=control).zip(starts.get_mut(..=control)) {
        slots.rotate_right(1);
        if let Some(configs) = configs.get_mut(..=control) {
            configs.rotate_right(1);
        }
        starts.rotate_right(1);
    }
    for (domain, _) in vcpus {
        let at = usize::from(*domain);
        *domain = if at == control { 0 } else { domain.wrapping_add(u16::from(at < control)) };
    }
}

/// The vCPUs, of which domain (index) and number are given.
fn all_vcpus(
    domains: &'static [Domain],
    of: &[(u16, u16)],
    carve: &Carve,
) -> Option<&'static [(&'static Domain, &'static Vcpu)]> {
    let found = |(domain, number): &(u16, u16)| {
        let domain = domains.get(usize::from(*domain))?;
        Some((domain, domain.vcpus.get(usize::from(*number))?))
    };
    carve
        .slice(of.len(), |n| match of.get(n).and_then(found) {
            Some(found) => found,
            None => stop("a vCPU got lost"),
        })
        .map(|vcpus| &*vcpus)
}

/// Takes the domains out of their slots.
fn all_present<T: Send + Sync + 'static>(slots: &mut [Option<T>], carve: &Carve) -> Option<&'static [T]> {
    let count = slots.len();
    let mut slots = slots.iter_mut();
    carve
        .slice(count, |_| match slots.next().and_then(Option::take) {
            Some(domain) => domain,
            None => stop("a domain got lost"),
        })
        .map(|domains| &*domains)
}

/// Starts the other CPUs that the tree names; returns how many run.
pub fn start_cpus(host: &HostMachine<'_>) -> u8 {
    unsafe extern "C" {
        fn secondary_start();
    }
    let entry = mmu::image_pa(secondary_start as *const () as usize);
    let own = super::regs::mpidr_el1::read() & AFFINITY;
    let mut running = 1_u8;
    for cpu in host.cpus.iter().filter(|cpu| cpu.mpidr & AFFINITY != own).take(MAX_CPUS - 1) {
        let Some(slot) = ENTRIES.get(usize::from(running)) else { break };
        slot.top.store(STACKS.top(usize::from(running)) as u64, Ordering::Relaxed);
        slot.mpidr.store(cpu.mpidr & AFFINITY, Ordering::Release);
        let started = match cpu.start {
            CpuStart::Psci | CpuStart::Unknown => cpu_on(cpu.mpidr, entry),
            CpuStart::SpinTable { release } => board::release(release, entry) && arrives(running),
        };
        if started {
            running = running.saturating_add(1);
            continue;
        }
        defmt::warn!("CPU {=u64:#x} does not start", cpu.mpidr);
        if matches!(cpu.start, CpuStart::SpinTable { .. }) {
            // It may still come, and its number is its own: it would idle. No other CPU gets that number.
            break;
        }
        slot.mpidr.store(u64::MAX, Ordering::Release);
    }
    running
}

/// Waits, a second at most, for the CPU with this number: a spin table does not say whether anybody reads it.
fn arrives(number: u8) -> bool {
    let deadline = timer::now().saturating_add(timer::ticks(ARRIVAL_MICROSECONDS));
    while super::entered() <= u32::from(number) {
        if timer::now() > deadline {
            return false;
        }
    }
    true
}

const ARRIVAL_MICROSECONDS: u64 = 1_000_000;
/// Affinity fields of `MPIDR_EL1`.
pub const AFFINITY: u64 = 0xFF_00FF_FFFF;

/// What the board's firmware says of it.
pub fn say_board() {
    if let Some(revision) = board::ask(Question::Revision) {
        defmt::info!("board revision {=u32:#x}", revision);
    }
}
