/* Makes the files of tests/capi/frontends.rs:
 *
 *   front_end ENGINES REFERENCE IMAGE OUT PREDICTOR MAP NAME:IMAGE:WIDTH:HEIGHT:BRANCHES... */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "v2l.h"

static void check(v2l_status status, const char *what) {
    if (status != V2L_OK) {
        fprintf(stderr, "%s: %s: %s\n", what, v2l_status_name(status), v2l_last_error());
        exit(1);
    }
}

static void save(const v2l_adapter *adapter, const char *folder, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.lora.safetensors", folder, name);
    check(v2l_adapter_save(adapter, path, V2L_FORMAT_KOHYA), path);
}

static void ask(char **paths, const char *word) {
    char name[64], scheduler[64], path[4096];
    unsigned image, width, height, branches;
    if (sscanf(word, "%63[^:]:%u:%u:%u:%u:%63s", name, &image, &width, &height, &branches, scheduler) != 6) {
        fprintf(stderr, "%s: expected NAME:IMAGE:WIDTH:HEIGHT:BRANCHES:SCHEDULER\n", word);
        exit(2);
    }
    v2l_open_options open;
    check(v2l_open_options_init(&open, sizeof open), "open options");
    open.adapter_mode = branches ? V2L_ADAPTERS_BRANCH : V2L_ADAPTERS_FUSE;

    v2l_predictor *predictor = NULL;
    v2l_adapter *adapter = NULL;
    v2l_reference reference;
    check(v2l_predictor_new(paths[1], &open, &predictor), paths[1]);
    check(v2l_reference_init(&reference, sizeof reference), "reference");
    reference.file = paths[2];
    reference.image_file = image ? paths[3] : NULL;
    reference.width = width;
    reference.height = height;
    check(v2l_predictor_predict(predictor, &reference, NULL, &adapter), paths[2]);
    v2l_predictor_free(predictor);
    save(adapter, paths[4], name);

    v2l_pipeline *pipeline = NULL;
    const v2l_weighted_adapter weighted = {adapter, 0.5f};
    check(v2l_pipeline_new(paths[1], &open, &pipeline), paths[1]);
    char json[512], size[64] = "", other[96] = "";
    if (width != 0) {
        snprintf(size, sizeof size, ", \"width\": %u, \"height\": %u", width, height);
    }
    if (strcmp(scheduler, "own") != 0) {
        snprintf(other, sizeof other, ", \"scheduler\": \"%s\"", scheduler);
    }
    snprintf(json, sizeof json, "{\"prompt\": \"a red ball\", \"num_frames\": 5, \"num_inference_steps\": 2, \"seed\": 7%s%s}",
             size, other);
    const v2l_input first = {"image", paths[3], NULL};
    const v2l_request request = {sizeof request, json, &first, 1, &weighted, 1};
    v2l_job *job = NULL;
    check(v2l_job_new(pipeline, &request, &job), json);
    snprintf(path, sizeof path, "%s/%s.video.safetensors", paths[4], name);
    check(v2l_job_save(job, NULL, path), path);
    v2l_job_free(job);
    v2l_pipeline_free(pipeline);
    v2l_adapter_free(adapter);
}

/* The predictor that v2l does not know by name: two inputs, which are what the test writes. */
static void mapped(char **paths) {
    char file[4096];
    snprintf(file, sizeof file, "%s/transformer.engine", paths[1]);
    v2l_engine *model = NULL;
    v2l_predictor *predictor = NULL;
    v2l_adapter *adapter = NULL;
    check(v2l_engine_new(file, NULL, &model), file);
    v2l_slot slot = {.size = sizeof slot};
    check(v2l_engine_slot(model, 0, &slot), "slot");
    const int64_t shapes[2][2] = {{2, (int64_t)slot.in_features}, {(int64_t)slot.out_features, 2}};
    float *values[2];
    for (int n = 0; n < 2; ++n) {
        values[n] = malloc((size_t)(shapes[n][0] * shapes[n][1]) * sizeof(float));
        for (int64_t i = 0; i < shapes[n][0]; ++i) {
            for (int64_t j = 0; j < shapes[n][1]; ++j) {
                values[n][i * shapes[n][1] + j] = (float)((i * 7 + j) % 5) * 0.01f;
            }
        }
    }
    const v2l_tensor tensors[2] = {
        {"up_in", values[1], V2L_F32, 2, shapes[1], NULL},
        {"down_in", values[0], V2L_F32, 2, shapes[0], NULL},
    };
    check(v2l_predictor_new_mapped(paths[5], paths[6], model, NULL, &predictor), paths[6]);
    v2l_engine_free(model);
    v2l_reference reference;
    check(v2l_reference_init(&reference, sizeof reference), "reference");
    reference.tensors = tensors;
    reference.tensor_count = 2;
    check(v2l_predictor_predict(predictor, &reference, NULL, &adapter), paths[5]);
    save(adapter, paths[4], "mapped");

    /* What such a predictor does not read, and what it has not. */
    reference.file = paths[2];
    v2l_adapter *none = NULL;
    if (v2l_predictor_predict(predictor, &reference, NULL, &none) != V2L_ERROR_INVALID_ARGUMENT ||
        v2l_adapter_save(adapter, "light.safetensors", V2L_FORMAT_LIGHT) != V2L_ERROR_INVALID_ARGUMENT) {
        fprintf(stderr, "expected a refusal\n");
        exit(1);
    }
    v2l_coverage coverage = {.size = sizeof coverage};
    check(v2l_adapter_coverage(adapter, &coverage), "coverage");
    if (coverage.slots_covered != 1 || coverage.slots_total != 21 || coverage.format != 0) {
        fprintf(stderr, "the mapped prediction covers other slots\n");
        exit(1);
    }
    v2l_predictor_free(predictor);
    v2l_adapter_free(adapter);
    free(values[0]);
    free(values[1]);
}

int main(int argc, char **argv) {
    if (argc < 8) {
        fprintf(stderr, "usage: front_end ENGINES REFERENCE IMAGE OUT PREDICTOR MAP ASK...\n");
        return 2;
    }
    for (int n = 7; n < argc; ++n) {
        ask(argv, argv[n]);
    }
    mapped(argv);
    return 0;
}
