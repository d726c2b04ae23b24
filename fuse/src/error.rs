//! One error shape: what was tried, on which path, what the system said.
//!
//! The kernel reads only the number; the text is for the log and the command line.
//! Semantic refusals (EXDEV, EROFS, EPERM) have the same shape with a code we chose.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{fmt, io};

/// A failed operation of the overlay.
#[derive(Debug)]
pub struct Error {
    /// What was tried: the name of the operation.
    pub op: &'static str,
    /// What it was tried on.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Result of an operation of the overlay.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Wraps what the system said of `op` on `path`.
    pub fn new(op: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        Error { op, path: path.as_ref().to_path_buf(), source }
    }

    /// A refusal of our own with the number `code`.
    pub fn code(op: &'static str, path: impl AsRef<OsStr>, code: i32) -> Self {
        Error { op, path: PathBuf::from(path.as_ref()), source: io::Error::from_raw_os_error(code) }
    }

    /// A refusal at mount, in words.
    pub fn refuse(op: &'static str, path: impl AsRef<Path>, why: impl Into<String>) -> Self {
        Error::new(op, path, io::Error::other(why.into()))
    }

    /// The number the kernel is answered with; EIO when the source has none.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(crate::sys::EIO)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.op, self.path.display(), self.source)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Adds the operation and the path to what the system said.
pub(crate) trait Context<T> {
    /// Names the operation and what it was tried on.
    fn on(self, op: &'static str, path: impl AsRef<OsStr>) -> Result<T>;

    /// The same with a path that is put together only when it is needed.
    fn at(self, op: &'static str, path: impl FnOnce() -> PathBuf) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn on(self, op: &'static str, path: impl AsRef<OsStr>) -> Result<T> {
        self.map_err(|source| Error { op, path: PathBuf::from(path.as_ref()), source })
    }

    fn at(self, op: &'static str, path: impl FnOnce() -> PathBuf) -> Result<T> {
        self.map_err(|source| Error { op, path: path(), source })
    }
}
