//! The legacy driver `overlay`: images are whole trees whose files are shared by hard links, containers are one overlay over
//! an image.
//!
//! | path below the home | what |
//! |---|---|
//! | `ID/root` | an image: its whole tree |
//! | `ID/{upper,work,merged,lower-id}` | a container: what it changes in the image that `lower-id` names |
//! | `ID/parent` | the layer's parent |
//! | `ID/copied` | its tree is a copy of its parent's, which is in another store |
//! | `ID/shared` | other images share files with it, or may soon, or (empty) it is never written for other reasons |
//!
//! A file with many names is never written: an archive replaces files, and an image that shares any is seen read-only. A
//! layer with both `root` and `upper` is an image whose archive was applied just before a crash.

mod build;
mod files;

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use self::files::{copy_tree, read_id, tempfile, whole};
use super::fill::{self, Files};
use super::layered::{module_says, refuse_full, try_with_room};
use super::options::{self, Config, refuse_backing};
use super::overlay2::uses_user;
use super::shelf::Shelf;
use super::{
    Additional, Create, Diffing, Driver, FileGetter, LayerId, MountOptions, Parts, Quota, Usage,
    View, additional, layout, overlay2,
};
use crate::doctor::filesystem;
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::layer::Belief;
use crate::layer::apply::{Applied, Limits};
use crate::layer::diff;
use crate::mount::plan::{Kind, Mount};
use crate::sys::{change, publish, trash, tree};

pub(super) const NAME: &str = "overlay";
/// Its directory; the overlay format of other programs has the same name.
pub(super) const HOME: &str = "overlay";

/// Why its layers are not limited.
const NO_QUOTA: &str =
    "its layers share files, which belong to one project only; use another driver";

const REFUSED: [&str; 9] =
    ["aufs", "btrfs", "zfs", "overlay", "ecryptfs", "nfs", "cifs", "smb", "vfat"];

/// A tree that is being made inside a layer.
const FRESH: &str = "root.new";

/// What `shared` says in an image that layers are built on, as long as there are any.
const HAS_CHILDREN: &str = "has children";

/// What makes a layer a container, in the order in which it goes.
const CONTAINER: [&str; 3] = ["lower-id", "work", "upper"];

#[derive(Debug)]
struct Hardlink {
    layers: Shelf,
    mount: Vec<String>,
    backing: String,
    /// Other stores of this format.
    additional: Vec<Additional>,
}

/// Opens the driver, after the kernel's overlay has been seen to work.
pub(super) fn open(config: &Config) -> Result<Box<dyn Driver>> {
    let settings = config.settings(NAME, &["mountopt"], &[])?;
    change::make_dirs(&config.root, 0o755).on("create", &config.root)?;
    let home = config.root.join(HOME);
    if home.join("l").symlink_metadata().is_ok() {
        let why = "is a store of containers/storage or iSulad, not of the legacy driver";
        return Err(Error::invalid(home.display().to_string(), why));
    }
    refuse_backing(NAME, &config.root, &REFUSED)?;
    let mut mount = Vec::new();
    let user = !tree::has_initial_privilege();
    if user {
        mount.push("userxattr".to_owned());
    }
    let attempt = || overlay2::attempt(config, user, &mount);
    try_with_room(&home, true, attempt)?;
    if module_says("index").is_some() {
        mount.push("index=off".to_owned());
    }
    mount.extend(settings.mount);
    let layers = Shelf::open(home, NO_QUOTA)?.synced(settings.sync);
    let backing = filesystem::name(layers.dir());
    let reader = |root: PathBuf| {
        let (layers, mount) = (Shelf::reader(root.join(HOME)), mount.clone());
        let (backing, additional) = (String::new(), Vec::new());
        let driver = Box::new(Hardlink { layers, mount, backing, additional });
        Additional { root, driver }
    };
    let additional = additional::roots(config, NAME, HOME)?.into_iter().map(reader).collect();
    Ok(Box::new(Hardlink { layers, mount, backing, additional }))
}

/// Where in the home a layer is.
pub(super) fn place(home: &Path, id: &str) -> PathBuf {
    home.join(id)
}

/// What a layer is.
enum Shape {
    Image(PathBuf),
    Container {
        dir: PathBuf,
        /// The image's tree.
        root: PathBuf,
    },
}

impl Hardlink {
    fn shape(&self, id: &LayerId) -> Result<Shape> {
        if !self.exists(id)? {
            return Err(Error::NotFound { kind: "layer", name: id.to_string() });
        }
        let dir = self.layers.at(id);
        let root = dir.join("root");
        if root.is_dir() {
            return Ok(Shape::Image(root));
        }
        let image = read_id(&dir.join("lower-id"))?;
        let image = image.map(|image| self.layers.at(&image).join("root"));
        match image.filter(|root| root.is_dir()) {
            Some(root) => Ok(Shape::Container { dir, root }),
            None => Err(Error::Corrupt {
                what: format!("layer '{id}'"),
                detail: "its lower-id names no image".to_owned(),
            }),
        }
    }

    /// An image that is read-only only because of children may be written again when there are none.
    fn release_parents(&self, done: &mut Vec<String>) -> Result<()> {
        let (layers, mut below) = (self.list()?, HashSet::new());
        for id in &layers {
            let dir = self.layers.at(id);
            below.extend(read_id(&dir.join("parent"))?);
            below.extend(read_id(&dir.join("lower-id"))?);
        }
        for id in layers.iter().filter(|id| !below.contains(id)) {
            let mark = self.layers.at(id).join("shared");
            if durable::read(&mark).is_ok_and(|text| text == HAS_CHILDREN.as_bytes()) {
                change::remove_file(&mark).on("remove", &mark)?;
                done.push(format!("layer '{id}': may be changed again, no layer is built on it"));
            }
        }
        Ok(())
    }

    /// Makes at `root` the tree that a container shows, whose files are its image's as far as it has not changed them.
    fn build_tree(&self, id: &LayerId, image: &Path, upper: &Path, root: &Path) -> Result<()> {
        copy_tree(image, root, true, None)?;
        if self.diffing(id)? == Diffing::Native {
            return Ok(());
        }
        // What was copied from the container below, as an archive that lies beside the layers.
        let mut archive = tempfile(self.layers.dir())?;
        let spec = diff::Spec {
            upper: upper.to_path_buf(),
            lowers: vec![image.to_path_buf()],
            user_marks: false,
        };
        diff::write_believing(&spec, self.belief(), &mut archive)?;
        archive.rewind().on("rewind", "the archive")?;
        fill::fill(whole(root), &mut archive, &Limits::default(), None).map(drop)
    }

    /// Deletes what made a layer a container, now that it is an image.
    fn drop_container(&self, dir: &Path) -> Result<bool> {
        if !CONTAINER.iter().any(|name| dir.join(name).symlink_metadata().is_ok()) {
            return Ok(false);
        }
        // An image has one too while it is mounted; that is another.
        let merged = dir.join("merged");
        if merged.is_dir() {
            if let Err(error) = change::remove_dir(&merged) {
                log::debug!("remove {}: {error}", merged.display());
            }
        }
        for name in CONTAINER {
            trash::delete(dir, name.as_ref(), None).on("delete", dir.join(name))?;
        }
        Ok(true)
    }

    fn label(&self, id: &LayerId, options: &MountOptions) -> Result<Option<String>> {
        let path = self.layers.at(id).join("label");
        match (&options.label, durable::read_text(&path)) {
            (Some(label), _) => Ok(Some(label.clone())),
            (None, Err(error)) if error.kind() == ErrorKind::NotFound => Ok(None),
            (None, read) => Ok(Some(read.on("read", &path)?)),
        }
    }
}

impl Driver for Hardlink {
    fn name(&self) -> &'static str {
        NAME
    }

    fn home(&self) -> &Path {
        self.layers.dir()
    }

    fn create(&self, id: &LayerId, parent: Option<&LayerId>, spec: &Create) -> Result<()> {
        if !options::limits(spec, Quota::default())?.is_none() {
            return Err(options::no_quota(NAME, NO_QUOTA));
        }
        self.layers.publish(id, |new| self.build(new, parent, spec))
    }

    fn remove(&self, id: &LayerId) -> Result<()> {
        self.layers.remove(id)
    }

    fn exists(&self, id: &LayerId) -> Result<bool> {
        let dir = self.layers.at(id);
        Ok(dir.join("root").is_dir() || dir.join("upper").is_dir())
    }

    fn list(&self) -> Result<Vec<LayerId>> {
        self.layers.list(|id| self.exists(id))
    }

    fn parent(&self, id: &LayerId) -> Result<Option<LayerId>> {
        self.shape(id)?;
        let dir = self.layers.at(id);
        match read_id(&dir.join("parent"))? {
            // Written by a driver that keeps no such record.
            None => read_id(&dir.join("lower-id")),
            found => Ok(found),
        }
    }

    fn parts(&self, id: &LayerId) -> Result<Parts> {
        Ok(match self.shape(id)? {
            Shape::Image(root) => Parts { own: root, below: Vec::new() },
            Shape::Container { dir, root } => Parts { own: dir.join("upper"), below: vec![root] },
        })
    }

    fn additional(&self) -> &[Additional] {
        &self.additional
    }

    fn shown(&self, id: &LayerId, options: &MountOptions, target: PathBuf) -> Result<Mount> {
        match self.view(id, &MountOptions { read_only: true, ..options.clone() })? {
            View::Mount(mount) => Ok(Mount { target, ..mount }),
            View::Path(_) => Err(Error::unsupported(format!("layer '{id}'"), "is not read-only")),
        }
    }

    fn view(&self, id: &LayerId, wanted: &MountOptions) -> Result<View> {
        let dir = self.layers.at(id);
        let target = dir.join("merged");
        let (dir, root) = match self.shape(id)? {
            Shape::Image(root) if wanted.read_only || dir.join("shared").exists() => {
                return Ok(View::Mount(Mount::bind(root, &wanted.ids, target)));
            }
            Shape::Image(root) => return Ok(View::Path(root)),
            Shape::Container { dir, root } => (dir, root),
        };
        let mut options = self.mount.clone();
        if wanted.volatile && !wanted.read_only {
            options.push("volatile".to_owned());
        }
        options.extend(wanted.extra.iter().cloned());
        options.extend(self.label(id, wanted)?.map(|label| format!("context=\"{label}\"")));
        let own = dir.join("upper");
        let (lowers, upper) = match wanted.read_only {
            true => (vec![own, root], None),
            false => (vec![root], Some((own, dir.join("work")))),
        };
        let (kind, ids) = (Kind::Overlay, wanted.ids.clone());
        Ok(View::Mount(Mount { kind, lowers, upper, options, ids, target }))
    }

    fn belief(&self) -> Belief {
        Belief::kernel(uses_user(&self.mount)).with_records(!super::can_set_owners())
    }

    fn diffing(&self, id: &LayerId) -> Result<Diffing> {
        let Shape::Container { dir, .. } = self.shape(id)? else { return Ok(Diffing::Naive) };
        // Over a container, the upper directory tells what differs from the image.
        let on_image = read_id(&dir.join("lower-id"))? == self.parent(id)?;
        Ok(if on_image { Diffing::Native } else { Diffing::Naive })
    }

    fn apply(
        &self,
        id: &LayerId,
        archive: &mut dyn Read,
        limits: &Limits,
        split: Option<&mut dyn Write>,
    ) -> Result<Applied> {
        let (dir, image) = match self.shape(id)? {
            Shape::Image(root) => {
                if !is_copy(&root) {
                    refuse_full(id, &root)?;
                }
                return self.layers.replace(&root, |new| {
                    copy_tree(&root, new, false, None)?;
                    fill::fill(whole(new), archive, limits, split)
                });
            }
            Shape::Container { dir, root } => (dir, root),
        };
        let upper = dir.join("upper");
        if self.diffing(id)? == Diffing::Native {
            refuse_full(id, &upper)?;
        }
        let _working = self.layers.work()?;
        let root = dir.join(FRESH);
        trash::delete(&dir, FRESH.as_ref(), None).on("delete", &root)?;
        let applied = self
            .build_tree(id, &image, &upper, &root)
            .and_then(|()| fill::fill(whole(&root), archive, limits, split))
            .and_then(|applied| {
                // For good: its files are those of the image below.
                durable::replace(&dir.join("shared"), b"")?;
                self.layers.sync().content(&root)?;
                publish::rename_new(&root, &dir.join("root")).on("rename", &root)?;
                publish::sync_dir(&dir).on("sync", &dir)?;
                Ok(applied)
            });
        match &applied {
            Ok(_) => self.drop_container(&dir)?,
            Err(_) => trash::delete(&dir, FRESH.as_ref(), None).on("delete", &root)?,
        };
        applied
    }

    fn files(&self, id: &LayerId) -> Result<Box<dyn FileGetter>> {
        Ok(Box::new(Files::of(&self.parts(id)?.own)?))
    }

    fn quota(&self, id: &LayerId) -> Result<Quota> {
        self.shape(id).map(|_| Quota::default())
    }

    fn set_quota(&self, id: &LayerId, quota: Quota) -> Result<()> {
        self.shape(id)?;
        if quota.is_none() { Ok(()) } else { Err(options::no_quota(NAME, NO_QUOTA)) }
    }

    fn usage(&self, id: &LayerId) -> Result<Usage> {
        layout::usage(&self.parts(id)?.own)
    }

    fn metadata(&self, id: &LayerId) -> Result<Vec<(&'static str, String)>> {
        let text = |path: &Path| path.display().to_string();
        Ok(match self.shape(id)? {
            Shape::Image(root) => vec![("RootDir", text(&root))],
            Shape::Container { dir, root } => vec![
                ("LowerDir", text(&root)),
                ("UpperDir", text(&dir.join("upper"))),
                ("WorkDir", text(&dir.join("work"))),
                ("MergedDir", text(&dir.join("merged"))),
            ],
        })
    }

    fn status(&self) -> Vec<(&'static str, String)> {
        let shifting = overlay2::try_ids(self.layers.dir(), &self.mount);
        vec![
            ("Backing Filesystem", self.backing.clone()),
            ("Supports d_type", true.to_string()),
            ("Supports shifting", options::told_shifting(shifting)),
            ("Sync", self.layers.sync().word().to_owned()),
            ("Quota", "refused: files are shared between layers".to_owned()),
        ]
    }

    fn sweep(&self) -> Result<Vec<String>> {
        self.layers.sweep(|done| {
            for id in self.list()? {
                let dir = self.layers.at(&id);
                if dir.join("root").is_dir() && self.drop_container(&dir)? {
                    done.push(format!("layer '{id}': finished making it an image"));
                }
                if dir.join(FRESH).exists() {
                    trash::delete(&dir, FRESH.as_ref(), None).on("delete", dir.join(FRESH))?;
                    done.push(format!("layer '{id}': deleted content that was not finished"));
                }
            }
            self.release_parents(done)
        })
    }

    /// Of a container with a lost `lower-id` the image is not known any more, and nothing is done.
    fn repair(&self, id: &LayerId, parent: Option<&LayerId>) -> Result<bool> {
        self.shape(id)?;
        let Some(parent) = parent else { return Ok(false) };
        if self.parent(id).is_ok_and(|found| found.as_ref() == Some(parent)) {
            return Ok(false);
        }
        durable::replace(&self.layers.at(id).join("parent"), parent.as_str().as_bytes())?;
        Ok(true)
    }

    fn cleanup(&self) -> Result<()> {
        Ok(())
    }
}

/// Whether an image has its parent's content from the beginning.
fn is_copy(root: &Path) -> bool {
    root.with_file_name("copied").exists()
}
