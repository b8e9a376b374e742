// The C interface of the shim: one table of functions per flavour of TensorRT.
//
// Strings are UTF-8 and end with NUL. What the caller passes must live until the call returns; what a callback is given lives as
// long as the callback. No C++ exception leaves a function. src/ffi.rs mirrors every declaration.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Entry points of the loaded libraries.
typedef struct V2lEntry {
    void *(*create_builder)(void *logger, int32_t version);
    void *(*create_parser)(void *network, void *logger, int version);
} V2lEntry;

// Bytes of an initializer that the model does not hold itself.
typedef struct V2lWeight {
    const char *name;
    const void *data;
    size_t size;
} V2lWeight;

// Smallest, preferred and largest extents of an input.
typedef struct V2lRange {
    const char *input;
    int32_t rank;
    const int64_t *min;
    const int64_t *opt;
    const int64_t *max;
} V2lRange;

typedef struct V2lProfile {
    const V2lRange *ranges;
    size_t count;
} V2lProfile;

// How the weights of a plan can be replaced.
enum V2lRefit {
    V2L_REFIT_NONE = 0,
    // Placeholders for all weights that feed matrix products and convolutions; the plan holds no values for them.
    V2L_REFIT_PLACEHOLDERS = 1,
    // The weights named in `refittable`; the plan holds all values.
    V2L_REFIT_MARKED = 2,
};

typedef struct V2lRequest {
    const void *model;
    size_t model_size;
    const V2lWeight *weights;
    size_t weight_count;
    const V2lProfile *profiles;
    size_t profile_count;
    // 10 · major + minor; none: the GPU of this machine.
    const int32_t *capabilities;
    size_t capability_count;
    const char *const *refittable;
    size_t refittable_count;
    int32_t refit;
    // What earlier builds learned of how long kernels take, or nothing yet; NULL: nothing is kept. TensorRT only.
    const void *timing_cache;
    size_t timing_cache_size;
} V2lRequest;

typedef struct V2lParserError {
    int32_t code;
    // Index of the node, -1 if the error is about none.
    int32_t node;
    const char *node_name;
    const char *op_type;
    const char *description;
} V2lParserError;

// A weight that the parser named for a refit.
typedef struct V2lRefitRecord {
    const char *name;
    // Initializer that it is taken from as it is; NULL if it is made of several, or of none.
    const char *initializer;
    int32_t dtype;
    int64_t count;
} V2lRefitRecord;

// May be called on threads of the library, several at a time. None may be NULL.
typedef struct V2lCallbacks {
    void *context;
    // Severity: 0 internal error, 1 error, 2 warning, 3 information, 4 all else.
    void (*log)(void *context, int32_t severity, const char *message);
    void (*parser_error)(void *context, const V2lParserError *error);
    void (*record)(void *context, const V2lRefitRecord *record);
    // `step` of `steps` of a phase is done; 0 ends the build.
    int32_t (*progress)(void *context, const char *phase, int32_t step, int32_t steps);
    // What is known of kernels after a build with a timing cache.
    void (*timing_cache)(void *context, const void *data, size_t size);
} V2lCallbacks;

enum V2lStatus {
    V2L_OK = 0,
    V2L_NO_BUILDER = 1,
    V2L_NO_NETWORK = 2,
    V2L_NO_PARSER = 3,
    // `detail` is the index of the compute capability.
    V2L_CAPABILITY = 4,
    // See `parser_error`.
    V2L_PARSE = 5,
    // `detail` is the index of the weight.
    V2L_WEIGHT = 6,
    // `detail` is the index of the profile.
    V2L_PROFILE = 7,
    // `detail` is the index in `refittable`.
    V2L_MARK = 8,
    V2L_BUILD = 9,
    V2L_EXCEPTION = 10,
    V2L_TIMING_CACHE = 11,
};

// A built plan, or what kept it from being built.
typedef struct V2lPlan {
    int32_t status;
    int64_t detail;
    // Owned; to be given to `free_plan`. NULL unless `status` is V2L_OK.
    void *handle;
    const void *data;
    size_t size;
} V2lPlan;

typedef struct V2lApi {
    // Version of the headers, as getInferLibVersion counts: 10000 · major + 100 · minor + patch.
    int32_t version;
    // The same for the parser, which counts its own versions, as getNvOnnxParserVersion.
    int32_t parser_version;
    V2lPlan (*build)(const V2lEntry *entry, const V2lRequest *request, const V2lCallbacks *callbacks);
    void (*free_plan)(void *handle);
} V2lApi;

const V2lApi *v2l_api_rtx(void);
const V2lApi *v2l_api_tensorrt(void);

// Running. Every handle is owned by who asked for it, and given back once, what was made of it before it. NULL and 0 are failures, for
// which the log has the words.

typedef struct V2lRunEntry {
    void *(*create_runtime)(void *logger, int32_t version);
    void *(*create_refitter)(void *engine, void *logger, int32_t version);
} V2lRunEntry;

// As in V2lCallbacks. Both must outlive the runtime.
typedef struct V2lLog {
    void *context;
    void (*log)(void *context, int32_t severity, const char *message);
} V2lLog;

typedef void V2lRuntime;
typedef void V2lEngine;
typedef void V2lRefitter;
typedef void V2lContext;
// A CUstream.
typedef void *V2lStream;

#define V2L_MAX_RANK 8

typedef struct V2lShape {
    // -1 if it is not known.
    int32_t rank;
    // -1 where an extent is not known.
    int64_t extents[V2L_MAX_RANK];
} V2lShape;

// An input or output of an engine.
typedef struct V2lTensor {
    // Lives as long as the engine.
    const char *name;
    int32_t is_input;
    int32_t dtype;
    // 1 if it lies on the device, row-major; 0 if its values are needed on the host (it says what shapes are), or it has another layout.
    int32_t is_plain;
    V2lShape shape;
} V2lTensor;

// What a weight must be given as; a count of -1: it cannot be replaced.
typedef struct V2lPrototype {
    int32_t dtype;
    int64_t count;
} V2lPrototype;

enum V2lValidity {
    V2L_VALID = 0,
    V2L_SUBOPTIMAL = 1,
    V2L_INVALID = 2,
    // This flavour does not say.
    V2L_UNKNOWN = 3,
};

typedef struct V2lRunApi {
    // As that of V2lApi.
    int32_t version;
    V2lRuntime *(*runtime)(const V2lRunEntry *entry, const V2lLog *log);
    void (*free_runtime)(V2lRuntime *runtime);
    // Whether a plan can be loaded on the current device; `reasons` is set to EngineInvalidityDiagnostics.
    int32_t (*validity)(const V2lRuntime *runtime, const void *plan, size_t size, uint64_t *reasons);
    V2lEngine *(*engine)(V2lRuntime *runtime, const void *plan, size_t size);
    void (*free_engine)(V2lEngine *engine);
    int32_t (*tensor_count)(const V2lEngine *engine);
    int32_t (*tensor)(const V2lEngine *engine, int32_t index, V2lTensor *tensor);
    // Bytes of device memory that a context takes for activations.
    int64_t (*device_memory)(const V2lEngine *engine);

    // `threads` for a refit, at least 1; with `validate`, weights are looked through for values that a layer cannot take.
    V2lRefitter *(*refitter)(V2lRuntime *runtime, V2lEngine *engine, int32_t threads, int32_t validate);
    void (*free_refitter)(V2lRefitter *refitter);
    // Names of all weights, or of those that are still missing, at most `capacity` of them, which live as long as the refitter; how many
    // there are, -1 on failure.
    int32_t (*weights)(V2lRefitter *refitter, int32_t missing, int32_t capacity, const char **names);
    int32_t (*prototype)(V2lRefitter *refitter, const char *name, V2lPrototype *prototype);
    // `data` must live until the weight is unset, or a refit has ended.
    int32_t (*set_weight)(V2lRefitter *refitter, const char *name, int32_t dtype, const void *data, int64_t count,
        int32_t on_device);
    int32_t (*unset_weight)(V2lRefitter *refitter, const char *name);
    // Has ended when the stream has come to it.
    int32_t (*refit)(V2lRefitter *refitter, V2lStream stream);

    V2lContext *(*context)(V2lEngine *engine);
    void (*free_context)(V2lContext *context);
    int32_t (*set_profile)(V2lContext *context, int32_t index, V2lStream stream);
    int32_t (*set_shape)(V2lContext *context, const char *input, const V2lShape *shape);
    // The shape that an input or output has with the inputs' shapes as they are.
    V2lShape (*shape)(const V2lContext *context, const char *name);
    // Inputs whose shape or values are missing, at most `capacity` names; how many there are, -1 on failure.
    int32_t (*infer_shapes)(V2lContext *context, int32_t capacity, const char **names);
    // `data` is the device's, and must live until what is enqueued has ended.
    int32_t (*set_address)(V2lContext *context, const char *name, void *data);
    int32_t (*enqueue)(V2lContext *context, V2lStream stream);
} V2lRunApi;

const V2lRunApi *v2l_run_api_rtx(void);
const V2lRunApi *v2l_run_api_tensorrt(void);

#ifdef __cplusplus
}
#endif
