//! Reference counts of mounts, with a count of the kernel's own table beside them.

use std::fs;

use plyfs::driver::{MountOptions, View};
use plyfs::error::Error;
use plyfs::mount::count::Counts;
use plyfs::mount::plan::{Mount, Server};
use rustix::mount::UnmountFlags;

use crate::common::cmd::Cmd;
use crate::common::mount::own_namespace;
use crate::driver_kit::{Store, id, server};
use crate::needs;

fn store(driver: &str) -> (Store, Mount, Counts) {
    own_namespace();
    let store = Store::open(driver);
    store.read_write("base", None);
    store.read_write("top", Some("base"));
    let View::Mount(mount) = store.driver.view(&id("top"), &MountOptions::default()).unwrap()
    else {
        panic!("a layer on another is mounted");
    };
    let counts = Counts::open(&store.sandbox.at("run/mounts")).unwrap();
    (store, mount, counts)
}

fn mounted(mount: &Mount) -> usize {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(mount.target.to_str().unwrap())).count()
}

#[test]
fn the_first_mounts_and_the_last_unmounts() {
    needs!(Root, KernelOverlay, Fuse);
    for driver in ["overlay2", "fuse-overlay"] {
        let (_store, mount, counts) = store(driver);
        for n in 1..=3 {
            assert_eq!(counts.mount("top", &mount, &server()).unwrap(), mount.target);
            assert_eq!((counts.count("top", &mount.target).unwrap(), mounted(&mount)), (n, 1));
        }
        for left in (0..3).rev() {
            assert_eq!(counts.unmount("top", &mount.target).unwrap(), left);
        }
        assert_eq!(mounted(&mount), 0);
        assert!(!mount.target.exists());
        let error = counts.unmount("top", &mount.target).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
}

#[test]
fn counts_survive_the_process_and_not_the_mount() {
    needs!(Root, KernelOverlay);
    let (store, mount, counts) = store("overlay2");
    counts.mount("top", &mount, &server()).unwrap();
    counts.mount("top", &mount, &server()).unwrap();
    let again = Counts::open(&store.sandbox.at("run/mounts")).unwrap();
    assert_eq!(again.count("top", &mount.target).unwrap(), 2);
    // Behind our back.
    rustix::mount::unmount(&mount.target, UnmountFlags::empty()).unwrap();
    assert_eq!(again.count("top", &mount.target).unwrap(), 0);
    again.mount("top", &mount, &server()).unwrap();
    assert_eq!(again.count("top", &mount.target).unwrap(), 1);
    assert_eq!(again.unmount("top", &mount.target).unwrap(), 0);
    assert_eq!(mounted(&mount), 0);
}

#[test]
fn a_mount_without_a_record_has_one_user() {
    needs!(Root, KernelOverlay);
    let (store, mount, counts) = store("overlay2");
    let record = store.sandbox.at("run/mounts/top.json");
    counts.mount("top", &mount, &server()).unwrap();
    fs::remove_file(&record).unwrap();
    assert_eq!(counts.count("top", &mount.target).unwrap(), 1);
    counts.mount("top", &mount, &server()).unwrap();
    assert_eq!(counts.count("top", &mount.target).unwrap(), 2);
    fs::write(&record, "torn {").unwrap();
    assert_eq!(counts.count("top", &mount.target).unwrap(), 1);
    assert_eq!(counts.unmount("top", &mount.target).unwrap(), 0);
    assert!(!record.exists());
}

#[test]
fn many_at_once_make_one_mount() {
    needs!(Root, KernelOverlay);
    let (_store, mount, counts) = store("overlay2");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5 {
                    counts.mount("top", &mount, &server()).unwrap();
                    assert_eq!(mounted(&mount), 1);
                    counts.unmount("top", &mount.target).unwrap();
                }
            });
        }
    });
    assert_eq!(mounted(&mount), 0);
    assert_eq!(counts.count("top", &mount.target).unwrap(), 0);
}

#[test]
fn a_mount_in_use_keeps_its_count() {
    needs!(Root, KernelOverlay);
    let (_store, mount, counts) = store("overlay2");
    counts.mount("top", &mount, &server()).unwrap();
    let held = fs::File::create(mount.target.join("held")).unwrap();
    let error = counts.unmount("top", &mount.target).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert_eq!(counts.count("top", &mount.target).unwrap(), 1);
    drop(held);
    assert_eq!(counts.unmount("top", &mount.target).unwrap(), 0);
}

#[test]
fn what_crashes_left_of_mounting_and_unmounting_is_cleared_away() {
    needs!(Root, KernelOverlay);
    let (store, mount, counts) = store("overlay2");
    let run = store.sandbox.at("run/mounts");
    let names = || -> Vec<String> {
        let names =
            fs::read_dir(&run).unwrap().map(|x| x.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "top.lock" && name != ".spare").collect()
    };
    let begun = serde_json::json!({
        "version": 1, "count": 0, "target": mount.target, "mount": 0, "device": [0, 0],
    });
    let begin = || fs::write(run.join("top.new"), begun.to_string()).unwrap();
    // Before the mount was there, and after it was gone.
    fs::create_dir(&mount.target).unwrap();
    fs::write(run.join("top.json"), "stale").unwrap();
    begin();
    Counts::sweep(&run).unwrap();
    assert_eq!((names(), mount.target.exists()), (vec![], false));
    // After it was there, and before it was gone.
    counts.mount("top", &mount, &server()).unwrap();
    fs::remove_file(run.join("top.json")).unwrap();
    begin();
    Counts::sweep(&run).unwrap();
    assert_eq!((names(), mounted(&mount)), (vec!["top.json".to_owned()], 1));
    counts.mount("top", &mount, &server()).unwrap();
    begin();
    assert_eq!(counts.count("top", &mount.target).unwrap(), 2);
    // Before anything was done.
    fs::write(run.join("top.new"), "{").unwrap();
    assert_eq!(counts.unmount("top", &mount.target).unwrap(), 1);
    assert_eq!(counts.unmount("top", &mount.target).unwrap(), 0);
    assert_eq!((names(), mount.target.exists()), (vec![], false));
}

#[test]
fn a_program_that_mounts_has_the_lock_too() {
    needs!(Root, Fuse);
    let (store, mount, counts) = store("fuse-overlay");
    let (script, said) = (store.sandbox.at("program"), store.sandbox.at("said"));
    // Written by another process: what this one has open for writing, a child of another thread may keep from being run.
    let text = r#"printf '#!/bin/sh\nreadlink /proc/self/fd/0 > %s\nexit 1\n' "$2" > "$1"; chmod 755 "$1""#;
    Cmd::new("sh").args(["-c", text, "sh"]).arg(&script).arg(&said).succeeds();
    counts.mount("top", &mount, &Server::Program(script)).unwrap_err();
    let held = fs::read_to_string(said).unwrap();
    assert_eq!(held.trim_end(), store.sandbox.at("run/mounts/top.lock").to_str().unwrap());
    assert!(!mount.target.exists());
}
