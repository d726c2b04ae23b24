//! One error type for the whole package: seven variants that answer "what can the caller do?".
//!
//! The text is for a person: what was tried, on what, what the system said; lower case, no full
//! stop. A source is kept, never turned into text. Exit codes: 0 done, 1 failed, 2 wrong usage
//! (found while parsing the command line); `run` answers 125 when it failed before the command
//! started, 126 when the command could not be executed, 127 when it was not found, 128 + n when
//! signal n ended it, and the command's own status otherwise.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::{fmt, io};

/// What went wrong, by what the reader can do about it.
#[derive(Debug)]
pub enum Error {
    /// The named thing is not there: check the name.
    NotFound {
        /// What sort of thing: image, snapshot, layer, mount.
        kind: &'static str,
        /// Its name as the caller gave it.
        name: String,
    },
    /// The name is taken: choose another, or it is already done.
    Exists {
        /// What sort of thing.
        kind: &'static str,
        /// Its name as the caller gave it.
        name: String,
    },
    /// Something else holds it: end the user first.
    InUse {
        /// What sort of thing.
        kind: &'static str,
        /// Its name as the caller gave it.
        name: String,
        /// Who holds it, with an article or a name of its own.
        by: String,
    },
    /// The input is wrong: fix it.
    Invalid {
        /// Which input.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// This host, kernel or driver cannot do it: use another.
    Unsupported {
        /// The driver or feature.
        feature: String,
        /// Why it is not available here.
        reason: String,
    },
    /// What is stored contradicts itself: repair or load again.
    Corrupt {
        /// The damaged thing.
        what: String,
        /// Both sides of the contradiction.
        detail: String,
    },
    /// The system refused: see its words.
    Io {
        /// What was tried: one or two words.
        op: Cow<'static, str>,
        /// What it was tried on.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Result of a library call.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// What the system said of `op` on `path`.
    pub fn io(op: impl Into<Cow<'static, str>>, path: impl AsRef<Path>, source: io::Error) -> Self {
        Error::Io { op: op.into(), path: path.as_ref().to_path_buf(), source }
    }

    /// A wrong input and what is wrong with it.
    pub fn invalid(what: impl Into<String>, why: impl Into<String>) -> Self {
        Error::Invalid { what: what.into(), why: why.into() }
    }

    /// Something this host does not offer, and why.
    pub fn unsupported(feature: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Unsupported { feature: feature.into(), reason: reason.into() }
    }

    /// The process's exit code for this error; `run` uses its own.
    pub fn exit_code(&self) -> u8 {
        1
    }

    /// Whether there was no room on a filesystem.
    pub fn is_no_room(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Error::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    /// Whether the reader of our output went away, which is no failure of ours.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Text on one line, whatever names are in it: control characters are written as escapes, so a name in an archive or a
/// store neither ends a line of ours nor speaks to the terminal.
struct OneLine<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for OneLine<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(char::is_control) {
            let plain = part.trim_end_matches(char::is_control);
            self.0.write_str(plain)?;
            write!(self.0, "{}", part[plain.len()..].escape_default())?;
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        let f = &mut OneLine(f);
        match self {
            Error::NotFound { kind, name } => write!(f, "{kind} '{name}': not found"),
            Error::Exists { kind, name } => write!(f, "{kind} '{name}': already exists"),
            Error::InUse { kind, name, by } => write!(f, "{kind} '{name}': in use by {by}"),
            Error::Invalid { what, why } => write!(f, "{what}: {why}"),
            Error::Unsupported { feature, reason } => write!(f, "{feature}: {reason}"),
            Error::Corrupt { what, detail } => write!(f, "{what}: corrupt: {detail}"),
            Error::Io { op, path, source } => match (op.is_empty(), path.as_os_str().is_empty()) {
                (true, true) => write!(f, "{source}"),
                (true, false) => write!(f, "{}: {source}", path.display()),
                (false, true) => write!(f, "{op}: {source}"),
                (false, false) => write!(f, "{op} {}: {source}", path.display()),
            },
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<plyfs_fuse::Error> for Error {
    fn from(error: plyfs_fuse::Error) -> Self {
        Error::io(error.op, error.path, error.source)
    }
}

/// Adds what was tried and on what, at the place the call is made.
pub trait Context<T> {
    /// Names the operation and what it was tried on.
    fn on(self, op: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn on(self, op: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::io(op, path, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_reads_as_one_line() {
        let io = || io::Error::from_raw_os_error(28);
        let table = [
            (Error::NotFound { kind: "layer", name: "a".into() }, "layer 'a': not found"),
            (Error::Exists { kind: "layer", name: "a".into() }, "layer 'a': already exists"),
            (
                Error::InUse { kind: "mount", name: "/m".into(), by: "a process".into() },
                "mount '/m': in use by a process",
            ),
            (Error::invalid("option 'x'", "not a number"), "option 'x': not a number"),
            (Error::unsupported("user namespaces", "none left"), "user namespaces: none left"),
            (
                Error::Corrupt { what: "blob".into(), detail: "a != b".into() },
                "blob: corrupt: a != b",
            ),
            (Error::io("rename", "u/x", io()), "rename u/x: No space left on device (os error 28)"),
            (Error::io("fork", "", io()), "fork: No space left on device (os error 28)"),
            (
                Error::invalid("name 'a\nb\u{1b}[0m'", "is no name"),
                "name 'a\\nb\\u{1b}[0m': is no name",
            ),
        ];
        for (error, text) in table {
            assert_eq!(error.to_string(), text);
        }
    }
}
