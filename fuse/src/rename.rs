//! rename with all flags: both names change or neither.
//!
//! What is renamed is copied up first. A directory with a lower part gets a redirect, where the
//! kernel that may read the upper directory later follows one; otherwise everything below it is
//! copied up and the directory made opaque, each step invisible to others, so that what moves is
//! an upper directory and nothing else. The whiteout left behind is part of the same system call.
//!
//! Locks: `Overlay::moves` while two directories are concerned, so that ancestry is stable; then
//! the directories' own locks, ancestor first, otherwise ascending numbers; then the lock of a
//! directory about to be replaced. Nothing is copied while any of them is held.

mod check;
mod clear;
mod whole;

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::RwLockWriteGuard;

use check::{check_ancestry, check_pair};

use crate::Overlay;
use crate::dir::{Held, bury, unpin, writes_dots};
use crate::error::{Context, Error, Result};
use crate::inode::{Ino, Inode, UpperAt};
use crate::namei::{Above, View, check_name};
use crate::stack::Upper;
use crate::sys::{self, Stat};
use crate::whiteout::{self, Style};

/// One side of a rename: a directory, a name, and what is there.
struct Side<'a> {
    dir: &'a Arc<Inode>,
    name: &'a OsStr,
    inode: Option<Arc<Inode>>,
}

/// What became of one attempt to rename.
enum Attempt {
    Done,
    /// Somebody changed what was looked at before the locks were taken.
    Overtaken,
    /// Nothing was done: more of this object would be copied than may be.
    Copies(Ino),
}

/// An inode with a lookup counted, given back on drop.
struct Counted<'a> {
    overlay: &'a Overlay,
    ino: Option<Ino>,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(ino) = self.ino {
            self.overlay.forget(ino, 1);
        }
    }
}

impl Overlay {
    /// Moves a name. `flags` are those of renameat2(2); `RENAME_WHITEOUT` is refused, as the
    /// kernel's overlay refuses it.
    #[allow(clippy::too_many_arguments, reason = "those of renameat2(2)")]
    pub fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        flags: u32,
    ) -> Result<()> {
        self.rename_within((parent, name), (new_parent, new_name), flags, u64::MAX).map(drop)
    }

    /// [`Overlay::rename`], unless more than `limit` bytes have to be copied for it: nothing is done
    /// then, and it is said of which object.
    pub(crate) fn rename_within(
        &self,
        (parent, name): (Ino, &OsStr),
        (new_parent, new_name): (Ino, &OsStr),
        flags: u32,
        limit: u64,
    ) -> Result<Option<Ino>> {
        let from = self.dir_inode(parent, "rename")?;
        let to = self.dir_inode(new_parent, "rename")?;
        check_name(name)?;
        check_name(new_name)?;
        let exchange = flags & sys::RENAME_EXCHANGE != 0;
        let noreplace = flags & sys::RENAME_NOREPLACE != 0;
        if flags & !(sys::RENAME_EXCHANGE | sys::RENAME_NOREPLACE) != 0 || (exchange && noreplace) {
            return Err(Error::code("rename", name, sys::EINVAL));
        }
        self.writable("rename")?;
        if whiteout::is_dot(new_name) {
            return Err(Error::code("rename", new_name, sys::EINVAL));
        }
        loop {
            match self.try_rename((&from, name), (&to, new_name), flags, limit)? {
                Attempt::Done => return Ok(None),
                Attempt::Copies(ino) => return Ok(Some(ino)),
                Attempt::Overtaken => {}
            }
        }
    }

    /// The object that moving a name copies more than `limit` bytes of; a directory with a lower part
    /// is as good as endless.
    fn costly(
        &self,
        source: &Arc<Inode>,
        target: &Side<'_>,
        flags: u32,
        limit: u64,
    ) -> Option<Ino> {
        let exchange = flags & sys::RENAME_EXCHANGE != 0;
        let dear = |inode: &Arc<Inode>, moved: bool| {
            let merged = moved && inode.is_dir() && !inode.state.lock().lowers.is_empty();
            merged || self.copy_cost(inode.ino) > limit
        };
        if limit == u64::MAX {
            return None;
        }
        if dear(source, true) {
            return Some(source.ino);
        }
        let other = target.inode.as_ref().filter(|other| !other.is_dir() || exchange)?;
        // What is replaced is copied only for the count of its other names.
        let counted = || self.needs_group(other).unwrap_or(false);
        (dear(other, exchange) && (exchange || counted())).then_some(other.ino)
    }

    /// One attempt.
    fn try_rename(
        &self,
        from: (&Arc<Inode>, &OsStr),
        to: (&Arc<Inode>, &OsStr),
        flags: u32,
        limit: u64,
    ) -> Result<Attempt> {
        let source = self.side(from)?;
        let _source = self.counted(&source);
        let target = self.side(to)?;
        let _target = self.counted(&target);
        let Some(moved) = source.inode.clone() else {
            return Err(Error::code("rename", source.name, sys::ENOENT));
        };
        let verdict = check_pair(&source, &target, flags).and_then(|two| match two {
            true => self.check_target(&target, flags).map(|()| true),
            false => Ok(false),
        });
        if !matches!(verdict, Ok(true)) {
            // Two names looked up one after the other decide nothing unless both still stand.
            let settled = self.settled(&source, &target)?;
            return if settled { verdict.map(|_| Attempt::Done) } else { Ok(Attempt::Overtaken) };
        }
        if let Some(ino) = self.costly(&moved, &target, flags, limit) {
            return Ok(Attempt::Copies(ino));
        }
        self.prepare(&moved)?;
        if let Some(other) = &target.inode {
            if flags & sys::RENAME_EXCHANGE != 0 {
                self.prepare(other)?;
            } else if self.needs_group(other)? {
                self.copy_up(other)?;
            }
        }
        self.copy_up(source.dir)?;
        self.copy_up(target.dir)?;
        let done = self.locked(&source, &target, flags)?;
        Ok(if done { Attempt::Done } else { Attempt::Overtaken })
    }

    fn side<'a>(&self, (dir, name): (&'a Arc<Inode>, &'a OsStr)) -> Result<Side<'a>> {
        Ok(Side { dir, name, inode: self.child(dir, name)? })
    }

    fn counted(&self, side: &Side<'_>) -> Counted<'_> {
        Counted { overlay: self, ino: side.inode.as_ref().map(|inode| inode.ino) }
    }

    /// Gives a name of a hard-link group that only a lower layer has to the upper layer, so that
    /// what happens to the name next is counted with the upper links.
    fn name_group(&self, held: &Held<'_>, side: &Side<'_>) -> Result<()> {
        let may_be = |inode: &&Arc<Inode>| {
            let state = inode.state.lock();
            !inode.is_dir() && (state.lower.is_some() || state.index().is_some())
        };
        let Some(inode) = side.inode.as_ref().filter(may_be) else {
            return Ok(());
        };
        let Some(found) = self.resolve(&held.view, side.name).on("lookup", side.name)? else {
            return Ok(());
        };
        if let (Some(UpperAt::Index(_)), Some(lower)) = (&found.state.upper, &found.state.lower) {
            self.mark_impure(side.dir, held.fd.as_fd()).on("link", side.name)?;
            self.materialize(inode, lower, (held.fd.as_fd(), side.name))?;
        }
        Ok(())
    }

    /// Takes the locks, looks again, and moves.
    fn locked(&self, source: &Side<'_>, target: &Side<'_>, flags: u32) -> Result<bool> {
        let two = !Arc::ptr_eq(source.dir, target.dir);
        let _moves = two.then(|| self.moves.lock());
        check_ancestry(source, target, flags & sys::RENAME_EXCHANGE != 0)?;
        let views = (self.view(source.dir)?, self.view(target.dir)?);
        let (mut first, mut second) = lock_both(source.dir, target.dir);
        for above in first.iter_mut().chain(&mut second) {
            above.announce(source.name);
            above.announce(target.name);
        }
        if views.0.is_stale(source.dir) || views.1.is_stale(target.dir) {
            return Ok(false);
        }
        let from = self.held(source.dir, views.0, first)?;
        let to = self.held(target.dir, views.1, second)?;
        if !self.still(&from.view, source)? || !self.still(&to.view, target)? {
            return Ok(false);
        }
        let upper = self.writable("rename")?;
        let exchange = flags & sys::RENAME_EXCHANGE != 0;
        let names = [(&from.fd, source.name), (&to.fd, target.name)];
        let _names = self.names(self.begin(), &names).map(|names| {
            let replaced = target.inode.as_ref().filter(|inode| inode.is_dir() && !exchange);
            let open = || sys::open(&*to.fd, target.name, sys::O_PATH | sys::O_DIRECTORY).ok();
            let dir = replaced.and_then(|_| open());
            names.of(target.inode.as_ref()).moves().emptied(dir.as_ref())
        });
        if exchange {
            self.exchange(upper, (&from, source), (&to, target))?;
        } else {
            self.replace(upper, (&from, source), (&to, target))?;
        }
        Ok(true)
    }

    /// Whether both names stand for what was looked up, at one moment.
    fn settled(&self, source: &Side<'_>, target: &Side<'_>) -> Result<bool> {
        let two = !Arc::ptr_eq(source.dir, target.dir);
        let _moves = two.then(|| self.moves.lock());
        let views = (self.view(source.dir)?, self.view(target.dir)?);
        let _guards = lock_both(source.dir, target.dir);
        Ok(!views.0.is_stale(source.dir)
            && !views.1.is_stale(target.dir)
            && self.still(&views.0, source)?
            && self.still(&views.1, target)?)
    }

    /// Whether a name stands for the same object as before the locks were taken.
    fn still(&self, view: &View, side: &Side<'_>) -> Result<bool> {
        let now = self.resolve(view, side.name).on("rename", side.name)?;
        Ok(match (&side.inode, now) {
            (None, None) => true,
            (Some(inode), Some(found)) => self
                .known(side.dir, side.name, &found)
                .is_some_and(|known| Arc::ptr_eq(&known, inode)),
            _ => false,
        })
    }

    /// What an object needs in its new place before it gets there: its own names only, and the mark
    /// by which its number is found.
    fn outfit(
        &self,
        upper: &Upper,
        from: (&Held<'_>, &Side<'_>),
        to: (&Held<'_>, &Side<'_>),
    ) -> Result<()> {
        let ((here, side), (there, place)) = (from, to);
        let Some(inode) = &side.inode else {
            return Ok(());
        };
        let name = side.name;
        self.name_group(here, side)?;
        let (merged, has_origin) = {
            let state = inode.state.lock();
            (!state.lowers.is_empty(), state.has_origin)
        };
        if merged || has_origin {
            self.mark_impure(place.dir, there.fd.as_fd()).on("rename", place.name)?;
        }
        if inode.is_dir()
            && !merged
            && self.lower_has(&there.view, place.name).on("rename", place.name)?
        {
            upper.dialect.set_opaque(here.fd.as_fd(), name).on("make opaque", name)?;
        }
        Ok(())
    }

    fn exchange(
        &self,
        upper: &Upper,
        from: (&Held<'_>, &Side<'_>),
        to: (&Held<'_>, &Side<'_>),
    ) -> Result<()> {
        self.outfit(upper, from, to)?;
        self.outfit(upper, to, from)?;
        let (a, b) = (from.1, to.1);
        sys::rename(&*from.0.fd, a.name, &*to.0.fd, b.name, sys::RENAME_EXCHANGE)
            .on("exchange", a.name)?;
        if let (Some(one), Some(other)) = (&a.inode, &b.inode) {
            if !Arc::ptr_eq(one, other) {
                move_link(one, a, b);
                move_link(other, b, a);
            }
        }
        Ok(())
    }

    fn replace(
        &self,
        upper: &Upper,
        from: (&Held<'_>, &Side<'_>),
        to: (&Held<'_>, &Side<'_>),
    ) -> Result<()> {
        let ((here, source), (there, target)) = (from, to);
        let mut gone: Option<View> = None;
        let guard: Option<RwLockWriteGuard<'_, Above>> =
            match target.inode.as_ref().filter(|inode| inode.is_dir()) {
                None => None,
                Some(inode) => {
                    let inside = self.view_below(inode, there, target.name)?;
                    let mut guard = inode.dir().map(|dir| dir.ns.write());
                    guard.iter_mut().for_each(|above| above.end());
                    if !self.is_empty(&inside).on("rename", target.name)? {
                        return Err(Error::code("rename", target.name, sys::ENOTEMPTY));
                    }
                    gone = Some(inside);
                    guard
                }
            };
        self.outfit(upper, from, to)?;
        self.clear_target(upper, there, target)?;
        let covers = self.lower_has(&here.view, source.name).on("rename", source.name)?;
        let place = (target.dir, target.name);
        let occupant = sys::has(&*there.fd, target.name).on("rename", target.name)?;
        let pinned = match target.inode.as_ref().filter(|inode| !inode.is_dir()) {
            Some(inode) => Some((inode, self.pin(inode, place, there, occupant.is_some())?)),
            None => None,
        };
        let is_dir = source.inode.as_ref().is_some_and(|inode| inode.is_dir());
        let what = (is_dir, occupant, covers);
        let moved = self.shift(upper, (here, source.name), (there, target.name), what);
        if let (Err(_), Some((inode, pinned))) = (&moved, pinned) {
            unpin(inode, place, pinned);
        }
        moved.on("rename", source.name)?;
        // The names have moved: what is known of them has to, whatever fails from here on.
        if let Some(inode) = &target.inode {
            if inode.is_dir() {
                // Before it has no name: there is always a way to it.
                bury(inode, gone.and_then(|view| view.upper));
            }
            inode.state.lock().drop_link(target.dir, target.name);
        }
        if let Some(inode) = &source.inode {
            move_link(inode, source, target);
        }
        let done = target.inode.as_ref().map_or(Ok(()), |inode| self.count_group(inode, -1));
        drop(guard);
        done
    }

    /// The rename itself, with the whiteout that is left behind in the same call.
    fn shift(
        &self,
        upper: &Upper,
        (here, name): (&Held<'_>, &OsStr),
        (there, new_name): (&Held<'_>, &OsStr),
        (is_dir, occupant, covers): (bool, Option<Stat>, bool),
    ) -> io::Result<()> {
        let mut onto_whiteout = match &occupant {
            Some(stat) => there.is_whiteout(new_name, stat)?,
            None => false,
        };
        let go = |flags: u32| sys::rename(&*here.fd, name, &*there.fd, new_name, flags);
        let onto_dir = occupant.as_ref().is_some_and(|stat| stat.is_dir());
        if onto_dir && self.is_marked_inside(there, new_name)? && upper.can_exchange()? {
            return self.swap_over(upper, (here, name), (there, new_name), covers);
        }
        if covers && occupant.is_none() && upper.dialect.style == Style::Xattr {
            // One that may stay: nothing below has the name, or it would be there.
            there.write_whiteout(upper, new_name)?;
            onto_whiteout = true;
        }
        if onto_whiteout && (is_dir || covers) && upper.can_exchange()? {
            here.allow_whiteouts(upper)?;
            go(sys::RENAME_EXCHANGE)?;
            if !covers {
                if let Err(e) = sys::unlink(&*here.fd, name) {
                    log::debug!("whiteout of {name:?} stays: {e}");
                }
            }
            return Ok(());
        }
        if onto_whiteout && is_dir {
            sys::unlink(&*there.fd, new_name)?;
        }
        if covers && writes_dots(upper) {
            here.write_whiteout(upper, name)?;
            go(0)?;
        } else if covers && upper.can_rename_whiteout()? {
            go(sys::RENAME_WHITEOUT)?;
        } else if covers {
            let whiteout = upper.work.temp();
            here.make_whiteout(upper, &whiteout)?;
            go(0)?;
            // The object has moved, whatever becomes of the whiteout that was ready.
            match sys::rename(whiteout.dir(), whiteout.name(), &*here.fd, name, 0) {
                Ok(()) => whiteout.keep(),
                Err(e) => log::warn!("{name:?}: the lower object shows again: {e}"),
            }
        } else {
            go(0)?;
        }
        if !there.view.lowers.is_empty() {
            upper.dialect.drop_dot(there.fd.as_fd(), new_name);
        }
        Ok(())
    }
}

fn move_link(inode: &Arc<Inode>, from: &Side<'_>, to: &Side<'_>) {
    let mut state = inode.state.lock();
    state.drop_link(from.dir, from.name);
    state.add_link(to.dir, to.name);
}

/// Locks two directories in order; the second guard is none when they are one.
fn lock_both<'a>(
    a: &'a Arc<Inode>,
    b: &'a Arc<Inode>,
) -> (Option<RwLockWriteGuard<'a, Above>>, Option<RwLockWriteGuard<'a, Above>>) {
    let lock = |inode: &'a Arc<Inode>| inode.dir().map(|dir| dir.ns.write());
    if Arc::ptr_eq(a, b) {
        return (lock(a), None);
    }
    let a_first = b.is_below(a) || (!a.is_below(b) && a.ino < b.ino);
    if a_first {
        let first = lock(a);
        return (first, lock(b));
    }
    let second = lock(b);
    (lock(a), second)
}
