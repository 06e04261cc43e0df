// attention: softmax(scale q k^T) v over the keys of all segments, online: Dao, "FlashAttention-2" (2023), algorithm 1. Element is bf16 or
// f16; scores, softmax and sums are f32, probabilities are rounded to Element for their product with the values.
//
// A block has QUERIES queries of one head, a warp M_TILES x 16 of them, and goes past all keys, KEYS at a time, which come
// through a ring of SLOTS tiles. Probabilities stay in registers: accumulators of one product are the left factor of the next. A tile
// whose keys are all left out costs its loads only.
//
// Slots: int queries(args), Q (an operand, see attention/tiles.cuh), the segments of attention/keys.cuh, and
//   template <int V> void epilogue(args, batch, query, head, column, const float (&lane)[1][V], const float (&sum)[1]).
// Constants: HEADS, KEY_HEADS, HEAD_SIZE, HEAD, SEGMENTS, SCALE, THREADS, M_TILES, KEYS, SLOTS.

#include "attention/tiles.cuh"

constexpr int WARPS = THREADS / 32;
constexpr int WARP_ROWS = 16 * M_TILES;
constexpr int QUERIES = WARPS * WARP_ROWS;
constexpr int KEY_TILES = KEYS / 8;
constexpr int TILE_BYTES = KEYS * ROW_BYTES;

// How far, as a power of two, probabilities may grow beyond 1 before sums are brought to a larger maximum: they rarely are.
constexpr float SLACK = 8.0f;

// What a thread knows of its rows: m x 16 + lane / 4 + 8 r. `largest` is in units of the exponent, `sum` that of its own columns.
struct Softmax {
    float largest[M_TILES][2], sum[M_TILES][2];
};

// Scores to probabilities, over a maximum that is at most SLACK too small.
DEVICE void exponentiate(float (&s)[M_TILES][KEY_TILES][4], Softmax& rows, float (&out)[M_TILES][HEAD_TILES][4]) {
    float high[M_TILES][2];
    bool grown = false;
    UNROLL for (int m = 0; m < M_TILES; ++m) {
        UNROLL for (int r = 0; r < 2; ++r) {
            float x = -INFINITE;
            UNROLL for (int n = 0; n < KEY_TILES; ++n) x = fmaxf(x, fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
            high[m][r] = largest_of_row(x) * EXPONENT;
            grown |= high[m][r] > rows.largest[m][r] + SLACK;
        }
    }
    if (__any_sync(0xffffffffu, grown)) {
        UNROLL for (int m = 0; m < M_TILES; ++m) {
            UNROLL for (int r = 0; r < 2; ++r) {
                const float largest = fmaxf(rows.largest[m][r], high[m][r]);
                const float factor = largest == -INFINITE ? 1.0f : exp2_approximate(rows.largest[m][r] - largest);
                rows.largest[m][r] = largest;
                rows.sum[m][r] *= factor;
                UNROLL for (int n = 0; n < HEAD_TILES; ++n) {
                    out[m][n][2 * r] *= factor;
                    out[m][n][2 * r + 1] *= factor;
                }
            }
        }
    }
    UNROLL for (int m = 0; m < M_TILES; ++m) {
        UNROLL for (int r = 0; r < 2; ++r) {
            // A row without any score above -infinity has probabilities of 0.
            const float base = rows.largest[m][r] == -INFINITE ? 0.0f : rows.largest[m][r];
            UNROLL for (int n = 0; n < KEY_TILES; ++n) {
                UNROLL for (int e = 2 * r; e < 2 * r + 2; ++e) {
                    s[m][n][e] = exp2_approximate(s[m][n][e] * EXPONENT - base);
                    rows.sum[m][r] += s[m][n][e];
                }
            }
        }
    }
}

struct StoreResult {
    DEVICE void run(const Arguments& args, QueryTile own, int count, int first, int row, int column, const float (&value)[1][8]) {
        const float none[1] = {0.0f};
        if (first + row < count) epilogue<8>(args, own.batch, first + row, own.head, column, value, none);
    }
};

KERNEL void __launch_bounds__(THREADS) attention(const __grid_constant__ Arguments args) {
    SHARED_MEMORY(shared);
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    const int count = queries(args);
    const QueryTile own = query_tile(blockIdx.x, count, QUERIES);
    const int key_head = key_head_of(own.head);
    unsigned char* ring = shared + QUERIES * ROW_BYTES;

    KeyCursor at = first_keys(args);
    int read = 0;
    copy_queries<Q, QUERIES, THREADS>(args, shared, own, count);
    Ring next = start_ring<KEYS, SLOTS, THREADS>(args, ring, at, own.batch, key_head);

    const SharedAddress q = shared_address(shared) + warp * WARP_ROWS * ROW_BYTES;
    const SharedAddress tiles = shared_address(ring);
    Softmax rows;
    UNROLL for (int m = 0; m < M_TILES; ++m) {
        UNROLL for (int r = 0; r < 2; ++r) {
            rows.largest[m][r] = -INFINITE;
            rows.sum[m][r] = 0.0f;
        }
    }
    float out[M_TILES][HEAD_TILES][4];
    clear(out);
    for (; at.segment < SEGMENTS; advance(args, at, KEYS)) {
        wait_copies<SLOTS - 2>();
        __syncthreads();
        // Where the tile before the last was: all warps are past it.
        fetch<KEYS, SLOTS, THREADS>(args, ring, next, own.batch, key_head);
        u32 taken[KEYS / 32];
        find_taken(args, at, own.batch, taken);
        const bool any = any_of(taken);
        u32 p[M_TILES][KEY_TILES / 2][4];
        if (any) {
            float s[M_TILES][KEY_TILES][4];
            clear(s);
            multiply_rows(s, q, tiles + read * TILE_BYTES);
            scale_scores(s);
            if (!all_of(taken)) leave_out(s, taken, -INFINITE);
            exponentiate(s, rows, out);
            UNROLL for (int m = 0; m < M_TILES; ++m) as_left(p[m], s[m]);
        }
        read = read + 1 == SLOTS ? 0 : read + 1;
        wait_copies<SLOTS - 2>();
        __syncthreads();
        fetch<KEYS, SLOTS, THREADS>(args, ring, next, own.batch, key_head);
        if (any) multiply_columns(out, p, tiles + read * TILE_BYTES);
        read = read + 1 == SLOTS ? 0 : read + 1;
    }
    wait_copies<0>();
    // The results take the place of the tiles.
    __syncthreads();
    float* stage = reinterpret_cast<float*>(shared + warp * STAGE_BYTES);
    UNROLL for (int m = 0; m < M_TILES; ++m) {
        UNROLL for (int r = 0; r < 2; ++r) {
            const float sum = sum_of_row(rows.sum[m][r]);
            const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
            UNROLL for (int n = 0; n < HEAD_TILES; ++n) {
                out[m][n][2 * r] *= factor;
                out[m][n][2 * r + 1] *= factor;
            }
        }
        store_rows<StoreResult>(out[m], stage, args, own, count, own.first + warp * WARP_ROWS + m * 16);
    }
}
