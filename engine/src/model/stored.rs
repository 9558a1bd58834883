//! How parameters lie in a Hugging Face file where it is not as the engine has them: several of them in one tensor
//! (GPT-2's q, k and v; the experts of a layer), or matrices `[in, out]`, transposed. Reading and writing follow the
//! same description. A file's dtype is not this module's business.

use super::param_specs::{TensorSpec, all_tensors};
use super::rect::Rect;
use crate::config::{Model, PackedLayout, TensorNames};
use crate::error::Result;
use std::ops::Range;

/// Rows of a file's matrix that are transposed at a time, so that they stay in the cache.
const TILE: usize = 64;

/// How a file has the experts of a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// The tensors of each expert under their own names, in families that have such files. GPT-OSS has not: its files
    /// are packed in either form.
    #[default]
    PerExpert,
    /// One tensor for the gates and values of all experts, and one for their outputs, where the family has such files.
    Packed,
}

impl Form {
    /// The form of a file that has the tensors that `has` knows. `Err`: it has both; a name of each.
    pub fn of(model: &Model, has: impl Fn(&str) -> bool) -> std::result::Result<Form, [String; 2]> {
        let tensors = all_tensors(model);
        let differ =
            tensors.iter().filter_map(|tensor| Some([tensor.name_in(Form::PerExpert), &tensor.packed.as_ref()?.name]));
        let [mut per_expert, mut packed] = [None, None];
        // The router's name may differ too, but says nothing of the experts.
        for [one, other] in differ.filter(|[_, packed]| packed.contains(".experts.")) {
            per_expert = per_expert.or(Some(one).filter(|name| has(name)));
            packed = packed.or(Some(other).filter(|name| has(name)));
        }
        match (per_expert, packed) {
            (Some(one), Some(other)) => Err([one.to_string(), other.to_string()]),
            (None, Some(_)) => Ok(Form::Packed),
            (_, None) => Ok(Form::PerExpert),
        }
    }
}

/// The place of a parameter in a tensor of the file: in one matrix `[features, inputs]` of a stack of matrices, or in
/// one row of biases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The file's tensor, and its dimensions.
    pub name: String,
    pub dims: Vec<usize>,
    /// The number of the matrix, or of the row of biases.
    pub matrix: usize,
    /// Output feature i of the parameter is the matrix's feature `first + i step`.
    pub first: usize,
    pub step: usize,
    /// Whether the file has the matrix as `[inputs, features]`.
    pub transposed: bool,
}

impl Stored {
    /// These features of the parameter, from the first to the last, among those of the matrix.
    pub fn features(&self, range: &Range<usize>) -> Range<usize> {
        let at = |i: usize| self.first + i * self.step;
        if range.is_empty() { at(0)..at(0) } else { at(range.start)..at(range.end - 1) + 1 }
    }

    /// Rows of the file's tensor before the matrix.
    fn rows_before(&self) -> usize {
        self.matrix * self.dims[self.dims.len() - 2]
    }
}

/// A matrix or bias of an expert, among those that a packed file has together.
#[derive(Debug, Clone, Copy)]
pub struct PackedPart<'a> {
    /// The layer.
    pub l: usize,
    /// The tensor that holds it, within the module of the experts.
    pub together: &'a str,
    /// The number of the expert, of as many.
    pub expert: [usize; 2],
    /// Its number among the expert's, of as many: a gate is 0 of 2.
    pub part: [usize; 2],
}

impl TensorSpec {
    /// Notes where files that have experts packed have this parameter.
    pub fn in_packed(self, names: &TensorNames, part: PackedPart) -> TensorSpec {
        let Some(packed) = &names.packed else { return self };
        let ending = if self.dims.len() == 1 { "_bias" } else { "" };
        let name = names.of_layer(part.l, &format!("{}.{}{ending}", packed.experts, part.together));
        let ([e, experts], [i, of]) = (part.expert, part.part);
        let features = of * self.dims[0];
        let (first, step, transposed) = match packed.layout {
            PackedLayout::Stacked => (i * self.dims[0], 1, false),
            PackedLayout::Alternating => (i, of, self.dims.len() == 2),
        };
        let dims = match self.dims[..] {
            [_] => vec![experts, features],
            [_, inputs] if transposed => vec![experts, inputs, features],
            [_, inputs] => vec![experts, features, inputs],
            _ => panic!("{} has {} dimensions; experts have matrices and biases", self.name, self.dims.len()),
        };
        let place = Some(Stored { name, dims, matrix: e, first, step, transposed });
        match packed.layout {
            PackedLayout::Stacked => TensorSpec { packed: place, ..self },
            PackedLayout::Alternating => TensorSpec { stored: place, ..self },
        }
    }

    /// Notes the name of layer `l`'s router in files that have experts packed, where it has another one there.
    pub fn router_in_packed(self, names: &TensorNames, l: usize) -> TensorSpec {
        let other = names.packed.map(|packed| packed.router).filter(|router| *router != names.router);
        let place = |router| {
            let (name, dims) = (format!("{}.weight", names.of_layer(l, router)), self.dims.clone());
            Stored { name, dims, matrix: 0, first: 0, step: 1, transposed: false }
        };
        TensorSpec { packed: other.map(place), ..self }
    }
}

/// How the elements of a parameter's rectangle lie in a row-major matrix of the file, from the first one on.
struct Place {
    /// Rows and columns of the parameter's rectangle.
    shape: [usize; 2],
    /// Elements of the file from one to the next in a column, and in a row, of the parameter.
    apart: [usize; 2],
}

impl Place {
    /// Whether the elements lie in the file as in the parameter, and without others between them.
    fn is_as_here(&self) -> bool {
        let ([rows, cols], [down, right]) = (self.shape, self.apart);
        (right == 1 || cols == 1) && (down == cols || rows == 1)
    }

    /// Calls `f` with the index of every element in the parameter's rectangle and in the file's.
    fn each(&self, mut f: impl FnMut(usize, usize)) {
        let ([rows, cols], [down, right]) = (self.shape, self.apart);
        for tile in (0..cols).step_by(TILE) {
            for row in 0..rows {
                (tile..(tile + TILE).min(cols)).for_each(|col| f(row * cols + col, row * down + col * right));
            }
        }
    }
}

/// A tensor of the file.
#[derive(Debug, Clone)]
pub struct FileTensor {
    /// Its name and shape.
    pub spec: TensorSpec,
    /// The parameters that it holds; one that is equal to `spec` if the file has the parameter as it is.
    pub parts: Vec<TensorSpec>,
    form: Form,
}

/// Every tensor of the model's files of this form, in the order of the units.
pub fn file_tensors(model: &Model, form: Form) -> Vec<FileTensor> {
    let mut files: Vec<FileTensor> = Vec::new();
    for part in all_tensors(model) {
        match files.last_mut().filter(|file| file.spec.name == part.name_in(form)) {
            Some(file) => file.parts.push(part),
            None => files.push(FileTensor { spec: part.in_file(form), parts: vec![part], form }),
        }
    }
    files
}

impl TensorSpec {
    /// Its place in a file of this form; `None` where it is there under its own name and as it is.
    pub fn stored_in(&self, form: Form) -> Option<&Stored> {
        let packed = self.packed.as_ref().filter(|_| form == Form::Packed);
        packed.or(self.stored.as_ref())
    }

    fn name_in(&self, form: Form) -> &str {
        self.stored_in(form).map_or(&self.name, |stored| &stored.name)
    }

    /// The tensor of the file that holds this parameter.
    pub fn in_file(&self, form: Form) -> TensorSpec {
        let (name, dims) = match self.stored_in(form) {
            Some(stored) => (stored.name.clone(), stored.dims.clone()),
            None => (self.name.clone(), self.dims.clone()),
        };
        TensorSpec { name, dims, stored: None, packed: None, ..self.clone() }
    }

    /// The rectangle of the file's tensor that holds the rectangle `rect` of this parameter, not always alone.
    fn file_rect(&self, stored: &Stored, rect: &Rect) -> Rect {
        let below = |rows: Range<usize>| rows.start + stored.rows_before()..rows.end + stored.rows_before();
        if self.dims.len() == 1 {
            return Rect { rows: stored.matrix..stored.matrix + 1, cols: stored.features(&rect.cols) };
        }
        match stored.transposed {
            true => Rect { rows: below(rect.cols.clone()), cols: stored.features(&rect.rows) },
            false => Rect { rows: below(stored.features(&rect.rows)), cols: rect.cols.clone() },
        }
    }

    /// The place of `rect` of this parameter among rows of the file that have this width.
    fn place(&self, stored: &Stored, rect: &Rect, width: usize) -> Place {
        let apart = match (self.dims.len(), stored.transposed) {
            (1, _) => [width, stored.step],
            (_, true) => [stored.step, width],
            (_, false) => [stored.step * width, 1],
        };
        Place { shape: [rect.rows.len(), rect.cols.len()], apart }
    }

    /// The rectangle of this parameter that lies in these rows of the file's tensor.
    fn in_rows(&self, stored: &Stored, rows: &Range<usize>) -> Rect {
        let whole = Rect::whole(self.shape());
        if self.dims.len() == 1 {
            let rows = if rows.contains(&stored.matrix) { 0..1 } else { 0..0 };
            return Rect { rows, ..whole };
        }
        // The first of the parameter's rows, or columns, that is not before this row of the file.
        let (first, step) = if stored.transposed { (0, 1) } else { (stored.first, stored.step) };
        let from = |row: usize| row.saturating_sub(stored.rows_before() + first).div_ceil(step);
        let range = from(rows.start)..from(rows.end);
        let there = match stored.transposed {
            true => Rect { cols: range, ..whole.clone() },
            false => Rect { rows: range, ..whole.clone() },
        };
        there.intersect(&whole)
    }

    /// Fills `out` with the rectangle `rect` of this parameter by `read`, which fills its last argument with a
    /// rectangle of the file's tensor of that name.
    pub fn read_stored(
        &self,
        form: Form,
        rect: &Rect,
        out: &mut [f32],
        read: impl FnOnce(&str, &Rect, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let Some(stored) = self.stored_in(form) else { return read(&self.name, rect, out) };
        let of_file = self.file_rect(stored, rect);
        let place = self.place(stored, rect, of_file.cols.len());
        if place.is_as_here() {
            return read(&stored.name, &of_file, out);
        }
        let mut file = vec![0.0; of_file.len()];
        read(&stored.name, &of_file, &mut file)?;
        place.each(|here, there| out[here] = file[there]);
        Ok(())
    }
}

impl FileTensor {
    /// Fills `out` with whole rows of the file's tensor by `read`, which fills its last argument with a rectangle of a
    /// parameter. Only the parameters in these rows are read.
    pub fn read_rows(
        &self,
        rect: &Rect,
        out: &mut [f32],
        read: impl Fn(&TensorSpec, &Rect, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let width = rect.cols.len();
        for part in &self.parts {
            let Some(stored) = part.stored_in(self.form) else { return read(part, rect, out) };
            let wanted = part.in_rows(stored, &rect.rows);
            if wanted.is_empty() {
                continue;
            }
            let (of_file, place) = (part.file_rect(stored, &wanted), part.place(stored, &wanted, width));
            let out = &mut out[(of_file.rows.start - rect.rows.start) * width + of_file.cols.start..];
            if place.is_as_here() {
                read(part, &wanted, &mut out[..wanted.len()])?;
                continue;
            }
            let mut values = vec![0.0; wanted.len()];
            read(part, &wanted, &mut values)?;
            place.each(|here, there| out[there] = values[here]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
