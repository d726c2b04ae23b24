//! Owners as the mount shows and stores them: the overlay's side of [`crate::owner`].
//!
//! With `xattr_permissions` owner, mode and device number are read from and written to the
//! stat-override record; the file itself keeps the daemon's owner and a mode that lets the daemon in.
//! A file without a record is shown as it is.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use crate::Overlay;
use crate::acl;
use crate::attr::{SetAttr, encode_dev, without_set_id};
use crate::error::{Context, Error, Result};
use crate::inode::Inode;
use crate::owner::{OVERRIDE_NAMES, Override, Unmapped, override_name};
use crate::side;
use crate::sys::{self, Stat};

impl Overlay {
    /// The override record of an object, where the mount uses them.
    pub(crate) fn read_override(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
    ) -> io::Result<Option<Override>> {
        if !self.identity.uses_override() {
            return Ok(None);
        }
        for key in OVERRIDE_NAMES {
            match sys::get_xattr(dir, name, OsStr::new(key)) {
                Ok(Some(value)) => return Ok(Override::parse(&value)),
                Ok(None) => {}
                Err(e) if matches!(sys::errno(&e), sys::EPERM | sys::EACCES) => {}
                Err(e) => return Err(e),
            }
        }
        let Some(upper) = &self.stack.upper else { return Ok(None) };
        let kept = side::get(upper, (dir, name), "override")?;
        Ok(kept.and_then(|value| Override::parse(&value)))
    }

    /// Writes the record of an object; ids are those on disk.
    pub(crate) fn write_override(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        (uid, gid): (u32, u32),
        (mode, rdev): (u32, u32),
    ) -> io::Result<()> {
        let Some(key) = override_name(self.options.xattr_permissions) else {
            return Ok(());
        };
        let record = Override::new(uid, gid, mode, rdev).to_string();
        match (sys::set_xattr(dir, name, OsStr::new(key), record.as_bytes(), 0), &self.stack.upper)
        {
            // Symlinks and devices bear no user.* xattrs.
            (Err(e), Some(upper)) if matches!(sys::errno(&e), sys::EPERM | sys::EOPNOTSUPP) => {
                side::set(upper, (dir, name), "override", record.as_bytes())
            }
            (done, _) => done,
        }
    }

    /// Changes owner or mode in the record.
    pub(crate) fn set_override(&self, inode: &Arc<Inode>, set: &SetAttr) -> Result<()> {
        let (uid, gid) = self.store_ids(set.uid, set.gid, &inode.path())?;
        let change = |dir: BorrowedFd<'_>, name: &OsStr| {
            let stat = sys::stat(dir, name)?;
            let mut attr = self.raw(inode, &stat);
            if let Some(record) = self.read_override(dir, name)? {
                record.apply(&mut attr);
            }
            if (uid.is_some() || gid.is_some()) && attr.mode & sys::S_IFMT != sys::S_IFDIR {
                // As chown(2) does on a local filesystem.
                attr.mode = without_set_id(attr.mode);
            }
            let mode = set.mode.map_or(attr.mode, |mode| attr.mode & sys::S_IFMT | mode & 0o7777);
            let ids = (uid.unwrap_or(attr.uid), gid.unwrap_or(attr.gid));
            self.write_override(dir, name, ids, (mode, attr.rdev))
        };
        self.at(inode, change).on("set owner record", inode.path())
    }

    /// Gives the upper twin of an object, or a directory made in the place of another, the owner
    /// of `from`, and the record where there are records. An id that has no name in our user namespace cannot be set; where
    /// such ids are shown as another one, that one is stored.
    pub(crate) fn copy_owner(
        &self,
        from: (BorrowedFd<'_>, &OsStr),
        (dir, name): (BorrowedFd<'_>, &OsStr),
        stat: &Stat,
    ) -> io::Result<()> {
        let (mut ids, mut shown) = ((stat.uid, stat.gid), (stat.mode, encode_dev(stat.rdev)));
        let records = self.identity.uses_override();
        if let Some(record) = self.read_override(from.0, from.1)? {
            ids = (record.uid, record.gid);
            shown = record.shown(shown.0, shown.1);
        }
        ids = self.identity.copied_owner(ids.0, ids.1);
        if !records && ids != self.daemon_ids {
            let done = sys::chown(dir, name, Some(ids.0), Some(ids.1));
            if !self.identity.ignores_chown_errors() {
                done?;
            }
        }
        if records && stat.kind() != sys::S_IFLNK {
            sys::chmod(dir, name, disk_mode(shown.0, stat.is_dir()))?;
        }
        self.write_override(dir, name, ids, shown)
    }

    /// Gives such a twin its mode, where that is not in a record: it may close the twin to the
    /// daemon, so what needs the right to write comes before.
    pub(crate) fn copy_mode(
        &self,
        (dir, name): (BorrowedFd<'_>, &OsStr),
        stat: &Stat,
    ) -> io::Result<()> {
        if self.identity.uses_override() || stat.kind() == sys::S_IFLNK {
            return Ok(());
        }
        sys::chmod(dir, name, stat.mode)
    }

    /// Makes a fifo, a socket or a device. Where there are records, an empty file stands for a device
    /// that the daemon may not make.
    pub(crate) fn make_special(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        (mode, rdev): (u32, u64),
    ) -> io::Result<()> {
        let is_device = matches!(mode & sys::S_IFMT, sys::S_IFCHR | sys::S_IFBLK);
        match sys::mknod(dir, name, mode, rdev) {
            Err(e)
                if is_device && self.identity.uses_override() && sys::errno(&e) == sys::EPERM =>
            {
                sys::open_new(dir, name, mode & 0o777).map(drop)
            }
            other => other,
        }
    }

    /// The type bits to list for an object that has `kind` on disk.
    pub(crate) fn shown_kind(&self, at: (BorrowedFd<'_>, &OsStr), kind: u32) -> io::Result<u32> {
        if !self.identity.uses_override() || matches!(kind, sys::S_IFDIR | sys::S_IFLNK) {
            return Ok(kind);
        }
        let record = self.read_override(at.0, at.1)?;
        Ok(record.map_or(kind, |record| record.shown(kind, 0).0 & sys::S_IFMT))
    }

    /// Whether both may be type bits of one object: an empty file may stand for a device.
    pub(crate) fn same_kind(&self, one: u32, other: u32) -> bool {
        let plain = |kind| !matches!(kind, sys::S_IFDIR | sys::S_IFLNK);
        one == other || (self.identity.uses_override() && plain(one) && plain(other))
    }

    /// An ACL on disk as the mount shows it. With a record the mode in it counts.
    pub(crate) fn shown_acl(
        &self,
        inode: &Arc<Inode>,
        key: &OsStr,
        mut value: Vec<u8>,
    ) -> Result<Vec<u8>> {
        if key == acl::ACCESS {
            let record = self.at(inode, |dir, name| self.read_override(dir, name));
            if let Some(record) = record.on("read owner record", inode.path())? {
                value = acl::with_mode(&value, record.mode).unwrap_or(value);
            }
        }
        Ok(self.identity.present_acl(&value).unwrap_or(value))
    }

    /// Sets an ACL as the caller sees ids. With a record the mode it stands for goes there.
    pub(crate) fn set_acl(
        &self,
        inode: &Arc<Inode>,
        key: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> Result<()> {
        let refuse = |_| Error::code("set ACL", inode.path(), sys::EINVAL);
        let value = self.identity.store_acl(value).map_err(refuse)?;
        let access = key == acl::ACCESS && self.identity.uses_override();
        let stands = acl::equivalent_mode(&value).map_err(refuse)?;
        self.copy_up(inode)?;
        let disk = if access { disk_acl(value, inode.is_dir()) } else { value };
        let set = |dir: BorrowedFd<'_>, name: &OsStr| match access && stands.minimal {
            true => remove_if_there(dir, name, key),
            false => sys::set_xattr(dir, name, key, &disk, flags),
        };
        self.at(inode, set).on("set ACL", inode.path())?;
        if !access {
            return Ok(());
        }
        let mode = self.attr(inode)?.mode & 0o7000 | stands.bits;
        self.set_override(inode, &SetAttr { mode: Some(mode), ..SetAttr::default() })
    }

    /// Ids to store for the ones asked for.
    pub(crate) fn store_ids(
        &self,
        uid: Option<u32>,
        gid: Option<u32>,
        path: &Path,
    ) -> Result<(Option<u32>, Option<u32>)> {
        let check = |stored: std::result::Result<u32, Unmapped>| match stored {
            Ok(id) => Ok(Some(id)),
            Err(_) if self.identity.ignores_chown_errors() => Ok(None),
            Err(_) => Err(Error::code("chown", path, sys::EINVAL)),
        };
        let uid = uid.map_or(Ok(None), |uid| check(self.identity.store_uid(uid)))?;
        let gid = gid.map_or(Ok(None), |gid| check(self.identity.store_gid(gid)))?;
        Ok((uid, gid))
    }
}

/// The mode on disk of an object whose own is in the record: no set-id bit, since the owner is
/// another, and whatever the mode is the daemon can read and change it.
pub(crate) fn disk_mode(mode: u32, is_dir: bool) -> u32 {
    mode & 0o777 | if is_dir { 0o700 } else { 0o600 }
}

/// The access ACL on disk of an object whose mode is in the record, for the same reason.
pub(crate) fn disk_acl(value: Vec<u8>, is_dir: bool) -> Vec<u8> {
    let widened = acl::equivalent_mode(&value)
        .and_then(|stands| acl::with_mode(&value, disk_mode(stands.bits, is_dir)));
    widened.unwrap_or(value)
}

fn remove_if_there(dir: BorrowedFd<'_>, name: &OsStr, key: &OsStr) -> io::Result<()> {
    match sys::remove_xattr(dir, name, key) {
        Err(e) if matches!(sys::errno(&e), sys::ENODATA | sys::EOPNOTSUPP | sys::EPERM) => Ok(()),
        other => other,
    }
}
