//! File calls relative to a descriptor. The only room of this crate with unsafe code, and the only
//! one that names `libc` or `rustix`.
//!
//! A name is one component below the directory it is given with; a path goes through
//! [`open_beneath`], which follows no symlink and leaves the root neither upwards nor by a link.
//! The empty name stands for the descriptor itself. Every call that changes something on disk
//! passes `fault::point` first, so that crash tests can stop between any two of them.

mod backing;
mod data;
pub mod fault;
mod fs;
mod handle;
mod idmap;
mod layer;
mod pipe;
mod process;
mod tree;
mod uring;
mod xattr;

pub use backing::{close_backing, created, memory_file, open_backing, opened};
pub use data::{
    Fallocate, Seek, copy_range, drop_ahead, fallocate, fallocate_grows, has_blocks, lseek, pread,
    pread_cached, pwrite, reflink, takes_ahead, truncate,
};
pub use fs::{
    FsStat, Name, NewTimes, Stat, chmod, chown, fstat, fstatfs, fsync, has, link, link_fd, list,
    mkdir, mknod, open, open_beneath, open_new, open_unnamed, readlink, rename, reopen, rmdir,
    set_times, stat, symlink, syncfs, unlink,
};
pub use handle::{FileHandle, file_handle, fs_uuid};
pub use idmap::Owners;
pub use layer::{clone_tree, lock_dir, mount_fuse, open_device, open_root, unmount_lazily};
pub use pipe::Pipe;
pub use process::{
    block_signals, checks_who_sets_flags, effective_ids, end_process, has_proc, ids_of,
    in_initial_user_namespace, inode_ioctl, ioctl_changes, ioctl_takes_extents, is_member,
    raise_nofile, random_u64, recv_fd, reserve_descriptors, set_umask, socket_pair, trim_memory,
    unblock_signals, wait_signal,
};
pub use tree::remove_tree;
pub use uring::{Area, Bell, Event, Ring as Uring, Slot, allowed_cpus, leave, pin, roam, try_ring};
pub use xattr::{get_xattr, list_xattr, remove_xattr, set_xattr};

pub use libc::{
    AT_FDCWD, E2BIG, EACCES, EAGAIN, EBADF, EBUSY, ECANCELED, ECONNABORTED, EDQUOT, EEXIST, EFBIG,
    EINTR, EINVAL, EIO, EISDIR, ELOOP, EMFILE, EMLINK, ENAMETOOLONG, ENODATA, ENODEV, ENOENT,
    ENOSPC, ENOSYS, ENOTCONN, ENOTDIR, ENOTEMPTY, ENOTTY, ENXIO, EOPNOTSUPP, EOVERFLOW, EPERM,
    ERANGE, EROFS, ESTALE, EXDEV, MS_DIRSYNC, MS_NOATIME, MS_NODEV, MS_NODIRATIME, MS_NOEXEC,
    MS_NOSUID, MS_RDONLY, MS_SYNCHRONOUS, O_ACCMODE, O_APPEND, O_CREAT, O_DIRECTORY, O_EXCL,
    O_NOFOLLOW, O_NONBLOCK, O_PATH, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY, RENAME_EXCHANGE,
    RENAME_NOREPLACE, RENAME_WHITEOUT, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT,
    S_IFREG, S_IFSOCK, S_ISGID, S_ISUID, S_ISVTX, SEEK_DATA, SEEK_HOLE, XATTR_CREATE,
    XATTR_REPLACE,
};

/// The errno of a failed call, 0 when it has none.
pub fn errno(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}

/// Whether a call failed with this number.
pub fn is<T>(result: &std::io::Result<T>, code: i32) -> bool {
    matches!(result, Err(error) if error.raw_os_error() == Some(code))
}
