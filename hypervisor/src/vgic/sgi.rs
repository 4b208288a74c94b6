//! Software-generated interrupts: what a write to `ICC_SGI1R_EL1` or `GICD_SGIR` asks for.

use super::ids::{MAX_VCPUS, PrivateIntid, VcpuMask, VcpuNumber};

/// An SGI and the vCPUs it goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sgi {
    /// INTID 0 to 15.
    pub intid: PrivateIntid,
    /// Targets, the sender among them if it named itself.
    pub targets: VcpuMask,
}

/// Decodes a write to `ICC_SGI1R_EL1` (IHI 0069, 12.2.21) by `sender` in a domain of `vcpus` vCPUs: `Aff3` 55:48, `RS`
/// 47:44, `IRM` 40, `Aff2` 39:32, `INTID` 27:24, `Aff1` 23:16, `TargetList` 15:0. Targets that do not exist are left
/// out. `ICC_SGI0R_EL1` and `ICC_ASGI1R_EL1` have no effect in a guest: nothing is in group 0 or secure.
pub fn decode_sgi1r(value: u64, sender: VcpuNumber, vcpus: usize) -> Sgi {
    let intid = PrivateIntid::from_low_bits(u8::try_from(value >> 24 & 0xf).unwrap_or(0));
    let all = VcpuMask::first(vcpus);
    let targets = if value & 1 << 40 != 0 { all.without(sender) } else { listed(value).intersection(all) };
    Sgi { intid, targets }
}

/// Decodes a write to `GICD_SGIR` (IHI 0048, 4.3.15) by `sender` in a domain of `vcpus` vCPUs: `TargetListFilter` 25:24,
/// `CPUTargetList` 23:16, `SGIINTID` 3:0. Targets that do not exist are left out; the reserved filter has none. Each
/// target's `VcpuShared::note_sender` comes before the raise.
pub fn decode_sgir(value: u32, sender: VcpuNumber, vcpus: usize) -> Sgi {
    let intid = PrivateIntid::from_low_bits(u8::try_from(value & 0xf).unwrap_or(0));
    let all = VcpuMask::first(vcpus);
    let targets = match (value & 1 << 25 != 0, value & 1 << 24 != 0) {
        (false, false) => {
            VcpuMask::from_list(u16::try_from(value >> 16 & 0xff).unwrap_or(0)).intersection(all)
        }
        (false, true) => all.without(sender),
        (true, false) => VcpuMask::only(sender).intersection(all),
        (true, true) => VcpuMask::EMPTY,
    };
    Sgi { intid, targets }
}

/// vCPUs that a target list names: with at most 16, all are in `0.0.0.x` and the list is their mask.
fn listed(value: u64) -> VcpuMask {
    const _: () = assert!(MAX_VCPUS == 16, "one target list names all vCPUs");
    let (aff3, rs, aff2, aff1) =
        (value >> 48 & 0xff, value >> 44 & 0xf, value >> 32 & 0xff, value >> 16 & 0xff);
    if aff3 | rs | aff2 | aff1 == 0 {
        VcpuMask::from_list(u16::try_from(value & 0xffff).unwrap_or(0))
    } else {
        VcpuMask::EMPTY
    }
}
