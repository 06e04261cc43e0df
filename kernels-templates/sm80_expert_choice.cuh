// expert_choice: every expert takes its capacity of tokens of largest affinity, then the epilogue at every slot.
//
//   affinities  the affinity of every pair, computed once and turned so that an expert's tokens lie side by side
//   choose      a block for each expert of an image: the smallest key that is taken, digit by digit from histograms (radix selection), then the
//               chosen tokens in ascending order, by sums over the threads before
//   tokens      a thread for each token: how many experts took it and the sum of their affinities, in ascending order of experts
//   offsets     where the list of every token begins; only where the inverse map is wanted
//   slots       a thread for each slot: the inverse map and the epilogue
//
// In scratch memory: the affinity of (image, expert, token), whether the expert took the token and then which of the token's experts it is, and for
// (image, token) how many took it and their sum.
//
// Slots: affinity(args, image, token, expert), epilogue(args, image, expert, slot, lane, sum); image_count, token_count, expert_count, capacity,
// slot_token, offsets_out, positions_out. Constants: INVERSE.

#include "ptx/arithmetic.cuh"
#include "block/scan.cuh"

constexpr int TILE = 32;
constexpr int TILE_ROWS = 8;
constexpr int CHOOSE_THREADS = 512;
constexpr int CHOOSE_WARPS = CHOOSE_THREADS / 32;
// Affinities that a thread loads before it looks at one.
constexpr int CHOOSE_AHEAD = 8;
constexpr int TOKEN_THREADS = 128;
constexpr int OFFSET_ITEMS = 4;
constexpr int SLOT_THREADS = 256;
// Digits of 11, 11 and 10 bits: affinities of one size differ in their first bits already.
constexpr int BINS = 1 << 11;
constexpr int BINS_EACH = BINS / CHOOSE_THREADS;

DEVICE i64 pair_count(const Arguments& args) {
    return i64(image_count(args)) * expert_count(args) * token_count(args);
}
DEVICE float* affinity_memory(const Arguments& args) { return memory<float>(args.scratch); }
DEVICE int* mark_memory(const Arguments& args) { return memory<int>(affinity_memory(args) + pair_count(args)); }
DEVICE int* taken_memory(const Arguments& args) { return mark_memory(args) + pair_count(args); }
DEVICE float* sum_memory(const Arguments& args) {
    return memory<float>(taken_memory(args) + i64(image_count(args)) * token_count(args));
}

// A number whose order is that of affinities: NaN is the smallest, zeros are equal.
DEVICE u32 key_of(float affinity) {
    if (affinity != affinity) return 0;
    const u32 bits = __float_as_uint(affinity == 0.0f ? 0.0f : affinity);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

KERNEL void __launch_bounds__(TILE* TILE_ROWS) affinities(const __grid_constant__ Arguments args) {
    SHARED_MEMORY(memory_);
    // One column more than there are, so that both directions meet all banks.
    float(*const tile)[TILE + 1] = reinterpret_cast<float(*)[TILE + 1]>(memory_);
    const int tokens = token_count(args), experts = expert_count(args);
    const int token_tiles = ceil_div(tokens, TILE), expert_tiles = ceil_div(experts, TILE);
    const int first_expert = int(blockIdx.x % u32(expert_tiles)) * TILE;
    const u32 rest = blockIdx.x / u32(expert_tiles);
    const int first_token = int(rest % u32(token_tiles)) * TILE;
    const int image = int(rest / u32(token_tiles));
    const int x = threadIdx.x % TILE, y = threadIdx.x / TILE;
    UNROLL for (int i = 0; i < TILE; i += TILE_ROWS) {
        const int token = first_token + y + i, expert = first_expert + x;
        if (token < tokens && expert < experts) tile[y + i][x] = affinity(args, image, token, expert).at[0];
    }
    __syncthreads();
    float* const to = affinity_memory(args);
    UNROLL for (int i = 0; i < TILE; i += TILE_ROWS) {
        const int token = first_token + x, expert = first_expert + y + i;
        if (token < tokens && expert < experts) to[(i64(image) * experts + expert) * tokens + token] = tile[x][y + i];
    }
}

struct Selection {
    u32 histogram[BINS];
    u64 sums[CHOOSE_WARPS];
    u32 counts[CHOOSE_WARPS];
    // The digit of the smallest key that is taken, and how many of the keys with it.
    u32 digit;
    u32 wanted;
};

// What is known of the smallest key that is taken: keys that agree with it in the bits of `mask` are still in question, `wanted` of them are
// taken.
struct Threshold {
    u32 key;
    u32 mask;
    u32 wanted;
};

// Finds another digit of the threshold: the bits of `digits`, from bit `shift` on.
DEVICE void find_digit(const float* affinities, int tokens, int shift, u32 digits, Threshold& threshold,
                       Selection& shared) {
    const u32 thread = threadIdx.x;
    UNROLL for (int i = 0; i < BINS_EACH; ++i) shared.histogram[i * CHOOSE_THREADS + thread] = 0;
    if (thread == 0) {
        shared.digit = 0;
        shared.wanted = threshold.wanted;
    }
    __syncthreads();
    for (int start = int(thread); start < tokens; start += CHOOSE_AHEAD * CHOOSE_THREADS) {
        float affinity[CHOOSE_AHEAD];
        UNROLL for (int i = 0; i < CHOOSE_AHEAD; ++i) {
            const int token = start + i * CHOOSE_THREADS;
            affinity[i] = token < tokens ? affinities[token] : 0.0f;
        }
        UNROLL for (int i = 0; i < CHOOSE_AHEAD; ++i) {
            const u32 key = key_of(affinity[i]);
            const bool open = start + i * CHOOSE_THREADS < tokens && (key & threshold.mask) == threshold.key;
            if (open) atomicAdd(&shared.histogram[key >> shift & digits], 1u);
        }
    }
    __syncthreads();
    // From the largest digit down.
    u32 count[BINS_EACH], own = 0;
    UNROLL for (int i = 0; i < BINS_EACH; ++i) {
        count[i] = shared.histogram[BINS - 1 - (thread * BINS_EACH + i)];
        own += count[i];
    }
    u32 before = scan_block<CHOOSE_WARPS>(own, shared.counts).before;
    UNROLL for (int i = 0; i < BINS_EACH; ++i) {
        if (before < threshold.wanted && threshold.wanted <= before + count[i]) {
            shared.digit = BINS - 1 - (thread * BINS_EACH + i);
            shared.wanted = threshold.wanted - before;
        }
        before += count[i];
    }
    __syncthreads();
    threshold.key |= shared.digit << shift;
    threshold.mask |= digits << shift;
    threshold.wanted = shared.wanted;
    __syncthreads();
}

KERNEL void __launch_bounds__(CHOOSE_THREADS) choose(const __grid_constant__ Arguments args) {
    SHARED_MEMORY(memory_);
    Selection& shared = *reinterpret_cast<Selection*>(memory_);
    const int tokens = token_count(args);
    const u32 slots = u32(capacity(args));
    const i64 row = blockIdx.x;
    const float* const from = affinity_memory(args) + row * tokens;
    Threshold threshold{0, 0, slots};
    for (int round = 0; round < 3; ++round) {
        find_digit(from, tokens, round == 0 ? 21 : round == 1 ? 10 : 0, round == 2 ? 1023 : 2047, threshold, shared);
    }
    int* const marks = mark_memory(args) + row * tokens;
    int* const chosen = slot_token(args) + row * i64(slots);
    // Keys above the threshold in the upper half, keys equal to it in the lower one.
    u64 earlier = 0;
    const auto load_of = [&](int token) { return token < tokens ? from[token] : 0.0f; };
    float next = load_of(int(threadIdx.x));
    for (int start = 0; start < tokens; start += CHOOSE_THREADS) {
        const int token = start + int(threadIdx.x);
        const bool inside = token < tokens;
        const u32 key = key_of(next);
        // In flight while the sums are taken.
        next = load_of(token + CHOOSE_THREADS);
        const bool above = inside && key > threshold.key, equal = inside && key == threshold.key;
        const Scan<u64> scan = scan_block<CHOOSE_WARPS>(u64(above) << 32 | u64(equal), shared.sums);
        const u64 before = earlier + scan.before;
        earlier += scan.all;
        const u32 equal_before = u32(before);
        const u32 taken_before = u32(before >> 32) + (equal_before < threshold.wanted ? equal_before : threshold.wanted);
        const bool taken = (above || (equal && equal_before < threshold.wanted)) && taken_before < slots;
        if (inside) marks[token] = taken;
        if (taken) chosen[taken_before] = token;
        __syncthreads();
    }
}

KERNEL void __launch_bounds__(TOKEN_THREADS) tokens(const __grid_constant__ Arguments args) {
    constexpr int AHEAD = 8;
    const int tokens = token_count(args), experts = expert_count(args);
    const i64 number = i64(blockIdx.x) * TOKEN_THREADS + threadIdx.x;
    // Without experts there is no scratch memory.
    if (number >= i64(image_count(args)) * tokens || experts == 0) return;
    const i64 first = number / tokens * experts * tokens + number % tokens;
    int* const marks = mark_memory(args) + first;
    const float* const affinities = affinity_memory(args) + first;
    int taken = 0;
    float sum = 0.0f;
    for (int start = 0; start < experts; start += AHEAD) {
        int mark[AHEAD];
        float affinity[AHEAD];
        UNROLL for (int i = 0; i < AHEAD; ++i) mark[i] = start + i < experts ? marks[i64(start + i) * tokens] : 0;
        UNROLL for (int i = 0; i < AHEAD; ++i) affinity[i] = mark[i] ? affinities[i64(start + i) * tokens] : 0.0f;
        UNROLL for (int i = 0; i < AHEAD; ++i) {
            if (mark[i]) {
                marks[i64(start + i) * tokens] = taken++;
                sum = add_rounded(sum, affinity[i]);
            }
        }
    }
    taken_memory(args)[number] = taken;
    sum_memory(args)[number] = sum;
}

KERNEL void __launch_bounds__(CHOOSE_THREADS) offsets(const __grid_constant__ Arguments args) {
    SHARED_MEMORY(memory_);
    u32* const shared = reinterpret_cast<u32*>(memory_);
    const int tokens = token_count(args);
    const bool none = expert_count(args) == 0;
    const int* const taken = taken_memory(args) + i64(blockIdx.x) * tokens;
    int* const to = offsets_out(args) + i64(blockIdx.x) * (tokens + 1);
    u32 earlier = 0;
    for (int start = 0; start < tokens; start += CHOOSE_THREADS * OFFSET_ITEMS) {
        const int first = start + int(threadIdx.x) * OFFSET_ITEMS;
        u32 own[OFFSET_ITEMS], sum = 0;
        UNROLL for (int i = 0; i < OFFSET_ITEMS; ++i) {
            own[i] = first + i < tokens && !none ? u32(taken[first + i]) : 0;
            sum += own[i];
        }
        const Scan<u32> scan = scan_block<CHOOSE_WARPS>(sum, shared);
        u32 before = earlier + scan.before;
        earlier += scan.all;
        UNROLL for (int i = 0; i < OFFSET_ITEMS; ++i) {
            if (first + i < tokens) to[first + i] = int(before);
            before += own[i];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) to[tokens] = int(earlier);
}

KERNEL void __launch_bounds__(SLOT_THREADS) slots(const __grid_constant__ Arguments args) {
    const int tokens = token_count(args), experts = expert_count(args), slots = capacity(args);
    const i64 number = i64(blockIdx.x) * SLOT_THREADS + threadIdx.x;
    if (number >= i64(image_count(args)) * experts * slots) return;
    const i64 row = number / slots;
    const int slot = int(number % slots), image = int(row / experts), expert = int(row % experts);
    const int token = slot_token(args)[number];
    // There are no slots without a token where the capacity is at most the number of tokens, as it must be.
    if (u32(token) >= u32(tokens)) return;
    const i64 pair = row * tokens + token, own = i64(image) * tokens + token;
    if constexpr (INVERSE != 0) {
        const i64 place = offsets_out(args)[own + image] + mark_memory(args)[pair];
        positions_out(args)[i64(image) * experts * slots + place] = expert * slots + slot;
    }
    const float lane[1][1] = {};
    const float sum[2] = {affinity_memory(args)[pair], sum_memory(args)[own]};
    epilogue(args, image, expert, slot, lane, sum);
}
