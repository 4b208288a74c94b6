//! `core`, with atomics whose interleavings and reorderings Loom explores.
//!
//! An atomic has `core`'s size and place. Outside a model, and before [`begin`], it is `core`'s; afterwards it is a Loom object, made when it is first
//! used, from what it held before. Loom asks that the thread that makes an object has ended or has started the others: a model uses everything once before
//! it starts threads (a rehearsal).
//!
//! [`weaken`] takes the ordering away from the accesses of one line of the shipping source, to see that a model misses it.
pub use ::core::*;

/// `core::sync`, with the atomics of models.
pub mod sync {
    /// `core::sync::atomic`.
    pub mod atomic;
}

pub use sync::atomic::model::{begin, end, is_on, sites, weaken};
