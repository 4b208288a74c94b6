//! An image of the whole SD card: a partition table and one FAT32 partition. Made and read without the operating system's help.

use std::collections::BTreeMap;
use std::io::{Cursor, Read as _, Seek as _, SeekFrom, Write as _};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use fscommon::StreamSlice;
use mbrman::{CHS, MBR, MBRPartitionEntry};

use super::content::Content;
use crate::failure::{Doing, Failure, Outcome};

const SECTOR: u64 = 512;
/// Where partitions start on cards, in sectors: 1 MiB.
const FIRST: u64 = 2048;
/// FAT32 with a logical block address: what the board's boot loader looks for.
const PARTITION_TYPE: u8 = 0x0c;
/// Room beside the files for the firmware's own and what a user adds; also makes it large enough for FAT32.
const ROOM: u64 = 64 << 20;

/// An image of a card with these files.
pub(crate) fn write(content: &Content) -> Outcome<Vec<u8>> {
    let bytes = content.files.values().map(|bytes| bytes.len() as u64).sum::<u64>() + ROOM;
    let sectors = (bytes / SECTOR).next_multiple_of(FIRST);
    let size = usize::try_from((FIRST + sectors) * SECTOR).doing("the card's size")?;
    let mut disk = Cursor::new(vec![0; size]);
    let mut table = MBR::new_from(&mut disk, u32::try_from(SECTOR).doing("sector")?, *b"PAVO")
        .doing("cannot make a partition table")?;
    table[1] = MBRPartitionEntry {
        boot: mbrman::BOOT_INACTIVE,
        first_chs: CHS::empty(),
        sys: PARTITION_TYPE,
        last_chs: CHS::empty(),
        starting_lba: u32::try_from(FIRST).doing("start of the partition")?,
        sectors: u32::try_from(sectors).doing("the card is too large")?,
    };
    table.write_into(&mut disk).doing("cannot write the partition table")?;
    let end = (FIRST + sectors) * SECTOR;
    let mut partition = StreamSlice::new(&mut disk, FIRST * SECTOR, end).doing("the partition")?;
    let options = FormatVolumeOptions::new().fat_type(FatType::Fat32).volume_label(*b"PAVO       ");
    fatfs::format_volume(&mut partition, options).doing("cannot format the partition")?;
    partition.seek(SeekFrom::Start(0)).doing("the partition")?;
    let files = FileSystem::new(&mut partition, FsOptions::new()).doing("the new file system")?;
    for (name, bytes) in &content.files {
        if let Some((folder, _)) = name.rsplit_once('/') {
            files.root_dir().create_dir(folder).doing(format_args!("cannot make {folder}"))?;
        }
        let mut file = files.root_dir().create_file(name).doing(format_args!("cannot make {name}"))?;
        file.write_all(bytes).doing(format_args!("cannot write {name}"))?;
    }
    files.unmount().doing("cannot finish the file system")?;
    Ok(disk.into_inner())
}

/// The files of a card's first partition.
pub(crate) fn read(disk: Vec<u8>) -> Outcome<Content> {
    let mut disk = Cursor::new(disk);
    let table =
        MBR::read_from(&mut disk, u32::try_from(SECTOR).doing("sector")?).doing("no partition table")?;
    let entry = &table[1];
    if entry.sys != PARTITION_TYPE {
        return Err(Failure::failed("the first partition is not FAT32"));
    }
    let start = u64::from(entry.starting_lba) * SECTOR;
    let end = start + u64::from(entry.sectors) * SECTOR;
    let mut partition = StreamSlice::new(&mut disk, start, end).doing("the partition")?;
    let system = FileSystem::new(&mut partition, FsOptions::new()).doing("no file system")?;
    let mut files = BTreeMap::new();
    let mut folders = vec![(String::new(), system.root_dir())];
    while let Some((path, folder)) = folders.pop() {
        for entry in folder.iter() {
            let entry = entry.doing("a damaged folder")?;
            let name = entry.file_name();
            let full = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            if entry.is_file() {
                let mut bytes = Vec::new();
                entry.to_file().read_to_end(&mut bytes).doing(format_args!("cannot read {full}"))?;
                files.insert(full, bytes);
            } else if name != "." && name != ".." {
                folders.push((full, entry.to_dir()));
            }
        }
    }
    Ok(Content { files })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_gives_back_the_files_that_were_written() {
        let large: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let files =
            [("kernel8.img", large), ("config.txt", b"x".to_vec()), ("overlays/pavo.dtbo", Vec::new())];
        let content = Content { files: files.map(|(name, bytes)| (name.to_owned(), bytes)).into() };
        let disk = write(&content).unwrap();
        // The signature of a partition table, and the entry's type, where firmware looks for them.
        assert_eq!((&disk[510..512], disk[446 + 4]), (&[0x55, 0xaa][..], 0x0c));
        assert_eq!(read(disk).unwrap(), content);
    }
}
