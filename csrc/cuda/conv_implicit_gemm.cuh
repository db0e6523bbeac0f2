// The product of conv_implicit_gemm.cu by itself.
#pragma once

#include "conv_gather.cuh"

namespace fastconv::FASTCONV_BACKEND {

// y = gather of x, which lies in `layout`, times packed weights (+ bias); defined for float and double. The weights' output
// channels are padded to whole accesses of 16 bytes.
template <class T>
void gemm_gather(const char* name, const Gather& g, Layout layout, const T* x, const T* packed, const T* bias, T* y,
                 void* stream);

}  // namespace fastconv::FASTCONV_BACKEND
