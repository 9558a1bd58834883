//! From text to micro-batches: Megatron's indexed token files, its sample order and blend, tokenizers.
//!
//! The way of a text: [`tokenize`] reads files, [`tokenizer`] makes ids, [`writer`] stores them. The way of a
//! sample: [`feed`] asks [`blend`] which source it comes from, [`order`] where its tokens lie, [`idx`] for them.

pub mod blend;
pub mod check;
pub mod feed;
pub mod identity;
pub mod idx;
pub mod json;
pub mod loader;
pub mod meta;
pub mod mt19937;
pub mod order;
mod text;
pub mod tokenize;
pub mod tokenizer;
pub mod writer;
