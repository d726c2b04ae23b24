//! File handles and filesystem identities: names for an inode that outlive its path.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;

/// Longest handle of any filesystem (`MAX_HANDLE_SZ`, linux/exportfs.h).
const MAX_HANDLE: usize = 128;
/// `_IOR(0x15, 0, struct fsuuid2)` of linux/fs.h.
const FS_IOC_GETFSUUID: libc::c_ulong = 0x8011_1500;

/// A file handle as name_to_handle_at(2) gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHandle {
    /// The filesystem's type of handle.
    pub kind: u8,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; MAX_HANDLE],
}

/// The handle of `name` in `dir`, or of `dir` itself for the empty name; needs no privilege.
pub fn file_handle(dir: impl AsFd, name: &OsStr) -> io::Result<FileHandle> {
    let mut raw = RawHandle { bytes: MAX_HANDLE as u32, kind: 0, handle: [0; MAX_HANDLE] };
    let mut mount_id: libc::c_int = 0;
    let path = CString::new(name.as_bytes())?;
    let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    // SAFETY: every pointer is to a live local; `raw` has the layout of struct file_handle with
    // room for the `bytes` it announces.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_fd().as_raw_fd(),
            path.as_ptr(),
            &raw mut raw,
            &raw mut mount_id,
            flags,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let length = (raw.bytes as usize).min(MAX_HANDLE);
    let kind = u8::try_from(raw.kind).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    Ok(FileHandle { kind, bytes: raw.handle[..length].to_vec() })
}

/// UUID of the filesystem behind a readable descriptor; zeros where it has none or does not tell.
pub fn fs_uuid(fd: impl AsFd) -> [u8; 16] {
    let mut raw = [0_u8; 17];
    // SAFETY: the request writes at most 17 bytes (struct fsuuid2) to the live local.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_GETFSUUID, raw.as_mut_ptr()) };
    let mut uuid = [0_u8; 16];
    if result == 0 && raw[0] == 16 {
        uuid.copy_from_slice(&raw[1..]);
    }
    uuid
}
