//! The Test Anything Protocol, version 13: one line a case, the plan at the end.
use alloc::boxed::Box;
use alloc::string::String;
use core::fmt::{Debug, Display};

use guest_kernel::{println, record};

/// At least one case failed.
#[derive(Debug)]
#[expect(dead_code, reason = "shown when the guest ends")]
pub(crate) struct Failed(u32);

/// Says what is not as it was before the case, if anything is.
pub(crate) type Afterwards = Box<dyn FnMut() -> Option<String>>;

/// What was checked so far.
pub(crate) struct Tap {
    afterwards: Option<Afterwards>,
    only: Option<&'static str>,
    family: &'static str,
    cases: u32,
    failed: u32,
}

impl Tap {
    /// None yet; `only` names the one family to check.
    pub(crate) fn new(only: Option<&'static str>) -> Self {
        println!("TAP version 13");
        record::start_shown();
        Self { afterwards: None, only, family: "", cases: 0, failed: 0 }
    }

    /// After each case that holds, `afterwards` has to find nothing too.
    #[allow(dead_code, reason = "not every user of this file does")]
    pub(crate) fn after_each(&mut self, afterwards: Option<Afterwards>) {
        self.afterwards = afterwards;
    }

    /// Checks a family.
    pub(crate) fn family(&mut self, name: &'static str, check: impl FnOnce(&mut Self)) {
        if self.only.is_none_or(|only| only == name) {
            self.family = name;
            check(self);
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "answers and expectations are written in place")]
    /// One case: what it is, what came, what is expected. No two of a family have one name: what a loop tries is in it
    /// (`format_args!`).
    pub(crate) fn is<T: PartialEq + Debug>(&mut self, what: impl Display, got: T, expected: T) {
        let differs = got != expected;
        if !differs {
            record::shown(&got);
        }
        self.tell(&what, differs.then_some((&got, &expected)));
    }

    fn tell(&mut self, what: &dyn Display, differ: Option<(&dyn Debug, &dyn Debug)>) {
        self.cases += 1;
        let (number, family) = (self.cases, self.family);
        if let Some((got, expected)) = differ {
            self.failed += 1;
            println!("not ok {number} - {family}: {what} # got {got:?}, expected {expected:?}");
        } else if let Some(left) = self.afterwards.as_mut().and_then(|afterwards| afterwards()) {
            self.failed += 1;
            println!("not ok {number} - {family}: {what} # and then {left}");
        } else {
            println!("ok {number} - {family}: {what}");
        }
    }

    /// One case that is true or not.
    pub(crate) fn that(&mut self, what: impl Display, holds: bool) {
        self.is(what, holds, true);
    }

    /// The plan and the verdict.
    pub(crate) fn end(self) -> Result<(), Failed> {
        record::tell();
        println!("1..{}", self.cases);
        if self.failed == 0 { Ok(()) } else { Err(Failed(self.failed)) }
    }
}
