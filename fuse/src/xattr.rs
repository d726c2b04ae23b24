//! The user's xattrs through, the overlay's own hidden, nesting escaped.
//!
//! A name `trusted.overlay.X` or `user.overlay.X` set through the mount is stored with one
//! `overlay.` more and shown with one less, so that an overlay inside this one has names of its own
//! that mean nothing here (kernel document "overlayfs", nesting). Names without the extra prefix
//! are ours: never shown, never set.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use crate::Overlay;
use crate::acl;
use crate::error::{Context, Error, Result};
use crate::identity::disk_acl;
use crate::inode::{Ino, Inode};
use crate::lend;
use crate::options::XattrPermissions;
use crate::owner::{is_record, shown_xattr, stored_xattr};
use crate::quota::{Reserved, Used, booked};
use crate::sys;

const SPACES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
const ESCAPE: &[u8] = b"overlay.";
/// What a program may do whoever runs it (capabilities(7)).
const CAPABILITY: &str = "security.capability";

/// The name under which a user's xattr is stored.
fn escape(key: &OsStr) -> OsString {
    for space in SPACES {
        if let Some(rest) = key.as_bytes().strip_prefix(space) {
            return OsString::from_vec([space, ESCAPE, rest].concat());
        }
    }
    key.to_owned()
}

/// The name under which a stored xattr is shown; `None` for the overlay's own.
fn unescape(key: &[u8]) -> Option<OsString> {
    for space in SPACES {
        if let Some(rest) = key.strip_prefix(space) {
            let rest = rest.strip_prefix(ESCAPE)?;
            return Some(OsString::from_vec([space, rest].concat()));
        }
    }
    (!is_reserved(key)).then(|| OsString::from_vec(key.to_vec()))
}

/// Names of fuse-overlayfs, which have no escape: never shown, never set.
fn is_reserved(key: &[u8]) -> bool {
    key.starts_with(b"user.fuseoverlayfs.") || key.starts_with(b"trusted.fuseoverlayfs.")
}

/// Copies all xattrs but the overlay's own; where owners are kept in the override record, neither
/// the record nor what the mount does not show, and an ACL as [`disk_acl`] has it. What the filesystem or our privilege does not allow is
/// left out only where nothing can depend on it: labels of a security module and `trusted.*`.
pub(crate) fn copy(
    from: (BorrowedFd<'_>, &OsStr),
    to: (BorrowedFd<'_>, &OsStr),
    records: XattrPermissions,
    is_dir: bool,
) -> io::Result<()> {
    for key in sys::list_xattr(from.0, from.1)? {
        if SPACES
            .iter()
            .any(|space| key.strip_prefix(*space).is_some_and(|rest| !rest.starts_with(ESCAPE)))
        {
            continue;
        }
        // A mark that was read where it lay would hide what the copy lies over.
        if is_reserved(&key) && !is_record(&key) {
            continue;
        }
        let name = OsStr::from_bytes(&key);
        let kept = records == XattrPermissions::Off || shown_xattr(records, name).is_some();
        let Some(mut value) = sys::get_xattr(from.0, from.1, name)?.filter(|_| kept) else {
            continue;
        };
        if records != XattrPermissions::Off && name == acl::ACCESS {
            value = disk_acl(value, is_dir);
        }
        let optional =
            key.starts_with(b"trusted.") || (key.starts_with(b"security.") && name != CAPABILITY);
        // Other access lists, as of NFS, mean nothing elsewhere.
        let needed = is_acl(name) || name == CAPABILITY;
        // An ACL that comes early may close the copy.
        match lend::set_xattr(to.0, to.1, name, &value) {
            Err(e) if optional && matches!(sys::errno(&e), sys::EPERM | sys::EOPNOTSUPP) => {}
            // The upper filesystem has none at all.
            Err(e) if !needed && sys::errno(&e) == sys::EOPNOTSUPP => {}
            other => other?,
        }
    }
    Ok(())
}

impl Overlay {
    /// Value of an xattr; ENODATA when there is none.
    pub fn getxattr(&self, ino: Ino, key: &OsStr) -> Result<Vec<u8>> {
        let inode = self.inode(ino, "getxattr")?;
        let stored = self.stored_key(key, sys::ENODATA)?;
        let value = self.at(&inode, |dir, name| sys::get_xattr(dir, name, &stored));
        let value =
            value.on("getxattr", key)?.ok_or_else(|| Error::code("getxattr", key, sys::ENODATA))?;
        if is_acl(key) { self.shown_acl(&inode, key, value) } else { Ok(value) }
    }

    /// Names of all xattrs, each ended by NUL.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        let inode = self.inode(ino, "listxattr")?;
        if self.options.noxattrs {
            return Ok(Vec::new());
        }
        let keys = self
            .at(&inode, |dir, name| sys::list_xattr(dir, name))
            .on("listxattr", inode.path())?;
        let mut list = Vec::new();
        for key in keys {
            let Some(name) = unescape(&key) else { continue };
            let Some(name) =
                shown_xattr(self.options.xattr_permissions, &name).map(|n| n.into_owned())
            else {
                continue;
            };
            if self.options.noacl && is_acl(&name) {
                continue;
            }
            list.extend_from_slice(name.as_bytes());
            list.push(0);
        }
        Ok(list)
    }

    /// Sets an xattr; `flags` as in setxattr(2).
    pub fn setxattr(&self, ino: Ino, key: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        let inode = self.inode(ino, "setxattr")?;
        let stored = self.stored_key(key, sys::EPERM)?;
        if is_acl(key) && !self.identity.is_trivial() {
            self.set_acl(&inode, key, value, flags)?;
        } else {
            self.copy_up(&inode)?;
            let room = self.reserve(Used::bytes(value.len() as u64)).on("setxattr", key)?;
            self.book_xattr(&inode, room, |dir, name| {
                sys::set_xattr(dir, name, &stored, value, flags)
            })
            .on("setxattr", key)?;
        }
        self.xattr_changed(&inode, key);
        Ok(())
    }

    /// Removes an xattr; ENODATA when there is none.
    pub fn removexattr(&self, ino: Ino, key: &OsStr) -> Result<()> {
        let inode = self.inode(ino, "removexattr")?;
        let stored = self.stored_key(key, sys::EPERM)?;
        // Nothing to remove is no reason to copy.
        self.getxattr(ino, key)?;
        self.copy_up(&inode)?;
        self.book_xattr(&inode, self.begin(), |dir, name| sys::remove_xattr(dir, name, &stored))
            .on("removexattr", key)?;
        self.xattr_changed(&inode, key);
        Ok(())
    }

    /// Changes an xattr of an upper object, and books the blocks that come or go with it.
    fn book_xattr(
        &self,
        inode: &Arc<Inode>,
        room: Option<Reserved<'_>>,
        change: impl Fn(BorrowedFd<'_>, &OsStr) -> io::Result<()>,
    ) -> io::Result<()> {
        let _alone = room.is_some().then(|| inode.copy_up.lock());
        let dir = if room.is_some() && inode.is_dir() { Some(self.upper_dir(inode)) } else { None };
        if let Some(dir) = dir {
            let dir = dir.map_err(|e| e.source)?;
            let dir = dir.ok_or_else(|| io::Error::from_raw_os_error(sys::ESTALE))?;
            // Who changes its names books its blocks, too.
            let _names = inode.dir().map(|dir| dir.ns.read());
            return booked(room, || sys::fstat(&*dir), || change(dir.as_fd(), OsStr::new("")));
        }
        booked(
            room,
            || self.at(inode, |dir, name| sys::stat(dir, name)),
            || self.at(inode, &change),
        )
    }

    fn stored_key(&self, key: &OsStr, refusal: i32) -> Result<OsString> {
        if self.options.noxattrs || (self.options.noacl && is_acl(key)) {
            return Err(Error::code("xattr", key, sys::EOPNOTSUPP));
        }
        if is_reserved(key.as_bytes()) {
            return Err(Error::code("xattr", key, refusal));
        }
        let stored = stored_xattr(self.options.xattr_permissions, key);
        let stored = stored.ok_or_else(|| Error::code("xattr", key, refusal))?;
        Ok(escape(&stored))
    }

    fn xattr_changed(&self, inode: &Arc<Inode>, key: &OsStr) {
        if key == OsStr::new(acl::DEFAULT) {
            // Who makes a name there notes what he read before that.
            let _names = inode.dir().map(|dir| dir.ns.write());
            inode.state.lock().default_acl = None;
        }
    }

    /// The default ACL of a directory, remembered when there is none.
    pub(crate) fn default_acl(
        &self,
        dir: &Arc<Inode>,
        fd: BorrowedFd<'_>,
    ) -> Result<Option<Vec<u8>>> {
        if self.options.noacl || dir.state.lock().default_acl == Some(false) {
            return Ok(None);
        }
        let acl = sys::get_xattr(fd, OsStr::new(""), OsStr::new(acl::DEFAULT))
            .on("get ACL", dir.path())?;
        let acl = acl.filter(|acl| !acl.is_empty());
        dir.state.lock().default_acl = Some(acl.is_some());
        Ok(acl)
    }
}

fn is_acl(key: &OsStr) -> bool {
    key.as_bytes().starts_with(b"system.posix_acl_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_names_are_escaped_one_level() {
        for (user, stored) in [
            ("trusted.overlay.opaque", "trusted.overlay.overlay.opaque"),
            ("user.overlay.overlay.x", "user.overlay.overlay.overlay.x"),
            ("user.comment", "user.comment"),
            ("security.capability", "security.capability"),
        ] {
            assert_eq!(escape(OsStr::new(user)), OsStr::new(stored));
            assert_eq!(unescape(stored.as_bytes()), Some(user.into()));
        }
        assert_eq!(unescape(b"trusted.overlay.opaque"), None);
        assert_eq!(unescape(b"user.fuseoverlayfs.opaque"), None);
    }
}
