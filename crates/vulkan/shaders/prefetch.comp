#version 460
#include "lib/common.glsl"
// Brings weights into the cache while a kernel that waits for little memory runs beside it: reads every line and keeps nothing.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(push_constant, scalar) uniform Push {
    uint64_t from;
    uint64_t nowhere;   // a word that nobody reads, written where all of a thread's words are all ones
    uint words;         // 16-byte words
} p;
void main() {
    uint threads = gl_NumWorkGroups.x * gl_WorkGroupSize.x, first = gl_GlobalInvocationID.x;
    uvec4 sum = uvec4(0xFFFFFFFFu);
    for (uint i = first; i < p.words; i += 4 * threads) {
        uvec4 w[4];
        [[unroll]] for (uint u = 0; u < 4; u++) w[u] = U32x4(p.from).v[min(i + u * threads, p.words - 1)];
        [[unroll]] for (uint u = 0; u < 4; u++) sum &= w[u];
    }
    if (all(equal(sum, uvec4(0xFFFFFFFFu)))) U32(p.nowhere).v[0] = sum.x;
}
