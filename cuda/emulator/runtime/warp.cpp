// The collectives of a warp, with the device's layouts of fragments (PTX ISA, "Matrix multiply-accumulate").
#include "warp.h"
#include <algorithm>
#include <cstring>

namespace emu {

namespace {

float half_of(uint32_t pair, int i) {
    uint32_t bits = i ? pair & 0xffff0000u : pair << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// The eight columns of b and of c.
using Row = float __attribute__((vector_size(32)));

// All sums of a row at once, each in the order of k.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("avx2", "default")))
#endif
void add_products(Row* sums, const float (*a)[16], const Row* b) {
    for (uint32_t row = 0; row < 16; row++) {
        Row sum = sums[row];
        for (uint32_t k = 0; k < 16; k++) sum += a[row][k] * b[k];
        sums[row] = sum;
    }
}

struct Warp {
    uint32_t first;
    WarpOp& op(uint32_t lane) { return *machine->threads[first + lane].op; }

    void shuffle() {
        uint32_t values[32];
        for (uint32_t l = 0; l < 32; l++) values[l] = op(l).value;
        for (uint32_t l = 0; l < 32; l++) op(l).value = values[op(l).lane % 32];
    }

    void ldmatrix(bool trans, Loc loc) {
        uint16_t m[4][8][8];
        for (uint32_t l = 0; l < 32; l++) machine->shared.read(first + l, op(l).value, m[l / 8][l % 8], 16, loc);
        for (uint32_t i = 0; i < 4; i++) count_conflicts(i);
        for (uint32_t l = 0; l < 32; l++) {
            for (uint32_t i = 0; i < 4; i++) {
                uint32_t r = l / 4, c = l % 4 * 2;
                uint32_t low = trans ? m[i][c][r] : m[i][r][c], high = trans ? m[i][c + 1][r] : m[i][r][c + 1];
                op(l).words[i] = low | high << 16;
            }
        }
    }

    // The eight rows of a matrix are read in one pass if all lie in different banks; a row takes four of the 32.
    void count_conflicts(uint32_t matrix) {
        uint32_t rows[8] = {}, most = 0;
        for (uint32_t r = 0; r < 8; r++) {
            uint32_t at = op(8 * matrix + r).value;
            bool again = false;
            for (uint32_t s = 0; s < r; s++) again |= op(8 * matrix + s).value == at;
            if (!again) most = std::max(most, ++rows[at / 16 % 8]);
        }
        machine->report.conflicts += most - 1;
    }

    void mma() {
        float a[16][16];
        Row b[16], sums[16];
        for (uint32_t l = 0; l < 32; l++) {
            const WarpOp& o = op(l);
            uint32_t g = l / 4, t = l % 4 * 2;
            for (uint32_t i = 0; i < 2; i++) {
                a[g][t + i] = half_of(o.a[0], i);
                a[g + 8][t + i] = half_of(o.a[1], i);
                a[g][t + 8 + i] = half_of(o.a[2], i);
                a[g + 8][t + 8 + i] = half_of(o.a[3], i);
                b[t + i][g] = half_of(o.b[0], i);
                b[t + 8 + i][g] = half_of(o.b[1], i);
                sums[g][t + i] = o.c[i];
                sums[g + 8][t + i] = o.c[2 + i];
            }
        }
        add_products(sums, a, b);
        for (uint32_t l = 0; l < 32; l++) {
            for (uint32_t e = 0; e < 4; e++) op(l).c[e] = sums[l / 4 + e / 2 * 8][l % 4 * 2 + e % 2];
        }
    }

    void run(WarpOp::Kind kind, Loc loc) {
        switch (kind) {
            case WarpOp::sync: return machine->know_warp(first / 32);
            case WarpOp::shuffle: return shuffle();
            case WarpOp::ldmatrix: return ldmatrix(false, loc);
            case WarpOp::ldmatrix_trans: return ldmatrix(true, loc);
            case WarpOp::mma: return mma();
        }
    }
};

}  // namespace

void together(WarpOp& op, Loc loc) {
    Machine& m = *machine;
    uint32_t me = m.index(), first = me / 32 * 32;
    m.threads[me].op = &op;
    // Only lanes that are at the same place as the first to arrive are counted: lanes at other places wait for ever.
    Thread& chief = m.threads[first];
    if (chief.come == 0) chief.earliest = me;
    const Thread& other = m.threads[chief.earliest];
    chief.come += chief.earliest == me || (other.op->kind == op.kind && other.loc.line() == loc.line() &&
                                           other.loc.column() == loc.column());
    if (chief.come < 32) return m.wait(At::warp, loc);
    chief.come = 0;
    Warp{first}.run(op.kind, loc);
    for (uint32_t t = first; t < first + 32; t++) {
        m.threads[t].at = At::ready;
    }
}

}  // namespace emu
