//! Owners as the mount shows and stores them: the overlay's side of [`crate::owner`].
//!
//! With `xattr_permissions` owner, mode and device number are read from and written to the
//! stat-override record; the file itself keeps the daemon's owner. A file without a record is shown
//! as it is.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use crate::Overlay;
use crate::attr::SetAttr;
use crate::error::{Context, Error, Result};
use crate::inode::Inode;
use crate::owner::{OVERRIDE_NAMES, Override, override_name};
use crate::side;
use crate::sys;

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
            if (uid.is_some() || gid.is_some()) && attr.mode & sys::S_IFMT == sys::S_IFREG {
                // As chown(2) does on a local filesystem.
                let group = if attr.mode & 0o010 != 0 { sys::S_ISGID } else { 0 };
                attr.mode &= !(sys::S_ISUID | group);
            }
            let mode = set.mode.map_or(attr.mode, |mode| attr.mode & sys::S_IFMT | mode & 0o7777);
            let ids = (uid.unwrap_or(attr.uid), gid.unwrap_or(attr.gid));
            self.write_override(dir, name, ids, (mode, attr.rdev))
        };
        self.at(inode, change).on("set owner record", inode.path())
    }

    /// Ids to store for the ones asked for.
    pub(crate) fn store_ids(
        &self,
        uid: Option<u32>,
        gid: Option<u32>,
        path: &Path,
    ) -> Result<(Option<u32>, Option<u32>)> {
        let refuse = |_| Error::code("chown", path, sys::EINVAL);
        let uid = uid.map(|uid| self.identity.store_uid(uid)).transpose().map_err(refuse)?;
        let gid = gid.map(|gid| self.identity.store_gid(gid)).transpose().map_err(refuse)?;
        Ok((uid, gid))
    }
}
