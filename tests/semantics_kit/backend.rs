//! What is mounted: plyfs, or a peer that shows whether a test asks for the right thing.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::{Mode, Stack};

/// The filesystem under test, chosen by `PLYFS_TEST_BACKEND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Plyfs,
    Kernel,
    FuseOverlayfs,
}

impl Backend {
    pub fn chosen() -> Backend {
        match std::env::var("PLYFS_TEST_BACKEND").as_deref() {
            Ok("kernel") => Backend::Kernel,
            Ok("fuse-overlayfs") => Backend::FuseOverlayfs,
            Ok("plyfs") | Err(_) => Backend::Plyfs,
            Ok(other) => panic!("PLYFS_TEST_BACKEND={other}"),
        }
    }

    /// Mounts `stack`; the text of a failure is what the program said.
    pub fn mount(self, stack: &Stack, mode: Mode) -> Result<(), String> {
        match self {
            Backend::Kernel => kernel(stack, mode).map_err(|error| error.to_string()),
            Backend::Plyfs | Backend::FuseOverlayfs => said(&mut self.command(stack)),
        }
    }

    /// The command that mounts `stack`.
    pub fn command(self, stack: &Stack) -> Command {
        let mut command = self.program();
        if self == Backend::Plyfs {
            command.arg("mount");
        }
        command.arg("-o").arg(list(stack)).arg(&stack.point);
        command
    }

    /// The program itself, without words.
    pub fn program(self) -> Command {
        match self {
            Backend::FuseOverlayfs => Command::new("fuse-overlayfs"),
            _ => Command::new(plyfs()),
        }
    }
}

/// The program under test.
pub fn plyfs() -> PathBuf {
    std::env::var_os("PLYFS_SEMANTICS_BIN").map(PathBuf::from).expect("PLYFS_SEMANTICS_BIN")
}

/// Runs a command that leaves a daemon behind; its standard error is the failure.
pub fn said(command: &mut Command) -> Result<(), String> {
    let said = std::env::var_os("PLYFS_SEMANTICS_DIR").map(PathBuf::from).unwrap_or_default();
    let said = said.join("said");
    let output = File::create(&said).map_err(|error| error.to_string())?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
    let status = command.status().map_err(|error| format!("{command:?}: {error}"))?;
    let text = std::fs::read_to_string(&said).unwrap_or_default();
    let _ = std::fs::remove_file(&said);
    if status.success() { Ok(()) } else { Err(format!("{status}: {text}")) }
}

/// Options that all mounts of plyfs are to have, for another run of all tests.
fn common_options() -> String {
    std::env::var("PLYFS_TEST_OPTIONS").unwrap_or_default()
}

/// Whether those ask for what only root may have.
pub fn asks_for_privilege() -> bool {
    common_options().contains("io=passthrough")
}

fn escaped(path: &Path) -> String {
    let text = path.to_str().expect("layer paths of tests are text");
    text.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

/// The `-o` list of a stack.
pub fn list(stack: &Stack) -> String {
    let lowers: Vec<_> = stack.lowers.iter().map(|x| escaped(x)).collect();
    let mut list = format!("lowerdir={}", lowers.join(":"));
    for data in &stack.data {
        list.push_str("::");
        list.push_str(&escaped(data));
    }
    if let Some((upper, work)) = &stack.upper {
        list.push_str(&format!(",upperdir={},workdir={}", escaped(upper), escaped(work)));
    }
    // A live view reads files anew at each open, which the other ways of I/O do not.
    let live = stack.options.split(',').any(|word| word == "timeout=0");
    let common = common_options();
    let common = common.split(',').filter(|word| !live || !word.starts_with("io="));
    for word in common.chain([stack.options.as_str()]).filter(|word| !word.is_empty()) {
        list.push(',');
        list.push_str(word);
    }
    list
}

/// Mounts with the kernel's overlay, directory renames on where it can.
pub fn kernel(stack: &Stack, mode: Mode) -> io::Result<()> {
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &Path| fsconfig_set_string(overlay.as_fd(), key, value);
    for lower in &stack.lowers {
        set("lowerdir+", lower)?;
    }
    for data in &stack.data {
        set("datadir+", data)?;
    }
    if let Some((upper, work)) = &stack.upper {
        set("upperdir", upper)?;
        set("workdir", work)?;
    }
    let mut options: Vec<&str> = stack.options.split(',').filter(|x| !x.is_empty()).collect();
    if mode == Mode::Rootless {
        // It never follows redirects, and refuses to hear of them.
        options.retain(|x| *x != "redirect_dir=off");
        options.push("userxattr");
    } else if !stack.options.contains("redirect_dir") && stack.upper.is_some() {
        options.push("redirect_dir=on");
    }
    for option in options {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(overlay.as_fd(), key, value)?,
            None => fsconfig_set_flag(overlay.as_fd(), option)?,
        }
    }
    fsconfig_create(overlay.as_fd())?;
    let mount = fsmount(overlay.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mount.as_fd(), "", CWD, &stack.point, flags)?;
    Ok(())
}
