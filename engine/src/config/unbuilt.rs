//! What the file format has and the engine does not have yet: refused by name, never half-run.
//! Whoever builds one of these takes its line away.

use super::origins::Origins;
use super::raw::Raw;
use crate::error::Result;

/// An error that names the first thing asked for that is not built.
pub fn refuse(raw: &Raw, at: &Origins) -> Result<()> {
    if let Some(m) = &raw.model {
        let other = m.architecture.as_deref().filter(|name| ["mistral", "mixtral"].contains(name));
        absent(other, "model.architecture", "this architecture is not built yet; llama is", at)?;
        absent(m.sliding_window, "model.sliding_window", "sliding windows are not built yet; leave it out", at)?;
        absent(m.num_local_experts, "model.num_local_experts", "experts are not built yet; leave it out", at)?;
        absent(m.num_experts_per_tok, "model.num_experts_per_tok", "experts are not built yet; leave it out", at)?;
        let scale = m.embedding_scale.filter(|&scale| scale != 1.0);
        absent(scale, "model.embedding_scale", "scaled embeddings are not built yet; leave it out", at)?;
    }
    if let Some(p) = &raw.parallel {
        let many = |degree: Option<u64>| degree.filter(|&degree| degree > 1);
        absent(many(p.context), "parallel.context", "context parallelism is not built yet; write 1", at)?;
        absent(many(p.expert), "parallel.expert", "expert parallelism is not built yet; write 1", at)?;
    }
    Ok(())
}

fn absent(value: Option<impl std::fmt::Display>, key: &str, remedy: &str, at: &Origins) -> Result<()> {
    value.map_or(Ok(()), |value| Err(at.bad(key, value, remedy)))
}
