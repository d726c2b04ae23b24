//! Whole copies: a layer is a directory with all of its parents' content. Works everywhere, and takes the most space, less
//! where the filesystem lets copies share their data.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::fill::{self, Deletions, Files, Target};
use super::options::{self, Config};
use super::shelf::Shelf;
use super::{
    Additional, Create, Diffing, Driver, FileGetter, Ids, LayerId, MountOptions, Parts, Quota,
    Usage, View, additional, layout,
};
use crate::doctor::filesystem;
use crate::error::{Context, Error, Result};
use crate::layer::Belief;
use crate::layer::apply::{Applied, Limits};
use crate::mount::plan::{self, Mount};
use crate::quota::State;
use crate::sys::{change, copy};

pub(super) const NAME: &str = "vfs";
/// Where its layers are in a store's root.
const DIR: &str = "vfs/dir";
/// Where in its home those are mounted that are only read.
const MERGED: &str = "merged";

/// Values of the option `vfs.xattrs`, ours and moby's.
const LOSE_XATTRS: [&str; 2] = ["best-effort", "i_want_broken_containers"];

#[derive(Debug)]
struct Vfs {
    home: PathBuf,
    layers: Shelf,
    /// Limits of read-write layers that come without.
    limits: Quota,
    /// Attributes that the filesystem does not take are left out.
    lose_xattrs: bool,
    backing: String,
    /// Other stores of whole copies.
    additional: Vec<Additional>,
}

/// Opens the driver.
pub(super) fn open(config: &Config) -> Result<Box<dyn Driver>> {
    let settings = config.settings(NAME, &["size"], &["xattrs"])?;
    let lose_xattrs = match settings.other.get("xattrs") {
        None => false,
        Some(value) if LOSE_XATTRS.contains(&value.as_str()) => true,
        Some(value) => {
            let why = format!("'{value}' is not known; there is {}", LOSE_XATTRS[0]);
            return Err(Error::invalid("option 'vfs.xattrs'", why));
        }
    };
    let home = config.root.join(NAME);
    let layers = Shelf::with_projects(config.root.join(DIR), "")?.synced(settings.sync);
    let merged = home.join(MERGED);
    match change::make_dirs(&merged, 0o700).on("create", &merged) {
        // Needed to mount only; a store without room has to open, so that some can be made.
        Err(error) if error.is_no_room() => log::debug!("{error}"),
        other => other?,
    }
    let backing = filesystem::name(&home);
    let limits = settings.limits;
    let additional = additional::roots(config, NAME, DIR)?.into_iter().map(reader).collect();
    let driver = Vfs { home, layers, limits, lose_xattrs, backing, additional };
    driver.check_limits(limits)?;
    Ok(Box::new(driver))
}

/// Where in the home a layer is.
pub(super) fn place(home: &Path, id: &str) -> PathBuf {
    home.join("dir").join(id)
}

/// Reads the layers of another store.
fn reader(root: PathBuf) -> Additional {
    let (home, layers) = (root.join(NAME), Shelf::reader(root.join(DIR)));
    let (backing, limits) = (filesystem::name(&home), Quota::default());
    let additional = Vec::new();
    let driver = Box::new(Vfs { home, layers, limits, lose_xattrs: false, backing, additional });
    Additional { root, driver }
}

impl Vfs {
    fn dir(&self, id: &LayerId) -> Result<PathBuf> {
        match self.exists(id)? {
            true => Ok(self.layers.at(id)),
            false => Err(Error::NotFound { kind: "layer", name: id.to_string() }),
        }
    }

    /// What a new layer begins as a copy of.
    fn origin(&self, parent: Option<&LayerId>, spec: &Create) -> Result<Option<PathBuf>> {
        match (&spec.template, parent, spec.store) {
            // A template holds all of its parents.
            (Some(template), _, _) => self.dir(template).map(Some),
            (None, Some(parent), Some(place)) => {
                let theirs = additional::at(&self.additional, place)?;
                theirs.driver.parts(parent).map(|parts| Some(parts.own))
            }
            (None, parent, _) => parent.map(|parent| self.dir(parent)).transpose(),
        }
    }

    /// Whether layers can have these limits.
    fn check_limits(&self, limits: Quota) -> Result<()> {
        options::check_kept(NAME, self.layers.projects(), limits)
    }

    /// The limits and the use of a layer in a project of its own; `None` of another.
    fn state(&self, id: &LayerId) -> Result<Option<State>> {
        let dir = self.dir(id)?;
        self.layers.projects().map_or(Ok(None), |projects| projects.state(&dir))
    }

    /// Makes the directory of a new layer. One that is written has a project, so that it can be limited later: what it holds
    /// then stays where it is.
    fn make(&self, new: &Path, read_only: bool) -> Result<()> {
        layout::make_dir(new, 0o755)?;
        match self.layers.projects() {
            Ok(projects) if !read_only => projects.assign(&[new]),
            _ => Ok(()),
        }
    }

    /// Limits a new layer that is whole. It was made without limits: not everybody is held to them, and whoever is
    /// learns more from this than from a copy that ends in the middle.
    fn limit_new(&self, id: &LayerId, new: &Path, what: &str, limits: Quota) -> Result<()> {
        let Ok(projects) = self.layers.projects() else { return Ok(()) };
        let Some(State { usage, .. }) = projects.state(new)? else { return Ok(()) };
        options::check_copy(id, what, limits, usage)?;
        projects.limit(new, limits)
    }

    /// Copies into an empty directory.
    fn copy(&self, from: &Path, to: &Path, link: bool, ids: Option<&Ids>) -> Result<()> {
        let how = copy::How { link, lose_xattrs: self.lose_xattrs, ids, ..copy::How::default() };
        copy::content(from, to, how).map_err(|failure| {
            let path = from.join(failure.path);
            match failure.error.kind() {
                std::io::ErrorKind::Unsupported => Error::unsupported(
                    format!("copy {}", path.display()),
                    format!(
                        "{} takes no extended attributes; {NAME}.xattrs={} leaves them out",
                        self.backing, LOSE_XATTRS[0]
                    ),
                ),
                _ => Error::io("copy", path, failure.error),
            }
        })
    }
}

impl Driver for Vfs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn home(&self) -> &Path {
        &self.home
    }

    fn place(&self, id: &LayerId) -> PathBuf {
        self.layers.at(id)
    }

    fn target(&self, id: &LayerId) -> PathBuf {
        self.home.join(MERGED).join(id.as_str())
    }

    fn create(&self, id: &LayerId, parent: Option<&LayerId>, spec: &Create) -> Result<()> {
        let limits = options::limits(spec, self.limits)?;
        self.check_limits(limits)?;
        let ids = options::ids(spec)?;
        self.layers.publish(id, |new| {
            self.make(new, spec.read_only)?;
            if let Some(from) = self.origin(parent, spec)? {
                self.copy(&from, new, false, ids)?;
            }
            if let Some(label) = &spec.label {
                let set = change::set_xattr(new, "security.selinux", label.as_bytes());
                set.on("set the label of", new)?;
            }
            self.layers.sync().content(new)?;
            let what = if spec.template.is_some() { "template" } else { "parent" };
            self.limit_new(id, new, what, limits)
        })
    }

    fn remove(&self, id: &LayerId) -> Result<()> {
        self.layers.remove(id)
    }

    fn exists(&self, id: &LayerId) -> Result<bool> {
        Ok(self.layers.at(id).symlink_metadata().is_ok_and(|found| found.is_dir()))
    }

    fn list(&self) -> Result<Vec<LayerId>> {
        self.layers.list(|id| self.exists(id))
    }

    /// A copy does not tell what it is a copy of.
    fn parent(&self, id: &LayerId) -> Result<Option<LayerId>> {
        self.dir(id).map(|_| None)
    }

    fn additional(&self) -> &[Additional] {
        &self.additional
    }

    fn parts(&self, id: &LayerId) -> Result<Parts> {
        Ok(Parts { own: self.dir(id)?, below: Vec::new() })
    }

    /// The directory, whatever the options are: nothing is mounted that could honour them.
    fn view(&self, id: &LayerId, options: &MountOptions) -> Result<View> {
        let dir = self.dir(id)?;
        Ok(match options.read_only {
            true => View::Mount(Mount::bind(dir, &options.ids, self.target(id))),
            false => View::Path(dir),
        })
    }

    fn belief(&self) -> Belief {
        Belief::kernel(false).whole_tree().with_records(!super::can_set_owners())
    }

    fn diffing(&self, id: &LayerId) -> Result<Diffing> {
        self.dir(id).map(|_| Diffing::Naive)
    }

    fn apply(
        &self,
        id: &LayerId,
        archive: &mut dyn Read,
        limits: &Limits,
        split: Option<&mut dyn Write>,
    ) -> Result<Applied> {
        let dir = self.dir(id)?;
        let limited = self.state(id)?;
        self.layers.replace(&dir, |new| {
            self.make(new, limited.is_none())?;
            // The names are new and the files are not: an archive replaces files and never changes one. In a project it
            // has copies, which a file cannot share with that of the old ones.
            self.copy(&dir, new, true, None)?;
            let target = Target {
                root: new.to_path_buf(),
                lowers: Vec::new(),
                belief: self.belief(),
                deletions: Deletions::Remove,
            };
            let applied = fill::fill(target, archive, limits, split)?;
            self.limit_new(id, new, "parent", limited.unwrap_or_default().limits)?;
            Ok(applied)
        })
    }

    fn files(&self, id: &LayerId) -> Result<Box<dyn FileGetter>> {
        Ok(Box::new(Files::of(&self.dir(id)?)?))
    }

    fn quota(&self, id: &LayerId) -> Result<Quota> {
        Ok(self.state(id)?.unwrap_or_default().limits)
    }

    fn set_quota(&self, id: &LayerId, quota: Quota) -> Result<()> {
        options::check_limits(quota, false)?;
        self.check_limits(quota)?;
        match (self.layers.projects(), self.state(id)?) {
            (Ok(projects), Some(_)) => projects.limit(&self.dir(id)?, quota),
            _ if quota.is_none() => Ok(()),
            _ => Err(options::no_project(id)),
        }
    }

    /// Of a layer in a project its count, which takes no walk.
    fn usage(&self, id: &LayerId) -> Result<Usage> {
        match self.state(id)? {
            Some(state) => Ok(state.usage),
            None => layout::usage(&self.dir(id)?),
        }
    }

    fn metadata(&self, id: &LayerId) -> Result<Vec<(&'static str, String)>> {
        Ok(vec![("SourceDir", self.dir(id)?.display().to_string())])
    }

    fn status(&self) -> Vec<(&'static str, String)> {
        let quota = options::told(self.layers.projects(), "none");
        let shifting = plan::try_ids(self.layers.dir(), &options::one_id());
        let mut facts = vec![
            ("Backing Filesystem", self.backing.clone()),
            ("Supports shifting", options::told_shifting(shifting)),
            ("Sync", self.layers.sync().word().to_owned()),
            ("Quota", quota),
        ];
        if self.lose_xattrs {
            facts.push(("Extended file attributes", "best-effort".to_owned()));
        }
        facts
    }

    fn sweep(&self) -> Result<Vec<String>> {
        self.layers.sweep(|_| Ok(()))
    }

    fn cleanup(&self) -> Result<()> {
        Ok(())
    }
}
