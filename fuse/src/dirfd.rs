//! Cached descriptors, with a bound.
//!
//! A slot belongs to one directory of one layer and stays right whatever is renamed around it,
//! since a descriptor names the object. The oldest slots are emptied when too many are full; their
//! owners open the directory again when they need it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::inode::{Ino, Inode};

/// One cached descriptor, or none for now.
#[derive(Debug, Default)]
pub struct Slot(Mutex<Option<Arc<OwnedFd>>>);

/// All full slots, oldest first.
#[derive(Debug)]
pub(crate) struct DirFds {
    limit: usize,
    queue: Mutex<VecDeque<Weak<Slot>>>,
}

impl Slot {
    /// The descriptor if it is cached.
    pub(crate) fn get(&self) -> Option<Arc<OwnedFd>> {
        self.0.lock().clone()
    }
}

impl DirFds {
    /// A cache of at most `limit` descriptors.
    pub(crate) fn new(limit: usize) -> DirFds {
        DirFds { limit: limit.max(16), queue: Mutex::default() }
    }

    /// The descriptor of a slot, opened by `open` when it is not cached.
    pub(crate) fn get(
        &self,
        slot: &Arc<Slot>,
        open: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> io::Result<Arc<OwnedFd>> {
        if let Some(fd) = slot.get() {
            return Ok(fd);
        }
        let fd = Arc::new(open()?);
        self.fill(slot, fd.clone());
        Ok(fd)
    }

    /// Lets go of slots whose owner is gone: an entry keeps a slot's memory, though not what that held.
    pub(crate) fn forget_lost(&self) {
        let mut queue = self.queue.lock();
        queue.retain(|slot| slot.strong_count() > 0);
        queue.shrink_to_fit();
    }

    /// Puts a descriptor into a slot for good.
    pub(crate) fn keep(&self, slot: &Slot, fd: Arc<OwnedFd>) {
        *slot.0.lock() = Some(fd);
    }

    /// Puts a descriptor into a slot.
    pub(crate) fn fill(&self, slot: &Arc<Slot>, fd: Arc<OwnedFd>) {
        *slot.0.lock() = Some(fd);
        let mut evicted = Vec::new();
        {
            let mut queue = self.queue.lock();
            queue.push_back(Arc::downgrade(slot));
            while queue.len() > self.limit {
                evicted.extend(queue.pop_front());
            }
        }
        for slot in evicted.iter().filter_map(Weak::upgrade) {
            slot.0.lock().take();
        }
    }
}

/// Inodes whose data is open, oldest first, with a bound: the data of the oldest is closed when too
/// many are open and opened again at the next read or write. What could not be opened again (a file
/// that was made read-only, of an ordinary user's daemon) stays open; when only such is left and the
/// ceiling is reached, no more files can be opened.
#[derive(Debug)]
pub(crate) struct OpenData {
    limit: usize,
    ceiling: usize,
    open: Arc<AtomicUsize>,
    /// By number: an entry does not keep the memory of an inode that has left.
    queue: Mutex<VecDeque<Ino>>,
}

/// One descriptor of data, counted until it is closed.
#[derive(Debug)]
pub struct OpenCount(Arc<AtomicUsize>);

impl Drop for OpenCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl OpenData {
    /// A bound of `limit` descriptors, and of `ceiling` with those that cannot be closed.
    pub(crate) fn new(limit: usize, ceiling: usize) -> OpenData {
        let limit = limit.max(16);
        let ceiling = ceiling.max(limit + limit / 4);
        OpenData { limit, ceiling, open: Arc::default(), queue: Mutex::default() }
    }

    /// Counts a descriptor.
    pub(crate) fn count(&self) -> OpenCount {
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenCount(self.open.clone())
    }

    /// The data of an inode was opened and is kept. `get` finds the inode of a number.
    pub(crate) fn push(&self, inode: &Arc<Inode>, get: impl Fn(Ino) -> Option<Arc<Inode>>) {
        if inode.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut queue = self.queue.lock();
        queue.push_back(inode.ino);
        // What was closed or forgotten meanwhile goes, a little at a time.
        for _ in 0..2 {
            if queue.len() <= 2 * self.limit {
                break;
            }
            let Some(old) = queue.pop_front().and_then(|ino| queued(ino, &get)) else { continue };
            if old.state.lock().data.is_some() {
                queue.push_back(old.ino);
            } else {
                old.queued.store(false, Ordering::Release);
            }
        }
    }

    /// The inode whose turn it is to be closed; none while the bound is kept.
    pub(crate) fn oldest(&self, get: impl Fn(Ino) -> Option<Arc<Inode>>) -> Option<Arc<Inode>> {
        let mut queue = self.queue.lock();
        while self.open.load(Ordering::Relaxed) > self.limit {
            if let Some(old) = queued(queue.pop_front()?, &get) {
                old.queued.store(false, Ordering::Release);
                return Some(old);
            }
        }
        None
    }

    /// Whether nothing more may be opened.
    pub(crate) fn is_full(&self) -> bool {
        self.open.load(Ordering::Relaxed) >= self.ceiling
    }
}

/// The inode of an entry; none when it has left, also when another one has its number by now.
fn queued(ino: Ino, get: impl Fn(Ino) -> Option<Arc<Inode>>) -> Option<Arc<Inode>> {
    get(ino).filter(|inode| inode.queued.load(Ordering::Acquire))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_leaves_the_queue() {
        let cache = DirFds::new(16);
        let slots: Vec<Arc<Slot>> = (0..10).map(|_| Arc::default()).collect();
        for slot in &slots {
            cache.get(slot, || Ok(std::fs::File::open("/")?.into())).unwrap();
        }
        let kept = slots[3].clone();
        drop(slots);
        cache.forget_lost();
        assert_eq!(cache.queue.lock().len(), 1);
        assert!(kept.get().is_some());
    }

    #[test]
    fn the_oldest_descriptor_goes_first() {
        let cache = DirFds::new(16);
        let slots: Vec<Arc<Slot>> = (0..20).map(|_| Arc::default()).collect();
        for slot in &slots {
            cache.get(slot, || Ok(std::fs::File::open("/")?.into())).unwrap();
        }
        let full: Vec<bool> = slots.iter().map(|s| s.get().is_some()).collect();
        assert_eq!(full, [vec![false; 4], vec![true; 16]].concat());
    }
}
