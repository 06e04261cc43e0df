// Matrix instructions of a warp: ldmatrix and mma, for elements of 16 bits.
//
// With g = lane / 4 and t = lane % 4, the lane's part of a fragment is
//
//   8x8 matrix (one register)    elements (g, 2t) and (g, 2t + 1), the first in the low half
//   a, 16x16, rows x k           registers: rows g, g + 8 of k 2t, 2t + 1; then the same rows of k 2t + 8, 2t + 9
//   b, 16x8, k x columns         registers: k 2t, 2t + 1; k 2t + 8, 2t + 9; of column g
//   c, 16x8, rows x columns      columns 2t, 2t + 1 of row g; then of row g + 8
#pragma once

#include "ptx/shared.cuh"

// Four 8x8 matrices. Lane i gives the address, a multiple of 16, of row i % 8 of matrix i / 8.
DEVICE void load_matrices(u32 (&matrix)[4], SharedAddress row) {
#ifndef NUCLEUS_SHIM
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
                 : "r"(row));
#else
    shim::load_matrices(__LINE__, matrix, row, false);
#endif
}

// The same, each matrix transposed.
DEVICE void load_matrices_transposed(u32 (&matrix)[4], SharedAddress row) {
#ifndef NUCLEUS_SHIM
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
                 : "r"(row));
#else
    shim::load_matrices(__LINE__, matrix, row, true);
#endif
}

template <class T>
constexpr bool IS_BF16 = false;
template <>
constexpr bool IS_BF16<bf16> = true;

// c += a b. T is bf16 or f16.
template <class T>
DEVICE void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#ifndef NUCLEUS_SHIM
    if constexpr (IS_BF16<T>) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
#else
    shim::multiply_add(__LINE__, c, a, b0, b1, IS_BF16<T> ? shim::from_bf16 : shim::from_f16);
#endif
}

// Two values as neighbouring elements of a fragment, the first in the low half, rounded to nearest even. T is bf16 or f16.
template <class T>
DEVICE u32 pack(float low, float high) {
#ifndef NUCLEUS_SHIM
    u32 result;
    if constexpr (IS_BF16<T>) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    }
    return result;
#else
    const auto narrow = IS_BF16<T> ? shim::to_bf16 : shim::to_f16;
    return u32(narrow(low)) | u32(narrow(high)) << 16;
#endif
}
