//! The ops of attention on tensors: norms of heads with the rotation, attention, and its sinks.

use super::Float;
use super::ops;
use super::rank::{Cpu, data, data_mut, expect, expect_heads, head_params};
use crate::backend::{Acc, Act, Backend, CachedAttention, CachedRows, HeadRms, Heads, Rotary, Tensor};
use std::ops::Range;

pub fn qk_norm_rope<A: Float>(
    b: &Cpu<A>,
    qkv: &Act<Cpu<A>>,
    n: HeadRms<Cpu<A>>,
    r: Rotary<Cpu<A>>,
    h: Heads,
) -> Act<Cpu<A>> {
    expect_heads(qkv, h);
    let (p, mut y) = (head_params(n, r, qkv.rows(), h), b.alloc(qkv.rows(), qkv.cols()));
    ops::qk_norm::forward(b.workers("qk_norm_rope"), data(qkv), p, data_mut(&mut y));
    b.made("qk_norm_rope", &y);
    y
}

pub fn qk_norm_rope_bwd<A: Float>(
    b: &Cpu<A>,
    mut dqkv: Act<Cpu<A>>,
    qkv: &Act<Cpu<A>>,
    n: HeadRms<Cpu<A>>,
    r: Rotary<Cpu<A>>,
    h: Heads,
    [dq, dk]: [&mut Acc<Cpu<A>>; 2],
) -> Act<Cpu<A>> {
    expect_heads(qkv, h);
    expect("dqkv", &dqkv, qkv.rows(), qkv.cols());
    expect("dw of q", dq, 1, h.dim);
    expect("dw of k", dk, 1, h.dim);
    let (p, workers) = (head_params(n, r, qkv.rows(), h), b.workers("qk_norm_rope_bwd"));
    ops::qk_norm::backward(workers, &b.pool, data_mut(&mut dqkv), data(qkv), p, [data_mut(dq), data_mut(dk)]);
    b.made("qk_norm_rope_bwd", &dqkv);
    b.made("qk_norm_rope_bwd", dq);
    b.made("qk_norm_rope_bwd", dk);
    dqkv
}

pub fn attention<A: Float>(
    b: &Cpu<A>,
    qkv: &Act<Cpu<A>>,
    starts: &Tensor<Cpu<A>, u32>,
    h: Heads,
) -> (Act<Cpu<A>>, Acc<Cpu<A>>) {
    expect_heads(qkv, h);
    expect("starts", starts, qkv.rows(), 1);
    let (mut o, mut lse) = (b.alloc(qkv.rows(), h.out_cols()), b.alloc(qkv.rows(), h.query));
    let (to_o, to_lse) = (data_mut(&mut o), data_mut(&mut lse));
    ops::attention::attention(b.workers("attention"), &b.pool, data(qkv), data(starts), h, to_o, to_lse);
    b.made("attention", &o);
    (o, lse)
}

impl<A: Float> CachedAttention for Cpu<A> {
    fn attention_cached(
        &self,
        qkv: &Act<Self>,
        cache: &mut Act<Self>,
        rows: CachedRows<Self>,
        h: Heads,
    ) -> (Act<Self>, Acc<Self>) {
        let (n, width) = (qkv.rows(), 2 * h.kv * h.dim);
        assert_eq!((qkv.cols(), cache.cols()), (h.qkv_cols(), width), "columns of qkv and of the cache for {h:?}");
        expect("places", rows.places, n, 1);
        expect("first", rows.first, n, 1);
        ops::attention_cached::keep(data(qkv), data(rows.places), h, data_mut(cache));
        let seen = data(rows.first).iter().zip(data(rows.places)).map(|(&first, &place)| {
            assert!(first <= place, "a row at place {place} attends to places from {first} on");
            first as usize..place as usize + 1
        });
        let seen: Vec<Range<usize>> = seen.collect();
        let (mut o, mut lse) = (self.alloc(n, h.out_cols()), self.alloc(n, h.query));
        let outputs = (data_mut(&mut o), data_mut(&mut lse));
        let workers = self.workers("attention_cached");
        ops::attention_cached::attention(workers, &self.pool, (data(qkv), data(cache)), &seen, h, outputs);
        self.made("attention_cached", &o);
        (o, lse)
    }
}

pub fn attention_bwd<A: Float>(
    b: &Cpu<A>,
    do_: &Act<Cpu<A>>,
    o: &Act<Cpu<A>>,
    lse: &Acc<Cpu<A>>,
    qkv: &Act<Cpu<A>>,
    starts: &Tensor<Cpu<A>, u32>,
    h: Heads,
) -> Act<Cpu<A>> {
    expect_heads(qkv, h);
    expect("do", do_, qkv.rows(), h.out_cols());
    expect("o", o, qkv.rows(), h.out_cols());
    expect("logsumexp", lse, qkv.rows(), h.query);
    expect("starts", starts, qkv.rows(), 1);
    let mut dqkv = b.alloc(qkv.rows(), qkv.cols());
    let saved = ops::attention_bwd::Saved { qkv: data(qkv), o: data(o), lse: data(lse), starts: data(starts) };
    ops::attention_bwd::attention_bwd(b.workers("attention_bwd"), &b.pool, data(do_), saved, h, data_mut(&mut dqkv));
    b.made("attention_bwd", &dqkv);
    dqkv
}

pub fn add_sinks<A: Float>(
    b: &Cpu<A>,
    mut o: Act<Cpu<A>>,
    mut lse: Acc<Cpu<A>>,
    sinks: &Act<Cpu<A>>,
) -> (Act<Cpu<A>>, Acc<Cpu<A>>) {
    expect("logsumexp", &lse, o.rows(), sinks.len());
    let workers = b.workers("add_sinks");
    ops::sinks::add(workers, data_mut(&mut o), data_mut(&mut lse), data(sinks));
    b.made("add_sinks", &o);
    (o, lse)
}

pub fn sinks_bwd<A: Float>(
    b: &Cpu<A>,
    do_: &Act<Cpu<A>>,
    o: &Act<Cpu<A>>,
    lse: &Acc<Cpu<A>>,
    sinks: &Act<Cpu<A>>,
    dsinks: &mut Acc<Cpu<A>>,
) {
    expect("do", do_, o.rows(), o.cols());
    expect("logsumexp", lse, o.rows(), sinks.len());
    expect("dsinks", dsinks, 1, sinks.len());
    ops::sinks::backward(b.workers("sinks_bwd"), data(do_), data(o), data(lse), data(sinks), data_mut(dsinks));
    b.made("sinks_bwd", dsinks);
}
