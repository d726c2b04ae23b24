//! One tar entry as bytes: POSIX (ustar) headers, PAX records for what does not fit them.
//!
//! The same entry gives the same bytes, on any host: no names of users, nothing from the clock, PAX
//! records in order. Names are bytes and stay as they are.

use std::collections::BTreeMap;
use std::io;

use tar::{EntryType, Header};

/// Size of a tar block; headers are one, data is padded to it.
pub(super) const BLOCK: u64 = 512;

/// The largest values of the octal fields of seven and eleven digits.
const MAX_ID: u64 = 0o7_777_777;
const MAX_LONG: u64 = 0o77_777_777_777;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// A file of so many bytes, which follow the header.
    File(u64),
    Dir,
    /// A symlink to these bytes.
    Symlink(Vec<u8>),
    /// Another name of the file at this path in the archive.
    Link(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// One entry.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Relative to the root of the layer, without a slash at the end.
    pub(super) path: Vec<u8>,
    pub(super) body: Body,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

impl Entry {
    /// An empty file: the marks of a layer.
    pub(super) fn mark(path: Vec<u8>) -> Entry {
        Entry {
            path,
            body: Body::File(0),
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            xattrs: Vec::new(),
        }
    }

    /// The entry without the data of a file.
    pub(super) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut records = Records::new();
        let header = self.header(&mut records)?;
        let mut bytes = Vec::new();
        if !records.is_empty() {
            self.extension(&records, &mut bytes)?;
        }
        bytes.extend_from_slice(header.as_bytes());
        Ok(bytes)
    }

    fn header(&self, records: &mut Records) -> io::Result<Header> {
        let (kind, size, link) = match &self.body {
            Body::File(size) => (EntryType::Regular, *size, None),
            Body::Dir => (EntryType::Directory, 0, None),
            Body::Symlink(target) => (EntryType::Symlink, 0, Some(target)),
            Body::Link(target) => (EntryType::Link, 0, Some(target)),
            Body::Char(..) => (EntryType::Char, 0, None),
            Body::Block(..) => (EntryType::Block, 0, None),
            Body::Fifo => (EntryType::Fifo, 0, None),
        };
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(self.mode);
        header.set_size(fit(records, "size", size, MAX_LONG));
        header.set_uid(fit(records, "uid", u64::from(self.uid), MAX_ID));
        header.set_gid(fit(records, "gid", u64::from(self.gid), MAX_ID));
        header.set_mtime(time(records, self.mtime));
        if let Body::Char(major, minor) | Body::Block(major, minor) = self.body {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        let mut path = self.path.clone();
        if self.body == Body::Dir {
            path.push(b'/');
        }
        let fields = header.as_old_mut();
        text(records, "path", &path, &mut fields.name);
        if let Some(target) = link {
            text(records, "linkpath", target, &mut fields.linkname);
        }
        for (name, value) in &self.xattrs {
            records.insert([b"SCHILY.xattr.", keyword(name).as_slice()].concat(), value.clone());
        }
        header.set_cksum();
        Ok(header)
    }

    /// The entry of PAX records that precedes the header they speak of.
    fn extension(&self, records: &Records, bytes: &mut Vec<u8>) -> io::Result<()> {
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        let size = u64::try_from(data.len()).map_err(io::Error::other)?;
        let last = self.path.rsplit(|&b| b == b'/').next().unwrap_or_default();
        let name = [b"PaxHeaders/", &last[..last.len().min(80)]].concat();
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        place(&name, &mut header.as_old_mut().name);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&data);
        bytes.extend(std::iter::repeat_n(0, padding(size)));
        Ok(())
    }
}

/// How many zeros follow data of this size.
pub(super) fn padding(size: u64) -> usize {
    usize::try_from(size.wrapping_neg() % BLOCK).unwrap_or(0)
}

/// The number for the header; one too large for it goes to a record.
fn fit(records: &mut Records, key: &str, value: u64, max: u64) -> u64 {
    if value <= max {
        return value;
    }
    records.insert(key.into(), value.to_string().into_bytes());
    0
}

/// The time for the header; fractions and what lies before 1970 go to a record.
fn time(records: &mut Records, (seconds, nanoseconds): (i64, u32)) -> u64 {
    let whole = u64::try_from(seconds).ok().filter(|&seconds| seconds <= MAX_LONG);
    if nanoseconds != 0 || whole.is_none() {
        records.insert(b"mtime".to_vec(), decimal(seconds, nanoseconds).into_bytes());
    }
    whole.unwrap_or(0)
}

/// A point in time as a decimal number. The nanoseconds count forward from the second, also before
/// 1970: (-2, 750 million) is -1.25.
fn decimal(seconds: i64, nanoseconds: u32) -> String {
    if nanoseconds == 0 {
        return seconds.to_string();
    }
    let (sign, seconds, nanoseconds) = if seconds < 0 {
        ("-", (seconds + 1).unsigned_abs(), 1_000_000_000_u32.saturating_sub(nanoseconds))
    } else {
        ("", seconds.unsigned_abs(), nanoseconds)
    };
    let text = format!("{sign}{seconds}.{nanoseconds:09}");
    text.trim_end_matches('0').to_owned()
}

fn text(records: &mut Records, key: &str, value: &[u8], field: &mut [u8]) {
    if !place(value, field) {
        records.insert(key.into(), value.to_vec());
    }
}

/// Copies bytes to a field; false when they do not fit and only their beginning was copied.
fn place(value: &[u8], field: &mut [u8]) -> bool {
    for (to, from) in field.iter_mut().zip(value) {
        *to = *from;
    }
    value.len() <= field.len()
}

/// The keyword of a record ends at its first `=`, so a name with one is written as GNU tar does, and one that would be
/// taken for such. Other readers know names only as they are, so all others are written like that.
fn keyword(name: &[u8]) -> Vec<u8> {
    let escaped = |part: &[u8]| part == b"%3D" || part == b"%25";
    if !name.contains(&b'=') && !name.windows(3).any(escaped) {
        return name.to_vec();
    }
    let mut keyword = Vec::new();
    for &byte in name {
        match byte {
            b'=' => keyword.extend_from_slice(b"%3D"),
            b'%' => keyword.extend_from_slice(b"%25"),
            _ => keyword.push(byte),
        }
    }
    keyword
}

/// `LENGTH KEY=VALUE\n`, where LENGTH counts itself.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if rest + length.to_string().len() > length {
        length += 1;
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &[u8]) -> Entry {
        Entry::mark(path.to_vec())
    }

    #[test]
    fn records_count_their_own_length() {
        for length in [1, 4, 5, 6, 90, 91, 92, 93, 989, 990, 991] {
            let record = record(b"k", &vec![b'v'; length]);
            let text = String::from_utf8(record.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap(), record.len().to_string());
        }
        assert_eq!(record(b"mtime", b"1.5"), b"13 mtime=1.5\n");
    }

    #[test]
    fn times_are_decimal_numbers() {
        for (seconds, nanoseconds, text) in [
            (1, 500_000_000, "1.5"),
            (0, 1, "0.000000001"),
            (-2, 750_000_000, "-1.25"),
            (-1, 1, "-0.999999999"),
            (-7, 0, "-7"),
        ] {
            assert_eq!(decimal(seconds, nanoseconds), text);
        }
    }

    #[test]
    fn plain_entries_need_no_records() {
        assert_eq!(entry(&[b'n'; 100]).to_bytes().unwrap().len(), 512);
        assert_eq!(entry(&[b'n'; 101]).to_bytes().unwrap().len(), 3 * 512);
    }

    #[test]
    fn large_values_survive_a_reader() {
        let mut entry = entry(&[&b"d/"[..], &[b'\xff'; 200]].concat());
        entry.body = Body::File(0);
        (entry.uid, entry.gid, entry.mtime) = (u32::MAX - 1, 1 << 21, (-1, 1));
        entry.xattrs = vec![(b"user.a=b".to_vec(), b"\0=".to_vec())];
        assert_eq!(keyword(b"user.%3D%"), b"user.%253D%25");
        assert_eq!(keyword(b"user.%3d%"), b"user.%3d%");
        let mut bytes = entry.to_bytes().unwrap();
        bytes.extend([0; 1024]);
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut read = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(*read.path_bytes(), *entry.path);
        let records: Vec<(Vec<u8>, Vec<u8>)> = read
            .pax_extensions()
            .unwrap()
            .unwrap()
            .map(|record| record.unwrap())
            .map(|record| (record.key_bytes().to_vec(), record.value_bytes().to_vec()))
            .collect();
        let keys: Vec<String> =
            records.iter().map(|(key, _)| String::from_utf8_lossy(key).into()).collect();
        assert_eq!(keys, ["SCHILY.xattr.user.a%3Db", "gid", "mtime", "path", "uid"]);
        assert_eq!(records[2].1, b"-0.999999999");
        assert_eq!(records[4].1, b"4294967294");
    }
}
