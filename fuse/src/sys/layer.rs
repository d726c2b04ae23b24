//! Layer roots and the mount itself.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::mount::{MountFlags, OpenTreeFlags, UnmountFlags};

/// Opens a directory by its path, symlinks followed.
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::ACCESS) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            Ok(rustix::fs::open(path, flags, Mode::empty())?)
        }
        other => Ok(other?),
    }
}

/// Opens the FUSE device.
pub fn open_device(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// A private detached copy of the mount tree seen at a directory: what is mounted there later, our
/// own filesystem above all, does not show in it. Read-only where `read_only` and the kernel allows.
pub fn clone_tree(dir: impl AsFd, read_only: bool) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(dir, "", flags)?;
    let none = libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let private = libc::mount_attr { propagation: libc::MS_PRIVATE, ..none };
    set_mount_attributes(&tree, private)?;
    let closed = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, ..none };
    if read_only && set_mount_attributes(&tree, closed).is_err() {
        log::debug!("layer cannot be made read-only; it is only ever opened for reading");
    }
    Ok(tree)
}

pub(super) fn set_mount_attributes(tree: &OwnedFd, attributes: libc::mount_attr) -> io::Result<()> {
    // SAFETY: the path is a static C string and `attributes` lives across the call, which reads
    // exactly its size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            std::mem::size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes the exclusive lock on a directory; false when somebody else has it. It ends with the
/// last copy of the descriptor. Filesystems without locks count as locked.
pub fn lock_dir(dir: impl AsFd) -> io::Result<bool> {
    match rustix::fs::flock(dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(
            rustix::io::Errno::NOLCK
            | rustix::io::Errno::OPNOTSUPP
            | rustix::io::Errno::NOSYS
            | rustix::io::Errno::BADF,
        ) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

/// mount(2) of a FUSE filesystem; `flags` are the `MS_*` bits.
pub fn mount_fuse(
    source: &str,
    target: &Path,
    kind: &str,
    flags: u64,
    data: &OsStr,
) -> io::Result<()> {
    let data = std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(data))?;
    let flags = MountFlags::from_bits_retain(u32::try_from(flags).unwrap_or(0));
    Ok(rustix::mount::mount(source, target, kind, flags, data.as_c_str())?)
}

/// Takes a mount off its place at once; its users keep it until they are done.
pub fn unmount_lazily(target: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}
