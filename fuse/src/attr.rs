//! Attributes: getattr, setattr, statfs.
//!
//! They come from the topmost object; changing one implies an upper object. A merged directory
//! counts one link, as the kernel's overlay does, since only a full walk could count more.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::Overlay;
use crate::error::{Context, Error, Result};
use crate::inode::{Ino, Inode};
use crate::lend;
use crate::owner::{Caller, Override};
use crate::quota::Span;
use crate::sys::{self, FsStat, NewTimes, Stat};

/// A point in time: seconds since 1970, negative before, and nanoseconds after that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nsec: u32,
}

/// What stat(2) shows of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Generation of the inode number.
    pub generation: u32,
    /// Type and permissions.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, in the kernel's 32-bit encoding.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the data.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Birth, where the filesystem knows it.
    pub btime: Option<Time>,
}

impl Attr {
    /// What goes with number 0 in a reply that says "no such name".
    pub(crate) fn absent() -> Attr {
        let time = Time::default();
        Attr {
            ino: Ino(0),
            generation: 0,
            mode: sys::S_IFREG,
            nlink: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            blksize: 4096,
            atime: time,
            mtime: time,
            ctime: time,
            btime: None,
        }
    }
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The moment of the call.
    Now,
    /// A given one.
    At(Time),
}

/// What to change; `None` leaves as is.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permissions.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the data.
    pub mtime: Option<SetTime>,
}

impl SetAttr {
    /// Whether nothing is to change but what falls with a change: the kernel asks for that before
    /// fallocate(2) and the like, and for a chown(2) that names no id (`FUSE_HANDLE_KILLPRIV_V2`).
    pub(crate) fn is_nothing(&self) -> bool {
        self.mode.is_none()
            && self.size.is_none()
            && (self.uid.is_none() && self.gid.is_none())
            && (self.atime.is_none() && self.mtime.is_none())
    }
}

/// A mode without the set-user-id bit, and without the set-group-id bit if the group may execute.
pub(crate) fn without_set_id(mode: u32) -> u32 {
    let group = if mode & 0o010 != 0 { sys::S_ISGID } else { 0 };
    mode & !(sys::S_ISUID | group)
}

/// What statfs(2) shows.
pub type Statfs = FsStat;

/// Device numbers as the FUSE protocol carries them: the kernel's `new_encode_dev`.
pub(crate) fn encode_dev(rdev: u64) -> u32 {
    let (major, minor) =
        (rdev >> 8 & 0xfff | rdev >> 32 & 0xffff_f000, rdev & 0xff | rdev >> 12 & 0xffff_ff00);
    ((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)) as u32
}

/// The inverse of [`encode_dev`].
pub(crate) fn decode_dev(dev: u32) -> u64 {
    let dev = u64::from(dev);
    let (major, minor) = ((dev & 0xf_ff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0xf_ff00));
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12 | (major & !0xfff) << 32
}

impl Overlay {
    /// Attributes of an object.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        let inode = self.inode(ino, "getattr")?;
        self.attr(&inode)
    }

    pub(crate) fn attr(&self, inode: &Arc<Inode>) -> Result<Attr> {
        let (stat, over) = self
            .at(inode, |dir, name| {
                let stat = lend::steady(|| sys::stat(dir, name))?;
                Ok((stat, self.read_override(dir, name)?))
            })
            .at("stat", || inode.path())?;
        Ok(self.shown(inode, &stat, over))
    }

    /// [`Overlay::attr`] by what was found already, at `turn` of [`lend`] or later, where that says
    /// all.
    pub(crate) fn attr_by(&self, inode: &Arc<Inode>, stat: &Stat, turn: u64) -> Result<Attr> {
        if self.identity.uses_override() || !lend::settled_since(turn) {
            return self.attr(inode);
        }
        Ok(self.shown(inode, stat, None))
    }

    fn shown(&self, inode: &Inode, stat: &Stat, over: Option<Override>) -> Attr {
        let mut attr = self.raw(inode, stat);
        if let Some(over) = over {
            over.apply(&mut attr);
        }
        let mode = self.options.mode_of_lower(attr.uid, attr.gid, attr.mode);
        if mode != attr.mode && inode.state.lock().upper.is_none() {
            attr.mode = mode;
        }
        (attr.uid, attr.gid, attr.mode) = self.identity.present(attr.uid, attr.gid, attr.mode);
        self.fix_blocks(inode, &mut attr);
        attr
    }

    /// A stat as the merged tree shows it, with the owner on disk.
    pub(crate) fn raw(&self, inode: &Inode, stat: &Stat) -> Attr {
        Attr {
            ino: inode.ino,
            generation: inode.generation,
            mode: stat.mode,
            nlink: self.nlink(inode, stat),
            uid: stat.uid,
            gid: stat.gid,
            rdev: encode_dev(stat.rdev),
            size: stat.size,
            blocks: stat.blocks,
            blksize: stat.blksize,
            atime: stat.atime,
            mtime: stat.mtime,
            ctime: stat.ctime,
            btime: stat.btime,
        }
    }

    fn nlink(&self, inode: &Inode, stat: &Stat) -> u32 {
        let state = inode.state.lock();
        let nameless = state.links.is_empty() && inode.ino != Ino::ROOT;
        if nameless && (inode.is_dir() || state.upper.is_none()) {
            return 0;
        }
        if !inode.is_dir() {
            return state.group_nlink.unwrap_or(stat.nlink);
        }
        let sources = state.lowers.len() + usize::from(state.upper.is_some());
        if self.options.static_nlink || (sources > 1 && stat.nlink > 0) { 1 } else { stat.nlink }
    }

    /// A metacopy has no blocks; the file it stands for has.
    fn fix_blocks(&self, inode: &Inode, attr: &mut Attr) {
        let data = inode.state.lock().lower_data.clone().filter(|data| !data.is_nowhere());
        let Some(data) = data else { return };
        if let Ok(stat) = self.lower_dir(&data.dir).and_then(|dir| sys::stat(dir, &data.name)) {
            attr.blocks = stat.blocks;
        }
    }

    /// Changes attributes and returns all of them.
    pub fn setattr(&self, caller: Caller, ino: Ino, set: &SetAttr) -> Result<Attr> {
        let inode = self.inode(ino, "setattr")?;
        match set.size {
            Some(size) => self.copy_up_data(&inode, Some(size))?,
            None => self.copy_up(&inode)?,
        }
        if let Some(size) = set.size {
            self.truncate(caller, &inode, size)?;
        }
        let mut set = *set;
        if set.is_nothing() && !inode.is_dir() {
            set.mode = self.fallen_mode(caller, &inode)?;
        }
        if set.uid.is_some() || set.gid.is_some() || set.mode.is_some() {
            self.set_owner_and_mode(&inode, &set)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let times = NewTimes { atime: set.atime, mtime: set.mtime };
            self.at(&inode, |dir, name| sys::set_times(dir, name, times))
                .on("set times", inode.path())?;
        }
        self.attr(&inode)
    }

    /// The mode that a change of nothing leaves, if it is another. Who may neither chmod the file nor
    /// write to it takes no bit away: the kernel has anybody ask by a chown(2) that names no id.
    fn fallen_mode(&self, caller: Caller, inode: &Arc<Inode>) -> Result<Option<u32>> {
        let attr = self.attr(inode)?;
        let writes = if caller.gid == attr.gid { 0o020 } else { 0o002 };
        let may = caller.uid == 0 || caller.uid == attr.uid || attr.mode & writes != 0;
        let mode = attr.mode & 0o7777;
        Ok(Some(without_set_id(mode)).filter(|fallen| may && *fallen != mode))
    }

    fn truncate(&self, caller: Caller, inode: &Arc<Inode>, size: u64) -> Result<()> {
        let data = self.data(inode, true)?;
        let cut = |_| sys::truncate(&data.fd, size);
        self.resize(inode, &data.fd, Span::NOTHING, cut).on("truncate", inode.path())?;
        if caller.uid != 0 {
            self.drop_set_id(inode, data.fd.as_fd())?;
        }
        Ok(())
    }

    fn set_owner_and_mode(&self, inode: &Arc<Inode>, set: &SetAttr) -> Result<()> {
        if set.mode.is_some_and(|mode| mode & (sys::S_ISUID | sys::S_ISGID) != 0) {
            inode.plain_mode.store(false, Ordering::Relaxed);
        }
        if self.identity.uses_override() {
            return self.set_override(inode, set);
        }
        if set.uid.is_some() || set.gid.is_some() {
            let (uid, gid) = self.store_ids(set.uid, set.gid, &inode.path())?;
            let done = self.at(inode, |dir, name| sys::chown(dir, name, uid, gid));
            if !(done.is_err() && self.identity.ignores_chown_errors()) {
                done.on("chown", inode.path())?;
            }
        }
        if let Some(mode) = set.mode {
            if inode.kind == sys::S_IFLNK {
                return Err(Error::code("chmod", inode.path(), sys::EOPNOTSUPP));
            }
            self.open_before_change(inode);
            let change = |dir: BorrowedFd<'_>, name: &OsStr| {
                let _settled = lend::settled();
                sys::chmod(dir, name, mode)
            };
            self.at(inode, change).on("chmod", inode.path())?;
        }
        if set.mode.is_some_and(|mode| mode & (sys::S_ISUID | sys::S_ISGID) != 0) {
            // Again: a write at the same moment may have found the bits not set yet.
            inode.plain_mode.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Counts of the filesystem that is written to, or of the topmost lower one; limits are its size.
    pub fn statfs(&self) -> Result<Statfs> {
        let root = self.inode(Ino::ROOT, "statfs")?;
        let mut stat = self.at(&root, |dir, _| sys::fstatfs(dir)).on("statfs", OsStr::new("/"))?;
        stat.namelen = stat.namelen.min(255);
        if let Some(meter) = &self.meter {
            meter.show(&mut stat);
        }
        Ok(stat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_go_both_ways() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (259, 70_000), (4095, 1_048_575)] {
            let rdev: u64 = (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12;
            assert_eq!(decode_dev(encode_dev(rdev)), rdev, "{major}:{minor}");
        }
        assert_eq!(encode_dev(0x0103), 0x0103);
    }
}
