// faults NAME fault|clean: one launch on a buffer of exactly 64 words, then the first of them.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda_runtime.h"
#include "faults.h"

int main(int, char** arguments) {
  const bool fault = std::strcmp(arguments[2], "fault") == 0;
  int* out = static_cast<int*>(std::calloc(64, sizeof(int)));
#define RUN_FAULT(kernel, blocks, shared_bytes) \
  if (std::strcmp(arguments[1], #kernel) == 0) run_##kernel(fault, out);
  EACH_FAULT(RUN_FAULT)
  std::printf("%s %d\n", cudaGetErrorName(cudaGetLastError()), out[0]);
  std::free(out);
}
