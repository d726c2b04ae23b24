//! A directory for trials, which goes with its content whatever became of them.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The directory.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Makes one in `parent`.
    pub(super) fn create(parent: &Path) -> io::Result<Scratch> {
        let path = parent.join(format!(".plyfs-doctor-{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o755).create(&path)?;
        Ok(Scratch(path))
    }

    /// A new directory in it.
    pub(super) fn dir(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        std::fs::create_dir(&path)?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            log::warn!("remove {}: {error}", self.0.display());
        }
    }
}

/// Removes a tree of our own. The kernel's overlay leaves a directory without any permission in its
/// work directory, which even its owner cannot list.
fn remove(path: &Path) -> io::Result<()> {
    if !path.symlink_metadata()?.is_dir() {
        return std::fs::remove_file(path);
    }
    if std::fs::read_dir(path).is_err() {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    }
    for entry in std::fs::read_dir(path)? {
        remove(&entry?.path())?;
    }
    std::fs::remove_dir(path)
}
