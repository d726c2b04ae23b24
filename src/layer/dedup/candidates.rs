//! Files that may have the same content as another, in bounded memory.

use std::cmp::Reverse;
use std::ffi::OsStr;
use std::path::Path;
use std::rc::Rc;

use crate::sys::tree::Stat;

/// What an entry takes, with the room that a growing list has left over.
const ENTRY: usize = size_of::<Entry>() * 3 / 2;
/// What an allocation takes beside its bytes.
const ALLOCATION: usize = 24;

/// A directory.
#[derive(Debug)]
pub(super) struct Dir {
    /// Which tree it is in.
    pub(super) tree: usize,
    /// Beneath the tree's root.
    pub(super) path: Box<Path>,
}

/// A file, by one of its names.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) size: u64,
    dev: u64,
    ino: u64,
    pub(super) dir: Rc<Dir>,
    pub(super) name: Box<OsStr>,
}

impl Entry {
    pub(super) fn new(dir: &Rc<Dir>, name: &OsStr, stat: &Stat) -> Entry {
        let &Stat { size, dev, ino, .. } = stat;
        Entry { size, dev, ino, dir: Rc::clone(dir), name: name.into() }
    }

    /// Whether this is the file that was noted.
    pub(super) fn is(&self, stat: &Stat) -> bool {
        (self.size, self.dev, self.ino) == (stat.size, stat.dev, stat.ino)
    }

    /// Whether they could share blocks.
    pub(super) fn is_like(&self, other: &Entry) -> bool {
        (self.size, self.dev) == (other.size, other.dev)
    }

    /// Bytes it takes here, with its part in those of its directory, which it shares with all who have that but `others`.
    fn cost(&self, others: usize) -> usize {
        let sharers = Rc::strong_count(&self.dir).saturating_sub(others).max(1);
        let dir = size_of::<Dir>() + self.dir.path.as_os_str().len() + 2 * ALLOCATION;
        ENTRY + self.name.len() + ALLOCATION + dir / sharers
    }
}

/// The files of one walk: of all sizes between two bounds, of which the lower one rises as far as the room makes it.
#[derive(Debug)]
pub(super) struct Candidates {
    entries: Vec<Entry>,
    /// Bytes they take, rather too many.
    used: usize,
    room: usize,
    /// No file is smaller than this, in any walk.
    least: u64,
    /// The smallest size of this walk.
    from: u64,
    /// Sizes from here on were there in earlier walks.
    below: Option<u64>,
}

impl Candidates {
    pub(super) fn new(least: u64, room: usize) -> Candidates {
        Candidates { entries: Vec::new(), used: 0, room, least, from: least, below: None }
    }

    /// Notes a file, unless another walk is for it. True where there is no room left: then they are to be taken, and files of this
    /// one size that come later are compared with each other only.
    pub(super) fn add(&mut self, entry: Entry) -> bool {
        if entry.size < self.from || self.below.is_some_and(|below| entry.size >= below) {
            return false;
        }
        // The walk has the directory too, as long as it is there.
        self.used += entry.cost(1);
        self.entries.push(entry);
        self.used > self.room && self.shrink()
    }

    /// Forgets second names of files, and then the smaller files. Whether there is little room all the same.
    fn shrink(&mut self) -> bool {
        self.sort();
        let enough = self.room / 4 * 3;
        if self.used <= enough {
            return false;
        }
        let mut used = 0;
        let fits = |entry: &&Entry| {
            used += entry.cost(0);
            used <= self.room / 2
        };
        let kept = self.entries.iter().take_while(fits).count();
        let largest = self.entries.first().map_or(self.least, |entry| entry.size);
        // All of a size or none.
        let cut = self.entries.get(kept).map_or(self.from, |entry| entry.size.saturating_add(1));
        self.from = cut.min(largest).max(self.from);
        let from = self.from;
        self.entries.truncate(self.entries.partition_point(|entry| entry.size >= from));
        self.count();
        self.used > enough
    }

    /// The largest first, each file once.
    fn sort(&mut self) {
        self.entries.sort_unstable_by_key(|entry| (Reverse(entry.size), entry.dev, entry.ino));
        self.entries.dedup_by_key(|entry| (entry.dev, entry.ino));
        self.count();
    }

    fn count(&mut self) {
        self.used = self.entries.iter().map(|entry| entry.cost(0)).sum();
    }

    /// The files, the largest first, each once.
    pub(super) fn take(&mut self) -> Vec<Entry> {
        self.sort();
        self.used = 0;
        std::mem::take(&mut self.entries)
    }

    /// Goes on to the sizes that there was no room for; false when there are none.
    pub(super) fn next(&mut self) -> bool {
        self.below = Some(self.from);
        std::mem::replace(&mut self.from, self.least) > self.least
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tree;

    const SPACE: usize = 20_000;

    /// Walks over files of these sizes until there are none left: what came of each walk.
    fn walks(sizes: &[u64]) -> Vec<Vec<u64>> {
        let place = tempfile::tempdir().unwrap();
        let stat = tree::stat(std::fs::File::open(place.path()).unwrap(), OsStr::new("")).unwrap();
        let mut candidates = Candidates::new(1, SPACE);
        let mut walks = Vec::new();
        loop {
            let mut walk = Vec::new();
            let mut take = |candidates: &mut Candidates| {
                let taken: usize = candidates.entries.iter().map(|entry| entry.cost(0)).sum();
                assert!(taken <= SPACE + 1000, "{taken} bytes");
                walk.extend(candidates.take().iter().map(|entry| entry.size));
            };
            for (number, &size) in sizes.iter().enumerate() {
                let path = Path::new("some/directory").join((number / 7).to_string());
                let dir = Rc::new(Dir { tree: 0, path: path.into_boxed_path() });
                let entry = Entry::new(
                    &dir,
                    OsStr::new("file"),
                    &Stat { size, ino: number as u64, ..stat },
                );
                if candidates.add(entry) {
                    take(&mut candidates);
                }
            }
            take(&mut candidates);
            walks.push(walk);
            if !candidates.next() {
                return walks;
            }
        }
    }

    #[test]
    fn every_size_is_whole_in_one_of_the_walks() {
        let sizes: Vec<u64> = (0..2000).map(|number| 1 + number * 37 % 101).collect();
        let walks = walks(&sizes);
        assert!(walks.len() > 5, "{} walks", walks.len());
        let mut seen = walks.concat();
        assert!(seen.is_sorted_by(|a, b| a >= b), "the largest come first");
        let mut all = sizes;
        all.sort_unstable();
        seen.sort_unstable();
        assert_eq!(seen, all);
        for pair in walks.windows(2) {
            assert!(pair[0].last() > pair[1].first());
        }
    }

    #[test]
    fn more_files_of_one_size_than_there_is_room_for_are_taken_in_parts() {
        let sizes: Vec<u64> =
            (0..2000).map(|number| if number % 40 == 0 { 3 } else { 5 }).collect();
        let walks = walks(&sizes);
        assert_eq!(walks.len(), 2);
        assert!(walks[0].iter().all(|size| *size == 5) && walks[1].iter().all(|size| *size == 3));
        assert_eq!(walks.concat().len(), 2000);
    }
}
