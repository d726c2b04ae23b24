//! The grammar of a `-o` list: items, values, escapes.
//!
//! Items are separated by commas; a comma inside double quotes or after a backslash
//! separates nothing. A quote that is never closed is an ordinary character.
//! Quotes around a whole value are dropped, then a backslash stands for the character
//! after it (kernel overlay document, libfuse).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::str::FromStr;

use super::{IdMap, OptionError};

pub(super) type Result<T> = std::result::Result<T, OptionError>;

/// Cuts a list at its separating commas.
pub(super) fn split(list: &[u8]) -> Vec<&[u8]> {
    let mut items = Vec::new();
    let mut rest = list;
    loop {
        let end = end_of_item(rest);
        let (item, after) = rest.split_at(end);
        items.push(item);
        match after.split_first() {
            Some((_, tail)) => rest = tail,
            None => return items,
        }
    }
}

/// Index of the first separating comma, or the length.
fn end_of_item(text: &[u8]) -> usize {
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b',' => return at,
            b'\\' => at += 2,
            b'"' => at = closing_quote(text, at).unwrap_or(at) + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// Index of the quote that closes the one at `open`.
fn closing_quote(text: &[u8], open: usize) -> Option<usize> {
    let mut at = open + 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    None
}

/// Drops quotes that stand around the whole value.
pub(super) fn unquote(value: &[u8]) -> &[u8] {
    let quoted =
        value.first() == Some(&b'"') && closing_quote(value, 0) == value.len().checked_sub(1);
    let inside = value.len().checked_sub(1).and_then(|end| value.get(1..end));
    inside.filter(|_| quoted).unwrap_or(value)
}

/// A backslash stands for the character after it; at the end, for itself.
pub(super) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        let escaped = if *byte == b'\\' { bytes.next() } else { None };
        plain.push(*escaped.unwrap_or(byte));
    }
    plain
}

/// One `name` or `name=value`.
pub(super) struct Item<'a> {
    pub(super) name: String,
    pub(super) value: Option<&'a [u8]>,
    pub(super) text: &'a [u8],
}

impl<'a> Item<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        let mut halves = text.splitn(2, |byte| *byte == b'=');
        let name = String::from_utf8_lossy(halves.next().unwrap_or_default()).into_owned();
        Item { name, value: halves.next(), text }
    }

    pub(super) fn error(&self, why: impl Into<String>) -> OptionError {
        OptionError::new(self.name.as_str(), why)
    }

    /// The error for a value that is not what was expected.
    pub(super) fn bad(&self, expected: &str) -> OptionError {
        match self.value {
            Some(value) => {
                let value = String::from_utf8_lossy(value);
                self.error(format!("bad value '{}'; expected {expected}", value.escape_debug()))
            }
            None => self.error(format!("needs a value; expected {expected}")),
        }
    }

    pub(super) fn bytes(&self, expected: &str) -> Result<&'a [u8]> {
        match self.value.map(unquote) {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(self.bad(expected)),
        }
    }

    pub(super) fn path(&self) -> Result<PathBuf> {
        Ok(path(unescape(self.bytes("a directory")?)))
    }

    pub(super) fn string(&self) -> Result<String> {
        let bytes = unescape(self.bytes("text")?);
        String::from_utf8(bytes).map_err(|_| self.bad("UTF-8 text"))
    }

    pub(super) fn number<T: FromStr>(&self, expected: &str) -> Result<T> {
        let text = std::str::from_utf8(self.bytes(expected)?).map_err(|_| self.bad(expected))?;
        text.parse().map_err(|_| self.bad(expected))
    }

    /// A number with a binary suffix; 0 is no limit (tmpfs(5)).
    pub(super) fn limit(&self) -> Result<Option<u64>> {
        let expected = "a number, with k, m, g or t";
        let text = std::str::from_utf8(self.bytes(expected)?).map_err(|_| self.bad(expected))?;
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
            "" => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            _ => return Err(self.bad(expected)),
        };
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.parse::<u64>().ok().filter(|_| plain);
        let number = number.and_then(|number| number.checked_mul(1 << shift));
        number.map(|number| (number > 0).then_some(number)).ok_or_else(|| self.bad(expected))
    }

    /// An id that can own a file; 4294967295 is the kernel's "no id".
    pub(super) fn id(&self) -> Result<u32> {
        let expected = "an id from 0 to 4294967294";
        let id = self.number(expected)?;
        if id == u32::MAX { Err(self.bad(expected)) } else { Ok(id) }
    }

    /// A truth value: fuse-overlayfs writes integers, the kernel words.
    pub(super) fn truth(&self) -> Result<bool> {
        match self.bytes("0 or 1")? {
            b"on" => Ok(true),
            b"off" => Ok(false),
            _ => Ok(self.number::<i64>("0 or 1")? != 0),
        }
    }

    /// An option that is true by being there; a value may still say otherwise.
    pub(super) fn flag(&self) -> Result<bool> {
        if self.value.is_none() { Ok(true) } else { self.truth() }
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Result<T> {
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        let expected = names.join(", ");
        let value = self.bytes(&expected)?;
        let found = words.iter().find(|(name, _)| name.as_bytes() == value);
        found.map(|(_, word)| *word).ok_or_else(|| self.bad(&expected))
    }

    pub(super) fn map(&self) -> Result<IdMap> {
        let text = self.value.and_then(|value| std::str::from_utf8(unquote(value)).ok());
        let text = text.ok_or_else(|| self.bad("on-disk:presented:length triples"))?;
        let with_reason =
            |why| self.error(format!("{why}; expected on-disk:presented:length triples"));
        IdMap::parse(text).map_err(with_reason)
    }
}

pub(super) fn path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}
