"""Verifiers: programs that say whether a response is right, and that a policy under RL cannot fool.

    math_reward(response, gold)                   one final answer, compared exactly with the gold answer
    countdown_reward(response, numbers, target)   an expression that uses each number once and gives the target

Each returns 1.0 or 0.0, never raises, and is safe in threads. No answer is ever passed to eval or to a symbolic
algebra system: expressions are read by the small parser below and computed in exact fractions, or with 50 digits
where a value is irrational. Length, depth, digits and exponents are bounded, so that nothing needs a time-out.
"""
import ast
import builtins
import ctypes
import functools
import glob
import json
import math
import operator
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from fractions import Fraction

# ------------------------------------------------------------------------------------------ the final answer

def last_boxed(text):
    """The content of the last \\boxed{...} (or \\fbox), or None if there is none or its brace never closes."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    depth, begin = 0, text.index("{", start) + 1
    for match in re.compile(r"\\.|[{}]", re.S).finditer(text, begin - 1):  # \{ and \} are no braces
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[begin:match.start()]
    return None


def final_answer(response):
    """The one answer of a response, or None: the last box; else what follows the last '####'; else the sentence
    after the last 'answer is'."""
    if "\\boxed{" in response or "\\fbox{" in response:
        return last_boxed(response)
    if "####" in response:
        return response.rpartition("####")[2].strip().partition("\n")[0]
    start = max((response.lower().rfind(marker) + len(marker) for marker in ("answer is", "answer:")
                 if marker in response.lower()), default=None)
    if start is None:
        return None
    sentence = response[start:start + 1000].lstrip(" :*\n").partition("\n")[0]
    return re.split(r"\.(?:\s|$)", sentence, maxsplit=1)[0]


SYMBOLS = str.maketrans({
    "−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "⁄": "/", "≤": "≤", "≥": "≥", "∞": "\\infty ", "π": "\\pi ",
    "∪": "\\cup ", "∅": "\\emptyset ", "∈": "\\in ", "±": "\\pm ", "∓": "\\mp ", "²": "^2", "³": "^3", "½": "\\frac12",
    "⅓": "\\frac13", "⅔": "\\frac23", "¼": "\\frac14", "¾": "\\frac34", "ℝ": "\\mathbb{R}", "\u00a0": " ",
    **{chr(0xFF01 + i): chr(0x21 + i) for i in range(94)}})
REPLACE = [(re.compile(pattern), new) for pattern, new in (
    (r"\\\\", "↵"), (r"↵\s*$|\\!", ""), (r"√\s*(\w)", r"\\sqrt{\1}"), (r"√", r"\\sqrt "), (r"[𝜋𝛑𝝅]", r"\\pi "),
    (r"\\(?:displaystyle|textstyle|left|right|[bB]igg?[lr]?|limits|qquad|quad)(?![a-zA-Z])|\\[,;: ]|~", " "),
    (r"\{\s*,\s*\}", ","), (r"\\[dtc]frac", r"\\frac"), (r"\\(?:cdot|times|ast)(?![a-zA-Z])|\*", "*"), (r"\\div", "/"),
    (r"\\(?:leq?slant|leq?)(?![a-zA-Z])|<=", "≤"), (r"\\(?:geq?slant|geq?)(?![a-zA-Z])|>=", "≥"),
    (r"\\neq?(?![a-zA-Z])", "≠"), (r"\\lt(?![a-zA-Z])", "<"), (r"\\gt(?![a-zA-Z])", ">"), (r"\\[lr]vert", "|"), (r"\\varnothing", r"\\emptyset"),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree", "°"), (r"\\%", "%"), (r"\\mathbb\s*\{?R\}?", r"\\reals "),
    (r"\\(?:mathbf|mathit|boldsymbol|bm|underline)\s*\{([^{}]*)\}", r"{\1}"),
    (r"\\(?:text\w*|mbox|mathrm|operatorname)\s*\{([^{}]*)\}", r" ⟨\1⟩ "),
    (r"\{([^{}]*)\\over([^{}]*)\}", r"\\frac{\1}{\2}"), (r"\\[()\[\]]|(?<!\\)\$", " "), (r"\\\$|[€£]", r" \g<0> "),
    (r"^\s*(?:\\approx|=)", " "), (r"(?<=.)\\approx.*", ""), (r"\s+", " "))]


def clean(text):
    """LaTeX or Unicode spelling -> one spelling; words that were in \\text{} stand in ⟨⟩."""
    text = text.translate(SYMBOLS)
    for pattern, new in REPLACE:
        text = pattern.sub(new, text)
    text = text.strip().rstrip(".,; ")
    while text.startswith("{") and _closing(text) == len(text) - 1:
        text = text[1:-1].strip()
    return text.strip()


def _closing(text):
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "{") - (c == "}")
        if depth == 0:
            return i
    return -1


# ------------------------------------------------------------------------------------------------------ units

UNITS = {alias: name for name, aliases in {
    "m": "meter metre", "cm": "centimeter centimetre", "mm": "millimeter millimetre", "km": "kilometer kilometre",
    "in": "inch inche", "ft": "foot feet", "mi": "mile", "kg": "kilogram", "g": "gram", "l": "liter litre", "s": "sec second",
    "min": "minute", "h": "hr hour", "mph": "mi/h", "unit": "", "percent": "% percentage", "degree": "° deg",
    "dollar": "\\$ $ usd buck", "euro": "€ eur", "pound": "£ gbp", "cent": "¢"}.items() for alias in aliases.split() + [name]}
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}


def split_unit(text):
    """'15 ⟨cm⟩^2' -> ('15', 'cm^2', 1): value, unit in one spelling or '', factor of words such as million."""
    if match := re.fullmatch(r"([0-9A-Z]+)_\{?(\d+)\}?", text.replace(" ", "")):
        return match[1], f"base {match[2]}", 1
    unit, factor = [], 1
    if match := re.match(r"(-?) ?(\\\$|[€£])", text):
        unit, text = [UNITS[match[2]]], match[1] + text[match.end():].strip()
    tail = re.search(r"(?<=[\d)}!.a-z]) *((?:⟨[^⟩]*⟩|(?<= )[a-zA-Z]{2,}(?:/[a-z]+)?|(?<=[\d ])(?:[ck]?m|ft|mi)/(?:s|h|hr|min)|(?<=\d)(?:[cmk]m|kg|ft|min|hr)|%|°|\\\$|[€£] *) *)+(?:\^ ?\{?(\d)\}?)?$", text)
    if tail and re.search(r"\d|\\pi", text[:tail.start()]):
        words = re.findall(r"[^\W\d_/]+|/|%|°|\\\$|[€£]", tail[0].partition("^")[0])
        if "°" in words and "\\" in text[:tail.start()] or set(words) & {"and", "or", "to", "nor", "not", "pi", "sqrt", "sin", "cos", "tan", "ln", "log"}:
            return text, "".join(unit), 1
        for word in words:
            word = word if len(word) < 2 else word.lower()
            singular = word if word in UNITS or len(word) < 3 else word.removesuffix("s")
            if word in SCALES:
                factor *= SCALES[word]
            elif word in ("square", "sq", "cubic", "cu"):
                unit.append({"s": "2", "c": "3"}[word[0]])
            elif word not in ("of", "the", "a"):
                unit.append("/" if word == "per" else UNITS.get(singular, singular))
        power = [unit.pop(0)] if unit and unit[0] in ("2", "3") else []
        unit += [f"^{p}" for p in power or ([tail[2]] if tail[2] else [])]
        text = text[:tail.start()].strip()
    return text, "".join(unit), factor


# ------------------------------------------------------------------------------------- expressions: parse

FUNCTIONS = {"sin", "cos", "tan", "sec", "csc", "cot", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log", "lg", "exp"}
TOKEN = re.compile(r"\s*(\\[a-zA-Z]+|\\[{}|]|\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+|(?:arc)?(?:sin|cos|tan)h?(?![a-z])|sqrt|pi(?![a-z])"
                   r"|ln(?![a-z])|log(?![a-z])|exp(?![a-z])|\*\*|[a-zA-Z]|[-+*/^_!%°|()\[\]{}<>≤≥≠=,:;&])", re.ASCII)


def tokenize(text):
    tokens, end = [], 0
    for match in TOKEN.finditer(text):
        if match.start() != end:
            break
        token = match[1]
        tokens.append("^" if token == "**" else "\\" + token if len(token) > 1 and token.isalpha() else token)
        end = match.end()
    if text[end:].strip():
        raise ValueError(f"unexpected {text[end:end + 10]!r}")
    return tokens


class Parser:
    """Tokens of one expression -> nested tuples (operation, arguments)."""
    def __init__(self, tokens):
        self.tokens, self.i, self.depth, self.bars = tokens, 0, 0, 0

    def peek(self):
        return self.tokens[self.i] if self.i < len(self.tokens) else ""

    def take(self, expected=None):
        token = self.peek()
        if not token or expected and token != expected:
            raise ValueError(f"{expected} expected, not {token!r}")
        self.i += 1
        return token

    def whole(self):
        tree = self.sum()
        if self.peek():
            raise ValueError(f"unexpected {self.peek()!r}")
        return tree

    def sum(self):
        self.depth += 1
        if self.depth > 30:
            raise ValueError("too deep")
        sign = 1
        while self.peek() in ("+", "-"):
            sign *= -1 if self.take() == "-" else 1
        tree = self.product()
        tree = ("neg", tree) if sign < 0 else tree
        while self.peek() in ("+", "-"):
            tree = (self.take(), tree, self.product())
        self.depth -= 1
        return tree

    def starts_atom(self):
        token = self.peek()
        return bool(token) and (token[0].isalnum() or token[0] == "." or token in ("(", "{", "[") or token == "|" and not self.bars
                                or token[0] == "\\" and token[1:] in ATOMS)

    def product(self, argument=False):
        """Implicit products bind like explicit ones; the argument of a function ends at the next function."""
        tree = self.power()
        while True:
            if self.peek() in ("*", "/") and not argument:
                op = self.take()
                negative = self.peek() == "-" and self.take()
                right = self.power()
                tree = (op, tree, ("neg", right) if negative else right)
            elif self.starts_atom() and not (argument and self.peek()[1:] in FUNCTIONS):
                tree = ("*", tree, self.power())
            else:
                return tree

    def power(self):
        base = self.atom()
        while self.peek() in ("!", "°", "%"):
            base = (self.take(), base)
        if self.peek() == "^":
            self.take()
            base = ("^", base, self.group(signed=True))
        return base

    def group(self, signed=False):
        """The argument of ^, \\frac and the like: a {group}, else a single digit, letter or command."""
        if self.peek() == "{":
            self.take()
            tree = self.sum()
            self.take("}")
            return tree
        if signed and self.peek() == "-":
            self.take()
            return ("neg", self.group())
        if not signed and self.peek().isdigit() and len(self.peek()) > 1:  # \frac12
            token = self.tokens[self.i]
            self.tokens[self.i] = token[1:]
            return ("number", token[0])
        return self.atom()

    def atom(self):
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            number = ("number", token)
            if self.peek() == "\\frac" and token.isdigit():  # a mixed number, if the fraction is one of digits
                text = "".join(self.tokens[self.i + 1:self.i + 7])
                if re.match(r"\{\d+\}\{\d+\}|\d\d(?!\d)", text):
                    return ("+", number, self.atom())
            return number
        if token in ("(", "[", "{"):
            tree = self.sum()
            self.take({"(": ")", "[": "]", "{": "}"}[token])
            return tree
        if token == "|" and not self.bars:
            self.bars += 1
            tree = self.sum()
            self.bars -= 1
            self.take("|")
            return ("abs", tree)
        name = token[1:]
        if token.isalpha():
            return self.subscript(token)
        if name in ("frac", "binom"):
            return (name, self.group(), self.group())
        if name == "sqrt":
            root = ("number", "2")
            if self.peek() == "[":
                self.take()
                root = self.sum()
                self.take("]")
            return ("root", self.group(), root)
        if name in ("lfloor", "lceil"):
            tree = self.sum()
            self.take({"lfloor": "\\rfloor", "lceil": "\\rceil"}[name])
            return (name, tree)
        if name in FUNCTIONS:
            base = power = None
            while self.peek() in ("_", "^"):
                if self.take() == "_":
                    base = self.group(signed=True)
                else:
                    power = self.group(signed=True)
            inside = self.power() if self.peek() in ("(", "{", "[") else self.product(argument=True)
            tree = (name, inside, base) if base else (name, inside)
            if power == ("neg", ("number", "1")):
                return ("arc" + name, inside)
            return ("^", tree, power) if power else tree
        if name in ("pi", "infty"):
            return (name,)
        if name in GREEK:
            return self.subscript(token)
        raise ValueError(f"unknown {token}")

    def subscript(self, name):
        if self.peek() == "_":
            self.take()
            token = self.take()
            while token == "{" and self.peek() != "}":
                name += self.take()
            name += "" if token == "{" and self.take("}") else token
        return {"e": ("e",), "i": ("i",)}.get(name, ("variable", name))


GREEK = set("alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi varphi chi psi omega Delta Omega "
            "ell".split())
ATOMS = {"frac", "binom", "sqrt", "lfloor", "lceil", "pi", "infty"} | FUNCTIONS | GREEK


# ------------------------------------------------------------------------------------- expressions: compute

_local = threading.local()


def mp():
    """This thread's arithmetic with 50 digits: contexts of mpmath are not safe to share."""
    if not hasattr(_local, "mp"):
        import mpmath  # here, because the processes that grade code start faster without
        _local.mp = mpmath.MPContext()
        _local.mp.dps = 50
    return _local.mp


def to_mp(x):
    return mp().mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x


def small(x, bound):
    """A bound, so that no value takes long to compute."""
    if not abs(x) <= bound:  # also not a number
        raise ValueError("too large")
    return x


def power(a, b):
    if isinstance(b, Fraction) and isinstance(a, Fraction):
        size = max(a.numerator.bit_length(), a.denominator.bit_length())
        if b.denominator == 1:
            small(b * size, 20000)
            return Fraction(a) ** int(b)
        n = small(b.denominator, 100)
        sign = -1 if a < 0 and n % 2 else 1
        root = [int(mp().nint(mp().root(abs(k), n))) if k.bit_length() < 160 else 0 for k in (a.numerator, a.denominator)]
        if (a >= 0 or n % 2) and root[0] ** n == abs(a.numerator) and root[1] ** n == a.denominator:
            return power(Fraction(sign * root[0], root[1]), Fraction(b.numerator))
        if sign < 0:
            return (-1) ** b.numerator * power(-a, b)
    return mp().power(to_mp(a), small(to_mp(b), 10**4))


def compute(tree, point):
    """The value of an expression, a Fraction or a 50-digit number, where `point` numbers a choice of the values of
    the free variables."""
    kind, *arguments = tree
    if kind == "number":
        mantissa, _, exponent = tree[1].lower().partition("e")
        return Fraction(mantissa.rstrip(".") or "0") * Fraction(10) ** int(small(int(exponent or 0), 400))
    if kind == "variable":
        rand = random.Random(f"{tree[1]} {point}")
        return Fraction(rand.randint(20, 99) * (rand.choice((-1, 1)) if point else 1), rand.randint(3, 17))
    if kind in ("pi", "e", "i", "infty"):
        return {"pi": mp().pi(), "e": mp().e(), "i": mp().mpc(0, 1), "infty": mp().inf}[kind]
    values = [compute(argument, point) for argument in arguments]
    a, b = values[0], values[-1]
    if kind == "neg":
        return -a
    for value in values:  # infinity stands alone or with a sign; sizes stay within bounds
        small(value.numerator.bit_length() + value.denominator.bit_length() if isinstance(value, Fraction) else abs(value), 10**5
              if isinstance(value, Fraction) else mp().mpf(10) ** 2000)
    if kind in ("+", "-", "*", "/", "frac"):
        if not (isinstance(a, Fraction) and isinstance(b, Fraction)):
            a, b = to_mp(a), to_mp(b)
        return a + b if kind == "+" else a - b if kind == "-" else a * b if kind == "*" else a / b
    if kind == "^":
        return power(a, b)
    if kind == "root":
        return power(a, 1 / b)
    if kind in ("abs", "lfloor", "lceil"):
        real = a if kind == "abs" or isinstance(a, Fraction) else mp().re(a)
        return abs(a) if kind == "abs" else Fraction(int((math if isinstance(a, Fraction) else mp()).floor(real) if kind == "lfloor"
                                                         else (math if isinstance(a, Fraction) else mp()).ceil(real)))
    if kind in ("!", "binom"):
        if not all(isinstance(v, Fraction) and v.denominator == 1 and 0 <= v for v in values):
            return mp().gamma(to_mp(small(a, 300)) + 1) if kind == "!" else mp().binomial(to_mp(small(a, 300)), to_mp(small(b, 300)))
        return Fraction(math.factorial(small(int(a), 300)) if kind == "!" else math.comb(small(int(a), 10**6), small(int(b), 300)))
    if kind == "%":
        return a / 100
    if kind == "°":
        return to_mp(a) * mp().pi / 180
    x = small(to_mp(a), 10**4 if kind == "exp" else 10**30)
    if kind in ("log", "lg", "ln"):
        base = to_mp(b) if len(values) > 1 else 10
        return mp().log(x) if kind == "ln" else mp().log(x) / mp().log(base)
    names = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}
    return getattr(mp(), names.get(kind, kind))(x)


def variables(tree):
    return {tree[1]} if tree[0] == "variable" else set().union(*(variables(t) for t in tree[1:] if isinstance(t, tuple)))


def close(x, y):
    """Equality of two values: exact for fractions, else to 35 digits. A decimal of over 30 digits is no stand-in
    for an irrational number."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    if any(isinstance(v, Fraction) and v.denominator > 10**30 for v in (x, y)):
        return False
    x, y = to_mp(x), to_mp(y)
    if mp().isinf(x) or mp().isinf(y):
        return x == y
    return bool(abs(x - y) <= mp().mpf(10) ** -35 * max(1, abs(x), abs(y)))


# ------------------------------------------------------------------------------------------ answers: structure

RELATIONS = ("=", "≠", "<", ">", "≤", "≥")


def split(tokens, separators):
    """Split at separators outside all brackets -> (parts, the separators found)."""
    parts, found, depth = [[]], [], 0
    for token in tokens:
        depth += (token in ("(", "[", "{", "\\{")) - (token in (")", "]", "}", "\\}"))
        if depth == 0 and token in separators:
            parts.append([])
            found.append(token)
        else:
            parts[-1].append(token)
    return parts, found


def wrapped(tokens):
    """Whether the first bracket closes with the last token."""
    return tokens[0] in ("(", "[", "{", "\\{") and tokens[-1] in (")", "]", "}", "\\}") and len(tokens) > 2 and all(
        split(tokens[:n], ())[1] == [] and _depth(tokens[:n]) > 0 for n in range(1, len(tokens)))


def _depth(tokens):
    return sum((t in ("(", "[", "{", "\\{")) - (t in (")", "]", "}", "\\}")) for t in tokens)


def read(tokens):
    """Tokens of an answer -> ('set' | 'tuple' | 'ratio' | 'union' | 'matrix' | 'relation' | 'empty' | 'value', ...)."""
    if not tokens:
        raise ValueError("empty")
    if "\\pm" in tokens or "\\mp" in tokens:  # two answers; \mp is the other sign
        both = [{"\\pm": plus, "\\mp": minus} for plus, minus in ("+-", "-+")]
        return ("set", *(read([signs.get(t, t) for t in tokens]) for signs in both))
    parts, _ = split(tokens, (",", ";"))
    if len(parts) > 1:
        return ("set", *map(read, parts))
    parts, _ = split(tokens, ("\\in",))
    if len(parts) == 2 and all(t.isalpha() for t in parts[0]):
        return read(parts[1])
    if tokens == ["\\emptyset"] or tokens == ["\\{", "\\}"]:
        return ("empty",)
    if tokens == ["\\reals"]:
        return read(tokenize("(-\\infty,\\infty)"))
    parts, relations = split(tokens, RELATIONS)
    if relations:
        return ("relation", relations, *map(read, parts))
    parts, _ = split(tokens, ("\\cup",))
    if len(parts) > 1:
        return ("union", *map(read, parts))
    parts, _ = split(tokens, (":",))
    if len(parts) > 1:
        return ("ratio", *map(read, parts))
    if wrapped(tokens):
        items, commas = split(tokens[1:-1], (",", ";"))
        if tokens[0] in ("\\{", "{") and (commas or tokens[0] == "\\{"):
            return ("set", *map(read, items))
        if commas:
            return ("tuple", tokens[0] + tokens[-1], *map(read, items))
    return ("value", Parser(list(tokens)).whole())


def read_matrix(text):
    match = re.fullmatch(r"[(\[{]? ?\\begin ?\{(?:[pbBvV]?matrix|array)\}(?: ?\{[clr| ]*\})?(.*?)\\end ?\{\w+\} ?[)\]}]?", text)
    if not match:
        raise ValueError("not a matrix")
    rows = [row.split("&") for row in match[1].split("↵") if row.strip()]
    return ("matrix", *(("row", *(read(tokenize(cell)) for cell in row)) for row in rows))


@functools.lru_cache(4096)
def parse(text):
    """The structure of a clean answer; ValueError where it has none. Answers of over 600 characters have none."""
    if len(text) > 600:
        raise ValueError("too long")
    if "\\begin" in text:
        return read_matrix(text)
    text = re.sub(r"⟨? ?\b(?:and|or)\b ?⟩?", ",", text)
    text = re.sub(r",(?: ?,)+", ",", re.sub(r"[⟨⟩]", " ", text))
    if re.fullmatch(r"-? ?\d{1,3}(?:,\d{3})+(?:\.\d+)?|-? ?\d{1,3}(?: \d{3})+(?:\.\d+)?", text):
        text = re.sub(r"[, ](?=\d)", "", text)
    text = re.sub(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])(?=[^()\[\]{}]*$)(?<!,)", lambda m: m[0].replace(",", ""), text)
    text = re.sub(r"(\d*)\.(\d*)\\overline ?\{(\d{1,30})\}", lambda m: "({})".format(_repeating(*m.groups())), text)
    text = re.sub(r"(?<![\d.])(\d+) (\d+) ?/ ?(\d+)", r"\1\\frac{\2}{\3}", text)
    if re.search(r"(?<![_^\d])[\d.]+ +[\d.]|[a-zA-Z]{4,} [a-zA-Z]{2,}", text):
        raise ValueError("two numbers side by side, or words")
    return read(tokenize(text))


def _repeating(whole, fixed, period):
    value = Fraction(int(whole + fixed + period or 0) - int(whole + fixed or 0), 10 ** len(fixed) * (10 ** len(period) - 1))
    return f"{value.numerator}/{value.denominator}"


def is_name(node):
    """x, AB, f(x), (x, y), AB/CD: something that an answer may be called."""
    if node[0] == "tuple":
        return all(map(is_name, node[2:]))
    return node[0] == "value" and "number" not in str(node) and not {"+", "-", "neg"} & set(re.findall(r"'([^']*)'", str(node)))


def values_of(node):
    """The values that 'x = 5' or 'AB = BC = 14' states; a plain value states itself."""
    if node[0] != "relation" or set(node[1]) != {"="}:
        return [node]
    stated = [part for part in node[2:] if not is_name(part)]
    return stated if stated and not is_name(node[-1]) else [node]


def interval_of(node):
    """'x > 3' and '0 <= x < 1' as intervals."""
    if node[0] != "relation" or {"=", "≠"} & set(node[1]) or len(set(node[1]) & {"<", "≤"}) and len(set(node[1]) & {">", "≥"}):
        return node
    relations, parts = list(node[1]), list(node[2:])
    if relations[0] in (">", "≥"):
        relations, parts = [{">": "<", "≥": "≤"}[r] for r in reversed(relations)], parts[::-1]
    low, high = ("value", ("neg", ("infty",))), ("value", ("infty",))
    if len(parts) == 2:
        left = parts[0] == ("value", ("variable", parts[0][1][1])) if parts[0][1][0] == "variable" else False
        parts, relations = ([low, *parts], ["<", *relations]) if left else ([*parts, high], [*relations, "<"])
    if len(parts) != 3 or parts[1][0] != "value" or parts[1][1][0] != "variable" or any(variables(p[1]) for p in (parts[0], parts[2])):
        return node
    return ("tuple", ("(" if relations[0] == "<" else "[") + (")" if relations[1] == "<" else "]"), parts[0], parts[2])


def proportional(a, b):
    """Whether two relations of two sides say the same: their differences are in a constant ratio, positive for
    inequalities, at points chosen at random."""
    (left, right), (left2, right2) = a[2:], b[2:]
    if any(side[0] != "value" for side in (left, right, left2, right2)):
        return same(left, left2) and same(right, right2) and a[1] == b[1]
    flip = {"<": (1, "<"), ">": (-1, "<"), "≤": (1, "≤"), "≥": (-1, "≤"), "=": (1, "="), "≠": (1, "≠")}
    (sign, kind), (sign2, kind2) = flip[a[1][0]], flip[b[1][0]]
    ratios = []
    for point in range(4):
        d, d2 = (s * (to_mp(compute(x[1], point)) - to_mp(compute(y[1], point)))
                 for s, x, y in ((sign, left, right), (sign2, left2, right2)))
        if abs(d) < mp().mpf(10) ** -30 or abs(d2) < mp().mpf(10) ** -30:
            return False
        ratios.append(d / d2)
    return kind == kind2 and all(close(r, ratios[0]) for r in ratios) and (kind in "=≠" or mp().re(ratios[0]) > 0)


def same(a, b):
    """Whether two structures are equal."""
    if a[0] == b[0] == "relation" and len(a) == len(b) == 4 and proportional(a, b):
        return True
    a, b = interval_of(a), interval_of(b)
    if {a[0], b[0]} == {"set", "union"}:  # x < 1 or x > 2
        a, b = (("union", *map(interval_of, x[1:])) if x[0] == "set" and x[1][0] == "relation" else x for x in (a, b))
    if a[0] == b[0] == "relation":
        names = [{p[1] for p in x[2:] if p[0] == "value" and p[1][0] == "variable"} for x in (a, b)]
        if all(names) and not names[0] & names[1]:
            return False  # x = 5 is not y = 5
    if "relation" in (a[0], b[0]):
        values, values2 = values_of(a), values_of(b)
        if (values, values2) == ([a], [b]):
            return a[1] == b[1] and len(a) == len(b) and all(map(same, a[2:], b[2:]))
        return not (a in values and a[0] == "relation" or b in values2 and b[0] == "relation") and all(
            same(x, y) for x in values for y in values2)
    if a[0] != b[0]:
        return False
    if a[0] == "value":
        free = variables(a[1]) | variables(b[1])
        return all(close(compute(a[1], point), compute(b[1], point)) for point in range(3 if free else 1))
    if a[0] in ("set", "union"):  # in any order
        left = list(b[1:])
        for x in a[1:]:
            match = next((y for y in left if same(x, y)), None)
            if match is None:
                return False
            left.remove(match)
        return not left
    return len(a) == len(b) and all(x == y if isinstance(x, str) else same(x, y) for x, y in zip(a[1:], b[1:]))


def plain_words(text):
    return re.sub(r"[⟨⟩\s]+", " ", text).strip().casefold()


def equal_answers(answer, gold):
    """Whether two final answers, as written, are the same."""
    answer, gold = clean(answer), clean(gold)
    if not re.search(r"\w|\\emptyset|\\infty", answer) or not gold:
        return False
    if answer == gold:
        return True
    if choice := re.fullmatch(r"⟨? ?\(?([A-Z])[).]? ?⟩?", gold):
        return bool(re.fullmatch(r"[⟨({ ]*" + choice[1] + r"[)}.:⟩ ]*", answer))
    if all(re.fullmatch(r"[⟨⟩a-zA-Z -]+", text) and re.search(r"⟨|[a-zA-Z]{4}", text) for text in (answer, gold)):
        return plain_words(answer) == plain_words(gold)
    (value, unit, factor), (value2, unit2, factor2) = split_unit(answer), split_unit(gold)
    if unit and unit2 and unit != unit2:
        return False
    try:
        node, node2 = parse(value), parse(value2)
        scales = {Fraction(factor) / factor2} | ({Fraction(1, 100)} if unit == "percent" != unit2 else set()) | (
            {Fraction(100)} if unit2 == "percent" != unit else set())
        if (factor, factor2) != (1, 1) or len(scales) > 1:
            if node[0] == node2[0] == "value":
                return any(close(compute(node[1], 0) * s, compute(node2[1], 0)) for s in scales) and not (
                    variables(node[1]) | variables(node2[1]))
            return False
        return same(node, node2)
    except (ValueError, ArithmeticError, RecursionError):
        return plain_words(answer) == plain_words(gold)


def math_reward(response, gold):
    """1.0 if the final answer of `response` equals the gold answer, which may be LaTeX or plain text."""
    try:
        gold, answer = str(gold), final_answer(str(response))
        gold = last_boxed(gold) or gold
        return float(bool(answer) and len(answer) <= 2000 and equal_answers(answer, gold))
    except (ValueError, ArithmeticError, RecursionError):
        return 0.0


# --------------------------------------------------------------------------------------------------- countdown

def countdown_value(node, used):
    """The exact value of a parsed expression of whole numbers, + - * /; the numbers are appended to `used`."""
    if isinstance(node, ast.Expression):
        return countdown_value(node.body, used)
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in (ast.Add, ast.Sub, ast.Mult, ast.Div):
        a, b = countdown_value(node.left, used), countdown_value(node.right, used)
        return {ast.Add: a.__add__, ast.Sub: a.__sub__, ast.Mult: a.__mul__, ast.Div: a.__truediv__}[type(node.op)](b)
    raise ValueError("only whole numbers, + - * / and brackets")


def countdown_reward(response, numbers, target):
    """1.0 if the last <answer> is an expression of digits, + - * / and brackets that uses each of `numbers` exactly
    once and equals `target` exactly; a final "= target" is allowed. Without any <answer> tag the response must be
    the demo task's steps: "7*3=21,21+5=26", each using what is left of the numbers and of earlier results."""
    numbers, left = sorted(map(int, numbers)), list(map(int, numbers))
    try:
        if "<answer>" in response:
            inside, closed, _ = response.rpartition("<answer>")[2].partition("</answer>")
            expression = inside.strip().strip("$").strip()
            expression = re.sub(rf"\s*=\s*{int(target)}$", "", expression)
            if not closed or len(expression) > 500 or not re.fullmatch(r"[0-9+\-*/() ]+", expression):
                return 0.0
            if re.search(r"\*\s*\*|/\s*/|(?<!\d)0\d|\d\s+\d|[-+*/(]\s*[-+]|^\s*\+", expression):
                return 0.0
            expression, used = re.sub(r"^-", "0-", expression), []
            value = countdown_value(ast.parse(expression.strip(), mode="eval"), used)
            if expression.startswith("0-"):
                used.remove(0)
            return float(value == target and sorted(used) == numbers)
        for step in response.strip().split(","):
            match = re.fullmatch(r"(\d{1,9})([-+*/])(\d{1,9})=(\d{1,18})", step, re.ASCII)
            if not match:
                return 0.0
            a, b, result = int(match[1]), int(match[3]), int(match[4])
            left.remove(a)
            left.remove(b)
            right = {"+": a + b, "-": a - b, "*": a * b, "/": Fraction(a, b) if b else None}[match[2]]
            if right != result:
                return 0.0
            left.append(result)
        return float(left == [target])
    except (ValueError, ArithmeticError, SyntaxError, RecursionError, MemoryError):
        return 0.0


# -------------------------------------------------------------------------------------------------------- code
#
# Three processes. The trainer starts a grader, which holds the tests; the grader starts a solution process, which
# holds the policy's code and nothing else. A call in a test crosses a pipe as tagged JSON, and so does its result:
# what comes back is plain data, compared with real builtins where the policy's code never runs.

TIME_LIMIT, MEMORY, FILE_SIZE, OPEN_FILES, PROCESSES, MESSAGE = 6, 2**30, 2**24, 64, 64, 2**23  # seconds, bytes, counts
HERE = os.path.abspath(__file__)
UNSHARE = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]


def this_module(function):
    """Command that runs a function of this file in a new Python; as an import, so that it is compiled only once."""
    folder, name = os.path.split(os.path.splitext(HERE)[0])
    return [sys.executable, "-I", "-c", f"import sys; sys.path.append({folder!r}); import {name}; {name}.{function}()"]


def encode(x, handles):
    """Plain data -> JSON; subclasses count as their base; any other object stays where it is and becomes a handle."""
    if x is None or isinstance(x, (bool, str)):
        return ["plain", str.__str__(x) if isinstance(x, str) else x]
    if isinstance(x, int):
        return ["int", hex(int.__index__(x))]
    if isinstance(x, float):
        return ["float", float.hex(x)]
    if isinstance(x, complex):
        return ["complex", [float.hex(x.real), float.hex(x.imag)]]
    if isinstance(x, (bytes, bytearray)):
        return ["bytes", bytes(x).hex()]
    for kind in (list, tuple, set, frozenset):
        if isinstance(x, kind):
            return [kind.__name__, [encode(item, handles) for item in kind.__iter__(x)]]
    if isinstance(x, dict):
        return ["dict", [[encode(k, handles), encode(v, handles)] for k, v in dict.items(x)]]
    if isinstance(x, Remote):
        return ["handle", x._id]
    handles.append(x)
    return ["handle", len(handles) - 1]


def decode(message, resolve):
    kind, x = message
    if kind in ("list", "tuple", "set", "frozenset"):
        return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](decode(item, resolve) for item in x)
    return {"plain": lambda: x, "int": lambda: int(x, 16), "float": lambda: float.fromhex(x),
            "complex": lambda: complex(*map(float.fromhex, x)), "bytes": lambda: bytes.fromhex(x), "handle": lambda: resolve(x),
            "dict": lambda: {decode(k, resolve): decode(v, resolve) for k, v in x}}[kind]()


class Remote:
    """In the grader: an object of the solution process. It can be called and looked into; it cannot say whether it
    is true or equal to something, for that would be the policy's code deciding a test."""
    def __init__(self, ask, number):
        self._ask, self._id = ask, number

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("getattr", self, name)

    def _refuse(self, *_):
        raise TypeError("an object of the solution is no plain data")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __contains__ = _refuse
    __hash__ = None


for _name in ("call", "iter", "next", "len", "str", "getitem"):
    setattr(Remote, f"__{_name}__", lambda self, *args, _name=_name, **kwargs: self._ask(_name, self, *args, **kwargs))


def limit_and_forget():
    """In the solution process, before the policy's code: limits of its own, nothing inherited but the pipes."""
    for what, value in ((resource.RLIMIT_CPU, TIME_LIMIT), (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, FILE_SIZE),
                        (resource.RLIMIT_NOFILE, OPEN_FILES), (resource.RLIMIT_NPROC, PROCESSES), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (value, value))


def serve():
    """The solution process: run the policy's code, then answer calls until the pipe closes."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    limit_and_forget()
    namespace, handles = {"__name__": "solution"}, []
    operations = {"exec": lambda code: exec(code, namespace) or [n for n in namespace if isinstance(n, str)],
                  "name": namespace.__getitem__, "call": lambda f, *a, **k: f(*a, **k), "getattr": getattr, "iter": iter,
                  "next": next, "len": len, "str": str, "getitem": operator.getitem}
    for line in source:
        try:
            operation, arguments, keywords = json.loads(line)
            arguments, keywords = decode(arguments, handles.__getitem__), decode(keywords, handles.__getitem__)
            reply = ["value", encode(operations[operation](*arguments, **keywords), handles)]
        except BaseException as error:  # whatever the policy's code raises is an answer to the test
            reply = ["error", type(error).__name__]
        sink.write(json.dumps(reply).encode() + b"\n")
        sink.flush()


def kill_descendants():
    """Kill and reap every descendant: orphans come to this process, which is their subreaper."""
    while True:
        try:
            children = [int(pid) for path in glob.glob("/proc/self/task/*/children") for pid in open(path).read().split()]
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)
        except ProcessLookupError:
            continue
        except ChildProcessError:
            return


class Deadline(BaseException):
    pass


def grade():
    """The grader: read {"code", "tests", "inputs", "outputs", "prefix"} from stdin, print PASS or FAIL."""
    def on_alarm(*_):
        raise Deadline
    task, verdict = json.loads(sys.stdin.buffer.read()), "FAIL"
    prctl = ctypes.CDLL(None).prctl
    prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    prctl(4, 0, 0, 0, 0)   # PR_SET_DUMPABLE off: the solution cannot read this memory
    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT, 1)
    with tempfile.TemporaryDirectory(prefix="solution-", ignore_cleanup_errors=True) as folder:
        def start(command, **more):
            return subprocess.Popen(task["prefix"] + command, cwd=folder, stderr=subprocess.DEVNULL, env={
                "PATH": os.defpath, "HOME": folder, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}, **more)
        try:
            (grade_tests if task["tests"] else grade_output)(task, start)
            verdict = "PASS"
        except (Exception, Deadline, SystemExit):  # a failed test, a broken pipe, the deadline: all the same
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        kill_descendants()
    print(verdict, flush=True)


def grade_tests(task, start):
    """Raise unless every test passes; what the tests do not define themselves comes from the solution process."""
    process = start(this_module("serve"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(operation, *arguments, **keywords):
        message = [operation, encode(arguments, NoHandles()), encode(keywords, NoHandles())]
        process.stdin.write(json.dumps(message).encode() + b"\n")
        process.stdin.flush()
        kind, reply = json.loads(process.stdout.readline(MESSAGE))
        if kind == "value":
            return decode(reply, lambda number: Remote(ask, number))
        error = getattr(builtins, str(reply), None)
        raise error() if isinstance(error, type) and issubclass(error, Exception) else RuntimeError(reply)

    defined, namespace = set(ask("exec", task["code"])), {}
    nodes = [node for test in task["tests"] for node in ast.walk(ast.parse(test))]
    used = {node.id for node in nodes if isinstance(node, ast.Name)} & defined
    modules = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    # A solution may be named like a builtin. It may not stand in for the builtins and modules that judge its results.
    for name in modules & used & sys.stdlib_module_names:
        used.remove(name)
        namespace[name] = __import__(name)
    inside = {node.func.id: {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - {node.func.id}
              for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    used = {n for n in used if not hasattr(builtins, n)} or {n for n in used if not inside.get(n, set()) & used}
    namespace |= {name: ask("name", name) for name in used}
    for test in task["tests"]:
        exec(test, namespace)  # the data set's own code


class NoHandles(list):
    def append(self, item):
        raise TypeError(f"only plain data can be passed to a solution, not {type(item).__name__}")


def grade_output(task, start):
    """Raise unless the program prints the expected output for every input; spaces at line ends do not count."""
    def lines(text):
        return [line.rstrip() for line in text.rstrip().splitlines()]
    with tempfile.NamedTemporaryFile("w", suffix=".py", encoding="utf8") as program:
        program.write(task["code"])
        program.flush()
        for given, expected in zip(task["inputs"], task["outputs"], strict=True):
            with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout:
                stdin.write(str(given).encode())
                stdin.seek(0)
                process = start([sys.executable, "-I", program.name], stdin=stdin, stdout=stdout, preexec_fn=limit_and_forget)
                if process.wait() != 0:
                    raise ValueError("exit status")
                stdout.seek(0)
                if lines(stdout.read().decode()) != lines(str(expected)):
                    raise ValueError("wrong output")


@functools.cache
def sandbox():
    """The command prefix that gives a solution its own network and process namespaces, if they work here."""
    if not sys.platform.startswith("linux"):
        raise RuntimeError("code can be verified on Linux only: its limits on processes do not exist elsewhere")
    works = shutil.which("unshare") and subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    return UNSHARE if works else []


def code_reward(response, tests=None, inputs=None, outputs=None):
    """1.0 if the last fenced block of `response` passes all `tests` (strings with asserts), or prints `outputs` for
    `inputs`. Raises RuntimeError where there is no Linux."""
    blocks = str(response).split("```")[1::2]
    prefix = sandbox()
    if not blocks or not (tests or inputs) or str(response).count("```") % 2:
        return 0.0
    language, _, code = blocks[-1].partition("\n")
    if language.strip().lower() not in ("", "py", "python", "python3") or not code.strip():
        return 0.0
    task = {"code": code, "tests": tests, "inputs": inputs, "outputs": outputs, "prefix": prefix}
    grader = subprocess.Popen(this_module("grade"), stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        verdict, _ = grader.communicate(json.dumps(task).encode(), timeout=2 * TIME_LIMIT + 10)
    except subprocess.TimeoutExpired:
        grader.kill()
        verdict, _ = grader.communicate()
    return float(verdict == b"PASS\n")


REWARDS = {
    "math": math_reward,
    "countdown": lambda response, answer: countdown_reward(response, **answer),
    "code": lambda response, answer: code_reward(response, **answer),
}


def verify_batch(reward, responses, answers):
    """Rewards of many responses, in order. Threads are enough: code is graded by processes of its own, so that one
    slow response delays only itself."""
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [float(verdict) for verdict in pool.map(reward, responses, answers)]

