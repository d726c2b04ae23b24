//! `plyfs generate`.

use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::error::{Context, Error, Result};

const EXAMPLES: &str = "\
Examples:
  plyfs generate completions bash > /etc/bash_completion.d/plyfs
  plyfs generate completions fish > ~/.config/fish/completions/plyfs.fish
  plyfs generate man | man -l -
  plyfs generate man /usr/local/share/man/man1        a page for each verb";

/// Print manual pages and shell completions
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// The script by which a shell completes plyfs's command line
    Completions {
        /// The shell
        shell: Shell,
    },
    /// The manual page of plyfs, or the pages of all its verbs into a directory
    Man {
        /// Where to put a page for each verb; it has to be there
        #[arg(value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// Does it, for this command line.
pub fn run(args: &Args, command: Command) -> Result<()> {
    // The second line of the version is for programs.
    let command = command.version(env!("CARGO_PKG_VERSION"));
    match &args.what {
        What::Completions { shell } => super::print(&script(*shell, command)),
        What::Man { dir: None } => super::print(&page(command)?),
        What::Man { dir: Some(dir) } => pages(command, dir),
    }
}

fn script(shell: Shell, mut command: Command) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "plyfs", &mut script);
    script
}

fn page(command: Command) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command).render(&mut page).on("write", "the manual page")?;
    Ok(page)
}

/// A page for each verb and its verbs: `plyfs.1`, `plyfs-layer.1`, `plyfs-layer-apply.1`.
fn pages(command: Command, dir: &Path) -> Result<()> {
    if !dir.is_dir() {
        return Err(Error::invalid(dir.display().to_string(), "is no directory"));
    }
    clap_mangen::generate_to(command, dir).on("write manual pages into", dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, ValueEnum};

    #[test]
    fn every_shell_completes_every_verb() {
        for shell in Shell::value_variants() {
            let script = script(*shell, super::super::Cli::command());
            let script = String::from_utf8(script).unwrap();
            for verb in ["mount", "layer", "apply", "prune"] {
                assert!(script.contains(verb), "{shell} does not complete {verb}");
            }
        }
    }

    #[test]
    fn each_verb_has_a_manual_page() {
        let dir = tempfile::tempdir().unwrap();
        pages(super::super::Cli::command(), dir.path()).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(read("plyfs.1").contains("plyfs\\-layer(1)"), "{}", read("plyfs.1"));
        assert!(read("plyfs-layer-apply.1").contains(".TH plyfs-layer-apply 1"));
        assert!(read("plyfs-check.1").contains("\\-\\-repair"));
        assert!(!dir.path().join("plyfs-help.1").exists());
        let error = pages(super::super::Cli::command(), &dir.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("is no directory"), "{error}");
    }
}
