//! What this host allows, found by trying, and what plyfs will therefore use.
//!
//! Nothing is believed because a file in /proc or a version says so where it can be tried: each trial
//! runs in a process of its own, in namespaces of its own, on files of its own, and with a limit on
//! its time, so no trial can hang or change the host. Missing abilities are facts and not errors.

pub(crate) mod filesystem;
mod fuse;
mod idle;
pub(crate) mod namespace;
pub(crate) mod overlay;
mod report;
mod scratch;
mod trial;
mod verdict;

use std::path::{Path, PathBuf};

pub use report::{Fact, GROUPS, Report};
pub use verdict::{Choice, Driver};

use crate::driver::registry::{Config, Registry};
use crate::error::{Context, Error, Result};
use crate::sys;
use scratch::Scratch;
use trial::Answers;

/// Who asks, which decides what is worth trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Root in the initial user namespace.
    Root,
    /// Root in a user namespace.
    Inside,
    /// Anybody else.
    User,
}

impl Standing {
    fn now() -> Standing {
        match (sys::is_root(), namespace::is_initial()) {
            (true, true) => Standing::Root,
            (true, false) => Standing::Inside,
            (false, _) => Standing::User,
        }
    }

    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Standing::Root => "root",
            Standing::Inside => "root in a user namespace",
            Standing::User => "an ordinary user",
        }
    }
}

/// Tries everything for a state directory at `root`, or the usual one.
pub fn examine(root: Option<&Path>) -> Result<Report> {
    let standing = Standing::now();
    let root = match root {
        Some(root) => std::path::absolute(root).map_err(|e| Error::io("resolve", root, e))?,
        None => usual_root(standing)?,
    };
    let mut answers = Answers::default();
    namespace::probe(&mut answers)?;
    answers.trial(&["fs.writable"], |answers| try_directory(&root, answers))?;
    let writable = answers.is("fs.writable");
    let probed = if writable { existing(&root) } else { std::env::temp_dir() };
    let scratch =
        Scratch::create(&probed).map_err(|e| Error::io("create a directory in", &probed, e))?;
    if writable {
        filesystem::probe(&scratch, &mut answers)?;
    }
    overlay::probe(standing, &scratch, &mut answers)?;
    fuse::probe(standing, &scratch, &mut answers)?;
    idle::probe(&mut answers);
    try_drivers(&scratch, &mut answers)?;
    let prior = Registry::built_in().prior(&root);
    let (drivers, chosen) = verdict::decide(standing, &answers, &prior);
    Ok(Report::new(standing, (root, probed), answers, drivers, chosen))
}

/// The state directory of whoever asks.
pub fn state_directory() -> Result<PathBuf> {
    usual_root(Standing::now())
}

/// Opens every driver on a store of its own, on the filesystem of the state directory.
fn try_drivers(scratch: &Scratch, answers: &mut Answers) -> Result<()> {
    let root = scratch.dir("drivers").on("create a directory in", "the state directory")?;
    let keys = verdict::DRIVERS.map(|(_, key)| key);
    answers.trial(&keys, |answers| {
        let config = Config { root, ..Config::default() };
        for (name, refused) in Registry::built_in().try_all(&config) {
            if let Some((_, key)) = verdict::DRIVERS.iter().find(|(one, _)| *one == name) {
                answers.say(key, refused.is_none(), refused.unwrap_or_default());
            }
        }
    })
}

/// Whether a directory can be made there, as a trial: the filesystem may be one that never answers.
fn try_directory(root: &Path, answers: &mut Answers) {
    let dir = existing(root);
    match Scratch::create(&dir) {
        Ok(_) => answers.say("fs.writable", true, filesystem::name(&dir)),
        Err(error) => {
            answers.say(
                "fs.writable",
                false,
                format!("{}: {}", dir.display(), trial::reason(&error)),
            );
        }
    }
}

/// The state directory: `/var/lib/plyfs` for root, `$XDG_DATA_HOME/plyfs` for others, who are also
/// those that are root only in a namespace of their own.
fn usual_root(standing: Standing) -> Result<PathBuf> {
    let system = Path::new("/var/lib/plyfs");
    match standing {
        Standing::Root => return Ok(system.to_path_buf()),
        Standing::Inside if sys::probe::may_write(&existing(system)) => {
            return Ok(system.to_path_buf());
        }
        _ => {}
    }
    let data =
        std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::home_dir().filter(|home| home.is_absolute());
    match data.or_else(|| home().map(|home| home.join(".local/share"))) {
        Some(data) => Ok(data.join("plyfs")),
        None => Err(Error::invalid(
            "state directory",
            "neither XDG_DATA_HOME nor HOME names a directory",
        )),
    }
}

/// The directory itself, or the nearest one above it that exists.
fn existing(root: &Path) -> PathBuf {
    let found = root.ancestors().find(|path| path.is_dir());
    found.unwrap_or(Path::new("/")).to_path_buf()
}
