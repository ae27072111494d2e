/*
 * AVX-512 kernel: sixteen blocks at once, one in each 32-bit lane.
 */
#ifndef EROSEAL_AVX512_H
#define EROSEAL_AVX512_H

#include <immintrin.h>

#include "sha256.h"
#include "sha_ni.h"

#define LANES 16
#define TARGET __attribute__((target("avx512f,avx512bw")))
#define LANE_FN(name) avx512_##name
#define vec __m512i
#define PIN_CLASS "v"
#define ADD(x, y) _mm512_add_epi32(x, y)
#define SUB(x, y) _mm512_sub_epi32(x, y)
#define SET1(x) _mm512_set1_epi32((int)(x))
#define ROR(x, bits) _mm512_ror_epi32(x, bits)
#define SHR(x, bits) _mm512_srli_epi32(x, bits)
#define XOR3(x, y, z) _mm512_ternarylogic_epi32(x, y, z, 0x96)
#define CHOICE(x, y, z) _mm512_ternarylogic_epi32(x, y, z, 0xca)
#define MAJORITY(x, y, z) _mm512_ternarylogic_epi32(x, y, z, 0xe8)
#define STORE(to, x) _mm512_store_si512(to, x)
#define LOAD_WORDS avx512_load_words

/* Transposes 16 x 16 words: from 64 bytes of each lane's message to one word of all messages in each vector. */
TARGET INLINE void avx512_load_words(vec w[16], const uint8_t *const lanes[LANES], size_t offset)
{
    const vec swap = _mm512_broadcast_i32x4(_mm_set_epi32(0x0c0d0e0f, 0x08090a0b, 0x04050607, 0x00010203));
    vec rows[16], quads[16];

#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        rows[i] = _mm512_shuffle_epi8(_mm512_loadu_si512(lanes[i] + offset), swap);
    /* The 128-bit lane q of quads[4 * i + j] becomes word 4 * q + j of rows 4 * i to 4 * i + 3. */
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        vec low01 = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        vec high01 = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
        vec low23 = _mm512_unpacklo_epi32(rows[i + 2], rows[i + 3]);
        vec high23 = _mm512_unpackhi_epi32(rows[i + 2], rows[i + 3]);
        quads[i] = _mm512_unpacklo_epi64(low01, low23);
        quads[i + 1] = _mm512_unpackhi_epi64(low01, low23);
        quads[i + 2] = _mm512_unpacklo_epi64(high01, high23);
        quads[i + 3] = _mm512_unpackhi_epi64(high01, high23);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        vec low_front = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0x44);
        vec high_front = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0xee);
        vec low_back = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0x44);
        vec high_back = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0xee);
        w[j] = _mm512_shuffle_i32x4(low_front, low_back, 0x88);
        w[4 + j] = _mm512_shuffle_i32x4(low_front, low_back, 0xdd);
        w[8 + j] = _mm512_shuffle_i32x4(high_front, high_back, 0x88);
        w[12 + j] = _mm512_shuffle_i32x4(high_front, high_back, 0xdd);
    }
}

#include "lanes.h"

static void avx512_blocks(const sha256_job *job, const uint8_t *blocks, size_t count, uint8_t *digests)
{
    for (; count >= 16; count -= 16, blocks += 16 * BLOCK_SIZE, digests += 16 * DIGEST_SIZE)
        avx512_group(job, blocks, 16, digests);
    if (count > 0)
        avx512_group(job, blocks, count, digests);
}

/* A group takes as long as this many blocks through SHA-NI. */
#define AVX512_WORTH_A_GROUP 10

static void avx512_sha_ni_blocks(const sha256_job *job, const uint8_t *blocks, size_t count, uint8_t *digests)
{
    size_t tail = count % 16 < AVX512_WORTH_A_GROUP ? count % 16 : 0, head = count - tail;
    avx512_blocks(job, blocks, head, digests);
    sha_ni_blocks(job, blocks + head * BLOCK_SIZE, tail, digests + head * DIGEST_SIZE);
}

#endif
