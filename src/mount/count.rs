//! How many users a layer's mount has, across processes: the first mounts, the last unmounts.
//!
//! A record a layer in one directory, replaced whole, holds the count and which mount it counts. The table of mounts is
//! the truth: a mount that is gone has no users, whatever the record says, and one without a record has one. So the directory
//! may be lost, and mounts may be taken away behind our back. It is the table of the namespace that the mount was made in, as long
//! as a process is there: elsewhere nobody mounts or unmounts the layer. A lock of each layer, `NAME.lock`, orders all processes:
//! a mount that is slow to come or go keeps nobody from another layer.
//!
//! A layer that is seen without a mount has no such truth: `NAME.used` counts who was given its directory and has not given it back,
//! in this boot.
//!
//! Beside `NAME.json` there is `NAME.new` while a mount is made or taken away. Without somebody who has the lock it was left by
//! a crash: whether the mount is there is seen, and if it is not, its directory goes ([`Counts::sweep`]).

mod record;
mod standing;

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::namespace::Namespace;
use super::plan::{self, Mount, Mounted, Server};
use super::table::{self, MountPoint};
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::sys::{self, change, probe, publish};
use record::{Begun, Maps, Record, Spelled, Used, VERSION, boot};
use standing::{given, is_read_only};

/// What follows the name: of a record, of one that is being written, of what is under way.
const RECORD: &str = ".json";
const UNFINISHED: &str = ".tmp";
const BEGUN: &str = ".new";
/// Of the count of those who use a layer's directory, where nothing is mounted.
const USED: &str = ".used";
/// Of the lock on all that is noted of a layer.
const LOCK: &str = ".lock";

/// How long a server may take to tell that it is there. One that takes longer has not ended.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

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

/// What is mounted of a layer.
struct Current {
    record: Record,
    /// Who has it, where that is not seen at the target from here.
    away: Option<String>,
}

impl Counts {
    /// Opens the directory that holds them, made when it is missing. What it holds of another boot counts nothing.
    pub fn open(dir: &Path) -> Result<Counts> {
        change::make_dirs(dir, 0o700).on("create", dir)?;
        change::keep_spare(dir);
        Ok(Counts(dir.to_path_buf()))
    }

    /// Keeps everybody from the counts of a layer: from mounting it, from taking mounts of it back. Waits for who does.
    pub fn hold(&self, name: &str) -> Result<Held> {
        self.hold_by(name, change::open_or_create)
    }

    /// The same to remove it, also where there is no room for a lock.
    pub fn hold_without_room(&self, name: &str) -> Result<Held> {
        self.hold_by(name, |path| change::open_or_spend(path, &self.0))
    }

    fn hold_by(&self, name: &str, open: impl Fn(&Path) -> io::Result<File>) -> Result<Held> {
        loop {
            if let Some(held) = self.lock(name, true, &open)? {
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
        match held.usable(target)? {
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
            if let Some(held) = left
                .map(|name| counts.lock(name, false, change::open_or_create))
                .transpose()?
                .flatten()
            {
                held.settle()?;
            }
        }
        Ok(())
    }

    /// The lock goes with the file. Without `wait` it is nothing where somebody has it.
    fn lock(
        &self,
        name: &str,
        wait: bool,
        open: impl Fn(&Path) -> io::Result<File>,
    ) -> Result<Option<Held>> {
        let path = at(&self.0, name, LOCK)?;
        loop {
            let lock = open(&path).on("open", &path)?;
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
        let (target, maps) = (&mount.target, Maps::from(&mount.ids));
        let record = match self.usable(target)? {
            Some(Current { away: Some(by), .. }) => return Err(self.in_use(by)),
            Some(Current { record, .. }) if record.maps != maps => {
                let by = format!("its mount, which shows {}; unmount it first", record.maps);
                return Err(self.in_use(by));
            }
            Some(Current { record, .. }) => Record { count: self.more(record.count)?, ..record },
            None => {
                if !is_read_only(mount) {
                    self.next_turn()?;
                }
                self.begin(target, &maps)?;
                let made = plan::perform_under(mount, server, Some(&self.lock)).map(Mounted::keep);
                let found = made.and_then(|_| {
                    let found = seen(&real(target))?.ok_or_else(|| {
                        let gone = std::io::Error::other("gone again");
                        Error::io("mount", target, gone)
                    });
                    let options = Some(given(mount));
                    found.map(|found| Record { options, ..Record::of(&found, maps) })
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
        let record = match self.current(target)? {
            Some(Current { away: Some(by), .. }) => return Err(self.in_use(by)),
            Some(Current { record, .. }) => record,
            None => {
                self.forget()?;
                self.end()?;
                return Err(Error::NotFound { kind: "mount of layer", name: self.name.clone() });
            }
        };
        if record.count > 1 {
            let record = Record { count: record.count - 1, ..record };
            self.write(&record)?;
            return Ok(record.count);
        }
        self.begin(target, &record.maps)?;
        let taken = plan::take_away(target, false).and_then(|()| self.forget());
        self.end()?;
        taken.map(|()| 0)
    }

    /// One user more of a layer that is seen where it is.
    pub fn take(&self) -> Result<()> {
        self.next_turn()?;
        self.write_used(self.more(self.used()?)?)
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
        let bytes = match durable::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            other => other.on("read", &path)?,
        };
        let used: Option<Used> = serde_json::from_slice(&bytes).ok();
        let used = used.filter(|used| used.version == VERSION && used.boot == boot());
        Ok(used.map_or(0, |used| used.count))
    }

    /// How many users the mount has, in whatever namespace it is; none when it is not there.
    pub fn count(&self, target: &Path) -> Result<u64> {
        Ok(self.current(target)?.map_or(0, |current| current.record.count))
    }

    fn write_used(&self, count: u64) -> Result<()> {
        if count == 0 {
            return self.remove(USED);
        }
        self.replace(USED, &Used { version: VERSION, count, boot: boot() })
    }

    /// Notes that something is about to be mounted at the target, or taken away from there.
    fn begin(&self, target: &Path, maps: &Maps) -> Result<()> {
        let begun = Begun {
            version: VERSION,
            target: Spelled(real(target)),
            unsettled: plan::unsettled(target).map(Spelled),
            boot: boot(),
            namespace: Namespace::ours(),
            maps: maps.clone(),
        };
        match self.write_new(BEGUN, &begun) {
            // What is noted helps after a crash only; to take a mount away is a way to make room.
            Err(error) if error.is_no_room() => {
                log::debug!("{error}");
                Ok(())
            }
            other => other.map(drop),
        }
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

    /// Ends what a crash has left begun. Who has what is mounted, where that cannot be ended from here.
    fn settle(&self) -> Result<Option<String>> {
        let path = self.at(BEGUN)?;
        let bytes = match durable::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            other => other.on("read", &path)?,
        };
        // One that is not understood was never finished, so nothing was done after it.
        if let Ok(begun) = serde_json::from_slice::<Begun>(&bytes) {
            let (Spelled(target), ours) =
                (begun.target, !begun.boot.is_empty() && begun.boot == boot());
            let holder = || begun.namespace.holder(|mount| mount.target == target);
            if let Some(by) = ours.then(holder).flatten() {
                return Ok(Some(by));
            }
            match seen(&target)? {
                None => {
                    let unsettled = begun.unsettled.filter(|_| ours).map(|path| path.0);
                    plan::after_crash(&target, unsettled.as_deref());
                    self.forget()?;
                }
                Some(found) if !self.at(RECORD)?.exists() => {
                    return self.write(&Record::of(&found, begun.maps)).map(|()| None);
                }
                Some(_) => {}
            }
        }
        self.end().map(|()| None)
    }

    /// What is mounted now.
    fn current(&self, target: &Path) -> Result<Option<Current>> {
        let (begun, noted, target) = (self.settle()?, self.noted()?, real(target));
        let away = match &noted {
            _ if begun.is_some() => begun,
            Some(noted) => self.away(noted, &target)?,
            None => None,
        };
        if let (Some(record), Some(_)) = (&noted, &away) {
            return Ok(Some(Current { record: record.clone(), away }));
        }
        let Some(found) = seen(&target)? else {
            let begun = |by| Current { record: Record::nowhere(&target), away: Some(by) };
            return Ok(away.map(begun));
        };
        let fresh = Record::of(&found, Maps::default());
        let noted = noted.filter(|noted| noted.counts(&found) && noted.target == fresh.target);
        let record = noted.map_or(fresh, |noted| Record { count: noted.count.max(1), ..noted });
        Ok(Some(Current { record, away }))
    }

    /// What the record says, in this boot. One that is not understood counts nothing.
    fn noted(&self) -> Result<Option<Record>> {
        let path = self.at(RECORD)?;
        let noted: Option<Record> = match durable::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            other => serde_json::from_slice(&other.on("read", &path)?).ok(),
        };
        Ok(noted.filter(|noted| noted.version == VERSION && noted.boot == boot()))
    }

    /// Who has the mount of a record, where it is not at the target but in another namespace, or at another place of ours.
    fn away(&self, noted: &Record, target: &Path) -> Result<Option<String>> {
        if let Some(by) = noted.namespace.holder(|mount| noted.counts(mount)) {
            return Ok(Some(by));
        }
        if noted.target.0 == target {
            return Ok(None);
        }
        let found = table::read()?.into_iter().find(|mount| noted.counts(mount));
        let found = found.filter(|found| found.target != target);
        Ok(found.map(|found| format!("its mount at {}", found.target.display())))
    }

    /// What is mounted now and can be used: what a server of ours has left at its death is taken away.
    fn usable(&self, target: &Path) -> Result<Option<Current>> {
        loop {
            let current = self.current(target)?;
            let here = current.as_ref().is_some_and(|current| current.away.is_none());
            if !here || !seen(&real(target))?.is_some_and(|found| is_dead(&found)) {
                return Ok(current);
            }
            log::warn!("layer '{}': the server of its mount has ended", self.name);
            self.begin(target, &Maps::default())?;
            let taken = plan::take_away(target, true).and_then(|()| self.forget());
            self.end()?;
            taken?;
        }
    }

    /// One user more than there are.
    fn more(&self, count: u64) -> Result<u64> {
        count.checked_add(1).ok_or_else(|| self.in_use("as many as can be counted".to_owned()))
    }

    fn in_use(&self, by: String) -> Error {
        Error::InUse { kind: "layer", name: self.name.clone(), by }
    }

    fn write(&self, record: &Record) -> Result<()> {
        self.replace(RECORD, record)?;
        self.end()
    }

    /// Replaces a record by one renaming. Where there is no room for two, it is written over: one that a crash tears is
    /// understood by nobody, and the mount has one user then.
    fn replace(&self, suffix: &str, record: &impl Serialize) -> Result<()> {
        let path = self.at(suffix)?;
        let new = match self.write_new(UNFINISHED, record) {
            Err(error) if error.is_no_room() => {
                self.remove(UNFINISHED)?;
                let Ok(file) = File::options().write(true).open(&path) else { return Err(error) };
                let bytes =
                    serde_json::to_vec(record).map_err(|e| Error::io("encode", &path, e.into()))?;
                let written = change::write(&file, &bytes);
                return written
                    .and_then(|()| change::set_len(&file, bytes.len() as u64))
                    .on("write", path);
            }
            other => other?,
        };
        change::rename(&new, &path).on("rename", &new)
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

/// Without symlinks. The last name is not looked at: what is mounted there need not answer.
fn real(target: &Path) -> PathBuf {
    let dir = target.parent().and_then(|dir| dir.canonicalize().ok());
    dir.zip(target.file_name()).map_or(target.to_path_buf(), |(dir, name)| dir.join(name))
}

/// What is mounted at a path without symlinks.
fn seen(target: &Path) -> Result<Option<MountPoint>> {
    Ok(table::topmost(&table::read()?, target).cloned())
}

/// Whether the server of a mount of ours has ended without it. It is asked by a thread, for one that is stopped keeps whoever
/// asks waiting.
fn is_dead(mount: &MountPoint) -> bool {
    if !mount.is_ours() {
        return false;
    }
    let (tell, told) = mpsc::channel();
    let target = mount.target.clone();
    // A receiver that waits no more is told nothing.
    let asking = thread::Builder::new()
        .spawn(move || tell.send(probe::filesystem_magic(&target)).unwrap_or_default());
    let Ok(_) = asking else { return false };
    let ends = [ErrorKind::NotConnected, ErrorKind::ConnectionAborted];
    matches!(told.recv_timeout(ANSWERS_WITHIN), Ok(Err(error)) if ends.contains(&error.kind()))
}

/// Where something of a layer is noted.
fn at(dir: &Path, name: &str, suffix: &str) -> Result<PathBuf> {
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        return Err(Error::invalid(format!("layer name '{name}'"), "names no file"));
    }
    Ok(dir.join(format!("{name}{suffix}")))
}
