//! Seeing a layer: mounted, as the list of its changes, as an archive.

use std::collections::HashSet;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::pending::{Pending, Work};
use super::{Found, Record, SPLIT, Store, changing, mounted};
use crate::driver::{Diffing, Ids, LayerId, MountOptions, Parts, View};
use crate::error::{Error, Result};
use crate::layer::Belief;
use crate::layer::changes::{self, Change, ChangeKind};
use crate::layer::compare::{Comparison, Tree};
use crate::layer::diff::{self, Spec};
use crate::layer::split;
use crate::mount::count::{Counts, Held};
use crate::mount::plan::{self, Kind, Mount, Server};

impl Store {
    /// Mounts a layer, or takes part in the mount that is there. Returns where it is seen.
    pub fn mount(&self, id: &LayerId, options: &MountOptions) -> Result<PathBuf> {
        let found = self.look(id)?;
        if found.place.is_some() {
            return self.mount_theirs(found, options);
        }
        self.explained(&found, self.settle_names(id))?;
        // Nobody begins to fill or remove it before its new user is counted.
        let held = self.counts()?.hold(id.as_str())?;
        let record = self.get(id)?;
        if Pending::of(&self.pending(), id)? == Some(Work::Apply) {
            return Err(changing(id));
        }
        let asked = asked(options);
        let mut options = options.clone();
        options.ids = record.ids_below(id, options.ids)?;
        options.read_only |= record.read_only;
        options.label = options.label.or_else(|| record.label.clone());
        let view = self.explained(&found, self.driver.view(id, &options))?;
        if matches!(&view, View::Mount(mount) if mount.upper.is_some()) {
            // Whoever was given its directory would write behind the mount's back.
            refuse_used(id, held.used()?)?;
        }
        let mount = match view {
            View::Path(path) => {
                refuse_options(id, &asked)?;
                return self.give_directory(&held, &record, path, options.ids);
            }
            View::Mount(mount) if !mount.ids.is_none() && mount.upper.is_some() => {
                return self.mount_noting_ids(&held, &record, &mount, &asked);
            }
            View::Mount(mount) => mount,
        };
        record.may_be_below(id)?;
        if mount.kind == Kind::Bind && mount.ids.is_none() && self.is_given_out(&held, &mount)? {
            // One kind of user at a time: they give back alike.
            refuse_options(id, &asked)?;
            return self.give_out(id, &held, mount.lowers.into_iter().next().unwrap_or_default());
        }
        match take_part(&held, id, &mount, &asked) {
            Err(error) if record.read_only => match plan::unmountable(&mount, &error) {
                Some(path) => {
                    refuse_options(id, &asked)?;
                    self.give_out(id, &held, path)
                }
                None => Err(error),
            },
            other => other,
        }
    }

    /// Gives a layer's own directory to one more user.
    pub(super) fn give_out(&self, id: &LayerId, held: &Held, path: PathBuf) -> Result<PathBuf> {
        // Made when the layer was not to be written, or with other ids: whoever has it is not to see that it is.
        match held.count(&self.driver.target(id))? {
            0 => held.take().map(|()| path),
            users => Err(mounted(id, users)),
        }
    }

    /// Whether a layer's own directory has users, and its mount none.
    fn is_given_out(&self, held: &Held, mount: &Mount) -> Result<bool> {
        Ok(held.used()? > 0 && held.count(&mount.target)? == 0)
    }

    /// Takes one mount of a layer back; the last one unmounts it.
    pub fn unmount(&self, id: &LayerId) -> Result<()> {
        let unknown = match self.look(id) {
            Ok(Found { place: None, .. }) => return self.release(id),
            Ok(_) => false,
            Err(Error::NotFound { .. }) => true,
            Err(error) => return Err(error),
        };
        match self.unmount_theirs(id) {
            Err(Error::NotFound { .. }) if unknown => {
                let root = self.root.display();
                let why = format!(
                    "not found in {root}, nor mounted from another store; plyfs layer ls lists what is there"
                );
                Err(Error::invalid(format!("layer '{id}'"), why))
            }
            other => other,
        }
    }

    /// One user fewer of a layer. What it was seen by may be another way than it would be now: a layer can become one that is
    /// mounted.
    fn release(&self, id: &LayerId) -> Result<()> {
        let held = self.counts()?.hold(id.as_str())?;
        if let Some(target) = self.target(id, &held)? {
            match held.unmount(&target) {
                Err(Error::NotFound { .. }) => {}
                left => {
                    // Settling takes that itself.
                    drop(held);
                    let settled = if left? == 0 { self.settle_names(id) } else { Ok(()) };
                    // It is unmounted all the same, and whoever reads the layer next tries again.
                    if let Err(error) = settled {
                        log::warn!("layer '{id}': {error}");
                    }
                    return Ok(());
                }
            }
        }
        match held.give_back()? {
            true => Ok(()),
            false => Err(Error::NotFound { kind: "mount of layer", name: id.to_string() }),
        }
    }

    /// Where a layer is mounted, or would be; none where it is seen as its own directory. Where something below it is lost, and
    /// where it was mounted once and would not be now, that is where the mount is.
    fn target(&self, id: &LayerId, held: &Held) -> Result<Option<PathBuf>> {
        match self.driver.view(id, &MountOptions::default()) {
            Ok(View::Mount(mount)) => return Ok(Some(mount.target)),
            Ok(View::Path(_)) => {}
            // What this driver cannot mount another one may have.
            Err(Error::Corrupt { .. } | Error::Invalid { .. } | Error::Unsupported { .. }) => {}
            Err(_) if self.look(id).is_ok_and(|found| self.lost_below(&found).is_some()) => {}
            Err(error) => return Err(error),
        }
        let target = self.driver.target(id);
        Ok((held.count(&target)? > 0).then_some(target))
    }

    /// Makes a layer's own directory tell all names that a killed server has shown. One that is mounted stays as it is: its
    /// server does it at its end.
    pub(super) fn settle_names(&self, id: &LayerId) -> Result<()> {
        let Some(mut mount) = self.driver.unsettled(id)? else { return Ok(()) };
        if let Some(record) = self.find(id)? {
            mount.ids = record.ids_below(id, Ids::default())?;
        }
        let settle = || plan::settle(&mount);
        if !self.counts()?.unless_mounted(id.as_str(), &mount.target, settle)? {
            log::warn!(
                "layer '{id}' is mounted: of a file with several names some may be seen with what they had before"
            );
        }
        Ok(())
    }

    /// How many have the layer mounted, or were given its directory.
    pub fn users(&self, id: &LayerId) -> Result<u64> {
        match self.look(id) {
            Ok(found) if found.place.is_some() => self.users_theirs(&found),
            _ => self.hold(id).map(|(_, users)| users),
        }
    }

    /// Keeps everybody from mounting a layer and from taking mounts of it back; how many have it. One whose storage is lost
    /// nobody has.
    pub(super) fn hold(&self, id: &LayerId) -> Result<(Held, u64)> {
        self.is_there(id)?;
        let held = self.counts()?.hold_without_room(id.as_str())?;
        if !self.driver.exists(id)? {
            return Ok((held, 0));
        }
        let used = held.used()?;
        let target = self.target(id, &held)?;
        let mounted = target.map_or(Ok(0), |target| held.count(&target))?;
        Ok((held, used.saturating_add(mounted)))
    }

    /// The same of those who may write to it, and an error where there are any.
    pub(super) fn hold_unwritten(&self, id: &LayerId) -> Result<Held> {
        let record = self.get(id)?;
        let held = self.counts()?.hold(id.as_str())?;
        let mut users = held.used()?;
        if !record.read_only {
            let target = self.target(id, &held)?;
            users = users.saturating_add(target.map_or(Ok(0), |target| held.writers(&target))?);
        }
        refuse_used(id, users).map(|()| held)
    }

    pub(super) fn counts(&self) -> Result<Counts> {
        Counts::open(&self.run)
    }

    /// What a layer adds to, changes and deletes in its parent, sorted by path.
    pub fn changes(&self, id: &LayerId) -> Result<Vec<Change>> {
        let found = self.look(id)?;
        let (Parts { own, below }, belief) = (self.settled_parts(&found)?, self.belief(&found));
        match self.driver_of(&found).diffing(id)? {
            Diffing::Native => changes::list_believing(&own, &below, belief),
            Diffing::Naive => {
                let old = self.parent_tree(&found)?;
                let new = Tree { top: own, below };
                let since = made(&found.record);
                Comparison { old: old.as_ref(), new: &new, since, belief }.list()
            }
        }
    }

    /// The directories of a layer, which tell all that was seen of it.
    fn settled_parts(&self, found: &Found) -> Result<Parts> {
        let id = found.id()?;
        if found.place.is_none() {
            self.explained(found, self.settle_names(&id))?;
        } else if !found.record.read_only
            && !matches!(self.driver_of(found).unsettled(&id), Ok(None))
        {
            log::warn!(
                "layer '{id}' is written in its own store: of a file with several names some may be seen with what they had before"
            );
        }
        self.explained(found, self.driver_of(found).parts(&id))
    }

    /// Writes what a layer adds to its parent as an image layer: the archive that it was filled from, byte for byte, if it
    /// was. After an error `out` has no end of archive.
    pub fn diff(&self, id: &LayerId, out: &mut impl Write) -> Result<()> {
        let found = self.look(id)?;
        if found.record.content.is_some() {
            return self.archive(&found, out);
        }
        let (Parts { own, below }, belief) = (self.settled_parts(&found)?, self.belief(&found));
        match self.driver_of(&found).diffing(id)? {
            Diffing::Native => {
                let spec = Spec { upper: own, lowers: below, user_marks: false };
                diff::write_believing(&spec, belief, out)
            }
            Diffing::Naive => {
                let old = self.parent_tree(&found)?;
                let new = Tree { top: own, below };
                let since = made(&found.record);
                Comparison { old: old.as_ref(), new: &new, since, belief }.write(out)
            }
        }
    }

    /// Whose word is taken on what a layer holds.
    fn belief(&self, found: &Found) -> Belief {
        let belief = self.driver_of(found).belief();
        if found.record.parent.is_none() { belief.of_the_lowest() } else { belief }
    }

    /// Puts the archive that a layer was filled from together again.
    fn archive(&self, found: &Found, out: &mut impl Write) -> Result<()> {
        let path = self.dir_of(found).join(SPLIT);
        match File::open(&path) {
            Ok(mut record) => {
                let files = self.driver_of(found).files(&found.id()?)?;
                split::assemble(&mut record, &*files, out)
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::Corrupt {
                what: format!("layer '{}'", found.record.id),
                detail: format!("{} is missing", path.display()),
            }),
            Err(e) => Err(Error::io("open", path, e)),
        }
    }

    /// Bytes of the data of the files that a layer adds or changes, one with several names once.
    pub fn size(&self, id: &LayerId) -> Result<u64> {
        let found = self.look(id)?;
        if let Some(content) = &found.record.content {
            return Ok(content.size);
        }
        let own = self.explained(&found, self.driver_of(&found).parts(id))?.own;
        let (mut seen, mut size) = (HashSet::new(), 0);
        for change in self.changes(id)?.iter().filter(|x| x.kind != ChangeKind::Deleted) {
            let path = own.join(change.path.strip_prefix("/").unwrap_or(&change.path));
            match path.symlink_metadata() {
                Ok(found) if found.is_file() && seen.insert((found.dev(), found.ino())) => {
                    size += found.len();
                }
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    return Err(Error::io("stat", path, e));
                }
                _ => {}
            }
        }
        Ok(size)
    }

    fn parent_tree(&self, child: &Found) -> Result<Option<Tree>> {
        let Some(name) = &child.record.parent else { return Ok(None) };
        let Some(parent) = self.parent_of(child)? else {
            return Err(Error::NotFound { kind: "layer", name: name.clone() });
        };
        let parts = self.driver_of(&parent).parts(&parent.id()?);
        let Parts { own, below } = self.explained(&parent, parts)?;
        Ok(Some(Tree { top: own, below }))
    }
}

fn refuse_used(id: &LayerId, users: u64) -> Result<()> {
    if users > 0 { Err(mounted(id, users)) } else { Ok(()) }
}

/// The options that somebody asks for, as a mount has them.
pub(super) fn asked(options: &MountOptions) -> Vec<String> {
    let label = options.label.as_ref().map(|label| format!("context=\"{label}\""));
    let read_only = options.read_only.then(|| "ro".to_owned());
    options.extra.iter().cloned().chain(label).chain(read_only).collect()
}

/// Mounts a layer, or takes part in the mount that is there, if that has the options that were `asked` for.
pub(super) fn take_part(
    held: &Held,
    id: &LayerId,
    mount: &Mount,
    asked: &[String],
) -> Result<PathBuf> {
    if mount.kind == Kind::Bind && asked.iter().any(|option| option != "ro") {
        let why = "it is seen as its own directory, read-only, and can have no others";
        return Err(Error::invalid(format!("options for layer '{id}'"), why));
    }
    if !asked.is_empty() {
        if let Some(option) = held.lacks(&mount.target, asked)? {
            let why = format!(
                "layer '{id}' is mounted already, without it; leave it out, or unmount the layer first"
            );
            return Err(Error::invalid(format!("option '{option}'"), why));
        }
    }
    if held.lets_only_read(mount)? {
        let why = format!(
            "layer '{id}' is mounted already, with it; give it too, or unmount the layer first"
        );
        return Err(Error::invalid("option 'ro'", why));
    }
    held.mount(mount, &server())
}

/// A directory that is given as it is has no options.
fn refuse_options(id: &LayerId, asked: &[String]) -> Result<()> {
    if asked.is_empty() {
        return Ok(());
    }
    let why = "it is seen as its own directory, without a mount that could have any";
    Err(Error::invalid(format!("options for layer '{id}'"), why))
}

/// When a layer's storage was there as its parent is, or a moment later. That of a copy never was: all its inodes are new, and
/// do not tell what had changed in its template.
fn made(record: &Record) -> Option<i64> {
    if record.template.is_some() {
        return Some(i64::MIN);
    }
    i64::try_from(record.created).ok()
}

/// This very program, also after its file was replaced: in the new process too the link leads to it.
fn server() -> Server {
    Server::Program(PathBuf::from("/proc/self/exe"))
}
