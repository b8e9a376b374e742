/* Predicts an adapter from a reference and generates a video with it, with progress; stops when it is asked to.
 *
 *   generate ENGINES REFERENCE IMAGE REQUEST OUT [CANCEL_AT]
 *
 * REQUEST is JSON: '{"prompt": "a paper boat", "num_frames": 9}'. OUT is a video, or a folder of PNG files if it ends in "/". With CANCEL_AT another thread asks to stop once so many steps are done;
 * the program then ends with 130, and there is no OUT. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "v2l.h"

/* What the progress callback and the thread that stops the work share. */
typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    long steps;
    long cancel_at;
    int finished;
    v2l_cancel *cancel;
} watch;

static void on_progress(void *user, v2l_phase phase, uint64_t done, uint64_t total) {
    watch *shared = user;
    if (phase != V2L_PHASE_DENOISE) {
        return;
    }
    printf("step %llu of %llu\n", (unsigned long long)done, (unsigned long long)total);
    pthread_mutex_lock(&shared->mutex);
    shared->steps = (long)done;
    pthread_cond_signal(&shared->changed);
    pthread_mutex_unlock(&shared->mutex);
}

static void on_log(void *user, v2l_log_level level, const char *message) {
    (void)user;
    fprintf(stderr, "%s: %s\n", level == V2L_LOG_WARNING ? "warning" : "note", message);
}

/* Another thread: asks to stop once enough steps are done. */
static void *stop_later(void *argument) {
    watch *shared = argument;
    pthread_mutex_lock(&shared->mutex);
    while (!shared->finished && shared->steps < shared->cancel_at) {
        pthread_cond_wait(&shared->changed, &shared->mutex);
    }
    pthread_mutex_unlock(&shared->mutex);
    v2l_cancel_request(shared->cancel);
    return NULL;
}

static void check(v2l_status status, const char *what) {
    if (status != V2L_OK) {
        fprintf(stderr, "%s: %s: %s\n", what, v2l_status_name(status), v2l_last_error());
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc < 6) {
        fprintf(stderr, "usage: generate ENGINES REFERENCE IMAGE REQUEST OUT [CANCEL_AT]\n");
        return 2;
    }
    check(v2l_set_log(on_log, NULL), "log");
    watch shared = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, 0, NULL};
    shared.cancel_at = argc > 6 ? strtol(argv[6], NULL, 10) : 0;
    check(v2l_cancel_new(&shared.cancel), "cancel");

    v2l_control control;
    check(v2l_control_init(&control, sizeof control), "control");
    control.cancel = shared.cancel;
    control.progress = on_progress;
    control.user = &shared;

    /* The adapter, from the reference. */
    v2l_predictor *predictor = NULL;
    check(v2l_predictor_new(argv[1], NULL, &predictor), argv[1]);
    v2l_reference reference;
    check(v2l_reference_init(&reference, sizeof reference), "reference");
    reference.file = argv[2];
    v2l_adapter *adapter = NULL;
    check(v2l_predictor_predict(predictor, &reference, &control, &adapter), argv[2]);
    v2l_predictor_free(predictor);
    v2l_coverage coverage = {.size = sizeof coverage};
    check(v2l_adapter_coverage(adapter, &coverage), "coverage");
    printf("adapter of %llu of %llu slots\n", (unsigned long long)coverage.slots_covered,
           (unsigned long long)coverage.slots_total);

    /* The video, with the adapter. */
    v2l_pipeline *pipeline = NULL;
    check(v2l_pipeline_new(argv[1], NULL, &pipeline), argv[1]);
    v2l_weighted_adapter weighted = {adapter, 1.0f};
    v2l_input image = {"image", argv[3], NULL};
    v2l_request request = {sizeof request, argv[4], &image, 1, &weighted, 1};
    v2l_job *job = NULL;
    check(v2l_job_new(pipeline, &request, &job), argv[4]);

    pthread_t stopper;
    int stops = shared.cancel_at > 0;
    if (stops && pthread_create(&stopper, NULL, stop_later, &shared) != 0) {
        fprintf(stderr, "no thread could be started\n");
        return 1;
    }
    v2l_status status = v2l_job_save(job, &control, argv[5]);
    if (stops) {
        pthread_mutex_lock(&shared.mutex);
        shared.finished = 1;
        pthread_cond_signal(&shared.changed);
        pthread_mutex_unlock(&shared.mutex);
        pthread_join(stopper, NULL);
    }

    v2l_job_free(job);
    v2l_pipeline_free(pipeline);
    v2l_adapter_free(adapter);
    v2l_cancel_free(shared.cancel);
    if (status == V2L_ERROR_CANCELLED) {
        printf("cancelled\n");
        return 130;
    }
    check(status, argv[5]);
    printf("%s\n", argv[5]);
    return 0;
}
