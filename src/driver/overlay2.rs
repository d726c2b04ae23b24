//! The kernel's overlay on the overlay format.

use std::io::ErrorKind;
use std::path::Path;

use super::layered::{HOME, Layered, Trial, module_says, try_with_room};
use super::layout::Layout;
use super::options::{Config, one_id, refuse_backing, told};
use super::{Driver, Ids};
use crate::doctor::{filesystem, overlay};
use crate::error::{Context, Error, Result};
use crate::layer::Belief;
use crate::mount::plan::{self, Kind, Mount};
use crate::sys::{change, probe, tree};

pub(super) const NAME: &str = "overlay2";

/// The most lower directories the kernel takes (`OVL_MAX_STACK`).
const MOST: usize = 500;

/// Filesystems on which the kernel's overlay cannot have an upper directory, or breaks in use.
const REFUSED: [&str; 7] = ["aufs", "ecryptfs", "overlay", "nfs", "cifs", "smb", "vfat"];

/// Options that other engines know and that change nothing here.
const IGNORED: [&str; 2] = ["override_kernel_check", "skip_mount_home"];

/// Opens the driver, after it has been seen to work on the store's filesystem.
pub(super) fn open(config: &Config) -> Result<Box<dyn Driver>> {
    let settings = config.settings(NAME, &["size", "mountopt"], &IGNORED)?;
    change::make_dirs(&config.root, 0o755).on("create", &config.root)?;
    refuse_backing(NAME, &config.root, &REFUSED)?;
    // `trusted.*` is for root of the initial user namespace alone.
    let user = !tree::has_initial_privilege();
    let mut mount = Vec::new();
    if user {
        mount.push("userxattr".to_owned());
    }
    let typed = try_with_room(&config.root.join(HOME), true, || attempt(config, user, &mount))?;
    // An index forbids an upper directory whose last mount still lingers somewhere.
    if module_says("index").is_some() {
        mount.push("index=off".to_owned());
    }
    mount.extend(settings.mount);
    let metacopy = !user && module_says("metacopy") == Some(true);
    // Records that its mounts do not show are kept for the driver that does.
    let belief = Belief::kernel(uses_user(&mount)).with_records(!super::can_set_owners());
    // One deeper than a mount is: the topmost layer can be the upper directory.
    let layout = Layout::open(config.root.join(HOME), MOST, false, settings.sync)?;
    let facts = vec![
        ("Backing Filesystem", filesystem::name(&config.root)),
        ("Supports d_type", typed.to_string()),
        ("Using metacopy", metacopy.to_string()),
        ("Native Overlay Diff", true.to_string()),
        ("userxattr", user.to_string()),
        ("Sync", settings.sync.word().to_string()),
        ("Quota", told(layout.projects(), "none")),
    ];
    let (kind, most, limits) = (Kind::Overlay, MOST, settings.limits);
    let (records, meters) = (false, false);
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

/// Whether these options of a mount have it keep its marks in `user.*`.
pub(super) fn uses_user(mount: &[String]) -> bool {
    mount.iter().any(|option| option == "userxattr")
}

/// Whether its mounts can show lower layers with other ids: tried in the root of the store that a home is in.
pub(super) fn try_ids(home: &Path, options: &[String]) -> Result<()> {
    let trial = Trial::new(home.parent().unwrap_or(home))?;
    let dir = trial.path();
    overlay::make_layers(dir).on("write", dir)?;
    plan::trial(&Mount { ids: one_id(), ..mount(dir, options) }).map(drop)
}

/// A mount of layers that are tried.
fn mount(dir: &Path, options: &[String]) -> Mount {
    Mount {
        kind: Kind::Overlay,
        lowers: vec![dir.join("lower")],
        upper: Some((dir.join("upper"), dir.join("work"))),
        options: options.to_vec(),
        ids: Ids::default(),
        target: dir.join("merged"),
    }
}

/// Mounts layers of its own and does to them what a container does; whether listings have types.
pub(super) fn attempt(config: &Config, user: bool, options: &[String]) -> Result<bool> {
    let trial = Trial::new(&config.root)?;
    let dir = trial.path();
    change::point().and_then(|()| overlay::make_layers(dir)).on("write", dir)?;
    if !probe::lists_types(&dir.join("lower")).on("list", dir)? {
        let kind = filesystem::name(dir);
        let why = "listings do not say what a name is, which whiteouts need; make it anew (xfs: mkfs.xfs -n ftype=1), \
                   or use --driver vfs";
        return Err(Error::unsupported(format!("driver {NAME} on {kind}"), why));
    }
    let space = if user { "user" } else { "trusted" };
    let said = |error: std::io::Error| {
        if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            return Error::io("try the kernel's overlay", dir, error);
        }
        Error::unsupported("the kernel's overlay", format!("on {}: {error}", filesystem::name(dir)))
    };
    let attempt = match plan::trial(&mount(dir, options)) {
        // What a mount of new, empty directories is refused for lies in this host.
        Err(Error::Io { source, .. }) => return Err(said(source)),
        other => other?,
    };
    change::point().on("write", dir)?;
    overlay::work(space, attempt.path(), &dir.join("upper")).map_err(said)?;
    Ok(true)
}
