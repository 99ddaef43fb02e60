/* backends: plain TCP servers on 127.0.0.1 to stand behind a proxy under test.
 *
 *   backends PORT      echo on PORT, sink on PORT+1 (answers one byte when it sees "END!"),
 *                      source on PORT+2 (reads a 20-digit byte count, then sends that many bytes).
 *
 * A TLS record at the very start of a connection is read and dropped: a proxy that passes TLS through can then be
 * measured with a ClientHello in front and plain bytes behind it, without the cost of TLS at both ends.
 *
 * Build: cc -O2 -o backends backends.c -lpthread
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum kind { ECHO, SINK, SOURCE };
struct job { int fd; enum kind kind; };

static int skip_hello(int fd) {
    unsigned char head[5];
    if (recv(fd, head, 1, MSG_PEEK) != 1) return -1;
    if (head[0] != 22) return 0;
    if (recv(fd, head, 5, MSG_WAITALL) != 5) return -1;
    char rest[65536];
    long length = head[3] << 8 | head[4];
    return recv(fd, rest, length, MSG_WAITALL) == length ? 0 : -1;
}

static void *serve(void *arg) {
    struct job job = *(struct job *)arg;
    free(arg);
    size_t room = job.kind == ECHO ? 4096 : 1 << 18;
    char *buffer = malloc(room);
    long n;
    int on = 1;
    setsockopt(job.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (skip_hello(job.fd)) {
        close(job.fd);
        free(buffer);
        return NULL;
    }
    if (job.kind == ECHO) {
        while ((n = read(job.fd, buffer, room)) > 0 && write(job.fd, buffer, n) == n) {}
    } else if (job.kind == SINK) {
        while ((n = read(job.fd, buffer, room)) > 0)
            if (n >= 4 && !memcmp(buffer + n - 4, "END!", 4) && write(job.fd, "k", 1) != 1) break;
    } else if ((n = read(job.fd, buffer, 63)) > 0) {
        buffer[n] = 0;
        long left = atol(buffer);
        memset(buffer, 'y', room);
        while (left > 0 && (n = write(job.fd, buffer, left < 65536 ? left : 65536)) > 0) left -= n;
    }
    close(job.fd);
    free(buffer);
    return NULL;
}

static void *accepting(void *arg) {
    struct job *listener = arg;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&small, 131072);
    for (;;) {
        int fd = accept(listener->fd, NULL, NULL);
        if (fd < 0) continue;
        struct job *job = malloc(sizeof *job);
        *job = (struct job){fd, listener->kind};
        pthread_t id;
        if (pthread_create(&id, &small, serve, job)) close(fd), free(job);
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: backends PORT\n"), 2;
    pthread_t id;
    for (int kind = ECHO; kind <= SOURCE; kind++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]) + kind), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        if (bind(fd, (void *)&a, sizeof a) || listen(fd, 4096)) return perror("backends"), 1;
        struct job *job = malloc(sizeof *job);
        *job = (struct job){fd, kind};
        pthread_create(&id, NULL, accepting, job);
    }
    pthread_join(id, NULL);
}
