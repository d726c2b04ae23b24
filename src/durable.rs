//! Replacing a file whole: a temporary beside it, sync, rename, sync the directory. After a crash at any point there is
//! the old file or the new one.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::sys::{change, publish};

/// Puts `bytes` at `path`, in place of what is there.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let staged = Staged::beside(path)?;
    change::write(&staged.file, bytes).on("write", &staged.path)?;
    staged.publish(path)
}

/// Bytes of a file that is read whole at most; none of ours comes near.
const MOST: u64 = 8 << 20;

/// Reads a small file whole. One that is larger than any of ours is an error, and takes no memory.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST + 1).read_to_end(&mut bytes)?;
    match u64::try_from(bytes.len()).is_ok_and(|length| length <= MOST) {
        true => Ok(bytes),
        false => Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 8 MiB")),
    }
}

/// The same for text.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "no UTF-8"))
}

/// Whether the name at `path` still leads to an open file.
pub fn is_same(file: &File, path: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let ours = file.metadata().on("stat", path)?;
    Ok(std::fs::metadata(path)
        .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())))
}

/// Makes names made in, or taken from, a directory outlive a crash of the machine.
pub fn sync_dir(path: &Path) -> Result<()> {
    publish::sync_dir(path).on("sync", path)
}

/// A new file that gets its name when it is complete, and goes when it never is.
#[derive(Debug)]
pub struct Staged {
    /// To be written.
    pub file: File,
    path: PathBuf,
    published: bool,
}

impl Staged {
    /// A file on the filesystem of `path`, under another name.
    pub fn beside(path: &Path) -> Result<Staged> {
        let Some(name) = path.file_name() else {
            return Err(Error::invalid(path.display().to_string(), "not the name of a file"));
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{:016x}.tmp", plyfs_fuse::sys::random_u64()));
        let hidden = parent(path).join(hidden);
        let file = change::create_new(&hidden).on("create", &hidden)?;
        Ok(Staged { file, path: hidden, published: false })
    }

    /// Gives it its name, in place of what has that now.
    pub fn publish(mut self, path: &Path) -> Result<()> {
        self.file.sync_all().on("sync", &self.path)?;
        change::rename(&self.path, path).on("rename to", path)?;
        self.published = true;
        sync_dir(parent(path))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        if let Err(error) = change::remove_file(&self.path) {
            log::debug!("remove {}: {error}", self.path.display());
        }
    }
}

/// The directory that a path names something in.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_stays_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        for text in ["one", "two"] {
            replace(&path, text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        drop(Staged::beside(&path).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
    }

    #[test]
    fn what_is_too_large_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let file = File::create(&path).unwrap();
        file.set_len(MOST).unwrap();
        assert_eq!(read_text(&path).unwrap().len() as u64, MOST);
        file.set_len(1 << 40).unwrap();
        assert_eq!(read(&path).unwrap_err().to_string(), "larger than 8 MiB");
        std::fs::write(&path, b"\xff").unwrap();
        assert_eq!(read_text(&path).unwrap_err().to_string(), "no UTF-8");
    }

    #[test]
    fn what_has_no_name_is_refused() {
        assert!(Staged::beside(Path::new("/")).is_err());
    }
}
