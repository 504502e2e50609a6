/* The floor under every client: what an exchange takes if nothing at all is done with the replies.

   Requests are pushed as far as the socket takes them and replies are read and dropped as they come, in turn, so that
   the server always has commands waiting and room to answer, and neither side waits for ever for the other to make
   room. Every call says MSG_DONTWAIT, so that the descriptor's own blocking mode is never touched. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>

enum {
    SINK = 1 << 16,  /* stays in the second-level cache; a server writes no more than this at once */
    NUDGE_MS = 1,
};

/* How long a connection may stand still before it is taken for dead. */
int floor_patience_ms = 10000;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int must_wait(void)
{
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

/* Sleep until the socket can do something; 0, or a negative errno.

   A reply that wakes a sleeper costs the server 3 to 5 % of its time. While there is something to send, only room for
   it wakes; replies do, too, once there was none for a while: the server may read no further before they are taken. */
static int rest(int fd, int sending, int receiving)
{
    struct pollfd waiting = {fd, POLLOUT, 0};
    int ready = sending ? poll(&waiting, 1, NUDGE_MS) : 0;
    if (ready == 0) {
        waiting.events = (short)((sending ? POLLOUT : 0) | (receiving ? POLLIN : 0));
        ready = poll(&waiting, 1, floor_patience_ms);
        if (ready == 0)
            return -ETIMEDOUT;
    }
    return ready < 0 && errno != EINTR ? -errno : 0;
}

/* Send the request, read as many bytes as its replies have, and return the seconds, or a negative errno: ECONNRESET
   (the server hung up), ETIMEDOUT (nothing moved for `floor_patience_ms`), EPROTO (there are more replies than that),
   or what the socket said. After any of them the connection is out of step. */
double floor_exchange(int fd, const char *request, size_t request_size, size_t reply_size)
{
    char sink[SINK];
    size_t sent = 0, received = 0;
    double started = now();
    while (sent < request_size || received < reply_size) {
        int moved = 0;
        if (received < reply_size) {
            size_t left = reply_size - received;
            ssize_t n = recv(fd, sink, left < SINK ? left : SINK, MSG_DONTWAIT);
            if (n == 0)
                return -ECONNRESET;
            if (n < 0 && !must_wait())
                return -errno;
            if (n > 0) {
                received += (size_t)n;
                moved = 1;
            }
        }
        if (sent < request_size) {
            ssize_t n = send(fd, request + sent, request_size - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (n < 0 && !must_wait())
                return -errno;
            if (n > 0) {
                sent += (size_t)n;
                moved = 1;
            }
        }
        if (!moved) {
            int failure = rest(fd, sent < request_size, received < reply_size);
            if (failure != 0)
                return failure;
        }
    }
    double took = now() - started;
    char surplus;
    return recv(fd, &surplus, 1, MSG_DONTWAIT | MSG_PEEK) > 0 ? -EPROTO : took;
}
