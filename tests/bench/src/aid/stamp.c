/* A task that says when it ran: writes the wall clock in nanoseconds to the file it is given. */
#include <stdio.h>
#include <time.h>

int main(int argc, char **argv) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    FILE *file = argc == 2 ? fopen(argv[1], "w") : NULL;
    if (!file) return 1;
    fprintf(file, "%lld\n", t.tv_sec * 1000000000LL + t.tv_nsec);
    return fclose(file);
}
