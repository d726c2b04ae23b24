//! `plyfs changes`.

use std::io::{self, Write};
use std::path::PathBuf;

use super::state::StateArgs;
use crate::error::{Error, Result};
use crate::layer::changes::{self, Change};

const EXAMPLES: &str = "\
Examples:
  plyfs changes /srv/box/upper                     what the upper directory says by itself
  plyfs changes --lower /srv/base /srv/box/upper   compared with what lies below
  plyfs changes --json --lower / upper | jq -r '.[] | select(.kind == \"D\").path'";

/// List what an upper directory adds (A), changes (C) and deletes (D)
///
/// One line a path, sorted. With the lower directories, top first, the list is exact; without them
/// the marks in the upper directory decide whether something is new. Line breaks, control characters
/// and bytes that are not text are escaped as by ls -b.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print a JSON array; a path that is not UTF-8 is given in hexadecimal too, as path_bytes
    #[arg(long)]
    json: bool,
    /// A directory below the upper one; give several top first
    #[arg(long = "lower", value_name = "DIR")]
    lowers: Vec<PathBuf>,
    /// The upper directory
    upper: PathBuf,
}

impl Args {
    /// These, with what was said before the verb.
    pub(super) fn over(mut self, before: &StateArgs) -> Args {
        self.json |= before.json;
        self
    }
}

/// Prints the list.
pub fn run(args: &Args) -> Result<()> {
    show(&changes::list(&args.upper, &args.lowers)?, args.json)
}

/// Prints a list of changes, a line each or as JSON.
pub(super) fn show(changes: &[Change], json: bool) -> Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written = if json {
        serde_json::to_writer_pretty(&mut out, &changes)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        changes.iter().try_for_each(|change| writeln!(out, "{change}"))
    };
    written.and_then(|()| out.flush()).map_err(|e| Error::io("write", "standard output", e))
}
