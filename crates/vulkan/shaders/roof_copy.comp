#version 460
#include "lib/common.glsl"
// Copies a buffer with 16-byte loads and stores, FLIGHT of them under way in each thread: the copy bandwidth that the memory has. A driver's
// own copy command may reach a third of it.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
ARGUMENTS { uint64_t x, y; uint count; } p;
const uint FLIGHT = 4;
void main() {
    uint n = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
    for (uint i = gl_GlobalInvocationID.x; i < p.count; i += n * FLIGHT) {
        uvec4 v[FLIGHT];
        [[unroll]] for (uint k = 0; k < FLIGHT; k++) v[k] = U32x4(p.x).v[min(i + k * n, p.count - 1)];
        [[unroll]] for (uint k = 0; k < FLIGHT; k++)
            if (i + k * n < p.count) U32x4(p.y).v[i + k * n] = v[k];
    }
}
