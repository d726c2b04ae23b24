//! Our own overlay, over FUSE, on the overlay format.

use std::path::Path;

use super::Driver;
use super::layered::{HOME, Layered, Trial};
use super::layout::Layout;
use super::options::{Config, refuse_backing};
use crate::doctor::{filesystem, namespace};
use crate::error::{Context, Error, Result};
use crate::mount::plan::Kind;
use crate::sys::{self, change, context, probe};

pub(super) const NAME: &str = "fuse-overlay";

/// The most layers below one: a descriptor each in the server, and a record that lists them all.
const MOST: usize = 2000;

/// Filesystems that keep no owners and modes, or no names of ours.
const REFUSED: [&str; 3] = ["vfat", "ecryptfs", "aufs"];

/// Opens the driver, after FUSE has been seen to work.
pub(super) fn open(config: &Config) -> Result<Box<dyn Driver>> {
    let settings = config.settings(NAME, &["size", "mountopt"], &[])?;
    change::make_dirs(&config.root, 0o777).on("create", &config.root)?;
    refuse_backing(NAME, &config.root, &REFUSED)?;
    attempt()?;
    let trial = Trial::new(&config.root)?;
    let typed = change::make_dir(&trial.path().join("d"), 0o700)
        .and_then(|()| probe::lists_types(trial.path()))
        .on("list", trial.path())?;
    let records = !super::can_set_owners();
    let mut mount = Vec::new();
    if records {
        mount.push("xattr_permissions=2".to_owned());
    }
    mount.extend(settings.mount);
    let facts = vec![
        ("Backing Filesystem", filesystem::name(&config.root)),
        ("Supports d_type", typed.to_string()),
        ("Native Overlay Diff", true.to_string()),
        ("Owners kept in attributes", records.to_string()),
        ("Quota", "bytes and inodes, kept by the mount".to_owned()),
    ];
    let layout = Layout::open(config.root.join(HOME), MOST, records)?;
    let (kind, most, limits) = (Kind::Fuse, MOST + 1, Some(settings.limits));
    Ok(Box::new(Layered { name: NAME, kind, layout, most, records, limits, mount, facts }))
}

/// Makes a filesystem and lets it go; an ordinary user needs the helper that may.
fn attempt() -> Result<()> {
    let refused = |why: String| Err(Error::unsupported("FUSE", why));
    let error = match context::try_fuse() {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    let device = Path::new("/dev/fuse");
    if let Err(error) = std::fs::File::options().read(true).write(true).open(device) {
        return refused(format!(
            "open {}: {error}; load the module fuse, or make the device",
            device.display()
        ));
    }
    let helped = namespace::program("fusermount3").is_some();
    if sys::is_root() && !(sys::is(&error, sys::ENOSYS) || sys::is(&error, sys::EPERM)) {
        return refused(format!("mount: {error}"));
    }
    if !sys::is_root() && !helped {
        return refused("an ordinary user needs fusermount3 to mount".to_owned());
    }
    if sys::is_root() && sys::is(&error, sys::EPERM) && !helped {
        return refused("this user namespace may not mount".to_owned());
    }
    Ok(())
}
