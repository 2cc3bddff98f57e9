/* Whether open files and words are what they were: asgi_ipc/segment/files.py says what is known of
   a file, and asgi_ipc/attachment/unchanged.py of words. */

#include <sys/stat.h>

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
