"""RLVR with Positive-Advantage Reweighting, in one readable file.

Reinforcement learning with verifiable rewards (RLVR): sample several responses to a prompt, let a program
verify each one (right 1, wrong 0), and make the right ones more likely. Accuracy rises, and the policy's
entropy collapses on the way: its answers get less varied and over-confident. "Revisiting Entropy in
Reinforcement Learning for Large Reasoning Models" (arXiv 2511.05993) finds that tokens with a positive
advantage drive the collapse. So their loss gets a weight, lambda, and lambda steers the entropy.

    python rlvr.py                                          # a demo on a laptop CPU, no network needed
    python rlvr.py --preset grpo                            # the same without the method
    python rlvr.py --model Qwen/Qwen2.5-0.5B-Instruct --dataset openai/gsm8k    # a real model on one GPU
    torchrun --nproc_per_node 8 rlvr.py --model ...         # the same run, its work shared by eight
    python rlvr.py --report 'runs/*'                        # compare runs
    python rlvr.py --help                                   # every knob

One step, in the order of this file: sample G responses to each prompt; verify them; turn the rewards of each
group into advantages; score every token (log-probability, entropy); update the policy with the clipped,
sign-weighted loss, in several mini-batches and passes; log.

Where this differs from the paper: the standard deviation of a group is the sample one (as in TRL and verl); a
response that the length limit cut off gets reward 0; dropout is off, so that sampler and trainer are the same
distribution; sizes and learning rates fit one GPU, and those of the demo a CPU.

Shapes at line ends: B responses (rows), G responses per prompt, P prompt tokens, T response tokens, N tokens
of all rows in one flat list, V vocabulary, D hidden size; U different prompts, b rows of a micro-batch; in
attention H heads (h of keys and values) of size d, K keys. """
import argparse
import copy
import glob
import importlib.util
import json
import math
import os
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

if __name__ == "__main__":  # the next lines take seconds: say so first
    print("rlvr: loading PyTorch and transformers ...", file=sys.stderr, flush=True)

import torch
import torch.distributed
import torch.nn.functional as F
import transformers
from torch.utils.checkpoint import checkpoint
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoTokenizer
from transformers import HfArgumentParser, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging as transformers_logging

import verify


def fail(message, error=None):
    """Stop with one line that says what is wrong and what to do (exit status 1)."""
    reason = f": {(str(error).strip() or type(error).__name__).splitlines()[0]}" if error else ""
    raise SystemExit(f"rlvr.py: {message}{reason}")


# Started by torchrun, every process runs this whole program on the same batch and shares the work: sampling,
# verifying, scoring and gradients are split, and what comes out is gathered or summed. So each has the same
# rewards, statistics, lambda and weights, and any of them, the first, writes. One process: nothing to share.
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def gather(value):
    """-> the values that the processes have here, in the order of their ranks."""
    values = [value] * WORLD
    if WORLD > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def gather_dict(part):
    """-> one dict of what the processes have here, each its own keys."""
    return {key: value for other in gather(part) for key, value in other.items()}


def all_sum(tensor):
    """Sum a tensor over the processes, in place."""
    if WORLD > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def say(text):
    if RANK == 0:
        print(text, flush=True)


def warn(text):
    """Say something once in a run, however often it is true."""
    if RANK == 0:
        warnings.warn(text, stacklevel=2)


def seed_of(*coordinates):
    """Randomness comes from coordinates such as (seed, "sample", step, prompt), never from what ran before: a
    resumed, re-chunked or re-ordered run draws the same numbers."""
    return random.Random(repr(coordinates)).getrandbits(63)


# -------------------------------------------------------------------------------------------------- 1. config

PRESETS = {  # every configuration that the paper compares, as changes to the defaults
    "grpo": {},
    "clip_higher": dict(eps_high=0.28),
    "clip_lower": dict(eps_low=0.28),
    "clip_tighter": dict(eps_low=0.12),
    "clip_free": dict(eps_low=math.inf, eps_high=math.inf),
    "adv_nonneg": dict(neg_weight=0.0),
    "adv_nonpos": dict(pos_weight=0.0),
    "rand_pos_clip": dict(pos_drop=0.1),
    "pos_adv_stage": dict(pos_schedule="stage"),
    "pos_adv_epoch": dict(pos_schedule="epoch"),
    "pos_adv_entropy": dict(pos_schedule="entropy", pos_weight=0.0),
    "ada_ent_reg": dict(bonus_delta=0.005),
    "clip_cov": dict(cov_share=0.0002),
    "kl_cov": dict(cov_share=0.002, cov_penalty=1.0),
    "entropy_adv": dict(entropy_adv=0.4),
}
# What fits the demo model: a tiny network takes large steps; why reuse and a tight clip, the README says.
DEMO = dict(steps=90, prompts_per_step=32, group_size=8, updates_per_batch=2, reuse=4, eps_low=0.05,
            eps_high=0.05, lr=1.5e-4, target_entropy=0.15, pos_delta=0.1, num_prompts=6000,
            max_prompt_tokens=32, max_new_tokens=32, sample_rows=2048, eval_prompts=256)
# The same configurations in proportion to the demo's clip, and to its batches of few tokens.
DEMO_PRESETS = {"clip_higher": dict(eps_high=0.07), "clip_lower": dict(eps_low=0.07),
                "clip_tighter": dict(eps_low=0.03), "clip_cov": dict(cov_share=0.01),
                "kl_cov": dict(cov_share=0.01), "pos_adv_epoch": dict(num_prompts=720)}  # it needs epochs


def knob(default, help, allowed=None):
    return field(default=default, metadata={"help": help, "metavar": allowed})


@dataclass
class Config:
    """Every knob. The defaults are for a real model on one GPU; DEMO and PRESETS override them."""
    model: str = knob("demo", "'demo', a Hugging Face id, or a folder with a causal language model")
    dataset: str = knob("countdown", "'countdown', a Hugging Face id, a save_to_disk folder, or a data file")
    subset: str | None = knob(None, "configuration of the data set ('main', where there is one)")
    split: str = knob("train", "split of the data set; the held-out prompts are taken from it too")
    num_prompts: int | None = knob(None, "train on at most this many distinct prompts (all)", "> 0")
    prompt_column: str | None = knob(None, "column of the question: text or chat messages (found by name)")
    answer_column: str | None = knob(None, "column of the answer or the tests (found by name)")
    reward: str = knob("auto", "auto, countdown, math, code, or path/to/file.py:function(response, answer)")
    preset: str = knob("pos_adv_entropy", f"one of {', '.join(PRESETS)}; explicit flags win")
    output_dir: str | None = knob(None, "folder of the run (runs/<preset>-<changed flags>-seed<seed>)")
    overwrite: bool = knob(False, "delete the run that is in --output_dir")
    resume: str | None = knob(None, "folder of a run to continue, with its config, from its last checkpoint")
    seed: int = knob(0, "seeds the order of the prompts and the sampling")

    steps: int = knob(200, "batches of rollouts", ">= 0")
    prompts_per_step: int = knob(32, "prompts per batch of rollouts", "> 0")
    group_size: int = knob(8, "responses per prompt (G)", ">= 2")
    updates_per_batch: int = knob(4, "mini-batches per pass over a batch of rollouts", "> 0")
    reuse: int = knob(1, "passes over a batch of rollouts", "> 0")
    advantage: Literal["std", "mean"] = knob("std", "(R - mean) / std of the group, or R - mean (Dr. GRPO)")
    eps_low: float = knob(0.2, "the ratio is clipped below 1 - eps_low (inf: never)", ">= 0")
    eps_high: float = knob(0.2, "the ratio is clipped above 1 + eps_high (inf: never)", ">= 0")
    pos_weight: float = knob(1.0, "lambda, weight of positive-advantage tokens (or its start)", ">= 0")
    neg_weight: float = knob(1.0, "weight of negative-advantage tokens", ">= 0")
    pos_schedule: Literal["constant", "stage", "epoch", "entropy"] = knob(
        "constant", "how lambda moves: constant, stage, epoch or entropy")
    target_entropy: float = knob(0.2, "the entropy that a schedule holds, nats per token (delta)", ">= 0")
    pos_delta: float = knob(0.05, "entropy schedule: how far lambda moves per batch (Delta)", ">= 0")
    pos_drop: float = knob(0.0, "share of the positive-advantage tokens left out at random", ">= 0")
    entropy_bonus: float = knob(0.0, "coefficient of an entropy bonus (or its start)", ">= 0")
    bonus_delta: float = knob(0.0, "how far the coefficient moves per batch, up below target_entropy", ">= 0")
    entropy_adv: float = knob(0.0, "alpha: add min(alpha H, |A| / 2) to a token's advantage", ">= 0")
    cov_share: float = knob(0.0, "share of tokens, highest covariance of logp and A, to leave out", ">= 0")
    cov_penalty: float = knob(0.0, "KL penalty that keeps those tokens instead (its coefficient)", ">= 0")
    lr: float = knob(1e-6, "learning rate of AdamW after warm-up", "> 0")
    warmup_steps: int = knob(5, "steps of linear warm-up", ">= 0")
    weight_decay: float = knob(0.0, "weight decay of AdamW", ">= 0")
    max_grad_norm: float = knob(1.0, "gradient clipping", "> 0")

    temperature: float = knob(1.0, "sampling temperature; log-probabilities and entropies use it too", "> 0")
    max_prompt_tokens: int = knob(512, "longer prompts are dropped", "> 0")
    max_new_tokens: int = knob(512, "longer responses are cut off and get reward 0", "> 0")
    sample_rows: int = knob(256, "responses decoded at once (memory: KV cache)", "> 0")
    micro_batch_tokens: int = knob(4096, "tokens per forward and backward pass (memory: activations)", "> 0")
    eager_decoding: bool = knob(False, "on a GPU: decode without CUDA graphs, for models that have none")
    gradient_checkpointing: bool = knob(False, "recompute activations in backward: slower, less memory")
    eval_prompts: int = knob(64, "held-out prompts (0: no evaluation)", ">= 0")
    eval_samples: int = knob(32, "responses per held-out prompt", "> 0")
    save_every: int = knob(50, "steps between checkpoints", "> 0")
    keep: int = knob(1, "checkpoints to keep", "> 0")
    log_samples: int = knob(8, "rollouts per step to write to samples.jsonl", ">= 0")
    trust_remote_code: bool = knob(False, "run Python code that comes with the model")
    refresh_demo: bool = knob(False, "pretrain the demo model again")
    show: str | None = knob(None, "train nothing: print rollouts of the run in this folder")
    step: int | None = knob(None, "the step to show (the last)", ">= 0")
    report: list[str] | None = knob(None, "train nothing: compare the finished runs in these folders")


STARTING = ("overwrite", "resume", "refresh_demo", "show", "step", "report")  # what a run does not depend on


class Parser(HfArgumentParser):
    def error(self, message):
        fail(f"{message} (python rlvr.py --help lists every flag)")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """One line per knob: no second spelling, no repeated name."""
    def __init__(self, prog):
        super().__init__(prog, max_help_position=30, width=170)

    def _format_action_invocation(self, action):
        return f"{action.option_strings[-1 if action.dest == 'help' else 0]} {action.metavar or ''}"


def parse_config(argv):
    """Command line -> Config. What wins, from weak to strong: the field's default, DEMO (when the model is
    the demo), the preset, the config of the run to resume, an explicit flag."""
    parser = Parser(Config, prog="rlvr.py", description=__doc__.splitlines()[0], allow_abbrev=False,
                    formatter_class=HelpFormatter, usage="python rlvr.py [--flag value ...]")
    early, _ = parser.parse_known_args([a for a in argv if a not in ("-h", "--help")])
    if early.preset not in PRESETS:
        fail(f"--preset {early.preset}: unknown; choose from {', '.join(PRESETS)}")
    if early.resume:
        try:
            saved = json.loads(Path(early.resume, "config.json").read_text())
            parser.set_defaults(**{f.name: saved[f.name] for f in fields(Config) if f.name in saved})
        except (OSError, ValueError, TypeError) as error:
            fail(f"--resume {early.resume}: no config.json of a run there", error)
    else:
        parser.set_defaults(**defaults(early.preset, early.model))
    c = Config(**vars(parser.parse_args(argv)))
    check_config(c, {a.lstrip("-").split("=")[0].replace("-", "_") for a in argv if a.startswith("--")})
    c.output_dir = c.resume or c.output_dir or f"runs/{name_of(asdict(c))}-seed{c.seed}"
    return c


def defaults(preset, model):
    """The value of every knob that no flag names."""
    demo = is_demo(model)
    return (asdict(Config()) | (DEMO if demo else {}) | PRESETS[preset]
            | (DEMO_PRESETS.get(preset, {}) if demo else {}))


def name_of(config):
    """What a run is, seeds and places apart: its preset and the knobs that differ from the preset's. It names
    the folder of the run and its row in a report."""
    usual = defaults(config["preset"], config["model"])
    changed = [f"{name}={Path(str(value)).name}" for name, value in config.items() if name in usual and
               str(value) != str(usual[name]) and name not in ("preset", "output_dir", "seed", *STARTING)]
    return "-".join([config["preset"], *changed])[:200]


def check_config(c, explicit=()):
    """Fail in one line on a value out of range, or on flags that contradict each other (`explicit` ones)."""
    for f in fields(c):
        value, allowed = getattr(c, f.name), f.metadata["metavar"]
        if allowed and value is not None:
            sign, bound = allowed.split()
            if not (value > float(bound) if sign == ">" else value >= float(bound)):
                fail(f"--{f.name} {value}: must be {allowed}")
    idle = sorted({"subset", "split", "prompt_column", "answer_column"} & set(explicit))
    for wrong, message in (
            (c.prompts_per_step % c.updates_per_batch,
             f"--updates_per_batch {c.updates_per_batch} has to divide "
             f"--prompts_per_step {c.prompts_per_step}"),
            (c.resume and c.overwrite, "--resume continues a run and --overwrite deletes it: leave out one"),
            (c.resume and "output_dir" in explicit, "--resume writes where the run is: no --output_dir"),
            (c.pos_schedule == "entropy" and c.pos_weight > 1,
             f"--pos_weight {c.pos_weight}: the entropy schedule keeps it in 0..1"),
            (c.pos_schedule in ("stage", "epoch") and "pos_weight" in explicit,
             f"--pos_weight is what --pos_schedule {c.pos_schedule} sets: leave out one"),
            (c.pos_schedule != "entropy" and "pos_delta" in explicit,
             f"--pos_delta does nothing with --pos_schedule {c.pos_schedule}"),
            (c.pos_schedule != "entropy" and not c.bonus_delta and "target_entropy" in explicit,
             "--target_entropy needs --pos_schedule entropy or a --bonus_delta"),
            (c.step is not None and not c.show, "--step goes with --show"),
            (c.dataset == "countdown" and idle, f"--{', --'.join(idle)}: means nothing for countdown")):
        if wrong:
            fail(message)


# ------------------------------------------------------------------------------------------------ 2. problems

INSTRUCTIONS = {  # appended to every question, so that the verifier finds the answer
    "math": "Reason step by step, and put the final answer within \\boxed{}.",
    "code": "Write the solution in Python, in one ```python block.",
    "countdown": "Reason step by step. End with the expression, for example <answer>(1 + 2) * 3</answer>.",
}
PLAIN_TEMPLATE = "Question: {question}\n{instruction}\nAnswer:"  # for a tokenizer without a chat template
COUNTDOWN_QUESTION = "With + - * / and brackets, use each number of {numbers} exactly once to get {target}."
PROMPT_COLUMNS = ("question", "problem", "prompt", "text")
ANSWER_COLUMNS = ("test_list", "reward_model", "answer", "solution", "ground_truth")


@dataclass
class Problem:
    prompt: str      # the text that the policy continues, template applied
    ids: list        # its tokens
    answer: object   # what the verifier compares a response with
    kind: str        # countdown, math or code


def random_calculation(rand, count=3, high=20, max_target=99):
    """A random legal calculation -> numbers, target, its steps as text ("7*3=21,21+5=26"). Intermediate
    results are whole and not negative."""
    while True:
        numbers = [rand.randint(1, high) for _ in range(count)]
        values, steps = list(numbers), []
        while len(values) > 1:
            a, b = (values.pop(rand.randrange(len(values))) for _ in range(2))
            op = rand.choice("+-*/")
            if op == "-" and a < b:
                a, b = b, a
            if op == "/" and (b == 0 or a % b):
                break
            values.append({"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[op])
            steps.append(f"{a}{op}{b}={values[-1]}")
        if len(steps) == count - 1 and 1 <= values[0] <= max_target:
            return numbers, values[0], ",".join(steps)


def compact_countdown(numbers, target):
    """The demo model's prompt. It must not end in a space: some tokenizer classes strip one."""
    return f"{','.join(map(str, numbers))}={target}:"


def countdown_problems(count):
    """Yield `count` distinct problems as (question, answer, kind), the same for every seed of a run."""
    if count > 14000:  # of 16,206 that exist: the last ones would take forever to find
        fail(f"--num_prompts, --eval_prompts: the countdown task has 14000 problems to give, not {count}")
    rand, seen = random.Random("countdown"), set()
    while len(seen) < count:
        numbers, target, _steps = random_calculation(rand)
        if (key := (*sorted(numbers), target)) not in seen:
            seen.add(key)
            answer = {"numbers": numbers, "target": target}
            yield COUNTDOWN_QUESTION.format(**answer), answer, "countdown"


def load_rows(c):
    """The rows of a data set: a hub id, a folder of save_to_disk, or a json, jsonl, parquet or csv file."""
    try:
        import datasets  # takes seconds, and the demo does without
    except ImportError:
        fail("--dataset needs one more package: pip install datasets")
    path = Path(c.dataset)
    form = {"jsonl": "json"}.get(path.suffix[1:], path.suffix[1:])
    if path.is_file() and form not in ("json", "parquet", "csv"):
        fail(f"--dataset {path}: unknown kind of file; use json, jsonl, parquet or csv")
    try:
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            rows = datasets.load_from_disk(path)
            if isinstance(rows, dict) and c.split not in rows:
                fail(f"--split {c.split}: --dataset {path} has {', '.join(rows)}")
            return rows[c.split] if isinstance(rows, dict) else rows
        if path.is_file():
            return datasets.load_dataset(form, data_files=str(path), split="train")
        subset = c.subset or ("main" if "main" in datasets.get_dataset_config_names(c.dataset) else None)
        return datasets.load_dataset(c.dataset, subset, split=c.split)
    except Exception as error:  # readers of foreign files raise anything; the user needs the one line
        fail(f"--dataset {c.dataset}: cannot be loaded", error)


def find_column(c, rows, flag, known):
    """The column that the flag names, else the first of the known names that the data set has."""
    given = getattr(c, flag)
    for name in [given] if given else known:
        if name in rows.column_names:
            return name
    fail(f"--dataset {c.dataset}: no column {given or ' or '.join(known)}; it has "
         f"{', '.join(rows.column_names)}; name one with --{flag}")


def read_answer(value):
    """An answer cell -> what the verifier compares with, or None. GSM8K has the answer after '####', MATH in
    the last box of the solution, DAPO-Math-17k in reward_model["ground_truth"]; a list is MBPP's asserts."""
    if isinstance(value, dict):
        value = value.get("ground_truth")
    if isinstance(value, list):
        return {"tests": value} if value and all(isinstance(test, str) for test in value) else None
    text = "" if value is None or value != value else str(value)  # a missing number is NaN
    if "####" in text:
        text = text.rsplit("####", 1)[1]
    elif "\\boxed" in text:
        text = verify.last_boxed(text) or ""
    return text.strip() or None


def is_question(value):
    """Text, or chat messages."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(m, dict) and isinstance(m.get("role"), str) and
                                   isinstance(m.get("content"), str) for m in value)
    return isinstance(value, str) and bool(value.strip())


def dataset_problems(c):
    """Yield the problems of a data set as (question, answer, kind); a question is text or chat messages.
    Repeated questions are left out: train and held-out prompts are disjoint. Unusable rows are counted."""
    rows = load_rows(c)
    if not len(rows):
        fail(f"--dataset {c.dataset}: has no rows in split {c.split}")
    prompt_column = find_column(c, rows, "prompt_column", PROMPT_COLUMNS)
    answer_column = find_column(c, rows, "answer_column", ANSWER_COLUMNS)
    seen, bad = set(), []
    for number in random.Random("rows").sample(range(len(rows)), len(rows)):
        row = rows[number]
        question, answer = row[prompt_column], read_answer(row[answer_column])
        if isinstance(answer, dict):  # MBPP's tests may need imports first
            setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
            answer["tests"] = [setup] * bool(setup) + answer["tests"]
        if not is_question(question) or answer is None:
            bad.append(number)
        elif (key := json.dumps(question)) not in seen:
            seen.add(key)
            yield question, answer, "code" if isinstance(answer, dict) else "math"
    if bad:
        say(f"skipped {len(bad)} rows without a question or an answer, for example row {min(bad)}")


def render(question, answer, kind, tokenizer):
    """A problem -> its prompt as text and tokens. Text gets the instruction; messages stay as they are."""
    instruction = INSTRUCTIONS[kind]
    if kind == "code":  # one test shows the name and the arguments that all of them use
        instruction += f" It must pass tests such as: {answer['tests'][-1]}"
    if tokenizer.chat_template:
        messages = question
        if isinstance(question, str):
            messages = [{"role": "user", "content": f"{question}\n{instruction}"}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return text, tokenizer.encode(text, add_special_tokens=False)  # the template wrote them already
    question = question if isinstance(question, str) else "\n".join(m["content"] for m in question)
    text = PLAIN_TEMPLATE.format(question=question, instruction=instruction)
    return text, tokenizer.encode(text)


def load_problems(c, policy):
    """-> (train, held_out), disjoint lists of Problem; the held-out ones are the same for every seed, and at
    most a fifth of a data set."""
    builtin, tokenizer = c.dataset == "countdown", policy.tokenizer
    want = (c.num_prompts or (10000 if builtin else math.inf)) + c.eval_prompts
    problems, dropped = [], 0
    for question, answer, kind in countdown_problems(want) if builtin else dataset_problems(c):
        if builtin and is_demo(policy.model):
            text = compact_countdown(**answer)
            ids = tokenizer.encode(text)
        else:
            text, ids = render(question, answer, kind, tokenizer)
        if len(ids) <= c.max_prompt_tokens:
            problems.append(Problem(text, ids, answer, kind))
        else:
            dropped += 1
        if len(problems) == want:
            break
    if dropped:
        say(f"dropped {dropped} prompts longer than --max_prompt_tokens {c.max_prompt_tokens}")
    if is_demo(policy.model) and not builtin:
        say(f"the demo model knows only the characters {DEMO_CHARACTERS} and does not see any other")
    beyond = len(problems) - (c.num_prompts or len(problems))
    held_out = min(c.eval_prompts, max(beyond, len(problems) // 5))
    if len(problems) == held_out:
        fail(f"--dataset {c.dataset}: no usable prompt ({dropped} are longer than --max_prompt_tokens)")
    return problems[held_out:], problems[:held_out]


# -------------------------------------------------------------------------------------------------- 3. policy

DEMO_CHARACTERS = "0123456789+-*/=,:"
DEMO_RECIPE = dict(numbers=3, high=20, max_target=99, careless=0.5, hidden=64, layers=4, heads=4,
                   feed_forward=256, steps=1000, batch=128, lr=4e-3, muon_lr=0.02, warmup=50, seed=0)


@dataclass
class Policy:
    model: torch.nn.Module   # any causal language model of transformers; fp32 weights
    tokenizer: object
    stop_ids: list           # a response ends with one of these tokens
    eager_decoding: bool = False
    decoder: object = field(default=None, init=False)  # the sampler's buffers, kept from batch to batch

    def __post_init__(self):
        config = self.model.config
        self.model.set_attn_implementation("rlvr")
        if (config._attn_implementation != "rlvr" or getattr(self.model, "_is_stateful", False) or
                set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}):
            fail(f"{type(self.model).__name__}: here all of a model's layers have to be attention, by the "
                 "AttentionInterface of transformers; take another --model, such as a Qwen3 or a Llama")

    def save(self, folder, **state):
        """Write a Hugging Face folder, with `state` in trainer.pt: whole or, if interrupted, not at all."""
        if RANK > 0:
            return
        folder = Path(folder)
        new = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        new.mkdir(parents=True, exist_ok=True)
        try:
            self.model.save_pretrained(new)
            self.tokenizer.save_pretrained(new)
            if state:
                torch.save(state, new / "trainer.pt")
            for file in new.iterdir():  # on the disk before the name is: no power cut leaves an empty one
                with open(file, "rb+") as written:
                    os.fsync(written.fileno())
            shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)
        except (OSError, RuntimeError, SafetensorError) as error:  # each writer has its own for a full disk
            fail(f"{folder} cannot be written; the checkpoint before it is untouched", error)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    @property
    def by_graph(self):
        return self.model.device.type == "cuda" and not self.eager_decoding

    def autocast(self, **options):
        device = self.model.device.type
        return torch.autocast(device, torch.bfloat16, enabled=device == "cuda", **options)


def is_demo(model):
    """Whether this is the demo model: the name 'demo', a folder it was saved in, or the loaded model."""
    if isinstance(model, str):
        saved = Path(model, "config.json")
        return model == "demo" or saved.is_file() and '"rlvr_demo"' in saved.read_text()
    return hasattr(model.config, "rlvr_demo")


def demo_tokenizer():
    """One token per character. A BPE without merges survives AutoTokenizer, whatever class that picks."""
    from tokenizers import Tokenizer, decoders, models
    special = dict(pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    vocabulary = [*special.values(), *DEMO_CHARACTERS]
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, []))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def pretrain_demo(folder):
    """Build the demo policy and save it as a Hugging Face folder: some minutes on two cores. It learns
    from random legal calculations. In a share of them the target is replaced by a random one: such careless
    text, arithmetic right and goal ignored, leaves what web text does: the skill is there, but buried."""
    recipe, tokenizer = DEMO_RECIPE, demo_tokenizer()
    rand = random.Random(recipe["seed"])
    with torch.random.fork_rng():
        torch.manual_seed(recipe["seed"])
        model = Qwen2ForCausalLM(Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=recipe["hidden"], intermediate_size=recipe["feed_forward"],
            num_hidden_layers=recipe["layers"], num_attention_heads=recipe["heads"],
            num_key_value_heads=recipe["heads"], tie_word_embeddings=True, max_position_embeddings=128,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            rlvr_demo=recipe))
    policy = Policy(model, tokenizer, [tokenizer.eos_token_id])
    # For the matrices between embedding and head Muon needs half the data that AdamW does.
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [torch.optim.Muon(matrices, lr=recipe["muon_lr"], weight_decay=0.0),
                  torch.optim.AdamW(others, lr=recipe["lr"], betas=(0.9, 0.95), weight_decay=0.0)]
    schedules = [torch.optim.lr_scheduler.LambdaLR(
        o, lambda s: min((s + 1) / recipe["warmup"], 1.0) * (1 - s / recipe["steps"])) for o in optimizers]
    bar = tqdm(range(recipe["steps"]), desc="pretraining the demo model (once)", unit="step")
    for _ in bar:
        prompts, responses = [], []
        for _ in range(recipe["batch"]):
            numbers, target, steps = random_calculation(
                rand, recipe["numbers"], recipe["high"], recipe["max_target"])
            if rand.random() < recipe["careless"]:
                target = rand.randint(1, recipe["max_target"])
            prompts.append(compact_countdown(numbers, target))
            responses.append(steps + tokenizer.eos_token)
        prompts, responses = tokenizer(prompts).input_ids, tokenizer(responses).input_ids
        loss = -score(policy, prompts, responses, temperature=1.0)[0].sum() / sum(map(len, responses))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    policy.save(folder)


def demo_folder(refresh=False):
    """The demo model's folder in the user's cache, named after the recipe; pretrained on first use."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlvr"
    folder = cache / f"demo-{seed_of(DEMO_RECIPE) % 16**8:08x}"
    if RANK == 0 and (refresh or not folder.exists()):
        pretrain_demo(folder)
    gather(None)  # the others wait
    return folder


def load_policy(c, checkpoint_folder=None):
    """-> Policy. The weights are fp32, the master copy; on a GPU forward passes run in bf16 autocast."""
    source = checkpoint_folder or (demo_folder(c.refresh_demo) if c.model == "demo" else c.model)
    try:
        trust = dict(trust_remote_code=c.trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(source, **trust)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **trust)
    except (OSError, ValueError, KeyError) as error:
        fail(f"--model {source}: neither a model folder nor one that Hugging Face serves now, or it needs "
             "--trust_remote_code", error)
    generation_eos = model.generation_config.eos_token_id if model.generation_config else None
    generation_eos = generation_eos if isinstance(generation_eos, list) else [generation_eos]
    stop_ids = sorted({tokenizer.eos_token_id, *generation_eos} - {None})
    if not stop_ids:
        fail(f"--model {source}: has no eos token, so no response could end; set eos_token of its tokenizer")
    context = getattr(model.config, "max_position_embeddings", None) or math.inf
    if c.max_prompt_tokens + c.max_new_tokens > context:
        fail(f"--max_prompt_tokens {c.max_prompt_tokens} and --max_new_tokens {c.max_new_tokens}: more than "
             f"the {context} tokens of context of {source}")
    known = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > known:
        fail(f"--model {source}: its tokenizer has {len(tokenizer)} tokens, its embedding only {known} rows")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if c.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Policy(model.eval().to(device), tokenizer, stop_ids, c.eager_decoding)


# ----------------------------------------------------------------------------------------------- 4. attention

FAR = 2**40  # the position of padding: no token is that far, so none sees it


def visible(places, keys, window=None):
    """Positions of queries (b, T) and keys (b, K) -> the mask (b, 1, T, K) of what each query sees."""
    places, keys = places[:, None, :, None], keys[:, None, None, :]
    seen = keys <= places
    return seen if window is None else seen & (keys > places - window)


def attention(query, key, value, mask, scale):
    """query (b, H, T, d), key and value (b, h, K, d), mask (b, 1, T, K) -> (b, H, T, d); H / h heads of the
    queries share a head of the keys."""
    shared, size = query.shape[1] // key.shape[1], query.shape
    if query.shape[2] == 1:  # as the queries of one head: no key is copied when decoding
        query = query.view(size[0], -1, shared, size[3])
    elif shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    if size[2] == 1 and query.device.type == "cpu":  # there the plain products are faster for one query
        weights = (query * (scale or size[3]**-0.5)) @ key.transpose(2, 3)
        out = weights.masked_fill(~mask, -math.inf).softmax(-1) @ value
    else:
        out = F.scaled_dot_product_attention(query, key, value, mask, scale=scale)
    return out.reshape(*size[:3], value.shape[3])


def attend(module, query, key, value, attention_mask, scaling=None, memory=None, sliding_window=None,
           **other):
    """What every attention layer of a policy calls, with positions applied. `memory`, a Decoder or a Packed,
    knows which keys there are and who sees them; without one this is the usual attention."""
    if memory is None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, scaling=scaling,
                                               sliding_window=sliding_window, **other)
    if other.get("softcap") is not None or other.get("s_aux") is not None:
        fail(f"{type(module).__name__} caps its attention or has sinks, which this program does not know")
    out = memory.attend(module.layer_idx, query, key, value, scaling, sliding_window)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("rlvr", attend)
AttentionMaskInterface.register("rlvr", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def run(model, ids, place, memory):
    """Tokens at their positions, both (b, T), through a model whose attention uses `memory`."""
    no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)  # memory has it: build none
    return model(ids, position_ids=place, attention_mask=no_mask, memory=memory, use_cache=False)


# ------------------------------------------------------------------------------------------------ 5. sampling

@dataclass
class Rollouts:
    """A batch of B responses. The loss mask is made from lengths, never from token ids: pad may equal eos."""
    problems: list         # B problems: each one G times in a row
    responses: list        # B lists of token ids, stop token included: without it no policy learns to stop
    finished: list         # B bools: ended with a stop token, or cut off by the length limit
    texts: list            # B decoded responses; None for one that cannot be decoded
    logp: torch.Tensor     # (B, T) log-probability of each token when it was drawn; 0 outside the mask
    entropy: torch.Tensor  # (B, T) entropy of the distribution it was drawn from, nats; 0 outside the mask
    mask: torch.Tensor     # (B, T)
    bytes_read: int = 0    # at least so many were read to decode them, by this process

    def score(self, policy, rows, c):
        """score() of these rows -> logp, entropy, f, each (b, T'), T' the longest response of them."""
        prompts, responses = [self.problems[i].ids for i in rows], [self.responses[i] for i in rows]
        return score(policy, prompts, responses, c.temperature)

    def micro_batches(self, rows, c):
        """Split rows into what fits a pass -> those of this process."""
        prompts = {i: tuple(self.problems[i].ids) for i in rows}
        return micro_batches(rows, prompts, self.responses, c.micro_batch_tokens)[RANK::WORLD]

    @torch.no_grad()
    def score_all(self, policy, rows, c):
        """Log-probability and entropy of these rows under the policy, two (B, T) grids, 0 elsewhere."""
        grids = torch.zeros(2, *self.mask.shape, device=self.mask.device)           # (2, B, T)
        for part in self.micro_batches(rows, c):
            logp, H, _ = self.score(policy, part, c)
            grids[:, part, :logp.shape[1]] = torch.stack([logp, H])
        return all_sum(grids)


def uniforms(rows, columns, *coordinates):
    """(rows, columns) numbers in [0, 1), a function of the coordinates."""
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed_of(*coordinates)))


def log_softmax_entropy(logits, temperature):
    """logits (n, V) -> log-probabilities (n, V) and entropy (n,) in nats, both fp32, at this temperature."""
    logp = (logits.float() / temperature).log_softmax(-1)
    return logp, -(logp.exp() * logp).sum(-1)


LOOK = {"cpu": 1, "cuda": 8}      # after how many tokens sampling looks which responses are finished
BUCKET = {"cpu": 32, "cuda": 128}  # the KV cache grows by so many columns at once


class Decoder:
    """The sampler's state, for R rows. All of it stays where it is in memory and a step reads and writes
    nothing else, not even a Python number: so a step can be captured as a CUDA graph, a launch in place of
    the thousand that a model makes per token. A graph is for one width and length of the KV cache; widths are
    powers of two and lengths multiples of BUCKET, so there are few. On a CPU the same step runs as it is.

    The cache is the memory of attend(): keys and values of a layer are (width, heads, length, size), without
    gaps at the start of their buffer; first the prompt's columns, padded on the right, then the response's.
    """
    def __init__(self, policy, rows, columns, T, temperature):
        def zeros(*shape, dtype=torch.long):
            return torch.zeros(*shape, dtype=dtype, device=policy.model.device)

        self.rows, self.columns, self.T, self.temperature = rows, columns, T, temperature
        self.device, self.graphs, self.pool = policy.model.device, {}, None
        self.by_graph = policy.by_graph
        self.model = decoding_copy(policy.model) if self.device.type == "cuda" else policy.model
        self.source, self.buffers = policy.model, {}  # layer -> keys and values: (buffer, heads, size)
        self.stop = torch.tensor(policy.stop_ids, device=self.device)
        self.uniforms, self.logp, self.entropy = (zeros(rows, T, dtype=torch.float) for _ in range(3))
        self.tokens, self.lengths, self.finished = zeros(rows, T), zeros(rows), zeros(rows, dtype=torch.bool)
        self.t = zeros(1)                       # the token to draw
        # Of the rows that are still decoded, the first `width` of these:
        self.row = zeros(rows)                  # which response it is
        self.token, self.place = zeros(rows, 1), zeros(rows, 1)  # the token to read, its position
        self.column = zeros(1)                  # its column in the cache, the same for all rows
        self.places = zeros(rows, columns)      # the position of each column, FAR for padding

    def fits(self, rows, columns, T, temperature):
        same = (T, temperature) == (self.T, self.temperature)
        return same and rows <= self.rows and columns <= self.columns

    def read(self, prompts, uniforms, width):
        """Start on new prompts, G responses each: fill the cache and draw the first tokens."""
        B, U, P = len(uniforms), len(prompts), max(map(len, prompts))
        self.G, self.width, self.length = B // U, width, round_up(P, BUCKET[self.device.type])
        refresh(self.model, self.source)
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], batch_first=True)
        ids, n = ids.to(self.device), torch.tensor([[len(p)] for p in prompts], device=self.device)
        column = torch.arange(self.columns, device=self.device)
        places = torch.where(column < P, column.masked_fill(column >= n, FAR), n + column - P)
        # Rows beyond the responses, if the width is more, are finished copies of the last one: a row that
        # sees no key at all would be NaN.
        prompt = torch.arange(width, device=self.device).clamp(max=B - 1) // self.G  # (width,)
        self.places[:width], self.place[:width], self.uniforms[:B] = places[prompt], n[prompt], uniforms
        for state in (self.tokens, self.lengths, self.logp, self.entropy, self.t):
            state.zero_()
        self.row.copy_(torch.arange(self.rows, device=self.device))
        torch.ge(self.row, B, out=self.finished)
        self.column.fill_(P)
        self.reading, self.masks = torch.arange(P, device=self.device).expand(U, P), {}
        hidden = run(self.model.base_model, ids, self.reading, self).last_hidden_state
        self.reading = None
        last = hidden[torch.arange(U, device=self.device), n[:, 0] - 1]              # (U, D)
        self.draw(self.model.get_output_embeddings()(last)[prompt])

    def cells(self, layer, width, length):
        """-> keys and values of a layer, as they lie in its buffers."""
        return [buffer[:width * heads * length * size].view(width, heads, length, size)
                for buffer, heads, size in self.buffers[layer]]

    def attend(self, layer, query, key, value, scale, window):
        """The attention of a layer, for attend()."""
        if layer not in self.buffers:  # values have the type that Linear layers compute in
            self.buffers[layer] = [(value.new_zeros(self.rows * self.columns * heads * size), heads, size)
                                   for _, heads, _, size in (key.shape, value.shape)]
        cached, w = self.cells(layer, self.width, self.length), self.width
        if self.reading is not None:  # each prompt once, its keys and values for all responses
            for cells, new in zip(cached, (key, value)):
                new = new.repeat_interleave(self.G, 0)
                cells[:new.shape[0], :, :new.shape[2]] = new
            places = keys = self.reading
        else:
            for cells, new in zip(cached, (key, value)):
                cells.index_copy_(2, self.column, new.to(cells.dtype))
            (key, value), places, keys = cached, self.place[:w], self.places[:w, :self.length]
        if window not in self.masks:
            self.masks[window] = visible(places, keys, window)
        return attention(query, key, value, self.masks[window], scale)

    def resize(self, width, length):
        """Keep `width` rows, unfinished ones first, and make room for `length` columns."""
        order = self.finished[self.row[:self.width]].int().argsort(stable=True)[:width]
        for state in (self.row, self.token, self.place, self.places):
            state[:width] = state[order]
        before, self.width, self.length = (self.width, self.length), width, length
        for layer in self.buffers:
            for old, new in zip(self.cells(layer, *before), self.cells(layer, width, length)):
                new[:, :, :before[1]] = old.index_select(0, order)

    def step(self):
        """Read the last tokens, draw the next ones."""
        w, self.masks = self.width, {}
        logits = run(self.model, self.token[:w], self.place[:w], self).logits[:, -1]
        self.place += 1
        self.column += 1
        self.draw(logits)

    def draw(self, logits):
        """Draw a token of each row from logits (width, V), and note it."""
        row = self.row[:self.width]
        all_logp, H = log_softmax_entropy(logits, self.temperature)                 # (width, V), (width,)
        # Invert the distribution function at u: one number per token, whatever the batch. The first clamp
        # keeps rounding from choosing past the last possible token, the second one is for NaN.
        cdf = all_logp.exp().cumsum(-1)
        u = self.uniforms[row, self.t].clamp(max=1 - 1e-6)[:, None]
        token = torch.searchsorted(cdf, u * cdf[:, -1:], right=True).clamp(max=cdf.shape[1] - 1)
        done = self.finished[row]               # such a row rides along until it is retired
        for grid, value in ((self.tokens, token), (self.entropy, H), (self.logp, all_logp.gather(-1, token))):
            grid[row, self.t] = value.view(-1).masked_fill(done, 0)
        self.lengths[row] += ~done
        self.finished[row] = done | (token == self.stop).any(-1)
        self.token[:self.width] = token
        self.t += 1

    def advance(self):
        """A step, by the CUDA graph of this width and length; the first one runs as it is and is captured."""
        key = self.width, self.length
        if not self.by_graph:
            self.step()
        elif key in self.graphs:
            self.graphs[key]()
        else:
            self.graphs[key] = self.capture()

    def must_read(self, sizes, lengths):
        """-> the bytes that decoding responses of these lengths (B,) to prompts of these sizes (B / G) cannot
        but read: all weights for each token step, and all keys and values of each row for its next token."""
        read = (m for m in self.model.modules() if not isinstance(m, torch.nn.Embedding))
        weights = sum(p.nbytes for module in read for p in module.parameters(recurse=False))
        column = sum(heads * size * buffer.itemsize for layer in self.buffers.values()
                     for buffer, heads, size in layer)
        n, steps = torch.tensor(sizes).repeat_interleave(len(lengths) // len(sizes)), lengths - 1
        return int(steps.max()) * weights + int((steps * n + steps * lengths // 2).sum()) * column

    def capture(self):
        """Do a step, then capture one, which does nothing yet -> the function that replays it."""
        self.pool = self.pool or torch.cuda.graph_pool_handle()  # they never run at the same time: one pool
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):         # on the stream of the capture, so that libraries are ready
            self.step()
        torch.cuda.current_stream().wait_stream(stream)
        try:
            # thread_local: other threads, such as NCCL's, may go on using the GPU
            with torch.cuda.graph(graph, self.pool, stream, capture_error_mode="thread_local"):
                self.step()
        except RuntimeError as error:
            fail("this model's decoding step cannot be a CUDA graph; use --eager_decoding", error)
        return graph.replay


def round_up(number, multiple):
    return -(-number // multiple) * multiple


def decoding_copy(model):
    """The model for sampling on a GPU: Linear layers have their weights in bf16, as autocast would cast them
    again for each token; everything else is shared with the model. See refresh()."""
    twin = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    for module in twin.modules():
        if isinstance(module, torch.nn.Linear):
            for name, p in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(p.detach().bfloat16(), requires_grad=False))
    return twin


def refresh(twin, model):
    """Bring what the twin of decoding_copy() does not share up to date."""
    for new, old in zip(twin.modules(), model.modules()):
        if new is not old and isinstance(new, torch.nn.Linear):
            for name, p in new.named_parameters(recurse=False):
                p.copy_(getattr(old, name))


@torch.no_grad()
def sample(policy, prompts, uniforms, temperature):
    """Decode G responses to each prompt, with a KV cache.

    prompts: lists of token ids. uniforms: (B, T) numbers in [0, 1), B = G x prompts, T the length limit:
    token t of row b is a function of uniforms[b, t] and the distribution alone, so batching changes nothing.
    Returns tokens (B, T), lengths (B,) with the stop token, finished (B,), logp (B, T), entropy (B, T).
    """
    (B, T), P, device = uniforms.shape, max(map(len, prompts)), policy.model.device
    bucket, look = BUCKET[device.type], LOOK[device.type]

    def width_of(rows):
        return 1 << (rows - 1).bit_length() if policy.by_graph else rows

    needs = width_of(B), round_up(P + T, bucket), T, temperature
    if not (policy.decoder and policy.decoder.fits(*needs)):
        policy.decoder = None  # give its memory back first
        policy.decoder = Decoder(policy, *needs)
    decoder = policy.decoder
    with policy.autocast(cache_enabled=False):  # a cached weight would be gone when a graph is replayed
        decoder.read(prompts, uniforms.to(device), width_of(B))
        for t in range(1, T):
            width = decoder.width
            if (t - 1) % look == 0:             # looking waits for the GPU: not at every token
                left = B - int(decoder.finished[:B].sum())
                if left == 0:
                    break
                if width_of(left) <= width // 2:  # retire rows: the cost follows the tokens produced
                    width = width_of(left)
            if width < decoder.width or P + t > decoder.length:
                decoder.resize(width, round_up(P + t, bucket))
            decoder.advance()
    return tuple(x[:B].clone() for x in (decoder.tokens, decoder.lengths, decoder.finished, decoder.logp,
                                         decoder.entropy))


def decode(tokenizer, response, special=False):
    """Token ids -> text, or None where the tokenizer cannot, as some cannot with half a character."""
    try:
        return tokenizer.decode(response, skip_special_tokens=not special)
    except (ValueError, TypeError, KeyError, IndexError):  # UnicodeDecodeError is a ValueError
        return None


def rollout(policy, problems, group_size, c, *coordinates):
    """Sample `group_size` responses to each problem -> Rollouts, at most c.sample_rows at once. `coordinates`
    (such as seed, "train", step) and the place in `problems` seed the random numbers."""
    device, width = policy.model.device, max(1, min(c.sample_rows // group_size, -(-len(problems) // WORLD)))
    starts, parts, bytes_read = range(0, len(problems), width), {}, 0
    quiet = RANK > 0 or len(starts) < 2 * WORLD
    for start in tqdm(starts[RANK::WORLD], desc="sampling", leave=False, disable=quiet):
        places = range(start, min(start + width, len(problems)))
        numbers = [uniforms(group_size, c.max_new_tokens, *coordinates, i) for i in places]
        part = sample(policy, [problems[i].ids for i in places], torch.cat(numbers), c.temperature)
        parts[start] = [x.cpu() for x in part]
        bytes_read += policy.decoder.must_read([len(problems[i].ids) for i in places], parts[start][1])
    parts = gather_dict(parts)
    grids = map(torch.cat, zip(*(parts[start] for start in starts)))
    tokens, lengths, finished, logp, entropy = (x.to(device) for x in grids)
    T = int(lengths.max())
    responses = [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist())]
    mask = torch.arange(T, device=lengths.device) < lengths[:, None]                # (B, T)
    texts = [decode(policy.tokenizer, response) for response in responses]
    return Rollouts([p for p in problems for _ in range(group_size)], responses, finished.tolist(), texts,
                    logp[:, :T], entropy[:, :T], mask, bytes_read)


# ---------------------------------------------------------------------------------- 6. rewards and advantages

def load_reward(name):
    """--reward -> a function (response, answer) -> float, or None for 'auto': as the kind of problem says."""
    path, _, function = name.rpartition(":")
    if not path:
        if name not in ("auto", *verify.REWARDS):
            fail(f"--reward {name}: choose auto, {', '.join(verify.REWARDS)} or path/to/file.py:function")
        return verify.REWARDS.get(name)
    if not Path(path).is_file():
        fail(f"--reward {name}: there is no file {path}")
    spec = importlib.util.spec_from_file_location("user_reward", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        fail(f"--reward {name}: {path} has no function {function}")
    return getattr(module, function)


def judge(rollouts, reward=None):
    """Verify this process's share of the responses -> {row: reward} and {row: why there is none}: it cannot
    be decoded, or the function raises on it. One that was cut off has given no answer: 0."""
    mine = range(len(rollouts.texts))[RANK::WORLD]
    errors = {i: "cannot be decoded" for i in mine if rollouts.texts[i] is None}
    asked = [i for i in mine if rollouts.finished[i] and i not in errors]
    reward = reward or verify.REWARDS[rollouts.problems[0].kind]
    try:
        verdicts, raised = verify.verify_batch(reward, [rollouts.texts[i] for i in asked],
                                               [rollouts.problems[i].answer for i in asked])
    except TimeoutError as error:
        fail("the reward function hangs", error)
    errors |= {asked[j]: f"{type(error).__name__}: {error}" for j, error in raised.items()}
    return dict.fromkeys(mine, 0.0) | dict(zip(asked, verdicts)) | dict.fromkeys(errors, math.nan), errors


def rewards_of(judged):
    """What judge() returned, in all processes -> rewards (B,) on the CPU, nan where there is none, and
    {row: reason} of those."""
    rewards, errors = map(gather_dict, judged)
    if len(errors) == len(rewards):
        fail("no response can be judged", next(iter(errors.values())))
    if errors:
        warn("some responses cannot be judged and are left out with their groups: see error in samples.jsonl")
    return torch.tensor([rewards[i] for i in range(len(rewards))]), errors


def advantages(rewards, kind="std"):
    """rewards (prompts, G) -> advantages of the same shape: A = (R - mean) / std within each group (GRPO), or
    R - mean for kind "mean" (Dr. GRPO, arXiv 2503.20783). A group with equal rewards gets exactly 0, and so
    does one with a nan."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    if kind == "std":
        centred = centred / rewards.std(-1, keepdim=True).clamp(min=1e-8)
    equal = (rewards == rewards[:, :1]).all(-1, keepdim=True)
    return centred.masked_fill(equal | rewards.isnan().any(-1, keepdim=True), 0.0)


# ----------------------------------------------------------------------------- 7. log-probability and entropy

def logp_entropy(hidden, head, targets, temperature, max_logits=2**25):
    """For hidden states (N, D) and `targets` (N,), three (N,) tensors in fp32: log-probability of the target;
    entropy H of the whole distribution in nats; and f, how raising the target's probability lowers H. A step
    of eta along the gradient of log p_a changes the logits' entropy by -eta f(a) to first order, with

        f(a) = p_a (log p_a + H) - sum_v p_v^2 (log p_v + H)        (arXiv 2509.26114)

    so f > 0 for the likely tokens and f < 0 for the rare ones. The head is applied to chunks of tokens, and
    again in backward: about `max_logits` logits (128 MB) exist at once, and not N x V (2.5 GB at V = 150,000
    and 4,096 tokens, several times over)."""
    def chunk(hidden, targets):
        logp, entropy = log_softmax_entropy(head(hidden), temperature)              # (n, V), (n,)
        with torch.no_grad():
            p = logp.exp()                                                          # (n, V)
            push = p * (logp + entropy[:, None])
            f = push.gather(-1, targets[:, None])[:, 0] - (p * push).sum(-1)
        return logp.gather(-1, targets[:, None])[:, 0], entropy, f

    size = max(1, max_logits // head.weight.shape[0])
    pieces = zip(hidden.split(size), targets.split(size))
    return tuple(map(torch.cat, zip(*(checkpoint(chunk, h, y, use_reentrant=False) for h, y in pieces))))


class Packed:
    """Prompts and responses in one flat sequence of N tokens, no padding, each prompt once for all of its
    responses: the memory of attend() for scoring. What a model does to each token by itself works on that
    sequence; attention alone needs rows, and gathers them: first those of the prompts, each by itself, then
    those of the responses, each behind its prompt."""
    def __init__(self, prompts, owner, responses, device):
        """prompts, responses: lists of token ids; owner: the number of each response's prompt."""
        pieces, U = [*prompts, *responses], len(prompts)
        size = torch.tensor([len(piece) for piece in pieces])
        start, owner = size.cumsum(0) - size, torch.tensor(owner)
        (prompt, is_prompt), (response, is_response) = (rows_of(start[i], size[i]) for i in
                                                        (slice(U), slice(U, None)))
        n, t = size[:U][owner][:, None], torch.arange(response.shape[1])            # (b, 1), (T,)
        column = torch.arange(prompt.shape[1]).where(is_prompt, FAR)                # (U, P)
        place = (n + t).expand(response.shape)                                      # (b, T)
        self.ids = torch.tensor([[token for piece in pieces for token in piece]], device=device)  # (1, N)
        self.place = torch.cat([column[is_prompt], place[is_response]])[None].to(device)          # (1, N)
        # The place of the token before each response token: it predicts that one.
        before = torch.cat([(start + size - 1)[owner][:, None], response], 1)       # (b, 1 + T)
        mask = torch.cat([torch.ones(len(owner), 1, dtype=torch.bool), is_response], 1)
        self.before, self.mask = before[mask].to(device), mask.to(device)
        # Of the prompts, then of the responses: what is gathered as queries (rows, T), as keys (rows, K), the
        # positions of both, and where in the flat result the tokens of the sequence are.
        self.blocks = [[x.to(device) for x in block] for block in (
            (prompt, prompt, column, column, is_prompt.flatten().nonzero()[:, 0]),
            (response, torch.cat([prompt[owner], response], 1), place, torch.cat([column[owner], place], 1),
             is_response.flatten().nonzero()[:, 0]))]
        self.masks = {}

    def attend(self, layer, query, key, value, scale, window):
        """The attention of a layer, for attend(): query (1, H, N, d) and so on -> (1, H, N, d)."""
        def gather(x, index):
            x = x[0].transpose(0, 1).index_select(0, index.flatten())               # (rows x T, H, d)
            return x.unflatten(0, index.shape).transpose(1, 2)                      # (rows, H, T, d)

        if window not in self.masks:
            self.masks[window] = [visible(places, keys, window) for _, _, places, keys, _ in self.blocks]
        flat = []
        for (queries, keys, _, _, kept), mask in zip(self.blocks, self.masks[window]):
            out = attention(gather(query, queries), gather(key, keys), gather(value, keys), mask, scale)
            flat.append(out.transpose(1, 2).flatten(0, 1).index_select(0, kept))    # (tokens, H, d)
        return torch.cat(flat).transpose(0, 1)[None]


def rows_of(start, size):
    """Pieces of a flat sequence, start and size (rows,) -> (rows, longest) places in it, which are real."""
    t = torch.arange(max(1, int(size.max())))
    real = t < size[:, None]
    return (start[:, None] + t).where(real, 0), real


def score(policy, prompts, responses, temperature):
    """The trainer's view of some responses, lists of token ids -> logp, entropy and f of logp_entropy(), each
    (b, T), 0 after the end of a response; T is the longest of these."""
    model, device, numbers = policy.model, policy.model.device, {}
    owner = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
    read = [response[:-1] for response in responses]  # the last token predicts none
    packed = Packed(numbers, owner, read, device)
    targets = torch.tensor([token for response in responses for token in response], device=device)  # (n,)
    mask = packed.mask[:, :max(map(len, responses))]                                # (b, T)
    with policy.autocast():
        hidden = run(model.base_model, packed.ids, packed.place, packed).last_hidden_state[0]  # (N, D)
        hidden = hidden.index_select(0, packed.before)                              # (n, D)
        flat = logp_entropy(hidden, model.get_output_embeddings(), targets, temperature)
    return tuple(torch.zeros(mask.shape, device=device).masked_scatter(mask, x) for x in flat)


def micro_batches(rows, prompts, responses, budget):
    """Split rows into micro-batches of at most `budget` tokens; alike lengths go together, since attention
    pads. prompts: a tuple of ids per row; the same one counts once in a micro-batch."""
    batches, tokens, seen = [], math.inf, set()
    for row in sorted(rows, key=lambda i: len(responses[i])):
        cost = len(responses[row]) + (prompts[row] not in seen) * len(prompts[row])
        if tokens + cost > budget:
            batches.append([])
            tokens, seen, cost = 0, set(), len(responses[row]) + len(prompts[row])
        batches[-1].append(row)
        seen.add(prompts[row])
        tokens += cost
    return batches


# ------------------------------------------------------------------------------- 8. the weighted clipped loss

def policy_loss(logp, old_logp, advantage, mask, normalizer, eps_low, eps_high, pos_weight, neg_weight=1.0,
                f=0.0):
    """The sign-weighted, token-level clipped objective (arXiv 2511.05993), negated:

        J = 1/normalizer * sum_it w_it min(r_it A_it, clip(r_it, 1 - eps_low, 1 + eps_high) A_it)

    with r = exp(logp - old_logp) and w = pos_weight (lambda) where A > 0, else neg_weight. logp, old_logp and
    mask are (b, T), f (see logp_entropy) too, advantage is (b,) or (b, T); `normalizer` counts the response
    tokens of the whole update, of which these rows may be a part. Returns the loss and, for the tokens of
    each sign, sums: how many, clipped, their ratio, and dH, the first-order change of the entropy that this
    update makes for a learning rate of 1: -w r A f / normalizer where the gradient is alive.
    """
    A = advantage.view(len(advantage), -1)                                          # (b, 1) or (b, T)
    ratio = (logp - old_logp).exp()                                                 # (b, T)
    weight = torch.where(A > 0, pos_weight, neg_weight)
    objective = weight * torch.min(ratio * A, ratio.clamp(1 - eps_low, 1 + eps_high) * A)  # (b, T)
    loss = -objective[mask].sum() / normalizer
    sums = {}
    with torch.no_grad():
        dH = -weight * ratio * A * f / normalizer
        for sign, chosen, clipped in (("pos", mask & (A > 0), ratio > 1 + eps_high),
                                      ("neg", mask & (A < 0), ratio < 1 - eps_low)):
            sums |= {f"tokens_{sign}": chosen.sum(), f"clip_{sign}": (chosen & clipped).sum(),
                     f"ratio_{sign}": ratio[chosen].sum(), f"dH_{sign}": dH[chosen & ~clipped].sum()}
    return loss, dict(zip(sums, torch.stack(list(sums.values())).tolist()))


def variants(c, advantage, old_logp, entropy, mask, *coordinates):
    """What the methods that the paper compares change before the update, token by token. advantage (B, 1),
    the others (B, T) -> advantages (B, 1) or (B, T), the mask of the tokens that have a gradient, and the
    mask of those that get a KL penalty. With the knobs at 0, advantage and mask come back."""
    penalized = torch.zeros_like(mask)
    if c.entropy_adv:  # arXiv 2506.14758: uncertain tokens count more; half of |A| at most, so no sign turns
        advantage = advantage + torch.min(c.entropy_adv * entropy, advantage.abs() / 2)
    if c.pos_drop:
        draws = uniforms(*mask.shape, *coordinates).to(mask.device)
        mask = mask & ~((advantage > 0) & (draws < c.pos_drop))
    if c.cov_share:    # arXiv 2505.22617: the few tokens that move entropy most, by the policy that sampled
        A = advantage.expand(mask.shape)
        covariance = (old_logp - old_logp[mask].mean()) * (A - A[mask].mean())
        highest = mask & (covariance >= covariance[mask].quantile(1 - c.cov_share))
        mask, penalized = (mask, highest) if c.cov_penalty else (mask & ~highest, penalized)
    return advantage, mask, penalized


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


def next_bonus(c, previous=None, entropy=None):
    """The coefficient of the entropy bonus: it rises while the entropy is under its target (ada_ent_reg)."""
    if previous is None:
        return c.entropy_bonus
    return max(0.0, previous + (c.bonus_delta if entropy < c.target_entropy else -c.bonus_delta))


# ---------------------------------------------------------------------------------------------- 9. evaluation

def pass_at_k(n, correct, k):
    """Chance that one of k samples or more is right, unbiased, from n samples of which `correct` are:
    1 - C(n - c, k) / C(n, k) (arXiv 2107.03374)."""
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def ngram_diversity(responses):
    """Different n-grams over all n-grams of some token lists, mean of n = 1 to 4: 1 when none is repeated."""
    shares = []
    for n in range(1, 5):
        grams = [tuple(response[i:i + n]) for response in responses for i in range(len(response) - n + 1)]
        shares += [len(set(grams)) / len(grams)] if grams else []
    return sum(shares) / max(1, len(shares))


def calibration(confidence, correct, bins=10):
    """confidence (n,) in [0, 1], correct (n,) 0 or 1 -> the expected calibration error over equal bins, and
    the over-confidence, mean confidence - accuracy."""
    surplus = confidence - correct
    place = (confidence * bins).long().clamp(0, bins - 1)
    per_bin = torch.zeros(bins).index_add(0, place, surplus)
    return per_bin.abs().sum().item() / len(surplus), surplus.mean().item()


def evaluate(policy, problems, reward, c):
    """Sample c.eval_samples (K) responses to each held-out problem. The random numbers are always the same: a
    change is the policy's. -> dict: avg (mean reward, avg@K), pass (k = 1, 2, 4, ...) with a 95 % interval
    (bootstrap over problems), entropy (nats per token), distinct (different correct responses per problem),
    diversity (n-grams), ece and overconfidence (a response's confidence is the geometric mean of its tokens'
    probabilities), length (tokens), truncated (share)."""
    K = c.eval_samples
    rollouts = rollout(policy, problems, K, c, c.seed, "eval")
    rewards, _ = rewards_of(judge(rollouts, reward))                                # (B,)
    right = rewards.view(-1, K) > 0.5                                               # (problems, K)
    ks = [2**i for i in range(K.bit_length())]
    solved = torch.tensor([[pass_at_k(K, n, k) for k in ks] for n in right.sum(-1).tolist()])
    draws = torch.randint(len(right), (1000, len(right)), generator=torch.Generator().manual_seed(0))
    interval = solved[draws].mean(1).quantile(torch.tensor([0.025, 0.975]), 0).T    # (ks, 2)
    confidence = (rollouts.logp.sum(-1) / rollouts.mask.sum(-1)).exp().cpu()        # (B,)
    ece, overconfidence = calibration(confidence, right.flatten().float())
    distinct, diversity = [], []
    for i, verdicts in enumerate(right.tolist()):
        own = slice(i * K, (i + 1) * K)
        distinct.append(len({text for text, good in zip(rollouts.texts[own], verdicts) if good}))
        diversity.append(ngram_diversity(rollouts.responses[own]))
    return {"avg": rewards.nanmean().item(),
            "pass": dict(zip(map(str, ks), solved.mean(0).tolist())),
            "pass_interval": dict(zip(map(str, ks), interval.tolist())),
            "entropy": rollouts.entropy[rollouts.mask].mean().item(),
            "distinct": statistics.fmean(distinct), "diversity": statistics.fmean(diversity),
            "ece": ece, "overconfidence": overconfidence,
            "length": rollouts.mask.sum().item() / len(rewards),
            "truncated": 1 - sum(rollouts.finished) / len(rewards), "ungraded": rewards.isnan().sum().item()}


def held_out_metrics(result):
    """A result of evaluate() as {label: value}, as tables show it."""
    ks = list(result["pass"])
    return {f"avg@{ks[-1]}": result["avg"], **{f"pass@{k}": result["pass"][k] for k in ks},
            **{name: result[name] for name in ("entropy", "distinct", "diversity", "ece", "overconfidence",
                                               "length", "truncated")}}


def show_table(before, after):
    """Print held-out results before and after training."""
    print(f"\n{'held-out prompts':18}{'before':>10}{'after':>10}   95 % interval over prompts")
    for (name, old), new in zip(held_out_metrics(before).items(), held_out_metrics(after).values()):
        low, high = after["pass_interval"].get(name.removeprefix("pass@"), (None, None))
        print(f"{name:18}{old:10.3f}{new:10.3f}" + (f"   {low:.3f} to {high:.3f}" if low is not None else ""))


# ------------------------------------------------------------------------------------ 10. the folder of a run

def saved_config(c):
    """The config as config.json has it: no infinity, which JSON lacks, nothing that only steers the start."""
    return {name: "inf" if value == math.inf else value for name, value in asdict(c).items()
            if name not in STARTING}


def open_run(c):
    """Make or reopen the folder of the run -> (folder, its last checkpoint or None, whether it is finished).
    A folder that holds this very run is continued. Then the lines that metrics.jsonl and samples.jsonl have
    from after the checkpoint are cut off: their steps run again."""
    out = Path(c.output_dir)
    config_file, summary_file = out / "config.json", out / "summary.json"
    if c.overwrite and config_file.exists():
        shutil.rmtree(out)
    if not (out.exists() and any(not file.name.endswith(".new") for file in out.iterdir())):
        return out, None, False
    saved = json.loads(config_file.read_text()) if config_file.exists() else None
    changed = sorted(f"--{n}" for n, value in saved_config(c).items() if saved and value != saved.get(n))
    if not saved or changed and not c.resume:
        what = f"a run with another {', '.join(changed)}" if saved else "other files"
        fail(f"--output_dir {out}: already holds {what}; continue a run with --resume {out}, delete it with "
             "--overwrite, or name another folder")
    if summary_file.exists() and json.loads(summary_file.read_text()).get("steps") == c.steps:
        return out, None, True
    last = max(out.glob("checkpoint-*"), default=None)
    done = int(last.name.split("-")[1]) if last else 0
    for file in (out / "metrics.jsonl", out / "samples.jsonl"):
        lines = file.read_text(encoding="utf8").splitlines(keepends=True) if file.exists() else []
        write_text(file, "".join(n for n in lines if n.endswith("}\n") and json.loads(n)["step"] < done))
    for half_written in out.glob(".*.tmp"):
        shutil.rmtree(half_written)
    return out, last, False


def append_lines(file, records):
    """Append JSON lines; the file is closed, and so flushed, at once."""
    if RANK > 0:
        return
    with open(file, "a", encoding="utf8", errors="backslashreplace") as lines:  # half a character is no crash
        lines.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def read_lines(file):
    return [json.loads(line) for line in Path(file).read_text(encoding="utf8").splitlines()]


def write_text(file, text):
    """Write a file, and the folder that it is in, at once: whatever interrupts leaves the old or the new."""
    if RANK == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f"{file.name}.new")
        new.write_text(text, encoding="utf8")
        new.replace(file)


def origin():
    """What repeats a run, beside its config: the command, the versions, the commit of this file."""
    here = str(Path(__file__).resolve().parent)
    git = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=40"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    return {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "command": sys.argv, "commit": commit or None,
            "python": platform.python_version(), "torch": torch.__version__,
            "transformers": transformers.__version__, "processes": WORLD, "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()}


def peak_memory():
    """The most memory that this process had so far, in GiB: on the GPU, else in all (on Windows: unknown)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    if sys.platform == "win32":
        return None
    import resource
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def now(device):
    """Seconds of a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def copy_bandwidth(device, size=2**28):
    """Bytes per second that a copy reads and writes."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = source.clone()
    began = now(device)
    for _ in range(10):
        target.copy_(source)
    return 10 * 2 * size / (now(device) - began)


def speed_of(log, reuse, device):
    """What a run took: medians over its steps, the first left out, of tokens per second and seconds per
    stage; peak memory. For a GPU also which share of its memory bandwidth decoding used: bytes that it has to
    read (see Decoder.must_read()) per second of sampling, over what a copy reaches."""
    log, speed, stages = log[1:] or log, {}, ("sample", "score", "verify", "update")

    def median(values):
        return statistics.median(values) if log else 0.0  # no log: a run of no steps
    for stage in stages:
        speed[f"seconds_{stage}"] = median(m[f"seconds_{stage}"] for m in log)
    speed["seconds_step"] = median(sum(m[f"seconds_{stage}"] for stage in stages) for m in log)
    for stage, passes in (("sample", 1), ("score", 1), ("update", reuse)):
        rate = median(m["tokens"] * passes / m[f"seconds_{stage}"] for m in log)
        speed[f"tokens_per_second_{stage}"] = rate
    if device.type == "cuda":
        rate = median(m["bytes_read"] / m["seconds_sample"] for m in log)
        speed["bandwidth_share"] = rate / copy_bandwidth(device)
    return speed | {"peak_memory": peak_memory()}


# ----------------------------------------------------------------------------------------------- 11. training

def stop_on_signals():
    """-> a list that Ctrl-C or SIGTERM fills, for a loop to look at; the same again stops at once. (torchrun
    passes a Ctrl-C on as a SIGTERM, to processes that have had it already.)"""
    seen = []

    def on_signal(number, frame):
        if number in seen:
            raise KeyboardInterrupt
        seen.append(number)
        tqdm.write("stopping after this step; once more stops at once and loses the step")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return seen


def look_out(c, record, start):
    """Warn of what makes a run useless without stopping it. `start` is the entropy of the first batch."""
    for wrong, text in (
            (record["zero_adv"] > 0.7,
             "most groups have equal rewards and teach nothing (zero_adv): the task is too easy or too hard; "
             "take other prompts or a larger --group_size"),
            (record["entropy"] < 0.1 * start,
             "the entropy is under a tenth of its start: the policy has collapsed; lower --pos_weight"),
            (record["entropy"] > 2 * start,
             "the entropy is twice its start: the policy falls apart; lower --lr or raise --pos_weight"),
            (record["step"] >= c.warmup_steps and record["clip_pos"] + record["clip_neg"] == 0,
             "no token is clipped, so --pos_weight only rescales the loss; raise --reuse or "
             "--updates_per_batch, or lower --eps_low and --eps_high"),
            (record["truncated"] > 0.2,
             "more than a fifth of the responses is cut off and gets reward 0; raise --max_new_tokens"),
            (record["logp_gap_mean"] > 0.02,
             "sampler and trainer drift apart (logp_gap_mean), and the ratios are wrong by as much")):
        if wrong:
            warn(text)


def update_policy(policy, optimizer, rollouts, old_logp, A, alive, penalized, state, c):
    """Stage 5: `reuse` passes over `updates_per_batch` mini-batches of whole groups. old_logp, A, alive and
    penalized are (B, T), see variants(). -> sums over all tokens and updates, and the mean gradient norm;
    ArithmeticError before an update whose gradient is not finite."""
    stats, norms, G, groups = Counter(), [], c.group_size, range(len(A) // c.group_size)
    teaches = (A[:, 0] != 0).tolist()
    policy.model.train(c.gradient_checkpointing)  # transformers does that in training mode only
    for update in range(c.reuse * c.updates_per_batch):
        reuse, part = divmod(update, c.updates_per_batch)
        rand = random.Random(seed_of(c.seed, "mini-batches", state["step"], reuse))
        chosen = rand.sample(groups, len(groups))[part::c.updates_per_batch]
        mini_batch = [i * G + g for i in chosen for g in range(G)]
        normalizer = sum(len(rollouts.responses[i]) for i in mini_batch)
        if not state["bonus"]:  # responses without an advantage have no gradient: save the pass
            mini_batch = [i for i in mini_batch if teaches[i]]
        for rows in rollouts.micro_batches(mini_batch, c):
            logp, H, f = rollouts.score(policy, rows, c)
            old, advantage, live, extra = (x[rows, :logp.shape[1]] for x in (old_logp, A, alive, penalized))
            loss, sums = policy_loss(logp, old, advantage, live, normalizer, c.eps_low, c.eps_high,
                                     state["pos_weight"], c.neg_weight, f)
            penalty = c.cov_penalty * (logp - old)[extra].abs().sum() - state["bonus"] * H[live].sum()
            loss = loss + penalty / normalizer
            loss.backward()
            stats.update(sums, loss=loss.item())
            if update == 0:  # nothing has changed yet, so the ratio is 1 up to rounding
                off = ((logp - old).exp() - 1).abs()                                # (b, T)
                stats.update(off=off.sum().item(), first=int(live.sum()))
                stats["ratio_gap"] = max(stats["ratio_gap"], off.max().item())
        for p in policy.model.parameters() if WORLD > 1 else ():
            p.grad = all_sum(torch.zeros_like(p) if p.grad is None else p.grad)
        norms.append(torch.nn.utils.clip_grad_norm_(policy.model.parameters(), c.max_grad_norm).item())
        if not math.isfinite(norms[-1]):  # as it is when the loss is not
            raise ArithmeticError("the loss or its gradient is not finite")
        optimizer.step()
        optimizer.zero_grad()
    policy.model.eval()
    total, parts = Counter(), gather(stats)
    for sums in parts:
        total.update(sums)
    total["ratio_gap"] = max(sums["ratio_gap"] for sums in parts)
    return total, statistics.fmean(norms)


def train(c):
    """The whole job: load, evaluate, train, evaluate. All that it leaves is in c.output_dir."""
    began = time.perf_counter()
    out, last, finished = gather(open_run(c) if RANK == 0 else None)[0]
    if finished:
        return say(f"{out}: this run is finished; --overwrite runs it again")
    reward = load_reward(c.reward)
    policy = load_policy(c, last)
    device = policy.model.device
    problems, held_out = load_problems(c, policy)
    if c.reward in verify.REWARDS and c.reward != problems[0].kind:
        fail(f"--reward {c.reward}: the answers of --dataset {c.dataset} are for --reward {problems[0].kind}")
    if problems[0].kind == "code" and c.reward in ("auto", "code"):
        try:
            verify.sandbox()
        except RuntimeError as error:
            fail(f"--dataset {c.dataset}: give --reward file.py:function", error)
    epochs = math.ceil(c.steps * c.prompts_per_step / len(problems))
    if c.pos_schedule == "epoch" and epochs < 2:
        fail(f"--pos_schedule epoch: {c.steps} steps x {c.prompts_per_step} prompts see no second epoch of "
             f"{len(problems)} prompts; raise --steps or lower --num_prompts")
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=c.lr, weight_decay=c.weight_decay, fused=True)
    state = {"step": 0, "pos_weight": next_pos_weight(c, 0), "bonus": next_bonus(c), "start_entropy": None}
    if last:
        state = torch.load(last / "trainer.pt", weights_only=True, map_location=device)
        optimizer.load_state_dict(state.pop("optimizer"))
    write_text(out / "config.json", json.dumps(saved_config(c), indent=1))
    append_lines(out / "starts.jsonl", [origin()])
    size = sum(p.numel() for p in policy.model.parameters()) / 1e6
    say(f"{c.preset}: {size:.2f} M parameters on {WORLD} x {device.type}, {len(problems)} prompts to train "
        f"on, {len(held_out)} held out; writing to {out}")
    summary_file = out / "summary.json"
    summary = json.loads(summary_file.read_text()) if last and summary_file.exists() else {}
    if held_out and "before" not in summary:
        summary["before"] = evaluate(policy, held_out, reward, c)
        write_text(summary_file, json.dumps(summary, indent=1))

    stop, background = stop_on_signals(), ThreadPoolExecutor(1)
    bar = tqdm(range(state["step"], c.steps), c.preset, c.steps, initial=state["step"], unit="step",
               disable=RANK > 0)
    for step in bar:
        # 1. Sample G responses to each prompt of this step; every epoch has its own order of the prompts.
        clock = [now(device)]
        places = range(step * c.prompts_per_step, (step + 1) * c.prompts_per_step)
        orders = {e: random.Random(seed_of(c.seed, "order", e)).sample(problems, len(problems))
                  for e in {i // len(problems) for i in places}}
        batch = [orders[i // len(problems)][i % len(problems)] for i in places]
        rollouts = rollout(policy, batch, c.group_size, c, c.seed, "train", step)
        responses, mask = rollouts.responses, rollouts.mask                         # B lists, (B, T)
        B, tokens = mask.shape[0], int(mask.sum())
        clock.append(now(device))

        # 2. Verify them, in the background. 3. Meanwhile score: log-probabilities under the policy that
        # sampled, by the code that trains; entropy.
        judged = background.submit(judge, rollouts, reward)
        old_logp, entropy = rollouts.score_all(policy, range(B), c)                 # (B, T)
        gap = (old_logp - rollouts.logp).abs()
        if not torch.isfinite(old_logp).all():
            good = max(out.glob("checkpoint-*"), default="the start")
            fail(f"step {step}: log-probabilities are not finite: the update before broke the policy; "
                 f"the last good state is {good}; try a lower --lr")
        if gap.sum() > 0.1 * tokens:
            fail(f"step {step}: sampler and trainer disagree by {gap.sum() / tokens:.2f} nats a token on "
                 f"average; are the logits of {c.model} its head applied to its last hidden state?")
        clock.append(now(device))
        rewards, errors = rewards_of(judged.result())                               # (B,)
        clock.append(now(device))

        # 4. Compare each response with its group; all its tokens get its advantage.
        groups = rewards.view(-1, c.group_size)                                     # (prompts, G)
        advantage = advantages(groups, c.advantage).view(-1, 1).to(device)          # (B, 1)
        A, alive, penalized = variants(c, advantage, old_logp, entropy, mask, c.seed, "drop", step)

        # 5. Update the policy, several times. Did the entropy of the same tokens then move as dH says?
        optimizer.param_groups[0]["lr"] = lr = c.lr * min(1.0, (step + 1) / max(1, c.warmup_steps))
        try:
            stats, norm = update_policy(policy, optimizer, rollouts, old_logp, A.expand(mask.shape), alive,
                                        penalized, state, c)
        except ArithmeticError as error:
            good = out / "last_good"
            policy.save(good)
            fail(f"step {step}: {error}; the weights before that update are in {good}; try a lower --lr")
        off = stats["off"] / max(1, stats["first"])
        if off > 0.05:
            fail(f"step {step}: before the first update the ratio was off 1 by {off:.2f} on average: "
                 "is scoring random (dropout)?")
        some = range(0, B, 4)
        dH = (rollouts.score_all(policy, some, c)[1] - entropy)[some].sum() / mask[some].sum()
        clock.append(now(device))

        # 6. Log, move lambda, save.
        solved = (groups > 0.5).any(-1).float().mean().item()
        record = {"step": step, "reward": rewards.nanmean().item(), "solved": solved,
                  "lambda": state["pos_weight"], "bonus": state["bonus"], "lr": lr}
        for name, sign in (("entropy", mask), ("entropy_pos", mask & (advantage > 0)),
                           ("entropy_neg", mask & (advantage < 0))):
            record[name] = entropy[sign].mean().item() if sign.any() else None
        for sign in ("pos", "neg"):
            count = stats[f"tokens_{sign}"]
            record[f"share_{sign}"] = count / (tokens * c.reuse)
            for name in ("clip", "ratio"):
                record[f"{name}_{sign}"] = stats[f"{name}_{sign}"] / max(1, count)
            record[f"dH_{sign}"] = stats[f"dH_{sign}"]  # over all updates of the step
        record |= {"dH": dH.item(), "loss": stats["loss"] / c.reuse / c.updates_per_batch, "grad_norm": norm,
                   "zero_adv": (groups == groups[:, :1]).all(-1).float().mean().item(), "length": tokens / B,
                   "truncated": 1 - sum(rollouts.finished) / B, "ungraded": len(errors), "tokens": tokens,
                   "logp_gap": gap.max().item(), "logp_gap_mean": gap.sum().item() / tokens,
                   "ratio_gap": stats["ratio_gap"], "bytes_read": rollouts.bytes_read,
                   "peak_memory": peak_memory()}
        for name, start, end in zip(("sample", "score", "verify", "update"), clock, clock[1:]):
            record[f"seconds_{name}"] = end - start
        append_lines(out / "metrics.jsonl", [record])
        shown = list(range(0, B, max(1, B // max(1, c.log_samples))))[:c.log_samples]
        shown += list(errors)[:c.log_samples]
        append_lines(out / "samples.jsonl", [{
            "step": step, "prompt": rollouts.problems[i].prompt, "response": rollouts.texts[i],
            "extracted": verify.extract(rollouts.problems[i].kind, rollouts.texts[i] or ""),
            "reward": None if i in errors else rewards[i].item(), "error": errors.get(i),
            "advantage": advantage[i].item(), "finish_reason": "stop" if rollouts.finished[i] else "length",
            "tokens": [decode(policy.tokenizer, [token], special=True) for token in responses[i]],
            "entropy": [round(H, 3) for H in entropy[i, :len(responses[i])].tolist()]} for i in shown])
        bar.set_postfix({name: record[name] for name in ("reward", "entropy", "lambda")}, refresh=False)
        start_entropy = state["start_entropy"] or record["entropy"]
        look_out(c, record, start_entropy)
        epoch = min(places.stop // len(problems) + 1, epochs)
        pos_weight = next_pos_weight(c, step + 1, state["pos_weight"], record["entropy"], epoch, epochs)
        state = {"step": step + 1, "pos_weight": pos_weight, "start_entropy": start_entropy,
                 "bonus": next_bonus(c, state["bonus"], record["entropy"])}
        stopping = any(gather(bool(stop)))
        if stopping or state["step"] % c.save_every == 0 or state["step"] == c.steps:
            policy.save(out / f"checkpoint-{state['step']:06d}", **state, optimizer=optimizer.state_dict())
            for old in sorted(out.glob("checkpoint-*"))[:-c.keep] if RANK == 0 else ():
                shutil.rmtree(old)
        if stopping:
            fail(f"stopped after step {step}; continue with: python rlvr.py --resume {out}")

    stop += [signal.SIGINT, signal.SIGTERM]  # no loop looks any more: the next one stops at once
    policy.save(out / "final")
    if held_out:
        summary["after"] = evaluate(policy, held_out, reward, c)
    if RANK > 0:
        return
    if held_out:
        show_table(summary["before"], summary["after"])
    summary |= {"seconds": time.perf_counter() - began, "steps": c.steps, "seed": c.seed, "preset": c.preset,
                "speed": speed_of(read_lines(out / "metrics.jsonl") if c.steps else [], c.reuse, device)}
    write_text(summary_file, json.dumps(summary, indent=1))
    say(f"\n{summary['seconds']:.0f} seconds. The policy is in {out / 'final'}, all about the run in {out}")
    say(json.dumps(summary["speed"]))


# ----------------------------------------------------------------------------- 12. comparing and reading runs

STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # t, 97.5 %, for 1 to 9 degrees of freedom


def correlation(xs, ys, ranked=False):
    """Pearson's correlation, or Spearman's if ranked; None where it is not defined."""
    if ranked:
        xs, ys = ([sum((v < x) + (v == x) / 2 for v in values) for x in values] for values in (xs, ys))
    try:
        return statistics.correlation(xs, ys)
    except statistics.StatisticsError:  # fewer than two values, or all the same
        return None


def read_run(folder):
    """A finished run -> (config, held-out values before, values after, log), else None. The values after have
    some of the log: reward and entropy on the prompts trained on, over the last tenth of the steps; the mean
    dH of each sign; r_dH, the correlation over the steps of the dH that the first order predicts with the
    measured one; and, where a schedule holds the entropy, its mean distance from the target over the last
    third of the steps."""
    try:
        config, summary = (json.loads(Path(folder, f"{n}.json").read_text()) for n in ("config", "summary"))
        log = read_lines(Path(folder, "metrics.jsonl"))
        before, after = (held_out_metrics(summary[when]) for when in ("before", "after"))
    except (OSError, KeyError, ValueError):
        return None
    mean = statistics.fmean
    if log:
        last, target = log[len(log) * 9 // 10:], config["target_entropy"]
        after |= {f"train {name}": mean(m[name] for m in last) for name in ("reward", "entropy")}
        after |= {name: mean(m[name] for m in log) for name in ("dH_pos", "dH_neg")}
        after["r_dH"] = correlation([m["dH_pos"] + m["dH_neg"] for m in log], [m["dH"] for m in log])
        if config["pos_schedule"] == "entropy" or config["bonus_delta"]:
            after["off target"] = mean(abs(m["entropy"] - target) for m in log[len(log) * 2 // 3:])
    return config, before, after, log


def cell(values, reference):
    """{seed: value} twice -> "mean ± standard deviation (change against the reference ± 95 % interval)"."""
    numbers = [value for value in values.values() if value is not None]
    if not numbers:
        return ""
    text = f"{statistics.fmean(numbers):.3f}"
    if len(numbers) > 1:
        text += f" ± {statistics.stdev(numbers):.3f}"
    changes = [100 * (value / reference[seed] - 1) for seed, value in values.items() if reference.get(seed)]
    if len(changes) > 1:
        error = statistics.stdev(changes) / len(changes)**0.5
        half = STUDENT[min(len(changes) - 2, len(STUDENT) - 1)] * error
        text += f" ({statistics.fmean(changes):+.0f} ± {half:.0f} %)"
    elif changes:
        text += f" ({changes[0]:+.0f} %)"
    return text


def report(patterns):
    """Print a Markdown table of finished runs, highest final entropy first: mean ± standard deviation over
    the seeds of a configuration; in brackets the change in percent against grpo, paired by seed, with half of
    its 95 % interval (Student); at last Spearman's correlation of entropy with each metric over all runs."""
    folders = [name for pattern in patterns for name in sorted(glob.glob(pattern))]
    runs = [run for folder in folders if (run := read_run(folder))]
    if not runs:
        fail(f"--report {' '.join(patterns)}: no finished run with an evaluation in {len(folders)} folders")
    seeds, logs = {"before training": {}}, {}  # configuration -> {seed: values}, configuration -> logs
    for config, before, after, log in runs:
        seeds.setdefault(name_of(config), {})[config["seed"]] = after
        seeds["before training"][config["seed"]] = before
        logs.setdefault(name_of(config), []).append(log)
    shared = [name for name in runs[0][1] if all(name in after for _, _, after, _ in runs)]
    passes = [name for name in shared if name.startswith("pass@")]
    hidden = {"length", "truncated", *passes[:-1]} - {"pass@8"}  # a table that can be read
    metrics = [name for name in shared if name not in hidden]
    columns = [*metrics, "train reward", "train entropy", "off target", "dH_pos", "dH_neg", "r_dH"]
    table = [["run", "seeds", *columns], ["---"] * (len(columns) + 2)]
    for name in sorted(seeds, key=lambda n: -statistics.fmean(v["entropy"] for v in seeds[n].values())):
        same = name.replace(name.split("-")[0], "grpo", 1)  # grpo with the same other flags, else plain grpo
        reference = [seeds[n] for n in (same, "grpo") if n in seeds and name not in (n, "before training")]
        row = [name, str(len(seeds[name]))]
        for column in columns:
            compared = reference[0] if reference and column in metrics else {}
            row.append(cell({seed: values.get(column) for seed, values in seeds[name].items()},
                            {seed: values.get(column) for seed, values in compared.items()}))
        table.append(row)
    final = {n: [after[n] for _, _, after, _ in runs] for n in metrics}
    ranks = {n: correlation(final["entropy"], final[n], ranked=True) for n in metrics}
    table.append(["Spearman with entropy", str(len(runs)),
                  *("" if ranks.get(n) is None else f"{ranks[n]:+.2f}" for n in columns)])
    print("\n".join(f"| {' | '.join(row)} |" for row in table))
    draw(logs, Path(patterns[0]).parent / "report.png")


def draw(logs, file):
    """A picture of {configuration: logs}, if matplotlib is there: a line per configuration, a band (one
    standard deviation) over its seeds."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return print("no picture: it needs one more package, pip install matplotlib", file=sys.stderr)
    panels = {"entropy": "entropy, nats per token", "reward": "reward", "lambda": "lambda",
              "solved": "pass@G: prompts with a correct response"}
    figure, axes = plt.subplots(2, 2, figsize=(12, 8), sharex=True, layout="constrained")
    for ax, (name, title) in zip(axes.flat, panels.items()):
        for color, (label, runs) in zip(plt.cm.tab20.colors * len(logs), logs.items()):
            steps = min(map(len, runs))
            values = torch.tensor([[m[name] for m in log[:steps]] for log in runs])  # (seeds, steps)
            if name != "lambda":  # one batch is noise: mean of nine steps
                values = F.avg_pool1d(values[:, None], 9, 1, 4, count_include_pad=False)[:, 0]
            mean, sd = values.mean(0), values.std(0, correction=min(1, len(runs) - 1))
            ax.plot(mean, color=color, label=label)
            ax.fill_between(range(steps), mean - sd, mean + sd, color=color, alpha=0.2, linewidth=0)
        ax.set(title=title, xlabel="step")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(file, dpi=100)
    print(f"picture: {file}", file=sys.stderr)


def show(folder, step=None):
    """Print the logged rollouts of a step: each token on a shade of its entropy, the advantage's sign in
    colour, the verdict and what the verifier judged. Plain text where the output is no terminal."""
    try:
        samples = read_lines(Path(folder, "samples.jsonl"))
    except (OSError, ValueError) as error:
        fail(f"--show {folder}: no samples of a run there", error)
    steps = sorted({sample["step"] for sample in samples})
    step = steps[-1] if step is None and steps else step
    if step not in steps:
        fail(f"--step {step}: {folder} has samples of the steps {steps[0]} to {steps[-1]}" if steps else
             f"--show {folder}: its samples.jsonl is empty")

    def paint(text, code):  # without control characters: a response must not steer the terminal
        text = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", "\ufffd", text)
        return f"\033[{code}m{text}\033[0m" if sys.stdout.isatty() and text else text

    for sample in (sample for sample in samples if sample["step"] == step):
        verdict = sample["error"] or ("right" if sample["reward"] > 0.5 else "wrong")
        A, H = sample["advantage"], statistics.fmean(sample["entropy"])
        print(f"\nstep {step}: {paint(verdict, '1')}, reward {sample['reward']}, "
              f"{paint(f'advantage {A:+.2f}', '32' if A > 0 else '31' if A < 0 else '2')}, entropy {H:.3f}, "
              f"ended by {sample['finish_reason']}, judged: {paint(str(sample['extracted']), '4')}")
        print(paint(sample["prompt"], "2"), end="")
        for token, H in zip(sample["tokens"], sample["entropy"]):
            shade = 232 + min(23, int(H * 12))  # from black to white, at 2 nats
            print(paint(token or "\ufffd", f"48;5;{shade};38;5;{15 if shade < 244 else 0}"), end="")
        print()


# --------------------------------------------------------------------------------------------------- 13. main

def main(argv=None):
    transformers_logging.set_verbosity_error()   # its advice is not about anything that a user sets here
    transformers_logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    warnings.formatwarning = lambda message, *_: f"\nrlvr.py: {message}\n"
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
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
        for number, handler in handlers.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
