//! What the image must know before the device tree is read, written into it behind its header: the UART for messages, from the board's tree, and
//! whether the stub in front of it lets EL2 set `CPUACTLR_EL1`.
//!
//! The words are `struct Early` of platform/src/uart.rs; boot.S has their place.

use crate::failure::{Failure, Outcome};
use crate::fdt::{self, Node};

/// Stands before the words.
const MARK: &[u8] = b"PAVOUART";
/// How UARTs are polled: `compatible`, offset of the status register, its bits that matter, their value when a byte can be sent.
/// Sources: PL011 TRM 3.3.3 (`UARTFR.TXFF`); BCM2711 ARM Peripherals 2.2.2 (`AUX_MU_LSR_REG`).
const UARTS: [(&str, [u32; 3]); 2] =
    [("arm,pl011", [0x18, 1 << 5, 0]), ("brcm,bcm2835-aux-uart", [0x14, 1 << 5, 1 << 5])];

/// Who enters the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stub {
    /// The firmware's own: it sets `ACTLR_EL3` so that EL2 may set `CPUACTLR_EL1` (`ACTLR_VAL` in armstubs/armstub8.S).
    Stock,
    /// Another, such as TF-A, which cares for the CPU's errata itself and may keep that register.
    Own,
}

/// Names the tree's console in the image, and says what its stub lets it do.
pub(crate) fn name(image: &mut [u8], tree: &Node, stub: Stub) -> Outcome<()> {
    let path =
        stdout(tree).ok_or_else(|| Failure::usage("machine.console: names no node of the board's tree"))?;
    let node =
        tree.at_path(&path).ok_or_else(|| Failure::usage(format!("machine.console: there is no {path}")))?;
    let list = node.get("compatible").unwrap_or_default();
    let uart = UARTS.iter().find(|(name, _)| list.split(|byte| *byte == 0).any(|own| own == name.as_bytes()));
    let (Some((_, poll)), Some(address)) =
        (uart, fdt::registers(tree, &path).and_then(|all| all.first().map(|(start, _)| *start)))
    else {
        return Err(Failure::usage(format!("machine.console: {path} is no UART that can be polled")));
    };
    let place = image.windows(MARK.len()).position(|bytes| bytes == MARK);
    let place = place.map(|place| place + MARK.len()).and_then(|start| image.get_mut(start..start + 24));
    let place = place.ok_or_else(|| Failure::failed("the image has no place for an early UART"))?;
    let (first, rest) = place.split_at_mut(8);
    first.copy_from_slice(&address.to_le_bytes());
    let may_set = u32::from(stub == Stub::Stock);
    for (slot, word) in rest.chunks_exact_mut(4).zip(poll.iter().chain([&may_set])) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    Ok(())
}

/// The path of the console's node.
pub(crate) fn stdout(tree: &Node) -> Option<String> {
    let name = tree.at_path("/chosen")?.text("stdout-path")?.split(':').next()?;
    if name.starts_with('/') {
        return Some(name.to_owned());
    }
    tree.at_path("/aliases")?.text(name).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_consoles_address_goes_through_the_ranges_of_its_bus_into_the_image() {
        let mut tree = Node::new("");
        tree.set_cells("#address-cells", &[2]).set_cells("#size-cells", &[1]);
        tree.child("chosen").set_strings("stdout-path", &["serial1:115200n8"]);
        tree.child("aliases").set_strings("serial1", &["/soc/serial@7e215040"]);
        let soc = tree.child("soc");
        soc.set_cells("#address-cells", &[1]).set_cells("#size-cells", &[1]);
        soc.set_cells(
            "ranges",
            &[0x4000_0000, 0, 0xff80_0000, 0x80_0000, 0x7e00_0000, 0, 0xfe00_0000, 0x180_0000],
        );
        let uart = soc.child("serial@7e215040");
        uart.set_strings("compatible", &["brcm,bcm2835-aux-uart"]).set_cells("reg", &[0x7e21_5040, 0x40]);
        let mut image = vec![0; 128];
        image[64..72].copy_from_slice(MARK);
        name(&mut image, &tree, Stub::Stock).unwrap();
        assert_eq!(image[72..80], 0xfe21_5040_u64.to_le_bytes());
        assert_eq!(image[80..96], [0x14, 0, 0, 0, 0x20, 0, 0, 0, 0x20, 0, 0, 0, 1, 0, 0, 0]);
        name(&mut image, &tree, Stub::Own).unwrap();
        assert_eq!(image[92..96], [0; 4]);
        tree.child("chosen").set_strings("stdout-path", &["serial7"]);
        assert_eq!(name(&mut image, &tree, Stub::Stock).unwrap_err().status(), 2);
    }
}
