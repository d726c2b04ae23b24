//! Archives that are broken, ambiguous or too large: each is refused in one line.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::os::unix::fs::MetadataExt;

use plyfs::layer::apply::{self, Limits};

use crate::common::sandbox::open_up;
use crate::layer_apply_kit::{Files, Place, Tar, header};
use crate::{as_both, needs, this_test};

fn tar() -> Tar {
    Tar::default()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

#[test]
fn archives_that_can_be_read_in_two_ways_are_refused() {
    let binary = |block: &mut [u8; 512]| block[108] = 0x81;
    let magic = |block: &mut [u8; 512]| {
        block[257..265].copy_from_slice(b"ustar\x0001");
        block[345] = b'p';
    };
    for (archive, why) in [
        (
            tar().pax(&[("size", b"512")]).file("a", "").end(),
            "'a': has the size 0 and a PAX size of 512",
        ),
        (
            tar().pax(&[("size", b"0")]).file("a", "xyz").end(),
            "'a': has the size 3 and a PAX size of 0",
        ),
        (
            tar().pax(&[("uid", b"1")]).pax(&[("gid", b"1")]).file("a", "").end(),
            "is a second extended header of one entry",
        ),
        (
            tar().pax(&[("path", b"x")]).edited(b'L', "l", b"y\0", |_| {}).file("a", "").end(),
            "'a': has a GNU name and another one in PAX records",
        ),
        (tar().pax(&[("path", b"x")]).end(), "the archive: ends behind an extended header"),
        (tar().pax(&[("path", b"a\0b")]).file("a", "").end(), "has a record 'path' that is wrong"),
        (
            tar().edited(b'g', "g", b"10 size=1\n", |_| {}).file("a", "").end(),
            "is a global header that says sizes",
        ),
        (
            tar().edited(b'x', "x", b"99 path=a\n", |_| {}).file("a", "").end(),
            "has a record whose length or form is wrong",
        ),
        (
            tar().edited(b'0', "a", b"", magic).end(),
            "has a name prefix and a version that is neither POSIX's nor GNU's",
        ),
        (
            tar().edited(b'0', "a/", b"", |_| {}).end(),
            "'a/': is a file whose name ends with a slash",
        ),
        (tar().edited(b'Z', "a", b"", |_| {}).end(), "'a': is of the unknown type 'Z'"),
        (tar().edited(b'0', "a", b"", binary).end(), "has a uid of more than 32 bits"),
        (
            tar().pax(&[("uid", b"4294967295")]).file("a", "").end(),
            "'a': has a uid of more than 32 bits",
        ),
        (
            tar().pax(&[("gid", b"4294967296")]).file("a", "").end(),
            "'a': has a gid of more than 32 bits",
        ),
        (tar().raw(&[0; 512]).file("a", "").end(), "is a block of zeros with more behind it"),
        (tar().raw(&[b'x'; 512]).end(), "the archive at byte 0: is no tar header"),
        (tar().edited(b'S', "a", b"", |_| {}).end(), "'a': is a sparse file in no known format"),
        (
            tar()
                .pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"0")])
                .file("a", "x")
                .end(),
            "'a': has a map of its data that is wrong",
        ),
        (
            tar()
                .pax(&[("GNU.sparse.map", b"5,1,0,1"), ("GNU.sparse.size", b"9")])
                .file("a", "xy")
                .end(),
            "'a': has a map of its data that is wrong",
        ),
        (
            tar()
                .pax(&[("GNU.sparse.map", b"5,2,100,1"), ("GNU.sparse.size", b"200")])
                .file("a", "abc")
                .end(),
            "'a': has a piece of data that does not begin at a block",
        ),
        (tar().symlink("a", "").end(), "'a': is a symlink to nothing"),
        (
            tar()
                .pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.size", b"9"),
                ])
                .file("a", &format!("{:<512}", "1\n184467440737095516195\n0\n"))
                .end(),
            "'a': has a map of its data that is wrong",
        ),
        (
            (0..5)
                .fold(tar(), |tar, _| tar.pax_global(&[("comment", &[b'c'; 1_000_000])]))
                .file("a", "")
                .end(),
            "follows more than 4 MiB of extended headers",
        ),
    ] {
        let refusal = Place::new().refusal(&archive);
        assert!(refusal.contains(why), "{refusal:?} instead of {why:?}");
    }
}

#[test]
fn global_headers_say_nothing() {
    let place = Place::new();
    let records = b"18 comment=abcdef\n9 path=x\n";
    place.applied(tar().edited(b'g', "pax_global_header", records, |_| {}).file("a", "1"));
    place.applied(tar().edited(b'g', "pax_global_header", records, |_| {}));
    assert_eq!(place.tree(), ["- a=1"]);
}

#[test]
fn the_end_is_where_other_readers_find_it() {
    let body = tar().file("a", "1").file("b", "2").0;
    for end in [
        &[][..],
        &[0; 512],
        &[0; 1024],
        &[0; 10240],
        &[&[0; 1024][..], b"junk"].concat(),
        &[&[0; 1024][..], &[7; 3 << 20]].concat(),
    ] {
        let place = Place::new();
        place.apply(&[&body, end].concat()).unwrap();
        assert_eq!(place.tree(), ["- a=1", "- b=2"]);
    }
    assert_eq!(Place::new().apply(b"").unwrap().entries, 0);
}

#[test]
fn archives_that_are_cut_off_are_refused() {
    let archive = tar().pax(&[("mtime", b"1.5")]).file("a", &"1".repeat(700)).dir("d").0;
    let whole = [1024 + 512, 1024 + 512 + 1024, archive.len()];
    for length in (1..archive.len()).step_by(37).chain([512, 1024]) {
        let place = Place::new();
        if !whole.contains(&length) {
            assert!(place.apply(&archive[..length]).is_err(), "{length}");
        }
    }
    for packed in [gz(&archive), zst(&archive)] {
        for length in [packed.len() / 3, packed.len() - 1] {
            let refusal = Place::new().refusal(&packed[..length]);
            assert!(refusal.contains("the archive: "), "{refusal}");
        }
    }
}

#[test]
fn junk_is_refused_however_it_is_packed() {
    let junk = [b'j'; 4000];
    for (archive, why) in [
        (junk.to_vec(), "is no tar header"),
        (gz(&junk), "is no tar header"),
        (zst(&junk), "is no tar header"),
        ([&b"\x1f\x8b\x08"[..], &junk].concat(), "gzip"),
        ([&b"\x28\xb5\x2f\xfd"[..], &junk].concat(), "zstd"),
        (b"BZh91AY&SY123".to_vec(), "an archive packed with bzip2: only gzip and zstd are read"),
        (b"\xfd7zXZ\0\0\x04".to_vec(), "an archive packed with xz: only gzip and zstd are read"),
        (b"short".to_vec(), "is cut off"),
    ] {
        let refusal = Place::new().refusal(&archive);
        assert!(refusal.contains(why), "{refusal:?} instead of {why:?}");
    }
}

#[test]
fn the_first_name_may_begin_as_a_packing_does() {
    for name in ["LZIP.txt", "BZh91AY&SY", "PK\u{3}\u{4}", "\u{4}\"M\u{18}"] {
        let place = Place::new();
        place.apply(&tar().file(name, "1").end()).unwrap();
        assert_eq!(std::fs::read(place.at(name)).unwrap(), b"1", "{name:?}");
    }
}

#[test]
fn packed_archives_are_read_to_their_end() {
    let archive = tar().file("a", &"1".repeat(100_000)).file("b", "2").end();
    let (first, second) = archive.split_at(50_000);
    let frame = [&b"\x50\x2a\x4d\x18\x04\0\0\0"[..], b"skip"].concat();
    let plain = Place::new().apply(&archive).unwrap();
    for packed in [
        gz(&archive),
        [gz(first), gz(second)].concat(),
        [gz(first), gz(second), b"garbage".to_vec()].concat(),
        [gz(&archive), vec![0; 100_000]].concat(),
        zst(&archive),
        [frame.clone(), zst(first), frame.clone(), zst(second), frame].concat(),
    ] {
        let place = Place::new();
        let applied = place.apply(&packed).unwrap();
        assert_eq!((applied.size, applied.entries), (100_001, 2));
        assert_eq!(applied.diff_id, plain.digest);
        assert_ne!(applied.digest, applied.diff_id);
        assert_eq!(place.tree().len(), 2);
    }
    let trailing = [zst(&archive), b"garbage".to_vec()].concat();
    assert!(Place::new().refusal(&trailing).contains("zstd"));
}

#[test]
fn windows_of_zstd_are_limited_as_by_zstd_itself() {
    let bytes = tar().file("a", "x").end();
    let with_window = |log: u32| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.write_all(&bytes).unwrap();
        encoder.finish().unwrap()
    };
    Place::new().apply(&with_window(27)).unwrap();
    let refusal = Place::new().refusal(&with_window(28));
    assert!(
        refusal.contains("more than 134217728 bytes of memory, the limit 'window'"),
        "{refusal}"
    );
    let mut place = Place::new();
    assert!(place.limits.set("window", u64::MAX));
    place.apply(&with_window(28)).unwrap();
    assert!(!place.limits.set("windows", 1));
}

#[test]
fn limits_are_named() {
    let zeros = gz(&tar().file("z", &"\0".repeat(4 << 20)).end());
    let sparse =
        tar().pax(&[("GNU.sparse.map", b""), ("GNU.sparse.size", b"1099511627776")]).file("s", "");
    let tar = |name: &str| tar().file(name, "12345").file("b", "").end();
    for (limits, archive, why) in [
        (
            Limits { bytes: 4, ..Limits::default() },
            tar("a"),
            "more than 4 bytes, the limit 'bytes'",
        ),
        (Limits::default(), sparse.end(), "bytes, the limit 'bytes'"),
        (
            Limits { entries: 1, ..Limits::default() },
            tar("a"),
            "more than 1 entries, the limit 'entries'",
        ),
        (
            Limits { depth: 2, ..Limits::default() },
            tar("a/b/c"),
            "more than 2 names, the limit 'depth'",
        ),
        (
            Limits { depth: 3, ..Limits::default() },
            Tar::default().symlink("l", "d/e").file("l/x/f", "").end(),
            "leads to more than 3 names, the limit 'depth'",
        ),
        (
            Limits { name: 3, ..Limits::default() },
            tar("a/long"),
            "more than 3 bytes, the limit 'name'",
        ),
        (
            Limits { bytes: 8, ..Limits::default() },
            Tar::default().file(".wh..wh.plnk/1", "12345").file(".wh..wh.plnk/2", "67890").end(),
            "more than 8 bytes, the limit 'bytes'",
        ),
        (
            Limits { ratio: 100, ..Limits::default() },
            zeros,
            "more than 100 times its size, the limit 'ratio'",
        ),
    ] {
        let mut place = Place::new();
        place.limits = limits;
        let refusal = place.refusal(&archive);
        assert!(refusal.contains(why), "{refusal:?} instead of {why:?}");
    }
}

#[test]
fn deep_paths_need_few_descriptors() {
    let place = Place::new();
    let deep = vec!["d"; 900].join("/");
    let path = format!("{deep}/f");
    place.applied(
        Tar::default()
            .pax(&[("path", path.as_bytes())])
            .file("f", "")
            .file("x", "")
            .pax(&[("path", deep.as_bytes())])
            .dir("d"),
    );
    assert!(place.at(&path).is_file());
}

/// A reader that gives a byte at a time.
struct Slow<'a>(&'a [u8]);

impl std::io::Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = buffer.len().min(1);
        std::io::Read::read(&mut self.0, &mut buffer[..length])
    }
}

#[test]
fn a_slow_reader_is_waited_for_and_a_failing_one_is_named() {
    let archive = tar().file("a", "1").end();
    for packed in [archive.clone(), gz(&archive), zst(&archive)] {
        let place = Place::new();
        apply::apply(&mut Slow(&packed), &place.target, &place.limits, None).unwrap();
        assert_eq!(place.tree(), ["- a=1"]);
    }
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from_raw_os_error(libc::EIO))
        }
    }
    let place = Place::new();
    let packed = gz(&archive);
    let mut input = std::io::Read::chain(&packed[..20], Broken);
    let error = apply::apply(&mut input, &place.target, &place.limits, None).unwrap_err();
    assert!(error.to_string().starts_with("read the archive: Input/output error"), "{error}");
}

/// Has the kernel refuse a call, as filters of container engines do that do not know it.
fn forbid(call: i64, errno: i32) {
    let number = u32::try_from(call).unwrap();
    let step =
        |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k };
    let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap();
    let mut filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, refuse),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter live across the calls, which copy them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program),
            0
        );
    }
}

#[test]
fn everything_works_where_openat2_is_forbidden() {
    needs!(AnyUserNs);
    let _ = this_test!();
    for errno in [libc::EPERM, libc::ENOSYS] {
        // A filter is one thread's for ever, and that of the threads it starts.
        let done = std::thread::spawn(move || {
            let lower = Tar::default().dir("d").file("d/f", "1").file("d/k", "").symlink("l", "d");
            let place = Place::over(lower);
            forbid(libc::SYS_openat2, errno);
            let deep = vec!["e"; 40].join("/");
            let tar = Tar::default()
                .file("l/g", "2")
                .file(&deep, "")
                .file("x", "")
                .link("l/h", "l/f")
                .symlink("out", "/etc")
                .file("out/passwd", "in");
            place.applied(tar.whiteout("d/.wh.k"));
            assert_eq!(std::fs::read_to_string(place.at("etc/passwd")).unwrap(), "in");
            assert_eq!(place.ino("d/h"), place.ino("d/f"));
        });
        done.join().unwrap();
    }
}

#[test]
fn permissions_are_set_where_fchmodat2_is_forbidden() {
    needs!(AnyUserNs);
    let _ = this_test!();
    for errno in [libc::EPERM, libc::ENOSYS] {
        let done = std::thread::spawn(move || {
            let place = Place::new();
            forbid(libc::SYS_fchmodat2, errno);
            let outside = || std::fs::metadata(place.sandbox.at("etc/passwd")).unwrap().mode();
            let before = outside();
            let tar = tar().node(b'6', "fifo", 0, 0).symlink("l", "../etc/passwd").file("f", "");
            place.applied(tar.dir_mode("d", "0000711"));
            let mode = |path: &str| place.at(path).symlink_metadata().unwrap().mode() & 0o7777;
            assert_eq!((mode("fifo"), mode("f"), mode("d")), (0o644, 0o644, 0o711));
            assert_eq!(outside(), before);
        });
        done.join().unwrap();
    }
}

#[test]
fn mutated_archives_neither_panic_nor_leave_the_root() {
    let place = Place::over(tar().dir("d").file("d/f", "1").symlink("l", "/etc"));
    let map: [(&str, &[u8]); 2] = [("GNU.sparse.map", b"5,512,600,1"), ("GNU.sparse.size", b"700")];
    let tar = tar().dir("d").pax(&[("mtime", b"1.5"), ("uid", b"7")]).file("d/f", "data");
    let tar = tar.symlink("s", "../etc").link("h", "d/f").file("s/passwd", "x").whiteout(".wh.l");
    let tar = tar.edited(b'L', "L", b"l/passwd\0", |_| {}).file("x", "y");
    let archive = tar.pax(&map).file("sp", &"x".repeat(513)).whiteout("d/.wh..wh..opq").end();
    let mut rng = crate::common::rng::Rng::new(7);
    for _ in 0..1000 {
        let mut bytes = archive.clone();
        for _ in 0..=rng.below(3) {
            let at = rng.below(bytes.len());
            let change = [0, b'/', b'.', b'0', b'7', b'1', b'5', b'x', 0xff, b'\n'];
            bytes[at] = rng.pick(&change);
            // Most changes would end at the checksum.
            let block = at / 512 * 512;
            if bytes[block + 257..].starts_with(b"ustar") {
                bytes[block + 148..block + 156].copy_from_slice(b"        ");
                let sum: u32 = bytes[block..block + 512].iter().map(|&byte| u32::from(byte)).sum();
                bytes[block + 148..block + 155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            }
        }
        match place.apply(&bytes) {
            Ok(_) => {}
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        }
        let list = |path: &str| std::fs::read_dir(place.sandbox.at(path)).unwrap().count();
        assert_eq!((list("."), list("etc"), list("lower1")), (6, 1, 2));
        open_up(place.root());
        std::fs::remove_dir_all(place.root()).unwrap();
        std::fs::create_dir(place.root()).unwrap();
    }
}

as_both! { what_a_failed_apply_leaves_is_inside, || {
    let place = Place::new();
    place.refusal(&tar().file("a", "1").symlink("l", "../etc").file("l/passwd", "2").file("a/b", "").end());
    assert!(Files(place.root().to_path_buf()).0.exists());
} }

#[test]
fn header_blocks_of_the_kit_are_valid() {
    assert_eq!(header(b'0', b"a", 1, |_| {})[257], b'u');
}
