// matmul and grouped_matmul in bf16 or f16 with f32 accumulators, by mma.sync: one tile of TILE_ROWS x TILE_COLUMNS accumulators for a block.
//
// Tiles of both factors lie in shared memory in the order of memory, whichever it is: fragments are loaded by ldmatrix, transposed where a
// factor's neighbours along the depth do not lie side by side. Fragments of the next step are loaded while those of one are multiplied.
//
// Slots and other constants: see `matmul/pipeline.cuh`. Constants: WARPS_ACROSS, warps side by side along the columns; a warp has an equal share
// of the tile, a multiple of 16 rows and columns.
#pragma once

#include "matmul/epilogue.cuh"
#include "matmul/factor.cuh"
#include "ptx/matrix.cuh"

// Where the lanes of a warp find the rows of four 8x8 matrices: 16 lines by 16 elements of the depth. The matrices are numbered along the
// lines, then the depth, for the left factor, the other way round for the right one.
template <class Tile, bool RIGHT>
struct FragmentPlace {
    int row, flip;

    METHOD void start(int line0) {
        const int lane = int(threadIdx.x % 32), low = lane & 7;
        const int line8 = (RIGHT ? lane >> 4 : lane >> 3 & 1) * 8, depth8 = (RIGHT ? lane >> 3 & 1 : lane >> 4) * 8;
        if constexpr (Tile::DEPTH_MAJOR) {
            row = (line0 + low + line8) * Tile::ROW_BYTES;
            flip = depth8 * 2 ^ swizzle<Tile::ROW_BYTES>(low + line8);
        } else {
            row = (low + depth8) * Tile::ROW_BYTES;
            flip = (line0 + line8) * 2 ^ swizzle<Tile::ROW_BYTES>(low + depth8);
        }
    }

    // The matrices of lines from line0 + 16 * i, depth from 16 * step.
    METHOD void load(u32 (&matrix)[4], const unsigned char* tile, int i, int step) const {
        if constexpr (Tile::DEPTH_MAJOR) {
            load_matrices(matrix, shared_address(const_cast<unsigned char*>(tile)) + (row + i * 16 * Tile::ROW_BYTES + (flip ^ step * 32)));
        } else {
            load_matrices_transposed(matrix, shared_address(const_cast<unsigned char*>(tile)) + (row + step * 16 * Tile::ROW_BYTES + (flip ^ i * 32)));
        }
    }
};

template <class LeftTile, class RightTile>
struct Multiply {
    static constexpr int WARP_ROWS = TILE_ROWS / (THREADS / 32 / WARPS_ACROSS), WARP_COLUMNS = TILE_COLUMNS / WARPS_ACROSS;
    static constexpr int ROW_TILES = WARP_ROWS / 16, COLUMN_TILES = WARP_COLUMNS / 16;
    static constexpr int STEPS = TILE_DEPTH / 16;

    struct Fragments {
        u32 a[ROW_TILES][4], b[COLUMN_TILES][4];
    };

    FragmentPlace<LeftTile, false> left;
    FragmentPlace<RightTile, true> right;
    float c[ROW_TILES][COLUMN_TILES][2][4];

    METHOD int row0() const { return int(threadIdx.x / 32) / WARPS_ACROSS * WARP_ROWS; }
    METHOD int column0() const { return int(threadIdx.x / 32) % WARPS_ACROSS * WARP_COLUMNS; }

    METHOD void start() {
        left.start(row0());
        right.start(column0());
        UNROLL for (int i = 0; i < ROW_TILES; ++i) {
            UNROLL for (int j = 0; j < COLUMN_TILES; ++j) {
                UNROLL for (int n = 0; n < 8; ++n) c[i][j][n / 4][n % 4] = 0.0f;
            }
        }
    }

    METHOD void load(Fragments& fragments, const unsigned char* a, const unsigned char* b, int step) const {
        UNROLL for (int i = 0; i < ROW_TILES; ++i) left.load(fragments.a[i], a, i, step);
        UNROLL for (int j = 0; j < COLUMN_TILES; ++j) right.load(fragments.b[j], b, j, step);
    }

    METHOD void multiply(const Fragments& fragments) {
        UNROLL for (int i = 0; i < ROW_TILES; ++i) {
            UNROLL for (int j = 0; j < COLUMN_TILES; ++j) {
                UNROLL for (int half = 0; half < 2; ++half) {
                    const u32(&b)[4] = fragments.b[j];
                    multiply_add<Product>(c[i][j][half], fragments.a[i], b[2 * half], b[2 * half + 1]);
                }
            }
        }
    }

    METHOD void write(float* staged, int slice) const {
        const int lane = int(threadIdx.x % 32);
        UNROLL for (int i = 0; i < ROW_TILES; ++i) {
            const int row = row0() + i * 16 - slice;
            if (row < 0 || row >= SLICE_ROWS) continue;
            float* const at = staged + (row + lane / 4) * STAGED_ROW + column0() + lane % 4 * 2;
            UNROLL for (int j = 0; j < COLUMN_TILES; ++j) {
                UNROLL for (int half = 0; half < 2; ++half) {
                    const float(&values)[4] = c[i][j][half];
                    const float upper[2] = {values[0], values[1]}, lower[2] = {values[2], values[3]};
                    store_lanes<2>(at + j * 16 + half * 8, upper);
                    store_lanes<2>(at + 8 * STAGED_ROW + j * 16 + half * 8, lower);
                }
            }
        }
    }
};

#include "matmul/pipeline.cuh"
