//! `console_io`.
use pv_abi::console::ConsoleOp;
use pv_abi::{Errno, Hypercall};

use super::raw::{NOWHERE, bytes, call};
use super::tap::Tap;

pub(crate) fn check(tap: &mut Tap) {
    let number = u64::from(Hypercall::ConsoleIo.number());
    let (write, read) = (u64::from(ConsoleOp::Write.number()), u64::from(ConsoleOp::Read.number()));
    tap.is("writing nothing", call(number, &[write, 0, NOWHERE]), Ok(0));
    let mut line = *b"# a line from abicheck\n";
    tap.is("writing a line", bytes(Hypercall::ConsoleIo, write, line.len() as u64, &mut line), Ok(0));
    tap.is("writing from a bad address", call(number, &[write, 4, NOWHERE]), Err(Errno::Efault));
    tap.is("reading nothing", call(number, &[read, 0, NOWHERE]), Ok(0));
    tap.is("reading more than 2^31 - 1 bytes", call(number, &[read, 1 << 31, NOWHERE]), Err(Errno::E2big));
    tap.is("an unknown operation", call(number, &[2, 0, 0]), Err(Errno::Enosys));
}
