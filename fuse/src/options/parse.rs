//! The table of option names: what each one sets.
//!
//! A later option wins over an earlier one of the same name, except that squashing to one
//! id wins over squashing to root in either order.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use super::item::{Item, Result, path, split, unescape, unquote};

use super::{
    Io, MountFlags, Namespace, Options, RedirectDir, Transport, Whiteouts, XattrPermissions,
};

/// Options that are known and mean nothing here: the user may say them, nothing changes.
const SWALLOWED: &[&str] = &[
    "_netdev",
    "async_dio",
    "auto",
    "auto_cache",
    "big_writes",
    "clone_fd",
    "comment",
    "default_permissions",
    "defaults",
    "group",
    "index",
    "iversion",
    "kernel_cache",
    "lazytime",
    "loud",
    "mand",
    "max_idle_threads",
    "max_threads",
    "noauto",
    "noauto_cache",
    "nofail",
    "nogroup",
    "noiversion",
    "nolazytime",
    "nomand",
    "nonempty",
    "norelatime",
    "nostrictatime",
    "nouser",
    "nousers",
    "owner",
    "private",
    "silent",
    "user",
    "users",
    "uuid",
    "xino",
];

/// Reads a whole list.
pub(super) fn parse(list: &OsStr) -> Result<Options> {
    let mut parser = Parser::default();
    for text in split(list.as_bytes()) {
        if !text.is_empty() {
            parser.take(&Item::new(text))?;
        }
    }
    Ok(parser.finish())
}

#[derive(Default)]
struct Parser {
    options: Options,
    squash_to_root: bool,
    /// SELinux options in order of first appearance: name, whole text.
    labels: Vec<(String, String)>,
}

impl Parser {
    /// Finds the group that knows the option.
    fn take(&mut self, item: &Item<'_>) -> Result<()> {
        let known = self.layers(item)?
            || self.owners(item)?
            || self.behaviour(item)?
            || self.common(item)?;
        if !known && !mount_flag(&mut self.options.mount, item)? && !is_swallowed(&item.name) {
            let name = item.name.escape_debug();
            self.options.warnings.push(format!("unknown option '{name}' ignored"));
        }
        Ok(())
    }

    fn layers(&mut self, item: &Item<'_>) -> Result<bool> {
        let options = &mut self.options;
        match item.name.as_str() {
            "lowerdir" => (options.lowers, options.data_lowers) = lower_list(item)?,
            "lowerdir+" => options.lowers.push(verbatim(item)?),
            "datadir+" => options.data_lowers.push(verbatim(item)?),
            "upperdir" => options.upper = Some(item.path()?),
            "workdir" => options.work = Some(item.path()?),
            "plugins" if item.value.is_some_and(|value| !unquote(value).is_empty()) => {
                return Err(item.error("layer plugins are not supported; leave the option out"));
            }
            "plugins" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn owners(&mut self, item: &Item<'_>) -> Result<bool> {
        let options = &mut self.options;
        match item.name.as_str() {
            "uidmapping" => options.uid_map = item.map()?,
            "gidmapping" => options.gid_map = item.map()?,
            "lower_uidmapping" => options.lower_uid_map = item.map()?,
            "lower_gidmapping" => options.lower_gid_map = item.map()?,
            "squash_to_root" => self.squash_to_root = item.flag()?,
            "squash_to_uid" => options.squash_uid = Some(item.id()?),
            "squash_to_gid" => options.squash_gid = Some(item.id()?),
            "squash_unmapped" => options.squash_unmapped = Some(item.id()?),
            "xattr_permissions" => {
                use XattrPermissions::{Off, Security, User};
                options.xattr_permissions =
                    item.word(&[("0", Off), ("1", Security), ("2", User)])?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn behaviour(&mut self, item: &Item<'_>) -> Result<bool> {
        let options = &mut self.options;
        match item.name.as_str() {
            "userxattr" | "nouserxattr" => {
                let user = (item.name == "userxattr") == item.flag()?;
                options.namespace = if user { Namespace::User } else { Namespace::Trusted };
            }
            "redirect_dir" => {
                use RedirectDir::{Auto, Copy, Off, On};
                let words = [
                    ("on", On),
                    ("off", Off),
                    ("auto", Auto),
                    ("follow", Off),
                    ("nofollow", Off),
                    ("copy", Copy),
                ];
                options.redirect_dir = item.word(&words)?;
            }
            "whiteouts" => {
                use Whiteouts::{Auto, Device, Dot, Xattr};
                let words = [("auto", Auto), ("device", Device), ("dot", Dot), ("xattr", Xattr)];
                options.whiteouts = item.word(&words)?;
            }
            "metacopy" => options.metacopy = item.truth()?,
            "volatile" => options.volatile = item.flag()?,
            "fsync" => options.fsync = item.truth()?,
            "timeout" => options.timeout = seconds(item)?,
            "static_nlink" => options.static_nlink = item.flag()?,
            "noacl" => options.noacl = item.flag()?,
            "ino32_t" => options.ino32 = item.flag()?,
            "noxattrs" => options.noxattrs = item.flag()?,
            "nfs_export" => options.nfs_export = item.flag()?,
            "io" => {
                use Io::{Auto, Handleless, Handles, Passthrough};
                let words = [
                    ("auto", Auto),
                    ("handles", Handles),
                    ("handleless", Handleless),
                    ("passthrough", Passthrough),
                ];
                options.io = item.word(&words)?;
            }
            "size" => options.size = item.limit()?,
            "nr_inodes" => options.nr_inodes = item.limit()?,
            "transport" => {
                use Transport::{Auto, Classic, Ring};
                let words = [("auto", Auto), ("ring", Ring), ("classic", Classic)];
                options.transport = item.word(&words)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Options that are checked, and kept or dropped.
    fn common(&mut self, item: &Item<'_>) -> Result<bool> {
        match item.name.as_str() {
            "threaded" | "writeback" | "fast_ino" => {
                item.truth()?;
            }
            "verity" if item.bytes("off")? != b"off" => {
                return Err(item.error("digests of lower files cannot be checked; expected off"));
            }
            "verity" => {}
            // fuse-overlayfs 2 takes `sync=` for `fsync=`; without a value it is mount(8)'s.
            "sync" if item.value.is_some() => self.options.fsync = item.truth()?,
            "context" | "fscontext" | "defcontext" | "rootcontext" => {
                item.bytes("a label")?;
                let text =
                    std::str::from_utf8(item.text).map_err(|_| item.bad("a label in UTF-8"))?;
                match self.labels.iter_mut().find(|(name, _)| *name == item.name) {
                    Some((_, kept)) => text.clone_into(kept),
                    None => self.labels.push((item.name.clone(), text.to_owned())),
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Settles what depends on several options.
    fn finish(self) -> Options {
        let mut options = self.options;
        if self.squash_to_root {
            options.squash_uid = options.squash_uid.or(Some(0));
            options.squash_gid = options.squash_gid.or(Some(0));
        }
        let labels: Vec<String> = self.labels.into_iter().map(|(_, text)| text).collect();
        if !labels.is_empty() {
            options.mount.context = Some(labels.join(","));
        }
        options
    }
}

fn mount_flag(mount: &mut MountFlags, item: &Item<'_>) -> Result<bool> {
    let bytes = "a number of bytes";
    match item.name.as_str() {
        "fsname" => mount.fsname = Some(item.string()?),
        "subtype" => mount.subtype = Some(item.string()?),
        "max_write" => mount.max_write = Some(item.number(bytes)?),
        "max_read" => mount.max_read = Some(item.number(bytes)?),
        "allow_other" => mount.allow_other = Some(item.flag()?),
        "noallow_other" => mount.allow_other = Some(!item.flag()?),
        "allow_root" => mount.allow_root = item.flag()?,
        "debug" => mount.debug = item.flag()?,
        // mount(8) spells a truth by two names; a value would be a typing error.
        name if item.value.is_none() => return Ok(bare_flag(mount, name)),
        _ => return Ok(false),
    }
    Ok(true)
}

fn bare_flag(mount: &mut MountFlags, name: &str) -> bool {
    match name {
        "ro" => mount.read_only = true,
        "rw" => mount.read_only = false,
        "suid" => mount.suid = Some(true),
        "nosuid" => mount.suid = Some(false),
        "dev" => mount.dev = Some(true),
        "nodev" => mount.dev = Some(false),
        "exec" => mount.exec = Some(true),
        "noexec" => mount.exec = Some(false),
        "atime" | "relatime" | "strictatime" => mount.atime = Some(true),
        "noatime" => mount.atime = Some(false),
        "diratime" => mount.diratime = Some(true),
        "nodiratime" => mount.diratime = Some(false),
        "sync" => mount.sync = true,
        "async" => mount.sync = false,
        "dirsync" => mount.dirsync = true,
        "remount" => mount.remount = true,
        _ => return false,
    }
    true
}

fn is_swallowed(name: &str) -> bool {
    let prefixed =
        ["x-", "X-", "splice_", "no_splice_"].iter().any(|prefix| name.starts_with(prefix));
    prefixed || SWALLOWED.contains(&name)
}

/// `A:B::D1::D2`: lowers between single colons, data-only lowers each after a double one,
/// nothing but data-only ones after the first of those (kernel overlay document).
fn lower_list(item: &Item<'_>) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let expected = "lower[:lower...][::data...]";
    let (mut lowers, mut data) = (Vec::new(), Vec::new());
    let mut rest = item.bytes(expected)?;
    let mut colons = 1;
    loop {
        let end = end_of_path(rest);
        let (text, after) = rest.split_at(end);
        if text.is_empty() {
            return Err(item.error(format!("empty path in the list; expected {expected}")));
        }
        let layer = real_layer(item, unescape(text))?;
        match colons {
            1 if data.is_empty() => lowers.push(layer),
            1 => {
                return Err(
                    item.error(format!("a lower after a data-only one; expected {expected}"))
                );
            }
            _ => data.push(layer),
        }
        if after.is_empty() {
            return Ok((lowers, data));
        }
        colons = if after.starts_with(b"::") { 2 } else { 1 };
        rest = after.get(colons..).unwrap_or_default();
    }
}

/// Index of the first separating colon, or the length.
fn end_of_path(text: &[u8]) -> usize {
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b':' => return at,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

/// `lowerdir+=` and `datadir+=` take the path as it is; a backslash before a comma belongs
/// to the list, not to the path.
fn verbatim(item: &Item<'_>) -> Result<PathBuf> {
    let value = item.bytes("a directory")?;
    let mut bytes = Vec::with_capacity(value.len());
    for byte in value {
        if *byte == b',' && bytes.last() == Some(&b'\\') {
            bytes.pop();
        }
        bytes.push(*byte);
    }
    real_layer(item, bytes)
}

/// Refuses `//plugin/data/path`, the fuse-overlayfs form of a layer served by a plugin.
fn real_layer(item: &Item<'_>, bytes: Vec<u8>) -> Result<PathBuf> {
    if bytes.starts_with(b"//") {
        let text = String::from_utf8_lossy(&bytes).escape_debug().to_string();
        let why = format!(
            "'{text}' names a layer plugin, which is not supported; expected a directory, with one leading slash"
        );
        return Err(item.error(why));
    }
    Ok(path(bytes))
}

/// Decimal seconds, exact to the nanosecond; an exponent is accepted too.
fn seconds(item: &Item<'_>) -> Result<Duration> {
    let expected = "seconds, such as 1 or 0.5";
    let text = std::str::from_utf8(item.bytes(expected)?).map_err(|_| item.bad(expected))?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let exact = if text != "." && digits(whole) && digits(fraction) {
        decimal(whole, fraction)
    } else {
        None
    };
    let parsed = exact.or_else(|| Duration::try_from_secs_f64(text.parse().ok()?).ok());
    parsed.ok_or_else(|| item.bad(expected))
}

fn decimal(whole: &str, fraction: &str) -> Option<Duration> {
    let seconds = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let nanos: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some(Duration::new(seconds, nanos.parse().ok()?))
}
