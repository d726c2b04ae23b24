//! How "deleted", "hides everything below" and the other marks of an overlay look on disk.
//!
//! The only room that knows the names of the marks. Every dialect is read, one is written, chosen
//! at mount: the character device 0:0, `.wh.NAME` files and zero-size files with an
//! `overlay.whiteout` xattr mean a deleted name; an `overlay.opaque` or `fuseoverlayfs.opaque`
//! xattr of `y`, a file `.wh..wh..opq` and a device 0:0 `.wh..opq` mean an opaque directory (kernel document "overlayfs",
//! OCI image specification "layer", and what fuse-overlayfs writes).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::lend;
use crate::origin::Origin;
use crate::sys::{self, Stat};

/// Prefix of the names that mean "deleted" in AUFS and OCI layers.
pub const PREFIX: &[u8] = b".wh.";
/// The file that makes its directory opaque in AUFS and OCI layers.
pub const OPAQUE_FILE: &str = ".wh..wh..opq";
/// The device 0:0 of this name does so too: fuse-overlayfs up to 1.13 leaves it beside the file.
const OPAQUE_DEVICE: &str = ".wh..opq";

/// Where the overlay keeps its xattrs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// `trusted.overlay.*`: needs privilege in the initial user namespace.
    Trusted,
    /// `user.overlay.*`: what the kernel's `userxattr` mode uses.
    User,
    /// The filesystem has no xattrs we may write.
    None,
}

impl Space {
    /// The xattr `overlay.KEY` in this space.
    pub fn key(self, key: &str) -> OsString {
        let prefix = if self == Space::Trusted { "trusted" } else { "user" };
        OsString::from(format!("{prefix}.overlay.{key}"))
    }
}

/// How a deletion is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Character device 0:0.
    Device,
    /// A `.wh.NAME` file beside the name.
    Dot,
    /// An empty file with an `overlay.whiteout` xattr, in a directory that says there are such.
    Xattr,
}

/// The dialect this mount writes.
#[derive(Clone, Copy, Debug)]
pub struct Dialect {
    /// Where xattrs go.
    pub space: Space,
    /// How deletions are written.
    pub style: Style,
}

/// The overlay's marks on one object.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// The directory hides everything below it.
    pub opaque: bool,
    /// The directory may hold xattr whiteouts.
    pub xattr_whiteouts: bool,
    /// The directory may hold objects with an origin.
    pub impure: bool,
    /// Where the object's lower part really is.
    pub redirect: Option<OsString>,
    /// The file has no data of its own.
    pub metacopy: bool,
    /// A metacopy mark this mount must not believe.
    pub foreign_metacopy: bool,
    /// The lower object this one was copied from.
    pub origin: Option<Origin>,
    /// The count record of a hard-link group.
    pub nlink: Option<Vec<u8>>,
    /// Links of the group's lower file, for a count relative to them.
    pub lower_nlink: Option<Vec<u8>>,
    /// The file is an xattr whiteout.
    pub whiteout: bool,
}

/// The key by which an opaque upper directory says that whiteouts are left in it. `overlay.opaque` holds
/// one value, and `y` in the place of `x` would turn them into files.
const LEFT: &str = "xwhiteouts";

/// Whether a stat is that of a device whiteout.
pub fn is_device(stat: &Stat) -> bool {
    stat.kind() == sys::S_IFCHR && stat.rdev == 0
}

/// `.wh.NAME`, or `None` when that is longer than a name may be.
pub fn dot_name(name: &OsStr) -> Option<OsString> {
    let mut dot = PREFIX.to_vec();
    dot.extend_from_slice(name.as_bytes());
    (dot.len() <= 255).then(|| OsString::from_vec(dot))
}

/// Whether a name has the whiteout prefix and so may not be a user's.
pub fn is_dot(name: &OsStr) -> bool {
    name.as_bytes().starts_with(PREFIX)
}

/// The name a `.wh.NAME` entry deletes; `None` for other names and for `.wh..wh.` specials.
pub fn dot_target(name: &OsStr) -> Option<&OsStr> {
    let rest = name.as_bytes().strip_prefix(PREFIX)?;
    (!rest.starts_with(PREFIX) && !rest.is_empty()).then(|| OsStr::from_bytes(rest))
}

/// Reads the marks of an object. `space` is the mount's own: redirects and metacopies are believed
/// there only, since anybody may set `user.*` on a file of his own and so would choose what a
/// privileged mount shows him.
pub fn marks(dir: impl AsFd, name: &OsStr, space: Space) -> io::Result<Marks> {
    let mut marks = Marks::default();
    for key in sys::list_xattr(dir.as_fd(), name)? {
        let Some((own, rest)) = split(&key, space) else {
            continue;
        };
        if rest == b"overlay" || rest.starts_with(b"overlay.") {
            continue;
        }
        let key = OsStr::from_bytes(&key);
        let Some(value) = sys::get_xattr(dir.as_fd(), name, key)? else {
            continue;
        };
        read_mark(&mut marks, own, rest, value);
    }
    Ok(marks)
}

/// Splits an xattr name of the overlay into "is it in our own space" and the key.
fn split(key: &[u8], space: Space) -> Option<(bool, &[u8])> {
    if let Some(rest) = key.strip_prefix(b"trusted.overlay.") {
        return Some((space == Space::Trusted, rest));
    }
    if let Some(rest) = key.strip_prefix(b"user.overlay.") {
        return Some((space != Space::Trusted, rest));
    }
    let rest =
        key.strip_prefix(b"user.fuseoverlayfs.").or(key.strip_prefix(b"trusted.fuseoverlayfs."))?;
    (rest == b"opaque").then_some((false, rest))
}

fn read_mark(marks: &mut Marks, own: bool, key: &[u8], value: Vec<u8>) {
    match key {
        b"opaque" if value == b"y" => marks.opaque = true,
        b"opaque" if value == b"x" => marks.xattr_whiteouts = true,
        b"xwhiteouts" if own => marks.xattr_whiteouts = true,
        b"whiteout" => marks.whiteout = true,
        b"impure" if own => marks.impure = true,
        b"redirect" if own => marks.redirect = Some(OsString::from_vec(value)),
        b"metacopy" if own => marks.metacopy = true,
        b"metacopy" => marks.foreign_metacopy = true,
        b"origin" if own => marks.origin = Origin::decode(&value),
        b"nlink" if own => marks.nlink = Some(value),
        b"nlink.lower" if own => marks.lower_nlink = Some(value),
        _ => {}
    }
}

/// Whether a directory holds the opaque file, or the opaque device.
pub fn has_opaque_file(dir: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(sys::has(dir, OsStr::new(OPAQUE_FILE))?.is_some() || has_opaque_device(dir)?)
}

fn has_opaque_device(dir: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(sys::has(dir, OsStr::new(OPAQUE_DEVICE))?.is_some_and(|stat| is_device(&stat)))
}

/// Whether `.wh.NAME` deletes `name` in this directory.
pub fn has_dot(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
    match dot_name(name) {
        None => Ok(false),
        Some(dot) => match sys::has(dir, &dot) {
            Err(e) if sys::errno(&e) == sys::ENAMETOOLONG => Ok(false),
            found => Ok(found?.is_some()),
        },
    }
}

/// Whether an object found in a directory is a whiteout: by its device number, or by its xattr
/// where the directory says such may be.
pub fn is_whiteout(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    stat: &Stat,
    xattr_whiteouts: bool,
) -> io::Result<bool> {
    if is_device(stat) {
        return Ok(true);
    }
    if !xattr_whiteouts || stat.kind() != sys::S_IFREG || stat.size != 0 {
        return Ok(false);
    }
    Ok(marks(dir, name, Space::User)?.whiteout)
}

impl Dialect {
    /// Makes the directory opaque.
    pub fn set_opaque(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        if self.space != Space::None {
            let key = self.space.key("opaque");
            // An earlier mount may have written xattr whiteouts, whatever this one writes.
            if sys::get_xattr(dir, name, &key)?.is_some_and(|value| value == b"x") {
                lend::set_xattr(dir, name, &self.space.key(LEFT), b"y")?;
            }
            return lend::set_xattr(dir, name, &key, b"y");
        }
        let inside = sys::open(dir, name, sys::O_PATH | sys::O_DIRECTORY)?;
        let make = || sys::mknod(&inside, OsStr::new(OPAQUE_FILE), sys::S_IFREG | 0o600, 0);
        match lend::lend(&[(dir, name)], make) {
            Err(e) if sys::errno(&e) == sys::EEXIST => Ok(()),
            other => other,
        }
    }

    /// Says that a directory may hold xattr whiteouts; before the first one gets there.
    pub fn allow_xattr_whiteouts(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
        let (top, key) = (OsStr::new(""), self.space.key("opaque"));
        match sys::get_xattr(dir, top, &key)?.as_deref() {
            Some(b"x") => Ok(()),
            Some(_) => lend::set_xattr(dir, top, &self.space.key(LEFT), b"y"),
            None => lend::set_xattr(dir, top, &key, b"x"),
        }
    }

    /// Makes a whiteout that is an object of its own, to be moved to the name it deletes.
    pub fn make(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        if self.style != Style::Xattr {
            return sys::mknod(dir, name, sys::S_IFCHR, 0);
        }
        sys::mknod(dir, name, sys::S_IFREG | 0o600, 0)?;
        lend::set_xattr(dir, name, &self.space.key("whiteout"), b"y")
    }

    /// Deletes a name that nothing in the upper directory has, where one call does that.
    pub fn write(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        match (self.style, dot_name(name)) {
            (Style::Dot, Some(dot)) => match sys::mknod(dir, &dot, sys::S_IFREG | 0o600, 0) {
                Err(e) if sys::errno(&e) == sys::EEXIST => Ok(()),
                other => other,
            },
            (Style::Dot, None) => Err(io::Error::from_raw_os_error(sys::ENAMETOOLONG)),
            (Style::Device | Style::Xattr, _) => self.make(dir, name),
        }
    }

    /// Removes the `.wh.NAME` whiteout of a name that is there again. One that stays harms nobody:
    /// the name beside it counts.
    pub fn drop_dot(&self, dir: BorrowedFd<'_>, name: &OsStr) {
        if let Err(e) = self.clear_dot(dir, name) {
            log::debug!("whiteout of {name:?} stays: {e}");
        }
    }

    /// Removes the `.wh.NAME` whiteout of a name if there is one.
    pub fn clear_dot(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let Some(dot) = dot_name(name) else {
            return Ok(());
        };
        if dot == OPAQUE_DEVICE && has_opaque_device(dir)? {
            return Ok(());
        }
        match sys::unlink(dir, &dot) {
            Err(e) if sys::errno(&e) != sys::ENOENT => Err(e),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_names_go_both_ways() {
        for (entry, target) in [
            (".wh.a", Some("a")),
            (".wh..wh..opq", None),
            (".wh.", None),
            ("a", None),
            (".wh", None),
            (".wh..hidden", Some(".hidden")),
        ] {
            assert_eq!(dot_target(OsStr::new(entry)), target.map(OsStr::new), "{entry}");
        }
        assert_eq!(dot_name(OsStr::new("a")), Some(OsString::from(".wh.a")));
        assert_eq!(dot_name(OsStr::new(&"x".repeat(252))), None);
    }

    #[test]
    fn redirects_are_believed_in_the_own_space_only() {
        let key: &[u8] = b"user.overlay.redirect";
        assert_eq!(split(key, Space::User), Some((true, &b"redirect"[..])));
        assert_eq!(split(key, Space::Trusted), Some((false, &b"redirect"[..])));
        let mut marks = Marks::default();
        read_mark(&mut marks, false, b"redirect", b"/etc".to_vec());
        assert!(marks.redirect.is_none());
        read_mark(&mut marks, false, b"opaque", b"y".to_vec());
        assert!(marks.opaque);
    }
}
