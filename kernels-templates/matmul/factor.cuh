// A factor of a contraction on its way to shared memory: a tile of TILE_DEPTH elements along the depth by LINES lines, which are rows of
// the left or columns of the right factor.
//
// The tile keeps the order of memory: rows of TILE_DEPTH elements, one for each line, if neighbours along the depth lie side by side
// (DEPTH_MAJOR), else rows of LINES elements, one for each element of the depth. The 16-byte units of a row are permuted by the row's
// number (`swizzle`), so that the eight rows that ldmatrix, or a quarter of a warp, reads at a time lie in different banks.
//
// A factor F is printed as a struct:
//
//   DEPTH_MAJOR    neighbours along the depth, not along the lines, lie side by side
//   ELEMENTS       how many of them are moved at a time; a power of two
//   COMPUTED       false: moved by cp.async from `address`; true: computed by `value` and stored
//   WIDENED        moved as the bytes that it has in memory, and made elements of the tile once they are there; right factors alone
//   Stored         its element type in memory: Product, or a byte if it is widened
//   WHOLE_DEPTH    ELEMENTS divides the depth
//   WHOLE_LINES    ELEMENTS divides the number of lines
//   static const Stored* address(args, part, batch, line)                    at depth 0
//   static i64 step(args, part)                                              from one element of the depth to the next
//   static Lanes<float, V> value<V>(args, part, batch, line, depth)          V of them side by side
//
// `Lines`, given by the kernel, has `int line(int n)`, the number in the tensor of the tile's line n, some valid one if the tensor ends
// before, and `int left(int n)`, how many lines the tensor has from there on.
//
// Constants: THREADS, TILE_DEPTH, EVEN_DEPTH (1 if TILE_DEPTH divides the depth). Types: Product, the element type.
#pragma once

#include "ptx/async_copy.cuh"
#include "ptx/widen.cuh"

// What is added without carry to a byte's place in a row of ROW_BYTES, a power of two.
template <int ROW_BYTES>
DEVICE int swizzle(int row) {
    constexpr int UNITS = ROW_BYTES / 16;
    if constexpr (UNITS >= 8) {
        return (row & 7) * 16;
    } else {
        return (row / (8 / UNITS) & (UNITS - 1)) * 16;
    }
}

template <class F, int LINES>
struct FactorTile {
    static constexpr bool DEPTH_MAJOR = F::DEPTH_MAJOR;
    static constexpr bool WIDENED = F::WIDENED;
    static constexpr int SIZE = int(sizeof(Product)), STORED_SIZE = int(sizeof(typename F::Stored));
    static constexpr int BYTES = LINES * TILE_DEPTH * SIZE;
    // What a stage of the pipeline holds: the tile, or the bytes that it is made of, those of a thread and pass after the other.
    static constexpr int STAGE_BYTES = LINES * TILE_DEPTH * STORED_SIZE;
    static constexpr int ROW_BYTES = (DEPTH_MAJOR ? TILE_DEPTH : LINES) * SIZE;
    static constexpr int MOVE_BYTES = F::ELEMENTS * SIZE, COPY_BYTES = F::ELEMENTS * STORED_SIZE;
    static constexpr int PER_ROW = ROW_BYTES / MOVE_BYTES;
    static constexpr int MOVES = BYTES / MOVE_BYTES;
    static constexpr int PASSES = (MOVES + THREADS - 1) / THREADS;
    // Passes that it takes to cross a row; all others repeat their places in the row.
    static constexpr int ACROSS = PER_ROW > THREADS ? PER_ROW / THREADS : 1;
    static constexpr int POINTERS = F::COMPUTED ? 1 : DEPTH_MAJOR ? PASSES : ACROSS;
    static_assert(PER_ROW % THREADS == 0 || THREADS % PER_ROW == 0, "moves of a row and threads are powers of two");
    static_assert(!DEPTH_MAJOR || ACROSS == 1, "a block is not narrower than a row along the depth");

    const typename F::Stored* pointer[POINTERS];
    int left[POINTERS];
    i64 step;
    Chunk<F::COMPUTED ? MOVE_BYTES : 4> held[F::COMPUTED ? PASSES : 1];

    METHOD bool moves(int pass) const { return MOVES % THREADS == 0 || int(threadIdx.x) + pass * THREADS < MOVES; }
    METHOD int row(int pass) const { return (int(threadIdx.x) + pass * THREADS) / PER_ROW; }
    METHOD int element(int pass) const { return (int(threadIdx.x) + pass * THREADS) % PER_ROW * F::ELEMENTS; }
    // Of an element, a multiple of those in 16 bytes after the first that is moved.
    METHOD int place(int pass, int after = 0) const {
        return row(pass) * ROW_BYTES + (((element(pass) + after) * SIZE) ^ swizzle<ROW_BYTES>(row(pass)));
    }
    METHOD int stored_place(int pass) const { return (int(threadIdx.x) + pass * THREADS) * COPY_BYTES; }

    // Before the first tile. `From` is a factor that is moved in the same way as F.
    template <class From, class Lines>
    METHOD void start(const Arguments& args, const Lines& lines, int part, int batch) {
        if constexpr (!F::COMPUTED) {
            step = From::step(args, part);
            UNROLL for (int p = 0; p < POINTERS; ++p) {
                const int line = DEPTH_MAJOR ? row(p) : element(p);
                left[p] = lines.left(line);
                pointer[p] = From::address(args, part, batch, lines.line(line)) + step * (DEPTH_MAJOR ? element(p) : row(p));
            }
        }
    }

    // Moves the tile at `first` of `depth` elements; tiles are moved in order.
    template <class Lines>
    METHOD void begin(const Arguments& args, const Lines& lines, int part, int batch, unsigned char* to, int first, int depth) {
        UNROLL for (int pass = 0; pass < PASSES; ++pass) {
            if (!moves(pass)) break;
            if constexpr (F::COMPUTED) {
                compute(args, lines, part, batch, pass, first, depth);
            } else {
                copy(shared_address(to + (WIDENED ? stored_place(pass) : place(pass))), pass, first, depth);
            }
        }
        if constexpr (!F::COMPUTED) {
            UNROLL for (int p = 0; p < POINTERS; ++p) pointer[p] += step * TILE_DEPTH;
        }
    }

    METHOD void copy(SharedAddress to, int pass, int first, int depth) const {
        const int p = pass % POINTERS;
        const typename F::Stored* from = pointer[p];
        if constexpr (DEPTH_MAJOR) {
            const int behind = depth - first - element(pass);
            if constexpr (EVEN_DEPTH) {
                copy_async<COPY_BYTES>(to, from);
            } else if constexpr (F::WHOLE_DEPTH) {
                copy_async_if<COPY_BYTES>(to, from, behind > 0);
            } else {
                copy_async<COPY_BYTES>(to, from, smaller(behind > 0 ? behind : 0, F::ELEMENTS) * STORED_SIZE);
            }
        } else {
            from += step * (row(pass) - row(p));
            const bool inside = EVEN_DEPTH || first + row(pass) < depth;
            if constexpr (EVEN_DEPTH && F::WHOLE_LINES) {
                copy_async<COPY_BYTES>(to, from);
            } else if constexpr (F::WHOLE_LINES) {
                copy_async_if<COPY_BYTES>(to, from, inside);
            } else {
                copy_async<COPY_BYTES>(to, from, smaller(inside && left[p] > 0 ? left[p] : 0, F::ELEMENTS) * STORED_SIZE);
            }
        }
    }

    template <class Lines>
    METHOD void compute(const Arguments& args, const Lines& lines, int part, int batch, int pass, int first, int depth) {
        const int n = DEPTH_MAJOR ? row(pass) : element(pass), k = first + (DEPTH_MAJOR ? element(pass) : row(pass));
        const int line = lines.line(n);
        const int inside = DEPTH_MAJOR ? depth - k : k < depth ? lines.left(n) : 0;
        union {
            Chunk<MOVE_BYTES> chunk;
            Product element[F::ELEMENTS];
        } part_of_row;
        if (inside >= F::ELEMENTS) {
            const auto values = F::template value<F::ELEMENTS>(args, part, batch, line, k);
            UNROLL for (int e = 0; e < F::ELEMENTS; ++e) store(&part_of_row.element[e], values.at[e]);
        } else {
            UNROLL for (int e = 0; e < F::ELEMENTS; ++e) {
                float value = 0.0f;
                if (e < inside) {
                    value = F::template value<1>(args, part, batch, DEPTH_MAJOR ? line : line + e, DEPTH_MAJOR ? k + e : k).at[0];
                }
                store(&part_of_row.element[e], value);
            }
        }
        held[pass] = part_of_row.chunk;
    }

    // Stores what `begin` computed. Between the two a warp may do other things.
    METHOD void end(unsigned char* to) const {
        if constexpr (F::COMPUTED) {
            UNROLL for (int pass = 0; pass < PASSES; ++pass) {
                if (moves(pass)) *reinterpret_cast<Chunk<MOVE_BYTES>*>(to + place(pass)) = held[pass];
            }
        }
    }

    // Makes a tile of a stage: of the bytes that the thread copied itself, so that nobody else need have finished.
    METHOD void widen_stage(const unsigned char* stage, unsigned char* to) const {
        if constexpr (WIDENED) {
            // A thread moves two units of 16 bytes or more. Where threads go on in the row, every other four begin with the second, so that
            // eight of them write to all banks.
            constexpr int UNIT = smaller(16 / SIZE, F::ELEMENTS), UNITS = F::ELEMENTS / UNIT, WORDS = UNIT / 4;
            const bool turned = UNITS == 2 && PER_ROW >= 8 && (threadIdx.x & 4) != 0;
            UNROLL for (int pass = 0; pass < PASSES; ++pass) {
                if (!moves(pass)) break;
                const auto bytes = *reinterpret_cast<const Chunk<COPY_BYTES>*>(stage + stored_place(pass));
                UNROLL for (int n = 0; n < UNITS; ++n) {
                    const int unit = turned ? UNITS - 1 - n : n;
                    union {
                        Chunk<UNIT * SIZE> chunk;
                        decltype(widen(0u, Product())) words[WORDS];
                    } wide;
                    UNROLL for (int w = 0; w < WORDS; ++w) {
                        const u32 word = turned ? bytes.words[(UNITS - 1 - n) * WORDS + w] : bytes.words[n * WORDS + w];
                        wide.words[w] = widen(word, Product());
                    }
                    *reinterpret_cast<Chunk<UNIT * SIZE>*>(to + place(pass, unit * UNIT)) = wide.chunk;
                }
            }
        }
    }
};
