"""RLVR with Positive-Advantage Reweighting, in one readable file.

Reinforcement learning with verifiable rewards (RLVR): sample several responses to a prompt, let a program verify
each one (right 1, wrong 0), and make the right ones more likely. Accuracy rises, and the entropy of the policy
collapses on the way: it answers with less variety and more confidence than it has earned. "Revisiting Entropy in
Reinforcement Learning for Large Reasoning Models" (arXiv 2511.05993) finds that the tokens with a positive
advantage drive the collapse. So their loss gets a weight lambda, and lambda steers the entropy.

    python rlvr.py                                                           # a demo on a laptop CPU, no network
    python rlvr.py --preset grpo                                             # the same without the method
    python rlvr.py --model Qwen/Qwen2.5-0.5B-Instruct --dataset openai/gsm8k # a real model on one GPU
    python rlvr.py --help                                                    # every knob

One step, in the order of this file: sample G responses to each prompt; verify them; turn rewards into advantages
within each group; score them (log-probability and entropy of every token); update the policy with the clipped,
sign-weighted loss, several mini-batches and passes per batch of rollouts; log.

Where this differs from the paper: the group's standard deviation is the sample one (as in TRL and verl); a
response cut off by the length limit gets reward 0; the entropy schedule moves lambda by the entropy of the
rollouts just trained on; `--preset` settings other than the paper's own (learning rate, sizes) fit one GPU, and
those of the demo a CPU. Dropout is off everywhere, so that sampler and trainer are the same distribution.

Shapes at line ends: B responses (rows), G responses per prompt, P prompt tokens, T response tokens, W = P + T,
N tokens in one flat list, V vocabulary, D hidden size. A row's response is aligned at column 0 of every (B, T).
"""
import argparse
import importlib.util
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    print("rlvr: loading PyTorch and transformers ...", file=sys.stderr, flush=True)  # seconds: say so first

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from transformers import (AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, PreTrainedTokenizerFast, Qwen2Config,
                          Qwen2ForCausalLM)
from transformers.utils import logging as transformers_logging

import verify


def fail(message):
    """Stop with one line that says what is wrong and what to do (exit status 1)."""
    raise SystemExit(f"rlvr.py: {message}")


def first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def seed_of(*coordinates):
    """Randomness comes from coordinates such as (seed, "sample", step, prompt), never from what ran before: a
    resumed, re-chunked or re-ordered run draws the same numbers."""
    return random.Random(repr(coordinates)).getrandbits(63)


# ---------------------------------------------------------------------------------------------------- 1. config

def knob(default, help):
    return field(default=default, metadata={"help": help})


@dataclass
class Config:
    """Every knob. The defaults are for a real model on one GPU; DEMO and PRESETS override them."""
    model: str = knob("demo", "'demo', a Hugging Face id, or a folder with a causal language model")
    dataset: str = knob("countdown", "'countdown', a Hugging Face id, a save_to_disk folder, or a json/jsonl/parquet/csv file")
    subset: str | None = knob(None, "configuration of the data set ('main' is taken when there is a choice and none is given)")
    split: str = knob("train", "split of the data set; held-out prompts are taken from it too")
    num_prompts: int | None = knob(None, "train on at most this many distinct prompts (all)")
    prompt_column: str | None = knob(None, "column with the question: text or chat messages (found by name)")
    answer_column: str | None = knob(None, "column with the answer or the tests (found by name)")
    reward: str = knob("auto", "auto, countdown, math, code, or path/to/file.py:function taking (response, answer)")
    preset: str = knob("pos_adv_entropy", "a configuration of the paper; explicit flags win")
    output_dir: str | None = knob(None, "where the run is written (runs/<preset>-...-seed<seed>)")
    overwrite: bool = knob(False, "delete the run that --output_dir holds")
    resume: str | None = knob(None, "run folder to continue from its last checkpoint, with its config")
    seed: int = knob(0, "seeds the order of the prompts and the sampling")

    steps: int = knob(200, "batches of rollouts")
    prompts_per_step: int = knob(32, "prompts per batch of rollouts")
    group_size: int = knob(8, "responses per prompt (G)")
    updates_per_batch: int = knob(4, "mini-batches per pass over a batch of rollouts")
    reuse: int = knob(1, "passes over a batch of rollouts")
    advantage: Literal["std", "mean"] = knob("std", "(R - mean) / std of the group, or R - mean (Dr. GRPO)")
    eps_low: float = knob(0.2, "the ratio is clipped below 1 - eps_low (inf: never)")
    eps_high: float = knob(0.2, "the ratio is clipped above 1 + eps_high (inf: never)")
    pos_weight: float = knob(1.0, "lambda, the weight of positive-advantage tokens; where the entropy schedule starts")
    neg_weight: float = knob(1.0, "weight of negative-advantage tokens")
    pos_schedule: Literal["constant", "stage", "epoch", "entropy"] = knob("constant", "how lambda moves")
    target_entropy: float = knob(0.2, "entropy schedule: the entropy to hold, in nats per token (delta)")
    pos_delta: float = knob(0.05, "entropy schedule: how far lambda moves per batch of rollouts (Delta)")
    lr: float = knob(1e-6, "learning rate of AdamW after warm-up")
    warmup_steps: int = knob(5, "steps of linear warm-up")
    weight_decay: float = knob(0.0, "weight decay of AdamW")
    max_grad_norm: float = knob(1.0, "gradient clipping")

    temperature: float = knob(1.0, "sampling temperature; also that of every log-probability and entropy")
    max_prompt_tokens: int = knob(512, "longer prompts are dropped")
    max_new_tokens: int = knob(512, "longer responses are cut off and get reward 0")
    sample_rows: int = knob(256, "responses decoded at once (memory: the KV cache)")
    micro_batch_tokens: int = knob(4096, "tokens per forward and backward pass (memory: the activations)")
    gradient_checkpointing: bool = knob(False, "recompute activations in backward: less memory, about 1.3x the time")
    eval_prompts: int = knob(64, "held-out prompts (0: no evaluation)")
    eval_samples: int = knob(32, "responses per held-out prompt")
    save_every: int = knob(50, "steps between checkpoints")
    keep: int = knob(1, "checkpoints to keep")
    log_samples: int = knob(8, "rollouts per step written to samples.jsonl")
    refresh_demo: bool = knob(False, "pretrain the demo model again")


# The demo's policy is small, so its steps are larger; reuse and a tight clip give the paper's sign effect (README).
DEMO = dict(steps=40, prompts_per_step=64, group_size=16, updates_per_batch=2, reuse=4, eps_low=0.05, eps_high=0.05,
            lr=1e-4, num_prompts=6000, target_entropy=0.15, max_prompt_tokens=32, max_new_tokens=32,
            sample_rows=2048, micro_batch_tokens=8192, eval_prompts=256)

PRESETS = {
    "grpo": {},
    "clip_free": dict(eps_low=math.inf, eps_high=math.inf),
    "adv_nonneg": dict(neg_weight=0.0),
    "adv_nonpos": dict(pos_weight=0.0),
    "pos_adv_stage": dict(pos_schedule="stage"),
    "pos_adv_epoch": dict(pos_schedule="epoch"),
    "pos_adv_entropy": dict(pos_schedule="entropy", pos_weight=0.0),
}


class Parser(HfArgumentParser):
    def error(self, message):
        fail(f"{message} (python rlvr.py --help lists every flag)")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """One line per knob: no second spelling, no repeated metavar."""
    def __init__(self, prog):
        super().__init__(prog, max_help_position=28, width=170)

    def _format_action_invocation(self, action):
        return action.option_strings[0]


def parse_config(argv):
    """Command line -> Config. What wins, from weak to strong: the field's default, DEMO (when the model is the
    demo), the preset, the config of the run to resume, an explicit flag."""
    parser = Parser(Config, prog="rlvr.py", description=__doc__.split("\n\n")[1], allow_abbrev=False,
                    formatter_class=HelpFormatter)
    early, _ = parser.parse_known_args([a for a in argv if a not in ("-h", "--help")])
    if early.preset not in PRESETS:
        fail(f"--preset {early.preset}: unknown; choose from {', '.join(PRESETS)}")
    if early.resume:
        saved = Path(early.resume, "config.json")
        if not saved.is_file():
            fail(f"--resume {early.resume}: no config.json there; give the folder of a run")
        parser.set_defaults(**json.loads(saved.read_text()), resume=early.resume)
    else:
        parser.set_defaults(**(DEMO if is_demo(early.model) else {}) | PRESETS[early.preset])
    config = Config(**vars(parser.parse_args(argv)))
    explicit = {a.lstrip("-").split("=")[0].replace("-", "_") for a in argv if a.startswith("--")}
    check_config(config, explicit)
    stem = [Path(name).name for name in (config.model, config.dataset) if name not in ("demo", "countdown")]
    config.output_dir = config.resume or config.output_dir or f"runs/{'-'.join([config.preset, *stem])}-seed{config.seed}"
    return config


def check_config(c, explicit=()):
    """Fail in one line on a value out of range or on flags that contradict each other."""
    for name in ("prompts_per_step", "updates_per_batch", "reuse", "max_prompt_tokens", "max_new_tokens", "sample_rows",
                 "micro_batch_tokens", "eval_samples", "save_every", "keep", "lr", "temperature", "max_grad_norm"):
        if not getattr(c, name) > 0:
            fail(f"--{name} {getattr(c, name)}: must be greater than 0")
    for name in ("steps", "eps_low", "eps_high", "pos_weight", "neg_weight", "warmup_steps", "weight_decay",
                 "eval_prompts", "log_samples", "target_entropy", "pos_delta"):
        if not getattr(c, name) >= 0:
            fail(f"--{name} {getattr(c, name)}: must not be negative")
    own_data = {"subset", "split", "prompt_column", "answer_column"} & explicit
    wrong = [
        (c.group_size < 2, f"--group_size {c.group_size}: an advantage compares the responses of a group; use 2 or more"),
        (c.num_prompts is not None and c.num_prompts < c.prompts_per_step,
         f"--num_prompts {c.num_prompts}: fewer than --prompts_per_step {c.prompts_per_step}"),
        (c.prompts_per_step % c.updates_per_batch,
         f"--updates_per_batch {c.updates_per_batch}: must divide --prompts_per_step {c.prompts_per_step}"),
        (c.resume and c.overwrite, "--resume continues a run and --overwrite deletes it: give one of them"),
        (c.resume and "output_dir" in explicit, "--resume writes to the folder it continues: leave out --output_dir"),
        (c.pos_schedule == "entropy" and c.pos_weight > 1, f"--pos_weight {c.pos_weight}: the entropy schedule keeps it in 0..1"),
        (c.pos_schedule in ("stage", "epoch") and "pos_weight" in explicit,
         f"--pos_weight is set by --pos_schedule {c.pos_schedule}: leave one of them out"),
        (c.pos_schedule != "entropy" and "target_entropy" in explicit,
         f"--target_entropy does nothing with --pos_schedule {c.pos_schedule}: use --pos_schedule entropy"),
        (c.dataset == "countdown" and own_data, f"--{min(own_data, default='')} does nothing with the built-in countdown task"),
    ]
    for bad, message in wrong:
        if bad:
            fail(message)


# -------------------------------------------------------------------------------------------------- 2. problems

INSTRUCTIONS = {  # appended to every question, so that the verifier finds the answer
    "math": "Reason step by step, and put the final answer within \\boxed{}.",
    "code": "Write the solution in Python, in one ```python block.",
    "countdown": "Reason step by step, and end with the expression in tags, for example <answer>(1 + 2) * 3</answer>.",
}
PLAIN_TEMPLATE = "Question: {question}\n{instruction}\nAnswer:"  # for a tokenizer without a chat template
COUNTDOWN_QUESTION = "Use each of the numbers {numbers} exactly once, with + - * / and brackets, to get {target}."
PROMPT_COLUMNS = ("question", "problem", "prompt", "text")
ANSWER_COLUMNS = ("test_list", "reward_model", "answer", "solution", "ground_truth")


@dataclass
class Problem:
    prompt: str        # the text that the policy continues, template applied
    ids: list          # its tokens
    answer: object     # what the verifier compares with
    kind: str          # countdown, math or code


def random_calculation(rand, count=3, high=20, max_target=99):
    """A random legal calculation -> numbers, target, the steps as text ("7*3=21,21+5=26"). Intermediate results
    are whole and not negative."""
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


def countdown_questions(count):
    """`count` distinct (numbers, target) pairs; the same ones in the same order for every seed of a run."""
    rand, seen = random.Random("countdown"), {}
    for _ in range(50 * count + 1000):  # bounded: only about 14,000 distinct problems exist
        numbers, target, _steps = random_calculation(rand)
        seen.setdefault((*sorted(numbers), target), (numbers, target))
        if len(seen) == count:
            return list(seen.values())
    fail(f"--num_prompts and --eval_prompts: the countdown task has fewer than {count} distinct problems")


def load_rows(c):
    """The rows of a data set: a hub id, a folder of save_to_disk, or a json, jsonl, parquet or csv file."""
    try:
        import datasets  # seconds to import, and not needed by the demo
    except ImportError:
        fail("--dataset needs the package datasets: pip install datasets")
    path, form = Path(c.dataset), {".jsonl": "json"}.get(Path(c.dataset).suffix, Path(c.dataset).suffix[1:])
    try:
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            rows = datasets.load_from_disk(path)
            return rows[c.split] if isinstance(rows, dict) else rows
        if path.is_file():
            if form not in ("json", "parquet", "csv"):
                fail(f"--dataset {path}: unknown kind of file; use json, jsonl, parquet or csv")
            return datasets.load_dataset(form, data_files=str(path), split="train")
        subsets = [] if c.subset else datasets.get_dataset_config_names(c.dataset)
        subset = c.subset or ("main" if "main" in subsets else None)
        return datasets.load_dataset(c.dataset, subset, split=c.split)
    except KeyError:
        fail(f"--split {c.split}: --dataset {c.dataset} has {', '.join(rows)}")
    except Exception as error:  # whatever a reader of foreign files may raise, the user needs the one line
        fail(f"--dataset {c.dataset}: cannot be loaded: {first_line(error)}")


def find_columns(columns, c):
    """The names of the question and answer columns, for the shapes that the field uses."""
    found = []
    for flag, given, known in (("prompt_column", c.prompt_column, PROMPT_COLUMNS),
                               ("answer_column", c.answer_column, ANSWER_COLUMNS)):
        name = next((n for n in ([given] if given else known) if n in columns), None)
        if name is None:
            fail(f"--dataset {c.dataset}: no column {given or ' or '.join(known)}; its columns are "
                 f"{', '.join(columns)}; name one with --{flag}")
        found.append(name)
    return found


def read_answer(value):
    """An answer cell -> what the verifier compares with, or None. A list is MBPP's asserts; GSM8K puts the answer
    after '####', MATH into the last box of the solution, DAPO-Math-17k into reward_model["ground_truth"]."""
    if isinstance(value, dict):
        value = value.get("ground_truth")
    if isinstance(value, list):
        return {"tests": value} if value and all(isinstance(test, str) for test in value) else None
    if value is None or isinstance(value, float) and math.isnan(value):
        return None
    text = str(value)
    if "####" in text:
        text = text.rsplit("####", 1)[1]
    elif "\\boxed" in text:
        text = verify.last_boxed(text)
    return text and text.strip() or None


def questions_of(c):
    """Yield (question, answer, kind) of the data set: question is text or chat messages. Repeated questions are
    left out, so that train and held-out prompts are disjoint; rows without a question or an answer are counted."""
    rows = load_rows(c)
    if len(rows) == 0:
        fail(f"--dataset {c.dataset}: no rows in split {c.split}")
    prompt_column, answer_column = find_columns(rows.column_names, c)
    seen, bad = set(), []
    for number in random.Random("rows").sample(range(len(rows)), len(rows)):
        row = rows[number]
        question, answer = row[prompt_column], read_answer(row[answer_column])
        if not question or answer is None:
            bad.append(number)
        elif (key := json.dumps(question)) not in seen:
            seen.add(key)
            yield question, answer, "code" if isinstance(answer, dict) else "math"
    if bad:
        print(f"skipped {len(bad)} rows without a question or an answer, for example row {min(bad)}")


def render(question, kind, answer, tokenizer):
    """Question -> (prompt text, its tokens). Text gets the instruction; chat messages are taken as they come."""
    instruction = INSTRUCTIONS[kind]
    if kind == "code":  # the first test tells the name and the signature that the others call
        instruction += f" It is tested like this: {answer['tests'][0]}"
    if tokenizer.chat_template:
        messages = question if isinstance(question, list) else [{"role": "user", "content": f"{question}\n{instruction}"}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return text, tokenizer.encode(text, add_special_tokens=False)  # the template wrote them already
    if isinstance(question, list):
        question = "\n".join(message["content"] for message in question)
    text = PLAIN_TEMPLATE.format(question=question, instruction=instruction)
    return text, tokenizer.encode(text)


def load_problems(c, model, tokenizer):
    """-> (train, held_out) lists of Problem, disjoint; held-out ones are the same for every seed. At most a fifth
    of a small data set is held out."""
    want = None if c.num_prompts is None else c.num_prompts + c.eval_prompts
    if c.dataset == "countdown":
        source = ((None, dict(numbers=n, target=t), "countdown") for n, t in countdown_questions(want or 6000 + c.eval_prompts))
    else:
        source = questions_of(c)
    problems, dropped = [], 0
    for question, answer, kind in source:
        if kind == "countdown" and is_demo(model):
            text = compact_countdown(**answer)
            ids = tokenizer.encode(text)
        else:
            question = question or COUNTDOWN_QUESTION.format(**answer)
            text, ids = render(question, kind, answer, tokenizer)
        if len(ids) > c.max_prompt_tokens:
            dropped += 1
        else:
            problems.append(Problem(text, ids, answer, kind))
        if len(problems) == want:
            break
    if dropped:
        print(f"dropped {dropped} prompts longer than --max_prompt_tokens {c.max_prompt_tokens}")
    held_out = min(c.eval_prompts, len(problems) // 5) if c.dataset != "countdown" else c.eval_prompts
    train = problems[held_out:]
    if len(train) < c.prompts_per_step:
        fail(f"--dataset {c.dataset}: {len(train)} usable prompts left to train on ({dropped} were longer than "
             f"--max_prompt_tokens), fewer than --prompts_per_step {c.prompts_per_step}")
    if tokenizer.unk_token_id is not None and any(tokenizer.unk_token_id in p.ids for p in problems[:100]):
        print(f"warning: the tokenizer does not know some characters of the prompts, such as {problems[0].prompt!r}")
    return train, problems[:held_out]


# ---------------------------------------------------------------------------------------------------- 3. policy

DEMO_RECIPE = dict(hidden=64, layers=4, heads=4, feed_forward=256, careless=0.5, steps=1000, batch=128, lr=4e-3,
                   muon_lr=0.02, warmup=50, seed=0)


def is_demo(model):
    """Whether this is the demo model: the name 'demo', a saved folder of it, or the loaded model itself."""
    if isinstance(model, str):
        saved = Path(model, "config.json")
        return model == "demo" or saved.is_file() and '"rlvr_demo"' in saved.read_text()
    return hasattr(model.config, "rlvr_demo")


def demo_tokenizer():
    """One token per character; as a BPE without merges it survives AutoTokenizer, whatever class that picks."""
    from tokenizers import Tokenizer, decoders, models
    vocabulary = ["<pad>", "<eos>", "<unk>", *"0123456789+-*/=,:"]
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, [], unk_token="<unk>"))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def pretrain_demo(folder):
    """Build the demo policy and save it as a Hugging Face folder: about two minutes on two cores. It learns from
    random legal calculations. In a share of them the target is replaced by a random one: careless text, arithmetic
    right and goal ignored, leaves what web text leaves in a pretrained model, the skill, buried."""
    recipe, tokenizer = DEMO_RECIPE, demo_tokenizer()
    rand = random.Random(recipe["seed"])
    with torch.random.fork_rng():
        torch.manual_seed(recipe["seed"])
        model = Qwen2ForCausalLM(Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=recipe["hidden"], intermediate_size=recipe["feed_forward"],
            num_hidden_layers=recipe["layers"], num_attention_heads=recipe["heads"],
            num_key_value_heads=recipe["heads"], tie_word_embeddings=True, max_position_embeddings=128,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, rlvr_demo=recipe))
    # Muon needs half the tokens of AdamW here; it is made for the matrices between embedding and head.
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [torch.optim.Muon(matrices, lr=recipe["muon_lr"], weight_decay=0.0),
                  torch.optim.AdamW(others, lr=recipe["lr"], betas=(0.9, 0.95), weight_decay=0.0)]
    schedules = [torch.optim.lr_scheduler.LambdaLR(
        o, lambda s: min((s + 1) / recipe["warmup"], 1.0) * (1 - s / recipe["steps"])) for o in optimizers]
    bar = tqdm(range(recipe["steps"]), desc="pretraining the demo model (once)", unit="step")
    for _ in bar:
        prompts, responses = [], []
        for _ in range(recipe["batch"]):
            numbers, target, steps = random_calculation(rand)
            if rand.random() < recipe["careless"]:
                target = rand.randint(1, 99)
            prompts.append(compact_countdown(numbers, target))
            responses.append(steps)
        texts = [p + r + tokenizer.eos_token for p, r in zip(prompts, responses)]
        ids = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").input_ids  # (B, W)
        start = torch.tensor([len(p) for p in prompts])[:, None]           # (B, 1) one character is one token
        end = start + torch.tensor([len(r) + 1 for r in responses])[:, None]
        place = torch.arange(1, ids.shape[1])                              # (W - 1) of the predicted token
        mask = (place >= start) & (place < end)                            # learn responses: prompts are random
        hidden = model.base_model(ids, use_cache=False).last_hidden_state[:, :-1]
        loss = F.cross_entropy(model.lm_head(hidden[mask]), ids[:, 1:][mask])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    save_folder(folder, lambda new: (model.save_pretrained(new), tokenizer.save_pretrained(new)))


def demo_folder(refresh=False):
    """The folder of the demo model in the user's cache, pretrained on first use; its name depends on the recipe."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlvr"
    folder = cache / f"demo-{seed_of(DEMO_RECIPE) % 16**8:08x}"
    if refresh or not folder.exists():
        pretrain_demo(folder)
    return str(folder)


def save_folder(folder, write):
    """Write a folder whole or not at all: `write(path)` fills a temporary one, which is then renamed."""
    folder = Path(folder)
    new = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        write(new)
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def load_policy(c, source=None):
    """-> (model, tokenizer, ids of the stop tokens). Weights are fp32 (the master copy); on a GPU the forward pass
    runs in bf16 autocast. `source` overrides c.model (a checkpoint)."""
    source = source or (demo_folder(c.refresh_demo) if c.model == "demo" else c.model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        fail(f"--model {c.model}: cannot be loaded: {first_line(error)}")
    stop = {tokenizer.eos_token_id}
    generation_eos = model.generation_config.eos_token_id if model.generation_config else None
    stop |= set(generation_eos) if isinstance(generation_eos, list) else {generation_eos}
    stop.discard(None)
    if not stop:
        fail(f"--model {c.model}: its tokenizer has no eos token, so no response could end; set tokenizer.eos_token")
    context = getattr(model.config, "max_position_embeddings", None) or math.inf
    if c.max_prompt_tokens + c.max_new_tokens > context:
        fail(f"--max_prompt_tokens {c.max_prompt_tokens} + --max_new_tokens {c.max_new_tokens}: more than the "
             f"{context} tokens of context that {c.model} has")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        fail(f"--model {c.model}: its tokenizer has {len(tokenizer)} tokens and its embedding only {rows} rows")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if c.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, sorted(stop)


def autocast(model):
    return torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda")


# -------------------------------------------------------------------------------------------------- 4. sampling

@dataclass
class Rollouts:
    """A batch of responses; (B, T) tensors are 0 outside the mask."""
    problems: list            # B problems: each one G times in a row
    tokens: torch.Tensor      # (B, T)
    lengths: torch.Tensor     # (B,) response tokens, the stop token included
    finished: torch.Tensor    # (B,) True: ended with a stop token; False: cut off by the length limit
    logp: torch.Tensor        # (B, T) log-probability of each token when it was drawn, fp32
    entropy: torch.Tensor     # (B, T) entropy of the distribution it was drawn from, nats, fp32
    texts: list               # B decoded responses

    @property
    def mask(self):           # (B, T) made from lengths, never from token ids: pad may equal eos
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths[:, None]


def log_softmax_entropy(logits, temperature):
    """(.., V) logits -> (.., V) log-probabilities and (..) entropy in nats, both fp32, at this temperature."""
    logp = (logits.float() / temperature).log_softmax(-1)
    return logp, -(logp.exp() * logp).sum(-1)


@torch.no_grad()
def sample(model, prompts, uniforms, temperature, stop_ids):
    """Decode G responses to each prompt.

    prompts: lists of token ids. uniforms: (B, T) numbers in [0, 1), B = G x prompts, T the length limit: token t of
    row b is a function of uniforms[b, t] and the distribution alone, so batching changes nothing.
    Returns tokens (B, T), lengths (B,), finished (B,), logp (B, T), entropy (B, T) as in `Rollouts`.
    """
    device, (B, T), P = model.device, uniforms.shape, max(map(len, prompts))
    G = B // len(prompts)
    ids = torch.tensor([[0] * (P - len(p)) + p for p in prompts], device=device)              # (B/G, P) left-padded
    real = torch.tensor([[0] * (P - len(p)) + [1] * len(p) for p in prompts], device=device)  # (B/G, P)
    stop = torch.tensor(stop_ids, device=device)
    tokens = torch.zeros(B, T, dtype=torch.long, device=device)
    logp, entropy = torch.zeros(B, T, device=device), torch.zeros(B, T, device=device)
    lengths, finished = torch.zeros(B, dtype=torch.long, device=device), torch.zeros(B, dtype=torch.bool, device=device)

    with autocast(model):
        # Each prompt is read once; its cache is then repeated for the G responses.
        out = model(ids, attention_mask=real, position_ids=(real.cumsum(-1) - 1).clamp(min=0), use_cache=True, logits_to_keep=1)
        cache, logits = out.past_key_values, out.logits[:, -1].repeat_interleave(G, 0)          # (B, V)
        cache.batch_repeat_interleave(G)
        real = F.pad(real, (0, T), value=1).repeat_interleave(G, 0)                             # (B, P + T)
        place = real[:, :P].sum(-1, keepdim=True)                                               # (B, 1) next position
        rows = torch.arange(B, device=device)                   # which responses the rows of the batch are
        alive = torch.ones(B, dtype=torch.bool, device=device)
        for t in range(T):
            all_logp, H = log_softmax_entropy(logits, temperature)                              # (rows, V), (rows,)
            # Invert the distribution function at u: one number per token, whatever the batch. The clamp keeps
            # rounding from ever choosing past the last token that has any probability.
            cdf = all_logp.exp().cumsum(-1)
            u = uniforms[rows.cpu(), t].to(device).clamp(max=1 - 1e-6)[:, None]
            token = torch.searchsorted(cdf, u * cdf[:, -1:], right=True)                        # (rows, 1)
            live = rows[alive]
            tokens[live, t] = token[alive, 0]
            logp[live, t], entropy[live, t] = all_logp.gather(-1, token)[alive, 0], H[alive]
            lengths[live] += 1
            alive &= ~torch.isin(token[:, 0], stop)
            finished[rows] = ~alive
            still = int(alive.sum())
            if still == 0 or t == T - 1:
                break
            if still <= len(rows) // 2:  # retire the finished rows: cost follows the tokens that are produced
                cache.batch_select_indices(alive.nonzero()[:, 0])
                rows, token, real, place = rows[alive], token[alive], real[alive], place[alive]
                alive = torch.ones(still, dtype=torch.bool, device=device)
            logits = model(token, attention_mask=real[:, :P + t + 1], position_ids=place + t, past_key_values=cache,
                           use_cache=True).logits[:, -1]
    return tokens, lengths, finished, logp, entropy


def rollout(model, tokenizer, stop_ids, problems, group_size, c, *coordinates):
    """Sample `group_size` responses to each problem -> Rollouts, at most c.sample_rows at once. `coordinates` (such
    as seed, "train", step) and the place in `problems` seed the random numbers."""
    T = c.max_new_tokens
    uniforms = torch.cat([torch.rand(group_size, T, generator=torch.Generator().manual_seed(seed_of(*coordinates, i)))
                          for i in range(len(problems))])
    parts, width = [], max(1, c.sample_rows // group_size)
    for i in tqdm(range(0, len(problems), width), desc="sampling", leave=False, disable=len(problems) <= width):
        chunk = [p.ids for p in problems[i:i + width]]
        parts.append(sample(model, chunk, uniforms[i * group_size:(i + width) * group_size], c.temperature, stop_ids))
    tokens, lengths, finished, logp, entropy = map(torch.cat, zip(*parts))
    T = int(lengths.max())
    texts = tokenizer.batch_decode([row[:n] for row, n in zip(tokens.tolist(), lengths.tolist())], skip_special_tokens=True)
    return Rollouts([p for p in problems for _ in range(group_size)], tokens[:, :T], lengths, finished, logp[:, :T],
                    entropy[:, :T], texts)


# ------------------------------------------------------------------------------------- 5. rewards and advantages

def load_reward(name):
    """--reward -> a function (response, answer) -> float, or None for 'auto' (what each problem says)."""
    if ":" in name:
        path, function = name.rsplit(":", 1)
        if not Path(path).is_file():
            fail(f"--reward {name}: no file {path}")
        spec = importlib.util.spec_from_file_location("user_reward", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not callable(getattr(module, function, None)):
            fail(f"--reward {name}: {path} has no function {function}")
        return getattr(module, function)
    if name not in ("auto", *verify.REWARDS):
        fail(f"--reward {name}: choose from auto, {', '.join(verify.REWARDS)}, or path/to/file.py:function")
    return verify.REWARDS.get(name)


def rewards_of(rollouts, reward):
    """Verify every response -> (B,) rewards on the CPU. A response that was cut off has given no answer: 0."""
    return torch.tensor([float((reward or verify.REWARDS[p.kind])(text, p.answer)) if done else 0.0
                         for p, text, done in zip(rollouts.problems, rollouts.texts, rollouts.finished.tolist())])


def advantages(rewards, kind="std"):
    """Rewards (prompts, G) -> advantages of the same shape, A = (R - mean) / std within each group (GRPO), or
    R - mean for kind "mean" (Dr. GRPO, arXiv 2503.20783). A group with equal rewards gives exactly 0."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    if kind == "std":
        centred = centred / rewards.std(-1, keepdim=True).clamp(min=1e-8)
    return torch.where((rewards == rewards[:, :1]).all(-1, keepdim=True), 0.0, centred)


# -------------------------------------------------------------------------------- 6. log-probability and entropy

def logp_entropy(hidden, head, targets, temperature, chunk_logits=2**25):
    """Log-probability of `targets` and entropy of the whole distribution, for N tokens, fp32.

    hidden (N, D) -> logp (N,), entropy (N,) in nats. The head is applied to chunks of tokens and again in backward,
    so that only about `chunk_logits` logits (128 MB in fp32) ever exist, not N x V: with V = 150,000 and 4,096
    tokens those would be 2.5 GB, several times over.
    """
    def chunk(hidden, targets):
        logp, entropy = log_softmax_entropy(head(hidden), temperature)                          # (n, V), (n,)
        return logp.gather(-1, targets[:, None])[:, 0], entropy

    size = max(1, chunk_logits // head.weight.shape[0])
    parts = [checkpoint(chunk, h, y, use_reentrant=False) for h, y in zip(hidden.split(size), targets.split(size))]
    return tuple(map(torch.cat, zip(*parts)))


def score(model, rollouts, rows, temperature):
    """The trainer's view of some rows of the rollouts -> logp (b, T), entropy (b, T), 0 outside the mask.

    Prompt and response follow each other without a gap and rows are padded on the right: causal attention then
    never sees padding, and no attention mask is needed.
    """
    prompts, lengths = [rollouts.problems[i].ids for i in rows], rollouts.lengths[rows]
    sequences = [torch.tensor(p, device=model.device) for p in prompts]
    sequences = [torch.cat([p, rollouts.tokens[i, :n]]) for p, i, n in zip(sequences, rows, lengths.tolist())]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)                          # (b, W)
    start = torch.tensor([len(p) for p in prompts], device=model.device)[:, None]               # (b, 1)
    place = torch.arange(1, ids.shape[1], device=model.device)                                  # of the predicted token
    predicted = (place >= start) & (place < start + lengths[:, None])                           # (b, W - 1)
    with autocast(model):
        hidden = model.base_model(ids, use_cache=False).last_hidden_state[:, :-1]               # (b, W - 1, D)
        flat = logp_entropy(hidden[predicted], model.get_output_embeddings(), ids[:, 1:][predicted], temperature)
    mask = rollouts.mask[rows]
    return tuple(torch.zeros(mask.shape, device=model.device).masked_scatter(mask, x) for x in flat)


def micro_batches(rows, sizes, budget):
    """Split rows into micro-batches of at most `budget` tokens, padding counted; alike lengths go together."""
    batches, batch = [], []
    for row in sorted(rows, key=lambda i: sizes[i]):
        if batch and sizes[row] * (len(batch) + 1) > budget:  # sorted: this row is the longest so far
            batches.append(batch)
            batch = []
        batch.append(row)
    return batches + [batch]


# --------------------------------------------------------------------------------- 7. the weighted clipped loss

def policy_loss(logp, old_logp, advantage, mask, normalizer, eps_low, eps_high, pos_weight, neg_weight=1.0):
    """The sign-weighted, token-level clipped objective (arXiv 2511.05993), negated:

        J = 1/normalizer * sum_it w_i min(r_it A_i, clip(r_it, 1 - eps_low, 1 + eps_high) A_i)

    with r = exp(logp - old_logp), w = pos_weight (lambda) where A > 0 and neg_weight elsewhere. logp, old_logp and
    mask are (B, T), advantage is (B,). `normalizer` counts the response tokens of the whole update, of which these
    rows may be a part. Returns the loss and sums over tokens per sign: tokens, clipped ones, their ratio.
    """
    A = advantage[:, None]                                                                      # (B, 1)
    ratio = (logp - old_logp).exp()                                                             # (B, T)
    weight = torch.where(A > 0, pos_weight, neg_weight)                                         # (B, 1)
    objective = weight * torch.min(ratio * A, ratio.clamp(1 - eps_low, 1 + eps_high) * A)       # (B, T)
    loss = -objective[mask].sum() / normalizer
    with torch.no_grad():
        stats = {}
        for sign, chosen, dead in (("pos", A > 0, ratio > 1 + eps_high), ("neg", A < 0, ratio < 1 - eps_low)):
            chosen = chosen & mask
            stats |= {f"tokens_{sign}": chosen.sum(), f"clip_{sign}": (chosen & dead).sum(),
                      f"ratio_{sign}": ratio[chosen].sum()}
    return loss, stats


def next_pos_weight(c, step, previous=None, entropy=None, epochs=None):
    """lambda for step `step` (from 0), by c.pos_schedule. `entropy` is that of the batch before it, `previous` its
    lambda; `epochs` is (epoch of this step from 1, number of epochs)."""
    if c.pos_schedule == "stage":    # 0 in the first half of training, then a line up to 1
        return max(0.0, 2 * step / max(1, c.steps - 1) - 1)
    if c.pos_schedule == "epoch":    # (e - 1) / (E - 1)
        return (epochs[0] - 1) / (epochs[1] - 1)
    if c.pos_schedule == "entropy" and previous is not None:
        return min(1.0, max(0.0, previous + (-c.pos_delta if entropy < c.target_entropy else c.pos_delta)))
    return c.pos_weight


# ------------------------------------------------------------------------------------------------ 8. evaluation

def pass_at_k(n, correct, k):
    """Chance that at least one of k samples is right, unbiased from n samples of which `correct` are:
    1 - C(n - c, k) / C(n, k) (Chen et al., arXiv 2107.03374)."""
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def evaluate(model, tokenizer, stop_ids, problems, reward, c, step):
    """Sample c.eval_samples responses to each held-out problem -> dict: avg (mean reward, avg@k), pass (unbiased,
    k = 1, 2, 4, ..), entropy (nats per token), distinct (different correct responses per problem), length (tokens),
    truncated (share). The random numbers are the same for every step, so that changes are the policy's."""
    K = c.eval_samples
    rollouts = rollout(model, tokenizer, stop_ids, problems, K, c, c.seed, "eval")
    rewards = rewards_of(rollouts, reward).view(-1, K)                                          # (problems, K)
    correct = (rewards > 0.5).sum(-1).tolist()
    right = [{text for text, r in zip(rollouts.texts[i * K:], row) if r > 0.5} for i, row in enumerate(rewards.tolist())]
    ks = [2**i for i in range(K.bit_length())]
    return {"step": step, "avg": rewards.mean().item(),
            "pass": {str(k): sum(pass_at_k(K, n, k) for n in correct) / len(correct) for k in ks},
            "entropy": (rollouts.entropy.sum() / rollouts.lengths.sum()).item(),
            "distinct": sum(map(len, right)) / len(right),
            "length": rollouts.lengths.float().mean().item(),
            "truncated": 1 - rollouts.finished.float().mean().item()}


def show_table(before, after):
    """The before/after table on the screen."""
    def rows(e):
        return {f"avg@{list(e['pass'])[-1]}": e["avg"], **{f"pass@{k}": p for k, p in e["pass"].items() if k != "1"},
                "entropy (nats per token)": e["entropy"], "distinct correct responses": e["distinct"],
                "response length (tokens)": e["length"]}
    print(f"\n{'held-out prompts':28}{'before':>10}{'after':>10}")
    for (name, old), new in zip(rows(before).items(), rows(after).values()):
        print(f"{name:28}{old:10.3f}{new:10.3f}")


# -------------------------------------------------------------------------------------------------- 9. training

def save_checkpoint(out, c, model, tokenizer, optimizer, step, pos_weight):
    """Write out/checkpoint-<step>: a Hugging Face folder with the optimizer beside it; delete the oldest."""
    def write(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        torch.save({"step": step, "pos_weight": pos_weight, "optimizer": optimizer.state_dict()}, folder / "trainer.pt")
    save_folder(out / f"checkpoint-{step:06d}", write)
    for old in sorted(out.glob("checkpoint-*"))[:-c.keep]:
        shutil.rmtree(old)


def open_run(c):
    """Make or reopen the run folder -> (folder, last checkpoint or None). Lines of metrics.jsonl and samples.jsonl
    from after that checkpoint are cut off: the steps will be done again."""
    out = Path(c.output_dir)
    if c.resume:
        last = max(out.glob("checkpoint-*"), default=None)
        steps_done = int(last.name.split("-")[1]) if last else 0
        for name in ("metrics.jsonl", "samples.jsonl"):
            lines = (out / name).read_text(encoding="utf8").splitlines() if (out / name).exists() else []
            whole = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < steps_done]
            (out / name).write_text("".join(line + "\n" for line in whole), encoding="utf8")
        return out, last
    if c.overwrite and (out / "config.json").exists():
        shutil.rmtree(out)
    if out.exists() and any(out.iterdir()):
        fail(f"--output_dir {out}: already holds {'a run' if (out / 'config.json').exists() else 'something else'}; "
             f"continue it with --resume {out}, delete it with --overwrite, or name another folder")
    return out, None


def train(c):
    """The whole job: load, evaluate, train, evaluate. Everything it leaves is in c.output_dir."""
    began = time.perf_counter()
    reward = load_reward(c.reward)
    out, last = open_run(c)
    model, tokenizer, stop_ids = load_policy(c, last)
    problems, held_out = load_problems(c, model, tokenizer)
    if len(problems) * 2 > c.steps * c.prompts_per_step and c.pos_schedule == "epoch":
        fail(f"--pos_schedule epoch: {c.steps} steps x {c.prompts_per_step} prompts are fewer than two epochs of "
             f"{len(problems)} prompts; raise --steps or lower --num_prompts")
    epochs = -(-c.steps * c.prompts_per_step // len(problems))
    optimizer = torch.optim.AdamW(model.parameters(), lr=c.lr, weight_decay=c.weight_decay, fused=True)
    start, pos_weight = 0, next_pos_weight(c, 0, epochs=(1, epochs))
    if last:
        state = torch.load(last / "trainer.pt", weights_only=True, map_location=model.device)
        start, pos_weight = state["step"], state["pos_weight"]
        optimizer.load_state_dict(state["optimizer"])

    out.mkdir(parents=True, exist_ok=True)
    config = {name: str(value) if value == math.inf else value for name, value in asdict(c).items() if name != "overwrite"}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    print(f"{c.preset}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters on {model.device.type}, "
          f"{len(problems)} prompts to train on, {len(held_out)} held out; writing to {out}", flush=True)
    summary_file = out / "summary.json"
    summary = json.loads(summary_file.read_text()) if last and summary_file.exists() else {}
    if held_out and "before" not in summary:
        summary["before"] = evaluate(model, tokenizer, stop_ids, held_out, reward, c, 0)
        summary_file.write_text(json.dumps(summary, indent=1) + "\n")

    stop_signals = []

    def ask_to_stop(number, frame):
        if stop_signals:
            raise KeyboardInterrupt
        stop_signals.append(number)
        tqdm.write("stopping after this step; once more stops at once and loses it")
    handlers = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def now():
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    bar = tqdm(range(start, c.steps), initial=start, total=c.steps, unit="step", desc=c.preset)
    with (open(out / "metrics.jsonl", "a", encoding="utf8") as metrics, open(out / "samples.jsonl", "a", encoding="utf8") as samples):
        for step in bar:
            # 1. Sample G responses to each prompt of this step; every epoch has its own order of the prompts.
            t0 = now()
            places = range(step * c.prompts_per_step, (step + 1) * c.prompts_per_step)
            orders = {e: random.Random(seed_of(c.seed, "order", e)).sample(problems, len(problems))
                      for e in {i // len(problems) for i in places}}
            batch = [orders[i // len(problems)][i % len(problems)] for i in places]
            rollouts = rollout(model, tokenizer, stop_ids, batch, c.group_size, c, c.seed, "train", step)
            mask, lengths = rollouts.mask, rollouts.lengths.tolist()                            # (B, T)
            B, tokens = len(lengths), sum(lengths)

            # 2. Verify them.
            t1 = now()
            rewards = rewards_of(rollouts, reward)                                              # (B,)

            # 3. Compare each with its group.
            advantage = advantages(rewards.view(-1, c.group_size), c.advantage).view(-1).to(model.device)  # (B,)

            # 4. Score: log-probabilities under the policy that sampled, by the code that trains; entropy.
            t2 = now()
            sizes = [len(p.ids) + n for p, n in zip(rollouts.problems, lengths)]
            old_logp, entropy = torch.zeros_like(rollouts.logp), torch.zeros_like(rollouts.logp)  # (B, T)
            with torch.no_grad():
                for rows in micro_batches(range(B), sizes, c.micro_batch_tokens):
                    old_logp[rows], entropy[rows] = score(model, rollouts, rows, c.temperature)
            gap = (old_logp - rollouts.logp).abs()
            if gap.sum() > 0.1 * tokens:
                fail(f"step {step}: sampler and trainer disagree on the log-probability of a token by "
                     f"{gap.sum() / tokens:.2f} nats on average; this model's logits are not head(hidden state)")
            H, H_pos, H_neg = (entropy[m].mean().item() if m.any() else None for m in (
                mask, mask & (advantage > 0)[:, None], mask & (advantage < 0)[:, None]))

            # 5. Update: `reuse` passes over `updates_per_batch` mini-batches of whole groups.
            t3 = now()
            optimizer.param_groups[0]["lr"] = lr = c.lr * min(1.0, (step + 1) / max(1, c.warmup_steps))
            stats, losses, norms, ratio_gap, seen = Counter(), [], [], None, 0
            model.train(c.gradient_checkpointing)  # Hugging Face checkpoints activations in training mode only
            for reuse in range(c.reuse):
                order = random.Random(seed_of(c.seed, "mini-batches", step, reuse)).sample(range(len(batch)), len(batch))
                for update in range(c.updates_per_batch):
                    rows = [i * c.group_size + g for i in order[update::c.updates_per_batch] for g in range(c.group_size)]
                    normalizer, loss_sum = sum(lengths[i] for i in rows), 0.0
                    for part in micro_batches(rows, sizes, c.micro_batch_tokens):
                        logp, _ = score(model, rollouts, part, c.temperature)
                        loss, part_stats = policy_loss(logp, old_logp[part], advantage[part], mask[part], normalizer,
                                                       c.eps_low, c.eps_high, pos_weight, c.neg_weight)
                        loss.backward()
                        loss_sum += loss.item()
                        stats.update({name: value.item() for name, value in part_stats.items()})
                        seen += int(mask[part].sum())
                        if not norms:  # before the first update the ratio is 1, up to rounding
                            ratio_gap = max(ratio_gap or 0.0, (logp - old_logp[part]).abs().max().item())
                    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), c.max_grad_norm).item()
                    if not math.isfinite(norm + loss_sum):
                        save_folder(out / "last_good", lambda new: (model.save_pretrained(new), tokenizer.save_pretrained(new)))
                        fail(f"step {step}: the loss or its gradient is not finite; the weights from before this update "
                             f"are in {out / 'last_good'}; try a lower --lr")
                    optimizer.step()
                    optimizer.zero_grad()
                    losses.append(loss_sum)
                    norms.append(norm)
            model.eval()
            if ratio_gap > 0.5 or seen != tokens * c.reuse:
                fail(f"step {step}: the first update saw a ratio off 1 by {ratio_gap:.2f} and {seen} tokens for {tokens} x "
                     f"{c.reuse} sampled: scoring is not the same twice (dropout?) or the mask is wrong")

            # 6. Log, move lambda, save.
            t4 = now()
            share = {sign: max(1, stats[f"tokens_{sign}"]) for sign in ("pos", "neg")}
            grouped = rewards.view(-1, c.group_size)
            record = {
                "step": step, "reward": rewards.mean().item(), "entropy": H, "entropy_pos": H_pos, "entropy_neg": H_neg,
                "lambda": pos_weight, "loss": sum(losses) / len(losses),
                **{f"clip_{s}": stats[f"clip_{s}"] / share[s] for s in share},
                **{f"ratio_{s}": stats[f"ratio_{s}"] / share[s] for s in share},
                **{f"share_{s}": stats[f"tokens_{s}"] / seen for s in share},
                "zero_adv": (grouped == grouped[:, :1]).all(-1).float().mean().item(), "length": tokens / B,
                "truncated": 1 - rollouts.finished.float().mean().item(), "grad_norm": sum(norms) / len(norms), "lr": lr,
                "logp_gap": gap.max().item(), "ratio_gap": ratio_gap, "tokens": tokens, "seconds_sample": t1 - t0,
                "seconds_verify": t2 - t1, "seconds_score": t3 - t2, "seconds_update": t4 - t3}
            metrics.write(json.dumps(record) + "\n")
            metrics.flush()
            for i in range(0, B, max(1, B // max(1, c.log_samples)))[:c.log_samples]:
                samples.write(json.dumps({
                    "step": step, "prompt": rollouts.problems[i].prompt, "response": rollouts.texts[i],
                    "reward": rewards[i].item(), "advantage": advantage[i].item(),
                    "finish_reason": "stop" if rollouts.finished[i] else "length",
                    "entropy": entropy[i].sum().item() / lengths[i]}, ensure_ascii=False) + "\n")
            samples.flush()
            bar.set_postfix_str(f"reward {record['reward']:.3f}, entropy {H:.3f}, lambda {pos_weight:.2f}", refresh=False)
            epoch = (step + 1) * c.prompts_per_step // len(problems) + 1
            pos_weight = next_pos_weight(c, step + 1, pos_weight, H, (min(epoch, epochs), epochs))
            if stop_signals or (step + 1) % c.save_every == 0 or step + 1 == c.steps:
                save_checkpoint(out, c, model, tokenizer, optimizer, step + 1, pos_weight)
            if stop_signals:
                break
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if stop_signals:
        fail(f"stopped after step {step}; continue with: python rlvr.py --resume {out}")

    save_folder(out / "final", lambda new: (model.save_pretrained(new), tokenizer.save_pretrained(new)))
    if held_out:
        summary["after"] = evaluate(model, tokenizer, stop_ids, held_out, reward, c, c.steps)
        show_table(summary["before"], summary["after"])
    summary |= {"seconds": time.perf_counter() - began, "steps": c.steps, "seed": c.seed, "preset": c.preset}
    summary_file.write_text(json.dumps(summary, indent=1) + "\n")
    print(f"\n{summary['seconds']:.0f} seconds. The policy is in {out / 'final'}, its run in {out}")


# ----------------------------------------------------------------------------------------------------- 10. main

def main(argv=None):
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        train(parse_config(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        fail("interrupted; what was saved before is untouched")


if __name__ == "__main__":
    main()
