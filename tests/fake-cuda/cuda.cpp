// A CUDA driver without a GPU, for tests: the functions of the driver that the backend calls, on host memory.
//
// "Cubins" are shared objects that the fake compiler beside this file makes of emitted units. Nothing runs when it is put into a stream, but
// only when somebody waits: what reads results or overwrites sources too early sees it. Every allocation ends at a page that may not be
// touched, and starts as NaN. Misuse is reported on standard error and ends the process with status 70; what is left over at its end, with
// status 71.
//
// Environment: FAKE_CUDA_MEMORY, bytes of the device; FAKE_CUDA_CAPABILITY, 90 for 9.0; FAKE_CUDA_DEVICES, their number;
// FAKE_CUDA_FAIL_ALLOCATION=n, the n-th allocation finds no memory; FAKE_CUDA_FAIL_LAUNCH=n, the n-th launch goes wrong; FAKE_CUDA_LOG, a file to
// which a line with counts of what was done is appended.
#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace {

enum Status {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
};

constexpr size_t DEFAULT_SHARED = 48 * 1024;
constexpr size_t PARAMETER_BYTES = 32764;

// As `shim::Launch`.
struct Launch {
    unsigned grid[3];
    unsigned threads;
    size_t shared_bytes;
    const void* arguments;
};

[[noreturn]] void misuse(const char* format, ...) {
    std::fprintf(stderr, "fake driver: ");
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    std::fputc('\n', stderr);
    std::_Exit(70);
}

uint64_t number(const char* variable, uint64_t otherwise) {
    const char* text = std::getenv(variable);
    return text && *text ? std::strtoull(text, nullptr, 10) : otherwise;
}

typedef std::function<void()> Work;

struct Stream {
    std::deque<std::pair<uint64_t, Work>> queue;
    uint64_t put = 0, done = 0;
    bool capturing = false, invalid = false;
    // The thread that captures.
    std::thread::id thread;
    std::vector<Work> captured;
};

struct Graph {
    std::vector<Work> work;
};

struct Event {
    bool timed;
    Stream* stream = nullptr;
    uint64_t place = 0;
    std::chrono::steady_clock::time_point time;
    bool passed = false;
};

struct Module {
    void* library;
};

struct Function {
    Module* module;
    std::string name;
    void (*launch)(const Launch*);
    size_t size;
    size_t most_shared = DEFAULT_SHARED;
    bool loaded = false;
};

struct Memory {
    unsigned char* base;
    size_t mapped, bytes, slack;
};

struct Driver {
    std::mutex lock;
    bool started = false;
    int retained = 0;
    uint64_t total = number("FAKE_CUDA_MEMORY", uint64_t(4) << 30);
    uint64_t capability = number("FAKE_CUDA_CAPABILITY", 90);
    int devices = int(number("FAKE_CUDA_DEVICES", 1));
    uint64_t fail_allocation = number("FAKE_CUDA_FAIL_ALLOCATION", 0);
    uint64_t fail_launch = number("FAKE_CUDA_FAIL_LAUNCH", 0);
    uint64_t used = 0, peak = 0;
    Status broken = SUCCESS;
    std::map<uint64_t, Memory> device;
    std::map<uint64_t, size_t> pinned;
    std::set<Stream*> streams;
    std::set<Event*> events;
    std::set<Module*> modules;
    std::set<Graph*> graphs, executables;
    std::vector<std::unique_ptr<Function>> functions;
    uint64_t allocations = 0, launches = 0, captures = 0, graph_launches = 0, waits = 0, uploads = 0, downloads = 0;
};

// Never destroyed: the process may end while the driver is in use.
Driver& driver() {
    static Driver* const driver = new Driver;
    return *driver;
}

thread_local bool current = false;

void at_end() {
    Driver& d = driver();
    if (const char* path = std::getenv("FAKE_CUDA_LOG")) {
        if (FILE* file = std::fopen(path, "a")) {
            std::fprintf(file,
                         "allocations %llu peak %llu launches %llu captures %llu graph_launches %llu waits %llu uploads %llu downloads "
                         "%llu modules %zu\n",
                         (unsigned long long)d.allocations, (unsigned long long)d.peak, (unsigned long long)d.launches,
                         (unsigned long long)d.captures, (unsigned long long)d.graph_launches, (unsigned long long)d.waits,
                         (unsigned long long)d.uploads, (unsigned long long)d.downloads, d.functions.size());
            std::fclose(file);
        }
    }
    const size_t left[] = {d.device.size(),  d.pinned.size(), d.streams.size(),     d.events.size(),
                           d.modules.size(), d.graphs.size(), d.executables.size(), size_t(d.retained)};
    const char* const names[] = {"allocations", "pinned allocations", "streams", "events", "modules", "graphs", "executable graphs", "contexts"};
    bool any = false;
    for (int i = 0; i < 8; ++i) {
        if (!left[i]) continue;
        std::fprintf(stderr, "fake driver: %zu %s are left over\n", left[i], names[i]);
        any = true;
    }
    if (any) std::_Exit(71);
}

// Everything that needs a context begins with this.
struct Call {
    std::unique_lock<std::mutex> held{driver().lock};
    Call() {
        if (!driver().started) misuse("a call before cuInit");
    }
    Status context() {
        if (!current) misuse("a call on a thread without a context");
        return driver().broken;
    }
    // What a thread may not do while it captures a stream ends the capture.
    bool capturing() {
        bool any = false;
        for (Stream* stream : driver().streams) {
            if (stream->capturing && stream->thread == std::this_thread::get_id()) any = stream->invalid = true;
        }
        return any;
    }
};

#define CONTEXT                                                    \
    Call call;                                                     \
    if (const Status status = call.context()) return int(status)
#define NOT_CAPTURING \
    if (call.capturing()) return CAPTURE_UNSUPPORTED

void put(Stream* stream, Work work) {
    if (!driver().streams.count(stream)) misuse("a stream that is not there");
    if (stream->capturing) {
        stream->captured.push_back(std::move(work));
    } else {
        stream->queue.emplace_back(++stream->put, std::move(work));
    }
}

// Runs what was put into a stream up to a place.
void run(Stream* stream, uint64_t place) {
    while (!stream->queue.empty() && stream->queue.front().first <= place) {
        Work work = std::move(stream->queue.front().second);
        stream->done = stream->queue.front().first;
        stream->queue.pop_front();
        if (!driver().broken) work();
    }
}

void run_everything() {
    for (Stream* stream : driver().streams) run(stream, stream->put);
}

// Checks that bytes lie inside one allocation.
template <class Size>
void inside(const std::map<uint64_t, Size>& list, uint64_t address, size_t bytes, const char* what) {
    auto next = list.upper_bound(address);
    if (next == list.begin()) misuse("%s: %zu bytes at %#llx, which is no memory", what, bytes, (unsigned long long)address);
    --next;
    size_t size;
    if constexpr (std::is_same_v<Size, Memory>) {
        size = next->second.bytes;
    } else {
        size = next->second;
    }
    if (address + bytes > next->first + size) {
        misuse("%s: %zu bytes at %zu of an allocation of %zu", what, bytes, size_t(address - next->first), size);
    }
}

void check_slack(uint64_t address, const Memory& memory) {
    const auto* tail = reinterpret_cast<const unsigned char*>(address) + memory.bytes;
    for (size_t i = 0; i < memory.slack; ++i) {
        if (tail[i] != 0xa5) misuse("something wrote %zu bytes behind an allocation of %zu", i + 1, memory.bytes);
    }
}

const char* name_of(int status) {
    switch (status) {
        case SUCCESS: return "CUDA_SUCCESS";
        case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
        case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
        case NOT_INITIALIZED: return "CUDA_ERROR_NOT_INITIALIZED";
        case INVALID_DEVICE: return "CUDA_ERROR_INVALID_DEVICE";
        case INVALID_IMAGE: return "CUDA_ERROR_INVALID_IMAGE";
        case INVALID_CONTEXT: return "CUDA_ERROR_INVALID_CONTEXT";
        case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
        case NOT_READY: return "CUDA_ERROR_NOT_READY";
        case ILLEGAL_ADDRESS: return "CUDA_ERROR_ILLEGAL_ADDRESS";
        case CAPTURE_UNSUPPORTED: return "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
        case CAPTURE_INVALIDATED: return "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
    }
    return nullptr;
}

}  // namespace

extern "C" {

int cuInit(unsigned) {
    Driver& d = driver();
    std::lock_guard<std::mutex> held(d.lock);
    if (!d.started) std::atexit(at_end);
    d.started = true;
    return SUCCESS;
}

int cuGetErrorName(int status, const char** text) {
    *text = name_of(status);
    return *text ? SUCCESS : INVALID_VALUE;
}

int cuGetErrorString(int status, const char** text) {
    *text = status == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" : "the fake driver says no more";
    return SUCCESS;
}

int cuDriverGetVersion(int* version) {
    *version = 13000;
    return SUCCESS;
}

int cuDeviceGetCount(int* count) {
    Call call;
    *count = driver().devices;
    return SUCCESS;
}

int cuDeviceGet(int* device, int ordinal) {
    Call call;
    if (ordinal < 0 || ordinal >= driver().devices) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

int cuDeviceGetName(char* name, int length, int device) {
    Call call;
    std::snprintf(name, size_t(length), "Fake GPU %d", device);
    return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t* bytes, int) {
    Call call;
    *bytes = driver().total;
    return SUCCESS;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
    Call call;
    const int capability = int(driver().capability);
    switch (attribute) {
        case 16: *value = 2; return SUCCESS;
        case 75: *value = capability / 10; return SUCCESS;
        case 76: *value = capability % 10; return SUCCESS;
        case 97: *value = (capability / 10 == 9 ? 227 : capability == 80 ? 163 : 99) * 1024; return SUCCESS;
    }
    misuse("device attribute %d", attribute);
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
    Call call;
    ++driver().retained;
    *context = reinterpret_cast<void*>(intptr_t(device) + 1);
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int) {
    Call call;
    if (--driver().retained < 0) misuse("a context released more often than retained");
    return SUCCESS;
}

int cuCtxSetCurrent(void* context) {
    Call call;
    current = context != nullptr;
    return SUCCESS;
}

int cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    CONTEXT;
    *total = driver().total;
    *free_bytes = driver().total - driver().used;
    return SUCCESS;
}

int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    CONTEXT;
    NOT_CAPTURING;
    Driver& d = driver();
    if (bytes == 0) return INVALID_VALUE;
    if (++d.allocations == d.fail_allocation || bytes > d.total - d.used) return OUT_OF_MEMORY;
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const size_t padded = (bytes + 255) / 256 * 256;
    const size_t inner = (padded + page - 1) / page * page;
    const size_t mapped = inner + 2 * page;
    void* base = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return OUT_OF_MEMORY;
    auto* first = static_cast<unsigned char*>(base) + page;
    if (mprotect(first, inner, PROT_READ | PROT_WRITE)) return OUT_OF_MEMORY;
    unsigned char* begin = first + inner - padded;
    std::memset(begin, 0xff, bytes);
    std::memset(begin + bytes, 0xa5, padded - bytes);
    d.device[uint64_t(begin)] = {static_cast<unsigned char*>(base), mapped, bytes, padded - bytes};
    d.used += bytes;
    d.peak = d.used > d.peak ? d.used : d.peak;
    *address = uint64_t(begin);
    return SUCCESS;
}

int cuMemFree_v2(uint64_t address) {
    Call call;
    NOT_CAPTURING;
    Driver& d = driver();
    run_everything();
    const auto found = d.device.find(address);
    if (found == d.device.end()) misuse("cuMemFree of %#llx, which was not allocated", (unsigned long long)address);
    check_slack(address, found->second);
    munmap(found->second.base, found->second.mapped);
    d.used -= found->second.bytes;
    d.device.erase(found);
    return d.broken;
}

int cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    CONTEXT;
    NOT_CAPTURING;
    if (bytes == 0) return INVALID_VALUE;
    *pointer = std::malloc(bytes);
    driver().pinned[uint64_t(*pointer)] = bytes;
    return SUCCESS;
}

int cuMemFreeHost(void* pointer) {
    Call call;
    NOT_CAPTURING;
    run_everything();
    if (!driver().pinned.erase(uint64_t(pointer))) misuse("cuMemFreeHost of memory that was not allocated");
    std::free(pointer);
    return driver().broken;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, Stream* stream) {
    CONTEXT;
    inside(driver().device, to, bytes, "cuMemcpyHtoDAsync");
    inside(driver().pinned, uint64_t(from), bytes, "cuMemcpyHtoDAsync");
    driver().uploads += bytes;
    put(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), from, bytes); });
    return SUCCESS;
}

int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Stream* stream) {
    CONTEXT;
    inside(driver().device, from, bytes, "cuMemcpyDtoHAsync");
    inside(driver().pinned, uint64_t(to), bytes, "cuMemcpyDtoHAsync");
    driver().downloads += bytes;
    put(stream, [=] { std::memcpy(to, reinterpret_cast<void*>(from), bytes); });
    return SUCCESS;
}

int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Stream* stream) {
    CONTEXT;
    inside(driver().device, to, bytes, "cuMemcpyDtoDAsync");
    inside(driver().device, from, bytes, "cuMemcpyDtoDAsync");
    if (to < from + bytes && from < to + bytes) misuse("cuMemcpyDtoDAsync of places that overlap");
    put(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
    return SUCCESS;
}

int cuMemsetD8Async(uint64_t to, unsigned char byte, size_t bytes, Stream* stream) {
    CONTEXT;
    inside(driver().device, to, bytes, "cuMemsetD8Async");
    put(stream, [=] { std::memset(reinterpret_cast<void*>(to), byte, bytes); });
    return SUCCESS;
}

int cuModuleLoadData(Module** module, const void* image) {
    CONTEXT;
    NOT_CAPTURING;
    Elf64_Ehdr header;
    std::memcpy(&header, image, sizeof header);
    if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_machine != 190) return INVALID_IMAGE;
    if ((header.e_flags >> 8 & 0xff) != driver().capability) return INVALID_IMAGE;
    const size_t bytes = header.e_shoff + size_t(header.e_shnum) * header.e_shentsize;
    // As the fake compiler found it.
#if defined(__x86_64__)
    header.e_machine = EM_X86_64;
#else
    header.e_machine = EM_AARCH64;
#endif
    header.e_flags = 0;
    header.e_ident[EI_ABIVERSION] = 0;
    std::string path = (std::filesystem::temp_directory_path() / "fake-cubin-XXXXXX").string();
    const int file = mkstemp(path.data());
    if (file < 0) return INVALID_IMAGE;
    const auto* rest = static_cast<const unsigned char*>(image) + sizeof header;
    const size_t length = bytes - sizeof header;
    const bool written = write(file, &header, sizeof header) == ssize_t(sizeof header) && write(file, rest, length) == ssize_t(length);
    close(file);
    void* library = written ? dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
    unlink(path.c_str());
    if (!library) {
        std::fprintf(stderr, "fake driver: %s\n", dlerror());
        return INVALID_IMAGE;
    }
    *module = new Module{library};
    driver().modules.insert(*module);
    return SUCCESS;
}

int cuModuleUnload(Module* module) {
    Call call;
    NOT_CAPTURING;
    run_everything();
    if (!driver().modules.erase(module)) misuse("cuModuleUnload of a module that is not loaded");
    dlclose(module->library);
    delete module;
    return driver().broken;
}

int cuModuleGetFunction(Function** function, Module* module, const char* name) {
    CONTEXT;
    if (!driver().modules.count(module)) misuse("cuModuleGetFunction of a module that is not loaded");
    const std::string text(name);
    const auto launch = reinterpret_cast<void (*)(const Launch*)>(dlsym(module->library, ("shim_launch_" + text).c_str()));
    const auto* size = static_cast<const size_t*>(dlsym(module->library, ("shim_size_" + text).c_str()));
    if (!launch || !size) return NOT_FOUND;
    driver().functions.push_back(std::make_unique<Function>(Function{module, text, launch, *size}));
    *function = driver().functions.back().get();
    return SUCCESS;
}

int cuFuncLoad(Function* function) {
    CONTEXT;
    function->loaded = true;
    return SUCCESS;
}

int cuFuncSetAttribute(Function* function, int attribute, int value) {
    CONTEXT;
    int most;
    if (attribute != 8) misuse("function attribute %d", attribute);
    call.held.unlock();
    cuDeviceGetAttribute(&most, 97, 0);
    if (value < 0 || value > most) return INVALID_VALUE;
    function->most_shared = size_t(value);
    return SUCCESS;
}

int cuFuncGetAttribute(int* value, int attribute, Function*) {
    CONTEXT;
    switch (attribute) {
        case 0: *value = 1024; return SUCCESS;
        case 4: *value = 32; return SUCCESS;
    }
    misuse("function attribute %d", attribute);
}

int cuLaunchKernel(Function* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz, unsigned shared_bytes,
                   Stream* stream, void** parameters, void** extra) {
    CONTEXT;
    const char* name = function->name.c_str();
    if (!driver().modules.count(function->module)) misuse("%s: its module is not loaded", name);
    if (!function->loaded) misuse("%s: launched before cuFuncLoad", name);
    if (!x || !y || !z || x > 0x7fffffff || y > 65535 || z > 65535) misuse("%s: a grid of %u x %u x %u blocks", name, x, y, z);
    if (!threads || threads > 1024 || threads % 32 || ty != 1 || tz != 1) misuse("%s: blocks of %u x %u x %u threads", name, threads, ty, tz);
    if (shared_bytes > function->most_shared) {
        misuse("%s: %u bytes of shared memory, %zu are allowed", name, shared_bytes, function->most_shared);
    }
    if (function->size > PARAMETER_BYTES) misuse("%s: a parameter of %zu bytes", name, function->size);
    if (extra || !parameters) misuse("%s: parameters in another form", name);
    const auto* bytes = static_cast<const unsigned char*>(parameters[0]);
    std::vector<unsigned char> arguments(bytes, bytes + function->size);
    put(stream, [=] {
        if (++driver().launches == driver().fail_launch) {
            driver().broken = ILLEGAL_ADDRESS;
            return;
        }
        const Launch launch{{x, y, z}, threads, shared_bytes, arguments.data()};
        function->launch(&launch);
    });
    return SUCCESS;
}

int cuStreamCreate(Stream** stream, unsigned) {
    CONTEXT;
    *stream = new Stream;
    driver().streams.insert(*stream);
    return SUCCESS;
}

int cuStreamDestroy_v2(Stream* stream) {
    Call call;
    if (!driver().streams.count(stream)) misuse("cuStreamDestroy of a stream that is not there");
    run(stream, stream->put);
    driver().streams.erase(stream);
    delete stream;
    return driver().broken;
}

int cuStreamSynchronize(Stream* stream) {
    CONTEXT;
    if (stream->capturing) {
        stream->invalid = true;
        return CAPTURE_UNSUPPORTED;
    }
    ++driver().waits;
    run(stream, stream->put);
    return driver().broken;
}

int cuStreamBeginCapture_v2(Stream* stream, int mode) {
    CONTEXT;
    if (stream->capturing) return INVALID_VALUE;
    if (mode != 1) misuse("a capture that other threads disturb");
    stream->capturing = true;
    stream->thread = std::this_thread::get_id();
    stream->invalid = false;
    stream->captured.clear();
    ++driver().captures;
    return SUCCESS;
}

int cuStreamEndCapture(Stream* stream, Graph** graph) {
    CONTEXT;
    *graph = nullptr;
    if (!stream->capturing) return INVALID_VALUE;
    stream->capturing = false;
    if (stream->invalid) return CAPTURE_INVALIDATED;
    *graph = new Graph{std::move(stream->captured)};
    driver().graphs.insert(*graph);
    return SUCCESS;
}

int cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long) {
    CONTEXT;
    if (!driver().graphs.count(graph)) misuse("cuGraphInstantiate of a graph that is not there");
    *executable = new Graph(*graph);
    driver().executables.insert(*executable);
    return SUCCESS;
}

int cuGraphDestroy(Graph* graph) {
    Call call;
    if (!driver().graphs.erase(graph)) misuse("cuGraphDestroy of a graph that is not there");
    delete graph;
    return driver().broken;
}

int cuGraphLaunch(Graph* executable, Stream* stream) {
    CONTEXT;
    if (!driver().executables.count(executable)) misuse("cuGraphLaunch of a graph that is not there");
    ++driver().graph_launches;
    for (const Work& work : executable->work) put(stream, work);
    return SUCCESS;
}

int cuGraphExecDestroy(Graph* executable) {
    Call call;
    run_everything();
    if (!driver().executables.erase(executable)) misuse("cuGraphExecDestroy of a graph that is not there");
    delete executable;
    return driver().broken;
}

int cuEventCreate(Event** event, unsigned flags) {
    CONTEXT;
    *event = new Event{(flags & 2) == 0};
    driver().events.insert(*event);
    return SUCCESS;
}

int cuEventRecord(Event* event, Stream* stream) {
    CONTEXT;
    if (stream->capturing) {
        stream->invalid = true;
        return CAPTURE_UNSUPPORTED;
    }
    event->stream = stream;
    event->passed = false;
    put(stream, [=] {
        event->passed = true;
        event->time = std::chrono::steady_clock::now();
    });
    event->place = stream->put;
    return SUCCESS;
}

int cuEventSynchronize(Event* event) {
    CONTEXT;
    if (event->stream && driver().streams.count(event->stream)) run(event->stream, event->place);
    return driver().broken;
}

int cuEventElapsedTime_v2(float* milliseconds, Event* start, Event* end) {
    CONTEXT;
    if (!start->timed || !end->timed) return INVALID_VALUE;
    if (!start->passed || !end->passed) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
    return SUCCESS;
}

int cuEventDestroy_v2(Event* event) {
    Call call;
    run_everything();
    if (!driver().events.erase(event)) misuse("cuEventDestroy of an event that is not there");
    delete event;
    return driver().broken;
}

}  // extern "C"
