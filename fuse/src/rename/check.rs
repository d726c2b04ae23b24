//! What no rename may do, whatever the layers hold.

use std::sync::Arc;

use super::Side;
use crate::Overlay;
use crate::error::{Context, Error, Result};
use crate::inode::{Ino, Inode};
use crate::sys;

/// Refuses what no rename may do, in the order of the kernel's own checks (fs/namei.c); false when
/// both names are the same object already.
pub(super) fn check_pair(source: &Side<'_>, target: &Side<'_>, flags: u32) -> Result<bool> {
    let refuse = |code| Err(Error::code("rename", target.name, code));
    let exchange = flags & sys::RENAME_EXCHANGE != 0;
    if target.inode.is_some() && flags & sys::RENAME_NOREPLACE != 0 {
        return refuse(sys::EEXIST);
    }
    if target.inode.is_none() && exchange {
        return refuse(sys::ENOENT);
    }
    check_ancestry(source, target, exchange)?;
    let (Some(moved), Some(other)) = (&source.inode, &target.inode) else { return Ok(true) };
    if Arc::ptr_eq(moved, other) {
        return Ok(false);
    }
    match (moved.is_dir(), other.is_dir()) {
        _ if exchange => Ok(true),
        (true, false) => refuse(sys::ENOTDIR),
        (false, true) => refuse(sys::EISDIR),
        _ => Ok(true),
    }
}

/// A directory cannot move below itself, nor take the place of one it is in.
pub(super) fn check_ancestry(source: &Side<'_>, target: &Side<'_>, exchange: bool) -> Result<()> {
    let is_above = |side: &Side<'_>, dir: &Arc<Inode>| {
        side.inode.as_ref().is_some_and(|inode| inode.is_dir() && dir.is_below(inode))
    };
    if is_above(source, target.dir) {
        return Err(Error::code("rename", source.name, sys::EINVAL));
    }
    if is_above(target, source.dir) {
        let code = if exchange { sys::EINVAL } else { sys::ENOTEMPTY };
        return Err(Error::code("rename", target.name, code));
    }
    Ok(())
}

impl Overlay {
    /// Refuses what is sure to fail under the locks, before anything is copied for it.
    pub(super) fn check_target(&self, target: &Side<'_>, flags: u32) -> Result<()> {
        if target.dir.ino != Ino::ROOT && target.dir.link().is_none() {
            return Err(Error::code("rename", target.name, sys::ENOENT));
        }
        let replaced = target.inode.as_ref().filter(|_| flags & sys::RENAME_EXCHANGE == 0);
        let Some(inode) = replaced.filter(|inode| inode.is_dir()) else {
            return Ok(());
        };
        let inside = self.view(inode)?;
        let _guard = inode.dir().map(|dir| dir.ns.read());
        if !inside.is_stale(inode) && !self.is_empty(&inside).on("rename", target.name)? {
            return Err(Error::code("rename", target.name, sys::ENOTEMPTY));
        }
        Ok(())
    }
}
