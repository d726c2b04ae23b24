//! Drivers: how layers lie on disk, and what has to be mounted to see one.
//!
//! A driver keeps *layers*, each on top of at most one parent, in a directory of its own below the store's root
//! (its *home*, named as the driver). It never mounts: it says which directories make a layer up
//! ([`Driver::parts`]) and which mount shows it ([`Driver::view`]), and [`crate::mount`] performs that. So a driver is
//! tested without root, and the same description can be handed to somebody else who mounts.
//!
//! What a layer holds is read from its parts, never through a mount; [`Diffing`] says how: from the upper directory
//! alone where that tells all, by comparing both trees elsewhere.

mod additional;
mod fill;
mod fuse_overlay;
mod hardlink;
mod layered;
mod layout;
mod limits;
pub(crate) mod options;
mod overlay2;
pub mod registry;
mod shelf;
mod vfs;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::layer::Belief;
use crate::layer::apply::{Applied, Limits};
use crate::mount::plan::Mount;
use crate::mount::table;
pub use crate::quota::{Quota, Usage};
pub use crate::sys::Ids;
use crate::sys::{self, change};
pub use additional::{Additional, Wanted};

/// The longest name of a layer: it becomes the name of a directory beside which others get longer ones.
const ID_LIMIT: usize = 128;

/// The name of a layer: a letter or digit, then letters, digits, `_`, `.` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId(String);

impl LayerId {
    /// Takes a name that can be a layer's.
    pub fn new(name: &str) -> Result<LayerId> {
        let refuse = |why: &str| Err(Error::invalid(format!("layer name '{name}'"), why));
        if name.is_empty() {
            return refuse("is empty");
        }
        if name.len() > ID_LIMIT {
            return refuse("is longer than 128 characters");
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(plain) {
            return refuse(
                "may hold letters, digits, '_', '.' and '-', and starts with a letter or digit",
            );
        }
        // The directory of short links in the overlay format.
        if name == "l" {
            return refuse("is taken");
        }
        Ok(LayerId(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a layer is made.
#[derive(Clone, Debug, Default)]
pub struct Create {
    /// It is never written through a mount; only [`Driver::apply`] fills it.
    pub read_only: bool,
    /// The SELinux label that mounts of it get.
    pub label: Option<String>,
    /// Options of this layer (`size`, `inodes`), as given. A driver refuses those it does not know, all that limit a
    /// read-only layer, and limits that the filesystem cannot enforce.
    pub options: BTreeMap<String, String>,
    /// It begins as a copy of this layer, of what that holds itself, and lies on the same parent. Nobody may change the
    /// template meanwhile.
    pub template: Option<LayerId>,
    /// The copy has other owners. Then it lies on a copy of the template's parent, with the same ids.
    pub ids: Ids,
    /// The additional store that the parent is in, by its place in [`Driver::additional`]; without, the parent is one of the
    /// driver's own layers.
    pub store: Option<usize>,
}

/// How a layer is to be mounted.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// The SELinux label, instead of the layer's own.
    pub label: Option<String>,
    /// Further options for the filesystem that is mounted.
    pub extra: Vec<String>,
    /// Nothing may be changed through the mount.
    pub read_only: bool,
    /// What is written need not survive a crash of the machine.
    pub volatile: bool,
    /// The ids that it is seen with, in the place of those on disk. They are those of the layers below where a layer's changes go to a
    /// directory of its own: what that holds is stored as it is seen.
    pub ids: Ids,
}

/// The directories that make a layer up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// What the layer itself holds.
    pub own: PathBuf,
    /// What lies below it, the nearest parent first; empty where `own` is the whole tree.
    pub below: Vec<PathBuf>,
}

/// How to see a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    /// It is this directory, which whoever has it may write.
    Path(PathBuf),
    /// It is what this mount shows at its target, which does not exist while nothing is mounted.
    Mount(Mount),
}

/// How the difference between a layer and its parent is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Diffing {
    /// [`Parts::own`] has it, with whiteouts.
    Native,
    /// By comparing both trees.
    Naive,
}

/// Opens files of a layer by path, to put its archive together again.
pub trait FileGetter {
    /// The data of the regular file at `path`, relative to the layer's root, as the archive named it.
    fn open(&self, path: &[u8]) -> Result<Box<dyn Read>>;
}

/// One way to keep and mount layers. Every method may be called from several threads; the store sees to it that
/// no two of them change one layer at a time.
pub trait Driver: fmt::Debug + Send + Sync {
    /// The name it is chosen by.
    fn name(&self) -> &'static str;

    /// The directory it keeps everything in.
    fn home(&self) -> &Path;

    /// The directory of a layer in it, whether there is one or not.
    fn place(&self, id: &LayerId) -> PathBuf {
        self.home().join(id.as_str())
    }

    /// Where mounts of a layer are seen, if it has any; told also where [`Driver::view`] cannot be.
    fn target(&self, id: &LayerId) -> PathBuf {
        self.place(id).join("merged")
    }

    /// Makes a layer on `parent`, empty or a copy of [`Create::template`]. The layer is there whole or not at all.
    fn create(&self, id: &LayerId, parent: Option<&LayerId>, spec: &Create) -> Result<()>;

    /// Removes a layer that nothing is built on and nobody has mounted: it is out of sight when this returns, and what
    /// cannot be deleted at once is deleted by [`crate::sys::trash::finish`] or [`Driver::sweep`]. One that is not there is no
    /// error.
    fn remove(&self, id: &LayerId) -> Result<()>;

    /// Whether there is such a layer.
    fn exists(&self, id: &LayerId) -> Result<bool>;

    /// All layers, sorted.
    fn list(&self) -> Result<Vec<LayerId>>;

    /// The layer's parent, as the driver's own records have it; `None` also where they do not tell.
    fn parent(&self, id: &LayerId) -> Result<Option<LayerId>>;

    /// The directories that make the layer up.
    fn parts(&self, id: &LayerId) -> Result<Parts>;

    /// What has to be mounted to see the layer. Says nothing about whether it is mounted.
    fn view(&self, id: &LayerId, options: &MountOptions) -> Result<View>;

    /// The mount whose server was killed before it had put all names that it showed into the layer's own directory, which the
    /// parts do not tell; none where they tell all.
    fn unsettled(&self, id: &LayerId) -> Result<Option<Mount>> {
        log::trace!("layer '{id}': this driver's mounts leave nothing");
        Ok(None)
    }

    /// Whose word is taken on what the directories of its layers hold: what its mounts show is the truth.
    fn belief(&self) -> Belief;

    /// Other stores whose layers may be parents of this driver's.
    fn additional(&self) -> &[Additional] {
        &[]
    }

    /// The mount that shows a layer of such a store at `target`, and lets nobody change it.
    fn shown(&self, id: &LayerId, options: &MountOptions, target: PathBuf) -> Result<Mount> {
        let Parts { own, below } = self.parts(id)?;
        if !below.is_empty() {
            let why = format!("driver {} cannot show it elsewhere", self.name());
            return Err(Error::unsupported(format!("layer '{id}'"), why));
        }
        log::trace!("layer '{id}': of {options:?} only the ids are for mounts of one directory");
        Ok(Mount::bind(own, &options.ids, target))
    }

    /// How [`crate::layer`] finds what the layer adds to its parent.
    fn diffing(&self, id: &LayerId) -> Result<Diffing>;

    /// Fills an empty layer from a tar archive, compressed or not, with OCI whiteouts. After an error the layer is as
    /// empty as before. `split` gets what is needed to give the archive back byte for byte.
    fn apply(
        &self,
        id: &LayerId,
        archive: &mut dyn Read,
        limits: &Limits,
        split: Option<&mut dyn std::io::Write>,
    ) -> Result<Applied>;

    /// Opens the layer's own files for the archive to be put together again.
    fn files(&self, id: &LayerId) -> Result<Box<dyn FileGetter>>;

    /// The limits of a layer.
    fn quota(&self, id: &LayerId) -> Result<Quota>;

    /// Changes the limits of a layer, at once where the filesystem keeps them. Where its mounts do (`fuse-overlay` on a
    /// filesystem without project quota), one that is there keeps the old ones, and the next has the new.
    fn set_quota(&self, id: &LayerId, quota: Quota) -> Result<()>;

    /// What the layer takes on disk.
    fn usage(&self, id: &LayerId) -> Result<Usage>;

    /// Facts about a layer that programs read: `LowerDir`, `UpperDir`, `WorkDir`, `MergedDir`, `RootDir`.
    fn metadata(&self, id: &LayerId) -> Result<Vec<(&'static str, String)>>;

    /// Facts about the driver here, for people: `Backing Filesystem`, `Supports d_type` and so on.
    fn status(&self) -> Vec<(&'static str, String)>;

    /// Makes what a crash or a hand has broken whole again where it can be told (short links, lists of lowers), and
    /// deletes what removals and failed creations left. Says what it did, a line each.
    fn sweep(&self) -> Result<Vec<String>>;

    /// Makes the driver's record of a layer's parent right again, given what the caller knows it to be; whether it was wrong
    /// or missing.
    fn repair(&self, id: &LayerId, parent: Option<&LayerId>) -> Result<bool> {
        log::trace!("layer '{id}' on {parent:?}: this driver keeps no record to repair");
        Ok(false)
    }

    /// Lets go of what the driver holds outside its home; never deletes data.
    fn cleanup(&self) -> Result<()>;
}

/// A layer with something mounted on it stays: deleting would reach what is mounted.
pub(crate) fn refuse_mounted(dir: &Path, id: &LayerId) -> Result<()> {
    let real = match dir.canonicalize() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.on("resolve", dir)?,
    };
    match table::read()?.iter().find(|mount| mount.target.starts_with(&real)) {
        None => Ok(()),
        Some(mount) => Err(Error::InUse {
            kind: "layer",
            name: id.to_string(),
            by: format!("the mount at {}", mount.target.display()),
        }),
    }
}

/// The error of limits for a read-only layer.
pub(crate) fn no_limits() -> Error {
    options::read_only()
}

/// Orders all processes that work in a store's root, as long as the value lives; never held during slow work.
pub(crate) fn lock_root(root: &Path) -> Result<File> {
    let path = root.join("lock");
    let file = change::open_or_create(&path).on("open", &path)?;
    // One that others may read was made by an older version, and could be locked by anybody.
    if file.metadata().is_ok_and(|found| found.mode() & 0o077 != 0) {
        change::chmod(&path, 0o600).on("chmod", &path)?;
    }
    sys::lock_file(&file, true).on("lock", &path)?;
    Ok(file)
}

/// Whether files can be given to more than one owner. Where they cannot, owners are kept in attributes.
fn can_set_owners() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let counts = map.lines().filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok());
    sys::is_root() && counts.sum::<u64>() > 1
}
