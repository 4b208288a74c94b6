use std::io::Write;
use std::process::{Command, Stdio};

use super::super::fixtures::Blob;
use super::super::{Node, TreeError};
use super::*;

const BANKS: [(u64, u64); 2] = [(0x4000_0000, 0xc000_0000), (0x2_0000_0000, 0x1000_0000)];

fn input() -> GuestTreeInput<'static> {
    GuestTreeInput {
        bootargs: b"console=hvc0",
        initrd: Some((0x4820_0000, 0x4830_0001)),
        vcpus: 2,
        cpu_compatible: b"arm,cortex-a72\0",
        cpu_clock_hz: None,
        memory: &BANKS,
        gic: GuestGic::V3,
        timer_clock_hz: None,
        vpl011: true,
        hypervisor: true,
        partial: None,
    }
}

fn written(input: &GuestTreeInput<'_>) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    let length = guest_tree(input, &mut buffer).unwrap();
    buffer.truncate(length);
    buffer
}

/// Calls `check` with the node at `path`; it must be there.
fn at(bytes: &[u8], path: &str, check: impl Fn(Node<'_>) -> Result<(), TreeError>) {
    let blob = Blob::from_bytes(bytes);
    let tree = blob.tree();
    let mut walk = tree.walk().unwrap();
    while let Some(place) = walk.step().unwrap() {
        if place.matches(path).unwrap() {
            return check(place.node().unwrap()).unwrap();
        }
    }
    panic!("no {path}");
}

/// The value of a property as cells.
fn cells(node: Node<'_>, name: &str) -> Vec<u32> {
    let value = node.bytes(name).unwrap().unwrap();
    value.chunks(4).map(|cell| u32::from_be_bytes(cell.try_into().unwrap())).collect()
}

fn paths(bytes: &[u8]) -> Vec<String> {
    let blob = Blob::from_bytes(bytes);
    let tree = blob.tree();
    let mut walk = tree.walk().unwrap();
    let mut names = Vec::new();
    while let Some(place) = walk.step().unwrap() {
        names.push(format!("{}{}", "  ".repeat(place.depth() - 1), place.node().unwrap().name().unwrap()));
    }
    names
}

#[test]
fn the_nodes_are_those_of_xen_in_its_order() {
    let all = [
        "chosen",
        "psci",
        "cpus",
        "  cpu",
        "  cpu",
        "memory",
        "interrupt-controller",
        "timer",
        "sbsa-uart",
        "hypervisor",
    ];
    assert_eq!(paths(&written(&input())), all);
    let plain = GuestTreeInput { vpl011: false, hypervisor: false, vcpus: 1, ..input() };
    assert_eq!(
        paths(&written(&plain)),
        ["chosen", "psci", "cpus", "  cpu", "memory", "interrupt-controller", "timer"]
    );
}

#[test]
fn chosen_has_the_command_line_and_the_ram_disk() {
    let bytes = written(&input());
    at(&bytes, "/chosen", |node| {
        assert_eq!(node.bytes("bootargs")?, Some(&b"console=hvc0\0"[..]));
        assert_eq!(
            (node.u64("linux,initrd-start")?, node.u64("linux,initrd-end")?),
            (Some(0x4820_0000), Some(0x4830_0001))
        );
        Ok(())
    });
    at(&written(&GuestTreeInput { bootargs: b"", initrd: None, ..input() }), "/chosen", |node| {
        assert!(!node.has("bootargs")? && !node.has("linux,initrd-start")?);
        Ok(())
    });
}

#[test]
fn processors_and_memory_are_as_given() {
    let bytes = written(&GuestTreeInput { vcpus: 18, cpu_clock_hz: Some(1_500_000_000), ..input() });
    // Sixteen to an Aff0: vCPU 17 is 1.1.
    at(&bytes, "/cpus/cpu@101", |node| {
        assert_eq!(node.u32("reg")?, Some(0x101));
        assert_eq!(node.str("device_type")?, Some("cpu"));
        assert_eq!(node.str("enable-method")?, Some("psci"));
        assert_eq!(node.bytes("compatible")?, Some(&b"arm,cortex-a72\0"[..]));
        assert_eq!(node.u32("clock-frequency")?, Some(1_500_000_000));
        Ok(())
    });
    at(&bytes, "/memory@40000000", |node| {
        assert_eq!(cells(node, "reg"), [0, 0x4000_0000, 0, 0xc000_0000, 2, 0, 0, 0x1000_0000]);
        assert_eq!(node.str("device_type")?, Some("memory"));
        Ok(())
    });
    at(&bytes, "/psci", |node| {
        assert_eq!(node.bytes("compatible")?, Some(&b"arm,psci-1.0\0arm,psci-0.2\0arm,psci\0"[..]));
        assert_eq!(
            (node.str("method")?, node.u32("cpu_off")?, node.u32("cpu_on")?),
            (Some("hvc"), Some(1), Some(2))
        );
        Ok(())
    });
}

#[test]
fn interrupts_lead_to_the_controller_of_the_domain() {
    let bytes = written(&input());
    at(&bytes, "/interrupt-controller@3001000", |node| {
        assert!(node.is_compatible(&["arm,gic-v3"])? && node.has("interrupt-controller")?);
        assert_eq!(cells(node, "reg"), [0, 0x0300_1000, 0, 0x1_0000, 0, 0x0302_0000, 0, 0x0100_0000]);
        assert_eq!(node.u32("#redistributor-regions")?, Some(1));
        assert_eq!((node.u32("phandle")?, node.u32("linux,phandle")?), (Some(65000), Some(65000)));
        assert_eq!((node.u32("#interrupt-cells")?, node.u32("#address-cells")?), (Some(3), Some(0)));
        Ok(())
    });
    at(&bytes, "/timer", |node| {
        assert_eq!(cells(node, "interrupts"), [1, 13, 0xf08, 1, 14, 0xf08, 1, 11, 0xf08]);
        assert_eq!(node.u32("interrupt-parent")?, Some(65000));
        assert!(node.is_compatible(&["arm,armv8-timer"])? && !node.has("clock-frequency")?);
        Ok(())
    });
    at(&bytes, "/hypervisor", |node| {
        assert_eq!(cells(node, "interrupts"), [1, 15, 0xf08]);
        assert_eq!(cells(node, "reg"), [0, 0x3800_0000, 0, 0x0100_0000]);
        assert_eq!(node.bytes("compatible")?, Some(&b"xen,xen-4.20\0xen,xen\0"[..]));
        Ok(())
    });
    at(&bytes, "/sbsa-uart@22000000", |node| {
        assert_eq!(cells(node, "interrupts"), [0, 0, 0xf04]);
        assert_eq!(cells(node, "reg"), [0, 0x2200_0000, 0, 0x1000]);
        assert_eq!(node.u32("current-speed")?, Some(115_200));
        Ok(())
    });
    at(&written(&GuestTreeInput { gic: GuestGic::V2, ..input() }), "/interrupt-controller@3001000", |node| {
        assert!(node.is_compatible(&["arm,gic-400"])?);
        assert_eq!(cells(node, "reg"), [0, 0x0300_1000, 0, 0x1000, 0, 0x0300_2000, 0, 0x2000]);
        Ok(())
    });
}

#[test]
fn any_buffer_that_is_too_small_is_refused() {
    let needed = written(&input()).len();
    for size in 0..needed {
        assert_eq!(guest_tree(&input(), &mut vec![0; size]), Err(NoSpace));
    }
    assert_eq!(guest_tree(&input(), &mut vec![0; needed]), Ok(needed));
}

#[test]
fn two_pages_hold_eight_vcpus_and_a_long_command_line() {
    let long = [b'x'; 2048];
    let large = GuestTreeInput {
        vcpus: 8,
        bootargs: &long,
        cpu_clock_hz: Some(1),
        timer_clock_hz: Some(1),
        ..input()
    };
    assert!(guest_tree(&large, &mut [0; 8192]).is_ok());
}

#[test]
fn dtc_accepts_the_tree_unless_skipped_without_dtc() {
    for gic in [GuestGic::V2, GuestGic::V3] {
        let bytes = written(&GuestTreeInput { gic, ..input() });
        let command = Command::new("dtc")
            .args(["-I", "dtb", "-O", "dts"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut dtc) = command else {
            eprintln!("skipped: no dtc");
            return;
        };
        dtc.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = dtc.wait_with_output().unwrap();
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaints}");
        assert!(!complaints.contains("ERROR"), "{complaints}");
    }
}
