//! Which lower layers have a name of one directory, without asking them.
//!
//! Lower layers do not change, so what their listings said once is right for good. Kept is one word
//! for each name of each layer: bits of the name's hash, the layer's place among those of the
//! directory, and whether the entry is the name or its `.wh.` whiteout. So absence is certain, and
//! the number of layers does not count; presence is only likely, and the layer is asked. Names that
//! a filesystem finds in other letters than it lists them are not kept.
//!
//! The words come from a listing that is made anyway, or from one made for it once looking for names
//! in vain has cost as much. Their number is bounded over the mount, and they go with the inode.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::{View, hash_place};
use crate::Overlay;
use crate::inode::{Ino, Inode, Lowers};
use crate::sys::{self, Name};
use crate::whiteout;

/// Words kept at most, over all directories: 8 MiB.
const ROOM: usize = 1 << 20;
/// A listing made for its own sake is of directories of at most so many bytes.
const LONG: u64 = 1 << 22;
/// A directory of so many bytes costs nothing but a few calls.
const SMALL: u64 = 4096;
/// Further bytes whose listing costs as much as one name that is not there.
const BYTES_A_MISS: u64 = 256;

/// What the lower layers of one directory have.
#[derive(Debug)]
pub(crate) struct Below {
    /// The lower directories this is about.
    lowers: Lowers,
    words: Box<[u64]>,
    share: Share,
}

/// A part of the room, given back on drop.
#[derive(Debug)]
struct Share {
    room: Arc<AtomicUsize>,
    words: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.fetch_sub(self.words, Ordering::Relaxed);
    }
}

/// The words in use over all directories of a mount.
#[derive(Debug, Default)]
pub(crate) struct Room(Arc<AtomicUsize>);

/// What a directory that is looked into has cost so far.
#[derive(Debug, Default)]
pub(crate) struct Misses {
    seen: AtomicU32,
    /// The number at which listing is thought of again.
    next: AtomicU32,
}

/// Puts the words of a directory together while its layers are listed.
struct Listing {
    words: Vec<u64>,
    whole: bool,
}

/// What a layer may have of a name.
#[derive(Clone, Copy, Debug)]
pub(super) struct May {
    /// The layer's place in [`View::lowers`].
    pub(super) place: usize,
    /// The name itself.
    pub(super) name: bool,
    /// Its `.wh.` whiteout.
    pub(super) dot: bool,
}

/// The layers that may have a name, top first.
pub(super) struct Places<'a> {
    words: Option<&'a [u64]>,
    next: usize,
    end: usize,
}

fn hash(name: &OsStr) -> u64 {
    // The low bits of FNV are the poor ones.
    hash_place(Ino(0), name).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 17
}

fn word(name: &OsStr, place: usize, dot: bool) -> u64 {
    hash(name) << 17 | (place as u64) << 1 | u64::from(dot)
}

impl Iterator for Places<'_> {
    type Item = May;

    fn next(&mut self) -> Option<May> {
        let Some(words) = &mut self.words else {
            let place = self.next;
            self.next += 1;
            return (place < self.end).then_some(May { place, name: true, dot: true });
        };
        let place_of = |word: u64| (word >> 1 & 0xffff) as usize;
        while let Some((first, mut rest)) = words.split_first() {
            let place = place_of(*first);
            let mut may = May { place, name: first & 1 == 0, dot: first & 1 == 1 };
            while let Some(more) = rest.first().filter(|more| place_of(**more) == place) {
                may.name |= more & 1 == 0;
                may.dot |= more & 1 == 1;
                rest = &rest[1..];
            }
            *words = rest;
            if place >= self.next {
                return Some(may);
            }
        }
        None
    }
}

impl Listing {
    /// Of no layer yet.
    fn new() -> Listing {
        Listing { words: Vec::new(), whole: true }
    }

    /// Adds what a layer has.
    fn add(&mut self, place: usize, dir: impl AsFd, names: &[Name]) {
        self.whole &= self.words.len() + names.len() <= ROOM && place < 1 << 16;
        if !self.whole || finds_other_letters(dir, names) {
            self.whole = false;
            self.words = Vec::new();
            return;
        }
        self.words.extend(names.iter().filter_map(|entry| {
            if !whiteout::is_dot(&entry.name) {
                return Some(word(&entry.name, place, false));
            }
            whiteout::dot_target(&entry.name).map(|name| word(name, place, true))
        }));
    }
}

/// A name with one letter turned to the other case; `None` where there is none.
fn turned(name: &OsStr) -> Option<OsString> {
    let mut name = name.as_bytes().to_vec();
    let letter = name.iter_mut().find(|byte| byte.is_ascii_alphabetic())?;
    *letter ^= 0x20;
    Some(OsString::from_vec(name))
}

/// Whether a name that is in a directory is surely found by its own letters only.
pub(crate) fn finds_own_letters(dir: impl AsFd, name: &OsStr) -> bool {
    turned(name).is_some_and(|turned| matches!(sys::has(dir, &turned), Ok(None)))
}

/// Whether names are found however their letters are written, judged by one of them.
fn finds_other_letters(dir: impl AsFd, names: &[Name]) -> bool {
    let turned = names.iter().find_map(|entry| turned(&entry.name));
    turned.is_some_and(|turned| {
        !matches!(sys::has(dir, &turned), Ok(None))
            && !names.iter().any(|entry| entry.name == turned)
    })
}

impl Room {
    fn take(&self, words: usize) -> Option<Share> {
        let share = Share { room: self.0.clone(), words };
        let before = self.0.fetch_add(words, Ordering::Relaxed);
        (before + words <= ROOM).then_some(share)
    }
}

impl Misses {
    /// Counts; whether it is time to list.
    fn count(&self, misses: u32, layers: usize) -> bool {
        let usual = u32::try_from(16 + layers).unwrap_or(u32::MAX);
        let seen = self.seen.fetch_add(misses, Ordering::Relaxed).saturating_add(misses);
        seen >= self.next.load(Ordering::Relaxed).max(usual)
    }

    fn not_before(&self, misses: u64) {
        self.next.store(u32::try_from(misses).unwrap_or(u32::MAX), Ordering::Relaxed);
    }
}

impl View {
    /// The lower layers that may have a name, from a place on.
    pub(super) fn places(&self, name: &OsStr, next: usize) -> Places<'_> {
        let words = self.below.as_ref().map(|below| below.of(name));
        Places { words, next, end: self.lowers.len() }
    }
}

impl Below {
    /// Whether this is about these lower directories.
    pub(super) fn is_of(&self, lowers: &Lowers) -> bool {
        self.lowers.is(lowers)
    }

    fn of(&self, name: &OsStr) -> &[u64] {
        let hash = hash(name);
        let start = self.words.partition_point(|word| word >> 17 < hash);
        let count = self.words[start..].iter().take_while(|word| **word >> 17 == hash).count();
        &self.words[start..start + count]
    }
}

impl Overlay {
    /// Whether a listing of this directory is worth keeping.
    pub(crate) fn wants_below(&self, dir: &Inode, view: &View) -> bool {
        let unknown = dir.dir().is_some_and(|part| part.below.get().is_none());
        !self.live && unknown && !view.lowers.is_empty()
    }

    /// Keeps what the lower layers of a directory have, by their listings.
    pub(crate) fn keep_below(
        &self,
        dir: &Inode,
        view: &View,
        lists: &[Vec<Name>],
    ) -> io::Result<()> {
        let mut listing = Listing::new();
        for (place, (lower, names)) in view.lowers.iter().zip(lists).enumerate() {
            listing.add(place, &*self.lower_dir(lower)?, names);
        }
        self.put_below(dir, view, listing);
        Ok(())
    }

    fn put_below(&self, dir: &Inode, view: &View, listing: Listing) {
        let Some(part) = dir.dir().filter(|part| listing.whole && part.below.get().is_none())
        else {
            return;
        };
        let Some(share) = self.room_below.take(listing.words.len()) else { return };
        let mut words = listing.words.into_boxed_slice();
        words.sort_unstable();
        let below = Below { lowers: view.lowers.clone(), words, share };
        if let Err(below) = part.below.set(Arc::new(below)) {
            log::trace!("two listings of {} words at once", below.share.words);
        }
    }

    /// Lists the lower layers of a directory once names that are not there have cost enough. No lock
    /// is held.
    pub(super) fn learn(&self, dir: &Inode, view: &View) {
        let misses = view.misses.get();
        let Some(part) = dir.dir().filter(|_| misses > 0 && !self.live) else { return };
        if !part.misses.count(misses, view.lowers.len()) || part.below.get().is_some() {
            return;
        }
        if let Err(e) = self.list_below(dir, view) {
            log::debug!("{}: lower layers not listed: {e}", dir.ino.0);
            part.misses.not_before(u64::MAX);
        }
    }

    fn list_below(&self, dir: &Inode, view: &View) -> io::Result<()> {
        let Some(part) = dir.dir() else { return Ok(()) };
        // Asked once more when it has paid; by then it is listed whatever came of this.
        let mut bytes = 0;
        for lower in view.lowers.iter() {
            bytes += sys::fstat(&*self.lower_dir(lower)?)?.size.saturating_sub(SMALL);
        }
        let price = if bytes > LONG { u64::MAX } else { bytes / BYTES_A_MISS };
        if price > u64::from(part.misses.seen.load(Ordering::Relaxed)) {
            part.misses.not_before(price);
            return Ok(());
        }
        part.misses.not_before(u64::MAX);
        let mut listing = Listing::new();
        for (place, lower) in view.lowers.iter().enumerate() {
            let fd = self.lower_dir(lower)?;
            listing.add(place, &fd, &sys::list(&fd)?);
        }
        self.put_below(dir, view, listing);
        Ok(())
    }
}
