//! The switch between `core`'s atomics and the model checker's, and what is taken away.
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::panic::Location;
use std::rc::Rc;
use std::sync::Mutex;

#[cfg(feature = "loom")]
use ::core::sync::atomic::Ordering;

thread_local! {
    // The threads of a model are coroutines of one thread.
    static ON: Cell<bool> = const { Cell::new(false) };
    /// The places that asked so far.
    static KNOWN: RefCell<HashMap<(*const u8, u32), bool>> = RefCell::new(HashMap::new());
    static OBJECTS: RefCell<HashMap<usize, Rc<dyn Any>>> = RefCell::new(HashMap::new());
}
/// The line that something is taken away from, as `file:line`.
static WEAK: Mutex<Option<String>> = Mutex::new(None);
static SITES: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// From here on, in this execution of a model, atomics are the model checker's.
pub fn begin() {
    OBJECTS.with_borrow_mut(HashMap::clear);
    ON.set(true);
}

/// Atomics are `core`'s again, and hold what they held before [`begin`].
pub fn end() {
    ON.set(false);
    OBJECTS.with_borrow_mut(HashMap::clear);
}

/// Whether atomics are the model checker's.
pub fn is_on() -> bool {
    ON.get()
}

/// Takes from what stands in this line what makes it safe: `vgic/shared.rs:133`. With Loom that is its ordering; with Shuttle a fence and a store are
/// not made, an exchange is not one step, and a lock keeps nobody out.
pub fn weaken(site: &str) {
    *WEAK.lock().expect("no panic holds it") = Some(site.to_owned());
}

/// The lines of a model so far that something could be taken away from.
pub fn sites() -> Vec<String> {
    SITES.lock().expect("no panic holds it").iter().cloned().collect()
}

fn site(at: &Location<'_>) -> String {
    let file = at.file().rsplit_once("hypervisor/src/").map_or(at.file(), |(_, file)| file);
    format!("{file}:{}", at.line())
}

/// Whether what stands at a place is taken away.
pub fn is_away(at: &'static Location<'static>) -> bool {
    let known = KNOWN.with_borrow(|known| known.get(&(at.file().as_ptr(), at.line())).copied());
    known.unwrap_or_else(|| {
        let site = site(at);
        let away = WEAK.lock().expect("no panic holds it").as_deref() == Some(&site);
        SITES.lock().expect("no panic holds it").insert(site);
        KNOWN.with_borrow_mut(|known| known.insert((at.file().as_ptr(), at.line()), away));
        away
    })
}

/// The ordering that holds at a place: that which is asked for, unless it is taken away.
#[cfg(feature = "loom")]
pub(crate) fn ordering(asked: Ordering, at: &'static Location<'static>) -> Ordering {
    if asked != Ordering::Relaxed && is_away(at) { Ordering::Relaxed } else { asked }
}

/// The object of an execution that stands for what is at an address.
pub fn object<T: 'static>(address: usize, make: impl FnOnce() -> T) -> Rc<T> {
    let found = OBJECTS.with_borrow(|objects| objects.get(&address).cloned());
    let object = found.unwrap_or_else(|| {
        let made: Rc<dyn Any> = Rc::new(make());
        OBJECTS.with_borrow_mut(|objects| objects.insert(address, made.clone()));
        made
    });
    object.downcast().expect("one type at an address")
}
