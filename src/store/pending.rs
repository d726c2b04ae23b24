//! What is under way: one file `pending/<id>` for each layer that is being made, filled, removed or first mounted with other ids, locked
//! by whoever does it. It says with which driver what is done. A file that nobody has locked is what a crash left, and is undone or
//! finished by the next who opens the store with that driver. The lock also keeps two processes from changing one layer at a
//! time.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::driver::LayerId;
use crate::durable;
use crate::error::{Context, Result};
use crate::sys::{self, change};

/// What is done to a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// It is made: without a record afterwards it never was.
    Create,
    /// It is filled: without content in the record afterwards it is empty.
    Apply,
    /// It is removed: without a record its storage goes too.
    Remove,
    /// It is mounted with other ids for the first time, which its record is to say.
    Mount,
}

const WORDS: [(Work, &str); 4] = [
    (Work::Create, "create"),
    (Work::Apply, "apply"),
    (Work::Remove, "remove"),
    (Work::Mount, "mount"),
];

/// Where there is no room for a word, a file of this length without any data says `remove`: that makes room.
const REMOVE_LENGTH: u64 = 1 << 20;

/// How long whoever has announced nothing is waited for. He looks whether there is anything to do, or whether a crash left
/// anything, which ends soon.
const LOOKS_WITHIN: Duration = Duration::from_secs(5);

/// The same where that may be somebody who waits for us.
const LOOKS_AT_ONCE: Duration = Duration::from_millis(40);

/// How long whoever has announced something is waited for: it may be what a crash left, which he clears away.
const CLEARS_WITHIN: Duration = Duration::from_millis(300);

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) work: Work,
    /// The driver that does it; none where there was no room to say that.
    pub(super) driver: Option<String>,
}

/// The work on one layer. When this goes without [`Pending::done`] the file stays, as after a crash.
#[derive(Debug)]
pub(super) struct Pending {
    path: PathBuf,
    /// Holds the lock.
    file: File,
}

impl Pending {
    /// Keeps others from changing a layer; says also what was left of earlier work on it, which has to be cleared away first.
    /// Nothing is announced yet.
    pub(super) fn begin(dir: &Path, id: &LayerId) -> Result<(Pending, Option<Said>)> {
        let start = Instant::now();
        loop {
            if let Some(begun) = Pending::begin_at_once(dir, id)? {
                return Ok(begun);
            }
            let patience = match Pending::of(dir, id)? {
                None => LOOKS_WITHIN,
                Some(_) => CLEARS_WITHIN,
            };
            if start.elapsed() >= patience {
                return Err(super::changing(id));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// The same for whoever has a lock that those he would wait for may want: nothing where somebody is at it.
    pub(super) fn begin_at_once(
        dir: &Path,
        id: &LayerId,
    ) -> Result<Option<(Pending, Option<Said>)>> {
        let start = Instant::now();
        loop {
            if let Some(mut pending) = Pending::lock(&dir.join(id.as_str()), true)? {
                let left = pending.said()?;
                return Ok(Some((pending, left)));
            }
            // Who looks what crashes left has it for a moment, and wants no other lock.
            if start.elapsed() >= LOOKS_AT_ONCE || Pending::of(dir, id)?.is_some() {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Announces what is done from now on: what a crash leaves of it is undone or finished. So whatever could show that there is
    /// nothing to do is looked at before.
    pub(super) fn say(&mut self, work: Work, driver: &str) -> Result<()> {
        match self.write(work, driver) {
            Err(error) if error.is_no_room() && work == Work::Remove => {
                let said =
                    change::set_len(&self.file, REMOVE_LENGTH).and_then(|()| self.file.sync_all());
                said.on("write", &self.path)?;
            }
            other => other?,
        }
        durable::sync_dir(durable::parent(&self.path))
    }

    fn write(&mut self, work: Work, driver: &str) -> Result<()> {
        let word = WORDS.iter().find(|(one, _)| *one == work).map_or("", |(_, word)| word);
        // A crash leaves a part of it at most, which ends with no word.
        let text = format!("{driver} {word}");
        let written = change::set_len(&self.file, 0).and_then(|()| {
            self.file.rewind()?;
            change::write(&self.file, text.as_bytes())?;
            self.file.sync_all()
        });
        written.on("write", &self.path)
    }

    fn said(&mut self) -> Result<Option<Said>> {
        said(&self.file).on("read", &self.path)
    }

    /// What is done to a layer, or was when a crash came.
    pub(super) fn of(dir: &Path, id: &LayerId) -> Result<Option<Work>> {
        let path = dir.join(id.as_str());
        match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            file => file
                .and_then(|file| said(&file))
                .map(|said| said.map(|said| said.work))
                .on("read", path),
        }
    }

    /// What a crash left: the layer's name, the work, and the lock on it. Nothing of what somebody still does.
    pub(super) fn left(dir: &Path) -> Result<Vec<(LayerId, Said, Pending)>> {
        let mut left = Vec::new();
        for entry in std::fs::read_dir(dir).on("list", dir)? {
            let path = entry.on("list", dir)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Ok(id) = LayerId::new(name) else { continue };
            let found = Pending::lock(&path, false).and_then(|pending| match pending {
                Some(mut pending) => pending.said().map(|said| Some((said, pending))),
                None => Ok(None),
            });
            match found {
                Ok(Some((Some(said), pending))) => left.push((id, said, pending)),
                // The crash came before anything was begun.
                Ok(Some((None, pending))) => pending.done()?,
                Ok(None) => {}
                // What cannot be read as one keeps nobody from other layers.
                Err(error) => log::warn!("layer '{id}': {error}; the next start tries again"),
            }
        }
        Ok(left)
    }

    /// `None` when somebody else has it, or it is gone and not to be made.
    fn lock(path: &Path, make: bool) -> Result<Option<Pending>> {
        loop {
            let file = match make {
                // A layer can be removed also where there is no room for this.
                true => change::open_or_spend(path, spares(path)),
                false => File::options().read(true).write(true).open(path),
            };
            let file = match file {
                Err(e) if e.kind() == ErrorKind::NotFound && !make => return Ok(None),
                other => other.on("open", path)?,
            };
            if !sys::lock_file(&file, false).on("lock", path)? {
                return Ok(None);
            }
            // Whoever had it may have been done, and removed the name, since it was opened.
            if durable::is_same(&file, path)? {
                return Ok(Some(Pending { path: path.to_path_buf(), file }));
            }
        }
    }

    /// The work is done.
    pub(super) fn done(self) -> Result<()> {
        change::remove_file(&self.path).on("remove", &self.path)
    }
}

/// Where a file is kept for when none can be made: the root of the store.
fn spares(path: &Path) -> &Path {
    path.parent().and_then(Path::parent).unwrap_or(path)
}

fn said(mut file: &File) -> io::Result<Option<Said>> {
    let (mut text, at_most) = (Vec::new(), 256);
    file.rewind()?;
    file.take(at_most).read_to_end(&mut text)?;
    if file.metadata()?.len() == REMOVE_LENGTH && text.iter().all(|byte| *byte == 0) {
        return Ok(Some(Said { work: Work::Remove, driver: None }));
    }
    let text = String::from_utf8(text).unwrap_or_default();
    let (driver, word) = match text.split_once(' ') {
        Some((driver, word)) => (Some(driver.to_owned()), word),
        None => (None, text.as_str()),
    };
    // Anything else was never announced whole, so nothing was done after it.
    let work = WORDS.iter().find(|(_, one)| *one == word).map(|(work, _)| *work);
    Ok(work.map(|work| Said { work, driver }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(work: Work) -> Said {
        Said { work, driver: Some("vfs".to_owned()) }
    }

    #[test]
    fn a_layer_is_changed_by_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let id = LayerId::new("a").unwrap();
        let (mut first, left) = Pending::begin(dir.path(), &id).unwrap();
        assert_eq!(left, None);
        first.say(Work::Create, "vfs").unwrap();
        let error = Pending::begin(dir.path(), &id).unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
        assert_eq!(Pending::left(dir.path()).unwrap().len(), 0);
        first.done().unwrap();
        Pending::begin(dir.path(), &id).unwrap().0.done().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// As whoever opens the store does, who looks for what a crash left.
    #[test]
    fn who_only_looks_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let id = LayerId::new("a").unwrap();
        let looking = Pending::begin(dir.path(), &id).unwrap().0;
        thread::scope(|scope| {
            let next = scope.spawn(|| Pending::begin(dir.path(), &id));
            thread::sleep(Duration::from_millis(600));
            looking.done().unwrap();
            next.join().unwrap().unwrap().0.done().unwrap();
        });
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_crash_left_is_found() {
        let dir = tempfile::tempdir().unwrap();
        for (name, work) in [("a", Work::Create), ("b", Work::Apply), ("c", Work::Remove)] {
            let mut pending = Pending::begin(dir.path(), &LayerId::new(name).unwrap()).unwrap().0;
            pending.say(work, "vfs").unwrap();
        }
        // Of this nothing was announced.
        drop(Pending::begin(dir.path(), &LayerId::new("d").unwrap()).unwrap());
        for (name, text) in [
            ("e", &b"\0\0\0\0\0\0"[..]),
            ("f", b"\xff\xfe"),
            ("g", b"createe"),
            ("h", b"vfs"),
            ("i", b"vfs creat"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let again = Pending::begin(dir.path(), &LayerId::new("a").unwrap()).unwrap();
        assert_eq!(again.1, Some(said(Work::Create)), "what is to be cleared away is told");
        drop(again);
        std::fs::write(dir.path().join("z"), "apply").unwrap();
        let mut left = Pending::left(dir.path()).unwrap();
        left.sort_by(|a, b| a.0.cmp(&b.0));
        let left: Vec<_> = left.iter().map(|(id, said, _)| (id.as_str(), said.clone())).collect();
        let wanted = [
            ("a", said(Work::Create)),
            ("b", said(Work::Apply)),
            ("c", said(Work::Remove)),
            ("z", Said { work: Work::Apply, driver: None }),
        ];
        assert_eq!(left, wanted);
        assert!(!dir.path().join("d").exists());
    }
}
