//! Data that was a file's when its line was written, and is no more.
//!
//! A file that a later entry replaces goes here before it goes. Which line it belongs to follows from the
//! path and the order: of the lines for a path, the last one before the moment of removal.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::FileExt;

use plyfs_fuse::sys::{self, Seek};

/// How many, as a bound for memory.
const MANY: usize = 500_000;
const PIECE: usize = 128 * 1024;

/// One file that went.
struct Gone {
    /// Lines there were by then.
    position: u64,
    offset: u64,
    length: u64,
}

/// All of them.
pub(super) struct Late {
    file: File,
    end: u64,
    count: usize,
    by_path: HashMap<u64, Vec<Gone>>,
    hasher: RandomState,
}

impl Late {
    pub(super) fn new(file: File) -> Late {
        let (by_path, hasher) = (HashMap::new(), RandomState::new());
        Late { file, end: 0, count: 0, by_path, hasher }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Keeps the data of a file that goes.
    pub(super) fn keep(&mut self, path: &[u8], position: u64, from: &File) -> io::Result<()> {
        let length = from.metadata()?.len();
        if length == 0 {
            return Ok(());
        }
        if self.count == MANY {
            return Err(io::Error::other(format!("more than {MANY} files are replaced by others")));
        }
        let mut at = 0;
        let mut piece = vec![0; PIECE];
        while let Some((start, end)) = data_from(from, at)? {
            at = start;
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
                let got = from.read_at(&mut piece[..most], at)?;
                if got == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.file.write_all_at(&piece[..got], self.end + at)?;
                at += u64::try_from(got).unwrap_or(0);
            }
        }
        let gone = Gone { position, offset: self.end, length };
        self.end = self.end.saturating_add(length);
        self.file.set_len(self.end)?;
        self.count += 1;
        self.by_path.entry(self.hasher.hash_one(path)).or_default().push(gone);
        Ok(())
    }

    /// Where the data of a line is, if the file went.
    pub(super) fn find(&self, path: &[u8], position: u64) -> Option<(u64, u64)> {
        let gone = self.by_path.get(&self.hasher.hash_one(path))?;
        // Positions only grow.
        let first = gone.get(gone.partition_point(|gone| gone.position <= position))?;
        Some((first.offset, first.length))
    }

    /// Reads kept data.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

/// The next stretch of data from here on.
fn data_from(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    match sys::lseek(file, at, Seek::Data) {
        Ok(start) => Ok(Some((start, sys::lseek(file, start, Seek::Hole)?))),
        Err(error) if sys::errno(&error) == sys::ENXIO => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_finds_what_went_first_after_it() {
        let mut late = Late::new(File::open("/dev/null").unwrap());
        let gone = [3, 3, 7, 12].into_iter().zip(0..);
        let gone = gone.map(|(position, offset)| Gone { position, offset, length: 1 }).collect();
        late.by_path.insert(late.hasher.hash_one(&b"a"[..]), gone);
        for (position, offset) in [(0, 0), (2, 0), (3, 2), (6, 2), (7, 3), (11, 3)] {
            assert_eq!(late.find(b"a", position), Some((offset, 1)), "{position}");
        }
        assert_eq!((late.find(b"a", 12), late.find(b"b", 0)), (None, None));
    }
}
