//! What is played.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::play::{Play, Scene, id};
use crate::common::cmd::Cmd;

/// The archives of `base` and `x`.
pub fn write_archives(play: &Play) {
    let sandbox = &play.store.sandbox;
    let base = sandbox.dir("trees/base");
    fs::create_dir(base.join("d")).unwrap();
    fs::write(base.join("a"), "one\n").unwrap();
    fs::write(base.join("d/b"), "two\n").unwrap();
    let x = sandbox.dir("trees/x");
    fs::create_dir(x.join("d")).unwrap();
    fs::write(x.join("d/c"), "three\n").unwrap();
    fs::hard_link(x.join("d/c"), x.join("d/e")).unwrap();
    fs::write(x.join("d/.wh.b"), "").unwrap();
    for name in ["base", "x"] {
        let tar = Cmd::new("tar").arg("-cf").arg(play.archive(name));
        tar.arg("-C").arg(sandbox.at("trees").join(name)).arg(".").succeeds();
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn always(_: &Play) -> bool {
    true
}

/// A copy is no mount.
fn mounts(play: &Play) -> bool {
    play.store.driver.name() != "vfs"
}

/// Its mounts can show other ids than those on disk.
fn can_shift(play: &Play) -> bool {
    play.store.driver.status().contains(&("Supports shifting", true.to_string()))
}

fn no_x(play: &Play) {
    play.remove("x");
}

fn empty_x(play: &Play) {
    play.remove("x");
    play.create("x", Some("base"), true);
}

fn filled_x(play: &Play) {
    if play.library().find(&id("x")).unwrap().is_some_and(|x| x.content.is_some()) {
        return;
    }
    empty_x(play);
    play.apply("x");
}

fn writable_x(play: &Play) {
    if play.library().find(&id("x")).unwrap().is_none_or(|x| x.read_only) {
        play.remove("x");
        play.create("x", Some("base"), false);
    }
}

fn mounted_x(play: &Play) {
    writable_x(play);
    if play.mounts().is_empty() {
        play.plyfs(&["layer", "mount", "x"]).succeeds();
    }
}

/// Its name can be used at once.
fn is_there_or_can_be_made(play: &Play) {
    if play.library().find(&id("x")).unwrap().is_none() {
        play.create("x", Some("base"), true);
        play.remove("x");
    }
}

fn is_filled_or_can_be(play: &Play) {
    if play.library().get(&id("x")).unwrap().content.is_none() {
        play.apply("x");
    }
}

/// A mount that is there can be taken back, once.
fn taken_back(play: &Play, name: &str) {
    let umount = ["layer", "umount", name];
    if !play.mounts().is_empty() {
        play.plyfs(&umount).succeeds();
    }
    let complaint = format!("mount of layer '{name}': not found");
    play.plyfs(&umount).exits(1).complains(&complaint);
    let merged = play.store.driver.home().join(name).join("merged");
    assert!(!merged.exists(), "{} is left", merged.display());
}

/// The store of one driver of the overlay format is opened with the other.
fn other_driver(play: &Play) -> &'static str {
    match play.store.driver.name() {
        "overlay2" => "fuse-overlay",
        "fuse-overlay" => "overlay2",
        "vfs" => "vfs",
        _ => "overlay",
    }
}

fn after_a_crash(play: &Play) {
    empty_x(play);
    play.crash("x");
}

const NOTHING: fn(&Play) = |_| {};

/// The very first command on a root.
pub const FIRST: Scene = Scene {
    name: "create on a new root",
    on: always,
    prepare: |play| {
        let root = play.store.root();
        if root.exists() {
            fs::remove_dir_all(root).unwrap();
        }
    },
    words: |_| words(&["layer", "create", "first"]),
    driver: Play::own_driver,
    opening: true,
    least: 20,
    verify: NOTHING,
};

pub const ALL: &[Scene] = &[
    Scene {
        name: "create",
        on: always,
        prepare: no_x,
        words: |_| words(&["layer", "create", "x"]),
        driver: Play::own_driver,
        opening: false,
        least: 12,
        verify: is_there_or_can_be_made,
    },
    Scene {
        name: "create on a parent",
        on: always,
        prepare: no_x,
        words: |_| words(&["layer", "create", "--parent", "base", "x"]),
        driver: Play::own_driver,
        opening: false,
        least: 12,
        verify: is_there_or_can_be_made,
    },
    Scene {
        name: "create from a template",
        on: always,
        prepare: |play| {
            play.remove("copy");
            filled_x(play);
        },
        words: |_| words(&["layer", "create", "--template", "x", "copy"]),
        driver: Play::own_driver,
        opening: false,
        least: 15,
        verify: |play| {
            if play.library().find(&id("copy")).unwrap().is_none() {
                play.plyfs(&["layer", "create", "--template", "x", "copy"]).succeeds();
            }
            play.sound("the copy");
            play.remove("copy");
        },
    },
    Scene {
        name: "apply",
        on: always,
        prepare: empty_x,
        words: |play| words(&["layer", "apply", "x", play.archive("x").to_str().unwrap()]),
        driver: Play::own_driver,
        opening: false,
        least: 20,
        verify: is_filled_or_can_be,
    },
    Scene {
        name: "rm",
        on: always,
        prepare: filled_x,
        words: |_| words(&["layer", "rm", "x"]),
        driver: Play::own_driver,
        opening: false,
        least: 15,
        verify: is_there_or_can_be_made,
    },
    Scene {
        name: "mount",
        on: mounts,
        prepare: writable_x,
        words: |_| words(&["layer", "mount", "x"]),
        driver: Play::own_driver,
        opening: false,
        least: 5,
        verify: |play| taken_back(play, "x"),
    },
    Scene {
        name: "mount with other ids",
        on: |play| mounts(play) && can_shift(play),
        prepare: |play| {
            no_x(play);
            writable_x(play);
        },
        words: |_| words(&["layer", "mount", "--uidmap", "0:1000:9", "--gidmap", "0:2000:9", "x"]),
        driver: Play::own_driver,
        opening: false,
        least: 10,
        verify: |play| {
            taken_back(play, "x");
            // However far it came, it has the owners once when it is mounted so.
            let ids = ["--uidmap", "0:1000:9", "--gidmap", "0:2000:9"];
            play.plyfs(&[&["layer", "mount"][..], &ids, &["x"]].concat()).succeeds();
            let root = play.store.own("x").metadata().unwrap();
            assert_eq!((root.uid(), root.gid()), (1000, 2000));
            taken_back(play, "x");
        },
    },
    Scene {
        name: "umount",
        on: mounts,
        prepare: mounted_x,
        words: |_| words(&["layer", "umount", "x"]),
        driver: Play::own_driver,
        opening: false,
        least: 5,
        verify: |play| taken_back(play, "x"),
    },
    Scene {
        name: "umount of a volatile mount",
        on: |play| play.own_driver() == "overlay2",
        prepare: |play| {
            writable_x(play);
            if play.mounts().is_empty() {
                play.plyfs(&["layer", "mount", "-o", "volatile", "x"]).succeeds();
            }
        },
        words: |_| words(&["layer", "umount", "x"]),
        driver: Play::own_driver,
        opening: false,
        least: 6,
        verify: |play| {
            taken_back(play, "x");
            // The kernel would refuse it if the volatile mount were not seen to have ended.
            play.plyfs(&["layer", "mount", "x"]).succeeds();
            taken_back(play, "x");
        },
    },
    Scene {
        name: "mount read-only",
        on: always,
        prepare: NOTHING,
        words: |_| words(&["layer", "mount", "base"]),
        driver: Play::own_driver,
        opening: false,
        least: 4,
        verify: |play| {
            // Its files are other layers' too: it is never to be seen otherwise.
            let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            for target in play.mounts() {
                let line = table.lines().find(|line| line.contains(&target)).unwrap();
                assert!(line.split(' ').nth(5).unwrap().starts_with("ro"), "{line}");
            }
            taken_back(play, "base");
        },
    },
    Scene {
        name: "opening after a crash",
        on: always,
        prepare: after_a_crash,
        words: |_| words(&["layer", "ls"]),
        driver: other_driver,
        opening: true,
        least: 20,
        verify: is_filled_or_can_be,
    },
];

/// Storage without a record is somebody else's: a command that is refused because of it, killed, leaves it.
pub fn storage_of_others_stays(play: &Play) {
    no_x(play);
    play.store.driver.create(&id("x"), None, &Default::default()).unwrap();
    for verb in ["create", "rm"] {
        for n in play.opening().. {
            let done = play.killed(play.own_driver(), &["layer", verb, "x"], n);
            play.plyfs(&["layer", "ls"]).succeeds();
            assert!(play.store.driver.exists(&id("x")).unwrap(), "{verb}: {}", done.story());
            if done.status == 1 {
                break;
            }
        }
    }
    play.store.driver.remove(&id("x")).unwrap();
}
