//! Names come and go: create, mkdir, mknod, symlink, link, unlink, rmdir, tmpfile.
//!
//! A name is created or removed in the upper directory by one atomic step. If a lower layer shows
//! the name, its removal leaves a whiteout in that same step, and a new directory in its place is
//! opaque. An object that does not come into being with the right owner at once is built in the
//! work directory and renamed into place, so a crash leaves it whole or absent.

mod held;
mod link;
mod remove;

pub(crate) use held::Held;
pub(crate) use remove::{bury, unpin};

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::Overlay;
use crate::acl;
use crate::attr::{decode_dev, encode_dev};
use crate::error::{Context, Error, Result};
use crate::identity::{disk_acl, disk_mode};
use crate::inode::{Data, Ino, Inode, State, UpperAt};
use crate::lend;
use crate::namei::{Entry, Found, check_name};
use crate::owner::Caller;
use crate::quota::{Reserved, Used};
use crate::stack::Upper;
use crate::sys::{self, Stat};
use crate::whiteout::{self, Style};
use crate::workdir::Temp;

/// What the upper directory has at a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing, and no lower layer shows the name.
    Free,
    /// A whiteout with the very name.
    Whiteout,
    /// A `.wh.NAME` whiteout.
    Dot,
}

/// What to make.
#[derive(Clone, Copy)]
enum Node<'a> {
    File,
    Dir,
    Special { kind: u32, rdev: u64 },
    Symlink(&'a OsStr),
}

/// What to make, and the mode the caller gives.
#[derive(Clone, Copy)]
struct New<'a> {
    node: Node<'a>,
    mode: u32,
}

/// Owner, mode and ACLs of an object to be made.
struct Birth {
    uid: u32,
    gid: u32,
    mode: u32,
    acl: Option<acl::Inherited>,
    /// It comes out right when made in place by the daemon itself.
    direct: bool,
}

impl Overlay {
    /// Creates a regular file and opens it; pair with [`Overlay::release`].
    pub fn create(&self, caller: Caller, parent: Ino, name: &OsStr, mode: u32) -> Result<Entry> {
        self.make(caller, parent, name, New { node: Node::File, mode })
    }

    /// Makes a directory.
    pub fn mkdir(&self, caller: Caller, parent: Ino, name: &OsStr, mode: u32) -> Result<Entry> {
        self.make(caller, parent, name, New { node: Node::Dir, mode })
    }

    /// Makes a file, fifo, socket or device; `mode` bears the type. The device number of a whiteout
    /// is refused, as the kernel's overlay refuses it.
    #[allow(clippy::too_many_arguments, reason = "those of mknod(2)")]
    pub fn mknod(
        &self,
        caller: Caller,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        rdev: u32,
    ) -> Result<Entry> {
        let kind = mode & sys::S_IFMT;
        if kind == sys::S_IFCHR && rdev == 0 {
            return Err(Error::code("mknod", name, sys::EPERM));
        }
        if kind != 0 && kind != sys::S_IFREG {
            let node = Node::Special { kind, rdev: decode_dev(rdev) };
            return self.make(caller, parent, name, New { node, mode });
        }
        let entry = self.make(caller, parent, name, New { node: Node::File, mode })?;
        if !self.handleless {
            self.release(entry.attr.ino);
        }
        Ok(entry)
    }

    /// Makes a symlink.
    pub fn symlink(
        &self,
        caller: Caller,
        parent: Ino,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<Entry> {
        self.make(caller, parent, name, New { node: Node::Symlink(target), mode: 0o777 })
    }

    fn make(&self, caller: Caller, parent: Ino, name: &OsStr, new: New<'_>) -> Result<Entry> {
        let parent = self.dir_inode(parent, "create")?;
        check_name(name)?;
        let upper = self.writable("create")?;
        if matches!(new.node, Node::File) {
            self.check_open_data(name)?;
        }
        let room = self.room_for_new(&parent, name, new.node)?;
        let held = self.hold(&parent, Some(name))?;
        let names = self.names(room, &[(&held.fd, name)]);
        let mut birth = self.birth(caller, &parent, &held, new)?;
        let mut place = self.place(&held, name, birth.direct)?;
        birth.direct &= place != Place::Whiteout && !(place == Place::Dot && is_dir(new.node));
        let mut made = None;
        if birth.direct {
            match self.make_node(held.fd.as_fd(), name, new.node, &birth) {
                // What is there was not looked for.
                Err(e) if sys::errno(&e) == sys::EEXIST => place = self.occupant(&held, name)?,
                other => made = Some(other.on("create", name)?),
            }
        }
        let file = match made {
            Some(file) => file,
            None => {
                self.inherit(&held, new.node, &mut birth)?;
                self.make_aside(&held, name, (new.node, place), &birth)?
            }
        };
        if place == Place::Dot {
            upper.dialect.drop_dot(held.fd.as_fd(), name);
        }
        let turn = lend::turn();
        let stat = match &file {
            Some(file) => sys::fstat(file),
            None => sys::stat(&*held.fd, name),
        };
        let stat = stat.on("stat", name)?;
        let inode = self.intern_new(&parent, name, &stat, file);
        if let Some(above) = &held.guard {
            self.begins_empty(&inode, (held.fd.as_fd(), name), above);
        }
        drop(names);
        drop(held);
        if matches!(new.node, Node::File) {
            self.bound_open_data(&inode);
        }
        self.attr_by(&inode, &stat, turn).map(|attr| Entry { attr })
    }

    /// Room for a new object, and the directory copied up that it will be in, which takes room of its own.
    fn room_for_new(
        &self,
        parent: &Arc<Inode>,
        name: &OsStr,
        node: Node<'_>,
    ) -> Result<Option<Reserved<'_>>> {
        if self.meter.is_none() {
            return Ok(None);
        }
        self.copy_up(parent)?;
        let target = if let Node::Symlink(target) = node { target.len() } else { 0 };
        let room = Used { bytes: target_bytes(target as u64), inodes: 1 };
        self.reserve_name(room).on("create", name)
    }

    /// The entry of an inode that has one lookup counted for it already.
    pub(crate) fn entry(&self, inode: &Arc<Inode>) -> Result<Entry> {
        self.attr(inode).map(|attr| Entry { attr })
    }

    fn intern_new(
        &self,
        parent: &Arc<Inode>,
        name: &OsStr,
        stat: &Stat,
        file: Option<OwnedFd>,
    ) -> Arc<Inode> {
        let state = State { upper: Some(UpperAt::Named), ..State::default() };
        let number = self.numbers.of(stat.dev, stat.ino);
        let inode = self.intern(parent, name, Found { stat: *stat, number, state }, 1);
        if let Some(fd) = file {
            if !self.handleless {
                inode.opens.fetch_add(1, Ordering::Relaxed);
            }
            let data = Data {
                fd,
                reads: true,
                writes: true,
                appends: false,
                count: self.open_data.count(),
            };
            inode.state.lock().data = Some(Arc::new(data));
        }
        inode
    }

    /// What is in the way of a new name; EEXIST when an object is. With `tries` the caller asks the
    /// upper directory by making the name there: it is not asked here if nothing is below, and
    /// `Free` means that no lower layer is in the way.
    fn place(&self, held: &Held<'_>, name: &OsStr, tries: bool) -> Result<Place> {
        if whiteout::is_dot(name) {
            // It would be read as a whiteout at the next mount, and so be lost.
            return Err(Error::code("create", name, sys::EINVAL));
        }
        let below = self.lower_has(&held.view, name).on("create", name)?;
        if tries && !below {
            return Ok(Place::Free);
        }
        if !held.view.lacks(name) {
            if sys::has(&*held.fd, name).on("create", name)?.is_some() {
                return self.occupant(held, name);
            }
            if below && whiteout::has_dot(held.fd.as_fd(), name).on("create", name)? {
                return Ok(Place::Dot);
            }
        }
        if !below {
            return Ok(Place::Free);
        }
        Err(Error::code("create", name, sys::EEXIST))
    }

    /// What has a name in the upper directory: a whiteout, or else EEXIST.
    fn occupant(&self, held: &Held<'_>, name: &OsStr) -> Result<Place> {
        let stat = sys::stat(&*held.fd, name).on("create", name)?;
        let hidden = held.is_whiteout(name, &stat).on("create", name)?;
        if hidden { Ok(Place::Whiteout) } else { Err(Error::code("create", name, sys::EEXIST)) }
    }

    /// Owner, group, mode and ACLs of a new object in this directory, as a local filesystem gives
    /// them: the caller's, the group from a set-group-id directory, the umask unless there is a
    /// default ACL.
    fn birth(
        &self,
        caller: Caller,
        parent: &Arc<Inode>,
        held: &Held<'_>,
        New { node, mode }: New<'_>,
    ) -> Result<Birth> {
        let (uid, gid) = self.identity.store_new(caller.uid, caller.gid);
        let direct = (uid, gid) == self.daemon_ids && !self.identity.uses_override();
        let mut birth = Birth { uid, gid, mode: mode & 0o7777, acl: None, direct };
        if !matches!(node, Node::Symlink(_)) {
            match self.default_acl(parent, held.fd.as_fd())? {
                None => birth.mode &= !caller.umask,
                Some(default) => {
                    let inherited = acl::inherit(&default, birth.mode, is_dir(node));
                    birth.acl = Some(
                        inherited
                            .map_err(|_| Error::code("inherit ACL", parent.path(), sys::EIO))?,
                    );
                }
            }
        }
        Ok(birth)
    }

    /// What the filesystem would inherit from the directory, done by hand for an object that is
    /// built elsewhere: the mode an ACL gives, the group and the set-group-id bit.
    fn inherit(&self, held: &Held<'_>, node: Node<'_>, birth: &mut Birth) -> Result<()> {
        if let Some(acl) = &birth.acl {
            birth.mode = acl.mode & 0o777 | birth.mode & 0o7000;
        }
        let top = OsStr::new("");
        let parent = sys::fstat(&*held.fd).on("stat", top)?;
        let record = self.read_override(held.fd.as_fd(), top).on("read owner record", top)?;
        let (gid, mode) =
            record.map_or((parent.gid, parent.mode), |record| (record.gid, record.mode));
        if mode & sys::S_ISGID != 0 {
            birth.gid = gid;
            if is_dir(node) {
                birth.mode |= sys::S_ISGID;
            }
        }
        Ok(())
    }

    /// Builds the object in the work directory and moves it to its name.
    fn make_aside(
        &self,
        held: &Held<'_>,
        name: &OsStr,
        (node, place): (Node<'_>, Place),
        birth: &Birth,
    ) -> Result<Option<OwnedFd>> {
        let upper = self.writable("create")?;
        let temp = upper.work.temp();
        let file = self.make_node(temp.dir(), temp.name(), node, birth).on("create", name)?;
        self.dress(temp.dir(), temp.name(), node, birth).on("create", name)?;
        let (at, to) = (temp.dir(), held.fd.as_fd());
        if !is_dir(node) {
            let flags = if place == Place::Whiteout { 0 } else { sys::RENAME_NOREPLACE };
            rename_new(&temp, to, name, flags).on("create", name)?;
            temp.keep();
            return Ok(file);
        }
        if place != Place::Free {
            upper.dialect.set_opaque(at, temp.name()).on("make opaque", name)?;
        }
        if place == Place::Whiteout && upper.can_exchange().on("create", name)? {
            lend::rename(at, temp.name(), to, name, sys::RENAME_EXCHANGE).on("create", name)?;
            // What is left in the work directory is the whiteout; the guard removes it.
            return Ok(file);
        }
        if place == Place::Whiteout {
            sys::unlink(to, name).on("create", name)?;
        }
        rename_new(&temp, to, name, 0).on("create", name)?;
        temp.keep();
        Ok(file)
    }

    fn dress(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        node: Node<'_>,
        birth: &Birth,
    ) -> io::Result<()> {
        if self.identity.uses_override() {
            let (kind, rdev) = match node {
                Node::File => (sys::S_IFREG, 0),
                Node::Dir => (sys::S_IFDIR, 0),
                Node::Special { kind, rdev } => (kind, encode_dev(rdev)),
                Node::Symlink(_) => (sys::S_IFLNK, 0),
            };
            self.write_override(dir, name, (birth.uid, birth.gid), (kind | birth.mode, rdev))?;
            return dress_acl(dir, name, birth, |acl| disk_acl(acl, is_dir(node)));
        }
        if (birth.uid, birth.gid) != self.daemon_ids {
            let owned = sys::chown(dir, name, Some(birth.uid), Some(birth.gid));
            if !self.identity.ignores_chown_errors() {
                owned?;
            }
        }
        if matches!(node, Node::Symlink(_)) {
            return Ok(());
        }
        sys::chmod(dir, name, birth.mode)?;
        dress_acl(dir, name, birth, |acl| acl)
    }

    fn make_node(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        node: Node<'_>,
        birth: &Birth,
    ) -> io::Result<Option<OwnedFd>> {
        let mode = self.made_mode(birth, is_dir(node));
        match node {
            Node::File => return sys::open_new(dir, name, mode).map(Some),
            Node::Dir => sys::mkdir(dir, name, mode)?,
            Node::Special { kind, rdev } => self.make_special(dir, name, (kind | mode, rdev))?,
            Node::Symlink(target) => sys::symlink(dir, name, target)?,
        }
        Ok(None)
    }

    /// The mode an object is made with on disk.
    fn made_mode(&self, birth: &Birth, is_dir: bool) -> u32 {
        if self.identity.uses_override() { disk_mode(birth.mode, is_dir) } else { birth.mode }
    }

    /// Makes a file without a name and opens it; pair with [`Overlay::release`].
    pub fn tmpfile(&self, caller: Caller, parent: Ino, mode: u32) -> Result<Entry> {
        let parent = self.dir_inode(parent, "tmpfile")?;
        let upper = self.writable("tmpfile")?;
        self.check_open_data(OsStr::new(""))?;
        let held = self.hold(&parent, None)?;
        let mut birth = self.birth(caller, &parent, &held, New { node: Node::File, mode })?;
        self.inherit(&held, Node::File, &mut birth)?;
        drop(held);
        let room = self.reserve(Used::INODE).on("tmpfile", "")?;
        let made = sys::open_unnamed(upper.work.dir(), self.made_mode(&birth, false));
        let file = made.on("tmpfile", "")?;
        self.dress(file.as_fd(), OsStr::new(""), Node::File, &birth).on("tmpfile", "")?;
        let pin = sys::reopen(&file, sys::O_PATH).on("tmpfile", "")?;
        let stat = sys::fstat(&pin).on("tmpfile", "")?;
        let upper = Some(UpperAt::Pinned(Arc::new(pin)));
        let state = State { upper, linkable: true, ..State::default() };
        let number = self.numbers.of(stat.dev, stat.ino);
        let inode = self.table.intern(
            (number, 1),
            |_| false,
            |number| self.numbers.other(number, 0),
            |ino| Inode::new(ino, sys::S_IFREG, state),
        );
        inode.opens.fetch_add(1, Ordering::Relaxed);
        room.into_iter().for_each(|room| room.came(Used::of(&stat)));
        self.keep_booked(&file);
        let data = Data {
            fd: file,
            reads: true,
            writes: true,
            appends: false,
            count: self.open_data.count(),
        };
        inode.state.lock().data = Some(Arc::new(data));
        self.bound_open_data(&inode);
        self.entry(&inode)
    }
}

/// Sets the ACLs an object inherits.
fn dress_acl(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    birth: &Birth,
    disk: impl Fn(Vec<u8>) -> Vec<u8>,
) -> io::Result<()> {
    let Some(acl) = &birth.acl else { return Ok(()) };
    let access = acl.access.clone().map(disk);
    for (key, value) in [(acl::ACCESS, &access), (acl::DEFAULT, &acl.default)] {
        if let Some(value) = value {
            sys::set_xattr(dir, name, OsStr::new(key), value, 0)?;
        }
    }
    Ok(())
}

/// Bytes that a symlink takes; a short target is in the inode.
pub(crate) fn target_bytes(length: u64) -> u64 {
    if length < 60 { 0 } else { 4096 }
}

fn is_dir(node: Node<'_>) -> bool {
    matches!(node, Node::Dir)
}

/// Renames a new object to its name; where the filesystem has no flags, plainly, since the lock of
/// the directory keeps the name free.
fn rename_new(temp: &Temp<'_>, dir: BorrowedFd<'_>, name: &OsStr, flags: u32) -> io::Result<()> {
    match lend::rename(temp.dir(), temp.name(), dir, name, flags) {
        Err(e) if flags != 0 && matches!(sys::errno(&e), sys::EINVAL | sys::ENOSYS) => {
            lend::rename(temp.dir(), temp.name(), dir, name, 0)
        }
        other => other,
    }
}

/// Removes what a rename left in the work directory; it is garbage, so a failure only waits for the
/// scrub of the next mount.
pub(crate) fn discard(upper: &Upper, name: &OsStr) {
    if let Err(e) = sys::remove_tree(upper.work.dir(), name) {
        log::debug!("work directory: {name:?} stays until the next mount: {e}");
    }
}

/// Whether deletions are written as `.wh.NAME` files.
pub(crate) fn writes_dots(upper: &Upper) -> bool {
    upper.dialect.style == Style::Dot
}
