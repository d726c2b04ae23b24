//! The store: layers with records, on a driver.
//!
//! | in the root | what |
//! |---|---|
//! | `<driver>/` | what the driver keeps |
//! | `layers/<id>/layer.json` | the record of a layer ([`Record`]), beside it `tar-split.gz` |
//! | `pending/<id>` | work under way, in the room `pending` |
//! | `run/<id>.*` | who has it mounted, as [`Store::open`] is told: [`Counts`] |
//! | `merged/<id>@*` | where layers of additional stores are mounted, while they are |
//! | `merged/<id>` | where layers that are one directory are seen with other ids |
//! | `lock` | held while records are looked at and changed together; never during slow work |
//!
//! A record never names missing storage: storage is made first and removed last. A crash leaves at most a pending file,
//! which opening the store undoes (a layer half made or half filled) or finishes (one half removed). Storage without a
//! record and without a pending file is somebody else's: [`Store::unknown`] lists it, nothing deletes it by itself.

mod additional;
mod check;
mod dedup;
mod ids;
mod marks;
mod pending;
mod record;
mod recover;
mod template;
mod view;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::driver::registry::Registry;
use crate::driver::{self, Create, Driver, LayerId, Quota};
use crate::durable::{self, Staged};
use crate::error::{Context, Error, Result};
use crate::layer::apply::{Applied, Limits};
use crate::mount::count::Counts;
use crate::sys::{change, trash};
pub use additional::{Found, Listed};
pub use check::{Checked, Problem, Pruned};
pub use dedup::Deduped;
use pending::{Pending, Said, Work};
pub use record::{Content, ParentStore, Record};
use template::Sources;

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

impl Store {
    /// Opens the store at `root` on a driver whose home is there, and undoes or finishes what a crash left.
    pub fn open(root: &Path, run: &Path, driver: Arc<dyn Driver>) -> Result<Store> {
        let store = Store { root: root.to_path_buf(), run: run.to_path_buf(), driver };
        for dir in [store.layers(), store.pending()] {
            change::make_dirs(&dir, 0o700).on("create", &dir)?;
        }
        store.recover()?;
        store.keep_spares();
        Ok(store)
    }

    /// The driver.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// Makes a layer, empty or a copy of [`Create::template`].
    pub fn create(&self, id: &LayerId, parent: Option<&LayerId>, spec: &Create) -> Result<()> {
        let mut pending = self.begin(id)?;
        let seen = self.may_create(id, parent, spec).and_then(|seen| {
            pending.say(Work::Create, self.driver.name())?;
            Ok(seen)
        });
        let seen = match seen {
            Ok(seen) => seen,
            Err(error) => {
                pending.done()?;
                return Err(error);
            }
        };
        let store = seen.parent.as_ref().and_then(|parent| parent.place);
        let spec = Create { store, ..spec.clone() };
        let made = self.driver.create(id, parent, &spec);
        let made = made.and_then(|()| self.record(id, &seen, parent, &spec));
        self.settle(pending, id, Work::Create, made)
    }

    /// What it is made from, as it is now.
    fn may_create(&self, id: &LayerId, parent: Option<&LayerId>, spec: &Create) -> Result<Sources> {
        if self.find(id)?.is_some() || self.driver.exists(id)? {
            return Err(Error::Exists { kind: "layer", name: id.to_string() });
        }
        let place = self.driver.place(id);
        if place.symlink_metadata().is_ok() {
            let why = format!("{} is there, and is no layer of ours", place.display());
            return Err(Error::invalid(format!("layer '{id}'"), why));
        }
        // The name would not mean it any more.
        if let Ok(Some(hidden)) = self.theirs(id) {
            let users = self.users_theirs(&hidden).unwrap_or_default();
            if users > 0 {
                return Err(mounted(id, users));
            }
        }
        let mut seen = Sources::default();
        if let Some(parent) = parent {
            let found = self.at_rest(parent)?;
            found.record.may_be_below(parent)?;
            match found.place {
                // From now on its own directory is a lower one, without its work directory.
                None => {
                    self.note_turn(parent, &mut seen)?;
                    self.settle_names(parent)?;
                }
                Some(_) => self.may_show(&found)?,
            }
            seen.parent = Some(found);
        }
        if let Some(template) = &spec.template {
            seen.template = Some(self.may_copy(template, &mut seen, spec)?);
        }
        Ok(seen)
    }

    /// A layer that nobody changes.
    fn at_rest(&self, id: &LayerId) -> Result<Found> {
        match self.is_changing(id) {
            true => Err(changing(id)),
            false => self.at_rest_there(self.look(id)?),
        }
    }

    /// Whether somebody makes, fills or removes a layer, or a crash left that and it could not be cleared away. Who has
    /// announced nothing may not come to it; he does so under the lock, where it matters.
    fn is_changing(&self, id: &LayerId) -> bool {
        !matches!(Pending::of(&self.pending(), id), Ok(None))
    }

    /// Makes the record of a layer that has storage, whole. `seen` is what its parent and its template were when the storage
    /// was made.
    fn record(
        &self,
        id: &LayerId,
        seen: &Sources,
        parent: Option<&LayerId>,
        spec: &Create,
    ) -> Result<()> {
        let mut record = Record::new(id.as_str(), parent.map(LayerId::as_str), spec.read_only);
        record.label.clone_from(&spec.label);
        record.options.clone_from(&spec.options);
        record.parent_store = seen.parent.as_ref().and_then(|parent| self.parent_store(parent));
        // Before the lock, as everywhere: whoever mounts one of them may be at that for long.
        let _held = self.hold_sources(parent, seen, spec)?;
        let _lock = self.lock()?;
        // The parent may have been filled or removed meanwhile; once there is a record on it, it cannot be.
        if let Some(parent) = parent {
            if seen.parent.as_ref() != Some(&self.at_rest(parent)?) {
                return Err(changing(parent));
            }
        }
        self.record_template(&mut record, seen, spec)?;
        let (hidden, dir) = (self.hidden(), self.layers().join(id.as_str()));
        change::make_dir(&hidden, 0o700).on("mkdir", &hidden)?;
        let named = hidden.join(id.as_str());
        change::make_dir(&named, 0o700).on("mkdir", &named)?;
        self.share_split(&record, &named)?;
        record.write(&named)?;
        change::rename(&named, &dir).on("rename to", &dir)?;
        durable::sync_dir(&self.layers())?;
        change::remove_dir(&hidden).on("remove", &hidden)
    }

    /// Fills an empty read-only layer from a tar archive.
    pub fn apply(&self, id: &LayerId, archive: &mut dyn Read, limits: &Limits) -> Result<Applied> {
        let mut pending = self.begin(id)?;
        if let Err(error) = self.announce_apply(id, &mut pending) {
            pending.done()?;
            return Err(error);
        }
        let applied = self.apply_pending(id, archive, limits);
        self.settle(pending, id, Work::Apply, applied)
    }

    fn announce_apply(&self, id: &LayerId, pending: &mut Pending) -> Result<()> {
        let (_held, users) = self.hold(id)?;
        // Whoever is making a record on this layer ends that first, or sees that it is being filled.
        let _lock = self.lock()?;
        self.may_apply(id, users)?;
        // Whoever mounts it next sees that.
        pending.say(Work::Apply, self.driver.name())
    }

    fn may_apply(&self, id: &LayerId, users: u64) -> Result<()> {
        let record = self.get(id)?;
        let refuse = |why: &str| Err(Error::invalid(format!("layer '{id}'"), why));
        if !record.read_only {
            return refuse("is written through mounts; make one with --read-only");
        }
        if let Some(template) = &record.template {
            return refuse(&format!(
                "is a copy of layer '{template}', an archive fills an empty one"
            ));
        }
        if record.content.is_some() {
            return refuse("holds an archive already");
        }
        if users > 0 {
            return Err(mounted(id, users));
        }
        // After a failure it is made again, which takes its parent.
        self.lost_below(&Found { record, place: None }).map_or(Ok(()), Err)?;
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
            marks: Some(applied.marks.unwrap_or(record::NO_MARKS).to_owned()),
        });
        record.write(&dir)?;
        Ok(applied)
    }

    /// Changes the limits of a read-write layer: `size`, `inodes`, each a number or `none`; the others stay.
    pub fn limit(&self, id: &LayerId, options: &BTreeMap<String, String>) -> Result<Quota> {
        let pending = self.begin(id)?;
        let limited = self.limit_pending(id, options);
        pending.done()?;
        limited
    }

    fn limit_pending(&self, id: &LayerId, options: &BTreeMap<String, String>) -> Result<Quota> {
        let record = self.get(id)?;
        let limits = self.driver.quota(id)?.with(options)?;
        if record.read_only && !limits.is_none() {
            return Err(driver::no_limits());
        }
        self.driver.set_quota(id, limits)?;
        self.driver.quota(id)
    }

    /// Removes a layer that nothing is built on. When this returns the name is free.
    pub fn remove(&self, id: &LayerId) -> Result<()> {
        let (mut pending, left) = Pending::begin(&self.pending(), id)?;
        let undone = left.as_ref().map_or(Ok(()), |left| self.undo_left(id, left));
        let is_whole = undone.is_ok();
        // A layer that cannot be made empty again can still be removed.
        if !left.is_some_and(|left| left.work == Work::Apply && self.keeper_of(&left).is_none()) {
            undone?;
        }
        let gone = match self.unrecord(id, &mut pending) {
            Ok(gone) => gone,
            Err(error) => {
                if is_whole {
                    pending.done()?;
                }
                return Err(error);
            }
        };
        // From here on there is no way back: what stays is removed at the next start.
        durable::sync_dir(&self.layers())?;
        if let Err(error) = trash::delete(&self.layers(), &gone, None) {
            log::debug!("remove {}: {error}", self.layers().join(gone).display());
        }
        self.remove_storage(id)?;
        pending.done()?;
        self.keep_spares();
        Ok(())
    }

    /// What the next removal needs where there is no room.
    fn keep_spares(&self) {
        change::keep_spare(&self.root);
        if let Err(error) = self.counts() {
            log::debug!("{error}");
        }
    }

    /// Removes what a layer without a record holds, and what is known of its mounts.
    fn remove_storage(&self, id: &LayerId) -> Result<()> {
        self.driver.remove(id)?;
        if let Err(error) = Counts::removed(&self.run, id.as_str()) {
            log::debug!("layer '{id}': {error}");
        }
        Ok(())
    }

    /// Takes the record away, by one rename. Returns its last name.
    fn unrecord(&self, id: &LayerId, pending: &mut Pending) -> Result<OsString> {
        // Before the lock: whoever mounts it or takes a mount back may be at that for long.
        let (_held, users) = self.hold(id)?;
        let _lock = self.lock()?;
        self.is_there(id)?;
        if let Some(child) = self.child_of(id)? {
            let by = format!("layer '{child}', which lies on it; remove that first");
            return Err(Error::InUse { kind: "layer", name: id.to_string(), by });
        }
        if users > 0 {
            return Err(mounted(id, users));
        }
        driver::refuse_mounted(&self.driver.place(id), id)?;
        pending.say(Work::Remove, self.driver.name())?;
        let (dir, gone) = (self.layers().join(id.as_str()), self.hidden());
        change::rename(&dir, &gone).on("rename", &dir)?;
        Ok(gone.file_name().unwrap_or_default().to_owned())
    }

    /// Keeps others from changing a layer. What earlier work left of it is cleared away first.
    fn begin(&self, id: &LayerId) -> Result<Pending> {
        self.cleared(id, Pending::begin(&self.pending(), id)?)
    }

    fn cleared(&self, id: &LayerId, begun: (Pending, Option<Said>)) -> Result<Pending> {
        let (pending, left) = begun;
        if let Some(left) = left {
            self.undo_left(id, &left)?;
        }
        Ok(pending)
    }

    /// The record of a layer of ours that our driver keeps, or that is lost.
    pub fn get(&self, id: &LayerId) -> Result<Record> {
        let record = self.find(id)?.ok_or_else(|| self.not_ours(id))?;
        self.is_ours(id).map(|()| record)
    }

    /// Whether there is a layer that can be removed: also one whose record cannot be understood.
    fn is_there(&self, id: &LayerId) -> Result<()> {
        match self.get(id) {
            Err(Error::Corrupt { .. }) => self.is_ours(id),
            other => other.map(drop),
        }
    }

    /// Refuses a layer that another driver keeps.
    fn is_ours(&self, id: &LayerId) -> Result<()> {
        self.keeper(id)?.map_or(Ok(()), |name| Err(self.kept_by(id, name)))
    }

    fn kept_by(&self, id: &LayerId, name: &str) -> Error {
        let why =
            format!("kept by another driver than {}; use --driver {name}", self.driver.name());
        Error::invalid(format!("layer '{id}'"), why)
    }

    /// The driver that keeps a layer, if it is another one than ours.
    fn keeper(&self, id: &LayerId) -> Result<Option<&'static str>> {
        Ok(if self.driver.exists(id)? {
            None
        } else {
            Registry::built_in().keeper(&self.root, self.driver.home(), id)
        })
    }

    /// The record of a layer of ours, if there is one.
    pub fn find(&self, id: &LayerId) -> Result<Option<Record>> {
        Record::read(&self.layers().join(id.as_str()))
    }

    /// All records of ours, by name. One that cannot be understood is left out, with a warning: it is no reason not to tell the
    /// others.
    pub fn list(&self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for id in self.names()? {
            match self.find(&id) {
                Err(error @ Error::Corrupt { .. }) => log::warn!("{error}"),
                found => records.extend(found?),
            }
        }
        Ok(records)
    }

    /// The names of what has a directory for a record, sorted.
    fn names(&self) -> Result<Vec<LayerId>> {
        names_in(&self.layers())
    }

    /// A layer that lies on this one.
    fn child_of(&self, id: &LayerId) -> Result<Option<String>> {
        for child in self.names()? {
            let is_child = match self.find(&child) {
                Ok(record) => record.is_some_and(|x| {
                    x.parent.as_deref() == Some(id.as_str()) && x.parent_store.is_none()
                }),
                // The storage may still tell what a layer lies on whose record does not.
                Err(Error::Corrupt { .. }) => {
                    self.driver.parent(&child).is_ok_and(|parent| parent.as_ref() == Some(id))
                }
                Err(error) => return Err(error),
            };
            if is_child {
                return Ok(Some(child.to_string()));
            }
        }
        Ok(None)
    }

    /// Storage that no record names and nobody is working on.
    pub fn unknown(&self) -> Result<Vec<LayerId>> {
        let mut unknown = self.driver.list()?;
        unknown.retain(|id| !self.is_changing(id));
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

    /// A directory beside the records that is not taken for one.
    fn hidden(&self) -> PathBuf {
        self.layers().join(format!(".{:016x}", plyfs_fuse::sys::random_u64()))
    }

    fn lock(&self) -> Result<File> {
        driver::lock_root(&self.root)
    }

    fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    fn pending(&self) -> PathBuf {
        self.root.join("pending")
    }
}

/// The layers that have a directory for a record, sorted.
fn names_in(dir: &Path) -> Result<Vec<LayerId>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).on("list", dir)? {
        let name = entry.on("list", dir)?.file_name();
        names.extend(name.to_str().and_then(|name| LayerId::new(name).ok()));
    }
    names.sort();
    Ok(names)
}

fn mounted(id: &LayerId, users: u64) -> Error {
    let by = format!("its mount, {users} times; unmount it first");
    Error::InUse { kind: "layer", name: id.to_string(), by }
}

fn changing(id: &LayerId) -> Error {
    let by = "another plyfs process that changes it".to_owned();
    Error::InUse { kind: "layer", name: id.to_string(), by }
}
