// Reductions over lanes, warps and blocks, in an order that the number of threads fixes: in pairs, so that rounding errors grow with the
// logarithm of what is added.
#pragma once

// The sum, or the largest value, NaN if either is.
template <class T>
DEVICE T combine(bool max, T a, T b) {
    if (max) return a > b || a != a ? a : b;
    return a + b;
}

// What a reduction starts from.
DEVICE float neutral(bool max) { return max ? -INFINITE : 0.0f; }

// V values. V is a power of two.
template <int V>
DEVICE float combine_lanes(bool max, const float (&value)[V]) {
    float part[V];
    UNROLL for (int l = 0; l < V; ++l) part[l] = value[l];
    UNROLL for (int half = V / 2; half > 0; half /= 2) {
        UNROLL for (int l = 0; l < half; ++l) part[l] = combine(max, part[l], part[l + half]);
    }
    return part[0];
}

// Over TEAM neighbouring threads of a warp, a power of two; all of them have the result.
template <int TEAM, class T>
DEVICE T combine_team(bool max, T value) {
    UNROLL for (int apart = TEAM / 2; apart > 0; apart /= 2) {
        value = combine(max, value, __shfl_xor_sync(0xffffffffu, value, apart));
    }
    return value;
}

// Over a block of WARPS warps, a power of two; all threads have the result. `shared` has room for WARPS values that nothing else uses.
template <int WARPS, class T>
DEVICE T combine_block(bool max, T value, T* shared) {
    value = combine_team<32>(max, value);
    if (WARPS == 1) return value;
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    return combine_team<WARPS>(max, shared[threadIdx.x % WARPS]);
}
