// row_reduction of few long rows whose elements lie side by side: rows are cut every CHUNK columns, a block for each chunk.
//
// For every phase `partial` reduces chunks, `finish` adds the results of a row's chunks in double and, after the last phase, computes the row
// function; then `element` runs over chunks. In scratch memory there are, for every reduction, row and chunk, the chunk's result; a row's
// result takes the place of that of its first chunk.
//
// Slots: as sm80_row_reduction.cuh, without cached_at. The functions themselves are printed: partialP, finishP and element call the ones here.
// Constants: THREADS, LANES, CHUNK (a multiple of THREADS * LANES), CACHED (0), PHASES, REDUCTIONS.

#include "block/reduce.cuh"

constexpr int WARPS = THREADS / 32;

struct Sums {
    float at[REDUCTIONS > 0 ? REDUCTIONS : 1];
};

DEVICE u32 chunk_count(const Arguments& args) { return (u32(column_count(args)) + CHUNK - 1) / CHUNK; }

// Where the result of a reduction over a chunk lies.
DEVICE float* slot(const Arguments& args, int reduction, u64 row, u32 chunk) {
    return memory<float>(args.scratch) + ((u64(reduction) * row_count(args) + row) * chunk_count(args) + chunk);
}

// The results of the first COUNT reductions of a row.
template <int COUNT>
DEVICE Sums results(const Arguments& args, u64 row) {
    Sums sums;
    const bool empty = chunk_count(args) == 0;
    UNROLL for (int r = 0; r < COUNT; ++r) sums.at[r] = empty ? neutral(is_max(r)) : *slot(args, r, row, 0);
    return sums;
}

template <int P>
DEVICE void partial(const Arguments& args) {
    SHARED_MEMORY(memory_);
    float* const shared = reinterpret_cast<float*>(memory_);
    constexpr int COUNT = Phase<P>::COUNT, FIRST = Phase<P>::FIRST;
    const u32 chunks = chunk_count(args);
    const u64 number = blockIdx.x / chunks;
    const u32 chunk = blockIdx.x % chunks;
    const Row row = row_of(args, number);
    const Sums sums = results<FIRST>(args, number);
    const u32 begin = chunk * CHUNK;
    const u32 columns = u32(column_count(args));
    const float none[1][LANES] = {};
    float total[COUNT][LANES];
    UNROLL for (int r = 0; r < COUNT; ++r) {
        UNROLL for (int l = 0; l < LANES; ++l) total[r][l] = neutral(is_max(FIRST + r));
    }
    _Pragma("unroll 4") for (int i = 0; i < CHUNK / (THREADS * LANES); ++i) {
        const u32 column = begin + (i * THREADS + threadIdx.x) * LANES;
        if (column < columns) {
            float value[COUNT][LANES];
            Phase<P>::template at<LANES>(args, row, int(column), none, sums.at, value);
            UNROLL for (int r = 0; r < COUNT; ++r) {
                UNROLL for (int l = 0; l < LANES; ++l) {
                    total[r][l] = combine(is_max(FIRST + r), total[r][l], value[r][l]);
                }
            }
        }
    }
    UNROLL for (int r = 0; r < COUNT; ++r) {
        const bool max = is_max(FIRST + r);
        const float result = combine_block<WARPS>(max, combine_lanes(max, total[r]), shared + r * WARPS);
        if (threadIdx.x == 0) *slot(args, FIRST + r, number, chunk) = result;
    }
}

template <int P>
DEVICE void finish(const Arguments& args) {
    SHARED_MEMORY(memory_);
    double* const shared = reinterpret_cast<double*>(memory_);
    constexpr int COUNT = Phase<P>::COUNT, FIRST = Phase<P>::FIRST;
    const u32 chunks = chunk_count(args);
    const u64 number = blockIdx.x;
    Sums sums = results<FIRST>(args, number);
    UNROLL for (int r = 0; r < COUNT; ++r) {
        const bool max = is_max(FIRST + r);
        double total = neutral(max);
        for (u32 chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
            total = combine(max, total, double(*slot(args, FIRST + r, number, chunk)));
        }
        sums.at[FIRST + r] = float(combine_block<WARPS>(max, total, shared + r * WARPS));
        // All chunks were read before the barrier.
        if (threadIdx.x == 0 && chunks > 0) *slot(args, FIRST + r, number, 0) = sums.at[FIRST + r];
    }
    if constexpr (P + 1 == PHASES) {
        if (threadIdx.x == 0) row_at(args, row_of(args, number), sums.at);
    }
}

DEVICE void elements(const Arguments& args) {
    const u32 chunks = chunk_count(args);
    const u64 number = blockIdx.x / chunks;
    const Row row = row_of(args, number);
    const Sums sums = results<REDUCTIONS>(args, number);
    const u32 begin = blockIdx.x % chunks * CHUNK;
    const u32 columns = u32(column_count(args));
    const float none[1][LANES] = {};
    for (u32 i = threadIdx.x * LANES; i < CHUNK && begin + i < columns; i += THREADS * LANES) {
        element_at<LANES>(args, row, int(begin + i), none, sums.at);
    }
}
