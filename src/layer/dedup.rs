//! Files of the same content share their blocks, in one layer and across layers.
//!
//! All files are listed, by size. What is alone with its size, is another name of the same file or lies on the same blocks already
//! is never read. Of the others the beginning is summed up, and all of it where that is the same; whose sums are the same the
//! kernel is asked to share. It compares them itself, so whoever writes meanwhile loses nothing, and no sum is believed.
//!
//! Memory is bounded: of more files than there is room for, only the largest are kept in mind, and the trees are walked
//! again for the others (`Candidates`).

mod candidates;
mod group;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::Serialize;

use crate::sys::tree::{self, Kind, Stat};
use crate::sys::{self};
use candidates::{Candidates, Dir, Entry};

/// Bytes of memory for what is known of files.
const ROOM: usize = 20 << 20;

/// A layer's own directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// The layer.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Shared {
    /// Regular files that are large enough, a file with several names as often.
    pub files: u64,
    /// Files that share their blocks now, or would.
    pub shared: u64,
    /// Bytes that this frees, where nobody else has those blocks.
    pub bytes: u64,
    /// Files that shared theirs with another one before.
    pub already: u64,
    /// Files that were written meanwhile, and have other content now.
    pub changed: u64,
    /// Files whose blocks nobody may replace: immutable, or in use for swap.
    pub refused: u64,
    /// Files and directories that could not be read, or not be shared; each was told ([`Progress::Failed`]).
    pub failed: u64,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// The files of a layer are listed.
    Listing(&'a str),
    /// Files are compared.
    Comparing {
        /// Bytes that are done.
        done: u64,
        /// Of so many.
        all: u64,
    },
    /// This could not be done; all else goes on.
    Failed(&'a str),
}

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Dedup<'a> {
    /// Where files are looked for, all on one filesystem.
    pub trees: &'a [Tree],
    /// Shorter files are left alone.
    pub least: u64,
    /// Nothing is shared, only counted.
    pub dry_run: bool,
}

impl Dedup<'_> {
    /// Does it.
    pub fn run(&self, progress: &mut dyn FnMut(Progress<'_>)) -> Shared {
        self.run_in(ROOM, progress)
    }

    fn run_in(&self, room: usize, progress: &mut dyn FnMut(Progress<'_>)) -> Shared {
        let mut job =
            Job { dedup: self, found: Shared::default(), progress, done: 0, all: 0, first: true };
        let mut candidates = Candidates::new(self.least.max(1), room);
        loop {
            for tree in 0..self.trees.len() {
                job.walk(tree, &mut candidates);
            }
            job.compare(candidates.take());
            job.first = false;
            if !candidates.next() {
                return job.found;
            }
        }
    }
}

/// The work.
struct Job<'a> {
    dedup: &'a Dedup<'a>,
    found: Shared,
    progress: &'a mut dyn FnMut(Progress<'_>),
    /// Bytes compared of `all`.
    done: u64,
    all: u64,
    /// The trees are walked for the first time.
    first: bool,
}

impl Job<'_> {
    /// Notes the files of a tree. What has gone since it was listed is no concern.
    fn walk(&mut self, number: usize, candidates: &mut Candidates) {
        let Some(tree) = self.dedup.trees.get(number) else { return };
        (self.progress)(Progress::Listing(&tree.name));
        let opened = tree::open_root(&tree.path);
        let opened = opened.and_then(|root| Ok((tree::stat(&root, OsStr::new(""))?.dev, root)));
        let Some((dev, root)) = self.there(number, Path::new(""), "open", opened) else { return };
        let mut todo = vec![PathBuf::new()];
        while let Some(path) = todo.pop() {
            let dir = tree::open_dir(&root, &path);
            let Some(fd) = self.there(number, &path, "open", dir) else { continue };
            let dir = Rc::new(Dir { tree: number, path: path.into_boxed_path() });
            let listed = tree::each(&fd, |name| {
                let inner = || dir.path.join(name);
                let stat = match tree::find(&fd, name) {
                    // What is mounted there is not the layer's.
                    Ok(Some(stat)) if stat.dev == dev => stat,
                    Ok(_) => return,
                    Err(error) => return self.fail(number, &inner(), "stat", &error),
                };
                match stat.kind {
                    Kind::Dir => todo.push(inner()),
                    Kind::File => self.note(candidates, &dir, name, &stat),
                    _ => {}
                }
            });
            self.there(number, &dir.path, "list", listed);
        }
    }

    fn note(&mut self, candidates: &mut Candidates, dir: &Rc<Dir>, name: &OsStr, stat: &Stat) {
        if stat.size < self.dedup.least.max(1) {
            return;
        }
        self.found.files += u64::from(self.first);
        if candidates.add(Entry::new(dir, name, stat)) {
            self.compare(candidates.take());
        }
    }

    /// Opens a file that was noted, if it still is what it was.
    fn open(&mut self, entry: &Entry) -> Option<(File, Stat)> {
        let tree = self.dedup.trees.get(entry.dir.tree)?;
        let dir = |root: OwnedFd| tree::open_dir(root, &entry.dir.path);
        let opened = tree::open_root(&tree.path).and_then(dir);
        let opened = opened.and_then(|dir| tree::open_file(dir, &entry.name));
        let (file, stat) =
            self.there(entry.dir.tree, &entry.dir.path.join(&*entry.name), "open", opened)?;
        entry.is(&stat).then_some((file, stat))
    }

    /// What was found; `None` with a warning where the system refused, and without where there is no such thing any more.
    fn there<T>(&mut self, tree: usize, path: &Path, op: &str, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(found) => Some(found),
            Err(error) if has_gone(&error) => None,
            Err(error) => {
                self.fail(tree, path, op, &error);
                None
            }
        }
    }

    /// Tells what could not be done; all else goes on.
    fn fail(&mut self, tree: usize, path: &Path, op: &str, error: &io::Error) {
        self.found.failed += 1;
        let name = self.dedup.trees.get(tree).map_or("", |tree| &tree.name);
        let told = format!("layer '{name}': {op} {:?}: {error}", Path::new("/").join(path));
        (self.progress)(Progress::Failed(&told));
    }
}

/// Nothing of that sort is there now: it was removed, or something else has its name.
fn has_gone(error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(code) => {
            [sys::ENOENT, sys::ENOTDIR, sys::ELOOP, sys::ENXIO, sys::ESTALE].contains(&code)
        }
        // No longer a regular file.
        None => error.kind() == io::ErrorKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: u64 = 64;

    fn count(path: &Path, room: usize) -> Shared {
        let trees = [Tree { name: "a".to_owned(), path: path.to_path_buf() }];
        let dedup = Dedup { trees: &trees, least: LEAST, dry_run: true };
        dedup.run_in(room, &mut |_| {})
    }

    fn put(path: PathBuf, text: &str, size: usize) {
        std::fs::write(path, text.repeat(size / text.len() + 1).get(..size).unwrap()).unwrap();
    }

    #[test]
    fn what_is_the_same_is_found_in_little_room_too() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        for dir in ["a", "b/c", "b/d"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
            for size in 100..140 {
                put(root.join(dir).join(format!("same{size}")), "content", size);
                put(root.join(dir).join(format!("other{size}")), dir, size);
            }
        }
        std::fs::hard_link(root.join("a/same100"), root.join("b/link")).unwrap();
        std::os::unix::fs::symlink("same101", root.join("a/symlink")).unwrap();
        put(root.join("b/tiny"), "content", 63);
        put(root.join("b/tiny2"), "content", 63);
        // 80 of the three are the same as the first; of a sum of the beginning alone more would be.
        let found = count(root, ROOM);
        assert_eq!((found.files, found.shared, found.failed), (241, 80, 0));
        for room in [1000, 2000, 5000, 20_000] {
            assert_eq!(count(root, room), found, "in {room} bytes");
        }
    }

    #[test]
    fn large_files_are_compared_to_their_end() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        for (name, end) in [("a", "x"), ("b", "y"), ("c", "x"), ("d", "z")] {
            std::fs::write(root.join(name), "long".repeat(1 << 20) + end).unwrap();
            std::fs::write(root.join(format!("{name}2")), end.to_owned() + &"l".repeat(1 << 20))
                .unwrap();
        }
        assert_eq!(count(root, ROOM).shared, 2);
    }

    #[test]
    fn what_cannot_be_read_is_counted_and_the_rest_is_compared() {
        let place = tempfile::tempdir().unwrap();
        let trees = ["a", "gone", "b"].map(|name| {
            let path = place.path().join(name);
            if name != "gone" {
                std::fs::create_dir(&path).unwrap();
                put(path.join("file"), "content", 100);
            }
            Tree { name: name.to_owned(), path }
        });
        // No root is followed into, and none is a file.
        std::os::unix::fs::symlink("/etc", place.path().join("a/etc")).unwrap();
        let dedup = Dedup { trees: &trees, least: LEAST, dry_run: true };
        let mut listed = Vec::new();
        let found = dedup.run(&mut |progress| {
            if let Progress::Listing(name) = progress {
                listed.push(name.to_owned());
            }
        });
        assert_eq!(listed, ["a", "gone", "b"]);
        assert_eq!((found.files, found.shared, found.failed), (2, 1, 0));
    }
}
