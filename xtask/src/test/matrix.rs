//! Systems on machines of every kind. The default run has so many configurations that every pair of values meets in one (`pairs.rs`); the full
//! run has each controller with each number of CPUs, each model and each system, and the other values in turn. A step's name is its
//! configuration.

use std::collections::BTreeSet;

use super::pairs;
use super::step::{Level, Step};
use super::systems::{self, observe};
use crate::check::Found;
use crate::conformance;
use crate::failure::Outcome;
use crate::run::Options;
use crate::terrain::Terrain;

const GICS: [u32; 2] = [2, 3];
const MODELS: [&str; 5] = ["cortex-a57", "cortex-a72", "cortex-a76", "neoverse-n1", "max"];
/// Those with the RAS extension.
const WITH_RAS: [&str; 3] = ["cortex-a76", "neoverse-n1", "max"];
/// Those of the pairs; the full run has all from 1 to [`MOST_CPUS`].
const CPUS: [u32; 4] = [1, 2, 4, 8];
const MOST_CPUS: u32 = 8;
/// MiB.
const MEMORY: [u64; 4] = [256, 1024, 4096, 8192];
const TERRAINS: [Terrain; 2] = [Terrain::Plain, Terrain::Pieces];
/// Of every domain.
const VCPUS: [u32; 4] = [1, 2, 4, 8];
/// Most that the first domain of `scan` gets, MiB: with more the hypervisor clears for half a minute under QEMU.
const SCANNED: u64 = 640;
/// Seconds for a run.
const PATIENCE: u64 = 180;

/// What runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum System {
    TwoGuests,
    Smp,
    Scan,
    Siblings,
    Conformance,
}

const SYSTEMS: [System; 5] =
    [System::TwoGuests, System::Smp, System::Scan, System::Siblings, System::Conformance];

impl System {
    const fn name(self) -> &'static str {
        match self {
            Self::TwoGuests => "two-guests",
            Self::Smp => "smp",
            Self::Scan => "scan",
            Self::Siblings => "siblings",
            Self::Conformance => "conformance",
        }
    }
}

/// A machine and what runs on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Configuration {
    system: System,
    gic: u32,
    cpus: u32,
    model: &'static str,
    memory: u64,
    terrain: Terrain,
    vcpus: u32,
}

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let (pairs, all) = (in_pairs(), exhaustive());
    let more = all.difference(&pairs).map(|one| step(*one, Level::Full));
    pairs.iter().map(|one| step(*one, Level::Default)).chain(more).collect()
}

fn in_pairs() -> BTreeSet<Configuration> {
    let lengths =
        [SYSTEMS.len(), GICS.len(), CPUS.len(), MODELS.len(), MEMORY.len(), TERRAINS.len(), VCPUS.len()];
    let rows = pairs::cover(&lengths).into_iter();
    rows.map(|row| Configuration {
        system: SYSTEMS[row[0]],
        gic: GICS[row[1]],
        cpus: CPUS[row[2]],
        model: MODELS[row[3]],
        memory: MEMORY[row[4]],
        terrain: TERRAINS[row[5]],
        vcpus: VCPUS[row[6]],
    })
    .collect()
}

fn exhaustive() -> BTreeSet<Configuration> {
    let mut all = BTreeSet::new();
    let mut turn = 0;
    for system in SYSTEMS {
        for gic in GICS {
            for cpus in 1..=MOST_CPUS {
                for model in MODELS {
                    all.insert(Configuration {
                        system,
                        gic,
                        cpus,
                        model,
                        memory: MEMORY[turn % MEMORY.len()],
                        terrain: TERRAINS[turn / 2 % TERRAINS.len()],
                        vcpus: VCPUS[turn / 3 % VCPUS.len()],
                    });
                    turn += 1;
                }
            }
        }
    }
    all
}

fn step(one: Configuration, level: Level) -> Step {
    let Configuration { system, gic, cpus, model, memory, terrain, vcpus } = one;
    let pieces = match terrain {
        Terrain::Plain => "",
        Terrain::Pieces => " in pieces",
    };
    let title = format!(
        "matrix: {}, {vcpus} vCPUs on {cpus} x {model}, GICv{gic}, {memory} MiB{pieces}",
        system.name()
    );
    Step::new(title, level, move || run(&one)).shared()
}

fn run(one: &Configuration) -> Outcome<Found> {
    let Configuration { system, gic, cpus, model, memory, terrain, vcpus } = *one;
    let guest = |name: &str, memory: u64, vcpus: u32, more: &str| {
        format!(
            "[[domain]]\nname = \"{name}\"\nkernel = \"guest:{name}\"\nmemory = \"{memory}M\"\nvcpus = {vcpus}\n{more}\n"
        )
    };
    let domains = match system {
        System::TwoGuests => [
            guest("sender", 32, vcpus, "ramdisk = \"hypervisor\"\nchannels = [\"receiver\"]"),
            guest("receiver", 32, vcpus, ""),
            "[expect]\ndigest_of_ramdisk = \"sender\"\n".into(),
        ]
        .concat(),
        System::Smp => {
            guest("smp", 32, vcpus, "")
                + "[[domain]]\nname = \"two\"\nkernel = \"guest:smp\"\nmemory = \"16M\"\nvcpus = 2\n"
        }
        // More than a bank of the smaller machines of pieces has.
        System::Scan => {
            guest("scan", (memory / 2).min(SCANNED), vcpus, "")
                + "[[domain]]\nname = \"two\"\nkernel = \"guest:scan\"\nmemory = \"32M\"\n"
        }
        System::Siblings => {
            let line = if WITH_RAS.contains(&model) { "cmdline = \"ras\"" } else { "" };
            guest("siblings", 32, vcpus, line)
                + "[[domain]]\nname = \"three\"\nkernel = \"guest:siblings\"\nmemory = \"32M\"\nvcpus = 3\n"
        }
        System::Conformance => {
            let mut options = conformance::Options::on_pavo(gic, cpus, model);
            options.ram = Some((memory << 20, terrain));
            // Some cases look at the time: with one CPU, counting instructions instead loses nothing.
            options.icount = cpus == 1;
            return conformance::test(&options).map(Found::Good);
        }
    };
    let terrain = match terrain {
        Terrain::Plain => "",
        Terrain::Pieces => "terrain = \"pieces\"\n",
    };
    let text = format!(
        "[machine]\ngic = {gic}\ncpus = {cpus}\ncpu = \"{model}\"\nmemory = \"{memory}M\"\n{terrain}{domains}"
    );
    let name = format!("matrix-{}-{gic}-{cpus}-{model}-{memory}-{}-{vcpus}", system.name(), terrain.len());
    let mut options = Options::for_file(systems::write(&name, &text)?);
    options.timeout = PATIENCE;
    systems::clean(&observe(&options)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_run_has_every_value_and_is_short() {
        let pairs = in_pairs();
        assert!(pairs.len() <= 36, "{}", pairs.len());
        for system in SYSTEMS {
            for model in MODELS {
                assert!(pairs.iter().any(|one| one.system == system && one.model == model));
            }
            for vcpus in VCPUS {
                assert!(pairs.iter().any(|one| one.system == system && one.vcpus == vcpus));
            }
        }
    }

    #[test]
    fn the_full_run_has_every_controller_count_of_cpus_model_and_system_and_all_names_differ() {
        assert_eq!(exhaustive().len(), SYSTEMS.len() * 2 * 8 * MODELS.len());
        let names: BTreeSet<String> = all().into_iter().map(|step| step.name).collect();
        assert_eq!(names.len(), all().len());
    }
}
