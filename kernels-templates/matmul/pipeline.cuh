// The main loop of a contraction and its kernel: STAGES tiles of both factors in shared memory, of which all but one are on their way while
// that one is multiplied; then the epilogue, through the same shared memory.
//
// The instructions that multiply are a struct Multiply<Left tile, right tile> of the file that includes this one:
//
//   STEPS                                   parts of a tile along the depth, an even number
//   Fragments                               registers of one of them
//   void start()                            clears the accumulators
//   void load(Fragments&, left, right, step)     from the tiles in shared memory
//   void multiply(const Fragments&)
//   void write(float* staged, int slice)    accumulators of rows `slice` … `slice` + SLICE_ROWS, a row STAGED_ROW behind the other
//
// Slots: struct Left, a factor; each_part(args, part, body), which calls body.run<P>() with the struct of a part, a factor P::Right in it; int
// rows(args), int depth(args), and those of `scheduler/tiles.cuh`.
// Constants: STAGES, BLOCKS (of a multiprocessor), and those of the files below.
#pragma once

#include "matmul/epilogue.cuh"
#include "matmul/factor.cuh"
#include "scheduler/tiles.cuh"

struct LeftLines {
    int rows, row0;

    METHOD int left(int n) const { return rows - row0 - n; }
    METHOD int line(int n) const { return left(n) > 0 ? row0 + n : row0; }
};

// Columns of the right factor: a tile has P::TILE of every segment.
template <class P>
struct RightLines {
    int columns, column0;

    METHOD int left(int n) const {
        if constexpr (P::INTERLEAVED) {
            return n < P::TILE * P::SEGMENTS ? (columns - column0) * P::SEGMENTS - n : 0;
        } else {
            return n < P::TILE * P::SEGMENTS ? columns - column0 - n % P::TILE : 0;
        }
    }
    METHOD int line(int n) const {
        const int at = left(n) > 0 ? n : 0;
        if constexpr (P::INTERLEAVED) {
            return column0 * P::SEGMENTS + at;
        } else {
            return at / P::TILE * columns + column0 + at % P::TILE;
        }
    }
};

template <class P>
DEVICE void product(const Arguments& args, const TilePlace& place) {
    typedef FactorTile<Left, TILE_ROWS> LeftTile;
    typedef FactorTile<typename P::Right, TILE_COLUMNS> RightTile;
    typedef Multiply<LeftTile, RightTile> Multiplier;
    constexpr int STEPS = Multiplier::STEPS;
    static_assert(STEPS % 2 == 0, "the first fragments of a tile have the registers that the last but one had");
    constexpr int STAGE_BYTES = LeftTile::BYTES + RightTile::BYTES;
    SHARED_MEMORY(shared);
    const int part = place.part, batch = place.batch;
    const int row0 = place.row * TILE_ROWS, column0 = place.column * P::TILE;
    if constexpr (P::SYMMETRIC) {
        // Above the diagonal.
        if (column0 >= row0 + TILE_ROWS) return;
    }
    const LeftLines left_lines{rows(args), row0};
    const RightLines<P> right_lines{P::columns(args, part), column0};
    LeftTile left;
    RightTile right;
    left.start(args, left_lines, part, batch);
    right.start(args, right_lines, part, batch);
    const int whole_depth = depth(args), tiles = ceil_div(whole_depth, TILE_DEPTH);
    const auto begin = [&](int tile, unsigned char* stage) {
        left.begin(args, left_lines, part, batch, stage, tile * TILE_DEPTH, whole_depth);
        right.begin(args, right_lines, part, batch, stage + LeftTile::BYTES, tile * TILE_DEPTH, whole_depth);
    };
    const auto end = [&](unsigned char* stage) {
        left.end(stage);
        right.end(stage + LeftTile::BYTES);
    };
    UNROLL for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (stage < tiles) {
            begin(stage, shared + stage * STAGE_BYTES);
            end(shared + stage * STAGE_BYTES);
        }
        commit_copies();
    }
    Multiplier multiplier;
    multiplier.start();
    if (tiles > 0) {
        typename Multiplier::Fragments fragments[2];
        const unsigned char* read = shared;
        unsigned char* write = shared + (STAGES - 1) * STAGE_BYTES;
        const unsigned char* const behind = shared + STAGES * STAGE_BYTES;
        wait_copies<STAGES - 2>();
        __syncthreads();
        multiplier.load(fragments[0], read, read + LeftTile::BYTES, 0);
        _Pragma("unroll 1") for (int tile = 0; tile < tiles; ++tile) {
            const bool more = tile + STAGES - 1 < tiles;
            UNROLL for (int step = 0; step < STEPS; ++step) {
                if (step == STEPS - 1) {
                    if (more) end(write);
                    // The next tile is there; and the one before it, which the last fragments came from, may be written over.
                    write = const_cast<unsigned char*>(read);
                    wait_copies<STAGES - 2>();
                    __syncthreads();
                    read += STAGE_BYTES;
                    if (read == behind) read = shared;
                }
                multiplier.load(fragments[(step + 1) % 2], read, read + LeftTile::BYTES, (step + 1) % STEPS);
                if (step == 0) {
                    if (more) begin(tile + STAGES - 1, write);
                    commit_copies();
                }
                multiplier.multiply(fragments[step % 2]);
            }
        }
    }
    wait_copies<0>();
    float* const staged = reinterpret_cast<float*>(shared);
    _Pragma("unroll 1") for (int slice = 0; slice < TILE_ROWS; slice += SLICE_ROWS) {
        __syncthreads();
        multiplier.write(staged, slice);
        __syncthreads();
        epilogue_slice<P>(args, part, batch, staged, row0 + slice, column0);
    }
}

struct TileBody {
    const Arguments& args;
    const TilePlace& place;

    template <class P>
    METHOD void run() {
        product<P>(args, place);
    }
};

KERNEL void __launch_bounds__(THREADS, BLOCKS) matmul(const __grid_constant__ Arguments args) {
    const TilePlace place = tile_place(args, blockIdx.x);
    TileBody body{args, place};
    each_part(args, place.part, body);
}
