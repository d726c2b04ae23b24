//! Project quotas: what the directories of a layer hold is limited, and counted, by the filesystem (XFS, ext4).
//!
//! Each layer's directories are in a project of their own, which whatever is made in them inherits. Which one is written
//! nowhere but in the directories, and what is taken is the filesystem's own count: a project in which there is nothing is free,
//! whatever limits an earlier user left it. So nothing has to be undone after a crash. The first free number above that of the
//! home is taken, under a lock of all processes; numbers that the administrator has given names are left alone.
//!
//! Projects do not nest: where the home is in one that all in it inherits, layers stay in that and have no limits of their
//! own.

use std::collections::HashSet;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Context, Error, Result};
use crate::sys::quota::{Balance, Ledger, Project};
use crate::sys::{self, change, tree};

/// Numbers begin above this one where the home is in no project. Other programs begin at 1, and do not ask who uses what.
const BASE: u32 = 1_000_000;
/// Where administrators write down which numbers they use: `NUMBER:PATH` and `NAME:NUMBER` (projects(5), projid(5)).
const NAMED: [&str; 2] = ["/etc/projects", "/etc/projid"];
/// The lock that orders all processes. Where it cannot be had one in the home orders those of one store.
const LOCKS: [&str; 2] = ["/run/plyfs/quota.lock", ".lock"];

/// Limits of what a layer may take; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes.
    pub bytes: Option<u64>,
    /// Inodes.
    pub inodes: Option<u64>,
}

/// What a layer takes on disk, its parents not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of blocks, a file with several names once.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// The calls that this room needs of a filesystem.
trait Filesystem: Debug + Send + Sync {
    fn project(&self, dir: &Path) -> io::Result<Project>;
    fn set_project(&self, dir: &Path, id: u32) -> io::Result<()>;
    fn balance(&self, id: u32) -> io::Result<Balance>;
    fn next(&self, id: u32) -> io::Result<Option<(u32, Balance)>>;
    fn limit(&self, id: u32, quota: Quota) -> io::Result<()>;
}

impl Filesystem for Ledger {
    fn project(&self, dir: &Path) -> io::Result<Project> {
        sys::quota::project(dir)
    }

    fn set_project(&self, dir: &Path, id: u32) -> io::Result<()> {
        sys::quota::set_project(dir, id)
    }

    fn balance(&self, id: u32) -> io::Result<Balance> {
        Ledger::balance(self, id)
    }

    fn next(&self, id: u32) -> io::Result<Option<(u32, Balance)>> {
        Ledger::next(self, id)
    }

    fn limit(&self, id: u32, quota: Quota) -> io::Result<()> {
        Ledger::limit(self, id, quota.bytes, quota.inodes)
    }
}

/// The projects of the layers in one home.
#[derive(Clone, Debug)]
pub(crate) struct Projects {
    filesystem: Arc<dyn Filesystem>,
    /// Where the lock lies, in the order in which it is tried.
    locks: Vec<PathBuf>,
    /// The home's own project.
    home: u32,
}

/// Limits of a project, and what is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) limits: Quota,
    pub(crate) usage: Usage,
}

impl From<Balance> for State {
    fn from(balance: Balance) -> State {
        State {
            limits: Quota { bytes: balance.most_bytes, inodes: balance.most_inodes },
            usage: Usage { bytes: balance.bytes, inodes: balance.inodes },
        }
    }
}

impl Projects {
    /// Those in `home`, or why there can be none, with what to do.
    pub(crate) fn open(home: &Path) -> std::result::Result<Projects, String> {
        if !tree::has_initial_privilege() {
            return Err("project quota is for root of the host".to_owned());
        }
        let kind = crate::doctor::filesystem::name(home);
        let failed = |error: io::Error| format!("project quota on {kind}: {error}");
        let home = &home.canonicalize().map_err(failed)?;
        let ledger = Ledger::open(home).map_err(failed)?;
        if !ledger.is_enforced().map_err(failed)? {
            return Err(match kind.as_str() {
                "xfs" => {
                    "project quota is off; mount the xfs with prjquota, on Linux 5.14 or newer"
                        .to_owned()
                }
                "ext4" => "project quota is off; mount the ext4, made with -O quota,project, with \
                           prjquota, on Linux 5.14 or newer"
                    .to_owned(),
                _ => format!("{kind} has no project quota; xfs and ext4 mounted with prjquota do"),
            });
        }
        let own = sys::quota::project(home).map_err(failed)?;
        if own.inherited && own.id != 0 {
            return Err(format!(
                "{} is in project {}, and projects do not nest; take that off with chattr -P",
                home.display(),
                own.id
            ));
        }
        // Whoever may not set limits may not ask for those of others either.
        ledger.next(BASE).map_err(failed)?;
        let locks = LOCKS.map(|path| home.join(path)).into();
        Ok(Projects { filesystem: Arc::new(ledger), locks, home: own.id })
    }

    /// Puts the empty directories of one layer into a project that nobody uses, which has no limits.
    pub(crate) fn assign(&self, dirs: &[&Path]) -> Result<()> {
        let _lock = self.lock()?;
        let id =
            self.free().on("find a free project for", dirs.first().unwrap_or(&Path::new("")))?;
        for dir in dirs {
            self.filesystem.set_project(dir, id).on("set the project of", dir)?;
        }
        let Some(dir) = dirs.first() else { return Ok(()) };
        self.limit(dir, Quota::default())
    }

    /// The first number above the home's that nothing is in.
    fn free(&self) -> io::Result<u32> {
        let named = named();
        let mut id = if self.home == 0 { BASE } else { self.home };
        loop {
            id = id
                .checked_add(1)
                .filter(|id| *id != u32::MAX)
                .ok_or(io::ErrorKind::QuotaExceeded)?;
            if named.contains(&id) {
                continue;
            }
            match self.filesystem.next(id)? {
                Some((used, found)) if used == id && (found.inodes, found.bytes) != (0, 0) => {}
                _ => return Ok(id),
            }
        }
    }

    fn lock(&self) -> Result<File> {
        let mut last = Error::io("lock", "", io::ErrorKind::NotFound.into());
        for path in &self.locks {
            let dir = path.parent().unwrap_or(path);
            let made = change::make_dirs(dir, 0o700).and_then(|()| change::open_or_create(path));
            match made.and_then(|file| sys::lock_file(&file, true).map(|_| file)) {
                Ok(file) => return Ok(file),
                Err(error) => last = Error::io("lock", path, error),
            }
        }
        Err(last)
    }

    /// The project that a layer's directory has for itself.
    fn own(&self, dir: &Path) -> Result<Option<u32>> {
        let found = self.filesystem.project(dir).on("read the project of", dir)?;
        let own = found.inherited && ![0, self.home].contains(&found.id);
        Ok(own.then_some(found.id))
    }

    /// Limits of a layer's directory, and what is in it; `None` where it is in no project of its own.
    pub(crate) fn state(&self, dir: &Path) -> Result<Option<State>> {
        let Some(id) = self.own(dir)? else { return Ok(None) };
        let balance = self.filesystem.balance(id).on("read the quota of", dir)?;
        Ok(Some(State::from(balance)))
    }

    /// Limits a layer's directory, at once; one that is in no project of its own is left alone.
    pub(crate) fn limit(&self, dir: &Path, limits: Quota) -> Result<()> {
        match (self.own(dir)?, self.state(dir)?) {
            (Some(id), Some(state)) if state.limits != limits => {
                self.filesystem.limit(id, limits).on("set the quota of", dir)
            }
            _ => Ok(()),
        }
    }

    /// Takes the limits from a layer that goes. Its project is free when all in it has gone.
    pub(crate) fn release(&self, dir: &Path) -> Result<()> {
        match dir.symlink_metadata() {
            Ok(found) if found.is_dir() => self.limit(dir, Quota::default()),
            _ => Ok(()),
        }
    }
}

/// Puts a new directory into the project of another one, whatever is known of quotas here: between directories of two projects
/// nothing can be renamed.
pub(crate) fn adopt(from: &Path, to: &Path) -> Result<()> {
    // Others may not put anything into a project.
    if !tree::has_initial_privilege() {
        return Ok(());
    }
    let wanted = sys::quota::project(from).on("read the project of", from)?;
    if !wanted.inherited || wanted == sys::quota::project(to).on("read the project of", to)? {
        return Ok(());
    }
    sys::quota::set_project(to, wanted.id).on("set the project of", to)
}

/// Numbers that the administrator has given names or directories.
fn named() -> HashSet<u32> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    numbers(&NAMED.map(read).join("\n"))
}

/// Every word of a list that is a number; rather one too many than one too few.
fn numbers(text: &str) -> HashSet<u32> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.flat_map(|line| line.split(':')).filter_map(|word| word.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests;
