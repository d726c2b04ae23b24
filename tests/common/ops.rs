//! A small language of file operations: the same words drive the model, a directory, the overlay
//! core and a mount.
//!
//! No operation follows a symlink, wherever it stands in a path: a symlink in the middle is ELOOP
//! for every target. Reading or writing a fifo or device is ENXIO for every target, since no
//! filesystem is asked about it. The empty path is the root.

use std::fmt;

use super::tree::{Meta, Stamp, Tree};

/// File contents as a rule: `len` bytes that differ from those of another `seed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Which contents.
    pub seed: u8,
    /// How many bytes.
    pub len: usize,
}

impl Fill {
    /// The bytes.
    pub fn bytes(self) -> Vec<u8> {
        (0..self.len).map(|i| self.seed ^ (i as u8) ^ ((i >> 8) as u8).wrapping_mul(31)).collect()
    }
}

/// `rename` flag: fail when the new name exists.
pub const NOREPLACE: u32 = 1;
/// `rename` flag: both names change places.
pub const EXCHANGE: u32 = 2;

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[rustfmt::skip]
pub enum Op {
    /// open(O_CREAT | O_EXCL | O_WRONLY), write.
    Create { path: String, mode: u32, fill: Fill },
    /// open(O_TRUNC | O_WRONLY), write.
    Overwrite { path: String, fill: Fill },
    /// open(O_WRONLY), pwrite.
    Write { path: String, at: u64, fill: Fill },
    /// open(O_WRONLY), ftruncate.
    Truncate { path: String, size: u64 },
    /// open(O_WRONLY), fallocate; `mode` as in the system call.
    Fallocate { path: String, mode: u32, at: u64, len: u64 },
    /// open both, copy_file_range.
    CopyRange { from: String, from_at: u64, to: String, to_at: u64, len: u64 },
    Mkdir { path: String, mode: u32 },
    /// `mode` bears the type; `rdev` as (major, minor).
    Mknod { path: String, mode: u32, rdev: (u32, u32) },
    Symlink { path: String, target: String },
    Link { from: String, to: String },
    Rename { from: String, to: String, flags: u32 },
    Unlink { path: String },
    Rmdir { path: String },
    Chmod { path: String, mode: u32 },
    Chown { path: String, uid: Option<u32>, gid: Option<u32> },
    Utimes { path: String, mtime: Stamp },
    /// `flags` as in the system call: 1 create, 2 replace.
    SetXattr { path: String, name: String, value: String, flags: u32 },
    RemoveXattr { path: String, name: String },
    GetXattr { path: String, name: String },
    Read { path: String, at: u64, len: usize },
    ReadLink { path: String },
    ReadDir { path: String },
    Stat { path: String },
    /// Opens a regular file and keeps it open in `slot`, closing what was there.
    Hold { slot: usize, path: String, write: bool },
    /// open(O_TMPFILE | O_RDWR), kept open in `slot`.
    HoldTmp { slot: usize, path: String, mode: u32 },
    HeldWrite { slot: usize, at: u64, fill: Fill },
    HeldRead { slot: usize, at: u64, len: usize },
    HeldStat { slot: usize },
    HeldTruncate { slot: usize, size: u64 },
    HeldChmod { slot: usize, mode: u32 },
    /// Gives what is open in `slot` a (further) name.
    HeldLink { slot: usize, to: String },
    Close { slot: usize },
    /// Closes everything and opens the filesystem again; a target that is no filesystem of its own
    /// only closes.
    Reopen,
}

/// What a successful operation said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing but success.
    Done,
    /// Bytes read: contents, a link's target, an attribute's value.
    Bytes(Vec<u8>),
    /// Bytes moved.
    Count(u64),
    /// Names in order with the letter of their kind, without `.` and `..`.
    Names(Vec<(String, char)>),
    /// Attributes.
    Stat(Meta),
}

/// What an operation said, or the error number.
pub type Said = Result<Outcome, i32>;

/// Whatever obeys the language.
pub trait Target {
    /// Does one operation.
    fn apply(&mut self, op: &Op) -> Said;
    /// The whole tree as it is now; text when it cannot be read or contradicts itself.
    fn tree(&self) -> Result<Tree, String>;
    /// Closes whatever is held open.
    fn close_all(&mut self);
}

/// Directory part and last name.
pub fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// A name below a directory.
pub fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

/// Symbolic name of an error number.
pub fn errno_name(code: i32) -> String {
    let known = [
        (libc::EPERM, "EPERM"),
        (libc::ENOENT, "ENOENT"),
        (libc::EIO, "EIO"),
        (libc::ENXIO, "ENXIO"),
        (libc::EBADF, "EBADF"),
        (libc::EACCES, "EACCES"),
        (libc::EBUSY, "EBUSY"),
        (libc::EEXIST, "EEXIST"),
        (libc::EXDEV, "EXDEV"),
        (libc::ENODEV, "ENODEV"),
        (libc::ENOTDIR, "ENOTDIR"),
        (libc::EISDIR, "EISDIR"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::EROFS, "EROFS"),
        (libc::EMLINK, "EMLINK"),
        (libc::ENAMETOOLONG, "ENAMETOOLONG"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ENOTEMPTY, "ENOTEMPTY"),
        (libc::ELOOP, "ELOOP"),
        (libc::ENODATA, "ENODATA"),
        (libc::EOVERFLOW, "EOVERFLOW"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::ESTALE, "ESTALE"),
        (libc::ETXTBSY, "ETXTBSY"),
        (libc::EFBIG, "EFBIG"),
    ];
    known.iter().find(|k| k.0 == code).map_or_else(|| format!("errno {code}"), |k| k.1.to_owned())
}

/// One line for what an operation said.
pub fn show(said: &Said) -> String {
    match said {
        Err(code) => errno_name(*code),
        Ok(Outcome::Bytes(bytes)) if bytes.len() > 24 => {
            format!("{} bytes, digest {:x}", bytes.len(), super::tree::digest(bytes))
        }
        Ok(Outcome::Bytes(bytes)) => format!("\"{}\"", bytes.escape_ascii()),
        Ok(Outcome::Stat(meta)) => meta.to_string(),
        Ok(other) => format!("{other:?}"),
    }
}

impl fmt::Display for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.seed, self.len)
    }
}

/// A path for people: the root has one too.
struct P<'a>(&'a str);

impl fmt::Display for P<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "." } else { self.0 })
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Create { path, mode, fill } => {
                write!(f, "create {} mode {mode:04o} fill {fill}", P(path))
            }
            Op::Overwrite { path, fill } => write!(f, "overwrite {} fill {fill}", P(path)),
            Op::Write { path, at, fill } => write!(f, "write {} at {at} fill {fill}", P(path)),
            Op::Truncate { path, size } => write!(f, "truncate {} to {size}", P(path)),
            Op::Fallocate { path, mode, at, len } => {
                write!(f, "fallocate {} mode {mode:#x} at {at} len {len}", P(path))
            }
            Op::CopyRange { from, from_at, to, to_at, len } => {
                write!(f, "copy-range {} at {from_at} -> {} at {to_at} len {len}", P(from), P(to))
            }
            Op::Mkdir { path, mode } => write!(f, "mkdir {} mode {mode:04o}", P(path)),
            Op::Mknod { path, mode, rdev } => {
                write!(f, "mknod {} mode {mode:06o} rdev {}:{}", P(path), rdev.0, rdev.1)
            }
            Op::Symlink { path, target } => write!(f, "symlink {} -> {target}", P(path)),
            Op::Link { from, to } => write!(f, "link {} as {}", P(from), P(to)),
            Op::Rename { from, to, flags } => {
                let how = [" ", " noreplace ", " exchange ", " noreplace|exchange "]
                    [(*flags & 3) as usize];
                write!(f, "rename{how}{} to {}", P(from), P(to))
            }
            Op::Unlink { path } => write!(f, "unlink {}", P(path)),
            Op::Rmdir { path } => write!(f, "rmdir {}", P(path)),
            Op::Chmod { path, mode } => write!(f, "chmod {} {mode:04o}", P(path)),
            Op::Chown { path, uid, gid } => write!(f, "chown {} uid {uid:?} gid {gid:?}", P(path)),
            Op::Utimes { path, mtime } => write!(f, "utimes {} {mtime}", P(path)),
            Op::SetXattr { path, name, value, flags } => {
                write!(f, "setxattr {} {name}={value} flags {flags}", P(path))
            }
            Op::RemoveXattr { path, name } => write!(f, "removexattr {} {name}", P(path)),
            Op::GetXattr { path, name } => write!(f, "getxattr {} {name}", P(path)),
            Op::Read { path, at, len } => write!(f, "read {} at {at} len {len}", P(path)),
            Op::ReadLink { path } => write!(f, "readlink {}", P(path)),
            Op::ReadDir { path } => write!(f, "readdir {}", P(path)),
            Op::Stat { path } => write!(f, "stat {}", P(path)),
            Op::Hold { slot, path, write } => {
                write!(
                    f,
                    "hold #{slot} {} {}",
                    P(path),
                    if *write { "for writing" } else { "for reading" }
                )
            }
            Op::HoldTmp { slot, path, mode } => {
                write!(f, "hold #{slot} tmpfile in {} mode {mode:04o}", P(path))
            }
            Op::HeldWrite { slot, at, fill } => write!(f, "write #{slot} at {at} fill {fill}"),
            Op::HeldRead { slot, at, len } => write!(f, "read #{slot} at {at} len {len}"),
            Op::HeldStat { slot } => write!(f, "stat #{slot}"),
            Op::HeldTruncate { slot, size } => write!(f, "truncate #{slot} to {size}"),
            Op::HeldChmod { slot, mode } => write!(f, "chmod #{slot} {mode:04o}"),
            Op::HeldLink { slot, to } => write!(f, "link #{slot} as {}", P(to)),
            Op::Close { slot } => write!(f, "close #{slot}"),
            Op::Reopen => f.write_str("reopen"),
        }
    }
}
