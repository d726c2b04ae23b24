//! The directories one run needs: upper, work, and the place of the mount.
//!
//! They live in one state directory that goes away as a whole, except an upper the user named. It is
//! made where extended attributes can be kept, on disk before memory, outside the lowers if there is
//! such a place; inside one is right too, since the server looks at its layers as they were mounted
//! before, and the view covers the directory.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Spec;
use crate::error::{Context, Error, Result};
use crate::sys;

/// Tried in this order after `TMPDIR` and before `XDG_RUNTIME_DIR`: what is on disk first.
const PLACES: [&str; 2] = ["/var/tmp", "/tmp"];

/// How many names are tried before giving up on a place.
const TRIES: u32 = 100;

/// The directories of one run.
#[derive(Debug)]
pub(super) struct State {
    /// Holds what is ours alone.
    pub(super) directory: PathBuf,
    /// Where changes go.
    pub(super) upper: PathBuf,
    /// Scratch space beside it.
    pub(super) work: PathBuf,
    /// Where the server mounts.
    pub(super) merged: PathBuf,
    /// A work directory outside `directory` that was made for this run.
    made_work: Option<PathBuf>,
}

impl State {
    pub(super) fn create(spec: &Spec, lowers: &[PathBuf]) -> Result<State> {
        let directory = make_directory(&places(), lowers)?;
        let made =
            State::fill(&directory, spec, lowers.first().map_or(Path::new("/"), PathBuf::as_path));
        if made.is_err() {
            remove(&directory);
        }
        made
    }

    fn fill(directory: &Path, spec: &Spec, top: &Path) -> Result<State> {
        let merged = directory.join("merged");
        make(&merged, 0o700)?;
        let (upper, work, made_work) = match &spec.upper {
            None => {
                let (upper, work) = (directory.join("upper"), directory.join("work"));
                make_like(&upper, top)?;
                make(&work, 0o700)?;
                (upper, work, None)
            }
            Some(upper) => {
                make_all(upper)?;
                let upper = upper.canonicalize().on("open", upper)?;
                let beside = with_suffix(&upper, ".work");
                let work = spec.work.clone().unwrap_or_else(|| beside.clone());
                let made = !work.exists() && work == beside;
                make_all(&work)?;
                let work = work.canonicalize().on("open", &work)?;
                (upper, work.clone(), made.then_some(work))
            }
        };
        Ok(State { directory: directory.to_path_buf(), upper, work, merged, made_work })
    }

    /// A layer to lie beneath all others: empty directories that a root must have, whether or not
    /// its own layers do, without a trace in upper.
    pub(super) fn make_base(&self, names: &[&str]) -> Result<PathBuf> {
        let base = self.base();
        make(&base, 0o755)?;
        names.iter().try_for_each(|name| make(&base.join(name), 0o555))?;
        Ok(base)
    }

    fn base(&self) -> PathBuf {
        self.directory.join("base")
    }

    /// Removes what is ours. With `keep` upper stays where it is, in the state directory.
    pub(super) fn clean(&self, keep: bool) {
        if keep && self.upper.starts_with(&self.directory) {
            [&self.merged, &self.work, &self.base()].into_iter().for_each(|path| remove(path));
        } else {
            remove(&self.directory);
        }
        self.made_work.iter().for_each(|work| remove(work));
    }

    /// Whether [`State::clean`] has left nothing that is to go.
    pub(super) fn is_clean(&self, keep: bool) -> bool {
        let ours = if keep && self.upper.starts_with(&self.directory) {
            &self.merged
        } else {
            &self.directory
        };
        !ours.exists() && !self.made_work.as_ref().is_some_and(|work| work.exists())
    }
}

fn places() -> Vec<PathBuf> {
    let variable =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let fixed = PLACES.iter().map(PathBuf::from);
    variable("TMPDIR").into_iter().chain(fixed).chain(variable("XDG_RUNTIME_DIR")).collect()
}

/// A new directory in the first fit place, one outside all lowers if there is one.
fn make_directory(places: &[PathBuf], lowers: &[PathBuf]) -> Result<PathBuf> {
    let is_outside = |place: &&PathBuf| !lowers.iter().any(|lower| place.starts_with(lower));
    let (outside, inside): (Vec<_>, Vec<_>) = places.iter().partition(is_outside);
    let mut refusals = Vec::new();
    for place in outside.into_iter().chain(inside) {
        match make_in(place) {
            Ok(directory) => return Ok(directory),
            Err(error) => refusals.push(format!("{}: {error}", place.display())),
        }
    }
    Err(Error::unsupported("a directory for changes", refusals.join("; ")))
}

fn make_in(place: &Path) -> io::Result<PathBuf> {
    let mut name = 0;
    let directory = loop {
        let directory = place.join(format!("plyfs-run-{}-{name}", sys::process_id()));
        match DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => break directory,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && name < TRIES => name += 1,
            Err(error) => return Err(error),
        }
    };
    let fit = directory.canonicalize().and_then(|directory| {
        sys::supports_user_xattrs(&directory)?;
        Ok(directory)
    });
    if fit.is_err() {
        remove(&directory);
    }
    fit
}

fn make(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().mode(mode).create(path).on("mkdir", path)?;
    // The umask must not take part in what the view's root shows.
    std::fs::set_permissions(path, Permissions::from_mode(mode)).on("chmod", path)
}

/// A directory with mode and owner of `other`: the root of the view shows those of upper. As an
/// ordinary user we own it whoever owns the other.
fn make_like(path: &Path, other: &Path) -> Result<()> {
    let shown = std::fs::metadata(other).on("stat", other)?;
    make(path, 0o700)?;
    if let Err(error) = std::os::unix::fs::chown(path, Some(shown.uid()), Some(shown.gid())) {
        log::debug!("chown {}: {error}", path.display());
    }
    let mode = Permissions::from_mode(shown.mode() & 0o7777);
    std::fs::set_permissions(path, mode).on("chmod", path)
}

fn make_all(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).on("mkdir", path)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Removes a tree. What cannot be removed is left to the next process that tries.
fn remove(path: &Path) {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let removed = sys::tree::open_root(parent.unwrap_or(Path::new("."))).and_then(|dir| {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        plyfs_fuse::sys::remove_tree(dir, name)
    });
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::debug!("remove {}: {error}", path.display());
        }
        _ => {}
    }
}
