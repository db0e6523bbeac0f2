// Entry points of local response normalisation of one backend.
#pragma once

#include "kernels.h"

namespace fastconv::FASTCONV_BACKEND {

void lrn_forward(const LrnProblem& problem, const void* x, void* y, void* stream);
void lrn_backward(const LrnProblem& problem, const void* x, const void* gy, void* gx, void* stream);

}  // namespace fastconv::FASTCONV_BACKEND
