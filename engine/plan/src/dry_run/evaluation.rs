//! A dry run of an evaluation.

use engine::backend::{Backend, Elem, Scratch};
use engine::config::Config;
use engine::dry::{Dry, Keep};
use engine::error::Result;
use engine::layout::mesh::Mesh;
use engine::layout::rank_layout::RankLayout;
use engine::memory::arena::AllocTrace;
use engine::memory::free_list::Allocator;
use engine::stage::groups::Groups;
use engine::train::eval::Scorer;
use engine::train::likelihood::Text;
use std::cell::RefCell;
use std::rc::Rc;

use super::{DryRun, HeldBytes};

/// The memory that an evaluation takes on rank `rank`, whatever its texts: `config` is that of
/// [`Config::of_evaluation`].
pub fn evaluation<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    rank: usize,
    scratch: impl Scratch + Clone + 'static,
) -> Result<DryRun> {
    let with = |allocator| keeping::<A>(allocator, config, mesh, rank, scratch.clone());
    let allocator = scratch.allocator(0);
    if allocator.live().is_none() {
        return with(allocator);
    }
    let trace = Rc::new(RefCell::new(AllocTrace::default()));
    with(Box::new(trace.clone()))?;
    let small = trace.borrow().border();
    Ok(DryRun { small, ..with(scratch.allocator(small))? })
}

/// Loads the model, scores two micro-batches, and, where one stage holds the model, adds a token to a prompt.
fn keeping<A: Elem>(
    allocator: Box<dyn Allocator>,
    config: &Config,
    mesh: &Mesh,
    rank: usize,
    scratch: impl Scratch + 'static,
) -> Result<DryRun> {
    let rank_layout = RankLayout::new(config, mesh.clone(), rank);
    let held = HeldBytes { gradients: 0, optimizer: 0, ..HeldBytes::of::<A>(config, &rank_layout, &scratch) };
    let b = Dry::<A>::new(rank, scratch, allocator, Keep::Totals).imbalance(config.parallel.expert_imbalance);
    let groups = Groups::new(&b, config, &rank_layout);
    let mut scorer = Scorer::new(b, groups, config, rank_layout, |_, _, _| Ok(()))?;
    let first = scorer.backend().events();
    let (seq, sequences) = (config.train.seq_length, config.train.micro_batch_size);
    let full = Text { ids: vec![0; seq + 1], from: 1 };
    scorer.log_likelihoods(&vec![full; 2 * sequences], |_, _| ())?;
    if config.parallel.pipeline == 1 {
        scorer.continuations_uncached(&[vec![0]], 1, &mut |_, _| Ok(true))?;
    }
    let b = scorer.backend();
    let (usage, peak, log) = (b.usage(), b.peak(), b.log());
    Ok(DryRun { usage, small: 0, held, peak, step: b.totals(), log, last: first..b.events() })
}
