//! The upper directory tells all, without the index.
//!
//! Names of a group that nobody has touched are in lower layers alone, and lead to the upper file by the index. Whoever reads
//! the upper directory without it, as the kernel's overlay with `index=off` and makers of image layers do, sees the lower
//! file there. So when a mount ends such names are made in the upper directory, and the index goes. A crash on the way leaves
//! names of both sorts, as there are while it is mounted; the next end goes on.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::merged_count;
use crate::Overlay;
use crate::error::{Context, Result};
use crate::inode::{Ino, Inode, UpperAt};
use crate::lend;
use crate::namei::{Found, View};
use crate::options::Options;
use crate::side;
use crate::stack::Upper;
use crate::sys::{self, Stat};
use crate::whiteout;

/// Data is compared in pieces of this size.
const CHUNK: usize = 128 * 1024;

/// Settles directories that are not mounted, as after a crash of their server.
pub fn settle(options: &Options) -> Result<()> {
    let mask = sys::set_umask(0);
    let settled = Overlay::open(options).and_then(|overlay| overlay.settle());
    sys::set_umask(mask);
    settled
}

/// A file of the index.
struct Group {
    key: OsString,
    /// Some of its names may be in lower layers only.
    scattered: bool,
}

impl Overlay {
    /// Makes every name of a link group in the upper directory, and takes the groups out of the index. Nobody may use the
    /// overlay any more.
    pub fn settle(&self) -> Result<()> {
        let Some(upper) = &self.stack.upper else { return Ok(()) };
        let Some(index) = upper.work.index() else { return Ok(()) };
        let groups = groups(upper, index).on("list index", &upper.path)?;
        if groups.iter().any(|group| group.scattered) {
            let _told = upper.work.start_settling().on("lock index", &upper.path)?;
            self.name_all()?;
        }
        for Group { key, .. } in groups {
            // A file without a name is kept: it counts those of the lower file, in this stack of layers or another.
            let named = sys::stat(index, &key).is_ok_and(|stat| stat.nlink > 1);
            if named {
                sys::unlink(index, &key).on("unlink", &*key)?;
            }
        }
        // Without it the next who reads the directory looks again.
        if let Err(e) = upper.work.mark_settled() {
            log::debug!("{e}");
        }
        Ok(())
    }

    /// Walks the merged tree for names that only lead to the index.
    fn name_all(&self) -> Result<()> {
        let mut todo = vec![self.dir_inode(Ino::ROOT, "settle")?];
        while let Some(dir) = todo.pop() {
            self.name_in(&dir, &mut todo)?;
            let ino = dir.ino;
            drop(dir);
            if ino != Ino::ROOT {
                self.forget(ino, 1);
            }
        }
        Ok(())
    }

    fn name_in(&self, dir: &Arc<Inode>, todo: &mut Vec<Arc<Inode>>) -> Result<()> {
        let view = self.view(dir)?;
        let names = reached(self.merge(&view).on("readdir", dir.path()))?;
        for entry in names.into_iter().flatten() {
            if entry.kind == sys::S_IFDIR {
                todo.extend(reached(self.child(dir, &entry.name))?.flatten());
                continue;
            }
            let is_below = || reached(self.is_below(&view, &entry.name));
            if !view.lowers.is_empty() && is_below()?.unwrap_or(false) {
                self.name_one(dir, &entry.name)?;
            }
        }
        Ok(())
    }

    /// Whether a name has to be made: it leads to a copy that tells something else than the lower file.
    fn is_below(&self, view: &View, name: &OsStr) -> Result<bool> {
        match self.resolve(view, name).on("lookup", name)? {
            Some(found) if leads_to_index(&found) => match self.is_unchanged(&found) {
                // What we may not read is not known to be the same.
                Err(e) if sys::errno(&e) == sys::EACCES => Ok(true),
                same => same.map(|same| !same).on("compare", name),
            },
            _ => Ok(false),
        }
    }

    fn is_unchanged(&self, found: &Found) -> io::Result<bool> {
        let index = self.stack.upper.as_ref().and_then(|upper| upper.work.index());
        let (Some(key), Some(index)) = (found.state.index(), index) else { return Ok(false) };
        let Some(lower) = &found.state.lower else { return Ok(false) };
        let dir = self.lower_dir(&lower.dir)?;
        let below = sys::stat(&*dir, &lower.name)?;
        let told = |s: &Stat| (s.mode, s.uid, s.gid, s.size, s.rdev, s.mtime.sec, s.mtime.nsec);
        // Where the data is elsewhere it is not looked for.
        if found.stat.nlink > 1
            || found.state.lower_data.is_some()
            || told(&found.stat) != told(&below)
            || attributes(index, &key)? != attributes(dir.as_fd(), &lower.name)?
        {
            return Ok(false);
        }
        if below.kind() != sys::S_IFREG {
            return Ok(true);
        }
        let own = lend::open(index, &key, sys::O_RDONLY | sys::O_NONBLOCK)?;
        let lower = self.open_lower(lower, sys::O_RDONLY | sys::O_NONBLOCK)?;
        same_data(own.as_fd(), lower.as_fd(), below.size)
    }

    fn name_one(&self, dir: &Arc<Inode>, name: &OsStr) -> Result<()> {
        let held = self.hold(dir, Some(name))?;
        let found = self.present_name(&held, name, "link")?;
        let Some(lower) = found.state.lower.clone().filter(|_| leads_to_index(&found)) else {
            return Ok(());
        };
        let inode = self.intern(dir, name, found, 1);
        let place = (held.fd.as_fd(), name);
        let made = self.mark_impure(dir, place.0).on("link", name);
        let made = made.and_then(|()| self.materialize(&inode, &lower, place));
        drop(held);
        let ino = inode.ino;
        drop(inode);
        self.forget(ino, 1);
        made
    }
}

/// What was found; `None` where a lower directory is closed to us, so that nobody could see names in it by this mount. One
/// such keeps no name elsewhere from being made.
fn reached<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Err(error) if error.errno() == sys::EACCES => {
            log::warn!("{error}; names of changed files there are not looked for");
            Ok(None)
        }
        found => found.map(Some),
    }
}

/// Whether it is the name of a lower file whose upper one has other names.
fn leads_to_index(found: &Found) -> bool {
    found.state.lower.is_some() && matches!(found.state.upper, Some(UpperAt::Index(_)))
}

fn groups(upper: &Upper, index: BorrowedFd<'_>) -> io::Result<Vec<Group>> {
    let mut groups = Vec::new();
    for entry in sys::list(index)? {
        let stat = sys::stat(index, &entry.name)?;
        // The kernel has directories and whiteouts in its own.
        if stat.is_dir() || whiteout::is_device(&stat) {
            continue;
        }
        let marks = side::marks(upper, (index, &entry.name), stat.kind())?;
        let lower = marks.lower_nlink.as_deref();
        let lower = lower.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        let count = marks.nlink.and_then(|record| merged_count(&record, stat.nlink, lower));
        let scattered = count.is_none_or(|count| count >= stat.nlink);
        groups.push(Group { key: entry.name, scattered });
    }
    Ok(groups)
}

type Attributes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// The attributes that are none of an overlay's.
fn attributes(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Attributes> {
    let mut found = Attributes::new();
    for key in sys::list_xattr(dir, name)? {
        if !key.starts_with(b"trusted.overlay.") && !key.starts_with(b"user.overlay.") {
            let value = sys::get_xattr(dir, name, OsStr::from_bytes(&key))?;
            found.insert(key, value);
        }
    }
    Ok(found)
}

fn same_data(a: BorrowedFd<'_>, b: BorrowedFd<'_>, size: u64) -> io::Result<bool> {
    let (mut one, mut other) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut at = 0;
    while at < size {
        let want = CHUNK.min(usize::try_from(size - at).unwrap_or(CHUNK));
        let (got, same) =
            (sys::pread(a, &mut one[..want], at)?, sys::pread(b, &mut other[..want], at)?);
        if got == 0 || got != same || one[..got] != other[..got] {
            return Ok(false);
        }
        at += got as u64;
    }
    Ok(true)
}
