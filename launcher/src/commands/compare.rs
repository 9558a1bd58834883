//! `compare`: a Hugging Face checkpoint's loss, logits and gradients here, against another program's.

use std::collections::HashSet;
use std::io::Write;
use std::path::PathBuf;

use engine::checkpoint::{HuggingFace, Reference};
use engine::config::hf;
use engine::cpu::Cpu;
use engine::error::{Error, Result};
use engine::model::stored::Form;
use engine::train::probe::{Probed, Sequences, probe};

use crate::output::or_broken_pipe;

/// Compare a checkpoint's loss, logits and gradients with another program's
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Directory with config.json and model.safetensors
    #[arg(long, value_name = "HF_DIR")]
    model: PathBuf,
    /// The other program's numbers: input_ids, labels, loss, logits, grad.NAME
    #[arg(long, value_name = "FILE")]
    reference: PathBuf,
    /// The largest relative error that is accepted
    #[arg(long, value_name = "X", default_value_t = 1e-4)]
    tolerance: f64,
}

const EXAMPLES: &str = "\
The model runs in f32 on the CPU. An error is the norm of the difference over the norm of the reference; the command
exits with 1 if one is above the tolerance. docs/compare.md has a script that writes the reference with transformers.

Examples:
  swallow-engine compare --model export/7b --reference reference.safetensors
  swallow-engine compare --model export/7b --reference bf16.safetensors --tolerance 2e-2";

/// The most gradients that are listed.
const LISTED: usize = 20;

/// The relative error of one quantity.
struct Compared {
    name: String,
    error: f64,
}

impl Compared {
    /// False for NaN, too.
    fn is_within(&self, tolerance: f64) -> bool {
        self.error <= tolerance
    }
}

pub fn run(args: Args) -> Result<()> {
    if !(args.tolerance > 0.0 && args.tolerance.is_finite()) {
        return Err(Error::user(format!("--tolerance {}: must be a positive number", args.tolerance)));
    }
    let model = hf::read_model(&args.model)?;
    let (weights, reference) = (HuggingFace::open(&args.model, &model)?, Reference::open(&args.reference)?);
    let (seq, ids) = reference.ids(model.vocab_size)?;
    if seq > model.max_position_embeddings {
        let (file, most) = (args.reference.display(), model.max_position_embeddings);
        return Err(Error::user(format!(
            "{file}: input_ids: sequences of {seq} tokens; the model has {most} positions"
        )));
    }
    let labels = reference.labels(ids.len(), model.vocab_size)?;
    let b = Cpu::<f32>::new(std::thread::available_parallelism().map_or(1, usize::from));
    let of = Sequences { seq, ids, labels };
    // transformers has experts packed, whatever form the checkpoint has.
    let names: HashSet<String> = reference.gradients().into_iter().collect();
    let form = Form::of(&model, |name| names.contains(name)).map_err(|[one, other]| {
        Error::user(format!("{}: it has both grad.{one} and grad.{other}; leave one out", args.reference.display()))
    })?;
    let here = probe(b, &model, &of, form, |tensor, rect, out| weights.read_parameter(tensor, rect, out))?;
    let results = compare(&args, &reference, &here)?;
    or_broken_pipe(print(&results, here.gradients.len(), args.tolerance))?;
    match results.iter().find(|compared| !compared.is_within(args.tolerance)) {
        None => Ok(()),
        Some(Compared { name, error }) => {
            Err(Error::run(format!("{name}: the relative error {error:.1e} is above {:.1e}", args.tolerance)))
        }
    }
}

/// The errors of all that the reference has: loss, logits, then the gradients from the worst to the best.
fn compare(args: &Args, reference: &Reference, here: &Probed) -> Result<Vec<Compared>> {
    let mut all = Vec::new();
    for (name, ours) in [("loss", &[here.loss as f32][..]), ("logits", &here.logits)] {
        let theirs = reference.numbers(name, ours.len())?;
        all.extend(theirs.map(|theirs| Compared { name: name.to_string(), error: error(ours, &theirs) }));
    }
    let mut gradients = Vec::new();
    for name in reference.gradients() {
        let Some(ours) = here.gradients.get(&name) else {
            let (file, model) = (args.reference.display(), args.model.display());
            return Err(Error::user(format!("{file}: grad.{name}: {model} has no tensor of that name")));
        };
        let theirs = reference.gradient(&name, ours.len())?;
        gradients.push(Compared { error: error(ours, &theirs), name: format!("grad.{name}") });
    }
    gradients.sort_by(|a, b| b.error.total_cmp(&a.error));
    all.extend(gradients);
    if all.is_empty() {
        let file = args.reference.display();
        return Err(Error::user(format!("{file}: it has none of loss, logits and grad.NAME; nothing can be compared")));
    }
    Ok(all)
}

/// |ours - theirs| / |theirs|; |ours| where the reference is zero.
fn error(ours: &[f32], theirs: &[f32]) -> f64 {
    let norm = |of: &dyn Fn(usize) -> f64| (0..ours.len()).map(|i| of(i).powi(2)).sum::<f64>().sqrt();
    let difference = norm(&|i| ours[i] as f64 - theirs[i] as f64);
    match norm(&|i| theirs[i] as f64) {
        0.0 => difference,
        size => difference / size,
    }
}

fn print(results: &[Compared], tensors: usize, tolerance: f64) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let (gradients, rest): (Vec<_>, Vec<_>) = results.iter().partition(|compared| compared.name.starts_with("grad."));
    let mut line = |compared: &Compared| {
        let mark = if compared.is_within(tolerance) { "" } else { "  above the tolerance" };
        writeln!(out, "{:9.2e}  {}{mark}", compared.error, compared.name)
    };
    rest.into_iter().try_for_each(&mut line)?;
    gradients.iter().take(LISTED).try_for_each(|compared| line(compared))?;
    if gradients.len() > LISTED {
        writeln!(out, "           and {} gradients with smaller errors", gradients.len() - LISTED)?;
    }
    if gradients.len() < tensors {
        writeln!(
            out,
            "           the reference has gradients of {} of the model's {tensors} tensors",
            gradients.len()
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_relative_to_the_reference() {
        assert_eq!(error(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert_eq!(error(&[3.0, 9.0], &[3.0, 4.0]), 1.0);
        assert_eq!(error(&[2.0, 0.0], &[0.0, 0.0]), 2.0);
        assert!(error(&[f32::NAN], &[1.0]).is_nan());
    }
}
