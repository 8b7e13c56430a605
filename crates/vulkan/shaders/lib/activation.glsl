// Activation of a gated unit: 0 SiLU, 1 GELU (tanh).
float activate(float x) {
    if (ACTIVATION == 0) return x / (1.0 + exp(-x));
    float u = 0.7978845608 * (x + 0.044715 * x * x * x);
    return x / (1.0 + exp(-2.0 * u));
}
