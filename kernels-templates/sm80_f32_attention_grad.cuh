// attention_grad in f32, for any head size and the products of any type. With s the scores, p their softmax, r = dy v^T and
// u = p (r - r_mean), r_mean = Σ p r over the keys of a query:
//
//   dq = scale u k        dk = scale u^T q        dv = p^T dy        the last two summed over the heads of a key head
//
// Three functions, of which the last two compute s and r again rather than keep them:
//   statistics       the softmax's denominator and r_mean of 64 queries, online over all keys
//   query_gradients  64 queries of a head x COLUMNS columns: past all keys
//   key_gradients    64 keys of a key head x COLUMNS columns: past the queries of all its heads
// Every sum belongs to one block and has one order.
//
// Slots: int queries(args), operands Q and DY; segments as in attention/keys.cuh, each with HAS_KEYS, HAS_VALUES and
// key_gradient<V>, value_gradient<V>(args, batch, key, head, column, const float (&lane)[1][V]); and
// query_gradient<V>(args, batch, query, head, column, const float (&lane)[1][V]).
// Constants: those of sm80_f32_attention.cuh, STATISTICS = 64.

#include "attention/f32_tiles.cuh"
#include "attention/statistics.cuh"

typedef float Scores[4][4];

// Scores and slopes of a tile of queries and keys.
template <class Segment>
DEVICE void scores_of_queries(const Arguments& args, float* stage, QueryTile own, int first, Scores& s, Scores& r) {
    const int count = queries(args), head = key_head_of(own.head);
    multiply_rows(s, stage, QueryRows<Q>{args, own, count}, KeyRows<Segment, typename Segment::Keys>{args, first, own.batch, head});
    multiply_rows(r, stage, QueryRows<DY>{args, own, count}, KeyRows<Segment, typename Segment::Values>{args, first, own.batch, head});
    UNROLL for (int i = 0; i < 4; ++i) scale_scores(s[i]);
}

// What a thread finds out about its rows, of its own columns.
struct Online {
    float largest[4], sum[4], weighted[4];
};

struct GatherStatistics {
    template <class Segment>
    DEVICE void run(const Arguments& args, float* stage, QueryTile own, int first, Online& rows) {
        Scores s = {}, r = {};
        scores_of_queries<Segment>(args, stage, own, first, s, r);
        bool taken[4];
        taken_columns<Segment>(args, first, own.batch, taken);
        UNROLL for (int i = 0; i < 4; ++i) {
            float high = -INFINITE;
            UNROLL for (int j = 0; j < 4; ++j) {
                s[i][j] = taken[j] ? s[i][j] : -INFINITE;
                high = fmaxf(high, s[i][j]);
            }
            high = fmaxf(rows.largest[i], largest_of_row(high));
            const float base = high == -INFINITE ? 0.0f : high;
            const float factor = exp2_approximate((rows.largest[i] - base) * EXPONENT);
            rows.largest[i] = high;
            rows.sum[i] *= factor;
            rows.weighted[i] *= factor;
            UNROLL for (int j = 0; j < 4; ++j) {
                // The difference first: where a query has one key, r_mean must be its r exactly.
                const float p = exp2_approximate((s[i][j] - base) * EXPONENT);
                rows.sum[i] += p;
                rows.weighted[i] += p * r[i][j];
            }
        }
    }
};

KERNEL void __launch_bounds__(THREADS) statistics(const __grid_constant__ Arguments args) {
    SHARED_MEMORY(shared);
    float* stage = reinterpret_cast<float*>(shared);
    const QueryTile own = query_tile(blockIdx.x, queries(args), ROWS);
    Online rows;
    UNROLL for (int i = 0; i < 4; ++i) {
        rows.largest[i] = -INFINITE;
        rows.sum[i] = rows.weighted[i] = 0.0f;
    }
    for (KeyCursor at = first_keys(args); at.segment < SEGMENTS; advance(args, at, ROWS)) {
        with_segment<GatherStatistics>(at.segment, args, stage, own, at.first, rows);
    }
    Statistics* result = statistics_of(args, own.batch, own.head) + own.first;
    UNROLL for (int i = 0; i < 4; ++i) {
        const float sum = sum_of_row(rows.sum[i]), weighted = sum_of_row(rows.weighted[i]);
        const int row = 4 * tile_y() + i;
        if (tile_x() == 0) {
            const bool exists = own.first + row < queries(args);
            result[row] = exists ? statistics_from(rows.largest[i], sum, weighted) : Statistics{INFINITE, 0.0f};
        }
    }
}

struct AddKeys {
    template <class Segment>
    DEVICE void run(const Arguments& args, float* stage, QueryTile own, int first, int first_column, const Statistics (&of_row)[4],
                    float (&dq)[4][PARTS][4]) {
        float* weights = stage + STAGE;
        Scores s = {}, r = {};
        scores_of_queries<Segment>(args, stage, own, first, s, r);
        bool taken[4];
        taken_columns<Segment>(args, first, own.batch, taken);
        UNROLL for (int i = 0; i < 4; ++i) {
            UNROLL for (int j = 0; j < 4; ++j) {
                const float p = exp2_approximate(s[i][j] * EXPONENT - of_row[i].log);
                s[i][j] = taken[j] ? p * (r[i][j] - of_row[i].mean) : 0.0f;
            }
        }
        write_weights(weights, s);
        multiply_columns(dq, weights, stage, first_column,
                         KeyRows<Segment, typename Segment::Keys>{args, first, own.batch, key_head_of(own.head)});
    }
};

struct StoreQueryGradient {
    DEVICE void run(const Arguments& args, QueryTile own, int count, int row, int column, float (&value)[1][LANES]) {
        UNROLL for (int l = 0; l < LANES; ++l) value[0][l] *= SCALE;
        const float none[1] = {0.0f};
        if (own.first + row < count) query_gradient<LANES>(args, own.batch, own.first + row, own.head, column, value, none);
    }
};

KERNEL void __launch_bounds__(THREADS) query_gradients(const __grid_constant__ Arguments args) {
    SHARED_MEMORY(shared);
    float* stage = reinterpret_cast<float*>(shared);
    const int count = queries(args);
    const u32 chunks = u32((HEAD_SIZE + COLUMNS - 1) / COLUMNS);
    const QueryTile own = query_tile(blockIdx.x / chunks, count, ROWS);
    const int first_column = int(blockIdx.x % chunks) * COLUMNS;
    const Statistics* known = statistics_of(args, own.batch, own.head) + own.first + 4 * tile_y();
    Statistics of_row[4];
    UNROLL for (int i = 0; i < 4; ++i) of_row[i] = known[i];
    float dq[4][PARTS][4];
    clear(dq);
    for (KeyCursor at = first_keys(args); at.segment < SEGMENTS; advance(args, at, ROWS)) {
        with_segment<AddKeys>(at.segment, args, stage, own, at.first, first_column, of_row, dq);
    }
    store_rows<StoreQueryGradient>(dq, first_column, args, own, count);
}

// What a key that is left out gathered is of no score.
template <class Segment, bool VALUES>
struct StoreKeyGradient {
    DEVICE void run(const Arguments& args, int batch, int key_head, int first, int row, int column, float (&value)[1][LANES]) {
        const int key = first + row;
        if (key >= Segment::length(args)) return;
        const bool taken = Segment::taken(args, batch, key);
        UNROLL for (int l = 0; l < LANES; ++l) value[0][l] = taken ? value[0][l] * (VALUES ? 1.0f : SCALE) : 0.0f;
        const float none[1] = {0.0f};
        if constexpr (VALUES) {
            Segment::template value_gradient<LANES>(args, batch, key, key_head, column, value, none);
        } else {
            Segment::template key_gradient<LANES>(args, batch, key, key_head, column, value, none);
        }
    }
};

struct GradientsOfKeys {
    template <class Segment>
    DEVICE void run(const Arguments& args, float* shared, int batch, int key_head, int first, int first_column) {
        if constexpr (!Segment::HAS_KEYS && !Segment::HAS_VALUES) return;
        float* stage = shared;
        float* weights = stage + STAGE;
        const int count = queries(args);
        const auto keys = KeyRows<Segment, typename Segment::Keys>{args, first, batch, key_head};
        const auto values = KeyRows<Segment, typename Segment::Values>{args, first, batch, key_head};
        float dk[4][PARTS][4], dv[4][PARTS][4];
        clear(dk);
        clear(dv);
        for (int of_group = 0; of_group < HEADS / KEY_HEADS; ++of_group) {
            const int head = key_head * (HEADS / KEY_HEADS) + of_group;
            for (int query = 0; query < count; query += ROWS) {
                const QueryTile at{batch, head, query};
                const QueryRows<Q> of_q{args, at, count};
                const QueryRows<DY> of_dy{args, at, count};
                // Rows are keys, columns queries.
                Scores p = {}, r = {};
                multiply_rows(p, stage, keys, of_q);
                const Statistics* known = statistics_of(args, batch, head) + query + 4 * tile_x();
                Statistics of_column[4];
                UNROLL for (int j = 0; j < 4; ++j) of_column[j] = known[j];
                UNROLL for (int i = 0; i < 4; ++i) {
                    scale_scores(p[i]);
                    UNROLL for (int j = 0; j < 4; ++j) p[i][j] = exp2_approximate(p[i][j] * EXPONENT - of_column[j].log);
                }
                if constexpr (Segment::HAS_VALUES) {
                    write_weights(weights, p);
                    multiply_columns(dv, weights, stage, first_column, of_dy);
                }
                if constexpr (Segment::HAS_KEYS) {
                    multiply_rows(r, stage, values, of_dy);
                    UNROLL for (int i = 0; i < 4; ++i) {
                        UNROLL for (int j = 0; j < 4; ++j) r[i][j] = p[i][j] * (r[i][j] - of_column[j].mean);
                    }
                    write_weights(weights, r);
                    multiply_columns(dk, weights, stage, first_column, of_q);
                }
            }
        }
        if constexpr (Segment::HAS_KEYS) {
            store_rows<StoreKeyGradient<Segment, false>>(dk, first_column, args, batch, key_head, first);
        }
        if constexpr (Segment::HAS_VALUES) {
            store_rows<StoreKeyGradient<Segment, true>>(dv, first_column, args, batch, key_head, first);
        }
    }
};

KERNEL void __launch_bounds__(THREADS) key_gradients(const __grid_constant__ Arguments args) {
    SHARED_MEMORY(shared);
    const u32 chunks = u32((HEAD_SIZE + COLUMNS - 1) / COLUMNS);
    const int first_column = int(blockIdx.x % chunks) * COLUMNS;
    u32 rest = blockIdx.x / chunks;
    const KeyCursor at = key_tile(args, rest, ROWS);
    const int key_head = int(rest % u32(KEY_HEADS)), batch = int(rest / u32(KEY_HEADS));
    float* stage = reinterpret_cast<float*>(shared);
    with_segment<GradientsOfKeys>(at.segment, args, stage, batch, key_head, at.first, first_column);
}
