// Tiles of queries, keys and values in shared memory and their products by matrix instructions.
//
// A tile has rows of HEAD elements of 16 bits: HEAD_SIZE rounded up to 16, columns behind HEAD_SIZE being 0. Eight rows of the same 16
// bytes, which is what a matrix load or the copies of a warp touch at a time, must lie in different banks: rows of a multiple of 128 bytes
// have their chunks of 16 bytes exchanged (number XOR row mod 8), others are followed by one chunk, which makes their length odd.
//
// Constants: HEAD_SIZE, HEAD. Element is bf16 or f16. A printed operand is
//
//   struct { COPIED; const Element* row(args, batch, row, head); Lanes<float, V> at<V>(args, batch, row, head, column) }
//
// where `row` is there if COPIED: its rows are plain, aligned memory.
#pragma once

#include "attention_keys.cuh"
#include "ptx/async_copy.cuh"
#include "ptx/matrix.cuh"

constexpr int CHUNKS = HEAD / 8;
constexpr bool EXCHANGED = CHUNKS % 8 == 0;
constexpr int ROW_BYTES = (EXCHANGED ? CHUNKS : CHUNKS + 1) * 16;
constexpr int HEAD_TILES = HEAD / 8;

DEVICE constexpr int chunk_offset(int row, int chunk) {
    return row * ROW_BYTES + ((EXCHANGED ? chunk ^ (row & 7) : chunk) << 4);
}

// Begins to copy rows `first` … of a head into a tile; what is not taken, and columns behind HEAD_SIZE, become 0. An operand that must be
// computed is stored at once. The threads of the block share the work.
template <class Operand, int ROWS, int BLOCK, class Taken>
DEVICE void copy_rows(const Arguments& args, unsigned char* tile, int batch, int first, int head, const Taken& taken) {
    constexpr int PER_ROUND = BLOCK / CHUNKS;
    constexpr bool WHOLE = BLOCK % CHUNKS == 0 && ROWS % (PER_ROUND > 0 ? PER_ROUND : 1) == 0;
    constexpr int ROUNDS = (ROWS * CHUNKS + BLOCK - 1) / BLOCK;
    const int thread = int(threadIdx.x);
    const SharedAddress address = shared_address(tile);
    UNROLL for (int round = 0; round < ROUNDS; ++round) {
        // The same numbers twice, but in the first case the compiler sees that a thread's chunk never changes.
        const int row = WHOLE ? thread / CHUNKS + round * PER_ROUND : (thread + round * BLOCK) / CHUNKS;
        const int chunk = WHOLE ? thread % CHUNKS : (thread + round * BLOCK) % CHUNKS;
        if (!WHOLE && row >= ROWS) break;
        const bool valid = chunk * 8 < HEAD_SIZE && taken(first + row);
        if constexpr (Operand::COPIED) {
            const Element* from = Operand::row(args, batch, first + row, head) + chunk * 8;
            copy_async<16>(address + chunk_offset(row, chunk), from, valid ? 16 : 0);
        } else {
            Chunk<16> value{};
            if (valid) {
                const auto lanes = Operand::template at<8>(args, batch, first + row, head, chunk * 8);
                UNROLL for (int i = 0; i < 4; ++i) value.words[i] = pack<Element>(lanes.at[2 * i], lanes.at[2 * i + 1]);
            }
            *reinterpret_cast<Chunk<16>*>(tile + chunk_offset(row, chunk)) = value;
        }
    }
}

// Rows of an operand of queries.
template <class Operand, int ROWS, int BLOCK>
DEVICE void copy_queries(const Arguments& args, unsigned char* tile, QueryTile at, int queries) {
    copy_rows<Operand, ROWS, BLOCK>(args, tile, at.batch, at.first, at.head, [&](int query) { return query < queries; });
}

// Rows of keys or values that lie within the segment, or that are taken: a factor of scores may hold anything behind a mask, since these
// scores are left out; a factor of probabilities may not, since 0 times that may be NaN.
template <int ROWS, int BLOCK, bool VALUES, bool TAKEN>
struct CopyKeys {
    template <class Segment>
    DEVICE void run(const Arguments& args, unsigned char* tile, int batch, int first, int head) {
        const auto valid = [&](int key) { return TAKEN ? Segment::taken(args, batch, key) : key < Segment::length(args); };
        if constexpr (VALUES) {
            copy_rows<typename Segment::Values, ROWS, BLOCK>(args, tile, batch, first, head, valid);
        } else {
            copy_rows<typename Segment::Keys, ROWS, BLOCK>(args, tile, batch, first, head, valid);
        }
    }
};

template <int ROWS, int BLOCK>
DEVICE void copy_keys(const Arguments& args, unsigned char* tile, KeyCursor at, int batch, int head) {
    with_segment<CopyKeys<ROWS, BLOCK, false, false>>(at.segment, args, tile, batch, at.first, head);
}

template <int ROWS, int BLOCK>
DEVICE void copy_taken_keys(const Arguments& args, unsigned char* tile, KeyCursor at, int batch, int head) {
    with_segment<CopyKeys<ROWS, BLOCK, false, true>>(at.segment, args, tile, batch, at.first, head);
}

template <int ROWS, int BLOCK>
DEVICE void copy_values(const Arguments& args, unsigned char* tile, KeyCursor at, int batch, int head) {
    with_segment<CopyKeys<ROWS, BLOCK, true, true>>(at.segment, args, tile, batch, at.first, head);
}

// Keys and values come through a ring of SLOTS tiles: k of a tile, v of it, k of the next, … Begins the copy of what comes next, if
// anything does, into the next slot.
template <bool VALUES, int KEYS, int SLOTS, int BLOCK>
DEVICE void fetch(const Arguments& args, unsigned char* ring, KeyCursor& next, int& slot, int batch, int head) {
    if (next.segment < SEGMENTS) {
        unsigned char* tile = ring + slot * (KEYS * ROW_BYTES);
        if constexpr (VALUES) {
            copy_values<KEYS, BLOCK>(args, tile, next, batch, head);
            advance(args, next, KEYS);
        } else {
            copy_keys<KEYS, BLOCK>(args, tile, next, batch, head);
        }
    }
    slot = slot + 1 == SLOTS ? 0 : slot + 1;
    commit_copies();
}

// Fills all slots of the ring but one.
template <int KEYS, int SLOTS, int BLOCK>
DEVICE void fill_ring(const Arguments& args, unsigned char* ring, KeyCursor& next, int& slot, int batch, int head) {
    UNROLL for (int step = 0; step < SLOTS - 1; ++step) {
        if (step % 2 == 0) {
            fetch<false, KEYS, SLOTS, BLOCK>(args, ring, next, slot, batch, head);
        } else {
            fetch<true, KEYS, SLOTS, BLOCK>(args, ring, next, slot, batch, head);
        }
    }
}

// A lane's place in a matrix load of 16 rows x 16 columns: as a left factor, and as a right factor whose rows are contracted; and as a
// right factor whose columns are contracted.
DEVICE int rows_first() { return chunk_offset(int(threadIdx.x) & 15, int(threadIdx.x) >> 4 & 1); }
DEVICE int columns_first() { return chunk_offset((int(threadIdx.x) & 7) + (int(threadIdx.x) >> 4 & 1) * 8, int(threadIdx.x) >> 3 & 1); }

// `chunk` further, an even number.
DEVICE int chunks_on(int lane, int chunk) {
    return EXCHANGED ? (lane ^ ((chunk & 7) << 4)) + ((chunk & ~7) << 4) : lane + (chunk << 4);
}

// c[m][n] += a b^T: M x 16 rows of `a` times N x 8 rows of `b`, contracted over the head.
template <int M, int N>
DEVICE void multiply_rows(float (&c)[M][N][4], SharedAddress a, SharedAddress b) {
    const int a_lane = rows_first(), b_lane = columns_first();
    UNROLL for (int k = 0; k < HEAD / 16; ++k) {
        u32 left[M][4];
        UNROLL for (int m = 0; m < M; ++m) load_matrices(left[m], a + (chunks_on(a_lane, 2 * k) + m * 16 * ROW_BYTES));
        UNROLL for (int n = 0; n < N / 2; ++n) {
            u32 right[4];
            load_matrices(right, b + (chunks_on(b_lane, 2 * k) + n * 16 * ROW_BYTES));
            UNROLL for (int m = 0; m < M; ++m) {
                multiply_add<Element>(c[m][2 * n], left[m], right[0], right[1]);
                multiply_add<Element>(c[m][2 * n + 1], left[m], right[2], right[3]);
            }
        }
    }
}

// c[m][n] += p b: fragments of M x 16 rows times K x 16 rows of `b`, contracted over these.
template <int M, int K>
DEVICE void multiply_columns(float (&c)[M][HEAD_TILES][4], const u32 (&p)[M][K][4], SharedAddress b) {
    const int lane = rows_first();
    UNROLL for (int k = 0; k < K; ++k) {
        UNROLL for (int n = 0; n < HEAD_TILES / 2; ++n) {
            u32 right[4];
            load_matrices_transposed(right, b + (chunks_on(lane, 2 * n) + k * 16 * ROW_BYTES));
            UNROLL for (int m = 0; m < M; ++m) {
                multiply_add<Element>(c[m][2 * n], p[m][k], right[0], right[1]);
                multiply_add<Element>(c[m][2 * n + 1], p[m][k], right[2], right[3]);
            }
        }
    }
}

// Accumulators of 16 rows as a left factor, rounded to the element type.
template <int N>
DEVICE void as_left(u32 (&p)[N / 2][4], const float (&c)[N][4]) {
    UNROLL for (int k = 0; k < N / 2; ++k) {
        p[k][0] = pack<Element>(c[2 * k][0], c[2 * k][1]);
        p[k][1] = pack<Element>(c[2 * k][2], c[2 * k][3]);
        p[k][2] = pack<Element>(c[2 * k + 1][0], c[2 * k + 1][1]);
        p[k][3] = pack<Element>(c[2 * k + 1][2], c[2 * k + 1][3]);
    }
}

template <int M, int N>
DEVICE void clear(float (&c)[M][N][4]) {
    UNROLL for (int m = 0; m < M; ++m) {
        UNROLL for (int n = 0; n < N; ++n) {
            UNROLL for (int e = 0; e < 4; ++e) c[m][n][e] = 0.0f;
        }
    }
}

template <int M, int N>
DEVICE void scale_scores(float (&s)[M][N][4]) {
    UNROLL for (int m = 0; m < M; ++m) {
        UNROLL for (int n = 0; n < N; ++n) scale_scores(s[m][n]);
    }
}

// The column of an accumulator within 8 x N columns.
DEVICE int column_of(int n, int e) { return 8 * n + 2 * (int(threadIdx.x) % 4) + (e & 1); }

// Is the key of a column taken?
template <int WORDS>
DEVICE bool is_taken(const u32 (&taken)[WORDS], int n, int e) {
    return taken[n / 4] >> (column_of(n % 4, e)) & 1;
}

// Replaces the accumulators of keys that are not taken.
template <int M, int N>
DEVICE void leave_out(float (&s)[M][N][4], const u32 (&taken)[N / 4], float value) {
    UNROLL for (int m = 0; m < M; ++m) {
        UNROLL for (int n = 0; n < N; ++n) {
            UNROLL for (int e = 0; e < 4; ++e) s[m][n][e] = is_taken(taken, n, e) ? s[m][n][e] : value;
        }
    }
}

// The largest of a row over its four lanes, and its sum.
DEVICE float largest_of_row(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

DEVICE float sum_of_row(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Calls store(row, column, value) with 8 neighbouring columns of the 16 rows of a warp at a time, having brought the accumulators into
// that order. `stage` is memory of the warp, 16 rows of STAGE_ROW; of its columns 8 more than needed keep rows in different banks.
constexpr int STAGE_ROW = HEAD + 8;
constexpr int STAGE_BYTES = 16 * STAGE_ROW * 4;

template <class Store>
DEVICE void store_rows(const float (&c)[HEAD_TILES][4], float* stage, const Store& store) {
    const int lane = int(threadIdx.x) % 32;
    // The warp may still read what it staged before.
    __syncwarp();
    UNROLL for (int n = 0; n < HEAD_TILES; ++n) {
        UNROLL for (int half = 0; half < 2; ++half) {
            const float pair[2] = {c[n][2 * half], c[n][2 * half + 1]};
            store_lanes<2>(stage + (lane / 4 + 8 * half) * STAGE_ROW + column_of(n, 0), pair);
        }
    }
    __syncwarp();
    constexpr int VECTORS = HEAD_SIZE / 8;
    for (int at = lane; at < 16 * VECTORS; at += 32) {
        const int row = at / VECTORS, column = at % VECTORS * 8;
        float value[1][8];
        load_lanes<4>(stage + row * STAGE_ROW + column, value[0]);
        store(row, column, value);
    }
}
