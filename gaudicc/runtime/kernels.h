/* What kernels.c and kernels_attention.c share.

   Every kernel takes its operands, its result, memory to work in, sizes, and a number. What it is given as sizes begins with how
   many threads there is memory for, how much of it each has, and where each operand starts; then come its own sizes and strides,
   in elements. The last dim of every tensor is contiguous. */

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef int64_t i64;

enum { LANES = 16 };
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));

typedef struct call {
    void (*part)(const struct call *, i64 first, i64 last, float *work); /* does some of the items */
    const float *in[4];
    const i64 *places; /* rows of y */
    float *y, *work;
    const i64 *given, *s; /* all sizes, the kernel's own */
    double number;
    i64 items;
} call;

/* Does all items of a call, shared among threads where `read`, the elements it reads, are many. */
void run_gaudicc_kernel(call *c, i64 items, i64 read);

/* exp(x) within 2 units in the last place; 0 below -87.7, infinite above 88.4, NaN for NaN. */
static inline float exponential(float x) {
    x = x < -88.0f ? -88.0f : x;
    x = x > 89.0f ? 89.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691e-4f;
    p = p * r + 1.3981999e-3f;
    p = p * r + 8.3334519e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 5.0000001e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}
