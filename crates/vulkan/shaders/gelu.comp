#version 460
#include "lib/common.glsl"
#include "lib/flat.glsl"
// The exact GELU of the hidden layer of an ungated network: y = gelu(y + bias), or h = gelu(y + bias) in f16.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint HAS_HALF = 0;
ARGUMENTS {
    uint64_t y;         // f32 [rows, width]
    uint64_t bias;      // f32 [width]
    uint64_t h;         // f16 [rows, width]
    uint count, width;
} p;

// x (1 + erf(x / sqrt(2))) / 2 = max(x, 0) - |x| erfc(|x| / sqrt(2)) / 2, with Abramowitz and Stegun 7.1.26 for erfc: at most 1.5e-7 off.
float gelu(float x) {
    float z = abs(x) * 0.70710678118, t = 1.0 / (1.0 + 0.3275911 * z);
    float tail = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    return max(x, 0.0) - 0.5 * abs(x) * tail * exp(-z * z);
}

void main() {
    uint i = flat_group() * gl_WorkGroupSize.x + gl_LocalInvocationID.x;
    if (i >= p.count) return;
    float r = gelu(F32(p.y).v[i] + F32(p.bias).v[i % p.width]);
    if (HAS_HALF != 0) F16(p.h).v[i] = float16_t(clamp(r, -65504.0, 65504.0));
    else F32(p.y).v[i] = r;
}
