// attention_grad. Element is bf16 or f16: q, k, v and dy are, p and u are rounded to it for their products, all else is f32. With s the
// scores, p their softmax, r = dy v^T and u = p (r - r_mean), r_mean = Σ p r over the keys of a query:
//
//   dq = scale u k        dk = scale u^T q        dv = p^T dy        the last two summed over the heads of a key head
//
// Four functions, of which the second and third compute s and r again rather than keep them:
//   statistics       the softmax's denominator and r_mean of QUERIES queries, online over all keys
//   query_gradients  QUERIES queries of a head past all keys, PAIR_KEYS at a time
//   key_gradients    KEY_ROWS keys past all queries of one head, QUERY_STEP at a time: what that head adds to dk and dv, into scratch memory
//   key_sums         the sum over the heads of a key head, and the epilogues
// A query head for each block of keys, rather than all heads of a key head one behind the other, gives enough blocks for a whole device
// at a batch of 1; the sums go past memory once more. In key_gradients scores are computed transposed, so that p^T and u^T are left factors
// straight from the accumulators. Every sum has one order.
//
// Slots: those of sm80_f32_attention_grad.cuh and int batches(args). Constants: HEADS, KEY_HEADS, HEAD_SIZE, HEAD, SEGMENTS, SCALE, THREADS,
// KEYS and SLOTS of statistics, PAIR_KEYS and PAIRS (in shared memory), STATISTICS = QUERIES, KEY_THREADS, QUERY_STEP and
// QUERY_STAGES, ANY_KEYS and ANY_VALUES (whether any segment wants gradients of these), SUM_THREADS.

#include "attention/tiles.cuh"
#include "attention/statistics.cuh"

constexpr int M_TILES = 2;
constexpr int WARP_ROWS = 16 * M_TILES;
constexpr int QUERIES = THREADS / 32 * WARP_ROWS;
static_assert(QUERIES == STATISTICS, "a block's statistics are a tile of them");
constexpr int QUERY_BYTES = QUERIES * ROW_BYTES;

// What a thread finds out about its rows, m x 16 + lane / 4 + 8 r.
struct Online {
    float largest[M_TILES][2], sum[M_TILES][2], weighted[M_TILES][2];
};

template <int N>
DEVICE void gather_statistics(const float (&s)[M_TILES][N][4], const float (&slope)[M_TILES][N][4], Online& rows) {
    UNROLL for (int m = 0; m < M_TILES; ++m) {
        UNROLL for (int r = 0; r < 2; ++r) {
            float high = -INFINITE;
            UNROLL for (int n = 0; n < N; ++n) high = fmaxf(high, fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
            high = fmaxf(rows.largest[m][r], largest_of_row(high));
            const float base = high == -INFINITE ? 0.0f : high;
            const float factor = exp2_approximate((rows.largest[m][r] - base) * EXPONENT);
            rows.largest[m][r] = high;
            rows.sum[m][r] *= factor;
            rows.weighted[m][r] *= factor;
            UNROLL for (int n = 0; n < N; ++n) {
                UNROLL for (int e = 2 * r; e < 2 * r + 2; ++e) {
                    // The difference first: where a query has one key, r_mean must be its r exactly.
                    const float p = exp2_approximate((s[m][n][e] - base) * EXPONENT);
                    rows.sum[m][r] += p;
                    rows.weighted[m][r] += p * slope[m][n][e];
                }
            }
        }
    }
}

KERNEL void __launch_bounds__(THREADS) statistics(const __grid_constant__ Arguments args) {
    SHARED_MEMORY(shared);
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    const int count = queries(args);
    const QueryTile own = query_tile(blockIdx.x, count, QUERIES);
    const int key_head = key_head_of(own.head);
    unsigned char* ring = shared + 2 * QUERY_BYTES;

    KeyCursor at = first_keys(args);
    int read = 0;
    copy_queries<Q, QUERIES, THREADS>(args, shared, own, count);
    copy_queries<DY, QUERIES, THREADS>(args, shared + QUERY_BYTES, own, count);
    Ring next = start_ring<KEYS, SLOTS, THREADS>(args, ring, at, own.batch, key_head);

    const SharedAddress q = shared_address(shared) + warp * WARP_ROWS * ROW_BYTES;
    const SharedAddress dy = q + QUERY_BYTES;
    const SharedAddress tiles = shared_address(ring);
    Online rows;
    UNROLL for (int m = 0; m < M_TILES; ++m) {
        UNROLL for (int r = 0; r < 2; ++r) {
            rows.largest[m][r] = -INFINITE;
            rows.sum[m][r] = rows.weighted[m][r] = 0.0f;
        }
    }
    for (; at.segment < SEGMENTS; advance(args, at, KEYS)) {
        float s[M_TILES][KEYS / 8][4], r[M_TILES][KEYS / 8][4];
        clear(s);
        clear(r);
        wait_copies<SLOTS - 2>();
        __syncthreads();
        // Where the tile before the last was: all warps are past it.
        fetch<KEYS, SLOTS, THREADS>(args, ring, next, own.batch, key_head);
        u32 taken[KEYS / 32];
        find_taken(args, at, own.batch, taken);
        const bool any = any_of(taken);
        if (any) multiply_rows(s, q, tiles + read * (KEYS * ROW_BYTES));
        read = read + 1 == SLOTS ? 0 : read + 1;
        wait_copies<SLOTS - 2>();
        __syncthreads();
        fetch<KEYS, SLOTS, THREADS>(args, ring, next, own.batch, key_head);
        if (any) {
            multiply_rows(r, dy, tiles + read * (KEYS * ROW_BYTES));
            scale_scores(s);
            if (!all_of(taken)) leave_out(s, taken, -INFINITE);
            gather_statistics(s, r, rows);
        }
        read = read + 1 == SLOTS ? 0 : read + 1;
    }
    wait_copies<0>();
    Statistics* result = statistics_of(args, own.batch, own.head) + own.first;
    UNROLL for (int m = 0; m < M_TILES; ++m) {
        UNROLL for (int r = 0; r < 2; ++r) {
            const float sum = sum_of_row(rows.sum[m][r]), weighted = sum_of_row(rows.weighted[m][r]);
            const int row = warp * WARP_ROWS + m * 16 + lane / 4 + 8 * r;
            if (lane % 4 == 0) {
                const bool exists = own.first + row < count;
                result[row] = exists ? statistics_from(rows.largest[m][r], sum, weighted) : Statistics{INFINITE, 0.0f};
            }
        }
    }
}

// Begins the copy of the next pair of tiles, keys and values, if there is one.
DEVICE void fetch_pair(const Arguments& args, unsigned char* pairs, KeyCursor& next, int& stage, int batch, int head) {
    if (next.segment < SEGMENTS) {
        unsigned char* pair = pairs + stage * (2 * PAIR_KEYS * ROW_BYTES);
        head = fresh(head);
        copy_keys<PAIR_KEYS, THREADS>(args, pair, next, batch, head, false, true);
        copy_keys<PAIR_KEYS, THREADS>(args, pair + PAIR_KEYS * ROW_BYTES, next, batch, head, true, true);
        advance(args, next, PAIR_KEYS);
    }
    stage = stage + 1 == PAIRS ? 0 : stage + 1;
    commit_copies();
}

struct StoreQueryGradient {
    DEVICE void run(const Arguments& args, QueryTile own, int count, int first, int row, int column, float (&value)[1][8]) {
        UNROLL for (int l = 0; l < 8; ++l) value[0][l] *= SCALE;
        const float none[1] = {0.0f};
        if (first + row < count) query_gradient<8>(args, own.batch, first + row, own.head, column, value, none);
    }
};

KERNEL void __launch_bounds__(THREADS) query_gradients(const __grid_constant__ Arguments args) {
    SHARED_MEMORY(shared);
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    const int count = queries(args);
    const QueryTile own = query_tile(blockIdx.x, count, QUERIES);
    const int key_head = key_head_of(own.head);
    unsigned char* pairs = shared + 2 * QUERY_BYTES;

    KeyCursor at = first_keys(args), next = at;
    int write = 0, read = 0;
    copy_queries<Q, QUERIES, THREADS>(args, shared, own, count);
    copy_queries<DY, QUERIES, THREADS>(args, shared + QUERY_BYTES, own, count);
#pragma unroll 1
    for (int pair = 0; pair < PAIRS - 1; ++pair) fetch_pair(args, pairs, next, write, own.batch, key_head);

    const SharedAddress q = shared_address(shared) + warp * WARP_ROWS * ROW_BYTES;
    const SharedAddress dy = q + QUERY_BYTES;
    Statistics of_row[M_TILES][2];
    const Statistics* known = statistics_of(args, own.batch, own.head) + own.first + warp * WARP_ROWS + lane / 4;
    UNROLL for (int m = 0; m < M_TILES; ++m) {
        UNROLL for (int r = 0; r < 2; ++r) of_row[m][r] = known[m * 16 + 8 * r];
    }
    float dq[M_TILES][HEAD_TILES][4];
    clear(dq);
    for (; at.segment < SEGMENTS; advance(args, at, PAIR_KEYS)) {
        wait_copies<PAIRS - 2>();
        __syncthreads();
        fetch_pair(args, pairs, next, write, own.batch, key_head);
        u32 taken[PAIR_KEYS / 32];
        find_taken(args, at, own.batch, taken);
        if (any_of(taken)) {
            const SharedAddress k = shared_address(pairs) + read * (2 * PAIR_KEYS * ROW_BYTES);
            const SharedAddress v = k + PAIR_KEYS * ROW_BYTES;
            float s[M_TILES][PAIR_KEYS / 8][4], r[M_TILES][PAIR_KEYS / 8][4];
            clear(s);
            clear(r);
            multiply_rows(s, q, k);
            multiply_rows(r, dy, v);
            scale_scores(s);
            UNROLL for (int m = 0; m < M_TILES; ++m) {
                UNROLL for (int n = 0; n < PAIR_KEYS / 8; ++n) {
                    UNROLL for (int e = 0; e < 4; ++e) {
                        const Statistics of = of_row[m][e / 2];
                        s[m][n][e] = exp2_approximate(s[m][n][e] * EXPONENT - of.log) * (r[m][n][e] - of.mean);
                    }
                }
            }
            if (!all_of(taken)) leave_out(s, taken, 0.0f);
            u32 u[M_TILES][PAIR_KEYS / 16][4];
            UNROLL for (int m = 0; m < M_TILES; ++m) as_left(u[m], s[m]);
            multiply_columns(dq, u, k);
        }
        read = read + 1 == PAIRS ? 0 : read + 1;
    }
    wait_copies<0>();
    // The results take the place of the tiles.
    __syncthreads();
    float* stage = reinterpret_cast<float*>(shared + warp * STAGE_BYTES);
    UNROLL for (int m = 0; m < M_TILES; ++m) {
        store_rows<StoreQueryGradient>(dq[m], stage, args, own, count, own.first + warp * WARP_ROWS + m * 16);
    }
}

// The gradients of 32 keys and their values would leave no registers for scores.
constexpr int KEY_M_TILES = 1;
constexpr int KEY_WARP_ROWS = 16 * KEY_M_TILES;
constexpr int KEY_ROWS = KEY_THREADS / 32 * KEY_WARP_ROWS;
constexpr int KEY_BYTES = KEY_ROWS * ROW_BYTES;
constexpr int STEP_BYTES = QUERY_STEP * ROW_BYTES;
// Rows of q and dy and their statistics, rounded up so that rows begin at multiples of 128 bytes.
constexpr int STAGE_STATISTICS = (QUERY_STEP * 8 + 127) / 128 * 128;
constexpr int QUERY_STAGE_BYTES = 2 * STEP_BYTES + STAGE_STATISTICS;

// What a head adds to the gradients of keys and values: of [segment, batch, key, head], 2 x HEAD_SIZE numbers behind the statistics.
DEVICE float* key_partial(const Arguments& args, int segment, int batch, int key, int head) {
    i64 rows = i64(batch) * segment_length(args, segment) + key;
    for (int before = 0; before < segment; ++before) rows += i64(batches(args)) * segment_length(args, before);
    float* first = reinterpret_cast<float*>(statistics_of(args, batches(args), 0));
    return first + (rows * HEADS + head) * (2 * HEAD_SIZE);
}

// Begins the copy of queries, if there are any, into a stage.
DEVICE void fetch_queries(const Arguments& args, unsigned char* stages, QueryTile at, int stage) {
    const int count = queries(args);
    if (at.first < count) {
        unsigned char* tile = stages + stage * QUERY_STAGE_BYTES;
        at.head = fresh(at.head);
        copy_queries<Q, QUERY_STEP, KEY_THREADS>(args, tile, at, count);
        copy_queries<DY, QUERY_STEP, KEY_THREADS>(args, tile + STEP_BYTES, at, count);
        if (threadIdx.x < QUERY_STEP / 2) {
            const Statistics* from = statistics_of(args, at.batch, at.head) + at.first + 2 * threadIdx.x;
            copy_async<16>(shared_address(tile + 2 * STEP_BYTES + 16 * threadIdx.x), from);
        }
    }
    commit_copies();
}

struct IsWanted {
    template <class Segment>
    DEVICE void run(bool& wanted) { wanted = Segment::HAS_KEYS || Segment::HAS_VALUES; }
};

KERNEL void __launch_bounds__(KEY_THREADS) key_gradients(const __grid_constant__ Arguments args) {
    SHARED_MEMORY(shared);
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    const int count = queries(args);
    u32 rest = blockIdx.x;
    const KeyCursor own = key_tile(args, rest, KEY_ROWS);
    const int head = int(rest % u32(HEADS)), batch = int(rest / u32(HEADS));
    bool wanted = false;
    with_segment<IsWanted>(own.segment, wanted);
    if (!wanted) return;
    unsigned char* stages = shared + 2 * KEY_BYTES;

    copy_keys<KEY_ROWS, KEY_THREADS>(args, shared, own, batch, key_head_of(head), false, true);
    copy_keys<KEY_ROWS, KEY_THREADS>(args, shared + KEY_BYTES, own, batch, key_head_of(head), true, true);
    int stage = 0;
#pragma unroll 1
    for (; stage < QUERY_STAGES - 1; ++stage) fetch_queries(args, stages, {batch, head, stage * QUERY_STEP}, stage);

    const SharedAddress k = shared_address(shared) + warp * KEY_WARP_ROWS * ROW_BYTES;
    const SharedAddress v = k + KEY_BYTES;
    float dk[KEY_M_TILES][HEAD_TILES][4], dv[KEY_M_TILES][HEAD_TILES][4];
    clear(dk);
    clear(dv);
    for (int first = 0; first < count; first += QUERY_STEP) {
        wait_copies<QUERY_STAGES - 2>();
        __syncthreads();
        fetch_queries(args, stages, {batch, head, first + (QUERY_STAGES - 1) * QUERY_STEP}, stage);
        stage = stage + 1 == QUERY_STAGES ? 0 : stage + 1;
        const unsigned char* tile = stages + stage * QUERY_STAGE_BYTES;
        const SharedAddress q = shared_address(stages) + stage * QUERY_STAGE_BYTES, dy = q + STEP_BYTES;
        const float* known = reinterpret_cast<const float*>(tile + 2 * STEP_BYTES);
        // Rows are keys, columns queries: the statistics belong to columns.
        float p[KEY_M_TILES][QUERY_STEP / 8][4];
        u32 left[KEY_M_TILES][QUERY_STEP / 16][4];
        clear(p);
        multiply_rows(p, k, q);
        scale_scores(p);
        UNROLL for (int n = 0; n < QUERY_STEP / 8; ++n) {
            float of_column[4];
            load_lanes<4>(known + 2 * column_of(n, 0), of_column);
            UNROLL for (int m = 0; m < KEY_M_TILES; ++m) {
                UNROLL for (int e = 0; e < 4; ++e) p[m][n][e] = exp2_approximate(p[m][n][e] * EXPONENT - of_column[2 * (e & 1)]);
            }
        }
        if constexpr (ANY_VALUES) {
            UNROLL for (int m = 0; m < KEY_M_TILES; ++m) as_left(left[m], p[m]);
            multiply_columns(dv, left, dy);
        }
        if constexpr (ANY_KEYS) {
            float r[KEY_M_TILES][QUERY_STEP / 8][4];
            clear(r);
            multiply_rows(r, v, dy);
            UNROLL for (int n = 0; n < QUERY_STEP / 8; ++n) {
                float of_column[4];
                load_lanes<4>(known + 2 * column_of(n, 0), of_column);
                UNROLL for (int m = 0; m < KEY_M_TILES; ++m) {
                    UNROLL for (int e = 0; e < 4; ++e) p[m][n][e] *= r[m][n][e] - of_column[2 * (e & 1) + 1];
                }
            }
            UNROLL for (int m = 0; m < KEY_M_TILES; ++m) as_left(left[m], p[m]);
            multiply_columns(dk, left, q);
        }
    }
    wait_copies<0>();
    const int length = segment_length(args, own.segment);
    UNROLL for (int m = 0; m < KEY_M_TILES; ++m) {
        UNROLL for (int half = 0; half < 2; ++half) {
            const int key = own.first + warp * KEY_WARP_ROWS + m * 16 + lane / 4 + 8 * half;
            if (key < length) {
                float* to = key_partial(args, own.segment, batch, key, head);
                UNROLL for (int n = 0; n < HEAD_TILES; ++n) {
                    const int column = column_of(n, 0);
                    const float of_k[2] = {dk[m][n][2 * half], dk[m][n][2 * half + 1]};
                    const float of_v[2] = {dv[m][n][2 * half], dv[m][n][2 * half + 1]};
                    if (column < HEAD_SIZE) {
                        if constexpr (ANY_KEYS) store_lanes<2>(to + column, of_k);
                        if constexpr (ANY_VALUES) store_lanes<2>(to + HEAD_SIZE + column, of_v);
                    }
                }
            }
        }
    }
}

// The sum of 8 columns over the heads of a key head; 0 for a key that is left out, whatever it gathered.
DEVICE void sum_heads(const float* from, bool taken, float factor, float (&value)[1][8]) {
    UNROLL for (int l = 0; l < 8; ++l) value[0][l] = 0.0f;
    if (!taken) return;
    UNROLL for (int head = 0; head < HEADS / KEY_HEADS; ++head) {
        float one[8];
        load_lanes<4>(from + head * (2 * HEAD_SIZE), one);
        UNROLL for (int l = 0; l < 8; ++l) value[0][l] += one[l];
    }
    UNROLL for (int l = 0; l < 8; ++l) value[0][l] *= factor;
}

struct StoreSums {
    template <class Segment>
    DEVICE void run(const Arguments& args, const float* from, int batch, int key, int key_head, int column) {
        const bool taken = Segment::taken(args, batch, key);
        const float none[1] = {0.0f};
        float value[1][8];
        if constexpr (Segment::HAS_KEYS) {
            sum_heads(from, taken, SCALE, value);
            Segment::template key_gradient<8>(args, batch, key, key_head, column, value, none);
        }
        if constexpr (Segment::HAS_VALUES) {
            sum_heads(from + HEAD_SIZE, taken, 1.0f, value);
            Segment::template value_gradient<8>(args, batch, key, key_head, column, value, none);
        }
    }
};

KERNEL void __launch_bounds__(SUM_THREADS) key_sums(const __grid_constant__ Arguments args) {
    constexpr int VECTORS = HEAD_SIZE / 8;
    u32 block = blockIdx.x;
    int segment = 0;
    u64 points = 0;
    for (; segment < SEGMENTS; ++segment) {
        points = u64(batches(args)) * u64(segment_length(args, segment)) * u64(KEY_HEADS * VECTORS);
        const u32 blocks = u32((points + SUM_THREADS - 1) / SUM_THREADS);
        if (block < blocks) break;
        block -= blocks;
    }
    const u64 point = u64(block) * SUM_THREADS + threadIdx.x;
    if (segment >= SEGMENTS || point >= points) return;
    const int column = int(point % VECTORS) * 8;
    u64 rest = point / VECTORS;
    const int key_head = int(rest % u64(KEY_HEADS));
    rest /= u64(KEY_HEADS);
    const int length = segment_length(args, segment);
    const int key = int(rest % u64(length)), batch = int(rest / u64(length));
    const float* from = key_partial(args, segment, batch, key, key_head * (HEADS / KEY_HEADS)) + column;
    with_segment<StoreSums>(segment, args, from, batch, key, key_head, column);
}
