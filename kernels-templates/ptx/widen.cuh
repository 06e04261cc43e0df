// Four signed bytes as an element type of products, which holds them exactly. A byte becomes the last bits of a number whose other bits are
// constant, from which one operation takes the constant away: conversions of integers have a quarter of its throughput.
#pragma once

#ifndef NUCLEUS_SHIM
// The bytes of `from` that the digits of `selector` name, from 4 on those of `constant`.
DEVICE u32 permute_bytes(u32 from, u32 constant, u32 selector) {
    u32 result;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(from), "r"(constant), "r"(selector));
    return result;
}

// 0x4300 is 128: with the low seven bits of a byte it is 128 more than they are, with the sign bit 128 or 256.
DEVICE Chunk<8> widen(u32 bytes, bf16) {
    Chunk<8> result;
    UNROLL for (int half = 0; half < 2; ++half) {
        const u32 pair = permute_bytes(bytes, 0, half == 0 ? 0x4140 : 0x4342);
        const u32 low = (pair & 0x007f007f) | 0x43004300, sign = (pair & 0x00800080) | 0xc300c300;
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result.words[half]) : "r"(low), "r"(0x3f803f80), "r"(sign));
    }
    return result;
}

// 0x6400 is 1024; with the sign bit turned a byte is 128 more than it was.
DEVICE Chunk<8> widen(u32 bytes, f16) {
    Chunk<8> result;
    UNROLL for (int half = 0; half < 2; ++half) {
        const u32 pair = permute_bytes(bytes ^ 0x80808080, 0x64646464, half == 0 ? 0x4140 : 0x4342);
        asm("sub.f16x2 %0, %1, %2;" : "=r"(result.words[half]) : "r"(pair), "r"(0x64806480));
    }
    return result;
}

// 0x4b000000 is 2^23.
DEVICE Chunk<16> widen(u32 bytes, float) {
    Chunk<16> result;
    UNROLL for (int l = 0; l < 4; ++l) {
        const u32 bits = permute_bytes(bytes ^ 0x80808080, 0x4b000000, 0x7440 + l);
        result.words[l] = u32(__float_as_int(__int_as_float(int(bits)) - 8388736.0f));
    }
    return result;
}
#else
template <class T>
DEVICE Chunk<4 * sizeof(T)> widen(u32 bytes, T) {
    union {
        Chunk<4 * sizeof(T)> chunk;
        T element[4];
    } result;
    for (int l = 0; l < 4; ++l) store(&result.element[l], float(static_cast<signed char>(bytes >> 8 * l)));
    return result.chunk;
}
#endif
