//! What a layer has from its template: a copy of that one's own directory, and the marks beside it.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use plyfs_fuse::marks_name;

use super::{make_dir, names};
use crate::driver::Ids;
use crate::driver::options::Sync;
use crate::error::{Context, Error, Result};
use crate::sys::change;
use crate::sys::copy::{self, How};
use crate::sys::tree::{self, Kind};

/// What the kernel's overlay calls one upper directory by, which a copy is not.
const OWN: [&str; 2] = ["trusted.overlay.uuid", "user.overlay.uuid"];
/// The same, and what names files of the layers below, where a copy lies on others.
const OWN_AND_BELOW: [&str; 4] = [OWN[0], OWN[1], "trusted.overlay.origin", "user.overlay.origin"];

/// Copies what the layer in the directory `from` holds to the new one in `new`, which has its directories already.
pub(super) fn copy(from: &Path, new: &Path, ids: Option<&Ids>, sync: Sync) -> Result<()> {
    let (own, diff) = (from.join("diff"), new.join("diff"));
    let without: &[&str] = if ids.is_none() { &OWN } else { &OWN_AND_BELOW };
    let how = How { without, ids, ..How::default() };
    copy::content(&own, &diff, how)
        .map_err(|failure| Error::io("copy", own.join(failure.path), failure.error))?;
    copy_marks(from, new, ids)?;
    sync.content(&diff)
}

/// Copies the marks of symlinks and devices that an ordinary user's mounts keep in the work directory. They are named by the
/// object, and those of the copy by its own.
fn copy_marks(from: &Path, new: &Path, ids: Option<&Ids>) -> Result<()> {
    let (kept, copied) = (from.join("work/marks"), new.join("work/marks"));
    let mut marks: HashMap<String, Vec<(String, PathBuf)>> = HashMap::new();
    for name in names_if_any(&kept)? {
        let Some((object, key)) = name.split_once('.') else { continue };
        let value = std::fs::read_link(kept.join(&name)).on("read symlink", kept.join(&name))?;
        if ids.is_some() && key == "override" {
            let why = "owners of its symlinks are kept beside it, by mounts of an ordinary user";
            return Err(Error::unsupported("layer with other ids", why));
        }
        // What lies below is another layer then.
        if ids.is_none() || key != "origin" {
            marks.entry(object.to_owned()).or_default().push((key.to_owned(), value));
        }
    }
    if marks.is_empty() {
        return Ok(());
    }
    make_dir(&copied, 0o700)?;
    let (own, diff) = (from.join("diff"), new.join("diff"));
    let old = tree::open_root(&own).on("open", &own)?;
    let new = tree::open_root(&diff).on("open", &diff)?;
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        let from = tree::open_dir(&old, &dir).on("open", own.join(&dir))?;
        let to = tree::open_dir(&new, &dir).on("open", diff.join(&dir))?;
        for name in tree::list(&from).on("list", own.join(&dir))? {
            let path = dir.join(&name);
            match tree::stat(&from, &name).on("stat", own.join(&path))?.kind {
                Kind::Dir => todo.push(path),
                Kind::File => {}
                _ => {
                    let object = marks_name(from.as_fd(), &name).on("name", own.join(&path))?;
                    // The first of its names; further ones are the same object.
                    let Some(marks) = marks.remove(&object) else { continue };
                    let object = marks_name(to.as_fd(), &name).on("name", diff.join(&path))?;
                    for (key, value) in marks {
                        let mark = copied.join(format!("{object}.{key}"));
                        change::symlink(&value, &mark).on("create", &mark)?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn names_if_any(dir: &Path) -> Result<Vec<String>> {
    match dir.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        _ => names(dir),
    }
}
