//! `plyfs layer dedup`: files of the same content share their blocks, and nothing else changes.

mod disk;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::common::cmd::Cmd;
use crate::common::rng::Rng;
use crate::common::sandbox::Sandbox;
use crate::driver_kit::{self, Store};
use crate::every_driver;
use crate::semantics_kit::sys::extents;
use crate::store_additional::{Pair, facts};
use crate::store_kit::Box_;
use disk::{every_sharer, some_sharers};

const MIB: usize = 1 << 20;
const LAYERS: [&str; 3] = ["one", "two", "box"];

fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..size.div_ceil(8)).flat_map(|_| rng.next().to_le_bytes()).take(size).collect()
}

/// A tree of 3 files that have a twin, a large one, and others.
fn content(store: &Box_) -> PathBuf {
    let tree = store.0.sandbox.dir("content");
    fs::create_dir_all(tree.join("d/e")).unwrap();
    let twin = noise(1, MIB + 5);
    let mut other = twin.clone();
    other[MIB] ^= 1;
    for (name, data) in [
        ("twin", &twin),
        ("d/twin", &twin),
        // More than one call of the kernel takes, with an odd end.
        ("large", &noise(2, 33 * MIB + 777)),
        ("d/other", &other),
        ("d/e/tiny", &noise(3, 100)),
        ("tiny", &noise(3, 100)),
        ("empty", &Vec::new()),
    ] {
        fs::write(tree.join(name), data).unwrap();
    }
    fs::hard_link(tree.join("twin"), tree.join("d/link")).unwrap();
    std::os::unix::fs::symlink("twin", tree.join("symlink")).unwrap();
    tree
}

/// Layers `one` and `two` of the same content, and `box` on `one`, with another copy; where that is seen.
fn layers(store: &Box_) -> PathBuf {
    let tree = content(store);
    store.fill("one", None, &tree);
    store.fill("two", None, &tree);
    store.does(&["layer", "create", "--parent", "one", "box"]);
    let at = PathBuf::from(store.does(&["layer", "mount", "box"]).stdout.trim_end());
    fs::write(at.join("copy"), noise(1, MIB + 5)).unwrap();
    fs::remove_dir_all(tree).unwrap();
    at
}

fn dedup(store: &Box_, words: &[&str]) -> Value {
    let done = store.does(&[&["layer", "dedup", "--json"], words].concat());
    assert_eq!(done.stderr, "", "{}", done.story());
    serde_json::from_str(&done.stdout).unwrap()
}

fn number(told: &Value, key: &str) -> u64 {
    told[key].as_u64().unwrap_or_else(|| panic!("no {key} in {told}"))
}

/// Bytes that the filesystem of a store has given out.
fn used(store: &Box_) -> u64 {
    rustix::fs::syncfs(File::open(store.0.root()).unwrap()).unwrap();
    let found = rustix::fs::statvfs(store.0.root()).unwrap();
    (found.f_blocks - found.f_bfree) * found.f_frsize
}

fn is_shared(path: &Path) -> bool {
    const FIEMAP_EXTENT_SHARED: u32 = 0x2000;
    let (file, size) = (File::open(path).unwrap(), path.metadata().unwrap().len());
    let mut extents = extents(file).unwrap();
    // What is allocated in advance is nobody else's.
    extents.retain(|x| x.logical < size);
    !extents.is_empty() && extents.iter().all(|x| x.flags & FIEMAP_EXTENT_SHARED != 0)
}

/// Everything that is told of the layers.
fn told(store: &Box_) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for layer in LAYERS {
        let diff = store.0.sandbox.at("diff.tar");
        store.does(&["layer", "diff", layer, "-o", diff.to_str().unwrap()]);
        all.push(fs::read(diff).unwrap());
        for verb in ["changes", "size"] {
            all.push(store.does(&["layer", verb, layer]).stdout.into_bytes());
        }
        all.push(format!("{:?}", facts(&store.0.own(layer))).into_bytes());
    }
    all
}

fn everything_is_shared_once(store: &Store) {
    let store = Box_(store);
    let at = layers(&store);
    let (before, full) = (told(&store), used(&store));
    let wanted = dedup(&store, &["--dry-run"]);
    assert_eq!(wanted["dry_run"], true);
    assert!(used(&store).abs_diff(full) < MIB as u64, "counting changes nothing");
    // Five copies of one file lie on the blocks of another, and one of the large one; whole copies of layers do already.
    assert!(number(&wanted, "shared") >= 5, "{wanted}");
    assert!(number(&wanted, "bytes") >= 37 * MIB as u64, "{wanted}");
    let done = dedup(&store, &[]);
    for key in ["layers", "files", "shared", "bytes", "already"] {
        assert_eq!(done[key], wanted[key], "{key}: {done}, {wanted}");
    }
    assert_eq!((number(&done, "changed"), number(&done, "failed")), (0, 0), "{done}");
    let less = full.saturating_sub(used(&store));
    assert!(less.abs_diff(number(&done, "bytes")) < MIB as u64, "{less} bytes less: {done}");
    assert!(told(&store) == before, "what is told of the layers has changed");
    for (layer, name) in [("one", "twin"), ("two", "d/twin"), ("box", "copy"), ("two", "large")] {
        assert!(is_shared(&store.0.own(layer).join(name)), "{layer}: {name}");
    }
    assert!(!is_shared(&store.0.own("two").join("d/e/tiny")));
    store.does(&["check"]).says("nothing wrong");
    let again = dedup(&store, &[]);
    assert_eq!((number(&again, "shared"), number(&again, "bytes")), (0, 0), "{again}");
    assert!(number(&again, "already") >= number(&done, "shared"), "{again}");
    // Whoever writes one of them has it for himself.
    for name in ["copy", "d/twin"] {
        let file = File::options().write(true).open(at.join(name)).unwrap();
        file.write_all_at(b"mine", 4096).unwrap();
    }
    store.does(&["layer", "umount", "box"]);
    let twin = noise(1, MIB + 5);
    for (layer, name) in [("one", "twin"), ("one", "d/twin"), ("two", "twin")] {
        assert!(fs::read(store.0.own(layer).join(name)).unwrap() == twin, "{layer}: {name}");
    }
    store.does(&["check"]).says("nothing wrong");
}

fn only_the_named_layers_are_looked_at(store: &Store) {
    let store = Box_(store);
    layers(&store);
    store.does(&["layer", "umount", "box"]);
    let done = dedup(&store, &["two", "two"]);
    assert_eq!((number(&done, "layers"), number(&done, "shared")), (1, 1), "{done}");
    assert!(is_shared(&store.0.own("two").join("d/twin")));
    assert!(!is_shared(&store.0.own("two").join("large")));
    store.plyfs(&["layer", "dedup", "two", "none"]).exits(1).complains("layer 'none': not found");
    store.does(&["layer", "dedup", "one", "two"]).says("share their blocks now");
    assert!(is_shared(&store.0.own("two").join("large")));
}

/// Somebody writes a layer through its mount while its files are shared again and again.
fn writers_lose_nothing(store: &Store) {
    const SIZE: usize = 64 << 10;
    const BLOCK: usize = 4096;
    let store = Box_(store);
    let tree = store.0.sandbox.dir("content");
    let blocks = |data: &[u8]| data.chunks(BLOCK).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let base = noise(7, SIZE);
    for n in 0..4 {
        fs::write(tree.join(n.to_string()), &base).unwrap();
    }
    store.fill("base", None, &tree);
    store.does(&["layer", "create", "--parent", "base", "box"]);
    let at = PathBuf::from(store.does(&["layer", "mount", "box"]).stdout.trim_end());
    let done = AtomicBool::new(false);
    let mut rng = Rng::new(8);
    let mut shared = 0;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut model = vec![blocks(&base); 4];
            let mut rounds = 0_u64;
            while !done.load(Ordering::Relaxed) {
                rounds += 1;
                let n = rng.below(4);
                let path = at.join(n.to_string());
                let file = File::options().read(true).write(true).open(&path).unwrap();
                // Often what it was at first, so that there is something to share.
                let block = rng.below(SIZE / BLOCK);
                let new = match rng.chance(96) {
                    true => base[block * BLOCK..][..BLOCK].to_vec(),
                    false => noise(rounds, BLOCK),
                };
                file.write_all_at(&new, (block * BLOCK) as u64).unwrap();
                model[n][block] = new;
                assert!(fs::read(&path).unwrap() == model[n].concat(), "file {n}, round {rounds}");
            }
            model
        });
        for _ in 0..15 {
            let told = store.plyfs(&["layer", "dedup", "--json"]).run();
            if told.status != 0 || writer.is_finished() {
                done.store(true, Ordering::Relaxed);
                assert_eq!(told.status, 0, "{}", told.story());
                break;
            }
            shared += number(&serde_json::from_str(&told.stdout).unwrap(), "shared");
        }
        done.store(true, Ordering::Relaxed);
        let model = writer.join().unwrap();
        for (n, blocks) in model.iter().enumerate() {
            assert!(fs::read(at.join(n.to_string())).unwrap() == blocks.concat(), "file {n}");
        }
    });
    assert!(shared > 0);
    store.does(&["layer", "umount", "box"]);
    for n in 0..4 {
        assert!(fs::read(store.0.own("base").join(n.to_string())).unwrap() == base);
    }
    store.does(&["check"]).says("nothing wrong");
}

/// Layers come, are filled and go meanwhile.
fn what_goes_meanwhile_is_no_failure(store: &Store) {
    let store = Box_(store);
    layers(&store);
    store.does(&["layer", "umount", "box"]);
    let archive = store.0.sandbox.at("one.tar");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.plyfs(&["layer", "create", "--read-only", "x"]).run();
                store.plyfs(&["layer", "apply", "x", archive.to_str().unwrap()]).run();
                store.plyfs(&["layer", "rm", "x"]).run();
            }
        });
        for _ in 0..15 {
            let told = store.plyfs(&["layer", "dedup"]).run();
            let fine = told.status == 0 && told.stderr.is_empty();
            done.fetch_or(!fine, Ordering::Relaxed);
            assert!(fine, "{}", told.story());
        }
        done.store(true, Ordering::Relaxed);
    });
    store.does(&["check"]).says("nothing wrong");
}

fn a_kill_leaves_all_as_it_was(store: &Store) {
    let store = Box_(store);
    layers(&store);
    store.does(&["layer", "umount", "box"]);
    let before = told(&store);
    let mut killed = 0;
    for n in 1.. {
        let done = store.plyfs(&["layer", "dedup"]).env("PLYFS_STORE_FAULT", n.to_string()).run();
        if done.status == 0 {
            break;
        }
        assert_eq!(done.status, 128 + 9, "{}", done.story());
        killed += 1;
        store.does(&["check"]).says("nothing wrong");
    }
    assert!(killed >= 8, "killed {killed} times only");
    assert!(told(&store) == before);
    let again = dedup(&store, &[]);
    assert_eq!(number(&again, "shared"), 0, "{again}");
}

fn other_stores_stay_as_they_are(store: &Store) {
    let pair = Pair::new(store);
    let before = facts(&pair.other);
    let more = store.sandbox.dir("more");
    fs::write(more.join("data"), noise(1, MIB)).unwrap();
    let store = Box_(store);
    store.fill("one", None, &more);
    store.fill("two", None, &more);
    let option = format!("additionalimagestore={}", pair.other.display());
    let done = store.does(&["--storage-opt", &option, "layer", "dedup"]);
    done.says("1 share their blocks now");
    store
        .plyfs(&["--storage-opt", &option, "layer", "dedup", "base"])
        .exits(1)
        .complains("which is only read");
    assert!(facts(&pair.other) == before);
}

every_sharer! {
    shared, everything_is_shared_once;
    written, writers_lose_nothing;
}

some_sharers! {
    named, only_the_named_layers_are_looked_at;
    removed, what_goes_meanwhile_is_no_failure;
    killed, a_kill_leaves_all_as_it_was;
    additional, other_stores_stay_as_they_are;
}

fn a_filesystem_that_shares_nothing_is_told(store: &Store) {
    let memory = Sandbox::in_memory();
    let root = memory.at("root");
    let driver = driver_kit::open(store.driver.name(), &root);
    let store = Store { sandbox: memory, driver };
    let store = Box_(&store);
    store.does(&["layer", "create", "a"]);
    for words in [&["layer", "dedup"][..], &["layer", "dedup", "--dry-run", "a"]] {
        let done = store.plyfs(words).exits(1);
        done.complains("shared blocks: tmpfs has none; put the state directory (");
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.story());
        assert_eq!(done.stdout, "");
    }
}

every_driver! {
    refused, a_filesystem_that_shares_nothing_is_told;
}

/// A layer of three files of one content and two of another, the first two of which have an attribute of chattr(1).
fn beside_two_with(attribute: &str, refused: u64, store: &Store) {
    let store = Box_(store);
    store.does(&["layer", "create", "a"]);
    let own = store.0.own("a");
    let chattr = |how: &str| {
        Cmd::new("chattr").arg(how).arg(own.join("1")).arg(own.join("2")).succeeds();
    };
    // Copying on write can be left off for empty files only.
    if attribute == "C" {
        for name in ["1", "2"] {
            fs::write(own.join(name), "").unwrap();
        }
        chattr("+C");
    }
    for name in ["1", "2", "3", "4", "x", "y"] {
        let seed = u64::from(name > "9");
        fs::write(own.join(name), noise(seed, MIB)).unwrap();
    }
    chattr(&format!("+{attribute}"));
    let done = store.plyfs(&["layer", "dedup", "--json"]).run();
    if attribute != "C" {
        chattr(&format!("-{attribute}"));
    }
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{}", done.story());
    let told: Value = serde_json::from_str(&done.stdout).unwrap();
    let counts = ["shared", "refused", "failed"].map(|key| number(&told, key));
    assert_eq!(counts, [3, refused, 0], "{told}");
    assert!(is_shared(&own.join("x")) && is_shared(&own.join("y")));
    for name in ["1", "2", "3", "4"] {
        assert!(fs::read(own.join(name)).unwrap() == noise(0, MIB), "{name}");
    }
}

/// Immutable files stay as they are, and are no reason to leave the others.
#[test]
fn immutable_files_are_left_alone() {
    disk::with(crate::this_test!(), "xfs", "vfs", false, |store| beside_two_with("i", 1, store));
}

/// btrfs lets them share with each other, and not with others.
#[test]
fn files_without_copy_on_write_share_with_each_other() {
    disk::with(crate::this_test!(), "btrfs", "vfs", false, |store| beside_two_with("C", 0, store));
}

#[test]
fn ext4_shares_nothing() {
    disk::with(crate::this_test!(), "ext4", "vfs", false, |store| {
        let store = Box_(store);
        store.does(&["layer", "create", "a"]);
        let told = "shared blocks: ext4 has none; put the state directory";
        store.plyfs(&["layer", "dedup"]).exits(1).complains(told);
    });
}

/// What somebody has mounted in a layer that is seen as its own directory is not the layer's; what lies deep is.
#[test]
fn what_is_mounted_in_a_layer_is_left_alone() {
    disk::with(crate::this_test!(), "xfs", "vfs", false, |store| {
        use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
        let store = Box_(store);
        store.does(&["layer", "create", "a"]);
        let own = store.0.own("a");
        let inner = own.join("inner");
        fs::create_dir_all(own.join("deep/".repeat(200))).unwrap();
        fs::create_dir(&inner).unwrap();
        for at in [&own, &own.join("deep/".repeat(200))] {
            fs::write(at.join("file"), noise(1, MIB)).unwrap();
        }
        mount("none", &inner, "tmpfs", MountFlags::empty(), None).unwrap();
        for name in ["file", "file2"] {
            fs::write(inner.join(name), noise(1, MIB)).unwrap();
        }
        let done = store.plyfs(&["layer", "dedup", "--json"]).run();
        unmount(&inner, UnmountFlags::DETACH).unwrap();
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{}", done.story());
        let told: Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!((number(&told, "files"), number(&told, "shared")), (2, 1), "{told}");
    });
}
