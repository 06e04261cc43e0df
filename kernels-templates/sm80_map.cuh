// map: `point` at every point of a space of rows(args) x columns(args). A thread takes LANES neighbouring columns.
//
// Slots: template <int V> void point_at(args, u64 row, int column).

template <class Index>
DEVICE void map_vector(const Arguments& args, Index vector, Index vectors_per_row) {
    const Index row = vector / vectors_per_row;
    const int column = int(vector % vectors_per_row) * LANES;
    const int left = columns(args) - column;
    if (left >= LANES) {
        point_at<LANES>(args, row, column);
    } else {
        for (int l = 0; l < left; ++l) point_at<1>(args, row, column + l);
    }
}

KERNEL void __launch_bounds__(THREADS) map(const __grid_constant__ Arguments args) {
    const u64 vectors_per_row = u64(ceil_div(columns(args), LANES));
    const u64 vectors = rows(args) * vectors_per_row;
    const u64 vector = u64(blockIdx.x) * THREADS + threadIdx.x;
    if (vector >= vectors) return;
    // Division of 64-bit numbers takes many instructions.
    if (vectors <= 0xffffffffu) {
        map_vector<u32>(args, u32(vector), u32(vectors_per_row));
    } else {
        map_vector<u64>(args, vector, vectors_per_row);
    }
}
