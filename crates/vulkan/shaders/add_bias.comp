#version 460
#include "lib/common.glsl"
// y[row, i] += bias[i]: one workgroup row of the grid a row.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
ARGUMENTS {
    uint64_t y;         // f32 [rows, width]
    uint64_t bias;      // f32 [width]
    uint width;
} p;
void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i < p.width) F32(p.y).v[gl_WorkGroupID.y * p.width + i] += F32(p.bias).v[i];
}
