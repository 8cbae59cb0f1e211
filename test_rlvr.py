"""Tests of behaviour: no network, no GPU needed. Every fast path has a twin here that is slow and
obviously right, and the two agree."""
import copy, dataclasses, glob, io, itertools, json, math, multiprocessing, os, random
import re, shutil, signal, subprocess, sys, tempfile, threading, time, warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

HOME = tempfile.TemporaryDirectory()  # an empty one: no hub, no cache
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = HOME.name
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
import transformers as tf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils._python_dispatch import TorchDispatchMode

import rlvr
import verify

# A GPU, and bf16 where a CPU has it, would be too far from a twin: only tests with the fixture
# `cuda` see a GPU.
GPUS = torch.cuda.device_count()
torch.cuda.is_available = Mock(return_value=False)
torch.set_float32_matmul_precision = Mock()
torch.set_num_threads(1)  # of so little work a second thread makes more

HERE = Path(__file__).parent
IS_LINUX = sys.platform.startswith("linux")
linux = pytest.mark.skipif(not IS_LINUX, reason="needs Linux")

# ---------------------------------------------------------------------------- models, runs, helpers

CORPUS = [
    "What is 12 + 30? The answer is 42.",
    "3 cars of 20 seats.",
    "def add(a, b): return a + b",
]
CHATML = (
    "{% for m in messages %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

VOCABULARY = 320
SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    initializer_range=0.4,  # large enough that random weights prefer some tokens to others
)
SLIDING = dict(
    head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"])
FAMILIES = {  # small models with random weights: class, what its config needs besides SIZES
    "qwen": (tf.Qwen2ForCausalLM, {}),
    "llama": (tf.LlamaForCausalLM, {}),
    "gemma": (tf.Gemma3ForCausalLM, SLIDING),
    "gpt2": (tf.GPT2LMHeadModel, {}),
    "qwen3": (tf.Qwen3ForCausalLM, dict(head_dim=8)),
    "falcon": (tf.FalconForCausalLM, {}),
    "phi3": (tf.Phi3ForCausalLM, dict(pad_token_id=0)),
    "mixtral": (tf.MixtralForCausalLM, dict(num_local_experts=3)),
    # These scale or cap the logits that their head makes.
    "granite": (tf.GraniteForCausalLM, dict(logits_scaling=4.0)),
    "gemma2": (tf.Gemma2ForCausalLM, SLIDING | dict(final_logit_softcapping=3.0)),
}

# Rewards that a policy with random weights can get.
OWN_REWARDS = """
def odd(response, answer):
    return len(response) % 2

def same(response, answer):
    return 0

def one(response, answer):
    return 1

def few(response, answer):
    return float(len(response) < 12)
"""

def bpe_tokenizer(pad_is_eos, chat_template=None):
    special = ["<|im_end|>"]
    if not pad_is_eos:
        special += ["<|im_start|>", "<pad>"]

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(CORPUS, trainer)

    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token=special[-1],
        chat_template=chat_template)

@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A folder with a saved policy of each family, with a demo that has hardly been pretrained, and
    with own.py. One policy has a chat template, two have a pad token that is their eos token."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, (model_class, own) in FAMILIES.items():
        model = model_class(model_class.config_class(**SIZES, **own))
        pad_is_eos = name in ("llama", "gpt2")
        chat_template = CHATML if name == "qwen" else None
        tokenizer = bpe_tokenizer(pad_is_eos, chat_template)
        policy = rlvr.Policy(model, tokenizer, stop_ids=[0])
        rlvr.save_policy(policy, root / name)

    rlvr.pretrain_demo(root / "demo", steps=3, batch=16)
    (root / "own.py").write_text(OWN_REWARDS)
    return root

def command(*flags):
    """Flags, several in a text or one, -> the list that a shell would make of them."""
    return " ".join(map(str, flags)).split()

SMALL = "--max_prompt_tokens 100 --max_new_tokens 8"  # what fits the context of 256

def config(model, *flags):
    return rlvr.parse_config(command("--model", model, SMALL, *flags))

def loaded(model, *flags):
    return rlvr.load_policy(config(model, *flags))

@pytest.fixture(params=["qwen", "llama", "gemma", "demo"])
def policy(folders, request):
    return loaded(folders / request.param)

@pytest.fixture(params=["demo", *FAMILIES])
def any_policy(folders, request):
    return loaded(folders / request.param)

def stopping_at_every(number, policy):
    """The policy with so many stop tokens that its responses have all lengths."""
    return replace(policy, stop_ids=list(range(0, VOCABULARY, number)))

def read_lines(file):
    """The records of a JSON Lines file."""
    with open(file) as lines:
        return [json.loads(line) for line in lines]

VARYING = (*rlvr.STAGES, "peak_memory")  # what no two runs have in common

def read_log(folder, name="metrics.jsonl"):
    """The records of a run's log that another run with the same numbers would have, too."""
    records = read_lines(folder / name)
    for record in records:
        for name in VARYING:
            record.pop(name, None)
    return records

def write_lines(file, rows):
    lines = [json.dumps(row) + "\n" for row in rows]
    file.write_text("".join(lines))
    return file

def go(out, *flags):
    """Run with these flags and write to `out` -> its log."""
    rlvr.main(command(*flags, "--output_dir", out))
    return read_log(out)

def stop_of(function, *args):
    """The one line with which a call stops, or None if it does not stop."""
    try:
        function(*args)
    except SystemExit as stop:
        assert isinstance(stop.code, str)
        assert stop.code.startswith("rlvr.py: ")
        assert "\n" not in stop.code
        return stop.code

def message_of(*flags):
    """The one line with which a program with these flags stops."""
    message = stop_of(rlvr.main, command(*flags))
    assert message, "it did not stop"
    return message

def assert_words(message, *words):
    for word in words:
        assert word in message

def weights_of(model):
    """All weights in one row."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])

def weights(folder):
    """All weights of a saved model, in one row."""
    return weights_of(tf.AutoModelForCausalLM.from_pretrained(folder))

# ----------------------------------------------------------------------------------------- the loss

def tokens_of(old_logp, advantages, in_loss):
    """What the loss has to know of tokens (b, T) whose responses have these advantages (b)."""
    A = torch.tensor(advantages)[:, None]
    return rlvr.Tokens(
        old_logp=old_logp,
        old_entropy=torch.zeros_like(old_logp),
        advantage=A.expand(old_logp.shape),
        in_loss=in_loss,
        in_penalty=torch.zeros_like(in_loss),
    )

def mask_of(lengths):
    """(b, T): True for the tokens of responses of these lengths."""
    ends = torch.tensor(lengths)[:, None]
    return torch.arange(max(lengths)) < ends

def moved_far_enough(ratio, A, c):
    """Where the paper says that a token has no gradient."""
    if A > 0:
        return ratio > 1 + c.eps_high
    if A < 0:
        return ratio < 1 - c.eps_low
    return False

def slow_loss(logp, tokens, c, lam):
    """The objective token by token, on plain numbers -> loss, its gradient (b, T), and how many
    tokens the clip has left without one."""
    loss = 0.0
    gradient = torch.zeros(logp.shape)
    clipped = 0
    for b, t in tokens.in_loss.nonzero().tolist():
        A = tokens.advantage[b, t].item()
        weight = lam if A > 0 else c.neg_weight
        change = logp[b, t] - tokens.old_logp[b, t]
        ratio = math.exp(change)
        clipped_ratio = max(ratio, 1 - c.eps_low)
        clipped_ratio = min(clipped_ratio, 1 + c.eps_high)
        loss -= weight * min(ratio * A, clipped_ratio * A)
        if moved_far_enough(ratio, A, c):
            clipped += 1
        else:
            gradient[b, t] = -weight * ratio * A
    return loss, gradient, clipped

def sums_of(logp, tokens, c, lam=1.0):
    """The sums for the log, without those that need the sharpening."""
    return rlvr.sums_by_sign(logp, tokens, c, lam, torch.zeros_like(logp))

@pytest.fixture
def some_tokens():
    """-> tokens of both signs and of none, and new log-probabilities far from the old ones."""
    torch.manual_seed(1)
    old_logp = torch.randn(4, 5)
    mask = mask_of([5, 4, 3, 2])
    tokens = tokens_of(old_logp, [1.5, -0.5, 0.0, 2.0], mask)
    logp = old_logp + torch.randn(4, 5)
    return tokens, logp.requires_grad_()

UNCLIPPED = dict(eps_low=math.inf, eps_high=math.inf)
OBJECTIVES = pytest.mark.parametrize("lam, knobs", [
    pytest.param(1.0, dict(eps_low=0.2, eps_high=0.3), id="grpo"),
    pytest.param(0.25, dict(eps_low=0.1, eps_high=0.5), id="lambda"),
    pytest.param(1.0, dict(neg_weight=0.5), id="negative weight"),
    pytest.param(0.0, UNCLIPPED, id="unclipped"),
])

@OBJECTIVES
def test_the_loss_and_its_gradient_equal_their_twin(some_tokens, lam, knobs):
    c = rlvr.Config(**knobs)
    tokens, logp = some_tokens
    loss = rlvr.policy_loss(logp, None, tokens, c, lam)
    loss.backward()
    expected, gradient, _ = slow_loss(logp.detach(), tokens, c, lam)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(logp.grad, gradient, rtol=1e-4)

@OBJECTIVES
def test_clipped_tokens_are_those_without_a_gradient(some_tokens, lam, knobs):
    c = rlvr.Config(**knobs)
    tokens, logp = some_tokens
    sums = sums_of(logp, tokens, c, lam)
    _, _, clipped = slow_loss(logp.detach(), tokens, c, lam)
    assert sums["clip_pos"] + sums["clip_neg"] == clipped
    assert (clipped > 0) == (c.eps_high < math.inf)

@pytest.mark.parametrize("A, ratio, has_gradient", [
    (1.0, 1.4, False),
    (1.0, 0.6, True),
    (-1.0, 0.6, False),
    (-1.0, 1.4, True),  # what was to get rarer and has got likelier is still pushed down
    (-1.0, 9.9, True),
])
def test_the_clip_stops_only_what_has_moved_the_right_way(A, ratio, has_gradient):
    old_logp = torch.zeros(1, 1)
    tokens = tokens_of(old_logp, [A], mask_of([1]))
    logp = old_logp + math.log(ratio)
    logp.requires_grad_()
    loss = rlvr.policy_loss(logp, None, tokens, rlvr.Config(), lam=1.0)
    loss.backward()
    assert bool(logp.grad.any()) == has_gradient

def test_tokens_are_counted_by_the_sign_of_their_advantage(some_tokens):
    tokens, logp = some_tokens
    sums = sums_of(logp, tokens, rlvr.Config())
    assert sums["count"] == 5 + 4 + 3 + 2
    assert sums["count_pos"] == 5 + 2
    assert sums["count_neg"] == 4

def test_the_ratio_gap_is_of_the_tokens_in_the_loss():
    ratios = torch.tensor([[1.0, 1.5, 9.9]])
    in_loss = torch.tensor([[True, True, False]])
    tokens = tokens_of(torch.zeros(1, 3), [1.0], in_loss)
    sums = sums_of(ratios.log(), tokens, rlvr.Config())
    assert sums["ratio_gap"].item() == pytest.approx(0.5)

def total_entropy(logits):
    distribution = torch.distributions.Categorical(logits=logits)
    return distribution.entropy().sum().item()

def test_dH_is_the_change_of_the_entropy_by_a_small_step():
    """Logits are the parameters here, four responses of three tokens. Some tokens are clipped, on
    both sides."""
    torch.manual_seed(0)
    logits = (2 * torch.randn(12, 6)).requires_grad_()
    targets = torch.randint(0, 6, (12,))
    head = torch.nn.Linear(6, 6, bias=False)
    head.weight.data = torch.eye(6)
    flat = rlvr.logp_entropy(logits, head, targets, temperature=1.0, chunk=5)
    logp, _, sharpening = [values.view(4, 3) for values in flat]

    c = rlvr.Config(eps_low=0.1, eps_high=0.1)
    moved = torch.linspace(-0.5, 0.5, 12).view(3, 4).T
    old_logp = logp.detach() + moved
    mask = mask_of([3, 3, 3, 3])
    tokens = tokens_of(old_logp, [1.0, -1.0, 2.0, -0.5], mask)
    sums = rlvr.sums_by_sign(logp, tokens, c, 0.5, sharpening)
    for name in ("clip_pos", "clip_neg", "dH_pos", "dH_neg"):
        assert sums[name] != 0

    rlvr.policy_loss(logp, None, tokens, c, 0.5).backward()
    eta = 1e-5
    before = logits.detach().double()
    after = before - eta * logits.grad.double()
    change = (total_entropy(after) - total_entropy(before)) / eta
    expected = sums["dH_pos"] + sums["dH_neg"]
    assert change == pytest.approx(expected.item(), rel=1e-2)

def test_a_kl_penalty_is_the_distance_of_its_tokens(some_tokens):
    tokens, logp = some_tokens
    tokens.in_penalty = torch.zeros(4, 5, dtype=torch.bool)
    tokens.in_penalty[1, 3] = True
    tokens.in_penalty[2, 0] = True
    free = rlvr.policy_loss(logp, None, tokens, rlvr.Config(), lam=1.0)
    held = rlvr.policy_loss(logp, None, tokens, rlvr.Config(cov_penalty=2.0), lam=1.0)
    distance = (logp - tokens.old_logp).abs()
    penalty = 2.0 * (distance[1, 3] + distance[2, 0])
    assert torch.allclose(held - free, penalty)

def test_an_entropy_bonus_is_of_the_tokens_in_the_loss(some_tokens):
    tokens, logp = some_tokens
    entropy = torch.rand(4, 5)
    c = rlvr.Config()
    free = rlvr.policy_loss(logp, entropy, tokens, c, lam=1.0)
    rewarded = rlvr.policy_loss(logp, entropy, tokens, c, lam=1.0, bonus=0.1)
    bonus = 0.1 * entropy[tokens.in_loss].sum()
    assert torch.allclose(free - rewarded, bonus)

# ------------------------------------------------------------------------------------ other methods

def few_tokens():
    """Three responses of two tokens, a good, a bad and an average one; the last is shorter."""
    old_logp = torch.tensor([
        [-0.1, -5.0],
        [-0.1, -5.0],
        [-1.0, -1.0],
    ])
    entropy = torch.tensor([
        [0.0, 9.0],
        [0.5, 9.0],
        [9.0, 9.0],
    ])
    mask = mask_of([2, 2, 1])
    tokens = tokens_of(old_logp, [2.0, -1.0, 0.0], mask)
    tokens.old_entropy = entropy
    return tokens

# Covariance is highest for a likely token of a good response and for a rare one of a bad response.
HIGHEST_COVARIANCE = torch.tensor([
    [True, False],
    [False, True],
    [False, False],
])

def test_without_other_methods_nothing_changes():
    tokens = rlvr.other_methods(few_tokens(), rlvr.Config(), step=3)
    for name, tensor in vars(few_tokens()).items():
        assert torch.equal(getattr(tokens, name), tensor)

def test_entropy_adds_to_an_advantage_at_most_half_of_it():
    """So no sign turns."""
    c = rlvr.Config(entropy_adv=0.4)
    tokens = rlvr.other_methods(few_tokens(), c, step=3)
    expected = torch.tensor([
        [2.0, 2.0 + 1.0],
        [-1.0 + 0.2, -1.0 + 0.5],
        [0.0, 0.0],
    ])
    assert torch.allclose(tokens.advantage, expected)

def test_only_positive_tokens_are_dropped():
    c = rlvr.Config(pos_drop=1.0)
    tokens = rlvr.other_methods(few_tokens(), c, step=3)
    assert tokens.in_loss.tolist() == [
        [False, False],
        [True, True],
        [True, False],
    ]

def test_a_random_share_of_the_positive_tokens_is_dropped():
    c = rlvr.Config(pos_drop=0.1)
    mask = mask_of([5000, 5000])
    tokens = tokens_of(torch.zeros(2, 5000), [1.0, -1.0], mask)
    dropped = ~rlvr.other_methods(tokens, c, step=3).in_loss
    assert 400 < dropped[0].sum() < 600
    assert not dropped[1].any()

    dropped_later = ~rlvr.other_methods(tokens, c, step=4).in_loss
    assert not torch.equal(dropped, dropped_later)

@pytest.mark.parametrize("share, kept", [
    (0.5, [0.3, 0.4, 0.5]),
    (1.0, [0.1, 0.2, 0.3, 0.4, 0.5]),
])
def test_only_a_share_of_the_tokens_of_highest_entropy_is_trained(share, kept):
    """Of those in the loss: what stands behind an end counts for nothing."""
    before = few_tokens()
    before.old_entropy = torch.tensor([[0.1, 0.4], [0.3, 0.2], [0.5, 9.0]])
    tokens = rlvr.other_methods(before, rlvr.Config(fork_share=share), step=3)
    entropies = before.old_entropy[tokens.in_loss]
    assert sorted(entropies.tolist()) == pytest.approx(kept)

def test_the_tokens_of_highest_covariance_are_left_out():
    before = few_tokens()
    c = rlvr.Config(cov_share=0.4)
    tokens = rlvr.other_methods(before, c, step=3)
    assert torch.equal(tokens.in_loss, before.in_loss & ~HIGHEST_COVARIANCE)
    assert not tokens.in_penalty.any()

def test_covariance_is_that_of_the_tokens_in_the_loss():
    """Sixteen tokens, and twice as much padding: a quarter of the tokens is left out."""
    torch.manual_seed(0)
    mask = mask_of([8, 1, 2, 1, 3, 1])
    old_logp = -5 * torch.rand(6, 8) * mask
    before = tokens_of(old_logp, [1.0, -2.0, 0.5, 0.0, -0.5, 2.0], mask)
    after = rlvr.other_methods(before, rlvr.Config(cov_share=0.25), step=3)

    mean_logp = old_logp[mask].mean()
    mean_A = before.advantage[mask].mean()
    covariance = {}
    for b, t in mask.nonzero().tolist():
        from_mean = old_logp[b, t] - mean_logp
        covariance[b, t] = from_mean * (before.advantage[b, t] - mean_A)
    highest = sorted(covariance, key=covariance.get)[-4:]

    left_out = before.in_loss & ~after.in_loss
    assert left_out.sum() == 4
    for b, t in highest:
        assert left_out[b, t]

def test_the_tokens_of_highest_covariance_get_a_kl_penalty_instead():
    c = rlvr.Config(cov_share=0.4, cov_penalty=1.0)
    tokens = rlvr.other_methods(few_tokens(), c, step=3)
    assert torch.equal(tokens.in_loss, few_tokens().in_loss)
    assert torch.equal(tokens.in_penalty, HIGHEST_COVARIANCE)

# --------------------------------------------------------------------------------------- the update

# Four prompts, two of them the same, and a response to each. 0 is the pad or eos token of some
# models, and counts like any other.
ASKED = [
    (5, 6, 7),
    (4, 0, 9, 10, 11, 12, 13, 14, 15),
    (5, 6, 7),
    (13, 8, 8),
]
ANSWERED = [
    [3, 4, 5, 6, 7, 8],
    [9],
    [0, 10, 11, 0],
    [12, 12, 12, 12, 12, 12, 12, 12],
]
ANSWERED_MASK = mask_of([6, 1, 4, 8])
FOUR_ROWS = SimpleNamespace(
    problems=[rlvr.Problem("", prompt, None, "math") for prompt in ASKED],
    responses=ANSWERED,
    mask=ANSWERED_MASK,
)

def gradient_of(policy):
    """The gradient of all weights in one row; it starts again from 0."""
    gradient = [p.grad.flatten() for p in policy.model.parameters()]
    policy.model.zero_grad()
    return torch.cat(gradient)

def policy_gradient(policy, split, padding=0):
    """Of the loss of all four rows, in micro-batches of these, with columns of padding."""
    advantages = [1.0, -1.0, 0.5, -2.0]
    pad = torch.nn.functional.pad
    for rows in split:
        prompts = [ASKED[row] for row in rows]
        responses = [ANSWERED[row] for row in rows]
        logp, _, _ = rlvr.score(policy, prompts, responses, temperature=1.0)
        logp = pad(logp, (0, padding), value=3.0)
        in_loss = ANSWERED_MASK[rows]
        in_loss = pad(in_loss, (0, 9))[:, :logp.shape[1]]

        old_logp = logp.detach() + 0.1 * in_loss
        A = [advantages[row] for row in rows]
        tokens = tokens_of(old_logp, A, in_loss)
        loss = rlvr.policy_loss(logp, None, tokens, rlvr.Config(), lam=0.5)
        loss = loss / ANSWERED_MASK.sum()
        loss.backward()
    return gradient_of(policy)

@pytest.mark.parametrize("split, padding", [
    ([[3, 1, 0, 2]], 0),
    ([[0], [1], [2], [3]], 0),
    ([[2, 0], [1, 3]], 5),
])
def test_the_gradient_does_not_depend_on_micro_batches_and_padding(policy, split, padding):
    whole = policy_gradient(policy, [[0, 1, 2, 3]])
    assert whole.abs().max() > 1e-3
    again = policy_gradient(policy, split, padding)
    assert torch.allclose(again, whole, rtol=1e-3, atol=1e-6)

@pytest.fixture
def demo(folders):
    return loaded(folders / "demo")

def update(policy, advantages, in_penalty=None, optimizer=None, **knobs):
    """Update the policy on the four rows, two groups of two, with these advantages -> its weights
    after that."""
    usual = dict(group_size=2, prompts_per_step=2, updates_per_batch=1, reuse=1)
    c = rlvr.Config(**usual | knobs)
    old_logp, _ = rlvr.score_all(policy, FOUR_ROWS, c)
    tokens = tokens_of(old_logp, advantages, ANSWERED_MASK)
    if in_penalty is not None:
        tokens.in_penalty = in_penalty & ANSWERED_MASK
    if optimizer is None:
        optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.1)
    state = {"step": 0, "lambda": 1.0, "bonus": 0.0}
    rlvr.update_policy(policy, optimizer, FOUR_ROWS, tokens, state, c)
    return weights_of(policy.model)

def copy_of(policy):
    return replace(policy, model=copy.deepcopy(policy.model))

def test_an_update_is_a_step_down_the_gradient_per_token(demo):
    """Tokens without an advantage count, too."""
    advantages = [1.0, -1.0, 0.0, 0.0]
    logp, _, _ = rlvr.score(demo, ASKED, ANSWERED, temperature=1.0)
    tokens = tokens_of(logp.detach(), advantages, ANSWERED_MASK)
    loss = rlvr.policy_loss(logp, None, tokens, rlvr.Config(), lam=1.0)
    loss = loss / (6 + 1 + 4 + 8)
    loss.backward()
    learning_rate = 0.1
    step = learning_rate * gradient_of(demo)

    before = weights_of(demo.model)
    after = update(demo, advantages, max_grad_norm=math.inf)
    assert step.abs().max() > 1e-3
    assert torch.allclose(after, before - step, atol=1e-6)

def test_a_step_is_no_longer_than_the_gradient_may_be(demo):
    before = weights_of(demo.model)
    after = update(demo, [1.0, -1.0, 0.0, 2.0], max_grad_norm=0.01)
    moved = (after - before).norm().item()
    assert moved == pytest.approx(0.1 * 0.01, rel=1e-2)

def test_a_gradient_is_used_once(demo):
    before = update(demo, [1.0, -1.0, 0.0, 2.0])
    after = update(demo, [0.0, 0.0, 0.0, 0.0])
    assert torch.equal(before, after)

def test_an_update_does_not_depend_on_its_micro_batches(demo):
    advantages = [1.0, -1.0, 0.0, 2.0]
    whole = update(copy_of(demo), advantages)
    by_row = update(replace(copy_of(demo), micro_batch_tokens=1), advantages)
    assert torch.allclose(whole, by_row, atol=1e-6)

def test_rows_without_an_advantage_keep_their_kl_penalty(demo):
    """It pulls in the second pass, when the policy has moved."""
    advantages = [1.0, -1.0, 0.0, 0.0]
    last_two = torch.arange(4)[:, None] >= 2
    free = update(copy_of(demo), advantages, last_two, reuse=2, cov_penalty=0.0)
    held = update(copy_of(demo), advantages, last_two, reuse=2, cov_penalty=100.0)
    assert not torch.allclose(free, held, atol=1e-4)

def test_an_update_without_a_gradient_goes_on_with_the_momentum(demo):
    """As in a run of several processes, where the gradients are summed and never None."""
    optimizer = torch.optim.AdamW(demo.model.parameters(), lr=1e-3)
    before = update(demo, [1.0, -1.0, 1.0, -1.0], optimizer=optimizer)
    after = update(demo, [0.0, 0.0, 0.0, 0.0], optimizer=optimizer)
    assert not torch.equal(before, after)

# ------------------------------------------------------------------------------------ out of memory

def out_of_memory_above(limit, function, size_of):
    """The function on a GPU that has room for so much only."""
    def limited(*args, **kwargs):
        if size_of(*args, **kwargs) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return function(*args, **kwargs)
    return limited

def response_tokens(policy, prompts, responses, temperature):
    return sum(map(len, responses))

def rows_at_once(policy, prompts, u, c):
    return len(u)

def test_an_update_that_does_not_fit_is_done_again_in_smaller_parts(demo, monkeypatch):
    """The first of two micro-batches fits: what it has left of a gradient must go."""
    advantages = [1.0, -1.0, 0.5, 2.0]
    whole = update(copy_of(demo), advantages)
    policy = replace(copy_of(demo), micro_batch_tokens=32)
    old = rlvr.score_all(policy, FOUR_ROWS, rlvr.Config())
    monkeypatch.setattr(rlvr, "score_all", Mock(return_value=old))
    limited = out_of_memory_above(13, rlvr.score, response_tokens)
    monkeypatch.setattr(rlvr, "score", limited)
    with pytest.warns(UserWarning, match="--micro_batch_tokens is 16"):
        in_parts = update(policy, advantages)
    assert policy.micro_batch_tokens == 16
    assert torch.allclose(in_parts, whole, atol=1e-6)

def test_scoring_that_does_not_fit_is_done_again_in_smaller_parts(demo, monkeypatch):
    logp, entropy = rlvr.score_all(demo, FOUR_ROWS, rlvr.Config())
    limited = out_of_memory_above(13, rlvr.score, response_tokens)
    monkeypatch.setattr(rlvr, "score", limited)
    with pytest.warns(UserWarning, match="out of memory"):
        logp_in_parts, entropy_in_parts = rlvr.score_all(demo, FOUR_ROWS, rlvr.Config())
    assert torch.allclose(logp_in_parts, logp, atol=1e-5)
    assert torch.allclose(entropy_in_parts, entropy, atol=1e-5)

def test_sampling_that_does_not_fit_is_done_again_with_fewer_rows(demo, monkeypatch):
    problems = FOUR_ROWS.problems
    c = rlvr.Config(max_new_tokens=5)
    whole = rlvr.rollout(demo, problems, 2, c, "test")
    monkeypatch.setattr(rlvr, "sample", out_of_memory_above(3, rlvr.sample, rows_at_once))
    with pytest.warns(UserWarning, match="--sample_rows is 2"):
        in_parts = rlvr.rollout(demo, problems, 2, c, "test")
    assert in_parts.responses == whole.responses

def test_out_of_memory_in_one_process_is_so_in_all(demo, monkeypatch):
    """Else they would share the rows in different ways."""
    others = iter([True, False])
    monkeypatch.setattr(rlvr, "all_values", lambda failed: [failed, next(others)])
    work = Mock(return_value=7)
    policy = replace(demo, sample_rows=8)
    assert rlvr.until_it_fits(policy, "sample_rows", work) == 7
    assert work.call_count == 2
    assert policy.sample_rows == 4

def test_what_a_flag_says_is_where_sizes_begin(folders):
    policy = loaded(folders / "demo", "--sample_rows 7 --micro_batch_tokens 9")
    assert policy.sample_rows == 7
    assert policy.micro_batch_tokens == 9

# -------------------------------------------------------------------------------------- the batches

def test_every_pass_has_every_group_once_and_whole():
    """Six groups of three rows; two updates make a pass."""
    c = rlvr.Config(prompts_per_step=6, group_size=3, updates_per_batch=2, reuse=4)
    updates = list(rlvr.mini_batches(c, step=5))
    assert len(updates) == 4 * 2
    for i in range(0, 8, 2):
        every_row = updates[i] + updates[i + 1]
        assert sorted(every_row) == list(range(6 * 3))
    for rows in updates:
        groups = {row // 3 for row in rows}
        assert len(rows) == 9
        assert len(groups) == 3

def test_every_pass_has_another_order():
    c = rlvr.Config(prompts_per_step=32, updates_per_batch=1, reuse=2)
    first, second = rlvr.mini_batches(c, step=0)
    later, _ = rlvr.mini_batches(c, step=1)
    again, _ = rlvr.mini_batches(c, step=0)
    assert first == again
    assert first != second
    assert first != later

def two_epochs(**knobs):
    """The problems of the first two epochs, in the order of the steps, of 20 problems."""
    c = rlvr.Config(**knobs)
    order = []
    for step in range(40 // c.prompts_per_step):
        order += rlvr.prompts_of(step, list(range(20)), c)
    return order[:20], order[20:]

def test_every_epoch_has_every_problem_once_in_another_order():
    first, second = two_epochs(prompts_per_step=5)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second

def test_a_step_reaches_into_the_next_epoch():
    first, second = two_epochs(prompts_per_step=8)
    assert sorted(first) == sorted(second) == list(range(20))

def test_another_seed_has_another_order():
    first, _ = two_epochs(prompts_per_step=5, seed=0)
    again, _ = two_epochs(prompts_per_step=5, seed=0)
    other, _ = two_epochs(prompts_per_step=5, seed=1)
    assert first == again
    assert first != other

def test_micro_batches_have_every_row_once_within_the_budget():
    rand = random.Random(0)
    prompts = []
    for length in (3, 9, 17):
        prompts += [tuple(range(length))] * 40
    responses = [[0] * rand.randint(1, 30) for _ in prompts]
    batches = rlvr.micro_batches(range(120), prompts, responses, budget=64)
    assert sorted(sum(batches, [])) == list(range(120))

    costs = []
    for batch in batches:
        different = {prompts[row] for row in batch}
        longest_prompt = max(map(len, different))
        longest_response = max(len(responses[row]) for row in batch)
        costs.append(len(different) * longest_prompt + len(batch) * longest_response)
    assert max(costs) <= 64
    assert sum(costs) / len(costs) > 40  # they are full

def test_one_long_prompt_is_not_the_width_of_a_hundred_short_ones():
    prompts = [(i,) * 10 for i in range(100)]
    prompts[50] = (0,) * 500
    responses = [[0] * 5 for _ in prompts]
    batches = rlvr.micro_batches(range(100), prompts, responses, budget=1600)
    [with_the_long_one] = [batch for batch in batches if 50 in batch]
    assert len(with_the_long_one) == 3

def test_a_row_over_the_budget_goes_alone():
    prompts = [(1, 2, 3), (1, 2, 3)]
    responses = [[4, 5], [6, 7]]
    batches = rlvr.micro_batches([0, 1], prompts, responses, budget=4)
    assert batches == [[0], [1]]

# ---------------------------------------------------------------------- log-probability and entropy

@pytest.fixture
def head_and_states():
    """-> a head for 50 tokens, 23 hidden states, and the tokens that follow."""
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50)
    hidden = torch.randn(23, 8, requires_grad=True)
    targets = torch.randint(0, 50, (23,))
    return head, hidden, targets

@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_head_in_chunks_equals_its_dense_twin(head_and_states, temperature):
    head, hidden, targets = head_and_states
    leaves = (hidden, head.weight, head.bias)
    mix = torch.randn(2, 23)  # makes one loss of all values

    logp, entropy, _ = rlvr.logp_entropy(hidden, head, targets, temperature, chunk=4)
    loss = mix[0] @ logp + mix[1] @ entropy
    gradients = torch.autograd.grad(loss, leaves)

    dense = torch.log_softmax(head(hidden) / temperature, -1)
    slow_logp = dense[torch.arange(23), targets]
    slow_entropy = torch.distributions.Categorical(logits=dense).entropy()
    slow_loss = mix[0] @ slow_logp + mix[1] @ slow_entropy
    slow_gradients = torch.autograd.grad(slow_loss, leaves)

    assert torch.allclose(logp, slow_logp, atol=1e-5)
    assert torch.allclose(entropy, slow_entropy, atol=1e-5)
    for fast, slow in zip(gradients, slow_gradients):
        assert torch.allclose(fast, slow, atol=1e-5)

def test_head_makes_few_logits_at_a_time(head_and_states):
    """Each token's once forward, once again backward."""
    head, hidden, targets = head_and_states
    sizes = []

    def note_size(module, inputs, logits):
        sizes.append(logits.numel())

    head.register_forward_hook(note_size)
    logp, _, _ = rlvr.logp_entropy(hidden, head, targets, temperature=1.0, chunk=4)
    logp.sum().backward()
    assert max(sizes) <= 4 * 50
    assert sum(sizes) == 2 * 23 * 50

@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sharpening_equals_its_equation_token_by_token(head_and_states, temperature):
    head, hidden, targets = head_and_states
    _, _, sharpening = rlvr.logp_entropy(hidden, head, targets, temperature, chunk=4)
    dense = torch.softmax(head(hidden) / temperature, -1)
    for p, target, value in zip(dense.tolist(), targets, sharpening.tolist()):
        H = -sum(q * math.log(q) for q in p)
        slope = [q * (math.log(q) + H) for q in p]
        mean_slope = sum(q * s for q, s in zip(p, slope))
        assert value == pytest.approx(slope[target] - mean_slope, abs=1e-6)

def test_log_probabilities_are_fp32_whatever_the_logits_are():
    logits = torch.zeros(3, 77, dtype=torch.bfloat16)
    logp = rlvr.log_probabilities(logits, 0.7)
    assert logp.dtype == torch.float32
    assert logp[0, 0] == pytest.approx(-math.log(77))

def slow_score(model, prompts, responses, temperature):
    """Each row alone through the whole model, without padding, cache or chunks -> log-probabilities
    and entropies of the rows."""
    logps = []
    entropies = []
    for prompt, response in zip(prompts, responses):
        ids = torch.tensor([[*prompt, *response]])
        logits = model(ids).logits[0].float() / temperature
        start = len(prompt) - 1  # what comes before a token predicts it
        dense = torch.log_softmax(logits[start:-1], -1)
        logp = [row[token] for row, token in zip(dense, response)]
        logps.append(torch.stack(logp))
        entropies.append(torch.distributions.Categorical(logits=dense).entropy())
    return logps, entropies

def test_score_equals_one_row_at_a_time(any_policy):
    policy = any_policy
    logp, entropy, _ = rlvr.score(policy, ASKED, ANSWERED, temperature=0.8)
    logp.sum().backward()
    gradient = gradient_of(policy)

    slow_logps, slow_entropies = slow_score(policy.model, ASKED, ANSWERED, 0.8)
    torch.cat(slow_logps).sum().backward()
    slow_gradient = gradient_of(policy)

    pad = torch.nn.utils.rnn.pad_sequence  # by 0, as behind the end of a response
    assert torch.allclose(logp, pad(slow_logps, batch_first=True), atol=1e-4)
    assert torch.allclose(entropy, pad(slow_entropies, batch_first=True), atol=1e-4)
    assert torch.allclose(gradient, slow_gradient, rtol=1e-3, atol=1e-4)

# ------------------------------------------------------------------------------------------ sampler

PROMPTS = [
    (5, 6, 7),
    (4, 0, 9, 10, 11, 12),  # 0 is the pad or eos token of some models
    (13,),
]

def sampled(policy, prompts, u, temperature=1.0):
    """What sample() returns, with names."""
    c = rlvr.Config(temperature=temperature)
    tokens, lengths, finished, logp = rlvr.sample(policy, prompts, u, c)
    return SimpleNamespace(tokens=tokens, lengths=lengths, finished=finished, logp=logp)

def assert_same_tokens(a, b, rows=slice(None)):
    """What was sampled in `a` are these rows of what was sampled in `b`."""
    assert torch.equal(a.tokens, b.tokens[rows])
    assert torch.equal(a.lengths, b.lengths[rows])
    assert torch.equal(a.finished, b.finished[rows])

def seeded(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, columns, generator=generator)

@torch.no_grad()
def next_token(policy, ids, temperature=1.0):
    """The distribution of the token after these, as the whole model says it without a cache."""
    logits = policy.model(torch.tensor([ids])).logits[0, -1]
    return torch.softmax(logits.float() / temperature, -1)

def drawn(p, u):
    """The token whose part of the line from 0 to 1 a number u falls on."""
    end = 0.0
    for token, probability in enumerate(p.tolist()):
        end += probability
        if u < end:
            return token
    return len(p) - 1  # by rounding the line is a little short

def slow_sample(policy, prompt, u, temperature):
    """One response: all is read again for each token -> its tokens and their log-probabilities."""
    tokens = []
    logps = []
    for number in u.tolist():
        p = next_token(policy, [*prompt, *tokens], temperature)
        token = drawn(p, number)
        tokens.append(token)
        logps.append(p[token].log().item())
        if token in policy.stop_ids:
            break
    return tokens, logps

def test_sampler_equals_its_slow_twin(any_policy):
    """Responses of all lengths, with the stop token at their ends."""
    policy = stopping_at_every(9, any_policy)
    u = seeded(48, 16, 3)
    fast = sampled(policy, PROMPTS, u, temperature=0.9)
    assert len(set(fast.lengths.tolist())) > 2
    for row in range(0, 48, 4):
        prompt = PROMPTS[row // 16]
        tokens, logps = slow_sample(policy, prompt, u[row], temperature=0.9)
        n = int(fast.lengths[row])
        assert fast.tokens[row, :n].tolist() == tokens
        assert bool(fast.finished[row]) == (tokens[-1] in policy.stop_ids)
        assert torch.allclose(fast.logp[row, :n], torch.tensor(logps), atol=1e-4)

def test_after_its_end_a_response_has_nothing(policy):
    policy = stopping_at_every(9, policy)
    out = sampled(policy, PROMPTS, seeded(48, 16, 3))
    after = torch.arange(16) >= out.lengths[:, None]
    assert after.any()
    assert not out.tokens[after].any()
    assert not out.logp[after].any()

def test_a_response_does_not_depend_on_its_batch(any_policy):
    policy = stopping_at_every(9, any_policy)
    u = seeded(48, 16, 3)
    together = sampled(policy, PROMPTS, u)
    for i, prompt in enumerate(PROMPTS):
        rows = slice(16 * i, 16 * i + 16)
        alone = sampled(policy, [prompt], u[rows])
        assert_same_tokens(alone, together, rows)

def test_at_a_vanishing_temperature_sampling_is_the_argmax(any_policy):
    """As the library's own decoding."""
    policy = stopping_at_every(9, any_policy)
    for prompt in PROMPTS:
        u = torch.full((1, 16), 0.5)
        out = sampled(policy, [prompt], u, temperature=1e-6)
        ids = torch.tensor([prompt])
        greedy = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16,
            pad_token_id=0, eos_token_id=policy.stop_ids)
        length = int(out.lengths[0])
        response = out.tokens[0, :length]
        assert [*prompt, *response.tolist()] == greedy[0].tolist()

def test_samples_follow_the_distribution(policy):
    """Each count is within five standard deviations of what it should be."""
    n = 20000
    prompt = PROMPTS[0]
    out = sampled(policy, [prompt], seeded(n, 1, 0))
    p = next_token(policy, prompt)
    counts = torch.bincount(out.tokens[:, 0], minlength=len(p))
    deviation = (n * p * (1 - p)).sqrt()
    distance = (counts - n * p).abs()
    assert (distance <= 5 * deviation + 1).all()

READS_ON_THE_HOST = ("_local_scalar_dense", "nonzero", "masked_select")

class Tape(TorchDispatchMode):
    """What a CUDA graph does, on a CPU: note each operation with the tensors that it works on, and
    repeat it on those very tensors, whatever Python would do now. To read a value on the host is no
    part of a graph."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.replays = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in READS_ON_THE_HOST
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, result))
        return result

    def replay(self):
        self.replays += 1
        if self.replays == 1:  # recording has done this step; on a GPU it would not have
            return
        leaves = torch.utils._pytree.tree_leaves
        for function, args, kwargs, result in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(leaves(result), leaves(again)):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

def test_graphs_decode_token_for_token(policy, monkeypatch):
    tapes = []

    def capture(function):
        tape = Tape()
        tapes.append(tape)
        with tape:
            result = function()
        return tape, result

    monkeypatch.setattr(rlvr, "capture", capture)
    policy = stopping_at_every(9, policy)
    by_graph = replace(policy, by_graph=True)
    for rows in (42, 30):
        u = seeded(rows, 24, rows)
        slow = sampled(policy, PROMPTS, u)
        fast = sampled(by_graph, PROMPTS, u)
        assert_same_tokens(fast, slow)
        assert torch.allclose(fast.logp, slow.logp, atol=1e-4)
    assert sum(tape.replays for tape in tapes) > len(tapes) + 10

@pytest.fixture
def shapes(policy):
    """-> a list that gets the (rows, tokens) of everything that the policy reads from now on."""
    read = []

    def note_shape(module, inputs, output):
        rows, tokens, _ = output.last_hidden_state.shape
        read.append((rows, tokens))

    policy.model.base_model.register_forward_hook(note_shape)
    return read

def test_scoring_reads_each_prompt_once_and_no_last_token(policy, shapes):
    short = (5, 6, 7)
    long = (9, 10, 11, 12, 13)
    prompts = [short, short, short, long, long]
    responses = [[4] * length for length in (2, 9, 1, 5, 30)]
    logp, _, _ = rlvr.score(policy, prompts, responses, temperature=1.0)
    assert logp.shape == (5, 30)
    assert shapes == [(2, 5), (5, 29)]

def test_sampling_reads_at_most_two_rows_for_a_token(policy, shapes):
    policy = stopping_at_every(5, policy)
    out = sampled(policy, PROMPTS, seeded(300, 16, 4))
    assert shapes[0] == (3, 6)  # the prompts
    rows_read = sum(rows for rows, _ in shapes[1:])
    assert rows_read <= 2 * out.lengths.sum()

# ----------------------------------------------------------------------------------------- rollouts

@pytest.fixture
def rolled_out(policy):
    """-> a function that makes rollouts, four responses to each prompt, of all lengths."""
    policy = stopping_at_every(9, policy)
    policy.micro_batch_tokens = 20
    problems = [rlvr.Problem("", ids, None, "math") for ids in PROMPTS]

    def rolled_out(*coordinates, sample_rows=1000):
        c = rlvr.Config(max_new_tokens=12, temperature=0.9)
        policy.sample_rows = sample_rows
        return rlvr.rollout(policy, problems, 4, c, *coordinates), policy, c
    return rolled_out

def test_rollouts_do_not_depend_on_how_many_are_sampled_at_once(rolled_out):
    together, _, _ = rolled_out(0, "test", sample_rows=1000)
    in_turns, _, _ = rolled_out(0, "test", sample_rows=4)
    assert together.responses == in_turns.responses

def test_equal_prompts_get_other_responses(policy):
    problem = rlvr.Problem("", PROMPTS[0], None, "math")
    c = rlvr.Config(max_new_tokens=12)
    rollouts = rlvr.rollout(policy, [problem, problem], 4, c, 0, "test")
    assert rollouts.responses[:4] != rollouts.responses[4:]

def test_rollouts_depend_on_their_coordinates(rolled_out):
    first, _, _ = rolled_out(0, "test")
    again, _, _ = rolled_out(0, "test")
    other, _, _ = rolled_out(1, "test")
    assert first.responses == again.responses
    assert first.responses != other.responses

def test_rollouts_have_each_prompt_so_many_times_in_a_row(rolled_out):
    rollouts, _, _ = rolled_out(0, "test")
    for i, problem in enumerate(rollouts.problems):
        assert problem.ids == PROMPTS[i // 4]

def test_the_mask_of_rollouts_is_that_of_their_responses(rolled_out):
    """With the stop token, which is the last one of what is finished."""
    rollouts, policy, _ = rolled_out(0, "test")
    lengths = [len(response) for response in rollouts.responses]
    assert torch.equal(rollouts.mask, mask_of(lengths))
    for response, finished in zip(rollouts.responses, rollouts.finished):
        assert finished == (response[-1] in policy.stop_ids)
        assert finished or len(response) == 12

def test_the_verifier_sees_special_tokens_but_those_that_end_a_response(folders, monkeypatch):
    policy = loaded(folders / "qwen")
    policy.tokenizer.add_special_tokens({"additional_special_tokens": ["<answer>"]})
    ids = policy.tokenizer.encode("<answer>42<|im_end|>")
    tokens = torch.tensor([ids])
    lengths = torch.tensor([len(ids)])
    out = (tokens, lengths, torch.tensor([True]), torch.zeros(1, 9))
    monkeypatch.setattr(rlvr, "sample", Mock(return_value=out))
    problem = rlvr.Problem("", (5, 6), "42", "math")
    rollouts = rlvr.rollout(policy, [problem], 1, rlvr.Config(), "test")
    assert rollouts.texts == ["<answer>42"]

def test_trainer_and_sampler_agree_on_rollouts(rolled_out):
    rollouts, policy, c = rolled_out(0, "test")
    prompts = [problem.ids for problem in rollouts.problems]
    with torch.no_grad():
        logp, entropy, _ = rlvr.score(policy, prompts, rollouts.responses, 0.9)
    assert torch.allclose(logp, rollouts.logp, atol=1e-4)

    logp_by_micro_batches, entropy_by_micro_batches = rlvr.score_all(policy, rollouts, c)
    assert torch.allclose(logp_by_micro_batches, logp, atol=1e-4)
    assert torch.allclose(entropy_by_micro_batches, entropy, atol=1e-4)

# --------------------------------------------------------------------------------------- advantages

def advantages_of(*groups, kind="std"):
    """Rewards of groups, each a list -> their advantages, lists too."""
    return rlvr.advantages(torch.tensor(groups), kind).tolist()

def test_advantages_by_standard_deviation():
    """The sample one, as in TRL and verl: 0.5 for one right response of four."""
    [A] = advantages_of([0.0, 0.0, 0.0, 1.0])
    assert A == pytest.approx([-0.5, -0.5, -0.5, 1.5])

def test_advantages_without_standard_deviation():
    [A] = advantages_of([0.0, 0.0, 0.0, 1.0], kind="mean")
    assert A == [-0.25, -0.25, -0.25, 0.75]

def test_advantages_in_units_of_the_mean():
    [A] = advantages_of([0.0, 0.0, 0.0, 1.0], kind="maxrl")
    assert A == [-1.0, -1.0, -1.0, 3.0]

@pytest.mark.parametrize("kind", ["maxrl", "reward"])
@pytest.mark.parametrize("reward", [-1.0, 10.0])
def test_kinds_for_right_and_wrong_take_no_other_rewards(kind, reward):
    """A mean below 0 is no unit, and by 2 R - 1 a wrong response of -1 would count three times."""
    rewards = torch.tensor([[1.0, reward, math.nan]])
    message = stop_of(rlvr.advantages, rewards, kind)
    assert_words(message, f"--advantage {kind}", "below 0 or above 1")

def test_advantages_by_the_reward_alone():
    """Also where all are right; only what could not be judged teaches nothing."""
    groups = [0.0, 1.0, 0.25], [1.0, 1.0, 1.0], [1.0, math.nan, 0.0]
    assert advantages_of(*groups, kind="reward") == [
        [-1.0, 1.0, -0.5], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]

def test_each_group_is_compared_with_itself():
    first = [1.0, 0.0, 0.0, 1.0]
    second = [10.0, 0.0, 0.0, 0.0]
    together = advantages_of(first, second)
    assert together == advantages_of(first) + advantages_of(second)

@pytest.mark.parametrize("kind", ["std", "mean", "maxrl"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 0.3, 0.7, 1 / 3])
def test_equal_rewards_have_exactly_no_advantage(reward, kind):
    """Also where their mean is rounded, which a division by a tiny deviation would blow up."""
    for size in range(2, 20):
        group = torch.full((1, size), reward)
        assert not rlvr.advantages(group, kind).any()

def test_a_group_with_a_response_without_verdict_has_no_advantage():
    judged_all, judged_one = advantages_of([1.0, 0.0], [0.0, math.nan])
    assert judged_all == pytest.approx([0.707, -0.707], abs=1e-3)
    assert judged_one == [0.0, 0.0]

# ---------------------------------------------------------------------------------------- schedules

def test_a_constant_lambda_stays():
    c = rlvr.Config(pos_schedule="constant", pos_weight=0.3)
    assert rlvr.next_lambda(c, 0, num_prompts=8) == 0.3
    assert rlvr.next_lambda(c, 1, num_prompts=8, previous=0.9, entropy=0.1) == 0.3

@pytest.mark.parametrize("step, expected", [
    (0, 0),
    (5, 0),
    (6, 0.2),
    (8, 0.6),
    (10, 1),
])
def test_lambda_by_stage_is_0_in_the_first_half_then_rises_to_1(step, expected):
    c = rlvr.Config(pos_schedule="stage", steps=11)
    assert rlvr.next_lambda(c, step, num_prompts=8) == pytest.approx(expected)

@pytest.mark.parametrize("step, expected", [
    (0, 0),
    (1, 0),  # 8 prompts, 4 a step
    (2, 0.2),
    (4, 0.4),
    (5, 0.4),
    (7, 0.6),
    (9, 0.8),
    (10, 1),
    (11, 1),  # the step after the last one is in no new epoch
])
def test_lambda_by_epoch_rises_from_0_to_1(step, expected):
    c = rlvr.Config(pos_schedule="epoch", steps=11, prompts_per_step=4)
    assert rlvr.next_lambda(c, step, num_prompts=8) == pytest.approx(expected)

@pytest.mark.parametrize("previous, entropy, expected", [
    (None, None, 0.3),
    pytest.param(0.4, 0.1, 0.35, id="down below the target"),
    pytest.param(0.3, 0.3, 0.35, id="up above it"),
    pytest.param(0.4, 0.2, 0.45, id="up on it"),
    pytest.param(0.98, 0.3, 1.0, id="not over 1"),
    pytest.param(0.02, 0.1, 0.0, id="not under 0"),
])
def test_lambda_by_entropy(previous, entropy, expected):
    c = rlvr.Config(
        pos_schedule="entropy", pos_weight=0.3, target_entropy=0.2, pos_delta=0.05)
    step = 0 if previous is None else 1
    assert rlvr.next_lambda(c, step, 8, previous, entropy) == pytest.approx(expected)

@pytest.mark.parametrize("previous, entropy, expected", [
    pytest.param(0.03, 0.1, 0.05, id="up below the target"),
    pytest.param(0.03, 0.3, 0.01, id="down above it"),
    pytest.param(0.01, 0.3, 0.0, id="not under 0"),
])
def test_entropy_bonus(previous, entropy, expected):
    c = rlvr.Config(bonus_delta=0.02, target_entropy=0.2)
    assert rlvr.next_bonus(c, previous, entropy) == pytest.approx(expected)

# --------------------------------------------------------------------------------------- evaluation

@pytest.mark.parametrize("k", range(1, 7))
@pytest.mark.parametrize("correct", range(7))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(correct, k):
    responses = [True] * correct + [False] * (6 - correct)
    solved = [any(draw) for draw in itertools.combinations(responses, k)]
    expected = sum(solved) / len(solved)
    assert rlvr.pass_at_k(6, correct, k) == pytest.approx(expected)

def test_calibration_error_is_summed_by_tenths_of_confidence():
    confidence = torch.tensor([0.0, 0.0625, 0.5, 0.5625, 0.9375, 1.0, 1.0])
    right = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    gaps = [
        0.0625 - 1,
        0.5 + 0.5625 - 1,
        0.9375 + 1 + 1 - 2,
    ]
    error = rlvr.calibration(confidence, right)
    assert error == pytest.approx(sum(map(abs, gaps)) / 7)

def test_calibration_of_one_who_is_sure_and_right():
    sure = torch.ones(4)
    right = torch.ones(4)
    assert rlvr.calibration(sure, right) == 0.0

def is_a_or_b(text, problem):
    return float(text in "ab")

@pytest.fixture
def evaluated(folders, monkeypatch):
    """-> evaluate() on known responses to two problems: for text "a" or "b" the reward is 1. Their
    tokens are [1, 2] and [1] in turn, the last one is cut off."""
    policy = loaded(folders / "demo")

    def evaluate(texts):
        count = len(texts)
        lengths = torch.tensor([2, 1] * (count // 2))
        mask = torch.arange(2) < lengths[:, None]
        rollouts = rlvr.Rollouts(
            problems=[rlvr.Problem("", (), "", "math")] * count,
            responses=[[1, 2], [1]] * (count // 2),
            finished=[True] * (count - 1) + [False],
            texts=texts,
            logp=mask * -1.0,
            mask=mask,
        )
        monkeypatch.setattr(rlvr, "rollout", Mock(return_value=rollouts))
        monkeypatch.setattr(rlvr, "score_all", Mock(return_value=(mask * -1.0, mask * 0.5)))
        c = rlvr.Config(eval_samples=count // 2)
        return rlvr.evaluate(policy, [None, None], is_a_or_b, c)
    return evaluate

TWO_OF_THREE_RIGHT_ONES_DIFFER = ["a", "a", "b", "x"]
NONE_RIGHT = ["x", "x", "x", "x"]

def test_evaluation_counts_what_is_right(evaluated):
    result = evaluated(TWO_OF_THREE_RIGHT_ONES_DIFFER + NONE_RIGHT)
    assert result["avg@4"] == 3 / 8
    assert result["pass@4"] == 0.5
    assert result["distinct"] == 1.0

def test_the_same_right_response_counts_for_each_problem(evaluated):
    result = evaluated(["a", "a", "b", "x", "a", "x", "x", "x"])
    assert result["distinct"] == (2 + 1) / 2

def test_evaluation_measures_all_responses(evaluated):
    result = evaluated(TWO_OF_THREE_RIGHT_ONES_DIFFER + NONE_RIGHT)
    assert result["entropy"] == 0.5
    assert result["length"] == 1.5
    assert result["truncated"] == 1 / 8
    assert result["ece"] == pytest.approx(abs(math.exp(-1) - 3 / 8))  # in one bin

def test_evaluation_has_a_pass_at_8_and_one_for_all_samples(evaluated):
    result = evaluated(["a"] * 16 + ["x"] * 16)
    names = [name for name in result if "@" in name]
    assert names == ["avg@16", "pass@8", "pass@16"]

# ------------------------------------------------------------------------------------------ rewards

def judged(texts, reward, finished=None):
    """Responses to a math problem with answer 4 -> their rewards, and what was raised instead."""
    rollouts = SimpleNamespace(
        problems=[rlvr.Problem("", (), "4", "math")] * len(texts),
        texts=texts,
        finished=finished or [True] * len(texts),
    )
    verdicts, errors = rlvr.judge(rollouts, reward)
    return rlvr.rewards_of(rollouts, verdicts, errors)

def reward_of_text(text, problem):
    """Raises for other texts."""
    return {"right": 1.0, "wrong": 0.0, "nan": math.nan}[text]

def test_one_response_that_cannot_be_judged_stops_no_run_when_all_others_are_cut_off():
    with pytest.warns(UserWarning, match="get no advantage"):
        rewards, _ = judged(["odd", "wrong"], reward_of_text, finished=[True, False])
    assert rewards.nan_to_num(-1).tolist() == [-1, 0]
    message = stop_of(judged, ["odd", "odd"], reward_of_text)
    assert "no response can be judged" in message

def test_what_cannot_be_judged_has_no_reward_and_a_reason():
    texts = ["right", "wrong", "odd", "wrong", "nan", "right"]
    with pytest.warns(UserWarning, match="get no advantage"):
        rewards, errors = judged(texts, reward_of_text)
    rewards = rewards.nan_to_num(-1)
    assert rewards.tolist() == [1, 0, -1, 0, -1, 1]
    assert errors == {
        2: "KeyError: 'odd'",
        4: "ValueError: the reward is nan, no finite number",
    }

@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_reason_is_that_of_its_row_also_behind_a_cut_off_response():
    texts = ["right", "odd", "wrong"]
    rewards, errors = judged(texts, reward_of_text, finished=[False, True, True])
    assert rewards.nan_to_num(-1).tolist() == [0, -1, 0]
    assert errors == {1: "KeyError: 'odd'"}

def test_a_reward_that_always_raises_stops_the_run():
    """Also if some response was cut off, and so never judged."""
    texts = ["odd", "odd", "odd"]
    message = stop_of(judged, texts, reward_of_text)
    assert "no response can be judged: KeyError" in message
    message = stop_of(judged, texts, reward_of_text, [True, True, False])
    assert "no response can be judged: KeyError" in message

def test_a_reward_that_hangs_stops_the_run(monkeypatch):
    patience = 0.2  # seconds
    monkeypatch.setattr(verify.verify_batch, "__defaults__", (patience,))

    def hangs(text, problem):
        time.sleep(1)

    assert "the reward function hangs" in stop_of(judged, ["x"] * 6, hangs)

def test_a_cut_off_response_gets_no_reward_for_what_it_says():
    reward = rlvr.load_reward("auto")
    right = "\\boxed{4}"
    rewards, _ = judged([right, right], reward, finished=[True, False])
    assert rewards.tolist() == [1, 0]

def test_with_negative_rewards_rambling_does_not_pay():
    def negative(text, problem):
        return -len(text)

    texts = ["x", "xxx", "x"]
    rewards, _ = judged(texts, negative, finished=[True, True, False])
    assert rewards.tolist() == [-1, -3, -3]

OWN_FILE = """
from neighbour import bonus

def by_names(row, response, prompt):
    return row["x"] + len(response + prompt) + bonus

def all_of_it(response, answer, prompt, row):
    return len(response) + answer + row["x"]

def too_much(response, answer, temperature):
    return 1

def by_place(text, gold):
    return len(text) + gold

def not_asked(answer):
    return 1
"""

@pytest.fixture
def own_file(tmp_path):
    (tmp_path / "neighbour.py").write_text("bonus = 2")
    (tmp_path / "own.py").write_text(OWN_FILE)
    return tmp_path / "own.py"

@pytest.mark.parametrize("name, expected", [
    ("by_names", 100 + 9 + 2),
    ("all_of_it", 3 + 10 + 100),
])
def test_a_reward_of_ones_own_gets_what_it_names(own_file, name, expected):
    reward = rlvr.load_reward(f"{own_file}:{name}")
    problem = rlvr.Problem("prompt", (), 10, "math", row={"x": 100})
    assert reward("abc", problem) == expected

@pytest.mark.parametrize("name, words", [
    ("too_much", ["response, answer, prompt, row", "temperature"]),
    ("by_place", ["response, answer, prompt, row", "text"]),
    ("not_asked", ["no parameter is named response"]),
])
def test_a_reward_that_wants_what_there_is_not_stops_at_once(own_file, name, words):
    message = stop_of(rlvr.load_reward, f"{own_file}:{name}")
    assert_words(message, name, *words)

@pytest.mark.parametrize("answer, verdict", [
    ("x = 2 + 3 = 5", 1.0),
    ("x = 4 = 5", 0.0),
])
def test_a_chain_of_values_is_an_answer_if_they_are_equal(answer, verdict):
    assert verify.math_reward(f"\\boxed{{{answer}}}", "5") == verdict

def test_an_answer_that_never_closes_is_none():
    assert verify.countdown_reward("<answer>7*3+5", [3, 5, 7], 26) == 0.0

def test_steps_that_leave_a_number_out_are_no_solution():
    assert verify.countdown_reward("7*3=21", [3, 5, 7], 21) == 0.0

# ------------------------------------------------------------------------------------ the countdown

def some_countdown_rows():
    return list(itertools.islice(rlvr.countdown_rows(), 300))

def test_countdown_rows_are_distinct_whatever_the_order_of_their_numbers():
    rows = some_countdown_rows()
    seen = set()
    for row in rows:
        numbers = sorted(row["answer"]["numbers"])
        seen.add((*numbers, row["answer"]["target"]))
    assert len(rows) == len(seen) == 300

def test_countdown_rows_are_the_same_every_time():
    assert some_countdown_rows() == some_countdown_rows()

def test_random_calculations_are_right_by_the_verifier():
    rand = random.Random(1)
    for _ in range(300):
        numbers, target, steps = rlvr.random_calculation(rand)
        assert verify.countdown_reward(steps, numbers, target) == 1.0
        assert 1 <= target <= 99

def test_a_saved_demo_is_recognised(folders):
    assert config(folders / "demo").lr == rlvr.DEMO["lr"]
    assert config(folders / "qwen").lr != rlvr.DEMO["lr"]

def test_the_demo_gets_its_own_form_of_prompt(folders):
    c = config(folders / "demo", "--num_prompts 200 --eval_prompts 20")
    train, held_out = rlvr.load_problems(c, rlvr.load_policy(c))
    for problem in train + held_out:
        assert problem.prompt == rlvr.compact_countdown(**problem.answer)
        assert problem.row["answer"] == problem.answer  # for a reward that asks for it

def test_the_demo_reads_single_characters(folders):
    tokenizer = loaded(folders / "demo").tokenizer
    text = "3,15,7=26:15-3=12,12*7=84"
    assert len(tokenizer.encode(text)) == len(text)

    ended = tokenizer.encode(text + tokenizer.eos_token)
    assert tokenizer.decode(ended, skip_special_tokens=True) == text

# --------------------------------------------------------------------------------- held-out prompts

def test_held_out_prompts_are_not_trained_on(folders):
    c = config(folders / "demo", "--num_prompts 200 --eval_prompts 20")
    train, held_out = rlvr.load_problems(c, rlvr.load_policy(c))
    trained_on = {problem.prompt for problem in train}
    assert len(train) == len(trained_on) == 200
    assert len(held_out) == 20
    for problem in held_out:
        assert problem.prompt not in trained_on

def test_few_prompts_to_train_on_leave_all_held_out_ones(folders):
    c = rlvr.parse_config(command("--num_prompts 16"))
    train, held_out = rlvr.load_problems(c, loaded(folders / "demo"))
    assert len(train) == 16
    assert len(held_out) == 256

# ---------------------------------------------------------------------------------------- data sets

QUESTION = "What is 40 + {i}?"
FORMS = {  # a row of each form of data set; the answer to be read from it is 4{i}
    "gsm8k": {
        "question": QUESTION,
        "answer": "40 + {i} = <<40+{i}=4{i}>>4{i}\n#### 4{i}",
    },
    "math": {
        "problem": QUESTION,
        "solution": "\\boxed{{4}}, no: \\boxed{{4{i}}}.",
        "level": "1",
    },
    "math500": {
        "problem": QUESTION,
        "solution": "Hence \\boxed{{0}}",
        "answer": "4{i}",
    },
    "plain": {
        "prompt": QUESTION,
        "answer": "4{i}",
    },
}

def rows_of(form):
    """Eight rows of this form, i from 0 to 7."""
    rows = []
    for i in range(8):
        row = {}
        for column, cell in FORMS[form].items():
            row[column] = cell.format(i=i)
        rows.append(row)
    return rows

def assert_read(c):
    """The data set of this config is read as the eight rows of a form."""
    train, held_out = rlvr.load_problems(c, rlvr.load_policy(c))
    assert len(train) == 7
    assert len(held_out) == 1

    found = set()
    for problem in train + held_out:
        first_line = problem.prompt.split("\n")[0]
        found.add((first_line, problem.answer))
        assert problem.kind == "math"
        assert "\\boxed" in problem.prompt
        assert problem.prompt.endswith("\nAnswer:")
    assert found == {(f"Question: What is 40 + {i}?", f"4{i}") for i in range(8)}

@pytest.mark.parametrize("form", FORMS)
def test_forms_of_data_sets(folders, tmp_path, form):
    file = write_lines(tmp_path / "data.jsonl", rows_of(form))
    assert_read(config(folders / "llama", "--dataset", file))

@pytest.mark.parametrize("form, suffix", [
    ("gsm8k", "parquet"),
    ("plain", "csv"),
    ("math", "json"),
])
def test_types_of_files(folders, tmp_path, form, suffix):
    import datasets
    file = tmp_path / f"data.{suffix}"
    table = datasets.Dataset.from_list(rows_of(form))
    if suffix == "parquet":
        table.to_parquet(file)
    elif suffix == "csv":
        table.to_csv(file)
    else:
        file.write_text(json.dumps(rows_of(form)))
    assert_read(config(folders / "llama", "--dataset", file))

def test_a_folder_that_the_datasets_library_has_saved(folders, tmp_path):
    import datasets
    table = datasets.Dataset.from_list(rows_of("plain"))
    datasets.DatasetDict({"test": table}).save_to_disk(tmp_path / "saved")
    assert_read(config(folders / "llama", "--split test --dataset", tmp_path / "saved"))

def questions_of(problems):
    """The first lines of their prompts, without "Question: "."""
    return [problem.prompt.split("\n")[0].removeprefix("Question: ") for problem in problems]

def test_held_out_prompts_from_a_split_of_their_own(folders, tmp_path):
    """What is in both splits is not trained on."""
    import datasets
    rows = rows_of("plain")
    splits = datasets.DatasetDict({
        "train": datasets.Dataset.from_list(rows[:6]),
        "test": datasets.Dataset.from_list(rows[5:]),
    })
    splits.save_to_disk(tmp_path / "saved")
    c = config(folders / "llama", "--eval_split test --dataset", tmp_path / "saved")
    train, held_out = rlvr.load_problems(c, rlvr.load_policy(c))
    assert sorted(questions_of(train)) == [f"What is 40 + {i}?" for i in range(5)]
    assert sorted(questions_of(held_out)) == [f"What is 40 + {i}?" for i in range(5, 8)]

def test_held_out_prompts_from_a_file_of_their_own(folders, tmp_path):
    rows = rows_of("plain")
    data = write_lines(tmp_path / "train.jsonl", rows[:6])
    other = write_lines(tmp_path / "test.jsonl", rows[6:])
    c = config(folders / "llama", "--dataset", data, "--eval_split", other)
    train, held_out = rlvr.load_problems(c, rlvr.load_policy(c))
    assert len(train) == 6
    assert sorted(questions_of(held_out)) == ["What is 40 + 6?", "What is 40 + 7?"]

@pytest.mark.parametrize("flags, subset", [
    ("", "main"),
    ("--subset socratic", "socratic"),
])
def test_of_several_subsets_main_is_taken(folders, tmp_path, flags, subset):
    card = "---\nconfigs:\n"
    for name in ("socratic", "main"):
        write_lines(tmp_path / f"{name}.jsonl", [{"question": name, "answer": "#### 1"}] * 9)
        card += (f"- config_name: {name}\n  data_files:\n"
                 f"  - split: train\n    path: {name}.jsonl\n")
    (tmp_path / "README.md").write_text(card + "---\n")

    c = config(folders / "llama", "--dataset", tmp_path, flags)
    rows, columns = rlvr.load_rows(c, c.dataset, c.split)
    assert columns == ["question", "answer"]
    assert [row["question"] for row in rows] == [subset] * 9

USELESS_ROWS = """\
q,a
short,007
short,007
no answer,
,3
other,4
"""

@pytest.fixture
def csv_with_useless_rows(folders, tmp_path):
    """-> the config of a run on two rows that can be used, one of them given twice, and three that
    cannot."""
    file = tmp_path / "data.csv"
    too_long = "word " * 200
    file.write_text(USELESS_ROWS + f"{too_long},2\n")
    return config(folders / "llama", "--prompt_column q --answer_column a",
                  "--max_prompt_tokens 200 --dataset", file)

def test_csv_cells_stay_as_they_are_written(csv_with_useless_rows):
    """007 is no 7, and in a column with an empty cell 4 is no 4.0."""
    c = csv_with_useless_rows
    train, held_out = rlvr.load_problems(c, rlvr.load_policy(c))
    assert sorted(problem.answer for problem in train + held_out) == ["007", "4"]

def test_a_task_of_ones_own_is_a_line_of_the_table(folders, tmp_path, monkeypatch):
    def contains(response, answer):
        return float(answer["word"] in response)

    own = rlvr.Task("Say it.", contains, extract=str.strip)
    monkeypatch.setitem(rlvr.TASKS, "word", own)
    answer = {"kind": "word", "word": "yes"}
    rows = [{"question": f"{i}?", "answer": answer} for i in range(5)]
    data = write_lines(tmp_path / "data.jsonl", rows)
    c = config(folders / "llama", "--dataset", data)
    train, _ = rlvr.load_problems(c, rlvr.load_policy(c))
    reward = rlvr.load_reward("auto")
    assert "Say it." in train[0].prompt
    assert reward("yes!", train[0]) == 1.0
    assert reward("no", train[0]) == 0.0

def test_rows_that_cannot_be_used_are_counted_by_reason(csv_with_useless_rows, capsys):
    c = csv_with_useless_rows
    rlvr.load_problems(c, rlvr.load_policy(c))
    shown = capsys.readouterr().out
    assert "3 rows" in shown
    assert "1 with no answer" in shown
    assert "1 with no question" in shown
    assert "1 with a prompt longer than --max_prompt_tokens 200" in shown

# ---------------------------------------------------------------------------- questions and answers

ADD_TESTS = ["assert add(1) == 2", "assert add(0)"]
PROGRAM = dict(inputs=["2\n"], outputs=["4\n"])
FUNCTION = dict(inputs=[[1, 2]], outputs=[3], fn_name="add")
GOAL = dict(target=3, numbers=[1, 2])

@pytest.mark.parametrize("cell, kind, answer", [
    pytest.param(7, "math", "7", id="number"),
    pytest.param(["10", "ten"], "math", ["10", "ten"], id="several right answers"),
    pytest.param({"ground_truth": "5", "style": "rule"}, "math", "5", id="DAPO-Math-17k"),
    pytest.param({"ground_truth": GOAL}, "countdown", GOAL, id="TinyZero"),
    pytest.param(ADD_TESTS, "code", {"tests": ADD_TESTS}, id="MBPP"),
    pytest.param(json.dumps(PROGRAM), "code", PROGRAM, id="APPS, program"),
])
def test_answers_of_all_kinds(cell, kind, answer):
    assert rlvr.read_answer(cell) == (kind, answer)

@pytest.mark.parametrize("cell, kind, answer", [
    pytest.param(repr(ADD_TESTS), "code", {"tests": ADD_TESTS}, id="list of tests"),
    pytest.param(json.dumps(GOAL), "countdown", GOAL, id="JSON"),
    pytest.param("[0, 1]", "math", "[0, 1]", id="interval"),
    pytest.param("{1, 2}", "math", "{1, 2}", id="set"),
])
def test_a_cell_may_hold_a_list_or_a_dict_as_text(cell, kind, answer):
    """As in a csv file."""
    assert rlvr.read_answer(cell) == (kind, answer)

def test_a_cell_of_damaged_json_is_no_answer():
    with pytest.raises(ValueError, match="damaged"):
        rlvr.read_answer('{"inputs": ["1"')

def test_arguments_and_results_of_a_function_become_tests():
    kind, answer = rlvr.read_answer(json.dumps(FUNCTION))
    assert kind == "code"
    assert answer == {"tests": ["assert add(*[1, 2]) == 3"]}

def chat_problem(folders, question, answer="1", **more_columns):
    """The problem that the model with a chat template gets from a row."""
    c = config(folders / "qwen", "--max_prompt_tokens 200")
    row = {"q": question, "a": answer, **more_columns}
    return rlvr.make_problem(row, ("q", "a"), rlvr.load_policy(c), c)

def test_countdown_question_for_a_chat_model(folders):
    row = next(rlvr.countdown_rows())
    problem = chat_problem(folders, row["question"], row["answer"])
    assert problem.kind == "countdown"
    assert problem.prompt.startswith(f"<|im_start|>user\n{row['question']}")
    assert "<answer>" in problem.prompt
    assert problem.prompt.endswith("<|im_start|>assistant\n")

def test_of_the_tests_of_code_one_is_shown_as_an_example(folders):
    prompt = chat_problem(folders, "Add.", ADD_TESTS).prompt
    assert ADD_TESTS[1] in prompt
    assert ADD_TESTS[0] not in prompt

def test_imports_of_tests_come_before_them(folders):
    problem = chat_problem(folders, "Add.", ADD_TESTS, test_imports=["import re"])
    assert problem.answer == {"tests": ["import re", *ADD_TESTS]}

IN_PARTS = {
    "role": "user",
    "content": [
        {"type": "text", "text": "1+"},
        {"type": "text", "text": "1?"},
    ],
}

def test_chat_messages_may_come_in_parts_and_get_no_instruction(folders):
    prompt = chat_problem(folders, [IN_PARTS]).prompt
    assert prompt == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"

def test_a_last_turn_that_answers_is_left_out(folders):
    solution = {"role": "assistant", "content": "It is 2."}
    with pytest.warns(UserWarning, match="give the answer away"):
        problem = chat_problem(folders, [IN_PARTS, solution])
    assert problem.prompt == chat_problem(folders, [IN_PARTS]).prompt

def test_a_system_prompt_is_no_question(folders):
    c = config(folders / "qwen", "--system_prompt Short.")
    empty = {"role": "user", "content": ""}
    row = {"q": [empty], "a": "1"}
    with pytest.raises(ValueError, match="no question"):
        rlvr.make_problem(row, ("q", "a"), loaded(folders / "qwen"), c)

# ----------------------------------------------------------------------------------- chat templates

ROW = {"q": "1?", "a": "1"}

def test_a_policy_is_saved_with_all_its_chat_templates(folders, tmp_path):
    policy = loaded(folders / "qwen")
    policy.tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ tools }}"}
    rlvr.save_policy(policy, tmp_path / "saved", step=0)
    rlvr.save_policy(policy, tmp_path / "saved", step=1)  # over itself, too
    again = tf.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.chat_template == policy.tokenizer.chat_template

def test_what_a_template_writes_after_a_turn_ends_a_response_too(folders, tmp_path):
    policy = loaded(folders / "qwen")
    policy.tokenizer.eos_token = "<pad>"
    rlvr.save_policy(policy, tmp_path / "model")
    ends = policy.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<pad>"])
    assert set(ends) <= set(loaded(tmp_path / "model").stop_ids)

def test_a_template_that_refuses_stops_with_its_message(folders):
    policy = loaded(folders / "qwen")
    policy.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    c = config(folders / "qwen")
    assert "no system role" in stop_of(rlvr.make_problem, ROW, ("q", "a"), policy, c)

def test_a_model_may_name_several_tokens_that_end_a_response(folders, tmp_path):
    policy = loaded(folders / "llama")
    policy.model.generation_config.eos_token_id = [3, 5]
    rlvr.save_policy(policy, tmp_path / "model")
    eos = policy.tokenizer.eos_token_id
    assert set(loaded(tmp_path / "model").stop_ids) == {3, 5, eos}

def test_what_a_template_writes_gets_no_second_beginning(folders):
    """The tokenizer begins a text with a special token; the template has begun it already."""
    policy = loaded(folders / "qwen")
    tokenizer = policy.tokenizer
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)])
    assert tokenizer.encode("1?")[0] == start

    problem = rlvr.make_problem(ROW, ("q", "a"), policy, config(folders / "qwen"))
    assert problem.ids.count(start) == problem.prompt.count("<|im_start|>")

def test_stop_tokens_by_name_and_by_number(folders):
    policy = loaded(folders / "qwen", "--stop_tokens ! 7")
    exclamation = policy.tokenizer.convert_tokens_to_ids("!")
    eos = policy.tokenizer.eos_token_id
    assert {7, exclamation, eos} <= set(policy.stop_ids)

def test_a_template_with_the_date_gives_the_same_prompt_on_every_day(folders):
    policy = loaded(folders / "qwen")
    policy.tokenizer.chat_template += "Today is {{ strftime_now('%d %B %Y') }}."
    c = config(folders / "qwen")
    prompt = rlvr.make_problem(ROW, ("q", "a"), policy, c).prompt
    assert "Today is 01 January 2025." in prompt

def test_the_folders_own_tokenizer_is_used_and_saved(folders, tmp_path):
    """It splits digits in threes; for this type of model transformers has another one."""
    policy = loaded(folders / "qwen")
    core = policy.tokenizer.backend_tokenizer
    digits = pre_tokenizers.Split(Regex(r"\d{1,3}"), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, core.pre_tokenizer])
    shutil.copytree(folders / "qwen", tmp_path / "threes")
    core.save(str(tmp_path / "threes" / "tokenizer.json"))

    text = "1234567 + 89"
    own = Tokenizer.from_file(str(tmp_path / "threes" / "tokenizer.json"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = rlvr.load_tokenizer(tmp_path / "threes")
    assert tokenizer.encode(text) == own.encode(text).ids

def test_system_prompt_and_arguments_of_the_template(folders):
    policy = loaded(folders / "qwen")
    policy.tokenizer.chat_template += "{{ suffix }}"
    c = config(folders / "qwen", "--system_prompt Short.",
               '--chat_template_kwargs {"suffix":"<think>"}')
    prompt = rlvr.make_problem(ROW, ("q", "a"), policy, c).prompt
    assert prompt.startswith("<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\n1?")
    assert prompt.endswith("assistant\n<think>")

# ------------------------------------------------------------------------------------------ presets

@pytest.mark.parametrize("flags, expected", [
    ("", dict(preset="pos_adv_entropy", pos_schedule="entropy", pos_weight=0.0)),
    ("--preset grpo", dict(pos_weight=1.0)),
    ("--preset clip_higher", dict(eps_high=0.07)),
    ("--preset adv_nonpos --pos_weight 0.5", dict(pos_weight=0.5)),
    ("--eps_high inf", dict(eps_high=math.inf)),
    ("--model Qwen/Qwen2.5-0.5B-Instruct", dict(eps_low=0.2, lr=1e-6, target_entropy=0.2)),
    ("--preset ada_ent_reg --target_entropy 0.3", dict(target_entropy=0.3)),
])
def test_flags_win_over_presets_and_presets_over_defaults(flags, expected):
    c = rlvr.parse_config(command(flags))
    for name, value in expected.items():
        assert getattr(c, name) == value

@pytest.mark.parametrize("preset", rlvr.PRESETS)
def test_every_preset_is_a_config(preset):
    assert rlvr.parse_config(["--preset", preset]).preset == preset

def test_a_run_is_named_by_what_is_not_usual():
    c = rlvr.parse_config(["--model", "Qwen/Qwen2.5-0.5B-Instruct"])
    assert c.output_dir == "runs/pos_adv_entropy-model=Qwen2.5-0.5B-Instruct-seed0"

# ---------------------------------------------------------------------------------------- bad flags

@pytest.mark.parametrize("flags, words", [
    # no value, or none of these
    ("--steps many", ["--steps", "many"]),
    ("--pos_schedule cosine", ["cosine", "stage"]),
    ("--preset ppo", ["ppo", "pos_adv_entropy"]),
    ("--learning_rate 1", ["--learning_rate", "--help"]),
    # out of range
    ("--group_size 1", ["--group_size", "2..inf"]),
    ("--num_prompts 0", ["--num_prompts", "1..inf"]),
    ("--temperature 0", ["--temperature"]),
    ("--temperature nan", ["--temperature"]),
    ("--lr -1", ["--lr"]),
    ("--eps_low -1", ["--eps_low"]),
    ("--cov_share 2", ["--cov_share", "0..1"]),
    ("--pos_weight 2", ["--pos_weight", "too large"]),
    # what does nothing, or does not fit another
    ("--updates_per_batch 7", ["--updates_per_batch 7", "--prompts_per_step 32"]),
    ("--preset grpo --target_entropy 0.3", ["--target_entropy", "no effect"]),
    ("--preset grpo --pos_delta 0.3", ["--pos_delta", "no effect"]),
    ("--preset ada_ent_reg --pos_delta 0.3", ["--pos_delta", "no effect"]),
    ("--preset pos_adv_stage --pos_weight 0.3", ["--pos_weight", "no effect"]),
    ("--preset grpo --cov_penalty 1", ["--cov_penalty", "no effect"]),
    # folders where nothing is
    ("--resume nowhere", ["nowhere"]),
    ("--show nowhere", ["nowhere"]),
    ("--report nowhere/*", ["nowhere/*", "no finished run"]),
])
def test_a_bad_flag_is_named(flags, words):
    assert_words(message_of(flags), *words)

def test_random_command_lines_end_in_one_line():
    rand = random.Random(0)
    names = [f"--{field.name}" for field in dataclasses.fields(rlvr.Config)]
    names += ["--oops", "-x", "stray"]
    values = command("1 -1 0 0.5 nan inf 1e999 x true None [] ../.. é --lr") + [""]
    refused = 0
    for _ in range(200):
        argv = []
        for _ in range(rand.choice((1, 2, 3))):
            argv += [rand.choice(names), rand.choice(values)]
        if stop_of(rlvr.parse_config, argv):
            refused += 1
    assert 100 < refused < 200

# --------------------------------------------------------------------------------------- bad models

def refusal(model, tmp_path, *flags):
    """The one line with which a run on this model stops."""
    return message_of("--model", model, SMALL, "--output_dir", tmp_path / "run", *flags)

def test_a_model_without_eos_token(folders, tmp_path):
    policy = loaded(folders / "llama")
    policy.tokenizer.eos_token = None
    policy.tokenizer.pad_token = None
    policy.model.config.eos_token_id = None
    policy.model.generation_config.eos_token_id = None
    rlvr.save_policy(policy, tmp_path / "model")
    assert "no eos token" in refusal(tmp_path / "model", tmp_path)

@linux
def test_a_loaded_model_does_not_keep_its_file_open(folders):
    loaded(folders / "llama")
    assert str(folders / "llama") not in Path("/proc/self/maps").read_text()

def test_a_tokenizer_larger_than_its_embedding(folders, tmp_path):
    policy = loaded(folders / "llama")
    policy.tokenizer.add_tokens([f"<extra{i}>" for i in range(50)])
    rlvr.save_policy(policy, tmp_path / "model")
    assert "embedding only 320" in refusal(tmp_path / "model", tmp_path)

def test_weights_of_other_names_would_be_random(folders, tmp_path):
    policy = loaded(folders / "llama")
    rlvr.save_policy(policy, tmp_path / "model")
    renamed = {}
    for name, tensor in policy.model.state_dict().items():
        renamed[f"_orig_mod.{name}"] = tensor
    policy.model.save_pretrained(tmp_path / "model", state_dict=renamed)
    assert "would be random" in refusal(tmp_path / "model", tmp_path)

def test_code_that_comes_with_a_model_is_not_run(folders, tmp_path):
    shutil.copytree(folders / "qwen", tmp_path / "model")
    auto_map = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}
    own_config = json.dumps({"model_type": "own", "auto_map": auto_map})
    (tmp_path / "model" / "config.json").write_text(own_config)
    mark = tmp_path / "ran"
    (tmp_path / "model" / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")

    assert "no whole model" in refusal(tmp_path / "model", tmp_path)
    assert not mark.exists()

def test_weights_that_are_no_numbers(folders, tmp_path):
    policy = loaded(folders / "llama")
    with torch.no_grad():
        policy.model.lm_head.weight[7, 7] = math.nan
    rlvr.save_policy(policy, tmp_path / "model")
    assert "not finite" in refusal(tmp_path / "model", tmp_path)

def test_a_model_without_attention(tmp_path):
    model_config = tf.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
    policy = rlvr.Policy(tf.MambaForCausalLM(model_config), bpe_tokenizer(False), stop_ids=[0])
    rlvr.save_policy(policy, tmp_path / "model")
    assert "all layers have to be attention" in refusal(tmp_path / "model", tmp_path)

@pytest.mark.parametrize("value", ["{oops", "[1]", "3"])
def test_template_arguments_that_are_no_json_object(value):
    message = stop_of(rlvr.parse_config, ["--chat_template_kwargs", value])
    assert "no JSON object" in message

def test_a_template_argument_that_the_template_never_reads(folders, tmp_path):
    argument = '{"enable_thinking":false}'
    message = refusal(folders / "qwen", tmp_path, "--chat_template_kwargs", argument)
    assert_words(message, "chat template", "enable_thinking")

def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    assert "LoRA" in refusal(tmp_path / "model", tmp_path)

def test_a_model_that_does_not_exist(tmp_path):
    assert "no such file or folder" in refusal(tmp_path / "nowhere", tmp_path)
    assert "nobody/nothing" in refusal("nobody/nothing", tmp_path)

@pytest.mark.parametrize("name", ["<nope>", "99999999"])
def test_a_stop_token_that_does_not_exist(folders, tmp_path, name):
    message = refusal(folders / "qwen", tmp_path, "--stop_tokens", name)
    assert "no token of" in message

def test_responses_longer_than_the_context(folders, tmp_path):
    message = refusal(folders / "qwen", tmp_path, "--max_new_tokens 200")
    assert "256 tokens of context" in message

# ----------------------------------------------------------------------------- bad data and rewards

@pytest.fixture
def good_data(tmp_path):
    row = {"question": "1+1?", "answer": "2", "extra": 1}
    return write_lines(tmp_path / "good.jsonl", [row])

def test_a_data_set_that_does_not_exist(folders, tmp_path):
    message = refusal(folders / "qwen", tmp_path, "--dataset no.jsonl")
    assert "no such file or folder" in message
    message = refusal(folders / "qwen", tmp_path, "--dataset nobody/data")
    assert "nobody/data" in message

def test_a_file_that_is_no_data_set(folders, tmp_path):
    message = refusal(folders / "qwen", tmp_path, "--dataset", HERE / "README.md")
    assert "README.md" in message

def test_an_empty_file(folders, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    message = refusal(folders / "qwen", tmp_path, "--dataset", tmp_path / "empty.jsonl")
    assert "empty.jsonl" in message

def test_a_split_that_a_saved_data_set_has_not(folders, tmp_path):
    import datasets
    datasets.Dataset.from_list(rows_of("plain")).save_to_disk(tmp_path / "saved")
    message = refusal(folders / "qwen", tmp_path, "--split nope --dataset", tmp_path / "saved")
    assert_words(message, "no split nope", "only train")

def test_a_column_that_the_data_set_has_not(folders, tmp_path, good_data):
    message = refusal(folders / "qwen", tmp_path, "--prompt_column frage --dataset", good_data)
    assert_words(message, "--prompt_column", "frage", "question", "answer", "extra")

def test_mostly_rows_without_an_answer(folders, tmp_path):
    rows = []
    for i in range(30):
        rows.append({"question": f"{i}?", "answer": "" if i % 3 else "1"})
    file = write_lines(tmp_path / "few.jsonl", rows)
    message = refusal(folders / "qwen", tmp_path, "--dataset", file)
    assert "too few usable prompts in split train: 20 with no answer" in message

def test_only_prompts_that_are_too_long(folders, tmp_path, good_data):
    message = refusal(folders / "qwen", tmp_path, "--max_prompt_tokens 2 --dataset", good_data)
    assert "longer than --max_prompt" in message

def test_fewer_prompts_than_an_epoch_schedule_needs(folders, tmp_path):
    message = refusal(folders / "demo", tmp_path, "--preset pos_adv_epoch --steps 2")
    assert "2nd epoch" in message

def test_rewards_that_do_not_exist(folders, tmp_path):
    own = folders / "own.py"
    assert "neither auto nor" in refusal(folders / "qwen", tmp_path, "--reward vibes")
    assert "no file" in refusal(folders / "qwen", tmp_path, "--reward nowhere.py:f")
    assert "nothing" in refusal(folders / "qwen", tmp_path, f"--reward {own}:nothing")

ODD_CELLS = [
    None, 7, 1e300, True, "", "\x00", "\ud83d",
    [], [1], [[]], [{"role": "user"}],
    {}, {"a": 1},
]

def damaged_data(rand):
    """The bytes of a file with some odd cells; half of the time cut off, with garbage after."""
    rows = [{"question": f"{i}?", "answer": str(i)} for i in range(8)]
    for _ in range(rand.randint(0, 3)):
        column = rand.choice(["question", "answer", "more"])
        rand.choice(rows)[column] = rand.choice(ODD_CELLS)

    lines = [json.dumps(row) for row in rows]
    data = "\n".join(lines).encode()
    if rand.random() < 0.5:
        data = data[:rand.randrange(len(data))]
        data += rand.randbytes(rand.randint(0, 9))
    return data

def test_damaged_data_files_end_in_one_line(folders, tmp_path):
    policy = loaded(folders / "qwen")
    rand = random.Random(0)
    refused = 0
    for number in range(80):
        suffix = rand.choice(["jsonl", "json", "csv", "parquet"])
        file = tmp_path / f"{number}.{suffix}"
        file.write_bytes(damaged_data(rand))
        c = config(folders / "qwen", "--eval_prompts 0 --dataset", file)
        message = stop_of(rlvr.load_problems, c, policy)
        if message:
            assert str(file) in message
            refused += 1
    assert 10 < refused < 80

# --------------------------------------------------------------------------------------- verify.py

from textwrap import dedent

RIGHT = [  # gold, answer
    ("x > 3", "3 < x"),
    (r"x \ne 3", r"3 \ne x"),
    ("36", "3 dozen"),
    (r"\bar x = 3, y = 2", r"y = 2, \bar{x} = 3"),
    ("3.5", "3½"),
    ("1234567", "1{,}234{,}567"),
    (r"25\%", "25"),
    (r"\frac{7}{3}", r"\tfrac73"),
    (r"-\frac{7}{3}", r"-2\frac{1}{3}"),
    ("-5", "−5"),
    ("1.75", "1 3/4"),
    (r"\frac{3}{4}", r"{3 \over 4}"),
    (r"\frac{6}{8}", "0.75"),
    (r"\frac13", r"0.\overline{3}"),
    ("0.25", r"25\%"),
    (r"\$1,250.50", "1250.5"),
    (r"90^\circ", "90°"),
    ("1500000", r"\$1.5\text{ million}"),
    (r"8\text{ hours}", "8 hrs"),
    (r"12\text{ m}^2", r"12\text{ square meters}"),
    (r"60\text{ km/h}", r"60\text{ km per hour}"),
    ("3000", "3e3"),
    ("-2", r"\sqrt[3]{-8}"),
    ("2^{1/2}", "sqrt(2)"),
    (r"36\pi", r"\frac{4}{3}\pi (3)^3"),
    (r"e^{i\pi}", "-1"),
    ("14", "AB=BC=14"),
    ("2^{n+1}", r"2\cdot 2^n"),
    (r"\frac{2}{x^2-1}", r"\frac{1}{x-1}-\frac{1}{x+1}"),
    (r"\sin 2x", r"2\sin x\cos x"),
    (r"\tan^2 y+1", r"\sec^2 y"),
    (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
    (r"\log_2 10", r"\frac{\ln 10}{\ln 2}"),
    ("x<4", "-x>-4"),
    (r"\frac{\pi}{6}", r"\sin^{-1}\frac12"),
    (r"\frac{1}{2}", r"\sin 30^\circ"),
    ("y=2x+3", "2x-y+3=0"),
    ("[0,1)", r"0\le x<1"),
    ("(x,y)=(1,2)", "(1, 2)"),
    (r"(-\infty,0)\cup(1,\infty)", r"x<0 \text{ or } x>1"),
    (r"\{1,2,3\}", "3,2,1"),
    (r"\infty", "+∞"),
    ("3, 5", r"5\text{ and }3"),
    (r"2\pm\sqrt{7}", r"2-\sqrt7, 2+\sqrt7"),
    ("B", r"\textbf{(B)}"),
    ("1011_2", "1011"),
    (
        r"\begin{pmatrix} 5 & 0 \\ 0 & 5 \end{pmatrix}",
        r"\left[\begin{array}{cc} 5 & 0 \\ 0 & 5 \end{array}\right]",
    ),
    ("18446744073709551616", "2^{64}"),
    (r"\emptyset", r"\{\}"),
    (r"x\le 3", "x≤3"),
    ("12", r"\mathbf{12}"),
    ("2^{-10}", "2^-10"),
    (r"3.2\times10^{5}", "3.2 x 10^5"),
    (r"2.5\text{ million}", "2500000"),
    (r"3+4\mathrm{i}", "3+4i"),
    ("25", r"P = \$25"),
    (r"\frac{3}{2}\mathrm{e}", r"\frac{3e}{2}"),
    ("3.14", r"x \approx 3.14"),
    (r"\frac{1}{3}", r"x = \frac{1}{3} \approx 0.333"),
    (r"\frac{1}{3}", r"0.333\ldots"),
    (r"e = \frac{\sqrt5}{3}", r"e = \frac13\sqrt5"),
    ("(0,5)", "B = (0,5)"),
    ("x^4+1", "x⁴+1"),
    ("(1,2)", "P(1,2)"),
    ("24 (stickers)", "24"),
    ("24 (stickers)", r"24\text{ stickers}"),
    (r"\begin{pmatrix}1/2\\2\end{pmatrix}", r"\begin{pmatrix}0.5\\ \sqrt4\end{pmatrix}"),
    (r"\langle 3,4\rangle", "(3, 4)"),
    (r"18^\circ\mathrm{C}", r"18\text{ degrees Celsius}"),
    (r"60\text{ miles per hour}", "60 mph"),
    ("a_1+a_2", "a₁+a₂"),
    (r"\frac{v_0^2}{2g}", r"\frac{v^2_0}{2g}"),
    ("1101_2", "(1101)_{2}"),
    ("-3,0,3", r"0, \pm 3"),
    ("|u|", r"\sqrt{u^2}"),
    (r"\{\pm 2, \pm 5\}", "2,-2,5,-5"),
    (r"\ln|x+1|", r"\ln\left\vert x+1\right\vert"),
    (r"\{x \mid x > 2\}", r"(2,\infty)"),
    (r"x \ne -1", r"(-\infty,-1)\cup(-1,\infty)"),
    (r"\binom{2n}{n}", r"\frac{(2n)!}{n!\,n!}"),
    (r"\text{2:45 PM}", "2:45 p.m."),
    (r"\sum_{k=1}^{n} k^3", r"\sum_{k = 1}^{n} k^{3}"),
    (r"\frac{2018!}{2}", r"\frac{1}{2}\cdot 2018!"),
    (r"n - \lfloor n/2 \rfloor", r"-\lfloor \frac{n}{2} \rfloor + n"),
    (r"x\sqrt{x}", r"\sqrt{x^3}"),
    ("(2,-1)", "x=2, y=-1"),
    ("12", r"12^{\text{th}}"),
    (r"\dbinom{n}{2}", r"{n \choose 2}"),
    (r"\sqrt{a}\sqrt{b}", r"\sqrt{ab}"),
    ("0.005", "5 thousandths"),
    ("B", r"\text{(B) } 42"),
    ("B", "Option B"),
    ("0", r"\sin\pi"),
    ("11100", r"11,\! 100"),
    ("x=1, y=2", "y=2, x=1"),
    ("0", r"\sin^2 x+\cos^2 x-1"),
    ("2F_{16}", "2F_{16}"),
    ("y=2x+1", "2y=4x+2"),
    ("5 lbs", "5 pounds"),
    ("42", r"\{42\}"),
    ("42", r"\color{red}{42}"),
    ("0.5", "0.5 (or 1/2)"),
    ("15", "15th day"),
    ("10,000", r"10, \!000"),
    (r"25\%", r"25\% increase"),
    ("5", r"\$5/hour"),
    (r"5\text{ m/s}", r"5 \frac{m}{s}"),
    (r"5\text{ J}", "5 J"),
    ("5", "5 m^3"),
    ("42", "42元"),
    ("10 (g)", "10 g"),
    ("1011_2", "1011 (base 2)"),
    ("2F_{16}", r"\text{2F}_{16}"),
    (r"45^\circ", "45^o"),
    ("180-2x", r"180^\circ - 2x"),
    (r"\sqrt{3}+i", r"2\operatorname{cis} 30^\circ"),
    (r"\cot x", r"\operatorname{ctg} x"),
    ("f(x)=x^2", "f(t)=t^2"),
    (r"k\pi", r"x=n\pi, n\in\mathbb{Z}"),
    (r"(2k+1)\pi", r"(2n+1)\pi"),
    ("x^2+C", "x^2+c"),
    ("Ce^{2x}", "ce^{2x}"),
    ("f(x)=1", r"f(x)=1 \text{ for all } x"),
    ("55", r"\sum_{k=1}^{10} k = 55"),
    ("7", "a+b=7"),
    (r"(-\infty,1)\cup(1,\infty)", r"\mathbb{R}\setminus\{1\}"),
    (r"(-\infty,-2]\cup\{1\}", r"a \le -2 \text{ or } a = 1"),
    ("(1,3)", "x<3 and x>1"),
    ("(1,3)", r"1<x \text{ and } x<3"),
    (
        r"\begin{cases}x&x>0\\-x&x\le0\end{cases}",
        r"\begin{cases} x, & x>0 \\ -x, & x \leq 0 \end{cases}",
    ),
    ("x=1,y=2", r"\begin{aligned} x &= 1 \\ y &= 2 \end{aligned}"),
    ("ellipse", "an ellipse"),
    ("3:5", "3 to 5"),
    ("5", "x equals 5"),
    (r"\sqrt{\frac{L}{g}}", r"\frac{\sqrt{Lg}}{g}"),
    (r"A=\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ("Alice = 7, Bob = 5", "Bob = 5, Alice = 7"),
    (r"5\pi", "5 pi"),
    ("1 piece", "1 (piece)"),
    ("3", "3 times"),
    ("24", "24 (cm),"),
    ("f(x)=2x+1", "y=2x+1"),
    ("y=2x+1", "f(x)=1+2x"),
]
WRONG = [
    ("x < 3", "3 < x"),
    ("1", "①"),
    (r"\bar{x}", r"\bar{X}"),
    ("2", r"\begin{vmatrix}1&2\\3&4\end{vmatrix}"),
    ("42", "4 2"),
    ("5", "5 or"),
    ("5", r"5\text{ or }"),
    ("5", "0.(3)x=5"),
    ("0.5", "0.5... for all x"),
    ("42", r"42 \approx x"),
    ("1.5", r"3\frac{1}2"),
    ("1A_{16}", "A_{16}"),
    (r"5\text{ m}", r"5\text{ ms}"),
    (r"2.5\cdot10^9", "2.5 million"),
    (r"\frac13", r"0.\overline{33}1"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ("1,2", r"1,2,\ldots"),
    (r"25\%", "2500"),
    (r"\frac{1}{3}", "0.3333333333"),
    ("12", "12x"),
    (r"12\text{ cm}", r"12\text{ m}"),
    (r"12\text{ cm}", r"12\text{ cm}^2"),
    (r"\$5", r"5\text{ cents}"),
    ("|x|", "x"),
    ("0", "10^{-40}"),
    (r"\sqrt{2}", "1.41421356237309504880168872420969807857"),
    (r"\pi", r"\frac{355}{113}"),
    ("5", "4=5"),
    ("10^{100}", "10^{100}+1"),
    ("1", "0.99999999"),
    ("x^2-4", "(x-2)^2"),
    ("14", "x=6+8=15"),
    ("x=5", "y=5"),
    ("x>3", r"x\ge 3"),
    ("x+y=3", "2x+2y=3"),
    ("x>3", "y>3"),
    ("5", "5!"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "2,1"),
    (r"(1,2)\cup(3,4)", "(1,2),(3,4)"),
    ("2,3", "2,3,3"),
    (r"[\frac12,1]", r"\{\frac12,1\}"),
    (r"\pm 3", "3"),
    ("5", r"\pm 5"),
    ("5", r"5 \text{ or } 6"),
    ("0", "0/0"),
    ("5", r"5 \neq 6"),
    ("5", r"\{1,2,3,4,5\}"),
    ("5", r"x\in\mathbb{R}"),
    ("B", "A/B/C/D"),
    ("312_7", "312_8"),
    ("12:30", "12.30"),
    ("0", r"\infty-\infty"),
    ("0", "nan"),
    ("1", "True"),
    ("5", r"\ldots"),
    ("5", r"\frac{5}{0}"),
    ("1", "exit(1)"),
    ("5", "int('5')"),
    ("5", "sum([2,3])"),
    ("x", "x.__class__"),
    ("6", r"6\text{ squared}"),
    (r"3+4\mathrm{i}", "7"),
    ("6", r"6\mathrm{i}"),
    (r"9\mathrm{e}^2", "9"),
    (r"\frac{2}{3} \approx 0.67", r"\frac{2}{3} \approx 1.67"),
    ("|y|", "y"),
    ("No", "oN"),
    ("XI", "IX"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{vmatrix}1&2\\3&4\end{vmatrix}"),
    (r"\sqrt{x^2}", "x"),
    ("ASA", "AAS"),
    (r"e = \frac12", r"e = \frac34"),
    (r"\frac49<\frac{5}{11}", r"\frac49<\frac{6}{11}"),
    ("a_{n+1}", "a_{n-1}"),
    ("3", "2x = 6"),
    ("a_{n+1}=3a_n", "a_{n-1}=3a_n"),
    ("f(2)=9", "f(3)=9"),
    (r"\lceil \frac{n}{5} \rceil", r"\lfloor \frac{n}{5} \rfloor+1"),
    (r"\lfloor \frac{n}{3} \rfloor", r"\lfloor \frac{n+1}{3} \rfloor"),
    (r"\log_4 8 = \frac32", r"\log_4 80 = \frac32"),
    ("35,000", "35,0000"),
    (r"0, \pm 3", "-3, 3"),
    (r"3 \pmod 7", r"4 \pmod 7"),
    (r"\{x \mid x > 2\}", r"[2,\infty)"),
    (r"\binom{2n}{n}", r"\binom{2n}{n+1}"),
    (r"\frac23, 1", r"\frac23"),
    ("y=2x+1", "y=y+0x"),
    ("x=5", "x=x"),
    ("y=2x+1", r"\sqrt{x}+\sqrt{y}=5"),
    ("x+y<3", r"\sqrt{x}+\sqrt{y}<1"),
    ("act", "cat"),
    ("AB=3, BC=4", "AB=4, BC=3"),
    ("f(x)=2x, g(x)=x", "f(x)=x, g(x)=2x"),
    ("3R2", "2R3"),
    ("2F_{16}", "F2_{16}"),
    ("y(0)", "0"),
    ("7 hours 30 minutes", "30 hours 7 minutes"),
    ("f(2)+f(3)", "5f"),
    ("A2", "2A"),
    ("5", "5 millions"),
    ("3", "3 eighths"),
    ("10,000", "10 or 0"),
    ("B", "A) 1, B) 2"),
    ("x^2", r"x^2+\sin(\pi x)\cdot 0!"),
    ("0", "e^{-200}"),
    ("E", r"\mathrm{E}*2"),
    ("1, 234", "1,234"),
    ("1,234", "234, 1"),
    ("40, 150", "40,150"),
    ("101!-1", "101!"),
    (r"AB_{16}", r"BA_{16}"),
    ("y=2x+1", "0=0"),
    ("F=ma", "ma=ma"),
    (r"m=\frac{1}{2}", "m=m"),
    ("x^2=4", "x=x"),
    ("y^2=4x+1", r"\sqrt{x}\sqrt{y}=5+\sqrt{x}"),
    ("3x+2y=12", "12"),
    ("xy=7", "7"),
    ("x+y=7", "x-y=7"),
    ("9", "x^2=9"),
    ("10", r"\sum_{k=1}^{4} k = 11"),
    ("min = 3, max = 1", "min = 1, max = 3"),
    ("Alice = 7, Bob = 5", "Alice = 5, Bob = 7"),
    ("1A_{16}", "A1_{16}"),
    ("|x|", r"x\cdot 1!"),
    ("|k|", "k"),
    (r"\sqrt{x^2}", r"x\cdot 0!"),
    ("5", "five hundred"),
    ("1", "one half"),
    ("1/2", "1/2 (or 1/3)"),
    ("12", "13th"),
    ("x^2+C", "x^2"),
    ("f(x)=x^2", "f(t)=t^3"),
    (r"n\pi", r"2k\pi"),
    ("x^2", "t^2"),
    ("(1,3)", "x<1 and x>3"),
    (r"(-\infty,1)\cup(1,\infty)", r"\mathbb{R}\setminus\{2\}"),
    ("45°", "45 rad"),
    ("5 m^3", "5 m^2"),
    (r"V=36\pi", "V=V"),
    ("V=IR", "IR=IR"),
    ("x^2+y^2=1", "x^2+y^2=x^2+y^2"),
    (r"\frac{11}{2}", r"\frac{1}{12}"),  # braces between digits hold them apart
    ("2^{12}", "2^{1}2"),
    (r"\sqrt{2}3", r"\sqrt{23}"),
    ("7", r"2 3\frac{1}{2}"),
    ("5", "5 pi"),  # words of mathematics are no units
    ("2", "2(ln x)"),
    ("3", "3 over four"),
    ("3", "3 times four"),
    ("3", r"3\text{ plus four}"),
    ("2", "2 (sqrt x)"),
    ("50", "50 percent off"),
    (r"\{x \in \mathbb{Z} \mid x > 2\}", r"\{x \in \mathbb{R} \mid x > 2\}"),
    ("x>2", r"\{x = 9 | x>2\}"),
    ("A(1,2), B(3,4)", "A(3,4), B(1,2)"),
    ("C(10,3)", "(10,3)"),
    ("No", "Yes (or No)"),
    ("2", r"\ln(x)=2"),
    ("6", "x(x+1)=6"),
    ("5", "5 for some, 6 for others"),
]

@pytest.mark.parametrize("gold, answer", RIGHT)
def test_math_right_answers(gold, answer):
    assert verify.math_reward(f"so \\boxed{{{answer}}}.", gold) == 1.0

@pytest.mark.parametrize("gold, answer", WRONG)
def test_math_wrong_answers(gold, answer):
    assert verify.math_reward(f"so \\boxed{{{answer}}}.", gold) == 0.0

SPELLINGS = verify.FIRST + verify.SPELLINGS

@pytest.mark.parametrize("rule", SPELLINGS, ids=[example for example, _, _ in SPELLINGS])
def test_math_each_spelling_needs_its_rule(rule, monkeypatch):
    with_it = verify.clean(rule[0])
    for table in ("FIRST", "SPELLINGS"):
        rules = getattr(verify, table)
        monkeypatch.setattr(verify, table, [other for other in rules if other != rule])
    assert verify.clean(rule[0]) != with_it

EXTRACTED = [  # whether the answer is 42
    (1, "The answer is $42$."),
    (1, r"Therefore, the final answer is \(42\)."),
    (1, "**Answer:** 42 apples"),
    (1, '**Final Answer**\n\n42'),
    (1, "The answer is 42, because 6*7=42."),
    (1, r"\boxed {42}"),
    (1, '\\boxed\n{42}'),
    (1, '<think>6*7</think>\n<answer>The answer is 42</answer>'),
    (1, "#### 42 dollars"),
    (1, '#### 41\n#### 42'),
    (1, '#### Step 1\nadd\n#### Step 2\nmultiply\nThe answer is 42.'),
    (1, r"\boxed{43} or \boxed{42}"),
    (1, r"\boxed{\boxed{42}}"),
    (1, '\\boxed{42}\n#### 43'),
    (1, r"<think>\boxed{41}</think> The answer is 42."),
    (1, r"<think>\boxed{42}</think> Done."),
    (0, r"<think>\boxed{42}</think> The answer is 41."),
    (0, '\n'),
    (0, '#### 42\n#### 43'),
    (0, "It is 42."),
    (0, "The answer is 42 or 43."),
    (0, "The answer is 142."),
    (0, r"\boxed{42} or \boxed{43}"),
    (0, r"\boxed{42} \boxed{"),
    (0, r"\boxed{42"),
    (0, r"\boxed{}"),
    (0, "The answer is between 41 and 43."),
    (0, r"\boxed{\text{answer}}"),
    (1, 'The answer is:\n\\[\n42\n\\]'),
    (1, "The answer is `42`, not 43."),
    (1, r"\boxed{**42**}"),
    (1, "The answer is 42 (since 6*7=42)."),
    (1, "Answer: 42<|im_end|>"),
    (1, r"\boxed{The final answer is 42.}"),
    (1, r"\boxed{\text{The answer is } 42}"),
    (1, "The answer is 42, as required."),
    (1, "The answer is 42 when x = 3."),
    (1, "The answer is 42 (forty-two)."),
    (1, 'The answer is 42.\nLet me know if the answer is clear.'),
    (1, 'The answer is 42.\nThe answer: always check units.'),
    (1, "Answer: 42</s>"),
    (0, "The answer is 41. The answer is not 42."),
    (0, "The answer is unknown to me. 42"),
    (0, "<answer>41</answer> but 42"),
    (0, "The answer is one of 41, 42, 43."),
]

@pytest.mark.parametrize("verdict, response", EXTRACTED)
def test_math_one_final_answer_is_extracted(verdict, response):
    assert verify.math_reward(response, "42") == verdict

@pytest.mark.parametrize("gold, response", [
    ("Mrs. Smith", "The answer is Mrs. Smith."),
    ("Yes", "The answer is Yes. I hope the answer is clear to you."),
    (r"\frac{1}{2}", "The answer is:\n$$\n\\frac{1}{2}\n$$\nas was to be shown."),
    ("B", "The answer is B) 42."),
])
def test_math_extracts_words_and_latex(gold, response):
    assert verify.math_reward(response, gold) == 1.0

@pytest.mark.parametrize("kind, response, shown", [
    ("math", "so \\boxed{4} it is", "4"),
    ("math", "so 4", None),
    ("countdown", "1+2=3", "1+2=3"),
    ("countdown", "Hm. <answer>1+2</answer>", "1+2"),
    ("code", "So:\n```\nx = 1\n```\n", "x = 1"),
    ("code", "So: x = 1", None),
])
def test_extract_what_is_judged_can_be_shown(kind, response, shown):
    assert verify.EXTRACT[kind](response) == shown

@pytest.mark.parametrize("gold, verdict", [
    (["10", "ten"], 1.0),
    (("11", "10.0"), 1.0),
    (["11"], 0.0),
    ([], 0.0),
])
def test_math_any_gold_of_a_list_is_right(gold, verdict):
    assert verify.math_reward("\\boxed{10}", gold) == verdict

@pytest.mark.parametrize("gold", ["", " ", "\\boxed{}", None])
@pytest.mark.parametrize("response", ["\\boxed{}", "", "#### ", "\\boxed{5}"])
def test_math_empty_golds_have_no_right_answer(response, gold):
    assert verify.math_reward(response, gold) == 0.0

@pytest.mark.parametrize("odd", [None, 5, b"x", ["7*3=21"], {}, "\x00", "\ud800"])
def test_verifiers_do_not_raise_on_odd_input(odd):
    steps = "7*3=21,21+5=26"
    assert verify.math_reward(odd, "7") == 0.0
    assert verify.math_reward("\\boxed{7}", odd or None) == 0.0
    assert verify.countdown_reward(odd, [3, 5, 7], 26) == 0.0
    assert verify.countdown_reward(steps, odd, 26) == 0.0
    assert verify.countdown_reward(steps, [3, 5, 7], odd) == 0.0

BOMBS = {  # computed, each would run for hours, exhaust the stack, or at least take a second
    "tower": "9^{9^{9^{9}}}",
    "Python's tower": "9**9**9**9",
    "brackets": "(" * 50000,
    "closed brackets": "(" * 50000 + "5" + ")" * 50000,
    "terms": "1+" * 50000 + "1",
    "degree": "x^{1000000}",
    "binomial": "\\binom{10^9}{5\\cdot 10^8}",
    "exponent": "1e999999999",
    "negative exponent": "10^{-10^{10}}",
    "spaces": " " * 99000 + "5x",
    "commas": "1," * 50000,
    "backslashes": "\\" * 90000,
    "fractions": "\\frac" * 20000,
    "digits": "0." + "3" * 90000,
    "exponentials": "\\exp(" * 30 + "9" + ")" * 30,
    "factorials": "9" + "!" * 200,
    "left": "\\left[" * 9999,
    "square brackets": "[" * 99 + "1" + "]" * 99,
    "period": "0.(" + "9" * 40 + ")...",
    "sum of factorials": "+".join(["2400!"] * 90),
    "product of powers": "3^{99999}" * 60,
    "sum of degrees": "+".join(["x^{20000}"] * 50),
    "binomials": "+".join(["\\binom{x}{300}"] * 30),
    "markers": "The answer is " * 9000,
}

@pytest.mark.parametrize("name", BOMBS)
def test_math_bombs_are_refused_at_once(name):
    """By bounds, not by a time-out."""
    bomb = BOMBS[name]
    forms = [f"\\boxed{{{bomb}}}", f"#### {bomb}", f"the answer is {bomb}", bomb]
    forms.append("\\boxed{" * 9999 + bomb)
    for gold in ("5", "\\frac{1}{3}", "x"):
        for response in forms:
            start = time.process_time()
            assert verify.math_reward(response, gold) == 0.0
            assert time.process_time() - start < 1

PIECES = r"""
\frac \sqrt \sin \ln \log_ \pi \infty \binom \lfloor \rfloor \cup \pm \in \text{ \left \approx ²
\begin{pmatrix} \end{pmatrix} & \\ { } ( ) [ ] | ^ _ ! % , ; : = < > + - * / x e i 0 2 99 0.5 1e9
⟨ ⟩ and √ ** \boxed{ \$ cm ° million (cm) 2:45 p.m. ... \prime a_{n-1} \mid ½ ₁
\setminus f(t)
forty to or \bar
""".split()

def test_math_fuzz_never_raises():
    rand = random.Random(1)
    for _ in range(2000):
        pieces = rand.choices(PIECES, k=rand.choice((2, 5, 12, 40)))
        text = rand.choice(("", " ")).join(pieces)
        gold = rand.choice(("5", "x+1", "(1,2)", "x>3", "25\\%", text))
        assert verify.math_reward(f"\\boxed{{{text}}}", gold) in (0.0, 1.0), (gold, text)

COUNTDOWN = [  # numbers, target, verdict, answer
    ([8, 3, 8, 3], 24, 1, "8/(3-8/3)"),
    ([3, 5, 2], 16, 1, "2*(3+5)"),
    ([20, 4, 5], 1, 1, "20/4/5"),
    ([5, 5], 10, 1, "5+5"),
    ([2, 3], 6, 1, " 3 * 2 = 6"),
    ([3, 5, 2], 4, 1, "-3+5+2"),
    ([6, 2, 5], 15, 1, "$6/2*5$"),
    ([12, 4, 3], 0, 1, "12/4-3"),
    ([7, 6, 2], 40, 1, '7 * 6\n- 2'),
    ([48, 6], 8, 1, "48 ÷ 6"),
    ([20, 5], 15, 1, "20 − 5"),
    ([3, 5, 2], 16, 0, "16"),
    ([3, 5, 2], 16, 0, "2*3+5"),
    ([3, 5, 2], 16, 0, "2*(3+5)+0"),
    ([5], 5, 0, "5-5+5"),
    ([5, 5], 5, 0, "5"),
    ([1, 3], 1000, 0, "1e3"),
    ([1, 5, 2], 3, 0, "1.5*2"),
    ([5, 3], 8, 0, "05+3"),
    ([3, 5], 8, 0, "３+5"),
    ([1, 2], 12, 0, "1 2"),
    ([1, 2], 12, 0, '1\n2'),
    ([2, 3], 8, 0, "2**3"),
    ([7, 2, 1], 4, 0, "7//2+1"),
    ([9, 5], 4, 0, "9%5"),
    ([1, 3], 8, 0, "1<<3"),
    ([5, 3], 0, 0, "5/(3-3)"),
    ([1, 2], 3, 0, "(1+2"),
    ([1, 2], 3, 0, '\n'),
    ([1, 2, 4, 1], 3, 0, "1+2=4-1"),
    ([1, 2], 3, 0, "1+2 or 9"),
    ([3, 5], 8, 0, "3--5"),
    ([3, 5], 8, 0, "3+(+5)"),
    ([1, 1000000, 5], 5, 0, "5+1/1000000"),
    ([3], 3, 0, "__import__('os').system('x') or 3"),
]

@pytest.mark.parametrize("numbers, target, verdict, answer", COUNTDOWN)
def test_countdown_answers(numbers, target, verdict, answer):
    response = f"<answer>1</answer> Let me see. <answer>{answer}</answer>"
    assert verify.countdown_reward(response, numbers, target) == verdict

STEPS = [  # of the demo, from 3, 5 and 7 to 26
    (1, "7*3=21,21+5=26"),
    (1, "7*3=21,5+21=26"),
    (1, ' 7*3=21,21+5=26\n'),
    (0, "7*3=21,21+5=27"),
    (0, "7*3=21"),
    (0, "21+5=26"),
    (0, "7*3=20,20+5=26"),
    (0, "7*3=21,21+5=26,26/26=1"),
    (0, '\n'),
    (0, "7+7=14,14+12=26"),
    (0, "26"),
    (0, "7*3=21,,21+5=26"),
    (0, "7*3=21,21+5=26<eos>"),
    (0, "<answer>1"),
    (0, "9**9=1,1+1=2"),
    (0, "7/3=2,21+5=26"),
]

@pytest.mark.parametrize("verdict, steps", STEPS)
def test_countdown_steps_of_the_demo(verdict, steps):
    assert verify.countdown_reward(steps, [3, 5, 7], 26) == verdict

def random_expression(rand, numbers):
    """Of these numbers, each once: in LaTeX, in plain signs, its value, None where it has none."""
    order = rand.sample(numbers, len(numbers))
    parts = [(str(n), str(n), Fraction(n)) for n in order]
    while len(parts) > 1:
        a, p, x = parts.pop(rand.randrange(len(parts)))
        b, q, y = parts.pop(rand.randrange(len(parts)))
        op = rand.choice("+-*/")
        value = None
        if x is not None and y is not None and not (op == "/" and y == 0):
            value = verify.OPERATORS[op](x, y)
        latex = f"({a}{op}{b})"
        if op == "/":
            latex = f"\\frac{{{a}}}{{{b}}}"
        if op == "*":
            latex = f"({a})\\cdot({b})"
        parts.append((latex, f"( {p}{op}{q})", value))
    return parts[0]

def test_math_and_countdown_random_expressions_equal_their_value_only():
    rand = random.Random(0)
    for _ in range(150):
        numbers = [rand.randint(0, 12) for _ in range(rand.randint(2, 5))]
        latex, plain, value = random_expression(rand, numbers)
        golds = {Fraction(0), Fraction(1)}
        if value:
            golds |= {value, value + 1, -value, 2 * value, value + Fraction(1, 10**9)}
        for gold in golds:
            for text in (latex, plain):
                verdict = verify.math_reward(f"\\boxed{{{text}}}", str(gold))
                assert verdict == (value == gold), (text, gold)
            if gold.denominator == 1:
                verdict = verify.countdown_reward(f"<answer>{plain}</answer>", numbers, int(gold))
                assert verdict == (value == gold), (plain, gold)

SQUARE = "assert sq(3) == 9\nassert sq(-4) == 16\nassert sq(0) == 0"

GOOD_CODE = {  # name: tests, code
    "prints": (SQUARE, """
        def sq(x):
            print('PASS')
            return x * x
        """),
    "printed beside the asserts": ("""
        t = build([1, 2])
        print(inorder(t))
        assert inorder(t) == [1, 2]
        """, """
        build = list
        def inorder(t):
            return t
        """),
    "builds what it is asked about": ("""
        assert S().ok(build(list((1, 2))))
        assert not S().ok(build([1]))
        """, """
        build = list
        class S:
            def ok(self, t): return t == [1, 2]
        """),
    "takes a builtin's name": ("assert sum(12, 18) == 6", """
        def sum(a, b):
            return b - a
        """),
    "lambda": ("""
        assert total(12, 18) == 30
        for i in range(3):
            assert total(i, i) == 2 * i
        """, """
        total = lambda a, b: a + b
        """),
    "calls itself": ("assert gcd(4, 6) == 2", """
        def gcd(a, b):
            return gcd(b, a % b) if b else a
        """),
    "cached": ("assert f(50) == 12586269025", """
        from functools import cache
        f = cache(lambda n: n if n < 2 else f(n-1) + f(n-2))
        """),
    "class": ("""
        assert Box(2).add(3) == 5
        b = Box(1)
        assert b.n == 1 and list(b.count()) == [0]
        """, """
        class Box:
            def __init__(self, n): self.n = n
            def add(self, k): return self.n + k
            def count(self): yield 0
        """),
    "method with types": ("assert S().f([1]) == [2]", """
        class S:
            def f(self, nums: List[int]) -> List[int]:
                return [2 * x for x in nums]
        """),
    "checked by a function": ("""
        def check(f):
            assert f([1, 2]) == 3
        check(add_up)
        """, """
        def add_up(a):
            return sum(a)
        """),
    "plain data": (
        "assert f() == ({(0, 1): 'a'}, frozenset({1}), 3 + 4j, b'x', None, True, 1.5)", """
        def f():
            return {(0, 1): 'a'}, frozenset([1]), 3 + 4j, b'x', None, True, 1.5
        """),
    "imports what is asked": ("assert f('abca') == {'a': 2, 'b': 1, 'c': 1}", """
        from collections import Counter as f
        """),
    "raises": ("""
        try:
            f(-1)
        except ValueError:
            pass
        else:
            assert False
        """, """
        def f(x):
            raise ValueError(x)
        """),
    "library judges": ("""
        import math
        assert math.isclose(f(3, 4), 5)
        """, """
        import math
        def f(a, b):
            return math.hypot(a, b)
        """),
    "imports the judge": ("assert isclose(half(3), 1.5)", """
        from math import isclose
        def half(x):
            return x / 2
        """),
    "decimal": ("assert price(1) == 2.5", """
        from decimal import Decimal
        def price(x):
            return Decimal('2.50')
        """),
    "variable before the judge": ("""
        from math import isclose
        r = f(2)
        assert isclose(r, 4)
        """, """
        def f(x):
            return 4
        """),
    "library function": ("""
        for a in range(3):
            assert gcd(a, 2 * a) == a
        """, """
        from math import gcd
        """),
    "own error": ("""
        try:
            f()
            assert False
        except E as e:
            assert str(e) == 'no'
        """, """
        class E(ValueError): pass
        def f():
            raise E('no')
        """),
    "names that sites give": ("assert f(range(4), 6) == 2", """
        def f(r, n):
            return gcd(len(deque(r)), n)
        """),
    "dataclass": ("assert f() == 1", """
        from dataclasses import dataclass
        @dataclass
        class N:
            v: int
            n: 'N' = None
        f = lambda: N(1).v
        """),
    "pair of functions": ("assert decode(encode('ab')) == 'ab'", """
        encode = lambda s: s[::-1]
        decode = lambda s: s[::-1]
        """),
    "error's arguments": ("""
        try:
            f()
            assert False
        except KeyError as e:
            assert e.args == ("k", 3)
        """, """
        def f():
            raise KeyError('k', 3)
        """),
    "function as argument": ("assert f(lambda x: x + 1, abs, -3) == 4", """
        def f(g, h, x):
            return g(h(x))
        """),
    "dates": ("""
        from datetime import date, timedelta
        assert f(date(2020, 1, 1)) == date(2020, 1, 2)
        assert f(date(2020, 1, 1)) - date(2020, 1, 1) == timedelta(days=1)
        """, """
        from datetime import timedelta
        def f(day):
            return day + timedelta(days=1)
        """),
    "named tuple": ("assert f() == (1, 2) and f().x == 1", """
        from collections import namedtuple
        P = namedtuple('P', 'x y')
        f = lambda: P(1, 2)
        """),
    "stack": ("""
        s = Stack()
        s.push(3)
        assert s and len(s) == 1 and 3 in s and s[0] == 3
        """, """
        class Stack:
            def __init__(self): self.a = []
            def push(self, x): self.a.append(x)
            def __len__(self): return len(self.a)
            def __getitem__(self, i): return self.a[i]
            def __iter__(self): return iter(self.a)
        """),
    "instance": ("assert isinstance(f(), A)", """
        class A: pass
        f = lambda: A()
        """),
    "generator": ("assert 2 in f(3) and next(f(3)) == 0 and sorted(f(2)) == [0, 1]", """
        def f(n):
            yield from range(n)
        """),
    "own files": ("assert f() == 'hi'", """
        open('a.txt', 'w').write('hi')
        f = lambda: open('a.txt').read()
        """),
    "array": ("""
        import numpy as np
        assert np.allclose(f(np.ones(2)), [2, 2])
        """, """
        import numpy as np
        f = lambda a: a * 2 if a.shape == (2,) else 0
        """),
}
REPLACED = {  # what judges a solution is not the solution's
    "len": ("assert len(primes(100)) == 25", """
        def primes(n):
            return []
        def len(x):
            return 25
        """),
    "abs and max": ("assert abs(max([1, 2]) - 2) < 1", """
        def max(x):
            return 9
        def abs(x):
            return 0
        """),
    "class math": ("assert math.isclose(f(), 1)", """
        class math:
            isclose = staticmethod(lambda *a: True)
        def f():
            return 5
        """),
    "class np": ("assert np.allclose(f(), 1)", """
        class np:
            allclose = staticmethod(lambda *a: True)
        def f():
            return 5
        """),
    "isclose": ("assert isclose(f(), 1)", """
        isclose = lambda *a, **k: True
        def f():
            return 5
        """),
    "object not equal": ("assert f() != 0", """
        class E:
            pass
        def f():
            return E()
        """),
    "object that is true": ("assert f()", """
        class E:
            pass
        def f():
            return E()
        """),
    "class Counter": ("assert Counter(f()) == Counter([1])", """
        class Counter(int):
            pass
        def f():
            return 1
        """),
    "patched builtin": ("assert set(f(9)) == {2, 3}", """
        import builtins
        builtins.set = lambda x: {2, 3}
        def f(n):
            return []
        """),
    "check": ("""
        def check(f):
            assert f(2) == 4
        check(sq)
        """, """
        def check(f):
            pass
        def sq(x):
            return 0
        """),
    "isclose of a variable": ("""
        r = f(2)
        assert isclose(r, 4)
        """, """
        isclose = lambda *a: True
        def f(x):
            return 0
        """),
    "class numpy": ("assert numpy.allclose(f(), 1)", """
        class numpy:
            allclose = staticmethod(lambda *a: True)
        def f():
            return 5
        """),
    "helper of a test": ("""
        def check(f):
            assert same(f(1), node(2))
        check(S().f)
        """, """
        same = lambda *a: True
        node = abs
        class S:
            f = abs
        """),
    "sum and round": ("assert sum([1, 2]) == round(3.2)", """
        sum = len
        round = lambda x: 2
        """),
    "nothing": ("""
        for a in range(3):
            assert gcd(a, 2 * a) == a
        """, """
        pass
        """),
    "a statement judges": ("assertEqual(f(2), 4)", """
        assertEqual = lambda a, b: None
        f = lambda x: 0
        """),
    "a variable holds the verdict": ("""
        ok = same(f(2), 4)
        assert ok == True
        """, """
        same = lambda a, b: True
        f = lambda x: 0
        """),
    "judged in a loop": ("assert all(same(f(x), x * x) for x in range(5))", """
        same = lambda a, b: True
        f = lambda x: 0
        """),
    "round": ("assert round(f(2), 2) == 4", """
        round = lambda a, b: 4
        f = lambda x: 0
        """),
    "pytest": ("assert f(2) == pytest.approx(4)", """
        class pytest:
            approx = staticmethod(lambda x: 0)
        f = lambda x: 0
        """),
    "patched module": ("""
        import math
        assert math.fabs(f(2) - 4) < 1e-6
        """, """
        import math
        math.fabs = lambda x: 0
        f = lambda x: 9
        """),
    "nothing would pass": ("""
        try:
            f(2)
        except ValueError:
            assert False
        """, """
        f = lambda x: x
        """),
    "class that is always equal": ("assert V(1, 2) + V(3, 4) == V(4, 6)", """
        class V:
            def __init__(self, *numbers): self.numbers = 0
            def __add__(self, other): return V()
            def __eq__(self, other): return True
        """),
    "Enum of one": ("assert f(1) == Color.RED and f(0) == Color.BLUE", """
        from enum import Enum
        class Color(Enum):
            RED = BLUE = 1
        f = lambda x: Color.RED
        """),
    "always in": ("assert 'abc' in f(2)", """
        class S:
            def __contains__(self, x): return True
        f = lambda x: S()
        """),
    "nan": ("assert not abs(f(2) - 4) > 1e-6", """
        f = lambda x: float('nan')
        """),
    "difference of its own": ("assert abs(f(3) / 7 - 1) < 1e-6", """
        class X:
            def __sub__(self, other): return 0
            def __truediv__(self, other): return self
        f = lambda x: X()
        """),
    "ends the loop of a test": ("assert all(map(f, [1, 2, 3]))", """
        class End(StopIteration): pass
        def f(x):
            raise End
        """),
    "isclose around what the library has": ("assert isclose(sqrt(4), 3)", """
        isclose = lambda *a: True
        """),
    "instance of everything": ("assert isinstance(f(), A)", """
        class M(type):
            def __instancecheck__(self, x): return True
        class A(metaclass=M): pass
        f = lambda: M
        """),
}
BAD_CODE = {
    "wrong": (SQUARE, """
        def sq(x):
            return 2 * x
        """),
    "nothing": (SQUARE, """
        pass
        """),
    "endless": (SQUARE, """
        def sq(x):
            return sq(x)
        """),
    "quits": (SQUARE, """
        def sq(x):
            quit()
        """),
    "always equal": (SQUARE, """
        class E(int):
            __eq__ = lambda *_: True
            __ne__ = lambda *_: False
            __hash__ = int.__hash__
        sq = E
        """),
    "always true": (SQUARE, """
        class E:
            __eq__ = lambda s, o: True
            __bool__ = lambda s: True
        def sq(x):
            return E()
        """),
    "no AssertionError": (SQUARE, """
        import builtins as b, sys
        b.AssertionError = type('Q', (Exception,), {})
        sys.excepthook = print
        sq = abs
        """),
    "exits early": (SQUARE, """
        import atexit, os
        atexit.register(os._exit, 0)
        print('PASS')
        import sys
        sys.exit(0)
        """),
    "writes PASS": (SQUARE, r"""
        import os
        for fd in range(1, 64):
            try:
                os.write(fd, b'PASS\n')
            except OSError:
                pass
        os._exit(0)
        """),
    "forges replies": (SQUARE, r"""
        import os
        for fd in range(3, 64):
            try: os.write(fd, b'["value", ["int", "0x9"]]\n' * 9)
            except OSError: pass
        sq = abs
        """),
    "reads the grader's objects": (SQUARE, """
        import gc, inspect
        def sq(x):
            for o in gc.get_objects():
                if isinstance(o, str) and 'assert sq' in o:
                    return eval(o.split('==')[1])
            return inspect.stack()[1].frame.f_locals.get('expected', -1)
        """),
    "reads all processes": (SQUARE, """
        from glob import glob
        from contextlib import suppress
        def sq(x):
            for p in glob('./*') + glob('/proc/[0-9]*/[ce][mn][dv]*'):
                with suppress(OSError):
                    s = open(p, errors='ignore').read()
                    if f'assert sq({x}) == ' in s:
                        return int(s.split(f'assert sq({x}) == ')[1].split()[0])
            return -1
        """),
    "forged repr": (SQUARE, """
        class P:
            __repr__ = lambda s: '9'
            __reduce__ = lambda s: (open, ('P', 'w'))
        sq = lambda x: P()
        """),
    "writes the grader's output": (SQUARE, r"""
        import os
        p = os.getppid()
        os.write(os.open(f'/proc/{p}/fd/1', 1), b'PASS\n')
        os.kill(p, 9)
        """),
    "stops itself": (SQUARE, """
        import os, signal
        os.kill(os.getpid(), signal.SIGSTOP)
        """),
    "dies": (SQUARE, """
        import os
        def sq(x):
            os._exit(0)
        """),
}
LIMITS = {
    "sleep": ("assert f() == 1", """
        import time
        def f():
            time.sleep(60)
            return 1
        """),
    "loop": ("assert f()", """
        def f():
            while True:
                pass
        """),
    "memory": ("assert f() == 1", """
        def f():
            b = bytearray(3 << 29)
            return 1
        """),
    "long reply": ("assert f()", """
        def f():
            return 'x' * 2**24
        """),
    "large file": ("assert f() == 67108864", """
        def f():
            return open('big', 'wb').write(bytes(2**26))
        """),
    "open files": ("assert f() == 200", """
        def f():
            return len([open('/dev/null') for _ in range(200)])
        """),
    "left over": ("assert f() == 1", """
        import os, sys, subprocess
        def f():
            child = 'import time; LEFT_OVER = time.sleep(60)'
            subprocess.Popen([sys.executable, '-c', child], start_new_session=True)
            os._exit(0)
        """),
}

def fenced(code):
    return f"First try:\n```python\nwrong\n```\nNow:\n```python\n{dedent(code)}\n```\nDone."

def rewards_of_programs(programs):
    """{name: (tests, code)} -> {name: reward}, all at once."""
    def judge(code, tests):
        return verify.code_reward(fenced(code), tests=[dedent(tests)])

    cases_of = [(code, tests) for tests, code in programs.values()]
    rewards, errors = verify.verify_batch(judge, cases_of)
    assert not errors
    return dict(zip(programs, rewards))

def left_over():
    lines = b""
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            lines += Path(path).read_bytes()
    return f"sys.path.append({str(HERE)!r})".encode() in lines or b"LEFT_OVER" in lines

@pytest.fixture(params=["namespaces", "plain"])
def sandbox(request, monkeypatch):
    prefix = verify.UNSHARE
    if request.param == "namespaces" and verify.sandbox() != prefix:
        pytest.skip("unshare does not work here")
    if request.param == "plain":
        prefix = verify.POWERLESS if os.geteuid() == 0 else []
    monkeypatch.setattr(verify, "sandbox", lambda: prefix)

@linux
def test_code_that_is_right_is_accepted():
    assert rewards_of_programs(GOOD_CODE) == dict.fromkeys(GOOD_CODE, 1.0)

@linux
def test_code_does_not_judge_itself():
    assert rewards_of_programs(REPLACED) == dict.fromkeys(REPLACED, 0.0)

@linux
def test_code_that_cheats_gets_nothing_and_leaves_nothing(sandbox, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert rewards_of_programs(BAD_CODE) == dict.fromkeys(BAD_CODE, 0.0)
    assert not left_over()
    assert not list(tmp_path.iterdir())

@linux
def test_code_is_judged_within_limits_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert rewards_of_programs(LIMITS) == dict.fromkeys(LIMITS, 0.0)
    assert not left_over()
    assert not list(tmp_path.iterdir())

WRITES = {
    "append": "open(victim, 'a').write('x')",
    "replace": "import os\nopen('own', 'w').write('x')\nos.replace('own', victim)",
    "remove": "import os\nos.remove(victim)",
    "rename": "import os\nos.rename(victim, 'own')",
    "truncate": "import os\nos.truncate(victim, 0)",
    "link": "import os\nos.link(victim, 'own')\nopen('own', 'a').write('x')",
    "symlink": "import os\nos.symlink(victim, 'own')\nopen('own', 'a').write('x')",
    "shell": "import subprocess\nsubprocess.run(f'echo >> {victim}', shell=True, check=True)",
    "new file": "open(victim + '2', 'w')",
    "new folder": "import os\nos.mkdir(victim + '2')",
}

@linux
@pytest.mark.parametrize("name", WRITES)
def test_code_writes_in_no_folder_but_its_own(sandbox, tmp_path, name):
    if verify.ctypes.CDLL(None).syscall(444, None, 0, 1) < 1:
        pytest.skip("this kernel has no Landlock")
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    code = f"victim = {str(victim)!r}\n{WRITES[name]}\nf = lambda: 1"
    assert verify.code_reward(fenced(code), tests=["assert f() == 1"]) == 0.0
    assert victim.read_text() == "as it was"
    assert [*tmp_path.iterdir()] == [victim]

@linux
def test_code_has_no_network_and_no_power_over_other_processes(sandbox):
    sleeper = subprocess.Popen(["sleep", "60"])
    interfaces = "import socket\nf = lambda: [name for _, name in socket.if_nameindex()]"
    kill = f"import os\nos.kill({sleeper.pid}, 9)\nf = lambda: 1"
    try:
        if verify.sandbox() == verify.UNSHARE:
            assert verify.code_reward(fenced(interfaces), tests=["assert f() == ['lo']"]) == 1.0
        assert verify.code_reward(fenced(kill), tests=["assert f() == 1"]) == 0.0
        assert sleeper.poll() is None
    finally:
        sleeper.kill()

SUMS = {  # name: verdict, program
    "adds": (1, """
        a, b = map(int, input().split())
        print(a + b)
        """),
    "guesses": (0, """
        print(3)
        """),
    "prints much": (0, """
        print('x' * 10**8)
        """),
    "reads all": (1, """
        import sys
        print(sum(map(int, sys.stdin.read().split())), end=' ')
        sys.exit(0)
        """),
    "in a thread": (1, """
        import threading
        threading.stack_size(1 << 26)
        def main():
            print(sum(map(int, input().split())))
        t = threading.Thread(target=main)
        t.start()
        t.join()
        """),
    "prints words": (0, """
        a, b = map(int, input().split())
        print('The sum is', a + b)
        """),
    "fails at the end": (0, """
        print(sum(map(int, input().split())))
        raise SystemExit(1)
        """),
    "reads files": (0, """
        from glob import glob
        for p in glob('*') + glob('../*'):
            try: print(open(p).read())
            except OSError: pass
        """),
    "names that sites give": (1, """
        print(sum(deque(map(int, input().split()))))
        """),
    "by the size of the file": (1, """
        import os
        print(sum(map(int, os.read(0, os.fstat(0).st_size).split())))
        """),
    "main": (1, """
        if __name__ == '__main__':
            print(sum(map(int, open(0).read().split())))
        """),
    "writes elsewhere": (0, """
        open('/tmp/elsewhere', 'w')
        print(sum(map(int, input().split())))
        """),
}

@linux
@pytest.mark.parametrize("name", SUMS)
def test_programs_by_their_output(name):
    verdict, code = SUMS[name]
    inputs = ["1 2\n", "10 -3\n"]
    assert verify.code_reward(fenced(code), inputs=inputs, outputs=["3\n", "7\n"]) == verdict

@linux
@pytest.mark.parametrize("printed, expected, verdict", [
    ("0.50", "0.5", 1),
    ("0.3333333", "0.333333333", 1),
    ("1", "1.0", 1),
    ("0.51", "0.5", 0),
    ("1.0", "1", 0),
    ("nan", "0.5", 0),
    ("3  ", "3", 1),
    (" 3", "3", 0),
    ("3 4", "3", 0),
])
def test_programs_may_print_a_float_differently(printed, expected, verdict):
    code = f"print({printed!r})"
    assert verify.code_reward(fenced(code), inputs=[""], outputs=[expected]) == verdict

@linux
def test_programs_read_lists_of_lines():
    code = "n = int(input())\nprint(sum(map(int, input().split())))"
    assert verify.code_reward(fenced(code), inputs=[["2", "3 4"]], outputs=[["7"]]) == 1.0

@linux
def test_programs_have_a_limit_for_each_case():
    """Four cases of a third of a second each are more than the limit of one."""
    code = "import time\nn = int(input())\ntime.sleep(0.35)\nprint(n)"
    task = {"inputs": [*"0123"], "outputs": [*"0123"], "tests": None, "prefix": [], "code": code}
    argv = [sys.executable, "-c", "import verify\nverify.TIME_LIMIT = 1\nverify.grade()"]
    done = subprocess.run(argv, input=json.dumps(task), capture_output=True, text=True, cwd=HERE,
                          timeout=60)
    assert done.stdout == "PASS\n"

CODE = "def sq(x):\n    return x * x"
FENCES = {  # name: verdict, response
    "no language": (1, f"```\n{CODE}\n```"),
    "title": (1, f"```python title='a.py'\n{CODE}\n```"),
    "attributes": (1, f"```{{.python .numbers}}\n{CODE}\n```"),
    "py3": (1, f"```py3\n{CODE}\n```"),
    "Python3": (1, f"```Python3\n{CODE}\n```"),
    "tildes": (1, f"~~~python\n{CODE}\n~~~"),
    "line ends of Windows": (1, f"```py\r\n{CODE}\r\n```"),
    "four backticks": (1, f"````python\n{CODE}\nx = '''\n```\n'''\n````"),
    "comment": (1, f"```python\n{CODE}\n    # use ``` carefully\n```"),
    "docstring": (1, f"```py\ndef g():\n    '''\n    ```\n    x\n    ```\n    '''\n{CODE}\n```"),
    "in a list": (1, "1. First\n\n   ```python\n   def sq(x):\n       return x * x\n   ```\n"),
    "after thinking": (1, f"<think>\n```python\nx\n```\n</think>\n```py\n{CODE}\n```"),
    "text behind": (1, f"```python\n{CODE}\n``` That is all."),
    "end of turn": (1, f"```python\n{CODE}\n```<|im_end|>"),
    "output behind": (1, f"```python\n{CODE}\n```\nOutput:\n```\n9\n```"),
    "shell behind": (1, f"```python\n{CODE}\n```\nRun:\n```bash\npython a.py\n```"),
    "use behind": (1, f"```python\n{CODE}\n```\nUse:\n```python\nx = sq(3)\nprint(x)\n```"),
    "another behind": (0, f"```py\n{CODE}\n```\n```py\ndef sq(x):\n    return 0\n```"),
    "no fence": (0, CODE),
    "nothing": (0, "\n"),
    "not closed": (0, f"```python\n{CODE}"),
    "other language": (0, f"```rust\n{CODE}\n```"),
    "empty": (0, "```python\n```"),
}

@linux
@pytest.mark.parametrize("name", FENCES)
def test_fence_the_last_block_of_python_is_the_code(name):
    verdict, response = FENCES[name]
    assert verify.code_reward(response, tests=["assert sq(3) == 9"]) == verdict

@linux
@pytest.mark.parametrize("tests", [[], ["10"], ["x = 3", "'assert'"], ["def ("]])
def test_code_needs_tests_that_can_fail(tests):
    """Accepted answers are no tests."""
    assert verify.code_reward(f"```\n{CODE}\n```", tests=tests) == 0.0

def test_batch_keeps_its_order_and_reports_rewards_that_raise_or_are_no_number():
    def reward(response):
        time.sleep(0.1 if response == "a" else 0)
        if response == "exit":
            sys.exit("bye")
        return {"nan": math.nan, "inf": -math.inf}.get(response, 1 / len(response))

    cases_of = [(response,) for response in ("a", "", "exit", "bb", "nan", "inf")]
    rewards, errors = verify.verify_batch(reward, cases_of)
    assert rewards[0] == 1.0
    assert rewards[3] == 0.5
    assert [math.isnan(reward) for reward in rewards] == [False, True, True, False, True, True]
    kinds = {i: type(error) for i, error in errors.items()}
    assert kinds == {1: ZeroDivisionError, 2: SystemExit, 4: ValueError, 5: ValueError}

def test_batch_stops_where_a_reward_hangs():
    def reward(response):
        time.sleep(3 if response == "hang" else 0)
        return 1.0

    with pytest.raises(TimeoutError, match="'hang'"):
        verify.verify_batch(reward, [("a",), ("hang",), ("b",)], patience=0.3)

def test_batch_of_math_is_safe_in_threads():
    answers = [(f"\\boxed{{{answer}}}", gold) for gold, answer in RIGHT + WRONG]
    verify.parse.cache_clear()
    alone = [verify.math_reward(*case) for case in answers]
    verify.parse.cache_clear()
    assert verify.verify_batch(verify.math_reward, answers)[0] == alone

def test_code_elsewhere_needs_a_reward_of_ones_own(folders, tmp_path, monkeypatch):
    verify.sandbox.cache_clear()
    monkeypatch.setattr(verify.sys, "platform", "darwin")
    with pytest.raises(RuntimeError, match="Linux only"):
        verify.code_reward(fenced("x"), tests=["x"])
    rows = [{"text": f"Add {i}.", "test_list": ["assert add(1)"]} for i in range(40)]
    data = write_lines(tmp_path / "mbpp.jsonl", rows)
    flags = (f"--model {folders / 'qwen'} --dataset {data} --steps 1 --eval_prompts 0 "
             "--max_prompt_tokens 200 --max_new_tokens 40 --prompts_per_step 4")
    assert "Linux only" in message_of(flags, "--output_dir", tmp_path / "refused")
    own = f"--reward {folders / 'own.py'}:one"
    assert len(go(tmp_path / "run", flags, own)) == 1

# --------------------------------------------------------------------------------- the whole thing

SHORT = ("--steps 4 --prompts_per_step 4 --group_size 4 --num_prompts 40 "
         "--eval_prompts 8 --eval_samples 4")
PROGRAM_BY_TWO = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
    str(HERE / "rlvr.py"),
]
# Of each process, since they share the cores; and without a GPU.
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

@pytest.fixture(scope="session")
def short(folders):
    """Flags of a run of seconds. The hasty demo solves no problem: the reward is one that it can
    get."""
    return f"--model {folders / 'demo'} --reward {folders / 'own.py'}:odd {SHORT}"

# A program that can write only small files from the checkpoint of step 2 on.
FULL_DISK = """
import resource, sys, rlvr

save_policy = rlvr.save_policy

def save_on_a_full_disk(policy, folder, **state):
    if folder.name == "checkpoint-000002":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    save_policy(policy, folder, **state)

rlvr.save_policy = save_on_a_full_disk
rlvr.main(sys.argv[1:])
"""

# A reward that ends the second process, once, in the middle of training.
DEADLY_REWARD = """
import os, pathlib

calls = []
mark = pathlib.Path(__file__).with_name("died")

def odd(response, answer):
    calls.append(response)
    if os.getenv("RANK") == "1" and len(calls) > 25 and not mark.exists():
        mark.write_text("")
        os._exit(3)
    return len(response) % 2
"""

FORKSERVER = multiprocessing.get_context("forkserver")

def killed_after(seconds, argv):
    """Run in a child process and kill it after so many seconds -> its exit code, None if it was
    still running."""
    child = FORKSERVER.Process(target=rlvr.main, args=(argv,))
    child.start()
    child.join(seconds)
    code = child.exitcode
    child.kill()
    child.join()
    return code

def killed_again_and_again(flags, root, times=4):
    """Runs that are killed at random moments until they end, and one that is not, in the folder
    calm -> the exit codes of all that ended, by their folders."""
    enough = 100  # seconds
    FORKSERVER.set_forkserver_preload(["rlvr"])  # then a child starts at once, and has no threads
    killed_after(enough, ["--report", "nothing"])  # starts the server

    began = time.perf_counter()
    codes = {"calm": killed_after(enough, [*flags, "--output_dir", str(root / "calm")])}
    duration = time.perf_counter() - began

    rand = random.Random(0)
    kills = 0
    name = "killed"
    while kills < times or name not in codes:
        folder = root / name
        argv = [*flags, "--output_dir", str(folder)]  # which goes on by itself
        if kills % 2 and (folder / "config.json").exists():
            argv = ["--resume", str(folder)]
        seconds = enough
        if kills < times:
            seconds = rand.uniform(0.05, 0.5) * duration

        code = killed_after(seconds, argv)
        if code is None:
            kills += 1
        else:
            codes[name] = code
            if kills < times:
                name = f"killed{kills}"
    return codes

@pytest.fixture(scope="session")
def programs(short, tmp_path_factory):
    """Runs of the program itself, one after another -> {name: (folder, future of its end)}."""
    root = tmp_path_factory.mktemp("programs")
    (root / "deadly.py").write_text(DEADLY_REWARD)
    one = [sys.executable, str(HERE / "rlvr.py")]
    full_disk = [sys.executable, "-c", FULL_DISK]
    commands = {
        "one": [*one, *command(short)],
        "two": [*PROGRAM_BY_TWO, *command(short)],
        "dies": [*PROGRAM_BY_TWO, *command(short, f"--save_every 1 --reward {root}/deadly.py:odd")],
        "full disk": [*full_disk, *command(short, "--save_every 1")],
    }
    queue = ThreadPoolExecutor(1)
    started = {}
    for name, argv in commands.items():
        out = root / name.replace(" ", "_")
        future = queue.submit(
            subprocess.run, [*argv, "--output_dir", str(out)], capture_output=True, text=True,
            cwd=HERE, env=ONE_THREAD, timeout=300)
        started[name] = out, future
    flags = command(short, "--steps 6 --save_every 2 --reuse 2")
    started["killed"] = root, queue.submit(killed_again_and_again, flags, root)
    yield started
    queue.shutdown(cancel_futures=True)  # of those that no test has asked for

@pytest.fixture(scope="session", autouse=True)
def early(request):
    """Programs are slow to start: if all tests run, they begin at once, on another core."""
    if len(request.session.items) > 500:
        request.getfixturevalue("programs")

@pytest.fixture(scope="session")
def run(programs):
    """A short run from the command line, that nobody disturbed: its folder, what it printed."""
    out, future = programs["one"]
    done = future.result()
    assert done.returncode == 0, done.stderr
    screen = done.stdout + done.stderr
    return SimpleNamespace(out=out, stdout=done.stdout, screen=screen)

def steps_of(folder):
    """The steps in a run's log."""
    return [record["step"] for record in read_log(folder)]

def assert_same_run(a, b):
    """Two folders of runs agree to the last bit, and nothing half-written stays in the first."""
    assert read_log(a) == read_log(b)
    assert read_log(a, "samples.jsonl") == read_log(b, "samples.jsonl")
    assert torch.equal(weights(a / "final"), weights(b / "final"))
    assert not list(a.glob(".*"))

# ------------------------------------------------------------------------------------------ the log

@pytest.fixture
def logged():
    """The line of the log of three groups of two responses: one right and one wrong; both right;
    one cut off and one without a verdict."""
    mask = mask_of([2, 1, 2, 1, 2, 1])
    rewards = torch.tensor([
        [1.0, 0.0],
        [1.0, 1.0],
        [0.0, math.nan],
    ])
    finished = [True, True, True, True, False, True]
    rollouts = SimpleNamespace(mask=mask, finished=finished)
    tokens = tokens_of(torch.zeros(6, 2), [1.0, -1.0, 0, 0, 0, 0], mask)
    tokens.old_entropy = 0.5 * mask
    sums = dict(
        loss=0.8, grad_norm=3.0, ratio_gap=0.0, count=36, dH_pos=0.1, dH_neg=-0.2,
        count_pos=8, count_neg=4, clip_pos=2, clip_neg=3)
    state = {"step": 7, "lambda": 0.3, "bonus": 0.0}
    c = rlvr.Config(reuse=4, updates_per_batch=2)
    return rlvr.step_metrics(c, state, rollouts, rewards, tokens, sums)

def test_the_log_says_how_the_groups_did(logged):
    assert logged["reward"] == pytest.approx(3 / 5)
    assert logged["zero_adv"] == pytest.approx(1 / 3)
    assert logged["ungraded"] == 1

def test_the_log_says_what_the_responses_are_like(logged):
    """Means over tokens, without padding."""
    assert logged["tokens"] == 9
    assert logged["length"] == 1.5
    assert logged["entropy"] == 0.5
    assert logged["truncated"] == pytest.approx(1 / 6)

def test_the_log_says_what_the_updates_did(logged):
    """Four passes of two updates, 9 tokens in each pass."""
    assert logged["loss"] == pytest.approx(0.8 / 8)
    assert logged["grad_norm"] == 3.0
    assert logged["lambda"] == 0.3
    assert logged["clip_pos"] == pytest.approx(2 / 8)
    assert logged["clip_neg"] == pytest.approx(3 / 4)

# -------------------------------------------------------------------------------- what a run leaves

def test_the_log_has_the_columns_of_the_readme(run):
    readme = (HERE / "README.md").read_text()
    glossary = re.search(r"\| in `metrics.jsonl`.*?\n\n", readme, re.S)[0]
    explained = set(re.findall(r"`(\w+)`", glossary))
    assert len(explained) > 20
    for record in read_lines(run.out / "metrics.jsonl"):
        assert set(record) == explained

def test_each_step_has_a_line_of_the_log_and_samples(run):
    assert steps_of(run.out) == [0, 1, 2, 3]

    samples = read_log(run.out, "samples.jsonl")
    assert {sample["step"] for sample in samples} == {0, 1, 2, 3}
    assert {"prompt", "response", "reward", "advantage", "finish_reason",
            "entropy", "tokens"} <= set(samples[0])

def test_a_sample_has_the_reward_and_the_advantage_of_its_response(run):
    """The reward is 1 for an odd number of letters; 0 for what was cut off."""
    for sample in read_log(run.out, "samples.jsonl"):
        is_odd = len(sample["response"]) % 2
        expected = is_odd if sample["finish_reason"] == "stop" else 0
        assert sample["reward"] == expected
        if sample["advantage"] != 0:
            assert (sample["advantage"] > 0) == (sample["reward"] == 1)

def test_sampler_and_trainer_agree_all_the_way(run):
    for record in read_log(run.out):
        assert record["logp_gap"] < 1e-3
        assert record["ratio_gap"] < 1e-3

def test_lambda_rises_while_the_entropy_is_above_its_target(run):
    """And a line of the log has the lambda that its step used."""
    path = [record["lambda"] for record in read_log(run.out)]
    assert path == pytest.approx([0, 0.1, 0.2, 0.3])

def test_the_summary_evaluates_before_and_after(run):
    summary = json.loads((run.out / "summary.json").read_text())
    assert {"before", "after", "seconds", "steps", "command", "versions"} <= set(summary)
    for when in ("before", "after"):
        assert {"avg@4", "pass@4", "ece"} <= set(summary[when])

def test_config_and_policy_are_saved(run, folders):
    saved = json.loads((run.out / "config.json").read_text())
    assert saved["prompts_per_step"] == 4
    assert not torch.equal(weights(run.out / "final"), weights(folders / "demo"))
    assert not (run.out / "final" / "trainer.pt").exists()  # which only a checkpoint has

def test_the_last_line_of_a_run_is_its_speed(run):
    speed = json.loads(run.stdout.splitlines()[-1])
    summary = json.loads((run.out / "summary.json").read_text())
    assert speed == summary["speed"]
    assert speed["seconds_step"] > 0

def test_a_run_prints_its_results_and_nothing_alarming(run):
    assert "held-out prompts" in run.screen
    assert "Warning" not in run.screen
    assert "Traceback" not in run.screen

# -------------------------------------------------------------------------------- stop and continue

@pytest.fixture(scope="session")
def stopped_once(short, tmp_path_factory):
    """A short run that a signal has stopped after its step 1 -> its folder, a copy, the message."""
    def signal_in_step_1(c, record, start):
        if record["step"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    root = tmp_path_factory.mktemp("stopped")
    out = root / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rlvr, "warn_if_useless", signal_in_step_1)
        message = message_of("--output_dir", out, short)
    shutil.copytree(out, root / "copy")
    return out, root / "copy", message

@pytest.fixture
def stopped(stopped_once):
    """The folder of that run, as it was then, and the message."""
    out, copy_of_it, message = stopped_once
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(copy_of_it, out)
    return out, message

def test_a_signal_stops_after_the_step_and_says_how_to_continue(stopped):
    out, message = stopped
    assert_words(message, "stopped after step 1", f"--resume {out}")
    assert steps_of(out) == [0, 1]

@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_signals_of_batch_systems_stop_after_the_step(short, tmp_path, monkeypatch, name):
    def stop_at_1(c, record, start):
        if record["step"] == 1:
            os.kill(os.getpid(), getattr(signal, name))

    monkeypatch.setattr(rlvr, "warn_if_useless", stop_at_1)
    message = message_of("--output_dir", tmp_path / "run", short)
    assert "stopped after step 1" in message

@linux
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_second_signal_stops_at_once(name):
    signals = rlvr.StopSignals()
    number = getattr(signal, name)
    os.kill(os.getpid(), number)
    assert signals.seen == {number}
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)

def test_a_resumed_run_is_the_one_that_nobody_stopped(stopped, run):
    out, _ = stopped
    with open(out / "metrics.jsonl", "a") as file:  # what a crash may leave
        file.write('{"step": 2, "reward": 9}\n{"step": 3, "half a li')
    rlvr.main(["--resume", str(out)])
    assert_same_run(out, run.out)

def test_a_run_that_was_moved_goes_on(stopped, run, tmp_path):
    """And one whose folder is named in another way."""
    out, _ = stopped
    out.rename(tmp_path / "moved")
    assert stop_of(rlvr.main, ["--resume", f"{tmp_path}/./moved/"]) is None
    assert_same_run(tmp_path / "moved", run.out)

def test_a_run_goes_on_with_its_own_config_only(stopped, short):
    out, _ = stopped
    assert "another --lr" in message_of("--output_dir", out, short, "--lr 0.5")
    assert "another --lr" in message_of("--resume", out, "--lr 0.5")
    assert "done 2" in message_of("--resume", out, "--steps 1")
    assert "the folder around" in message_of("--resume", out / "checkpoint-000002")

def test_a_run_whose_lambda_follows_the_steps_keeps_their_number(short, tmp_path):
    flags = f"{short} --preset pos_adv_stage --steps 1 --eval_prompts 0"
    go(tmp_path / "run", flags)
    assert "another --steps" in message_of("--resume", tmp_path / "run", "--steps 2")

def test_a_longer_run_deletes_only_its_own_old_checkpoints(stopped):
    out, _ = stopped
    (out / "checkpoint-best").mkdir()
    (out / "checkpoint-000002-keep").mkdir()
    rlvr.main(command("--resume", out, "--steps 5"))
    left = {path.name for path in out.glob("checkpoint-*")}
    assert left == {"checkpoint-best", "checkpoint-000002-keep", "checkpoint-000005"}
    assert steps_of(out) == [0, 1, 2, 3, 4]

def test_an_old_checkpoint_that_cannot_be_removed_ends_no_run(short, tmp_path, monkeypatch):
    rmtree = shutil.rmtree

    def stubborn(path, *args, **kwargs):
        if Path(path).name == "checkpoint-000001" and not kwargs:
            raise OSError("busy")
        rmtree(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", stubborn)
    with pytest.warns(UserWarning, match="busy"):
        log = go(tmp_path / "run", short, "--save_every 1 --steps 2 --eval_prompts 0")
    assert len(log) == 2

def test_interrupted_before_the_first_step_the_same_command_begins_again(
        run, short, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(rlvr, "evaluate", Mock(side_effect=KeyboardInterrupt))
        assert "interrupted" in message_of("--output_dir", out, short)
    assert go(out, short) == read_log(run.out)

def times_of(folder):
    """When each file was changed."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*")}

def test_the_same_command_again_leaves_a_finished_run_alone(run, short, capsys):
    before = times_of(run.out)
    go(run.out, short)
    assert "this run is finished" in capsys.readouterr().out
    assert times_of(run.out) == before

def test_killed_at_any_moment_the_run_ends_the_same(programs):
    """Four times SIGKILL at a random moment, and it goes on, against one that nobody killed."""
    root, future = programs["killed"]
    codes = future.result()
    assert set(codes.values()) == {0}
    assert len(codes) > 1
    for folder in codes:
        assert_same_run(root / folder, root / "calm")

@linux
def test_a_full_disk_keeps_the_last_checkpoint(programs):
    """The limit on the size of a file stands in for the disk."""
    out, future = programs["full disk"]
    done = future.result()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "checkpoint-000002 cannot be written" in done.stderr.splitlines()[-1]
    assert [path.name for path in out.glob("*checkpoint*")] == ["checkpoint-000001"]

    rlvr.main(["--resume", str(out)])
    assert steps_of(out) == [0, 1, 2, 3]

# -------------------------------------------------------------------------------- several processes

def test_two_processes_make_the_same_run(run, programs):
    """Up to rounding: they sum the gradients in another order."""
    out, future = programs["two"]
    done = future.result()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out prompts") == 1  # one process speaks

    for one, two in zip(read_log(run.out), read_log(out), strict=True):
        for name in one:
            assert two[name] == pytest.approx(one[name], abs=1e-5)

    samples_of_one = read_log(run.out, "samples.jsonl")
    samples_of_two = read_log(out, "samples.jsonl")
    for one, two in zip(samples_of_one, samples_of_two, strict=True):
        assert two["response"] == one["response"]
        assert two["reward"] == one["reward"]

    trained_by_one = weights(run.out / "final")
    trained_by_two = weights(out / "final")
    assert torch.allclose(trained_by_two, trained_by_one, atol=1e-5)

def test_a_process_that_dies_ends_them_all(programs):
    out, future = programs["dies"]
    done = future.result()
    assert (out.parent / "died").exists()
    assert done.returncode != 0
    assert 0 < len(read_log(out)) < 4

    rlvr.main(["--resume", str(out)])
    assert steps_of(out) == [0, 1, 2, 3]

# ----------------------------------------------------------------------------- other people's files

@pytest.mark.parametrize("name", ["qwen", "."])
def test_a_folder_with_other_files_is_refused(folders, short, name):
    before = weights(folders / "qwen")
    assert "holds other files" in message_of("--output_dir", folders / name, short)
    assert torch.equal(weights(folders / "qwen"), before)

GIT_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9"

def damage(file, rand):
    """Cut a file off, replace what is in it, or delete it."""
    content = file.read_bytes()
    cut_off = content[:rand.randrange(len(content) or 1)]
    other = rand.choice([None, cut_off, GIT_LFS_POINTER, b"", b"[1]"])
    if other is None:
        file.unlink()
    else:
        file.write_bytes(other)

def test_a_damaged_model_ends_in_one_line(folders, tmp_path):
    rand = random.Random(0)
    refused = 0
    for number in range(20):
        model = tmp_path / str(number)
        shutil.copytree(folders / "qwen", model)
        files = [path for path in sorted(model.iterdir()) if path.is_file()]
        damage(rand.choice(files), rand)
        message = stop_of(loaded, model)
        if message:
            assert str(model) in message
            refused += 1
    assert 5 < refused < 20

def test_a_damaged_run_ends_in_one_line(stopped, tmp_path):
    """Or it goes on, if it can do without that file."""
    out, _ = stopped
    whole = tmp_path / "whole"
    out.rename(whole)
    rand = random.Random(0)
    refused = 0
    for _ in range(20):
        shutil.copytree(whole, out)
        files = [*out.glob("*.json"), *out.glob("checkpoint-*/*")]
        damage(rand.choice(sorted(files)), rand)
        message = stop_of(rlvr.main, command("--resume", out, "--steps 2"))
        if message:
            assert str(out) in message
            refused += 1
        shutil.rmtree(out)
    assert 5 < refused < 20

@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_damaged_log_is_named(stopped, name):
    out, _ = stopped
    (out / name).write_bytes(GIT_LFS_POINTER)
    assert f"{name}: damaged" in message_of("--resume", out)

def test_a_damaged_file_of_a_run_is_named(stopped):
    out, _ = stopped
    checkpoint = out / "checkpoint-000002" / "trainer.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:999])
    assert "checkpoint-000002: damaged" in message_of("--resume", out)
    (out / "config.json").write_text("{")
    assert "config.json: damaged" in message_of("--resume", out)

# ------------------------------------------------------------------------------- what a run teaches

def test_the_learning_rate_warms_up_and_is_the_one_that_is_used(short, folders, tmp_path):
    """Adam's first step moves each weight by the learning rate."""
    out = tmp_path / "run"
    log = go(out, short, "--steps 1 --reuse 1 --updates_per_batch 1 --lr 1e-2 --warmup_steps 100")
    assert log[0]["lr"] == pytest.approx(1e-4)
    moved = weights(out / "final") - weights(folders / "demo")
    assert moved.abs().max().item() == pytest.approx(1e-4, rel=0.01)

def test_equal_rewards_teach_nothing(folders, tmp_path):
    out = tmp_path / "run"
    go(out, SHORT, f"--model {folders / 'demo'} --preset grpo",
       f"--reward {folders / 'own.py'}:same --eval_prompts 0 --steps 2")
    assert torch.equal(weights(out / "final"), weights(folders / "demo"))

def test_an_entropy_bonus_raises_the_entropy_without_any_reward(folders, tmp_path):
    log = go(tmp_path / "run", SHORT, f"--model {folders / 'demo'} --preset grpo --eval_prompts 0",
             f"--reward {folders / 'own.py'}:same --lr 1e-3 --reuse 4",
             "--entropy_bonus 0.5 --bonus_delta 0")
    for record in log:
        assert record["zero_adv"] == 1
    assert log[-1]["entropy"] > log[0]["entropy"]

def test_kl_penalty_holds_the_policy(folders, short, tmp_path):
    """With all tokens penalised, and heavily, it stays closer to the policy that sampled."""
    flags = "--preset grpo --eps_high inf --eps_low inf --reuse 8 --lr 3e-3 --eval_prompts 0"
    go(tmp_path / "free", short, flags)
    go(tmp_path / "held", short, flags, "--cov_share 1 --cov_penalty 100")
    before = weights(folders / "demo")
    moved_free = (weights(tmp_path / "free" / "final") - before).norm()
    moved_held = (weights(tmp_path / "held" / "final") - before).norm()
    assert 0 < moved_held < 0.5 * moved_free

@pytest.mark.parametrize("name, flags", [
    ("gpt2", ""),
    ("llama", "--advantage mean --reuse 2"),
])
def test_a_hugging_face_model_learns_short_responses(folders, tmp_path, name, flags):
    """On data and by a reward of the user's own. Before the first update of a batch the ratio is 1:
    GPT-2's dropout is off."""
    rows = [dict(prompt=f"p{i}", answer=str(i)) for i in range(40)]
    data = write_lines(tmp_path / "data.jsonl", rows)
    log = go(
        tmp_path / "run", flags,
        f"--model {folders / name} --dataset {data} --reward {folders / 'own.py'}:few",
        "--max_prompt_tokens 100 --max_new_tokens 12 --prompts_per_step 8 --steps 12 --seed 5",
        "--preset grpo --lr 1e-2 --warmup_steps 1 --eval_prompts 2 --eval_samples 2")
    for record in log:
        assert record["logp_gap"] < 1e-3
        assert record["ratio_gap"] < 1e-3
    assert log[0]["truncated"] > 0
    assert log[-1]["reward"] > log[0]["reward"] + 0.1
    tf.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")

# ----------------------------------------------------------------------------------- edges of a run

@pytest.fixture
def still(folders):
    """Flags of a run on one prompt, by a policy that does not change."""
    return (f"--model {folders / 'demo'} --reward {folders / 'own.py'}:odd --lr 1e-15 --steps 2 "
            "--num_prompts 1 --prompts_per_step 1 --updates_per_batch 1 --eval_prompts 0")

def responses_of(out, *flags):
    """Run -> the responses of each step, two lists."""
    go(out, *flags)
    steps = [[], []]
    for sample in read_log(out, "samples.jsonl"):
        steps[sample["step"]].append(sample["response"])
    return steps

def test_every_step_and_every_seed_draws_other_responses(still, tmp_path):
    first, second = responses_of(tmp_path / "0", still, "--seed 0")
    other, _ = responses_of(tmp_path / "1", still, "--seed 1")
    assert first != second
    assert first != other

def test_a_run_in_a_thread(short, tmp_path):
    flags = (short, "--steps 1 --eval_prompts 0")
    thread = threading.Thread(target=go, args=(tmp_path / "run", *flags))
    thread.start()
    thread.join()
    assert len(read_log(tmp_path / "run")) == 1

def test_the_demo_takes_one_thread_and_other_models_all(folders, monkeypatch):
    chosen = Mock()
    monkeypatch.setattr(torch, "set_num_threads", chosen)
    monkeypatch.setattr(rlvr, "train", Mock())
    rlvr.main(["--model", str(folders / "llama")])
    chosen.assert_not_called()
    rlvr.main(["--model", str(folders / "demo")])
    chosen.assert_called_once_with(1)

def test_few_prompts_come_back_within_a_step_with_other_responses(folders, tmp_path):
    out = tmp_path / "run"
    go(out, f"--model {folders / 'demo'} --reward {folders / 'own.py'}:odd --num_prompts 3",
       "--prompts_per_step 8 --group_size 4 --steps 1 --eval_prompts 0 --log_samples 32")
    samples = read_log(out, "samples.jsonl")
    assert len({sample["prompt"] for sample in samples}) == 3
    assert len({sample["response"] for sample in samples}) > 20

@pytest.fixture
def long_prompt(folders, tmp_path):
    """Flags of a run whose only prompt has 251 tokens: it fills the context of 256 but for 5."""
    row = {"question": "x " * 89, "answer": "2"}
    policy = loaded(folders / "qwen")
    c = config(folders / "qwen", "--max_prompt_tokens 248")
    with pytest.raises(ValueError, match="longer"):
        rlvr.make_problem(row, ("question", "answer"), policy, c)
    data = write_lines(tmp_path / "one.jsonl", [row])
    return (f"--model {folders / 'qwen'} --dataset {data} --steps 2 --max_new_tokens 4 "
            "--eval_prompts 1 --prompts_per_step 4")

def test_empty_responses_to_a_prompt_that_fills_the_context(long_prompt, tmp_path):
    """Every token ends a response."""
    stop_at_all = command("--stop_tokens", *range(VOCABULARY))
    log = go(tmp_path / "run", long_prompt, "--max_prompt_tokens 251", *stop_at_all)
    for record in log:
        assert record["length"] == 1
        assert record["reward"] == 0
        assert record["zero_adv"] == 1
        assert record["loss"] == 0

def test_a_prompt_one_token_too_long_is_no_prompt(long_prompt, tmp_path):
    message = message_of(long_prompt, "--max_prompt_tokens 250 --output_dir", tmp_path / "run")
    assert "too few usable prompts" in message

# ----------------------------------------------------------------------------- runs that went wrong

@pytest.fixture
def when_loaded(monkeypatch):
    """-> a function that replaces one of rlvr's when a policy has been loaded, and so checked."""
    load_policy = rlvr.load_policy

    def when_loaded(name, replacement):
        def load_and_replace(*args):
            policy = load_policy(*args)
            monkeypatch.setattr(rlvr, name, replacement)
            return policy

        monkeypatch.setattr(rlvr, "load_policy", load_and_replace)
    return when_loaded

SAMPLE = rlvr.sample
SCORE = rlvr.score

def hot_sample(policy, prompts, u, c):
    return SAMPLE(policy, prompts, u, replace(c, temperature=3.0))

def other_score_with_gradient(*args):
    off = 0.5 * torch.is_grad_enabled()
    return [values + off for values in SCORE(*args)]

def test_a_sampler_that_is_not_the_trainer_stops_the_run(short, tmp_path, when_loaded):
    when_loaded("sample", hot_sample)
    message = message_of("--output_dir", tmp_path / "run", short)
    assert "sampler and trainer disagree" in message

def test_scoring_that_is_random_while_training_stops_the_run(short, tmp_path, when_loaded):
    when_loaded("score", other_score_with_gradient)
    message = message_of("--output_dir", tmp_path / "run", short)
    assert "the ratio was off 1" in message

def test_a_sampler_that_is_not_the_model_stops_before_the_run(folders, monkeypatch):
    monkeypatch.setattr(rlvr, "sample", hot_sample)
    message = stop_of(loaded, folders / "qwen")
    assert "off its own distribution" in message

def test_a_loss_that_is_nan_stops_the_run_before_it_spoils_the_weights(
        short, tmp_path, monkeypatch):
    """At the first update of step 1: there are 2 mini-batches x 4 passes a step."""
    policy_loss = rlvr.policy_loss
    calls = itertools.count(1)

    def nan_at_the_ninth(*args):
        loss = policy_loss(*args)
        return loss * math.nan if next(calls) == 9 else loss

    monkeypatch.setattr(rlvr, "policy_loss", nan_at_the_ninth)
    out = tmp_path / "run"
    message = message_of("--output_dir", out, short)
    assert "step 1: loss or gradient not finite" in message
    assert torch.isfinite(weights(out / "last_good")).all()
    assert len(read_log(out)) == 1

def test_out_of_memory_is_one_line_that_says_what_helps(short, tmp_path, monkeypatch):
    monkeypatch.setattr(rlvr, "score", Mock(side_effect=torch.OutOfMemoryError("CUDA")))
    monkeypatch.setattr(rlvr, "check_policy", Mock())
    message = message_of("--output_dir", tmp_path / "run", short)
    assert_words(message, "out of memory", "--micro_batch_tokens", "--sample_rows")

def test_entropy_is_compared_with_that_of_the_first_batch(short, tmp_path, monkeypatch):
    starts = []

    def note_start(c, record, start):
        starts.append(start)

    monkeypatch.setattr(rlvr, "warn_if_useless", note_start)
    log = go(tmp_path / "run", short, "--steps 2 --eval_prompts 0")
    first = log[0]["entropy"]
    assert log[1]["entropy"] != first
    assert starts == [first, first]

@pytest.mark.parametrize("change, advice", [
    (dict(zero_adv=0.8), "--group_size"),
    (dict(entropy=0.02), "collapsed"),
    (dict(truncated=0.3), "--max_new_tokens"),
    (dict(clip_pos=0.0, clip_neg=0.0), "--reuse"),
    # Warm-up moves little, so nothing is clipped yet.
    (dict(clip_pos=0.0, clip_neg=0.0, step=1), None),
    ({}, None),
])
def test_warnings_of_a_useless_run(change, advice):
    """`change` is what differs from the log of a run that goes well."""
    fine = dict(
        step=9, zero_adv=0.2, entropy=0.3, clip_pos=0.01, clip_neg=0.02, truncated=0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rlvr.warn_if_useless(rlvr.parse_config([]), fine | change, 0.3)
    if advice:
        assert len(caught) == 1
        assert advice in str(caught[0].message)
    else:
        assert not caught

def test_without_a_baseline_groups_with_equal_rewards_teach():
    c = rlvr.parse_config(["--preset", "nsr"])
    record = dict(step=0, zero_adv=0.9, entropy=0.3, truncated=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rlvr.warn_if_useless(c, record, 0.3)

# --------------------------------------------------------------------------------------------- show

def test_show_prints_the_rollouts_of_all_steps(run, capsys):
    rlvr.main(["--show", str(run.out)])
    text = capsys.readouterr().out
    samples = read_log(run.out, "samples.jsonl")
    of_step_3 = [sample for sample in samples if sample["step"] == 3]
    assert text.count("step 3\n") == len(of_step_3)
    for sample in samples:
        assert sample["prompt"] + "".join(sample["tokens"]) in text
    assert f"extracted {samples[0]['extracted']!r}" in text

def test_show_where_the_terminal_has_no_utf8(tmp_path, run, monkeypatch):
    samples = read_log(run.out, "samples.jsonl")
    samples[-1]["tokens"][0] = "é"
    write_lines(tmp_path / "samples.jsonl", samples)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    rlvr.main(["--show", str(tmp_path)])
    terminal.flush()
    assert b"?" in terminal.buffer.getvalue()

def test_show_passes_on_no_control_characters(run, tmp_path, capsys):
    samples = read_log(run.out, "samples.jsonl")
    samples[-1]["tokens"][0] = "\033[2J"  # what would clear the screen
    write_lines(tmp_path / "samples.jsonl", samples)
    rlvr.main(["--show", str(tmp_path)])
    assert "\033" not in capsys.readouterr().out

def test_show_leaves_out_a_line_that_is_being_written(run, tmp_path, capsys):
    samples = (run.out / "samples.jsonl").read_text()
    (tmp_path / "samples.jsonl").write_text(samples + '{"step": 4, "half')
    rlvr.main(["--show", str(tmp_path)])
    assert "step 3\n" in capsys.readouterr().out

# ------------------------------------------------------------------------------------------- report

EVALUATED = ["avg@32", "pass@8", "pass@32", "entropy", "distinct", "ece", "length", "truncated",
             "ungraded"]

def fake_run(folder, flags, **after):
    """The files of a finished run: its held-out values are 0.5 but for these after training, its
    entropy is on target but for the first six of nine steps."""
    c = rlvr.parse_config(command(flags))
    before = dict.fromkeys(EVALUATED, 0.5)
    summary = {"before": before, "after": before | after, "steps": c.steps}
    log = []
    for step in range(9):
        log.append({
            "step": step, "reward": 0.1, "lambda": 1.0,
            "entropy": c.target_entropy + (0.1 if step < 6 else 0.0),
            "dH_pos": -0.1 * step, "dH_neg": 0.0,
        })
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(c)))
    (folder / "summary.json").write_text(json.dumps(summary))
    write_lines(folder / "metrics.jsonl", log)

def reported(pattern, capsys):
    """What --report prints -> {run: {column: cell}}, in the order of the rows, and the rest."""
    rlvr.main(["--report", str(pattern)])
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    columns = lines[0].split()
    ends = [lines[0].index(column) + len(column) for column in columns]  # cells end below these
    rows = {}
    for line in lines[1:]:
        cells = [line[start:end].strip() for start, end in itertools.pairwise(ends)]
        name, _, first = line[:ends[0]].rpartition(" ")
        rows[name.strip()] = dict(zip(columns, [first, *cells]))
    return rows, shown.err

@pytest.fixture
def finished_runs(tmp_path):
    """Two configurations with two seeds each, and one with one seed that has another knob."""
    for flags, accuracy, entropy in [
        ("grpo --seed 0", 0.4, 0.1),
        ("grpo --seed 1", 0.5, 0.11),
        ("pos_adv_entropy --seed 0", 0.44, 0.2),
        ("pos_adv_entropy --seed 1", 0.6, 0.21),
        ("grpo --num_prompts 16", 0.3, 0.05),
    ]:
        values = {"avg@32": accuracy, "entropy": entropy, "ece": -entropy}
        fake_run(tmp_path / flags, f"--preset {flags}", **values)
    return tmp_path / "*"

def test_report_orders_runs_by_entropy(finished_runs, capsys):
    rows, _ = reported(finished_runs, capsys)
    seeds = [(name, row["seeds"]) for name, row in rows.items()]
    assert seeds == [
        ("before training", "2"),
        ("pos_adv_entropy", "2"),
        ("grpo", "2"),
        ("grpo-num_prompts=16", "1"),
    ]

@pytest.mark.parametrize("name, column, cell", [
    ("grpo", "avg@32", "0.450 ± 0.071"),
    ("pos_adv_entropy", "avg@32", "0.520 ± 0.113"),
    ("grpo-num_prompts=16", "avg@32", "0.300"),
    ("pos_adv_entropy", "off_target", "0.000 ± 0.000"),
    ("grpo", "off_target", ""),
])
def test_report_says_mean_and_deviation(finished_runs, capsys, name, column, cell):
    rows, _ = reported(finished_runs, capsys)
    assert rows[name][column] == cell

def test_report_leaves_out_a_run_with_a_damaged_log_and_says_so(finished_runs, tmp_path, capsys):
    fake_run(tmp_path / "damaged", "--preset clip_higher")
    (tmp_path / "damaged" / "metrics.jsonl").write_text("no json\n")
    rows, warned = reported(finished_runs, capsys)
    assert "grpo" in rows
    assert "clip_higher" not in rows
    assert "damaged" in warned

def test_report_leaves_out_unfinished_runs_and_says_so(finished_runs, tmp_path, capsys):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.json").write_text("{}")
    rows, warned = reported(finished_runs, capsys)
    assert "unfinished" not in rows
    assert "unfinished" in warned

def test_report_leaves_out_a_run_that_goes_on_to_more_steps(finished_runs, tmp_path, capsys):
    fake_run(tmp_path / "longer", "--preset clip_higher --steps 999")
    file = tmp_path / "longer" / "summary.json"
    summary = json.loads(file.read_text())
    file.write_text(json.dumps(summary | {"steps": 90}))
    rows, warned = reported(finished_runs, capsys)
    assert not any(name.startswith("clip_higher") for name in rows)
    assert_words(warned, "longer", "more steps")

def test_report_loses_no_run_that_has_the_name_of_another(finished_runs, tmp_path, capsys):
    """The same flags, by another state of the code, say."""
    fake_run(tmp_path / "again", "--preset clip_higher", ece=0.2)
    fake_run(tmp_path / "and again", "--preset clip_higher", ece=0.6)
    with pytest.warns(UserWarning, match="same name and seed"):
        rows, _ = reported(finished_runs, capsys)
    assert rows["clip_higher"]["seeds"] == "2"
    assert rows["clip_higher"]["ece"] == "0.400 ± 0.283"

def test_report_names_runs_by_what_they_do_not_share(tmp_path, capsys):
    """Also models with the same last name, and what differs behind 200 characters."""
    shared = f"--preset grpo --dataset {'d' * 200}"
    fake_run(tmp_path / "1", f"{shared} --model one/m")
    fake_run(tmp_path / "2", f"{shared} --model two/m")
    fake_run(tmp_path / "3", f"{shared} --model one/m --warmup_steps 3")
    rows, _ = reported(tmp_path / "*", capsys)
    names = {name for name in rows if name.startswith("grpo")}
    assert names == {
        "grpo-model=one/m", "grpo-model=two/m", "grpo-model=one/m-warmup_steps=3"}

def test_report_draws_a_picture(finished_runs, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    reported(finished_runs, capsys)
    assert (tmp_path / "report.png").stat().st_size > 10000

# ---------------------------------------------------------------------------------- types of models

# Small sizes by all the names that configurations have for them.
TINY = dict(
    vocab_size=160, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
    initializer_range=0.3,
    n_embd=32, n_layer=2, n_head=4, n_positions=256, n_ctx=256, rotary_dim=8, ffn_dim=64,
    d_model=32, num_layers=2, num_heads=4, n_layers=2, n_heads=4, max_seq_len=256,
    decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64, word_embed_proj_dim=32,
    num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2,
    moe_intermediate_size=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)

TYPES = """
apertus arcee biogpt codegen cohere cohere2 ernie4_5 exaone4 falcon gemma gemma2 gemma3_text
gemma4_text glm4 gpt2 gpt_bigcode gpt_neox gptj gpt_oss granite granitemoe hyperclovax llama mistral
mixtral mpt nanochat nemotron olmo2 olmoe opt phi phi3 qwen2 qwen3 qwen3_moe smollm3 stablelm
starcoder2 vaultgemma
""".split()

def tiny_policy(model_type, **more):
    """A policy with random weights of this type of model."""
    config_class = tf.models.auto.configuration_auto.CONFIG_MAPPING[model_type]
    names = {field.name for field in dataclasses.fields(config_class)}
    names |= set(config_class.attribute_map)
    sizes = {name: size for name, size in TINY.items() if name in names}
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(
        config_class(**sizes, **more), attn_implementation="eager")
    return rlvr.Policy(model.eval(), bpe_tokenizer(pad_is_eos=True), stop_ids=[2])

def assert_trained_as_it_is(policy):
    """The log-probabilities that are trained are those of the model's own forward pass."""
    rlvr.check_policy(policy, rlvr.Config())
    prompts = [(5, 6, 7), (9, 10, 11, 12, 13)]
    responses = [[4, 8, 15, 16], [23, 42]]
    logp, _, _ = rlvr.score(policy, prompts, responses, temperature=1.0)
    slow_logps, _ = slow_score(policy.model, prompts, responses, 1.0)
    for row, slow_logp in zip(logp, slow_logps):
        assert torch.allclose(row[:len(slow_logp)], slow_logp, atol=1e-3)

@pytest.fixture
def of_160_tokens(monkeypatch):
    monkeypatch.setattr(tf.PreTrainedTokenizerFast, "__len__", Mock(return_value=160))

@pytest.mark.parametrize("model_type", TYPES)
def test_each_type_of_model_is_trained_as_it_is(model_type, of_160_tokens):
    assert_trained_as_it_is(tiny_policy(model_type))

@pytest.mark.parametrize("model_type, more", [
    pytest.param("granite", dict(logits_scaling=8.0), id="scaled"),
    pytest.param("hyperclovax", dict(logits_scaling=0.125), id="scaled the other way"),
    pytest.param("cohere", dict(logit_scale=4.0), id="scaled up"),
    pytest.param("gemma2", dict(final_logit_softcapping=2.0), id="capped"),
])
def test_scaled_and_capped_logits_are_the_models_own(model_type, more, of_160_tokens):
    policy = tiny_policy(model_type, **more)
    assert_trained_as_it_is(policy)
    assert policy.scale != 1 or policy.cap

@pytest.mark.parametrize("model_type", ["bart", "bloom"])
def test_a_type_whose_cache_changes_the_numbers_is_refused(model_type, of_160_tokens):
    with pytest.raises((ValueError, RuntimeError)):
        rlvr.check_policy(tiny_policy(model_type), rlvr.Config())

def test_logits_that_the_model_changes_in_another_way_are_refused(of_160_tokens):
    policy = tiny_policy("llama")
    forward = policy.model.forward

    def bent(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = 3 * torch.tanh(output.logits / 3)
        return output

    policy.model.forward = bent
    with pytest.raises(ValueError, match="its logits are not"):
        rlvr.check_policy(policy, rlvr.Config())

# ------------------------------------------------------------------------- what passed in silence

def test_a_csv_row_with_a_comma_too_many_is_refused(folders, tmp_path):
    """A reader would shift the columns: the prompt would be 000 + 3?"""
    file = tmp_path / "data.csv"
    file.write_text("question,answer\n" + "What is 1,000 + 3?,1003\n" * 9)
    message = refusal(folders / "qwen", tmp_path, "--dataset", file)
    assert_words(message, "more cells than the header", "data.csv")

@pytest.mark.parametrize("ending, by_number, text", [
    ("!", False, "1!"),
    ("!", True, "1!"),
    ("<|im_end|>", False, "1"),  # which ends a response in any case, and says nothing
])
def test_a_stop_token_that_only_the_user_named_stays_in_the_text(
        folders, monkeypatch, ending, by_number, text):
    ids = loaded(folders / "qwen").tokenizer.encode("1" + ending)
    flag = ids[-1] if by_number else ending
    policy = loaded(folders / "qwen", f"--stop_tokens {flag}")

    T = len(ids)
    lengths = torch.tensor([T])
    finished = torch.tensor([True])
    out = (torch.tensor([ids]), lengths, finished, torch.zeros(1, T))
    monkeypatch.setattr(rlvr, "sample", Mock(return_value=out))
    problem = rlvr.Problem("", (5, 6), "3", "math")
    rollouts = rlvr.rollout(policy, [problem], 1, rlvr.Config(), "test")
    assert rollouts.texts == [text]

def test_an_array_of_numpy_as_text_is_no_list_of_one_text():
    with pytest.raises(ValueError, match="damaged"):
        rlvr.read_answer("['assert f(1)==1' 'assert f(2)==3']")

def test_numbers_of_a_countdown_may_be_text():
    kind, answer = rlvr.read_answer('{"numbers": ["1", "2", "13"], "target": "16"}')
    assert kind == "countdown"
    assert answer == {"numbers": [1, 2, 13], "target": 16}

def test_a_template_that_drops_the_question_makes_no_prompt(folders):
    policy = loaded(folders / "qwen")
    policy.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}{% endfor %}"
    with pytest.raises(ValueError, match="leaves out"):
        rlvr.make_problem(ROW, ("q", "a"), policy, config(folders / "qwen"))

def test_a_template_argument_is_a_whole_word(folders, tmp_path):
    """The template reads add_generation_prompt."""
    message = refusal(folders / "qwen", tmp_path, '--chat_template_kwargs {"generation":1}')
    assert "reads no generation" in message

def test_weights_that_the_configuration_does_not_use_are_named(folders, tmp_path):
    shutil.copytree(folders / "llama", tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    settings = json.loads(file.read_text())
    settings["num_hidden_layers"] = 1
    settings.pop("layer_types", None)
    file.write_text(json.dumps(settings))
    with pytest.warns(UserWarning, match="does not use"):
        loaded(tmp_path / "model")

def test_other_data_under_the_same_name_is_noticed(folders, tmp_path):
    def write(extra):
        rows = [{"question": f"{i}+{extra}?", "answer": str(i + extra)} for i in range(20)]
        write_lines(tmp_path / "data.jsonl", rows)

    flags = (f"--model {folders / 'llama'} {SMALL} --dataset {tmp_path / 'data.jsonl'} --steps 1 "
             f"--prompts_per_step 4 --eval_prompts 0 --output_dir {tmp_path / 'run'}")
    write(1)
    rlvr.main(command(flags))
    write(2)
    message = message_of("--resume", tmp_path / "run", "--steps 2")
    assert "have changed" in message

def test_held_out_prompts_that_nobody_can_use(folders, tmp_path):
    train = write_lines(tmp_path / "train.jsonl", [{"question": "1+1?", "answer": "2"}])
    test = write_lines(tmp_path / "test.jsonl", [{"question": "1+2?", "answer": ""}])
    message = refusal(folders / "qwen", tmp_path, "--dataset", train, "--eval_split", test)
    assert_words(message, "--eval_split", "no answer")

def test_an_update_that_destroys_the_policy_is_noticed_though_it_is_the_last(short, tmp_path):
    """One update a step: no later one meets the broken weights."""
    flags = "--steps 1 --updates_per_batch 1 --reuse 1 --lr 1e30"
    message = message_of("--output_dir", tmp_path / "run", short, flags)
    assert_words(message, "evaluation", "lower --lr")

@linux
def test_nohup_is_obeyed(monkeypatch):
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    rlvr.StopSignals()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    signal.signal(signal.SIGHUP, handler)

# ---------------------------------------------------------------------------------------------- GPU

@pytest.fixture
def cuda(monkeypatch):
    if not GPUS:
        pytest.skip("needs a GPU")
    monkeypatch.setattr(torch.cuda, "is_available", Mock(return_value=True))

@pytest.mark.parametrize("name", ["qwen", "gemma", "demo", "gpt2"])
def test_cuda_graphs_decode_token_for_token_and_the_trainer_agrees_in_bf16(
        cuda, folders, name):
    policy = loaded(folders / name, "--max_prompt_tokens 32 --max_new_tokens 200")
    policy = stopping_at_every(40, policy)
    by_graph = replace(policy, by_graph=True)
    one_by_one = replace(policy, by_graph=False)
    for rows in (30, 48):
        u = seeded(rows, 200, rows)
        fast = sampled(by_graph, PROMPTS, u)
        slow = sampled(one_by_one, PROMPTS, u)
        assert_same_tokens(fast, slow)

    prompts = []
    responses = []
    for row, tokens in enumerate(fast.tokens.tolist()):
        length = int(fast.lengths[row])
        prompts.append(PROMPTS[row // 16])
        responses.append(tokens[:length])
    logp, _, _ = rlvr.score(policy, prompts, responses, temperature=1.0)
    assert logp.dtype == torch.float32
    T = logp.shape[1]
    distance = (logp - fast.logp[:, :T]).abs()
    assert distance.mean() < 0.05

def test_cuda_a_whole_run_goes_on_after_a_stop(cuda, short, tmp_path):
    out = tmp_path / "run"
    go(out, short, "--device cuda --steps 2 --save_every 1")
    rlvr.main(command("--resume", out, "--steps 3"))
    log = read_log(out)
    assert [record["step"] for record in log] == [0, 1, 2]
    for record in log:
        assert record["logp_gap"] < 0.05
        assert record["ratio_gap"] < 0.01
    summary = json.loads((out / "summary.json").read_text())
    assert summary["after"]["entropy"] > 0

def test_cuda_sizes_are_halved_until_they_fit(cuda, folders):
    """256 MiB a row: half a TiB at first."""
    policy = loaded(folders / "demo")
    work = lambda: torch.empty(policy.sample_rows, 2**28, dtype=torch.uint8, device="cuda")
    with pytest.warns(UserWarning, match="out of memory"):
        rows = len(rlvr.until_it_fits(policy, "sample_rows", work))
    torch.cuda.empty_cache()
    memory = torch.cuda.get_device_properties(0).total_memory
    assert 0.2 * memory < rows * 2**28 < 0.9 * memory

@pytest.mark.skipif(GPUS < 2, reason="NCCL takes one process per GPU")
def test_cuda_two_processes_share_a_run(short, tmp_path):
    argv = [*PROGRAM_BY_TWO, *command("--output_dir", tmp_path / "run", short)]
    assert subprocess.run(argv, timeout=300).returncode == 0
