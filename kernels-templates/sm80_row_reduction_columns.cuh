// row_reduction of rows that lie side by side, the reduced axis strided: sums over tokens or images where there are enough rows, or few
// columns.
//
// A thread takes LANES neighbouring rows along one axis and every TY-th column; TX threads stand side by side. For every phase the TY
// partial results of a row are combined in pairs through shared memory, so that all threads have them. Long sums of one thread are added in double.
//
// Slots: as sm80_row_reduction.cuh, without cached_at; lanes are rows, row_of takes the first of them.
// Constants: TX, TY, LANES, SHORT (columns are at most TY * STEPS), PHASES, REDUCTIONS, HAS_ELEMENT, ROW_FIRST.

#include "block/reduce.cuh"

constexpr int THREADS = TX * TY;
// Columns whose values a thread adds in float.
constexpr int STEPS = 32;

struct Results {
    float at[REDUCTIONS > 0 ? REDUCTIONS : 1][LANES];
};

// Over the threads of a column of the block; all of them have the result. `shared` holds THREADS * LANES values.
DEVICE void combine_column(bool max, float (&value)[LANES], float* shared) {
    if constexpr (TY > 1) {
        const int x = threadIdx.x % TX, y = threadIdx.x / TX;
        UNROLL for (int l = 0; l < LANES; ++l) shared[(y * LANES + l) * TX + x] = value[l];
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
        UNROLL for (int l = 0; l < LANES; ++l) value[l] = shared[l * TX + x];
        // The next reduction uses the same memory.
        __syncthreads();
    }
}

template <int P>
DEVICE void add(const Arguments& args, const Row& row, u32 column, const Results& results,
                float (&total)[Phase<P>::COUNT][LANES]) {
    constexpr int COUNT = Phase<P>::COUNT;
    const float none[1] = {};
    float value[COUNT][LANES];
    Phase<P>::template at<LANES>(args, row, int(column), results.at, none, value);
    UNROLL for (int r = 0; r < COUNT; ++r) {
        UNROLL for (int l = 0; l < LANES; ++l) {
            total[r][l] = combine(is_max(Phase<P>::FIRST + r), total[r][l], value[r][l]);
        }
    }
}

template <int P>
DEVICE void phases(const Arguments& args, const Row& row, u32 columns, Results& results, float* shared) {
    if constexpr (P < PHASES) {
        constexpr int COUNT = Phase<P>::COUNT, FIRST = Phase<P>::FIRST;
        const u32 y = threadIdx.x / TX;
        float total[COUNT][LANES];
        double running[COUNT][LANES];
        UNROLL for (int r = 0; r < COUNT; ++r) {
            UNROLL for (int l = 0; l < LANES; ++l) running[r][l] = neutral(is_max(FIRST + r));
        }
        for (u32 start = y;; start += STEPS * TY) {
            UNROLL for (int r = 0; r < COUNT; ++r) {
                UNROLL for (int l = 0; l < LANES; ++l) total[r][l] = neutral(is_max(FIRST + r));
            }
            _Pragma("unroll 4") for (int i = 0; i < STEPS; ++i) {
                const u32 column = start + i * TY;
                if (column < columns) add<P>(args, row, column, results, total);
            }
            if constexpr (SHORT != 0) break;
            UNROLL for (int r = 0; r < COUNT; ++r) {
                UNROLL for (int l = 0; l < LANES; ++l) {
                    running[r][l] = combine(is_max(FIRST + r), running[r][l], double(total[r][l]));
                    total[r][l] = float(running[r][l]);
                }
            }
            if (start + STEPS * TY >= columns) break;
        }
        UNROLL for (int r = 0; r < COUNT; ++r) {
            combine_column(is_max(FIRST + r), total[r], shared);
            UNROLL for (int l = 0; l < LANES; ++l) results.at[FIRST + r][l] = total[r][l];
        }
        phases<P + 1>(args, row, columns, results, shared);
    }
}

KERNEL void __launch_bounds__(THREADS) row_reduction(const __grid_constant__ Arguments args) {
    SHARED_MEMORY(memory_);
    float* const shared = reinterpret_cast<float*>(memory_);
    const u32 y = threadIdx.x / TX;
    const u64 number = (u64(blockIdx.x) * TX + threadIdx.x % TX) * LANES;
    const bool active = number < row_count(args);
    const Row row = row_of(args, active ? number : 0);
    // A thread without rows goes along.
    const u32 columns = active ? u32(column_count(args)) : 0;
    Results results;
    phases<0>(args, row, columns, results, shared);
    if (active && y == 0) row_at<LANES>(args, row, results.at);
    if constexpr (ROW_FIRST != 0) __syncthreads();
    if constexpr (HAS_ELEMENT != 0) {
        const float none[1] = {};
        for (u32 column = y; column < columns; column += TY) {
            element_at<LANES>(args, row, int(column), results.at, none);
        }
    }
}
