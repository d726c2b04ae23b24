//! What is noted of a layer's users, as JSON.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::mount::namespace::Namespace;
use crate::mount::table::MountPoint;
use crate::sys::Ids;

/// Version of the records. One of another version counts nothing.
pub(super) const VERSION: u32 = 1;

/// The ids that a mount shows in the place of those on disk, as triples of first old, first new and length.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Maps {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    uid_map: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    gid_map: String,
}

impl From<&Ids> for Maps {
    fn from(ids: &Ids) -> Maps {
        Maps { uid_map: ids.users.to_string(), gid_map: ids.groups.to_string() }
    }
}

impl fmt::Display for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let maps = [("uidmap", &self.uid_map), ("gidmap", &self.gid_map)];
        let maps: Vec<String> = maps
            .into_iter()
            .filter(|(_, map)| !map.is_empty())
            .map(|(name, map)| format!("{name} {map}"))
            .collect();
        match maps.is_empty() {
            true => f.write_str("the ids on disk"),
            false => f.write_str(&maps.join(" and ")),
        }
    }
}

/// One mount that is counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) version: u32,
    pub(super) count: u64,
    /// Without symlinks.
    pub(super) target: Spelled,
    /// The boot that it is of.
    #[serde(default)]
    pub(super) boot: String,
    /// Where it is seen.
    #[serde(flatten)]
    pub(super) namespace: Namespace,
    /// The kernel's numbers of the mount and its device: together they tell a mount from a later one at the same place.
    pub(super) mount: u64,
    pub(super) device: (u32, u32),
    /// The options that it was made with; none where that was not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) options: Option<Vec<String>>,
    #[serde(flatten)]
    pub(super) maps: Maps,
}

impl Record {
    /// Of a mount of this namespace that has one user.
    pub(super) fn of(found: &MountPoint, maps: Maps) -> Record {
        Record {
            version: VERSION,
            count: 1,
            target: Spelled(found.target.clone()),
            boot: boot(),
            namespace: Namespace::ours(),
            mount: found.id,
            device: found.device,
            options: None,
            maps,
        }
    }

    /// Of what nobody has counted, and cannot be seen.
    pub(super) fn nowhere(target: &Path) -> Record {
        Record {
            version: VERSION,
            count: 1,
            target: Spelled(target.to_path_buf()),
            boot: boot(),
            namespace: Namespace::default(),
            mount: 0,
            device: (0, 0),
            options: None,
            maps: Maps::default(),
        }
    }

    /// Whether it counts this mount, in the table of its own namespace.
    pub(super) fn counts(&self, found: &MountPoint) -> bool {
        (self.mount, self.device) == (found.id, found.device)
    }
}

/// How many use a directory.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Used {
    pub(super) version: u32,
    pub(super) count: u64,
    pub(super) boot: String,
}

/// What is noted while a mount is made or taken away.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Begun {
    pub(super) version: u32,
    pub(super) target: Spelled,
    /// What is left to do once it is gone, in the boot that this is noted in.
    #[serde(default)]
    pub(super) unsettled: Option<Spelled>,
    #[serde(default)]
    pub(super) boot: String,
    /// Where it is done.
    #[serde(flatten)]
    pub(super) namespace: Namespace,
    #[serde(flatten)]
    pub(super) maps: Maps,
}

/// A path: its text, or its bytes where it is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Text", into = "Text")]
pub(super) struct Spelled(pub(super) PathBuf);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<Text> for Spelled {
    fn from(text: Text) -> Spelled {
        match text {
            Text::Text(text) => Spelled(text.into()),
            Text::Bytes(bytes) => Spelled(OsString::from_vec(bytes).into()),
        }
    }
}

impl From<Spelled> for Text {
    fn from(path: Spelled) -> Text {
        match path.0.to_str() {
            Some(text) => Text::Text(text.to_owned()),
            None => Text::Bytes(path.0.as_os_str().as_bytes().to_vec()),
        }
    }
}

/// Which boot of the machine this is; nothing where that is not told.
pub(super) fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_says_nothing_of_ids_is_of_those_on_disk() {
        let record = Record::nowhere(Path::new("/a"));
        let text = serde_json::to_string(&record).unwrap();
        assert!(!text.contains("map"), "{text}");
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        assert_eq!(record.maps.to_string(), "the ids on disk");
        let maps = Maps { uid_map: "0:1:2".to_owned(), ..Maps::default() };
        let record = Record { maps, ..record };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        assert_eq!(record.maps.to_string(), "uidmap 0:1:2");
    }

    #[test]
    fn a_path_that_is_no_text_is_read_back() {
        for (path, json) in [(&b"/a b"[..], "\"/a b\""), (b"/\xff", "[47,255]")] {
            let path = Spelled(OsString::from_vec(path.to_vec()).into());
            let text = serde_json::to_string(&path).unwrap();
            assert_eq!(text, json);
            assert_eq!(serde_json::from_str::<Spelled>(&text).unwrap(), path);
        }
    }
}
