//! The kit: what every integration test shares.
//!
//! | noun | what it is |
//! |---|---|
//! | [`sandbox::Sandbox`] | a directory of one test's own, kept and named when the test fails |
//! | [`cmd::Cmd`] | the program under test, with assertions |
//! | [`ops::Op`], [`ops::Target`] | one small language of file operations, and whatever obeys it |
//! | [`tree::Tree`] | a directory tree as data; equality prints a readable difference |
//! | [`model::Model`] | the definition of right: a filesystem made of maps, and the merge rule |
//!
//! Targets: the model, [`plain::Plain`] (a real directory, also the top of a mount),
//! [`core::Core`] (the overlay without a mount). [`duel`] makes them compete.

#![allow(dead_code)]

pub mod case;
pub mod cmd;
pub mod core;
pub mod duel;
pub mod layer;
pub mod model;
pub mod mount;
pub mod needs;
pub mod ops;
pub mod plain;
pub mod rng;
pub mod rootless;
pub mod sandbox;
pub mod shrink;
pub mod tree;
