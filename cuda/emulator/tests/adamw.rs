//! AdamW's kernel against the CPU's op: the same bits, for each element is by itself.

use crate::common::{Random, cpus, on, places};
use cuda::args::Step;
use cuda::ops::{self, State};
use engine::backend::{AdamW, Backend};
use half::bf16;

const HP: Step = Step {
    lr: 3e-4,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    correction1: 0.271,
    correction2: 0.142_625,
    decayed: 0,
};

#[test]
fn a_step_gives_the_same_bits() {
    let (cpu, _) = cpus();
    for ((n, decayed), scale) in
        [(1, 0), (3, 3), (4, 2), (1025, 513), (9001, 9000)].into_iter().flat_map(|s| [1.0, 1e-12, 1e6].map(|x| (s, x)))
    {
        let mut random = Random::new(n as u64);
        let (g, factor) = (random.f32(n, scale), [7.0, 0.37]);
        let state = [random.f32(n, 1.0), random.f32(n, 0.1), random.f32(n, 0.1).iter().map(|v| v * v).collect()];
        let [mut master, mut m, mut v] = [0, 1, 2].map(|i| cpu.upload(&state[i], n, 1));
        let Step { lr, beta1, beta2, eps, weight_decay, correction1, correction2, .. } = HP;
        let hp = AdamW { lr, beta1, beta2, eps, weight_decay, correction1, correction2, decayed };
        let (on_g, on_factor) = (cpu.upload(&g, n, 1), cpu.upload(&factor, 1, 2));
        let weights = cpu.adamw(&on_g, &on_factor, &mut master, &mut m, &mut v, hp);
        for place in places() {
            let ([mut a, mut b, mut c], mut out) = (state.clone(), vec![bf16::NAN; n]);
            on(place, |m, l| {
                let s = State { master: l.write(&mut a), m: l.write(&mut b), v: l.write(&mut c) };
                ops::adamw(m, l.read(&g), l.read(&factor), s, l.write(&mut out), Step { decayed, ..HP })
            });
            assert_eq!([a, b, c], [&master, &m, &v].map(|x| cpu.download(x)), "{n}, {decayed}, {scale}");
            assert_eq!(out, cpu.download(&weights));
        }
    }
}
