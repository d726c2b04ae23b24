//! What is known of the mount of a layer that is there, and of those that were.

use std::fs::FileTimes;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{Current, Held, LOCK, real, seen};
use crate::error::{Context, Result};
use crate::mount::plan::{Kind, Mount};

impl Held {
    /// The first of the options that the mount which is there does not have. None where nothing is mounted, and where it is not
    /// known what that has.
    pub fn lacks<'a>(&self, target: &Path, wanted: &'a [String]) -> Result<Option<&'a String>> {
        let Some(Current { record, away: None }) = self.usable(target)? else { return Ok(None) };
        let Some(has) = record.options else {
            log::warn!(
                "layer '{}' is mounted already, and stays with the options that it has",
                self.name
            );
            return Ok(None);
        };
        Ok(wanted.iter().find(|option| !has.contains(option)))
    }

    /// Whether the mount which is there is read-only, and this one would not be.
    pub fn lets_only_read(&self, mount: &Mount) -> Result<bool> {
        let Some(Current { record, away: None }) = self.usable(&mount.target)? else {
            return Ok(false);
        };
        let only_reads = |options: &[String]| options.iter().any(|option| option == "ro");
        Ok(only_reads(&record.options.unwrap_or_default()) && !only_reads(&given(mount)))
    }

    /// How many users the mount has; none of one through which nothing can be written.
    pub fn writers(&self, target: &Path) -> Result<u64> {
        let Some(Current { record, away }) = self.usable(target)? else { return Ok(0) };
        let found = if away.is_none() { seen(&real(target))? } else { None };
        Ok(if found.is_some_and(|mount| mount.is_read_only()) { 0 } else { record.count })
    }
}

/// Between two turns: more than the finest difference of times on any filesystem.
const TURN: Duration = Duration::from_secs(2);

impl Held {
    /// What is another value once somebody began to have the layer so that he may write it, also if he has it no more.
    pub fn turn(&self) -> Result<SystemTime> {
        let path = self.at(LOCK)?;
        self.lock.metadata().and_then(|found| found.modified()).on("stat", path)
    }

    /// Somebody begins to. The time of the lock's file is no time, but counts: that takes no room on a full disk.
    pub(super) fn next_turn(&self) -> Result<()> {
        let next = self.turn()?.checked_add(TURN).unwrap_or(SystemTime::UNIX_EPOCH);
        let path = self.at(LOCK)?;
        self.lock.set_times(FileTimes::new().set_modified(next)).on("set the time of", path)
    }
}

/// Whether nothing can be written through a mount.
pub(super) fn is_read_only(mount: &Mount) -> bool {
    mount.upper.is_none() && mount.kind != Kind::BindWritable
}

/// The options of a mount, as whoever asks for one spells it.
pub(super) fn given(mount: &Mount) -> Vec<String> {
    let read_only = is_read_only(mount).then(|| "ro".to_owned());
    mount.options.iter().cloned().chain(read_only).collect()
}
