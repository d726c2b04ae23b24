//! Whiteouts, opaque marks, and attributes that would forge them.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;

use plyfs::layer::apply::Owners;

use crate::as_both;
use crate::layer_apply_kit::{Place, Tar};

fn tar() -> Tar {
    Tar::default()
}

as_both! { malformed_whiteouts_are_refused, || {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh...", "./.wh..."] {
        for place in [Place::new(), Place::removing()] {
            let refusal = place.refusal(&tar().file("d/keep", "1").whiteout(name).end());
            assert_eq!(refusal, format!("archive entry '{name}': deletes no name"));
            assert_eq!(place.tree(), ["d d", "- d/keep=1"]);
        }
    }
} }

as_both! { whiteouts_hide_what_is_below_and_nothing_beside_in_any_order, || {
    for (name, entries) in [
        ("first", vec![("", ".wh.f"), ("", ".wh.d"), ("f", "f"), ("d/new", "")]),
        ("last", vec![("f", "f"), ("d/new", ""), ("", ".wh.f"), ("", ".wh.d")]),
        ("between", vec![("f", "f"), ("", ".wh.d"), ("d/new", ""), ("", ".wh.f")]),
    ] {
        let archive = |tar: Tar| entries.iter().fold(tar, |tar, (path, mark)| match *path {
            "" => tar.whiteout(mark),
            path => tar.file(path, "new"),
        });
        let lower = tar().file("f", "old").file("d/old", "").file("d/sub/deep", "");
        let place = Place::over(lower.clone());
        place.applied(archive(tar()));
        assert_eq!(place.tree(), ["d d", "- d/new=new", "- f=new"], "{name}");
        assert!(place.opaque("d"), "{name}");
        let place = Place::removing();
        place.applied(lower);
        place.applied(archive(tar()));
        assert_eq!(place.tree(), ["d d", "- d/new=new", "- f=new"], "{name}");
    }
} }

as_both! { opaque_marks_hide_what_is_below_and_nothing_beside_in_any_order, || {
    for first in [true, false] {
        let mark = |tar: Tar, now| if now { tar.whiteout("d/.wh..wh..opq") } else { tar };
        let archive = mark(tar().dir("d"), first).file("d/new", "1").dir("d/sub").file("d/sub/own", "2");
        let archive = mark(archive, !first);
        let lower = tar().dir("d").file("d/old", "").file("d/sub/deep/x", "");
        let place = Place::over(lower.clone());
        place.applied(archive.clone());
        assert_eq!(place.tree(), ["d d", "- d/new=1", "d d/sub", "- d/sub/own=2"]);
        assert!(place.opaque("d"));
        let place = Place::removing();
        place.applied(lower);
        place.applied(archive);
        assert_eq!(place.tree(), ["d d", "- d/new=1", "d d/sub", "- d/sub/own=2"]);
    }
} }

as_both! { an_opaque_root_hides_every_name, || {
    let place = Place::over(tar().file("a", "").file("d/x", "").file("b", ""));
    place.applied(tar().file("b", "new").whiteout(".wh..wh..opq").file("d/y", ""));
    assert_eq!(place.tree(), ["w a", "- b=new", "d d", "- d/y="]);
    assert!(place.opaque("d"));
} }

as_both! { whiteouts_of_links_and_behind_links_stay_inside, || {
    let place = Place::removing();
    place.applied(tar().dir("etc").file("etc/passwd", "in").symlink("l", "/etc").symlink("up", "../../etc").symlink("dead", "no/where"));
    place.applied(tar().whiteout(".wh.l").whiteout("up/.wh.passwd").whiteout("dead/.wh.x").whiteout("a/../.wh.none"));
    assert_eq!(place.tree(), ["l dead -> no/where", "d etc", "l up -> ../../etc"]);
    let place = Place::over(tar().dir("etc").file("etc/passwd", "").file("y", "").symlink("l", "../../etc").symlink("dead", "no"));
    place.applied(tar().whiteout("l/.wh.passwd").whiteout("dead/.wh.x").whiteout("./d/../.wh.y"));
    assert_eq!(place.tree(), ["d etc", "w etc/passwd", "w y"]);
} }

as_both! { deleting_from_a_missing_directory_makes_none, || {
    let place = Place::removing();
    place.applied(tar().whiteout("no/.wh.x").whiteout("none/.wh..wh..opq").file("f", ""));
    assert_eq!(place.tree(), ["- f="]);
} }

as_both! { what_replaces_a_deleted_name_hides_it_too, || {
    let place = Place::over(tar().file("a/x", "").file("b/x", "").file("c", ""));
    place.applied(tar().whiteout(".wh.a").dir("a").file("b", "1").dir("b").whiteout(".wh.c").symlink("c", "t"));
    assert_eq!(place.tree(), ["d a", "d b", "l c -> t"]);
    assert!(place.opaque("a") && place.opaque("b"));
} }

as_both! { leftovers_of_aufs_are_skipped, || {
    let place = Place::new();
    let tar = tar().dir(".wh..wh.plnk").file(".wh..wh.plnk/1.2", "linked").file(".wh..wh.aufs", "junk");
    let tar = tar.dir(".wh..wh.orph").file(".wh..wh.orph/x", "y").file("d/.wh..wh.foo", "");
    place.applied(tar.link("a", ".wh..wh.plnk/1.2").link("d/b", "/.wh..wh.plnk/1.2").dir(".wh.lit").file(".wh.lit/f", ""));
    assert_eq!(place.tree(), ["d .wh.lit", "- .wh.lit/f=", "- a=linked", "d d", "- d/b=linked"]);
    assert_eq!(place.ino("a"), place.ino("d/b"));
    assert_eq!(place.at("a").metadata().unwrap().nlink(), 2);
} }

as_both! { leftovers_of_aufs_outlast_an_opaque_root, || {
    for (name, place) in [("overlay", Place::new()), ("over", Place::over(tar().file("a", ""))), ("removing", Place::removing())] {
        place.applied(tar().file("old", ""));
        let tar = tar().file(".wh..wh.plnk/1.2", "linked").whiteout(".wh..wh..opq").whiteout(".wh.a");
        place.applied(tar.link("b", ".wh..wh.plnk/1.2"));
        assert_eq!(fs::read_to_string(place.at("b")).unwrap(), "linked", "{name}");
        assert!(place.tree().iter().all(|line| !line.contains("plyfs")), "{name}");
    }
} }

as_both! { data_of_a_whiteout_is_skipped_and_recorded, || {
    let place = Place::new();
    place.applied(tar().file(".wh.a", "some data").file("b", "x").file("d/.wh..wh..opq", "more"));
    assert_eq!(place.tree(), ["w a", "- b=x", "d d"]);
} }

as_both! { an_image_forges_no_marks, || {
    let place = Place::new();
    let space = if crate::common::rootless::inside() { "user" } else { "trusted" };
    let keys = ["opaque", "redirect", "metacopy", "overlay.opaque"].map(|key| format!("{space}.overlay.{key}"));
    let records: Vec<(String, &[u8])> = keys.iter().map(|key| (format!("SCHILY.xattr.{key}"), &b"y"[..])).collect();
    let mut records: Vec<(&str, &[u8])> = records.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    records.push(("SCHILY.xattr.user.containers.override_stat", b"0:0:0755:char-1-3"));
    records.push(("SCHILY.xattr.user.fuseoverlayfs.opaque", b"y"));
    place.applied(tar().pax(&records).dir("d"));
    assert!(!place.opaque("d"));
    for key in &keys {
        assert_eq!(place.xattr("d", &key.replacen(".overlay.", ".overlay.overlay.", 1)).as_deref(), Some("y"));
    }
    assert!(place.xattr("d", "user.containers.override_stat").is_none());
    assert!(place.xattr("d", "user.fuseoverlayfs.opaque").is_none());
} }

as_both! { whiteouts_of_an_overlay_inside_are_escaped, || {
    let place = Place::new();
    place.applied(tar().dir("d").node(b'3', "d/gone", 0, 0).file("d/x", ""));
    assert_eq!(place.tree(), ["d d", "- d/gone=", "- d/x="]);
    let space = if crate::common::rootless::inside() { "user" } else { "trusted" };
    assert_eq!(place.xattr("d/gone", &format!("{space}.overlay.overlay.whiteout")).as_deref(), Some("y"));
    assert_eq!(place.xattr("d", &format!("{space}.overlay.overlay.opaque")).as_deref(), Some("x"));
} }

as_both! { files_of_the_parent_are_replaced_and_never_changed, || {
    let place = Place::removing();
    fs::write(place.sandbox.at("shared"), "old").unwrap();
    fs::hard_link(place.sandbox.at("shared"), place.at("f")).unwrap();
    let before = place.sandbox.at("shared").metadata().unwrap();
    place.applied(tar().file("f", "new").file("g", "").whiteout(".wh.f"));
    assert_eq!(place.tree(), ["- f=new", "- g="]);
    let after = place.sandbox.at("shared").metadata().unwrap();
    assert_eq!((after.mode(), after.size(), after.mtime()), (before.mode(), 3, before.mtime()));
} }

as_both! { owners_and_kinds_can_be_recorded, || {
    let mut place = Place::new();
    place.target.owners = Owners::Record;
    let owner: [(&str, &[u8]); 2] = [("uid", b"1000"), ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0")];
    let closed = |block: &mut [u8; 512]| block[100..107].copy_from_slice(b"0004000");
    let tar = tar().pax(&owner).edited(b'0', "f", b"x", closed).dir_mode("d", "0000000").file("d/g", "");
    place.applied(tar.node(b'3', "null", 1, 3).node(b'6', "pipe", 0, 0).symlink("l", "f"));
    let record = |path| place.xattr(path, "user.containers.override_stat");
    assert_eq!(record("f").as_deref(), Some("1000:0:4000:file"));
    assert_eq!(record("d").as_deref(), Some("0:0:0000:dir"));
    assert_eq!(record("null").as_deref(), Some("0:0:0644:char-1-3"));
    assert_eq!(record("pipe").as_deref(), Some("0:0:0644:pipe"));
    assert!(place.xattr("f", "user.containers.override_security.capability").is_some());
    let meta = place.at("f").metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o600, 0));
} }
