// One launch: the grid's blocks one after another, the threads of a block as fibers that run until they wait.
//
// Vector clocks order memory accesses: a thread's clock ticks at each of its barriers, and each warp records, for every
// party of the block, the clock up to which barriers have made that party's work visible to it. Parties are numbered:
// the threads, then the asynchronous ones: the products of each warpgroup, then the copies to each mbarrier.
#pragma once
#include "async.h"
#include "fiber.h"
#include "report.h"
#include "shared.h"
#include <cstdarg>
#include <source_location>
#include <string>
#include <vector>

namespace emu {

using Loc = std::source_location;
using Body = void (*)(const void* args);

enum class At : uint8_t { ready, barrier, warp, group, mbarrier, products, done };

struct WarpOp;

struct Thread {
    Fiber fiber;
    At at = At::ready;
    Loc loc;
    WarpOp* op = nullptr;
    // Used in a warp's first thread only: how many lanes have reached the next collective, and which was the first.
    uint32_t come = 0, earliest = 0;
    uint32_t clock = 1;
    // Copies issued since the last commit, and the groups under way, oldest first.
    std::vector<Copying> open;
    std::vector<std::vector<Copying>> groups;
    // The same for products, and how many have been issued in all.
    std::vector<Product> products;
    std::vector<std::vector<Product>> product_groups;
    uint32_t issued = 0;
    // Clocks of this thread's proxy fences, which make its writes visible to asynchronous readers.
    std::vector<uint32_t> proxy_fences;
    // The barrier for which the thread waits: its address or number, and the parity of the phase.
    uint32_t bar = 0, parity = 0;
};

struct Machine {
    Machine(const char* kernel, Body body, const void* args, const Launch& launch, Report& report);
    // Returns 0, or 1 if there was a fault, which the report describes.
    int run();

    // -- for the threads --
    uint32_t index() const { return current; }
    uint32_t size() const { return launch.block; }
    Thread& me() { return threads[current]; }
    // Lets other threads run until this one is ready again.
    void wait(At at, Loc loc);
    // Whether the accesses of `who` at `clock` are visible to `by`.
    bool knows(uint32_t by, uint32_t who, uint32_t clock) const {
        return by == who || clock <= seen[by / 32][who];
    }
    // Whether a later proxy fence of `who` is visible to `by` as well.
    bool fenced(uint32_t by, uint32_t who, uint32_t clock) const;
    // Reports and abandons the launch; does not return to the thread.
    [[noreturn]] void fail(uint32_t thread, Loc loc, const char* format, ...) __attribute__((format(printf, 4, 5)));
    void know_warp(uint32_t warp);
    // `tell` merges the clocks that the thread knows, and its own, into `known`, and ticks its clock; `learn` merges
    // `known` into the clocks that its warp knows.
    void tell(uint32_t thread, Known& known);
    void learn(uint32_t thread, const Known& known);
    std::string name(uint32_t party) const;
    uint32_t parties() const { return size() + size() / 128 + Async::MBARRIERS; }
    uint32_t products_of(uint32_t thread) const { return size() + thread / 128; }
    uint32_t copies_to(uint32_t mbarrier) const { return size() + size() / 128 + mbarrier; }
    uint64_t random();

    const Launch& launch;
    Report& report;
    uint32_t block[3] = {};
    std::vector<Thread> threads;
    Shared shared;
    Async async;
    // For each warp, the clock of every party up to which that party's work is visible to it.
    std::vector<Known> seen;

  private:
    void write_report(uint32_t thread, Loc loc, const char* format, va_list values);
    void complain(uint32_t thread, Loc loc, const char* format, ...) __attribute__((format(printf, 4, 5)));
    void run_block();
    bool run_ready();
    void release();
    void leave();
    void explain();
    void explain_barrier();
    void order_threads();
    static void begin();

    const char* kernel;
    Body body;
    const void* args;
    Fiber scheduler;
    bool failed = false;
    uint32_t current = 0;
    uint64_t seed;
    std::vector<uint32_t> order;
};

// The launch that runs on this thread of the host. With `constinit` no access checks whether it was initialised.
extern constinit thread_local Machine* machine;

// A kernel that can be launched by its name; `KERNEL` defines one. `limit`: the most threads of a block; `size`: bytes
// of its arguments.
struct Entry {
    Entry(const char* name, uint32_t limit, size_t size, Body body);
    // Fails for a launch configuration that a device would reject.
    int run(const void* args, const Launch& launch, Report& report) const;

    const char* name;
    uint32_t limit;
    size_t size;
    Body body;
    const Entry* next;
};

}  // namespace emu
