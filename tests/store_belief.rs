//! What users of a layer can set is their data: it makes nothing of a layer that its view is not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};

use crate::common::cmd::Cmd;
use crate::common::sandbox::Sandbox;
use crate::driver_kit;
use crate::store_kit::{Box_, tree};
use crate::{every_driver, needs};

const CAPABILITY: &str = "security.capability";

/// An object of an archive.
struct Object {
    kind: tar::EntryType,
    mode: u32,
    owner: (u64, u64),
    device: (u32, u32),
    xattrs: BTreeMap<String, Vec<u8>>,
}

/// A layer on one of a few files, after `work` was done in what is seen of it.
fn worked(store: &Box_<'_>, work: impl FnOnce(&Path)) {
    store.fill("base", None, &tree(store.0));
    store.does(&["layer", "create", "--parent", "base", "box"]);
    let at = store.does(&["layer", "mount", "box"]).stdout;
    work(Path::new(at.trim_end()));
    store.does(&["layer", "umount", "box"]);
}

fn changes(store: &Box_<'_>) -> Vec<String> {
    let lines = store.does(&["layer", "changes", "box"]).stdout;
    lines.lines().map(str::to_owned).collect()
}

fn diff(store: &Box_<'_>) -> BTreeMap<String, Object> {
    let path = store.0.sandbox.at("diff.tar");
    store.does(&["layer", "diff", "box", "-o", path.to_str().unwrap()]);
    let bytes = fs::read(&path).unwrap();
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut objects = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut xattrs = BTreeMap::new();
        for record in entry.pax_extensions().unwrap().into_iter().flatten() {
            let record = record.unwrap();
            if let Some(key) = record.key().unwrap().strip_prefix("SCHILY.xattr.") {
                xattrs.insert(key.to_owned(), record.value_bytes().to_vec());
            }
        }
        let header = entry.header();
        let number = |number: std::io::Result<Option<u32>>| number.ok().flatten().unwrap_or(0);
        let object = Object {
            kind: header.entry_type(),
            mode: header.mode().unwrap(),
            owner: (header.uid().unwrap(), header.gid().unwrap()),
            device: (number(header.device_major()), number(header.device_minor())),
            xattrs,
        };
        objects.insert(entry.path().unwrap().display().to_string(), object);
    }
    objects
}

/// Whether it could be set: some views refuse what others take.
fn set(path: PathBuf, key: &str, value: &[u8]) -> bool {
    setxattr(path, key, value, XattrFlags::empty()).is_ok()
}

/// With one id all attributes are of one user, and owners are kept in them.
fn has_many_ids() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    map.lines().any(|line| !line.trim_end().ends_with(" 1"))
}

fn records_of_users(store: &driver_kit::Store) {
    if !has_many_ids() {
        return;
    }
    let store = Box_(store);
    let names = ["user.containers.override_stat", "user.fuseoverlayfs.override_stat"];
    worked(&store, |at| {
        for (number, name) in names.iter().enumerate() {
            for (file, record) in [("su", "0:0:4755:file"), ("disk", "0:0:666:block-8-0")] {
                let path = at.join(format!("{file}{number}"));
                fs::write(&path, "mine").unwrap();
                rustix::fs::chmod(&path, Mode::from_raw_mode(0o644)).unwrap();
                rustix::fs::chown(&path, Some(rustix::fs::Uid::from_raw(7)), None).unwrap();
                set(path.clone(), name, record.as_bytes());
                set(path, "user.containers.override_security.capability", &[1, 0, 0, 2]);
            }
        }
    });
    let found = diff(&store);
    assert_eq!(found.len(), 4);
    for (name, object) in &found {
        let seen = (object.kind, object.mode, object.owner);
        assert_eq!(seen, (tar::EntryType::Regular, 0o644, (7, 0)), "{name}");
        assert!(!object.xattrs.contains_key(CAPABILITY), "{name}");
        assert!(names.iter().all(|key| !object.xattrs.contains_key(*key)), "{name}");
    }
}

fn marks_of_users(store: &driver_kit::Store) {
    let store = Box_(store);
    let (mut set_opaque, mut made) = (false, false);
    let mut seen = Vec::new();
    worked(&store, |at| {
        set_opaque = set(at.join("d"), "user.overlay.opaque", b"y");
        set(at.join("d"), "user.fuseoverlayfs.opaque", b"y");
        set(at.join("a"), "user.overlay.redirect", b"/d/b");
        set(at.join("d/b"), "user.overlay.metacopy", b"");
        set(at.join("d/b"), "user.overlay.whiteout", b"y");
        made = fs::write(at.join("d/.wh.c"), "x").is_ok();
        // Where the view takes it for a mark it is none of the user's.
        let _ = fs::write(at.join("d/.wh..wh..opq"), "x");
        seen.extend(fs::read_dir(at.join("d")).unwrap().map(|entry| entry.unwrap().file_name()));
    });
    assert!(seen.iter().any(|name| name == "b") && seen.iter().any(|name| name == "c"));
    let lines = changes(&store);
    assert!(lines.iter().all(|line| !line.starts_with('D')), "{lines:?}");
    assert_eq!(lines.contains(&"A /d/.wh.c".to_owned()), made, "{lines:?}");
    let found = diff(&store);
    let marks: Vec<_> = found.keys().filter(|name| name.contains(".wh.")).collect();
    assert!(marks.is_empty(), "{marks:?}");
    if set_opaque {
        assert_eq!(found["d/"].xattrs["user.overlay.opaque"], b"y");
    }
    for object in found.values() {
        assert!(object.xattrs.keys().all(|key| !key.contains("fuseoverlayfs")));
    }
}

/// What the kernel keeps for `rootid`, or for nobody in particular.
fn capability(rootid: Option<u32>) -> Vec<u8> {
    let mut value = vec![1, 0, 0, if rootid.is_some() { 3 } else { 2 }];
    value.extend([0, 0x04, 0, 0]);
    value.extend([0; 12]);
    value.extend(rootid.into_iter().flat_map(u32::to_le_bytes));
    value
}

fn capabilities_of_other_namespaces(store: &driver_kit::Store) {
    if !has_many_ids() {
        return;
    }
    let store = Box_(store);
    let mut given = false;
    worked(&store, |at| {
        for name in ["own", "foreign"] {
            fs::write(at.join(name), "x").unwrap();
        }
        given = set(at.join("own"), CAPABILITY, &capability(None));
        set(at.join("foreign"), CAPABILITY, &capability(Some(1000)));
    });
    let found = diff(&store);
    assert!(!found["foreign"].xattrs.contains_key(CAPABILITY));
    assert_eq!(found["own"].xattrs.get(CAPABILITY), given.then(|| capability(None)).as_ref());
}

/// A layer without a parent may be seen as the directory that it is, so that its users can set what they like.
fn moves_of_the_lowest(store: &driver_kit::Store) {
    let store = Box_(store);
    store.does(&["layer", "create", "box"]);
    let at = store.does(&["layer", "mount", "box"]).stdout;
    let at = Path::new(at.trim_end());
    fs::create_dir(at.join("d")).unwrap();
    for file in ["a", "d/b"] {
        fs::write(at.join(file), "data").unwrap();
        set(at.join(file), "user.overlay.metacopy", b"");
    }
    set(at.join("d"), "user.overlay.redirect", b"/e");
    set(at.join("a"), "user.overlay.redirect", b"/../..");
    store.does(&["layer", "umount", "box"]);
    let paths: Vec<String> = changes(&store).iter().map(|line| line[2..].to_owned()).collect();
    assert_eq!(paths, ["/a", "/d", "/d/b"]);
    assert_eq!(diff(&store).into_keys().collect::<Vec<_>>(), ["a", "d/", "d/b"]);
}

/// Of a directory of which nothing is known privilege believes what only privilege sets, unless it is told to.
#[test]
fn owners_in_attributes_are_believed_by_root_who_asks_for_it() {
    needs!(Root);
    let sandbox = Sandbox::new();
    let file = sandbox.dir("upper").join("su");
    fs::write(&file, "mine").unwrap();
    rustix::fs::chmod(&file, Mode::from_raw_mode(0o644)).unwrap();
    assert!(set(file, "user.containers.override_stat", b"0:0:4755:file"));
    for (word, mode) in [(None, 0o644), (Some("--userxattr"), 0o4755)] {
        let path = sandbox.at("diff.tar");
        let upper = sandbox.at("upper");
        Cmd::plyfs().arg("diff").args(word).arg("-o").arg(&path).arg(upper).succeeds();
        let bytes = fs::read(&path).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.header().mode().unwrap(), mode, "{word:?}");
    }
}

every_driver! {
    without_a_parent_nothing_was_moved, moves_of_the_lowest;
    a_users_attribute_is_no_owner_or_kind, records_of_users;
    a_users_attributes_and_names_are_no_marks, marks_of_users;
    capabilities_of_another_namespace_are_not_given_on, capabilities_of_other_namespaces;
}

/// In a tree that is one directory a device is a device, also 0:0, and nothing is moved or elsewhere.
fn nothing_is_a_mark(store: &driver_kit::Store) {
    let store = Box_(store);
    let mut made = false;
    worked(&store, |at| {
        fs::create_dir(at.join("nd")).unwrap();
        made = mknodat(CWD, at.join("nd/wh"), FileType::CharacterDevice, Mode::empty(), 0).is_ok();
        fs::write(at.join("nd/.wh.x"), "x").unwrap();
        fs::write(at.join("d/.wh..wh..opq"), "").unwrap();
        for space in ["trusted", "user"] {
            set(at.join("a"), &format!("{space}.overlay.redirect"), b"/d/b");
            set(at.join("d/b"), &format!("{space}.overlay.metacopy"), b"");
            set(at.join("d"), &format!("{space}.overlay.opaque"), b"y");
        }
    });
    let mut lines = vec!["C /a", "C /d", "A /d/.wh..wh..opq", "C /d/b", "A /nd", "A /nd/.wh.x"];
    lines.extend(made.then_some("A /nd/wh"));
    assert_eq!(changes(&store), lines);
    let found = diff(&store);
    let mut names = vec!["a", "d/", "d/b", "nd/"];
    names.extend(made.then_some("nd/wh"));
    assert_eq!(found.keys().collect::<Vec<_>>(), names);
    assert_eq!(found["a"].xattrs["user.overlay.redirect"], b"/d/b");
    if made {
        let device = &found["nd/wh"];
        assert_eq!((device.kind, device.device), (tar::EntryType::Char, (0, 0)));
    }
}

mod nothing_in_a_whole_copy_is_a_mark {
    use super::*;
    every_driver!(@ vfs, "vfs", false, nothing_is_a_mark);
    every_driver!(@ vfs_rootless, "vfs", true, nothing_is_a_mark);
}
