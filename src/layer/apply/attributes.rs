//! Owner, permissions, attributes and times of what was made, in the order in which they do not undo each
//! other: owner (which clears set-id bits and capabilities), attributes, permissions, capabilities, times.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use plyfs_fuse::options::XattrPermissions;
use plyfs_fuse::owner::{OVERRIDE_NAMES, Override, override_name, shown_xattr, stored_xattr};
use plyfs_fuse::sys;

use super::Owners;
use super::reader::{Entry, Kind};
use crate::sys::unpack;

const CAPABILITY: &[u8] = b"security.capability";
const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// What an object has by being made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Born {
    /// Owner and group.
    pub(super) owner: (u32, u32),
    /// Permissions, where they are known.
    pub(super) mode: Option<u32>,
    /// It got an ACL from its directory.
    pub(super) acl: bool,
    /// It was there before, with attributes of its own.
    pub(super) old: bool,
}

/// How attributes are set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setter {
    pub(super) owners: Owners,
}

impl Setter {
    /// All but times, of the open file or directory, or of `name` in it.
    pub(super) fn set(
        &self,
        fd: impl AsFd,
        name: &OsStr,
        entry: &Entry,
        born: Born,
    ) -> io::Result<()> {
        let fd = fd.as_fd();
        let mut mode = entry.mode;
        match self.owners {
            Owners::Record => {}
            _ if born.owner == (entry.uid, entry.gid) => {}
            owners => {
                let done = match name.is_empty() {
                    true => unpack::chown(fd, entry.uid, entry.gid),
                    false => unpack::chown_at(fd, name, entry.uid, entry.gid),
                };
                match done {
                    Err(error) if owners == Owners::Ignore && refused(&error) => mode &= !0o6000,
                    other => other?,
                }
            }
        }
        if born.acl {
            for key in [ACCESS, DEFAULT] {
                forget(sys::remove_xattr(fd, name, OsStr::new(key)))?;
            }
        }
        if born.old {
            self.drop_old(fd, name, entry)?;
        }
        let bears_user = matches!(entry.kind, Kind::File | Kind::Dir);
        for (key, value) in entry.xattrs.iter().filter(|(key, _)| key != CAPABILITY) {
            self.set_xattr(fd, name, (key, value), bears_user)?;
        }
        if self.owners == Owners::Record && bears_user {
            self.record(fd, name, entry, (entry.mode, 0))?;
            mode = mode & 0o777 | if entry.kind == Kind::Dir { 0o700 } else { 0o600 };
        }
        if entry.kind != Kind::Symlink && born.mode != Some(mode) {
            match name.is_empty() {
                true => unpack::chmod(fd, mode)?,
                false => unpack::chmod_at(fd, name, mode)?,
            }
        }
        for (key, value) in entry.xattrs.iter().filter(|(key, _)| key == CAPABILITY) {
            self.set_xattr(fd, name, (key, value), bears_user)?;
        }
        Ok(())
    }

    /// Notes owner, permissions and kind in an attribute. `mode` may bear the bits of a kind.
    pub(super) fn record(
        &self,
        fd: impl AsFd,
        name: &OsStr,
        entry: &Entry,
        (mode, rdev): (u32, u32),
    ) -> io::Result<()> {
        let Some(key) = override_name(XattrPermissions::User) else { return Ok(()) };
        let kind = match entry.kind {
            _ if mode & sys::S_IFMT != 0 => 0,
            Kind::Dir => sys::S_IFDIR,
            _ => sys::S_IFREG,
        };
        let record = Override::new(entry.uid, entry.gid, mode | kind, rdev).to_string();
        sys::set_xattr(fd, name, OsStr::new(key), record.as_bytes(), 0)
    }

    /// Sets one attribute, or leaves it out where that is right.
    fn set_xattr(
        &self,
        fd: impl AsFd,
        name: &OsStr,
        (key, value): (&[u8], &[u8]),
        bears_user: bool,
    ) -> io::Result<()> {
        let shown = || key.escape_ascii();
        if key == CAPABILITY && value.is_empty() {
            log::warn!("attribute {} left out: it is empty", shown());
            return Ok(());
        }
        let Some(stored) = self.stored(key) else {
            log::warn!("attribute {} left out: not an image's to set", shown());
            return Ok(());
        };
        match sys::set_xattr(fd, name, &stored, value, 0) {
            Err(error) if sys::errno(&error) == sys::EOPNOTSUPP => {
                log::warn!("attribute {} left out: {error}", shown());
                Ok(())
            }
            // The kernel has user.* on files and directories only.
            Err(error) if sys::errno(&error) == sys::EPERM && !bears_user => Ok(()),
            Err(error)
                if sys::errno(&error) == sys::EPERM
                    && (self.owners != Owners::Set || !key.starts_with(b"user.")) =>
            {
                log::warn!("attribute {} left out: {error}", shown());
                Ok(())
            }
            other => other,
        }
    }

    /// The name on disk. Marks of an overlay are escaped, so that an image forges none and an overlay shows
    /// them as they were. Names by which owners are kept, and a label that belongs to the mount, are none of an
    /// image's.
    fn stored(&self, key: &[u8]) -> Option<OsString> {
        for space in [&b"trusted.overlay."[..], b"user.overlay."] {
            if let Some(rest) = key.strip_prefix(space) {
                return Some(OsString::from_vec([space, b"overlay.", rest].concat()));
            }
        }
        let ours: [&[u8]; 5] = [
            b"user.containers.override_",
            b"user.fuseoverlayfs.",
            b"trusted.fuseoverlayfs.",
            b"security.fuseoverlayfs.",
            b"security.selinux",
        ];
        if ours.iter().any(|name| key.starts_with(name)) {
            return None;
        }
        let mode = match self.owners {
            Owners::Record => XattrPermissions::User,
            Owners::Set | Owners::Ignore => XattrPermissions::Off,
        };
        stored_xattr(mode, OsStr::from_bytes(key)).map(std::borrow::Cow::into_owned)
    }

    /// Removes attributes that the entry does not bring.
    fn drop_old(&self, fd: impl AsFd, name: &OsStr, entry: &Entry) -> io::Result<()> {
        for key in sys::list_xattr(fd.as_fd(), name)? {
            let user = key.starts_with(b"user.") && !key.starts_with(b"user.overlay.");
            let belongs = user || key == CAPABILITY || key.starts_with(b"system.posix_acl_");
            let record = OVERRIDE_NAMES.iter().any(|record| record.as_bytes() == key);
            let shown = shown_xattr(XattrPermissions::Off, OsStr::from_bytes(&key));
            let brought = entry
                .xattrs
                .iter()
                .any(|(name, _)| Some(OsStr::from_bytes(name)) == shown.as_deref());
            if belongs && !record && !brought {
                forget(sys::remove_xattr(fd.as_fd(), name, OsStr::from_bytes(&key)))?;
            }
        }
        Ok(())
    }
}

/// Whether what is made in a directory gets an ACL.
pub(super) fn has_default_acl(fd: impl AsFd) -> io::Result<bool> {
    Ok(sys::get_xattr(fd, OsStr::new(""), OsStr::new(DEFAULT))?.is_some())
}

/// Whether the system does not let us give a file away.
pub(super) fn refused(error: &io::Error) -> bool {
    matches!(sys::errno(error), sys::EPERM | sys::EINVAL)
}

fn forget(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if matches!(sys::errno(&error), sys::ENODATA | sys::EOPNOTSUPP) => Ok(()),
        other => other,
    }
}
