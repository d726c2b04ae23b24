//! Options of drivers and of layers: what is known is read, what is not is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plyfs_fuse::options::IdMap;

use super::additional::Wanted;
use super::{Create, Ids, LayerId, Quota, Usage};
use crate::doctor::filesystem;
use crate::error::{Context, Error, Result};
use crate::sys::publish;

/// The smallest limit of bytes that makes sense: one block.
const SMALLEST: u64 = 4096;
/// The fewest inodes with which a layer in a project can be mounted and hold anything.
const FEWEST: u64 = 8;

/// What setting owners takes.
const NO_IDS: &str = "needs CAP_CHOWN and several ids: root, or a user namespace of newuidmap";

/// What a driver is opened with.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The store's root; each driver has a directory in it.
    pub root: PathBuf,
    /// Options as `DRIVER.KEY`, those of other drivers too.
    pub options: BTreeMap<String, String>,
    /// Other stores whose layers are seen too.
    pub additional: Vec<Wanted>,
}

/// How the content of a layer is made to outlive a crash of the machine before it is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sync {
    /// Not at all: the record of a layer may outlive what is in it, which a check tells.
    None,
    /// Everything on the filesystem is written out.
    #[default]
    Filesystem,
}

impl Sync {
    const WORDS: [(&str, Sync); 2] = [("none", Sync::None), ("filesystem", Sync::Filesystem)];

    fn read(key: &str, value: &str) -> Result<Sync> {
        let known = Sync::WORDS.iter().find(|(word, _)| *word == value);
        let why = || format!("'{value}' is not known; there are none and filesystem");
        known.map(|(_, sync)| *sync).ok_or_else(|| Error::invalid(format!("option '{key}'"), why()))
    }

    /// Its name.
    pub(super) fn word(self) -> &'static str {
        Sync::WORDS.iter().find(|(_, sync)| *sync == self).map_or("", |(word, _)| word)
    }

    /// Makes what is in a directory last.
    pub(super) fn content(self, dir: &Path) -> Result<()> {
        match self {
            Sync::None => Ok(()),
            Sync::Filesystem => publish::sync_filesystem(dir).on("sync", dir),
        }
    }
}

/// The options that every driver with quotas takes, and those of mounts.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    /// Options for every mount.
    pub(super) mount: Vec<String>,
    /// Limits of layers that have none of their own.
    pub(super) limits: Quota,
    /// How content is made to last.
    pub(super) sync: Sync,
    /// Other options, by key, that the driver said it knows.
    pub(super) other: BTreeMap<String, String>,
}

impl Config {
    /// The options of the driver `name`: `sync`, `size` and `inodes` (limits of layers that have none of their own), `mountopt`, and
    /// those in `more`.
    pub(super) fn settings(&self, name: &str, common: &[&str], more: &[&str]) -> Result<Settings> {
        let mut settings = Settings::default();
        for (key, value) in &self.options {
            let Some(own) = key.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')) else {
                continue;
            };
            match own {
                "size" | "basesize" | "inodes" if common.contains(&"size") => {
                    let key = format!("option '{key}'");
                    match own {
                        "inodes" => settings.limits.inodes = Some(number(&key, value, 1)?),
                        _ => settings.limits.bytes = Some(number(&key, value, SMALLEST)?),
                    }
                }
                "sync" => settings.sync = Sync::read(key, value)?,
                "mountopt" if common.contains(&"mountopt") => {
                    settings.mount.extend(value.split(',').map(str::to_owned));
                }
                own if more.contains(&own) => {
                    settings.other.insert(own.to_owned(), value.clone());
                }
                _ => return Err(Error::invalid(format!("option '{key}'"), "not known")),
            }
        }
        Ok(settings)
    }
}

impl Quota {
    /// The same with the limits that `options` name (`size`, `inodes`); `none` lifts one.
    pub fn with(mut self, options: &BTreeMap<String, String>) -> Result<Quota> {
        for (key, value) in options {
            let what = format!("option '{key}'");
            let limit = |least| match value.as_str() {
                "none" => Ok(None),
                value => number(&what, value, least).map(Some),
            };
            match key.as_str() {
                "size" => self.bytes = limit(SMALLEST)?,
                "inodes" => self.inodes = limit(1)?,
                _ => return Err(Error::invalid(what, "not known; there are size and inodes")),
            }
        }
        Ok(self)
    }

    /// Whether it limits nothing.
    pub fn is_none(self) -> bool {
        self == Quota::default()
    }
}

/// The limits of a new layer: `usual` ones for what its options say nothing of. A read-only layer has none.
pub(super) fn limits(spec: &Create, usual: Quota) -> Result<Quota> {
    let own = Quota::default().with(&spec.options)?;
    match spec.read_only {
        true if own.is_none() => Ok(own),
        true => Err(read_only()),
        false => usual.with(&spec.options),
    }
}

/// Whether the limits of a layer can be changed to these; a layer that is `fixed` is written by nobody.
pub(super) fn check_limits(limits: Quota, fixed: bool) -> Result<()> {
    if fixed && !limits.is_none() {
        return Err(read_only());
    }
    if limits.bytes.is_some_and(|bytes| bytes < SMALLEST) {
        return Err(Error::invalid("limit of bytes", format!("less than {SMALLEST}")));
    }
    if limits.inodes == Some(0) {
        return Err(Error::invalid("limit of inodes", "less than 1"));
    }
    Ok(())
}

pub(super) fn read_only() -> Error {
    let why = "a read-only layer has no limits, it is never written";
    Error::invalid("options 'size' and 'inodes'", why)
}

/// The error of a limit that cannot be kept, and why.
pub(super) fn no_quota(name: &str, why: impl Into<String>) -> Error {
    Error::unsupported(format!("quota of driver {name}"), why)
}

/// Whether a driver `name` can keep limits by projects.
pub(super) fn check_kept<T>(
    name: &str,
    projects: std::result::Result<T, &str>,
    limits: Quota,
) -> Result<()> {
    match (projects, limits.inodes) {
        (Ok(_), Some(inodes)) if inodes < FEWEST => {
            let why = format!("less than {FEWEST}; the directories of the layer itself count too");
            Err(Error::invalid("limit of inodes", why))
        }
        (Err(why), _) if !limits.is_none() => {
            let why = format!("{why}; or use --driver fuse-overlay, which keeps limits itself");
            Err(no_quota(name, why))
        }
        _ => Ok(()),
    }
}

/// The ids that the copy of a template gets, if it gets others.
pub(super) fn ids(spec: &Create) -> Result<Option<&Ids>> {
    if spec.ids.is_none() {
        return Ok(None);
    }
    if spec.template.is_none() {
        return Err(Error::invalid("other ids", "are those of a copy, which needs a template"));
    }
    match super::can_set_owners() {
        true => Ok(Some(&spec.ids)),
        false => Err(Error::unsupported("layer with other ids", NO_IDS)),
    }
}

/// What a status says of layers with other ids: whether mounts can show them, and copies have them.
pub(super) fn told_shifting(mounts: Result<()>) -> String {
    let why = match mounts {
        Ok(()) => return true.to_string(),
        // What can be done instead is said already.
        Err(Error::Unsupported { reason, .. }) => {
            reason.split_once(';').map_or(reason.clone(), |(why, _)| why.to_owned())
        }
        Err(error) => error.to_string(),
    };
    match super::can_set_owners() {
        true => format!("by copies of a template (mounts: {why})"),
        false => format!("none ({NO_IDS})"),
    }
}

/// Other ids, to try them.
pub(super) fn one_id() -> Ids {
    let map = |text| IdMap::parse(text).unwrap_or_default();
    Ids { users: map("0:1:1"), groups: map("0:1:1") }
}

/// Whether a new layer that begins as a copy of `what` keeps its limits.
pub(super) fn check_copy(id: &LayerId, what: &str, limits: Quota, usage: Usage) -> Result<()> {
    let over = |limit: Option<u64>, used: u64| limit.is_some_and(|limit| used > limit);
    let Usage { bytes, inodes } = usage;
    if over(limits.bytes, bytes) || over(limits.inodes, inodes) {
        let why = format!("the copy of its {what} takes {bytes} bytes and {inodes} inodes");
        return Err(Error::invalid(format!("limits of layer '{id}'"), why));
    }
    Ok(())
}

/// What a status says of quota: who keeps limits, or who does `otherwise`, and why.
pub(super) fn told<T>(projects: std::result::Result<T, &str>, otherwise: &str) -> String {
    match projects {
        Ok(_) => "bytes and inodes, by project".to_owned(),
        Err(why) => format!("{otherwise} ({why})"),
    }
}

/// The error of a limit for a layer that is in no project.
pub(super) fn no_project(id: &LayerId) -> Error {
    let why = "it was made before the filesystem had project quota, or read-only; make it anew";
    Error::unsupported(format!("quota of layer '{id}'"), why)
}

/// A whole number with a binary suffix: 64k, 10M, 2GiB.
pub(crate) fn number(what: &str, text: &str, least: u64) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "k" | "kb" | "kib" => Some(1 << 10),
        "m" | "mb" | "mib" => Some(1 << 20),
        "g" | "gb" | "gib" => Some(1 << 30),
        "t" | "tb" | "tib" => Some(1_u64 << 40),
        _ => None,
    };
    let value =
        digits.parse::<u64>().ok().zip(factor).and_then(|(n, factor)| n.checked_mul(factor));
    match value {
        Some(value) if value >= least => Ok(value),
        Some(_) => Err(Error::invalid(what, format!("less than {least}"))),
        None => Err(Error::invalid(what, format!("'{text}' is no number, with k, m, g or t"))),
    }
}

/// Refuses a filesystem that is known not to serve, before anything is tried on it.
pub(super) fn refuse_backing(driver: &str, root: &Path, refused: &[&str]) -> Result<()> {
    let kind = filesystem::name(root);
    if !refused.contains(&kind.as_str()) {
        return Ok(());
    }
    let feature = format!("driver {driver} on {kind}");
    let why = format!(
        "layers on {kind} cannot be mounted so; put the state directory ({}) on ext4, xfs, btrfs or tmpfs with --root, \
         or use another driver with --driver (vfs works everywhere)",
        root.display()
    );
    Err(Error::unsupported(feature, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_binary_suffixes() {
        let table = [
            ("4096", Some(4096)),
            ("64k", Some(65536)),
            ("1GiB", Some(1 << 30)),
            ("4095", None),
            ("", None),
            ("k", None),
            ("1x", None),
            ("-1", None),
            ("99999999999999999999", None),
            ("99999999999t", None),
        ];
        for (text, wanted) in table {
            assert_eq!(number("size", text, SMALLEST).ok(), wanted, "{text}");
        }
    }

    #[test]
    fn options_that_are_not_known_are_refused() {
        let mut config = Config::default();
        config.options.insert("vfs.xattrs".to_owned(), "best-effort".to_owned());
        assert!(config.settings("overlay2", &["size"], &[]).is_ok());
        config.options.insert("overlay2.nonsense".to_owned(), "1".to_owned());
        assert!(config.settings("overlay2", &["size"], &[]).is_err());
        assert!(config.settings("overlay2", &["size"], &["nonsense"]).is_ok());
    }
}
