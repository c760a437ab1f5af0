#include "cli/terms.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "cli/session.h"

bool l2c_terms_is_image(const char *word) {
    if (word[0] == '/' || strncmp(word, "./", 2) == 0 || strncmp(word, "../", 3) == 0) {
        return true;
    }
    static const char *const endings[] = { ".jpg", ".jpeg", ".png", ".webp" };
    const char *dot = strrchr(word, '.');
    for (size_t i = 0; dot != NULL && i < sizeof endings / sizeof endings[0]; i++) {
        struct stat st;
        if (strcasecmp(dot, endings[i]) == 0) {
            return stat(word, &st) == 0 && S_ISREG(st.st_mode);
        }
    }
    return false;
}

// "0.5:red" → weight 0.5, "red"; false for a word without such a beginning.
static bool split_weight(const char *word, double *weight, const char **rest) {
    if (strspn(word, "+-.0123456789") == 0) {
        return false;
    }
    char *end;
    double w = strtod(word, &end);
    if (end == word || *end != ':' || end[1] == '\0' || end[1] == ' ') {
        return false;
    }
    *weight = w;
    *rest = end + 1;
    return true;
}

void l2c_terms_fini(l2c_terms *t) {
    free(t->list);
    free(t->text);
}

static bool make_room(l2c_terms *out, const char *const *args, size_t count) {
    size_t bytes = 1;
    for (size_t i = 0; i < count; i++) {
        bytes += strlen(args[i]) + 1;
    }
    out->count = 0;
    out->list = calloc(count + 2, sizeof *out->list);
    out->text = malloc(bytes);
    return out->list != NULL && out->text != NULL;
}

int l2c_terms_parse(const l2c_command *command, l2c_terms *out, const char *const *args,
                    size_t count) {
    if (!make_room(out, args, count)) {
        return l2c_session_error(NULL, "out of memory");
    }
    char *end = out->text; // of what was copied
    double sign = 1;
    const char *pending = NULL; // an operator that waits for its word
    bool joinable = false;      // the last term is a text that stood alone
    for (size_t i = 0; i < count; i++) {
        const char *word = args[i];
        if (strcmp(word, "+") == 0 || strcmp(word, "-") == 0) {
            if (pending != NULL) {
                return l2c_options_wrong(command, "\"%s\" is followed by \"%s\"", pending, word);
            }
            pending = word;
            sign = *word == '-' ? -1 : 1;
            continue;
        }
        double weight = 1;
        bool weighted = split_weight(word, &weight, &word);
        bool image = l2c_terms_is_image(word);
        size_t bytes = strlen(word) + 1;
        memcpy(end, word, bytes);
        if (joinable && !image && !weighted && pending == NULL) {
            end[-1] = ' '; // was the end of the text before
        } else {
            out->list[out->count++] = (l2cdb_term){
                .kind = image ? L2CDB_TERM_IMAGE_FILE : L2CDB_TERM_TEXT,
                .text = end,
                .weight = sign * weight,
            };
            joinable = !image && !weighted;
        }
        end += bytes;
        pending = NULL;
        sign = 1;
    }
    if (pending != NULL) {
        return l2c_options_wrong(command, "nothing follows \"%s\"", pending);
    }
    return L2C_EXIT_DONE;
}
