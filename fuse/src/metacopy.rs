//! Metadata-only copies: an upper file with its own attributes and somebody else's data.
//!
//! A file that bears `overlay.metacopy` takes its data from the first regular file below it that
//! bears none, by name or by redirect; data-only layers are reached by redirect alone (kernel
//! document "overlayfs", metadata only copy up, data-only lower layers). Without such a file the
//! answer is EIO: zeros are never served.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Overlay;
use crate::inode::{LowerDir, LowerFile};
use crate::lend;
use crate::namei::View;
use crate::redirect;
use crate::sys::{self, Stat};
use crate::whiteout::{self, Space};

impl Overlay {
    /// The data of a metacopy found in `parent` as `name`, from the layers below `below`.
    pub(crate) fn data_by_name(
        &self,
        parent: &View,
        below: usize,
        name: &OsStr,
    ) -> io::Result<LowerFile> {
        for dir in parent.lowers.iter().filter(|dir| dir.layer >= below) {
            let fd = self.lower_dir(dir)?;
            let Some(stat) = sys::has(&*fd, name)? else {
                continue;
            };
            if stat.kind() != sys::S_IFREG {
                break;
            }
            let marks = whiteout::marks(&*fd, name, self.stack.space)?;
            if !marks.metacopy {
                return Ok(LowerFile { dir: dir.clone(), name: name.into() });
            }
            match marks.redirect.as_deref().and_then(redirect::parse) {
                Some(redirect::Target::Absolute(path)) => {
                    return self.data_by_path(dir.layer + 1, path);
                }
                Some(redirect::Target::Sibling(name)) => {
                    return self.data_by_name(parent, dir.layer + 1, &name);
                }
                None => {}
            }
        }
        Err(missing(name))
    }

    /// The data of a metacopy with an absolute redirect.
    pub(crate) fn data_by_path(&self, below: usize, mut path: PathBuf) -> io::Result<LowerFile> {
        let mut layer = below;
        while layer < self.stack.layers.len() {
            let walked = self.walk_layer(layer, &path)?;
            let seen = layer < self.stack.visible;
            match walked.found {
                Some((stat, marks))
                    if stat.kind() == sys::S_IFREG && (!marks.metacopy || !seen) =>
                {
                    return Ok(file_at(layer, &path));
                }
                Some((stat, _)) if stat.kind() != sys::S_IFREG && seen => break,
                _ => {}
            }
            // What hides a name ends the search in the seen layers; the data-only ones remain.
            layer = if walked.stop && seen { self.stack.visible } else { layer + 1 };
            path = walked.next;
        }
        Err(missing(path.as_os_str()))
    }

    /// Whether a copy-up of this file may leave the data where it is.
    pub(crate) fn may_metacopy(&self, stat: &Stat) -> bool {
        let marked = self.options.metacopy && self.stack.space != Space::None;
        marked && stat.kind() == sys::S_IFREG && stat.size > 0 && stat.nlink == 1
    }

    /// Marks a file in the work directory as a metacopy of what the lower layers have under its name.
    /// No redirect: who renames or links a metacopy gives it its data first.
    pub(crate) fn mark_metacopy(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        lend::set_xattr(dir, name, &self.stack.space.key("metacopy"), b"")
    }
}

fn file_at(layer: usize, path: &Path) -> LowerFile {
    let dir = path.parent().unwrap_or(Path::new("")).to_path_buf();
    let name = path.file_name().unwrap_or_default().into();
    let (xattr_whiteouts, impure) = (false, false);
    let dir = LowerDir { layer, path: dir, xattr_whiteouts, impure, slot: Arc::default() };
    LowerFile { dir: Arc::new(dir), name }
}

fn missing(name: &OsStr) -> io::Error {
    log::warn!("{name:?}: its data is in no lower layer");
    io::Error::from_raw_os_error(sys::EIO)
}
