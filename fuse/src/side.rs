//! Marks of objects that bear no xattrs.
//!
//! Symlinks and devices take no `user.*` xattrs, so without privilege their marks are kept beside
//! the upper layer, in `work/marks`: a symlink named after the object's file handle and the mark,
//! whose target is the value. A handle is never given to another object, so a record that was left
//! behind names nobody. Other overlays ignore the folder.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;

use crate::lend;
use crate::origin::Origin;
use crate::stack::Upper;
use crate::sys;
use crate::whiteout::{self, Marks, Space};

/// Every mark that is kept here.
const KEYS: [&str; 4] = ["origin", "nlink", "nlink.lower", "override"];

/// What all marks of an object are called, before the dot and the mark's own name.
pub fn marks_name(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<String> {
    let handle = sys::file_handle(dir, name)?;
    let mut record = format!("{:02x}", handle.kind);
    for byte in handle.bytes {
        record.push_str(&format!("{byte:02x}"));
    }
    Ok(record)
}

fn record(dir: BorrowedFd<'_>, name: &OsStr, key: &str) -> io::Result<OsString> {
    Ok(OsString::from(format!("{}.{key}", marks_name(dir, name)?)))
}

/// Sets a mark as an xattr, or here where the object takes none.
pub(crate) fn set_mark(
    upper: &Upper,
    (dir, name): (BorrowedFd<'_>, &OsStr),
    key: &str,
    value: &[u8],
) -> io::Result<()> {
    match lend::set_xattr(dir, name, &upper.dialect.space.key(key), value) {
        Err(e) if matches!(sys::errno(&e), sys::EPERM | sys::EOPNOTSUPP) => {
            match set(upper, (dir, name), key, value) {
                // No handles either: what the mark says is lost at the next mount.
                Err(e) if sys::errno(&e) == sys::EOPNOTSUPP => Ok(()),
                other => other,
            }
        }
        other => other,
    }
}

/// The marks of an upper directory, or those of another upper object that it bears itself.
pub(crate) fn dir_marks(dir: BorrowedFd<'_>, name: &OsStr, space: Space) -> io::Result<Marks> {
    lend::lend(&[(dir, name)], || whiteout::marks(dir, name, space))
}

/// Whether an object of this kind takes xattrs. Where the filesystem has none, nothing does.
fn bears_its_own(kind: u32, space: Space) -> bool {
    match space {
        Space::Trusted => true,
        Space::None => false,
        _ => matches!(kind, sys::S_IFREG | sys::S_IFDIR),
    }
}

/// The marks of an upper object, those kept here included.
pub(crate) fn marks(
    upper: &Upper,
    (dir, name): (BorrowedFd<'_>, &OsStr),
    kind: u32,
) -> io::Result<Marks> {
    let space = upper.dialect.space;
    let mut marks = dir_marks(dir, name, space)?;
    if bears_its_own(kind, space) {
        return Ok(marks);
    }
    if marks.origin.is_none() {
        marks.origin = get(upper, (dir, name), "origin")?.and_then(|value| Origin::decode(&value));
    }
    if marks.nlink.is_none() {
        marks.nlink = get(upper, (dir, name), "nlink")?;
    }
    if marks.lower_nlink.is_none() {
        marks.lower_nlink = get(upper, (dir, name), "nlink.lower")?;
    }
    Ok(marks)
}

/// Keeps a mark; an earlier value is replaced whole.
pub(crate) fn set(
    upper: &Upper,
    (dir, name): (BorrowedFd<'_>, &OsStr),
    key: &str,
    value: &[u8],
) -> io::Result<()> {
    let record = record(dir, name, key)?;
    let marks = upper.work.make_marks()?;
    let temp = upper.work.temp();
    sys::symlink(temp.dir(), temp.name(), OsStr::new(&encode(value)))?;
    sys::rename(temp.dir(), temp.name(), marks, &record, 0)?;
    temp.keep();
    Ok(())
}

/// A mark that was kept.
pub(crate) fn get(
    upper: &Upper,
    (dir, name): (BorrowedFd<'_>, &OsStr),
    key: &str,
) -> io::Result<Option<Vec<u8>>> {
    let Some(marks) = upper.work.marks() else { return Ok(None) };
    let Ok(record) = record(dir, name, key) else { return Ok(None) };
    match sys::readlink(marks, &record) {
        Ok(value) => Ok(decode(&value.into_vec())),
        Err(e) if sys::errno(&e) == sys::ENOENT => Ok(None),
        Err(e) => Err(e),
    }
}

/// The records an object may have, to be dropped by [`drop_records`] once it is gone.
pub(crate) fn records(
    upper: &Upper,
    (dir, name): (BorrowedFd<'_>, &OsStr),
    kind: u32,
) -> Vec<OsString> {
    if upper.work.marks().is_none() || bears_its_own(kind, upper.dialect.space) {
        return Vec::new();
    }
    KEYS.iter().filter_map(|key| record(dir, name, key).ok()).collect()
}

/// Drops records. One that stays harms nobody.
pub(crate) fn drop_records(upper: &Upper, records: &[OsString]) {
    let Some(marks) = upper.work.marks() else { return };
    for record in records {
        if let Err(e) = sys::unlink(marks, record) {
            log::trace!("{record:?}: {e}");
        }
    }
}

/// Hexadecimal, since the target of a symlink holds no NUL and is never empty.
fn encode(value: &[u8]) -> String {
    value.iter().fold(String::from("="), |text, byte| format!("{text}{byte:02x}"))
}

fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let digits = std::str::from_utf8(text.strip_prefix(b"=")?).ok()?;
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    (0..digits.len()).step_by(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_both_ways() {
        for value in [&b""[..], b"U+1", b"\0\xff\x10"] {
            assert_eq!(decode(encode(value).as_bytes()).as_deref(), Some(value));
        }
        assert_eq!(decode(b"00"), None);
        assert_eq!(decode(b"=0"), None);
        assert_eq!(decode(b"=zz"), None);
    }
}
