//! The program under test, or another, with assertions. One that fails tells everything: command,
//! directory listing, status, both streams.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A command to be run once.
#[derive(Debug)]
pub struct Cmd {
    program: OsString,
    command: Command,
    /// What is listed when it fails.
    listed: Option<PathBuf>,
    limit: Duration,
}

impl Cmd {
    /// The program under test.
    pub fn plyfs() -> Cmd {
        Cmd::new(env!("CARGO_BIN_EXE_plyfs"))
    }

    /// Any program.
    pub fn new(program: impl AsRef<OsStr>) -> Cmd {
        let mut command = Command::new(&program);
        command.stdin(Stdio::null()).env_remove("RUST_BACKTRACE").env("LC_ALL", "C");
        Cmd {
            program: program.as_ref().to_owned(),
            command,
            listed: None,
            limit: Duration::from_secs(60),
        }
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Cmd {
        self.command.arg(arg);
        self
    }

    /// More arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Cmd {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Cmd {
        self.command.env(name, value);
        self
    }

    /// Runs in a directory, and lists it on failure.
    pub fn cwd(mut self, dir: &Path) -> Cmd {
        self.command.current_dir(dir);
        self.dir(dir)
    }

    /// Lists a directory on failure.
    pub fn dir(mut self, dir: &Path) -> Cmd {
        self.listed = Some(dir.to_owned());
        self
    }

    /// How long it may take.
    pub fn limit(mut self, limit: Duration) -> Cmd {
        self.limit = limit;
        self
    }

    /// Runs it; exit status 0, otherwise the test fails.
    pub fn succeeds(self) -> Done {
        self.exits(0)
    }

    /// Runs it; this exit status (128 and the number for a signal), otherwise the test fails.
    pub fn exits(self, status: i32) -> Done {
        let done = self.run();
        assert!(done.status == status, "expected exit status {status}\n{}", done.story);
        done
    }

    /// Runs it, whatever comes of it.
    ///
    /// The streams are files rather than pipes, so that a server it leaves behind with them open is
    /// not waited for.
    pub fn run(mut self) -> Done {
        let start = Instant::now();
        let (out, err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        self.command.stdout(out.try_clone().unwrap()).stderr(err.try_clone().unwrap());
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|e| panic!("run {}: {e}", self.program.to_string_lossy()));
        let (status, late) = loop {
            match child.try_wait().unwrap() {
                Some(status) => break (status, false),
                None if start.elapsed() > self.limit => {
                    child.kill().unwrap();
                    break (child.wait().unwrap(), true);
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let output = Output { status, stdout: contents(&out), stderr: contents(&err) };
        let story = self.story(&output, late);
        assert!(!late, "stopped after {:?}\n{story}", self.limit);
        Done {
            status: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            story,
        }
    }

    fn story(&self, output: &Output, late: bool) -> String {
        let mut text = String::new();
        let _ = write!(text, "command: {}", self.program.to_string_lossy());
        for arg in self.command.get_args() {
            let _ = write!(text, " {arg:?}");
        }
        if let Some(dir) = self.listed.as_ref().filter(|_| !late) {
            let _ = write!(text, "\ndirectory {}:", dir.display());
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let _ = write!(text, " {:?}", entry.file_name());
            }
        }
        let _ = write!(text, "\nstatus: {}", output.status);
        let _ = write!(text, "\nstdout:\n{}", String::from_utf8_lossy(&output.stdout));
        let _ = write!(text, "\nstderr:\n{}", String::from_utf8_lossy(&output.stderr));
        text
    }
}

fn contents(mut file: &std::fs::File) -> Vec<u8> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// What came of a command.
#[derive(Debug)]
pub struct Done {
    /// Exit status, or 128 and the number of the signal.
    pub status: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    story: String,
}

impl Done {
    /// Its standard output has this text.
    pub fn says(&self, text: &str) -> &Done {
        assert!(self.stdout.contains(text), "expected {text:?} on stdout\n{}", self.story);
        self
    }

    /// Its standard error has this text.
    pub fn complains(&self, text: &str) -> &Done {
        assert!(self.stderr.contains(text), "expected {text:?} on stderr\n{}", self.story);
        self
    }

    /// Everything there is to tell.
    pub fn story(&self) -> &str {
        &self.story
    }
}
