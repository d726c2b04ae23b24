//! Files and trees of the hardlink driver.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use crate::driver::fill::{Deletions, Target};
use crate::driver::{LayerId, layout};
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::layer::Belief;
use crate::sys::{Ids, change, copy, publish};

/// The target that is a whole tree.
pub(super) fn whole(root: &Path) -> Target {
    let (root, belief) = (root.to_path_buf(), Belief::standing().whole_tree());
    Target { root, lowers: Vec::new(), belief, deletions: Deletions::Remove }
}

/// A file that nobody else sees, and that goes with this process.
pub(super) fn tempfile(dir: &Path) -> Result<File> {
    let path = dir.join(format!(".new-{}", publish::random_name(16).on("getrandom", "")?));
    let file = change::create_new(&path).on("create", &path)?;
    change::remove_file(&path).on("remove", &path)?;
    Ok(file)
}

pub(super) fn copy_tree(from: &Path, to: &Path, link: bool, ids: Option<&Ids>) -> Result<()> {
    let how = copy::How { link, ids, ..copy::How::default() };
    copy::tree(from, to, how)
        .map_err(|failure| Error::io("copy", from.join(failure.path), failure.error))
}

/// Copies what makes the layer in `dir` a container, to lie on `image`, with scratch space of its own.
pub(super) fn copy_container(
    dir: &Path,
    new: &Path,
    image: Option<&LayerId>,
    ids: Option<&Ids>,
) -> Result<()> {
    copy_tree(&dir.join("upper"), &new.join("upper"), false, ids)?;
    write(&new.join("lower-id"), image.map_or("", LayerId::as_str))?;
    layout::make_dir(&new.join("work"), 0o700)
}

pub(super) fn read_id(path: &Path) -> Result<Option<LayerId>> {
    match durable::read_text(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => LayerId::new(other.on("read", path)?.trim_end()).map(Some),
    }
}

pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    publish::write_new(path, text.as_bytes()).on("write", path)
}
