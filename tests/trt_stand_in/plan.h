// The plans of the stand-in for TensorRT: text, a line for each fact, and what they compute.
//
//   v2l stand-in plan 1.7.1             the version that built it, the headers'; first line
//   capability 9.0                      the GPU that it is for
//   memory 4096                         bytes of activations of a context
//   input x f32 -1 8                    type and extents, -1 where one is free
//   output y f32 -1 4
//   profile 0 x 1 8 2 8 4 8             smallest, preferred and largest extents of an input
//   weight w bf16 32                    type and elements: a placeholder
//   weight w bf16 32 0.5                the same, its elements all 0.5 in the plan
//   together w v                        weights that are set together
//   forgets                             a refit unsets the weights that it was given
//   gemm y x w                          y = x · wᵀ, w [outputs, inputs], all in f32
//   add y x z                           y = x + z
//   ignores w                           fault: what is set for w does not arrive
//   refit fails 2                       fault: the second refit of the process stops midway
//   refit breaks 2                      fault: the same, but only the stream says so
#pragma once

#include <cstring>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <NvInferRuntime.h>

namespace stand_in {

using Shape = std::vector<int64_t>;

struct Port {
    std::string name;
    bool is_input;
    nvinfer1::DataType type;
    Shape shape;
};

struct Range {
    Shape min, max;
};

struct Weight {
    std::string name;
    nvinfer1::DataType type;
    int64_t count;
    bool placeholder;
    float value;
};

struct Step {
    std::string kind, out, left, right;
};

struct Value {
    Shape shape;
    std::vector<float> data;
};

struct Plan {
    std::string version, capability;
    size_t memory = 0;
    std::vector<Port> ports;
    // By index, by input.
    std::vector<std::map<std::string, Range>> profiles;
    std::vector<Weight> weights;
    std::vector<std::set<std::string>> together;
    std::vector<Step> steps;
    std::set<std::string> ignored;
    int failing = 0, breaking = 0;
    bool forgets = false;

    const Port *port(const std::string &name) const {
        for (const Port &port : ports)
            if (port.name == name) return &port;
        return nullptr;
    }
    const Weight *weight(const std::string &name) const {
        for (const Weight &weight : weights)
            if (weight.name == name) return &weight;
        return nullptr;
    }
};

inline int64_t elements(const Shape &shape) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    return count;
}

inline size_t size_of(nvinfer1::DataType type) { return type == nvinfer1::DataType::kBF16 ? 2 : 4; }

inline void widen(nvinfer1::DataType type, const char *from, std::vector<float> &to) {
    for (size_t i = 0; i < to.size(); i++) {
        uint32_t bits = 0;
        if (type == nvinfer1::DataType::kBF16) {
            std::memcpy(reinterpret_cast<char *>(&bits) + 2, from + 2 * i, 2);
        } else {
            std::memcpy(&bits, from + 4 * i, 4);
        }
        std::memcpy(&to[i], &bits, 4);
    }
}

// Elements that are all `value`, which bf16 has, too.
inline std::vector<char> filled(const Weight &weight) {
    std::vector<char> bytes(size_t(weight.count) * size_of(weight.type));
    const size_t size = size_of(weight.type);
    for (size_t at = 0; at < bytes.size(); at += size)
        std::memcpy(&bytes[at], reinterpret_cast<const char *>(&weight.value) + 4 - size, size);
    return bytes;
}

// False if the text is no plan.
inline bool parse(const std::string &text, Plan &plan) {
    std::istringstream lines(text);
    std::string line;
    const std::string first = "v2l stand-in plan ";
    if (!std::getline(lines, line) || line.compare(0, first.size(), first) != 0) return false;
    plan.version = line.substr(first.size());
    const auto type = [](std::istream &words, nvinfer1::DataType &found) {
        std::string name;
        words >> name;
        found = name == "bf16" ? nvinfer1::DataType::kBF16 : nvinfer1::DataType::kFLOAT;
        return name == "bf16" || name == "f32";
    };
    while (std::getline(lines, line)) {
        std::istringstream words(line);
        std::string key, name;
        words >> key;
        Shape numbers;
        const auto rest = [&] {
            for (int64_t number; words >> number;) numbers.push_back(number);
        };
        if (key == "capability") {
            words >> plan.capability;
        } else if (key == "memory") {
            words >> plan.memory;
        } else if (key == "input" || key == "output") {
            Port port{"", key == "input", nvinfer1::DataType::kFLOAT, {}};
            words >> port.name;
            // Every value that a step computes with is f32.
            if (!type(words, port.type) || port.type != nvinfer1::DataType::kFLOAT) return false;
            rest();
            port.shape = numbers;
            plan.ports.push_back(port);
        } else if (key == "profile") {
            size_t index;
            if (!(words >> index >> name)) return false;
            rest();
            const auto at = [&](size_t part) {
                return Shape(numbers.begin() + part * numbers.size() / 3, numbers.begin() + (part + 1) * numbers.size() / 3);
            };
            if (index >= 16) return false;
            plan.profiles.resize(std::max(plan.profiles.size(), index + 1));
            plan.profiles[index][name] = {at(0), at(2)};
        } else if (key == "weight") {
            Weight weight{};
            words >> weight.name;
            if (!type(words, weight.type) || !(words >> weight.count) || weight.count < 0) return false;
            weight.placeholder = !(words >> weight.value);
            plan.weights.push_back(weight);
        } else if (key == "together" || key == "ignores") {
            std::set<std::string> names;
            while (words >> name) names.insert(name);
            if (key == "together") plan.together.push_back(names);
            else plan.ignored = names;
        } else if (key == "forgets") {
            plan.forgets = true;
        } else if (key == "refit") {
            words >> name >> (name == "fails" ? plan.failing : plan.breaking);
        } else if (key == "gemm" || key == "add") {
            Step step{key, "", "", ""};
            if (!(words >> step.out >> step.left >> step.right)) return false;
            plan.steps.push_back(step);
        } else {
            return false;
        }
    }
    return !plan.steps.empty();
}

// Shapes of all values, from those of the inputs; false if they do not fit together.
inline bool infer(const Plan &plan, std::map<std::string, Shape> &shapes) {
    for (const Step &step : plan.steps) {
        const auto left = shapes.find(step.left), right = shapes.find(step.right);
        if (left == shapes.end() || left->second.empty()) return false;
        Shape out = left->second;
        if (step.kind == "gemm") {
            const Weight *weight = plan.weight(step.right);
            if (!weight || out.back() == 0 || weight->count % out.back() != 0) return false;
            out.back() = weight->count / out.back();
        } else if (right == shapes.end() || right->second != out) {
            return false;
        }
        shapes[step.out] = out;
    }
    return true;
}

// Adds what the steps compute to `values`, which holds inputs and weights.
inline void compute(const Plan &plan, std::map<std::string, Value> &values) {
    for (const Step &step : plan.steps) {
        const Value &left = values[step.left], &right = values[step.right];
        Value out{left.shape, {}};
        if (step.kind == "gemm") {
            const size_t inputs = size_t(left.shape.back()), outputs = right.data.size() / inputs;
            out.shape.back() = int64_t(outputs);
            for (size_t row = 0; row * inputs < left.data.size(); row++)
                for (size_t column = 0; column < outputs; column++) {
                    double sum = 0;
                    for (size_t i = 0; i < inputs; i++) sum += double(left.data[row * inputs + i]) * right.data[column * inputs + i];
                    out.data.push_back(float(sum));
                }
        } else {
            for (size_t i = 0; i < left.data.size(); i++) out.data.push_back(left.data[i] + right.data[i]);
        }
        values[step.out] = out;
    }
}

} // namespace stand_in
