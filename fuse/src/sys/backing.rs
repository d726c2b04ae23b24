//! Passthrough: files that the kernel reads and writes itself (linux/fuse.h, `fuse_backing_map`).

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use fuser::{FileAttr, FileHandle, FopenFlags, Generation, ReplyCreate, ReplyOpen};

/// `_IOW(229, 1, struct fuse_backing_map)`
const BACKING_OPEN: libc::Ioctl = 0x4010_e501;
/// `_IOW(229, 2, uint32_t)`
const BACKING_CLOSE: libc::Ioctl = 0x4004_e502;

/// Registers a file with a FUSE connection; the number stands for it in replies.
pub fn open_backing(connection: impl AsFd, file: impl AsFd) -> io::Result<u32> {
    #[repr(C)]
    struct Map {
        fd: i32,
        flags: u32,
        padding: u64,
    }
    let map = Map { fd: file.as_fd().as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the request reads the 16 bytes of struct fuse_backing_map from the live value.
    let id = unsafe { libc::ioctl(connection.as_fd().as_raw_fd(), BACKING_OPEN, &raw const map) };
    u32::try_from(id).ok().filter(|id| *id > 0).ok_or_else(io::Error::last_os_error)
}

/// Gives the number back; files that are open with it stay so.
pub fn close_backing(connection: impl AsFd, id: u32) -> io::Result<()> {
    // SAFETY: the request reads the 4 bytes of the live value.
    match unsafe { libc::ioctl(connection.as_fd().as_raw_fd(), BACKING_CLOSE, &raw const id) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Answers an open with a registered file.
pub fn opened(reply: ReplyOpen, handle: u64, flags: u32, id: u32) {
    // SAFETY: the number is registered with this connection, by whose request we were asked, and
    // stays so: it is taken out of the wrapper again before that could give it back.
    let backing = unsafe { reply.wrap_backing(id) };
    reply.opened_passthrough(FileHandle(handle), FopenFlags::from_bits_retain(flags), &backing);
    backing.into_raw();
}

/// Answers a create with a registered file.
pub fn created(
    reply: ReplyCreate,
    (ttl, attr, generation): (&Duration, &FileAttr, Generation),
    (handle, flags): (u64, u32),
    id: u32,
) {
    // SAFETY: as in `opened`.
    let backing = unsafe { reply.wrap_backing(id) };
    let (handle, flags) = (FileHandle(handle), FopenFlags::from_bits_retain(flags));
    reply.created_passthrough(ttl, attr, generation, handle, flags, &backing);
    backing.into_raw();
}

/// An unnamed file in memory.
pub fn memory_file() -> io::Result<std::os::fd::OwnedFd> {
    Ok(rustix::fs::memfd_create("plyfs", rustix::fs::MemfdFlags::CLOEXEC)?)
}
