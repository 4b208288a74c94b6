//! Numbers that are no calls on ARM64, and the privileged calls.
use pv_abi::Errno;

use super::raw::{at_zeros as privileged, call};
use super::tap::Tap;

pub(crate) fn check(tap: &mut Tap) {
    for (what, number) in [
        ("0 (set_trap_table)", 0),
        ("1 (mmu_update)", 1),
        ("2 (set_gdt)", 2),
        ("11", 11),
        ("14 (update_va_mapping)", 14),
        ("15 (set_timer_op)", 15),
        ("26 (mmuext_op)", 26),
        ("27 (xsm_op)", 27),
        ("28 (nmi_op)", 28),
        ("30 (callback_op)", 30),
        ("31 (xenoprof_op)", 31),
        ("33 (physdev_op)", 33),
        ("37 (kexec_op)", 37),
        ("39 (argo_op)", 39),
        ("40 (xenpmu_op)", 40),
        ("63", 63),
        ("64", 64),
        ("1000", 1000),
        ("xen_version with bit 32 set", 1 << 32 | 0x11),
        ("-1", u64::MAX),
    ] {
        tap.is(what, call(number, &[0, 0, 0, 0, 0]), Err(Errno::Enosys));
    }
    for (what, number) in [("platform_op", 7), ("sysctl", 35), ("domctl", 36)] {
        tap.is(
            format_args!("another interface version is refused by {what}"),
            privileged(number),
            Err(Errno::Eacces),
        );
    }
    tap.is("41 (dm_op)", call(41, &[0, 0, 0, 0, 0]), Err(Errno::Enosys));
    let vm_assist = 21;
    tap.is("vm_assist enables runstate_update_flag", call(vm_assist, &[0, 5]), Ok(0));
    tap.is("vm_assist disables it", call(vm_assist, &[1, 5]), Ok(0));
    tap.is("vm_assist knows no type 0 here", call(vm_assist, &[0, 0]), Err(Errno::Einval));
    tap.is("vm_assist knows no type 64", call(vm_assist, &[0, 64]), Err(Errno::Einval));
    tap.is("vm_assist knows no command 2", call(vm_assist, &[2, 5]), Err(Errno::Enosys));
}
