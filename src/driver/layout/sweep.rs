//! Putting the overlay format right again: after a crash, and after somebody has deleted what he should not.

use std::collections::HashSet;
use std::path::Path;

use super::{FRESH, HAS_CHILDREN, LINKS, Layout, SHORT, discard, is_short, names};
use crate::driver::LayerId;
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::sys::{change, publish};

impl Layout {
    /// Deletes what is left over and mends links; only what is removed already where another process is at work. A line for
    /// each thing done.
    pub(in crate::driver) fn sweep(&self) -> Result<Vec<String>> {
        self.shelf.sweep(|done| {
            let mut shorts = HashSet::new();
            for id in self.list()? {
                if self.delete_fresh(&id)? {
                    done.push(format!("layer '{id}': deleted content that was not finished"));
                }
                shorts.insert(self.mend_link(&id, done)?);
            }
            self.drop_links(&shorts, done)?;
            self.release_parents(done)
        })
    }

    /// Deletes content that an apply has not finished.
    pub(in crate::driver) fn delete_fresh(&self, id: &LayerId) -> Result<bool> {
        let dir = self.dir(id)?;
        let there = dir.join(FRESH).symlink_metadata().is_ok();
        if there {
            crate::sys::trash::delete(&dir, FRESH.as_ref(), None).on("delete", dir.join(FRESH))?;
        }
        Ok(there)
    }

    /// Makes the layer's short name lead to it. Where the name itself is lost, a link that leads to the layer tells it, since
    /// its children know it by that; else it gets a new one. Returns it.
    fn mend_link(&self, id: &LayerId, done: &mut Vec<String>) -> Result<String> {
        let file = self.at(id).join("link");
        let text = durable::read_text(&file).unwrap_or_default();
        let mut short = text.trim_end().to_owned();
        if !is_short(&short) {
            short = match self.link_to(id)? {
                Some(found) => found,
                None => publish::random_name(SHORT).on("getrandom", "")?,
            };
            replace(&file, short.as_bytes())?;
            done.push(format!("layer '{id}': wrote its short name {short}"));
        }
        if self.target(&short)?.as_ref() == Some(id) {
            return Ok(short);
        }
        let link = self.home().join(LINKS).join(&short);
        if let Some(other) = self.target(&short)? {
            let detail = format!("its short name {short} leads to layer '{other}'");
            return Err(Error::Corrupt { what: format!("layer '{id}'"), detail });
        }
        discard(&link);
        let to = Path::new("..").join(id.as_str()).join("diff");
        change::symlink(&to, &link).on("create", &link)?;
        done.push(format!("layer '{id}': made its short link {short} again"));
        Ok(short)
    }

    /// A link that leads to the layer.
    fn link_to(&self, id: &LayerId) -> Result<Option<String>> {
        for short in names(&self.home().join(LINKS))? {
            if is_short(&short) && self.target(&short)?.as_ref() == Some(id) {
                return Ok(Some(short));
            }
        }
        Ok(None)
    }

    /// Deletes links that lead nowhere, and those that lead to a layer that was made anew, with another short name, unless a
    /// layer knows it by that.
    fn drop_links(&self, shorts: &HashSet<String>, done: &mut Vec<String>) -> Result<()> {
        let links = self.home().join(LINKS);
        for short in names(&links)?.iter().filter(|short| !shorts.contains(*short)) {
            if self.target(short)?.is_some() && self.is_known(short)? {
                continue;
            }
            discard(&links.join(short));
            done.push(format!("deleted the short link {short}, which no layer has"));
        }
        Ok(())
    }

    /// Whether a layer names what lies below it so.
    fn is_known(&self, short: &str) -> Result<bool> {
        for id in self.list()? {
            if self.lower(&id)?.iter().any(|entry| entry.strip_prefix("l/") == Some(short)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A layer that is read-only only because of children may be changed again when there are none.
    fn release_parents(&self, done: &mut Vec<String>) -> Result<()> {
        let mut parents = HashSet::new();
        for id in self.list()? {
            match self.parent(&id) {
                Ok(parent) => parents.extend(parent),
                Err(error @ Error::Corrupt { .. }) => {
                    done.push(error.to_string());
                    // Nobody can tell who lies below it.
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        for id in self.list()?.into_iter().filter(|id| !parents.contains(id)) {
            let mark = self.at(&id).join("committed");
            if durable::read(&mark).is_ok_and(|text| text == HAS_CHILDREN) {
                discard(&mark);
                done.push(format!("layer '{id}': may be changed again, no layer is built on it"));
            }
        }
        Ok(())
    }

    /// Writes a `lower` that is missing, or names layers that are not there, from what is known to be the parent; whether
    /// it was so.
    pub(in crate::driver) fn repair(&self, id: &LayerId, parent: Option<&LayerId>) -> Result<bool> {
        let Some(parent) = parent else { return Ok(false) };
        if self.parent(id).is_ok_and(|found| found.as_ref() == Some(parent))
            && self.parts(id).is_ok()
        {
            return Ok(false);
        }
        self.mend_link(parent, &mut Vec::new())?;
        let below = self.below(parent)?;
        replace(&self.at(id).join("lower"), below.join(":").as_bytes())?;
        Ok(true)
    }
}

/// Replaces a small file whole.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    discard(&new);
    publish::write_new(&new, content).on("write", &new)?;
    change::rename(&new, path).on("rename", &new)?;
    let dir = path.parent().unwrap_or(path);
    publish::sync_dir(dir).on("sync", dir)
}
