// Stacks that take turns on one thread of the host. A fiber that is never resumed is dropped without running
// destructors: the code that it runs must own nothing.
#pragma once
#include <cstddef>
#if !defined(__x86_64__) || defined(EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif

namespace emu {

struct Fiber {
#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
    void* sp = nullptr;
#else
    ucontext_t context;
#endif
    // `entry` must not return.
    void start(void (*entry)(), char* stack, size_t size);
    // Saves the state of `from` and resumes `to` where it was suspended.
    static void go(Fiber& from, Fiber& to);
};

}  // namespace emu
