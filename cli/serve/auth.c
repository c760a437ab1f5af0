/* Who may call: the token, the page's session cookie, and pages of other sites.
 *
 * Comparisons take the same time wherever the difference is. A browser is a deputy that any page
 * may send to 127.0.0.1, so two more things are checked even without a token: the Origin of a
 * request must be our own (or --cors), and, while there is no token, the Host must be an address,
 * "localhost" or a --host name, which a page that rebinds its own name to 127.0.0.1 cannot send. */
#include "cli/serve/server.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

bool l2c_auth_init(auth *a, const char *token) {
    unsigned char bytes[32];
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    bool good = fd >= 0 && read(fd, bytes, sizeof bytes) == (ssize_t)sizeof bytes;
    if (fd >= 0) {
        close(fd);
    }
    for (size_t i = 0; i < sizeof bytes; i++) {
        snprintf(a->session + 2 * i, 3, "%02x", bytes[i]);
    }
    a->token = token;
    return good;
}

/* The time depends on n, which the caller chose, not on the secret. */
static bool same(const char *secret, const char *given, size_t n) {
    size_t size = strlen(secret);
    volatile unsigned char diff = (unsigned char)(n != size);
    for (size_t i = 0; i < n; i++) {
        diff |= (unsigned char)(given[i] ^ secret[size > 0 ? i % size : 0]);
    }
    return diff == 0;
}

bool l2c_auth_token(const auth *a, const char *given, size_t n) {
    return a->token == NULL || same(a->token, given, n);
}

bool l2c_auth_header(const auth *a, const char *header) {
    if (a->token == NULL) {
        return true;
    }
    if (header == NULL || strncasecmp(header, "Bearer ", 7) != 0) {
        return false;
    }
    const char *given = header + 7 + strspn(header + 7, " ");
    return same(a->token, given, strlen(given));
}

bool l2c_auth_cookie(const auth *a, const char *cookie) {
    static const char name[] = "l2cdb_session=";
    for (const char *at = cookie; at != NULL && *at != '\0';) {
        at += strspn(at, "; ");
        size_t n = strcspn(at, ";");
        if (n > sizeof name - 1 && strncmp(at, name, sizeof name - 1) == 0 &&
            same(a->session, at + sizeof name - 1, n - (sizeof name - 1))) {
            return true;
        }
        at += n;
    }
    return false;
}

/* "[::1]:80", "10.0.0.1:80", "localhost" … */
static bool host_known(server *srv, const char *host) {
    size_t n = host[0] == '[' ? strcspn(host, "]") : strcspn(host, ":");
    if (host[0] == '[' || strspn(host, "0123456789.") == n) {
        return true; // an address; a name cannot be rebound to look like one
    }
    if (n == 9 && strncasecmp(host, "localhost", n) == 0) {
        return true;
    }
    for (size_t i = 0; i < srv->o.hosts_count; i++) {
        if (strlen(srv->o.hosts[i]) == n && strncasecmp(srv->o.hosts[i], host, n) == 0) {
            return true;
        }
    }
    return false;
}

static bool origin_allowed(server *srv, const char *host, const char *origin) {
    const char *cors = srv->o.cors;
    if (cors != NULL && (strcmp(cors, "*") == 0 || strcasecmp(cors, origin) == 0)) {
        return true;
    }
    const char *slashes = strstr(origin, "://");
    return slashes != NULL && host != NULL && strcasecmp(slashes + 3, host) == 0;
}

bool l2c_auth_same_site(server *srv, const char *host, const char *origin, const char *fetch_site,
                        bool navigable) {
    if (host != NULL && srv->auth.token == NULL && !host_known(srv, host)) {
        return false;
    }
    if (origin != NULL) {
        return origin_allowed(srv, host, origin);
    }
    bool foreign = fetch_site != NULL && strcasecmp(fetch_site, "cross-site") == 0;
    return !foreign || navigable || srv->o.cors != NULL;
}
