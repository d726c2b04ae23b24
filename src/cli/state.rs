//! Which store a verb works on: the options before the verb, or after it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::driver::registry::{Config, PRIORITY, Registry, Selected};
use crate::error::{Context, Error, Result};
use crate::store::Store;

/// Where crash tests put the change of the store before which the process is to die (`plyfs_fuse::sys::fault`).
const FAULT_VARIABLE: &str = "PLYFS_STORE_FAULT";

/// Where the store is, and how it keeps its layers.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct StateArgs {
    /// State directory [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs for others]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// How layers are kept and mounted; default: as they are, or the first that works here
    #[arg(long, value_name = "NAME")]
    pub driver: Option<String>,
    /// An option of the driver, as KEY=VALUE; give several. additionalimagestore=DIR shows the layers of another store too
    #[arg(long = "storage-opt", value_name = "K=V")]
    pub storage_opts: Vec<String>,
    /// Print JSON; the keys are stable
    #[arg(long)]
    pub json: bool,
}

impl StateArgs {
    /// Opens the store.
    pub fn open(&self) -> Result<Store> {
        let config = self.config()?;
        let selected = self.select(&config)?;
        // In the store, so that whoever uses it finds the same counts, whatever he calls it.
        Store::open(&config.root, &config.root.join("run"), Arc::from(selected.driver))
    }

    /// The driver that the store uses, and why.
    pub fn select(&self, config: &Config) -> Result<Selected> {
        plyfs_fuse::sys::fault::arm_by(FAULT_VARIABLE);
        Registry::built_in().select(self.driver.as_deref(), &PRIORITY, config)
    }

    /// Where the store is, and the options of its drivers.
    pub fn config(&self) -> Result<Config> {
        let root = match &self.root {
            Some(root) => std::path::absolute(root).on("resolve", root)?,
            None => crate::doctor::state_directory()?,
        };
        let options: Result<Vec<_>> = self.storage_opts.iter().map(|text| pair(text)).collect();
        Config::new(root, options?)
    }
}

/// Options, each as `KEY=VALUE`.
pub(super) fn pairs(options: &[String]) -> Result<BTreeMap<String, String>> {
    options.iter().map(|text| pair(text)).collect()
}

fn pair(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Error::invalid(format!("option '{text}'"), "is not KEY=VALUE")),
    }
}
