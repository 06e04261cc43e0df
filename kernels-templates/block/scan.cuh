// Sums over the threads before one, of integers: exact, in any order.
#pragma once

// A sum over the threads of a block that come before one, and over all of them.
template <class T>
struct Scan {
    T before;
    T all;
};

// Over a block of WARPS warps. `shared` has room for WARPS values; it may be used again after a barrier.
template <int WARPS, class T>
DEVICE Scan<T> scan_block(T value, T* shared) {
    const int lane = threadIdx.x % 32;
    T sum = value;
    UNROLL for (int apart = 1; apart < 32; apart *= 2) {
        const T other = __shfl_up_sync(0xffffffffu, sum, apart);
        if (lane >= apart) sum += other;
    }
    if (lane == 31) shared[threadIdx.x / 32] = sum;
    __syncthreads();
    Scan<T> result{sum - value, 0};
    UNROLL for (int warp = 0; warp < WARPS; ++warp) {
        const T other = shared[warp];
        if (warp < int(threadIdx.x / 32)) result.before += other;
        result.all += other;
    }
    return result;
}
