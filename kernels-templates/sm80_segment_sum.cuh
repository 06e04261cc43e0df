// segment_sum: for every target the base plus the updates that its list names, one after the other, then the epilogue.
//
// A thread computes LANES neighbouring elements of a row: neighbouring threads read neighbouring elements of one update, and the same part of
// the list. AHEAD updates are loaded before they are added; they are added in the order of the list, each sum rounded, so results have the bits
// of the plan interpreter's.
//
// Slots: struct Point { batch, target, … }, point_of(args, row, column); u64 rows(args), the number of points of all axes but the last,
// columns(args); base_at<V>, update_at<V>(args, point, position), epilogue_at<V>; offsets, positions, target_count, position_count.
// Constants: THREADS, LANES.

#include "ptx/arithmetic.cuh"

constexpr int AHEAD = 4;

template <class Index>
DEVICE void sum_vector(const Arguments& args, Index vector, Index vectors_per_row) {
    const Index row = vector / vectors_per_row;
    const int column = int(vector % vectors_per_row) * LANES;
    const Point point = point_of(args, row, column);
    const int* const bounds = offsets(args) + (i64(point.batch) * (target_count(args) + 1) + point.target);
    const int* const list = positions(args) + i64(point.batch) * position_count(args);
    const int end = bounds[1];
    int next = bounds[0];
    const Lanes<float, LANES> base = base_at<LANES>(args, point);
    float total[1][LANES];
    UNROLL for (int l = 0; l < LANES; ++l) total[0][l] = base.at[l];
    while (next < end) {
        Lanes<float, LANES> update[AHEAD];
        UNROLL for (int i = 0; i < AHEAD; ++i) {
            if (next + i < end) update[i] = update_at<LANES>(args, point, list[next + i]);
        }
        UNROLL for (int i = 0; i < AHEAD; ++i) {
            if (next + i < end) {
                UNROLL for (int l = 0; l < LANES; ++l) total[0][l] = add_rounded(total[0][l], update[i].at[l]);
            }
        }
        next += AHEAD;
    }
    epilogue_at<LANES>(args, point, total);
}

KERNEL void __launch_bounds__(THREADS) segment_sum(const __grid_constant__ Arguments args) {
    const u64 vectors_per_row = u64(columns(args)) / LANES;
    const u64 vectors = rows(args) * vectors_per_row;
    const u64 vector = u64(blockIdx.x) * THREADS + threadIdx.x;
    if (vector >= vectors) return;
    // Division of 64-bit numbers takes many instructions.
    if (vectors <= 0xffffffffu) {
        sum_vector<u32>(args, u32(vector), u32(vectors_per_row));
    } else {
        sum_vector<u64>(args, vector, vectors_per_row);
    }
}
