// Asynchronous copies from memory to shared memory: cp.async. A thread sees what it copied itself after `wait_copies`, what others copied
// after a barrier behind that.
#pragma once

#include "ptx/shared.cuh"

// Copies BYTES (16, 8 or 4), both addresses being multiples of it. Lines of 16 bytes pass the first cache by: what is copied to shared
// memory is not read from there again.
template <int BYTES>
DEVICE void copy_async(SharedAddress to, const void* from) {
    static_assert(BYTES == 16 || BYTES == 8 || BYTES == 4, "cp.async copies 16, 8 or 4 bytes");
#ifndef NUCLEUS_SHIM
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from));
    } else {
        asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(BYTES));
    }
#else
    shim::copy_async(to, from, BYTES, BYTES);
#endif
}

// Reads only the first `valid` of the BYTES, the rest becomes 0.
template <int BYTES>
DEVICE void copy_async(SharedAddress to, const void* from, int valid) {
    static_assert(BYTES == 16 || BYTES == 8 || BYTES == 4, "cp.async copies 16, 8 or 4 bytes");
#ifndef NUCLEUS_SHIM
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid));
    } else {
        asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(BYTES), "r"(valid));
    }
#else
    shim::copy_async(to, from, BYTES, unsigned(valid));
#endif
}

// Reads all of the BYTES or, unless `read`, none, and they become 0.
template <int BYTES>
DEVICE void copy_async_if(SharedAddress to, const void* from, bool read) {
    copy_async<BYTES>(to, from, read ? BYTES : 0);
}

// All copies that this thread began since the last time become a group.
DEVICE void commit_copies() {
#ifndef NUCLEUS_SHIM
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    shim::commit_copies();
#endif
}

// Waits until at most the last LEFT groups of this thread are on their way.
template <int LEFT>
DEVICE void wait_copies() {
#ifndef NUCLEUS_SHIM
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#else
    shim::wait_copies(LEFT);
#endif
}
