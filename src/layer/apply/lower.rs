//! What the layers below have, read only.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use plyfs_fuse::owner::OverrideKind;
use plyfs_fuse::sys;

use super::dirs::{At, KEPT_OPEN};
use super::reader::{Entry, Kind};
use super::unpack::Unpack;
use crate::error::{Context, Error, Result};
use crate::layer::marks::Belief;
use crate::layer::stack::{Found, Place, Stack};
use crate::layer::xattrs;
use crate::sys::copy;
use crate::sys::tree::{self, Kind as OnDisk};

/// The lower layers as an overlay merges them.
pub(super) struct Below(Option<Stack>);

impl Below {
    pub(super) fn open(lowers: &[PathBuf], belief: Belief) -> Result<Below> {
        let Some((top, rest)) = lowers.split_first() else { return Ok(Below(None)) };
        Ok(Below(Some(Stack::open(top, rest, belief)?)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    fn root(&self) -> Vec<Place> {
        self.0.as_ref().map_or_else(Vec::new, |stack| stack.root(0))
    }

    fn find(&self, dir: &[Place], name: &[u8]) -> Result<Option<Found>> {
        let Some(stack) = self.0.as_ref().filter(|_| !dir.is_empty()) else { return Ok(None) };
        let names = vec![OsString::from_vec(name.to_vec())];
        Ok(stack.look_up(dir, names)?.pop().flatten())
    }

    /// What a symlink says; `None` for anything else.
    pub(super) fn link(&self, found: &Found) -> Result<Option<Vec<u8>>> {
        let Some(stack) = self.0.as_ref() else { return Ok(None) };
        if found.stat.kind != OnDisk::Symlink {
            return Ok(None);
        }
        let dir = stack.open_dir(found.spot.layer, &found.spot.dir)?;
        let target = tree::read_link(&*dir, &found.spot.name);
        Ok(Some(target.on("read symlink", stack.path_of(&found.spot))?.into_vec()))
    }

    /// An object as an entry would have it.
    pub(super) fn entry(&self, found: &Found, name: &[u8]) -> Result<Entry> {
        let stat = &found.stat;
        let kind = match stat.kind {
            OnDisk::File => Kind::File,
            OnDisk::Dir => Kind::Dir,
            OnDisk::Symlink => Kind::Symlink,
            OnDisk::Char => Kind::Char,
            OnDisk::Block => Kind::Block,
            OnDisk::Fifo | OnDisk::Socket => Kind::Fifo,
        };
        let mut entry = Entry {
            name: name.to_vec(),
            kind,
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            mtime: (stat.mtime, stat.mtime_nsec),
            atime: None,
            link: self.link(found)?.unwrap_or_default(),
            device: stat.rdev,
            xattrs: Vec::new(),
            size: stat.size,
            stored: 0,
            map: None,
        };
        if let Some(stack) = &self.0 {
            let dir = stack.open_dir(found.spot.layer, &found.spot.dir)?;
            let read =
                xattrs::read(dir.as_fd(), &found.spot.name, &found.marks.keys, stack.belief());
            let read = read.on("read xattrs", stack.path_of(&found.spot))?;
            if let Some(record) = read.record {
                (entry.mode, entry.uid, entry.gid) = (record.mode, record.uid, record.gid);
                (entry.kind, entry.device) = recorded(record.kind, &entry);
            }
            entry.xattrs = read.user;
        }
        Ok(entry)
    }

    /// All names of a directory.
    fn names(&self, dir: &[Place]) -> Result<Vec<OsString>> {
        let mut names = std::collections::BTreeSet::new();
        if let Some(stack) = &self.0 {
            for place in dir {
                names.append(&mut stack.names(place)?);
            }
        }
        Ok(names.into_iter().collect())
    }
}

impl Unpack<'_> {
    /// What the lower layers have under a name of the last directory.
    pub(super) fn below(&mut self, name: &[u8]) -> Result<Option<Found>> {
        if self.below.is_empty() {
            return Ok(None);
        }
        let places = self.places()?;
        self.below.find(&places, name)
    }

    /// Where the lower layers have the last directory.
    fn places(&mut self) -> Result<Vec<Place>> {
        let (mut places, depth) = (Vec::new(), self.dirs.depth());
        let known = self.dirs.all().iter().rposition(|dir| dir.below.is_some()).unwrap_or(0);
        for at in known..=depth {
            let dir = &self.dirs.all()[at];
            places = match &dir.below {
                Some(known) => known.clone(),
                None if dir.opaque => Vec::new(),
                None if at == 0 => self.below.root(),
                None => {
                    let name = dir.name.clone();
                    self.below.find(&places, &name)?.map_or_else(Vec::new, |found| found.dirs)
                }
            };
            if at == 0 || depth - at < KEPT_OPEN {
                self.dirs.all()[at].below = Some(places.clone());
            }
        }
        Ok(places)
    }

    /// Names of the last directory that the lower layers have.
    pub(super) fn names_below(&mut self) -> Result<Vec<OsString>> {
        let places = self.places()?;
        let mut names = self.below.names(&places)?;
        let mut failed = None;
        names.retain(|name| match self.below.find(&places, name.as_bytes()) {
            Ok(found) => found.is_some(),
            Err(error) => {
                failed = Some(error);
                false
            }
        });
        failed.map_or(Ok(names), Err)
    }

    /// Copies an object of a lower layer to the same name in the last directory.
    pub(super) fn copy_up(&mut self, found: &Found, name: &OsStr) -> Result<()> {
        let entry = self.below.entry(found, name.as_bytes())?;
        let Some(stack) = &self.below.0 else { return Ok(()) };
        let made = match entry.kind {
            Kind::File => {
                let spot = match found.marks.metacopy {
                    true => found.data.as_ref(),
                    false => Some(&found.spot),
                };
                let Some(spot) = spot else {
                    let what = stack.path_of(&found.spot).display().to_string();
                    return Err(Error::Corrupt { what, detail: "its data is missing".into() });
                };
                let shown = stack.path_of(spot);
                let dir = stack.open_dir(spot.layer, &spot.dir)?;
                let (from, stat) = tree::open_file(&*dir, &spot.name).on("open", &shown)?;
                self.count(stat.size)?;
                let file = self.create(name, 0o600)?;
                copy::data(&from, &file, stat.size).on("copy", shown)?;
                return self.dress(&file, name, &entry, 0o600);
            }
            Kind::Symlink => sys::symlink(self.dirs.fd(), name, OsStr::from_bytes(&entry.link)),
            Kind::Dir | Kind::Link => return Err(entry.wrong("is a directory in a lower layer")),
            Kind::Char | Kind::Block | Kind::Fifo => return self.node(&entry, name),
        };
        made.at("copy", &self.dirs, name.as_bytes())?;
        self.dress_at(&entry, name)
    }
}

/// The kind and device of an object, of which a record may say another. Only regular files stand for others.
fn recorded(kind: Option<OverrideKind>, entry: &Entry) -> (Kind, (u32, u32)) {
    match kind.filter(|_| entry.kind == Kind::File) {
        Some(OverrideKind::Char(major, minor)) => (Kind::Char, (major, minor)),
        Some(OverrideKind::Block(major, minor)) => (Kind::Block, (major, minor)),
        Some(OverrideKind::Pipe | OverrideKind::Socket) => (Kind::Fifo, entry.device),
        _ => (entry.kind, entry.device),
    }
}
