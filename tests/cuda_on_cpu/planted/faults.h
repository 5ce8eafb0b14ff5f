// The planted faults: kernel, blocks of the launch, dynamic shared memory.
#pragma once

#define EACH_FAULT(F)               \
  F(shared_overrun, 1, 0)           \
  F(dynamic_shared_overrun, 1, 256) \
  F(global_overrun, 1, 0)           \
  F(stack_overrun, 1, 0)            \
  F(overflow, 1, 0)                 \
  F(misaligned, 1, 256)             \
  F(cast, 1, 0)                     \
  F(race_in_block, 1, 0)            \
  F(race_in_warp, 1, 0)             \
  F(race_between_blocks, 40, 0)     \
  F(missing_fence, 2, 0)

#define DECLARE_FAULT(kernel, blocks, shared_bytes) void run_##kernel(bool fault, int* out);
EACH_FAULT(DECLARE_FAULT)
