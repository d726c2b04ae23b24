//! One header block of a tar archive, read strictly.
//!
//! What readers are known to understand differently is refused, so that what was looked at is what gets
//! stored: a magic number of nobody's with a name prefix, numbers that do not fit or hold other characters.

use super::BLOCK;

/// What is wrong with a header, for the end of a message.
pub(super) type Wrong = String;

/// Which sort of header it is; it says what the bytes behind the device numbers mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    Ustar,
    /// With times of access and change, and the map of a sparse file, in the place of a prefix.
    Gnu,
    /// The prefix is shorter, and times follow.
    Star,
}

/// The fields as they stand in the block.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) format: Format,
    pub(super) name: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) kind: u8,
    pub(super) link: Vec<u8>,
    pub(super) device: (u64, u64),
}

impl Header {
    /// Reads a block that is not all zeros.
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Header, Wrong> {
        check_sum(block)?;
        let format = format(block)?;
        let mut name = text(&block[..100]);
        let prefix = match format {
            Format::Ustar => text(&block[345..500]),
            Format::Star => text(&block[345..476]),
            Format::V7 | Format::Gnu => Vec::new(),
        };
        if !prefix.is_empty() {
            name = [prefix.as_slice(), b"/", &name].concat();
        }
        let kind = block[156];
        let device = match kind {
            b'3' | b'4' => (number(&block[329..337], "major")?, number(&block[337..345], "minor")?),
            _ => (0, 0),
        };
        // The file type bits that some writers put there say nothing.
        let mode = number(&block[100..108], "mode")?;
        Ok(Header {
            format,
            name,
            mode: u32::try_from(mode & 0o7777).unwrap_or(0),
            uid: number(&block[108..116], "uid")?,
            gid: number(&block[116..124], "gid")?,
            size: number(&block[124..136], "size")?,
            mtime: signed(&block[136..148], "mtime")?,
            kind,
            link: text(&block[157..257]),
            device,
        })
    }
}

/// Whether bytes are a header, by its checksum.
pub(super) fn is_header(bytes: &[u8]) -> bool {
    <&[u8; BLOCK]>::try_from(bytes).is_ok_and(|block| check_sum(block).is_ok())
}

/// The sum of all bytes, its own field counted as spaces. Old writers added signed bytes.
fn check_sum(block: &[u8; BLOCK]) -> Result<(), Wrong> {
    let wrong = || "is no tar header: its checksum is wrong".to_owned();
    let said = number(&block[148..156], "checksum").map_err(|_| wrong())?;
    let (mut plain, mut signed) = (0_u64, 0_i64);
    for (at, byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { *byte };
        plain += u64::from(byte);
        signed += i64::from(i8::from_ne_bytes([byte]));
    }
    match said == plain || i64::try_from(said) == Ok(signed) {
        true => Ok(()),
        false => Err(wrong()),
    }
}

fn format(block: &[u8; BLOCK]) -> Result<Format, Wrong> {
    match &block[257..265] {
        b"ustar\x0000" if &block[508..512] == b"tar\0" => Ok(Format::Star),
        b"ustar\x0000" => Ok(Format::Ustar),
        b"ustar  \0" => Ok(Format::Gnu),
        magic if magic.starts_with(b"ustar") && block[345] != 0 => {
            Err("has a name prefix and a version that is neither POSIX's nor GNU's".into())
        }
        _ => Ok(Format::V7),
    }
}

/// A field up to its first NUL.
pub(super) fn text(field: &[u8]) -> Vec<u8> {
    field.split(|&byte| byte == 0).next().unwrap_or_default().to_vec()
}

/// A number that may not be negative.
pub(super) fn number(field: &[u8], what: &str) -> Result<u64, Wrong> {
    u64::try_from(signed(field, what)?).map_err(|_| format!("has a negative {what}"))
}

/// Octal digits between spaces and NULs, or binary with the first bit set (GNU).
pub(super) fn signed(field: &[u8], what: &str) -> Result<i64, Wrong> {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        return binary(field).ok_or_else(|| format!("has a {what} that is too large"));
    }
    let is_space = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_space(byte)).unwrap_or(field.len());
    let digits = field[start..].split(is_space).next().unwrap_or_default();
    if !field[start + digits.len()..].iter().all(is_space) {
        return Err(format!("has a {what} that is no number"));
    }
    digits.iter().try_fold(0_i64, |sum, digit| match digit {
        b'0'..=b'7' => Ok(sum * 8 + i64::from(digit - b'0')),
        _ => Err(format!("has a {what} that is no number")),
    })
}

/// Two's complement, the highest bit of the field apart.
fn binary(field: &[u8]) -> Option<i64> {
    let negative = field[0] & 0x40 != 0;
    let mut value = if negative { -1_i128 } else { 0 };
    for (at, byte) in field.iter().enumerate() {
        let byte = match (at, negative) {
            (0, false) => byte & 0x7f,
            _ => *byte,
        };
        value = value.checked_mul(256)? | i128::from(byte);
        if i64::try_from(value).is_err() {
            return None;
        }
    }
    i64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_writer_are_read() {
        for (field, value) in [
            (&b"0000644\0"[..], Ok(0o644)),
            (b"   644 \0", Ok(0o644)),
            (b"\0\0\0\0\0\0\0\0", Ok(0)),
            (b"77777777", Ok(0o77_777_777)),
            (b"\x80\0\0\0\0\0\x01\0", Ok(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Ok(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\0", Ok(-256)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Err(())),
            (b"12 34\0\0\0", Err(())),
            (b"0x12\0\0\0\0", Err(())),
            (b"-1\0\0\0\0\0\0", Err(())),
            (b"00000089", Err(())),
        ] {
            assert_eq!(signed(field, "x").map_err(drop), value, "{field:?}");
        }
        assert!(number(b"\xff\xff\xff\xff", "x").is_err());
    }
}
