//! The store: layers with records, on a driver.
//!
//! | in the root | what |
//! |---|---|
//! | `<driver>/` | what the driver keeps |
//! | `layers/<id>/layer.json` | the record of a layer ([`Record`]), beside it `tar-split.gz` |
//! | `pending/<id>` | work under way, in the room `pending` |
//! | `lock` | held while records are looked at and changed together; never during slow work |
//!
//! A record never names missing storage: storage is made first and removed last. A crash leaves at most a pending file,
//! which opening the store undoes (a layer half made or half filled) or finishes (one half removed). Storage without a
//! record and without a pending file is somebody else's: [`Store::unknown`] lists it, nothing deletes it by itself.

mod check;
mod pending;
mod record;
mod view;

use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::driver::{Create, Driver, LayerId};
use crate::durable::{self, Staged};
use crate::error::{Context, Error, Result};
use crate::layer::apply::{Applied, Limits};
use crate::sys;
pub use check::{Checked, Problem, Pruned};
use pending::{Pending, Work};
pub use record::{Content, Record};

/// The record of how a layer's archive was laid out, beside the layer's record.
const SPLIT: &str = "tar-split.gz";

/// Layers, each with a record and storage.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    /// Where mounts are counted; it need not outlive a boot.
    run: PathBuf,
    driver: Arc<dyn Driver>,
}

/// The store's lock, while it is held.
struct Locked(#[allow(dead_code, reason = "the lock ends with the descriptor")] File);

impl Store {
    /// Opens the store at `root` on a driver whose home is there, and undoes or finishes what a crash left.
    pub fn open(root: &Path, run: &Path, driver: Arc<dyn Driver>) -> Result<Store> {
        let store = Store { root: root.to_path_buf(), run: run.to_path_buf(), driver };
        for dir in [store.layers(), store.pending()] {
            make_private(&dir)?;
        }
        store.recover()?;
        Ok(store)
    }

    /// The driver.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// Makes an empty layer.
    pub fn create(&self, id: &LayerId, parent: Option<&LayerId>, spec: &Create) -> Result<()> {
        let pending = self.begin(id, Work::Create)?;
        if let Err(error) = self.may_create(id, parent) {
            pending.done()?;
            return Err(error);
        }
        let made = self.driver.create(id, parent, spec);
        let made = made.and_then(|()| self.record(id, parent, spec));
        self.settle(pending, id, Work::Create, made)
    }

    fn may_create(&self, id: &LayerId, parent: Option<&LayerId>) -> Result<()> {
        if self.find(id)?.is_some() || self.driver.exists(id)? {
            return Err(Error::Exists { kind: "layer", name: id.to_string() });
        }
        parent.map_or(Ok(()), |parent| self.get(parent).map(drop))
    }

    /// Makes the record of a layer that has storage, whole.
    fn record(&self, id: &LayerId, parent: Option<&LayerId>, spec: &Create) -> Result<()> {
        let mut record = Record::new(id.as_str(), parent.map(LayerId::as_str), spec.read_only);
        record.label.clone_from(&spec.label);
        record.options.clone_from(&spec.options);
        let _lock = self.lock()?;
        // The parent may have been removed meanwhile; from here on it cannot.
        parent.map_or(Ok(()), |parent| self.get(parent).map(drop))?;
        let (hidden, dir) = (self.hidden(), self.layers().join(id.as_str()));
        DirBuilder::new().mode(0o700).create(&hidden).on("mkdir", &hidden)?;
        let named = hidden.join(id.as_str());
        DirBuilder::new().mode(0o700).create(&named).on("mkdir", &named)?;
        record.write(&named)?;
        std::fs::rename(&named, &dir).on("rename to", &dir)?;
        durable::sync_dir(&self.layers())?;
        std::fs::remove_dir(&hidden).on("remove", &hidden)
    }

    /// Fills an empty read-only layer from a tar archive.
    pub fn apply(&self, id: &LayerId, archive: &mut dyn Read, limits: &Limits) -> Result<Applied> {
        let pending = self.begin(id, Work::Apply)?;
        if let Err(error) = self.may_apply(id) {
            pending.done()?;
            return Err(error);
        }
        let applied = self.apply_pending(id, archive, limits);
        self.settle(pending, id, Work::Apply, applied)
    }

    fn may_apply(&self, id: &LayerId) -> Result<()> {
        let record = self.get(id)?;
        let refuse = |why: &str| Err(Error::invalid(format!("layer '{id}'"), why));
        if !record.read_only {
            return refuse("is written through mounts; make one with --read-only");
        }
        if record.content.is_some() {
            return refuse("holds an archive already");
        }
        match self.child_of(id)? {
            Some(child) => refuse(&format!("has layer '{child}' on top of it")),
            None => Ok(()),
        }
    }

    fn apply_pending(
        &self,
        id: &LayerId,
        archive: &mut dyn Read,
        limits: &Limits,
    ) -> Result<Applied> {
        let dir = self.layers().join(id.as_str());
        let split = dir.join(SPLIT);
        let mut staged = Staged::beside(&split)?;
        let applied = self.driver.apply(id, archive, limits, Some(&mut staged.file))?;
        staged.publish(&split)?;
        let _lock = self.lock()?;
        let mut record = self.get(id)?;
        record.content = Some(Content {
            diff_id: applied.diff_id.clone(),
            digest: applied.digest.clone(),
            size: applied.size,
            entries: applied.entries,
        });
        record.write(&dir)?;
        Ok(applied)
    }

    /// Removes a layer that nothing is built on. When this returns the name is free.
    pub fn remove(&self, id: &LayerId) -> Result<()> {
        let pending = self.begin(id, Work::Remove)?;
        if let Err(error) = self.unrecord(id) {
            pending.done()?;
            return Err(error);
        }
        // From here on there is no way back: what stays is removed at the next start.
        self.driver.remove(id)?;
        pending.done()
    }

    /// Takes the record away, by one rename.
    fn unrecord(&self, id: &LayerId) -> Result<()> {
        let _lock = self.lock()?;
        self.get(id)?;
        if let Some(child) = self.child_of(id)? {
            let by = format!("layer '{child}', which lies on it; remove that first");
            return Err(Error::InUse { kind: "layer", name: id.to_string(), by });
        }
        // A record whose storage is lost can be removed too.
        let users = if self.driver.exists(id)? { self.users(id)? } else { 0 };
        if users > 0 {
            let by = format!("its mount, {users} times; unmount it first");
            return Err(Error::InUse { kind: "layer", name: id.to_string(), by });
        }
        let (dir, gone) = (self.layers().join(id.as_str()), self.hidden());
        std::fs::rename(&dir, &gone).on("rename", &dir)?;
        durable::sync_dir(&self.layers())?;
        if let Err(error) = std::fs::remove_dir_all(&gone) {
            log::debug!("remove {}: {error}", gone.display());
        }
        Ok(())
    }

    /// Announces work on a layer. What earlier work left of it is cleared away first.
    fn begin(&self, id: &LayerId, work: Work) -> Result<Pending> {
        let (mut pending, left) = Pending::begin(&self.pending(), id, work)?;
        if let Some(left) = left {
            self.undo(id, left)?;
            pending.say(work)?;
        }
        Ok(pending)
    }

    /// The record of a layer.
    pub fn get(&self, id: &LayerId) -> Result<Record> {
        self.find(id)?.ok_or_else(|| Error::NotFound { kind: "layer", name: id.to_string() })
    }

    /// The record of a layer, if there is one.
    pub fn find(&self, id: &LayerId) -> Result<Option<Record>> {
        Record::read(&self.layers().join(id.as_str()))
    }

    /// All records, by name.
    pub fn list(&self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for id in self.names()? {
            records.extend(self.find(&id)?);
        }
        Ok(records)
    }

    /// The names of what has a directory for a record, sorted.
    fn names(&self) -> Result<Vec<LayerId>> {
        let dir = self.layers();
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&dir).on("list", &dir)? {
            let name = entry.on("list", &dir)?.file_name();
            names.extend(name.to_str().and_then(|name| LayerId::new(name).ok()));
        }
        names.sort();
        Ok(names)
    }

    /// A layer that lies on this one.
    fn child_of(&self, id: &LayerId) -> Result<Option<String>> {
        let child = self.list()?.into_iter().find(|x| x.parent.as_deref() == Some(id.as_str()));
        Ok(child.map(|record| record.id))
    }

    /// Storage that no record names and nobody is working on.
    pub fn unknown(&self) -> Result<Vec<LayerId>> {
        let mut unknown = self.driver.list()?;
        unknown.retain(|id| !self.pending().join(id.as_str()).exists());
        let mut result = Vec::new();
        for id in unknown {
            match self.find(&id) {
                Ok(None) => result.push(id),
                Ok(Some(_)) | Err(Error::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(result)
    }

    /// Ends work on a layer, and undoes it after an error.
    fn settle<T>(
        &self,
        pending: Pending,
        id: &LayerId,
        work: Work,
        result: Result<T>,
    ) -> Result<T> {
        let undone = if result.is_ok() { Ok(()) } else { self.undo(id, work) };
        match undone.and_then(|()| pending.done()) {
            Ok(()) => {}
            Err(error) => log::warn!("layer '{id}': {error}; the next start tries again"),
        }
        result
    }

    /// Undoes or finishes what was left of the work on a layer.
    fn undo(&self, id: &LayerId, work: Work) -> Result<()> {
        let record = self.find(id)?;
        match (work, record) {
            (Work::Create | Work::Remove, None) => self.driver.remove(id),
            (Work::Apply, Some(record)) if record.content.is_none() => {
                self.clear_split(id)?;
                let parent = record.parent.as_deref().map(LayerId::new).transpose()?;
                let spec = Create {
                    read_only: record.read_only,
                    label: record.label,
                    options: record.options,
                };
                self.driver.remove(id)?;
                self.driver.create(id, parent.as_ref(), &spec)
            }
            _ => Ok(()),
        }
    }

    fn clear_split(&self, id: &LayerId) -> Result<()> {
        let path = self.layers().join(id.as_str()).join(SPLIT);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            other => other.on("remove", &path),
        }
    }

    fn recover(&self) -> Result<()> {
        self.clear_hidden()?;
        for (id, work, pending) in Pending::left(&self.pending())? {
            log::info!("layer '{id}': what a crash left of its {work:?} is cleared away");
            self.undo(&id, work)?;
            pending.done()?;
        }
        for done in self.driver.sweep()? {
            log::info!("{done}");
        }
        Ok(())
    }

    /// Records that never got their name, or have it no more. They are made and removed under the lock.
    fn clear_hidden(&self) -> Result<()> {
        let (_lock, dir) = (self.lock()?, self.layers());
        for entry in std::fs::read_dir(&dir).on("list", &dir)? {
            let path = entry.on("list", &dir)?.path();
            if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
                std::fs::remove_dir_all(&path).on("remove", &path)?;
            }
        }
        Ok(())
    }

    /// A directory beside the records that is not taken for one.
    fn hidden(&self) -> PathBuf {
        self.layers().join(format!(".{:016x}", plyfs_fuse::sys::random_u64()))
    }

    fn lock(&self) -> Result<Locked> {
        let path = self.root.join("lock");
        let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = open.on("open", &path)?;
        sys::lock_file(&file, true).on("lock", &path)?;
        Ok(Locked(file))
    }

    fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    fn pending(&self) -> PathBuf {
        self.root.join("pending")
    }
}

/// A directory that only we look into.
fn make_private(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).on("mkdir", path)
}
