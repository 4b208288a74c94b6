//! Boards as data and device drivers.
#![cfg_attr(not(test), no_std)]
