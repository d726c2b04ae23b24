//! Rights that the owner of an upper object gives himself for a moment.
//!
//! The daemon of an ordinary user has no more rights than he: `user.*` xattrs need the right to write
//! to the inode, a directory moved to another one the right to write to it, and a name in a directory
//! the right to write there. What the mount has to do, no caller asked for by itself: the kernel has
//! checked the caller (`default_permissions`). So a refused step is done again with the owner's bits
//! added, and the mode is put back. The time of the last change of the inode moves with that; a crash in
//! between leaves the owner with rights that he may give himself anyway, and nobody else.
//!
//! Lower layers are never changed: what their owner closed to himself stays closed.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};

use crate::sys::{self, Name};

/// Held alone while any mode is not its own. Comes last of all locks: only system calls are made
/// under it.
static LENT: RwLock<()> = RwLock::new(());
/// Goes up when modes are lent and when they are taken back: odd in between.
static TURN: AtomicU64 = AtomicU64::new(0);

/// Keeps modes what they are, for who sets one.
pub(crate) fn settled() -> RwLockReadGuard<'static, ()> {
    LENT.read()
}

/// The moment before something is read, for [`settled_since`].
pub(crate) fn turn() -> u64 {
    TURN.load(Ordering::SeqCst)
}

/// Whether every mode was its own since that moment.
pub(crate) fn settled_since(turn: u64) -> bool {
    turn & 1 == 0 && TURN.load(Ordering::SeqCst) == turn
}

/// What `read` finds while every mode is its own; without a lock where nothing was lent meanwhile.
pub(crate) fn steady<T>(read: impl Fn() -> T) -> T {
    let before = turn();
    if before & 1 == 0 {
        let found = read();
        if settled_since(before) {
            return found;
        }
    }
    let _settled = settled();
    read()
}

/// Modes are lent while this lives. Made before the loans, so it goes after them.
struct Turn;

impl Turn {
    fn new() -> Turn {
        TURN.fetch_add(1, Ordering::SeqCst);
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TURN.fetch_add(1, Ordering::SeqCst);
    }
}

/// An object with its owner's bits added; the drop takes them back.
struct Loan {
    object: OwnedFd,
    mode: u32,
}

impl Loan {
    /// `None` where nothing can be added: it is all there, or not ours to give.
    fn new(dir: BorrowedFd<'_>, name: &OsStr) -> Option<Loan> {
        let object = sys::open(dir, name, sys::O_PATH).ok()?;
        let stat = sys::fstat(&object).ok()?;
        let bits = match stat.kind() {
            sys::S_IFREG => 0o600,
            sys::S_IFDIR => 0o700,
            _ => return None,
        };
        // chmod(2) would take the bit for good from who is not in the group.
        let loses_bit = stat.mode & sys::S_ISGID != 0 && !sys::is_member(stat.gid);
        if stat.mode & bits == bits || loses_bit {
            return None;
        }
        sys::chmod(&object, OsStr::new(""), stat.mode | bits).ok()?;
        Some(Loan { object, mode: stat.mode })
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Err(e) = sys::chmod(&self.object, OsStr::new(""), self.mode) {
            log::warn!("a mode stays with its owner's bits added, {:o} was it: {e}", self.mode);
        }
    }
}

/// Does something to upper objects, each given as in [`sys`]; once more with the owner's bits where
/// the first attempt is refused. `step` is one system call or a few.
pub(crate) fn lend<T>(
    objects: &[(BorrowedFd<'_>, &OsStr)],
    step: impl Fn() -> io::Result<T>,
) -> io::Result<T> {
    let refused = match step() {
        Err(e) if sys::errno(&e) == sys::EACCES => e,
        other => return other,
    };
    let _alone = LENT.write();
    let _turn = Turn::new();
    let lent: Vec<Loan> = objects.iter().filter_map(|(dir, name)| Loan::new(*dir, name)).collect();
    if lent.is_empty() { Err(refused) } else { step() }
}

/// [`sys::set_xattr`] of an upper object.
pub(crate) fn set_xattr(dir: impl AsFd, name: &OsStr, key: &OsStr, value: &[u8]) -> io::Result<()> {
    let dir = dir.as_fd();
    lend(&[(dir, name)], || sys::set_xattr(dir, name, key, value, 0))
}

/// [`sys::remove_xattr`] of an upper object.
pub(crate) fn remove_xattr(dir: impl AsFd, name: &OsStr, key: &OsStr) -> io::Result<()> {
    let dir = dir.as_fd();
    lend(&[(dir, name)], || sys::remove_xattr(dir, name, key))
}

/// [`sys::open`] of an upper object.
pub(crate) fn open(dir: impl AsFd, name: &OsStr, flags: i32) -> io::Result<OwnedFd> {
    let dir = dir.as_fd();
    lend(&[(dir, name)], || sys::open(dir, name, flags))
}

/// [`sys::list`] of an upper directory.
pub(crate) fn list(dir: impl AsFd) -> io::Result<Vec<Name>> {
    let dir = dir.as_fd();
    lend(&[(dir, OsStr::new(""))], || sys::list(dir))
}

/// [`sys::rename`] between the upper layer and the work directory. The directories on both sides may
/// be closed, and so may a directory that moves.
pub(crate) fn rename(
    dir: impl AsFd,
    name: &OsStr,
    new_dir: impl AsFd,
    new_name: &OsStr,
    flags: u32,
) -> io::Result<()> {
    let (top, from, to) = (OsStr::new(""), dir.as_fd(), new_dir.as_fd());
    let step = || sys::rename(from, name, to, new_name, flags);
    // Files need no bits to be moved.
    let is_dir = |dir, name| sys::stat(dir, name).is_ok_and(|stat| stat.is_dir());
    match step() {
        Err(e) if sys::errno(&e) == sys::EACCES => {}
        other => return other,
    }
    let mut objects = vec![(from, top), (to, top)];
    if is_dir(from, name) {
        objects.push((from, name));
    }
    if flags & sys::RENAME_EXCHANGE != 0 && is_dir(to, new_name) {
        objects.push((to, new_name));
    }
    lend(&objects, step)
}
