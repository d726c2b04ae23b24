//! Which drivers there are, and which one a store uses: the one that is named; else the one whose layers are there; else the
//! first of a list that works here.

use std::path::{Path, PathBuf};

pub use super::options::Config;
use super::shelf::LOCK;
use super::{Driver, LayerId, fuse_overlay, hardlink, layered, overlay2, vfs};
use crate::error::{Error, Result};

/// What is tried for a new store, most wanted first.
pub const PRIORITY: [&str; 3] = [overlay2::NAME, fuse_overlay::NAME, vfs::NAME];

/// Opens a driver, or says that this host cannot do it ([`Error::Unsupported`]).
pub type Open = fn(&Config) -> Result<Box<dyn Driver>>;

/// One kind of driver.
#[derive(Clone, Debug)]
struct Entry {
    name: &'static str,
    /// Its directory in the store's root; two drivers may share one.
    home: &'static str,
    open: Open,
    /// Whether layers in its home make it the store's driver.
    claims: bool,
    /// Where in its home a layer is that is whole.
    place: fn(&Path, &str) -> PathBuf,
}

/// The drivers that are known.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    entries: Vec<Entry>,
}

/// A driver that was tried and cannot serve here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its name.
    pub name: &'static str,
    /// Why.
    pub reason: String,
}

/// The driver that a store uses.
#[derive(Debug)]
pub struct Selected {
    /// It.
    pub driver: Box<dyn Driver>,
    /// Why this one, in words.
    pub reason: String,
    /// The better ones, and what they lack here.
    pub refused: Vec<Refusal>,
}

impl Registry {
    /// Those that are built in.
    pub fn built_in() -> Registry {
        let entry = |name, home, open, claims, place| Entry { name, home, open, claims, place };
        Registry {
            entries: vec![
                entry(overlay2::NAME, layered::HOME, overlay2::open, true, layered::place),
                entry(fuse_overlay::NAME, layered::HOME, fuse_overlay::open, true, layered::place),
                // A stray copy would otherwise decide for all others.
                entry(vfs::NAME, vfs::NAME, vfs::open, false, vfs::place),
                entry(hardlink::NAME, hardlink::HOME, hardlink::open, true, hardlink::place),
            ],
        }
    }

    /// Adds a driver that keeps its layers in `home` below the root.
    pub fn register(&mut self, name: &'static str, home: &'static str, open: Open) -> Result<()> {
        if self.find(name).is_some() {
            return Err(Error::Exists { kind: "driver", name: name.to_owned() });
        }
        let place = |home: &Path, id: &str| home.join(id);
        self.entries.push(Entry { name, home, open, claims: true, place });
        Ok(())
    }

    /// Their names.
    pub fn names(&self) -> Vec<&'static str> {
        self.entries.iter().map(|entry| entry.name).collect()
    }

    fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// Opens the driver of the store at `config.root`: the one that is `named`; else the one whose layers are there; else the
    /// first of `priority`, and then of all others, that works.
    pub fn select(
        &self,
        named: Option<&str>,
        priority: &[&str],
        config: &Config,
    ) -> Result<Selected> {
        self.check_options(config)?;
        if let Some(name) = named {
            let driver = (self.known(name)?.open)(config)?;
            return Ok(Selected { driver, reason: "named".to_owned(), refused: Vec::new() });
        }
        let order = self.order(priority)?;
        let prior: Vec<&str> = self.prior(&config.root).into_iter().map(|(home, _)| home).collect();
        match prior.as_slice() {
            [] => self.first(&order, "works here", config),
            [home] => {
                let home: &str = home;
                let order: Vec<&Entry> =
                    order.into_iter().filter(|entry| entry.home == home).collect();
                let reason = format!("{} has layers", config.root.join(home).display());
                self.first(&order, &reason, config)
            }
            several => {
                let why = format!(
                    "has layers of several drivers: {}; choose with --driver",
                    several.join(", ")
                );
                Err(Error::invalid(config.root.display().to_string(), why))
            }
        }
    }

    /// The directories in a store's root that have layers, each with the drivers that keep theirs there. Opens nothing.
    pub fn prior(&self, root: &Path) -> Vec<(&'static str, Vec<&'static str>)> {
        let mut prior: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.claims) {
            match prior.iter_mut().find(|(home, _)| *home == entry.home) {
                Some((_, names)) => names.push(entry.name),
                None if is_used(&root.join(entry.home)) => {
                    prior.push((entry.home, vec![entry.name]))
                }
                None => {}
            }
        }
        prior
    }

    /// The first driver that keeps a layer by this name in a store's root, of those with another home than `ours`. Opens
    /// nothing.
    pub fn keeper(&self, root: &Path, ours: &Path, id: &LayerId) -> Option<&'static str> {
        let keeps = |entry: &&Entry| {
            let home = root.join(entry.home);
            home != ours && (entry.place)(&home, id.as_str()).is_dir()
        };
        self.entries.iter().find(keeps).map(|entry| entry.name)
    }

    /// The directory in a store's root that a driver keeps its layers in; two may share one.
    pub fn home(&self, name: &str) -> Option<&'static str> {
        self.find(name).map(|entry| entry.home)
    }

    fn known(&self, name: &str) -> Result<&Entry> {
        self.find(name).ok_or_else(|| {
            let why = format!("not known; there are {}", self.names().join(", "));
            Error::invalid(format!("driver '{name}'"), why)
        })
    }

    /// Every driver once, those of the list first.
    fn order(&self, priority: &[&str]) -> Result<Vec<&Entry>> {
        let mut order: Vec<&Entry> = Vec::new();
        for name in priority {
            order.push(self.known(name)?);
        }
        let rest = self.entries.iter().filter(|entry| !priority.contains(&entry.name));
        order.extend(rest);
        Ok(order)
    }

    fn first(&self, order: &[&Entry], reason: &str, config: &Config) -> Result<Selected> {
        let mut refused: Vec<Refusal> = Vec::new();
        for entry in order {
            match (entry.open)(config) {
                Ok(driver) => return Ok(Selected { driver, reason: reason.to_owned(), refused }),
                Err(error @ Error::Unsupported { .. }) => {
                    refused.push(Refusal { name: entry.name, reason: error.to_string() });
                }
                Err(error) => return Err(error),
            }
        }
        let reasons: Vec<String> =
            refused.iter().map(|refusal| format!("{}: {}", refusal.name, refusal.reason)).collect();
        let what = format!("driver for {}", config.root.display());
        Err(Error::unsupported(what, format!("none works here ({reason}): {}", reasons.join("; "))))
    }

    /// Tries every driver; `None` for those that work. What a try leaves is an empty home.
    pub fn try_all(&self, config: &Config) -> Vec<(&'static str, Option<String>)> {
        let attempt = |entry: &Entry| (entry.open)(config).err().map(|error| error.to_string());
        self.entries.iter().map(|entry| (entry.name, attempt(entry))).collect()
    }

    /// Options name a driver that there is.
    fn check_options(&self, config: &Config) -> Result<()> {
        for key in config.options.keys() {
            let driver = key.split_once('.').map(|(driver, _)| driver);
            if driver.is_none_or(|name| self.find(name).is_none()) {
                let why =
                    format!("starts with no driver's name; there are {}", self.names().join(", "));
                return Err(Error::invalid(format!("option '{key}'"), why));
            }
        }
        config.named_by_additional().try_for_each(|name| self.known(name).map(drop))
    }
}

/// Whether a driver's home has anything in it but what opening the driver makes.
fn is_used(home: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(home) else {
        return home.symlink_metadata().is_ok();
    };
    entries.into_iter().any(|entry| match entry {
        Ok(entry) if entry.file_name() == LOCK => false,
        Ok(entry) => entry.file_name() != "l" || is_used(&entry.path()),
        Err(_) => true,
    })
}
