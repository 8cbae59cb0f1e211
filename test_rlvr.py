"""Tests: behaviour, no network, no GPU needed. Every fast path is compared with a slow and obvious twin."""
import dataclasses, glob, itertools, json, math, multiprocessing, os, random
import re, shutil, signal, subprocess, sys, tempfile, time, warnings
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

HOME = tempfile.TemporaryDirectory()  # an empty one: no hub, no cache
os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=HOME.name, TOKENIZERS_PARALLELISM="false")

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils._python_dispatch import TorchDispatchMode

import rlvr
import verify

torch.set_float32_matmul_precision = Mock()  # bf16, where a CPU has it, would be too far from a twin
HERE = Path(__file__).parent
CORPUS = ["What is 12 + 30? The answer is 42.", "3 cars of 20 seats.", "def add(a, b): return a + b"]
CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
SIZES = dict(vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.4)
OWN = dict(gemma=dict(head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
           qwen3=dict(head_dim=8), phi3=dict(pad_token_id=0), mixtral=dict(num_local_experts=3))
FAMILIES = dict(qwen=tf.Qwen2ForCausalLM, llama=tf.LlamaForCausalLM, gemma=tf.Gemma3ForCausalLM,
                gpt2=tf.GPT2LMHeadModel, qwen3=tf.Qwen3ForCausalLM, falcon=tf.FalconForCausalLM,
                phi3=tf.Phi3ForCausalLM, mixtral=tf.MixtralForCausalLM)

def bpe_tokenizer(pad_is_eos, chat_template=None):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|im_end|>"] if pad_is_eos else ["<|im_end|>", "<|im_start|>", "<pad>"]
    core.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>",
                                      chat_template=chat_template, pad_token=special[-1])

@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Saved policies, one with a chat template, two whose pad token is their eos token; rewards."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, model in FAMILIES.items():
        tokenizer = bpe_tokenizer(name in ("llama", "gpt2"), CHATML if name == "qwen" else None)
        model = model(model.config_class(**SIZES | OWN.get(name, {})))
        rlvr.Policy(model, tokenizer, [0]).save(root / name)
    rlvr.pretrain_demo(root / "demo", steps=3, batch=16)
    (root / "own.py").write_text(
        "odd = lambda response, answer: len(response) % 2\nsame = lambda response, answer: 0\n"
        "few = lambda response, answer: float(len(response) < 12)\none = lambda response, answer: 1\n")
    return root

def command(*flags):
    return " ".join(map(str, flags)).split()

SMALL = "--max_prompt_tokens 100 --max_new_tokens 8"  # what fits the context of 256

def config(model, *flags):
    return rlvr.parse_config(command("--model", model, SMALL, *flags))

def loaded(model, *flags):
    return rlvr.load_policy(config(model, *flags))

def policy_of(*names):
    return pytest.fixture(params=names)(lambda folders, request: loaded(folders / request.param))

policy, any_policy = policy_of("qwen", "llama", "gemma", "demo"), policy_of("demo", *FAMILIES)

def read_lines(file, drop=("seconds", "peak_memory")):
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(drop)}
            for line in Path(file).read_text().splitlines()]

def write_lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file

def cases(table):
    """What stands between the signs ¦ and the line ends of a table, split at the signs |."""
    return [line.split(" | ") for line in re.split(r"\s*¦\s*|\n", table.strip("\n"))]

def go(out, *flags):
    rlvr.main(command(*flags, "--output_dir", out))
    return read_lines(out / "metrics.jsonl")

def stop_of(function, *args):
    """The one line with which a call stops, or None."""
    try:
        function(*args)
    except SystemExit as stop:
        assert isinstance(stop.code, str) and stop.code.startswith("rlvr.py: ") and "\n" not in stop.code
        return stop.code

def message_of(*argv):
    return stop_of(rlvr.main, command(*argv)) or pytest.fail("it did not stop")

def weights(folder):
    return torch.cat([p.flatten() for p in tf.AutoModelForCausalLM.from_pretrained(folder).parameters()])

# ---------------------------------------------------------------------------------------------------- loss

def knobs(**values):
    return SimpleNamespace(**dict(eps_low=0.2, eps_high=0.3, neg_weight=1.0, entropy_adv=0.0, pos_drop=0.0,
                                  seed=0, cov_share=0.0, cov_penalty=0.0) | values)

def test_loss_and_gradient_equal_their_twin():
    torch.manual_seed(1)
    old, A = torch.randn(4, 5), torch.tensor([1.5, -0.5, 0.0, 2.0])
    mask = torch.tensor([[t < n for t in range(5)] for n in (5, 4, 3, 2)])
    for lam, neg_weight, low, high in ((1, 1, 0.2, 0.3), (0.25, 0.5, 0.1, 0.5), (0, 1, math.inf, math.inf)):
        logp, gradient = (old + torch.randn(4, 5)).requires_grad_(), torch.zeros(4, 5)
        expected, clipped = 0.0, 0
        for b, t in mask.nonzero().tolist():
            r, a = (logp[b, t] - old[b, t]).exp().item(), A[b].item()
            w = (lam if a > 0 else neg_weight) / 20
            dead = r > 1 + high if a > 0 else a < 0 and r < 1 - low  # where the paper says: no gradient
            expected -= w * min(r * a, min(max(r, 1 - low), 1 + high) * a)
            gradient[b, t], clipped = 0 if dead else -w * r * a, clipped + dead
        c = knobs(eps_low=low, eps_high=high, neg_weight=neg_weight)
        loss = rlvr.policy_loss(logp, old, A[:, None], mask, 20, c, lam)
        sums = rlvr.loss_sums(logp, old, A[:, None], mask, 20, c, lam, torch.zeros(4, 5))
        loss.backward()
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert torch.allclose(logp.grad, gradient, rtol=1e-4) and (clipped > 0) == (high < math.inf)
        assert [sums[name] for name in ("tokens_pos", "tokens_neg")] == [7, 4]
        assert sums["clip_pos"] + sums["clip_neg"] == clipped

def test_dH_is_the_entropy_change_of_a_small_step():
    """Logits as parameters, one small gradient step: the entropy moves as dH_pos + dH_neg say."""
    torch.manual_seed(0)
    logits, targets, eta = (2 * torch.randn(12, 6)).requires_grad_(), torch.randint(0, 6, (12,)), 1e-4
    head = torch.nn.Linear(6, 6, bias=False)
    head.weight.data = torch.eye(6)
    logp, _, sharpening = (x.view(4, 3) for x in rlvr.logp_entropy(logits, head, targets, 1.0))
    old = logp.detach() + torch.linspace(-0.5, 0.5, 12).view(3, 4).T  # some ratios are clipped, on both sides
    A, c = torch.tensor([1.0, -1.0, 2.0, -0.5]), knobs(eps_low=0.1, eps_high=0.1)
    args = logp, old, A[:, None], torch.ones(4, 3, dtype=torch.bool), 12, c, 0.5
    loss, sums = rlvr.policy_loss(*args), rlvr.loss_sums(*args, sharpening)
    assert sums["clip_pos"] and sums["clip_neg"] and sums["dH_pos"] and sums["dH_neg"]
    loss.backward()
    start, step = logits.detach().double(), -eta * logits.grad.double()
    H = [torch.distributions.Categorical(logits=x).entropy().sum().item() for x in (start, start + step)]
    assert (H[1] - H[0]) / eta == pytest.approx(sums["dH_pos"] + sums["dH_neg"], rel=1e-2)

def variant(tokens, **values):
    logp, entropy = torch.tensor(tokens["logp"]), torch.tensor(tokens["entropy"])
    mask = torch.tensor(tokens.get("mask", [[True] * logp.shape[1]] * len(logp)))
    return rlvr.other_methods(knobs(**values), torch.tensor(tokens["A"])[:, None].expand(mask.shape), logp,
                         entropy, mask, 3)

def test_methods_that_the_paper_compares():
    tokens = dict(A=[2.0, -1.0, 0.0], logp=[[-0.1, -5.0], [-0.1, -5.0], [-1.0, -1.0]],
                  entropy=[[0.0, 9.0], [0.5, 9.0], [9.0, 9.0]], mask=[[True] * 2, [True] * 2, [True, False]])
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

def gradient_of(policy):
    gradient = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
    policy.model.zero_grad()
    return gradient

def policy_gradient(policy, prompts, responses, A, split, pad=0):
    for rows in split:
        logp, _, _ = rlvr.score(policy, [prompts[i] for i in rows], [responses[i] for i in rows], 1.0)
        logp = torch.nn.functional.pad(logp, (0, pad), value=3.0)
        mask = torch.tensor([[t < len(responses[i]) for t in range(logp.shape[1])] for i in rows])
        old, tokens = (logp + 0.1 * mask).detach(), sum(map(len, responses))
        rlvr.policy_loss(logp, old, A[rows][:, None], mask, tokens, knobs(), 0.5).backward()
    return gradient_of(policy)

# Prompts, two of them the same, and responses; 0 is pad or eos somewhere.
ROWS = ([(5, 6, 7), (4, 0, 9, 10, 11, 12, 13, 14, 15), (5, 6, 7), (13, 8, 8)],
        [[3, 4, 5, 6, 7, 8], [9], [0, 10, 11, 0], [12] * 8])

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
    head, mix = torch.nn.Linear(8, 50), torch.randn(2, 23)
    leaves, sizes = (hidden, head.weight, head.bias), []
    hook = head.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    logp, entropy, push = rlvr.logp_entropy(hidden, head, targets, temperature, max_logits=200)  # 4 a chunk
    fast = torch.autograd.grad(mix[0] @ logp + mix[1] @ entropy, leaves)
    hook.remove()
    assert max(sizes) <= 200 and sum(sizes) == 2 * 23 * 50  # each token once forward, once again in backward
    dense = torch.log_softmax(head(hidden) / temperature, -1)
    twin = dense[torch.arange(23), targets], torch.distributions.Categorical(logits=dense).entropy()
    slow = torch.autograd.grad(mix[0] @ twin[0] + mix[1] @ twin[1], leaves)
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip((logp, entropy, *fast), (*twin, *slow)))
    for row, target, value in zip(dense, targets, push.tolist()):  # the equation, token by token
        p, H = row.exp().tolist(), -(row.exp() * row).sum().item()
        each = [q * (math.log(q) + H) for q in p]
        assert value == pytest.approx(each[target] - sum(q * x for q, x in zip(p, each)), abs=1e-6)
    logp, entropy = rlvr.log_softmax_entropy(torch.zeros(3, 77, dtype=torch.bfloat16), temperature)
    assert entropy.dtype == logp.dtype == torch.float32 and entropy[0] == pytest.approx(math.log(77))

def slow_score(model, prompts, responses, temperature):
    """Each row alone through the whole model, without padding, cache or chunks -> [(logp, entropy)]."""
    for p, r in zip(prompts, responses):
        logits = model(torch.tensor([[*p, *r]])).logits[0, len(p) - 1:-1].float()
        dense = torch.log_softmax(logits / temperature, -1)
        yield dense[torch.arange(len(r)), torch.tensor(r)], -(dense.exp() * dense).sum(-1)

@pytest.mark.parametrize("checkpointing", [False, True])
def test_score_equals_one_row_at_a_time(any_policy, checkpointing):
    """With gradient checkpointing too, which drops a cache: then these would be off by nats."""
    policy = any_policy
    if checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        policy.model.train()
    logp, entropy, _ = rlvr.score(policy, *ROWS, 0.8)
    logp.sum().backward()
    gradient = gradient_of(policy)
    policy.model.eval()
    policy.model.gradient_checkpointing_disable()
    twin = list(slow_score(policy.model, *ROWS, 0.8))
    sum(row.sum() for row, _ in twin).backward()
    assert torch.allclose(gradient, gradient_of(policy), rtol=1e-3, atol=1e-4)
    for fast, slow in zip((logp, entropy), zip(*twin)):
        padded = torch.nn.utils.rnn.pad_sequence(slow, batch_first=True)
        assert torch.allclose(fast, padded, atol=1e-4)  # and nothing outside the responses

# -------------------------------------------------------------------------------------------------- sampler

PROMPTS = [(5, 6, 7), (4, 0, 9, 10, 11, 12), (13,)]  # unequal lengths, one with the pad or eos id inside

def seeded(rows, columns, seed):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))

def slow_sample(policy, prompt, uniforms, temperature):
    """One response, no cache: read everything again for each token -> tokens, their logps and entropies."""
    ids, out = list(prompt), []
    for u in uniforms.tolist():
        p = torch.softmax(policy.model(torch.tensor([ids])).logits[0, -1].float() / temperature, -1)
        token = next((i for i, total in enumerate(itertools.accumulate(p.tolist())) if total > u), len(p) - 1)
        ids.append(token)
        out.append((token, p[token].log().item(), torch.distributions.Categorical(p).entropy().item()))
        if token in policy.stop_ids:
            break
    return map(list, zip(*out))

def test_sampler_equals_slow_twin_in_any_batch(any_policy):
    """Rows leave at all times. At a vanishing temperature sampling is the argmax."""
    policy, uniforms = replace(any_policy, stop_ids=list(range(0, 320, 9))), seeded(48, 16, 3)
    tokens, lengths, finished, logp, entropy = together = rlvr.sample(policy, PROMPTS, uniforms, 0.9)
    for row, n in list(enumerate(lengths.tolist()))[::4]:
        with torch.no_grad():
            ids, logps, entropies = slow_sample(policy, PROMPTS[row // 16], uniforms[row], 0.9)
        assert tokens[row, :n].tolist() == ids
        assert bool(finished[row]) == (ids[-1] in policy.stop_ids)  # the stop token is kept
        assert logp[row, :n].tolist() == pytest.approx(logps, abs=1e-4)
        assert entropy[row, :n].tolist() == pytest.approx(entropies, abs=1e-4)
    assert len({*lengths.tolist()}) > 2 and not tokens[:, 15][lengths < 16].any()
    for i, prompt in enumerate(PROMPTS):
        alone = rlvr.sample(policy, [prompt], uniforms[16 * i:16 * i + 16], 0.9)
        assert all(torch.equal(x, y[16 * i:16 * i + 16]) for x, y in zip(alone[:3], together))
        tokens, lengths, *_ = rlvr.sample(policy, [prompt], torch.full((1, 16), 0.5), 1e-6)
        ids = torch.tensor([prompt])
        twin = policy.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                     pad_token_id=0, max_new_tokens=16, eos_token_id=policy.stop_ids)
        assert tokens[0, :int(lengths[0])].tolist() == twin[0, len(prompt):].tolist()

class Tape(TorchDispatchMode):
    """What a CUDA graph does, on a CPU: note each operation with the tensors that it works on, and repeat it
    on those very tensors, whatever Python would do now. To read a value on the host is no part of a graph."""
    replays = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select")
        out = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, out))
        return out

    def replay(self):
        if self.fresh:  # recording has done this step
            self.fresh = False
            return
        Tape.replays.append(self)
        for function, args, kwargs, out in self.calls:
            for old, new in zip(*map(torch.utils._pytree.tree_leaves, (out, function(*args, **kwargs)))):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

def test_graphs_decode_token_for_token(policy, monkeypatch):
    """A capture runs the step without effect on a GPU; the tape runs it, so its step is undone."""
    policy = replace(policy, stop_ids=list(range(0, 320, 9)))
    steps = [rlvr.sample(policy, PROMPTS, seeded(n, 24, n), 1.0) for n in (42, 30)]

    def taped(function):
        with (tape := Tape()):
            tape.calls, tape.fresh = [], True
            result = function()
        return tape, result

    monkeypatch.setattr(rlvr, "capture", taped)
    policy = replace(policy, by_graph=True)
    for one_by_one, n in zip(steps, (42, 30)):
        by_graph = rlvr.sample(policy, PROMPTS, seeded(n, 24, n), 1.0)
        assert all(map(torch.equal, one_by_one[:3], by_graph[:3]))
        assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(one_by_one[3:], by_graph[3:]))
    assert len(Tape.replays) > 10

def test_cost_follows_the_tokens_produced(policy):
    """Scoring reads each prompt once, and responses but their last tokens. Sampling gives the model at most
    twice the rows that get a token."""
    shapes = []
    hook = policy.model.base_model.register_forward_hook(
        lambda module, args, out: shapes.append(tuple(out.last_hidden_state.shape[:2])))
    prompts, responses = [(5, 6, 7)] * 3 + [(9, 10, 11, 12, 13)] * 2, [[4] * n for n in (2, 9, 1, 5, 30)]
    assert rlvr.score(policy, prompts, responses, 1.0)[0].shape == (5, 30) and shapes == [(2, 5), (5, 29)]
    short = replace(policy, stop_ids=list(range(0, 320, 5)))
    lengths = rlvr.sample(short, PROMPTS, seeded(300, 16, 4), 1.0)[1]
    hook.remove()
    assert shapes[2] == (3, 6) and sum(rows for rows, _ in shapes[3:]) <= 2 * int(lengths.sum())

def test_samples_follow_the_distribution(policy):
    tokens = rlvr.sample(policy, [PROMPTS[0]], seeded(20000, 1, 0), 1.0)[0][:, 0]
    p = torch.softmax(policy.model(torch.tensor([PROMPTS[0]])).logits[0, -1], -1)
    counts = torch.bincount(tokens, minlength=len(p))
    assert ((counts - 20000 * p).abs() <= 5 * (20000 * p * (1 - p)).sqrt() + 1).all()

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
        scored = torch.stack(rlvr.score(policy, [p.ids for p in whole.problems], whole.responses, 0.9)[:2])
    assert torch.allclose(scored, torch.stack([whole.logp, whole.entropy]) * whole.mask, atol=1e-4)
    grids = torch.stack(rlvr.score_all(policy, whole, range(12), c))  # in micro-batches, nothing outside the responses
    assert torch.allclose(grids, scored, atol=1e-4)

# --------------------------------------------------------- advantages, pass@k, schedules, evaluation, rewards

def test_advantages():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0] * 4, [0.3] * 4, [0.0, 0.0, 0.0, 1.0]])
    std, mean = rlvr.advantages(rewards), rlvr.advantages(rewards, "mean")
    assert not std[1:3].any() and not mean[1:3].any()  # exactly 0, also where the mean is not exact
    assert mean[3].tolist() == [-0.25, -0.25, -0.25, 0.75]
    assert std[3].tolist() == pytest.approx([-0.5, -0.5, -0.5, 1.5])  # sample standard deviation 0.5
    assert torch.allclose(std.sum(-1), torch.zeros(4), atol=1e-6)
    for value, group in itertools.product((0.1, 0.7, 1 / 3), range(2, 20)):
        assert not rlvr.advantages(torch.full((1, group), value)).any()

def test_schedules():
    moves = [(0,), (1, 0.3, 0.3), (2, 0.4, 0.1), (3, 0.4, 0.2), (1, 0.98, 0.3), (1, 0.02, 0.1)]
    for schedule, calls, expected in (
            ("constant", [(step, 0.9, 0.1) for step in range(3)], [0.3] * 3),
            ("stage", [(0,), (5,), (6,), (8,), (10,)], [0, 0, 0.2, 0.6, 1]),
            ("epoch", [(0, None, None, epoch, 5) for epoch in range(1, 6)], [0, 0.25, 0.5, 0.75, 1]),
            ("entropy", moves, [0.3, 0.35, 0.35, 0.45, 1, 0])):
        c = knobs(pos_schedule=schedule, steps=11, pos_weight=0.3, target_entropy=0.2, pos_delta=0.05)
        assert [rlvr.next_pos_weight(c, *call) for call in calls] == pytest.approx(expected)

def test_state_moves_lambda_by_epochs_and_the_bonus_by_entropy():
    c = rlvr.parse_config(command("--preset pos_adv_epoch --bonus_delta 0.02 --steps 8"))
    state, path = {"step": 0, "bonus": 0.01, "pos_weight": 0.0, "start_entropy": None}, []
    for h in (0.1, 0.1, 0.3, 0.3, 0.3, 0.3, 0.3):  # 8 steps of 32 prompts, 64 of them: four epochs
        state = rlvr.next_state(c, state, {"entropy": h}, prompts=64)
        path.append((state["pos_weight"], round(state["bonus"], 4)))
    assert [bonus for _, bonus in path] == [0.03, 0.05, 0.03, 0.01, 0.0, 0.0, 0.0]
    assert [weight for weight, _ in path] == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1])
    assert state["start_entropy"] == 0.1 and state["step"] == 7

def test_metrics_equal_their_definitions():
    for correct, k in itertools.product(range(7), range(1, 7)):
        draws = list(itertools.combinations([True] * correct + [False] * (6 - correct), k))
        assert rlvr.pass_at_k(6, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    for responses, expected in (([[1, 2, 3, 4], [5, 6, 7, 8]], 1), ([[1, 2, 3, 4]] * 4, 1 / 4), ([[]], 0),
                                ([[7, 7, 7]], (1 / 3 + 1 / 2 + 1) / 3),  # no 4-gram
                                ([[1] * 4] * 2, (1 / 8 + 1 / 6 + 1 / 4 + 1 / 2) / 4)):
        assert rlvr.ngram_diversity(responses) == pytest.approx(expected)
    confidence, correct = [0.0625, 0.0, 0.5, 0.5625, 0.9375, 1.0, 0.96875, 1.0], [0, 1, 0, 1, 1, 1, 1, 0]
    gaps = [abs(sum(correct[i:j]) - sum(confidence[i:j])) for i, j in ((0, 2), (2, 4), (4, 8))]  # by bins
    measured = rlvr.calibration(torch.tensor(confidence), torch.tensor(correct).float())
    assert measured == pytest.approx((sum(gaps) / 8, (sum(confidence) - sum(correct)) / 8), abs=1e-5)
    assert rlvr.calibration(torch.ones(4), torch.ones(4)) == (0.0, 0.0)

def test_evaluate_counts(policy, monkeypatch):
    """Against rollouts that are known: 2 problems x 4 responses; of 3 samples there is a pass@3."""
    mask = torch.tensor([[True, True], [True, False]] * 4)
    rollouts = rlvr.Rollouts([SimpleNamespace(answer="ab")] * 8, [[1, 2], [1]] * 4, [True] * 7 + [False],
                             [*"aabxxxxx"], mask * -1.0, mask * 0.5, mask)
    monkeypatch.setattr(rlvr, "rollout", lambda *_: rollouts)
    evaluate = lambda samples: rlvr.evaluate(policy, [None] * 2, lambda text, problem: text in problem.answer,
                                             SimpleNamespace(eval_samples=samples, seed=0))
    result = evaluate(4)
    assert [result[name] for name in ("avg@4", "pass@1", "pass@2", "pass@4")] == [3 / 8, 3 / 8, 0.5, 0.5]
    assert result["intervals"]["pass@4"] == [0.0, 1.0]  # one problem of two: a resample may have none or both
    assert result["diversity"] == pytest.approx((2 / 6 + 1 / 2) / 2)
    assert result["overconfidence"] == pytest.approx(math.exp(-1) - 3 / 8)
    assert [result[name] for name in ("distinct", "entropy", "length", "truncated")] == [1.0, 0.5, 1.5, 1 / 8]
    vars(rollouts).update({name: value[:6] for name, value in vars(rollouts).items()})
    assert list(evaluate(3))[:4] == ["avg@3", "pass@1", "pass@2", "pass@3"]

def judged(texts, reward, finished=None):
    rollouts = SimpleNamespace(problems=[SimpleNamespace(kind="math", answer="4")] * len(texts),
                               texts=texts, finished=finished or [True] * len(texts))
    return rollouts, *rlvr.judge(rollouts, reward)

def test_what_cannot_be_judged_is_left_out_and_what_is_cut_off_gets_no_reward(monkeypatch):
    reward = lambda text, problem: {"right": 1.0, "wrong": 0.0, "nan": math.nan}[text]
    texts = ["right", "wrong", "odd", "wrong", "nan", "right"]
    with pytest.warns(UserWarning, match="left out"):
        rewards, errors = rlvr.rewards_of(*judged(texts, reward))
    assert rewards.isnan().tolist() == [False, False, True, False, True, False]
    assert errors == {2: "KeyError: 'odd'", 4: "ValueError: the reward is nan, no finite number"}
    advantage = rlvr.advantages(rewards.view(3, 2))
    assert advantage[0].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)]) and not advantage[1:].any()
    assert "no response can be judged: KeyError" in stop_of(rlvr.rewards_of, *judged(["odd"] * 6, reward))
    monkeypatch.setattr(verify.verify_batch, "__defaults__", (0.2,))  # patience, seconds
    assert "the reward function hangs" in stop_of(judged, texts, lambda text, problem: time.sleep(1))
    for reward, expected in ((rlvr.load_reward("auto"), [1, 0]), (lambda text, problem: -3, [-3, -3])):
        rewards = judged(["\\boxed{4}"] * 2, reward, [True, False])  # a cut-off response never gets the best
        assert rlvr.rewards_of(*rewards)[0].tolist() == expected

def test_a_reward_gets_what_it_names(tmp_path):
    (tmp_path / "neighbour.py").write_text("bonus = 2")
    (tmp_path / "own.py").write_text(
        "from neighbour import bonus\ng = lambda text, gold: len(text) + gold\n"
        "f = lambda row, response, finish_reason: row['x'] + len(response + finish_reason) + bonus")
    problem = rlvr.Problem("prompt", [], 10, "math", {"x": 100})
    assert [rlvr.load_reward(f"{tmp_path}/own.py:{name}")("abc", problem) for name in "fg"] == [109, 13]

# ------------------------------------------------------------------------------------------------- problems

def test_countdown_problems_are_solvable_distinct_and_seeded():
    rows = list(rlvr.countdown_rows(300))
    assert len({(*sorted(row["answer"]["numbers"]), row["answer"]["target"]) for row in rows}) == 300
    assert rows == list(rlvr.countdown_rows(300))
    rand = random.Random(1)
    for _ in range(300):
        numbers, target, steps = rlvr.random_calculation(rand)
        assert verify.countdown_reward(steps, numbers, target) == 1.0 and 1 <= target <= 99
    assert "not 14001" in stop_of(next, rlvr.countdown_rows(14001))

def test_a_saved_demo_policy_is_the_demo_again(folders):
    c, policy = config(folders / "demo", "--num_prompts 200 --eval_prompts 20"), loaded(folders / "demo")
    assert c.lr == rlvr.DEMO["lr"] and config(folders / "qwen").lr != c.lr
    train, held_out = rlvr.load_problems(c, policy)
    assert train[0].prompt == rlvr.compact_countdown(**train[0].answer)
    few = rlvr.load_problems(rlvr.parse_config(command("--num_prompts 16")), policy)
    assert [*map(len, (train, held_out, *few))] == [200, 20, 16, 256]  # all held-out prompts are still there
    assert not {p.prompt for p in train} & {p.prompt for p in held_out}
    assert all(p.row["answer"] == p.answer for p in train)  # for a reward that asks for it
    text, tokenizer = "3,15,7=26:15-3=12,12*7=84", policy.tokenizer
    assert len(tokenizer.encode(text)) == len(text)
    assert tokenizer.decode(tokenizer.encode(text + tokenizer.eos_token), skip_special_tokens=True) == text

SHAPES = {  # a row, what its answer is read as
    "gsm8k": {"question": "What is 40 + {i}?", "answer": "40 + {i} = <<40+{i}=4{i}>>4{i}\n#### 4{i}"},
    "math": {"problem": "What is 40 + {i}?", "solution": "\\boxed{{4}}, no: \\boxed{{4{i}}}.", "level": "1"},
    "math500": {"problem": "What is 40 + {i}?", "solution": "Hence \\boxed{{0}}", "answer": "4{i}"},
    "plain": {"prompt": "What is 40 + {i}?", "answer": "4{i}"}}

@pytest.mark.parametrize("shape, suffix", [*itertools.product(SHAPES, ["jsonl"]), ("gsm8k", "parquet"),
                                           ("plain", "csv"), ("math", "json"), ("plain", "disk")])
def test_data_set_shapes(folders, tmp_path, shape, suffix):
    import datasets
    rows = [{k: v.format(i=i) for k, v in SHAPES[shape].items()} for i in range(8)]
    table, file = datasets.Dataset.from_list(rows), tmp_path / f"data.{suffix}"
    {"jsonl": table.to_json, "parquet": table.to_parquet, "csv": table.to_csv,
     "json": lambda path: file.write_text(json.dumps(rows)),
     "disk": datasets.DatasetDict({"test": table}).save_to_disk}[suffix](str(file))
    c = config(folders / "llama", "--dataset", file, "--split test" if suffix == "disk" else "")
    train, held_out = rlvr.load_problems(c, rlvr.load_policy(c))
    problems = train + held_out
    assert [len(train), len(held_out)] == [7, 1] and {p.kind for p in problems} == {"math"}
    assert {(p.prompt.split("\n")[0], p.answer) for p in problems} == {
        (f"Question: What is 40 + {i}?", f"4{i}") for i in range(8)}
    assert all(p.prompt.endswith("\nAnswer:") and "\\boxed" in p.prompt for p in problems)

IO = {"inputs": ["2\n"], "outputs": ["4\n"]}
TESTS = ["assert add(1) == 2", "assert add(0)"]

@pytest.mark.parametrize("cell, kind, answer", [  # as in DAPO-Math-17k, TinyZero, MBPP, APPS
    ({"ground_truth": "5", "style": "rule"}, "math", "5"), (["10", "ten"], "math", ["10", "ten"]),
    ({"ground_truth": {"target": 3, "numbers": [1, 2]}}, "countdown", {"target": 3, "numbers": [1, 2]}),
    (TESTS, "code", {"tests": TESTS}), (json.dumps(IO), "code", IO), (7, "math", "7"),
    (json.dumps({"inputs": [[1, 2]], "outputs": [3], "fn_name": "add"}), "code",
     {"tests": ["assert add(*[1, 2]) == 3"]})])
def test_answers_of_all_kinds(cell, kind, answer):
    assert rlvr.read_answer(cell) == (kind, answer)

def test_questions_of_all_kinds(folders):
    policy, c = loaded(folders / "qwen"), config(folders / "qwen", "--max_prompt_tokens 200")
    made = lambda question, answer="1", **more: rlvr.make_problem(
        {"q": question, "a": answer, **more}, ("q", "a"), policy, c)
    row = next(rlvr.countdown_rows(1))
    problem = made(*row.values())
    assert "<answer>" in problem.prompt and problem.prompt.startswith(f"<|im_start|>user\n{row['question']}")
    assert problem.prompt.endswith("<|im_start|>assistant\n") and problem.kind == "countdown"
    problem = made("Add.", TESTS, test_imports=["import re"])
    assert problem.answer == {"tests": ["import re", *TESTS]}
    assert TESTS[1] in problem.prompt and TESTS[0] not in problem.prompt  # one test shows the form of all
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "It is 2."}]
    with pytest.warns(UserWarning, match="give the answer away"):
        assert made(turns).prompt == made(turns[:1]).prompt
    assert made(turns[:1]).prompt == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"

def test_chat_templates(folders, tmp_path):
    policy = loaded(folders / "qwen")
    policy.tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ tools }}"}
    for number in range(2):  # over itself, too
        policy.save(tmp_path / "saved", step=number)
    again = tf.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.chat_template == policy.tokenizer.chat_template
    policy = loaded(folders / "qwen")
    policy.tokenizer.eos_token = "<pad>"
    policy.save(tmp_path / "model")
    ends = {*map(policy.tokenizer.convert_tokens_to_ids, ("<|im_end|>", "<pad>"))}
    assert ends <= {*loaded(tmp_path / "model").stop_ids}
    policy.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    row, columns = {"q": "1?", "a": "1"}, ("q", "a")
    assert "no system role" in stop_of(rlvr.make_problem, row, columns, policy, config(folders / "qwen"))

def test_flags_for_chat_models(folders):
    c = config(folders / "qwen", "--device cpu --system_prompt Short. --stop_tokens ! 7",
               '--chat_template_kwargs {"suffix":"<think>"}')
    policy = rlvr.load_policy(c)
    assert {7, policy.tokenizer.convert_tokens_to_ids("!")} < {*policy.stop_ids}
    policy.tokenizer.chat_template += "{{ suffix }}"
    text = rlvr.make_problem({"q": "1?", "a": "1"}, ("q", "a"), policy, c).prompt
    assert text.startswith("<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\n1?")
    assert text.endswith("assistant\n<think>")
    with pytest.raises(ValueError, match="no question"):  # which a system prompt is not
        rlvr.make_problem({"q": [{"role": "user", "content": ""}], "a": "1"}, ("q", "a"), policy, c)

def test_rows_that_cannot_be_used_are_counted(folders, tmp_path, capsys):
    """And csv cells stay as they are written: 007 is no 7."""
    (tmp_path / "data.csv").write_text(
        "q,a\nshort,007\nshort,007\nno answer,\n,3\nother,4\n" + "word " * 200 + ",2\n")
    c = config(folders / "llama", "--prompt_column q --answer_column a --max_prompt_tokens 200 --dataset",
               tmp_path / "data.csv")
    problems = sum(rlvr.load_problems(c, rlvr.load_policy(c)), [])
    assert sorted(p.answer for p in problems) == ["007", "4"]
    shown = capsys.readouterr().out
    for words in ("3 rows", "a prompt longer than --max_prompt_tokens 200", "no answer", "no question"):
        assert words in shown

def test_folder_with_several_subsets_takes_main(folders, tmp_path):
    configs = ""
    for name in ("socratic", "main"):
        write_lines(tmp_path / f"{name}.jsonl", [{"question": name, "answer": "#### 1"}] * 9)
        configs += f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}.jsonl\n"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for flags, name in (("", "main"), ("--subset socratic", "socratic")):
        rows, columns = rlvr.load_rows(config(folders / "llama", "--dataset", tmp_path, flags))
        assert [row["question"] for row in rows] == [name] * 9 and columns == ["question", "answer"]

# ---------------------------------------------------------------------------------------- presets, bad input

def test_presets_and_precedence():
    for flags, expected in (
            ("", dict(preset="pos_adv_entropy", pos_schedule="entropy", pos_weight=0.0)),
            ("--preset grpo", dict(pos_weight=1.0)), ("--preset clip_higher", dict(eps_high=0.07)),
            ("--preset adv_nonpos --pos_weight 0.5", dict(pos_weight=0.5)),  # explicit wins
            ("--eps_high inf", dict(eps_high=math.inf)), *((f"--preset {name}", {}) for name in rlvr.PRESETS),
            ("--model Qwen/Qwen2.5-0.5B-Instruct", dict(
                eps_low=0.2, lr=1e-6, target_entropy=0.2,
                output_dir="runs/pos_adv_entropy-model=Qwen2.5-0.5B-Instruct-seed0"))):
        assert vars(rlvr.parse_config(command(flags))).items() >= expected.items()

BAD_FLAGS = """
--updates_per_batch 7 | --updates_per_batch 7, --prompts_per_step 32  ¦  --pos_schedule cosine | cosine, stage
--preset grpo --target_entropy 0.1 | --target_entropy  ¦  --pos_schedule stage --pos_weight 1 | --pos_weight
--report nowhere/* | nowhere/*, no finished run  ¦  --learning_rate 1 | --learning_rate, --help
--preset ppo | ppo, pos_adv_entropy  ¦  --split test | --split, countdown  ¦  --group_size 1 | --group_size 1
--temperature nan | --temperature  ¦  --num_prompts 0 | --num_prompts 0  ¦  --temperature 0 | --temperature
--pos_weight 2 | --pos_weight 2  ¦  --cov_share 2 | --cov_share 2  ¦  --steps many | --steps, many
--resume nowhere | nowhere  ¦  --eps_low -1 | --eps_low  ¦  --show nowhere | nowhere  ¦  --lr -1 | --lr
"""

@pytest.mark.parametrize("argv, words", cases(BAD_FLAGS))
def test_bad_flags(argv, words):
    message = message_of(argv)
    assert all(word in message for word in words.split(", "))

def test_bad_models(folders, tmp_path):
    policy = loaded(folders / "llama")
    renamed = {f"_orig_mod.{name}": tensor for name, tensor in policy.model.state_dict().items()}
    policy.save(tmp_path / "renamed")
    policy.model.save_pretrained(tmp_path / "renamed", state_dict=renamed)
    policy.tokenizer.eos_token = policy.tokenizer.pad_token = None
    policy.model.generation_config.eos_token_id = policy.model.config.eos_token_id = None
    policy.save(tmp_path / "no_eos")
    policy.tokenizer.add_tokens([f"<extra{i}>" for i in range(50)])
    policy.tokenizer.eos_token = "<extra0>"
    policy.save(tmp_path / "large")
    shutil.copytree(folders / "qwen", tmp_path / "own")
    (tmp_path / "own" / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}')
    (tmp_path / "own" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    for name, words in (
            ("no_eos", "no eos token"), ("large", "embedding only 320"), ("renamed", "would be random"),
            ("own", "no whole model"), ("adapter", "LoRA"), ("nowhere", "no such file or folder"),
            (folders / "qwen --stop_tokens <nope>", "no token of"),
            (folders / "qwen --max_new_tokens 200", "256 tokens of context")):
        assert words in message_of(SMALL, "--output_dir", tmp_path / "run", "--model", tmp_path / name), name
    assert "nobody/nothing" in message_of("--model nobody/nothing --output_dir", tmp_path / "run")
    assert not (tmp_path / "ran").exists()

def test_bad_data_and_rewards(folders, tmp_path):
    import datasets
    good = write_lines(tmp_path / "good.jsonl", [{"question": "1+1?", "answer": "2", "extra": 1}])
    rows = [{"question": f"{i}?", "answer": "" if i % 3 else "1"} for i in range(30)]
    few, disk = write_lines(tmp_path / "few.jsonl", rows), tmp_path / "disk"
    datasets.Dataset.from_list(rows).save_to_disk(disk)
    (tmp_path / "empty.jsonl").write_text("")
    qwen, demo = (f"--model {folders / name} --output_dir {tmp_path / 'run'}" for name in ("qwen", "demo"))
    for flags, words in (
            (f"--dataset {tmp_path}/empty.jsonl", "empty.jsonl"), ("--dataset nobody/data", "nobody/data"),
            (f"--dataset {HERE}/README.md", "README.md"), ("--dataset no.jsonl", "no such file or folder"),
            (f"--dataset {disk} --split nope", "--split nope, has train"),
            (f"--dataset {few}", "most rows cannot be used: 20 with no answer"),
            (f"--dataset {good} --prompt_column frage", "frage, question, answer, extra, --prompt_column"),
            (f"--dataset {good} --max_prompt_tokens 2", "longer than --max_prompt"),
            ("--reward vibes", "choose auto"), ("--reward nowhere.py:f", "no file"),
            (f"--dataset {good} --reward countdown", "are for --reward math"),
            (f"--reward {folders / 'own.py'}:nothing", "nothing")):
        message = message_of(qwen, SMALL, flags)
        assert all(word in message for word in words.split(", ")), flags
    assert "2nd epoch" in message_of(demo, "--preset pos_adv_epoch --steps 2")

def test_fuzzed_command_lines_end_in_one_line():
    rand = random.Random(0)
    flags = [f"--{f.name}" for f in dataclasses.fields(rlvr.Config)] + ["--oops", "-x", "stray"]
    values = ["", *"1 -1 0 nan inf 1e999 x true None [] ../.. é --lr 0.5".split()]
    lines = [[rand.choice((flags, values)[i % 2]) for i in range(rand.choice((2, 4, 6)))] for _ in range(200)]
    assert 100 < sum(bool(stop_of(rlvr.parse_config, argv)) for argv in lines) < 200

def test_malformed_data_files_end_in_one_line(folders, tmp_path):
    rand, refused, policy = random.Random(0), 0, loaded(folders / "qwen")
    odd = [None, 7, [], {}, "", [1], {"a": 1}, True, 1e300, "\x00", [{"role": "user"}], [[]], "\ud83d"]
    for number in range(80):
        file = tmp_path / f"{number}.{rand.choice(['jsonl', 'json', 'csv', 'parquet'])}"
        rows = [{"question": f"{i}?", "answer": str(i)} for i in range(8)]
        for _ in range(rand.randint(0, 3)):
            rand.choice(rows)[rand.choice(["question", "answer", "more"])] = rand.choice(odd)
        data = "\n".join(map(json.dumps, rows)).encode()
        if rand.random() < 0.5:
            data = data[:rand.randrange(len(data))] + rand.randbytes(rand.randint(0, 9))
        file.write_bytes(data)
        c = config(folders / "qwen", "--eval_prompts 0 --dataset", file)
        if message := stop_of(rlvr.load_problems, c, policy):
            refused += str(file) in message or pytest.fail(message)
    assert 10 < refused < 80

# ------------------------------------------------------------------------------------------------ verify.py

from textwrap import dedent

RIGHT = [  # gold, answer
    ("x > 3", "3 < x"),
    (r"x \ne 3", r"3 \ne x"),
    ("36", "3 dozen"),
    (r"\bar x = 3, y = 2", r"y = 2, \bar{x} = 3"),
    ("3.5", "3½"),
    (
        r"\begin{pmatrix}4\\6\end{pmatrix}",
        r"\begin{bmatrix}1\\2\end{bmatrix}+\begin{bmatrix}3\\4\end{bmatrix}",
    ),
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
    (r"\frac12\begin{pmatrix}2\\4\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
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
    ("5 feet 11 inches", "5 ft 11 in"),
    ("0", r"\sin\pi"),
    ("11100", r"11,\! 100"),
    ("x=1, y=2", "y=2, x=1"),
    ("0", r"\sin^2 x+\cos^2 x-1"),
    ("2F_{16}", "2F_{16}"),
    ("y=2x+1", "2y=4x+2"),
    ("5 lbs", "5 pounds"),
    ("42", r"\{42\}"),
    ("42", "forty-two"),
    ("42", r"\color{red}{42}"),
    ("2000000", "two million"),
    (r"\frac{1}{2}", "one half"),
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
]
WRONG = [
    ("x < 3", "3 < x"),
    ("1", "①"),
    (r"\bar{x}", r"\bar{X}"),
    ("2", r"\begin{vmatrix}1&2\\3&4\end{vmatrix}"),
    ("42", "4 2"),
    (r"2.5\cdot10^9", "2.5 million"),
    (r"\frac13", r"0.\overline{33}1"),
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
⟨ ⟩ and √ ** \boxed{ \$ cm ° million (cm) 2:45 p.m. ... \prime a_{n-1} \mid ½ ₁ \setminus f(t)
forty to or \bar
""".split()

def test_math_fuzz_never_raises():
    rand = random.Random(1)
    for _ in range(3000):
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
    parts = [(str(n), str(n), Fraction(n)) for n in rand.sample(numbers, len(numbers))]
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
    for _ in range(300):
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
    "plain data": ("assert f() == ({(0, 1): 'a'}, frozenset({1}), 3 + 4j, b'x', None, True, 1.5)", """
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
    "dataclasses are compared": ("""
        assert f(1) == Point(1, 2)
        assert f(1) != Point(2, 2)
        """, """
        from dataclasses import dataclass
        @dataclass
        class Point:
            x: int
            y: int
        f = lambda x: Point(x, 2)
        """),
    "Enum": ("assert f(1) == Color.RED and f(0) == Color.BLUE", """
        from enum import Enum
        Color = Enum('Color', 'RED BLUE')
        f = lambda x: Color.RED if x else Color.BLUE
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

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")

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
def test_code_is_judged_within_limits_and_leaves_nothing(sandbox, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    programs = BAD_CODE | LIMITS
    assert rewards_of_programs(programs) == dict.fromkeys(programs, 0.0)
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

    cases_of = [("a",), ("",), ("exit",), ("bb",), ("nan",), ("inf",)]
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

# ------------------------------------------------------------------------------------------ the whole thing

GLOSSARY = re.search(r"\| in `metrics.jsonl`.*?\n\n", (HERE / "README.md").read_text(), re.S)[0]
METRICS = re.findall(r"`(\w+)`", GLOSSARY)
SHORT = "--steps 4 --prompts_per_step 4 --group_size 4 --num_prompts 40 --eval_prompts 8 --eval_samples 4"
LAUNCHER = f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node 2 {HERE / 'rlvr.py'}"

@pytest.fixture(scope="session")
def short(folders):
    """Flags of a run of seconds. The hasty demo solves no problem: the reward is one that it can get."""
    return f"--model {folders / 'demo'} --reward {folders / 'own.py'}:odd {SHORT}"

@pytest.fixture(scope="session")
def run(short, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "short"
    argv = command(sys.executable, HERE / "rlvr.py", "--output_dir", out, short)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(out=out, stdout=done.stdout, screen=done.stdout + done.stderr)

def assert_same_run(a, b):
    for file in ("metrics.jsonl", "samples.jsonl"):
        assert read_lines(a / file) == read_lines(b / file)
    assert torch.equal(weights(a / "final"), weights(b / "final"))
    assert not list(a.glob(".*"))  # no half-written folder stays

def test_command_line_run_leaves_files_that_others_open(run, folders):
    metrics, samples = read_lines(run.out / "metrics.jsonl", drop="-"), read_lines(run.out / "samples.jsonl")
    assert [m["step"] for m in metrics] == sorted({s["step"] for s in samples}) == [0, 1, 2, 3]
    assert len(METRICS) > 30 and all(set(m) == set(METRICS) for m in metrics)  # as in the README's glossary
    assert all(m["logp_gap"] < 1e-3 and m["ratio_gap"] < 1e-3 for m in metrics)
    assert [m["lambda"] for m in metrics] == pytest.approx([0, 0.1, 0.2, 0.3])  # H > target
    assert {*"prompt response reward advantage finish_reason entropy tokens".split()} <= set(samples[0])
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
    """Stop after two steps as a signal does, resume, and compare with the run that nobody stopped."""
    out = tmp_path / "run"
    monkeypatch.setattr(rlvr, "warn_if_useless", lambda c, record, start:
                        record["step"] != 1 or os.kill(os.getpid(), signal.SIGINT))
    message = message_of("--output_dir", out, short)
    assert "stopped after step 1" in message and f"--resume {out}" in message
    monkeypatch.undo()
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "reward": 9}\n{"step": 3, "half a li')  # what a crash may leave
    rlvr.main(["--resume", str(out)])
    assert_same_run(out, run.out)
    assert "another --lr" in message_of("--output_dir", out, short, "--lr 0.5")
    for flags, words in ((f"{out}/checkpoint-000004", "the folder around"), (f"{out} --steps 3", "done 4"),
                         (f"{out} --lr 0.5", "another --lr")):
        assert words in message_of("--resume", flags)
    for mine in ("checkpoint-best", "checkpoint-000002-keep"):
        (out / mine).mkdir()
    rlvr.main(command("--resume", out, "--steps 5"))
    assert sorted(path.name for path in out.glob("checkpoint-*")) == [
        "checkpoint-000002-keep", "checkpoint-000005", "checkpoint-best"]
    assert [m["step"] for m in read_lines(out / "metrics.jsonl")] == [0, 1, 2, 3, 4]

@linux
def test_folders_of_others_are_refused(folders, short, tmp_path):
    import fcntl
    before = weights(folders / "qwen")
    for name in ("qwen", ""):
        assert "holds" in message_of("--output_dir", folders / name, short)
    assert torch.equal(weights(folders / "qwen"), before)
    (tmp_path / "run").mkdir()
    lock = os.open(tmp_path / "run", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    assert "another run writes there" in message_of("--output_dir", tmp_path / "run", short)
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
        flags = f"--preset grpo --eps_high inf --eps_low inf --reuse 8 --cov_share {penalty // 100} --lr 3e-3"
        log = go(tmp_path / str(penalty), short, flags, f"--cov_penalty {penalty}")
        moved[penalty] = sum(m["ratio_pos"] - m["ratio_neg"] for m in log)
    assert 0 < moved[100] < 0.5 * moved[0]

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}

def test_two_processes_make_the_same_run(run, short, tmp_path):
    argv = command(LAUNCHER, "--output_dir", tmp_path / "run", short)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out prompts") == 1  # one process speaks
    log, logs = (read_lines(out / "metrics.jsonl") for out in (run.out, tmp_path / "run"))
    for a, b in zip(log, logs, strict=True):
        assert all(a[k] == pytest.approx(b[k], abs=1e-5) for k in a)
    for a, b in zip(*(read_lines(out / "samples.jsonl") for out in (run.out, tmp_path / "run")), strict=True):
        assert (a["response"], a["reward"]) == (b["response"], b["reward"])
    assert torch.allclose(weights(run.out / "final"), weights(tmp_path / "run" / "final"), atol=1e-5)

def test_the_same_command_again_skips_or_continues(run, short, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    monkeypatch.setattr(rlvr, "evaluate", Mock(side_effect=KeyboardInterrupt))  # before the first step
    assert "interrupted" in message_of("--output_dir", out, short)
    monkeypatch.undo()
    assert go(out, short) == read_lines(run.out / "metrics.jsonl")
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    go(out, short)
    assert "this run is finished" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in out.rglob("*")}

def test_few_prompts_come_back_within_a_step(folders, tmp_path):
    go(tmp_path / "run", f"--model {folders / 'demo'} --reward {folders / 'own.py'}:odd --num_prompts 3",
       "--prompts_per_step 8 --group_size 4 --steps 1 --eval_prompts 0 --log_samples 32")
    samples = read_lines(tmp_path / "run" / "samples.jsonl")
    assert len({s["prompt"] for s in samples}) == 3 and len({s["response"] for s in samples}) > 20

FORKSERVER = multiprocessing.get_context("forkserver")

def killed_at(moment, flags):
    """Run in a child process and kill it after so many seconds; its exit code, None if it was running."""
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
            assert_same_run(folder, calm)
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
    mark, out = tmp_path / "died", tmp_path / "run"
    (tmp_path / "deadly.py").write_text(
        f"import os, pathlib\ncalls, mark = [], pathlib.Path({str(mark)!r})\ndef odd(response, answer):\n"
        "    calls.append(1)\n    if os.getenv('RANK') == '1' and len(calls) > 25 and not mark.exists():\n"
        "        mark.write_text('')\n        os._exit(3)\n    return len(response) % 2\n")
    argv = command(LAUNCHER, short, f"--save_every 1 --reward {tmp_path}/deadly.py:odd --output_dir {out}")
    done = subprocess.run(argv, capture_output=True, timeout=100, env=ONE_THREAD)
    assert done.returncode != 0 and mark.exists() and 0 < len(read_lines(out / "metrics.jsonl")) < 4
    rlvr.main(["--resume", str(out)])
    assert [m["step"] for m in read_lines(out / "metrics.jsonl")] == [0, 1, 2, 3]

def test_empty_responses_and_prompts_that_fill_the_context(folders, tmp_path):
    """Every token ends a response; the prompt, the only one, is as long as it may be."""
    policy, c = loaded(folders / "qwen"), config(folders / "qwen", "--max_prompt_tokens 999")
    row = {"question": "x " * 89, "answer": "2"}
    size = len(rlvr.make_problem(row, ("question", "answer"), policy, c).ids)
    flags = (f"--model {folders / 'qwen'} --dataset {write_lines(tmp_path / 'one.jsonl', [row])} --steps 2 "
             "--max_new_tokens 4 --eval_prompts 1 --prompts_per_step 4 --max_prompt_tokens")
    for m in go(tmp_path / "run", flags, size, "--stop_tokens", *range(320)):
        assert m["length"] == 1 and m["zero_adv"] == 1 and m["reward"] == 0 and m["loss"] == 0
    assert size == 251 and "no usable prompt" in message_of(flags, size - 1, f"--output_dir {tmp_path}/none")

def test_warnings_that_teach():
    fine = dict(step=9, zero_adv=0.2, entropy=0.3, clip_pos=0.01, clip_neg=0.02, truncated=0.0)
    unclipped = dict(clip_pos=0, clip_neg=0)
    for change, *words in (({},), (unclipped | dict(step=1),), (unclipped, "--reuse"),  # warm-up moves little
                           (dict(zero_adv=0.8), "--group_size"), (dict(entropy=0.7), "--lr"),
                           (dict(entropy=0.02), "collapsed"), (dict(truncated=0.3), "--max_new_tokens")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rlvr.warn_if_useless(rlvr.parse_config([]), fine | change, 0.3)
        assert len(caught) == len(words) and all(word in str(w.message) for word, w in zip(words, caught))

def test_show_prints_rollouts(run, tmp_path, capsys):
    rlvr.main(["--show", str(run.out)])
    text = capsys.readouterr().out
    samples = [s for s in read_lines(run.out / "samples.jsonl") if s["step"] == 3]
    assert text.count("step 3\n") == len(samples) and "\033" not in text
    assert all(s["prompt"] + "".join(s["tokens"]) in text for s in samples)
    assert f"extracted {samples[0]['extracted']!r}" in text
    samples[0]["tokens"][0] = "\033[2J"  # what would clear the screen
    with open(write_lines(tmp_path / "samples.jsonl", samples), "a") as file:
        file.write('{"step": 4, "half')  # a line that is being written
    rlvr.main(["--show", str(tmp_path)])
    assert "\033" not in capsys.readouterr().out
    assert "steps 0 to 3" in message_of("--show", run.out, "--step 9")

def fake_run(folder, flags, **values):
    """The files of a finished run with these held-out values after training."""
    c = rlvr.parse_config(command(flags))
    names = "avg@32 entropy ece ungraded distinct diversity overconfidence length truncated".split()
    before = dict.fromkeys([*names, *(f"pass@{2**i}" for i in range(6))], 0.5) | {"intervals": {}}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(c)))
    (folder / "summary.json").write_text(json.dumps({"before": before, "after": before | values}))
    write_lines(folder / "metrics.jsonl", [
        {"step": i, "reward": 0.1, "solved": 0.2, "lambda": 1.0, "entropy": c.target_entropy + 0.1 * (i < 6),
         "dH_pos": -0.1 * i, "dH_neg": 0.0, "dH": -0.01 * i} for i in range(9)])

def test_report(tmp_path, capsys):
    for flags, avg, H in (("grpo --seed 0", 0.4, 0.1), ("pos_adv_entropy --seed 0", 0.44, 0.2),
                          ("grpo --seed 1", 0.5, 0.11), ("pos_adv_entropy --seed 1", 0.6, 0.21),
                          ("grpo --num_prompts 16", 0.3, 0.05)):
        fake_run(tmp_path / flags, f"--preset {flags}", **{"avg@32": avg, "entropy": H, "ece": -H})
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.json").write_text("{}")
    rlvr.main(["--report", str(tmp_path / "*")])
    shown = capsys.readouterr()
    table = [[cell.strip() for cell in line[1:-1].split("|")] for line in shown.out.strip().splitlines()]
    rows = {row[0]: dict(zip(table[0], row)) for row in table[2:]}
    assert ", ".join(f"{row['run']} {row['seeds']}" for row in rows.values()) == (
        "before training 2, pos_adv_entropy 2, grpo 2, grpo-num_prompts=16 1, Spearman with entropy 5")
    assert "unfinished" in shown.err
    for row, column, expected in (  # by seed +10 % and +20 %: mean 15, standard error 5, t(1) = 12.71
            ("grpo", "avg@32", "0.450 ± 0.071"), ("pos_adv_entropy", "avg@32", "0.520 ± 0.113 (+15 ± 64 %)"),
            ("grpo-num_prompts=16", "avg@32", "0.300 (-25 %)"), ("Spearman with entropy", "ece", "-1.00"),
            ("Spearman with entropy", "avg@32", "+0.90"),  # 1 - 6 (1 + 1) / (5 x 24)
            ("pos_adv_entropy", "off target", "0.000 ± 0.000"), ("grpo", "off target", ""),
            ("grpo", "dH_pos", "-0.400 ± 0.000"), ("grpo", "r_dH", "1.000 ± 0.000")):
        assert rows[row][column] == expected
    # Models with the same last name, configurations that differ behind the 200th character: without the rest.
    for flags in ("--model one/m", "--model two/m", "--model one/m --warmup_steps 3"):
        fake_run(tmp_path / "far" / flags.replace("/", ""), f"{flags} --preset grpo --dataset {'d' * 200}")
    rlvr.main(["--report", str(tmp_path / "far" / "*")])
    names = re.findall(r"^\| (grpo\S*)", capsys.readouterr().out, re.M)
    assert sorted(names) == ["grpo-model=one/m", "grpo-model=one/m-warmup_steps=3", "grpo-model=two/m"]
    pytest.importorskip("matplotlib")
    assert (tmp_path / "report.png").stat().st_size > 10000

def test_numbers_that_went_wrong_stop_the_run(short, tmp_path, monkeypatch):
    """A sampler at another temperature; scoring that differs with gradient; a loss that is nan at the first
    update of step 1 (there are 2 mini-batches x 4 passes a step)."""
    sample, score, loss, calls = rlvr.sample, rlvr.score, rlvr.policy_loss, itertools.count(1)
    for name, words, spoiled in (
            ("sample", "sampler and trainer disagree", lambda *args: sample(*args[:3], 3.0)),
            ("score", "the ratio was off 1", lambda *args: [
                x + 0.5 * torch.is_grad_enabled() for x in score(*args)]),
            ("policy_loss", "step 1: loss or gradient not finite", lambda *args: loss(
                *args[:4], args[4] * (math.nan if next(calls) == 9 else 1), *args[5:]))):
        with monkeypatch.context() as patch:
            patch.setattr(rlvr, name, spoiled)
            assert words in message_of("--output_dir", tmp_path / name, short)
    out = tmp_path / "policy_loss"  # has the weights of the last step that was whole
    assert torch.isfinite(weights(out / "last_good")).all() and len(read_lines(out / "metrics.jsonl")) == 1

def test_broken_folders_end_in_one_line(short, folders, tmp_path):
    """A file of a run or a model that is cut off, gone, empty, of another kind or a Git LFS pointer."""
    run, rand, refused = tmp_path / "run", random.Random(0), 0
    go(run, short, "--eval_prompts 0")
    (run / "summary.json").unlink()
    for number in range(40):
        copy = tmp_path / str(number)
        shutil.copytree((folders / "qwen", run)[number % 2], copy)
        file = rand.choice(sorted(f for f in copy.rglob("*.*") if f.is_file() and "final" not in f.parts))
        cut = (data := file.read_bytes())[:rand.randrange(len(data) or 1)]
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9"
        damage = rand.choice([None, cut, pointer, b"", b"[1]"])
        file.unlink() if damage is None else file.write_bytes(damage)
        if message := stop_of(*((rlvr.main, ["--resume", str(copy)]) if number % 2 else (loaded, copy))):
            refused += str(copy) in message or pytest.fail(message)
    assert 10 < refused < 40
    checkpoint = run / "checkpoint-000004" / "trainer.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:999])
    assert "checkpoint-000004: damaged" in message_of("--resume", run)
    (run / "config.json").write_text("{")
    assert "config.json: damaged" in message_of("--resume", run)

@pytest.mark.parametrize("name, flags", [*((m, "--gradient_checkpointing") for m in ("qwen", "gpt2")),
                                         ("llama", "--advantage mean --reuse 2")])
def test_hugging_face_model_trains_on_own_data_and_reward(folders, tmp_path, name, flags):
    """The reward, short responses, comes from the user's own file; it rises, and the policy is saved. The
    ratio is 1 before the first update: GPT-2's dropout is off, in training mode too."""
    data = write_lines(tmp_path / "data.jsonl", [{"prompt": f"p{i}", "answer": str(i)} for i in range(40)])
    log = go(tmp_path / "run", flags, f"--model {folders / name} --dataset {data} --steps 12 --reward",
             f"{folders}/own.py:few --prompts_per_step 8 --max_new_tokens 12 --max_prompt_tokens 100",
             "--lr 1e-2 --seed 5 --warmup_steps 1 --eval_prompts 2 --eval_samples 2 --preset grpo")
    assert all(m["logp_gap"] < 1e-3 and m["ratio_gap"] < 1e-3 for m in log) and 0 < log[0]["truncated"]
    assert log[-1]["reward"] > log[0]["reward"] + 0.1
    tf.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")

# ------------------------------------------------------------------------------------------------------ GPU

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("flags", ["", "--gradient_checkpointing"])
@pytest.mark.parametrize("name", ["qwen", "gemma", "demo", "gpt2"])
def test_cuda_graphs_decode_token_for_token_and_the_trainer_agrees_in_bf16(folders, name, flags):
    policy = loaded(folders / name, "--max_prompt_tokens 32 --max_new_tokens 200", flags)
    policy = replace(policy, stop_ids=list(range(0, 320, 40)))  # rows leave at all times
    for rows in (30, 48):
        fast, slow = (rlvr.sample(replace(policy, by_graph=graph), PROMPTS, seeded(rows, 200, rows), 1.0)
                      for graph in (True, False))
        assert all(map(torch.equal, fast[:3], slow[:3]))
    responses = [row[:n] for row, n in zip(fast[0].tolist(), fast[1].tolist())]
    logp, _, _ = rlvr.score(policy, [PROMPTS[i // 16] for i in range(48)], responses, 1.0)
    assert logp.dtype == torch.float32 and (logp - fast[3][:, :logp.shape[1]]).abs().mean() < 0.05

@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL takes one process per GPU")
def test_cuda_two_processes_share_a_run(short, tmp_path):
    argv = command(LAUNCHER, "--output_dir", tmp_path / "run", short)
    assert subprocess.run(argv, timeout=300).returncode == 0
