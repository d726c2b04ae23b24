//! Ids in a new user namespace: the caller's own as 0, and above it the whole range that
//! `/etc/subuid` and `/etc/subgid` give the caller, so that what needs many ids (a package manager)
//! works. Without such a range, or without the set-id programs that map it, 0 alone.
//!
//! Only a process outside the namespace may map a range. So the one that enters asks through a door:
//! one byte out, one byte back.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

use crate::error::{Context, Error, Result};
use crate::sys::{self, Child};

const NEEDED: u8 = b'u';
const NOT_NEEDED: u8 = b'n';
const MAPPED: u8 = b'y';
const NOT_MAPPED: u8 = b'-';

/// Which ids mean something to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ids {
    /// Those of the system or of a range.
    Many,
    /// 0 alone: what belongs to anybody else is out of reach, whatever its mode.
    One,
}

/// The entering process's way to the one that stays outside.
pub(super) struct Door {
    ask: File,
    answer: File,
}

/// A new process with a door to us, which we attend until it has asked.
pub(super) fn fork_with_door(child: impl FnOnce(Door) -> u8) -> Result<Child> {
    let (asks, ask) = sys::pipe().on("pipe", "")?;
    let (answer, answers) = sys::pipe().on("pipe", "")?;
    let mut ours = Some((asks, answers));
    let mut door = Some(Door { ask, answer });
    let forked = sys::fork(|| {
        // The copies of our ends must go, or the door would never be seen to close.
        drop(ours.take());
        door.take().map_or(1, child)
    })
    .on("fork", "")?;
    drop(door);
    if let Some((asks, answers)) = ours {
        attend(&forked, asks, answers);
    }
    Ok(forked)
}

/// Waits for the question and answers it. A child that died has closed the door, and says so by its
/// status.
fn attend(child: &Child, mut asks: File, mut answers: File) {
    let mut question = [0];
    if !matches!(asks.read(&mut question), Ok(1)) || question != [NEEDED] {
        return;
    }
    let answer = match map_ranges(child) {
        Ok(true) => MAPPED,
        Ok(false) => NOT_MAPPED,
        Err(error) => {
            log::debug!("map subordinate ids: {error}");
            NOT_MAPPED
        }
    };
    if let Err(error) = answers.write_all(&[answer]) {
        log::debug!("answer the keeper: {error}");
    }
}

impl Door {
    /// No ids are needed: the process stays in the user namespace it is in.
    pub(super) fn pass(self) -> Result<Ids> {
        (&self.ask).write_all(&[NOT_NEEDED]).on("write", "pipe")?;
        Ok(Ids::Many)
    }

    /// Enters a new user namespace, where the process has all capabilities and user id 0.
    pub(super) fn enter(self) -> Result<Ids> {
        let (uid, gid) = sys::real_ids();
        sys::unshare(sys::CLONE_NEWUSER).map_err(|error| {
            Error::unsupported("user namespace", format!("the system refuses a new one: {error}"))
        })?;
        (&self.ask).write_all(&[NEEDED]).on("write", "pipe")?;
        let mut answer = [0];
        (&self.answer).read_exact(&mut answer).on("read", "pipe")?;
        if answer == [MAPPED] {
            return Ok(Ids::Many);
        }
        // The kernel lets a process without privilege map its own ids, one each, once it has given
        // up the right to drop groups.
        let lines = [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("0 {uid} 1")),
            ("gid_map", format!("0 {gid} 1")),
        ];
        for (file, line) in lines {
            let path = format!("/proc/self/{file}");
            std::fs::write(&path, line).on("write", &path)?;
        }
        Ok(Ids::One)
    }
}

/// Calls `work` in a process that has all our ids, subordinate ones included.
pub(super) fn with_mapped_ids(work: impl FnOnce()) -> Result<()> {
    let child = fork_with_door(|door| {
        let entered = if sys::is_root() { door.pass() } else { door.enter() };
        match entered {
            Ok(_) => work(),
            Err(error) => log::warn!("{error}"),
        }
        0
    })?;
    child.wait().on("wait", "")?;
    Ok(())
}

/// Maps the caller's own id and its subordinate ranges; false when there are none.
fn map_ranges(child: &Child) -> Result<bool> {
    let (uid, gid) = sys::real_ids();
    let name = user_name(uid);
    let subordinate = |path: &str| match std::fs::read_to_string(path) {
        Ok(text) => Ok(ranges(&text, uid, name.as_deref())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io("read", path, error)),
    };
    let (users, groups) = (subordinate("/etc/subuid")?, subordinate("/etc/subgid")?);
    if users.is_empty() || groups.is_empty() {
        return Ok(false);
    }
    // Groups first: a namespace with users but no groups would be no better than none, and each map
    // can be written only once.
    map(child, "newgidmap", gid, &groups)?;
    map(child, "newuidmap", uid, &users)?;
    Ok(true)
}

fn map(child: &Child, program: &str, own: u32, ranges: &[Range]) -> Result<()> {
    let mut command = Command::new(program);
    command.arg(child.id().to_string());
    for number in map_arguments(own, ranges) {
        command.arg(number.to_string());
    }
    let output = command.stdin(Stdio::null()).output().on("run", program)?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::io("run", program, io::Error::other(text)))
}

/// Ids that follow one another: the first, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u32,
    count: u32,
}

/// Triples inside, outside, count: our own id as 0, the ranges after it without a gap.
fn map_arguments(own: u32, ranges: &[Range]) -> Vec<u32> {
    let mut arguments = vec![0, own, 1];
    let mut inside: u32 = 1;
    for range in ranges {
        let Some(next) = inside.checked_add(range.count) else { break };
        arguments.extend([inside, range.first, range.count]);
        inside = next;
    }
    arguments
}

/// The lines `owner:first:count` of a user, who is named there by name or by number.
fn ranges(text: &str, uid: u32, name: Option<&str>) -> Vec<Range> {
    let number = uid.to_string();
    let parse = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        if owner != number && Some(owner) != name {
            return None;
        }
        let range =
            Range { first: fields.next()?.parse().ok()?, count: fields.next()?.parse().ok()? };
        (range.count > 0).then_some(range)
    };
    text.lines().filter_map(parse).collect()
}

/// The name of a user in `/etc/passwd`, or as the login left it in the environment.
fn user_name(uid: u32) -> Option<String> {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    named.or_else(|| std::env::var("USER").ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_belong_to_a_name_or_a_number() {
        let text =
            "root:1:1\nann:100000:65536\n1000:300000:10\nbob:200000:65536\nann:x:1\nann:5:0\n\n";
        let ann = [Range { first: 100_000, count: 65536 }, Range { first: 300_000, count: 10 }];
        assert_eq!(ranges(text, 1000, Some("ann")), ann);
        assert_eq!(ranges(text, 1000, None), ann[1..]);
        assert_eq!(ranges(text, 7, Some("eve")), []);
    }

    #[test]
    fn inside_ids_follow_one_another() {
        let two = [Range { first: 100_000, count: 65536 }, Range { first: 300_000, count: 10 }];
        assert_eq!(map_arguments(1000, &two), [0, 1000, 1, 1, 100_000, 65536, 65537, 300_000, 10]);
        assert_eq!(map_arguments(5, &[]), [0, 5, 1]);
        let too_many = [Range { first: 1, count: u32::MAX }];
        assert_eq!(map_arguments(5, &too_many), [0, 5, 1]);
    }
}
