//! The facts in the order they are shown. Keys are stable: programs read them.

use std::path::PathBuf;

use serde::ser::{Serialize, SerializeMap, SerializeStruct, Serializer};

use super::Standing;
use super::trial::Answers;
use super::verdict::{Choice, Driver};

/// Sections, each with the keys and titles of its facts.
pub const GROUPS: [(&str, &[(&str, &str)]); 4] = [
    (
        "kernel overlay",
        &[
            ("overlay.kernel", "in the kernel"),
            ("overlay.trusted", "as root"),
            ("overlay.trusted_redirect_dir", "  redirect_dir"),
            ("overlay.trusted_metacopy", "  metacopy"),
            ("overlay.user", "in a user namespace"),
            ("overlay.user_redirect_dir", "  redirect_dir"),
            ("overlay.user_metacopy", "  metacopy"),
        ],
    ),
    (
        "fuse",
        &[
            ("fuse.device", "/dev/fuse"),
            ("fuse.mount", "mount(2)"),
            ("fuse.fusermount", "fusermount3"),
            ("fuse.user_allow_other", "user_allow_other"),
            ("fuse.protocol", "protocol"),
            ("fuse.passthrough", "passthrough"),
            ("fuse.io_uring", "io_uring"),
            ("fuse.halt_polling", "halt polling"),
        ],
    ),
    (
        "user namespaces",
        &[
            ("userns.create", "unshare"),
            ("userns.mount", "mounts inside"),
            ("subid.uid", "subordinate uids"),
            ("subid.gid", "subordinate gids"),
            ("subid.map", "newuidmap, newgidmap"),
        ],
    ),
    (
        "filesystem",
        &[
            ("fs.writable", "writable"),
            ("fs.user_xattr", "user xattrs"),
            ("fs.trusted_xattr", "trusted xattrs"),
            ("fs.whiteout_device", "whiteout devices"),
            ("fs.d_type", "types in listings"),
            ("fs.rename_whiteout", "RENAME_WHITEOUT"),
            ("fs.tmpfile", "O_TMPFILE"),
            ("fs.reflink", "reflinks"),
            ("fs.file_handle", "file handles"),
        ],
    ),
];

/// One thing found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Its key in JSON.
    pub key: &'static str,
    /// Its name for people, indented when it belongs to the one before.
    pub title: &'static str,
    /// Whether it works; `None` when that could not be told or does not matter here.
    pub ok: Option<bool>,
    /// How, or why not.
    pub detail: String,
}

/// All that was found out.
#[derive(Clone, Debug)]
pub struct Report {
    /// Who asked.
    pub standing: Standing,
    /// The kernel's release.
    pub kernel: String,
    /// The state directory.
    pub root: PathBuf,
    /// Where layers were tried: the state directory, the nearest existing one above it, or the directory
    /// for temporary files when that cannot be written.
    pub probed: PathBuf,
    /// The facts by group, as in [`GROUPS`].
    pub groups: Vec<(&'static str, Vec<Fact>)>,
    /// The drivers, most wanted first.
    pub drivers: Vec<Driver>,
    /// What plyfs will use.
    pub choice: Choice,
}

impl Report {
    pub(super) fn new(
        standing: Standing,
        paths: (PathBuf, PathBuf),
        answers: Answers,
        drivers: Vec<Driver>,
        choice: Choice,
    ) -> Report {
        let fact = |&(key, title): &(&'static str, &'static str)| {
            let (ok, detail) = match answers.get(key) {
                Some(answer) => (answer.ok, answer.detail.clone()),
                None => (None, "not tried".to_owned()),
            };
            Fact { key, title, ok, detail }
        };
        let groups = GROUPS.iter().map(|(group, facts)| (*group, facts.iter().map(fact).collect()));
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Report {
            standing,
            kernel: release.trim().to_owned(),
            root: paths.0,
            probed: paths.1,
            groups: groups.collect(),
            drivers,
            choice,
        }
    }
}

struct Facts<'a>(&'a Report);

impl Serialize for Facts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let facts = self.0.groups.iter().flat_map(|(_, facts)| facts);
        let mut map = serializer.serialize_map(None)?;
        for fact in facts {
            map.serialize_entry(fact.key, &Value { ok: fact.ok, detail: &fact.detail })?;
        }
        map.end()
    }
}

#[derive(serde::Serialize)]
struct Value<'a> {
    ok: Option<bool>,
    detail: &'a str,
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Report", 10)?;
        fields.serialize_field("version", &1)?;
        fields.serialize_field("plyfs", env!("CARGO_PKG_VERSION"))?;
        fields.serialize_field("kernel", &self.kernel)?;
        fields.serialize_field("standing", self.standing.text())?;
        fields.serialize_field("state_directory", &self.root.to_string_lossy())?;
        fields.serialize_field("probed_directory", &self.probed.to_string_lossy())?;
        fields.serialize_field("facts", &Facts(self))?;
        fields.serialize_field("drivers", &self.drivers)?;
        fields.serialize_field("driver", &self.choice.driver)?;
        fields.serialize_field("reason", &self.choice.reason)?;
        fields.end()
    }
}
