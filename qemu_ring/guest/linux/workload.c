/*
 * The first process of a Linux guest: it writes memory, and finds out whether memory was lost.
 *
 * Each CPU has a thread, and each thread a part of the memory. A page holds its own number and
 * how often it was written; the same count is kept apart from it. Before a page is written again
 * the two are compared: where they differ, an older page (or an older count) has come back.
 *
 * Told by the kernel's command line: qemu_ring.bytes, .pattern (loop or random), .rate (pages a
 * second, all CPUs together; 0 for as fast as they can), .report_ms. It reports to the first
 * serial port, in lines that begin with "qemu-ring-guest: ".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ULL
#define SECOND 1000000000ULL
#define MAX_CPUS 64
#define CATCH_UP 64 /* writes that a thread may be behind; the rest of a pause is forgotten */

struct page {
    uint64_t number;
    uint64_t writes;
    uint8_t rest[PAGE - 16];
};

struct writer {
    struct page *memory;
    uint64_t *writes_of; /* of each page, kept apart from it */
    uint64_t first, pages;
    uint64_t interval; /* ns between two writes, 0 for none */
    bool random;
    int cpu;
    /* Counters, read by the reporter. */
    uint64_t writes, passes, stale;
} __attribute__((aligned(64)));

static int serial = -1;
static struct writer writers[MAX_CPUS];
static char command_line[4096];

static void say(const char *format, ...)
{
    char line[256] = "qemu-ring-guest: ";
    size_t length = strlen(line);
    va_list arguments;

    va_start(arguments, format);
    length += vsnprintf(line + length, sizeof line - length - 1, format, arguments);
    va_end(arguments);
    line[length++] = '\n';
    /* In one call, so that the kernel's own messages do not come between. */
    if (write(serial, line, length) < 0)
        return;
}

/* The first process must not end: the kernel would panic, and the reason be lost in its words. */
static void __attribute__((noreturn)) fail(const char *what)
{
    say("failed: %s: %s", what, strerror(errno));
    for (;;)
        pause();
}

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

static void sleep_until(uint64_t when)
{
    struct timespec time = {.tv_sec = when / SECOND, .tv_nsec = when % SECOND};

    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
}

/* The value of "qemu_ring.NAME=" on the kernel's command line; NULL where it is not there. */
static const char *parameter(const char *name)
{
    char wanted[64];
    int length = snprintf(wanted, sizeof wanted, " qemu_ring.%s=", name);
    const char *found = strstr(command_line, wanted);

    return found ? found + length : NULL;
}

static uint64_t number(const char *name, uint64_t otherwise)
{
    const char *value = parameter(name);

    return value ? strtoull(value, NULL, 10) : otherwise;
}

static void read_command_line(void)
{
    int file = open("/proc/cmdline", O_RDONLY);
    ssize_t length;

    if (file < 0)
        fail("/proc/cmdline");
    command_line[0] = ' ';
    length = read(file, command_line + 1, sizeof command_line - 2);
    if (length < 0)
        fail("/proc/cmdline");
    close(file);
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545F4914F6CDD1DULL;
}

static void add(uint64_t *counter, uint64_t count)
{
    __atomic_store_n(counter, *counter + count, __ATOMIC_RELAXED);
}

static void write_page(struct writer *w, uint64_t index)
{
    /* Volatile: what was written to memory is to be read from there. */
    volatile struct page *page = &w->memory[index];

    if (page->writes != w->writes_of[index] || (page->writes && page->number != index))
        add(&w->stale, 1);
    page->number = index;
    page->writes = ++w->writes_of[index];
    add(&w->writes, 1);
}

static void *writing(void *argument)
{
    struct writer *w = argument;
    uint64_t state = 0x9E3779B97F4A7C15ULL * (w->cpu + 1), walked = 0, due = now();
    cpu_set_t own;

    CPU_ZERO(&own);
    CPU_SET(w->cpu, &own);
    sched_setaffinity(0, sizeof own, &own);
    for (;;) {
        write_page(w, w->first + (w->random ? next_random(&state) % w->pages : walked));
        if (++walked == w->pages) {
            walked = 0;
            add(&w->passes, 1);
        }
        if (w->interval) {
            uint64_t time = now();

            due += w->interval;
            if (due > time)
                sleep_until(due);
            else if (time - due > CATCH_UP * w->interval)
                due = time - CATCH_UP * w->interval;
        }
    }
    return NULL;
}

static void *memory(size_t bytes, const char *what)
{
    void *found = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    if (found == MAP_FAILED)
        fail(what);
    return found;
}

static uint64_t sum(size_t offset, int cpus)
{
    uint64_t total = 0;

    for (int cpu = 0; cpu < cpus; cpu++)
        total += __atomic_load_n((uint64_t *)((char *)&writers[cpu] + offset), __ATOMIC_RELAXED);
    return total;
}

int main(void)
{
    uint64_t pages, rate, report, begin, next;
    const char *pattern;
    void *all, *counts;
    bool random;
    int cpus;

    mount("proc", "/proc", "proc", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    serial = open("/dev/ttyS0", O_WRONLY | O_NOCTTY);
    read_command_line();
    pages = number("bytes", 16 << 20) / PAGE;
    rate = number("rate", 0);
    report = number("report_ms", 1000) * 1000000;
    pattern = parameter("pattern");
    random = pattern && strncmp(pattern, "random", 6) == 0;
    cpus = sysconf(_SC_NPROCESSORS_ONLN);
    if (cpus > MAX_CPUS)
        cpus = MAX_CPUS;
    all = memory(pages * PAGE, "memory to write");
    counts = memory(pages * sizeof(uint64_t), "memory for counts");
    say("running cpus=%d pages=%llu", cpus, (unsigned long long)pages);
    for (int cpu = 0; cpu < cpus; cpu++) {
        uint64_t first = pages * cpu / cpus;
        pthread_t thread;

        writers[cpu] = (struct writer){
            .memory = all,
            .writes_of = counts,
            .first = first,
            .pages = pages * (cpu + 1) / cpus - first,
            .interval = rate ? SECOND * cpus / rate : 0,
            .random = random,
            .cpu = cpu,
        };
        errno = pthread_create(&thread, NULL, writing, &writers[cpu]);
        if (errno)
            fail("a thread");
    }
    begin = next = now();
    for (;;) {
        uint64_t time;

        next += report;
        sleep_until(next);
        time = now();
        if (time > next + report)
            next = time; /* stopped for long: do not make up for the reports missed */
        say("writes=%llu passes=%llu stale=%llu ms=%llu",
            (unsigned long long)sum(offsetof(struct writer, writes), cpus),
            (unsigned long long)sum(offsetof(struct writer, passes), cpus),
            (unsigned long long)sum(offsetof(struct writer, stale), cpus),
            (unsigned long long)(time - begin) / 1000000);
    }
}
