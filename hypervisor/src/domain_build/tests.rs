use std::string::ToString;
use std::vec::Vec;

use pv_abi::{DomId, Port};

use super::*;
use crate::devicetree::{Paging, Quotas, StaticChannel};
use crate::evtchn::{PortKind, PortWord};
use crate::fake::{FakeHardware, LeakedStorage, Op};
use crate::hardware::CpuId;
use crate::vcpu::VcpuIndex;

const ONE: DomId = DomId(1);
const MIB: u64 = 1 << 20;
const RAM: u64 = 0x4000_0000;
const SHAPE: Shape =
    Shape { vmid: Vmid(3), first_vcpu: VcpuIndex(5), first_cpu: CpuId(1), cpus: 2, spis: 32 };

const HOST: Host<'_> = Host {
    cpu_compatible: b"arm,cortex-a72\0",
    cpu_clock_hz: None,
    timer_clock_hz: None,
    gic: GuestGic::V3,
    virtual_interface: None,
};

/// A machine whose first `modules` MiB hold modules and whose other `free` MiB are free.
fn machine(modules: u64, free: u64) -> (FakeHardware, Frames) {
    let base = Mfn::new(RAM >> 12).unwrap();
    let hw = FakeHardware::new(base, (modules + free) * 256);
    hw.watch_caches();
    (hw, crate::fake::free_frames(Mfn::new((RAM + modules * MIB) >> 12).unwrap(), free * 256))
}

fn range(start: u64, size: u64) -> PhysRange {
    PhysRange::new(start, size).unwrap()
}

/// Puts bytes at any machine address.
fn put(hw: &FakeHardware, start: u64, bytes: &[u8]) {
    for (offset, byte) in bytes.iter().enumerate() {
        hw.write(crate::addr::FrameAddr::from_pa(Pa::new(start + offset as u64).unwrap()), &[*byte]);
    }
}

/// An arm64 Image of `size` bytes at `start`: header fields at the offsets of Linux's booting.rst.
fn put_image(hw: &FakeHardware, start: u64, size: u64, text_offset: u64, image_size: u64) -> PhysRange {
    put(hw, start, &[0; 64]);
    put(hw, start + 8, &text_offset.to_le_bytes());
    put(hw, start + 16, &image_size.to_le_bytes());
    put(hw, start + 56, b"ARM\x64");
    put(hw, start + size - 4, b"last");
    range(start, size)
}

fn config(kernel: PhysRange, memory_kib: u64) -> DomainConfig<'static> {
    DomainConfig {
        id: ONE,
        name: "one",
        memory_kib,
        vcpus: 2,
        vpl011: false,
        console: false,
        enhanced: Enhanced::NoXenstore,
        paging: Paging::Nested,
        isolated: false,
        kernel,
        bootargs: b"console=hvc0",
        ramdisk: None,
        device_tree: None,
        channels: heapless::Vec::new(),
        quotas: Quotas { max_ports: 128, grant_frames: 4, maptrack_frames: 1, stage2_frames: 64, memory_kib },
        policy: crate::life::Policy::NONE,
        scheduling: crate::sched::plan::Scheduling::default(),
    }
}

fn build(
    hw: &FakeHardware,
    frames: &Frames,
    host: Host<'_>,
    config: &DomainConfig<'_>,
) -> Result<Built, Refusal> {
    Builder { hw, frames, host, storage: &LeakedStorage }.build(config, &SHAPE, &mut [0; 8192])
}

/// Bytes of the guest's memory, read as the guest.
fn guest(hw: &FakeHardware, domain: &Domain, ipa: u64, len: usize) -> Vec<u8> {
    (0..len)
        .map(|offset| {
            let mut byte = [0];
            let ipa = Ipa::new(ipa + offset as u64).unwrap();
            hw.guest_read(domain.vmid, domain.stage2_root, ipa, &mut byte).unwrap();
            byte[0]
        })
        .collect()
}

#[test]
fn a_domain_finds_kernel_ramdisk_and_tree_where_xen_puts_them() {
    let (hw, frames) = machine(8, 64);
    // Modules at addresses that are no page's start.
    let kernel = put_image(&hw, RAM + 0x1234, 0x5_4321, 0x8_0000, 0x6_0000);
    put(&hw, RAM + 4 * MIB + 0xFFF, b"initrd begins here");
    let ramdisk = range(RAM + 4 * MIB + 0xFFF, 0x2_0001);
    put(&hw, ramdisk.end() - 1, b"!");
    let config = DomainConfig { ramdisk: Some(ramdisk), ..config(kernel, 32 << 10) };
    let Built { domain, boot } = build(&hw, &frames, HOST, &config).unwrap();

    assert_eq!(boot.pc.get(), 0x4008_0000);
    // 32 MiB hold no 128 MiB: tree and RAM disk take the last two steps of 2 MiB.
    assert_eq!(boot.x0.get(), 0x4000_0000 + 28 * MIB);
    assert_eq!(guest(&hw, &domain, 0x4008_0000 + 56, 4), b"ARM\x64");
    assert_eq!(guest(&hw, &domain, 0x4008_0000 + 0x5_4321 - 4, 4), b"last");
    assert_eq!(guest(&hw, &domain, 0x4000_0000 + 30 * MIB, 18), b"initrd begins here");
    assert_eq!(guest(&hw, &domain, 0x4000_0000 + 30 * MIB + 0x2_0000, 2), b"!\0");
    let tree = guest(&hw, &domain, boot.x0.get(), 8);
    assert_eq!(tree[..4], 0xD00D_FEED_u32.to_be_bytes(), "a flattened tree");
    let length = u32::from_be_bytes(tree[4..].try_into().unwrap());
    let tree = guest(&hw, &domain, boot.x0.get(), length as usize);
    let holds = |text: &[u8]| tree.windows(text.len()).any(|window| window == text);
    assert!(holds(b"console=hvc0\0"));
    assert!(holds(&(0x4000_0000 + 30 * MIB + 0x2_0001).to_be_bytes()), "the RAM disk's end");
    assert!(holds(b"memory@40000000\0"));
}

#[test]
fn all_memory_is_cleared_and_in_ram_before_a_guest_runs() {
    let (hw, frames) = machine(2, 24);
    // A page and a half.
    let kernel = put_image(&hw, RAM, 0x1800, 0, 0);
    hw.take_ops();
    let Built { domain, boot } = build(&hw, &frames, HOST, &config(kernel, 16 << 10)).unwrap();
    let ops = hw.take_ops();
    let last_change = |frame: Mfn| {
        ops.iter().rposition(|op| match op {
            Op::Clear(of) => *of == frame,
            Op::Write { at, .. } | Op::Copy { to: at, .. } => at.frame() == frame,
            _ => false,
        })
    };
    for number in 0..16 * 256 {
        let gfn = Gfn::new(0x4_0000 + number).unwrap();
        let mapping = crate::stage2::lookup(&hw, domain.stage2_root, gfn).unwrap();
        assert_eq!(mapping.kind, Kind::Ram);
        assert_eq!(frames.table.home(mapping.mfn), Some(gfn));
        let change = last_change(mapping.mfn).unwrap();
        let cleaned = ops.iter().rposition(|op| *op == Op::CleanToMemory(mapping.mfn)).unwrap();
        assert!(cleaned > change, "cleaned after the last change");
        let second = boot.pc.frame().checked_add(1).unwrap();
        let loaded = [boot.pc.frame(), second, boot.x0.frame()].contains(&gfn);
        assert_eq!(ops.contains(&Op::SyncInstructions(mapping.mfn)), loaded);
        if !loaded {
            assert_eq!(hw.frame_bytes(mapping.mfn), [0; 4096]);
        }
    }
    assert_eq!(hw.frame_bytes(domain.shared_info), [0; 4096]);
}

#[test]
fn memory_comes_in_the_largest_blocks_that_are_free() {
    let (hw, frames) = machine(2, 62);
    let kernel = put_image(&hw, RAM, 0x1000, 0, 0);
    // A hole in the first free 2 MiB and the machine's memory is in pieces.
    let held = frames.allocate(0, DomId(9), Role::Data).unwrap();
    let before = frames.free_frames();
    let Built { domain, .. } = build(&hw, &frames, HOST, &config(kernel, 48 << 10)).unwrap();
    let mut blocks = 0;
    crate::stage2::walk(&hw, domain.stage2_root, |entry| {
        if let crate::stage2::Entry::Leaf { order, .. } = entry {
            assert_eq!(order, 9);
            blocks += 1;
        }
        true
    });
    assert_eq!(blocks, 24);
    let tables = u64::from(domain.state.lock().stage2.tables());
    assert_eq!(tables, 3, "two of the root, one of 2 MiB blocks");
    // RAM, tables, shared info, the grant table's first frame and the one beside it.
    assert_eq!(before - frames.free_frames(), 48 * 256 + tables + 3);
    frames.free(held).unwrap();
}

#[test]
fn memory_in_pairs_of_pages_is_as_good() {
    let (hw, frames) = machine(2, 12);
    let kernel = put_image(&hw, RAM, 0x1000, 0, 0);
    let held: Vec<_> = core::iter::from_fn(|| frames.allocate(0, DomId(9), Role::Data)).collect();
    held.iter().filter(|frame| frame.get() % 4 < 2).for_each(|frame| frames.free(*frame).unwrap());
    let Built { domain, boot } = build(&hw, &frames, HOST, &config(kernel, 5 << 10)).unwrap();
    assert_eq!(guest(&hw, &domain, boot.pc.get() + 56, 4), b"ARM\x64");
    // 5 MiB in pages: two root tables, one of level 2, three of level 3.
    assert_eq!(domain.state.lock().stage2.tables(), 6);
}

#[test]
fn the_domain_is_as_its_configuration_says() {
    let (hw, frames) = machine(2, 20);
    let kernel = put_image(&hw, RAM, 0x1000, 0, 0);
    let mut config = config(kernel, 16 << 10);
    let channel = StaticChannel { local_port: Port(70), peer: DomId(2), peer_port: Port(3) };
    config.channels.push(channel).unwrap();
    config.quotas.memory_kib = 20 << 10;
    let Built { domain, .. } = build(&hw, &frames, HOST, &config).unwrap();
    assert_eq!((domain.id, domain.vmid, domain.enhanced), (ONE, Vmid(3), true));
    let vcpus: Vec<_> =
        domain.vcpus.iter().map(|vcpu| (vcpu.number, vcpu.index.0, vcpu.home.get().0)).collect();
    assert_eq!(vcpus, [(0, 5, 1), (1, 6, 0)]);
    assert_eq!(domain.vcpus[0].info_at().unwrap().pa(), domain.shared_info.base());
    assert_eq!(domain.vcpus[1].info_at(), None);
    assert_eq!((domain.ports.len(), domain.gic.len()), (128, 2));
    let port = PortWord::unpack(domain.ports[70].load(core::sync::atomic::Ordering::Relaxed));
    assert_eq!(port.kind, PortKind::Interdomain(DomId(2), Port(3)));
    let state = domain.state.lock();
    assert_eq!((state.memory.frames, state.memory.max_frames), (4096, 5120));
    assert_eq!((state.grants.frames(), state.grants.max_frames()), (1, 4));
    let grant = state.grants.frame(0).unwrap();
    assert_eq!(hw.frame_bytes(grant), [0; 4096]);
    assert_eq!(frames.table.total(ONE, Role::Shared), 2);
}

#[test]
fn a_gicv2_guest_sees_the_virtual_interface() {
    let (hw, frames) = machine(2, 20);
    let kernel = put_image(&hw, RAM, 0x1000, 0, 0);
    let host = Host { gic: GuestGic::V2, virtual_interface: Pa::new(0x804_0000), ..HOST };
    let Built { domain, .. } = build(&hw, &frames, host, &config(kernel, 16 << 10)).unwrap();
    for page in 0..2 {
        let gfn = Gfn::new(0x3002 + page).unwrap();
        let mapping = crate::stage2::lookup(&hw, domain.stage2_root, gfn).unwrap();
        assert_eq!((mapping.mfn.get(), mapping.kind), (0x8040 + page, Kind::Device));
    }
    assert_eq!(crate::stage2::lookup(&hw, domain.stage2_root, Gfn::new(0x3004).unwrap()), None);
}

#[test]
fn each_refusal_says_why_and_gives_everything_back() {
    let (hw, frames) = machine(4, 12);
    let image = put_image(&hw, RAM, 0x1000, 0, 0);
    let huge = put_image(&hw, RAM + MIB, 0x1000, 0, 9 * MIB);
    let none = range(RAM + 2 * MIB, 4096);
    put(&hw, RAM + 2 * MIB, &[0; 64]);
    let ok = config(image, 8 << 10);
    let with_quota =
        |stage2_frames| DomainConfig { quotas: Quotas { stage2_frames, ..ok.quotas }, ..ok.clone() };
    let mut channel = ok.clone();
    let far = StaticChannel { local_port: Port(128), peer: DomId(2), peer_port: Port(3) };
    channel.channels.push(far).unwrap();
    let long = [b'x'; 9000];
    let cases: [(DomainConfig<'_>, &str); 11] = [
        (config(image, 64 << 10), "out of memory: 64 MiB asked, 12 MiB free"),
        (config(image, 0), "memory: 4 KiB to 1019 GiB expected"),
        (config(none, 8 << 10), "kernel: arm64 Image expected"),
        (config(range(RAM, 63), 8 << 10), "kernel: arm64 Image expected"),
        (config(huge, 8 << 10), "kernel too large: 9 MiB needed, 8 MiB of memory"),
        (
            DomainConfig { ramdisk: Some(range(RAM, 7 * MIB)), ..ok.clone() },
            "ramdisk too large: 10 MiB needed beside the kernel, 8 MiB of memory",
        ),
        (with_quota(2), "too few stage-2 tables: less memory, or xen,domain-p2m-mem-mb raised"),
        (
            DomainConfig { bootargs: &long, ..ok.clone() },
            "device tree too large: shorten the command line (bootargs)",
        ),
        (
            DomainConfig { device_tree: Some(image), ..ok.clone() },
            "multiboot,device-tree: no device tree in RAM",
        ),
        (channel, "static channel: port beyond pavo,max-ports: fewer channels, or that raised"),
        (
            DomainConfig { kernel: range((1 << 52) + 4, 4096), ..ok.clone() },
            "a module lies outside of memory",
        ),
    ];
    for (config, text) in cases {
        let refusal = build(&hw, &frames, HOST, &config).err().unwrap();
        assert_eq!(refusal.to_string(), text);
        assert_eq!(frames.free_frames(), 12 * 256, "{text}");
    }
    assert!(build(&hw, &frames, HOST, &ok).is_ok());
}

/// Boot storage that has room for so many slices.
struct Few(core::sync::atomic::AtomicU32);

impl Storage for Few {
    fn slice<T: Send + Sync + 'static>(
        &self,
        n: usize,
        make: impl FnMut(usize) -> T,
    ) -> Option<&'static mut [T]> {
        let left = self.0.fetch_sub(1, core::sync::atomic::Ordering::SeqCst);
        if left == 0 { None } else { LeakedStorage.slice(n, make) }
    }
}

#[test]
fn xsa_181_whichever_allocation_fails_everything_comes_back() {
    let (hw, frames) = machine(2, 12);
    let kernel = put_image(&hw, RAM, 0x1000, 0, 0);
    let config = config(kernel, 8 << 10);
    let all = 12 * 256;
    let mut failures = 0;
    loop {
        frames.fail_after(failures);
        match build(&hw, &frames, HOST, &config) {
            // A large block that is refused is made up for by smaller ones.
            Ok(_) if failures > 20 => break,
            Ok(_) => {}
            Err(refusal) => assert!(
                matches!(refusal, Refusal::OutOfMemory { .. } | Refusal::NoStorage),
                "{refusal:?} after {failures}"
            ),
        }
        frames.free_owner(ONE);
        assert_eq!(frames.free_frames(), all, "after {failures}");
        failures += 1;
    }
    frames.free_owner(ONE);
    for slices in 0..5 {
        let storage = Few(slices.into());
        let builder = Builder { hw: &hw, frames: &frames, host: HOST, storage: &storage };
        let refused = builder.build(&config, &SHAPE, &mut [0; 8192]).err();
        assert_eq!(refused, Some(Refusal::NoStorage), "after {slices}");
        assert_eq!(frames.free_frames(), all);
    }
}

/// Boot storage that counts what is asked of it.
struct Counting(core::cell::Cell<usize>);

impl Storage for Counting {
    fn slice<T: Send + Sync + 'static>(
        &self,
        n: usize,
        make: impl FnMut(usize) -> T,
    ) -> Option<&'static mut [T]> {
        // A buddy allocator rounds up.
        self.0.set(self.0.get() + (n * size_of::<T>()).next_power_of_two());
        LeakedStorage.slice(n, make)
    }
}

#[test]
fn a_domain_with_xens_limits_takes_little_boot_storage() {
    let (hw, frames) = machine(2, 12);
    let kernel = put_image(&hw, RAM, 0x1000, 0, 0);
    let mut config = config(kernel, 8 << 10);
    config.vcpus = 8;
    config.quotas = Quotas {
        max_ports: 4096,
        grant_frames: 64,
        maptrack_frames: 1024,
        stage2_frames: 64,
        ..config.quotas
    };
    let storage = Counting(core::cell::Cell::new(0));
    let builder = Builder { hw: &hw, frames: &frames, host: HOST, storage: &storage };
    assert!(builder.build(&config, &SHAPE, &mut [0; 8192]).is_ok());
    let all = storage.0.get() + 2 * size_of::<Domain>().next_power_of_two();
    assert!(all <= 64 << 10, "{all} bytes");
    assert_eq!(storage.0.get() as u64, storage_of(&config), "what the boot sets aside for it");
}
