//! The `[model]` table, or a `config.json` brought into its form, as a valid [`Model`].

use super::check::{epsilon, need, number, size};
use super::names::{Named, choose};
use super::origins::Origins;
use super::raw::{RawModel, RawRope};
use super::{Architecture, Model, RopeScaling};
use crate::error::Result;

/// Widths and counts of heads; any product of two, times the layers, still fits 64 bits.
const WIDEST: u64 = 1 << 20;
const DEEPEST: u64 = 1 << 14;
/// Token ids and positions are 32-bit in the data files.
const LONGEST: u64 = i32::MAX as u64;

/// `raw` with every default filled in, or the first thing in it that cannot be.
pub fn validate(raw: RawModel, at: &Origins) -> Result<Model> {
    let architecture = need(raw.architecture, "model.architecture", "architecture = \"llama\"", at)?;
    let width = |value, key: &str| size(need(value, key, "it, or hf = \"DIR\"", at)?, 1..=WIDEST, key, at);
    let length = |value, key: &str| size(need(value, key, "it, or hf = \"DIR\"", at)?, 1..=LONGEST, key, at);
    let hidden_size = width(raw.hidden_size, "model.hidden_size")?;
    let heads = width(raw.num_attention_heads, "model.num_attention_heads")?;
    let kv_heads = width(raw.num_key_value_heads.or(Some(heads as u64)), "model.num_key_value_heads")?;
    let head_dim = width(raw.head_dim.or(Some((hidden_size / heads).max(1) as u64)), "model.head_dim")?;
    heads_fit(hidden_size, heads, kv_heads, head_dim, at)?;
    let max_position_embeddings = length(raw.max_position_embeddings, "model.max_position_embeddings")?;
    let layers = need(raw.num_hidden_layers, "model.num_hidden_layers", "it, or hf = \"DIR\"", at)?;
    let theta = need(raw.rope_theta, "model.rope_theta", "rope_theta = 10000.0 (Llama 2) or what the model has", at)?;
    let eps = need(raw.rms_norm_eps, "model.rms_norm_eps", "rms_norm_eps = 1e-5 or what the model has", at)?;
    let spread = raw.initializer_range.unwrap_or(0.02);
    Ok(Model {
        architecture: choose(Architecture::NAMES, &architecture, "model.architecture", at)?,
        hidden_size,
        intermediate_size: width(raw.intermediate_size, "model.intermediate_size")?,
        num_hidden_layers: size(layers, 1..=DEEPEST, "model.num_hidden_layers", at)?,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        vocab_size: length(raw.vocab_size, "model.vocab_size")?,
        max_position_embeddings,
        rope_theta: number(
            theta,
            |x| (1.0..=1e30).contains(&x),
            "must lie between 1 and 1e30",
            "model.rope_theta",
            at,
        )?,
        rope_scaling: raw.rope_scaling.map_or(Ok(RopeScaling::Default), |rope| rope_scaling(rope, at))?,
        rms_norm_eps: epsilon(eps, "model.rms_norm_eps", at)?,
        tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
        initializer_range: number(
            spread,
            |x| (0.0..=1.0).contains(&x),
            "must lie between 0 and 1",
            "model.initializer_range",
            at,
        )?,
        hf: raw.hf.map(Into::into),
    })
}

fn heads_fit(hidden: usize, heads: usize, kv_heads: usize, head_dim: usize, at: &Origins) -> Result<()> {
    if !hidden.is_multiple_of(heads) {
        // With a head_dim of its own the engine would not mind, but transformers loads no such Llama.
        let remedy = format!("must be a multiple of num_attention_heads ({heads})");
        return Err(at.bad("model.hidden_size", hidden, remedy));
    }
    if !heads.is_multiple_of(kv_heads) {
        let remedy = format!("must divide num_attention_heads ({heads})");
        return Err(at.bad("model.num_key_value_heads", kv_heads, remedy));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(at.bad("model.head_dim", head_dim, "must be even: rotary embedding turns pairs"));
    }
    if heads * head_dim > WIDEST as usize {
        let remedy = format!("num_attention_heads ({heads}) times head_dim must be at most {WIDEST}");
        return Err(at.bad("model.head_dim", head_dim, remedy));
    }
    Ok(())
}

fn rope_scaling(raw: RawRope, at: &Origins) -> Result<RopeScaling> {
    let key = |name: &str| format!("model.rope_scaling.{name}");
    let kind = need(raw.rope_type, &key("rope_type"), "rope_type = \"llama3\" or \"default\"", at)?;
    if !choose(&[("default", false), ("llama3", true)], &kind, &key("rope_type"), at)? {
        let factors = [raw.factor, raw.low_freq_factor, raw.high_freq_factor].iter().any(Option::is_some);
        return match factors || raw.original_max_position_embeddings.is_some() {
            true => Err(at.bad(&key("rope_type"), "\"default\"", "has no other keys; leave them out")),
            false => Ok(RopeScaling::Default),
        };
    }
    let factor = |value, name: &str, least: f64| {
        let value = need(value, &key(name), "it: llama3 scaling has no defaults", at)?;
        number(value, |x| x >= least && x <= 1e9, &format!("must lie between {least} and 1e9"), &key(name), at)
    };
    let low_freq_factor = factor(raw.low_freq_factor, "low_freq_factor", 1e-9)?;
    let high_freq_factor = factor(raw.high_freq_factor, "high_freq_factor", 1e-9)?;
    if low_freq_factor >= high_freq_factor {
        let remedy = format!("must be above low_freq_factor ({low_freq_factor})");
        return Err(at.bad(&key("high_freq_factor"), high_freq_factor, remedy));
    }
    let name = key("original_max_position_embeddings");
    let original = need(raw.original_max_position_embeddings, &name, "it: llama3 scaling has no defaults", at)?;
    Ok(RopeScaling::Llama3 {
        factor: factor(raw.factor, "factor", 1.0)?,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings: size(original, 1..=LONGEST, &name, at)?,
    })
}
