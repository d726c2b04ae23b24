//! Mounts and namespaces of the calling process.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount,
    open_tree,
};

use super::change;

/// Leaves the namespaces named by `flags` (`CLONE_NEW*`) for new ones. The process has one thread.
pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: takes an integer; the namespaces named here change what paths and ids mean, not what
    // memory or descriptors this process holds.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Stops mounts beneath the root from being shared with other namespaces.
pub fn make_private() -> io::Result<()> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", flags)?)
}

/// Shows `source` at `target` too, without what is mounted beneath it.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_bind(source, target)?)
}

/// Shows `source` at `target` too, with all that is mounted beneath it.
pub fn bind_recursive(source: &Path, target: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_bind_recursive(source, target)?)
}

/// Mounts the process table of our pid namespace.
pub fn mount_proc(target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(rustix::mount::mount("proc", target, "proc", flags, None::<&CStr>)?)
}

/// Covers `target` with an empty directory that cannot be written.
pub fn mount_empty(target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    Ok(rustix::mount::mount("tmpfs", target, "tmpfs", flags, c"size=4k,mode=0555")?)
}

/// Covers `target` with an empty directory in memory, for places to mount at.
pub fn mount_places(target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(rustix::mount::mount("tmpfs", target, "tmpfs", flags, c"mode=0700")?)
}

/// Mounts an empty directory in memory that everybody may write to.
pub fn mount_scratch(target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(rustix::mount::mount("tmpfs", target, "tmpfs", flags, c"mode=1777")?)
}

/// Forbids writing through the mount at `target`, and (`deeply`) through those beneath it. Device
/// nodes there can still be opened for writing.
pub fn make_read_only(target: &Path, deeply: bool) -> io::Result<()> {
    let path = CString::new(target.as_os_str().as_bytes())?;
    let flags = if deeply { libc::AT_RECURSIVE } else { 0 };
    set_read_only(libc::AT_FDCWD, &path, flags)
}

/// Shows the directory `source` at `target` too, where nothing can be changed from the first moment on.
pub fn bind_read_only(source: &Path, target: &Path) -> io::Result<()> {
    change::point()?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, source, flags)?;
    set_read_only(tree.as_raw_fd(), c"", libc::AT_EMPTY_PATH)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(&tree, "", CWD, target, flags)?)
}

fn set_read_only(dir: RawFd, path: &CStr, flags: i32) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path and the attributes live across the call, which reads exactly their size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir,
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes away what is mounted at `target`, at once or (`lazily`) when its last user has gone. A
/// symlink in the last place is not followed.
pub fn unmount(target: &Path, lazily: bool) -> io::Result<()> {
    let mut flags = UnmountFlags::NOFOLLOW;
    if lazily {
        flags |= UnmountFlags::DETACH;
    }
    change::point()?;
    Ok(rustix::mount::unmount(target, flags)?)
}

/// The flags that a remount sets, all of them; the rest are cleared.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of mount(2)")]
pub struct NewFlags {
    /// `MS_RDONLY`
    pub read_only: bool,
    /// `MS_NOSUID`
    pub nosuid: bool,
    /// `MS_NODEV`
    pub nodev: bool,
    /// `MS_NOEXEC`
    pub noexec: bool,
    /// `MS_NOATIME`
    pub noatime: bool,
    /// `MS_NODIRATIME`
    pub nodiratime: bool,
    /// `MS_SYNCHRONOUS`
    pub synchronous: bool,
    /// `MS_DIRSYNC`
    pub dirsync: bool,
}

/// Sets the flags of the mount at `target` and of its filesystem.
pub fn remount(target: &Path, wanted: &NewFlags) -> io::Result<()> {
    let mut flags = MountFlags::empty();
    for (set, flag) in [
        (wanted.read_only, MountFlags::RDONLY),
        (wanted.nosuid, MountFlags::NOSUID),
        (wanted.nodev, MountFlags::NODEV),
        (wanted.noexec, MountFlags::NOEXEC),
        (wanted.noatime, MountFlags::NOATIME),
        (wanted.nodiratime, MountFlags::NODIRATIME),
        (wanted.synchronous, MountFlags::SYNCHRONOUS),
        (wanted.dirsync, MountFlags::DIRSYNC),
    ] {
        flags.set(flag, set);
    }
    Ok(rustix::mount::mount_remount(target, flags, c"")?)
}

/// Makes the mount at `root` the root of our mount namespace and of this process, and lets go of the
/// old one.
pub fn pivot_root(root: &Path) -> io::Result<()> {
    std::env::set_current_dir(root)?;
    // The old root lands on top of the new one at the same place, and is detached from there: no
    // directory beneath the new root is needed to hold it.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")
}

/// Names the host in our UTS namespace.
pub fn set_hostname(name: &OsStr) -> io::Result<()> {
    // SAFETY: the pointer and the length are of one live buffer, which the call only reads.
    match unsafe { libc::sethostname(name.as_bytes().as_ptr().cast(), name.len()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
