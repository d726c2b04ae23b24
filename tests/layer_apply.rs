//! Where the entries of an archive land, whatever their names and links are.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::as_both;
use crate::layer_apply_kit::{Place, Tar};

fn tar() -> Tar {
    Tar::default()
}

as_both! { writing_through_links_stays_inside, || {
    for (name, tar, landed) in [
        ("absolute", tar().symlink("l", "/etc").file("l/passwd", "in"), "etc/passwd"),
        ("up and out", tar().symlink("l", "../../../../etc").file("l/passwd", "in"), "etc/passwd"),
        ("two absolute", tar().symlink("a", "/etc").symlink("b", "/a").file("b/passwd", "in"), "etc/passwd"),
        ("two relative", tar().symlink("a", "../etc").dir("d").symlink("d/b", "../a").file("d/b/passwd", "in"), "etc/passwd"),
        ("last name a link", tar().symlink("l", "/etc/passwd").file("l", "in"), "l"),
        ("dots in the name", tar().file("../../etc/passwd", "in"), "etc/passwd"),
        ("absolute name", tar().file("/etc/passwd", "in"), "etc/passwd"),
        ("dots after a link", tar().symlink("l", "/").file("l/../etc/passwd", "in"), "etc/passwd"),
        ("a sibling of the root", tar().file("../root2/passwd", "in"), "root2/passwd"),
        ("through a missing directory", tar().symlink("l", "no/where").file("l/passwd", "in"), "no/where/passwd"),
        ("up before an absolute one", tar().symlink("a", "../b").symlink("b", "/etc").file("a/passwd", "in"), "etc/passwd"),
        ("through a hard link to a link", tar().symlink("l", "/etc").link("m", "l").file("m/passwd", "in"), "etc/passwd"),
        ("a dead link as the last name", tar().symlink("passwd", "../etc/passwd").file("passwd", "in"), "passwd"),
    ] {
        let place = Place::new();
        place.applied(tar);
        assert_eq!(fs::read_to_string(place.at(landed)).unwrap(), "in", "{name}");
        assert!(!place.sandbox.at("root2").exists());
    }
} }

as_both! { an_empty_file_behind_a_link_empties_nothing_outside, || {
    for to in ["/etc", "../etc", "../../../etc"] {
        let place = Place::new();
        place.applied(tar().symlink("l", to).file("l/passwd", ""));
        assert_eq!(place.at("etc/passwd").metadata().unwrap().len(), 0);
    }
} }

as_both! { times_and_owners_of_a_symlink_are_its_own, || {
    let place = Place::new();
    let meta = || place.sandbox.at("etc/passwd").metadata().unwrap();
    let before = (meta().mtime(), meta().uid(), meta().mode());
    let owner: [(&str, &[u8]); 2] = [("uid", b"7"), ("mtime", b"99.5")];
    place.applied(tar().pax(&owner).symlink("l", "../etc/passwd").pax(&owner).symlink("m", "/etc/passwd"));
    assert_eq!((meta().mtime(), meta().uid(), meta().mode()), before);
    for path in ["l", "m"] {
        let link = fs::symlink_metadata(place.at(path)).unwrap();
        assert_eq!((link.mtime(), link.mtime_nsec(), link.uid()), (99, 500_000_000, 7), "{path}");
    }
} }

as_both! { labels_of_an_image_are_left_out_and_its_own_attributes_kept, || {
    let place = Place::new();
    let records: [(&str, &[u8]); 2] =
        [("SCHILY.xattr.security.selinux", b"system_u:object_r:etc_t:s0"), ("SCHILY.xattr.user.own", b"v")];
    let empty: [(&str, &[u8]); 1] = [("SCHILY.xattr.security.capability", b"")];
    place.applied(tar().pax(&records).file("f", "").pax(&records).dir("d").pax(&empty).file("g", ""));
    assert!(place.xattr("g", "security.capability").is_none());
    for path in ["f", "d"] {
        assert_eq!(place.xattr(path, "user.own").as_deref(), Some("v"));
        assert_ne!(place.xattr(path, "security.selinux").as_deref(), Some("system_u:object_r:etc_t:s0"));
    }
} }

as_both! { links_that_go_in_circles_are_refused, || {
    let place = Place::new();
    let archive = tar().symlink("a", "b").symlink("b", "a").file("a/x", "").end();
    assert_eq!(place.refusal(&archive), "archive entry 'a/x': has too many symlinks in its path");
} }

as_both! { hard_links_are_to_files_inside, || {
    for to in [
        "etc/passwd",
        "/etc/passwd",
        "../etc/passwd",
        "../../../../../etc/passwd",
        "d/../etc/passwd",
        "d/l/passwd",
        "d/a/passwd",
    ] {
        let place = Place::new();
        let tar = tar().dir("etc").file("etc/passwd", "in").dir("d");
        let tar = tar.symlink("d/l", "../etc").symlink("d/a", "/etc");
        place.applied(tar.link("d/new", to));
        assert_eq!(place.ino("d/new"), place.ino("etc/passwd"), "{to}");
    }
} }

as_both! { a_hard_link_to_a_symlink_is_another_name_of_it, || {
    for target in ["../../etc/passwd", "/etc/passwd", "gone", "later"] {
        let place = Place::new();
        place.applied(tar().symlink("l", target).link("m", "l").link("n", "m").file("later", "x"));
        assert_eq!(place.ino("n"), place.ino("l"));
        let meta = fs::symlink_metadata(place.at("n")).unwrap();
        assert!(meta.file_type().is_symlink() && meta.nlink() == 3);
        // What such a link is to is not touched when something is written to its name.
        place.applied(tar().file("n", "own"));
        assert_eq!(fs::read_to_string(place.at("n")).unwrap(), "own");
    }
    let mode = |place: &Place| place.sandbox.at("etc/passwd").metadata().unwrap().permissions().mode();
    let place = Place::new();
    let before = mode(&place);
    let link = tar().symlink("l", "../etc/passwd").link("m", "l");
    place.applied(link.edited(b'1', "o", b"", |block| {
        block[100..107].copy_from_slice(b"0004777");
        block[157..158].copy_from_slice(b"l");
    }));
    assert_eq!(mode(&place), before);
} }

as_both! { a_link_to_nothing_names_both, || {
    let place = Place::new();
    let refusal = place.refusal(&tar().link("a\nb", "gone/x").end());
    assert_eq!(refusal, "archive entry 'a\\nb': is a link to 'gone/x', which is missing");
    // Also when the target comes later.
    place.refusal(&tar().link("a", "b").file("b", "").end());
    place.refusal(&tar().link("a", "/").end());
    // Also when there is such a file outside.
    place.refusal(&tar().link("a", "../etc/passwd").end());
    place.refusal(&tar().symlink("l", "/etc").link("a", "l/passwd").end());
} }

as_both! { odd_names_are_cleaned, || {
    for (name, tar, tree) in [
        ("parent directory", tar().dir("d").symlink("..", "/etc"), vec!["d d"]),
        ("empty", tar().symlink("", "/etc"), vec![]),
        ("dot", tar().file("./.", "lost"), vec![]),
        ("relative", tar().dir("d").symlink("d/../../e", "x"), vec!["d d", "l e -> x"]),
        ("ends with a slash", tar().symlink("d/l//", "x"), vec!["d d", "l d/l -> x"]),
        ("dots and slashes", tar().file(".//d/./f", "1"), vec!["d d", "- d/f=1"]),
    ] {
        let place = Place::new();
        place.applied(tar);
        assert_eq!(place.tree(), tree, "{name}");
    }
} }

as_both! { later_entries_replace_earlier_ones, || {
    for (name, tar, tree) in [
        ("file by file", tar().file("a", "1").file("a", "2"), vec!["- a=2"]),
        ("thrice", tar().file("a", "1").file("./a", "22").file("/a", "333"), vec!["- a=333"]),
        ("directory by symlink", tar().dir("d").file("d/f", "x").symlink("d", "e"), vec!["l d -> e"]),
        ("symlink by directory", tar().symlink("d", "/etc").dir("d").file("d/f", "x"), vec!["d d", "- d/f=x"]),
        ("directory by absolute symlink", tar().dir("d").file("d/f", "x").symlink("d", "/e"), vec!["l d -> /e"]),
        ("symlink and hard link behind it by directory",
         tar().dir("e").file("e/f", "1").symlink("d", "e").link("d/g", "e/f").dir("d").link("d/f", "e/g").file("d/f", "2"),
         vec!["d d", "- d/f=2", "d e", "- e/f=1", "- e/g=1"]),
        ("directory keeps children", tar().dir("d").file("d/f", "x").dir("d"), vec!["d d", "- d/f=x"]),
        ("hard link is broken", tar().file("a", "1").link("b", "a").file("b", "2"), vec!["- a=1", "- b=2"]),
        ("path", tar().dir("p").file("p/f", "1").symlink("p", "/").file("p/f", "2").dir("p").file("p/f", "3"),
         vec!["- f=2", "d p", "- p/f=3"]),
        ("file by its own link", tar().file("a", "1").link("a", "./a"), vec!["- a=1"]),
        ("deep", tar().file("d/e/f", "1").file("d/e/g", "2").file("d", "3"), vec!["- d=3"]),
    ] {
        let place = Place::new();
        place.applied(tar);
        assert_eq!(place.tree(), tree, "{name}");
    }
} }

as_both! { a_file_is_no_directory, || {
    let place = Place::new();
    let refusal = place.refusal(&tar().file("a", "1").file("a/b", "2").end());
    assert_eq!(refusal, "archive entry 'a/b': lies below 'a', which is no directory");
} }

as_both! { links_of_lower_layers_are_followed, || {
    let lower = tar().dir_mode("usr", "0000750").dir_mode("usr/bin", "0000711").symlink("bin", "usr/bin");
    let lower = lower.symlink("abs", "/usr").symlink("dead", "/none");
    let place = Place::over(lower);
    place.applied(tar().file("bin/sh", "1").file("abs/x", "2").file("dead/y", "3"));
    assert_eq!(place.tree(), [
        "d none", "- none/y=3", "d usr", "d usr/bin", "- usr/bin/sh=1", "- usr/x=2",
    ]);
    let mode = |path| place.at(path).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("usr"), mode("usr/bin"), mode("none")), (0o750, 0o711, 0o755));
} }

as_both! { a_link_to_a_file_below_copies_it, || {
    let place = Place::over(tar().dir_mode("d", "0000700").file("d/f", "data").symlink("s", "x"));
    place.applied(tar().link("new", "d/f").link("sym", "s"));
    assert_eq!(place.tree(), ["d d", "- d/f=data", "- new=data", "l s -> x", "l sym -> x"]);
    assert_eq!(place.ino("new"), place.ino("d/f"));
} }

as_both! { directories_get_their_times_last, || {
    let place = Place::new();
    let tar = tar().dir("d").dir("d/e").file("x", "").file("d/e/f", "1").file("d/e/f", "2");
    place.applied(tar.file("d/g", "").link("d/h", "x").whiteout("d/.wh.gone").dir("z").whiteout(".wh.z"));
    for path in ["d", "d/e", "d/e/f", "z"] {
        assert_eq!(place.at(path).metadata().unwrap().mtime(), 0o7_346_545_000, "{path}");
    }
} }

as_both! { everything_about_an_object_is_kept, || {
    let place = Place::new();
    let records: [(&str, &[u8]); 6] = [
        ("mtime", b"-1.25"),
        ("atime", b"5.5"),
        ("uid", b"1000"),
        ("gid", b"2000"),
        ("SCHILY.xattr.user.a%3Db", b"v\0="),
        ("LIBARCHIVE.xattr.user.c", b"YQ"),
    ];
    let long = format!("{}/{}", "d".repeat(120), "n".repeat(120));
    let suid = |block: &mut [u8; 512]| block[100..107].copy_from_slice(b"0004711");
    let tar = tar().pax(&records).edited(b'0', "f", b"", suid);
    let tar = tar.pax(&[("path", long.as_bytes())]).file("short", "long").node(b'6', "fifo", 0, 0);
    place.applied(tar.edited(b'L', "././@LongLink", &[b"g".repeat(200), vec![0]].concat(), |_| {}).file("g", "gnu"));
    let meta = place.at("f").metadata().unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec(), meta.atime()), (-2, 750_000_000, 5));
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1000, 2000, 0o4711));
    assert_eq!(place.xattr("f", "user.a=b").as_deref(), Some("v\0="));
    assert_eq!(place.xattr("f", "user.c").as_deref(), Some("a"));
    assert_eq!(fs::read_to_string(place.at(&long)).unwrap(), "long");
    assert_eq!(fs::read_to_string(place.at(&"g".repeat(200))).unwrap(), "gnu");
} }

as_both! { default_acls_do_not_reach_what_the_archive_brings, || {
    // user::rwx user:7:rwx group::r-x mask::rwx other::---
    let mut acl = vec![2, 0, 0, 0];
    for (tag, bits, id) in [(1_u16, 7_u16, u32::MAX), (2, 7, 7), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)] {
        acl.extend([tag.to_le_bytes(), bits.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    let place = Place::new();
    let record: [(&str, &[u8]); 1] = [("SCHILY.xattr.system.posix_acl_default", &acl)];
    place.applied(tar().pax(&record).dir("d").file("d/f", "").dir("d/e").file("d/e/g", ""));
    assert!(place.xattr("d", "system.posix_acl_default").is_some());
    for path in ["d/f", "d/e", "d/e/g"] {
        assert!(place.xattr(path, "system.posix_acl_access").is_none(), "{path}");
        assert!(place.xattr(path, "system.posix_acl_default").is_none(), "{path}");
    }
    assert_eq!(place.at("d/f").metadata().unwrap().permissions().mode() & 0o777, 0o644);
} }

as_both! { groups_follow_what_an_entry_of_the_root_says, || {
    for place in [Place::new(), Place::removing()] {
        let root = |tar: Tar, mode: &str, gid: &[u8]| tar.pax(&[("gid", gid)]).dir_mode("./", mode);
        let tar = root(tar().file("f1", ""), "0002755", b"1000").file("f2", "").dir("d").file("d/f3", "");
        place.applied(root(tar, "0000755", b"7").file("f4", "").symlink("l", "f4"));
        for path in ["f1", "f2", "d", "d/f3", "f4", "l"] {
            let meta = fs::symlink_metadata(place.at(path)).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (0, 0), "{path}");
        }
    }
} }

#[test]
fn devices_are_noted_where_only_owners_can_be_set() {
    crate::needs!(UserNs);
    if crate::common::rootless::run(crate::this_test!()) {
        return;
    }
    let place = Place::new();
    assert_eq!(place.target.owners, plyfs::layer::apply::Owners::Set);
    place.applied(tar().node(b'4', "disk", 8, 1));
    assert_eq!(place.at("disk").metadata().unwrap().len(), 0);
    let mut archive = Vec::new();
    let upper = place.root().to_path_buf();
    let spec = plyfs::layer::diff::Spec { upper, lowers: Vec::new(), user_marks: true };
    plyfs::layer::diff::write(&spec, &mut archive).unwrap();
    let mut read = ::tar::Archive::new(archive.as_slice());
    let header = read.entries().unwrap().next().unwrap().unwrap().header().clone();
    assert!(header.entry_type().is_block_special());
    assert_eq!(
        (header.device_major().unwrap(), header.device_minor().unwrap()),
        (Some(8), Some(1))
    );
}

#[test]
fn devices_are_made_by_root() {
    crate::needs!(Root);
    let place = Place::new();
    place.applied(
        tar().node(b'3', "null", 1, 3).node(b'4', "loop", 7, 0).node(b'3', "big", 4095, 1_048_575),
    );
    assert_eq!(place.at("null").metadata().unwrap().rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(place.at("big").metadata().unwrap().rdev(), rustix::fs::makedev(4095, 1_048_575));
    let refusal = place.refusal(&tar().node(b'3', "x", 4096, 0).end());
    assert_eq!(refusal, "archive entry 'x': has a device number 4096:0, out of range");
}
