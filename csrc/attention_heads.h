// Attention in bfloat16 a head at a time: what lies between its products never leaves the caches.
#pragma once

#include <cstdint>

#include "vec.h"

namespace ldae {

// A tensor over batch, tokens, heads and its rows, whose values lie together; distances in values.
struct HeadView {
  bf16* data;
  int64_t batch, token, head;
};

// out = weights v, weights (B, heads, T, T) = softmax(scale q k^T).
struct AttentionHeads {
  HeadView q, k, v, out, weights;
  int64_t heads, tokens, width;
  float scale;
};

// The gradients of q, k and v from that of out.
struct AttentionHeadsBackward {
  HeadView dout, q, k, v, dq, dk, dv, weights;
  int64_t heads, tokens, width;
  float scale;
};

// Heads begin..end-1 of the B * heads.
void attention_heads(const AttentionHeads& a, int64_t begin, int64_t end);
void attention_heads_backward(const AttentionHeadsBackward& a, int64_t begin, int64_t end);

// Whether the set at hand multiplies pairs of bfloat16, and the processor has nothing faster for
// that, which is AMX, and oneDNN's to use.
bool attention_heads_pay();

}  // namespace ldae
