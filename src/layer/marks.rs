//! How "deleted", "opaque", "moved" and "metadata only" look on disk, in every dialect.
//!
//! Deleted: a character device 0:0; a file `.wh.NAME`; an empty file with an `overlay.whiteout`
//! xattr in a directory whose `overlay.opaque` is `x`. Opaque: an `overlay.opaque` or
//! `fuseoverlayfs.opaque` xattr of `y`, or a file `.wh..wh..opq`. The other names that start with
//! `.wh..wh.` are AUFS's own and mean nothing here.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::sys::tree::{self, Kind, Stat};

/// Prefix of a file that deletes the rest of its name.
pub(super) const PREFIX: &[u8] = b".wh.";
/// The prefix as a name, which deletes nothing.
pub(super) const BARE: &str = ".wh.";
/// The file that makes its directory opaque.
pub(super) const OPAQUE_FILE: &str = ".wh..wh..opq";
/// A device 0:0 of this name does so too: fuse-overlayfs up to 1.13 leaves it beside that file. A file
/// of this name deletes `.opq`.
pub(super) const SECOND_OPAQUE: &str = ".wh..opq";

/// Whose word on moved directories and metadata-only files is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Belief {
    /// Everybody's.
    All,
    /// Only `trusted.*`: any owner of a file may set `user.*`, and would so choose which lower
    /// file a privileged reader shows him.
    Trusted,
}

/// The marks on one object.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    /// The directory hides what lies below it.
    pub(super) opaque: bool,
    /// The directory may hold whiteouts that are xattrs.
    pub(super) xattr_whiteouts: bool,
    /// The file is such a whiteout.
    pub(super) whiteout: bool,
    /// The object was copied from a lower one.
    pub(super) origin: bool,
    /// Where the lower part is, when not under the same name.
    pub(super) redirect: Option<OsString>,
    /// The file's data is in a lower layer.
    pub(super) metacopy: bool,
    /// A redirect or metacopy mark that is not believed.
    pub(super) foreign: Option<OsString>,
    /// The names of all attributes that the object has.
    pub(super) keys: Vec<OsString>,
}

/// What a name in a layer's directory stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name<'a> {
    /// An object of that name, or its whiteout.
    Plain,
    /// A whiteout of the name given.
    Deletes(&'a OsStr),
    /// Nothing of the user's.
    Reserved,
}

/// Sorts a name.
pub(super) fn name(name: &OsStr) -> Name<'_> {
    match name.as_bytes().strip_prefix(PREFIX) {
        None => Name::Plain,
        Some(rest) if rest.is_empty() || rest.starts_with(PREFIX) => Name::Reserved,
        Some(rest) => Name::Deletes(OsStr::from_bytes(rest)),
    }
}

/// The file that deletes `name`.
pub(super) fn dot_name(name: &OsStr) -> OsString {
    let mut dot = PREFIX.to_vec();
    dot.extend_from_slice(name.as_bytes());
    OsString::from_vec(dot)
}

/// Whether the object is a whiteout by its device number.
pub(super) fn is_device(stat: &Stat) -> bool {
    stat.kind == Kind::Char && stat.rdev == (0, 0)
}

/// Reads the marks of an object.
pub(super) fn read(dir: impl AsFd, name: &OsStr, belief: Belief) -> io::Result<Marks> {
    let mut marks = Marks::default();
    let keys = tree::xattr_names(dir.as_fd(), name)?;
    for key in &keys {
        let Some((trusted, rest)) = split(key.as_bytes()) else { continue };
        let Some(value) = tree::xattr(dir.as_fd(), name, key)? else { continue };
        if !take(&mut marks, trusted || belief == Belief::All, rest, value) {
            marks.foreign = Some(key.clone());
        }
    }
    marks.keys = keys;
    Ok(marks)
}

/// Splits a mark into "only privilege can set it" and its key; `None` for what is no mark.
fn split(key: &[u8]) -> Option<(bool, &[u8])> {
    for (prefix, trusted, all) in [
        (&b"trusted.overlay."[..], true, true),
        (b"user.overlay.", false, true),
        (b"trusted.fuseoverlayfs.", true, false),
        (b"user.fuseoverlayfs.", false, false),
    ] {
        if let Some(rest) = key.strip_prefix(prefix) {
            return (all || matches!(rest, b"opaque" | b"origin")).then_some((trusted, rest));
        }
    }
    None
}

/// Notes a mark; false when it is one that is not believed.
fn take(marks: &mut Marks, believed: bool, key: &[u8], value: Vec<u8>) -> bool {
    match key {
        b"opaque" if value == b"y" => marks.opaque = true,
        b"opaque" if value == b"x" => marks.xattr_whiteouts = true,
        b"xwhiteouts" if believed => marks.xattr_whiteouts = true,
        b"whiteout" => marks.whiteout = true,
        b"origin" => marks.origin = true,
        b"redirect" | b"metacopy" if !believed => return false,
        b"redirect" => marks.redirect = Some(OsString::from_vec(value)),
        b"metacopy" => marks.metacopy = true,
        _ => {}
    }
    true
}

/// Where a redirect leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A path from the root of the layers.
    Path(PathBuf),
    /// Another name in the same directory.
    Sibling(OsString),
}

/// Reads a redirect; `None` for one that names no place below the root.
pub(super) fn target(redirect: &OsStr) -> Option<Target> {
    let plain =
        |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && !part.contains(&0);
    match redirect.as_bytes().strip_prefix(b"/") {
        Some(path) => path
            .split(|&b| b == b'/')
            .all(plain)
            .then(|| Target::Path(PathBuf::from(OsStr::from_bytes(path)))),
        None => {
            let one = plain(redirect.as_bytes()) && !redirect.as_bytes().contains(&b'/');
            one.then(|| Target::Sibling(redirect.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_by_prefix() {
        let deletes = |text| Name::Deletes(OsStr::new(text));
        for (text, meaning) in [
            ("a", Name::Plain),
            (".wh", Name::Plain),
            (".wh.a", deletes("a")),
            (".wh..opq", deletes(".opq")),
            (".wh.", Name::Reserved),
            (".wh..wh..opq", Name::Reserved),
            (".wh..wh.plnk", Name::Reserved),
        ] {
            assert_eq!(name(OsStr::new(text)), meaning, "{text}");
        }
        assert_eq!(dot_name(OsStr::new("a")), ".wh.a");
    }

    #[test]
    fn only_privileged_redirects_move_for_a_privileged_reader() {
        let mut marks = Marks::default();
        assert!(take(&mut marks, true, b"redirect", b"/a".to_vec()));
        assert!(!take(&mut marks, false, b"metacopy", Vec::new()));
        assert!(take(&mut marks, false, b"opaque", b"y".to_vec()));
        assert!(marks.opaque && !marks.metacopy && marks.redirect.is_some());
    }

    #[test]
    fn marks_of_other_overlays_are_told_apart() {
        assert_eq!(split(b"trusted.overlay.opaque"), Some((true, &b"opaque"[..])));
        assert_eq!(split(b"user.fuseoverlayfs.opaque"), Some((false, &b"opaque"[..])));
        assert_eq!(split(b"user.fuseoverlayfs.redirect"), None);
        assert_eq!(split(b"user.overlayx"), None);
    }

    #[test]
    fn redirects_stay_below_the_root() {
        let path = |text: &str| Some(Target::Path(PathBuf::from(text)));
        for (text, meaning) in [
            ("/a/b", path("a/b")),
            ("b", Some(Target::Sibling("b".into()))),
            ("", None),
            ("/", None),
            ("..", None),
            ("a/b", None),
            ("/a/../b", None),
            ("/a//b", None),
        ] {
            assert_eq!(target(OsStr::new(text)), meaning, "{text}");
        }
    }
}
