//! From text to micro-batches: Megatron's indexed token files, its sample order and blend, tokenizers.
//!
//! A text: [`text`] reads the files, [`tokenizer`] makes ids, [`tokenize`] does so on all cores, [`writer`] stores
//! them; [`pairs`] and [`chat`] make texts of parallel texts and of conversations, and say which of their bytes count.
//! A sample: [`feed`] asks [`blend`] for its source, [`order`] for the places of its tokens, [`idx`] for the tokens,
//! which [`data_file`] reads.

pub mod blend;
pub mod budget;
pub mod chat;
pub mod check;
pub mod data_file;
pub mod feed;
pub mod identity;
pub mod idx;
pub mod json;
pub mod loader;
pub mod mask;
pub mod meta;
pub mod mt19937;
pub mod order;
pub mod pack;
pub mod pairs;
pub mod partial;
mod provenance;
pub mod text;
pub mod tokenize;
pub mod tokenizer;
mod watch;
pub mod writer;

/// The root of the checkout under test.
#[cfg(test)]
fn checkout() -> std::path::PathBuf {
    let mut folders = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    folders.find(|folder| folder.join("tests/golden").is_dir()).expect("a crate of the checkout").to_path_buf()
}
