// The embedding table holds the ids first .. first + held; another id's row is zeros, and its gradient is dropped.
//
// The gradient has no atomics: the tokens are sorted by id, those of one id in their order. A block sorts a chunk of
// 1024, then each token finds its place among all by looking into the other chunks. After that the sorted tokens are
// cut into tiles of 32 whatever their ids: a warp adds up a tile's rows of dy, over 256 columns. A run of one id that
// goes on into further tiles leaves its sums there in `parts`, which a second kernel adds in order. So the work of a
// warp is bounded, a frequent id is shared out, and the order of every sum is a function of the ids alone.
#include "args.cuh"
#include "common.cuh"

// Vectors of eight columns that a thread has under way at once.
constexpr int AT_ONCE = 4;

// A block takes a row, or a piece of a long one.
KERNEL(embed, Embed, 256) {
    u64 token = block();
    // An id below `first` wraps around to one that is not held either.
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

// Tokens of a chunk. A key is the table's row and ten bits of the token's place in its chunk: no two are equal.
constexpr u32 CHUNK = 1024;
// The key, and the row, of a token whose id is not held: behind all others.
constexpr u32 NOWHERE = 0xffffffffu;

// The keys of each chunk in order, by a bitonic network (Batcher 1968) with a key a thread; rows are all NOWHERE for
// now. Shared memory: 8192 bytes, in two halves that exchanges take in turn, so that one barrier each is enough.
KERNEL(embed_sort, EmbedSort, 1024) {
    u32 me = thread(), half = 0;
    u64 token = static_cast<u64>(block()) * CHUNK + me;
    u32 row = token < a.ids.n ? ld(a.ids, token) - a.first : NOWHERE;
    u32 key = row < a.held ? row * CHUNK + me : NOWHERE;
    for (u32 size = 2; size <= CHUNK; size *= 2) {
        for (u32 step = size / 2; step; step /= 2) {
            u32 other;
            if (step < 32) {
                other = shfl_xor(key, step);
            } else {
                sts(shared_base() + half + me * 4, key);
                sync();
                other = lds(shared_base() + half + (me ^ step) * 4);
                half ^= CHUNK * 4;
            }
            // Each pair of two runs, one ascending and one descending, becomes one run of `size`.
            bool first = !(me & step), ascending = !(me & size);
            key = (first == ascending) == (key < other) ? key : other;
        }
    }
    st(a.keys, token, key);
    if (token < a.ids.n) st(a.rows, token, NOWHERE);
}

// How many keys of a chunk are below this one.
DEVICE u32 below(View<u32> keys, u64 chunk, u32 key) {
    u32 n = 0;
    UNROLL for (u32 step = CHUNK / 2; step; step /= 2) {
        if (ld(keys, chunk + n + step - 1) < key) n += step;
    }
    return n + (ld(keys, chunk + n) < key);
}

// Each key goes to its place among all: of equal rows those of earlier chunks come first.
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

// Sorted tokens of a tile, columns of a warp's slice, and rows of dy that a warp has under way at once.
constexpr u32 TILE = 32, SLICE = 256;

// What a warp works on, and this lane's columns of it.
struct Work {
    u64 tiles, tile;
    u32 col, left;
    bool wide;
};

DEVICE Work work(const EmbedBwd& a) {
    u64 slices = (a.d + SLICE - 1) / SLICE, warp = (static_cast<u64>(block()) * threads() + thread()) / 32;
    u32 col = static_cast<u32>(warp % slices) * SLICE + thread() % 32 * 8;
    bool wide = rows_aligned(a.dy, a.d) && aligned(a.dtable) && aligned(a.parts);
    return {(a.rows.n + TILE - 1) / TILE, warp / slices, col, col < a.d ? a.d - col : 0, wide};
}

// The row of a sorted token, NOWHERE behind the last.
DEVICE u32 row_at(const EmbedBwd& a, u64 i) { return i < a.rows.n ? ld(a.rows, i) : NOWHERE; }

// Whether the run of rows that the tile begins with began in an earlier one.
DEVICE bool goes_on(const EmbedBwd& a, u64 tile) { return tile && ld(a.rows, tile * TILE - 1) == ld(a.rows, tile * TILE); }

// This lane's columns of a row of eight f32, and the way back.
DEVICE void load(View<float> x, u64 row, u32 d, const Work& w, Reg<float, 8>& sum) {
    u64 i = row * d + w.col;
    V16 first = load4(x, i, w.left, w.wide), second = load4(x, i + 4, w.left > 4 ? w.left - 4 : 0, w.wide);
    UNROLL for (int j = 0; j < 4; j++) {
        sum[j] = f32_of(first.w[j]);
        sum[4 + j] = f32_of(second.w[j]);
    }
}
DEVICE void store(View<float> x, u64 row, u32 d, const Work& w, const Reg<float, 8>& sum) {
    u64 i = row * d + w.col;
    V16 first = {bits_of(sum[0]), bits_of(sum[1]), bits_of(sum[2]), bits_of(sum[3])};
    V16 second = {bits_of(sum[4]), bits_of(sum[5]), bits_of(sum[6]), bits_of(sum[7])};
    store4(x, i, w.left, w.wide, first);
    store4(x, i + 4, w.left > 4 ? w.left - 4 : 0, w.wide, second);
}

// Rows of the table and this lane's vectors of dy of the tile's sorted tokens from i on; lane l has those of token l.
DEVICE void read(const EmbedBwd& a, const Work& w, u32 row, u32 token, u32 i, Reg<u32, AT_ONCE>& rows,
                 Reg<u32, 4 * AT_ONCE>& dy) {
    UNROLL for (int k = 0; k < AT_ONCE; k++) {
        rows[k] = shfl(row, i + k);
        u64 from = shfl(token, i + k);
        V16 x = {};
        if (rows[k] != NOWHERE) x = load8(a.dy, from * a.d + w.col, w.left, w.wide);
        UNROLL for (int j = 0; j < 4; j++) dy[4 * k + j] = x.w[j];
    }
}

// A warp a tile and slice: dtable += the rows of dy in order, or into parts what belongs to a run from before.
KERNEL(embed_bwd, EmbedBwd, 256) {
    Work w = work(a);
    if (w.tile >= w.tiles) return;
    u64 mine = w.tile * TILE + thread() % 32;
    u32 row = row_at(a, mine), token = row == NOWHERE ? 0 : ld(a.tokens, mine), run = shfl(row, 0);
    if (run == NOWHERE) return;
    bool on = goes_on(a, w.tile);
    Reg<float, 8> sum;
    UNROLL for (int j = 0; j < 8; j++) sum[j] = 0;
    if (!on) load(a.dtable, run, a.d, w, sum);
    for (u32 i = 0; i < TILE; i += AT_ONCE) {
        Reg<u32, AT_ONCE> rows;
        Reg<u32, 4 * AT_ONCE> dy;
        read(a, w, row, token, i, rows, dy);
        UNROLL for (int k = 0; k < AT_ONCE; k++) {
            if (rows[k] == NOWHERE) break;
            if (rows[k] != run) {
                store(on ? a.parts : a.dtable, on ? w.tile : run, a.d, w, sum);
                run = rows[k];
                on = false;
                load(a.dtable, run, a.d, w, sum);
            }
            UNROLL for (int j = 0; j < 8; j++) sum[j] += j % 2 ? high(dy[4 * k + j / 2]) : low(dy[4 * k + j / 2]);
        }
    }
    store(on ? a.parts : a.dtable, on ? w.tile : run, a.d, w, sum);
}

// A warp a tile and slice, of which those work where a run from the tile before goes on for the first time: dtable +=
// the run's parts, tile after tile.
KERNEL(embed_bwd_runs, EmbedBwd, 256) {
    Work w = work(a);
    if (w.tile >= w.tiles) return;
    u32 run = ld(a.rows, w.tile * TILE);
    if (run == NOWHERE || !goes_on(a, w.tile) || (w.tile > 1 && ld(a.rows, (w.tile - 1) * TILE - 1) == run)) return;
    // The first tile after this that does not begin with the run.
    u64 end = w.tile + 1;
    for (u64 step = 1 << 26; step; step /= 2) {
        if (row_at(a, (end + step - 1) * TILE) == run) end += step;
    }
    Reg<float, 8> sum, part;
    load(a.dtable, run, a.d, w, sum);
    for (u64 tile = w.tile; tile < end; tile++) {
        load(a.parts, tile, a.d, w, part);
        UNROLL for (int j = 0; j < 8; j++) sum[j] += part[j];
    }
    store(a.dtable, run, a.d, w, sum);
}
