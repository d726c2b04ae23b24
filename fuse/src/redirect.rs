//! Moved directories and metacopies: where their lower part really is.
//!
//! The `overlay.redirect` xattr holds an absolute path from the root of the overlay, or one name
//! beside the object's own (kernel document "overlayfs", redirect_dir).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::Overlay;
use crate::inode::Inode;
use crate::sys::{self, Stat};
use crate::whiteout::{self, Marks};

/// Longest redirect the kernel writes or follows (`OVL_REDIRECT_MAX`).
pub(crate) const MAX: usize = 256;

/// Where a redirect leads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A path from the root of each lower layer, without the leading slash.
    Absolute(PathBuf),
    /// Another name in the same directory.
    Sibling(OsString),
}

/// What one lower layer says of a path.
pub(crate) struct Walked {
    /// The object, if the layer has it.
    pub(crate) found: Option<(Stat, Marks)>,
    /// Something on the way hides the layers below.
    pub(crate) stop: bool,
    /// The path in the layers below: a directory on the way may have been moved in this one.
    pub(crate) next: PathBuf,
}

/// Reads the value of a redirect; `None` for one that names no place below the root.
pub(crate) fn parse(value: &OsStr) -> Option<Target> {
    let bytes = value.as_bytes();
    let plain =
        |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && !part.contains(&0);
    let Some(path) = bytes.strip_prefix(b"/") else {
        let ok = plain(bytes) && !bytes.contains(&b'/');
        return ok.then(|| Target::Sibling(value.to_owned()));
    };
    path.split(|&b| b == b'/')
        .all(plain)
        .then(|| Target::Absolute(PathBuf::from(OsString::from_vec(path.to_vec()))))
}

/// The redirect for a directory whose lower part is at `path` from the layer roots.
pub(crate) fn value(path: &Path) -> Option<Vec<u8>> {
    let mut value = vec![b'/'];
    value.extend_from_slice(path.as_os_str().as_bytes());
    (value.len() <= MAX).then_some(value)
}

impl Overlay {
    /// Walks a path inside one lower layer, name by name.
    pub(crate) fn walk_layer(&self, layer: usize, path: &Path) -> io::Result<Walked> {
        let mut dir = sys::open(&self.stack.layers[layer].root, OsStr::new(""), sys::O_PATH)?;
        let mut walked = Walked { found: None, stop: false, next: PathBuf::new() };
        let mut xattr_whiteouts = false;
        let mut parts = path.components().peekable();
        while let Some(Component::Normal(name)) = parts.next() {
            walked.next.push(name);
            let Some(stat) = sys::has(&dir, name)? else {
                walked.stop |= whiteout::has_dot(dir.as_fd(), name)?;
                break;
            };
            if whiteout::is_whiteout(dir.as_fd(), name, &stat, xattr_whiteouts)? {
                walked.stop = true;
                break;
            }
            let marks = whiteout::marks(dir.as_fd(), name, self.stack.space)?;
            walked.stop |= whiteout::has_dot(dir.as_fd(), name)?;
            match marks.redirect.as_deref().and_then(parse) {
                // It leads out of whatever hid the layers below on the way here.
                Some(Target::Absolute(path)) => {
                    walked.next = path;
                    walked.stop = false;
                }
                Some(Target::Sibling(name)) => walked.next.set_file_name(name),
                None => {}
            }
            if parts.peek().is_none() {
                walked.found = Some((stat, marks));
                return Ok(walked);
            }
            if !stat.is_dir() {
                walked.stop = true;
                break;
            }
            dir = sys::open(&dir, name, sys::O_PATH | sys::O_DIRECTORY)?;
            walked.stop |= marks.opaque || whiteout::has_opaque_file(dir.as_fd())?;
            xattr_whiteouts = marks.xattr_whiteouts;
        }
        walked.next.extend(parts);
        Ok(walked)
    }

    /// Where the lower layers have a directory, as a path from their roots: its names up to the
    /// nearest redirect. It is resolved layer by layer, so it also leads through directories that
    /// were moved in one of them.
    pub(crate) fn lower_path(&self, dir: &Arc<Inode>) -> PathBuf {
        let mut names: Vec<Arc<OsStr>> = Vec::new();
        let mut here = dir.clone();
        let base = loop {
            let (redirect, link) = {
                let state = here.state.lock();
                (state.redirect().cloned(), state.links.first().cloned())
            };
            match (redirect.as_deref().and_then(parse), link) {
                (Some(Target::Absolute(path)), _) => break path,
                (_, None) => break PathBuf::new(),
                (Some(Target::Sibling(name)), Some(link)) => {
                    names.push(name.into());
                    here = link.parent;
                }
                (None, Some(link)) => {
                    names.push(link.name);
                    here = link.parent;
                }
            }
        };
        let mut path = base;
        path.extend(names.iter().rev().map(|name| Path::new(&**name)));
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_below_the_root() {
        let absolute = |s: &str| Some(Target::Absolute(PathBuf::from(s)));
        for (value, target) in [
            ("/a/b", absolute("a/b")),
            ("/a", absolute("a")),
            ("b", Some(Target::Sibling("b".into()))),
            ("/", None),
            ("", None),
            ("a/b", None),
            ("..", None),
            ("/a/../b", None),
            ("/a//b", None),
            ("/./a", None),
        ] {
            assert_eq!(parse(OsStr::new(value)), target, "{value:?}");
        }
    }

    #[test]
    fn long_redirects_are_not_written() {
        assert!(value(Path::new(&"x".repeat(255))).is_some());
        assert!(value(Path::new(&"x".repeat(256))).is_none());
    }
}
