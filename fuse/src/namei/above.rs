//! Which names an upper directory surely does not have.
//!
//! A directory that this mount made is empty at first, and nobody else puts names into it: so every
//! name it has is one that was announced here before it came. Names are never taken out, and kept as
//! hashes, so what is kept may hold more than the directory; what it does not hold is not there,
//! neither the name nor its `.wh.` whiteout. Of directories found on disk nothing is known, nor of
//! those that find names in other letters than they have them.
//!
//! It is the content of the namespace lock: whoever takes that for a change announces the names.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::hash::{BuildHasherDefault, Hasher};

use super::hash_place;
use crate::inode::Ino;

/// Names of one directory at most; of one that had more nothing is known.
const MOST: usize = 1 << 14;

/// The names an upper directory may have.
#[derive(Debug, Default)]
pub struct Above(Option<HashSet<u64, BuildHasherDefault<AsIs>>>);

/// Takes a hash as it is.
#[derive(Debug, Default)]
pub(super) struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash << 8 | u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

pub(super) fn hash(name: &OsStr) -> u64 {
    hash_place(Ino(0), name).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Above {
    /// The upper directory is there, and empty.
    pub(crate) fn begin(&mut self) {
        self.0 = Some(HashSet::default());
    }

    /// Nothing is known any more.
    pub(crate) fn end(&mut self) {
        self.0 = None;
    }

    /// Whether anything is.
    pub(crate) fn is_known(&self) -> bool {
        self.0.is_some()
    }

    /// A name is about to come, it or its whiteout.
    pub(crate) fn announce(&mut self, name: &OsStr) {
        let Some(names) = &mut self.0 else { return };
        if names.len() >= MOST {
            self.0 = None;
        } else {
            names.insert(hash(name));
        }
    }

    /// Whether a name is surely not there.
    pub(crate) fn lacks(&self, name: &OsStr) -> bool {
        self.0.as_ref().is_some_and(|names| !names.contains(&hash(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_is_missing() {
        let mut above = Above::default();
        let name = OsStr::new("name");
        assert!(!above.lacks(name), "nothing is known");
        above.announce(name);
        assert!(!above.lacks(OsStr::new("other")));
        above.begin();
        assert!(above.lacks(name));
        above.announce(name);
        assert!(!above.lacks(name) && above.lacks(OsStr::new("other")));
        for n in 0..=MOST {
            above.announce(OsStr::new(&n.to_string()));
        }
        assert!(!above.lacks(OsStr::new("other")), "too many");
    }
}
