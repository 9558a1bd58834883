// What the 32 lanes of a warp do together: they meet, and the last to come does it for all.
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

// Returns when all lanes came to the same place with the same kind, and it is done.
void together(WarpOp& op, Loc loc);

}  // namespace emu
