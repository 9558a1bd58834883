// Products with a gate, y = f(gate) up: block (row, part) processes a part of a row, eight elements per thread.
#pragma once
#include "args.cuh"
#include "common.cuh"

// The location of this thread's eight elements, and whether all vectors of a row are aligned.
struct Place {
    u64 gate, y;
    u32 column;
    bool wide;
};
template <class Args> DEVICE Place place(const Args& a, u32 column) {
    u64 row = block();
    return {row * 2 * a.f + column, row * a.f + column, column, a.f % 8 == 0 && aligned(a.gate_up) && aligned(a.y)};
}
template <class Args> DEVICE Place place(const Args& a) {
    return place(a, (block_y() * threads() + thread()) * 8);
}
