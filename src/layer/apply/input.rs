//! The bytes of the archive: unpacked, counted and hashed.
//!
//! Hashing is done by a second thread. A buffer goes to it once it is read to its end and comes back to be
//! filled again, so nothing is copied for it and there are only a few of them.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use sha2::{Digest, Sha256};

use super::{BLOCK, Limits, header};
use crate::error::{Context, Error, Result};
use crate::layer::compression::{self, Packing, Unpacked};

/// Bytes of a buffer of the archive, and of one of what it is packed in.
const BUFFER: usize = 256 * 1024;
const PACKED: usize = 64 * 1024;
/// Buffers that may wait for the other thread.
const WAITING: usize = 3;
/// A ratio says nothing about less than this.
const RATIO_FROM: u64 = 1024 * 1024;
/// What the library says of a frame whose window is too large.
const TOO_LARGE: &str = "requires too much memory";

enum Piece {
    /// A buffer, and how many bytes of it are the archive's.
    Archive(Vec<u8>, usize),
    Packed(Vec<u8>),
}

/// Both digests, in lower-case hexadecimal.
struct Digests {
    archive: String,
    packed: Option<String>,
}

/// The end of the other thread: buffers go there and come back.
struct Desk {
    pieces: SyncSender<Piece>,
    archive: Receiver<Vec<u8>>,
    packed: Receiver<Vec<u8>>,
}

/// Reads what the archive is packed in.
struct Tap<'a> {
    inner: &'a mut dyn Read,
    buffer: Vec<u8>,
    start: usize,
    count: u64,
    /// Hand what was read to the other thread.
    desk: Option<(SyncSender<Piece>, Receiver<Vec<u8>>)>,
    /// What the reader said, so that it is told from a fault of the archive.
    failed: Option<io::Error>,
}

/// The archive.
pub(super) struct Input<'a> {
    source: Unpacked<Tap<'a>>,
    packing: Packing,
    /// As long as it ever was, so that nothing has to be cleared.
    buffer: Vec<u8>,
    at: usize,
    end: usize,
    /// Bytes before the buffer.
    before: u64,
    ratio: u64,
    window: u64,
    desk: (SyncSender<Piece>, Receiver<Vec<u8>>),
}

/// What is known of an archive that was read to its end.
pub(super) struct End<'scope> {
    hasher: ScopedJoinHandle<'scope, Digests>,
}

impl<'a> Input<'a> {
    /// Looks at the first bytes and starts the other thread.
    pub(super) fn open<'scope>(
        archive: &'a mut dyn Read,
        limits: &Limits,
        scope: &'scope Scope<'scope, '_>,
    ) -> Result<(Input<'a>, End<'scope>)> {
        let mut first = Vec::with_capacity(PACKED);
        let wanted = u64::try_from(BLOCK).unwrap_or(0);
        archive.take(wanted).read_to_end(&mut first).on("read", "the archive")?;
        let packing = match compression::detect(&first) {
            Ok(packing) => packing,
            // The first name of an archive may begin with any bytes, as LZIP.txt does.
            Err(_) if header::is_header(&first) => Packing::None,
            Err(name) => {
                return Err(Error::unsupported(
                    format!("an archive packed with {name}"),
                    "only gzip and zstd are read",
                ));
            }
        };
        let (desk, hasher) = start(scope, packing)?;
        let tap = Tap {
            inner: archive,
            buffer: first,
            start: 0,
            count: 0,
            desk: (packing != Packing::None).then(|| (desk.pieces.clone(), desk.packed)),
            failed: None,
        };
        let source = Unpacked::new(tap, packing, limits.window).on("unpack", "the archive")?;
        let input = Input {
            source,
            packing,
            buffer: Vec::new(),
            at: 0,
            end: 0,
            before: 0,
            ratio: limits.ratio,
            window: limits.window,
            desk: (desk.pieces, desk.archive),
        };
        Ok((input, End { hasher }))
    }

    /// Bytes read so far.
    pub(super) fn offset(&self) -> u64 {
        self.before.saturating_add(u64::try_from(self.at).unwrap_or(u64::MAX))
    }

    /// The next block; `None` where the archive ends before it.
    pub(super) fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let part = self.available()?;
            let length = part.len().min(BLOCK - filled);
            block[filled..filled + length].copy_from_slice(&part[..length]);
            match (length, filled) {
                (0, 0) => return Ok(None),
                (0, _) => return Err(self.truncated()),
                _ => {}
            }
            self.consume(length);
            filled += length;
        }
        Ok(Some(block))
    }

    /// Some of the next `most` bytes, at least one; they have to be there.
    pub(super) fn part(&mut self, most: u64) -> Result<&[u8]> {
        if self.available()?.is_empty() {
            return Err(self.truncated());
        }
        let rest = &self.buffer[self.at..self.end];
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(rest.len());
        Ok(&rest[..most])
    }

    /// Goes on behind bytes that were looked at.
    pub(super) fn consume(&mut self, length: usize) {
        self.at = self.at.saturating_add(length).min(self.end);
    }

    /// What is in the buffer; empty at the end.
    pub(super) fn available(&mut self) -> Result<&[u8]> {
        if self.at == self.end {
            self.fill()?;
        }
        Ok(&self.buffer[self.at..self.end])
    }

    /// The digests, `sha256:` in front: of the archive, and of it as it came. It has to be at its end.
    pub(super) fn finish(self, end: End<'_>) -> Result<(String, String)> {
        drop(self);
        let digests =
            end.hasher.join().map_err(|_| Error::invalid("the archive", "could not be hashed"))?;
        let archive = format!("sha256:{}", digests.archive);
        let packed = digests.packed.map(|packed| format!("sha256:{packed}"));
        Ok((archive.clone(), packed.unwrap_or(archive)))
    }

    fn fill(&mut self) -> Result<()> {
        self.before = self.offset();
        self.at = 0;
        if self.end > 0 {
            let full = Piece::Archive(std::mem::take(&mut self.buffer), self.end);
            self.buffer = exchange(&self.desk, full);
        }
        self.buffer.resize(BUFFER, 0);
        let mut filled = 0;
        let done = loop {
            match self.source.read(&mut self.buffer[filled..]) {
                Ok(0) => break Ok(()),
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
            // A reader that gives little at a time is waited for, within reason.
            if filled >= BUFFER / 2 {
                break Ok(());
            }
        };
        self.end = filled;
        done.map_err(|error| self.fault(error))?;
        self.check_ratio(filled)
    }

    fn check_ratio(&mut self, filled: usize) -> Result<()> {
        let out = self.before.saturating_add(u64::try_from(filled).unwrap_or(0));
        let ratio = self.ratio;
        let packed = self.source.get_mut().map_or(0, |tap| tap.count).max(1);
        if self.packing != Packing::None && out > RATIO_FROM && out / packed > ratio {
            let why = format!("unpacks to more than {ratio} times its size, the limit 'ratio'");
            return Err(Error::invalid("the archive", why));
        }
        Ok(())
    }

    /// The reader's fault or that of the archive.
    fn fault(&mut self, error: io::Error) -> Error {
        if let Some(failed) = self.source.get_mut().and_then(|tap| tap.failed.take()) {
            return Error::io("read", "the archive", failed);
        }
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return self.truncated();
        }
        if error.to_string().contains(TOO_LARGE) {
            let why =
                format!("wants more than {} bytes of memory, the limit 'window'", self.window);
            return Error::invalid("the archive", why);
        }
        let name = if self.packing == Packing::Gzip { "gzip" } else { "zstd" };
        Error::invalid("the archive", format!("is no valid {name}: {error}"))
    }

    fn truncated(&self) -> Error {
        Error::invalid("the archive", "is cut off: it ends where more has to follow")
    }
}

/// Hands a buffer over and takes an empty one.
fn exchange(desk: &(SyncSender<Piece>, Receiver<Vec<u8>>), piece: Piece) -> Vec<u8> {
    if desk.0.send(piece).is_err() {
        log::debug!("the thread that hashes is gone");
    }
    desk.1.try_recv().unwrap_or_default()
}

fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    packing: Packing,
) -> Result<(Desk, ScopedJoinHandle<'scope, Digests>)> {
    let (pieces, taken) = sync_channel(WAITING);
    let (give_archive, archive) = sync_channel(WAITING + 2);
    let (give_packed, packed) = sync_channel(WAITING + 2);
    let work = move || {
        let (mut whole, mut outer) = (Sha256::new(), Sha256::new());
        for piece in taken {
            let (give, buffer) = match piece {
                Piece::Archive(buffer, length) => {
                    whole.update(&buffer[..length]);
                    (&give_archive, buffer)
                }
                Piece::Packed(buffer) => {
                    outer.update(&buffer);
                    (&give_packed, buffer)
                }
            };
            // Nobody waits for it: one too many is let go.
            drop(give.try_send(buffer));
        }
        let packed = (packing != Packing::None).then(|| hex(&outer.finalize()));
        Digests { archive: hex(&whole.finalize()), packed }
    };
    let builder = std::thread::Builder::new().name("plyfs-hash".into());
    let hasher = builder.spawn_scoped(scope, work).on("start", "a thread")?;
    Ok((Desk { pieces, archive, packed }, hasher))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Tap<'_> {
    fn pull(&mut self, direct: Option<&mut [u8]>) -> io::Result<usize> {
        let to = match direct {
            Some(buffer) => buffer,
            None => {
                self.start = 0;
                self.buffer.resize(PACKED, 0);
                &mut self.buffer
            }
        };
        loop {
            match self.inner.read(to) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(got) => return Ok(got),
                Err(error) => {
                    let kind = error.kind();
                    self.failed = Some(error);
                    return Err(kind.into());
                }
            }
        }
    }
}

impl BufRead for Tap<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.buffer.len() {
            if let Some(desk) = self.desk.as_ref().filter(|_| !self.buffer.is_empty()) {
                let full = std::mem::take(&mut self.buffer);
                self.buffer = exchange(desk, Piece::Packed(full));
            }
            let got = self.pull(None);
            self.buffer.truncate(*got.as_ref().unwrap_or(&0));
            got?;
        }
        Ok(&self.buffer[self.start..])
    }

    fn consume(&mut self, length: usize) {
        self.start = self.start.saturating_add(length).min(self.buffer.len());
        self.count = self.count.saturating_add(u64::try_from(length).unwrap_or(0));
    }
}

impl Read for Tap<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // What needs no hash of its own goes straight to its place.
        if self.start == self.buffer.len() && self.desk.is_none() {
            return self.pull(Some(buffer));
        }
        let held = self.fill_buf()?;
        let length = held.len().min(buffer.len());
        buffer[..length].copy_from_slice(&held[..length]);
        self.consume(length);
        Ok(length)
    }
}
