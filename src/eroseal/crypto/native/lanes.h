/*
 * One message in each vector lane: the body of the AVX-512 (16 lanes) and AVX2 (8 lanes) kernels.
 *
 * Included once by each of them, with these defined: LANES, TARGET (function attribute), LANE_FN(name), vec,
 * PIN_CLASS (register constraint), and on vec ADD, SUB, SET1, ROR, SHR, XOR3, CHOICE, MAJORITY, STORE, and LOAD_WORDS
 * (16 big-endian words of every lane). No include guard, on purpose; it undefines them all.
 */

#define SUM0(x) XOR3(ROR(x, 2), ROR(x, 13), ROR(x, 22))
#define SUM1(x) XOR3(ROR(x, 6), ROR(x, 11), ROR(x, 25))
#define SIGMA0(x) XOR3(ROR(x, 7), ROR(x, 18), SHR(x, 3))
#define SIGMA1(x) XOR3(ROR(x, 17), ROR(x, 19), SHR(x, 10))

/* The compiler reassociates vector sums; this keeps it from that, at no cost in instructions. */
#define PIN(x) __asm__("" : "+" PIN_CLASS(x))

/*
 * One round; `k` is its constant plus schedule word, callers rotate the names of the state instead of its values.
 *
 * The order of the sums leaves three operations from one e to the next, and three from one a to the next. That is one
 * operation more than in textbook order: 3 % slower where the ports are the limit (Golden Cove), but latency is the
 * limit where a vector operation takes two cycles (Zen 5).
 */
#define ROUND(a, b, c, d, e, f, g, h, k)                                                                      \
    do {                                                                                                      \
        vec sum = ADD(ADD(h, k), d);                                                                          \
        PIN(sum);                                                                                             \
        sum = ADD(sum, CHOICE(e, f, g));                                                                      \
        PIN(sum);                                                                                             \
        sum = ADD(sum, SUM1(e));                                                                              \
        PIN(sum);                                                                                             \
        h = SUB(sum, d);                                                                                      \
        PIN(h);                                                                                               \
        h = ADD(h, MAJORITY(a, b, c));                                                                        \
        PIN(h);                                                                                               \
        h = ADD(h, SUM0(a));                                                                                  \
        d = sum;                                                                                              \
    } while (0)

/* STEP(i) gives the constant plus schedule word of round i, NEXT(i) is done after the round. */
#define EIGHT_ROUNDS(STEP, NEXT, i)                                                                           \
    do {                                                                                                      \
        ROUND(a, b, c, d, e, f, g, h, STEP((i) + 0)); NEXT((i) + 0);                                          \
        ROUND(h, a, b, c, d, e, f, g, STEP((i) + 1)); NEXT((i) + 1);                                          \
        ROUND(g, h, a, b, c, d, e, f, STEP((i) + 2)); NEXT((i) + 2);                                          \
        ROUND(f, g, h, a, b, c, d, e, STEP((i) + 3)); NEXT((i) + 3);                                          \
        ROUND(e, f, g, h, a, b, c, d, STEP((i) + 4)); NEXT((i) + 4);                                          \
        ROUND(d, e, f, g, h, a, b, c, STEP((i) + 5)); NEXT((i) + 5);                                          \
        ROUND(c, d, e, f, g, h, a, b, STEP((i) + 6)); NEXT((i) + 6);                                          \
        ROUND(b, c, d, e, f, g, h, a, STEP((i) + 7)); NEXT((i) + 7);                                          \
    } while (0)

#define SIXTEEN_ROUNDS(STEP, NEXT)                                                                            \
    do {                                                                                                      \
        EIGHT_ROUNDS(STEP, NEXT, 0);                                                                          \
        EIGHT_ROUNDS(STEP, NEXT, 8);                                                                          \
    } while (0)

#define W(i) w[(i) & 15]
#define WORD(i) ADD(W(i), SET1(k[i]))
#define EXPAND(i) W(i) = ADD(ADD(W(i), SIGMA0(W((i) + 1))), ADD(W((i) + 9), SIGMA1(W((i) + 14))))
#define CONSTANT(i) SET1(k[i])
#define NOTHING(i) (void)0

#define LOAD_STATE                                                                                            \
    vec a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7]
#define ADD_STATE                                                                                             \
    do {                                                                                                      \
        state[0] = ADD(state[0], a);                                                                          \
        state[1] = ADD(state[1], b);                                                                          \
        state[2] = ADD(state[2], c);                                                                          \
        state[3] = ADD(state[3], d);                                                                          \
        state[4] = ADD(state[4], e);                                                                          \
        state[5] = ADD(state[5], f);                                                                          \
        state[6] = ADD(state[6], g);                                                                          \
        state[7] = ADD(state[7], h);                                                                          \
    } while (0)

TARGET static void LANE_FN(compress)(vec state[8], const uint8_t *const lanes[LANES], size_t offset)
{
    const uint32_t *k = sha256_constants;
    vec w[16];
    LOAD_STATE;

    LOAD_WORDS(w, lanes, offset);
    for (; k != sha256_constants + 48; k += 16)
        SIXTEEN_ROUNDS(WORD, EXPAND);
    SIXTEEN_ROUNDS(WORD, NOTHING);
    ADD_STATE;
}

/* The padding's words are the same in all lanes, and come with the round constants added. */
TARGET static void LANE_FN(compress_padding)(vec state[8], const uint32_t padding[64])
{
    LOAD_STATE;

    for (const uint32_t *k = padding; k != padding + 64; k += 16)
        SIXTEEN_ROUNDS(CONSTANT, NOTHING);
    ADD_STATE;
}

/* Hash 1 to LANES blocks; lanes that have none repeat the last one and their result is dropped. */
TARGET static void LANE_FN(group)(const sha256_job *job, const uint8_t *blocks, size_t count, uint8_t *digests)
{
    const uint8_t *lanes[LANES];
    uint32_t words[8][LANES] __attribute__((aligned(64)));
    vec state[8];

    for (size_t i = 0; i < LANES; i++)
        lanes[i] = blocks + (i < count ? i : count - 1) * BLOCK_SIZE;
    for (size_t i = 0; i < 8; i++)
        state[i] = SET1(job->state[i]);
    for (size_t offset = 0; offset < BLOCK_SIZE; offset += CHUNK_SIZE)
        LANE_FN(compress)(state, lanes, offset);
    LANE_FN(compress_padding)(state, job->padding);
    for (size_t i = 0; i < 8; i++)
        STORE(words[i], state[i]);
    for (size_t lane = 0; lane < count; lane++)
        for (size_t i = 0; i < 8; i++)
            store_be32(digests + lane * DIGEST_SIZE + 4 * i, words[i][lane]);
}

#undef LANES
#undef TARGET
#undef LANE_FN
#undef vec
#undef PIN_CLASS
#undef ADD
#undef SUB
#undef SET1
#undef ROR
#undef SHR
#undef XOR3
#undef CHOICE
#undef MAJORITY
#undef STORE
#undef LOAD_WORDS
#undef SUM0
#undef SUM1
#undef SIGMA0
#undef SIGMA1
#undef PIN
#undef ROUND
#undef EIGHT_ROUNDS
#undef SIXTEEN_ROUNDS
#undef W
#undef WORD
#undef EXPAND
#undef CONSTANT
#undef NOTHING
#undef LOAD_STATE
#undef ADD_STATE
