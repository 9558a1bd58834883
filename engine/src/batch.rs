//! What the data floor hands to the engine: one micro-batch of one rank, on the host.

/// Samples laid end to end: row i of a sequence predicts `targets[i]` from `ids[..= i]`.
/// All vectors have `micro_batch_size * seq_length` elements.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MicroBatch {
    pub ids: Vec<u32>,
    pub targets: Vec<u32>,
    /// 1 where the token counts in the loss, else 0.
    pub weights: Vec<f32>,
    /// The first position of its own sequence that a row may look at: its document's start, or 0.
    pub starts: Vec<u32>,
}
