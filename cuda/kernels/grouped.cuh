// Which rows a block of a grouped product works on: rows are sorted by expert, and an expert begins a tile of its own.
// Only the device knows how many rows an expert has: the host launches a bound of the tiles, and each block looks for
// its own in the counts.
#pragma once
#include "args_experts.cuh"
#include "common.cuh"

// Rows of a tile, and columns of one of sm_80.
constexpr u32 TILE = 128;

// Some of the matrix's rows, of one expert.
struct Rows {
    u32 expert, first, rows;
};

// The sum of v over this lane and those below it.
DEVICE u32 sum_up_to(u32 v HERE) {
    u32 lane = thread() % 32;
    UNROLL for (u32 step = 1; step < 32; step *= 2) {
        u32 other = shfl(v, (lane - step) % 32 AT);
        v += lane >= step ? other : 0;
    }
    return v;
}

// The sorted rows before `end` that the matrix has.
DEVICE u32 here(const u32 end, u32 first, u32 rows) {
    u32 n = end > first ? end - first : 0;
    return n < rows ? n : rows;
}

// The consecutive experts begin .. end that a lane looks at, and the sorted rows in front of theirs.
struct Share {
    u32 begin, end, before;
};
DEVICE Share share_of_lane(View<const u32> counts HERE) {
    u32 experts = static_cast<u32>(counts.n), each = (experts + 31) / 32, begin = thread() % 32 * each, n = 0;
    u32 end = begin + each < experts ? begin + each : experts;
    for (u32 e = begin; e < end; e++) n += ld(counts, e AT);
    return {begin, end, sum_up_to(n AT) - n};
}

// The rows of tile number `tile`, or none. Experts begin tiles of their own. Each lane counts the tiles of its experts;
// all lanes get the result.
DEVICE Rows rows_of_tile(View<const u32> counts, u32 first, u32 rows, u32 tile HERE) {
    Share share = share_of_lane(counts AT);
    u32 at = share.before, tiles = 0;
    for (u32 e = share.begin; e < share.end; e++) {
        u32 before = here(at, first, rows);
        at += ld(counts, e AT);
        tiles += (here(at, first, rows) - before + TILE - 1) / TILE;
    }
    u32 skipped = sum_up_to(tiles AT) - tiles;
    Rows found = {0, 0, 0};
    if (tile >= skipped && tile < skipped + tiles) {
        at = share.before;
        for (u32 e = share.begin; e < share.end && !found.rows; e++) {
            u32 before = here(at, first, rows) + (tile - skipped) * TILE;
            u32 mine = (here(at + ld(counts, e AT), first, rows) - here(at, first, rows) + TILE - 1) / TILE;
            at += ld(counts, e AT);
            u32 left = here(at, first, rows) - before;
            if (tile < skipped + mine) found = {e, before, left < TILE ? left : TILE};
            skipped += mine;
        }
    }
    return {warp_sum(found.expert AT), warp_sum(found.first AT), warp_sum(found.rows AT)};
}

// The rows of an expert.
DEVICE Rows rows_of_expert(View<const u32> counts, u32 first, u32 rows, u32 expert HERE) {
    u32 n = 0;
    for (u32 e = thread() % 32; e < expert; e += 32) n += ld(counts, e AT);
    n = warp_sum(n AT);
    u32 from = here(n, first, rows);
    return {expert, from, here(n + ld(counts, expert AT), first, rows) - from};
}

// The expert of a sorted row, or the number of experts if none has it: as many experts end in front of the row. All
// lanes get the result.
DEVICE u32 expert_of_row(View<const u32> counts, u32 row HERE) {
    Share share = share_of_lane(counts AT);
    u32 end = share.before, ended = 0;
    for (u32 e = share.begin; e < share.end; e++) {
        end += ld(counts, e AT);
        ended += end <= row;
    }
    return warp_sum(ended AT);
}

// -- biases --

// The factor of the bias in a row of the matrix.
DEVICE float bias_weight(const GroupBias& b, u32 row HERE) { return b.weights.n ? ld(b.weights, row AT) : 1.0f; }

// Column `i` of an expert's bias, which is zero outside of it.
DEVICE float bias_at(const GroupBias& b, u32 expert, u32 i HERE) {
    return i < b.width ? f32_of(ld(b.bias, static_cast<u64>(expert) * b.width + i AT)) : 0.0f;
}
