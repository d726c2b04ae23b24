//! Seeing a layer: mounted, as the list of its changes, as an archive.

use std::collections::HashSet;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::pending::{Pending, Work};
use super::{Record, SPLIT, Store, changing};
use crate::driver::{Diffing, LayerId, MountOptions, Parts, View};
use crate::error::{Error, Result};
use crate::layer::Belief;
use crate::layer::changes::{self, Change, ChangeKind};
use crate::layer::compare::{Comparison, Tree};
use crate::layer::diff::{self, Spec};
use crate::layer::split;
use crate::mount::count::{Counts, Held};
use crate::mount::plan::{self, Server};

impl Store {
    /// Mounts a layer, or takes part in the mount that is there. Returns where it is seen.
    pub fn mount(&self, id: &LayerId, options: &MountOptions) -> Result<PathBuf> {
        self.get(id)?;
        self.settle_names(id)?;
        // Nobody begins to fill or remove it before its new user is counted.
        let held = self.counts()?.hold(id.as_str())?;
        let record = self.get(id)?;
        if Pending::of(&self.pending(), id)? == Some(Work::Apply) {
            return Err(changing(id));
        }
        let asked = options.label.is_some() || options.read_only || !options.extra.is_empty();
        let mut options = options.clone();
        options.read_only |= record.read_only;
        options.label = options.label.or(record.label);
        match self.driver.view(id, &options)? {
            View::Path(_) if asked => {
                let why = "it is seen as its own directory, without a mount that could have any";
                Err(Error::invalid(format!("options for layer '{id}'"), why))
            }
            View::Path(path) => held.take().map(|()| path),
            View::Mount(mount) => {
                if asked && held.count(&mount.target)? > 0 {
                    log::warn!(
                        "layer '{id}' is mounted already, and stays with the options that it has"
                    );
                }
                held.mount(&mount, &server())
            }
        }
    }

    /// Takes one mount of a layer back; the last one unmounts it.
    pub fn unmount(&self, id: &LayerId) -> Result<()> {
        self.get(id)?;
        self.release(id)
    }

    /// One user fewer of a layer. What it was seen by may be another way than it would be now: a layer can become one that is
    /// mounted.
    fn release(&self, id: &LayerId) -> Result<()> {
        let (counts, name) = (self.counts()?, id.as_str());
        if let View::Mount(mount) = self.driver.view(id, &MountOptions::default())? {
            match counts.unmount(name, &mount.target) {
                Err(Error::NotFound { .. }) => {}
                left => {
                    let settled = if left? == 0 { self.settle_names(id) } else { Ok(()) };
                    // It is unmounted all the same, and whoever reads the layer next tries again.
                    if let Err(error) = settled {
                        log::warn!("layer '{id}': {error}");
                    }
                    return Ok(());
                }
            }
        }
        match counts.give_back(name)? {
            true => Ok(()),
            false => Err(Error::NotFound { kind: "mount of layer", name: id.to_string() }),
        }
    }

    /// Makes a layer's own directory tell all names that a killed server has shown. One that is mounted stays as it is: its
    /// server does it at its end.
    pub(super) fn settle_names(&self, id: &LayerId) -> Result<()> {
        let Some(mount) = self.driver.unsettled(id)? else { return Ok(()) };
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
        self.hold(id).map(|(_, users)| users)
    }

    /// Keeps everybody from mounting a layer and from taking mounts of it back; how many have it. One whose storage is lost
    /// nobody has.
    pub(super) fn hold(&self, id: &LayerId) -> Result<(Held, u64)> {
        self.is_there(id)?;
        let held = self.counts()?.hold(id.as_str())?;
        if !self.driver.exists(id)? {
            return Ok((held, 0));
        }
        let used = held.used()?;
        let mounted = match self.driver.view(id, &MountOptions::default())? {
            View::Path(_) => 0,
            View::Mount(mount) => held.count(&mount.target)?,
        };
        Ok((held, used.saturating_add(mounted)))
    }

    fn counts(&self) -> Result<Counts> {
        Counts::open(&self.run)
    }

    /// What a layer adds to, changes and deletes in its parent, sorted by path.
    pub fn changes(&self, id: &LayerId) -> Result<Vec<Change>> {
        let record = self.get(id)?;
        self.settle_names(id)?;
        let (Parts { own, below }, belief) = (self.driver.parts(id)?, self.belief(&record));
        match self.driver.diffing(id)? {
            Diffing::Native => changes::list_believing(&own, &below, belief),
            Diffing::Naive => {
                let old = self.parent_tree(record.parent.as_deref())?;
                let new = Tree { top: own, below };
                Comparison { old: old.as_ref(), new: &new, since: made(&record), belief }.list()
            }
        }
    }

    /// Writes what a layer adds to its parent as an image layer: the archive that it was filled from, byte for byte, if it
    /// was. After an error `out` has no end of archive.
    pub fn diff(&self, id: &LayerId, out: &mut impl Write) -> Result<()> {
        let record = self.get(id)?;
        if record.content.is_some() {
            return self.archive(id, out);
        }
        self.settle_names(id)?;
        let (Parts { own, below }, belief) = (self.driver.parts(id)?, self.belief(&record));
        match self.driver.diffing(id)? {
            Diffing::Native => {
                let spec = Spec { upper: own, lowers: below, user_marks: false };
                diff::write_believing(&spec, belief, out)
            }
            Diffing::Naive => {
                let old = self.parent_tree(record.parent.as_deref())?;
                let new = Tree { top: own, below };
                Comparison { old: old.as_ref(), new: &new, since: made(&record), belief }.write(out)
            }
        }
    }

    /// Whose word is taken on what a layer holds.
    fn belief(&self, record: &Record) -> Belief {
        let belief = self.driver.belief();
        if record.parent.is_none() { belief.of_the_lowest() } else { belief }
    }

    /// Puts the archive that a layer was filled from together again.
    fn archive(&self, id: &LayerId, out: &mut impl Write) -> Result<()> {
        let path = self.split(id);
        match File::open(&path) {
            Ok(mut record) => split::assemble(&mut record, &*self.driver.files(id)?, out),
            Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::Corrupt {
                what: format!("layer '{id}'"),
                detail: format!("{} is missing", path.display()),
            }),
            Err(e) => Err(Error::io("open", path, e)),
        }
    }

    /// Where the record of its archive is.
    pub(super) fn split(&self, id: &LayerId) -> PathBuf {
        self.layers().join(id.as_str()).join(SPLIT)
    }

    /// Bytes of the data of the files that a layer adds or changes, one with several names once.
    pub fn size(&self, id: &LayerId) -> Result<u64> {
        if let Some(content) = self.get(id)?.content {
            return Ok(content.size);
        }
        let own = self.driver.parts(id)?.own;
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

    fn parent_tree(&self, parent: Option<&str>) -> Result<Option<Tree>> {
        let Some(parent) = parent else { return Ok(None) };
        let Parts { own, below } = self.driver.parts(&LayerId::new(parent)?)?;
        Ok(Some(Tree { top: own, below }))
    }
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
