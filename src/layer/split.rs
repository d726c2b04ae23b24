//! The record that gives an applied archive back, byte for byte: everything of it that is not in the files.
//!
//! The format is that of github.com/vbatts/tar-split, which moby and podman read: lines of JSON, packed with
//! gzip, each with a `position` counted from 0. Type 2 is a *segment*, bytes of the archive as they are; type 1
//! a *file*, whose data belongs there: its `name` (`name_raw` in base64 where it is no UTF-8), `size`, and in
//! `payload` the CRC-64 (ISO) of the data.
//!
//! tar-split refuses some archives; their bytes are kept all the same. Data that is in no file afterwards (of
//! whiteouts, of files that a later entry replaces) is written as segments, which tar-split's reader puts together
//! too. A file with holes has a line of type 3 for each piece of data, with its `offset` in the file: our own,
//! which other readers do not know.

mod assemble;
pub(crate) mod base64;
mod crc64;
mod late;
mod record;

use serde::{Deserialize, Serialize};

pub use assemble::{Difference, assemble, check};
pub(crate) use record::{Recorder, Source};

/// Bytes of a segment at most, as tar-split has it.
const SEGMENT: usize = 1024 * 1024;
/// Bytes of a line at most: a segment in base64, with room for those of other writers.
const LINE: u64 = 16 * 1024 * 1024;

const FILE: u8 = 1;
const BYTES: u8 = 2;
const PIECE: u8 = 3;

/// One line.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name_raw: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    size: u64,
    payload: Option<String>,
    position: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    offset: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Line {
    fn set_name(&mut self, name: &[u8]) {
        match std::str::from_utf8(name) {
            Ok(name) => name.clone_into(&mut self.name),
            Err(_) => self.name_raw = base64::encode(name),
        }
    }

    /// The name; `None` when it cannot be read.
    fn name(&self) -> Option<Vec<u8>> {
        match self.name_raw.is_empty() {
            true => Some(self.name.clone().into_bytes()),
            false => base64::decode(self.name_raw.as_bytes()),
        }
    }

    /// The payload; empty where there is none, `None` when it cannot be read.
    fn payload(&self) -> Option<Vec<u8>> {
        base64::decode(self.payload.as_deref().unwrap_or_default().as_bytes())
    }
}

/// A name in an archive as a path below the root: without empty names and `.`, with `..` taken back as far as
/// the root.
pub(crate) fn clean(name: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_by_the_root() {
        for (name, path) in [
            ("./a/b/", "a/b"),
            ("/a", "a"),
            ("../../a", "a"),
            ("a/../../b", "b"),
            ("a//./b", "a/b"),
            ("..", ""),
            ("", ""),
        ] {
            assert_eq!(clean(name.as_bytes()).join(&b'/'), path.as_bytes(), "{name}");
        }
    }

    #[test]
    fn lines_are_those_of_tar_split() {
        let mut line = Line { kind: FILE, size: 5, position: 1, ..Line::default() };
        line.set_name(b"a");
        line.payload = Some("AAAAAAAAAAA=".into());
        let text = serde_json::to_string(&line).unwrap();
        let known = r#"{"type":1,"name":"a","size":5,"payload":"AAAAAAAAAAA=","position":1}"#;
        assert_eq!(text, known);
        line.set_name(b"\xff");
        assert_eq!(line.name_raw, "/w==");
        let empty = r#"{"type":1,"name":"d/","payload":null,"position":3}"#;
        assert_eq!(serde_json::from_str::<Line>(empty).unwrap().payload(), Some(Vec::new()));
    }
}
