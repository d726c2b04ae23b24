//! What `overlay2` and `fuse-overlay` have in common: all but who mounts.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::fill::{self, Deletions, Files, Target};
use super::layout::{self, FRESH, Layout};
use super::options::Config;
use super::{
    Additional, Create, Diffing, Driver, FileGetter, LayerId, MountOptions, Parts, Quota, Usage,
    View, additional, options, overlay2,
};
use crate::error::{Context, Error, Result};
use crate::layer::Belief;
use crate::layer::apply::{Applied, Limits};
use crate::mount::plan::{self, Kind, Mount};
use crate::quota;
use crate::sys::{change, copy, publish, trash};

/// The directory that both keep their layers in.
pub(super) const HOME: &str = "overlay2";

/// A driver on the overlay format.
#[derive(Debug)]
pub(super) struct Layered {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) layout: Layout,
    /// The most layers that one mount takes.
    pub(super) most: usize,
    /// Owners are kept in attributes, which a mount shows.
    pub(super) records: bool,
    /// Whose word is taken on what the layers hold.
    pub(super) belief: Belief,
    /// Limits of read-write layers that come without.
    pub(super) limits: Quota,
    /// Its mounts keep limits where no project does.
    pub(super) meters: bool,
    /// Options of every mount.
    pub(super) mount: Vec<String>,
    /// Facts about this host, found when the driver was opened.
    pub(super) facts: Vec<(&'static str, String)>,
    /// Other stores of this format.
    pub(super) additional: Vec<Additional>,
}

impl Layered {
    fn mount(&self, id: &LayerId, wanted: &MountOptions, read_only: bool) -> Result<Mount> {
        let Parts { own, below } = self.layout.parts(id)?;
        let dir = self.layout.dir(id)?;
        let mut lowers = if read_only { vec![own.clone()] } else { Vec::new() };
        lowers.extend(below);
        if lowers.is_empty() {
            lowers.push(dir.join("empty"));
        }
        if lowers.len() > self.most {
            let what = format!("layer '{id}' with {}", self.name);
            let why = format!(
                "{} layers make it up, and a mount takes {}; use --driver fuse-overlay",
                lowers.len(),
                self.most
            );
            return Err(Error::unsupported(what, why));
        }
        let mut options = self.mount.clone();
        if !read_only {
            let Quota { bytes, inodes } = self.kept(id)?;
            options.extend(bytes.map(|bytes| format!("size={bytes}")));
            options.extend(inodes.map(|inodes| format!("nr_inodes={inodes}")));
        }
        if wanted.volatile && !read_only {
            options.push("volatile".to_owned());
        }
        options.extend(wanted.extra.iter().cloned());
        let label =
            wanted.label.clone().map_or_else(|| self.layout.label(id), |own| Ok(Some(own)))?;
        options.extend(label.map(|label| format!("context=\"{label}\"")));
        let upper = (!read_only).then(|| (own, dir.join("work")));
        let (ids, target) = (wanted.ids.clone(), dir.join("merged"));
        let mut mount = Mount { kind: self.kind, lowers, upper, options, ids, target };
        // The kernel's overlay merges two directories at least.
        if mount.kind == Kind::Overlay && mount.upper.is_none() && mount.lowers.len() == 1 {
            (mount.kind, mount.options) = (Kind::Bind, Vec::new());
        }
        Ok(mount)
    }

    /// A layer that has no parent is its own directory, unless only a mount shows what it holds, or holds everybody to its
    /// limits: those of a project are nothing to who may exceed them, and a mount never may.
    fn is_plain(&self, id: &LayerId) -> Result<bool> {
        let alone = self.layout.parts(id)?.below.is_empty();
        let mounted = self.records || self.layout.state(id)?.is_some();
        let shown = mounted && self.layout.dir(id)?.join("empty").is_dir();
        Ok(alone && !shown && self.kept(id)?.is_none())
    }

    /// The limits of a layer that mounts of this driver have to keep, because no project does.
    fn kept(&self, id: &LayerId) -> Result<Quota> {
        let limits = self.layout.limits(id)?;
        if limits.is_none() || self.layout.state(id)?.is_some() {
            return Ok(Quota::default());
        }
        if !self.meters || !self.layout.can_mount(id)? {
            log::warn!("layer '{id}': its limits are not kept by {}", self.name);
            return Ok(Quota::default());
        }
        Ok(limits)
    }

    /// Whether such limits can be kept.
    fn check_limits(&self, limits: Quota) -> Result<()> {
        match self.layout.projects() {
            Err(_) if self.meters => Ok(()),
            projects => options::check_kept(self.name, projects, limits),
        }
    }

    /// The driver with the additional stores it was given, when its layers can have the limits that they get without asking.
    pub(super) fn checked(mut self, config: &Config) -> Result<Layered> {
        self.check_limits(self.limits)?;
        let roots = additional::roots(config, self.name, HOME)?;
        self.layout.look_at(roots.iter().map(|root| root.join(HOME)).collect());
        for (place, root) in roots.into_iter().enumerate() {
            let reader = Layered {
                layout: self.layout.other(place)?,
                mount: self.mount.clone(),
                facts: Vec::new(),
                additional: Vec::new(),
                limits: Quota::default(),
                meters: false,
                ..self
            };
            self.additional.push(Additional { root, driver: Box::new(reader) });
        }
        Ok(self)
    }
}

impl Driver for Layered {
    fn name(&self) -> &'static str {
        self.name
    }

    fn home(&self) -> &Path {
        self.layout.home()
    }

    fn create(&self, id: &LayerId, parent: Option<&LayerId>, spec: &Create) -> Result<()> {
        let limits = options::limits(spec, self.limits)?;
        self.check_limits(limits)?;
        self.layout.create(id, parent, spec, limits)
    }

    fn remove(&self, id: &LayerId) -> Result<()> {
        self.layout.remove(id)
    }

    fn exists(&self, id: &LayerId) -> Result<bool> {
        self.layout.exists(id)
    }

    fn list(&self) -> Result<Vec<LayerId>> {
        self.layout.list()
    }

    fn parent(&self, id: &LayerId) -> Result<Option<LayerId>> {
        self.layout.parent(id)
    }

    fn parts(&self, id: &LayerId) -> Result<Parts> {
        self.layout.parts(id)
    }

    fn view(&self, id: &LayerId, options: &MountOptions) -> Result<View> {
        let read_only = options.read_only || self.layout.is_committed(id)?;
        if self.is_plain(id)? {
            let own = self.layout.parts(id)?.own;
            return Ok(match read_only {
                true => {
                    View::Mount(Mount::bind(own, &options.ids, self.layout.dir(id)?.join("merged")))
                }
                false => View::Path(own),
            });
        }
        Ok(View::Mount(self.mount(id, options, read_only)?))
    }

    fn additional(&self) -> &[Additional] {
        &self.additional
    }

    fn shown(&self, id: &LayerId, options: &MountOptions, target: PathBuf) -> Result<Mount> {
        let mut mount = self.mount(id, options, true)?;
        mount.target = target;
        Ok(mount)
    }

    fn unsettled(&self, id: &LayerId) -> Result<Option<Mount>> {
        let work = self.layout.dir(id)?.join("work");
        if !layout::holds_files(&work.join("index"))? || work.join("settled").exists() {
            return Ok(None);
        }
        let mut mount = self.mount(id, &MountOptions::default(), false)?;
        // The kernel's overlay leaves such names too, where it keeps an index.
        if mount.kind != Kind::Fuse {
            (mount.kind, mount.options) = (Kind::Fuse, Vec::new());
        }
        Ok(Some(mount))
    }

    fn belief(&self) -> Belief {
        self.belief
    }

    fn diffing(&self, _id: &LayerId) -> Result<Diffing> {
        Ok(Diffing::Native)
    }

    fn apply(
        &self,
        id: &LayerId,
        archive: &mut dyn Read,
        limits: &Limits,
        split: Option<&mut dyn Write>,
    ) -> Result<Applied> {
        let Parts { own, below } = self.layout.parts(id)?;
        let dir = self.layout.dir(id)?;
        refuse_full(id, &own)?;
        let _working = self.layout.work()?;
        self.layout.delete_fresh(id)?;
        let root = dir.join(FRESH);
        let deletions = Deletions::Overlay;
        let filled = layout::make_dir(&root, 0o755)
            .and_then(|()| {
                copy::directory_attributes(&own, &root, copy::How::default()).on("copy", &own)
            })
            .and_then(|()| quota::adopt(&own, &root))
            .and_then(|()| {
                let target =
                    Target { root: root.clone(), lowers: below, belief: self.belief, deletions };
                fill::fill(target, archive, limits, split)
            })
            .and_then(|applied| {
                self.layout.sync().content(&root)?;
                // An empty directory gives way to it.
                change::rename(&root, &own).on("rename", &root)?;
                publish::sync_dir(&dir).on("sync", &dir)?;
                Ok(applied)
            });
        if filled.is_err() {
            if let Err(error) = trash::delete(&dir, FRESH.as_ref(), None) {
                log::warn!("delete {}: {error}", root.display());
            }
        }
        filled
    }

    fn files(&self, id: &LayerId) -> Result<Box<dyn FileGetter>> {
        Ok(Box::new(Files::of(&self.layout.parts(id)?.own)?))
    }

    fn quota(&self, id: &LayerId) -> Result<Quota> {
        match self.layout.state(id)? {
            Some(state) => Ok(state.limits),
            None if self.meters => self.layout.limits(id),
            None => self.layout.dir(id).map(|_| Quota::default()),
        }
    }

    /// A project's limits change at once. A mount that keeps the limits itself keeps those that it was made with.
    fn set_quota(&self, id: &LayerId, quota: Quota) -> Result<()> {
        options::check_limits(quota, self.layout.is_committed(id)?)?;
        self.check_limits(quota)?;
        if self.layout.state(id)?.is_none() && !self.meters && !quota.is_none() {
            return Err(options::no_project(id));
        }
        self.layout.set_limits(id, quota)
    }

    /// Of a layer in a project its count, which takes no walk.
    fn usage(&self, id: &LayerId) -> Result<Usage> {
        match self.layout.state(id)? {
            Some(state) => self.layout.without_work(id, state.usage),
            None => layout::usage(&self.layout.parts(id)?.own),
        }
    }

    fn metadata(&self, id: &LayerId) -> Result<Vec<(&'static str, String)>> {
        let Parts { own, below } = self.layout.parts(id)?;
        let dir = self.layout.dir(id)?;
        let text = |path: &Path| path.display().to_string();
        let mut facts = Vec::new();
        if !below.is_empty() {
            let below: Vec<String> = below.iter().map(|path| text(path)).collect();
            facts.push(("LowerDir", below.join(":")));
        }
        facts.push(("UpperDir", text(&own)));
        facts.push(("WorkDir", text(&dir.join("work"))));
        facts.push(("MergedDir", text(&dir.join("merged"))));
        Ok(facts)
    }

    fn status(&self) -> Vec<(&'static str, String)> {
        let mounts = match self.kind {
            Kind::Overlay => overlay2::try_ids(self.layout.home(), &self.mount),
            _ => plan::try_ids(self.layout.home(), &options::one_id()),
        };
        let shifting = ("Supports shifting", options::told_shifting(mounts));
        self.facts.iter().cloned().chain([shifting]).collect()
    }

    fn sweep(&self) -> Result<Vec<String>> {
        self.layout.sweep()
    }

    fn repair(&self, id: &LayerId, parent: Option<&LayerId>) -> Result<bool> {
        self.layout.repair(id, parent)
    }

    fn cleanup(&self) -> Result<()> {
        Ok(())
    }
}

/// An archive fills a layer once.
pub(super) fn refuse_full(id: &LayerId, own: &Path) -> Result<()> {
    let mut entries = std::fs::read_dir(own).on("list", own)?;
    match entries.next() {
        None => Ok(()),
        Some(_) => {
            Err(Error::invalid(format!("layer '{id}'"), "is not empty, an archive fills it once"))
        }
    }
}

/// Whether there is a directory in a home that may be a layer.
fn has_layers(home: &Path) -> bool {
    let entries = std::fs::read_dir(home).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name())
        .any(|name| name.to_str().is_some_and(|name| LayerId::new(name).is_ok() && name != "l"))
}

/// What `attempt` finds. Where there are layers already it has worked once: that there is no room to try it again is no reason
/// to refuse the store, in which removing a layer makes room.
pub(super) fn try_with_room<T>(
    home: &Path,
    known: T,
    attempt: impl FnOnce() -> Result<T>,
) -> Result<T> {
    match attempt() {
        Err(error) if error.is_no_room() && has_layers(home) => {
            log::debug!("not tried again: {error}");
            Ok(known)
        }
        other => other,
    }
}

/// A directory for trying things, which goes whatever comes of them. One that nobody has locked was left by a crash: it is
/// made and locked under the lock of the root.
#[derive(Debug)]
pub(super) struct Trial(PathBuf, #[allow(dead_code, reason = "its lock tells that we live")] File);

/// The beginning of its name.
const TRIAL: &str = ".trial-";

impl Trial {
    /// Makes one in the root of a store, which is made too when it is missing.
    pub(super) fn new(root: &Path) -> Result<Trial> {
        change::make_dirs(root, 0o755).on("create", root)?;
        let _making = super::lock_root(root)?;
        Trial::sweep(root)?;
        let name = publish::random_name(12).on("getrandom", "")?;
        let path = root.join(format!("{TRIAL}{name}"));
        layout::make_dir(&path, 0o700)?;
        let lock = File::open(&path).on("open", &path)?;
        publish::lock_shared(&lock).on("lock", &path)?;
        Ok(Trial(path, lock))
    }

    /// Deletes those whose makers died.
    fn sweep(root: &Path) -> Result<()> {
        for name in layout::names(root)?.iter().filter(|name| name.starts_with(TRIAL)) {
            let path = root.join(name);
            // One that went since it was listed.
            let Ok(dir) = File::open(&path) else { continue };
            if !publish::try_lock(&dir).on("lock", &path)? {
                continue;
            }
            // Where a mount cannot be tried without being seen, it may be there still.
            let target = path.join("merged");
            let cleared = match target.symlink_metadata() {
                Ok(_) => plan::take_away(&target, true),
                Err(_) => Ok(()),
            };
            let deleted = || trash::delete(root, name.as_ref(), None).on("delete", &path);
            if let Err(error) = cleared.and_then(|()| deleted()) {
                log::warn!("{error}");
            }
        }
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let (dir, name) = (self.0.parent(), self.0.file_name());
        if let Some(Err(error)) = dir.zip(name).map(|(dir, name)| trash::delete(dir, name, None)) {
            log::warn!("delete {}: {error}", self.0.display());
        }
    }
}

/// Where in the home a layer keeps what it holds.
pub(super) fn place(home: &Path, id: &str) -> PathBuf {
    home.join(id).join("diff")
}

/// Reads a yes or no of the overlay module.
pub(super) fn module_says(parameter: &str) -> Option<bool> {
    let path = Path::new("/sys/module/overlay/parameters").join(parameter);
    let text = std::fs::read_to_string(path).ok()?;
    Some(matches!(text.trim(), "Y" | "1"))
}
