// row_reduction of rows whose elements lie side by side: TEAM threads for each row, several rows in a block where TEAM is a part of a warp.
//
// A thread takes LANES neighbouring columns at a time, the team LANES * TEAM. Where rows are short, of constant size, VECTORS > 0 is how
// many such steps cover a row: then the CACHED operands of the phases and the element function are loaded before anything else, all loads
// in flight at a time, and stay in registers. Otherwise every phase reads memory. Sums are taken per lane, then in pairs over lanes and
// threads: shuffles within a warp, one exchange through shared memory between warps. Long sums of one thread are added in double.
//
// Slots: struct Row, Row row_of(args, u64 row), u64 row_count(args), int column_count(args), bool is_max(int reduction);
// Phase<P>::at<V>, FIRST and COUNT; row_at, element_at<V>, cached_at<V>: see crates/nucleus-cuda/src/source/row_reduction.rs.
// Constants: THREADS, TEAM, LANES, VECTORS, CACHED, PHASES, REDUCTIONS, HAS_ELEMENT, ROW_FIRST (the row function comes before all element
// functions of its row).

#include "block/reduce.cuh"

constexpr int TEAMS = THREADS / TEAM;
constexpr int TEAM_WARPS = TEAM / 32;
// Steps whose values a thread adds in float.
constexpr int STEPS = 16;

struct Cache {
    float at[VECTORS > 0 ? VECTORS : 1][CACHED > 0 ? CACHED : 1][LANES];
};
struct Sums {
    float at[REDUCTIONS > 0 ? REDUCTIONS : 1];
};

// Over the threads of the team; all of them have the result. A team of several warps is the block.
template <int R>
DEVICE float combine_row(float value, float* shared) {
    if constexpr (TEAM <= 32) {
        return combine_team<TEAM>(is_max(R), value);
    } else {
        return combine_block<TEAM_WARPS>(is_max(R), value, shared + R * TEAM_WARPS);
    }
}

template <int FIRST, int COUNT, int R = 0>
DEVICE void combine_all(const float (&part)[COUNT], Sums& sums, float* shared) {
    if constexpr (R < COUNT) {
        sums.at[FIRST + R] = combine_row<FIRST + R>(part[R], shared);
        combine_all<FIRST, COUNT, R + 1>(part, sums, shared);
    }
}

template <int P>
DEVICE void add(const Arguments& args, const Row& row, u32 column, const float (&lane)[CACHED > 0 ? CACHED : 1][LANES],
                const Sums& sums, float (&total)[Phase<P>::COUNT][LANES]) {
    constexpr int COUNT = Phase<P>::COUNT;
    float value[COUNT][LANES];
    Phase<P>::template at<LANES>(args, row, int(column), lane, sums.at, value);
    UNROLL for (int r = 0; r < COUNT; ++r) {
        UNROLL for (int l = 0; l < LANES; ++l) {
            total[r][l] = combine(is_max(Phase<P>::FIRST + r), total[r][l], value[r][l]);
        }
    }
}

template <int P>
DEVICE void phases(const Arguments& args, const Row& row, u32 columns, int thread, const Cache& cache, Sums& sums,
                   float* shared) {
    if constexpr (P < PHASES) {
        constexpr int COUNT = Phase<P>::COUNT, FIRST = Phase<P>::FIRST;
        float part[COUNT];
        float total[COUNT][LANES];
        if constexpr (VECTORS > 0) {
            UNROLL for (int r = 0; r < COUNT; ++r) {
                UNROLL for (int l = 0; l < LANES; ++l) total[r][l] = neutral(is_max(FIRST + r));
            }
            UNROLL for (int i = 0; i < VECTORS; ++i) {
                const u32 column = u32(i * TEAM + thread) * LANES;
                if (column < columns) add<P>(args, row, column, cache.at[i], sums, total);
            }
            UNROLL for (int r = 0; r < COUNT; ++r) part[r] = combine_lanes(is_max(FIRST + r), total[r]);
        } else {
            double running[COUNT];
            UNROLL for (int r = 0; r < COUNT; ++r) running[r] = neutral(is_max(FIRST + r));
            for (u32 start = u32(thread) * LANES; start < columns; start += STEPS * TEAM * LANES) {
                UNROLL for (int r = 0; r < COUNT; ++r) {
                    UNROLL for (int l = 0; l < LANES; ++l) total[r][l] = neutral(is_max(FIRST + r));
                }
                _Pragma("unroll 4") for (int i = 0; i < STEPS; ++i) {
                    const u32 column = start + u32(i * TEAM) * LANES;
                    if (column < columns) add<P>(args, row, column, cache.at[0], sums, total);
                }
                UNROLL for (int r = 0; r < COUNT; ++r) {
                    const bool max = is_max(FIRST + r);
                    running[r] = combine(max, running[r], double(combine_lanes(max, total[r])));
                }
            }
            UNROLL for (int r = 0; r < COUNT; ++r) part[r] = float(running[r]);
        }
        combine_all<FIRST>(part, sums, shared);
        phases<P + 1>(args, row, columns, thread, cache, sums, shared);
    }
}

KERNEL void __launch_bounds__(THREADS) row_reduction(const __grid_constant__ Arguments args) {
    SHARED_MEMORY(memory_);
    float* const shared = reinterpret_cast<float*>(memory_);
    const int thread = threadIdx.x % TEAM;
    const u64 number = u64(blockIdx.x) * TEAMS + threadIdx.x / TEAM;
    const bool active = number < row_count(args);
    const Row row = row_of(args, active ? number : 0);
    // A team without a row goes along.
    const u32 columns = active ? u32(column_count(args)) : 0;
    Cache cache;
    if constexpr (VECTORS > 0 && CACHED > 0) {
        UNROLL for (int i = 0; i < VECTORS; ++i) {
            const u32 column = u32(i * TEAM + thread) * LANES;
            if (column < columns) cached_at<LANES>(args, row, int(column), cache.at[i]);
        }
    }
    Sums sums;
    phases<0>(args, row, columns, thread, cache, sums, shared);
    if (active && thread == 0) row_at(args, row, sums.at);
    if constexpr (ROW_FIRST != 0) __syncthreads();
    if constexpr (HAS_ELEMENT != 0) {
        if constexpr (VECTORS > 0) {
            UNROLL for (int i = 0; i < VECTORS; ++i) {
                const u32 column = u32(i * TEAM + thread) * LANES;
                if (column < columns) element_at<LANES>(args, row, int(column), cache.at[i], sums.at);
            }
        } else {
            for (u32 column = u32(thread) * LANES; column < columns; column += TEAM * LANES) {
                element_at<LANES>(args, row, int(column), cache.at[0], sums.at);
            }
        }
    }
}
