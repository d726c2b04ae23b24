//! The kernel's table of mounts of this namespace, as it prints it in `/proc/self/mountinfo`; a
//! thread can have a namespace of its own.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};

const TABLE: &str = "/proc/thread-self/mountinfo";

/// The types under which our mounts show: our own name, and the one we answer to as a drop-in.
const OUR_TYPES: [&str; 2] = ["fuse.plyfs", "fuse.fuse-overlayfs"];

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// The kernel's number for it; free for another mount once this one is gone.
    pub id: u64,
    /// The number of the mount it is mounted on.
    pub parent: u64,
    /// Major and minor number of its device; for FUSE the minor one is the connection's.
    pub device: (u32, u32),
    /// Where it is, absolute.
    pub target: PathBuf,
    /// The type of filesystem, with a subtype after a dot.
    pub kind: String,
    /// What is mounted: a device, or a name the filesystem chose.
    pub source: OsString,
    /// Options of this mount and of the filesystem, separated by commas.
    pub options: String,
    /// The scratch directory that the kernel's overlay has, whatever its name holds.
    pub workdir: Option<PathBuf>,
}

impl MountPoint {
    /// Whether nothing can be written through it. These words come before all that has a value, and names may be values.
    pub fn is_read_only(&self) -> bool {
        self.options.split(',').take_while(|word| !word.contains('=')).any(|word| word == "ro")
    }

    /// Whether a server of ours answers for it.
    pub fn is_ours(&self) -> bool {
        OUR_TYPES.contains(&self.kind.as_str()) || (self.kind == "fuse" && self.source == "plyfs")
    }
}

/// Every mount of this process's namespace, in the order they were made.
pub fn read() -> Result<Vec<MountPoint>> {
    of(Path::new(TABLE))
}

/// The same of the thread that a table belongs to.
pub(super) fn of(table: &Path) -> Result<Vec<MountPoint>> {
    parse(&std::fs::read(table).on("read", table)?)
}

/// The mount that is seen at exactly `target`.
pub fn topmost<'a>(mounts: &'a [MountPoint], target: &Path) -> Option<&'a MountPoint> {
    mounts.iter().rev().find(|mount| mount.target == target)
}

fn parse(text: &[u8]) -> Result<Vec<MountPoint>> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            parse_line(line).ok_or_else(|| Error::Corrupt {
                what: TABLE.to_owned(),
                detail: format!("line '{}' is not understood", String::from_utf8_lossy(line)),
            })
        })
        .collect()
}

/// `id parent dev root target options [tag...] - type source options`; blanks inside a field are
/// written as octal escapes.
fn parse_line(line: &[u8]) -> Option<MountPoint> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
    let (major, minor) = std::str::from_utf8(fields.get(2)?).ok()?.split_once(':')?;
    // Before it is unescaped: names may have commas too.
    let mut words = fields.get(dash + 3)?.split(|byte| *byte == b',');
    let workdir = words.find_map(|word| word.strip_prefix(b"workdir="));
    Some(MountPoint {
        id: number(fields.first()?)?,
        parent: number(fields.get(1)?)?,
        device: (major.parse().ok()?, minor.parse().ok()?),
        target: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
        kind: text(fields.get(dash + 1)?),
        source: OsString::from_vec(unescape(fields.get(dash + 2)?)),
        options: format!("{},{}", text(fields.get(5)?), text(fields.get(dash + 3)?)),
        workdir: workdir.map(|name| PathBuf::from(OsString::from_vec(unescape(name)))),
    })
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = (*first == b'\\').then(|| tail.first_chunk::<3>()).flatten().and_then(octal);
        match escaped {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

fn octal(digits: &[u8; 3]) -> Option<u8> {
    digits.iter().try_fold(0u8, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(digit - b'0'),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] =
        b"27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard\n\
        90 27 0:50 / /mnt/a\\040b rw,noatime - fuse.plyfs plyfs rw,user_id=0\n\
        91 90 0:51 / /mnt/a\\040b rw - tmpfs none rw\n\
        92 27 0:52 / /mnt/c\\134d rw - fuse plyfs rw\n\
        93 27 0:53 / /mnt/o rw - overlay plyfs rw,upperdir=/a\\054b\xff/u,workdir=/a\\054b\xff/w,volatile\n";

    #[test]
    fn table_is_read() {
        let mounts = parse(SAMPLE).unwrap();
        assert_eq!(mounts.len(), 5);
        assert_eq!((mounts[0].id, mounts[0].parent, mounts[0].is_ours()), (27, 1, false));
        assert_eq!((mounts[0].kind.as_str(), mounts[0].device), ("ext4", (254, 0)));
        assert_eq!(mounts[0].options, "rw,relatime,rw,discard");
        assert_eq!(mounts[1].target, Path::new("/mnt/a b"));
        assert!(mounts[1].is_ours() && mounts[3].is_ours());
        assert_eq!(mounts[3].target, Path::new("/mnt/c\\d"));
        let workdir = mounts[4].workdir.as_ref().map(|path| path.as_os_str().as_encoded_bytes());
        assert_eq!((&mounts[0].workdir, workdir), (&None, Some(&b"/a,b\xff/w"[..])));
    }

    #[test]
    fn the_last_mount_at_a_place_is_the_one_seen() {
        let mounts = parse(SAMPLE).unwrap();
        assert_eq!(topmost(&mounts, Path::new("/mnt/a b")).unwrap().id, 91);
        assert_eq!(topmost(&mounts, Path::new("/mnt")), None);
    }

    #[test]
    fn escapes_are_octal_and_nothing_else() {
        let table: [(&[u8], &[u8]); 5] = [
            (b"a\\040b", b"a b"),
            (b"\\134", b"\\"),
            (b"\\9", b"\\9"),
            (b"\\777", b"\\777"),
            (b"x\\01", b"x\\01"),
        ];
        for (escaped, plain) in table {
            assert_eq!(unescape(escaped), plain);
        }
    }

    #[test]
    fn a_torn_line_is_refused() {
        assert!(parse(b"27 1 254:0 / /").is_err());
        assert!(parse(b"x 1 254:0 / / rw - ext4 a rw").is_err());
    }
}
