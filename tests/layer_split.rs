//! The record that gives an archive back.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::process::Command;

use plyfs::layer::apply::{self, Limits, Owners, Target, Whiteouts};
use plyfs::layer::{diff, split};

use crate::common::layer::{Dialect, Generator};
use crate::common::model::Who;
use crate::common::rng::Rng;
use crate::common::rootless;
use crate::common::sandbox::Sandbox;
use crate::common::tree::Tree;
use crate::layer_apply_kit::{Files, Place, Tar};
use crate::{as_both, needs};

fn tar() -> Tar {
    Tar::default()
}

as_both! { every_archive_comes_back_byte_for_byte, || {
    let octal = |block: &mut [u8; 512]| block[157..162].copy_from_slice(b"/none");
    for (name, tar) in [
        ("plain", tar().dir("d/").file("d/f", "data").symlink("l", "f").link("d/g", "d/f")),
        ("dots", tar().dir("./").file("./f", "data").file("/g", "more").file("a/../h", "other")),
        ("duplicates", tar().file("f", "one").file("f", "two").file("./f", "three").file("g", "x")),
        ("duplicate directories", tar().dir("d").dir("d").dir("d/")),
        ("a file replaced by a directory", tar().file("f", "one").dir("f").file("f/x", "two").symlink("f", "y")),
        ("a tree replaced by a file", tar().file("d/e/a", "one").file("d/b", "two").link("c", "d/b").file("d", "three")),
        ("links whose first name goes", tar().file("a", "one").link("b", "a").file("a", "two").file("b", "three")),
        ("through a symlink", tar().dir("d").symlink("l", "d").file("l/f", "one").file("d/f", "two")),
        ("through one that is replaced", tar().dir("d").symlink("l", "d").file("l/f", "one").dir("l").file("l/f", "two")),
        ("whiteouts with data", tar().file(".wh.x", "hidden").file("d/.wh..wh..opq", "hidden too")),
        ("odd fields", tar().edited(b'0', "f", b"x", octal).edited(b'5', "d", b"", octal)),
        ("a file without a name", tar().file("", "lost").file("..", "lost too")),
        ("zeros at the end", tar().file("f", "x").raw(&[0; 20480])),
        ("aufs", tar().file(".wh..wh.plnk/1", "kept").link("a", ".wh..wh.plnk/1").file(".wh..wh.aufs", "x")),
        ("sparse 0.1", tar().pax(&[("GNU.sparse.map", b"5,512,600,1"), ("GNU.sparse.size", b"700"), ("GNU.sparse.name", b"s")]).file("GNUSparseFile.1/s", &"x".repeat(513))),
        ("sparse, replaced", tar().pax(&[("GNU.sparse.map", b"5,512,600,1"), ("GNU.sparse.size", b"700")]).file("s", &"x".repeat(513)).file("s", "new")),
        ("padding that is not zero", tar().edited(b'0', "f", b"x", |_| {}).file("g", "")),
        ("large", tar().file("f", &"0123456789".repeat(300_000)).file("f", &"ab".repeat(1_000_000))),
    ] {
        let place = Place::new();
        let mut archive = tar.end();
        if name.starts_with("padding") {
            archive[512 + 100] = b'!';
        }
        place.apply(&archive).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
} }

#[test]
fn names_that_are_no_text_come_back() {
    let place = Place::new();
    let name = b"\xff\xfe\n";
    let block = crate::layer_apply_kit::header(b'0', name, 3, |_| {});
    let archive = tar().raw(&block).raw(b"abc").raw(&[0; 509]).end();
    place.apply(&archive).unwrap();
}

fn recorded(place: &Place, archive: &[u8]) -> Vec<u8> {
    let mut record = Vec::new();
    let (mut input, limits) = (archive, Limits::default());
    apply::apply(&mut input, &place.target, &limits, Some(&mut record)).unwrap();
    record
}

#[test]
fn changed_files_are_found() {
    let archive = tar()
        .file("same", "1")
        .file("d/changed", "22")
        .file("gone", "3")
        .file("short", "44")
        .file("long", "5")
        .end();
    let place = Place::new();
    let record = recorded(&place, &archive);
    let files = Files(place.root().to_path_buf());
    fs::write(place.at("d/changed"), "2x").unwrap();
    fs::remove_file(place.at("gone")).unwrap();
    fs::write(place.at("short"), "4").unwrap();
    fs::write(place.at("long"), "5 and more").unwrap();
    let found = split::check(&mut record.as_slice(), &files).unwrap();
    let found: Vec<(String, String)> = found
        .into_iter()
        .map(|difference| (String::from_utf8(difference.path).unwrap(), difference.why))
        .collect();
    assert_eq!(found[0], ("d/changed".into(), "has other data than was recorded".into()));
    assert_eq!(found[1].0, "gone");
    assert_eq!(found[2], ("short".into(), "ends 1 bytes too early".into()));
    assert_eq!(found[3], ("long".into(), "is longer than 1 bytes".into()));
    assert_eq!(found.len(), 4);
    let error = split::assemble(&mut record.as_slice(), &files, &mut Vec::new()).unwrap_err();
    let text = "layer file 'd/changed': corrupt: has other data than was recorded";
    assert_eq!(error.to_string(), text);
}

#[test]
fn broken_records_are_refused() {
    let archive = tar().file("a", "1").end();
    let place = Place::new();
    let record = recorded(&place, &archive);
    let files = Files(place.root().to_path_buf());
    let mut text = String::new();
    flate2::read::GzDecoder::new(record.as_slice()).read_to_string(&mut text).unwrap();
    let pack = |text: &str| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, text.as_bytes()).unwrap();
        packed.finish().unwrap()
    };
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[1].starts_with(r#"{"type":1,"name":"a","size":1,"payload":""#), "{text}");
    assert!(lines[1].ends_with(r#","position":1}"#), "{text}");
    for broken in [
        record[..record.len() / 2].to_vec(),
        pack(&text[..text.len() - 5]),
        pack(lines[1]),
        pack(&text.replace("\"type\":2", "\"type\":9")),
        pack(&text.replace("\"size\":1", "\"size\":-1")),
        pack(&text.replace("\"payload\":\"", "\"payload\":\"!")),
        b"no gzip".to_vec(),
    ] {
        assert!(split::assemble(&mut broken.as_slice(), &files, &mut Vec::new()).is_err());
    }
}

/// A tree that shows what the formats differ in.
fn odd_tree(sandbox: &Sandbox) -> std::path::PathBuf {
    let dir = sandbox.dir("source");
    fs::create_dir_all(dir.join("d").join("n".repeat(90)).join("m".repeat(50))).unwrap();
    fs::write(dir.join("d").join("n".repeat(90)).join("m".repeat(50)).join("f".repeat(90)), "deep")
        .unwrap();
    fs::write(dir.join("plain"), "data").unwrap();
    fs::hard_link(dir.join("plain"), dir.join("linked")).unwrap();
    std::os::unix::fs::symlink("../".repeat(30), dir.join("sym")).unwrap();
    let sparse = fs::File::create(dir.join("sparse")).unwrap();
    for at in [0, 300_000, 5_000_000] {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"some data", at).unwrap();
    }
    sparse.set_len(9_000_000).unwrap();
    let many = fs::File::create(dir.join("many")).unwrap();
    for at in 0..60 {
        std::os::unix::fs::FileExt::write_all_at(&many, b"x", at * 65_536).unwrap();
    }
    dir
}

fn applies(sandbox: &Sandbox, source: &std::path::Path, archive: &[u8], name: &str) {
    let root = sandbox.dir(&format!("root-{name}"));
    let mut place = Place::new();
    place.target.root = root.clone();
    place.target.owners = Owners::Ignore;
    place.apply(archive).unwrap_or_else(|error| panic!("{name}: {error}"));
    let (source, root) = (Tree::read(source).unwrap(), Tree::read(&root).unwrap());
    for (path, node) in &source.nodes {
        let found = root.nodes.get(path).unwrap_or_else(|| panic!("{name}: no {path}"));
        assert_eq!(
            (node.digest, &node.target, node.meta.kind),
            (found.digest, &found.target, found.meta.kind),
            "{name}: {path}"
        );
    }
}

#[test]
fn archives_of_gnu_tar_are_read_and_come_back() {
    let sandbox = Sandbox::new();
    let source = odd_tree(&sandbox);
    for (name, options) in [
        ("gnu", vec!["--format=gnu"]),
        ("gnu-sparse", vec!["--format=gnu", "--sparse"]),
        ("pax", vec!["--format=pax"]),
        ("pax-1.0", vec!["--format=pax", "--sparse"]),
        ("pax-0.1", vec!["--format=pax", "--sparse", "--sparse-version=0.1"]),
        ("pax-0.0", vec!["--format=pax", "--sparse", "--sparse-version=0.0"]),
        ("ustar", vec!["--format=ustar"]),
        ("oldgnu", vec!["--format=oldgnu", "--sparse"]),
    ] {
        let made = Command::new("tar")
            .args(options)
            .arg("-C")
            .arg(&source)
            .args(["-cf", "-", "."])
            .output();
        let Ok(made) = made else {
            eprintln!("skipped: archives_of_gnu_tar_are_read_and_come_back: needs GNU tar");
            return;
        };
        assert!(made.status.success(), "{name}");
        applies(&sandbox, &source, &made.stdout, name);
    }
}

#[test]
fn archives_of_python_are_read_and_come_back() {
    let sandbox = Sandbox::new();
    let source = odd_tree(&sandbox);
    for format in ["USTAR_FORMAT", "GNU_FORMAT", "PAX_FORMAT"] {
        let script = format!(
            "import tarfile,sys\nt=tarfile.open(fileobj=sys.stdout.buffer,mode='w|',format=tarfile.{format})\nt.add(sys.argv[1],arcname='.')\nt.close()"
        );
        let made = Command::new("python3").args(["-c", &script]).arg(&source).output();
        let Ok(made) = made else {
            eprintln!("skipped: archives_of_python_are_read_and_come_back: needs python3");
            return;
        };
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        applies(&sandbox, &source, &made.stdout, format);
    }
}

/// `apply(diff(x)) == x`, the times of xattr whiteouts aside.
fn diff_and_apply(seed: u64) {
    let who = Who::me();
    let mut rng = Rng::new(seed);
    let layer = Generator { rng: &mut rng, names: &["a", "b", "c", "d"], who }.layer();
    let sandbox = Sandbox::scratch();
    let user = who.space() == "user";
    layer.write(&sandbox.upper(), Dialect::Device, who.space()).unwrap();
    let mut archive = Vec::new();
    let spec = diff::Spec { upper: sandbox.upper(), lowers: Vec::new(), user_marks: true };
    diff::write(&spec, &mut archive).unwrap();
    let root = sandbox.dir("root");
    let target = Target {
        belief: plyfs::layer::Belief::standing(),
        root: root.clone(),
        lowers: Vec::new(),
        whiteouts: Whiteouts::Overlay { user },
        owners: Owners::Set,
    };
    let mut record = Vec::new();
    apply::apply(&mut archive.as_slice(), &target, &Limits::default(), Some(&mut record)).unwrap();
    let (mut want, mut got) = (Tree::read(&sandbox.upper()).unwrap(), Tree::read(&root).unwrap());
    // The attributes of the root, and the times of whiteouts, are no part of a layer.
    for tree in [&mut want, &mut got] {
        tree.nodes.remove("");
        for node in
            tree.nodes.values_mut().filter(|node| node.meta.kind == 'c' && node.meta.rdev == (0, 0))
        {
            (node.meta.mtime, node.meta.mode) = (crate::common::tree::Stamp::NOW, 0);
            (node.meta.uid, node.meta.gid) = (0, 0);
        }
    }
    assert!(want == got, "seed {seed}\n{}", want.diff(&got, ("upper", "applied")));
    let mut again = Vec::new();
    split::assemble(&mut record.as_slice(), &Files(root), &mut again).unwrap();
    assert!(again == archive, "seed {seed}");
}

as_both! { a_diff_applied_gives_the_same_tree, || {
    for seed in 0..60 {
        diff_and_apply(seed);
    }
} }

#[test]
fn a_diff_applied_by_an_ordinary_user_keeps_owners_in_records() {
    needs!(UserNs);
    if rootless::run(crate::this_test!()) {
        return;
    }
    let mut place = Place::new();
    place.target.owners = Owners::Record;
    let owner: [(&str, &[u8]); 2] = [("uid", b"4000000000"), ("gid", b"7")];
    place.applied(tar().pax(&owner).file("f", "x").node(b'4', "disk", 8, 1));
    let mut archive = Vec::new();
    let upper = place.root().to_path_buf();
    diff::write(&diff::Spec { upper, lowers: Vec::new(), user_marks: true }, &mut archive).unwrap();
    let mut read = tar::Archive::new(archive.as_slice());
    let headers: Vec<tar::Header> =
        read.entries().unwrap().map(|entry| entry.unwrap().header().clone()).collect();
    assert!(headers[0].entry_type().is_block_special());
    assert_eq!(headers[1].gid().unwrap(), 7);
}
