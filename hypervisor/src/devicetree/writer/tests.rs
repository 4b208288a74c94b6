use super::*;

/// A cell at byte `place`.
fn cell(bytes: &[u8], place: usize) -> u32 {
    u32::from_be_bytes(bytes[place..place + 4].try_into().unwrap())
}

fn small(buffer: &mut [u8]) -> Result<usize, NoSpace> {
    let mut tree = FdtWriter::new(buffer)?;
    tree.begin_node("")?;
    tree.property_u32("a", 7)?;
    tree.begin_node_at("m", 0x2_0000_0000)?;
    tree.property_strs("ab", &["x", "yz"])?;
    tree.property_u32("a", 8)?;
    tree.property_empty("e")?;
    tree.end_node()?;
    tree.end_node()?;
    tree.finish()
}

#[test]
fn the_bytes_are_those_of_the_format() {
    let mut buffer = [0xaa; 256];
    let length = small(&mut buffer).unwrap();
    #[rustfmt::skip]
    let structure: [u32; 24] = [
        1, 0,                                             // root, empty name
        3, 4, 0, 7,                                       // "a" at 0
        1, 0x6d40_3230, 0x3030_3030, 0x3030_3000,         // "m@200000000"
        3, 5, 2, 0x7800_797a, 0,                          // "ab" at 2, "x\0yz\0"
        3, 4, 0, 8,
        3, 0, 5,                                          // "e" at 5
        2, 2,
    ];
    let words: Vec<u32, 32> = (0..24).map(|n| cell(&buffer, 56 + 4 * n)).collect();
    assert_eq!(words[..], structure[..]);
    assert_eq!(cell(&buffer, 56 + 96), 9);
    assert_eq!(&buffer[156..length], b"a\0ab\0e\0");
    let header: Vec<u32, 10> = (0..10).map(|n| cell(&buffer, 4 * n)).collect();
    assert_eq!(header[..], [0xd00d_feed, 163, 56, 156, 40, 17, 16, 0, 7, 100]);
    assert_eq!(buffer[40..56], [0; 16]);
    assert!(buffer[length..].iter().all(|byte| *byte == 0xaa));
}

#[test]
fn every_buffer_that_is_too_small_is_refused_and_nothing_written_behind_it() {
    let needed = small(&mut [0; 256]).unwrap();
    for size in 0..needed {
        let mut buffer = [0x55; 256];
        assert_eq!(small(&mut buffer[..size]), Err(NoSpace));
        assert!(buffer[size..].iter().all(|byte| *byte == 0x55));
    }
    assert_eq!(small(&mut [0; 256][..needed]), Ok(needed));
}

#[test]
fn names_beyond_the_room_for_them_are_refused() {
    let mut buffer = [0; 4096];
    let mut tree = FdtWriter::new(&mut buffer).unwrap();
    tree.begin_node("").unwrap();
    let name = "n".repeat(NAMES_BYTES);
    assert_eq!(tree.property_empty(&name), Err(NoSpace));
    let fits = "n".repeat(NAMES_BYTES - 1);
    let mut tree = FdtWriter::new(&mut buffer).unwrap();
    assert_eq!(tree.property_empty(&fits), Ok(()));
}

#[test]
fn finish_ends_open_nodes_and_a_surplus_end_does_nothing() {
    let mut buffer = [0; 256];
    let mut tree = FdtWriter::new(&mut buffer).unwrap();
    tree.begin_node("").unwrap();
    tree.begin_node("a").unwrap();
    let open = tree.finish().unwrap();
    let mut other = [0; 256];
    let mut tree = FdtWriter::new(&mut other).unwrap();
    tree.begin_node("").unwrap();
    tree.begin_node("a").unwrap();
    for _ in 0..5 {
        tree.end_node().unwrap();
    }
    assert_eq!(tree.finish(), Ok(open));
    assert_eq!(buffer, other);
}

#[test]
fn a_name_is_held_once_and_one_that_begins_like_another_is_another() {
    let mut buffer = [0; 2048];
    let mut tree = FdtWriter::new(&mut buffer).unwrap();
    tree.begin_node("").unwrap();
    for _ in 0..3 {
        for name in ["reg", "regs", "re", "ranges"] {
            tree.property_empty(name).unwrap();
        }
    }
    let length = tree.finish().unwrap();
    let strings = usize::try_from(cell(&buffer, 12)).unwrap();
    assert_eq!(&buffer[strings..length], b"reg\0regs\0re\0ranges\0");
}
