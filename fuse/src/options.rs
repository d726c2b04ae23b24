//! Text of a `-o` list <-> `Options`. Pure: no file is looked at, no process state read.
//!
//! The grammar is the union of the kernel overlay's options, fuse-overlayfs's, and the
//! generic words of mount(8), so that one list serves any caller. An option nobody knows
//! becomes a warning; a known option with a bad value is an error, and so is an option
//! that asks for something which cannot be honoured: a layer or a check that was asked
//! for is never silently missing.
//!
//! `Options::parse` checks each option by itself, `Options::validate` the whole.

mod idmap;
mod item;
mod parse;
mod show;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::owner::OVERFLOW_ID;
pub use idmap::{IdMap, IdRange};

/// How long names and attributes are cached when nothing else was asked for: for ever in
/// practice, since nobody else may change the layers.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1_000_000_000);

/// Everything a mount can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Lower layers, top first.
    pub lowers: Vec<PathBuf>,
    /// Data-only lowers, top first: after `::` in `lowerdir`, or `datadir+`.
    pub data_lowers: Vec<PathBuf>,
    /// The writable layer; without one the mount is read-only.
    pub upper: Option<PathBuf>,
    /// Scratch directory on the file system of the upper; present exactly when it is.
    pub work: Option<PathBuf>,
    /// Where the overlay's own extended attributes live.
    pub namespace: Namespace,
    /// What renaming a directory that has a lower part does.
    pub redirect_dir: RedirectDir,
    /// Copy-up of metadata alone.
    pub metacopy: bool,
    /// Nothing is synced, and a marker in work says so.
    pub volatile: bool,
    /// False: fsync is answered without acting.
    pub fsync: bool,
    /// The form in which deletions are written.
    pub whiteouts: Whiteouts,
    /// User ids on disk and as presented.
    pub uid_map: IdMap,
    /// Group ids on disk and as presented.
    pub gid_map: IdMap,
    /// User ids of lower layers on disk and as the overlay sees them; what is in the upper layer is as it is.
    pub lower_uid_map: IdMap,
    /// The same of groups.
    pub lower_gid_map: IdMap,
    /// Everything is presented as owned by this user.
    pub squash_uid: Option<u32>,
    /// Everything is presented as owned by this group.
    pub squash_gid: Option<u32>,
    /// Presents ids that have no name in our user namespace, which stat shows as the overflow id,
    /// as this one, and gives it to their copies. For views of a host's own tree.
    pub squash_unmapped: Option<u32>,
    /// Whether owner and mode are kept in an extended attribute.
    pub xattr_permissions: XattrPermissions,
    /// How long the kernel may cache names and attributes; zero is a live view of layers
    /// that change underneath.
    pub timeout: Duration,
    /// Directories show a link count of 1.
    pub static_nlink: bool,
    /// POSIX ACLs are not supported on the mount.
    pub noacl: bool,
    /// Inode numbers fit 32 bits.
    pub ino32: bool,
    /// Extended attributes are not supported on the mount.
    pub noxattrs: bool,
    /// How the data of files reaches the caller.
    pub io: Io,
    /// File handles stay good as long as the server runs; its memory grows with the names seen.
    pub nfs_export: bool,
    /// How requests come from the kernel.
    pub transport: Transport,
    /// The most bytes that the upper directory may hold (tmpfs(5)).
    pub size: Option<u64>,
    /// The most inodes that it may hold.
    pub nr_inodes: Option<u64>,
    /// What goes to the mount call.
    pub mount: MountFlags,
    /// What was not understood, one text each; not part of the `-o` text.
    pub warnings: Vec<String>,
}

/// Where the overlay's own extended attributes live (`userxattr` of the kernel overlay).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Namespace {
    /// Trusted with the privilege for it, user otherwise.
    #[default]
    Auto,
    /// `trusted.overlay.`
    Trusted,
    /// `user.overlay.`
    User,
}

/// What renaming a directory that has a lower part does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RedirectDir {
    /// Redirects in the trusted namespace, whole copies in the user one.
    #[default]
    Auto,
    /// A redirect is written.
    On,
    /// EXDEV, as the kernel overlay answers without redirects.
    Off,
    /// The directory is copied up whole.
    Copy,
}

/// The form in which deletions are written; every form is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Whiteouts {
    /// Devices when a probe at mount proves them, `.wh.` files otherwise.
    #[default]
    Auto,
    /// Character devices 0:0.
    Device,
    /// `.wh.` files.
    Dot,
    /// Empty files with an xattr.
    Xattr,
}

/// How the data of files reaches the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Io {
    /// Handleless; with a live view by handles.
    #[default]
    Auto,
    /// Each open and each close is a request.
    Handles,
    /// The kernel opens and closes by itself and keeps what was read.
    Handleless,
    /// Each open is a request, after which the kernel reads and writes the layer's file itself.
    Passthrough,
}

/// Whether owner and mode are kept in an extended attribute (`xattr_permissions=` of
/// fuse-overlayfs).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum XattrPermissions {
    /// 0: in the inode.
    #[default]
    Off,
    /// 1: in an attribute of the security namespace.
    Security,
    /// 2: in an attribute of the user namespace.
    User,
}

/// How requests come from the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Rings where the kernel offers them and they can be made, one descriptor otherwise.
    #[default]
    Auto,
    /// FUSE over io_uring, or no mount.
    Ring,
    /// Reads and writes of the device.
    Classic,
}

/// What goes to the mount call. `None` is "not said".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountFlags {
    /// Source shown in the mount table.
    pub fsname: Option<String>,
    /// Type shown after `fuse.` in the mount table.
    pub subtype: Option<String>,
    /// `ro`
    pub read_only: bool,
    /// `suid`, `nosuid`
    pub suid: Option<bool>,
    /// `dev`, `nodev`
    pub dev: Option<bool>,
    /// `exec`, `noexec`
    pub exec: Option<bool>,
    /// `atime` (also `relatime`, `strictatime`), `noatime`
    pub atime: Option<bool>,
    /// `diratime`, `nodiratime`
    pub diratime: Option<bool>,
    /// `sync`, `async`
    pub sync: bool,
    /// `dirsync`
    pub dirsync: bool,
    /// `remount`: the flags of a mount that is there are to change.
    pub remount: bool,
    /// `allow_other`, `noallow_other`
    pub allow_other: Option<bool>,
    /// `allow_root`
    pub allow_root: bool,
    /// Largest write request, bytes.
    pub max_write: Option<u32>,
    /// Largest read request, bytes.
    pub max_read: Option<u32>,
    /// Every request is logged.
    pub debug: bool,
    /// SELinux `context=`, `fscontext=`, `defcontext=` and `rootcontext=`, verbatim with
    /// name and quotes, joined by commas.
    pub context: Option<String>,
}

/// An option that cannot be accepted. Displays as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionError {
    /// The option's name.
    pub option: String,
    /// What is wrong and what is expected.
    pub why: String,
}

impl Options {
    /// Reads one `-o` list; several lists are joined by commas first. Later options win,
    /// so defaults go in front.
    pub fn parse(list: impl AsRef<OsStr>) -> Result<Options, OptionError> {
        parse::parse(list.as_ref())
    }

    /// The single options of a list, as they are written there.
    pub fn words(list: impl AsRef<OsStr>) -> Vec<OsString> {
        let words = item::split(list.as_ref().as_bytes()).into_iter();
        let words = words.filter(|word| !word.is_empty());
        words.map(|word| OsStr::from_bytes(word).to_owned()).collect()
    }

    /// How data reaches the caller, settled.
    pub(crate) fn settled_io(&self) -> Io {
        match self.io {
            Io::Auto if self.timeout.is_zero() => Io::Handles,
            Io::Auto => Io::Handleless,
            said => said,
        }
    }

    /// Whether the options make a mount together: a lower, work exactly when there is an
    /// upper, no empty path.
    pub fn validate(&self) -> Result<(), OptionError> {
        if self.lowers.is_empty() {
            return Err(OptionError::new("lowerdir", "missing; expected at least one lower layer"));
        }
        match (&self.upper, &self.work) {
            (Some(_), None) => {
                return Err(OptionError::new(
                    "workdir",
                    "missing; an upperdir needs one, on its file system",
                ));
            }
            (None, Some(_)) => {
                return Err(OptionError::new(
                    "workdir",
                    "given without upperdir; expected both or neither",
                ));
            }
            _ => {}
        }
        if self.timeout.is_zero() && matches!(self.io, Io::Handleless | Io::Passthrough) {
            let why =
                "keeps what was read, which timeout=0 forbids; expected io=auto or io=handles";
            return Err(OptionError::new("io", why));
        }
        self.validate_limits()?;
        let named = [("lowerdir", &self.lowers), ("datadir", &self.data_lowers)];
        let layers =
            named.iter().flat_map(|(name, paths)| paths.iter().map(move |path| (*name, path)));
        let upper = self.upper.iter().map(|path| ("upperdir", path));
        let work = self.work.iter().map(|path| ("workdir", path));
        match layers.chain(upper).chain(work).find(|(_, path)| path.as_os_str().is_empty()) {
            Some((name, _)) => Err(OptionError::new(name, "empty path; expected a directory")),
            None => Ok(()),
        }
    }

    /// Limits are for what is written, and all of that has to come through us.
    fn validate_limits(&self) -> Result<(), OptionError> {
        let limits = [("size", self.size), ("nr_inodes", self.nr_inodes)];
        let Some((name, _)) = limits.iter().find(|(_, limit)| limit.is_some()) else {
            return Ok(());
        };
        if self.upper.is_none() {
            let why = "limits what is written, and nothing is without an upperdir; leave it out";
            return Err(OptionError::new(*name, why));
        }
        if self.io == Io::Passthrough {
            let why =
                format!("passthrough goes past the limit of {name}; expected another, or no limit");
            return Err(OptionError::new("io", why));
        }
        Ok(())
    }
}

impl Options {
    /// Whether this owner of a lower object, as it is seen, is nobody because the map of lower layers does not name who it
    /// is: there is nothing that a copy could be given. EOVERFLOW, as with the kernel's overlay.
    pub(crate) fn hides_owner(&self, uid: u32, gid: u32) -> bool {
        hides(&self.lower_uid_map, uid) || hides(&self.lower_gid_map, gid)
    }

    /// The mode of a lower object that such an owner has: its program runs as nobody else, as on an id-mapped mount
    /// (`bprm_fill_uid`, fs/exec.c).
    pub(crate) fn mode_of_lower(&self, uid: u32, gid: u32, mode: u32) -> u32 {
        let user = if hides(&self.lower_uid_map, uid) { crate::sys::S_ISUID } else { 0 };
        let group = if hides(&self.lower_gid_map, gid) { crate::sys::S_ISGID } else { 0 };
        if mode & crate::sys::S_IFMT == crate::sys::S_IFREG { mode & !(user | group) } else { mode }
    }
}

fn hides(map: &IdMap, id: u32) -> bool {
    id == OVERFLOW_ID && map.to_disk(id).is_none()
}

impl Default for Options {
    fn default() -> Self {
        Options {
            lowers: Vec::new(),
            data_lowers: Vec::new(),
            upper: None,
            work: None,
            namespace: Namespace::Auto,
            redirect_dir: RedirectDir::Auto,
            metacopy: false,
            volatile: false,
            fsync: true,
            whiteouts: Whiteouts::Auto,
            uid_map: IdMap::default(),
            gid_map: IdMap::default(),
            lower_uid_map: IdMap::default(),
            lower_gid_map: IdMap::default(),
            squash_uid: None,
            squash_gid: None,
            squash_unmapped: None,
            xattr_permissions: XattrPermissions::Off,
            timeout: DEFAULT_TIMEOUT,
            static_nlink: false,
            noacl: false,
            ino32: false,
            noxattrs: false,
            io: Io::Auto,
            nfs_export: false,
            transport: Transport::Auto,
            size: None,
            nr_inodes: None,
            mount: MountFlags::default(),
            warnings: Vec::new(),
        }
    }
}

impl OptionError {
    pub(super) fn new(option: impl Into<String>, why: impl Into<String>) -> Self {
        OptionError { option: option.into(), why: why.into() }
    }
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "option '{}': {}", self.option, self.why)
    }
}

impl std::error::Error for OptionError {}
