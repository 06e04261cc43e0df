// Executes CUDA kernels, as they are emitted, on a CPU.
//
// The threads of a block are fibres of one thread of the host, one block after the other. A fibre runs until it meets a barrier or an
// operation of its whole warp; the scheduler takes the fibres in an order that depends on a seed, so that what is missing a barrier
// shows as a result that depends on it. Reported, with exit status 1: a barrier that not all threads reach, or reach at different
// places; a warp operation whose lanes disagree; a kernel that waits forever. Sanitizers see the rest: every buffer and the block's
// shared memory are allocations of their own, shared memory starts as NaN, and what an asynchronous copy writes is NaN until it is waited for.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SHIM_ASAN 1
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define NUCLEUS_SHIM 1
#define DEVICE static inline
#define METHOD inline
#define UNROLL
#define KERNEL static
#define CONSTANT static const
#define SHARED_MEMORY(name) unsigned char* const name = shim::shared_memory
#define __launch_bounds__(...)
#define __grid_constant__

namespace shim {

struct Extent {
    unsigned x, y, z;
};

constexpr unsigned WARP = 32;
constexpr size_t STACK = 256 * 1024;

inline unsigned char* shared_memory = nullptr;
inline Extent grid_extent, block_extent, block_index;
inline const char* kernel_name = "";

[[noreturn]] inline void fail(const char* format, ...) {
    std::fprintf(stderr, "shim: kernel %s, block (%u, %u, %u): ", kernel_name, block_index.x, block_index.y, block_index.z);
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    std::fputc('\n', stderr);
    std::_Exit(1);
}

// Where a fibre stands.
enum class State { Runnable, Barrier, Warp, Done };

// What a warp operation does with what the lanes brought: one pointer for each lane of the mask.
typedef void (*Perform)(void* const* lanes, uint32_t mask);

struct Copy {
    unsigned char* to;
    const unsigned char* from;
    unsigned bytes, valid;
};

struct Fibre {
    State state = State::Done;
    Extent thread{};
    unsigned number = 0;
    // The line of the barrier or warp operation that it waits at.
    int site = 0;
    Perform perform = nullptr;
    uint32_t mask = 0;
    void* operands = nullptr;
    // Asynchronous copies: those of the group that is open, and the groups that were committed.
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;
    unsigned char* stack = nullptr;
#if defined(__x86_64__)
    void* pointer = nullptr;
#else
    ucontext_t context;
#endif
    void* fake_stack = nullptr;
};

inline std::vector<Fibre> fibres;
inline Fibre* running = nullptr;
inline std::function<void()> body;
inline uint64_t random_state = 1;

#if defined(__x86_64__)
inline void* scheduler_pointer = nullptr;
// Saves the callee-saved registers and the stack pointer of who calls, and goes on where `to` was saved.
extern "C" void shim_switch(void** from, void* to);
asm(R"(
.text
.globl shim_switch
.type shim_switch, @function
shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size shim_switch, .-shim_switch
)");
#else
inline ucontext_t scheduler_context;
#endif

inline void* scheduler_fake_stack = nullptr;
inline const void* scheduler_bottom = nullptr;
inline size_t scheduler_size = 0;

// Back to the scheduler, until it takes this fibre again.
inline void yield(bool last = false) {
    Fibre* self = running;
#ifdef SHIM_ASAN
    __sanitizer_start_switch_fiber(last ? nullptr : &self->fake_stack, scheduler_bottom, scheduler_size);
#else
    (void)last;
#endif
#if defined(__x86_64__)
    shim_switch(&self->pointer, scheduler_pointer);
#else
    swapcontext(&self->context, &scheduler_context);
#endif
#ifdef SHIM_ASAN
    __sanitizer_finish_switch_fiber(self->fake_stack, &scheduler_bottom, &scheduler_size);
#endif
}

inline void fibre_main() {
#ifdef SHIM_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
    body();
    if (!running->open.empty() || !running->groups.empty()) {
        fail("thread %u leaves with asynchronous copies that nothing waits for", running->number);
    }
    running->state = State::Done;
    yield(true);
    std::abort();
}

inline void resume(Fibre& fibre) {
    running = &fibre;
#ifdef SHIM_ASAN
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, fibre.stack, STACK);
#endif
#if defined(__x86_64__)
    shim_switch(&scheduler_pointer, fibre.pointer);
#else
    swapcontext(&scheduler_context, &fibre.context);
#endif
#ifdef SHIM_ASAN
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
    running = nullptr;
}

inline void start(Fibre& fibre) {
    if (!fibre.stack) fibre.stack = static_cast<unsigned char*>(std::malloc(STACK));
    fibre.state = State::Runnable;
#ifdef SHIM_ASAN
    // The frames of the thread that had it before are still marked.
    __asan_unpoison_memory_region(fibre.stack, STACK);
#endif
#if defined(__x86_64__)
    // What `shim_switch` pops: six registers, then the address to return to. The stack is as a call leaves it: 8 off a multiple of 16.
    void** top = reinterpret_cast<void**>(fibre.stack + STACK);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&fibre_main);
    for (int register_ = 0; register_ < 6; ++register_) *--top = nullptr;
    fibre.pointer = top;
#else
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack;
    fibre.context.uc_stack.ss_size = STACK;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, fibre_main, 0);
#endif
}

inline uint64_t random_number() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

// If all lanes of the fibre's warp operation are there, does it and lets them go on.
inline void complete_warp(Fibre& fibre) {
    const unsigned first = fibre.number / WARP * WARP;
    void* operands[WARP] = {};
    for (unsigned lane = 0; lane < WARP; ++lane) {
        if (!(fibre.mask >> lane & 1)) continue;
        if (first + lane >= fibres.size()) fail("a warp operation wants lane %u, which the block has not", lane);
        Fibre& other = fibres[first + lane];
        if (other.state == State::Done) fail("a warp operation wants thread %u, which has left", other.number);
        if (other.state != State::Warp) return;
        if (other.site != fibre.site || other.mask != fibre.mask) {
            fail("threads %u and %u of a warp meet different operations, at lines %d and %d", fibre.number,
                 other.number, fibre.site, other.site);
        }
        operands[lane] = other.operands;
    }
    fibre.perform(operands, fibre.mask);
    for (unsigned lane = 0; lane < WARP; ++lane) {
        if (fibre.mask >> lane & 1) fibres[first + lane].state = State::Runnable;
    }
}

inline void complete_barrier() {
    const Fibre* first = nullptr;
    for (const Fibre& fibre : fibres) {
        if (fibre.state == State::Warp) {
            fail("thread %u waits for lanes of its warp that wait for a barrier", fibre.number);
        }
        if (fibre.state != State::Barrier) continue;
        if (!first) first = &fibre;
        if (fibre.site != first->site) {
            fail("threads %u and %u wait at different barriers, at lines %d and %d", first->number, fibre.number,
                 first->site, fibre.site);
        }
    }
    for (Fibre& fibre : fibres) {
        if (fibre.state == State::Done) {
            fail("thread %u has left, thread %u waits at a barrier at line %d", fibre.number, first->number,
                 first->site);
        }
        fibre.state = State::Runnable;
    }
}

// Runs one block; `body` is what a thread does.
inline void run_block(unsigned threads) {
    fibres.resize(threads);
    for (unsigned number = 0; number < threads; ++number) {
        Fibre& fibre = fibres[number];
        fibre.number = number;
        fibre.thread = {number % block_extent.x, number / block_extent.x % block_extent.y,
                        number / block_extent.x / block_extent.y};
        start(fibre);
    }
    while (true) {
        bool any = false, waiting = false;
        const unsigned offset = unsigned(random_number() % threads);
        const bool backwards = random_number() & 1;
        for (unsigned step = 0; step < threads; ++step) {
            const unsigned at = (offset + (backwards ? threads - step : step)) % threads;
            Fibre& fibre = fibres[at];
            if (fibre.state == State::Runnable) {
                any = true;
                resume(fibre);
                if (fibre.state == State::Warp) complete_warp(fibre);
            }
            waiting |= fibre.state != State::Done;
        }
        if (any) continue;
        if (!waiting) return;
        complete_barrier();
    }
}

inline void wait_at_barrier(int site) {
    running->state = State::Barrier;
    running->site = site;
    yield();
}

// An operation of the lanes in `mask`, done when all of them are there.
inline void warp_operation(uint32_t mask, int site, Perform perform, void* operands) {
    Fibre& self = *running;
    if (!(mask >> (self.number % WARP) & 1)) fail("thread %u is not in the mask of its warp operation", self.number);
    self.state = State::Warp;
    self.site = site;
    self.perform = perform;
    self.mask = mask;
    self.operands = operands;
    yield();
}

inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float from_bf16(uint16_t bits) { return from_bits(uint32_t(bits) << 16); }

inline uint16_t to_bf16(float value) {
    const uint32_t bits = to_bits(value);
    if (value != value) return 0x7fff;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_f16(uint16_t bits) {
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    return float(half);
}

inline uint16_t to_f16(float value) {
    const _Float16 half = _Float16(value);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}

// Asynchronous copies of the running thread. `valid` bytes come from memory, the rest is 0.
inline void copy_async(unsigned char* to, const void* from, unsigned bytes, unsigned valid) {
    if (uintptr_t(to) % bytes) fail("an asynchronous copy of %u bytes to an address that is no multiple of it", bytes);
    if (valid && uintptr_t(from) % bytes) fail("an asynchronous copy of %u bytes from an address that is no multiple of it", bytes);
    std::memset(to, 0xff, bytes);
    running->open.push_back({to, static_cast<const unsigned char*>(from), bytes, valid});
}

inline void commit_copies() {
    running->groups.push_back(std::move(running->open));
    running->open.clear();
}

// Lets all groups land but the last `left`.
inline void wait_copies(unsigned left) {
    auto& groups = running->groups;
    while (groups.size() > left) {
        for (const Copy& copy : groups.front()) {
            std::memset(copy.to, 0, copy.bytes);
            if (copy.valid) std::memcpy(copy.to, copy.from, copy.valid);
        }
        groups.erase(groups.begin());
    }
}

}  // namespace shim

#define threadIdx (shim::running->thread)
#define blockIdx (shim::block_index)
#define blockDim (shim::block_extent)
#define gridDim (shim::grid_extent)

#define __syncthreads() shim::wait_at_barrier(__LINE__)

namespace shim {
template <class T>
struct Shuffle {
    T value;
    int from;
    T result;
};

template <class T>
void perform_shuffle(void* const* lanes, uint32_t mask) {
    for (unsigned lane = 0; lane < WARP; ++lane) {
        if (!(mask >> lane & 1)) continue;
        auto* self = static_cast<Shuffle<T>*>(lanes[lane]);
        if (self->from < 0 || self->from >= int(WARP)) fail("a shuffle from lane %d", self->from);
        if (!(mask >> self->from & 1)) fail("a shuffle from lane %d, which is not in the mask", self->from);
        self->result = static_cast<Shuffle<T>*>(lanes[self->from])->value;
    }
}

template <class T>
T shuffle(int line, uint32_t mask, T value, int from) {
    Shuffle<T> operands{value, from, value};
    warp_operation(mask, line, perform_shuffle<T>, &operands);
    return operands.result;
}

struct Vote {
    bool value;
    uint32_t result;
};

inline void perform_vote(void* const* lanes, uint32_t mask) {
    uint32_t result = 0;
    for (unsigned lane = 0; lane < WARP; ++lane) {
        if ((mask >> lane & 1) && static_cast<Vote*>(lanes[lane])->value) result |= 1u << lane;
    }
    for (unsigned lane = 0; lane < WARP; ++lane) {
        if (mask >> lane & 1) static_cast<Vote*>(lanes[lane])->result = result;
    }
}

inline uint32_t vote(int line, uint32_t mask, bool value) {
    Vote operands{value, 0};
    warp_operation(mask, line, perform_vote, &operands);
    return operands.result;
}

inline int own_lane() { return int(running->number % WARP); }
}  // namespace shim

#define __syncwarp(...) shim::vote(__LINE__, 0xffffffffu, true)
#define __shfl_sync(mask, value, from) shim::shuffle(__LINE__, mask, value, (from) & 31)
#define __shfl_xor_sync(mask, value, bits) shim::shuffle(__LINE__, mask, value, shim::own_lane() ^ (bits))
// Lanes without a partner keep their own value, as the instructions define it.
#define __shfl_down_sync(mask, value, by) \
    shim::shuffle(__LINE__, mask, value, shim::own_lane() + int(by) < 32 ? shim::own_lane() + int(by) : shim::own_lane())
#define __shfl_up_sync(mask, value, by) \
    shim::shuffle(__LINE__, mask, value, shim::own_lane() - int(by) >= 0 ? shim::own_lane() - int(by) : shim::own_lane())
#define __ballot_sync(mask, value) shim::vote(__LINE__, mask, value)
#define __any_sync(mask, value) (shim::vote(__LINE__, mask, value) != 0)
#define __all_sync(mask, value) (shim::vote(__LINE__, mask, value) == (mask))

// Fibres share one thread of the host.
inline unsigned atomicAdd(unsigned* at, unsigned value) {
    const unsigned before = *at;
    *at += value;
    return before;
}

// Matrix instructions; fragments as `ptx/matrix.cuh` describes them.
namespace shim {
struct MatrixLoad {
    const unsigned char* row;
    bool transposed;
    uint32_t* registers;
};

inline void perform_matrix_load(void* const* lanes, uint32_t) {
    for (unsigned matrix = 0; matrix < 4; ++matrix) {
        uint16_t element[8][8];
        for (unsigned row = 0; row < 8; ++row) {
            const auto* self = static_cast<const MatrixLoad*>(lanes[matrix * 8 + row]);
            if (uintptr_t(self->row) % 16) fail("ldmatrix from an address that is no multiple of 16");
            std::memcpy(element[row], self->row, 16);
        }
        for (unsigned lane = 0; lane < WARP; ++lane) {
            auto* self = static_cast<MatrixLoad*>(lanes[lane]);
            const unsigned g = lane / 4, t = lane % 4;
            const uint16_t low = self->transposed ? element[2 * t][g] : element[g][2 * t];
            const uint16_t high = self->transposed ? element[2 * t + 1][g] : element[g][2 * t + 1];
            self->registers[matrix] = uint32_t(low) | uint32_t(high) << 16;
        }
    }
}

inline void load_matrices(int line, uint32_t (&registers)[4], const unsigned char* row, bool transposed) {
    MatrixLoad operands{row, transposed, registers};
    warp_operation(0xffffffffu, line, perform_matrix_load, &operands);
}

struct MultiplyAdd {
    float* c;
    const uint32_t* a;
    uint32_t b[2];
    float (*value)(uint16_t);
};

inline void perform_multiply_add(void* const* lanes, uint32_t) {
    float a[16][16], b[16][8];
    for (unsigned lane = 0; lane < WARP; ++lane) {
        const auto* self = static_cast<const MultiplyAdd*>(lanes[lane]);
        const unsigned g = lane / 4, t = lane % 4;
        for (unsigned half = 0; half < 2; ++half) {
            const unsigned shift = 16 * half, k = 2 * t + half;
            for (unsigned part = 0; part < 4; ++part) {
                a[g + part % 2 * 8][k + part / 2 * 8] = self->value(uint16_t(self->a[part] >> shift));
            }
            for (unsigned part = 0; part < 2; ++part) b[k + part * 8][g] = self->value(uint16_t(self->b[part] >> shift));
        }
    }
    for (unsigned lane = 0; lane < WARP; ++lane) {
        auto* self = static_cast<MultiplyAdd*>(lanes[lane]);
        for (unsigned part = 0; part < 4; ++part) {
            const unsigned row = lane / 4 + part / 2 * 8, column = lane % 4 * 2 + part % 2;
            double sum = self->c[part];
            for (unsigned k = 0; k < 16; ++k) sum += double(a[row][k]) * double(b[k][column]);
            self->c[part] = float(sum);
        }
    }
}

inline void multiply_add(int line, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (*value)(uint16_t)) {
    MultiplyAdd operands{c, a, {b0, b1}, value};
    warp_operation(0xffffffffu, line, perform_multiply_add, &operands);
}
}  // namespace shim

inline float __int_as_float(int bits) { return shim::from_bits(uint32_t(bits)); }
inline int __float_as_int(float value) { return int(shim::to_bits(value)); }
inline unsigned __float_as_uint(float value) { return shim::to_bits(value); }
inline float __uint_as_float(unsigned bits) { return shim::from_bits(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(unsigned(bits)) : 32; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
