// A fiber: a stack of its own and the switch between two of them, told to the sanitizers. Compiled
// without any sanitizer: the calls below are weak, so that one object serves every kind of build.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** fake, const void*, std::size_t);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* fake, const void**, std::size_t*);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void*, std::size_t);
__attribute__((weak)) void* __tsan_create_fiber(unsigned flags);
__attribute__((weak)) void* __tsan_get_current_fiber();
__attribute__((weak)) void __tsan_destroy_fiber(void* fiber);
__attribute__((weak)) void __tsan_switch_to_fiber(void* fiber, unsigned flags);
__attribute__((weak)) void __tsan_acquire(void* token);
__attribute__((weak)) void __tsan_release(void* token);
}

#if defined(__x86_64__) && !defined(CUDA_ON_CPU_UCONTEXT)

// Keeps what a call must keep (System V: rbx, rbp, r12-r15) on the old stack, stores where that
// stack stands in *from, and goes on where `to` was left. 11 ns, where swapcontext with its system
// call for the signal mask takes 166: a kernel with many barriers runs three times as fast.
extern "C" void cuda_on_cpu_switch(void** from, void* to);
asm(R"(
.text
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_switch, . - cuda_on_cpu_switch
)");

namespace cuda_on_cpu {

struct Context {
  void* stack_pointer = nullptr;

  void prepare(char* stack, std::size_t bytes, void (*entry)()) {
    auto* top = reinterpret_cast<void**>(stack + bytes);  // a page's end, so a multiple of 16
    *--top = nullptr;                         // entry's return address: it never returns
    *--top = reinterpret_cast<void*>(entry);  // taken by ret, which leaves rsp = 8 mod 16
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    stack_pointer = top;
  }
  void go_to(Context& other) { cuda_on_cpu_switch(&stack_pointer, other.stack_pointer); }
};

}  // namespace cuda_on_cpu

#else

#include <ucontext.h>

namespace cuda_on_cpu {

struct Context {
  ucontext_t state;

  void prepare(char* stack, std::size_t bytes, void (*entry)()) {
    getcontext(&state);
    state.uc_stack.ss_sp = stack;
    state.uc_stack.ss_size = bytes;
    makecontext(&state, entry, 0);
  }
  void go_to(Context& other) { swapcontext(&state, &other.state); }
};

}  // namespace cuda_on_cpu

#endif

namespace cuda_on_cpu {

inline bool under_tsan() { return __tsan_create_fiber != nullptr; }

// Without this flag ThreadSanitizer would order everything before a switch before everything after.
constexpr unsigned kTsanNoSync = 1;

class Fiber {
 public:
  // The calling thread's own stack, as a place to switch from and to.
  Fiber() {
    if (under_tsan()) tsan = __tsan_get_current_fiber();
  }

  // 256 KiB: ample for local arrays, even with AddressSanitizer's gaps between them. Pages that no
  // kernel touches cost nothing. The page below is never mapped in: an overflow ends in a fault.
  static constexpr std::size_t kStackBytes = 256 << 10;

  struct OwnStack {};
  explicit Fiber(OwnStack) : guard(sysconf(_SC_PAGESIZE)), bytes(kStackBytes) {
    void* memory = mmap(nullptr, guard + bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, guard, PROT_NONE);
    stack = static_cast<char*>(memory) + guard;
    if (under_tsan()) tsan = __tsan_create_fiber(0);
  }
  Fiber(const Fiber&) = delete;
  ~Fiber() {
    if (!guard) return;
    if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(stack, bytes);
    munmap(stack - guard, guard + bytes);
    if (under_tsan()) __tsan_destroy_fiber(tsan);
  }

  void prepare(void (*entry)()) { context.prepare(stack, bytes, entry); }

  // Returns when somebody switches back to this fiber; never, if `for_good`.
  void switch_to(Fiber& other, bool for_good = false) {
    if (under_tsan()) __tsan_switch_to_fiber(other.tsan, kTsanNoSync);
    if (__sanitizer_start_switch_fiber)
      __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, other.stack, other.bytes);
    context.go_to(other.context);
    if (__sanitizer_finish_switch_fiber)
      __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
  }

  // First thing on a new fiber: AddressSanitizer tells the bounds of the stack that was left.
  static void entered_from(Fiber& other) {
    if (!__sanitizer_finish_switch_fiber) return;
    const void* bottom;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &other.bytes);
    other.stack = static_cast<char*>(const_cast<void*>(bottom));
  }

  void* tsan = nullptr;

 private:
  Context context;
  void* fake_stack = nullptr;
  char* stack = nullptr;
  std::size_t guard = 0, bytes = 0;
};

}  // namespace cuda_on_cpu
