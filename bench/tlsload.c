/* tlsload: a TLS load generator that offers one ALPN name and one SNI.
 *
 *   tlsload MODE PORT ALPN SNI THREADS COUNT [SIZE]
 *
 *   hs    COUNT connections in all: full handshake, "ping" out, the echo back, close.  SIZE unused.
 *   pp    COUNT round trips of SIZE bytes in all, over THREADS connections, against an echo backend.
 *   up    COUNT bytes in all to a sink backend, one connection per thread.
 *   down  COUNT bytes in all from a source backend, one connection per thread.
 *   hold  COUNT connections, each echoed once, then held open for SIZE seconds; prints "holding" when all are open.
 *
 * Environment: CERT, KEY   client certificate and key (PEM) for mutual TLS
 *              RAW=1       no TLS at all (the floor)
 *              HELLO=1     one ClientHello, then plain bytes: for proxies that pass TLS through untouched
 *              TLS12=1     at most TLS 1.2
 * Prints one line: the rate, and p50/p99 for hs and pp.  Exits non-zero on any short or failed connection.
 * Build: cc -O2 -o tlsload tlsload.c -lssl -lcrypto -lpthread
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static SSL_CTX *ctx;
static const char *mode, *alpn, *sni;
static int port, threads, raw, hello;
static long count, size, next;
static double *latency;

struct peer { int fd; SSL *ssl; };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *why) {
    fprintf(stderr, "tlsload: %s\n", why);
    ERR_print_errors_fp(stderr);
    exit(1);
}

static struct peer dial(void) {
    struct peer p = {socket(AF_INET, SOCK_STREAM, 0), NULL};
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct linger reset = {1, 0}; /* no TIME_WAIT: long runs must not exhaust ports */
    int on = 1;
    setsockopt(p.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(p.fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    if (connect(p.fd, (void *)&a, sizeof a)) die("connect failed");
    if (raw) return p;
    p.ssl = SSL_new(ctx);
    SSL_set_tlsext_host_name(p.ssl, sni);
    unsigned char offer[256];
    offer[0] = strlen(alpn);
    memcpy(offer + 1, alpn, offer[0]);
    if (offer[0]) SSL_set_alpn_protos(p.ssl, offer, offer[0] + 1);
    if (hello) { /* let OpenSSL write its hello into memory, send that, and forget TLS */
        BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());
        char *bytes;
        SSL_set_bio(p.ssl, in, out);
        SSL_connect(p.ssl);
        long length = BIO_get_mem_data(out, &bytes);
        if (length <= 0 || write(p.fd, bytes, length) != length) die("hello failed");
        SSL_free(p.ssl);
        p.ssl = NULL;
        return p;
    }
    SSL_set_fd(p.ssl, p.fd);
    if (SSL_connect(p.ssl) != 1) die("handshake failed");
    return p;
}

static void hangup(struct peer p) {
    if (p.ssl) SSL_free(p.ssl);
    close(p.fd);
}

static void put(struct peer p, const char *data, long n) {
    while (n > 0) {
        int k = p.ssl ? SSL_write(p.ssl, data, n) : (int)write(p.fd, data, n);
        if (k <= 0) die("write failed");
        data += k, n -= k;
    }
}

static void get(struct peer p, char *into, long n) {
    while (n > 0) {
        int k = p.ssl ? SSL_read(p.ssl, into, n < 131072 ? n : 131072) : (int)read(p.fd, into, n < 131072 ? n : 131072);
        if (k <= 0) die("connection ended early");
        n -= k;
    }
}

static void *worker(void *unused) {
    char *buffer = malloc(1 << 20);
    memset(buffer, 'x', 1 << 20);
    if (!strcmp(mode, "hs")) {
        for (long i; (i = __sync_fetch_and_add(&next, 1)) < count;) {
            double start = now();
            struct peer p = dial();
            put(p, "ping", 4);
            get(p, buffer, 4);
            latency[i] = now() - start;
            hangup(p);
        }
    } else if (!strcmp(mode, "pp")) {
        struct peer p = dial();
        for (long i; (i = __sync_fetch_and_add(&next, 1)) < count;) {
            double start = now();
            put(p, buffer, size);
            get(p, buffer, size);
            latency[i] = now() - start;
        }
        hangup(p);
    } else if (!strcmp(mode, "up")) {
        struct peer p = dial();
        for (long left = count / threads; left > 0; left -= 65536) put(p, buffer, 65536);
        put(p, "END!", 4);
        get(p, buffer, 1); /* the sink answers one byte once it has seen END! */
        hangup(p);
    } else if (!strcmp(mode, "down")) {
        struct peer p = dial();
        char request[32];
        long want = count / threads;
        put(p, request, snprintf(request, sizeof request, "%020ld", want));
        for (long left = want; left > 0; left -= 65536) get(p, buffer, left < 65536 ? left : 65536);
        hangup(p);
    } else if (!strcmp(mode, "hold")) {
        for (long i = 0; i < count / threads; i++) {
            struct peer p = dial();
            put(p, "ping", 4);
            get(p, buffer, 4);
        }
        if (__sync_add_and_fetch(&next, 1) == threads) puts("holding"), fflush(stdout);
        sleep(size);
    } else die("unknown mode");
    return NULL;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc < 7) die("usage: tlsload MODE PORT ALPN SNI THREADS COUNT [SIZE]");
    mode = argv[1], port = atoi(argv[2]), alpn = argv[3], sni = argv[4];
    threads = atoi(argv[5]), count = atol(argv[6]), size = argc > 7 ? atol(argv[7]) : 64;
    raw = getenv("RAW") != NULL;
    hello = getenv("HELLO") != NULL;
    ctx = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    if (getenv("TLS12")) SSL_CTX_set_max_proto_version(ctx, TLS1_2_VERSION);
    if (getenv("CERT") && (SSL_CTX_use_certificate_chain_file(ctx, getenv("CERT")) != 1 ||
                           SSL_CTX_use_PrivateKey_file(ctx, getenv("KEY"), SSL_FILETYPE_PEM) != 1))
        die("cannot load CERT and KEY");
    latency = calloc(count + 1, sizeof *latency);
    pthread_t ids[512];
    double start = now();
    for (int i = 0; i < threads; i++) pthread_create(&ids[i], NULL, worker, NULL);
    for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    double took = now() - start;
    if (!strcmp(mode, "hs") || !strcmp(mode, "pp")) {
        qsort(latency, count, sizeof *latency, ascending);
        printf("%s %.0f/s p50 %.0f us p99 %.0f us\n", mode, count / took, latency[count / 2] * 1e6,
               latency[count * 99 / 100] * 1e6);
    } else if (!strcmp(mode, "hold")) printf("hold %ld connections\n", count);
    else printf("%s %.0f MB/s\n", mode, count / took / 1e6);
    return 0;
}
