//! Guests that the tree asks for: "dom0less" nodes under `/chosen` (Xen's `docs/misc/arm/device-tree/booting.txt`).
//!
//! 1. Ids count from 1 in the tree's order; a refused domain keeps its id, so that the others' do not move. The control domain's is 0, and
//!    it is not counted.
//! 2. A refusal concerns one domain; the others go on. Only a damaged tree ends the list.
//! 3. Properties that are not known are ignored.
//!
//! | property | default | source |
//! |---|---|---|
//! | `memory` (two cells, KiB), `cpus` | refused without | Xen |
//! | `vpl011`, `xen,enhanced` | off | Xen |
//! | `max_grant_frames`, `max_maptrack_frames` | 64, 1024 | Xen |
//! | `xen,domain-p2m-mem-mb` | 1 MiB a vCPU, 4 KiB a MiB of RAM, 512 KiB | Xen |
//! | `pavo,max-ports` | 1024 | ours; Xen has the number fixed |
//! | `pavo,max-memory` in KiB | `memory` | ours |
//! | `pavo,name` | the node's name | ours |
//! | `pavo,paging` (`nested` or `pv`) | `nested` | ours |
//! | `pavo,console`: a PV console | off | ours |
//! | `pavo,isolated` | off | ours |
//! | `pavo,privileged`: the control domain | off | ours |
//! | `pavo,on-reboot`, `pavo,on-crash`: `destroy`, `restart`, `preserve` | `destroy` | ours, words of xl.cfg |
//! | `pavo,max-restarts` in a minute | 5 | ours |
//! | `pavo,weight` (1 to 65535), `pavo,cap` (per cent of a CPU) | 256, none | ours |
//! | `pavo,affinity`, `pavo,pool`: CPUs as bits; `pavo,scheduler` of the pool (`fair`, `partition`) | all; those of no pool; `fair` | ours |
use heapless::Vec;
use pv_abi::DomId;

use crate::domain::CONTROL;
use crate::life::{Action, Policy};
use crate::sched::plan::Scheduling;
use crate::sched::pool::Kind;

use super::channel::{self, MAX_CHANNELS, StaticChannel};
use super::error::TreeError;
use super::node::Node;
use super::range::PhysRange;
use super::refusal::{DomainRefusal, Refusal};
use super::tree::{Path, Tree, Walk};

/// Most vCPUs of a domain: what a `GICv2` can tell apart.
pub const MAX_VCPUS: u32 = 8;
/// Ports of a domain by default: Xen's `max_evtchn_port` of 1023, and port 0.
const DEFAULT_MAX_PORTS: u32 = 1024;
/// Xen's `opt_max_grant_frames`.
const DEFAULT_GRANT_FRAMES: u32 = 64;
/// Xen's `opt_max_maptrack_frames`.
const DEFAULT_MAPTRACK_FRAMES: u32 = 1024;
/// Xen takes these counts as signed.
const MAX_FRAME_COUNT: u32 = i32::MAX.cast_unsigned();

pub(super) const DOMAIN_COMPATIBLE: [&str; 1] = ["xen,domain"];

/// Which of Xen's interfaces the guest is told of (`xen,enhanced`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Enhanced {
    /// No `/hypervisor` node.
    None,
    /// All of them.
    Full,
    /// All but xenstore.
    NoXenstore,
}

/// Who owns stage 1 (`pavo,paging`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Paging {
    /// The guest alone, as on Xen.
    Nested,
    /// The guest through page-table hypercalls.
    Pv,
}

/// What a domain may make the hypervisor use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quotas {
    /// Event channel ports, port 0 counted.
    pub max_ports: u32,
    /// Frames of its grant table.
    pub grant_frames: u32,
    /// Frames to track its mappings of others' grants.
    pub maptrack_frames: u32,
    /// Frames of 4 KiB for its stage-2 tables.
    pub stage2_frames: u64,
    /// RAM in KiB, what it starts with included: it may ask for more up to this.
    pub memory_kib: u64,
}

/// One guest to build.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainConfig<'a> {
    /// Its number.
    pub id: DomId,
    /// Its name, for people.
    pub name: &'a str,
    /// RAM in KiB.
    pub memory_kib: u64,
    /// vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Whether it gets an emulated PL011.
    pub vpl011: bool,
    /// Whether it has a PV console, whose other end is the hypervisor.
    pub console: bool,
    /// What it is told of the hypervisor.
    pub enhanced: Enhanced,
    /// Who owns its stage 1.
    pub paging: Paging,
    /// Whether other domains' events and grants are kept from it.
    pub isolated: bool,
    /// Its kernel in host memory.
    pub kernel: PhysRange,
    /// Its command line, without a terminator.
    pub bootargs: &'a [u8],
    /// Its RAM disk in host memory.
    pub ramdisk: Option<PhysRange>,
    /// A partial tree to add to its own, in host memory.
    pub device_tree: Option<PhysRange>,
    /// Channels that exist from the start.
    pub channels: Vec<StaticChannel, MAX_CHANNELS>,
    /// What it may use.
    pub quotas: Quotas,
    /// What becomes of it when it has ended.
    pub policy: Policy,
    /// Its part of the CPUs.
    pub scheduling: Scheduling,
}

/// Whether `/chosen` itself holds a kernel, that is, one for a dom0: there is none here, so it is to be refused.
///
/// A module without a kind counts: Xen takes the first of them for the dom0 kernel.
///
/// # Errors
/// [`TreeError`] when the tree is damaged.
pub fn has_dom0_modules(tree: &Tree<'_>) -> Result<bool, TreeError> {
    const KERNELS: [&str; 2] = ["multiboot,kernel", "xen,linux-zimage"];
    const MODULES: [&str; 2] = ["multiboot,module", "xen,multiboot-module"];
    const OTHERS: [&str; 4] =
        ["multiboot,ramdisk", "xen,linux-initrd", "xen,xsm-policy", "multiboot,device-tree"];
    let mut walk = tree.walk()?;
    while let Some(path) = walk.step()? {
        if path.is_child_of(&["chosen"])? {
            let node = path.node()?;
            if node.is_compatible(&KERNELS)?
                || (node.is_compatible(&MODULES)? && !node.is_compatible(&OTHERS)?)
            {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Whether a domain's node is the control domain's.
pub(super) fn is_control(node: Node<'_>) -> Result<bool, TreeError> {
    node.has("pavo,privileged")
}

/// Id of the `position`-th domain node, counted from 1 without the control domain's.
pub(super) fn domain_id(position: usize) -> Option<DomId> {
    let id = DomId(u16::try_from(position).ok()?);
    (id < DomId::FIRST_RESERVED).then_some(id)
}

/// The guests of a tree, one after the other.
pub struct Domains<'t, 'a> {
    tree: &'t Tree<'a>,
    walk: Option<Walk<'a>>,
    /// A domain's node that was reached while the one before was read.
    ahead: Option<Node<'a>>,
    count: usize,
    /// Whether there was a control domain.
    control: bool,
}

impl<'t, 'a> Domains<'t, 'a> {
    /// Starts at the first domain of `tree`.
    ///
    /// # Errors
    /// [`TreeError`] when the tree has no root.
    pub fn new(tree: &'t Tree<'a>) -> Result<Self, TreeError> {
        Ok(Self { tree, walk: Some(tree.walk()?), ahead: None, count: 0, control: false })
    }

    /// The next domain's node, if one is left.
    fn next_node(&mut self) -> Result<Option<Node<'a>>, TreeError> {
        if let Some(node) = self.ahead.take() {
            return Ok(Some(node));
        }
        let Some(walk) = self.walk.as_mut() else { return Ok(None) };
        while let Some(path) = walk.step()? {
            if is_domain(path)? {
                return path.node().map(Some);
            }
        }
        Ok(None)
    }

    /// Reads the domain at `node`, whose children are next in the walk; all of them are consumed.
    fn read(&mut self, id: DomId, node: Node<'a>, name: &'a str) -> Result<DomainConfig<'a>, Refusal> {
        let mut children = Children::default();
        let quotas = quotas(node);
        let max_ports = quotas.as_ref().map_or(u32::MAX, |quotas| quotas.max_ports);
        let mut refused = None;
        if let Some(walk) = self.walk.as_mut() {
            while let Some(path) = walk.step()? {
                if path.depth() < 3 {
                    self.ahead = if is_domain(path)? { Some(path.node()?) } else { None };
                    break;
                }
                if path.depth() == 3 {
                    match children.note(self.tree, path, max_ports) {
                        Ok(()) => {}
                        Err(Refusal::Tree(error)) => return Err(error.into()),
                        Err(reason) => refused = refused.or(Some(reason)),
                    }
                }
            }
        }
        let (memory_kib, vcpus, quotas, paging) = (memory(node)?, vcpus(node)?, quotas?, paging(node)?);
        if let Some(reason) = refused {
            return Err(reason);
        }
        let config = DomainConfig {
            id,
            name,
            memory_kib,
            vcpus,
            vpl011: node.has("vpl011")?,
            console: node.has("pavo,console")?,
            enhanced: enhanced(node)?,
            paging,
            isolated: node.has("pavo,isolated")?,
            kernel: children.kernel.ok_or(Refusal::KernelMissing)?,
            bootargs: children.bootargs,
            ramdisk: children.ramdisk,
            device_tree: children.device_tree,
            channels: children.channels,
            quotas,
            policy: policy(node)?,
            scheduling: scheduling(node)?,
        };
        Ok(config)
    }
}

impl<'a> Iterator for Domains<'_, 'a> {
    type Item = Result<DomainConfig<'a>, DomainRefusal<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let node = match self.next_node() {
            Ok(node) => node?,
            Err(error) => {
                self.walk = None;
                return Some(Err(DomainRefusal { id: None, name: "", reason: error.into() }));
            }
        };
        let name = domain_name(node).unwrap_or_default();
        let control = is_control(node).unwrap_or(false);
        let second = control && core::mem::replace(&mut self.control, true);
        if !control {
            self.count = self.count.saturating_add(1);
        }
        let id = if control { Some(CONTROL) } else { domain_id(self.count) };
        let Some(id) = id else {
            self.walk = None;
            self.ahead = None;
            return Some(Err(DomainRefusal { id: None, name, reason: Refusal::TooManyDomains }));
        };
        let read = self.read(id, node, name);
        let read = if second { read.and(Err(Refusal::SecondControl)) } else { read };
        Some(read.map_err(|reason| {
            if matches!(reason, Refusal::Tree(_)) {
                self.walk = None;
                self.ahead = None;
            }
            DomainRefusal { id: Some(id), name, reason }
        }))
    }
}

fn scheduling(node: Node<'_>) -> Result<Scheduling, Refusal> {
    let usual = Scheduling::default();
    let weight = match node.u32("pavo,weight")? {
        None => usual.weight,
        Some(weight) => {
            u16::try_from(weight).ok().filter(|weight| *weight != 0).ok_or(Refusal::WeightOutOfRange)?
        }
    };
    let kind = match node.str("pavo,scheduler")? {
        None | Some("fair") => Kind::Fair,
        Some("partition") => Kind::Partition,
        Some(_) => return Err(Refusal::UnknownScheduler),
    };
    Ok(Scheduling {
        weight,
        cap: node.u32("pavo,cap")?.unwrap_or(usual.cap),
        affinity: node.u32("pavo,affinity")?.unwrap_or(usual.affinity),
        pool: node.u32("pavo,pool")?,
        kind,
    })
}

fn is_domain(path: Path<'_, '_>) -> Result<bool, TreeError> {
    Ok(path.is_child_of(&["chosen"])? && path.node()?.is_compatible(&DOMAIN_COMPATIBLE)?)
}

fn domain_name(node: Node<'_>) -> Result<&str, TreeError> {
    match node.str("pavo,name")? {
        Some(name) if !name.is_empty() => Ok(name),
        Some(_) | None => node.name(),
    }
}

/// What a domain's child nodes say.
#[derive(Default)]
struct Children<'a> {
    kernel: Option<PhysRange>,
    bootargs: &'a [u8],
    ramdisk: Option<PhysRange>,
    device_tree: Option<PhysRange>,
    channels: Vec<StaticChannel, MAX_CHANNELS>,
}

impl<'a> Children<'a> {
    fn note(&mut self, tree: &Tree<'a>, path: Path<'_, 'a>, max_ports: u32) -> Result<(), Refusal> {
        let node = path.node()?;
        let module = || path.module_reg()?.ok_or(Refusal::ModuleMalformed);
        if node.is_compatible(&["multiboot,kernel"])? {
            self.kernel = Some(module()?);
            let raw = node.bytes("bootargs")?.unwrap_or_default();
            self.bootargs = raw.split(|byte| *byte == 0).next().unwrap_or_default();
        } else if node.is_compatible(&["multiboot,ramdisk"])? {
            self.ramdisk = Some(module()?);
        } else if node.is_compatible(&["multiboot,device-tree"])? {
            self.device_tree = Some(module()?);
        } else if channel::is_channel(node)? {
            channel::add(tree, node, max_ports, &mut self.channels)?;
        }
        Ok(())
    }
}

fn memory(node: Node<'_>) -> Result<u64, Refusal> {
    let kib = node.u64("memory")?.ok_or(Refusal::MemoryMissing)?;
    if kib == 0 {
        return Err(Refusal::MemoryIsZero);
    }
    if kib > pv_abi::layout::RAM_MAX >> 10 {
        return Err(Refusal::MemoryTooLarge);
    }
    Ok(kib)
}

fn vcpus(node: Node<'_>) -> Result<u32, Refusal> {
    match node.u32("cpus")?.ok_or(Refusal::CpusMissing)? {
        0 => Err(Refusal::CpusIsZero),
        count if count > MAX_VCPUS => Err(Refusal::TooManyVcpus),
        count => Ok(count),
    }
}

/// A property that is empty or no text means `enabled`, as in Xen; any other unknown text means off.
fn enhanced(node: Node<'_>) -> Result<Enhanced, TreeError> {
    if !node.has("xen,enhanced")? {
        return Ok(Enhanced::None);
    }
    Ok(match node.str("xen,enhanced")? {
        None | Some("" | "enabled") => Enhanced::Full,
        Some("no-xenstore") => Enhanced::NoXenstore,
        Some(_) => Enhanced::None,
    })
}

fn paging(node: Node<'_>) -> Result<Paging, Refusal> {
    match (node.has("pavo,paging")?, node.str("pavo,paging")?) {
        (false, _) | (true, Some("nested")) => Ok(Paging::Nested),
        (true, Some("pv")) => Ok(Paging::Pv),
        (true, Some(_) | None) => Err(Refusal::UnknownPaging),
    }
}

/// Defaults are Xen's without a toolstack: nothing starts a domain again.
fn policy(node: Node<'_>) -> Result<Policy, Refusal> {
    let action = |property| match (node.has(property)?, node.str(property)?) {
        (false, _) | (true, Some("destroy")) => Ok(Action::Destroy),
        (true, Some("restart")) => Ok(Action::Restart),
        (true, Some("preserve")) => Ok(Action::Preserve),
        (true, Some(_) | None) => Err(Refusal::UnknownAction),
    };
    Ok(Policy {
        on_reboot: action("pavo,on-reboot")?,
        on_crash: action("pavo,on-crash")?,
        max_restarts: node.u32("pavo,max-restarts")?.unwrap_or(Policy::NONE.max_restarts),
    })
}

fn quotas(node: Node<'_>) -> Result<Quotas, Refusal> {
    let frames = |property, default| {
        let count = node.u32(property)?.unwrap_or(default);
        if count > MAX_FRAME_COUNT { Err(Refusal::FrameCountTooLarge) } else { Ok(count) }
    };
    let max_ports = node.u32("pavo,max-ports")?.unwrap_or(DEFAULT_MAX_PORTS);
    if !(2..=1 << 17).contains(&max_ports) {
        return Err(Refusal::PortsOutOfRange);
    }
    let least = memory(node)?;
    let memory_kib = node.u64("pavo,max-memory")?.unwrap_or(least);
    if !(least..=pv_abi::layout::RAM_MAX >> 10).contains(&memory_kib) {
        return Err(Refusal::MaxMemoryOutOfRange);
    }
    let stage2_frames = match node.u32("xen,domain-p2m-mem-mb")? {
        Some(mebibytes) => u64::from(mebibytes) << 8,
        None => default_stage2_frames(memory_kib, vcpus(node)?),
    };
    Ok(Quotas {
        max_ports,
        grant_frames: frames("max_grant_frames", DEFAULT_GRANT_FRAMES)?,
        maptrack_frames: frames("max_maptrack_frames", DEFAULT_MAPTRACK_FRAMES)?,
        stage2_frames,
        memory_kib,
    })
}

/// Xen's default for the pool of stage-2 tables (`domain_p2m_pages`): 256 frames a vCPU, one a MiB of RAM and 128 more,
/// rounded up to whole MiB.
fn default_stage2_frames(memory_kib: u64, vcpus: u32) -> u64 {
    let frames = (u64::from(vcpus) << 8).saturating_add(memory_kib >> 10).saturating_add(128);
    frames.checked_next_multiple_of(256).unwrap_or(frames)
}

#[cfg(test)]
pub(super) mod tests;
