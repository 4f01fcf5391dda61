// Drawing tokens on the device: log-probabilities of the raw logits, adjustments, and the draw.
//
// The rules and their order are those of `disagg_engine::sampling`, which is the reference: greedy takes the largest,
// the lowest id of equals; otherwise temperature, min-p, top-k, top-p over what top-k left, and one draw by inverse
// distribution function over the kept tokens in order of id. Weights are fixed point (2^40 is the most likely token),
// so that sums do not depend on the order of addition and a draw repeats to the bit.
//
// logits [R, vocab] float. One CTA of 1024 threads a row or draw. vocab is a multiple of 8 and at most 2^22.
#include "common.cuh"

constexpr int THREADS = 1024, WARPS = THREADS / 32;
constexpr float ONE = 1099511627776.0f;  // 2^40
constexpr int TOP_MAX = 20;

// What a row's raw logits are asked for.
struct alignas(8) RawRow {
  u32 row;
  u32 top;  // number of most likely tokens, at most TOP_MAX; ~0: nothing is asked
};

// One change of one logit.
struct alignas(8) Adjust {
  u32 row, token;
  float bias;   // added first; -inf forbids
  float scale;  // then negative logits are multiplied with it and others divided; 1 is off
  float add;    // added last
  float raw;    // written by `adjust_logits`: the logit as it was
};

// One token to draw. `temperature` 0 is greedy.
struct alignas(32) Draw {
  u32 row;
  float temperature;
  u32 top_k;  // 0 is off
  float top_p, min_p;
  u32 flags;       // DRAW_ACTIVE (otherwise padding), DRAW_LOGPROB
  double uniform;  // in [0, 1)
};
constexpr u32 DRAW_ACTIVE = 1, DRAW_LOGPROB = 2;

struct Best {
  float value;
  u32 id;
};

__device__ __forceinline__ Best better(Best a, Best b) {
  return (b.value > a.value || (b.value == a.value && b.id < a.id)) ? b : a;
}

__device__ __forceinline__ Best block_best(Best x, Best* shared) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1)
    x = better(x, Best{__shfl_xor_sync(~0u, x.value, o), __shfl_xor_sync(~0u, x.id, o)});
  __syncthreads();
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
  __syncthreads();
  x = shared[threadIdx.x & 31];
#pragma unroll
  for (int o = 16; o > 0; o >>= 1)
    x = better(x, Best{__shfl_xor_sync(~0u, x.value, o), __shfl_xor_sync(~0u, x.id, o)});
  return x;
}

// Greatest of a row, the lowest id of equals. Four at a time: a row is a multiple of 8 and so starts at 32 bytes.
// `visit` sees every value.
template <typename Visit>
__device__ __forceinline__ Best greatest(const float* row, int vocab, Best most, Visit visit) {
#pragma unroll 4
  for (int i = threadIdx.x; i < vocab / 4; i += THREADS) {
    const float4 x = reinterpret_cast<const float4*>(row)[i];
    const u32 id = 4 * i;
    visit(x.x), visit(x.y), visit(x.z), visit(x.w);
    most = better(most, Best{x.x, id});
    most = better(most, Best{x.y, id + 1});
    most = better(most, Best{x.z, id + 2});
    most = better(most, Best{x.w, id + 3});
  }
  return most;
}

// Log of the sum of exponentials of each asked row, and its most likely tokens, before anything is adjusted.
// log_sums [R]; top_ids, top_logprobs [asked rows, TOP_MAX]. Grid (asked rows).
extern "C" __global__ void __launch_bounds__(THREADS)
    raw_logprobs(float* __restrict__ log_sums, u32* __restrict__ top_ids, float* __restrict__ top_logprobs,
                 const float* __restrict__ logits, const RawRow* __restrict__ rows, int vocab) {
  __shared__ Best best[WARPS];
  __shared__ float sums[WARPS];
  const RawRow ask = rows[blockIdx.x];
  if (ask.top == ~0u) return;
  const float* row = logits + (long)ask.row * vocab;
  const Best most = block_best(greatest(row, vocab, Best{NEG_INF, 0xffffffffu}, [](float) {}), best);
  float sum = 0.0f;
#pragma unroll 4
  for (int i = threadIdx.x; i < vocab / 4; i += THREADS) {
    const float4 x = reinterpret_cast<const float4*>(row)[i];
    sum += __expf(x.x - most.value) + __expf(x.y - most.value) + __expf(x.z - most.value) + __expf(x.w - most.value);
  }
  sum = block_sum(sum, sums);
  const float log_sum = most.value + __logf(sum);
  if (threadIdx.x == 0) log_sums[ask.row] = log_sum;
  Best last = most;
  for (u32 n = 0; n < min(ask.top, (u32)TOP_MAX); ++n) {
    if (n > 0) {
      // The greatest of those behind the last one.
      Best next{NEG_INF, 0xffffffffu};
      for (int i = threadIdx.x; i < vocab; i += THREADS) {
        const float v = row[i];
        if (v < last.value || (v == last.value && (u32)i > last.id)) next = better(next, Best{v, (u32)i});
      }
      last = block_best(next, best);
    }
    if (threadIdx.x == 0) {
      top_ids[blockIdx.x * TOP_MAX + n] = last.id;
      top_logprobs[blockIdx.x * TOP_MAX + n] = last.value - log_sum;
    }
  }
}

// Bias, forbidden tokens and penalties; each (row, token) at most once. The logits as they were are gone after it, so
// `raw_logprobs` runs before it, and each entry keeps the logit it changes. Grid-stride; `count` is read on the device.
extern "C" __global__ void adjust_logits(float* __restrict__ logits, Adjust* __restrict__ list,
                                         const u32* __restrict__ count, int vocab) {
  const u32 n = *count;
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    const Adjust a = list[i];
    float* at = logits + (long)a.row * vocab + a.token;
    list[i].raw = *at;
    const float x = *at + a.bias;
    // What is forbidden stays so, and an extreme penalty forbids nothing.
    *at = x == -INFINITY_F ? x : fminf(fmaxf((x > 0.0f ? x / a.scale : x * a.scale) + a.add, -3.4e38f), 3.4e38f);
  }
}

// Order of floats as unsigned integers.
__device__ __forceinline__ u32 ordered(float x) {
  const u32 b = __float_as_uint(x);
  return b & 0x80000000u ? ~b : b | 0x80000000u;
}

// tokens [draws]: ~0 for a row that cannot be drawn from, since a logit is no number or all are forbidden.
// logprobs [draws]: of the drawn token by the raw logits, where asked. Grid (draws).
extern "C" __global__ void __launch_bounds__(THREADS)
    draw_tokens(u32* __restrict__ tokens, float* __restrict__ logprobs, const float* __restrict__ logits,
                const float* __restrict__ log_sums, const Draw* __restrict__ draws,
                const Adjust* __restrict__ adjusts, const u32* __restrict__ adjust_count, int vocab) {
  __shared__ Best best[WARPS];
  __shared__ u64 bins[256];
  __shared__ u64 warp_sums[WARPS];
  __shared__ u32 s_digit, s_token, warp_ties[WARPS];
  __shared__ u64 s_above;
  __shared__ float s_raw;
  const Draw d = draws[blockIdx.x];
  if (!(d.flags & DRAW_ACTIVE)) return;
  const float* row = logits + (long)d.row * vocab;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;

  bool broken = false;
  Best most = greatest(row, vocab, Best{-INFINITY_F, 0xffffffffu}, [&](float x) { broken |= !(x < INFINITY_F); });
  most = block_best(most, best);
  // All at minus infinity: nothing may be drawn.
  if (__syncthreads_or(broken) || most.value == -INFINITY_F) most.id = 0xffffffffu;
  u32 token = most.id;

  if (d.temperature > 0.0f && token < (u32)vocab) {
    const float inverse = 1.0f / d.temperature;
    auto weight = [&](float x) -> u64 {
      const float w = __expf((x - most.value) * inverse);
      return w >= d.min_p ? (u64)(w * ONE) : 0;
    };
    // Tokens whose key is over `threshold` are kept, and of those equal to it the `ties` with the lowest ids.
    u32 threshold = 0, ties = 0xffffffffu;
    // Radix select from the top digit down: where the sum of `measure` over all greater keys reaches `goal`.
    auto select = [&](auto measure, u64 goal) {
      u32 prefix = 0;
      u64 above = 0;
      for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < 256; i += THREADS) bins[i] = 0;
        __syncthreads();
        const u32 mask = shift == 24 ? 0u : ~0u << (shift + 8);
        for (int i = threadIdx.x; i < vocab; i += THREADS) {
          const u32 key = ordered(row[i]);
          if ((key & mask) == prefix) {
            const u64 m = measure(row[i], key, i);
            if (m) atomicAdd(&bins[(key >> shift) & 255], m);
          }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
          u64 sum = above;
          int digit = 255;
          for (; digit > 0; --digit) {
            if (sum + bins[digit] >= goal) break;
            sum += bins[digit];
          }
          s_digit = digit;
          s_above = sum;
        }
        __syncthreads();
        prefix |= s_digit << shift;
        above = s_above;
        __syncthreads();
      }
      threshold = prefix;
      return above;
    };
    auto kept = [&](float x) { return ordered(x) >= threshold; };
    if (d.top_k > 0 && d.top_k < (u32)vocab) {
      const u64 above = select([&](float x, u32, int) -> u64 { return weight(x) > 0; }, d.top_k);
      ties = (u32)(d.top_k - above);
    }
    // Position among equals, in order of id, of what top-k left; counted warp by warp over stretches of the ids.
    const int stretch = ((vocab + WARPS - 1) / WARPS + 31) & ~31;
    const int from = min(vocab, warp * stretch), to = min(vocab, from + stretch);
    auto tie_base = [&]() {
      u32 n = 0;
      for (int i = from + lane; i < to; i += 32) n += ordered(row[i]) == threshold && weight(row[i]) > 0;
      n = __reduce_add_sync(~0u, n);
      __syncthreads();
      if (lane == 0) warp_ties[warp] = n;
      __syncthreads();
      u32 base = 0;
      for (int w = 0; w < warp; ++w) base += warp_ties[w];
      return base;
    };
    // Sum of weights of what is kept in this warp's stretch; calls `visit(i, sum before, weight)` in order of id.
    auto scan = [&](u64 start, u32 tie, auto visit) {
      u64 sum = start;
      for (int i0 = from; i0 < to; i0 += 32) {
        const int i = i0 + lane;
        const float x = i < to ? row[i] : -INFINITY_F;
        u64 w = i < to && kept(x) ? weight(x) : 0;
        const bool equal = w > 0 && ordered(x) == threshold;
        const u32 equals = __ballot_sync(~0u, equal);
        if (equal && tie + __popc(equals & ((1u << lane) - 1)) >= ties) w = 0;
        tie += __popc(equals);
        u64 before = w;
#pragma unroll
        for (int o = 1; o < 32; o <<= 1) {
          const u64 y = __shfl_up_sync(~0u, before, o);
          if (lane >= o) before += y;
        }
        visit(i, sum + before - w, w);
        sum += __shfl_sync(~0u, before, 31);
      }
      return sum;
    };
    auto total_of = [&](u32 base) {
      const u64 mine = scan(0, base, [](int, u64, u64) {});
      __syncthreads();
      if (lane == 0) warp_sums[warp] = mine;
      __syncthreads();
      u64 total = 0;
      for (int w = 0; w < WARPS; ++w) total += warp_sums[w];
      return total;
    };
    u32 base = tie_base();
    u64 total = total_of(base);
    if (d.top_p < 1.0f) {
      const u64 goal = max((u64)1, (u64)((double)total * (double)d.top_p));
      const u32 k_threshold = threshold, k_ties = ties;
      // Equals at top-k's edge that top-k dropped must not count; they are the last in the order, so it is enough to
      // stop at that edge.
      const u64 above = select(
          [&](float x, u32 key, int) -> u64 { return key > k_threshold || k_ties == 0xffffffffu ? weight(x) : 0; },
          goal);
      if (threshold <= k_threshold && k_ties != 0xffffffffu) {
        // The nucleus reaches into the equals of top-k's edge (or nothing over it suffices).
        threshold = k_threshold;
        u64 over = 0;
        for (int i = threadIdx.x; i < vocab; i += THREADS) over += ordered(row[i]) > threshold ? weight(row[i]) : 0;
#pragma unroll
        for (int o = 16; o > 0; o >>= 1) over += __shfl_xor_sync(~0u, over, o);
        __syncthreads();
        if (lane == 0) warp_sums[warp] = over;
        __syncthreads();
        over = 0;
        for (int w = 0; w < WARPS; ++w) over += warp_sums[w];
        const float edge = __uint_as_float(threshold & 0x80000000u ? threshold & 0x7fffffffu : ~threshold);
        const u64 each = max((u64)1, weight(edge));
        ties = min(k_ties, goal > over ? (u32)((goal - over + each - 1) / each) : 0u);
      } else {
        const float edge = __uint_as_float(threshold & 0x80000000u ? threshold & 0x7fffffffu : ~threshold);
        const u64 each = max((u64)1, weight(edge));
        ties = (u32)((goal - above + each - 1) / each);
      }
      base = tie_base();
      total = total_of(base);
    }
    // One draw. The last kept token stands in if rounding leaves the target at the very end.
    const u64 target = min((u64)((double)total * d.uniform), total - 1);
    u64 start = 0;
    for (int w = 0; w < warp; ++w) start += warp_sums[w];
    scan(start, base, [&](int i, u64 before, u64 w) {
      if (w > 0 && before <= target && target < before + w) s_token = i;
    });
    __syncthreads();
    token = s_token;
  }
  if (threadIdx.x == 0) tokens[blockIdx.x] = token;
  if (!(d.flags & DRAW_LOGPROB) || token >= (u32)vocab) return;
  // Of the raw logit: the row's own, unless it was adjusted.
  if (threadIdx.x == 0) s_raw = row[token];
  __syncthreads();
  const u32 count = *adjust_count;
  for (u32 i = threadIdx.x; i < count; i += THREADS)
    if (adjusts[i].row == d.row && adjusts[i].token == token) s_raw = adjusts[i].raw;
  __syncthreads();
  if (threadIdx.x == 0) logprobs[blockIdx.x] = s_raw - log_sums[d.row];
}
