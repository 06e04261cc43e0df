// Tiles of queries, keys and values in shared memory and their products by matrix instructions.
//
// A tile has rows of HEAD elements of 16 bits: HEAD_SIZE rounded up to 16, columns behind HEAD_SIZE being 0. Eight rows of the same 16
// bytes, which is what a matrix load or the copies of a warp touch at a time, must lie in different banks: rows of a multiple of 128 bytes
// have their chunks of 16 bytes exchanged (number XOR row mod 8), others are followed by one chunk, which makes their length odd.
//
// Constants: HEAD_SIZE, HEAD. Element is bf16 or f16. A printed operand is
//
//   struct { COPIED; Rows rows(args, batch, row, head); Lanes<float, V> at<V>(args, batch, row, head, column) }
//
// where `rows` is there if COPIED: its rows are plain, aligned memory.
#pragma once

#include "attention/keys.cuh"
#include "ptx/async_copy.cuh"
#include "ptx/fresh.cuh"
#include "ptx/matrix.cuh"

constexpr int CHUNKS = HEAD / 8;
constexpr bool EXCHANGED = CHUNKS % 8 == 0;
constexpr int ROW_BYTES = (EXCHANGED ? CHUNKS : CHUNKS + 1) * 16;
constexpr int HEAD_TILES = HEAD / 8;

DEVICE constexpr int chunk_offset(int row, int chunk) {
    return row * ROW_BYTES + ((EXCHANGED ? chunk ^ (row & 7) : chunk) << 4);
}

// Begins to copy rows, a multiple of 32, into a tile; those whose bit in `taken` is not set, and columns behind HEAD_SIZE, become 0. The
// threads of the block share the work.
template <int ROWS, int BLOCK>
DEVICE void copy_rows(unsigned char* tile, Rows rows, const u32 (&taken)[ROWS / 32]) {
    constexpr int PER_ROUND = BLOCK >= CHUNKS ? BLOCK / CHUNKS : 1;
    const int thread = int(threadIdx.x);
    const SharedAddress address = shared_address(tile);
    if constexpr (BLOCK % CHUNKS == 0 && ROWS % PER_ROUND == 0 && 32 % PER_ROUND == 0) {
        // A thread's column never changes, and its row by so much that words of `taken` are known.
        const int row = thread / CHUNKS, chunk = thread % CHUNKS;
        const Element* from = rows.from + row * rows.stride + chunk * 8;
        const bool within = chunk * 8 < HEAD_SIZE;
        UNROLL for (int round = 0; round < ROWS / PER_ROUND; ++round) {
            const int ahead = round * PER_ROUND;
            const bool valid = within && (taken[ahead / 32] >> (row + ahead % 32) & 1);
            copy_async_if<16>(address + chunk_offset(row + ahead, chunk), from, valid);
            from += PER_ROUND * rows.stride;
        }
    } else {
        UNROLL for (int w = 0; w < ROWS / 32; ++w) {
            for (int number = thread; number < 32 * CHUNKS; number += BLOCK) {
                const int row = number / CHUNKS, chunk = number % CHUNKS;
                const bool valid = chunk * 8 < HEAD_SIZE && (taken[w] >> row & 1);
                const Element* from = rows.from + (32 * w + row) * rows.stride + chunk * 8;
                copy_async_if<16>(address + chunk_offset(32 * w + row, chunk), from, valid);
            }
        }
    }
}

// The same for an operand that must be computed, at once.
template <class Operand, int ROWS, int BLOCK>
DEVICE void compute_rows(const Arguments& args, unsigned char* tile, int batch, int first, int head, const u32 (&taken)[ROWS / 32]) {
    UNROLL for (int w = 0; w < ROWS / 32; ++w) {
        for (int number = int(threadIdx.x); number < 32 * CHUNKS; number += BLOCK) {
            const int row = number / CHUNKS, chunk = number % CHUNKS;
            Chunk<16> value{};
            if (chunk * 8 < HEAD_SIZE && (taken[w] >> row & 1)) {
                const auto lanes = Operand::template at<8>(args, batch, first + 32 * w + row, head, chunk * 8);
                UNROLL for (int i = 0; i < 4; ++i) value.words[i] = pack<Element>(lanes.at[2 * i], lanes.at[2 * i + 1]);
            }
            *reinterpret_cast<Chunk<16>*>(tile + chunk_offset(32 * w + row, chunk)) = value;
        }
    }
}

// Rows of an operand of queries.
template <class Operand, int ROWS, int BLOCK>
DEVICE void copy_queries(const Arguments& args, unsigned char* tile, QueryTile at, int queries) {
    u32 existing[ROWS / 32];
    find_existing(queries - at.first, existing);
    if constexpr (Operand::COPIED) {
        copy_rows<ROWS, BLOCK>(tile, Operand::rows(args, at.batch, at.first, at.head), existing);
    } else {
        compute_rows<Operand, ROWS, BLOCK>(args, tile, at.batch, at.first, at.head, existing);
    }
}

// Finds the rows of keys or values that are to be copied, or computes them, leaving `from` a null pointer.
template <int ROWS, int BLOCK>
struct FindKeys {
    template <class Operand>
    DEVICE void find(const Arguments& args, unsigned char* tile, int batch, int first, int head, const u32 (&taken)[ROWS / 32],
                     Rows& rows) {
        if constexpr (Operand::COPIED) {
            rows = Operand::rows(args, batch, first, head);
        } else {
            compute_rows<Operand, ROWS, BLOCK>(args, tile, batch, first, head, taken);
        }
    }

    template <class Segment>
    DEVICE void run(const Arguments& args, unsigned char* tile, int batch, int first, int head, bool values, bool only_taken,
                    u32 (&taken)[ROWS / 32], Rows& rows) {
        if (only_taken) {
            find_taken_of<ROWS / 32, Segment>(args, first, batch, taken);
        } else {
            find_existing(Segment::length(args) - first, taken);
        }
        if (values) {
            find<typename Segment::Values>(args, tile, batch, first, head, taken, rows);
        } else {
            find<typename Segment::Keys>(args, tile, batch, first, head, taken, rows);
        }
    }
};

// Begins to copy keys or values of a tile. A factor of scores may hold anything behind a mask, since these scores are left out; a factor of
// probabilities, which needs `only_taken`, may not: 0 times that may be NaN.
template <int ROWS, int BLOCK>
DEVICE void copy_keys(const Arguments& args, unsigned char* tile, KeyCursor at, int batch, int head, bool values, bool only_taken) {
    u32 taken[ROWS / 32];
    Rows rows{nullptr, 0};
    with_segment<FindKeys<ROWS, BLOCK>>(at.segment, args, tile, batch, at.first, head, values, only_taken, taken, rows);
    if (rows.from) copy_rows<ROWS, BLOCK>(tile, rows, taken);
}

// Keys and values come through a ring of SLOTS tiles: k of a tile, v of it, k of the next, … What comes next and where it goes:
struct Ring {
    KeyCursor next;
    bool values;
    int slot;
};

// Begins the copy of what comes next, if anything does.
template <int KEYS, int SLOTS, int BLOCK>
DEVICE void fetch(const Arguments& args, unsigned char* tiles, Ring& ring, int batch, int head) {
    if (ring.next.segment < SEGMENTS) {
        copy_keys<KEYS, BLOCK>(args, tiles + ring.slot * (KEYS * ROW_BYTES), ring.next, batch, fresh(head), ring.values, ring.values);
        if (ring.values) advance(args, ring.next, KEYS);
        ring.values = !ring.values;
    }
    ring.slot = ring.slot + 1 == SLOTS ? 0 : ring.slot + 1;
    commit_copies();
}

// Begins to fill a ring, all slots but one.
template <int KEYS, int SLOTS, int BLOCK>
DEVICE Ring start_ring(const Arguments& args, unsigned char* tiles, KeyCursor first, int batch, int head) {
    Ring ring{first, false, 0};
#pragma unroll 1
    for (int step = 0; step < SLOTS - 1; ++step) fetch<KEYS, SLOTS, BLOCK>(args, tiles, ring, batch, head);
    return ring;
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

// Calls Store::run(arguments…, row, column, value) with 8 neighbouring columns of the 16 rows of a warp at a time, having brought the
// accumulators into that order. `stage` is memory of the warp, 16 rows of STAGE_ROW; of its columns 8 more than needed keep rows in different banks.
constexpr int STAGE_ROW = HEAD + 8;
constexpr int STAGE_BYTES = 16 * STAGE_ROW * 4;

template <class Store, class... Rest>
DEVICE void store_rows(const float (&c)[HEAD_TILES][4], float* stage, const Rest&... rest) {
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
#pragma unroll 1
    for (int at = lane; at < 16 * VECTORS; at += 32) {
        const int row = at / VECTORS, column = at % VECTORS * 8;
        float value[1][8];
        load_lanes<4>(stage + row * STAGE_ROW + column, value[0]);
        Store::run(rest..., row, column, value);
    }
}
