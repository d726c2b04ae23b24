//! Copy-up: give a lower object an upper twin.
//!
//! The twin is built without a name or in the work directory and then gets its name, so everybody sees
//! either the lower object or the finished upper one. Directories above come first, topmost first. Order on
//! the twin: data, owner, xattrs, mode, times; each step undoes part of a later one if done after
//! it, or could not be done after it by an ordinary user's daemon. The times of the directory that gets the twin are put back.
//!
//! Locking: takes the inode's `copy_up` lock and looks again after taking it; no namespace lock is
//! held by the caller, and the parent's is taken only around the rename. So nobody waits for the
//! copying of data but those who want the same object.

mod data;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use data::copy_data;

use crate::Overlay;
use crate::attr::SetTime;
use crate::dir::target_bytes;
use crate::error::{Context, Error, Result};
use crate::inode::{Ino, Inode, LowerFile, UpperAt};
use crate::lend;
use crate::origin::Origin;
use crate::quota::{Reserved, Used, booked, data_in};
use crate::side;
use crate::stack::Upper;
use crate::sys::{self, NewTimes, Stat};
use crate::workdir::{Temp, Workdir};
use crate::xattr;

/// How much of a file the twin has to have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// Attributes suffice.
    Attributes,
    /// Attributes and the first bytes, all of them when `None`.
    Data(Option<u64>),
}

/// A lower object about to be copied.
struct Source {
    dir: Arc<OwnedFd>,
    name: Arc<OsStr>,
    stat: Stat,
    /// Where the data of a file is: the file itself, or what a metacopy stands for.
    data: Option<LowerFile>,
    origin: Option<Origin>,
}

/// Where a twin is built.
enum Twin<'a> {
    /// Under a name in the work directory.
    Named(Temp<'a>),
    /// A file that has no name yet, of which nothing is left if it never gets one.
    Unnamed(OwnedFd),
}

impl<'a> Twin<'a> {
    /// A place for a twin, with a file in it already where a file without links (`alone`) can be made
    /// without a name.
    fn new(work: &'a Workdir, alone: bool) -> io::Result<Twin<'a>> {
        let file = if alone { work.unnamed()? } else { None };
        Ok(file.map_or_else(|| Twin::Named(work.temp()), Twin::Unnamed))
    }

    fn place(&self) -> (BorrowedFd<'_>, &OsStr) {
        match self {
            Twin::Named(temp) => (temp.dir(), temp.name()),
            Twin::Unnamed(file) => (file.as_fd(), OsStr::new("")),
        }
    }

    /// The twin has its name.
    fn keep(self) {
        if let Twin::Named(temp) = self {
            temp.keep();
        }
    }
}

impl Overlay {
    /// Makes sure that the object has an upper twin; its data may stay below.
    pub(crate) fn copy_up(&self, inode: &Arc<Inode>) -> Result<()> {
        self.raise(inode, Depth::Attributes, true)
    }

    /// [`Overlay::copy_up`] that no limit refuses: for a directory from which something goes.
    pub(crate) fn copy_up_anyway(&self, dir: &Arc<Inode>) -> Result<()> {
        self.raise(dir, Depth::Attributes, false)
    }

    /// Makes sure that the object has an upper twin with data, of which the first `keep` bytes
    /// matter (all of them when `None`).
    pub(crate) fn copy_up_data(&self, inode: &Arc<Inode>, keep: Option<u64>) -> Result<()> {
        self.raise(inode, Depth::Data(keep), true)
    }

    /// Whether writing to the object would copy first.
    pub(crate) fn would_copy(&self, inode: &Inode) -> bool {
        let state = inode.state.lock();
        state.upper.is_none() || state.lower_data.is_some()
    }

    /// Bytes that changing the object would copy first.
    pub(crate) fn copy_cost(&self, ino: Ino) -> u64 {
        let Some(inode) = self.table.get(ino) else {
            return 0;
        };
        if inode.kind != sys::S_IFREG || !self.would_copy(&inode) {
            return 0;
        }
        self.at(&inode, |dir, name| sys::stat(dir, name)).map_or(0, |stat| stat.size)
    }

    pub(crate) fn writable(&self, op: &'static str) -> Result<&Upper> {
        self.stack.upper.as_ref().ok_or_else(|| Error::code(op, "/", sys::EROFS))
    }

    /// `limited`: not beyond the limits.
    fn raise(&self, inode: &Arc<Inode>, depth: Depth, limited: bool) -> Result<()> {
        if is_raised(inode, depth) {
            return match &self.stack.upper {
                Some(_) => Ok(()),
                None => Err(Error::code("write", "/", sys::EROFS)),
            };
        }
        let upper = self.writable("copy up")?;
        let mut above = Vec::new();
        let mut link = inode.link();
        while let Some(up) = link.filter(|link| !link.parent.is_upper()) {
            link = up.parent.link();
            above.push(up.parent);
        }
        for dir in above.iter().rev() {
            self.raise_one(upper, dir, (Depth::Attributes, limited))?;
        }
        self.raise_one(upper, inode, (depth, limited))
    }

    fn raise_one(
        &self,
        upper: &Upper,
        inode: &Arc<Inode>,
        (depth, limited): (Depth, bool),
    ) -> Result<()> {
        let _lock = inode.copy_up.lock();
        if is_raised(inode, depth) {
            return Ok(());
        }
        let path = || inode.path();
        if inode.is_upper() {
            return self.fill(inode).at("copy up data", path);
        }
        let source = self.source(inode).at("copy up", path)?;
        let room = if limited { self.room_for_twin(&source, depth) } else { Ok(self.begin()) };
        let room = room.at("copy up", path)?;
        let alone = source.stat.kind() == sys::S_IFREG && source.stat.nlink == 1;
        let twin = Twin::new(&upper.work, alone).at("copy up", path)?;
        let metacopy = self.build(&twin, &source, depth).at("copy up", path)?;
        let published = self.publish(inode, twin, &source, metacopy).at("copy up", path);
        if let Some(room) = room.filter(|_| inode.is_upper()) {
            let twin = self.at(inode, |dir, name| sys::stat(dir, name));
            room.came(twin.map_or(Used::INODE, |stat| Used::of(&stat)));
            let pin = match &inode.state.lock().upper {
                Some(UpperAt::Pinned(pin)) => Some(pin.clone()),
                _ => None,
            };
            pin.into_iter().for_each(|pin| self.keep_booked(&*pin));
        }
        published?;
        self.stats.copied_up();
        Ok(())
    }

    /// Room for the twin of an object.
    fn room_for_twin(&self, source: &Source, depth: Depth) -> io::Result<Option<Reserved<'_>>> {
        if self.meter.is_none() {
            return Ok(None);
        }
        let stat = &source.stat;
        let keep = match (stat.kind(), depth) {
            (sys::S_IFREG, Depth::Attributes) if self.may_metacopy(stat) => 0,
            (sys::S_IFREG, Depth::Data(Some(keep))) => keep.min(stat.size),
            (sys::S_IFREG, _) => stat.size,
            _ => 0,
        };
        let bytes = match &source.data {
            _ if stat.kind() == sys::S_IFLNK => target_bytes(stat.size),
            Some(data) if keep > 0 => {
                data_in(self.open_lower(data, sys::O_RDONLY | sys::O_NONBLOCK)?, keep)
            }
            _ => 0,
        };
        self.reserve(Used { bytes, inodes: 1 })
    }

    fn source(&self, inode: &Arc<Inode>) -> io::Result<Source> {
        let (dirs, file, data) = {
            let state = inode.state.lock();
            (state.lowers.clone(), state.lower.clone(), state.lower_data.clone())
        };
        let data = data.map(|data| *data).or_else(|| file.clone());
        let (dir, name, layer) = match (dirs.first(), file) {
            (Some(dir), _) => (self.lower_dir(dir)?, OsStr::new("").into(), dir.layer),
            (None, Some(file)) => (self.lower_dir(&file.dir)?, file.name, file.dir.layer),
            (None, None) => return Err(io::Error::from_raw_os_error(sys::ESTALE)),
        };
        let stat = sys::stat(&*dir, &name)?;
        let origin = if stat.nlink > 1 && !stat.is_dir() {
            Some(self.group_origin(dir.as_fd(), &name, (layer, &stat)))
        } else {
            self.origin_of(dir.as_fd(), &name, stat.dev)
        };
        Ok(Source { dir, name, stat, data, origin })
    }

    /// Builds the twin; true when it is a metacopy.
    fn build(&self, twin: &Twin<'_>, source: &Source, depth: Depth) -> io::Result<bool> {
        let ((dir, name), stat) = (twin.place(), &source.stat);
        if self.options.hides_owner(stat.uid, stat.gid) {
            return Err(io::Error::from_raw_os_error(sys::EOVERFLOW));
        }
        let mut metacopy = false;
        match stat.kind() {
            sys::S_IFREG => metacopy = self.build_file(twin, source, depth)?,
            sys::S_IFDIR => sys::mkdir(dir, name, 0o700)?,
            sys::S_IFLNK => sys::symlink(dir, name, &sys::readlink(&*source.dir, &source.name)?)?,
            kind => self.make_special(dir, name, (kind | 0o600, stat.rdev))?,
        }
        let from = (source.dir.as_fd(), &*source.name);
        self.copy_owner(from, (dir, name), stat)?;
        xattr::copy(from, (dir, name), self.options.xattr_permissions, stat.is_dir())?;
        // The origin first, so that it is within the inode where that has room: the marks that are
        // alike in all metacopies then share a block.
        if let Some(origin) = &source.origin {
            self.write_origin(dir, name, origin)?;
        }
        if metacopy {
            self.mark_metacopy(dir, name)?;
        }
        self.copy_mode((dir, name), stat)?;
        let times =
            NewTimes { atime: Some(SetTime::At(stat.atime)), mtime: Some(SetTime::At(stat.mtime)) };
        sys::set_times(dir, name, times)?;
        Ok(metacopy)
    }

    /// Says by which number an upper object goes. The lock of its directory is held.
    pub(crate) fn note_copy(&self, inode: &Inode, dir: BorrowedFd<'_>, name: &OsStr) {
        match sys::stat(dir, name) {
            Ok(real) => self.table.copied(inode, (real.dev, real.ino)),
            Err(e) => log::warn!("stat {name:?} after its copy-up: {e}"),
        }
    }

    fn build_file(&self, twin: &Twin<'_>, source: &Source, depth: Depth) -> io::Result<bool> {
        let made;
        let file = match twin {
            Twin::Unnamed(file) => file,
            Twin::Named(temp) => {
                made = sys::open_new(temp.dir(), temp.name(), 0o600)?;
                &made
            }
        };
        if depth == Depth::Attributes && self.may_metacopy(&source.stat) {
            sys::truncate(file, source.stat.size)?;
            return Ok(true);
        }
        let keep = match depth {
            Depth::Data(Some(keep)) => keep.min(source.stat.size),
            _ => source.stat.size,
        };
        if keep > 0 {
            let Some(data) = &source.data else {
                return Err(io::Error::from_raw_os_error(sys::ESTALE));
            };
            let from = self.open_lower(data, sys::O_RDONLY | sys::O_NONBLOCK)?;
            copy_data(&from, file, keep)?;
            self.stats.copied_data(keep);
            if self.options.fsync && !self.options.volatile {
                sys::fsync(file, true)?;
            }
        }
        Ok(false)
    }

    pub(crate) fn write_origin(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        origin: &Origin,
    ) -> io::Result<()> {
        let Some(upper) = &self.stack.upper else { return Ok(()) };
        match side::set_mark(upper, (dir, name), "origin", &origin.encode()) {
            // No room for another xattr. What the origin says is the number at the next mount.
            Err(e) if sys::errno(&e) == sys::ENOSPC => Ok(()),
            other => other,
        }
    }

    /// Moves the twin to where the object's name is now.
    fn publish(
        &self,
        inode: &Arc<Inode>,
        twin: Twin<'_>,
        source: &Source,
        metacopy: bool,
    ) -> io::Result<()> {
        loop {
            let Some(link) = inode.link() else {
                // It lost its last name while it was copied, or before: it lives on by descriptor.
                let (dir, name) = twin.place();
                let pin = UpperAt::Pinned(Arc::new(sys::open(dir, name, sys::O_PATH)?));
                self.promote(inode, pin, source, metacopy);
                return Ok(());
            };
            let Some(parent) = self.upper_dir(&link.parent).map_err(|e| e.source)? else {
                // The name that was first is not any more, and the directory of the next one is still
                // a lower one. Its lock is taken while ours is held: upwards, as nowhere downwards.
                if link.parent.is_upper() {
                    return Err(io::Error::from_raw_os_error(sys::ESTALE));
                }
                self.raise(&link.parent, Depth::Attributes, true).map_err(|e| e.source)?;
                continue;
            };
            let Some(lock) = link.parent.dir() else {
                continue;
            };
            let mut above = lock.ns.write();
            if !inode.has_link(&link.parent, &link.name) {
                continue;
            }
            above.announce(&link.name);
            let before = sys::fstat(&*parent)?;
            if source.origin.is_some() || metacopy {
                self.mark_impure(&link.parent, parent.as_fd())?;
            }
            let at = self.give_name(twin, source, (parent.as_fd(), &link.name))?;
            self.note_copy(inode, parent.as_fd(), &link.name);
            self.begins_empty(inode, (parent.as_fd(), &link.name), &above);
            self.promote(inode, at, source, metacopy);
            self.book_dir(&*parent, &before);
            return restore_times(parent.as_fd(), &before);
        }
    }

    /// Gives the twin its name, or what names of a link group have in the place of one.
    fn give_name(
        &self,
        twin: Twin<'_>,
        source: &Source,
        (dir, name): (BorrowedFd<'_>, &OsStr),
    ) -> io::Result<UpperAt> {
        let at = match &twin {
            Twin::Unnamed(file) => {
                let link = || sys::link_fd(file, dir, name);
                lend::lend(&[(dir, OsStr::new(""))], link).map_err(|e| match sys::errno(&e) {
                    // Somebody put an object there behind our back: the kernel looks the name up again.
                    sys::EEXIST => io::Error::from_raw_os_error(sys::ESTALE),
                    _ => e,
                })?;
                UpperAt::Named
            }
            Twin::Named(temp) => {
                let linked = source.stat.nlink > 1 && !source.stat.is_dir();
                match source.origin.as_ref().filter(|_| linked) {
                    Some(origin) => {
                        self.publish_group(temp.name(), origin, &source.stat, (dir, name))?
                    }
                    None => {
                        lend::rename(temp.dir(), temp.name(), dir, name, 0)?;
                        UpperAt::Named
                    }
                }
            }
        };
        twin.keep();
        Ok(at)
    }

    fn promote(&self, inode: &Arc<Inode>, at: UpperAt, source: &Source, metacopy: bool) {
        let mut state = inode.state.lock();
        if matches!(at, UpperAt::Index(_)) {
            state.group_nlink = Some(source.stat.nlink);
        }
        state.upper = Some(at);
        state.has_origin = source.origin.is_some();
        if metacopy {
            let own = state.lower.take();
            state.lower_data = state.lower_data.take().or(own.map(Box::new));
        } else {
            state.lower_data = None;
            state.lower = None;
        }
        state.data = None;
    }

    /// Gives a metacopy its data. Done in place: until the mark falls, the data is read below.
    fn fill(&self, inode: &Arc<Inode>) -> io::Result<()> {
        let Some(data) = inode.state.lock().lower_data.clone() else {
            return Ok(());
        };
        let (before, to) = self.at(inode, |dir, name| {
            Ok((sys::stat(dir, name)?, lend::open(dir, name, sys::O_RDWR | sys::O_NONBLOCK)?))
        })?;
        let from = self.open_lower(&data, sys::O_RDONLY | sys::O_NONBLOCK)?;
        let room = match &self.meter {
            Some(_) => self.reserve(Used::bytes(data_in(&from, before.size)))?,
            None => None,
        };
        let fill = || {
            copy_data(&from, &to, before.size)?;
            self.stats.copied_data(before.size);
            if self.options.fsync && !self.options.volatile {
                sys::fsync(&to, true)?;
            }
            restore_times(to.as_fd(), &before)?;
            let space = self.stack.space;
            lend::remove_xattr(&to, OsStr::new(""), &space.key("metacopy"))?;
            if let Err(e) = lend::remove_xattr(&to, OsStr::new(""), &space.key("redirect")) {
                log::debug!("{:?}: redirect of a file with data stays: {e}", data.name);
            }
            Ok(())
        };
        booked(room, || sys::fstat(&to), fill)?;
        let mut state = inode.state.lock();
        state.lower_data = None;
        state.data = None;
        Ok(())
    }

    /// Says that a directory may hold objects whose number is not their own.
    pub(crate) fn mark_impure(&self, dir: &Arc<Inode>, fd: BorrowedFd<'_>) -> io::Result<()> {
        if dir.state.lock().impure {
            return Ok(());
        }
        match lend::set_xattr(fd, OsStr::new(""), &self.stack.space.key("impure"), b"y") {
            Err(e) if matches!(sys::errno(&e), sys::EPERM | sys::EOPNOTSUPP) => {}
            other => other?,
        }
        dir.state.lock().impure = true;
        Ok(())
    }
}

fn is_raised(inode: &Inode, depth: Depth) -> bool {
    let state = inode.state.lock();
    state.upper.is_some() && (depth == Depth::Attributes || state.lower_data.is_none())
}

/// Puts access and modification time back to what they were.
pub(crate) fn restore_times(fd: BorrowedFd<'_>, before: &Stat) -> io::Result<()> {
    let times =
        NewTimes { atime: Some(SetTime::At(before.atime)), mtime: Some(SetTime::At(before.mtime)) };
    sys::set_times(fd, OsStr::new(""), times)
}
