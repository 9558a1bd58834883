// Products of a warpgroup (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions"): they run only when they are
// waited for, but their operands must have been written when they were issued.
#include "machine.h"
#include <cstring>

namespace emu {

namespace {

float wide(uint32_t bits) {
    bits <<= 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// The locations of an operand's 16-byte pieces by its descriptor. With `across`, a piece holds 8 consecutive m or n; a
// row of 128 bytes holds 64 of them for one k; the next 64 are `leading` bytes away, the next 8 k `stride` bytes.
// Otherwise a piece holds 8 consecutive k in the row of one m or n, and the next 8 rows are `stride` bytes away.
struct Operand {
    uint32_t start, leading, stride;
    bool across;

    Operand(uint64_t bits, bool across, const Product& p)
        : start((bits & 0x3fff) << 4), leading((bits >> 16 & 0x3fff) << 4), stride((bits >> 32 & 0x3fff) << 4),
          across(across) {
        if (bits >> 62 != 1 || (bits >> 49 & 7)) {
            machine->fail(machine->index(), p.loc,
                          "a descriptor %llx: only rows of 128 bytes, swizzled, from a multiple of 1024",
                          static_cast<unsigned long long>(bits));
        }
    }

    uint32_t pieces(uint32_t mn) const { return across ? 16 * mn / 8 : mn * 2; }

    // The address of piece i; sets mn and k to the indices of its first element.
    uint32_t piece(uint32_t i, uint32_t mn_size, uint32_t& mn, uint32_t& k) const {
        mn = across ? i % (mn_size / 8) * 8 : i / 2;
        k = across ? i / (mn_size / 8) : i % 2 * 8;
        uint32_t at = across ? start + mn / 64 * leading + mn % 64 * 2 + k / 8 * stride + k % 8 * 128
                             : start + mn / 8 * stride + mn % 8 * 128 + k * 2;
        return at ^ (at >> 7 & 7) << 4;
    }

    // to [16, mn]
    void load(float* to, uint32_t size) const {
        for (uint32_t i = 0; i < pieces(size); i++) {
            uint32_t mn, k, at = piece(i, size, mn, k);
            const uint16_t* from = machine->shared.get(at);
            for (uint32_t e = 0; e < 8; e++) to[across ? k * size + mn + e : (k + e) * size + mn] = wide(from[e]);
        }
    }
};

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3")))
#endif
void multiply(float* __restrict c, const float* __restrict a, const float* __restrict b, uint32_t n) {
    // The number of sums that the host keeps in registers.
    constexpr uint32_t AT_ONCE = 32;
    for (uint32_t row = 0; row < 64; row++) {
        for (uint32_t col = 0; col < n; col += AT_ONCE) {
            float sums[AT_ONCE];
            for (uint32_t i = 0; i < AT_ONCE; i++) sums[i] = c[row * n + col + i];
            for (uint32_t k = 0; k < 16; k++) {
                for (uint32_t i = 0; i < AT_ONCE; i++) sums[i] += a[k * 64 + row] * b[k * n + col + i];
            }
            for (uint32_t i = 0; i < AT_ONCE; i++) c[row * n + col + i] = sums[i];
        }
    }
}

struct Warpgroup {
    uint32_t first;

    Thread& thread(uint32_t t) { return machine->threads[first + t]; }
    Product& product(uint32_t t, size_t i) { return thread(t).product_groups.front()[i]; }

    void check_same(size_t i) {
        const Product& all = product(0, i);
        for (uint32_t t = 1; t < 128; t++) {
            bool there = thread(t).product_groups.front().size() > i;
            const Product* p = there ? &product(t, i) : nullptr;
            bool same = p && p->loc.line() == all.loc.line() && p->a_at == all.a_at && p->b_at == all.b_at &&
                        p->add == all.add && p->a_across == all.a_across && p->b_across == all.b_across;
            if (!same) {
                machine->fail(first + t, all.loc,
                              "divergence: thread %u hands the product other operands than thread %u", first + t,
                              first);
            }
        }
    }

    // Collects a [16, 64] from the lanes' fragments.
    void gather(float* a, size_t i) {
        for (uint32_t t = 0; t < 128; t++) {
            uint32_t row = t / 32 * 16 + t % 32 / 4, col = t % 4 * 2;
            for (uint32_t e = 0; e < 8; e++) {
                uint32_t pair = product(t, i).a[e / 2];
                a[(col + e % 2 + e / 4 * 8) * 64 + row + e / 2 % 2 * 8] = wide(e % 2 ? pair >> 16 : pair & 0xffff);
            }
        }
    }

    // Calls f with each accumulator of the lanes and its index in c [64, n].
    template <class F> void each_sum(size_t i, F f) {
        uint32_t n = product(0, i).n;
        for (uint32_t t = 0; t < 128; t++) {
            float* d = product(t, i).d;
            for (uint32_t e = 0; e < n / 2; e++) {
                uint32_t row = t / 32 * 16 + t % 32 / 4 + e / 2 % 2 * 8, col = e / 4 * 8 + t % 4 * 2 + e % 2;
                f(d[e], row * n + col);
            }
        }
    }

    // c is kept between consecutive products that add to the same sums: `first` loads it, `last` stores it.
    void run(size_t i, bool first, bool last) {
        static thread_local float a[16 * 64], b[16 * 128], c[64 * 128];
        check_same(i);
        const Product& p = product(0, i);
        Operand(p.b_at, p.b_across, p).load(b, p.n);
        if (p.a_lock) {
            gather(a, i);
        } else {
            Operand(p.a_at, p.a_across, p).load(a, 64);
        }
        if (!p.add) {
            memset(c, 0, sizeof c);
        } else if (first) {
            each_sum(i, [&](float& d, uint32_t at) { c[at] = d; });
        }
        multiply(c, a, b, p.n);
        if (last) each_sum(i, [&](float& d, uint32_t at) { d = c[at]; });
        for (uint32_t t = 0; t < 128; t++) {
            product(t, i).d_lock->products--;
            if (p.a_lock) product(t, i).a_lock->products--;
        }
    }

    void run_group() {
        size_t n = thread(0).product_groups.front().size();
        auto d = [&](size_t i) { return i < n ? product(0, i).d : nullptr; };
        for (size_t i = 0; i < n; i++) run(i, i == 0 || d(i - 1) != d(i), d(i + 1) != d(i));
        for (uint32_t t = 0; t < 128; t++) thread(t).product_groups.erase(thread(t).product_groups.begin());
    }
};

}  // namespace

// The first lane of each warp checks that the operands have been written, that of the first warp for every byte.
void issue_product(Product p) {
    Machine& m = *machine;
    uint32_t t = m.index();
    Thread& me = m.me();
    me.products.push_back(p);
    me.issued++;
    if (t % 32) return;
    auto look = [&](uint64_t bits, bool across, uint32_t from, uint32_t to, uint32_t size) {
        Operand o(bits, across, p);
        for (uint32_t i = from; i < to; i++) {
            uint32_t mn, k, at = o.piece(i, size, mn, k);
            m.shared.async_read(t, {m.products_of(t), me.issued, p.loc.line()}, at, t % 128 == 0, p.loc);
        }
    };
    look(p.b_at, p.b_across, 0, p.n * 2, p.n);
    // A warp checks its own 16 rows of a, which are pieces behind one another unless they lie across; the first warp
    // checks and marks all 64.
    bool all = p.a_across || t % 128 == 0;
    if (!p.a_lock) look(p.a_at, p.a_across, all ? 0 : t % 128, all ? 128 : t % 128 + 32, 64);
}

void wait_products(uint32_t left, Loc loc) {
    Machine& m = *machine;
    uint32_t t = m.index(), first = t / 128 * 128;
    if (first + 128 > m.size()) m.fail(t, loc, "a product of a warpgroup that has fewer than 128 threads");
    auto here = [&](const Thread& o) {
        return o.at == At::products && o.loc.line() == loc.line() && o.loc.column() == loc.column();
    };
    uint32_t came = 1;
    for (uint32_t o = first; o < first + 128; o++) came += o != t && here(m.threads[o]);
    if (came < 128) return m.wait(At::products, loc);
    for (uint32_t o = first; o < first + 128; o++) {
        if (m.threads[o].product_groups.size() != m.me().product_groups.size()) {
            m.fail(o, loc, "divergence: thread %u waits for other products than thread %u", o, t);
        }
    }
    while (m.me().product_groups.size() > left) Warpgroup{first}.run_group();
    uint32_t under_way = 0;
    for (const auto& group : m.me().product_groups) under_way += uint32_t(group.size());
    uint32_t done = m.me().issued - under_way - uint32_t(m.me().products.size());
    for (uint32_t o = first; o < first + 128; o++) {
        if (o % 32 == 0) m.seen[o / 32][m.products_of(o)] = done;
        m.threads[o].at = At::ready;
    }
}

}  // namespace emu
