// Makes the files of tests/capi/frontends.rs:
//
//   front_end_cpp ENGINES REFERENCE IMAGE OUT PREDICTOR MAP NAME:IMAGE:WIDTH:HEIGHT:BRANCHES...
#include <cstdio>
#include <sstream>

#include "v2l.hpp"

namespace {

struct Ask {
    std::string name, scheduler;
    unsigned image = 0, width = 0, height = 0, branches = 0;

    explicit Ask(const std::string &word) {
        std::istringstream text(word);
        char colon = 0;
        std::getline(text, name, ':');
        text >> image >> colon >> width >> colon >> height >> colon >> branches >> colon >> scheduler;
    }
};

std::string saved(char **argv, const std::string &name) { return std::string(argv[4]) + "/" + name; }

void answer(char **argv, const Ask &ask) {
    auto open = v2l::open_options();
    open.adapter_mode = ask.branches != 0 ? V2L_ADAPTERS_BRANCH : V2L_ADAPTERS_FUSE;
    auto reference = v2l::reference();
    reference.file = argv[2];
    reference.image_file = ask.image != 0 ? argv[3] : nullptr;
    reference.width = ask.width;
    reference.height = ask.height;
    const v2l::Adapter adapter = v2l::Predictor(argv[1], &open).predict(reference);
    adapter.save(saved(argv, ask.name + ".lora.safetensors"), V2L_FORMAT_KOHYA);

    const v2l::Pipeline pipeline(argv[1], &open);
    pipeline.set_adapters({{&adapter, 0.5f}});
    std::string json = R"({"prompt": "a red ball", "num_frames": 5, "num_inference_steps": 2, "seed": 7)";
    if (ask.width != 0) {
        json += ", \"width\": " + std::to_string(ask.width) + ", \"height\": " + std::to_string(ask.height);
    }
    if (ask.scheduler != "own") {
        json += ", \"scheduler\": \"" + ask.scheduler + "\"";
    }
    v2l::Job(pipeline, json + "}", {{"image", argv[3], nullptr}}).save(saved(argv, ask.name + ".video.safetensors"));
}

void mapped(char **argv) {
    const v2l::Engine model(std::string(argv[1]) + "/transformer.engine");
    const v2l_slot slot = model.slots().front();
    const auto values = [](std::int64_t rows, std::int64_t columns) {
        std::vector<float> made;
        for (std::int64_t i = 0; i < rows; ++i) {
            for (std::int64_t j = 0; j < columns; ++j) {
                made.push_back(static_cast<float>((i * 7 + j) % 5) * 0.01f);
            }
        }
        return made;
    };
    const auto in = static_cast<std::int64_t>(slot.in_features), out = static_cast<std::int64_t>(slot.out_features);
    const auto down = values(2, in), up = values(out, 2);
    const v2l::Predictor predictor(argv[5], argv[6], model);
    const v2l::Adapter adapter =
        predictor.predict({v2l::Input("down_in", {2, in}, down.data()), v2l::Input("up_in", {out, 2}, up.data())});
    adapter.save(saved(argv, "mapped.lora.safetensors"), V2L_FORMAT_KOHYA);
}

} // namespace

int main(int argc, char **argv) {
    try {
        for (int n = 7; n < argc; ++n) {
            answer(argv, Ask(argv[n]));
        }
        mapped(argv);
    } catch (const v2l::Error &error) {
        std::fprintf(stderr, "%s: %s\n", error.name(), error.what());
        return 1;
    }
    return 0;
}
