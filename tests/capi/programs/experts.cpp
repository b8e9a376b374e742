// Makes the files of tests/capi/experts.rs:
//
//   experts ENGINES ADAPTER [OUT]
#include <cstdio>

#include "v2l.hpp"

int main(int argc, char **argv) {
    const std::string file = argv[2], out = argc > 3 ? std::string(argv[3]) + "/" : "";
    const v2l::Pipeline pipeline(argv[1]);
    const v2l::Job job(pipeline, R"({"prompt": "a cat", "width": 32, "height": 16, "num_frames": 5, "num_inference_steps": 2, "seed": 3})");
    const auto made = [&](const v2l::Adapter &adapter, const std::string &name) {
        std::printf("%s %d\n", name.c_str(), static_cast<int>(adapter.coverage().slots_covered));
        if (!out.empty()) {
            pipeline.set_adapters({{&adapter, 3.0f}});
            job.save(out + name + "/");
        }
    };
    try {
        made(pipeline.adapter(file), "auto");
        made(pipeline.adapter(file, V2L_EXPERTS_LOW), "low");
        const v2l::Engine first = pipeline.engine("transformer"), second = pipeline.engine("transformer_2");
        made(v2l::Adapter(first, second, file, V2L_EXPERTS_HIGH), "high");
        made(v2l::Adapter(first, second, file, V2L_EXPERTS_BOTH), "both");
    } catch (const v2l::Error &error) {
        std::printf("error %d: %s\n", static_cast<int>(error.status()), error.what());
    }
}
