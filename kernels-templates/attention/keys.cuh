// What all kernels of attention share: walking through the tiles of keys of all segments, and which keys of a tile take part.
//
// Constants: SEGMENTS, SCALE (a float). Printed with the slots:
//
//   struct SegmentN { Keys; Values; MASKED; int length(args); bool taken(args, batch, key) }
//   int segment_length(args, segment)
//   void with_segment<F>(segment, arguments…): F::run<SegmentN>(arguments…) for the segment of that number
//
// Taken are keys within the length that the mask leaves in.
#pragma once

#include "ptx/exp2.cuh"

constexpr float LOG2_E = 1.44269504f;
// Probabilities are 2^(s * EXPONENT) over their sum. A scale that is not positive is multiplied into the scores, so that the largest
// score always is that of the largest probability.
constexpr bool SCALE_FOLDS = SCALE > 0;
constexpr float EXPONENT = SCALE_FOLDS ? SCALE * LOG2_E : 1.0f;

template <int N>
DEVICE void scale_scores(float (&s)[N]) {
    if constexpr (!SCALE_FOLDS) {
        UNROLL for (int i = 0; i < N; ++i) s[i] *= SCALE * LOG2_E;
    }
}

// A tile of keys: those of a segment from `first` on. Behind the last one `segment` is SEGMENTS.
struct KeyCursor {
    int segment, first;
};

// Goes on to the next segment that has keys, if this one has none left.
DEVICE void skip_empty(const Arguments& args, KeyCursor& at) {
    while (at.segment < SEGMENTS && at.first >= segment_length(args, at.segment)) {
        ++at.segment;
        at.first = 0;
    }
}

DEVICE KeyCursor first_keys(const Arguments& args) {
    KeyCursor at{0, 0};
    skip_empty(args, at);
    return at;
}

DEVICE void advance(const Arguments& args, KeyCursor& at, int keys) {
    at.first += keys;
    skip_empty(args, at);
}

// The tile of keys of a block, tiles of all segments one behind the other; `block` becomes what is left of its number.
DEVICE KeyCursor key_tile(const Arguments& args, u32& block, int keys) {
    u32 tiles = 0;
    for (int segment = 0; segment < SEGMENTS; ++segment) tiles += u32(ceil_div(segment_length(args, segment), keys));
    u32 tile = block % tiles;
    block /= tiles;
    for (int segment = 0; segment < SEGMENTS; ++segment) {
        const u32 own = u32(ceil_div(segment_length(args, segment), keys));
        if (tile < own) return {segment, int(tile) * keys};
        tile -= own;
    }
    return {SEGMENTS, 0};
}

// Bit i of word w: does row 32 w + i exist, there being `count` of them?
template <int WORDS>
DEVICE void find_existing(int count, u32 (&rows)[WORDS]) {
    UNROLL for (int w = 0; w < WORDS; ++w) {
        const int left = count - 32 * w;
        rows[w] = left >= 32 ? 0xffffffffu : left > 0 ? (1u << left) - 1 : 0;
    }
}

// Bit i of word w: is key 32 w + i of the tile taken? Every warp finds out for itself.
template <int WORDS, class Segment>
DEVICE void find_taken_of(const Arguments& args, int first, int batch, u32 (&taken)[WORDS]) {
    find_existing(Segment::length(args) - first, taken);
    if constexpr (Segment::MASKED) {
        UNROLL for (int w = 0; w < WORDS; ++w) {
            const bool own = Segment::taken(args, batch, first + 32 * w + int(threadIdx.x % 32));
            taken[w] = __ballot_sync(0xffffffffu, own);
        }
    }
}

template <int WORDS>
struct FindTaken {
    template <class Segment>
    DEVICE void run(const Arguments& args, int first, int batch, u32 (&taken)[WORDS]) {
        find_taken_of<WORDS, Segment>(args, first, batch, taken);
    }
};

template <int WORDS>
DEVICE void find_taken(const Arguments& args, KeyCursor at, int batch, u32 (&taken)[WORDS]) {
    with_segment<FindTaken<WORDS>>(at.segment, args, at.first, batch, taken);
}

template <int WORDS>
DEVICE bool all_of(const u32 (&taken)[WORDS]) {
    u32 all = 0xffffffffu;
    UNROLL for (int w = 0; w < WORDS; ++w) all &= taken[w];
    return all == 0xffffffffu;
}

template <int WORDS>
DEVICE bool any_of(const u32 (&taken)[WORDS]) {
    u32 any = 0;
    UNROLL for (int w = 0; w < WORDS; ++w) any |= taken[w];
    return any != 0;
}

// Which queries of which head a block has: tiles of one head follow one another, then the heads that share a key head, so that blocks
// that run at a time read the same keys and find them in the second cache.
struct QueryTile {
    int batch, head, first;
};

DEVICE QueryTile query_tile(u32 block, int queries, int tile) {
    const u32 tiles = u32(ceil_div(queries, tile));
    const u32 rest = block / tiles;
    return {int(rest / u32(HEADS)), int(rest % u32(HEADS)), int(block % tiles) * tile};
}

DEVICE int key_head_of(int head) { return head / (HEADS / KEY_HEADS); }
