// Runs CUDA kernels on one CPU thread: block after block, every thread of a block as a fiber that
// runs until it has to wait for others. The order in which fibers and blocks take their turns is a
// choice (forward, reverse, random): results may not depend on it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <initializer_list>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"
#include "limits.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_on_cpu {

bool fenced;

namespace {

// --- What there is while a kernel runs. One launch at a time: `launching` is held throughout.

enum class State { kReady, kWaiting, kDone };

struct Thread {
  Fiber fiber{Fiber::OwnStack{}};
  uint3 index;
  unsigned number;  // in the block; lane = number % 32
  State state;

  // The collective that the thread stands in: what it brought, and what it takes away.
  const char* operation;
  Site site;
  unsigned mask;
  std::uint64_t value;
  std::uint64_t received[32];

  const char* problem;  // why the launch cannot go on, if the thread found a reason
};

struct SharedBlock {
  const void* key;
  void* memory;
};

enum class Order { kForward, kReverse, kRandom };

// ThreadSanitizer alone: this many threads get a context and a stack of their own before one is
// used again, so that threads of different blocks stay unordered and their races show. It has no
// more than 8,000.
constexpr unsigned kContexts = 2048;

struct Device {
  std::mutex launching;
  Order order = Order::kForward;
  std::uint64_t seed = 0;

  Fiber* host = nullptr;
  void (*entry)(void*);
  void* arguments;
  std::deque<Thread> pool;  // a deque: growing it moves nobody
  unsigned first, size;     // the running block's part of the pool
  unsigned arrived;         // its threads that wait in a barrier
  Thread* current;
  std::vector<SharedBlock> shared;
  std::size_t first_shared, shared_bytes, static_bytes, shared_limit;

  Thread& thread(unsigned number) { return pool[first + number]; }
} device;

// --- Happens-before, for ThreadSanitizer.

// Everything done so far by `before` is ordered before everything to come in `after`. All at one
// moment and on a token that lives no longer, so that nothing done later can slip in.
// ThreadSanitizer forgets a token when its memory is freed.
template <class Before, class After>
void order_memory(const Before& before, const After& after) {
  if (!under_tsan()) return;
  void* running = __tsan_get_current_fiber();
  void* token = std::malloc(1);
  for (Fiber* fiber : before) {
    __tsan_switch_to_fiber(fiber->tsan, kTsanNoSync);
    __tsan_release(token);
  }
  for (Fiber* fiber : after) {
    __tsan_switch_to_fiber(fiber->tsan, kTsanNoSync);
    __tsan_acquire(token);
  }
  __tsan_switch_to_fiber(running, kTsanNoSync);
  std::free(token);
}

std::vector<Fiber*> fibers(unsigned first, unsigned count) {
  std::vector<Fiber*> all;
  if (under_tsan())
    for (unsigned i = 0; i < count; ++i) all.push_back(&device.pool[first + i].fiber);
  return all;
}

char fence_token;

// --- Waiting for one another.

void wait() { device.current->fiber.switch_to(*device.host); }

[[noreturn]] void stop(const char* problem) {
  device.current->problem = problem;
  device.current->fiber.switch_to(*device.host, true);
  std::abort();  // nobody switches to a stopped fiber
}

Thread& arrive(const char* operation, unsigned mask, std::uint64_t value, Site site) {
  Thread& me = *device.current;
  me.operation = operation;
  me.mask = mask;
  me.value = value;
  me.site = site;
  me.state = State::kWaiting;
  return me;
}

template <class Do>
void for_each_lane(unsigned mask, Do act) {
  for (; mask; mask &= mask - 1) act(__builtin_ctz(mask));
}

bool same_text(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

}  // namespace

int barrier(const char* operation, bool predicate, Site site) {
  Thread& me = arrive(operation, 0, predicate, site);
  if (++device.arrived == device.size) {
    device.arrived = 0;
    unsigned count = 0;
    for (unsigned i = 0; i < device.size; ++i) {
      const Thread& other = device.thread(i);
      if (other.site.line != site.line || !same_text(other.site.file, site.file))
        stop("not all threads of the block are in the same barrier");
      count += other.value;
    }
    for (unsigned i = 0; i < device.size; ++i) {
      device.thread(i).received[0] = count;
      device.thread(i).state = State::kReady;
    }
    const auto all = fibers(device.first, device.size);
    order_memory(all, all);
  }
  wait();
  return static_cast<int>(me.received[0]);
}

const std::uint64_t* exchange(const char* operation, unsigned mask, std::uint64_t value, Site site,
                              bool orders_memory) {
  Thread& me = arrive(operation, mask, value, site);
  const unsigned warp = me.number & ~31u;
  if (!(mask >> (me.number & 31) & 1)) stop("a lane's mask leaves out the lane itself");

  bool complete = true;
  for_each_lane(mask, [&](unsigned lane) {
    if (warp + lane >= device.size) return void(complete = false);
    const Thread& other = device.thread(warp + lane);
    complete &= other.state == State::kWaiting && other.mask == mask &&
                same_text(other.operation, operation);
  });
  if (complete) {
    std::vector<Fiber*> fibers;
    for_each_lane(mask, [&](unsigned to) {
      Thread& receiver = device.thread(warp + to);
      std::fill(receiver.received, receiver.received + 32, ~std::uint64_t{0});
      for_each_lane(
          mask, [&](unsigned from) { receiver.received[from] = device.thread(warp + from).value; });
      receiver.state = State::kReady;
      if (orders_memory) fibers.push_back(&receiver.fiber);
    });
    order_memory(fibers, fibers);
  }
  wait();
  return me.received;
}

unsigned lane() { return device.current->number & 31; }

void trap(Site site) {
  arrive("__trap", 0, 0, site);
  stop("a thread called __trap()");
}

void fence() {
  if (!under_tsan()) return;
  fenced = true;
  __tsan_release(&fence_token);
}

void see_fences() { __tsan_acquire(&fence_token); }

// --- Shared memory.

namespace {

// A heap block of exactly this size, so that AddressSanitizer sees the first byte beyond it, filled
// with NaN (-1 as an integer), so that what was never written shows.
void* add_shared(const void* key, std::size_t bytes) {
  void* memory = std::malloc(bytes);
  std::memset(memory, 0xff, bytes);
  device.shared.push_back({key, memory});
  return memory;
}

}  // namespace

void* shared_memory(const void* key, std::size_t bytes) {
  // ThreadSanitizer sees an allocation as a write. It is the host's, and ordered before whatever
  // the running thread does next, not the deed of the thread that happened to come first.
  if (under_tsan()) __tsan_switch_to_fiber(device.host->tsan, kTsanNoSync);
  void* memory = nullptr;
  for (std::size_t i = device.first_shared; i < device.shared.size(); ++i)
    if (device.shared[i].key == key) memory = device.shared[i].memory;
  if (!memory) {
    device.static_bytes += bytes;
    memory = add_shared(key, bytes);
  }
  const bool fits = device.static_bytes <= kSharedDefault &&
                    device.static_bytes + device.shared_bytes <= device.shared_limit;
  if (under_tsan()) __tsan_switch_to_fiber(device.current->fiber.tsan, kTsanNoSync);
  order_memory(std::initializer_list<Fiber*>{device.host},
               std::initializer_list<Fiber*>{&device.current->fiber});
  if (!fits) stop("static and dynamic shared memory together exceed what the kernel may use");
  return memory;
}

void* dynamic_shared_memory() { return device.shared[device.first_shared].memory; }

// --- Running a block.

namespace {

std::string place(const Thread& thread) {
  const Site& site = thread.site;
  std::string text = thread.operation;
  text += std::string(" (") + site.file + ":" + std::to_string(site.line) + ")";
  if (thread.mask) {  // a warp's operation
    char mask[16];
    std::snprintf(mask, sizeof mask, "0x%08x", thread.mask);
    text += std::string(" with mask ") + mask + " in warp " + std::to_string(thread.number / 32);
  }
  return text;
}

// Who waits where, one part for each barrier's line and each warp operation.
std::string who_waits() {
  std::vector<std::pair<std::string, unsigned>> groups;  // description, threads
  unsigned done = 0;
  for (unsigned i = 0; i < device.size; ++i) {
    const Thread& thread = device.thread(i);
    done += thread.state == State::kDone;
    if (thread.state != State::kWaiting) continue;
    const std::string what = place(thread);
    auto same = std::find_if(groups.begin(), groups.end(),
                             [&](const auto& group) { return group.first == what; });
    if (same == groups.end()) same = groups.insert(groups.end(), {what, 0});
    ++same->second;
  }
  std::string text;
  for (const auto& [what, threads] : groups)
    text += "; " + std::to_string(threads) + " wait in " + what;
  return text + "; " + std::to_string(done) + " have exited, of " + std::to_string(device.size);
}

std::string describe(const std::string& problem) {
  return problem + ", in block (" + std::to_string(blockIdx.x) + "," + std::to_string(blockIdx.y) +
         "," + std::to_string(blockIdx.z) + ")";
}

void fiber_main() noexcept {
  Fiber::entered_from(*device.host);
  device.entry(device.arguments);
  device.current->state = State::kDone;
  device.current->fiber.switch_to(*device.host, true);
  std::abort();
}

// Every thread of the block to its end. Throws if that cannot be.
void run_block(const std::vector<unsigned>& order, std::mt19937_64& random) {
  std::vector<unsigned> turns = order;
  for (unsigned done = 0; done < device.size;) {
    if (device.order == Order::kRandom) std::shuffle(turns.begin(), turns.end(), random);
    bool moved = false;
    for (unsigned number : turns) {
      Thread& thread = device.thread(number);
      if (thread.state != State::kReady) continue;
      moved = true;
      device.current = &thread;
      threadIdx = thread.index;
      device.host->switch_to(thread.fiber);
      done += thread.state == State::kDone;
      if (thread.problem)
        throw std::runtime_error(describe(thread.problem) + " thread " + std::to_string(number) +
                                 who_waits());
    }
    if (!moved) throw std::runtime_error(describe("threads wait for ever") + who_waits());
  }
}

// The host waits for all threads so far; nobody then uses their shared memory and contexts.
void settle() {
  order_memory(fibers(0, device.pool.size()), std::initializer_list<Fiber*>{device.host});
  for (const SharedBlock& block : device.shared) std::free(block.memory);
  device.shared.clear();
}

void prepare_block(unsigned first, dim3 block) {
  device.first = first;
  device.arrived = 0;
  while (device.pool.size() < first + device.size) device.pool.emplace_back();
  for (unsigned i = 0; i < device.size; ++i) {
    Thread& thread = device.thread(i);
    thread.number = i;
    thread.index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
    thread.state = State::kReady;
    thread.problem = nullptr;
    thread.fiber.prepare(fiber_main);
  }
  device.first_shared = device.shared.size();
  device.static_bytes = 0;
  add_shared(nullptr, device.shared_bytes);
  order_memory(std::initializer_list<Fiber*>{device.host}, fibers(first, device.size));
}

template <class T>
std::vector<T> turns(std::size_t count, std::mt19937_64& random) {
  std::vector<T> all(count);
  std::iota(all.begin(), all.end(), T{0});
  if (device.order == Order::kReverse) std::reverse(all.begin(), all.end());
  if (device.order == Order::kRandom) std::shuffle(all.begin(), all.end(), random);
  return all;
}

void run_grid(dim3 grid, dim3 block) {
  std::mt19937_64 random(device.seed);  // the same turns at every launch
  const auto threads = turns<unsigned>(device.size, random);
  unsigned next = 0;
  const std::size_t plane = std::size_t{grid.x} * grid.y;
  for (std::size_t number : turns<std::size_t>(plane * grid.z, random)) {
    const unsigned reusable = under_tsan() ? kContexts : device.size;
    if (next + device.size > reusable) {
      settle();
      next = 0;
    }
    blockIdx = {static_cast<unsigned>(number % grid.x),
                static_cast<unsigned>(number / grid.x % grid.y),
                static_cast<unsigned>(number / plane)};
    prepare_block(next, block);
    next += device.size;
    run_block(threads, random);
  }
  settle();
}

// RESQUE_CUDA_ON_CPU_ORDER=forward|reverse|random:SEED
bool read_environment() {
  const char* text = std::getenv("RESQUE_CUDA_ON_CPU_ORDER");
  if (!text) return false;
  if (std::strcmp(text, "reverse") == 0) {
    device.order = Order::kReverse;
  } else if (std::strncmp(text, "random:", 7) == 0) {
    device.order = Order::kRandom;
    device.seed = std::strtoull(text + 7, nullptr, 10);
  } else if (std::strcmp(text, "forward") != 0) {
    std::fprintf(stderr, "RESQUE_CUDA_ON_CPU_ORDER: forward, reverse or random:SEED, not %s\n",
                 text);
    std::exit(2);
  }
  return true;
}
[[maybe_unused]] const bool environment_read = read_environment();

bool valid(dim3 grid, dim3 block) {
  // In 64 bits: the product of three legal sizes fits, that of three illegal ones may not in 32.
  return grid.x && grid.y && grid.z && block.x && block.y && block.z && grid.x <= 0x7fffffff &&
         grid.y <= 65535 && grid.z <= 65535 && block.x <= 1024 && block.y <= 1024 &&
         block.z <= 64 && std::uint64_t{block.x} * block.y * block.z <= 1024;
}

}  // namespace

void launch(const void* kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
            void (*entry)(void*), void* arguments) {
  const std::lock_guard<std::mutex> lock(device.launching);
  if (!valid(grid, block)) return void(record(cudaErrorInvalidConfiguration));
  const SharedLimits limits = shared_limits(kernel);
  if (shared_bytes > limits.dynamic) return void(record(cudaErrorInvalidValue));

  Fiber host;
  device.host = &host;
  device.entry = entry;
  device.arguments = arguments;
  device.size = block.x * block.y * block.z;
  device.shared_bytes = shared_bytes;
  device.shared_limit = limits.all;
  gridDim = grid;
  blockDim = block;
  fenced = false;
  try {
    run_grid(grid, block);
  } catch (const std::exception& fault) {
    record(cudaErrorLaunchFailure, fault.what());
    settle();
    device.pool.clear();  // with the stacks of the threads that were left where they stood
  }
}

}  // namespace cuda_on_cpu

// For the tests. 0: forward, 1: reverse, 2: random by `seed`.
extern "C" __attribute__((visibility("default"))) void cuda_on_cpu_set_order(int mode,
                                                                             std::uint64_t seed) {
  const std::lock_guard<std::mutex> lock(cuda_on_cpu::device.launching);
  cuda_on_cpu::device.order = static_cast<cuda_on_cpu::Order>(mode);
  cuda_on_cpu::device.seed = seed;
}
