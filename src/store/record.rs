//! What the store knows of a layer: `layers/<id>/layer.json`, replaced whole.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::driver::LayerId;
use crate::durable;
use crate::error::{Context, Error, Result};

/// The version of the format. A record of another one is refused, never guessed at.
const VERSION: u32 = 1;

/// The name of the record in the layer's directory.
pub(super) const FILE: &str = "layer.json";

/// A layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// Its name.
    pub id: String,
    /// The layer it lies on.
    pub parent: Option<String>,
    /// It is filled from an archive, and never written through a mount.
    pub read_only: bool,
    /// Seconds since 1970 when it was made.
    pub created: u64,
    /// The SELinux label of its mounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its own options, as given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// The archive it was filled from, or the layer that it is a copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// The layer that it began as a copy of; that one may be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The ids that it got in the place of its template's, as triples of first old, first new and length.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid_map: String,
    /// The same of groups.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gid_map: String,
    /// The ids that all below it was mounted with when it was written. What it holds itself is stored as it was seen.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub below_uid_map: String,
    /// The same of groups.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub below_gid_map: String,
    /// The parent is in an additional store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_store: Option<ParentStore>,
}

/// Which layer of an additional store a parent is: its name may mean another one later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentStore {
    /// Where the store was; it may be found elsewhere.
    pub root: PathBuf,
    /// When the parent was made.
    pub created: u64,
    /// What it was filled with.
    pub diff_id: Option<String>,
}

impl ParentStore {
    /// Whether this is the layer.
    pub(super) fn is(&self, record: &Record) -> bool {
        let diff_id = record.content.as_ref().map(|content| &content.diff_id);
        self.created == record.created && self.diff_id.as_ref() == diff_id
    }
}

/// What [`Content::marks`] says of a layer without any.
pub(super) const NO_MARKS: &str = "none";

/// The archive that a layer was filled from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// `sha256:` and the digest of the archive, uncompressed (the OCI `DiffID`).
    pub diff_id: String,
    /// The same of the archive as it came.
    pub digest: String,
    /// Bytes of the data of its files.
    pub size: u64,
    /// Its entries.
    pub entries: u64,
    /// Which attributes hide what lies below directories, `trusted` or `user`: not everybody can read the former, and who can
    /// does not look at the latter. `NO_MARKS` where there are none, and none where that was not noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marks: Option<String>,
}

impl Record {
    /// A layer that is made now.
    pub(super) fn new(id: &str, parent: Option<&str>, read_only: bool) -> Record {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Record {
            version: VERSION,
            id: id.to_owned(),
            parent: parent.map(str::to_owned),
            read_only,
            created: now.map_or(0, |since| since.as_secs()),
            label: None,
            options: BTreeMap::new(),
            content: None,
            template: None,
            uid_map: String::new(),
            gid_map: String::new(),
            below_uid_map: String::new(),
            below_gid_map: String::new(),
            parent_store: None,
        }
    }

    /// Reads the record in a layer's directory; `None` where there is none.
    pub(super) fn read(dir: &Path) -> Result<Option<Record>> {
        let path = dir.join(FILE);
        let bytes = match durable::read(&path) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            other => other.on("read", &path)?,
        };
        let corrupt = |detail: String| Error::Corrupt { what: path.display().to_string(), detail };
        let record: Record = serde_json::from_slice(&bytes).map_err(|e| corrupt(e.to_string()))?;
        let named = dir.file_name().is_some_and(|name| name == record.id.as_str());
        if record.version != VERSION {
            return Err(corrupt(format!("format {}, this plyfs knows {VERSION}", record.version)));
        }
        if let Some(error) = record.parent.as_deref().and_then(|parent| LayerId::new(parent).err())
        {
            return Err(corrupt(format!("its parent is none: {error}")));
        }
        if !named {
            return Err(corrupt(format!("it is the record of '{}'", record.id)));
        }
        Ok(Some(record))
    }

    /// Puts the record into a layer's directory.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::io("encode", dir.join(FILE), e.into()))?;
        bytes.push(b'\n');
        durable::replace(&dir.join(FILE), &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a");
        std::fs::create_dir(&place).unwrap();
        assert_eq!(Record::read(&place).unwrap(), None);
        let mut record = Record::new("a", Some("p"), true);
        record.options.insert("size".into(), "1G".into());
        record.content = Some(Content {
            diff_id: "sha256:00".into(),
            digest: "sha256:11".into(),
            size: 7,
            entries: 2,
            marks: Some("user".into()),
        });
        record.write(&place).unwrap();
        assert_eq!(Record::read(&place).unwrap(), Some(record));
    }

    #[test]
    fn a_record_that_is_not_the_layers_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a");
        std::fs::create_dir(&place).unwrap();
        for (text, why) in [
            ("{", "EOF"),
            (r#"{"version":9,"id":"a","parent":null,"read_only":true,"created":0}"#, "format 9"),
            (r#"{"version":1,"id":"b","parent":null,"read_only":true,"created":0}"#, "of 'b'"),
            (r#"{"version":1,"id":"a","parent":"../b","read_only":true,"created":0}"#, "parent"),
        ] {
            std::fs::write(place.join(FILE), text).unwrap();
            let error = Record::read(&place).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
