//! A tar archive becomes a directory.
//!
//! The archive may be packed with gzip or zstd. Names are bounded by the root: `..` goes no further, absolute
//! names begin there, and a symlink on the way, of this layer or of a lower one, is followed as in a chroot. The
//! way is walked name by name from descriptor to descriptor, none of which follows a symlink, so no filter that
//! forbids openat2 matters; attributes are set through descriptors or by calls that do not follow. The rules
//! are those of the OCI image specification ("layer"): a whiteout hides what lower layers have and nothing that
//! the same archive brings, in any order.
//!
//! After an error nothing is cleaned up: apply into a directory that nobody sees yet, and delete it.
//!
//! | room | what it owns |
//! |---|---|
//! | `input` | the bytes: unpacked, counted, hashed |
//! | `reader`, `header`, `pax`, `sparse` | the bytes as entries |
//! | `unpack`, `way`, `link`, `remove`, `lower` | entries as files |
//! | `paths` | which of them the archive brought |
//! | `writeback` | data on its way to the disk |
//! | `dirs`, `attributes` | the directories on the way; owner, mode, attributes, times |

mod attributes;
mod dirs;
mod header;
mod input;
mod link;
mod lower;
mod paths;
mod pax;
mod reader;
mod remove;
mod sparse;
mod unpack;
mod way;
mod writeback;

use std::io::{Read, Write};
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::layer::marks::Belief;
use input::Input;
use unpack::Unpack;

/// Size of a tar block: headers are one, data is padded to it.
const BLOCK: usize = 512;

/// What an archive held.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Applied {
    /// Bytes of the data of its files.
    pub size: u64,
    /// Its entries.
    pub entries: u64,
    /// `sha256:` and the digest of the uncompressed archive (the OCI DiffID), lower-case hexadecimal.
    pub diff_id: String,
    /// The same of the archive as it came.
    pub digest: String,
    /// Where attributes were written that hide what lies below directories: `trusted` or `user`. None where there are none.
    #[serde(skip)]
    pub marks: Option<&'static str>,
}

/// What an archive may ask for. Going beyond is an error that names the limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the data of all files, holes counted.
    pub bytes: u64,
    /// Uncompressed bytes for each compressed one, once more than a mebibyte came out.
    pub ratio: u64,
    /// Entries.
    pub entries: u64,
    /// Names in a path.
    pub depth: u64,
    /// Bytes of one name.
    pub name: u64,
    /// Bytes of a path.
    pub path: u64,
    /// Bytes of memory that a zstd frame may want as its window.
    pub window: u64,
}

impl Limits {
    /// The names of all, as errors and [`Limits::set`] have them.
    pub const NAMES: [&str; 7] = ["bytes", "ratio", "entries", "depth", "name", "path", "window"];

    /// Sets one by its name; false where there is none of that name.
    pub fn set(&mut self, name: &str, value: u64) -> bool {
        let limit = match name {
            "bytes" => &mut self.bytes,
            "ratio" => &mut self.ratio,
            "entries" => &mut self.entries,
            "depth" => &mut self.depth,
            "name" => &mut self.name,
            "path" => &mut self.path,
            "window" => &mut self.window,
            _ => return false,
        };
        *limit = value;
        true
    }
}

impl Default for Limits {
    /// Far beyond what images hold. A ratio that deflate can reach (1032) is let through: a file of zeros is
    /// no attack, and the bytes are limited anyway. A window is what zstd(1) takes without being asked.
    fn default() -> Limits {
        Limits {
            bytes: 256 << 30,
            ratio: 2000,
            entries: 10_000_000,
            depth: 1024,
            name: 255,
            path: 4095,
            window: 128 << 20,
        }
    }
}

/// Where an archive goes.
#[derive(Clone, Debug)]
pub struct Target {
    /// An empty directory; with [`Whiteouts::Remove`] a copy of the parent layer's whole tree.
    pub root: PathBuf,
    /// The layers below, top first; only read. They have the symlinks on the way, the attributes of
    /// directories that the archive leaves out, and the files that links are to.
    pub lowers: Vec<PathBuf>,
    /// Whose word is taken on what is in them.
    pub belief: Belief,
    /// What becomes of whiteouts.
    pub whiteouts: Whiteouts,
    /// What becomes of owners.
    pub owners: Owners,
}

/// What becomes of whiteouts and opaque marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteouts {
    /// They are written as the kernel's overlay has them.
    Overlay {
        /// Attributes go to `user.overlay.*`, as with the mount option `userxattr`.
        user: bool,
    },
    /// What they hide is deleted.
    Remove,
}

/// What becomes of owners, and of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// They are set; being refused is an error.
    Set,
    /// They are noted in `user.containers.override_stat`, as are kinds of files that an ordinary user cannot
    /// make; on disk everything is the caller's.
    Record,
    /// They are set where that is allowed. What cannot be made is left out.
    Ignore,
}

/// Unpacks `archive` into a directory. `split` gets the record that [`crate::layer::split`] makes the archive
/// from again.
pub fn apply(
    archive: &mut dyn Read,
    target: &Target,
    limits: &Limits,
    split: Option<&mut dyn Write>,
) -> Result<Applied> {
    std::thread::scope(|scope| {
        let (mut input, end) = Input::open(archive, limits, scope)?;
        let mut unpack = Unpack::new(target, limits, split.is_some())?;
        unpack.all(&mut input)?;
        let marks = unpack.marks();
        let (size, entries) = unpack.finish(split)?;
        let (diff_id, digest) = input.finish(end)?;
        Ok(Applied { size, entries, diff_id, digest, marks })
    })
}

/// An archive that asks for too much.
fn beyond(what: &str, limit: u64, name: &str) -> Error {
    let why = format!("has more than {limit} {what}, the limit '{name}'");
    Error::invalid("the archive", why)
}
