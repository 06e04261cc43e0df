// invert_index: the positions of every target, in ascending order: a counting sort.
//
//   clear    counts of targets to 0
//   count    how often every target occurs
//   offsets  a block for each batch item: where the list of every target begins; counts become 0 again
//   place    every position into its target's list, in any order
//   order    a warp for each target sorts its list: short ones by comparison, those of more than a warp by reading the whole map in order
//
// Counts are added atomically; `order` makes the result independent of who came first. In scratch memory: a count for every target.
//
// Slots: batch_count, position_count, target_count, index_in, offsets_out, positions_out.

#include "block/scan.cuh"

constexpr int THREADS = 256;
constexpr int SCAN_THREADS = 512;
constexpr int SCAN_WARPS = SCAN_THREADS / 32;
constexpr int SCAN_ITEMS = 4;

DEVICE i64 own_number() { return i64(blockIdx.x) * THREADS + threadIdx.x; }

// The count of a position's target; null for an index that is no target.
DEVICE u32* count_of(const Arguments& args, i64 position, int& target) {
    const int targets = target_count(args);
    target = index_in(args)[position];
    if (u32(target) >= u32(targets)) return nullptr;
    return memory<u32>(args.scratch) + (position / position_count(args) * targets + target);
}

KERNEL void __launch_bounds__(THREADS) clear(const __grid_constant__ Arguments args) {
    const i64 number = own_number();
    if (number < i64(batch_count(args)) * target_count(args)) memory<u32>(args.scratch)[number] = 0;
}

KERNEL void __launch_bounds__(THREADS) count(const __grid_constant__ Arguments args) {
    const i64 number = own_number();
    if (number >= i64(batch_count(args)) * position_count(args)) return;
    int target;
    u32* const count = count_of(args, number, target);
    if (count) atomicAdd(count, 1u);
}

KERNEL void __launch_bounds__(SCAN_THREADS) offsets(const __grid_constant__ Arguments args) {
    SHARED_MEMORY(memory_);
    u32* const shared = reinterpret_cast<u32*>(memory_);
    const int targets = target_count(args);
    u32* const counts = memory<u32>(args.scratch) + i64(blockIdx.x) * targets;
    int* const to = offsets_out(args) + i64(blockIdx.x) * (targets + 1);
    u32 earlier = 0;
    for (int start = 0; start < targets; start += SCAN_THREADS * SCAN_ITEMS) {
        const int first = start + int(threadIdx.x) * SCAN_ITEMS;
        u32 own[SCAN_ITEMS], sum = 0;
        UNROLL for (int i = 0; i < SCAN_ITEMS; ++i) {
            own[i] = first + i < targets ? counts[first + i] : 0;
            sum += own[i];
        }
        const Scan<u32> scan = scan_block<SCAN_WARPS>(sum, shared);
        u32 before = earlier + scan.before;
        earlier += scan.all;
        UNROLL for (int i = 0; i < SCAN_ITEMS; ++i) {
            if (first + i < targets) {
                to[first + i] = int(before);
                counts[first + i] = 0;
            }
            before += own[i];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) to[targets] = int(earlier);
}

KERNEL void __launch_bounds__(THREADS) place(const __grid_constant__ Arguments args) {
    const int positions = position_count(args), targets = target_count(args);
    const i64 number = own_number();
    if (number >= i64(batch_count(args)) * positions) return;
    const i64 item = number / positions;
    int target;
    u32* const count = count_of(args, number, target);
    if (!count) return;
    const i64 place = i64(offsets_out(args)[item * (targets + 1) + target]) + atomicAdd(count, 1u);
    positions_out(args)[item * positions + place] = int(number % positions);
}

KERNEL void __launch_bounds__(THREADS) order(const __grid_constant__ Arguments args) {
    const int positions = position_count(args), targets = target_count(args);
    const i64 number = i64(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32;
    if (number >= i64(batch_count(args)) * targets) return;
    const i64 item = number / targets;
    const int target = int(number % targets);
    const int lane = threadIdx.x % 32;
    const int* const bounds = offsets_out(args) + (item * (targets + 1) + target);
    const int listed = bounds[1] - bounds[0];
    int* const list = positions_out(args) + (item * positions + bounds[0]);
    if (listed <= 1) return;
    if (listed <= 32) {
        const int own = lane < listed ? list[lane] : 2147483647;
        int rank = 0;
        UNROLL for (int other = 0; other < 32; ++other) rank += __shfl_sync(0xffffffffu, own, other) < own;
        if (lane < listed) list[rank] = own;
    } else {
        const int* const index = index_in(args) + item * positions;
        int found = 0;
        for (int start = 0; start < positions; start += 32) {
            const bool here = start + lane < positions && index[start + lane] == target;
            const u32 all = __ballot_sync(0xffffffffu, here);
            if (here) list[found + __popc(all & ((1u << lane) - 1))] = start + lane;
            found += __popc(all);
        }
    }
}
