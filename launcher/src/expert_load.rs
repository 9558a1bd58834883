//! The load of the experts over some steps: a line of `experts.jsonl`, and a warning that names experts which no token
//! chose.

use engine::config::Config;
use engine::error::Result;
use engine::train::trainer::ExpertStats;
use report::records::experts::{self, EXPERTS, ExpertsLog, ExpertsRecord};

/// The steps of a line.
const STEPS: u64 = 100;
/// Experts that a warning names.
const NAMED: usize = 5;

/// Sums the choices of the steps since the last line.
pub struct ExpertLoad {
    log: ExpertsLog,
    /// The lines of the last [`STEPS`] steps, also those of the run that this one continues.
    lines: Vec<ExpertsRecord>,
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
        let lines = experts::read(&config.checkpoint.dir)?;
        let load = vec![vec![0; config.model.experts()]; layers.len()];
        let sums = ExpertsRecord { step: 0, steps: 0, layers, load };
        Ok(Some(ExpertLoad { log, lines, sums, last: config.train.steps }))
    }

    /// Adds a step, and writes a line where one is due. Returns a warning about experts that no token chose.
    pub fn step(&mut self, step: u64, stats: &ExpertStats) -> Result<Option<String>> {
        let sums = &mut self.sums;
        (sums.step, sums.steps) = (step, sums.steps + 1);
        for (&layer, sums) in sums.layers.iter().zip(&mut sums.load) {
            let load = &stats.load[layer * sums.len()..(layer + 1) * sums.len()];
            sums.iter_mut().zip(load).for_each(|(sum, n)| *sum += n);
        }
        if step.is_multiple_of(STEPS) || step == self.last { self.end() } else { Ok(None) }
    }

    /// Writes a line of the steps since the last one, if there are any: the run ends, or a line is due. Returns a
    /// warning as above.
    pub fn end(&mut self) -> Result<Option<String>> {
        if self.sums.steps == 0 {
            return Ok(None);
        }
        self.log.append(&self.sums)?;
        self.lines.retain(|line| line.step + STEPS > self.sums.step);
        self.lines.push(self.sums.clone());
        self.sums.steps = 0;
        self.sums.load.iter_mut().for_each(|load| load.fill(0));
        Ok(unused(&recent(&self.lines)))
    }
}

/// The sum of the last line and of those before it, up to enough steps, each of which ends where the next one begins;
/// lines between them belong to steps that the run went back over.
fn recent(lines: &[ExpertsRecord]) -> ExpertsRecord {
    let mut lines = lines.iter().rev();
    let mut sum = lines.next().expect("a line was just added").clone();
    for line in lines {
        if sum.steps >= STEPS {
            break;
        }
        if line.step + sum.steps != sum.step || line.layers != sum.layers {
            continue;
        }
        sum.steps += line.steps;
        for (sum, load) in sum.load.iter_mut().flatten().zip(line.load.iter().flatten()) {
            *sum += load;
        }
    }
    sum
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
    fn lines_of_a_continued_run_are_added_up() {
        let line =
            |step, steps, load: [u64; 2]| ExpertsRecord { step, steps, layers: vec![1], load: vec![load.into()] };
        // A run stopped after step 140 and continued; its other branch, from step 120, is not added.
        let lines = [line(100, 100, [9, 9]), line(130, 30, [1, 0]), line(140, 40, [2, 0]), line(200, 60, [3, 0])];
        assert_eq!(recent(&lines), line(200, 100, [5, 0]));
        assert_eq!(recent(&lines[..3]), line(140, 140, [11, 9]));
        assert_eq!(recent(&lines[..2]), line(130, 130, [10, 9]));
    }

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
