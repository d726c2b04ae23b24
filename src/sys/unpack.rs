//! Filling a directory by descriptor: no call here follows a symlink at the end of what it is given.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};

use super::change;

/// Seconds since 1970, which may be negative, and nanoseconds.
pub type Moment = (i64, u32);

/// Makes a regular file and opens it for writing; EEXIST when the name is taken.
pub fn create(dir: impl AsFd, name: &OsStr, mode: u32) -> io::Result<File> {
    change::point()?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode & 0o7777))?))
}

/// Writes all of `part`, at `offset` or where the last write ended.
pub fn write(mut file: &File, part: &[u8], offset: Option<u64>) -> io::Result<()> {
    change::point()?;
    match offset {
        None => file.write_all(part),
        Some(offset) => file.write_all_at(part, offset),
    }
}

/// Begins to write what is in memory of a stretch of a file to the disk, and does not wait for it. Nothing is sure to be there
/// before a sync.
pub fn begin_writing(file: &File, start: u64, length: u64) -> io::Result<()> {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    // SAFETY: the descriptor is open for the call, which takes numbers only.
    let done = unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            number(start),
            number(length),
            libc::SYNC_FILE_RANGE_WRITE,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets the permissions of an open file or directory.
pub fn chmod(fd: impl AsFd, mode: u32) -> io::Result<()> {
    change::point()?;
    Ok(rustix::fs::fchmod(fd, Mode::from_raw_mode(mode & 0o7777))?)
}

/// Sets the permissions of `name` in `dir`, which must not be a symlink: that is EOPNOTSUPP.
pub fn chmod_at(dir: impl AsFd, name: &OsStr, mode: u32) -> io::Result<()> {
    change::point()?;
    let path = std::ffi::CString::new(name.as_bytes())?;
    // SAFETY: the name ends with NUL; the other arguments are numbers.
    let done = unsafe {
        libc::syscall(
            libc::SYS_fchmodat2,
            dir.as_fd().as_raw_fd(),
            path.as_ptr(),
            mode & 0o7777,
            libc::AT_SYMLINK_NOFOLLOW,
        )
    };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // Before Linux 6.6, or behind a filter that does not know the call.
        Some(libc::ENOSYS | libc::EPERM) => chmod_by_handle(dir, name, mode),
        _ => Err(error),
    }
}

/// [`chmod_at`] through a descriptor that reaches the object itself.
pub fn chmod_by_handle(dir: impl AsFd, name: &OsStr, mode: u32) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
    if kind == rustix::fs::FileType::Symlink {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::chmod(path, Mode::from_raw_mode(mode & 0o7777))?)
}

/// Sets owner and group of an open file or directory.
pub fn chown(fd: impl AsFd, uid: u32, gid: u32) -> io::Result<()> {
    change::point()?;
    Ok(rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
}

/// Sets owner and group of `name` in `dir`, of a symlink itself.
pub fn chown_at(dir: impl AsFd, name: &OsStr, uid: u32, gid: u32) -> io::Result<()> {
    change::point()?;
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    Ok(rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Sets last access and last modification of an open file or directory.
pub fn set_times(fd: impl AsFd, accessed: Moment, modified: Moment) -> io::Result<()> {
    change::point()?;
    Ok(rustix::fs::futimens(fd, &stamps(accessed, modified))?)
}

/// The same for `name` in `dir`, for a symlink itself.
pub fn set_times_at(
    dir: impl AsFd,
    name: &OsStr,
    accessed: Moment,
    modified: Moment,
) -> io::Result<()> {
    let stamps = stamps(accessed, modified);
    change::point()?;
    Ok(rustix::fs::utimensat(dir, name, &stamps, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn stamps(accessed: Moment, modified: Moment) -> Timestamps {
    let spec = |(sec, nsec): Moment| Timespec { tv_sec: sec, tv_nsec: nsec.into() };
    Timestamps { last_access: spec(accessed), last_modification: spec(modified) }
}

/// The device number made of these, which have to fit it.
pub fn device(major: u32, minor: u32) -> u64 {
    rustix::fs::makedev(major, minor)
}
