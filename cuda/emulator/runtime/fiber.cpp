// Switches stacks: pushes and pops six registers on x86-64, uses ucontext (twenty times slower) elsewhere.
#include "fiber.h"
#include <cstdint>

namespace emu {

#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)

extern "C" void emu_switch(void** from, void* to);
asm(R"(
.text
.globl emu_switch
.type emu_switch, @function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch, .-emu_switch
)");

void Fiber::start(void (*entry)(), char* stack, size_t size) {
    auto top = reinterpret_cast<uintptr_t>(stack + size) & ~uintptr_t(15);
    auto words = reinterpret_cast<void**>(top);
    // The stack is as after a call: its pointer is a multiple of 16 plus 8 when `entry` begins.
    *--words = nullptr;
    *--words = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--words = nullptr;
    sp = words;
}

void Fiber::go(Fiber& from, Fiber& to) { emu_switch(&from.sp, to.sp); }

#else

void Fiber::start(void (*entry)(), char* stack, size_t size) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = size;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}

void Fiber::go(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

}  // namespace emu
