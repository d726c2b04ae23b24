//! The command line: the only room that prints.
//!
//! Standard output is data, standard error is talk. Parsing touches no disk. One file a verb; called
//! under another program's name, or with `-o` first, we are the drop-in mount helper (`helper`).

#![allow(clippy::print_stdout, clippy::print_stderr)]

pub mod changes;
pub mod check;
mod dedup;
pub mod diff;
pub mod doctor;
pub mod driver;
pub mod generate;
mod helper;
mod hint;
pub mod layer;
pub mod mount;
mod progress;
pub mod prune;
pub mod run;
mod state;
pub mod umount;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::error::Error;
use crate::sys::{self, trash};
use state::StateArgs;

/// The version of the program we stand in for: consumers ask for 1.10 at least.
const DROP_IN_VERSION: &str = "fuse-overlayfs: version 1.17";

/// Both versions: programs that were told to call us by our own name look for the second line.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\nfuse-overlayfs: version 1.17");

/// Where the wanted log level is read from, as `warn` or `plyfs_fuse=debug`.
const LOG_VARIABLE: &str = "PLYFS_LOG";

/// Where the name of a file is read from to which the log goes instead of standard error: a detached
/// server has none.
const LOG_FILE_VARIABLE: &str = "PLYFS_LOG_FILE";

const EXAMPLES: &str = "\
Examples:
  plyfs run --lower / -- apt-get install -y hello     try it, keep nothing, see what it changed
  plyfs mount -o lowerdir=A:B,upperdir=U,workdir=W M   A over B, changes go to U, seen at M
  plyfs changes U                                     what U adds, changes and deletes
  plyfs diff -o layer.tar U                           the same as an image layer
  plyfs umount M
  plyfs layer --help                                  keep directories as layers
  plyfs doctor                                        what this host allows

Called as fuse-overlayfs, mount.plyfs or mount.fuse.plyfs, or with -o as its first
argument, plyfs takes that program's arguments.

Exit status: 0 done, 1 failed, 2 wrong usage; `run` ends as its command does.";

/// Stack directories and show them as one writable tree.
#[derive(Debug, Parser)]
#[command(name = "plyfs", bin_name = "plyfs", version = VERSION, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    state: StateArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(mount::Args),
    Umount(umount::Args),
    Run(run::Args),
    Doctor(doctor::Args),
    Changes(changes::Args),
    Diff(diff::Args),
    Layer(layer::Args),
    Driver(driver::Args),
    Check(check::Args),
    Prune(prune::Args),
    Generate(generate::Args),
}

/// Why a verb did not succeed, and the status to end with.
#[derive(Debug)]
pub struct Failure {
    error: Error,
    status: u8,
}

impl Failure {
    fn usage(error: Error) -> Self {
        Failure { error, status: 2 }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = error.exit_code();
        Failure { error, status }
    }
}

/// Runs the program with its arguments, its name first.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let result = match helper::name(&arguments) {
        Some(name) => helper::run(name, arguments.get(1..).unwrap_or_default()),
        None => {
            start_log(false);
            dispatch(Cli::parse_from(arguments))
        }
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(failure) if failure.error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure.error);
            ExitCode::from(failure.status)
        }
    }
}

/// An archive whose reader has gone is not whole, whereas of a list the reader may have seen enough.
fn cut_short(error: Error) -> Error {
    match error {
        Error::Io { op, path, source } if source.kind() == std::io::ErrorKind::BrokenPipe => {
            let source = std::io::Error::other("whoever reads it has gone");
            Error::Io { op, path, source }
        }
        other => other,
    }
}

fn dispatch(cli: Cli) -> std::result::Result<u8, Failure> {
    let takes_state = matches!(
        cli.command,
        Command::Layer(_)
            | Command::Driver(_)
            | Command::Check(_)
            | Command::Prune(_)
            | Command::Doctor(_)
            | Command::Changes(_)
    );
    if !takes_state && cli.state != StateArgs::default() {
        let why = "mean something to layer, driver, check, prune, doctor and changes only";
        return Err(Failure::usage(Error::invalid("options before the verb", why)));
    }
    match cli.command {
        Command::Mount(args) => mount::run(&args)?,
        Command::Umount(args) => umount::run(&args)?,
        Command::Run(args) => return run::run(&args),
        Command::Doctor(args) => doctor::run(&args.over(&cli.state))?,
        Command::Changes(args) => changes::run(&args.over(&cli.state))?,
        Command::Diff(args) => diff::run(&args)?,
        Command::Layer(args) => return Ok(layer::run(&args, &cli.state)?),
        Command::Driver(args) => driver::run(&args, &cli.state)?,
        Command::Check(args) => return Ok(check::run(&args, &cli.state)?),
        Command::Prune(args) => return Ok(prune::run(&args, &cli.state)?),
        Command::Generate(args) => generate::run(&args, Cli::command())?,
    }
    Ok(0)
}

/// Logs to standard error: warnings, unless the environment asks for something else or `debug` for
/// everything.
fn start_log(debug: bool) {
    let quiet = format!("warn,{}", plyfs_fuse::LOG_FILTER);
    let level = if debug { "debug" } else { &quiet };
    let wanted = env_logger::Env::new().filter_or(LOG_VARIABLE, level);
    let mut log = env_logger::Builder::from_env(wanted);
    if let Some(path) = std::env::var_os(LOG_FILE_VARIABLE).filter(|path| !path.is_empty()) {
        match OpenOptions::new().append(true).create(true).open(&path) {
            Ok(file) => drop(log.target(env_logger::Target::Pipe(Box::new(file)))),
            Err(error) => warn(&format!("open {}: {error}", Path::new(&path).display())),
        }
    }
    log.init();
}

/// A line on standard error; that nobody reads it is no failure.
fn say(line: std::fmt::Arguments<'_>) {
    drop(writeln!(io::stderr(), "{line}"));
}

/// Says what went wrong, and what to do about it where we know.
fn complain(error: &Error) {
    say(format_args!("plyfs: {error}"));
    if let Some(hint) = hint::hint(error) {
        say(format_args!("hint: {hint}"));
    }
}

/// Says what is worth knowing but no failure.
fn warn(text: &str) {
    say(format_args!("plyfs: warning: {text}"));
}

/// Says what was asked for besides data.
fn tell(text: &str) {
    say(format_args!("plyfs: {text}"));
}

/// Writes a value as JSON to standard output.
fn print_json(value: &impl serde::Serialize) -> crate::Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::io("encode", "standard output", error.into()))?;
    text.push('\n');
    print(text.as_bytes())
}

/// Deletes what was only put out of sight, as a removed layer is, in a process that nobody waits for. What that does not get
/// done is deleted when a store is opened.
fn finish_behind() {
    if !trash::is_begun() {
        return;
    }
    let inherited = sys::inherited();
    let child = sys::fork(|| {
        sys::close_inherited(&inherited);
        let done = sys::close_stdio()
            .and_then(|()| sys::new_session())
            .and_then(|()| std::env::set_current_dir("/"))
            .and_then(|()| trash::finish(None));
        u8::from(done.is_err())
    });
    if let Err(error) = child {
        log::debug!("fork: {error}");
    }
}

/// Standard output for an archive: whoever writes to it collects, so nothing is looked for ends of lines.
fn raw_output() -> crate::Result<File> {
    let out = io::stdout().as_fd().try_clone_to_owned();
    out.map(File::from).map_err(|error| Error::io("dup", "standard output", error))
}

/// Writes text to standard output, all of it or an error. A reader that has gone has seen enough: that changes no status.
fn print(bytes: &[u8]) -> crate::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io("write", "standard output", error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn both_versions_are_told() {
        assert!(VERSION.ends_with(DROP_IN_VERSION));
    }

    #[test]
    fn wrong_usage_is_told_from_help() {
        let table: [(&[&str], Option<i32>); 6] = [
            (&["plyfs", "umount", "/m"], None),
            (&["plyfs", "run", "--lower", "/", "--", "ls", "-l"], None),
            (&["plyfs", "mount"], Some(2)),
            (&["plyfs", "run", "--lower", "/"], Some(2)),
            (&["plyfs", "nonsense"], Some(2)),
            (&["plyfs", "--help"], Some(0)),
        ];
        for (arguments, code) in table {
            let parsed = Cli::try_parse_from(arguments);
            assert_eq!(parsed.err().map(|error| error.exit_code()), code, "{arguments:?}");
        }
    }
}
