//! Making things appear whole, and lasting.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags};

use super::change;

/// Renames to a name that is free; `AlreadyExists` when it is not.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    change::point()?;
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A filesystem that cannot promise it. The caller alone makes such names.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            if to.symlink_metadata().is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            std::fs::rename(from, to)
        }
        other => Ok(other?),
    }
}

/// Makes the names in a directory last.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    match File::open(dir)?.sync_all() {
        // Some filesystems sync no directories, and say so.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
}

/// Makes everything on the filesystem of a directory last.
pub fn sync_filesystem(dir: &Path) -> io::Result<()> {
    log::trace!("sync the filesystem of {}", dir.display());
    Ok(rustix::fs::syncfs(File::open(dir)?)?)
}

/// Writes a new file whole, and makes its content last.
pub fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let file = change::create_new(path)?;
    change::write(&file, content)?;
    file.sync_all()
}

/// `count` characters of the base32 alphabet, at random.
pub fn random_name(count: usize) -> io::Result<String> {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut bytes = vec![0_u8; count];
    let mut left = bytes.as_mut_slice();
    while !left.is_empty() {
        match rustix::rand::getrandom(&mut *left, rustix::rand::GetRandomFlags::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            got => left = left.split_at_mut(got?).1,
        }
    }
    Ok(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect())
}

/// Bytes of a page, which a list of mount options has to be shorter than.
pub fn page_size() -> usize {
    rustix::param::page_size()
}

/// Lets two directories change names in one step.
///
/// EOPNOTSUPP where the filesystem cannot, as one of a network may not.
pub fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    change::point()?;
    match rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS) => Err(Errno::OPNOTSUPP.into()),
        other => Ok(other?),
    }
}

/// Waits until nobody has a file for himself, and takes part in it until it is closed (flock(2)).
pub fn lock_shared(file: &File) -> io::Result<()> {
    loop {
        match rustix::fs::flock(file, rustix::fs::FlockOperation::LockShared) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Takes a file for ourselves until it is closed; false when somebody else takes part in it.
pub fn try_lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
