//! The files that a run leaves, and the efficiency report that is made of them.
//!
//! `records` writes and reads each file of a run. `run` reads a run directory, `efficiency` computes from it,
//! `document` puts the numbers into words, tables and charts, and `markdown` and `page` lay them out. A report is a
//! pure function of the run directory.

pub mod document;
pub mod efficiency;
pub mod markdown;
pub mod page;
pub mod peak;
pub mod records;
pub mod run;
pub mod stragglers;
