// A stand-in for NVIDIA's driver, for tests: the calls that v2l-cuda makes, on host memory, with the fusion kernel of host.cpp. It
// checks what it is given as a driver would, and says so in its result. What is enqueued on a stream runs no earlier than somebody
// waits for it. At the end it says what was not given back. $V2L_STAND_IN_MEMORY: bytes of memory.
//
//   c++ -std=c++17 -O1 -ffp-contract=off -shared -fPIC driver.cpp -o libcuda.so

#include "host.cpp"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <string>

namespace {
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500 };
const char *const LIMIT = std::getenv("V2L_STAND_IN_MEMORY");
const size_t TOTAL = LIMIT ? std::strtoull(LIMIT, nullptr, 10) : size_t(1) << 30;
const char *const KERNELS[] = {"fuse_f32", "fuse_f16", "fuse_bf16"};
struct Work {
    int (*run)(void *);
    void *data;
};
struct Stream {
    std::deque<Work> waiting;
    // What went wrong on it first.
    int failed;
};
struct Given {
    std::map<uintptr_t, size_t> allocations;
    std::map<void *, Stream> streams;
    ~Given() {
        if (allocations.empty() && streams.empty()) return;
        std::fprintf(stderr, "stand-in for the driver: %zu allocations and %zu streams are left\n", allocations.size(), streams.size());
    }
} given;
std::map<uintptr_t, size_t> &allocations = given.allocations;
size_t used = 0;
bool initialized = false;
thread_local void *current = nullptr;
int context;

// Whether `bytes` bytes from `at` on lie within an allocation.
bool holds(uintptr_t at, size_t bytes) {
    auto next = allocations.upper_bound(at);
    if (next == allocations.begin()) return false;
    --next;
    return at + bytes <= next->first + next->second;
}

int finish(Stream &stream) {
    while (!stream.waiting.empty()) {
        const Work work = stream.waiting.front();
        stream.waiting.pop_front();
        const int result = work.run(work.data);
        if (stream.failed == SUCCESS) stream.failed = result;
    }
    return stream.failed;
}

// What the default stream does, and what gives memory back, waits for all others.
void finish_all() {
    for (auto &stream : given.streams) finish(stream.second);
}
} // namespace

extern "C" {
int cuInit(unsigned flags) {
    initialized = flags == 0;
    return initialized ? SUCCESS : INVALID_VALUE;
}
int cuDeviceGetCount(int *count) {
    *count = 1;
    return initialized ? SUCCESS : NOT_INITIALIZED;
}
int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? SUCCESS : INVALID_VALUE;
}
int cuDeviceGetName(char *name, int length, int) {
    std::snprintf(name, size_t(length), "stand-in");
    return SUCCESS;
}
int cuDeviceTotalMem_v2(size_t *bytes, int) {
    *bytes = TOTAL;
    return SUCCESS;
}
int cuDeviceGetAttribute(int *value, int attribute, int) {
    // Compute capability 9.0; nothing else.
    *value = attribute == 75 ? 9 : 0;
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void **made, int) {
    *made = &context;
    return initialized ? SUCCESS : NOT_INITIALIZED;
}
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxGetCurrent(void **found) {
    *found = current;
    return SUCCESS;
}
int cuCtxSetCurrent(void *chosen) {
    current = chosen;
    return SUCCESS;
}
int cuStreamCreate(void **stream, unsigned flags) {
    if (!current) return NO_CONTEXT;
    static uintptr_t last = 0;
    *stream = reinterpret_cast<void *>(last += 16);
    given.streams[*stream] = {};
    return flags == 0 ? SUCCESS : INVALID_VALUE;
}
int cuStreamSynchronize(void *stream) {
    const auto found = given.streams.find(stream);
    if (!current) return NO_CONTEXT;
    return found == given.streams.end() ? INVALID_HANDLE : finish(found->second);
}
int cuStreamDestroy_v2(void *stream) {
    const auto found = given.streams.find(stream);
    if (!current) return NO_CONTEXT;
    if (found == given.streams.end()) return INVALID_HANDLE;
    finish(found->second);
    given.streams.erase(found);
    return SUCCESS;
}
int cuCtxSynchronize() {
    finish_all();
    return current ? SUCCESS : NO_CONTEXT;
}
int cuMemGetInfo_v2(size_t *free, size_t *total) {
    *free = TOTAL - used;
    *total = TOTAL;
    return current ? SUCCESS : NO_CONTEXT;
}
int cuMemAlloc_v2(uintptr_t *address, size_t bytes) {
    if (!current) return NO_CONTEXT;
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > TOTAL - used) return OUT_OF_MEMORY;
    void *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!memory) return OUT_OF_MEMORY;
    *address = reinterpret_cast<uintptr_t>(memory);
    allocations[*address] = bytes;
    used += bytes;
    return SUCCESS;
}
int cuMemFree_v2(uintptr_t address) {
    const auto found = allocations.find(address);
    if (!current) return NO_CONTEXT;
    if (found == allocations.end()) return INVALID_VALUE;
    finish_all();
    used -= found->second;
    allocations.erase(found);
    std::free(reinterpret_cast<void *>(address));
    return SUCCESS;
}
int cuMemcpyHtoD_v2(uintptr_t to, const void *from, size_t bytes) {
    if (!current || !holds(to, bytes)) return INVALID_VALUE;
    finish_all();
    std::memcpy(reinterpret_cast<void *>(to), from, bytes);
    return SUCCESS;
}
int cuMemcpyDtoH_v2(void *to, uintptr_t from, size_t bytes) {
    if (!current || !holds(from, bytes)) return INVALID_VALUE;
    finish_all();
    std::memcpy(to, reinterpret_cast<void *>(from), bytes);
    return SUCCESS;
}
int cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, void *stream) {
    if (!current || stream || !holds(to, bytes) || !holds(from, bytes)) return INVALID_VALUE;
    finish_all();
    std::memcpy(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes);
    return SUCCESS;
}
int cuModuleLoadData(void **module, const void *image) {
    if (!current || std::memcmp(image, "\x7f" "ELF", 4) != 0) return INVALID_VALUE;
    *module = &context;
    return SUCCESS;
}
int cuModuleGetFunction(void **function, void *, const char *name) {
    for (const char *const &kernel : KERNELS)
        if (std::string(name) == kernel) {
            *function = const_cast<const char **>(&kernel);
            return SUCCESS;
        }
    return NOT_FOUND;
}
int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz, unsigned shared,
                   void *stream, void **arguments, void **extra) {
    const long element = static_cast<const char *const *>(function) - KERNELS;
    if (!current || y != 1 || z != 1 || threads != emulator::COUNT || ty != 1 || tz != 1 || shared || stream || extra) return INVALID_VALUE;
    uintptr_t at[4];
    for (int i = 0; i < 4; i++) {
        at[i] = *static_cast<uintptr_t *>(arguments[i]);
        if (!holds(at[i], 1)) return INVALID_VALUE;
    }
    if (!holds(at[2], x * sizeof(u32)) || !holds(at[3], x * sizeof(Sums))) return INVALID_VALUE;
    const auto pointer = [&](int i) { return reinterpret_cast<void *>(at[i]); };
    return fuse_host(int(element), pointer(0), pointer(1), pointer(2), pointer(3), x) ? INVALID_VALUE : SUCCESS;
}
// For the stand-in for TensorRT: whether memory is the caller's to use, and work for a stream.
int stand_in_holds(uintptr_t at, size_t bytes) { return holds(at, bytes); }
int stand_in_enqueue(void *stream, int (*run)(void *), void *data) {
    const auto found = given.streams.find(stream);
    if (found == given.streams.end()) return INVALID_HANDLE;
    found->second.waiting.push_back({run, data});
    return SUCCESS;
}
int cuGetErrorName(int error, const char **name) {
    *name = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_STAND_IN";
    return SUCCESS;
}
int cuGetErrorString(int, const char **words) {
    *words = "of the stand-in";
    return SUCCESS;
}
}
