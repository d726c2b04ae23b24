//! The difference between two trees that share no history on disk, found by comparing all of both.
//!
//! What an image layer carries is compared: kind, owner, mode, device number, size, time of change to the nanosecond,
//! extended attributes, target of a symlink, and which names are one file. Data is read only where the rest is equal and
//! cannot be trusted to tell: where a file was written so shortly before its inode last changed that both writings may
//! bear the same time, and where its inode has changed since the new tree was made ([`Comparison::since`]): a time of change
//! can be set to what it was (`touch -r`, `cp -p`, archives whose files all bear one time), that of an inode cannot. The
//! root itself is no part of a layer.
//!
//! A tree is a directory, or a stack of them as an overlay merges it.

mod sorted;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::changes::{Change, ChangeKind};
use super::diff::{Item, Writer};
use super::marks::Belief;
use super::stack::{Found, Place, Spot, Stack};
use super::xattrs;
use crate::error::{Context, Error, Result};
use crate::sys::tree::{self, Kind};
use sorted::Sorted;

/// Clocks of filesystems tick at least this often, in seconds.
const TICK: i64 = 2;

/// Data is compared in pieces of this size.
const PIECE: usize = 128 * 1024;

/// Names of a directory that are looked up at a time.
const BATCH: usize = 1024;

/// One of the two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// The directory, the upper one of a stack.
    pub top: PathBuf,
    /// What lies below it, the nearest first.
    pub below: Vec<PathBuf>,
}

/// What is compared.
#[derive(Clone, Copy, Debug)]
pub struct Comparison<'a> {
    /// What there was; without it all is added.
    pub old: Option<&'a Tree>,
    /// What there is.
    pub new: &'a Tree,
    /// When the new tree began as a copy of the old one, in seconds since 1970: where nothing has touched an inode since, its
    /// data is what it was. Without it times of change are believed.
    pub since: Option<i64>,
    /// Whose word is taken in stacks. In a tree that is one directory nothing is a mark.
    pub belief: Belief,
}

/// Lists what `new` adds to, changes and deletes in `old`, sorted by path, a directory before its content. Without `old` all
/// is added.
pub fn list(old: Option<&Tree>, new: &Tree) -> Result<Vec<Change>> {
    Comparison { old, new, since: None, belief: Belief::standing() }.list()
}

/// Writes the difference as a layer: a tar archive with OCI whiteouts. The same trees give the same bytes. After an error
/// `out` has no end of archive.
pub fn write(old: Option<&Tree>, new: &Tree, out: &mut impl Write) -> Result<()> {
    Comparison { old, new, since: None, belief: Belief::standing() }.write(out)
}

impl Comparison<'_> {
    /// As [`list`].
    pub fn list(&self) -> Result<Vec<Change>> {
        let (_, changes) = compare(self)?;
        let absolute = |(path, kind)| Change { kind, path: Path::new("/").join(path) };
        Ok(changes.into_iter().map(absolute).collect())
    }

    /// As [`write()`].
    pub fn write(&self, out: &mut impl Write) -> Result<()> {
        let (stack, changes) = compare(self)?;
        let root = stack.root(0);
        let mut writer = Writer::new(stack, out);
        // The directories above the path that is written.
        let mut above: Vec<(PathBuf, Vec<Place>)> = vec![(PathBuf::new(), root)];
        for (path, kind) in changes {
            let parent = path.parent().unwrap_or(Path::new(""));
            above.truncate(
                1 + above.iter().skip(1).take_while(|(dir, _)| parent.starts_with(dir)).count(),
            );
            let name = path.file_name().unwrap_or_default();
            if kind == ChangeKind::Deleted {
                writer.deletion(parent.as_os_str().as_bytes(), name)?;
                continue;
            }
            let places = above.last().map(|(_, places)| places.as_slice()).unwrap_or_default();
            let found = writer.stack().look_up(places, vec![name.to_owned()])?.pop().flatten();
            let found = found.ok_or_else(|| vanished(&path))?;
            if found.stat.kind == Kind::Dir {
                above.push((path.clone(), found.dirs.clone()));
            }
            let path = path.as_os_str().as_bytes().to_vec();
            writer.object(&Item { path, found, whole: true })?;
        }
        writer.finish()
    }
}

fn vanished(path: &Path) -> Error {
    Error::Corrupt {
        what: path.display().to_string(),
        detail: "it was there when the trees were compared, and is gone".to_owned(),
    }
}

fn compare(trees: &Comparison<'_>) -> Result<(Stack, Sorted)> {
    let open = |tree: &Tree| {
        let alone = tree.below.is_empty();
        let belief = if alone { trees.belief.whole_tree() } else { trees.belief };
        Stack::open(&tree.top, &tree.below, belief)
    };
    let old = trees.old.map(open).transpose()?;
    let mut walk = Walk {
        since: trees.since.unwrap_or(i64::MAX),
        new: Side { stack: open(trees.new)?, links: Links::default() },
        old: old.map(|stack| Side { stack, links: Links::default() }),
        changes: Sorted::default(),
        changed: HashSet::new(),
        todo: Vec::new(),
    };
    let base = walk.old.as_ref().map(|old| old.stack.root(0)).unwrap_or_default();
    walk.todo.push(Dir { path: PathBuf::new(), new: walk.new.stack.root(0), old: base });
    while let Some(dir) = walk.todo.pop() {
        walk.visit(&dir)?;
    }
    walk.compare_links();
    walk.changes.add_parents();
    Ok((walk.new.stack, walk.changes))
}

/// A directory of the new tree, and what the old one has of that path.
struct Dir {
    path: PathBuf,
    new: Vec<Place>,
    old: Vec<Place>,
}

struct Side {
    stack: Stack,
    links: Links,
}

/// Which names of a tree are one file.
#[derive(Default)]
struct Links {
    files: HashMap<PathBuf, (u64, u64)>,
    names: HashMap<(u64, u64), Vec<PathBuf>>,
}

impl Links {
    fn is_shared(found: &Found) -> bool {
        found.stat.kind != Kind::Dir && found.stat.nlink > 1
    }

    fn note(&mut self, path: &Path, found: &Found) {
        if Links::is_shared(found) {
            let file = (found.stat.dev, found.stat.ino);
            self.files.insert(path.to_path_buf(), file);
            self.names.entry(file).or_default().push(path.to_path_buf());
        }
    }

    /// The other names of the file at a path.
    fn partners<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = &'a PathBuf> {
        let names = self.files.get(path).and_then(|file| self.names.get(file));
        names.into_iter().flatten().filter(move |other| *other != path)
    }

    fn are_one(&self, a: &Path, b: &Path) -> bool {
        self.files.get(a).is_some_and(|file| self.files.get(b) == Some(file))
    }
}

struct Walk {
    /// What inodes changed at this time or later has to be read.
    since: i64,
    new: Side,
    old: Option<Side>,
    changes: Sorted,
    /// Those of them that have several names, or had.
    changed: HashSet<PathBuf>,
    todo: Vec<Dir>,
}

impl Walk {
    fn visit(&mut self, dir: &Dir) -> Result<()> {
        let mut names: BTreeSet<OsString> = names(&self.new.stack, &dir.new)?;
        if let Some(old) = &self.old {
            names.append(&mut self::names(&old.stack, &dir.old)?);
        }
        let mut todo = names.into_iter();
        loop {
            // What is known of an object takes far more memory than its name.
            let names: Vec<OsString> = todo.by_ref().take(BATCH).collect();
            if names.is_empty() {
                break;
            }
            let new = self.new.stack.look_up(&dir.new, names.clone())?;
            let old = match &self.old {
                Some(old) => old.stack.look_up(&dir.old, names.clone())?,
                None => names.iter().map(|_| None).collect(),
            };
            for ((name, new), old) in names.into_iter().zip(new).zip(old) {
                self.entry(&dir.path, &name, (new, old))?;
            }
        }
        self.changes.end(&dir.path);
        Ok(())
    }

    fn entry(
        &mut self,
        dir: &Path,
        name: &OsStr,
        (new, old): (Option<Found>, Option<Found>),
    ) -> Result<()> {
        let is_shared = |found: &Option<Found>| found.as_ref().is_some_and(Links::is_shared);
        let path = dir.join(name);
        if let Some((side, found)) = self.old.as_mut().zip(old.as_ref()) {
            side.links.note(&path, found);
        }
        if let Some(found) = &new {
            self.new.links.note(&path, found);
        }
        let kind = match (&new, &old, &self.old) {
            (None, Some(_), _) => Some(ChangeKind::Deleted),
            (Some(new), Some(old), Some(side)) => {
                let equal = equal((&self.new.stack, new), (&side.stack, old), self.since)?;
                (!equal).then_some(ChangeKind::Modified)
            }
            (Some(_), ..) => Some(ChangeKind::Added),
            (None, None, _) => None,
        };
        if let Some(kind) = kind {
            self.changes.note(name, kind);
            if is_shared(&new) || is_shared(&old) {
                self.changed.insert(path.clone());
            }
        }
        if let Some(new) = new.filter(|new| new.stat.kind == Kind::Dir) {
            let old = old.map(|old| old.dirs).unwrap_or_default();
            self.todo.push(Dir { path, new: new.dirs, old });
        }
        Ok(())
    }

    /// Names that have become one file, and names that have become two.
    fn compare_links(&mut self) {
        let Some(old) = &self.old else { return };
        let (before, now) = (&old.links, &self.new.links);
        let is_kept = |path: &Path| !self.changed.contains(path);
        let joined = now
            .files
            .keys()
            .filter(|path| now.partners(path).any(|other| !before.are_one(path, other)));
        let parted = before.files.keys().filter(|path| {
            let lost = |other: &PathBuf| is_kept(other) && !now.are_one(path, other);
            before.partners(path).any(lost)
        });
        let found: Vec<PathBuf> =
            joined.chain(parted).filter(|path| is_kept(path)).cloned().collect();
        found.iter().for_each(|path| self.changes.add(path, ChangeKind::Modified));
    }
}

fn names(stack: &Stack, places: &[Place]) -> Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for place in places {
        names.append(&mut stack.names(place)?);
    }
    Ok(names)
}

/// One object in its tree.
type At<'a> = (&'a Stack, &'a Found);

fn equal(new: At<'_>, old: At<'_>, since: i64) -> Result<bool> {
    let (a, b) = (&new.1.stat, &old.1.stat);
    if a.kind != Kind::Dir && (a.dev, a.ino) == (b.dev, b.ino) {
        return Ok(true);
    }
    let attributes = |s: &tree::Stat| (s.kind, s.mode, s.uid, s.gid, s.rdev, s.mtime, s.mtime_nsec);
    if attributes(a) != attributes(b) || (a.kind != Kind::Dir && a.size != b.size) {
        return Ok(false);
    }
    if !equal_xattrs(new, old)? {
        return Ok(false);
    }
    match a.kind {
        Kind::Symlink => Ok(target(new)? == target(old)?),
        Kind::File
            if a.size > 0 && (a.ctime >= since || a.ctime.saturating_sub(a.mtime) <= TICK) =>
        {
            equal_data(new, old)
        }
        _ => Ok(true),
    }
}

fn equal_xattrs(new: At<'_>, old: At<'_>) -> Result<bool> {
    let read = |(stack, found): At<'_>| {
        let dir = stack.open_dir(found.spot.layer, &found.spot.dir)?;
        xattrs::read(dir.as_fd(), &found.spot.name, &found.marks.keys, stack.belief())
            .on("read xattrs", stack.path_of(&found.spot))
    };
    let (new, old) = (read(new)?, read(old)?);
    Ok(new.user == old.user && new.record == old.record)
}

fn target((stack, found): At<'_>) -> Result<OsString> {
    let dir = stack.open_dir(found.spot.layer, &found.spot.dir)?;
    tree::read_link(dir, &found.spot.name).on("read symlink", stack.path_of(&found.spot))
}

fn equal_data(new: At<'_>, old: At<'_>) -> Result<bool> {
    let open = |(stack, found): At<'_>| {
        let spot: &Spot = found.data.as_ref().unwrap_or(&found.spot);
        let path = stack.path_of(spot);
        let dir = stack.open_dir(spot.layer, &spot.dir)?;
        Ok::<_, Error>((tree::open_file(dir, OsStr::new(&spot.name)).on("open", &path)?.0, path))
    };
    let ((new, new_path), (old, old_path)) = (open(new)?, open(old)?);
    let (mut a, mut b) = (Vec::with_capacity(PIECE), Vec::with_capacity(PIECE));
    let (mut new, mut old) = (new, old);
    loop {
        for (file, path, piece) in [(&mut new, &new_path, &mut a), (&mut old, &old_path, &mut b)] {
            piece.clear();
            file.take(PIECE as u64).read_to_end(piece).on("read", path)?;
        }
        if a != b || a.is_empty() {
            return Ok(a == b);
        }
    }
}
