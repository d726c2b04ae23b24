//! Extended attributes of an object named by directory and name, symlinks and devices included.
//!
//! The path `/proc/self/fd/N/name` reaches the object in one call without opening it, so reading
//! needs no permission on the object and no descriptor.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::XattrFlags;

use super::fault;

/// Longest value and longest list the kernel allows (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const LIMIT: usize = 65536;

fn path(dir: &impl AsFd, name: &OsStr) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()).into_bytes();
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name.as_bytes());
    }
    path
}

/// Reads with a small buffer first and the largest second.
fn grow(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0_u8; 512];
    let length = match read(&mut buffer) {
        Err(rustix::io::Errno::RANGE) => {
            buffer.resize(LIMIT, 0);
            read(&mut buffer)?
        }
        other => other?,
    };
    buffer.truncate(length);
    Ok(buffer)
}

/// Value of an xattr; `None` when the object has none of that name or the filesystem none at all.
pub fn get_xattr(dir: impl AsFd, name: &OsStr, key: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let at = path(&dir, name);
    let value = if name.is_empty() {
        grow(|buffer| rustix::fs::getxattr(at.as_slice(), key, buffer))
    } else {
        grow(|buffer| rustix::fs::lgetxattr(at.as_slice(), key, buffer))
    };
    match value {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Names of all xattrs; empty where the filesystem has none.
pub fn list_xattr(dir: impl AsFd, name: &OsStr) -> io::Result<Vec<Vec<u8>>> {
    let at = path(&dir, name);
    let list = if name.is_empty() {
        grow(|buffer| rustix::fs::listxattr(at.as_slice(), buffer))
    } else {
        grow(|buffer| rustix::fs::llistxattr(at.as_slice(), buffer))
    };
    match list {
        Ok(list) => {
            Ok(list.split(|&b| b == 0).filter(|key| !key.is_empty()).map(<[u8]>::to_vec).collect())
        }
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Sets an xattr; `flags` as in setxattr(2).
pub fn set_xattr(
    dir: impl AsFd,
    name: &OsStr,
    key: &OsStr,
    value: &[u8],
    flags: i32,
) -> io::Result<()> {
    fault::point()?;
    let at = path(&dir, name);
    let flags = XattrFlags::from_bits_retain(flags as u32);
    if name.is_empty() {
        return Ok(rustix::fs::setxattr(at.as_slice(), key, value, flags)?);
    }
    Ok(rustix::fs::lsetxattr(at.as_slice(), key, value, flags)?)
}

/// Removes an xattr.
pub fn remove_xattr(dir: impl AsFd, name: &OsStr, key: &OsStr) -> io::Result<()> {
    fault::point()?;
    let at = path(&dir, name);
    if name.is_empty() {
        return Ok(rustix::fs::removexattr(at.as_slice(), key)?);
    }
    Ok(rustix::fs::lremovexattr(at.as_slice(), key)?)
}
