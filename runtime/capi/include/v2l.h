/*
 * v2l: predict LoRA adapters from a reference, apply them to a video diffusion transformer, generate video.
 *
 * HANDLES. A v2l_…_new function makes a handle, the v2l_…_free function of the same name ends it; NULL may be freed. Handles keep what
 * they were made from: they may be freed in any order. A handle that was freed must not be used again. A
 * handle of another kind is refused (V2L_ERROR_INVALID_ARGUMENT), and kept by a free.
 *
 * RESULTS. Every function that can fail returns a v2l_status: V2L_OK, or the class of the failure; v2l_last_error() then says, for this
 * thread, what was expected, what was found and the way out. Out-parameters come last. After a failure an out-parameter that takes a
 * handle is NULL, others are as they were, and so is every handle that was given: what changes something does so as a whole or not at
 * all.
 *
 * POINTERS. Strings are UTF-8 and end in NUL; paths end in NUL, too, and on Unix are any bytes. Messages show a path's bytes that are no
 * UTF-8 replaced. What a function is given need only live until it returns, unless it says otherwise. A pointer may be NULL only where it says so; NULL elsewhere is refused (V2L_ERROR_NULL), and so is a pointer that is
 * not aligned. That memory has the extents that are claimed for it is the caller's promise.
 *
 * STRUCTURES THAT GROW begin with `size`. v2l_…_init(&options, sizeof options) fills in the defaults; NULL for options means the
 * defaults, too. For what a function fills, set `size` to sizeof before. A later version may add members at the end: programs that were
 * compiled before keep working, and a program that sets a member the library does not know yet is refused (V2L_ERROR_SIZE).
 *
 * THREADS. Every handle may be used from any thread, and from several at the same time.
 *   v2l_engine, v2l_adapter, v2l_tensors   never change: calls on them run side by side.
 *   v2l_session, v2l_predictor, v2l_pipeline   calls on the same handle run one after the other; on different handles, side by side.
 *   v2l_job   its calls count as calls on its pipeline.
 *   Sessions of one engine share its weights: when they change adapters, they do that one after the other; their runs go on.
 *   v2l_cancel   may be requested from any thread and from callbacks.
 * A session, predictor or pipeline that several threads use with different adapters must be told which in the call itself
 * (v2l_run_options, v2l_request): nothing comes between the change and the run.
 * Freeing a handle while another thread uses it is an error that is not detected. So is ending the process (exit, a return from main) while
 * a thread is inside a call: what the library has loaded ends under it. Request a v2l_cancel, and wait for the call to return.
 *
 * FORK. A child of fork() has none of the library's threads. Once a process has asked for a handle, its children are refused: calls
 * return V2L_ERROR_UNSUPPORTED, frees do nothing. A child that calls exec() may use the library, and so may one that was forked before the
 * first handle was asked for.
 *
 * CALLBACKS must return normally: an exception or longjmp must not leave one. They may call v2l_cancel_request, v2l_last_error,
 * v2l_last_error_field, v2l_status_name and the version functions; any other call from a callback returns V2L_ERROR_REENTRANT and does nothing, for frees too.
 *
 * FAILURES INSIDE. A defect of the library is caught and returned as V2L_ERROR_INTERNAL; the handle that it happened on then refuses
 * further calls and can only be freed. If the system has no memory left, the process ends.
 */


#ifndef V2L_H
#define V2L_H

/* Made from runtime/capi/src by cbindgen: UPDATE_HEADER=1 cargo test -p v2l-capi --test header */

#include <stddef.h>
#include <stdint.h>

/**
 * Version of the ABI that this header describes, major part: programs run with libraries of the same number only.
 */
#define V2L_ABI_MAJOR 1

/**
 * Its minor part: programs run with libraries of this number or a larger one.
 */
#define V2L_ABI_MINOR 0

/**
 * Largest rank of a tensor.
 */
#define V2L_MAX_RANK 16

/**
 * Low-rank updates of some slots.
 */
typedef struct v2l_adapter v2l_adapter;

/**
 * A request to stop, to be shared by threads.
 */
typedef struct v2l_cancel v2l_cancel;

/**
 * An engine file, mapped, and the weights that its sessions share.
 */
typedef struct v2l_engine v2l_engine;

/**
 * A request that a pipeline can carry out, with every question answered. It may run several times.
 */
typedef struct v2l_job v2l_job;

/**
 * The engines of a directory, and everything between them.
 */
typedef struct v2l_pipeline v2l_pipeline;

/**
 * What predicts adapters: the predictor of an engine directory, or any graph whose outputs are low-rank factors.
 */
typedef struct v2l_predictor v2l_predictor;

/**
 * A graph of an engine with the adapters that are applied to it.
 */
typedef struct v2l_session v2l_session;

/**
 * Named tensors that the library owns.
 */
typedef struct v2l_tensors v2l_tensors;

/**
 * The outcome of a call: V2L_OK or the class of its failure. A number keeps its meaning for ever; up to 9 and at 130 it is the
 * exit code of v2l's tools for the same class. Later versions may add codes: treat unknown ones as failures.
 */
typedef int32_t v2l_status;

/**
 * Asked whether to stop: 0 goes on, anything else stops. It is asked on the thread of the call, between steps and every few milliseconds
 * within one; while adapters are fused, on several threads at the same time.
 */
typedef int32_t (*v2l_cancelled_callback)(void *user);

/**
 * A phase of the work.
 */
typedef int32_t v2l_phase;

/**
 * Told how far a phase is: `done` of `total` steps, 0 as it begins. Called on the thread of the call.
 */
typedef void (*v2l_progress_callback)(void *user, v2l_phase phase, uint64_t done, uint64_t total);

/**
 * How a long call reports and can be stopped. All zero: it does not report, and ends when it is done.
 *
 * What is stopped returns V2L_ERROR_CANCELLED. On ONNX Runtime and OpenVINO a run of a graph ends at its next node, on TensorRT when it is
 * done.
 */
typedef struct v2l_control {
    /**
     * sizeof(v2l_control).
     */
    size_t size;
    /**
     * May be NULL. Stops the call once it is requested, before or while it runs.
     */
    const struct v2l_cancel *cancel;
    /**
     * May be NULL.
     */
    v2l_cancelled_callback cancelled;
    /**
     * May be NULL.
     */
    v2l_progress_callback progress;
    /**
     * Given to the callbacks; not looked at.
     */
    void *user;
} v2l_control;

/**
 * How much a message matters.
 */
typedef int32_t v2l_log_level;

/**
 * Takes a message, which lives until the callback returns. Called on the thread that does the work, by several at the same time.
 */
typedef void (*v2l_log_callback)(void *user, v2l_log_level level, const char *message);

/**
 * Type of a tensor's elements.
 */
typedef int32_t v2l_dtype;

/**
 * A tensor in host memory; it owns nothing. This structure never grows.
 *
 * As an input it is the caller's, and read until the call returns. It is used in place, without a copy, if it lies in row-major order,
 * `data` is aligned to the elements and `dtype` is the graph's; otherwise it is copied, and converted to the graph's type if every
 * number in it is the same number there: i64 timesteps for a graph that takes f32, say. Else the call gives
 * V2L_ERROR_INVALID_ARGUMENT, and its message names the first number that is lost.
 * A copy that does not fit in the memory that the machine has available is refused with V2L_ERROR_MEMORY.
 *
 * As an output it lies in memory of the handle that it came from, lives as long, and must not be written to; its strides are set. The
 * tensors of a v2l_tensors lie in row-major order.
 */
typedef struct v2l_tensor {
    /**
     * The name of an input or output. May be NULL where no name is asked for.
     */
    const char *name;
    /**
     * The first element: the one at index 0, 0, …
     */
    const void *data;
    /**
     * Type of the elements.
     */
    v2l_dtype dtype;
    /**
     * Number of extents, at most V2L_MAX_RANK.
     */
    uint32_t rank;
    /**
     * `rank` extents, outermost first. May be NULL for rank 0.
     */
    const int64_t *shape;
    /**
     * `rank` distances, in bytes, from one index to the next; negative and 0 will do. May be NULL: row-major order.
     */
    const int64_t *strides;
} v2l_tensor;

/**
 * How weights that are stored in 16 bits are held.
 */
typedef int32_t v2l_weights;

/**
 * In which types graphs compute.
 */
typedef int32_t v2l_arithmetic;

/**
 * How a pipeline applies adapters. A session applies them as its graph does: fused, or beside the weights for a graph whose name ends
 * in ".side".
 */
typedef int32_t v2l_adapter_mode;

/**
 * What runs engines.
 */
typedef int32_t v2l_backend;

/**
 * Whether large frames are cut into tiles for the autoencoder.
 */
typedef int32_t v2l_tiling;

/**
 * In which type graphs compute on OpenVINO.
 */
typedef int32_t v2l_openvino_precision;

/**
 * How engines are opened. All zero: the defaults.
 */
typedef struct v2l_open_options {
    /**
     * sizeof(v2l_open_options).
     */
    size_t size;
    /**
     * ONNX Runtime's library, or a folder that holds it. NULL: what V2L_ORT_LIB or ORT_DYLIB_PATH names; next to the executable; for an
     * executable in the target/ of v2l's checkout, that checkout's vendor/; LD_LIBRARY_PATH; the loader's places. A library that others
     * could have put next to the executable or into vendor/ is passed over, and the log says so: it, its folder and those above
     * must belong to the user or root, and nobody else may write there.
     * ONNX Runtime 1.29 and newer report to their makers and keep an identifier in the user's folders unless ORT_DISABLE_TELEMETRY is 1 in
     * the environment before the first engine is opened. v2l turns reports off once ONNX Runtime is up, which is too late
     * for the first ones; a library cannot change the environment of a program with threads. Set it before threads start.
     */
    const char *ort_library;
    /**
     * The ffmpeg program, for video files. NULL: what V2L_FFMPEG names; next to the executable; vendor/, as above; PATH.
     */
    const char *ffmpeg;
    /**
     * Most bytes of private memory that an engine's weights may take; 0: what the machine has available.
     */
    uint64_t memory_limit;
    /**
     * Threads within an operator, 1024 at most; 0: as many as there are cores.
     */
    uint32_t threads;
    /**
     * V2L_WEIGHTS_…
     */
    v2l_weights weights;
    /**
     * V2L_ARITHMETIC_…
     */
    v2l_arithmetic arithmetic;
    /**
     * V2L_ADAPTERS_…; counts for pipelines.
     */
    v2l_adapter_mode adapter_mode;
    /**
     * Not 0: read the whole of every engine and compare its content with its hashes.
     */
    int32_t verify_hashes;
    /**
     * What runs engines: V2L_BACKEND_… Sessions run on OpenVINO where that is asked for or, with V2L_BACKEND_AUTO, suits the engine; else on
     * ONNX Runtime.
     */
    v2l_backend backend;
    /**
     * GPU for engines that are compiled for TensorRT, counted from 0; 65535 at most.
     */
    uint32_t device;
    /**
     * Whether large frames are cut into tiles for the autoencoder: V2L_TILING_…
     */
    v2l_tiling vae_tiling;
    /**
     * Not 0: engines that are compiled for TensorRT are not compared with what was recorded when they were compiled, when their weights
     * were set.
     */
    int32_t no_verify;
    /**
     * In which type graphs compute on OpenVINO: V2L_OPENVINO_…
     */
    v2l_openvino_precision openvino_precision;
    /**
     * TensorRT's library, or the folder of it. NULL: what V2L_TRT_LIB names; vendor/, as above; Python packages; the loader's places.
     */
    const char *trt_library;
    /**
     * What ONNX Runtime computes on: "cpu", or "cuda" or "cuda:N" for GPU N in a library built with CUDA. NULL: "cpu".
     */
    const char *provider;
    /**
     * Folder to keep predictions in: for a reference that comes again, autoencoder and hypernetwork do not run. NULL: none are kept.
     */
    const char *prediction_cache;
    /**
     * Bytes that `prediction_cache` may take; what was not used for longest goes. 0: 256 MiB.
     */
    uint64_t prediction_cache_size;
    /**
     * OpenVINO's C library, or the folder of it. NULL: what V2L_OPENVINO_LIB names; next to the executable; vendor/, as above; Python
     * packages; LD_LIBRARY_PATH; the loader's places.
     */
    const char *openvino_library;
    /**
     * Folder to keep fused weights in, on ONNX Runtime's CPU and on OpenVINO: adapters that come again are not fused but mapped. NULL: none are kept.
     */
    const char *fused_cache;
    /**
     * Bytes that `fused_cache` may take; what was not used for longest goes. 0: 32 GiB.
     */
    uint64_t fused_cache_size;
} v2l_open_options;

/**
 * An input or output of a graph; lives as long as the engine.
 */
typedef struct v2l_port {
    /**
     * sizeof(v2l_port); set it before the call.
     */
    size_t size;
    /**
     * Name, as in the reference implementation.
     */
    const char *name;
    /**
     * Type of the elements.
     */
    v2l_dtype dtype;
    /**
     * Number of extents.
     */
    uint32_t rank;
    /**
     * `rank` extents, outermost first; -1 where the extent is free.
     */
    const int64_t *shape;
    /**
     * For each extent its name if it is free, else NULL. Extents of the same name must be equal in a run.
     */
    const char *const *symbols;
} v2l_port;

/**
 * A linear layer that adapters may change; lives as long as the engine.
 */
typedef struct v2l_slot {
    /**
     * sizeof(v2l_slot); set it before the call.
     */
    size_t size;
    /**
     * Module path in the reference implementation.
     */
    const char *name;
    /**
     * The weight's name in the engine; several slots may be rows of one weight.
     */
    const char *tensor;
    /**
     * Output features.
     */
    uint64_t out_features;
    /**
     * Input features.
     */
    uint64_t in_features;
} v2l_slot;

/**
 * Which transformers an adapter is for, of a model with two.
 */
typedef int32_t v2l_experts;

/**
 * How an adapter is loaded. All zero: the defaults.
 */
typedef struct v2l_adapter_options {
    /**
     * sizeof(v2l_adapter_options).
     */
    size_t size;
    /**
     * Expands a file of the form V2L_FORMAT_LIGHT; the predictor that made it. NULL: such a file is refused.
     */
    const struct v2l_predictor *predictor;
    /**
     * For a model with two transformers: the engine of "transformer_2", where `engine` is that of "transformer". The adapter is
     * then for a pipeline's, and layers of the second are called `transformer_2.<slot>`. NULL: the adapter is for `engine` alone.
     */
    const struct v2l_engine *second;
    /**
     * Not 0: apply the rest of a file some keys of which match no slot.
     */
    int32_t allow_partial;
    /**
     * Which of the two the file is for: V2L_EXPERTS_…; 0 without `second`.
     */
    v2l_experts experts;
} v2l_adapter_options;

/**
 * How an adapter's file spells its keys.
 */
typedef int32_t v2l_adapter_format;

/**
 * What became of an adapter's file.
 */
typedef struct v2l_coverage {
    /**
     * sizeof(v2l_coverage); set it before the call.
     */
    size_t size;
    /**
     * Keys of the file; 0 for an adapter that was predicted.
     */
    uint64_t keys;
    /**
     * Keys that change a slot.
     */
    uint64_t applied;
    /**
     * Keys that change nothing.
     */
    uint64_t ignored;
    /**
     * Slots that the adapter changes.
     */
    uint64_t slots_covered;
    /**
     * Slots of the engine.
     */
    uint64_t slots_total;
    /**
     * How the file spells its keys: V2L_FORMAT_…; V2L_FORMAT_LIGHT for an adapter that was predicted as tokens, 0 for other predictions.
     */
    v2l_adapter_format format;
    /**
     * 0.
     */
    int32_t reserved;
    /**
     * Parameters besides slots that the adapter changes: biases, norms, tables, convolutions.
     */
    uint64_t parameters_covered;
} v2l_coverage;

/**
 * What became of a key of an adapter's file.
 */
typedef int32_t v2l_key_outcome;

/**
 * A key of an adapter's file; lives as long as the adapter.
 */
typedef struct v2l_adapter_key {
    /**
     * sizeof(v2l_adapter_key); set it before the call.
     */
    size_t size;
    /**
     * The key.
     */
    const char *key;
    /**
     * The slot that it changes, or why it changes none.
     */
    const char *detail;
    /**
     * V2L_KEY_…
     */
    v2l_key_outcome outcome;
    /**
     * 0.
     */
    int32_t reserved;
} v2l_adapter_key;

/**
 * One slot's update: ΔW = strength · (alpha / rank) · up · down; lives as long as the adapter. Of a full difference `down.data` is NULL
 * and ΔW = strength · up.
 */
typedef struct v2l_adapter_layer {
    /**
     * sizeof(v2l_adapter_layer); set it before the call.
     */
    size_t size;
    /**
     * The slot.
     */
    const char *slot;
    /**
     * f32 [rank, in].
     */
    struct v2l_tensor down;
    /**
     * f32 [out, rank].
     */
    struct v2l_tensor up;
    /**
     * Numerator of the scale.
     */
    float alpha;
    /**
     * 0.
     */
    int32_t reserved;
} v2l_adapter_layer;

/**
 * An adapter of a set, and how strongly it acts: ΔW = strength · (alpha / rank) · up · down.
 */
typedef struct v2l_weighted_adapter {
    /**
     * The adapter.
     */
    const struct v2l_adapter *adapter;
    /**
     * 1 for the adapter as it was trained; any finite number will do.
     */
    float strength;
} v2l_weighted_adapter;

/**
 * What became of a set of adapters when it was applied.
 */
typedef struct v2l_adapter_report {
    /**
     * sizeof(v2l_adapter_report); set it before the call.
     */
    size_t size;
    /**
     * Slots that were changed.
     */
    uint64_t slots;
    /**
     * Part of the update that survives rounding to the type that the weights are held in; 1 for nothing lost.
     */
    double survived;
    /**
     * Norm of what rounding did to the update, over the norm of the update.
     */
    double relative_error;
    /**
     * Part of the changed slots' weights that came out as they were.
     */
    double unchanged;
} v2l_adapter_report;

/**
 * How a graph is run. All zero: the defaults.
 */
typedef struct v2l_run_options {
    /**
     * sizeof(v2l_run_options).
     */
    size_t size;
    /**
     * The adapters to run with, `adapter_count` of them: as v2l_session_set_adapters, before the run and in one with it, so that no other
     * thread's call comes between. Costs nothing if they are the session's already. NULL: those of the session.
     */
    const struct v2l_weighted_adapter *adapters;
    /**
     * Number of adapters; 0 and `adapters` not NULL is the base model.
     */
    size_t adapter_count;
    /**
     * For the change of adapters; may be NULL.
     */
    const struct v2l_control *control;
} v2l_run_options;

/**
 * Range of a reference's pixels, as the checkpoint was trained on.
 */
typedef int32_t v2l_reference_range;

/**
 * How a reference is brought to the size of the video.
 */
typedef int32_t v2l_reference_resize;

/**
 * Which latent of a reference the predictor gets.
 */
typedef int32_t v2l_reference_latent;

/**
 * What to predict from: a reference, which is either a file or a tensor, or named tensors, as the predictor reads. Start from
 * v2l_reference_init.
 */
typedef struct v2l_reference {
    /**
     * sizeof(v2l_reference).
     */
    size_t size;
    /**
     * A video (by ffmpeg), an image, a folder of images, or a safetensors file with `pixels`; or NULL.
     */
    const char *file;
    /**
     * u8 [frames, height, width, 3] in RGB, or f32 [1, 3, frames, height, width] in [-1, 1], which is neither resized nor cut; or NULL.
     */
    const struct v2l_tensor *frames;
    /**
     * Frames per second of `frames`; 0: not known.
     */
    double fps;
    /**
     * Size that the reference is brought to, that of the video to generate; 0: the engine directory's, or that of `image`.
     */
    uint32_t width;
    /**
     * As `width`.
     */
    uint32_t height;
    /**
     * Seed of the latent, where it is drawn.
     */
    uint64_t seed;
    /**
     * V2L_RANGE_…
     */
    v2l_reference_range range;
    /**
     * V2L_RESIZE_…
     */
    v2l_reference_resize resize;
    /**
     * V2L_LATENT_…
     */
    v2l_reference_latent latent;
    /**
     * So many frames from the first; 0: as the engine directory says; -1: all.
     */
    int32_t frame_count;
    /**
     * The first frame of the video to generate, which says its size where `width` and `height` are 0 and the model takes it from the
     * image: a file; or NULL.
     */
    const char *image_file;
    /**
     * As `image_file`: u8 [1, height, width, 3] in RGB or f32 [1, 3, 1, height, width] in [-1, 1]; or NULL.
     */
    const struct v2l_tensor *image;
    /**
     * Named tensors, `tensor_count` of them, for predictors that read such: exactly those that the map of v2l_predictor_new_mapped reads; or
     * NULL.
     */
    const struct v2l_tensor *tensors;
    /**
     * Number of `tensors`.
     */
    size_t tensor_count;
    /**
     * The prompt, for predictors that read one; or NULL. In its place `tensors` may hold embeddings: `text_hidden` f32 [1, n, width] and,
     * where there is one, `text_attention_mask` [1, n].
     */
    const char *prompt;
} v2l_reference;

/**
 * A picture or tensor that stands beside a request's JSON: one of the "inputs" of v2l_pipeline_schema. It has a file or a tensor.
 */
typedef struct v2l_input {
    /**
     * "image", "last_image", "initial_noise", "prompt_embeds", …
     */
    const char *name;
    /**
     * A file with a picture; or NULL.
     */
    const char *file;
    /**
     * A picture, u8 [1, height, width, 3] in RGB or f32 [1, 3, 1, height, width] in [-1, 1]; or numbers in f32; or NULL.
     */
    const struct v2l_tensor *tensor;
} v2l_input;

/**
 * What a video is to be. All zero but `size`: everything is as the engine directory says.
 */
typedef struct v2l_request {
    /**
     * sizeof(v2l_request).
     */
    size_t size;
    /**
     * A JSON object, whose names are those of v2l_pipeline_schema: {"prompt": "a paper boat", "num_frames": 17, "seed": 7}. What is absent
     * or null is as the engine directory says. NULL: {}.
     */
    const char *json;
    /**
     * Pictures and tensors, `input_count` of them; or NULL.
     */
    const struct v2l_input *inputs;
    /**
     * Number of inputs.
     */
    size_t input_count;
    /**
     * The adapters to generate with, `adapter_count` of them: as v2l_pipeline_set_adapters, before the work and in one with it, so that no
     * other thread's call comes between. Costs nothing if they are the pipeline's already. NULL: those of the pipeline.
     */
    const struct v2l_weighted_adapter *adapters;
    /**
     * Number of adapters; 0 and `adapters` not NULL is the base model.
     */
    size_t adapter_count;
} v2l_request;

/**
 * Everything was done.
 */
#define V2L_OK 0

/**
 * An argument is wrong: a value out of range, a name that does not exist, an input that does not fit the graph.
 */
#define V2L_ERROR_INVALID_ARGUMENT 2

/**
 * An engine or engine directory is malformed or does not fit its configuration.
 */
#define V2L_ERROR_BAD_MODEL 3

/**
 * A model uses a feature that is not supported.
 */
#define V2L_ERROR_UNSUPPORTED 4

/**
 * An adapter is malformed, or does not cover or fit the model.
 */
#define V2L_ERROR_BAD_ADAPTER 5

/**
 * A library or file has the wrong version, or is missing from this machine.
 */
#define V2L_ERROR_VERSION 6

/**
 * A number is NaN or infinite where it must not be.
 */
#define V2L_ERROR_NUMERIC 7

/**
 * Memory does not suffice; nothing was allocated.
 */
#define V2L_ERROR_MEMORY 8

/**
 * A file could not be read or written, or an external program failed.
 */
#define V2L_ERROR_IO 9

/**
 * A pointer is NULL that must not be, or is not aligned.
 */
#define V2L_ERROR_NULL 20

/**
 * A string is not UTF-8.
 */
#define V2L_ERROR_INVALID_UTF8 21

/**
 * The `size` of a structure is none that this library knows.
 */
#define V2L_ERROR_SIZE 22

/**
 * A v2l_tensor contradicts itself: its type, rank, extents or strides.
 */
#define V2L_ERROR_TENSOR 23

/**
 * A callback called a function that callbacks may not call.
 */
#define V2L_ERROR_REENTRANT 24

/**
 * A defect of the library; please report the message.
 */
#define V2L_ERROR_INTERNAL 25

/**
 * The caller asked to stop; everything is as it was before the call.
 */
#define V2L_ERROR_CANCELLED 130

/**
 * Something that the user should know; the work goes on.
 */
#define V2L_LOG_WARNING 1

/**
 * What was done, and why in this way.
 */
#define V2L_LOG_INFO 2

/**
 * Prompt to embeddings.
 */
#define V2L_PHASE_ENCODE_TEXT 1

/**
 * Reference video to latent.
 */
#define V2L_PHASE_ENCODE_REFERENCE 2

/**
 * First frame to latent.
 */
#define V2L_PHASE_ENCODE_CONDITION 3

/**
 * The sampler's steps.
 */
#define V2L_PHASE_DENOISE 4

/**
 * Latent to frames.
 */
#define V2L_PHASE_DECODE 5

/**
 * Video to latent, by itself.
 */
#define V2L_PHASE_ENCODE_VIDEO 6

/**
 * A prompt and the base's weights to an adapter.
 */
#define V2L_PHASE_PREDICT 7

/**
 * IEEE 754 binary32.
 */
#define V2L_F32 1

/**
 * IEEE 754 binary16.
 */
#define V2L_F16 2

/**
 * bfloat16: the upper half of a binary32.
 */
#define V2L_BF16 3

/**
 * 64-bit signed integer.
 */
#define V2L_I64 4

/**
 * 32-bit signed integer.
 */
#define V2L_I32 5

/**
 * 8-bit unsigned integer.
 */
#define V2L_U8 6

/**
 * One byte: 0 is false, anything else true, and taken for 1. Outputs hold 0 and 1.
 */
#define V2L_BOOL 7

/**
 * IEEE 754 binary64.
 */
#define V2L_F64 8

/**
 * 8-bit signed integer.
 */
#define V2L_I8 9

/**
 * 16-bit signed integer.
 */
#define V2L_I16 10

/**
 * 16-bit unsigned integer.
 */
#define V2L_U16 11

/**
 * 32-bit unsigned integer.
 */
#define V2L_U32 12

/**
 * 64-bit unsigned integer.
 */
#define V2L_U64 13

/**
 * In f32 if they fit comfortably, else as stored.
 */
#define V2L_WEIGHTS_AUTO 0

/**
 * In f32: fastest, and a fuse loses nothing.
 */
#define V2L_WEIGHTS_F32 1

/**
 * In place, as stored: least memory.
 */
#define V2L_WEIGHTS_STORED 2

/**
 * f32 throughout.
 */
#define V2L_ARITHMETIC_FP32 0

/**
 * As the precision plan says that the engine was compiled by.
 */
#define V2L_ARITHMETIC_PLAN 1

/**
 * Fused, unless the engine has low-rank branches for these ranks and holds weights in 8 bits, has nothing else, or cannot fuse without
 * losing a noticeable part in rounding.
 */
#define V2L_ADAPTERS_AUTO 0

/**
 * Fused into the weights: costs the fuse, then nothing.
 */
#define V2L_ADAPTERS_FUSE 1

/**
 * In low-rank branches beside the weights: swaps at once and loses nothing, for a little time in every step. The engine must have been
 * compiled with --lora-rank.
 */
#define V2L_ADAPTERS_BRANCH 2

/**
 * What they are compiled for; OpenVINO, if they hold a form for it and this machine computes faster with it.
 */
#define V2L_BACKEND_COMPILED 0

/**
 * ONNX Runtime; engines that are compiled for TensorRT hold a form for it, too.
 */
#define V2L_BACKEND_ORT 1

/**
 * TensorRT-RTX, in a library built with TensorRT.
 */
#define V2L_BACKEND_TENSORRT_RTX 2

/**
 * TensorRT, in a library built with TensorRT.
 */
#define V2L_BACKEND_TENSORRT 3

/**
 * OpenVINO, on CPUs: engines of `v2l-compile --backend openvino`, unless the library is built without it.
 */
#define V2L_BACKEND_OPENVINO 4

/**
 * bfloat16 for a transformer whose weights are stored so, on a processor that has instructions for it; else float32.
 */
#define V2L_OPENVINO_AUTO 0

/**
 * float32 throughout.
 */
#define V2L_OPENVINO_F32 1

/**
 * bfloat16, but for what is computed once for each timestep.
 */
#define V2L_OPENVINO_BF16 2

/**
 * As V2L_OPENVINO_AUTO, but what is multiplied with a transformer's matrices of 8 bits is rounded to 8 bits, too.
 */
#define V2L_OPENVINO_INT8 3

/**
 * As the engine directory says.
 */
#define V2L_TILING_DEFAULT 0

/**
 * They are.
 */
#define V2L_TILING_ON 1

/**
 * They are not.
 */
#define V2L_TILING_OFF 2

/**
 * PEFT: a folder with adapter_config.json, or a file if the path ends in ".safetensors".
 */
#define V2L_FORMAT_PEFT 1

/**
 * diffusers.
 */
#define V2L_FORMAT_DIFFUSERS 2

/**
 * kohya.
 */
#define V2L_FORMAT_KOHYA 3

/**
 * VideoX-Fun.
 */
#define V2L_FORMAT_VIDEOX_FUN 4

/**
 * ComfyUI.
 */
#define V2L_FORMAT_COMFY 5

/**
 * The slots' own names.
 */
#define V2L_FORMAT_BARE 6

/**
 * A predictor's tokens, a few kilobytes that only this predictor expands. For predicted adapters.
 */
#define V2L_FORMAT_LIGHT 7

/**
 * Tokens with what expands them. For predicted adapters.
 */
#define V2L_FORMAT_LIGHT_FULL 8

/**
 * It changes a slot.
 */
#define V2L_KEY_APPLIED 1

/**
 * It changes nothing, and need not, or was allowed not to.
 */
#define V2L_KEY_IGNORED 2

/**
 * Those that the file's keys or its name say; both if they say nothing.
 */
#define V2L_EXPERTS_AUTO 0

/**
 * "transformer", which makes the first steps, of high noise.
 */
#define V2L_EXPERTS_HIGH 1

/**
 * "transformer_2", which makes the last steps, of low noise.
 */
#define V2L_EXPERTS_LOW 2

/**
 * Both.
 */
#define V2L_EXPERTS_BOTH 3

/**
 * As the engine directory says.
 */
#define V2L_RANGE_DEFAULT 0

/**
 * [0, 1].
 */
#define V2L_RANGE_UNIT 1

/**
 * [-1, 1].
 */
#define V2L_RANGE_SIGNED 2

/**
 * As the engine directory says.
 */
#define V2L_RESIZE_DEFAULT 0

/**
 * Stretched.
 */
#define V2L_RESIZE_STRETCH 1

/**
 * Scaled until it covers the size, then cropped around the middle.
 */
#define V2L_RESIZE_COVER_CROP 2

/**
 * As it is.
 */
#define V2L_RESIZE_NONE 3

/**
 * As the engine directory says.
 */
#define V2L_LATENT_DEFAULT 0

/**
 * The mean of the encoder's distribution.
 */
#define V2L_LATENT_MEAN 1

/**
 * A sample of it, drawn from the seed.
 */
#define V2L_LATENT_SAMPLE 2

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Version of the library, such as "0.1.0"; static.
 */
const char *v2l_version(void);

/**
 * Version of the library's ABI: V2L_ABI_MAJOR in the upper 16 bits, V2L_ABI_MINOR in the lower.
 */
uint32_t v2l_abi_version(void);

/**
 * What the last call that failed on this thread failed with, in words; "" if none did. Valid until the next failure on this thread.
 */
const char *v2l_last_error(void);

/**
 * The name in a request, of its JSON or of an input, that the last call which failed on this thread is about; "" if it is about none.
 * Valid until the next failure on this thread.
 */
const char *v2l_last_error_field(void);

/**
 * The name of a status, such as "V2L_ERROR_IO"; static. "unknown status" for a number that this library does not have.
 */
const char *v2l_status_name(v2l_status status);

/**
 * Fills in the defaults; `size` is sizeof(v2l_control).
 */
v2l_status v2l_control_init(struct v2l_control *control, size_t size);

/**
 * Makes a request that is not yet made.
 */
v2l_status v2l_cancel_new(struct v2l_cancel **cancel);

/**
 * Asks every call that was given `cancel` to stop, now and until v2l_cancel_reset. Returns at once; may be called from any thread and
 * from callbacks.
 */
v2l_status v2l_cancel_request(const struct v2l_cancel *cancel);

/**
 * Takes the request back, for the next call.
 */
v2l_status v2l_cancel_reset(const struct v2l_cancel *cancel);

/**
 * Frees `cancel`; a call that was given it goes on. NULL does nothing.
 */
void v2l_cancel_free(struct v2l_cancel *cancel);

/**
 * Sends the messages of the whole process to `callback`, which gets `user`; NULL for none, as it is in the beginning. When this returns,
 * the callback before it runs no more.
 */
v2l_status v2l_set_log(v2l_log_callback callback,
                       void *user);

/**
 * The number of tensors.
 */
v2l_status v2l_tensors_count(const struct v2l_tensors *tensors, size_t *count);

/**
 * The tensor at `index`, from 0; it lives as long as `tensors`.
 */
v2l_status v2l_tensors_get(const struct v2l_tensors *tensors, size_t index, struct v2l_tensor *tensor);

/**
 * The tensor called `name`; it lives as long as `tensors`.
 */
v2l_status v2l_tensors_find(const struct v2l_tensors *tensors, const char *name, struct v2l_tensor *tensor);

/**
 * Frees the tensors and everything that was had from them. NULL does nothing.
 */
void v2l_tensors_free(struct v2l_tensors *tensors);

/**
 * Fills in the defaults; `size` is sizeof(v2l_open_options).
 */
v2l_status v2l_open_options_init(struct v2l_open_options *options, size_t size);

/**
 * Maps an engine file and checks its structure; reads no weights, and needs no ONNX Runtime. `options` may be NULL.
 */
v2l_status v2l_engine_new(const char *file,
                          const struct v2l_open_options *options,
                          struct v2l_engine **engine);

/**
 * Frees the handle; sessions and adapters made from it stay. NULL does nothing.
 */
void v2l_engine_free(struct v2l_engine *engine);

/**
 * What the engine is: "transformer", "vae_encoder", …; lives as long as `engine`.
 */
v2l_status v2l_engine_component(const struct v2l_engine *engine, const char **component);

/**
 * The number of graphs.
 */
v2l_status v2l_engine_graph_count(const struct v2l_engine *engine, size_t *count);

/**
 * The name of the graph at `index`, from 0; lives as long as `engine`.
 */
v2l_status v2l_engine_graph(const struct v2l_engine *engine, size_t index, const char **name);

/**
 * The number of inputs of a graph; NULL is the engine's only graph.
 */
v2l_status v2l_engine_input_count(const struct v2l_engine *engine, const char *graph, size_t *count);

/**
 * The input of a graph at `index`, from 0, in graph order; `input->size` must be set.
 */
v2l_status v2l_engine_input(const struct v2l_engine *engine,
                            const char *graph,
                            size_t index,
                            struct v2l_port *input);

/**
 * The number of outputs of a graph; NULL is the engine's only graph.
 */
v2l_status v2l_engine_output_count(const struct v2l_engine *engine, const char *graph, size_t *count);

/**
 * The output of a graph at `index`, from 0, in graph order; `output->size` must be set.
 */
v2l_status v2l_engine_output(const struct v2l_engine *engine,
                             const char *graph,
                             size_t index,
                             struct v2l_port *output);

/**
 * The number of slots.
 */
v2l_status v2l_engine_slot_count(const struct v2l_engine *engine, size_t *count);

/**
 * The slot at `index`, from 0, in the order of the model's traversal; `slot->size` must be set.
 */
v2l_status v2l_engine_slot(const struct v2l_engine *engine, size_t index, struct v2l_slot *slot);

/**
 * Fills in the defaults; `size` is sizeof(v2l_adapter_options).
 */
v2l_status v2l_adapter_options_init(struct v2l_adapter_options *options, size_t size);

/**
 * Loads an adapter for the slots of `engine`: a safetensors file in any V2L_FORMAT_…, or PEFT's folder. Every key is applied, ignored
 * for a reason, or refused (V2L_ERROR_BAD_ADAPTER, unless `allow_partial`). `options` may be NULL.
 */
v2l_status v2l_adapter_new(const struct v2l_engine *engine,
                           const char *file,
                           const struct v2l_adapter_options *options,
                           struct v2l_adapter **adapter);

/**
 * Frees the handle; sessions and pipelines keep what they apply. NULL does nothing.
 */
void v2l_adapter_free(struct v2l_adapter *adapter);

/**
 * What became of the adapter's file; `coverage->size` must be set.
 */
v2l_status v2l_adapter_coverage(const struct v2l_adapter *adapter, struct v2l_coverage *coverage);

/**
 * The key at `index`, from 0, in the file's order; `key->size` must be set.
 */
v2l_status v2l_adapter_key_at(const struct v2l_adapter *adapter, size_t index, struct v2l_adapter_key *key);

/**
 * The number of slots that the adapter changes.
 */
v2l_status v2l_adapter_layer_count(const struct v2l_adapter *adapter, size_t *count);

/**
 * The update at `index`, from 0; `layer->size` must be set.
 */
v2l_status v2l_adapter_layer_at(const struct v2l_adapter *adapter,
                                size_t index,
                                struct v2l_adapter_layer *layer);

/**
 * Writes the adapter to `file` as V2L_FORMAT_…, whole or not at all; what is there is replaced. The two light forms are for adapters
 * that were predicted.
 */
v2l_status v2l_adapter_save(const struct v2l_adapter *adapter,
                            const char *file,
                            v2l_adapter_format format);

/**
 * Opens a graph of an engine; NULL is the engine's only graph. On ONNX Runtime it costs reading the weights, and a private copy of those
 * that are held in f32, which the engine's sessions share. On OpenVINO it costs compiling the graph.
 *
 * A graph whose name ends in ".side" takes adapters as inputs `<slot>.lora_down` and `<slot>.lora_up`: v2l_session_set_adapters makes
 * them, and a run adds them unless it is given some.
 */
v2l_status v2l_session_new(const struct v2l_engine *engine,
                           const char *graph,
                           struct v2l_session **session);

/**
 * Frees the session. NULL does nothing.
 */
void v2l_session_free(struct v2l_session *session);

/**
 * Replaces the session's adapters by `count` others, each with its strength; none is the base model. A transaction: on any failure the
 * session is as it was. The base comes back bit for bit.
 *
 * Costs a fuse and opening the graph again, or, for a graph that ends in ".side", a copy of the factors. `control` may be NULL; so may
 * `report`, else `report->size` must be set.
 */
v2l_status v2l_session_set_adapters(const struct v2l_session *session,
                                    const struct v2l_weighted_adapter *adapters,
                                    size_t count,
                                    const struct v2l_control *control,
                                    struct v2l_adapter_report *report);

/**
 * Fills in the defaults; `size` is sizeof(v2l_run_options).
 */
v2l_status v2l_run_options_init(struct v2l_run_options *options, size_t size);

/**
 * Runs the graph once on `count` inputs, by name, in any order; all of the graph's must be there. `options` may be NULL. `outputs` are
 * the library's: free them with v2l_tensors_free. The session stays usable after a failure.
 */
v2l_status v2l_session_run(const struct v2l_session *session,
                           const struct v2l_tensor *inputs,
                           size_t count,
                           const struct v2l_run_options *options,
                           struct v2l_tensors **outputs);

/**
 * Opens the predictor of an engine directory. `options` may be NULL.
 */
v2l_status v2l_predictor_new(const char *directory,
                             const struct v2l_open_options *options,
                             struct v2l_predictor **predictor);

/**
 * Opens a predictor that v2l does not know by name: `engine` is a file with any graph whose outputs are low-rank factors, `map` a JSON
 * file that says which outputs are the factors of which slots of `model` (docs/adapters.md). Graphs may read the weights of `model`, as they
 * are in its file. It predicts from `tensors` of a v2l_reference. `options` may be NULL.
 */
v2l_status v2l_predictor_new_mapped(const char *engine,
                                    const char *map,
                                    const struct v2l_engine *model,
                                    const struct v2l_open_options *options,
                                    struct v2l_predictor **predictor);

/**
 * Frees the predictor; adapters stay. NULL does nothing.
 */
void v2l_predictor_free(struct v2l_predictor *predictor);

/**
 * Fills in the defaults; `size` is sizeof(v2l_reference).
 */
v2l_status v2l_reference_init(struct v2l_reference *reference, size_t size);

/**
 * Predicts an adapter from a reference, or from named tensors. `control` may be NULL. The same reference gives the same adapter.
 */
v2l_status v2l_predictor_predict(const struct v2l_predictor *predictor,
                                 const struct v2l_reference *reference,
                                 const struct v2l_control *control,
                                 struct v2l_adapter **adapter);

/**
 * Opens an engine directory. Reads its pipeline.json and tokenizer; engines are opened when they are needed. `options` may be NULL.
 */
v2l_status v2l_pipeline_new(const char *directory,
                            const struct v2l_open_options *options,
                            struct v2l_pipeline **pipeline);

/**
 * Frees the pipeline. NULL does nothing.
 */
void v2l_pipeline_free(struct v2l_pipeline *pipeline);

/**
 * The engine of a component ("transformer", "vae_decoder", …), to load adapters for its slots or to run its graphs; free it with
 * v2l_engine_free. Adapters of the pipeline do not change it.
 */
v2l_status v2l_pipeline_engine(const struct v2l_pipeline *pipeline,
                               const char *component,
                               struct v2l_engine **engine);

/**
 * Replaces the pipeline's adapters by `count` others, each with its strength; none is the base model. A transaction: on any failure the
 * pipeline is as it was. `control` may be NULL; so may `report`, else `report->size` must be set.
 */
v2l_status v2l_pipeline_set_adapters(const struct v2l_pipeline *pipeline,
                                     const struct v2l_weighted_adapter *adapters,
                                     size_t count,
                                     const struct v2l_control *control,
                                     struct v2l_adapter_report *report);

/**
 * What requests to this engine directory may say: a JSON schema, which lives as long as the pipeline. Its `properties` are the names that
 * the model has, with its defaults; `inputs` describes the pictures and tensors that stand beside the JSON.
 */
v2l_status v2l_pipeline_schema(const struct v2l_pipeline *pipeline,
                               const char **json);

/**
 * Makes a job of a request, or fails as the job would, as far as neither depends on memory or on weights: loads nothing. `request` may be
 * NULL.
 */
v2l_status v2l_job_new(const struct v2l_pipeline *pipeline,
                       const struct v2l_request *request,
                       struct v2l_job **job);

/**
 * Frees the job. NULL does nothing.
 */
void v2l_job_free(struct v2l_job *job);

/**
 * What the job's request comes to: JSON, which lives as long as the job. An object with `width`, `height`, `num_frames`,
 * `num_inference_steps`, `guidance_scale`, `fps`, `seed` and the other names of the request, with every default filled in; `seconds`, the
 * length of the video; `own`, an object with `width`, `height` and `num_frames` of a request that says nothing; `predicts_from`, a list of
 * what the predictor reads (`reference`, `prompt`, `tensors`) or null; and `warnings`, what the video will not have of what is asked for.
 * Later versions may add names.
 */
v2l_status v2l_job_resolved(const struct v2l_job *job,
                            const char **json);

/**
 * Makes the video: `results` holds `frames` u8 [frames, height, width, 3] in RGB and `latents` f32 with five axes in the model's order.
 * `control` may be NULL. The same request on the same machine gives the same bytes.
 */
v2l_status v2l_job_run(const struct v2l_job *job,
                       const struct v2l_control *control,
                       struct v2l_tensors **results);

/**
 * Makes the video as `file`: .mp4, .mov, .mkv, .webm or .gif by ffmpeg, a folder of PNG files (a path that ends in /), or .safetensors
 * with `pixels` f32 [1, 3, frames, height, width] in [-1, 1]. It appears whole or not at all; what is there is replaced. `control` may be NULL.
 */
v2l_status v2l_job_save(const struct v2l_job *job,
                        const struct v2l_control *control,
                        const char *file);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* V2L_H */
