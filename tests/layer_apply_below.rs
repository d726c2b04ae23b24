//! What an archive says of lower layers: what is brought up for it, and what goes again.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use plyfs::layer::apply::{self, Limits, Owners};

use crate::as_both;
use crate::common::rng::Rng;
use crate::common::rootless;
use crate::layer_apply_kit::{Place, Tar, lines};

fn tar() -> Tar {
    Tar::default()
}

fn path(line: &str) -> &str {
    let end = line.find('=').or_else(|| line.find(" -> ")).unwrap_or(line.len());
    &line[2..end]
}

/// The lines of what an overlay of the place shows. Whiteouts that the kernel would show are an error.
fn merged(place: &Place) -> Vec<String> {
    let (upper, lower) = (place.tree(), lines(&place.target.lowers[0]));
    let find =
        |list: &'_ [String], wanted: &str| list.iter().find(|line| path(line) == wanted).cloned();
    let ends = |path: &str| path.match_indices('/').map(|(at, _)| at).collect::<Vec<_>>();
    let hidden = |path: &str| {
        let above = ends(path).into_iter().map(|end| &path[..end]);
        let mut above = above.filter_map(|above| find(&upper, above));
        find(&upper, path).is_some_and(|line| !line.starts_with('d'))
            || above.any(|line| !line.starts_with('d') || place.opaque(&line[2..]))
    };
    for line in upper.iter().filter(|line| line.starts_with("w ")) {
        let in_opaque = ends(&line[2..]).iter().any(|&end| place.opaque(&line[2..2 + end]));
        assert!(
            !in_opaque && find(&lower, &line[2..]).is_some(),
            "{line} hides nothing: {upper:?}"
        );
    }
    let mut all: Vec<String> =
        upper.iter().filter(|line| !line.starts_with("w ")).cloned().collect();
    all.extend(
        lower.into_iter().filter(|line| !hidden(path(line)) && find(&upper, path(line)).is_none()),
    );
    all.sort_by(|a, b| path(a).split('/').cmp(path(b).split('/')));
    all
}

as_both! { deletions_mean_the_same_in_every_driver_whatever_was_brought_up_before, || {
    let all = ["- f=f", "d x", "- x/old=old", "d x/sub", "- x/sub/deep="];
    let without = |gone: &[&'static str]| -> Vec<&str> {
        all.into_iter().filter(|line| !gone.iter().any(|gone| path(line).starts_with(gone))).collect()
    };
    let with = |mut lines: Vec<&'static str>, new: &[&'static str]| {
        lines.extend(new);
        lines.sort_by(|a, b| path(a).split('/').cmp(path(b).split('/')));
        lines
    };
    let link = || tar().link("new", "x/old");
    for (name, archive, tree) in [
        ("link, its name", link().whiteout("x/.wh.old"), with(without(&["x/old"]), &["- new=old"])),
        ("link, its directory", link().whiteout(".wh.x"), with(without(&["x"]), &["- new=old"])),
        ("link, opaque", link().whiteout("x/.wh..wh..opq"), with(without(&["x/"]), &["- new=old"])),
        ("link, opaque root", link().whiteout(".wh..wh..opq"), vec!["- new=old"]),
        ("link, its name anew", link().file("x/old", "2").whiteout("x/.wh.old"), with(without(&["x/old"]), &["- new=old", "- x/old=2"])),
        ("directory, link, its name", tar().dir("x").link("new", "x/old").whiteout("x/.wh.old"), with(without(&["x/old"]), &["- new=old"])),
        ("directory, link, directory", tar().dir("x").link("new", "x/old").whiteout(".wh.x"), with(without(&["x/"]), &["- new=old"])),
        ("link, directory, directory", link().dir("x").whiteout(".wh.x"), with(without(&["x/"]), &["- new=old"])),
        ("link, file beside, directory", link().file("x/own", "").whiteout(".wh.x"), with(without(&["x/"]), &["- new=old", "- x/own="])),
        ("deep link, file beside, directory", tar().link("new", "x/sub/deep").file("x/sub/own", "").whiteout(".wh.x"),
         with(without(&["x/"]), &["- new=", "d x/sub", "- x/sub/own="])),
        ("deep link, file above, directory", tar().link("new", "x/sub/deep").file("x/own", "").whiteout(".wh.x"),
         with(without(&["x/"]), &["- new=", "- x/own="])),
        ("deep link, file above, opaque", tar().link("new", "x/sub/deep").file("x/own", "").whiteout("x/.wh..wh..opq"),
         with(without(&["x/"]), &["- new=", "- x/own="])),
        ("name, directory", tar().whiteout("x/.wh.old").whiteout(".wh.x"), without(&["x"])),
        ("directory, name", tar().whiteout(".wh.x").whiteout("x/.wh.old"), without(&["x"])),
        ("directory, opaque", tar().whiteout(".wh.x").whiteout("x/.wh..wh..opq"), without(&["x"])),
        ("opaque, directory", tar().whiteout("x/.wh..wh..opq").whiteout(".wh.x"), without(&["x"])),
        ("opaque twice", tar().whiteout("x/.wh..wh..opq").whiteout("x/.wh..wh..opq"), without(&["x/"])),
        ("name, opaque", tar().whiteout("x/.wh.old").whiteout("x/.wh..wh..opq"), without(&["x/"])),
        ("deep name, opaque", tar().dir("x").dir("x/sub").whiteout("x/sub/.wh.deep").whiteout("x/.wh..wh..opq"), with(without(&["x/"]), &["d x/sub"])),
        ("deep opaque, opaque", tar().file("x/sub/own", "").link("x/sub/new", "x/sub/deep").whiteout("x/sub/.wh..wh..opq").whiteout("x/.wh..wh..opq"),
         with(without(&["x/"]), &["d x/sub", "- x/sub/own=", "- x/sub/new="])),
        ("name twice", tar().whiteout("x/.wh.old").whiteout("x/.wh.old"), without(&["x/old"])),
        ("name, name anew, name", tar().whiteout("x/.wh.old").file("x/old", "2").whiteout("x/.wh.old"), with(without(&["x/old"]), &["- x/old=2"])),
        ("directory anew, its name", tar().whiteout(".wh.x").dir("x").whiteout("x/.wh.old"), without(&["x/"])),
        ("deep name, directory anew", tar().whiteout("x/sub/.wh.deep").dir("x").whiteout(".wh.x"), without(&["x/"])),
        ("nothing", tar().whiteout(".wh.none").whiteout("x/.wh.none"), without(&[])),
        ("nothing in a new directory", tar().dir("n").whiteout("n/.wh.z"), with(without(&[]), &["d n"])),
        ("in a missing directory", tar().whiteout("n/.wh.z").whiteout("m/.wh..wh..opq").whiteout("f/.wh.z"), without(&[])),
        ("file, opaque root", tar().file("x/sub/own", "").whiteout(".wh..wh..opq"), vec!["d x", "d x/sub", "- x/sub/own="]),
    ] {
        let lower = tar().file("x/old", "old").file("x/sub/deep", "").file("f", "f");
        let over = Place::over(lower.clone());
        over.applied(archive.clone());
        let mut tree = tree;
        tree.sort_by(|a, b| path(a).split('/').cmp(path(b).split('/')));
        assert_eq!(merged(&over), tree, "{name}, over");
        let removing = Place::removing();
        removing.applied(lower).applied(archive);
        assert_eq!(removing.tree(), tree, "{name}, removing");
    }
} }

/// What an archive says, and the entry of it.
fn random_entry(rng: &mut Rng, tar: Tar) -> (String, Tar) {
    let names = ["x", "y", "x/a", "x/b", "x/s", "x/s/a", "x/s/b", "y/a", "l", "l/a", "x/s/t/a"];
    let name = names[rng.below(names.len())];
    let marked = |mark: &str| match name.rsplit_once('/') {
        Some((above, name)) => format!("{above}/.wh.{mark}{name}"),
        None => format!(".wh.{mark}{name}"),
    };
    match rng.below(8) {
        0 => (format!("file {name}"), tar.file(name, name)),
        1 => (format!("dir {name}"), tar.dir(name)),
        2 | 3 => {
            let to = names[rng.below(names.len())];
            (format!("link {name} {to}"), tar.link(name, to))
        }
        4 => (format!("opaque {name}"), tar.whiteout(&format!("{name}/.wh..wh..opq"))),
        5 if rng.below(4) == 0 => ("opaque".to_owned(), tar.whiteout(".wh..wh..opq")),
        _ => (format!("deletion {name}"), tar.whiteout(&marked(""))),
    }
}

as_both! { random_archives_mean_the_same_in_every_driver, || {
    let lower = || tar().file("x/a", "1").file("x/b", "2").file("x/s/a", "3").file("x/s/t/a", "4").file("y", "5").symlink("l", "x");
    let (mut worked, mut wrong) = (0, Vec::new());
    for seed in 0..150 {
        let mut rng = Rng::new(seed);
        let (mut said, mut archive) = (Vec::new(), tar());
        for _ in 0..2 + rng.below(5) {
            let (what, longer) = random_entry(&mut rng, archive);
            archive = longer;
            said.push(what);
        }
        let (over, removing) = (Place::over(lower()), Place::removing());
        removing.applied(lower());
        let archive = archive.end();
        let done = [&over, &removing].map(|place| place.apply(&archive).map_err(|error| error.to_string()));
        match done {
            [Ok(_), Ok(_)] => {
                worked += 1;
                let (got, mut tree) = (merged(&over), removing.tree());
                tree.sort_by(|a, b| path(a).split('/').cmp(path(b).split('/')));
                if got != tree {
                    wrong.push(format!("seed {seed}: {said:?}: over {got:?} removing {tree:?}"));
                }
            }
            // A directory that is a link to itself.
            [Err(error), Ok(_)] if error.ends_with("is a directory in a lower layer") => {}
            [Err(_), Err(_)] => {}
            [over, removing] => wrong.push(format!("seed {seed}: {said:?}: {over:?} {removing:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(worked > 40, "{worked}");
} }

as_both! { what_is_deleted_is_no_target_of_links, || {
    for archive in [
        tar().link("new", "x/old").whiteout(".wh.x").link("b", "x/old"),
        tar().link("new", "x/old").whiteout("x/.wh.old").link("b", "x/old"),
        tar().whiteout("x/.wh..wh..opq").link("b", "x/old"),
    ] {
        let lower = tar().file("x/old", "old");
        let (over, removing) = (Place::over(lower.clone()), Place::removing());
        removing.applied(lower);
        for place in [over, removing] {
            let refusal = place.refusal(&archive.clone().end());
            assert_eq!(refusal, "archive entry 'b': is a link to 'x/old', which is missing");
        }
    }
} }

as_both! { deletions_leave_the_times_of_directories, || {
    let place = Place::over(tar().file("x/sub/deep", "").file("x/old", ""));
    place.applied(tar().dir("x").dir("x/sub").link("a", "x/sub/deep").link("b", "x/old").whiteout(".wh.x"));
    for path in ["x", "x/sub"] {
        assert_eq!(place.at(path).metadata().unwrap().mtime(), 0o7_346_545_000, "{path}");
    }
} }

as_both! { where_nothing_is_known_of_lower_layers_whiteouts_are_written, || {
    let place = Place::new();
    place.applied(tar().whiteout("d/.wh.a").whiteout(".wh.d").whiteout("e/.wh.b").file("e/c", "").whiteout("g/.wh..wh..opq"));
    assert_eq!(place.tree(), ["w d", "d e", "w e/b", "- e/c=", "d g"]);
    assert!(place.opaque("g"));
} }

as_both! { links_to_recorded_kinds_are_of_that_kind, || {
    let owners = if rootless::inside() { vec![Owners::Record, Owners::Set] } else { vec![Owners::Record] };
    for owners in owners {
        let mut place = Place::new();
        // Who keeps owners in records believes them.
        place.target.belief = place.target.belief.with_records(true);
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

as_both! { deep_directories_of_lower_layers_are_found_again, || {
    let deep = |depth: usize| vec!["d"; depth].join("/");
    let named = |tar: Tar, path: String, data: &str| tar.pax(&[("path", path.as_bytes())]).file("f", data);
    let depths = [1, 30, 64, 65, 66, 100, 149, 200];
    let lower = depths.iter().fold(tar(), |tar, &depth| named(tar, format!("{}/f", deep(depth)), "old"));
    let place = Place::over(lower);
    let down = depths.iter().rev().fold(tar(), |tar, &depth| named(tar, format!("{}/.wh.none", deep(depth)), ""));
    let up = depths.iter().fold(down, |tar, &depth| {
        named(tar, format!("{}/.wh.{}", deep(depth), if depth == 65 { "none" } else { "f" }), "")
    });
    place.applied(up);
    for line in place.tree() {
        assert!(line.starts_with("d ") || line.starts_with("w "), "{line}");
    }
    let gone: Vec<usize> = place.tree().iter().filter(|line| line.starts_with("w ")).map(|line| line.matches('/').count()).collect();
    assert_eq!(gone.len(), depths.len() - 1);
    assert!(!gone.contains(&65));
} }
