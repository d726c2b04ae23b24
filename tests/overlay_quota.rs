//! Limits of bytes and inodes, asked of the core without a mount.

mod races;

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;

use plyfs_fuse::attr::SetAttr;
use plyfs_fuse::inode::Ino;
use plyfs_fuse::options::Whiteouts;
use plyfs_fuse::owner::Caller;
use plyfs_fuse::quota::Used;
use plyfs_fuse::{Error, Options, Overlay};

use crate::common::rootless;
use crate::common::sandbox::Sandbox;
use crate::{needs, this_test};

const BLOCK: u64 = 4096;

fn me() -> Caller {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    Caller { uid: uid.as_raw(), gid: gid.as_raw(), umask: 0o022 }
}

fn options(sandbox: &Sandbox, size: u64, nr_inodes: u64) -> Options {
    Options {
        lowers: vec![sandbox.lower(1)],
        upper: Some(sandbox.upper()),
        work: Some(sandbox.work()),
        size: (size > 0).then_some(size),
        nr_inodes: (nr_inodes > 0).then_some(nr_inodes),
        ..Options::default()
    }
}

fn open(sandbox: &Sandbox, size: u64, nr_inodes: u64) -> Overlay {
    Overlay::open(&options(sandbox, size, nr_inodes)).unwrap()
}

/// What is booked, which is what is there.
fn used(fs: &Overlay) -> Used {
    fs.check_invariants().unwrap();
    let (booked, found) = fs.used().unwrap().unwrap();
    assert_eq!(booked, found, "booked, and found by counting");
    booked
}

fn of(blocks: u64, inodes: u64) -> Used {
    Used { bytes: blocks * BLOCK, inodes }
}

fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

/// A new file that the kernel knows.
fn create(fs: &Overlay, text: &str) -> Ino {
    fs.mknod(me(), Ino::ROOT, name(text), 0o100_644, 0).unwrap().attr.ino
}

fn write(fs: &Overlay, ino: Ino, offset: u64, length: u64) -> Result<usize, Error> {
    fs.write(ino, offset, &vec![7; length as usize], false)
}

fn full<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert_eq!(result.unwrap_err().errno(), libc::ENOSPC);
}

/// Removes a name that the kernel knows, and has it forgotten.
fn remove(fs: &Overlay, text: &str, ino: Ino) {
    fs.unlink(Ino::ROOT, name(text)).unwrap();
    fs.forget(ino, 1);
}

#[test]
fn writing_ends_at_the_limit_and_removing_makes_room() {
    let sandbox = Sandbox::new();
    let fs = open(&sandbox, 10 * BLOCK, 0);
    let a = create(&fs, "a");
    assert_eq!(write(&fs, a, 0, 8 * BLOCK).unwrap() as u64, 8 * BLOCK);
    let b = create(&fs, "b");
    assert_eq!(
        write(&fs, b, 0, 4 * BLOCK).unwrap() as u64,
        2 * BLOCK,
        "as much as there is room for"
    );
    full(write(&fs, b, 2 * BLOCK, 1));
    assert_eq!(used(&fs), of(10, 2));
    assert_eq!(fs.getattr(b).unwrap().size, 2 * BLOCK, "nothing half-made");
    remove(&fs, "a", a);
    assert_eq!(used(&fs), of(2, 1));
    assert_eq!(write(&fs, b, 2 * BLOCK, 8 * BLOCK).unwrap() as u64, 8 * BLOCK);
    full(write(&fs, b, 10 * BLOCK, 1));
}

#[test]
fn what_has_its_blocks_is_written_in_place_at_the_limit() {
    let sandbox = Sandbox::new();
    let fs = open(&sandbox, 4 * BLOCK, 0);
    let a = create(&fs, "a");
    write(&fs, a, 0, 3 * BLOCK).unwrap();
    write(&fs, a, 5 * BLOCK + 1, 10).unwrap();
    assert_eq!(used(&fs), of(4, 1), "holes take nothing");
    assert_eq!(write(&fs, a, 0, 3 * BLOCK).unwrap() as u64, 3 * BLOCK);
    assert_eq!(write(&fs, a, 5 * BLOCK, BLOCK).unwrap() as u64, BLOCK);
    assert_eq!(
        write(&fs, a, BLOCK + 5, 3 * BLOCK).unwrap() as u64,
        2 * BLOCK - 5,
        "up to the hole"
    );
    full(write(&fs, a, 3 * BLOCK, 1));
    full(write(&fs, a, 6 * BLOCK, 1));
    let size = |size| SetAttr { size: Some(size), ..SetAttr::default() };
    fs.setattr(me(), a, &size(100 * BLOCK)).unwrap();
    assert_eq!(used(&fs), of(4, 1), "a longer hole");
    fs.fallocate(a, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, BLOCK, BLOCK).unwrap();
    assert_eq!(used(&fs), of(3, 1));
    write(&fs, a, 50 * BLOCK, 1).unwrap();
    fs.setattr(me(), a, &size(BLOCK)).unwrap();
    assert_eq!(used(&fs), of(1, 1));
    fs.setattr(me(), a, &size(0)).unwrap();
    assert_eq!(used(&fs), of(0, 1));
}

#[test]
fn room_that_a_file_has_reserved_is_its_own() {
    let sandbox = Sandbox::new();
    let fs = open(&sandbox, 8 * BLOCK, 0);
    let (a, b) = (create(&fs, "a"), create(&fs, "b"));
    fs.fallocate(a, 0, 0, 8 * BLOCK).unwrap();
    assert_eq!(used(&fs), of(8, 2));
    full(fs.fallocate(b, 0, 0, 1));
    full(write(&fs, b, 0, 1));
    assert_eq!(write(&fs, a, 0, 8 * BLOCK).unwrap() as u64, 8 * BLOCK);
    full(fs.fallocate(a, 0, 8 * BLOCK, BLOCK));
    assert_eq!(used(&fs), of(8, 2));
}

#[test]
fn a_copied_range_counts_and_ends_at_the_limit() {
    let sandbox = Sandbox::new();
    let fs = open(&sandbox, 6 * BLOCK, 0);
    let (a, b) = (create(&fs, "a"), create(&fs, "b"));
    write(&fs, a, 0, 4 * BLOCK).unwrap();
    let copied = fs.copy_file_range(a, 0, b, 0, 1 << 20).unwrap();
    assert_eq!(copied, 2 * BLOCK);
    full(fs.copy_file_range(a, 0, b, 2 * BLOCK, 1 << 20));
    assert_eq!(used(&fs), of(6, 2));
    assert_eq!(fs.copy_file_range(a, 8 * BLOCK, b, 2 * BLOCK, 5).unwrap(), 0, "beyond its end");
}

/// A lower tree: `d/e/f` of five blocks, `hole` with one block of data at its end.
fn plant(sandbox: &Sandbox) {
    let lower = sandbox.lower(1);
    std::fs::create_dir_all(lower.join("d/e")).unwrap();
    std::fs::write(lower.join("d/e/f"), vec![1; 5 * BLOCK as usize]).unwrap();
    let hole = std::fs::File::create(lower.join("hole")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&hole, &[1; 10], 1 << 30).unwrap();
}

fn walk(fs: &Overlay, path: &str) -> Ino {
    path.split('/').fold(Ino::ROOT, |dir, part| fs.lookup(dir, name(part)).unwrap().attr.ino)
}

#[test]
fn copying_up_counts_with_every_directory_above() {
    for (size, nr_inodes, fits) in [(5, 3, true), (4, 3, false), (5, 2, false)] {
        let sandbox = Sandbox::new();
        plant(&sandbox);
        let fs = open(&sandbox, size * BLOCK, nr_inodes);
        let f = walk(&fs, "d/e/f");
        let written = write(&fs, f, 0, 10);
        if fits {
            assert_eq!(written.unwrap(), 10);
            assert_eq!(used(&fs), of(5, 3));
        } else {
            full(written);
            let after = used(&fs);
            assert!(after.bytes == 0 && after.inodes <= 2, "{after:?}");
            assert!(!sandbox.upper().join("d/e/f").exists());
            assert_eq!(fs.getattr(f).unwrap().size, 5 * BLOCK);
        }
    }
}

#[test]
fn a_copy_takes_what_is_kept_of_it() {
    let sandbox = Sandbox::new();
    plant(&sandbox);
    let fs = open(&sandbox, 2 * BLOCK, 0);
    let hole = walk(&fs, "hole");
    write(&fs, hole, 0, 1).unwrap();
    assert_eq!(used(&fs), of(2, 1), "the hole is not copied");
    let f = walk(&fs, "d/e/f");
    fs.setattr(me(), f, &SetAttr { size: Some(0), ..SetAttr::default() }).unwrap();
    assert_eq!(used(&fs), of(2, 4), "what is cut off neither");
}

#[test]
fn data_that_a_metacopy_gets_later_counts_then() {
    needs!(Root);
    let sandbox = Sandbox::new();
    plant(&sandbox);
    let fs = Overlay::open(&Options { metacopy: true, ..options(&sandbox, 6 * BLOCK, 0) }).unwrap();
    let f = walk(&fs, "d/e/f");
    fs.setattr(me(), f, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    // The mark may take a block.
    let mark = used(&fs).bytes;
    assert!(mark <= BLOCK);
    let other = create(&fs, "other");
    write(&fs, other, 0, 2 * BLOCK).unwrap();
    full(write(&fs, f, 0, 1));
    assert_eq!(used(&fs).bytes, mark + 2 * BLOCK);
    remove(&fs, "other", other);
    write(&fs, f, 0, 1).unwrap();
    assert_eq!(used(&fs), of(5, 3));
}

#[test]
fn no_object_comes_beyond_the_limit_of_inodes_and_every_one_can_go() {
    for whiteouts in [Whiteouts::Auto, Whiteouts::Dot, Whiteouts::Xattr] {
        let sandbox = Sandbox::new();
        plant(&sandbox);
        let lower = sandbox.lower(1);
        std::fs::create_dir(lower.join("full")).unwrap();
        for n in 0..3 {
            std::fs::write(lower.join(format!("full/{n}")), "").unwrap();
        }
        let fs = Overlay::open(&Options { whiteouts, ..options(&sandbox, 0, 3) }).unwrap();
        let (a, root) = (create(&fs, "a"), Ino::ROOT);
        fs.mkdir(me(), root, name("b"), 0o755).unwrap();
        fs.symlink(me(), root, name("c"), name("target")).unwrap();
        let free = fs.statfs().unwrap();
        assert_eq!((free.files, free.ffree), (3, 0));
        full(fs.create(me(), root, name("x"), 0o644));
        full(fs.mkdir(me(), root, name("x"), 0o755));
        full(fs.symlink(me(), root, name("x"), name("target")));
        full(fs.mknod(me(), root, name("x"), 0o010_644, 0));
        full(fs.tmpfile(me(), root, 0o644));
        full(fs.setattr(
            me(),
            walk(&fs, "d"),
            &SetAttr { mode: Some(0o700), ..SetAttr::default() },
        ));
        fs.link(a, root, name("second")).unwrap();
        assert_eq!(used(&fs).inodes, 3, "a name is no inode");
        // Their directory is copied up for it, and whiteouts come.
        let dir = walk(&fs, "full");
        for n in 0..3 {
            fs.unlink(dir, name(&n.to_string())).unwrap();
        }
        assert!(used(&fs).inodes > 3);
        fs.rmdir(root, name("full")).unwrap();
        fs.forget(dir, 1);
        fs.unlink(root, name("hole")).unwrap();
        used(&fs);
        for text in ["a", "second", "c"] {
            fs.unlink(root, name(text)).unwrap();
        }
        fs.rmdir(root, name("b")).unwrap();
        used(&fs);
    }
}

#[test]
fn what_is_unlinked_counts_until_it_is_forgotten() {
    let sandbox = Sandbox::new();
    let fs = open(&sandbox, 4 * BLOCK, 2);
    let a = create(&fs, "a");
    write(&fs, a, 0, 2 * BLOCK).unwrap();
    fs.unlink(Ino::ROOT, name("a")).unwrap();
    assert_eq!(used(&fs), of(2, 1));
    write(&fs, a, 2 * BLOCK, BLOCK).unwrap();
    assert_eq!(used(&fs), of(3, 1), "it still grows");
    let b = create(&fs, "b");
    assert_eq!(write(&fs, b, 0, 2 * BLOCK).unwrap() as u64, BLOCK);
    full(fs.mkdir(me(), Ino::ROOT, name("c"), 0o755));
    fs.forget(a, 1);
    assert_eq!(used(&fs), of(1, 1));
    let dir = fs.mkdir(me(), Ino::ROOT, name("c"), 0o755).unwrap().attr.ino;
    fs.rmdir(Ino::ROOT, name("c")).unwrap();
    assert_eq!(used(&fs), of(1, 2));
    fs.forget(dir, 1);
    assert_eq!(used(&fs), of(1, 1));
}

#[test]
fn a_file_without_a_name_counts_and_may_get_one() {
    let sandbox = Sandbox::new();
    let fs = open(&sandbox, 4 * BLOCK, 2);
    let [kept, lost] = [0, 1].map(|_| fs.tmpfile(me(), Ino::ROOT, 0o644).unwrap().attr.ino);
    write(&fs, kept, 0, BLOCK).unwrap();
    write(&fs, lost, 0, BLOCK).unwrap();
    assert_eq!(used(&fs), of(2, 2));
    fs.link(kept, Ino::ROOT, name("kept")).unwrap();
    assert_eq!(used(&fs), of(2, 2), "it counted before");
    fs.release(lost);
    fs.forget(lost, 1);
    assert_eq!(used(&fs), of(1, 1));
    fs.release(kept);
    fs.forget(kept, 2);
    assert_eq!(used(&fs), of(1, 1));
}

#[test]
fn what_is_renamed_over_goes_and_links_count_once() {
    let sandbox = Sandbox::new();
    plant(&sandbox);
    let lower = sandbox.lower(1);
    std::fs::write(lower.join("one"), vec![1; 2 * BLOCK as usize]).unwrap();
    std::fs::hard_link(lower.join("one"), lower.join("two")).unwrap();
    let fs = open(&sandbox, 20 * BLOCK, 20);
    let (a, b) = (create(&fs, "a"), create(&fs, "b"));
    write(&fs, a, 0, BLOCK).unwrap();
    write(&fs, b, 0, 3 * BLOCK).unwrap();
    fs.link(a, Ino::ROOT, name("c")).unwrap();
    assert_eq!(used(&fs), of(4, 2));
    fs.rename(Ino::ROOT, name("a"), Ino::ROOT, name("b"), 0).unwrap();
    assert_eq!(used(&fs), of(4, 2), "it is known");
    fs.forget(b, 1);
    assert_eq!(used(&fs), of(1, 1));
    fs.rename(Ino::ROOT, name("b"), Ino::ROOT, name("moved"), 0).unwrap();
    fs.unlink(Ino::ROOT, name("moved")).unwrap();
    assert_eq!(used(&fs), of(1, 1), "it has another name");
    fs.unlink(Ino::ROOT, name("c")).unwrap();
    fs.forget(a, 2);
    assert_eq!(used(&fs), of(0, 0));
    // A group of lower names, one copy for all.
    let one = walk(&fs, "one");
    write(&fs, one, 0, 1).unwrap();
    let with_copy = used(&fs);
    assert!((2 * BLOCK..=3 * BLOCK).contains(&with_copy.bytes) && with_copy.inodes == 1);
    fs.unlink(Ino::ROOT, name("one")).unwrap();
    assert_eq!(used(&fs).bytes, with_copy.bytes);
    let two = walk(&fs, "two");
    assert_eq!(two, one);
    fs.unlink(Ino::ROOT, name("two")).unwrap();
    fs.forget(one, 2);
    let rest = used(&fs);
    assert_eq!(rest.bytes, 0, "{rest:?}");
    // A lower directory with a deleted name is replaced.
    let dir = walk(&fs, "d/e");
    fs.unlink(dir, name("f")).unwrap();
    let new = fs.mkdir(me(), Ino::ROOT, name("new"), 0o755).unwrap().attr.ino;
    let above = walk(&fs, "d");
    fs.rename(Ino::ROOT, name("new"), above, name("e"), 0).unwrap();
    used(&fs);
    fs.forget(dir, 1);
    fs.forget(new, 1);
    used(&fs);
}

#[test]
fn what_was_there_counts_at_the_next_mount() {
    let sandbox = Sandbox::new();
    plant(&sandbox);
    let fs = open(&sandbox, 100 * BLOCK, 100);
    let a = create(&fs, "a");
    write(&fs, a, 0, 3 * BLOCK).unwrap();
    write(&fs, a, 90 * BLOCK, 1).unwrap();
    fs.link(a, Ino::ROOT, name("b")).unwrap();
    write(&fs, walk(&fs, "d/e/f"), 0, 1).unwrap();
    fs.unlink(Ino::ROOT, name("hole")).unwrap();
    fs.symlink(me(), Ino::ROOT, name("s"), name(&"x".repeat(200))).unwrap();
    let before = used(&fs);
    assert_eq!(before, of(4 + 5 + 1, 1 + 3 + 1 + 1));
    let shown = fs.statfs().unwrap();
    drop(fs);
    let fs = open(&sandbox, 100 * BLOCK, 100);
    assert_eq!(used(&fs), before);
    let again = fs.statfs().unwrap();
    assert_eq!((again.bfree, again.ffree), (shown.bfree, shown.ffree));
    assert_eq!((again.blocks, again.bfree, again.files, again.ffree), (100, 90, 100, 94));
    drop(fs);
    let fs = open(&sandbox, 2 * BLOCK, 2);
    let shown = fs.statfs().unwrap();
    assert_eq!((shown.blocks, shown.bfree, shown.ffree), (2, 0, 0), "more than there may be");
    full(write(&fs, walk(&fs, "a"), 10 * BLOCK, 1));
    write(&fs, walk(&fs, "a"), 0, BLOCK).unwrap();
    fs.unlink(Ino::ROOT, name("s")).unwrap();
}

#[test]
fn blocks_that_nobody_booked_are_found_when_there_is_no_room() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.upper().join("old"), vec![1; 4 * BLOCK as usize]).unwrap();
    let fs = open(&sandbox, 5 * BLOCK, 0);
    // Behind the mount's back, as a filesystem that gives blocks back.
    std::fs::File::options()
        .write(true)
        .open(sandbox.upper().join("old"))
        .unwrap()
        .set_len(0)
        .unwrap();
    let a = create(&fs, "a");
    assert_eq!(write(&fs, a, 0, 5 * BLOCK).unwrap() as u64, 5 * BLOCK);
    assert_eq!(used(&fs), of(5, 2));
    full(write(&fs, a, 5 * BLOCK, 1));
}

#[test]
fn blocks_that_come_with_writing_back_do_not_make_room() {
    let sandbox = Sandbox::new();
    let fs = open(&sandbox, 300 * BLOCK, 0);
    let kept = create(&fs, "kept");
    write(&fs, kept, 0, 200 * BLOCK).unwrap();
    for _ in 0..200 {
        let pieces = create(&fs, "pieces");
        for n in 0..6 {
            write(&fs, pieces, n * 5 * BLOCK, 1).unwrap();
        }
        fs.fsync(pieces, false).unwrap();
        remove(&fs, "pieces", pieces);
    }
    // Everything is counted again at most once a second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let last = create(&fs, "last");
    write(&fs, last, 0, 1).unwrap();
    let (booked, found) = fs.used().unwrap().unwrap();
    assert!(booked.bytes.abs_diff(found.bytes) <= 2 * BLOCK, "{booked:?} {found:?}");
}

#[test]
fn attributes_of_files_count_and_are_refused_without_room() {
    needs!(Root);
    let sandbox = Sandbox::new();
    let fs = open(&sandbox, 2 * BLOCK, 0);
    let a = create(&fs, "a");
    let key = name("user.large");
    fs.setxattr(a, key, &[b'x'; 2000], 0).unwrap();
    used(&fs);
    write(&fs, a, 0, 2 * BLOCK).unwrap();
    full(fs.setxattr(a, name("user.other"), &[b'x'; 2000], 0));
    fs.removexattr(a, key).unwrap();
    used(&fs);
}

#[test]
fn an_ordinary_user_has_limits_too() {
    needs!(UserNs);
    if rootless::run(this_test!()) {
        return;
    }
    let sandbox = Sandbox::new();
    plant(&sandbox);
    let fs = open(&sandbox, 6 * BLOCK, 10);
    let closed = fs.mkdir(me(), Ino::ROOT, name("closed"), 0o755).unwrap().attr.ino;
    let inner = fs.mknod(me(), closed, name("f"), 0o100_644, 0).unwrap().attr.ino;
    write(&fs, inner, 0, BLOCK).unwrap();
    fs.setattr(me(), closed, &SetAttr { mode: Some(0), ..SetAttr::default() }).unwrap();
    write(&fs, walk(&fs, "d/e/f"), 0, 1).unwrap();
    full(write(&fs, inner, BLOCK, 1));
    fs.unlink(Ino::ROOT, name("hole")).unwrap();
    let before = used(&fs);
    drop(fs);
    assert_eq!(used(&open(&sandbox, 6 * BLOCK, 10)), before);
}

#[test]
fn nothing_is_counted_without_limits() {
    let sandbox = Sandbox::new();
    let fs = open(&sandbox, 0, 0);
    assert!(fs.used().is_none());
    let a = create(&fs, "a");
    write(&fs, a, 0, 3 * BLOCK).unwrap();
    assert_eq!(std::fs::metadata(sandbox.upper().join("a")).unwrap().blocks() * 512, 3 * BLOCK);
}
