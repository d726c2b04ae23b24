//! Deleting trees: beneath a directory that is held open, never through a symlink, never into another mount,
//! at any depth.
//!
//! What takes long is put out of sight first and deleted behind the caller's back: [`begin`] deletes what there is time for,
//! [`finish`] the rest, in a process that nobody waits for. Meanwhile a lock says that somebody is at it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::change;

/// Directories are held open down to this depth; what lies deeper is moved up first.
const DEPTH: usize = 64;

/// So many entries are deleted whatever time it takes, so that small trees never need a second go.
const LEAST: u64 = 256;

/// What this process has begun to delete and not finished.
static BEGUN: Mutex<Vec<Begun>> = Mutex::new(Vec::new());

struct Begun {
    dir: PathBuf,
    name: OsString,
    #[allow(dead_code, reason = "others see that somebody is at it")]
    hold: Hold,
}

/// The lock of a directory that is deleted, or about to be.
#[derive(Debug)]
pub struct Hold(#[allow(dead_code, reason = "closing it ends the lock")] OwnedFd);

/// Takes the lock of the directory `name` in the one at `dir`; nothing when it is not there or somebody else has it.
pub fn hold(dir: &Path, name: &OsStr) -> io::Result<Option<Hold>> {
    let fd = match open(super::tree::open_root(dir)?.as_fd(), name) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        other => other?,
    };
    let file = File::from(fd);
    Ok(super::publish::try_lock(&file)?.then(|| Hold(file.into())))
}

/// Deletes as [`delete`]. What there is no time for is left to [`finish`], and others keep away from it as long as this process
/// lives.
pub fn begin(dir: &Path, name: &OsStr, deadline: Instant, hold: Hold) -> io::Result<()> {
    if !delete(dir, name, Some(deadline))? {
        let begun = Begun { dir: dir.to_path_buf(), name: name.to_owned(), hold };
        BEGUN.lock().unwrap_or_else(PoisonError::into_inner).push(begun);
    }
    Ok(())
}

/// Whether there is anything to [`finish`].
pub fn is_begun() -> bool {
    !BEGUN.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
}

/// Deletes the rest of what this process has begun to; with `dir`, of what is in that directory.
pub fn finish(dir: Option<&Path>) -> io::Result<()> {
    let begun: Vec<Begun> = {
        let mut all = BEGUN.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = |one: &Begun| dir.is_none_or(|dir| one.dir == dir);
        let (now, later) = all.drain(..).partition(wanted);
        *all = later;
        now
    };
    begun.iter().try_for_each(|one| delete(&one.dir, &one.name, None).map(drop))
}

/// Deletes `name` in the directory at `dir` and all in it, until `deadline`; whether it is gone. One that is not there is
/// gone; another process may be deleting it too.
pub fn delete(dir: &Path, name: &OsStr, deadline: Option<Instant>) -> io::Result<bool> {
    let parent = super::tree::open_root(dir)?;
    let mut trash = Trash { deadline, entries: 0, moved: 0, top: None };
    trash.entry(parent.as_fd(), name, 0)
}

struct Trash {
    deadline: Option<Instant>,
    entries: u64,
    moved: u64,
    /// The directory that is deleted, where what lies too deep is moved to.
    top: Option<OwnedFd>,
}

impl Trash {
    fn entry(&mut self, dir: BorrowedFd<'_>, name: &OsStr, depth: usize) -> io::Result<bool> {
        self.entries += 1;
        let is_late = |deadline| Instant::now() >= deadline;
        if self.entries > LEAST && self.deadline.is_some_and(is_late) {
            return Ok(false);
        }
        change::point()?;
        let refused = match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(error @ (Errno::ISDIR | Errno::PERM)) => error,
            Err(error) => return Err(error.into()),
        };
        let fd = match open(dir, name) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(true),
            // No directory, but what must not be deleted (chattr +i).
            Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) => return Err(refused.into()),
            other => other?,
        };
        if depth == 0 {
            self.top = Some(fd.try_clone()?);
        }
        loop {
            let names = match super::tree::list(&fd) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Vec::new(),
                other => other?,
            };
            for inner in &names {
                if depth >= DEPTH && self.raise(fd.as_fd(), inner)? {
                    continue;
                }
                if !self.entry(fd.as_fd(), inner, depth + 1)? {
                    return Ok(false);
                }
            }
            change::point()?;
            match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(true),
                // What lay too deep has come up here.
                Err(Errno::NOTEMPTY | Errno::EXIST) if !names.is_empty() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Moves a directory from the depth to the top; false for anything else.
    fn raise(&mut self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
        let is_dir =
            super::tree::find(dir, name)?.is_some_and(|stat| stat.kind == super::tree::Kind::Dir);
        let Some(top) = self.top.as_ref().filter(|_| is_dir) else { return Ok(false) };
        let mut writable = false;
        loop {
            self.moved += 1;
            let to = OsString::from(format!(".plyfs-deep-{}", self.moved));
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            change::point()?;
            match rustix::fs::renameat_with(dir, name, top, &to, flags) {
                Err(Errno::EXIST) => {}
                Err(Errno::NOENT) => return Ok(true),
                // Its `..` is written.
                Err(Errno::ACCESS) if !writable => {
                    writable = true;
                    change::point()?;
                    rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
                }
                other => return Ok(other.map(|()| true)?),
            }
        }
    }
}

/// Opens a directory on the same mount; one without permissions gets them.
fn open(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let attempt = || match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve) {
        Err(Errno::NOSYS | Errno::PERM) => on_same_device(dir, name, flags),
        Err(Errno::XDEV) => Err(Errno::BUSY),
        other => other,
    };
    match attempt() {
        Err(Errno::ACCESS) => {
            change::point()?;
            rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
            Ok(attempt()?)
        }
        // Its owner may also be kept from changing what is in it.
        Ok(fd) => {
            let stat = rustix::fs::fstat(&fd)?;
            if stat.st_mode & 0o300 != 0o300 {
                change::point()?;
                let result = rustix::fs::fchmod(&fd, Mode::RWXU);
                log::trace!("chmod of a directory that is deleted: {result:?}");
            }
            Ok(fd)
        }
        Err(error) => Err(error.into()),
    }
}

fn on_same_device(dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let same = rustix::fs::fstat(dir)?.st_dev == rustix::fs::fstat(&fd)?.st_dev;
    if same { Ok(fd) } else { Err(Errno::BUSY) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_tree_is_deleted() {
        let dir = std::env::temp_dir().join(format!("plyfs-trash-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let mut here = super::super::tree::open_root(&dir).unwrap();
        for _ in 0..700 {
            rustix::fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
            here = super::super::tree::open_dir(&here, Path::new("d")).unwrap();
        }
        drop(here);
        std::fs::write(dir.join("d/d/file"), "x").unwrap();
        assert!(delete(&dir, OsStr::new("none"), None).unwrap());
        assert!(!delete(&dir, OsStr::new("d"), Some(Instant::now())).unwrap());
        assert!(delete(&dir, OsStr::new("d"), None).unwrap());
        std::fs::remove_dir(&dir).unwrap();
    }

    #[test]
    fn what_is_begun_is_held_until_it_is_finished() {
        let place = tempfile::tempdir().unwrap();
        let (dir, name) = (place.path(), OsStr::new("d"));
        assert!(hold(dir, name).unwrap().is_none());
        std::fs::create_dir(dir.join("d")).unwrap();
        for number in 0..2 * LEAST {
            std::fs::write(dir.join(format!("d/{number}")), "x").unwrap();
        }
        let ours = hold(dir, name).unwrap().unwrap();
        begin(dir, name, Instant::now(), ours).unwrap();
        assert!(is_begun() && dir.join("d").exists() && hold(dir, name).unwrap().is_none());
        finish(Some(&dir.join("other"))).unwrap();
        assert!(dir.join("d").exists());
        finish(Some(dir)).unwrap();
        assert!(!dir.join("d").exists());
    }

    #[test]
    fn small_trees_are_deleted_whatever_the_time() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(place.path().join("d/a/b")).unwrap();
        assert!(delete(place.path(), OsStr::new("d"), Some(Instant::now())).unwrap());
    }
}
