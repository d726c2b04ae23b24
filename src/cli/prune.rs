//! `plyfs prune`.

use super::check::counted;
use super::state::StateArgs;
use crate::error::Result;
use crate::store::Pruned;

const EXAMPLES: &str = "\
Examples:
  plyfs prune --dry-run      what would go
  plyfs prune";

/// Remove storage that no layer needs
///
/// What a driver keeps without a record in the store: of another program, or of a store whose records were lost. It is
/// never removed by itself. What a layer lies on stays. The status is 1 when something could not be removed; all else is.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only tell what would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// Does it; the status is 1 when something could not be removed.
pub fn run(args: &Args, state: &StateArgs) -> Result<u8> {
    let mut failed = false;
    let pruned = state.open().and_then(|store| {
        store.prune(args.dry_run, &mut |error| {
            failed = true;
            super::complain(error);
        })
    });
    super::finish_behind();
    let pruned = pruned?;
    match state.json {
        true => super::print_json(&pruned)?,
        false => super::print(text(&pruned, args.dry_run).as_bytes())?,
    }
    Ok(u8::from(failed))
}

fn text(pruned: &[Pruned], dry_run: bool) -> String {
    let mut text = String::new();
    for one in pruned {
        text.push_str(&format!("{}  {} bytes\n", one.id, one.bytes));
    }
    let bytes: u64 = pruned.iter().map(|one| one.bytes).sum();
    let done = if dry_run { "would be removed" } else { "removed" };
    text.push_str(&format!("{} {done}, {bytes} bytes\n", counted(pruned.len(), "layer")));
    text
}
