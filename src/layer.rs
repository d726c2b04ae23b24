//! Layers as directories: what an upper directory says about the lowers beneath it.
//!
//! `changes` lists it, `diff` writes it as an image layer; both see the directories through `stack`,
//! which knows how an overlay merges them, and `marks`, which knows how deletions and the like look
//! on disk.

pub mod apply;
mod archive;
pub mod changes;
pub mod compare;
pub mod compression;
pub mod dedup;
pub mod diff;
mod marks;
mod output;
pub mod split;
mod stack;
mod xattrs;

pub use marks::Belief;
