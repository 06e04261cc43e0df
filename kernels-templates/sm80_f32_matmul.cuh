// matmul and grouped_matmul in f32, by fused multiply-adds: one tile of TILE_ROWS x TILE_COLUMNS accumulators for a block.
//
// A warp is 8 threads high and 4 wide; a thread has THREAD_ROWS x THREAD_COLUMNS accumulators. Fragments are four elements of the depth, 16 bytes
// at a time. Threads that read at a time read from rows beside each other, which `swizzle` keeps in different banks: where neighbours along
// the depth lie side by side, a thread's lines are those that are 8, or 4, apart; else groups of four neighbours.
//
// Slots and other constants: see `matmul/pipeline.cuh`. Constants: WARPS_ACROSS, warps side by side along the columns; THREAD_ROWS, THREAD_COLUMNS,
// multiples of 4.
#pragma once

#include "matmul/epilogue.cuh"
#include "matmul/factor.cuh"

// The lines of a thread that is number `at` of PLACES beside each other, of LINES each.
template <class Tile, int PLACES, int LINES>
struct ThreadLines {
    int line0, at;

    METHOD int line(int i) const {
        if constexpr (Tile::DEPTH_MAJOR) {
            return line0 + at + i * PLACES;
        } else {
            return line0 + at * 4 + i / 4 * 4 * PLACES + i % 4;
        }
    }

    // Four elements of the depth from `4 * step`.
    METHOD void load(float (&value)[4][LINES], const unsigned char* tile, int step) const {
        UNROLL for (int i = 0; i < LINES; i += Tile::DEPTH_MAJOR ? 1 : 4) {
            const int n = line(i);
            if constexpr (Tile::DEPTH_MAJOR) {
                const int place = n * Tile::ROW_BYTES + (step * 16 ^ swizzle<Tile::ROW_BYTES>(n));
                float part[4];
                load_lanes<4>(reinterpret_cast<const float*>(tile + place), part);
                UNROLL for (int k = 0; k < 4; ++k) value[k][i] = part[k];
            } else {
                UNROLL for (int k = 0; k < 4; ++k) {
                    const int row = step * 4 + k;
                    const int place = row * Tile::ROW_BYTES + (n * 4 ^ swizzle<Tile::ROW_BYTES>(row));
                    float part[4];
                    load_lanes<4>(reinterpret_cast<const float*>(tile + place), part);
                    UNROLL for (int l = 0; l < 4; ++l) value[k][i + l] = part[l];
                }
            }
        }
    }
};

template <class LeftTile, class RightTile>
struct Multiply {
    static constexpr int WARP_ROWS = 8 * THREAD_ROWS, WARP_COLUMNS = 4 * THREAD_COLUMNS;
    static constexpr int STEPS = TILE_DEPTH / 4;
    static_assert(THREADS / 32 * WARP_ROWS * WARP_COLUMNS == TILE_ROWS * TILE_COLUMNS, "warps cover the tile");

    struct Fragments {
        float a[4][THREAD_ROWS], b[4][THREAD_COLUMNS];
    };

    ThreadLines<LeftTile, 8, THREAD_ROWS> left;
    ThreadLines<RightTile, 4, THREAD_COLUMNS> right;
    float c[THREAD_ROWS][THREAD_COLUMNS];

    METHOD void start() {
        const int warp = int(threadIdx.x / 32), lane = int(threadIdx.x % 32);
        left.line0 = warp / WARPS_ACROSS * WARP_ROWS;
        left.at = lane / 4;
        right.line0 = warp % WARPS_ACROSS * WARP_COLUMNS;
        right.at = lane % 4;
        UNROLL for (int i = 0; i < THREAD_ROWS; ++i) {
            UNROLL for (int j = 0; j < THREAD_COLUMNS; ++j) c[i][j] = 0.0f;
        }
    }

    METHOD void load(Fragments& fragments, const unsigned char* a, const unsigned char* b, int step) const {
        left.load(fragments.a, a, step);
        right.load(fragments.b, b, step);
    }

    METHOD void multiply(const Fragments& fragments) {
        UNROLL for (int k = 0; k < 4; ++k) {
            UNROLL for (int i = 0; i < THREAD_ROWS; ++i) {
                UNROLL for (int j = 0; j < THREAD_COLUMNS; ++j) c[i][j] = fmaf(fragments.a[k][i], fragments.b[k][j], c[i][j]);
            }
        }
    }

    METHOD void write(float* staged, int slice) const {
        UNROLL for (int i = 0; i < THREAD_ROWS; ++i) {
            const int row = left.line(i) - slice;
            if (row < 0 || row >= SLICE_ROWS) continue;
            UNROLL for (int j = 0; j < THREAD_COLUMNS; ++j) staged[row * STAGED_ROW + right.line(j)] = c[i][j];
        }
    }
};

#include "matmul/pipeline.cuh"
