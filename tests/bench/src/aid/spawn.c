/* The limit: how fast this machine starts and reaps processes, with nothing around it.
   usage: spawn COUNT PARALLEL PROGRAM; prints processes per second. */
#define _GNU_SOURCE
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* One lane: one process at a time. */
static int lane(long count, char *program) {
    char *argv[] = {program, NULL};
    for (long i = 0; i < count; i++) {
        pid_t pid;
        int status;
        if (posix_spawn(&pid, program, NULL, NULL, argv, environ) != 0) return 1;
        if (waitpid(pid, &status, 0) != pid || status != 0) return 1;
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    long count = atol(argv[1]), lanes = atol(argv[2]);
    if (count < 1 || lanes < 1) return 2;
    double began = now();
    for (long i = 0; i < lanes; i++) {
        pid_t pid = fork();
        if (pid < 0) return 1;
        if (pid == 0) _exit(lane(count / lanes, argv[3]));
    }
    for (long i = 0; i < lanes; i++) {
        int status;
        if (wait(&status) < 0 || status != 0) return 1;
    }
    printf("%.1f\n", count / lanes * lanes / (now() - began));
    return 0;
}
