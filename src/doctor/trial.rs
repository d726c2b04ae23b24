//! Trials in processes of their own: what they find out comes back even when they crash or hang.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};
use crate::sys::{self, Ended};

/// How long a trial may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How long we wait for one that was killed.
const GRACE: Duration = Duration::from_secs(1);

/// What was found out about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Whether it works.
    pub(super) ok: Option<bool>,
    /// How, or why not.
    pub(super) detail: String,
}

/// What was found out, by key.
#[derive(Debug, Default)]
pub(super) struct Answers {
    known: BTreeMap<String, Answer>,
    /// In a trial: where each answer is written at once.
    notes: Option<File>,
}

impl Answers {
    pub(super) fn get(&self, key: &str) -> Option<&Answer> {
        self.known.get(key)
    }

    /// Whether something surely works.
    pub(super) fn is(&self, key: &str) -> bool {
        self.get(key).is_some_and(|answer| answer.ok == Some(true))
    }

    /// Why something does not work.
    pub(super) fn why(&self, key: &str) -> &str {
        self.get(key).map_or("not tried", |answer| answer.detail.as_str())
    }

    /// Notes a yes or a no.
    pub(super) fn say(&mut self, key: &str, ok: bool, detail: impl Into<String>) {
        self.note(key, Some(ok), detail.into());
    }

    /// Notes that something cannot be told, or does not matter.
    pub(super) fn leave(&mut self, key: &str, detail: impl Into<String>) {
        self.note(key, None, detail.into());
    }

    /// Notes what a call gave.
    pub(super) fn tried(&mut self, key: &str, result: &io::Result<impl Sized>) {
        match result {
            Ok(_) => self.say(key, true, ""),
            Err(error) => self.say(key, false, reason(error)),
        }
    }

    fn note(&mut self, key: &str, ok: Option<bool>, detail: String) {
        let answer = Answer { ok, detail };
        if let Some(notes) = &mut self.notes {
            let written = serde_json::to_vec(&(key, &answer)).map_err(io::Error::from);
            let written = written.and_then(|mut line| {
                line.push(b'\n');
                notes.write_all(&line)
            });
            if let Err(error) = written {
                log::warn!("{key}: the answer is lost: {error}");
            }
        }
        self.known.insert(key.to_owned(), answer);
    }

    /// Runs `probe` in a process of its own and takes over what it noted. Those of `keys` it did not
    /// come to are left with the reason.
    pub(super) fn trial(&mut self, keys: &[&str], probe: impl FnOnce(&mut Answers)) -> Result<()> {
        let notes = sys::memory_file().on("memfd_create", "")?;
        let copy = notes.try_clone().on("dup", "")?;
        let child = sys::fork(move || {
            if let Err(error) = sys::exit_with_parent(sys::SIGKILL) {
                log::debug!("prctl: {error}");
            }
            let mut answers = Answers { known: BTreeMap::new(), notes: Some(copy) };
            probe(&mut answers);
            0
        })
        .on("fork", "")?;
        let mut ended = child.wait_for(LIMIT).on("wait", "")?;
        let late = ended.is_none();
        if late {
            child.signal(sys::SIGKILL).on("kill", "")?;
            ended = child.wait_for(GRACE).on("wait", "")?;
        }
        self.read(notes).on("read", "answers")?;
        let why = match ended {
            _ if late => format!("no answer in {} seconds", LIMIT.as_secs()),
            Some(Ended::Signal(signal)) => format!("the trial was ended by signal {signal}"),
            _ => "not tried".to_owned(),
        };
        for key in keys {
            let answer = Answer { ok: late.then_some(false), detail: why.clone() };
            self.known.entry((*key).to_owned()).or_insert(answer);
        }
        Ok(())
    }

    fn read(&mut self, mut notes: File) -> io::Result<()> {
        let mut text = String::new();
        notes.rewind()?;
        notes.read_to_string(&mut text)?;
        // A line that was torn by a kill is no answer.
        let lines =
            text.lines().filter_map(|line| serde_json::from_str::<(String, Answer)>(line).ok());
        self.known.extend(lines);
        Ok(())
    }
}

/// An error in the system's words, without the number.
pub(super) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// An error with what was tried.
pub(super) fn while_doing(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {}", reason(error)))
}
