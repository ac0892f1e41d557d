// UpdateSampler, Sample, LogProbs. The rules, their order and the draw are those of backend-cpu's reference/sample.rs.
#include "../include/common.cuh"

// Per-slot state. header words: 0 ids generated, 1 has an allowed list, 2 has bias, 3 bad words, 4 their words.
struct SamplerState {
    u32* header;     // [R, 8]
    u16* counts;     // [R, V] times generated; the top bit: in the prompt
    float* bias;     // [R, V]
    u32* allowed;    // [R, ceil(V / 32)]
    u32* stops;      // [R, ceil(V / 32)]
    u32* history;    // [R, HISTORY] ring of generated ids
    u32* bad_words;  // [R, BAD_WORDS] length, ids, length, ids, ...
    u32 vocab, history_length, bad_words_length, slots;
};
struct SampleParams {
    SamplerState s;
    const float* logits; const u32* rows; const i32* draft; const u32* mask;
    i32* ids; i32* last; i32* accepted; u64* partial; u32* arrivals;
    u64 logits_stride;
    u32 count, splits, mask_words, pad;
};
struct UpdateParams { SamplerState s; const u32* records; u32 words, pad; };
static_assert(sizeof(SamplerState) == 72 && sizeof(SampleParams) == 168 && sizeof(UpdateParams) == 88, "params.rs");

constexpr u32 HEAD = 8, NONE = 0xffffffffu, GREEDY = 1, PENALTIES = 2, RULES = 4, MASK_STOPS = 8, MASKED = 16;
constexpr u16 IN_PROMPT = 0x8000;
constexpr u32 MOST_BANNED = 1024;

// Each block takes the records of its slots in order; a record replaces all its slot knew.
extern "C" __global__ void __launch_bounds__(512) update_sampler(const UpdateParams p) {
    let_next_start();
    wait_for_previous();
    const SamplerState& s = p.s;
    u32 at = 0, words32 = (s.vocab + 31) / 32;
    while (at + HEAD <= p.words && p.records[at] != NONE) {
        const u32* head = p.records + at;
        u32 slot = head[0], prompt = head[1], output = head[2], bias = head[3], stops = head[5], bad = head[7];
        u32 allowed = head[4] == NONE ? 0 : head[4];
        const u32* prompt_ids = head + HEAD;
        const u32* output_ids = prompt_ids + prompt;
        const u32* bias_ids = output_ids + output;
        const u32* bias_values = bias_ids + bias;
        const u32* allowed_ids = bias_values + bias;
        const u32* stop_ids = allowed_ids + allowed;
        const u32* bad_ids = stop_ids + stops;
        at += HEAD + prompt + output + 2 * bias + allowed + stops + bad;
        if (slot % gridDim.x != blockIdx.x || slot >= s.slots) continue;
        u16* counts = s.counts + (u64)slot * s.vocab;
        float* biases = s.bias + (u64)slot * s.vocab;
        u32* allow = s.allowed + (u64)slot * words32;
        u32* stop = s.stops + (u64)slot * words32;
        u32* header = s.header + slot * 8;
        bool had_bias = header[2] != 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < s.vocab; i += blockDim.x) {
            counts[i] = 0;
            if (had_bias || bias) biases[i] = 0.0f;
        }
        for (u32 i = threadIdx.x; i < words32; i += blockDim.x) { allow[i] = 0; stop[i] = 0; }
        __syncthreads();
        for (u32 i = threadIdx.x; i < prompt; i += blockDim.x) if (prompt_ids[i] < s.vocab) counts[prompt_ids[i]] = IN_PROMPT;
        for (u32 i = threadIdx.x; i < bias; i += blockDim.x)
            if (bias_ids[i] < s.vocab) atomicAdd(biases + bias_ids[i], __uint_as_float(bias_values[i]));
        for (u32 i = threadIdx.x; i < allowed; i += blockDim.x)
            if (allowed_ids[i] < s.vocab) atomicOr(allow + allowed_ids[i] / 32, 1u << (allowed_ids[i] % 32));
        for (u32 i = threadIdx.x; i < stops; i += blockDim.x)
            if (stop_ids[i] < s.vocab) atomicOr(stop + stop_ids[i] / 32, 1u << (stop_ids[i] % 32));
        for (u32 i = threadIdx.x; i < bad && i < s.bad_words_length; i += blockDim.x)
            s.bad_words[(u64)slot * s.bad_words_length + i] = bad_ids[i];
        u32 kept = output > s.history_length ? output - s.history_length : 0;
        for (u32 i = kept + threadIdx.x; i < output; i += blockDim.x)
            s.history[(u64)slot * s.history_length + i % s.history_length] = output_ids[i];
        __syncthreads();
        if (threadIdx.x == 0) {
            for (u32 i = 0; i < output; i++) if (output_ids[i] < s.vocab) counts[output_ids[i]]++;
            header[0] = output; header[1] = head[4] != NONE; header[2] = bias > 0; header[3] = head[6]; header[4] = bad;
        }
        __syncthreads();
    }
}

struct Row {
    i32 slot; u32 flags; float temperature; u32 top_k; float top_p, min_p, presence, frequency, repetition;
    u32 seed_low, seed_high, position;
};
__device__ __forceinline__ Row read_row(const u32* w) {
    return {(i32)w[0], w[1], __uint_as_float(w[2]), w[3], __uint_as_float(w[4]), __uint_as_float(w[5]), __uint_as_float(w[6]),
            __uint_as_float(w[7]), __uint_as_float(w[8]), w[9], w[10], w[11]};
}

__device__ __forceinline__ void philox(u32 (&c)[4], u32 k0, u32 k1) {
#pragma unroll
    for (int i = 0; i < 10; i++) {
        u32 h0 = __umulhi(c[0], 0xD2511F53u), l0 = c[0] * 0xD2511F53u;
        u32 h1 = __umulhi(c[2], 0xCD9E8D57u), l1 = c[2] * 0xCD9E8D57u;
        u32 a = h1 ^ c[1] ^ k0, b = h0 ^ c[3] ^ k1;
        c[0] = a; c[1] = l1; c[2] = b; c[3] = l0;
        k0 += 0x9E3779B9u; k1 += 0xBB67AE85u;
    }
}
__device__ __noinline__ float exact_noisy(float logit, u32 word) {
    double u = ((double)(word >> 8) + 0.5) / 16777216.0;
    return (float)((double)logit - log(-log(u)));
}
// The same to about 1e-5, in f32.
__device__ __forceinline__ float about_noisy(float logit, u32 word) {
    u32 m = word >> 8;
    float t = m < (1u << 23) ? -logf(((float)m + 0.5f) * 5.9604644775390625e-8f)
                             : -log1pf(-((float)((1u << 24) - m) - 0.5f) * 5.9604644775390625e-8f);
    return logit - logf(t);
}

// One row's rules, resolved.
struct Rules {
    const u16* counts; const float* bias; const u32* allowed; const u32* stops; const u32* mask;
    float presence, frequency, repetition;
    u32 banned;
};
__device__ __forceinline__ float adjust(const Rules& r, const u32* banned, u32 id, float x) {
    bool out = false;
    if (r.allowed) out |= !(r.allowed[id / 32] >> (id % 32) & 1);
    if (r.stops) out |= r.stops[id / 32] >> (id % 32) & 1;
    if (r.mask) out |= !(r.mask[id / 32] >> (id % 32) & 1);
    for (u32 i = 0; i < r.banned; i++) out |= banned[i] == id;
    if (r.bias) x = __fadd_rn(x, r.bias[id]);
    if (out) x = NEG_INF;
    if (r.counts) {
        u16 c = r.counts[id];
        if (c) x = x > 0.0f ? __fdiv_rn(x, r.repetition) : __fmul_rn(x, r.repetition);
        u32 generated = c & 0x7fff;
        if (generated) {
            x = __fsub_rn(x, __fmul_rn(r.frequency, (float)generated));
            x = __fsub_rn(x, r.presence);
        }
    }
    return x;
}

// The rules of a row; the last ids of bad words whose other ids end the history go to `banned`.
__device__ Rules rules_of(const SampleParams& p, const Row& row, u32 i, u32* banned, u32* banned_count) {
    const SamplerState& s = p.s;
    u64 slot = row.slot;
    u32 words32 = (s.vocab + 31) / 32;
    const u32* header = s.header + slot * 8;
    bool rules = row.flags & RULES;
    if (threadIdx.x == 0) *banned_count = 0;
    __syncthreads();
    if (rules && header[3] > 0 && threadIdx.x == 0) {
        const u32* words = s.bad_words + slot * s.bad_words_length;
        const u32* history = s.history + slot * s.history_length;
        u32 length = header[0], n = 0;
        for (u32 at = 0, w = 0; w < header[3] && at < header[4]; w++) {
            u32 len = words[at];
            const u32* ids = words + at + 1;
            bool match = len > 0 && len - 1 <= min(length, s.history_length);
            for (u32 k = 0; match && k + 1 < len; k++)
                match = history[(length - (len - 1) + k) % s.history_length] == ids[k];
            if (match && n < MOST_BANNED) banned[n++] = ids[len - 1];
            at += len + 1;
        }
        *banned_count = n;
    }
    __syncthreads();
    Rules r;
    r.counts = row.flags & PENALTIES ? s.counts + slot * s.vocab : nullptr;
    r.bias = rules && header[2] ? s.bias + slot * s.vocab : nullptr;
    r.allowed = rules && header[1] ? s.allowed + slot * words32 : nullptr;
    r.stops = row.flags & MASK_STOPS ? s.stops + slot * words32 : nullptr;
    r.mask = row.flags & MASKED && p.mask ? p.mask + (u64)i * p.mask_words : nullptr;
    r.presence = row.presence; r.frequency = row.frequency; r.repetition = row.repetition;
    r.banned = *banned_count;
    return r;
}

// Greatest rank over the block, in every thread.
__device__ u64 block_best(u64 x, u64* shared) {
    for (int o = 16; o > 0; o >>= 1) x = max(x, __shfl_xor_sync(0xffffffffu, x, o));
    __syncthreads();
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
    __syncthreads();
    u64 best = shared[0];
    for (u32 i = 1; i < blockDim.x / 32; i++) best = max(best, shared[i]);
    __syncthreads();
    return best;
}

// What is kept of a row after the filters: keys above `key`, and those equal to it up to id `id`.
struct Cut { u32 key, id; };

struct Work { u64 best[32]; u64 mass[256]; u32 hist[256]; u32 banned[MOST_BANNED]; u32 banned_count; u32 chosen; u64 rest; u32 scan[33]; };

// The best (value, id) of ids first..end of a row: plain, or with noise.
__device__ u64 best_of(const Row& row, const Rules& rules, const u32* banned, const float* logits, u32 first, u32 end,
                       const Cut* cut, float min_p_floor) {
    u64 best = 0;
    bool greedy = row.flags & GREEDY;
    float best_value = NEG_INF;
    for (u32 id4 = first + threadIdx.x * 4; id4 < end; id4 += blockDim.x * 4) {
        u32 c[4] = {row.position, id4 / 4, 0, 0};
        float x[4];
#pragma unroll
        for (int k = 0; k < 4; k++) x[k] = id4 + k < end ? logits[id4 + k] : NEG_INF;
        if (!greedy) philox(c, row.seed_low, row.seed_high);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            u32 id = id4 + k;
            if (id >= end) break;
            float y = adjust(rules, banned, id, x[k]);
            if (greedy) { best = max(best, rank_of(y, id)); continue; }
            y = __fdiv_rn(y, row.temperature);
            if (y < min_p_floor) y = NEG_INF;
            if (cut) {
                u32 key = order_key(y);
                if (key < cut->key || (key == cut->key && id > cut->id)) y = NEG_INF;
            }
            if (y == NEG_INF) { best = max(best, rank_of(y, id)); continue; }
            float about = about_noisy(y, c[k]);
            if (about >= best_value - 1e-4f - fabsf(about) * 1e-6f) {
                float exact = exact_noisy(y, c[k]);
                best = max(best, rank_of(exact, id));
                best_value = fmaxf(best_value, exact);
            }
        }
    }
    return best;
}

// One pass of a radix selection from the top: 8 bits of the keys that start with `prefix`. Counts and masses (in units of 2^-40 of the most likely id's).
template <class F> __device__ void histogram(Work& w, u32 vocab, u32 prefix, int shift, F value, float highest) {
    for (u32 i = threadIdx.x; i < 256; i += blockDim.x) { w.hist[i] = 0; w.mass[i] = 0; }
    __syncthreads();
    for (u32 id = threadIdx.x; id < vocab; id += blockDim.x) {
        float y = value(id);
        if (y == NEG_INF) continue;
        u32 key = order_key(y);
        if (shift < 24 && (key >> (shift + 8)) != (prefix >> (shift + 8))) continue;
        u32 bin = key >> shift & 255;
        atomicAdd(w.hist + bin, 1);
        if (y - highest > -28.0f)
            atomicAdd((unsigned long long*)w.mass + bin, (u64)(exp((double)(y - highest)) * 1099511627776.0));
    }
    __syncthreads();
}

// The cut after which `wanted` ids (or, by mass, that much mass) are kept.
template <class F> __device__ Cut select(Work& w, u32 vocab, F value, bool by_mass, u64 wanted, float highest, u64& above_mass) {
    u32 prefix = 0;
    u64 rest = wanted;
    above_mass = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        histogram(w, vocab, prefix, shift, value, highest);
        if (threadIdx.x == 0) {
            u64 sum = 0, mass = 0;
            i32 bin = 255;
            for (; bin > 0; bin--) {
                u64 here = by_mass ? w.mass[bin] : w.hist[bin];
                if (sum + here >= rest && w.hist[bin] > 0) break;
                sum += here;
                mass += w.mass[bin];
            }
            w.chosen = bin;
            w.rest = rest - sum;
            w.best[0] = mass;
        }
        __syncthreads();
        prefix |= w.chosen << shift;
        rest = w.rest;
        above_mass += w.best[0];
        __syncthreads();
    }
    // Of the ties at the border the first `keep` by id.
    u32 bin = w.chosen, ties = w.hist[bin];
    u64 each = ties ? w.mass[bin] / ties : 0;
    u64 keep = by_mass ? (each ? (rest + each - 1) / each : 1) : rest;
    keep = max(keep, (u64)1);
    above_mass += min(keep, (u64)ties) * each;
    Cut cut = {prefix, NONE};
    __syncthreads();
    if (keep < ties) {
        u32 chunk = (vocab + blockDim.x - 1) / blockDim.x, from = threadIdx.x * chunk, to = min(from + chunk, vocab), mine = 0;
        for (u32 id = from; id < to; id++) mine += order_key(value(id)) == prefix;
        // Exclusive scan over the block.
        u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, y = mine;
        for (int o = 1; o < 32; o <<= 1) { u32 z = __shfl_up_sync(0xffffffffu, y, o); if (lane >= o) y += z; }
        if (lane == 31) w.scan[warp] = y;
        __syncthreads();
        u32 before = y - mine;
        for (u32 i = 0; i < warp; i++) before += w.scan[i];
        if (before < keep && before + mine >= keep) {
            u32 left = (u32)keep - before;
            for (u32 id = from; id < to; id++)
                if (order_key(value(id)) == prefix && --left == 0) { w.chosen = id; break; }
        }
        __syncthreads();
        cut.id = w.chosen;
    }
    __syncthreads();
    return cut;
}

// A row with min-p, top-k or top-p, by one block.
__device__ u64 filtered(Work& w, const Row& row, const Rules& rules, const float* logits, u32 vocab) {
    u64 top = 0;
    for (u32 id = threadIdx.x; id < vocab; id += blockDim.x)
        top = max(top, rank_of(__fdiv_rn(adjust(rules, w.banned, id, logits[id]), row.temperature), id));
    float highest = of_key((u32)(block_best(top, w.best) >> 32));
    auto value = [&](u32 id) {
        float y = __fdiv_rn(adjust(rules, w.banned, id, logits[id]), row.temperature);
        if (row.min_p > 0.0f && exp((double)(y - highest)) < (double)row.min_p) y = NEG_INF;
        return y;
    };
    Cut cut = {0, NONE};
    u64 alive = 0, mass = 0;
    bool by_p = row.top_p < 1.0f;
    u64 mine = 0, mine_mass = 0;
    for (u32 id = threadIdx.x; id < vocab; id += blockDim.x) {
        float y = value(id);
        if (y == NEG_INF) continue;
        mine++;
        if (by_p && y - highest > -28.0f) mine_mass += (u64)(exp((double)(y - highest)) * 1099511627776.0);
    }
    alive = block_sum(mine, w.mass);
    __syncthreads();
    mass = block_sum(mine_mass, w.mass);
    __syncthreads();
    if (row.top_k > 0 && row.top_k < alive) cut = select(w, vocab, value, false, row.top_k, highest, mass);
    if (by_p && alive > 0) {
        u64 wanted = (u64)ceil((double)row.top_p * (double)mass), unused;
        Cut by_mass = select(w, vocab, value, true, max(wanted, (u64)1), highest, unused);
        if (by_mass.key > cut.key || (by_mass.key == cut.key && by_mass.id < cut.id)) cut = by_mass;
    }
    // min-p once more as a floor on values: the smallest that passes is found by the exact rule in `value`.
    float floor_value = NEG_INF;
    if (row.min_p > 0.0f) {
        u32 low = 0xffffffffu;
        for (u32 id = threadIdx.x; id < vocab; id += blockDim.x) {
            float y = value(id);
            if (y > NEG_INF) low = min(low, order_key(y));
        }
        floor_value = of_key(~(u32)(block_best((u64)(~low) << 32, w.best) >> 32));
    }
    return block_best(best_of(row, rules, w.banned, logits, 0, vocab, &cut, floor_value), w.best);
}

__device__ __forceinline__ bool has_filter(const Row& r, u32 vocab) {
    return !(r.flags & GREEDY) && ((r.top_k > 0 && r.top_k < vocab) || r.top_p < 1.0f || r.min_p > 0.0f);
}

// The slot learns its new id. One thread.
__device__ void keep_id(const SampleParams& p, const Row& row, u32 i, u32 id) {
    const SamplerState& s = p.s;
    u32* header = s.header + row.slot * 8;
    p.ids[i] = (i32)id;
    p.last[row.slot] = (i32)id;
    u16* count = s.counts + (u64)row.slot * s.vocab + id;
    if ((*count & 0x7fff) < 0x7fff) (*count)++;
    s.history[(u64)row.slot * s.history_length + header[0] % s.history_length] = id;
    header[0]++;
}

// One row per slot. Rows without filters are shared by gridDim.x blocks, the last of which decides.
extern "C" __global__ void __launch_bounds__(1024) sample_rows(const SampleParams p) {
    let_next_start();
    wait_for_previous();
    __shared__ Work w;
    __shared__ u32 arrived;
    u32 i = blockIdx.y;
    Row row = read_row(p.rows + i * 16);
    if (row.slot < 0) {
        if (blockIdx.x == 0 && threadIdx.x == 0) p.ids[i] = -1;
        return;
    }
    const float* logits = p.logits + i * p.logits_stride;
    bool filter = has_filter(row, p.s.vocab);
    if (filter && blockIdx.x > 0) return;
    Rules rules = rules_of(p, row, i, w.banned, &w.banned_count);
    u64 best;
    if (filter) {
        best = filtered(w, row, rules, logits, p.s.vocab);
    } else {
        u32 share = ((p.s.vocab + p.splits - 1) / p.splits + 3) / 4 * 4;
        u32 first = blockIdx.x * share, end = min(first + share, p.s.vocab);
        best = block_best(best_of(row, rules, w.banned, logits, first, end, nullptr, NEG_INF), w.best);
        if (p.splits > 1) {
            if (threadIdx.x == 0) {
                p.partial[(u64)i * p.splits + blockIdx.x] = best;
                __threadfence();
                arrived = atomicAdd(p.arrivals + i, 1) + 1;
            }
            __syncthreads();
            if (arrived != p.splits) return;
            __threadfence();
            if (threadIdx.x == 0) p.arrivals[i] = 0;
            u64 mine = threadIdx.x < p.splits ? __ldcg(p.partial + (u64)i * p.splits + threadIdx.x) : 0;
            best = block_best(mine, w.best);
        }
    }
    if (threadIdx.x == 0) {
        keep_id(p, row, i, NONE - (u32)best);
        if (p.accepted) p.accepted[row.slot] = 0;
    }
}

// Rows of one slot in order, by one block: drafts are accepted up to the first that differs.
extern "C" __global__ void __launch_bounds__(1024) sample_drafts(const SampleParams p) {
    let_next_start();
    wait_for_previous();
    __shared__ Work w;
    u32 i = blockIdx.y;
    Row row = read_row(p.rows + i * 16);
    if (row.slot < 0) {
        if (threadIdx.x == 0) p.ids[i] = -1;
        return;
    }
    if (i > 0 && (i32)p.rows[(i - 1) * 16] == row.slot) return;
    u32 end = i, done = 0;
    while (end < p.count && (i32)p.rows[end * 16] == row.slot) end++;
    bool going = true;
    for (u32 j = i; j < end; j++) {
        if (!going) {
            if (threadIdx.x == 0) p.ids[j] = -1;
            continue;
        }
        Row at = read_row(p.rows + j * 16);
        Rules rules = rules_of(p, at, j, w.banned, &w.banned_count);
        const float* logits = p.logits + j * p.logits_stride;
        u64 best = has_filter(at, p.s.vocab)
            ? filtered(w, at, rules, logits, p.s.vocab)
            : block_best(best_of(at, rules, w.banned, logits, 0, p.s.vocab, nullptr, NEG_INF), w.best);
        u32 id = NONE - (u32)best;
        if (threadIdx.x == 0) keep_id(p, at, j, id);
        __threadfence_block();
        __syncthreads();
        done++;
        going = !(p.draft[j] >= 0 && p.draft[j] != (i32)id);
    }
    if (threadIdx.x == 0 && p.accepted) p.accepted[row.slot] = (i32)done - (i32)(end - i);
}

struct LogProbsParams {
    const float* logits; const i32* given; i32* ids; float* values; i32* ranks;
    u64 logits_stride, out_stride;
    u32 vocab, top;
};
static_assert(sizeof(LogProbsParams) == 64, "params.rs");

// Log-probabilities of the given id and of the best ones, by one block a row. A given id < 0 leaves the row alone.
extern "C" __global__ void __launch_bounds__(1024) log_probs(const LogProbsParams p) {
    let_next_start();
    wait_for_previous();
    __shared__ u64 shared[33];
    __shared__ double sums[33];
    u32 i = blockIdx.x;
    i32 given = p.given[i];
    if (given < 0) return;
    const float* x = p.logits + i * p.logits_stride;
    u64 best = 0;
    for (u32 id = threadIdx.x; id < p.vocab; id += blockDim.x) best = max(best, rank_of(x[id], id));
    best = block_best(best, shared);
    float highest = of_key((u32)(best >> 32)), own = x[given], sum = 0.0f;
    u32 above = 0;
    for (u32 id = threadIdx.x; id < p.vocab; id += blockDim.x) {
        sum += expf(x[id] - highest);
        above += x[id] > own;
    }
    double total = block_sum((double)sum, sums);
    u64 greater = block_sum((u64)above, shared);
    double lse = (double)highest + log(total);
    i32* ids = p.ids + i * p.out_stride;
    float* values = p.values + i * p.out_stride;
    if (threadIdx.x == 0) {
        ids[0] = given;
        values[0] = (float)((double)own - lse);
        p.ranks[i] = 1 + (i32)greater;
    }
    for (u32 j = 0; j < p.top; j++) {
        if (threadIdx.x == 0) {
            u32 id = NONE - (u32)best;
            ids[1 + j] = (i32)id;
            values[1 + j] = (float)((double)of_key((u32)(best >> 32)) - lse);
        }
        u64 next = 0;
        for (u32 id = threadIdx.x; id < p.vocab; id += blockDim.x) {
            u64 r = rank_of(x[id], id);
            if (r < best) next = max(next, r);
        }
        best = block_best(next, shared);
    }
}
