//! A directory whose entries appear and go whole: what is being made and what is being deleted has names of its own, which
//! no layer can have.
//!
//! Several processes may work in it, each on layers of its own, and each takes part in the lock `.lock` while it makes
//! something that has no name yet. So whoever gets the lock alone knows that everything unfinished was left by a crash.

use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::LayerId;
use super::layout::names;
use super::options::Sync;
use crate::error::{Context, Error, Result};
use crate::quota::Projects;
use crate::sys::{change, publish, trash};

const NEW: &str = ".new-";
const GONE: &str = ".gone-";
/// The lock that all who make something take part in.
pub(super) const LOCK: &str = ".lock";
/// How long a removal may delete before it leaves the rest to [`trash::finish`], or to a sweep.
const PATIENCE: Duration = Duration::from_millis(5);

/// The directory.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    dir: PathBuf,
    /// The projects of what is in it, or why it has none.
    projects: std::result::Result<Projects, String>,
    /// What of an entry is in a project; empty for all of it.
    limited: &'static str,
    /// Nothing in it is ever changed by us.
    theirs: bool,
    /// How the content of layers is made to last.
    sync: Sync,
}

impl Shelf {
    /// Opens it, made when it is missing. Nothing in it can be limited, and `why` says why.
    pub(super) fn open(dir: PathBuf, why: &str) -> Result<Shelf> {
        change::make_dirs(&dir, 0o710).on("create", &dir)?;
        Ok(Shelf {
            dir,
            projects: Err(why.to_owned()),
            limited: "",
            theirs: false,
            sync: Sync::default(),
        })
    }

    /// That of another store, which is only read.
    pub(super) fn reader(dir: PathBuf) -> Shelf {
        let why = "another store's, which nothing is changed in".to_owned();
        Shelf { dir, projects: Err(why), limited: "", theirs: true, sync: Sync::default() }
    }

    /// Opens it, made when it is missing. `limited` in an entry, all of it if that is empty, may be in a project, whose limits
    /// go before it does.
    pub(super) fn with_projects(dir: PathBuf, limited: &'static str) -> Result<Shelf> {
        change::make_dirs(&dir, 0o710).on("create", &dir)?;
        let projects = Projects::open(&dir);
        Ok(Shelf { dir, projects, limited, theirs: false, sync: Sync::default() })
    }

    /// The same; the content of layers is made to last so.
    pub(super) fn synced(self, sync: Sync) -> Shelf {
        Shelf { sync, ..self }
    }

    /// How the content of layers is made to last.
    pub(super) fn sync(&self) -> Sync {
        self.sync
    }

    /// The projects of what is in it, or why it has none, with what to do.
    pub(super) fn projects(&self) -> std::result::Result<&Projects, &str> {
        self.projects.as_ref().map_err(String::as_str)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a layer is, or would be.
    pub(super) fn at(&self, id: &LayerId) -> PathBuf {
        self.dir.join(id.as_str())
    }

    /// Makes what `make` makes at the path it is given appear as `id`; nothing after an error.
    pub(super) fn publish(
        &self,
        id: &LayerId,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        if self.at(id).symlink_metadata().is_ok() {
            return Err(Error::Exists { kind: "layer", name: id.to_string() });
        }
        let _working = self.work()?;
        let new = self.name(NEW)?;
        let done = make(&new).and_then(|()| match publish::rename_new(&new, &self.at(id)) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Err(Error::Exists { kind: "layer", name: id.to_string() })
            }
            other => other.on("rename", &new),
        });
        match done {
            Ok(()) => publish::sync_dir(&self.dir).on("sync", &self.dir),
            Err(error) => {
                self.delete(&new)?;
                Err(error)
            }
        }
    }

    /// Replaces the directory at `path`, which is on the same filesystem, by what `make` makes; as it was after an error.
    pub(super) fn replace<T>(
        &self,
        path: &Path,
        make: impl FnOnce(&Path) -> Result<T>,
    ) -> Result<T> {
        let _working = self.work()?;
        let new = self.name(NEW)?;
        let made = make(&new).and_then(|made| {
            self.sync.content(&new)?;
            match publish::exchange(&new, path) {
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    // A crash in between leaves nothing by that name, which whoever replaces it has announced.
                    let gone = self.name(GONE)?;
                    change::rename(path, &gone).on("rename", path)?;
                    change::rename(&new, path).on("rename", &new)?;
                    change::rename(&gone, &new).on("rename", &gone)?;
                }
                other => other.on("rename", &new)?,
            }
            publish::sync_dir(path.parent().unwrap_or(path)).on("sync", path)?;
            Ok(made)
        });
        // All of it: what is replaced may share files with what has come, whose names would be counted too.
        if let Err(error) = self.delete(&new) {
            log::warn!("{error}");
        }
        made
    }

    /// Puts the layer out of sight, of sweeps too, and deletes what there is time for.
    pub(super) fn remove(&self, id: &LayerId) -> Result<()> {
        let dir = self.at(id);
        if dir.symlink_metadata().is_err() {
            return Ok(());
        }
        self.refuse_theirs()?;
        super::refuse_mounted(&dir, id)?;
        let (gone, hold) = (self.name(GONE)?, self.hold(&dir)?);
        let working = self.work()?;
        change::rename(&dir, &gone).on("rename", &dir)?;
        publish::sync_dir(&self.dir).on("sync", &self.dir)?;
        drop(working);
        self.begin_to_delete(&gone, hold)
    }

    /// The layers that `is_layer` knows, sorted.
    pub(super) fn list(&self, is_layer: impl Fn(&LayerId) -> Result<bool>) -> Result<Vec<LayerId>> {
        let mut layers = Vec::new();
        for id in names(&self.dir)?.iter().filter_map(|name| LayerId::new(name).ok()) {
            if is_layer(&id)? {
                layers.push(id);
            }
        }
        layers.sort();
        Ok(layers)
    }

    /// Deletes what was never finished and what is removed, but what another process is deleting already; a line for each.
    /// `mend` puts other things right meanwhile.
    pub(super) fn sweep(
        &self,
        mend: impl FnOnce(&mut Vec<String>) -> Result<()>,
    ) -> Result<Vec<String>> {
        let mut done = Vec::new();
        if let Some(_alone) = self.alone()? {
            for name in names(&self.dir)?.iter().filter(|name| name.starts_with(NEW)) {
                let from = self.dir.join(name);
                change::rename(&from, &self.name(GONE)?).on("rename", &from)?;
            }
            mend(&mut done)?;
        }
        trash::finish(Some(&self.dir)).on("delete what is removed from", &self.dir)?;
        for name in names(&self.dir)?.iter().filter(|name| name.starts_with(GONE)) {
            let path = self.dir.join(name);
            // Something that is no directory cannot be locked, and needs not be.
            if matches!(self.hold(&path), Ok(None)) {
                continue;
            }
            // One that cannot be deleted is no reason to keep the others.
            if let Err(error) = self.delete(&path) {
                log::warn!("{error}; the next start tries again");
                continue;
            }
            done.push(format!(
                "deleted what was left of something removed or never finished: {name}"
            ));
        }
        Ok(done)
    }

    /// Keeps others from taking what we are making for something left, as long as the value lives.
    pub(super) fn work(&self) -> Result<File> {
        let file = self.lock_file()?;
        publish::lock_shared(&file).on("lock", self.dir.join(LOCK))?;
        Ok(file)
    }

    /// Keeps others from making anything; nothing when somebody is at it.
    fn alone(&self) -> Result<Option<File>> {
        let file = self.lock_file()?;
        let locked = publish::try_lock(&file).on("lock", self.dir.join(LOCK))?;
        Ok(locked.then_some(file))
    }

    fn lock_file(&self) -> Result<File> {
        self.refuse_theirs()?;
        let path = self.dir.join(LOCK);
        change::open_or_create(&path).on("open", &path)
    }

    fn refuse_theirs(&self) -> Result<()> {
        match self.theirs {
            true => Err(Error::invalid(self.dir.display().to_string(), "is only read")),
            false => Ok(()),
        }
    }

    /// Takes the limits from what goes. Those that stay are nobody's when it has gone.
    fn release(&self, path: &Path) {
        let Ok(projects) = &self.projects else { return };
        let inner = path.join(self.limited);
        let dir = if self.limited.is_empty() { path } else { &inner };
        if let Err(error) = projects.release(dir) {
            log::warn!("{error}");
        }
    }

    fn name(&self, prefix: &str) -> Result<PathBuf> {
        let name = publish::random_name(16).on("getrandom", "")?;
        Ok(self.dir.join(format!("{prefix}{name}")))
    }

    /// Keeps others from deleting the directory; nothing when somebody is at it already.
    fn hold(&self, path: &Path) -> Result<Option<trash::Hold>> {
        let name = path.file_name().unwrap_or(OsStr::new(""));
        trash::hold(&self.dir, name).on("lock", path)
    }

    fn delete(&self, path: &Path) -> Result<()> {
        self.release(path);
        let name = path.file_name().unwrap_or(OsStr::new(""));
        trash::delete(&self.dir, name, None).map(drop).on("delete", path)
    }

    /// Deletes what there is time for; the rest is left to [`trash::finish`], or to a sweep.
    fn begin_to_delete(&self, path: &Path, hold: Option<trash::Hold>) -> Result<()> {
        self.release(path);
        let Some(hold) = hold else { return Ok(()) };
        let name = path.file_name().unwrap_or(OsStr::new(""));
        trash::begin(&self.dir, name, Instant::now() + PATIENCE, hold).on("delete", path)
    }
}
