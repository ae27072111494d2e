/*
 * SHA-256 of 4096-byte blocks, many at once: what leaf hashing of a Merkle tree costs most of its time in.
 *
 * Python glue only; the kernels are in native/, in headers, so that the extension stays one translation unit without
 * compiler flags of its own: instruction sets are function attributes, and the processor is asked at run time. It
 * keeps to the stable ABI of Python 3.11, the first whose stable ABI has the buffer protocol.
 */
#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include "native/kernels.h"

/* Below these, letting other threads run costs more than it gives. */
#define BLOCKS_WORTH_THREADS 3
#define ZEROS_WORTH_THREADS 65536

/* Written under the GIL, at import and by set_kernel. */
static const sha256_kernel *current_kernel;

static bool overlap(const Py_buffer *x, const Py_buffer *y)
{
    uintptr_t x_start = (uintptr_t)x->buf, y_start = (uintptr_t)y->buf;
    return x_start < y_start + (size_t)y->len && y_start < x_start + (size_t)x->len;
}

static bool check_arguments(const Py_buffer *data, const Py_buffer *salt, const Py_buffer *out)
{
    if (current_kernel == NULL)
        PyErr_SetString(PyExc_RuntimeError, "no kernel for this processor, or none chosen");
    else if (data->len % BLOCK_SIZE != 0)
        PyErr_Format(PyExc_ValueError, "data must be a multiple of 4096 bytes, not %zd", data->len);
    else if (salt->len != 0 && salt->len != CHUNK_SIZE)
        PyErr_Format(PyExc_ValueError, "a salt must be padded to 64 bytes, not %zd", salt->len);
    else if (out->obj != NULL && out->len != data->len / BLOCK_SIZE * DIGEST_SIZE)
        PyErr_Format(PyExc_ValueError, "out must have 32 bytes a block, not %zd in all", out->len);
    else if (out->obj != NULL && overlap(data, out))
        PyErr_SetString(PyExc_ValueError, "out must not overlap the data");
    else
        return true;
    return false;
}

static void hash_blocks(const Py_buffer *data, const Py_buffer *salt, uint8_t *digests)
{
    const size_t count = (size_t)data->len / BLOCK_SIZE;
    const sha256_kernel *kernel = current_kernel;
    sha256_job job;

    sha256_job_init(&job, salt->len != 0 ? salt->buf : NULL);
    if (count >= BLOCKS_WORTH_THREADS) {
        Py_BEGIN_ALLOW_THREADS
        kernel->hash(&job, data->buf, count, digests);
        Py_END_ALLOW_THREADS
    } else {
        kernel->hash(&job, data->buf, count, digests);
    }
}

PyDoc_STRVAR(sha256_blocks_doc,
             "sha256_blocks($module, /, buffer, salt=b'', out=None)\n--\n\n"
             "SHA-256 of (salt, block) for every 4096-byte block, joined.\n\n"
             "The salt is empty or padded to 64 bytes. `out`, 32 writable bytes a block, is filled and returned.");

static PyObject *native_sha256_blocks(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"buffer", "salt", "out", NULL};
    Py_buffer data = {0}, salt = {0}, out = {0};
    PyObject *out_object = Py_None, *result = NULL;

    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*|y*O:sha256_blocks", names, &data, &salt, &out_object))
        return NULL;
    if (out_object != Py_None && PyObject_GetBuffer(out_object, &out, PyBUF_WRITABLE) < 0)
        goto done;
    if (!check_arguments(&data, &salt, &out))
        goto done;
    if (out_object != Py_None)
        result = Py_NewRef(out_object);
    else
        result = PyBytes_FromStringAndSize(NULL, data.len / BLOCK_SIZE * DIGEST_SIZE);
    if (result != NULL)
        hash_blocks(&data, &salt, out.obj != NULL ? out.buf : (void *)PyBytes_AsString(result));
done:
    if (out.obj != NULL)
        PyBuffer_Release(&out);
    if (salt.obj != NULL)
        PyBuffer_Release(&salt);
    PyBuffer_Release(&data);
    return result;
}

/* Zeros are equal to themselves a little further on: after the first bytes, memcmp does the work at its speed. */
static bool all_zero(const uint8_t *bytes, size_t length)
{
    static const uint8_t zeros[64];
    if (length <= sizeof zeros)
        return memcmp(bytes, zeros, length) == 0;
    if (memcmp(bytes, zeros, sizeof zeros) != 0)
        return false;
    return memcmp(bytes, bytes + sizeof zeros, length - sizeof zeros) == 0;
}

PyDoc_STRVAR(is_zero_doc, "is_zero($module, buffer, /)\n--\n\nWhether every byte is zero; true for no bytes.");

static PyObject *native_is_zero(PyObject *module, PyObject *object)
{
    Py_buffer data;
    bool zero;

    (void)module;
    if (PyObject_GetBuffer(object, &data, PyBUF_SIMPLE) < 0)
        return NULL;
    if (data.len >= ZEROS_WORTH_THREADS) {
        Py_BEGIN_ALLOW_THREADS
        zero = all_zero(data.buf, (size_t)data.len);
        Py_END_ALLOW_THREADS
    } else {
        zero = all_zero(data.buf, (size_t)data.len);
    }
    PyBuffer_Release(&data);
    return PyBool_FromLong(zero);
}

PyDoc_STRVAR(kernel_name_doc,
             "kernel_name($module, /)\n--\n\nThe kernel in use; None if there is none for this processor.");

static PyObject *native_kernel_name(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return current_kernel != NULL ? PyUnicode_FromString(current_kernel->name) : Py_NewRef(Py_None);
}

PyDoc_STRVAR(kernels_doc,
             "kernels($module, /)\n--\n\nNames of the kernels that this processor can run, best first.");

static PyObject *native_kernels(PyObject *module, PyObject *unused)
{
    PyObject *list = PyList_New(0), *result;

    (void)module, (void)unused;
    for (const sha256_kernel *kernel = sha256_kernels; list != NULL && kernel->name != NULL; kernel++) {
        PyObject *name;
        if (!kernel->usable())
            continue;
        name = PyUnicode_FromString(kernel->name);
        if (name == NULL || PyList_Append(list, name) < 0)
            Py_CLEAR(list);
        Py_XDECREF(name);
    }
    result = list != NULL ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return result;
}

PyDoc_STRVAR(set_kernel_doc,
             "set_kernel($module, name, /)\n--\n\nUse this kernel, or none (for tests and measurements).");

static PyObject *native_set_kernel(PyObject *module, PyObject *name)
{
    (void)module;
    if (name == Py_None) {
        current_kernel = NULL;
        Py_RETURN_NONE;
    }
    for (const sha256_kernel *kernel = sha256_kernels; PyUnicode_Check(name) && kernel->name != NULL; kernel++) {
        if (PyUnicode_CompareWithASCIIString(name, kernel->name) == 0 && kernel->usable()) {
            current_kernel = kernel;
            Py_RETURN_NONE;
        }
    }
    return PyErr_Format(PyExc_ValueError, "not a kernel that this processor can run: %R", name);
}

static int native_exec(PyObject *module)
{
    (void)module;
    sha256_prepare_padding();
    if (!sha256_self_test()) {
        PyErr_SetString(PyExc_ImportError, "the native SHA-256 kernels fail their self-test");
        return -1;
    }
    current_kernel = sha256_kernels;
    while (current_kernel->name != NULL && !current_kernel->usable())
        current_kernel++;
    if (current_kernel->name == NULL)
        current_kernel = NULL;
    return 0;
}

static PyMethodDef native_methods[] = {
    {"sha256_blocks", (PyCFunction)(void (*)(void))native_sha256_blocks, METH_VARARGS | METH_KEYWORDS,
     sha256_blocks_doc},
    {"is_zero", native_is_zero, METH_O, is_zero_doc},
    {"kernel_name", native_kernel_name, METH_NOARGS, kernel_name_doc},
    {"kernels", native_kernels, METH_NOARGS, kernels_doc},
    {"set_kernel", native_set_kernel, METH_O, set_kernel_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot native_slots[] = {
    {Py_mod_exec, (void *)native_exec},
    {0, NULL},
};

static struct PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "eroseal.crypto._native",
    .m_doc = "SHA-256 of many blocks at once, through the vector and SHA instructions of the processor.",
    .m_size = 0,
    .m_methods = native_methods,
    .m_slots = native_slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&native_module);
}
