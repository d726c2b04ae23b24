//! A disk that is really full: every operation says ENOSPC and leaves nothing, or is done; and all
//! of them work when there is room again.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use plyfs_fuse::options::RedirectDir;
use plyfs_fuse::{Options, Overlay};
use rustix::mount::{MountFlags, UnmountFlags};

use super::scenes::*;
use crate::common::core::Core;
use crate::common::model::{Model, Who};
use crate::common::mount::own_namespace;
use crate::common::ops::{Fill, Op, Target, show};
use crate::common::sandbox::Sandbox;
use crate::common::tree::{Stamp, Tree};
use crate::needs;

/// A mounted disk, unmounted on drop.
struct Disk(PathBuf);

impl Disk {
    fn tmpfs(at: PathBuf, options: &str) -> Disk {
        own_namespace();
        let data = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("tmpfs", &at, "tmpfs", MountFlags::empty(), &*data).unwrap();
        Disk(at)
    }

    /// An ext4 of 16 MiB in a file; none where that cannot be made.
    fn ext4(at: PathBuf, image: &Path) -> Option<Disk> {
        own_namespace();
        File::create(image).unwrap().set_len(16 << 20).unwrap();
        let quiet = |program: &str, args: &[&std::ffi::OsStr]| {
            let mut command = Command::new(program);
            command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        let made = quiet("mkfs.ext4", &["-q".as_ref(), "-m0".as_ref(), image.as_os_str()]);
        let mounted = made
            && quiet("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), at.as_os_str()]);
        mounted.then_some(Disk(at))
    }

    /// Fills it with data to the last byte.
    fn fill(&self) {
        let mut file = File::create(self.0.join("filler")).unwrap();
        for size in [65_536, 4096, 1] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
        file.sync_all().unwrap();
    }

    /// Uses up the inodes.
    fn crowd(&self) {
        std::fs::create_dir(self.0.join("filler")).unwrap();
        let file = |n: u32| File::create(self.0.join(format!("filler/{n}")));
        assert!((0..100_000).any(|n| file(n).is_err()), "the disk does not get full");
    }

    fn free(&self) {
        let filler = self.0.join("filler");
        if filler.is_dir() {
            std::fs::remove_dir_all(filler).unwrap();
        } else {
            std::fs::remove_file(filler).unwrap();
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn options(lowers: &[PathBuf], disk: &Disk) -> Options {
    Options {
        lowers: lowers.to_vec(),
        upper: Some(disk.0.join("upper")),
        work: Some(disk.0.join("work")),
        redirect_dir: RedirectDir::Copy,
        ..Options::default()
    }
}

fn open(lowers: &[PathBuf], disk: &Disk) -> Result<Core, plyfs_fuse::Error> {
    Overlay::open(&options(lowers, disk)).map(|fs| Core::new(Arc::new(fs)))
}

fn without_times(tree: Tree) -> Tree {
    let mut tree = tree;
    for node in tree.nodes.values_mut().filter(|node| node.meta.kind == 'd') {
        node.meta.mtime = Stamp::NOW;
    }
    tree
}

fn operations() -> Vec<Op> {
    let long = "x".repeat(600);
    vec![
        write("big", 10),
        chmod("low"),
        truncate("sparse", 60_000),
        Op::SetXattr { path: "a".into(), name: "user.long".into(), value: long, flags: 0 },
        utimes("lnk"),
        rename("low", "d/new", 0),
        rename("a", "d/g", 0),
        rename("d", "moved", 0),
        rename("w", "e", 0),
        unlink("hard1"),
        unlink("d/f"),
        rmdir("e"),
        mkdir("n"),
        create_op("m", 0),
        Op::Write { path: "m".into(), at: 0, fill: Fill { seed: 9, len: 4096 } },
        Op::Symlink { path: "l".into(), target: "t".repeat(200) },
        link("sparse", "d/sub/new"),
    ]
}

/// The overlay is open when the disk gets full.
fn works_when_full(disk: &Disk, sandbox: &Sandbox, fill: impl Fn(&Disk)) {
    let lowers = super::scene::write_layers(&super::scene::layers(true), &sandbox.at("."));
    for name in ["upper", "work"] {
        super::scene::make_dir(&disk.0.join(name)).unwrap();
    }
    let mut model = Model::merge(&super::scene::layers(true), Who::me());
    let mut core = open(&lowers, disk).unwrap();
    let early = [create_op("early", 3000), chmod("d/sub/x"), unlink("w/1"), create_op("w/u", 3)];
    for op in &early {
        assert_eq!(core.apply(op), model.apply(op), "{op}");
    }
    fill(disk);
    let mut refused = Vec::new();
    for op in operations() {
        let said = core.apply(&op);
        if said == Err(libc::ENOSPC) {
            refused.push(op.clone());
        } else {
            let expected = model.apply(&op);
            assert!(said == expected, "{op}: {} instead of {}", show(&said), show(&expected));
        }
        equal(&core, &model, &format!("full, after {op}: {}", show(&said)));
    }
    drop(core);
    assert!(!refused.is_empty(), "the disk is not full");
    deletes_when_full(disk, &lowers, &mut model);
    disk.free();
    let mut core = open(&lowers, disk).unwrap();
    for op in &refused {
        let (said, expected) = (core.apply(op), model.apply(op));
        assert!(said == expected, "{op}: {} instead of {}", show(&said), show(&expected));
        equal(&core, &model, &format!("with room again, after {op}"));
    }
    drop(core);
    equal(&open(&lowers, disk).unwrap(), &model, "with room again, reopened");
}

/// A full disk can be mounted, so that something can be deleted: what is there goes, what has to leave a
/// mark does if there is room for that.
fn deletes_when_full(disk: &Disk, lowers: &[PathBuf], model: &mut Model) {
    let mut core = open(lowers, disk).unwrap();
    equal(&core, model, "full, reopened");
    for op in [unlink("big"), unlink("early")] {
        let said = core.apply(&op);
        if op == unlink("big") && said == Err(libc::ENOSPC) {
            equal(&core, model, &format!("full, reopened, after {op}, refused"));
            continue;
        }
        let expected = model.apply(&op);
        assert!(said == expected, "{op}: {} instead of {}", show(&said), show(&expected));
        equal(&core, model, &format!("full, reopened, after {op}"));
    }
    drop(core);
    let volatile = Options { volatile: true, ..options(lowers, disk) };
    drop(Overlay::open(&volatile).unwrap());
}

fn equal(core: &Core, model: &Model, when: &str) {
    let (found, expected) =
        (without_times(core.tree().unwrap()), without_times(model.tree().unwrap()));
    assert!(found == expected, "{when}:\n{}", found.diff(&expected, ("found", "expected")));
    core.overlay().check_invariants().unwrap_or_else(|e| panic!("{when}: {e}"));
}

#[test]
fn a_full_tmpfs_refuses_whole_operations() {
    needs!(Root);
    let sandbox = Sandbox::new();
    let disk = Disk::tmpfs(sandbox.dir("disk"), "size=3m");
    works_when_full(&disk, &sandbox, Disk::fill);
}

#[test]
fn a_disk_without_inodes_refuses_whole_operations() {
    needs!(Root);
    let sandbox = Sandbox::new();
    let disk = Disk::tmpfs(sandbox.dir("disk"), "size=9m,nr_inodes=80");
    works_when_full(&disk, &sandbox, Disk::crowd);
}

#[test]
fn a_full_ext4_refuses_whole_operations() {
    needs!(Root);
    let sandbox = Sandbox::new();
    let Some(disk) = Disk::ext4(sandbox.dir("disk"), &sandbox.at("image")) else {
        eprintln!("skipped: {}: needs mkfs.ext4 and loop devices", crate::this_test!());
        return;
    };
    works_when_full(&disk, &sandbox, Disk::fill);
}
