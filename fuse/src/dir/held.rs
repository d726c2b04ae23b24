//! A directory held for a change of its names.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::RwLockWriteGuard;

use crate::Overlay;
use crate::error::{Error, Result};
use crate::inode::{Ino, Inode};
use crate::namei::{Above, View, finds_own_letters};
use crate::stack::Upper;
use crate::sys::{self, Stat};
use crate::whiteout::{self, Style};
use crate::workdir::Temp;

/// A directory held for a change of its names.
pub(crate) struct Held<'a> {
    /// The upper directory.
    pub(crate) fd: Arc<OwnedFd>,
    /// All its places.
    pub(crate) view: View,
    dir: &'a Arc<Inode>,
    /// Its lock, with what is known of the upper names.
    pub(crate) guard: Option<RwLockWriteGuard<'a, Above>>,
}

impl Overlay {
    /// Takes a directory for a change of its names: copied up, locked, looked at.
    /// `name` is the one that may come into it.
    pub(crate) fn hold<'a>(&self, dir: &'a Arc<Inode>, name: Option<&OsStr>) -> Result<Held<'a>> {
        loop {
            self.copy_up(dir)?;
            let view = self.view(dir)?;
            let mut guard = dir.dir().map(|dir| dir.ns.write());
            if view.is_stale(dir) {
                continue;
            }
            if let (Some(above), Some(name)) = (&mut guard, name) {
                view.know(above, name);
                above.announce(name);
            }
            return self.held(dir, view, guard);
        }
    }

    /// [`Overlay::hold`] for a name that is to go, also where there is no room left.
    pub(crate) fn hold_to_remove<'a>(&self, dir: &'a Arc<Inode>, name: &OsStr) -> Result<Held<'a>> {
        if self.meter.is_some() {
            self.copy_up_anyway(dir)?;
        }
        self.hold(dir, Some(name))
    }

    pub(crate) fn held<'a>(
        &self,
        dir: &'a Arc<Inode>,
        view: View,
        guard: Option<RwLockWriteGuard<'a, Above>>,
    ) -> Result<Held<'a>> {
        let fd = view
            .upper
            .clone()
            .ok_or_else(|| Error::code("change directory", dir.path(), sys::EROFS))?;
        if dir.ino != Ino::ROOT && dir.link().is_none() {
            return Err(Error::code("change directory", "", sys::ENOENT));
        }
        Ok(Held { fd, view, dir, guard })
    }

    /// The upper directory of an inode is there from now on, by a name of `dir`, and no name is in it
    /// yet: `dir` is locked for the change that made it, with what is known of its own names.
    pub(crate) fn begins_empty(
        &self,
        inode: &Inode,
        (dir, name): (BorrowedFd<'_>, &OsStr),
        above: &Above,
    ) {
        let Some(part) = inode.dir().filter(|_| !self.live) else { return };
        // How letters are found is inherited.
        if above.is_known() || finds_own_letters(dir, name) {
            part.ns.write().begin();
        }
    }
}

impl Held<'_> {
    /// Whether an object in the upper directory is a whiteout.
    pub(crate) fn is_whiteout(&self, name: &OsStr, stat: &Stat) -> io::Result<bool> {
        whiteout::is_whiteout(self.fd.as_fd(), name, stat, self.view.xattr_whiteouts())
    }

    /// Deletes a name that the upper directory does not have.
    pub(crate) fn write_whiteout(&self, upper: &Upper, name: &OsStr) -> io::Result<()> {
        if upper.dialect.style != Style::Xattr {
            return upper.write_whiteout(self.fd.as_fd(), name);
        }
        let temp = upper.work.temp();
        self.make_whiteout(upper, &temp)?;
        sys::rename(temp.dir(), temp.name(), &*self.fd, name, 0)?;
        temp.keep();
        Ok(())
    }

    /// Makes a whiteout that is to be moved into this directory.
    pub(crate) fn make_whiteout(&self, upper: &Upper, temp: &Temp<'_>) -> io::Result<()> {
        self.allow_whiteouts(upper)?;
        upper.dialect.make(temp.dir(), temp.name())
    }

    /// Lets whiteouts into this directory.
    pub(crate) fn allow_whiteouts(&self, upper: &Upper) -> io::Result<()> {
        if upper.dialect.style == Style::Xattr && !self.dir.state.lock().xattr_whiteouts {
            upper.dialect.allow_xattr_whiteouts(self.fd.as_fd())?;
            self.dir.state.lock().xattr_whiteouts = true;
        }
        Ok(())
    }
}
