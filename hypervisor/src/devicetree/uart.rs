//! The console UART: what `/chosen/stdout-path` names (specification 3.6).
use super::cells::{first_str, lists_any, split_once};
use super::error::TreeError;
use super::gic::nth_interrupt;
use super::node::Node;
use super::range::PhysRange;
use super::tree::{Path, Tree};

/// The UART that firmware chose for output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostUart<'a> {
    /// Raw `compatible`: which driver it needs.
    pub compatible: &'a [u8],
    /// Its registers, as CPU physical addresses.
    pub registers: PhysRange,
    /// INTID of its interrupt.
    pub interrupt: Option<u32>,
    /// Speed in baud where the path's options give one.
    pub baud: Option<u32>,
}

impl<'a> HostUart<'a> {
    /// Whether `compatible` lists this.
    pub fn is_compatible(&self, wanted: &str) -> bool {
        lists_any(self.compatible, &[wanted])
    }

    /// Finds the UART that `chosen` names, directly or by an alias; none when it names nothing that is a device.
    pub(super) fn find(
        tree: &Tree<'a>,
        chosen: Node<'a>,
        aliases: Option<Node<'a>>,
        interrupt_cells: u32,
    ) -> Result<Option<Self>, TreeError> {
        let stdout = match chosen.str("stdout-path")? {
            Some(text) => text,
            None => match chosen.str("linux,stdout-path")? {
                Some(text) => text,
                None => return Ok(None),
            },
        };
        let (target, options) = split_once(stdout, b':');
        let target = if target.starts_with('/') {
            target
        } else {
            match aliases.map(|node| node.bytes(target)).transpose()?.flatten().and_then(first_str) {
                Some(path) => path,
                None => return Ok(None),
            }
        };
        let mut walk = tree.walk()?;
        while let Some(place) = walk.step()? {
            if place.matches(target)? {
                return Self::read(place, options.and_then(baud), interrupt_cells);
            }
        }
        Ok(None)
    }

    fn read(path: Path<'_, 'a>, baud: Option<u32>, interrupt_cells: u32) -> Result<Option<Self>, TreeError> {
        let node = path.node()?;
        let Some(compatible) = node.bytes("compatible")? else { return Ok(None) };
        let Some(registers) = path.reg(0)? else { return Ok(None) };
        let interrupt = node.bytes("interrupts")?.and_then(|value| nth_interrupt(value, interrupt_cells, 0));
        Ok(Some(Self { compatible, registers, interrupt, baud }))
    }
}

/// The speed in options such as `115200n8`.
fn baud(options: &str) -> Option<u32> {
    let end = options.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(options.len());
    let digits = options.get(..end)?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::baud;

    #[test]
    fn the_speed_is_the_leading_number_of_the_options() {
        assert_eq!(baud("115200n8"), Some(115_200));
        assert_eq!(baud("9600"), Some(9600));
        assert_eq!(baud("n8"), None);
        assert_eq!(baud("99999999999"), None);
    }
}
