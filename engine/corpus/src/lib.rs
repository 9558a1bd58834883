//! Corpus preparation: from crawled documents to those that are worth training on.
//!
//! [`documents`] reads the inputs as batches of whole documents, [`ordered`] works on batches on all cores and hands
//! the results back in the order of the inputs, and [`output`] writes JSON lines. Every command is made of these three:
//! [`dedup`] keeps one of near-duplicates, [`filter`] drops documents by rules, and [`classify`] scores them. [`drops`]
//! says what was dropped by which rule, with examples. The bytes that are written do not depend on the number of
//! workers.

pub mod classify;
pub mod dedup;
pub mod documents;
pub mod drops;
pub mod filter;
pub mod ordered;
pub mod output;
mod record;
