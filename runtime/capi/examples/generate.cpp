// Predicts an adapter from frames in memory, compares it with the base model, saves it.
//
//   generate_cpp ENGINES IMAGE REQUEST ADAPTER
//
// REQUEST is JSON: '{"prompt": "a paper boat", "num_frames": 5}'.
#include <cmath>
#include <cstdio>
#include <stdexcept>

#include "v2l.hpp"

namespace {

constexpr std::int64_t FRAMES = 9, HEIGHT = 64, WIDTH = 96;

// A white square that moves to the right.
std::vector<std::uint8_t> moving_square() {
    std::vector<std::uint8_t> pixels(FRAMES * HEIGHT * WIDTH * 3);
    for (std::int64_t frame = 0; frame < FRAMES; ++frame) {
        for (std::int64_t y = 24; y < 40; ++y) {
            for (std::int64_t x = 8 * frame; x < 8 * frame + 16; ++x) {
                for (std::int64_t channel = 0; channel < 3; ++channel) {
                    pixels[((frame * HEIGHT + y) * WIDTH + x) * 3 + channel] = 255;
                }
            }
        }
    }
    return pixels;
}

double mean_difference(const v2l_tensor &a, const v2l_tensor &b) {
    const auto *left = static_cast<const std::uint8_t *>(a.data), *right = static_cast<const std::uint8_t *>(b.data);
    const std::int64_t count = a.shape[0] * a.shape[1] * a.shape[2] * a.shape[3];
    double sum = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        sum += std::abs(left[i] - right[i]);
    }
    return sum / static_cast<double>(count);
}

void run(char **argv) {
    const v2l::Predictor predictor(argv[1]);
    const auto pixels = moving_square();
    const v2l::Input frames("frames", {FRAMES, HEIGHT, WIDTH, 3}, pixels.data());
    const v2l_tensor view = frames.view();
    auto reference = v2l::reference();
    reference.frames = &view;
    reference.fps = 8;
    const v2l::Adapter adapter = predictor.predict(reference);
    adapter.save(argv[4], V2L_FORMAT_DIFFUSERS);

    const v2l::Pipeline pipeline(argv[1]);
    const v2l::Job job(pipeline, argv[3], {{"image", argv[2], nullptr}});
    v2l::Control control([](v2l_phase phase, std::uint64_t done, std::uint64_t total) {
        if (phase == V2L_PHASE_DENOISE) {
            std::printf("step %d of %d\n", static_cast<int>(done), static_cast<int>(total));
        }
    });
    const v2l::Tensors base = job.run(&control);

    // The same adapter, read back from its file.
    const v2l::Engine transformer = pipeline.engine("transformer");
    const v2l::Adapter loaded(transformer, argv[4]);
    pipeline.set_adapters({{&loaded, 1.0f}});
    const v2l::Tensors steered = job.run(&control);
    std::printf("the adapter changes a value by %.2f levels on average\n",
                mean_difference(base["frames"], steered["frames"]));

    pipeline.set_adapters({});
    const v2l::Tensors again = job.run(&control);
    std::printf("without it, by %.2f\n", mean_difference(base["frames"], again["frames"]));

    // What a callback throws ends the call, and comes out of it.
    v2l::Control stopping([](v2l_phase, std::uint64_t, std::uint64_t) { throw std::runtime_error("enough"); });
    try {
        job.run(&stopping);
    } catch (const std::runtime_error &error) {
        std::printf("stopped: %s\n", error.what());
    }
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 5) {
        std::fprintf(stderr, "usage: generate_cpp ENGINES IMAGE REQUEST ADAPTER\n");
        return 2;
    }
    try {
        run(argv);
    } catch (const v2l::Error &error) {
        std::fprintf(stderr, "%s: %s\n", error.name(), error.what());
        return 1;
    }
    return 0;
}
