// ldmatrix and mma.sync. Fragments are laid out over the lanes of a warp as the PTX ISA's tables say ("Matrix Fragments for
// mma").
#pragma once

#include <cstdint>

#include "simt.h"

namespace fastconv::simt {

// Loads `count` (1, 2, 4) 8x8 matrices of 16-bit elements; lane 8 i + j gives the address of row j of matrix i.
void load_matrix(uint32_t* registers, int count, bool transposed, const void* row, Site site);

enum class MatrixType { float16, bfloat16, tf32 };

// d += a * b. A is 16 x k row-major, B k x 8 column-major, D 16 x 8; k is 16 for the 16-bit types, 8 for TF32.
void multiply_matrix(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], MatrixType type, Site site);
// m8n8k4 in float64.
void multiply_matrix(double (&d)[2], double a, double b, Site site);

}  // namespace fastconv::simt
