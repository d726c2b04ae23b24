//! The store and its verbs, on every driver: layers are made, filled, mounted, listed, given back and removed, and what a
//! crash leaves is cleared away.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plyfs::driver::{Create, LayerId};

use crate::common::cmd::Cmd;
use crate::driver_kit;
use crate::every_driver;
use crate::layer_apply_kit::Tar;
use crate::semantics_kit::names;
use crate::store_kit::{Box_, tree};

fn a_layer_is_filled_changed_and_given_back(store: &driver_kit::Store) {
    let store = Box_(store);
    let archive = store.fill("base", None, &tree(store.0));
    store.does(&["layer", "create", "--parent", "base", "box"]);
    let at = store.does(&["layer", "mount", "box"]).stdout.trim_end().to_owned();
    let at = Path::new(&at);
    assert_eq!(fs::read_to_string(at.join("a")).unwrap(), "one\n");
    fs::write(at.join("new"), "x").unwrap();
    fs::write(at.join("a"), "changed").unwrap();
    fs::remove_file(at.join("d/b")).unwrap();
    // The second mount is the same one, and the first to be taken back takes nothing away.
    store.does(&["layer", "mount", "box"]).says(at.to_str().unwrap());
    store.does(&["layer", "umount", "box"]);
    assert!(at.join("new").exists());
    store.does(&["layer", "umount", "box"]);
    let changes = store.does(&["layer", "changes", "box"]).stdout;
    assert_eq!(changes, "C /a\nC /d\nD /d/b\nA /new\n");
    assert_eq!(store.does(&["layer", "size", "box"]).stdout, "8\n");
    let copy = store.0.sandbox.at("copy.tar");
    store.does(&["layer", "diff", "base", "-o", copy.to_str().unwrap()]);
    assert!(fs::read(&copy).unwrap() == fs::read(&archive).unwrap(), "the very bytes");
    let diff = store.0.sandbox.at("diff.tar");
    store.does(&["layer", "diff", "box", "-o", diff.to_str().unwrap()]);
    store.does(&["layer", "create", "--read-only", "--parent", "base", "again"]);
    store.does(&["layer", "apply", "again", diff.to_str().unwrap()]);
    assert_eq!(store.does(&["layer", "changes", "again"]).stdout, changes);
    assert_eq!(store.0.differences("box", "again"), [] as [&str; 0]);
}

fn a_layer_in_use_is_not_removed(store: &driver_kit::Store) {
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    store.does(&["layer", "create", "--parent", "base", "box"]);
    store.plyfs(&["layer", "rm", "base"]).exits(1).complains("layer 'box', which lies on it");
    store.does(&["layer", "create", "--read-only", "empty"]);
    for name in ["box", "empty"] {
        let umount = ["layer", "umount", name];
        let none = format!("mount of layer '{name}': not found");
        store.plyfs(&umount).exits(1).complains(&none);
        store.does(&["layer", "mount", name]);
        store.does(&["layer", "mount", name]);
        store.does(&umount);
        store
            .plyfs(&["layer", "rm", name])
            .exits(1)
            .complains("its mount, 1 times; unmount it first");
        if name == "empty" {
            let archive = store.0.sandbox.at("base.tar");
            let apply = ["layer", "apply", name, archive.to_str().unwrap()];
            store.plyfs(&apply).exits(1).complains("unmount it first");
        }
        store.does(&umount);
        store.plyfs(&umount).exits(1).complains(&none);
    }
    store.does(&["layer", "rm", "empty", "box", "base"]);
    store.plyfs(&["layer", "exists", "base"]).exits(1);
    assert_eq!(store.does(&["layer", "ls"]).stdout, "");
    assert_eq!(store.0.driver.list().unwrap(), []);
}

fn a_large_layer_is_deleted_behind_its_removal(store: &driver_kit::Store) {
    let store = Box_(store);
    store.does(&["layer", "create", "large"]);
    let own = store.0.own("large");
    for number in 0..6000 {
        fs::write(own.join(number.to_string()), "").unwrap();
    }
    store.does(&["layer", "rm", "large"]);
    store.plyfs(&["layer", "exists", "large"]).exits(1);
    store.does(&["layer", "create", "large"]);
    assert_eq!(fs::read_dir(store.0.own("large")).unwrap().count(), 0);
    let left = || {
        let dirs = [store.0.driver.home().to_path_buf(), store.0.driver.home().join("dir")];
        let names = dirs.into_iter().flat_map(fs::read_dir).flatten().flatten();
        names.map(|entry| entry.file_name()).find(|name| name.as_bytes().starts_with(b".gone-"))
    };
    let end = Instant::now() + Duration::from_secs(60);
    while let Some(left) = left() {
        assert!(Instant::now() < end, "{left:?} is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wrong_input_changes_nothing(store: &driver_kit::Store) {
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    let junk = store.0.sandbox.at("junk");
    fs::write(&junk, vec![7; 5000]).unwrap();
    store.does(&["layer", "create", "--read-only", "bad"]);
    store.plyfs(&["layer", "apply", "bad", junk.to_str().unwrap()]).exits(1);
    store.does(&["layer", "create", "--parent", "base", "box"]);
    let archive = store.0.sandbox.at("base.tar");
    let archive = archive.to_str().unwrap();
    for (words, why) in [
        (&["layer", "create", "base"][..], "already exists"),
        (&["layer", "create", "--parent", "none", "x"], "layer 'none': not found"),
        (&["layer", "create", "a/b"], "may hold letters"),
        (&["layer", "create", "--opt", "colour=red", "x"], "colour"),
        (&["layer", "create", "--read-only", "--opt", "size=1G", "x"], "size"),
        (
            &["layer", "apply", "--limit", "colour=1", "bad", "/dev/null"],
            "limit 'colour': there are bytes, ratio,",
        ),
        (
            &["layer", "apply", "--limit", "bytes=0", "bad", "/dev/null"],
            "limit 'bytes': less than 1",
        ),
        (
            &["layer", "apply", "--limit", "entries=1", "bad", archive],
            "more than 1 entries, the limit 'entries'",
        ),
        (&["layer", "apply", "base", "/dev/null"], "holds an archive already"),
        (&["layer", "apply", "box", "/dev/null"], "--read-only"),
        (&["layer", "rm", "none"], "layer 'none': not found"),
        (&["layer", "umount", "none"], "layer 'none': not found"),
        (&["layer", "changes", "none"], "layer 'none': not found"),
    ] {
        store.plyfs(words).exits(1).complains(why);
    }
    let names: Vec<String> =
        store.open().unwrap().list().unwrap().into_iter().map(|x| x.id).collect();
    assert_eq!(names, ["bad", "base", "box"]);
    assert_eq!(fs::read_dir(store.0.root().join("pending")).unwrap().count(), 0);
    // What could not be filled is as empty as before.
    store.does(&["layer", "apply", "--limit", "entries=1k,bytes=1g", "bad", archive]);
    assert_eq!(store.0.differences("base", "bad"), [] as [&str; 0]);
}

fn what_a_crash_left_is_cleared_away(store: &driver_kit::Store) {
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    let (root, driver) = (store.0.root(), &store.0.driver);
    let pending = |id: &str, work: &str| fs::write(root.join("pending").join(id), work).unwrap();
    let id = |name: &str| LayerId::new(name).unwrap();
    let spec = Create { read_only: true, ..Create::default() };
    // Made, and not recorded.
    driver.create(&id("made"), Some(&id("base")), &spec).unwrap();
    pending("made", "create");
    // Filled, and not recorded.
    store.does(&["layer", "create", "--read-only", "filled"]);
    let archive = fs::read(store.0.sandbox.at("base.tar")).unwrap();
    store.0.apply("filled", &archive).unwrap();
    fs::write(root.join("layers/filled/tar-split.gz"), "half").unwrap();
    pending("filled", "apply");
    // Not in the records any more, and not removed.
    driver.create(&id("removed"), None, &spec).unwrap();
    pending("removed", "remove");
    // Announced only.
    pending("announced", "");
    fs::create_dir(root.join("layers/.0123")).unwrap();
    let open = store.open().unwrap();
    let names: Vec<String> = open.list().unwrap().into_iter().map(|x| x.id).collect();
    assert_eq!(names, ["base", "filled"]);
    assert_eq!(driver.list().unwrap(), [id("base"), id("filled")]);
    assert_eq!(fs::read_dir(root.join("pending")).unwrap().count(), 0);
    assert_eq!(open.unknown().unwrap(), []);
    assert_eq!(open.changes(&id("filled")).unwrap(), [], "it is empty again");
    drop(open);
    store.does(&["layer", "apply", "filled", store.0.sandbox.at("base.tar").to_str().unwrap()]);
    assert_eq!(store.0.differences("base", "filled"), [] as [&str; 0]);
}

fn storage_of_others_is_told_and_left(store: &driver_kit::Store) {
    let store = Box_(store);
    store.0.read_only("foreign", None);
    let open = store.open().unwrap();
    assert_eq!(open.unknown().unwrap(), [LayerId::new("foreign").unwrap()]);
    let error =
        open.create(&LayerId::new("foreign").unwrap(), None, &Create::default()).unwrap_err();
    assert!(error.to_string().contains("already exists"), "{error}");
    assert!(store.0.driver.exists(&LayerId::new("foreign").unwrap()).unwrap());
}

fn the_driver_tells_what_it_found(store: &driver_kit::Store) {
    let store = Box_(store);
    let name = store.0.driver.name();
    store.does(&["driver", "status"]).says(&format!("Driver: {name} (named)"));
    let json = store.does(&["--json", "driver", "status"]).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["driver"], name);
    assert!(json["status"]["Backing Filesystem"].is_string(), "{json}");
    store.does(&["driver", "cleanup"]);
}

fn content_is_made_to_last_as_it_is_asked_for(store: &driver_kit::Store) {
    let box_ = Box_(store);
    let archive = box_.fill("base", None, &tree(store));
    let name = store.driver.name();
    // How often all of the filesystem was written out.
    let syncs = |option: &str, words: &[&str]| {
        let words = [&["--storage-opt", option], words].concat();
        let done = box_.plyfs(&words).env("PLYFS_LOG", "plyfs::sys=trace").succeeds();
        done.stderr.matches("sync the filesystem of").count()
    };
    let copies = usize::from(matches!(name, "vfs" | "overlay"));
    let other = if name == "vfs" { "overlay2.sync=none" } else { "vfs.sync=none" };
    for (option, id, made, filled) in [
        (format!("{name}.sync=filesystem"), "a", copies, 1),
        (format!("{name}.sync=none"), "b", 0, 0),
        (other.to_owned(), "c", copies, 1),
    ] {
        let create = ["layer", "create", "--read-only", "--parent", "base", id];
        assert_eq!(syncs(&option, &create), made, "{option}");
        assert_eq!(
            syncs(&option, &["layer", "apply", id, archive.to_str().unwrap()]),
            filled,
            "{option}"
        );
        assert_eq!(store.differences("base", id), [] as [&str; 0]);
    }
    let option = format!("{name}.sync=none");
    box_.does(&["--storage-opt", &option, "driver", "status"]).says("Sync: none");
    box_.does(&["driver", "status"]).says("Sync: filesystem");
    box_.does(&["check"]);
    for wrong in ["", "file", "None"] {
        let option = format!("{name}.sync={wrong}");
        let done = box_.plyfs(&["--storage-opt", &option, "layer", "ls"]).exits(1);
        done.complains("there are none and filesystem");
    }
}

/// Marks go where the driver's mounts look for them.
fn deletions_are_seen_with_options_for_marks_elsewhere(store: &driver_kit::Store) {
    let name = store.driver.name();
    if name == "vfs" || name == "overlay" {
        return println!("skipped: {name} has no marks");
    }
    let store = Box_(store);
    let option = format!("{name}.mountopt=userxattr");
    let does = |words: &[&str]| store.does(&[&["--storage-opt", &option, "layer"], words].concat());
    for (layer, parent, files) in [
        ("base", None, &["d/old", "e", "f/x"][..]),
        ("top", Some("base"), &["d/.wh..wh..opq", "d/new", "e/x", "f"]),
    ] {
        let tar = files.iter().fold(Tar::default(), |tar, file| tar.file(file, "x"));
        let archive = store.0.sandbox.at("archive.tar");
        fs::write(&archive, tar.end()).unwrap();
        let parent: Vec<&str> = parent.iter().flat_map(|parent| ["--parent", parent]).collect();
        does(&[&["create", "--read-only"], &parent[..], &[layer]].concat());
        does(&["apply", layer, archive.to_str().unwrap()]);
    }
    does(&["create", "--parent", "top", "box"]);
    let at = PathBuf::from(does(&["mount", "box"]).stdout.trim_end());
    assert_eq!((names(at.join("d")), names(at.join("e"))), (vec!["new".into()], vec!["x".into()]));
    assert!(at.join("f").is_file());
    does(&["umount", "box"]);
}

every_driver! {
    marks, deletions_are_seen_with_options_for_marks_elsewhere;
    sync, content_is_made_to_last_as_it_is_asked_for;
    filled_changed_and_given_back, a_layer_is_filled_changed_and_given_back;
    in_use_is_not_removed, a_layer_in_use_is_not_removed;
    large_removal, a_large_layer_is_deleted_behind_its_removal;
    wrong_input, wrong_input_changes_nothing;
    crash, what_a_crash_left_is_cleared_away;
    foreign_storage, storage_of_others_is_told_and_left;
    status, the_driver_tells_what_it_found;
}

#[test]
fn options_before_a_verb_that_has_no_use_for_them_are_wrong_usage() {
    let sandbox = crate::common::sandbox::Sandbox::new();
    let root = sandbox.at("state");
    let before = |words: &[&str]| Cmd::plyfs().arg("--json").arg("--root").arg(&root).args(words);
    before(&["diff", "/nowhere"]).exits(2).complains("options before the verb");
    before(&["changes", sandbox.upper().to_str().unwrap()]).succeeds().says("[]");
    before(&["doctor"]).succeeds().says(root.to_str().unwrap());
}
