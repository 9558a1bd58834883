//! Allocators as pure functions of the blocks allocated and freed. They hold addresses, not memory: a backend and its
//! dry run use the same allocator, so that the planned bytes are the used bytes.

pub mod arena;
pub mod free_list;
pub mod table;
