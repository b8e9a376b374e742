// TensorRT-RTX 1.7.

// Names of its own for what the headers define, so that two flavours can live in one binary.
#define nvinfer1 v2l_rtx_nvinfer1
#define nvonnxparser v2l_rtx_nvonnxparser
#define V2L_RTX 1
#define V2L_API v2l_api_rtx
#define V2L_RUN_API v2l_run_api_rtx

#include "rtx-1.7/NvInfer.h"
#include "rtx-1.7/NvOnnxParser.h"

#include "run.inc"

#include "build.inc"
