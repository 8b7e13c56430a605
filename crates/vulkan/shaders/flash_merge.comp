#version 460
#include "lib/common.glsl"
#include "lib/flash.glsl"
// Puts the splits of a tile's keys together, in order: one workgroup a (head, row of the tile, tile). Tiles that were not split are done.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint HEAD_DIM = 64;
ARGUMENTS {
    uint64_t partial;   // f32 [(row, split), heads, HEAD_DIM + 2]
    uint64_t tiles;
    uint64_t y;         // f16 [rows, heads * HEAD_DIM]
    uint window;
} p;

void main() {
    Tile tile = Tiles(p.tiles).v[gl_WorkGroupID.z];
    uint head = gl_WorkGroupID.x, heads = gl_NumWorkGroups.x, row = gl_WorkGroupID.y, record = HEAD_DIM + 2;
    if (tile.span == 0 || row >= tile.rows) return;
    uint last = tile.start + row + 1;
    uint first = p.window != 0 && last > p.window ? last - p.window : 0;
    uint begin = first / tile.span, end = (last + tile.span - 1) / tile.span;
    uint base = ((tile.partial + row * tile_splits(tile)) * heads + head) * record, stride = heads * record;
    F32 x = F32(p.partial);
    float most = -1.0e30, sum = 0.0;
    for (uint s = begin; s < end; s++) most = max(most, x.v[base + s * stride + HEAD_DIM]);
    for (uint s = begin; s < end; s++)
        sum += exp2(x.v[base + s * stride + HEAD_DIM] - most) * x.v[base + s * stride + HEAD_DIM + 1];
    for (uint i = gl_LocalInvocationID.x; i < HEAD_DIM; i += gl_WorkGroupSize.x) {
        float o = 0.0;
        for (uint s = begin; s < end; s++)
            o += exp2(x.v[base + s * stride + HEAD_DIM] - most) * x.v[base + s * stride + i];
        o /= sum;
        uint64_t to = uint64_t((tile.row + row) * heads + head) * HEAD_DIM + i;
        F16(p.y + 2 * to).v[0] = float16_t(clamp(o, -65504.0, 65504.0));
    }
}
