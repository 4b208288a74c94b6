//! `cargo xtask run`: boots a system file under QEMU and says how it went.

use std::io::{IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use sha2::{Digest as _, Sha256};

use crate::console::{Colour, Line};
use crate::dom0less::{self, Modules};
use crate::failure::{Failure, Outcome};
use crate::fdt::Node;
use crate::hypervisor::Hypervisor;
use crate::machine::{self, Clock, Ground, Layout};
use crate::setup::Qemu;
use crate::system::{self, Board, Checking, Ramdisk, System};
use crate::terrain::{Pieces, Terrain};
use crate::verdict::Observer;
use crate::watch::{Ended, Keys, watch};
use crate::{build, fdt, image, passthrough, rpi4, setup, workspace};

/// What stays free for the hypervisor, the tree and the modules, bytes.
const RESERVED: u64 = 32 << 20;

/// Seconds until a run is given up.
pub(crate) const TIMEOUT: u64 = 60;
/// The same where somebody types.
const INTERACTIVE: &str = "86400";

/// The terminal as it was, for when QEMU does not put it back.
struct Terminal(Option<Termios>);

impl Terminal {
    fn keep() -> Self {
        Self(tcgetattr(std::io::stdin()).ok())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// What `run` and `debug` accept.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Options {
    /// The system file; without one, the two-guest demonstration.
    pub(crate) system: Option<PathBuf>,
    /// The board: virt or rpi4 (default: the file's, else virt).
    #[arg(long)]
    pub(crate) board: Option<String>,
    /// The interrupt controller's version, 2 or 3 (default: the file's, else 3; rpi4 has 2).
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=3))]
    pub(crate) gic: Option<u32>,
    /// Physical CPUs, of which 8 are used and more than 8 are left off (default: the file's, else 2; rpi4 has 4).
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=512))]
    pub(crate) cpus: Option<u32>,
    /// QEMU's CPU model, such as max (default: the file's, else cortex-a72).
    #[arg(long)]
    pub(crate) cpu: Option<String>,
    /// RAM, such as 512M (default: the file's, else 1G; rpi4 has 2G).
    #[arg(long)]
    pub(crate) memory: Option<String>,
    /// Seconds until the run is given up; a day with --interactive, unless it is said.
    #[arg(long, default_value_t = TIMEOUT, default_value_if("interactive", "true", INTERACTIVE),
        value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: u64,
    /// Let time advance by instructions: slower, repeatable.
    #[arg(long)]
    pub(crate) icount: bool,
    /// Connect the keyboard to the console: a guest at a time.
    #[arg(long)]
    pub(crate) interactive: bool,
    /// For tests: do not check what the hypervisor must check itself.
    #[arg(long, hide = true)]
    pub(crate) unchecked: bool,
}

impl Options {
    /// Options for a system file, the rest as by default.
    pub(crate) fn for_file(system: PathBuf) -> Self {
        Self {
            system: Some(system),
            board: None,
            gic: None,
            cpus: None,
            cpu: None,
            memory: None,
            timeout: TIMEOUT,
            icount: false,
            interactive: false,
            unchecked: false,
        }
    }

    /// How much of the file is checked.
    pub(crate) fn checking(&self) -> Checking {
        if self.unchecked { Checking::Unchecked } else { Checking::Full }
    }

    /// Reads the system file and applies the command line to its machine.
    pub(crate) fn load(&self) -> Outcome<System> {
        let file = self.system.clone().unwrap_or_else(|| workspace::root().join("systems/two-guests.toml"));
        let board = self.board.as_deref().map(system::board).transpose();
        let board = board.map_err(|text| Failure::usage(format!("--board: {text}")))?;
        let mut system = System::load(&file, self.checking(), board)?;
        let machine = &mut system.machine;
        machine.gic = self.gic.unwrap_or(machine.gic);
        machine.cpus = self.cpus.unwrap_or(machine.cpus);
        if let Some(cpu) = &self.cpu {
            machine.cpu.clone_from(cpu);
        }
        if let Some(memory) = &self.memory {
            let bad = || Failure::usage(format!("--memory: expected a size such as 1G, found {memory}"));
            machine.memory = system::parse_size(memory).ok_or_else(bad)?;
        }
        if let Err((key, text)) = machine.check() {
            let place =
                if self.sets(key) { format!("--{key}") } else { format!("{}: machine.{key}", system.file) };
            return Err(Failure::usage(format!("{place}: {text}")));
        }
        if self.checking() == Checking::Full {
            check_memory(&system)?;
            system.check_counts()?;
            system.check_cpus()?;
            system.check_kernels()?;
        }
        Ok(system)
    }

    /// Whether the command line, and not the file, says this of the machine.
    fn sets(&self, key: &str) -> bool {
        match key {
            "gic" => self.gic.is_some(),
            "cpus" => self.cpus.is_some(),
            "cpu" => self.cpu.is_some(),
            "memory" => self.memory.is_some(),
            _ => false,
        }
    }

    /// How virtual time advances.
    pub(crate) fn clock(&self) -> Clock {
        if self.icount { Clock::Instructions } else { Clock::Wall }
    }
}

/// Builds, boots and judges.
pub(crate) fn command(options: &Options) -> Outcome<()> {
    // Mistakes in the file are told before anything is installed or built.
    let system = options.load()?;
    let (toolchain, qemu) = (setup::toolchain()?, setup::qemu()?);
    qemu.check(system.machine.board)?;
    build::some(&toolchain, &system.guests())?;
    let colour = if std::io::stdout().is_terminal() { Colour::On } else { Colour::Off };
    let mut each = |line: &Line| {
        show(&line.render(colour));
        ControlFlow::Continue(())
    };
    let report = boot(&qemu, &Hypervisor::of(&system)?, &system, options, &mut each)?;
    report.result().map(|summary| println!("{summary}"))
}

/// Writes to the terminal at once. A reader that went away is no reason to stop a run.
pub(crate) fn show(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

/// What a run showed.
#[derive(Debug)]
pub(crate) struct Report {
    /// The ids of the file's domains.
    ids: Vec<u32>,
    /// What the log said.
    observer: Observer,
    /// What went wrong; empty if all went well.
    problems: Vec<String>,
    /// Whether the time was up.
    timed_out: bool,
    elapsed: Duration,
}

impl Report {
    /// One line for people.
    pub(crate) fn summary(&self) -> String {
        let (count, clean) = (self.ids.len(), self.observer.clean(&self.ids));
        let noun = if count == 1 { "domain" } else { "domains" };
        let time = format!("({:.1} s)", self.elapsed.as_secs_f64());
        if self.problems.is_empty() {
            format!("{count} {noun}: all shut down cleanly {time}")
        } else {
            format!("{clean} of {count} {noun} shut down cleanly: {} {time}", self.problems.join("; "))
        }
    }

    /// The summary, as a failure with its exit status if something is wrong.
    pub(crate) fn result(&self) -> Outcome<String> {
        match (self.timed_out, self.problems.is_empty()) {
            (true, _) => Err(Failure::TimedOut(self.summary())),
            (false, false) => Err(Failure::failed(self.summary())),
            (false, true) => Ok(self.summary()),
        }
    }
}

/// The files of one run, removed with this value.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    fn new() -> Outcome<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = workspace::pavo().join("run").join(name);
        workspace::make_folder(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A system ready to boot.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The QEMU command; its serial line is its standard output.
    pub(crate) command: Command,
    /// Of the ramdisk that `[expect]` names.
    digest: Option<String>,
    /// What is looked at after the run.
    ground: Option<Ground>,
    /// Keeps the files.
    _folder: Folder,
}

/// The modules of a system: what goes into memory, and where.
pub(crate) struct Gathered {
    /// By a name for files.
    pub(crate) files: Vec<(String, Vec<u8>, machine::Placed)>,
    /// By domain.
    pub(crate) modules: Vec<Modules>,
    /// Of the ramdisk that `[expect]` names.
    digest: Option<String>,
}

/// Reads all modules and finds a place for each.
///
/// `base` is the machine's own device tree: devices are described from it.
pub(crate) fn gather(
    system: &System,
    checking: Checking,
    mut layout: Layout,
    base: &Node,
) -> Outcome<Gathered> {
    let mut gathered = Gathered { files: Vec::new(), modules: Vec::new(), digest: None };
    for (index, domain) in system.domains.iter().enumerate() {
        let place = format!("{}: domain[{}]", system.file, index + 1);
        let mut own = Modules::default();
        let mut add = |what: &str, bytes: Vec<u8>| {
            let at = layout.place(&format!("{place}.{what}"), bytes.len() as u64)?;
            let copy = machine::Placed { address: at.address, size: at.size };
            gathered.files.push((format!("d{}-{what}", index + 1), bytes, at));
            Ok::<_, Failure>(copy)
        };
        if let Some(kernel) = &domain.kernel {
            let bytes = system::kernel_image(&kernel.path()?, checking)
                .map_err(|failure| Failure::usage(format!("{place}.kernel: {failure}")))?;
            own.kernel = Some(add("kernel", bytes)?);
        }
        if let Some(ramdisk) = &domain.ramdisk {
            let bytes = ramdisk_bytes(ramdisk)?;
            if system.expect.digest_of_ramdisk == Some(index) {
                gathered.digest = Some(hex(&Sha256::digest(&bytes)));
            }
            // A module of no bytes has no place: the guest sees none, and takes that for an empty file.
            if !bytes.is_empty() {
                own.ramdisk = Some(add("ramdisk", bytes)?);
            }
        }
        if !domain.passthrough.is_empty() {
            let partial = passthrough::partial(base, domain, &format!("{place}.passthrough"))?;
            own.device_tree = Some(add("devices", partial)?);
        }
        gathered.modules.push(own);
    }
    Ok(gathered)
}

/// Checks what must be known before QEMU starts, and writes the files it needs.
pub(crate) fn prepare(
    qemu: &Qemu,
    hypervisor: &Hypervisor,
    system: &System,
    checking: Checking,
    clock: Clock,
) -> Outcome<Prepared> {
    let folder = Folder::new()?;
    let image = workspace::read(&hypervisor.image)?;
    if system.machine.board == Board::Rpi4 {
        let (card, digest) = card(system, checking, image)?;
        let command = rpi4::boot(qemu, card, system.machine.memory, clock, &folder.0)?;
        return Ok(Prepared { command, digest, ground: None, _folder: folder });
    }
    let mut tree = fdt::parse(&machine::own_tree(qemu, &system.machine, &folder.0)?)?;
    let layout = Layout::new(&system.machine, &image)?;
    let Gathered { files, modules, digest } = gather(system, checking, layout, &tree)?;
    for path in system.domains.iter().flat_map(|domain| &domain.passthrough) {
        if let Some(node) = tree.at_path_mut(path) {
            node.set("xen,passthrough", []);
        }
    }
    dom0less::add_domains(&mut tree, system, &modules);
    let ground = match system.machine.terrain {
        Terrain::Plain => None,
        Terrain::Pieces => Some(lay(Pieces::of(system.machine.memory), &mut tree, &folder.0)?),
    };
    let entries = ground.as_ref().map_or(Vec::new(), |ground| ground.pieces.entries());
    if let Some(bootargs) = hypervisor.bootargs {
        tree.child("chosen").set_strings("xen,xen-bootargs", &[bootargs]);
    }
    let tree_file = folder.0.join("pavo.dtb");
    workspace::write(&tree_file, &fdt::write_reserving(&tree, &entries)?)?;
    let mut placed = Vec::new();
    for (name, bytes, place) in files {
        let file = folder.0.join(name);
        workspace::write(&file, &bytes)?;
        placed.push((file, place));
    }
    let command =
        machine::boot(qemu, &system.machine, clock, &hypervisor.image, &tree_file, &placed, ground.as_ref());
    Ok(Prepared { command, digest, ground, _folder: folder })
}

/// Writes what a machine of pieces needs.
fn lay(pieces: Pieces, tree: &mut fdt::Node, folder: &Path) -> Outcome<Ground> {
    pieces.describe(tree);
    let (ram, stub) = (folder.join("ram"), folder.join("stub"));
    pieces.fill(&ram)?;
    workspace::write(&stub, &pieces.first_instructions())?;
    Ok(Ground { pieces, ram, stub })
}

/// What goes on a Raspberry Pi's card, and the digest that `[expect]` wants.
pub(crate) fn card(
    system: &System,
    checking: Checking,
    image: Vec<u8>,
) -> Outcome<(rpi4::Content, Option<String>)> {
    let layout = Layout::between(rpi4::GUESTS, rpi4::GUESTS_END);
    let given = system.domains.iter().any(|domain| !domain.passthrough.is_empty());
    let base = if given { fdt::parse(&setup::board_tree()?)? } else { Node::new("") };
    let Gathered { files, modules, digest } = gather(system, checking, layout, &base)?;
    let packed: Vec<_> = files.into_iter().map(|(_, bytes, place)| (place.address, bytes)).collect();
    Ok((rpi4::Content::pack(system, image, &packed, &modules)?, digest))
}

fn ramdisk_bytes(ramdisk: &Ramdisk) -> Outcome<Vec<u8>> {
    match ramdisk {
        Ramdisk::File(path) => workspace::read(path),
        Ramdisk::Linux => workspace::read(&setup::linux()?.ramdisk),
        Ramdisk::Hypervisor => image::strip(&workspace::read(&workspace::pavo_elf())?),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn check_memory(system: &System) -> Outcome<()> {
    let wanted = system.domains.iter().fold(0u64, |sum, domain| sum.saturating_add(domain.memory));
    let room = system.machine.memory.saturating_sub(RESERVED);
    if wanted <= room {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "{}: domain: the domains' memory is {} MiB, and machine.memory leaves {} MiB: raise machine.memory",
        system.file,
        wanted >> 20,
        room >> 20
    )))
}

/// Boots, gives every line to `each` as it comes, and waits for the end or until `each` has seen enough.
pub(crate) fn boot(
    qemu: &Qemu,
    hypervisor: &Hypervisor,
    system: &System,
    options: &Options,
    each: &mut dyn FnMut(&Line) -> ControlFlow<()>,
) -> Outcome<Report> {
    boot_typing(qemu, hypervisor, system, options, None, each)
}

/// [`boot`], with what is typed.
pub(crate) fn boot_typing(
    qemu: &Qemu,
    hypervisor: &Hypervisor,
    system: &System,
    options: &Options,
    keys: Option<Keys>,
    each: &mut dyn FnMut(&Line) -> ControlFlow<()>,
) -> Outcome<Report> {
    let decoder = hypervisor.decoder()?;
    let mut prepared = prepare(qemu, hypervisor, system, options.checking(), options.clock())?;
    // QEMU makes the terminal give it each key.
    let _terminal = options.interactive.then(Terminal::keep);
    let limit = Duration::from_secs(options.timeout);
    if options.interactive {
        prepared.command.stdin(Stdio::inherit());
        show(b"keys go to the first domain; Ctrl-A three times: to the next one; Ctrl-C ends the run\n");
    }
    let start = Instant::now();
    let mut observer = Observer::new()?;
    let mut see = |line: &[u8]| {
        let line = decoder.line(line);
        observer.see(&line);
        let more = each(&line);
        // Where nothing powers off, nothing more comes.
        if observer.has_stopped() { ControlFlow::Break(()) } else { more }
    };
    let end = watch(&mut prepared.command, limit, keys, &mut see)?;
    let ids = system.ids();
    let mut problems = observer.problems(&ids, prepared.digest.as_deref());
    if let Some(ground) = &prepared.ground {
        problems.extend(ground.pieces.inspect(&ground.ram)?);
    }
    let timed_out = match end {
        Ended::Exit(Some(0)) | Ended::Enough => false,
        Ended::Exit(status) => {
            let text = status.map_or("was killed".into(), |status| format!("exited with status {status}"));
            problems.push(format!("QEMU {text}"));
            false
        }
        Ended::Timeout => {
            problems.push(format!("not done after {} s: give more with --timeout", limit.as_secs()));
            true
        }
    };
    Ok(Report { ids, observer, problems, timed_out, elapsed: start.elapsed() })
}

/// The demonstration's or another system file, by name.
pub(crate) fn shipped(name: &str) -> PathBuf {
    Path::new(&workspace::root()).join("systems").join(format!("{name}.toml"))
}
