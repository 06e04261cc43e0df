// Stores of several words at a time. Left to the compiler, a vector's words are often stored one by one.
#pragma once

#ifndef NUCLEUS_SHIM
DEVICE void store_chunk(void* p, Chunk<8> chunk) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(p), "r"(chunk.words[0]), "r"(chunk.words[1]) : "memory");
}
DEVICE void store_chunk(void* p, Chunk<16> chunk) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(chunk.words[0]), "r"(chunk.words[1]),
                 "r"(chunk.words[2]), "r"(chunk.words[3])
                 : "memory");
}
#endif
