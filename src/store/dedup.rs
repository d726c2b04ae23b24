//! Layers whose files share blocks.

use serde::Serialize;

use super::{Store, changing};
use crate::doctor::filesystem;
use crate::driver::LayerId;
use crate::error::{Context, Error, Result};
use crate::layer::dedup::{Dedup, Progress, Shared, Tree};
use crate::sys::share;

/// What [`Store::dedup`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Deduped {
    /// Layers that were looked at.
    pub layers: usize,
    /// Nothing was shared, only counted.
    pub dry_run: bool,
    /// What became of their files.
    #[serde(flatten)]
    pub files: Shared,
    /// Layers that somebody is making, filling or removing, which were left out.
    pub busy: Vec<String>,
}

impl Store {
    /// Lets files of the same content share their blocks: those of the layers `ids`, or of all that our driver keeps. With
    /// `dry_run` they are counted only.
    ///
    /// No layer changes by it, so it may be mounted and written meanwhile, and no lock is held.
    pub fn dedup(
        &self,
        ids: &[LayerId],
        dry_run: bool,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Deduped> {
        let mut done = Deduped { dry_run, ..Deduped::default() };
        let (ids, named) = match ids {
            [] => (self.names()?, false),
            ids => (ids.to_vec(), true),
        };
        let home = self.driver.home();
        if !share::can_share(home).on("try to share blocks in", home)? {
            let why = format!(
                "{} has none; put the state directory ({}) on xfs (made with reflink=1) or btrfs with --root",
                filesystem::name(home),
                self.root.display()
            );
            return Err(Error::unsupported("shared blocks", why));
        }
        let mut trees = Vec::new();
        for id in ids {
            match self.dedup_tree(&id, named) {
                Ok(found) if self.is_changing(&id) => {
                    if named {
                        return Err(changing(&id));
                    }
                    done.busy.extend(found.map(|tree| tree.name));
                }
                Ok(found) => trees.extend(found.filter(|tree| !trees.contains(tree))),
                Err(error) if named => return Err(error),
                Err(error) => {
                    progress(Progress::Failed(&error.to_string()));
                    done.files.failed += 1;
                }
            }
        }
        let least = share::block_size(home).on("stat", home)?;
        let files = Dedup { trees: &trees, least, dry_run }.run(progress);
        done.layers = trees.len();
        done.files = Shared { failed: files.failed + done.files.failed, ..files };
        Ok(done)
    }

    /// The directory of a layer. Unless it was named, there is none of one that another driver keeps, that is lost, or that
    /// has gone.
    fn dedup_tree(&self, id: &LayerId, named: bool) -> Result<Option<Tree>> {
        if named {
            self.get(id)?;
        } else if !self.driver.exists(id)? {
            return Ok(None);
        }
        match self.driver.parts(id) {
            Ok(parts) => Ok(Some(Tree { name: id.to_string(), path: parts.own })),
            Err(_) if !named && !self.driver.exists(id)? => Ok(None),
            Err(error) => Err(error),
        }
    }
}
