//! plyfs stacks directories, as a container image stacks layers, and shows them as one writable
//! tree. This crate is what stands around the overlay filesystem itself (crate [`plyfs_fuse`], which
//! knows directories only): mounting it, running a command in a throwaway view, telling what an
//! upper directory holds, and keeping directories as layers.
//!
//! The road runs one way. A room may use the rooms below it:
//!
//! | room | what it owns |
//! |---|---|
//! | [`cli`] | the command line; the only room that prints |
//! | [`doctor`] | what this host allows, found by trying |
//! | [`run`] | one command inside a view, in namespaces of its own |
//! | [`store`] | layers with records, on a driver |
//! | [`driver`] | how layers lie on disk, and what has to be mounted to see one |
//! | [`layer`] | what a directory holds: as a list of changes, as a tar stream, and back |
//! | [`mount`] | a mount as data, performing it, the table of mounts, unmounting |
//! | `quota` | limits and counts of layers by the filesystem's projects |
//! | [`durable`] | files replaced whole |
//! | [`error`], `sys` | few kinds of errors; the only unsafe code |
//!
//! Three words used throughout: a *lower* is a directory that is only read, the *upper* is where
//! changes go, the *view* is both merged, as a mount shows it.

pub mod cli;
pub mod doctor;
pub mod driver;
pub mod durable;
pub mod error;
pub mod layer;
pub mod mount;
mod quota;
pub mod run;
pub mod store;
#[allow(unsafe_code)]
pub mod sys;

pub use error::{Error, Result};
