//! Inode numbers: one for each object of each filesystem, the same at every mount.
//!
//! A number is the one on disk, with the position of the filesystem among those of the stack in the
//! high bits: the upper one first, then the lower ones in order. What does not fit is hashed; the
//! inode table resolves the collisions that may make.

use parking_lot::RwLock;

use crate::inode::Ino;
use crate::origin::Origin;

/// Bits that numbers on disk may use without being hashed.
const BITS: u32 = 48;
/// Set in hashed numbers, which so never equal a plain one.
const HASHED: u64 = 1 << 62;

#[derive(Debug)]
struct Filesystem {
    dev: u64,
    uuid: [u8; 16],
    /// File handles say the inode number.
    readable: bool,
}

/// The filesystems of the stack, in the order of their numbers.
#[derive(Debug)]
pub(crate) struct Numbers {
    filesystems: RwLock<Vec<Filesystem>>,
    narrow: bool,
}

impl Numbers {
    /// No filesystem yet; `narrow` keeps numbers within 32 bits.
    pub(crate) fn new(narrow: bool) -> Numbers {
        Numbers { filesystems: RwLock::default(), narrow }
    }

    /// Adds the filesystem of a layer unless it is known.
    /// `readable` says that its file handles hold the inode number where
    /// [`Origin::inode_number`] looks for it.
    pub(crate) fn add(&self, dev: u64, uuid: [u8; 16], readable: bool) {
        let mut filesystems = self.filesystems.write();
        if !filesystems.iter().any(|fs| fs.dev == dev) {
            filesystems.push(Filesystem { dev, uuid, readable });
        }
    }

    /// The number of an inode.
    pub(crate) fn of(&self, dev: u64, ino: u64) -> u64 {
        let position = self.filesystems.read().iter().position(|fs| fs.dev == dev);
        let position = position.unwrap_or_else(|| {
            // A filesystem mounted inside a layer, met for the first time.
            self.add(dev, [0; 16], false);
            self.filesystems.read().iter().position(|fs| fs.dev == dev).unwrap_or(0)
        });
        self.pack(position as u64, ino)
    }

    /// The number of the inode an origin record names, when its filesystem is in the stack.
    pub(crate) fn of_origin(&self, origin: &Origin) -> Option<u64> {
        let ino = origin.inode_number()?;
        let filesystems = self.filesystems.read();
        let mut named = filesystems.iter().enumerate().filter(|(_, fs)| fs.uuid == origin.uuid);
        let (position, fs) = named.next()?;
        // Two filesystems of one UUID (copies, or none at all): the record does not say which.
        (fs.readable && named.next().is_none()).then(|| self.pack(position as u64, ino))
    }

    /// UUID of a filesystem of the stack, when no other of them has the same and its file handles
    /// name its inodes: only then does a record of a handle mean one object.
    pub(crate) fn uuid(&self, dev: u64) -> Option<[u8; 16]> {
        let filesystems = self.filesystems.read();
        let fs = filesystems.iter().find(|fs| fs.dev == dev && fs.readable)?;
        let alone = filesystems.iter().filter(|other| other.uuid == fs.uuid).count() == 1;
        alone.then_some(fs.uuid)
    }

    /// Another number for an object whose own is taken by a different one; `salt` tells the
    /// objects apart.
    pub(crate) fn other(&self, number: u64, salt: u64) -> u64 {
        self.fold(mix(number ^ mix(salt)) >> 2 | HASHED)
    }

    fn pack(&self, position: u64, ino: u64) -> u64 {
        if ino <= Ino::ROOT.0 || ino >> BITS != 0 || position >> (62 - BITS) != 0 {
            return self.fold(mix(ino ^ mix(position)) >> 2 | HASHED);
        }
        self.fold(position << BITS | ino)
    }

    fn fold(&self, number: u64) -> u64 {
        if !self.narrow || number >> 32 == 0 {
            return number;
        }
        let folded = (number ^ (number >> 32)) & 0xffff_ffff;
        if folded <= Ino::ROOT.0 { folded + 2 } else { folded }
    }
}

/// The finaliser of splitmix64: a bijection that spreads every bit.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_numbers_of_two_filesystems_differ() {
        let numbers = Numbers::new(false);
        numbers.add(7, [0; 16], true);
        numbers.add(9, [1; 16], true);
        assert_eq!(numbers.of(7, 12), 12);
        assert_eq!(numbers.of(9, 12), 1 << 48 | 12);
        assert_ne!(numbers.of(7, 1), 1, "the root's number is taken");
        assert_ne!(numbers.of(7, u64::MAX), numbers.of(9, u64::MAX));
    }

    #[test]
    fn narrow_numbers_fit_in_32_bits() {
        let numbers = Numbers::new(true);
        numbers.add(7, [0; 16], true);
        for ino in [0, 1, 2, 1 << 40, u64::MAX] {
            let number = numbers.of(7, ino);
            assert!(number > 1 && number >> 32 == 0, "{ino} -> {number}");
        }
    }
}
