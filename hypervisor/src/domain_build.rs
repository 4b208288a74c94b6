//! Building a domain.
/// Boot storage.
pub trait Storage {
    /// `n` values for ever; `None` when there is no room.
    fn slice<T: Send + Sync + 'static>(&self, n: usize, make: impl FnMut(usize) -> T) -> Option<&'static mut [T]>;
}
