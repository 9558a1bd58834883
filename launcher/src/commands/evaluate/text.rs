//! `evaluate --text`: the loss on a text.

use std::io::Write;

use data::text::Inputs;
use engine::backend::Backend;
use engine::config::Model;
use engine::error::{Error, Result};
use engine::mpi::{Comm, World};
use engine::train::eval::{Score, Scorer};

use super::model::Work;
use super::{Args, Opened};
use crate::output::or_broken_pipe;
use crate::questions::Continue;

/// The pieces of text that are scored, and how long they are together.
struct Texts {
    pieces: Vec<String>,
    characters: usize,
    bytes: usize,
}

pub fn run(args: Args, world: &World) -> Result<()> {
    let comm = world.comm();
    let opened = Opened::on_all_ranks(&args, comm)?;
    let inputs = args.texts.inputs(args.text.into_iter().collect());
    let texts = read_on_first(&inputs, &args.separator, comm)?;
    let mesh = comm.agree(args.layout.mesh(&opened.model, comm))?;
    let ready = || -> Result<_> {
        let window = window(args.window, &opened.model)?;
        let mine = texts.pieces.iter().skip(mesh.replica(comm.rank())).step_by(mesh.replicas());
        Ok((window, mine.map(|piece| opened.encoder.encode(piece)).collect::<Result<Vec<_>>>()?))
    };
    let (window, ids) = comm.agree(ready())?;
    let rows = ids.iter().flat_map(|ids| windows(ids.len().saturating_sub(1), window)).collect();
    let score = args.layout.with_model(&opened, rows, world, Scoring { ids: &ids, window, comm })?;
    if score.tokens == 0 {
        let name = inputs.paths[0].display();
        return Err(Error::user(format!("{name}: no text to score: every piece has one token at most")));
    }
    if comm.rank() == 0 {
        print(&score, &texts)?;
    }
    Ok(())
}

/// The rows of the windows of a text.
fn windows(rows: usize, window: usize) -> impl Iterator<Item = usize> {
    (0..rows).step_by(window).map(move |first| window.min(rows - first))
}

/// Scores the pieces of this rank's replica. All ranks get the sum.
struct Scoring<'a> {
    ids: &'a [Vec<u32>],
    window: usize,
    comm: &'a Comm,
}

impl Work for Scoring<'_> {
    type Output = Score;

    fn run<B: Backend>(self, mut scorer: Scorer<B>, _: Continue<B>) -> Result<Score> {
        let score = scorer.score(self.ids, self.window)?;
        let score = if scorer.answers() { score } else { Score::default() };
        let all = self.comm.all_gather_bytes(&[score.nats.to_le_bytes(), score.tokens.to_le_bytes()].concat());
        Ok(all.iter().map(|bytes| decode(bytes)).fold(Score::default(), |a, b| a + b))
    }
}

/// Rank 0 reads the texts for all, since only rank 0 has standard input.
fn read_on_first(inputs: &Inputs, separator: &str, comm: &Comm) -> Result<Texts> {
    let read = || Ok(serde_json::to_vec(&read(inputs, separator)?).expect("strings are JSON"));
    let pieces: Vec<String> = serde_json::from_slice(&comm.on_first(read)?).expect("rank 0 sent strings");
    let characters = pieces.iter().map(|piece| piece.chars().count()).sum();
    let bytes = pieces.iter().map(String::len).sum();
    Ok(Texts { pieces, characters, bytes })
}

fn read(inputs: &Inputs, separator: &str) -> Result<Vec<String>> {
    if separator.is_empty() {
        return Err(Error::user("--separator \"\": must not be empty; name what stands between two texts"));
    }
    let mut pieces = Vec::new();
    inputs.for_each_document(|document| {
        let stripped = document.split(separator).map(str::trim).filter(|piece| !piece.is_empty());
        pieces.extend(stripped.map(str::to_string));
        Ok(())
    })?;
    if pieces.is_empty() {
        return Err(Error::user(format!("{}: no text to score", inputs.paths[0].display())));
    }
    Ok(pieces)
}

fn window(asked: Option<u64>, model: &Model) -> Result<usize> {
    let positions = model.max_position_embeddings;
    match asked {
        Some(window) if window > positions as u64 => Err(Error::user(format!(
            "--window {window}: must be at most max_position_embeddings of the model, {positions}"
        ))),
        asked => Ok(asked.map_or(positions, |window| window as usize)),
    }
}

fn decode(bytes: &[u8]) -> Score {
    let (nats, tokens) = bytes.split_at(8);
    let eight = |bytes: &[u8]| <[u8; 8]>::try_from(bytes).expect("a score is two numbers of 8 bytes");
    Score { nats: f64::from_le_bytes(eight(nats)), tokens: u64::from_le_bytes(eight(tokens)) }
}

fn print(score: &Score, texts: &Texts) -> Result<()> {
    let mean = score.nats / score.tokens as f64;
    or_broken_pipe(writeln!(
        std::io::stdout(),
        "nats per token      {mean:.4}\n\
         nats per character  {:.4}\n\
         bits per byte       {:.4}\n\
         perplexity          {:.4}\n\
         tokens              {}\n\
         characters          {}\n\
         bytes               {}",
        score.nats / texts.characters as f64,
        score.nats / std::f64::consts::LN_2 / texts.bytes as f64,
        mean.exp(),
        score.tokens,
        texts.characters,
        texts.bytes
    ))
}
