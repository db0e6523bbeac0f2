// Conversion of whole arrays between the 16-bit types and float32: what lets every convolution kernel compute in float32.
#include "convert.h"

#include "isa.h"
#include "parallel.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

template <class From, class To>
void copy(const void* from, void* to, int64_t count, int threads) {
  parallel(threads, [&](int id, int parts) {
    const Range mine = share(count, id, parts);
    const From* in = static_cast<const From*>(from);
    To* out = static_cast<To*>(to);
    int64_t i = mine.begin;
    for (; i + lanes<float> <= mine.end; i += lanes<float>) store(out + i, load(in + i));
    const int left = int(mine.end - i);
    if (left > 0) store_first(out + i, load_first(in + i, left), left);
  });
}

void widen(Dtype dtype, const void* from, float* to, int64_t count, int threads) {
  (dtype == Dtype::float16 ? copy<Half, float> : copy<BFloat16, float>)(from, to, count, threads);
}

void narrow(Dtype dtype, const float* from, void* to, int64_t count, int threads) {
  (dtype == Dtype::float16 ? copy<float, Half> : copy<float, BFloat16>)(from, to, count, threads);
}

}  // namespace

const ConvertKernels convert = {widen, narrow};

}  // namespace fastconv::cpu::FASTCONV_ISA
