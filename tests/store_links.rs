//! A lower file with several names that is changed through `fuse-overlay` has all of them in its layer, whoever looks next.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::common::needs::{self, Need};
use crate::driver_kit;
use crate::store_kit::{Box_, tree};

const NAMES: [&str; 3] = ["a", "d/second", "third"];

/// A layer with a file of three names, and one on it in which it is written to. Where that one is mounted.
fn written(store: &Box_<'_>) -> String {
    let tree = tree(store.0);
    for name in &NAMES[1..] {
        fs::hard_link(tree.join("a"), tree.join(name)).unwrap();
    }
    store.fill("base", None, &tree);
    store.does(&["layer", "create", "--parent", "base", "box"]);
    let at = store.does(&["layer", "mount", "box"]).stdout.trim_end().to_owned();
    let mut file = OpenOptions::new().append(true).open(Path::new(&at).join("third")).unwrap();
    file.write_all(b"more\n").unwrap();
    at
}

/// Ends the server of a mount as a crash does.
fn kill_server(at: &str) {
    let mut killed = 0;
    for entry in fs::read_dir("/proc").unwrap() {
        let dir = entry.unwrap().path();
        let Some(pid) = dir.file_name().and_then(|name| name.to_str()?.parse().ok()) else {
            continue;
        };
        let line = fs::read(dir.join("cmdline")).unwrap_or_default();
        if line.split(|byte| *byte == 0).any(|word| word == at.as_bytes()) {
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
            killed += 1;
        }
    }
    assert!(killed > 0, "no process serves {at}");
    let start = Instant::now();
    while fs::read_dir(at).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(10), "{at} is served still");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn index(store: &Box_<'_>) -> usize {
    fs::read_dir(store.0.driver.home().join("box/work/index")).unwrap().count()
}

fn all_names_tell(store: &Box_<'_>) {
    let changes = store.does(&["layer", "changes", "box"]).stdout;
    assert_eq!(changes, "C /a\nC /d\nC /d/second\nC /third\n");
    assert_eq!(index(store), 0);
    let diff = store.0.sandbox.at("diff.tar");
    store.does(&["layer", "diff", "box", "-o", diff.to_str().unwrap()]);
    let bytes = fs::read(&diff).unwrap();
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut names = Vec::new();
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let to = entry.link_name().unwrap().map(|to| to.display().to_string());
        names.push((entry.path().unwrap().display().to_string(), to));
    }
    let linked = |name: &str| (name.to_owned(), Some("a".to_owned()));
    let plain = |name: &str| (name.to_owned(), None);
    assert_eq!(names, [plain("a"), plain("d/"), linked("d/second"), linked("third")]);
    for driver in ["fuse-overlay", "overlay2"] {
        if driver == "overlay2" && !Need::KernelOverlay.met() {
            continue;
        }
        let at = store.plyfs_on(driver, &["layer", "mount", "box"]).succeeds().stdout;
        let at = Path::new(at.trim_end());
        let first = fs::metadata(at.join("a")).unwrap().ino();
        for name in NAMES {
            let found = fs::metadata(at.join(name)).unwrap();
            let text = fs::read_to_string(at.join(name)).unwrap();
            let seen = (text.as_str(), found.ino(), found.nlink());
            assert_eq!(seen, ("one\nmore\n", first, 3), "{name} with {driver}");
        }
        store.plyfs_on(driver, &["layer", "umount", "box"]).succeeds();
    }
}

fn after_an_orderly_end(store: &driver_kit::Store) {
    let store = Box_(store);
    written(&store);
    store.does(&["layer", "umount", "box"]);
    assert_eq!(index(&store), 0);
    all_names_tell(&store);
}

fn after_the_server_was_killed(store: &driver_kit::Store) {
    let store = Box_(store);
    kill_server(&written(&store));
    store.does(&["layer", "umount", "box"]);
    assert_eq!(index(&store), 0);
    all_names_tell(&store);
}

/// A reboot takes mounts away, and no server ends.
fn after_a_reboot(store: &driver_kit::Store) {
    let store = Box_(store);
    let at = written(&store);
    kill_server(&at);
    unmount(at.as_str(), UnmountFlags::DETACH).unwrap();
    assert_eq!(index(&store), 1);
    all_names_tell(&store);
}

fn before_the_other_driver_mounts(store: &driver_kit::Store) {
    let store = Box_(store);
    let at = written(&store);
    kill_server(&at);
    unmount(at.as_str(), UnmountFlags::DETACH).unwrap();
    store.plyfs_on("overlay2", &["layer", "mount", "box"]).succeeds();
    assert_eq!(fs::read_to_string(Path::new(&at).join("a")).unwrap(), "one\nmore\n");
    store.plyfs_on("overlay2", &["layer", "umount", "box"]).succeeds();
    all_names_tell(&store);
}

fn before_a_layer_is_made_on_it_still_mounted(store: &driver_kit::Store) {
    let store = Box_(store);
    kill_server(&written(&store));
    store.does(&["layer", "create", "--parent", "box", "child"]);
    store.does(&["layer", "rm", "child"]);
    all_names_tell(&store);
}

fn before_a_layer_is_made_on_it(store: &driver_kit::Store) {
    let store = Box_(store);
    let at = written(&store);
    kill_server(&at);
    unmount(at.as_str(), UnmountFlags::DETACH).unwrap();
    store.does(&["layer", "create", "--parent", "box", "child"]);
    let child = store.does(&["layer", "mount", "child"]).stdout;
    for name in NAMES {
        let text = fs::read_to_string(Path::new(child.trim_end()).join(name)).unwrap();
        assert_eq!(text, "one\nmore\n", "{name}");
    }
    store.does(&["layer", "umount", "child"]);
    store.does(&["layer", "rm", "child"]);
    all_names_tell(&store);
}

macro_rules! with_fuse_overlay {
    ($($name:ident $(needs $need:ident)?;)+) => {$(
        mod $name {
            #[test]
            fn root() {
                run(crate::this_test!(), false);
            }

            #[test]
            fn rootless() {
                run(crate::this_test!(), true);
            }

            fn run(test: &str, rootless: bool) {
                $(if !super::needs::met(test, &[super::Need::$need]) {
                    return;
                })?
                crate::driver_kit::with(test, "fuse-overlay", rootless, super::$name);
            }
        }
    )+};
}

fn before_it_is_copied(store: &driver_kit::Store) {
    let store = Box_(store);
    let at = written(&store);
    kill_server(&at);
    unmount(at.as_str(), UnmountFlags::DETACH).unwrap();
    store.does(&["layer", "create", "--template", "box", "copy"]);
    let copy = store.does(&["layer", "changes", "copy"]).stdout;
    assert_eq!(copy, "C /a\nC /d\nC /d/second\nC /third\n");
    all_names_tell(&store);
}

with_fuse_overlay! {
    before_it_is_copied;
    after_an_orderly_end;
    after_the_server_was_killed;
    after_a_reboot;
    before_the_other_driver_mounts needs KernelOverlay;
    before_a_layer_is_made_on_it;
    before_a_layer_is_made_on_it_still_mounted;
}
