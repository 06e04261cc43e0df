// What the gradients of attention keep of the forward pass between their functions, in scratch memory: for every query the logarithm of
// its softmax's denominator, and r_mean = Σ p r.
//
// The statistics come first: {log2 Σ 2^(s EXPONENT), r_mean} of [batch, head, query], queries rounded up to whole tiles of STATISTICS.
// A query without any key, or behind the last one, has the logarithm +infinity, so that its probabilities are 0.
#pragma once

struct alignas(8) Statistics {
    float log, mean;
};

DEVICE Statistics* statistics_of(const Arguments& args, int batch, int head) {
    const i64 padded = i64(ceil_div(queries(args), STATISTICS)) * STATISTICS;
    return memory<Statistics>(args.scratch) + (i64(batch) * HEADS + head) * padded;
}

// From the largest score, Σ 2^((s - largest) EXPONENT) and Σ 2^(…) r.
DEVICE Statistics statistics_from(float largest, float sum, float weighted) {
    if (sum == 0.0f) return {INFINITE, 0.0f};
    return {largest * EXPONENT + log2f(sum), weighted / sum};
}
