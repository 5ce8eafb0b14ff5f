// Single instructions of csrc/cuda, each in a kernel of its own: on a GPU compiled by nvcc, or on the emulator.
//
// instructions NAME < IN > OUT: as many equal records of input as there are, and one of output for each.
//   mma       a [16, 16] float16, b [16, 8] float16, c [16, 8] float32  ->  a b + c, [16, 8] float32
//   copies    [4, 32, 16] bytes  ->  the same; the groups in the order in which they are waited for
//   max       a, b float32       ->  the greater, or NaN
//   order     a, b uint32, each two numbers of 16 bits up to 31,743  ->  both minima, both maxima
//   warp_max  [32] uint32        ->  [32] uint32, the greatest in every place
#include "cuda/gpu.h"

#include "cuda/instructions.cuh"
#include "cuda/row_distances_bins.cuh"
#include "cuda/row_distances_terms.cuh"

#include <cstdio>
#include <string>
#include <vector>

namespace resque::cuda {
namespace {

struct Product {
    __half a[16][16], b[16][8];
    float c[16][8];
};
struct Sum {
    float d[16][8];
};

__device__ uint32_t two(const __half& low, const __half& high) {
    return static_cast<uint32_t>(__half_as_ushort(high)) << 16 | __half_as_ushort(low);
}

// A warp a product, its numbers in the lanes that multiply_add asks for.
__global__ void mma_tile(const Product* in, Sum* out) {
    const int lane = threadIdx.x, g = lane / 4, t = 2 * (lane % 4);
    const Product& x = in[blockIdx.x];
    uint32_t a[4], b[2];
    for (int i = 0; i < 4; ++i) {
        const int row = g + 8 * (i % 2), column = t + 8 * (i / 2);
        a[i] = two(x.a[row][column], x.a[row][column + 1]);
    }
    for (int i = 0; i < 2; ++i) b[i] = two(x.b[t + 8 * i][g], x.b[t + 8 * i + 1][g]);
    float sum[4];
    for (int i = 0; i < 4; ++i) sum[i] = x.c[g + 8 * (i / 2)][t + i % 2];
    cuda::multiply_add(sum, a, b[0], b[1]);  // others of its name are in row_distances_bins.cuh
    for (int i = 0; i < 4; ++i) out[blockIdx.x].d[g + 8 * (i / 2)][t + i % 2] = sum[i];
}

struct Groups {
    uint4 part[4][32];
};

// Four groups, the last two of them started while the others are waited for. A lane reads what another
// has copied, so that waiting alone is not enough.
__global__ void copy_groups(const Groups* in, Groups* out) {
    SHARED(Groups, there);
    const int lane = threadIdx.x, other = (lane + 5) % 32;
    Copies copies;
    const auto start = [&](int group) {
        copies.start(&there.part[group][lane], &in[blockIdx.x].part[group][lane]);
        copies.close_group();
    };
    const auto take = [&](int group) {
        __syncwarp();
        out[blockIdx.x].part[group][other] = there.part[group][other];
    };
    start(0), start(1), start(2);
    copies.wait<2>();
    take(0);
    start(3);
    copies.wait<1>();
    take(1), take(2);
    copies.wait<0>();
    take(3);
}

struct Pair {
    uint32_t a, b;
};

__global__ void greater(const Pair* in, float* out) {
    out[blockIdx.x] = max_or_nan(__uint_as_float(in[blockIdx.x].a), __uint_as_float(in[blockIdx.x].b));
}

__global__ void order_both(const Pair* in, Pair* out) {
    Pair both = in[blockIdx.x];
    order(both.a, both.b);
    out[blockIdx.x] = both;
}

struct Lanes {
    uint32_t value[32];
};

__global__ void greatest(const Lanes* in, Lanes* out) {
    out[blockIdx.x].value[threadIdx.x] = warp_max(in[blockIdx.x].value[threadIdx.x]);
}

template <typename In, typename Out>
void run(void (*kernel)(const In*, Out*), int threads) {
    std::vector<In> in(1);
    while (std::fread(&in.back(), sizeof(In), 1, stdin) == 1) in.emplace_back();
    in.pop_back();
    std::vector<Out> out(in.size());
    In* in_there = nullptr;
    Out* out_there = nullptr;
    check(cudaMalloc(&in_there, in.size() * sizeof(In)), "cudaMalloc");
    check(cudaMalloc(&out_there, out.size() * sizeof(Out)), "cudaMalloc");
    check(cudaMemcpy(in_there, in.data(), in.size() * sizeof(In), cudaMemcpyHostToDevice), "cudaMemcpy");
    LAUNCH((kernel), static_cast<unsigned>(in.size()), threads, 0, nullptr)(in_there, out_there);
    check(cudaGetLastError(), "the launch");
    check(cudaMemcpy(out.data(), out_there, out.size() * sizeof(Out), cudaMemcpyDeviceToHost), "the kernel");
    std::fwrite(out.data(), sizeof(Out), out.size(), stdout);
}

void run(const std::string& name) {
    if (name == "mma") {
        run(mma_tile, 32);
    } else if (name == "copies") {
        run(copy_groups, 32);
    } else if (name == "max") {
        run(greater, 1);
    } else if (name == "order") {
        run(order_both, 1);
    } else if (name == "warp_max") {
        run(greatest, 32);
    } else {
        throw std::runtime_error("mma, copies, max, order or warp_max, not " + name);
    }
}

}  // namespace
}  // namespace resque::cuda

int main(int count, char** arguments) {
    try {
        resque::cuda::run(count > 1 ? arguments[1] : "");
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
