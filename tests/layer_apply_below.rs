//! What an archive says of lower layers: what is brought up for it, and what goes again.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use plyfs::layer::apply::{self, Limits, Owners};

use crate::as_both;
use crate::common::rootless;
use crate::layer_apply_kit::{Place, Tar};

fn tar() -> Tar {
    Tar::default()
}

as_both! { links_to_recorded_kinds_are_of_that_kind, || {
    let owners = if rootless::inside() { vec![Owners::Record, Owners::Set] } else { vec![Owners::Record] };
    for owners in owners {
        let mut place = Place::new();
        let lower = place.sandbox.lower(1);
        let target = apply::Target { root: lower.clone(), owners: Owners::Record, ..place.target.clone() };
        let archive = tar().node(b'3', "null", 1, 3).node(b'4', "disk", 259, 70_000).node(b'6', "fifo", 0, 0).file("file", "data");
        apply::apply(&mut archive.end().as_slice(), &target, &place.limits, None).unwrap();
        (place.target.lowers, place.target.owners) = (vec![lower], owners);
        place.applied(["null", "disk", "fifo", "file"].into_iter().fold(tar(), |tar, name| tar.link(&format!("{name}2"), name)));
        for (name, kind) in [("null", "char-1-3"), ("disk", "block-259-70000"), ("fifo", "pipe")] {
            let second = format!("{name}2");
            assert_eq!(place.ino(name), place.ino(&second));
            if name == "fifo" && owners == Owners::Set {
                use std::os::unix::fs::FileTypeExt;
                assert!(fs::symlink_metadata(place.at(name)).unwrap().file_type().is_fifo());
                continue;
            }
            let record = place.xattr(&second, "user.containers.override_stat");
            assert_eq!(record, Some(format!("0:0:0644:{kind}")), "{name} {owners:?}");
        }
        assert_eq!(fs::read_to_string(place.at("file2")).unwrap(), "data");
    }
} }

as_both! { links_to_files_with_holes_keep_them_and_count, || {
    const SIZE: u64 = 1 << 26;
    let mut place = Place::over(tar().file("f", ""));
    let file = fs::File::options().write(true).open(place.target.lowers[0].join("f")).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(b"end", SIZE / 2).unwrap();
    let applied = place.apply(&tar().link("g", "f").file("own", "12").end()).unwrap();
    assert_eq!(applied.size, SIZE + 2);
    let meta = place.at("g").metadata().unwrap();
    assert!(meta.len() == SIZE && meta.blocks() < 2048, "{} blocks", meta.blocks());
    let mut found = [0; 5];
    fs::File::open(place.at("g")).unwrap().read_exact_at(&mut found, SIZE / 2 - 1).unwrap();
    assert_eq!(&found, b"\0end\0");
    place = Place { limits: Limits { bytes: SIZE - 1, ..Limits::default() }, ..place };
    fs::remove_file(place.at("f")).unwrap();
    let refusal = place.refusal(&tar().link("h", "f").end());
    assert!(refusal.ends_with("has more than 67108863 bytes, the limit 'bytes'"), "{refusal}");
} }
