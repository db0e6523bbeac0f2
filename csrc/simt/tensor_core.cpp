#include "tensor_core.h"

#include "block.h"
#include "memory.h"
#include "scalar.h"

namespace fastconv::simt {
namespace {

constexpr unsigned whole_warp = 0xffffffffu;

struct LoadMatrix {
  uint32_t* registers;
  const unsigned char* row;
  int count;
  bool transposed;
};

// Lane l holds, of each matrix, the elements (l / 4, 2 (l % 4) + {0, 1}), or with rows and columns exchanged.
void load(void* const (&operands)[32]) {
  for (int lane = 0; lane < 32; ++lane) {
    auto* mine = static_cast<LoadMatrix*>(operands[lane]);
    for (int matrix = 0; matrix < mine->count; ++matrix) {
      uint16_t pair[2];
      for (int i = 0; i < 2; ++i) {
        const int across = 2 * (lane % 4) + i, down = lane / 4;
        const int row = mine->transposed ? across : down, column = mine->transposed ? down : across;
        std::memcpy(&pair[i], static_cast<LoadMatrix*>(operands[8 * matrix + row])->row + 2 * column, 2);
      }
      std::memcpy(mine->registers + matrix, pair, 4);
    }
  }
}

struct Multiply {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

float element(MatrixType type, const uint32_t* registers, int index) {
  if (type == MatrixType::tf32) return truncate_tf32(float_of(registers[index]));
  const uint16_t bits = uint16_t(registers[index / 2] >> (16 * (index % 2)));
  return type == MatrixType::float16 ? widen(Half{bits}) : widen(BFloat16{bits});
}

template <MatrixType type>
void multiply(void* const (&operands)[32]) {
  constexpr int depth = type == MatrixType::tf32 ? 8 : 16;
  constexpr int run = type == MatrixType::tf32 ? 1 : 2;  // neighbouring elements of a row in one register
  float a[16][depth], b[depth][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* operand = static_cast<const Multiply*>(operands[lane]);
    const int group = lane / 4, within = lane % 4;
    for (int i = 0; i < 4 * run; ++i)
      a[group + (i / run % 2) * 8][within * run + i % run + (i / run / 2) * 4 * run] = element(type, operand->a, i);
    for (int i = 0; i < 2 * run; ++i) b[within * run + i % run + (i / run) * 4 * run][group] = element(type, operand->b, i);
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* d = static_cast<Multiply*>(operands[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i / 2) * 8, column = lane % 4 * 2 + i % 2;
      for (int k = 0; k < depth; ++k) d[i] += a[row][k] * b[k][column];
    }
  }
}

struct MultiplyDouble {
  double* d;
  double a, b;
};

void multiply_double(void* const (&operands)[32]) {
  for (int lane = 0; lane < 32; ++lane) {
    double* d = static_cast<MultiplyDouble*>(operands[lane])->d;
    for (int i = 0; i < 2; ++i) {
      const int row = lane / 4, column = lane % 4 * 2 + i;
      for (int k = 0; k < 4; ++k)
        d[i] +=
            static_cast<MultiplyDouble*>(operands[4 * row + k])->a * static_cast<MultiplyDouble*>(operands[4 * column + k])->b;
    }
  }
}

}  // namespace

void load_matrix(uint32_t* registers, int count, bool transposed, const void* row, Site site) {
  // Lanes whose address is not used may pass anything.
  if (lane_index() < 8 * count) {
    if (!shared::contains(row)) fault("ldmatrix: the address is not in shared memory", site);
    check_access(row, 16, false, site);
  }
  LoadMatrix operand{registers, static_cast<const unsigned char*>(row), count, transposed};
  warp_operation(whole_warp, load, &operand, site);
}

void multiply_matrix(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], MatrixType type, Site site) {
  Multiply operand{d, a, b};
  const WarpOperation operation = type == MatrixType::float16    ? multiply<MatrixType::float16>
                                  : type == MatrixType::bfloat16 ? multiply<MatrixType::bfloat16>
                                                                 : multiply<MatrixType::tf32>;
  warp_operation(whole_warp, operation, &operand, site);
}

void multiply_matrix(double (&d)[2], double a, double b, Site site) {
  MultiplyDouble operand{d, a, b};
  warp_operation(whole_warp, multiply_double, &operand, site);
}

}  // namespace fastconv::simt
