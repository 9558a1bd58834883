//! The settings that a step's time depends on, in one line: only steps with the same line have comparable speeds, and a
//! plan fits a run only if their lines are the same.
//!
//! Not here: the model, which a run cannot change, and the machine, which is in `machine.json`.

use engine::config::{Axis, Config, Named};
use engine::layout::mesh::Mesh;

/// `tensor 1, pipeline 2, virtual 1, data 2, micro-batch 1, ...`, without the keys that the configuration leaves open.
pub fn settings(config: &Config, mesh: &Mesh) -> String {
    let (p, train) = (&config.parallel, &config.train);
    let always = [
        ("tensor", mesh.size(Axis::Tensor).to_string()),
        ("pipeline", mesh.size(Axis::Pipeline).to_string()),
        ("virtual", p.virtual_pipeline.to_string()),
        ("data", mesh.replicas().to_string()),
        ("micro-batch", train.micro_batch_size.to_string()),
        ("batch", train.global_batch_size.to_string()),
        ("sequence", train.seq_length.to_string()),
        ("recompute", train.recompute.name().to_string()),
        ("sequence-parallel", p.sequence_parallel.to_string()),
        ("distributed-optimizer", p.distributed_optimizer.to_string()),
        ("gradients", p.gradient_precision.name().to_string()),
        ("order", p.order.map(Named::name).join("-")),
    ];
    let layers = p.layers.as_ref().map(|layers| layers.iter().map(usize::to_string).collect::<Vec<_>>().join("-"));
    let optional = [
        ("layers", layers),
        ("backend", train.backend.map(|backend| backend.name().to_string())),
        ("precision", train.precision.map(|precision| precision.name().to_string())),
    ];
    let given = optional.into_iter().filter_map(|(name, value)| Some((name, value?)));
    always.into_iter().chain(given).map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}

/// The layout of a file in words.
pub fn layout([tensor, pipeline, data]: [usize; 3]) -> String {
    format!("tensor {tensor} x pipeline {pipeline} x data {data}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::efficiency::tests::CONFIG;
    use engine::config::{Precision, Recompute};

    #[test]
    fn a_setting_that_changes_the_time_of_a_step_changes_the_line() {
        let config = || Config::from_resolved(CONFIG).unwrap();
        let line = |config: &Config, ranks: usize| settings(config, &config.mesh(ranks).unwrap());
        let before = line(&config(), 4);
        let start = "tensor 1, pipeline 2, virtual 1, data 2, micro-batch 1, batch 16, sequence 32, recompute none, ";
        assert!(before.starts_with(start), "{before}");
        let changes: [fn(&mut Config); 5] = [
            |config| config.parallel.layers = Some(vec![1, 3]),
            |config| config.parallel.pipeline = 1,
            |config| config.train.micro_batch_size = 2,
            |config| config.train.recompute = Recompute::Full,
            |config| config.train.precision = Some(Precision::Bf16),
        ];
        let changed = changes.map(|change| {
            let mut config = config();
            change(&mut config);
            line(&config, 4)
        });
        assert!(changed.iter().all(|line| *line != before), "{changed:?}");
        assert!(changed[0].ends_with(", layers 1-3") && changed[4].ends_with(", precision bf16"), "{changed:?}");
        assert_ne!(line(&config(), 2), before);
        let mut same = config();
        (same.train.steps, same.optimizer.lr) = (7, 1.0);
        assert_eq!(line(&same, 4), before);
    }
}
