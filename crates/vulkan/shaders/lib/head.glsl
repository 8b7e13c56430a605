// One head of q, k or v finished by one subgroup: bias, RMS norm, RoPE. The result goes to the shared array `values`, which the including
// shader declares; a barrier must come before it is read. Every kernel that finishes heads does it here, so that all get the same bits.
layout(constant_id = 13) const uint SUBGROUP = 32;
layout(constant_id = 14) const uint HEADS = 1;
layout(constant_id = 15) const uint NEOX = 0;
layout(constant_id = 16) const uint QK_NORM = 0;
layout(constant_id = 17) const uint HAS_BIAS = 0;

layout(buffer_reference, scalar, buffer_reference_align = 8) readonly buffer F32x2 { vec2 v[]; };

// Where pair i of a head lies. Pairs past the turned ones cover the rest of the head.
uvec2 pair_at(uint i, uint pairs) {
    return NEOX != 0 && i < pairs ? uvec2(i, i + pairs) : uvec2(2 * i, 2 * i + 1);
}

// `x` and `bias` are the head's own addresses, `turns` the position's. v is neither normed nor turned.
void finish_head(uint64_t x, uint64_t bias, uint64_t norm, uint64_t turns, bool is_v, uint pairs, float eps, float scale, uint to) {
    const uint EACH = (HEAD_DIM / 2 + SUBGROUP - 1) / SUBGROUP;
    vec2 v[EACH];
    vec2 turn[EACH];
    float sum = 0.0;
    [[unroll]] for (uint j = 0; j < EACH; j++) {
        uint i = j * SUBGROUP + gl_SubgroupInvocationID;
        v[j] = vec2(0.0);
        turn[j] = vec2(1.0, 0.0);
        if (i < HEAD_DIM / 2) {
            uvec2 at = pair_at(i, pairs);
            v[j] = vec2(F32(x).v[at.x], F32(x).v[at.y]);
            if (HAS_BIAS != 0) v[j] += vec2(F32(bias).v[at.x], F32(bias).v[at.y]);
            if (!is_v && i < pairs) turn[j] = F32x2(turns).v[i];
        }
        precise float square = v[j].x * v[j].x + v[j].y * v[j].y;
        sum += square;
    }
    if (QK_NORM != 0 && !is_v) {
        float inverse = inversesqrt(subgroupAdd(sum) / float(HEAD_DIM) + eps);
        [[unroll]] for (uint j = 0; j < EACH; j++) {
            uint i = j * SUBGROUP + gl_SubgroupInvocationID;
            if (i < HEAD_DIM / 2) {
                uvec2 at = pair_at(i, pairs);
                v[j] *= inverse * vec2(F32(norm).v[at.x], F32(norm).v[at.y]);
            }
        }
    }
    [[unroll]] for (uint j = 0; j < EACH; j++) {
        uint i = j * SUBGROUP + gl_SubgroupInvocationID;
        if (i >= HEAD_DIM / 2) continue;
        uvec2 at = pair_at(i, pairs);
        precise vec2 turned = v[j];
        if (!is_v && i < pairs)
            turned = vec2(v[j].x * turn[j].x - v[j].y * turn[j].y, v[j].x * turn[j].y + v[j].y * turn[j].x);
        values[to + at.x] = turned.x * scale;
        values[to + at.y] = turned.y * scale;
    }
}

// Stores the head at values[from ..] as one token of a page, by one subgroup, and leaves in `values` what the cache then holds.
void cache_head(uint64_t page, uint token, uint from, bool stored) {
    for (uint w = gl_SubgroupInvocationID; w < HEAD_DIM / 4; w += SUBGROUP) {
        vec4 x = vec4(values[from + 4 * w], values[from + 4 * w + 1], values[from + 4 * w + 2], values[from + 4 * w + 3]);
#if defined(KV_Q8_0)
        // Eight lanes hold the 32 values of a block; blocks never straddle heads, so the eight are active together.
        vec4 size = abs(x);
        float most = max(max(size.x, size.y), max(size.z, size.w));
        [[unroll]] for (uint m = 1; m < 8; m *= 2) most = max(most, subgroupShuffleXor(most, m));
        float16_t d = float16_t(most / 127.0);
        ivec4 r = ivec4(roundEven(x * (most > 0.0 ? 127.0 / most : 0.0)));
        if (stored) {
            U32(page).v[token * (HEAD_DIM / 4) + w] =
                uint(r.x & 0xFF) | (uint(r.y & 0xFF) << 8) | (uint(r.z & 0xFF) << 16) | (uint(r.w & 0xFF) << 24);
            if (w % 8 == 0) F16(page + PAGE_TOKENS * HEAD_DIM).v[token * (HEAD_DIM / 32) + w / 8] = d;
        }
        x = float(d) * vec4(r);
#elif defined(KV_F16)
        f16vec4 h = f16vec4(x);
        if (stored) U32x2(page).v[token * (HEAD_DIM / 4) + w] = uvec2(packFloat2x16(h.xy), packFloat2x16(h.zw));
        x = vec4(h);
#else
        if (stored) F32x4(page).v[token * (HEAD_DIM / 4) + w] = x;
#endif
        [[unroll]] for (uint e = 0; e < 4; e++) values[from + 4 * w + e] = x[e];
    }
}
