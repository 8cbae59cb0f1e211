"""Tests: behaviour, no network, no GPU needed. Every fast path is compared with a slow and obvious twin."""
import dataclasses, glob, itertools, json, math, multiprocessing, os, random
import re, shutil, signal, subprocess, sys, tempfile, time, warnings
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace

os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=tempfile.mkdtemp(prefix="rlvr-test-"), TOKENIZERS_PARALLELISM="false")

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rlvr
import verify

HERE = Path(__file__).parent
CORPUS = ["What is 12 + 30? The answer is 42.", "A train has 3 cars of 20 seats: 60 seats.", "def add(a, b): return a + b"]
CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
SIZES = dict(vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.4)
SLIDING = dict(head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"])
GPT2 = dict(n_embd=32, n_layer=2, n_head=4, n_positions=256, vocab_size=320, initializer_range=0.4)

def bpe_tokenizer(pad_is_eos, chat_template=None):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|im_end|>"] if pad_is_eos else ["<|im_end|>", "<|im_start|>", "<pad>"]
    core.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", chat_template=chat_template,
                                      pad_token="<|im_end|>" if pad_is_eos else "<pad>")

@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Saved policies: a Qwen2 with a chat template, a Llama whose pad token is its eos token, a Gemma 3 one of
    whose layers sees four tokens, a hasty demo; and rewards."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, model, tokenizer in (
            ("qwen", tf.Qwen2ForCausalLM(tf.Qwen2Config(**SIZES)), bpe_tokenizer(False, CHATML)),
            ("llama", tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES)), bpe_tokenizer(True)),
            ("gemma", tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**SIZES, **SLIDING)), bpe_tokenizer(False))):
        rlvr.Policy(model, tokenizer, [0]).save(root / name)
    rlvr.pretrain_demo(root / "demo", steps=3, batch=16)
    (root / "own.py").write_text(
        "odd = lambda response, answer: len(response) % 2\nsame = lambda response, answer: 0\n"
        "few = lambda response, answer: float(len(response) < 12)\none = lambda response, answer: 1\n"
        "below = lambda response, answer: -1 - len(response) % 2\n")
    return root

def command(*flags):
    """Flags as a command line has them: ("--lr 1", path) -> ["--lr", "1", "/the/path"]."""
    return " ".join(map(str, flags)).split()

def config(model, *flags):
    return rlvr.parse_config(command("--model", model, *flags))

@pytest.fixture(params=["qwen", "llama", "gemma", "demo"])
def policy(folders, request):
    return rlvr.load_policy(config(folders / request.param, "--max_prompt_tokens 32 --max_new_tokens 16"))

def read_lines(file, drop=("seconds", "peak_memory")):
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(drop)}
            for line in Path(file).read_text().splitlines()]

def cases(table):
    """What stands between the signs ¦ and the line ends of a table."""
    return re.split(r"\s*¦\s*|\n", table.strip("\n"))

def pairs_of(table):
    return [pair.split(" | ") for pair in cases(table)]

def write_lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file

def go(out, *flags):
    """A whole run -> its metrics."""
    rlvr.main(command(*flags, "--output_dir", out))
    return read_lines(out / "metrics.jsonl") if (out / "metrics.jsonl").exists() else []

def message_of(*argv):
    """The one line with which a command stops."""
    with pytest.raises(SystemExit) as stop:
        rlvr.main(command(*argv))
    message = stop.value.code
    assert isinstance(message, str) and message.startswith("rlvr.py: ") and "\n" not in message
    return message

def weights(folder):
    return torch.cat([p.flatten() for p in tf.AutoModelForCausalLM.from_pretrained(folder).parameters()])

# ------------------------------------------------------------------------------------------------------- loss

def knobs(**values):
    return SimpleNamespace(**dict(eps_low=0.2, eps_high=0.3, neg_weight=1.0, entropy_adv=0.0, pos_drop=0.0, seed=0,
                                  cov_share=0.0, cov_penalty=0.0) | values)

def loss_of(ratio, A, lam=1.0, normalizer=None, **values):
    """Loss and gradient on logp for a (1, T) row of ratios with one advantage."""
    old = torch.full((1, len(ratio)), -1.0)
    logp, mask = (old + torch.tensor([ratio]).log()).requires_grad_(), torch.ones_like(old, dtype=torch.bool)
    loss, sums = rlvr.policy_loss(logp, old, torch.tensor([A]), mask, normalizer or len(ratio), knobs(**values), lam, 0.0)
    loss.backward()
    return loss.item(), logp.grad[0], sums

@pytest.mark.parametrize("A, ratio, alive", [(1.0, 0.5, True), (1.0, 1.0, True), (1.0, 1.5, False),
                                             (-1.0, 0.5, False), (-1.0, 1.0, True), (-1.0, 1.5, True)])
def test_gradient_lives_where_the_paper_says(A, ratio, alive):
    _, gradient, sums = loss_of([ratio], A)
    assert gradient.item() == pytest.approx(-ratio * A if alive else 0.0)  # descent raises logp where A > 0
    assert sums["clip_pos"] + sums["clip_neg"] == (not alive)

def test_lambda_touches_positive_tokens_only():
    for A in (1.0, -1.0):
        plain, weighted = loss_of([0.9, 1.1], A)[1], loss_of([0.9, 1.1], A, lam=0.25)[1]
        assert torch.allclose(weighted, plain * (0.25 if A > 0 else 1.0))
        assert torch.allclose(loss_of([0.9, 1.1], A, neg_weight=0.5)[1], plain * (0.5 if A < 0 else 1.0))

def test_lambda_one_is_clipped_grpo():
    """The twin writes out the cases of the minimum, token by token."""
    torch.manual_seed(1)
    logp, old, A = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([1.5, -0.5, 0.0, 2.0])
    mask = torch.tensor([[i < n for i in range(5)] for n in (5, 1, 3, 2)])
    expected, count = 0.0, 11
    for b, t in itertools.product(range(4), range(5)):
        if mask[b, t]:
            r, a = math.exp(logp[b, t] - old[b, t]), A[b].item()
            expected -= min(r * a, min(max(r, 0.8), 1.3) * a) / count
    loss, sums = rlvr.policy_loss(logp, old, A, mask, count, knobs(), 1.0, 0.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert (sums["tokens_pos"], sums["tokens_neg"]) == (7, 1)

def test_no_clipping_with_infinite_eps():
    assert loss_of([1e-3], -1.0, eps_low=math.inf)[1].item() == pytest.approx(1e-3)
    assert loss_of([1e3], 1.0, eps_high=math.inf)[1].item() == pytest.approx(-1e3)

@pytest.mark.parametrize("A", [1.0, -1.0, 0.0])
def test_batches_of_one_sign_are_finite(A):
    loss, gradient, _ = loss_of([1.0, 1.0], A)
    assert math.isfinite(loss) and torch.isfinite(gradient).all() and (A != 0 or not gradient.any())

def test_dH_is_the_entropy_change_of_a_small_step():
    """Logits as parameters, one small gradient step: the entropy moves as dH_pos + dH_neg say."""
    torch.manual_seed(0)
    logits, targets, eta = (2 * torch.randn(12, 6)).requires_grad_(), torch.randint(0, 6, (12,)), 1e-4
    head = torch.nn.Linear(6, 6, bias=False)
    head.weight.data = torch.eye(6)
    logp, _, push = (x.view(4, 3) for x in rlvr.logp_entropy(logits, head, targets, 1.0))
    old = logp.detach() + torch.linspace(-0.5, 0.5, 12).view(3, 4).T  # some ratios are clipped, on both sides
    A, mask = torch.tensor([1.0, -1.0, 2.0, -0.5]), torch.ones(4, 3, dtype=torch.bool)
    loss, sums = rlvr.policy_loss(logp, old, A, mask, 12, knobs(eps_low=0.1, eps_high=0.1), 0.5, push)
    assert sums["clip_pos"] and sums["clip_neg"] and sums["dH_pos"] and sums["dH_neg"]
    loss.backward()
    start, step = logits.detach().double(), -eta * logits.grad.double()
    H = [torch.distributions.Categorical(logits=x).entropy().sum().item() for x in (start, start + step)]
    assert (H[1] - H[0]) / eta == pytest.approx(sums["dH_pos"] + sums["dH_neg"], rel=1e-2)

def variant(tokens, **values):
    """variants() of rows of (log-probability, advantage of the row, entropy) -> advantages, alive, penalized."""
    logp, entropy = torch.tensor(tokens["logp"]), torch.tensor(tokens["entropy"])
    mask = torch.tensor(tokens.get("mask", [[True] * logp.shape[1]] * len(logp)))
    A = torch.tensor(tokens["A"])[:, None].expand(mask.shape)
    return rlvr.variants(knobs(**values), A, logp, entropy, mask, 3)

def test_methods_that_the_paper_compares():
    tokens = dict(A=[2.0, -1.0, 0.0], logp=[[-0.1, -5.0], [-0.1, -5.0], [-1.0, -1.0]],
                  entropy=[[0.0, 9.0], [0.5, 9.0], [9.0, 9.0]], mask=[[True, True], [True, True], [True, False]])
    A, alive, penalized = variant(tokens)  # all off
    assert A[:, 0].tolist() == tokens["A"] and alive.tolist() == tokens["mask"] and not penalized.any()
    A, *_ = variant(tokens, entropy_adv=0.4)  # half of |A| at most, so no sign turns
    assert torch.allclose(A, torch.tensor([[2.0, 3.0], [-0.8, -0.5], [0.0, 0.0]]))
    _, alive, _ = variant(tokens, pos_drop=1.0)
    assert alive.tolist() == [[False, False], [True, True], [True, False]]
    wide = dict(A=[1.0, -1.0], logp=[[-1.0] * 5000] * 2, entropy=[[0.0] * 5000] * 2)
    dropped = ~variant(wide, pos_drop=0.1)[1]
    assert 400 < dropped[0].sum() < 600 and not dropped[1].any()
    # Covariance is highest for a likely token of a good response and for a rare one of a bad response.
    covered = torch.tensor([[True, False], [False, True], [False, False]])
    assert torch.equal(variant(tokens, cov_share=0.4)[1], torch.tensor(tokens["mask"]) & ~covered)
    _, alive, penalized = variant(tokens, cov_share=0.4, cov_penalty=1.0)
    assert alive.tolist() == tokens["mask"] and torch.equal(penalized, covered)

def policy_gradient(policy, prompts, responses, A, split, pad=0):
    """Gradient of the loss of these rows, in the given micro-batches."""
    policy.model.zero_grad()
    for rows in split:
        logp, _, _ = rlvr.score(policy, [prompts[i] for i in rows], [responses[i] for i in rows], 1.0)
        logp = torch.nn.functional.pad(logp, (0, pad), value=3.0)
        mask = torch.tensor([[t < len(responses[i]) for t in range(logp.shape[1])] for i in rows])
        old = (logp + 0.1 * mask).detach()
        loss, _ = rlvr.policy_loss(logp, old, A[rows], mask, sum(map(len, responses)), knobs(), 0.5, 0.0)
        loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None]).clone()

ROWS = ([[5, 6, 7], [4, 0, 9, 10, 11, 12, 13, 14, 15], [5, 6, 7], [13, 8, 8]],  # prompts, two of them the same
        [[3, 4, 5, 6, 7, 8], [9], [0, 10, 11, 0], [12] * 8])                    # responses; 0 is pad or eos somewhere

def test_loss_does_not_depend_on_padding_micro_batches_or_order(policy):
    A = torch.tensor([1.0, -1.0, 0.5, -2.0])
    whole = policy_gradient(policy, *ROWS, A, [[0, 1, 2, 3]])
    for split, pad in (([[3, 1, 0, 2]], 0), ([[0], [1], [2], [3]], 0), ([[2, 0], [1, 3]], 5)):
        assert torch.allclose(policy_gradient(policy, *ROWS, A, split, pad), whole, rtol=1e-3, atol=1e-6)
    assert whole.abs().max() > 1e-3

def test_micro_batches_hold_the_budget_and_every_row():
    rand = random.Random(0)
    prompts = [tuple(range(n)) for n in (3, 9, 17) for _ in range(40)]
    responses = [[0] * rand.randint(1, 30) for _ in prompts]
    batches = rlvr.micro_batches(range(120), prompts, responses, 64)
    assert sorted(sum(batches, [])) == list(range(120))
    costs = [sum(len(responses[i]) for i in b) + sum(map(len, {prompts[i] for i in b})) for b in batches]
    assert max(costs) <= 64 and sum(costs) / len(costs) > 48  # full ones, with each prompt counted once
    assert rlvr.micro_batches([119], prompts, responses, 4) == [[119]]  # a row over the budget goes alone

# ------------------------------------------------------------------------------- log-probability and entropy

@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_head_equals_dense_twin(temperature):
    torch.manual_seed(0)
    hidden, targets = torch.randn(23, 8, requires_grad=True), torch.randint(0, 50, (23,))
    head = torch.nn.Linear(8, 50)
    logp, entropy, push = rlvr.logp_entropy(hidden, head, targets, temperature, max_logits=200)  # 4 tokens a chunk
    mix = torch.randn(2, 23)
    (mix[0] @ logp + mix[1] @ entropy).backward()
    fast = [hidden.grad.clone(), head.weight.grad.clone(), head.bias.grad.clone()]
    hidden.grad, head.weight.grad, head.bias.grad = None, None, None
    dense = torch.log_softmax(head(hidden) / temperature, -1)
    twin = dense[torch.arange(23), targets], torch.distributions.Categorical(logits=dense).entropy()
    assert torch.allclose(logp, twin[0], atol=1e-5) and torch.allclose(entropy, twin[1], atol=1e-5)
    for row, target, value in zip(dense, targets, push.tolist()):  # the equation, token by token
        p, H = row.exp().tolist(), -(row.exp() * row).sum().item()
        each = [q * (math.log(q) + H) for q in p]
        assert value == pytest.approx(each[target] - sum(q * x for q, x in zip(p, each)), abs=1e-6)
    (mix[0] @ twin[0] + mix[1] @ twin[1]).backward()
    for a, b in zip(fast, (hidden.grad, head.weight.grad, head.bias.grad)):
        assert torch.allclose(a, b, atol=1e-5)

def test_chunked_head_never_holds_all_logits():
    """Counted where they are made: the largest output of the head."""
    head, sizes = torch.nn.Linear(4, 1000), []
    head.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    hidden = torch.randn(64, 4, requires_grad=True)
    logp, _, _ = rlvr.logp_entropy(hidden, head, torch.zeros(64, dtype=torch.long), 1.0, max_logits=8000)
    logp.sum().backward()
    assert max(sizes) <= 8000 and sum(sizes) == 2 * 64 * 1000  # each token once forward, once again in backward

def test_entropy_of_a_uniform_distribution_is_log_v():
    logp, entropy = rlvr.log_softmax_entropy(torch.zeros(3, 77, dtype=torch.bfloat16), 1.0)
    assert entropy.dtype == logp.dtype == torch.float32
    assert torch.allclose(entropy, torch.full((3,), math.log(77)))

def slow_score(model, prompts, responses, temperature):
    """Each row alone through the whole model, without padding, cache or chunks -> [(logp, entropy)]."""
    for p, r in zip(prompts, responses):
        dense = torch.log_softmax(model(torch.tensor([p + r])).logits[0, len(p) - 1:-1].float() / temperature, -1)
        yield dense[torch.arange(len(r)), torch.tensor(r)], -(dense.exp() * dense).sum(-1)

@pytest.mark.parametrize("checkpointing", [False, True])
def test_score_equals_one_row_at_a_time(policy, checkpointing):
    """With gradient checkpointing too, which drops a cache: then these would be off by nats."""
    if checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        policy.model.train()
    logp, entropy, _ = rlvr.score(policy, *ROWS, 0.8)
    logp.sum().backward()
    policy.model.eval()
    policy.model.gradient_checkpointing_disable()
    gradient = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
    policy.model.zero_grad()
    twin = list(slow_score(policy.model, *ROWS, 0.8))
    sum(row.sum() for row, _ in twin).backward()
    assert torch.allclose(gradient, torch.cat([p.grad.flatten() for p in policy.model.parameters()]), rtol=1e-3, atol=1e-4)
    for i, (slow_logp, slow_entropy) in enumerate(twin):
        n = len(slow_logp)
        assert torch.allclose(logp[i, :n], slow_logp, atol=1e-4)
        assert torch.allclose(entropy[i, :n], slow_entropy, atol=1e-4)
        assert not logp[i, n:].any() and not entropy[i, n:].any()

def test_scoring_reads_each_prompt_once(policy):
    tokens = []
    hook = policy.model.base_model.register_forward_hook(
        lambda module, args, out: tokens.append(tuple(out.last_hidden_state.shape[:2])))
    prompts, responses = [[5, 6, 7]] * 3 + [[9, 10, 11, 12, 13]] * 2, [[4] * n for n in (2, 9, 1, 5, 30)]
    shape = rlvr.score(policy, prompts, responses, 1.0)[0].shape
    hook.remove()
    assert shape == (5, 30) and tokens == [(2, 5), (5, 29)]  # two prompts, then all responses but for the last token

# ----------------------------------------------------------------------------------------------------- sampler

PROMPTS = [[5, 6, 7], [4, 0, 9, 10, 11, 12], [13]]  # unequal lengths, one with the pad or eos id inside

def seeded(rows, columns, seed):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))

def slow_sample(policy, prompt, uniforms, temperature):
    """One response, no cache: read everything again for each token."""
    ids, logps, entropies = list(prompt), [], []
    for u in uniforms.tolist():
        p = torch.softmax(policy.model(torch.tensor([ids])).logits[0, -1].float() / temperature, -1)
        total, token = 0.0, 0
        for token, share in enumerate(p.tolist()):
            total += share
            if total > u:
                break
        ids.append(token)
        logps.append(p[token].log().item())
        entropies.append(torch.distributions.Categorical(p).entropy().item())
        if token in policy.stop_ids:
            break
    return ids[len(prompt):], logps, entropies

def assert_sampler_equals_slow_twin(policy):
    policy, uniforms = replace(policy, stop_ids=list(range(0, 320, 9))), seeded(12, 16, 3)  # responses of all lengths
    with torch.no_grad():
        tokens, lengths, finished, logp, entropy = rlvr.sample(policy, PROMPTS, uniforms, 0.9)
        for row in range(12):
            slow, n = slow_sample(policy, PROMPTS[row // 4], uniforms[row], 0.9), int(lengths[row])
            assert tokens[row, :n].tolist() == slow[0]
            assert bool(finished[row]) == (slow[0][-1] in policy.stop_ids)  # the stop token is kept
            assert logp[row, :n].tolist() == pytest.approx(slow[1], abs=1e-4)
            assert entropy[row, :n].tolist() == pytest.approx(slow[2], abs=1e-4)
    assert len(set(lengths.tolist())) > 2 and not tokens[:, 15][lengths < 16].any()

def test_sampler_equals_slow_twin(policy):
    assert_sampler_equals_slow_twin(policy)

FAMILIES = {
    "Qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**SIZES, head_dim=8)),
    "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2)),
    "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**SIZES, pad_token_id=0)),
    "Falcon": lambda: tf.FalconForCausalLM(tf.FalconConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2,
                                                           num_attention_heads=4, initializer_range=0.4)),
    "Mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2))}

@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_sample_and_score_as_their_slow_twins(family):
    torch.manual_seed(1)
    model = FAMILIES[family]().eval()
    model.set_attn_implementation("eager")
    policy = rlvr.Policy(model, None, [0])
    assert_sampler_equals_slow_twin(policy)
    with torch.no_grad():
        logp, _, _ = rlvr.score(policy, *ROWS, 1.0)
        for row, (slow, _) in zip(logp, slow_score(model, *ROWS, 1.0)):
            assert torch.allclose(row[:len(slow)], slow, atol=1e-4)

def test_retiring_and_batching_change_nothing(policy):
    policy, uniforms = replace(policy, stop_ids=list(range(0, 320, 5))), seeded(48, 16, 4)
    together = rlvr.sample(policy, PROMPTS, uniforms, 1.0)
    for i, prompt in enumerate(PROMPTS):
        own = slice(16 * i, 16 * i + 16)
        alone = rlvr.sample(policy, [prompt], uniforms[own], 1.0)
        assert torch.equal(alone[0], together[0][own]) and torch.equal(alone[1], together[1][own])

class Tape(TorchDispatchMode):
    """What a CUDA graph does, on a CPU: note each operation with the tensors that it works on, and repeat them
    on those very tensors, whatever Python would do now. Reading a value on the host is no part of a graph."""
    replays = []

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select")
        out = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, out))
        return out

    def replay(self):
        Tape.replays.append(self)
        for function, args, kwargs, out in self.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(function(*args, **kwargs))):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

def test_graphs_decode_token_for_token(policy, monkeypatch):
    """A capture runs the step without effect on a GPU; the tape runs it, so its step is undone."""
    policy = replace(policy, stop_ids=list(range(0, 320, 9)))
    steps = [rlvr.sample(policy, PROMPTS, seeded(n, 24, n), 1.0) for n in (42, 30)]

    def taped(policy, function):
        yield function()
        with Tape() as tape:
            result = function()
        yield result  # recording has done this step
        while True:
            tape.replay()
            yield result

    monkeypatch.setattr(rlvr, "repeat", taped)
    for one_by_one, n in zip(steps, (42, 30)):
        by_graph = rlvr.sample(policy, PROMPTS, seeded(n, 24, n), 1.0)
        assert all(map(torch.equal, one_by_one[:3], by_graph[:3]))
        assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(one_by_one[3:], by_graph[3:]))
    assert len(Tape.replays) > 10

def test_cost_follows_the_tokens_produced(policy):
    """Rows that the model is given: at most twice the tokens produced, and one prefill per prompt."""
    policy, rows = replace(policy, stop_ids=list(range(0, 320, 5))), []
    hook = policy.model.base_model.register_forward_hook(
        lambda module, args, out: rows.append(len(out.last_hidden_state)))
    lengths = rlvr.sample(policy, PROMPTS, seeded(300, 16, 4), 1.0)[1]
    hook.remove()
    assert rows[0] == 3 and sum(rows[1:]) <= 2 * int(lengths.sum())

def test_greedy_equals_generate(policy):
    """At a vanishing temperature sampling is the argmax."""
    for prompt in PROMPTS:
        tokens, lengths, *_ = rlvr.sample(policy, [prompt], torch.full((1, 16), 0.5), 1e-6)
        ids = torch.tensor([prompt])
        twin = policy.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16,
                                     eos_token_id=policy.stop_ids, pad_token_id=0)
        assert tokens[0, :int(lengths[0])].tolist() == twin[0, len(prompt):].tolist()

def test_rollout_agrees_with_score_and_chunks(policy):
    c = SimpleNamespace(max_new_tokens=12, sample_rows=1000, temperature=0.9, micro_batch_tokens=20)
    policy = replace(policy, stop_ids=list(range(0, 320, 9)))  # responses of all lengths
    problems = [rlvr.Problem("", ids, None, "math") for ids in PROMPTS]
    whole = rlvr.rollout(policy, problems, 4, c, 0, "test")
    c.sample_rows = 4
    assert whole.responses == rlvr.rollout(policy, problems, 4, c, 0, "test").responses
    assert whole.mask.sum() == sum(map(len, whole.responses))
    assert rlvr.rollout(policy, problems, 4, c, 1, "test").responses != whole.responses
    with torch.no_grad():
        logp, entropy, _ = rlvr.score(policy, [p.ids for p in whole.problems], whole.responses, 0.9)
    assert torch.allclose(logp, whole.logp * whole.mask, atol=1e-4)
    assert torch.allclose(entropy, whole.entropy * whole.mask, atol=1e-4)
    grids = rlvr.score_all(policy, whole, range(12), c)  # in micro-batches, nothing outside the responses
    assert torch.allclose(grids, torch.stack([logp, entropy]), atol=1e-4)

def test_samples_follow_the_distribution(policy):
    """Frequencies of the first token against the softmax (chi-square like, seeded)."""
    tokens = rlvr.sample(policy, [PROMPTS[0]], seeded(20000, 1, 0), 1.0)[0][:, 0]
    p = torch.softmax(policy.model(torch.tensor([PROMPTS[0]])).logits[0, -1], -1)
    counts = torch.bincount(tokens, minlength=len(p))
    assert ((counts - 20000 * p).abs() <= 5 * (20000 * p * (1 - p)).sqrt() + 1).all()

# --------------------------------------------------------------- advantages, pass@k, schedules, evaluation

def test_advantages():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0] * 4, [0.3] * 4, [0.0, 0.0, 0.0, 1.0]])
    std, mean = rlvr.advantages(rewards), rlvr.advantages(rewards, "mean")
    assert not std[1:3].any() and not mean[1:3].any()  # exactly 0, also where the mean is not exact
    assert mean[3].tolist() == [-0.25, -0.25, -0.25, 0.75]
    assert std[3].tolist() == pytest.approx([-0.5, -0.5, -0.5, 1.5])  # sample standard deviation 0.5
    assert torch.allclose(std.sum(-1), torch.zeros(4), atol=1e-6)
    for value, group in itertools.product((0.1, 0.7, 1 / 3), range(2, 20)):
        assert not rlvr.advantages(torch.full((1, group), value)).any()

def test_pass_at_k_equals_brute_force():
    for n, correct, k in itertools.product([6], range(7), range(1, 7)):
        draws = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
        assert rlvr.pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))

def test_schedules():
    def c(schedule):
        return SimpleNamespace(pos_schedule=schedule, steps=11, pos_weight=0.3, target_entropy=0.2, pos_delta=0.05)

    next_weight = rlvr.next_pos_weight
    assert [next_weight(c("constant"), s, 0.9, 0.1) for s in range(3)] == [0.3] * 3
    assert [next_weight(c("stage"), s) for s in (0, 5, 6, 8, 10)] == pytest.approx([0, 0, 0.2, 0.6, 1])
    assert [next_weight(c("epoch"), 0, epoch=e, epochs=5) for e in range(1, 6)] == [0, 0.25, 0.5, 0.75, 1]
    lam, path = next_weight(c("entropy"), 0), []
    for step, h in enumerate([0.3, 0.3, 0.1, 0.1, 0.1, 0.2]):
        path.append(lam := next_weight(c("entropy"), step + 1, lam, h))
    assert path == pytest.approx([0.35, 0.4, 0.35, 0.3, 0.25, 0.3])
    assert next_weight(c("entropy"), 1, 0.98, 0.3) == 1.0 and next_weight(c("entropy"), 1, 0.02, 0.1) == 0.0

def test_state_moves_lambda_by_epochs_and_the_bonus_by_entropy():
    c = rlvr.parse_config(command("--preset pos_adv_epoch --bonus_delta 0.02 --steps 8"))
    state, path = {"step": 0, "bonus": 0.01, "pos_weight": 0.0, "start_entropy": None}, []
    for h in (0.1, 0.1, 0.3, 0.3, 0.3, 0.3, 0.3):  # 8 steps of 32 prompts, 64 of them: two steps an epoch, four epochs
        state = rlvr.next_state(c, state, {"entropy": h}, prompts=64)
        path.append((state["pos_weight"], round(state["bonus"], 4)))
    assert [bonus for _, bonus in path] == [0.03, 0.05, 0.03, 0.01, 0.0, 0.0, 0.0]
    assert [weight for weight, _ in path] == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1])
    assert state["start_entropy"] == 0.1 and state["step"] == 7

def test_ngram_diversity():
    assert rlvr.ngram_diversity([[1, 2, 3, 4], [5, 6, 7, 8]]) == 1.0
    assert rlvr.ngram_diversity([[1, 2, 3, 4]] * 4) == 0.25
    assert rlvr.ngram_diversity([[7, 7, 7]]) == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)  # no 4-gram
    assert rlvr.ngram_diversity([[1] * 4] * 2) == pytest.approx((1 / 8 + 1 / 6 + 1 / 4 + 1 / 2) / 4)
    assert rlvr.ngram_diversity([[]]) == 0.0

def test_calibration():
    """The twin goes bin by bin, in numbers that are exact in binary."""
    rand = random.Random(0)
    confidence = [rand.randrange(65) / 64 for _ in range(300)]
    correct = [float(rand.random() < x**2) for x in confidence]
    error = 0.0
    for low in range(10):
        own = [i for i, x in enumerate(confidence) if low <= min(x * 10, 9.5) < low + 1]
        error += abs(sum(correct[i] for i in own) - sum(confidence[i] for i in own)) / 300
    ece, over = rlvr.calibration(torch.tensor(confidence), torch.tensor(correct))
    assert ece == pytest.approx(error, abs=1e-5)
    assert over == pytest.approx(sum(confidence) / 300 - sum(correct) / 300)
    assert rlvr.calibration(torch.ones(4), torch.ones(4)) == (0.0, 0.0)

def batch_of(texts, finished=None, kind="math", answer="4"):
    return SimpleNamespace(problems=[SimpleNamespace(kind=kind, answer=answer)] * len(texts), texts=texts,
                           finished=finished or [True] * len(texts))

def test_evaluate_counts(policy, monkeypatch):
    """Against rollouts that are known: 2 problems x 4 responses; of 3 samples there is a pass@3."""
    mask = torch.tensor([[True, True], [True, False]] * 4)
    rollouts = rlvr.Rollouts([SimpleNamespace(answer="ab")] * 8, [[1, 2], [1]] * 4, [True] * 7 + [False],
                             ["a", "a", "b", "x", "x", "x", "x", "x"], mask * -1.0, mask * 0.5, mask)
    monkeypatch.setattr(rlvr, "rollout", lambda *_: rollouts)
    result = rlvr.evaluate(policy, [None] * 2, lambda text, problem: float(text in problem.answer),
                           SimpleNamespace(eval_samples=4, seed=0))
    assert [result[name] for name in ("avg@4", "pass@1", "pass@2", "pass@4")] == [3 / 8, 3 / 8, 0.5, 0.5]
    assert result["intervals"]["pass@4"] == [0.0, 1.0]  # one problem of two: a resample may have none or both
    assert result["diversity"] == pytest.approx((2 / 6 + 1 / 2) / 2)
    assert result["overconfidence"] == pytest.approx(math.exp(-1) - 3 / 8)
    assert (result["distinct"], result["entropy"], result["length"], result["truncated"]) == (1.0, 0.5, 1.5, 1 / 8)
    for name in ("problems", "responses", "finished", "texts", "logp", "entropy", "mask"):
        setattr(rollouts, name, getattr(rollouts, name)[:6])
    result = rlvr.evaluate(policy, [None] * 2, lambda text, problem: 1.0, SimpleNamespace(eval_samples=3, seed=0))
    assert list(result)[:4] == ["avg@3", "pass@1", "pass@2", "pass@3"]

def test_a_cut_off_response_gets_no_reward_and_never_the_best():
    cut_off = batch_of(["\\boxed{4}"] * 2, [True, False])
    assert rlvr.rewards_of(rlvr.judge(cut_off, rlvr.load_reward("auto")))[0].tolist() == [1.0, 0.0]
    assert rlvr.rewards_of(rlvr.judge(cut_off, lambda text, problem: -3))[0].tolist() == [-3.0, -3.0]

def test_what_cannot_be_judged_is_left_out_with_its_group(monkeypatch):
    def reward(text, problem):
        return {"right": 1.0, "wrong": 0.0, "nan": math.nan}[text]

    rollouts = batch_of(["right", "wrong", "odd", "wrong", "nan", "right"])
    with pytest.warns(UserWarning, match="left out"):
        rewards, errors = rlvr.rewards_of(rlvr.judge(rollouts, reward))
    assert rewards.isnan().tolist() == [False, False, True, False, True, False]
    assert errors == {2: "KeyError: 'odd'", 4: "ValueError: the reward is nan, no finite number"}
    advantage = rlvr.advantages(rewards.view(3, 2))
    assert advantage[0].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)]) and not advantage[1:].any()
    with pytest.raises(SystemExit, match="no response can be judged: KeyError"):
        rlvr.rewards_of(rlvr.judge(batch_of(["odd"] * 6), reward))
    monkeypatch.setattr(verify, "verify_batch", partial(verify.verify_batch, patience=0.2))
    with pytest.raises(SystemExit, match="the reward function hangs"):
        rlvr.judge(rollouts, lambda text, problem: time.sleep(1))

# ---------------------------------------------------------------------------------------------------- problems

def test_countdown_problems_are_solvable_distinct_and_seeded():
    rows = list(rlvr.countdown_rows(300))
    assert len({(*sorted(row["answer"]["numbers"]), row["answer"]["target"]) for row in rows}) == 300
    assert rows == list(rlvr.countdown_rows(300))
    rand = random.Random(1)
    for _ in range(300):
        numbers, target, steps = rlvr.random_calculation(rand)
        assert verify.countdown_reward(steps, numbers, target) == 1.0 and 1 <= target <= 99
    with pytest.raises(SystemExit, match="not 14001"):
        list(rlvr.countdown_rows(14001))

def test_demo_tokenizer_survives_auto_tokenizer(folders):
    tokenizer, text = rlvr.load_policy(config(folders / "demo")).tokenizer, "3,15,7=26:15-3=12,12*7=84"
    assert len(tokenizer.encode(text)) == len(text)
    assert tokenizer.decode(tokenizer.encode(text) + [tokenizer.eos_token_id], skip_special_tokens=True) == text

def test_a_saved_demo_policy_is_the_demo_again(folders):
    c = config(folders / "demo", "--num_prompts 200 --eval_prompts 20")
    assert c.lr == rlvr.DEMO["lr"] and config(folders / "qwen").lr != c.lr
    train, held_out = rlvr.load_problems(c, rlvr.load_policy(c))
    assert train[0].prompt == rlvr.compact_countdown(**train[0].answer)
    assert len(train) == 200 and len(held_out) == 20
    assert not {p.prompt for p in train} & {p.prompt for p in held_out}
    assert all(p.row["answer"] == p.answer for p in train)  # for a reward that asks for it

def test_countdown_in_words_for_a_real_model(folders):
    c = config(folders / "qwen", "--num_prompts 40 --eval_prompts 5 --max_new_tokens 16 --max_prompt_tokens 200")
    train, _ = rlvr.load_problems(c, rlvr.load_policy(c))
    assert "<answer>" in train[0].prompt and str(train[0].answer["target"]) in train[0].prompt
    assert train[0].prompt.endswith("<|im_start|>assistant\n") and train[0].kind == "countdown"

SHAPES = {  # a row, what its answer is read as
    "gsm8k": ({"question": "What is 40 + {i}?", "answer": "40 + {i} = <<40+{i}=4{i}>>4{i}\n#### 4{i}"}, "4{i}"),
    "math": ({"problem": "What is 40 + {i}?", "solution": "So \\boxed{{4}}, no: \\boxed{{4{i}}}.", "level": "1"}, "4{i}"),
    "math500": ({"problem": "What is 40 + {i}?", "solution": "Hence \\boxed{{0}}", "answer": "4{i}"}, "4{i}"),
    "plain": ({"prompt": "What is 40 + {i}?", "answer": "4{i}"}, "4{i}")}

@pytest.mark.parametrize("shape, suffix", [*itertools.product(SHAPES, ["jsonl"]), ("gsm8k", "parquet"),
                                           ("plain", "csv"), ("math", "json"), ("plain", "disk")])
def test_data_set_shapes(folders, tmp_path, shape, suffix):
    import datasets
    fields, answer = SHAPES[shape]
    rows = [{k: v.format(i=i) for k, v in fields.items()} for i in range(8)]
    table, file = datasets.Dataset.from_list(rows), tmp_path / f"data.{suffix}"
    if suffix == "disk":
        datasets.DatasetDict({"test": table}).save_to_disk(file)
    elif suffix == "json":
        file.write_text(json.dumps(rows))
    else:
        {"jsonl": table.to_json, "parquet": table.to_parquet, "csv": table.to_csv}[suffix](str(file))
    c = config(folders / "llama", f"--dataset {file} --prompts_per_step 4 --max_new_tokens 8 --max_prompt_tokens 200",
               "--split test" if suffix == "disk" else "")
    train, held_out = rlvr.load_problems(c, rlvr.load_policy(c))
    assert len(train) + len(held_out) == 8 and len(held_out) == 1
    expected = {f"What is 40 + {i}?": answer.format(i=i) for i in range(8)}
    for problem in train + held_out:
        question = problem.prompt.split("\n")[0].removeprefix("Question: ")
        assert problem.answer == expected.pop(question) and problem.kind == "math"
        assert problem.prompt.endswith("\nAnswer:") and "\\boxed" in problem.prompt

SMALL_DATA = "--prompts_per_step 4 --max_new_tokens 8 --max_prompt_tokens 200"

def problems_of(folders, model, file, rows, *flags):
    c = config(folders / model, "--dataset", write_lines(file, rows), SMALL_DATA, *flags)
    return sum(rlvr.load_problems(c, rlvr.load_policy(c)), [])

def test_chat_messages_and_tests(folders, tmp_path):
    """DAPO-Math-17k: messages and a nested answer, many times the same row; MBPP: a list of asserts; TinyZero:
    numbers and a target; a list of accepted answers."""
    problems = problems_of(folders, "qwen", tmp_path / "dapo.jsonl", [
        {"prompt": [{"role": "user", "content": f"Solve {i % 6}"}],
         "reward_model": {"ground_truth": str(i % 6), "style": "rule"}} for i in range(30)])
    assert sorted(p.answer for p in problems) == list("012345")
    assert problems[0].prompt == f"<|im_start|>user\nSolve {problems[0].answer}<|im_end|>\n<|im_start|>assistant\n"
    problems = problems_of(folders, "qwen", tmp_path / "mbpp.jsonl", [
        {"text": f"Add {i}.", "test_list": [f"assert add(1) == {i + 1}", "assert add(0)"], "test_imports": ["import re"]}
        for i in range(6)])
    assert problems[0].kind == "code" and problems[0].answer["tests"][0] == "import re"
    assert "assert add(0)" in problems[0].prompt and "assert add(1)" not in problems[0].prompt
    problems = problems_of(folders, "qwen", tmp_path / "zero.jsonl", [
        {"prompt": f"Make {i}.", "reward_model": {"ground_truth": {"target": i, "numbers": [1, i]}}} for i in range(6)])
    assert problems[0].kind == "countdown" and set(problems[0].answer) == {"numbers", "target"}
    problems = problems_of(folders, "qwen", tmp_path / "any.jsonl", [
        {"question": f"{i}?", "answer": ["10", "ten"]} for i in range(6)])
    assert problems[0].kind == "math" and verify.REWARDS["math"]("\\boxed{ten}", problems[0].answer) == 1.0

def test_chat_data_that_gives_the_answer_away_or_comes_in_parts(folders, tmp_path):
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]
    with pytest.warns(UserWarning, match="give the answer away"):
        problems = problems_of(folders, "qwen", tmp_path / "chat.jsonl", [
            {"prompt": [{"role": "user", "content": parts}, {"role": "assistant", "content": "It is 2."}], "answer": "2"}] * 2
            + [{"prompt": [{"role": "user", "content": "3?"}], "answer": "3"}] * 2)
    assert {p.prompt for p in problems} == {
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in ("1+1?", "3?")}

def test_tokenizer_with_several_chat_templates_is_saved_whole(folders, tmp_path):
    policy = rlvr.load_policy(config(folders / "qwen", "--max_prompt_tokens 100 --max_new_tokens 8"))
    policy.tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ tools }}"}
    for number in range(2):  # over itself, too
        policy.save(tmp_path / "checkpoint-000001", step=number)
    again = tf.AutoTokenizer.from_pretrained(tmp_path / "checkpoint-000001")
    assert again.chat_template == policy.tokenizer.chat_template

def test_chat_templates_that_refuse_or_end_a_turn_with_no_eos(folders, tmp_path):
    policy = rlvr.load_policy(config(folders / "qwen", "--max_new_tokens 8 --max_prompt_tokens 100"))
    policy.tokenizer.eos_token = "<pad>"
    policy.save(tmp_path / "model")
    ends = rlvr.load_policy(config(tmp_path / "model", "--max_new_tokens 8 --max_prompt_tokens 100")).stop_ids
    assert {policy.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<pad>")} <= {*ends}
    policy.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(SystemExit, match="no system role"):
        rlvr.make_problem({"q": "1?", "a": "1"}, ("q", "a"), policy, config(folders / "qwen"))

def test_apps_rows_are_programs_or_functions(folders, tmp_path):
    rows = [{"question": "Double.", "input_output": json.dumps({"inputs": ["2\n"], "outputs": ["4\n"]})},
            {"question": "Add.", "input_output": json.dumps({"inputs": [[1, 2]], "outputs": [3], "fn_name": "add"})}]
    answers = {p.prompt.split("\n")[1]: p.answer for p in problems_of(folders, "qwen", tmp_path / "apps.jsonl", rows)}
    assert answers == {"Double.": {"inputs": ["2\n"], "outputs": ["4\n"]}, "Add.": {"tests": ["assert add(*[1, 2]) == 3"]}}

def test_rows_that_mostly_cannot_be_used_and_splits_that_are_not_there_stop(folders, tmp_path):
    import datasets
    rows = [{"question": f"{i}?", "answer": "" if i % 3 else "1"} for i in range(30)]
    with pytest.raises(SystemExit, match="most rows cannot be used: 20 with no answer"):
        problems_of(folders, "qwen", tmp_path / "few.jsonl", rows)
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "disk")
    with pytest.raises(SystemExit, match="--split nope: .* has train"):
        rlvr.load_rows(config(folders / "qwen", "--split nope --dataset", tmp_path / "disk"))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "LoRA" in message_of("--model", tmp_path, "--output_dir", tmp_path / "run")

def test_flags_for_chat_models(folders, tmp_path):
    flags = "--max_new_tokens 8 --max_prompt_tokens 100 --device cpu --system_prompt Short."
    c = config(folders / "qwen", flags, '--chat_template_kwargs {"suffix":"<think>"} --stop_tokens ! 7')
    policy = rlvr.load_policy(c)
    assert {7, policy.tokenizer.convert_tokens_to_ids("!")} < {*policy.stop_ids}
    policy.tokenizer.chat_template += "{{ suffix }}"
    text = rlvr.make_problem({"q": "1?", "a": "1"}, ("q", "a"), policy, c).prompt
    assert text.startswith("<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\n1?") and text.endswith("assistant\n<think>")
    assert "no token of" in message_of("--model", folders / "qwen", flags, "--stop_tokens <nope> --output_dir", tmp_path / "run")
    with pytest.raises(ValueError, match="no question"):  # which a system prompt is not
        rlvr.make_problem({"q": [{"role": "user", "content": ""}], "a": "1"}, ("q", "a"), policy, c)

def test_csv_cells_stay_as_they_are_written(folders, tmp_path):
    (tmp_path / "data.csv").write_text("question,answer\na?,007\nb?,5\nc?,\n")
    c = config(folders / "llama", "--dataset", tmp_path / "data.csv", SMALL_DATA)
    assert sorted(p.answer for p in sum(rlvr.load_problems(c, rlvr.load_policy(c)), [])) == ["007", "5"]

def test_a_reward_gets_what_it_names(tmp_path):
    (tmp_path / "neighbour.py").write_text("bonus = 2")
    (tmp_path / "own.py").write_text("from neighbour import bonus\ndef f(row, response, finish_reason):\n"
                                     "    return row['x'] + len(response) + bonus * (finish_reason == 'stop')\n"
                                     "def g(text, gold):\n    return len(text) + gold\n")
    problem = rlvr.Problem("prompt", [], 10, "math", {"x": 100})
    assert [rlvr.load_reward(f"{tmp_path / 'own.py'}:{name}")("abc", problem) for name in "fg"] == [105, 13]

def test_a_path_that_does_not_exist_is_not_asked_for_on_the_hub(folders, tmp_path):
    for flags in (f"--model {tmp_path}/nowhere", f"--model {folders / 'qwen'} --dataset nowhere.jsonl"):
        assert "no such file or folder" in message_of(flags, "--max_new_tokens 8 --max_prompt_tokens 9 --output_dir", tmp_path / "run")

def test_bad_rows_and_long_prompts_are_counted(folders, tmp_path, capsys):
    rows = [{"q": "short", "a": "1"}, {"q": "short", "a": "1"}, {"q": "word " * 200, "a": "2"},
            {"q": "no answer", "a": None}, {"q": "", "a": "3"}, {"q": "other", "a": "4"}]
    problems = problems_of(folders, "llama", tmp_path / "rows.jsonl", rows, "--prompt_column q --answer_column a")
    assert sorted(p.answer for p in problems) == ["1", "4"]
    shown = capsys.readouterr().out
    assert "skipped 3 rows" in shown and "1 with a prompt longer than --max_prompt_tokens 200" in shown
    assert "1 with no answer" in shown and "1 with no question" in shown

def test_folder_with_several_subsets_takes_main(folders, tmp_path):
    """Like openai/gsm8k on the hub: two configurations, none given."""
    for name in ("main", "socratic"):
        write_lines(tmp_path / f"{name}.jsonl", [{"question": f"{name} {i}", "answer": "#### 1"} for i in range(9)])
    configs = "".join(f"- config_name: {n}\n  data_files:\n  - split: train\n    path: {n}.jsonl\n"
                      for n in ("socratic", "main"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for flags, name in (([], "main"), (["--subset", "socratic"], "socratic")):
        rows, columns = rlvr.load_rows(config(folders / "llama", "--dataset", tmp_path, *flags))
        rows = list(rows)
        assert len(rows) == 9 and rows[0]["question"].startswith(name) and columns == ["question", "answer"]

# ---------------------------------------------------------------------------------------- presets, bad input

def test_presets_and_precedence():
    def parsed(*flags):
        return rlvr.parse_config(command(*flags))

    c = parsed()
    assert (c.preset, c.pos_schedule, c.pos_weight) == ("pos_adv_entropy", "entropy", 0.0)
    assert parsed("--preset grpo").pos_weight == 1.0
    assert parsed("--preset adv_nonpos --pos_weight 0.5").pos_weight == 0.5  # explicit wins
    assert parsed("--preset clip_higher").eps_high > c.eps_high
    real = parsed("--model Qwen/Qwen2.5-0.5B-Instruct")
    assert (real.eps_low, real.lr, real.target_entropy) == (0.2, 1e-6, 0.2)
    assert real.output_dir == "runs/pos_adv_entropy-model=Qwen2.5-0.5B-Instruct-seed0"
    for name in rlvr.PRESETS:
        parsed("--preset", name)
    assert math.isinf(parsed("--eps_high inf").eps_high)

BAD_FLAGS = """
--learning_rate 1 | --learning_rate, --help  ¦  --preset ppo | ppo, pos_adv_entropy
--steps many | --steps, many  ¦  --group_size 1 | --group_size 1
--updates_per_batch 7 | --updates_per_batch 7, --prompts_per_step 32  ¦  --temperature 0 | --temperature
--temperature nan | --temperature  ¦  --eps_low -1 | --eps_low  ¦  --lr -1 | --lr
--cov_share 2 | --cov_share 2  ¦  --num_prompts 0 | --num_prompts 0
--report nowhere/* | nowhere/*, no finished run  ¦  --resume nowhere | nowhere
--pos_schedule cosine | cosine, stage  ¦  --pos_schedule stage --pos_weight 1 | --pos_weight
--preset grpo --target_entropy 0.1 | --target_entropy  ¦  --split test | --split, countdown
--pos_weight 2 | --pos_weight 2
"""

@pytest.mark.parametrize("line", cases(BAD_FLAGS))
def test_bad_flags(line):
    argv, words = line.split("|")
    message = message_of(argv)
    assert all(word.strip() in message for word in words.split(","))

def test_bad_models_and_data(folders, tmp_path):
    out = f"--output_dir {tmp_path / 'run'}"
    qwen = f"--model {folders / 'qwen'} {out} --max_prompt_tokens 100 --max_new_tokens 8"
    assert "nobody/nothing" in message_of("--model nobody/nothing", out)
    assert "nobody/data" in message_of(qwen, "--dataset nobody/data")
    good = write_lines(tmp_path / "good.jsonl", [{"question": "1+1?", "answer": "2", "extra": 1}])
    many = write_lines(tmp_path / "many.jsonl", [{"question": f"{i}?", "answer": "2"} for i in range(50)])
    for name, text in (("empty.jsonl", ""), ("odd.txt", "x")):
        (tmp_path / name).write_text(text)
        assert name in message_of(qwen, "--dataset", tmp_path / name)
    message = message_of(qwen, "--dataset", good, "--prompt_column frage")
    assert "frage" in message and "question, answer, extra" in message and "--prompt_column" in message
    assert "longer than --max_prompt" in message_of(qwen, "--max_prompt_tokens 2 --dataset", good)
    assert "256 tokens of context" in message_of(qwen, "--max_new_tokens 200")
    assert "choose auto" in message_of(qwen, "--reward vibes")
    assert "are for --reward math" in message_of(qwen, "--dataset", many, "--reward countdown")
    assert "no file" in message_of(qwen, "--reward nowhere.py:f")
    assert "nothing" in message_of(qwen, f"--reward {folders / 'own.py'}:nothing")
    assert "2nd epoch" in message_of(f"--model {folders / 'demo'} --preset pos_adv_epoch --steps 2", out)

def test_tokenizer_without_eos_or_with_too_many_tokens(folders, tmp_path):
    policy = rlvr.load_policy(config(folders / "llama", "--max_new_tokens 8 --max_prompt_tokens 8"))
    flags = f"--max_prompt_tokens 100 --max_new_tokens 8 --output_dir {tmp_path / 'run'}"
    policy.tokenizer.eos_token = policy.tokenizer.pad_token = None
    policy.model.generation_config.eos_token_id = policy.model.config.eos_token_id = None
    policy.save(tmp_path / "no_eos")
    assert "no eos token" in message_of("--model", tmp_path / "no_eos", flags)
    policy.tokenizer.add_tokens([f"<extra{i}>" for i in range(50)])
    policy.tokenizer.eos_token = "<extra0>"
    policy.save(tmp_path / "large")
    assert "embedding only 320" in message_of("--model", tmp_path / "large", flags)

def test_weights_that_do_not_fit_are_not_made_up(folders, tmp_path):
    from safetensors.torch import load_file, save_file
    shutil.copytree(folders / "qwen", tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    save_file({f"_orig_mod.{name}": tensor for name, tensor in tensors.items()},
              tmp_path / "model" / "model.safetensors", {"format": "pt"})
    flags = f"--max_prompt_tokens 100 --max_new_tokens 8 --output_dir {tmp_path / 'run'}"
    assert "would be random" in message_of("--model", tmp_path / "model", flags)

# ---------------------------------------------------------------------------------------------------- verify.py

RIGHT = r"""
x > 3 | 3 < x  ¦  x \ne 3 | 3 \ne x  ¦  36 | 3 dozen  ¦  \bar x = 3, y = 2 | y = 2, \bar{x} = 3  ¦  3.5 | 3½
\begin{pmatrix}4\\6\end{pmatrix} | \begin{bmatrix}1\\2\end{bmatrix}+\begin{bmatrix}3\\4\end{bmatrix}
42 | 42.00  ¦  -3 | -(3)  ¦  1234567 | 1,234,567  ¦  1234567 | 1{,}234{,}567  ¦  24500 | 24 500
\frac{7}{3} | \tfrac73  ¦  -\frac{7}{3} | -2\frac{1}{3}  ¦  1.75 | 1 3/4  ¦  \frac{3}{4} | {3 \over 4}
\frac{6}{8} | 0.75  ¦  \frac13 | 0.\overline{3}  ¦  25\% | 25  ¦  0.25 | 25\%  ¦  \$1,250.50 | 1250.5
1500000 | \$1.5\text{ million}  ¦  15\mbox{ cm}^2 | 15  ¦  12\text{ m}^2 | 12\text{ square meters}
60\text{ km/h} | 60\text{ km per hour}  ¦  8\text{ hours} | 8 hrs  ¦  90^\circ | 90°
6.02\times 10^{23} | 602000000000000000000000  ¦  3000 | 3e3  ¦  2\sqrt{2} | √8
1+\sqrt{2} | \sqrt{3+2\sqrt{2}}  ¦  -2 | \sqrt[3]{-8}  ¦  2^{1/2} | sqrt(2)  ¦  36\pi | \frac{4}{3}\pi (3)^3
e^{i\pi} | -1  ¦  \frac{1+i\sqrt3}{2} | \frac12+\frac{\sqrt3}{2}i
\frac{2}{x^2-1} | \frac{1}{x-1}-\frac{1}{x+1}  ¦  2^{n+1} | 2\cdot 2^n  ¦  \sin 2x | 2\sin x\cos x
\tan^2 y+1 | \sec^2 y  ¦  \binom{n}{2} | \frac{n(n-1)}{2}  ¦  \log_2 10 | \frac{\ln 10}{\ln 2}
\frac{\pi}{6} | \sin^{-1}\frac12  ¦  \frac{1}{2} | \sin 30^\circ  ¦  5 | x = 5  ¦  14 | AB=BC=14
y=2x+3 | 2x-y+3=0  ¦  f(x)=x^2+1 | x^2+1  ¦  (x,y)=(1,2) | (1, 2)  ¦  [0,1) | 0\le x<1
(-\infty,0)\cup(1,\infty) | x<0 \text{ or } x>1  ¦  x<4 | -x>-4  ¦  \{1,2,3\} | 3,2,1
3, 5 | 5\text{ and }3  ¦  2,7 | x_1=2,\ x_2=7  ¦  2\pm\sqrt{7} | 2-\sqrt7, 2+\sqrt7
\begin{pmatrix} 1 \\ -2 \end{pmatrix} | \begin{bmatrix} 1 \\ -2 \end{bmatrix}
\begin{pmatrix} 5 & 0 \\ 0 & 5 \end{pmatrix} | \left[\begin{array}{cc} 5 & 0 \\ 0 & 5 \end{array}\right]
B | \textbf{(B)}  ¦  \text{Yes} | yes  ¦  1011_2 | 1011  ¦  3:4 | 3 : 4  ¦  18446744073709551616 | 2^{64}
\infty | +∞  ¦  \emptyset | \{\}  ¦  x\le 3 | x≤3  ¦  -5 | −5  ¦  12 | \mathbf{12}  ¦  \frac{5}{6} | \frac 5 6
2^{17} | 2^17  ¦  2^{-10} | 2^-10  ¦  3.2\times10^{5} | 3.2 x 10^5  ¦  2.5\text{ million} | 2500000
\frac{3}{2} | 3\text{ halves}  ¦  36 | 6\text{ squared}  ¦  3+4\mathrm{i} | 3+4i
\frac{3}{2}\mathrm{e} | \frac{3e}{2}  ¦  3.14 | x \approx 3.14  ¦  \frac{1}{3} | x = \frac{1}{3} \approx 0.333
\frac{1}{3} | 0.333\ldots  ¦  7 | f(2) = 7  ¦  \frac14 | P(X > 2) = \frac{1}{4}  ¦  5 | \overline{AB} = 5
120^\circ | \angle A = 120^\circ  ¦  25 | P = \$25  ¦  \pi | x = \pi
e = \frac{\sqrt5}{3} | e = \frac13\sqrt5  ¦  3:8 | V_1:V_2 = 3:8  ¦  (0,5) | B = (0,5)  ¦  (1,2) | P(1,2)
A^{-1}=\begin{pmatrix}2&1\\1&1\end{pmatrix} | \begin{pmatrix}2&1\\1&1\end{pmatrix}
\frac12\begin{pmatrix}2\\4\end{pmatrix} | \begin{pmatrix}1\\2\end{pmatrix}  ¦  24 (stickers) | 24
24 (stickers) | 24\text{ stickers}  ¦  18^\circ\mathrm{C} | 18\text{ degrees Celsius}
60\text{ miles per hour} | 60 mph  ¦  1234 | x = 1,234  ¦  1200\pi | 1,200\pi  ¦  40, 150 | 40,150
\langle 3,4\rangle | (3, 4)  ¦  x^4+1 | x⁴+1  ¦  a_1+a_2 | a₁+a₂  ¦  \frac{v_0^2}{2g} | \frac{v^2_0}{2g}
1101_2 | (1101)_{2}  ¦  -3,0,3 | 0, \pm 3  ¦  \{\pm 2, \pm 5\} | 2,-2,5,-5
\ln|x+1| | \ln\left\vert x+1\right\vert  ¦  40^\circ, 60^\circ | 60^\circ, 40^\circ
6\text{ cm}, 8\text{ cm} | 8\text{ cm}, 6\text{ cm}  ¦  \{x \mid x > 2\} | (2,\infty)
x \ne -1 | (-\infty,-1)\cup(-1,\infty)  ¦  \binom{2n}{n} | \frac{(2n)!}{n!\,n!}  ¦  \text{2:45 PM} | 2:45 p.m.
yes | Yes  ¦  \sum_{k=1}^{n} k^3 | \sum_{k = 1}^{n} k^{3}  ¦  2\varepsilon | 2 \varepsilon
\frac{2018!}{2} | \frac{1}{2}\cdot 2018!  ¦  n - \lfloor n/2 \rfloor | -\lfloor \frac{n}{2} \rfloor + n
|u| | \sqrt{u^2}  ¦  x\sqrt{x} | \sqrt{x^3}  ¦  (2,-1) | x=2, y=-1
"""
WRONG = r"""
x < 3 | 3 < x  ¦  1 | ①  ¦  \bar{x} | \bar{X}  ¦  2 | \begin{vmatrix}1&2\\3&4\end{vmatrix}  ¦  2.5\cdot10^9 | 2.5 million
\frac13 | 0.\overline{33}1
42 | 420  ¦  42 | 4 2  ¦  24500 | 245 00  ¦  \frac{1}{3} | 0.3333333333  ¦  3\frac{1}{2} | \frac{3}{2}
25\% | 2500  ¦  25\% | 2.5\%  ¦  12 | 12x  ¦  12\text{ cm} | 12\text{ m}  ¦  12\text{ cm} | 12\text{ cm}^2
12\text{ cm} | cm  ¦  \$5 | 5\text{ cents}  ¦  90^\circ | 90^\circ + 1  ¦  3000 | 3\times 10 + 3
\sqrt{2} | 1.41421356237309504880168872420969807857  ¦  \pi | \frac{355}{113}  ¦  0 | 10^{-40}
10^{100} | 10^{100}+1  ¦  1 | 0.99999999  ¦  x^2-4 | (x-2)^2  ¦  |x| | x  ¦  \ln 8 | 2\ln 3  ¦  5 | 4=5
14 | x=6+8=15  ¦  x=5 | y=5  ¦  x+y=3 | 2x+2y=3  ¦  x>3 | x\ge 3  ¦  x>3 | y>3  ¦  (1,2) | [1,2]
(1,2) | 2,1  ¦  (1,4)\cup(4,9) | (1,9)  ¦  (1,2)\cup(3,4) | (1,2),(3,4)  ¦  [\frac12,1] | \{\frac12,1\}
2,3 | 2,3,3  ¦  \pm 3 | 3  ¦  5 | \pm 5  ¦  5 | 5 \text{ or } 6  ¦  5 | 5 \neq 6  ¦  5 | \{1,2,3,4,5\}
5 | x\in\mathbb{R}  ¦  5 | 5!  ¦  B | A/B/C/D  ¦  B | ABCD  ¦  A | \text{all}  ¦  \text{even} | \text{event}
312_7 | 312_8  ¦  12:30 | 12.30  ¦  \infty | -\infty  ¦  0 | \infty-\infty  ¦  0 | 0/0  ¦  0 | -  ¦  0 | ()
0 | nan  ¦  1 | True  ¦  5 | \ldots  ¦  5 | \frac{5}{0}  ¦  1 | exit(1)  ¦  5 | int('5')  ¦  5 | sum([2,3])
5 | lambda: 5  ¦  x | x.__class__  ¦  2.5\text{ billion} | 2.5 million  ¦  6 | 6\text{ squared}
7\text{ hundred} | 7\text{ thousand}  ¦  3+4\mathrm{i} | 7  ¦  6 | 6\mathrm{i}  ¦  9\mathrm{e}^2 | 9
14 | 2^17  ¦  x \approx 1.7 | x \approx 9  ¦  \frac{2}{3} \approx 0.67 | \frac{2}{3} \approx 1.67
\begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{vmatrix}1&2\\3&4\end{vmatrix}  ¦  |y| | y  ¦  \sqrt{x^2} | x
\cos x | -\sqrt{\cos^2 x}  ¦  e = \frac12 | e = \frac34  ¦  \frac49<\frac{5}{11} | \frac49<\frac{6}{11}
No | oN  ¦  ASA | AAS  ¦  XI | IX  ¦  a_{n+1} | a_{n-1}  ¦  a_{n+1}=3a_n | a_{n-1}=3a_n
\lceil \frac{n}{5} \rceil | \lfloor \frac{n}{5} \rfloor+1
\lfloor \frac{n}{3} \rfloor | \lfloor \frac{n+1}{3} \rfloor  ¦  f(2)=9 | f(3)=9  ¦  5 | f(5) = 2
\frac14 | P(X > 2) = \frac34  ¦  3 | 2x = 6  ¦  \log_4 8 = \frac32 | \log_4 80 = \frac32
24 (stickers) | 42  ¦  35,000 | 35,0000  ¦  -12_9 | -13_9  ¦  0, \pm 3 | -3, 3
\{x \mid x > 2\} | [2,\infty)  ¦  3 \pmod 7 | 4 \pmod 7  ¦  \binom{2n}{n} | \binom{2n}{n+1}
\text{2:45 PM} | 3:45 PM  ¦  \frac{1}{1999!} | \frac{1}{1998!}  ¦  \frac23, 1 | \frac23
"""
BOMBS = ["9^{9^{9^{9}}}", "9**9**9**9", "(" * 50000, "(" * 50000 + "5" + ")" * 50000, "1+" * 50000 + "1", "x^{1000000}",
         "\\binom{10^9}{5\\cdot 10^8}", "1e999999999", "10^{-10^{10}}", " " * 99000 + "5x", "1," * 50000, "\\" * 90000,
         "\\frac" * 20000, "0." + "3" * 90000, "\\exp(" * 30 + "9" + ")" * 30, "9" + "!" * 200, "\\left[" * 9999,
         "[" * 99 + "1" + "]" * 99, "0.(" + "9" * 40 + ")...", "+".join(["2400!"] * 90), "3^{99999}" * 60]

@pytest.mark.parametrize("table, verdict", [(RIGHT, 1.0), (WRONG, 0.0)])
def test_math_answers(table, verdict):
    for gold, answer in pairs_of(table):
        assert verify.math_reward(f"so \\boxed{{{answer}}}.", gold) == verdict, (gold, answer)

EXTRACTED = r"""
1 | The answer is $42$.  ¦  1 | Therefore, the final answer is \(42\).  ¦  1 | **Answer:** 42 apples
1 | **Final Answer**↵↵42  ¦  1 | The answer is 42, because 6*7=42.
1 | <think>6*7</think>↵<answer>The answer is 42</answer>  ¦  1 | #### 42 dollars  ¦  1 | #### 41↵#### 42
1 | #### Step 1↵add↵#### Step 2↵multiply↵The answer is 42.  ¦  1 | \boxed{43} or \boxed{42}
1 | \boxed {42}  ¦  1 | \boxed↵{42}  ¦  1 | \boxed{\boxed{42}}  ¦  1 | \boxed{42}↵#### 43
1 | <think>\boxed{41}</think> The answer is 42.  ¦  1 | <think>\boxed{42}</think> Done.
0 | <think>\boxed{42}</think> The answer is 41.  ¦  0 | #### 42↵#### 43  ¦  0 | It is 42.  ¦  0 |
0 | The answer is 42 or 43.  ¦  0 | The answer is 142.  ¦  0 | \boxed{42} or \boxed{43}
0 | \boxed{42} \boxed{  ¦  0 | \boxed{42  ¦  0 | \boxed{}  ¦  0 | The answer is between 41 and 43.
0 | \boxed{\text{answer}}
"""

def test_one_final_answer_is_extracted():
    for verdict, _, response in (line.partition(" |") for line in cases(EXTRACTED)):
        assert verify.math_reward(response.replace("↵", "\n"), "42") == float(verdict), response

def test_any_answer_of_a_list_is_right():
    for gold, verdict in ((["10", "ten"], 1.0), (("11", "10.0"), 1.0), (["11"], 0.0), ([], 0.0)):
        assert verify.math_reward("\\boxed{10}", gold) == verdict

def test_an_empty_gold_never_rewards():
    for response, gold in itertools.product(["\\boxed{}", "", "#### ", "\\boxed{5}"], ["", " ", "\\boxed{}", None]):
        assert verify.math_reward(response, gold) == 0.0

def test_odd_arguments_get_nothing():
    for odd in (None, 5, b"x", ["7*3=21"], {}, "\x00", "\ud800"):
        assert verify.math_reward(odd, "7") == verify.math_reward("\\boxed{7}", odd or None) == 0.0
        assert verify.countdown_reward(odd, [3, 5, 7], 26) == 0.0
        assert verify.countdown_reward("7*3=21,21+5=26", odd, 26) == 0.0
        assert verify.countdown_reward("7*3=21,21+5=26", [3, 5, 7], odd) == 0.0

def test_bombs_are_refused():
    """By bounds, not by a time-out: each of these would run for hours or exhaust the stack if it were computed."""
    for bomb, gold in itertools.product(BOMBS, ["5", "\\frac{1}{3}", "x"]):
        for response in (f"\\boxed{{{bomb}}}", f"#### {bomb}", f"the answer is {bomb}", bomb, "\\boxed{" * 9999 + bomb):
            assert verify.math_reward(response, gold) == 0.0

def random_expression(rand, depth):
    """(LaTeX, value) of a random expression with an exact value."""
    if depth == 0:
        n = rand.randint(0, 12)
        return str(n), Fraction(n)
    (a, x), (b, y) = random_expression(rand, depth - 1), random_expression(rand, rand.randrange(depth))
    kind = rand.choice("+-*/^")
    if kind == "/" and y:
        return f"\\frac{{{a}}}{{{b}}}", x / y
    if kind == "^":
        return f"({a})^{{2}}", x**2
    return {"+": (f"({a}+{b})", x + y), "-": (f"({a}-{b})", x - y)}.get(kind, (f"({a})\\cdot({b})", x * y))

def test_math_fuzz_accepts_equal_values_only():
    rand = random.Random(0)
    for _ in range(400):
        text, value = random_expression(rand, rand.randint(1, 3))
        for gold in (value, value + 1, value + Fraction(1, 10**9), -value, value * 2):
            verdict = verify.math_reward(f"\\boxed{{{text}}}", f"{gold.numerator}/{gold.denominator}")
            assert verdict == (gold == value), (text, gold)

def test_math_fuzz_never_raises():
    rand, pieces = random.Random(1), r"""\frac \sqrt \sin \ln \log_ \pi \infty \binom \lfloor \rfloor \cup \pm \in \text{
        \begin{pmatrix} \end{pmatrix} & \\ { } ( ) [ ] | ^ _ ! % , ; : = < > + - * / x e i 0 2 99 0.5 1e9 ⟨ ⟩ and \boxed{
        \$ cm ° √ ½ ** \left \approx \mid ² ₁ million (cm) 2:45 p.m. ... \prime a_{n-1}""".split()
    for _ in range(3000):
        text = rand.choice(("", " ")).join(rand.choices(pieces, k=rand.choice((2, 5, 12, 40))))
        gold = rand.choice(("5", "x+1", "(1,2)", "x>3", "25\\%", text))
        assert verify.math_reward(f"\\boxed{{{text}}}", gold) in (0.0, 1.0)

COUNTDOWN = """
8 3 8 3 | 24 | 1 | 8/(3-8/3)  ¦  3 5 2 | 16 | 1 | 2*(3+5)  ¦  20 4 5 | 1 | 1 | 20/4/5
2 3 | 6 | 1 |  3 * 2 = 6  ¦  3 5 2 | 4 | 1 | -3+5+2  ¦  6 2 5 | 15 | 1 | $6/2*5$  ¦  12 4 3 | 0 | 1 | 12/4-3
5 5 | 10 | 1 | 5+5  ¦  7 6 2 | 40 | 1 | 7 * 6↵- 2  ¦  48 6 | 8 | 1 | 48 ÷ 6  ¦  20 5 | 15 | 1 | 20 − 5
3 5 2 | 16 | 0 | 16  ¦  3 5 2 | 16 | 0 | 2*3+5  ¦  3 5 2 | 16 | 0 | 2*(3+5)+0  ¦  5 | 5 | 0 | 5-5+5
5 5 | 5 | 0 | 5  ¦  1 3 | 1000 | 0 | 1e3  ¦  1 5 2 | 3 | 0 | 1.5*2  ¦  5 3 | 8 | 0 | 05+3
3 5 | 8 | 0 | ３+5  ¦  1 2 | 12 | 0 | 1 2  ¦  1 2 | 12 | 0 | 1↵2  ¦  2 3 | 8 | 0 | 2**3
7 2 1 | 4 | 0 | 7//2+1  ¦  9 5 | 4 | 0 | 9%5  ¦  1 3 | 8 | 0 | 1<<3  ¦  5 3 | 0 | 0 | 5/(3-3)
1 2 | 3 | 0 | (1+2  ¦  1 2 | 3 | 0 |  ¦  1 2 4 1 | 3 | 0 | 1+2=4-1  ¦  1 2 | 3 | 0 | 1+2 or 9
3 5 | 8 | 0 | 3--5  ¦  3 5 | 8 | 0 | 3+(+5)  ¦  1 1000000 5 | 5 | 0 | 5+1/1000000
3 | 3 | 0 | __import__('os').system('x') or 3
"""

def test_countdown_answers():
    for line in cases(COUNTDOWN):
        numbers, target, verdict, answer = line.split("|", 3)
        response = f"<answer>1</answer> Let me see. <answer>{answer[1:]}</answer>".replace("↵", "\n")
        assert verify.countdown_reward(response, numbers.split(), int(target)) == float(verdict), line

def test_countdown_steps_of_the_demo():
    for response in ("7*3=21,21+5=26", "7*3=21,5+21=26", " 7*3=21,21+5=26\n"):
        assert verify.countdown_reward(response, [3, 5, 7], 26) == 1.0
    for response in ("7*3=21,21+5=27", "7*3=21", "21+5=26", "7*3=20,20+5=26", "7*3=21,21+5=26,26/26=1", "",
                     "7+7=14,14+12=26", "7*3=21,,21+5=26", "26", "7*3=21,21+5=26<eos>", "<answer>1",
                     "9**9=1,1+1=2", "7/3=2,21+5=26"):
        assert verify.countdown_reward(response, [3, 5, 7], 26) == 0.0, response

def test_countdown_fuzz_agrees_with_its_twin():
    """Random expressions over the given numbers: the twin is Python's own arithmetic on fractions."""
    rand = random.Random(2)
    for _ in range(500):
        numbers = [rand.randint(1, 9) for _ in range(3)]
        parts = [f"Fraction({n})" for n in rand.sample(numbers, 3)]
        while len(parts) > 1:
            a, b = (parts.pop(rand.randrange(len(parts))) for _ in range(2))
            parts.append(f"({a}{rand.choice('+-*/')}{b})")
        try:
            value = eval(parts[0])
        except ZeroDivisionError:
            value = None
        for target in {0, 1, value if value is not None and value.denominator == 1 else 5}:
            text = f"<answer>{parts[0].replace('Fraction', '')}</answer>".replace("(", "( ")
            text = re.sub(r"\( (\d)\)", r"\1", text)
            assert verify.countdown_reward(text, numbers, int(target)) == (value == target), text

SQUARE = ["assert sq(3) == 9", "assert sq(-4) == 16", "assert sq(0) == 0"]
SUM_IO = dict(inputs=["1 2\n", "10 -3\n", "0 0\n"], outputs=["3\n", "7\n", "0\n"])
GOOD_CODE = [
    (SQUARE, "def sq(x):\n    print('PASS')\n    return x * x"),
    (["assert total(12, 18) == 30\nfor i in range(3):\n    assert total(i, i) == 2 * i"], "total = lambda a, b: a + b"),
    (["assert sum(12, 18) == 6"], "def sum(a, b):\n    return b - a"),  # the task's name is a builtin's
    (["assert gcd(4, 6) == 2"], "def gcd(a, b):\n    return gcd(b, a % b) if b else a"),  # or a library's
    (["assert Box(2).add(3) == 5", "b = Box(1)\nassert b.n == 1 and list(b.count()) == [0]"],
     "class Box:\n    def __init__(self, n): self.n = n\n    def add(self, k): return self.n + k\n"
     "    def count(self):\n        yield from range(self.n)"),
    (["assert Solution().twice([1]) == [2]"],
     "class Solution:\n    def twice(self, nums: List[int]) -> List[int]:\n        return [2 * x for x in nums]"),
    (["def check(f):\n    assert f([1, 2]) == 3\ncheck(add_up)"], "def add_up(a):\n    return sum(a)"),
    (["assert f() == ({(0, 1): 'a'}, frozenset({1}), 3 + 4j, b'x', None, True, 1.5)"],
     "def f():\n    return {(0, 1): 'a'}, frozenset([1]), 3 + 4j, b'x', None, True, 1.5"),
    (["assert f('abca') == {'a': 2, 'b': 1, 'c': 1}"], "from collections import Counter as f"),
    (["assert f(90) == 2880067194370816120"],
     "from functools import lru_cache\n@lru_cache(None)\ndef f(n):\n    return n if n < 2 else f(n-1) + f(n-2)"),
    (["try:\n    f(-1)\nexcept ValueError:\n    pass\nelse:\n    assert False"], "def f(x):\n    raise ValueError(x)"),
    (["import math\nassert math.isclose(f(3, 4), 5)"], "import math\ndef f(a, b):\n    return math.hypot(a, b)"),
    (["assert isclose(half(3), 1.5)"], "from math import isclose\ndef half(x):\n    return x / 2"),
    (["assert price(1) == 2.5"], "from decimal import Decimal\ndef price(x):\n    return Decimal('2.50')"),
    (["assert decode(encode('ab')) == 'ab'"], "encode = lambda s: s[::-1]\ndecode = lambda s: s[::-1]")]
SEARCH = ("        try:\n            s = open(p, errors='ignore').read()\n        except OSError:\n            continue\n"
          "        if f'assert sq({x}) == ' in s:\n            return int(s.split(f'assert sq({x}) == ')[1].split()[0])\n")
BAD_CODE = [
    "def sq(x):\n    return 2 * x", "pass", "def sq(x):\n    return sq(x)", "import os\ndef sq(x):\n    os._exit(0)",
    "def sq(x):\n    quit()",
    "class E(int):\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n    __hash__ = int.__hash__\n"
    "def sq(x):\n    return E(7)",
    "class E:\n    __eq__ = lambda s, o: True\n    __bool__ = lambda s: True\ndef sq(x):\n    return E()",
    "import builtins, sys\nbuiltins.AssertionError = type('Quiet', (Exception,), {})\nsys.excepthook = print\n"
    "def sq(x):\n    return -1",
    "import atexit, os\natexit.register(os._exit, 0)\nprint('PASS')\nimport sys\nsys.exit(0)",
    "import os\nfor fd in range(1, 64):\n    try:\n        os.write(fd, b'PASS\\n')\n    except OSError:\n        pass\n"
    "os._exit(0)",
    "import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, b'[\"value\", [\"int\", \"0x9\"]]\\n' * 9)\n"
    "    except OSError:\n        pass\ndef sq(x):\n    return 1",
    "import gc, inspect\nT = {}\ndef sq(x):\n    for o in gc.get_objects():\n        if isinstance(o, str) and 'assert sq' in o:"
    "\n            return eval(o.split('==')[1])\n    return inspect.stack()[1].frame.f_locals.get('expected', -1)",
    "import glob\ndef sq(x):\n    for p in glob.glob('/proc/[0-9]*/cmdline') + glob.glob('/proc/[0-9]*/environ') + "
    f"glob.glob('./*'):\n{SEARCH}    return -1",
    "class P:\n    def __reduce__(self):\n        import os\n        return os.system, ('touch PWNED',)\n"
    "    __repr__ = lambda s: '9'\ndef sq(x):\n    return P()",
    "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\ndef sq(x):\n    return -1"]

def fenced(code):
    return f"First try:\n```python\nwrong\n```\nNow:\n```python\n{code}\n```\nDone."

def left_over():
    """Processes that graders or solutions of this file's verify.py started and that still live."""
    lines = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            lines.append(Path(path).read_bytes())
        except OSError:  # it has just ended
            pass
    here = f"sys.path.append({str(HERE)!r})".encode()
    return [line for line in lines if here in line or b"LEFT_OVER" in line]

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")

@pytest.fixture(params=["namespaces", "plain"])
def sandbox(request, monkeypatch):
    """With and without namespaces."""
    if request.param == "namespaces" and not verify.sandbox():
        pytest.skip("unshare does not work here")
    monkeypatch.setattr(verify, "sandbox", lambda: verify.UNSHARE if request.param == "namespaces" else [])

def verdicts_of(pairs):
    return verify.verify_batch(lambda code, tests: verify.code_reward(fenced(code), tests=tests),
                               [(code, tests) for tests, code in pairs])[0]

@linux
def test_good_code_passes(sandbox):
    assert verdicts_of(GOOD_CODE) == [1.0] * len(GOOD_CODE)

@linux
def test_bad_code_fails_and_leaves_nothing(sandbox, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert verdicts_of([(SQUARE, code) for code in BAD_CODE]) == [0.0] * len(BAD_CODE)
    assert not left_over() and not list(tmp_path.iterdir())

@linux
def test_a_solution_does_not_replace_what_judges_it():
    always = "lambda *a, **k: True"
    for test, code in (
            ("assert len(primes(100)) == 25", "def primes(n):\n    return []\ndef len(x):\n    return 25"),
            ("assert abs(max([1, 2]) - 2) < 1", "def max(x):\n    return 9\ndef abs(x):\n    return 0"),
            ("assert math.isclose(f(), 1)", f"class math:\n    isclose = staticmethod({always})\ndef f():\n    return 5"),
            ("assert np.allclose(f(), 1)", f"class np:\n    allclose = staticmethod({always})\ndef f():\n    return 5"),
            ("assert isclose(f(), 1)", f"isclose = {always}\ndef f():\n    return 5"),
            ("assert Counter(f()) == Counter([1])", "class Counter(int):\n    pass\ndef f():\n    return 1"),
            ("assert set(primes(9)) == {2, 3, 5, 7}",
             "import builtins\nbuiltins.set = lambda x: {2, 3, 5, 7}\ndef primes(n):\n    return []"),
            ("def check(f):\n    assert f(2) == 4\ncheck(sq)", "def check(f):\n    pass\ndef sq(x):\n    return 0")):
        assert verify.code_reward(fenced(code), tests=[test]) == 0.0, code

@linux
def test_programs_by_their_output():
    look = "try:\n        print(open(p).read())\n    except OSError:\n        pass"
    for code, verdict in (
            ("a, b = map(int, input().split())\nprint(a + b)", 1),
            ("import sys\nprint(sum(map(int, sys.stdin.read().split())), end=' ')\nsys.exit(0)", 1),
            ("import threading\nthreading.stack_size(1 << 26)\ndef main():\n    print(sum(map(int, input().split())))\n"
             "t = threading.Thread(target=main)\nt.start()\nt.join()", 1),
            ("print(3)", 0), ("a, b = map(int, input().split())\nprint('The sum is', a + b)", 0),
            ("print(sum(map(int, input().split())))\nraise SystemExit(1)", 0), ("print('x' * 10**8)", 0),
            (f"import glob\nfor p in glob.glob('*') + glob.glob('../*'):\n    {look}", 0)):
        assert verify.code_reward(fenced(code), **SUM_IO) == verdict, code
    lines = "n = int(input())\nprint(sum(map(int, input().split())))"
    assert verify.code_reward(fenced(lines), inputs=[["2", "3 4"]], outputs=["7"]) == 1.0

@linux
def test_many_cases_have_a_limit_each(monkeypatch):
    """Seven cases of a second each are more than the limit of one."""
    code = "import time\nn = int(input())\ntime.sleep(0.35)\nprint(n)"
    script = (f"import sys, verify\nverify.TIME_LIMIT = 1\nsys.argv\n"
              f"task = dict(code={code!r}, inputs=list(map(str, range(4))), outputs=list(map(str, range(4))), tests=None, prefix=[])\n"
              "import io, json, types\nsys.stdin = types.SimpleNamespace(buffer=io.BytesIO(json.dumps(task).encode()))\n"
              "verify.grade()")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=HERE, timeout=60)
    assert done.stdout == "PASS\n"

FENCES = [("```\n{}\n```", 1), ("```python title=\"a.py\"\n{}\n```", 1), ("```{.python .numbers}\n{}\n```", 1),
          ("````python\n{}\nx = '''\n```\n'''\n````", 1), ("~~~python\n{}\n~~~", 1), ("```Python3\n{}\n```", 1), ("```py\r\n{}\r\n```", 1),
          ("<think>\n```python\nx\n```\n</think>\n```python\n{}\n```", 1), ("```python\n{}\n    # use ``` carefully\n```", 1),
          ("```python\ndef g():\n    '''\n    ```\n    x\n    ```\n    '''\n{}\n```", 1),
          ("{}", 0), ("```python\n{}", 0), ("```rust\n{}\n```", 0), ("```python\n```", 0), ("", 0)]

@linux
@pytest.mark.parametrize("form, verdict", FENCES)
def test_the_last_fenced_block_is_the_code(form, verdict):
    code = "def sq(x):\n    return x * x"
    assert verify.code_reward(form.replace("{}", code), tests=SQUARE[:1]) == verdict

@linux
def test_an_indented_block_and_tests_that_cannot_fail():
    block = "1. First\n\n   ```python\n   def sq(x):\n       return x * x\n   ```\n"
    assert verify.code_reward(block, tests=SQUARE) == 1.0
    for tests in ([], ["10"], ["x = 3", "'assert'"], ["def ("]):  # accepted answers are no tests
        assert verify.code_reward(block, tests=tests) == 0.0

LIMITS = {
    "time": "import time\ndef f():\n    time.sleep(60)\n    return 1",
    "processor time": "def f():\n    while True:\n        pass",
    "memory": "def f():\n    b = bytearray(3 << 29)\n    return 1",
    "file size": "def f():\n    with open('big', 'wb') as file:\n        for _ in range(64):\n"
                 "            file.write(bytes(1 << 20))\n    return 1",
    "open files": "def f():\n    files = [open('/dev/null') for _ in range(200)]\n    return 1",
    "message": "def f():\n    return 'x' * (20 << 20)",
    "a process that stays": "import os, sys, subprocess\ndef f():\n    subprocess.Popen([sys.executable, '-c', 'import time; "
                            "LEFT_OVER = time.sleep(60)'], start_new_session=True)\n    os._exit(0)"}

@linux
def test_each_limit_is_hit(sandbox):
    assert verdicts_of([(["assert f() == 1"], code) for code in LIMITS.values()]) == [0.0] * len(LIMITS)
    assert not left_over()

@linux
def test_a_solution_has_no_network_in_its_namespace():
    if not verify.sandbox():
        pytest.skip("unshare does not work here")
    code = "import socket\ndef f():\n    return [name for _, name in socket.if_nameindex()]"
    assert verify.code_reward(fenced(code), tests=["assert f() == ['lo']"]) == 1.0

def test_batch_keeps_the_order():
    def slow_first(response, answer):
        time.sleep(0.2 if response == "0" else 0)
        return int(response) % 2

    assert verify.verify_batch(slow_first, [(digit, None) for digit in "0123"]) == ([0.0, 1.0, 0.0, 1.0], {})

def test_a_reward_that_raises_hangs_or_is_no_number_is_reported():
    def reward(response):
        if response == "exit":
            sys.exit("bye")
        if response == "hang":
            time.sleep(3)
        return {"nan": math.nan, "inf": -math.inf, "none": None}.get(response, 1 / max(0, len(response)))

    rewards, errors = verify.verify_batch(reward, [("a",), ("",), ("exit",), ("bb",), ("nan",), ("inf",)])
    assert rewards[::3] == [1.0, 0.5] and all(map(math.isnan, rewards[1:3] + rewards[4:]))
    assert {i: type(error) for i, error in errors.items()} == {
        1: ZeroDivisionError, 2: SystemExit, 4: ValueError, 5: ValueError}
    with pytest.raises(TimeoutError, match="'hang'"):
        verify.verify_batch(reward, [("a",), ("hang",), ("b",)], patience=0.3)

def test_what_is_judged_can_be_shown():
    assert verify.extract("math", "so \\boxed{4} it is") == "4" and verify.extract("math", "so 4") is None
    assert verify.extract("countdown", "Hm. <answer>1+2</answer>") == "1+2"
    assert verify.extract("countdown", "1+2=3") == "1+2=3"
    assert verify.extract("code", "Here:\n```python\nx = 1\n```\n") == "x = 1"

def test_math_is_safe_in_threads():
    answers = [(f"\\boxed{{{answer}}}", gold) for gold, answer in pairs_of(RIGHT) + pairs_of(WRONG)] * 5
    verify.parse.cache_clear()
    alone = [verify.math_reward(*case) for case in answers]
    verify.parse.cache_clear()
    assert verify.verify_batch(verify.math_reward, answers)[0] == alone and 0 < sum(alone) < len(alone)

def test_code_elsewhere_is_a_clear_error(monkeypatch):
    verify.sandbox.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RuntimeError, match="Linux only"):
        verify.code_reward(fenced("x"), tests=["x"])

# ------------------------------------------------------------------------------------------- the whole thing

METRICS = re.findall(r"`([\w]+)`", re.search(r"\| in `metrics.jsonl`.*?\n\n", (HERE / "README.md").read_text(), re.S)[0])
SHORT = "--steps 4 --prompts_per_step 4 --group_size 4 --num_prompts 40 --eval_prompts 8 --eval_samples 4"
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, HERE / "rlvr.py"]

@pytest.fixture(scope="session")
def short(folders):
    """Flags of a run of seconds. The hasty demo never solves a problem, so the reward is one that it can get."""
    return f"--model {folders / 'demo'} --reward {folders / 'own.py'}:odd {SHORT}"

@pytest.fixture(scope="session")
def run(short, tmp_path_factory):
    """Such a run on the command line."""
    out = tmp_path_factory.mktemp("runs") / "short"
    argv = command(sys.executable, HERE / "rlvr.py", "--output_dir", out, short)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(out=out, stdout=done.stdout, screen=done.stdout + done.stderr)

def test_command_line_run_leaves_files_that_others_open(run, folders):
    metrics, samples = read_lines(run.out / "metrics.jsonl", drop="-"), read_lines(run.out / "samples.jsonl")
    assert [m["step"] for m in metrics] == [0, 1, 2, 3] and len(METRICS) > 30
    assert all(set(m) == set(METRICS) for m in metrics)  # the README's glossary has all of them and no other
    assert all(m["logp_gap"] < 1e-3 and m["ratio_gap"] < 1e-3 for m in metrics)
    assert [m["lambda"] for m in metrics] == pytest.approx([0, 0.1, 0.2, 0.3])  # entropy stays over the target here
    assert {s["step"] for s in samples} == {0, 1, 2, 3}
    assert {"prompt", "response", "reward", "advantage", "finish_reason", "entropy", "tokens"} <= set(samples[0])
    summary = json.loads((run.out / "summary.json").read_text())
    assert {"before", "after", "seconds", "steps", "command", "torch"} <= set(summary)
    assert {"avg@4", "pass@1", "pass@2", "pass@4", "ece"} < set(summary["after"])
    assert not torch.equal(weights(run.out / "final"), weights(folders / "demo"))
    assert not (run.out / "final" / "trainer.pt").exists()  # which only a checkpoint has
    assert json.loads((run.out / "config.json").read_text())["prompts_per_step"] == 4
    speed = json.loads(run.stdout.splitlines()[-1])  # the last line of every run
    assert speed == summary["speed"] and all(value > 0 for value in speed.values())
    assert "held-out prompts" in run.screen and "Warning" not in run.screen and "Traceback" not in run.screen

def test_same_seed_same_run_and_resume_is_exact(run, short, tmp_path, monkeypatch):
    """Stop after two steps in the way that a signal does, resume, and compare with the run that nobody stopped."""
    out, schedule = tmp_path / "run", rlvr.next_pos_weight

    def signal_at_step_1(c, step, *rest):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return schedule(c, step, *rest)

    monkeypatch.setattr(rlvr, "next_pos_weight", signal_at_step_1)
    message = message_of("--output_dir", out, short)
    assert "stopped after step 1" in message and f"--resume {out}" in message
    monkeypatch.undo()
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "reward": 9}\n{"step": 3, "half a li')  # what a crash may leave
    rlvr.main(["--resume", str(out)])
    for file in ("metrics.jsonl", "samples.jsonl"):
        assert read_lines(out / file) == read_lines(run.out / file)
    assert torch.equal(weights(out / "final"), weights(run.out / "final"))
    assert "another --lr" in message_of("--output_dir", out, short, "--lr 0.5")
    assert "the folder around it" in message_of("--resume", out / "checkpoint-000004")
    assert "another --lr" in message_of("--resume", out, "--lr 0.5") and "done 4" in message_of("--resume", out, "--steps 3")
    for mine in ("checkpoint-best", "checkpoint-000002-keep"):
        (out / mine).mkdir()
    rlvr.main(command("--resume", out, "--steps 5"))
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-000002-keep", "checkpoint-000005", "checkpoint-best"]
    assert [m["step"] for m in read_lines(out / "metrics.jsonl")] == [0, 1, 2, 3, 4]

def test_a_folder_with_anything_else_is_refused(folders, short):
    before = weights(folders / "qwen")
    for name in ("qwen", ""):  # a model's own config.json; other files
        assert "holds" in message_of("--output_dir", folders / name, short)
    assert torch.equal(weights(folders / "qwen"), before)

@linux
def test_two_runs_do_not_share_a_folder(short, tmp_path):
    import fcntl
    (tmp_path / "run").mkdir()
    lock = os.open(tmp_path / "run", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    assert f"process {os.getpid()} writes there" in message_of("--output_dir", tmp_path / "run", short)
    os.close(lock)
    assert len(go(tmp_path / "run", short)) == 4

def test_equal_rewards_teach_nothing_but_an_entropy_bonus_does(folders, tmp_path):
    flags = f"--model {folders / 'demo'} --preset grpo --reward {folders / 'own.py'}:same {SHORT}"
    go(tmp_path / "plain", flags)
    assert torch.equal(weights(tmp_path / "plain" / "final"), weights(folders / "demo"))
    log = go(tmp_path / "bonus", flags, "--lr 1e-3 --reuse 4 --entropy_bonus 0.5 --bonus_delta 0")
    assert all(m["zero_adv"] == 1 and m["dH"] > 0 for m in log)

def test_kl_penalty_holds_the_policy(short, tmp_path):
    """All tokens penalised, heavily: over many passes the policy stays closer to the one that sampled."""
    moved = {}
    for penalty in (0, 100):
        flags = f"--preset grpo --eps_high inf --eps_low inf --reuse 8 --cov_share {bool(penalty) * 1} --lr 3e-3"
        log = go(tmp_path / str(penalty), short, flags, f"--cov_penalty {penalty}")
        moved[penalty] = sum(m["ratio_pos"] - m["ratio_neg"] for m in log)
    assert 0 < moved[100] < 0.5 * moved[0]

def test_two_processes_make_the_same_run(run, short, tmp_path):
    """The work is split and the run is the same: rollouts, losses, gradients, lambda, weights."""
    out = tmp_path / "run"
    done = subprocess.run(command(*LAUNCHER, "--output_dir", out, short), capture_output=True, text=True, timeout=300,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out prompts") == 1  # one process speaks
    for a, b in zip(read_lines(run.out / "metrics.jsonl"), read_lines(out / "metrics.jsonl"), strict=True):
        assert all(a[k] == pytest.approx(b[k], abs=1e-5) for k in a)
    one, two = ([(s["response"], s["reward"]) for s in read_lines(f / "samples.jsonl")] for f in (run.out, out))
    assert one == two
    assert torch.allclose(weights(run.out / "final"), weights(out / "final"), atol=1e-5)

def test_the_same_command_again_skips_or_continues(run, short, tmp_path, monkeypatch, capsys):
    """So that a shell loop over many runs goes on after an interruption."""
    out = tmp_path / "run"

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(rlvr, "evaluate", killed)  # before the first step
    assert "interrupted" in message_of("--output_dir", out, short)
    monkeypatch.undo()
    assert go(out, short) == read_lines(run.out / "metrics.jsonl")
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    go(out, short)
    assert "this run is finished" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in out.rglob("*")}

def test_few_prompts_come_back_within_a_step(folders, tmp_path):
    """16 prompts at 64 a step, as the comparison of data sizes needs: all held-out prompts are still there."""
    train, held_out = rlvr.load_problems(config(folders / "demo", "--num_prompts 16"),
                                         rlvr.load_policy(config(folders / "demo")))
    assert len(train) == 16 and len(held_out) == 256
    go(tmp_path / "run", f"--model {folders / 'demo'} --reward {folders / 'own.py'}:odd --num_prompts 3",
       "--prompts_per_step 8 --group_size 4 --steps 1 --eval_prompts 0 --log_samples 32")
    samples = read_lines(tmp_path / "run" / "samples.jsonl")
    assert len({s["prompt"] for s in samples}) == 3 and len({s["response"] for s in samples}) > 20

def fake_run(folder, flags, values, steps=9, **more):
    """The files of a finished run with these held-out values after training."""
    c = rlvr.parse_config(command(flags))
    names = ("entropy", "distinct", "diversity", "ece", "overconfidence", "length", "truncated", "ungraded")
    before = dict.fromkeys(["avg@32", *(f"pass@{2**i}" for i in range(6)), *names], 0.5) | {"intervals": {}}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(c)))
    (folder / "summary.json").write_text(json.dumps({"before": before, "after": before | values} | more))
    write_lines(folder / "metrics.jsonl", [
        {"step": i, "reward": 0.1, "solved": 0.2, "lambda": 1.0, "entropy": c.target_entropy + 0.1 * (i < 6),
         "dH_pos": -0.1 * i, "dH_neg": 0.0, "dH": -0.01 * i} for i in range(steps)])

FORKSERVER = multiprocessing.get_context("forkserver")

def killed_at(moment, flags):
    """Run in a child process and kill it after so many seconds; its exit code, None if it was still running."""
    child = FORKSERVER.Process(target=rlvr.main, args=(flags,))
    child.start()
    child.join(moment)
    code = child.exitcode
    child.kill()
    child.join()
    return code

def test_killed_at_any_moment_the_run_ends_the_same(short, tmp_path, monkeypatch):
    """SIGKILL at ten random moments, again and again resumed, against a run that nobody disturbed."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    FORKSERVER.set_forkserver_preload(["rlvr"])  # so that a start takes no seconds, and no thread is forked
    flags, calm = command(short, "--steps 10 --save_every 2 --reuse 2"), tmp_path / "calm"
    killed_at(100, ["--report", "nothing"])  # starts the server
    began = time.perf_counter()
    assert killed_at(100, [*flags, "--output_dir", str(calm)]) == 0
    whole = time.perf_counter() - began
    rand, kills, code, folder = random.Random(0), 0, None, tmp_path / "killed"
    while kills < 10 or code is None:
        resume = (folder / "config.json").exists() and kills % 2  # else the same command goes on by itself
        again = ["--resume", str(folder)] if resume else [*flags, "--output_dir", str(folder)]
        code = killed_at(rand.uniform(0.05, 0.5) * whole if kills < 10 else 100, again)
        kills += code is None
        if code is not None:
            assert code == 0
            for file in ("metrics.jsonl", "samples.jsonl"):
                assert read_lines(folder / file) == read_lines(calm / file)
            assert torch.equal(weights(folder / "final"), weights(calm / "final"))
            assert not list(folder.glob(".*"))  # no half-written folder stays
            folder = tmp_path / f"killed{kills}"

@linux
def test_a_full_disk_keeps_the_last_checkpoint(short, tmp_path):
    """The limit on the size of a file stands in for the disk: checkpoints grow past it at step 2."""
    script = ("import resource, sys, rlvr\nsave = rlvr.Policy.save\ndef smaller(self, folder, **state):\n"
              "    if '2' in folder.name: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
              "    save(self, folder, **state)\nrlvr.Policy.save = smaller\nrlvr.main(sys.argv[1:])")
    argv = [sys.executable, "-c", script, *command(short, "--save_every 1 --output_dir", tmp_path / "run")]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=HERE, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "checkpoint-000002 cannot be written" in done.stderr.splitlines()[-1]
    assert [path.name for path in (tmp_path / "run").glob("*checkpoint*")] == ["checkpoint-000001"]
    rlvr.main(["--resume", str(tmp_path / "run")])
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 4

def test_a_process_that_dies_ends_them_all(short, tmp_path):
    """And the run goes on from its checkpoint."""
    mark, out = tmp_path / "died", tmp_path / "run"
    (tmp_path / "deadly.py").write_text(
        f"import os, pathlib\ncalls, mark = [], pathlib.Path({str(mark)!r})\ndef odd(response, answer):\n"
        "    calls.append(1)\n    if os.environ.get('RANK') == '1' and len(calls) > 25 and not mark.exists():\n"
        "        mark.write_text('')\n        os._exit(3)\n    return len(response) % 2\n")
    argv = command(*LAUNCHER, short, f"--save_every 1 --reward {tmp_path / 'deadly.py'}:odd --output_dir {out}")
    done = subprocess.run(argv, capture_output=True, timeout=100, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode != 0 and mark.exists()
    assert 0 < len(read_lines(out / "metrics.jsonl")) < 4
    rlvr.main(["--resume", str(out)])
    assert [m["step"] for m in read_lines(out / "metrics.jsonl")] == [0, 1, 2, 3]

def test_empty_responses_and_prompts_that_fill_the_context(folders, tmp_path, monkeypatch):
    """Every response is only a stop token; the prompts are as long as they may be; there is one of them."""
    policy = rlvr.load_policy(config(folders / "qwen", "--max_prompt_tokens 100 --max_new_tokens 4"))
    file, size, length = tmp_path / "one.jsonl", 0, 40
    while size < 251:  # the longest question that fits the 252 tokens
        length += 1
        row = {"question": "x " * length, "answer": "2"}
        size = len(rlvr.make_problem(row, ("question", "answer"), policy, config(folders / "qwen", "--max_prompt_tokens 999")).ids)
    write_lines(file, [row])
    sample = rlvr.sample

    def stop_at_once(policy, prompts, uniforms, temperature):
        tokens, lengths, finished, logp, entropy = sample(policy, prompts, uniforms, temperature)
        tokens[:, 0], lengths[:], finished[:] = policy.stop_ids[0], 1, True
        responses = [row[:1] for row in tokens.tolist()]
        prompts = [p for p in prompts for _ in range(len(tokens) // len(prompts))]
        with torch.no_grad():
            logp[:, :1], entropy[:, :1], _ = rlvr.score(policy, prompts, responses, temperature)
        return tokens, lengths, finished, logp, entropy

    monkeypatch.setattr(rlvr, "sample", stop_at_once)
    flags = f"--model {folders / 'qwen'} --dataset {file} --max_new_tokens 4 --steps 2 --eval_prompts 1 --prompts_per_step 4"
    for m in go(tmp_path / "run", flags, f"--max_prompt_tokens {size}"):
        assert m["length"] == 1 and m["zero_adv"] == 1 and m["reward"] == 0 and m["loss"] == 0
    assert "no usable prompt" in message_of(flags, f"--output_dir {tmp_path / 'none'} --max_prompt_tokens {size - 1}")

def test_code_that_comes_with_a_model_is_not_run(folders, tmp_path):
    shutil.copytree(folders / "qwen", tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "config.json").read_text())
    saved |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(saved))
    (tmp_path / "model" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "no whole model" in message_of("--model", tmp_path / "model", "--output_dir", tmp_path / "run")
    assert not (tmp_path / "ran").exists()

def test_warnings_that_teach():
    c = rlvr.parse_config([])
    fine = dict(step=9, zero_adv=0.2, entropy=0.3, clip_pos=0.01, clip_neg=0.02, truncated=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rlvr.warn_if_useless(c, fine, 0.3)
        rlvr.warn_if_useless(c, fine | dict(step=1, clip_pos=0, clip_neg=0), 0.3)  # the warm-up moves little
    for change, words in ((dict(zero_adv=0.8), "--group_size"), (dict(entropy=0.02), "collapsed"),
                          (dict(entropy=0.7), "--lr"), (dict(clip_pos=0, clip_neg=0), "--reuse"),
                          (dict(truncated=0.3), "--max_new_tokens")):
        with pytest.warns(UserWarning, match=words):
            rlvr.warn_if_useless(c, fine | change, 0.3)

def test_show_prints_rollouts(run, tmp_path, capsys):
    rlvr.main(["--show", str(run.out)])
    text, samples = capsys.readouterr().out, [s for s in read_lines(run.out / "samples.jsonl") if s["step"] == 3]
    assert text.count("step 3\n") == len(samples) and "\033" not in text
    assert all(s["prompt"] + "".join(s["tokens"]) in text for s in samples)
    assert f"extracted {samples[0]['extracted']!r}" in text
    samples[0]["tokens"][0] = "\033[2J"  # what would clear the screen
    with open(write_lines(tmp_path / "samples.jsonl", samples), "a") as file:
        file.write('{"step": 4, "half')  # a line that is being written
    rlvr.main(["--show", str(tmp_path)])
    assert "\033" not in capsys.readouterr().out
    assert "steps 0 to 3" in message_of("--show", run.out, "--step 9")
    assert "nowhere" in message_of("--show nowhere")

def test_fuzzed_command_lines_end_in_one_line():
    """Flags that exist with values that may not fit: a config, or one line that names the trouble."""
    rand, refused = random.Random(0), 0
    flags = [f"--{f.name}" for f in dataclasses.fields(rlvr.Config)] + ["--oops", "-x", "stray"]
    values = ["1", "-1", "0", "nan", "inf", "1e999", "", "x", "true", "None", "[]", "../..", "é", "--lr", "0.5"]
    for _ in range(200):
        argv = [x for _ in range(rand.randint(1, 3)) for x in (rand.choice(flags), rand.choice(values))]
        try:
            rlvr.parse_config(argv)
        except SystemExit as stop:
            assert isinstance(stop.code, str) and "\n" not in stop.code and stop.code.startswith("rlvr.py: ")
            refused += 1
    assert 100 < refused < 200

def test_malformed_data_files_end_in_one_line(folders, tmp_path):
    """Good rows with damage: problems come out, or one line that names the file."""
    rand, refused = random.Random(0), 0
    policy = rlvr.load_policy(config(folders / "qwen", "--max_prompt_tokens 100 --max_new_tokens 8"))
    odd = [None, 7, [], {}, "", [1], {"a": 1}, True, 1e300, "\x00", [{"role": "user"}], [[]], "\ud83d"]
    for number in range(80):
        file = tmp_path / f"{number}.{rand.choice(['jsonl', 'json', 'csv', 'parquet'])}"
        rows = [{"question": f"{i}?", "answer": str(i)} for i in range(8)]
        for _ in range(rand.randint(0, 3)):
            rand.choice(rows)[rand.choice(["question", "answer", "more"])] = rand.choice(odd)
        data = "\n".join(map(json.dumps, rows)).encode()
        if rand.random() < 0.5:
            data = data[:rand.randrange(len(data))] + bytes(rand.randrange(256) for _ in range(rand.randint(0, 9)))
        file.write_bytes(data)
        try:
            rlvr.load_problems(config(folders / "qwen", "--eval_prompts 0 --dataset", file), policy)
        except SystemExit as stop:
            assert isinstance(stop.code, str) and "\n" not in stop.code and str(file) in stop.code
            refused += 1
    assert 10 < refused < 80

def test_report(tmp_path, capsys):
    for seed, grpo, ours in ((0, 0.40, 0.44), (1, 0.50, 0.60)):
        for preset, avg, H in (("grpo", grpo, 0.1 + 0.01 * seed), ("pos_adv_entropy", ours, 0.2 + 0.01 * seed)):
            fake_run(tmp_path / f"{preset}{seed}", f"--preset {preset} --seed {seed}", {"avg@32": avg, "entropy": H, "ece": -H})
    fake_run(tmp_path / "few", "--preset grpo --num_prompts 16", {"avg@32": 0.3, "entropy": 0.05, "ece": -0.05})
    (tmp_path / "few" / "note.txt").write_text("runs may hold other files")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.json").write_text("{}")
    rlvr.main(["--report", str(tmp_path / "*")])
    shown = capsys.readouterr()
    rows = {row[0]: row[1:] for row in ([cell.strip() for cell in line[1:-1].split("|")]
                                        for line in shown.out.strip().splitlines())}
    column, names = rows["run"].index, list(rows)[2:]
    assert names == ["before training", "pos_adv_entropy", "grpo", "grpo-num_prompts=16", "Spearman with entropy"]
    assert "unfinished" in shown.err
    assert [rows[name][0] for name in names] == ["2", "2", "2", "1", "5"]
    assert rows["grpo"][column("avg@32")] == "0.450 ± 0.071"
    # By seed +10 % and +20 %: mean 15, standard error 5, t(1) = 12.71.
    assert rows["pos_adv_entropy"][column("avg@32")] == "0.520 ± 0.113 (+15 ± 64 %)"
    assert rows["grpo-num_prompts=16"][column("avg@32")] == "0.300 (-25 %)"
    assert rows["Spearman with entropy"][column("avg@32")] == "+0.90"  # 1 - 6 (1 + 1) / (5 x 24)
    assert rows["Spearman with entropy"][column("ece")] == "-1.00"
    assert rows["pos_adv_entropy"][column("off target")] == "0.000 ± 0.000" and not rows["grpo"][column("off target")]
    assert rows["grpo"][column("dH_pos")].startswith("-0.400") and rows["grpo"][column("r_dH")] == "1.000 ± 0.000"

def test_report_keeps_apart_what_folder_names_do_not(tmp_path, capsys):
    """Models with the same last name, and configurations that differ behind the 200th character."""
    for i, flags in enumerate(("--model one/m", "--model two/m", "--model one/m --warmup_steps 3")):
        fake_run(tmp_path / str(i), f"{flags} --preset grpo --dataset {'d' * 200}", {})
    rlvr.main(["--report", str(tmp_path / "*")])
    names = re.findall(r"^\| (grpo\S*)", capsys.readouterr().out, re.M)
    assert len({*names}) == 3

def test_report_draws_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    fake_run(tmp_path / "a", "--preset grpo", {})
    rlvr.main(["--report", str(tmp_path / "a")])
    assert (tmp_path / "report.png").stat().st_size > 10000

def test_non_finite_loss_stops_and_keeps_the_weights(short, tmp_path, monkeypatch):
    loss, calls = rlvr.policy_loss, []

    def poisoned(*args):
        value, sums = loss(*args)
        calls.append(1)
        return value * (math.nan if len(calls) == 9 else 1.0), sums

    monkeypatch.setattr(rlvr, "policy_loss", poisoned)
    message = message_of("--output_dir", tmp_path / "run", short)
    assert "step 1" in message and "not finite" in message  # 2 mini-batches x 4 passes a step
    assert torch.isfinite(weights(tmp_path / "run" / "last_good")).all()
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 1

def test_sampler_and_trainer_that_disagree_stop_the_run(short, tmp_path, monkeypatch):
    sample = rlvr.sample
    monkeypatch.setattr(rlvr, "sample", lambda policy, prompts, uniforms, _: sample(policy, prompts, uniforms, 3.0))
    assert "sampler and trainer disagree" in message_of("--output_dir", tmp_path / "run", short)

def test_scoring_that_is_random_stops_the_run(short, tmp_path, monkeypatch):
    score = rlvr.score

    def noisy(*args):
        logp, *others = score(*args)
        return logp + 0.5 * torch.is_grad_enabled(), *others

    monkeypatch.setattr(rlvr, "score", noisy)
    assert "the ratio was off 1" in message_of("--output_dir", tmp_path / "run", short)

def test_damaged_runs_end_in_one_line(short, tmp_path):
    out = tmp_path / "run"
    go(out, short, "--eval_prompts 0")
    (out / "summary.json").unlink()
    checkpoint = out / "checkpoint-000004" / "trainer.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:999])
    assert "checkpoint-000004: damaged" in message_of("--resume", out)
    (out / "config.json").write_text("{")
    assert "config.json: damaged" in message_of("--resume", out)

def test_broken_folders_end_in_one_line(short, folders, tmp_path):
    """A file of a run or a model that is cut off, gone, empty, of another kind or a Git LFS pointer."""
    run, rand, refused = tmp_path / "run", random.Random(0), 0
    go(run, short, "--eval_prompts 0")
    (run / "summary.json").unlink()
    for number in range(40):
        copy = tmp_path / str(number)
        shutil.copytree((folders / "qwen", run)[number % 2], copy)
        file = rand.choice(sorted(file for file in copy.rglob("*.*") if file.is_file() and "final" not in file.parts))
        damage = rand.choice(["cut", "gone", "list", "empty", "pointer"])
        data = file.read_bytes()
        file.unlink()
        if damage != "gone":
            file.write_bytes({"cut": data[:rand.randrange(len(data) or 1)], "list": b"[1]", "empty": b"",
                              "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9"}[damage])
        try:
            if number % 2:
                rlvr.main(["--resume", str(copy)])
            else:
                rlvr.load_policy(config(copy, "--max_prompt_tokens 100 --max_new_tokens 8"))
        except SystemExit as stop:
            assert isinstance(stop.code, str) and "\n" not in stop.code and str(copy) in stop.code, (file, damage)
            refused += 1
    assert 10 < refused < 40

def test_code_elsewhere_needs_a_reward_of_ones_own(folders, tmp_path, monkeypatch):
    def no_linux():
        raise RuntimeError("Linux only")

    monkeypatch.setattr(verify, "sandbox", no_linux)
    file = write_lines(tmp_path / "mbpp.jsonl", [{"text": f"Add {i}.", "test_list": ["assert add(1)"]} for i in range(40)])
    flags = (f"--model {folders / 'qwen'} --dataset {file} --steps 1 --eval_prompts 0 --max_prompt_tokens 200 "
             "--max_new_tokens 40 --prompts_per_step 4")
    assert "Linux only" in message_of(flags, "--output_dir", tmp_path / "refused")
    assert len(go(tmp_path / "run", flags, f"--reward {folders / 'own.py'}:one")) == 1

def test_dropout_is_off(folders, tmp_path):
    """A GPT-2 with much dropout, in the training mode that gradient checkpointing needs: the ratio is still 1."""
    model = tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5))
    rlvr.Policy(model, bpe_tokenizer(True), [0]).save(tmp_path / "gpt2")
    log = go(tmp_path / "run", f"--gradient_checkpointing --model {tmp_path / 'gpt2'} --reward {folders / 'own.py'}:odd",
             "--steps 2 --max_prompt_tokens 200 --max_new_tokens 40 --num_prompts 32 --eval_prompts 0")
    assert all(m["ratio_gap"] < 1e-3 for m in log)

@pytest.mark.parametrize("name, flags", [("qwen", "--gradient_checkpointing"), ("llama", "--advantage mean --reuse 2")])
def test_hugging_face_model_trains_on_own_data_and_reward(folders, tmp_path, name, flags):
    """The reward, short responses, comes from the user's own file; it rises, and the policy is saved."""
    data = write_lines(tmp_path / "data.jsonl", [{"prompt": f"p{i}", "answer": str(i)} for i in range(40)])
    metrics = go(tmp_path / "run", f"--model {folders / name} --dataset {data} --reward {folders / 'own.py'}:few", flags,
                 "--steps 12 --prompts_per_step 8 --max_new_tokens 12 --max_prompt_tokens 100 --lr 1e-2 --seed 5",
                 "--warmup_steps 1 --eval_prompts 2 --eval_samples 2 --preset grpo")
    assert all(m["logp_gap"] < 1e-3 for m in metrics) and 0 < metrics[0]["truncated"]
    assert metrics[-1]["reward"] > metrics[0]["reward"] + 0.1
    tf.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")

# -------------------------------------------------------------------------------------------------------- GPU

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

def cuda_policy(folders, name, *flags):
    if name == "gpt2":
        rlvr.Policy(tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2)), bpe_tokenizer(True), [0]).save(folders / "gpt2")
    policy = rlvr.load_policy(config(folders / name, "--max_prompt_tokens 32 --max_new_tokens 200", *flags))
    return replace(policy, stop_ids=list(range(0, 320, 40)))  # rows leave at all times

@cuda
@pytest.mark.parametrize("name", ["qwen", "gemma", "demo", "gpt2"])
@pytest.mark.parametrize("flags", ["", "--gradient_checkpointing"])
def test_cuda_sampler_and_trainer_agree_in_bf16(folders, name, flags):
    policy = cuda_policy(folders, name, flags)
    tokens, lengths, _, logp, _ = rlvr.sample(policy, PROMPTS, seeded(48, 200, 1), 1.0)
    responses = [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist())]
    scored, _, _ = rlvr.score(policy, [PROMPTS[i // 16] for i in range(48)], responses, 1.0)
    assert scored.dtype == torch.float32 and (scored - logp[:, :scored.shape[1]]).abs().mean() < 0.05

@cuda
@pytest.mark.parametrize("name", ["qwen", "gemma", "demo", "gpt2"])
def test_cuda_graphs_decode_token_for_token(folders, name):
    policy = cuda_policy(folders, name)
    for rows in (48, 30):
        fast, slow = (rlvr.sample(replace(policy, by_graph=graph), PROMPTS, seeded(rows, 200, rows), 1.0)
                      for graph in (True, False))
        assert all(map(torch.equal, fast[:3], slow[:3]))

@cuda
def test_cuda_two_processes_share_a_run(short, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("NCCL takes one process per GPU, and there is one")
    argv = command(*LAUNCHER, "--output_dir", tmp_path / "run", short)
    assert subprocess.run(argv, timeout=300).returncode == 0
