//! Counts of a layer's users against whoever fills or removes it, in another way to the store, and at another layer.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use plyfs::driver::{Create, MountOptions};
use plyfs::error::Error;
use rustix::process::{Pid, Signal, kill_process};

use crate::common::cmd::Cmd;
use crate::common::needs::{self, Need};
use crate::common::rootless;
use crate::driver_kit::{self, id};
use crate::every_driver;
use crate::store_kit::{Box_, tree};

/// Waits for something that is sure to come.
fn until(what: &str, mut there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !there() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Where a layer is after it has been mounted.
fn mounted(store: &Box_<'_>, name: &str) -> PathBuf {
    PathBuf::from(store.does(&["layer", "mount", name]).stdout.trim_end())
}

/// Sends a signal to whoever serves a mount.
fn signal_servers(at: &Path, signal: Signal) {
    let mut found = 0;
    for entry in fs::read_dir("/proc").unwrap() {
        let dir = entry.unwrap().path();
        let pid = dir.file_name().and_then(|name| name.to_str()?.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else { continue };
        let line = fs::read(dir.join("cmdline")).unwrap_or_default();
        if line.split(|byte| *byte == 0).any(|word| word == at.as_os_str().as_encoded_bytes()) {
            kill_process(pid, signal).unwrap();
            found += 1;
        }
    }
    assert!(found > 0, "no process serves {}", at.display());
}

/// Whether a test that needs root and a driver may run; it has mounts of its own then.
fn may_mount(test: &str, need: Need) -> bool {
    let met = needs::met(test, &[Need::Root, need]);
    if met {
        crate::common::mount::own_namespace();
    }
    met
}

fn a_layer_that_is_filled_is_not_mounted(store: &driver_kit::Store) {
    let store = Box_(store);
    let archive = fs::read(store.fill("base", None, &tree(store.0))).unwrap();
    store.does(&["layer", "create", "--read-only", "filled"]);
    let root = store.0.root();
    let mut apply = Command::new(env!("CARGO_BIN_EXE_plyfs"))
        .args(["--driver", store.0.driver.name(), "--root"])
        .arg(&root)
        .args(["layer", "apply", "filled"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut feed = apply.stdin.take().unwrap();
    feed.write_all(&archive[..1024]).unwrap();
    until("nobody announces the apply", || {
        fs::read(root.join("pending/filled")).is_ok_and(|said| said.ends_with(b" apply"))
    });
    store.plyfs(&["layer", "mount", "filled"]).exits(1).complains("another plyfs process");
    feed.write_all(&archive[1024..]).unwrap();
    drop(feed);
    assert!(apply.wait().unwrap().success());
    let at = mounted(&store, "filled");
    assert_eq!(fs::read_to_string(at.join("d/b")).unwrap(), "two\n");
    store.does(&["layer", "umount", "filled"]);
}

fn whoever_has_a_layer_keeps_it_from_being_removed(store: &driver_kit::Store) {
    let store = Box_(store);
    let (one, two) = (store.open().unwrap(), store.open().unwrap());
    let (options, rounds) = (MountOptions::default(), 30);
    let done = std::sync::atomic::AtomicBool::new(false);
    let ended = || done.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended() {
                let Ok(path) = one.mount(&id("x"), &options) else { continue };
                std::thread::sleep(Duration::from_millis(3));
                let there = path.is_dir();
                one.unmount(&id("x")).unwrap();
                assert!(there, "what was mounted has been removed");
            }
        });
        for _ in 0..rounds {
            two.create(&id("x"), None, &Create::default()).unwrap();
            until("it is never removed", || match two.remove(&id("x")) {
                Ok(()) => true,
                Err(Error::InUse { .. }) => false,
                Err(error) => panic!("{error}"),
            });
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

fn counts_are_the_same_by_every_way_to_the_store(store: &driver_kit::Store) {
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    store.does(&["layer", "create", "--parent", "base", "box"]);
    store.does(&["layer", "create", "alone"]);
    let link = store.0.sandbox.at("link");
    std::os::unix::fs::symlink(store.0.root(), &link).unwrap();
    let other = |words: &[&str]| {
        let run = store.0.sandbox.dir("other-run");
        let cmd = Cmd::plyfs().env("XDG_RUNTIME_DIR", run).arg("--root").arg(&link);
        cmd.args(["--driver", store.0.driver.name()]).args(words)
    };
    for name in ["box", "alone"] {
        let at = mounted(&store, name);
        other(&["layer", "rm", name]).exits(1).complains("its mount, 1 times");
        other(&["layer", "mount", name]).succeeds();
        other(&["layer", "umount", name]).succeeds();
        assert!(at.is_dir(), "{name} is there for whoever has it still");
        store.plyfs(&["layer", "rm", name]).exits(1).complains("its mount, 1 times");
        store.does(&["layer", "umount", name]);
        other(&["layer", "umount", name]).exits(1).complains("not found");
    }
}

/// A command on the store, in a mount namespace of its own; of an ordinary user in a user namespace of its own too, as are all
/// that he starts by himself.
fn elsewhere(store: &Box_<'_>, script: &str) -> Cmd {
    let own = if rootless::inside() { "-Urm" } else { "-m" };
    let text = r#"p() { "$PROGRAM" --root "$ROOT" --driver "$DRIVER" layer "$@"; }; "#;
    Cmd::new("unshare")
        .args([own, "sh", "-ec", &format!("{text}{script}")])
        .env("PROGRAM", env!("CARGO_BIN_EXE_plyfs"))
        .env("ROOT", store.0.root())
        .env("DRIVER", store.0.driver.name())
}

fn a_mount_of_another_namespace_is_seen(store: &driver_kit::Store) {
    let driver = store.driver.name();
    if driver == "vfs" {
        return;
    }
    let store = Box_(store);
    elsewhere(&store, "p create base; p create --parent base box").succeeds();
    let (up, end) = (store.0.sandbox.at("up"), store.0.sandbox.at("end"));
    std::thread::scope(|scope| {
        let script = r#"at=$(p mount box); echo kept > "$at/file"; : > "$UP"
            until [ -e "$END" ]; do sleep 0.05; done; cat "$at/file"; p umount box"#;
        let holder = elsewhere(&store, script).env("UP", &up).env("END", &end);
        let holder = scope.spawn(|| holder.succeeds().stdout);
        until("it is never mounted", || up.exists() || holder.is_finished());
        let tried: Vec<_> = ["rm", "umount", "mount"]
            .iter()
            .map(|verb| (*verb, elsewhere(&store, &format!("p {verb} box")).run()))
            .collect();
        fs::write(&end, "").unwrap();
        assert_eq!(holder.join().unwrap(), "kept\n");
        for (verb, done) in tried {
            let why = if verb == "rm" { "its mount, 1 times" } else { "another mount namespace" };
            assert_eq!(done.status, 1, "{verb}: {}", done.story());
            assert!(done.stderr.contains(why), "{verb}: {}", done.story());
        }
    });
    // What goes with its namespace is nobody's; a server of ours keeps that.
    if driver != "fuse-overlay" {
        elsewhere(&store, "p mount box").succeeds();
    }
    elsewhere(&store, "p rm box").succeeds();
}

fn options_are_honoured_or_refused(store: &driver_kit::Store) {
    let store = Box_(store);
    store.does(&["layer", "create", "alone"]);
    for words in [&["-o", "ro"][..], &["--label", "foo"]] {
        let mount = [&["layer", "mount"], words, &["alone"]].concat();
        store.plyfs(&mount).exits(1).complains("options for layer 'alone'");
    }
    store.does(&["layer", "rm", "alone"]);
    store.fill("base", None, &tree(store.0));
    store.does(&["layer", "create", "--parent", "base", "box"]);
    mounted(&store, "box");
    let asking = |options: &str| store.plyfs(&["layer", "mount", "-o", options, "box"]);
    if store.0.driver.name() != "vfs" {
        let done = asking("ro").exits(1);
        done.complains("option 'ro': layer 'box' is mounted already, without it");
    }
    store.does(&["layer", "umount", "box"]);
    store.plyfs(&["layer", "rm", "box"]).succeeds();
}

fn who_takes_part_in_a_mount_asks_for_what_it_has(store: &driver_kit::Store) {
    let name = store.driver.name();
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    store.does(&["layer", "create", "--parent", "base", "box"]);
    store.does(&["layer", "create", "--read-only", "--parent", "base", "fixed"]);
    let asking = |options: &str, id: &str| store.plyfs(&["layer", "mount", "-o", options, id]);
    if name == "vfs" {
        return println!("skipped: a copy is seen without options");
    }
    // Elsewhere there are others, and the kernel's overlay has few that all kernels know.
    let (one, other) =
        if name == "fuse-overlay" { ("noatime", "timeout=1") } else { ("volatile", "xino=off") };
    let at = asking(one, "box").succeeds().stdout;
    assert_eq!(store.does(&["layer", "mount", "box"]).stdout, at);
    assert_eq!(asking(one, "box").succeeds().stdout, at);
    asking(&format!("{one},{other}"), "box").exits(1).complains(&format!("option '{other}': "));
    store.plyfs(&["layer", "mount", "--label", "foo", "box"]).exits(1).complains("foo");
    for _ in 0..3 {
        store.does(&["layer", "umount", "box"]);
    }
    store.plyfs(&["layer", "umount", "box"]).exits(1).complains("not found");
    // What is read-only anyway is so by asking too.
    for _ in 0..2 {
        asking("ro", "fixed").succeeds();
    }
    // What nobody has noted nobody knows.
    fs::remove_dir_all(store.0.root().join("run")).unwrap();
    asking("ro", "fixed").succeeds().complains("stays with the options that it has");
    for _ in 0..2 {
        store.does(&["layer", "umount", "fixed"]);
    }
}

every_driver! {
    options, options_are_honoured_or_refused;
    taking_part, who_takes_part_in_a_mount_asks_for_what_it_has;
    namespaces, a_mount_of_another_namespace_is_seen;
    filled, a_layer_that_is_filled_is_not_mounted;
    removed, whoever_has_a_layer_keeps_it_from_being_removed;
    ways, counts_are_the_same_by_every_way_to_the_store;
}

#[test]
fn a_slow_unmount_keeps_nobody_from_other_layers() {
    if !may_mount(crate::this_test!(), Need::Fuse) {
        return;
    }
    let kit = driver_kit::Store::open("fuse-overlay");
    let store = Box_(&kit);
    store.fill("base", None, &tree(&kit));
    for name in ["box", "other"] {
        store.does(&["layer", "create", "--parent", "base", name]);
    }
    let at = mounted(&store, "box");
    signal_servers(&at, Signal::STOP);
    std::thread::scope(|scope| {
        let (sent, gone) = std::sync::mpsc::channel();
        let umount = store.plyfs(&["layer", "umount", "box"]);
        let remove = store.plyfs(&["layer", "rm", "box"]);
        // The namespace of this thread goes with it.
        let umount = scope.spawn(move || umount.run());
        until("it is never unmounted", || !is_mounted(&at) || umount.is_finished());
        scope.spawn(move || drop((remove.run(), sent.send(()))));
        std::thread::sleep(Duration::from_millis(300));
        let start = Instant::now();
        store.does(&["layer", "ls"]);
        store.does(&["layer", "mount", "other"]);
        store.does(&["layer", "umount", "other"]);
        store.does(&["layer", "rm", "other"]);
        let took = start.elapsed();
        signal_servers(&at, Signal::CONT);
        gone.recv().unwrap();
        assert!(took < Duration::from_secs(4), "{took:?}");
    });
}

/// In the table of the calling thread.
fn is_mounted(at: &Path) -> bool {
    let mut table = String::new();
    File::open("/proc/thread-self/mountinfo").unwrap().read_to_string(&mut table).unwrap();
    let field = format!(" {} ", at.display());
    table.contains(&field)
}

#[test]
fn a_mount_whose_server_has_ended_is_made_anew() {
    if !may_mount(crate::this_test!(), Need::Fuse) {
        return;
    }
    let kit = driver_kit::Store::open("fuse-overlay");
    let store = Box_(&kit);
    store.fill("base", None, &tree(&kit));
    store.does(&["layer", "create", "--parent", "base", "box"]);
    let at = mounted(&store, "box");
    fs::write(at.join("new"), "kept").unwrap();
    signal_servers(&at, Signal::KILL);
    until("it is served still", || fs::read_dir(&at).is_err());
    assert_eq!(mounted(&store, "box"), at);
    assert_eq!(fs::read_to_string(at.join("new")).unwrap(), "kept");
    store.does(&["layer", "umount", "box"]);
    assert!(!at.exists());
    mounted(&store, "box");
    signal_servers(&at, Signal::KILL);
    until("it is served still", || fs::read_dir(&at).is_err());
    store.does(&["layer", "umount", "box"]);
    store.does(&["layer", "rm", "box"]);
}

/// A root with a name that says nothing to us and much to others.
fn by_name(driver: &str, name: &[u8]) -> (driver_kit::Store, PathBuf) {
    let kit = driver_kit::Store::open(driver);
    let root = kit.sandbox.at(std::ffi::OsStr::from_bytes(name));
    (kit, root)
}

#[test]
fn a_root_may_have_any_name() {
    if !may_mount(crate::this_test!(), Need::KernelOverlay) {
        return;
    }
    let name = b"a,b=c d\\\xff";
    for driver in ["overlay2", "fuse-overlay", "vfs"] {
        let (_kit, root) = by_name(driver, name);
        let plyfs = |words: &[&str]| {
            // What a mount prints leads there, byte for byte.
            let script = r#"at=$("$0" "$@"); [ "$6" != mount ] || cd "$at""#;
            let cmd = Cmd::new("sh").args(["-ec", script, env!("CARGO_BIN_EXE_plyfs"), "--root"]);
            cmd.arg(&root).args(["--driver", driver, "layer"]).args(words)
        };
        plyfs(&["create", "base"]).succeeds();
        plyfs(&["create", "--parent", "base", "box"]).succeeds();
        // A volatile mount leaves a mark, which goes with it.
        let volatile: &[&str] = if driver == "overlay2" { &["-o", "volatile"] } else { &[] };
        for _ in 0..2 {
            plyfs(&[&["mount"], volatile, &["box"]].concat()).succeeds();
            plyfs(&["umount", "box"]).succeeds();
        }
        plyfs(&["rm", "box"]).succeeds();
    }
}

#[test]
fn more_users_than_can_be_counted_are_refused() {
    let kit = driver_kit::Store::open("vfs");
    let store = Box_(&kit);
    store.does(&["layer", "create", "alone"]);
    mounted(&store, "alone");
    let record = kit.root().join("run/alone.used");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace("\"count\":1", &format!("\"count\":{}", u64::MAX))).unwrap();
    store.plyfs(&["layer", "mount", "alone"]).exits(1).complains("as many as can be counted");
    store.plyfs(&["layer", "rm", "alone"]).exits(1).complains("its mount");
}
