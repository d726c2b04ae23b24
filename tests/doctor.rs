//! `plyfs doctor`, through the binary: its trials fork, which a test process with threads cannot.

#![allow(clippy::unwrap_used)]

use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

fn doctor(root: &std::path::Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_plyfs"))
        .arg("doctor")
        .args(arguments)
        .arg("--root")
        .arg(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_fact_has_an_answer_and_nothing_is_left_behind() {
    let dir = TempDir::new().unwrap();
    let report: Value =
        serde_json::from_str(&doctor(&dir.path().join("a/b"), &["--json"])).unwrap();
    let facts = report["facts"].as_object().unwrap();
    for (_, group) in plyfs::doctor::GROUPS {
        for (key, _) in group {
            let fact = facts.get(*key).unwrap();
            assert!(fact["ok"].is_boolean() || fact["ok"].is_null(), "{key}");
            assert_ne!(fact["detail"], "not tried", "{key}");
            let explained =
                fact["ok"] == true || fact["detail"].as_str().is_some_and(|why| !why.is_empty());
            assert!(explained, "{key} has no reason");
        }
    }
    assert_eq!(report["version"], 1);
    assert_eq!(report["facts"]["fs.writable"]["ok"], true);
    assert_eq!(report["drivers"].as_array().unwrap().len(), 4);
    assert!(report["driver"].is_string());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains("plyfs-doctor"));
}

#[test]
fn a_state_directory_that_cannot_be_is_a_fact() {
    let report: Value =
        serde_json::from_str(&doctor(std::path::Path::new("/proc/plyfs"), &["--json"])).unwrap();
    assert_eq!(report["facts"]["fs.writable"]["ok"], false);
    assert!(report["driver"].is_null());
}

#[test]
fn lines_are_aligned() {
    let dir = TempDir::new().unwrap();
    let text = doctor(dir.path(), &[]);
    let answers = text.lines().filter(|line| line.starts_with("  "));
    assert!(answers.clone().count() > 25);
    for line in answers {
        let answer = line.get(25..28).map_or_else(|| line[25..].trim(), str::trim);
        assert!(["yes", "no", "-"].contains(&answer), "{line}");
    }
}
