//! Atomics as in `core::sync::atomic`, Loom's in a model.
pub use ::core::sync::atomic::Ordering;

use crate::model;

/// `core::sync::atomic::fence`.
#[track_caller]
pub fn fence(asked: Ordering) {
    let at = ::core::panic::Location::caller();
    if model::is_on() {
        match model::ordering(asked, at) {
            Ordering::Relaxed => {}
            held => loom::sync::atomic::fence(held),
        }
    } else {
        ::core::sync::atomic::fence(asked);
    }
}

macro_rules! atomics {
    ($($name:ident $value:ty;)*) => {$(
        /// As in `core::sync::atomic`.
        #[repr(transparent)]
        #[derive(Default)]
        pub struct $name(::core::sync::atomic::$name);

        impl ::core::fmt::Debug for $name {
            #[track_caller]
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
                assert!(!model::is_on(), "nobody else has it: not in a model");
                self.0.get_mut()
            }

            fn object(&self) -> std::rc::Rc<loom::sync::atomic::$name> {
                model::object(::core::ptr::from_ref(self).addr(), || {
                    loom::sync::atomic::$name::new(self.0.load(Ordering::Relaxed))
                })
            }

            #[track_caller]
            pub fn load(&self, asked: Ordering) -> $value {
                let at = ::core::panic::Location::caller();
                if model::is_on() { self.object().load(model::ordering(asked, at)) } else { self.0.load(asked) }
            }

            #[track_caller]
            pub fn store(&self, value: $value, asked: Ordering) {
                let at = ::core::panic::Location::caller();
                if model::is_on() {
                    self.object().store(value, model::ordering(asked, at));
                } else {
                    self.0.store(value, asked);
                }
            }

            #[track_caller]
            pub fn compare_exchange(
                &self,
                old: $value,
                new: $value,
                asked: Ordering,
                failed: Ordering,
            ) -> Result<$value, $value> {
                let at = ::core::panic::Location::caller();
                if model::is_on() {
                    let held = model::ordering(asked, at);
                    let failed = if held == Ordering::Relaxed { held } else { failed };
                    self.object().compare_exchange(old, new, held, failed)
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
    ($($name:ident $value:ty: $($method:ident)*;)*) => {$(
        #[allow(missing_docs)]
        impl $name {
            $(
                #[track_caller]
                pub fn $method(&self, value: $value, asked: Ordering) -> $value {
                    let at = ::core::panic::Location::caller();
                    if model::is_on() {
                        self.object().$method(value, model::ordering(asked, at))
                    } else {
                        self.0.$method(value, asked)
                    }
                }
            )*
        }
    )*};
}

atomics! {
    AtomicBool bool;
    AtomicU8 u8;
    AtomicU16 u16;
    AtomicU32 u32;
    AtomicU64 u64;
    AtomicI64 i64;
    AtomicUsize usize;
}

exchanges! {
    AtomicBool bool: swap fetch_and fetch_or fetch_xor;
    AtomicU8 u8: swap fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min;
    AtomicU16 u16: swap fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min;
    AtomicU32 u32: swap fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min;
    AtomicU64 u64: swap fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min;
    AtomicI64 i64: swap fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min;
    AtomicUsize usize: swap fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min;
}
