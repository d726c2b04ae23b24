//! Files with holes: the maps of GNU tar, in its own format and in PAX records 0.0, 0.1 and 1.0.

use super::BLOCK;
use super::header::{Wrong, number};
use super::pax::decimal;

const BLOCK_SIZE: u64 = 512;

/// Pieces of data in a file, as a bound for memory.
const PIECES: usize = 500_000;
/// Bytes that a map of these many may take in the archive, which are kept for the record.
pub(super) const MAP: usize = 48 * PIECES;
/// Digits of the largest number.
const DIGITS: u32 = 20;

/// Where data lies in a file: from, how much. In order, without overlap, within the size.
pub(super) type Map = Vec<(u64, u64)>;

/// What is left of a map that is being read.
#[derive(Debug, Default)]
pub(super) struct Reading {
    numbers: Vec<u64>,
}

impl Reading {
    /// Takes in the entries of an old GNU header, from a header block or one that follows it, and says
    /// whether another follows.
    pub(super) fn gnu(&mut self, block: &[u8; BLOCK], first: bool) -> Result<bool, Wrong> {
        let (fields, more) =
            if first { (&block[386..482], block[482]) } else { (&block[..504], block[504]) };
        if !first && fields[0] == 0 {
            return Err("has a map of its data that is wrong".into());
        }
        for field in fields.chunks_exact(24) {
            if field[0] == 0 {
                break;
            }
            self.push(number(&field[..12], "offset of data")?)?;
            self.push(number(&field[12..], "length of data")?)?;
        }
        Ok(more != 0)
    }

    /// Takes in one number.
    pub(super) fn push(&mut self, number: u64) -> Result<(), Wrong> {
        self.numbers.push(number);
        match self.numbers.len() <= 2 * PIECES {
            true => Ok(()),
            false => Err(format!("has more than {PIECES} pieces of data")),
        }
    }

    /// The map of a file of this size, of which this much is stored.
    pub(super) fn finish(self, size: u64, stored: u64) -> Result<Map, Wrong> {
        let wrong = || "has a map of its data that is wrong".to_owned();
        let (mut end, mut sum, mut map) = (0_u64, 0_u64, Map::new());
        if self.numbers.len() % 2 != 0 {
            return Err(wrong());
        }
        for pair in self.numbers.chunks_exact(2) {
            let (from, length) = (pair[0], pair[1]);
            let to = from.checked_add(length).filter(|to| *to <= size).ok_or_else(wrong)?;
            if from < end {
                return Err(wrong());
            }
            // GNU tar begins each piece at a block, other readers where the last one ends.
            if length > 0 && sum % BLOCK_SIZE != 0 {
                return Err("has a piece of data that does not begin at a block".into());
            }
            (end, sum) = (to, sum + length);
            if length > 0 {
                map.push((from, length));
            }
        }
        if sum == stored { Ok(map) } else { Err(wrong()) }
    }
}

/// What PAX records say of a file with holes.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) size: u64,
    pub(super) name: Option<Vec<u8>>,
    /// The map, unless it comes with the data.
    pub(super) map: Option<Reading>,
}

/// Reads the records, if there are any.
pub(super) fn records(list: &[(Vec<u8>, Vec<u8>)]) -> Result<Option<Said>, Wrong> {
    if list.is_empty() {
        return Ok(None);
    }
    let wrong =
        |key: &[u8]| format!("has a record 'GNU.sparse.{}' that is wrong", key.escape_ascii());
    let (mut said, mut size, mut map) = (Said::default(), None, Reading::default());
    let (mut version, mut mapped) = ((None, None), false);
    for (key, value) in list {
        let number = || decimal(value).ok_or_else(|| wrong(key));
        match key.as_slice() {
            b"major" => version.0 = Some(number()?),
            b"minor" => version.1 = Some(number()?),
            b"name" if value.contains(&0) || value.is_empty() => return Err(wrong(key)),
            b"name" => said.name = Some(value.clone()),
            b"size" | b"realsize" => size = Some(number()?),
            b"numblocks" => {}
            b"offset" | b"numbytes" => {
                mapped = true;
                map.push(number()?)?;
            }
            b"map" => {
                mapped = true;
                for number in value.split(|&byte| byte == b',').filter(|text| !text.is_empty()) {
                    map.push(decimal(number).ok_or_else(|| wrong(key))?)?;
                }
            }
            _ => return Err(wrong(key)),
        }
    }
    said.size = size.ok_or("has holes and no size")?;
    match (version, mapped) {
        ((Some(1), Some(0)), false) => {}
        ((None, None) | (Some(0), Some(_)), _) => said.map = Some(map),
        _ => return Err("has holes noted in a way that is not known".into()),
    }
    Ok(Some(said))
}

/// The map in front of the data (1.0): lines of numbers, the first says how many pairs follow.
#[derive(Debug, Default)]
pub(super) struct Lines {
    map: Reading,
    left: Option<u64>,
    number: Option<u64>,
    digits: u32,
}

impl Lines {
    /// Takes in a block, and says whether the map goes on.
    pub(super) fn take(&mut self, block: &[u8; BLOCK]) -> Result<bool, Wrong> {
        let wrong = || "has a map of its data that is wrong".to_owned();
        for byte in block {
            match byte {
                b'0'..=b'9' => {
                    let sum = self.number.unwrap_or(0).checked_mul(10).ok_or_else(wrong)?;
                    let sum = sum.checked_add(u64::from(byte - b'0')).ok_or_else(wrong)?;
                    self.number = Some(sum);
                    self.digits += 1;
                    if self.digits > DIGITS {
                        return Err(wrong());
                    }
                }
                b'\n' => {
                    let number = self.number.take().ok_or_else(wrong)?;
                    self.digits = 0;
                    match &mut self.left {
                        None => self.left = Some(number.checked_mul(2).ok_or_else(wrong)?),
                        Some(left) => {
                            *left -= 1;
                            self.map.push(number)?;
                        }
                    }
                    if self.left == Some(0) {
                        return Ok(false);
                    }
                }
                _ => return Err(wrong()),
            }
        }
        Ok(true)
    }

    pub(super) fn map(self) -> Reading {
        self.map
    }
}
