/*
 * AVX2 kernel: eight blocks at once, for processors that have neither AVX-512 nor SHA-NI.
 */
#ifndef EROSEAL_AVX2_H
#define EROSEAL_AVX2_H

#include <immintrin.h>

#include "sha256.h"

#define LANES 8
#define TARGET __attribute__((target("avx2")))
#define LANE_FN(name) avx2_##name
#define vec __m256i
#define PIN_CLASS "x"
#define ADD(x, y) _mm256_add_epi32(x, y)
#define SUB(x, y) _mm256_sub_epi32(x, y)
#define SET1(x) _mm256_set1_epi32((int)(x))
#define ROR(x, bits) _mm256_or_si256(_mm256_srli_epi32(x, bits), _mm256_slli_epi32(x, 32 - (bits)))
#define SHR(x, bits) _mm256_srli_epi32(x, bits)
#define XOR(x, y) _mm256_xor_si256(x, y)
#define XOR3(x, y, z) XOR(XOR(x, y), z)
#define CHOICE(x, y, z) XOR(z, _mm256_and_si256(x, XOR(y, z)))
#define MAJORITY(x, y, z) XOR(y, _mm256_and_si256(XOR(x, y), XOR(y, z)))
#define STORE(to, x) _mm256_store_si256((__m256i *)(to), x)
#define LOAD_WORDS avx2_load_words

/* Transposes 8 x 8 words, twice: from 64 bytes of each lane's message to one word of all messages in each vector. */
TARGET INLINE void avx2_load_words(vec w[16], const uint8_t *const lanes[LANES], size_t offset)
{
    const vec swap = _mm256_broadcastsi128_si256(_mm_set_epi32(0x0c0d0e0f, 0x08090a0b, 0x04050607, 0x00010203));

#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        vec rows[8], quads[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            rows[i] = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)(lanes[i] + offset) + half), swap);
        /* The 128-bit lane q of quads[4 * i + j] becomes word 4 * q + j of rows 4 * i to 4 * i + 3. */
#pragma GCC unroll 2
        for (int i = 0; i < 8; i += 4) {
            vec low01 = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
            vec high01 = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
            vec low23 = _mm256_unpacklo_epi32(rows[i + 2], rows[i + 3]);
            vec high23 = _mm256_unpackhi_epi32(rows[i + 2], rows[i + 3]);
            quads[i] = _mm256_unpacklo_epi64(low01, low23);
            quads[i + 1] = _mm256_unpackhi_epi64(low01, low23);
            quads[i + 2] = _mm256_unpacklo_epi64(high01, high23);
            quads[i + 3] = _mm256_unpackhi_epi64(high01, high23);
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            w[8 * half + j] = _mm256_permute2x128_si256(quads[j], quads[4 + j], 0x20);
            w[8 * half + 4 + j] = _mm256_permute2x128_si256(quads[j], quads[4 + j], 0x31);
        }
    }
}

#include "lanes.h"

#undef XOR

static void avx2_blocks(const sha256_job *job, const uint8_t *blocks, size_t count, uint8_t *digests)
{
    for (; count >= 8; count -= 8, blocks += 8 * BLOCK_SIZE, digests += 8 * DIGEST_SIZE)
        avx2_group(job, blocks, 8, digests);
    if (count > 0)
        avx2_group(job, blocks, count, digests);
}

#endif
