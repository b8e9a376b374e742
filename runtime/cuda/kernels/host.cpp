// Runs the fusion kernel on a CPU, for tests: the same source, every thread of a block a context of its own, all of them on
// one thread of the system. A barrier hands over to the next context; it has been passed when all have come to it.
//
//   c++ -std=c++17 -O1 -ffp-contract=off -shared -fPIC host.cpp -o libfuse_host.so
//
// `fuse_host` returns 0, or 1 for a barrier that not every thread of a block comes to.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <ucontext.h>

typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;

#define DEVICE inline
#define KERNEL static
#define SHARED static
#define BARRIER() emulator::barrier()
#define BLOCK emulator::block
#define THREAD emulator::thread
#define UNROLL

namespace emulator {
constexpr u32 COUNT = 256;
constexpr size_t STACK = 64 << 10;
u32 block, thread;
ucontext_t scheduler, contexts[COUNT];
bool ended[COUNT];
std::function<void()> body;

void barrier() {
    // What `THREAD` gave is kept by the caller; the others are about to change it.
    const u32 mine = thread;
    swapcontext(&contexts[mine], &scheduler);
    thread = mine;
}

void enter() {
    body();
    ended[thread] = true;
}

// Runs all threads of a block from barrier to barrier.
bool run_block(char *stacks) {
    for (u32 i = 0; i < COUNT; i++) {
        ended[i] = false;
        getcontext(&contexts[i]);
        contexts[i].uc_stack.ss_sp = stacks + i * STACK;
        contexts[i].uc_stack.ss_size = STACK;
        contexts[i].uc_link = &scheduler;
        makecontext(&contexts[i], enter, 0);
    }
    for (;;) {
        u32 done = 0;
        for (u32 i = 0; i < COUNT; i++) {
            thread = i;
            swapcontext(&scheduler, &contexts[i]);
            done += ended[i];
        }
        if (done == COUNT) return true;
        if (done > 0) return false;
    }
}
} // namespace emulator

static float fused_multiply_add(float a, float b, float c) { return std::fmaf(a, b, c); }
static float plus(float a, float b) { return a + b; }
static float minus(float a, float b) { return a - b; }
static u32 bits_of(float value) {
    u32 bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
static float from_bits(u32 bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
static float widen_f16(u16 bits) {
    const u32 sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
    if (exponent == 31) return from_bits(sign | 0x7f800000 | mantissa << 13);
    const float size = exponent == 0 ? std::ldexp(float(mantissa), -24) : std::ldexp(float(mantissa | 0x400), int(exponent) - 25);
    return sign ? -size : size;
}
static u16 narrow_f16(float value) {
    const u16 sign = bits_of(value) >> 16 & 0x8000;
    const float size = std::fabs(value);
    if (std::isnan(value)) return 0x7fff;
    if (size >= 65520) return sign | 0x7c00;
    // Steps of the last place: 2^-24 below the smallest normal number, then with the exponent. The sum rounds to even.
    int exponent;
    std::frexp(size, &exponent);
    const int step = (exponent < -13 ? -13 : exponent) - 11;
    const u32 steps = u32(std::nearbyint(std::ldexp(size, -step)));
    // A carry into the next exponent is what the addition makes of it.
    return sign | u16(steps + (u32(step + 24) << 10));
}

struct Line;
static Line load_line(const Line *from);
static void store_line(Line line, Line *to);

#include "fuse.cu"

static Line load_line(const Line *from) { return *from; }
static void store_line(Line line, Line *to) { *to = line; }

extern "C" int fuse_host(int element, const void *regions, const void *products, const void *region_of_block, void *sums, u32 blocks) {
    const auto kernel = element == 0 ? fuse_f32 : element == 1 ? fuse_f16 : fuse_bf16;
    const std::unique_ptr<char[]> stacks(new char[emulator::COUNT * emulator::STACK]);
    emulator::body = [=] {
        kernel(static_cast<const Region *>(regions), static_cast<const Product *>(products), static_cast<const u32 *>(region_of_block),
               static_cast<Sums *>(sums));
    };
    for (emulator::block = 0; emulator::block < blocks; emulator::block++)
        if (!emulator::run_block(stacks.get())) return 1;
    return 0;
}
