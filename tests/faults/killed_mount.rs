//! A mount whose server is killed: the next mount shows every object whole.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

use crate::common::cmd::Cmd;
use crate::common::model::Who;
use crate::common::mount::{option_text, own_namespace};
use crate::common::rng::Rng;
use crate::common::sandbox::Sandbox;
use crate::common::tree::{Node, Stamp, Tree, digest};
use crate::needs;

/// A mount and its server, gone on drop.
struct Served {
    at: PathBuf,
    pid: i32,
}

impl Served {
    /// Mounts; with `fault`, the server dies before that change on disk.
    fn mount(sandbox: &Sandbox, lowers: &[PathBuf], fault: Option<u64>) -> Served {
        own_namespace();
        let at = sandbox.merged();
        let options = option_text(lowers, Some((&sandbox.upper(), &sandbox.work())), "");
        let mut cmd = Cmd::plyfs().args(["mount", "--json", "-o", &options]).arg(&at).dir(&at);
        if let Some(n) = fault {
            cmd = cmd.env("PLYFS_FAULT", n.to_string());
        }
        let done = cmd.succeeds();
        let said: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        let pid = i32::try_from(said["pid"].as_i64().unwrap()).unwrap();
        Served { at, pid }
    }

    fn alive(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    fn kill(&self) {
        let pid = rustix::process::Pid::from_raw(self.pid).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        let _ = rustix::mount::unmount(&self.at, flags);
        let end = Instant::now() + Duration::from_secs(20);
        while self.alive() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        if self.alive() {
            eprintln!("the server {} does not end", self.pid);
            self.kill();
        }
    }
}

fn assert_no_leftovers(work: &Path) {
    let left: Vec<_> = std::fs::read_dir(work.join("work")).unwrap().flatten().collect();
    assert!(left.is_empty(), "left in the work directory: {left:?}");
}

const SIZE: usize = 200 << 20;

fn read_digest(path: &Path) -> u64 {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.len(), SIZE);
    digest(&bytes)
}

/// Writes one byte in the middle; how long it took.
fn touch(path: &Path) -> std::io::Result<Duration> {
    let start = Instant::now();
    OpenOptions::new().write(true).open(path)?.write_all_at(b"!", 12_345_678)?;
    Ok(start.elapsed())
}

#[test]
fn a_killed_copy_up_of_a_large_file_leaves_it_whole() {
    needs!(Root, Fuse);
    let sandbox = Sandbox::new();
    let lowers = [sandbox.lower(1)];
    let source = lowers[0].join("big");
    let mut bytes: Vec<u8> = Vec::with_capacity(SIZE);
    let mut word = 88_172_645_463_325_252_u64;
    while bytes.len() < SIZE {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    std::fs::write(&source, &bytes).unwrap();
    let old = digest(&bytes);
    bytes[12_345_678] = b'!';
    let new = digest(&bytes);
    drop(bytes);
    File::open(&source).unwrap().sync_all().unwrap();
    let merged = sandbox.merged().join("big");
    let upper = sandbox.upper().join("big");
    // How long it takes undisturbed.
    let served = Served::mount(&sandbox, &lowers, None);
    let whole = touch(&merged).unwrap();
    drop(served);
    let mut rng = Rng::new(u64::from(std::process::id()));
    for round in 0..5 {
        let _ = std::fs::remove_file(&upper);
        let served = Served::mount(&sandbox, &lowers, None);
        let delay = whole.mul_f64(rng.below(110) as f64 / 100.0);
        let path = merged.clone();
        let writer = std::thread::spawn(move || touch(&path).is_ok());
        std::thread::sleep(delay);
        served.kill();
        let done = writer.join().unwrap();
        drop(served);
        let served = Served::mount(&sandbox, &lowers, None);
        let found = read_digest(&merged);
        let what = format!("round {round}, killed after {delay:?} of {whole:?}, done: {done}");
        assert!(
            found == new || (found == old && !done),
            "{what}: neither the old nor the new file"
        );
        assert_no_leftovers(&sandbox.work());
        touch(&merged).unwrap();
        assert_eq!(read_digest(&merged), new, "{what}: written again");
        drop(served);
    }
    assert_eq!(digest(&std::fs::read(&source).unwrap()), old, "the lower file");
}

/// What is done through the mount.
type Deed = fn(&Path) -> std::io::Result<()>;

const DEEDS: &[(&str, Deed)] = &[
    ("write", |top| OpenOptions::new().write(true).open(top.join("low"))?.write_all_at(b"!", 5000)),
    ("chmod", |top| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(top.join("d/sub/x"), mode)
    }),
    ("unlink", |top| std::fs::remove_file(top.join("d/f"))),
    ("unlink group member", |top| std::fs::remove_file(top.join("hard1"))),
    ("rmdir", |top| std::fs::remove_dir(top.join("e"))),
    ("rename", |top| std::fs::rename(top.join("low"), top.join("d/g"))),
    ("rename directory", |top| std::fs::rename(top.join("d"), top.join("e"))),
    ("link", |top| std::fs::hard_link(top.join("a"), top.join("d/new"))),
    ("symlink", |top| std::os::unix::fs::symlink("there", top.join("d/new"))),
    ("mkdir", |top| std::fs::create_dir(top.join("d/new"))),
];

/// The tree without what a killed server may leave changed.
fn look(top: &Path, name: &str) -> Tree {
    let mut tree = Tree::read(top).unwrap_or_else(|e| panic!("{name}: {e}"));
    let strip = |(path, node): (&String, &mut Node)| {
        if node.meta.kind == 'd' || path == "low" {
            node.meta.mtime = Stamp::NOW;
        }
    };
    tree.nodes.iter_mut().for_each(strip);
    tree
}

fn clear(sandbox: &Sandbox) {
    for dir in [sandbox.upper(), sandbox.work()] {
        std::fs::remove_dir_all(&dir).unwrap();
        std::fs::create_dir(&dir).unwrap();
    }
}

#[test]
fn a_mount_killed_at_every_step_comes_back_old_or_new() {
    needs!(Root, Fuse);
    assert!(Who::me().privileged);
    let sandbox = Sandbox::new();
    let lowers = super::scene::write_layers(&super::scene::layers(false), &sandbox.at("."));
    let top = sandbox.merged();
    let mut failures = Vec::new();
    for (name, deed) in DEEDS {
        clear(&sandbox);
        let served = Served::mount(&sandbox, &lowers, None);
        let old = look(&top, name);
        deed(&top).unwrap_or_else(|e| panic!("{name}: {e}"));
        let new = look(&top, name);
        drop(served);
        for n in 1..200 {
            clear(&sandbox);
            let served = Served::mount(&sandbox, &lowers, Some(n));
            let done = deed(&top);
            if served.alive() && done.is_ok() {
                break;
            }
            drop(served);
            let served = Served::mount(&sandbox, &lowers, None);
            let found = look(&top, name);
            if found != old && found != new {
                let text = found.diff(&new, ("found", "new")) + &found.diff(&old, ("found", "old"));
                failures.push(format!("{name}, killed before change {n}:\n{text}"));
            }
            assert_no_leftovers(&sandbox.work());
            drop(served);
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn an_end_killed_at_every_step_loses_no_name_of_a_file() {
    needs!(Root, Fuse);
    let sandbox = Sandbox::new();
    let lowers = super::scene::write_layers(&super::scene::layers(false), &sandbox.at("."));
    let (top, upper) = (sandbox.merged(), sandbox.upper());
    let index = || std::fs::read_dir(sandbox.work().join("index")).unwrap().count();
    for n in 1..200 {
        clear(&sandbox);
        let served = Served::mount(&sandbox, &lowers, None);
        OpenOptions::new()
            .write(true)
            .open(top.join("hard1"))
            .unwrap()
            .write_all_at(b"!", 5)
            .unwrap();
        let new = look(&top, "written");
        served.kill();
        drop(served);
        // Nothing is changed but by its end.
        drop(Served::mount(&sandbox, &lowers, Some(n)));
        let left = index();
        let served = Served::mount(&sandbox, &lowers, None);
        assert!(look(&top, "mounted again") == new, "killed at step {n}");
        drop(served);
        assert_eq!(index(), 0, "killed at step {n}");
        let file = |name: &str| {
            let found = std::fs::metadata(upper.join(name)).unwrap();
            (
                std::os::unix::fs::MetadataExt::ino(&found),
                std::os::unix::fs::MetadataExt::nlink(&found),
            )
        };
        let first = file("hard1");
        assert_eq!(
            (first.1, file("d/hard2"), file("hard3")),
            (3, first, first),
            "killed at step {n}"
        );
        if left == 0 {
            assert!(n > 10, "it was killed at {n} steps");
            return;
        }
    }
    panic!("it does not end");
}
