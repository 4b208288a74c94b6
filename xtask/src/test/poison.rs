//! What firmware may leave in EL2's registers: the image must run whatever is there. A piece of code in front of it writes nonsense into
//! every register that EL2 or a guest would notice, then enters it as firmware does.

use crate::check::Found;
use crate::failure::{Failure, Outcome};
use crate::hypervisor::Hypervisor;
use crate::run::{self, Options};
use crate::{build, setup, workspace};

use super::step::{Level, Step};
use super::systems;

/// Bytes of the piece in front: the image must start at a multiple of 64 KiB.
const FRONT: usize = 0x1_0000;
/// Its five fields op0, op1, `CRn`, `CRm` and op2, as in `msr S<op0>_<op1>_C<n>_C<m>_<op2>`.
type Register = (u32, u32, u32, u32, u32);

/// Each with a value that would do harm. Bits that change what EL2 itself fetches or loads before it can set them (`SCTLR_EL2.M`, `C`,
/// `EE`, `HCR_EL2.E2H`) are as the boot protocol promises.
const POISON: [(Register, u64); 35] = [
    ((3, 4, 1, 0, 0), 0x30cd_183a),            // SCTLR_EL2: alignment checks, WXN, I
    ((3, 4, 1, 0, 1), 0xffff_ffff),            // ACTLR_EL2
    ((3, 4, 1, 1, 1), 0x0000_0fe1),            // MDCR_EL2
    ((3, 4, 1, 1, 2), 0xffff_ffff),            // CPTR_EL2
    ((3, 4, 1, 1, 3), 0x0000_afef),            // HSTR_EL2
    ((3, 4, 1, 1, 7), 0xffff_ffff),            // HACR_EL2
    ((3, 4, 2, 0, 0), 0x00de_ad00_0000),       // TTBR0_EL2
    ((3, 4, 2, 0, 2), 0xffff_ffff),            // TCR_EL2
    ((3, 4, 2, 1, 0), 0x00ff_0000_dead_0000),  // VTTBR_EL2
    ((3, 4, 2, 1, 2), 0xffff_ffff),            // VTCR_EL2
    ((3, 4, 10, 2, 0), 0x4444_4444_4444_4444), // MAIR_EL2
    ((3, 4, 10, 3, 0), u64::MAX),              // AMAIR_EL2
    ((3, 4, 12, 0, 0), 0xdead_0800),           // VBAR_EL2
    ((3, 4, 13, 0, 2), 0xdead_beef),           // TPIDR_EL2
    ((3, 4, 0, 0, 0), 0),                      // VPIDR_EL2
    ((3, 4, 0, 0, 5), 0x00ff_ffff),            // VMPIDR_EL2
    ((3, 4, 14, 0, 3), 0x1234_5678_9abc),      // CNTVOFF_EL2
    ((3, 4, 14, 1, 0), 0xfc),                  // CNTHCTL_EL2
    ((3, 4, 14, 2, 2), 0),                     // CNTHP_CVAL_EL2
    ((3, 4, 14, 2, 1), 1),                     // CNTHP_CTL_EL2: fires
    ((3, 3, 14, 3, 2), 0),                     // CNTV_CVAL_EL0
    ((3, 3, 14, 3, 1), 1),                     // CNTV_CTL_EL0: fires
    ((3, 3, 14, 2, 2), 0),                     // CNTP_CVAL_EL0
    ((3, 3, 14, 2, 1), 1),                     // CNTP_CTL_EL0: fires
    ((2, 0, 0, 2, 2), 0xa000),                 // MDSCR_EL1
    ((3, 0, 1, 0, 0), 0x30d0_198d),            // SCTLR_EL1: MMU on
    ((3, 0, 1, 0, 2), 0),                      // CPACR_EL1
    ((3, 0, 2, 0, 0), 0x00de_ad00_0000),       // TTBR0_EL1
    ((3, 0, 2, 0, 1), 0x00de_ad00_0000),       // TTBR1_EL1
    ((3, 0, 2, 0, 2), 0x0000_0005_b510_3510),  // TCR_EL1
    ((3, 0, 10, 2, 0), 0x4444_4444_4444_4444), // MAIR_EL1
    ((3, 0, 12, 0, 0), 0xdead_0800),           // VBAR_EL1
    ((3, 0, 14, 1, 0), u32::MAX as u64),       // CNTKCTL_EL1
    ((3, 3, 13, 0, 2), 0xdead_beef),           // TPIDR_EL0
    ((3, 4, 1, 1, 0), 0x0fff_fffe),            // HCR_EL2, last: TGE and every trap
];

/// A GICv3's, which exist as registers only there. The first makes the others accessible, the last takes that back.
const POISON_GICV3: [(Register, u64); 9] = [
    ((3, 4, 12, 9, 5), 0xf),                    // ICC_SRE_EL2
    ((3, 4, 12, 11, 7), u32::MAX as u64),       // ICH_VMCR_EL2
    ((3, 4, 12, 9, 0), u32::MAX as u64),        // ICH_AP1R0_EL2
    ((3, 4, 12, 12, 0), 0x5000_0000_0000_001b), // ICH_LR0_EL2: a timer interrupt that nobody raised
    ((3, 4, 12, 12, 1), 0x5000_0000_0000_0020), // ICH_LR1_EL2
    ((3, 4, 12, 11, 0), 0xff),                  // ICH_HCR_EL2
    ((3, 0, 4, 6, 0), 0),                       // ICC_PMR_EL1
    ((3, 0, 12, 12, 7), 0),                     // ICC_IGRPEN1_EL1
    ((3, 4, 12, 9, 5), 0),                      // ICC_SRE_EL2
];

/// `isb`.
const ISB: u32 = 0xd503_3fdf;
/// `msr spsel, #0`.
const SPSEL_0: u32 = 0xd500_40bf;

/// `movz`/`movk x1, #half, lsl #(16 * shift)`.
fn load_half(half: u16, shift: u32, keep: bool) -> u32 {
    (if keep { 0xf280_0000 } else { 0xd280_0000 }) | shift << 21 | u32::from(half) << 5 | 1
}

/// `msr <register>, x1` (Arm ARM C6.2.228).
fn write_x1((op0, op1, crn, crm, op2): Register) -> u32 {
    0xd510_0000 | (op0 - 2) << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | 1
}

/// The image with the piece in front, under an image header of its own.
fn poisoned(image: &[u8], gicv3: bool) -> Outcome<Vec<u8>> {
    let mut code = Vec::new();
    let system_registers = if gicv3 { &POISON_GICV3[..] } else { &[] };
    for (register, value) in system_registers.iter().chain(&POISON) {
        for (shift, half) in (0..4).zip(value.to_le_bytes().chunks_exact(2)) {
            code.push(load_half(u16::from_le_bytes([half[0], half[1]]), shift, shift != 0));
        }
        code.extend([write_x1(*register), ISB]);
    }
    code.push(SPSEL_0);
    // Header: a branch over itself, and the fields that say how large the whole is (Linux booting.rst, section 4).
    let size = image.get(16..24).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    let mut front = vec![0; 64];
    front[..4].copy_from_slice(&(0x1400_0000_u32 | 16).to_le_bytes());
    front[16..24].copy_from_slice(&(size + FRONT as u64).to_le_bytes());
    front[24..32].copy_from_slice(&10_u64.to_le_bytes());
    front[56..60].copy_from_slice(b"ARM\x64");
    front.extend(code.iter().flat_map(|word| word.to_le_bytes()));
    let words = u32::try_from((FRONT - front.len()) / 4).unwrap_or(0);
    front.extend((0x1400_0000 | words).to_le_bytes());
    if front.len() > FRONT {
        return Err(Failure::failed("the piece in front of the image is too long"));
    }
    front.resize(FRONT, 0);
    front.extend_from_slice(image);
    Ok(front)
}

fn survives(board: &str, gic: u32, cpu: Option<&str>) -> Outcome<Found> {
    let mut options = Options::for_file(run::shipped("two-guests"));
    options.board = Some(board.into());
    if board == "virt" {
        (options.gic, options.cpu) = (Some(gic), cpu.map(str::to_owned));
    }
    build::some(&setup::toolchain()?, &options.load()?.guests())?;
    let image = poisoned(&workspace::read(&workspace::pavo_img())?, gic == 3)?;
    let file = workspace::pavo().join("test").join(format!("poisoned-{board}-{gic}.img"));
    workspace::write(&file, &image)?;
    let observed = systems::observe_on(&Hypervisor::changed(file), &options)?;
    let behind = |line: &String| line.contains("EL2 at 0x40210000,") || line.contains("EL2 at 0x210000,");
    if !observed.log.iter().any(behind) {
        return Err(observed.failed("the image did not run behind the piece in front of it"));
    }
    systems::clean(&observed)
}

/// All steps of this file.
pub(super) fn all() -> Vec<Step> {
    let on = |name: &str, board: &'static str, gic: u32, cpu: Option<&'static str>| {
        let title = format!("boot: nonsense in every register at entry, {name}");
        Step::new(title, Level::Default, move || survives(board, gic, cpu))
    };
    vec![
        on("Cortex-A72, GICv2", "virt", 2, None),
        on("Cortex-A72, GICv3", "virt", 3, None),
        on("max, GICv3", "virt", 3, Some("max")),
        super::rpi4::step("nonsense in every register at entry", Level::Default, || {
            survives("rpi4", 2, None)
        }),
    ]
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::workspace;

    /// Whether a register does harm may depend on the model of the CPU; that it is written does not.
    #[test]
    fn every_el2_register_that_is_poisoned_is_written_by_the_image() {
        let code = |file: &str| fs::read_to_string(workspace::root().join(file)).unwrap();
        let own = code("xtask/src/test/poison.rs");
        let (_, list) = own.split_once("const POISON: ").unwrap();
        let (list, _) = list.split_once("];").unwrap();
        let names: Vec<_> = list
            .lines()
            .filter_map(|line| line.split_once("// ")?.1.split([':', ',']).next())
            .filter(|name| name.ends_with("_EL2"))
            .map(str::to_lowercase)
            .collect();
        assert!(names.len() >= 20, "{names:?}");
        let assembly = code("hypervisor/src/el2/boot.S");
        let files =
            ["context.rs", "percpu.rs", "timer.rs"].map(|file| code(&format!("hypervisor/src/el2/{file}")));
        // What both use stands in front of the way of the first CPU, and that of the others behind it.
        let (common, rest) = assembly.split_once("\nprimary_start:").unwrap();
        let (first, others) = rest.split_once("\nsecondary_start:").unwrap();
        for name in names {
            let by_rust = files.iter().any(|file| file.contains(&format!("regs::{name}::write(")));
            let writes = |part: &str| part.contains(&format!("msr     {name}, "));
            assert!(by_rust || writes(common) || writes(first) && writes(others), "{name}");
        }
    }
}
