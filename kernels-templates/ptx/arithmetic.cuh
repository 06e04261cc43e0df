// Arithmetic that the compiler must not join into fused operations.
#pragma once

#ifndef NUCLEUS_SHIM
// a + b, rounded to nearest even.
DEVICE float add_rounded(float a, float b) {
    float result;
    asm("add.rn.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
}
#else
DEVICE float add_rounded(float a, float b) { return a + b; }
#endif
