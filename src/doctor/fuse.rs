//! Whether a FUSE filesystem can be mounted, and what the kernel offers it.
//!
//! A trial mounts, reads the kernel's first request, answers it, and takes the mount away; no other
//! request is waited for, and closing the device ends whatever hangs on the mount.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::scratch::Scratch;
use super::trial::{Answers, reason, while_doing};
use super::{Standing, namespace};
use crate::error::{Context, Result};
use crate::sys::{self, probe};

const DEVICE: &str = "/dev/fuse";
const KERNEL: [&str; 4] = ["fuse.mount", "fuse.protocol", "fuse.passthrough", "fuse.io_uring"];
const FUSERMOUNT: &str = "fusermount3";

/// The first request comes at once or not at all.
const FIRST_REQUEST: Duration = Duration::from_secs(2);
/// The smallest buffer the kernel gives requests to (`FUSE_MIN_READ_BUFFER`).
const BUFFER: usize = 8192;
const HEADER: usize = 40;
const FUSE_INIT: u32 = 26;
const FUSE_INIT_EXT: u64 = 1 << 30;
const FUSE_PASSTHROUGH: u64 = 1 << 37;
const FUSE_OVER_IO_URING: u64 = 1 << 41;

/// Tries it.
pub(super) fn probe(standing: Standing, scratch: &Scratch, answers: &mut Answers) -> Result<()> {
    answers.tried("fuse.device", &open());
    answers.say_allow_other();
    if !answers.is("fuse.device") {
        let why = format!("{DEVICE}: {}", answers.why("fuse.device"));
        KERNEL.iter().for_each(|key| answers.say(key, false, why.as_str()));
        return try_fusermount(standing, scratch, answers);
    }
    let enter =
        if standing == Standing::User { namespace::enter_user } else { namespace::enter_mounts };
    let target = scratch.dir("fuse").on("create a mountpoint in", "the state directory")?;
    answers.trial(&KERNEL, |answers| match enter().and_then(|()| mount(&target)) {
        Ok(device) => {
            let how = if standing == Standing::User { "in a user namespace" } else { "" };
            met(device, standing, how, answers);
            leave(&target);
        }
        Err(error) => refused(&reason(&error), answers),
    })?;
    try_fusermount(standing, scratch, answers)
}

impl Answers {
    fn say_allow_other(&mut self) {
        let conf = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
        match conf.lines().any(|line| line.trim() == "user_allow_other") {
            true => self.say("fuse.user_allow_other", true, "set in /etc/fuse.conf"),
            false => self.say("fuse.user_allow_other", false, "not set in /etc/fuse.conf"),
        }
    }
}

/// Opens the device.
fn open() -> io::Result<File> {
    let device = File::options().read(true).write(true).open(DEVICE)?;
    match probe::is_device(Path::new(DEVICE), 10, 229)? {
        true => Ok(device),
        false => Err(io::Error::other("not the FUSE device")),
    }
}

/// Mounts by the system call.
fn mount(target: &Path) -> io::Result<File> {
    let device = open()?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    probe::mount("fuse", "plyfs-doctor", target, &options).map_err(|e| while_doing("mount", &e))?;
    Ok(device)
}

fn leave(target: &Path) {
    if let Err(error) = sys::unmount(target, true) {
        log::warn!("unmount {}: {error}", target.display());
    }
}

fn refused(why: &str, answers: &mut Answers) {
    KERNEL.iter().for_each(|key| answers.say(key, false, "needs a working mount"));
    answers.say("fuse.mount", false, why);
}

/// Notes what the kernel's first request says and allows.
fn met(mut device: File, standing: Standing, how: &str, answers: &mut Answers) {
    let hello = match Hello::read(&mut device) {
        Ok(hello) => hello,
        Err(error) => return refused(&format!("mounts, but {}", reason(&error)), answers),
    };
    answers.say("fuse.mount", true, how);
    answers.say(
        "fuse.protocol",
        true,
        format!("{}.{}, flags {:#x}", hello.major, hello.minor, hello.flags),
    );
    passthrough(&hello, &mut device, standing, answers);
    if hello.flags & FUSE_OVER_IO_URING == 0 {
        let enabled = std::fs::read_to_string("/sys/module/fuse/parameters/enable_uring");
        let why = match enabled.as_deref().map(str::trim) {
            Ok("N" | "0") => "the fuse module's parameter enable_uring is N; root may set it to Y",
            _ => "not offered by this kernel",
        };
        return answers.say("fuse.io_uring", false, why);
    }
    match probe::io_uring() {
        Ok(()) => {
            answers.say("fuse.io_uring", true, "offered, and rings can be made: mounts use them")
        }
        Err(error) => {
            answers.say("fuse.io_uring", false, format!("offered, but no ring: {}", reason(&error)))
        }
    }
}

fn passthrough(hello: &Hello, device: &mut File, standing: Standing, answers: &mut Answers) {
    if hello.flags & FUSE_PASSTHROUGH == 0 {
        return answers.say("fuse.passthrough", false, "not offered by this kernel");
    }
    if standing != Standing::Root {
        let why = "needs CAP_SYS_ADMIN in the initial user namespace";
        return answers.say("fuse.passthrough", false, why);
    }
    let tried = hello.answer(device).and_then(|()| {
        // Any regular file on a filesystem that is no stack itself will do; ours is at hand.
        let file = File::open("/proc/self/exe")?;
        probe::fuse_backing(device.as_fd(), &file)
    });
    answers.tried("fuse.passthrough", &tried);
}

/// The kernel's first request (struct fuse_init_in, linux/fuse.h).
struct Hello {
    unique: [u8; 8],
    major: u32,
    minor: u32,
    flags: u64,
}

impl Hello {
    fn read(device: &mut File) -> io::Result<Hello> {
        if !probe::wait_readable(&*device, FIRST_REQUEST)? {
            return Err(io::Error::other("the kernel says nothing"));
        }
        let mut buffer = [0; BUFFER];
        let length = device.read(&mut buffer)?;
        let request = buffer.get(..length).unwrap_or_default();
        Hello::parse(request)
            .ok_or_else(|| io::Error::other("the kernel's first request is not understood"))
    }

    fn parse(request: &[u8]) -> Option<Hello> {
        let word = |at: usize| {
            let bytes = request.get(at..at.checked_add(4)?)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        if word(4)? != FUSE_INIT {
            return None;
        }
        let low = u64::from(word(HEADER + 12)?);
        let high = if low & FUSE_INIT_EXT != 0 { u64::from(word(HEADER + 16)?) } else { 0 };
        Some(Hello {
            unique: request.get(8..16)?.try_into().ok()?,
            major: word(HEADER)?,
            minor: word(HEADER + 4)?,
            flags: low | high << 32,
        })
    }

    /// Takes passthrough and nothing else (struct fuse_init_out).
    fn answer(&self, device: &mut File) -> io::Result<()> {
        let flags = FUSE_INIT_EXT | FUSE_PASSTHROUGH;
        let [low, high] =
            [flags, flags >> 32].map(|half| u32::try_from(half & 0xffff_ffff).unwrap_or(0));
        let max_write = 4096_u32;
        let stack_depth = 1_u32;
        let mut body = Vec::new();
        // major, minor, max_readahead, flags, max_background and congestion_threshold, max_write,
        // time_gran, max_pages and map_alignment, flags2, max_stack_depth, then unused words.
        for word in [self.major, self.minor, 0, low, 0, max_write, 1, 0, high, stack_depth] {
            body.extend_from_slice(&word.to_ne_bytes());
        }
        body.resize(64, 0);
        let mut reply = Vec::new();
        reply.extend_from_slice(&80_u32.to_ne_bytes());
        reply.extend_from_slice(&0_i32.to_ne_bytes());
        reply.extend_from_slice(&self.unique);
        reply.extend_from_slice(&body);
        device.write_all(&reply)
    }
}

/// Mounts by the helper, which needs no namespace.
fn try_fusermount(standing: Standing, scratch: &Scratch, answers: &mut Answers) -> Result<()> {
    let Some(helper) = namespace::program(FUSERMOUNT) else {
        answers.say("fuse.fusermount", false, "not installed");
        return Ok(());
    };
    if standing != Standing::User {
        answers.leave("fuse.fusermount", format!("{}, not needed as root", helper.display()));
        return Ok(());
    }
    if !Path::new("/etc/mtab").exists() {
        // It would mount, and then nobody but root could unmount.
        answers.say("fuse.fusermount", false, "it cannot unmount: /etc/mtab is missing");
        return Ok(());
    }
    let target = scratch.dir("fusermount").on("create a mountpoint in", "the state directory")?;
    answers.trial(&["fuse.fusermount"], |answers| {
        let met = help(&helper, &target).and_then(|fd| Hello::read(&mut File::from(fd)));
        answers.tried("fuse.fusermount", &met);
    })?;
    // The mount is in our own namespace: it has to go even when the trial was killed.
    let gone =
        Command::new(&helper).args(["-u", "-q", "-z"]).arg(&target).stderr(Stdio::null()).status();
    if let Err(error) = gone {
        log::debug!("{}: {error}", helper.display());
    }
    Ok(())
}

/// Lets the helper mount; it sends the device over the socket it has as standard input.
fn help(helper: &Path, target: &Path) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(FIRST_REQUEST))?;
    let output = Command::new(helper)
        .args(["-o", "rw,nosuid,nodev,fsname=plyfs-doctor", "--"])
        .arg(target)
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        return Err(io::Error::other(if said.is_empty() { "it refused".to_owned() } else { said }));
    }
    probe::receive_fd(&ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, words: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
        words.iter().for_each(|word| bytes.extend_from_slice(&word.to_ne_bytes()));
        bytes
    }

    #[test]
    fn the_first_request_is_read() {
        let words = [7, 45, 0, 1 << 30 | 1, 1 << 5, 0];
        let hello = Hello::parse(&request(FUSE_INIT, &words)).unwrap();
        assert_eq!((hello.major, hello.minor), (7, 45));
        assert_eq!(hello.flags, 1 << 37 | 1 << 30 | 1);
        let old = Hello::parse(&request(FUSE_INIT, &[7, 31, 0, 1])).unwrap();
        assert_eq!(old.flags, 1);
        assert!(Hello::parse(&request(1, &words)).is_none());
        assert!(Hello::parse(&[0; 20]).is_none());
    }
}
