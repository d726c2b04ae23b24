//! Single calls that a host may or may not allow, to find out by trying.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::mount::MountFlags;

pub use libc::{EINVAL, ENODEV};

/// Longest file handle of any filesystem (`MAX_HANDLE_SZ`, linux/exportfs.h).
const MAX_HANDLE: usize = 128;
/// `_IOW(229, 1, struct fuse_backing_map)` of linux/fuse.h.
const FUSE_DEV_IOC_BACKING_OPEN: libc::c_ulong = 0x4010_e501;

/// Mounts a filesystem of type `kind`, without set-id programs or devices.
pub fn mount(kind: &str, source: &str, target: &Path, options: &str) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let options = CString::new(options)?;
    Ok(rustix::mount::mount(source, target, kind, flags, options.as_c_str())?)
}

/// Whether we may make files in a directory.
pub fn may_write(dir: &Path) -> bool {
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::accessat(CWD, dir, access, AtFlags::EACCESS).is_ok()
}

/// Makes the character device 0:0.
pub fn make_whiteout(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0)?)
}

/// Renames and leaves a whiteout behind.
pub fn rename_whiteout(from: &Path, to: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::WHITEOUT)?)
}

/// Makes a file without a name in a directory.
pub fn unnamed_file(dir: &Path) -> io::Result<()> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)?;
    Ok(())
}

/// Lets `to` share the data of `from`.
pub fn reflink(from: &File, to: &File) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(to, from)?)
}

/// Sets an xattr of a path; a symlink in the last place is not followed.
pub fn set_xattr(path: &Path, key: &str, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::lsetxattr(path, key, value, XattrFlags::empty())?)
}

/// Whether the names listed in a directory come with their types.
pub fn lists_types(dir: &Path) -> io::Result<bool> {
    let fd =
        rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = rustix::fs::RawDir::new(fd, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let dots = matches!(entry.file_name().to_bytes(), b"." | b"..");
        if !dots && entry.file_type() == FileType::Unknown {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The number that tells the type of the filesystem a path is on (statfs(2)).
pub fn filesystem_magic(path: &Path) -> io::Result<u64> {
    // The field is signed or not and of 32 or 64 bits, by machine; the numbers have 32 bits.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(u64::from(rustix::fs::statfs(path)?.f_type as u32))
}

/// Whether a path can be named by a handle that outlives it.
pub fn file_handle(path: &Path) -> io::Result<()> {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        handle: [u8; MAX_HANDLE],
    }
    let mut handle = Handle { bytes: 128, kind: 0, handle: [0; MAX_HANDLE] };
    let mut mount: libc::c_int = 0;
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all pointers are to live values; `handle` has the layout of struct file_handle and room
    // for the number of bytes it announces.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw mut handle,
            &raw mut mount,
            0,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether an io_uring can be made.
pub fn io_uring() -> io::Result<()> {
    // struct io_uring_params has 120 bytes; zeros ask for the defaults.
    let mut params = [0_u64; 15];
    // SAFETY: the kernel reads and writes the 120 bytes of the live array and returns a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4_u32, params.as_mut_ptr()) };
    let Ok(fd) = libc::c_int::try_from(fd) else { return Err(io::ErrorKind::InvalidData.into()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else has it.
    drop(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) });
    Ok(())
}

/// Waits until there is something to read; false when there is nothing after `limit`.
pub fn wait_readable(fd: impl AsFd, limit: Duration) -> io::Result<bool> {
    let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec::try_from(limit).map_err(io::Error::other)?;
    Ok(rustix::event::poll(&mut fds, Some(&limit))? > 0)
}

/// Receives the descriptor that fusermount3 sends over a Unix socket.
pub fn receive_fd(socket: impl AsFd) -> io::Result<OwnedFd> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8; 1];
    let mut parts = [io::IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            if let Some(fd) = fds.next() {
                return Ok(fd);
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no descriptor came"))
}

/// Asks a FUSE connection to serve reads and writes from `file` itself (passthrough).
pub fn fuse_backing(connection: BorrowedFd<'_>, file: &File) -> io::Result<()> {
    #[repr(C)]
    struct Map {
        fd: i32,
        flags: u32,
        padding: u64,
    }
    let map = Map { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the request reads the 16 bytes of struct fuse_backing_map from the live value.
    let id =
        unsafe { libc::ioctl(connection.as_raw_fd(), FUSE_DEV_IOC_BACKING_OPEN, &raw const map) };
    if id > 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether `path` is the character device with this number.
pub fn is_device(path: &Path, major: u32, minor: u32) -> io::Result<bool> {
    let stat = rustix::fs::stat(path)?;
    let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && number == (major, minor))
}

/// Whether the character device at `path` is a whiteout.
pub fn is_whiteout(path: &Path) -> io::Result<bool> {
    let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0)
}

/// Value of an xattr of a path; `None` when it has none of that name.
pub fn xattr(path: &Path, key: &str) -> io::Result<Option<Vec<u8>>> {
    let dir = super::tree::open_root(path.parent().unwrap_or(Path::new(".")))?;
    super::tree::xattr(dir, path.file_name().unwrap_or(OsStr::new("")), OsStr::new(key))
}
