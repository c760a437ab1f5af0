/* JSON reading; see json.h. */
#include "engine/base/json.h"

#include "engine/base/file.h"

l2cdb_status l2c_json_parse(json_t **out, const char *text, size_t n, const char *what,
                            l2cdb_error *err) {
    json_error_t e;
    *out = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
    if (*out == NULL) {
        if (json_error_code(&e) == json_error_out_of_memory) {
            return l2c_fail_nomem(err, n);
        }
        l2c_fail(err, L2CDB_E_FORMAT, "%s is not valid JSON: %s (line %d, column %d)", what, e.text,
                 e.line, e.column);
        if (err != NULL) {
            err->offset = e.position;
        }
        return L2CDB_E_FORMAT;
    }
    return L2CDB_OK;
}

l2cdb_status l2c_json_read(json_t **out, const char *path, size_t size_max, l2cdb_error *err) {
    *out = NULL;
    l2c_buf text;
    l2c_buf_init(&text);
    l2cdb_status rc = l2c_file_read(&text, path, size_max, err);
    if (rc == L2CDB_OK) {
        rc = l2c_json_parse(out, text.data, text.size, path, err);
    }
    l2c_buf_fini(&text);
    return rc;
}

static const char *type_name(const json_t *v) {
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "nothing";
}

/* The member, or NULL with *rc set: OK if it may be absent, E_FORMAT if not. */
static const json_t *member(const json_t *o, const char *key, bool required, const char *what,
                            l2cdb_status *rc, l2cdb_error *err) {
    *rc = L2CDB_OK;
    if (!json_is_object(o)) {
        *rc = l2c_fail(err, L2CDB_E_FORMAT, "%s: expected an object, found %s", what,
                       o != NULL ? type_name(o) : "nothing");
        return NULL;
    }
    const json_t *v = json_object_get(o, key);
    if (v == NULL || json_is_null(v)) {
        if (required) {
            *rc = l2c_fail(err, L2CDB_E_FORMAT, "%s: \"%s\" is missing", what, key);
        }
        return NULL;
    }
    return v;
}

static l2cdb_status wrong(const json_t *v, const char *key, const char *wanted, const char *what,
                          l2cdb_error *err) {
    return l2c_fail(err, L2CDB_E_FORMAT, "%s: \"%s\" is %s, expected %s", what, key, type_name(v),
                    wanted);
}

l2cdb_status l2c_json_get_size(const json_t *o, const char *key, size_t *out, size_t least,
                               size_t most, bool required, const char *what, l2cdb_error *err) {
    l2cdb_status rc;
    const json_t *v = member(o, key, required, what, &rc, err);
    if (v == NULL) {
        return rc;
    }
    if (!json_is_integer(v)) {
        return wrong(v, key, "an integer", what, err);
    }
    json_int_t n = json_integer_value(v);
    if (n < 0 || (uint64_t)n < least || (uint64_t)n > most) {
        return l2c_fail(err, L2CDB_E_FORMAT, "%s: \"%s\" is %lld, expected %zu to %zu", what, key,
                        (long long)n, least, most);
    }
    *out = (size_t)n;
    return L2CDB_OK;
}

l2cdb_status l2c_json_get_double(const json_t *o, const char *key, double *out, bool required,
                                 const char *what, l2cdb_error *err) {
    l2cdb_status rc;
    const json_t *v = member(o, key, required, what, &rc, err);
    if (v == NULL) {
        return rc;
    }
    if (!json_is_number(v)) {
        return wrong(v, key, "a number", what, err);
    }
    *out = json_number_value(v);
    return L2CDB_OK;
}

l2cdb_status l2c_json_get_bool(const json_t *o, const char *key, bool *out, bool required,
                               const char *what, l2cdb_error *err) {
    l2cdb_status rc;
    const json_t *v = member(o, key, required, what, &rc, err);
    if (v == NULL) {
        return rc;
    }
    if (!json_is_boolean(v)) {
        return wrong(v, key, "true or false", what, err);
    }
    *out = json_is_true(v);
    return L2CDB_OK;
}

l2cdb_status l2c_json_get_string(const json_t *o, const char *key, const char **out, bool required,
                                 const char *what, l2cdb_error *err) {
    l2cdb_status rc;
    const json_t *v = member(o, key, required, what, &rc, err);
    if (v == NULL) {
        return rc;
    }
    if (!json_is_string(v)) {
        return wrong(v, key, "a string", what, err);
    }
    *out = json_string_value(v);
    return L2CDB_OK;
}
