struct Arguments {
    void* o[3];
    int s[1];
    void* scratch;
};

constexpr int THREADS = 256;
constexpr int LANES = 4;

template <int V>
DEVICE void point(const Arguments& args, int i0, int i1) {
    float v0[V];
    load_lanes<64>(memory<const float>(args.o[0]) + (i64(64) * i0 + i1), v0);
    float v1[V];
    load_lanes<64>(memory<const float>(args.o[1]) + (i1), v1);
    float v2[V];
    float v3[V];
    float v4[V];
    float v5[V];
    UNROLL for (int l = 0; l < V; ++l) {
        v2[l] = v0[l] * v1[l];
        v3[l] = f_sigmoid(v2[l]);
        v4[l] = v2[l] * v3[l];
        v5[l] = round_bf16(v4[l]);
    }
    store_lanes<64>(memory<bf16>(args.o[2]) + (i64(64) * i0 + i1), v5);
}

DEVICE u64 rows(const Arguments& args) { return u64(args.s[0]); }

DEVICE int columns(const Arguments& args) { return 64; }

template <int V, class Index>
DEVICE void point_at(const Arguments& args, Index row, int column) {
    const int i0 = int(row);
    point<V>(args, i0, column);
}

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
