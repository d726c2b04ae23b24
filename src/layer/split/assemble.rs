//! Putting an archive together again from its record and the files.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};

use flate2::bufread::MultiGzDecoder;

use super::crc64::Crc64;
use super::{BYTES, FILE, LINE, Line, PIECE, clean};
use crate::driver::FileGetter;
use crate::error::{Error, Result};
use crate::layer::output::Output;

/// A file that is not what the record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its path below the root of the layer.
    pub path: Vec<u8>,
    /// What is wrong with it.
    pub why: String,
}

/// Writes the archive to `out`. A file that is missing, or whose size or sum is not that of the record, is an
/// error; what was written by then is no archive.
pub fn assemble(record: &mut dyn Read, files: &dyn FileGetter, out: &mut dyn Write) -> Result<()> {
    let mut data = Data { files, open: None, out: Output::new(out) };
    each(record, |line, payload| {
        if line.kind == BYTES {
            return data.out.write(&payload);
        }
        match data.copy(&line, &payload)? {
            None => Ok(()),
            Some(difference) => {
                let what = format!("layer file '{}'", difference.path.escape_ascii());
                Err(Error::Corrupt { what, detail: difference.why })
            }
        }
    })?;
    data.out.finish()
}

/// Lists the files that are not what the record says.
pub fn check(record: &mut dyn Read, files: &dyn FileGetter) -> Result<Vec<Difference>> {
    let mut nothing = std::io::sink();
    let mut data = Data { files, open: None, out: Output::new(&mut nothing) };
    let mut differences: Vec<Difference> = Vec::new();
    each(record, |line, payload| {
        if line.kind == BYTES {
            return Ok(());
        }
        let found = data.copy(&line, &payload)?;
        // A file with holes has many lines.
        let known =
            |found: &Difference| differences.last().is_some_and(|last| last.path == found.path);
        if let Some(found) = found.filter(|found| !known(found)) {
            differences.push(found);
        }
        Ok(())
    })?;
    Ok(differences)
}

/// Calls `f` with every line that stands for bytes.
fn each(record: &mut dyn Read, mut f: impl FnMut(Line, Vec<u8>) -> Result<()>) -> Result<()> {
    let mut lines = Lines::new(MultiGzDecoder::new(BufReader::new(record)));
    while let Some(line) = lines.next()? {
        if line.kind != BYTES && line.size == 0 {
            continue;
        }
        let payload = line.payload().ok_or_else(|| corrupt("a payload is no base64"))?;
        f(line, payload)?;
    }
    Ok(())
}

fn corrupt(detail: impl Into<String>) -> Error {
    Error::Corrupt { what: "tar-split record".into(), detail: detail.into() }
}

/// The lines of a record.
pub(super) struct Lines<R: Read> {
    text: BufReader<R>,
    next: u64,
}

impl<R: Read> Lines<R> {
    pub(super) fn new(text: R) -> Lines<R> {
        Lines { text: BufReader::new(text), next: 0 }
    }

    pub(super) fn next(&mut self) -> Result<Option<Line>> {
        let mut text = Vec::new();
        let mut most = (&mut self.text).take(LINE);
        most.read_until(b'\n', &mut text).map_err(|error| match error.kind() {
            // The words of the decompressor, not of the system.
            ErrorKind::UnexpectedEof | ErrorKind::InvalidData | ErrorKind::InvalidInput => {
                corrupt(error.to_string())
            }
            _ => Error::io("read", "the tar-split record", error),
        })?;
        if text.is_empty() {
            return Ok(None);
        }
        // What is cut off leaves out the end of the archive.
        if text.last() != Some(&b'\n') {
            return Err(corrupt("a line has no end"));
        }
        let line: Line = serde_json::from_slice(&text)
            .map_err(|error| corrupt(format!("line {}: {error}", self.next + 1)))?;
        if line.position != self.next || !matches!(line.kind, FILE | BYTES | PIECE) {
            return Err(corrupt(format!("line {} is not the next one", self.next + 1)));
        }
        self.next += 1;
        Ok(Some(line))
    }
}

/// Reads data of files. A file with holes stays open between its pieces.
struct Data<'a> {
    files: &'a dyn FileGetter,
    open: Option<Open>,
    out: Output<'a>,
}

struct Open {
    path: Vec<u8>,
    file: Box<dyn Read>,
    at: u64,
}

impl Data<'_> {
    /// Hands on the data of a line, and says what is wrong with it.
    fn copy(&mut self, line: &Line, sum: &[u8]) -> Result<Option<Difference>> {
        let name = line.name().ok_or_else(|| corrupt("a name is no base64"))?;
        let path = clean(&name).join(&b'/');
        let differs = |why: String| Ok(Some(Difference { path: path.clone(), why }));
        let mut open = match self
            .open
            .take()
            .filter(|open| line.kind == PIECE && open.path == path && open.at <= line.offset)
        {
            Some(open) => open,
            None => match self.files.open(&path) {
                Ok(file) => Open { path: path.clone(), file, at: 0 },
                Err(error) => return differs(error.to_string()),
            },
        };
        let skip = line.offset - open.at.min(line.offset);
        if let Err(why) = self.stretch(&mut open, skip, None)? {
            return differs(why);
        }
        let mut crc = Crc64::new();
        if let Err(why) = self.stretch(&mut open, line.size, Some(&mut crc))? {
            return differs(why);
        }
        if line.kind == FILE {
            match open.file.read(&mut [0]) {
                Ok(0) => {}
                Ok(_) => return differs(format!("is longer than {} bytes", line.size)),
                Err(error) => return differs(format!("cannot be read: {error}")),
            }
        }
        if crc.bytes() != *sum {
            return differs("has other data than was recorded".into());
        }
        self.open = (line.kind == PIECE).then_some(open);
        Ok(None)
    }

    /// Hands on the next `length` bytes, or goes over them without a sum; the inner error is one of the file.
    fn stretch(
        &mut self,
        open: &mut Open,
        length: u64,
        mut sum: Option<&mut Crc64>,
    ) -> Result<std::result::Result<(), String>> {
        let mut left = length;
        while left > 0 {
            let room = self.out.room(usize::try_from(left).unwrap_or(usize::MAX))?;
            match open.file.read(room) {
                Ok(0) => return Ok(Err(format!("ends {left} bytes too early"))),
                Ok(got) => {
                    if let Some(sum) = &mut sum {
                        sum.update(self.out.added(got));
                    }
                    let got = u64::try_from(got).unwrap_or(left);
                    (left, open.at) = (left - got, open.at + got);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Ok(Err(format!("cannot be read: {error}"))),
            }
        }
        Ok(Ok(()))
    }
}
