// Atomics. Relaxed, as CUDA's are: ThreadSanitizer then takes them for no more than they promise.
#pragma once

#include <cstdint>
#include <type_traits>

#include "threads.h"

namespace cuda_on_cpu {

// Replaces *address by next(*address) in one step and returns what stood there.
template <class T, class Next>
T update(T* address, Next next) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics are 32 or 64 bits wide");
  T old, wanted;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  do wanted = next(old);
  while (!__atomic_compare_exchange(address, &old, &wanted, false, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED));
  if (fenced) see_fences();
  return old;
}

template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

// In the unsigned type of an integer's size, so that a sum wraps as on the device.
template <class T>
T add(T a, T b) {
  if constexpr (std::is_integral_v<T>)
    return static_cast<T>(Bits<T>(a) + Bits<T>(b));
  else
    return a + b;
}

// Takes no part in deduction: atomicAdd(&counts[i], 1) works for unsigned counts.
template <class T>
using Same = std::common_type_t<T>;

}  // namespace cuda_on_cpu

template <class T>
T atomicAdd(T* address, cuda_on_cpu::Same<T> value) {
  return cuda_on_cpu::update(address, [=](T old) { return cuda_on_cpu::add(old, value); });
}
template <class T>
T atomicSub(T* address, cuda_on_cpu::Same<T> value) {
  return cuda_on_cpu::update(address, [=](T old) {
    return static_cast<T>(cuda_on_cpu::Bits<T>(old) - cuda_on_cpu::Bits<T>(value));
  });
}
template <class T>
T atomicMin(T* address, cuda_on_cpu::Same<T> value) {
  return cuda_on_cpu::update(address, [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicMax(T* address, cuda_on_cpu::Same<T> value) {
  return cuda_on_cpu::update(address, [=](T old) { return old < value ? value : old; });
}
template <class T>
T atomicAnd(T* address, cuda_on_cpu::Same<T> value) {
  return cuda_on_cpu::update(address, [=](T old) { return old & value; });
}
template <class T>
T atomicOr(T* address, cuda_on_cpu::Same<T> value) {
  return cuda_on_cpu::update(address, [=](T old) { return old | value; });
}
template <class T>
T atomicXor(T* address, cuda_on_cpu::Same<T> value) {
  return cuda_on_cpu::update(address, [=](T old) { return old ^ value; });
}
template <class T>
T atomicExch(T* address, cuda_on_cpu::Same<T> value) {
  return cuda_on_cpu::update(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, cuda_on_cpu::Same<T> expected, cuda_on_cpu::Same<T> value) {
  return cuda_on_cpu::update(address, [=](T old) { return old == expected ? value : old; });
}
inline unsigned atomicInc(unsigned* address, unsigned last) {
  return cuda_on_cpu::update(address, [=](unsigned old) { return old >= last ? 0 : old + 1; });
}
inline unsigned atomicDec(unsigned* address, unsigned last) {
  return cuda_on_cpu::update(address,
                             [=](unsigned old) { return old == 0 || old > last ? last : old - 1; });
}
