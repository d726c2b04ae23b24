//! `plyfs run`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::Failure;
use crate::run::{FAILED, Outcome, Spec, View};

const EXAMPLES: &str = "\
Examples:
  plyfs run -- sh -c 'rm /etc/hostname; echo hi >/etc/new'    / itself, writable, thrown away
  plyfs run --lower . -- make clean                           this directory, in place
  plyfs run --lower patch --lower rootfs -- sh                patch over rootfs, as the root
  plyfs run --upper changes -- apt-get install -y hello       keep what changed in ./changes

The command has pid, mount and, for ordinary users, user namespaces of its own. An ordinary user is
root inside: its own id becomes 0, and its ranges of /etc/subuid and /etc/subgid follow.
Afterwards what changed is listed on standard output: A added, C changed, D deleted.

Exit status: that of the command; 128+n when signal n ended it; 125 when it was not started, 126 when it
cannot be executed, 127 when it is not found.";

/// Run a command in a throwaway writable view of directories
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Directory to show; several are stacked, the first on top
    #[arg(long, value_name = "DIR", default_value = "/")]
    lower: Vec<PathBuf>,
    /// Keep changes in this directory; made when missing
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,
    /// Scratch directory on the filesystem of --upper [default: its name with .work]
    #[arg(long, value_name = "DIR", requires = "upper")]
    work: Option<PathBuf>,
    /// Keep the changes where they are and tell where
    #[arg(long, conflicts_with = "upper")]
    keep: bool,
    /// List the changes as one line of JSON
    #[arg(long)]
    json: bool,
    /// Do not list the changes
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Set a variable for the command
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = clap::builder::OsStringValueParser::new())]
    env: Vec<OsString>,
    /// Directory to start in [default: the current one if the view has it]
    #[arg(short = 'w', long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Name of the host inside
    #[arg(long, value_name = "NAME")]
    hostname: Option<OsString>,
    /// Show the view as the command's root, or in place of the first --lower; auto takes what has a
    /// shell for a root
    #[arg(long, value_enum, default_value = "auto")]
    view: ViewName,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ViewName {
    Auto,
    Root,
    Place,
}

/// Runs the command, prints what changed, and returns the status to end with.
pub fn run(args: &Args) -> Result<u8, Failure> {
    let spec = spec(args).map_err(Failure::usage)?;
    let outcome = crate::run::run(&spec).map_err(|error| Failure { error, status: FAILED })?;
    outcome.warnings.iter().for_each(|text| super::warn(text));
    if let Some(error) = &outcome.failure {
        super::complain(error);
        return Ok(outcome.status);
    }
    let shown = match (args.json, args.quiet) {
        (true, _) => json(&outcome).and_then(|text| super::print(&text)),
        (_, true) => Ok(()),
        _ => super::print(&lines(&outcome)),
    };
    let mut status = outcome.status;
    if let Err(error) = shown {
        super::complain(&error);
        // What the command said about itself counts for more.
        status = if status == 0 { error.exit_code() } else { status };
    }
    if let (true, Some(upper)) = (args.keep, &outcome.upper) {
        super::tell(&format!("changes are kept in {}", upper.display()));
    }
    Ok(status)
}

fn spec(args: &Args) -> crate::Result<Spec> {
    Ok(Spec {
        lowers: args.lower.clone(),
        upper: args.upper.clone(),
        work: args.work.clone(),
        keep: args.keep,
        command: args.command.clone(),
        env: args.env.iter().map(variable).collect::<crate::Result<_>>()?,
        directory: args.workdir.clone(),
        hostname: args.hostname.clone(),
        view: match args.view {
            ViewName::Auto => View::Auto,
            ViewName::Root => View::Root,
            ViewName::Place => View::Place,
        },
    })
}

fn variable(text: &OsString) -> crate::Result<(OsString, OsString)> {
    let bytes = text.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) if at > 0 => {
            let own = |part: &[u8]| OsString::from_vec(part.to_vec());
            Ok((own(&bytes[..at]), own(&bytes[at + 1..])))
        }
        _ => Err(crate::Error::invalid(
            format!("variable '{}'", std::path::Path::new(text).display()),
            "expected NAME=VALUE",
        )),
    }
}

/// One change a line.
fn lines(outcome: &Outcome) -> Vec<u8> {
    outcome
        .changes
        .iter()
        .fold(String::new(), |lines, change| lines + &format!("{change}\n"))
        .into_bytes()
}

fn json(outcome: &Outcome) -> crate::Result<Vec<u8>> {
    let document = serde_json::json!({
        "status": outcome.status,
        "upper": outcome.upper.as_ref().map(|upper| upper.to_string_lossy()),
        "changes": outcome.changes,
    });
    Ok(format!("{document}\n").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_a_name_and_a_value() {
        let table = [
            ("A=b", Some(("A", "b"))),
            ("A=", Some(("A", ""))),
            ("A=b=c", Some(("A", "b=c"))),
            ("A", None),
            ("=b", None),
            ("", None),
        ];
        for (text, wanted) in table {
            let wanted = wanted.map(|(name, value)| (OsString::from(name), OsString::from(value)));
            assert_eq!(variable(&OsString::from(text)).ok(), wanted, "{text}");
        }
    }
}
