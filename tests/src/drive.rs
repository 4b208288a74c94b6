//! Random calls on the shipping library and on the [specification](crate::spec) at once, compared after each.
//!
//! A sequence is steps of [`STEP`] bytes; what a step does is a function of its bytes and of nothing else (`act`), so that any bytes are a
//! sequence: those of a seed, of a fuzzer, or of a failure that was shrunk ([`shrink()`]). After each step result, outputs and
//! state must be the specification's (`compare`), [`hypervisor::selfcheck`] must find nothing, and the fake machine must have seen no
//! misuse.
mod act;
mod compare;
mod paging;
mod shrink;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use hypervisor::devicetree::Paging;
use hypervisor::fake::{Random, World};

use crate::spec::Spec;

pub use shrink::shrink;

/// Bytes of a step.
pub const STEP: usize = 12;

/// Calls, one step each.
#[derive(Clone, PartialEq, Eq)]
pub struct Sequence(pub Vec<[u8; STEP]>);

impl Sequence {
    /// The sequence of a seed.
    pub fn of_seed(seed: u64, steps: usize) -> Self {
        // Xorshift has no sequence for 0, and neighbours begin alike.
        let mut random = Random::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..4 {
            random.below(2);
        }
        let step = |_| {
            let words = [random.below(1 << 48), random.below(1 << 48)].map(u64::to_le_bytes);
            std::array::from_fn(|index| words[index / 6][index % 6])
        };
        Self((0..steps).map(step).collect())
    }

    /// The sequence of any bytes; those that make no whole step are left out.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(bytes.as_chunks::<STEP>().0.to_vec())
    }

    /// The sequence of a printed one.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.trim().strip_prefix('x')?;
        let bytes: Option<Vec<u8>> = (0..digits.len() / 2)
            .map(|index| u8::from_str_radix(digits.get(2 * index..2 * index + 2)?, 16).ok())
            .collect();
        bytes.map(|bytes| Self::of_bytes(&bytes))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("x")?;
        self.0.iter().flatten().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Where library and specification part.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The step, counted from 0.
    pub step: usize,
    /// What was different.
    pub what: String,
    /// What the steps up to there did.
    pub story: Vec<String>,
}

/// What is played on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setup {
    /// How many domains.
    pub domains: u16,
    /// Whether the first one's page tables are checked.
    pub paging: bool,
    /// Whether there is a control domain, which pauses the others now and then.
    pub control: bool,
    /// How many references a frame may have, if not as many as fit.
    pub most: Option<u32>,
}

impl Setup {
    /// Two domains, the first of which has its page tables checked.
    pub const PAGING: Self = Self { domains: 2, paging: true, control: false, most: None };
    /// The same with counts of two bits.
    pub const TINY: Self = Self { most: Some(3), ..Self::PAGING };

    /// As it was printed.
    pub fn parse(text: &str) -> Option<Self> {
        let (rest, most) = match text.split_once('t') {
            Some((rest, most)) => (rest, Some(most.parse().ok()?)),
            None => (text, None),
        };
        let others = rest.strip_suffix('c').unwrap_or(rest);
        let domains = others.strip_suffix("pv").unwrap_or(others);
        // As many as the comparison has room for.
        let number = domains.parse().ok().filter(|number| (1..=4).contains(number))?;
        Some(Self { domains: number, paging: domains != others, control: others != rest, most })
    }
}

impl From<u16> for Setup {
    fn from(domains: u16) -> Self {
        Self { domains, paging: false, control: false, most: None }
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [paging, control] =
            [(self.paging, "pv"), (self.control, "c")].map(|(is, text)| if is { text } else { "" });
        write!(f, "{}{paging}{control}", self.domains)?;
        self.most.map_or(Ok(()), |most| write!(f, "t{most}"))
    }
}

/// A machine and its specification.
pub struct Run {
    /// What it is.
    pub setup: Setup,
    /// The machine.
    pub world: World,
    /// What it must be like.
    pub spec: Spec,
    /// Events that guests took out of queues while they could rely on what comes.
    pub taken: u64,
    /// Hypercalls made to their ends; the runs that a restart takes count once.
    pub calls: u64,
    /// What the last step did, if anybody asks.
    pub(crate) told: Option<String>,
    pub(crate) tells: bool,
    /// What vCPUs remember of their queues of events.
    readers: BTreeMap<(u16, u32), act::Reader>,
    /// The frame table when it was compared last.
    states: Vec<u64>,
    steps: usize,
}

thread_local! {
    /// Panics of this thread are caught by [`Run::play`] and not shown.
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static SAID: Cell<Option<String>> = const { Cell::new(None) };
}

fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if QUIET.get() {
                SAID.set(Some(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

impl Run {
    /// A machine of domains of two vCPUs, all running; vCPU 1 of one with checked page tables is off at first.
    pub fn new(setup: impl Into<Setup>) -> Self {
        let setup = setup.into();
        let paging = if setup.paging { Paging::Pv } else { Paging::Nested };
        let (world, first) = if setup.control {
            (World::with_control_beside(setup.domains, paging), 0)
        } else {
            (World::with_paging(setup.domains, paging), 1)
        };
        for id in first..=setup.domains {
            for vcpu in world
                .domain(id)
                .vcpus
                .iter()
                .filter(|vcpu| vcpu.number == 0 || world.domain(id).paging().is_none())
            {
                vcpu.run.set(hypervisor::vcpu::Run::Running);
            }
        }
        if let Some(most) = setup.most {
            world.machine.frames.table.count_to(most);
        }
        let spec = compare::observe(&world, first..=setup.domains);
        let readers = BTreeMap::new();
        Self {
            setup,
            world,
            spec,
            taken: 0,
            calls: 0,
            told: None,
            tells: false,
            readers,
            states: Vec::new(),
            steps: 0,
        }
    }

    /// Does a step and compares.
    ///
    /// # Errors
    /// What is different.
    pub fn step(&mut self, step: &[u8; STEP]) -> Result<(), String> {
        self.told = None;
        self.steps += 1;
        self.act(step)?;
        self.agree(self.steps.is_multiple_of(64))
    }

    /// Plays a sequence; returns the hypercalls made.
    ///
    /// # Errors
    /// The first difference; a panic is one.
    pub fn play(setup: impl Into<Setup>, sequence: &Sequence, tells: bool) -> Result<u64, Failure> {
        quiet_panics();
        let mut run = Self::new(setup);
        run.tells = tells;
        let mut story = Vec::new();
        for (index, step) in sequence.0.iter().enumerate() {
            QUIET.set(true);
            let last = index + 1 == sequence.0.len();
            let result = catch_unwind(AssertUnwindSafe(|| {
                run.step(step)?;
                if last { run.agree(true) } else { Ok(()) }
            }));
            QUIET.set(false);
            story.extend(run.told.take());
            let what = match result {
                Ok(Ok(())) => continue,
                Ok(Err(what)) => what,
                Err(_) => SAID.take().unwrap_or_else(|| "a panic".into()),
            };
            return Err(Failure { step: index, what, story });
        }
        Ok(run.calls)
    }
}
