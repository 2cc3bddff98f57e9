/* Whether open files and words are what they were: asgi_ipc/segment/files.py says what is known of
   a file, and asgi_ipc/attachment/unchanged.py of words and of all that a look compares. */

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "native.h"

/* What is known of a file. ANY matches every value. */
typedef struct {
    int64_t number, inode, device, links, size, changed;
} File;

/* What is known of a word: where it is, and its value. */
typedef struct {
    uint64_t at, value;
} Word;

#define ANY (-1)

static bool is(const File *known)
{
    struct stat status;
    if (fstat((int)known->number, &status) < 0)
        return false;
    int64_t changed = (int64_t)status.st_ctim.tv_sec * 1000000000 + status.st_ctim.tv_nsec;
    return (int64_t)status.st_ino == known->inode && (int64_t)status.st_dev == known->device &&
           (known->links == ANY || (int64_t)status.st_nlink == known->links) &&
           (known->size == ANY || (int64_t)status.st_size == known->size) &&
           (known->changed == ANY || changed == known->changed);
}

bool are_files(Bytes known)
{
    for (size_t at = 0; at + sizeof(File) <= known.length; at += sizeof(File)) {
        File file;
        memcpy(&file, known.data + at, sizeof file);
        if (!is(&file))
            return false;
    }
    return true;
}

bool are_words(const Memory *memory, Bytes known)
{
    for (size_t at = 0; at + sizeof(Word) <= known.length; at += sizeof(Word)) {
        Word word;
        memcpy(&word, known.data + at, sizeof word);
        if (word.at >= memory->count || LOAD(memory->words[word.at]) != word.value)
            return false;
    }
    return true;
}

/* -- looks -------------------------------------------------------------------------------------- */

static double time_at(const Memory *memory, size_t at)
{
    uint64_t bits = LOAD(memory->words[at]);
    double time;
    memcpy(&time, &bits, sizeof time);
    return time;
}

/* Whether other processes hold all of these bytes. */
static bool are_held(int members, Bytes others)
{
    for (size_t at = 0; at + sizeof(uint64_t) <= others.length; at += sizeof(uint64_t)) {
        uint64_t index;
        memcpy(&index, others.data + at, sizeof index);
        struct flock lock = {
            .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = (off_t)index, .l_len = 1};
        if (fcntl(members, F_GETLK, &lock) < 0 || lock.l_type == F_UNLCK)
            return false;
    }
    return true;
}

bool is_unchanged(const Memory *memory, const Known *known, double now)
{
    /* The files first: reading the memory of one that was cut short ends the process. */
    if (now > known->until || !are_files(known->files) || !are_files(known->bell) ||
        !are_words(memory, known->words) || geteuid() != known->user)
        return false;
    uint64_t *words = memory->words;
    double late = LOAD(words[S_LIVE]) || LOAD(words[MEMBERS]) ? 0.0 : SWEPT_WITHIN;
    double sweep_at = time_at(memory, S_SWEEP_AT), bury_at = time_at(memory, S_BURY_AT);
    if (!(now - late < sweep_at && sweep_at <= now + SWEEP_EVERY))
        return false;
    if (now + SWEEP_SOON < bury_at && bury_at <= now + CHECK_EVERY)
        return true;
    if (!(now < known->tidy_at) || LOAD(words[S_COUNTER]) != known->counter ||
        !are_held(known->members, known->others))
        return false;
    uint64_t bits;
    double next = now + CHECK_EVERY;
    memcpy(&bits, &next, sizeof bits);
    STORE(words[S_BURY_AT], bits);
    return true;
}
