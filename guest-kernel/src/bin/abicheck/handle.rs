//! Every sub-call that takes a handle, with one that leads nowhere. Which they are says `pv-abi`'s table: a row more is a case more.
use pv_abi::call::{Origin, TABLE};
use pv_abi::{Errno, Hypercall};

use super::raw::{NOWHERE, call};
use super::tap::Tap;

pub(crate) fn check(tap: &mut Tap) {
    for row in TABLE.iter().filter(|row| row.origin() == Origin::Xen) {
        for operation in row.operations.iter().filter(|operation| operation.takes_handle()) {
            let cmd = u64::from(operation.number);
            let args = match Hypercall::from_number(row.number.into()) {
                Some(Hypercall::Multicall) => [NOWHERE, 1, 0],
                Some(Hypercall::ConsoleIo) => [cmd, 1, NOWHERE],
                Some(Hypercall::VcpuOp) => [cmd, 0, NOWHERE],
                _ => [cmd, NOWHERE, 1],
            };
            let expected = match operation.name {
                // Nothing was done, and nothing is wrong with nothing; nobody has typed anything.
                "increase_reservation" | "decrease_reservation" | "populate_physmap" | "read" => Ok(0),
                "commandline2" => Err(Errno::Eperm),
                _ => Err(Errno::Efault),
            };
            let (call_name, name) = (row.name, operation.name);
            let answer = call(row.number.into(), &args);
            tap.is(format_args!("{call_name}.{name} of what is nowhere"), answer, expected);
        }
    }
}
