//! Our own overlay, over FUSE, on the overlay format.

use std::io::ErrorKind;
use std::path::Path;

use super::Driver;
use super::layered::{HOME, Layered, Trial, try_with_room};
use super::layout::Layout;
use super::options::{Config, refuse_backing, told};
use super::overlay2::uses_user;
use crate::doctor::{filesystem, namespace};
use crate::error::{Context, Error, Result};
use crate::layer::Belief;
use crate::mount::plan::{self, Kind};
use crate::sys::{self, change, context, probe, tree};

pub(super) const NAME: &str = "fuse-overlay";

/// The most layers below one: a descriptor each in the server, and a record that lists them all.
const MOST: usize = 2000;

/// Filesystems that keep no owners and modes, or no names of ours.
const REFUSED: [&str; 3] = ["vfat", "ecryptfs", "aufs"];

/// Opens the driver, after FUSE has been seen to work.
pub(super) fn open(config: &Config) -> Result<Box<dyn Driver>> {
    let settings = config.settings(NAME, &["size", "mountopt"], &[])?;
    change::make_dirs(&config.root, 0o755).on("create", &config.root)?;
    refuse_backing(NAME, &config.root, &REFUSED)?;
    attempt()?;
    let typed = try_with_room(&config.root.join(HOME), true, || {
        let trial = Trial::new(&config.root)?;
        change::make_dir(&trial.path().join("d"), 0o700)
            .and_then(|()| probe::lists_types(trial.path()))
            .on("list", trial.path())
    })?;
    let records = !super::can_set_owners();
    let mut mount = Vec::new();
    if records {
        mount.push("xattr_permissions=2".to_owned());
    }
    mount.extend(settings.mount);
    let user = uses_user(&mount) || !tree::has_initial_privilege();
    let recorded = mount.iter().rev().find_map(|option| option.strip_prefix("xattr_permissions="));
    let belief = Belief::fuse(user).with_records(recorded == Some("2"));
    let layout = Layout::open(config.root.join(HOME), MOST, records, settings.sync)?;
    let facts = vec![
        ("Backing Filesystem", filesystem::name(&config.root)),
        ("Supports d_type", typed.to_string()),
        ("Native Overlay Diff", true.to_string()),
        ("Owners kept in attributes", records.to_string()),
        ("Sync", settings.sync.word().to_string()),
        ("Quota", told(layout.projects(), "bytes and inodes, kept by the mount")),
    ];
    let (kind, most, limits, meters) = (Kind::Fuse, MOST + 1, settings.limits, true);
    let additional = Vec::new();
    let driver = Layered {
        name: NAME,
        kind,
        layout,
        most,
        records,
        belief,
        limits,
        meters,
        mount,
        facts,
        additional,
    };
    Ok(Box::new(driver.checked(config)?))
}

/// Makes a filesystem and lets it go; an ordinary user needs the helper that may.
fn attempt() -> Result<()> {
    let refused = |why: String| Err(Error::unsupported("FUSE", why));
    let error = match context::try_fuse() {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    if let Some(why) = no_device() {
        return refused(why);
    }
    if !sys::is_root() {
        return match namespace::program("fusermount3") {
            Some(_) => Ok(()),
            None => refused("an ordinary user needs fusermount3 to mount".to_owned()),
        };
    }
    // A filter may forbid the newer calls alone. The old one lacks what it needs and makes no mount.
    let error = match sys::is(&error, sys::ENOSYS) || sys::is(&error, sys::EPERM) {
        true => probe::mount("fuse", "plyfs", Path::new("/"), "").err(),
        false => Some(error),
    };
    match error {
        Some(error) if sys::is(&error, sys::EPERM) => refused(plan::MAY_NOT_MOUNT.to_owned()),
        Some(error) if !sys::is(&error, sys::EINVAL) => refused(format!("mount: {error}")),
        _ => Ok(()),
    }
}

/// What is wrong with the device, and what to do about it.
fn no_device() -> Option<String> {
    let device = Path::new("/dev/fuse");
    let advice = match std::fs::File::options().read(true).write(true).open(device) {
        Ok(_) if probe::is_device(device, 10, 229).is_ok_and(|is| is) => return None,
        Ok(_) => return Some(format!("{} is not the FUSE device", device.display())),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            format!("{error}; users may open it where its mode is 0666")
        }
        Err(error) => format!("{error}; load the module fuse, or make the device"),
    };
    Some(format!("open {}: {advice}", device.display()))
}
