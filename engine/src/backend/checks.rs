//! The search for the first number that is not finite: while it goes on, a backend looks at the result of every op.

use super::{Elem, Scope};
use crate::model::param_specs::Unit;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;

/// The place at which a rank first had a number that is not finite. Origins are ordered as the micro-batches of a step
/// compute, so that the least one of all ranks is the one that the others followed from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    mb: usize,
    /// Forward before backward.
    pass: u8,
    /// The place of the unit in its pass.
    depth: usize,
    /// The place of the op in its unit.
    index: u32,
    /// In words: "matmul_nt in layer 5, forward of micro-batch 3".
    pub what: String,
}

/// The search of one rank, while it goes on.
#[derive(Default)]
pub struct Checks(RefCell<Option<Search>>);

#[derive(Default)]
struct Search {
    part: Option<Scope>,
    unit: Option<Unit>,
    /// Ops since the unit began.
    index: u32,
    first: Option<Origin>,
}

impl Checks {
    pub fn begin(&self) {
        *self.0.borrow_mut() = Some(Search::default());
    }

    /// The first number that was not finite, if there was one.
    pub fn end(&self) -> Option<Origin> {
        self.0.borrow_mut().take().and_then(|search| search.first)
    }

    /// A part of the step begins.
    pub fn enter(&self, scope: Scope) {
        let Some(search) = &mut *self.0.borrow_mut() else { return };
        search.index = 0;
        match scope {
            Scope::Unit(unit) => search.unit = Some(unit),
            part => (search.part, search.unit) = (Some(part), None),
        }
    }

    /// An op is done; `values` gets its result. It is called only while a search goes on that has found nothing.
    pub fn made<T: Elem>(&self, op: &str, values: impl FnOnce() -> Vec<T>) {
        match &mut *self.0.borrow_mut() {
            Some(search) if search.first.is_none() => search.index += 1,
            _ => return,
        }
        // Not while the search is borrowed: getting the values may be an op.
        let is_finite = all_finite(&values());
        let Some(search) = &mut *self.0.borrow_mut() else { return };
        if !is_finite {
            search.first = Some(search.origin(op));
        }
    }
}

impl Search {
    fn origin(&self, op: &str) -> Origin {
        let (pass, mb) = match self.part {
            Some(Scope::Forward { mb, .. } | Scope::Validation { mb, .. }) => (0, mb),
            Some(Scope::Backward { mb, .. }) => (1, mb),
            _ => (2, usize::MAX),
        };
        let up = match self.unit {
            None | Some(Unit::Embedding) => 0,
            Some(Unit::Layer(layer) | Unit::Experts(layer)) => layer + 1,
            Some(Unit::Head) => usize::MAX,
        };
        let depth = if pass == 1 { usize::MAX - up } else { up };
        let unit = self.unit.map_or(String::new(), |unit| format!(" in {}", Scope::Unit(unit)));
        let part = self.part.map_or(String::new(), |part| format!(", {part}"));
        Origin { mb, pass, depth, index: self.index, what: format!("{op}{unit}{part}") }
    }
}

/// Whether all values are finite; integers are.
pub fn all_finite<T: Elem>(values: &[T]) -> bool {
    match T::NAME {
        "F32" => bytemuck::cast_slice::<T, f32>(values).iter().all(|x| x.is_finite()),
        "BF16" => bytemuck::cast_slice::<T, half::bf16>(values).iter().all(|x| x.is_finite()),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The origin that a search finds whose ops are bad where they are named "bad".
    fn search(steps: &[(Scope, &[&str])]) -> Option<Origin> {
        let checks = Checks::default();
        checks.begin();
        for (scope, ops) in steps {
            checks.enter(*scope);
            ops.iter().for_each(|op| checks.made(op, || vec![if *op == "bad" { f32::NAN } else { 1.0 }]));
        }
        checks.end()
    }

    #[test]
    fn the_first_op_is_named_with_its_place() {
        let (forward, layer) = (Scope::Forward { chunk: 0, mb: 3 }, |i| Scope::Unit(Unit::Layer(i)));
        let origin = search(&[(forward, &["embed"]), (layer(5), &["norm", "bad"]), (layer(6), &["bad"])]).unwrap();
        assert_eq!(origin.what, "bad in layer 5, forward of micro-batch 3");
        assert_eq!(search(&[(forward, &["embed"]), (layer(5), &["norm"])]), None);
        let checks = Checks::default();
        checks.made("bad", || -> Vec<f32> { panic!("no search goes on") });
    }

    #[test]
    fn origins_are_in_the_order_of_a_step() {
        let forward = |mb| Scope::Forward { chunk: 0, mb };
        let backward = |mb| Scope::Backward { chunk: 0, mb };
        let unit = |unit| (Scope::Unit(unit), &["bad"][..]);
        let none: &[&str] = &[];
        let of = |steps: &[(Scope, &[&str])]| search(steps).unwrap();
        let ordered = [
            of(&[(forward(0), none), unit(Unit::Embedding)]),
            of(&[(forward(0), none), unit(Unit::Layer(0))]),
            of(&[(forward(0), none), (Scope::Unit(Unit::Layer(0)), &["norm", "bad"])]),
            of(&[(forward(0), none), unit(Unit::Layer(7))]),
            of(&[(forward(0), none), unit(Unit::Head)]),
            of(&[(backward(0), none), unit(Unit::Head)]),
            of(&[(backward(0), none), unit(Unit::Layer(7))]),
            of(&[(backward(0), none), unit(Unit::Layer(0))]),
            of(&[(forward(1), none), unit(Unit::Layer(0))]),
        ];
        assert!(ordered.is_sorted(), "{ordered:?}");
    }

    #[test]
    fn numbers_of_each_type() {
        use half::bf16;
        assert!(all_finite(&[1.0f32, -f32::MAX]) && all_finite(&[bf16::MAX]) && all_finite(&[u32::MAX]));
        assert!(!all_finite(&[f32::INFINITY]) && !all_finite(&[bf16::NAN]) && !all_finite(&[0.0, f32::NAN]));
    }
}
