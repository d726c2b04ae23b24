//! How many users a layer's mount has, across processes: the first mounts, the last unmounts.
//!
//! A record a layer in the run directory, replaced whole, holds the count and which mount it counts. The table of mounts is
//! the truth: a mount that is gone has no users, whatever the record says, and one without a record has one. So the run
//! directory may be lost, and mounts may be taken away behind our back. A lock in the run directory orders all processes.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::{self, Mount, Server};
use super::table;
use crate::error::{Context, Error, Result};
use crate::sys::{self, publish};

/// Version of the record.
const VERSION: u32 = 1;

/// The counts of one store.
#[derive(Clone, Debug)]
pub struct Counts(PathBuf);

/// One mount that is counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    count: u64,
    target: PathBuf,
    /// The kernel's numbers of the mount and its device: together they tell a mount from a later one at the same place.
    mount: u64,
    device: (u32, u32),
}

impl Record {
    /// Whether it counts this mount.
    fn counts(&self, found: &Record) -> bool {
        let key = |record: &Record| (record.version, record.mount, record.device);
        key(self) == key(found) && self.target == found.target
    }
}

impl Counts {
    /// Opens the directory that holds them, made when it is missing. It should not outlive a boot.
    pub fn open(dir: &Path) -> Result<Counts> {
        let made = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(dir);
        made.on("create", dir)?;
        Ok(Counts(dir.to_path_buf()))
    }

    /// Mounts, or takes part in the mount that is there. Returns where it is seen.
    pub fn mount(&self, name: &str, mount: &Mount, server: &Server) -> Result<PathBuf> {
        let _lock = self.lock()?;
        let target = &mount.target;
        let record = match self.current(name, target)? {
            Some(record) => Record { count: record.count + 1, ..record },
            None => {
                // What is noted before it is there would be taken for a mount without users.
                plan::perform(mount, server)?.keep();
                self.fresh(target)?.ok_or_else(|| {
                    let gone = std::io::Error::other("gone again");
                    Error::io("mount", target, gone)
                })?
            }
        };
        match self.write(name, &record) {
            Err(error) if record.count == 1 => {
                plan::take_away(target, true)?;
                Err(error)
            }
            other => other.map(|()| target.clone()),
        }
    }

    /// One user fewer; the last one takes the mount away. Returns how many are left.
    pub fn unmount(&self, name: &str, target: &Path) -> Result<u64> {
        let _lock = self.lock()?;
        let Some(record) = self.current(name, target)? else {
            self.forget(name)?;
            return Err(Error::NotFound { kind: "mount of layer", name: name.to_owned() });
        };
        if record.count > 1 {
            let record = Record { count: record.count - 1, ..record };
            self.write(name, &record)?;
            return Ok(record.count);
        }
        plan::take_away(target, false)?;
        self.forget(name)?;
        Ok(0)
    }

    /// How many users the mount has; none when it is not there.
    pub fn count(&self, name: &str, target: &Path) -> Result<u64> {
        let _lock = self.lock()?;
        Ok(self.current(name, target)?.map_or(0, |record| record.count))
    }

    /// The record of what is mounted now.
    fn current(&self, name: &str, target: &Path) -> Result<Option<Record>> {
        let Some(fresh) = self.fresh(target)? else { return Ok(None) };
        let path = self.at(name)?;
        let noted: Option<Record> = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            // One that is not understood counts nothing.
            other => serde_json::from_slice(&other.on("read", &path)?).ok(),
        };
        let noted = noted.filter(|noted| noted.counts(&fresh));
        Ok(Some(noted.map_or(fresh, |noted| Record { count: noted.count.max(1), ..noted })))
    }

    /// What is mounted at the target, with one user.
    fn fresh(&self, target: &Path) -> Result<Option<Record>> {
        let real = target.parent().and_then(|dir| dir.canonicalize().ok());
        let real =
            real.zip(target.file_name()).map_or(target.to_path_buf(), |(dir, name)| dir.join(name));
        let mounts = table::read()?;
        Ok(table::topmost(&mounts, &real).map(|found| Record {
            version: VERSION,
            count: 1,
            target: target.to_path_buf(),
            mount: found.id,
            device: found.device,
        }))
    }

    fn write(&self, name: &str, record: &Record) -> Result<()> {
        let path = self.at(name)?;
        let new = path.with_extension("new");
        let bytes = serde_json::to_vec(record)
            .map_err(|error| Error::io("write", &path, std::io::Error::other(error)))?;
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::io("remove", &new, error));
            }
            _ => {}
        }
        publish::write_new(&new, &bytes).on("write", &new)?;
        std::fs::rename(&new, &path).on("rename", &new)
    }

    fn forget(&self, name: &str) -> Result<()> {
        let path = self.at(name)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::io("remove", path, error))
            }
            _ => Ok(()),
        }
    }

    fn at(&self, name: &str) -> Result<PathBuf> {
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return Err(Error::invalid(format!("layer name '{name}'"), "names no file"));
        }
        Ok(self.0.join(format!("{name}.json")))
    }

    /// Waits for the other processes; the lock goes with the file.
    fn lock(&self) -> Result<File> {
        let path = self.0.join(".lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.on("open", &path)?;
        sys::lock_file(&file, true).on("lock", &path)?;
        Ok(file)
    }
}
