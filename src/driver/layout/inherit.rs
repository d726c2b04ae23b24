//! What a new layer has from its parent.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use plyfs_fuse::owner::OVERRIDE_NAMES;

use crate::error::{Context, Result};
use crate::sys::{change, copy, tree};

/// A child's root directory starts as its parent's: the topmost one gives a view its attributes.
pub(in crate::driver) fn inherit(parent: &Path, child: &Path, theirs: bool) -> Result<()> {
    let found = parent.symlink_metadata().on("stat", parent)?;
    let own = child.symlink_metadata().on("stat", child)?;
    if (own.uid(), own.gid()) != (found.uid(), found.gid()) {
        match change::chown(child, found.uid(), found.gid()) {
            // Of another store it may be somebody's whom we cannot make an owner.
            Err(error) if theirs && is_refused(&error) => {}
            other => other.on("chown", child)?,
        }
    }
    let dir = tree::open_root(parent).on("open", parent)?;
    let mut keys = tree::xattr_names(&dir, OsStr::new("")).on("list xattrs", parent)?;
    copy::access_last(&mut keys);
    for key in keys {
        let text = key.to_string_lossy();
        let kept = OVERRIDE_NAMES.contains(&&*text) || text.starts_with("system.posix_acl_");
        if let (true, Some(value)) =
            (kept, tree::xattr(&dir, OsStr::new(""), &key).on("read xattrs", parent)?)
        {
            change::set_xattr(child, &text, &value).on("set xattrs", child)?;
        }
    }
    // Last: its owner may not be allowed to set attributes with it.
    change::chmod(child, found.mode() & 0o7777).on("chmod", child)
}

/// Whether an owner is none that we may set.
fn is_refused(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::InvalidInput)
}
