//! unlink and rmdir: the name goes, and a whiteout takes its place where a lower layer shows it,
//! in one step.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::{Held, discard, writes_dots};
use crate::Overlay;
use crate::error::{Context, Error, Result};
use crate::inode::{Ino, Inode, Lowers, UpperAt};
use crate::lend;
use crate::namei::{Found, check_name, is_pinned_to};
use crate::side;
use crate::stack::Upper;
use crate::sys;

impl Overlay {
    /// Removes a name that is not a directory's.
    pub fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.unlink_within(parent, name, u64::MAX).map(drop)
    }

    /// [`Overlay::unlink`], unless more than `limit` bytes have to be copied for it: nothing is done
    /// then, and it is said of which object.
    pub(crate) fn unlink_within(
        &self,
        parent: Ino,
        name: &OsStr,
        limit: u64,
    ) -> Result<Option<Ino>> {
        let parent = self.dir_inode(parent, "unlink")?;
        check_name(name)?;
        let upper = self.writable("unlink")?;
        let mut raised = false;
        loop {
            let held = self.hold_to_remove(&parent, name)?;
            let found = self.present_name(&held, name, "unlink")?;
            if found.stat.is_dir() {
                return Err(Error::code("unlink", name, sys::EISDIR));
            }
            // A name of a hard-link group: the count of the others has to be right afterwards, which
            // takes an upper file to keep it.
            if found.state.upper.is_none() && found.stat.nlink > 1 && !raised {
                drop(held);
                if found.stat.kind() == sys::S_IFREG && found.stat.size > limit {
                    return Ok(Some(Ino(found.number)));
                }
                match self.raise_group(&parent, name) {
                    // Deleting works at a limit of ours; the other names keep a count that is too high.
                    Err(e) if self.meter.is_some() && e.errno() == sys::ENOSPC => {
                        log::debug!("{e}; {name:?} is removed nevertheless");
                    }
                    other => other?,
                }
                raised = true;
                continue;
            }
            let inode = match found.state.group_nlink {
                None => self.known(&parent, name, &found),
                // The count has to be kept whether the kernel knows the file or not.
                Some(_) => Some(self.intern(&parent, name, found.duplicate(), 1)),
            };
            let counted = inode.as_ref().filter(|_| found.state.group_nlink.is_some());
            let counted = counted.map(|inode| inode.ino);
            let done = self.unlink_held(upper, &parent, &held, (name, &found, inode));
            drop(held);
            if let Some(ino) = counted {
                self.forget(ino, 1);
            }
            return done.map(|()| None);
        }
    }

    fn unlink_held(
        &self,
        upper: &Upper,
        parent: &Arc<Inode>,
        held: &Held<'_>,
        (name, found, inode): (&OsStr, &Found, Option<Arc<Inode>>),
    ) -> Result<()> {
        if let (Some(inode), Some(lower)) = (&inode, &found.state.lower) {
            if found.state.upper.is_some() {
                self.mark_impure(parent, held.fd.as_fd()).on("unlink", name)?;
                self.materialize(inode, lower, (held.fd.as_fd(), name))?;
            }
        }
        if let Some(inode) = &inode {
            self.settle_group(inode)?;
        }
        // What was found, if it is right here and was not only now given the name.
        let here = matches!(found.state.upper, Some(UpperAt::Named)).then_some(found.stat);
        let above = match here {
            None if found.state.upper.is_none() => None,
            None => sys::has(&*held.fd, name).on("unlink", name)?,
            stat => stat,
        };
        let in_upper = above.is_some();
        let pinned = match inode.as_ref() {
            Some(inode) => self.pin(inode, (parent, name), held, in_upper)?,
            None => false,
        };
        let last = above.is_some_and(|stat| stat.nlink == 1);
        let kind = if last { found.stat.kind() } else { sys::S_IFREG };
        let records = side::records(upper, (held.fd.as_fd(), name), kind);
        // What is no upper object was found in a lower layer.
        let covers = match found.state.upper {
            None => true,
            Some(_) => self.lower_has(&held.view, name).on("unlink", name)?,
        };
        let names = self.names(self.begin(), &[(&held.fd, name)]);
        let _names = names.map(|names| names.of(inode.as_ref()));
        if let Err(e) = self.hide(upper, held, name, (in_upper, covers)).on("unlink", name) {
            if let Some(inode) = &inode {
                unpin(inode, (parent, name), pinned);
            }
            return Err(e);
        }
        side::drop_records(upper, &records);
        if let Some(inode) = inode {
            self.count_group(&inode, -1)?;
        }
        Ok(())
    }

    /// Copies the whole group of a lower name up, so that its count can be kept.
    fn raise_group(&self, parent: &Arc<Inode>, name: &OsStr) -> Result<()> {
        let Some(inode) = self.child(parent, name)? else {
            return Ok(());
        };
        let done = self.copy_up(&inode);
        let ino = inode.ino;
        drop(inode);
        self.forget(ino, 1);
        done
    }

    /// Takes the name out of the merged view: the upper object goes, and what a lower layer shows
    /// is covered.
    pub(crate) fn hide(
        &self,
        upper: &Upper,
        held: &Held<'_>,
        name: &OsStr,
        (in_upper, covers): (bool, bool),
    ) -> io::Result<()> {
        match (in_upper, covers) {
            (false, _) => held.write_whiteout(upper, name),
            (true, false) => sys::unlink(&*held.fd, name),
            (true, true) if writes_dots(upper) => {
                held.write_whiteout(upper, name)?;
                sys::unlink(&*held.fd, name)
            }
            (true, true) => self.swap_for_whiteout(upper, held, name),
        }
    }

    /// Moves an upper object to the work directory and leaves a whiteout, in one step.
    fn swap_for_whiteout(&self, upper: &Upper, held: &Held<'_>, name: &OsStr) -> io::Result<()> {
        let temp = upper.work.temp();
        if upper.can_rename_whiteout()? {
            return lend::rename(&*held.fd, name, temp.dir(), temp.name(), sys::RENAME_WHITEOUT);
        }
        held.make_whiteout(upper, &temp)?;
        if upper.can_exchange()? {
            return lend::rename(temp.dir(), temp.name(), &*held.fd, name, sys::RENAME_EXCHANGE);
        }
        sys::rename(temp.dir(), temp.name(), &*held.fd, name, 0)
    }

    /// Takes a name that is about to go from its inode. An upper object without another known name
    /// is kept by descriptor, so that the filesystem cannot give its number to somebody else while
    /// the kernel knows it; true then. [`unpin`] undoes it.
    pub(crate) fn pin(
        &self,
        inode: &Arc<Inode>,
        (parent, name): (&Arc<Inode>, &OsStr),
        held: &Held<'_>,
        in_upper: bool,
    ) -> Result<bool> {
        let open = || sys::open(&*held.fd, name, sys::O_PATH).on("open", name);
        let fd = if in_upper { Some(open()?) } else { None };
        let mut state = inode.state.lock();
        state.drop_link(parent, name);
        let last = state.links.is_empty() && matches!(state.upper, Some(UpperAt::Named));
        if let (true, Some(fd)) = (last, fd) {
            state.upper = Some(UpperAt::Pinned(Arc::new(fd)));
            return Ok(true);
        }
        Ok(false)
    }

    /// What a name stands for, or ENOENT. The directory is held.
    pub(crate) fn present_name(
        &self,
        held: &Held<'_>,
        name: &OsStr,
        op: &'static str,
    ) -> Result<Found> {
        self.resolve(&held.view, name)
            .on(op, name)?
            .ok_or_else(|| Error::code(op, name, sys::ENOENT))
    }

    /// The inode of a name, if the kernel knows it.
    pub(crate) fn known(
        &self,
        parent: &Arc<Inode>,
        name: &OsStr,
        found: &Found,
    ) -> Option<Arc<Inode>> {
        let salt = crate::namei::hash_place(parent.ino, name);
        let mut number = found.number;
        let many = found.stat.nlink > 1 || found.state.group_nlink.is_some();
        loop {
            let inode = self.table.get(Ino(number))?;
            // Many names, or one left that nobody knew when those that were known went.
            let linked = !inode.is_dir()
                && number == found.number
                && (many || is_pinned_to(&inode, &found.stat));
            if self.same_kind(inode.kind, found.stat.kind())
                && (inode.has_link(parent, name) || linked)
            {
                return Some(inode);
            }
            number = self.numbers.other(number, salt);
        }
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let parent = self.dir_inode(parent, "rmdir")?;
        check_name(name)?;
        let upper = self.writable("rmdir")?;
        let held = self.hold_to_remove(&parent, name)?;
        let found = self.present_name(&held, name, "rmdir")?;
        if !found.stat.is_dir() {
            return Err(Error::code("rmdir", name, sys::ENOTDIR));
        }
        // The inode gives the lock that keeps names from appearing in the directory meanwhile.
        let inode = self.intern(&parent, name, found, 1);
        let done = self.rmdir_held(upper, &parent, &held, (name, &inode));
        drop(held);
        let ino = inode.ino;
        drop(inode);
        self.forget(ino, 1);
        done
    }

    fn rmdir_held(
        &self,
        upper: &Upper,
        parent: &Arc<Inode>,
        held: &Held<'_>,
        (name, inode): (&OsStr, &Arc<Inode>),
    ) -> Result<()> {
        let inside = self.view_below(inode, held, name)?;
        let _guard = inode.dir().map(|dir| dir.ns.write());
        if !self.is_empty(&inside).on("rmdir", name)? {
            return Err(Error::code("rmdir", name, sys::ENOTEMPTY));
        }
        let names = self.names(self.begin(), &[(&held.fd, name)]);
        let _names = names.map(|names| names.of(Some(inode)).emptied(inside.upper.as_deref()));
        match &inside.upper {
            None => held.write_whiteout(upper, name).on("rmdir", name)?,
            Some(_) => {
                let covers = self.lower_has(&held.view, name).on("rmdir", name)?;
                self.remove_upper_dir(upper, held, name, covers).on("rmdir", name)?;
            }
        }
        bury(inode, inside.upper);
        inode.state.lock().drop_link(parent, name);
        Ok(())
    }

    /// Removes an upper directory that may still hold whiteouts.
    pub(crate) fn remove_upper_dir(
        &self,
        upper: &Upper,
        held: &Held<'_>,
        name: &OsStr,
        covers: bool,
    ) -> io::Result<()> {
        if covers && !writes_dots(upper) {
            return self.swap_for_whiteout(upper, held, name);
        }
        if covers {
            held.write_whiteout(upper, name)?;
        }
        match sys::rmdir(&*held.fd, name) {
            Err(e) if matches!(sys::errno(&e), sys::ENOTEMPTY | sys::EEXIST) => {}
            other => return other,
        }
        let temp = upper.work.temp();
        let aside = temp.name().to_owned();
        lend::rename(&*held.fd, name, temp.dir(), &aside, 0)?;
        temp.keep();
        discard(upper, &aside);
        Ok(())
    }
}

/// A directory that was removed lives on by its descriptor, and shows nothing of the layers below:
/// the whiteouts that hid their names went with it.
pub(crate) fn bury(inode: &Arc<Inode>, upper: Option<Arc<OwnedFd>>) {
    let Some(fd) = upper else { return };
    let mut state = inode.state.lock();
    state.upper = Some(UpperAt::Pinned(fd));
    state.lowers = Lowers::default();
}

/// Gives a name back to its inode: it did not go after all.
pub(crate) fn unpin(inode: &Arc<Inode>, (parent, name): (&Arc<Inode>, &OsStr), pinned: bool) {
    let mut state = inode.state.lock();
    state.add_link(parent, name);
    if pinned {
        state.upper = Some(UpperAt::Named);
    }
}
