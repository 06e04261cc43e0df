// Registers.
#pragma once

// The same number, of which the compiler does not know that. What a loop computes from it is computed again in every iteration rather than
// kept in registers that the rest of the loop needs.
DEVICE int fresh(int x) {
#ifndef NUCLEUS_SHIM
    asm volatile("" : "+r"(x));
#endif
    return x;
}
