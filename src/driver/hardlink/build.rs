//! What a new layer begins as: empty, on an image, on a container, or a copy.

use std::io::ErrorKind;
use std::path::Path;

use super::files::{copy_container, copy_tree, read_id, write};
use super::{HAS_CHILDREN, Hardlink, Shape};
use crate::driver::{Additional, Create, LayerId, Parts, additional, layout, options};
use crate::durable;
use crate::error::{Error, Result};

impl Hardlink {
    /// Makes the layer's directory at `new`.
    pub(super) fn build(&self, new: &Path, parent: Option<&LayerId>, spec: &Create) -> Result<()> {
        layout::make_dir(new, 0o700)?;
        match (&spec.template, parent, spec.store) {
            (Some(template), _, _) => self.build_copy(new, (parent, template), spec)?,
            (None, Some(parent), Some(place)) => {
                copy_theirs(additional::at(&self.additional, place)?, parent, &new.join("root"))?;
            }
            (None, _, _) => self.build_empty(new, parent)?,
        }
        if let Some(parent) = parent {
            write(&new.join("parent"), parent.as_str())?;
        }
        if spec.store.is_some() {
            write(&new.join("copied"), "")?;
        }
        if let Some(label) = &spec.label {
            write(&new.join("label"), label)?;
        }
        if spec.read_only {
            write(&new.join("shared"), "")?;
        }
        self.layers.sync().content(new)
    }

    /// What a layer has that is a copy of another.
    fn build_copy(
        &self,
        new: &Path,
        (parent, template): (Option<&LayerId>, &LayerId),
        spec: &Create,
    ) -> Result<()> {
        let ids = options::ids(spec)?;
        match self.shape(template)? {
            Shape::Image(root) => {
                // Of two that are never written, files can be the same.
                let fixed = durable::read(&self.layers.at(template).join("shared"));
                let link =
                    spec.read_only && ids.is_none() && fixed.is_ok_and(|text| text.is_empty());
                copy_tree(&root, &new.join("root"), link, ids)
            }
            Shape::Container { dir, .. } => {
                let image = match (ids, parent) {
                    (Some(_), Some(parent)) => self.image_of(parent)?,
                    _ => read_id(&dir.join("lower-id"))?,
                };
                copy_container(&dir, new, image.as_ref(), ids)
            }
        }
    }

    /// The image that a container on `parent` lies on.
    fn image_of(&self, parent: &LayerId) -> Result<Option<LayerId>> {
        match self.shape(parent)? {
            Shape::Image(_) => self.share(parent).map(|()| Some(parent.clone())),
            Shape::Container { dir, .. } => read_id(&dir.join("lower-id")),
        }
    }

    /// What a layer has that begins as `parent` is.
    fn build_empty(&self, new: &Path, parent: Option<&LayerId>) -> Result<()> {
        match parent.map(|parent| Ok::<_, Error>((parent, self.shape(parent)?))).transpose()? {
            None => layout::make_dir(&new.join("root"), 0o755),
            Some((parent, Shape::Image(root))) => {
                let upper = new.join("upper");
                layout::make_dir(&upper, 0o755)?;
                layout::inherit(&root, &upper, false)?;
                write(&new.join("lower-id"), parent.as_str())?;
                self.share(parent)?;
                layout::make_dir(&new.join("work"), 0o700)
            }
            Some((_, Shape::Container { dir, .. })) => {
                let image = read_id(&dir.join("lower-id"))?;
                copy_container(&dir, new, image.as_ref(), None)
            }
        }
    }

    /// Notes that others are built on an image.
    fn share(&self, id: &LayerId) -> Result<()> {
        match write(&self.layers.at(id).join("shared"), HAS_CHILDREN) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }
}

/// Copies the tree of an image of another store, whose files get no further names: they would be changed by that.
fn copy_theirs(store: &Additional, id: &LayerId, to: &Path) -> Result<()> {
    let Parts { own, below } = store.driver.parts(id)?;
    match below.is_empty() {
        true => copy_tree(&own, to, false, None),
        false => Err(Error::unsupported(format!("a layer on '{id}'"), "it is no image yet")),
    }
}
