// v2l.h for C++17: handles that free themselves, exceptions for failures. Header only.
//
// Every class owns one handle, can be moved and not copied, and gives it out as get(). What a view points to lives as long as what it came
// from. Threads: as v2l.h says of the handles. A callback may throw: the call stops, and throws the same once it has returned.
#ifndef V2L_HPP
#define V2L_HPP

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "v2l.h"

namespace v2l {

/// A call that failed.
class Error : public std::runtime_error {
public:
    Error(v2l_status status, const char *message) : std::runtime_error(message), status_(status) {}
    v2l_status status() const noexcept { return status_; }
    const char *name() const noexcept { return v2l_status_name(status_); }

private:
    v2l_status status_;
};

inline void check(v2l_status status) {
    if (status != V2L_OK) {
        throw Error(status, v2l_last_error());
    }
}

namespace detail {

template <auto Free> struct Freed {
    template <typename Handle> void operator()(Handle *handle) const noexcept { Free(handle); }
};

template <typename Handle, auto Free> class Owner {
public:
    Handle *get() const noexcept { return handle_.get(); }

protected:
    explicit Owner(Handle *handle) noexcept : handle_(handle) {}

private:
    std::unique_ptr<Handle, Freed<Free>> handle_;
};

// Makes a handle by a function whose last parameter takes it.
template <typename Handle, typename Make> Handle *made(Make make) {
    Handle *handle = nullptr;
    check(make(&handle));
    return handle;
}

template <typename Options, typename Init> Options defaults(Init init) {
    Options options;
    check(init(&options, sizeof options));
    return options;
}

} // namespace detail

/// The v2l_dtype of a C++ type. For halves give the bits and the type yourself.
template <typename T> struct DtypeOf;
template <> struct DtypeOf<float> { static constexpr v2l_dtype value = V2L_F32; };
template <> struct DtypeOf<std::int64_t> { static constexpr v2l_dtype value = V2L_I64; };
template <> struct DtypeOf<std::int32_t> { static constexpr v2l_dtype value = V2L_I32; };
template <> struct DtypeOf<std::uint8_t> { static constexpr v2l_dtype value = V2L_U8; };
template <> struct DtypeOf<bool> { static constexpr v2l_dtype value = V2L_BOOL; };
template <> struct DtypeOf<double> { static constexpr v2l_dtype value = V2L_F64; };
template <> struct DtypeOf<std::int8_t> { static constexpr v2l_dtype value = V2L_I8; };
template <> struct DtypeOf<std::int16_t> { static constexpr v2l_dtype value = V2L_I16; };
template <> struct DtypeOf<std::uint16_t> { static constexpr v2l_dtype value = V2L_U16; };
template <> struct DtypeOf<std::uint32_t> { static constexpr v2l_dtype value = V2L_U32; };
template <> struct DtypeOf<std::uint64_t> { static constexpr v2l_dtype value = V2L_U64; };

/// A tensor in somebody else's memory, with a name and extents of its own.
class Input {
public:
    template <typename T>
    Input(std::string name, std::vector<std::int64_t> shape, const T *data)
        : Input(std::move(name), std::move(shape), data, DtypeOf<T>::value) {}

    Input(std::string name, std::vector<std::int64_t> shape, const void *data, v2l_dtype dtype,
          std::vector<std::int64_t> strides = {})
        : name_(std::move(name)), shape_(std::move(shape)), strides_(std::move(strides)), data_(data), dtype_(dtype) {}

    /// Lives as long as this does and is not moved.
    v2l_tensor view() const noexcept {
        return {name_.c_str(), data_, dtype_, static_cast<std::uint32_t>(shape_.size()), shape_.data(),
                strides_.empty() ? nullptr : strides_.data()};
    }

private:
    std::string name_;
    std::vector<std::int64_t> shape_;
    std::vector<std::int64_t> strides_;
    const void *data_;
    v2l_dtype dtype_;
};

/// Named tensors that the library owns.
class Tensors : public detail::Owner<v2l_tensors, v2l_tensors_free> {
public:
    explicit Tensors(v2l_tensors *handle) noexcept : Owner(handle) {}

    std::size_t size() const {
        std::size_t count = 0;
        check(v2l_tensors_count(get(), &count));
        return count;
    }

    v2l_tensor operator[](std::size_t index) const {
        v2l_tensor tensor{};
        check(v2l_tensors_get(get(), index, &tensor));
        return tensor;
    }

    v2l_tensor operator[](const std::string &name) const {
        v2l_tensor tensor{};
        check(v2l_tensors_find(get(), name.c_str(), &tensor));
        return tensor;
    }
};

/// A request to stop; any thread may make it.
class Cancel : public detail::Owner<v2l_cancel, v2l_cancel_free> {
public:
    Cancel() : Owner(detail::made<v2l_cancel>(v2l_cancel_new)) {}
    void request() const { check(v2l_cancel_request(get())); }
    void reset() const { check(v2l_cancel_reset(get())); }
};

/// How a long call reports and is stopped. Must stay where it is during the call.
class Control {
public:
    using Progress = std::function<void(v2l_phase phase, std::uint64_t done, std::uint64_t total)>;
    using Cancelled = std::function<bool()>;

    Control() = default;
    explicit Control(Progress progress, const Cancel *cancel = nullptr, Cancelled cancelled = nullptr)
        : progress_(std::move(progress)), cancelled_(std::move(cancelled)), cancel_(cancel) {}
    Control(const Control &) = delete;
    Control &operator=(const Control &) = delete;

    /// Runs a call with this control; throws what a callback threw.
    template <typename Call> void run(Call call) {
        thrown_ = nullptr;
        v2l_control control = detail::defaults<v2l_control>(v2l_control_init);
        control.cancel = cancel_ != nullptr ? cancel_->get() : nullptr;
        control.cancelled = on_cancelled;
        control.progress = progress_ ? on_progress : nullptr;
        control.user = this;
        const v2l_status status = call(&control);
        if (thrown_) {
            std::rethrow_exception(thrown_);
        }
        check(status);
    }

private:
    static void on_progress(void *user, v2l_phase phase, std::uint64_t done, std::uint64_t total) noexcept {
        auto *self = static_cast<Control *>(user);
        self->guarded([&] { self->progress_(phase, done, total); });
    }

    static std::int32_t on_cancelled(void *user) noexcept {
        auto *self = static_cast<Control *>(user);
        bool stop = false;
        if (self->cancelled_) {
            self->guarded([&] { stop = self->cancelled_(); });
        }
        const std::lock_guard<std::mutex> lock(self->mutex_);
        return stop || self->thrown_ ? 1 : 0;
    }

    template <typename Body> void guarded(Body body) noexcept {
        try {
            body();
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex_);
            thrown_ = std::current_exception();
        }
    }

    Progress progress_;
    Cancelled cancelled_;
    const Cancel *cancel_ = nullptr;
    std::mutex mutex_;
    std::exception_ptr thrown_;
};

/// v2l_open_options with their defaults.
inline v2l_open_options open_options() { return detail::defaults<v2l_open_options>(v2l_open_options_init); }
/// v2l_reference with its defaults.
inline v2l_reference reference() { return detail::defaults<v2l_reference>(v2l_reference_init); }
/// v2l_adapter_options with their defaults.
inline v2l_adapter_options adapter_options() { return detail::defaults<v2l_adapter_options>(v2l_adapter_options_init); }

/// An engine file.
class Engine : public detail::Owner<v2l_engine, v2l_engine_free> {
public:
    explicit Engine(v2l_engine *handle) noexcept : Owner(handle) {}
    explicit Engine(const std::string &file, const v2l_open_options *options = nullptr)
        : Owner(detail::made<v2l_engine>([&](auto out) { return v2l_engine_new(file.c_str(), options, out); })) {}

    std::string component() const {
        const char *name = nullptr;
        check(v2l_engine_component(get(), &name));
        return name;
    }

    std::vector<std::string> graphs() const {
        std::size_t count = 0;
        check(v2l_engine_graph_count(get(), &count));
        std::vector<std::string> names;
        for (std::size_t index = 0; index < count; ++index) {
            const char *name = nullptr;
            check(v2l_engine_graph(get(), index, &name));
            names.emplace_back(name);
        }
        return names;
    }

    std::vector<v2l_port> inputs(const std::string &graph) const {
        return ports(graph, v2l_engine_input_count, v2l_engine_input);
    }

    std::vector<v2l_port> outputs(const std::string &graph) const {
        return ports(graph, v2l_engine_output_count, v2l_engine_output);
    }

    std::vector<v2l_slot> slots() const {
        std::size_t count = 0;
        check(v2l_engine_slot_count(get(), &count));
        std::vector<v2l_slot> slots(count);
        for (std::size_t index = 0; index < count; ++index) {
            slots[index].size = sizeof(v2l_slot);
            check(v2l_engine_slot(get(), index, &slots[index]));
        }
        return slots;
    }

private:
    template <typename Count, typename Port>
    std::vector<v2l_port> ports(const std::string &graph, Count count_of, Port port_of) const {
        std::size_t count = 0;
        check(count_of(get(), graph.c_str(), &count));
        std::vector<v2l_port> ports(count);
        for (std::size_t index = 0; index < count; ++index) {
            ports[index].size = sizeof(v2l_port);
            check(port_of(get(), graph.c_str(), index, &ports[index]));
        }
        return ports;
    }
};

/// Low-rank updates of some slots.
class Adapter : public detail::Owner<v2l_adapter, v2l_adapter_free> {
public:
    explicit Adapter(v2l_adapter *handle) noexcept : Owner(handle) {}
    Adapter(const Engine &engine, const std::string &file, const v2l_adapter_options *options = nullptr)
        : Owner(detail::made<v2l_adapter>(
              [&](auto out) { return v2l_adapter_new(engine.get(), file.c_str(), options, out); })) {}
    /// For a model with two transformers: `experts` says which of them the file is for.
    Adapter(const Engine &transformer, const Engine &transformer_2, const std::string &file,
            v2l_experts experts = V2L_EXPERTS_AUTO)
        : Owner(load(transformer.get(), transformer_2.get(), file, experts)) {}

    v2l_coverage coverage() const {
        v2l_coverage coverage{};
        coverage.size = sizeof coverage;
        check(v2l_adapter_coverage(get(), &coverage));
        return coverage;
    }

    void save(const std::string &file, v2l_adapter_format format) const {
        check(v2l_adapter_save(get(), file.c_str(), format));
    }

private:
    friend class Pipeline;

    static v2l_adapter *load(const v2l_engine *first, const v2l_engine *second, const std::string &file,
                             v2l_experts experts) {
        auto options = adapter_options();
        options.second = second;
        options.experts = experts;
        return detail::made<v2l_adapter>(
            [&](auto out) { return v2l_adapter_new(first, file.c_str(), &options, out); });
    }
};

/// Adapters to apply, with their strengths.
using AdapterSet = std::vector<std::pair<const Adapter *, float>>;

namespace detail {

// Never NULL, so that no adapters are the base model and not "those that are set".
inline std::vector<v2l_weighted_adapter> weighted(const AdapterSet &set) {
    std::vector<v2l_weighted_adapter> adapters;
    adapters.reserve(set.size() + 1);
    for (const auto &[adapter, strength] : set) {
        adapters.push_back({adapter->get(), strength});
    }
    return adapters;
}

inline v2l_adapter_report empty_report() {
    v2l_adapter_report report{};
    report.size = sizeof report;
    return report;
}

} // namespace detail

/// A graph of an engine, with its adapters.
class Session : public detail::Owner<v2l_session, v2l_session_free> {
public:
    Session(const Engine &engine, const std::string &graph)
        : Owner(detail::made<v2l_session>(
              [&](auto out) { return v2l_session_new(engine.get(), graph.c_str(), out); })) {}

    v2l_adapter_report set_adapters(const AdapterSet &set) const {
        const auto adapters = detail::weighted(set);
        auto report = detail::empty_report();
        check(v2l_session_set_adapters(get(), adapters.data(), adapters.size(), nullptr, &report));
        return report;
    }

    /// Runs with the session's adapters.
    Tensors run(const std::vector<Input> &inputs) const { return run(inputs, nullptr); }

    /// Sets the adapters and runs, with nothing in between.
    Tensors run(const std::vector<Input> &inputs, const AdapterSet &set) const {
        const auto adapters = detail::weighted(set);
        auto options = detail::defaults<v2l_run_options>(v2l_run_options_init);
        options.adapters = adapters.data();
        options.adapter_count = adapters.size();
        return run(inputs, &options);
    }

private:
    Tensors run(const std::vector<Input> &inputs, const v2l_run_options *options) const {
        std::vector<v2l_tensor> views;
        for (const Input &input : inputs) {
            views.push_back(input.view());
        }
        return Tensors(detail::made<v2l_tensors>(
            [&](auto out) { return v2l_session_run(get(), views.data(), views.size(), options, out); }));
    }
};

/// The predictor of an engine directory, or any graph with a map.
class Predictor : public detail::Owner<v2l_predictor, v2l_predictor_free> {
public:
    explicit Predictor(const std::string &directory, const v2l_open_options *options = nullptr)
        : Owner(detail::made<v2l_predictor>(
              [&](auto out) { return v2l_predictor_new(directory.c_str(), options, out); })) {}

    /// A predictor that v2l does not know by name: its engine, and the map from its outputs to the slots of a model.
    Predictor(const std::string &engine, const std::string &map, const Engine &model,
              const v2l_open_options *options = nullptr)
        : Owner(detail::made<v2l_predictor>([&](auto out) {
              return v2l_predictor_new_mapped(engine.c_str(), map.c_str(), model.get(), options, out);
          })) {}

    Adapter predict(const v2l_reference &reference, Control &control) const {
        v2l_adapter *adapter = nullptr;
        control.run([&](const v2l_control *c) { return v2l_predictor_predict(get(), &reference, c, &adapter); });
        return Adapter(adapter);
    }

    Adapter predict(const v2l_reference &reference) const {
        Control control;
        return predict(reference, control);
    }

    /// Predicts from a prompt.
    Adapter predict_prompt(const std::string &prompt, Control &control) const {
        v2l_reference given = reference();
        given.prompt = prompt.c_str();
        return predict(given, control);
    }

    Adapter predict_prompt(const std::string &prompt) const {
        Control control;
        return predict_prompt(prompt, control);
    }

    /// Predicts from named tensors.
    Adapter predict(const std::vector<Input> &inputs, Control &control) const {
        std::vector<v2l_tensor> views;
        for (const Input &input : inputs) {
            views.push_back(input.view());
        }
        v2l_reference given = reference();
        given.tensors = views.data();
        given.tensor_count = views.size();
        return predict(given, control);
    }

    Adapter predict(const std::vector<Input> &inputs) const {
        Control control;
        return predict(inputs, control);
    }
};

/// An engine directory.
class Pipeline : public detail::Owner<v2l_pipeline, v2l_pipeline_free> {
public:
    explicit Pipeline(const std::string &directory, const v2l_open_options *options = nullptr)
        : Owner(detail::made<v2l_pipeline>(
              [&](auto out) { return v2l_pipeline_new(directory.c_str(), options, out); })) {}

    Engine engine(const std::string &component) const {
        return Engine(detail::made<v2l_engine>(
            [&](auto out) { return v2l_pipeline_engine(get(), component.c_str(), out); }));
    }

    /// Loads an adapter for the transformer, or for those of the two that `experts` says, of a model with two.
    Adapter adapter(const std::string &file, v2l_experts experts = V2L_EXPERTS_AUTO) const {
        const Engine first = engine("transformer");
        v2l_engine *second = nullptr;
        const v2l_status status = v2l_pipeline_engine(get(), "transformer_2", &second);
        if (status != V2L_ERROR_INVALID_ARGUMENT) { // there is one
            check(status);
        }
        const Engine owner(second);
        return Adapter(Adapter::load(first.get(), second, file, experts));
    }

    v2l_adapter_report set_adapters(const AdapterSet &set, Control &control) const {
        const auto adapters = detail::weighted(set);
        auto report = detail::empty_report();
        control.run([&](const v2l_control *c) {
            return v2l_pipeline_set_adapters(get(), adapters.data(), adapters.size(), c, &report);
        });
        return report;
    }

    v2l_adapter_report set_adapters(const AdapterSet &set) const {
        Control control;
        return set_adapters(set, control);
    }

    /// What requests may say, as a JSON schema.
    std::string schema() const {
        const char *json = nullptr;
        check(v2l_pipeline_schema(get(), &json));
        return json;
    }
};

/// A request that a pipeline can carry out: JSON, and pictures and tensors by name beside it. With `adapters` these are set as it runs, with
/// nothing in between; without, the pipeline's are used.
class Job : public detail::Owner<v2l_job, v2l_job_free> {
public:
    Job(const Pipeline &pipeline, const std::string &json, const std::vector<v2l_input> &inputs = {},
        const AdapterSet *adapters = nullptr)
        : Owner(detail::made<v2l_job>([&](auto out) {
              const auto set = detail::weighted(adapters != nullptr ? *adapters : AdapterSet());
              const v2l_request request = {sizeof request, json.c_str(), inputs.data(), inputs.size(),
                                           adapters != nullptr ? set.data() : nullptr, set.size()};
              return v2l_job_new(pipeline.get(), &request, out);
          })) {}

    /// What the request comes to, as JSON.
    std::string resolved() const {
        const char *json = nullptr;
        check(v2l_job_resolved(get(), &json));
        return json;
    }

    /// `frames` u8 [frames, height, width, 3] and `latents`.
    Tensors run(Control *control = nullptr) const {
        v2l_tensors *results = nullptr;
        Control none;
        (control != nullptr ? *control : none).run([&](const v2l_control *c) {
            return v2l_job_run(get(), c, &results);
        });
        return Tensors(results);
    }

    void save(const std::string &file, Control *control = nullptr) const {
        Control none;
        (control != nullptr ? *control : none).run([&](const v2l_control *c) {
            return v2l_job_save(get(), c, file.c_str());
        });
    }
};

} // namespace v2l

#endif // V2L_HPP
