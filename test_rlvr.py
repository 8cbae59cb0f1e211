"""Tests: behaviour, no network, no GPU needed. Every fast path is compared with a slow and obvious twin."""
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=tempfile.mkdtemp(prefix="rlvr-test-"), TOKENIZERS_PARALLELISM="false")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config,
                          Qwen2ForCausalLM)

import rlvr
import verify

HERE = Path(__file__).parent
CORPUS = ["What is 12 + 30? The answer is 42.", "A train has 3 cars of 20 seats: 60 seats.", "def add(a, b): return a + b"]
CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def bpe_tokenizer(pad_is_eos, chat_template=None):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|im_end|>"] if pad_is_eos else ["<|im_end|>", "<|im_start|>", "<pad>"]
    core.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", chat_template=chat_template,
                                   pad_token="<|im_end|>" if pad_is_eos else "<pad>")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Saved policies: a Qwen2 with a chat template, a Llama whose pad token is its eos token, a hasty demo."""
    root, sizes = tmp_path_factory.mktemp("models"), dict(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.4)
    torch.manual_seed(0)
    for name, model, tokenizer in (
            ("qwen", Qwen2ForCausalLM(Qwen2Config(**sizes)), bpe_tokenizer(False, CHATML)),
            ("llama", LlamaForCausalLM(LlamaConfig(**sizes)), bpe_tokenizer(True))):
        rlvr.Policy(model, tokenizer, [0]).save(root / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rlvr, "DEMO_RECIPE", rlvr.DEMO_RECIPE | dict(steps=3, batch=16))
        rlvr.pretrain_demo(root / "demo")
    return root


def config(model, *flags):
    return rlvr.parse_config(["--model", str(model), *map(str, flags)])


@pytest.fixture(params=["qwen", "llama", "demo"])
def policy(folders, request):
    return rlvr.load_policy(config(folders / request.param, "--max_prompt_tokens", 32, "--max_new_tokens", 16))


# ------------------------------------------------------------------------------------------------------- loss

def loss_of(ratio, A, lam=1.0, low=0.2, high=0.3, neg=1.0, normalizer=None):
    """Loss and gradient on logp for a (1, T) row of ratios with one advantage."""
    old = torch.full((1, len(ratio)), -1.0)
    logp = (old + torch.tensor([ratio]).log()).requires_grad_()
    mask = torch.ones_like(old, dtype=torch.bool)
    loss, stats = rlvr.policy_loss(logp, old, torch.tensor([A]), mask, normalizer or len(ratio), low, high, lam, neg)
    loss.backward()
    return loss.item(), logp.grad[0], stats


@pytest.mark.parametrize("A, ratio, alive", [
    (1.0, 0.5, True), (1.0, 1.0, True), (1.0, 1.5, False), (-1.0, 0.5, False), (-1.0, 1.0, True), (-1.0, 1.5, True)])
def test_gradient_lives_where_the_paper_says(A, ratio, alive):
    _, gradient, stats = loss_of([ratio], A)
    assert gradient.item() == pytest.approx(-ratio * A if alive else 0.0)  # descent raises logp where A > 0
    assert stats["clip_pos"] + stats["clip_neg"] == (not alive)


def test_lambda_touches_positive_tokens_only():
    for A in (1.0, -1.0):
        plain, weighted = loss_of([0.9, 1.1], A)[1], loss_of([0.9, 1.1], A, lam=0.25)[1]
        assert torch.allclose(weighted, plain * (0.25 if A > 0 else 1.0))
        assert torch.allclose(loss_of([0.9, 1.1], A, neg=0.5)[1], plain * (0.5 if A < 0 else 1.0))


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
    loss, stats = rlvr.policy_loss(logp, old, A, mask, count, 0.2, 0.3, 1.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert (stats["tokens_pos"], stats["tokens_neg"]) == (7, 1)


def test_no_clipping_with_infinite_eps():
    assert loss_of([1e-3], -1.0, low=math.inf)[1].item() == pytest.approx(1e-3)
    assert loss_of([1e3], 1.0, high=math.inf)[1].item() == pytest.approx(-1e3)


@pytest.mark.parametrize("A", [1.0, -1.0, 0.0])
def test_batches_of_one_sign_are_finite(A):
    loss, gradient, _ = loss_of([1.0, 1.0], A)
    assert math.isfinite(loss) and torch.isfinite(gradient).all() and (A != 0 or not gradient.any())


def policy_gradient(policy, prompts, responses, A, split, pad=0):
    """Gradient of the loss of these rows, in the given micro-batches."""
    policy.model.zero_grad()
    for rows in split:
        logp, _ = rlvr.score(policy, [prompts[i] for i in rows], [responses[i] for i in rows], 1.0)
        logp = torch.nn.functional.pad(logp, (0, pad), value=3.0)
        mask = torch.tensor([[t < len(responses[i]) for t in range(logp.shape[1])] for i in rows])
        old = (logp + 0.1 * mask).detach()
        loss, _ = rlvr.policy_loss(logp, old, A[rows], mask, sum(map(len, responses)), 0.2, 0.2, 0.5)
        loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None]).clone()


def test_loss_does_not_depend_on_padding_micro_batches_or_order(policy):
    rand = random.Random(0)
    prompts = [[rand.randrange(3, 20) for _ in range(n)] for n in (3, 9, 5, 7)]
    responses = [[rand.randrange(3, 20) for _ in range(n)] for n in (6, 1, 4, 8)]
    A = torch.tensor([1.0, -1.0, 0.5, -2.0])
    whole = policy_gradient(policy, prompts, responses, A, [[0, 1, 2, 3]])
    for split, pad in (([[3, 1, 0, 2]], 0), ([[0], [1], [2], [3]], 0), ([[2, 0], [1, 3]], 5)):
        assert torch.allclose(policy_gradient(policy, prompts, responses, A, split, pad), whole, rtol=1e-3, atol=1e-6)
    assert whole.abs().max() > 1e-3


def test_micro_batches_hold_the_budget_and_every_row():
    rand = random.Random(0)
    sizes = [rand.randint(1, 40) for _ in range(100)]
    batches = rlvr.micro_batches(range(100), sizes, 64)
    assert sorted(sum(batches, [])) == list(range(100))
    assert all(len(rows) * max(sizes[i] for i in rows) <= 64 or len(rows) == 1 for rows in batches)
    assert rlvr.micro_batches([0], [99], 64) == [[0]]  # a row over the budget goes alone


# ------------------------------------------------------------------------------- log-probability and entropy

@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_head_equals_dense_twin(temperature):
    torch.manual_seed(0)
    hidden, targets = torch.randn(23, 8, requires_grad=True), torch.randint(0, 50, (23,))
    head = torch.nn.Linear(8, 50)
    logp, entropy = rlvr.logp_entropy(hidden, head, targets, temperature, max_logits=200)  # 4 tokens a chunk
    weights = torch.randn(2, 23)
    (weights[0] @ logp + weights[1] @ entropy).backward()
    fast = [hidden.grad.clone(), head.weight.grad.clone(), head.bias.grad.clone()]
    hidden.grad, head.weight.grad, head.bias.grad = None, None, None

    dense = torch.log_softmax(head(hidden) / temperature, -1)
    twin = dense[torch.arange(23), targets], torch.distributions.Categorical(logits=dense).entropy()
    assert torch.allclose(logp, twin[0], atol=1e-5) and torch.allclose(entropy, twin[1], atol=1e-5)
    (weights[0] @ twin[0] + weights[1] @ twin[1]).backward()
    for a, b in zip(fast, (hidden.grad, head.weight.grad, head.bias.grad)):
        assert torch.allclose(a, b, atol=1e-5)


def test_chunked_head_never_holds_all_logits():
    """Counted where they are made: the largest output of the head."""
    head, sizes = torch.nn.Linear(4, 1000), []
    head.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    hidden = torch.randn(64, 4, requires_grad=True)
    logp, _ = rlvr.logp_entropy(hidden, head, torch.zeros(64, dtype=torch.long), 1.0, max_logits=8000)
    logp.sum().backward()
    assert max(sizes) <= 8000 and sum(sizes) == 2 * 64 * 1000  # each token once forward, once again in backward


def test_entropy_of_a_uniform_distribution_is_log_v():
    logp, entropy = rlvr.log_softmax_entropy(torch.zeros(3, 77, dtype=torch.bfloat16), 1.0)
    assert entropy.dtype == logp.dtype == torch.float32
    assert torch.allclose(entropy, torch.full((3,), math.log(77)))


def test_score_equals_one_row_at_a_time(policy):
    """The twin runs each row alone through the whole model, without padding or chunks."""
    prompts, responses = [[5, 6, 7], [0, 9, 10, 11, 0]], [[8, 0], [3, 4, 5, 6]]  # 0 is pad or eos somewhere
    logp, entropy = rlvr.score(policy, prompts, responses, 0.8)
    for i, (p, r) in enumerate(zip(prompts, responses)):
        dense = torch.log_softmax(policy.model(torch.tensor([p + r])).logits[0, len(p) - 1:-1] / 0.8, -1)
        assert torch.allclose(logp[i, :len(r)], dense[torch.arange(len(r)), torch.tensor(r)], atol=1e-4)
        assert torch.allclose(entropy[i, :len(r)], -(dense.exp() * dense).sum(-1), atol=1e-4)
        assert not logp[i, len(r):].any() and not entropy[i, len(r):].any()


# ----------------------------------------------------------------------------------------------------- sampler

PROMPTS = [[5, 6, 7], [4, 0, 9, 10, 11, 12], [13]]  # unequal lengths, one with the pad or eos id inside


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


def test_sampler_equals_slow_twin(policy):
    policy = replace(policy, stop_ids=list(range(0, 320, 9)))  # responses of all lengths
    uniforms = torch.rand(12, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        tokens, lengths, finished, logp, entropy = rlvr.sample(policy, PROMPTS, uniforms, 0.9)
        for row in range(12):
            slow = slow_sample(policy, PROMPTS[row // 4], uniforms[row], 0.9)
            n = int(lengths[row])
            assert tokens[row, :n].tolist() == slow[0]
            assert bool(finished[row]) == (slow[0][-1] in policy.stop_ids)  # the stop token is kept
            assert logp[row, :n].tolist() == pytest.approx(slow[1], abs=1e-4)
            assert entropy[row, :n].tolist() == pytest.approx(slow[2], abs=1e-4)
    assert len(set(lengths.tolist())) > 2 and not tokens[:, 15][lengths < 16].any()


def test_retiring_and_batching_change_nothing(policy):
    policy = replace(policy, stop_ids=list(range(0, 320, 5)))
    uniforms = torch.rand(48, 16, generator=torch.Generator().manual_seed(4))
    together = rlvr.sample(policy, PROMPTS, uniforms, 1.0)
    for i, prompt in enumerate(PROMPTS):
        alone = rlvr.sample(policy, [prompt], uniforms[16 * i:16 * i + 16], 1.0)
        assert torch.equal(alone[0], together[0][16 * i:16 * i + 16]) and torch.equal(alone[1], together[1][16 * i:16 * i + 16])


def test_cost_follows_the_tokens_produced(policy):
    """Rows that the model is given: at most twice the tokens produced, and one prefill per prompt."""
    policy, rows = replace(policy, stop_ids=list(range(0, 320, 5))), []
    hook = policy.model.register_forward_hook(lambda module, inputs, out: rows.append(out.logits.shape[0]))
    uniforms = torch.rand(300, 16, generator=torch.Generator().manual_seed(4))
    lengths = rlvr.sample(policy, PROMPTS, uniforms, 1.0)[1]
    hook.remove()
    assert rows[0] == 3 and sum(rows[1:]) <= 2 * int(lengths.sum())


def test_greedy_equals_generate(policy):
    """At a vanishing temperature sampling is the argmax."""
    for prompt in PROMPTS:
        tokens, lengths, *_ = rlvr.sample(policy, [prompt], torch.full((1, 16), 0.5), 1e-6)
        ids = torch.tensor([prompt])
        twin = policy.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16,
                                     eos_token_id=policy.stop_ids, pad_token_id=0)[0, len(prompt):].tolist()
        assert tokens[0, :int(lengths[0])].tolist() == twin


def test_rollout_agrees_with_score_and_chunks(policy):
    c = SimpleNamespace(max_new_tokens=12, sample_rows=1000, temperature=0.9)
    problems = [rlvr.Problem("", ids, None, "math") for ids in PROMPTS]
    whole = rlvr.rollout(policy, problems, 4, c, 0, "test")
    c.sample_rows = 4
    parts = rlvr.rollout(policy, problems, 4, c, 0, "test")
    assert whole.responses == parts.responses and whole.mask.sum() == sum(map(len, whole.responses))
    assert rlvr.rollout(policy, problems, 4, c, 1, "test").responses != whole.responses
    with torch.no_grad():
        logp, entropy = rlvr.score(policy, [p.ids for p in whole.problems], whole.responses, 0.9)
    assert torch.allclose(logp, whole.logp * whole.mask, atol=1e-4)
    assert torch.allclose(entropy, whole.entropy * whole.mask, atol=1e-4)


def test_samples_follow_the_distribution(policy):
    """Frequencies of the first token against the softmax (chi-square like, seeded)."""
    uniforms = torch.rand(20000, 1, generator=torch.Generator().manual_seed(0))
    tokens = rlvr.sample(policy, [PROMPTS[0]], uniforms, 1.0)[0][:, 0]
    p = torch.softmax(policy.model(torch.tensor([PROMPTS[0]])).logits[0, -1], -1)
    counts = torch.bincount(tokens, minlength=len(p))
    assert ((counts - 20000 * p).abs() <= 5 * (20000 * p * (1 - p)).sqrt() + 1).all()


# --------------------------------------------------------------- advantages, pass@k, schedules, evaluation

def test_advantages():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.3, 0.3, 0.3, 0.3], [0.0, 0.0, 0.0, 1.0]])
    std, mean = rlvr.advantages(rewards), rlvr.advantages(rewards, "mean")
    assert not std[1:3].any() and not mean[1:3].any()  # exactly 0, also where the mean is not exact
    assert mean[3].tolist() == [-0.25, -0.25, -0.25, 0.75]
    assert std[3].tolist() == pytest.approx([-0.5, -0.5, -0.5, 1.5])  # sample standard deviation 0.5
    assert torch.allclose(std.sum(-1), torch.zeros(4), atol=1e-6)


def test_pass_at_k_equals_brute_force():
    for n, correct, k in itertools.product([6], range(7), range(1, 7)):
        draws = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
        assert rlvr.pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_schedules():
    def c(schedule, **more):
        return SimpleNamespace(pos_schedule=schedule, steps=11, pos_weight=0.3, target_entropy=0.2, pos_delta=0.05, **more)
    assert [rlvr.next_pos_weight(c("constant"), s, 0.9, 0.1) for s in range(3)] == [0.3] * 3
    assert [rlvr.next_pos_weight(c("stage"), s) for s in (0, 5, 6, 8, 10)] == pytest.approx([0, 0, 0.2, 0.6, 1])
    assert [rlvr.next_pos_weight(c("epoch"), 0, epoch=e, epochs=5) for e in range(1, 6)] == [0, 0.25, 0.5, 0.75, 1]
    entropy, lam, path = [0.3, 0.3, 0.1, 0.1, 0.1, 0.2], rlvr.next_pos_weight(c("entropy"), 0), []
    for step, h in enumerate(entropy):
        path.append(lam := rlvr.next_pos_weight(c("entropy"), step + 1, lam, h))
    assert path == pytest.approx([0.35, 0.4, 0.35, 0.3, 0.25, 0.3])
    assert rlvr.next_pos_weight(c("entropy"), 1, 0.98, 0.3) == 1.0 and rlvr.next_pos_weight(c("entropy"), 1, 0.02, 0.1) == 0.0


def test_evaluate_counts(policy, monkeypatch):
    """Against rollouts that are known: 2 problems x 4 responses."""
    texts = ["a", "a", "b", "x", "x", "x", "x", "x"]
    mask = torch.tensor([[True, True], [True, False]] * 4)
    rollouts = rlvr.Rollouts([SimpleNamespace(kind="?", answer="ab")] * 8, [], [True] * 7 + [False], texts,
                             mask * -1.0, mask * 0.5, mask)
    monkeypatch.setattr(rlvr, "rollout", lambda *_: rollouts)
    result = rlvr.evaluate(policy, [None] * 2, lambda text, answer: float(text in answer), SimpleNamespace(eval_samples=4, seed=0))
    assert result["avg"] == 3 / 8 and result["pass"] == {"1": 3 / 8, "2": 0.5, "4": 0.5}
    assert result["distinct"] == 1.0 and result["entropy"] == 0.5 and result["length"] == 1.5 and result["truncated"] == 1 / 8


def test_a_cut_off_response_gets_no_reward():
    rollouts = SimpleNamespace(problems=[SimpleNamespace(kind="math", answer="4")] * 2, texts=["\\boxed{4}"] * 2, finished=[True, False])
    assert rlvr.rewards_of(rollouts).tolist() == [1.0, 0.0]


# ---------------------------------------------------------------------------------------------------- problems

def test_countdown_problems_are_solvable_distinct_and_seeded():
    problems = list(rlvr.countdown_problems(300))
    assert len({(*sorted(a["numbers"]), a["target"]) for _, a, _ in problems}) == 300
    assert problems == list(rlvr.countdown_problems(300))
    rand = random.Random(1)
    for _ in range(300):
        numbers, target, steps = rlvr.random_calculation(rand)
        assert verify.countdown_reward(steps, numbers, target) == 1.0 and 1 <= target <= 99
    with pytest.raises(SystemExit, match="not 14001"):
        list(rlvr.countdown_problems(14001))


def test_demo_tokenizer_survives_auto_tokenizer(folders):
    tokenizer = rlvr.load_policy(config(folders / "demo")).tokenizer
    text = "3,15,7=26:15-3=12,12*7=84"
    assert tokenizer.encode(text) == rlvr.demo_tokenizer().encode(text) and len(tokenizer.encode(text)) == len(text)
    assert tokenizer.decode(tokenizer.encode(text) + [tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_a_saved_demo_policy_is_the_demo_again(folders):
    c = config(folders / "demo")
    assert c.group_size == rlvr.DEMO["group_size"] and config(folders / "qwen").group_size != c.group_size
    policy = rlvr.load_policy(c)
    train, held_out = rlvr.load_problems(replace(c, num_prompts=200, eval_prompts=20), policy)
    assert train[0].prompt == rlvr.compact_countdown(**train[0].answer)
    assert len(train) == 200 and len(held_out) == 20 and not {p.prompt for p in train} & {p.prompt for p in held_out}


def test_countdown_in_words_for_a_real_model(folders):
    policy = rlvr.load_policy(config(folders / "qwen", "--max_new_tokens", 16, "--max_prompt_tokens", 200))
    c = config(folders / "qwen", "--num_prompts", 40, "--eval_prompts", 5)
    train, _ = rlvr.load_problems(c, policy)
    assert "<answer>" in train[0].prompt and str(train[0].answer["target"]) in train[0].prompt
    assert train[0].prompt.endswith("<|im_start|>assistant\n") and train[0].kind == "countdown"


SHAPES = {
    "gsm8k": ({"question": "What is 40 + {i}?", "answer": "40 + {i} = <<40+{i}=4{i}>>4{i}\n#### 4{i}"}, "4{i}", "math"),
    "math": ({"problem": "What is 40 + {i}?", "solution": "So \\boxed{{4}}, no: \\boxed{{4{i}}}.", "level": "1"}, "4{i}", "math"),
    "math500": ({"problem": "What is 40 + {i}?", "solution": "Hence \\boxed{{0}}", "answer": "4{i}"}, "4{i}", "math"),
    "plain": ({"prompt": "What is 40 + {i}?", "answer": "4{i}"}, "4{i}", "math"),
}


def rows_of(shape, count=8):
    fields, answer, kind = SHAPES[shape]
    return [({k: v.format(i=i) for k, v in fields.items()}, answer.format(i=i)) for i in range(count)], kind


@pytest.mark.parametrize("shape, suffix", [*itertools.product(SHAPES, ["jsonl"]), ("gsm8k", "parquet"), ("plain", "csv"),
                                           ("math", "json"), ("plain", "disk")])
def test_data_set_shapes(folders, tmp_path, shape, suffix):
    import datasets
    rows, kind = rows_of(shape)
    table, file = datasets.Dataset.from_list([row for row, _ in rows]), tmp_path / f"data.{suffix}"
    if suffix == "disk":
        datasets.DatasetDict({"test": table}).save_to_disk(file)
    elif suffix == "json":
        file.write_text(json.dumps([row for row, _ in rows]))
    else:
        {"jsonl": table.to_json, "parquet": table.to_parquet, "csv": table.to_csv}[suffix](str(file))
    c = config(folders / "llama", "--dataset", file, "--prompts_per_step", 4, "--max_new_tokens", 8,
               "--max_prompt_tokens", 200, *(["--split", "test"] if suffix == "disk" else []))
    train, held_out = rlvr.load_problems(c, rlvr.load_policy(c))
    assert len(train) + len(held_out) == 8 and len(held_out) == 1
    expected = {f"What is 40 + {i}?": answer for i, (_, answer) in enumerate(rows)}
    for problem in train + held_out:
        question = problem.prompt.split("\n")[0].removeprefix("Question: ")
        assert problem.answer == expected.pop(question) and problem.kind == kind
        assert problem.prompt.endswith("\nAnswer:") and "\\boxed" in problem.prompt


def test_chat_messages_and_tests(folders, tmp_path):
    """DAPO-Math-17k: messages and a nested answer, many times the same row; MBPP: a list of asserts."""
    dapo = [{"prompt": [{"role": "user", "content": f"Solve {i % 6}"}], "reward_model": {"ground_truth": str(i % 6), "style": "rule"}}
            for i in range(30)]
    mbpp = [{"text": f"Add {i}.", "code": "x", "test_list": [f"assert add(1) == {i + 1}", "assert add(0)"]} for i in range(6)]
    for name, rows in (("dapo", dapo), ("mbpp", mbpp)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--prompts_per_step", 4, "--max_new_tokens", 8, "--max_prompt_tokens", 200]
    c = config(folders / "qwen", "--dataset", tmp_path / "dapo.jsonl", *flags)
    policy = rlvr.load_policy(c)
    problems = sum(rlvr.load_problems(c, policy), [])
    assert sorted(p.answer for p in problems) == list("012345")
    assert problems[0].prompt == f"<|im_start|>user\nSolve {problems[0].answer}<|im_end|>\n<|im_start|>assistant\n"
    problems = sum(rlvr.load_problems(config(folders / "qwen", "--dataset", tmp_path / "mbpp.jsonl", *flags), policy), [])
    assert problems[0].kind == "code" and problems[0].answer["tests"][0] in problems[0].prompt
    assert problems[0].answer["tests"][1] not in problems[0].prompt


def test_bad_rows_and_long_prompts_are_counted(folders, tmp_path, capsys):
    rows = [{"q": "short", "a": "1"}, {"q": "short", "a": "1"}, {"q": "word " * 200, "a": "2"}, {"q": "no answer", "a": None},
            {"q": "", "a": "3"}, {"q": "other", "a": "4"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = config(folders / "llama", "--dataset", tmp_path / "rows.jsonl", "--prompt_column", "q", "--answer_column", "a",
               "--prompts_per_step", 1, "--updates_per_batch", 1, "--max_new_tokens", 8, "--max_prompt_tokens", 100)
    train, held_out = rlvr.load_problems(c, rlvr.load_policy(c))
    assert sorted(p.answer for p in train + held_out) == ["1", "4"]
    shown = capsys.readouterr().out
    assert "skipped 2 rows" in shown and "dropped 1 prompts longer than --max_prompt_tokens 100" in shown


def test_folder_with_several_subsets_takes_main(folders, tmp_path):
    """Like openai/gsm8k on the hub: two configurations, none given."""
    for name in ("main", "socratic"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"question": f"{name} {i}", "answer": "#### 1"}) + "\n" for i in range(9)))
    (tmp_path / "README.md").write_text("---\nconfigs:\n" + "".join(
        f"- config_name: {n}\n  data_files:\n  - split: train\n    path: {n}.jsonl\n" for n in ("socratic", "main")) + "---\n")
    for flags, name in (([], "main"), (["--subset", "socratic"], "socratic")):
        rows = rlvr.load_rows(config(folders / "llama", "--dataset", tmp_path, *flags))
        assert len(rows) == 9 and rows[0]["question"].startswith(name)


# ---------------------------------------------------------------------------------------- presets, bad input

def test_presets_and_precedence():
    c = rlvr.parse_config([])
    assert (c.preset, c.pos_schedule, c.pos_weight) == ("pos_adv_entropy", "entropy", 0.0)
    assert rlvr.parse_config(["--preset", "grpo"]).pos_weight == 1.0
    assert rlvr.parse_config(["--preset", "adv_nonpos", "--pos_weight", "0.5"]).pos_weight == 0.5  # explicit wins
    real = rlvr.parse_config(["--model", "Qwen/Qwen2.5-0.5B-Instruct"])
    assert (real.eps_low, real.lr, real.target_entropy, real.output_dir) == (0.2, 1e-6, 0.2, "runs/pos_adv_entropy-Qwen2.5-0.5B-Instruct-seed0")
    for name in rlvr.PRESETS:
        rlvr.parse_config(["--preset", name])
    assert math.isinf(rlvr.parse_config(["--eps_high", "inf"]).eps_high)


def message_of(*argv):
    with pytest.raises(SystemExit) as stop:
        rlvr.main(list(map(str, argv)))
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code and stop.value.code.startswith("rlvr.py: ")
    return stop.value.code


@pytest.mark.parametrize("argv, words", [
    (["--learning_rate", "1"], ["--learning_rate", "--help"]), (["--preset", "ppo"], ["ppo", "pos_adv_entropy"]),
    (["--steps", "many"], ["--steps", "many"]), (["--group_size", "1"], ["--group_size 1"]),
    (["--updates_per_batch", "7"], ["--updates_per_batch 7", "--prompts_per_step 64"]), (["--temperature", "0"], ["--temperature"]),
    (["--temperature", "nan"], ["--temperature"]), (["--eps_low", "-1"], ["--eps_low"]), (["--lr", "-1"], ["--lr"]),
    (["--num_prompts", "3"], ["--num_prompts 3"]), (["--resume", "nowhere"], ["nowhere"]),
    (["--pos_schedule", "cosine"], ["cosine", "stage"]), (["--pos_schedule", "stage", "--pos_weight", "1"], ["--pos_weight"]),
    (["--preset", "grpo", "--target_entropy", "0.1"], ["--target_entropy"]), (["--split", "test"], ["--split", "countdown"]),
    (["--pos_weight", "2"], ["--pos_weight 2"])])
def test_bad_flags(argv, words):
    message = message_of(*argv)
    assert all(word in message for word in words)


def test_bad_models_and_data(folders, tmp_path):
    qwen = ["--model", folders / "qwen", "--output_dir", tmp_path / "run", "--max_prompt_tokens", 100, "--max_new_tokens", 8]
    assert "nobody/nothing" in message_of("--model", "nobody/nothing", "--output_dir", tmp_path / "run")
    assert "nobody/data" in message_of(*qwen, "--dataset", "nobody/data")
    good, empty, odd = tmp_path / "good.jsonl", tmp_path / "empty.jsonl", tmp_path / "odd.txt"
    good.write_text('{"question": "1+1?", "answer": "2", "extra": 1}\n')
    empty.write_text("")
    odd.write_text("x")
    assert "odd.txt" in message_of(*qwen, "--dataset", odd)
    assert "empty.jsonl" in message_of(*qwen, "--dataset", empty)
    message = message_of(*qwen, "--dataset", good, "--prompt_column", "frage")
    assert "frage" in message and "question, answer, extra" in message and "--prompt_column" in message
    assert "longer than --max_prompt_tokens" in message_of(*qwen[:-4], "--max_prompt_tokens", 2, "--max_new_tokens", 8, "--dataset", good)
    assert "256 tokens of context" in message_of(*qwen[:-2], "--max_new_tokens", 200)
    assert "choose auto" in message_of(*qwen, "--reward", "vibes")
    assert "no file" in message_of(*qwen, "--reward", "nowhere.py:f")
    assert "second epoch" in message_of("--model", folders / "demo", "--preset", "pos_adv_epoch", "--steps", 2,
                                        "--output_dir", tmp_path / "run")


def test_tokenizer_without_eos_or_with_too_many_tokens(folders, tmp_path):
    policy = rlvr.load_policy(config(folders / "llama", "--max_new_tokens", 8, "--max_prompt_tokens", 8))
    flags = ["--max_prompt_tokens", 100, "--max_new_tokens", 8, "--output_dir", tmp_path / "run"]
    policy.tokenizer.eos_token = policy.tokenizer.pad_token = None
    policy.model.generation_config.eos_token_id = policy.model.config.eos_token_id = None
    policy.save(tmp_path / "no_eos")
    assert "no eos token" in message_of("--model", tmp_path / "no_eos", *flags)
    policy.tokenizer.add_tokens([f"<extra{i}>" for i in range(50)])
    policy.tokenizer.eos_token = "<extra0>"
    policy.save(tmp_path / "large")
    assert "embedding only 320 rows" in message_of("--model", tmp_path / "large", *flags)


# ------------------------------------------------------------------------------------------- the whole thing

METRICS = """step reward entropy entropy_pos entropy_neg lambda clip_pos clip_neg zero_adv length truncated grad_norm lr
             logp_gap tokens seconds_sample seconds_verify seconds_score seconds_update""".split()
SHORT = ["--steps", 4, "--prompts_per_step", 4, "--group_size", 4, "--num_prompts", 40, "--eval_prompts", 8,
         "--eval_samples", 4]


def read_lines(file, drop="seconds"):
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(drop)} for line in Path(file).read_text().splitlines()]


def weights(folder):
    return torch.cat([p.flatten() for p in AutoModelForCausalLM.from_pretrained(folder).parameters()])


@pytest.fixture(scope="session")
def short(folders):
    """Flags of a run of seconds. The hasty demo never solves a problem, so the reward is one that it can get."""
    (folders / "odd.py").write_text("def odd(response, answer):\n    return len(response) % 2\n")
    return ["--model", folders / "demo", "--reward", f"{folders / 'odd.py'}:odd", *SHORT]


@pytest.fixture(scope="session")
def run(short, tmp_path_factory):
    """Such a run on the command line."""
    out = tmp_path_factory.mktemp("runs") / "short"
    argv = [sys.executable, HERE / "rlvr.py", "--output_dir", out, *short]
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(out=out, screen=done.stdout + done.stderr)


def test_command_line_run_leaves_files_that_others_open(run, folders):
    metrics, samples = read_lines(run.out / "metrics.jsonl", drop="-"), read_lines(run.out / "samples.jsonl")
    assert [m["step"] for m in metrics] == [0, 1, 2, 3] and all(set(METRICS) <= set(m) for m in metrics)
    assert all(m["logp_gap"] < 1e-3 and m["ratio_gap"] < 1e-3 for m in metrics)
    assert [m["lambda"] for m in metrics] == pytest.approx([0, 0.05, 0.1, 0.15])  # entropy stays over the target here
    assert {s["step"] for s in samples} == {0, 1, 2, 3}
    assert {"prompt", "response", "reward", "advantage", "finish_reason", "entropy"} <= set(samples[0])
    summary = json.loads((run.out / "summary.json").read_text())
    assert {"before", "after", "seconds", "steps", "seed", "preset"} <= set(summary)
    assert {"avg", "pass", "entropy", "distinct", "length"} <= set(summary["after"]) and set(summary["after"]["pass"]) == {"1", "2", "4"}
    assert not torch.equal(weights(run.out / "final"), weights(folders / "demo"))
    assert json.loads((run.out / "config.json").read_text())["prompts_per_step"] == 4
    assert "held-out prompts" in run.screen and "Warning" not in run.screen and "Traceback" not in run.screen


def test_same_seed_same_run_and_resume_is_exact(run, short, tmp_path, monkeypatch):
    """Stop after two steps in the way that a signal does, resume, and compare with the run that nobody stopped."""
    flags = ["--output_dir", tmp_path / "run", *short]
    schedule = rlvr.next_pos_weight

    def signal_at_step_1(c, step, *rest):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return schedule(c, step, *rest)
    monkeypatch.setattr(rlvr, "next_pos_weight", signal_at_step_1)
    message = message_of(*flags)
    assert "stopped after step 1" in message and f"--resume {tmp_path / 'run'}" in message
    monkeypatch.undo()
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "half a li')  # what a crash may leave
    rlvr.main(["--resume", str(tmp_path / "run")])
    for file in ("metrics.jsonl", "samples.jsonl"):
        assert read_lines(tmp_path / "run" / file) == read_lines(run.out / file)
    assert torch.equal(weights(tmp_path / "run" / "final"), weights(run.out / "final"))
    assert message_of(*flags).startswith(f"rlvr.py: --output_dir {tmp_path / 'run'}: already holds a run")
    rlvr.main(list(map(str, flags + ["--overwrite", "--seed", 1])))
    assert read_lines(tmp_path / "run" / "metrics.jsonl") != read_lines(run.out / "metrics.jsonl")


def test_non_finite_loss_stops_and_keeps_the_weights(short, tmp_path, monkeypatch):
    loss = rlvr.policy_loss

    def poisoned(*args):
        value, stats = loss(*args)
        poisoned.calls += 1
        return value * (math.nan if poisoned.calls == 9 else 1.0), stats
    poisoned.calls = 0
    monkeypatch.setattr(rlvr, "policy_loss", poisoned)
    message = message_of("--output_dir", tmp_path / "run", *short)
    assert "step 1" in message and "not finite" in message  # 2 mini-batches x 4 passes a step
    assert torch.isfinite(weights(tmp_path / "run" / "last_good")).all()
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 1


def test_sampler_and_trainer_that_disagree_stop_the_run(short, tmp_path, monkeypatch):
    sample = rlvr.sample
    monkeypatch.setattr(rlvr, "sample", lambda policy, prompts, uniforms, temperature: sample(policy, prompts, uniforms, 3.0))
    assert "sampler and trainer disagree" in message_of("--output_dir", tmp_path / "run", *short)


def test_dropout_is_off(folders):
    policy = rlvr.load_policy(config(folders / "qwen", "--max_prompt_tokens", 8, "--max_new_tokens", 8))
    assert not policy.model.training and all(m.p == 0 for m in policy.model.modules() if isinstance(m, torch.nn.Dropout))


@pytest.mark.parametrize("name, flags", [("qwen", ["--gradient_checkpointing"]), ("llama", ["--advantage", "mean", "--reuse", "2"])])
def test_hugging_face_model_trains_on_own_data_and_reward(folders, tmp_path, name, flags):
    """Reward: the share of a letter, from the user's own file; it rises, and the policy is saved."""
    (tmp_path / "own.py").write_text("def few(response, answer):\n    return float(len(response) < 12)\n")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"prompt": f"p{i}", "answer": str(i)}) + "\n" for i in range(40)))
    rlvr.main(list(map(str, [
        "--model", folders / name, "--dataset", tmp_path / "data.jsonl", "--reward", f"{tmp_path / 'own.py'}:few", "--steps", 12,
        "--preset", "grpo", "--prompts_per_step", 8, "--max_new_tokens", 12, "--max_prompt_tokens", 100, "--lr", 1e-2, "--warmup_steps", 1,
        "--eval_prompts", 2, "--eval_samples", 2, "--output_dir", tmp_path / "run", "--seed", 5, *flags])))
    metrics = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert all(m["logp_gap"] < 1e-3 for m in metrics) and 0 < metrics[0]["truncated"]
    assert metrics[-1]["reward"] > metrics[0]["reward"] + 0.1
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_sampler_and_trainer_agree_in_bf16(folders):
    policy = rlvr.load_policy(config(folders / "qwen", "--max_prompt_tokens", 32, "--max_new_tokens", 16))
    uniforms = torch.rand(12, 16)
    tokens, lengths, _, logp, _ = rlvr.sample(policy, PROMPTS, uniforms, 1.0)
    responses = [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist())]
    scored, _ = rlvr.score(policy, [PROMPTS[i // 4] for i in range(12)], responses, 1.0)
    assert scored.dtype == torch.float32 and (scored - logp[:, :scored.shape[1]]).abs().mean() < 0.05
