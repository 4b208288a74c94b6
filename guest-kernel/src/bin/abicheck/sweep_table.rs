//! What is swept: each sub-call with its structure's fields (`public/*.h`), and how the tables are written. Grants and memory have a file of
//! their own.
use super::raw::FREE;
use super::sweep::Base::{Is, Page};
use super::sweep::Kind::{Any, Domain, Of, Place as Free, Port, Vcpu};
use super::sweep::Place::{At, X};
use super::sweep::State::{Nothing, Ports, Watchdogs};
use super::sweep::{Base, Field, Kind, Op, State};
use super::sweep_world::{AREA, END, NOWHERE, OUT_LIST, PLACES_LIST, PORT_LIST, UNBOUND};

/// Numbers that are calls of this table.
pub(crate) const CALLS: [u64; 13] = [7, 12, 13, 17, 18, 20, 21, 24, 29, 32, 34, 35, 36];
/// Calls with commands: number, which register has the address, name.
pub(crate) const COMMANDS: &[(u64, usize, &str)] = &[
    (12, 1, "memory_op"),
    (17, 1, "xen_version"),
    (18, 2, "console_io"),
    (20, 1, "grant_table_op"),
    (21, 1, "vm_assist"),
    (24, 2, "vcpu_op"),
    (29, 1, "sched_op"),
    (32, 1, "event_channel_op"),
    (34, 1, "hvm_op"),
];
/// The call that would wait.
pub(crate) const BLOCK: (u64, u64) = (29, 1);

pub(crate) const SELF: Base = Is(0x7ff0);
pub(crate) const OWN: Base = Is(1);
pub(crate) const NONE: Base = Is(0);
const PORT: Base = Is(UNBOUND);
/// Every small number, and large ones.
const EVERY: [u64; 104] = {
    let mut numbers = [0; 104];
    let mut index = 0;
    while index < 100 {
        numbers[index] = index as u64;
        index += 1;
    }
    [numbers[100], numbers[101], numbers[102], numbers[103]] = [1000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
    numbers
};
const COMMAND: Kind = Of(&EVERY, &[1, 99]);
/// Lengths of texts: of none, of more than there is, of more than can be. That of the text itself is the hypervisor's.
const LENGTHS: Kind = Of(&[0, 1000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff], &[]);

/// A table: of each sub-call how it is made, its name, further arguments of the maker, and its fields with place, usual value and kind.
macro_rules! ops {
    ($($make:ident $name:literal ($($further:expr),*) {
        $($field:literal $place:ident ($($at:expr),*) $usual:expr, $kind:expr;)*
    })*) => {
        &[$($make(
            $name,
            $($further,)*
            &const { [$(Field { name: $field, place: $place($($at),*), usual: $usual, kind: $kind }),*] },
        )),*]
    };
}
pub(crate) use ops;

/// A call with its structure's address in one of the registers.
pub(crate) const fn at(
    name: &'static str,
    number: u64,
    x: [u64; 5],
    address: Option<usize>,
    size: usize,
    fields: &'static [Field],
) -> Op {
    Op { name, number, x, address, size, status: None, counts: false, state: Nothing, fields }
}

/// A call with a command and a structure.
pub(crate) const fn other(
    name: &'static str,
    number: u64,
    cmd: u64,
    size: usize,
    state: State,
    fields: &'static [Field],
) -> Op {
    Op { state, ..at(name, number, [cmd, 0, 0, 0, 0], Some(1), size, fields) }
}

/// One whose answer is not the same everywhere.
pub(crate) const fn told(
    name: &'static str,
    number: u64,
    cmd: u64,
    size: usize,
    fields: &'static [Field],
) -> Op {
    Op { counts: true, ..other(name, number, cmd, size, Nothing, fields) }
}

const fn event(name: &'static str, cmd: u64, size: usize, fields: &'static [Field]) -> Op {
    other(name, 32, cmd, size, Ports, fields)
}

/// Events.
pub(crate) const EVENTS: &[Op] = ops! {
    event "event_channel_op.bind_interdomain" (0, 12) {
        "remote_dom" At(0, 2) SELF, Domain;
        "remote_port" At(4, 4) PORT, Port;
    }
    event "event_channel_op.bind_virq" (1, 12) {
        "virq" At(0, 4) Is(1), Of(&[
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 23, 24, 25, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff
        ], &[0, 2, 24],);
        "vcpu" At(4, 4) NONE, Vcpu;
    }
    event "event_channel_op.bind_pirq" (2, 12) {
        "pirq" At(0, 4) NONE, Any;
        "flags" At(4, 4) NONE, Any;
    }
    event "event_channel_op.close" (3, 4) {
        "port" At(0, 4) PORT, Port;
    }
    event "event_channel_op.send" (4, 4) {
        "port" At(0, 4) PORT, Port;
    }
    event "event_channel_op.status" (5, 24) {
        "dom" At(0, 2) SELF, Domain;
        "port" At(4, 4) PORT, Port;
    }
    event "event_channel_op.alloc_unbound" (6, 8) {
        "dom" At(0, 2) SELF, Domain;
        "remote_dom" At(2, 2) SELF, Domain;
    }
    event "event_channel_op.bind_ipi" (7, 8) {
        "vcpu" At(0, 4) NONE, Vcpu;
    }
    event "event_channel_op.bind_vcpu" (8, 8) {
        "port" At(0, 4) PORT, Port;
        "vcpu" At(4, 4) NONE, Vcpu;
    }
    event "event_channel_op.unmask" (9, 4) {
        "port" At(0, 4) PORT, Port;
    }
    event "event_channel_op.reset" (10, 2) {
        "dom" At(0, 2) SELF, Domain;
    }
    event "event_channel_op.init_control" (11, 24) {
        "control_gfn" At(0, 8) Page, Free;
        "offset" At(8, 4) NONE, Of(&[0, 1, 4, 7, 8, 12, 4016, 4024, 4028, 4032, 4088, 4096, 0x7fff_ffff, 0xffff_ffff], &[4, 4096],);
        "vcpu" At(12, 4) NONE, Vcpu;
    }
    event "event_channel_op.expand_array" (12, 8) {
        "array_gfn" At(0, 8) Page, Free;
    }
    event "event_channel_op.set_priority" (13, 8) {
        "port" At(0, 4) PORT, Port;
        "priority" At(4, 4) NONE, Any;
    }
    event "event_channel_op.reset_cont" (14, 2) {
        "dom" At(0, 2) SELF, Domain;
    }
};

/// All but events, grants and memory.
pub(crate) const OTHERS: &[Op] = ops! {
    other "sched_op.poll" (29, 3, 24, Ports) {
        "ports" At(0, 8) Is(PORT_LIST), Of(&[
            PORT_LIST, PORT_LIST + 4, PLACES_LIST, OUT_LIST, PORT_LIST + 1, END - 4, END - 2, END, 0, NOWHERE, 1 << 48,
            u64::MAX - 3
        ], &[PLACES_LIST, NOWHERE],);
        "nr_ports" At(8, 4) Is(1), Of(&[1, 2, 3, 127, 128, 129, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff], &[128, 129]);
        "timeout" At(16, 8) Is(1), Of(&[0, 1, 2, 1 << 62, 1 << 63, u64::MAX], &[]);
    }
    other "sched_op.remote_shutdown" (29, 4, 8, Nothing) {
        "domain_id" At(0, 2) SELF, Domain;
        "reason" At(4, 4) NONE, Any;
    }
    other "sched_op.shutdown_code" (29, 5, 4, Nothing) {
        "reason" At(0, 4) NONE, Any;
    }
    other "sched_op.watchdog" (29, 6, 8, Watchdogs) {
        "id" At(0, 4) NONE, Any;
        "timeout" At(4, 4) Is(3600), Of(&[3600, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff], &[0xffff_ffff]);
    }
    other "hvm_op.set_param" (34, 0, 16, Nothing) {
        "domid" At(0, 2) SELF, Domain;
        "index" At(4, 4) NONE, COMMAND;
        "value" At(8, 8) NONE, Any;
    }
    told "hvm_op.get_param" (34, 1, 16) {
        "domid" At(0, 2) SELF, Domain;
        "index" At(4, 4) NONE, COMMAND;
        "value" At(8, 8) NONE, Any;
    }
    other "hvm_op.guest_request_vm_event" (34, 24, 8, Nothing) {}
    at "vm_assist" (21, [0; 5], None, 0) {
        "cmd" X(0) NONE, Any;
        "type" X(1) Is(5), Any;
    }
    at "vcpu_op.register_runstate_memory_area" (24, [5, 0, 0, 0, 0], Some(2), 8) {
        "vcpuid" X(1) NONE, Vcpu;
        "addr" At(0, 8) Is(AREA), Of(&[AREA, AREA + 8, NOWHERE, 0, END, 1 << 47, 1 << 48, u64::MAX, AREA], &[NOWHERE, AREA],);
    }
    at "vcpu_op.register_vcpu_info" (24, [10, 0, 0, 0, 0], Some(2), 16) {
        "vcpuid" X(1) NONE, Vcpu;
        "mfn" At(0, 8) Is(FREE), Free;
        "offset" At(8, 4) NONE, Of(&[0, 1, 4, 8, 4032, 4048, 4049, 4056, 4096, 0x7fff_ffff, 0xffff_ffff], &[4, 4056, 4096],);
        "rsvd" At(12, 4) NONE, Any;
    }
    at "multicall" (13, [0, 1, 0, 0, 0], Some(0), 64) {
        "nr_calls" X(1) Is(1), Of(&[0, 1, 2, 3, 1 << 32, 1 << 32 | 1], &[0]);
        "op" At(0, 8) Is(17), Of(&[0, 1, 13, 17, 63, 64, 1 << 32 | 0x11, 1 << 63 | 0x11, u64::MAX], &[13, 63]);
        "args[0]" At(16, 8) NONE, Of(&[0, 7, 15, 99, 1 << 32, u64::MAX], &[99]);
    }
    at "console_io.write" (18, [0; 5], Some(2), 1) {
        "text" At(0, 1) Is(10), Of(&[10], &[]);
        "count" X(1) Is(1), Of(&[0, 1, 1 << 32, 1 << 32 | 1, 1 << 63 | 1], &[]);
    }
    at "console_io.read" (18, [1, 0, 0, 0, 0], Some(2), 1) {
        "count" X(1) Is(1), Any;
    }
    told "xen_version.version" (17, 0, 8) {}
    told "xen_version.extraversion" (17, 1, 16) {}
    told "xen_version.compile_info" (17, 2, 144) {}
    told "xen_version.capabilities" (17, 3, 1024) {}
    told "xen_version.changeset" (17, 4, 64) {}
    told "xen_version.platform_parameters" (17, 5, 8) {}
    other "xen_version.get_features" (17, 6, 8, Nothing) {
        "submap_idx" At(0, 4) NONE, Any;
    }
    told "xen_version.pagesize" (17, 7, 8) {}
    told "xen_version.guest_handle" (17, 8, 16) {}
    told "xen_version.commandline" (17, 9, 9) {}
    told "xen_version.build_id" (17, 10, 8) {}
    told "xen_version.extraversion2" (17, 11, 32) {
        "len" At(0, 4) NONE, LENGTHS;
    }
    told "xen_version.capabilities2" (17, 12, 128) {
        "len" At(0, 4) NONE, LENGTHS;
    }
    told "xen_version.commandline2" (17, 14, 32) {
        "len" At(0, 4) NONE, Any;
    }
    at "platform_op" (7, [0; 5], Some(0), 136) {
        "cmd" At(0, 4) Is(1), COMMAND;
        "interface_version" At(4, 4) Is(0x0300_0001), Any;
        "domain" At(8, 2) SELF, Domain;
    }
    at "sysctl" (35, [0; 5], Some(0), 136) {
        "cmd" At(0, 4) Is(1), COMMAND;
        "interface_version" At(4, 4) Is(0x15), Any;
        "domain" At(8, 2) SELF, Domain;
    }
    at "domctl" (36, [0; 5], Some(0), 144) {
        "cmd" At(0, 4) Is(1), COMMAND;
        "interface_version" At(4, 4) Is(0x17), Any;
        "domain" At(8, 2) SELF, Domain;
    }
};
