/* Whether open files are what they were: asgi_ipc/attachment/unchanged.py. */

#include <sys/stat.h>
#include <unistd.h>

#include "native.h"

/* What is known of a file, as in `unchanged.File`. ANY matches every value. */
typedef struct {
    int64_t number, inode, device, links, size, changed;
} Known;

#define ANY (-1)

static bool is(const Known *known)
{
    struct stat status;
    if (fstat((int)known->number, &status) < 0)
        return false;
    int64_t changed = (int64_t)status.st_ctim.tv_sec * 1000000000 + status.st_ctim.tv_nsec;
    return (int64_t)status.st_ino == known->inode && (int64_t)status.st_dev == known->device &&
           (int64_t)status.st_nlink == known->links &&
           (known->size == ANY || (int64_t)status.st_size == known->size) &&
           (known->changed == ANY || changed == known->changed);
}

bool are_files(const uint8_t *body, size_t length)
{
    for (size_t at = 0; at + sizeof(Known) <= length; at += sizeof(Known)) {
        Known known;
        memcpy(&known, body + at, sizeof known);
        if (!is(&known))
            return false;
    }
    return true;
}
