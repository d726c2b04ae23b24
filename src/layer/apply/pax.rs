//! The records of a PAX extended header (POSIX pax, "ustar Interchange Format").

use std::collections::BTreeMap;

use super::header::Wrong;

/// Records of one extended header.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) atime: Option<(i64, u32)>,
    /// Names and values; the later of one name counts.
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// GNU.sparse.*, without that.
    pub(super) sparse: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Records {
    /// Reads the data of an extended header.
    pub(super) fn parse(mut data: &[u8]) -> Result<Records, Wrong> {
        let mut records = Records::default();
        while !data.is_empty() {
            let (key, value, rest) =
                split(data).ok_or("has a record whose length or form is wrong")?;
            records.take(key, value)?;
            data = rest;
        }
        Ok(records)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Wrong> {
        let wrong = || format!("has a record '{}' that is wrong", key.escape_ascii());
        // An empty value takes a record back.
        let given = (!value.is_empty()).then_some(value);
        let named = || match given.is_some_and(|value| value.contains(&0)) {
            true => Err(wrong()),
            false => Ok(given.map(<[u8]>::to_vec)),
        };
        let number = || given.map(|value| decimal(value).ok_or_else(wrong)).transpose();
        let time = || given.map(|value| moment(value).ok_or_else(wrong)).transpose();
        match key {
            b"path" => self.path = named()?,
            b"linkpath" => self.link = named()?,
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => self.mtime = time()?,
            b"atime" => self.atime = time()?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattr(keyword(name), value.to_vec()).ok_or_else(wrong)?;
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let (name, value) = percent(name).zip(base64(value)).ok_or_else(wrong)?;
                    // The other spelling is exact, whichever comes first.
                    if !self.xattrs.contains_key(&name) {
                        self.xattr(name, value).ok_or_else(wrong)?;
                    }
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }

    fn xattr(&mut self, name: Vec<u8>, value: Vec<u8>) -> Option<()> {
        if name.is_empty() || name.contains(&0) {
            return None;
        }
        self.xattrs.insert(name, value);
        Some(())
    }
}

/// The first record `LENGTH KEY=VALUE\n` and what follows it.
fn split(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|&byte| byte == b' ')?;
    let length = usize::try_from(decimal(&data[..space])?).ok()?;
    if length > data.len() || length < space + 4 {
        return None;
    }
    let (record, rest) = data.split_at(length);
    let record = record[space + 1..].strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    (equals > 0).then_some((&record[..equals], &record[equals + 1..], rest))
}

/// Digits and nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |sum, digit| match digit {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// A decimal number of seconds as seconds and the nanoseconds that follow them; more digits are cut off.
fn moment(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |&byte| byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

/// GNU tar writes `=` and `%` of a keyword like this; everything else stands as it is.
fn keyword(name: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), name);
    while let Some((&byte, tail)) = rest.split_first() {
        let (byte, tail) = match rest.get(..3) {
            Some(b"%3D") => (b'=', &rest[3..]),
            Some(b"%25") => (b'%', &rest[3..]),
            _ => (byte, tail),
        };
        out.push(byte);
        rest = tail;
    }
    out
}

fn percent(name: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut rest) = (Vec::new(), name);
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
        out.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &tail[2..];
    }
    Some(out)
}

/// With or without the padding at the end.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.split(|&byte| byte == b'=').next()?;
    let mut padded = text.to_vec();
    padded.resize(text.len().div_ceil(4) * 4, b'=');
    crate::layer::split::base64::decode(&padded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_strictly() {
        let records = Records::parse(b"9 path=a\n12 uid=1234\n13 mtime=1.5\n").unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"a"[..]));
        assert_eq!((records.uid, records.mtime), (Some(1234), Some((1, 500_000_000))));
        for bad in [
            &b"8 path=a\n"[..],
            b"11 path=a\n",
            b"9 path=a ",
            b"9 pathxa\n",
            b" path=a\n",
            b"+9 path=a\n",
            b"99999999999999999999999 a=b\n",
            b"5 =b\n",
            b"9 size=x\n",
            b"12 path=a\0b\n",
        ] {
            assert!(Records::parse(bad).is_err(), "{}", bad.escape_ascii());
        }
        assert!(Records::parse(b"9 path=a\n8 path=\n").unwrap().path.is_none());
    }

    #[test]
    fn times_before_1970_count_forward_from_the_second() {
        for (text, time) in [
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.000000001", Some((-1, 999_999_999))),
            ("-7", Some((-7, 0))),
            ("0.1234567899", Some((0, 123_456_789))),
            ("1.", Some((1, 0))),
            (".5", None),
            ("1e3", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(moment(text.as_bytes()), time, "{text}");
        }
    }

    #[test]
    fn attributes_come_in_two_spellings() {
        let records =
            Records::parse(b"32 LIBARCHIVE.xattr.user.a=YQ==\n25 SCHILY.xattr.user.a=b\n").unwrap();
        assert_eq!(records.xattrs, [(b"user.a".to_vec(), b"b".to_vec())].into());
        assert_eq!(keyword(b"user.a%3Db%25"), b"user.a=b%");
        assert_eq!(keyword(b"user.a%253D%3d%"), b"user.a%3D%3d%");
    }
}
