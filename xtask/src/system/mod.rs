//! System files: which machine, which domains. What a file says is checked here, before QEMU starts.
//!
//! Domains are counted from 1 in the order of the file: `domain[2]` in a message is the second domain. That is its id too, unless a
//! control domain (`privileged = true`), whose id is 0, stands before it.

mod kernel;
mod reader;
mod scheduling;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use toml::Table;

use crate::failure::{Failure, Outcome};
use crate::rpi4;
use crate::terrain::Terrain;
use kernel::read_kernel;
pub(crate) use kernel::{Kernel, kernel_image};
pub(crate) use reader::parse_size;
use reader::{Keys, Reader};
use scheduling::{Pools, Scheduling, read_pools, read_scheduling};

/// The keys at the top.
const TOP: Keys = Keys { known: &["machine", "domain", "pool", "expect"], later: &[] };
/// Those of `[machine]`.
const MACHINE: Keys = Keys {
    known: &["board", "gic", "cpus", "cpu", "memory", "console", "self_check", "dom0_module", "terrain"],
    later: &[],
};
/// Those of `[[domain]]`.
const DOMAIN: Keys = Keys {
    known: &[
        "name",
        "kernel",
        "ramdisk",
        "cmdline",
        "memory",
        "max_memory",
        "maptrack_frames",
        "vcpus",
        "paging",
        "vuart",
        "pv_console",
        "passthrough",
        "unsafe_dma",
        "channels",
        "privileged",
        "isolated",
        "on_reboot",
        "on_crash",
        "max_restarts",
        "weight",
        "cap",
        "pool",
        "affinity",
    ],
    later: &["jit"],
};
/// Those of `[expect]`.
const EXPECT: Keys = Keys { known: &["digest_of_ramdisk"], later: &[] };
/// All keys that can be set, by where they stand; `docs/system-file.md` has a row for each.
pub(crate) const ALL_KEYS: [(&str, &[&str]); 4] = [
    ("[machine]", MACHINE.known),
    ("[[domain]]", DOMAIN.known),
    ("[[pool]]", scheduling::POOL.known),
    ("[expect]", EXPECT.known),
];
/// QEMU's `virt` has at most this many CPUs with GICv3.
const MOST_CPUS: u32 = 512;
/// The interrupt controller of GICv2 addresses eight CPUs.
const MOST_CPUS_GICV2: u32 = 8;
/// The most vCPUs a domain can have: what its GICv2 can tell apart.
const MOST_VCPUS: u32 = 8;
/// vCPUs of all domains together, domains with the control domain, and channels of one, at most: the hypervisor's `sched::MAX_VCPUS`,
/// `domain::MAX_DOMAINS`, `devicetree::channel::MAX_CHANNELS`.
const MOST_VCPUS_IN_ALL: u32 = 512;
const MOST_DOMAINS: usize = 257;
const MOST_CHANNELS: usize = 8;

/// A system file.
#[derive(Debug)]
pub(crate) struct System {
    /// The file's name as the user gave it.
    pub(crate) file: String,
    /// `[machine]`.
    pub(crate) machine: Machine,
    /// `[[domain]]`; [`System::ids`] has their ids.
    pub(crate) domains: Vec<Domain>,
    /// `[expect]`.
    pub(crate) expect: Expect,
}

/// `[machine]`: defaults for QEMU.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// Which board.
    pub(crate) board: Board,
    /// The GIC's architecture version: 2 or 3.
    pub(crate) gic: u32,
    /// Physical CPUs.
    pub(crate) cpus: u32,
    /// QEMU's CPU model.
    pub(crate) cpu: String,
    /// RAM in bytes.
    pub(crate) memory: u64,
    /// What the device tree's `stdout-path` says instead of the board's own choice; on the Raspberry Pi only.
    pub(crate) console: Option<String>,
    /// For tests: the image with the self-check, which the control domain asks for.
    pub(crate) self_check: bool,
    /// For tests: a dom0 kernel module directly under `/chosen`, which the hypervisor must refuse.
    pub(crate) dom0_module: bool,
    /// For tests: what kind of RAM.
    pub(crate) terrain: Terrain,
}

/// A board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Board {
    /// QEMU's `virt`.
    Virt,
    /// The Raspberry Pi 4, or QEMU's `raspi4b`.
    Rpi4,
}

/// `[[domain]]`.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "the keys of the file")]
pub(crate) struct Domain {
    /// For people and for `channels`.
    pub(crate) name: String,
    /// The kernel's file; absent only in unchecked files.
    pub(crate) kernel: Option<Kernel>,
    /// The ramdisk.
    pub(crate) ramdisk: Option<Ramdisk>,
    /// The kernel's command line.
    pub(crate) cmdline: Option<String>,
    /// Bytes.
    pub(crate) memory: u64,
    /// Bytes that it may ask for at run time, `memory` included.
    pub(crate) max_memory: u64,
    /// Frames for handles of mappings, 256 each; absent is the hypervisor's default.
    pub(crate) maptrack_frames: Option<u32>,
    /// Virtual CPUs.
    pub(crate) vcpus: u32,
    /// Who owns the stage-1 tables.
    pub(crate) paging: Paging,
    /// Whether the domain has Xen's emulated PL011.
    pub(crate) vuart: bool,
    /// Whether the domain has a PV console.
    pub(crate) pv_console: bool,
    /// Paths of the machine's devices that the domain gets, in the machine's device tree.
    pub(crate) passthrough: Vec<String>,
    /// Whether they may be devices that do DMA, from which nothing protects memory.
    pub(crate) unsafe_dma: bool,
    /// What becomes of it when it reboots: a word of xl.cfg.
    pub(crate) on_reboot: String,
    /// What becomes of it when it crashes.
    pub(crate) on_crash: String,
    /// How often it is built anew in a minute at most.
    pub(crate) max_restarts: u32,
    /// Whether it is the control domain, whose id is 0.
    pub(crate) privileged: bool,
    /// Whether other domains' events and grants are kept from it.
    pub(crate) isolated: bool,
    /// Its part of the CPUs.
    pub(crate) scheduling: Scheduling,
    /// Peers of static event channels declared here, as indices into [`System::domains`].
    pub(crate) channels: Vec<usize>,
}

/// A ramdisk's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ramdisk {
    /// A file.
    File(PathBuf),
    /// The EL2 image itself, as an ELF file without symbols.
    Hypervisor,
    /// A user space for Debian's Linux.
    Linux,
}

/// `paging`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paging {
    /// The guest owns its stage-1 tables.
    Nested,
    /// Page-table updates go through the hypervisor.
    Pv,
}

/// `[expect]`: what must hold after the run beside clean ends.
#[derive(Debug, Default)]
pub(crate) struct Expect {
    /// Every printed SHA-256 is that of this domain's ramdisk, and two domains printed one.
    pub(crate) digest_of_ramdisk: Option<usize>,
}

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checking {
    /// As users want it.
    Full,
    /// For tests of the hypervisor's own checks: files may be missing keys, be too large or be no kernels.
    Unchecked,
}

impl System {
    /// Reads a file; `board` overrides what it says.
    pub(crate) fn load(path: &Path, checking: Checking, board: Option<Board>) -> Outcome<Self> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::usage(format!("{file}: cannot be read ({error}); name a system file"))
        })?;
        Self::parse_for(&file, path.parent().unwrap_or(Path::new("")), &text, checking, board)
    }

    /// Reads a file's text; paths in it are relative to `folder`.
    pub(crate) fn parse(file: &str, folder: &Path, text: &str, checking: Checking) -> Outcome<Self> {
        Self::parse_for(file, folder, text, checking, None)
    }

    /// [`Self::parse`] for another board than the text says.
    pub(crate) fn parse_for(
        file: &str,
        folder: &Path,
        text: &str,
        checking: Checking,
        board: Option<Board>,
    ) -> Outcome<Self> {
        let table = text.parse::<Table>().map_err(|error| {
            let line =
                error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            Failure::usage(format!("{file}:{line}: {}", error.message()))
        })?;
        let mut top = Reader::new(file, String::new(), table, &TOP)?;
        let machine = top.table("machine")?.unwrap_or_default();
        let domains = top.tables("domain")?;
        let pools = top.tables("pool")?;
        let expect = top.table("expect")?.unwrap_or_default();
        if domains.is_empty() {
            return Err(top.error("domain", "missing: write at least one [[domain]]"));
        }
        let machine = read_machine(Reader::new(file, "machine.".into(), machine, &MACHINE)?, board)?;
        let pools = read_pools(file, pools)?;
        let mut read = Vec::new();
        let mut channels = Vec::new();
        for (index, table) in domains.into_iter().enumerate() {
            let reader = Reader::new(file, format!("domain[{}].", index + 1), table, &DOMAIN)?;
            let (domain, peers) = read_domain(reader, folder, checking, &pools)?;
            read.push(domain);
            channels.push(peers);
        }
        let mut system = Self { file: file.to_owned(), machine, domains: read, expect: Expect::default() };
        system.check_names()?;
        system.check_privileged()?;
        system.connect(&channels)?;
        let mut reader = Reader::new(file, "expect.".into(), expect, &EXPECT)?;
        if let Some(name) = reader.string("digest_of_ramdisk")? {
            let index = system.index(&name).filter(|index| system.domains[*index].ramdisk.is_some());
            let unknown =
                || reader.error("digest_of_ramdisk", &format!("no domain \"{name}\" with a ramdisk"));
            system.expect.digest_of_ramdisk = Some(index.ok_or_else(unknown)?);
        }
        Ok(system)
    }

    /// The guests of this workspace that it boots.
    pub(crate) fn guests(&self) -> BTreeSet<String> {
        let guest = |domain: &Domain| match &domain.kernel {
            Some(Kernel::Guest(name)) => Some(name.clone()),
            Some(Kernel::File(_) | Kernel::Linux) | None => None,
        };
        self.domains.iter().filter_map(guest).collect()
    }

    /// The ids of the domains: 0 for the control domain, the others count from 1 in file order.
    pub(crate) fn ids(&self) -> Vec<u32> {
        let mut last = 0;
        let id = |domain: &Domain| {
            if domain.privileged {
                return 0;
            }
            last += 1;
            last
        };
        self.domains.iter().map(id).collect()
    }

    /// Where a domain of that name is.
    pub(crate) fn index(&self, name: &str) -> Option<usize> {
        self.domains.iter().position(|domain| domain.name == name)
    }

    /// Checks the kernels that are files; guests of this workspace are checked when they are built.
    pub(crate) fn check_kernels(&self) -> Outcome<()> {
        for (index, domain) in self.domains.iter().enumerate() {
            if let Some(kernel @ Kernel::File(_)) = &domain.kernel {
                kernel_image(&kernel.path()?, Checking::Full).map_err(|failure| {
                    Failure::usage(format!("{}: domain[{}].kernel: {failure}", self.file, index + 1))
                })?;
            }
        }
        Ok(())
    }

    /// Checks that there is no more of anything than the hypervisor has room for.
    pub(crate) fn check_counts(&self) -> Outcome<()> {
        let wrong =
            |place: &str, text: String| Err(Failure::usage(format!("{}: {place}: {text}", self.file)));
        if self.domains.len() > MOST_DOMAINS {
            let text = format!("{} of them, and {MOST_DOMAINS} are the most: use fewer", self.domains.len());
            return wrong("domain", text);
        }
        let vcpus = self.domains.iter().fold(0u32, |sum, domain| sum.saturating_add(domain.vcpus));
        if vcpus > MOST_VCPUS_IN_ALL {
            let text = format!("{vcpus} vCPUs in all, and {MOST_VCPUS_IN_ALL} are the most");
            return wrong("domain", format!("{text}: give domains fewer"));
        }
        for (index, domain) in self.domains.iter().enumerate() {
            let others = self.domains.iter().filter(|other| other.channels.contains(&index)).count();
            let count = domain.channels.len() + others;
            if count > MOST_CHANNELS {
                let text = format!("{count} channels, both sides' counted, and {MOST_CHANNELS} are the most");
                return wrong(&format!("domain[{}].channels", index + 1), format!("{text}: declare fewer"));
            }
        }
        Ok(())
    }

    fn check_names(&self) -> Outcome<()> {
        let mut seen = BTreeSet::new();
        for (index, domain) in self.domains.iter().enumerate() {
            if !seen.insert(&domain.name) {
                let text = format!("\"{}\" is the name of another domain already", domain.name);
                return Err(Failure::usage(format!("{}: domain[{}].name: {text}", self.file, index + 1)));
            }
        }
        Ok(())
    }

    fn check_privileged(&self) -> Outcome<()> {
        match self.domains.iter().enumerate().filter(|(_, domain)| domain.privileged).nth(1) {
            None => Ok(()),
            Some((index, _)) => {
                let text = "only one domain can be the control domain";
                Err(Failure::usage(format!("{}: domain[{}].privileged: {text}", self.file, index + 1)))
            }
        }
    }

    /// Resolves the names in `channels`.
    fn connect(&mut self, channels: &[Vec<String>]) -> Outcome<()> {
        let mut pairs = BTreeSet::new();
        for (index, peers) in channels.iter().enumerate() {
            for name in peers {
                let refuse = |text: &str| {
                    Failure::usage(format!("{}: domain[{}].channels: {text}", self.file, index + 1))
                };
                let peer =
                    self.index(name).ok_or_else(|| refuse(&format!("no domain is named \"{name}\"")))?;
                if peer == index {
                    return Err(refuse("a channel leads to another domain"));
                }
                if !pairs.insert((index.min(peer), index.max(peer))) {
                    return Err(refuse(&format!(
                        "the channel with \"{name}\" is declared already: one side is enough"
                    )));
                }
                self.domains[index].channels.push(peer);
            }
        }
        Ok(())
    }
}

impl Machine {
    /// Checks what the file and the command line say together.
    ///
    /// # Errors
    /// The key of `[machine]`, which is the option's name too, and what is wrong with it.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.board == Board::Rpi4 {
            let wrong = |key, has: &str| Err((key, format!("a Raspberry Pi 4 has {has}: leave it out")));
            return match self {
                Self { gic, .. } if *gic != 2 => wrong("gic", "a GICv2"),
                Self { cpu, .. } if cpu != "cortex-a72" => wrong("cpu", "Cortex-A72 cores"),
                Self { cpus, .. } if *cpus > rpi4::CPUS => wrong("cpus", "4 CPUs"),
                Self { memory, .. } if *memory > rpi4::MEMORY => wrong("memory", "2 GiB under QEMU"),
                Self { terrain: Terrain::Pieces, .. } => wrong("terrain", "the RAM that it has"),
                _ => Ok(()),
            };
        }
        if self.gic == 2 && self.cpus > MOST_CPUS_GICV2 {
            let text = format!("a GICv2 has at most {MOST_CPUS_GICV2} CPUs, found {}", self.cpus);
            return Err(("cpus", format!("{text}: use fewer, or version 3 of the GIC")));
        }
        Ok(())
    }
}

fn read_machine(mut reader: Reader<'_>, other: Option<Board>) -> Outcome<Machine> {
    let own = match reader.string("board")? {
        None => Board::Virt,
        Some(text) => board(&text).map_err(|text| reader.error("board", &text))?,
    };
    let board = other.unwrap_or(own);
    let (cpus, memory) = (reader.number("cpus", 1, MOST_CPUS)?, reader.size("memory")?);
    let (gic, cpu) = (reader.number("gic", 2, 3)?, reader.string("cpu")?);
    let (console, dom0_module) = (reader.string("console")?, reader.flag("dom0_module")?);
    let self_check = reader.flag("self_check")?;
    let terrain = match reader.string("terrain")?.as_deref() {
        None => Terrain::Plain,
        Some("pieces") => Terrain::Pieces,
        Some(_) => return Err(reader.error("terrain", "expected \"pieces\"")),
    };
    if board == Board::Virt && own == Board::Virt && console.is_some() {
        return Err(reader.error("console", "QEMU's virt has one UART: leave it out"));
    }
    // What the board has.
    let rpi4 = Machine {
        board: Board::Rpi4,
        gic: 2,
        cpus: rpi4::CPUS,
        cpu: "cortex-a72".into(),
        memory: rpi4::MEMORY,
        console,
        self_check,
        dom0_module,
        terrain: Terrain::Plain,
    };
    if own == Board::Rpi4 {
        let asked = Machine {
            gic: gic.unwrap_or(2),
            cpus: cpus.unwrap_or(1),
            cpu: cpu.clone().unwrap_or_else(|| rpi4.cpu.clone()),
            memory: memory.unwrap_or(rpi4.memory),
            terrain,
            ..rpi4.clone()
        };
        asked.check().map_err(|(key, text)| reader.error(key, &text))?;
    }
    Ok(match board {
        Board::Virt => Machine {
            board,
            gic: gic.unwrap_or(3),
            cpus: cpus.unwrap_or(2),
            cpu: cpu.unwrap_or_else(|| "cortex-a72".into()),
            memory: memory.unwrap_or(1 << 30),
            console: None,
            self_check,
            dom0_module,
            terrain,
        },
        // What a file for `virt` wants does not matter where the command line says another board.
        Board::Rpi4 => Machine {
            cpus: cpus.unwrap_or(rpi4.cpus).min(rpi4.cpus),
            memory: memory.unwrap_or(rpi4.memory).min(rpi4.memory),
            ..rpi4
        },
    })
}

/// Reads a board's name.
pub(crate) fn board(name: &str) -> Result<Board, String> {
    match name {
        "virt" => Ok(Board::Virt),
        "rpi4" => Ok(Board::Rpi4),
        other => Err(format!("expected \"virt\" or \"rpi4\", found \"{other}\"")),
    }
}

fn read_domain(
    mut reader: Reader<'_>,
    folder: &Path,
    checking: Checking,
    pools: &Pools,
) -> Outcome<(Domain, Vec<String>)> {
    let name = reader.required("name", "ping")?;
    if !is_name(&name) {
        return Err(reader.error("name", "expected 1 to 31 letters, digits, `-` or `_`"));
    }
    let kernel = reader.string("kernel")?;
    if kernel.is_none() && checking == Checking::Full {
        return Err(reader.missing("kernel", "\"guest:hello\""));
    }
    let kernel = match &kernel {
        None => None,
        Some(text) => Some(read_kernel(text, folder).map_err(|text| reader.error("kernel", &text))?),
    };
    let ramdisk = reader.string("ramdisk")?.map(|text| match text.as_str() {
        "hypervisor" => Ramdisk::Hypervisor,
        "debian:busybox" => Ramdisk::Linux,
        path => Ramdisk::File(folder.join(path)),
    });
    if let Some(Ramdisk::File(path)) = &ramdisk
        && !path.is_file()
    {
        return Err(reader.error("ramdisk", &format!("{} does not exist", path.display())));
    }
    let cmdline = reader.string("cmdline")?;
    if cmdline.as_ref().is_some_and(|text| text.contains('\0')) {
        return Err(reader.error("cmdline", "a zero byte cannot be passed on"));
    }
    let memory = match (reader.size("memory")?, checking) {
        (Some(memory), _) => memory,
        (None, Checking::Unchecked) => 32 << 20,
        (None, Checking::Full) => {
            return Err(reader.missing("memory", "\"32M\""));
        }
    };
    let max_memory = reader.size("max_memory")?.unwrap_or(memory);
    if max_memory < memory && checking == Checking::Full {
        return Err(reader.error("max_memory", "less than memory"));
    }
    let maptrack_frames = reader.number("maptrack_frames", 0, 1024)?;
    let least = u32::from(checking == Checking::Full);
    let most = if checking == Checking::Full { MOST_VCPUS } else { u32::MAX };
    let vcpus = reader.number("vcpus", least, most)?.unwrap_or(1);
    let paging = match reader.string("paging")?.as_deref() {
        None | Some("nested") => Paging::Nested,
        Some("pv") => Paging::Pv,
        Some(other) => {
            return Err(reader.error("paging", &format!("expected \"pv\" or \"nested\", found \"{other}\"")));
        }
    };
    let (vuart, pv_console) = (reader.flag("vuart")?, reader.flag("pv_console")?);
    let (passthrough, unsafe_dma) = (reader.strings("passthrough")?, reader.flag("unsafe_dma")?);
    let privileged = reader.flag("privileged")?;
    let isolated = reader.flag("isolated")?;
    let on_reboot = read_action(&mut reader, "on_reboot", "restart")?;
    let on_crash = read_action(&mut reader, "on_crash", "destroy")?;
    let max_restarts = reader.number("max_restarts", 0, u32::MAX)?.unwrap_or(5);
    let scheduling = read_scheduling(&mut reader, pools)?;
    let peers = reader.strings("channels")?;
    let domain = Domain {
        name,
        kernel,
        ramdisk,
        cmdline,
        memory,
        max_memory,
        maptrack_frames,
        vcpus,
        paging,
        vuart,
        pv_console,
        passthrough,
        unsafe_dma,
        on_reboot,
        on_crash,
        max_restarts,
        privileged,
        isolated,
        scheduling,
        channels: Vec::new(),
    };
    Ok((domain, peers))
}

fn read_action(reader: &mut Reader<'_>, key: &str, default: &str) -> Outcome<String> {
    let word = reader.string(key)?.unwrap_or_else(|| default.into());
    if ["destroy", "restart", "preserve"].contains(&word.as_str()) {
        return Ok(word);
    }
    Err(reader.error(key, &format!("expected \"destroy\", \"restart\" or \"preserve\", found \"{word}\"")))
}

fn is_name(name: &str) -> bool {
    (1..=31).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

#[cfg(test)]
mod tests;
