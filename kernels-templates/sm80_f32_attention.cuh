// attention in f32, for any head size and the products of any type: softmax(scale q k^T) v over the keys of all segments, online.
//
// A block has 64 queries of one head and COLUMNS columns of their results; it goes past all keys, 64 at a time. Where a head has more
// columns, the blocks of the others compute the same probabilities.
//
// Slots: those of sm80_bf16_attention.cuh. Constants: HEADS, KEY_HEADS, HEAD_SIZE, SEGMENTS, SCALE, COLUMNS, LANES.

#include "attention/f32_tiles.cuh"

// What a thread knows of its rows. `sum` is that of its own columns.
struct Online {
    float largest[4], sum[4], out[4][PARTS][4];
};

// Goes past a tile of keys.
struct AddKeys {
    template <class Segment>
    DEVICE void run(const Arguments& args, float* stage, QueryTile own, int first, int first_column, Online& rows) {
        float* weights = stage + STAGE;
        const int key_head = key_head_of(own.head);
        float s[4][4] = {};
        multiply_rows(s, stage, QueryRows<Q>{args, own, queries(args)},
                      KeyRows<Segment, typename Segment::Keys>{args, first, own.batch, key_head});
        bool taken[4];
        taken_columns<Segment>(args, first, own.batch, taken);
        UNROLL for (int i = 0; i < 4; ++i) {
            scale_scores(s[i]);
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
            UNROLL for (int j = 0; j < 4; ++j) {
                s[i][j] = exp2_approximate((s[i][j] - base) * EXPONENT);
                rows.sum[i] += s[i][j];
            }
            UNROLL for (int part = 0; part < PARTS; ++part) {
                UNROLL for (int j = 0; j < 4; ++j) rows.out[i][part][j] *= factor;
            }
        }
        write_weights(weights, s);
        multiply_columns(rows.out, weights, stage, first_column,
                         KeyRows<Segment, typename Segment::Values>{args, first, own.batch, key_head});
    }
};

struct StoreResult {
    DEVICE void run(const Arguments& args, QueryTile own, int count, int row, int column, const float (&value)[1][LANES]) {
        const float none[1] = {0.0f};
        if (own.first + row < count) epilogue<LANES>(args, own.batch, own.first + row, own.head, column, value, none);
    }
};

KERNEL void __launch_bounds__(THREADS) attention(const __grid_constant__ Arguments args) {
    SHARED_MEMORY(shared);
    float* stage = reinterpret_cast<float*>(shared);
    const int count = queries(args);
    const u32 chunks = u32((HEAD_SIZE + COLUMNS - 1) / COLUMNS);
    const QueryTile own = query_tile(blockIdx.x / chunks, count, ROWS);
    const int first_column = int(blockIdx.x % chunks) * COLUMNS;

    Online rows;
    clear(rows.out);
    UNROLL for (int i = 0; i < 4; ++i) {
        rows.largest[i] = -INFINITE;
        rows.sum[i] = 0.0f;
    }
    for (KeyCursor at = first_keys(args); at.segment < SEGMENTS; advance(args, at, ROWS)) {
        with_segment<AddKeys>(at.segment, args, stage, own, at.first, first_column, rows);
    }
    UNROLL for (int i = 0; i < 4; ++i) {
        const float total = sum_of_row(rows.sum[i]);
        const float factor = total == 0.0f ? 0.0f : 1.0f / total;
        UNROLL for (int part = 0; part < PARTS; ++part) {
            UNROLL for (int j = 0; j < 4; ++j) rows.out[i][part][j] *= factor;
        }
    }
    store_rows<StoreResult>(rows.out, first_column, args, own, count);
}
