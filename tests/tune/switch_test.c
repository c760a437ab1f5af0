/* Ten thousand questions while generations change places: no error, and every answer is whole, that
 * of one generation, compared with brute force over that generation's vectors. Two threads ask
 * through the handle that switches, one through a handle of its own, as another process would. */
#include <pthread.h>

#include "tests/tune/world.h"

enum { PHOTOS = 300, TEXTS = 12, K = 5, QUESTIONS = 10000, SWITCHES = 40, ASKERS = 3 };

static const char *const texts[TEXTS] = {
    "a dog on the beach",
    "two children playing football",
    "a red car",
    "a man on a bicycle",
    "people in a street",
    "a girl with a hat",
    "snow",
    "a boat at sunset",
    "ein Hund im Wasser",
    "un chien court",
    "pes na trávě",
    "a climber on a rock",
};

typedef struct answer {
    int64_t ids[K];
    float scores[K];
} answer;

static answer expected[3][2][TEXTS]; /* by generation, target, text */
static char path[4200];
static atomic_uint asked, mixed, failed, switches, seen[3];
static atomic_bool done;

static void brute_force(l2cdb *db, int64_t generation, l2c_kind kind, const float *query,
                        answer *out) {
    int64_t *ids;
    size_t n, width;
    float *v = world_vectors(db, generation, kind, &ids, &n, &width);
    for (size_t k = 0; k < K; k++) {
        out->scores[k] = -2;
        for (size_t i = 0; i < n; i++) {
            float score = 0;
            bool taken = false;
            for (size_t j = 0; j < width; j++) {
                score += v[i * width + j] * query[j];
            }
            for (size_t j = 0; j < k; j++) {
                taken = taken || out->ids[j] == ids[i];
            }
            if (!taken && score > out->scores[k]) {
                out->scores[k] = score;
                out->ids[k] = ids[i];
            }
        }
    }
    l2c_free(v);
    l2c_free(ids);
}

static void expect(l2cdb *db, int64_t generation) {
    l2cdb_error err;
    l2c_view *v;
    assert_ok(l2c_view_get_of(db, generation, &v, &err), &err);
    size_t width = v->generation.width;
    float *query = l2c_alloc(TEXTS * width, sizeof *query);
    assert_ok(l2c_encode_texts(db, v, texts, TEXTS, query, NULL, &err), &err);
    for (size_t t = 0; t < TEXTS; t++) {
        for (int kind = 0; kind < 2; kind++) {
            brute_force(db, generation, (l2c_kind)kind, query + t * width,
                        &expected[generation][kind][t]);
        }
    }
    l2c_free(query);
    l2c_view_release(db, v);
}

static bool agrees(const answer *a, const l2cdb_results *r) {
    bool ok = l2cdb_results_count(r) == K;
    for (size_t i = 0; i < K && ok; i++) {
        const l2cdb_row *row = l2cdb_results_row(r, i);
        ok = row->id == a->ids[i] && fabsf(row->score - a->scores[i]) < 1e-5f;
    }
    return ok;
}

static void ask(l2cdb *db, size_t number) {
    l2cdb_query q;
    l2cdb_query_init(&q);
    size_t t = number % TEXTS;
    q.terms = &(l2cdb_term){ .kind = L2CDB_TERM_TEXT, .text = texts[t], .weight = 1 };
    q.terms_count = 1;
    q.k = K;
    q.target = number / TEXTS % 2 == 0 ? L2CDB_IMAGES : L2CDB_CAPTIONS;
    l2cdb_results *r;
    l2cdb_error err;
    if (l2cdb_search(db, &q, &r, &err) != L2CDB_OK) {
        fprintf(stderr, "question %zu: %s\n", number, err.message);
        atomic_fetch_add(&failed, 1);
        return;
    }
    int64_t g = l2cdb_results_timings(r)->generation;
    if (g != 1 && g != 2) {
        atomic_fetch_add(&mixed, 1);
    } else {
        atomic_fetch_add(&seen[g], 1);
        atomic_fetch_add(&mixed, agrees(&expected[g][q.target][t], r) ? 0 : 1);
    }
    l2cdb_results_free(r);
    atomic_fetch_add(&asked, 1);
}

static void *asker(void *ctx) {
    l2cdb *db = ctx, *own = NULL;
    if (db == NULL) {
        db = own = world_open(path, 1);
    }
    for (size_t i = 0; !atomic_load(&done); i++) {
        ask(db, i);
    }
    l2cdb_close(own);
    return NULL;
}

static void test_switch_under_questions(void **state) {
    (void)state;
    const char *dir = test_temp_dir();
    snprintf(path, sizeof path, "%s/world.l2cdb", dir);
    l2cdb *db = world_open(path, 1);
    l2cdb_error err;
    world_add(db, 0, PHOTOS, 3);
    l2cdb_tune_options o;
    l2cdb_tune_options_init(&o);
    o.epochs = 3;
    o.lr = 1e-3;
    o.force = true;
    o.tune_image_head = true; // every vector differs
    l2cdb_tune_report report;
    assert_ok(l2cdb_tune(db, &o, &report, &err), &err);
    assert_int_equal(report.generation, 2);
    expect(db, 1);
    expect(db, 2);
    assert_memory_not_equal(expected[1], expected[2], sizeof expected[1]);

    pthread_t threads[ASKERS];
    for (size_t i = 0; i < ASKERS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, asker, i + 1 < ASKERS ? db : NULL), 0);
    }
    // The new one first by reindex, then there and back.
    while (atomic_load(&asked) < QUESTIONS || atomic_load(&switches) < SWITCHES) {
        assert_ok(atomic_load(&switches) % 3 == 0
                      ? l2cdb_reindex(db, 3 - world_active(db), NULL, NULL, &err)
                      : l2cdb_rollback(db, NULL, &err),
                  &err);
        atomic_fetch_add(&switches, 1);
    }
    atomic_store(&done, true);
    for (size_t i = 0; i < ASKERS; i++) {
        pthread_join(threads[i], NULL);
    }
    print_message("%u questions during %u switches: %u answered by generation 1, %u by 2\n",
                  atomic_load(&asked), atomic_load(&switches), atomic_load(&seen[1]),
                  atomic_load(&seen[2]));
    assert_int_equal(atomic_load(&failed), 0);
    assert_int_equal(atomic_load(&mixed), 0);
    assert_true(atomic_load(&seen[1]) > QUESTIONS / 20 && atomic_load(&seen[2]) > QUESTIONS / 20);
    l2cdb_close(db);
    char command[4300];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    assert_int_equal(system(command), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_switch_under_questions) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
