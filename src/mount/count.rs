//! How many users a layer's mount has, across processes: the first mounts, the last unmounts.
//!
//! A record a layer in the run directory, replaced whole, holds the count and which mount it counts. The table of mounts is
//! the truth: a mount that is gone has no users, whatever the record says, and one without a record has one. So the run
//! directory may be lost, and mounts may be taken away behind our back. A lock in the run directory orders all processes.
//!
//! A layer that is seen without a mount has no such truth: `NAME.used` counts who was given its directory and has not given it back,
//! in this boot.
//!
//! Beside `NAME.json` there is `NAME.new` while a mount is made or taken away. Without somebody who has the lock it was left by
//! a crash: whether the mount is there is seen, and if it is not, its directory goes ([`Counts::sweep`]).

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::{self, Mount, Mounted, Server};
use super::table;
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::sys::{self, change, publish};

/// Version of the record.
const VERSION: u32 = 1;
/// What follows the name: of a record, of one that is being written, of what is under way.
const RECORD: &str = ".json";
const UNFINISHED: &str = ".tmp";
const BEGUN: &str = ".new";
/// Of the count of those who use a layer's directory, where nothing is mounted.
const USED: &str = ".used";

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

/// How many use a directory.
#[derive(Debug, Serialize, Deserialize)]
struct Used {
    version: u32,
    count: u64,
    boot: String,
}

/// What is noted while a mount is made or taken away.
#[derive(Debug, Serialize, Deserialize)]
struct Begun {
    version: u32,
    target: PathBuf,
    /// What is left to do once it is gone, in the boot that this is noted in.
    #[serde(default)]
    unsettled: Option<PathBuf>,
    #[serde(default)]
    boot: String,
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
        change::make_dirs(dir, 0o700).on("create", dir)?;
        Ok(Counts(dir.to_path_buf()))
    }

    /// Mounts, or takes part in the mount that is there. Returns where it is seen.
    pub fn mount(&self, name: &str, mount: &Mount, server: &Server) -> Result<PathBuf> {
        let lock = self.lock()?;
        let target = &mount.target;
        let record = match self.current(name, target)? {
            Some(record) => Record { count: record.count.saturating_add(1), ..record },
            None => {
                self.begin(name, target)?;
                let made = plan::perform_under(mount, server, Some(&lock)).map(Mounted::keep);
                let found = made.and_then(|_| {
                    self.fresh(target)?.ok_or_else(|| {
                        let gone = std::io::Error::other("gone again");
                        Error::io("mount", target, gone)
                    })
                });
                if found.is_err() {
                    self.end(name)?;
                }
                found?
            }
        };
        match self.write(name, &record) {
            Err(error) if record.count == 1 => {
                plan::take_away(target, true)?;
                self.end(name)?;
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
            self.end(name)?;
            return Err(Error::NotFound { kind: "mount of layer", name: name.to_owned() });
        };
        if record.count > 1 {
            let record = Record { count: record.count - 1, ..record };
            self.write(name, &record)?;
            return Ok(record.count);
        }
        self.begin(name, target)?;
        let taken = plan::take_away(target, false).and_then(|()| self.forget(name));
        self.end(name)?;
        taken.map(|()| 0)
    }

    /// One user more of a layer that is seen where it is.
    pub fn take(&self, name: &str) -> Result<()> {
        let _lock = self.lock()?;
        self.write_used(name, self.read_used(name)? + 1)
    }

    /// One user fewer; whether there was one.
    pub fn give_back(&self, name: &str) -> Result<bool> {
        let _lock = self.lock()?;
        match self.read_used(name)? {
            0 => Ok(false),
            count => self.write_used(name, count - 1).map(|()| true),
        }
    }

    /// How many use a layer's directory.
    pub fn used(&self, name: &str) -> Result<u64> {
        let _lock = self.lock()?;
        self.read_used(name)
    }

    fn read_used(&self, name: &str) -> Result<u64> {
        let path = self.at(name, USED)?;
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            other => other.on("read", &path)?,
        };
        let used: Option<Used> = serde_json::from_slice(&bytes).ok();
        let used = used.filter(|used| used.version == VERSION && used.boot == boot());
        Ok(used.map_or(0, |used| used.count))
    }

    fn write_used(&self, name: &str, count: u64) -> Result<()> {
        let path = self.at(name, USED)?;
        if count == 0 {
            return change::remove_file_if_any(&path).map(drop).on("remove", path);
        }
        let new =
            self.write_new(name, UNFINISHED, &Used { version: VERSION, count, boot: boot() })?;
        change::rename(&new, &path).on("rename", &new)
    }

    /// Does `work` where the layer is not mounted, and keeps everybody from mounting it meanwhile; whether it was done.
    pub fn unless_mounted(
        &self,
        name: &str,
        target: &Path,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        let _lock = self.lock()?;
        match self.current(name, target)? {
            Some(_) => Ok(false),
            None => work().map(|()| true),
        }
    }

    /// Forgets a layer that is removed.
    pub fn removed(dir: &Path, name: &str) -> Result<()> {
        if !dir.is_dir() {
            return Ok(());
        }
        let counts = Counts(dir.to_path_buf());
        let _lock = counts.lock()?;
        counts.write_used(name, 0)?;
        counts.forget(name)?;
        counts.end(name)
    }

    /// Clears away what a crash left of mounting and unmounting; nothing while somebody is at it.
    pub fn sweep(dir: &Path) -> Result<()> {
        let counts = Counts(dir.to_path_buf());
        let entries = match std::fs::read_dir(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.on("list", dir)?,
        };
        let mut begun = Vec::new();
        for entry in entries {
            let name = entry.on("list", dir)?.file_name();
            let name = name.to_str().unwrap_or_default();
            let left = [BEGUN, UNFINISHED].iter().find_map(|suffix| name.strip_suffix(suffix));
            begun.extend(left.map(str::to_owned));
        }
        if begun.is_empty() {
            return Ok(());
        }
        let file = counts.lock_file()?;
        if sys::lock_file(&file, false).on("lock", dir)? {
            begun.iter().try_for_each(|name| counts.settle(name))?;
        }
        Ok(())
    }

    /// Notes that something is about to be mounted at the target, or taken away from there.
    fn begin(&self, name: &str, target: &Path) -> Result<()> {
        let unsettled = plan::unsettled(target);
        let begun = Begun { version: VERSION, target: target.into(), unsettled, boot: boot() };
        self.write_new(name, BEGUN, &begun).map(drop)
    }

    fn write_new(&self, name: &str, suffix: &str, record: &impl Serialize) -> Result<PathBuf> {
        let path = self.at(name, suffix)?;
        let bytes = serde_json::to_vec(record)
            .map_err(|error| Error::io("write", &path, std::io::Error::other(error)))?;
        change::remove_file_if_any(&path).on("remove", &path)?;
        publish::write_new(&path, &bytes).on("write", &path)?;
        Ok(path)
    }

    /// It is done.
    fn end(&self, name: &str) -> Result<()> {
        for suffix in [BEGUN, UNFINISHED] {
            let path = self.at(name, suffix)?;
            change::remove_file_if_any(&path).on("remove", path)?;
        }
        Ok(())
    }

    /// Ends what a crash has left begun.
    fn settle(&self, name: &str) -> Result<()> {
        let path = self.at(name, BEGUN)?;
        let bytes = match durable::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            other => other.on("read", &path)?,
        };
        // One that is not understood was never finished, so nothing was done after it.
        if let Ok(begun) = serde_json::from_slice::<Begun>(&bytes) {
            match self.fresh(&begun.target)? {
                None => {
                    let unsettled =
                        begun.unsettled.filter(|_| !begun.boot.is_empty() && begun.boot == boot());
                    plan::after_crash(&begun.target, unsettled.as_deref());
                    self.forget(name)?;
                }
                Some(found) if !self.at(name, RECORD)?.exists() => {
                    return self.write(name, &found);
                }
                Some(_) => {}
            }
        }
        self.end(name)
    }

    /// How many users the mount has; none when it is not there.
    pub fn count(&self, name: &str, target: &Path) -> Result<u64> {
        let _lock = self.lock()?;
        Ok(self.current(name, target)?.map_or(0, |record| record.count))
    }

    /// The record of what is mounted now.
    fn current(&self, name: &str, target: &Path) -> Result<Option<Record>> {
        self.settle(name)?;
        let Some(fresh) = self.fresh(target)? else { return Ok(None) };
        let path = self.at(name, RECORD)?;
        let noted: Option<Record> = match durable::read(&path) {
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
        let new = self.write_new(name, UNFINISHED, record)?;
        change::rename(&new, &self.at(name, RECORD)?).on("rename", &new)?;
        self.end(name)
    }

    fn forget(&self, name: &str) -> Result<()> {
        let path = self.at(name, RECORD)?;
        change::remove_file_if_any(&path).map(drop).on("remove", path)
    }

    fn at(&self, name: &str, suffix: &str) -> Result<PathBuf> {
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return Err(Error::invalid(format!("layer name '{name}'"), "names no file"));
        }
        Ok(self.0.join(format!("{name}{suffix}")))
    }

    /// Waits for the other processes; the lock goes with the file.
    fn lock(&self) -> Result<File> {
        let file = self.lock_file()?;
        sys::lock_file(&file, true).on("lock", &self.0)?;
        Ok(file)
    }

    fn lock_file(&self) -> Result<File> {
        let path = self.0.join(".lock");
        change::open_or_create(&path).on("open", path)
    }
}

/// Which boot of the machine this is; nothing where that is not told.
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}
