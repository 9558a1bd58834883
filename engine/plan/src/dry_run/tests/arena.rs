//! A backend with an arena: one step stands for all, and the remedies of a run that does not fit.

use super::*;
use crate::dry_run::{plan, remedies};
use engine::backend::Heads;
use engine::memory::arena::{Arena, ArenaSpec};
use engine::memory::free_list::Allocator;

/// The CPU's ops on an arena with a shared workspace.
#[derive(Clone)]
struct OnSlab(CpuScratch<bf16>);

const WORKSPACE: usize = 4096;

impl Scratch for OnSlab {
    fn allocator(&self, small: usize) -> Box<dyn Allocator> {
        Box::new(Arena::new(ArenaSpec::boundless(small)))
    }
    fn fixed(&self) -> Vec<usize> {
        vec![WORKSPACE]
    }
    fn block(&self, bytes: usize) -> usize {
        bytes.max(1).next_multiple_of(256)
    }
    fn logits_rows(&self, cols: usize) -> usize {
        self.0.logits_rows(cols)
    }
    fn comm_chunks(&self, rows: usize) -> usize {
        rows.min(2)
    }
    fn matmul(&self, shape: [usize; 3]) -> Vec<usize> {
        self.0.matmul(shape)
    }
    fn matmul_acc(&self, shape: [usize; 3]) -> Vec<usize> {
        self.0.matmul_acc(shape)
    }
    fn grouped(&self, n: usize, k: usize) -> Vec<usize> {
        self.0.grouped(n, k)
    }
    fn grouped_acc(&self, n: usize, k: usize) -> Vec<usize> {
        self.0.grouped_acc(n, k)
    }
    fn route_bwd(&self, rows: usize, experts: usize) -> Vec<usize> {
        self.0.route_bwd(rows, experts)
    }
    fn rmsnorm_bwd(&self, rows: usize, cols: usize) -> Vec<usize> {
        self.0.rmsnorm_bwd(rows, cols)
    }
    fn layernorm_bwd(&self, rows: usize, cols: usize) -> Vec<usize> {
        self.0.layernorm_bwd(rows, cols)
    }
    fn bias_bwd(&self, rows: usize, cols: usize) -> Vec<usize> {
        self.0.bias_bwd(rows, cols)
    }
    fn qk_norm_rope_bwd(&self, rows: usize, h: Heads) -> Vec<usize> {
        self.0.qk_norm_rope_bwd(rows, h)
    }
    fn attention(&self, rows: usize, h: Heads) -> Vec<usize> {
        self.0.attention(rows, h)
    }
    fn attention_bwd(&self, rows: usize, h: Heads) -> Vec<usize> {
        self.0.attention_bwd(rows, h)
    }
    fn embed_bwd(&self, tokens: usize, cols: usize) -> Vec<usize> {
        vec![4 * tokens, 4 * cols]
    }
    fn sum_squares(&self, elements: usize) -> Vec<usize> {
        vec![elements.min(1000)]
    }
}

fn in_arena() -> OnSlab {
    OnSlab(CpuScratch::<bf16>::new(1))
}

/// A dry run itself asserts that each step, and each validation, leaves every block where it was.
#[test]
fn one_step_lays_out_all_of_them() {
    for (mut config, ranks, name) in layouts() {
        config.train.eval_interval = 1;
        let mesh = config.mesh(ranks).unwrap();
        for rank in [0, ranks / 2, ranks - 1] {
            let of = |steps| run_rank::<bf16>(&config, &mesh, rank, in_arena(), Keep::Totals, steps).unwrap().usage;
            let one = of(1);
            assert_eq!(of(4), one, "rank {rank} of {name}");
            assert!(one.reserved >= one.peak && one.in_use < one.peak, "rank {rank} of {name}: {one:?}");
        }
    }
}

#[test]
fn a_plan_of_an_arena_is_of_whole_steps() {
    for (mut config, ranks, name) in layouts() {
        config.train.global_batch_size = 96;
        let mesh = config.mesh(ranks).unwrap();
        let planned = plan::<bf16>(&config, &mesh, 0, in_arena()).unwrap();
        let allocator = in_arena().allocator(planned.small);
        let whole = keeping::<bf16>(allocator, &config, &mesh, 0, in_arena(), Keep::Totals, 1).unwrap();
        assert_eq!(planned.cut(), ArenaSpec { bytes: whole.usage.reserved, small: planned.small });
        assert_eq!((planned.usage, planned.step), (whole.usage, whole.step), "{name}");
    }
}

#[test]
#[should_panic(expected = "blocks after a step, and before, on rank 0")]
fn a_step_that_leaks_a_block_panics() {
    /// Never frees some of the blocks.
    struct Forgetful(Arena, Vec<usize>);
    impl Allocator for Forgetful {
        fn take(&mut self, bytes: usize) -> usize {
            let at = self.0.take(bytes);
            self.1.extend((self.0.live().unwrap().len() % 5 == 4).then_some(at));
            at
        }
        fn give(&mut self, bytes: usize, at: usize) {
            match self.1.iter().position(|&kept| kept == at) {
                Some(_) => {}
                None => self.0.give(bytes, at),
            }
        }
        fn usage(&self) -> Usage {
            self.0.usage()
        }
        fn live(&self) -> Option<Vec<engine::memory::free_list::Live>> {
            self.0.live()
        }
    }
    let allocator = Box::new(Forgetful(Arena::new(ArenaSpec::boundless(0)), Vec::new()));
    let config = config("global_batch_size = 8", "", false);
    let mesh = config.mesh(1).unwrap();
    keeping::<bf16>(allocator, &config, &mesh, 0, in_arena(), Keep::Totals, 1).unwrap();
}

/// Bytes of the rank that needs most.
fn most(config: &Config, ranks: usize) -> usize {
    let mesh = config.mesh(ranks).unwrap();
    let of = |rank| plan::<bf16>(config, &mesh, rank, in_arena()).unwrap().usage.reserved;
    (0..ranks).map(of).max().unwrap()
}

#[test]
fn what_fits_is_found_and_does_fit() {
    let config = config("global_batch_size = 16\nmicro_batch_size = 4", "tensor = 2\npipeline = 2", false);
    let needed = most(&config, 4);
    let changed = |change: &str| {
        let mut text = config.to_toml();
        for change in change.split(" with ") {
            let (key, value) = change.split_once(" = ").unwrap();
            let key = key.split_once('.').unwrap().1;
            let line = text.lines().find(|line| line.split(" = ").next() == Some(key)).unwrap().to_string();
            text = text.replace(&format!("\n{line}\n"), &format!("\n{key} = {value}\n"));
        }
        Config::from_resolved(&text).unwrap()
    };
    let at = |limit| remedies::<bf16>(&config, &config.mesh(4).unwrap(), limit, &in_arena()).unwrap();
    let found = at(needed - 1);
    let keys: Vec<&str> = found.iter().map(|remedy| remedy.changes[0].split(" = ").next().unwrap()).collect();
    assert_eq!(keys[..2], ["train.micro_batch_size", "train.recompute"], "{found:?}");
    assert!(found.len() > 2 && keys[2..].iter().all(|key| key.starts_with("parallel.")), "{found:?}");
    // Each has the bytes that it names; it is the largest micro-batch that fits, and the least recomputation.
    for remedy in &found {
        assert_eq!(most(&changed(&remedy.changes.join(" with ")), 4), remedy.bytes, "{remedy}");
        assert!(remedy.bytes < needed);
    }
    assert_eq!(found[0].changes, ["train.micro_batch_size = 2"]);
    assert_eq!(found[1].changes, ["train.recompute = \"selective\""]);
    // Neither change alone is enough, but both together are.
    let smallest = [most(&changed("train.micro_batch_size = 1"), 4), most(&changed("train.recompute = \"full\""), 4)];
    let both = &at(smallest.into_iter().min().unwrap() - 1)[0];
    assert_eq!(both.changes.len(), 2, "{both:?}");
    assert_eq!(at(WORKSPACE), []);
}

#[test]
fn a_refusal_has_the_numbers_and_what_fits() {
    let config = config("global_batch_size = 16\nmicro_batch_size = 4", "", false);
    let mesh = config.mesh(1).unwrap();
    let needed = most(&config, 1);
    let said = |limit| refusal::<bf16>(&config, &mesh, (needed << 12, limit), &in_arena()).unwrap().to_string();
    let text = said(needed - 1);
    assert!(text.contains("GiB are available; what fits on 1 rank: train.micro_batch_size = 2 ("), "{text}");
    assert!(said(1).contains("no smaller micro-batch, recomputation or other layout on 1 rank fits"), "{}", said(1));
}
