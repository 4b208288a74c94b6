//! Writes a flattened device tree of version 17 into a buffer (specification 5).
//!
//! 1. Nothing is written past the buffer: what does not fit is [`NoSpace`], after which the writer is to be dropped.
//! 2. Every node that was begun is ended: [`FdtWriter::finish`] ends what is still open.
//!
//! Layout: header, empty reservation block, structure block, strings block.
use heapless::Vec;

/// The buffer, or the room for names, is too small.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoSpace;

const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
const LAST_COMPATIBLE_VERSION: u32 = 16;
const HEADER_BYTES: usize = 40;
/// The reservation block's terminating entry.
const RESERVATION_BYTES: usize = 16;
const STRUCT_OFFSET: usize = HEADER_BYTES + RESERVATION_BYTES;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const END: u32 = 9;
/// Room for the names of properties, each held once.
const NAMES_BYTES: usize = 512;
/// Names that are looked for; those behind them are written again each time.
const KNOWN_NAMES: usize = 64;

/// A tree in the making. Properties of a node come before its children.
pub struct FdtWriter<'b> {
    buffer: &'b mut [u8],
    used: usize,
    open_nodes: u32,
    names: Vec<u8, NAMES_BYTES>,
    /// Where each name begins, and its length.
    known: Vec<(u16, u16), KNOWN_NAMES>,
}

impl<'b> FdtWriter<'b> {
    /// Starts a tree in `buffer`; the first node to begin is the root, with an empty name.
    ///
    /// # Errors
    /// [`NoSpace`]: so for all the methods below.
    pub fn new(buffer: &'b mut [u8]) -> Result<Self, NoSpace> {
        let head = buffer.get_mut(..STRUCT_OFFSET).ok_or(NoSpace)?;
        head.fill(0);
        Ok(Self { buffer, used: STRUCT_OFFSET, open_nodes: 0, names: Vec::new(), known: Vec::new() })
    }

    /// Begins a node.
    ///
    /// # Errors
    /// [`NoSpace`].
    #[inline(never)]
    pub fn begin_node(&mut self, name: &str) -> Result<(), NoSpace> {
        self.begin(name, None)
    }

    /// Begins node `name@unit`, the unit address in hexadecimal.
    ///
    /// # Errors
    /// [`NoSpace`].
    #[inline(never)]
    pub fn begin_node_at(&mut self, name: &str, unit: u64) -> Result<(), NoSpace> {
        self.begin(name, Some(unit))
    }

    /// Begins node `name@unit`, or `name` alone, as another tree has it.
    #[inline(never)]
    pub(super) fn begin_node_named(&mut self, name: &str, unit: Option<&str>) -> Result<(), NoSpace> {
        self.put(&BEGIN_NODE.to_be_bytes())?;
        self.put(name.as_bytes())?;
        if let Some(unit) = unit {
            self.put(b"@")?;
            self.put(unit.as_bytes())?;
        }
        self.opened()
    }

    #[inline(never)]
    fn begin(&mut self, name: &str, unit: Option<u64>) -> Result<(), NoSpace> {
        self.put(&BEGIN_NODE.to_be_bytes())?;
        self.put(name.as_bytes())?;
        if let Some(unit) = unit {
            self.put(b"@")?;
            self.put_hexadecimal(unit)?;
        }
        self.opened()
    }

    /// Ends a node's name.
    fn opened(&mut self) -> Result<(), NoSpace> {
        self.put(&[0])?;
        self.align()?;
        self.open_nodes = self.open_nodes.checked_add(1).ok_or(NoSpace)?;
        Ok(())
    }

    /// Ends the node begun last; without one, nothing happens.
    ///
    /// # Errors
    /// [`NoSpace`].
    #[inline(never)]
    pub fn end_node(&mut self) -> Result<(), NoSpace> {
        let Some(open) = self.open_nodes.checked_sub(1) else { return Ok(()) };
        self.put(&END_NODE.to_be_bytes())?;
        self.open_nodes = open;
        Ok(())
    }

    /// A property with a raw value.
    ///
    /// # Errors
    /// [`NoSpace`].
    #[inline(never)]
    pub fn property(&mut self, name: &str, value: &[u8]) -> Result<(), NoSpace> {
        self.header_of(name, value.len())?;
        self.put(value)?;
        self.align()
    }

    /// A property that is there or not.
    ///
    /// # Errors
    /// [`NoSpace`].
    #[inline(never)]
    pub fn property_empty(&mut self, name: &str) -> Result<(), NoSpace> {
        self.property(name, &[])
    }

    /// A property of one cell.
    ///
    /// # Errors
    /// [`NoSpace`].
    #[inline(never)]
    pub fn property_u32(&mut self, name: &str, value: u32) -> Result<(), NoSpace> {
        self.property(name, &value.to_be_bytes())
    }

    /// A property of two cells, the high one first.
    ///
    /// # Errors
    /// [`NoSpace`].
    #[inline(never)]
    pub fn property_u64(&mut self, name: &str, value: u64) -> Result<(), NoSpace> {
        self.property(name, &value.to_be_bytes())
    }

    /// A property of any number of cells.
    ///
    /// # Errors
    /// [`NoSpace`].
    #[inline(never)]
    pub fn property_cells(&mut self, name: &str, cells: &[u32]) -> Result<(), NoSpace> {
        self.header_of(name, cells.len().checked_mul(4).ok_or(NoSpace)?)?;
        cells.iter().try_for_each(|cell| self.put(&cell.to_be_bytes()))
    }

    /// A property of numbers of two cells each: a `reg` where both cell counts are 2.
    ///
    /// # Errors
    /// [`NoSpace`].
    #[inline(never)]
    pub fn property_u64s(&mut self, name: &str, numbers: &[u64]) -> Result<(), NoSpace> {
        self.header_of(name, numbers.len().checked_mul(8).ok_or(NoSpace)?)?;
        numbers.iter().try_for_each(|number| self.put(&number.to_be_bytes()))
    }

    /// A property of ranges, each an address and a size of two cells.
    ///
    /// # Errors
    /// [`NoSpace`].
    #[inline(never)]
    pub fn property_ranges(&mut self, name: &str, ranges: &[(u64, u64)]) -> Result<(), NoSpace> {
        self.header_of(name, ranges.len().checked_mul(16).ok_or(NoSpace)?)?;
        ranges.iter().try_for_each(|(start, size)| {
            self.put(&start.to_be_bytes())?;
            self.put(&size.to_be_bytes())
        })
    }

    /// A property of one string.
    ///
    /// # Errors
    /// [`NoSpace`].
    #[inline(never)]
    pub fn property_str(&mut self, name: &str, text: &str) -> Result<(), NoSpace> {
        self.property_text(name, text.as_bytes())
    }

    /// A property of one string in whatever encoding; what follows a zero byte is left out.
    ///
    /// # Errors
    /// [`NoSpace`].
    #[inline(never)]
    pub fn property_text(&mut self, name: &str, text: &[u8]) -> Result<(), NoSpace> {
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        self.header_of(name, text.len().checked_add(1).ok_or(NoSpace)?)?;
        self.put(text)?;
        self.put(&[0])?;
        self.align()
    }

    /// A property of several strings.
    ///
    /// # Errors
    /// [`NoSpace`].
    #[inline(never)]
    pub fn property_strs(&mut self, name: &str, texts: &[&str]) -> Result<(), NoSpace> {
        let bytes = texts.iter().try_fold(0usize, |sum, text| sum.checked_add(text.len())?.checked_add(1));
        self.header_of(name, bytes.ok_or(NoSpace)?)?;
        for text in texts {
            self.put(text.as_bytes())?;
            self.put(&[0])?;
        }
        self.align()
    }

    /// Ends all nodes, adds the names and the header; gives the tree's length in bytes.
    ///
    /// # Errors
    /// [`NoSpace`].
    #[inline(never)]
    pub fn finish(mut self) -> Result<usize, NoSpace> {
        while self.open_nodes != 0 {
            self.end_node()?;
        }
        self.put(&END.to_be_bytes())?;
        let strings = self.used;
        let names = core::mem::take(&mut self.names);
        self.put(&names)?;
        let total = self.used;
        let header = [
            MAGIC,
            offset(total)?,
            offset(STRUCT_OFFSET)?,
            offset(strings)?,
            offset(HEADER_BYTES)?,
            VERSION,
            LAST_COMPATIBLE_VERSION,
            0,
            offset(names.len())?,
            offset(strings.checked_sub(STRUCT_OFFSET).ok_or(NoSpace)?)?,
        ];
        self.used = 0;
        header.iter().try_for_each(|word| self.put(&word.to_be_bytes()))?;
        Ok(total)
    }

    /// The start of a property whose value has `length` bytes.
    #[inline(never)]
    fn header_of(&mut self, name: &str, length: usize) -> Result<(), NoSpace> {
        let name = self.name_offset(name)?;
        self.put(&PROP.to_be_bytes())?;
        self.put(&offset(length)?.to_be_bytes())?;
        self.put(&name.to_be_bytes())
    }

    /// Where `name` is in the strings block; it is added if it is new. Names are told apart by their lengths first: most are.
    fn name_offset(&mut self, name: &str) -> Result<u32, NoSpace> {
        let wanted = name.as_bytes();
        for (start, length) in &self.known {
            let start = usize::from(*start);
            if usize::from(*length) == wanted.len()
                && self.names.get(start..).is_some_and(|names| names.starts_with(wanted))
            {
                return offset(start);
            }
        }
        let new = self.names.len();
        self.names.extend_from_slice(wanted).map_err(|_| NoSpace)?;
        self.names.push(0).map_err(|_| NoSpace)?;
        let entry = u16::try_from(new).ok().zip(u16::try_from(wanted.len()).ok()).ok_or(NoSpace)?;
        let _no_room = self.known.push(entry);
        offset(new)
    }

    #[inline(never)]
    fn put(&mut self, bytes: &[u8]) -> Result<(), NoSpace> {
        let end = self.used.checked_add(bytes.len()).ok_or(NoSpace)?;
        let place = self.buffer.get_mut(self.used..end).ok_or(NoSpace)?;
        for (to, from) in place.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.used = end;
        Ok(())
    }

    /// Zeros up to the next multiple of four.
    fn align(&mut self) -> Result<(), NoSpace> {
        while !self.used.is_multiple_of(4) {
            self.put(&[0])?;
        }
        Ok(())
    }

    /// `number` in lower-case hexadecimal without leading zeros.
    fn put_hexadecimal(&mut self, number: u64) -> Result<(), NoSpace> {
        let digits = 16u32.saturating_sub(number.leading_zeros() >> 2).max(1);
        for position in (0..digits).rev() {
            let nibble = number.wrapping_shr(position << 2) & 0xf;
            let digit =
                u32::try_from(nibble).ok().and_then(|nibble| char::from_digit(nibble, 16)).ok_or(NoSpace)?;
            self.put(digit.encode_utf8(&mut [0; 4]).as_bytes())?;
        }
        Ok(())
    }
}

/// A length or offset as the format holds it.
fn offset(bytes: usize) -> Result<u32, NoSpace> {
    u32::try_from(bytes).map_err(|_| NoSpace)
}

#[cfg(test)]
mod tests;
