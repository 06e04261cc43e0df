// Parts whose groups, or whose segments, are wider than a tile: `matmul` leaves their accumulators in scratch memory, as products of one
// segment; then this kernel does the rest, WIDE_ROWS rows to a block.
//
// Slots: int wide_blocks(args), the blocks of a part; each_wide(args, u32 number, body), which calls body.run<P>(part) with the struct of the
// wide part of that number; const float* P::accumulators(args, part, batch, row), of which P::ALIGNED divides what rows and groups begin with.
// Constants: THREADS, WIDE_ROWS.
#pragma once

#include "matmul/epilogue.cuh"

struct WideBody {
    const Arguments& args;
    int block;

    template <class P>
    METHOD void run(int part) {
        const int tiles = ceil_div(rows(args), WIDE_ROWS);
        const int batch = block / tiles, row0 = block % tiles * WIDE_ROWS;
        const int columns = P::columns(args, part);
        const Accumulators<P, P::ALIGNED> accumulators{P::accumulators(args, part, batch, row0), i64(columns) * P::SEGMENTS, columns};
        epilogue_rows<P>(args, part, batch, accumulators, row0, smaller(rows(args) - row0, WIDE_ROWS), 0, columns, columns);
    }
};

KERNEL void __launch_bounds__(THREADS) finish(const __grid_constant__ Arguments args) {
    const u32 each = u32(wide_blocks(args));
    WideBody body{args, int(blockIdx.x % each)};
    each_wide(args, blockIdx.x / each, body);
}
