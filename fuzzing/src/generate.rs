//! Archives in every format, made from an input's bytes by rules: what a writer could write, also in ways that few do.

use super::tar::{BLOCK, sum};

/// Takes choices from an input; at its end every choice is the first one.
pub struct Feed<'a>(pub &'a [u8]);

impl<'a> Feed<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn number(&mut self) -> u32 {
        let bytes = [self.byte(), self.byte(), self.byte(), self.byte()];
        u32::from_le_bytes(bytes)
    }

    pub fn below(&mut self, end: usize) -> usize {
        match end {
            0..=256 => usize::from(self.byte()) % end.max(1),
            _ => self.number() as usize % end,
        }
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Some bytes of the input.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let length = self.below(most + 1).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes
    }
}

/// A header block in POSIX's format, without attributes.
pub fn header(kind: u8, name: &[u8], size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(if kind == b'5' { b"0000755" } else { b"0000644" });
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000001");
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    sum(&mut block);
    block
}

/// Which sort of header is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    V7,
    Ustar,
    Gnu,
    Pax,
}

/// One entry of a generated archive, as it is meant.
#[derive(Clone, Debug)]
pub struct Entry {
    pub format: Format,
    pub kind: u8,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub device: (u32, u32),
    pub data: Vec<u8>,
    pub xattrs: Vec<(&'static str, Vec<u8>)>,
    /// Pieces of data with where they are, of a file with holes of this size.
    pub sparse: Option<(Vec<(u64, u64)>, u64)>,
}

const NAMES: [&str; 22] = [
    "a",
    "b",
    "d",
    "d/a",
    "d/b",
    "d/e",
    "d/e/f",
    "s/x",
    "./a",
    "d//b",
    "d/./a",
    "/a",
    "e/",
    "d/",
    "./",
    " sp ace",
    "-",
    "new\nline",
    "back\\slash",
    "\u{e9}t\u{e9}",
    "x/y/z",
    "a/b",
];

const LINKS: [&str; 14] = [
    "a",
    "b",
    "d/a",
    "d",
    "../a",
    "../../etc/passwd",
    "/etc/passwd",
    "d/e",
    "./a",
    "gone",
    "s",
    ".",
    "d/e/f",
    "d/../b",
];

/// The entries of an archive. Devices are among them where the caller may make them.
pub fn entries(feed: &mut Feed<'_>, devices: bool) -> Vec<Entry> {
    let mut entries = Vec::new();
    while !feed.0.is_empty() && entries.len() < 12 {
        entries.push(entry(feed, devices));
    }
    entries
}

fn entry(feed: &mut Feed<'_>, devices: bool) -> Entry {
    let format = feed.pick(&[Format::Ustar, Format::Gnu, Format::Pax, Format::V7]);
    let kinds: &[u8] = if devices { b"0055212634S7" } else { b"00552126600S7" };
    let mut kind = feed.pick(kinds);
    if format == Format::V7 && matches!(kind, b'3' | b'4' | b'6' | b'7' | b'S')
        || format == Format::Ustar && kind == b'S'
    {
        kind = b'0';
    }
    let name = long(feed.pick(&NAMES).as_bytes(), feed, format);
    let link = match kind {
        b'1' | b'2' => long(feed.pick(&LINKS).as_bytes(), feed, format),
        _ => Vec::new(),
    };
    let data =
        if matches!(kind, b'0' | b'7' | b'S') { feed.bytes(3000).to_vec() } else { Vec::new() };
    let sparse = (kind == b'S').then(|| holes(feed, data.len() as u64));
    let huge = matches!(format, Format::Gnu | Format::Pax);
    let id = |feed: &mut Feed<'_>| match feed.below(4) {
        0 if huge => feed.number() >> 1,
        1 => feed.number() & 0o7_777_777,
        _ => 0,
    };
    let mtime = match feed.below(4) {
        0 if huge => (-i64::from(feed.number() >> 4), 0),
        1 if huge => (i64::from(feed.number()) << 6, 0),
        2 if format == Format::Pax => (i64::from(feed.number()), feed.number() % 1_000_000_000),
        _ => (i64::from(feed.number()), 0),
    };
    let xattrs = match format == Format::Pax && matches!(kind, b'0' | b'5') && feed.below(4) == 0 {
        true => vec![("user.a", feed.bytes(20).to_vec())],
        false => Vec::new(),
    };
    Entry {
        format,
        kind,
        name,
        link,
        mode: feed.number() & 0o7777,
        uid: id(feed),
        gid: id(feed),
        mtime,
        device: (feed.number() & 0xfff, feed.number() & 0xf_ffff),
        data,
        xattrs: xattrs.into_iter().filter(|(_, value)| !value.is_empty()).collect(),
        sparse,
    }
}

/// A name in full, or as the last of some long ones where the format has them.
fn long(name: &[u8], feed: &mut Feed<'_>, format: Format) -> Vec<u8> {
    let length = match feed.below(8) {
        0 => 100 - name.len() - 1,
        1 if format == Format::Ustar => 120,
        2 if matches!(format, Format::Gnu | Format::Pax) => 200,
        3 if matches!(format, Format::Gnu | Format::Pax) => 101 - name.len() - 1,
        _ => return name.to_vec(),
    };
    let name = name.strip_prefix(b"/").unwrap_or(name);
    [&vec![b'n'; length][..], b"/", name].concat()
}

/// Where so many bytes of data lie.
fn holes(feed: &mut Feed<'_>, data: u64) -> (Vec<(u64, u64)>, u64) {
    let (mut pieces, mut at, mut left) = (Vec::new(), 0, data);
    while left > 0 {
        // GNU tar reads each piece from the next block on.
        let length = if pieces.len() > 30 { left } else { 512.min(left) };
        at += 100 * feed.below(20) as u64;
        pieces.push((at, length));
        (at, left) = (at + length, left - length);
    }
    // GNU tar ends a file where its last piece ends, and writes an empty one for a hole at the end.
    let size = at + feed.below(3000) as u64;
    pieces.push((size, 0));
    (pieces, size)
}

/// Writes an archive; `feed` chooses among ways to write the same.
pub fn write(entries: &[Entry], feed: &mut Feed<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        write_entry(entry, feed, &mut out);
    }
    let end = feed.pick(&[2, 20, 1, 0]);
    out.resize(out.len() + end * BLOCK, 0);
    out
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

fn write_entry(entry: &Entry, feed: &mut Feed<'_>, out: &mut Vec<u8>) {
    let mut records: Vec<(String, Vec<u8>)> = Vec::new();
    let (mut data, mut kind) = (entry.data.clone(), entry.kind);
    if entry.format == Format::Pax {
        if let Some(holes) = &entry.sparse {
            kind = b'0';
            sparse_records(&entry.name, holes, feed, &mut records, &mut data);
        }
    }
    let mut block = [0; BLOCK];
    let fits = place_name(entry, &mut block);
    if !fits {
        match entry.format {
            Format::Gnu => {
                extension(b'L', b"././@LongLink", &[&entry.name[..], b"\0"].concat(), out)
            }
            _ => records.push(("path".into(), entry.name.clone())),
        }
    }
    if entry.link.len() > 100 {
        match entry.format {
            Format::Gnu => {
                extension(b'K', b"././@LongLink", &[&entry.link[..], b"\0"].concat(), out)
            }
            _ => records.push(("linkpath".into(), entry.link.clone())),
        }
    }
    let length = entry.link.len().min(100);
    block[157..157 + length].copy_from_slice(&entry.link[..length]);
    block[156] = if kind == b'0' && feed.below(4) == 0 { 0 } else { kind };
    number(&mut block[100..108], i64::from(entry.mode), entry, ("mode", &mut records), feed);
    number(&mut block[108..116], i64::from(entry.uid), entry, ("uid", &mut records), feed);
    number(&mut block[116..124], i64::from(entry.gid), entry, ("gid", &mut records), feed);
    number(&mut block[124..136], data.len() as i64, entry, ("size", &mut records), feed);
    number(&mut block[136..148], entry.mtime.0, entry, ("mtime", &mut records), feed);
    if entry.mtime.1 != 0 {
        records.retain(|(key, _)| key != "mtime");
        records
            .push(("mtime".into(), format!("{}.{:09}", entry.mtime.0, entry.mtime.1).into_bytes()));
    }
    if matches!(entry.kind, b'3' | b'4') {
        number(&mut block[329..337], i64::from(entry.device.0), entry, ("", &mut records), feed);
        number(&mut block[337..345], i64::from(entry.device.1), entry, ("", &mut records), feed);
    }
    match entry.format {
        Format::V7 => {}
        Format::Gnu => block[257..265].copy_from_slice(b"ustar  \0"),
        Format::Ustar | Format::Pax => block[257..265].copy_from_slice(b"ustar\x0000"),
    }
    for (key, value) in &entry.xattrs {
        records.push((format!("SCHILY.xattr.{key}"), value.clone()));
    }
    if !records.is_empty() {
        let text: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        extension(b'x', b"PaxHeaders/x", &text, out);
    }
    let mut more = Vec::new();
    if kind == b'S' {
        if let Some((pieces, size)) = &entry.sparse {
            gnu_map(pieces, *size, &mut block, &mut more);
        }
    }
    sum(&mut block);
    out.extend_from_slice(&block);
    out.extend_from_slice(&more);
    out.extend_from_slice(&data);
    pad(out);
}

/// Writes the name, in two parts where that helps; false where it has to be told elsewhere.
fn place_name(entry: &Entry, block: &mut [u8; BLOCK]) -> bool {
    let name = &entry.name;
    if name.len() > 100 && entry.format == Format::Ustar {
        if let Some(at) =
            (1..name.len()).find(|&at| name[at] == b'/' && name.len() - at - 1 <= 100 && at <= 155)
        {
            block[..name.len() - at - 1].copy_from_slice(&name[at + 1..]);
            block[345..345 + at].copy_from_slice(&name[..at]);
            return true;
        }
    }
    let length = name.len().min(100);
    block[..length].copy_from_slice(&name[..length]);
    name.len() <= 100
}

/// Writes a number in one of the ways that there are.
fn number(
    field: &mut [u8],
    value: i64,
    entry: &Entry,
    (key, records): (&str, &mut Vec<(String, Vec<u8>)>),
    feed: &mut Feed<'_>,
) {
    let digits = field.len() - 1;
    let fits = value >= 0 && value < 1 << (3 * digits);
    let way = feed.below(5);
    if !fits && entry.format == Format::Pax && !key.is_empty() {
        records.push((key.into(), value.to_string().into_bytes()));
        field[..digits].fill(b'0');
        return;
    }
    if !fits || way == 1 && entry.format == Format::Gnu {
        let bytes = i128::from(value).to_be_bytes();
        let from = bytes.len() - field.len();
        field.copy_from_slice(&bytes[from..]);
        field[0] = if value < 0 { 0xff } else { 0x80 };
        return;
    }
    let text = match way {
        2 => format!("{value:>digits$o} "),
        3 => format!("{value:0digits$o} "),
        4 => format!("{:>width$o} \0", value, width = digits - 1),
        _ => format!("{value:0digits$o}\0"),
    };
    match text.len() == field.len() {
        true => field.copy_from_slice(text.as_bytes()),
        false => field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes()),
    }
}

fn extension(kind: u8, name: &[u8], data: &[u8], out: &mut Vec<u8>) {
    let mut block = header(kind, name, data.len() as u64);
    if kind != b'x' {
        block[257..265].copy_from_slice(b"ustar  \0");
        sum(&mut block);
    }
    out.extend_from_slice(&block);
    out.extend_from_slice(data);
    pad(out);
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if rest + length.to_string().len() > length {
        length += 1;
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// The map of a file with holes in GNU's header and the blocks that follow it.
fn gnu_map(pieces: &[(u64, u64)], size: u64, block: &mut [u8; BLOCK], more: &mut Vec<u8>) {
    let octal = |field: &mut [u8], value: u64| {
        field[..11].copy_from_slice(format!("{value:011o}").as_bytes())
    };
    octal(&mut block[483..495], size);
    let mut rest = pieces.iter();
    for (at, (from, length)) in rest.by_ref().take(4).enumerate() {
        octal(&mut block[386 + 24 * at..], *from);
        octal(&mut block[398 + 24 * at..], *length);
    }
    let rest = rest.as_slice();
    block[482] = u8::from(!rest.is_empty());
    for (number, chunk) in rest.chunks(21).enumerate() {
        let mut next = [0; BLOCK];
        for (at, (from, length)) in chunk.iter().enumerate() {
            octal(&mut next[24 * at..], *from);
            octal(&mut next[24 * at + 12..], *length);
        }
        next[504] = u8::from((number + 1) * 21 < rest.len());
        more.extend_from_slice(&next);
    }
}

/// The map in PAX records of one of three versions.
fn sparse_records(
    name: &[u8],
    (pieces, size): &(Vec<(u64, u64)>, u64),
    feed: &mut Feed<'_>,
    records: &mut Vec<(String, Vec<u8>)>,
    data: &mut Vec<u8>,
) {
    let mut say = |key: &str, value: Vec<u8>| records.push((format!("GNU.sparse.{key}"), value));
    let text = |number: u64| number.to_string().into_bytes();
    match feed.below(3) {
        0 => {
            say("size", text(*size));
            say("numblocks", text(pieces.len() as u64));
            for (from, length) in pieces {
                say("offset", text(*from));
                say("numbytes", text(*length));
            }
        }
        1 => {
            say("size", text(*size));
            say("numblocks", text(pieces.len() as u64));
            let map: Vec<String> =
                pieces.iter().map(|(from, length)| format!("{from},{length}")).collect();
            say("map", map.join(",").into_bytes());
        }
        _ => {
            say("major", text(1));
            say("minor", text(0));
            say("name", name.to_vec());
            say("realsize", text(*size));
            let mut map = format!("{}\n", pieces.len());
            for (from, length) in pieces {
                map.push_str(&format!("{from}\n{length}\n"));
            }
            let mut front = map.into_bytes();
            pad(&mut front);
            front.append(data);
            *data = front;
        }
    }
}
