/* What ATen has several calls for, in one: float32. Compiled by the machine that runs it; see cpu_native.py. */

#include "kernels.h"

enum {
    GRAIN = 32768, /* of elements read, from which a kernel is shared among threads, as ATen shares pointwise ops */
    FAR = 4096,    /* elements of a weight */
};

/* The threads of the OpenMP that PyTorch runs on, so that no two pools wait for each other. */
static int (*threads_at_most)(void), (*this_thread)(void), (*threads_here)(void);
static void (*in_parallel)(void (*)(void *), void *, unsigned, unsigned);

void use_threads(void *at_most, void *this, void *here, void *parallel) {
    threads_at_most = at_most, this_thread = this, threads_here = here, in_parallel = parallel;
}

static void share(void *of) {
    const call *c = of;
    i64 me = this_thread(), all = threads_here();
    c->part(c, c->items * me / all, c->items * (me + 1) / all, c->work + me * c->given[1]);
}

void run_gaudicc_kernel(call *c, i64 items, i64 read) {
    for (const i64 *offset = c->given + 2; offset < c->s; offset++) c->in[offset - c->given - 2] += *offset;
    c->items = items;
    i64 threads = read < GRAIN || !in_parallel ? 1 : threads_at_most();
    threads = threads < c->given[0] ? threads : c->given[0];
    if (threads > 1) in_parallel(share, c, (unsigned)threads, 0);
    else c->part(c, 0, items, c->work);
}

static void normalise(const call *c, i64 first, i64 last, float *work) {
    (void)work;
    i64 width = c->s[1];
    const float *x = c->in[0] + first * width, *gain = c->in[1];
    float *y = c->y + first * width;
    for (i64 row = first; row < last; row++, x += width, y += width) {
        double squares = 0;
        for (i64 i = 0; i < width; i++) squares += (double)x[i] * x[i];
        float factor = (float)(1.0 / sqrt(squares / (double)width + c->number));
        for (i64 i = 0; i < width; i++) y[i] = x[i] * factor * gain[i];
    }
}

/* y = x / sqrt(mean(x ** 2) + eps) * gain. sizes: rows, width. */
void rms_norm(const float *x, const float *gain, float *y, float *work, const i64 *given, double eps) {
    call c = {normalise, {x, gain}, 0, y, work, given, given + 4, eps, 0};
    run_gaudicc_kernel(&c, c.s[0], c.s[0] * c.s[1]);
}

/* The compiler reads whole vectors only of what `restrict` says is apart: a third of the time (measured on CPU). */
static inline void turn_row(const float *restrict from, const float *restrict cosine, const float *restrict sine,
                            float *restrict to, i64 half) {
    for (i64 i = 0; i < half; i++) {
        float low = from[i], high = from[i + half];
        to[i] = low * cosine[i] - high * sine[i];
        to[i + half] = high * cosine[i + half] + low * sine[i + half];
    }
}

static void turn(const call *c, i64 first, i64 last, float *work) {
    (void)work;
    const i64 *s = c->s;
    for (i64 item = first; item < last; item++) {
        i64 l = item % s[2], h = item / s[2] % s[1], b = item / s[2] / s[1];
        const float *from = c->in[0] + b * s[4] + h * s[5] + l * s[6];
        const float *cosine = c->in[1] + b * s[10] + l * s[11], *sine = c->in[2] + b * s[12] + l * s[13];
        turn_row(from, cosine, sine, c->y + b * s[7] + h * s[8] + l * s[9], s[3] / 2);
    }
}

/* y = x * cos + cat(-x[half:], x[:half]) * sin.
   sizes: batch, heads, length, width; strides of the first three dims of x and y, of batch and length of cos and sin. */
void rotate(const float *x, const float *cosine, const float *sine, float *y, float *work, const i64 *given) {
    call c = {turn, {x, cosine, sine}, 0, y, work, given, given + 5, 0, 0};
    i64 items = c.s[0] * c.s[1] * c.s[2];
    run_gaudicc_kernel(&c, items, items * c.s[3]);
}

static void gate_rows(const call *c, i64 first, i64 last, float *work) {
    (void)work;
    i64 width = c->s[1];
    for (i64 row = first; row < last; row++) {
        const float *gate = c->in[0] + row * c->s[2], *up = c->in[1] + row * c->s[3];
        float *y = c->y + row * width;
        for (i64 i = 0; i < width; i++) y[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
    }
}

/* y = silu(gate) * up. sizes: rows, width, row strides of gate and up. */
void gated(const float *gate, const float *up, float *y, float *work, const i64 *given) {
    call c = {gate_rows, {gate, up}, 0, y, work, given, given + 4, 0, 0};
    run_gaudicc_kernel(&c, c.s[0], c.s[0] * c.s[1]);
}

static void place_rows(const call *c, i64 first, i64 last, float *work) {
    (void)work;
    const i64 *s = c->s;
    size_t bytes = (size_t)s[3] * sizeof(float);
    for (i64 row = first; row < last; row++) {
        i64 k = row % s[2], j = row / s[2] % s[1], i = row / s[2] / s[1];
        memcpy(c->y + c->places[row] * s[7], c->in[2] + i * s[4] + j * s[5] + k * s[6], bytes);
    }
}

/* y[places[row]] = row of x, in place; the places lie in y. sizes: three dims of rows, width; strides of x, and of a row of y. */
void store(float *y, const i64 *places, const float *x, float *work, const i64 *given) {
    call c = {place_rows, {0, 0, x}, places, y, work, given, given + 5, 0, 0};
    i64 rows = c.s[0] * c.s[1] * c.s[2];
    run_gaudicc_kernel(&c, rows, rows * c.s[3]);
}

static inline float total(vector of) {
    float part[LANES];
    memcpy(part, &of, sizeof part);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
}

/* Sums of products of four rows of a weight (or one) and a vector; from memory a fifth faster for what is asked for (measured
   on CPU). */
#define DOTS(name, rows)                                                                                   \
    static inline void name(const float *weight, i64 apart, const float *x, i64 width, const float *added, float *y) { \
        vector sum[rows];                                                                                  \
        memset(sum, 0, sizeof sum);                                                                        \
        for (i64 i = 0; i < width; i += LANES)                                                             \
            for (int r = 0; r < rows; r++) {                                                               \
                __builtin_prefetch(weight + r * apart + i + FAR);                                          \
                sum[r] += *(const vector *)(weight + r * apart + i) * *(const vector *)(x + i);            \
            }                                                                                              \
        for (int r = 0; r < rows; r++) y[r] = total(sum[r]) + (added ? added[r] : 0.0f);                   \
    }
DOTS(dots_4, 4)
DOTS(dots_1, 1)

static void weigh_rows(const call *c, i64 first, i64 last, float *work) {
    (void)work;
    i64 rows = c->s[0], width = c->s[1], apart = c->s[2];
    for (i64 row = 4 * first, end = 4 * last < rows ? 4 * last : rows; row < end; row += 4) {
        const float *weight = c->in[0] + row * apart, *added = c->in[2] ? c->in[2] + row : 0;
        if (row + 4 <= end) dots_4(weight, apart, c->in[1], width, added, c->y + row);
        else
            for (i64 r = 0; r < end - row; r++)
                dots_1(weight + r * apart, 0, c->in[1], width, added ? added + r : 0, c->y + row + r);
    }
}

/* y = weight x. sizes: rows, width (in whole vectors), row stride of weight. */
void weigh(const float *weight, const float *x, float *y, float *work, const i64 *given) {
    call c = {weigh_rows, {weight, x}, 0, y, work, given, given + 4, 0, 0};
    run_gaudicc_kernel(&c, (c.s[0] + 3) / 4, c.s[0] * c.s[1]);
}

/* y = weight x + added. sizes as above. */
void weigh_add(const float *weight, const float *x, const float *added, float *y, float *work, const i64 *given) {
    call c = {weigh_rows, {weight, x, added}, 0, y, work, given, given + 5, 0, 0};
    run_gaudicc_kernel(&c, (c.s[0] + 3) / 4, c.s[0] * c.s[1]);
}
