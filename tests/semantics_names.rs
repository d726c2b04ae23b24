//! Names: their length, their bytes, the ones that mean something to others; and listings of many.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat};
use rustix::io::Errno;

use crate::semantics_kit::{
    both, chmod, errno, exists, is_whiteout, mv, names, put, rename, stat, text,
};

/// A name of 255 bytes.
fn long(tail: &str) -> String {
    format!("{}{tail}", "n".repeat(255 - tail.len()))
}

both! { names_of_255_bytes_work_everywhere, |t| {
    put(t.lower(long("low")), "low");
    put(t.lower(long("gone")), "gone");
    fs::create_dir(t.lower(long("dir"))).unwrap();
    put(t.lower(long("dir")).join(long("in")), "in");
    let mut fs = t.mount(&[]);
    put(fs.at(long("new")), "new");
    fs::create_dir(fs.at(long("newdir"))).unwrap();
    symlink("x", fs.at(long("link"))).unwrap();
    fs::remove_file(fs.at(long("gone"))).unwrap();
    put(fs.at(long("low")), "changed");
    put(fs.at(long("dir")).join(long("in")), "changed");
    fs::hard_link(fs.at(long("new")), fs.at(long("hard"))).unwrap();
    mv(fs.at(long("low")), fs.at(long("moved")));
    assert!(!exists(fs.at(long("gone"))));
    t.same_after_remount(&mut fs);
    assert_eq!(text(fs.at(long("moved"))), "changed");
    fs::remove_dir_all(fs.at(long("dir"))).unwrap();
    fs::create_dir(fs.at(long("dir"))).unwrap();
    t.same_after_remount(&mut fs);
    assert_eq!(names(fs.at(long("dir"))).len(), 0);
}}

both! { a_directory_of_255_bytes_is_renamed, Rootless(NO_REDIRECTS), |t| {
    fs::create_dir(t.lower(long("dir"))).unwrap();
    put(t.lower(long("dir")).join(long("in")), "in");
    let mut fs = t.mount(&[]);
    mv(fs.at(long("dir")), fs.at(long("moved")));
    assert_eq!(text(fs.at(long("moved")).join(long("in"))), "in");
    fs.remount();
    assert_eq!(text(fs.at(long("moved")).join(long("in"))), "in");
}}

both! { names_over_255_bytes_are_too_long, |t| {
    let fs = t.mount(&["f=x", "d"]);
    let name = "n".repeat(256);
    let at = || fs.at(&name);
    let too_long = Errno::NAMETOOLONG;
    assert_eq!(errno(fs::metadata(at())), too_long);
    assert_eq!(errno(fs::write(at(), "x")), too_long);
    assert_eq!(errno(fs::create_dir(at())), too_long);
    assert_eq!(errno(symlink("x", at())), too_long);
    assert_eq!(errno(fs::hard_link(fs.at("f"), at())), too_long);
    assert_eq!(errno(fs::rename(fs.at("f"), at())), too_long);
    assert_eq!(errno(fs::remove_file(at())), too_long);
    assert_eq!(errno(fs::remove_dir(at())), too_long);
    assert_eq!(mknodat(CWD, at(), FileType::Fifo, Mode::from(0o600), 0), Err(too_long));
    assert_eq!(names(fs.at("")), ["d", "f"]);
}}

both! { names_are_bytes, |t| {
    let odd: Vec<&OsStr> = [
        &b"\xff\xfe"[..],
        b"caf\xe9",
        b"a\nb",
        b"a b",
        b"a:b",
        b"a,b",
        b"a\\b",
        b"-rf",
        b"...",
        b"~",
        b"\x01",
        b"*",
    ]
    .iter()
    .map(|x| OsStr::from_bytes(x))
    .collect();
    for name in &odd[..6] {
        put(t.lower(name), "low");
    }
    let mut fs = t.mount(&[]);
    for name in &odd {
        put(fs.at(name), "up");
    }
    let listed = |dir: &Path| -> BTreeSet<OsString> {
        fs::read_dir(dir).unwrap().map(|x| x.unwrap().file_name()).collect()
    };
    let expected: BTreeSet<OsString> = odd.iter().map(|x| x.to_os_string()).collect();
    assert_eq!(listed(&fs.at("")), expected);
    t.same_after_remount(&mut fs);
    for name in &odd {
        assert_eq!(text(fs.at(name)), "up");
        fs::remove_file(fs.at(name)).unwrap();
    }
    fs.remount();
    assert!(listed(&fs.at("")).is_empty());
}}

both! { user_files_named_like_whiteouts_are_kept_or_refused, |t| {
    let mut fs = t.mount(&["x=hidden?", "d", "d/y=hidden?"]);
    let odd =
        [".wh.x", ".wh..wh..opq", ".wh.none", "d/.wh.y", "d/.wh..wh..opq", "d/.wh.", ".wh..opq"];
    let mut kept = Vec::new();
    for name in odd {
        match fs::write(fs.at(name), name) {
            Ok(()) => kept.push(name),
            Err(error) => assert_ne!(error.raw_os_error(), Some(5), "{name}: {error}"),
        }
    }
    put(fs.at("plain"), "plain");
    if rename(fs.at("plain"), fs.at(".wh.plain"), RenameFlags::NOREPLACE).is_ok() {
        kept.push(".wh.plain");
        put(fs.at(".wh.plain"), ".wh.plain");
    }
    for _ in 0..2 {
        for name in &kept {
            assert_eq!(&text(fs.at(name)), name);
            let (dir, last) = name.rsplit_once('/').unwrap_or(("", name));
            assert!(names(fs.at(dir)).contains(&last.to_owned()), "{name} is not listed");
        }
        assert_eq!((text(fs.at("x")), text(fs.at("d/y"))), ("hidden?".into(), "hidden?".into()));
        fs.remount();
    }
    for name in &kept {
        fs::remove_file(fs.at(name)).unwrap();
        assert!(!exists(fs.at(name)));
    }
    assert_eq!((text(fs.at("x")), text(fs.at("d/y"))), ("hidden?".into(), "hidden?".into()));
}}

both! { directories_named_like_whiteouts_are_kept_or_refused, |t| {
    let mut fs = t.mount(&["x=hidden?"]);
    if fs::create_dir(fs.at(".wh.x")).is_ok() {
        put(fs.at(".wh.x/in"), "in");
        for _ in 0..2 {
            assert_eq!(text(fs.at(".wh.x/in")), "in");
            assert_eq!(text(fs.at("x")), "hidden?");
            fs.remount();
        }
    }
    assert_eq!(text(fs.at("x")), "hidden?");
}}

both! { names_that_the_overlay_uses_elsewhere_are_plain_names, |t| {
    let odd = [
        "work",
        "index",
        "upper",
        "incompat",
        "#1",
        "#a0",
        ".plyfs",
        ".fuse_hidden1",
        "lost+found",
    ];
    let mut fs = t.mount(&["index=low"]);
    for name in odd {
        put(fs.at(name), name);
    }
    t.same_after_remount(&mut fs);
    let mut sorted = odd.to_vec();
    sorted.sort_unstable();
    assert_eq!(names(fs.at("")), sorted);
}}

both! { a_large_directory_is_listed_whole, |t| {
    let top = t.layer("top", &["d"]);
    let low = t.layer("low", &["d"]);
    for file in 0..5000 {
        put(low.join(format!("d/low{file:04}")), "");
        if file % 5 == 0 {
            put(top.join(format!("d/low{file:04}")), "");
            put(top.join(format!("d/top{file:04}")), "");
        }
    }
    let mut fs = t.mount_lowers(&[&top, &low]);
    for file in 0..300 {
        put(fs.at(format!("d/up{file:04}")), "");
        fs::remove_file(fs.at(format!("d/low{file:04}"))).unwrap();
    }
    let mut expected: Vec<String> = (300..5000).map(|x| format!("low{x:04}")).collect();
    expected.extend((0..5000).step_by(5).map(|x| format!("top{x:04}")));
    expected.extend((0..300).map(|x| format!("up{x:04}")));
    for _ in 0..2 {
        assert!(names(fs.at("d")) == expected, "the listing differs");
        fs.remount();
    }
}}

both! { a_listing_is_complete_after_many_renames, |t| {
    for file in 0..300 {
        put(t.lower(format!("f{file}")), "x");
    }
    let mut fs = t.mount(&["d"]);
    let mut expected: BTreeSet<String> = names(fs.at("")).into_iter().collect();
    for step in 0..1500u64 {
        let from = expected.iter().nth((step * 7919 % 301) as usize).unwrap().clone();
        if from == "d" {
            continue;
        }
        let to = format!("f{}", step * 104_729 % 400);
        mv(fs.at(&from), fs.at(&to));
        expected.remove(&from);
        expected.insert(to);
        while expected.len() < 301 {
            let name = format!("new{step}.{}", expected.len());
            put(fs.at(&name), "x");
            expected.insert(name);
        }
    }
    for _ in 0..2 {
        assert_eq!(names(fs.at("")), expected.iter().cloned().collect::<Vec<_>>());
        assert!(expected.iter().all(|x| exists(fs.at(x))));
        fs.remount();
    }
}}

both! { a_listing_misses_no_name_while_others_are_renamed, |t| {
    for file in 0..5000 {
        put(t.lower(format!("stay{file}")), "");
    }
    let fs = t.mount(&["move=x"]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            for step in (0..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                put(fs.at(format!("made{step}")), "");
                mv(fs.at(format!("made{step}")), fs.at("move"));
            }
        });
        for _ in 0..20 {
            let seen = names(fs.at(""));
            let stay: BTreeSet<_> = seen.iter().filter(|x| x.starts_with("stay")).collect();
            let twice = seen.len() - seen.iter().collect::<BTreeSet<_>>().len();
            assert_eq!((stay.len(), twice), (5000, 0));
        }
        stop.store(true, Ordering::Relaxed);
        mover.join().unwrap();
    });
}}

both! { a_listing_read_again_from_its_start_shows_new_names, |t| {
    let fs = t.mount(&["a=x", "b=x"]);
    let dir = rustix::fs::open(fs.at(""), rustix::fs::OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut dir = rustix::fs::Dir::new(dir).unwrap();
    let mut listed = || {
        let mut names: Vec<_> = dir.by_ref().map(|x| x.unwrap().file_name().to_owned()).collect();
        dir.rewind();
        names.sort();
        names.len()
    };
    assert_eq!(listed(), 4);
    put(fs.at("c"), "x");
    fs::remove_file(fs.at("a")).unwrap();
    put(fs.at("d"), "x");
    assert_eq!(listed(), 5);
}}

both! { a_deep_path_and_a_long_symlink_work, |t| {
    let fs = t.mount(&["d"]);
    let mut path = fs.at("d");
    for _ in 0..60 {
        path = path.join("x".repeat(50));
        fs::create_dir(&path).unwrap();
    }
    put(path.join("f"), "deep");
    assert_eq!(text(path.join("f")), "deep");
    let target = "t/".repeat(2000);
    symlink(&target, fs.at("link")).unwrap();
    assert_eq!(fs::read_link(fs.at("link")).unwrap(), Path::new(&target));
    assert_eq!(errno(fs::read_dir(fs.at("d").join("x".repeat(50)).join("none"))), Errno::NOENT);
    fs::remove_dir_all(fs.at("d")).unwrap();
    assert_eq!(names(fs.at("")), ["link"]);
}}

both! { a_device_node_of_a_whiteout_never_hides_what_it_does_not_mean, |t| {
    let fs = t.mount(&["low=x"]);
    // 0:0 is how a deletion is written: making one may fail, but hides nothing else.
    let made = mknodat(CWD, fs.at("node"), FileType::CharacterDevice, Mode::from(0o600), 0);
    assert_eq!(text(fs.at("low")), "x");
    if made.is_ok() && exists(fs.at("node")) {
        assert!(is_whiteout(&fs.at("node")));
    }
    put(fs.at("f"), "x");
    chmod(fs.at("f"), 0o600);
    assert_eq!(stat(fs.at("f")).len(), 1);
}}
