//! A directory about to be replaced: merged it is empty, but its upper part may hold whiteouts, over
//! which no rename goes. It is exchanged for a fresh one that shows the same.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::Side;
use crate::Overlay;
use crate::dir::Held;
use crate::error::{Context, Result};
use crate::inode::{Inode, Lowers};
use crate::lend;
use crate::origin::Origin;
use crate::side;
use crate::stack::Upper;
use crate::sys;
use crate::whiteout::Space;

impl Overlay {
    /// Makes what is about to be replaced fit for it: a directory is emptied of whiteouts.
    pub(super) fn clear_target(
        &self,
        upper: &Upper,
        there: &Held<'_>,
        target: &Side<'_>,
    ) -> Result<()> {
        let Some(inode) = &target.inode else {
            return Ok(());
        };
        self.name_group(there, target)?;
        self.settle_group(inode)?;
        if sys::has(&*there.fd, target.name).on("rename", target.name)?.is_none() {
            return Ok(());
        }
        if !inode.is_dir() {
            return Ok(());
        }
        let inside = sys::open(&*there.fd, target.name, sys::O_PATH | sys::O_DIRECTORY)
            .on("open", target.name)?;
        if lend::list(&inside).on("list", target.name)?.is_empty() {
            return Ok(());
        }
        if self.stack.space == Space::None {
            // The mark of a fresh one would be a file in it: `swap_over` takes the old one away.
            upper.dialect.set_opaque(there.fd.as_fd(), target.name).on("clear", target.name)?;
            inode.state.lock().lowers = Lowers::default();
            return Ok(());
        }
        let temp = upper.work.temp();
        let swap = || -> io::Result<()> {
            sys::mkdir(temp.dir(), temp.name(), 0o700)?;
            upper.dialect.set_opaque(temp.dir(), temp.name())?;
            let stat = sys::fstat(&inside)?;
            let (from, to) = ((inside.as_fd(), OsStr::new("")), (temp.dir(), temp.name()));
            self.copy_owner(from, to, &stat)?;
            crate::xattr::copy(from, to, self.options.xattr_permissions, true)?;
            if let Some(origin) = self.origin_below(inode, &inside)? {
                self.write_origin(temp.dir(), temp.name(), &origin)?;
            }
            self.copy_mode(to, &stat)?;
            lend::rename(temp.dir(), temp.name(), &*there.fd, target.name, sys::RENAME_EXCHANGE)
        };
        swap().on("clear directory", target.name)?;
        // It is another directory from here on, and does not merge; the rename may still fail.
        let fresh = sys::open(&*there.fd, target.name, sys::O_PATH | sys::O_DIRECTORY)
            .on("open", target.name)?;
        self.note_copy(inode, fresh.as_fd(), OsStr::new(""));
        if let Some(dir) = inode.dir() {
            self.dir_fds.fill(&dir.slot, Arc::new(fresh));
        }
        let mut state = inode.state.lock();
        state.lowers = Lowers::default();
        (state.impure, state.xattr_whiteouts) = (false, false);
        Ok(())
    }

    /// Moves a directory over one that [`Overlay::clear_target`] could not empty: they change places,
    /// and the old one, which shows nothing wherever it is, goes.
    pub(super) fn swap_over(
        &self,
        upper: &Upper,
        (here, name): (&Held<'_>, &OsStr),
        (there, new_name): (&Held<'_>, &OsStr),
        covers: bool,
    ) -> io::Result<()> {
        let swap = || sys::rename(&*here.fd, name, &*there.fd, new_name, sys::RENAME_EXCHANGE);
        swap()?;
        if let Err(e) = self.remove_upper_dir(upper, here, name, covers) {
            swap()?;
            upper.dialect.drop_dot(here.fd.as_fd(), name);
            return Err(e);
        }
        upper.dialect.drop_dot(there.fd.as_fd(), new_name);
        Ok(())
    }

    /// Whether a directory of the upper layer holds marks that no rename goes over.
    pub(super) fn is_marked_inside(&self, there: &Held<'_>, name: &OsStr) -> io::Result<bool> {
        if self.stack.space != Space::None {
            return Ok(false);
        }
        let inside = sys::open(&*there.fd, name, sys::O_PATH | sys::O_DIRECTORY)?;
        Ok(!lend::list(&inside)?.is_empty())
    }

    /// The record by which a directory keeps its number when it no longer merges.
    fn origin_below(&self, dir: &Inode, upper: &OwnedFd) -> io::Result<Option<Origin>> {
        let below = dir.state.lock().lowers.first().cloned();
        let Some(lower) = below else {
            return Ok(side::dir_marks(upper.as_fd(), OsStr::new(""), self.stack.space)?.origin);
        };
        let lower = self.lower_dir(&lower)?;
        let dev = sys::fstat(&*lower)?.dev;
        Ok(self.origin_of(lower.as_fd(), OsStr::new(""), dev))
    }
}
