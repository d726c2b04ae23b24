//! The way to where an entry goes: name by name, symlinks followed as in a chroot, of lower layers too.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use plyfs_fuse::sys::{self, Stat};
use plyfs_fuse::whiteout;

use super::attributes::has_default_acl;
use super::dirs::{At, DIR, Dir};
use super::reader::{Entry, Kind};
use super::unpack::Unpack;
use crate::error::Result;
use crate::layer::stack::Found;
use crate::sys::unpack;

/// Symlinks on one way, as the kernel counts them (`MAXSYMLINKS`).
const LINKS: usize = 40;

/// What the way to a directory is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Something goes there: what is missing is made.
    Content,
    /// A deletion, which means nothing behind a dead symlink, nor where there is nothing to delete from.
    Deletion,
    /// What is there: only directories of lower layers are made.
    Look,
}

/// What a step of the way found.
pub(super) enum Step {
    In,
    Link(Vec<u8>),
    /// No directory here; what the lower layers have.
    Missing(Option<Box<Found>>),
    /// No directory here any more.
    Deleted,
}

impl Unpack<'_> {
    /// Goes to the directory of these names, and says whether it is there.
    pub(super) fn enter(&mut self, names: &[&[u8]], wanted: Wanted, entry: &Entry) -> Result<bool> {
        let common = self.dirs.common(names);
        self.dirs.keep(common)?;
        let mut todo: VecDeque<Vec<u8>> =
            names[common..].iter().map(|name| name.to_vec()).collect();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    self.dirs.keep(self.dirs.depth().saturating_sub(1))?;
                    continue;
                }
                _ => {}
            }
            match self.step(&name, entry)? {
                Step::In => {}
                Step::Link(target) => {
                    links += 1;
                    if links > LINKS {
                        return Err(entry.wrong("has too many symlinks in its path"));
                    }
                    if target.starts_with(b"/") {
                        self.dirs.keep(0)?;
                    }
                    for part in target.split(|&byte| byte == b'/').rev() {
                        todo.push_front(part.to_vec());
                    }
                }
                Step::Missing(found) => {
                    let below_dir = found.as_ref().is_some_and(|found| !found.dirs.is_empty());
                    // Where no lower layer is known, any may be there.
                    let known = self.dialect.is_none() || !self.below.is_empty();
                    match wanted {
                        Wanted::Deletion if (links > 0 || known) && !below_dir => return Ok(false),
                        Wanted::Look if !below_dir => return Ok(false),
                        _ => self.imply(&name, found, wanted, entry)?,
                    }
                }
                Step::Deleted if wanted == Wanted::Content => {
                    self.imply(&name, None, wanted, entry)?;
                }
                Step::Deleted => return Ok(false),
            }
            // One more name follows.
            if u64::try_from(self.dirs.depth()).unwrap_or(u64::MAX) >= self.limits.depth {
                let depth = self.limits.depth;
                return Err(
                    entry.wrong(format!("leads to more than {depth} names, the limit 'depth'"))
                );
            }
            let path = self.limits.path;
            if u64::try_from(self.dirs.bytes()).unwrap_or(u64::MAX) > path {
                return Err(
                    entry.wrong(format!("leads to more than {path} bytes, the limit 'path'"))
                );
            }
        }
        Ok(true)
    }

    /// One name further.
    pub(super) fn step(&mut self, name: &[u8], entry: &Entry) -> Result<Step> {
        let at = OsStr::from_bytes(name);
        match sys::open(self.dirs.fd(), at, DIR) {
            Ok(fd) => {
                let stat = sys::fstat(&fd).at("stat", &self.dirs, name)?;
                self.push_old(name, fd, &stat, None)?;
                Ok(Step::In)
            }
            Err(error) => match sys::errno(&error) {
                sys::ENOENT => self.step_below(name),
                sys::ENOTDIR | sys::ELOOP => self.step_aside(name, entry),
                // The owner may not enter a directory that was closed by an earlier entry.
                sys::EACCES if !self.is_root => {
                    let stat = sys::stat(self.dirs.fd(), at).at("stat", &self.dirs, name)?;
                    let mode = stat.mode & 0o7777;
                    unpack::chmod_at(self.dirs.fd(), at, mode | 0o700)
                        .at("chmod", &self.dirs, name)?;
                    let fd = sys::open(self.dirs.fd(), at, DIR).at("open", &self.dirs, name)?;
                    self.push_old(name, fd, &stat, Some(mode))?;
                    Ok(Step::In)
                }
                _ => Err(error).at("open", &self.dirs, name),
            },
        }
    }

    /// The name is not in the target.
    fn step_below(&mut self, name: &[u8]) -> Result<Step> {
        let Some(found) = self.below(name)? else { return Ok(Step::Missing(None)) };
        match self.below.link(&found)? {
            Some(target) => Ok(Step::Link(target)),
            None => Ok(Step::Missing(Some(Box::new(found)))),
        }
    }

    /// The name is there and no directory.
    fn step_aside(&mut self, name: &[u8], entry: &Entry) -> Result<Step> {
        let at = OsStr::from_bytes(name);
        let stat = sys::stat(self.dirs.fd(), at).at("stat", &self.dirs, name)?;
        if stat.kind() == sys::S_IFLNK {
            let target = sys::readlink(self.dirs.fd(), at).at("read symlink", &self.dirs, name)?;
            return Ok(Step::Link(target.as_bytes().to_vec()));
        }
        let below = self.is_whiteout(at, &stat)?;
        if below || !self.is_brought(&self.dirs.path_of(name)) {
            return Ok(Step::Deleted);
        }
        let file = self.dirs.path_of(name);
        Err(entry.wrong(format!("lies below '{}', which is no directory", file.escape_ascii())))
    }

    /// Goes into a directory that was there.
    fn push_old(
        &mut self,
        name: &[u8],
        fd: std::os::fd::OwnedFd,
        stat: &Stat,
        mode: Option<u32>,
    ) -> Result<()> {
        let mut dir = Dir::new(name, fd, stat);
        dir.mode = mode;
        if !self.is_root && stat.mode & 0o700 != 0o700 && mode.is_none() {
            dir.mode = Some(stat.mode & 0o7777);
        }
        self.dirs.push(dir);
        if self.dirs.top().mode.is_some() {
            let opened = stat.mode & 0o7777 | 0o700;
            unpack::chmod(self.dirs.fd(), opened).at("chmod", &self.dirs, b"")?;
        }
        let acl = has_default_acl(self.dirs.fd()).at("read xattrs of", &self.dirs, b"")?;
        let marked = match self.dialect.filter(|_| !self.below.is_empty()) {
            Some(dialect) => {
                let marks = whiteout::marks(self.dirs.fd(), OsStr::new(""), dialect.space);
                marks.at("read xattrs of", &self.dirs, b"")?.opaque
            }
            None => false,
        };
        let top = self.dirs.top_mut();
        (top.acl, top.opaque) = (acl, marked);
        Ok(())
    }

    /// Makes a directory that the archive leaves out, like that of the lower layers if there is one.
    fn imply(
        &mut self,
        name: &[u8],
        found: Option<Box<Found>>,
        wanted: Wanted,
        entry: &Entry,
    ) -> Result<()> {
        let found = found.filter(|found| !found.dirs.is_empty());
        let implied = match &found {
            Some(found) => self.below.entry(found, name)?,
            None => Entry {
                name: name.to_vec(),
                kind: Kind::Dir,
                mode: 0o755,
                uid: 0,
                gid: 0,
                mtime: entry.mtime,
                atime: None,
                link: Vec::new(),
                device: (0, 0),
                xattrs: Vec::new(),
                size: 0,
                stored: 0,
                map: None,
            },
        };
        self.dir(&implied, OsStr::from_bytes(name))?;
        let above = self.dirs.depth().saturating_sub(1);
        self.dirs.all()[above].changed = true;
        self.dirs.top_mut().below = found.map(|found| found.dirs);
        let path = self.dirs.path();
        match wanted {
            Wanted::Content => self.bring(&path),
            Wanted::Deletion | Wanted::Look => self.lend(&path),
        }
    }
}
