/*
 * SHA-NI kernel: one, two or four messages at once, so that the latency of one hides behind the others.
 */
#ifndef EROSEAL_SHA_NI_H
#define EROSEAL_SHA_NI_H

#include <immintrin.h>

#include "sha256.h"

#define SHA_NI __attribute__((target("sha,sse4.1,ssse3")))
#define SHA_NI_STREAMS 4

/* The instructions want the state as the words (a, b, e, f) and (c, d, g, h), the first in the highest lane. */
typedef struct {
    __m128i abef, cdgh;
} sha_ni_state;

SHA_NI INLINE sha_ni_state sha_ni_load_state(const uint32_t words[8])
{
    __m128i dcba = _mm_loadu_si128((const __m128i *)words), hgfe = _mm_loadu_si128((const __m128i *)(words + 4));
    __m128i cdab = _mm_shuffle_epi32(dcba, 0xb1), efgh = _mm_shuffle_epi32(hgfe, 0x1b);
    return (sha_ni_state){_mm_alignr_epi8(cdab, efgh, 8), _mm_blend_epi16(efgh, cdab, 0xf0)};
}

SHA_NI INLINE void sha_ni_store_digest(uint8_t *digest, sha_ni_state state)
{
    const __m128i swap = _mm_set_epi32(0x0c0d0e0f, 0x08090a0b, 0x04050607, 0x00010203);
    __m128i feba = _mm_shuffle_epi32(state.abef, 0x1b), dchg = _mm_shuffle_epi32(state.cdgh, 0xb1);
    __m128i dcba = _mm_blend_epi16(feba, dchg, 0xf0), hgfe = _mm_alignr_epi8(dchg, feba, 8);
    _mm_storeu_si128((__m128i *)digest, _mm_shuffle_epi8(dcba, swap));
    _mm_storeu_si128((__m128i *)(digest + 16), _mm_shuffle_epi8(hgfe, swap));
}

SHA_NI INLINE void sha_ni_four_rounds(sha_ni_state *state, __m128i kw)
{
    state->cdgh = _mm_sha256rnds2_epu32(state->cdgh, state->abef, kw);
    state->abef = _mm_sha256rnds2_epu32(state->abef, state->cdgh, _mm_shuffle_epi32(kw, 0x0e));
}

SHA_NI INLINE void sha_ni_add(sha_ni_state *state, sha_ni_state other)
{
    state->abef = _mm_add_epi32(state->abef, other.abef);
    state->cdgh = _mm_add_epi32(state->cdgh, other.cdgh);
}

/* Hash `streams` blocks; it is a constant where this is inlined, so the loops over it and the arrays vanish. */
SHA_NI INLINE void sha_ni_hash(const sha256_job *job, const uint8_t *blocks, uint8_t *digests, const size_t streams)
{
    const __m128i swap = _mm_set_epi32(0x0c0d0e0f, 0x08090a0b, 0x04050607, 0x00010203);
    const __m128i *constants = (const __m128i *)sha256_constants, *padding = (const __m128i *)job->padding;
    sha_ni_state total[SHA_NI_STREAMS], state[SHA_NI_STREAMS];
    __m128i w[SHA_NI_STREAMS][4];

#pragma GCC unroll 4
    for (size_t s = 0; s < streams; s++)
        total[s] = sha_ni_load_state(job->state);
    for (size_t offset = 0; offset < BLOCK_SIZE; offset += CHUNK_SIZE) {
#pragma GCC unroll 4
        for (size_t s = 0; s < streams; s++) {
            const __m128i *chunk = (const __m128i *)(blocks + s * BLOCK_SIZE + offset);
            state[s] = total[s];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                w[s][i] = _mm_shuffle_epi8(_mm_loadu_si128(chunk + i), swap);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
#pragma GCC unroll 4
            for (size_t s = 0; s < streams; s++) {
                __m128i w0 = w[s][i & 3], w1 = w[s][(i + 1) & 3], w2 = w[s][(i + 2) & 3], w3 = w[s][(i + 3) & 3];
                sha_ni_four_rounds(&state[s], _mm_add_epi32(w0, constants[i]));
                if (i < 12)
                    w[s][i & 3] = _mm_sha256msg2_epu32(
                        _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4)), w3);
            }
        }
#pragma GCC unroll 4
        for (size_t s = 0; s < streams; s++)
            sha_ni_add(&total[s], state[s]);
    }
#pragma GCC unroll 4
    for (size_t s = 0; s < streams; s++)
        state[s] = total[s];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
#pragma GCC unroll 4
        for (size_t s = 0; s < streams; s++)
            sha_ni_four_rounds(&state[s], padding[i]);
    }
#pragma GCC unroll 4
    for (size_t s = 0; s < streams; s++) {
        sha_ni_add(&total[s], state[s]);
        sha_ni_store_digest(digests + s * DIGEST_SIZE, total[s]);
    }
}

SHA_NI static void sha_ni_blocks(const sha256_job *job, const uint8_t *blocks, size_t count, uint8_t *digests)
{
    for (; count >= 4; count -= 4, blocks += 4 * BLOCK_SIZE, digests += 4 * DIGEST_SIZE)
        sha_ni_hash(job, blocks, digests, 4);
    for (; count >= 2; count -= 2, blocks += 2 * BLOCK_SIZE, digests += 2 * DIGEST_SIZE)
        sha_ni_hash(job, blocks, digests, 2);
    if (count > 0)
        sha_ni_hash(job, blocks, digests, 1);
}

#endif
