//! What the portable half says: typed events, formatted by the image through defmt. Texts are part of the command line's
//! contract (`cargo xtask run` reads the `dN:` lines).
use crate::domain::Life;
use crate::selfcheck::Violation;
use pv_abi::DomId;

/// Something worth a line in the hypervisor's log. Rate limits are the image's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A domain reached a state that ends it.
    Ended(DomId, Life),
    /// Of a domain whose page tables are checked, at its end: frames of RAM that stage 2 maps in pages of 4 KiB, and all.
    Pages(DomId, u64, u64),
    /// A domain was built anew, for the so manieth time.
    BuiltAgain(DomId, u32),
    /// A domain could not be built anew.
    NotBuilt(DomId),
    /// This domain has so many mappings of pages of that one, which has ended.
    Holds(DomId, DomId, u32),
    /// A domain waits for its next life: others have so many frames of its former ones mapped.
    Waits(DomId, u64),
    /// A domain was to be built anew, too often in a minute.
    TooOften(DomId),
    /// This domain gets from now on what is typed.
    Keyboard(DomId),
    /// The self-check has found something.
    Violation(Violation),
    /// A guest kept a shared word busy; its domain is destroyed.
    WordContended(DomId),
}
