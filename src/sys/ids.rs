//! Other ids for what is copied: those of inodes, and those that are named in attributes.

use std::ffi::OsStr;
use std::io;

use plyfs_fuse::acl;
use plyfs_fuse::options::IdMap;
use plyfs_fuse::owner::{OVERRIDE_NAMES, Override};

/// `VFS_CAP_REVISION_3` and its mask (linux/capability.h): the root of a user namespace follows as the last four bytes.
const CAPABILITY_3: u8 = 3;
const CAPABILITY_LENGTH: usize = 24;

/// Which user and which group becomes which. An empty map leaves all as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// Of users.
    pub users: IdMap,
    /// Of groups.
    pub groups: IdMap,
}

impl Ids {
    /// Whether all stay.
    pub fn is_none(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }

    /// The owner of a copy. One that the maps leave out is an error.
    pub(super) fn owner(&self, uid: u32, gid: u32) -> io::Result<(u32, u32)> {
        let none = |what: &str, id: u32| {
            let why = format!("its {what} {id} is in no range of the map of {what}s");
            io::Error::other(why)
        };
        let user = self.users.to_presented(uid).ok_or_else(|| none("user", uid))?;
        let group = self.groups.to_presented(gid).ok_or_else(|| none("group", gid))?;
        Ok((user, group))
    }

    /// The value of an attribute of a copy.
    pub(super) fn xattr(&self, key: &OsStr, value: Vec<u8>) -> io::Result<Vec<u8>> {
        let (user, group) = (|id| self.users.to_presented(id), |id| self.groups.to_presented(id));
        let key = key.to_str().unwrap_or_default();
        if key.starts_with("system.posix_acl_") {
            let mapped = acl::map_ids(&value, user, group);
            return mapped.map_err(|error| io::Error::other(format!("its ACL: {error}")));
        }
        if OVERRIDE_NAMES.contains(&key) {
            let Some(mut record) = Override::parse(&value) else { return Ok(value) };
            (record.uid, record.gid) = self.owner(record.uid, record.gid)?;
            return Ok(record.to_string().into_bytes());
        }
        if key == "security.capability" {
            return self.capability(value);
        }
        Ok(value)
    }

    /// Capabilities that are for one root alone are for whoever that becomes.
    fn capability(&self, mut value: Vec<u8>) -> io::Result<Vec<u8>> {
        if value.len() == CAPABILITY_LENGTH && value[3] == CAPABILITY_3 {
            let root = value.split_off(CAPABILITY_LENGTH - 4);
            let root = u32::from_le_bytes(root.try_into().unwrap_or_default());
            let mapped = self.users.to_presented(root).unwrap_or(root);
            value.extend_from_slice(&mapped.to_le_bytes());
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> Ids {
        let map = |text| IdMap::parse(text).unwrap();
        Ids { users: map("0:1000:10:70:5:1"), groups: map("0:2000:10") }
    }

    #[test]
    fn who_is_not_in_the_map_is_named() {
        assert_eq!(ids().owner(3, 4).unwrap(), (1003, 2004));
        assert_eq!(ids().owner(70, 0).unwrap(), (5, 2000));
        for (uid, gid, why) in [
            (10, 0, "its user 10 is in no range of the map of users"),
            (0, 70, "its group 70 is in no range of the map of groups"),
        ] {
            assert_eq!(ids().owner(uid, gid).unwrap_err().to_string(), why);
        }
        assert!(Ids::default().is_none() && !ids().is_none());
    }

    #[test]
    fn ids_in_attributes_become_others() {
        let become_ = |key: &str, value: &[u8]| {
            ids().xattr(OsStr::new(key), value.to_vec()).map_err(|error| error.to_string())
        };
        let entry = |tag: u16, id: u32| {
            [&tag.to_le_bytes()[..], &6_u16.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        let acl = |user: u32, group: u32| {
            let entries = [
                (1, u32::MAX),
                (2, user),
                (4, u32::MAX),
                (8, group),
                (16, u32::MAX),
                (32, u32::MAX),
            ];
            let entries = entries.map(|(tag, id)| entry(tag, id));
            [2_u32.to_le_bytes().to_vec(), entries.concat()].concat()
        };
        let key = "system.posix_acl_access";
        assert_eq!(become_(key, &acl(7, 8)).unwrap(), acl(1007, 2008));
        assert!(become_(key, &acl(11, 8)).unwrap_err().contains("without a counterpart"));
        let record = "user.containers.override_stat";
        assert_eq!(become_(record, b"1:2:0644:file").unwrap(), b"1001:2002:0644:file");
        let capability = |version: u8, root: u32| {
            let mut value = vec![0; 20];
            value[3] = version;
            [value, root.to_le_bytes().to_vec()].concat()
        };
        let key = "security.capability";
        assert_eq!(become_(key, &capability(3, 4)).unwrap(), capability(3, 1004));
        assert_eq!(become_(key, &capability(2, 4)).unwrap(), capability(2, 4));
        assert_eq!(become_("user.any", b"0:0:0").unwrap(), b"0:0:0");
    }
}
