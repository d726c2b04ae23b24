//! Who owns what: ids on disk, ids as presented, and the record that overrides both.
//!
//! Order on the way out: the override record replaces what stat said (its ids are ids on
//! disk), then the maps, then squashing; the way in is the reverse. An id with no
//! counterpart shows as the overflow id and cannot be stored, except that a new object of such a
//! caller is stored with the overflow id.

mod record;

use std::fmt;

use crate::acl::{self, AclError};
use crate::options::{IdMap, Options, XattrPermissions};

pub(crate) use record::is_record;
pub use record::{
    OVERRIDE_NAMES, Override, OverrideKind, override_name, shown_xattr, stored_xattr,
};

/// Shown for an id that has no counterpart (`/proc/sys/kernel/overflowuid`, user_namespaces(7)).
pub const OVERFLOW_ID: u32 = 65534;

/// Who makes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// File system user id.
    pub uid: u32,
    /// File system group id.
    pub gid: u32,
    /// Bits that new files do not get.
    pub umask: u32,
}

/// The translation between ids on disk and ids as presented.
#[derive(Clone, Debug)]
pub struct Identity {
    uid: Side,
    gid: Side,
    xattr_permissions: XattrPermissions,
}

/// An id as presented that has no id on disk; EINVAL to a caller, as in a user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmapped(pub u32);

#[derive(Clone, Debug)]
struct Side {
    map: IdMap,
    squash: Option<u32>,
    unmapped: Option<u32>,
    trivial: bool,
}

impl Side {
    fn new(map: &IdMap, squash: Option<u32>, unmapped: Option<u32>) -> Self {
        let trivial = squash.is_none() && unmapped.is_none() && map.is_identity();
        Side { map: map.clone(), squash, unmapped, trivial }
    }

    fn present(&self, id: u32) -> u32 {
        if self.trivial {
            return id;
        }
        match self.unmapped.filter(|_| id == OVERFLOW_ID && self.squash.is_none()) {
            Some(unmapped) => unmapped,
            None => self.squash.or_else(|| self.map.to_presented(id)).unwrap_or(OVERFLOW_ID),
        }
    }

    fn store(&self, id: u32) -> Result<u32, Unmapped> {
        if self.trivial {
            return Ok(id);
        }
        match self.squashed() {
            Some(disk) => Ok(disk),
            None => self.map.to_disk(id).ok_or(Unmapped(id)),
        }
    }

    /// Id on disk of the copy of an object with this id on disk.
    fn copied(&self, id: u32) -> u32 {
        let unmapped = self.unmapped.filter(|_| id == OVERFLOW_ID);
        let unmapped = unmapped.map(|shown| self.map.to_disk(shown).unwrap_or(shown));
        self.squashed().or(unmapped).unwrap_or(id)
    }

    /// The one id that is stored when everything is squashed.
    fn squashed(&self) -> Option<u32> {
        self.squash.map(|squash| self.map.to_disk(squash).unwrap_or(squash))
    }
}

impl Identity {
    /// The translation the options ask for.
    pub fn new(options: &Options) -> Self {
        Identity {
            uid: Side::new(&options.uid_map, options.squash_uid, options.squash_unmapped),
            gid: Side::new(&options.gid_map, options.squash_gid, options.squash_unmapped),
            xattr_permissions: options.xattr_permissions,
        }
    }

    /// Owner and mode as presented. Squashing wins over the maps (fuse-overlayfs). The mode
    /// is shown as it is: set-id bits of an id without a counterpart stay visible, as on an
    /// idmapped mount of the kernel.
    pub fn present(&self, uid: u32, gid: u32, mode: u32) -> (u32, u32, u32) {
        (self.uid.present(uid), self.gid.present(gid), mode)
    }

    /// Owner on disk of a new object of this caller, who may be outside the maps: engines prepare a
    /// container's root as the host's root, and change the owner afterwards (podman --uidmap).
    pub fn store_new(&self, uid: u32, gid: u32) -> (u32, u32) {
        (self.uid.store(uid).unwrap_or(OVERFLOW_ID), self.gid.store(gid).unwrap_or(OVERFLOW_ID))
    }

    /// User on disk for a user as presented. With squashing the one id is stored, whatever was
    /// asked for.
    pub fn store_uid(&self, uid: u32) -> Result<u32, Unmapped> {
        self.uid.store(uid)
    }

    /// Group on disk for a group as presented.
    pub fn store_gid(&self, gid: u32) -> Result<u32, Unmapped> {
        self.gid.store(gid)
    }

    /// Owner on disk of the upper twin of an object with this owner on disk: the same one,
    /// except that with squashing the one id is stored.
    pub fn copied_owner(&self, uid: u32, gid: u32) -> (u32, u32) {
        (self.uid.copied(uid), self.gid.copied(gid))
    }

    /// An ACL as presented, for one on disk.
    pub fn present_acl(&self, value: &[u8]) -> Result<Vec<u8>, AclError> {
        if self.uid.trivial && self.gid.trivial {
            return Ok(value.to_vec());
        }
        acl::map_ids(value, |id| Some(self.uid.present(id)), |id| Some(self.gid.present(id)))
    }

    /// An ACL on disk, for one as presented.
    pub fn store_acl(&self, value: &[u8]) -> Result<Vec<u8>, AclError> {
        if self.uid.trivial && self.gid.trivial {
            return Ok(value.to_vec());
        }
        acl::map_ids(value, |id| self.uid.store(id).ok(), |id| self.gid.store(id).ok())
    }

    /// Whether a refused change of owner counts as done: squashing shows one owner anyway.
    pub fn ignores_chown_errors(&self) -> bool {
        self.uid.squash.is_some() || self.gid.squash.is_some()
    }

    /// Whether every id is presented and stored as it is and owners live in the inode.
    pub fn is_trivial(&self) -> bool {
        self.uid.trivial && self.gid.trivial && !self.uses_override()
    }

    /// Whether owner and mode are kept in the override record of the upper.
    pub fn uses_override(&self) -> bool {
        self.xattr_permissions != XattrPermissions::Off
    }

    /// How owner and mode are kept.
    pub fn xattr_permissions(&self) -> XattrPermissions {
        self.xattr_permissions
    }
}

impl fmt::Display for Unmapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id {} has no id on disk", self.0)
    }
}

impl std::error::Error for Unmapped {}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(list: &str) -> Identity {
        Identity::new(&Options::parse(list).unwrap())
    }

    #[test]
    fn owners_are_mapped_and_squashed() {
        const MAPS: &str = "uidmapping=:0:1000:1:1:100000:65536,gidmapping=0:5:10";
        let squashed = format!("{MAPS},squash_to_root,squash_to_gid=7");
        for (list, disk, presented) in [
            ("", (3, 4), (3, 4)),
            (MAPS, (0, 0), (1000, 5)),
            (MAPS, (2, 9), (100_001, 14)),
            (MAPS, (70_000, 10), (OVERFLOW_ID, OVERFLOW_ID)),
            ("squash_to_root", (3, 4), (0, 0)),
            ("squash_to_root,squash_to_uid=9", (3, 4), (9, 0)),
            ("squash_to_gid=9", (3, 4), (3, 9)),
            ("squash_unmapped=0", (OVERFLOW_ID, 4), (0, 4)),
            ("squash_unmapped=0,squash_to_uid=9", (OVERFLOW_ID, OVERFLOW_ID), (9, 0)),
            (squashed.as_str(), (70_000, 10), (0, 7)),
        ] {
            let (uid, gid, mode) = identity(list).present(disk.0, disk.1, 0o104_755);
            assert_eq!((uid, gid), presented, "{list} {disk:?}");
            assert_eq!(mode, 0o104_755);
        }
    }

    #[test]
    fn owners_go_back_to_disk_or_are_refused() {
        const MAPS: &str = "uidmapping=0:1000:1:1:100000:65536,gidmapping=0:5:10";
        for (list, presented, disk) in [
            ("", (3, 4), Ok((3, 4))),
            (MAPS, (1000, 5), Ok((0, 0))),
            (MAPS, (OVERFLOW_ID, 5), Err(Unmapped(OVERFLOW_ID))),
            (MAPS, (1000, 4), Err(Unmapped(4))),
            ("squash_to_root", (3, 4), Ok((0, 0))),
            ("squash_to_uid=9", (3, 4), Ok((9, 4))),
            ("squash_to_uid=9,uidmapping=50:9:1", (3, 4), Ok((50, 4))),
            ("squash_to_uid=9,uidmapping=50:8:1", (3, 4), Ok((9, 4))),
        ] {
            let identity = identity(list);
            let stored = identity.store_uid(presented.0).and_then(|uid| {
                let gid = identity.store_gid(presented.1)?;
                Ok((uid, gid))
            });
            assert_eq!(stored, disk, "{list}");
            let new = identity.store_new(presented.0, presented.1);
            assert!(stored.is_err() || stored == Ok(new), "{list}");
        }
        assert_eq!(Unmapped(4).to_string(), "id 4 has no id on disk");
    }

    #[test]
    fn a_copy_keeps_its_owner_on_disk_unless_squashed() {
        for (list, copied) in [
            ("", (3, 4)),
            ("uidmapping=0:1000:1", (3, 4)),
            ("squash_to_uid=9", (9, 4)),
            ("squash_unmapped=7", (3, 4)),
            ("squash_to_root", (0, 0)),
        ] {
            assert_eq!(identity(list).copied_owner(3, 4), copied, "{list}");
        }
    }

    #[test]
    fn the_fast_path_is_taken_when_nothing_is_translated() {
        for (list, trivial, ignores) in [
            ("", true, false),
            ("uidmapping=0:0:4294967295", true, false),
            ("uidmapping=0:0:65536", false, false),
            ("xattr_permissions=2", false, false),
            ("squash_to_gid=0", false, true),
        ] {
            let identity = identity(list);
            assert_eq!(identity.is_trivial(), trivial, "{list}");
            assert_eq!(identity.ignores_chown_errors(), ignores, "{list}");
        }
    }
}
