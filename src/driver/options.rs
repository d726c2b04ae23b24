//! Options of drivers and of layers: what is known is read, what is not is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Create, Quota};
use crate::doctor::filesystem;
use crate::error::{Error, Result};

/// The smallest limit of bytes that makes sense: one block.
const SMALLEST: u64 = 4096;

/// What a driver is opened with.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The store's root; each driver has a directory in it.
    pub root: PathBuf,
    /// Options as `DRIVER.KEY`, those of other drivers too.
    pub options: BTreeMap<String, String>,
}

/// The options that every driver with quotas takes, and those of mounts.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    /// Options for every mount.
    pub(super) mount: Vec<String>,
    /// Limits of layers that have none of their own.
    pub(super) limits: Quota,
    /// Other options, by key, that the driver said it knows.
    pub(super) other: BTreeMap<String, String>,
}

impl Config {
    /// The options of the driver `name`: `size` and `inodes` (limits of layers that have none of their own), `mountopt`, and
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

impl Settings {
    /// The same for a driver `name` that limits nothing.
    pub(super) fn unlimited(self, name: &str) -> Result<Settings> {
        if self.limits == Quota::default() { Ok(self) } else { Err(no_quota(name)) }
    }
}

/// Checks the options of a new layer of the driver `name`, which limits nothing.
pub(super) fn check(name: &str, spec: &Create) -> Result<()> {
    if limits(spec)? == Quota::default() { Ok(()) } else { Err(no_quota(name)) }
}

/// The limits in the options of a new layer.
pub(super) fn limits(spec: &Create) -> Result<Quota> {
    let mut limits = Quota::default();
    for (key, value) in &spec.options {
        let what = format!("option '{key}'");
        match key.as_str() {
            "size" => limits.bytes = Some(number(&what, value, SMALLEST)?),
            "inodes" => limits.inodes = Some(number(&what, value, 1)?),
            _ => return Err(Error::invalid(what, "not known; there are size and inodes")),
        }
    }
    if spec.read_only && limits != Quota::default() {
        return Err(read_only());
    }
    Ok(limits)
}

/// Whether the limits of a layer can be changed to these; a layer that is `fixed` is written by nobody.
pub(super) fn check_limits(limits: Quota, fixed: bool) -> Result<()> {
    if fixed && limits != Quota::default() {
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

fn read_only() -> Error {
    let why = "a read-only layer has no limits, it is never written";
    Error::invalid("options 'size' and 'inodes'", why)
}

/// The error of a limit that cannot be kept.
pub(super) fn no_quota(name: &str) -> Error {
    let why = match name {
        super::hardlink::NAME => "its layers share files, which belong to one project only",
        _ => "this build limits no layers",
    };
    Error::unsupported(format!("quota of driver {name}"), why)
}

/// A whole number with a binary suffix: 64k, 10M, 2GiB.
fn number(what: &str, text: &str, least: u64) -> Result<u64> {
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
