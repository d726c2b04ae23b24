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
use crate::inode::Inode;
use crate::origin::Origin;
use crate::stack::Upper;
use crate::sys;
use crate::whiteout;

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
        if sys::list(&inside).on("list", target.name)?.is_empty() {
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
            sys::rename(temp.dir(), temp.name(), &*there.fd, target.name, sys::RENAME_EXCHANGE)
        };
        swap().on("clear directory", target.name)?;
        // It is another directory from here on, and does not merge; the rename may still fail.
        let fresh = sys::open(&*there.fd, target.name, sys::O_PATH | sys::O_DIRECTORY)
            .on("open", target.name)?;
        if let Some(dir) = inode.dir() {
            self.dir_fds.fill(&dir.slot, Arc::new(fresh));
        }
        let mut state = inode.state.lock();
        state.lowers = Arc::default();
        (state.impure, state.xattr_whiteouts) = (false, false);
        Ok(())
    }

    /// The record by which a directory keeps its number when it no longer merges.
    fn origin_below(&self, dir: &Inode, upper: &OwnedFd) -> io::Result<Option<Origin>> {
        let below = dir.state.lock().lowers.first().cloned();
        let Some(lower) = below else {
            return Ok(whiteout::marks(upper, OsStr::new(""), self.stack.space)?.origin);
        };
        let lower = self.lower_dir(&lower)?;
        let dev = sys::fstat(&*lower)?.dev;
        Ok(self.origin_of(lower.as_fd(), OsStr::new(""), dev))
    }
}
