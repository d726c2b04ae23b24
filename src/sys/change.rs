//! Changes of the store by path. Each passes a fault point first (`plyfs_fuse::sys::fault`), so that crash tests can stop
//! between any two of them; nothing in the store is changed by other calls than those of this room and its neighbours.
//! A sync has no point: it changes nothing that a killed process leaves.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use plyfs_fuse::sys::fault;

use super::publish::{rename_new, sync_dir};

/// Something that no call of this room does is about to change.
pub fn point() -> io::Result<()> {
    fault::point()
}

/// Makes a directory, whose mode the umask may narrow.
pub fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    point()?;
    DirBuilder::new().mode(mode).create(path)
}

/// Makes a directory and those above it, as far as they are missing, so that their names last.
pub fn make_dirs(path: &Path, mode: u32) -> io::Result<()> {
    match path.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Ok(found) if !found.is_dir() => return Err(ErrorKind::NotADirectory.into()),
        other => return other.map(drop),
    }
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    if let Some(above) = above {
        make_dirs(above, mode)?;
    }
    match make_dir(path, mode) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }?;
    sync_dir(above.unwrap_or(Path::new(".")))
}

/// Sets the permissions.
pub fn chmod(path: &Path, mode: u32) -> io::Result<()> {
    point()?;
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Sets owner and group.
pub fn chown(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    point()?;
    std::os::unix::fs::chown(path, Some(uid), Some(gid))
}

/// Sets an xattr; a symlink in the last place is not followed.
pub fn set_xattr(path: &Path, key: &str, value: &[u8]) -> io::Result<()> {
    point()?;
    super::probe::set_xattr(path, key, value)
}

/// Makes a symlink at `link`.
pub fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    point()?;
    std::os::unix::fs::symlink(target, link)
}

/// Makes a further name for a file, or a copy where the filesystem gives none; the copy is on disk when this returns.
pub fn link(from: &Path, to: &Path) -> io::Result<()> {
    point()?;
    match std::fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        Err(_) => {
            std::fs::copy(from, to)?;
            File::open(to)?.sync_all()
        }
        done => done,
    }
}

/// Makes a file, open for reading and writing, where nothing is.
pub fn create_new(path: &Path) -> io::Result<File> {
    point()?;
    File::options().read(true).write(true).create_new(true).open(path)
}

/// Opens a file for reading and writing, made empty where it is missing. It is for its owner alone: whoever can read a file can
/// lock it, and has others wait.
pub fn open_or_create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true);
    match options.open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => return other,
    }
    point()?;
    options.create(true).truncate(false).mode(0o600).open(path)
}

/// What an empty file is called that is kept for when none can be made: to give it another name takes no room.
const SPARE: &str = ".spare";

/// The same as [`open_or_create`]; where there is no room for a file, the one that is kept in the directory `spare` becomes it.
pub fn open_or_spend(path: &Path, spare: &Path) -> io::Result<File> {
    match open_or_create(path) {
        Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            match rename_new(&spare.join(SPARE), path) {
                Err(refused) if refused.kind() != ErrorKind::AlreadyExists => Err(error),
                _ => open_or_create(path),
            }
        }
        other => other,
    }
}

/// Keeps such a file in a directory, if there is room for one.
pub fn keep_spare(dir: &Path) {
    if let Err(error) = open_or_create(&dir.join(SPARE)) {
        log::debug!("create {}: {error}", dir.join(SPARE).display());
    }
}

/// Writes all of `bytes`.
pub fn write(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    point()?;
    file.write_all(bytes)
}

/// Cuts or lengthens a file.
pub fn set_len(file: &File, length: u64) -> io::Result<()> {
    point()?;
    file.set_len(length)
}

/// Gives what `from` names the name `to`, in place of what has that now.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    point()?;
    std::fs::rename(from, to)
}

/// Removes a name that is not a directory.
pub fn remove_file(path: &Path) -> io::Result<()> {
    point()?;
    std::fs::remove_file(path)
}

/// The same where it may be missing; whether it was there.
pub fn remove_file_if_any(path: &Path) -> io::Result<bool> {
    match remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes an empty directory.
pub fn remove_dir(path: &Path) -> io::Result<()> {
    point()?;
    std::fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_directories_are_made_and_others_left() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        make_dirs(&deep, 0o700).unwrap();
        chmod(&dir.path().join("a"), 0o755).unwrap();
        make_dirs(&deep, 0o700).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&deep), mode(&dir.path().join("a"))), (0o700, 0o755));
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(make_dirs(&dir.path().join("file/x"), 0o700).is_err());
    }
}
