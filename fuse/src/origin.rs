//! The kernel overlay's record of where a copied-up file came from (`overlay.origin`).
//!
//! Bytes: version 0, magic 0xfb, length of the whole record, flags, handle type, file
//! system uuid, file handle. Flags: bit 0 big endian, bit 1 any byte order, bit 2 handle
//! of an upper (`overlay.upper` has it, `overlay.origin` not). A handle is in the byte
//! order of the machine that made it; a record of the other order is unknown, as to the
//! kernel. In the index directory the record's lower-case hex is the name of an entry.

use crate::sys::Stat;

const VERSION: u8 = 0;
const MAGIC: u8 = 0xfb;
const BIG_ENDIAN: u8 = 1;
const ANY_ENDIAN: u8 = 1 << 1;
const UPPER: u8 = 1 << 2;
/// What this machine's handles are.
const CPU_ENDIAN: u8 = if cfg!(target_endian = "big") { BIG_ENDIAN } else { 0 };
/// Bytes before the handle.
const HEADER: usize = 21;

/// 32-bit inode number and generation (ext4 and most others, 8 bytes); also generation and
/// 64-bit inode number (tmpfs, 12 bytes).
const INO32_GEN: u8 = 0x01;
/// 64-bit inode number and generation (xfs).
const INO64_GEN: u8 = 0x81;
/// Object, root and generation (btrfs, without the parent).
const BTRFS: u8 = 0x4d;

/// Our own: an inode of a layer whose file system has no usable handles. In the place of the UUID stands
/// what no file system has, so that to the kernel the origin is not known.
const OF_INODE: u8 = 0xf1;
const NO_UUID: [u8; 16] = *b"plyfs: of inode\0";

/// A lower inode, named in a way that outlives its path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The file system; zero when it has none.
    pub uuid: [u8; 16],
    /// Type of the handle, as name_to_handle_at(2) says it.
    pub handle_type: u8,
    /// The handle, as name_to_handle_at(2) gives it.
    pub handle: Vec<u8>,
}

impl Origin {
    /// The name of an inode that has no handle: what tells it from every other one of its layer as long as
    /// nobody writes there. `layer` counts from the lowest, so that it stays when layers are put on top.
    pub(crate) fn of_inode(layer: usize, stat: &Stat) -> Origin {
        let mut handle = Vec::with_capacity(48);
        handle.extend_from_slice(&(layer as u64).to_ne_bytes());
        handle.extend_from_slice(&stat.ino.to_ne_bytes());
        handle.extend_from_slice(&stat.size.to_ne_bytes());
        for time in [stat.ctime, stat.mtime] {
            handle.extend_from_slice(&time.sec.to_ne_bytes());
            handle.extend_from_slice(&time.nsec.to_ne_bytes());
        }
        Origin { uuid: NO_UUID, handle_type: OF_INODE, handle }
    }

    /// Whether this names an inode without a handle, which tells no number.
    pub(crate) fn is_of_inode(&self) -> bool {
        self.handle_type == OF_INODE && self.uuid == NO_UUID
    }

    /// The value of `overlay.origin`. Empty for a handle longer than any file system has:
    /// to the kernel an empty value is an origin that is not known.
    pub fn encode(&self) -> Vec<u8> {
        let Ok(length) = u8::try_from(HEADER + self.handle.len()) else {
            return Vec::new();
        };
        let mut record = vec![VERSION, MAGIC, length, CPU_ENDIAN, self.handle_type];
        record.extend_from_slice(&self.uuid);
        record.extend_from_slice(&self.handle);
        record
    }

    /// Reads the value of `overlay.origin` or `overlay.upper`; `None` for an empty value and
    /// for anything the kernel would not use either.
    pub fn decode(value: &[u8]) -> Option<Origin> {
        let &[version, magic, length, flags, handle_type] = value.first_chunk::<5>()?;
        if version != VERSION || magic != MAGIC || flags & !(BIG_ENDIAN | ANY_ENDIAN | UPPER) != 0 {
            return None;
        }
        if flags & ANY_ENDIAN == 0 && flags & BIG_ENDIAN != CPU_ENDIAN {
            return None;
        }
        let record = value.get(..usize::from(length))?;
        let (header, handle) = record.split_at_checked(HEADER)?;
        let uuid = *header.last_chunk::<16>()?;
        Some(Origin { uuid, handle_type, handle: handle.to_vec() })
    }

    /// The inode number, read from the handle by the layout its type and length suggest; `None`
    /// where that can be read in two ways. File systems share types, so whoever uses this tries it
    /// first on an object of the file system whose number is known.
    pub fn inode_number(&self) -> Option<u64> {
        let words: Vec<u32> = self.handle.chunks_exact(4).filter_map(word).collect();
        let known = match (self.handle_type, self.handle.len(), words.as_slice()) {
            (INO32_GEN, 8, &[ino, _generation]) => u64::from(ino),
            // ocfs2 has high word, low word, generation under this type and length.
            (INO32_GEN, 12, &[_generation, ino, 0]) => u64::from(ino),
            // erofs has the high word first under this type; only a low word of zero
            // tells its small numbers from xfs's.
            (INO64_GEN, 12, &[low, high, _generation]) if low != 0 => wide(low, high),
            (BTRFS, 20, &[low, high, ..]) => wide(low, high),
            _ => 0,
        };
        Some(known).filter(|ino| *ino != 0)
    }

    /// The name of this origin's entry in the index directory.
    pub fn hex(&self) -> String {
        self.encode().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn word(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// A 64-bit number in the machine's byte order, from its first and second half.
fn wide(first: u32, second: u32) -> u64 {
    let (low, high) = if CPU_ENDIAN == 0 { (first, second) } else { (second, first) };
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::Time;

    /// Records the kernel wrote (6.18, x86-64): file system, record, st_ino of the lower.
    #[cfg(target_endian = "little")]
    const OBSERVED: &[(&str, &str, Option<u64>)] = &[
        ("ext4", "00fb1d0001d7624fae9cb447c7b2d3c980ad78694b07000100111cd204", Some(65_543)),
        ("ext4 index", "00fb1d0001d7624fae9cb447c7b2d3c980ad78694b08000100a2cec13f", Some(65_544)),
        (
            "xfs",
            "00fb2100811e149e4d525349ebb5e83181ad3fef6e82000a00000000002cd2aa5b",
            Some(655_490),
        ),
        (
            "btrfs",
            "00fb29004d0d514311c9fa4ba2b1addef3525c8fc00a01000000000000050000000000000008000000",
            Some(266),
        ),
        ("tmpfs", "00fb210001678b7b66762c4c438467bf5a7a3c60d59b01a99b0800000000000000", Some(8)),
    ];

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(digits).collect()
    }

    #[test]
    fn inodes_without_handles_are_told_apart() {
        let time = |sec| Time { sec, nsec: 5 };
        let stat = Stat { ino: 7, size: 3, ctime: time(1), mtime: time(-1), ..Stat::default() };
        let origin = Origin::of_inode(1, &stat);
        assert_eq!(Origin::decode(&origin.encode()), Some(origin.clone()));
        assert!(origin.is_of_inode() && origin.inode_number().is_none());
        for other in [
            Stat { ino: 8, ..stat },
            Stat { size: 4, ..stat },
            Stat { ctime: time(2), ..stat },
            Stat { mtime: time(1), ..stat },
        ] {
            assert_ne!(Origin::of_inode(1, &other), origin);
        }
        assert_ne!(Origin::of_inode(2, &stat), origin);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn records_of_the_kernel_are_read_and_written_byte_for_byte() {
        for (name, hex, ino) in OBSERVED {
            let origin = Origin::decode(&bytes(hex)).unwrap();
            assert_eq!(origin.encode(), bytes(hex), "{name}");
            assert_eq!(origin.hex(), *hex, "{name}");
            assert_eq!(origin.inode_number(), *ino, "{name}");
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_record_of_an_upper_is_read() {
        let upper = "00fb2104811e149e4d525349ebb5e83181ad3fef6e80000c00000000008ac07e80";
        let origin = Origin::decode(&bytes(upper)).unwrap();
        assert_eq!(origin.handle_type, 0x81);
        assert_eq!(origin.inode_number(), Some(786_560));
    }

    #[test]
    fn what_the_kernel_would_not_use_is_not_read() {
        let good = Origin { uuid: [7; 16], handle_type: 1, handle: vec![1; 8] }.encode();
        for (what, at, value) in [
            ("version", 0, 1),
            ("magic", 1, 0xfa),
            ("length below the header", 2, 20),
            ("length past the end", 2, 30),
            ("flags", 3, 8),
            ("byte order", 3, CPU_ENDIAN ^ BIG_ENDIAN),
        ] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(Origin::decode(&bad), None, "{what}");
        }
        for length in 0..good.len() {
            assert_eq!(Origin::decode(&good[..length]), None, "cut to {length}");
        }
        let mut padded = good.clone();
        padded.push(9);
        assert_eq!(Origin::decode(&padded), Origin::decode(&good));
        let mut any = good.clone();
        any[3] = ANY_ENDIAN | (CPU_ENDIAN ^ BIG_ENDIAN);
        assert!(Origin::decode(&any).is_some());
        let long = Origin { uuid: [7; 16], handle_type: 1, handle: vec![1; 235] };
        assert_eq!(long.encode(), Vec::<u8>::new());
    }

    #[test]
    fn a_number_is_only_given_when_one_layout_fits() {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        for (what, handle_type, handle, ino) in [
            ("xfs", 0x81, words(&[131, 0, 9]), Some(131)),
            ("erofs", 0x81, words(&[0, 131, 9]), None),
            ("tmpfs", 1, words(&[77, 8, 0]), Some(8)),
            ("ocfs2", 1, words(&[0, 8, 77]), None),
            ("with a parent", 2, words(&[8, 9, 10, 11]), None),
            ("an overlay", 0xf8, vec![0; 36], None),
            ("odd length", 1, vec![1; 7], None),
        ] {
            let origin = Origin { uuid: [7; 16], handle_type, handle };
            let expected = if cfg!(target_endian = "big") && what == "xfs" { None } else { ino };
            assert_eq!(origin.inode_number(), expected, "{what}");
        }
    }
}
