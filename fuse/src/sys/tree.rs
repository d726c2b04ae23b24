//! Removal of whole trees, of any depth.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::fs::{chmod, fstat, list, open, rmdir, stat, unlink};

/// A directory whose content is being removed.
struct Level {
    /// Its name in the directory above.
    name: OsString,
    /// Device and number, by which it is known again when it is come back to.
    id: (u64, u64),
    /// What is left in it.
    left: Vec<OsString>,
}

/// Removes a name with everything below it. A directory that its owner may not enter (the kernel
/// leaves its own with mode 000) is opened up first. One directory is open at a time: the way back
/// is `..`, and nothing is removed there unless it is the directory the way began in.
pub fn remove_tree(dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    let dir = dir.as_fd();
    if remove_one(dir, name)? {
        return Ok(());
    }
    let mut levels = Vec::new();
    let mut here = enter(dir, name, &mut levels)?;
    while let Some(level) = levels.last_mut() {
        if let Some(child) = level.left.pop() {
            if !remove_one(here.as_fd(), &child)? {
                here = enter(here.as_fd(), &child, &mut levels)?;
            }
            continue;
        }
        let name = std::mem::take(&mut level.name);
        levels.pop();
        let Some(above) = levels.last() else {
            return rmdir(dir, &name);
        };
        let up = open(&here, OsStr::new(".."), libc::O_PATH | libc::O_DIRECTORY)?;
        let stat = fstat(&up)?;
        if (stat.dev, stat.ino) != above.id {
            return Err(io::Error::from_raw_os_error(libc::ESTALE));
        }
        rmdir(&up, &name)?;
        here = up;
    }
    Ok(())
}

/// Removes what is no directory, or an empty one; false for any other.
fn remove_one(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
    let code = |error: &io::Error| error.raw_os_error().unwrap_or(0);
    match unlink(dir, name) {
        Err(e) if matches!(code(&e), libc::EISDIR | libc::EPERM) => {}
        other => return other.map(|()| true),
    }
    match rmdir(dir, name) {
        Err(e) if matches!(code(&e), libc::ENOTEMPTY | libc::EEXIST | libc::EACCES) => Ok(false),
        other => other.map(|()| true),
    }
}

fn enter(dir: BorrowedFd<'_>, name: &OsStr, levels: &mut Vec<Level>) -> io::Result<OwnedFd> {
    let inside = open(dir, name, libc::O_PATH | libc::O_DIRECTORY)?;
    if stat(dir, name)?.mode & 0o700 != 0o700 {
        chmod(dir, name, 0o700)?;
    }
    let stat = fstat(&inside)?;
    let left = list(&inside)?.into_iter().map(|entry| entry.name).collect();
    levels.push(Level { name: name.to_owned(), id: (stat.dev, stat.ino), left });
    Ok(inside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;

    /// A directory `depth` levels deep at `name`, with a file beside each level.
    fn deep(dir: impl AsFd, name: &OsStr, depth: usize) {
        let (flags, sub) = (sys::O_PATH | sys::O_DIRECTORY, OsStr::new("d"));
        sys::mkdir(&dir, name, 0o700).unwrap();
        let mut here = sys::open(&dir, name, flags).unwrap();
        for _ in 0..depth {
            sys::mkdir(&here, sub, 0o700).unwrap();
            sys::mknod(&here, OsStr::new("f"), sys::S_IFREG | 0o600, 0).unwrap();
            here = sys::open(&here, sub, flags).unwrap();
        }
    }

    fn root(dir: &tempfile::TempDir) -> OwnedFd {
        std::fs::File::open(dir.path()).unwrap().into()
    }

    #[test]
    fn a_tree_9000_levels_deep_is_removed_on_a_small_stack() {
        let dir = tempfile::tempdir().unwrap();
        deep(root(&dir), OsStr::new("a"), 9000);
        let fd = root(&dir);
        let removed = std::thread::Builder::new()
            .stack_size(64 * 1024)
            .spawn(move || remove_tree(fd, OsStr::new("a")))
            .unwrap();
        removed.join().unwrap().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_wide_tree_and_closed_directories_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let fd = root(&dir);
        sys::mkdir(&fd, OsStr::new("a"), 0o700).unwrap();
        let a = sys::open(&fd, OsStr::new("a"), sys::O_PATH | sys::O_DIRECTORY).unwrap();
        for name in ["x", "y", "z"] {
            deep(&a, OsStr::new(name), 3);
            sys::chmod(&a, OsStr::new(name), 0).unwrap();
        }
        remove_tree(&fd, OsStr::new("a")).unwrap();
        assert!(sys::is(&remove_tree(&fd, OsStr::new("a")), sys::ENOENT));
    }
}
