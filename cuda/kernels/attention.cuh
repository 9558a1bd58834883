// Shared by the attention kernels: which head a block works on, and which keys a query attends to. A query at position
// t of its sequence attends to ("sees") the positions starts[t] ..= t, and starts ascend.
#pragma once
#include "args_attention.cuh"
#include "tile.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// tanh(z / (2 log2(e))), with an error of a few ulp: 1 - 2 / (2^z + 1), and near zero, where that cancels, a polynomial
// (up to 0.54, with a relative error of 8.4e-8). No operation has two constants, of which one would need a register.
DEVICE float tanh_of_exponent(float z) {
    float square = z * z, odd = square - 27.842078f;
    odd = fmadd(square, odd, 591.04653f);
    odd = fmadd(square, odd, -12320.270f);
    odd = fmadd(square, odd, 307723.10f) * (z * 1.1262515e-6f);
    float whole = 1.0f - fast_rcp(fast_exp2(z - 1.0f) + 0.5f);
    return square < 3.0f ? odd : whole;
}

// The derivative of tanh where its value is t. A masked score is -infinity, and the result for it is zero.
DEVICE float slope_of_tanh(float t) { return larger(fmadd(-t, t, 1.0f), 0.0f); }

// Caps q k^T.
template <int M, int N> DEVICE void cap(Sums<M, N>& s, float inner) {
    UNROLL for (int m = 0; m < M; m++) {
        UNROLL for (int n = 0; n < N; n++) {
            UNROLL for (int e = 0; e < 4; e++) s.at[m][n][e] = tanh_of_exponent(s.at[m][n][e] * inner);
        }
    }
}

// A query head of a sequence, and the location of its rows and of its keys' rows. `Args` has qkv and its shape.
struct Head {
    // The sequence's first row among all, and its length.
    u32 row, seq;
    u32 query, kv;
    u32 heads, kv_heads;
};

// Query head `n`, counted over all sequences.
template <class Args> DEVICE Head head_of(const Args& a, u32 n) {
    u32 query = n % a.heads;
    return {n / a.heads * a.seq, a.seq, query, query / (a.heads / a.kv_heads), a.heads, a.kv_heads};
}

// The rows from a position on of head `place` of `places`: of q, k and v in qkv (and of their gradients), and of o.
template <int D> DEVICE Strip strip(const Head& h, u32 place, u32 places, u32 first) {
    return {(static_cast<u64>(h.row + first) * places + place) * D, places * D, h.seq > first ? h.seq - first : 0};
}
template <int D> DEVICE Strip qkv_strip(const Head& h, u32 place, u32 first) {
    return strip<D>(h, place, h.heads + 2 * h.kv_heads, first);
}
template <int D> DEVICE Strip q_rows(const Head& h, u32 first) { return qkv_strip<D>(h, h.query, first); }
template <int D> DEVICE Strip k_rows(const Head& h, u32 first) { return qkv_strip<D>(h, h.heads + h.kv, first); }
template <int D> DEVICE Strip v_rows(const Head& h, u32 first) {
    return qkv_strip<D>(h, h.heads + h.kv_heads + h.kv, first);
}
template <int D> DEVICE Strip o_rows(const Head& h, u32 first) { return strip<D>(h, h.query, h.heads, first); }

// The start of a position; positions beyond the sequence have the last one's.
DEVICE u32 start_of(View<const u32> starts, const Head& h, u32 position HERE) {
    return ld(starts, h.row + (position < h.seq ? position : h.seq - 1) AT);
}

// The ROWS queries of a warp: the first one, and the starts of the first and the last.
template <int ROWS> struct Queries {
    u32 first, start, last_start;
};

// Whether any of them sees any of `keys` keys, and whether each sees all of them.
template <int ROWS> DEVICE bool sees(const Queries<ROWS>& q, u32 key, u32 keys) {
    return key <= q.first + (ROWS - 1) && q.start < key + keys;
}
template <int ROWS> DEVICE bool sees_all(const Queries<ROWS>& q, u32 key, u32 keys) {
    return key + keys <= q.first + 1 && q.last_start <= key;
}

// The current tile of keys and values: the element at which this thread starts copying, and the tile's first key.
struct Stream {
    u64 from;
    u32 key;
};

template <int D> DEVICE Stream stream_of(const Head& h, u32 key) { return {first_copied(k_rows<D>(h, key)), key}; }

template <int KEYS, int D, class Args> DEVICE void go_back(Stream& s, const Args& a) {
    s.from -= static_cast<u64>(a.heads + 2 * a.kv_heads) * (KEYS * D);
    s.key -= KEYS;
}

template <int KEYS, int D, int THREADS, class Args> DEVICE void load_k(u32 to, const Args& a, const Stream& s HERE) {
    load_rows<KEYS, D, THREADS>(to, a.qkv, s.from, (a.heads + 2 * a.kv_heads) * D, a.seq - s.key AT);
}
template <int KEYS, int D, int THREADS, class Args> DEVICE void load_v(u32 to, const Args& a, const Stream& s HERE) {
    u64 from = s.from + a.kv_heads * D;
    load_rows<KEYS, D, THREADS>(to, a.qkv, from, (a.heads + 2 * a.kv_heads) * D, a.seq - s.key AT);
}

// Scores of the queries from `first` on with the keys from `key` on become -infinity where a query does not see a key;
// `start(r)` is the start of the lane's query r of 2 M.
template <int M, int N, class Start> DEVICE void mask(Sums<M, N>& s, u32 first, u32 key, Start start) {
    u32 g = thread() % 32 / 4, t = thread() % 4 * 2;
    UNROLL for (u32 r = 0; r < 2 * M; r++) {
        // For keys before the start the difference wraps around.
        u32 from = start(r), span = first + 8 * r + g - from, column = key + t - from;
        UNROLL for (u32 n = 0; n < N; n++) {
            UNROLL for (u32 e = 0; e < 2; e++) {
                float& x = s.at[r / 2][n][r % 2 * 2 + e];
                x = column + 8 * n + e <= span ? x : -infinity();
            }
        }
    }
}
