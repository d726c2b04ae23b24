//! One name through the stack: upper object, lower objects, or nothing.
//!
//! The topmost object decides the kind. Only a directory lets the walk go on, and only directories
//! join it; a whiteout, an opaque directory or another object ends it. No side effects on disk.

mod above;
mod below;
mod walk;

pub use above::Above;
pub(crate) use below::{Below, Misses, Room, finds_own_letters};

use std::cell::Cell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use below::May;
use walk::{Pending, Place, Walk};

use crate::Overlay;
use crate::attr::Attr;
use crate::error::{Context, Error, Result};
use crate::inode::{Ino, Inode, LowerDir, Lowers, State, UpperAt};
use crate::lend;
use crate::side;
use crate::sys::{self, Stat};
use crate::whiteout::{self, Marks};

/// A name that was found, with its attributes. One lookup has been counted on its number.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The attributes.
    pub attr: Attr,
}

/// What a name stands for in the merged tree.
#[derive(Debug)]
pub struct Found {
    /// Attributes of the topmost object.
    pub stat: Stat,
    /// Its inode number.
    pub number: u64,
    /// Where it lives.
    pub state: State,
}

/// A directory's own places, taken together.
#[derive(Debug)]
pub struct View {
    /// The upper directory.
    pub upper: Option<Arc<OwnedFd>>,
    /// The lower ones, top first.
    pub lowers: Lowers,
    impure: bool,
    xattr_whiteouts: bool,
    /// Which of the lower ones have what, once that is known.
    below: Option<Arc<Below>>,
    /// Lower directories that were asked for a name and did not have it.
    misses: Cell<u32>,
    /// The hash of a name that the upper one surely lacks.
    lacking: Cell<Option<u64>>,
}

/// The inode of a name, with a lookup counted.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) inode: Arc<Inode>,
    /// Its attributes on disk, where they are those of the object it is now.
    pub(crate) stat: Option<Stat>,
    /// The turn of [`lend`] before they were read.
    pub(crate) turn: u64,
}

/// What one layer says of a name.
enum Step {
    Miss,
    Whiteout,
    Other(Stat),
    Dir(Stat, Marks),
}

impl Overlay {
    /// Looks a name up.
    pub fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        let parent = self.dir_inode(parent, "lookup")?;
        check_name(name)?;
        let seen = self.look(&parent, name)?;
        self.seen_entry(seen.ok_or_else(|| Error::code("lookup", name, sys::ENOENT))?)
    }

    /// The entry of what was seen; its lookup is given back when there is none.
    pub(crate) fn seen_entry(&self, seen: Seen) -> Result<Entry> {
        let attr = match &seen.stat {
            Some(stat) => self.attr_by(&seen.inode, stat, seen.turn),
            None => self.attr(&seen.inode),
        };
        if attr.is_err() {
            self.forget(seen.inode.ino, 1);
        }
        attr.map(|attr| Entry { attr })
    }

    /// The object of a file handle, or the directory it is in, with a lookup counted. ESTALE when it
    /// was deleted or is not known.
    pub fn lookup_handle(&self, ino: Ino, parent: bool) -> Result<Entry> {
        let stale = || Error::code("lookup", "", sys::ESTALE);
        let inode = self.table.get(ino).ok_or_else(stale)?;
        let link = inode.link();
        let wanted = match &link {
            Some(link) if parent => link.parent.ino,
            None if ino != Ino::ROOT => return Err(stale()),
            _ => ino,
        };
        let inode = self.table.get_counted(wanted).ok_or_else(stale)?;
        match self.attr(&inode) {
            Ok(attr) => Ok(Entry { attr }),
            Err(e) => {
                self.forget(wanted, 1);
                Err(e)
            }
        }
    }

    /// Gives back `count` lookups of an inode.
    pub fn forget(&self, ino: Ino, count: u64) {
        if self.table.forget(ino, count) {
            self.dir_fds.forget_lost();
            sys::trim_memory();
        }
    }

    /// The inode of a name, with a lookup counted; `None` when there is no such name.
    pub(crate) fn child(&self, parent: &Arc<Inode>, name: &OsStr) -> Result<Option<Arc<Inode>>> {
        Ok(self.look(parent, name)?.map(|seen| seen.inode))
    }

    /// [`Overlay::child`], with the attributes that were seen on the way.
    fn look(&self, parent: &Arc<Inode>, name: &OsStr) -> Result<Option<Seen>> {
        loop {
            let turn = lend::turn();
            let view = self.view(parent)?;
            let guard = parent.dir().map(|dir| dir.ns.read());
            if view.is_stale(parent) {
                continue;
            }
            if let Some(above) = &guard {
                view.know(above, name);
            }
            let found = self.resolve(&view, name).on("lookup", name)?;
            let Some(found) = found else {
                drop(guard);
                self.learn(parent, &view);
                return Ok(None);
            };
            let back = self.live.then(|| found.duplicate());
            let (stat, upper) = (found.stat, found.state.upper.is_some());
            let inode = self.intern(parent, name, found, 1);
            if back.is_some_and(|found| goes_back(&inode.state.lock(), &found.state)) {
                self.go_back((&view, name), &inode).on("lookup", name)?;
                return Ok(Some(Seen { inode, stat: None, turn }));
            }
            // Another name of the object may have been copied up meanwhile.
            let stat = (inode.is_upper() == upper).then_some(stat);
            drop(guard);
            self.learn(parent, &view);
            return Ok(Some(Seen { inode, stat, turn }));
        }
    }

    /// Takes over that an object lost its upper file or data behind the mount, unless it is we who are
    /// giving it one. The lock of its directory is held.
    fn go_back(&self, (view, name): (&View, &OsStr), inode: &Arc<Inode>) -> io::Result<()> {
        let Some(_copying) = inode.copy_up.try_lock() else { return Ok(()) };
        // What was found before the lock was taken may have been overtaken.
        if let Some(found) = self.resolve(view, name)?.filter(|f| f.number == inode.ino.0) {
            let mut state = inode.state.lock();
            copy_state(&mut state, &found.state);
            state.lowers = found.state.lowers.clone();
        }
        Ok(())
    }

    /// The places of a directory; take it before the directory's lock and ask `is_stale` after.
    pub(crate) fn view(&self, dir: &Arc<Inode>) -> Result<View> {
        let upper = self.upper_dir(dir)?;
        Ok(View::new(dir, upper))
    }

    /// What a name of a directory stands for. The directory's lock is held.
    pub(crate) fn resolve(&self, parent: &View, name: &OsStr) -> io::Result<Option<Found>> {
        if whiteout::is_dot(name) {
            return Ok(None);
        }
        let mut walk = Walk::new(self, parent, name);
        let Some(upper) = parent.upper.as_ref().filter(|_| !parent.lacks(name)) else {
            return walk.lowers();
        };
        let step = || self.step(upper.as_fd(), name, parent.xattr_whiteouts);
        match lend::lend(&[(upper.as_fd(), name)], step)? {
            Step::Miss => {
                walk.pending.push(Pending::Dot(Place::Upper(upper.clone()), name.to_owned()));
                walk.lowers()
            }
            Step::Whiteout => Ok(None),
            Step::Other(stat) => self.upper_file(walk, upper.as_fd(), stat).map(Some),
            Step::Dir(stat, marks) => {
                if !marks.opaque && !parent.lowers.is_empty() {
                    walk.pending.push(Pending::Dot(Place::Upper(upper.clone()), name.to_owned()));
                    let inside = sys::open(upper, name, sys::O_PATH | sys::O_DIRECTORY)?;
                    walk.pending.push(Pending::OpaqueFile(Place::Upper(Arc::new(inside))));
                }
                walk.upper_dir(stat, marks)
            }
        }
    }

    /// Whether any lower layer shows this name, so that hiding it needs a whiteout.
    pub(crate) fn lower_has(&self, parent: &View, name: &OsStr) -> io::Result<bool> {
        for may in parent.places(name, 0) {
            let dir = &parent.lowers[may.place];
            let fd = self.lower_dir(dir)?;
            match self.lower_step(parent, dir, (fd.as_fd(), name), may)? {
                Step::Miss if may.dot && whiteout::has_dot(fd.as_fd(), name)? => return Ok(false),
                Step::Miss => {}
                Step::Whiteout => return Ok(false),
                Step::Other(_) | Step::Dir(..) => return Ok(true),
            }
        }
        Ok(false)
    }

    /// What a lower directory says of a name that it may have.
    fn lower_step(
        &self,
        parent: &View,
        dir: &LowerDir,
        (fd, name): (BorrowedFd<'_>, &OsStr),
        may: May,
    ) -> io::Result<Step> {
        let step = if may.name { self.step(fd, name, dir.xattr_whiteouts)? } else { Step::Miss };
        if matches!(step, Step::Miss) {
            parent.misses.set(parent.misses.get() + 1);
        }
        Ok(step)
    }

    fn step(&self, dir: BorrowedFd<'_>, name: &OsStr, xattr_whiteouts: bool) -> io::Result<Step> {
        let stat = match sys::stat(dir, name) {
            Ok(stat) => stat,
            // A layer whose names may be shorter than ours does not have a long one.
            Err(e) if matches!(sys::errno(&e), sys::ENOENT | sys::ENOTDIR | sys::ENAMETOOLONG) => {
                return Ok(Step::Miss);
            }
            Err(e) => return Err(e),
        };
        if stat.is_dir() {
            return Ok(Step::Dir(stat, whiteout::marks(dir, name, self.stack.space)?));
        }
        if whiteout::is_whiteout(dir, name, &stat, xattr_whiteouts)? {
            return Ok(Step::Whiteout);
        }
        Ok(Step::Other(stat))
    }

    /// The number of an upper object without an origin: the one it is known by, or its own.
    pub(crate) fn upper_number(&self, stat: &Stat) -> u64 {
        let known = self.table.number_of_copy(stat.dev, stat.ino);
        known.unwrap_or_else(|| self.numbers.of(stat.dev, stat.ino))
    }

    /// An upper object that is no directory: its origin, hard-link group and data.
    fn upper_file(&self, mut walk: Walk<'_>, dir: BorrowedFd<'_>, stat: Stat) -> io::Result<Found> {
        let name = walk.name.clone();
        let sparse = looks_empty(&stat);
        let mut found = Found {
            stat,
            number: self.upper_number(&stat),
            state: State { upper: Some(UpperAt::Named), ..State::default() },
        };
        if !walk.parent.impure && !sparse && stat.nlink < 2 {
            return Ok(found);
        }
        let Some(upper) = &self.stack.upper else { return Ok(found) };
        let marks = side::marks(upper, (dir, &name), stat.kind())?;
        if let Some(origin) = &marks.origin {
            found.state.has_origin = true;
            if self.table.number_of_copy(stat.dev, stat.ino).is_none() {
                found.number = self.numbers.of_origin(origin).unwrap_or(found.number);
            }
            if stat.nlink > 1 {
                self.join_group(&mut found, origin, &marks)?;
            }
        }
        found.state.lower_data = walk.data_of(&marks, sparse)?.map(Box::new);
        Ok(found)
    }

    /// Puts what was found into the inode table and counts `lookups` on it. The lock of the parent
    /// is held, so nobody changes the name meanwhile.
    pub(crate) fn intern(
        &self,
        parent: &Arc<Inode>,
        name: &OsStr,
        found: Found,
        lookups: u64,
    ) -> Arc<Inode> {
        let kind = found.stat.kind();
        let many = found.stat.nlink > 1 || found.state.group_nlink.is_some();
        // Asked here, since no system call is made under the table's lock.
        let pinned = self.table.get(Ino(found.number));
        let pinned = pinned.filter(|known| is_pinned_to(known, &found.stat));
        let same = |known: &Arc<Inode>| {
            self.same_kind(known.kind, kind)
                && (known.has_link(parent, name)
                    || (kind != sys::S_IFDIR
                        && known.ino.0 == found.number
                        && (many
                            || pinned.as_ref().is_some_and(|pinned| Arc::ptr_eq(pinned, known)))))
        };
        let salt = hash_place(parent.ino, name);
        let inode = self.table.intern(
            (found.number, lookups),
            same,
            |number| self.numbers.other(number, salt),
            |ino| {
                let mut state = State { lowers: found.state.lowers.clone(), ..State::default() };
                copy_state(&mut state, &found.state);
                state.add_link(parent, name);
                Inode::new(ino, kind, state)
            },
        );
        let mut state = inode.state.lock();
        state.add_link(parent, name);
        if matches!(state.upper, Some(UpperAt::Pinned(_))) && found.state.upper.is_some() {
            // It lost the names the kernel knew, but has this one.
            state.upper = found.state.upper.clone();
        }
        if self.live && !goes_back(&state, &found.state) {
            copy_state(&mut state, &found.state);
            state.lowers = found.state.lowers.clone();
        }
        drop(state);
        inode
    }
}

/// Whether an inode that lost all names we know of is this object of the upper filesystem.
pub(crate) fn is_pinned_to(inode: &Inode, stat: &Stat) -> bool {
    let pin = match &inode.state.lock().upper {
        Some(UpperAt::Pinned(pin)) => pin.clone(),
        _ => return false,
    };
    sys::fstat(&*pin).is_ok_and(|own| own.nlink > 0 && (own.dev, own.ino) == (stat.dev, stat.ino))
}

/// Whether a lookup found less than is known: no upper object, or one without data. It may have looked
/// before a copy-up was done.
fn goes_back(known: &State, found: &State) -> bool {
    known.upper.is_some()
        && (found.upper.is_none() || (known.lower_data.is_none() && found.lower_data.is_some()))
}

/// Takes over what a lookup learnt of an object's place.
fn copy_state(state: &mut State, found: &State) {
    state.upper = found.upper.clone();
    state.lower = found.lower.clone();
    state.lower_data = found.lower_data.clone();
    state.group_nlink = found.group_nlink;
    state.impure = found.impure;
    state.xattr_whiteouts = found.xattr_whiteouts;
    state.has_origin = found.has_origin;
    state.set_redirect(found.redirect().cloned());
}

/// Whether a file may be a metacopy: it has length, but no blocks other than one for its xattrs. No
/// other file is asked for the mark.
fn looks_empty(stat: &Stat) -> bool {
    let for_xattrs = u64::from(stat.blksize / 512).max(8);
    stat.kind() == sys::S_IFREG
        && stat.size > 0
        && (stat.blocks <= for_xattrs || stat.blocks.saturating_mul(512) < stat.size)
}

/// Whether a file bears a metacopy mark that this mount must not believe, and has no data itself.
fn is_foreign(marks: &Marks, sparse: bool) -> bool {
    let foreign = marks.foreign_metacopy && sparse && !marks.metacopy;
    if foreign {
        log::warn!(
            "a file bears a metacopy mark of the other namespace; mount with userxattr to read it"
        );
    }
    foreign
}

/// A name is one component of at most 255 bytes.
pub(crate) fn check_name(name: &OsStr) -> Result<()> {
    if name.len() > 255 {
        return Err(Error::code("lookup", name, sys::ENAMETOOLONG));
    }
    if name.is_empty() || name == "." || name == ".." || name.as_bytes().contains(&b'/') {
        return Err(Error::code("lookup", name, sys::EINVAL));
    }
    Ok(())
}

pub(crate) fn hash_place(parent: Ino, name: &OsStr) -> u64 {
    // FNV-1a: the result has to be the same at every mount.
    name.as_bytes().iter().fold(parent.0 ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Found {
    /// The same once more.
    pub(crate) fn duplicate(&self) -> Found {
        let mut state = State { lowers: self.state.lowers.clone(), ..State::default() };
        copy_state(&mut state, &self.state);
        Found { stat: self.stat, number: self.number, state }
    }
}

impl View {
    /// The places of a directory whose upper one is `upper`.
    pub(crate) fn new(dir: &Inode, upper: Option<Arc<OwnedFd>>) -> View {
        let below = dir.dir().and_then(|dir| dir.below.get());
        let state = dir.state.lock();
        View {
            upper,
            lowers: state.lowers.clone(),
            impure: state.impure,
            xattr_whiteouts: state.xattr_whiteouts,
            below: below.filter(|below| below.is_of(&state.lowers)).cloned(),
            misses: Cell::new(0),
            lacking: Cell::new(None),
        }
    }

    /// Takes over what is known of a name, for as long as the lock is held and nothing is changed.
    pub(crate) fn know(&self, above: &Above, name: &OsStr) {
        self.lacking.set(above.lacks(name).then(|| above::hash(name)));
    }

    /// Whether the upper directory surely has neither this name nor its `.wh.` whiteout.
    pub(crate) fn lacks(&self, name: &OsStr) -> bool {
        self.lacking.get().is_some_and(|hash| hash == above::hash(name))
    }

    /// Whether upper objects may have a number that is not their own.
    pub(crate) fn impure(&self) -> bool {
        self.impure
    }

    /// Whether the upper directory may hold xattr whiteouts.
    pub(crate) fn xattr_whiteouts(&self) -> bool {
        self.xattr_whiteouts
    }

    /// Whether the directory was copied up, or got marks that matter to its names, since the view was
    /// taken.
    pub(crate) fn is_stale(&self, dir: &Inode) -> bool {
        let state = dir.state.lock();
        self.upper.is_none() != state.upper.is_none()
            || self.lowers.len() != state.lowers.len()
            || (self.impure, self.xattr_whiteouts) != (state.impure, state.xattr_whiteouts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_with_a_block_for_xattrs_may_be_a_metacopy() {
        let file = |size, blocks| Stat {
            mode: sys::S_IFREG | 0o644,
            size,
            blocks,
            blksize: 4096,
            ..Stat::default()
        };
        assert!(looks_empty(&file(100, 0)));
        assert!(looks_empty(&file(100, 8)));
        assert!(looks_empty(&file(100_000, 8)));
        assert!(looks_empty(&file(100_000, 16)), "sparse");
        assert!(!looks_empty(&file(8192, 16)));
        assert!(!looks_empty(&file(0, 0)));
        assert!(!looks_empty(&Stat { mode: sys::S_IFDIR, ..file(4096, 8) }));
    }
}
