//! `plyfs diff`.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::layer::diff::{self, Spec};

const EXAMPLES: &str = "\
Examples:
  plyfs diff -o layer.tar /srv/box/upper
  plyfs diff /srv/box/upper | zstd > layer.tar.zst
  plyfs diff --lower /srv/base -o layer.tar upper   needed when upper holds moved directories or
                                                    files whose data is still below";

/// Write what an upper directory holds as an image layer
///
/// The layer is an uncompressed tar archive with OCI whiteouts; the same directory always gives the
/// same bytes. Hard links, extended attributes, ACLs, file capabilities, devices and times below the
/// second are kept; sockets are left out with a warning. Owners are written as this process sees
/// them. Anything that cannot be read ends the command, and FILE is then not made.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Write to FILE, which appears when it is complete, and not to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A directory below the upper one; give several top first
    #[arg(long = "lower", value_name = "DIR")]
    lowers: Vec<PathBuf>,
    /// As root, believe redirects, metacopies and owners kept in user.* attributes; whoever may write
    /// to UPPER can use them to have any file of the lower directories put in the archive, and files
    /// of his own as root's
    #[arg(long)]
    userxattr: bool,
    /// The upper directory
    upper: PathBuf,
}

/// Writes the archive.
pub fn run(args: &Args) -> Result<()> {
    let (upper, lowers) = (args.upper.clone(), args.lowers.clone());
    let spec = Spec { upper, lowers, user_marks: args.userxattr };
    if let Some(path) = args.output.as_ref().filter(|path| path.as_os_str() != "-") {
        return diff::save(&spec, path).map_err(super::cut_short);
    }
    if io::stdout().is_terminal() {
        return Err(Error::invalid(
            "standard output",
            "is a terminal; name a file with -o or use a pipe",
        ));
    }
    diff::write(&spec, &mut super::raw_output()?).map_err(super::cut_short)
}
