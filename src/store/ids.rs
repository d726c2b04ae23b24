//! Mounts with other ids than those on disk.
//!
//! Where a layer has a directory of its own for what is written, the ids are those of all below it, and that directory has its content
//! as it is seen: the kernel's overlay copies so. So one map belongs to what the layer holds, from its first mount with one on; its record
//! says which. A layer that is one directory is shown by a mount that maps both ways, and can be shown with any map.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use plyfs_fuse::acl;
use plyfs_fuse::options::IdMap;
use plyfs_fuse::owner::OVERFLOW_ID;

use super::pending::{Pending, Work};
use super::template::texts;
use super::view::take_part;
use super::{Record, Store, changing};
use crate::driver::{Ids, LayerId};
use crate::error::{Context, Error, Result};
use crate::mount::count::Held;
use crate::mount::plan::{self, Kind, Mount};
use crate::sys::{change, tree};

/// The ACLs that a directory can have.
const ACLS: [&str; 2] = [acl::ACCESS, acl::DEFAULT];

impl Record {
    /// Whether what it holds was written on layers with other ids.
    pub(super) fn has_other_ids_below(&self) -> bool {
        !self.below_uid_map.is_empty() || !self.below_gid_map.is_empty()
    }

    /// Refuses one whose own content would be shown with other ids like all below it, though it is stored as it is seen.
    pub(super) fn may_be_below(&self, id: &LayerId) -> Result<()> {
        if !self.has_other_ids_below() {
            return Ok(());
        }
        let why = "was written with other ids below it, so it can only be mounted to be written, and no layer can lie on it; \
            fill a new one with its difference";
        Err(Error::invalid(format!("layer '{id}'"), why))
    }

    /// The ids that all below it is seen with: those that were asked for, else those that it was written with.
    pub(super) fn ids_below(&self, id: &LayerId, asked: Ids) -> Result<Ids> {
        if !self.has_other_ids_below() {
            return Ok(asked);
        }
        let read = |text: &str| {
            IdMap::parse(text).map_err(|detail| Error::Corrupt {
                what: format!("layer '{id}'"),
                detail: format!("the map of its ids: {detail}"),
            })
        };
        let own = Ids { users: read(&self.below_uid_map)?, groups: read(&self.below_gid_map)? };
        if asked.is_none() || asked == own {
            return Ok(own);
        }
        let why = format!(
            "was written with uidmap '{}' and gidmap '{}' of all below it, and can be mounted with no others; make another layer",
            self.below_uid_map, self.below_gid_map
        );
        Err(Error::invalid(format!("layer '{id}'"), why))
    }
}

impl Store {
    /// Gives a layer that is one directory: itself, or with other ids where its mounts are.
    pub(super) fn give_directory(
        &self,
        held: &Held,
        record: &Record,
        dir: PathBuf,
        ids: Ids,
    ) -> Result<PathBuf> {
        let id = LayerId::new(&record.id)?;
        // What it was written with is what it holds.
        if ids.is_none() || record.has_other_ids_below() {
            return self.give_out(&id, held, dir);
        }
        if held.used()? > 0 {
            let by = "whoever was given its directory, with the ids on disk; unmount it first";
            return Err(Error::InUse { kind: "layer", name: record.id.clone(), by: by.to_owned() });
        }
        let kind = if record.read_only { Kind::Bind } else { Kind::BindWritable };
        let (lowers, options, target) = (vec![dir], Vec::new(), self.driver.target(&id));
        let mount = Mount { kind, lowers, upper: None, options, ids, target };
        take_part(held, &id, &mount, &[])
    }

    /// Mounts a layer that is written on layers with other ids, and notes these.
    pub(super) fn mount_noting_ids(
        &self,
        held: &Held,
        record: &Record,
        mount: &Mount,
        asked: &[String],
    ) -> Result<PathBuf> {
        let id = LayerId::new(&record.id)?;
        if record.has_other_ids_below() {
            return take_part(held, &id, mount, asked);
        }
        let begun = Pending::begin_at_once(&self.pending(), &id)?;
        let mut pending = self.cleared(&id, begun.ok_or_else(|| changing(&id))?)?;
        let mounted = pending
            .say(Work::Mount, self.driver.name())
            .and_then(|()| self.mount_with_new_ids(held, &id, mount, asked));
        if let Err(error) = pending.done() {
            log::warn!("layer '{id}': {error}; the next start tries again");
        }
        mounted
    }

    fn mount_with_new_ids(
        &self,
        held: &Held,
        id: &LayerId,
        mount: &Mount,
        asked: &[String],
    ) -> Result<PathBuf> {
        if held.count(&mount.target)? > 0 {
            let path = take_part(held, id, mount, asked)?;
            return self.note_ids(id, &mount.ids, true).map(|()| path);
        }
        let Some(((own, _), below)) = mount.upper.as_ref().zip(mount.lowers.first()) else {
            return take_part(held, id, mount, asked);
        };
        let mut entries = std::fs::read_dir(own).on("list", own)?;
        if entries.next().is_some() {
            let why = "holds what was written without a map; copy it with other ids (layer create --template) or make another layer";
            return Err(Error::invalid(format!("other ids for layer '{id}'"), why));
        }
        // Before anything is changed, for it is where most hosts that cannot do it say so.
        plan::try_ids(below, &mount.ids)?;
        let is_parent = self.child_of(id)?.is_some();
        let before = Root::of(own)?;
        before.mapped(&mount.ids, &Root::of(below)?)?.give(own)?;
        let path = take_part(held, id, mount, asked).inspect_err(|_| before.restore(own))?;
        let noted = self.note_ids(id, &mount.ids, is_parent);
        if noted.is_err() && held.unmount(&mount.target).is_ok_and(|left| left == 0) {
            before.restore(own);
        }
        noted.map(|()| path)
    }

    /// A layer that was no parent when its mount was made has become none since: what lies on it would not know of the ids.
    fn note_ids(&self, id: &LayerId, ids: &Ids, is_parent: bool) -> Result<()> {
        let _lock = self.lock()?;
        let mut record = self.get(id)?;
        let maps = texts(ids);
        if (&record.below_uid_map, &record.below_gid_map) == (&maps.0, &maps.1) {
            return Ok(());
        }
        if !is_parent && self.child_of(id)?.is_some() {
            return Err(changing(id));
        }
        (record.below_uid_map, record.below_gid_map) = maps;
        record.write(&self.layers().join(id.as_str()))
    }
}

/// Who may do what with the root directory of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Root {
    owner: (u32, u32),
    acls: Vec<(&'static str, Vec<u8>)>,
}

impl Root {
    fn of(dir: &Path) -> Result<Root> {
        let found = dir.symlink_metadata().on("stat", dir)?;
        let open = tree::open_root(dir).on("open", dir)?;
        let mut acls = Vec::new();
        for key in ACLS {
            let value = tree::xattr(&open, OsStr::new(""), OsStr::new(key));
            acls.extend(value.on("read xattrs", dir)?.map(|value| (key, value)));
        }
        Ok(Root { owner: (found.uid(), found.gid()), acls })
    }

    /// The same as the layers below are seen; `below` is the root directory of the first of them. A crash may have left it as it is to
    /// be.
    fn mapped(&self, ids: &Ids, below: &Root) -> Result<Root> {
        let map = |root: &Root| {
            let (user, group) = (
                |id| Some(ids.users.to_presented(id).unwrap_or(OVERFLOW_ID)),
                |id| Some(ids.groups.to_presented(id).unwrap_or(OVERFLOW_ID)),
            );
            let owner = (
                user(root.owner.0).unwrap_or(OVERFLOW_ID),
                group(root.owner.1).unwrap_or(OVERFLOW_ID),
            );
            let mut acls = Vec::new();
            for (key, value) in &root.acls {
                let mapped = acl::map_ids(value, user, group);
                let mapped = mapped.map_err(|error| {
                    Error::invalid("ACL of the layer's root directory", error.to_string())
                })?;
                acls.push((*key, mapped));
            }
            Ok(Root { owner, acls })
        };
        if *self == map(below)? { Ok(self.clone()) } else { map(self) }
    }

    fn give(&self, dir: &Path) -> Result<()> {
        change::chown(dir, self.owner.0, self.owner.1).on("chown", dir)?;
        self.acls
            .iter()
            .try_for_each(|(key, value)| change::set_xattr(dir, key, value).on("set xattrs", dir))
    }

    fn restore(&self, dir: &Path) {
        if let Err(error) = self.give(dir) {
            log::warn!("{error}");
        }
    }
}
