//! Layers of additional stores: seen like our own, and lain on, but never changed. A name of ours hides theirs; of two of them the
//! first that was given counts.
//!
//! A record of ours that lies on one of theirs says which layer that was, not only its name: the stores are looked through at each
//! use, so one may be found at another place, and a layer that was made anew under the name is not taken for it.

use std::hash::{Hash, Hasher};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::marks;
use super::record::{NO_MARKS, ParentStore};
use super::view::{asked, take_part};
use super::{Record, Store, names_in};
use crate::driver::{Additional, Driver, LayerId, MountOptions, Parts};
use crate::error::{Context, Error, Result};
use crate::mount::plan::Mount;
use crate::sys::{change, tree};

/// How many layers are followed downwards at most: more than lie on each other, in a ring too.
const DEEPEST: usize = 4096;

/// The driver whose mounts the kernel shows.
const OVERLAY: &str = "overlay2";

/// A layer, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What is known of it.
    pub record: Record,
    /// The additional store that it is in, by its place; none for ours.
    pub(super) place: Option<usize>,
}

/// A layer in a list of those of several stores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// What is known of it.
    #[serde(flatten)]
    pub record: Record,
    /// The root of the store that it is in.
    pub store: PathBuf,
}

impl Found {
    pub(super) fn id(&self) -> Result<LayerId> {
        LayerId::new(&self.record.id)
    }
}

impl Store {
    /// The layer that a name means: ours, else the first in the additional stores.
    pub fn look(&self, id: &LayerId) -> Result<Found> {
        let found = match self.find(id)? {
            Some(record) => self.is_ours(id).map(|()| Some(Found { record, place: None }))?,
            None => self.theirs(id)?,
        };
        found.ok_or_else(|| Error::NotFound { kind: "layer", name: id.to_string() })
    }

    /// All layers that are seen, by name.
    pub fn list_all(&self) -> Result<Vec<Listed>> {
        let ours = self.list()?.into_iter();
        let mut list: Vec<Listed> =
            ours.map(|record| Listed { record, store: self.root.clone() }).collect();
        for (place, other) in self.others().iter().enumerate() {
            for id in names_in(&layers(other))? {
                if list.iter().any(|one| one.record.id == id.as_str()) {
                    continue;
                }
                match self.read_theirs(place, &id) {
                    Ok(found) => {
                        let store = other.root.clone();
                        list.extend(found.map(|record| Listed { record, store }));
                    }
                    Err(error) => log::warn!("additional store {}: {error}", other.root.display()),
                }
            }
        }
        list.sort_by(|a, b| a.record.id.cmp(&b.record.id));
        Ok(list)
    }

    /// The root of the store that a layer is in.
    pub fn root_of(&self, found: &Found) -> &Path {
        self.other(found).map_or(&self.root, |other| &other.root)
    }

    /// The driver that reads a layer.
    pub fn driver_of(&self, found: &Found) -> &dyn Driver {
        self.other(found).map_or(&*self.driver, |other| &*other.driver)
    }

    /// Whether a layer is in an additional store.
    pub fn is_theirs(&self, found: &Found) -> bool {
        found.place.is_some()
    }

    /// Facts about a layer that programs read. Of one that is not ours there is only what it is made of.
    pub fn metadata(&self, found: &Found) -> Result<Vec<(&'static str, String)>> {
        let (driver, id) = (self.driver_of(found), found.id()?);
        if found.place.is_none() {
            return self.explained(found, driver.metadata(&id));
        }
        let parts = self.explained(found, driver.parts(&id))?;
        let dirs = std::iter::once(&parts.own).chain(&parts.below);
        let dirs: Vec<String> = dirs.map(|dir| dir.display().to_string()).collect();
        Ok(vec![("LowerDir", dirs.join(":"))])
    }

    pub(super) fn others(&self) -> &[Additional] {
        self.driver.additional()
    }

    fn other(&self, found: &Found) -> Option<&Additional> {
        found.place.and_then(|place| self.others().get(place))
    }

    /// The directory of a layer's record.
    pub(super) fn dir_of(&self, found: &Found) -> PathBuf {
        self.root_of(found).join("layers").join(&found.record.id)
    }

    /// The first layer of that name in the additional stores.
    pub(super) fn theirs(&self, id: &LayerId) -> Result<Option<Found>> {
        for place in 0..self.others().len() {
            if let Some(record) = self.read_theirs(place, id)? {
                return Ok(Some(Found { record, place: Some(place) }));
            }
        }
        Ok(None)
    }

    /// The record there; none too where the storage is another driver's.
    fn read_theirs(&self, place: usize, id: &LayerId) -> Result<Option<Record>> {
        let Some(other) = self.others().get(place) else { return Ok(None) };
        let record = Record::read(&layers(other).join(id.as_str()))?;
        Ok(if other.driver.exists(id)? { record } else { None })
    }

    /// Why a layer that is not ours cannot be changed.
    pub(super) fn not_ours(&self, id: &LayerId) -> Error {
        match self.theirs(id) {
            Ok(Some(found)) => {
                let root = self.root_of(&found).display();
                let why = format!("is in the additional store {root}, which is only read");
                Error::invalid(format!("layer '{id}'"), why)
            }
            Ok(None) => Error::NotFound { kind: "layer", name: id.to_string() },
            Err(error) => error,
        }
    }

    /// A layer of theirs that nobody changes any more; of others nobody keeps us from seeing half of it.
    pub(super) fn at_rest_there(&self, found: Found) -> Result<Found> {
        if found.place.is_none() || found.record.read_only && found.record.content.is_some() {
            return Ok(found);
        }
        let root = self.root_of(&found).display();
        let why = format!(
            "may be changed in the additional store {root}; only what was filled from an archive can be used"
        );
        Err(Error::invalid(format!("layer '{}'", found.record.id), why))
    }

    /// What a record says of a parent.
    pub(super) fn parent_store(&self, parent: &Found) -> Option<ParentStore> {
        let other = self.other(parent)?;
        let diff_id = parent.record.content.as_ref().map(|content| content.diff_id.clone());
        Some(ParentStore { root: other.root.clone(), created: parent.record.created, diff_id })
    }

    /// The parent of a layer.
    pub(super) fn parent_of(&self, found: &Found) -> Result<Option<Found>> {
        let Some(parent) = &found.record.parent else { return Ok(None) };
        let id = LayerId::new(parent)?;
        let Some(wanted) = &found.record.parent_store else {
            let record = match found.place {
                None => self.find(&id)?,
                Some(place) => self.read_theirs(place, &id)?,
            };
            return Ok(record.map(|record| Found { record, place: found.place }));
        };
        for place in 0..self.others().len() {
            match self.read_theirs(place, &id) {
                Ok(Some(record)) if wanted.is(&record) => {
                    return Ok(Some(Found { record, place: Some(place) }));
                }
                Ok(_) => {}
                // Another store may have it.
                Err(error) => log::warn!("{error}"),
            }
        }
        let (child, root) = (&found.record.id, wanted.root.display());
        let why = format!(
            "lies on '{parent}' of the additional store {root}, which is not there; name where that store is now with \
             --storage-opt additionalimagestore=DIR"
        );
        Err(Error::invalid(format!("layer '{child}'"), why))
    }

    /// The additional store that a record's parent is in.
    pub(super) fn place_of_parent(&self, record: &Record) -> Result<Option<usize>> {
        if record.parent_store.is_none() {
            return Ok(None);
        }
        let parent = self.parent_of(&Found { record: record.clone(), place: None })?;
        Ok(parent.and_then(|parent| parent.place))
    }

    /// Why the additional store that a layer lies on, or one below it, cannot be used; nothing where all are there.
    pub(super) fn lost_below(&self, found: &Found) -> Option<Error> {
        let mut found = found.clone();
        for _ in 0..DEEPEST {
            match self.parent_of(&found) {
                Ok(Some(parent)) => found = parent,
                Ok(None) => return None,
                Err(error) => return Some(error),
            }
        }
        None
    }

    /// Whether a layer of theirs would be seen as its store shows it: marks in attributes that a mount of ours does not look at
    /// would let deleted files be seen again.
    pub(super) fn may_show(&self, found: &Found) -> Result<()> {
        self.lost_below(found).map_or(Ok(()), Err)?;
        let (mut next, root) = (Some(found.clone()), tree::has_initial_privilege());
        while let Some(found) = next {
            let noted = found.record.content.as_ref().and_then(|content| content.marks.clone());
            let has = if noted.is_some() { "has" } else { "may have" };
            let marks = noted.map_or_else(|| self.seen_marks(&found), Ok)?;
            let why = match marks.as_str() {
                "trusted" if !root => "only root of the host reads; fill it anew as this user",
                // Our own overlay looks at both.
                "user" if root && self.driver.name() == OVERLAY => {
                    "the kernel does not look at for root; use --driver fuse-overlay"
                }
                _ => {
                    next = self.parent_of(&found)?;
                    continue;
                }
            };
            let (what, store) = (format!("layer '{}'", found.record.id), self.root_of(&found));
            let why = format!("of {} {has} deletions in attributes that {why}", store.display());
            return Err(Error::unsupported(what, why));
        }
        Ok(())
    }

    /// The same of a layer whose record does not tell it, as nobody noted that when it was filled: its directories do. What
    /// only root of the host sees may be there in what is not this user's.
    fn seen_marks(&self, found: &Found) -> Result<String> {
        let parts = self.driver_of(found).parts(&found.id()?);
        let Parts { own, below } = self.explained(found, parts)?;
        let marks = match below.is_empty() {
            true => None,
            false => marks::seen(&own)?,
        };
        Ok(marks.unwrap_or(NO_MARKS).to_owned())
    }

    /// The layers of additional stores that ours lie on, each once.
    pub(super) fn lain_on(&self) -> Result<Vec<Found>> {
        let mut found: Vec<Found> = Vec::new();
        for record in self.list()? {
            let mut child = Found { record, place: None };
            // What lies below one that is known is known too.
            while let Ok(Some(parent)) = self.parent_of(&child) {
                // One of ours has its own turn.
                if parent.place.is_none() || found.contains(&parent) {
                    break;
                }
                found.push(parent.clone());
                child = parent;
            }
        }
        Ok(found)
    }

    /// The same result; a failure for which a lost store is the reason says that.
    pub(super) fn explained<T>(&self, found: &Found, result: Result<T>) -> Result<T> {
        result.map_err(|error| self.lost_below(found).unwrap_or(error))
    }

    /// Where a layer of theirs is seen, and the name that its users are counted by.
    fn shown(&self, found: &Found, options: &MountOptions) -> Result<(String, Mount)> {
        let mut hash = std::collections::hash_map::DefaultHasher::new();
        self.root_of(found).hash(&mut hash);
        // No layer has such a name.
        let name = format!("{}@{:016x}", found.record.id, hash.finish());
        let target = self.root.join("merged").join(&name);
        let mut options = options.clone();
        options.read_only = true;
        options.label = options.label.or_else(|| found.record.label.clone());
        let mount = self.driver_of(found).shown(&found.id()?, &options, target);
        Ok((name, self.explained(found, mount)?))
    }

    pub(super) fn mount_theirs(&self, found: Found, options: &MountOptions) -> Result<PathBuf> {
        let found = self.at_rest_there(found)?;
        let (name, mount) = self.shown(&found, options)?;
        self.may_show(&found)?;
        let dir = self.root.join("merged");
        change::make_dirs(&dir, 0o700).on("create", &dir)?;
        take_part(&self.counts()?.hold(&name)?, &found.id()?, &mount, &asked(options))
    }

    /// Takes a mount of a layer of theirs back, also where its store is not there any more.
    pub(super) fn unmount_theirs(&self, id: &LayerId) -> Result<()> {
        let (dir, counts) = (self.root.join("merged"), self.counts()?);
        let entries = match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(not_mounted(id)),
            other => other.on("list", &dir)?,
        };
        for entry in entries {
            let name = entry.on("list", &dir)?.file_name();
            let name = name.to_str().unwrap_or_default();
            if name.split_once('@').is_none_or(|(own, _)| own != id.as_str()) {
                continue;
            }
            match counts.unmount(name, &dir.join(name)) {
                Err(Error::NotFound { .. }) => {}
                other => return other.map(drop),
            }
        }
        Err(not_mounted(id))
    }

    /// How many have a layer of theirs mounted here.
    pub(super) fn users_theirs(&self, found: &Found) -> Result<u64> {
        let (name, mount) = self.shown(found, &MountOptions::default())?;
        self.counts()?.count(&name, &mount.target)
    }
}

fn not_mounted(id: &LayerId) -> Error {
    Error::NotFound { kind: "mount of layer", name: id.to_string() }
}

fn layers(other: &Additional) -> PathBuf {
    other.root.join("layers")
}
