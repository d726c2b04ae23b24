//! What an archive is packed with, told by its first bytes, and taking it off.
//!
//! gzip may have several members, and what follows the last one and is none is ignored, as gzip(1) does.
//! zstd may have several frames; skippable ones are skipped, and what follows a frame and is none is an
//! error, as with zstd(1). Other packings are refused by name. Nothing outside this process is run.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

/// How an archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// It is not.
    None,
    /// gzip, RFC 1952.
    Gzip,
    /// Zstandard, RFC 8878.
    Zstd,
}

/// First bytes of what is refused by name.
const OTHERS: [(&[u8], &str); 6] = [
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x1f\x9d", "compress"),
    (b"LZIP", "lzip"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PK\x03\x04", "zip"),
];

/// Tells the packing by the first bytes; the name of one that is not read here otherwise.
pub fn detect(first: &[u8]) -> Result<Packing, &'static str> {
    if first.starts_with(b"\x1f\x8b") {
        return Ok(Packing::Gzip);
    }
    // A skippable frame may come first (zstd:chunked).
    let skippable = matches!(first, [kind, 0x2a, 0x4d, 0x18, ..] if (0x50..=0x5f).contains(kind));
    if first.starts_with(b"\x28\xb5\x2f\xfd") || skippable {
        return Ok(Packing::Zstd);
    }
    // Three letters could begin the name of a file.
    let begins = |magic: &[u8]| match magic {
        b"BZh" => first.starts_with(magic) && first.get(4..10) == Some(b"1AY&SY"),
        _ => first.starts_with(magic),
    };
    match OTHERS.iter().find(|(magic, _)| begins(magic)) {
        Some((_, name)) => Err(name),
        None => Ok(Packing::None),
    }
}

/// The archive without its packing.
pub struct Unpacked<R: BufRead>(Form<R>);

/// More the library takes nowhere (`ZSTD_WINDOWLOG_MAX` of 64-bit machines).
const WINDOW_LOG_MAX: u32 = 31;

enum Form<R: BufRead> {
    Plain(R),
    Gzip(Box<GzDecoder<R>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, R>>),
    /// Behind the last member of gzip.
    Rest(R),
    /// While one form becomes another.
    Gone,
}

impl<R: BufRead> Unpacked<R> {
    /// Takes the packing off. A zstd frame that wants a window of more than `window` bytes is refused.
    pub fn new(packed: R, packing: Packing, window: u64) -> io::Result<Unpacked<R>> {
        Ok(Unpacked(match packing {
            Packing::None => Form::Plain(packed),
            Packing::Gzip => Form::Gzip(Box::new(GzDecoder::new(packed))),
            Packing::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
                decoder.window_log_max(window.max(1024).ilog2().min(WINDOW_LOG_MAX))?;
                Form::Zstd(Box::new(decoder))
            }
        }))
    }

    /// What it reads from.
    pub fn get_mut(&mut self) -> Option<&mut R> {
        match &mut self.0 {
            Form::Plain(packed) | Form::Rest(packed) => Some(packed),
            Form::Gzip(decoder) => Some(decoder.get_mut()),
            Form::Zstd(decoder) => Some(decoder.get_mut()),
            Form::Gone => None,
        }
    }

    /// Goes on to the next member of gzip, if there is one.
    fn next_member(&mut self) -> io::Result<()> {
        let Form::Gzip(decoder) = std::mem::replace(&mut self.0, Form::Gone) else { return Ok(()) };
        let mut packed = decoder.into_inner();
        // One byte is enough where the buffer ends in between: a member cut off there is none.
        let more = matches!(packed.fill_buf()?, [0x1f] | [0x1f, 0x8b, ..]);
        self.0 = match more {
            true => Form::Gzip(Box::new(GzDecoder::new(packed))),
            false => Form::Rest(packed),
        };
        Ok(())
    }
}

impl<R: BufRead> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.0 {
                Form::Plain(packed) => return packed.read(buffer),
                Form::Zstd(decoder) => return decoder.read(buffer),
                Form::Gzip(decoder) => match decoder.read(buffer)? {
                    0 => self.next_member()?,
                    got => return Ok(got),
                },
                Form::Rest(packed) => {
                    let length = packed.fill_buf()?.len();
                    if length == 0 {
                        return Ok(0);
                    }
                    packed.consume(length);
                }
                Form::Gone => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packings_are_told_by_their_first_bytes() {
        for (first, packing) in [
            (&b"\x1f\x8b\x08"[..], Ok(Packing::Gzip)),
            (b"\x28\xb5\x2f\xfd", Ok(Packing::Zstd)),
            (b"\x50\x2a\x4d\x18", Ok(Packing::Zstd)),
            (b"BZh91AY&SY", Err("bzip2")),
            (b"BZhello.txt", Ok(Packing::None)),
            (b"\xfd7zXZ\0\0", Err("xz")),
            (b"name", Ok(Packing::None)),
            (b"", Ok(Packing::None)),
        ] {
            assert_eq!(detect(first), packing, "{first:?}");
        }
    }
}
