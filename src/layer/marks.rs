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
/// Prefix of names that AUFS has for itself.
pub(super) const RESERVED: &[u8] = b".wh..wh.";
/// The prefix as a name, which deletes nothing.
pub(super) const BARE: &str = ".wh.";
/// The file that makes its directory opaque.
pub(super) const OPAQUE_FILE: &str = ".wh..wh..opq";
/// A device 0:0 of this name does so too: fuse-overlayfs up to 1.13 leaves it beside that file. A file
/// of this name deletes `.opq`.
pub(super) const SECOND_OPAQUE: &str = ".wh..opq";

/// Whose word is taken on what the objects of a layer stand for. What shows a layer to its users
/// decides: a mark that it keeps from them can be believed, and what they can set is their data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Belief {
    marks: Dialects,
    /// Owner, mode and kind are as an attribute in `user.*` has them.
    pub(super) records: bool,
    /// Nothing lies below, so that nothing was moved from there or left its data there.
    lowest: bool,
}

/// The marks that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialects {
    /// All, whoever could set them.
    All,
    /// All, but moves (redirects and metacopies) only in `trusted.*`: any owner of a file may set
    /// `user.*`, and would so choose which lower file a privileged reader shows him.
    Cautious,
    /// The same, as our own mount with `trusted.*` has it: a redirect elsewhere is nothing.
    Fuse,
    /// Those of the kernel's overlay: devices, and attributes of its own space.
    Kernel(Space),
    /// None: the directory is a whole tree, and all in it is what it seems.
    Nothing,
}

/// Where a mark is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    /// `trusted.overlay.*`
    Trusted,
    /// `user.overlay.*`
    User,
    /// `fuseoverlayfs.*` of both.
    Foreign,
}

impl Belief {
    /// Everything, which whoever can write to the layer may make use of.
    pub const ALL: Belief = Belief { marks: Dialects::All, records: true, lowest: false };

    /// Nothing.
    const NONE: Belief = Belief { marks: Dialects::Nothing, records: false, lowest: false };

    /// What can be believed of a directory of which nothing is known, with the caller's privilege.
    pub fn standing() -> Belief {
        match tree::has_initial_privilege() {
            true => Belief { marks: Dialects::Cautious, ..Belief::NONE },
            false => Belief::ALL,
        }
    }

    /// That of a layer that the kernel's overlay shows, `user` with the option `userxattr`.
    pub fn kernel(user: bool) -> Belief {
        let space = if user { Space::User } else { Space::Trusted };
        Belief { marks: Dialects::Kernel(space), ..Belief::NONE }
    }

    /// That of a layer that our own overlay shows, which lets nobody make marks; `user` as above.
    pub fn fuse(user: bool) -> Belief {
        let marks = if user { Dialects::All } else { Dialects::Fuse };
        Belief { marks, ..Belief::NONE }
    }

    /// The same where `user.containers.override_stat` tells owner, mode and kind, or does not.
    #[must_use]
    pub fn with_records(self, records: bool) -> Belief {
        Belief { records, ..self }
    }

    /// The same of a layer that has no parent.
    #[must_use]
    pub fn of_the_lowest(self) -> Belief {
        Belief { lowest: true, ..self }
    }

    /// The same of a directory that is a whole tree.
    #[must_use]
    pub fn whole_tree(self) -> Belief {
        Belief { marks: Dialects::Nothing, ..self }
    }

    /// The mount keeps its marks in `user.*`.
    pub fn keeps_in_user(self) -> bool {
        matches!(self.marks, Dialects::All | Dialects::Kernel(Space::User))
    }

    /// Names that start with `.wh.` are marks.
    pub(super) fn dots(self) -> bool {
        matches!(self.marks, Dialects::All | Dialects::Cautious | Dialects::Fuse)
    }

    /// Devices 0:0 are whiteouts.
    pub(super) fn devices(self) -> bool {
        self.marks != Dialects::Nothing
    }

    /// Attributes of this space are marks.
    pub(super) fn reads(self, space: Space) -> bool {
        match self.marks {
            Dialects::All | Dialects::Cautious | Dialects::Fuse => true,
            Dialects::Kernel(own) => own == space,
            Dialects::Nothing => false,
        }
    }

    /// Moves are believed in this space.
    fn moves(self, space: Space) -> bool {
        match self.marks {
            Dialects::All => true,
            Dialects::Cautious | Dialects::Fuse => space == Space::Trusted,
            Dialects::Kernel(own) => own == space,
            Dialects::Nothing => false,
        }
    }
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
        let Some((space, rest)) = split(key.as_bytes()) else { continue };
        let moves = matches!(rest, b"redirect" | b"metacopy");
        if !belief.reads(space) || (moves && belief.lowest) {
            continue;
        }
        let Some(value) = tree::xattr(dir.as_fd(), name, key)? else { continue };
        let taken = take(&mut marks, belief.moves(space), rest, value);
        let is_known = taken || (belief.marks == Dialects::Fuse && rest == b"redirect");
        if !is_known {
            marks.foreign = Some(key.clone());
        }
    }
    marks.keys = keys;
    Ok(marks)
}

/// Splits a mark into its space and its key; `None` for what is no mark.
fn split(key: &[u8]) -> Option<(Space, &[u8])> {
    for (prefix, space) in [
        (&b"trusted.overlay."[..], Space::Trusted),
        (b"user.overlay.", Space::User),
        (b"trusted.fuseoverlayfs.", Space::Foreign),
        (b"user.fuseoverlayfs.", Space::Foreign),
    ] {
        if let Some(rest) = key.strip_prefix(prefix) {
            let known = space != Space::Foreign || matches!(rest, b"opaque" | b"origin");
            return known.then_some((space, rest));
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
        assert_eq!(split(b"trusted.overlay.opaque"), Some((Space::Trusted, &b"opaque"[..])));
        assert_eq!(split(b"user.fuseoverlayfs.opaque"), Some((Space::Foreign, &b"opaque"[..])));
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
