//! `plyfs check`.

use std::io::{self, IsTerminal};

use super::state::StateArgs;
use crate::driver::LayerId;
use crate::error::Result;
use crate::store::{Checked, Problem};

const EXAMPLES: &str = "\
Examples:
  plyfs check                          is everything as it was put in?
  plyfs check --repair                 put right what the store still knows
  plyfs check --json | jq -r '.problems[].layer'";

/// Compare the records of layers, their directories and their archives
///
/// Reads every file of the layers that were filled from archives. The status is 1 when something is wrong and was not
/// repaired.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Put right what can be told from elsewhere in the store
    #[arg(long)]
    repair: bool,
}

/// Does it; the status is 1 when something stays wrong.
pub fn run(args: &Args, state: &StateArgs) -> Result<u8> {
    let store = state.open()?;
    let checked = store.check(args.repair, &mut show_progress())?;
    clear_progress();
    match state.json {
        true => super::print_json(&checked)?,
        false => super::print(text(&checked).as_bytes())?,
    }
    Ok(u8::from(!checked.is_sound()))
}

fn text(checked: &Checked) -> String {
    let mut text = String::new();
    for Problem { layer, what, repaired, advice } in &checked.problems {
        let then = match (repaired, advice) {
            (true, _) => "; repaired".to_owned(),
            (false, Some(advice)) => format!("; {advice}"),
            (false, None) => String::new(),
        };
        text.push_str(&format!("layer '{layer}': {what}{then}\n"));
    }
    for layer in &checked.busy {
        text.push_str(&format!("layer '{layer}': not looked at: another process changes it\n"));
    }
    let repaired = checked.problems.iter().filter(|problem| problem.repaired).count();
    let layers = counted(checked.layers, "layer");
    text.push_str(&match (checked.problems.len(), repaired) {
        (0, _) => format!("{layers}, nothing wrong\n"),
        (all, 0) => format!("{layers}, {}\n", counted(all, "problem")),
        (all, some) => format!("{layers}, {}, {some} repaired\n", counted(all, "problem")),
    });
    text
}

/// A number of things.
pub(super) fn counted(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Says on a terminal what is looked at.
fn show_progress() -> impl FnMut(&LayerId) {
    let shown = io::stderr().is_terminal();
    move |id| {
        if shown {
            eprint!("\r\x1b[Kchecking {id}");
        }
    }
}

fn clear_progress() {
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}
