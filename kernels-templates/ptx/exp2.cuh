// Powers of two.
#pragma once

// 2^x, at most 2 units in the last place off; results below 2^-126 are 0.
DEVICE float exp2_approximate(float x) {
#ifndef NUCLEUS_SHIM
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#else
    return exp2f(x);
#endif
}
