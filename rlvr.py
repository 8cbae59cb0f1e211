"""RLVR with Positive-Advantage Reweighting, in one readable file.

Reinforcement learning with verifiable rewards (RLVR): sample several responses to a prompt, let a program
verify each one, right 1, wrong 0, and make the right ones more likely. Accuracy rises, and the entropy of the
policy collapses: its answers get alike. "Revisiting Entropy in Reinforcement Learning for Large Reasoning
Models" (arXiv 2511.05993) finds that tokens with a positive advantage drive the collapse. So their loss gets
a weight, lambda, and lambda steers the entropy.

    python rlvr.py                                          # a demo on a laptop CPU, no network needed
    python rlvr.py --preset grpo                            # the same without the method
    python rlvr.py --model Qwen/Qwen2.5-0.5B-Instruct --dataset openai/gsm8k    # a real model on one GPU
    torchrun --nproc_per_node 8 rlvr.py --model ...         # the same run, its work shared by eight
    python rlvr.py --report 'runs/*'                        # compare runs; --help lists every knob

Read parts 1 to 8 in this order: they are the whole method. What a run needs around it comes after the ruler.

Unlike the paper: the standard deviation of a group is the sample one (as in TRL and verl); a response that
the length limit cut off gets reward 0; dropout is off; sizes and learning rates fit one GPU.

Shapes at line ends: B responses (rows), G responses per prompt, P prompt tokens, T response tokens, N tokens
of all rows in one list, V vocabulary, D hidden size; U different prompts, b rows of a micro-batch. """
import glob, inspect, json, math, os, random, re, runpy, shutil, signal, statistics, sys, time, warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Literal

if __name__ == "__main__":  # the next lines take seconds: say so first
    print("rlvr: loading PyTorch and transformers ...", file=sys.stderr, flush=True)

import torch
import torch.distributed
import transformers
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, HfArgumentParser, Qwen2ForCausalLM

import verify

# -------------------------- 1. knobs and presets

PRESETS = {  # every configuration that the paper compares, as changes to the defaults
    "grpo": {}, "rand_pos_clip": dict(pos_drop=0.1), "entropy_adv": dict(entropy_adv=0.4),
    "clip_higher": dict(eps_high=0.28), "clip_lower": dict(eps_low=0.28),
    "clip_tighter": dict(eps_low=0.12), "clip_free": dict(eps_low=math.inf, eps_high=math.inf),
    "adv_nonneg": dict(neg_weight=0.0), "adv_nonpos": dict(pos_weight=0.0),
    "pos_adv_stage": dict(pos_schedule="stage"), "pos_adv_epoch": dict(pos_schedule="epoch"),
    "pos_adv_entropy": dict(pos_schedule="entropy", pos_weight=0.0), "ada_ent_reg": dict(bonus_delta=0.005),
    "clip_cov": dict(cov_share=0.0002), "kl_cov": dict(cov_share=0.002, cov_penalty=1.0),
}
# What fits the demo model: a tiny network takes large steps; why reuse and a tight clip, the README says.
DEMO = dict(steps=90, prompts_per_step=32, group_size=8, updates_per_batch=2, reuse=4, eps_low=0.05,
            eps_high=0.05, lr=1.5e-4, target_entropy=0.15, pos_delta=0.1, num_prompts=6000,
            max_prompt_tokens=32, max_new_tokens=32, sample_rows=2048, eval_prompts=256)
# The same configurations in proportion to the demo's clip, and to its batches of few tokens.
DEMO_PRESETS = {"clip_higher": dict(eps_high=0.07), "clip_lower": dict(eps_low=0.07),
                "clip_tighter": dict(eps_low=0.03), "clip_cov": dict(cov_share=0.01),
                "kl_cov": dict(cov_share=0.01), "pos_adv_epoch": dict(num_prompts=720)}  # it needs epochs

def knob(default, help, low=None, high=math.inf):
    allowed = None if low is None else f"{low:g}..{high:g}"  # --help shows it; parse_config() holds to it
    return field(default=default, metadata={"help": help, "metavar": allowed})

@dataclass
class Config:
    """Every knob. The defaults are for a real model on one GPU; DEMO and PRESETS override them."""
    model: str = knob("demo", "'demo', a Hugging Face id, or a folder with a causal language model")
    device: Literal["auto", "cpu", "cuda", "mps"] = knob("auto", "auto: cuda if there is one, else cpu")
    dataset: str = knob("countdown", "'countdown', a Hugging Face id, a save_to_disk folder, or a data file")
    subset: str | None = knob(None, "configuration of the data set ('main', where there is one)")
    split: str = knob("train", "split of the data set, of the held-out prompts too")
    num_prompts: int | None = knob(None, "train on at most this many distinct prompts (all)", 1)
    prompt_column: str | None = knob(None, "column of the question: text or chat messages (found by name)")
    answer_column: str | None = knob(None, "column of the answer or the tests (found by name)")
    stop_tokens: list[str] | None = knob(None, "more tokens that end a response, names or ids")
    system_prompt: str | None = knob(None, "put before prompts that have none")
    chat_template_kwargs: str | None = knob(None, "JSON for the template, as {\"enable_thinking\": false}")
    reward: str = knob("auto", "auto, countdown, math, code, or path/to/file.py:function(response, answer)")
    preset: Literal[tuple(PRESETS)] = knob("pos_adv_entropy", "a configuration; explicit flags win")
    output_dir: str | None = knob(None, "folder of the run (runs/<preset>-<changed flags>-seed<seed>)")
    resume: str | None = knob(None, "folder of a run to continue, with its config, from its last checkpoint")
    seed: int = knob(0, "seeds the order of the prompts and the sampling")
    steps: int = knob(200, "batches of rollouts", 0)
    prompts_per_step: int = knob(32, "prompts per batch of rollouts", 1)
    group_size: int = knob(8, "responses per prompt (G)", 2)
    updates_per_batch: int = knob(4, "mini-batches per pass over a batch of rollouts", 1)
    reuse: int = knob(1, "passes over a batch of rollouts", 1)
    advantage: Literal["std", "mean"] = knob("std", "(R - mean) / std of the group, or R - mean (Dr. GRPO)")
    eps_low: float = knob(0.2, "the ratio is clipped below 1 - eps_low (inf: never)", 0)
    eps_high: float = knob(0.2, "the ratio is clipped above 1 + eps_high (inf: never)", 0)
    pos_weight: float = knob(1.0, "lambda, weight of positive-advantage tokens (or its start)", 0)
    neg_weight: float = knob(1.0, "weight of negative-advantage tokens", 0)
    pos_schedule: Literal["constant", "stage", "epoch", "entropy"] = knob("constant", "how lambda moves")
    target_entropy: float = knob(0.2, "the entropy that a schedule holds, nats per token (delta)", 0)
    pos_delta: float = knob(0.05, "entropy schedule: how far lambda moves per batch (Delta)", 0)
    pos_drop: float = knob(0.0, "share of the positive-advantage tokens left out at random", 0, 1)
    entropy_bonus: float = knob(0.0, "coefficient of an entropy bonus (or its start)", 0)
    bonus_delta: float = knob(0.0, "how far the coefficient moves per batch, up below target_entropy", 0)
    entropy_adv: float = knob(0.0, "alpha: add min(alpha H, |A| / 2) to a token's advantage", 0)
    cov_share: float = knob(0.0, "share of tokens, highest covariance of logp and A, to leave out", 0, 1)
    cov_penalty: float = knob(0.0, "KL penalty that keeps those tokens instead (its coefficient)", 0)
    lr: float = knob(1e-6, "learning rate of AdamW after warm-up", 1e-15)
    warmup_steps: int = knob(5, "steps of linear warm-up", 0)
    max_grad_norm: float = knob(1.0, "gradient clipping", 1e-15)
    temperature: float = knob(1.0, "sampling temperature; log-probabilities and entropies use it too", 1e-6)
    max_prompt_tokens: int = knob(512, "longer prompts are dropped", 1)
    max_new_tokens: int = knob(512, "longer responses are cut off and get reward 0", 1)
    sample_rows: int = knob(256, "responses decoded at once (memory: KV cache)", 1)
    micro_batch_tokens: int = knob(4096, "tokens per forward and backward pass (memory: activations)", 1)
    eager_decoding: bool = knob(False, "on a GPU: decode without CUDA graphs, for models that have none")
    gradient_checkpointing: bool = knob(False, "recompute activations in backward: slower, less memory")
    eval_prompts: int = knob(64, "held-out prompts (0: no evaluation)", 0)
    eval_samples: int = knob(32, "responses per held-out prompt", 1)
    save_every: int = knob(50, "steps between checkpoints", 1)
    keep: int = knob(1, "checkpoints to keep", 1)
    log_samples: int = knob(8, "rollouts per step to write to samples.jsonl", 0)
    show: str | None = knob(None, "train nothing: print rollouts of the run in this folder")
    step: int | None = knob(None, "the step to show (the last)", 0)
    report: list[str] | None = knob(None, "train nothing: compare the finished runs in these folders")

# ------- 2. advantages, weighted loss, schedules

def advantages(rewards, kind="std"):
    """rewards (prompts, G) -> advantages, alike: A = (R - mean) / std within each group (GRPO), or R - mean
    for "mean" (Dr. GRPO, arXiv 2503.20783). A group with equal rewards, or with a nan, gets exactly 0."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    if kind == "std":
        centred = centred / rewards.std(-1, keepdim=True).clamp(min=1e-8)
    equal = (rewards == rewards[:, :1]).all(-1, keepdim=True)  # whose mean may be off by a rounding
    return centred.masked_fill(equal | rewards.isnan().any(-1, keepdim=True), 0.0)

def policy_loss(logp, old_logp, advantage, mask, normalizer, c, pos_weight, push):
    """The sign-weighted, token-level clipped objective (arXiv 2511.05993), negated:

        J = 1/normalizer * sum_it w_it min(r_it A_it, clip(r_it, 1 - eps_low, 1 + eps_high) A_it)

    with r = exp(logp - old_logp) and w = pos_weight (lambda) where A > 0, else c.neg_weight. logp, old_logp,
    mask and push (see logp_entropy) are (b, T), advantage is (b,), (b, 1) or (b, T). `normalizer` counts the
    response tokens of the whole update: micro-batches and processes add up to one loss. -> the loss and, for
    the tokens of each sign, sums: how many, clipped, their ratio, and dH, the first-order change of the
    entropy that this update makes for a learning rate of 1."""
    A = advantage.view(len(advantage), -1)  # (b, 1) or (b, T)
    ratio = (logp - old_logp).exp()  # (b, T)
    weight = torch.where(A > 0, pos_weight, c.neg_weight)
    objective = weight * torch.min(ratio * A, ratio.clamp(1 - c.eps_low, 1 + c.eps_high) * A)  # (b, T)
    loss = -objective[mask].sum() / normalizer
    with torch.no_grad():
        dH, sums = -weight * ratio * A * push / normalizer, {}
        # The minimum has no gradient on one side: where a token has moved far enough the way A points.
        for sign, chosen, clipped in (("pos", mask & (A > 0), ratio > 1 + c.eps_high),
                                      ("neg", mask & (A < 0), ratio < 1 - c.eps_low)):
            sums |= {f"tokens_{sign}": chosen.sum(), f"clip_{sign}": (chosen & clipped).sum(),
                     f"ratio_{sign}": ratio[chosen].sum(), f"dH_{sign}": dH[chosen & ~clipped].sum()}
        numbers = torch.stack(list(sums.values())).tolist()  # one wait for the GPU, not eight
    return loss, dict(zip(sums, numbers))

def next_pos_weight(c, step, previous=None, entropy=None, epoch=1, epochs=2):
    """lambda for step `step` (from 0), by c.pos_schedule. The entropy schedule starts at c.pos_weight and
    moves from `previous` by the `entropy` of the batch before; `epoch` counts from 1 to `epochs`."""
    if c.pos_schedule == "stage":  # 0 in the first half of training, then a line up to 1
        return max(0.0, 2 * step / max(1, c.steps - 1) - 1)
    if c.pos_schedule == "epoch":
        return (epoch - 1) / (epochs - 1)
    if c.pos_schedule == "entropy" and previous is not None:
        return min(1.0, max(0.0, previous + (-c.pos_delta if entropy < c.target_entropy else c.pos_delta)))
    return c.pos_weight

def variants(c, advantage, old_logp, entropy, mask, step):
    """What other methods that the paper compares change before the update, all (B, T) -> the advantages, the
    mask of the tokens that have a gradient, and of those that get a KL penalty."""
    penalized = torch.zeros_like(mask)
    if c.entropy_adv:  # arXiv 2506.14758: uncertain tokens count more; half of |A| at most, so no sign turns
        advantage = advantage + torch.min(c.entropy_adv * entropy, advantage.abs() / 2)
    if c.pos_drop:
        draws = uniforms(*mask.shape, c.seed, "drop", step).to(mask.device)
        mask = mask & ~((advantage > 0) & (draws < c.pos_drop))
    if c.cov_share:    # arXiv 2505.22617: the few tokens that move entropy most, by the policy that sampled
        covariance = (old_logp - old_logp[mask].mean()) * (advantage - advantage[mask].mean())
        highest = mask & (covariance >= covariance[mask].quantile(1 - c.cov_share))
        mask, penalized = (mask, highest) if c.cov_penalty else (mask & ~highest, penalized)
    return advantage, mask, penalized

# ---------------- 3. log-probability and entropy

def log_softmax_entropy(logits, temperature):
    """logits (n, V) -> log-probabilities (n, V) and entropy (n,) in nats, both fp32, at this temperature."""
    logp = (logits.float() / temperature).log_softmax(-1)
    return logp, -(logp.exp() * logp).sum(-1)

def logp_entropy(hidden, head, targets, temperature, max_logits=2**25):
    """Hidden states (N, D), `targets` (N,) -> three (N,) tensors in fp32: log-probability of the target;
    entropy H of the whole distribution, nats; and push, how much raising the target lowers H. A step of eta
    along the gradient of log p_a changes the logits' entropy by -eta push(a) to first order, with

        push(a) = p_a (log p_a + H) - sum_v p_v^2 (log p_v + H)        (arXiv 2509.26114)

    so push > 0 for the likely tokens and push < 0 for the rare ones; its mean over the policy is 0."""
    def chunk(hidden, targets):
        logp, entropy = log_softmax_entropy(head(hidden), temperature)  # (n, V), (n,)
        with torch.no_grad():
            p = logp.exp()  # (n, V)
            each = p * (logp + entropy[:, None])
            push = each.gather(-1, targets[:, None])[:, 0] - (p * each).sum(-1)
        return logp.gather(-1, targets[:, None])[:, 0], entropy, push

    # All N x V logits are 2.5 GB at V = 150,000 and 4,096 tokens, several times over. So the head goes over
    # chunks of tokens, and again in backward: `max_logits` of them (128 MB) exist at a time.
    size = max(1, max_logits // head.weight.shape[0])
    pieces = zip(hidden.split(size), targets.split(size))
    return tuple(map(torch.cat, zip(*(checkpoint(chunk, h, y, use_reentrant=False) for h, y in pieces))))

# --------------------- 4. the cache, and scoring
#
# One idea serves sampler and trainer: a prompt is read once into the library's KV cache, and its responses
# continue from there, token by token when sampling, all at once and with gradient when scoring.

# The argument's name; transformers before 5.24 has the other.
CACHE = "cache" if "cache" in inspect.signature(Qwen2ForCausalLM.forward).parameters else "past_key_values"

def padded(rows, device, side="right"):
    """Lists of token ids -> ids (b, K), and which are real (b, K): by length, as the padding's id may be the
    id of a token that counts."""
    ids = pad_sequence([torch.tensor(row) for row in rows], True, 0, side)
    real = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], True, False, side)
    return ids.to(device), real.to(device)

def read(policy, ids, place, real, cache=None):
    """Read tokens (b, T) at their positions, behind what the cache holds -> hidden states (b, T, D).
    real (b, K): which columns, of the cache and then of these tokens, may be seen."""
    return policy.model.base_model(ids, position_ids=place, attention_mask=real, use_cache=cache is not None,
                                   **{CACHE: cache}).last_hidden_state

def read_prompts(policy, prompts, cache):
    """Read prompts, lists of token ids, into an empty cache. Padded on the left, all end in the same column,
    and columns keep step with positions, as sliding windows need. -> hidden state of each last token (U, D),
    the position after it (U, 1), which columns are real (U, P)."""
    ids, real = padded(prompts, policy.device, "left")
    place = real.cumsum(-1) - 1  # (U, P)
    hidden = read(policy, ids, place.clamp(min=0), real, cache)  # (U, P, D)
    return hidden[:, -1], place[:, -1:] + 1, real

def score(policy, prompts, responses, temperature):
    """The trainer's view of responses, lists of token ids -> logp, entropy and push of logp_entropy(), each
    (b, T), 0 after the end of a response; T is the longest of these. The gradient flows through the keys and
    values of the prompts too, each of which is read once for all of its responses."""
    device, numbers = policy.device, {}
    ids, mask = padded(responses, device)  # (b, T)
    with policy.autocast():
        if policy.model.is_gradient_checkpointing:  # it drops a cache, silently: read whole rows
            rows, real = padded([p + r for p, r in zip(prompts, responses)], device)
            hidden = read(policy, rows, (real.cumsum(-1) - 1).clamp(min=0), real)  # (b, P + T, D)
            hidden = torch.cat([row[len(p) - 1:len(p) + len(r) - 1]
                                for row, p, r in zip(hidden, prompts, responses)])  # (N, D)
        else:
            cache = DynamicCache(config=policy.model.config)
            owner = [numbers.setdefault(tuple(p), len(numbers)) for p in prompts]
            owner = torch.tensor(owner, device=device)  # (b,) numbers of prompts
            last, start, real = read_prompts(policy, [list(p) for p in numbers], cache)
            hidden = last[owner][:, None]  # (b, 1, D)
            if ids.shape[1] > 1:                    # the last token predicts none: it is not read
                cache.batch_select_indices(owner)
                place = start[owner] + torch.arange(ids.shape[1] - 1, device=device)
                more = read(policy, ids[:, :-1], place, torch.cat([real[owner], mask[:, :-1]], 1), cache)
                hidden = torch.cat([hidden, more], 1)  # (b, T, D)
            hidden = hidden[mask]  # (N, D)
        flat = logp_entropy(hidden, policy.model.get_output_embeddings(), ids[mask], temperature)
    return tuple(torch.zeros(mask.shape, device=device).masked_scatter(mask, x) for x in flat)

def micro_batches(rows, prompts, responses, budget):
    """Split rows into micro-batches of at most `budget` tokens, a prompt counted once; alike lengths go
    together, to pad little."""
    batches, tokens, seen = [], math.inf, set()
    for row in sorted(rows, key=lambda i: len(responses[i])):
        if tokens + len(responses[row]) + (prompts[row] not in seen) * len(prompts[row]) > budget:
            batches.append([])
            tokens, seen = 0, set()
        batches[-1].append(row)
        tokens += len(responses[row]) + (prompts[row] not in seen) * len(prompts[row])
        seen.add(prompts[row])
    return batches

def score_rows(policy, rollouts, rows, c):
    """Score rows of a batch in micro-batches, those of this process: yields (rows, logp, entropy, push)."""
    prompts, responses = {i: tuple(rollouts.problems[i].ids) for i in rows}, rollouts.responses
    for part in micro_batches(rows, prompts, responses, c.micro_batch_tokens)[RANK::WORLD]:
        own = [list(prompts[i]) for i in part], [responses[i] for i in part]
        yield part, *score(policy, *own, c.temperature)

@torch.no_grad()
def score_all(policy, rollouts, rows, c):
    """Log-probability and entropy of these rows under the policy, two (B, T) grids, 0 elsewhere."""
    grids = torch.zeros(2, *rollouts.mask.shape, device=policy.device)  # (2, B, T)
    for part, logp, entropy, _ in score_rows(policy, rollouts, rows, c):
        grids[:, part, :logp.shape[1]] = torch.stack([logp, entropy])
    return all_sum(grids)

# ----------------------------------- 5. sampling

@dataclass
class Rollouts:
    """A batch of B responses. The loss mask is made from lengths, never from token ids: pad may equal eos."""
    problems: list         # B problems: each one G times in a row
    responses: list        # B lists of token ids, stop token included: without it no policy learns to stop
    finished: list         # B bools: ended with a stop token, or cut off by the length limit
    texts: list            # B decoded responses
    logp: torch.Tensor     # (B, T) log-probability of each token when it was drawn; 0 outside the mask
    entropy: torch.Tensor  # (B, T) entropy of the distribution it was drawn from, nats; 0 outside the mask
    mask: torch.Tensor     # (B, T)

class CacheLayer(transformers.StaticLayer):
    """Keys and values of a layer, in place. Autocast makes rotated keys fp32: twice what the cache needs."""
    def update(self, keys, values, *args, **kwargs):
        return super().update(keys.to(values.dtype), values, *args, **kwargs)

def repeat(policy, function):
    """Yield function() again and again, on a GPU from the second time on as a CUDA graph: one launch for the
    thousand that a model makes per token. It works on the very tensors that it was made with, and reads no
    number of Python's."""
    yield function()
    if policy.by_graph:
        graph = torch.cuda.CUDAGraph()
        try:  # thread_local: other threads, such as NCCL's, may go on using the GPU
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                result = function()
        except RuntimeError as error:
            fail("this model's decoding step cannot be a CUDA graph; use --eager_decoding", error)
        while True:
            graph.replay()
            yield result
    while True:
        yield function()

@torch.no_grad()
def sample(policy, prompts, uniforms, temperature):
    """Decode G responses to each prompt, a list of token ids. uniforms: (B, T) in [0, 1), B = G x prompts, T
    the length limit. Token t of row b depends on uniforms[b, t] and the distribution alone: batching changes
    nothing. -> tokens (B, T), lengths (B,) with the stop token, finished (B,), logp and entropy (B, T)."""
    (B, T), head, device = uniforms.shape, policy.model.get_output_embeddings(), policy.device
    uniforms, stop = uniforms.to(device), torch.tensor(policy.stop_ids, device=device)
    logp, entropy = torch.zeros_like(uniforms), torch.zeros_like(uniforms)
    tokens, lengths, finished = logp.long(), logp.sum(-1).long(), logp.sum(-1).bool()
    look = 1 if device.type == "cpu" else 8  # looking which rows are finished waits for the GPU

    def next_logits():
        hidden = read(policy, token, place, real, cache)
        place.add_(1)
        return head(hidden[:, -1])

    with policy.autocast():  # open all the time: it casts each weight once, and not for each token
        size, depth = max(map(len, prompts)) + T, policy.model.config.num_hidden_layers
        cache = transformers.Cache(layers=[CacheLayer(size) for _ in range(depth)])
        hidden, place, real = read_prompts(policy, prompts, cache)
        real = torch.nn.functional.pad(real, (0, T), value=True)  # (U, P + T)
        row = torch.arange(B, device=device)         # the responses that are still decoded
        source = row // (B // len(prompts))          # the rows of the cache that they continue: of prompts
        logits = iter([head(hidden)[source]])
        for t in range(T):
            all_logp, H = log_softmax_entropy(next(logits), temperature)  # (rows, V), (rows,)
            # Invert the distribution function at u. The first clamp keeps rounding from choosing past the
            # last possible token, the second one is for NaN.
            cdf = all_logp.exp().cumsum(-1)
            u = uniforms[row, t].clamp(max=1 - 1e-6)[:, None] * cdf[:, -1:]
            drawn = torch.searchsorted(cdf, u, right=True).clamp(max=cdf.shape[1] - 1)  # (rows, 1)
            done = finished[row]                     # such a row rides along until it leaves
            for grid, value in ((tokens, drawn), (entropy, H), (logp, all_logp.gather(-1, drawn))):
                grid[row, t] = value.view(-1).masked_fill(done, 0)
            lengths[row] += ~done
            finished[row] = done | (drawn == stop).any(-1)
            if t % look == 0:
                left = (~finished[row]).nonzero()[:, 0]
                if len(left) == 0:
                    break
                if t == 0 or 2 * len(left) <= len(row):  # rows leave: the cost follows the tokens produced
                    source = source[left] if t == 0 else left
                    row, drawn, place, real = row[left], drawn[left], place[source], real[source]
                    for layer in cache.layers:
                        layer.keys, layer.values = (x[source] for x in (layer.keys, layer.values))
                    token, logits = drawn.clone(), repeat(policy, next_logits)
            token.copy_(drawn)
    return tokens, lengths, finished, logp, entropy

def rollout(policy, problems, group_size, c, *coordinates):
    """Sample `group_size` responses to each problem -> Rollouts, at most c.sample_rows at once; `coordinates`
    and the place in `problems` seed the random numbers."""
    width = max(1, min(c.sample_rows // group_size, -(-len(problems) // WORLD)))
    starts, parts = range(0, len(problems), width), {}
    quiet = RANK > 0 or len(starts) < 2 * WORLD
    for start in tqdm(starts[RANK::WORLD], desc="sampling", leave=False, disable=quiet):
        chunk = range(start, min(start + width, len(problems)))
        numbers = torch.cat([uniforms(group_size, c.max_new_tokens, *coordinates, i) for i in chunk])
        part = sample(policy, [problems[i].ids for i in chunk], numbers, c.temperature)
        parts[start] = [x.cpu() for x in part]
    parts = merged(parts)
    grids = map(torch.cat, zip(*(parts[start] for start in starts)))
    tokens, lengths, finished, logp, entropy = (x.to(policy.device) for x in grids)
    T = int(lengths.max())
    responses = [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist())]
    mask = torch.arange(T, device=policy.device) < lengths[:, None]  # (B, T)
    texts = policy.tokenizer.batch_decode(responses, skip_special_tokens=True)
    return Rollouts([p for p in problems for _ in range(group_size)], responses, finished.tolist(), texts,
                    logp[:, :T], entropy[:, :T], mask)

# ---------------------------------- 6. verifying

def judge(rollouts, reward):
    """Verify this process's share of the responses -> {row: reward}, {row: why there is none}. One that was
    cut off has given no answer: -inf, for now."""
    mine = range(len(rollouts.texts))[RANK::WORLD]
    asked = [i for i in mine if rollouts.finished[i]]
    cases = [(rollouts.texts[i], rollouts.problems[i]) for i in asked]
    try:
        verdicts, raised = verify.verify_batch(reward, cases)
    except TimeoutError as error:
        fail("the reward function hangs", error)
    errors = {asked[j]: f"{type(error).__name__}: {error}" for j, error in raised.items()}
    return dict.fromkeys(mine, -math.inf) | dict(zip(asked, verdicts)), errors

def rewards_of(judged):
    """What judge() returned, in all processes -> rewards (B,), nan where there is none, {row: why}. A cut-off
    response gets 0, or the lowest reward if that is less: rambling must not pay if rewards are negative."""
    rewards, errors = map(merged, judged)
    if len(errors) == len(rewards):
        fail("no response can be judged", next(iter(errors.values())))
    if errors:
        warn("some responses cannot be judged and are left out with their groups: see error in samples.jsonl")
    rewards = torch.tensor([rewards[i] for i in range(len(rewards))])
    lowest = min([0.0, *rewards[rewards.isfinite()].tolist()])
    return rewards.masked_fill(rewards == -math.inf, lowest), errors

# -------------------- 7. the update of one batch

def update_policy(policy, optimizer, rollouts, old_logp, A, alive, penalized, state, c):
    """`reuse` passes over `updates_per_batch` mini-batches of whole groups. old_logp, A, alive, penalized are
    (B, T), see variants(). -> sums over all tokens and updates, and the mean gradient norm."""
    stats, norms, G, model = Counter(), [], c.group_size, policy.model
    teaches = (A != 0).any(-1).tolist()
    model.train(c.gradient_checkpointing)  # transformers checkpoints in training mode only
    for update in range(c.reuse * c.updates_per_batch):
        reuse, part = divmod(update, c.updates_per_batch)
        groups = shuffled(range(len(A) // G), c.seed, "mini-batches", state["step"], reuse)
        mini_batch = [i * G + g for i in groups[part::c.updates_per_batch] for g in range(G)]
        normalizer = sum(len(rollouts.responses[i]) for i in mini_batch)
        if not state["bonus"]:  # responses without an advantage have no gradient: save the pass
            mini_batch = [i for i in mini_batch if teaches[i]]
        for rows, logp, H, push in score_rows(policy, rollouts, mini_batch, c):
            old, advantage, live, extra = (x[rows, :logp.shape[1]] for x in (old_logp, A, alive, penalized))
            loss, sums = policy_loss(logp, old, advantage, live, normalizer, c, state["pos_weight"], push)
            penalty = c.cov_penalty * (logp - old)[extra].abs().sum() - state["bonus"] * H[live].sum()
            loss = loss + penalty / normalizer
            loss.backward()
            stats.update(sums, loss=loss.item())
            if update == 0:  # nothing has changed yet, so the ratio is 1 up to rounding
                off = ((logp - old).exp() - 1).abs()  # (b, T)
                stats.update(off=off.sum().item(), first=int(live.sum()))
        if WORLD > 1:
            for p in model.parameters():
                p.grad = all_sum(torch.zeros_like(p) if p.grad is None else p.grad)
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), c.max_grad_norm).item())
        if not math.isfinite(norms[-1]):  # as it is when the loss is not
            policy.save(good := Path(c.output_dir, "last_good"))
            fail(f"step {state['step']}: loss or gradient not finite; lower --lr; the weights before: {good}")
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    total = Counter()
    for part in all_values(stats):
        total.update(part)  # and not +, which drops what is negative
    gap = total["ratio_gap"] = total["off"] / max(1, total["first"])
    if gap > 0.05:
        fail(f"step {state['step']}: the ratio was off 1 by {gap:.2f} before any update: is scoring random?")
    return total, statistics.fmean(norms)

# ----------------------------------- 8. the loop

LOGS = ("metrics.jsonl", "samples.jsonl")
STAGES = ("seconds_sample", "seconds_score", "seconds_verify", "seconds_update")

def train(c):
    """The whole job: load, evaluate, train, evaluate. All that it leaves is in the folder c.output_dir."""
    run = Run(c)
    if run.summary.get("steps") == c.steps:
        return say(f"{run.out}: this run is finished; delete the folder to run it again")
    reward, policy = load_reward(c.reward), load_policy(c, run.last)
    problems, held_out = load_problems(c, policy)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=c.lr, weight_decay=0.0, fused=True)
    state = {"step": 0, "pos_weight": next_pos_weight(c, 0), "bonus": c.entropy_bonus, "start_entropy": None}
    if run.last:
        with explained(f"{run.last}: damaged; delete it to continue from the one before"):
            state = torch.load(run.last / "trainer.pt", weights_only=True, map_location="cpu")
            optimizer.load_state_dict(state.pop("optimizer"))  # to where its weights are
    say(f"{c.preset}: {policy.model.num_parameters() / 1e6:.2f} M parameters on {WORLD} x {policy.device}, "
        f"{len(problems)} prompts to train on, {len(held_out)} held out; writing to {run.out}")
    if held_out and "before" not in run.summary:
        run.summary["before"] = evaluate(policy, held_out, reward, c)
    run.sum_up()
    stop, background = stop_on_signals(), ThreadPoolExecutor(1)
    def lap():
        if policy.device.type == "cuda":  # has it done what it was given?
            torch.cuda.synchronize()
        clock.append(time.perf_counter())
    bar = tqdm(range(state["step"], c.steps), c.preset, c.steps, initial=state["step"], unit="step",
               disable=RANK > 0)
    for step in bar:
        # 1. Sample G responses to each prompt of this step.
        clock = [time.perf_counter()]
        rollouts = rollout(policy, prompts_of(step, problems, c), c.group_size, c, c.seed, "train", step)
        B, mask = len(rollouts.texts), rollouts.mask  # (B, T)
        lap()

        # 2. Verify them, in the background. 3. Meanwhile score them by the code that trains.
        judged = background.submit(judge, rollouts, reward)
        old_logp, entropy = score_all(policy, rollouts, range(B), c)  # (B, T)
        gap = ((old_logp - rollouts.logp).abs().sum() / mask.sum()).item()
        if not gap < 0.1:  # also not a number
            fail(f"step {step}: sampler and trainer disagree by {gap:.2f} nats a token: an update broke the "
                 "policy (lower --lr), or its logits are not its head applied to its last hidden state")
        lap()
        rewards, errors = rewards_of(judged.result())  # (B,)
        lap()

        # 4. Compare each response with its group; all of its tokens get its advantage.
        rewards = rewards.view(-1, c.group_size)  # (prompts, G)
        advantage = advantages(rewards, c.advantage).view(-1, 1).to(policy.device)  # (B, 1)
        A, alive, penalized = variants(c, advantage.expand(B, mask.shape[1]), old_logp, entropy, mask, step)

        # 5. Update the policy, several times. Did the entropy of the same tokens then move as dH says?
        optimizer.param_groups[0]["lr"] = lr = c.lr * min(1.0, (step + 1) / max(1, c.warmup_steps))
        stats, norm = update_policy(policy, optimizer, rollouts, old_logp, A, alive, penalized, state, c)
        some = [i for i in range(B) if i // c.group_size % 4 == 0]  # by prompts, which cost most of it
        dH = (score_all(policy, rollouts, some, c)[1] - entropy)[some].sum() / mask[some].sum()
        lap()

        # 6. Log, move lambda, save.
        record = {"step": step, "lr": lr, "grad_norm": norm, "dH": dH.item()}
        record |= step_metrics(c, state, rollouts, rewards, advantage, old_logp, entropy, stats)
        record |= {stage: end - start for stage, start, end in zip(STAGES, clock, clock[1:])}
        run.log([record], step_samples(c, step, policy, rollouts, rewards, advantage, entropy, errors))
        bar.set_postfix({key: f"{record[key]:.3f}" for key in ("reward", "entropy", "lambda")}, refresh=False)
        state = next_state(c, state, record, len(problems))
        warn_if_useless(c, record, state["start_entropy"])
        stopping = any(all_values(bool(stop)))
        if stopping or state["step"] % c.save_every == 0 or state["step"] == c.steps:
            run.save(policy, optimizer, state)
        if stopping:
            fail(f"stopped after step {step}; continue with: python rlvr.py --resume {run.out}")
    stop += [signal.SIGINT, signal.SIGTERM]  # no loop looks any more: the next signal stops at once
    run.finish(policy, held_out, reward)

def prompts_of(step, problems, c):
    """The problems of a step. Every epoch has its own order of them; a step may reach into the next epoch."""
    places = range(step * c.prompts_per_step, (step + 1) * c.prompts_per_step)
    orders = {e: shuffled(problems, c.seed, "order", e) for e in {i // len(problems) for i in places}}
    return [orders[i // len(problems)][i % len(problems)] for i in places]

def step_metrics(c, state, rollouts, rewards, advantage, old_logp, entropy, stats):
    """A line of metrics.jsonl, see the README. Means over tokens are global, never means of means."""
    mask, tokens, B = rollouts.mask, int(rollouts.mask.sum()), len(rollouts.texts)
    gap = (old_logp - rollouts.logp).abs()  # (B, T)
    record = {"reward": rewards.nanmean().item(), "lambda": state["pos_weight"], "bonus": state["bonus"],
              "solved": (rewards > 0.5).any(-1).float().mean().item()}
    for name, chosen in (("entropy", mask), ("entropy_pos", mask & (advantage > 0)),
                         ("entropy_neg", mask & (advantage < 0))):
        record[name] = entropy[chosen].mean().item() if chosen.any() else None
    for sign in ("pos", "neg"):
        count = stats[f"tokens_{sign}"]
        record |= {f"{name}_{sign}": stats[f"{name}_{sign}"] / max(1, count) for name in ("clip", "ratio")}
        record |= {f"share_{sign}": count / (tokens * c.reuse), f"dH_{sign}": stats[f"dH_{sign}"]}
    return record | {
        "zero_adv": (rewards == rewards[:, :1]).all(-1).float().mean().item(),
        "ungraded": rewards.isnan().sum().item(), "left_out": rewards.isnan().any(-1).sum().item(),
        "loss": stats["loss"] / c.reuse / c.updates_per_batch, "ratio_gap": stats["ratio_gap"],
        "length": tokens / B, "truncated": 1 - sum(rollouts.finished) / B, "tokens": tokens,
        "logp_gap": gap.max().item(), "logp_gap_mean": gap.sum().item() / tokens,
        "peak_memory": peak_memory()}

def step_samples(c, step, policy, rollouts, rewards, advantage, entropy, errors):
    """Rollouts for samples.jsonl: some from all over the batch, and some that cannot be judged."""
    responses, every = rollouts.responses, max(1, len(rollouts.texts) // max(1, c.log_samples))
    shown = [*range(0, len(rollouts.texts), every)][:c.log_samples] + [*errors][:c.log_samples]
    return [{"step": step, "prompt": rollouts.problems[i].prompt, "response": rollouts.texts[i],
             "extracted": verify.EXTRACT[rollouts.problems[i].kind](rollouts.texts[i]),
             "reward": None if i in errors else rewards.view(-1)[i].item(), "error": errors.get(i),
             "advantage": advantage[i].item(), "finish_reason": "stop" if rollouts.finished[i] else "length",
             "tokens": policy.tokenizer.batch_decode([[token] for token in responses[i]]),
             "entropy": [round(H, 3) for H in entropy[i, :len(responses[i])].tolist()]} for i in shown]

def next_state(c, state, record, prompts):
    """The state after a step: what the next one has to know, and a checkpoint keeps."""
    step, epochs = state["step"] + 1, math.ceil(c.steps * c.prompts_per_step / prompts)
    epoch = min(step * c.prompts_per_step // prompts + 1, epochs)
    bonus = state["bonus"] + (c.bonus_delta if record["entropy"] < c.target_entropy else -c.bonus_delta)
    return {"step": step, "bonus": max(0.0, bonus),
            "start_entropy": state["start_entropy"] or record["entropy"],
            "pos_weight": next_pos_weight(c, step, state["pos_weight"], record["entropy"], epoch, epochs)}

# ============ From here on: what a run needs around the step. ============

def fail(message, error=None):
    """Stop with one line that says what is wrong and what to do (exit status 1)."""
    reason = f": {' '.join(str(error).split())[:600] or type(error).__name__}" if error else ""
    raise SystemExit(f"rlvr.py: {message}{reason}")

@contextmanager
def explained(message):
    """One line for any error inside: foreign files, models and users' code raise all sorts."""
    try:
        yield
    except Exception as error:
        fail(message, error)

# Started by torchrun, each process runs this program on the same batch, takes a share of sampling, verifying,
# scoring and gradients, and collects or sums what comes out: all have the same rewards, lambda and weights.
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

def all_values(value):
    """-> the values that the processes have here, in the order of their ranks."""
    values = [value] * WORLD
    if WORLD > 1:
        torch.distributed.all_gather_object(values, value)
    return values

def merged(part):
    """-> one dict of what the processes have here, each its own keys."""
    return {key: value for other in all_values(part) for key, value in other.items()}

def all_sum(tensor):
    """Sum a tensor over the processes, in place."""
    if WORLD > 1:
        torch.distributed.all_reduce(tensor)
    return tensor

def say(text, how=print):
    if RANK == 0:
        how(text)

warn = partial(say, how=warnings.warn)  # once in a run, however often it is true

def seed_of(*coordinates):
    """Randomness comes from coordinates such as (seed, "train", step, prompt), never from what ran before."""
    return random.Random(repr(coordinates)).getrandbits(63)

def uniforms(rows, columns, *coordinates):
    """-> (rows, columns) numbers in [0, 1)."""
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed_of(*coordinates)))

def shuffled(items, *coordinates):
    return random.Random(seed_of(*coordinates)).sample(items, len(items))

# ------------------------------- 9. command line

STARTING = {"resume", "show", "step", "report"}  # what a run does not depend on

def parse_config(argv):
    """Command line -> Config. What wins, from weak to strong: the field's default, DEMO (if the model is the
    demo), the preset, the config of the run to resume, an explicit flag."""
    parser = HfArgumentParser(Config, prog="rlvr.py", description=__doc__.splitlines()[0], allow_abbrev=False,
                              usage="python rlvr.py [--flag value ...]")
    parser.error = lambda message: fail(f"{message} (python rlvr.py --help lists every flag)")
    early, _ = parser.parse_known_args([a for a in argv if a not in ("-h", "--help")])
    known = defaults(early.preset, early.model)
    if early.resume:
        if "preset" not in (saved := read_json(Path(early.resume, "config.json")) or {}):
            fail(f"--resume {early.resume}: no run there; of a checkpoint, name the folder around it")
        known = {name: saved[name] for name in known if name in saved}
    parser.set_defaults(**known)
    c = Config(**vars(parser.parse_args(argv)))
    for f in fields(c):
        value, (low, high) = getattr(c, f.name), map(float, (f.metadata["metavar"] or "nan..nan").split(".."))
        if value is not None and low == low and not low <= value <= high:  # also not a number
            fail(f"--{f.name} {value}: must be in {f.metadata['metavar']}")
    if c.prompts_per_step % c.updates_per_batch:
        fail(f"--updates_per_batch {c.updates_per_batch} must divide --prompts_per_step {c.prompts_per_step}")
    if c.pos_schedule == "entropy" and c.pos_weight > 1:
        fail(f"--pos_weight {c.pos_weight}: the entropy schedule keeps it in 0..1")
    idle = {"subset", "split", "prompt_column", "answer_column"} if c.dataset == "countdown" else set()
    idle |= {"pos_delta", "target_entropy"} if c.pos_schedule != "entropy" and not c.bonus_delta else set()
    idle |= {"pos_weight"} if c.pos_schedule in ("stage", "epoch") else set()
    if idle := sorted(idle & {a[2:].split("=")[0].replace("-", "_") for a in argv}):
        fail(f"--{idle[0]}: does nothing with --dataset {c.dataset} --pos_schedule {c.pos_schedule}")
    name = "-".join(name_of(asdict(c), short=True))[:200]
    c.output_dir = c.resume or c.output_dir or f"runs/{name}-seed{c.seed}"
    return c

def defaults(preset, model):
    """The value of every knob that no flag names."""
    demo = DEMO | PRESETS[preset] | DEMO_PRESETS.get(preset, {})
    return asdict(Config()) | (demo if is_demo(model) else PRESETS[preset])

def name_of(config, short=False):
    """A run's preset and the knobs that differ from it, seeds and places apart: name its folder, its row."""
    usual, apart = defaults(config["preset"], config["model"]), {"preset", "output_dir", "seed", *STARTING}
    changed = [f"{name}={Path(str(value)).name if short else value}" for name, value in config.items()
               if name in usual and name not in apart and str(value) != str(usual[name])]
    return [config["preset"], *changed]

# ---------------------------------- 10. problems

INSTRUCTIONS = {  # appended to every question, so that the verifier finds the answer
    "math": "Reason step by step, and put the final answer within \\boxed{}.",
    "code": "Write the solution in Python, in one ```python block.",
    "countdown": "Reason step by step. End with the expression, for example <answer>(1 + 2) * 3</answer>.",
}
COLUMNS = {"prompt_column": ("question", "problem", "prompt", "text"),
           "answer_column": ("test_list", "reward_model", "input_output", "answer", "solution",
                             "ground_truth")}

@dataclass
class Problem:
    prompt: str      # the text that the policy continues, template applied
    ids: list        # its tokens
    answer: object   # what the verifier compares a response with
    kind: str        # countdown, math or code
    row: dict = None  # of the data set, for rewards of one's own

def random_calculation(rand):
    """Three random numbers, a target, the steps to it ("7*3=21,21+5=26"), all whole and not negative."""
    while True:
        numbers = [rand.randint(1, 20) for _ in range(3)]
        values, steps = list(numbers), []
        while len(values) > 1:
            a, b = (values.pop(rand.randrange(len(values))) for _ in range(2))
            op = rand.choice("+-*/")
            a, b = (b, a) if op == "-" and a < b else (a, b)
            if op == "/" and (b == 0 or a % b):
                break
            values.append(int(verify.OPERATORS[op](a, b)))
            steps.append(f"{a}{op}{b}={values[-1]}")
        if len(steps) == 2 and 1 <= values[0] <= 99:
            return numbers, values[0], ",".join(steps)

def compact_countdown(numbers, target):
    """The demo model's prompt. It must not end in a space: some tokenizer classes strip one."""
    return f"{','.join(map(str, numbers))}={target}:"

def countdown_rows(count):
    """Yield `count` different rows like a data set's, the same for every seed of a run."""
    if count > 14000:  # of 16,206 that exist: the last ones would take forever to find
        fail(f"--num_prompts, --eval_prompts: countdown has 14000 problems to give, not {count}")
    rand, seen = random.Random("countdown"), set()
    while len(seen) < count:
        numbers, target, _ = random_calculation(rand)
        if (key := (*sorted(numbers), target)) not in seen:
            seen.add(key)
            yield {"question": f"With + - * / and brackets, use each number of {numbers} exactly once to get "
                               f"{target}.", "answer": {"numbers": numbers, "target": target}}

FORMS = (".json", ".jsonl", ".parquet", ".csv")

def here(name):
    """The path of a file or folder; what only looks like one fails, before the hub is asked for a minute."""
    looks_so = name[:1] in "./~" or name.count("/") > 1 or name.endswith(FORMS)
    if looks_so and not Path(name).exists():
        fail(f"{name}: there is no such file or folder")
    return Path(name)

def load_rows(c):
    """A hub id, save_to_disk folder or file -> its rows, shuffled, and the columns of question and answer."""
    path = here(c.dataset)
    with explained(f"--dataset {path}: cannot be loaded (a file: as {', '.join(FORMS)})"):
        import datasets  # takes seconds, and the demo does without
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            rows = datasets.load_from_disk(path)
            rows = rows if isinstance(rows, dict) else {"train": rows}
            rows = rows[c.split] if c.split in rows else fail(
                f"--split {c.split}: {path} has {', '.join(rows)}")
        elif path.is_file():
            if path.suffix not in FORMS:
                raise ValueError("another kind of file")
            form, texts = path.suffix[1:].replace("jsonl", "json"), {}
            if form == "csv":  # cells as they are written: 007 is no 7, nor 7 beside an empty cell 7.0
                header = datasets.load_dataset(form, data_files=str(path), split="train[:1]").column_names
                texts = {"converters": dict.fromkeys(header, str)}
            rows = datasets.load_dataset(form, data_files=str(path), split=c.split, **texts)
        else:
            name, _, revision = c.dataset.partition("@")
            known = datasets.get_dataset_config_names(name, revision=revision or None)
            subset = c.subset or ("main" if "main" in known else None)
            rows = datasets.load_dataset(name, subset, split=c.split, revision=revision or None)
    columns = []
    for flag, names in COLUMNS.items():
        names = (getattr(c, flag),) if getattr(c, flag) else names
        columns += [name for name in names if name in rows.column_names][:1] or fail(
            f"--{flag}: {c.dataset} has no {' or '.join(names)}, only {', '.join(rows.column_names)}")
    return (rows[i] for i in random.Random("rows").sample(range(len(rows)), len(rows))), columns

def read_answer(value):
    """An answer cell -> kind of problem, what its verifier compares with: after '####' (GSM8K), in the last
    box (MATH), in reward_model["ground_truth"] (DAPO-Math-17k), there as numbers and target (TinyZero), a
    list of asserts (MBPP) or of answers each of which is right, inputs and outputs (APPS). ValueError if
    there is none."""
    if isinstance(value, dict) and "ground_truth" in value:
        value = value["ground_truth"]
    if isinstance(value, str) and value.lstrip()[:1] == "{" and '"inputs"' in value:
        value = json.loads(value)
    if isinstance(value, dict) and {"inputs", "outputs"} <= set(value):
        cases, name = {key: value[key] for key in ("inputs", "outputs")}, value.get("fn_name")
        return "code", cases if not name else {"tests": [f"assert {name}(*{given!r}) == {expected!r}" for
                                                         given, expected in zip(*cases.values())]}
    if isinstance(value, dict) and {"numbers", "target"} <= set(value):
        return "countdown", {"numbers": value["numbers"], "target": value["target"]}
    if isinstance(value, list) and value and all(isinstance(text, str) and text.strip() for text in value):
        return ("code", {"tests": value}) if any(map(verify.is_test, value)) else ("math", value)
    missing = value is None or value != value or isinstance(value, (list, dict))  # a missing number is NaN
    text = "" if missing else str(value).rpartition("####")[2]
    text = verify.last_boxed(text) or "" if "\\boxed" in text else text
    if not text.strip():
        raise ValueError("no answer")
    return "math", text.strip()

def make_problem(row, columns, policy, c):
    """A row -> Problem; text gets an instruction, chat messages stay. ValueError says why it is none."""
    question, (kind, answer), tokenizer = row[columns[0]], read_answer(row[columns[1]]), policy.tokenizer
    if kind == "countdown" and is_demo(c.model):
        text = compact_countdown(**answer)
        return Problem(text, tokenizer.encode(text), answer, kind, row)
    instruction = INSTRUCTIONS[kind]
    if kind == "code" and "tests" in answer:  # one test shows the name and the arguments of all
        instruction += f" It must pass tests such as: {answer['tests'][-1]}"
        setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
        answer = {"tests": [setup, *answer["tests"]] if setup else answer["tests"]}
    if isinstance(question, str) and question.strip():
        question = [{"role": "user", "content": f"{question}\n{instruction}"}]
    try:  # content may come in parts
        messages = [{"role": m["role"], "content": m["content"] if isinstance(m["content"], str) else
                     "".join(part["text"] for part in m["content"])} for m in question]
    except (TypeError, KeyError):
        messages = []
    while messages and messages[-1]["role"] == "assistant":
        warn("a last turn of the assistant would give the answer away: left out")
        messages.pop()
    if not any(m["content"].strip() for m in messages):
        raise ValueError("no question, as text or chat messages")
    if c.system_prompt and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": c.system_prompt})
    contents = "\n".join(m["content"] for m in messages)
    text, chat = f"Question: {contents}\nAnswer:", tokenizer.chat_template
    if chat:
        with explained(f"--model {c.model}: its chat template refuses a prompt"):
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False,
                                                 **json.loads(c.chat_template_kwargs or "{}"))
    ids = tokenizer.encode(text, add_special_tokens=not chat)  # a template writes them itself
    if len(ids) > c.max_prompt_tokens:
        raise ValueError(f"a prompt longer than --max_prompt_tokens {c.max_prompt_tokens}")
    return Problem(text, ids, answer, kind, row)

def load_problems(c, policy):
    """-> (train, held_out), disjoint Problems; held out are at most a fifth, and the same for every seed."""
    builtin = c.dataset == "countdown"
    want = (c.num_prompts or (10000 if builtin else math.inf)) + c.eval_prompts
    rows, columns = (countdown_rows(want), ("question", "answer")) if builtin else load_rows(c)
    problems, skipped = {}, Counter()
    for row in tqdm(rows, "reading prompts", leave=False, delay=2, disable=RANK > 0):
        try:
            problem = make_problem(row, columns, policy, c)
            problems.setdefault(problem.prompt, problem)
        except ValueError as reason:
            skipped[str(reason)] += 1
        if len(problems) == want:
            break
    problems, reasons = [*problems.values()], ", ".join(f"{n} with {reason}" for reason, n in skipped.items())
    if skipped:
        say(f"skipped {skipped.total()} rows: {reasons}")
    if sum(n for reason, n in skipped.items() if "longer" not in reason) > len(problems) > 0:
        fail(f"--dataset {c.dataset}: most rows cannot be used: {reasons}")
    held_out = min(c.eval_prompts, max(len(problems) - (c.num_prompts or len(problems)), len(problems) // 5))
    kinds, count = {problem.kind for problem in problems}, len(problems) - held_out
    if not count:
        fail(f"--dataset {c.dataset}: no usable prompt in split {c.split} {reasons}")
    if c.reward in verify.REWARDS and kinds != {c.reward}:
        fail(f"--reward {c.reward}: the answers of {c.dataset} are for --reward {', '.join(kinds)}")
    if "code" in kinds and c.reward in ("auto", "code"):
        with explained(f"--dataset {c.dataset}: give --reward file.py:function"):
            verify.sandbox()
    if is_demo(c.model) and kinds != {"countdown"}:
        fail(f"--dataset {c.dataset}: the demo model knows countdown alone; name a --model")
    if c.pos_schedule == "epoch" and c.steps * c.prompts_per_step <= count:
        fail(f"--pos_schedule epoch: no 2nd epoch of {count} prompts; raise --steps or lower --num_prompts")
    return problems[held_out:], problems[:held_out]

def load_reward(name):
    """--reward -> a function (response, Problem) -> number: a verifier's, or one of the user's own file: it
    gets what it names among response, answer, prompt, row, finish_reason, else the first two."""
    path, _, function = name.rpartition(":")
    if name in ("auto", *verify.REWARDS):
        return lambda response, problem: verify.REWARDS[problem.kind](response, problem.answer)
    if not Path(path).is_file():
        fail(f"--reward {name}: choose auto, {', '.join(verify.REWARDS)} or file.py:function; no file {path}")
    sys.path.insert(0, str(Path(path).resolve().parent))  # it may import its neighbours
    with explained(f"--reward {name}: cannot be had from {path}"):
        function = runpy.run_path(path)[function]
        names = [*inspect.signature(function).parameters]
    if {*names} <= {"response", "answer", "prompt", "row", "finish_reason"}:  # the cut-off ones get no reward
        return lambda response, problem: function(**{name: value for name, value in (
            vars(problem) | {"response": response, "finish_reason": "stop"}).items() if name in names})
    return lambda response, problem: function(response, problem.answer)

# ------------------------------------ 11. policy

@dataclass
class Policy:
    model: torch.nn.Module   # any causal language model of transformers; fp32 weights
    tokenizer: object
    stop_ids: list           # a response ends with one of these tokens
    by_graph: bool = False   # decode by CUDA graphs

    @property
    def device(self):
        return self.model.device

    def autocast(self):
        """On a GPU forward passes run in bf16; the weights stay fp32, the master copy."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def save(self, folder, **state):
        """Write a Hugging Face folder, with `state` in trainer.pt: whole or, if interrupted, not at all."""
        new = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        try:
            with explained(f"{folder} cannot be written; the checkpoint before it is untouched"):
                if RANK == 0:
                    self.model.save_pretrained(new)
                    self.tokenizer.save_pretrained(new)
                    if state:
                        torch.save(state, new / "trainer.pt")
                    shutil.rmtree(folder, ignore_errors=True)
                    new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)

def is_demo(name):
    """Whether --model is the demo model: 'demo', or a folder it was saved in."""
    saved = Path(name, "config.json")
    return name == "demo" or saved.is_file() and '"rlvr_demo"' in saved.read_text(errors="replace")

def pretrain_demo(folder, steps=1000, batch=128):
    """Build the demo policy and save it: some minutes on two cores. It learns from random calculations, half
    of them with a random target instead of theirs: like web text, that leaves the skill there, but buried."""
    from tokenizers import Tokenizer, decoders, models
    special = dict(pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    vocabulary = {token: i for i, token in enumerate([*special.values(), *"0123456789+-*/=,:"])}
    core = Tokenizer(models.BPE(vocabulary, []))  # characters; whatever class AutoTokenizer picks keeps it
    core.decoder = decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(transformers.Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True, max_position_embeddings=128,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        rlvr_demo=True))
    policy, rand = Policy(model, tokenizer, [tokenizer.eos_token_id]), random.Random(0)
    # For the matrices between embedding and head Muon needs half the data that AdamW does.
    inner = {name: p.ndim == 2 and "embed" not in name for name, p in model.named_parameters()}
    matrices, others = ([p for n, p in model.named_parameters() if inner[n] == own] for own in (True, False))
    optimizers = {torch.optim.Muon(matrices, weight_decay=0.0): 0.02,  # and their learning rates
                  torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0): 4e-3}
    bar = tqdm(range(steps), desc="pretraining the demo model (once)", unit="step")
    for step in bar:
        prompts, responses = [], []
        for _ in range(batch):
            numbers, target, text = random_calculation(rand)
            target = rand.randint(1, 99) if rand.random() < 0.5 else target
            prompts.append(tokenizer.encode(compact_countdown(numbers, target)))
            responses.append(tokenizer.encode(text + tokenizer.eos_token))
        loss = -score(policy, prompts, responses, temperature=1.0)[0].sum() / sum(map(len, responses))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, lr in optimizers.items():
            optimizer.param_groups[0]["lr"] = lr * (min((step + 1) / 50, 1.0) * (1 - step / steps))
            optimizer.step()
        model.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    policy.save(folder)

def load_policy(c, checkpoint_folder=None):
    """-> Policy with fp32 weights and without dropout, so that sampler and trainer are one distribution."""
    source = checkpoint_folder or c.model
    if source == "demo":  # in the user's cache; count up when its recipe changes
        source = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "rlvr", "demo-1")
        if RANK == 0 and not source.exists():
            pretrain_demo(source)
        all_values(None)  # the others wait
    elif not checkpoint_folder:
        here(source)
    if Path(source, "adapter_config.json").exists():
        fail(f"--model {source}: a LoRA adapter; merge it into its model first (peft: merge_and_unload)")
    device = c.device.replace("auto", "cuda" if torch.cuda.is_available() else "cpu")
    options = dict(dtype=torch.float32, output_loading_info=True,  # eager: faster for one query, on a CPU
                   attn_implementation=None if device == "cuda" else "eager")
    # A CPU's products by oneDNN, on AMD twice as fast as by MKL, in fp32; on Intel, with AMX, in bf16.
    torch.set_float32_matmul_precision("highest" if is_demo(c.model) else "medium")
    with explained(f"--model {source}: no whole model of transformers (cut off? a Git LFS pointer?)"):
        tokenizer = AutoTokenizer.from_pretrained(source)
        model, info = AutoModelForCausalLM.from_pretrained(source, **options)
    with explained(f"--device {device}: not usable here"):
        model.to(device).eval()
    if missing := sorted(map(str, {*info["missing_keys"], *info["mismatched_keys"]})):
        fail(f"--model {source}: {len(missing)} weights missing, which would be random, such as {missing[0]}")
    other = {*(getattr(model.config, "layer_types", 0) or ())} - {"full_attention", "sliding_attention"}
    if other or getattr(model, "_is_stateful", False):
        fail(f"--model {source}: not all layers are attention, and only there can responses share a prompt")
    eos = model.generation_config.eos_token_id if model.generation_config else None
    stop_ids = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
    with suppress(Exception):  # a template may raise anything; what it writes behind a turn ends one, too
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answered"}]
        after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("answered")[2].lstrip()
        ends = tokenizer.encode(after, add_special_tokens=False)[:1]
        stop_ids |= {*ends} & {*tokenizer.added_tokens_decoder}
    for name in c.stop_tokens or []:
        token = int(name) if name.isdigit() else tokenizer.get_vocab().get(name)
        stop_ids |= {token} if token is not None else fail(f"--stop_tokens {name}: no token of {source}")
    if not stop_ids:
        fail(f"--model {source}: no eos token, so no response could end; set eos_token of its tokenizer")
    context = getattr(model.config, "max_position_embeddings", None)
    if c.max_prompt_tokens + c.max_new_tokens > (context or math.inf):
        fail(f"--max_prompt_tokens, --max_new_tokens: more than the {context} tokens of context of {source}")
    if len(tokenizer) > (known := len(model.get_input_embeddings().weight)):
        fail(f"--model {source}: its tokenizer has {len(tokenizer)} tokens, its embedding only {known}")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if c.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Policy(model, tokenizer, sorted(stop_ids), device == "cuda" and not c.eager_decoding)

# -------------------------------- 12. evaluation

def pass_at_k(n, correct, k):
    """Unbiased chance that one of k is right, when `correct` of n are (arXiv 2107.03374)."""
    return 1 - math.comb(n - correct, k) / math.comb(n, k)

def ngram_diversity(responses):
    """Different n-grams over all n-grams of token lists, mean of n = 1 to 4: 1 when none is repeated."""
    shares = []
    for n in range(1, 5):
        grams = [tuple(response[i:i + n]) for response in responses for i in range(len(response) - n + 1)]
        shares += [len(set(grams)) / len(grams)] if grams else []
    return sum(shares) / max(1, len(shares))

def calibration(confidence, correct, bins=10):
    """confidence (n,) in [0, 1], correct (n,) 0 or 1 -> expected calibration error, confidence - accuracy."""
    surplus, place = confidence - correct, (confidence * bins).long().clamp(0, bins - 1)
    per_bin = torch.zeros(bins).index_add(0, place, surplus)
    return per_bin.abs().sum().item() / len(surplus), surplus.mean().item()

def evaluate(policy, problems, reward, c):
    """Sample c.eval_samples (K) responses to each held-out problem, always by the same random numbers. ->
    metrics, see the README, at last 95 % intervals of pass@k, a bootstrap over problems. The confidence of a
    response is the geometric mean of its tokens' probabilities."""
    K = c.eval_samples
    rollouts = rollout(policy, problems, K, c, c.seed, "eval")
    rewards, _ = rewards_of(judge(rollouts, reward))  # (B,)
    right = rewards.view(-1, K) > 0.5  # (problems, K)
    ks = sorted({2**i for i in range(K.bit_length())} | {K})
    solved = torch.tensor([[pass_at_k(K, n, k) for k in ks] for n in right.sum(-1).tolist()])
    draws = torch.randint(len(right), (1000, len(right)), generator=torch.Generator().manual_seed(0))
    interval = solved[draws].mean(1).quantile(torch.tensor([0.025, 0.975]), 0).T  # (ks, 2)
    confidence = (rollouts.logp.sum(-1) / rollouts.mask.sum(-1)).exp().cpu()  # (B,)
    ece, overconfidence = calibration(confidence, right.flatten().float())
    distinct = {(i // K, text) for i, text in enumerate(rollouts.texts) if right[i // K, i % K]}
    names = [f"pass@{k}" for k in ks]
    return {f"avg@{K}": rewards.nanmean().item(), **dict(zip(names, solved.mean(0).tolist())),
            "entropy": rollouts.entropy[rollouts.mask].mean().item(), "distinct": len(distinct) / len(right),
            "diversity": statistics.fmean(ngram_diversity(rollouts.responses[i:i + K])
                                          for i in range(0, len(rewards), K)),
            "ece": ece, "overconfidence": overconfidence, "length": rollouts.mask.sum().item() / len(rewards),
            "truncated": 1 - sum(rollouts.finished) / len(rewards), "ungraded": rewards.isnan().sum().item(),
            "intervals": dict(zip(names, interval.tolist()))}

# ----------------------- 13. the folder of a run

def read_json(file):
    """The value in a JSON file, None where there is no file."""
    with explained(f"{file}: damaged"):
        return json.loads(file.read_text(encoding="utf8")) if file.exists() else None

def read_lines(file):
    """The records of a JSON Lines file, but for a last one that is being written."""
    return [json.loads(line) for line in Path(file).read_text(encoding="utf8").split("\n")[:-1]]

def write(file, text):
    """Write a file at once: whatever interrupts leaves the old one or the new one."""
    new = file.with_name(f".{file.name}.tmp")
    new.write_text(text, encoding="utf8", errors="backslashreplace")  # half a character has no other form
    new.replace(file)

def json_lines(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

class Run:
    """The folder of a run. The first process writes; nothing is deleted but what a run has written."""
    LENGTH = {"steps", "save_every", "keep", "log_samples"}  # what --resume may change: it is the same run
    lock = None

    def __init__(self, c):
        self.c, self.out, self.began = c, Path(c.output_dir), time.perf_counter()
        self.config = {name: "inf" if value == math.inf else value for name, value in asdict(c).items()
                       if name not in STARTING}  # JSON has no infinity
        self.last, self.summary = all_values(self.open() if RANK == 0 else None)[0]

    def checkpoints(self):
        """The last one last. A folder that the user has named alike is none of them."""
        return sorted((path for path in self.out.glob("checkpoint-*") if path.name[11:].isdigit()),
                      key=lambda path: int(path.name[11:]))

    def open(self):
        """-> last checkpoint or None, summary so far. Other folders are refused; what the logs have from
        after the checkpoint goes: those steps run again."""
        self.lock_folder()
        c, out, saved = self.c, self.out, read_json(self.out / "config.json")
        foreign = not saved and any(path.suffix != ".tmp" for path in out.iterdir())
        other = [f"--{name}" for name in self.config if saved and self.config[name] != saved.get(name)
                 and not (c.resume and name in self.LENGTH)]
        if foreign or other:
            what = "other files" if foreign else f"a run with another {', '.join(other)}"
            fail(f"--output_dir {out}: holds {what}; name another folder, or --resume {out}")
        last, summary = ([None] + self.checkpoints())[-1], read_json(out / "summary.json") or {}
        done = int(last.name[11:]) if last else 0
        if done > c.steps:
            fail(f"--steps {c.steps}: {out} has done {done} already")
        for log in filter(Path.exists, (out / name for name in LOGS)):
            if summary.get("steps") != c.steps:  # else the run is finished
                write(log, json_lines(record for record in read_lines(log) if record["step"] < done))
        for half_written in out.glob(".*.tmp"):
            shutil.rmtree(half_written, ignore_errors=True)
        return last, summary

    def lock_folder(self):
        """Two runs in one folder would spoil each other. The lock ends with the process, in whatever way."""
        self.out.mkdir(parents=True, exist_ok=True)
        with suppress(ImportError, OSError):  # not on Windows, nor on some network drives
            import fcntl
            if Run.lock is not None:  # of a run before in this process
                os.close(Run.lock)
            Run.lock = os.open(self.out, os.O_RDONLY)
            try:
                fcntl.flock(Run.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fail(f"--output_dir {self.out}: another run writes there; name another folder")

    def log(self, *records):
        """Append a list of records to each log; the file is closed, and so flushed, at once."""
        for name, new in zip(LOGS if RANK == 0 else (), records):
            with open(self.out / name, "a", encoding="utf8", errors="backslashreplace") as file:
                file.write(json_lines(new))

    def sum_up(self, **facts):
        """Write config and summary, from the moment on that there is something to continue."""
        self.summary |= facts
        for name in ("config", "summary") if RANK == 0 else ():
            write(self.out / f"{name}.json", json.dumps(getattr(self, name), indent=1))

    def save(self, policy, optimizer, state):
        """Write a checkpoint with all that an exact continuation needs; old ones go."""
        policy.save(self.out / f"checkpoint-{state['step']:06d}", **state, optimizer=optimizer.state_dict())
        for old in self.checkpoints()[:-self.c.keep] if RANK == 0 else ():
            shutil.rmtree(old)

    def finish(self, policy, held_out, reward):
        """Save the policy, evaluate it, sum up. The last line: the speed, medians over all steps but one."""
        c, out, log = self.c, self.out, read_lines(self.out / LOGS[0]) if self.c.steps else []
        policy.save(out / "final")
        if held_out:
            before, after = self.summary["before"], evaluate(policy, held_out, reward, c)
            say(f"\n{'held-out prompts':18}{'before':>10}{'after':>10}   95 % interval over prompts")
            self.summary["after"], intervals = after, after["intervals"]
            for name in [name for name in after if name != "intervals"]:
                interval = "   {:.3f} to {:.3f}".format(*intervals[name]) if name in intervals else ""
                say(f"{name:18}{before[name]:10.3f}{after[name]:10.3f}{interval}")
        speed = {stage: statistics.median([m[stage] for m in log[1:] or log] or [0]) for stage in STAGES}
        speed |= {"seconds_step": sum(speed.values()), "peak_memory": peak_memory()}
        seconds = time.perf_counter() - self.began
        self.sum_up(seconds=seconds, steps=c.steps, speed=speed, command=sys.argv, torch=torch.__version__,
                    transformers=transformers.__version__, threads=torch.get_num_threads(), processes=WORLD)
        say(f"\n{seconds:.0f} seconds. The policy is in {out / 'final'}, all about the run in {out}")
        say(json.dumps(speed))

def peak_memory():
    """The most memory that this process had so far, GiB: on the GPU, else in all (None on Windows)."""
    if torch.cuda.is_initialized() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    if sys.platform != "win32":
        import resource
        unit = 2**30 if sys.platform == "darwin" else 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

def stop_on_signals():
    """-> a list that Ctrl-C or SIGTERM fills (torchrun: first one, then the other); twice stops at once."""
    seen = []
    def on_signal(number, frame):
        if number in seen:
            raise KeyboardInterrupt
        seen.append(number)
        tqdm.write("stopping after this step; once more stops at once and loses the step")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return seen

def warn_if_useless(c, record, start):
    """Warn of what makes a run useless without stopping it. `start` is the entropy of the first batch."""
    if record["zero_adv"] > 0.7:
        warn("most groups have equal rewards and teach nothing: other prompts, or a larger --group_size")
    if record["entropy"] < 0.1 * start:
        warn("entropy under a tenth of its start: the policy has collapsed; lower --pos_weight")
    if record["entropy"] > 2 * start:
        warn("entropy twice its start: the policy falls apart; lower --lr or raise --pos_weight")
    if record["step"] >= c.warmup_steps and record["clip_pos"] + record["clip_neg"] == 0:
        warn("no token is clipped: --pos_weight only rescales the loss; raise --reuse or lower --eps_low")
    if record["truncated"] > 0.2:
        warn("over a fifth of the responses is cut off and gets reward 0: --max_new_tokens, --stop_tokens")

# ---------------- 14. comparing and reading runs

STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # t, 97.5 %, for 1 to 9 degrees of freedom

def read_run(folder):
    """A finished run -> its row of the report, the row before training, its log."""
    import pandas as pd
    config, summary = (json.loads(Path(folder, f"{name}.json").read_text()) for name in ("config", "summary"))
    before, after = ({name: value for name, value in summary[when].items() if name != "intervals"}
                     for when in ("before", "after"))
    run, log = {"run": name_of(config), "seed": config["seed"]}, pd.DataFrame(read_lines(folder / LOGS[0]))
    if len(log):
        last, end = log[len(log) * 9 // 10:], log[len(log) * 2 // 3:]
        after |= {"train reward": last.reward.mean(), "train entropy": last.entropy.mean(),
                  "dH_pos": log.dH_pos.mean(), "dH_neg": log.dH_neg.mean(),
                  "r_dH": (log.dH_pos + log.dH_neg).corr(log.dH)}
        if config["pos_schedule"] == "entropy" or config["bonus_delta"]:
            after["off target"] = (end.entropy - config["target_entropy"]).abs().mean()
    return run | after, run | {"run": "before training"} | before, log

def cell(values, reference):
    """Values by seed, of a run and of grpo -> "mean ± deviation (paired change in % ± 95 %, Student)"."""
    change, text = (100 * (values / reference - 1)).dropna(), f"{values.mean():.3f} ± {values.std():.3f}"
    if len(change):
        half = STUDENT[min(len(change), 10) - 2] * change.sem()
        text += f" ({change.mean():+.0f} ± {half:.0f} %)"
    return text.replace(" ± nan", "").replace("nan", "")

def report(patterns):
    """Print a Markdown table of finished runs, highest entropy first; its Spearman correlations last."""
    import pandas as pd
    runs = []
    for folder in sum((sorted(glob.glob(pattern)) for pattern in patterns), []):
        try:
            runs.append(read_run(Path(folder)))
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            print(f"left out {folder}, no finished run with an evaluation: {error!r}", file=sys.stderr)
    if not runs:
        fail(f"--report {' '.join(patterns)}: no finished run with an evaluation there")
    shared = set.intersection(*({*after["run"][1:]} for after, _, _ in runs))  # tells no run from another
    for after, _, log in runs:
        after["run"] = log["run"] = "-".join(part for part in after["run"] if part not in shared)
    table = pd.DataFrame([row for after, before, _ in runs for row in (before, after)])
    table = table.drop_duplicates(["run", "seed"]).set_index(["run", "seed"]).sort_index()
    passes = [name for name in table if name.startswith("pass@")]  # pass@8 and the last one say enough
    table = table.drop(columns=["length", "truncated", "ungraded", *({*passes[:-1]} - {"pass@8"})])
    compared = [name for name in table if name in runs[0][1]]  # and not what is from the log
    order = table.entropy.groupby("run").mean().sort_values(ascending=False).index
    print(f"| run | seeds | {' | '.join(table)} |\n|{' --- |' * (len(table.columns) + 2)}")
    for name in order:
        same = name.replace(name.split("-")[0], "grpo", 1)  # grpo with the same other flags, else plain grpo
        base = next((n for n in (same, "grpo") if n in order and name not in (n, "before training")), None)
        own = table.loc[name]
        against = (table.loc[base] if base else own * math.nan)[compared].reindex(columns=table.columns)
        cells = [cell(own[m], against[m]) for m in table]
        print(f"| {name} | {len(own)} | {' | '.join(cells)} |")
    ranks = table.drop("before training")[compared].corr("spearman").entropy.reindex(table.columns)
    cells = [f"{x:+.2f}".replace("+nan", "") for x in ranks]
    print(f"| Spearman with entropy | {len(runs)} | {' | '.join(cells)} |")
    draw(pd.concat([log for _, _, log in runs]), Path(patterns[0]).parent / "report.png")

def draw(logs, file):
    """A picture of the logs: a line per configuration, the mean of its seeds; a legend as wide as fits."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return print("no picture: it needs one more package, pip install matplotlib", file=sys.stderr)
    figure, axes = plt.subplots(2, 2, figsize=(12, 8), sharex=True, layout="constrained")
    for ax, name in zip(axes.flat, ("entropy", "reward", "lambda", "solved")):
        smooth = 1 if name == "lambda" else 9  # one batch is noise: mean of nine steps
        curves = logs.pivot_table(name, "step", "run", sort=False).rolling(smooth, 1, center=True).mean()
        curves.plot(ax=ax, title=name, colormap="tab20", legend=False)
    figure.legend(handles=ax.get_lines(), loc="outside lower center", ncols=1 + 75 // logs.run.map(len).max())
    figure.savefig(file, dpi=100)

def show(folder, step=None):
    """Print the logged rollouts of a step; on a terminal each token is on a shade of its entropy."""
    with explained(f"--show {folder}: no samples of a run there"):
        samples = read_lines(Path(folder, "samples.jsonl"))
        first, last = samples[0]["step"], samples[-1]["step"]
    step = last if step is None else step
    for sample in [sample for sample in samples if sample["step"] == step] or fail(
            f"--step {step}: {folder} has samples of the steps {first} to {last}"):
        for name in ("reward", "error", "advantage", "finish_reason", "extracted"):
            print(f"{name} {sample[name]!r}", end=", ")
        print(f"step {step}\n{sample['prompt']}", end="")
        for token, H in zip(sample["tokens"], sample["entropy"]):
            token = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", "\ufffd", token)  # or it steers the terminal
            shade = 232 + min(23, int(H * 12))  # from black to white, at 2 nats
            color = f"\033[48;5;{shade};38;5;{15 if shade < 244 else 0}m" if sys.stdout.isatty() else ""
            print(f"{color}{token}" + "\033[0m" * bool(color), end="")
        print()

# -------------------------------------- 15. main

def main(argv=None):
    transformers.utils.logging.set_verbosity_error()   # its advice is about nothing that a user sets here
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    warnings.formatwarning = lambda message, *_: f"\nrlvr.py: {message}\n"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if WORLD > 1:
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        c = parse_config(sys.argv[1:] if argv is None else argv)
        show(c.show, c.step) if c.show else report(c.report) if c.report else train(c)
    except KeyboardInterrupt:
        fail("interrupted; what was saved before is untouched")
    except OSError as error:  # a full disk, a folder without permission
        fail("a file cannot be read or written; what was saved before is untouched", error)
    finally:
        if WORLD > 1:
            torch.distributed.destroy_process_group()

if __name__ == "__main__":
    main()
