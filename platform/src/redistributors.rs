//! The redistributors of a `GICv3` or `GICv4` in their region: which is whose. Arm IHI 0069, 12.10: each begins with its RD frame; `GICR_TYPER` is
//! at 0x8 and says whose it is (Aff3 to Aff0, bits 63:32), whether it is the region's last (4), and whether frames for virtual LPIs
//! follow (`VLPIS`, 1), which a `GICv4` has and which double its size.

/// Bytes of a redistributor without the frames of virtual LPIs: RD and SGI.
const SIZE: usize = 0x2_0000;
const LAST: u64 = 1 << 4;
const VLPIS: u64 = 1 << 1;

/// Where in a region of `size` bytes the redistributor of the CPU with this `MPIDR_EL1` begins; `typer` reads the `GICR_TYPER` of the one at an
/// offset.
pub(crate) fn find(size: usize, mpidr: u64, typer: impl Fn(usize) -> u64) -> Option<usize> {
    // GICR_TYPER has Aff3 beside Aff2, MPIDR_EL1 has a gap.
    let affinity = mpidr & 0xff_ffff | (mpidr >> 32 & 0xff) << 24;
    let mut at = 0_usize;
    // Bounded by the region's size.
    while at.checked_add(SIZE)? <= size {
        let found = typer(at);
        if found >> 32 == affinity {
            return Some(at);
        }
        if found & LAST != 0 {
            return None;
        }
        let size = if found & VLPIS == 0 { SIZE } else { SIZE.wrapping_mul(2) };
        at = at.checked_add(size)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Redistributors one behind the other: affinity and flags of each, by the offset that the architecture gives it.
    fn region(all: &'static [(usize, u64)]) -> impl Fn(usize) -> u64 {
        |at| {
            all.iter()
                .find(|(offset, _)| *offset == at)
                .map_or_else(|| panic!("none at {at:#x}"), |(_, typer)| *typer)
        }
    }

    #[test]
    fn a_gicv3s_are_128_kib_apart_and_a_gicv4s_256() {
        let three = region(&[(0, 0), (0x2_0000, 1 << 32), (0x4_0000, 2 << 32 | LAST)]);
        assert_eq!(find(0x6_0000, 0x8000_0002, three), Some(0x4_0000));
        let four = region(&[(0, VLPIS), (0x4_0000, 1 << 32 | VLPIS), (0x8_0000, 2 << 32 | VLPIS | LAST)]);
        assert_eq!(find(0xc_0000, 0x8000_0002, four), Some(0x8_0000));
    }

    #[test]
    fn all_affinity_fields_count_and_the_search_ends_with_the_last_or_the_region() {
        let all = region(&[(0, 0x0403_0201 << 32), (0x2_0000, 0x0503_0201 << 32 | LAST)]);
        assert_eq!(find(0x10_0000, 0x05_8003_0201, &all), Some(0x2_0000));
        assert_eq!(find(0x10_0000, 0x06_8003_0201, &all), None);
        assert_eq!(find(0x3_ffff, 0x05_8003_0201, region(&[(0, 0)])), None);
        assert_eq!(find(0, 0, region(&[])), None);
    }
}
