//! Filling a directory from an archive: the one place where drivers meet [`crate::layer::apply`].

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use crate::error::{Context, Error, Result};
use crate::layer::Belief;
use crate::layer::apply::{self, Applied, Limits, Owners, Whiteouts};
use crate::sys::tree;

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
    /// Whose word is taken on what is in them.
    pub(super) belief: Belief,
    pub(super) deletions: Deletions,
}

/// Fills it.
pub(super) fn fill(
    target: Target,
    archive: &mut dyn Read,
    limits: &Limits,
    split: Option<&mut dyn Write>,
) -> Result<Applied> {
    let Target { root, lowers, belief, deletions } = target;
    let whiteouts = match deletions {
        Deletions::Overlay => Whiteouts::Overlay { user: belief.keeps_in_user() },
        Deletions::Remove => Whiteouts::Remove,
    };
    // Also where nobody shows the record: the layer can be given back, and seen by a driver that does.
    let owners = if super::can_set_owners() { Owners::Set } else { Owners::Record };
    let target = apply::Target { root, lowers, belief, whiteouts, owners };
    apply::apply(archive, &target, limits, split)
}

/// Opens files beneath a root.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    root: OwnedFd,
    /// The directory used last: files mostly follow each other within one.
    last: RefCell<(PathBuf, Rc<OwnedFd>)>,
}

impl Files {
    pub(super) fn of(path: &Path) -> Result<Files> {
        let root = tree::open_root(path).on("open", path)?;
        let last = Rc::new(root.try_clone().on("open", path)?);
        Ok(Files { path: path.to_path_buf(), root, last: RefCell::new((PathBuf::new(), last)) })
    }

    fn dir(&self, path: &Path) -> Result<Rc<OwnedFd>> {
        let mut last = self.last.borrow_mut();
        if last.0 != path {
            let dir = tree::open_dir(&self.root, path).on("open", self.path.join(path))?;
            *last = (path.to_path_buf(), Rc::new(dir));
        }
        Ok(Rc::clone(&last.1))
    }
}

impl super::FileGetter for Files {
    fn open(&self, path: &[u8]) -> Result<Box<dyn Read>> {
        let path = Path::new(OsStr::from_bytes(path));
        let plain: PathBuf = path
            .components()
            .filter(|part| !matches!(part, Component::CurDir | Component::RootDir))
            .collect();
        let name =
            plain.file_name().ok_or_else(|| Error::invalid("path in a layer", "names no file"))?;
        let dir = self.dir(plain.parent().unwrap_or(Path::new("")))?;
        let (file, _) = tree::open_file(&*dir, name).on("open", self.path.join(&plain))?;
        Ok(Box::new(file))
    }
}
