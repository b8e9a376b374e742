// TensorRT 11.4. Its builder needs a GPU and was never executed by v2l's authors; what runs plans was, on a stand-in (tests/trt_stand_in).

#define nvinfer1 v2l_tensorrt_nvinfer1
#define nvonnxparser v2l_tensorrt_nvonnxparser
#define V2L_RTX 0
#define V2L_API v2l_api_tensorrt
#define V2L_RUN_API v2l_run_api_tensorrt

#include "tensorrt-11.4/NvInfer.h"
#include "tensorrt-11.4/NvOnnxParser.h"

#include "run.inc"

#include "build.inc"
