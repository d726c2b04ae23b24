//! Arbitrary bytes as one file, link or attribute of a store.

use std::cell::RefCell;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plyfs::driver::registry::{Config, Registry};
use plyfs::driver::{Create, Driver, LayerId, MountOptions};
use plyfs::layer::apply::Limits;
use plyfs::mount::count::Counts;
use plyfs::store::Store;

use super::place::empty;
use super::tar;

/// What lies beside the store and may be in nothing that comes out of it.
const SECRET: &[u8] = b"what lies beside the store";

/// Where the bytes go.
#[derive(Clone, Copy, Debug)]
enum Where {
    /// A file below the root of the store.
    Store(&'static str),
    /// A file in the directory of counts.
    Run(&'static str),
    /// A file of layer `a` or `b` in the driver's home.
    Home(&'static str),
    /// An attribute of an object in layer `b`.
    Attribute(&'static str, &'static str),
    /// The short link of a layer.
    Link,
    /// Options of a layer, options of the driver, a layer's name.
    Words,
}

const PLACES: [Where; 24] = [
    Where::Store("layers/a/layer.json"),
    Where::Store("layers/b/layer.json"),
    Where::Store("layers/c/layer.json"),
    Where::Store("layers/a/tar-split.gz"),
    Where::Store("pending/a"),
    Where::Store("pending/b"),
    Where::Store("pending/x"),
    Where::Run("a.json"),
    Where::Run("a.new"),
    Where::Run("b.json"),
    Where::Home("b/lower"),
    Where::Home("b/link"),
    Where::Home("a/link"),
    Where::Home("a/committed"),
    Where::Home("b/label"),
    Where::Attribute("d", "trusted.overlay.redirect"),
    Where::Attribute("d", "user.overlay.redirect"),
    Where::Attribute("f", "trusted.overlay.metacopy"),
    Where::Attribute("f", "user.overlay.origin"),
    Where::Attribute("f", "user.containers.override_stat"),
    Where::Attribute("d", "trusted.overlay.opaque"),
    Where::Attribute("f", "security.capability"),
    Where::Link,
    Where::Words,
];

/// The first byte says where the bytes go, the second how; the others are the bytes, in which `@` stands for the
/// scratch directory.
pub fn run(scratch: &Path, data: &[u8]) {
    let [place, how, bytes @ ..] = data else { return };
    let place = PLACES[usize::from(*place) % PLACES.len()];
    let bytes = match how & 2 {
        0 => bytes.to_vec(),
        _ => bytes
            .split(|&byte| byte == b'@')
            .collect::<Vec<_>>()
            .join(scratch.as_os_str().as_bytes()),
    };
    let bytes = if how & 4 == 0 { bytes } else { tar::gzip(&bytes) };
    let scene = Scene::new(scratch, how & 1 != 0);
    scene.put(place, &bytes);
    scene.play(how & 8 != 0);
    let beside = fs::read(scratch.join("beside/secret")).expect("what lies beside stays");
    assert!(beside == SECRET);
    scene.clear();
}

/// A store of three layers.
struct Scene {
    scratch: PathBuf,
    driver: Arc<dyn Driver>,
}

thread_local! {
    static DRIVERS: RefCell<Vec<(PathBuf, Arc<dyn Driver>)>> = const { RefCell::new(Vec::new()) };
}

/// The driver wanted, or the one that works everywhere. Opening one is slow, so they are kept.
fn driver(root: &Path, layered: bool) -> Arc<dyn Driver> {
    let root = root.join(if layered { "store" } else { "copies" });
    DRIVERS.with_borrow_mut(|known| match known.iter().find(|(at, _)| *at == root) {
        Some((_, driver)) if root.is_dir() => driver.clone(),
        _ => {
            fs::create_dir_all(&root).expect("made");
            let config = Config { root: root.clone(), ..Config::default() };
            let open = |name| Registry::built_in().select(Some(name), &[], &config);
            let named = if layered { "overlay2" } else { "vfs" };
            let selected = open(named).or_else(|_| open("vfs")).expect("a driver works");
            let driver: Arc<dyn Driver> = Arc::from(selected.driver);
            known.retain(|(at, _)| *at != root);
            known.push((root, driver.clone()));
            driver
        }
    })
}

fn id(name: &str) -> LayerId {
    LayerId::new(name).expect("a name")
}

/// An error is one line.
fn told<T>(result: plyfs::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            one_line(&error);
            None
        }
    }
}

fn one_line(error: &plyfs::Error) {
    let text = error.to_string();
    assert!(!text.contains('\n'), "an error of several lines: {text}");
}

impl Scene {
    fn new(scratch: &Path, layered: bool) -> Scene {
        let driver = driver(scratch, layered);
        let scene = Scene { scratch: scratch.to_path_buf(), driver };
        fs::create_dir_all(scratch.join("beside")).expect("made");
        fs::write(scratch.join("beside/secret"), SECRET).expect("made");
        fs::create_dir_all(scratch.join("run")).expect("made");
        let store = scene.open().expect("an empty store is opened");
        let read_only = Create { read_only: true, ..Create::default() };
        store.create(&id("a"), None, &read_only).expect("made");
        let archive = archive();
        store.apply(&id("a"), &mut &archive[..], &Limits::default()).expect("filled");
        for (name, parent) in [("b", "a"), ("c", "b")] {
            store.create(&id(name), Some(&id(parent)), &Create::default()).expect("made");
            let own = scene.driver.parts(&id(name)).expect("known").own;
            fs::create_dir_all(own.join("d")).expect("made");
            fs::write(own.join("f"), "data").expect("made");
        }
        scene
    }

    fn root(&self) -> &Path {
        self.driver.home().parent().expect("a home is in a root")
    }

    fn open(&self) -> plyfs::Result<Store> {
        Store::open(self.root(), &self.scratch.join("run"), self.driver.clone())
    }

    fn put(&self, place: Where, bytes: &[u8]) {
        let write = |at: PathBuf| drop(fs::write(at, bytes));
        match place {
            Where::Store(path) => write(self.root().join(path)),
            Where::Run(path) => write(self.scratch.join("run").join(path)),
            Where::Home(path) => write(self.driver.home().join(path)),
            Where::Attribute(name, key) => {
                let own = self.driver.parts(&id("b")).expect("known").own;
                let flags = rustix::fs::XattrFlags::empty();
                // What the kernel does not take is in no store.
                let _ = rustix::fs::setxattr(own.join(name), key, bytes, flags);
            }
            Where::Link => {
                let links = self.driver.home().join("l");
                for entry in fs::read_dir(&links).into_iter().flatten().flatten() {
                    drop(fs::remove_file(entry.path()));
                    drop(std::os::unix::fs::symlink(
                        std::ffi::OsStr::from_bytes(bytes),
                        entry.path(),
                    ));
                }
            }
            Where::Words => self.words(&String::from_utf8_lossy(bytes)),
        }
    }

    fn words(&self, text: &str) {
        let mut spec = Create::default();
        let mut config = Config { root: self.scratch.join("unused"), ..Config::default() };
        for word in text.split(['\n', ' ']) {
            told(LayerId::new(word));
            if let Some((key, value)) = word.split_once('=') {
                spec.options.insert(key.to_owned(), value.to_owned());
                config.options.insert(format!("vfs.{key}"), value.to_owned());
            }
        }
        told(self.driver.create(&id("w"), None, &spec));
        told(Registry::built_in().select(Some("vfs"), &[], &config));
        drop(fs::remove_dir_all(self.scratch.join("unused")));
    }

    /// Everything that can be asked of a store. The first thing that is done is another one when `repair` is set.
    fn play(&self, repair: bool) {
        if let Some(counts) = told(Counts::open(&self.scratch.join("run"))) {
            for name in ["a", "b"] {
                told(counts.count(name, &self.driver.home().join(name).join("merged")));
            }
        }
        let Some(store) = told(self.open()) else { return };
        if repair {
            told(store.check(true, &mut |_| ()));
        }
        told(store.list());
        told(store.unknown());
        for name in ["a", "b", "c", "x"] {
            let id = id(name);
            told(store.find(&id));
            told(store.users(&id));
            told(store.changes(&id));
            told(store.size(&id));
            told(self.driver.view(&id, &MountOptions::default()));
            told(self.driver.usage(&id));
            told(self.driver.metadata(&id));
            let mut bytes = Vec::new();
            told(store.diff(&id, &mut bytes));
            let leaks = bytes.windows(SECRET.len()).any(|window| window == SECRET);
            assert!(!leaks, "an archive of layer {name} holds what lies beside the store");
        }
        told(store.check(false, &mut |_| ()));
        told(store.prune(true, &mut |error| one_line(error)));
        told(store.create(&id("y"), Some(&id("c")), &Create::default()));
        for name in ["y", "c", "b", "a", "x"] {
            told(store.remove(&id(name)));
        }
        told(store.prune(false, &mut |error| one_line(error)));
        told(self.open());
    }

    /// Leaves what an open driver relies on.
    fn clear(&self) {
        for dir in ["layers", "pending"] {
            drop(fs::remove_dir_all(self.root().join(dir)));
        }
        for entry in fs::read_dir(self.driver.home()).expect("listed").flatten() {
            match entry.file_name().as_bytes() {
                b".lock" => {}
                b"l" | b"dir" => empty(&entry.path()),
                _ => drop(fs::remove_dir_all(entry.path())),
            }
        }
        drop(fs::remove_dir_all(self.scratch.join("run")));
        drop(fs::remove_dir_all(self.scratch.join("beside")));
    }
}

fn archive() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, name, data) in
        [(b'5', "d", ""), (b'0', "d/f", "some data"), (b'0', "f", "more"), (b'0', "f", "twice")]
    {
        bytes.extend(super::generate::header(kind, name.as_bytes(), data.len() as u64));
        bytes.extend_from_slice(data.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(tar::BLOCK), 0);
    }
    bytes.resize(bytes.len() + 2 * tar::BLOCK, 0);
    bytes
}
