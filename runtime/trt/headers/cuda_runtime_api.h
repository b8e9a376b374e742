// All that TensorRT's headers need of CUDA's, so that no CUDA toolkit is needed to compile the shim.
#pragma once

typedef struct CUevent_st *cudaEvent_t;
typedef struct CUstream_st *cudaStream_t;
