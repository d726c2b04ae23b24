//! What the inner processes tell the caller: frames in one unnamed file that all of them share.
//!
//! A frame is a kind, a length and that many bytes. Writers take turns (a process writes while those
//! it started have ended or wait), so frames never mix.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::error::{Context, Error, Result};
use crate::layer::changes::{Change, ChangeKind};
use crate::mount::serve::{decode, encode};
use crate::sys;

const KINDS: [(ChangeKind, u8); 3] =
    [(ChangeKind::Added, b'A'), (ChangeKind::Modified, b'C'), (ChangeKind::Deleted, b'D')];
const WARNING: u8 = b'W';
const FAILURE: u8 = b'F';

/// One thing to tell.
#[derive(Debug)]
pub(super) enum Note {
    /// Something the command changed.
    Change(Change),
    /// Something the user should know.
    Warning(String),
    /// What went wrong.
    Failure(Error),
}

/// The file of notes.
#[derive(Debug)]
pub(super) struct Notes(File);

impl Notes {
    pub(super) fn create() -> Result<Notes> {
        Ok(Notes(sys::memory_file().on("memfd_create", "")?))
    }

    /// Adds notes. There is nobody else to tell when that fails, so it is logged.
    pub(super) fn write(&self, notes: &[Note]) {
        let frames: Vec<u8> = notes.iter().flat_map(frame).collect();
        if let Err(error) = (&self.0).write_all(&frames) {
            log::warn!("write a note: {error}");
        }
    }

    /// All notes so far, in order.
    pub(super) fn read(&self) -> Result<Vec<Note>> {
        let mut bytes = Vec::new();
        (&self.0).rewind().on("read", "notes")?;
        (&self.0).read_to_end(&mut bytes).on("read", "notes")?;
        Ok(parse(&bytes))
    }
}

fn frame(note: &Note) -> Vec<u8> {
    let (kind, body) = match note {
        Note::Change(change) => (letter(change.kind), change.path.as_os_str().as_bytes().to_vec()),
        Note::Warning(text) => (WARNING, text.clone().into_bytes()),
        Note::Failure(error) => (FAILURE, encode(error)),
    };
    let mut frame = vec![kind];
    frame.extend_from_slice(&body.len().to_le_bytes());
    frame.extend_from_slice(&body);
    frame
}

fn letter(kind: ChangeKind) -> u8 {
    KINDS.iter().find(|(known, _)| *known == kind).map_or(b'C', |(_, letter)| *letter)
}

/// The whole frames; a torn one at the end (its writer was killed) is left out.
fn parse(bytes: &[u8]) -> Vec<Note> {
    const LENGTH: usize = size_of::<usize>();
    let mut notes = Vec::new();
    let mut rest = bytes;
    while let Some((kind, tail)) = rest.split_first() {
        let Some((length, tail)) = tail.split_first_chunk::<LENGTH>() else { break };
        let Some((body, tail)) = tail.split_at_checked(usize::from_le_bytes(*length)) else {
            break;
        };
        rest = tail;
        let change = KINDS.iter().find(|(_, letter)| letter == kind);
        notes.push(match (change, *kind) {
            (Some((kind, _)), _) => {
                let path = PathBuf::from(OsString::from_vec(body.to_vec()));
                Note::Change(Change { kind: *kind, path })
            }
            (None, FAILURE) => Note::Failure(decode(body)),
            (None, _) => Note::Warning(String::from_utf8_lossy(body).into_owned()),
        });
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change() -> Note {
        let path = PathBuf::from(OsString::from_vec(b"/a\xff\nb".to_vec()));
        Note::Change(Change { kind: ChangeKind::Deleted, path })
    }

    #[test]
    fn notes_come_back_in_order() {
        let notes = Notes::create().unwrap();
        notes.write(&[change(), Note::Warning("w".into())]);
        notes.write(&[Note::Failure(Error::io("exec", "x", std::io::Error::from_raw_os_error(2)))]);
        let read = notes.read().unwrap();
        let wanted = [change(), Note::Warning("w".into())];
        assert_eq!(format!("{:?}", &read[..2]), format!("{wanted:?}"));
        assert!(matches!(&read[2], Note::Failure(Error::Io { op, .. }) if op == "exec"));
    }

    #[test]
    fn a_torn_note_is_left_out() {
        let mut bytes = frame(&Note::Warning("whole".into()));
        bytes.extend_from_slice(&frame(&change())[..11]);
        assert_eq!(parse(&bytes).len(), 1);
    }
}
