// The router: p = softmax of the logits l of a token; the k experts with the largest logits, weighted by their p, or by
// p divided by the sum of the k; and the gradients of both and of the auxiliary losses. A warp processes a token, whose
// experts its lanes take in turn. No sum depends on the order in which warps run.
#include "args_experts.cuh"
#include "common.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
// Before any expert was found.
constexpr u32 NONE = 0xffffffffu;
// The columns of the totals that the router adds to, as `Total` in engine/src/backend/mod.rs.
constexpr u32 AUX_LOSS = 3, ROUTER_Z_LOSS = 4;

// The token of this warp.
DEVICE u64 token_of_warp() { return (static_cast<u64>(block()) * threads() + thread()) / 32; }

// The larger one, or NaN.
DEVICE float largest(float a, float b) { return b > a || b != b ? b : a; }

// The largest logit of the row from element `row` on, or NaN, on every lane.
DEVICE float row_max(View<const float> logits, u64 row, u32 experts HERE) {
    float most = -infinity();
    for (u32 e = thread() % 32; e < experts; e += 32) most = largest(most, ld(logits, row + e AT));
    UNROLL for (u32 mask = 16; mask; mask /= 2) most = largest(most, shfl_xor(most, mask AT));
    return most;
}

DEVICE float exp_of(float logit, float most) { return fast_exp2((logit - most) * LOG2_E); }

// A logit and its expert.
struct Ranked {
    float logit;
    u32 expert;
};

// The better one comes first: the larger logit, of equal ones the lower number.
DEVICE Ranked better(Ranked a, Ranked b) {
    bool is_b = b.logit > a.logit || (b.logit == a.logit && b.expert < a.expert);
    return {is_b ? b.logit : a.logit, is_b ? b.expert : a.expert};
}

// The best expert after `last`, on every lane. What is not a number is the smallest.
DEVICE Ranked next_best(View<const float> logits, u64 row, u32 experts, Ranked last HERE) {
    Ranked best = {-infinity(), NONE};
    for (u32 e = thread() % 32; e < experts; e += 32) {
        float logit = ld(logits, row + e AT);
        logit = logit == logit ? logit : -infinity();
        // The number of the first `last` is NONE, and plus one 0.
        bool is_free = logit < last.logit || (logit == last.logit && e >= last.expert + 1);
        if (is_free) best = better(best, {logit, e});
    }
    UNROLL for (u32 mask = 16; mask; mask /= 2) {
        Ranked other = {shfl_xor(best.logit, mask AT), shfl_xor(best.expert, mask AT)};
        best = better(best, other);
    }
    return best;
}

// A lane keeps two of the choices, number `lane` and number `lane + 32`.
KERNEL(route, Route, 256) {
    u64 token = token_of_warp(), row = token * a.experts;
    if (token >= a.tokens) return;
    u32 lane = thread() % 32;
    Reg<u32, 2> mine;
    mine[0] = mine[1] = 0;
    Ranked last = {infinity(), NONE};
    for (u32 i = 0; i < a.k; i++) {
        last = next_best(a.logits, row, a.experts, last);
        if (i == lane) mine[0] = last.expert;
        if (i == lane + 32) mine[1] = last.expert;
    }
    float most = row_max(a.logits, row, a.experts), sum = 0;
    Reg<float, 2> weight;
    UNROLL for (u32 j = 0; j < 2; j++) {
        weight[j] = lane + 32 * j < a.k ? exp_of(ld(a.logits, row + mine[j]), most) : 0.0f;
        sum += weight[j];
    }
    if (!a.of_chosen) {
        sum = 0;
        for (u32 e = lane; e < a.experts; e += 32) sum += exp_of(ld(a.logits, row + e), most);
    }
    sum = warp_sum(sum);
    UNROLL for (u32 j = 0; j < 2; j++) {
        u64 at = token * a.k + lane + 32 * j;
        if (lane + 32 * j >= a.k) continue;
        st(a.chosen, at, mine[j]);
        st(a.weights, at, div_rn(weight[j], sum));
    }
}

// -- backward --

// Choices that a lane of `route_counts` reads at once.
constexpr u32 AT_ONCE = 8;

// A warp counts the choices of one expert in one sequence.
KERNEL(route_counts, RouteBwd, 256) {
    u64 warp = token_of_warp(), sequence = warp / a.experts, each = static_cast<u64>(a.seq) * a.k;
    if (warp >= a.counts.n) return;
    u32 expert = static_cast<u32>(warp % a.experts), count = 0;
    u64 end = (sequence + 1) * each < a.chosen.n ? (sequence + 1) * each : a.chosen.n;
    for (u64 i = sequence * each + thread() % 32; i < end; i += 32 * AT_ONCE) {
        UNROLL for (u32 j = 0; j < AT_ONCE; j++) {
            u64 at = i + 32 * j;
            count += at < end && ld(a.chosen, at) == expert ? 1 : 0;
        }
    }
    count = warp_sum(count);
    if (thread() % 32 == 0) st(a.counts, warp, count);
}

// The quantities that the gradients of all logits of a token share. The token's part of the balancing loss is the sum
// over the experts e of E (n_e / S) p_e / S, and `share` is E / S^2.
struct Token {
    u64 row, counts;
    float most, scale, share, balancing, log_z;
};

DEVICE Token token_of(const RouteBwd& a, u64 token HERE) {
    u64 sequence = token / a.seq, left = a.tokens - sequence * a.seq;
    float rows = static_cast<float>(left < a.seq ? static_cast<u32>(left) : a.seq), sum = 0, dot = 0;
    Token t = {token * a.experts, sequence * a.experts, 0, 0, 0, 0, 0};
    t.most = row_max(a.logits, t.row, a.experts AT);
    for (u32 e = thread() % 32; e < a.experts; e += 32) {
        float p = exp_of(ld(a.logits, t.row + e AT), t.most);
        sum += p;
        dot = fmadd(p, static_cast<float>(ld(a.counts, t.counts + e AT)), dot);
    }
    sum = warp_sum(sum AT);
    t.scale = div_rn(1.0f, sum);
    t.share = div_rn(static_cast<float>(a.experts), rows * rows);
    t.balancing = warp_sum(dot AT) * t.scale * t.share;
    t.log_z = t.most + ln(sum);
    return t;
}

DEVICE float probability(const RouteBwd& a, const Token& t, u32 expert HERE) {
    return exp_of(ld(a.logits, t.row + expert AT), t.most) * t.scale;
}

// Through the softmax over all experts: p_e (dp_e - sum p dp) of the balancing loss, and 2 log_z p_e of the other loss;
// less p_e `mean`.
DEVICE float of_losses(const RouteBwd& a, const Token& t, u32 expert, float p, float targets, float mean HERE) {
    float count = static_cast<float>(ld(a.counts, t.counts + expert AT));
    float balancing = a.of_sequence * targets * (count * t.share - t.balancing);
    return p * (balancing + a.of_token * targets * (2.0f * t.log_z) - mean);
}

// A choice's w dw and `mean`, the sum of w dw over a token's choices, reach the logits as w dw - w mean if the weights
// w are a softmax over the choices, else as w dw - p mean of all experts.
KERNEL(route_bwd, RouteBwd, 256) {
    u64 token = token_of_warp();
    if (token >= a.tokens) return;
    u32 lane = thread() % 32;
    Token t = token_of(a, token);
    float all = 0, mean = 0, targets = larger(ld(a.targets, 0), 1.0f);
    Reg<float, 2> p, dw;
    Reg<u32, 2> mine;
    UNROLL for (u32 j = 0; j < 2; j++) {
        bool is = lane + 32 * j < a.k;
        mine[j] = is ? ld(a.chosen, token * a.k + lane + 32 * j) : 0;
        dw[j] = is ? ld(a.dweights, token * a.k + lane + 32 * j) : 0.0f;
        p[j] = is ? probability(a, t, mine[j]) : 0.0f;
        all += p[j];
        mean = fmadd(p[j], dw[j], mean);
    }
    float scale = a.of_chosen ? div_rn(1.0f, warp_sum(all)) : 1.0f;
    mean = warp_sum(mean) * scale;
    float of_all = a.of_chosen ? 0.0f : mean;
    for (u32 e = lane; e < a.experts; e += 32) {
        st(a.dlogits, t.row + e, of_losses(a, t, e, probability(a, t, e), targets, of_all));
    }
    // The choices' gradients replace those that other lanes have written.
    warp_sync();
    UNROLL for (u32 j = 0; j < 2; j++) {
        if (lane + 32 * j >= a.k) continue;
        float through = p[j] * scale * (dw[j] - (mean - of_all));
        st(a.dlogits, t.row + mine[j], of_losses(a, t, mine[j], p[j], targets, of_all) + through);
    }
    if (lane) return;
    st(a.parts, 2 * token, t.balancing);
    st(a.parts, 2 * token + 1, t.log_z * t.log_z);
}

// totals += the sums over the tokens, load += the counts of all sequences. One block. Shared memory: 512 bytes.
KERNEL(route_totals, RouteBwd, 1024) {
    double balancing = 0, square = 0;
    for (u64 token = thread(); token < a.tokens; token += threads()) {
        balancing += static_cast<double>(ld(a.parts, 2 * token));
        square += static_cast<double>(ld(a.parts, 2 * token + 1));
    }
    balancing = block_sum(balancing, shared_base());
    square = block_sum(square, shared_base() + 256);
    if (thread() == 0) {
        st(a.totals, AUX_LOSS, ld(a.totals, AUX_LOSS) + static_cast<float>(balancing));
        st(a.totals, ROUTER_Z_LOSS, ld(a.totals, ROUTER_Z_LOSS) + static_cast<float>(square));
    }
    for (u32 e = thread(); e < a.experts; e += threads()) {
        float load = ld(a.load, e);
        for (u64 at = e; at < a.counts.n; at += a.experts) load += static_cast<float>(ld(a.counts, at));
        st(a.load, e, load);
    }
}
