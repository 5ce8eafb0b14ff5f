// Bins of rows counted 64 values at a time, for processors that count the bits of eight words in one
// instruction (AVX-512 as of Ice Lake and Zen 4). A part of cpu/isa/row_distances_rows.cpp.
//
// The bins of 64 values of a row, a byte each, are taken apart into bit planes: bit v of plane j's word
// is bit j of the bin of value v. A vector holds that word of eight rows. The values of a row that lie
// in bin b are then those bits at which each plane has the bit of b: a tree of ands halves a node's
// values from plane to plane, and at its leaves the bits are counted. For 64 bins and eight rows of 64
// values that takes 128 ands, 64 counts and 64 additions, half an operation a value, where adding one to
// a count in memory waits for the addition before.
//
// Included within resque::cpu::RESQUE_ISA.
#pragma once

constexpr int kChoose = 0xca;  // of three bits a, b and c: a ? b : c

// Values in one vector, and the vectors whose bins are put together in one of 64 bytes: value v of 64 in
// byte kParts * (v % kWidth) + v / kWidth, for what is counted has no order.
template <typename X>
struct Wide;

template <>
struct Wide<float> {
    using Vector = __m512;
    static constexpr int kWidth = 16, kParts = 4;

    static RESQUE_INLINE Vector load(const float* p) { return _mm512_loadu_ps(p); }
    static RESQUE_INLINE Vector load(const BFloat* p) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_bits<__m256i>(p)), 16));
    }
    static RESQUE_INLINE Vector load(const Half* p) { return _mm512_cvtph_ps(load_bits<__m256i>(p)); }
    static RESQUE_INLINE Vector all(float x) { return _mm512_set1_ps(x); }
    static RESQUE_INLINE Vector lesser(Vector a, Vector b) { return _mm512_min_ps(a, b); }
    // One less in the lanes where x < edge.
    static RESQUE_INLINE __m512i below(__m512i bin, Vector x, Vector edge) {
        const __mmask16 less = _mm512_cmp_ps_mask(x, edge, _CMP_LT_OQ);
        return _mm512_mask_sub_epi32(bin, less, bin, _mm512_set1_epi32(1));
    }
    // Byte kPart of every lane, and those above it, from `bin`, whose low byte is the bin.
    template <int kPart>
    static RESQUE_INLINE __m512i part(__m512i bytes, __m512i bin) {
        const __m512i mask = _mm512_set1_epi32(static_cast<int>((1u << 8 * kPart) - 1));
        return _mm512_ternarylogic_epi32(mask, bytes, _mm512_slli_epi32(bin, 8 * kPart), kChoose);
    }
};

template <>
struct Wide<double> {
    using Vector = __m512d;
    static constexpr int kWidth = 8, kParts = 8;

    static RESQUE_INLINE Vector load(const double* p) { return _mm512_loadu_pd(p); }
    static RESQUE_INLINE Vector all(double x) { return _mm512_set1_pd(x); }
    static RESQUE_INLINE Vector lesser(Vector a, Vector b) { return _mm512_min_pd(a, b); }
    static RESQUE_INLINE __m512i below(__m512i bin, Vector x, Vector edge) {
        const __mmask8 less = _mm512_cmp_pd_mask(x, edge, _CMP_LT_OQ);
        return _mm512_mask_sub_epi64(bin, less, bin, _mm512_set1_epi64(1));
    }
    template <int kPart>
    static RESQUE_INLINE __m512i part(__m512i bytes, __m512i bin) {
        const __m512i mask = _mm512_set1_epi64(static_cast<int64_t>((uint64_t{1} << 8 * kPart) - 1));
        return _mm512_ternarylogic_epi64(mask, bytes, _mm512_slli_epi64(bin, 8 * kPart), kChoose);
    }
};

// The bins of the 64 values at p, found as find_bins does it.
template <typename T>
struct BytesOfBins {
    using W = Wide<Binned<T>>;
    using Vector = typename W::Vector;
    Vector first, step, scale, top, whole;

    RESQUE_INLINE BytesOfBins(const Stream<T>& s, int bins)
        : first(W::all(s.first)), step(W::all(s.step)), scale(W::all(s.scale)),
          top(W::all(static_cast<Binned<T>>(bins - 1))), whole(W::all(Lanes<Binned<T>>::kWhole)) {}

    RESQUE_INLINE __m512i bins_of(const T* p) const {
        const Vector x = W::load(p);
        const Vector shifted = W::lesser((x - first) * scale, top) + whole;
        return W::below((__m512i)shifted, x, (shifted - whole) * step + first);
    }

    template <int kPart = W::kParts - 1>
    RESQUE_INLINE __m512i operator()(const T* p) const {
        if constexpr (kPart == 0) {
            return bins_of(p);
        } else {
            const __m512i bytes = operator()<kPart - 1>(p);
            return W::template part<kPart>(bytes, bins_of(p + kPart * W::kWidth));
        }
    }
};

constexpr int kMaskBins = 128;  // for more, additions one by one are as fast
constexpr int kPlanes = 7;      // log2 of that
constexpr int kLowPlanes = 4;   // of a subtree, whose leaves' counts stay in registers
constexpr int kSubtree = 1 << kLowPlanes;
constexpr int kBlock = 8;       // words of a row between two looks at the histograms

// Adds to counts[0 .. 2^kDepth) how many bits of each word of `node` belong to each leaf below it.
template <int kDepth>
RESQUE_INLINE void count_leaves(__m512i node, const uint64_t (*planes)[kStreams], __m512i* counts) {
    if constexpr (kDepth == 0) {
        *counts = _mm512_add_epi64(*counts, _mm512_popcnt_epi64(node));
    } else {
        const auto plane = load_bits<__m512i>(planes[kDepth - 1]);
        count_leaves<kDepth - 1>(_mm512_andnot_si512(plane, node), planes, counts);
        count_leaves<kDepth - 1>(_mm512_and_si512(plane, node), planes, counts + (1 << (kDepth - 1)));
    }
}

// bin_rows for up to kMaskBins bins.
template <typename T>
RESQUE_INLINE void bin_rows_by_masks(const Stream<T> (&streams)[kStreams], int64_t length, int bins,
                                     uint16_t* histograms) {
    using W = Wide<Binned<T>>;
    alignas(64) uint64_t planes[kBlock][kPlanes][kStreams];
    int used = kLowPlanes;  // planes
    while (bins > 1 << used) ++used;
    uint64_t ragged = 0;  // those of the last word that are values
    for (int64_t v = 0; v < length % 64; ++v) {
        ragged |= uint64_t{1} << (W::kParts * (v % W::kWidth) + v / W::kWidth);
    }
    alignas(64) uint64_t present[kStreams];
    for (int r = 0; r < kStreams; ++r) present[r] = streams[r].row ? ~uint64_t{0} : 0;

    for (int64_t begin = 0; begin < length; begin += 64 * kBlock) {
        const int64_t some = length - begin < 64 * kBlock ? length - begin : 64 * kBlock;
        const int64_t words = (some + 63) / 64;
        for (int r = 0; r < kStreams; ++r) {
            const Stream<T>& s = streams[r];
            if (!s.row) {
                for (auto& word : planes) {
                    for (auto& plane : word) plane[r] = 0;
                }
                continue;
            }
            const BytesOfBins<T> bytes_of(s, bins);
            for (int64_t k = 0; k < words; ++k) {
                const int64_t at = begin + 64 * k;
                T rest[64];
                const T* from = s.row + at;
                if (length - at < 64) {  // its first value in place of those beyond the end
                    for (int64_t v = 0; v < 64; ++v) rest[v] = from[v < length - at ? v : 0];
                    from = rest;
                }
                if (s.next) {
                    constexpr int64_t kValues = kLine / static_cast<int64_t>(sizeof(T));
                    for (int64_t v = at; v < at + 64 && v < length; v += kValues) {
                        __builtin_prefetch(s.next + v, 0, 2);
                    }
                }
                const __m512i bytes = bytes_of(from);
                for (int j = 0; j < used; ++j) {
                    const __m512i bit = _mm512_set1_epi8(static_cast<char>(1 << j));
                    planes[k][j][r] = _mm512_test_epi8_mask(bytes, bit);
                }
            }
        }
        for (int base = 0; base < bins; base += kSubtree) {
            __m512i counts[kSubtree] = {};
            for (int64_t k = 0; k < words; ++k) {
                auto node = load_bits<__m512i>(present);
                if (length - begin - 64 * k < 64) {
                    node = _mm512_and_si512(node, _mm512_set1_epi64(static_cast<int64_t>(ragged)));
                }
                for (int j = kLowPlanes; j < used; ++j) {
                    const auto plane = load_bits<__m512i>(planes[k][j]);
                    node = base >> j & 1 ? _mm512_and_si512(plane, node)
                                         : _mm512_andnot_si512(plane, node);
                }
                count_leaves<kLowPlanes>(node, planes[k], counts);
            }
            for (int b = 0; b < kSubtree && base + b < bins; ++b) {
                uint16_t* const to = histograms + (base + b) * kLanes<uint16_t>;
                const Short8 sum = load_bits<Short8>(to) + (Short8)_mm512_cvtepi64_epi16(counts[b]);
                std::memcpy(to, &sum, sizeof sum);
            }
        }
    }
}
