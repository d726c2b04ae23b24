//! What the fuzz targets do with an input. Each has `run(scratch, data)`: it may make things in the directory `scratch`,
//! leaves nothing there, and panics when plyfs is wrong.
//!
//! | target | what it proves |
//! |---|---|
//! | [`apply`] | whatever an archive says: nothing outside the root changes, limits are kept, and what was applied gives back the very bytes and can be diffed |
//! | [`records`] | whatever bytes a file of a store holds: an error or sense |
//! | [`differential`] | GNU tar and Python's tarfile make the same tree of an archive, or it is known why not |
//! | [`diff`] | a tree that is diffed and applied is the same tree |
//!
//! The directories `corpus/TARGET` are replayed by the tests of plyfs, which include this crate as a module.

pub mod apply;
pub mod diff;
pub mod differential;
pub mod generate;
pub mod known;
pub mod place;
pub mod records;
pub mod tar;
pub mod tree;
