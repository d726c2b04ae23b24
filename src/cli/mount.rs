//! `plyfs mount`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plyfs_fuse::Options;
use plyfs_fuse::options::OptionError;

use super::Failure;
use crate::error::Error;
use crate::mount::serve::{self, Lifetime};
use crate::sys;

const EXAMPLES: &str = "\
Examples:
  plyfs mount -o lowerdir=/a:/b,upperdir=/u,workdir=/w /mnt   /a over /b, changes go to /u
  plyfs mount -o lowerdir=/a:/b /mnt                          both read-only
  plyfs mount -o lowerdir=/a,upperdir=/u,workdir=/w,volatile -f /mnt

Options are those of the kernel's overlay and of fuse-overlayfs: lowerdir (top first, \\: is a
colon, :: starts data-only layers), upperdir, workdir (on the same filesystem as upperdir),
userxattr, redirect_dir=on|off|auto|copy, metacopy=on|off, volatile, fsync=0|1, timeout=SECONDS (0 shows
changes made to the layers from outside), uidmapping, gidmapping, lower_uidmapping and
lower_gidmapping (of lower layers alone, as root), squash_to_root, squash_to_uid, squash_to_gid, xattr_permissions=0|1|2, io=auto|handleless|passthrough|handles,
static_nlink, noacl, noxattrs,
transport=auto|ring|classic (ring: FUSE over io_uring or no mount; auto: where it is offered), ro,
allow_other, and the usual words of mount(8). -o remount changes ro, nosuid, nodev, noexec, noatime and
sync of a mount that is there.";

/// Mount directories on top of one another
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Options separated by commas; may be given several times
    #[arg(short = 'o', value_name = "LIST")]
    options: Vec<OsString>,
    /// Serve in this process instead of a detached one
    #[arg(short, long)]
    foreground: bool,
    /// Tell, when the mount is gone, what serving it took; implies --foreground. On USR1 a server logs
    /// the same at any time
    #[arg(long)]
    stats: bool,
    /// Print what was mounted as one JSON document
    #[arg(long)]
    json: bool,
    /// Where to show the merged tree
    mountpoint: PathBuf,
}

/// Mounts; returns when the mount answers, in the foreground when it is gone.
pub fn run(args: &Args) -> Result<(), Failure> {
    if remount(&args.options, &args.mountpoint)? {
        return Ok(());
    }
    let mut options = parse(&join(&args.options)).map_err(Failure::usage)?;
    name(&mut options, "plyfs");
    options.warnings.iter().for_each(|text| super::warn(text));
    let (options, mountpoint) = serve::absolute(options, &args.mountpoint)?;
    let document = |pid: u32| {
        serde_json::json!({
            "mountpoint": mountpoint.to_string_lossy(),
            "source": options.mount.fsname,
            "type": options.mount.subtype.as_ref().map(|subtype| format!("fuse.{subtype}")),
            "pid": pid,
        })
    };
    let print = |pid: u32| {
        if args.json { super::print(format!("{}\n", document(pid)).as_bytes()) } else { Ok(()) }
    };
    if args.foreground || args.stats || options.mount.debug {
        let start = Instant::now();
        let ready = || print(std::process::id());
        let counters = serve::foreground(options.clone(), &mountpoint, ready)?;
        if args.stats {
            super::tell(&stats(start.elapsed(), &sys::usage()));
            super::tell(&counters.to_string());
        }
    } else {
        let server = serve::start(options.clone(), &mountpoint, Lifetime::Detached)?;
        print(server.id().unsigned_abs())?;
    }
    Ok(())
}

fn stats(mounted: Duration, usage: &sys::Usage) -> String {
    format!(
        "mounted {:.1} s, user {:.2} s, system {:.2} s, memory {:.1} MiB at most",
        mounted.as_secs_f64(),
        usage.user.as_secs_f64(),
        usage.system.as_secs_f64(),
        usage.peak_memory as f64 / f64::from(1 << 20),
    )
}

/// Changes the flags of a mount when the lists ask for that; whether they did.
pub(super) fn remount(lists: &[OsString], target: &Path) -> crate::Result<bool> {
    let list = join(lists);
    if !Options::words(&list).iter().any(|word| word == "remount") {
        return Ok(false);
    }
    crate::mount::remount(target, &list)?.iter().for_each(|text| super::warn(text));
    Ok(true)
}

/// One list of several; later options win.
pub(super) fn join(lists: &[OsString]) -> OsString {
    lists.join(&OsString::from(","))
}

/// Options that make a mount together, or what is wrong with them.
pub(super) fn parse(list: &OsString) -> crate::Result<Options> {
    let wrong =
        |error: OptionError| Error::invalid(format!("option '{}'", error.option), error.why);
    let options = Options::parse(list).map_err(wrong)?;
    options.validate().map_err(wrong)?;
    Ok(options)
}

/// Gives the mount the source and the subtype `name`, unless the options name others.
pub(super) fn name(options: &mut Options, name: &str) {
    options.mount.fsname.get_or_insert_with(|| name.to_owned());
    options.mount.subtype.get_or_insert_with(|| name.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_joined_and_later_ones_win() {
        let lists = ["lowerdir=/a,fsname=x", "fsname=y"].map(OsString::from);
        let mut options = parse(&join(&lists)).unwrap();
        name(&mut options, "plyfs");
        assert_eq!(options.mount.fsname.as_deref(), Some("y"));
        assert_eq!(options.mount.subtype.as_deref(), Some("plyfs"));
    }

    #[test]
    fn a_mount_needs_a_lower() {
        let error = parse(&OsString::from("upperdir=/u,workdir=/w")).unwrap_err();
        assert!(error.to_string().starts_with("option 'lowerdir': missing"), "{error}");
    }
}
