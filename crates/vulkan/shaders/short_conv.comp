#version 460
#include "lib/common.glsl"
#include "lib/batch.glsl"
// The short convolution between its two products, one thread a channel: u = b * z, y = c * (sum of taps times u of the last KERNEL positions);
// and the states that slices leave, which are u of the last KERNEL - 1 positions. What lies before a slice comes from the state that it starts
// from. A state may be written over the one that is read: so states come in a dispatch of their own, behind all rows, but where every slice
// has one row, whose thread does both.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint KERNEL = 3;
layout(constant_id = 2) const uint ROWS = 1;        // computes rows
layout(constant_id = 3) const uint STATES = 0;      // writes states; with ROWS slices have one row each
layout(constant_id = 4) const uint HAS_HALF = 0;    // y is f16
ARGUMENTS {
    uint64_t gates;     // f32 [rows, 3 * width]: b, c, z
    uint64_t taps;      // f32 [KERNEL, width]
    uint64_t states;    // f32 [pages, KERNEL - 1, width]
    uint64_t batch;     // rows
    uint64_t slices;    // a SliceStates for each slice, then the states that they write
    uint64_t y;         // [rows, width]
    uint width;
} p;

const uint NONE = 0xffffffff;
struct SliceStates {
    uint first;     // row of the batch
    uint before;    // page of the state before it, or NONE
    uint at;        // index of the first state that it writes
    uint count;     // how many
};
layout(buffer_reference, scalar, buffer_reference_align = 4) readonly buffer Slices { SliceStates v[]; };
// Written states: rows of the slice that have gone into it, and the page. Indices count from the start of the slices.
layout(buffer_reference, scalar, buffer_reference_align = 4) readonly buffer Writes { uvec2 v[]; };

// u of row `t` of a slice; rows below 0 lie before it.
float u(SliceStates s, int t, uint c) {
    if (t >= 0) {
        uint at = (s.first + uint(t)) * 3 * p.width + c;
        return F32(p.gates).v[at] * F32(p.gates).v[at + 2 * p.width];
    }
    if (s.before == NONE) return 0.0;
    return F32(p.states).v[(s.before * (KERNEL - 1) + uint(t + int(KERNEL) - 1)) * p.width + c];
}

void main() {
    uint c = gl_WorkGroupID.x * gl_WorkGroupSize.x + gl_LocalInvocationID.x, row = gl_WorkGroupID.y;
    if (c >= p.width) return;
    if (ROWS != 0) {
        SliceStates s = Slices(p.slices).v[Rows(p.batch).v[row].slice];
        int first = int(row - s.first) - int(KERNEL) + 1;
        float sum = 0.0;
        for (uint i = 0; i < KERNEL; i++)
            sum = fma(F32(p.taps).v[i * p.width + c], u(s, first + int(i), c), sum);
        float y = F32(p.gates).v[(row * 3 + 1) * p.width + c] * sum;
        uint at = row * p.width + c;
        if (HAS_HALF != 0) F16(p.y).v[at] = float16_t(clamp(y, -65504.0, 65504.0));
        else F32(p.y).v[at] = y;
    }
    if (STATES == 0) return;
    SliceStates s = Slices(p.slices).v[row];
    for (uint w = 0; w < s.count; w++) {
        uvec2 write = Writes(p.slices).v[s.at + w];
        // In the order of positions: what is read lies behind what is written, also where both are one state.
        for (uint i = 0; i + 1 < KERNEL; i++) {
            float v = u(s, int(write.x + i) - int(KERNEL) + 1, c);
            F32(p.states).v[(write.y * (KERNEL - 1) + i) * p.width + c] = v;
        }
    }
}
