//! What the hypervisor needs to know of the machine it runs on.
//!
//! 1. RAM banks and reserved regions are sorted and merged; the tree's own range is apart from both.
//! 2. What cannot be represented is left out where that is safe (a malformed bank, a CPU too many), and is an error where
//!    it is not (a reserved region too many).
use heapless::Vec;

use super::cells::Cells;
use super::error::TreeError;
use super::gic::{HostGic, TimerPpis, interrupt_cells};
use super::node::Node;
use super::range::{PhysRange, RangeSet};
use super::tree::{Path, Tree};
use super::uart::HostUart;

/// Most CPUs that are used; further ones are counted and left alone.
pub const MAX_CPUS: usize = 64;
/// Most separate RAM banks that are used.
const MAX_BANKS: usize = 16;
/// Most separate reserved regions.
const MAX_RESERVED: usize = 64;
/// Affinity fields of MPIDR (Arm ARM D19.2.101): Aff3 and Aff2-Aff0.
const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

/// How a CPU is started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuStart {
    /// With PSCI `CPU_ON`.
    Psci,
    /// It spins until an entry address appears at this physical address.
    SpinTable {
        /// `cpu-release-addr`: a 64-bit word, little-endian in memory.
        release: u64,
    },
    /// The tree names no way that the hypervisor knows (QEMU does so for a single CPU).
    Unknown,
}

/// One CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostCpu {
    /// Affinity fields of its MPIDR.
    pub mpidr: u64,
    /// How it is started.
    pub start: CpuStart,
}

/// The instruction that reaches PSCI firmware from EL2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PsciConduit {
    /// `smc #0`.
    Smc,
    /// `hvc #0`: there is a hypervisor below.
    Hvc,
}

/// The machine, as its tree describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostMachine<'a> {
    /// RAM.
    pub ram: RangeSet<MAX_BANKS>,
    /// RAM that is in use: the reservation block and the children of `/reserved-memory`.
    pub reserved: RangeSet<MAX_RESERVED>,
    /// Those of them that nobody may map as memory (`no-map`): secure memory, what firmware and coprocessors use.
    pub no_map: RangeSet<MAX_RESERVED>,
    /// The tree itself, to be kept until it has been read.
    pub tree: PhysRange,
    /// CPUs in the tree's order.
    pub cpus: Vec<HostCpu, MAX_CPUS>,
    /// CPUs beyond [`MAX_CPUS`].
    pub cpus_left_out: u32,
    /// Raw `compatible` of the first CPU: guests get the same.
    pub cpu_compatible: &'a [u8],
    /// `clock-frequency` of the first CPU in Hz, if the tree has one.
    pub cpu_clock_hz: Option<u32>,
    /// How PSCI 0.2 or later is reached; none when there is no such firmware.
    pub psci: Option<PsciConduit>,
    /// The interrupt controller.
    pub gic: HostGic,
    /// The generic timer's interrupts.
    pub timer: TimerPpis,
    /// `clock-frequency` of the timer in Hz: only where firmware leaves `CNTFRQ_EL0` wrong.
    pub timer_clock_hz: Option<u32>,
    /// The console.
    pub uart: Option<HostUart<'a>>,
}

/// What one walk collects.
#[derive(Default)]
struct Found<'a> {
    ram: RangeSet<MAX_BANKS>,
    reserved: RangeSet<MAX_RESERVED>,
    no_map: RangeSet<MAX_RESERVED>,
    cpus: Vec<HostCpu, MAX_CPUS>,
    cpus_left_out: u32,
    first_cpu: Option<Node<'a>>,
    psci: Option<PsciConduit>,
    gic: Option<(HostGic, u32)>,
    timer: Option<Node<'a>>,
    chosen: Option<Node<'a>>,
    aliases: Option<Node<'a>>,
}

impl<'a> HostMachine<'a> {
    /// Reads `tree`, which lies at physical address `tree_start`.
    ///
    /// # Errors
    /// A damaged tree, or one without memory, CPUs, a GIC with virtualization or the timer's interrupts.
    pub fn read(tree: &Tree<'a>, tree_start: u64) -> Result<Self, TreeError> {
        let mut found = Found::default();
        for range in tree.reservations() {
            found.reserved.insert(range).map_err(|_| TreeError::TooMany("reserved regions"))?;
        }
        let mut walk = tree.walk()?;
        while let Some(path) = walk.step()? {
            found.note(path)?;
        }
        if found.ram.as_slice().is_empty() {
            return Err(TreeError::Missing("memory"));
        }
        let first_cpu = found.first_cpu.ok_or(TreeError::Missing("CPUs"))?;
        let (gic, cells) = found.gic.ok_or(TreeError::Missing("GICv2 or GICv3"))?;
        let timer = found.timer.ok_or(TreeError::Missing("generic timer"))?;
        let uart = match found.chosen {
            Some(chosen) => HostUart::find(tree, chosen, found.aliases, cells)?,
            None => None,
        };
        Ok(Self {
            ram: found.ram,
            reserved: found.reserved,
            no_map: found.no_map,
            tree: PhysRange::new(tree_start, u64::from(tree.bytes()))
                .ok_or(TreeError::Malformed("address of the tree"))?,
            cpus: found.cpus,
            cpus_left_out: found.cpus_left_out,
            cpu_compatible: first_cpu.bytes("compatible")?.unwrap_or_default(),
            cpu_clock_hz: first_cpu.u32("clock-frequency")?,
            psci: found.psci,
            gic,
            timer: TimerPpis::read(timer, cells)?,
            timer_clock_hz: timer.u32("clock-frequency")?,
            uart,
        })
    }
}

impl<'a> Found<'a> {
    /// Notes what the node at `path` says.
    fn note(&mut self, path: Path<'_, 'a>) -> Result<(), TreeError> {
        let node = path.node()?;
        if path.depth() == 1 {
            match node.name()? {
                "chosen" => self.chosen = Some(node),
                "aliases" => self.aliases = Some(node),
                _ => {}
            }
        }
        if !node.is_available()? {
            return Ok(());
        }
        if path.depth() == 1 && node.lists("device_type", &["memory"])? {
            self.note_memory(path)?;
        } else if path.is_child_of(&["reserved-memory"])? {
            self.note_reserved(path)?;
        } else if path.is_child_of(&["cpus"])? && node.lists("device_type", &["cpu"])? {
            self.note_cpu(path)?;
        } else if node.is_compatible(&["arm,psci-0.2", "arm,psci-1.0"])? {
            self.psci = match node.str("method")? {
                Some("smc") => Some(PsciConduit::Smc),
                Some("hvc") => Some(PsciConduit::Hvc),
                Some(_) | None => None,
            };
        } else if node.is_compatible(&["arm,armv8-timer"])? {
            self.timer = self.timer.or(Some(node));
        } else if self.gic.is_none()
            && let Some(gic) = HostGic::read(path)?
        {
            self.gic = Some((gic, interrupt_cells(node)?));
        }
        Ok(())
    }

    fn note_memory(&mut self, path: Path<'_, 'a>) -> Result<(), TreeError> {
        let mut index: usize = 0;
        while let Some((start, size)) = path.bus_reg(index)? {
            if let Some(bank) = PhysRange::new(start, size) {
                // A bank too many is RAM that nobody uses.
                let _unused = self.ram.insert(bank);
            }
            index = index.saturating_add(1);
        }
        Ok(())
    }

    fn note_reserved(&mut self, path: Path<'_, 'a>) -> Result<(), TreeError> {
        let mut index: usize = 0;
        while let Some((start, size)) = path.bus_reg(index)? {
            if size != 0 {
                let region = PhysRange::new(start, size).ok_or(TreeError::Malformed("reserved region"))?;
                self.reserved.insert(region).map_err(|_| TreeError::TooMany("reserved regions"))?;
                if path.node()?.has("no-map")? {
                    self.no_map.insert(region).map_err(|_| TreeError::TooMany("reserved regions"))?;
                }
            }
            index = index.saturating_add(1);
        }
        Ok(())
    }

    fn note_cpu(&mut self, path: Path<'_, 'a>) -> Result<(), TreeError> {
        let node = path.node()?;
        let (address_cells, _) = path.parent()?.child_cells()?;
        let reg = node.bytes("reg")?.and_then(|value| Cells::new(value).number(address_cells));
        let mpidr = reg.ok_or(TreeError::Malformed("reg of a CPU"))?;
        if mpidr & !MPIDR_AFFINITY != 0 || self.cpus.iter().any(|cpu| cpu.mpidr == mpidr) {
            return Err(TreeError::Malformed("reg of a CPU"));
        }
        let start = match node.str("enable-method")? {
            Some("psci") => CpuStart::Psci,
            Some("spin-table") => match release_address(node)? {
                Some(release) => CpuStart::SpinTable { release },
                None => CpuStart::Unknown,
            },
            Some(_) | None => CpuStart::Unknown,
        };
        self.first_cpu = self.first_cpu.or(Some(node));
        if self.cpus.push(HostCpu { mpidr, start }).is_err() {
            self.cpus_left_out = self.cpus_left_out.saturating_add(1);
        }
        Ok(())
    }
}

/// Registers (entry 0 of `reg`, as CPU physical addresses) of the first usable device that is compatible with one of `wanted`.
///
/// # Errors
/// [`TreeError`] when the tree is damaged.
pub fn find_device(tree: &Tree<'_>, wanted: &[&str]) -> Result<Option<PhysRange>, TreeError> {
    let mut walk = tree.walk()?;
    while let Some(path) = walk.step()? {
        let node = path.node()?;
        if node.is_compatible(wanted)? && node.is_available()? {
            return path.reg(0);
        }
    }
    Ok(None)
}

/// `cpu-release-addr`, of two cells or (on some boards) one.
fn release_address(node: Node<'_>) -> Result<Option<u64>, TreeError> {
    match node.u64("cpu-release-addr")? {
        Some(address) => Ok(Some(address)),
        None => Ok(node.u32("cpu-release-addr")?.map(u64::from)),
    }
}

#[cfg(test)]
mod tests;
