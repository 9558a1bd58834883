//! Routing of tokens to experts: p = softmax of the logits; the k experts with the largest logits, weighted by their p
//! or by p divided by the sum of the k. Rows are sorted by expert, copied, and added up again.

use super::task_rows;
use crate::backend::{Router, Total};
use crate::config::RouterWeights;
use crate::cpu::float::Float;
use crate::cpu::simd::vectorized;
use crate::cpu::workers::Workers;

/// The experts `[T, k]` and weights `[T, k]` of the tokens with logits `[T, experts]`.
pub fn route(logits: &[f32], experts: usize, r: Router, chosen: &mut [u32], weights: &mut [f32]) {
    let k = r.per_token;
    for (logits, (chosen, weights)) in
        logits.chunks_exact(experts).zip(chosen.chunks_exact_mut(k).zip(weights.chunks_exact_mut(k)))
    {
        choose(logits, chosen);
        weigh(logits, r.weights, chosen, weights);
    }
}

/// The largest logits, the largest first, of equal ones the first; what is not a number is the smallest.
fn choose(logits: &[f32], chosen: &mut [u32]) {
    let order = |e: usize| if logits[e].is_nan() { f32::NEG_INFINITY } else { logits[e] };
    for i in 0..chosen.len() {
        let free = (0..logits.len()).filter(|&e| !chosen[..i].contains(&(e as u32)));
        let best = free.reduce(|best, e| if order(e) > order(best) { e } else { best });
        chosen[i] = best.expect("there are at least k experts") as u32;
    }
}

fn weigh(logits: &[f32], of: RouterWeights, chosen: &[u32], weights: &mut [f32]) {
    let max = max(logits);
    let exp = |logit: f32| f64::from(logit - max).exp();
    let sum: f64 = match of {
        RouterWeights::OfAll => logits.iter().map(|&logit| exp(logit)).sum(),
        RouterWeights::OfChosen => chosen.iter().map(|&e| exp(logits[e as usize])).sum(),
    };
    for (weight, &e) in weights.iter_mut().zip(chosen) {
        *weight = (exp(logits[e as usize]) / sum) as f32;
    }
}

/// NaN if there is one.
fn max(logits: &[f32]) -> f32 {
    logits.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max || x.is_nan() { x } else { max })
}

/// The auxiliary losses: rows of a sequence, the factors of their gradients for each sequence and each token.
pub struct Balance {
    pub seq: usize,
    pub factors: [f64; 2],
}

/// dlogits `[T, experts]`; adds the auxiliary losses to totals and the choices to load.
pub fn route_bwd(
    dweights: &[f32],
    logits: &[f32],
    chosen: &[u32],
    r: Router,
    balance: Balance,
    [totals, load]: [&mut [f32]; 2],
    dlogits: &mut [f32],
) {
    let (experts, k, seq) = (load.len(), r.per_token, balance.seq);
    let [of_sequence, of_token] = balance.factors;
    let (mut aux, mut square) = (0.0, 0.0);
    for (s, dlogits) in dlogits.chunks_mut(seq * experts).enumerate() {
        let rows = s * seq..s * seq + dlogits.len() / experts;
        // n_e.
        let mut counts = vec![0u32; experts];
        chosen[rows.start * k..rows.end * k].iter().for_each(|&e| counts[e as usize] += 1);
        let share = |e: usize| experts as f64 * f64::from(counts[e]) / (rows.len() * rows.len()) as f64;
        for (row, dlogits) in rows.clone().zip(dlogits.chunks_exact_mut(experts)) {
            let (logits, choices) = (&logits[row * experts..][..experts], row * k..(row + 1) * k);
            let (p, log_z) = softmax(logits);
            // The balancing loss is E sum_e (n_e / S) P_e, with P_e the mean of p_e over the S rows.
            let balancing: f64 = p.iter().enumerate().map(|(e, p)| share(e) * p).sum();
            (aux, square) = (aux + balancing, square + log_z * log_z);
            // dp_e of all experts, through the softmax: dl_e = p_e (dp_e - sum p dp); and dlog_z / dl_e = p_e.
            for (e, dlogit) in dlogits.iter_mut().enumerate() {
                let through = of_sequence * (share(e) - balancing) + of_token * 2.0 * log_z;
                *dlogit = (p[e] * through) as f32;
            }
            chosen_bwd(&p, r.weights, &chosen[choices.clone()], &dweights[choices], dlogits);
        }
        counts.iter().zip(load.iter_mut()).for_each(|(&n, load)| *load += n as f32);
    }
    totals[Total::AuxLoss as usize] += aux as f32;
    totals[Total::RouterZLoss as usize] += square as f32;
}

/// Adds the gradients through the weights of the chosen experts.
fn chosen_bwd(p: &[f64], of: RouterWeights, chosen: &[u32], dweights: &[f32], dlogits: &mut [f32]) {
    let all: f64 = match of {
        RouterWeights::OfAll => 1.0,
        RouterWeights::OfChosen => chosen.iter().map(|&e| p[e as usize]).sum(),
    };
    let weight = |e: u32| p[e as usize] / all;
    let mean: f64 = chosen.iter().zip(dweights).map(|(&e, &dw)| weight(e) * f64::from(dw)).sum();
    for (&e, &dw) in chosen.iter().zip(dweights) {
        dlogits[e as usize] += (weight(e) * f64::from(dw)) as f32;
    }
    // The softmax's normalisation reaches all of its experts.
    match of {
        RouterWeights::OfAll => p.iter().zip(dlogits).for_each(|(p, d)| *d -= (p * mean) as f32),
        RouterWeights::OfChosen => {
            chosen.iter().for_each(|&e| dlogits[e as usize] -= (weight(e) * mean) as f32);
        }
    }
}

/// The softmax, and the log of its denominator.
fn softmax(logits: &[f32]) -> (Vec<f64>, f64) {
    let max = max(logits);
    let exp: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    (exp.into_iter().map(|x| x / sum).collect(), f64::from(max) + sum.ln())
}

/// Sorts choices `[T k]` by expert, those of an expert in their order: the choice in each place, the place of each
/// choice, and the number of each expert's.
pub fn sort(choices: &[u32], order: &mut [u32], places: &mut [u32], counts: &mut [u32]) {
    counts.fill(0);
    choices.iter().for_each(|&e| counts[e as usize] += 1);
    let mut next: Vec<u32> = counts.iter().scan(0, |end, &n| Some(std::mem::replace(end, *end + n))).collect();
    for (choice, &e) in choices.iter().enumerate() {
        let place = &mut next[e as usize];
        (order[*place as usize], places[choice]) = (choice as u32, *place);
        *place += 1;
    }
}

/// Row i of y is row `index[i] / per` of x.
pub fn take<T: Copy + Send + Sync>(workers: &Workers, x: &[T], index: &[u32], per: usize, y: &mut [T]) {
    let cols = y.len() / index.len().max(1);
    let rows = task_rows(cols);
    workers.each(index.chunks(rows).zip(y.chunks_mut((rows * cols).max(1))), |(index, y)| {
        for (&i, y) in index.iter().zip(y.chunks_exact_mut(cols)) {
            y.copy_from_slice(&x[i as usize / per * cols..][..cols]);
        }
    });
}

/// Row t of y `[T, cols]` is the sum of the rows `places[t, ..]` of x, in this order.
pub fn sum<A: Float>(workers: &Workers, x: &[A], places: &[u32], cols: usize, y: &mut [A]) {
    let per = places.len() * cols / y.len().max(1);
    let rows = task_rows(cols * per);
    workers.each(places.chunks(rows * per).zip(y.chunks_mut(rows * cols)), |(places, y)| {
        let mut sums = vec![0.0; cols];
        for (places, y) in places.chunks_exact(per).zip(y.chunks_exact_mut(cols)) {
            add_up(x, places, &mut sums, y);
        }
    });
}

vectorized! {
    fn add_up<A: Float>(x: &[A], places: &[u32], sums: &mut [f32], y: &mut [A]) {
        sums.fill(0.0);
        let cols = y.len();
        for &place in places {
            let row = &x[place as usize * cols..][..cols];
            for (sum, x) in sums.iter_mut().zip(row) {
                *sum += x.load();
            }
        }
        for (y, sum) in y.iter_mut().zip(sums) {
            *y = A::store(*sum);
        }
    }
}
