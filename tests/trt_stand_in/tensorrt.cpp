// A stand-in for libtensorrt_rtx.so.1 or libnvinfer.so.11, for tests, on the stand-in for the driver: runtime, engine, refitter and
// context, as NVIDIA's headers declare them, of whichever flavour it is compiled with. What TensorRT refuses is refused with a word to
// the log; what is forbidden ends the process, as does every method that run.inc does not call (unused.h, which the test makes of the
// headers). plan.h says what its plans are.

#include "objects.h"
#include "unused.h"

using namespace nvinfer1;

namespace stand_in {
namespace {

Alive runtimes("runtimes"), engines("engines"), refitters("refitters"), contexts("contexts");
#ifdef TRT_MAJOR_RTX
Alive configs("runtime configurations");
#endif

Dims dims(const Shape &shape) {
    Dims dims{};
    dims.nbDims = int32_t(shape.size());
    std::copy(shape.begin(), shape.end(), dims.d);
    return dims;
}

std::set<ICudaEngine *> loaded;

class Engine final : public ICudaEngine, public UnusedCudaEngine {
public:
    struct Held {
        std::unique_ptr<Memory> memory;
        bool set;
    };

    const Plan plan;
    const Log log;
    // Its runtime's, which it must not outlive.
    int &siblings;
    std::map<std::string, Held> held;
    int users = 0, waiting = 0;
    bool damaged = false;

    Engine(const Plan &plan, const Log &log, int &siblings) : plan(plan), log(log), siblings(siblings) {
        mImpl = this;
        engines.count++;
        siblings++;
        loaded.insert(this);
    }
    ~Engine() noexcept override {
        if (users != 0) forbidden("an engine is freed before its refitter or context");
        if (waiting != 0) forbidden("an engine is freed while a stream has work for it");
        loaded.erase(this);
        siblings--;
        engines.count--;
    }

    // Memory for the weights, with the values that the plan has.
    bool allocate() {
        for (const Weight &weight : plan.weights) {
            const std::vector<char> bytes = filled(weight);
            std::unique_ptr<Memory> memory = Memory::make(bytes.size());
            if (!memory) return refuse_memory(bytes.size());
            if (!weight.placeholder) std::memcpy(memory->data(), bytes.data(), bytes.size());
            held[weight.name] = {std::move(memory), !weight.placeholder};
        }
        return true;
    }
    // In the words of the real one.
    bool refuse_memory(size_t bytes) const {
        log.error("[allocate] Error Code 1: Cuda Runtime (out of memory)");
        return log.error("[resize] Error Code 2: OutOfMemory (Requested size was %zu bytes.)", bytes);
    }

    int32_t getNbIOTensors() const noexcept override { return int32_t(plan.ports.size()); }
    char const *getIOTensorName(int32_t index) const noexcept override {
        return index >= 0 && size_t(index) < plan.ports.size() ? plan.ports[size_t(index)].name.c_str() : nullptr;
    }
    TensorIOMode getTensorIOMode(char const *name) const noexcept override {
        const Port *port = plan.port(name);
        return !port ? TensorIOMode::kNONE : port->is_input ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    DataType getTensorDataType(char const *name) const noexcept override {
        const Port *port = plan.port(name);
        return port ? port->type : DataType::kFLOAT;
    }
    Dims getTensorShape(char const *name) const noexcept override {
        const Port *port = plan.port(name);
        Dims none{};
        none.nbDims = -1;
        return port ? dims(port->shape) : none;
    }
    TensorLocation getTensorLocation(char const *) const noexcept override { return TensorLocation::kDEVICE; }
    bool isShapeInferenceIO(char const *) const noexcept override { return false; }
    TensorFormat getTensorFormat(char const *) const noexcept override { return TensorFormat::kLINEAR; }
    int64_t getDeviceMemorySizeV2() const noexcept override { return int64_t(plan.memory); }
    IExecutionContext *createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override;
#ifdef TRT_MAJOR_RTX
    IRuntimeConfig *createRuntimeConfig() noexcept override;
    IExecutionContext *createExecutionContextWithRuntimeConfig(IRuntimeConfig *config) noexcept override;
#endif
};

// Weights as they were set. Values are read when the stream comes to the refit.
class Refitter final : public IRefitter, public UnusedRefitter {
public:
    Refitter(Engine &engine, const Log &log) : engine_(engine), log_(log) {
        mImpl = this;
        engine.users++;
        refitters.count++;
    }
    ~Refitter() noexcept override {
        if (waiting_ != 0) forbidden("a refitter is freed while a stream has its work");
        engine_.users--;
        refitters.count--;
    }

    bool setMaxThreads(int32_t threads) noexcept override { return threads >= 1 || log_.error("setMaxThreads: %d", threads); }
    void setWeightsValidation(bool) noexcept override {}

    int32_t getAllWeights(int32_t size, char const **names) noexcept override {
        std::vector<const char *> found;
        for (const Weight &weight : engine_.plan.weights) found.push_back(weight.name.c_str());
        return give(found, size, names);
    }
    int32_t getMissingWeights(int32_t size, char const **names) noexcept override { return give(missing(), size, names); }

    Weights getWeightsPrototype(char const *name) const noexcept override {
        const Weight *weight = engine_.plan.weight(name);
        return weight ? Weights{weight->type, nullptr, weight->count} : Weights{DataType::kFLOAT, nullptr, -1};
    }

    bool setNamedWeightsWithLocation(char const *name, Weights weights, TensorLocation location) noexcept override {
        if (waiting_ != 0) forbidden("a weight is set while a refit runs");
        const Weight *weight = engine_.plan.weight(name);
        if (!weight) return log_.error("setNamedWeights: no weight %s", name);
        if (weights.type != weight->type || weights.count != weight->count || !weights.values)
            return log_.error("setNamedWeights: %s is of type %d with %ld elements, found type %d with %ld", name, int(weight->type),
                              long(weight->count), int(weights.type), long(weights.count));
        given_[name] = {weights.values, location == TensorLocation::kDEVICE};
        return true;
    }
    bool unsetNamedWeights(char const *name) noexcept override {
        if (waiting_ != 0) forbidden("a weight is unset while a refit runs");
        return given_.erase(name) == 1 || log_.error("unsetNamedWeights: %s is not set", name);
    }

    bool refitCudaEngineAsync(cudaStream_t stream) noexcept override {
        static int refits = 0;
        const Driver &device = driver("refitCudaEngineAsync");
        if (engine_.damaged) forbidden("an engine is refit whose refit has failed before");
        if (engine_.waiting != 0) forbidden("an engine is refit while a stream has work for it");
        if (!missing().empty()) return log_.error("refitCudaEngineAsync: %zu weights are missing", missing().size());
        refits++;
        const bool fails = refits == engine_.plan.failing, breaks = refits == engine_.plan.breaking;
        waiting_++;
        engine_.waiting++;
        const auto work = [this, &device, fails, breaks] {
            waiting_--;
            engine_.waiting--;
            size_t left = fails || breaks ? given_.size() / 2 : given_.size();
            for (const auto &[name, source] : given_) {
                if (left-- == 0) break;
                const Weight &weight = *engine_.plan.weight(name);
                const size_t bytes = size_t(weight.count) * size_of(weight.type);
                if (source.on_device && !device.holds(reinterpret_cast<uintptr_t>(source.values), bytes))
                    forbidden(("device memory of " + name + " is none").c_str());
                Engine::Held &held = engine_.held[name];
                if (engine_.plan.ignored.count(name) == 0) std::memcpy(held.memory->data(), source.values, bytes);
                held.set = true;
            }
            if (engine_.plan.forgets) given_.clear();
            // CUDA_ERROR_LAUNCH_FAILED
            return breaks ? 719 : 0;
        };
        if (!enqueue(stream, work)) forbidden("refitCudaEngineAsync on a stream that is none");
        engine_.damaged = fails || breaks;
        return !fails || log_.error("refitCudaEngineAsync: the planted failure");
    }

private:
    struct Source {
        const void *values;
        bool on_device;
    };

    static int32_t give(const std::vector<const char *> &found, int32_t size, char const **names) {
        for (size_t i = 0; i < found.size() && i < size_t(size); i++) names[i] = found[i];
        return int32_t(found.size());
    }

    // Weights without a value, and those that go together with one that is set.
    std::vector<const char *> missing() const {
        std::set<std::string> needed;
        for (const std::set<std::string> &group : engine_.plan.together)
            for (const std::string &name : group)
                if (given_.count(name) != 0) needed.insert(group.begin(), group.end());
        std::vector<const char *> found;
        for (const Weight &weight : engine_.plan.weights) {
            const bool lacking = !engine_.held.at(weight.name).set || needed.count(weight.name) != 0;
            if (lacking && given_.count(weight.name) == 0) found.push_back(weight.name.c_str());
        }
        return found;
    }

    Engine &engine_;
    const Log log_;
    std::map<std::string, Source> given_;
    int waiting_ = 0;
};

class Context final : public IExecutionContext, public UnusedExecutionContext {
public:
    Context(Engine &engine, std::unique_ptr<Memory> activations) : engine_(engine), activations_(std::move(activations)) {
        mImpl = this;
        engine.users++;
        contexts.count++;
    }
    ~Context() noexcept override {
        if (waiting_ != 0) forbidden("a context is freed while it runs");
        engine_.users--;
        contexts.count--;
    }

    bool setOptimizationProfileAsync(int32_t index, cudaStream_t stream) noexcept override {
        if (index < 0 || size_t(index) >= profiles()) return engine_.log.error("setOptimizationProfileAsync: no profile %d", index);
        if (!enqueue(stream, [] { return 0; })) forbidden("setOptimizationProfileAsync on a stream that is none");
        profile_ = index;
        shapes_.clear();
        return true;
    }
    bool setInputShape(char const *name, Dims const &given) noexcept override {
        if (profile_ < 0) forbidden("setInputShape before a profile is chosen");
        const Port *port = engine_.plan.port(name);
        const Shape shape(given.d, given.d + std::max(given.nbDims, 0));
        if (!port || !port->is_input || shape.size() != port->shape.size())
            return engine_.log.error("setInputShape: no input %s of %d axes", name, given.nbDims);
        const Range *range = nullptr;
        if (size_t(profile_) < engine_.plan.profiles.size()) {
            const auto &ranges = engine_.plan.profiles[size_t(profile_)];
            const auto found = ranges.find(name);
            range = found == ranges.end() ? nullptr : &found->second;
        }
        for (size_t axis = 0; axis < shape.size(); axis++) {
            const int64_t fixed = port->shape[axis], extent = shape[axis];
            const bool free = fixed < 0 && range && range->min[axis] <= extent && extent <= range->max[axis];
            if (extent != fixed && !free)
                return engine_.log.error("setInputShape: extent %ld of axis %zu of %s lies out of profile %d", long(extent), axis, name,
                                         profile_);
        }
        shapes_[name] = shape;
        return true;
    }
    Dims getTensorShape(char const *name) const noexcept override {
        const std::map<std::string, Shape> known = inferred();
        const auto found = known.find(name);
        return found == known.end() ? static_cast<const Engine &>(engine_).getTensorShape(name) : dims(found->second);
    }
    bool setTensorAddress(char const *name, void *data) noexcept override {
        if (!engine_.plan.port(name)) return engine_.log.error("setTensorAddress: no input or output %s", name);
        addresses_[name] = static_cast<char *>(data);
        return true;
    }

    bool enqueueV3(cudaStream_t stream) noexcept override {
        const Driver &device = driver("enqueueV3");
        if (engine_.damaged) forbidden("an engine runs whose refit has failed");
        const std::map<std::string, Shape> shapes = inferred();
        for (const Port &port : engine_.plan.ports) {
            const auto shape = shapes.find(port.name);
            if (shape == shapes.end()) return engine_.log.error("enqueueV3: the shape of %s is not known", port.name.c_str());
            const auto address = addresses_.find(port.name);
            if (address == addresses_.end()) return engine_.log.error("enqueueV3: %s has no address", port.name.c_str());
            const size_t bytes = size_t(elements(shape->second)) * size_of(port.type);
            const auto at = reinterpret_cast<uintptr_t>(address->second);
            if (at % 256 != 0) forbidden(("the memory of " + port.name + " begins at no multiple of 256").c_str());
            if (!device.holds(at, bytes)) forbidden(("the memory of " + port.name + " is too small, or none").c_str());
        }
        waiting_++;
        engine_.waiting++;
        const auto work = [this, shapes, addresses = addresses_] {
            waiting_--;
            engine_.waiting--;
            run(shapes, addresses);
            return 0;
        };
        if (!enqueue(stream, work)) forbidden("enqueueV3 on a stream that is none");
        return true;
    }

private:
    size_t profiles() const { return std::max<size_t>(engine_.plan.profiles.size(), 1); }

    // The shapes that follow from the inputs' as they are.
    std::map<std::string, Shape> inferred() const {
        std::map<std::string, Shape> shapes = shapes_;
        return infer(engine_.plan, shapes) ? shapes : shapes_;
    }

    void run(const std::map<std::string, Shape> &shapes, const std::map<std::string, char *> &addresses) const {
        std::map<std::string, Value> values;
        for (const Weight &weight : engine_.plan.weights) {
            Value value{{weight.count}, std::vector<float>(size_t(weight.count))};
            widen(weight.type, engine_.held.at(weight.name).memory->data(), value.data);
            values[weight.name] = value;
        }
        for (const Port &port : engine_.plan.ports) {
            if (!port.is_input) continue;
            const Shape &shape = shapes.at(port.name);
            Value value{shape, std::vector<float>(size_t(elements(shape)))};
            widen(port.type, addresses.at(port.name), value.data);
            values[port.name] = value;
        }
        compute(engine_.plan, values);
        for (const Port &port : engine_.plan.ports) {
            const std::vector<float> &data = values[port.name].data;
            if (!port.is_input) std::memcpy(addresses.at(port.name), data.data(), data.size() * sizeof(float));
        }
    }

    Engine &engine_;
    const std::unique_ptr<Memory> activations_;
    int profile_ = -1, waiting_ = 0;
    std::map<std::string, Shape> shapes_;
    std::map<std::string, char *> addresses_;
};

IExecutionContext *Engine::createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept {
    driver("createExecutionContext");
    if (strategy != ExecutionContextAllocationStrategy::kSTATIC) unused("a context without activations");
    if (damaged) forbidden("an engine is given a context whose refit has failed");
    for (const Weight &weight : plan.weights)
        if (!held.at(weight.name).set) {
            log.error("createExecutionContext: weight %s was stripped and not refit", weight.name.c_str());
            return nullptr;
        }
    std::unique_ptr<Memory> activations = Memory::make(plan.memory);
    if (!activations) {
        refuse_memory(plan.memory);
        return nullptr;
    }
    return new Context(*this, std::move(activations));
}

#ifdef TRT_MAJOR_RTX
class RuntimeConfig final : public IRuntimeConfig, public UnusedRuntimeConfig {
public:
    RuntimeConfig() {
        mImpl = this;
        configs.count++;
    }
    ~RuntimeConfig() noexcept override { configs.count--; }
    void setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy strategy) noexcept override {
        strategy_ = strategy;
    }
    DynamicShapesKernelSpecializationStrategy getDynamicShapesKernelSpecializationStrategy() const noexcept override {
        return strategy_;
    }

private:
    DynamicShapesKernelSpecializationStrategy strategy_ = DynamicShapesKernelSpecializationStrategy::kLAZY;
};

IRuntimeConfig *Engine::createRuntimeConfig() noexcept {
    return new RuntimeConfig;
}
IExecutionContext *Engine::createExecutionContextWithRuntimeConfig(IRuntimeConfig *config) noexcept {
    if (config->getDynamicShapesKernelSpecializationStrategy() != DynamicShapesKernelSpecializationStrategy::kEAGER)
        forbidden("kernels are compiled beside runs, whose results depend on it");
    return createExecutionContext(ExecutionContextAllocationStrategy::kSTATIC);
}
#endif

class Runtime final : public IRuntime, public UnusedRuntime {
public:
    explicit Runtime(ILogger &logger) : log_(logger) {
        mImpl = this;
        runtimes.count++;
    }
    ~Runtime() noexcept override {
        if (engines_ != 0) forbidden("a runtime is freed before its engine");
        runtimes.count--;
    }

#ifdef TRT_MAJOR_RTX
    EngineValidity getEngineValidity(void const *blob, int64_t size, uint64_t *reasons) const noexcept override {
        Plan plan;
        *reasons = uint64_t(check(blob, size_t(size), plan));
        return *reasons == 0 ? EngineValidity::kVALID : EngineValidity::kINVALID;
    }
#endif
    ICudaEngine *deserializeCudaEngine(void const *blob, std::size_t size) noexcept override {
        Plan plan;
        if (check(blob, size, plan) != 0) return nullptr;
        auto engine = std::make_unique<Engine>(plan, log_, engines_);
        return engine->allocate() ? engine.release() : nullptr;
    }

private:
    // Why a plan cannot be loaded, as RTX's EngineInvalidityDiagnostics.
    uint64_t check(void const *blob, size_t size, Plan &plan) const {
        enum : uint64_t { VERSION = 1, GPU = 2, MALFORMED = 32, CUDA = 64 };
        const Driver *device = Driver::current();
        int major = 0, minor = 0;
        if (!device || device->attribute(&major, 75, 0) != 0 || device->attribute(&minor, 76, 0) != 0) {
            log_.error("Unable to get the current device (cudaError 35: CUDA driver version is insufficient)");
            return CUDA;
        }
        if (!parse(std::string(static_cast<const char *>(blob), size), plan)) {
            log_.error("The engine is malformed");
            return MALFORMED;
        }
        const auto dotted = [](int a, int b) { return std::to_string(a) + "." + std::to_string(b); };
        const std::string version = dotted(NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR) + "." + std::to_string(NV_TENSORRT_PATCH);
        uint64_t reasons = 0;
        if (plan.version != version) {
            log_.error("The engine is of version %s", plan.version.c_str());
            reasons |= VERSION;
        }
        if (plan.capability != dotted(major, minor)) {
            log_.error("The engine is for compute capability %s", plan.capability.c_str());
            reasons |= GPU;
        }
        return reasons;
    }

    const Log log_;
    int engines_ = 0;
};

} // namespace
} // namespace stand_in

extern "C" int32_t getInferLibVersion() noexcept { return NV_TENSORRT_VERSION; }

extern "C" void *createInferRuntime_INTERNAL(void *logger, int32_t version) noexcept {
    if (!logger || version != NV_TENSORRT_VERSION) return nullptr;
    return static_cast<IRuntime *>(new stand_in::Runtime(*static_cast<ILogger *>(logger)));
}

extern "C" void *createInferRefitter_INTERNAL(void *engine, void *logger, int32_t version) noexcept {
    const auto given = static_cast<ICudaEngine *>(engine);
    if (!logger || version != NV_TENSORRT_VERSION) return nullptr;
    if (stand_in::loaded.count(given) == 0) stand_in::forbidden("a refitter is asked for of what is no engine");
    stand_in::driver("createInferRefitter");
    const stand_in::Log log(*static_cast<ILogger *>(logger));
    auto &known = *static_cast<stand_in::Engine *>(given);
    if (known.plan.weights.empty()) {
        log.error("createInferRefitter: the engine is not refittable");
        return nullptr;
    }
    return static_cast<IRefitter *>(new stand_in::Refitter(known, log));
}
