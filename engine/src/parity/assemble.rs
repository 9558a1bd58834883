//! Assembles the whole tensors from the ranks' shards, and checks that every element is held, has exactly one owner,
//! and is equal on all ranks that hold it.

use crate::config::Config;
use crate::layout::mesh::Mesh;
use crate::layout::rank_layout::RankLayout;
use crate::model::param_specs::{TensorSpec, all_tensors};
use crate::model::rect::Rect;

/// The tensors in the order of [`all_tensors`].
pub struct Assembled {
    pub values: Vec<Vec<f32>>,
    /// A sentence about the first wrong tensor, with the number of the others.
    pub fault: Option<String>,
}

/// The state of one element after the ranks visited so far.
#[derive(Clone, Copy, Default)]
struct Element {
    value: f32,
    /// The first rank that holds it.
    holder: Option<usize>,
    /// How many ranks own it: count it in the gradient norm and save it.
    owners: usize,
    /// The first rank that holds another value.
    dissenter: Option<usize>,
}

/// `masters`: for each rank of `mesh`, its shards of the master weights, bucket after bucket.
pub fn assemble(config: &Config, mesh: &Mesh, masters: &[&[f32]]) -> Assembled {
    assert_eq!(masters.len(), mesh.ranks(), "weights of the mesh's ranks");
    let specs = all_tensors(&config.model);
    let mut tensors: Vec<Vec<Element>> = specs.iter().map(|spec| vec![Element::default(); spec.len()]).collect();
    for (rank, masters) in masters.iter().enumerate() {
        for_each_shard(config, mesh, rank, masters, |name, rect, owns, values| {
            let i = specs.iter().position(|spec| spec.name == name).expect("a rank holds tensors of the model");
            let width = specs[i].shape()[1];
            let indices = rect.rows.clone().flat_map(|row| rect.cols.clone().map(move |col| row * width + col));
            indices.zip(values).for_each(|(at, value)| tensors[i][at].add(rank, *value, owns));
        });
    }
    let wrong = |(spec, tensor): (&TensorSpec, &Vec<Element>)| Some(format!("{} {}", spec.name, fault(tensor)?));
    let mut wrong = specs.iter().zip(&tensors).filter_map(wrong);
    let (first, more) = (wrong.next(), wrong.count());
    let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
    let fault = first.map(|first| first + &more);
    Assembled { values: tensors.iter().map(|tensor| tensor.iter().map(|e| e.value).collect()).collect(), fault }
}

/// Calls `each(tensor, rectangle, owns, elements)` for every rectangle that `rank` holds a master weight of.
fn for_each_shard(
    config: &Config,
    mesh: &Mesh,
    rank: usize,
    masters: &[f32],
    mut each: impl FnMut(&str, &Rect, bool, &[f32]),
) {
    let rank_layout = RankLayout::new(config, mesh.clone(), rank);
    let mut rest = masters;
    for bucket in rank_layout.buckets(config) {
        let members = rank_layout.members(bucket.sharded_over());
        let me = members.iter().position(|&member| member == rank).expect("a rank is in its own group");
        let owns = rank_layout.owns_shard(&bucket);
        let shard = bucket.shard(me, members.len());
        let (values, after) = rest.split_at(shard.len());
        for part in bucket.parts(&shard) {
            each(&part.tensor.name, &part.rect, part.owned && owns, &values[part.at..part.at + part.rect.len()]);
        }
        rest = after;
    }
    assert!(rest.is_empty(), "{} elements of rank {rank} are in no bucket", rest.len());
}

impl Element {
    fn add(&mut self, rank: usize, value: f32, owns: bool) {
        self.owners += usize::from(owns);
        match self.holder {
            None => (self.value, self.holder) = (value, Some(rank)),
            Some(_) if value.to_bits() != self.value.to_bits() => self.dissenter = self.dissenter.or(Some(rank)),
            Some(_) => {}
        }
    }
}

/// The first fault of a tensor.
fn fault(tensor: &[Element]) -> Option<String> {
    tensor.iter().find_map(|element| match element {
        Element { holder: None, .. } => Some("has an element that no rank holds".to_string()),
        Element { holder: Some(a), dissenter: Some(b), .. } => Some(format!("differs between ranks {a} and {b}")),
        Element { owners: 1, .. } => None,
        Element { owners, .. } => Some(format!("has an element with {owners} owners")),
    })
}
