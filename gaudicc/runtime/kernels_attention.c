/* Attention, float32; as kernels.c. */

#include "kernels.h"

enum {
    ROWS = 8,
    AHEAD = 16, /* rows of keys */
};

/* Asks for a row of memory before it is read; attention of one token is a fifth faster so, with values asked for while the
   keys are read (measured on CPU, 256 keys from memory). */
static inline void ask_for(const float *row, i64 width) {
    for (i64 i = 0; i < width; i += 16) __builtin_prefetch(row + i);
}

static inline float dot(const float *a, const float *b, i64 width) {
    float sum = 0;
    for (i64 i = 0; i < width; i++) sum += a[i] * b[i];
    return sum;
}

static void one_query(const call *c, i64 first, i64 last, float *scores) {
    const i64 *s = c->s;
    i64 keys = s[3], width = s[4];
    for (i64 item = first; item < last; item++) {
        i64 b = item / s[1], h = item % s[1];
        const float *query = c->in[0] + b * s[5] + h * s[6];
        const float *row = c->in[1] + b * s[7] + h / s[2] * s[8], *value = c->in[2] + b * s[10] + h / s[2] * s[11];
        const float *added = c->in[3] + b * s[13] + h * s[14];
        float *to = c->y + b * s[16] + h * s[17], seen = -INFINITY, largest = -INFINITY, total = 0;
        for (i64 t = 0; t < keys; t++) {
            ask_for(row + (t + AHEAD) * s[9], width);
            ask_for(value + t * s[12], width);
            scores[t] = dot(query, row + t * s[9], width) * (float)c->number + added[t * s[15]];
        }
        for (i64 t = 0; t < keys; t++) seen = added[t * s[15]] > seen ? added[t * s[15]] : seen;
        memset(to, 0, (size_t)width * sizeof(float));
        if (seen == -INFINITY) continue;
        for (i64 t = 0; t < keys; t++) largest = scores[t] > largest ? scores[t] : largest;
        for (i64 t = 0; t < keys; t++) {
            scores[t] = exponential(scores[t] - largest);
            total += scores[t];
        }
        float share = 1.0f / total;
        i64 t = 0;
        for (; t + 4 <= keys; t += 4, value += 4 * s[12]) {
            float w0 = scores[t] * share, w1 = scores[t + 1] * share, w2 = scores[t + 2] * share, w3 = scores[t + 3] * share;
            const float *v0 = value, *v1 = v0 + s[12], *v2 = v1 + s[12], *v3 = v2 + s[12];
            for (i64 i = 0; i < width; i++) to[i] += w0 * v0[i] + w1 * v1[i] + w2 * v2[i] + w3 * v3[i];
        }
        for (; t < keys; t++, value += s[12])
            for (i64 i = 0; i < width; i++) to[i] += scores[t] * share * value[i];
    }
}

/* One query of each head over all keys; a query that sees none gives zeros. A thread works with one number a key.
   sizes: batch, heads, heads of a group, keys, width; strides of q (batch, head), k and v (batch, group, key),
   mask (batch, head, key), y (batch, head). */
void attend_one(const float *q, const float *k, const float *v, const float *mask, float *y, float *work, const i64 *given,
                double scale) {
    call c = {one_query, {q, k, v, mask}, 0, y, work, given, given + 6, scale, 0};
    i64 items = c.s[0] * c.s[1];
    run_gaudicc_kernel(&c, items, items * c.s[3] * c.s[4]);
}

/* c = a b, for ROWS rows of a, `depth` rows of b and `wide` vectors of its columns. */
#define PRODUCT(name, wide)                                                                          \
    static inline void name(const float *a, i64 lda, const float *b, i64 ldb, i64 depth, float *c, i64 ldc) { \
        vector sum[ROWS][wide];                                                                      \
        memset(sum, 0, sizeof sum);                                                                  \
        for (i64 d = 0; d < depth; d++, b += ldb)                                                    \
            for (int r = 0; r < ROWS; r++)                                                           \
                for (int j = 0; j < wide; j++) sum[r][j] += a[r * lda + d] * *(const vector *)(b + j * LANES); \
        for (int r = 0; r < ROWS; r++)                                                               \
            for (int j = 0; j < wide; j++) *(vector *)(c + r * ldc + j * LANES) = sum[r][j];         \
    }
PRODUCT(product_1, 1)
PRODUCT(product_2, 2)

static inline void product(const float *a, i64 lda, const float *b, i64 ldb, i64 depth, float *c, i64 ldc, i64 columns) {
    i64 j = 0;
    for (; j + 2 * LANES <= columns; j += 2 * LANES) product_2(a, lda, b + j, ldb, depth, c + j, ldc);
    for (; j < columns; j += LANES) product_1(a, lda, b + j, ldb, depth, c + j, ldc);
}

static void causal_rows(const call *c, i64 b, i64 h, const float *turned, float *scores) {
    const i64 *s = c->s;
    i64 tokens = s[3], width = s[4], room = s[5];
    float *queries = scores + ROWS * room, *mixed = queries + ROWS * width;
    const float *value = c->in[2] + b * s[12] + h / s[2] * s[13];
    for (i64 start = 0; start < tokens; start += ROWS) {
        i64 rows = tokens - start < ROWS ? tokens - start : ROWS, seen = start + rows;
        for (i64 r = 0; r < ROWS; r++) {
            const float *from = c->in[0] + b * s[6] + h * s[7] + (start + r) * s[8];
            for (i64 i = 0; i < width; i++) queries[r * width + i] = r < rows ? from[i] * (float)c->number : 0.0f;
        }
        product(queries, width, turned, room, width, scores, room, (seen + LANES - 1) / LANES * LANES);
        float shares[ROWS];
        for (i64 r = 0; r < ROWS; r++) {
            float *row = scores + r * room, largest = -INFINITY, total = 0;
            i64 end = r < rows ? start + r + 1 : seen;
            for (i64 t = 0; t < end; t++) largest = row[t] > largest ? row[t] : largest;
            if (largest == -INFINITY) largest = 0; /* zeros, as PyTorch's kernel gives; NaN if a score is */
            for (i64 t = 0; t < end; t++) {
                row[t] = exponential(row[t] - largest);
                total += row[t];
            }
            for (i64 t = end; t < seen; t++) row[t] = 0;
            shares[r] = total == 0.0f ? 0.0f : 1.0f / total;
        }
        product(scores, room, value, s[14], seen, mixed, width, width);
        for (i64 r = 0; r < rows; r++) {
            float *to = c->y + b * s[15] + h * s[16] + (start + r) * s[17];
            for (i64 i = 0; i < width; i++) to[i] = mixed[r * width + i] * shares[r];
        }
    }
}

static void causal_heads(const call *c, i64 first, i64 last, float *turned) {
    const i64 *s = c->s;
    i64 tokens = s[3], width = s[4], room = s[5];
    for (i64 item = first; item < last; item++) {
        i64 b = item / s[1], h = item % s[1];
        const float *key = c->in[1] + b * s[9] + h / s[2] * s[10];
        if (item == first || h % s[2] == 0)
            for (i64 t = 0; t < room; t++)
                for (i64 i = 0; i < width; i++) turned[i * room + t] = t < tokens ? key[t * s[11] + i] : 0.0f;
        causal_rows(c, b, h, turned, turned + width * room);
    }
}

/* As many queries as keys, each of which sees those up to its own: ROWS queries at a time, whose scores are one product with
   the turned keys, and whose results are one with the values. Rows of the turned keys are an odd number of vectors apart, so
   that they do not share a set of the cache.
   sizes: batch, heads, heads of a group, tokens, width (in whole vectors), room; strides of q, k, v and y (batch, head, token). */
void attend_causal(const float *q, const float *k, const float *v, float *y, float *work, const i64 *given, double scale) {
    call c = {causal_heads, {q, k, v}, 0, y, work, given, given + 5, scale, 0};
    i64 items = c.s[0] * c.s[1];
    run_gaudicc_kernel(&c, items, items * c.s[3] * c.s[4] * 2);
}
