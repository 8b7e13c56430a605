// Shared by every kernel: extensions, addressed buffers, subgroup helpers.
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_8bit_storage : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#extension GL_EXT_integer_dot_product : require
#extension GL_EXT_control_flow_attributes : require

// A dispatch's arguments lie in a record of their own, one after the other from its start (`src/arguments.rs`). All records of a recording
// are one uniform buffer, in which a dispatch begins at its own: so a record can be long, be rewritten without recording anew, and is read
// through the caches for constants.
#define ARGUMENTS layout(set = 0, binding = 0, std140) uniform Arguments

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer F32 { float v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 2) buffer F16 { float16_t v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer U32 { uint v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 2) buffer U16 { uint16_t v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 1) buffer U8 { uint8_t v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer U32x2 { uvec2 v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer U32x4 { uvec4 v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer F32x4 { vec4 v[]; };

// Activations quantized to 8 bits: per 32 columns 8 words of packed bytes, and beside them the scale and the packed sums
// (2 x i16) of each half, for types with minima or offsets. `q` is [rows][cols / 32][8], `meta` is [rows][cols / 32].
struct QuantizedMeta { float scale; uint sums; };
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Meta { QuantizedMeta v[]; };

int dot4(uint a, uint b) { return dotPacked4x8EXT(int(a), int(b)); }
vec2 unpack_sums(uint packed) { return vec2(float(int(packed << 16) >> 16), float(int(packed) >> 16)); }
