//! Writing the record while the archive is applied.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Seek, Write};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;

use super::crc64::Crc64;
use super::late::Late;
use super::{BYTES, FILE, Line, PIECE, SEGMENT, base64, clean};
use crate::error::{Context, Result};

/// What messages call it.
const RECORD: &str = "the tar-split record";
/// Notes, or bytes in them, that are handed to the thread at once, and how many times as much may wait for it.
const NOTES: usize = 256;
const BUFFER: usize = 64 * 1024;
const WAITING: usize = 4;

/// Where the data of an entry will be found.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    /// In the file of this name.
    File(&'a [u8]),
    /// Nowhere but in the record.
    Record,
}

/// A line before it is text.
struct Note {
    kind: u8,
    name: Vec<u8>,
    size: u64,
    /// A sum or a segment; nothing for an entry without data.
    payload: Option<Vec<u8>>,
    offset: u64,
}

/// The thread, which returns the file that it has written.
type Writing = JoinHandle<io::Result<File>>;

/// Collects the record in a file without a name; only a record that is complete is given out. A thread of its own makes text
/// of it and packs it.
pub(crate) struct Recorder {
    notes: Vec<Note>,
    /// Bytes in them.
    size: usize,
    /// Lines so far.
    position: u64,
    writer: Option<(SyncSender<Vec<Note>>, Writing)>,
    /// Bytes for the next segment.
    pub(crate) raw: Vec<u8>,
    late: Late,
    crc: Crc64,
}

impl Recorder {
    /// Starts with two files to keep things in.
    pub(crate) fn new(record: File, late: File) -> Result<Recorder> {
        let (to, notes) = sync_channel::<Vec<Note>>(WAITING);
        let thread = std::thread::Builder::new().name("plyfs-record".into());
        let write = move || {
            let out = BufWriter::with_capacity(BUFFER, record);
            let (mut out, mut position) = (GzEncoder::new(out, Compression::fast()), 0);
            for note in notes.into_iter().flatten() {
                write_line(&mut out, note.line(), &mut position)?;
            }
            Ok(out.finish()?.into_inner()?)
        };
        let writer = Some((to, thread.spawn(write).on("start", "a thread")?));
        let (notes, crc) = (Vec::new(), Crc64::new());
        Ok(Recorder {
            notes,
            size: 0,
            position: 0,
            writer,
            raw: Vec::new(),
            late: Late::new(late),
            crc,
        })
    }

    /// Notes an entry that has no data, as tar-split does.
    pub(crate) fn entry(&mut self, name: &[u8]) -> Result<()> {
        self.flush()?;
        self.note(Note { kind: FILE, name: name.to_vec(), size: 0, payload: None, offset: 0 })
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
        let kind = if offset.is_some() { PIECE } else { FILE };
        let (payload, offset) = (Some(crc.bytes().to_vec()), offset.unwrap_or(0));
        self.note(Note { kind, name: name.to_vec(), size, payload, offset })
    }

    /// Keeps the data of a file that is about to go.
    pub(crate) fn replaced(&mut self, path: &[u8], file: &File) -> io::Result<()> {
        self.late.keep(path, self.position, file)
    }

    /// Notes what was collected as segments.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let raw = std::mem::take(&mut self.raw);
        for bytes in raw.chunks(SEGMENT) {
            self.note(segment(bytes))?;
        }
        self.raw = raw;
        self.raw.clear();
        Ok(())
    }

    fn note(&mut self, note: Note) -> Result<()> {
        self.position += 1;
        self.size += note.payload.as_ref().map_or(0, Vec::len);
        self.notes.push(note);
        match self.notes.len() >= NOTES || self.size >= BUFFER {
            true => self.hand_over(),
            false => Ok(()),
        }
    }

    /// Gives the notes to the thread.
    fn hand_over(&mut self) -> Result<()> {
        self.size = 0;
        let notes = std::mem::take(&mut self.notes);
        match &self.writer {
            Some((to, _)) if to.send(notes).is_ok() => Ok(()),
            // It has ended, which it does after an error only.
            _ => self.written().map(drop),
        }
    }

    /// The record as the thread has left it.
    fn written(&mut self) -> Result<File> {
        let gone = || io::Error::other("the thread that writes it is gone");
        let Some((to, thread)) = self.writer.take() else { return Err(gone()).on("write", RECORD) };
        drop(to);
        thread.join().unwrap_or_else(|_| Err(gone())).on("write", RECORD)
    }

    /// Gives the record out.
    pub(crate) fn finish(mut self, out: &mut dyn Write) -> Result<()> {
        self.flush()?;
        self.hand_over()?;
        let mut record = self.written()?;
        record.rewind().on("read", RECORD)?;
        if self.late.is_empty() {
            io::copy(&mut record, out).on("write", RECORD)?;
            return Ok(());
        }
        rewrite(record, &self.late, out)
    }
}

impl Drop for Recorder {
    /// Nothing of it is at work any more.
    fn drop(&mut self) {
        if self.writer.is_some() {
            if let Err(error) = self.written() {
                log::debug!("{error}");
            }
        }
    }
}

impl Note {
    fn line(self) -> Line {
        let payload = self.payload.map(|bytes| base64::encode(&bytes));
        let (kind, size, offset) = (self.kind, self.size, self.offset);
        let mut line = Line { kind, size, payload, offset, ..Line::default() };
        line.set_name(&self.name);
        line
    }
}

fn segment(bytes: &[u8]) -> Note {
    Note { kind: BYTES, name: Vec::new(), size: 0, payload: Some(bytes.to_vec()), offset: 0 }
}

fn write_line(out: &mut impl Write, mut line: Line, position: &mut u64) -> io::Result<()> {
    line.position = *position;
    *position += 1;
    let mut text = serde_json::to_vec(&line).map_err(io::Error::other)?;
    text.push(b'\n');
    out.write_all(&text)
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
            write_line(&mut out, line, &mut position).on("write", RECORD)?;
            continue;
        };
        let (mut at, end) = (line.offset, line.offset.saturating_add(line.size).min(length));
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(SEGMENT).min(SEGMENT);
            let mut bytes = vec![0; most];
            late.read(&mut bytes, offset + at).on("read", "data of a replaced file")?;
            write_line(&mut out, segment(&bytes).line(), &mut position).on("write", RECORD)?;
            at += u64::try_from(most).unwrap_or(0);
        }
    }
    out.finish().on("write", RECORD)?;
    Ok(())
}
