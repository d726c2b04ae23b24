//! Paths below the root that are remembered, as hashes of 64 bits with a random key.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use crate::error::Result;

/// How many paths are remembered, as a bound for memory.
const MANY: usize = 3_500_000;

/// A set of paths.
#[derive(Default)]
pub(super) struct Paths {
    hashes: HashSet<u64>,
    hasher: RandomState,
}

impl Paths {
    pub(super) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    pub(super) fn contains(&self, path: &[u8]) -> bool {
        self.hashes.contains(&self.hasher.hash_one(path))
    }

    pub(super) fn insert(&mut self, path: &[u8]) -> Result<()> {
        self.hashes.insert(self.hasher.hash_one(path));
        match self.hashes.len() <= MANY {
            true => Ok(()),
            false => Err(super::beyond("paths", u64::try_from(MANY).unwrap_or(0), "paths")),
        }
    }

    /// Forgets a path, and says whether it was there.
    pub(super) fn remove(&mut self, path: &[u8]) -> bool {
        self.hashes.remove(&self.hasher.hash_one(path))
    }
}
