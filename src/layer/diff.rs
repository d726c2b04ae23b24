//! An upper directory as an image layer: a tar archive with OCI whiteouts.
//!
//! The same tree gives the same bytes. The archive needs nothing but itself: the data of a
//! metadata-only file and the content of a moved directory are taken from the lower directories, and
//! without them the archive is refused, as it is when anything cannot be read. A directory precedes
//! its content; in it the marks come first, then the rest by name. The root's own attributes are not
//! part of a layer.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use plyfs_fuse::owner::OverrideKind;

use super::archive::{BLOCK, Body, Entry, padding};
use super::marks::{self, Belief};
use super::stack::{Found, Place, Spot, Stack};
use super::xattrs::{self, Attributes};
use crate::durable::{Staged, parent};
use crate::error::{Context, Error, Result};
use crate::sys::tree::{self, Kind, Stat};

/// Data is copied in pieces of this size.
const PIECE: usize = 128 * 1024;

/// Longest target of a symlink (`PATH_MAX`).
const TARGET_LIMIT: u64 = 4096;

/// What to write.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// The directory that becomes a layer.
    pub upper: PathBuf,
    /// What lies below it, top first.
    pub lowers: Vec<PathBuf>,
    /// Believe redirects and metacopies in `user.*` also with privilege in the initial user
    /// namespace, where anybody who may write to the upper directory could have planted them to read
    /// other people's files. Without privilege they are always believed.
    pub user_marks: bool,
}

/// Writes the archive to `out`. After an error `out` has no end of archive.
pub fn write(spec: &Spec, out: &mut impl Write) -> Result<()> {
    let planted = tree::has_initial_privilege() && !spec.user_marks;
    let belief = if planted { Belief::Trusted } else { Belief::All };
    let stack = Stack::open(&spec.upper, &spec.lowers, belief)?;
    let mut writer = Writer::new(stack, out);
    let opaque = writer.stack.is_opaque();
    let mut todo = Vec::new();
    let root = writer.stack.root(0);
    writer.content(Dir { path: Vec::new(), parts: root, opaque, whole: false }, &mut todo)?;
    while let Some(item) = todo.pop() {
        if let Some(dir) = writer.object(&item)? {
            writer.content(dir, &mut todo)?;
        }
    }
    writer.raw(&[0; 2 * BLOCK as usize])
}

/// A directory of the archive, written; its content is not.
pub(super) struct Dir {
    path: Vec<u8>,
    /// What makes it up.
    parts: Vec<Place>,
    opaque: bool,
    /// Everything in it is written, whichever layer it comes from.
    whole: bool,
}

/// An object to write.
pub(super) struct Item {
    pub(super) path: Vec<u8>,
    pub(super) found: Found,
    /// A directory's content is written whichever layer it comes from.
    pub(super) whole: bool,
}

pub(super) struct Writer<'a, W> {
    stack: Stack,
    out: &'a mut W,
    /// First name in the archive of each file that has several.
    names: HashMap<(u64, u64), Vec<u8>>,
    piece: Vec<u8>,
}

impl<'a, W: Write> Writer<'a, W> {
    pub(super) fn new(stack: Stack, out: &'a mut W) -> Writer<'a, W> {
        Writer { stack, out, names: HashMap::new(), piece: vec![0; PIECE] }
    }

    pub(super) fn stack(&self) -> &Stack {
        &self.stack
    }

    /// Writes the marks of a directory and queues its objects, the first one last.
    fn content(&mut self, dir: Dir, todo: &mut Vec<Item>) -> Result<()> {
        if dir.opaque {
            self.mark(&dir.path, OsStr::new(marks::OPAQUE_FILE))?;
        }
        let mut names = BTreeSet::new();
        for place in dir.parts.iter().filter(|place| dir.whole || place.layer == 0) {
            names.append(&mut self.stack.names(place)?);
        }
        let names: Vec<OsString> = names.into_iter().collect();
        let found = self.stack.look_up(&dir.parts, names.clone())?;
        let mut items = Vec::new();
        for (name, found) in names.into_iter().zip(found) {
            match found {
                Some(found) => {
                    let path = join(&dir.path, &name);
                    items.push(Item { path, found, whole: dir.whole });
                }
                // The directory is opaque, so there is nothing to delete.
                None if dir.whole => {}
                None => self.mark(&dir.path, &marks::dot_name(&name))?,
            }
        }
        todo.extend(items.into_iter().rev());
        Ok(())
    }

    pub(super) fn mark(&mut self, dir: &[u8], name: &OsStr) -> Result<()> {
        self.entry(&Entry::mark(join(dir, name)))
    }

    /// Writes one object. Returns the directory to go on with, if it is one.
    pub(super) fn object(&mut self, item: &Item) -> Result<Option<Dir>> {
        let spot = &item.found.spot;
        let shown = self.stack.path_of(spot);
        let dir = self.stack.open_dir(spot.layer, &spot.dir)?;
        let attributes = xattrs::read(dir.as_fd(), &spot.name).on("read xattrs", &shown)?;
        if let Some(mark) = &item.found.marks.foreign {
            return Err(foreign(&shown, mark));
        }
        let stat = &item.found.stat;
        let Some(body) = self.body(item, &attributes)? else {
            log::warn!("{}: a socket, left out", shown.display());
            return Ok(None);
        };
        let (mode, uid, gid) = match &attributes.record {
            Some(record) => (record.mode, record.uid, record.gid),
            None => (stat.mode, stat.uid, stat.gid),
        };
        let xattrs = if matches!(body, Body::Link(_)) { Vec::new() } else { attributes.user };
        let mtime = (stat.mtime, stat.mtime_nsec);
        let entry = Entry { path: item.path.clone(), body, mode, uid, gid, mtime, xattrs };
        self.entry(&entry)?;
        match entry.body {
            Body::File(size) => self.data(item, size)?,
            Body::Dir => return Ok(Some(self.descend(item)?)),
            _ => {}
        }
        Ok(None)
    }

    /// What the object is in the archive; `None` for a socket.
    fn body(&mut self, item: &Item, attributes: &Attributes) -> Result<Option<Body>> {
        let Found { spot, stat, .. } = &item.found;
        if stat.kind != Kind::Dir && stat.nlink > 1 {
            if let Some(first) = self.names.get(&(stat.dev, stat.ino)) {
                return Ok(Some(Body::Link(first.clone())));
            }
        }
        let recorded = attributes.record.and_then(|record| record.kind);
        let body = match recorded.filter(|_| stat.kind != Kind::Dir) {
            Some(OverrideKind::Symlink) => Body::Symlink(self.target(spot, stat)?),
            Some(OverrideKind::Pipe) => Body::Fifo,
            Some(OverrideKind::Socket) => return Ok(None),
            Some(OverrideKind::Block(major, minor)) => Body::Block(major, minor),
            Some(OverrideKind::Char(major, minor)) => Body::Char(major, minor),
            Some(OverrideKind::Dir | OverrideKind::File) | None => match stat.kind {
                Kind::File => Body::File(stat.size),
                Kind::Dir => Body::Dir,
                Kind::Symlink => Body::Symlink(self.target(spot, stat)?),
                Kind::Char => Body::Char(stat.rdev.0, stat.rdev.1),
                Kind::Block => Body::Block(stat.rdev.0, stat.rdev.1),
                Kind::Fifo => Body::Fifo,
                Kind::Socket => return Ok(None),
            },
        };
        if stat.kind != Kind::Dir && stat.nlink > 1 {
            self.names.insert((stat.dev, stat.ino), item.path.clone());
        }
        Ok(Some(body))
    }

    /// What a symlink says; one that could only be stored as a file has it as its content.
    fn target(&self, spot: &Spot, stat: &Stat) -> Result<Vec<u8>> {
        let (shown, dir) = (self.stack.path_of(spot), self.stack.open_dir(spot.layer, &spot.dir)?);
        if stat.kind == Kind::Symlink {
            return Ok(tree::read_link(dir, &spot.name).on("read symlink", shown)?.into_vec());
        }
        let mut target = Vec::new();
        let file = tree::open_file(dir, &spot.name).on("open", &shown)?;
        file.take(TARGET_LIMIT).read_to_end(&mut target).on("read", shown)?;
        Ok(target)
    }

    fn descend(&self, item: &Item) -> Result<Dir> {
        let found = &item.found;
        let moved = found.marks.redirect.is_some() && !found.opaque;
        if moved && found.dirs.len() < 2 {
            let shown = self.stack.path_of(&found.spot);
            return Err(missing(&self.stack, &shown, "a moved directory, whose content"));
        }
        let opaque = !item.whole && (found.opaque || moved);
        let parts = found.dirs.clone();
        Ok(Dir { path: item.path.clone(), parts, opaque, whole: item.whole || moved })
    }

    /// Copies the data of a file and pads it.
    fn data(&mut self, item: &Item, size: u64) -> Result<()> {
        let found = &item.found;
        let spot = if found.marks.metacopy {
            let shown = self.stack.path_of(&found.spot);
            let what = "a metadata-only file, whose data";
            found.data.as_ref().ok_or_else(|| missing(&self.stack, &shown, what))?
        } else {
            &found.spot
        };
        let shown = self.stack.path_of(spot);
        let dir = self.stack.open_dir(spot.layer, &spot.dir)?;
        let mut file = tree::open_file(dir, &spot.name).on("open", &shown)?;
        let stat = tree::stat(&file, OsStr::new("")).on("stat", &shown)?;
        let replaced =
            !found.marks.metacopy && (stat.dev, stat.ino) != (found.stat.dev, found.stat.ino);
        if replaced || stat.size != size {
            let detail = format!("{} bytes where {size} were expected", stat.size);
            return Err(Error::Corrupt { what: shown.display().to_string(), detail });
        }
        self.copy(&mut file, size, &shown)?;
        self.raw(&[0; BLOCK as usize][..padding(size)])
    }

    fn copy(&mut self, file: &mut File, size: u64, shown: &Path) -> Result<()> {
        let mut piece = std::mem::take(&mut self.piece);
        let mut left = size;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let got = file.read(&mut piece[..want]).on("read", shown)?;
            if got == 0 {
                return Err(Error::Corrupt {
                    what: shown.display().to_string(),
                    detail: format!("{left} of {size} bytes are missing"),
                });
            }
            self.raw(&piece[..got])?;
            left = left.saturating_sub(u64::try_from(got).unwrap_or(left));
        }
        self.piece = piece;
        Ok(())
    }

    fn entry(&mut self, entry: &Entry) -> Result<()> {
        let path = OsStr::from_bytes(&entry.path);
        let bytes = entry.to_bytes().on("make a tar entry of", Path::new(path))?;
        self.raw(&bytes)
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).on("write", "the archive")
    }
}

/// Two names in the archive.
fn join(dir: &[u8], name: &OsStr) -> Vec<u8> {
    if dir.is_empty() {
        return name.as_bytes().to_vec();
    }
    [dir, b"/", name.as_bytes()].concat()
}

fn missing(stack: &Stack, path: &Path, what: &str) -> Error {
    let why = match stack.lowers() {
        0 => "is in a lower directory, and none was given",
        _ => "is in none of the lower directories",
    };
    Error::invalid(path.display().to_string(), format!("{what} {why}"))
}

fn foreign(path: &Path, mark: &OsStr) -> Error {
    let why = format!(
        "{} is not believed with privilege, anybody could have set it",
        Path::new(mark).display()
    );
    Error::invalid(path.display().to_string(), why)
}

/// Writes the archive to the file at `path`, which is there whole or not at all. What is not a
/// regular file (a pipe, a device) is written to directly.
pub fn save(spec: &Spec, path: &Path) -> Result<()> {
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let file = File::options().write(true).open(path).on("open", path)?;
        return buffered(spec, file).map(|_| ());
    }
    refuse_inside(spec, path)?;
    let staged = Staged::beside(path)?;
    buffered(spec, staged.file.try_clone().on("dup", path)?)?;
    staged.publish(path)
}

fn buffered(spec: &Spec, file: File) -> Result<File> {
    let mut out = std::io::BufWriter::with_capacity(PIECE, file);
    write(spec, &mut out)?;
    out.into_inner().map_err(std::io::IntoInnerError::into_error).on("write", "the archive")
}

/// The archive would be part of itself.
fn refuse_inside(spec: &Spec, path: &Path) -> Result<()> {
    let upper = spec.upper.canonicalize().on("open", &spec.upper)?;
    let dir = parent(path).canonicalize().on("open", parent(path))?;
    match dir.starts_with(upper) {
        true => Err(Error::invalid(path.display().to_string(), "lies in the upper directory")),
        false => Ok(()),
    }
}
