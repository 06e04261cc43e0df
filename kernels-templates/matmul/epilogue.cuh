// What becomes of the accumulators of a tile: reductions over groups of columns, then the epilogue, on LANES neighbouring columns at a time.
//
// A part P is printed as a struct:
//
//   SEGMENTS, INTERLEAVED, SYMMETRIC    as the plan's `Part` has them
//   TILE           columns of one segment in a tile
//   GROUP          columns of a group, or 0; TILE is a multiple of it
//   SUMS           results of its phases, at least 1
//   EVEN           true if LANES divides the columns, so that no row ends between lanes
//   LANES          neighbouring columns that a thread computes at a time; divides TILE or, if there are groups, GROUP
//   static int columns(args, part)
//   static void epilogue<V>(args, part, batch, row, column, lane, sum)       float (&lane)[SEGMENTS][V], float (&sum)[SUMS]
//   static void reduce(phases)       phases.reduce<Phase>() for every phase; Phase has COUNT reductions numbered from FIRST, of which those
//                                    with a bit in LARGEST are maxima, and `values<V>(args, part, batch, row, column, lane, sum, value)`
//
// Slot: int rows(args). Constants: THREADS, TILE_ROWS, TILE_COLUMNS, SLICE_ROWS.
#pragma once

DEVICE constexpr int lowest_bit(int x) { return x & -x; }

// The accumulators of some rows: those of segment s at column c are `segment` * s + c behind the row's, or, interleaved, SEGMENTS * c + s.
// Rows and segments are multiples of ALIGNED numbers.
template <class P, int ALIGNED>
struct Accumulators {
    const float* first;
    i64 row;
    int segment;

    template <int V>
    METHOD void read(int r, int column, float (&lane)[P::SEGMENTS][V]) const {
        const float* const from = first + row * r;
        if constexpr (P::INTERLEAVED) {
            constexpr int S = P::SEGMENTS;
            float flat[S * V];
            load_lanes<smaller(ALIGNED, lowest_bit(S * V))>(from + column * S, flat);
            UNROLL for (int s = 0; s < S; ++s) {
                UNROLL for (int l = 0; l < V; ++l) lane[s][l] = flat[l * S + s];
            }
        } else {
            UNROLL for (int s = 0; s < P::SEGMENTS; ++s) load_lanes<smaller(ALIGNED, V)>(from + segment * s + column, lane[s]);
        }
    }
};

// Threads for a group of so many columns: as many as have something to do, a power of two, at most a warp.
DEVICE constexpr int group_threads(int columns) {
    int threads = 1;
    while (threads < columns && threads < 32) threads *= 2;
    return threads;
}

// One row and group, whose columns are taken by neighbouring threads of a warp.
template <class P, class A>
struct Phases {
    static constexpr int ACROSS = group_threads((P::GROUP + P::LANES - 1) / P::LANES);

    const Arguments& args;
    const A& accumulators;
    int part, batch, r, row, column, at;
    float sum[P::SUMS];

    template <class Phase>
    METHOD void reduce() {
        constexpr int V = P::LANES;
        float total[Phase::COUNT];
        UNROLL for (int j = 0; j < Phase::COUNT; ++j) total[j] = Phase::LARGEST >> j & 1 ? -INFINITE : 0.0f;
        for (int c = int(threadIdx.x % ACROSS) * V; c < P::GROUP; c += ACROSS * V) {
            float lane[P::SEGMENTS][V], value[Phase::COUNT][V];
            accumulators.read(r, at + c, lane);
            Phase::template values<V>(args, part, batch, row, column + c, lane, sum, value);
            UNROLL for (int j = 0; j < Phase::COUNT; ++j) {
                UNROLL for (int l = 0; l < V; ++l) total[j] = combine<Phase>(j, total[j], value[j][l]);
            }
        }
        UNROLL for (int j = 0; j < Phase::COUNT; ++j) {
            UNROLL for (int apart = ACROSS / 2; apart; apart /= 2) {
                total[j] = combine<Phase>(j, total[j], __shfl_xor_sync(0xffffffff, total[j], apart));
            }
            sum[Phase::FIRST + j] = total[j];
        }
    }

    template <class Phase>
    METHOD float combine(int j, float x, float y) const {
        return Phase::LARGEST >> j & 1 ? f_max(x, y) : x + y;
    }

    METHOD void epilogue() {
        constexpr int V = P::LANES;
        for (int c = int(threadIdx.x % ACROSS) * V; c < P::GROUP; c += ACROSS * V) {
            float lane[P::SEGMENTS][V];
            accumulators.read(r, at + c, lane);
            P::template epilogue<V>(args, part, batch, row, column + c, lane, sum);
        }
    }
};

// V columns of a row.
template <class P, int V, class A>
DEVICE void epilogue_lanes(const Arguments& args, int part, int batch, const A& accumulators, int r, int row, int column, int at) {
    float lane[P::SEGMENTS][V], none[P::SUMS];
    accumulators.read(r, at, lane);
    P::template epilogue<V>(args, part, batch, row, column, lane, none);
}

// `count` rows from `row0` on and `width` columns from `column0` on, whose accumulators begin at 0; `across` is not less than `width`.
template <class P, class A>
DEVICE void epilogue_rows(const Arguments& args, int part, int batch, const A& accumulators, int row0, int count, int column0, int width,
                          int across) {
    constexpr int V = P::LANES;
    if constexpr (P::GROUP > 0) {
        // A warp has as many rows and groups as it has room for. All of its threads take part in reductions, those without a row of their own too.
        constexpr int ITEMS = 32 / Phases<P, A>::ACROSS;
        const int groups = across / P::GROUP, items = count * groups;
        for (int first = int(threadIdx.x / 32) * ITEMS; first < items; first += THREADS / 32 * ITEMS) {
            const int item = first + int(threadIdx.x % 32) / Phases<P, A>::ACROSS;
            const int at = item % groups * P::GROUP;
            const bool inside = item < items && at < width;
            const int r = inside ? item / groups : 0, from = inside ? at : 0;
            Phases<P, A> phases{args, accumulators, part, batch, r, row0 + r, column0 + from, from, {}};
            P::reduce(phases);
            if (inside) phases.epilogue();
        }
    } else {
        const int per_row = ceil_div(across, V);
        for (int item = int(threadIdx.x); item < count * per_row; item += THREADS) {
            const int r = item / per_row, at = item % per_row * V;
            const int left = width - at;
            if (left >= V) {
                epilogue_lanes<P, V>(args, part, batch, accumulators, r, row0 + r, column0 + at, at);
            } else if constexpr (!P::EVEN) {
                for (int l = 0; l < left; ++l) {
                    epilogue_lanes<P, 1>(args, part, batch, accumulators, r, row0 + r, column0 + at + l, at + l);
                }
            }
        }
    }
}

// Rows and columns of the tile by columns and rows of the tensor: the other half of a symmetric product. Only what lies below the diagonal.
template <class P, class A>
DEVICE void epilogue_mirrored(const Arguments& args, int part, int batch, const A& accumulators, int row0, int count, int column0, int width) {
    for (int item = int(threadIdx.x); item < count * P::TILE; item += THREADS) {
        const int r = item % count, c = item / count;
        if (c >= width || column0 + c >= row0 + r) continue;
        float lane[1][1], none[P::SUMS];
        accumulators.read(r, c, lane);
        P::template epilogue<1>(args, part, batch, column0 + c, row0 + r, lane, none);
    }
}

template <class P, class A>
DEVICE void epilogue_half(const Arguments& args, int part, int batch, const A& accumulators, int row0, int count, int column0, int width) {
    for (int item = int(threadIdx.x); item < count * P::TILE; item += THREADS) {
        const int r = item / P::TILE, c = item % P::TILE;
        if (c < width && column0 + c <= row0 + r) epilogue_lanes<P, 1>(args, part, batch, accumulators, r, row0 + r, column0 + c, c);
    }
}

// The accumulators of a tile's slice of SLICE_ROWS rows in shared memory: a row is 8 banks off the one before, so that the fragments of a
// warp are stored without conflicts.
constexpr int STAGED_ROW = TILE_COLUMNS + 8;

template <class P>
DEVICE void epilogue_slice(const Arguments& args, int part, int batch, const float* staged, int row0, int column0) {
    constexpr int STEP = P::GROUP ? P::GROUP : P::TILE;
    constexpr int ALIGNED = lowest_bit(P::INTERLEAVED ? STEP * P::SEGMENTS : STEP);
    const Accumulators<P, ALIGNED> accumulators{staged, STAGED_ROW, P::TILE};
    const int below = rows(args) - row0, right = P::columns(args, part) - column0;
    const int count = smaller(below, SLICE_ROWS), width = smaller(right, P::TILE);
    if constexpr (P::SYMMETRIC) {
        epilogue_half<P>(args, part, batch, accumulators, row0, count, column0, width);
        epilogue_mirrored<P>(args, part, batch, accumulators, row0, count, column0, width);
    } else {
        epilogue_rows<P>(args, part, batch, accumulators, row0, count, column0, width, P::TILE);
    }
}
