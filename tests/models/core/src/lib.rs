//! `core`, with atomics whose interleavings a model checker explores: Loom (feature `loom`: every one, and reorderings) or Shuttle (`shuttle`: random
//! ones of models that are too large for that).
//!
//! An atomic has `core`'s size and place. Outside a model, and before [`begin`], it is `core`'s. Afterwards, with Loom, it is a Loom object, made when it is
//! first used, from what it held before: Loom asks that the thread that makes an object has ended or has started the others, so a model uses everything
//! once before it starts threads (a rehearsal). With Shuttle it stays where it is, and a step of the model is before each access (`sync/shuttle.rs`).
//!
//! [`weaken`] takes from one line of the shipping source what makes it safe, to see that a model misses it.
pub use ::core::*;

#[cfg(all(feature = "loom", feature = "shuttle"))]
compile_error!("one model checker at a time");

pub mod model;

/// `core::sync`, with the atomics of models.
pub mod sync {
    #[cfg(feature = "loom")]
    #[path = "loom.rs"]
    pub mod atomic;
    #[cfg(feature = "shuttle")]
    #[path = "shuttle.rs"]
    pub mod atomic;
}

#[cfg(feature = "shuttle")]
pub use model::is_away;
pub use model::{begin, end, is_on, sites, weaken};
#[cfg(feature = "shuttle")]
pub use sync::atomic::{drain, step};
