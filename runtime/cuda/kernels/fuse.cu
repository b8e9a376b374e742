// W' = round(f32(W) + sum of f[i] * L[i] * R[i]) for many matrices in one launch.
//
// Bit for bit what the CPU kernels of v2l-runtime compute: per element, ranks in ascending order, one fused multiply-add
// each, into the product of one factor pair; the products, each times its factor, by fused multiply-add into the update;
// one addition; one rounding, to nearest, ties to even. An update of zero keeps the element's bits. Subnormal numbers are
// kept (never compile this with --ftz=true). Only the four sums per block are taken in another order than the CPU's.
//
// A block has 256 threads and fuses 128 rows of 256 columns, 32 rows at a time: a warp 4 rows, a thread 8 neighbouring
// columns of each, which are 16 bytes of a 16-bit type. R lies in shared memory, CHUNK ranks at a time.
//
// Compiled by NVRTC for a GPU. A C++ compiler takes it, too, after the names of the first part are defined for the host:
// the tests run it so.

#ifdef __CUDACC__
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__ __launch_bounds__(256, 2)
#define SHARED __shared__ __align__(16)
#define BARRIER() __syncthreads()
#define BLOCK blockIdx.x
#define THREAD threadIdx.x
#define UNROLL _Pragma("unroll")

DEVICE float fused_multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float plus(float a, float b) { return __fadd_rn(a, b); }
DEVICE float minus(float a, float b) { return __fsub_rn(a, b); }
DEVICE u32 bits_of(float value) { return __float_as_uint(value); }
DEVICE float from_bits(u32 bits) { return __uint_as_float(bits); }
DEVICE float widen_f16(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
DEVICE u16 narrow_f16(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

// Sixteen bytes, aligned.
struct alignas(16) Line {
    u32 word[4];
};

#ifdef __CUDACC__
// Each weight is read and written once: past what others want of the caches.
DEVICE Line load_line(const Line *from) {
    const uint4 line = __ldcs(reinterpret_cast<const uint4 *>(from));
    return Line{{line.x, line.y, line.z, line.w}};
}
DEVICE void store_line(Line line, Line *to) {
    __stcs(reinterpret_cast<uint4 *>(to), make_uint4(line.word[0], line.word[1], line.word[2], line.word[3]));
}
#endif

constexpr u32 THREADS = 256;
constexpr u32 COLUMNS = 8;   // of a thread
constexpr u32 ROWS = 4;      // of a thread, at a time
constexpr u32 LANES = 32;    // threads side by side
constexpr u32 CHUNK = 16;    // ranks in shared memory
constexpr u32 TILE_COLUMNS = LANES * COLUMNS;
constexpr u32 PASS_ROWS = THREADS / LANES * ROWS;
constexpr u32 LEFT_STRIDE = PASS_ROWS + 4; // so that ranks side by side lie in banks of their own
constexpr u32 PASSES = 4;
constexpr u32 TILE_ROWS = PASSES * PASS_ROWS;

// A rectangle of a row-major tensor, and what is added to it. Layout as in `table.rs`.
struct Region {
    const void *base;
    void *out;
    u64 stride; // elements from row to row, in both
    u32 rows, columns;
    u32 first_product, products;
    u32 first_block, column_tiles;
};

// One factor pair: left[row * left_row + k * left_rank], right[k * right_rank + column * right_column].
struct Product {
    const float *left, *right;
    u64 left_row, left_rank, right_rank, right_column;
    u32 rank;
    float factor;
};

// Sums over a block's elements: |dW|^2, <W' - W, dW>, |W' - W - dW|^2, and how many have W' = W.
struct Sums {
    double norm, dot, error;
    u64 unchanged;
};

// A thread's |dW|^2 of one row in f32 below which terms that f32 cannot hold may count.
constexpr float LEAST_NORM = 1e-24f;

struct F32 {
    typedef u32 Bits;
    static DEVICE float widen(Bits bits) { return from_bits(bits); }
    static DEVICE Bits narrow(float value) { return bits_of(value); }
};

struct F16 {
    typedef u16 Bits;
    static DEVICE float widen(Bits bits) { return widen_f16(bits); }
    static DEVICE Bits narrow(float value) { return narrow_f16(value); }
};

struct Bf16 {
    typedef u16 Bits;
    static DEVICE float widen(Bits bits) { return from_bits(static_cast<u32>(bits) << 16); }
    static DEVICE Bits narrow(float value) {
        const u32 bits = bits_of(value);
        return static_cast<Bits>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
};

// The columns of one row that a thread has, as they are stored.
template <typename T> struct Cells {
    static constexpr u32 PER_LINE = sizeof(Line) / sizeof(typename T::Bits);
    static constexpr u32 LINES = COLUMNS / PER_LINE;
    Line line[LINES];

    DEVICE typename T::Bits get(u32 column) const {
        const u32 word = line[column / PER_LINE].word[column % PER_LINE * sizeof(typename T::Bits) / 4];
        return static_cast<typename T::Bits>(sizeof(typename T::Bits) == 4 ? word : word >> column % 2 * 16);
    }
    DEVICE void set(u32 column, typename T::Bits bits) {
        u32 &word = line[column / PER_LINE].word[column % PER_LINE * sizeof(typename T::Bits) / 4];
        if (sizeof(typename T::Bits) == 4) {
            word = bits;
        } else {
            const u32 shift = column % 2 * 16;
            word = (word & ~(0xffffu << shift)) | static_cast<u32>(bits) << shift;
        }
    }
    DEVICE void load(const typename T::Bits *from, u32 count, bool lines) {
        if (lines && count == COLUMNS) {
            UNROLL for (u32 i = 0; i < LINES; i++) line[i] = load_line(reinterpret_cast<const Line *>(from) + i);
        } else {
            UNROLL for (u32 i = 0; i < LINES; i++) line[i] = Line{{0, 0, 0, 0}};
            UNROLL for (u32 column = 0; column < COLUMNS; column++)
                if (column < count) set(column, from[column]);
        }
    }
    DEVICE void store(typename T::Bits *to, u32 count, bool lines) const {
        if (lines && count == COLUMNS) {
            UNROLL for (u32 i = 0; i < LINES; i++) store_line(line[i], reinterpret_cast<Line *>(to) + i);
        } else {
            UNROLL for (u32 column = 0; column < COLUMNS; column++)
                if (column < count) to[column] = get(column);
        }
    }
};

DEVICE u32 least(u32 a, u32 b) { return a < b ? a : b; }

// Where a column of the tile lies in a row of shared memory: a thread's columns in two runs of four, so that threads side
// by side read side by side.
DEVICE u32 place(u32 column) { return column / 4 % 2 * (TILE_COLUMNS / 2) + column / 8 * 4 + column % 4; }

template <typename T>
DEVICE void load_row(Cells<T> &cells, const Region &region, u32 row, u32 column, u32 count, bool lines) {
    if (row >= region.rows) return;
    cells.load(static_cast<const typename T::Bits *>(region.base) + row * region.stride + column, count, lines);
}

template <typename T>
DEVICE void fuse(const Region *regions, const Product *products, const u32 *region_of_block, Sums *sums) {
    SHARED float right[CHUNK][TILE_COLUMNS];
    SHARED float left[CHUNK][LEFT_STRIDE];
    SHARED Sums totals[THREADS];
    typedef typename T::Bits Bits;
    // Weights are on their way while the products are computed; in 32 bits there are no registers for that.
    constexpr bool EARLY = sizeof(Bits) == 2;

    const Region &region = regions[region_of_block[BLOCK]];
    const u32 thread = THREAD, lane = thread % LANES, group = thread / LANES;
    const u32 tile = BLOCK - region.first_block;
    const u32 first_row = tile / region.column_tiles * TILE_ROWS;
    const u32 first_column = tile % region.column_tiles * TILE_COLUMNS;
    const u32 column = first_column + lane * COLUMNS;
    const u32 count = column < region.columns ? least(COLUMNS, region.columns - column) : 0;
    const u64 row_bytes = region.stride * sizeof(Bits);
    const bool lines = (reinterpret_cast<u64>(region.base) | reinterpret_cast<u64>(region.out) | row_bytes) % sizeof(Line) == 0;
    // R is then loaded once for all passes.
    const bool once = region.products == 1 && products[region.first_product].rank <= CHUNK;

    Sums mine = {0, 0, 0, 0};
    for (u32 pass = 0; pass < PASSES; pass++) {
        const u32 pass_row = first_row + pass * PASS_ROWS;
        if (pass_row >= region.rows) break;
        const u32 row = pass_row + group * ROWS;
        Cells<T> cells[ROWS];
        if (EARLY) UNROLL for (u32 i = 0; i < ROWS; i++) load_row(cells[i], region, row + i, column, count, lines);
        float delta[ROWS][COLUMNS];
        UNROLL for (u32 i = 0; i < ROWS; i++) UNROLL for (u32 j = 0; j < COLUMNS; j++) delta[i][j] = 0;
        for (u32 p = 0; p < region.products; p++) {
            const Product &pair = products[region.first_product + p];
            float product[ROWS][COLUMNS];
            UNROLL for (u32 i = 0; i < ROWS; i++) UNROLL for (u32 j = 0; j < COLUMNS; j++) product[i][j] = 0;
            for (u32 first = 0; first < pair.rank; first += CHUNK) {
                const u32 ranks = least(CHUNK, pair.rank - first);
                BARRIER();
                if (!once || pass == 0) {
                    const u32 from = first_column + thread;
                    for (u32 k = 0; k < ranks; k++) {
                        const float *value = pair.right + (first + k) * pair.right_rank + from * pair.right_column;
                        right[k][place(thread)] = from < region.columns ? *value : 0;
                    }
                }
                for (u32 at = thread; at < CHUNK * PASS_ROWS; at += THREADS) {
                    const u32 k = at % CHUNK, from = pass_row + at / CHUNK;
                    const float *value = pair.left + from * pair.left_row + (first + k) * pair.left_rank;
                    if (k < ranks) left[k][at / CHUNK] = from < region.rows ? *value : 0;
                }
                BARRIER();
                for (u32 k = 0; k < ranks; k++) {
                    float l[ROWS], r[COLUMNS];
                    UNROLL for (u32 i = 0; i < ROWS; i++) l[i] = left[k][group * ROWS + i];
                    UNROLL for (u32 j = 0; j < COLUMNS; j++) r[j] = right[k][j / 4 * (TILE_COLUMNS / 2) + lane * 4 + j % 4];
                    UNROLL for (u32 i = 0; i < ROWS; i++) UNROLL for (u32 j = 0; j < COLUMNS; j++)
                        product[i][j] = fused_multiply_add(r[j], l[i], product[i][j]);
                }
            }
            UNROLL for (u32 i = 0; i < ROWS; i++) UNROLL for (u32 j = 0; j < COLUMNS; j++)
                delta[i][j] = fused_multiply_add(product[i][j], pair.factor, delta[i][j]);
        }
        UNROLL for (u32 i = 0; i < ROWS; i++) {
            if (row + i >= region.rows) continue;
            if (!EARLY) load_row(cells[i], region, row + i, column, count, lines);
            const Cells<T> before = cells[i];
            float norm = 0, dot = 0, error = 0;
            UNROLL for (u32 j = 0; j < COLUMNS; j++) {
                const float base = T::widen(before.get(j)), change = delta[i][j];
                if (change != 0) cells[i].set(j, T::narrow(plus(base, change)));
                const float fused = T::widen(cells[i].get(j)), realised = minus(fused, base), lost = minus(realised, change);
                norm = fused_multiply_add(change, change, norm);
                dot = fused_multiply_add(realised, change, dot);
                error = fused_multiply_add(lost, lost, error);
                mine.unchanged += j < count && fused == base;
            }
            // Not so where a sum is infinite or undefined either.
            if (norm >= LEAST_NORM && minus(norm, norm) == 0 && minus(dot, dot) == 0 && minus(error, error) == 0) {
                mine.norm += norm;
                mine.dot += dot;
                mine.error += error;
            } else {
                UNROLL for (u32 j = 0; j < COLUMNS; j++) {
                    const double change = delta[i][j];
                    const double realised = static_cast<double>(T::widen(cells[i].get(j))) - T::widen(before.get(j));
                    mine.norm += change * change;
                    mine.dot += realised * change;
                    mine.error += (realised - change) * (realised - change);
                }
            }
            Bits *to = static_cast<Bits *>(region.out) + (row + i) * region.stride + column;
            cells[i].store(to, count, lines);
        }
    }

    // The threads' sums in a fixed order.
    totals[thread] = mine;
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        BARRIER();
        if (thread < half) {
            const Sums other = totals[thread + half];
            totals[thread].norm += other.norm;
            totals[thread].dot += other.dot;
            totals[thread].error += other.error;
            totals[thread].unchanged += other.unchanged;
        }
    }
    if (thread == 0) sums[BLOCK] = totals[0];
}

#define FUSE_KERNEL(name, type)                                                                                            \
    KERNEL void name(const Region *regions, const Product *products, const u32 *region_of_block, Sums *sums) {             \
        fuse<type>(regions, products, region_of_block, sums);                                                              \
    }
FUSE_KERNEL(fuse_f32, F32)
FUSE_KERNEL(fuse_f16, F16)
FUSE_KERNEL(fuse_bf16, Bf16)
