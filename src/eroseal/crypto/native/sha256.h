/*
 * SHA-256 (FIPS 180-4) over 4096-byte blocks: what every kernel shares.
 *
 * A block's message is (padded salt || block), so it is 64 or 65 compressions of input and one of padding. The
 * padding is the same for all blocks of a job: its message schedule is expanded once, at import, and kernels add
 * nothing but the 64 rounds for it. The salt is compressed once for a whole job.
 */
#ifndef EROSEAL_SHA256_H
#define EROSEAL_SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BLOCK_SIZE 4096u
#define DIGEST_SIZE 32u
#define CHUNK_SIZE 64u
#define CHUNKS_PER_BLOCK (BLOCK_SIZE / CHUNK_SIZE)
#define INLINE static inline __attribute__((always_inline))

/* What one call hashes with: the state after the salt, and round constants plus schedule of the padding. */
typedef struct {
    uint32_t state[8];
    const uint32_t *padding;
} sha256_job;

typedef void (*sha256_function)(const sha256_job *job, const uint8_t *blocks, size_t count, uint8_t *digests);

static const uint32_t sha256_initial[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

static const uint32_t sha256_constants[64] __attribute__((aligned(64))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* Round constants plus schedule of the padding, without [0] and with [1] a 64-byte salt before the block. */
static uint32_t sha256_padding[2][64] __attribute__((aligned(64)));

INLINE uint32_t load_be32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return __builtin_bswap32(value);
}

INLINE void store_be32(uint8_t *at, uint32_t value)
{
    value = __builtin_bswap32(value);
    memcpy(at, &value, sizeof value);
}

INLINE uint32_t rotate_right(uint32_t value, unsigned bits)
{
    return (value >> bits) | (value << (32 - bits));
}

static void sha256_expand(const uint8_t chunk[CHUNK_SIZE], uint32_t schedule[64])
{
    for (unsigned i = 0; i < 16; i++)
        schedule[i] = load_be32(chunk + 4 * i);
    for (unsigned i = 16; i < 64; i++) {
        uint32_t w15 = schedule[i - 15], w2 = schedule[i - 2];
        uint32_t s0 = rotate_right(w15, 7) ^ rotate_right(w15, 18) ^ (w15 >> 3);
        uint32_t s1 = rotate_right(w2, 17) ^ rotate_right(w2, 19) ^ (w2 >> 10);
        schedule[i] = schedule[i - 16] + s0 + schedule[i - 7] + s1;
    }
}

/* Scalar compression, for the salt alone: for data hashlib is faster, and the fallback. */
static void sha256_compress(uint32_t state[8], const uint8_t chunk[CHUNK_SIZE])
{
    uint32_t schedule[64], s[8];
    sha256_expand(chunk, schedule);
    memcpy(s, state, sizeof s);
    for (unsigned i = 0; i < 64; i++) {
        uint32_t sum1 = rotate_right(s[4], 6) ^ rotate_right(s[4], 11) ^ rotate_right(s[4], 25);
        uint32_t sum0 = rotate_right(s[0], 2) ^ rotate_right(s[0], 13) ^ rotate_right(s[0], 22);
        uint32_t choice = (s[4] & s[5]) ^ (~s[4] & s[6]);
        uint32_t majority = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
        uint32_t t1 = s[7] + sum1 + choice + sha256_constants[i] + schedule[i];
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += t1;
        s[0] = t1 + sum0 + majority;
    }
    for (unsigned i = 0; i < 8; i++)
        state[i] += s[i];
}

static void sha256_prepare_padding(void)
{
    for (unsigned salted = 0; salted < 2; salted++) {
        uint8_t chunk[CHUNK_SIZE] = {0x80};
        store_be32(chunk + CHUNK_SIZE - 4, 8 * (BLOCK_SIZE + salted * CHUNK_SIZE));
        sha256_expand(chunk, sha256_padding[salted]);
        for (unsigned i = 0; i < 64; i++)
            sha256_padding[salted][i] += sha256_constants[i];
    }
}

/* `salt` is NULL or 64 bytes. */
static void sha256_job_init(sha256_job *job, const uint8_t *salt)
{
    memcpy(job->state, sha256_initial, sizeof job->state);
    job->padding = sha256_padding[salt != NULL];
    if (salt != NULL)
        sha256_compress(job->state, salt);
}

#endif
