/* Runs a traced process one machine instruction at a time while it holds a lock in shared memory.

   The process is a child of the caller. It has called ptrace(PTRACE_TRACEME) and stopped itself.
   x86-64 only. Used by machine.py, which has the prototypes. */

#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/user.h>
#include <sys/wait.h>

#define HOLDER 0x3FFFFFFF

enum { ENDED = -1, FAILED = -2 };

int trace_me(void)
{
    return ptrace(PTRACE_TRACEME, 0, 0, 0) == 0 ? 0 : errno;
}

/* Let the process run until it comes to the address `at` for the first time. 0, or ENDED. */
int run_to(pid_t pid, uint64_t at)
{
    int status;
    struct user_regs_struct registers;
    errno = 0;
    long before = ptrace(PTRACE_PEEKTEXT, pid, at, 0);
    if (errno)
        return FAILED;
    ptrace(PTRACE_POKETEXT, pid, at, (before & ~0xFFL) | 0xCC);
    int number = 0;
    do {
        ptrace(PTRACE_CONT, pid, 0, number);
        if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status))
            return ENDED;
        number = WSTOPSIG(status); /* any other signal is for the process */
    } while (number != SIGTRAP);
    ptrace(PTRACE_POKETEXT, pid, at, before);
    ptrace(PTRACE_GETREGS, pid, 0, &registers);
    registers.rip = at;
    ptrace(PTRACE_SETREGS, pid, 0, &registers);
    return 0;
}

/* Step until the process has taken the lock whose futex word is `futex`, and from there until it
   has let go; but at most `most` instructions with the lock. Whenever `size` bytes at `memory` have
   changed, they are copied to the next place in `states`, of which there are `room`.
   Returns the number of instructions with the lock; `*found` is the number of states. */
long step(pid_t pid, volatile uint32_t *futex, long most, const uint8_t *memory, size_t size,
          uint8_t *states, long room, long *found)
{
    long count = 0;
    int status;
    *found = 0;
    while (count < most || most < 0) {
        int held = (*futex & HOLDER) == (uint32_t)pid;
        if (!held && count)
            return count;
        count += held;
        if (ptrace(PTRACE_SINGLESTEP, pid, 0, 0) != 0)
            return FAILED;
        if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status))
            return ENDED;
        if (room && memcmp(*found ? states + (*found - 1) * size : states + room * size, memory,
                           size)) {
            if (*found == room)
                return FAILED;
            memcpy(states + *found * size, memory, size);
            ++*found;
        }
    }
    return count;
}

/* End the process, or let it run on, and return how it ended. */
int finish(pid_t pid, int kill_it)
{
    int status;
    if (kill_it)
        kill(pid, SIGKILL);
    else
        ptrace(PTRACE_DETACH, pid, 0, 0);
    if (waitpid(pid, &status, 0) != pid)
        return FAILED;
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}
