//! `evaluate --text`: the loss on a text.

use std::io::Write;

use data::text::Inputs;
use engine::config::Model;
use engine::cpu::{Cpu, cores};
use engine::error::{Error, Result};
use engine::mpi::{Comm, World};
use engine::train::eval::{Score, Scorer};

use super::{Args, Opened};
use crate::output::or_broken_pipe;

/// The pieces of text that are scored, and how long they are together.
struct Texts {
    pieces: Vec<String>,
    characters: usize,
    bytes: usize,
}

pub fn run(args: Args, world: &World) -> Result<()> {
    let comm = world.comm();
    let share = cores::share(comm);
    let opened = Opened::on_all_ranks(&args, comm)?;
    let inputs = args.texts.inputs(args.text.into_iter().collect());
    let texts = read_on_first(&inputs, &args.separator, comm)?;
    let ready = || -> Result<_> {
        let Opened { model, weights, .. } = &opened;
        let window = window(args.window, model)?;
        let mine = texts.pieces.iter().skip(comm.rank()).step_by(comm.size());
        let ids = mine.map(|piece| opened.encode(piece)).collect::<Result<Vec<_>>>()?;
        let longest = ids.iter().map(Vec::len).max().unwrap_or_default();
        let scorer = Scorer::new(Cpu::<f32>::new(share.threads), model, longest.min(window), |tensor, rect, out| {
            weights.read_parameter(tensor, rect, out)
        })?;
        Ok((scorer, ids))
    };
    let (mut scorer, ids) = comm.agree(ready())?;
    let score = comm.agree(scorer.score(&ids))?;
    let score = comm.all_gather_bytes(&[score.nats.to_le_bytes(), score.tokens.to_le_bytes()].concat());
    let score = score.iter().map(|bytes| decode(bytes)).fold(Score::default(), |a, b| a + b);
    if score.tokens == 0 {
        let name = inputs.paths[0].display();
        return Err(Error::user(format!("{name}: no text to score: every piece has one token at most")));
    }
    if comm.rank() == 0 {
        print(&score, &texts)?;
    }
    Ok(())
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
