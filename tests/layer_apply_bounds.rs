//! Archives that want more memory or time than their size gives them a right to.

#![allow(clippy::unwrap_used)]

use plyfs::layer::apply::Limits;

use crate::layer_apply_kit::{Place, Tar};

fn tar() -> Tar {
    Tar::default()
}

/// An old GNU header of a file with holes.
fn sparse(block: &mut [u8; 512]) {
    block[257..265].copy_from_slice(b"ustar  \0");
    block[482] = 1;
    block[483..494].copy_from_slice(b"00000000000");
}

/// An extension block with these many empty pieces.
fn extension(pieces: usize, more: bool) -> [u8; 512] {
    let mut block = [0; 512];
    for piece in block[..24 * pieces].chunks_exact_mut(12) {
        piece.copy_from_slice(b"00000000000\0");
    }
    block[504] = u8::from(more);
    block
}

fn pax_map(map: &str) -> Tar {
    let records: [(&str, &[u8]); 3] =
        [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.size", b"9")];
    let mut map = map.to_owned();
    map.extend(std::iter::repeat_n('\0', map.len().next_multiple_of(512) - map.len()));
    tar().pax(&records).file("a", &map)
}

#[test]
fn maps_of_holes_are_bounded() {
    let old = |blocks: &[[u8; 512]]| tar().edited(b'S', "a", b"", sparse).raw(&blocks.concat());
    for (name, archive, why) in [
        (
            "extension without a piece",
            old(&[extension(0, true), extension(1, false)]),
            "'a': has a map of its data that is wrong",
        ),
        (
            "a piece in each extension",
            old(&vec![extension(1, true); 47_000]),
            "'a': has a map of its data of more than 24000000 bytes",
        ),
        (
            "too many pieces",
            old(&vec![extension(21, true); 23_810]),
            "'a': has more than 500000 pieces of data",
        ),
        ("zeros", pax_map(&"0".repeat(600)), "'a': has a map of its data that is wrong"),
        (
            "zeros in front",
            pax_map(&format!("1\n{}1\n0\n", "0".repeat(20))),
            "'a': has a map of its data that is wrong",
        ),
    ] {
        let refusal = Place::new().refusal(&archive.end());
        assert!(refusal.contains(why), "{name}: {refusal:?} instead of {why:?}");
    }
    for (name, archive) in [
        ("old", old(&[extension(21, true), extension(1, false)])),
        ("PAX", pax_map(&format!("1\n{}9\n0\n", "0".repeat(19)))),
    ] {
        let place = Place::new();
        place.applied(archive);
        assert_eq!(place.tree().len(), 1, "{name}");
    }
}

#[test]
fn paths_are_bounded() {
    let name = "n".repeat(250);
    let long = |names: usize| vec![name.as_str(); names].join("/");
    for (archive, why) in [
        (
            tar().pax(&[("path", long(17).as_bytes())]).dir("d"),
            "has a path of more than 4095 bytes, the limit 'path'",
        ),
        (
            tar()
                .pax(&[("linkpath", long(15).as_bytes())])
                .symlink("l", "")
                .file(&format!("l/{}/f", "m".repeat(90)), "")
                .pax(&[("path", format!("l/{}/f", long(2)).as_bytes())])
                .file("f", ""),
            "leads to more than 4095 bytes, the limit 'path'",
        ),
    ] {
        let refusal = Place::new().refusal(&archive.end());
        assert!(refusal.contains(why), "{refusal:?} instead of {why:?}");
    }
    let place = Place { limits: Limits { path: 5, ..Limits::default() }, ..Place::new() };
    place.applied(tar().file("a/b/c", ""));
    let refusal = place.refusal(&tar().file("a/b/cd", "").end());
    assert!(refusal.contains("has a path of more than 5 bytes, the limit 'path'"), "{refusal}");
}
