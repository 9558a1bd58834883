// The structs passed from and to Rust: the launch, and the report of an error. `src/ffi.rs` declares the same structs.
#pragma once
#include <cstdint>

struct Launch {
    uint32_t grid[3];
    uint32_t block;
    uint32_t shared;
    // 0 in order, 1 reversed, others: seeds of random orders.
    uint32_t schedule;
};
static_assert(sizeof(Launch) == 24, "as in ffi.rs");

struct Report {
    // Bank conflicts: how many more passes ldmatrix needed than it would have needed without conflicts.
    uint64_t conflicts;
    uint64_t switches;
    // Bytes that asynchronous copies brought from global to shared memory.
    uint64_t copied;
    uint32_t block[3];
    uint32_t thread;
    uint32_t line;
    char kernel[32];
    char file[32];
    char text[196];
};
static_assert(sizeof(Report) == 304, "as in ffi.rs");
