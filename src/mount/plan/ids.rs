//! Directories that are seen with other ids, and what a host that cannot do it lacks, in words.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use plyfs_fuse::sys::Owners;

use super::Mount;
use crate::doctor::filesystem;
use crate::error::{Context as _, Error, Result};
use crate::sys::context::{self, Detached};
use crate::sys::{self, Ids};

/// What is not supported.
const FEATURE: &str = "mount with other ids";
/// What can be done instead.
const ADVICE: &str =
    "copy the layer with them, where that can be: plyfs layer create --template ID --uidmap MAP";

/// The lower directories of a mount as mounts of their own, nowhere, in which they have the ids that it asks for; none where it
/// asks for none.
pub(super) fn lowers(mount: &Mount) -> Result<Vec<Detached>> {
    if mount.ids.is_none() {
        return Ok(Vec::new());
    }
    let owners = owners(&mount.ids)?;
    mount.lowers.iter().map(|dir| show(&owners, dir, true)).collect()
}

/// A directory as a mount that is nowhere, with other ids if there are any.
pub(super) fn directory(dir: &Path, ids: &Ids, read_only: bool) -> Result<Detached> {
    show(&owners(ids)?, dir, read_only)
}

/// Whether mounts can show a directory with other ids.
pub fn try_ids(dir: &Path, ids: &Ids) -> Result<()> {
    directory(dir, ids, true).map(drop)
}

fn owners(ids: &Ids) -> Result<Owners> {
    Owners::new(&ids.users, &ids.groups).map_err(|error| match error.raw_os_error() {
        Some(sys::EPERM | sys::EACCES) => unsupported("needs root of the host"),
        Some(sys::ENOSPC) => {
            unsupported("it takes a user namespace, and user.max_user_namespaces allows no more")
        }
        Some(sys::EINVAL) => {
            let why = "the kernel does not take them; is an id not one of this user namespace, or are there too many ranges?";
            Error::invalid("other ids", why)
        }
        _ => Error::io("map ids of", "a user namespace", error),
    })
}

fn show(owners: &Owners, dir: &Path, read_only: bool) -> Result<Detached> {
    let layer = context::open_layer(dir).on("open", dir)?;
    let shown = owners.show(&layer, read_only).map(Detached::from);
    shown.map_err(|error| refused(dir, error))
}

fn refused(dir: &Path, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(sys::ENOSYS) => unsupported("this kernel has none (Linux 5.12 does)"),
        Some(sys::EPERM) => {
            unsupported("needs root of the user namespace that the filesystem belongs to")
        }
        Some(sys::EINVAL | sys::EOPNOTSUPP) => {
            let kind = filesystem::name(dir);
            unsupported(&format!("this kernel cannot show {kind} so"))
        }
        _ => Error::io("show with other ids", dir, error),
    }
}

/// The error of a host that cannot.
pub(super) fn unsupported(why: &str) -> Error {
    Error::unsupported(FEATURE, format!("{why}; {ADVICE}"))
}

/// Makes an overlay of such lower directories where the kernel does not take mounts that are nowhere (before Linux 6.15): in a mount
/// namespace of a thread's own, so that nothing of it is ever seen elsewhere or left behind.
pub(super) fn apart(mount: &Mount, lowers: &[Detached], list: &OsStr) -> io::Result<Detached> {
    let make = || {
        sys::unshare(sys::CLONE_NEWNS)?;
        sys::make_private()?;
        // The target is covered with places for them, and nothing but this thread sees it.
        sys::mount_places(&mount.target)?;
        std::env::set_current_dir(&mount.target)?;
        for (number, lower) in lowers.iter().enumerate() {
            let place = number.to_string();
            std::fs::create_dir(&place)?;
            lower.attach(Path::new(&place))?;
        }
        let merged = Path::new("merged");
        std::fs::create_dir(merged)?;
        context::mount_by_text("overlay", merged, list, super::overlay::is_read_only(mount))?;
        context::copy_of(merged)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, make)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that mounts ended")))
    })
}
