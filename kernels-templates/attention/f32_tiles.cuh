// Products of 64 rows by 64 columns in f32, by 256 threads as 16 x 16: thread (y, x) has rows 4y … 4y + 3 and columns 4x … 4x + 3. Factors
// come through shared memory in pieces, so that a head may have any size.
//
// Constants: HEAD_SIZE, COLUMNS (of the head, that a block computes of a result: a multiple of 64), LANES (1 or 4, divides HEAD_SIZE).
// Factors are QueryRows and KeyRows: columns_of(factor, row, column) gives LANES neighbouring columns of a row counted from the tile's first.
#pragma once

#include "attention/keys.cuh"

constexpr int THREADS = 256;
constexpr int ROWS = 64;
constexpr int DEPTH = 32;
// Rows of 64 numbers that 16 bytes are loaded from at a time, in different banks for neighbouring rows.
constexpr int PITCH = ROWS + 4;
constexpr int PARTS = COLUMNS / 64;
constexpr int COLUMN_PITCH = COLUMNS + 4;

DEVICE constexpr int larger(int a, int b) { return a > b ? a : b; }
// Floats of the pieces of factors, and of probabilities.
constexpr int STAGE = larger(2 * DEPTH * PITCH, DEPTH * COLUMN_PITCH);
constexpr int WEIGHTS = ROWS * PITCH;

DEVICE int tile_x() { return int(threadIdx.x) % 16; }
DEVICE int tile_y() { return int(threadIdx.x) / 16; }

template <int N>
DEVICE void read_shared(const float* from, float (&to)[N]) {
    UNROLL for (int i = 0; i < N; i += 4) {
        const Chunk<16> chunk = *reinterpret_cast<const Chunk<16>*>(from + i);
        UNROLL for (int l = 0; l < 4; ++l) to[i + l] = __uint_as_float(chunk.words[l]);
    }
}

DEVICE void write_shared(float* to, float a, float b, float c, float d) {
    *reinterpret_cast<Chunk<16>*>(to) =
        Chunk<16>{{__float_as_uint(a), __float_as_uint(b), __float_as_uint(c), __float_as_uint(d)}};
}

// Columns `first` … of 64 rows of a factor, transposed.
template <class Factor>
DEVICE void stage_transposed(float* stage, int first, const Factor& factor) {
    UNROLL for (int at = 0; at < ROWS * DEPTH / LANES; at += THREADS) {
        const int number = at + int(threadIdx.x);
        // Neighbouring threads store neighbouring numbers.
        const int row = number % ROWS, column = number / ROWS * LANES;
        Lanes<float, LANES> value{};
        if (first + column < HEAD_SIZE) value = columns_of(factor, row, first + column);
        UNROLL for (int l = 0; l < LANES; ++l) stage[(column + l) * PITCH + row] = value.at[l];
    }
}

// c[i][j] += Σ a(row i, ·) b(row j, ·) over the head.
template <class A, class B>
DEVICE void multiply_rows(float (&c)[4][4], float* stage, const A& a, const B& b) {
    for (int first = 0; first < HEAD_SIZE; first += DEPTH) {
        __syncthreads();
        stage_transposed(stage, first, a);
        stage_transposed(stage + DEPTH * PITCH, first, b);
        __syncthreads();
#pragma unroll 4
        for (int d = 0; d < DEPTH; ++d) {
            float left[4], right[4];
            read_shared(stage + d * PITCH + 4 * tile_y(), left);
            read_shared(stage + (DEPTH + d) * PITCH + 4 * tile_x(), right);
            UNROLL for (int i = 0; i < 4; ++i) {
                UNROLL for (int j = 0; j < 4; ++j) c[i][j] = fmaf(left[i], right[j], c[i][j]);
            }
        }
    }
}

// Puts weights p(row, column) where `multiply_columns` finds them.
DEVICE void write_weights(float* weights, const float (&p)[4][4]) {
    // Others may still read the last ones.
    __syncthreads();
    UNROLL for (int j = 0; j < 4; ++j) {
        write_shared(weights + (4 * tile_x() + j) * PITCH + 4 * tile_y(), p[0][j], p[1][j], p[2][j], p[3][j]);
    }
}

// c[i][part][j] += Σ p(row i, k) b(row k, column), the column being first + 64 part + 4x + j.
template <class B>
DEVICE void multiply_columns(float (&c)[4][PARTS][4], const float* weights, float* stage, int first, const B& b) {
    for (int k0 = 0; k0 < ROWS; k0 += DEPTH) {
        __syncthreads();
        UNROLL for (int at = 0; at < DEPTH * COLUMNS / LANES; at += THREADS) {
            const int number = at + int(threadIdx.x);
            const int row = number / (COLUMNS / LANES), column = number % (COLUMNS / LANES) * LANES;
            Lanes<float, LANES> value{};
            if (first + column < HEAD_SIZE) value = columns_of(b, k0 + row, first + column);
            UNROLL for (int l = 0; l < LANES; ++l) stage[row * COLUMN_PITCH + column + l] = value.at[l];
        }
        __syncthreads();
#pragma unroll 4
        for (int k = 0; k < DEPTH; ++k) {
            float left[4];
            read_shared(weights + (k0 + k) * PITCH + 4 * tile_y(), left);
            UNROLL for (int part = 0; part < PARTS; ++part) {
                float right[4];
                read_shared(stage + k * COLUMN_PITCH + 64 * part + 4 * tile_x(), right);
                UNROLL for (int i = 0; i < 4; ++i) {
                    UNROLL for (int j = 0; j < 4; ++j) c[i][part][j] = fmaf(left[i], right[j], c[i][part][j]);
                }
            }
        }
    }
}

DEVICE void clear(float (&c)[4][PARTS][4]) {
    UNROLL for (int i = 0; i < 4; ++i) {
        UNROLL for (int part = 0; part < PARTS; ++part) {
            UNROLL for (int j = 0; j < 4; ++j) c[i][part][j] = 0.0f;
        }
    }
}

// Calls Store::run(arguments…, row, column, value) with LANES neighbouring columns of the thread's results at a time.
template <class Store, class... Rest>
DEVICE void store_rows(const float (&c)[4][PARTS][4], int first, const Rest&... rest) {
    UNROLL for (int i = 0; i < 4; ++i) {
        UNROLL for (int part = 0; part < PARTS; ++part) {
            const int column = first + 64 * part + 4 * tile_x();
            UNROLL for (int j = 0; j < 4; j += LANES) {
                float value[1][LANES];
                UNROLL for (int l = 0; l < LANES; ++l) value[0][l] = c[i][part][j + l];
                if (column + j < HEAD_SIZE) Store::run(rest..., 4 * tile_y() + i, column + j, value);
            }
        }
    }
}

// Combined over the 16 threads that share rows.
DEVICE float largest_of_row(float x) {
    UNROLL for (int bits = 8; bits; bits /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, bits));
    return x;
}
DEVICE float sum_of_row(float x) {
    UNROLL for (int bits = 8; bits; bits /= 2) x += __shfl_xor_sync(0xffffffffu, x, bits);
    return x;
}

// Rows of an operand of queries as a factor.
template <class Operand>
struct QueryRows {
    const Arguments& args;
    QueryTile at;
    int queries;
};

template <class Operand>
DEVICE Lanes<float, LANES> columns_of(const QueryRows<Operand>& rows, int row, int column) {
    const int query = rows.at.first + row;
    if (query >= rows.queries) return Lanes<float, LANES>{};
    return Operand::template at<LANES>(rows.args, rows.at.batch, query, rows.at.head, column);
}

// Rows of keys or values as a factor; those that are not taken are 0.
template <class Segment, class Operand>
struct KeyRows {
    const Arguments& args;
    int first, batch, head;
};

template <class Segment, class Operand>
DEVICE Lanes<float, LANES> columns_of(const KeyRows<Segment, Operand>& rows, int row, int column) {
    const int key = rows.first + row;
    if (!Segment::taken(rows.args, rows.batch, key)) return Lanes<float, LANES>{};
    return Operand::template at<LANES>(rows.args, rows.batch, key, rows.head, column);
}

// Which of the thread's keys are taken: its columns of a tile of scores.
template <class Segment>
DEVICE void taken_columns(const Arguments& args, int first, int batch, bool (&taken)[4]) {
    UNROLL for (int j = 0; j < 4; ++j) taken[j] = Segment::taken(args, batch, first + 4 * tile_x() + j);
}
