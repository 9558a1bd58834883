//! The first loss of a loaded model: one that is no better than guessing means that the model and the data do not
//! belong together, or that the weights are not what they should be.

use engine::checkpoint;
use engine::config::Config;
use engine::error::{Error, Result};
use engine::train::trainer::StepStats;

use crate::output::to_stderr;

/// Whether a run that begins after step `first` begins with the weights of a model, and not with random ones.
pub fn is_of_a_model(config: &Config, first: u64) -> bool {
    let imported = || checkpoint::live_steps(&config.checkpoint.dir).is_ok_and(|steps| steps.contains(&0));
    first == 0 && (config.train.load.huggingface().is_some() || imported())
}

/// Warns of a first loss that is no better than guessing, on rank 0 (`warns`); an error where `train.refuse_untrained`
/// asks for it.
pub fn judge(config: &Config, results: &StepStats, warns: bool) -> Result<()> {
    let Some(what) = finding(results.loss, results.loss_tokens, config.model.vocab_size) else { return Ok(()) };
    if config.train.refuse_untrained {
        return Err(Error::user(format!("step 1: {what}; train.refuse_untrained = true ends the run here")));
    }
    if warns {
        to_stderr(&format!("warning: step 1: {what}"));
    }
    Ok(())
}

/// A sentence about a loss at or above that of guessing all tokens alike.
fn finding(loss: f64, tokens: u64, vocabulary: usize) -> Option<String> {
    let guessing = (vocabulary as f64).ln();
    (tokens > 0 && loss >= guessing).then(|| {
        format!(
            "the loss of the loaded model is {loss:.4}, no better than guessing among {vocabulary} tokens, \
             {guessing:.4}: likely causes are data of another tokenizer, weights that do not fit [model] \
             (rope_theta and rope_scaling, where it has them), or a checkpoint that was never trained; \
             `swallow-engine compare` compares the model with another program's numbers"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_as_of_guessing_is_told() {
        let told = finding(5.5452, 10, 256).unwrap();
        assert!(told.contains("5.5452") && told.contains("256 tokens, 5.5452"), "{told}");
        assert_eq!(finding(5.54, 10, 256), None);
        assert_eq!(finding(0.0, 0, 1), None);
    }
}
