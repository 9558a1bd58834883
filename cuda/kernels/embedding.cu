// The embedding table has the ids first .. first + held; another id's row is zero, and its gradient is dropped.
//
// The gradient uses no atomics: the tokens are sorted stably by id. A block sorts a chunk of 1024, then each token
// finds its global position by binary search in the other chunks. The sorted tokens are split into tiles of 32,
// independent of their ids: a warp sums a tile's rows of dy, over 256 columns. A run of one id that continues in
// further tiles writes its sums there to `parts`, which a second kernel adds in order. So the work of a warp is
// bounded, a frequent id is distributed over warps, and the order of every sum depends only on the ids.
#include "args.cuh"
#include "common.cuh"
#include "sort.cuh"

// Vectors of eight columns that a thread has in flight at once.
constexpr int AT_ONCE = 4;

// A block copies a row, or a part of a long row.
KERNEL(embed, Embed, 256) {
    u64 token = block();
    // An id below `first` wraps around to a row beyond `held`.
    u32 row = ld(a.ids, token) - a.first;
    bool wide = rows_aligned(a.table, a.d), wide_y = rows_aligned(a.y, a.d);
    Reg<u32, 4 * AT_ONCE> kept;
    UNROLL for (int k = 0; k < AT_ONCE; k++) {
        u32 i = ((block_y() * AT_ONCE + k) * threads() + thread()) * 8;
        V16 x = {};
        if (row < a.held && i < a.d) x = load8(a.table, static_cast<u64>(row) * a.d + i, a.d - i, wide);
        UNROLL for (int j = 0; j < 4; j++) kept[4 * k + j] = x.w[j];
    }
    UNROLL for (int k = 0; k < AT_ONCE; k++) {
        u32 i = ((block_y() * AT_ONCE + k) * threads() + thread()) * 8;
        V16 y = {kept[4 * k], kept[4 * k + 1], kept[4 * k + 2], kept[4 * k + 3]};
        if (i < a.d) store8(a.y, token * a.d + i, a.d - i, wide_y, y);
    }
}

// -- sorting --

// Sorts the keys of each chunk, one key per thread, and sets all rows to NOWHERE. A key is the table's row and the
// token's index in its chunk; NOWHERE is the key and the row of a token whose id is not in this table.
KERNEL(embed_sort, EmbedSort, 1024) {
    u64 token = static_cast<u64>(block()) * CHUNK + thread();
    u32 row = token < a.ids.n ? ld(a.ids, token) - a.first : NOWHERE;
    u32 key = sorted_chunk(row < a.held ? row * CHUNK + thread() : NOWHERE);
    st(a.keys, token, key);
    if (token < a.ids.n) st(a.rows, token, NOWHERE);
}

// Moves each key to its global position; among equal rows, those of earlier chunks come first.
KERNEL(embed_merge, EmbedSort, 256) {
    u64 at = static_cast<u64>(block()) * threads() + thread();
    u32 key = ld(a.keys, at), row = key / CHUNK;
    if (key == NOWHERE) return;
    u64 mine = at / CHUNK * CHUNK, place = at - mine;
    for (u64 chunk = 0; chunk < a.keys.n; chunk += CHUNK) {
        if (chunk != mine) place += below(a.keys, chunk, (chunk < mine ? row + 1 : row) * CHUNK);
    }
    st(a.rows, place, row);
    st(a.tokens, place, static_cast<u32>(mine + key % CHUNK));
}

// -- sums --

// The sorted tokens (tile) and columns (slice) that a warp works on.
constexpr u32 TILE = 32, SLICE = 256;

struct Work {
    u64 tiles, tile;
    u32 first_col;
};

DEVICE Work work(const EmbedBwd& a) {
    u64 slices = (a.d + SLICE - 1) / SLICE, warp = (static_cast<u64>(block()) * threads() + thread()) / 32;
    return {(a.rows.n + TILE - 1) / TILE, warp / slices, static_cast<u32>(warp % slices) * SLICE};
}

// Whether all rows are aligned to 16 bytes. Then a lane has N = 8 columns of the slice at once, else one at a time.
DEVICE bool wide_rows(const EmbedBwd& a) { return rows_aligned(a.dy, a.d) && aligned(a.dtable) && aligned(a.parts); }

// The row of a sorted token; NOWHERE beyond the last.
DEVICE u32 row_at(const EmbedBwd& a, u64 i) { return i < a.rows.n ? ld(a.rows, i) : NOWHERE; }

// Whether the tile begins with a run that continues from the tile before.
DEVICE bool goes_on(const EmbedBwd& a, u64 tile) {
    return tile && ld(a.rows, tile * TILE - 1) == ld(a.rows, tile * TILE);
}

// Loads and stores a lane's columns of f32 from element i on.
DEVICE void load(View<float> x, u64 i, Reg<float, 1>& to) { to[0] = ld(x, i); }
DEVICE void load(View<float> x, u64 i, Reg<float, 8>& to) {
    V16 first = ld16(x, i), second = ld16(x, i + 4);
    UNROLL for (int j = 0; j < 4; j++) {
        to[j] = f32_of(first.w[j]);
        to[4 + j] = f32_of(second.w[j]);
    }
}
DEVICE void store(View<float> x, u64 i, const Reg<float, 1>& from) { st(x, i, from[0]); }
DEVICE void store(View<float> x, u64 i, const Reg<float, 8>& from) {
    st16(x, i, V16{bits_of(from[0]), bits_of(from[1]), bits_of(from[2]), bits_of(from[3])});
    st16(x, i + 4, V16{bits_of(from[4]), bits_of(from[5]), bits_of(from[6]), bits_of(from[7])});
}

// Loads a lane's columns of bf16 from element i on, as pairs.
DEVICE void load(View<const bf16> x, u64 i, Reg<u32, 1>& to) { to[0] = ld(x, i).bits; }
DEVICE void load(View<const bf16> x, u64 i, Reg<u32, 4>& to) {
    V16 v = ld16(x, i);
    UNROLL for (int j = 0; j < 4; j++) to[j] = v.w[j];
}

// For a tile's columns from `col` on: dtable += the rows of dy in order; sums of a continued run go to parts instead.
template <int N> DEVICE void add_tile(const EmbedBwd& a, const Work& w, u32 col) {
    bool here = col < a.d, on = goes_on(a, w.tile);
    u64 mine = w.tile * TILE + thread() % 32;
    u32 row = row_at(a, mine), token = row == NOWHERE ? 0 : ld(a.tokens, mine), run = shfl(row, 0);
    Reg<float, N> sum;
    UNROLL for (int j = 0; j < N; j++) sum[j] = 0;
    if (here && !on) load(a.dtable, static_cast<u64>(run) * a.d + col, sum);
    for (u32 i = 0; i < TILE; i += AT_ONCE) {
        Reg<u32, (N + 1) / 2> dy[AT_ONCE];
        UNROLL for (int k = 0; k < AT_ONCE; k++) {
            u64 from = shfl(token, i + k);
            if (here) load(a.dy, from * a.d + col, dy[k]);
        }
        UNROLL for (int k = 0; k < AT_ONCE; k++) {
            u32 next = shfl(row, i + k);
            if (!here || next == NOWHERE) continue;
            if (next != run) {
                store(on ? a.parts : a.dtable, (on ? w.tile : run) * a.d + col, sum);
                run = next;
                on = false;
                load(a.dtable, static_cast<u64>(run) * a.d + col, sum);
            }
            UNROLL for (int j = 0; j < N; j++) sum[j] += j % 2 ? high(dy[k][j / 2]) : low(dy[k][j / 2]);
        }
    }
    if (here) store(on ? a.parts : a.dtable, (on ? w.tile : run) * a.d + col, sum);
}

KERNEL(embed_bwd, EmbedBwd, 256) {
    Work w = work(a);
    u32 lane = thread() % 32;
    if (w.tile >= w.tiles || ld(a.rows, w.tile * TILE) == NOWHERE) return;
    if (wide_rows(a)) return add_tile<8>(a, w, w.first_col + lane * 8);
    for (u32 i = 0; i < SLICE && w.first_col + i < a.d; i += 32) add_tile<1>(a, w, w.first_col + i + lane);
}

// dtable += the parts of a run that continues in the tiles first .. end, tile by tile.
template <int N> DEVICE void add_parts(const EmbedBwd& a, u64 run, u64 first, u64 end, u32 col) {
    if (col >= a.d) return;
    Reg<float, N> sum, part;
    load(a.dtable, run * a.d + col, sum);
    for (u64 tile = first; tile < end; tile++) {
        load(a.parts, tile * a.d + col, part);
        UNROLL for (int j = 0; j < N; j++) sum[j] += part[j];
    }
    store(a.dtable, run * a.d + col, sum);
}

// Only warps whose tile is the first in which a run continues have work.
KERNEL(embed_bwd_runs, EmbedBwd, 256) {
    Work w = work(a);
    u32 lane = thread() % 32;
    if (w.tile >= w.tiles) return;
    u32 run = ld(a.rows, w.tile * TILE);
    if (run == NOWHERE || !goes_on(a, w.tile) || (w.tile > 1 && ld(a.rows, (w.tile - 1) * TILE - 1) == run)) return;
    // The first later tile that does not begin with the run, by binary search.
    u64 end = w.tile + 1;
    for (u64 step = 1 << 26; step; step /= 2) {
        if (row_at(a, (end + step - 1) * TILE) == run) end += step;
    }
    if (wide_rows(a)) return add_parts<8>(a, run, w.tile, end, w.first_col + lane * 8);
    for (u32 i = 0; i < SLICE && w.first_col + i < a.d; i += 32) {
        add_parts<1>(a, run, w.tile, end, w.first_col + i + lane);
    }
}
