//! What becomes of work that failed, and of what a crash left.

use std::ffi::OsStr;

use super::pending::{Pending, Said, Work};
use super::{SPLIT, Store};
use crate::driver::registry::Registry;
use crate::driver::{Create, LayerId};
use crate::error::{Context, Result};
use crate::mount::count::Counts;
use crate::sys::{change, trash};

impl Store {
    /// Ends work on a layer, and undoes it after an error.
    pub(super) fn settle<T>(
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

    /// Undoes or finishes what a crash left of the work on a layer, if it was our driver's: what another one has half made
    /// is not ours to know.
    pub(super) fn undo_left(&self, id: &LayerId, left: &Said) -> Result<()> {
        match self.keeper_of(left) {
            Some(name) => return Err(self.kept_by(id, name)),
            None if left.driver.is_none() => self.is_ours(id)?,
            None => {}
        }
        self.undo(id, left.work)
    }

    /// The driver whose work it is, if that is another one with another home.
    pub(super) fn keeper_of<'a>(&self, left: &'a Said) -> Option<&'a str> {
        let name = left.driver.as_deref().filter(|name| *name != self.driver.name())?;
        let home = Registry::built_in().home(name).map(|home| self.root.join(home));
        (home.as_deref() != Some(self.driver.home())).then_some(name)
    }

    /// Undoes or finishes work on a layer.
    fn undo(&self, id: &LayerId, work: Work) -> Result<()> {
        let record = self.find(id)?;
        match (work, record) {
            (Work::Create | Work::Remove, None) => self.remove_storage(id),
            (Work::Apply, Some(record)) if record.content.is_none() => {
                // Only what is read-only is filled, and that has no limits that would be lost.
                let store = self.place_of_parent(&record)?;
                self.clear_beside(id, |name| name == SPLIT)?;
                let parent = record.parent.as_deref().map(LayerId::new).transpose()?;
                let spec = Create {
                    read_only: record.read_only,
                    label: record.label,
                    options: record.options,
                    store,
                    ..Create::default()
                };
                self.driver.remove(id)?;
                self.driver.create(id, parent.as_ref(), &spec)
            }
            (Work::Mount, Some(_)) => self.clear_beside(id, |_| false),
            _ => Ok(()),
        }
    }

    /// Removes what was not finished beside the record of a layer, and what else is `unwanted` there.
    fn clear_beside(&self, id: &LayerId, unwanted: fn(&OsStr) -> bool) -> Result<()> {
        let dir = self.layers().join(id.as_str());
        for entry in std::fs::read_dir(&dir).on("list", &dir)? {
            let name = entry.on("list", &dir)?.file_name();
            if unwanted(&name) || is_hidden(&name) {
                let path = dir.join(name);
                change::remove_file_if_any(&path).on("remove", path)?;
            }
        }
        Ok(())
    }

    /// Undoes or finishes what crashes left. What cannot be now, as on a full disk, stays for the next start; the other layers
    /// can be used meanwhile, and removed.
    pub(super) fn recover(&self) -> Result<()> {
        self.clear_hidden()?;
        for (id, left, pending) in Pending::left(&self.pending())? {
            log::info!("layer '{id}': what a crash left of its {:?} is cleared away", left.work);
            if let Err(error) = self.undo_left(&id, &left).and_then(|()| pending.done()) {
                log::warn!("layer '{id}': {error}; the next start tries again");
            }
        }
        match self.driver.sweep() {
            Ok(done) => done.iter().for_each(|done| log::info!("{done}")),
            Err(error) => log::warn!("{error}; the next start tries again"),
        }
        if let Err(error) = Counts::sweep(&self.run) {
            log::warn!("{error}; the next start tries again");
        }
        Ok(())
    }

    /// Records that never got their name, or have it no more. They are made and removed under the lock.
    fn clear_hidden(&self) -> Result<()> {
        let (_lock, dir) = (self.lock()?, self.layers());
        for entry in std::fs::read_dir(&dir).on("list", &dir)? {
            let name = entry.on("list", &dir)?.file_name();
            if is_hidden(&name) {
                trash::delete(&dir, &name, None).on("remove", dir.join(name))?;
            }
        }
        Ok(())
    }
}

/// Whether a name beside records is not one's.
fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}
