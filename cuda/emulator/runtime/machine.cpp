// The scheduler: runs ready threads, releases barriers and, when no thread can run, reports which waits for which.
#include "machine.h"
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string_view>
#include <utility>

namespace emu {

constinit thread_local Machine* machine = nullptr;

namespace {
constexpr size_t STACK = 64 << 10;
// Keeps the tops of the stacks from mapping to the same sets of the cache.
constexpr size_t STAGGER = 192;
thread_local std::unique_ptr<char[]> stacks;
thread_local size_t stacks_for = 0;

char* stack_of(uint32_t thread) { return stacks.get() + thread * (STACK + STAGGER); }

const char* name_of(const char* path) {
    const char* slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}
}  // namespace

void merge(Known& into, const Known& from) {
    for (size_t i = 0; i < from.size(); i++) into[i] = std::max(into[i], from[i]);
}

Machine::Machine(const char* kernel, Body body, const void* args, const Launch& launch, Report& report)
    : launch(launch), report(report), shared(*this, launch.shared), async(*this), kernel(kernel), body(body),
      args(args), seed(launch.schedule * 0x9e3779b97f4a7c15u + 1) {
    if (stacks_for < launch.block) {
        stacks_for = launch.block;
        stacks.reset(new char[stacks_for * (STACK + STAGGER)]);
    }
    for (uint32_t t = 0; t < launch.block; t++) order.push_back(launch.schedule == 1 ? launch.block - 1 - t : t);
}

uint64_t Machine::random() {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

void Machine::order_threads() {
    if (launch.schedule < 2) return;
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[random() % i]);
}

void Machine::begin() {
    Machine& m = *machine;
    m.body(m.args);
    m.leave();
    m.wait(At::done, Loc::current());
    __builtin_unreachable();
}

// A thread ends: the products that it issued must have been waited for.
void Machine::leave() {
    if (me().products.empty() && me().product_groups.empty()) return;
    Loc loc = me().products.empty() ? me().product_groups[0][0].loc : me().products[0].loc;
    fail(current, loc, "left: a product that the thread does not wait for");
}

int Machine::run() {
    Machine* outer = std::exchange(machine, this);
    uint64_t count = uint64_t(launch.grid[0]) * launch.grid[1] * launch.grid[2];
    std::vector<uint64_t> all(count);
    for (uint64_t i = 0; i < count; i++) all[i] = launch.schedule == 1 ? count - 1 - i : i;
    for (uint64_t i = count; launch.schedule > 1 && i > 1; i--) std::swap(all[i - 1], all[random() % i]);
    for (uint64_t b : all) {
        block[0] = b % launch.grid[0];
        block[1] = b / launch.grid[0] % launch.grid[1];
        block[2] = b / launch.grid[0] / launch.grid[1];
        run_block();
        if (failed) break;
    }
    machine = outer;
    return failed;
}

void Machine::run_block() {
    uint32_t n = launch.block;
    threads.assign(n, Thread());
    seen.assign(n / 32, Known(parties(), 0));
    shared.clear();
    async.clear();
    for (uint32_t t = 0; t < n; t++) threads[t].fiber.start(begin, stack_of(t), STACK);
    while (!failed) {
        order_threads();
        if (run_ready()) continue;
        if (failed) return;
        if (std::all_of(threads.begin(), threads.end(), [](auto& t) { return t.at == At::done; })) break;
        release();
    }
    if (!failed && async.flying()) complain(0, async.oldest(), "left: a copy is under way when the block ends");
}

bool Machine::run_ready() {
    bool moved = false;
    for (uint32_t t : order) {
        if (threads[t].at != At::ready) continue;
        moved = true;
        current = t;
        report.switches++;
        Fiber::go(scheduler, threads[t].fiber);
        if (failed) return false;
    }
    return moved;
}

void Machine::wait(At at, Loc loc) {
    Thread& me = threads[current];
    me.at = at;
    me.loc = loc;
    Fiber::go(me.fiber, scheduler);
}

// No thread can run: all are at one barrier, or a copy has to land, or this is a deadlock.
void Machine::release() {
    auto same = [&](const Thread& t) {
        const Loc& first = threads[0].loc;
        return t.at == At::barrier && t.loc.line() == first.line() && t.loc.column() == first.column();
    };
    if (!std::all_of(threads.begin(), threads.end(), same)) return async.land() ? void() : explain();
    Known all(parties(), 0);
    for (const Known& known : seen) merge(all, known);
    for (uint32_t t = 0; t < launch.block; t++) {
        all[t] = threads[t].clock++;
        threads[t].at = At::ready;
    }
    for (Known& known : seen) known = all;
}

void Machine::know_warp(uint32_t warp) {
    for (uint32_t t = warp * 32; t < warp * 32 + 32; t++) seen[warp][t] = threads[t].clock++;
}

// About the other threads of its warp, a thread passes on only what the warp has learnt at a barrier.
void Machine::tell(uint32_t thread, Known& known) {
    merge(known, seen[thread / 32]);
    known[thread] = threads[thread].clock++;
}

void Machine::learn(uint32_t thread, const Known& known) { merge(seen[thread / 32], known); }

bool Machine::fenced(uint32_t by, uint32_t who, uint32_t clock) const {
    if (who >= launch.block) return true;
    const auto& fences = threads[who].proxy_fences;
    auto first = std::lower_bound(fences.begin(), fences.end(), clock);
    return first != fences.end() && knows(by, who, *first);
}

std::string Machine::name(uint32_t party) const {
    if (party < launch.block) return "thread " + std::to_string(party);
    if (party < copies_to(0)) return "a product of warpgroup " + std::to_string(party - launch.block);
    return "the copy engine";
}

void Machine::explain() {
    auto find = [&](auto wanted) {
        return uint32_t(std::find_if(threads.begin(), threads.end(), wanted) - threads.begin());
    };
    uint32_t n = launch.block;
    if (uint32_t t = find([](auto& t) { return t.at == At::warp; }); t < n) {
        uint32_t first = t / 32 * 32, other = first;
        while (other < first + 31 && threads[other].at == At::warp && threads[other].op == nullptr) other++;
        for (uint32_t o = first; o < first + 32; o++) {
            bool apart = threads[o].at != At::warp || threads[o].loc.line() != threads[t].loc.line() ||
                         threads[o].loc.column() != threads[t].loc.column();
            if (apart) other = o;
        }
        const char* how = threads[other].at == At::done ? "has left the kernel" : "waits elsewhere";
        return complain(t, threads[t].loc, "divergence: the warp's lanes do not all come here; thread %u %s (line %u)",
                        other, how, threads[other].at == At::done ? 0 : threads[other].loc.line());
    }
    if (uint32_t t = find([](auto& t) { return t.at == At::products; }); t < n) {
        return complain(t, threads[t].loc,
                        "divergence: the warpgroup's threads do not all come to this wait for products");
    }
    if (uint32_t t = find([](auto& t) { return t.at == At::group || t.at == At::mbarrier; }); t < n) {
        char text[128] = "";
        async.lacks(t, text, sizeof text);
        return complain(t, threads[t].loc, "deadlock: %s", text);
    }
    explain_barrier();
}

void Machine::explain_barrier() {
    auto find = [&](auto wanted) {
        return uint32_t(std::find_if(threads.begin(), threads.end(), wanted) - threads.begin());
    };
    uint32_t n = launch.block, at = find([](auto& t) { return t.at == At::barrier; });
    if (uint32_t gone = find([](auto& t) { return t.at == At::done; }); gone < n) {
        return complain(at, threads[at].loc, "divergence: a barrier waits for thread %u, which has left the kernel",
                        gone);
    }
    uint32_t other = find([&](auto& t) { return t.loc.line() != threads[at].loc.line(); });
    complain(at, threads[at].loc, "divergence: thread %u waits at another barrier (line %u)", other % n,
             threads[other % n].loc.line());
}

void Machine::write_report(uint32_t thread, Loc loc, const char* format, va_list values) {
    failed = true;
    for (int i = 0; i < 3; i++) report.block[i] = block[i];
    report.thread = thread;
    report.line = loc.line();
    snprintf(report.kernel, sizeof report.kernel, "%s", kernel);
    snprintf(report.file, sizeof report.file, "%s", name_of(loc.file_name()));
    vsnprintf(report.text, sizeof report.text, format, values);
}

void Machine::complain(uint32_t thread, Loc loc, const char* format, ...) {
    va_list values;
    va_start(values, format);
    write_report(thread, loc, format, values);
    va_end(values);
}

void Machine::fail(uint32_t thread, Loc loc, const char* format, ...) {
    va_list values;
    va_start(values, format);
    write_report(thread, loc, format, values);
    va_end(values);
    Fiber::go(threads[current].fiber, scheduler);
    __builtin_unreachable();
}

namespace {
constinit const Entry* entries = nullptr;

const Entry* find(std::string_view wanted) {
    const Entry* e = entries;
    while (e && e->name != wanted) e = e->next;
    return e;
}
}  // namespace

Entry::Entry(const char* name, uint32_t limit, size_t size, Body body)
    : name(name), limit(limit), size(size), body(body), next(entries) {
    entries = this;
}

int Entry::run(const void* args, const Launch& launch, Report& report) const {
    bool sound = launch.block && launch.block % 32 == 0 && launch.block <= limit && launch.shared <= 227u << 10 &&
                 launch.grid[0] && launch.grid[1] && launch.grid[2];
    if (!sound) {
        snprintf(report.text, sizeof report.text,
                 "a launch of %u x %u x %u blocks of %u threads (at most %u) with %u bytes", launch.grid[0],
                 launch.grid[1], launch.grid[2], launch.block, limit, launch.shared);
        return 1;
    }
    return Machine(name, body, args, launch, report).run();
}

// Returns 0, or 1 if there was a fault, which the report describes, or -1 if there is no kernel of this name.
extern "C" int emu_run(const char* name, size_t length, const void* args, const Launch* launch, Report* report) {
    *report = Report{};
    snprintf(report->kernel, sizeof report->kernel, "%.*s", int(length), name);
    if (const Entry* e = find({name, length})) return e->run(args, *launch, *report);
    snprintf(report->text, sizeof report->text, "there is no kernel of this name");
    return -1;
}

// Returns the size of a kernel's arguments in bytes, or 0 if there is no kernel of this name.
extern "C" size_t emu_args_size(const char* name, size_t length) {
    const Entry* e = find({name, length});
    return e ? e->size : 0;
}

}  // namespace emu
