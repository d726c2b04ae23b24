//! Which store a verb works on: the options before the verb, or after it.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
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
    /// An option of the driver, as KEY=VALUE; give several
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
        Store::open(&config.root, &run_directory(&config.root), Arc::from(selected.driver))
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
        Ok(Config { root, options: pairs(&self.storage_opts)? })
    }
}

/// Options, each as `KEY=VALUE`.
pub(super) fn pairs(options: &[String]) -> Result<BTreeMap<String, String>> {
    options
        .iter()
        .map(|text| match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(Error::invalid(format!("option '{text}'"), "is not KEY=VALUE")),
        })
        .collect()
}

/// Where the mounts of the store at `root` are counted: a directory of its own in the run directory, in the store itself
/// where there is none that we may write to.
fn run_directory(root: &Path) -> PathBuf {
    let mut hash = std::collections::hash_map::DefaultHasher::new();
    root.hash(&mut hash);
    let name = format!("{:016x}", hash.finish());
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let usable = |dir: &PathBuf| dir.is_absolute() && crate::sys::probe::may_write(dir);
    let places = [Some(PathBuf::from("/run")), runtime];
    let place = places.into_iter().flatten().find(usable);
    place.map_or_else(|| root.join("run"), |place| place.join("plyfs").join(name))
}
