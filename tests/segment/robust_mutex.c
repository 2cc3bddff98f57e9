/* What asgi_ipc/lock.py relies on in a libc, one fact a line, as "name value".

Compiled by test_libc.py, which also knows what the values must be, with the numbers that lock.py
passes to the libc: it has no headers. Each death is that of a process that has the mutex mapped at
another address than the one that goes on after it.

    -DPROCESS_SHARED= -DROBUST= -DERRORCHECK=   as lock.py has them
    -DFUTEX=    offset of the int with the thread id of the holder
    -DSTATE=    offset of the int that says that the mutex cannot be recovered,
    -DLOST=     and what it says then
    -DROOM=     bytes that a segment has for a mutex */

#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int file;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void *map(void)
{
    void *memory = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED)
        fail("mmap");
    return memory;
}

static int at(void *mutex, int offset)
{
    return *(volatile int *)((char *)mutex + offset);
}

static int holder(void *mutex)
{
    return at(mutex, FUTEX) & 0x3fffffff;
}

static int lost(void *mutex)
{
    return (at(mutex, STATE) & 0x7fffffff) == LOST;
}

static int thread_id(void)
{
    return (int)syscall(SYS_gettid);
}

static const char *name_of(int code)
{
    static char number[16];
    switch (code) {
    case 0: return "0";
    case EPERM: return "EPERM";
    case EBUSY: return "EBUSY";
    case EINVAL: return "EINVAL";
    case EDEADLK: return "EDEADLK";
    case EOWNERDEAD: return "EOWNERDEAD";
    case ENOTRECOVERABLE: return "ENOTRECOVERABLE";
    }
    snprintf(number, sizeof number, "%d", code);
    return number;
}

static void fact(const char *name, int value)
{
    printf("%s %d\n", name, value);
}

static void answer(const char *name, int code)
{
    printf("%s %s\n", name, name_of(code));
}

/* As init_mutex does it. */
static void make(void *mutex)
{
    char attributes[64] = {0};
    memset(mutex, 0, ROOM);
    if (pthread_mutexattr_init((void *)attributes)
        || pthread_mutexattr_setpshared((void *)attributes, PROCESS_SHARED)
        || pthread_mutexattr_setrobust((void *)attributes, ROBUST)
        || pthread_mutexattr_settype((void *)attributes, ERRORCHECK)
        || pthread_mutex_init(mutex, (void *)attributes)) {
        fputs("the mutex cannot be made\n", stderr);
        exit(1);
    }
}

/* What another process is answered, which then ends: by itself, or killed with what it took. */
static int elsewhere(int (*call)(pthread_mutex_t *), int killed)
{
    int result[2], code = -1;
    pid_t child;
    if (pipe(result))
        fail("pipe");
    fflush(stdout);
    child = fork();
    if (child < 0)
        fail("fork");
    if (!child) {
        code = call(map()); /* the first mapping is still there, so this one lies elsewhere */
        if (write(result[1], &code, sizeof code) != sizeof code)
            _exit(1);
        if (killed)
            pause();
        _exit(0);
    }
    if (read(result[0], &code, sizeof code) != sizeof code)
        fail("read");
    if (killed)
        kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    close(result[0]);
    close(result[1]);
    return code;
}

static void *take(void *mutex)
{
    return (void *)(intptr_t)pthread_mutex_trylock(mutex);
}

static int in_thread(void *mutex)
{
    pthread_t thread;
    void *code;
    if (pthread_create(&thread, NULL, take, mutex) || pthread_join(thread, &code))
        fail("thread");
    return (int)(intptr_t)code;
}

static void after_death(const char *whose, int taken, void *mutex)
{
    printf("after the death of %s:\n", whose);
    answer("taken", taken);
    fact("holder", holder(mutex));
    answer("trylock", pthread_mutex_trylock(mutex));
    fact("ours", holder(mutex) == thread_id());
    answer("other process", elsewhere(pthread_mutex_trylock, 0));
    answer("consistent", pthread_mutex_consistent(mutex));
    fact("lost", lost(mutex));
    answer("unlock", pthread_mutex_unlock(mutex));
    fact("holder then", holder(mutex));
    answer("trylock again", pthread_mutex_trylock(mutex));
    answer("unlock again", pthread_mutex_unlock(mutex));
}

int main(void)
{
    FILE *made = tmpfile();
    void *mutex;
    if (!made || ftruncate(file = fileno(made), ROOM))
        fail("file");
    mutex = map();

    puts("header:");
    fact("fits", sizeof(pthread_mutex_t) <= ROOM);
    fact("attributes fit", sizeof(pthread_mutexattr_t) <= 64);
    fact("shared", PTHREAD_PROCESS_SHARED == PROCESS_SHARED);
    fact("robust", PTHREAD_MUTEX_ROBUST == ROBUST);
    fact("errorcheck", PTHREAD_MUTEX_ERRORCHECK == ERRORCHECK);

    make(mutex);
    puts("free:");
    fact("holder", holder(mutex));
    answer("unlock", pthread_mutex_unlock(mutex));
    answer("consistent", pthread_mutex_consistent(mutex));

    puts("held:");
    answer("trylock", pthread_mutex_trylock(mutex));
    fact("ours", holder(mutex) == thread_id());
    answer("own trylock", pthread_mutex_trylock(mutex));
    answer("other thread", in_thread(mutex));
    answer("other process", elsewhere(pthread_mutex_trylock, 0));
    answer("unlock by another", elsewhere(pthread_mutex_unlock, 0));
    answer("consistent", pthread_mutex_consistent(mutex));
    fact("still ours", holder(mutex) == thread_id());
    fact("lost", lost(mutex));
    answer("unlock", pthread_mutex_unlock(mutex));
    fact("holder then", holder(mutex));

    after_death("a process that was killed", elsewhere(pthread_mutex_trylock, 1), mutex);
    after_death("a process that ended", elsewhere(pthread_mutex_trylock, 0), mutex);
    after_death("a thread", in_thread(mutex), mutex);

    puts("unlocked as it was left:");
    answer("taken", elsewhere(pthread_mutex_trylock, 1));
    answer("trylock", pthread_mutex_trylock(mutex));
    answer("unlock", pthread_mutex_unlock(mutex));
    fact("lost", lost(mutex));
    answer("trylock then", pthread_mutex_trylock(mutex));
    answer("other process", elsewhere(pthread_mutex_trylock, 0));
    fact("still lost", lost(mutex));
    make(mutex);
    puts("made anew:");
    fact("lost", lost(mutex));
    answer("trylock", pthread_mutex_trylock(mutex));
    answer("unlock", pthread_mutex_unlock(mutex));
    return 0;
}
