//! Safe calls to the kernel that the standard library does not offer: processes, signals, mounts,
//! namespaces. The only room of this package with unsafe code, and the only one that names `libc`
//! or `rustix`. EINTR is handled here; owned descriptors come out.

pub mod change;
pub mod context;
pub mod copy;
mod ids;
mod lock;
mod mount;
pub mod probe;
mod process;
pub mod publish;
pub mod quota;
pub mod share;
mod signal;
pub mod trash;
pub mod tree;
pub mod unpack;

pub use ids::Ids;
pub use lock::lock_file;
pub use mount::{
    NewFlags, bind, bind_read_only, bind_recursive, make_private, make_read_only, mount_empty,
    mount_places, mount_proc, mount_scratch, pivot_root, remount, set_hostname, unmount, unshare,
};
pub use process::{
    Child, Ended, Other, Usage, close_inherited, close_stdio, exit_with_parent, fork, inherited,
    is_root, keep_to_limits, memory_file, new_session, parent_id, pipe, process_id,
    raise_open_files, real_ids, reap, supports_user_xattrs, usage,
};
pub use signal::{block_signals, next_signal, unblock_signals};

pub use libc::{
    CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS, EACCES, EBUSY, ECHILD, EINVAL, ELOOP,
    ENOENT, ENOSPC, ENOSYS, ENOTDIR, ENXIO, EOPNOTSUPP, EPERM, ESTALE, SIGCHLD, SIGKILL, SIGTERM,
};

use std::io;

/// Whether a call failed with the number `code`.
pub fn is(error: &io::Error, code: i32) -> bool {
    error.raw_os_error() == Some(code)
}
