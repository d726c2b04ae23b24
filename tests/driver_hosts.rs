//! Drivers where the host makes it hard: no extended attributes, and namespaces that keep copies of mounts.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use plyfs::driver::registry::{Config, Registry};
use plyfs::driver::{MountOptions, View};
use plyfs::error::Error;
use plyfs::mount::plan;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::driver_kit::{self, Store, id, server};
use crate::every_driver;

/// A filesystem without extended attributes, gone with this value.
struct Ram(std::path::PathBuf);

impl Drop for Ram {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn archive(store: &Store, name: &str, make: impl FnOnce(&Path)) -> Vec<u8> {
    let dir = store.sandbox.dir(name);
    make(&dir);
    let out = Command::new("tar").args(["--xattrs", "-cf", "-", "-C"]).arg(&dir).arg(".").output();
    out.unwrap().stdout
}

/// What is made of an archive with an attribute, and of one on it that deletes.
fn is_filled_and_seen(store: &Store) {
    let base = archive(store, "base", |dir| {
        fs::create_dir_all(dir.join("d/deep")).unwrap();
        for name in ["a", "d/b", "d/deep/c"] {
            fs::write(dir.join(name), name).unwrap();
        }
        fs::hard_link(dir.join("a"), dir.join("d/a2")).unwrap();
        let _ =
            rustix::fs::setxattr(dir.join("a"), "user.a", b"x", rustix::fs::XattrFlags::empty());
    });
    let top = archive(store, "top", |dir| {
        fs::create_dir_all(dir.join("d/deep")).unwrap();
        for name in [".wh.a", "d/.wh.b", "d/deep/.wh..wh..opq"] {
            fs::write(dir.join(name), "").unwrap();
        }
        fs::write(dir.join("d/deep/new"), "new").unwrap();
    });
    store.read_only("base", None);
    store.apply("base", &base).unwrap();
    store.read_only("top", Some("base"));
    store.apply("top", &top).unwrap();
    store.read_write("box", Some("top"));
    store.see("box", |root| {
        let list = |dir: &str| {
            let names = fs::read_dir(root.join(dir)).unwrap();
            let mut names: Vec<_> =
                names.map(|x| x.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(
            (list(""), list("d"), list("d/deep")),
            (vec!["d".into()], vec!["a2".into(), "deep".into()], vec!["new".into()])
        );
        fs::write(root.join("d/a2"), "changed").unwrap();
        fs::remove_file(root.join("d/deep/new")).unwrap();
    });
    store.see("box", |root| {
        assert_eq!(fs::read_to_string(root.join("d/a2")).unwrap(), "changed");
        assert!(!root.join("d/deep/new").exists());
    });
    assert_eq!(
        store.changes("box", Some("top")),
        ["C /d", "C /d/a2", "C /d/deep", "D /d/deep/new"]
    );
}

fn without_attributes(store: &Store) {
    let ram = store.sandbox.dir("ram");
    if let Err(error) = mount("none", &ram, "ramfs", MountFlags::empty(), c"") {
        return println!("skipped: a filesystem without xattrs: needs ramfs: {error}");
    }
    let ram = Ram(ram);
    let name = store.driver.name();
    let config = Config { root: ram.0.join("root"), ..Config::default() };
    match Registry::built_in().select(Some(name), &[], &config) {
        Ok(selected) => {
            let store =
                Store { sandbox: crate::common::sandbox::Sandbox::new(), driver: selected.driver };
            is_filled_and_seen(&store);
        }
        Err(error) => {
            assert!(name != "vfs", "{error}");
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
            assert!(error.to_string().contains("ramfs"), "{error}");
        }
    }
}

/// A process in a mount namespace of its own, which has copies of all mounts there are now.
struct Elsewhere(Child);

impl Elsewhere {
    fn new(target: &Path) -> Elsewhere {
        let mut command = Command::new("unshare");
        let child =
            command.args(["--mount", "--propagation", "private", "sleep", "100"]).spawn().unwrap();
        let elsewhere = Elsewhere(child);
        let start = Instant::now();
        while !(elsewhere.is_apart() && elsewhere.sees(target)) {
            assert!(start.elapsed() < Duration::from_secs(20), "no other namespace");
            std::thread::sleep(Duration::from_millis(5));
        }
        elsewhere
    }

    fn is_apart(&self) -> bool {
        let number = |path: String| fs::metadata(path).map(|found| found.ino()).ok();
        let own = number("/proc/thread-self/ns/mnt".to_owned());
        let comm = fs::read_to_string(format!("/proc/{}/comm", self.0.id())).unwrap_or_default();
        comm == "sleep\n" && number(format!("/proc/{}/ns/mnt", self.0.id())) != own
    }

    fn sees(&self, target: &Path) -> bool {
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", self.0.id())).unwrap();
        table.contains(&format!(" {} ", target.display()))
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn copies_of_a_mount_go_with_it(store: &Store) {
    store.read_write("base", None);
    fs::write(store.own("base").join("f"), "x").unwrap();
    store.read_write("top", Some("base"));
    // The legacy driver shows the base by a mount too.
    for name in ["top", "base"] {
        let View::Mount(mount) = store.driver.view(&id(name), &MountOptions::default()).unwrap()
        else {
            continue;
        };
        let mounted = plan::perform(&mount, &server()).unwrap();
        let elsewhere = Elsewhere::new(&mount.target);
        let start = Instant::now();
        mounted.unmount().unwrap();
        assert!(start.elapsed() < Duration::from_secs(9), "it took {:?}", start.elapsed());
        assert!(!elsewhere.sees(&mount.target), "a copy is left");
        assert!(!mount.target.exists());
        store.see(name, |root| assert!(root.join("f").exists()));
    }
    store.driver.remove(&id("top")).unwrap();
    store.driver.remove(&id("base")).unwrap();
    assert_eq!(store.driver.sweep().unwrap(), [""; 0]);
}

fn an_empty_root_is_used_and_left(store: &Store) {
    store.read_write("a", None);
    store.read_write("b", Some("a"));
    store.see("b", |root| fs::write(root.join("f"), "").unwrap());
    store.driver.cleanup().unwrap();
    driver_kit::assert_no_mounts(&store.root());
    fs::remove_dir_all(store.root()).unwrap();
}

every_driver! {
    no_xattrs, without_attributes;
    other_namespaces, copies_of_a_mount_go_with_it;
    setup_and_teardown, an_empty_root_is_used_and_left;
}
