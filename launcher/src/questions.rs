//! From the questions of tasks to token ids, and from what the model makes of them to answers.

use data::tokenizer::Tokenizer;
use engine::backend::Backend;
use engine::error::{Error, Result};
use engine::train::eval::Scorer;
use engine::train::generate::Ends;
use engine::train::likelihood::Text;
use tasks::{Answered, Form, Question, Task};

/// Makes ids for a model.
pub struct Encoder {
    pub tokenizer: Tokenizer,
    /// The most tokens that the model sees at once.
    pub positions: usize,
    pub vocab_size: usize,
}

impl Encoder {
    /// The ids of a text, after BOS where the tokenizer has one.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = self.tokenizer.bos().into_iter().collect();
        ids.extend(self.tokenizer.encode_long(text)?);
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            return Err(Error::user(format!(
                "{}: gives the id {id}, but the model has vocab_size {}; use the tokenizer that the model was trained \
                 with",
                self.tokenizer.path().display(),
                self.vocab_size
            )));
        }
        Ok(ids)
    }

    /// The ids of a text after at least one token: BOS, or EOS for an empty text of a tokenizer without BOS.
    fn prefixed(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode(text)?;
        if !ids.is_empty() {
            return Ok(ids);
        }
        let why = |why| format!("an empty prompt, and the tokenizer has no token to put before it ({why})");
        Ok(vec![self.tokenizer.eos().map_err(|no| Error::user(why(no)))?])
    }

    /// The ids of context and continuation, of which the continuation's are scored. As in lm-evaluation-harness,
    /// spaces at the end of the context belong to the continuation, whose tokens are those beyond the number of the
    /// context's own tokens.
    fn choice(&self, context: &str, continuation: &str) -> Result<Text> {
        let alone = self.prefixed(context.trim_end())?.len();
        let mut ids = self.prefixed(&format!("{context}{continuation}"))?;
        if ids.len() <= alone {
            return Err(Error::user(format!(
                "the choice {continuation:?} adds no token to its context; change the prompt or the choice"
            )));
        }
        let (tokens, positions) = (ids.len() - alone, self.positions);
        if tokens > positions {
            return Err(Error::user(format!(
                "the choice {continuation:?} has {tokens} tokens; the model has {positions} positions"
            )));
        }
        ids.drain(..ids.len().saturating_sub(positions + 1));
        let from = ids.len() - tokens;
        Ok(Text { ids, from })
    }
}

/// The tokens of a question. What is longer than the model's positions loses its beginning.
pub enum Asked {
    /// Context and continuation of each choice.
    Choices(Vec<Text>),
    /// The prompt, and the most tokens that follow it.
    Prompt(Vec<u32>, usize),
}

impl Asked {
    pub fn new(task: &Task, question: &Question, encoder: &Encoder) -> Result<Asked> {
        match &question.form {
            Form::Choices { continuations, .. } => {
                let texts = continuations.iter().map(|continuation| encoder.choice(&question.context, continuation));
                let texts = texts.collect::<Result<_>>();
                texts.map(Asked::Choices).map_err(|e| e.map(|what| format!("question {}: {what}", question.index)))
            }
            Form::Free { .. } => {
                let (most, positions) = (task.max_tokens, encoder.positions);
                if most >= positions {
                    let name = &task.name;
                    return Err(Error::user(format!(
                        "task {name}: max_tokens = {most}: must be less than the model's positions, {positions}"
                    )));
                }
                let mut ids = encoder.prefixed(&question.context)?;
                ids.drain(..ids.len().saturating_sub(positions - most));
                Ok(Asked::Prompt(ids, most))
            }
        }
    }

    /// The rows of each text that is computed.
    pub fn rows(&self) -> Vec<usize> {
        match self {
            Asked::Choices(texts) => texts.iter().map(Text::rows).collect(),
            Asked::Prompt(ids, most) => vec![ids.len() + most],
        }
    }
}

/// The choices of questions, all of their texts in a row.
pub fn texts<'a>(asked: impl Iterator<Item = &'a Asked>) -> Vec<Text> {
    let texts = asked.filter_map(|asked| match asked {
        Asked::Choices(texts) => Some(texts),
        Asked::Prompt(..) => None,
    });
    texts.flatten().cloned().collect()
}

/// The answers of a task with choices, from the log-likelihoods of their [`texts`].
pub fn chosen(task: &Task, asked: &[(&Question, Asked)], mut nats: &[f64]) -> Vec<Answered> {
    let mut out = Vec::new();
    for (question, asked) in asked {
        let Asked::Choices(texts) = asked else { continue };
        let (own, others) = nats.split_at(texts.len());
        nats = others;
        out.push(task.choose(question, own));
    }
    out
}

/// Continues prompts greedily: [`Scorer::continuations`], or [`Scorer::continuations_uncached`].
pub type Continue<B> = fn(&mut Scorer<B>, &[Vec<u32>], usize, Ends) -> Result<Vec<Vec<u32>>>;

/// The answers of a task whose answers are generated; `done` is called for each one.
pub fn generated<B: Backend>(
    scorer: &mut Scorer<B>,
    proceed: Continue<B>,
    (task, encoder): (&Task, &Encoder),
    asked: &[(&Question, Asked)],
    mut done: impl FnMut(),
) -> Result<Vec<Answered>> {
    let tokenizer = &encoder.tokenizer;
    let eos = tokenizer.eos().ok();
    let prompts = asked.iter().filter_map(|(question, asked)| match asked {
        Asked::Prompt(ids, _) => Some((*question, ids.clone())),
        Asked::Choices(_) => None,
    });
    let (questions, prompts): (Vec<&Question>, Vec<Vec<u32>>) = prompts.unzip();
    // A model may have rows beyond the vocabulary, which stand for nothing.
    let text_of = |ids: &[u32]| {
        let known: Vec<u32> = ids.iter().copied().filter(|&id| (id as usize) < tokenizer.vocab_size()).collect();
        tokenizer.decode(&known)
    };
    let mut ends = |_, so_far: &[u32]| {
        let text = text_of(so_far)?;
        let ends = so_far.last().copied() == eos || task.stop.iter().any(|stop| text.contains(stop));
        if ends || so_far.len() == task.max_tokens {
            done();
        }
        Ok(ends)
    };
    let continuations = proceed(scorer, &prompts, task.max_tokens, &mut ends)?;
    let answer = |(question, ids): (&Question, Vec<u32>)| {
        let ids = ids.strip_suffix(eos.as_slice()).unwrap_or(&ids);
        Ok(task.judge(question, &text_of(ids)?))
    };
    questions.into_iter().zip(continuations).map(answer).collect()
}
