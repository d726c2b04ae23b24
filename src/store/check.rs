//! Looking a store over: whether records, storage and archives say the same, and what of it can be put right.

use std::fs::File;
use std::io::{ErrorKind, Write};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Found, Record, SPLIT, Store};
use crate::driver::{LayerId, Usage};
use crate::error::{Context, Error, Result};
use crate::layer::split;

/// Files of one layer that are named at most; of the others only the number is told.
const NAMED: usize = 20;

/// Something that is wrong with a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The layer.
    pub layer: String,
    /// What is wrong with it.
    pub what: String,
    /// It has been put right.
    pub repaired: bool,
    /// What to do about it, where it has not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Layers that were looked at.
    pub layers: usize,
    /// What is wrong, by layer.
    pub problems: Vec<Problem>,
    /// Layers that somebody is making, filling or removing: what is there of them says nothing.
    pub busy: Vec<String>,
}

impl Checked {
    /// Whether nothing is wrong any more.
    pub fn is_sound(&self) -> bool {
        self.problems.iter().all(|problem| problem.repaired)
    }

    fn add(&mut self, layer: &str, what: impl Into<String>, advice: impl Into<String>) {
        let (layer, what, advice) = (layer.to_owned(), what.into(), Some(advice.into()));
        self.problems.push(Problem { layer, what, repaired: false, advice });
    }

    /// What kept a layer from being looked at.
    fn fail(&mut self, layer: &str, error: &Error) {
        let (layer, what) = (layer.to_owned(), error.to_string());
        self.problems.push(Problem { layer, what, repaired: false, advice: None });
    }
}

/// What [`Store::prune`] removes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// The name the storage goes by.
    pub id: String,
    /// Bytes it takes.
    pub bytes: u64,
    /// Inodes it takes.
    pub inodes: u64,
}

impl Store {
    /// Compares records, storage and archives; reads every file of the layers that were filled from archives. With
    /// `repair` what the store still knows elsewhere is put right. `progress` is told of each layer before it is looked at.
    pub fn check(&self, repair: bool, progress: &mut dyn FnMut(&LayerId)) -> Result<Checked> {
        let mut checked = Checked::default();
        for id in self.names()? {
            progress(&id);
            let record = match self.find(&id) {
                // Removed since it was listed, or never finished.
                Ok(None) => continue,
                Ok(Some(record)) => record,
                Err(error @ Error::Corrupt { .. }) => {
                    let advice = format!(
                        "nothing else has it; restore the file, or plyfs layer rm {id} removes the layer"
                    );
                    checked.layers += 1;
                    checked.add(id.as_str(), error.to_string(), advice);
                    continue;
                }
                // That one layer cannot be looked at is no reason to leave the others.
                Err(error) => {
                    checked.layers += 1;
                    checked.fail(id.as_str(), &error);
                    continue;
                }
            };
            checked.layers += 1;
            if self.is_changing(&id) {
                checked.busy.push(id.to_string());
                continue;
            }
            let known = checked.problems.len();
            let looked = self.check_layer(&id, &record, repair, &mut checked);
            if looked.is_ok() && checked.problems.len() == known {
                continue;
            }
            // It may have been changed or removed while it was looked at.
            let now = self.find(&id).unwrap_or_else(|_| Some(record.clone()));
            if self.is_changing(&id) || now.as_ref() != Some(&record) {
                checked.problems.truncate(known);
                checked.busy.extend(now.map(|record| record.id));
                continue;
            }
            if let Err(error) = looked {
                checked.fail(id.as_str(), &error);
            }
        }
        self.check_theirs(&mut checked, progress)?;
        for id in self.unknown()? {
            checked.add(id.as_str(), "there is storage without a record", "plyfs prune removes it");
        }
        Ok(checked)
    }

    /// Looks at what ours lie on in additional stores, where nothing is put right.
    fn check_theirs(
        &self,
        checked: &mut Checked,
        progress: &mut dyn FnMut(&LayerId),
    ) -> Result<()> {
        // Records that cannot be read are told already, and what they lie on is not known.
        for found in self.lain_on().unwrap_or_default() {
            progress(&found.id()?);
            checked.layers += 1;
            let known = checked.problems.len();
            if let Err(error) = self.check_content(&found, checked) {
                checked.fail(&found.record.id, &error);
            }
            for problem in &mut checked.problems[known..] {
                let advice =
                    format!("put it right in its store, {}", self.root_of(&found).display());
                problem.advice = Some(advice);
            }
        }
        Ok(())
    }

    fn check_layer(
        &self,
        id: &LayerId,
        record: &Record,
        repair: bool,
        checked: &mut Checked,
    ) -> Result<()> {
        let rm = format!("plyfs layer rm {id} removes it");
        if let Some(name) = self.keeper(id)? {
            let remedy = format!("plyfs --driver {name} check looks at it");
            checked.add(id.as_str(), format!("its storage is kept by the driver {name}"), remedy);
            return Ok(());
        }
        if !self.driver.exists(id)? {
            checked.add(id.as_str(), "its storage is missing", rm);
            return Ok(());
        }
        let found = Found { record: record.clone(), place: None };
        if let Some(lost) = self.lost_below(&found) {
            let remedy = format!("if it is gone for good, {rm}");
            checked.add(id.as_str(), lost.to_string(), remedy);
            return Ok(());
        }
        if let Some(parent) = record.parent.as_ref().filter(|_| record.parent_store.is_none()) {
            if self.find(&LayerId::new(parent)?).is_ok_and(|parent| parent.is_none()) {
                let what = format!("layer '{parent}', on which it lies, is missing");
                checked.add(id.as_str(), what, rm);
                return Ok(());
            }
        }
        self.check_parent(id, record, repair, checked)?;
        match self.driver.parts(id) {
            Ok(parts) => {
                for path in std::iter::once(&parts.own).chain(&parts.below) {
                    if !path.is_dir() {
                        let what = format!("{} is missing or no directory", path.display());
                        checked.add(id.as_str(), what, rm.clone());
                    }
                }
            }
            Err(error) => checked.add(id.as_str(), error.to_string(), "plyfs check --repair"),
        }
        self.check_content(&found, checked)
    }

    /// Whether the driver has the same parent as the record.
    fn check_parent(
        &self,
        id: &LayerId,
        record: &Record,
        repair: bool,
        checked: &mut Checked,
    ) -> Result<()> {
        let wanted = record.parent.as_deref().map(LayerId::new).transpose()?;
        let (found, why) = match self.driver.parent(id) {
            Ok(found) => (found, String::new()),
            Err(error) => (None, format!(": {error}")),
        };
        // A driver that makes whole copies has no parents.
        if why.is_empty() && (found == wanted || found.is_none() && self.keeps_no_parents(id)?) {
            return Ok(());
        }
        let name =
            |id: &Option<LayerId>| id.as_ref().map_or("none".to_owned(), |id| format!("'{id}'"));
        let what = format!(
            "its storage says that it lies on {}, its record on {}{why}",
            name(&found),
            name(&wanted)
        );
        checked.add(
            id.as_str(),
            what,
            "plyfs check --repair makes the storage say what the record says",
        );
        // Of a parent in another store nothing is mended by its name, which may be one of ours too.
        if repair && record.parent_store.is_none() {
            let repaired = self.driver.repair(id, wanted.as_ref());
            if let Some(last) = checked.problems.last_mut() {
                match repaired {
                    Ok(true) => (last.repaired, last.advice) = (true, None),
                    Ok(false) => {}
                    Err(error) => last.advice = Some(format!("it cannot be repaired: {error}")),
                }
            }
        }
        Ok(())
    }

    fn keeps_no_parents(&self, id: &LayerId) -> Result<bool> {
        Ok(self.driver.parts(id).is_ok_and(|parts| parts.below.is_empty())
            && self.driver.diffing(id)? == crate::driver::Diffing::Naive)
    }

    /// Whether a layer still gives back the archive that it was filled from.
    fn check_content(&self, found: &Found, checked: &mut Checked) -> Result<()> {
        let Some(content) = &found.record.content else { return Ok(()) };
        let id = found.id()?;
        let again = format!("plyfs layer rm {id}, and fill it anew");
        let path = self.dir_of(found).join(SPLIT);
        let mut split = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                checked.add(
                    id.as_str(),
                    format!("{SPLIT} is missing: its archive cannot be given back"),
                    again,
                );
                return Ok(());
            }
            other => other.on("open", &path)?,
        };
        let mut sum = Sum(Sha256::new());
        let files = self.driver_of(found).files(&id)?;
        let given = split::assemble(&mut split, &*files, &mut sum);
        let diff_id = format!("sha256:{:x}", sum.0.finalize());
        match given {
            Ok(()) if diff_id == content.diff_id => return Ok(()),
            Ok(()) => {
                let what = format!("its archive is {diff_id}, its record says {}", content.diff_id);
                checked.add(id.as_str(), what, again);
                return Ok(());
            }
            Err(Error::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
        let found = split::check(&mut File::open(&path).on("open", &path)?, &*files);
        match found {
            Ok(found) => {
                for one in found.iter().take(NAMED) {
                    let what = format!("file '{}': {}", one.path.escape_ascii(), one.why);
                    checked.add(id.as_str(), what, again.clone());
                }
                if found.len() > NAMED {
                    let what =
                        format!("{} more files are not those of its archive", found.len() - NAMED);
                    checked.add(id.as_str(), what, again);
                }
            }
            Err(error) => checked.add(id.as_str(), error.to_string(), again),
        }
        Ok(())
    }

    /// Removes storage that no record names and nobody is working on; with `only_look` it is told and stays. What a layer
    /// with a record lies on stays too. What cannot be removed is told to `failed` and stays, with what it lies on; all else goes.
    pub fn prune(&self, only_look: bool, failed: &mut dyn FnMut(&Error)) -> Result<Vec<Pruned>> {
        let mut left = self.superfluous()?;
        let (mut pruned, mut stays) = (Vec::new(), Vec::new());
        while !left.is_empty() {
            // What lies on others goes before them; a ring of parents has no end to begin with.
            let below: Vec<LayerId> =
                left.iter().filter_map(|id| self.driver.parent(id).ok().flatten()).collect();
            let (stay, go): (Vec<_>, Vec<_>) = left.into_iter().partition(|id| below.contains(id));
            let (stay, go) = if go.is_empty() { (Vec::new(), stay) } else { (stay, go) };
            for id in go {
                let parent = self.driver.parent(&id).ok().flatten();
                if !stays.contains(&id) {
                    match self.prune_one(&id, only_look) {
                        Ok(Some(one)) => {
                            pruned.push(one);
                            continue;
                        }
                        Ok(None) => {}
                        Err(error) => failed(&error),
                    }
                }
                stays.extend(parent);
            }
            left = stay;
        }
        Ok(pruned)
    }

    /// Storage that no record names, but what a layer with a record lies on. An error where that cannot be told.
    fn superfluous(&self) -> Result<Vec<LayerId>> {
        let mut wanted = Vec::new();
        for id in self.driver.list()? {
            match self.find(&id) {
                Ok(None) => continue,
                // It lies on none of ours.
                Ok(Some(Record { parent_store: Some(_), .. })) => continue,
                Ok(Some(record)) => {
                    wanted.extend(record.parent.as_deref().map(LayerId::new).transpose()?);
                }
                Err(Error::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
            wanted.extend(self.driver.parent(&id)?);
        }
        let mut left = self.unknown()?;
        while let Some(id) = wanted.pop() {
            if let Some(at) = left.iter().position(|one| *one == id) {
                left.swap_remove(at);
                wanted.extend(self.driver.parent(&id)?);
            }
        }
        Ok(left)
    }

    fn prune_one(&self, id: &LayerId, only_look: bool) -> Result<Option<Pruned>> {
        let Usage { bytes, inodes } = self.driver.usage(id).unwrap_or_default();
        if !only_look {
            let mut pending = self.begin(id)?;
            // Somebody may have made a layer of that name meanwhile.
            if self.find(id)?.is_some() {
                pending.done()?;
                return Ok(None);
            }
            pending.say(super::Work::Remove, self.driver.name())?;
            // What is refused stays as it was, and is not tried again at the next start.
            let removed = self.remove_storage(id);
            pending.done()?;
            removed?;
        }
        Ok(Some(Pruned { id: id.to_string(), bytes, inodes }))
    }
}

struct Sum(Sha256);

impl Write for Sum {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
