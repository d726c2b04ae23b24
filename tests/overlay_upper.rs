//! Upper filesystems that lack something.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use plyfs_fuse::options::Namespace;
use plyfs_fuse::{Options, Overlay};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::common::mount::own_namespace;
use crate::common::rootless;
use crate::common::sandbox::Sandbox;
use crate::{needs, this_test};

/// A ramfs, which has no extended attributes; unmounted on drop.
struct Ram(PathBuf);

impl Ram {
    fn mount(at: PathBuf) -> Ram {
        own_namespace();
        let none = CString::default();
        rustix::mount::mount("ramfs", &at, "ramfs", MountFlags::empty(), &*none).unwrap();
        for name in ["upper", "work"] {
            std::fs::create_dir(at.join(name)).unwrap();
        }
        Ram(at)
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn options(lower: &Path, upper: &Path) -> Options {
    Options {
        lowers: vec![lower.to_owned()],
        upper: Some(upper.join("upper")),
        work: Some(upper.join("work")),
        ..Options::default()
    }
}

fn refusal(options: Options) -> String {
    Overlay::open(&options).map(drop).unwrap_err().to_string()
}

#[test]
fn a_namespace_that_was_asked_for_and_cannot_be_had_refuses_the_mount() {
    needs!(Root);
    let sandbox = Sandbox::new();
    let lower = sandbox.lower(1);
    let ram = Ram::mount(sandbox.dir("ram"));
    for (namespace, word) in [(Namespace::User, "userxattr"), (Namespace::Trusted, "nouserxattr")] {
        let said = refusal(Options { namespace, ..options(&lower, &ram.0) });
        assert!(said.contains(&format!("{word} was given")), "{said}");
    }
    Overlay::open(&options(&lower, &ram.0)).unwrap();
}

#[test]
fn trusted_attributes_are_refused_to_an_ordinary_user() {
    needs!(UserNs);
    if rootless::run(this_test!()) {
        return;
    }
    let sandbox = Sandbox::new();
    let lower = sandbox.lower(1);
    for name in ["upper", "work"] {
        std::fs::create_dir_all(sandbox.at(name)).unwrap();
    }
    let asked = Options { namespace: Namespace::Trusted, ..options(&lower, &sandbox.at(".")) };
    let read_only = Options { upper: None, work: None, ..asked.clone() };
    for options in [asked, read_only] {
        let said = refusal(options);
        assert!(said.contains("nouserxattr was given"), "{said}");
    }
}
