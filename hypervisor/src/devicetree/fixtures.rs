//! Trees for tests, modelled on what QEMU 10.0 prints (`-M virt,virtualization=on,dumpdtb=..`) and on the Raspberry Pi 4's
//! `bcm2711-rpi-4-b.dtb`. Written with another library than the one under test.
use vm_fdt::{FdtReserveEntry, FdtWriter};

use super::Tree;

/// A tree's words as they are in memory.
pub(super) struct Blob(pub(super) Vec<u32>);

impl Blob {
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let word = |chunk: &[u8]| {
            let mut padded = [0; 4];
            padded[..chunk.len()].copy_from_slice(chunk);
            u32::from_ne_bytes(padded)
        };
        Self(bytes.chunks(4).map(word).collect())
    }

    pub(super) fn tree(&self) -> Tree<'_> {
        Tree::new(&self.0).unwrap()
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }
}

/// Writes the children of some node.
pub(super) type Fill<'f> = &'f dyn Fn(&mut FdtWriter);

pub(super) fn node(w: &mut FdtWriter, name: &str, fill: Fill<'_>) {
    let node = w.begin_node(name).unwrap();
    fill(w);
    w.end_node(node).unwrap();
}

pub(super) fn list(w: &mut FdtWriter, name: &str, texts: &[&str]) {
    let value = texts.join("\0") + "\0";
    w.property(name, value.as_bytes()).unwrap();
}

/// A tree with the given reservation block whose root `fill` writes.
pub(super) fn tree(reservations: &[(u64, u64)], fill: Fill<'_>) -> Blob {
    let entries: Vec<_> =
        reservations.iter().map(|(start, size)| FdtReserveEntry::new(*start, *size).unwrap()).collect();
    let mut w = FdtWriter::new_with_mem_reserv(&entries).unwrap();
    let root = w.begin_node("").unwrap();
    fill(&mut w);
    w.end_node(root).unwrap();
    Blob::from_bytes(&w.finish().unwrap())
}

/// QEMU's virt board; `chosen` adds to `/chosen`.
pub(super) fn qemu_virt(gic: u32, cpus: u32, banks: &[(u64, u64)], chosen: Fill<'_>) -> Blob {
    tree(&[], &|w| {
        w.property_u32("interrupt-parent", 0x8005).unwrap();
        w.property_u32("#size-cells", 2).unwrap();
        w.property_u32("#address-cells", 2).unwrap();
        w.property_string("compatible", "linux,dummy-virt").unwrap();
        node(w, "psci", &|w| {
            w.property_string("method", "smc").unwrap();
            list(w, "compatible", &["arm,psci-1.0", "arm,psci-0.2", "arm,psci"]);
        });
        for (start, size) in banks {
            node(w, &format!("memory@{start:x}"), &|w| {
                w.property_array_u64("reg", &[*start, *size]).unwrap();
                w.property_string("device_type", "memory").unwrap();
            });
        }
        node(w, "pl011@9000000", &|w| {
            w.property_array_u32("interrupts", &[0, 1, 4]).unwrap();
            w.property_array_u64("reg", &[0x0900_0000, 0x1000]).unwrap();
            list(w, "compatible", &["arm,pl011", "arm,primecell"]);
        });
        node(w, "intc@8000000", &|w| virt_gic(w, gic));
        node(w, "cpus", &|w| {
            w.property_u32("#size-cells", 0).unwrap();
            w.property_u32("#address-cells", 1).unwrap();
            node(w, "cpu-map", &|w| node(w, "socket0", &|_| {}));
            for cpu in 0..cpus {
                node(w, &format!("cpu@{cpu}"), &|w| {
                    w.property_u32("reg", cpu).unwrap();
                    if cpus > 1 {
                        w.property_string("enable-method", "psci").unwrap();
                    }
                    w.property_string("compatible", "arm,cortex-a72").unwrap();
                    w.property_string("device_type", "cpu").unwrap();
                });
            }
        });
        node(w, "timer", &|w| {
            w.property_array_u32("interrupts", &[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]).unwrap();
            list(w, "compatible", &["arm,armv8-timer", "arm,armv7-timer"]);
        });
        node(w, "aliases", &|w| w.property_string("serial0", "/pl011@9000000").unwrap());
        node(w, "chosen", &|w| {
            w.property_string("stdout-path", "/pl011@9000000").unwrap();
            w.property_string("bootargs", "dom0_mem=512M console=dtuart").unwrap();
            chosen(w);
        });
    })
}

fn virt_gic(w: &mut FdtWriter, gic: u32) {
    w.property_u32("phandle", 0x8005).unwrap();
    w.property_array_u32("interrupts", &[1, 9, 4]).unwrap();
    w.property_null("ranges").unwrap();
    w.property_u32("#size-cells", 2).unwrap();
    w.property_u32("#address-cells", 2).unwrap();
    w.property_null("interrupt-controller").unwrap();
    w.property_u32("#interrupt-cells", 3).unwrap();
    if gic == 3 {
        w.property_string("compatible", "arm,gic-v3").unwrap();
        w.property_u32("#redistributor-regions", 1).unwrap();
        w.property_array_u64("reg", &[0x0800_0000, 0x1_0000, 0x080a_0000, 0xf6_0000]).unwrap();
    } else {
        w.property_string("compatible", "arm,cortex-a15-gic").unwrap();
        let frames = [0x0800_0000, 0x0801_0000, 0x0803_0000, 0x0804_0000];
        let reg: Vec<u64> = frames.into_iter().flat_map(|start| [start, 0x1_0000]).collect();
        w.property_array_u64("reg", &reg).unwrap();
    }
}

/// The Raspberry Pi 4 with 2 GiB.
pub(super) fn raspberry_pi4() -> Blob {
    raspberry_pi4_of(&[0, 0, 0x3c00_0000, 0, 0x4000_0000, 0x4000_0000], &LOW_PERIPHERALS)
}

/// `ranges` of `/soc` in the default mode (BCM2711 ARM Peripherals 1.2.3): bus address, CPU address of two cells, size.
pub(super) const LOW_PERIPHERALS: [u32; 12] = [
    0x7e00_0000,
    0,
    0xfe00_0000,
    0x0180_0000,
    0x7c00_0000,
    0,
    0xfc00_0000,
    0x0200_0000,
    0x4000_0000,
    0,
    0xff80_0000,
    0x0080_0000,
];

/// The same in 35-bit mode (`arm_peri_high=1`; BCM2711 ARM Peripherals 1.2.2).
pub(super) const HIGH_PERIPHERALS: [u32; 12] = [
    0x7e00_0000,
    4,
    0x7e00_0000,
    0x0180_0000,
    0x7c00_0000,
    4,
    0x7c00_0000,
    0x0200_0000,
    0x4000_0000,
    4,
    0xc000_0000,
    0x0080_0000,
];

/// The Raspberry Pi 4 with this `reg` of its memory (address of two cells, size of one), its peripherals where `ranges` says.
pub(super) fn raspberry_pi4_of(memory: &[u32], ranges: &[u32]) -> Blob {
    tree(&[(0, 0x1000)], &|w| {
        w.property_u32("#address-cells", 2).unwrap();
        w.property_u32("#size-cells", 1).unwrap();
        w.property_u32("interrupt-parent", 1).unwrap();
        node(w, "aliases", &|w| {
            w.property_string("serial0", "/soc/serial@7e201000").unwrap();
            w.property_string("serial1", "/soc/serial@7e215040").unwrap();
        });
        node(w, "chosen", &|w| w.property_string("stdout-path", "serial1:115200n8").unwrap());
        node(w, "reserved-memory", &|w| {
            w.property_u32("#address-cells", 2).unwrap();
            w.property_u32("#size-cells", 1).unwrap();
            w.property_null("ranges").unwrap();
            node(w, "linux,cma", &|w| w.property_u32("size", 0x0400_0000).unwrap());
            node(w, "nvram@3ef64700", &|w| {
                w.property_array_u32("reg", &[0, 0x3ef6_4700, 0xa0]).unwrap();
                w.property_null("no-map").unwrap();
            });
        });
        node(w, "soc", &|w| pi_soc(w, ranges));
        node(w, "timer", &|w| {
            w.property_array_u32("interrupts", &[1, 13, 0xf08, 1, 14, 0xf08, 1, 11, 0xf08, 1, 10, 0xf08])
                .unwrap();
            w.property_string("compatible", "arm,armv8-timer").unwrap();
        });
        node(w, "cpus", &|w| {
            w.property_u32("#address-cells", 1).unwrap();
            w.property_u32("#size-cells", 0).unwrap();
            w.property_string("enable-method", "brcm,bcm2836-smp").unwrap();
            for cpu in 0..4 {
                node(w, &format!("cpu@{cpu}"), &|w| {
                    w.property_string("device_type", "cpu").unwrap();
                    w.property_string("compatible", "arm,cortex-a72").unwrap();
                    w.property_u32("reg", cpu).unwrap();
                    w.property_string("enable-method", "spin-table").unwrap();
                    w.property_u64("cpu-release-addr", 0xd8 + 8 * u64::from(cpu)).unwrap();
                });
            }
        });
        node(w, "memory@0", &|w| {
            w.property_string("device_type", "memory").unwrap();
            w.property_array_u32("reg", memory).unwrap();
        });
    })
}

fn pi_soc(w: &mut FdtWriter, ranges: &[u32]) {
    w.property_string("compatible", "simple-bus").unwrap();
    w.property_u32("#address-cells", 1).unwrap();
    w.property_u32("#size-cells", 1).unwrap();
    w.property_array_u32("ranges", ranges).unwrap();
    node(w, "serial@7e201000", &|w| {
        list(w, "compatible", &["arm,pl011", "arm,primecell"]);
        w.property_array_u32("reg", &[0x7e20_1000, 0x200]).unwrap();
        w.property_array_u32("interrupts", &[0, 121, 4]).unwrap();
    });
    node(w, "serial@7e215040", &|w| {
        w.property_string("compatible", "brcm,bcm2835-aux-uart").unwrap();
        w.property_array_u32("reg", &[0x7e21_5040, 0x40]).unwrap();
        w.property_array_u32("interrupts", &[0, 93, 4]).unwrap();
    });
    node(w, "watchdog@7e100000", &|w| {
        list(w, "compatible", &["brcm,bcm2711-pm", "brcm,bcm2835-pm-wdt"]);
        let reg = [0x7e10_0000, 0x114, 0x7e00_a000, 0x24, 0x7ec1_1000, 0x20];
        w.property_array_u32("reg", &reg).unwrap();
    });
    node(w, "interrupt-controller@40041000", &|w| {
        w.property_null("interrupt-controller").unwrap();
        w.property_u32("#interrupt-cells", 3).unwrap();
        w.property_string("compatible", "arm,gic-400").unwrap();
        let reg = [0x4004_1000, 0x1000, 0x4004_2000, 0x2000, 0x4004_4000, 0x2000, 0x4004_6000, 0x2000];
        w.property_array_u32("reg", &reg).unwrap();
        w.property_array_u32("interrupts", &[1, 9, 0xf04]).unwrap();
        w.property_phandle(1).unwrap();
    });
}

/// Numbers that look random and are the same in every run (xorshift64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(limit).unwrap()).unwrap()
    }
}
