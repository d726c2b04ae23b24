//! Writing the record while the archive is applied.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Seek, Write};

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;

use super::crc64::Crc64;
use super::late::Late;
use super::{BYTES, FILE, Line, PIECE, SEGMENT, base64, clean};
use crate::error::{Context, Result};

/// Where the data of an entry will be found.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    /// In the file of this name.
    File(&'a [u8]),
    /// Nowhere but in the record.
    Record,
}

/// Collects the record in a file without a name; only a record that is complete is given out.
pub(crate) struct Recorder {
    out: GzEncoder<BufWriter<File>>,
    position: u64,
    /// Bytes for the next segment.
    pub(crate) raw: Vec<u8>,
    late: Late,
    crc: Crc64,
}

impl Recorder {
    /// Starts with two files to keep things in.
    pub(crate) fn new(record: File, late: File) -> Recorder {
        Recorder {
            out: GzEncoder::new(BufWriter::new(record), Compression::fast()),
            position: 0,
            raw: Vec::new(),
            late: Late::new(late),
            crc: Crc64::new(),
        }
    }

    /// Notes an entry that has no data, as tar-split does.
    pub(crate) fn entry(&mut self, name: &[u8]) -> Result<()> {
        self.flush()?;
        let mut line = Line { kind: FILE, ..Line::default() };
        line.set_name(name);
        self.line(line)
    }

    /// Takes in some data of an entry.
    pub(crate) fn data(&mut self, source: Source<'_>, bytes: &[u8]) -> Result<()> {
        match source {
            Source::File(_) => self.crc.update(bytes),
            Source::Record => {
                self.raw.extend_from_slice(bytes);
                if self.raw.len() >= SEGMENT {
                    self.flush()?;
                }
            }
        }
        Ok(())
    }

    /// Ends data that began before the calls of [`Recorder::data`]: all of a file, or the piece at `offset`
    /// of one with holes.
    pub(crate) fn end(&mut self, source: Source<'_>, size: u64, offset: Option<u64>) -> Result<()> {
        let Source::File(name) = source else { return Ok(()) };
        let crc = std::mem::replace(&mut self.crc, Crc64::new());
        self.flush()?;
        let mut line = Line {
            kind: if offset.is_some() { PIECE } else { FILE },
            size,
            payload: Some(base64::encode(&crc.bytes())),
            offset: offset.unwrap_or(0),
            ..Line::default()
        };
        line.set_name(name);
        self.line(line)
    }

    /// Keeps the data of a file that is about to go.
    pub(crate) fn replaced(&mut self, path: &[u8], file: &File) -> io::Result<()> {
        self.late.keep(path, self.position, file)
    }

    /// Writes what was collected as segments.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let raw = std::mem::take(&mut self.raw);
        for bytes in raw.chunks(SEGMENT) {
            self.line(segment(bytes))?;
        }
        self.raw = raw;
        self.raw.clear();
        Ok(())
    }

    fn line(&mut self, line: Line) -> Result<()> {
        write_line(&mut self.out, line, &mut self.position)
    }

    /// Gives the record out.
    pub(crate) fn finish(mut self, out: &mut dyn Write) -> Result<()> {
        self.flush()?;
        let record = self.out.finish().and_then(|file| Ok(file.into_inner()?));
        let mut record = record.on("write", "the tar-split record")?;
        record.rewind().on("read", "the tar-split record")?;
        if self.late.is_empty() {
            io::copy(&mut record, out).on("write", "the tar-split record")?;
            return Ok(());
        }
        rewrite(record, &self.late, out)
    }
}

fn segment(bytes: &[u8]) -> Line {
    Line { kind: BYTES, payload: Some(base64::encode(bytes)), ..Line::default() }
}

fn write_line(out: &mut impl Write, mut line: Line, position: &mut u64) -> Result<()> {
    line.position = *position;
    *position += 1;
    let mut text = serde_json::to_vec(&line).map_err(io::Error::other).on("make", "a record")?;
    text.push(b'\n');
    out.write_all(&text).on("write", "the tar-split record")
}

/// Copies a record; data of files that went becomes part of it.
fn rewrite(record: File, late: &Late, out: &mut dyn Write) -> Result<()> {
    let mut out = GzEncoder::new(out, Compression::fast());
    let mut position = 0;
    let mut lines = super::assemble::Lines::new(GzDecoder::new(BufReader::new(record)));
    while let Some(line) = lines.next()? {
        let gone = match line.kind {
            BYTES => None,
            _ => line.name().and_then(|name| late.find(&clean(&name).join(&b'/'), line.position)),
        };
        let Some((offset, length)) = gone.filter(|_| line.size > 0) else {
            write_line(&mut out, line, &mut position)?;
            continue;
        };
        let (mut at, end) = (line.offset, line.offset.saturating_add(line.size).min(length));
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(SEGMENT).min(SEGMENT);
            let mut bytes = vec![0; most];
            late.read(&mut bytes, offset + at).on("read", "data of a replaced file")?;
            write_line(&mut out, segment(&bytes), &mut position)?;
            at += u64::try_from(most).unwrap_or(0);
        }
    }
    out.finish().on("write", "the tar-split record")?;
    Ok(())
}
