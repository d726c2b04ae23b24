//! What is known of the mount of a layer that is there.

use std::path::Path;

use super::{Current, Held, real, seen};
use crate::error::Result;
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

    /// How many users the mount has; none of one through which nothing can be written.
    pub fn writers(&self, target: &Path) -> Result<u64> {
        let Some(Current { record, away }) = self.usable(target)? else { return Ok(0) };
        let found = if away.is_none() { seen(&real(target))? } else { None };
        Ok(if found.is_some_and(|mount| mount.is_read_only()) { 0 } else { record.count })
    }
}

/// The options of a mount, as whoever asks for one spells it.
pub(super) fn given(mount: &Mount) -> Vec<String> {
    let is_read_only = mount.upper.is_none() && mount.kind != Kind::BindWritable;
    let read_only = is_read_only.then(|| "ro".to_owned());
    mount.options.iter().cloned().chain(read_only).collect()
}
