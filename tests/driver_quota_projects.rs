//! Limits of layers that the filesystem keeps: each driver on an XFS and an ext4 of its own with project quota.

mod disk;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use plyfs::driver::{Create, Driver, Quota};
use plyfs::error::Error;
use plyfs::sys::quota::{Ledger, project};

use crate::common::cmd::Cmd;
use crate::driver_kit::{self, Store, id};
use crate::driver_quota::{limited, open};
use crate::store_kit::Box_;
use disk::every_disk;

const KIB: u64 = 1 << 10;
/// Limits are some of these. With much smaller ones a hundredth is less than XFS sets aside for a new name, which it then does not
/// take back from what it has allocated in advance.
const STEP: u64 = 8 << 20;
/// Numbers of projects begin above this.
const BASE: u32 = 1_000_000;

fn bytes(bytes: u64) -> Quota {
    Quota { bytes: Some(bytes), inodes: None }
}

/// Writes a file as far as there is room for it, to the disk.
fn put(path: impl AsRef<Path>, bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&vec![1; usize::try_from(bytes).unwrap()])?;
    file.sync_all()
}

/// The limit was met: XFS says that there is no room, ext4 that the quota is used up.
fn refused(done: io::Result<()>) {
    let error = done.unwrap_err();
    let kinds = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded];
    assert!(kinds.contains(&error.kind()), "{error}");
}

/// Does it again, for a moment, as long as there is no room: a server, and XFS, take their time to let go of what was deleted.
fn when_free(mut act: impl FnMut() -> io::Result<()>) {
    let start = Instant::now();
    while let Err(error) = act() {
        assert!(start.elapsed() < Duration::from_secs(10), "{error}");
        refused(Err(error));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Files that a directory takes.
fn crowd(dir: &Path, most: u64) -> u64 {
    for n in 0..most {
        match File::create(dir.join(format!("n{n}"))) {
            Ok(_) => {}
            other => {
                refused(other.map(drop));
                return n;
            }
        }
    }
    most
}

/// Bytes and inodes that statfs shows in all.
fn shown(path: &Path) -> (u64, u64) {
    let stat = rustix::fs::statfs(path).unwrap();
    (stat.f_blocks * u64::try_from(stat.f_bsize).unwrap(), stat.f_files)
}

fn project_of(store: &Store, name: &str) -> u32 {
    project(&store.own(name)).unwrap().id
}

/// The projects that anything is in, or that have limits, of those that layers get.
fn used(store: &Store) -> Vec<u32> {
    let ledger = Ledger::open(&store.root()).unwrap();
    let (mut ids, mut from) = (Vec::new(), BASE);
    while let Some((id, balance)) = ledger.next(from).unwrap() {
        if balance != Default::default() {
            ids.push(id);
        }
        from = id + 1;
    }
    ids
}

/// Waits until only these are in use: XFS takes its time to let go of what was deleted.
fn only(store: &Store, wanted: &[u32]) {
    let start = Instant::now();
    loop {
        // A removal leaves what takes long for later.
        store.driver.sweep().unwrap();
        rustix::fs::syncfs(File::open(store.root()).unwrap()).unwrap();
        let found = used(store);
        if found == wanted {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "in use: {found:?}, not {wanted:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A layer with a file of 512 KiB.
fn base(store: &Store) {
    store.read_write("base", None);
    put(store.own("base").join("low"), 512 * KIB).unwrap();
}

fn child(store: &Store, name: &str, words: &[(&str, &str)]) {
    store.driver.create(&id(name), Some(&id("base")), &limited(words)).unwrap();
}

fn quota(store: &Store, name: &str) -> Quota {
    store.driver.quota(&id(name)).unwrap()
}

every_disk! {
    limits_hold, |lab| {
        let store = &lab.store;
        base(store);
        child(store, "child", &[("size", "32m"), ("inodes", "60")]);
        assert_eq!(quota(store, "child"), Quota { bytes: Some(4 * STEP), inodes: Some(60) });
        lab.see("child", |root| {
            assert_eq!(shown(root), (4 * STEP, 60));
            // While it is open XFS allocates as much again in advance.
            put(root.join("some"), STEP / 2).unwrap();
            refused(put(root.join("more"), 4 * STEP));
            let _ = fs::remove_file(root.join("more"));
            // What is made further down is in the project too.
            when_free(|| fs::create_dir_all(root.join("a/b/c")));
            assert_eq!(project(&store.own("child").join("a/b/c")).unwrap().id, project_of(store, "child"));
            refused(put(root.join("a/b/c/more"), 4 * STEP));
            let _ = fs::remove_file(root.join("a/b/c/more"));
            fs::rename(root.join("some"), root.join("a/b/some")).unwrap();
            when_free(|| put(root.join("last"), 4096));
            assert!((30..60).contains(&crowd(root, 100)));
        });
        let usage = store.driver.usage(&id("child")).unwrap();
        assert!((STEP / 2..=4 * STEP).contains(&usage.bytes), "{usage:?}");
        assert!((30..=60).contains(&usage.inodes), "{usage:?}");
        // Nobody else is held to them.
        child(store, "free", &[]);
        lab.see("free", |root| put(root.join("big"), 5 * STEP).unwrap());
    };

    a_layer_without_a_parent_is_limited, |lab| {
        let store = &lab.store;
        store.driver.create(&id("a"), None, &limited(&[("size", "8m")])).unwrap();
        lab.see("a", |root| {
            assert_eq!(shown(root).0, STEP);
            put(root.join("half"), STEP / 2).unwrap();
            refused(put(root.join("more"), STEP));
        });
        // Around the mount they hold for all that may not exceed quotas.
        lab.held(|| refused(put(store.own("a").join("direct"), STEP)));
        if store.driver.name() != "vfs" {
            // Others lie on it now, so it is only read.
            store.read_write("b", Some("a"));
            lab.see("a", |root| {
                assert!(root.join("half").is_file());
                assert!(fs::write(root.join("new"), "x").is_err());
            });
        }
    };

    limits_change_at_once, |lab| {
        let store = &lab.store;
        base(store);
        store.read_write("child", Some("base"));
        assert_eq!(quota(store, "child"), Quota::default());
        let set = |quota| store.driver.set_quota(&id("child"), quota);
        lab.see("child", |root| {
            put(root.join("a"), 2 * STEP).unwrap();
            set(bytes(4 * STEP)).unwrap();
            assert_eq!(shown(root).0, 4 * STEP);
            refused(put(root.join("b"), 4 * STEP));
            set(bytes(8 * STEP)).unwrap();
            when_free(|| put(root.join("b"), 4 * STEP));
            // Less than there is: all stays, and nothing is added.
            set(bytes(STEP)).unwrap();
            assert_eq!(fs::read(root.join("a")).unwrap().len() as u64, 2 * STEP);
            refused(put(root.join("c"), STEP));
            set(Quota { bytes: None, inodes: Some(20) }).unwrap();
            assert_eq!(quota(store, "child"), Quota { bytes: None, inodes: Some(20) });
            put(root.join("c"), 4 * STEP).unwrap();
            assert!(crowd(root, 30) < 20);
            set(Quota::default()).unwrap();
            assert_eq!(crowd(root, 30), 30);
            put(root.join("d"), 4 * STEP).unwrap();
        });
        assert_eq!(quota(store, "child"), Quota::default());
        for wrong in [bytes(5), Quota { bytes: None, inodes: Some(3) }] {
            assert!(matches!(set(wrong), Err(Error::Invalid { .. })), "{wrong:?}");
        }
    };

    numbers_are_used_again, |lab| {
        let store = &lab.store;
        store.read_only("base", None);
        assert_eq!(project_of(store, "base"), 0, "what is never written has no project");
        let fixed = store.driver.set_quota(&id("base"), bytes(STEP));
        assert!(fixed.is_err(), "{fixed:?}");
        for name in ["a", "b", "c"] {
            child(store, name, &[("size", "8m")]);
        }
        let ids = ["a", "b", "c"].map(|name| project_of(store, name));
        assert_eq!(ids, [BASE + 1, BASE + 2, BASE + 3]);
        store.driver.remove(&id("b")).unwrap();
        only(store, &[BASE + 1, BASE + 3]);
        child(store, "d", &[("size", "16m")]);
        assert_eq!(project_of(store, "d"), BASE + 2);
        assert_eq!(quota(store, "d"), bytes(2 * STEP));
        for name in ["a", "c", "d"] {
            store.driver.remove(&id(name)).unwrap();
        }
        only(store, &[]);
    };

    layers_come_with_the_limits_of_the_driver, |lab| {
        let store = &lab.store;
        let key = |what| format!("{}.{what}", store.driver.name());
        let driver = open(store, &[(&key("size"), "8m"), (&key("inodes"), "1k")]).unwrap();
        let create = |name, spec: &Create| driver.create(&id(name), None, spec);
        create("usual", &Create::default()).unwrap();
        create("own", &limited(&[("size", "16m"), ("inodes", "none")])).unwrap();
        let fixed = Create { read_only: true, ..Create::default() };
        create("fixed", &fixed).unwrap();
        assert_eq!(quota(store, "usual"), Quota { bytes: Some(STEP), inodes: Some(1024) });
        assert_eq!(quota(store, "own"), bytes(2 * STEP));
        assert_eq!(quota(store, "fixed"), Quota::default());
        let wrong = [
            Create { read_only: true, ..limited(&[("size", "8m")]) },
            limited(&[("colour", "8m")]),
            limited(&[("inodes", "2")]),
        ];
        for spec in wrong {
            let made = create("wrong", &spec);
            assert!(matches!(made, Err(Error::Invalid { .. })), "{made:?}");
        }
        let told = driver.status().into_iter().find(|(key, _)| *key == "Quota");
        assert!(told.is_some_and(|(_, value)| value.contains("by project")));
        lab.see("usual", |root| refused(put(root.join("more"), 2 * STEP)));
    };

    a_filled_layer_keeps_its_limits, |lab| {
        let store = &lab.store;
        store.driver.create(&id("a"), None, &limited(&[("size", "16m")])).unwrap();
        let tree = store.sandbox.dir("tree/d");
        put(tree.join("file"), STEP).unwrap();
        let archive = store.sandbox.at("a.tar");
        Cmd::new("tar").arg("-cf").arg(&archive).arg("-C").arg(store.sandbox.at("tree")).arg(".").succeeds();
        store.apply("a", &fs::read(archive).unwrap()).unwrap();
        assert_eq!(quota(store, "a"), bytes(2 * STEP));
        assert_eq!(project(&store.own("a").join("d")).unwrap().id, project_of(store, "a"));
        lab.see("a", |root| {
            fs::rename(root.join("d/file"), root.join("file")).unwrap();
            refused(put(root.join("d/more"), 2 * STEP));
        });
        store.driver.remove(&id("a")).unwrap();
        only(store, &[]);
    };

    a_killed_command_leaves_no_number, |lab| {
        let store = &lab.store;
        // The kernel counts alike for all.
        if !matches!((store.driver.name(), lab.kind()), ("overlay2", "xfs") | ("vfs", "ext4")) {
            return;
        }
        base(store);
        let at = Box_(store);
        at.does(&["layer", "create", "base2"]);
        let others = used(store);
        let trace = "plyfs_fuse::sys::fault=trace";
        let changes = |words: &[&str]| {
            let cmd = at.plyfs(words).env("PLYFS_STORE_FAULT", "1000000").env("PLYFS_LOG", trace);
            cmd.succeeds().stderr.lines().filter(|line| line.contains("change ")).count()
        };
        let opening = changes(&["layer", "ls"]);
        let create = ["layer", "create", "--opt", "size=8m", "--parent", "base2", "x"];
        let remove = ["layer", "rm", "x"];
        for (words, prepare) in [(&create[..], None), (&remove[..], Some(&create))] {
            let prepared = || prepare.into_iter().for_each(|words| drop(at.does(words)));
            prepared();
            let total = changes(words);
            at.plyfs(&remove).run();
            let mut killed = 0;
            for n in opening..=total {
                prepared();
                let done = at.plyfs(words).env("PLYFS_STORE_FAULT", n.to_string()).run();
                killed += usize::from(done.status == 128 + 9);
                // Opening the store clears away what is left.
                at.plyfs(&remove).run();
                only(store, &others);
            }
            assert!(killed > 5, "{words:?}: killed {killed} times only, of {opening}..{total}");
        }
    };
}

#[test]
fn a_copy_of_a_parent_has_to_fit() {
    for kind in ["xfs", "ext4"] {
        disk::with(&format!("{} on {kind}", crate::this_test!()), kind, "vfs", |lab| {
            let store = &lab.store;
            store.read_only("base", None);
            put(store.own("base").join("low"), 2 * STEP).unwrap();
            let create = |size| {
                store.driver.create(&id("child"), Some(&id("base")), &limited(&[("size", size)]))
            };
            let told = create("8m").unwrap_err().to_string();
            assert!(told.contains("the copy of its parent takes 16"), "{told}");
            assert!(!store.driver.exists(&id("child")).unwrap());
            only(store, &[]);
            create("32m").unwrap();
            assert_eq!(project(&store.own("child")).unwrap().id, BASE + 1);
            lab.see("child", |root| {
                put(root.join("more"), STEP).unwrap();
                refused(put(root.join("yet_more"), 2 * STEP));
            });
        });
    }
}

#[test]
fn a_limited_layer_goes_with_its_driver() {
    for kind in ["xfs", "ext4"] {
        disk::with(&format!("{} on {kind}", crate::this_test!()), kind, "overlay2", |lab| {
            base(&lab.store);
            child(&lab.store, "child", &[("size", "16m")]);
            lab.see("child", |root| put(root.join("a"), STEP).unwrap());
            lab.store.reopen("fuse-overlay");
            assert_eq!(quota(&lab.store, "child"), bytes(2 * STEP));
            lab.see("child", |root| refused(put(root.join("b"), 2 * STEP)));
            lab.store.driver.set_quota(&id("child"), bytes(8 * STEP)).unwrap();
            lab.store.reopen("overlay2");
            assert_eq!(quota(&lab.store, "child"), bytes(8 * STEP));
            lab.see("child", |root| put(root.join("b"), 4 * STEP).unwrap());
        });
    }
}

#[test]
fn a_store_inside_a_project_has_none_for_its_layers() {
    disk::with(crate::this_test!(), "ext4", "vfs", |lab| {
        let root = lab.store.sandbox.dir("root/inner");
        plyfs::sys::quota::set_project(&root, 7).unwrap();
        let driver = driver_kit::open("vfs", &root);
        let told = driver.create(&id("a"), None, &limited(&[("size", "8m")])).unwrap_err();
        assert!(told.to_string().contains("projects do not nest"), "{told}");
        driver.create(&id("a"), None, &Create::default()).unwrap();
        driver.remove(&id("a")).unwrap();
    });
}

#[test]
fn stores_on_one_filesystem_share_no_project() {
    for kind in ["xfs", "ext4"] {
        disk::with(&format!("{} on {kind}", crate::this_test!()), kind, "vfs", |lab| {
            let other = driver_kit::open("fuse-overlay", &lab.store.sandbox.dir("root/other"));
            let fill = |driver: &dyn Driver| {
                for n in 0..8 {
                    driver.create(&id(&n.to_string()), None, &limited(&[("size", "8m")])).unwrap();
                }
            };
            std::thread::scope(|scope| {
                scope.spawn(|| fill(&*lab.store.driver));
                scope.spawn(|| fill(&*other));
            });
            let projects = |driver: &dyn Driver| {
                let own = |n: u32| driver.parts(&id(&n.to_string())).unwrap().own;
                (0..8).map(|n| project(&own(n)).unwrap().id).collect::<Vec<_>>()
            };
            let mut all = [projects(&*lab.store.driver), projects(&*other)].concat();
            all.sort_unstable();
            assert_eq!(all, (BASE + 1..=BASE + 16).collect::<Vec<_>>());
        });
    }
}

#[test]
fn limits_are_told_by_the_command_line() {
    disk::with(crate::this_test!(), "xfs", "overlay2", |lab| {
        let store = Box_(&lab.store);
        store.does(&["layer", "create", "--opt", "size=8m", "a"]);
        store.does(&["layer", "quota", "a"]).says("8388608");
        let set = ["--json", "layer", "quota", "a", "--size", "none", "--inodes", "1k"];
        let told = store.does(&set).stdout;
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert!(told["bytes"]["limit"].is_null(), "{told}");
        assert_eq!(told["inodes"]["limit"], 1024, "{told}");
        assert_eq!(told["inodes"]["used"], 1, "{told}");
        store.does(&["driver", "status"]).says("Quota: bytes and inodes, by project");
        store.plyfs(&["layer", "quota", "b"]).exits(1).complains("layer 'b': not found");
        store.does(&["layer", "create", "--read-only", "fixed"]);
        let fixed = ["layer", "quota", "fixed", "--size", "8m"];
        store.plyfs(&fixed).exits(1).complains("a read-only layer has no limits");
    });
}

#[test]
fn shared_blocks_count_in_each_layer() {
    disk::with(crate::this_test!(), "xfs", "vfs", |lab| {
        let store = Box_(&lab.store);
        for name in ["a", "b"] {
            store.does(&["layer", "create", "--opt", "size=16m", name]);
            put(store.0.own(name).join("file"), STEP).unwrap();
        }
        let usage = || ["a", "b"].map(|name| store.0.driver.usage(&id(name)).unwrap());
        let before = usage();
        store.does(&["layer", "dedup"]).says("1 share their blocks now");
        rustix::fs::syncfs(File::open(store.0.root()).unwrap()).unwrap();
        assert_eq!(usage(), before);
        lab.see("b", |root| refused(put(root.join("more"), 2 * STEP)));
    });
}
