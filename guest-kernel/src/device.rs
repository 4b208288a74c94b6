//! Devices of the machine's own that belong to this domain: the first one below `/passthrough` in its tree.
pub use crate::mmio::Registers;
use crate::paging;
use crate::tree::Region;

/// The range cannot be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotMapped;

/// Maps a range of device registers.
///
/// # Errors
/// [`NotMapped`]: it overlaps memory, or there is no room for tables.
pub fn map(region: Region) -> Result<Registers, NotMapped> {
    paging::map_device(region).map_err(|_| NotMapped)?;
    let (start, size) = (usize::try_from(region.start), usize::try_from(region.size));
    Ok(Registers::new(start.map_err(|_| NotMapped)?, size.map_err(|_| NotMapped)?))
}
