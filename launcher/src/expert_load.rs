//! The load of the experts over some steps: a line of `experts.jsonl`, and a warning that names experts which no token
//! chose.

use engine::config::Config;
use engine::error::Result;
use engine::train::trainer::ExpertStats;
use report::records::experts::{EXPERTS, ExpertsLog, ExpertsRecord};

/// The steps of a line.
const STEPS: u64 = 100;
/// Experts that a warning names.
const NAMED: usize = 5;

/// Sums the choices of the steps since the last line.
pub struct ExpertLoad {
    log: ExpertsLog,
    sums: ExpertsRecord,
    last: u64,
}

impl ExpertLoad {
    /// `None` for a model without experts.
    pub fn open(config: &Config) -> Result<Option<ExpertLoad>> {
        let layers: Vec<usize> = config.model.expert_layers().collect();
        if layers.is_empty() {
            return Ok(None);
        }
        let log = ExpertsLog::open(&config.checkpoint.dir.join(EXPERTS))?;
        let load = vec![vec![0; config.model.experts()]; layers.len()];
        let sums = ExpertsRecord { step: 0, steps: 0, layers, load };
        Ok(Some(ExpertLoad { log, sums, last: config.train.steps }))
    }

    /// Adds a step, and writes a line where one is due. Returns a warning about experts that no token chose.
    pub fn step(&mut self, step: u64, stats: &ExpertStats) -> Result<Option<String>> {
        let sums = &mut self.sums;
        (sums.step, sums.steps) = (step, sums.steps + 1);
        for (&layer, sums) in sums.layers.iter().zip(&mut sums.load) {
            let load = &stats.load[layer * sums.len()..(layer + 1) * sums.len()];
            sums.iter_mut().zip(load).for_each(|(sum, n)| *sum += n);
        }
        if !step.is_multiple_of(STEPS) && step != self.last {
            return Ok(None);
        }
        self.log.append(sums)?;
        let warning = unused(sums);
        sums.steps = 0;
        sums.load.iter_mut().for_each(|load| load.fill(0));
        Ok(warning)
    }
}

/// Names the experts without a token, after enough steps.
fn unused(sums: &ExpertsRecord) -> Option<String> {
    let of_layer = |(layer, load): (&usize, &Vec<u64>)| {
        let none = load.iter().enumerate().filter(|(_, n)| **n == 0);
        none.map(|(expert, _)| format!("{expert} of layer {layer}")).collect::<Vec<_>>()
    };
    let unused: Vec<String> = sums.layers.iter().zip(&sums.load).flat_map(of_layer).collect();
    if unused.is_empty() || sums.steps < STEPS {
        return None;
    }
    let more = match unused.len() {
        0..=NAMED => String::new(),
        all => format!(" and {} more", all - NAMED),
    };
    Some(format!(
        "step {}: no token of the last {} steps chose expert {}{more}; model.router_aux_loss_coef balances the experts",
        sums.step,
        sums.steps,
        unused[..unused.len().min(NAMED)].join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_without_a_token_are_named_after_enough_steps() {
        let record = |steps, load: Vec<Vec<u64>>| ExpertsRecord { step: 200, steps, layers: vec![1, 3], load };
        assert_eq!(unused(&record(100, vec![vec![1, 2], vec![3, 4]])), None);
        assert_eq!(unused(&record(40, vec![vec![0, 2], vec![3, 4]])), None);
        let warning = unused(&record(100, vec![vec![0, 2], vec![3, 0]])).unwrap();
        assert!(warning.contains("the last 100 steps chose expert 0 of layer 1, 1 of layer 3; "), "{warning}");
        let warning = unused(&record(100, vec![vec![0; 4], vec![0; 4]])).unwrap();
        assert!(warning.contains("0 of layer 3 and 3 more"), "{warning}");
    }
}
