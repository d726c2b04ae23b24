//! The one integration binary: a module a subject, and `common`, the kit they share.
//!
//! A file in `tests/` that is not listed as a module is never compiled; the test below refuses it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::let_underscore_must_use,
    clippy::too_many_lines,
    unsafe_code,
    unreachable_pub
)]

mod command_line;
mod common;
mod doctor;
mod driver_choice;
mod driver_compare;
mod driver_contract;
mod driver_counts;
mod driver_counts_more;
mod driver_hosts;
mod driver_kit;
mod driver_layout;
mod driver_one_id;
mod driver_quota;
mod driver_quota_projects;
mod driver_roundtrip;
mod driver_selection;
mod faults;
mod fuzzing;
mod layer_apply;
mod layer_apply_below;
mod layer_apply_bounds;
mod layer_apply_hostile;
mod layer_apply_kit;
mod layer_apply_marks;
mod layer_changes;
mod layer_split;
mod layer_steps;
mod overlay_bulk;
mod overlay_memory;
mod overlay_model;
mod overlay_open_data;
mod overlay_quota;
mod overlay_settle;
mod overlay_stress;
mod overlay_upper;
mod run_command;
mod semantics_acl;
mod semantics_copy_up;
mod semantics_delete;
mod semantics_dialects;
mod semantics_dropin;
mod semantics_handles;
mod semantics_idmap;
mod semantics_inode;
mod semantics_io;
mod semantics_kit;
mod semantics_labels;
mod semantics_layers;
mod semantics_life;
mod semantics_links;
mod semantics_modes;
mod semantics_names;
mod semantics_nesting;
mod semantics_open;
mod semantics_owner;
mod semantics_passthrough;
mod semantics_quota;
mod semantics_read_only;
mod semantics_record;
mod semantics_remount;
mod semantics_rename;
mod semantics_ring;
mod semantics_stats;
mod semantics_xattr;
mod store_additional;
mod store_additional_copies;
mod store_additional_marks;
mod store_belief;
mod store_broken;
mod store_check;
mod store_contract;
mod store_dedup;
mod store_ids;
mod store_kill;
mod store_kit;
mod store_layers;
mod store_links;
mod store_lost;
mod store_ordinary;
mod store_shared;
mod store_template;

use std::path::Path;

/// Adds to `missing` every source file below `dir` that the file above it does not list.
fn unlisted(dir: &Path, list: &Path, missing: &mut Vec<String>) {
    let text = std::fs::read_to_string(list).unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            // A folder without a module file of its name holds data, not code.
            let own = path.with_extension("rs");
            if own.exists() {
                unlisted(&path, &own, missing);
            }
        } else if path.extension().is_some_and(|x| x == "rs") && path != list {
            let listed = text
                .lines()
                .map(|l| l.trim().trim_start_matches("pub "))
                .any(|l| l == format!("mod {stem};"));
            if !listed {
                missing.push(path.display().to_string());
            }
        }
    }
}

#[test]
fn every_file_in_tests_is_listed() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut missing = Vec::new();
    unlisted(&dir, &dir.join("main.rs"), &mut missing);
    assert!(missing.is_empty(), "not listed as a module: {missing:?}");
}
