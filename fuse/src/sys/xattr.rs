//! Extended attributes of an object named by directory and name, symlinks and devices included.
//!
//! The path `/proc/self/fd/N/name` reaches the object in one call without opening it, so reading
//! needs no permission on the object and no descriptor. Where the kernel has calls relative to a
//! descriptor (Linux 6.13), names are read and values set with them, which spares the way through
//! /proc.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

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

/// Number of setxattrat, wherever [`CALLS`] has those that follow it.
const SETXATTRAT: libc::c_long = 463;
/// Numbers of getxattrat and listxattrat where all architectures count alike.
const CALLS: Option<(libc::c_long, libc::c_long)> = if cfg!(any(
    all(target_arch = "x86_64", target_pointer_width = "64"),
    target_arch = "aarch64",
    target_arch = "riscv64",
    target_arch = "powerpc64",
    target_arch = "s390x",
)) {
    Some((464, 465))
} else {
    None
};

/// The arguments of getxattrat(2) (linux/xattr.h, `struct xattr_args`).
#[repr(C)]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// getxattrat and listxattrat, if this kernel has them and no filter refuses them.
fn calls() -> Option<(libc::c_long, libc::c_long)> {
    static CALLED: OnceLock<bool> = OnceLock::new();
    let (get, list) = CALLS?;
    let works = *CALLED.get_or_init(|| {
        let (mut value, root) = ([0; 512], c"/");
        let fd = rustix::fs::CWD;
        let listed = list_at(list, fd, root, &mut value);
        let got = get_at(get, fd, (root, c"user.none"), &mut value);
        let there = |error| !matches!(error, rustix::io::Errno::NOSYS | rustix::io::Errno::PERM);
        listed.map_or_else(there, |_| true) && got.map_or_else(there, |_| true)
    });
    works.then_some((get, list))
}

fn length(result: libc::c_long) -> rustix::io::Result<usize> {
    usize::try_from(result).map_err(|_| {
        let code = io::Error::last_os_error().raw_os_error();
        rustix::io::Errno::from_raw_os_error(code.unwrap_or(libc::EIO))
    })
}

fn list_at(
    call: libc::c_long,
    dir: BorrowedFd<'_>,
    name: &CStr,
    buffer: &mut [u8],
) -> rustix::io::Result<usize> {
    // SAFETY: the name ends with NUL, and the kernel writes no more than the length of the buffer.
    length(unsafe {
        libc::syscall(
            call,
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    })
}

fn get_at(
    call: libc::c_long,
    dir: BorrowedFd<'_>,
    (name, key): (&CStr, &CStr),
    buffer: &mut [u8],
) -> rustix::io::Result<usize> {
    let size = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
    let args = XattrArgs { value: buffer.as_mut_ptr() as u64, size, flags: 0 };
    // SAFETY: both strings end with NUL; `args` lives across the call, which reads exactly its
    // size, and writes no more than the length of the buffer.
    length(unsafe {
        libc::syscall(
            call,
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            key.as_ptr(),
            &raw const args,
            size_of::<XattrArgs>(),
        )
    })
}

fn set_at(
    dir: BorrowedFd<'_>,
    (name, key): (&CStr, &CStr),
    value: &[u8],
    flags: u32,
) -> rustix::io::Result<usize> {
    let size = u32::try_from(value.len()).map_err(|_| rustix::io::Errno::TOOBIG)?;
    let args = XattrArgs { value: value.as_ptr() as u64, size, flags };
    // SAFETY: both strings end with NUL; `args` and the value it points to live across the call,
    // which reads exactly their sizes and writes nothing.
    length(unsafe {
        libc::syscall(
            SETXATTRAT,
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            key.as_ptr(),
            &raw const args,
            size_of::<XattrArgs>(),
        )
    })
}

/// Reads with a small buffer first and the largest second.
fn grow(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Vec<u8>> {
    let mut small = [0_u8; 512];
    match read(&mut small) {
        Err(rustix::io::Errno::RANGE) => {}
        other => return Ok(small[..other?].to_vec()),
    }
    let mut buffer = vec![0_u8; LIMIT];
    let length = read(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Value of an xattr; `None` when the object has none of that name or the filesystem none at all.
pub fn get_xattr(dir: impl AsFd, name: &OsStr, key: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let value = match calls().filter(|_| !name.is_empty()) {
        Some((call, _)) => {
            let (at, key) = (CString::new(name.as_bytes())?, CString::new(key.as_bytes())?);
            grow(|buffer| get_at(call, dir.as_fd(), (&at, &key), buffer))
        }
        None if name.is_empty() => {
            grow(|buffer| rustix::fs::getxattr(path(&dir, name).as_slice(), key, buffer))
        }
        None => grow(|buffer| rustix::fs::lgetxattr(path(&dir, name).as_slice(), key, buffer)),
    };
    match value {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Names of all xattrs; empty where the filesystem has none.
pub fn list_xattr(dir: impl AsFd, name: &OsStr) -> io::Result<Vec<Vec<u8>>> {
    let list = match calls().filter(|_| !name.is_empty()) {
        Some((_, call)) => {
            let at = CString::new(name.as_bytes())?;
            grow(|buffer| list_at(call, dir.as_fd(), &at, buffer))
        }
        None if name.is_empty() => {
            grow(|buffer| rustix::fs::listxattr(path(&dir, name).as_slice(), buffer))
        }
        None => grow(|buffer| rustix::fs::llistxattr(path(&dir, name).as_slice(), buffer)),
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
    let bits = XattrFlags::from_bits_retain(flags as u32);
    if name.is_empty() {
        match rustix::fs::fsetxattr(&dir, key, value, bits) {
            // A descriptor that only names the object (O_PATH).
            Err(rustix::io::Errno::BADF) => {}
            other => return Ok(other?),
        }
        return Ok(rustix::fs::setxattr(path(&dir, name).as_slice(), key, value, bits)?);
    }
    if calls().is_some() {
        let (at, key) = (CString::new(name.as_bytes())?, CString::new(key.as_bytes())?);
        match set_at(dir.as_fd(), (&at, &key), value, flags as u32) {
            // A filter may know the calls that read and not this one.
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {}
            other => return Ok(other.map(drop)?),
        }
    }
    Ok(rustix::fs::lsetxattr(path(&dir, name).as_slice(), key, value, bits)?)
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
