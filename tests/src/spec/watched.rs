//! Parts of the specification that say whether they may have changed, so that what did not change is not compared again.
use core::fmt;
use core::ops::{Deref, DerefMut};

/// A value, and whether anybody could have changed it since it was last asked.
#[derive(Clone, Default)]
pub struct Watched<T> {
    value: T,
    touched: bool,
}

impl<T> Watched<T> {
    /// A value that nobody has looked at yet.
    pub const fn new(value: T) -> Self {
        Self { value, touched: true }
    }

    /// Whether it may have changed since the last time.
    pub fn take_touched(&mut self) -> bool {
        core::mem::take(&mut self.touched)
    }
}

impl<T> Deref for Watched<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Watched<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.touched = true;
        &mut self.value
    }
}

impl<T: PartialEq> PartialEq for Watched<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for Watched<T> {}

impl<T: fmt::Debug> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}
