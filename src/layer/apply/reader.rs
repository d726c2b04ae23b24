//! The entries of a tar archive, one after another, as a strict reader of our own.
//!
//! Not by a library: the record that gives the archive back needs every byte that is not a file's data, and
//! readers that guess are how one archive comes to mean two things. Where GNU tar, Go and Python agree, so
//! does this; where an entry could be understood in two ways (a PAX size that is not the header's, two long
//! names that differ), it is refused.
//!
//! The end: two blocks of zeros, or the end of the bytes between two entries (GNU tar, Go), also behind a
//! single block of zeros. A block of zeros followed by anything else is refused. What follows the end mark
//! means nothing.

use super::BLOCK;
use super::header::{self, Format, Header, Wrong};
use super::input::Input;
use super::pax::Records;
use super::sparse::{self, Lines, Map, Reading};
use crate::error::{Error, Result};

/// Bytes of an extended header or a long name, and of all that precede one entry.
const EXTENSION: u64 = 1024 * 1024;
const EXTENSIONS: u64 = 4 * EXTENSION;
/// Sizes from here on do not fit the octal field, so a record has to say them.
const OCTAL_END: u64 = 0o100_000_000_000;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Dir,
    Symlink,
    Link,
    Char,
    Block,
    Fifo,
}

/// One entry.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// As the archive has it.
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) atime: Option<(i64, u32)>,
    /// What a symlink says, what a link is to.
    pub(super) link: Vec<u8>,
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of the file.
    pub(super) size: u64,
    /// Bytes that follow in the archive.
    pub(super) stored: u64,
    /// Where they go in a file with holes.
    pub(super) map: Option<Map>,
}

impl Entry {
    /// An error about it.
    pub(super) fn wrong(&self, why: impl Into<String>) -> Error {
        about(&self.name, why)
    }
}

/// An error about the entry of this name, on one line whatever the name is.
pub(super) fn about(name: &[u8], why: impl Into<String>) -> Error {
    Error::invalid(format!("archive entry '{}'", name.escape_ascii()), why)
}

/// What precedes an entry.
#[derive(Default)]
struct Extensions {
    records: Option<Records>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.records.is_none() && self.name.is_none() && self.link.is_none()
    }
}

/// Reads entries. Every byte read here is added to `raw`.
pub(super) struct Reader<'a, 'b> {
    pub(super) input: &'a mut Input<'b>,
    pub(super) raw: &'a mut Vec<u8>,
}

impl Reader<'_, '_> {
    /// The next entry, without its data; `None` at the end of the archive.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let mut before = Extensions::default();
        let start = self.input.offset();
        loop {
            let at = self.input.offset();
            // Global headers may follow each other without end, and all of them are kept for the record.
            if at - start > EXTENSIONS {
                return Err(at_byte(at, "follows more than 4 MiB of extended headers".into()));
            }
            let Some(block) = self.block()? else { return end(&before) };
            if block.iter().all(|&byte| byte == 0) {
                return match self.block()? {
                    Some(block) if block.iter().any(|&byte| byte != 0) => {
                        Err(at_byte(at, "is a block of zeros with more behind it".into()))
                    }
                    _ => end(&before),
                };
            }
            let header = Header::parse(&block).map_err(|wrong| at_byte(at, wrong))?;
            match header.kind {
                b'x' => {
                    let data = self.extension(&header)?;
                    let records = Records::parse(&data).map_err(|wrong| at_byte(at, wrong))?;
                    once(before.records.replace(records).is_none(), at)?;
                }
                b'g' => {
                    let data = self.extension(&header)?;
                    global(&data).map_err(|wrong| at_byte(at, wrong))?;
                }
                b'L' => {
                    let name = header::text(&self.extension(&header)?);
                    once(before.name.replace(name).is_none(), at)?;
                }
                b'K' => {
                    let link = header::text(&self.extension(&header)?);
                    once(before.link.replace(link).is_none(), at)?;
                }
                _ => return self.entry(header, &block, before).map(Some),
            }
        }
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let block = self.input.block()?;
        if let Some(block) = &block {
            self.raw.extend_from_slice(block);
        }
        Ok(block)
    }

    /// A block of a map of holes of which `length` bytes were read.
    fn map_block(&mut self, entry: &Entry, length: &mut usize) -> Result<[u8; BLOCK]> {
        *length += BLOCK;
        match *length <= sparse::MAP {
            true => self.needed(&entry.name),
            false => {
                let most = sparse::MAP;
                Err(entry.wrong(format!("has a map of its data of more than {most} bytes")))
            }
        }
    }

    /// A block that has to be there.
    fn needed(&mut self, name: &[u8]) -> Result<[u8; BLOCK]> {
        self.block()?.ok_or_else(|| about(name, "is cut off"))
    }

    /// The data of a header that is about another.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>> {
        if header.size > EXTENSION {
            return Err(about(&header.name, "is an extended header of more than 1 MiB"));
        }
        let size = usize::try_from(header.size).unwrap_or(0);
        let mut data = Vec::new();
        while data.len() < size {
            data.extend_from_slice(&self.needed(&header.name)?);
        }
        data.truncate(size);
        Ok(data)
    }

    fn entry(&mut self, header: Header, block: &[u8; BLOCK], before: Extensions) -> Result<Entry> {
        let mut records = before.records.unwrap_or_default();
        let path = records.path.take();
        let name = one_of(before.name, path, &header.name, "name")?;
        let name = name.unwrap_or_else(|| header.name.clone());
        let link = one_of(before.link, records.link.take(), &name, "link target")?;
        let link = link.unwrap_or_else(|| header.link.clone());
        let refuse = |wrong: Wrong| about(&name, wrong);
        let mut stored = stored(&header, &records).map_err(refuse)?;
        let kind = kind(&header, &name, stored).map_err(refuse)?;
        if kind != Kind::File {
            stored = 0;
        }
        let id = |own: u64, said: Option<u64>, what: &str| {
            let id = u32::try_from(said.unwrap_or(own)).ok().filter(|id| *id != u32::MAX);
            id.ok_or_else(|| about(&name, format!("has a {what} of more than 32 bits")))
        };
        let mut entry = Entry {
            kind,
            mode: header.mode,
            uid: id(header.uid, records.uid, "uid")?,
            gid: id(header.gid, records.gid, "gid")?,
            mtime: records.mtime.unwrap_or((header.mtime, 0)),
            atime: records.atime,
            link,
            device: device(&header).map_err(refuse)?,
            xattrs: std::mem::take(&mut records.xattrs).into_iter().collect(),
            size: stored,
            stored,
            map: None,
            name,
        };
        self.holes(&header, block, &records, &mut entry)?;
        Ok(entry)
    }

    /// Reads the map of a file with holes.
    fn holes(
        &mut self,
        header: &Header,
        block: &[u8; BLOCK],
        records: &Records,
        entry: &mut Entry,
    ) -> Result<()> {
        let said = sparse::records(&records.sparse).map_err(|wrong| entry.wrong(wrong))?;
        let (size, reading) = match (header.kind, said) {
            (b'S', None) if header.format == Format::Gnu => {
                let wrong = |wrong| about(&entry.name, wrong);
                let size = header::number(&block[483..495], "size").map_err(wrong)?;
                let mut reading = Reading::default();
                let mut more = reading.gnu(block, true).map_err(wrong)?;
                let mut length = 0;
                while more {
                    let block = self.map_block(entry, &mut length)?;
                    more = reading.gnu(&block, false).map_err(wrong)?;
                }
                (size, reading)
            }
            (b'S', _) => return Err(entry.wrong("is a sparse file in no known format")),
            (_, None) => return Ok(()),
            (_, Some(_)) if entry.kind != Kind::File => {
                return Err(entry.wrong("has holes and is no file"));
            }
            (_, Some(said)) => {
                if let Some(name) = said.name {
                    entry.name = name;
                }
                let reading = match said.map {
                    Some(reading) => reading,
                    None => self.map_in_front(entry)?,
                };
                (said.size, reading)
            }
        };
        entry.size = size;
        let map = reading.finish(size, entry.stored).map_err(|wrong| entry.wrong(wrong))?;
        entry.map = Some(map);
        Ok(())
    }

    fn map_in_front(&mut self, entry: &mut Entry) -> Result<Reading> {
        let (mut lines, mut read) = (Lines::default(), 0);
        loop {
            let length = u64::try_from(BLOCK).unwrap_or(0);
            entry.stored = entry
                .stored
                .checked_sub(length)
                .ok_or_else(|| entry.wrong("has a map of its data that is wrong"))?;
            let block = self.map_block(entry, &mut read)?;
            if !lines.take(&block).map_err(|wrong| entry.wrong(wrong))? {
                return Ok(lines.map());
            }
        }
    }
}

fn end(before: &Extensions) -> Result<Option<Entry>> {
    match before.is_empty() {
        true => Ok(None),
        false => Err(Error::invalid("the archive", "ends behind an extended header")),
    }
}

fn at_byte(at: u64, wrong: Wrong) -> Error {
    Error::invalid(format!("the archive at byte {at}"), wrong)
}

fn once(first: bool, at: u64) -> Result<()> {
    match first {
        true => Ok(()),
        false => Err(at_byte(at, "is a second extended header of one entry".into())),
    }
}

/// Global records are left out. One that says how the archive is to be read is believed by some readers.
fn global(data: &[u8]) -> std::result::Result<(), Wrong> {
    let records = Records::parse(data)?;
    match records.size.is_some() || !records.sparse.is_empty() {
        true => Err("is a global header that says sizes".into()),
        false => Ok(()),
    }
}

/// The long name: GNU's or PAX's, which have to agree.
fn one_of(
    gnu: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
    name: &[u8],
    what: &str,
) -> Result<Option<Vec<u8>>> {
    match (gnu, pax) {
        (Some(gnu), Some(pax)) if gnu != pax => {
            Err(about(name, format!("has a GNU {what} and another one in PAX records")))
        }
        (gnu, pax) => Ok(gnu.or(pax)),
    }
}

/// Bytes that follow the header. A record that says other than the header is how an archive hides
/// another one from some readers (CVE-2025-62518); only what does not fit the header may be said there
/// alone, the header then has 0 or its largest number.
fn stored(header: &Header, records: &Records) -> std::result::Result<u64, Wrong> {
    match records.size {
        None => Ok(header.size),
        Some(size) if size == header.size => Ok(size),
        Some(size) if size >= OCTAL_END && [0, OCTAL_END - 1].contains(&header.size) => Ok(size),
        Some(size) => Err(format!("has the size {} and a PAX size of {size}", header.size)),
    }
}

fn kind(header: &Header, name: &[u8], stored: u64) -> std::result::Result<Kind, Wrong> {
    let slash = name.ends_with(b"/");
    Ok(match header.kind {
        // Before there was a type for them.
        0 if slash && stored == 0 => Kind::Dir,
        b'0' | 0 | b'7' | b'S' if slash => {
            return Err("is a file whose name ends with a slash".into());
        }
        b'0' | 0 | b'7' | b'S' => Kind::File,
        b'1' => Kind::Link,
        b'2' => Kind::Symlink,
        b'3' => Kind::Char,
        b'4' => Kind::Block,
        b'5' => Kind::Dir,
        b'6' => Kind::Fifo,
        other => return Err(format!("is of the unknown type '{}'", other.escape_ascii())),
    })
}

/// The kernel's device numbers have 12 bits of major and 20 of minor.
fn device(header: &Header) -> std::result::Result<(u32, u32), Wrong> {
    let (major, minor) = header.device;
    let fits = major < 1 << 12 && minor < 1 << 20;
    let both = u32::try_from(major).ok().zip(u32::try_from(minor).ok());
    both.filter(|_| fits)
        .ok_or_else(|| format!("has a device number {major}:{minor}, out of range"))
}
