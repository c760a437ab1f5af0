/* Attention in tiles of queries; see attention.h.
 *
 * A task is one key/value head of one sequence, or a part of its queries when there are few of
 * them. It turns its keys once into [D, T] so that a row of scores is a sum of whole vectors, and
 * copies its values beside them; both then stay in the core's cache for all its tiles of queries. A
 * tile is QUERY_ROWS rows against all T keys: scores, softmax in f32 with the division left for the
 * end, times values. Source: Dao et al. 2022 for the tiling; T is at most a few thousand here, so a
 * whole row of scores fits and the running maximum of that paper is not needed. */
#include "encoders/attention.h"

#include <math.h>
#include <string.h>

#include "encoders/gemm.h"
#include "encoders/layers.h"

enum { QUERY_ROWS = 48, TASKS_PER_THREAD = 4 };

typedef struct job {
    const l2c_attention_args *a;
    size_t parts; /* of the queries of one sequence and key/value head */
    bool tiles;
} job;

static size_t round_up(size_t n, size_t to) {
    return (n + to - 1) / to * to;
}

/* k rows → [D, T_padded] with zeros past T. */
static void turn_keys(float *out, const float *k, size_t stride, size_t T, size_t T_padded,
                      size_t D) {
    for (size_t d = 0; d < D; d++) {
        float *to = out + d * T_padded;
        for (size_t t = 0; t < T; t++) {
            to[t] = k[t * stride + d];
        }
        memset(to + T, 0, (T_padded - T) * sizeof *to);
    }
}

static void copy_values(float *out, const float *v, size_t stride, size_t T, size_t D,
                        size_t D_padded) {
    for (size_t t = 0; t < T; t++) {
        memcpy(out + t * D_padded, v + t * stride, D * sizeof *out);
        memset(out + t * D_padded + D, 0, (D_padded - D) * sizeof *out);
    }
}

typedef struct tile {
    float *q, *scores, *out;
    const float *keys, *values;
    size_t T, T_padded, D, D_padded;
} tile;

static void run_tile(const l2c_attention_args *a, const tile *t, size_t head, size_t row,
                     size_t rows) {
    const float scale = 1.0F / sqrtf((float)t->D);
    for (size_t r = 0; r < rows; r++) {
        const float *q = a->q + (row + r) * a->q_stride + head * t->D;
        for (size_t d = 0; d < t->D; d++) {
            t->q[r * t->D + d] = scale * q[d];
        }
    }
    l2c_tile_product(t->scores, t->T_padded, t->q, t->D, t->keys, t->T_padded, rows, t->T_padded,
                     t->D);
    float sums[QUERY_ROWS];
    for (size_t r = 0; r < rows; r++) {
        sums[r] = l2c_softmax_exp(t->scores + r * t->T_padded, t->T);
    }
    l2c_tile_product(t->out, t->D_padded, t->scores, t->T_padded, t->values, t->D_padded, rows,
                     t->D_padded, t->T);
    for (size_t r = 0; r < rows; r++) {
        float *out = a->out + (row + r) * a->out_stride + head * t->D;
        float inverse = 1.0F / sums[r];
        for (size_t d = 0; d < t->D; d++) {
            out[d] = t->out[r * t->D_padded + d] * inverse;
        }
    }
}

static l2cdb_status run_part(const l2c_attention_args *a, const l2c_attention_part *p,
                             l2c_arena *arena, l2cdb_error *err) {
    tile t = { .T = p->kv_rows, .D = a->head_dim };
    t.T_padded = round_up(t.T, 32);
    t.D_padded = round_up(t.D, 32);
    float *keys = l2c_arena_alloc(arena, t.D * t.T_padded, sizeof *keys);
    float *values = l2c_arena_alloc(arena, t.T * t.D_padded, sizeof *values);
    t.q = l2c_arena_alloc(arena, QUERY_ROWS * t.D, sizeof *t.q);
    t.scores = l2c_arena_alloc(arena, QUERY_ROWS * t.T_padded, sizeof *t.scores);
    t.out = l2c_arena_alloc(arena, QUERY_ROWS * t.D_padded, sizeof *t.out);
    if (keys == NULL || values == NULL || t.q == NULL || t.scores == NULL || t.out == NULL) {
        return l2c_fail_nomem(err, (t.D + t.D_padded) * t.T_padded * sizeof(float));
    }
    turn_keys(keys, a->k + p->kv_first * a->k_stride + p->kv_head * t.D, a->k_stride, t.T,
              t.T_padded, t.D);
    copy_values(values, a->v + p->kv_first * a->v_stride + p->kv_head * t.D, a->v_stride, t.T, t.D,
                t.D_padded);
    t.keys = keys;
    t.values = values;
    size_t group = a->heads / a->kv_heads;
    for (size_t h = p->kv_head * group; h < (p->kv_head + 1) * group; h++) {
        for (size_t r = 0; r < p->q_rows; r += QUERY_ROWS) {
            size_t rows = p->q_rows - r < QUERY_ROWS ? p->q_rows - r : QUERY_ROWS;
            run_tile(a, &t, h, p->q_first + r, rows);
        }
    }
    return L2CDB_OK;
}

static l2cdb_status run_task(void *ctx, size_t task, l2c_arena *arena, l2cdb_error *err) {
    const job *j = ctx;
    const l2c_attention_args *a = j->a;
    size_t slice = task % j->parts, s = task / j->parts / a->kv_heads;
    const size_t *kv_offset = a->kv_offset != NULL ? a->kv_offset : a->q_offset;
    size_t q_rows = a->q_offset[s + 1] - a->q_offset[s];
    size_t begin = slice * q_rows / j->parts, end = (slice + 1) * q_rows / j->parts;
    l2c_attention_part p = { .kv_head = task / j->parts % a->kv_heads,
                             .kv_first = kv_offset[s],
                             .kv_rows = kv_offset[s + 1] - kv_offset[s],
                             .q_first = a->q_offset[s] + begin,
                             .q_rows = end - begin };
    if (p.q_rows == 0) {
        return L2CDB_OK;
    }
    l2c_arena_mark mark = l2c_arena_get_mark(arena);
    l2cdb_status rc = j->tiles ? l2c_attention_amx(a, &p, arena, err) : run_part(a, &p, arena, err);
    l2c_arena_reset(arena, mark);
    return rc;
}

l2cdb_status l2c_attention(const l2c_attention_args *a, l2c_workspace *ws, l2cdb_error *err) {
    job j = { .a = a, .parts = 1 };
    j.tiles = l2c_gemm_default() == L2C_BACKEND_AMX;
    size_t tasks = a->sequences * a->kv_heads;
    if (ws->threads > 1 && tasks < TASKS_PER_THREAD * ws->threads) {
        j.parts = TASKS_PER_THREAD * ws->threads / tasks;
    }
    return l2c_deal_tasks(ws, tasks * j.parts, run_task, &j, err);
}
