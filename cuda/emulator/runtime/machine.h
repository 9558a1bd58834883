// One launch: the grid's blocks one after another, the threads of a block as fibers that run until they wait.
//
// Who may know of what is told by vector clocks: a thread's clock ticks at each of its barriers, and each warp
// holds, of every thread of the block, the clock up to which barriers have shown it that thread's work.
#pragma once
#include "fiber.h"
#include "report.h"
#include "shared.h"
#include <cstdarg>
#include <source_location>
#include <vector>

namespace emu {

using Loc = std::source_location;
using Body = void (*)(const void* args);

enum class At : uint8_t { ready, barrier, warp, done };

struct WarpOp;

struct Thread {
    Fiber fiber;
    At at = At::ready;
    Loc loc;
    WarpOp* op = nullptr;
    uint32_t clock = 1;
    // Copies issued since the last commit, and the groups under way, oldest first.
    std::vector<Copying> open;
    std::vector<std::vector<Copying>> groups;
};

struct Machine {
    Machine(const char* kernel, Body body, const void* args, const Launch& launch, Report& report);
    // 0, or 1 where the report says what went wrong.
    int run();

    // -- for the threads --
    uint32_t index() const { return current; }
    uint32_t size() const { return launch.block; }
    // Gives the word to others until this thread is ready again.
    void wait(At at, Loc loc);
    // Whether `by` knows what `who` did at `clock`.
    bool knows(uint32_t by, uint32_t who, uint32_t clock) const {
        return by == who || clock <= seen[by / 32][who];
    }
    // Reports and abandons the launch; does not return to the thread.
    [[noreturn]] void fail(uint32_t thread, Loc loc, const char* format, ...) __attribute__((format(printf, 4, 5)));
    void know_warp(uint32_t warp);

    const Launch& launch;
    Report& report;
    uint32_t block[3] = {};
    std::vector<Thread> threads;
    Shared shared;

  private:
    void write_report(uint32_t thread, Loc loc, const char* format, va_list values);
    void complain(uint32_t thread, Loc loc, const char* format, ...) __attribute__((format(printf, 4, 5)));
    void run_block();
    bool run_ready();
    void release();
    void explain();
    void order_threads();
    uint64_t random();
    static void begin();

    const char* kernel;
    Body body;
    const void* args;
    Fiber scheduler;
    bool failed = false;
    uint32_t current = 0;
    uint64_t seed;
    std::vector<uint32_t> order;
    std::vector<std::vector<uint32_t>> seen;
};

// The launch under way on this thread of the host.
extern thread_local Machine* machine;

// A kernel that can be launched by its name; `KERNEL` makes one of each. `limit`: threads of a block at most.
struct Entry {
    Entry(const char* name, uint32_t limit, Body body);
    // Refuses what no device would launch.
    int run(const void* args, const Launch& launch, Report& report) const;

    const char* name;
    uint32_t limit;
    Body body;
    const Entry* next;
};

}  // namespace emu
