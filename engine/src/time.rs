//! The one taxonomy of a step's time. The clock, spans, the timeline, the plan and the report derive their categories
//! from it. It answers four questions:
//!
//! - Which phase is the rank in? [`Phase`]: the phases of a rank follow one another and cover all of its time.
//! - What computes? [`OpClass`], by op.
//! - What does compute wait for? [`CommClass`], by the kind of the group whose communication it waits for.
//! - Where does a simulated step spend its time? [`TimeCategory`]: the two classes, with the waits for other stages
//!   split by their cause.

use crate::layout::mesh::GroupKind;

/// A phase of a rank's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Data,
    Forward,
    Backward,
    /// Waiting for other pipeline stages.
    Pipeline,
    /// Waiting for the reduce-scatter of the gradients.
    Reduce,
    Optimizer,
    Validation,
    /// Writing the step's metrics.
    Report,
    Checkpoint,
}

impl Phase {
    /// Sorted by when a step first enters them.
    pub const ALL: [Phase; 9] = [
        Phase::Data,
        Phase::Forward,
        Phase::Backward,
        Phase::Pipeline,
        Phase::Reduce,
        Phase::Optimizer,
        Phase::Validation,
        Phase::Report,
        Phase::Checkpoint,
    ];

    /// The key of its seconds in `metrics.jsonl` and `ranks.jsonl`.
    pub fn key(self) -> &'static str {
        match self {
            Phase::Data => "data_s",
            Phase::Forward => "forward_s",
            Phase::Backward => "backward_s",
            Phase::Pipeline => "pipeline_s",
            Phase::Reduce => "reduce_s",
            Phase::Optimizer => "optimizer_s",
            Phase::Validation => "validation_s",
            Phase::Report => "report_s",
            Phase::Checkpoint => "checkpoint_s",
        }
    }

    /// Its key without the unit.
    pub fn label(self) -> &'static str {
        self.key().trim_end_matches("_s")
    }

    /// Whether every step goes through this phase; the other phases lie between steps.
    pub fn is_in_step(self) -> bool {
        !matches!(self, Phase::Validation | Phase::Report | Phase::Checkpoint)
    }
}

/// Ops by what bounds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpClass {
    Matmul,
    Attention,
    /// Norms, rotary, SwiGLU, residuals, embedding and loss: bound by memory bandwidth.
    Memory,
    Optimizer,
}

impl OpClass {
    pub const ALL: [OpClass; 4] = [OpClass::Matmul, OpClass::Attention, OpClass::Memory, OpClass::Optimizer];

    pub fn name(self) -> &'static str {
        match self {
            OpClass::Matmul => "matmul",
            OpClass::Attention => "attention",
            OpClass::Memory => "memory-bound ops",
            OpClass::Optimizer => "optimizer",
        }
    }
}

/// Communication by the parallelism that causes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommClass {
    Tensor,
    /// Activations and gradients between stages.
    Pipeline,
    /// Sums of gradients and gathers of weights.
    Data,
    /// Sums over all stages at the end of a step: a rank that is early waits here for the pipeline to drain.
    StepEnd,
}

impl CommClass {
    pub fn of(kind: GroupKind) -> CommClass {
        match kind {
            GroupKind::Tensor | GroupKind::KvHeads | GroupKind::Experts => CommClass::Tensor,
            GroupKind::Activations | GroupKind::Gradients => CommClass::Pipeline,
            GroupKind::Data | GroupKind::Optimizer | GroupKind::ExpertData | GroupKind::ExpertOptimizer => {
                CommClass::Data
            }
            GroupKind::Tied | GroupKind::World => CommClass::StepEnd,
        }
    }

    /// The class of a group by its name in `ranks.jsonl` and `timeline.json`; `None` for a name of another version.
    pub fn of_group(name: &str) -> Option<CommClass> {
        GroupKind::ALL.into_iter().find(|kind| kind.name() == name).map(CommClass::of)
    }
}

/// Where a simulated step spends its time: the seconds of all categories add up to the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimeCategory {
    Computes(OpClass),
    /// Exposed communication of tensor parallelism.
    Tensor,
    /// Waits for other stages that would remain if messages took no time.
    Bubble,
    /// The additional waits because messages between stages take time.
    Messages,
    /// Exposed communication of data parallelism.
    Data,
    /// Time of the host, beyond that of the ops.
    Software,
}

impl TimeCategory {
    pub const ALL: [TimeCategory; 9] = [
        TimeCategory::Computes(OpClass::Matmul),
        TimeCategory::Computes(OpClass::Attention),
        TimeCategory::Computes(OpClass::Memory),
        TimeCategory::Tensor,
        TimeCategory::Bubble,
        TimeCategory::Messages,
        TimeCategory::Data,
        TimeCategory::Computes(OpClass::Optimizer),
        TimeCategory::Software,
    ];

    /// The name in tables, and the key in the output of `plan --json`.
    pub fn name(self) -> &'static str {
        match self {
            TimeCategory::Computes(class) => class.name(),
            TimeCategory::Tensor => "tensor-parallel communication (exposed)",
            TimeCategory::Bubble => "pipeline bubble",
            TimeCategory::Messages => "between stages (exposed)",
            TimeCategory::Data => "data-parallel communication (exposed)",
            TimeCategory::Software => "launches and waits of the host",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names are keys of `metrics.jsonl`, `ranks.jsonl` and of the output of `plan --json`.
    #[test]
    fn keys_of_files_stay() {
        let keys = Phase::ALL.map(Phase::key).join(" ");
        let promised = "data_s forward_s backward_s pipeline_s reduce_s optimizer_s validation_s report_s checkpoint_s";
        assert_eq!(keys, promised);
        assert!(Phase::ALL.iter().enumerate().all(|(at, phase)| *phase as usize == at));
        let categories = TimeCategory::ALL.map(TimeCategory::name).join(", ");
        let promised = "matmul, attention, memory-bound ops, tensor-parallel communication (exposed), pipeline bubble, \
                        between stages (exposed), data-parallel communication (exposed), optimizer, \
                        launches and waits of the host";
        assert_eq!(categories, promised);
    }

    #[test]
    fn a_group_has_the_class_of_its_kind() {
        let classes = GroupKind::ALL.map(|kind| CommClass::of_group(kind.name()) == Some(CommClass::of(kind)));
        assert_eq!(classes, [true; GroupKind::ALL.len()]);
        assert_eq!(CommClass::of_group("gossip"), None);
    }
}
