// Warp collectives. Each lane hands in a value, waits for the lanes of its mask and works out its
// own result from theirs. A lane that is read though the mask leaves it out gives all bits set (a
// NaN): CUDA leaves that value undefined.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "threads.h"

namespace cuda_on_cpu {

template <class T>
std::uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>,
                "a lane exchanges up to 64 bits");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T from_bits(std::uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// Folds the values of the lanes in `mask`, lowest lane first.
template <class T, class Fold>
T reduce(const char* operation, unsigned mask, T value, Site site, Fold fold) {
  static_assert(sizeof(T) == 4 && std::is_integral_v<T>, "__reduce_*_sync takes int or unsigned");
  const std::uint64_t* values = exchange(operation, mask, to_bits(value), site);
  T result = from_bits<T>(values[__builtin_ctz(mask)]);
  for (unsigned rest = mask & (mask - 1); rest; rest &= rest - 1)
    result = fold(result, from_bits<T>(values[__builtin_ctz(rest)]));
  return result;
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_SITE cuda_on_cpu::Site site = cuda_on_cpu::Site::here()

// `width` is a power of two: the warp falls into segments, which shuffles do not leave (but for
// __shfl_xor_sync, which may reach into an earlier one).
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_ON_CPU_SITE) {
  const int first = cuda_on_cpu::lane() & ~(width - 1);
  const auto* values = cuda_on_cpu::exchange(__func__, mask, cuda_on_cpu::to_bits(value), site);
  return cuda_on_cpu::from_bits<T>(values[first + (source & (width - 1))]);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_SITE) {
  const int lane = cuda_on_cpu::lane(), source = lane - static_cast<int>(delta);
  const auto* values = cuda_on_cpu::exchange(__func__, mask, cuda_on_cpu::to_bits(value), site);
  return cuda_on_cpu::from_bits<T>(values[source >= (lane & ~(width - 1)) ? source : lane]);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_SITE) {
  const int lane = cuda_on_cpu::lane(), source = lane + static_cast<int>(delta);
  const auto* values = cuda_on_cpu::exchange(__func__, mask, cuda_on_cpu::to_bits(value), site);
  return cuda_on_cpu::from_bits<T>(values[source <= (lane | (width - 1)) ? source : lane]);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDA_ON_CPU_SITE) {
  const int lane = cuda_on_cpu::lane(), source = lane ^ lanes;
  const auto* values = cuda_on_cpu::exchange(__func__, mask, cuda_on_cpu::to_bits(value), site);
  return cuda_on_cpu::from_bits<T>(values[source <= (lane | (width - 1)) ? source : lane]);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_ON_CPU_SITE) {
  cuda_on_cpu::exchange(__func__, mask, 0, site, true);
}

// The least that CUDA promises: threads of a warp need not run together, so this lane alone.
inline unsigned __activemask() { return 1u << cuda_on_cpu::lane(); }

// The lanes of `mask` that came with the value of the calling lane.
template <class T>
unsigned __match_any_sync(unsigned mask, T value, CUDA_ON_CPU_SITE) {
  const auto mine = cuda_on_cpu::to_bits(value);
  const auto* values = cuda_on_cpu::exchange(__func__, mask, mine, site);
  unsigned same = 0;
  for (int lane = 0; lane < 32; ++lane) same |= unsigned{values[lane] == mine} << lane;
  return same & mask;
}
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* all, CUDA_ON_CPU_SITE) {
  *all = __match_any_sync(mask, value, site) == mask;
  return *all ? mask : 0;
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
  const auto* values = cuda_on_cpu::exchange(__func__, mask, predicate != 0, site);
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) votes |= unsigned{values[lane] == 1} << lane;
  return votes;
}
inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
  return __ballot_sync(mask, predicate, site) == mask;
}

// Unsigned addition: it wraps for int as well, as on the device, without undefined behaviour.
template <class T>
T __reduce_add_sync(unsigned mask, T value, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::reduce(__func__, mask, value, site,
                             [](T a, T b) { return T(unsigned(a) + unsigned(b)); });
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::reduce(__func__, mask, value, site, [](T a, T b) { return b < a ? b : a; });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::reduce(__func__, mask, value, site, [](T a, T b) { return a < b ? b : a; });
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::reduce(__func__, mask, value, site, [](auto a, auto b) { return a & b; });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::reduce(__func__, mask, value, site, [](auto a, auto b) { return a | b; });
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::reduce(__func__, mask, value, site, [](auto a, auto b) { return a ^ b; });
}
