//! Atomics as in `core::sync::atomic`, each access a step of a model that Shuttle schedules.
//!
//! Shuttle runs one thread at a time and knows no reordering. One is added, the one that every fence of the scheduler is for: a store waits in a buffer of
//! its thread, which the thread itself sees, until a random moment before one of its next steps, a full fence, an exchange, the end of a lock or of
//! the thread ([`drain`]). Stores stay in order, so releases hold by themselves. (Loom knows all reorderings, in small models.)
pub use ::core::sync::atomic::Ordering;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::panic::Location;

use shuttle::rand::Rng;

use crate::model;

/// A store that is under way.
struct Stored {
    address: usize,
    value: u64,
    /// Stores a value at an address of an atomic of its type.
    store: fn(usize, u64),
}

thread_local! {
    // The threads of a model are coroutines of one thread. By their numbers.
    static BUFFERS: RefCell<HashMap<usize, VecDeque<Stored>>> = RefCell::new(HashMap::new());
}
/// Stores that may be under way at once.
const ROOM: usize = 6;

fn buffer<R>(work: impl FnOnce(&mut VecDeque<Stored>) -> R) -> R {
    let me = usize::from(shuttle::current::me());
    BUFFERS.with_borrow_mut(|buffers| work(buffers.entry(me).or_default()))
}

fn drain_to(left: usize) {
    while let Some(stored) = buffer(|stores| (stores.len() > left).then(|| stores.pop_front()).flatten()) {
        (stored.store)(stored.address, stored.value);
    }
}

/// All stores of this thread are made.
pub fn drain() {
    drain_to(0);
}

/// A step of the model: others may run first.
pub fn step() {
    static STEP: shuttle::sync::atomic::AtomicBool = shuttle::sync::atomic::AtomicBool::new(false);
    STEP.load(Ordering::SeqCst);
    let waiting = buffer(|stores| stores.len());
    if waiting != 0 {
        let left = shuttle::rand::thread_rng().gen_range(0..=waiting + 1);
        drain_to(left.min(waiting));
    }
}

/// What this thread has stored at an address and nobody else sees yet.
fn own(address: usize) -> Option<u64> {
    buffer(|stores| stores.iter().rev().find(|stored| stored.address == address).map(|stored| stored.value))
}

/// `core::sync::atomic::fence`.
#[track_caller]
pub fn fence(asked: Ordering) {
    if model::is_on() {
        step();
        if !model::is_away(Location::caller()) && asked == Ordering::SeqCst {
            drain();
        }
    } else {
        ::core::sync::atomic::fence(asked);
    }
}

macro_rules! atomics {
    ($($name:ident $value:ty, $to:expr, $from:expr;)*) => {$(
        /// As in `core::sync::atomic`.
        #[repr(transparent)]
        #[derive(Default)]
        pub struct $name(::core::sync::atomic::$name);

        impl ::core::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                ::core::fmt::Debug::fmt(&self.load(Ordering::Relaxed), f)
            }
        }

        impl From<$value> for $name {
            fn from(value: $value) -> Self {
                Self::new(value)
            }
        }

        #[allow(missing_docs)]
        impl $name {
            pub const fn new(value: $value) -> Self {
                Self(::core::sync::atomic::$name::new(value))
            }

            pub const fn into_inner(self) -> $value {
                self.0.into_inner()
            }

            pub fn get_mut(&mut self) -> &mut $value {
                self.0.get_mut()
            }

            fn address(&self) -> usize {
                ::core::ptr::from_ref(self).addr()
            }

            fn store_at(address: usize, value: u64) {
                let at = ::core::ptr::with_exposed_provenance::<::core::sync::atomic::$name>(address);
                // SAFETY: `store` has put the address of an atomic of this type into the buffer, and what a model works on lives until its threads
                // have ended, each with its buffer drained.
                unsafe { &*at }.store($from(value), Ordering::SeqCst);
            }

            pub fn load(&self, asked: Ordering) -> $value {
                if !model::is_on() {
                    return self.0.load(asked);
                }
                step();
                own(self.address()).map_or_else(|| self.0.load(Ordering::SeqCst), $from)
            }

            #[track_caller]
            pub fn store(&self, value: $value, asked: Ordering) {
                if !model::is_on() {
                    return self.0.store(value, asked);
                }
                step();
                if asked != Ordering::Relaxed && model::is_away(Location::caller()) {
                    return;
                }
                let address = ::core::ptr::from_ref(&self.0).expose_provenance();
                buffer(|stores| stores.push_back(Stored { address, value: $to(value), store: Self::store_at }));
                drain_to(if asked == Ordering::SeqCst { 0 } else { ROOM });
            }

            /// One step, unless it is taken away: then a load and a store.
            #[track_caller]
            fn exchange(&self, change: impl Fn($value) -> Option<$value>) -> Result<$value, $value> {
                step();
                drain();
                let before = self.0.load(Ordering::SeqCst);
                let Some(after) = change(before) else { return Err(before) };
                if model::is_away(Location::caller()) {
                    step();
                }
                self.0.store(after, Ordering::SeqCst);
                Ok(before)
            }

            #[track_caller]
            pub fn compare_exchange(
                &self,
                old: $value,
                new: $value,
                asked: Ordering,
                failed: Ordering,
            ) -> Result<$value, $value> {
                if model::is_on() {
                    self.exchange(|before| (before == old).then_some(new))
                } else {
                    self.0.compare_exchange(old, new, asked, failed)
                }
            }

            #[track_caller]
            pub fn compare_exchange_weak(
                &self,
                old: $value,
                new: $value,
                asked: Ordering,
                failed: Ordering,
            ) -> Result<$value, $value> {
                self.compare_exchange(old, new, asked, failed)
            }

            /// At most so many turns as there are others that change it.
            #[track_caller]
            pub fn fetch_update(
                &self,
                asked: Ordering,
                failed: Ordering,
                mut change: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                let mut before = self.load(failed);
                while let Some(next) = change(before) {
                    match self.compare_exchange(before, next, asked, failed) {
                        Ok(before) => return Ok(before),
                        Err(found) => before = found,
                    }
                }
                Err(before)
            }
        }
    )*};
}

macro_rules! exchanges {
    ($($name:ident $value:ty: $($method:ident $change:expr),*;)*) => {$(
        #[allow(missing_docs)]
        impl $name {
            $(
                #[track_caller]
                pub fn $method(&self, value: $value, asked: Ordering) -> $value {
                    if model::is_on() {
                        let change: fn($value, $value) -> $value = $change;
                        self.exchange(|before| Some(change(before, value))).unwrap_or(value)
                    } else {
                        self.0.$method(value, asked)
                    }
                }
            )*
        }
    )*};
}

macro_rules! numbers {
    ($($name:ident $value:ty;)*) => {
        atomics! { $($name $value, |value: $value| value as u64, |bits: u64| bits as $value;)* }
        exchanges! {
            $($name $value:
                swap |_, value| value, fetch_add <$value>::wrapping_add, fetch_sub <$value>::wrapping_sub,
                fetch_and |a, b| a & b, fetch_or |a, b| a | b, fetch_xor |a, b| a ^ b, fetch_max |a, b| a.max(b), fetch_min |a, b| a.min(b);)*
        }
    };
}

numbers! {
    AtomicU8 u8;
    AtomicU16 u16;
    AtomicU32 u32;
    AtomicU64 u64;
    AtomicI64 i64;
    AtomicUsize usize;
}
atomics! { AtomicBool bool, u64::from, |bits: u64| bits != 0; }
exchanges! { AtomicBool bool: swap |_, value| value, fetch_and |a, b| a & b, fetch_or |a, b| a | b, fetch_xor |a, b| a ^ b; }
