//! `plyfs doctor`.

use std::io::{self, Write};
use std::path::PathBuf;

use super::state::StateArgs;
use crate::doctor::{self, Report};
use crate::error::{Context, Error, Result};
use crate::sys;

const EXAMPLES: &str = "\
Examples:
  plyfs doctor
  plyfs doctor --root /srv/plyfs       for a state directory on another filesystem
  plyfs doctor --json | jq -r .driver  the driver that would be chosen";

/// Width of the names of facts.
const TITLE: usize = 22;

/// Tell what this host allows and what plyfs will use
///
/// Every line was tried: in processes, namespaces and temporary files that are gone afterwards. What
/// is missing is told and is no failure.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print JSON; the keys are stable
    #[arg(long)]
    json: bool,
    /// State directory whose filesystem is tried; it need not exist
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

impl Args {
    /// These, with what was said before the verb where these say nothing.
    pub(super) fn over(mut self, before: &StateArgs) -> Args {
        self.json |= before.json;
        self.root = self.root.or_else(|| before.root.clone());
        self
    }
}

/// Tries everything and prints what came of it.
pub fn run(args: &Args) -> Result<()> {
    // A key typed at the terminal waits until what was made for the trials is gone.
    sys::block_signals().on("block signals", "")?;
    let report = doctor::examine(args.root.as_deref());
    sys::unblock_signals().on("unblock signals", "")?;
    let report = report?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written = match args.json {
        true => serde_json::to_writer_pretty(&mut out, &report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out)),
        false => show(&report, &mut out),
    };
    written.and_then(|()| out.flush()).map_err(|e| Error::io("write", "standard output", e))
}

fn show(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    writeln!(out, "plyfs {version} on Linux {}, as {}", report.kernel, report.standing.text())?;
    write!(out, "state directory {}", report.root.display())?;
    match report.root == report.probed {
        true => writeln!(out)?,
        false => writeln!(out, ", tried in {}", report.probed.display())?,
    }
    for (group, facts) in &report.groups {
        writeln!(out, "\n{group}")?;
        for fact in facts {
            line(out, fact.title, fact.ok, &fact.detail)?;
        }
    }
    writeln!(out, "\ndrivers")?;
    for driver in &report.drivers {
        line(out, driver.name, Some(driver.ok), &driver.reason)?;
    }
    match report.choice.driver {
        Some(driver) => writeln!(out, "\n{driver} will be used"),
        None => writeln!(out, "\nno driver works: {}", report.choice.reason),
    }
}

fn line(out: &mut impl Write, title: &str, ok: Option<bool>, detail: &str) -> io::Result<()> {
    let answer = match ok {
        Some(true) => "yes",
        Some(false) => "no",
        None => "-",
    };
    let text = format!("  {title:TITLE$} {answer:3}  {detail}");
    writeln!(out, "{}", text.trim_end())
}
