//! Layers that begin as copies of others.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::time::SystemTime;

use super::{Found, Record, SPLIT, Store, changing};
use crate::driver::{Create, Ids, LayerId};
use crate::error::{Context, Error, Result};
use crate::mount::count::Held;
use crate::sys::change;

/// What a layer is made from, as it was before its storage was made.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) parent: Option<Found>,
    pub(super) template: Option<Record>,
    /// Of those of ours: had somebody one for writing since, it is another.
    turns: BTreeMap<LayerId, SystemTime>,
}

impl Store {
    /// What makes a layer a copy of `template` in all: on which parent it lies, and how it is made.
    pub fn like(&self, template: &LayerId) -> Result<(Option<LayerId>, Create)> {
        let record = self.copyable(template)?;
        let limits = self.driver.quota(template)?;
        let limits = [("size", limits.bytes), ("inodes", limits.inodes)];
        let limits = limits.into_iter().filter_map(|(key, limit)| Some((key, limit?)));
        let spec = Create {
            read_only: record.read_only,
            label: record.label,
            options: limits.map(|(key, limit)| (key.to_owned(), limit.to_string())).collect(),
            template: Some(template.clone()),
            ids: Ids::default(),
            store: None,
        };
        Ok((record.parent.as_deref().map(LayerId::new).transpose()?, spec))
    }

    /// The record of a template, which is one of ours.
    fn copyable(&self, template: &LayerId) -> Result<Record> {
        let found = self.look(template)?;
        if !self.is_theirs(&found) {
            return self.lost_below(&found).map_or(Ok(found.record), Err);
        }
        let root = self.root_of(&found).display();
        let why =
            format!("is in the additional store {root}; only layers of this store are copied");
        Err(Error::invalid(format!("template '{template}'"), why))
    }

    /// The same of one that nobody changes.
    fn copyable_at_rest(&self, template: &LayerId) -> Result<Record> {
        match self.is_changing(template) {
            true => Err(changing(template)),
            false => self.copyable(template),
        }
    }

    /// The record of a layer that can be copied now, to lie on the parent that was `seen`.
    pub(super) fn may_copy(
        &self,
        template: &LayerId,
        seen: &mut Sources,
        spec: &Create,
    ) -> Result<Record> {
        let record = self.copyable_at_rest(template)?;
        if let Some(why) = misplaced(&record, seen.parent.as_ref(), &spec.ids) {
            return Err(Error::invalid(format!("template '{template}'"), why));
        }
        self.note_turn(template, seen)?;
        if record.has_other_ids_below() && (spec.read_only || !spec.ids.is_none()) {
            let why =
                "was written with other ids below it; a copy is written too, and has the same ids";
            return Err(Error::invalid(format!("template '{template}'"), why));
        }
        self.settle_names(template)?;
        Ok(record)
    }

    /// Notes that nobody has a source who may write it.
    pub(super) fn note_turn(&self, id: &LayerId, seen: &mut Sources) -> Result<()> {
        let turn = self.hold_unwritten(id)?.turn()?;
        seen.turns.insert(id.clone(), turn);
        Ok(())
    }

    /// Keeps everybody from mounting what a layer is made from: what is changed meanwhile would be copied in part, and what
    /// others lie on is changed no more.
    pub(super) fn hold_sources(
        &self,
        parent: Option<&LayerId>,
        seen: &Sources,
        spec: &Create,
    ) -> Result<Vec<Held>> {
        let ours = seen.parent.as_ref().is_some_and(|found| found.place.is_none());
        let mut ids: Vec<&LayerId> = parent.filter(|_| ours).into_iter().collect();
        ids.extend(&spec.template);
        // Whoever holds several does so in this order.
        ids.sort();
        ids.dedup();
        let hold = |id: &LayerId| {
            let held = self.hold_unwritten(id)?;
            match seen.turns.get(id) {
                Some(turn) if *turn != held.turn()? => Err(changing(id)),
                _ => Ok(held),
            }
        };
        ids.into_iter().map(hold).collect()
    }

    /// Notes what the new layer has from its template, which may have been filled or removed since it was `seen`.
    pub(super) fn record_template(
        &self,
        record: &mut Record,
        seen: &Sources,
        spec: &Create,
    ) -> Result<()> {
        let (Some(template), Some(seen)) = (&spec.template, &seen.template) else { return Ok(()) };
        if *seen != self.copyable_at_rest(template)? {
            return Err(changing(template));
        }
        record.template = Some(template.to_string());
        (record.uid_map, record.gid_map) = texts(&spec.ids);
        record.below_uid_map.clone_from(&seen.below_uid_map);
        record.below_gid_map.clone_from(&seen.below_gid_map);
        // What can be written, or has other owners, is not what the archive said.
        let same = record.read_only && spec.ids.is_none();
        record.content = seen.content.clone().filter(|_| same);
        Ok(())
    }

    /// Gives a copy what puts its archive together again, in the directory of its record. It is only ever replaced whole, so
    /// both layers can have the same file. A template that has lost it gives none.
    pub(super) fn share_split(&self, record: &Record, dir: &Path) -> Result<()> {
        let (Some(template), Some(_)) = (&record.template, &record.content) else { return Ok(()) };
        let from = self.layers().join(template).join(SPLIT);
        match change::link(&from, &dir.join(SPLIT)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other.on("link", &from),
        }
    }
}

/// Why a copy of a layer cannot lie on `parent`.
fn misplaced(template: &Record, parent: Option<&Found>, ids: &Ids) -> Option<String> {
    let Some(own) = &template.parent else {
        return parent.map(|_| "lies on no other, and neither does a copy of it".to_owned());
    };
    let theirs = template.parent_store.as_ref();
    let below = match theirs {
        None => format!("layer '{own}'"),
        Some(store) => format!("layer '{own}' of the additional store {}", store.root.display()),
    };
    if ids.is_none() {
        let is_same = |parent: &Found| {
            parent.record.id == *own
                && match theirs {
                    None => parent.place.is_none(),
                    // A name of ours may hide it.
                    Some(store) => parent.place.is_some() && store.is(&parent.record),
                }
        };
        let same = parent.is_some_and(is_same);
        return (!same).then(|| format!("lies on {below}, and so does a copy of it"));
    }
    if theirs.is_some() {
        return Some(format!("lies on {below}, whose owners stay, and so do those of a copy"));
    }
    let is_like = |Found { record: parent, place }: &Found| {
        let maps = (parent.uid_map.clone(), parent.gid_map.clone());
        place.is_none() && parent.template.as_ref() == Some(own) && maps == texts(ids)
    };
    (!parent.is_some_and(is_like)).then(|| {
        format!("lies on {below}, whose owners stay; copy that with the same ids, and name the copy as the parent")
    })
}

pub(super) fn texts(ids: &Ids) -> (String, String) {
    (ids.users.to_string(), ids.groups.to_string())
}
