//! From questions to token ids, and from what the model makes of them to answers.

use engine::backend::CachedAttention;
use engine::error::{Error, Result};
use engine::train::eval::Scorer;
use tasks::{Answered, Form, Question, Task};

use super::Opened;

/// The tokens of a question.
pub enum Asked {
    /// Context and continuation of each choice, and the index of the first token of the continuation.
    Choices(Vec<(Vec<u32>, usize)>),
    /// The prompt, and the most tokens that follow it.
    Prompt(Vec<u32>, usize),
}

impl Asked {
    /// What is longer than the model's positions loses its beginning.
    pub fn new(task: &Task, question: &Question, opened: &Opened) -> Result<Asked> {
        let positions = opened.model.max_position_embeddings;
        match &question.form {
            Form::Choices { continuations, .. } => {
                let pair = |continuation: &String| choice(&question.context, continuation, opened, positions);
                let pairs = continuations.iter().map(pair).collect::<Result<_>>();
                pairs.map(Asked::Choices).map_err(|e| e.map(|what| format!("question {}: {what}", question.index)))
            }
            Form::Free { .. } => {
                let most = task.max_tokens;
                if most >= positions {
                    let name = &task.name;
                    return Err(Error::user(format!(
                        "task {name}: max_tokens = {most}: must be less than the model's positions, {positions}"
                    )));
                }
                let mut ids = prefixed(&question.context, opened)?;
                ids.drain(..ids.len().saturating_sub(positions - most));
                Ok(Asked::Prompt(ids, most))
            }
        }
    }

    /// The positions that it takes.
    pub fn positions(&self) -> usize {
        match self {
            Asked::Choices(pairs) => pairs.iter().map(|(ids, _)| ids.len() - 1).max().unwrap_or(0),
            Asked::Prompt(ids, most) => ids.len() + most,
        }
    }
}

/// The ids of context and continuation, and the index of the continuation's first token. As in lm-evaluation-harness,
/// spaces at the end of the context belong to the continuation, whose tokens are those beyond the number of the
/// context's own tokens.
fn choice(context: &str, continuation: &str, opened: &Opened, positions: usize) -> Result<(Vec<u32>, usize)> {
    let stripped = context.trim_end();
    let alone = prefixed(stripped, opened)?.len();
    let mut ids = prefixed(&format!("{context}{continuation}"), opened)?;
    if ids.len() <= alone {
        return Err(Error::user(format!(
            "the choice {continuation:?} adds no token to its context; change the prompt or the choice"
        )));
    }
    let tokens = ids.len() - alone;
    if tokens > positions {
        return Err(Error::user(format!(
            "the choice {continuation:?} has {tokens} tokens; the model has {positions} positions"
        )));
    }
    ids.drain(..ids.len().saturating_sub(positions + 1));
    let first = ids.len() - tokens;
    Ok((ids, first))
}

/// The ids of a text after at least one token: BOS, or EOS for an empty text of a tokenizer without BOS.
fn prefixed(text: &str, opened: &Opened) -> Result<Vec<u32>> {
    let ids = opened.encode(text)?;
    if !ids.is_empty() {
        return Ok(ids);
    }
    let why = |why| format!("an empty prompt, and the tokenizer has no token to put before it ({why})");
    Ok(vec![opened.tokenizer.eos().map_err(|no| Error::user(why(no)))?])
}

/// The answers to questions of one task.
pub fn answers<B: CachedAttention>(
    scorer: &mut Scorer<B>,
    (task, opened): (&Task, &Opened),
    asked: &[(&Question, Asked)],
    mut done: impl FnMut(),
) -> Result<Vec<Answered>> {
    let mut out = Vec::new();
    let mut prompts = Vec::new();
    for (question, asked) in asked {
        match asked {
            Asked::Choices(pairs) => {
                let nats = pairs.iter().map(|(ids, first)| scorer.log_likelihood(ids, *first));
                out.push(task.choose(question, &nats.collect::<Result<Vec<_>>>()?));
                done();
            }
            Asked::Prompt(ids, _) => prompts.push((*question, ids.clone())),
        }
    }
    out.extend(generated(scorer, (task, opened), &prompts, done)?);
    Ok(out)
}

fn generated<B: CachedAttention>(
    scorer: &mut Scorer<B>,
    (task, opened): (&Task, &Opened),
    prompts: &[(&Question, Vec<u32>)],
    mut done: impl FnMut(),
) -> Result<Vec<Answered>> {
    let eos = opened.tokenizer.eos().ok();
    let ids: Vec<Vec<u32>> = prompts.iter().map(|(_, ids)| ids.clone()).collect();
    let ends = |_, so_far: &[u32]| {
        if so_far.last().copied() == eos {
            return Ok(true);
        }
        let text = opened.tokenizer.decode(so_far)?;
        Ok(task.stop.iter().any(|stop| text.contains(stop)))
    };
    let continuations = scorer.continuations(&ids, task.max_tokens, ends)?;
    let answer = |((question, _), ids): (&(&Question, Vec<u32>), Vec<u32>)| {
        let ids = ids.strip_suffix(eos.as_slice()).unwrap_or(&ids);
        done();
        Ok(task.judge(question, &opened.tokenizer.decode(ids)?))
    };
    prompts.iter().zip(continuations).map(answer).collect()
}
