// What every kernel begins with: element types, loads and stores of lanes, and the operations of scalar functions.
//
// NVRTC compiles this without any header. The shim of `crates/nucleus-cuda/tests/shim` compiles the same text for a CPU: it defines the
// macros, types and intrinsics below before this file, and NUCLEUS_SHIM.
#pragma once

typedef long long i64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;

#ifndef NUCLEUS_SHIM
#define DEVICE static __device__ __forceinline__
#define METHOD __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define KERNEL extern "C" __global__
#define CONSTANT static __constant__ const
// The block's shared memory: all of it is dynamic, so that its size is the launch's and the shim can guard its end.
#define SHARED_MEMORY(name) extern __shared__ __align__(1024) unsigned char name[]
#endif

#define INFINITE __int_as_float(0x7f800000)
#define NOT_A_NUMBER __int_as_float(0x7fffffff)

// Elements in memory. Booleans are bytes, 0 or not.
struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};
typedef unsigned char boolean;

#include "ptx/convert.cuh"

// V values of neighbouring points.
template <class T, int V>
struct Lanes {
    T at[V];
};

// What a load or store moves at a time.
template <int BYTES>
struct alignas(BYTES) Chunk {
    unsigned char bytes[BYTES];
};
template <>
struct alignas(4) Chunk<4> {
    u32 words[1];
};
template <>
struct alignas(8) Chunk<8> {
    u32 words[2];
};
template <>
struct alignas(16) Chunk<16> {
    u32 words[4];
};

// To global memory, at a multiple of the chunk's size.
template <int BYTES>
DEVICE void store_chunk(void* p, Chunk<BYTES> chunk) {
    *static_cast<Chunk<BYTES>*>(p) = chunk;
}

#include "ptx/store.cuh"

template <class T>
DEVICE T* memory(void* operand) {
    return static_cast<T*>(operand);
}

DEVICE float load(const float* p) { return *p; }
DEVICE float load(const bf16* p) { return from_bf16(*p); }
DEVICE float load(const f16* p) { return from_f16(*p); }
DEVICE int load(const int* p) { return *p; }
DEVICE int load(const signed char* p) { return *p; }
DEVICE bool load(const boolean* p) { return *p != 0; }

DEVICE void store(float* p, float v) { *p = v; }
DEVICE void store(bf16* p, float v) { *p = to_bf16(v); }
DEVICE void store(f16* p, float v) { *p = to_f16(v); }
DEVICE void store(int* p, int v) { *p = v; }
DEVICE void store(boolean* p, bool v) { *p = v; }

DEVICE constexpr int smaller(int a, int b) { return a < b ? a : b; }

// Bytes that may be moved at a time: V elements from one that is a multiple of ALIGNED.
template <class T, int V, int ALIGNED>
struct Width {
    static constexpr int elements = smaller(V, smaller(ALIGNED, int(16 / sizeof(T))));
    static constexpr int bytes = elements * int(sizeof(T));
};

// V elements that lie side by side. V is a power of two.
template <int ALIGNED, int V, class T, class Value>
DEVICE void load_lanes(const T* p, Value (&value)[V]) {
    using W = Width<T, V, ALIGNED>;
    UNROLL for (int first = 0; first < V; first += W::elements) {
        union {
            Chunk<W::bytes> chunk;
            T element[W::elements];
        } part;
        part.chunk = *reinterpret_cast<const Chunk<W::bytes>*>(p + first);
        UNROLL for (int l = 0; l < W::elements; ++l) value[first + l] = load(&part.element[l]);
    }
}

template <int ALIGNED, int V, class T, class Value>
DEVICE void store_lanes(T* p, const Value (&value)[V]) {
    using W = Width<T, V, ALIGNED>;
    UNROLL for (int first = 0; first < V; first += W::elements) {
        union {
            Chunk<W::bytes> chunk;
            T element[W::elements];
        } part;
        UNROLL for (int l = 0; l < W::elements; ++l) store(&part.element[l], value[first + l]);
        *reinterpret_cast<Chunk<W::bytes>*>(p + first) = part.chunk;
    }
}

// The same, to global memory: operands and scratch.
template <int ALIGNED, int V, class T, class Value>
DEVICE void store_global(T* p, const Value (&value)[V]) {
    using W = Width<T, V, ALIGNED>;
    UNROLL for (int first = 0; first < V; first += W::elements) {
        union {
            Chunk<W::bytes> chunk;
            T element[W::elements];
        } part;
        UNROLL for (int l = 0; l < W::elements; ++l) store(&part.element[l], value[first + l]);
        store_chunk(p + first, part.chunk);
    }
}

// V elements `stride` apart.
template <int V, class T, class Value>
DEVICE void load_apart(const T* p, i64 stride, Value (&value)[V]) {
    UNROLL for (int l = 0; l < V; ++l) value[l] = load(p + stride * l);
}

template <int V, class T, class Value>
DEVICE void store_apart(T* p, i64 stride, const Value (&value)[V]) {
    UNROLL for (int l = 0; l < V; ++l) store(p + stride * l, value[l]);
}

// Rounding of a result to a narrower type, kept as a float.
DEVICE float round_bf16(float x) { return from_bf16(to_bf16(x)); }
DEVICE float round_f16(float x) { return from_f16(to_f16(x)); }

// Truncated and saturated; 0 for NaN.
DEVICE int float_to_int(float x) {
    if (!(x == x)) return 0;
    if (x >= 2147483648.0f) return 2147483647;
    if (x < -2147483648.0f) return -2147483647 - 1;
    return int(x);
}

DEVICE float f_abs(float x) { return fabsf(x); }
DEVICE float f_exp(float x) { return expf(x); }
DEVICE float f_log(float x) { return logf(x); }
DEVICE float f_sqrt(float x) { return sqrtf(x); }
DEVICE float f_rsqrt(float x) { return 1.0f / sqrtf(x); }
DEVICE float f_tanh(float x) { return tanhf(x); }
DEVICE float f_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
DEVICE float f_sin(float x) { return sinf(x); }
DEVICE float f_cos(float x) { return cosf(x); }
DEVICE float f_div(float x, float y) { return x / y; }
// NaN if either is.
DEVICE float f_max(float x, float y) { return x != x ? x : y != y ? y : fmaxf(x, y); }
DEVICE float f_min(float x, float y) { return x != x ? x : y != y ? y : fminf(x, y); }

// Integers wrap.
DEVICE int i_neg(int x) { return int(0u - u32(x)); }
DEVICE int i_abs(int x) { return x < 0 ? i_neg(x) : x; }
DEVICE int i_add(int x, int y) { return int(u32(x) + u32(y)); }
DEVICE int i_sub(int x, int y) { return int(u32(x) - u32(y)); }
DEVICE int i_mul(int x, int y) { return int(u32(x) * u32(y)); }
DEVICE int i_div(int x, int y) { return y == 0 ? 0 : y == -1 ? i_neg(x) : x / y; }
DEVICE int i_max(int x, int y) { return x > y ? x : y; }
DEVICE int i_min(int x, int y) { return x < y ? x : y; }

// ⌈x / y⌉ of numbers that are not negative.
DEVICE int ceil_div(int x, int y) { return (x + y - 1) / y; }
