use std::path::PathBuf;
use std::process::Command;

use super::super::fixtures::{
    Blob, HIGH_PERIPHERALS, LOW_PERIPHERALS, Random, node, qemu_virt, raspberry_pi4, raspberry_pi4_of, tree,
};
use super::super::{Domains, find_device, has_dom0_modules};
use super::*;

const GIB: u64 = 1 << 30;

fn range(start: u64, size: u64) -> PhysRange {
    PhysRange::new(start, size).unwrap()
}

fn read(blob: &Blob) -> Result<HostMachine<'_>, TreeError> {
    HostMachine::read(&blob.tree(), 0x4800_0000)
}

#[test]
fn the_virt_board_with_gicv3_is_read() {
    let blob = qemu_virt(3, 4, &[(0x4000_0000, GIB)], &|_| {});
    let machine = read(&blob).unwrap();
    assert_eq!(machine.ram.as_slice(), [range(0x4000_0000, GIB)]);
    assert!(machine.reserved.as_slice().is_empty());
    assert_eq!(machine.tree, range(0x4800_0000, u64::from(blob.tree().bytes())));
    let cpu = |mpidr| HostCpu { mpidr, start: CpuStart::Psci };
    assert_eq!(machine.cpus, [cpu(0), cpu(1), cpu(2), cpu(3)]);
    assert_eq!(machine.cpu_compatible, b"arm,cortex-a72\0");
    assert_eq!(machine.psci, Some(PsciConduit::Smc));
    let expected = HostGic::V3 {
        distributor: range(0x0800_0000, 0x1_0000),
        redistributors: Vec::from_slice(&[range(0x080a_0000, 0x00f6_0000)]).unwrap(),
        stride: None,
        maintenance: 25,
    };
    assert_eq!(machine.gic, expected);
    assert_eq!(machine.timer, TimerPpis { secure: Some(29), non_secure: 30, virtual_: 27, hypervisor: 26 });
    let uart = HostUart {
        compatible: b"arm,pl011\0arm,primecell\0",
        registers: range(0x0900_0000, 0x1000),
        interrupt: Some(33),
        baud: None,
    };
    assert_eq!(machine.uart, Some(uart));
}

#[test]
fn the_virt_board_with_gicv2_and_one_cpu_is_read() {
    let blob = qemu_virt(2, 1, &[(0x4000_0000, GIB)], &|_| {});
    let machine = read(&blob).unwrap();
    let expected = HostGic::V2 {
        distributor: range(0x0800_0000, 0x1_0000),
        cpu_interface: range(0x0801_0000, 0x1_0000),
        hypervisor_interface: range(0x0803_0000, 0x1_0000),
        virtual_interface: range(0x0804_0000, 0x1_0000),
        maintenance: 25,
    };
    assert_eq!(machine.gic, expected);
    assert_eq!(machine.cpus, [HostCpu { mpidr: 0, start: CpuStart::Unknown }]);
}

#[test]
fn the_raspberry_pi_is_read_through_the_ranges_of_its_bus() {
    let blob = raspberry_pi4();
    let machine = read(&blob).unwrap();
    assert_eq!(machine.ram.as_slice(), [range(0, 0x3c00_0000), range(0x4000_0000, 0x4000_0000)]);
    assert_eq!(machine.reserved.as_slice(), [range(0, 0x1000), range(0x3ef6_4700, 0xa0)]);
    let releases: std::vec::Vec<_> = machine.cpus.iter().map(|cpu| cpu.start).collect();
    assert_eq!(releases, [0xd8, 0xe0, 0xe8, 0xf0].map(|release| CpuStart::SpinTable { release }));
    assert_eq!(machine.psci, None);
    let expected = HostGic::V2 {
        distributor: range(0xff84_1000, 0x1000),
        cpu_interface: range(0xff84_2000, 0x2000),
        hypervisor_interface: range(0xff84_4000, 0x2000),
        virtual_interface: range(0xff84_6000, 0x2000),
        maintenance: 25,
    };
    assert_eq!(machine.gic, expected);
    let uart = HostUart {
        compatible: b"brcm,bcm2835-aux-uart\0",
        registers: range(0xfe21_5040, 0x40),
        interrupt: Some(125),
        baud: Some(115_200),
    };
    assert_eq!(machine.uart, Some(uart));
    assert_eq!(machine.no_map.as_slice(), [range(0x3ef6_4700, 0xa0)]);
    let tree = blob.tree();
    let device = |wanted: &[&str]| find_device(&tree, wanted).unwrap();
    assert_eq!(device(&["brcm,bcm2835-pm-wdt"]), Some(range(0xfe10_0000, 0x114)));
    assert_eq!(device(&["brcm,bcm2835-mbox", "else"]), None);
}

/// What the firmware writes on a board of 8 GiB: sizes have one cell, so the RAM above 4 GiB is two entries.
const EIGHT_GIB: [u32; 12] =
    [0, 0, 0x3b40_0000, 0, 0x4000_0000, 0xbc00_0000, 1, 0, 0x8000_0000, 1, 0x8000_0000, 0x8000_0000];

#[test]
fn the_raspberry_pi_of_8_gib_has_ram_on_both_sides_of_its_peripherals() {
    let blob = raspberry_pi4_of(&EIGHT_GIB, &LOW_PERIPHERALS);
    let machine = read(&blob).unwrap();
    let banks = [range(0, 0x3b40_0000), range(0x4000_0000, 0xbc00_0000), range(0x1_0000_0000, 4 * GIB)];
    assert_eq!(machine.ram.as_slice(), banks);
    let uart = machine.uart.map(|uart| uart.registers).unwrap();
    assert!(banks.iter().all(|bank| !bank.overlaps(uart)), "{uart:?}");
}

#[test]
fn the_raspberry_pis_of_all_sizes_keep_the_coprocessors_memory_and_the_peripherals_out_of_ram() {
    let first = [0, 0, 0x3b40_0000];
    let second = |size| [0, 0x4000_0000, size];
    // MiB without the coprocessor's 76, and without the 64 of the peripherals below 4 GiB.
    for (memory, mebibytes) in [
        (first.to_vec(), 1024 - 76),
        ([first, second(0x4000_0000)].concat(), 2048 - 76),
        ([first, second(0xbc00_0000)].concat(), 4096 - 76 - 64),
        (EIGHT_GIB.to_vec(), 8192 - 76 - 64),
    ] {
        let blob = raspberry_pi4_of(&memory, &LOW_PERIPHERALS);
        let machine = read(&blob).unwrap();
        assert_eq!(machine.ram.total() >> 20, mebibytes);
        let HostGic::V2 { distributor, virtual_interface, .. } = machine.gic else { panic!("a GICv2") };
        let power = find_device(&blob.tree(), &["brcm,bcm2835-pm-wdt"]).unwrap().unwrap();
        let others = [
            range(0x3b40_0000, 76 << 20),
            distributor,
            virtual_interface,
            machine.uart.map(|uart| uart.registers).unwrap(),
            power,
        ];
        for bank in machine.ram.as_slice() {
            assert!(others.iter().all(|other| !bank.overlaps(*other)), "{bank:?}");
        }
        // Where `cargo xtask image` has the guests loaded to.
        assert_eq!(machine.ram.as_slice()[0], range(0, 0x3b40_0000));
    }
}

/// Debian's `bcm2711-rpi-4-b.dtb` with the card's overlay and what the firmware adds: `cargo xtask test` makes them.
#[test]
fn the_boards_own_tree_of_every_size_is_read_where_cargo_xtask_test_says_where_they_are() {
    let Some(folder) = std::env::var_os("PAVO_BOARD_TREES").map(PathBuf::from) else {
        eprintln!("skipped: no PAVO_BOARD_TREES");
        return;
    };
    let low = range(0, 0x3b40_0000);
    let sizes = [
        (1, std::vec![low]),
        (2, std::vec![low, range(GIB, GIB)]),
        (4, std::vec![low, range(GIB, 0xbc00_0000)]),
        (8, std::vec![low, range(GIB, 0xbc00_0000), range(4 * GIB, 4 * GIB)]),
    ];
    for (gibibytes, banks) in sizes {
        let blob = Blob::from_bytes(&std::fs::read(folder.join(format!("{gibibytes}.dtb"))).unwrap());
        let machine = HostMachine::read(&blob.tree(), 0x2eff_0000).unwrap();
        assert_eq!(machine.ram.as_slice(), banks);
        assert!(machine.reserved.as_slice().iter().any(|range| range.start() == 0 && range.size() >= 0x1000));
        let starts: std::vec::Vec<_> = machine.cpus.iter().map(|cpu| (cpu.mpidr, cpu.start)).collect();
        let spins = [0xd8, 0xe0, 0xe8, 0xf0].map(|release| CpuStart::SpinTable { release });
        assert_eq!(starts, std::vec![(0, spins[0]), (1, spins[1]), (2, spins[2]), (3, spins[3])]);
        assert_eq!((machine.psci, machine.timer_clock_hz), (None, None));
        let expected = HostGic::V2 {
            distributor: range(0xff84_1000, 0x1000),
            cpu_interface: range(0xff84_2000, 0x2000),
            hypervisor_interface: range(0xff84_4000, 0x2000),
            virtual_interface: range(0xff84_6000, 0x2000),
            maintenance: 25,
        };
        assert_eq!(machine.gic, expected);
        assert_eq!(
            machine.timer,
            TimerPpis { secure: Some(29), non_secure: 30, virtual_: 27, hypervisor: 26 }
        );
        let uart = machine.uart.unwrap();
        assert!(uart.is_compatible("brcm,bcm2835-aux-uart"));
        let line = (uart.registers, uart.interrupt, uart.baud);
        assert_eq!(line, (range(0xfe21_5040, 0x40), Some(32 + 93), Some(115_200)));
        let tree = blob.tree();
        let device = |wanted: &str| find_device(&tree, &[wanted]).unwrap().unwrap();
        assert_eq!(device("brcm,bcm2835-pm-wdt").start(), 0xfe10_0000);
        assert_eq!(device("brcm,bcm2835-mbox").start(), 0xfe00_b880);
        let guests: std::vec::Vec<_> = Domains::new(&tree).unwrap().map(Result::unwrap).collect();
        assert_eq!(
            guests.iter().map(|guest| guest.name).collect::<std::vec::Vec<_>>(),
            ["sender", "receiver"]
        );
        for guest in guests {
            assert!(
                guest.kernel.start() >= 0x1000_0000 && guest.kernel.end() <= low.end(),
                "{:?}",
                guest.kernel
            );
        }
    }
}

#[test]
fn the_raspberry_pis_35_bit_mode_is_what_the_ranges_of_its_bus_say() {
    // RAM then goes on to 4 GiB without a gap for peripherals.
    let memory =
        [0, 0, 0x3b40_0000, 0, 0x4000_0000, 0xc000_0000, 1, 0, 0x8000_0000, 1, 0x8000_0000, 0x8000_0000];
    let blob = raspberry_pi4_of(&memory, &HIGH_PERIPHERALS);
    let machine = read(&blob).unwrap();
    assert_eq!(machine.ram.as_slice(), [range(0, 0x3b40_0000), range(0x4000_0000, 7 * GIB)]);
    let HostGic::V2 { distributor, virtual_interface, .. } = machine.gic else { panic!("a GICv2") };
    assert_eq!(distributor, range(0x4_c004_1000, 0x1000));
    assert_eq!(virtual_interface, range(0x4_c004_6000, 0x2000));
    assert_eq!(machine.uart.map(|uart| uart.registers), Some(range(0x4_7e21_5040, 0x40)));
    assert_eq!(find_device(&blob.tree(), &["brcm,bcm2835-pm-wdt"]), Ok(Some(range(0x4_7e10_0000, 0x114))));
}

#[test]
fn banks_are_sorted_and_merged_and_malformed_ones_left_out() {
    let banks = [
        (0x1_0000_0000, GIB),
        (0x8000_0000, GIB),
        (0x4000_0000, GIB),
        (0x5000_0000, 0x1000),
        (u64::MAX, 2),
        (9, 0),
    ];
    let blob = qemu_virt(3, 1, &banks, &|_| {});
    let machine = read(&blob).unwrap();
    assert_eq!(machine.ram.as_slice(), [range(0x4000_0000, 2 * GIB), range(0x1_0000_0000, GIB)]);
}

#[test]
fn cpus_beyond_the_limit_are_counted() {
    let blob = qemu_virt(3, 70, &[(0x4000_0000, GIB)], &|_| {});
    let machine = read(&blob).unwrap();
    assert_eq!((machine.cpus.len(), machine.cpus_left_out), (MAX_CPUS, 6));
}

#[test]
fn a_tree_without_an_essential_part_names_it() {
    let blob = qemu_virt(3, 1, &[], &|_| {});
    assert_eq!(read(&blob), Err(TreeError::Missing("memory")));
    let blob = qemu_virt(3, 0, &[(0x4000_0000, GIB)], &|_| {});
    assert_eq!(read(&blob), Err(TreeError::Missing("CPUs")));
}

#[test]
fn a_gicv2_without_virtualization_is_refused_by_name() {
    let blob = tree(&[], &|w| {
        node(w, "intc@8000000", &|w| {
            w.property_string("compatible", "arm,cortex-a15-gic").unwrap();
            w.property_null("interrupt-controller").unwrap();
            w.property_array_u32("reg", &[0, 0x0800_0000, 0x1_0000, 0, 0x0801_0000, 0x1_0000]).unwrap();
        });
    });
    assert_eq!(read(&blob), Err(TreeError::Missing("GICH (no virtualization?)")));
}

#[test]
fn a_tree_nested_too_deeply_is_refused() {
    fn nest(w: &mut vm_fdt::FdtWriter, levels: u32) {
        if levels > 0 {
            node(w, "bus", &|w| nest(w, levels - 1));
        }
    }
    assert_eq!(read(&tree(&[], &|w| nest(w, 15))), Err(TreeError::TooDeep));
    assert_eq!(read(&tree(&[], &|w| nest(w, 14))), Err(TreeError::Missing("memory")));
}

/// Reads everything there is to read; whatever comes out, nothing may panic or hang.
fn read_all(words: &[u32]) {
    let Ok(tree) = Tree::new(words) else { return };
    let _machine = HostMachine::read(&tree, 0);
    let _dom0 = has_dom0_modules(&tree);
    if let Ok(domains) = Domains::new(&tree) {
        assert!(domains.count() <= words.len());
    }
}

#[test]
fn damaged_trees_never_panic() {
    let domains = super::super::dom0less::tests::two_domains();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for original in [domains, raspberry_pi4()] {
        let bytes = original.bytes();
        for round in 0..3000 {
            let mut damaged = bytes.clone();
            for _ in 0..=random.below(4) {
                // Every third round in the header, where lengths and offsets are.
                let place = random.below(if round % 3 == 0 { 40 } else { bytes.len() });
                damaged[place] = match random.below(4) {
                    0 => 0,
                    1 => 0xff,
                    2 => damaged[place] ^ (1 << random.below(8)),
                    _ => u8::try_from(random.below(256)).unwrap(),
                };
            }
            read_all(&Blob::from_bytes(&damaged).0);
        }
        // Whole words: tokens, lengths, name offsets.
        for index in 0..original.0.len() {
            for value in [0, 1, 2, 3, 4, 9, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
                let mut damaged = original.0.clone();
                damaged[index] = u32::to_be(value);
                read_all(&damaged);
            }
        }
    }
}

#[test]
fn truncated_trees_are_refused() {
    let blob = raspberry_pi4();
    for length in 0..blob.0.len() {
        assert!(Tree::new(&blob.0[..length]).is_err());
    }
}

/// The tree that QEMU makes for `arguments`; none where there is no QEMU.
fn qemu_tree(name: &str, arguments: &[&str]) -> Option<Blob> {
    let file: PathBuf = std::env::temp_dir().join(format!("pavo-{}-{name}.dtb", std::process::id()));
    let machine = format!("{},dumpdtb={}", arguments.first()?, file.display());
    let run = Command::new("qemu-system-aarch64")
        .args(["-nographic", "-nic", "none", "-M", &machine])
        .args(&arguments[1..])
        .output();
    run.ok()?;
    let bytes = std::fs::read(&file).ok()?;
    std::fs::remove_file(&file).unwrap();
    Some(Blob::from_bytes(&bytes))
}

#[test]
fn real_qemu_trees_are_read_unless_skipped_without_qemu() {
    for (name, gic, cpus, memory, ram_end) in [
        ("a", "3", "4", "1G", 0x8000_0000),
        ("b", "2", "1", "512M", 0x6000_0000),
        ("c", "max", "130", "8G", 0x2_4000_0000_u64),
    ] {
        let board = format!("virt,virtualization=on,gic-version={gic}");
        let Some(blob) = qemu_tree(name, &[&board, "-cpu", "max", "-smp", cpus, "-m", memory]) else {
            eprintln!("skipped: no qemu-system-aarch64");
            return;
        };
        let machine = read(&blob).unwrap();
        assert_eq!(machine.ram.as_slice(), [range(0x4000_0000, ram_end - 0x4000_0000)]);
        let cpus: usize = cpus.parse().unwrap();
        assert_eq!(machine.cpus.len() + usize::try_from(machine.cpus_left_out).unwrap(), cpus);
        assert_eq!(
            machine.timer,
            TimerPpis { secure: Some(29), non_secure: 30, virtual_: 27, hypervisor: 26 }
        );
        assert_eq!(machine.uart.map(|uart| uart.registers), Some(range(0x0900_0000, 0x1000)));
        assert_eq!(matches!(machine.gic, HostGic::V2 { .. }), gic == "2");
    }
}
