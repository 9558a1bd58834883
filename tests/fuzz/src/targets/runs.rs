//! Weights, and the files of a run.

use crate::case::Case;
use engine::checkpoint::{self, AcceptedSteps, ExpandVocab, FromSaved, Header, Init, Position, Saved, StateKind};
use engine::config::{Model, hf};
use engine::error::{Error, Result};
use engine::model::rect::Rect;
use report::document::Document;
use report::efficiency::Efficiency;
use report::records::{history, status::Status};
use report::run::Run;
use report::{markdown, page};
use serde_json::{Value, json};
use std::path::Path;

/// A model in Hugging Face's form gets rows for new tokens, becomes a checkpoint and is exported again.
pub fn huggingface() -> Result<()> {
    let here = Path::new(".");
    let model = Model { hf: None, ..hf::read_model(here)? };
    let (from, to, old_size) = (here, Path::new("expanded"), model.vocab_size);
    let (new_size, init) = (old_size.saturating_add(3), Init::Pieces(vec![vec![0, 1]; 3]));
    let wider = ExpandVocab { from, to, old_size, new_size, init, tokenizer: Vec::new() };
    let _ = checkpoint::expand_vocab(&wider, &mut |_, _| ());
    let position = Position { step: 0, consumed_samples: 0 };
    let (config, identity) = (model.to_toml(), model.identity());
    let header = Header { position, config, identity, accepted: AcceptedSteps::default() };
    checkpoint::import(here, Path::new("run"), &model, &header, &mut |_| ())?;
    let saved = Saved::latest(Path::new("run"))?.expect("it was imported");
    FromSaved::new(saved, None)?.write(Path::new("out"), &mut |_| ())
}

/// `run/checkpoints`: `latest`, manifests and files of tensors.
pub fn checkpoint() -> Result<()> {
    let run = Path::new("run");
    let _ = (checkpoint::steps(run), checkpoint::latest_step(run));
    let saved = Saved::latest(run)?.ok_or_else(|| Error::user("no checkpoint"))?;
    let found = saved.verify(&mut |_| ())?;
    if let Some(not_finite) = found.first() {
        return Err(Error::user(not_finite.to_string()));
    }
    for tensor in &saved.manifest().tensors {
        let whole = Rect::whole(tensor.shape());
        let mut out = vec![0.0; whole.len()];
        saved.read(&tensor.name, StateKind::Master, &whole, &mut out)?;
    }
    FromSaved::new(saved, None)?.write(Path::new("out"), &mut |_| ())
}

/// Gives every manifest the checksum of its contents, as the engine computes it.
pub fn sign_manifests(case: &mut Case) {
    for (path, bytes) in &mut case.0 {
        if path.ends_with("manifest.json")
            && let Ok(Value::Object(mut manifest)) = serde_json::from_slice(bytes)
            && manifest.contains_key("checksum")
        {
            manifest["checksum"] = json!("");
            let hash = blake3::hash(Value::Object(manifest.clone()).to_string().as_bytes()).to_hex().to_string();
            manifest["checksum"] = json!(hash);
            *bytes = Value::Object(manifest).to_string().into_bytes();
        }
    }
}

/// The report of the run in `run`, and its status and history.
pub fn report() -> Result<()> {
    let dir = Path::new("run");
    let _ = (Status::read(dir), history::read(dir).map(|events| history::last_rollback(&events)));
    let run = Run::read(dir)?;
    let efficiency = Efficiency::of(&run, None).against(&run, &Efficiency::of(&run, Some(100.0)), &run);
    let document = Document::of(&efficiency, &run, Some(&run));
    let text = serde_json::to_string(&efficiency).expect("text and numbers");
    let _ = (text, markdown::write(&document), page::write(&document));
    Ok(())
}
