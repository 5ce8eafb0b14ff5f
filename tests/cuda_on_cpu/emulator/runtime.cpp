// The emulated runtime's state and its answers about a device that is not there.
#include <cstdint>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "cuda_runtime.h"
#include "limits.h"

namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local std::string last_fault;

std::mutex changing;
std::unordered_map<const void*, std::size_t> dynamic_limits;  // by kernel

}  // namespace

namespace cuda_on_cpu {

cudaError_t record(cudaError_t error, const std::string& fault) {
  if (error != cudaSuccess) last_error = error;
  if (error == cudaErrorLaunchFailure) last_fault = fault;
  return error;
}

SharedLimits shared_limits(const void* kernel) {
  const std::lock_guard<std::mutex> lock(changing);
  const auto found = dynamic_limits.find(kernel);
  if (found == dynamic_limits.end()) return {kSharedDefault, kSharedDefault};
  return {found->second, kSharedOptIn};
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

static std::pair<const char*, const char*> text(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return {"cudaSuccess", "no error"};
    case cudaErrorInvalidValue: return {"cudaErrorInvalidValue", "invalid argument"};
    case cudaErrorMemoryAllocation: return {"cudaErrorMemoryAllocation", "out of memory"};
    case cudaErrorInvalidConfiguration:
      return {"cudaErrorInvalidConfiguration", "invalid configuration argument"};
    case cudaErrorInvalidDevice: return {"cudaErrorInvalidDevice", "invalid device ordinal"};
    case cudaErrorLaunchFailure: return {"cudaErrorLaunchFailure", last_fault.c_str()};
  }
  return {"cudaErrorUnknown", "unrecognized error code"};
}
const char* cudaGetErrorName(cudaError_t error) { return text(error).first; }
const char* cudaGetErrorString(cudaError_t error) { return text(error).second; }

cudaError_t cudaSetDevice(int number) {
  return record(number == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int number) {
  if (number != 0) return record(cudaErrorInvalidDevice);
  *properties = {};
  std::strcpy(properties->name, "CUDA on CPU");
  properties->totalGlobalMem = std::size_t{1} << 30;
  properties->sharedMemPerBlock = kSharedDefault;
  properties->sharedMemPerBlockOptin = kSharedOptIn;
  properties->sharedMemPerMultiprocessor = kSharedProcessor;
  properties->major = RESQUE_SM / 10;
  properties->minor = RESQUE_SM % 10;
  // Few, so that small inputs take grid-stride loops more than once round.
  properties->multiProcessorCount = 3;
  properties->warpSize = warpSize;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = RESQUE_SM == 75 ? 1024 : 2048;
  properties->l2CacheSize = 1 << 20;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int number) {
  cudaDeviceProp has;
  if (const cudaError_t error = cudaGetDeviceProperties(&has, number)) return error;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: return *value = has.maxThreadsPerBlock, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return *value = int(has.sharedMemPerBlock), cudaSuccess;
    case cudaDevAttrWarpSize: return *value = has.warpSize, cudaSuccess;
    case cudaDevAttrMultiProcessorCount: return *value = has.multiProcessorCount, cudaSuccess;
    case cudaDevAttrL2CacheSize: return *value = has.l2CacheSize, cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return *value = has.maxThreadsPerMultiProcessor, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: return *value = has.major, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: return *value = has.minor, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return *value = int(has.sharedMemPerMultiprocessor), cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = int(has.sharedMemPerBlockOptin), cudaSuccess;
  }
  return record(cudaErrorInvalidValue);
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || std::size_t(value) > kSharedOptIn) return record(cudaErrorInvalidValue);
  const std::lock_guard<std::mutex> lock(changing);
  dynamic_limits[kernel] = value;
  return cudaSuccess;
}

// For the tests: what the calling thread's last failed launch died of.
extern "C" __attribute__((visibility("default"))) const char* cuda_on_cpu_last_fault() {
  return last_fault.c_str();
}
