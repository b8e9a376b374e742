/* Opens a graph of an engine, runs it once, says so on stdout, and waits until stdin ends.
 *
 *   first_output ENGINE GRAPH NAME:TYPE:EXTENTxEXTENT...      TYPE: f32, i64; the values are zeros */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "v2l.h"

#define MOST 16

static void check(v2l_status status) {
    if (status != V2L_OK) {
        fprintf(stderr, "%s: %s\n", v2l_status_name(status), v2l_last_error());
        exit(1);
    }
}

/* Reads NAME:TYPE:EXTENTS, in place. */
static v2l_tensor zeros(char *text, int64_t shape[MOST]) {
    v2l_tensor tensor = {strtok(text, ":"), NULL, V2L_F32, 0, shape, NULL};
    tensor.dtype = strcmp(strtok(NULL, ":"), "i64") == 0 ? V2L_I64 : V2L_F32;
    size_t elements = 1;
    for (char *extent = strtok(NULL, "x"); extent != NULL; extent = strtok(NULL, "x")) {
        shape[tensor.rank] = strtoll(extent, NULL, 10);
        elements *= (size_t)shape[tensor.rank++];
    }
    tensor.data = calloc(elements, 8);
    return tensor;
}

int main(int argc, char **argv) {
    if (argc < 3 || argc - 3 > MOST) {
        fprintf(stderr, "usage: first_output ENGINE GRAPH NAME:TYPE:EXTENTS...\n");
        return 2;
    }
    v2l_tensor inputs[MOST];
    int64_t shapes[MOST][MOST];
    for (int i = 3; i < argc; i++) {
        inputs[i - 3] = zeros(argv[i], shapes[i - 3]);
    }
    v2l_engine *engine;
    v2l_session *session;
    v2l_tensors *outputs;
    check(v2l_engine_new(argv[1], NULL, &engine));
    check(v2l_session_new(engine, argv[2], &session));
    check(v2l_session_run(session, inputs, (size_t)(argc - 3), NULL, &outputs));
    puts("ran");
    fflush(stdout);
    return getchar() == EOF ? 0 : 1;
}
