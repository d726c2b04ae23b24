//! Ranges of ids on disk and as presented.
//!
//! A map that exists has no empty range, no range past the last valid id and no id twice
//! on either side, so both directions are functions. The id 4294967295 means "no id" to
//! the kernel and is never in a range.

use std::fmt;

/// One run of consecutive ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdRange {
    /// First id on disk.
    pub on_disk: u32,
    /// First id as presented.
    pub presented: u32,
    /// How many ids.
    pub length: u32,
}

/// A mapping of ids. The empty map is the identity, as when no map is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct IdMap(Vec<IdRange>);

impl IdMap {
    /// Checks the ranges; the text of an error says what is wrong.
    pub fn new(ranges: Vec<IdRange>) -> Result<IdMap, String> {
        for range in &ranges {
            let last =
                |first: u32| first.checked_add(range.length - 1).filter(|last| *last != u32::MAX);
            if range.length == 0 {
                return Err(format!("range '{range}' is empty"));
            }
            if last(range.on_disk).is_none() || last(range.presented).is_none() {
                return Err(format!("range '{range}' goes past the last id 4294967294"));
            }
        }
        overlap(&ranges, |range| range.on_disk, "on disk")?;
        overlap(&ranges, |range| range.presented, "presented")?;
        Ok(IdMap(ranges))
    }

    /// Reads `on-disk:presented:length` triples joined by colons; one leading colon is
    /// skipped because containers/storage writes one. Empty text is the empty map.
    pub fn parse(text: &str) -> Result<IdMap, String> {
        let text = text.strip_prefix(':').unwrap_or(text);
        if text.is_empty() {
            return Ok(IdMap::default());
        }
        let numbers = text.split(':').map(number).collect::<Result<Vec<u32>, String>>()?;
        let mut ranges = Vec::with_capacity(numbers.len() / 3);
        for triple in numbers.chunks(3) {
            let &[on_disk, presented, length] = triple else {
                return Err(format!("{} numbers are not triples", numbers.len()));
            };
            ranges.push(IdRange { on_disk, presented, length });
        }
        IdMap::new(ranges)
    }

    /// The ranges, as given.
    pub fn ranges(&self) -> &[IdRange] {
        &self.0
    }

    /// Whether no map was asked for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every id maps to itself: no map, or ranges that leave no valid id out.
    pub fn is_identity(&self) -> bool {
        let covered: u64 = self.0.iter().map(|range| u64::from(range.length)).sum();
        self.is_empty()
            || (covered == u64::from(u32::MAX)
                && self.0.iter().all(|range| range.on_disk == range.presented))
    }

    /// The id on disk of a presented id; `None` if it has none.
    pub fn to_disk(&self, id: u32) -> Option<u32> {
        self.find(id, |range| (range.presented, range.on_disk))
    }

    /// The id presented for an id on disk; `None` if it has none.
    pub fn to_presented(&self, id: u32) -> Option<u32> {
        self.find(id, |range| (range.on_disk, range.presented))
    }

    fn find(&self, id: u32, sides: impl Fn(&IdRange) -> (u32, u32)) -> Option<u32> {
        if self.0.is_empty() {
            return Some(id);
        }
        self.0.iter().find_map(|range| {
            let (from, to) = sides(range);
            let offset = id.checked_sub(from)?;
            if offset < range.length { to.checked_add(offset) } else { None }
        })
    }
}

/// Fails when two ranges share an id on the side `first` chooses.
fn overlap(ranges: &[IdRange], first: impl Fn(&IdRange) -> u32, side: &str) -> Result<(), String> {
    let mut sorted = ranges.to_vec();
    sorted.sort_by_key(&first);
    for (one, next) in sorted.iter().zip(sorted.iter().skip(1)) {
        if u64::from(first(one)) + u64::from(one.length) > u64::from(first(next)) {
            return Err(format!("ranges '{one}' and '{next}' overlap {side}"));
        }
    }
    Ok(())
}

fn number(text: &str) -> Result<u32, String> {
    // str::parse would also take a leading plus sign.
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let parsed = if digits { text.parse().ok() } else { None };
    parsed.ok_or_else(|| format!("'{}' is not an id or a length", text.escape_debug()))
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.on_disk, self.presented, self.length)
    }
}

impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let colon = if index == 0 { "" } else { ":" };
            write!(f, "{colon}{range}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leading_colon_and_several_triples_are_read() {
        let map = IdMap::parse(":0:1000:1:1:100000:65536").unwrap_or_default();
        assert_eq!(map.to_string(), "0:1000:1:1:100000:65536");
        for (disk, presented) in [(0, 1000), (1, 100_000), (65_536, 165_535)] {
            assert_eq!(map.to_presented(disk), Some(presented), "disk {disk}");
            assert_eq!(map.to_disk(presented), Some(disk), "presented {presented}");
        }
        assert_eq!(map.to_presented(65_537), None);
        assert_eq!(map.to_disk(1001), None);
        assert_eq!(map.to_disk(0), None);
    }

    #[test]
    fn bad_maps_say_what_is_wrong() {
        for (text, why) in [
            ("0:0", "2 numbers are not triples"),
            ("0:0:0", "range '0:0:0' is empty"),
            ("0:x:1", "'x' is not an id or a length"),
            ("0:+1:1", "'+1' is not an id or a length"),
            ("0:0:1:", "'' is not an id or a length"),
            ("0:4294967296:1", "'4294967296' is not an id or a length"),
            ("1:0:4294967295", "range '1:0:4294967295' goes past the last id 4294967294"),
            ("0:4294967295:1", "range '0:4294967295:1' goes past the last id 4294967294"),
            ("10:0:5:14:100:5", "ranges '10:0:5' and '14:100:5' overlap on disk"),
            ("10:4:5:100:0:5", "ranges '100:0:5' and '10:4:5' overlap presented"),
        ] {
            assert_eq!(IdMap::parse(text), Err(why.to_owned()), "{text}");
        }
    }

    #[test]
    fn identity_is_no_map_or_all_ids_to_themselves() {
        for (text, identity) in [
            ("", true),
            (":", true),
            ("0:0:4294967295", true),
            ("0:0:10:10:10:4294967285", true),
            ("0:0:65536", false),
            ("0:1:1:1:0:1", false),
        ] {
            let map = IdMap::parse(text).unwrap_or_default();
            assert_eq!(map.is_identity(), identity, "{text}");
        }
        assert_eq!(IdMap::default().to_disk(7), Some(7));
    }
}
