/* exp and erf in f32 for loops that compilers vectorise; included once per processor level with FN
 * (a name's suffix) and TARGET (the function attribute) defined, as layers_kernels.h is. */

/* e^x = 2^n e^r. Adding 1.5 * 2^23 rounds to the whole number n and leaves it in the low bits,
 * which become the exponent field; no call of floor, which compilers do not vectorise. Cephes-like
 * split of ln 2 in two parts. */
TARGET static inline float FN(exp)(float x) {
    const float magic = 12582912.0F;
    x = __builtin_fminf(__builtin_fmaxf(x, -87.0F), 88.0F);
    union {
        float f;
        uint32_t u;
    } shifted = { .f = x * 1.44269504F + magic }, power;
    float n = shifted.f - magic;
    float r = x - n * 0.693359375F;
    r = r + n * 2.12194440e-4F;
    float p = 1.9875691500e-4F;
    p = p * r + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    p = p * r * r + r + 1.0F;
    power.u = (shifted.u << 23) + (127U << 23);
    return p * power.f;
}

/* erf as x P(x²) / Q(x²) on [-4, 4], beyond which it is ±1 in f32. */
TARGET static inline float FN(erf)(float x) {
    x = __builtin_fminf(__builtin_fmaxf(x, -4.0F), 4.0F);
    float s = x * x;
    float p = -2.72614225801306e-10F;
    p = p * s + 2.77068142495902e-08F;
    p = p * s - 2.10102402082508e-06F;
    p = p * s - 5.69250639462346e-05F;
    p = p * s - 7.34990630326855e-04F;
    p = p * s - 2.95459980854025e-03F;
    p = p * s - 1.60960333262415e-02F;
    float q = -1.45660718464996e-05F;
    q = q * s - 2.13374055278905e-04F;
    q = q * s - 1.68282697438203e-03F;
    q = q * s - 7.37332916720468e-03F;
    q = q * s - 1.42647390514189e-02F;
    return x * p / q;
}
