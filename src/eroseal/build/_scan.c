/*
 * Reading many small files with few calls: the part of a build's hot path (eroseal.build.worker) where the
 * interpreter costs more than the kernel.
 *
 * read_small() is a shortcut without side effects. Whatever is not an ordinary small file (an error too) comes back as
 * None, and the caller takes the long way, which also finds the words for what is wrong.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/xattr.h>
#include <unistd.h>

#define MOST 4096 /* bytes of a file that is looked at: one block */

struct small {
    struct stat st;
    ssize_t got;
    char data[MOST];
};

/* 1 if `name` is a regular file of at most `limit` bytes with one name and without xattrs, and was read whole. */
static int read_one(int dir_fd, const char *name, ssize_t limit, struct small *file)
{
    int good = 0;
    int fd = openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);

    if (fd < 0)
        return 0;
    if (fstat(fd, &file->st) == 0 && S_ISREG(file->st.st_mode) && file->st.st_nlink == 1 &&
        file->st.st_size <= limit && flistxattr(fd, NULL, 0) == 0) {
        /* One byte more than fstat said would show growth: there is room, since limit is below MOST. */
        file->got = read(fd, file->data, MOST);
        good = file->got == file->st.st_size;
    }
    close(fd);
    return good;
}

static PyObject *read_small(PyObject *module, PyObject *args)
{
    int dir_fd;
    PyObject *names, *result;
    Py_ssize_t limit, count, index;
    struct small *file;

    (void)module;
    if (!PyArg_ParseTuple(args, "iO!n:read_small", &dir_fd, &PyList_Type, &names, &limit))
        return NULL;
    if (limit < 0 || limit >= MOST) {
        PyErr_SetString(PyExc_ValueError, "limit is not from 0 to 4095");
        return NULL;
    }
    count = PyList_Size(names);
    result = PyList_New(count);
    if (result == NULL)
        return NULL;
    file = PyMem_Malloc(sizeof(*file));
    if (file == NULL) {
        Py_DECREF(result);
        return PyErr_NoMemory();
    }
    for (index = 0; index < count; index++) {
        PyObject *name = PyList_GetItem(names, index), *item;
        char *path;
        Py_ssize_t length;
        int good;

        /* With a length to fill in, NUL bytes inside are allowed: no name from a directory has one. */
        if (name == NULL || PyBytes_AsStringAndSize(name, &path, &length) < 0)
            goto fail;
        Py_INCREF(name); /* another thread could empty the list while the lock is released */
        Py_BEGIN_ALLOW_THREADS
        good = read_one(dir_fd, path, limit, file);
        Py_END_ALLOW_THREADS
        Py_DECREF(name);
        if (good) {
            const struct stat *st = &file->st;
            item = Py_BuildValue("(IIILly#)", (unsigned int)st->st_mode, (unsigned int)st->st_uid,
                                 (unsigned int)st->st_gid, (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec,
                                 file->data, (Py_ssize_t)file->got);
            if (item == NULL)
                goto fail;
        } else {
            item = Py_None;
            Py_INCREF(item);
        }
        if (PyList_SetItem(result, index, item) < 0)
            goto fail;
    }
    PyMem_Free(file);
    return result;

fail:
    PyMem_Free(file);
    Py_DECREF(result);
    return NULL;
}

static PyMethodDef methods[] = {
    {"read_small", read_small, METH_VARARGS,
     "read_small(dir_fd, names, limit)\n--\n\n"
     "For each name a tuple (mode, uid, gid, mtime seconds, mtime nanoseconds, content) if it is a regular file of at\n"
     "most `limit` bytes with one name and without xattrs, else None."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "eroseal.build._scan", "Reading many small files with few calls.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__scan(void)
{
    return PyModuleDef_Init(&definition);
}
