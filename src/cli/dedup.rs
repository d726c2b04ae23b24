//! `plyfs layer dedup`.

use super::check::counted;
use super::progress;
use crate::driver::LayerId;
use crate::error::Result;
use crate::layer::dedup::Progress;
use crate::store::{Deduped, Store};

const EXAMPLES: &str = "\
Examples:
  plyfs layer dedup --dry-run      how much room it would make
  plyfs layer dedup                all layers that the driver keeps
  plyfs layer dedup base box";

/// Let files of the same content share their blocks, in one layer and across layers
///
/// For filesystems that can: xfs, btrfs. The kernel compares the files and changes none, so layers may be mounted and
/// written meanwhile. Files shorter than a block are left alone. Limits count shared blocks for each layer, so what a layer takes of its
/// limit stays the same. The status is 1 when something could not be read or shared; all else is done.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Only tell how many files could share their blocks
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print JSON; the keys are stable
    #[arg(long)]
    json: bool,
    /// The layers; without, all
    #[arg(value_name = "ID")]
    ids: Vec<String>,
}

/// Does it; the status is 1 when something could not be done.
pub(super) fn run(store: &Store, args: &Args, json: bool) -> Result<u8> {
    let ids: Result<Vec<LayerId>> = args.ids.iter().map(|id| LayerId::new(id)).collect();
    let steps = progress::Steps::new();
    let done = store.dedup(&ids?, args.dry_run, &mut |progress| match progress {
        Progress::Listing(layer) => steps.step(format!("dedup: list {layer}")),
        Progress::Comparing { done, all } => steps.count("dedup: compare", done, all),
        Progress::Failed(what) => steps.aside(|| super::warn(what)),
    });
    drop(steps);
    let done = done?;
    match json || args.json {
        true => super::print_json(&done)?,
        false => super::print(text(&done).as_bytes())?,
    }
    Ok(u8::from(done.files.failed > 0))
}

fn text(done: &Deduped) -> String {
    let mut text = String::new();
    for layer in &done.busy {
        text.push_str(&format!("layer '{layer}': not looked at: another process changes it\n"));
    }
    let files = &done.files;
    let count =
        |number: u64, thing: &str| counted(usize::try_from(number).unwrap_or(usize::MAX), thing);
    text.push_str(&format!(
        "{} of a block or more in {}: {} {}, {} bytes {}",
        count(files.files, "file"),
        counted(done.layers, "layer"),
        files.shared,
        if done.dry_run { "could share their blocks" } else { "share their blocks now" },
        files.bytes,
        if done.dry_run { "less" } else { "freed" },
    ));
    for (number, what) in [
        (files.already, "did before"),
        (files.changed, "were changed meanwhile"),
        (files.refused, "cannot (immutable, or in use for swap)"),
        (files.failed, "failed"),
    ] {
        if number > 0 {
            text.push_str(&format!("; {number} {what}"));
        }
    }
    text.push('\n');
    text
}
