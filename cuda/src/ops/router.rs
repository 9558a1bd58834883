//! The router: the experts of each token with their weights, and the gradients of both and of the auxiliary losses.

use super::BLOCK;
use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;
use engine::backend::{Router, Total};
use engine::config::RouterWeights;

kernels! {
    ROUTER_CU = "router.cu" {
        ROUTE = "route": Route;
        ROUTE_COUNTS = "route_counts": RouteBwd;
        ROUTE_BWD = "route_bwd": RouteBwd;
        ROUTE_TOTALS = "route_totals": RouteBwd;
    }
}

sized! { Route: 64, RouteBwd: 176 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Route {
    pub logits: View,
    pub chosen: View,
    pub weights: View,
    pub tokens: u32,
    pub experts: u32,
    pub k: u32,
    pub of_chosen: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RouteBwd {
    pub dweights: View,
    pub logits: View,
    pub chosen: View,
    pub targets: View,
    pub totals: View,
    pub load: View,
    pub counts: View,
    pub parts: View,
    pub dlogits: View,
    pub tokens: u32,
    pub experts: u32,
    pub k: u32,
    pub seq: u32,
    pub of_chosen: u32,
    pub of_sequence: f32,
    pub of_token: f32,
    pub padding: u32,
}

/// The most experts of a token: a lane keeps two of them.
pub const CHOICES: usize = 64;

// The columns that the kernels add to.
const _: () = assert!(Total::AuxLoss as usize == 3 && Total::RouterZLoss as usize == 4, "as in kernels/router.cu");

/// `route` and `route_bwd`: one warp per token. `route_counts`: one per expert and sequence.
pub(super) fn route_geometry(warps: usize) -> Geometry {
    Geometry { grid: [(warps * 32).div_ceil(BLOCK as usize) as u32, 1, 1], block: BLOCK, shared: 0 }
}

/// `route_totals`: one block.
pub(super) fn route_totals_geometry() -> Geometry {
    Geometry { grid: [1, 1, 1], block: 1024, shared: 512 }
}

/// Scratch of [`route_bwd`] in 4-byte elements: the choices of each expert in each sequence, of which there are at most
/// as many as tokens, and two numbers of each token.
pub fn route_parts(tokens: usize, experts: usize) -> usize {
    tokens * experts + 2 * tokens
}

/// The experts `chosen` `[T, k]` and weights `[T, k]` of the tokens with these logits `[T, E]`.
pub fn route(m: &dyn Machine, logits: View, r: Router, chosen: View, weights: View) -> Done {
    let (k, tokens) = (r.per_token, weights.len() / r.per_token);
    let experts = logits.len() / tokens;
    assert_eq!((logits.len(), weights.len(), chosen.len()), (tokens * experts, tokens * k, tokens * k), "{r:?}");
    assert!(k <= experts.min(CHOICES), "{k} of {experts} experts, at most {CHOICES}");
    let (tokens32, experts, k) = (tokens as u32, experts as u32, k as u32);
    let args = Route { logits, chosen, weights, tokens: tokens32, experts, k, of_chosen: of_chosen(r) };
    // SAFETY: the views are checked against tokens, experts and k.
    unsafe { launch(m, ROUTE, &args, route_geometry(tokens)) }
}

fn of_chosen(r: Router) -> u32 {
    (r.weights == RouterWeights::OfChosen).into()
}

/// The inputs of the router's backward pass: dweights `[T, k]`, logits `[T, E]`, chosen `[T, k]`, and the fields of
/// [`engine::backend::Balance`], with the counted targets as `[1]`.
#[derive(Debug, Clone, Copy)]
pub struct Routed {
    pub dweights: View,
    pub logits: View,
    pub chosen: View,
    pub targets: View,
    pub seq: usize,
    pub factors: [f32; 2],
}

/// Writes dlogits `[T, E]`; adds to totals `[1, Total::COUNT]` and load `[E]`. `scratch`: [`route_parts`] elements.
pub fn route_bwd(
    m: &dyn Machine,
    of: Routed,
    r: Router,
    [totals, load]: [View; 2],
    scratch: View,
    dlogits: View,
) -> Done {
    let Routed { dweights, logits, chosen, targets, seq, factors: [of_sequence, of_token] } = of;
    let (k, experts) = (r.per_token, load.len());
    let (tokens, sequences) = (dweights.len() / k, (dweights.len() / k).div_ceil(seq));
    let lens = [logits, dlogits, dweights, chosen].map(|view| view.len());
    assert_eq!(lens, [tokens * experts, tokens * experts, tokens * k, tokens * k], "{r:?} of {experts}");
    assert_eq!((totals.len(), targets.len()), (Total::COUNT, 1), "totals and targets");
    assert_eq!(scratch.len(), route_parts(tokens, experts), "scratch of {tokens} x {experts}");
    assert!(k <= experts.min(CHOICES), "{k} of {experts} experts, at most {CHOICES}");
    let counts = scratch.part::<u32>(0..sequences * experts);
    let parts = scratch.part::<f32>(tokens * experts..scratch.len());
    let [tokens32, experts32, k, seq] = [tokens, experts, k, seq].map(|n| n as u32);
    let args = RouteBwd {
        dweights,
        logits,
        chosen,
        targets,
        totals,
        load,
        counts,
        parts,
        dlogits,
        tokens: tokens32,
        experts: experts32,
        k,
        seq,
        of_chosen: of_chosen(r),
        of_sequence,
        of_token,
        padding: 0,
    };
    // SAFETY: the views are checked against tokens, experts, k and the sequences; `chosen` has numbers of experts.
    unsafe {
        launch(m, ROUTE_COUNTS, &args, route_geometry(sequences * experts))?;
        launch(m, ROUTE_BWD, &args, route_geometry(tokens))?;
        launch(m, ROUTE_TOTALS, &args, route_totals_geometry())
    }
}
