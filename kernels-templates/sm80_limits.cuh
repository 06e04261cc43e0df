// limits: multiply-adds in registers that nothing holds up, which is what products are compared with. No kernel of a plan.
//
// Constants: THREADS, CHAINS (sums of a thread that do not wait for each other), STEPS (multiply-adds of each sum in an iteration).
// Arguments: o[0] receives a float from every thread, so that the sums are used; s[0] is the number of iterations.

#include "ptx/matrix.cuh"

// A number in 0.5 .. 1 that differs from thread to thread: zeros take less power than data, and clocks show it.
DEVICE float some_number(u32 seed) {
    seed = (seed ^ (seed >> 15)) * 0x2c1b3c6du;
    seed = (seed ^ (seed >> 12)) * 0x297a2d39u;
    return 0.5f + float((seed ^ (seed >> 15)) >> 8) * (0.5f / 16777216.0f);
}

KERNEL void __launch_bounds__(THREADS) limit_plain(const __grid_constant__ Arguments args) {
    const u32 thread = u32(blockIdx.x) * THREADS + threadIdx.x;
    const float factor = some_number(thread), addend = some_number(~thread);
    float sum[CHAINS];
    UNROLL for (int l = 0; l < CHAINS; ++l) sum[l] = some_number(thread + 977u * u32(l));
    for (int i = 0; i < args.s[0]; ++i) {
        UNROLL for (int step = 0; step < STEPS; ++step) {
            UNROLL for (int l = 0; l < CHAINS; ++l) sum[l] = sum[l] * factor + addend;
        }
    }
    float total = 0.0f;
    UNROLL for (int l = 0; l < CHAINS; ++l) total += sum[l];
    memory<float>(args.o[0])[thread] = total;
}

KERNEL void __launch_bounds__(THREADS) limit_matrix(const __grid_constant__ Arguments args) {
    const u32 thread = u32(blockIdx.x) * THREADS + threadIdx.x;
    const auto pair = [&](u32 seed) { return pack<bf16>(some_number(seed) - 0.75f, some_number(~seed) - 0.75f); };
    u32 a[4];
    UNROLL for (int l = 0; l < 4; ++l) a[l] = pair(thread + 977u * u32(l));
    const u32 b0 = pair(thread + 31u), b1 = pair(thread + 53u);
    float sum[CHAINS][4] = {};
    for (int i = 0; i < args.s[0]; ++i) {
        UNROLL for (int step = 0; step < STEPS; ++step) {
            UNROLL for (int l = 0; l < CHAINS; ++l) multiply_add<bf16>(sum[l], a, b0, b1);
        }
    }
    float total = 0.0f;
    UNROLL for (int l = 0; l < CHAINS; ++l) {
        UNROLL for (int part = 0; part < 4; ++part) total += sum[l][part];
    }
    memory<float>(args.o[0])[thread] = total;
}
