//! One store, on which scenes are played.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plyfs::driver::{Create, LayerId};
use plyfs::store::Store;
use rustix::mount::UnmountFlags;

use crate::common::cmd::{Cmd, Done};
use crate::common::sandbox::Sandbox;
use crate::driver_kit;
use crate::store_kit::Box_;

/// Scenes with more steps are killed at each of the first and last of them, and at some between.
const ALL: u64 = 60;
const EDGE: u64 = 20;
/// The exit status of what SIGKILL ended.
const KILLED: i32 = 128 + 9;

/// One command.
pub struct Scene {
    pub name: &'static str,
    /// Which drivers have it.
    pub on: fn(&Play) -> bool,
    /// The store as it is before, made from any state that the scene can leave.
    pub prepare: fn(&Play),
    pub words: fn(&Play) -> Vec<String>,
    /// Which driver the command is told to use.
    pub driver: fn(&Play) -> &'static str,
    /// It is killed while it opens the store too; the others are not, all open it alike.
    pub opening: bool,
    /// The changes that it surely takes.
    pub least: u64,
    /// What else has to hold after a kill; it may change the store.
    pub verify: fn(&Play),
}

/// Names that are there, without what is random or no business of the store.
pub type Names = BTreeSet<String>;

pub struct Play {
    pub store: driver_kit::Store,
    /// The same, as the library sees it.
    pub library: Option<Store>,
    /// Changes that opening the store takes.
    opening: Cell<u64>,
    /// Changes that filling a layer takes, opening the store included.
    filling: Cell<u64>,
}

impl Play {
    /// A store with the layer `base`.
    pub fn open(driver: &str) -> Play {
        let mut play = Play::bare(driver);
        super::scenes::write_archives(&play);
        let root = play.store.root();
        play.store.driver = driver_kit::open(driver, &root);
        let driver = Arc::from(driver_kit::open(driver, &root));
        play.library = Some(Store::open(&root, &root.join("run"), driver).unwrap());
        play.create("base", None, true);
        play.apply("base");
        play.opening.set(play.changes(play.own_driver(), &["layer", "ls"]));
        play.create("x", Some("base"), true);
        let archive = play.archive("x");
        let apply = ["layer", "apply", "x", archive.to_str().unwrap()];
        play.filling.set(play.changes(play.own_driver(), &apply));
        play
    }

    /// A root that is not there yet.
    pub fn bare(driver: &str) -> Play {
        let sandbox = Sandbox::in_memory();
        let elsewhere = driver_kit::open(driver, &sandbox.at("elsewhere"));
        let store = driver_kit::Store { sandbox, driver: elsewhere };
        Play { store, library: None, opening: Cell::new(0), filling: Cell::new(0) }
    }

    pub fn own_driver(&self) -> &'static str {
        self.store.driver.name()
    }

    /// A call of the program on the store.
    pub fn plyfs(&self, words: &[&str]) -> Cmd {
        Box_(&self.store).plyfs(words)
    }

    /// One that is killed before its `n`th change, if it makes so many.
    pub fn killed(&self, driver: &str, words: &[&str], n: u64) -> Done {
        let cmd = Box_(&self.store).plyfs_on(driver, words);
        cmd.env("PLYFS_STORE_FAULT", n.to_string()).run()
    }

    /// Leaves a layer half filled, a record half made and a trial half done.
    pub fn crash(&self, name: &str) {
        let archive = self.archive(name);
        let apply = ["layer", "apply", name, archive.to_str().unwrap()];
        let n = self.filling.get() - (self.filling.get() - self.opening.get()) / 5;
        assert_eq!(self.killed(self.own_driver(), &apply, n).status, KILLED);
        let root = self.store.root();
        let says = format!("{} apply", self.own_driver());
        assert_eq!(fs::read_to_string(root.join("pending").join(name)).unwrap(), says);
        for dir in ["layers/.0123/z", ".trial-DEAD/upper/d"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
    }

    /// Changes that opening the store takes.
    pub fn opening(&self) -> u64 {
        self.opening.get()
    }

    pub fn library(&self) -> &Store {
        self.library.as_ref().unwrap()
    }

    pub fn create(&self, name: &str, parent: Option<&str>, read_only: bool) {
        let spec = Create { read_only, ..Create::default() };
        self.library().create(&id(name), parent.map(id).as_ref(), &spec).unwrap();
    }

    pub fn archive(&self, name: &str) -> PathBuf {
        self.store.sandbox.at(format!("{name}.tar"))
    }

    pub fn apply(&self, name: &str) {
        let mut archive = fs::File::open(self.archive(name)).unwrap();
        self.library().apply(&id(name), &mut archive, &Default::default()).unwrap();
    }

    pub fn remove(&self, name: &str) {
        if self.library().find(&id(name)).unwrap().is_some() {
            self.library().remove(&id(name)).unwrap();
        }
    }

    /// The changes that a command makes, which is not killed.
    fn changes(&self, driver: &str, words: &[&str]) -> u64 {
        let cmd = Box_(&self.store).plyfs_on(driver, words).env("PLYFS_STORE_FAULT", "1000000");
        let done = cmd.env("PLYFS_LOG", "plyfs_fuse::sys::fault=trace").succeeds();
        let lines = done.stderr.lines().filter(|line| line.contains("change ")).count();
        u64::try_from(lines).unwrap()
    }

    /// Plays a scene, killed at every step.
    pub fn every_step(&self, scene: &Scene) {
        if !(scene.on)(self) {
            return;
        }
        let (driver, words) = ((scene.driver)(self), (scene.words)(self));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        (scene.prepare)(self);
        self.plyfs(&["layer", "ls"]).succeeds();
        let old = self.names();
        (scene.prepare)(self);
        let total = self.changes(driver, &words);
        self.plyfs(&["layer", "ls"]).succeeds();
        let new = self.names();
        (scene.verify)(self);
        let first = if scene.opening { 1 } else { self.opening.get() };
        let mut killed = 0;
        for n in steps(first, total) {
            (scene.prepare)(self);
            let done = self.killed(driver, &words, n);
            let what = format!("{driver}: {}, killed before change {n} of {total}", scene.name);
            killed += u64::from(done.status == KILLED);
            assert!([0, KILLED].contains(&done.status), "{what}\n{}", done.story());
            let ls = self.plyfs(&["layer", "ls"]).run();
            assert_eq!(ls.status, 0, "{what}: the store does not open\n{}", ls.story());
            assert_eq!(ls.stderr, "", "{what}");
            let mut found = self.names();
            if found != old && found != new {
                // A sweep leaves others at work alone, and what another test is about to run has this process's locks.
                std::thread::sleep(std::time::Duration::from_millis(500));
                self.plyfs(&["layer", "ls"]).succeeds();
                found = self.names();
            }
            assert!(found == old || found == new, "{what}:\n{}", differences(&found, &old, &new));
            let pending = fs::read_dir(self.store.root().join("pending")).unwrap().count();
            assert_eq!(pending, 0, "{what}: left in pending");
            self.sound(&what);
            (scene.verify)(self);
            assert_eq!(self.mounts(), [] as [String; 0], "{what}");
        }
        assert!(killed >= scene.least, "{driver}: {}: killed {killed} times only", scene.name);
    }

    /// Nothing is wrong, and what has an archive gives it back.
    pub fn sound(&self, what: &str) {
        let Some(library) = &self.library else {
            self.plyfs(&["check"]).succeeds().says("nothing wrong");
            return;
        };
        let checked = library.check(false, &mut |_| {}).unwrap();
        assert_eq!(checked.problems, [], "{what}");
        for record in library.list().unwrap().iter().filter(|record| record.content.is_some()) {
            let mut bytes = Vec::new();
            library.diff(&id(&record.id), &mut bytes).unwrap();
            let filled = record.template.as_ref().unwrap_or(&record.id);
            let same = bytes == fs::read(self.archive(filled)).unwrap();
            assert!(same, "{what}: the archive of '{}' is another", record.id);
        }
    }

    /// What is mounted in the store.
    pub fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let root = self.store.root().display().to_string();
        let targets = table.lines().filter_map(|line| line.split(' ').nth(4));
        targets.filter(|target| target.starts_with(&root)).map(str::to_owned).collect()
    }

    fn names(&self) -> Names {
        let mut names = Names::new();
        if self.store.root().exists() {
            list(&self.store.root(), "root", &mut names);
        }
        // The counts and their locks are there from the first use of a layer on.
        names.retain(|name| {
            name != "root/run" && !(name.starts_with("root/run/") && name.ends_with(".lock"))
        });
        names
    }
}

impl Drop for Play {
    fn drop(&mut self) {
        for target in self.mounts() {
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            let _ = rustix::mount::unmount(target, flags);
        }
    }
}

pub fn id(name: &str) -> LayerId {
    LayerId::new(name).unwrap()
}

/// The steps at which a scene is killed.
fn steps(first: u64, last: u64) -> Vec<u64> {
    let all = last + 1 - first;
    let between = (all / (ALL - 2 * EDGE)).max(1);
    let wanted =
        |n: &u64| all <= ALL || *n < first + EDGE || *n > last - EDGE || (n - first) % between == 0;
    (first..=last).filter(wanted).collect()
}

/// Everything below a directory. Of short links and scratch space of mounts the names are random.
fn list(dir: &Path, shown: &str, names: &mut Names) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        let kind = entry.file_type().unwrap();
        let shown = match kind.is_symlink() && dir.ends_with("overlay2/l") {
            true => format!("{shown}/* -> {}", fs::read_link(&path).unwrap().display()),
            false => format!("{shown}/{name}"),
        };
        if kind.is_dir() && name != "work" {
            list(&path, &shown, names);
        }
        if !names.insert(shown.clone()) {
            names.insert(format!("{shown}, again"));
        }
    }
}

fn differences(found: &Names, old: &Names, new: &Names) -> String {
    let mut text = String::new();
    for (when, state) in [("before", old), ("after", new)] {
        for (what, names) in [
            ("missing", state.difference(found).collect::<Vec<_>>()),
            ("left over", found.difference(state).collect()),
        ] {
            text += &format!("compared with the state {when} it, {what}: {names:?}\n");
        }
    }
    text
}
