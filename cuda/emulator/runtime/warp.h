// The collective operations of a warp's 32 lanes: the last lane to arrive carries them out for all.
#pragma once
#include "machine.h"

namespace emu {

struct WarpOp {
    enum Kind : uint8_t { sync, shuffle, ldmatrix, ldmatrix_trans, mma } kind;
    // shuffle: value and source lane. ldmatrix: the address of a row.
    uint32_t value = 0, lane = 0;
    // ldmatrix: where the four words go. mma: c.
    uint32_t* words = nullptr;
    float* c = nullptr;
    uint32_t a[4] = {}, b[2] = {};
};

// Returns once all lanes have reached the same place with the same kind of operation and it is complete.
void together(WarpOp& op, Loc loc);

}  // namespace emu
