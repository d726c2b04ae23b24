//! POSIX ACLs in their extended attribute form, and what a new file inherits.
//!
//! Form (linux/posix_acl_xattr.h): 32-bit version 2, then entries of 16-bit tag, 16-bit
//! permissions and 32-bit id, all little endian. An ACL that is accepted here has the
//! entries acl(5) asks for, in the kernel's order.

use std::fmt;

/// Attribute of the ACL that decides access (linux/xattr.h).
pub const ACCESS: &str = "system.posix_acl_access";
/// Attribute of a directory's ACL for what is made in it.
pub const DEFAULT: &str = "system.posix_acl_default";

/// `POSIX_ACL_XATTR_VERSION`
const VERSION: u32 = 2;
/// Bytes of one entry.
const ENTRY: usize = 8;
/// The id of entries that name nobody, and of nobody.
const NO_ID: u32 = u32::MAX;

/// What a new file gets from the default ACL of its directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inherited {
    /// The mode the file is made with; the umask plays no part.
    pub mode: u32,
    /// Its access ACL; `None` when the mode says it all.
    pub access: Option<Vec<u8>>,
    /// Its default ACL: a directory takes the parent's unchanged.
    pub default: Option<Vec<u8>>,
}

/// The mode an access ACL stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Equivalent {
    /// Nine permission bits; those of the group are the mask when there is one.
    pub bits: u32,
    /// Whether the bits say all the ACL says, so that it need not be stored.
    pub minimal: bool,
}

/// Not an ACL; EINVAL to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AclError(&'static str);

/// What a file made with `mode` inherits from the directory's default ACL (acl(5), object
/// creation and default ACLs; POSIX 1003.1e draft 17, 23.1.5.2). The access ACL is the
/// default one with owner, mask (else group) and other reduced to what `mode` allows.
/// Symbolic links inherit nothing: the caller does not ask.
pub fn inherit(default: &[u8], mode: u32, is_dir: bool) -> Result<Inherited, AclError> {
    let mut entries = decode(default)?;
    let has_mask = entries.iter().any(|entry| entry.tag == Tag::Mask);
    let mut bits = mode & 0o777;
    for entry in &mut entries {
        let shift = match entry.tag {
            Tag::UserObj => 6,
            Tag::GroupObj if !has_mask => 3,
            Tag::Mask => 3,
            Tag::Other => 0,
            Tag::GroupObj | Tag::User | Tag::Group => continue,
        };
        let asked = (mode >> shift) & 7;
        entry.permissions &= asked;
        bits = (bits & !(7 << shift)) | (entry.permissions << shift);
    }
    let extended = entries.iter().any(Entry::is_extended);
    Ok(Inherited {
        mode: (mode & !0o777) | bits,
        access: extended.then(|| encode(&entries)),
        default: is_dir.then(|| default.to_vec()),
    })
}

/// The mode an access ACL stands for (acl(5), correspondence between ACL entries and file
/// permission bits).
pub fn equivalent_mode(access: &[u8]) -> Result<Equivalent, AclError> {
    let entries = decode(access)?;
    let find = |tag| entries.iter().find(|entry| entry.tag == tag).map(|entry| entry.permissions);
    let owner = find(Tag::UserObj).unwrap_or(0);
    let group = find(Tag::Mask).or_else(|| find(Tag::GroupObj)).unwrap_or(0);
    let other = find(Tag::Other).unwrap_or(0);
    let minimal = !entries.iter().any(Entry::is_extended);
    Ok(Equivalent { bits: owner << 6 | group << 3 | other, minimal })
}

/// The ACL with other ids; an id for which there is none is refused. Entries that come to name the
/// same id become one, which allows what all of them do.
pub fn map_ids(
    value: &[u8],
    user: impl Fn(u32) -> Option<u32>,
    group: impl Fn(u32) -> Option<u32>,
) -> Result<Vec<u8>, AclError> {
    let mut mapped: Vec<Entry> = Vec::new();
    for mut entry in decode(value)? {
        let id = match entry.tag {
            Tag::User => user(entry.id),
            Tag::Group => group(entry.id),
            _ => Some(NO_ID),
        };
        entry.id = id.ok_or(AclError("entry of an id without a counterpart"))?;
        match mapped.iter_mut().find(|known| (known.tag, known.id) == (entry.tag, entry.id)) {
            Some(known) => known.permissions &= entry.permissions,
            None => mapped.push(entry),
        }
    }
    Ok(encode(&mapped))
}

/// The access ACL that stands for this mode: what chmod(2) makes of it.
pub fn with_mode(access: &[u8], mode: u32) -> Result<Vec<u8>, AclError> {
    let mut entries = decode(access)?;
    let has_mask = entries.iter().any(|entry| entry.tag == Tag::Mask);
    for entry in &mut entries {
        let shift = match entry.tag {
            Tag::UserObj => 6,
            Tag::GroupObj if !has_mask => 3,
            Tag::Mask => 3,
            Tag::Other => 0,
            Tag::GroupObj | Tag::User | Tag::Group => continue,
        };
        entry.permissions = (mode >> shift) & 7;
    }
    Ok(encode(&entries))
}

/// Tags of linux/posix_acl.h; the order of the numbers is the order of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tag {
    UserObj = 0x01,
    User = 0x02,
    GroupObj = 0x04,
    Group = 0x08,
    Mask = 0x10,
    Other = 0x20,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    tag: Tag,
    permissions: u32,
    id: u32,
}

impl Entry {
    /// Whether a mode cannot say it.
    fn is_extended(&self) -> bool {
        matches!(self.tag, Tag::User | Tag::Group | Tag::Mask)
    }

    fn names_an_id(&self) -> bool {
        matches!(self.tag, Tag::User | Tag::Group)
    }

    fn decode(bytes: [u8; ENTRY]) -> Result<Entry, AclError> {
        let [t0, t1, p0, p1, i0, i1, i2, i3] = bytes;
        let tag = match u16::from_le_bytes([t0, t1]) {
            0x01 => Tag::UserObj,
            0x02 => Tag::User,
            0x04 => Tag::GroupObj,
            0x08 => Tag::Group,
            0x10 => Tag::Mask,
            0x20 => Tag::Other,
            _ => return Err(AclError("unknown tag")),
        };
        let permissions = u32::from(u16::from_le_bytes([p0, p1]));
        if permissions > 7 {
            return Err(AclError("unknown permissions"));
        }
        let entry = Entry { tag, permissions, id: u32::from_le_bytes([i0, i1, i2, i3]) };
        if entry.names_an_id() && entry.id == NO_ID {
            return Err(AclError("entry without an id"));
        }
        Ok(entry)
    }

    fn encode(&self) -> [u8; ENTRY] {
        let [t0, t1, ..] = (self.tag as u32).to_le_bytes();
        let [p0, p1, ..] = self.permissions.to_le_bytes();
        let id = if self.names_an_id() { self.id } else { NO_ID };
        let [i0, i1, i2, i3] = id.to_le_bytes();
        [t0, t1, p0, p1, i0, i1, i2, i3]
    }
}

fn decode(value: &[u8]) -> Result<Vec<Entry>, AclError> {
    let (version, rest) = value.split_first_chunk::<4>().ok_or(AclError("too short"))?;
    if u32::from_le_bytes(*version) != VERSION {
        return Err(AclError("unknown version"));
    }
    if rest.len() % ENTRY != 0 {
        return Err(AclError("cut off in an entry"));
    }
    let chunks = rest.chunks_exact(ENTRY).filter_map(|bytes| bytes.try_into().ok());
    let entries = chunks.map(Entry::decode).collect::<Result<Vec<_>, _>>()?;
    check(&entries)?;
    Ok(entries)
}

/// One entry for owner, group and other each; a mask at most once, and when an entry names
/// somebody; tags in order.
fn check(entries: &[Entry]) -> Result<(), AclError> {
    let count = |tag| entries.iter().filter(|entry| entry.tag == tag).count();
    if [Tag::UserObj, Tag::GroupObj, Tag::Other].iter().any(|tag| count(*tag) != 1) {
        return Err(AclError("owner, group and other must each be there once"));
    }
    let named = entries.iter().any(Entry::names_an_id);
    if count(Tag::Mask) > 1 || (named && count(Tag::Mask) == 0) {
        return Err(AclError("named entries need one mask"));
    }
    if !entries.is_sorted_by_key(|entry| entry.tag) {
        return Err(AclError("entries out of order"));
    }
    Ok(())
}

fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut value = VERSION.to_le_bytes().to_vec();
    for entry in entries {
        value.extend_from_slice(&entry.encode());
    }
    value
}

impl fmt::Display for AclError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a POSIX ACL: {}", self.0)
    }
}

impl std::error::Error for AclError {}

#[cfg(test)]
mod tests;
