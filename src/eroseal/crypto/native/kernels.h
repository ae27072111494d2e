/*
 * The kernels there are, best first, which of them this processor can run, and a check that they tell the truth.
 *
 * A portable C kernel is missing on purpose: hashlib is faster than that.
 */
#ifndef EROSEAL_KERNELS_H
#define EROSEAL_KERNELS_H

#include <stdlib.h>

#include "sha256.h"

typedef struct {
    const char *name;
    bool (*usable)(void);
    sha256_function hash;
} sha256_kernel;

#if defined(__x86_64__)

#include <cpuid.h>

#include "avx2.h"
#include "avx512.h"
#include "sha_ni.h"

/* State that the operating system must save: XMM and YMM; opmasks and both parts of ZMM. */
#define XCR0_AVX 0x06u
#define XCR0_AVX512 0xe6u

/* EBX of CPUID leaf 7. */
#define LEAF7_AVX2 (1u << 5)
#define LEAF7_AVX512F (1u << 16)
#define LEAF7_SHA (1u << 29)
#define LEAF7_AVX512BW (1u << 30)

static bool cpu_has(uint32_t leaf7_bits)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & leaf7_bits) == leaf7_bits;
}

static bool os_saves(uint32_t xcr0_bits)
{
    unsigned eax, ebx, ecx, edx, low, high;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE))
        return false;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & xcr0_bits) == xcr0_bits;
}

static bool sha_ni_usable(void)
{
    unsigned eax, ebx, ecx, edx;
    return cpu_has(LEAF7_SHA) && __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_SSE4_1) && (ecx & bit_SSSE3);
}

static bool avx2_usable(void)
{
    return cpu_has(LEAF7_AVX2) && os_saves(XCR0_AVX);
}

static bool avx512_usable(void)
{
    return cpu_has(LEAF7_AVX512F | LEAF7_AVX512BW) && os_saves(XCR0_AVX512);
}

static bool avx512_sha_ni_usable(void)
{
    return avx512_usable() && sha_ni_usable();
}

static const sha256_kernel sha256_kernels[] = {
    {"avx512+sha-ni", avx512_sha_ni_usable, avx512_sha_ni_blocks},
    {"avx512", avx512_usable, avx512_blocks},
    {"sha-ni", sha_ni_usable, sha_ni_blocks},
    {"avx2", avx2_usable, avx2_blocks},
    {NULL, NULL, NULL},
};

/* GCC has the intrinsics wherever a function asks for them, Clang before 16 only where all code may use them. */
#elif defined(__aarch64__) && defined(__linux__) && !defined(__AARCH64EB__) && \
    (!defined(__clang__) || defined(__ARM_FEATURE_SHA2))

#include <asm/hwcap.h>
#include <sys/auxv.h>

#include "armv8.h"

static bool armv8_usable(void)
{
    return (getauxval(AT_HWCAP) & HWCAP_SHA2) != 0;
}

static const sha256_kernel sha256_kernels[] = {
    {"armv8-sha2", armv8_usable, armv8_blocks},
    {NULL, NULL, NULL},
};

#else

static const sha256_kernel sha256_kernels[] = {{NULL, NULL, NULL}};

#endif

/* Enough blocks for every lane and every narrower path behind it; their digests fit one block. */
#define SELF_TEST_BLOCKS 31u

/* SHA-256 of all blocks' digests, zero-padded to a block, under no salt and under 64 bytes of 0xa5; from hashlib. */
static const uint8_t self_test_answers[2][DIGEST_SIZE] = {
    {0x25, 0x86, 0x15, 0x5d, 0xb6, 0x0d, 0x4f, 0xf4, 0x76, 0x72, 0x9d, 0x4c, 0xba, 0xe5, 0x63, 0xe0,
     0xfb, 0xfa, 0x58, 0x15, 0x2c, 0x7d, 0x3e, 0xcb, 0xc7, 0xb2, 0xac, 0x91, 0x42, 0x12, 0x54, 0x2d},
    {0x28, 0x74, 0x14, 0x16, 0x15, 0x0e, 0x91, 0xb6, 0x14, 0x2d, 0x67, 0x42, 0xff, 0x2c, 0xde, 0x30,
     0x58, 0x1d, 0x92, 0x49, 0x67, 0x50, 0xb9, 0x5a, 0x88, 0x1d, 0xf6, 0xdc, 0x41, 0xfb, 0x98, 0xe7},
};

static bool self_test_with(const sha256_kernel *kernel, uint8_t *blocks, const uint8_t *salt)
{
    uint8_t digests[BLOCK_SIZE] = {0}, answer[DIGEST_SIZE];
    uint32_t random = 1;
    sha256_job job;

    for (size_t i = 0; i < SELF_TEST_BLOCKS * BLOCK_SIZE; i++) {
        random = random * 1664525 + 1013904223;
        blocks[i] = (uint8_t)(random >> 24);
    }
    sha256_job_init(&job, salt);
    kernel->hash(&job, blocks, SELF_TEST_BLOCKS, digests);
    kernel->hash(&job, digests, 1, answer);
    return memcmp(answer, self_test_answers[salt != NULL], sizeof answer) == 0;
}

/* Whether every usable kernel gives the known answers; false as well when there is no memory to try. */
static bool sha256_self_test(void)
{
    uint8_t salt[CHUNK_SIZE], *blocks = malloc(SELF_TEST_BLOCKS * BLOCK_SIZE);
    bool passed = blocks != NULL;

    memset(salt, 0xa5, sizeof salt);
    for (const sha256_kernel *kernel = sha256_kernels; passed && kernel->name != NULL; kernel++)
        if (kernel->usable())
            passed = self_test_with(kernel, blocks, NULL) && self_test_with(kernel, blocks, salt);
    free(blocks);
    return passed;
}

#endif
