//! The directories on the way to where an entry goes, open, the root first.
//!
//! Entries mostly follow each other within a directory, so the way stays open and only its end changes. What
//! is changed in a directory moves its time; so each one's times are noted on the way in, and set on the way
//! out, deepest first. That needs memory for the way alone, in whatever order the entries come.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use plyfs_fuse::sys::{self, Stat};

use crate::error::{Context, Error, Result};
use crate::layer::stack::Place;
use crate::sys::unpack::{self, Moment};

/// Directories that are open at a time, besides the root; those above are opened again when they are needed, and looked
/// up again in the lower layers.
pub(super) const KEPT_OPEN: usize = 64;

/// How a directory is opened.
pub(super) const DIR: i32 = sys::O_RDONLY | sys::O_DIRECTORY;

/// One directory.
#[derive(Debug)]
pub(super) struct Dir {
    pub(super) name: Vec<u8>,
    fd: Option<OwnedFd>,
    /// Last access and last modification to be set on the way out.
    pub(super) times: (Moment, Moment),
    /// Something was changed in it.
    pub(super) changed: bool,
    /// Permissions to be set on the way out, where we gave ourselves more.
    pub(super) mode: Option<u32>,
    /// Owner and group of what is made in it, once known.
    pub(super) fresh: Option<(u32, u32)>,
    /// What is made in it gets an ACL.
    pub(super) acl: bool,
    /// It hides what the lower layers have there.
    pub(super) opaque: bool,
    /// Where the lower layers have it, once looked up.
    pub(super) below: Option<Vec<Place>>,
}

impl Dir {
    /// A directory that was just opened.
    pub(super) fn new(name: &[u8], fd: OwnedFd, stat: &Stat) -> Dir {
        let moment = |time: plyfs_fuse::attr::Time| (time.sec, time.nsec);
        Dir {
            name: name.to_vec(),
            fd: Some(fd),
            times: (moment(stat.atime), moment(stat.mtime)),
            changed: false,
            mode: None,
            fresh: None,
            acl: false,
            opaque: false,
            below: None,
        }
    }
}

/// The way.
#[derive(Debug)]
pub(super) struct Dirs {
    /// As the caller named it.
    root: PathBuf,
    root_fd: OwnedFd,
    dirs: Vec<Dir>,
    /// Bytes of the names, with what divides them.
    bytes: usize,
}

impl Dirs {
    pub(super) fn open(root: &Path) -> Result<Dirs> {
        let root_fd = sys::open_root(root).on("open", root)?;
        let again = sys::open(&root_fd, OsStr::new("."), DIR).on("open", root)?;
        let stat = sys::fstat(&again).on("stat", root)?;
        let dirs = vec![Dir::new(b"", again, &stat)];
        Ok(Dirs { root: root.to_path_buf(), root_fd, dirs, bytes: 0 })
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root_fd.as_fd()
    }

    /// How many directories below the root.
    pub(super) fn depth(&self) -> usize {
        self.dirs.len() - 1
    }

    /// About how many bytes their path has.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.saturating_sub(1)
    }

    /// How many of these names are on the way from the root.
    pub(super) fn common(&self, names: &[&[u8]]) -> usize {
        self.dirs[1..].iter().zip(names).take_while(|(dir, name)| dir.name == **name).count()
    }

    pub(super) fn all(&mut self) -> &mut [Dir] {
        &mut self.dirs
    }

    pub(super) fn top(&self) -> &Dir {
        &self.dirs[self.dirs.len() - 1]
    }

    pub(super) fn top_mut(&mut self) -> &mut Dir {
        let last = self.dirs.len() - 1;
        &mut self.dirs[last]
    }

    /// The directory at the end of the way.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.top().fd.as_ref().map_or(self.root_fd.as_fd(), AsFd::as_fd)
    }

    /// The path of the last directory below the root.
    pub(super) fn path(&self) -> Vec<u8> {
        let names: Vec<&[u8]> = self.dirs[1..].iter().map(|dir| dir.name.as_slice()).collect();
        names.join(&b'/')
    }

    /// The path of a name in it below the root.
    pub(super) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut path = self.path();
        if !path.is_empty() && !name.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    /// The same for messages.
    pub(super) fn shown(&self, name: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(&self.path_of(name)))
    }

    /// Goes into a directory of the last one.
    pub(super) fn push(&mut self, dir: Dir) {
        self.bytes += dir.name.len() + 1;
        self.dirs.push(dir);
        if let Some(above) = self.dirs.len().checked_sub(KEPT_OPEN + 1).filter(|at| *at > 0) {
            (self.dirs[above].fd, self.dirs[above].below) = (None, None);
        }
    }

    /// Goes back until this many directories are left below the root.
    pub(super) fn keep(&mut self, depth: usize) -> Result<()> {
        while self.depth() > depth {
            self.leave()?;
            let left = self.dirs.pop();
            self.bytes -= left.map_or(0, |dir| dir.name.len() + 1);
            if self.top().fd.is_none() {
                let path = self.path();
                let fd = sys::open_beneath(&self.root_fd, Path::new(OsStr::from_bytes(&path)), DIR);
                let fd = fd.on("open", self.shown(b""))?;
                self.top_mut().fd = Some(fd);
            }
        }
        Ok(())
    }

    /// Sets what the last directory has to have.
    pub(super) fn leave(&mut self) -> Result<()> {
        let shown = || self.shown(b"");
        let (dir, fd) = (self.top(), self.fd());
        if dir.changed {
            unpack::set_times(fd, dir.times.0, dir.times.1).on("set times of", shown())?;
        }
        if let Some(mode) = dir.mode {
            unpack::chmod(fd, mode).on("chmod", shown())?;
        }
        let top = self.top_mut();
        (top.changed, top.mode) = (false, None);
        Ok(())
    }
}

/// An error of the system about an object below the root.
pub(super) trait At<T> {
    fn at(self, op: &'static str, dirs: &Dirs, name: &[u8]) -> Result<T>;
}

impl<T> At<T> for std::io::Result<T> {
    fn at(self, op: &'static str, dirs: &Dirs, name: &[u8]) -> Result<T> {
        self.map_err(|source| Error::io(op, dirs.shown(name), source))
    }
}
