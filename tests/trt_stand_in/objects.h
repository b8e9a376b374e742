// What all objects of the stand-in share: the driver, the log, the end of the process when TensorRT would do what nobody knows.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>

#include <dlfcn.h>

#include "plan.h"

namespace stand_in {

// For what NVIDIA's documentation forbids without saying what then happens.
[[noreturn]] inline void forbidden(const char *what) {
    std::fprintf(stderr, "stand-in for TensorRT: %s\n", what);
    std::abort();
}

// In methods that nobody is to call.
[[noreturn]] inline void unused(const char *method) {
    std::fprintf(stderr, "stand-in for TensorRT: %s is called, which does nothing here\n", method);
    std::abort();
}

// Counts the objects that are alive, and says at the end how many there are.
struct Alive {
    int count = 0;
    const char *const what;
    explicit Alive(const char *what) : what(what) {}
    ~Alive() {
        if (count != 0) std::fprintf(stderr, "stand-in for TensorRT: %d %s are left\n", count, what);
    }
};

// The stand-in for the driver, which whoever calls has loaded; none of its functions is called without it.
struct Driver {
    int (*context)(void **);
    int (*attribute)(int *, int, int);
    int (*allocate)(uintptr_t *, size_t);
    int (*release)(uintptr_t);
    int (*holds)(uintptr_t, size_t);
    int (*enqueue)(void *, int (*)(void *), void *);

    static const Driver *get() {
        // By this name, under which it is not in its folder, only what is loaded already is found.
        static void *const library = dlopen("libcuda.so.1", RTLD_NOW);
        static Driver driver;
        if (!library) return nullptr;
        const auto find = [](auto &function, const char *name) {
            function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
            if (!function) forbidden("the driver is not the stand-in");
        };
        find(driver.context, "cuCtxGetCurrent");
        find(driver.attribute, "cuDeviceGetAttribute");
        find(driver.allocate, "cuMemAlloc_v2");
        find(driver.release, "cuMemFree_v2");
        find(driver.holds, "stand_in_holds");
        find(driver.enqueue, "stand_in_enqueue");
        return &driver;
    }

    // The driver, if the calling thread has a current context.
    static const Driver *current() {
        const Driver *driver = get();
        void *context = nullptr;
        return driver && driver->context(&context) == 0 && context ? driver : nullptr;
    }
};

// The driver, which must be there by now.
inline const Driver &driver(const char *what) {
    const Driver *driver = Driver::current();
    if (!driver) forbidden((std::string(what) + " without a current CUDA context").c_str());
    return *driver;
}

// Memory of the device.
class Memory {
public:
    static std::unique_ptr<Memory> make(size_t bytes) {
        std::unique_ptr<Memory> memory(new Memory);
        if (bytes != 0 && driver("allocating").allocate(&memory->address_, bytes) != 0) return nullptr;
        return memory;
    }
    ~Memory() {
        if (address_ != 0 && driver("freeing").release(address_) != 0) forbidden("memory was freed before");
    }
    char *data() const { return reinterpret_cast<char *>(address_); }

private:
    Memory() = default;
    uintptr_t address_ = 0;
};

// Work that runs when somebody waits for the stream; false if there is no such stream.
inline bool enqueue(void *stream, std::function<int()> work) {
    auto owned = std::make_unique<std::function<int()>>(std::move(work));
    const auto run = [](void *data) {
        const std::unique_ptr<std::function<int()>> work(static_cast<std::function<int()> *>(data));
        return (*work)();
    };
    if (driver("enqueueing").enqueue(stream, run, owned.get()) != 0) return false;
    owned.release();
    return true;
}

class Log {
public:
    explicit Log(nvinfer1::ILogger &logger) : logger_(logger) {}
    __attribute__((format(printf, 2, 3))) bool error(const char *format, ...) const {
        char text[512];
        va_list values;
        va_start(values, format);
        std::vsnprintf(text, sizeof text, format, values);
        va_end(values);
        logger_.log(nvinfer1::ILogger::Severity::kERROR, text);
        return false;
    }

private:
    nvinfer1::ILogger &logger_;
};

} // namespace stand_in
