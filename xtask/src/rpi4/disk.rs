//! An image of the whole SD card: a partition table and one FAT32 partition. Made and read without the operating system's help.

use std::collections::BTreeMap;
use std::io::{Cursor, Read as _, Seek as _, SeekFrom, Write as _};

use fatfs::{Date, DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};
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

/// Sector of the copy of the first one (FAT specification 3.1).
const BACKUP: usize = 6;
/// Bytes of a folder's entry.
const ENTRY: usize = 32;
/// An entry's attribute: a folder.
const FOLDER: u8 = 0x10;
/// First byte of an entry that is free.
const FREE: u8 = 0xe5;

/// The earliest day that the format knows, so that the same files make the same image.
#[derive(Debug)]
struct FirstDay;

impl TimeProvider for FirstDay {
    fn get_current_date(&self) -> Date {
        Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: self.get_current_date(), time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

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
        // Beyond what cylinders, heads and sectors can say: readers take the sector's number.
        first_chs: CHS::new(1023, 254, 63),
        sys: PARTITION_TYPE,
        last_chs: CHS::new(1023, 254, 63),
        starting_lba: u32::try_from(FIRST).doing("start of the partition")?,
        sectors: u32::try_from(sectors).doing("the card is too large")?,
    };
    table.write_into(&mut disk).doing("cannot write the partition table")?;
    let end = (FIRST + sectors) * SECTOR;
    let mut partition = StreamSlice::new(&mut disk, FIRST * SECTOR, end).doing("the partition")?;
    let options = FormatVolumeOptions::new().fat_type(FatType::Fat32).volume_label(*b"PAVO       ");
    fatfs::format_volume(&mut partition, options).doing("cannot format the partition")?;
    partition.seek(SeekFrom::Start(0)).doing("the partition")?;
    let options = FsOptions::new().time_provider(&FirstDay);
    let files = FileSystem::new(&mut partition, options).doing("the new file system")?;
    for (name, bytes) in &content.files {
        if let Some((folder, _)) = name.rsplit_once('/') {
            files.root_dir().create_dir(folder).doing(format_args!("cannot make {folder}"))?;
        }
        let mut file = files.root_dir().create_file(name).doing(format_args!("cannot make {name}"))?;
        file.write_all(bytes).doing(format_args!("cannot write {name}"))?;
    }
    // Counts what is free, and so writes it down.
    files.stats().doing("cannot count the free clusters")?;
    files.unmount().doing("cannot finish the file system")?;
    let mut disk = disk.into_inner();
    let start = usize::try_from(FIRST * SECTOR).doing("start of the partition")?;
    let mended = disk.get_mut(start..).and_then(mend);
    mended.ok_or_else(|| Failure::failed("the new file system is not as the format says"))?;
    Ok(disk)
}

/// Corrects what fatfs 0.3 leaves short of the format (Microsoft's FAT specification): how many sectors lie before the partition (3.1), and of
/// each folder in the root the entries `.` and `..`, which must be its first two, without long names, and say 0 for the root's cluster
/// (6.5). Some readers look for them there.
fn mend(partition: &mut [u8]) -> Option<()> {
    let word = |bytes: &[u8], at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let half = |bytes: &[u8], at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let sector = usize::try_from(SECTOR).ok()?;
    for first in [0, BACKUP * sector] {
        let hidden = u32::try_from(FIRST).ok()?.to_le_bytes();
        partition.get_mut(first + 28..first + 32)?.copy_from_slice(&hidden);
    }
    let cluster_size = usize::from(*partition.get(13)?) * sector;
    let table = usize::from(half(partition, 14)?) * sector;
    let tables = usize::from(*partition.get(16)?);
    let data = table + tables * usize::try_from(word(partition, 36)?).ok()? * sector;
    let place = |cluster: u32| Some(data + usize::try_from(cluster.checked_sub(2)?).ok()? * cluster_size);
    let (mut cluster, mut folders) = (word(partition, 44)?, Vec::new());
    while cluster < 0x0fff_fff8 {
        for entry in partition.get(place(cluster)?..)?.chunks_exact(ENTRY).take(cluster_size / ENTRY) {
            if entry[11] == FOLDER && entry[0] != FREE {
                folders.push(u32::from(half(entry, 20)?) << 16 | u32::from(half(entry, 26)?));
            }
        }
        cluster = word(partition, table + usize::try_from(cluster).ok()? * 4)? & 0x0fff_ffff;
    }
    for folder in folders {
        let start = place(folder)?;
        let entries = partition.get_mut(start..start + 4 * ENTRY)?;
        let (own, above) = (entries.get(ENTRY..2 * ENTRY)?.to_vec(), entries.get(3 * ENTRY..)?.to_vec());
        if !own.starts_with(b".  ") || !above.starts_with(b".. ") {
            return None;
        }
        entries[..ENTRY].copy_from_slice(&own);
        entries[ENTRY..2 * ENTRY].copy_from_slice(&above);
        entries[ENTRY + 20..ENTRY + 22].fill(0);
        entries[ENTRY + 26..ENTRY + 28].fill(0);
        (entries[2 * ENTRY], entries[3 * ENTRY]) = (FREE, FREE);
    }
    Some(())
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

    fn sample() -> Content {
        let large: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let files = [
            ("kernel8.img", large),
            ("config.txt", b"x".to_vec()),
            ("bcm2711-rpi-4-b.dtb", vec![7; 1025]),
            ("overlays/pavo.dtbo", b"overlay".to_vec()),
        ];
        // The root needs a second cluster: more than 16 entries of 32 bytes.
        let more = (0..9).map(|number| (format!("a file with a long name {number}.txt"), vec![number; 3]));
        let files = files.map(|(name, bytes)| (name.to_owned(), bytes));
        Content { files: files.into_iter().chain(more).collect() }
    }

    #[test]
    fn a_card_gives_back_the_files_that_were_written() {
        let content = sample();
        let disk = write(&content).unwrap();
        // The signature of a partition table, and the entry's type, where firmware looks for them.
        assert_eq!((&disk[510..512], disk[446 + 4]), (&[0x55, 0xaa][..], 0x0c));
        assert_eq!(read(disk).unwrap(), content);
    }

    fn number(bytes: &[u8]) -> usize {
        bytes.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    }

    /// A reader after Microsoft's "FAT32 File System Specification" 1.03 that knows nothing of the writer's library: short names only.
    struct Reader<'a> {
        disk: &'a [u8],
        table: usize,
        data: usize,
        cluster: usize,
    }

    impl Reader<'_> {
        /// The bytes of a chain of clusters.
        fn chain(&self, mut cluster: usize) -> Vec<u8> {
            let mut bytes = Vec::new();
            while cluster != 0 && cluster < 0x0fff_fff8 {
                let start = self.data + (cluster - 2) * self.cluster;
                bytes.extend_from_slice(&self.disk[start..start + self.cluster]);
                cluster = number(&self.disk[self.table + 4 * cluster..][..4]) & 0x0fff_ffff;
            }
            bytes
        }

        /// Short names, attributes, first clusters and sizes; without long names and free entries.
        fn folder(&self, cluster: usize) -> Vec<(String, u8, usize, usize)> {
            let bytes = self.chain(cluster);
            let entries = bytes.chunks_exact(32).take_while(|entry| entry[0] != 0);
            let used = entries.filter(|entry| entry[0] != 0xe5 && entry[11] != 0x0f);
            used.map(|entry| {
                let name = String::from_utf8_lossy(&entry[..11]).into_owned();
                let first = number(&entry[20..22]) << 16 | number(&entry[26..28]);
                (name, entry[11], first, number(&entry[28..32]))
            })
            .collect()
        }
    }

    #[test]
    fn a_reader_that_keeps_to_the_format_finds_every_file() {
        let content = sample();
        let disk = write(&content).unwrap();
        let entry = &disk[446..462];
        let (start, sectors) = (number(&entry[8..12]), number(&entry[12..16]));
        assert_eq!((start, (start + sectors) * 512), (2048, disk.len()));
        let boot = &disk[start * 512..][..512];
        assert_eq!(
            (number(&boot[11..13]), &boot[510..512], &boot[82..90]),
            (512, &[0x55, 0xaa][..], &b"FAT32   "[..])
        );
        assert_eq!((number(&boot[28..32]), number(&boot[32..36])), (start, sectors));
        assert_eq!(
            boot,
            &disk[(start + number(&boot[50..52])) * 512..][..512],
            "the copy of the boot sector"
        );
        let (reserved, tables, size) = (number(&boot[14..16]), usize::from(boot[16]), number(&boot[36..40]));
        let data = (reserved + tables * size) * 512;
        let cluster = usize::from(boot[13]) * 512;
        // What makes it FAT32 is how many clusters there are, and nothing else (3.5).
        assert!(
            (sectors * 512 - data) / cluster >= 65_525
                && size * 512 / 4 >= (sectors * 512 - data) / cluster + 2
        );
        let first = start * 512;
        assert_eq!(
            disk[first + reserved * 512..][..size * 512],
            disk[first + (reserved + size) * 512..][..size * 512]
        );
        let reader = Reader { disk: &disk[first..], table: reserved * 512, data, cluster };
        let root = reader.folder(number(&boot[44..48]));
        let find = |folder: &[(String, u8, usize, usize)], name: &str| {
            let (_, kind, cluster, size) = folder.iter().find(|(own, ..)| own == name).unwrap().clone();
            (kind, cluster, size)
        };
        let (_, cluster, size) = find(&root, "KERNEL8 IMG");
        assert_eq!(reader.chain(cluster)[..size], content.files["kernel8.img"]);
        let (kind, cluster, _) = find(&root, "OVERLAYS   ");
        assert_eq!(kind, 0x10);
        // The first two are the folder itself and the one above, which is the root: 0 (6.5).
        let raw = reader.chain(cluster);
        assert_eq!((&raw[..11], &raw[32..43]), (&b".          "[..], &b"..         "[..]));
        let folder = reader.folder(cluster);
        assert_eq!((folder[0].2, folder[1].2), (cluster, 0));
        assert_eq!(folder.len(), 3);
        assert_eq!(reader.chain(folder[2].2)[..folder[2].3], *b"overlay");
        assert_eq!(root.iter().filter(|(_, kind, ..)| kind & 0x18 == 0).count(), content.files.len() - 1);
    }
}
