//! What an upper directory holds, as a list and as an image layer.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use plyfs::layer::changes;
use plyfs::layer::diff::{self, Spec};
use rustix::fs::{FileType, Mode, XattrFlags};
use tempfile::TempDir;

/// Some layers in a temporary directory; `upper` is one of them.
struct Layers(TempDir);

impl Layers {
    fn new() -> Layers {
        Layers(TempDir::new().unwrap())
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn dir(&self, path: &str) -> PathBuf {
        fs::create_dir_all(self.at(path)).unwrap();
        self.at(path)
    }

    fn file(&self, path: &str, text: &str) -> PathBuf {
        let at = self.at(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(&at, text).unwrap();
        at
    }

    fn whiteout(&self, path: &str) {
        let at = self.at(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at, FileType::CharacterDevice, Mode::empty(), 0)
            .unwrap();
    }

    fn mark(&self, path: &str, key: &str, value: &str) {
        let flags = XattrFlags::empty();
        rustix::fs::setxattr(self.at(path), key, value.as_bytes(), flags).unwrap();
    }

    /// The list of `upper` over `lowers`, as lines.
    fn changes(&self, lowers: &[&str]) -> Vec<String> {
        let lowers: Vec<PathBuf> = lowers.iter().map(|lower| self.at(lower)).collect();
        let list = changes::list(&self.at("upper"), &lowers).unwrap();
        list.iter().map(ToString::to_string).collect()
    }

    fn spec(&self, lowers: &[&str]) -> Spec {
        let lowers = lowers.iter().map(|lower| self.at(lower)).collect();
        Spec { upper: self.at("upper"), lowers, user_marks: true }
    }

    fn refusal(&self, lowers: &[&str]) -> String {
        diff::write(&self.spec(lowers), &mut Vec::new()).unwrap_err().to_string()
    }

    fn layer(&self, lowers: &[&str]) -> Layer {
        let mut bytes = Vec::new();
        diff::write(&self.spec(lowers), &mut bytes).unwrap();
        Layer::read(&bytes)
    }
}

/// An archive read back.
struct Layer {
    names: Vec<String>,
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    header: tar::Header,
    link: Option<Vec<u8>>,
    records: BTreeMap<String, Vec<u8>>,
    data: String,
}

impl Layer {
    fn read(bytes: &[u8]) -> Layer {
        let mut layer = Layer { names: Vec::new(), entries: BTreeMap::new() };
        let mut archive = tar::Archive::new(bytes);
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut data = String::new();
            std::io::Read::read_to_string(&mut entry, &mut data).unwrap();
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let link = entry.link_name_bytes().map(|link| link.into_owned());
            let records = match entry.pax_extensions().unwrap() {
                None => BTreeMap::new(),
                Some(records) => records
                    .map(|record| record.unwrap())
                    .map(|record| (record.key().unwrap().to_owned(), record.value_bytes().to_vec()))
                    .collect(),
            };
            let header = entry.header().clone();
            layer.names.push(name.clone());
            let repeated = layer.entries.insert(name, Entry { header, link, records, data });
            assert!(repeated.is_none(), "a path twice in one layer");
        }
        layer
    }
}

#[test]
fn changes_in_a_directory_make_it_a_change() {
    let layers = Layers::new();
    layers.file("lower/etc/hostname", "host");
    layers.file("upper/etc/new", "hi");
    layers.whiteout("upper/etc/hostname");
    let lines = ["C /etc", "D /etc/hostname", "A /etc/new"];
    assert_eq!(layers.changes(&["lower"]), lines);
    assert_eq!(layers.changes(&[]), lines);
}

#[test]
fn whiteouts_of_every_dialect_are_deletions() {
    let layers = Layers::new();
    for name in ["device", "dot", "xattr", "real"] {
        layers.file(&format!("lower/d/{name}"), "");
    }
    layers.whiteout("upper/d/device");
    layers.file("upper/d/.wh.dot", "");
    layers.file("upper/d/xattr", "");
    layers.file("upper/d/.wh..wh.plnk", "");
    layers.mark("upper/d", "user.overlay.opaque", "x");
    layers.mark("upper/d/xattr", "user.overlay.whiteout", "y");
    let lines = ["C /d", "D /d/device", "D /d/dot", "D /d/xattr"];
    assert_eq!(layers.changes(&["lower"]), lines);
    assert_eq!(layers.changes(&[]), lines);
    let names = layers.layer(&[]).names;
    assert_eq!(names, ["d/", "d/.wh.device", "d/.wh.dot", "d/.wh.xattr"]);
}

#[test]
fn whiteouts_left_in_an_opaque_directory_are_no_files() {
    let layers = Layers::new();
    layers.file("lower/d/x", "");
    layers.file("upper/d/x", "");
    layers.mark("upper/d", "user.overlay.opaque", "y");
    layers.mark("upper/d", "user.overlay.xwhiteouts", "y");
    layers.mark("upper/d/x", "user.overlay.whiteout", "y");
    assert_eq!(layers.changes(&["lower"]), ["C /d", "D /d/x"]);
    assert_eq!(layers.layer(&["lower"]).names, ["d/", "d/.wh..wh..opq", "d/.wh.x"]);
}

#[test]
fn a_deletion_of_nothing_is_no_change() {
    let layers = Layers::new();
    layers.file("top/.wh.a", "");
    layers.file("bottom/a", "");
    layers.whiteout("upper/a");
    assert!(layers.changes(&["top", "bottom"]).is_empty());
    assert_eq!(layers.changes(&["bottom"]), ["D /a"]);
}

#[test]
fn an_opaque_directory_deletes_what_it_hides() {
    let marks = ["user.overlay.opaque", "user.fuseoverlayfs.opaque", ".wh..wh..opq", ".wh..opq"];
    for mark in marks {
        let layers = Layers::new();
        layers.file("top/d/hidden", "");
        layers.file("bottom/d/deep/hidden", "");
        layers.file("bottom/d/both", "old");
        layers.file("upper/d/both", "new");
        layers.file("upper/d/deep/own", "");
        match mark {
            ".wh..opq" => layers.whiteout(&format!("upper/d/{mark}")),
            ".wh..wh..opq" => drop(layers.file(&format!("upper/d/{mark}"), "")),
            _ => layers.mark("upper/d", mark, "y"),
        }
        assert_eq!(
            layers.changes(&["top", "bottom"]),
            ["C /d", "C /d/both", "C /d/deep", "D /d/deep/hidden", "A /d/deep/own", "D /d/hidden"],
            "{mark}"
        );
        assert_eq!(layers.changes(&[]), ["A /d", "A /d/both", "A /d/deep", "A /d/deep/own"]);
        let names = layers.layer(&[]).names;
        assert_eq!(names, ["d/", "d/.wh..wh..opq", "d/both", "d/deep/", "d/deep/own"]);
    }
}

#[test]
fn lowers_hide_each_other() {
    let layers = Layers::new();
    layers.file("top/a/.wh..wh..opq", "");
    layers.file("top/.wh.b", "");
    layers.file("bottom/a/x", "");
    layers.file("bottom/b", "");
    layers.file("bottom/c", "");
    layers.file("upper/a/x", "");
    layers.file("upper/b", "");
    layers.file("upper/c", "");
    assert_eq!(layers.changes(&["top", "bottom"]), ["C /a", "A /a/x", "A /b", "C /c"]);
}

#[test]
fn origins_tell_changes_without_lowers() {
    let layers = Layers::new();
    layers.file("upper/copied", "");
    layers.file("upper/own", "");
    layers.mark("upper/copied", "user.overlay.origin", "");
    assert_eq!(layers.changes(&[]), ["C /copied", "A /own"]);
}

fn moved() -> Layers {
    let layers = Layers::new();
    layers.file("lower/old/kept", "k");
    layers.file("lower/old/gone", "g");
    layers.file("lower/old/sub/deep", "d");
    layers.file("lower/new/former", "f");
    layers.whiteout("upper/old");
    layers.file("upper/new/sub/own", "o");
    layers.whiteout("upper/new/gone");
    layers.mark("upper/new", "user.overlay.redirect", "/old");
    layers
}

#[test]
fn a_moved_directory_brings_its_content() {
    let layers = moved();
    let lines = [
        "C /new",
        "D /new/former",
        "A /new/kept",
        "A /new/sub",
        "A /new/sub/deep",
        "A /new/sub/own",
        "D /old",
    ];
    assert_eq!(layers.changes(&["lower"]), lines);
    assert_eq!(layers.changes(&[]), ["A /new", "A /new/sub", "A /new/sub/own", "D /old"]);
    let layer = layers.layer(&["lower"]);
    let names = [
        ".wh.old",
        "new/",
        "new/.wh..wh..opq",
        "new/kept",
        "new/sub/",
        "new/sub/deep",
        "new/sub/own",
    ];
    assert_eq!(layer.names, names);
    assert_eq!(layer.entries["new/sub/deep"].data, "d");
}

#[test]
fn what_is_still_below_is_never_left_out() {
    let layers = moved();
    assert!(layers.refusal(&[]).contains("upper/new: a moved directory, whose content"));
    let layers = Layers::new();
    layers.file("lower/a/file", "data");
    layers.file("lower/b", "");
    fs::File::create(layers.file("upper/a/file", "")).unwrap().set_len(4).unwrap();
    layers.mark("upper/a/file", "user.overlay.metacopy", "");
    assert!(layers.refusal(&[]).contains("upper/a/file: a metadata-only file, whose data"));
    assert!(layers.refusal(&["lower/a"]).contains("in none of the lower directories"));
    assert_eq!(layers.layer(&["lower"]).entries["a/file"].data, "data");
    layers.file("lower/a/file", "other data");
    assert!(layers.refusal(&["lower"]).contains("10 bytes where 4 were expected"));
}

#[test]
fn planted_redirects_are_not_followed_with_privilege() {
    let layers = moved();
    let spec = Spec { user_marks: false, ..layers.spec(&["lower"]) };
    let written = diff::write(&spec, &mut Vec::new());
    let uids = fs::read_to_string("/proc/self/uid_map").unwrap();
    let initial = uids.split_whitespace().eq(["0", "0", "4294967295"]);
    let privileged = initial && fs::metadata("/proc/self").unwrap().uid() == 0;
    assert_eq!(written.is_err(), privileged);
}

#[test]
fn redirects_cannot_leave_the_layers() {
    let layers = Layers::new();
    layers.dir("lower");
    layers.dir("upper/d");
    layers.mark("upper/d", "user.overlay.redirect", "/../secret");
    assert!(layers.refusal(&["lower"]).contains("names no place in the layers"));
}

#[test]
fn a_layer_keeps_everything_about_a_file() {
    let layers = Layers::new();
    let file = layers.file("upper/file", "text");
    fs::hard_link(&file, layers.at("upper/link")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4711)).unwrap();
    layers.mark("upper/file", "user.mine", "v\0=");
    layers.mark("upper/file", "user.overlay.origin", "hidden");
    layers.mark("upper/file", "user.overlay.overlay.opaque", "y");
    let time = std::time::UNIX_EPOCH - std::time::Duration::from_millis(1500);
    fs::File::open(&file).unwrap().set_modified(time).unwrap();
    let long = format!("{}/{}", "d".repeat(90), "n".repeat(90));
    layers.file(&format!("upper/{long}"), "");
    symlink("../".repeat(60), layers.at("upper/sym")).unwrap();
    let layer = layers.layer(&[]);
    let entry = &layer.entries["file"];
    assert_eq!((entry.header.mode().unwrap(), entry.data.as_str()), (0o4711, "text"));
    let keys: Vec<&str> = entry.records.keys().map(String::as_str).collect();
    assert_eq!(keys, ["SCHILY.xattr.user.mine", "SCHILY.xattr.user.overlay.opaque", "mtime"]);
    assert_eq!(entry.records["SCHILY.xattr.user.mine"], b"v\0=");
    assert_eq!(entry.records["mtime"], b"-1.5");
    assert_eq!(layer.entries["link"].link.as_deref(), Some(&b"file"[..]));
    assert!(layer.names.contains(&long));
    assert_eq!(layer.entries["sym"].link.as_deref(), Some("../".repeat(60).as_bytes()));
}

#[test]
fn override_records_become_owner_mode_and_kind() {
    let layers = Layers::new();
    for (name, record) in [
        ("file", "1000:2000:4755:file"),
        ("short", "1:2:640"),
        ("sym", "3:4:0777:symlink"),
        ("null", "0:0:0666:char-1-3"),
        ("pipe", "0:0:0600:pipe"),
    ] {
        layers.file(&format!("upper/{name}"), "target");
        layers.mark(&format!("upper/{name}"), "user.containers.override_stat", record);
    }
    let layer = layers.layer(&[]);
    let header = |name: &str| &layer.entries[name].header;
    assert_eq!(header("file").uid().unwrap(), 1000);
    assert_eq!(header("file").gid().unwrap(), 2000);
    assert_eq!(header("file").mode().unwrap(), 0o4755);
    assert_eq!((header("short").mode().unwrap(), header("short").uid().unwrap()), (0o640, 1));
    assert!(header("sym").entry_type().is_symlink());
    assert_eq!(layer.entries["sym"].link.as_deref(), Some(&b"target"[..]));
    assert!(header("null").entry_type().is_character_special());
    assert_eq!(header("null").device_minor().unwrap(), Some(3));
    assert!(header("pipe").entry_type().is_fifo());
    assert!(layer.entries.values().all(|entry| entry.records.keys().all(|key| key == "mtime")));
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let layers = Layers::new();
    for name in ["b", "a", "a-b", "a.d/x", "c/y"] {
        layers.file(&format!("upper/{name}"), name);
    }
    let listener = UnixListener::bind(layers.at("upper/socket")).unwrap();
    let mut first = Vec::new();
    let mut second = Vec::new();
    diff::write(&layers.spec(&[]), &mut first).unwrap();
    diff::write(&layers.spec(&[]), &mut second).unwrap();
    drop(listener);
    assert!(first == second);
    assert_eq!(Layer::read(&first).names, ["a", "a-b", "a.d/", "a.d/x", "b", "c/", "c/y"]);
}

#[test]
fn a_directory_of_many_names_is_written_in_order() {
    let layers = Layers::new();
    let (mut marks, mut names) = (Vec::new(), Vec::new());
    layers.dir("lower");
    for number in 0..3000 {
        let name = format!("{number:04}");
        if number % 500 == 7 {
            layers.whiteout(&format!("upper/{name}"));
            marks.push(format!(".wh.{name}"));
        } else if number % 500 == 8 {
            layers.file(&format!("upper/{name}/in"), "");
            names.extend([format!("{name}/"), format!("{name}/in")]);
        } else {
            layers.file(&format!("upper/{name}"), "");
            names.push(name);
        }
    }
    assert_eq!(layers.layer(&["lower"]).names, [marks, names].concat());
}

#[test]
fn what_comes_behind_a_deep_directory_is_written_too() {
    let layers = Layers::new();
    let (mut path, mut before, mut behind) = (String::new(), Vec::new(), Vec::new());
    for _ in 0..30 {
        for name in ["a", "z"] {
            layers.file(&format!("upper/{path}{name}"), "");
        }
        before.push(format!("{path}a"));
        behind.push(format!("{path}z"));
        path.push_str("d/");
        before.push(path.clone());
    }
    layers.dir(&format!("upper/{path}"));
    behind.reverse();
    assert_eq!(layers.layer(&[]).names, [before, behind].concat());
}

#[test]
fn symlinks_are_never_followed() {
    let layers = Layers::new();
    layers.file("secret/file", "s");
    layers.dir("upper");
    layers.dir("lower");
    symlink(layers.at("secret"), layers.at("upper/out")).unwrap();
    symlink(layers.at("secret"), layers.at("lower/out")).unwrap();
    layers.dir("upper/moved");
    layers.mark("upper/moved", "user.overlay.redirect", "/out/file");
    assert_eq!(layers.changes(&["lower"]), ["A /moved", "C /out"]);
    fs::remove_dir(layers.at("upper/moved")).unwrap();
    assert_eq!(layers.layer(&["lower"]).names, ["out"]);
}

#[test]
fn a_failed_diff_leaves_no_file() {
    let layers = moved();
    let target = layers.dir("out").join("layer.tar");
    diff::save(&layers.spec(&[]), &target).unwrap_err();
    assert_eq!(fs::read_dir(layers.at("out")).unwrap().count(), 0);
    diff::save(&layers.spec(&["lower"]), &target).unwrap();
    assert_eq!(fs::read_dir(layers.at("out")).unwrap().count(), 1);
    let inside = diff::save(&layers.spec(&["lower"]), &layers.at("upper/layer.tar")).unwrap_err();
    assert!(inside.to_string().ends_with("lies in the upper directory"));
}

#[test]
fn names_that_are_no_text_are_kept() {
    let layers = Layers::new();
    layers.dir("upper");
    let name = std::ffi::OsStr::from_bytes(b"\xff\n");
    fs::write(layers.at("upper").join(name), "").unwrap();
    let list = changes::list(&layers.at("upper"), &[]).unwrap();
    assert_eq!(list[0].path, Path::new("/").join(name));
    assert_eq!(list[0].to_string(), "A /\\377\\n");
}
