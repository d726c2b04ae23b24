//! `plyfs umount`.

use std::path::PathBuf;

/// Take a plyfs mount away
///
/// Ordinary users unmount what they mounted; fusermount3 does it for them where the system does not
/// let them. Returns when the mount is gone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  plyfs umount /mnt")]
pub struct Args {
    /// Detach at once, even while processes still use the mount
    #[arg(short, long)]
    lazy: bool,
    /// Where it is mounted
    mountpoint: PathBuf,
}

/// Unmounts.
pub fn run(args: &Args) -> crate::Result<()> {
    crate::mount::unmount(&args.mountpoint, args.lazy)
}
