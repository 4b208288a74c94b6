//! `spin`'s ticket lock, as far as the hypervisor uses it: the model checker knows who waits for it.
#![allow(missing_docs)]

pub mod mutex {
    use std::cell::UnsafeCell;
    use std::fmt;
    use std::ops::{Deref, DerefMut};
    use std::sync::atomic::{AtomicBool, Ordering};

    #[cfg(feature = "loom")]
    use loom::sync as known;
    use model_core::model;
    #[cfg(feature = "shuttle")]
    use shuttle::sync as known;

    /// A lock that waits in turns.
    #[derive(Default)]
    pub struct TicketMutex<T> {
        held: AtomicBool,
        value: UnsafeCell<T>,
    }

    // SAFETY: the value is reached through a guard only, and one guard exists at a time (`lock`).
    unsafe impl<T: Send> Sync for TicketMutex<T> {}

    pub struct TicketMutexGuard<'a, T> {
        lock: &'a TicketMutex<T>,
        modelled: Option<known::MutexGuard<'a, ()>>,
        /// False where a model has taken the lock away.
        holds: bool,
    }

    impl<T> TicketMutex<T> {
        pub const fn new(value: T) -> Self {
            Self { held: AtomicBool::new(false), value: UnsafeCell::new(value) }
        }

        /// What the model checker knows it by, in a model.
        fn known(&self) -> Option<&'static known::Mutex<()>> {
            model::is_on().then(|| {
                *model::object(std::ptr::from_ref(self).addr(), || {
                    &*Box::leak(Box::new(known::Mutex::new(())))
                })
            })
        }

        /// Takes it if nobody has it.
        pub fn try_lock(&self) -> Option<TicketMutexGuard<'_, T>> {
            let modelled = match self.known() {
                Some(lock) => Some(lock.try_lock().ok()?),
                None => None,
            };
            let free = !self.held.swap(true, Ordering::Acquire);
            free.then(|| TicketMutexGuard { lock: self, modelled, holds: true })
        }

        #[track_caller]
        pub fn lock(&self) -> TicketMutexGuard<'_, T> {
            #[cfg(feature = "shuttle")]
            if model::is_on() && model::is_away(std::panic::Location::caller()) {
                model_core::step();
                return TicketMutexGuard { lock: self, modelled: None, holds: false };
            }
            let modelled = self.known().map(|lock| lock.lock().expect("no thread panics and goes on"));
            let before = self.held.swap(true, Ordering::Acquire);
            assert!(!before, "a lock is taken twice by one thread");
            TicketMutexGuard { lock: self, modelled, holds: true }
        }

        pub fn get_mut(&mut self) -> &mut T {
            self.value.get_mut()
        }

        pub fn into_inner(self) -> T {
            self.value.into_inner()
        }

        pub fn is_locked(&self) -> bool {
            self.held.load(Ordering::Relaxed)
        }
    }

    impl<T: fmt::Debug> fmt::Debug for TicketMutex<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("TicketMutex")
        }
    }

    impl<T> Deref for TicketMutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            // SAFETY: this guard is the only one, but where a model has taken the lock away to see what happens.
            unsafe { &*self.lock.value.get() }
        }
    }

    impl<T> DerefMut for TicketMutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            // SAFETY: as above.
            unsafe { &mut *self.lock.value.get() }
        }
    }

    impl<T> Drop for TicketMutexGuard<'_, T> {
        fn drop(&mut self) {
            // Who takes it next sees what was written under it.
            #[cfg(feature = "shuttle")]
            if model::is_on() {
                model_core::drain();
            }
            if self.holds {
                self.lock.held.store(false, Ordering::Release);
                self.modelled.take();
            }
        }
    }
}

pub use mutex::{TicketMutex, TicketMutexGuard};
