//! The override record: owner, mode and kind of a file, kept in an extended attribute.
//!
//! Text: `uid:gid:octal[:kind]`, as containers/storage and fuse-overlayfs exchange it. All
//! known spellings are read: three fields or four, octal with leading zeros or with the
//! file type bits (fuse-overlayfs 1.10), a trailing NUL. What is written is the form of
//! containers/storage: four fields, at least four octal digits, dashes in devices.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::str::FromStr;

use crate::attr::Attr;
use crate::options::XattrPermissions;

/// Names the record is read from, first found wins: what only the privileged can write
/// comes first, the legacy name last.
pub const OVERRIDE_NAMES: [&str; 3] = [SECURITY, CONTAINERS, LEGACY];

const SECURITY: &str = "security.fuseoverlayfs.override_stat";
const CONTAINERS: &str = "user.containers.override_stat";
const LEGACY: &str = "user.fuseoverlayfs.override_stat";

/// Names under which the user mode keeps attributes of the security namespace.
const STORED_PREFIX: &[u8] = b"user.containers.override_";
const SECURITY_PREFIX: &[u8] = b"security.";

/// File type bits (inode(7)).
const S_IFMT: u32 = 0o170_000;
const S_IFIFO: u32 = 0o010_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFSOCK: u32 = 0o140_000;

/// Owner, permissions and kind to show instead of what stat says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Override {
    /// User id on disk, before any mapping.
    pub uid: u32,
    /// Group id on disk, before any mapping.
    pub gid: u32,
    /// Permission and set-id bits, without the file type.
    pub mode: u32,
    /// Kind of file; `None` when the record does not say.
    pub kind: Option<OverrideKind>,
}

/// Kind of file in an override record; devices with major and minor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OverrideKind {
    /// Directory.
    Dir,
    /// Regular file.
    File,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Pipe,
    /// Socket.
    Socket,
    /// Block device.
    Block(u32, u32),
    /// Character device.
    Char(u32, u32),
}

impl Override {
    /// The record of a file with this owner, this mode (file type included) and this device
    /// number (the kernel's 32-bit encoding).
    pub fn new(uid: u32, gid: u32, mode: u32, rdev: u32) -> Self {
        let (major, minor) = split_dev(rdev);
        let kind = match mode & S_IFMT {
            S_IFDIR => Some(OverrideKind::Dir),
            S_IFREG => Some(OverrideKind::File),
            S_IFLNK => Some(OverrideKind::Symlink),
            S_IFIFO => Some(OverrideKind::Pipe),
            S_IFSOCK => Some(OverrideKind::Socket),
            S_IFBLK => Some(OverrideKind::Block(major, minor)),
            S_IFCHR => Some(OverrideKind::Char(major, minor)),
            _ => None,
        };
        Override { uid, gid, mode: mode & 0o7777, kind }
    }

    /// Reads a record; `None` for anything that is not one.
    pub fn parse(value: &[u8]) -> Option<Override> {
        let value = value.strip_suffix(b"\0").unwrap_or(value);
        let text = std::str::from_utf8(value).ok()?;
        let mut fields = text.split(':');
        let uid = decimal(fields.next()?)?;
        let gid = decimal(fields.next()?)?;
        let mode = octal(fields.next()?)? & 0o7777;
        let kind = match fields.next() {
            Some(kind) => Some(OverrideKind::parse(kind)?),
            None => None,
        };
        Some(Override { uid, gid, mode, kind })
    }

    /// Shows the record instead of what stat said; before any mapping of ids.
    pub fn apply(&self, attr: &mut Attr) {
        attr.uid = self.uid;
        attr.gid = self.gid;
        (attr.mode, attr.rdev) = self.shown(attr.mode, attr.rdev);
    }

    /// Mode and device number to show for an inode that has `mode` and `rdev`. A directory
    /// stays one and nothing else becomes one: what the inode can do decides that.
    pub fn shown(&self, mode: u32, rdev: u32) -> (u32, u32) {
        let is_dir = mode & S_IFMT == S_IFDIR;
        match self.kind.filter(|kind| !is_dir && *kind != OverrideKind::Dir) {
            Some(kind) => (kind.type_bits() | self.mode, kind.rdev()),
            None => ((mode & S_IFMT) | self.mode, rdev),
        }
    }
}

impl OverrideKind {
    /// The file type bits of a mode.
    pub fn type_bits(self) -> u32 {
        match self {
            OverrideKind::Dir => S_IFDIR,
            OverrideKind::File => S_IFREG,
            OverrideKind::Symlink => S_IFLNK,
            OverrideKind::Pipe => S_IFIFO,
            OverrideKind::Socket => S_IFSOCK,
            OverrideKind::Block(..) => S_IFBLK,
            OverrideKind::Char(..) => S_IFCHR,
        }
    }

    /// The device number in the kernel's 32-bit encoding; 0 for what is not a device.
    pub fn rdev(self) -> u32 {
        match self {
            OverrideKind::Block(major, minor) | OverrideKind::Char(major, minor) => {
                join_dev(major, minor)
            }
            _ => 0,
        }
    }

    fn parse(text: &str) -> Option<OverrideKind> {
        match text {
            "dir" => return Some(OverrideKind::Dir),
            "file" => return Some(OverrideKind::File),
            "symlink" => return Some(OverrideKind::Symlink),
            "pipe" => return Some(OverrideKind::Pipe),
            "socket" => return Some(OverrideKind::Socket),
            _ => {}
        }
        let mut parts = text.split('-');
        let (name, major, minor) = (parts.next()?, parts.next()?, parts.next()?);
        let numbers = (decimal(major)?, decimal(minor)?);
        let (major, minor) = Some(numbers).filter(|(major, minor)| is_device(*major, *minor))?;
        match name {
            "block" => Some(OverrideKind::Block(major, minor)),
            "char" => Some(OverrideKind::Char(major, minor)),
            _ => None,
        }
    }
}

/// The kernel's device numbers have 12 bits of major and 20 of minor.
fn is_device(major: u32, minor: u32) -> bool {
    major < 1 << 12 && minor < 1 << 20
}

/// `new_encode_dev` of linux/kdev_t.h.
fn join_dev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

fn split_dev(rdev: u32) -> (u32, u32) {
    ((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00))
}

fn decimal(text: &str) -> Option<u32> {
    // FromStr alone would also take a leading plus sign.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    u32::from_str(text).ok().filter(|_| digits)
}

fn octal(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    u32::from_str_radix(text, 8).ok().filter(|_| digits)
}

/// The form containers/storage writes; three fields when the kind is unknown.
impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{:04o}", self.uid, self.gid, self.mode)?;
        match self.kind {
            None => Ok(()),
            Some(OverrideKind::Dir) => f.write_str(":dir"),
            Some(OverrideKind::File) => f.write_str(":file"),
            Some(OverrideKind::Symlink) => f.write_str(":symlink"),
            Some(OverrideKind::Pipe) => f.write_str(":pipe"),
            Some(OverrideKind::Socket) => f.write_str(":socket"),
            Some(OverrideKind::Block(major, minor)) => write!(f, ":block-{major}-{minor}"),
            Some(OverrideKind::Char(major, minor)) => write!(f, ":char-{major}-{minor}"),
        }
    }
}

/// The name the record is written under; `None` when owners live in the inode.
pub fn override_name(mode: XattrPermissions) -> Option<&'static str> {
    match mode {
        XattrPermissions::Off => None,
        XattrPermissions::Security => Some(SECURITY),
        XattrPermissions::User => Some(CONTAINERS),
    }
}

/// The name on disk of an attribute the user names: in the user mode the security
/// namespace is kept beside the record, where no privilege is needed. `None` for names that
/// are ours and that the user may not name (EPERM on set, as fuse-overlayfs answers).
pub fn stored_xattr(mode: XattrPermissions, name: &OsStr) -> Option<Cow<'_, OsStr>> {
    let bytes = name.as_bytes();
    if is_record(bytes) {
        return None;
    }
    if mode != XattrPermissions::User {
        return Some(Cow::Borrowed(name));
    }
    if bytes.starts_with(STORED_PREFIX) {
        return None;
    }
    if bytes.starts_with(SECURITY_PREFIX) {
        let stored = [STORED_PREFIX, bytes].concat();
        return Some(Cow::Owned(OsString::from_vec(stored)));
    }
    Some(Cow::Borrowed(name))
}

/// The name the user sees of an attribute on disk, the reverse of `stored_xattr`; `None`
/// for the record, and in the user mode for the host's own security attributes.
pub fn shown_xattr(mode: XattrPermissions, name: &OsStr) -> Option<Cow<'_, OsStr>> {
    let bytes = name.as_bytes();
    if is_record(bytes) {
        return None;
    }
    if mode != XattrPermissions::User {
        return Some(Cow::Borrowed(name));
    }
    if let Some(shown) = bytes.strip_prefix(STORED_PREFIX) {
        let shown = Some(shown).filter(|shown| shown.starts_with(SECURITY_PREFIX));
        return shown.map(|shown| Cow::Borrowed(OsStr::from_bytes(shown)));
    }
    if bytes.starts_with(SECURITY_PREFIX) { None } else { Some(Cow::Borrowed(name)) }
}

pub(crate) fn is_record(name: &[u8]) -> bool {
    OVERRIDE_NAMES.iter().any(|record| record.as_bytes() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(uid: u32, gid: u32, mode: u32, kind: Option<OverrideKind>) -> Option<Override> {
        Some(Override { uid, gid, mode, kind })
    }

    #[test]
    fn records_of_every_writer_are_read() {
        use OverrideKind::{Block, Char, Dir, File, Pipe, Socket, Symlink};
        for (text, expected) in [
            ("0:0:0755:dir", record(0, 0, 0o755, Some(Dir))),
            ("5:6:4755:file", record(5, 6, 0o4755, Some(File))),
            ("5:6:0777:symlink", record(5, 6, 0o777, Some(Symlink))),
            ("5:6:0600:pipe", record(5, 6, 0o600, Some(Pipe))),
            ("5:6:0600:socket", record(5, 6, 0o600, Some(Socket))),
            ("5:6:0660:block-259-70000", record(5, 6, 0o660, Some(Block(259, 70_000)))),
            ("5:6:0666:char-1-3", record(5, 6, 0o666, Some(Char(1, 3)))),
            ("5:6:0666:char-1-3-future", record(5, 6, 0o666, Some(Char(1, 3)))),
            ("0:0:755", record(0, 0, 0o755, None)),
            ("0:0:00000755", record(0, 0, 0o755, None)),
            ("0:0:104755", record(0, 0, 0o4755, None)),
            ("0:0:40755", record(0, 0, 0o755, None)),
            ("0:0:0555\0", record(0, 0, 0o555, None)),
            ("4294967294:65534:0", record(4_294_967_294, 65_534, 0, None)),
            ("", None),
            ("0:0", None),
            ("0:0:", None),
            ("0:0:8", None),
            ("-1:0:755", None),
            ("+1:0:755", None),
            ("0:4294967296:755", None),
            ("0:0:0755:door", None),
            ("0:0:0755:char", None),
            ("0:0:0755:char-1", None),
            ("0:0:0755:char-4096-0", None),
            ("0:0:0755:disk-1-1", None),
        ] {
            assert_eq!(Override::parse(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(Override::parse(b"0:0:0755:\xff"), None);
    }

    #[test]
    fn records_are_written_as_containers_storage_does() {
        for (mode, rdev, text) in [
            (0o040_755, 0, "1:2:0755:dir"),
            (0o104_755, 0, "1:2:4755:file"),
            (0o120_777, 0, "1:2:0777:symlink"),
            (0o010_600, 0, "1:2:0600:pipe"),
            (0o140_007, 0, "1:2:0007:socket"),
            (0o060_660, 0x1111_0370, "1:2:0660:block-259-70000"),
            (0o020_666, 0x0103, "1:2:0666:char-1-3"),
        ] {
            let record = Override::new(1, 2, mode, rdev);
            assert_eq!(record.to_string(), text);
            assert_eq!(Override::parse(text.as_bytes()), Some(record));
            assert_eq!(record.kind.map(OverrideKind::rdev), Some(rdev), "{text}");
            assert_eq!(record.kind.map(OverrideKind::type_bits), Some(mode & S_IFMT), "{text}");
        }
    }

    #[test]
    fn a_record_changes_all_but_what_the_inode_can_do() {
        for (mode, text, shown, rdev) in [
            (0o100_644, "5:6:4711", 0o104_711, 0),
            (0o100_644, "5:6:0640:char-1-3", 0o020_640, 0x0103),
            (0o100_644, "5:6:0777:symlink", 0o120_777, 0),
            (0o100_644, "5:6:0755:dir", 0o100_755, 0),
            (0o040_700, "5:6:0755:file", 0o040_755, 0),
            (0o040_700, "5:6:0755:dir", 0o040_755, 0),
        ] {
            let record = Override::parse(text.as_bytes()).unwrap();
            assert_eq!(record.shown(mode, 0), (shown, rdev), "{text}");
        }
    }

    #[test]
    fn the_user_mode_keeps_security_attributes_beside_the_record() {
        use XattrPermissions::{Off, Security, User};
        let os = |text: &'static str| Some(Cow::Borrowed(OsStr::new(text)));
        let kept = "user.containers.override_security.capability";
        for (mode, name, stored) in [
            (Off, "security.capability", os("security.capability")),
            (Security, "security.capability", os("security.capability")),
            (User, "security.capability", os(kept)),
            (User, "user.name", os("user.name")),
            (User, kept, None),
            (Off, kept, os(kept)),
            (Off, CONTAINERS, None),
            (Security, SECURITY, None),
            (User, LEGACY, None),
        ] {
            assert_eq!(stored_xattr(mode, OsStr::new(name)), stored, "{mode:?} {name}");
        }
        for (mode, name, shown) in [
            (User, kept, os("security.capability")),
            (User, "security.selinux", None),
            (User, "user.containers.override_other", None),
            (User, "user.name", os("user.name")),
            (Off, "security.selinux", os("security.selinux")),
            (Off, kept, os(kept)),
            (Off, CONTAINERS, None),
        ] {
            assert_eq!(shown_xattr(mode, OsStr::new(name)), shown, "{mode:?} {name}");
        }
    }
}
