//! Filling a directory from an archive: the one place where drivers meet [`crate::layer::apply`].

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::layer::apply::{Applied, Limits};

/// How a deletion in the archive looks in the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deletions {
    /// As the kernel's overlay has it: the directory is one of several.
    Overlay,
    /// What is deleted is removed: the directory is the whole tree.
    Remove,
}

/// A directory to fill.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) root: PathBuf,
    /// What lies below it, the nearest first.
    pub(super) lowers: Vec<PathBuf>,
    pub(super) deletions: Deletions,
    /// Owners that cannot be set are kept in attributes.
    pub(super) records: bool,
}

/// Fills it.
pub(super) fn fill(
    target: &Target,
    _archive: &mut dyn Read,
    limits: &Limits,
    _split: Option<&mut dyn Write>,
) -> Result<Applied> {
    let Target { root, lowers, deletions, records } = target;
    log::trace!("{} on {lowers:?}, {deletions:?}, {records}, {limits:?}", root.display());
    Err(Error::unsupported("layer apply", "this build cannot read archives"))
}

/// Opens files beneath a root.
#[derive(Debug)]
pub(super) struct Files(PathBuf);

impl Files {
    pub(super) fn of(root: &Path) -> Files {
        Files(root.to_path_buf())
    }
}

impl super::FileGetter for Files {
    fn open(&self, path: &[u8]) -> Result<Box<dyn Read>> {
        use crate::error::Context;
        use crate::sys::tree;
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        let plain: PathBuf = path
            .components()
            .filter(|part| {
                !matches!(part, std::path::Component::CurDir | std::path::Component::RootDir)
            })
            .collect();
        let shown = self.0.join(&plain);
        let root = tree::open_root(&self.0).on("open", &self.0)?;
        let name =
            plain.file_name().ok_or_else(|| Error::invalid("path in a layer", "names no file"))?;
        let dir =
            tree::open_dir(&root, plain.parent().unwrap_or(Path::new(""))).on("open", &shown)?;
        Ok(Box::new(tree::open_file(&dir, name).on("open", &shown)?))
    }
}
