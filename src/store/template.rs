//! Layers that begin as copies of others.

use std::io::ErrorKind;
use std::path::Path;

use super::{Record, SPLIT, Store, changing, mounted};
use crate::driver::{Create, LayerId};
use crate::error::{Context, Error, Result};
use crate::sys::change;

/// What a layer is made from, as it was before its storage was made.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) parent: Option<Record>,
    pub(super) template: Option<Record>,
}

impl Store {
    /// What makes a layer a copy of `template` in all: on which parent it lies, and how it is made.
    pub fn like(&self, template: &LayerId) -> Result<(Option<LayerId>, Create)> {
        let record = self.get(template)?;
        let limits = self.driver.quota(template)?;
        let limits = [("size", limits.bytes), ("inodes", limits.inodes)];
        let limits = limits.into_iter().filter_map(|(key, limit)| Some((key, limit?)));
        let spec = Create {
            read_only: record.read_only,
            label: record.label,
            options: limits.map(|(key, limit)| (key.to_owned(), limit.to_string())).collect(),
            template: Some(template.clone()),
        };
        Ok((record.parent.as_deref().map(LayerId::new).transpose()?, spec))
    }

    /// The record of a layer that can be copied now, to lie on `parent`.
    pub(super) fn may_copy(&self, template: &LayerId, parent: Option<&LayerId>) -> Result<Record> {
        let record = self.at_rest(template)?;
        if record.parent.as_deref() != parent.map(LayerId::as_str) {
            let why = match &record.parent {
                Some(own) => format!("lies on layer '{own}', and so does a copy of it"),
                None => "lies on no other, and neither does a copy of it".to_owned(),
            };
            return Err(Error::invalid(format!("template '{template}'"), why));
        }
        self.refuse_written(template, &record)?;
        self.settle_names(template)?;
        Ok(record)
    }

    /// What is changed while it is copied would be copied in part.
    fn refuse_written(&self, template: &LayerId, record: &Record) -> Result<()> {
        match record.read_only {
            true => Ok(()),
            false => match self.users(template)? {
                0 => Ok(()),
                users => Err(mounted(template, users)),
            },
        }
    }

    /// Notes what the new layer has from its template, which may have been filled, mounted or removed since it was `seen`.
    pub(super) fn record_template(
        &self,
        record: &mut Record,
        seen: &Sources,
        spec: &Create,
    ) -> Result<()> {
        let (Some(template), Some(seen)) = (&spec.template, &seen.template) else { return Ok(()) };
        if *seen != self.at_rest(template)? {
            return Err(changing(template));
        }
        self.refuse_written(template, seen)?;
        record.template = Some(template.to_string());
        // What can be written need not stay what the archive was.
        record.content = seen.content.clone().filter(|_| record.read_only);
        Ok(())
    }

    /// Gives a copy what puts its archive together again, in the directory of its record. It is only ever replaced whole, so
    /// both layers can have the same file. A template that has lost it gives none.
    pub(super) fn share_split(&self, record: &Record, dir: &Path) -> Result<()> {
        let (Some(template), Some(_)) = (&record.template, &record.content) else { return Ok(()) };
        let from = self.split(&LayerId::new(template)?);
        match change::link(&from, &dir.join(SPLIT)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other.on("link", &from),
        }
    }
}
