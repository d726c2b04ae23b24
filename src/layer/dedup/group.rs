//! Files of one size, compared.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::iter::{once, repeat_n};
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use super::candidates::Entry;
use super::{Job, Progress};
use crate::sys::share;

/// Files that differ mostly do so at their beginning: so much of them is read first.
const HEAD: u64 = 64 << 10;
/// As long as some are the same, they are read so many times as far.
const FURTHER: u64 = 16;
/// Data is read in pieces of this size.
const PIECE: usize = 128 << 10;

type Sum = [u8; 32];

/// Files that lie on the same blocks.
struct Cluster {
    first: usize,
    others: Vec<usize>,
    /// Of its beginning, in the end of all of it.
    sum: Sum,
    /// Blocks of 512 bytes that one takes.
    blocks: u64,
}

impl Cluster {
    fn members(&self) -> impl Iterator<Item = usize> + '_ {
        once(self.first).chain(self.others.iter().copied())
    }
}

/// What came of one file.
enum Fate {
    Shared,
    Changed,
    Gone,
    Refused,
    Failed,
}

impl Job<'_> {
    /// Compares files, of which those that may be the same come one after another.
    pub(super) fn compare(&mut self, entries: Vec<Entry>) {
        let groups = || entries.chunk_by(Entry::is_like).filter(|group| group.len() > 1);
        let bytes = |group: &[Entry]| group.iter().map(|entry| entry.size).sum::<u64>();
        (self.done, self.all) = (0, groups().map(bytes).sum());
        for group in groups() {
            let end = self.done + bytes(group);
            self.group(group);
            self.advance(end.saturating_sub(self.done));
        }
    }

    fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        (self.progress)(Progress::Comparing { done: self.done, all: self.all });
    }

    fn group(&mut self, entries: &[Entry]) {
        let size = entries.first().map_or(0, |entry| entry.size);
        let mut clusters = self.clusters(entries, size);
        only_equal(&mut clusters);
        let mut at = size.min(HEAD);
        while at < size && !clusters.is_empty() {
            let end = size.min(at.saturating_mul(FURTHER));
            clusters.retain_mut(|cluster| self.sum_up(entries, cluster, at, end));
            only_equal(&mut clusters);
            at = end;
        }
        for same in clusters.chunk_by(|a, b| a.sum == b.sum) {
            self.unite(entries, same);
        }
    }

    /// Sorts files by the blocks that they lie on, with a sum of their beginning.
    fn clusters(&mut self, entries: &[Entry], size: u64) -> Vec<Cluster> {
        let (mut clusters, mut places) = (Vec::<Cluster>::new(), HashMap::<u64, usize>::new());
        for (number, entry) in entries.iter().enumerate() {
            let Some((file, stat)) = self.open(entry) else { continue };
            let place = share::whereabouts(&file, size);
            if let Some(cluster) = place.and_then(|place| places.get(&place)) {
                if let Some(cluster) = clusters.get_mut(*cluster) {
                    cluster.others.push(number);
                    self.found.already += 1;
                    continue;
                }
            }
            let Some(mut sum) = self.sum(entry, &file, 0, size.min(HEAD)) else { continue };
            // Those that cannot share with each other are compared apart.
            sum[0] ^= u8::from(share::is_in_place(&file));
            places.extend(place.map(|place| (place, clusters.len())));
            let (first, others, blocks) = (number, Vec::new(), stat.blocks);
            clusters.push(Cluster { first, others, sum, blocks });
        }
        clusters
    }

    /// Adds what comes next to a sum; false where it cannot be read.
    fn sum_up(&mut self, entries: &[Entry], cluster: &mut Cluster, start: u64, end: u64) -> bool {
        let Some(entry) = entries.get(cluster.first) else { return false };
        let Some((file, _)) = self.open(entry) else { return false };
        let Some(rest) = self.sum(entry, &file, start, end) else { return false };
        cluster.sum = Sha256::new().chain_update(cluster.sum).chain_update(rest).finalize().into();
        true
    }

    fn sum(&mut self, entry: &Entry, file: &File, start: u64, end: u64) -> Option<Sum> {
        let sum = sum(file, start, end, &mut |bytes| self.advance(bytes));
        self.there(entry.dir.tree, &entry.dir.path.join(&*entry.name), "read", sum)
    }

    /// Lets all files of a content lie on the blocks of those that take the fewest: nobody takes more than before.
    fn unite(&mut self, entries: &[Entry], same: &[Cluster]) {
        let best = |cluster: &&Cluster| (cluster.blocks, Reverse(cluster.others.len()));
        let Some(best) = same.iter().min_by_key(best) else { return };
        let source = best.members().find_map(|number| self.open(entries.get(number)?));
        let Some((source, _)) = source else { return };
        for cluster in same.iter().filter(|cluster| cluster.first != best.first) {
            let (mut shared, mut kept) = (0, false);
            for entry in cluster.members().filter_map(|number| entries.get(number)) {
                match self.share(&source, entry) {
                    Fate::Shared => shared += 1,
                    Fate::Changed => (self.found.changed, kept) = (self.found.changed + 1, true),
                    Fate::Refused => (self.found.refused, kept) = (self.found.refused + 1, true),
                    Fate::Failed => kept = true,
                    Fate::Gone => {}
                }
            }
            self.found.shared += shared;
            if shared > 0 && !kept {
                let size = entries.first().map_or(0, |entry| entry.size);
                self.found.bytes += size.min(cluster.blocks * 512);
            }
        }
    }

    fn share(&mut self, source: &File, entry: &Entry) -> Fate {
        let Some((file, _)) = self.open(entry) else { return Fate::Gone };
        let mut at = 0;
        while at < entry.size && !self.dedup.dry_run {
            match share::share(source, &file, at, entry.size - at) {
                Ok(0) => return Fate::Changed,
                Ok(shared) => at += shared,
                Err(_) if !is_long(source, entry.size) || !is_long(&file, entry.size) => {
                    return Fate::Changed;
                }
                Err(error) if share::is_refused(&file, &error) => return Fate::Refused,
                Err(error) => {
                    let path = entry.dir.path.join(&*entry.name);
                    self.fail(entry.dir.tree, &path, "share the blocks of", &error);
                    return Fate::Failed;
                }
            }
        }
        Fate::Shared
    }
}

/// Only those that are not alone with their sum, sorted by that.
fn only_equal(clusters: &mut Vec<Cluster>) {
    clusters.sort_unstable_by_key(|cluster| (cluster.sum, cluster.first));
    let same = clusters.chunk_by(|a, b| a.sum == b.sum).map(<[Cluster]>::len);
    let kept: Vec<bool> = same.flat_map(|count| repeat_n(count > 1, count)).collect();
    let mut kept = kept.into_iter();
    clusters.retain(|_| kept.next().unwrap_or(false));
}

fn is_long(file: &File, size: u64) -> bool {
    file.metadata().is_ok_and(|found| found.len() == size)
}

fn sum(file: &File, start: u64, end: u64, read: &mut dyn FnMut(u64)) -> io::Result<Sum> {
    let (mut at, mut sum) = (start, Sha256::new());
    let mut piece = vec![0; usize::try_from(end - start).unwrap_or(PIECE).min(PIECE)];
    while at < end {
        let most = usize::try_from(end - at).unwrap_or(PIECE).min(piece.len());
        match file.read_at(&mut piece[..most], at) {
            // It has become shorter.
            Ok(0) => break,
            Ok(got) => {
                sum.update(&piece[..got]);
                at += got as u64;
                read(got as u64);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sum.finalize().into())
}
