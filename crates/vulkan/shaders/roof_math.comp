#version 460
#include "lib/common.glsl"
// Independent chains of multiply-adds: 8 f32 chains, or 8 chains of packed 4 x 8-bit dot products.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint INTEGER = 0;
ARGUMENTS { uint64_t y; uint rounds; uint seed; } p;
void main() {
    uint id = gl_GlobalInvocationID.x;
    if (INTEGER != 0) {
        int sum[8];
        uint a = id * 2654435761u + p.seed;
        for (int i = 0; i < 8; i++) sum[i] = int(id) + i;
        for (uint r = 0; r < p.rounds; r++)
            [[unroll]] for (int i = 0; i < 8; i++) sum[i] += dot4(uint(sum[i]), a);
        int all = 0;
        for (int i = 0; i < 8; i++) all ^= sum[i];
        U32(p.y).v[id] = uint(all);
    } else {
        float sum[8];
        float a = 1.0 / float(id + 2u), b = float(p.seed);
        for (int i = 0; i < 8; i++) sum[i] = float(i);
        for (uint r = 0; r < p.rounds; r++)
            [[unroll]] for (int i = 0; i < 8; i++) sum[i] = fma(sum[i], a, b);
        float all = 0.0;
        for (int i = 0; i < 8; i++) all += sum[i];
        F32(p.y).v[id] = all;
    }
}
