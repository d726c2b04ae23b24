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
        alike: Vec::new(),
        wanted: None,
        todo: Vec::new(),
    };
    walk.run()?;
    if walk.has_alike_links() {
        walk.run()?;
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

/// Device and inode of a file.
type File = (u64, u64);

/// Which names of a tree are one file, of those names that may not be the same in both trees.
#[derive(Default)]
struct Links {
    files: HashMap<PathBuf, File>,
    names: HashMap<File, Vec<PathBuf>>,
}

impl Links {
    fn is_shared(found: &Found) -> bool {
        found.stat.kind != Kind::Dir && found.stat.nlink > 1
    }

    fn file(found: &Found) -> File {
        (found.stat.dev, found.stat.ino)
    }

    fn note(&mut self, path: &Path, found: &Found) {
        if Links::is_shared(found) {
            let file = Links::file(found);
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
    /// Files with several names of which both trees have the same under one name: mostly all of two trees whose files are links
    /// to each other, so no names are kept.
    alike: Vec<File>,
    /// In a second walk, for their names: those of them that have other names in one of the trees, too.
    wanted: Option<HashSet<File>>,
    todo: Vec<Dir>,
}

impl Walk {
    fn run(&mut self) -> Result<()> {
        let old = self.old.as_ref().map(|old| old.stack.root(0)).unwrap_or_default();
        self.todo.push(Dir { path: PathBuf::new(), new: self.new.stack.root(0), old });
        while let Some(dir) = self.todo.pop() {
            self.visit(&dir)?;
        }
        Ok(())
    }

    /// Whether names that are alike in both trees have to be compared with others; then they are wanted.
    fn has_alike_links(&mut self) -> bool {
        let alike = std::mem::take(&mut self.alike).into_iter();
        let (old, new) = (self.old.as_ref(), &self.new);
        let has_others =
            |file: &File| old.iter().chain([&new]).any(|side| side.links.names.contains_key(file));
        let wanted: HashSet<File> = alike.filter(has_others).collect();
        let any = !wanted.is_empty();
        self.wanted = Some(wanted);
        any
    }

    fn note_links(&mut self, path: &Path, new: Option<&Found>, old: Option<&Found>) {
        let Some(side) = &mut self.old else { return };
        let alike = match (new, old) {
            (Some(new), Some(old)) if Links::is_shared(new) => {
                Some(Links::file(new)).filter(|file| *file == Links::file(old))
            }
            _ => None,
        };
        match (alike, &self.wanted) {
            (Some(file), None) => return self.alike.push(file),
            (Some(file), Some(wanted)) if wanted.contains(&file) => {}
            (None, None) => {}
            _ => return,
        }
        if let Some(found) = old {
            side.links.note(path, found);
        }
        if let Some(found) = new {
            self.new.links.note(path, found);
        }
    }

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
        if self.wanted.is_none() {
            self.changes.end(&dir.path);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        dir: &Path,
        name: &OsStr,
        (new, old): (Option<Found>, Option<Found>),
    ) -> Result<()> {
        let path = dir.join(name);
        self.note_links(&path, new.as_ref(), old.as_ref());
        if self.wanted.is_none() {
            self.note_change(&path, name, (new.as_ref(), old.as_ref()))?;
        }
        if let Some(new) = new.filter(|new| new.stat.kind == Kind::Dir) {
            let old = old.map(|old| old.dirs).unwrap_or_default();
            self.todo.push(Dir { path, new: new.dirs, old });
        }
        Ok(())
    }

    fn note_change(
        &mut self,
        path: &Path,
        name: &OsStr,
        (new, old): (Option<&Found>, Option<&Found>),
    ) -> Result<()> {
        let kind = match (new, old, &self.old) {
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
            if new.is_some_and(Links::is_shared) || old.is_some_and(Links::is_shared) {
                self.changed.insert(path.to_path_buf());
            }
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
