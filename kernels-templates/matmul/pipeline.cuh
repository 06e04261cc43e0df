// The main loop of a contraction and its kernel: STAGES tiles of both factors in shared memory, of which all but one are on their way while
// that one is multiplied; then the epilogue, through the same shared memory. A right factor that is widened is on its way as bytes; behind the
// stages lie two tiles for it, one that is multiplied and the next one.
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
// Constants: STAGES, BLOCKS (of a multiprocessor), ONE_LOOP (1 if the right factors of all parts are moved as that of the first struct is), and
// those of the files below.
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

// A block's tile: its factors and its place.
template <class RightFactor>
struct TileLoop {
    typedef FactorTile<Left, TILE_ROWS> LeftTile;
    typedef FactorTile<RightFactor, TILE_COLUMNS> RightTile;
    typedef Multiply<LeftTile, RightTile> Multiplier;
    static constexpr int STEPS = Multiplier::STEPS;
    static constexpr int STAGE_BYTES = LeftTile::STAGE_BYTES + RightTile::STAGE_BYTES;
    static_assert(!LeftTile::WIDENED, "only right factors are widened");
    static_assert(STEPS % 2 == 0, "the first fragments of a tile have the registers that the last but one had");

    const Arguments& args;
    const TilePlace& place;
    unsigned char* const shared;
    LeftTile left;
    RightTile right;
    Multiplier multiplier;

    METHOD TileLoop(const Arguments& args, const TilePlace& place, unsigned char* shared) : args(args), place(place), shared(shared) {}

    METHOD LeftLines left_lines() const { return {rows(args), place.row * TILE_ROWS}; }

    template <class P>
    METHOD RightLines<P> right_lines() const {
        return {P::columns(args, place.part), place.column * P::TILE};
    }

    // The factors of a part; false if nothing is to be done.
    template <class P>
    METHOD bool start() {
        // Above the diagonal.
        if (P::SYMMETRIC && place.column * P::TILE >= (place.row + 1) * TILE_ROWS) return false;
        left.template start<Left>(args, left_lines(), place.part, place.batch);
        right.template start<typename P::Right>(args, right_lines<P>(), place.part, place.batch);
        return true;
    }

    template <class Lines>
    METHOD void begin(const Lines& lines, int tile, int whole_depth, unsigned char* stage) {
        left.begin(args, left_lines(), place.part, place.batch, stage, tile * TILE_DEPTH, whole_depth);
        right.begin(args, lines, place.part, place.batch, stage + LeftTile::BYTES, tile * TILE_DEPTH, whole_depth);
    }

    METHOD void end(unsigned char* stage) {
        left.end(stage);
        right.end(stage + LeftTile::BYTES);
    }

    // Where the right factor of a tile whose stage that is lies.
    METHOD unsigned char* right_tile(const unsigned char* stage, int tile) const {
        if constexpr (RightTile::WIDENED) {
            return shared + STAGES * STAGE_BYTES + (tile & 1) * RightTile::BYTES;
        } else {
            return const_cast<unsigned char*>(stage) + LeftTile::BYTES;
        }
    }

    METHOD void widen(const unsigned char* stage, int tile) const {
        right.widen_stage(stage + LeftTile::BYTES, right_tile(stage, tile));
    }

    // The products. `lines` are those of the right factor if it is computed.
    template <class Lines>
    METHOD void run(const Lines& lines) {
        const int whole_depth = depth(args), tiles = ceil_div(whole_depth, TILE_DEPTH);
        UNROLL for (int stage = 0; stage < STAGES - 1; ++stage) {
            if (stage < tiles) {
                begin(lines, stage, whole_depth, shared + stage * STAGE_BYTES);
                end(shared + stage * STAGE_BYTES);
            }
            commit_copies();
        }
        multiplier.start();
        if (tiles > 0) {
            typename Multiplier::Fragments fragments[2];
            const unsigned char* read = shared;
            unsigned char* write = shared + (STAGES - 1) * STAGE_BYTES;
            const unsigned char* const behind = shared + STAGES * STAGE_BYTES;
            wait_copies<STAGES - 2>();
            widen(read, 0);
            __syncthreads();
            multiplier.load(fragments[0], read, right_tile(read, 0), 0);
            _Pragma("unroll 1") for (int tile = 0; tile < tiles; ++tile) {
                const bool more = tile + STAGES - 1 < tiles;
                UNROLL for (int step = 0; step < STEPS; ++step) {
                    if (step == STEPS - 1) {
                        if (more) end(write);
                        // The next tile is there; and the one before it, which the last fragments came from, may be written over.
                        write = const_cast<unsigned char*>(read);
                        wait_copies<STAGES - 2>();
                        read += STAGE_BYTES;
                        if (read == behind) read = shared;
                        if (RightTile::WIDENED && tile + 1 < tiles) widen(read, tile + 1);
                        __syncthreads();
                    }
                    const int next = step == STEPS - 1 ? tile + 1 : tile;
                    multiplier.load(fragments[(step + 1) % 2], read, right_tile(read, next), (step + 1) % STEPS);
                    if (step == 0) {
                        if (more) begin(lines, tile + STAGES - 1, whole_depth, write);
                        commit_copies();
                    }
                    multiplier.multiply(fragments[step % 2]);
                }
            }
        }
        wait_copies<0>();
    }

    template <class P>
    METHOD void epilogue() {
        float* const staged = reinterpret_cast<float*>(shared);
        _Pragma("unroll 1") for (int slice = 0; slice < TILE_ROWS; slice += SLICE_ROWS) {
            __syncthreads();
            multiplier.write(staged, slice);
            __syncthreads();
            epilogue_slice<P>(args, place.part, place.batch, staged, place.row * TILE_ROWS + slice, place.column * P::TILE);
        }
    }
};

struct NoLines {};

// Parts whose right factors are moved in different ways have main loops of their own.
struct TileBody {
    const Arguments& args;
    const TilePlace& place;
    unsigned char* shared;

    template <class P>
    METHOD void run() {
        TileLoop<typename P::Right> loop(args, place, shared);
        if (!loop.template start<P>()) return;
        loop.run(loop.template right_lines<P>());
        loop.template epilogue<P>();
    }
};

template <class Loop>
struct StartBody {
    Loop& loop;
    bool started;

    template <class P>
    METHOD void run() {
        started = loop.template start<P>();
    }
};

template <class Loop>
struct EpilogueBody {
    Loop& loop;

    template <class P>
    METHOD void run() {
        loop.template epilogue<P>();
    }
};

KERNEL void __launch_bounds__(THREADS, BLOCKS) matmul(const __grid_constant__ Arguments args) {
    SHARED_MEMORY(shared);
    const TilePlace place = tile_place(args, blockIdx.x);
    if constexpr (ONE_LOOP) {
        typedef TileLoop<Right0> Loop;
        Loop loop(args, place, shared);
        StartBody<Loop> start{loop, false};
        each_part(args, place.part, start);
        if (!start.started) return;
        loop.run(NoLines{});
        EpilogueBody<Loop> epilogue{loop};
        each_part(args, place.part, epilogue);
    } else {
        TileBody body{args, place, shared};
        each_part(args, place.part, body);
    }
}
