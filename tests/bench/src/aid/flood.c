/* A task that writes so many bytes in a second, ten times at once, for so many seconds; more slowly if nobody reads. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    size_t part = strtoull(argv[1], 0, 10) / 10;
    long parts = strtol(argv[2], 0, 10) * 10;
    char *text = malloc(part);
    if (!text) return 1;
    for (size_t i = 0; i < part; i++) text[i] = i % 80 == 79 ? '\n' : 'a' + i % 26;
    struct timespec due;
    clock_gettime(CLOCK_MONOTONIC, &due);
    for (long n = 0; n < parts; n++) {
        for (size_t done = 0; done < part;) {
            ssize_t wrote = write(1, text + done, part - done);
            if (wrote < 0) return 1;
            done += wrote;
        }
        due.tv_nsec += 100000000;
        if (due.tv_nsec >= 1000000000) due.tv_sec++, due.tv_nsec -= 1000000000;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
        /* What nobody read in time is not caught up with. */
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec > due.tv_sec) due = now;
    }
    return 0;
}
