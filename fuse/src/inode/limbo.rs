//! Inodes that were in use when they should have left the table.

use std::collections::{HashSet, VecDeque};

use super::Ino;

/// Numbers in the order they came, each once.
#[derive(Debug, Default)]
pub(super) struct Limbo {
    queue: VecDeque<Ino>,
    members: HashSet<Ino>,
}

impl Limbo {
    /// Adds one.
    pub(super) fn push(&mut self, ino: Ino) {
        if self.members.insert(ino) {
            self.queue.push_back(ino);
        }
    }

    /// Takes the first.
    pub(super) fn pop(&mut self) -> Option<Ino> {
        let ino = self.queue.pop_front()?;
        self.members.remove(&ino);
        Some(ino)
    }

    #[cfg(test)]
    pub(super) fn queue(&self) -> &VecDeque<Ino> {
        &self.queue
    }
}
