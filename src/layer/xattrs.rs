//! Which extended attributes of an object in an upper directory belong to the layer.
//!
//! The user's do: `user.*`, file capabilities and ACLs, and names that an overlay escaped for an
//! overlay inside it. The overlay's own never do; the override record becomes owner, mode and kind.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use plyfs_fuse::options::XattrPermissions;
use plyfs_fuse::owner::{OVERRIDE_NAMES, Override, override_name, shown_xattr};

use super::marks::{Belief, Space};
use crate::sys::tree;

const SPACES: [(&[u8], Space); 2] =
    [(b"trusted.overlay.", Space::Trusted), (b"user.overlay.", Space::User)];
const FOREIGN: [&[u8]; 3] =
    [b"trusted.fuseoverlayfs.", b"user.fuseoverlayfs.", b"security.fuseoverlayfs."];
const CAPABILITY: &[u8] = b"security.capability";

/// What the attributes of an object say.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    /// Owner, mode and kind that replace those of the object.
    pub(super) record: Option<Override>,
    /// There is one that is not believed.
    pub(super) unbelieved: bool,
    /// The user's attributes, sorted by name.
    pub(super) user: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads the attributes of `name` in `dir`, which has those of these names.
pub(super) fn read(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    names: &[OsString],
    belief: Belief,
) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    let records = OVERRIDE_NAMES.iter().map(OsStr::new);
    for key in records.filter(|key| names.iter().any(|name| name == key)) {
        // Only privilege sets the others.
        if !belief.records && key.as_bytes().starts_with(b"user.") {
            attributes.unbelieved = true;
            continue;
        }
        if let Some(value) = tree::xattr(dir, name, key)? {
            attributes.record = attributes.record.or_else(|| Override::parse(&value));
        }
    }
    // The record under this name says that the security namespace is kept beside it.
    let beside = override_name(XattrPermissions::User).map(OsStr::new);
    let recorded = names.iter().any(|name| Some(name.as_os_str()) == beside);
    let mode = match belief.records && recorded {
        true => XattrPermissions::User,
        false => XattrPermissions::Off,
    };
    for key in names {
        let Some(shown) = shown(key, mode, belief) else { continue };
        let Some(value) = tree::xattr(dir, name, key)? else { continue };
        // Where they are kept beside a record there is one user only.
        let value = match shown == CAPABILITY {
            true => without_root_id(value, key.as_bytes() != CAPABILITY),
            false => Some(value),
        };
        let Some(value) = value else {
            log::warn!(
                "{}: capabilities of another user namespace, left out",
                Path::new(name).display()
            );
            continue;
        };
        attributes.user.push((shown, value));
    }
    attributes.user.sort();
    // The name of an overlay's mark can be there itself, and escaped.
    attributes.user.dedup_by(|a, b| a.0 == b.0);
    Ok(attributes)
}

/// The name in the layer; `None` for what does not belong there.
fn shown(key: &OsStr, mode: XattrPermissions, belief: Belief) -> Option<Vec<u8>> {
    let bytes = key.as_bytes();
    for (prefix, space) in SPACES {
        if let Some(rest) = bytes.strip_prefix(prefix) {
            return match rest.strip_prefix(b"overlay.") {
                Some(rest) => Some([prefix, rest].concat()),
                // That of an overlay inside, which the one that shows the layer leaves alone.
                None => (!belief.reads(space)).then(|| bytes.to_vec()),
            };
        }
    }
    if FOREIGN.iter().any(|prefix| bytes.starts_with(prefix)) {
        return None;
    }
    let name = shown_xattr(mode, key)?.into_owned().into_vec();
    let kept =
        name.starts_with(b"user.") || name == CAPABILITY || name.starts_with(b"system.posix_acl_");
    kept.then_some(name)
}

/// Capabilities given in a user namespace name its root (revision 3, linux/capability.h), but for
/// who reads them as that root: the kernel leaves the name out then (revision 2). So those that
/// still have one were given by another root, which whoever makes a namespace is, and are worth
/// nothing beside it: `None`, unless that root is known.
fn without_root_id(value: Vec<u8>, known: bool) -> Option<Vec<u8>> {
    match value.as_slice() {
        [flags, a, b, 3, rest @ ..] if value.len() == 24 => {
            let (sets, root) = rest.split_at(16);
            let plain = [&[*flags, *a, *b, 2], sets].concat();
            (known || root == [0; 4]).then_some(plain)
        }
        _ => Some(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_users_names_are_shown() {
        let off = XattrPermissions::Off;
        let user = XattrPermissions::User;
        for (key, mode, name) in [
            ("user.a", off, Some("user.a")),
            ("user.overlay.opaque", off, None),
            ("trusted.overlay.origin", off, None),
            ("trusted.overlay.overlay.opaque", off, Some("trusted.overlay.opaque")),
            ("user.overlay.overlay.overlay.x", off, Some("user.overlay.overlay.x")),
            ("trusted.mine", off, None),
            ("security.selinux", off, None),
            ("security.capability", off, Some("security.capability")),
            ("security.capability", user, None),
            ("user.containers.override_security.capability", user, Some("security.capability")),
            ("user.containers.override_stat", user, None),
            ("user.fuseoverlayfs.origin", off, None),
            ("system.posix_acl_default", off, Some("system.posix_acl_default")),
        ] {
            let shown = shown(OsStr::new(key), mode, Belief::ALL)
                .map(|name| String::from_utf8(name).unwrap());
            assert_eq!(shown.as_deref(), name, "{key}");
        }
    }

    #[test]
    fn marks_that_the_mount_leaves_alone_are_the_users() {
        let off = XattrPermissions::Off;
        for (key, belief, kept) in [
            ("user.overlay.opaque", Belief::kernel(false), true),
            ("user.overlay.opaque", Belief::kernel(true), false),
            ("trusted.overlay.opaque", Belief::kernel(false), false),
            ("user.overlay.opaque", Belief::fuse(false), false),
            ("user.overlay.opaque", Belief::ALL.whole_tree(), true),
            ("trusted.overlay.opaque", Belief::ALL.whole_tree(), true),
        ] {
            let name = kept.then(|| key.as_bytes().to_vec());
            assert_eq!(shown(OsStr::new(key), off, belief), name, "{key} {belief:?}");
        }
    }

    #[test]
    fn capabilities_of_an_unknown_root_are_nobodys() {
        let mut third = vec![1, 0, 0, 3];
        third.extend(4..24);
        assert_eq!(without_root_id(third.clone(), false), None);
        let second = without_root_id(third.clone(), true).unwrap();
        assert_eq!((second.len(), &second[..4]), (20, &[1, 0, 0, 2][..]));
        assert_eq!(second[4..], third[4..20]);
        assert_eq!(without_root_id(second.clone(), false).as_ref(), Some(&second));
        third[20..].fill(0);
        assert_eq!(without_root_id(third, false), Some(second));
    }
}
