#version 460
#include "lib/common.glsl"
// Reads a buffer once with 16-byte loads: the read bandwidth that other kernels are held against.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
ARGUMENTS { uint64_t x, y; uint count; } p;
void main() {
    uint n = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
    uvec4 sum = uvec4(0);
    for (uint i = gl_GlobalInvocationID.x; i < p.count; i += n) sum ^= U32x4(p.x).v[i];
    U32(p.y).v[gl_GlobalInvocationID.x] = sum.x ^ sum.y ^ sum.z ^ sum.w;
}
