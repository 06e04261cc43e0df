// Conversions between element types.
#pragma once

#ifndef NUCLEUS_SHIM
DEVICE float from_bf16(bf16 x) { return __int_as_float(int(x.bits) << 16); }

// To nearest even.
DEVICE bf16 to_bf16(float x) {
    bf16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
    return result;
}

DEVICE float from_f16(f16 x) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
    return result;
}

// To nearest even.
DEVICE f16 to_f16(float x) {
    f16 result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
    return result;
}
#else
DEVICE float from_bf16(bf16 x) { return shim::from_bf16(x.bits); }
DEVICE bf16 to_bf16(float x) { return bf16{shim::to_bf16(x)}; }
DEVICE float from_f16(f16 x) { return shim::from_f16(x.bits); }
DEVICE f16 to_f16(float x) { return f16{shim::to_f16(x)}; }
#endif
