"""Verifiers (work in progress)."""
import re


def last_boxed(text):
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for i in range(start + 6, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start + 7:i]
    return None


def countdown_reward(response, numbers, target):
    left = list(numbers)
    for step in response.strip().split(","):
        m = re.fullmatch(r"(\d{1,9})([-+*/])(\d{1,9})=(\d{1,12})", step)
        if not m:
            return 0.0
        a, op, b, r = int(m[1]), m[2], int(m[3]), int(m[4])
        try:
            left.remove(a); left.remove(b)
        except ValueError:
            return 0.0
        if op == "/" and b == 0: return 0.0
        if (op == "/" and r * b != a) or (op != "/" and {"+": a + b, "-": a - b, "*": a * b}[op] != r):
            return 0.0
        left.append(r)
    return float(left == [target])

REWARDS = {"countdown": lambda r, a: countdown_reward(r, **a), "math": lambda r, a: float(a == last_boxed(r)), "code": lambda r, a: 0.0}
