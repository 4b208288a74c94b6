//! Systems that are refused: by xtask before QEMU starts, and by the hypervisor, which goes on with the other domains.

use std::process::Command;

use regex::Regex;

use crate::check::Found;
use crate::failure::{Doing, Failure, Outcome};
use crate::process;
use crate::run::Options;

use super::step::{Level, Step};
use super::systems::{self, observe};

/// A system file that xtask refuses.
struct Mistake {
    name: &'static str,
    text: &'static str,
    /// What the one line says after the file's name.
    line: &'static str,
}

const MISTAKES: [Mistake; 10] = [
    Mistake {
        name: "unknown-key",
        text: "[[domain]]\nname = \"a\"\nkernel = \"guest:hello\"\nmemroy = \"32M\"\n",
        line: "domain[1].memroy: unknown key, did you mean \"memory\"?",
    },
    Mistake {
        name: "later-key",
        text: "[[domain]]\nname = \"a\"\nkernel = \"guest:hello\"\nmemory = \"32M\"\njit = true\n",
        line: "domain[1].jit: is not supported yet",
    },
    Mistake {
        name: "no-kernel-file",
        text: "[[domain]]\nname = \"a\"\nkernel = \"nothing.img\"\nmemory = \"32M\"\n",
        line: "nothing.img does not exist; a guest of this workspace is \"guest:NAME\"",
    },
    Mistake {
        name: "no-such-guest",
        text: "[[domain]]\nname = \"a\"\nkernel = \"guest:helo\"\nmemory = \"32M\"\n",
        line: "domain[1].kernel: this workspace has no guest \"helo\", did you mean \"hello\"?",
    },
    Mistake {
        name: "guest-without-prefix",
        text: "[[domain]]\nname = \"a\"\nkernel = \"hello\"\nmemory = \"32M\"\n",
        line: "hello does not exist, did you mean \"guest:hello\"?",
    },
    Mistake {
        name: "no-such-cpu",
        text: "[[domain]]\nname = \"a\"\nkernel = \"guest:hello\"\nmemory = \"32M\"\naffinity = [7]\n",
        line: "domain[1].affinity: expected some of its pool's CPUs, CPUs 0, 1",
    },
    Mistake {
        name: "no-kernel-image",
        text: "[[domain]]\nname = \"a\"\nkernel = \"garbage.bin\"\nmemory = \"32M\"\n",
        line: "not an arm64 Image (no \"ARM\\x64\" at byte 56); give an uncompressed or gzip `Image`",
    },
    Mistake {
        name: "bad-size",
        text: "[[domain]]\nname = \"a\"\nkernel = \"guest:hello\"\nmemory = \"32 megabytes\"\n",
        line: "domain[1].memory: expected a size in 4 KiB steps such as \"32M\", found \"32 megabytes\"",
    },
    Mistake {
        name: "no-room",
        text: "[machine]\nmemory = \"128M\"\n[[domain]]\nname = \"a\"\nkernel = \"guest:hello\"\nmemory = \"100M\"\n",
        line: "domain: the domains' memory is 100 MiB, and machine.memory leaves 96 MiB: raise machine.memory",
    },
    Mistake {
        name: "same-name",
        text: "[[domain]]\nname = \"a\"\nkernel = \"guest:hello\"\nmemory = \"32M\"\n\
               [[domain]]\nname = \"a\"\nkernel = \"guest:hello\"\nmemory = \"32M\"\n",
        line: "domain[2].name: \"a\" is the name of another domain already",
    },
];

/// Steps that start no QEMU.
pub(super) fn host() -> Vec<Step> {
    let mistakes = MISTAKES.iter().map(|mistake| {
        Step::new(format!("refused by xtask: {}", mistake.name), Level::Quick, || {
            systems::garbage()?;
            let file = systems::write(mistake.name, mistake.text)?;
            one_line(&["run".as_ref(), file.as_os_str()], mistake.line)
        })
    });
    let mut steps: Vec<_> = mistakes.collect();
    steps.push(Step::new("refused by xtask: an unknown option", Level::Quick, || {
        one_line(&["run".as_ref(), "--memroy".as_ref()], "unexpected argument '--memroy' found; a similar argument exists: '--memory': see `cargo xtask run --help`")
    }));
    steps.push(Step::new("refused by xtask: a Raspberry Pi of five CPUs", Level::Quick, || {
        one_line(
            &["run".as_ref(), "--board".as_ref(), "rpi4".as_ref(), "--cpus".as_ref(), "5".as_ref()],
            "error: --cpus: a Raspberry Pi 4 has 4 CPUs: leave it out",
        )
    }));
    steps
}

/// The command must end with status 2 and one line that holds `expected`.
fn one_line(words: &[&std::ffi::OsStr], expected: &str) -> Outcome<Found> {
    let program = std::env::current_exe().doing("xtask's own path")?;
    let result = process::output(Command::new(program).args(words))?;
    let text = String::from_utf8_lossy(&result.stderr).into_owned();
    let one = text.lines().count() == 1 && text.contains(expected);
    if one && result.status.code() == Some(2) && result.stdout.is_empty() {
        Ok(Found::Good(String::new()))
    } else {
        Err(Failure::failed(format!(
            "expected status 2 and \"{expected}\", found {} and \"{}\"",
            result.status,
            text.trim()
        )))
    }
}

/// A domain that the hypervisor refuses, beside one that must run.
struct Broken {
    name: &'static str,
    /// Keys of `[machine]`.
    machine: &'static str,
    /// Keys of the broken domain, which comes first.
    keys: &'static str,
    /// The log line, whole.
    line: &'static str,
}

/// Texts as in the hypervisor's `devicetree/refusal.rs` and `domain_build.rs`.
const BROKEN: [Broken; 6] = [
    Broken {
        name: "a dom0 kernel",
        machine: "dom0_module = true\n",
        keys: "",
        line: r"^d0: refused: .*dom0.*$",
    },
    Broken {
        name: "no kernel",
        machine: "",
        keys: "memory = \"32M\"\n",
        line: "^d1: refused: kernel module missing$",
    },
    Broken {
        name: "no vCPU",
        machine: "",
        keys: "kernel = \"guest:hello\"\nmemory = \"32M\"\nvcpus = 0\n",
        line: "^d1: refused: cpus is 0$",
    },
    Broken {
        name: "too many vCPUs",
        machine: "",
        keys: "kernel = \"guest:hello\"\nmemory = \"32M\"\nvcpus = 9\n",
        line: "^d1: refused: more than 8 vCPUs$",
    },
    Broken {
        name: "more memory than there is",
        machine: "",
        keys: "kernel = \"guest:hello\"\nmemory = \"8G\"\n",
        line: "^d1: refused: .*memory.*$",
    },
    Broken {
        name: "a kernel that is none",
        machine: "",
        keys: "kernel = \"garbage.bin\"\nmemory = \"32M\"\n",
        line: "^d1: refused: .*kernel.*$",
    },
];

/// Steps that boot a broken system.
pub(super) fn hypervisor() -> Vec<Step> {
    let step = |broken: &'static Broken| {
        Step::new(format!("refused by the hypervisor: {}", broken.name), Level::Default, || {
            others_run(broken)
        })
        .shared()
    };
    let together = super::rpi4::step("refused by the hypervisor, all at once", Level::Default, together);
    BROKEN.iter().map(step).chain([together]).collect()
}

/// On the Raspberry Pi all of them in one system: each is refused by its own line, and the good one, whose kernel the dom0 has too, runs.
fn together() -> Outcome<Found> {
    systems::garbage()?;
    let (machine, domains): (String, String) =
        BROKEN.iter().fold(Default::default(), |(machine, domains), broken| {
            let domain = match broken.keys {
                "" => String::new(),
                keys => format!("[[domain]]\nname = \"{}\"\n{keys}", broken.name.replace(' ', "-")),
            };
            (machine + broken.machine, domains + &domain)
        });
    let good = "[[domain]]\nname = \"good\"\nkernel = \"guest:hello\"\nmemory = \"32M\"\n";
    let text = format!("[machine]\nboard = \"rpi4\"\n{machine}{good}{domains}");
    let mut options = Options::for_file(systems::write("rpi4-broken", &text)?);
    options.unchecked = true;
    let observed = observe(&options)?;
    let mut id = 1;
    for broken in &BROKEN {
        id += u32::from(!broken.keys.is_empty());
        let line = broken.line.replace("d1:", &format!("d{id}:"));
        let refusal = Regex::new(&line).doing("the expected line")?;
        let count = observed.log.iter().filter(|seen| refusal.is_match(seen)).count();
        if count != 1 {
            return Err(observed.failed(&format!("{count} log lines match {line}")));
        }
    }
    let ran = observed.log.iter().any(|line| line == "d1: shutdown poweroff");
    if ran && observed.result.as_ref().is_err_and(|failure| failure.status() == 1) {
        Ok(Found::Good(String::new()))
    } else {
        Err(observed.failed("the good domain did not end well, or the run did not end with status 1"))
    }
}

/// The refusal is one line of the log, the good domain ends cleanly, and the run as a whole fails.
fn others_run(broken: &Broken) -> Outcome<Found> {
    systems::garbage()?;
    let first = if broken.keys.is_empty() {
        String::new()
    } else {
        format!("[[domain]]\nname = \"broken\"\n{}", broken.keys)
    };
    let good = "[[domain]]\nname = \"good\"\nkernel = \"guest:hello\"\nmemory = \"32M\"\n";
    let text = format!("[machine]\n{}{first}{good}", broken.machine);
    let mut options = Options::for_file(systems::write(&format!("broken {}", broken.name), &text)?);
    options.unchecked = true;
    let observed = observe(&options)?;
    let good_id = if broken.keys.is_empty() { 1 } else { 2 };
    let refusal = Regex::new(broken.line).doing("the expected line")?;
    let refused = observed.log.iter().filter(|line| refusal.is_match(line)).count();
    let ran = observed.log.contains(&format!("d{good_id}: shutdown poweroff"));
    let failed = observed.result.as_ref().is_err_and(|failure| failure.status() == 1);
    match (refused, ran, failed) {
        (1, true, true) => Ok(Found::Good(String::new())),
        (1, true, false) => Err(observed.failed("the run did not end with status 1")),
        (1, false, _) => Err(observed.failed(&format!("d{good_id} did not shut down cleanly"))),
        (count, _, _) => Err(observed.failed(&format!("{count} log lines match {}", broken.line))),
    }
}
