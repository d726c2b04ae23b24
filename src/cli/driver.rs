//! `plyfs driver`.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::state::StateArgs;
use crate::driver::Driver;
use crate::driver::registry::Config;
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  plyfs driver status                       which driver the store uses, why, and what it found
  plyfs --driver vfs driver status          what another one would find
  plyfs driver cleanup";

/// Tell about the driver that keeps the layers, or let go of what it holds
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Print which driver is used, why, and what it found here
    Status,
    /// Let go of what the driver holds outside the store; deletes no data
    Cleanup,
}

/// Does it.
pub fn run(args: &Args, state: &StateArgs) -> Result<()> {
    let config = state.config()?;
    let selected = state.select(&config)?;
    let additional = additional(&config, &*selected.driver);
    match args.verb {
        Verb::Cleanup => selected.driver.cleanup(),
        Verb::Status if state.json => {
            let facts: Map<String, Value> = selected
                .driver
                .status()
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v.into()))
                .collect();
            let refused: Vec<Value> = selected
                .refused
                .iter()
                .map(|x| json!({ "driver": x.name, "reason": x.reason }))
                .collect();
            let additional: Vec<Value> = additional
                .iter()
                .map(|(root, there)| json!({ "root": root.to_string_lossy(), "there": there }))
                .collect();
            super::print_json(&json!({
                "root": config.root.to_string_lossy(),
                "driver": selected.driver.name(),
                "reason": selected.reason,
                "refused": refused,
                "additional": additional,
                "status": facts,
            }))
        }
        Verb::Status => {
            let mut text = format!("Root: {}\n", config.root.display());
            text.push_str(&format!("Driver: {} ({})\n", selected.driver.name(), selected.reason));
            for refusal in &selected.refused {
                text.push_str(&format!("Not {}: {}\n", refusal.name, refusal.reason));
            }
            for (root, there) in additional {
                let lost = if there { "" } else { " (not there)" };
                text.push_str(&format!("Additional store: {}{lost}\n", root.display()));
            }
            for (key, value) in selected.driver.status() {
                text.push_str(&format!("{key}: {value}\n"));
            }
            super::print(text.as_bytes())
        }
    }
}

/// The additional stores that were asked for, and whether they are there.
fn additional(config: &Config, driver: &dyn Driver) -> Vec<(PathBuf, bool)> {
    let open = |root: &PathBuf| {
        let real = root.canonicalize().ok();
        driver.additional().iter().any(|one| real.as_ref() == Some(&one.root))
    };
    let wanted = config.additional(driver.name()).into_iter();
    wanted.map(|root| (root.clone(), open(&root))).collect()
}
