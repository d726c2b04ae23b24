//! Which extended attributes of an object in an upper directory belong to the layer.
//!
//! The user's do: `user.*`, file capabilities and ACLs, and names that an overlay escaped for an
//! overlay inside it. The overlay's own never do; the override record becomes owner, mode and kind.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use plyfs_fuse::options::XattrPermissions;
use plyfs_fuse::owner::{OVERRIDE_NAMES, Override, override_name, shown_xattr};

use crate::sys::tree;

const SPACES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
const FOREIGN: [&[u8]; 3] =
    [b"trusted.fuseoverlayfs.", b"user.fuseoverlayfs.", b"security.fuseoverlayfs."];
const CAPABILITY: &[u8] = b"security.capability";

/// What the attributes of an object say.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    /// Owner, mode and kind that replace those of the object.
    pub(super) record: Option<Override>,
    /// The user's attributes, sorted by name.
    pub(super) user: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads the attributes of `name` in `dir`, which has those of these names.
pub(super) fn read(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    names: &[OsString],
) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    for key in
        OVERRIDE_NAMES.iter().map(OsStr::new).filter(|key| names.iter().any(|name| name == key))
    {
        if let Some(value) = tree::xattr(dir, name, key)? {
            attributes.record = attributes.record.or_else(|| Override::parse(&value));
        }
    }
    // The record under this name says that the security namespace is kept beside it.
    let beside = override_name(XattrPermissions::User).map(OsStr::new);
    let mode = match names.iter().any(|name| Some(name.as_os_str()) == beside) {
        true => XattrPermissions::User,
        false => XattrPermissions::Off,
    };
    for key in names {
        let Some(shown) = shown(key, mode) else { continue };
        let Some(value) = tree::xattr(dir, name, key)? else { continue };
        let value = if shown == CAPABILITY { without_root_id(value) } else { value };
        attributes.user.push((shown, value));
    }
    attributes.user.sort();
    Ok(attributes)
}

/// The name in the layer; `None` for what does not belong there.
fn shown(key: &OsStr, mode: XattrPermissions) -> Option<Vec<u8>> {
    let bytes = key.as_bytes();
    for space in SPACES {
        if let Some(rest) = bytes.strip_prefix(space) {
            let rest = rest.strip_prefix(b"overlay.")?;
            return Some([space, rest].concat());
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

/// Capabilities given in a user namespace name its root, which means nothing in another place:
/// revision 3 becomes revision 2 (linux/capability.h).
fn without_root_id(value: Vec<u8>) -> Vec<u8> {
    match value.as_slice() {
        [flags, a, b, 3, rest @ ..] if value.len() == 24 => {
            let mut plain = vec![*flags, *a, *b, 2];
            plain.extend_from_slice(&rest[..16]);
            plain
        }
        _ => value,
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
            let shown = shown(OsStr::new(key), mode).map(|name| String::from_utf8(name).unwrap());
            assert_eq!(shown.as_deref(), name, "{key}");
        }
    }

    #[test]
    fn capabilities_lose_the_root_of_their_namespace() {
        let mut third = vec![1, 0, 0, 3];
        third.extend(4..24);
        let second = without_root_id(third.clone());
        assert_eq!((second.len(), &second[..4]), (20, &[1, 0, 0, 2][..]));
        assert_eq!(second[4..], third[4..20]);
        assert_eq!(without_root_id(second.clone()), second);
    }
}
