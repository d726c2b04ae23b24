//! An upper directory as an image layer: a tar archive with OCI whiteouts.
//!
//! The same tree gives the same bytes. The archive needs nothing but itself: the data of a
//! metadata-only file and the content of a moved directory are taken from the lower directories, and
//! without them the archive is refused, as it is when anything cannot be read. A directory precedes
//! its content; in it the marks come first, then the rest by name. The root's own attributes are not
//! part of a layer.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use plyfs_fuse::owner::OverrideKind;

use super::archive::{BLOCK, Body, Entry, padding};
use super::marks::{self, Belief};
use super::output::Output;
use super::stack::{Found, Place, Spot, Stack};
use super::xattrs::{self, Attributes};
use crate::durable::{Staged, parent};
use crate::error::{Context, Error, Result};
use crate::sys::tree::{self, Kind, Stat};

/// Names of a directory that are looked up at a time: what is known of each takes far more memory than the name.
const BATCH: usize = 1024;

/// From this depth on only names are kept of the directories on the way.
const DEEP: usize = 8;

/// Longest target of a symlink (`PATH_MAX`).
const TARGET_LIMIT: u64 = 4096;

/// What to write.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// The directory that becomes a layer.
    pub upper: PathBuf,
    /// What lies below it, top first.
    pub lowers: Vec<PathBuf>,
    /// Believe redirects, metacopies and owners in `user.*` also with privilege in the initial user
    /// namespace, where anybody who may write to the upper directory could have planted them to read
    /// other people's files. Without privilege they are always believed.
    pub user_marks: bool,
}

/// Writes the archive to `out`. After an error `out` has no end of archive.
pub fn write(spec: &Spec, out: &mut impl Write) -> Result<()> {
    let belief = if spec.user_marks { Belief::ALL } else { Belief::standing() };
    write_believing(spec, belief, out)
}

/// The same of a layer of which it is known whose word can be taken, whatever `spec` says of that.
pub fn write_believing(spec: &Spec, belief: Belief, out: &mut impl Write) -> Result<()> {
    let stack = Stack::open(&spec.upper, &spec.lowers, belief)?;
    let mut writer = Writer::new(stack, out);
    let opaque = writer.stack.is_opaque();
    let parts = writer.stack.root(0);
    let root = Dir { path: Vec::new(), parts, opaque, whole: false };
    let mut way = vec![writer.content(root)?];
    while let Some(listing) = way.last_mut() {
        let Some(item) = writer.next(listing)? else {
            way.pop();
            continue;
        };
        if let Some(dir) = writer.object(&item)? {
            if way.len() >= DEEP {
                way.iter_mut().for_each(Listing::forget);
            }
            way.push(writer.content(dir)?);
        }
    }
    writer.finish()
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

/// What is still to be written of a directory's content.
struct Listing {
    dir: Dir,
    /// In the order in which they are written; what is already looked up of them comes before the rest.
    items: VecDeque<Item>,
    names: VecDeque<OsString>,
}

impl Listing {
    /// Goes back to names.
    fn forget(&mut self) {
        for item in self.items.drain(..).rev() {
            let name = item.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
            self.names.push_front(OsStr::from_bytes(name).to_owned());
        }
    }
}

/// An object to write.
pub(super) struct Item {
    pub(super) path: Vec<u8>,
    pub(super) found: Found,
    /// A directory's content is written whichever layer it comes from.
    pub(super) whole: bool,
}

pub(super) struct Writer<'a> {
    stack: Stack,
    out: Output<'a>,
    /// First name in the archive of each file that has several.
    names: HashMap<(u64, u64), Vec<u8>>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(stack: Stack, out: &'a mut impl Write) -> Writer<'a> {
        Writer { stack, out: Output::new(out), names: HashMap::new() }
    }

    pub(super) fn stack(&self) -> &Stack {
        &self.stack
    }

    /// Writes the marks of a directory, before anything else in it.
    fn content(&mut self, dir: Dir) -> Result<Listing> {
        if dir.opaque {
            self.mark(&dir.path, OsStr::new(marks::OPAQUE_FILE))?;
        }
        let mut names = BTreeSet::new();
        for place in dir.parts.iter().filter(|place| dir.whole || place.layer == 0) {
            names.append(&mut self.stack.names(place)?);
        }
        let many = names.len() > BATCH;
        let mut todo = names.into_iter();
        let mut listing = Listing { dir, items: VecDeque::new(), names: VecDeque::new() };
        loop {
            let names: Vec<OsString> = todo.by_ref().take(BATCH).collect();
            if names.is_empty() {
                return Ok(listing);
            }
            let found = self.stack.look_up(&listing.dir.parts, names.clone())?;
            for (name, found) in names.into_iter().zip(found) {
                match found {
                    // It is looked up again when its turn comes.
                    Some(_) if many => listing.names.push_back(name),
                    Some(found) => listing.items.push_back(item(&listing.dir, found, &name)),
                    // The directory is opaque, so there is nothing to delete.
                    None if listing.dir.whole => {}
                    None => self.deletion(&listing.dir.path, &name)?,
                }
            }
        }
    }

    /// The next object of a directory.
    fn next(&mut self, listing: &mut Listing) -> Result<Option<Item>> {
        while listing.items.is_empty() && !listing.names.is_empty() {
            let most = listing.names.len().min(BATCH);
            let names: Vec<OsString> = listing.names.drain(..most).collect();
            let found = self.stack.look_up(&listing.dir.parts, names.clone())?;
            for (name, found) in names.into_iter().zip(found) {
                let found = found.ok_or_else(|| vanished(&listing.dir.path, &name))?;
                listing.items.push_back(item(&listing.dir, found, &name));
            }
        }
        Ok(listing.items.pop_front())
    }

    /// Writes that a name is gone. Of one that looks like a mark this cannot be said, nor has any
    /// image it: its whiteout would be another mark.
    pub(super) fn deletion(&mut self, dir: &[u8], name: &OsStr) -> Result<()> {
        if marks::name(name) == marks::Name::Plain {
            return self.mark(dir, &marks::dot_name(name));
        }
        let path = join(dir, name);
        log::warn!(
            "{}: no archive can say that it is gone",
            Path::new(OsStr::from_bytes(&path)).display()
        );
        Ok(())
    }

    fn mark(&mut self, dir: &[u8], name: &OsStr) -> Result<()> {
        self.entry(&Entry::mark(join(dir, name)))
    }

    /// Writes one object. Returns the directory to go on with, if it is one.
    pub(super) fn object(&mut self, item: &Item) -> Result<Option<Dir>> {
        let spot = &item.found.spot;
        let shown = self.stack.path_of(spot);
        let dir = self.stack.open_dir(spot.layer, &spot.dir)?;
        let keys = &item.found.marks.keys;
        if !can_be_named(&item.path, item.found.stat.kind) {
            log::warn!("{}: in an archive its name is a mark, left out", shown.display());
            return Ok(None);
        }
        let attributes = xattrs::read(dir.as_fd(), &spot.name, keys, self.stack.belief())
            .on("read xattrs", &shown)?;
        if let Some(mark) = &item.found.marks.foreign {
            return Err(foreign(&shown, mark));
        }
        if attributes.unbelieved {
            log::warn!("{}: its owner in an attribute is not believed", shown.display());
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
        let (file, _) = tree::open_file(dir, &spot.name).on("open", &shown)?;
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
        let (mut file, stat) = tree::open_file(dir, &spot.name).on("open", &shown)?;
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
        let mut left = size;
        while left > 0 {
            let room = self.out.room(usize::try_from(left).unwrap_or(usize::MAX))?;
            let got = file.read(room).on("read", shown)?;
            if got == 0 {
                return Err(Error::Corrupt {
                    what: shown.display().to_string(),
                    detail: format!("{left} of {size} bytes are missing"),
                });
            }
            self.out.added(got);
            left = left.saturating_sub(u64::try_from(got).unwrap_or(left));
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry) -> Result<()> {
        let path = OsStr::from_bytes(&entry.path);
        let bytes = entry.to_bytes().on("make a tar entry of", Path::new(path))?;
        self.raw(&bytes)
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write(bytes)
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Result<()> {
        self.raw(&[0; 2 * BLOCK as usize])?;
        self.out.finish()
    }
}

fn item(dir: &Dir, found: Found, name: &OsStr) -> Item {
    Item { path: join(&dir.path, name), found, whole: dir.whole }
}

/// Whether an archive can have an object of this path. Names that start with `.wh.` are marks there, but for directories,
/// and AUFS has those that start with `.wh..wh.` for itself.
fn can_be_named(path: &[u8], kind: Kind) -> bool {
    let reserved = |name: &[u8]| name.starts_with(marks::RESERVED);
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    !path.split(|&byte| byte == b'/').any(reserved)
        && (kind == Kind::Dir || !name.starts_with(marks::PREFIX))
}

/// An object that went while the archive was written.
fn vanished(dir: &[u8], name: &OsStr) -> Error {
    let path = join(dir, name);
    Error::Corrupt {
        what: Path::new(OsStr::from_bytes(&path)).display().to_string(),
        detail: "it went while the archive was written".to_owned(),
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
        let mut file = File::options().write(true).open(path).on("open", path)?;
        return write(spec, &mut file);
    }
    refuse_inside(spec, path)?;
    let mut staged = Staged::beside(path)?;
    write(spec, &mut staged.file)?;
    staged.publish(path)
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
