//! The overlay format on disk, shared by the drivers `overlay2` and `fuse-overlay`.
//!
//! | path below the home | what |
//! |---|---|
//! | `ID/diff` | what the layer holds, with whiteouts |
//! | `ID/link` | the layer's short name |
//! | `ID/lower` | `l/SHORT` of everything below it, nearest parent first, with colons; absent without a parent |
//! | `ID/work` | scratch space of mounts; absent without a parent |
//! | `ID/merged` | where it is mounted, while it is |
//! | `ID/committed` | it is mounted read-only: layers are built on it, or it was made so |
//! | `ID/label` | its SELinux label, if it has one |
//! | `ID/limits.json` | its limits, if it has any |
//! | `ID/empty` | an empty lower, for mounts of a layer without a parent |
//! | `l/SHORT` | symlink to `../ID/diff` |
//!
//! A layer appears by the one rename of `.new-*` to its name, after all it names is on disk: its short link (which leads
//! nowhere until then) and its parent's. It goes by the one rename to `.gone-*`. So what a crash leaves is: `.new-*`,
//! `.gone-*`, links that lead nowhere, and the content that an unfinished apply had made; [`Layout::sweep`] deletes these,
//! and nothing else does.

mod inherit;
mod others;
mod sweep;
mod template;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::options::Sync;
use super::shelf::Shelf;
use super::{Create, LayerId, Parts, Quota, limits, options};
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::quota::{self, Projects, State};
use crate::sys::{change, copy, publish};
pub(super) use inherit::inherit;

/// The directory of short links.
const LINKS: &str = "l";
/// Characters of a short name.
const SHORT: usize = 26;
/// What `committed` says in a layer that was made read-only, and in one that layers were built on. Other programs that keep
/// this format write nothing, and mean it for good.
const READ_ONLY: &[u8] = b"read-only";
const HAS_CHILDREN: &[u8] = b"has children";
/// Content that is being made inside a layer.
pub(super) const FRESH: &str = "diff.new";
/// A directory of layers.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    shelf: Shelf,
    /// The same directory of other stores.
    others: Vec<PathBuf>,
    /// The most layers that may lie below one.
    deepest: usize,
    /// Owners are kept in attributes that only a mount shows, so a layer without a parent is mounted too.
    records: bool,
}

impl Layout {
    /// Opens the directory, made when it is missing.
    pub(super) fn open(home: PathBuf, deepest: usize, records: bool, sync: Sync) -> Result<Layout> {
        let shelf = Shelf::with_projects(home, "diff")?.synced(sync);
        let links = shelf.dir().join(LINKS);
        change::make_dirs(&links, 0o700).on("create", &links)?;
        Ok(Layout { shelf, others: Vec::new(), deepest, records })
    }

    pub(super) fn home(&self) -> &Path {
        self.shelf.dir()
    }

    /// The projects of layers, or why they have none, with what to do.
    pub(super) fn projects(&self) -> std::result::Result<&Projects, &str> {
        self.shelf.projects()
    }

    /// The limits and the use of a layer in a project of its own; `None` of another.
    pub(super) fn state(&self, id: &LayerId) -> Result<Option<State>> {
        let diff = self.dir(id)?.join("diff");
        self.projects().map_or(Ok(None), |projects| projects.state(&diff))
    }

    /// How content is made to last.
    pub(super) fn sync(&self) -> Sync {
        self.shelf.sync()
    }

    /// Keeps a sweep of another process from what is being made, as long as the value lives.
    pub(super) fn work(&self) -> Result<std::fs::File> {
        self.shelf.work()
    }

    /// The directory of a layer that exists.
    pub(super) fn dir(&self, id: &LayerId) -> Result<PathBuf> {
        match self.exists(id)? {
            true => Ok(self.at(id)),
            false => Err(Error::NotFound { kind: "layer", name: id.to_string() }),
        }
    }

    fn at(&self, id: &LayerId) -> PathBuf {
        self.home().join(id.as_str())
    }

    pub(super) fn exists(&self, id: &LayerId) -> Result<bool> {
        let diff = self.at(id).join("diff");
        match diff.symlink_metadata() {
            Ok(found) => Ok(found.is_dir()),
            // Something else may lie there, which is no directory.
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                Ok(false)
            }
            Err(error) => Err(Error::io("stat", diff, error)),
        }
    }

    pub(super) fn list(&self) -> Result<Vec<LayerId>> {
        let mut layers = Vec::new();
        for name in names(self.home())? {
            let Ok(id) = LayerId::new(&name) else { continue };
            if self.exists(&id)? {
                layers.push(id);
            }
        }
        layers.sort();
        Ok(layers)
    }

    /// Makes a layer, empty or a copy.
    pub(super) fn create(
        &self,
        id: &LayerId,
        parent: Option<&LayerId>,
        spec: &Create,
        limits: Quota,
    ) -> Result<()> {
        let short = publish::random_name(SHORT).on("getrandom", "")?;
        let links = self.home().join(LINKS);
        let link = links.join(&short);
        let made = self.shelf.publish(id, |new| {
            self.build((id, new), &short, parent, (spec, limits))?;
            let to = Path::new("..").join(id.as_str()).join("diff");
            change::symlink(&to, &link).on("create", &link)?;
            publish::sync_dir(&links).on("sync", &links)
        });
        let claimed = durable::read_text(&self.at(id).join("link")).unwrap_or_default();
        if made.is_err() && claimed != short {
            discard(&link);
        }
        made
    }

    /// Makes the layer's directory under another name.
    fn build(
        &self,
        (id, new): (&LayerId, &Path),
        short: &str,
        parent: Option<&LayerId>,
        (spec, limits): (&Create, Quota),
    ) -> Result<()> {
        make_dir(new, 0o700)?;
        let diff = new.join("diff");
        make_dir(&diff, 0o755)?;
        write(&new.join("link"), short.as_bytes())?;
        if let Some(parent) = parent {
            let other = spec.store.map(|place| self.other(place)).transpose()?;
            let store = other.as_ref().unwrap_or(self);
            write(&new.join("lower"), store.below(parent)?.join(":").as_bytes())?;
            if spec.template.is_none() {
                inherit(&store.dir(parent)?.join("diff"), &diff, other.is_some())?;
                publish::sync_dir(&diff).on("sync", &diff)?;
            }
            // A layer of another store stays as it is: its own store changes it no more.
            if other.is_none() {
                self.commit(parent)?;
            }
        }
        let mounted = parent.is_some() || self.records || !limits.is_none();
        if mounted {
            make_dir(&new.join("work"), 0o700)?;
        }
        if mounted && parent.is_none() {
            make_dir(&new.join("empty"), 0o755)?;
        }
        if !spec.read_only {
            self.assign(new)?;
        }
        if let Some(template) = &spec.template {
            template::copy(&self.dir(template)?, new, options::ids(spec)?, self.sync())?;
        }
        if !spec.read_only {
            self.limit_new((id, new), spec.template.is_some(), limits)?;
        }
        if let Some(label) = &spec.label {
            write(&new.join("label"), label.as_bytes())?;
        }
        if spec.read_only {
            write(&new.join("committed"), READ_ONLY)?;
        }
        publish::sync_dir(new).on("sync", new)
    }

    /// Puts a layer that has nothing in it yet into a project. Where there are projects each layer has one, so that it can be
    /// limited later: what it holds then stays where it is.
    fn assign(&self, new: &Path) -> Result<()> {
        let Ok(projects) = self.projects() else { return Ok(()) };
        let (diff, work) = (new.join("diff"), new.join("work"));
        let dirs = [diff.as_path(), work.as_path()];
        projects.assign(&dirs[..if work.is_dir() { 2 } else { 1 }])
    }

    /// Limits a layer that is whole but for its name, in which there is nothing or a copy.
    fn limit_new(&self, (id, new): (&LayerId, &Path), is_copy: bool, limits: Quota) -> Result<()> {
        let diff = new.join("diff");
        if is_copy && !limits.is_none() {
            let state = self.projects().map_or(Ok(None), |projects| projects.state(&diff))?;
            let used = state.map_or_else(|| usage(&diff), |state| Ok(state.usage))?;
            options::check_copy(id, "template", limits, used)?;
        }
        if let Ok(projects) = self.projects() {
            projects.limit(&diff, limits)?;
        }
        if limits.is_none() { Ok(()) } else { limits::write(new, limits) }
    }

    /// What `lower` says in a child of `parent`.
    fn below(&self, parent: &LayerId) -> Result<Vec<String>> {
        let short = self.short(parent)?;
        let mut below = vec![format!("{LINKS}/{short}")];
        below.extend(self.lower(parent)?);
        if below.len() > self.deepest {
            let what = format!("a layer on '{parent}'");
            let why =
                format!("{} layers lie below it, and at most {} may", below.len(), self.deepest);
            return Err(Error::unsupported(what, why));
        }
        Ok(below)
    }

    /// The layer's short name, whose link exists when this returns.
    fn short(&self, id: &LayerId) -> Result<String> {
        let path = self.dir(id)?.join("link");
        let short = match durable::read_text(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            other => other.on("read", &path)?.trim_end().to_owned(),
        };
        if is_short(&short) && self.target(&short)?.as_ref() == Some(id) {
            return Ok(short);
        }
        Err(Error::Corrupt {
            what: format!("layer '{id}'"),
            detail: format!(
                "its short name '{short}' does not lead back to it; a check repairs that"
            ),
        })
    }

    /// Marks a layer as one that others are built on.
    fn commit(&self, id: &LayerId) -> Result<()> {
        let mark = self.at(id).join("committed");
        match publish::write_new(&mark, HAS_CHILDREN) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(Error::io("create", mark, error)),
            Ok(()) => publish::sync_dir(&self.at(id)).on("sync", &mark),
        }
    }

    /// Puts a layer out of sight and deletes what there is time for.
    pub(super) fn remove(&self, id: &LayerId) -> Result<()> {
        if !self.exists(id)? {
            return Ok(());
        }
        let link = durable::read_text(&self.at(id).join("link")).unwrap_or_default();
        self.shelf.remove(id)?;
        if is_short(link.trim_end()) {
            discard(&self.home().join(LINKS).join(link.trim_end()));
        }
        Ok(())
    }

    /// The layer's parent.
    pub(super) fn parent(&self, id: &LayerId) -> Result<Option<LayerId>> {
        match self.lower(id)?.first() {
            None => Ok(None),
            Some(first) => self.resolve(id, first).map(|(parent, _)| Some(parent)),
        }
    }

    /// The entries of `lower`.
    fn lower(&self, id: &LayerId) -> Result<Vec<String>> {
        let path = self.dir(id)?.join("lower");
        match durable::read_text(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            other => {
                let text = other.on("read", &path)?;
                Ok(text
                    .trim_end()
                    .split(':')
                    .filter(|part| !part.is_empty())
                    .map(str::to_owned)
                    .collect())
            }
        }
    }

    /// The directories of the layer.
    pub(super) fn parts(&self, id: &LayerId) -> Result<Parts> {
        let own = self.dir(id)?.join("diff");
        let lower = self.lower(id)?;
        let below: Result<Vec<PathBuf>> =
            lower.iter().map(|entry| self.resolve(id, entry).map(|(_, diff)| diff)).collect();
        Ok(Parts { own, below: below? })
    }

    /// The layer that an entry of `lower` names, and its content.
    fn resolve(&self, id: &LayerId, entry: &str) -> Result<(LayerId, PathBuf)> {
        let short = entry.strip_prefix("l/").filter(|short| is_short(short));
        let corrupt = |detail: String| Error::Corrupt { what: format!("layer '{id}'"), detail };
        let short = short.ok_or_else(|| corrupt(format!("its list of lowers has '{entry}'")))?;
        let found = self.named(short)?;
        found.ok_or_else(|| corrupt(format!("'{entry}' below it leads to no layer")))
    }

    /// The layer that a short link leads to.
    fn target(&self, short: &str) -> Result<Option<LayerId>> {
        let link = self.home().join(LINKS).join(short);
        let to = match std::fs::read_link(&link) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => {
                return Ok(None);
            }
            other => other.on("read symlink", &link)?,
        };
        let id = to.strip_prefix("..").ok().and_then(|rest| {
            let id = rest.parent()?.to_str()?;
            (rest.file_name() == Some(OsStr::new("diff"))).then(|| LayerId::new(id).ok())?
        });
        match id {
            Some(id) if self.exists(&id)? => Ok(Some(id)),
            _ => Ok(None),
        }
    }

    /// All layers by the short names they claim.
    fn shorts(&self) -> Result<HashMap<String, LayerId>> {
        let mut shorts = HashMap::new();
        for id in self.list()? {
            let short = durable::read_text(&self.at(&id).join("link")).unwrap_or_default();
            if is_short(short.trim_end()) {
                shorts.insert(short.trim_end().to_owned(), id);
            }
        }
        Ok(shorts)
    }

    /// Whether the layer may only be seen, not changed, through a mount.
    pub(super) fn is_committed(&self, id: &LayerId) -> Result<bool> {
        Ok(self.dir(id)?.join("committed").symlink_metadata().is_ok())
    }

    /// The layer's limits.
    pub(super) fn limits(&self, id: &LayerId) -> Result<Quota> {
        limits::read(&self.dir(id)?)
    }

    /// Changes the layer's limits. A layer that has any is seen through a mount, which needs its directories.
    pub(super) fn set_limits(&self, id: &LayerId, limits: Quota) -> Result<()> {
        let (dir, diff) = (self.dir(id)?, self.dir(id)?.join("diff"));
        if let (Some(_), Ok(projects)) = (self.state(id)?, self.projects()) {
            // Seen as before, so that whoever has it does not lose it.
            projects.limit(&diff, limits)?;
            return limits::write(&dir, limits);
        }
        let work = dir.join("work");
        if !limits.is_none() && work.symlink_metadata().is_err() {
            make_dir(&work, 0o700)?;
            quota::adopt(&diff, &work)?;
        }
        let empty = dir.join("empty");
        if !limits.is_none() && self.lower(id)?.is_empty() && empty.symlink_metadata().is_err() {
            make_dir(&empty, 0o755)?;
        }
        limits::write(&dir, limits)
    }

    /// Whether the layer has what a mount needs. One that was limited by its project after it was made may not.
    pub(super) fn can_mount(&self, id: &LayerId) -> Result<bool> {
        let dir = self.dir(id)?;
        let below = !self.lower(id)?.is_empty() || dir.join("empty").is_dir();
        Ok(below && dir.join("work").is_dir())
    }

    /// What a layer holds, of what it and its scratch space take.
    pub(super) fn without_work(&self, id: &LayerId, both: super::Usage) -> Result<super::Usage> {
        let work = self.dir(id)?.join("work");
        if work.symlink_metadata().is_err() {
            return Ok(both);
        }
        // A mount may be at work there.
        let work = usage(&work).unwrap_or_default();
        let bytes = both.bytes.saturating_sub(work.bytes);
        Ok(super::Usage { bytes, inodes: both.inodes.saturating_sub(work.inodes) })
    }

    /// The layer's own label.
    pub(super) fn label(&self, id: &LayerId) -> Result<Option<String>> {
        let path = self.dir(id)?.join("label");
        match durable::read_text(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            other => Ok(Some(other.on("read", &path)?)),
        }
    }
}

fn is_short(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// Names in a directory that are text, as all of ours are.
pub(super) fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).on("list", dir)?;
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.on("list", dir)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Whether a directory holds anything that is no directory; one that is not there does not.
pub(super) fn holds_files(dir: &Path) -> Result<bool> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        other => other.on("list", dir)?,
    };
    for entry in entries {
        if !entry.and_then(|entry| entry.file_type()).on("list", dir)?.is_dir() {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn make_dir(path: &Path, mode: u32) -> Result<()> {
    change::make_dir(path, mode).on("create", path)?;
    // Whatever the umask is.
    change::chmod(path, mode).on("chmod", path)
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    publish::write_new(path, content).on("write", path)
}

/// Deletes a link; what stays is swept.
fn discard(link: &Path) {
    if let Err(error) = change::remove_file_if_any(link) {
        log::debug!("remove {}: {error}", link.display());
    }
}

/// What a layer's own part takes.
pub(super) fn usage(own: &Path) -> Result<super::Usage> {
    let (bytes, inodes) = copy::usage(own)
        .map_err(|failure| Error::io("read", own.join(failure.path), failure.error))?;
    Ok(super::Usage { bytes, inodes })
}
