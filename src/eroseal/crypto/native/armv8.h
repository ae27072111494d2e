/*
 * ARMv8 SHA-2 kernel: one or two messages at once, so that the latency of one hides behind the other.
 */
#ifndef EROSEAL_ARMV8_H
#define EROSEAL_ARMV8_H

#include <arm_neon.h>

#include "sha256.h"

#ifdef __clang__
#define ARMV8
#else
#define ARMV8 __attribute__((target("arch=armv8-a+crypto")))
#endif
#define ARMV8_STREAMS 2

typedef struct {
    uint32x4_t abcd, efgh;
} armv8_state;

ARMV8 INLINE void armv8_four_rounds(armv8_state *state, uint32x4_t kw)
{
    uint32x4_t abcd = state->abcd;
    state->abcd = vsha256hq_u32(abcd, state->efgh, kw);
    state->efgh = vsha256h2q_u32(state->efgh, abcd, kw);
}

ARMV8 INLINE void armv8_add(armv8_state *state, armv8_state other)
{
    state->abcd = vaddq_u32(state->abcd, other.abcd);
    state->efgh = vaddq_u32(state->efgh, other.efgh);
}

/* Hash `streams` blocks; it is a constant where this is inlined, so the loops over it and the arrays vanish. */
ARMV8 INLINE void armv8_hash(const sha256_job *job, const uint8_t *blocks, uint8_t *digests, const size_t streams)
{
    armv8_state total[ARMV8_STREAMS], state[ARMV8_STREAMS];
    uint32x4_t w[ARMV8_STREAMS][4];

#pragma GCC unroll 2
    for (size_t s = 0; s < streams; s++)
        total[s] = (armv8_state){vld1q_u32(job->state), vld1q_u32(job->state + 4)};
    for (size_t offset = 0; offset < BLOCK_SIZE; offset += CHUNK_SIZE) {
#pragma GCC unroll 2
        for (size_t s = 0; s < streams; s++) {
            const uint8_t *chunk = blocks + s * BLOCK_SIZE + offset;
            state[s] = total[s];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                w[s][i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(chunk + 16 * i)));
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
#pragma GCC unroll 2
            for (size_t s = 0; s < streams; s++) {
                uint32x4_t w0 = w[s][i & 3], w1 = w[s][(i + 1) & 3], w2 = w[s][(i + 2) & 3], w3 = w[s][(i + 3) & 3];
                armv8_four_rounds(&state[s], vaddq_u32(w0, vld1q_u32(sha256_constants + 4 * i)));
                if (i < 12)
                    w[s][i & 3] = vsha256su1q_u32(vsha256su0q_u32(w0, w1), w2, w3);
            }
        }
#pragma GCC unroll 2
        for (size_t s = 0; s < streams; s++)
            armv8_add(&total[s], state[s]);
    }
#pragma GCC unroll 2
    for (size_t s = 0; s < streams; s++)
        state[s] = total[s];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
#pragma GCC unroll 2
        for (size_t s = 0; s < streams; s++)
            armv8_four_rounds(&state[s], vld1q_u32(job->padding + 4 * i));
    }
#pragma GCC unroll 2
    for (size_t s = 0; s < streams; s++) {
        uint8_t *digest = digests + s * DIGEST_SIZE;
        armv8_add(&total[s], state[s]);
        vst1q_u8(digest, vrev32q_u8(vreinterpretq_u8_u32(total[s].abcd)));
        vst1q_u8(digest + 16, vrev32q_u8(vreinterpretq_u8_u32(total[s].efgh)));
    }
}

ARMV8 static void armv8_blocks(const sha256_job *job, const uint8_t *blocks, size_t count, uint8_t *digests)
{
    for (; count >= 2; count -= 2, blocks += 2 * BLOCK_SIZE, digests += 2 * DIGEST_SIZE)
        armv8_hash(job, blocks, digests, 2);
    if (count > 0)
        armv8_hash(job, blocks, digests, 1);
}

#endif
