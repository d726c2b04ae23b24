//! How many users a layer's mount has, across processes: the first mounts, the last unmounts.
//!
//! A record a layer in the run directory, replaced whole, holds the count and which mount it counts. The table of mounts is
//! the truth: a mount that is gone has no users, whatever the record says, and one without a record has one. So the run
//! directory may be lost, and mounts may be taken away behind our back. A lock of each layer, `NAME.lock`, orders all processes:
//! a mount that is slow to come or go keeps nobody from another layer.
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
/// Of the lock on all that is noted of a layer.
const LOCK: &str = ".lock";

/// The counts of one store.
#[derive(Clone, Debug)]
pub struct Counts(PathBuf);

/// The counts of one layer, which nobody else reads or changes as long as this lives.
#[derive(Debug)]
pub struct Held {
    dir: PathBuf,
    name: String,
    lock: File,
}

/// One mount that is counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    count: u64,
    /// Without symlinks.
    target: PathBuf,
    /// The boot that it is of.
    #[serde(default)]
    boot: String,
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
        key(self) == key(found) && self.target == found.target && self.boot == found.boot
    }
}

impl Counts {
    /// Opens the directory that holds them, made when it is missing. What it holds of another boot counts nothing.
    pub fn open(dir: &Path) -> Result<Counts> {
        change::make_dirs(dir, 0o700).on("create", dir)?;
        Ok(Counts(dir.to_path_buf()))
    }

    /// Keeps everybody from the counts of a layer: from mounting it, from taking mounts of it back. Waits for who does.
    pub fn hold(&self, name: &str) -> Result<Held> {
        loop {
            if let Some(held) = self.lock(name, true)? {
                return Ok(held);
            }
        }
    }

    /// [`Held::mount`].
    pub fn mount(&self, name: &str, mount: &Mount, server: &Server) -> Result<PathBuf> {
        self.hold(name)?.mount(mount, server)
    }

    /// [`Held::unmount`].
    pub fn unmount(&self, name: &str, target: &Path) -> Result<u64> {
        self.hold(name)?.unmount(target)
    }

    /// [`Held::take`].
    pub fn take(&self, name: &str) -> Result<()> {
        self.hold(name)?.take()
    }

    /// [`Held::give_back`].
    pub fn give_back(&self, name: &str) -> Result<bool> {
        self.hold(name)?.give_back()
    }

    /// [`Held::used`].
    pub fn used(&self, name: &str) -> Result<u64> {
        self.hold(name)?.used()
    }

    /// [`Held::count`].
    pub fn count(&self, name: &str, target: &Path) -> Result<u64> {
        self.hold(name)?.count(target)
    }

    /// Does `work` where the layer is not mounted, and keeps everybody from mounting it meanwhile; whether it was done.
    pub fn unless_mounted(
        &self,
        name: &str,
        target: &Path,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        let held = self.hold(name)?;
        match held.current(target)? {
            Some(_) => Ok(false),
            None => work().map(|()| true),
        }
    }

    /// Forgets a layer that is removed.
    pub fn removed(dir: &Path, name: &str) -> Result<()> {
        if !dir.is_dir() {
            return Ok(());
        }
        let held = Counts(dir.to_path_buf()).hold(name)?;
        held.write_used(0)?;
        held.forget()?;
        held.end()?;
        // Who waits for it sees that it has gone, and makes another.
        held.remove(LOCK)
    }

    /// Clears away what a crash left of mounting and unmounting; nothing of a layer while somebody is at it.
    pub fn sweep(dir: &Path) -> Result<()> {
        let counts = Counts(dir.to_path_buf());
        let entries = match std::fs::read_dir(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.on("list", dir)?,
        };
        for entry in entries {
            let name = entry.on("list", dir)?.file_name();
            let name = name.to_str().unwrap_or_default();
            let left = [BEGUN, UNFINISHED].iter().find_map(|suffix| name.strip_suffix(suffix));
            let left = left.filter(|name| !name.is_empty() && !name.starts_with('.'));
            if let Some(held) = left.map(|name| counts.lock(name, false)).transpose()?.flatten() {
                held.settle()?;
            }
        }
        Ok(())
    }

    /// The lock goes with the file. Without `wait` it is nothing where somebody has it.
    fn lock(&self, name: &str, wait: bool) -> Result<Option<Held>> {
        let path = at(&self.0, name, LOCK)?;
        loop {
            let lock = change::open_or_create(&path).on("open", &path)?;
            if !sys::lock_file(&lock, wait).on("lock", &path)? {
                return Ok(None);
            }
            // Whoever had it may have removed the layer, and the name, since it was opened.
            if durable::is_same(&lock, &path)? {
                return Ok(Some(Held { dir: self.0.clone(), name: name.to_owned(), lock }));
            }
        }
    }
}

impl Held {
    /// Mounts, or takes part in the mount that is there. Returns where it is seen.
    pub fn mount(&self, mount: &Mount, server: &Server) -> Result<PathBuf> {
        let target = &mount.target;
        let record = match self.current(target)? {
            Some(record) => Record { count: record.count.saturating_add(1), ..record },
            None => {
                self.begin(target)?;
                let made = plan::perform_under(mount, server, Some(&self.lock)).map(Mounted::keep);
                let found = made.and_then(|_| {
                    self.fresh(target)?.ok_or_else(|| {
                        let gone = std::io::Error::other("gone again");
                        Error::io("mount", target, gone)
                    })
                });
                if found.is_err() {
                    self.end()?;
                }
                found?
            }
        };
        match self.write(&record) {
            Err(error) if record.count == 1 => {
                plan::take_away(target, true)?;
                self.end()?;
                Err(error)
            }
            other => other.map(|()| target.clone()),
        }
    }

    /// One user fewer; the last one takes the mount away. Returns how many are left.
    pub fn unmount(&self, target: &Path) -> Result<u64> {
        let Some(record) = self.current(target)? else {
            self.forget()?;
            self.end()?;
            return Err(Error::NotFound { kind: "mount of layer", name: self.name.clone() });
        };
        if record.count > 1 {
            let record = Record { count: record.count - 1, ..record };
            self.write(&record)?;
            return Ok(record.count);
        }
        self.begin(target)?;
        let taken = plan::take_away(target, false).and_then(|()| self.forget());
        self.end()?;
        taken.map(|()| 0)
    }

    /// One user more of a layer that is seen where it is.
    pub fn take(&self) -> Result<()> {
        self.write_used(self.used()? + 1)
    }

    /// One user fewer; whether there was one.
    pub fn give_back(&self) -> Result<bool> {
        match self.used()? {
            0 => Ok(false),
            count => self.write_used(count - 1).map(|()| true),
        }
    }

    /// How many use the layer's directory.
    pub fn used(&self) -> Result<u64> {
        let path = self.at(USED)?;
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            other => other.on("read", &path)?,
        };
        let used: Option<Used> = serde_json::from_slice(&bytes).ok();
        let used = used.filter(|used| used.version == VERSION && used.boot == boot());
        Ok(used.map_or(0, |used| used.count))
    }

    /// How many users the mount has; none when it is not there.
    pub fn count(&self, target: &Path) -> Result<u64> {
        Ok(self.current(target)?.map_or(0, |record| record.count))
    }

    fn write_used(&self, count: u64) -> Result<()> {
        if count == 0 {
            return self.remove(USED);
        }
        let new = self.write_new(UNFINISHED, &Used { version: VERSION, count, boot: boot() })?;
        change::rename(&new, &self.at(USED)?).on("rename", &new)
    }

    /// Notes that something is about to be mounted at the target, or taken away from there.
    fn begin(&self, target: &Path) -> Result<()> {
        let unsettled = plan::unsettled(target);
        let begun = Begun { version: VERSION, target: target.into(), unsettled, boot: boot() };
        self.write_new(BEGUN, &begun).map(drop)
    }

    fn write_new(&self, suffix: &str, record: &impl Serialize) -> Result<PathBuf> {
        let path = self.at(suffix)?;
        let bytes = serde_json::to_vec(record)
            .map_err(|error| Error::io("write", &path, std::io::Error::other(error)))?;
        self.remove(suffix)?;
        publish::write_new(&path, &bytes).on("write", &path)?;
        Ok(path)
    }

    /// It is done.
    fn end(&self) -> Result<()> {
        [BEGUN, UNFINISHED].iter().try_for_each(|suffix| self.remove(suffix))
    }

    /// Ends what a crash has left begun.
    fn settle(&self) -> Result<()> {
        let path = self.at(BEGUN)?;
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
                    self.forget()?;
                }
                Some(found) if !self.at(RECORD)?.exists() => {
                    return self.write(&found);
                }
                Some(_) => {}
            }
        }
        self.end()
    }

    /// The record of what is mounted now.
    fn current(&self, target: &Path) -> Result<Option<Record>> {
        self.settle()?;
        let Some(fresh) = self.fresh(target)? else { return Ok(None) };
        let path = self.at(RECORD)?;
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
            target: real,
            boot: boot(),
            mount: found.id,
            device: found.device,
        }))
    }

    fn write(&self, record: &Record) -> Result<()> {
        let new = self.write_new(UNFINISHED, record)?;
        change::rename(&new, &self.at(RECORD)?).on("rename", &new)?;
        self.end()
    }

    fn forget(&self) -> Result<()> {
        self.remove(RECORD)
    }

    fn remove(&self, suffix: &str) -> Result<()> {
        let path = self.at(suffix)?;
        change::remove_file_if_any(&path).map(drop).on("remove", path)
    }

    fn at(&self, suffix: &str) -> Result<PathBuf> {
        at(&self.dir, &self.name, suffix)
    }
}

/// Where something of a layer is noted.
fn at(dir: &Path, name: &str, suffix: &str) -> Result<PathBuf> {
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        return Err(Error::invalid(format!("layer name '{name}'"), "names no file"));
    }
    Ok(dir.join(format!("{name}{suffix}")))
}

/// Which boot of the machine this is; nothing where that is not told.
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}
