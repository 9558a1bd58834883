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

    // The eight rows of a matrix are read at once, each from four of the 32 banks.
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
        float a[16][16], b[16][8];
        for (uint32_t l = 0; l < 32; l++) {
            uint32_t g = l / 4, t = l % 4 * 2;
            for (uint32_t i = 0; i < 2; i++) {
                a[g][t + i] = half_of(op(l).a[0], i);
                a[g + 8][t + i] = half_of(op(l).a[1], i);
                a[g][t + 8 + i] = half_of(op(l).a[2], i);
                a[g + 8][t + 8 + i] = half_of(op(l).a[3], i);
                b[t + i][g] = half_of(op(l).b[0], i);
                b[t + 8 + i][g] = half_of(op(l).b[1], i);
            }
        }
        // All sums of a row step by step, each in the order of k.
        for (uint32_t row = 0; row < 16; row++) {
            float sums[8];
            for (uint32_t col = 0; col < 8; col++) sums[col] = op(row % 8 * 4 + col / 2).c[row / 8 * 2 + col % 2];
            for (uint32_t k = 0; k < 16; k++) {
                for (uint32_t col = 0; col < 8; col++) sums[col] += a[row][k] * b[k][col];
            }
            for (uint32_t col = 0; col < 8; col++) op(row % 8 * 4 + col / 2).c[row / 8 * 2 + col % 2] = sums[col];
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
    auto here = [&](const Thread& t) {
        return t.at == At::warp && t.op->kind == op.kind && t.loc.line() == loc.line() && t.loc.column() == loc.column();
    };
    uint32_t came = 1;
    for (uint32_t t = first; t < first + 32; t++) came += t != me && here(m.threads[t]);
    if (came < 32) return m.wait(At::warp, loc);
    Warp{first}.run(op.kind, loc);
    for (uint32_t t = first; t < first + 32; t++) {
        m.threads[t].at = At::ready;
    }
}

}  // namespace emu
