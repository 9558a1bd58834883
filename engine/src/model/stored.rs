//! How parameters lie in a Hugging Face file where it is not as the engine has them: GPT-2's q, k and v are one tensor,
//! and its matrices are `[in, out]`, transposed.

use super::param_specs::{TensorSpec, all_tensors};
use super::rect::Rect;
use crate::config::Model;
use crate::error::Result;

/// The place of a parameter in a tensor of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The file's tensor.
    pub name: String,
    /// The parameter's first output feature among the tensor's, and the number of the tensor's.
    pub first: usize,
    pub of: usize,
}

/// A tensor of the file.
#[derive(Debug, Clone)]
pub struct FileTensor {
    /// Its name and shape.
    pub spec: TensorSpec,
    /// The parameters that it holds, in the order of their output features; one that is equal to `spec` if the file has
    /// the parameter as it is.
    pub parts: Vec<TensorSpec>,
}

/// Every tensor of the model's files, in the order of the units.
pub fn file_tensors(model: &Model) -> Vec<FileTensor> {
    let mut files: Vec<FileTensor> = Vec::new();
    for part in all_tensors(model) {
        let spec = part.in_file();
        match files.last_mut().filter(|file| file.spec.name == spec.name) {
            Some(file) => file.parts.push(part),
            None => files.push(FileTensor { spec, parts: vec![part] }),
        }
    }
    files
}

impl TensorSpec {
    /// The tensor of the file that holds this parameter.
    pub fn in_file(&self) -> TensorSpec {
        let Some(stored) = &self.stored else { return self.clone() };
        let dims = match self.dims[..] {
            [_] => vec![stored.of],
            [_, cols] => vec![cols, stored.of],
            _ => panic!("{} has {} dimensions; only matrices are stored otherwise", self.name, self.dims.len()),
        };
        TensorSpec { name: stored.name.clone(), dims, stored: None, ..self.clone() }
    }

    /// The rectangle of the file's tensor that holds the rectangle `rect` of this parameter, transposed if it is of a
    /// matrix that is stored otherwise.
    fn place(&self, rect: &Rect) -> Rect {
        let first = self.stored.as_ref().map_or(0, |stored| stored.first);
        match (self.is_transposed(), self.dims.len()) {
            (true, _) => Rect { rows: rect.cols.clone(), cols: rect.rows.start + first..rect.rows.end + first },
            (false, 1) => Rect { rows: rect.rows.clone(), cols: rect.cols.start + first..rect.cols.end + first },
            (false, _) => rect.clone(),
        }
    }

    fn is_transposed(&self) -> bool {
        self.stored.is_some() && self.dims.len() == 2
    }

    /// Fills `out` with the rectangle `rect` of this parameter by `read`, which fills its last argument with a
    /// rectangle of the file's tensor of that name.
    pub fn read_stored(
        &self,
        rect: &Rect,
        out: &mut [f32],
        read: impl FnOnce(&str, &Rect, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let name = self.stored.as_ref().map_or(&self.name, |stored| &stored.name);
        let place = self.place(rect);
        if !self.is_transposed() {
            return read(name, &place, out);
        }
        let mut file = vec![0.0; out.len()];
        read(name, &place, &mut file)?;
        transpose(&file, place.cols.len(), out);
        Ok(())
    }
}

impl FileTensor {
    /// Fills `out` with whole rows of the file's tensor by `read`, which fills its last argument with a rectangle of a
    /// parameter.
    pub fn read_rows(
        &self,
        rect: &Rect,
        out: &mut [f32],
        read: impl Fn(&TensorSpec, &Rect, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let width = rect.cols.len();
        let mut left = 0;
        for part in &self.parts {
            if part.stored.is_none() {
                return read(part, rect, out);
            }
            let features = part.dims[0];
            // A matrix has the file's rows as its columns; a vector is one row, as in the file.
            let wanted = match part.is_transposed() {
                true => Rect { rows: 0..features, cols: rect.rows.clone() },
                false => Rect { rows: 0..1, cols: 0..features },
            };
            let mut values = vec![0.0; wanted.len()];
            read(part, &wanted, &mut values)?;
            for (row, out) in out.chunks_exact_mut(width).enumerate() {
                let out = &mut out[left..left + features];
                let rows = rect.rows.len();
                out.iter_mut().enumerate().for_each(|(i, out)| *out = values[i * rows + row]);
            }
            left += features;
        }
        Ok(())
    }
}

/// to `[cols, rows]` = the transpose of from `[rows, cols]`.
fn transpose(from: &[f32], cols: usize, to: &mut [f32]) {
    let rows = from.len() / cols.max(1);
    for (row, from) in from.chunks_exact(cols).enumerate() {
        from.iter().enumerate().for_each(|(col, x)| to[col * rows + row] = *x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::init;

    fn gpt() -> Model {
        let text = "[model]\narchitecture = \"gpt2\"\nhidden_size = 12\nintermediate_size = 20\n\
            num_hidden_layers = 2\nnum_attention_heads = 3\nvocab_size = 23\nmax_position_embeddings = 16\n\
            layer_norm_epsilon = 1e-5\ntie_word_embeddings = true\n";
        Model::from_toml("gpt".into(), text).unwrap()
    }

    #[test]
    fn a_file_has_its_own_tensors() {
        let names: Vec<_> =
            file_tensors(&gpt()).iter().map(|file| (file.spec.name.clone(), file.spec.dims.clone())).collect();
        for (name, dims) in [
            ("transformer.wte.weight", vec![23, 12]),
            ("transformer.wpe.weight", vec![16, 12]),
            ("transformer.h.1.attn.c_attn.weight", vec![12, 36]),
            ("transformer.h.1.attn.c_attn.bias", vec![36]),
            ("transformer.h.1.mlp.c_fc.weight", vec![12, 20]),
            ("transformer.h.1.mlp.c_proj.weight", vec![20, 12]),
            ("transformer.h.1.ln_2.bias", vec![12]),
        ] {
            assert_eq!(
                names.iter().filter(|found| **found == (name.to_string(), dims.clone())).count(),
                1,
                "{names:?}"
            );
        }
        assert_eq!(names.len(), 2 + 2 * 12 + 2);
        let llama = file_tensors(&Model::tiny());
        assert!(llama.iter().all(|file| file.parts == [file.spec.clone()]));
    }

    /// Rows of the file are made of parameters, and rectangles of parameters are read from it again.
    #[test]
    fn parameters_are_read_back_from_the_file_that_holds_them() {
        let model = gpt();
        let fill = |spec: &TensorSpec, rect: &Rect, out: &mut [f32]| {
            let mut whole = vec![0.0; spec.len()];
            init::normal(3, &spec.name, 1.0, 0, &mut whole);
            let width = spec.shape()[1];
            let at = rect.rows.clone().flat_map(|row| rect.cols.clone().map(move |col| row * width + col));
            out.iter_mut().zip(at).for_each(|(out, at)| *out = whole[at]);
            Ok(())
        };
        for file in file_tensors(&model) {
            let [rows, cols] = file.spec.shape();
            let mut all = vec![0.0; rows * cols];
            for (row, out) in all.chunks_exact_mut(cols).enumerate() {
                file.read_rows(&Rect { rows: row..row + 1, cols: 0..cols }, out, fill).unwrap();
            }
            for part in &file.parts {
                let [rows, width] = part.shape();
                let rect = Rect { rows: rows / 3..rows, cols: width / 4..width };
                let (mut got, mut want) = (vec![0.0; rect.len()], vec![0.0; rect.len()]);
                let read = |name: &str, rect: &Rect, out: &mut [f32]| {
                    assert_eq!(name, file.spec.name);
                    let at = rect.rows.clone().flat_map(|row| rect.cols.clone().map(move |col| row * cols + col));
                    out.iter_mut().zip(at).for_each(|(out, at)| *out = all[at]);
                    Ok(())
                };
                part.read_stored(&rect, &mut got, read).unwrap();
                fill(part, &rect, &mut want).unwrap();
                assert_eq!(got, want, "{}", part.name);
            }
        }
    }
}
