// Runs launches: those of a task file, writing the memory that they leave, or single ones of a shared object that a fake driver loads.
//
// A shared object has the functions `shim_launch_NAME(const shim::Launch*)` and the numbers `shim_size_NAME`, the bytes of the parameter, by
// SHIM_ENTRY for every kernel.
//
// Task and result are in the byte order of the host, without padding:
//   task    u64 seed, u64 segments, { u64 bytes, bytes } …, u64 launches, launch …
//   launch  u64 entry, u64 x, y, z of the grid, u64 threads, u64 shared bytes, u64 operands, { u64 segment, u64 offset } …,
//           u64 sizes, { i64 size } …, u64 scratch segment
//   result  { bytes of every segment } …
#pragma once

#include "shim.hpp"

namespace shim {

struct Call {
    std::vector<void*> operands;
    std::vector<int64_t> sizes;
    void* scratch;
};

struct Entry {
    const char* name;
    // What one thread does.
    void (*thread)(const Call& call);
};

template <class Arguments>
Arguments arguments_of(const Call& call) {
    Arguments arguments{};
    for (size_t i = 0; i < call.operands.size(); ++i) arguments.o[i] = call.operands[i];
    for (size_t i = 0; i < call.sizes.size(); ++i) arguments.s[i] = int(call.sizes[i]);
    arguments.scratch = call.scratch;
    return arguments;
}

inline FILE* open_file(const char* path, const char* mode) {
    FILE* file = std::fopen(path, mode);
    if (!file) {
        std::perror(path);
        std::exit(2);
    }
    return file;
}

inline void read_exactly(void* to, size_t bytes, FILE* file) {
    if (bytes && std::fread(to, 1, bytes, file) != bytes) {
        std::fprintf(stderr, "shim: the task ends early\n");
        std::exit(2);
    }
}

inline uint64_t read_number(FILE* file) {
    uint64_t number;
    read_exactly(&number, 8, file);
    return number;
}

// Runs the blocks of the grid `grid_extent`, one after the other.
inline void run_grid(unsigned threads, size_t shared_bytes) {
    for (unsigned z = 0; z < grid_extent.z; ++z) {
        for (unsigned y = 0; y < grid_extent.y; ++y) {
            for (unsigned x = 0; x < grid_extent.x; ++x) {
                block_index = {x, y, z};
                const size_t whole = (shared_bytes + 1023) / 1024 * 1024;
                shared_memory = static_cast<unsigned char*>(std::aligned_alloc(1024, whole ? whole : 1024));
                std::memset(shared_memory, 0xff, whole);
#ifdef SHIM_ASAN
                __asan_poison_memory_region(shared_memory + shared_bytes, whole - shared_bytes);
#endif
                run_block(threads);
#ifdef SHIM_ASAN
                __asan_unpoison_memory_region(shared_memory, whole);
#endif
                std::free(shared_memory);
            }
        }
    }
}

// A launch of a function of a shared object.
struct Launch {
    unsigned grid[3];
    unsigned threads;
    size_t shared_bytes;
    // The function's parameter.
    const void* arguments;
};

template <class Arguments>
void run_launch(const char* name, void (*thread)(Arguments), const Launch& launch) {
    kernel_name = name;
    grid_extent = {launch.grid[0], launch.grid[1], launch.grid[2]};
    block_extent = {launch.threads, 1, 1};
    Arguments arguments;
    std::memcpy(&arguments, launch.arguments, sizeof arguments);
    body = [&] { thread(arguments); };
    run_grid(launch.threads, launch.shared_bytes);
    // Its code goes with the shared object.
    body = nullptr;
}

#define SHIM_ENTRY(unit, function)                                                                     \
    extern "C" void shim_launch_##function(const shim::Launch* launch) {                               \
        shim::run_launch<unit::Arguments>(#unit "." #function, unit::function, *launch);               \
    }                                                                                                  \
    extern "C" const size_t shim_size_##function = sizeof(unit::Arguments);

inline int run_task(const Entry* entries, const char* task, const char* result) {
    FILE* file = open_file(task, "rb");
    random_state = read_number(file) * 2 + 1;
    std::vector<std::pair<unsigned char*, size_t>> segments(read_number(file));
    for (auto& [memory, bytes] : segments) {
        bytes = read_number(file);
        // Rounded up as little as the allocator allows: what lies behind is out of bounds.
        memory = static_cast<unsigned char*>(std::aligned_alloc(256, (bytes + 256) / 256 * 256));
#ifdef SHIM_ASAN
        // The tail that only alignment needs.
        __asan_poison_memory_region(memory + bytes, (bytes + 256) / 256 * 256 - bytes);
#endif
        read_exactly(memory, bytes, file);
    }
    for (uint64_t launches = read_number(file); launches; --launches) {
        const Entry& entry = entries[read_number(file)];
        kernel_name = entry.name;
        grid_extent.x = unsigned(read_number(file));
        grid_extent.y = unsigned(read_number(file));
        grid_extent.z = unsigned(read_number(file));
        const unsigned threads = unsigned(read_number(file));
        block_extent = {threads, 1, 1};
        const size_t shared_bytes = read_number(file);
        Call call;
        call.operands.resize(read_number(file));
        for (void*& operand : call.operands) {
            const uint64_t segment = read_number(file), offset = read_number(file);
            operand = segments.at(segment).first + offset;
        }
        call.sizes.resize(read_number(file));
        for (int64_t& size : call.sizes) size = int64_t(read_number(file));
        call.scratch = segments.at(read_number(file)).first;
        body = [&] { entry.thread(call); };
        run_grid(threads, shared_bytes);
    }
    std::fclose(file);
    FILE* out = open_file(result, "wb");
    for (auto& [memory, bytes] : segments) std::fwrite(memory, 1, bytes, out);
    return std::fclose(out) ? 2 : 0;
}

}  // namespace shim
