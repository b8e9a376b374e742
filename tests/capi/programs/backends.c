/* Sessions of an engine on ONNX Runtime and on OpenVINO give the same, each with adapters of its own.
 *
 *   backends ENGINE OTHER_ENGINE ADAPTER
 *
 * ENGINE is compiled for OpenVINO, OTHER_ENGINE is not. ADAPTER changes layers of both. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "v2l.h"

#define MAX_INPUTS 16
#define MAX_ELEMENTS 100000

static void check(v2l_status expected, v2l_status status, const char *what) {
    if (status != expected) {
        fprintf(stderr, "%s: expected %s, found %s: %s\n", what, v2l_status_name(expected), v2l_status_name(status), v2l_last_error());
        exit(1);
    }
}

static v2l_engine *engine_on(const char *file, v2l_backend backend, v2l_openvino_precision precision, const char *library) {
    v2l_open_options options;
    check(V2L_OK, v2l_open_options_init(&options, sizeof options), "options");
    options.backend = backend;
    options.openvino_precision = precision;
    options.openvino_library = library;
    v2l_engine *engine = NULL;
    check(V2L_OK, v2l_engine_new(file, &options, &engine), file);
    return engine;
}

static v2l_session *session_of(const v2l_engine *engine) {
    v2l_session *session = NULL;
    check(V2L_OK, v2l_session_new(engine, "step", &session), "session");
    return session;
}

/* Runs the graph on one latent of 4 by 4, which is 4 patches, beside 4 tokens of text. */
static size_t run(const v2l_engine *engine, const v2l_session *session, float *results) {
    v2l_tensor inputs[MAX_INPUTS];
    size_t count;
    check(V2L_OK, v2l_engine_input_count(engine, "step", &count), "inputs");
    for (size_t i = 0; i < count; i++) {
        v2l_port port = {.size = sizeof port};
        check(V2L_OK, v2l_engine_input(engine, "step", i, &port), "input");
        int64_t *shape = calloc(port.rank + 1, sizeof *shape);
        size_t elements = 1;
        for (uint32_t axis = 0; axis < port.rank; axis++) {
            const char *symbol = port.shape[axis] < 0 ? port.symbols[axis] : "";
            int64_t extent = strcmp(symbol, "batch") == 0 || strcmp(symbol, "frames") == 0 ? 1 : 4;
            shape[axis] = port.shape[axis] < 0 ? extent : port.shape[axis];
            elements *= (size_t)shape[axis];
        }
        float *data = calloc(elements + 1, 8);
        for (size_t at = 0; port.dtype == V2L_F32 && at < elements; at++) {
            data[at] = (float)at / (float)elements - 0.5f;
        }
        inputs[i] = (v2l_tensor){port.name, data, port.dtype, port.rank, shape, NULL};
    }
    v2l_tensors *outputs = NULL;
    check(V2L_OK, v2l_session_run(session, inputs, count, NULL, &outputs), "run");
    v2l_tensor output;
    check(V2L_OK, v2l_tensors_get(outputs, 0, &output), "output");
    size_t elements = 1;
    for (uint32_t axis = 0; axis < output.rank; axis++) {
        elements *= (size_t)output.shape[axis];
    }
    if (output.dtype != V2L_F32 || elements > MAX_ELEMENTS) {
        fprintf(stderr, "an output of %zu elements\n", elements);
        exit(1);
    }
    memcpy(results, output.data, elements * sizeof *results);
    v2l_tensors_free(outputs);
    for (size_t i = 0; i < count; i++) {
        free((void *)inputs[i].data);
        free((void *)inputs[i].shape);
    }
    return elements;
}

static double distance(const float *found, const float *expected, size_t count) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < count; i++) {
        difference += ((double)found[i] - expected[i]) * ((double)found[i] - expected[i]);
        norm += (double)expected[i] * expected[i];
    }
    return sqrt(difference / norm);
}

static float base[MAX_ELEMENTS], steered[MAX_ELEMENTS], found[MAX_ELEMENTS], back[MAX_ELEMENTS];

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: backends ENGINE OTHER_ENGINE ADAPTER\n");
        return 2;
    }
    /* Before a library is loaded: there is one of each in a process. */
    v2l_engine *nowhere = engine_on(argv[1], V2L_BACKEND_OPENVINO, V2L_OPENVINO_F32, "/nowhere");
    v2l_session *none = NULL;
    check(V2L_ERROR_VERSION, v2l_session_new(nowhere, "step", &none), "a library that is nowhere");
    v2l_engine_free(nowhere);
    v2l_engine *other = engine_on(argv[2], V2L_BACKEND_OPENVINO, V2L_OPENVINO_F32, NULL);
    check(V2L_ERROR_VERSION, v2l_session_new(other, "step", &none), "an engine without a form for OpenVINO");
    v2l_engine_free(other);

    v2l_engine *ort = engine_on(argv[1], V2L_BACKEND_ORT, V2L_OPENVINO_AUTO, NULL);
    v2l_adapter *adapter = NULL;
    check(V2L_OK, v2l_adapter_new(ort, argv[3], NULL, &adapter), "adapter");
    const v2l_weighted_adapter weighted = {adapter, 1.0f};
    v2l_session *session = session_of(ort);
    size_t count = run(ort, session, base);
    check(V2L_OK, v2l_session_set_adapters(session, &weighted, 1, NULL, NULL), "adapters on ONNX Runtime");
    run(ort, session, steered);
    v2l_session_free(session);
    v2l_engine_free(ort);
    printf("the adapter does something: %d\n", distance(steered, base, count) > 1e-3);

    /* Without matrices of 8 bits the second is bfloat16, where the processor has it. */
    const v2l_openvino_precision precisions[] = {V2L_OPENVINO_F32, V2L_OPENVINO_INT8};
    const double tolerances[] = {1e-4, 5e-2};
    for (size_t i = 0; i < 2; i++) {
        v2l_engine *engine = engine_on(argv[1], V2L_BACKEND_OPENVINO, precisions[i], NULL);
        v2l_session *plain = session_of(engine), *adapted = session_of(engine);
        v2l_adapter_report report = {.size = sizeof report};
        check(V2L_OK, v2l_session_set_adapters(adapted, &weighted, 1, NULL, &report), "adapters on OpenVINO");
        run(engine, adapted, found);
        printf("steered as on ONNX Runtime: %d\n", distance(found, steered, count) < 5e-2);
        run(engine, plain, found);
        printf("another session is not: %d\n", distance(found, base, count) < tolerances[i]);
        check(V2L_OK, v2l_session_set_adapters(adapted, NULL, 0, NULL, NULL), "the base on OpenVINO");
        run(engine, adapted, back);
        printf("the base comes back: %d\n", memcmp(back, found, count * sizeof *back) == 0);
        v2l_session_free(plain);
        v2l_session_free(adapted);
        v2l_engine_free(engine);
    }
    v2l_engine *any = engine_on(argv[1], V2L_BACKEND_COMPILED, V2L_OPENVINO_F32, NULL);
    session = session_of(any);
    run(any, session, found);
    printf("auto gives the same: %d\n", distance(found, base, count) < 1e-4);
    v2l_session_free(session);
    v2l_engine_free(any);
    v2l_adapter_free(adapter);
    return 0;
}
