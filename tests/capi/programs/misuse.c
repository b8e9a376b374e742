/* Whatever is wrong with a call gets its code and a message, and leaves handles usable.
 *
 *   misuse ENGINES IMAGE */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "v2l.h"

static int failures = 0;

static void expect(v2l_status expected, v2l_status found, const char *call, int line) {
    if (expected != found) {
        printf("line %d: %s: expected %s, found %s: %s\n", line, call, v2l_status_name(expected),
               v2l_status_name(found), v2l_last_error());
        failures++;
    } else if (found != V2L_OK && strlen(v2l_last_error()) < 8) {
        printf("line %d: %s: no message\n", line, call);
        failures++;
    }
}

#define EXPECT(status, call) expect(status, call, #call, __LINE__)
#define EXPECT_TRUE(condition) expect(V2L_OK, (condition) ? V2L_OK : -1, #condition, __LINE__)

static const char *const INVALID = "\xff\xfe";

/* What a callback may not do, tried from one. */
typedef struct {
    v2l_pipeline *pipeline;
    v2l_engine *engine;
    v2l_cancel *cancel;
    v2l_job *job;
    int calls;
} reentrant;

static void on_progress(void *user, v2l_phase phase, uint64_t done, uint64_t total) {
    reentrant *tried = user;
    v2l_tensors *results = (v2l_tensors *)tried;
    size_t count;
    (void)phase, (void)done, (void)total;
    tried->calls++;
    EXPECT(V2L_ERROR_REENTRANT, v2l_job_run(tried->job, NULL, &results));
    EXPECT(V2L_ERROR_REENTRANT, v2l_engine_slot_count(tried->engine, &count));
    EXPECT(V2L_ERROR_REENTRANT, v2l_set_log(NULL, NULL));
    v2l_engine_free(tried->engine);
    EXPECT_TRUE(v2l_abi_version() >> 16 == V2L_ABI_MAJOR);
    if (tried->calls == 2) {
        EXPECT(V2L_OK, v2l_cancel_request(tried->cancel));
    }
}

static int32_t stop_at_once(void *user) {
    ++*(int *)user;
    return 1;
}

static void *message_of_another_thread(void *user) {
    *(int *)user = (int)strlen(v2l_last_error());
    return NULL;
}

static void pointers_and_strings(const char *engine_file) {
    v2l_engine *engine = (v2l_engine *)1;
    EXPECT(V2L_ERROR_NULL, v2l_engine_new(engine_file, NULL, NULL));
    EXPECT(V2L_ERROR_NULL, v2l_engine_new(NULL, NULL, &engine));
    EXPECT_TRUE(engine == NULL);
    /* A path is any bytes; there is no such file. */
    EXPECT(V2L_ERROR_IO, v2l_engine_new(INVALID, NULL, &engine));
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_engine_new("", NULL, &engine));
    EXPECT(V2L_ERROR_IO, v2l_engine_new("/nowhere/x.engine", NULL, &engine));
    EXPECT(V2L_ERROR_BAD_MODEL, v2l_engine_new(__FILE__, NULL, &engine));

    int length = -1;
    pthread_t thread;
    EXPECT_TRUE(pthread_create(&thread, NULL, message_of_another_thread, &length) == 0);
    pthread_join(thread, NULL);
    EXPECT_TRUE(length == 0);

    size_t count;
    const char *name;
    EXPECT(V2L_OK, v2l_engine_new(engine_file, NULL, &engine));
    EXPECT(V2L_ERROR_NULL, v2l_engine_slot_count(NULL, &count));
    EXPECT(V2L_ERROR_NULL, v2l_engine_slot_count(engine, NULL));
    EXPECT(V2L_ERROR_NULL, v2l_engine_slot_count(engine, (size_t *)((char *)&count + 1)));
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_engine_graph(engine, 1000, &name));
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_engine_input_count(engine, "no such graph", &count));
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_engine_input_count(engine, NULL, &count));
    EXPECT(V2L_ERROR_INVALID_UTF8, v2l_engine_input_count(engine, INVALID, &count));
    v2l_engine_free(engine);
    v2l_engine_free(NULL);
    v2l_session_free(NULL);
    v2l_adapter_free(NULL);
    v2l_predictor_free(NULL);
    v2l_pipeline_free(NULL);
    v2l_job_free(NULL);
    v2l_tensors_free(NULL);
    v2l_cancel_free(NULL);
    EXPECT_TRUE(strcmp(v2l_status_name(12345), "unknown status") == 0);
}

static void sizes(const char *engine_file) {
    v2l_engine *engine = NULL;
    struct {
        v2l_open_options options;
        uint64_t later;
    } newer;
    memset(&newer, 0, sizeof newer);
    EXPECT(V2L_ERROR_SIZE, v2l_engine_new(engine_file, &newer.options, &engine));
    EXPECT(V2L_ERROR_SIZE, v2l_open_options_init(&newer.options, 4));
    EXPECT(V2L_ERROR_NULL, v2l_open_options_init(NULL, sizeof newer.options));
    EXPECT(V2L_OK, v2l_open_options_init(&newer.options, sizeof newer));
    EXPECT(V2L_OK, v2l_engine_new(engine_file, &newer.options, &engine));
    v2l_engine_free(engine);
    newer.later = 1;
    EXPECT(V2L_ERROR_SIZE, v2l_engine_new(engine_file, &newer.options, &engine));
    newer.later = 0;
    newer.options.weights = 7;
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_engine_new(engine_file, &newer.options, &engine));
    newer.options.weights = V2L_WEIGHTS_STORED;
    newer.options.ort_library = "/nowhere/libonnxruntime.so";
    EXPECT(V2L_OK, v2l_engine_new(engine_file, &newer.options, &engine));
    v2l_session *session = NULL;
    EXPECT(V2L_ERROR_VERSION, v2l_session_new(engine, "first", &session));
    EXPECT_TRUE(session == NULL);
    v2l_slot slot;
    slot.size = 0;
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_engine_slot(engine, 0, &slot));
    v2l_port port;
    port.size = 0;
    EXPECT(V2L_ERROR_SIZE, v2l_engine_input(engine, "first", 0, &port));
    v2l_engine_free(engine);
}

static void tensors(const char *engine_file) {
    v2l_engine *engine = NULL;
    v2l_session *session = NULL;
    v2l_tensors *outputs = NULL;
    EXPECT(V2L_OK, v2l_engine_new(engine_file, NULL, &engine));
    EXPECT(V2L_OK, v2l_session_new(engine, "first", &session));
    v2l_engine_free(engine);

    enum { ELEMENTS = 16 * 2 * 8 * 12 };
    static float data[ELEMENTS];
    const int64_t shape[] = {1, 16, 2, 8, 12}, negative[] = {1, 16, 2, -8, 12}, huge[] = {1, 16, 2, INT64_MAX, 12};
    const int64_t other[] = {1, 15, 2, 8, 12}, far[] = {0, INT64_MAX, 4, 4, 4};
    const v2l_tensor good = {"z", data, V2L_F32, 5, shape, NULL};
    v2l_tensor z = good;
    EXPECT(V2L_OK, v2l_session_run(session, &z, 1, NULL, &outputs));
    v2l_tensor found;
    size_t count;
    EXPECT(V2L_OK, v2l_tensors_find(outputs, "sample", &found));
    EXPECT_TRUE(found.dtype == V2L_F32 && found.rank == 5 && found.strides[4] == 4);
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_tensors_find(outputs, "nothing", &found));
    EXPECT(V2L_OK, v2l_tensors_count(outputs, &count));
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_tensors_get(outputs, count, &found));
    v2l_tensors_free(outputs);

    EXPECT(V2L_ERROR_NULL, v2l_session_run(session, NULL, 1, NULL, &outputs));
    EXPECT(V2L_ERROR_NULL, v2l_session_run(session, &z, 1, NULL, NULL));
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_session_run(session, NULL, 0, NULL, &outputs));
    EXPECT_TRUE(outputs == NULL);
#define REFUSED(status, member, value)                                 \
    z = good;                                                          \
    z.member = value;                                                  \
    EXPECT(status, v2l_session_run(session, &z, 1, NULL, &outputs));
    REFUSED(V2L_ERROR_NULL, name, NULL)
    REFUSED(V2L_ERROR_INVALID_UTF8, name, INVALID)
    REFUSED(V2L_ERROR_INVALID_ARGUMENT, name, "y")
    REFUSED(V2L_ERROR_INVALID_ARGUMENT, shape, other)
    REFUSED(V2L_ERROR_INVALID_ARGUMENT, rank, 4)
    REFUSED(V2L_ERROR_TENSOR, dtype, 0)
    REFUSED(V2L_ERROR_TENSOR, dtype, 99)
    REFUSED(V2L_ERROR_TENSOR, data, NULL)
    REFUSED(V2L_ERROR_NULL, shape, NULL)
    REFUSED(V2L_ERROR_TENSOR, shape, negative)
    REFUSED(V2L_ERROR_TENSOR, shape, huge)
    REFUSED(V2L_ERROR_TENSOR, strides, far)
    REFUSED(V2L_ERROR_TENSOR, rank, V2L_MAX_RANK + 1)
    static int64_t integers[ELEMENTS];
    z = good;
    z.data = integers;
    z.dtype = V2L_I64;
    integers[1] = 16777217; /* which f32 does not hold */
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_session_run(session, &z, 1, NULL, &outputs));
    integers[1] = 16777216;
    EXPECT(V2L_OK, v2l_session_run(session, &z, 1, NULL, &outputs));
    v2l_tensors_free(outputs);
    outputs = NULL;
    v2l_run_options options;
    EXPECT(V2L_OK, v2l_run_options_init(&options, sizeof options));
    options.adapter_count = 1;
    EXPECT(V2L_ERROR_NULL, v2l_session_run(session, &good, 1, &options, &outputs));
    EXPECT(V2L_OK, v2l_session_run(session, &good, 1, NULL, &outputs));
    v2l_tensors_free(outputs);
    v2l_session_free(session);
}

/* A child of a fork has none of the library's threads: it is told so, and waits for none. */
static void in_a_fork(const v2l_engine *engine, v2l_session *session) {
    int status = -1;
    size_t count;
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        v2l_cancel *cancel = (v2l_cancel *)1;
        failures = 0;
        EXPECT(V2L_ERROR_UNSUPPORTED, v2l_engine_slot_count(engine, &count));
        EXPECT(V2L_ERROR_UNSUPPORTED, v2l_session_set_adapters(session, NULL, 0, NULL, NULL));
        EXPECT(V2L_ERROR_UNSUPPORTED, v2l_cancel_new(&cancel));
        v2l_session_free(session);
        fflush(stdout);
        _exit(failures);
    }
    EXPECT_TRUE(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    EXPECT(V2L_OK, v2l_session_set_adapters(session, NULL, 0, NULL, NULL));
}

static void adapters(const char *engine_file, const char *directory) {
    v2l_engine *engine = NULL;
    v2l_adapter *adapter = NULL;
    EXPECT(V2L_OK, v2l_engine_new(engine_file, NULL, &engine));
    EXPECT(V2L_ERROR_IO, v2l_adapter_new(engine, "/nowhere/lora.safetensors", NULL, &adapter));
    EXPECT(V2L_ERROR_BAD_ADAPTER, v2l_adapter_new(engine, engine_file, NULL, &adapter));
    EXPECT(V2L_ERROR_NULL, v2l_adapter_new(NULL, engine_file, NULL, &adapter));

    v2l_session *session = NULL;
    EXPECT(V2L_OK, v2l_session_new(engine, "step", &session));
    const v2l_weighted_adapter nothing = {NULL, 1.0f};
    EXPECT(V2L_ERROR_NULL, v2l_session_set_adapters(session, &nothing, 1, NULL, NULL));
    EXPECT(V2L_ERROR_NULL, v2l_session_set_adapters(session, NULL, 1, NULL, NULL));

    v2l_predictor *predictor = NULL;
    EXPECT(V2L_ERROR_IO, v2l_predictor_new("/nowhere", NULL, &predictor));
    EXPECT(V2L_OK, v2l_predictor_new(directory, NULL, &predictor));
    v2l_reference reference;
    EXPECT(V2L_OK, v2l_reference_init(&reference, sizeof reference));
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_predictor_predict(predictor, &reference, NULL, &adapter));
    EXPECT(V2L_ERROR_NULL, v2l_predictor_predict(predictor, NULL, NULL, &adapter));
    static uint8_t pixels[5 * 64 * 96 * 3];
    const int64_t shape[] = {5, 64, 96, 3}, planar[] = {3, 5, 64, 96};
    v2l_tensor frames = {NULL, pixels, V2L_U8, 4, planar, NULL};
    reference.frames = &frames;
    EXPECT(V2L_ERROR_TENSOR, v2l_predictor_predict(predictor, &reference, NULL, &adapter));
    frames.shape = shape;
    reference.file = "also.mp4";
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_predictor_predict(predictor, &reference, NULL, &adapter));
    reference.file = NULL;
    reference.range = 5;
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_predictor_predict(predictor, &reference, NULL, &adapter));
    reference.range = V2L_RANGE_DEFAULT;
    int asked = 0;
    v2l_control control;
    EXPECT(V2L_OK, v2l_control_init(&control, sizeof control));
    control.cancelled = stop_at_once;
    control.user = &asked;
    EXPECT(V2L_ERROR_CANCELLED, v2l_predictor_predict(predictor, &reference, &control, &adapter));
    EXPECT_TRUE(asked > 0 && adapter == NULL);
    EXPECT(V2L_OK, v2l_predictor_predict(predictor, &reference, NULL, &adapter));
    v2l_predictor_free(predictor);

    const v2l_weighted_adapter infinite = {adapter, 1.0f / 0.0f}, good = {adapter, 1.0f};
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_session_set_adapters(session, &infinite, 1, NULL, NULL));
    EXPECT(V2L_ERROR_CANCELLED, v2l_session_set_adapters(session, &good, 1, &control, NULL));
    v2l_adapter_report report = {.size = 3};
    EXPECT(V2L_ERROR_SIZE, v2l_session_set_adapters(session, &good, 1, NULL, &report));
    report.size = sizeof report;
    EXPECT(V2L_OK, v2l_session_set_adapters(session, &good, 1, NULL, &report));
    EXPECT_TRUE(report.slots == 21 && report.survived > 0.5);
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_adapter_save(adapter, "x.safetensors", 0));
    EXPECT(V2L_ERROR_IO, v2l_adapter_save(adapter, "/nowhere/x.safetensors", V2L_FORMAT_KOHYA));
    EXPECT(V2L_OK, v2l_adapter_save(adapter, "kohya.safetensors", V2L_FORMAT_KOHYA));

    /* Handles of another kind: refused, and kept by a free. */
    size_t count;
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_engine_slot_count((const v2l_engine *)adapter, &count));
    const v2l_weighted_adapter other = {(const v2l_adapter *)engine, 1.0f};
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_session_set_adapters(session, &other, 1, NULL, NULL));
    v2l_session_free((v2l_session *)engine);
    EXPECT_TRUE(strstr(v2l_last_error(), "`handle` is a v2l_engine; expected a v2l_session") != NULL);
    control.cancelled = NULL;
    control.cancel = (const v2l_cancel *)session;
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_session_set_adapters(session, &good, 1, &control, NULL));
    in_a_fork(engine, session);

    /* Handles go in any order. */
    v2l_adapter_free(adapter);
    EXPECT(V2L_OK, v2l_adapter_new(engine, "kohya.safetensors", NULL, &adapter));
    v2l_engine_free(engine);
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_adapter_save(adapter, "light.safetensors", V2L_FORMAT_LIGHT));
    v2l_coverage coverage = {.size = sizeof coverage};
    EXPECT(V2L_OK, v2l_adapter_coverage(adapter, &coverage));
    EXPECT_TRUE(coverage.applied == coverage.keys && coverage.slots_covered == 21 && coverage.format == V2L_FORMAT_KOHYA);
    v2l_adapter_key key = {.size = sizeof key};
    EXPECT(V2L_OK, v2l_adapter_key_at(adapter, 0, &key));
    EXPECT_TRUE(key.outcome == V2L_KEY_APPLIED && strlen(key.detail) > 0);
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_adapter_key_at(adapter, coverage.keys, &key));
    v2l_adapter_layer layer = {.size = sizeof layer};
    EXPECT(V2L_OK, v2l_adapter_layer_at(adapter, 0, &layer));
    EXPECT_TRUE(layer.down.shape[0] == layer.up.shape[1] && layer.down.strides != NULL);
    v2l_adapter_free(adapter);
    v2l_session_free(session);
}

static void callbacks(const char *engine_file, const char *directory, const char *image) {
    reentrant tried = {NULL, NULL, NULL, NULL, 0};
    v2l_tensors *results = NULL;
    EXPECT(V2L_OK, v2l_engine_new(engine_file, NULL, &tried.engine));
    EXPECT(V2L_OK, v2l_cancel_new(&tried.cancel));
    EXPECT(V2L_OK, v2l_pipeline_new(directory, NULL, &tried.pipeline));
    v2l_input file = {"image", image, NULL};
    v2l_request request = {.size = sizeof request, .inputs = &file, .input_count = 1};
    v2l_job *job = (v2l_job *)1;
#define REFUSES(status, text, named)                                                  \
    request.json = text;                                                              \
    EXPECT(status, v2l_job_new(tried.pipeline, &request, &job));                      \
    EXPECT_TRUE(job == NULL && strcmp(v2l_last_error_field(), named) == 0);
    REFUSES(V2L_ERROR_INVALID_ARGUMENT, "{\"width\": 17}", "width")
    REFUSES(V2L_ERROR_INVALID_ARGUMENT, "{\"num_frames\": 4294967305}", "num_frames")
    REFUSES(V2L_ERROR_INVALID_ARGUMENT, "{\"num_frames\": 9.5}", "num_frames")
    REFUSES(V2L_ERROR_INVALID_ARGUMENT, "{\"seed\": -1}", "seed")
    REFUSES(V2L_ERROR_INVALID_ARGUMENT, "{\"prompt\": \"a\\u0000b\"}", "prompt")
    REFUSES(V2L_ERROR_INVALID_ARGUMENT, "{\"guidance_scale_2\": 2}", "guidance_scale_2")
    REFUSES(V2L_ERROR_INVALID_ARGUMENT, "{\"boundary_ratio\": 0.5}", "boundary_ratio")
    REFUSES(V2L_ERROR_INVALID_ARGUMENT, "{\"controls\": {\"camera\": 0}}", "controls")
    EXPECT_TRUE(strstr(v2l_last_error(), "`camera`, expected none") != NULL);
    REFUSES(V2L_ERROR_INVALID_ARGUMENT, "{\"nonsense\": 1}", "nonsense")
    REFUSES(V2L_ERROR_INVALID_ARGUMENT, "{\"seed\": 1, \"seed\": 2}", "seed")
    REFUSES(V2L_ERROR_INVALID_ARGUMENT, "{\"guidance_scale\": NaN}", "")
    REFUSES(V2L_ERROR_INVALID_ARGUMENT, "[]", "")
    REFUSES(V2L_ERROR_INVALID_UTF8, INVALID, "")
    request.json = "{\"num_frames\": 5, \"num_inference_steps\": 2}";
    request.size = 3;
    EXPECT(V2L_ERROR_SIZE, v2l_job_new(tried.pipeline, &request, &job));
    request.size = sizeof request;

    v2l_input two[2] = {file, {"last_image", image, NULL}};
    request.inputs = two;
    request.input_count = 2;
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_job_new(tried.pipeline, &request, &job));
    two[1].name = "image";
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_job_new(tried.pipeline, &request, &job));
    two[1].name = "nonsense";
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_job_new(tried.pipeline, &request, &job));
    two[1].name = NULL;
    EXPECT(V2L_ERROR_NULL, v2l_job_new(tried.pipeline, &request, &job));
    const float numbers[6] = {0};
    const int64_t shape[3] = {1, 2, 3};
    v2l_tensor embeds = {.data = numbers, .dtype = V2L_F32, .rank = 3, .shape = shape};
    two[1] = (v2l_input){"prompt_embeds", NULL, &embeds};
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_job_new(tried.pipeline, &request, &job));
    embeds.dtype = V2L_I32;
    EXPECT(V2L_ERROR_TENSOR, v2l_job_new(tried.pipeline, &request, &job));
    two[1] = (v2l_input){"prompt_embeds", image, NULL};
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_job_new(tried.pipeline, &request, &job));
    static uint8_t bytes[2 * 64 * 96 * 3];
    static float floats[3 * 64 * 96];
    const int64_t both[] = {2, 64, 96, 3}, planar[] = {1, 3, 1, 64, 96};
    v2l_tensor picture = {.data = bytes, .dtype = V2L_U8, .rank = 4, .shape = both};
    two[0] = (v2l_input){"image", NULL, NULL};
    request.input_count = 1;
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_job_new(tried.pipeline, &request, &job));
    two[0].tensor = &picture;
    EXPECT(V2L_ERROR_TENSOR, v2l_job_new(tried.pipeline, &request, &job));
    picture = (v2l_tensor){.data = floats, .dtype = V2L_F32, .rank = 5, .shape = planar};
    floats[7] = 500;
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_job_new(tried.pipeline, &request, &job));
    floats[7] = NAN;
    EXPECT(V2L_ERROR_NUMERIC, v2l_job_new(tried.pipeline, &request, &job));
    request.inputs = &file;
    request.adapter_count = 1;
    EXPECT(V2L_ERROR_NULL, v2l_job_new(tried.pipeline, &request, &job));
    request.adapter_count = 0;

    EXPECT(V2L_OK, v2l_job_new(tried.pipeline, &request, &job));
    const char *json = NULL;
    EXPECT(V2L_OK, v2l_job_resolved(job, &json));
    EXPECT_TRUE(strstr(json, "\"num_frames\":5,") != NULL && strstr(json, "\"warnings\":[]") != NULL);
    EXPECT(V2L_OK, v2l_pipeline_schema(tried.pipeline, &json));
    EXPECT_TRUE(strstr(json, "noise_aug_strength") != NULL && strstr(json, "boundary_ratio") == NULL);
    EXPECT(V2L_ERROR_INVALID_ARGUMENT, v2l_job_save(job, NULL, "video.txt"));
    tried.job = job;
    v2l_control control;
    EXPECT(V2L_OK, v2l_control_init(&control, sizeof control));
    control.progress = on_progress;
    control.cancel = tried.cancel;
    control.user = &tried;
    EXPECT(V2L_ERROR_CANCELLED, v2l_job_run(job, &control, &results));
    EXPECT_TRUE(tried.calls >= 2 && results == NULL);
    EXPECT(V2L_OK, v2l_cancel_reset(tried.cancel));
    control.progress = NULL;
    /* A job keeps its pipeline. */
    v2l_pipeline_free(tried.pipeline);
    EXPECT(V2L_OK, v2l_job_run(job, &control, &results));
    v2l_tensors_free(results);
    v2l_job_free(job);
    v2l_cancel_free(tried.cancel);
    v2l_engine_free(tried.engine);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: misuse ENGINES IMAGE\n");
        return 2;
    }
    char decoder[4096], transformer[4096];
    snprintf(decoder, sizeof decoder, "%s/vae_decoder.engine", argv[1]);
    snprintf(transformer, sizeof transformer, "%s/transformer.engine", argv[1]);
    pointers_and_strings(decoder);
    sizes(decoder);
    tensors(decoder);
    adapters(transformer, argv[1]);
    callbacks(transformer, argv[1], argv[2]);
    printf("%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
