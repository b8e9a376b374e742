/* Runs a graph of an engine on made-up inputs, and says what the engine holds.
 *
 *   run_engine ENGINE GRAPH [SYMBOL=EXTENT]...
 *
 * Free extents are 1 unless a SYMBOL is given one. The inputs lie in this program's memory and are read there, without a copy. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "v2l.h"

#define MAX_INPUTS 256

static void check(v2l_status status, const char *what) {
    if (status != V2L_OK) {
        fprintf(stderr, "%s: %s: %s\n", what, v2l_status_name(status), v2l_last_error());
        exit(1);
    }
}

static const char *dtype_name(v2l_dtype dtype) {
    static const char *names[] = {"?", "f32", "f16", "bf16", "i64", "i32", "u8", "bool", "f64", "i8", "i16", "u16", "u32", "u64"};
    return dtype >= V2L_F32 && (size_t)dtype < sizeof names / sizeof *names ? names[dtype] : names[0];
}

/* The extent that the command line gives a symbol. */
static int64_t extent_of(const char *symbol, int count, char **arguments) {
    size_t length = strlen(symbol);
    for (int i = 0; i < count; i++) {
        if (strncmp(arguments[i], symbol, length) == 0 && arguments[i][length] == '=') {
            return strtoll(arguments[i] + length + 1, NULL, 10);
        }
    }
    return 1;
}

/* An input of the graph: values that rise from -0.5 to 0.5 over f32, zeros otherwise. */
static v2l_tensor make_input(const v2l_port *port, int count, char **arguments) {
    int64_t *shape = calloc(port->rank + 1, sizeof *shape);
    size_t elements = 1;
    for (uint32_t axis = 0; axis < port->rank; axis++) {
        shape[axis] = port->shape[axis] >= 0 ? port->shape[axis] : extent_of(port->symbols[axis], count, arguments);
        elements *= (size_t)shape[axis];
    }
    void *data = calloc(elements + 1, 8);
    if (port->dtype == V2L_F32) {
        for (size_t i = 0; i < elements; i++) {
            ((float *)data)[i] = (float)i / (float)elements - 0.5f;
        }
    }
    v2l_tensor tensor = {port->name, data, port->dtype, port->rank, shape, NULL};
    return tensor;
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: run_engine ENGINE GRAPH [SYMBOL=EXTENT]...\n");
        return 2;
    }
    v2l_engine *engine = NULL;
    check(v2l_engine_new(argv[1], NULL, &engine), argv[1]);

    const char *component;
    size_t graphs, slots, count;
    check(v2l_engine_component(engine, &component), "component");
    check(v2l_engine_graph_count(engine, &graphs), "graphs");
    check(v2l_engine_slot_count(engine, &slots), "slots");
    printf("%s: %zu graphs, %zu slots, v2l %s\n", component, graphs, slots, v2l_version());

    v2l_tensor inputs[MAX_INPUTS];
    check(v2l_engine_input_count(engine, argv[2], &count), "inputs");
    if (count > MAX_INPUTS) {
        fprintf(stderr, "%zu inputs are more than this example has room for\n", count);
        return 1;
    }
    for (size_t i = 0; i < count; i++) {
        v2l_port port = {.size = sizeof port};
        check(v2l_engine_input(engine, argv[2], i, &port), "input");
        inputs[i] = make_input(&port, argc - 3, argv + 3);
        printf("in  %s %s\n", port.name, dtype_name(port.dtype));
    }

    v2l_session *session = NULL;
    check(v2l_session_new(engine, argv[2], &session), argv[2]);
    v2l_tensors *outputs = NULL;
    check(v2l_session_run(session, inputs, count, NULL, &outputs), "run");

    size_t results;
    check(v2l_tensors_count(outputs, &results), "outputs");
    for (size_t i = 0; i < results; i++) {
        v2l_tensor output;
        check(v2l_tensors_get(outputs, i, &output), "output");
        printf("out %s %s [", output.name, dtype_name(output.dtype));
        for (uint32_t axis = 0; axis < output.rank; axis++) {
            printf("%s%" PRId64, axis > 0 ? ", " : "", output.shape[axis]);
        }
        printf("]\n");
    }

    v2l_tensors_free(outputs);
    v2l_session_free(session);
    v2l_engine_free(engine);
    for (size_t i = 0; i < count; i++) {
        free((void *)inputs[i].data);
        free((void *)inputs[i].shape);
    }
    return 0;
}
