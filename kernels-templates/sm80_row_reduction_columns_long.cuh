// row_reduction of rows that lie side by side, the reduced axis strided, where there are too few rows to keep a device busy: the
// reduced axis is cut every CHUNK columns.
//
// For every phase `partial` reduces chunks, each as sm80_row_reduction_columns.cuh does whole rows; `finish` adds the results of the chunks in
// double and, after the last phase, computes the row function; then `element` runs over chunks. In scratch memory there are, for every
// reduction, chunk and row, the chunk's result; a row's result takes the place of that of its first chunk.
//
// Slots: as sm80_row_reduction_columns.cuh. The functions themselves are printed: partialP, finishP and element call the ones here.
// Constants: TX, TY, LANES, CHUNK (a multiple of TY), PHASES, REDUCTIONS.

#include "block/reduce.cuh"

constexpr int THREADS = TX * TY;
// Threads of `finish` that share a row, and rows of its block.
constexpr int STRANDS = 8;
constexpr int FINISH_ROWS = 32;

struct Results {
    float at[REDUCTIONS > 0 ? REDUCTIONS : 1][LANES];
};

DEVICE u32 chunk_count(const Arguments& args) { return (u32(column_count(args)) + CHUNK - 1) / CHUNK; }

// Where the result of a reduction over a chunk of a row lies.
DEVICE float* slot(const Arguments& args, int reduction, u64 row, u32 chunk) {
    return memory<float>(args.scratch) + ((u64(reduction) * chunk_count(args) + chunk) * row_count(args) + row);
}

// The results of the first COUNT reductions of LANES rows.
template <int COUNT>
DEVICE Results results_of(const Arguments& args, u64 row) {
    Results results;
    UNROLL for (int r = 0; r < COUNT; ++r) load_lanes<LANES>(slot(args, r, row, 0), results.at[r]);
    return results;
}

template <int P>
DEVICE void partial(const Arguments& args) {
    SHARED_MEMORY(memory_);
    float* const shared = reinterpret_cast<float*>(memory_);
    constexpr int COUNT = Phase<P>::COUNT, FIRST = Phase<P>::FIRST;
    const u32 chunks = chunk_count(args);
    const u32 x = threadIdx.x % TX, y = threadIdx.x / TX;
    const u64 number = (u64(blockIdx.x / chunks) * TX + x) * LANES;
    const u32 chunk = blockIdx.x % chunks;
    const bool active = number < row_count(args);
    const Row row = row_of(args, active ? number : 0);
    const Results results = results_of<FIRST>(args, active ? number : 0);
    // A thread without rows goes along.
    const u32 columns = active ? u32(column_count(args)) : 0;
    const float none[1] = {};
    float total[COUNT][LANES];
    UNROLL for (int r = 0; r < COUNT; ++r) {
        UNROLL for (int l = 0; l < LANES; ++l) total[r][l] = neutral(is_max(FIRST + r));
    }
    _Pragma("unroll 4") for (int i = 0; i < CHUNK / TY; ++i) {
        const u32 column = chunk * CHUNK + i * TY + y;
        if (column < columns) {
            float value[COUNT][LANES];
            Phase<P>::template at<LANES>(args, row, int(column), results.at, none, value);
            UNROLL for (int r = 0; r < COUNT; ++r) {
                UNROLL for (int l = 0; l < LANES; ++l) {
                    total[r][l] = combine(is_max(FIRST + r), total[r][l], value[r][l]);
                }
            }
        }
    }
    UNROLL for (int r = 0; r < COUNT; ++r) {
        const bool max = is_max(FIRST + r);
        UNROLL for (int l = 0; l < LANES; ++l) shared[(y * LANES + l) * TX + x] = total[r][l];
        __syncthreads();
        UNROLL for (int half = TY / 2; half > 0; half /= 2) {
            if (y < half) {
                UNROLL for (int l = 0; l < LANES; ++l) {
                    float* const first = shared + (y * LANES + l) * TX + x;
                    *first = combine(max, *first, first[half * LANES * TX]);
                }
            }
            __syncthreads();
        }
        if (active && y == 0) {
            UNROLL for (int l = 0; l < LANES; ++l) total[r][l] = shared[l * TX + x];
            store_global<LANES>(slot(args, FIRST + r, number, chunk), total[r]);
        }
        __syncthreads();
    }
}

template <int P>
DEVICE void finish(const Arguments& args) {
    SHARED_MEMORY(memory_);
    double* const shared = reinterpret_cast<double*>(memory_);
    constexpr int COUNT = Phase<P>::COUNT, FIRST = Phase<P>::FIRST;
    const u32 chunks = chunk_count(args);
    const u32 x = threadIdx.x % FINISH_ROWS, strand = threadIdx.x / FINISH_ROWS;
    const u64 number = u64(blockIdx.x) * FINISH_ROWS + x;
    const bool active = number < row_count(args);
    UNROLL for (int r = 0; r < COUNT; ++r) {
        const bool max = is_max(FIRST + r);
        double total = neutral(max);
        if (active) {
            _Pragma("unroll 4") for (u32 chunk = strand; chunk < chunks; chunk += STRANDS) {
                total = combine(max, total, double(*slot(args, FIRST + r, number, chunk)));
            }
        }
        shared[strand * FINISH_ROWS + x] = total;
        __syncthreads();
        if (active && strand == 0 && chunks > 0) {
            for (int other = 1; other < STRANDS; ++other) {
                total = combine(max, total, shared[other * FINISH_ROWS + x]);
            }
            *slot(args, FIRST + r, number, 0) = float(total);
        }
        __syncthreads();
    }
    if constexpr (P + 1 == PHASES) {
        if (active && strand == 0) {
            float results[REDUCTIONS > 0 ? REDUCTIONS : 1][1];
            UNROLL for (int r = 0; r < REDUCTIONS; ++r) {
                results[r][0] = chunks > 0 ? *slot(args, r, number, 0) : neutral(is_max(r));
            }
            row_at<1>(args, row_of(args, number), results);
        }
    }
}

DEVICE void elements(const Arguments& args) {
    const u32 chunks = chunk_count(args);
    const u64 number = (u64(blockIdx.x / chunks) * TX + threadIdx.x % TX) * LANES;
    if (number >= row_count(args)) return;
    const Row row = row_of(args, number);
    const Results results = results_of<REDUCTIONS>(args, number);
    const u32 begin = blockIdx.x % chunks * CHUNK;
    const u32 columns = u32(column_count(args));
    const float none[1] = {};
    for (u32 i = threadIdx.x / TX; i < CHUNK && begin + i < columns; i += TY) {
        element_at<LANES>(args, row, int(begin + i), results.at, none);
    }
}
