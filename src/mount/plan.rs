//! A mount as data, and performing it.

use std::path::PathBuf;

/// What is mounted, how and where. Whoever performs it makes the target and, when it is taken away, removes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Who shows it.
    pub kind: Kind,
    /// The directories, top first, that are merged.
    pub lowers: Vec<PathBuf>,
    /// Where changes go, and the scratch directory beside it; a mount without is read-only.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Options of the filesystem, as `-o` takes them, in order.
    pub options: Vec<String>,
    /// Where it is seen.
    pub target: PathBuf,
}

/// Who shows a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel's overlay.
    Overlay,
    /// Our own, over FUSE.
    Fuse,
}
