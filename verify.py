"""Verifiers: programs that say whether a response is right, and that a policy under RL cannot fool.

    math_reward(response, gold)                    one final answer, compared exactly with the gold one
    countdown_reward(response, numbers, target)    an expression that uses each number once
    code_reward(response, tests, inputs, outputs)  code, run against asserts, or inputs and outputs

Each returns 1.0 or 0.0, never raises, and is safe in threads. No answer reaches eval or a symbolic algebra
system: expressions are translated token by token to Python's syntax, parsed with ast.parse, and computed over
the few kinds of node allowed, in exact fractions, or with 50 digits where a value is irrational. Length,
depth, digits and exponents are bounded, so that nothing needs a time-out. Code runs in processes of its own:
see the last part. """
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
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from fractions import Fraction

# ------------------------------------------------------------------------------------------- the final answer

def last_boxed(text):
    """The content of the last \\boxed{...} (or \\fbox), or None if there is none or its brace never
    closes."""
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
    """The one answer of a response, or None: the last box; else what follows the last '####'; else the
    sentence after the last 'answer is'."""
    if "\\boxed{" in response or "\\fbox{" in response:
        return last_boxed(response)
    if "####" in response:
        return response.rpartition("####")[2].strip().partition("\n")[0]
    start = max((response.lower().rfind(marker) + len(marker) for marker in ("answer is", "answer:")
                 if marker in response.lower()), default=None)
    if start is None:
        return None
    sentence = response[start:start + 1000].lstrip(" :*\n").partition("\n")[0]
    return re.split(r"\.(?:\s|$)", sentence, maxsplit=1)[0].rstrip("*! ")


SYMBOLS = str.maketrans({
    "−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "⁄": "/", "∞": r"\infty ", "π": r"\pi ",
    "∪": r"\cup ", "∅": r"\emptyset ", "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ", "²": "^2", "³": "^3",
    "½": r"\frac12", "⅓": r"\frac13", "⅔": r"\frac23", "¼": r"\frac14", "¾": r"\frac34", "ℝ": r"\reals ",
    "θ": r"\theta ", "α": r"\alpha ", "\u00a0": " ", "\u200b": None,
    **{chr(0xFF01 + i): chr(0x21 + i) for i in range(94)}})
END = r"(?![a-zA-Z])"  # of a LaTeX command
REPLACE = [(re.compile(pattern), new) for pattern, new in (
    (r"\\\\", "↵"), (r"↵\s*$|\\!", ""), (r"√\s*(\d+|\w)", r"\\sqrt{\1}"), (r"√", r"\\sqrt "),
    (r"[𝜋𝛑𝝅]", r"\\pi "),
    (r"\\(?:displaystyle|textstyle|left|right|[bB]igg?[lr]?|large|limits|q?quad)" + END, " "),
    (r"\\[,;: ]|~", " "),
    (r"\{\s*,\s*\}", ","), (r"\\[dtc]frac", r"\\frac"), (r"\\(?:cdot|times|ast)" + END, "*"),
    (r"\\div" + END, "/"),
    (r"\\(?:leq?slant|leq?)" + END + "|<=", "≤"), (r"\\(?:geq?slant|geq?)" + END + "|>=", "≥"),
    (r"\\neq?" + END, "≠"), (r"\\lt" + END, "<"), (r"\\gt" + END, ">"), (r"\\[lr]vert", "|"),
    (r"\\varnothing|\\\{ *\\\}", r"\\emptyset"), (r"\^\s*\{?\s*\\circ\s*\}?|\\degree", "°"), (r"\\%", "%"),
    (r"\\mathbb\s*\{?R\}?", r"\\reals "),
    (r"\\(?:mathbf|mathit|boldsymbol|bm|underline)\s*\{([^{}]*)\}", r"{\1}"),
    (r"\\(?:text\w*|mbox|mathrm|operatorname)\s*\{([^{}]*)\}", r" ⟨\1⟩ "),
    (r"\{([^{}]*)\\over([^{}]*)\}", r"\\frac{\1}{\2}"), (r"\\[()\[\]]|(?<!\\)\$", " "),
    (r"\\\$|[€£]", r" \g<0> "),
    (r"^\s*(?:\\approx|=)", " "), (r"(?<=.)\\approx.*", ""), (r"\s+", " "))]
OPEN, CLOSE = ("(", "[", "{", "\\{"), (")", "]", "}", "\\}")


def matching(tokens, start):
    """Where the bracket at `start` closes; shapes may differ, as in [0, 1)."""
    depth = 0
    for i in range(start, len(tokens)):
        depth += (tokens[i] in OPEN) - (tokens[i] in CLOSE)
        if depth == 0:
            return i
    raise ValueError("a bracket is never closed")


def clean(text):
    """The many spellings of LaTeX and Unicode -> one; words that were in \\text{} stand in ⟨⟩."""
    text = text.translate(SYMBOLS)
    for pattern, new in REPLACE:
        text = pattern.sub(new, text)
    text = text.strip().rstrip(".,; ")
    while re.match(r"\{(?!.*,)", text) and matching(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


# ------------------------------------------------------------------------------------------------------ units

UNITS = {alias: name for name, aliases in {
    "m": "meter metre", "cm": "centimeter centimetre", "mm": "millimeter millimetre",
    "km": "kilometer kilometre", "in": "inch inche", "ft": "foot feet", "mi": "mile",
    "kg": "kilogram", "g": "gram", "l": "liter litre",
    "s": "sec second", "min": "minute", "h": "hr hour", "mph": "mi/h", "unit": "", "percent": "% percentage",
    "degree": "° deg", "dollar": r"\$ $ usd buck", "euro": "€ eur", "pound": "£ gbp", "cent": "¢", "/": "per",
}.items() for alias in (name, *aliases.split())}
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
POWERS = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
NO_UNITS = {"and", "or", "to", "nor", "not", "pi", "sqrt", "sin", "cos", "tan", "ln", "log"}
UNIT = (r"⟨[^⟩]*⟩"                                      # 12\text{ cm}
        r"|(?<= )[a-zA-Z]{2,}(?:/[a-z]+)?"              # 12 apples
        r"|(?<=[\d ])(?:[ck]?m|ft|mi)/(?:s|h|hr|min)"   # 5 m/s
        r"|(?<=\d)(?:[cmk]m|kg|ft|min|hr)|%|°|\\\$|[€£]")  # 12cm, 12%
TAIL = re.compile(rf"(?<=[\d)}}!.a-z]) *((?:{UNIT}) *)+(?:\^ ?\{{?(\d)\}}?)?$")


def split_unit(text):
    """'15 ⟨cm⟩^2' -> ('15', 'cm^2', 1): value, unit in one spelling or '', factor of words such as million.
    The base of '1011_2' counts as its unit."""
    if match := re.fullmatch(r"([0-9A-Z]+)_\{?(\d+)\}?", text.replace(" ", "")):
        return match[1], f"base {match[2]}", 1
    unit, power, factor = "", "", 1
    if match := re.match(r"(-?) ?(\\\$|[€£])", text):
        unit, text = UNITS[match[2]], match[1] + text[match.end():].strip()
    tail = TAIL.search(text)
    value = text[:tail.start()].strip() if tail else text
    words = re.findall(r"[^\W\d_/]+|/|%|°|\\\$|[€£]", tail[0].partition("^")[0]) if tail else []
    if not re.search(r"\d|\\pi", value) or NO_UNITS & set(words) or "°" in words and "\\" in value:
        return text, unit, factor
    power = f"^{tail[2]}" if tail and tail[2] else ""
    for word in words:
        word = word if len(word) < 2 else word.lower()
        if word in POWERS:
            power = POWERS[word]
        elif word in SCALES:
            factor *= SCALES[word]
        elif word not in ("of", "the", "a"):
            word = word if word in UNITS or len(word) < 3 else word.removesuffix("s")
            unit += UNITS.get(word, word)
    return value, unit + power, factor


# ------------------------------------------------------------------------------------------------ expressions

FUNCTIONS = set("sin cos tan sec csc cot arcsin arccos arctan sinh cosh tanh ln log lg exp".split())
GREEK = set("alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi varphi "
            "chi psi omega Delta Omega ell".split())
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
TOKEN = re.compile(r"\s*(\\[a-zA-Z]+|\\[{}|]|\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+"
                   r"|(?:(?:arc)?(?:sin|cos|tan)|ln|log|exp|sqrt|pi)(?![a-z])"
                   r"|\*\*|[a-zA-Z]|[-+*/^_!%°|()\[\]{}<>≤≥≠=,:;&])", re.ASCII)


def tokenize(text):
    tokens, end = [], 0
    while match := TOKEN.match(text, end):
        token, end = match[1], match.end()
        tokens.append("^" if token == "**" else "\\" + token if len(token) > 1 and token.isalpha() else token)
    if text[end:].strip():
        raise ValueError(f"unexpected {text[end:end + 10]!r}")
    return tokens


def translate(tokens, depth=0):
    """The tokens of one expression in Python's syntax: 2 \\sin x -> (2)*(sin((v_x))). Implied products bind
    like written ones; the argument of a function without brackets ends at + - * / or the next function."""
    if depth > 30 or not tokens:
        raise ValueError("too deep, or empty")
    tokens, out = list(tokens), []  # what is left to read; operators and (atoms)

    def take(end):  # up to `end`, without the brackets around
        part = tokens[1:end]
        del tokens[:end + 1]
        return translate(part, depth + 1)

    def argument():  # of \frac, ^ and the like: a {group}, else one digit, letter or command
        if tokens[:1] in (["{"], ["("]):
            return take(matching(tokens, 0))
        token = tokens.pop(0) if tokens else ""
        if token == "-":
            return "-" + argument()
        if token[:1].isdigit() and len(token) > 1:  # \frac12
            tokens.insert(0, token[1:])
        return translate([token[:1] if token[:1].isdigit() else token], depth + 1)

    def called(name):
        base = power = ""
        while tokens[:1] in (["_"], ["^"]):
            if tokens.pop(0) == "_":
                base = "," + argument()
            elif tokens[:4] == ["{", "-", "1", "}"]:
                del tokens[:4]
                name = "arc" + name
            else:
                power = f"**({argument()})"
        if tokens and tokens[0] in OPEN:
            return f"{name}({take(matching(tokens, 0))}{base}){power}"
        end = tokens.index("|", 1) + 1 if tokens[:1] == ["|"] else 0
        while end < len(tokens) and tokens[end] not in (*OPERATORS, "|") and tokens[end][1:] not in FUNCTIONS:
            end = (matching(tokens, end) if tokens[end] in OPEN else end) + 1
        inside = translate(tokens[:end], depth + 1)
        del tokens[:end]
        return f"{name}({inside}{base}){power}"

    while tokens:
        token = tokens[0]
        name = token[1:]
        if token in OPEN:
            atom = take(matching(tokens, 0))
        elif token == "|":
            atom = f"abs({take(tokens.index('|', 1))})"
        elif name in ("lfloor", "lceil"):
            atom = f"{name[1:]}({take(tokens.index(token.replace('l', 'r', 1)))})"
        else:
            del tokens[0]
            if token in OPERATORS:
                out.append(token)
                continue
            if token in ("^", "!", "%", "°"):
                if not out or out[-1] in OPERATORS:
                    raise ValueError(f"nothing before {token}")
                last = out[-1]
                out[-1] = (f"{last}**({argument()})" if token == "^" else f"factorial({last})" if token == "!"
                           else f"({last}/100)" if token == "%" else f"({last}*pi/180)")
                continue
            if token[0].isdigit() or token[0] == ".":
                mantissa, _, exponent = token.lower().partition("e")
                value = Fraction(mantissa.rstrip(".")) * Fraction(10) ** small(int(exponent or 0), 400)
                atom = f"{value.numerator}/{value.denominator}"
                mixed = re.match(r"\\frac(\{\d+\}\{\d+\}|\d\d(?!\d))", "".join(tokens[:8]))
                if mixed and token.isdigit():  # 3\frac12
                    del tokens[0]
                    atom += f"+({argument()})/({argument()})"
            elif name in ("frac", "binom"):
                atom = f"{'divide' if name == 'frac' else name}({argument()},{argument()})"
            elif name == "sqrt":
                root = take(tokens.index("]")) if tokens[:1] == ["["] else "2"
                atom = f"root({argument()},{root})"
            elif name in FUNCTIONS:
                atom = called(name)
            elif name in ("pi", "infty") or token in ("e", "i"):
                atom = name or token
            elif token.isalpha() or name in GREEK:
                atom = "v_" + (name or token)
                if tokens[:1] == ["_"]:
                    end = matching(tokens, 1) if tokens[1:2] == ["{"] else 1
                    atom += re.sub(r"\W", "", "".join(tokens[:end + 1]))
                    del tokens[:end + 1]
            else:
                raise ValueError(f"unknown {token}")
        out += ["*"] * bool(out and out[-1] not in OPERATORS) + [f"({atom})"]
    return "".join(out)


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


def bits(x):
    return max(x.numerator.bit_length(), x.denominator.bit_length())


def power(a, b):
    """a ** b, exact for whole b; an odd root of a negative number is real."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        if b.denominator == 1:
            small(abs(b) * bits(a), 20000)
            return a ** int(b)
        if a < 0 and b.denominator % 2:
            return (-1) ** (b.numerator % 2) * power(-a, b)
    return mp().power(to_mp(a), small(to_mp(b), 10**4))


def whole(x, bound):
    if not isinstance(x, Fraction) or x.denominator != 1 or not 0 <= x <= bound:
        raise ValueError("not a whole number, or too large")
    return int(x)


def call(name, x, y=None):
    """The value of name(x) or name(x, y)."""
    if name in ("divide", "root"):
        return apply(operator.truediv, x, y) if name == "divide" else power(x, 1 / y)
    if name == "factorial":
        if isinstance(x, Fraction) and x.denominator > 1:  # a free variable
            return mp().gamma(to_mp(small(x, 300)) + 1)
        return Fraction(math.factorial(whole(x, 300)))
    if name == "binom":
        k = whole(y, 300)
        factors = (apply(operator.sub, x, Fraction(i)) for i in range(k))
        return math.prod(factors, start=Fraction(1)) / math.factorial(k)
    if name == "abs":
        return abs(x)
    if name in ("floor", "ceil"):
        return Fraction(int(getattr(math if isinstance(x, Fraction) else mp(), name)(x)))
    x = small(to_mp(x), 10**4 if name == "exp" else 10**30)
    if name in ("log", "lg"):
        return mp().ln(x) / mp().ln(to_mp(y) if y is not None else 10)
    return getattr(mp(), name.replace("arc", "a"))(x)


def apply(function, a, b):
    exact = isinstance(a, Fraction) and isinstance(b, Fraction)
    return function(a, b) if exact else function(to_mp(a), to_mp(b))


def compute(node, point=0):
    """The value of an expression, a Fraction or a 50-digit number; `point` numbers a choice of values for the
    free variables. Raises ValueError or ArithmeticError where there is none."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if isinstance(node, ast.Name):
        if node.id.startswith("v_"):
            rand = random.Random(f"{node.id} {point}")
            sign = rand.choice((-1, 1)) if point else 1
            return sign * Fraction(rand.randint(20, 99), rand.randint(3, 17))
        return {"pi": mp().pi(), "e": mp().e(), "i": mp().mpc(0, 1), "infty": mp().inf}[node.id]
    if isinstance(node, ast.UnaryOp):
        value = compute(node.operand, point)
        return -value if isinstance(node.op, ast.USub) else value
    if not isinstance(node, (ast.BinOp, ast.Call)):
        raise ValueError("not allowed")
    operands = [node.left, node.right] if isinstance(node, ast.BinOp) else node.args
    values = [compute(operand, point) for operand in operands]
    for value in values:  # infinity stands alone or with a sign
        small(bits(value), 10**5) if isinstance(value, Fraction) else small(value, mp().mpf(10) ** 2000)
    if isinstance(node, ast.Call):
        return call(node.func.id, *values)
    if isinstance(node.op, ast.Pow):
        return power(*values)
    return apply({ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
                  ast.Div: operator.truediv}[type(node.op)], *values)


def variables(tree):
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id.startswith("v_")}


def close(x, y):
    """Equality of two values: exact for fractions, else to 35 digits. A decimal of over 30 digits is no
    stand-in for an irrational number."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    if any(isinstance(v, Fraction) and v.denominator > 10**30 for v in (x, y)):
        return False
    x, y = to_mp(x), to_mp(y)
    if mp().isinf(x) or mp().isinf(y):
        return x == y
    return bool(abs(x - y) <= mp().mpf(10) ** -35 * max(1, abs(x), abs(y)))


# --------------------------------------------------------------------------------------- structure of answers
#
# A node is a tuple: ("value", expression), ("set" | "union" | "ratio" | "matrix" | "row", nodes ...),
# ("tuple", its brackets, nodes ...), ("relation", its signs, nodes ...), ("empty",).

FLIP = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "=": "=", "≠": "≠"}


def split(tokens, separators):
    """Split at separators outside all brackets -> the parts, the separators."""
    parts, found, depth = [[]], [], 0
    for token in tokens:
        depth += (token in OPEN) - (token in CLOSE)
        if depth == 0 and token in separators:
            parts.append([])
            found.append(token)
        else:
            parts[-1].append(token)
    return parts, found


def read(tokens):
    """Tokens of an answer -> its node."""
    if "\\pm" in tokens or "\\mp" in tokens:  # two answers; \mp has the other sign
        both = [{"\\pm": plus, "\\mp": minus} for plus, minus in ("+-", "-+")]
        return ("set", *(read([signs.get(token, token) for token in tokens]) for signs in both))
    if tokens in (["\\emptyset"], ["\\reals"]):
        return ("empty",) if tokens == ["\\emptyset"] else read(tokenize(r"(-\infty,\infty)"))
    levels = (("set", ",;"), ("in", ["\\in"]), ("relation", FLIP), ("union", ["\\cup"]), ("ratio", ":"))
    for kind, separators in levels:  # from the loosest to the tightest
        parts, found = split(tokens, separators)
        if kind == "in" and len(parts) == 2 and all(token.isalpha() for token in parts[0]):
            return read(parts[1])
        if found:
            return (kind, *([found] if kind == "relation" else []), *map(read, parts))
    if tokens and tokens[0] in OPEN and matching(tokens, 0) == len(tokens) - 1:
        items, commas = split(tokens[1:-1], ",;")
        if "{" in tokens[0] and (commas or tokens[0] == "\\{"):
            return ("set", *map(read, items))
        if commas:
            return ("tuple", tokens[0] + tokens[-1], *map(read, items))
    return ("value", ast.parse(translate(tokens), mode="eval").body)


@functools.lru_cache(4096)
def parse(text):
    """A clean answer -> its node; ValueError where it has none. Answers of over 600 characters have none."""
    if len(text) > 600:
        raise ValueError("too long")
    matrix = r"\\begin ?\{(?:[pbBvV]?matrix|array)\}(?: ?\{[clr| ]*\})?(.*?)\\end ?\{\w+\}"
    if match := re.fullmatch(rf"[(\[{{]? ?{matrix} ?[)\]}}]?", text):
        rows = [row.split("&") for row in match[1].split("↵") if row.strip()]
        return ("matrix", *(("row", *(read(tokenize(cell)) for cell in row)) for row in rows))
    text = re.sub(r"⟨? ?\b(?:and|or)\b ?⟩?", ",", text)
    text = re.sub(r",(?: ?,)+", ",", re.sub(r"[⟨⟩]", " ", text))
    if re.fullmatch(r"-? ?\d{1,3}(?:([, ])\d{3})(?:\1\d{3})*(?:\.\d+)?", text):  # thousands
        text = re.sub(r"[, ](?=\d)", "", text)
    text = re.sub(r"(\d*)\.(\d*)\\overline ?\{(\d{1,30})\}", repeating_decimal, text)
    text = re.sub(r"(?<![\d.])(\d+) (\d+) ?/ ?(\d+)", r"\1\\frac{\2}{\3}", text)
    if re.search(r"(?<![_^\d])[\d.]+ +[\d.]|[a-zA-Z]{4,} [a-zA-Z]{2,}", text):
        raise ValueError("two numbers side by side, or words")
    return read(tokenize(text))


def repeating_decimal(match):
    whole, fixed, period = match.groups()
    difference = int(whole + fixed + period) - int(whole + fixed or 0)
    return f"({Fraction(difference, 10 ** len(fixed) * (10 ** len(period) - 1))})"


def is_name(node):
    """x, AB, f(x), (x, y), AB/CD: something that an answer may be called."""
    if node[0] == "tuple":
        return all(map(is_name, node[2:]))
    numeric = (ast.Constant, ast.Add, ast.Sub, ast.USub)
    return node[0] == "value" and not any(isinstance(part, numeric) for part in ast.walk(node[1]))


def values_of(node):
    """The values that 'x = 5' or 'AB = BC = 14' states; any other node states itself."""
    if node[0] != "relation" or set(node[1]) != {"="} or is_name(node[-1]):
        return [node]
    return [part for part in node[2:] if not is_name(part)]


def is_variable(node):
    return node[0] == "value" and isinstance(node[1], ast.Name) and node[1].id.startswith("v_")


def interval_of(node):
    """'x > 3' and '0 <= x < 1' as intervals, other nodes as they are."""
    if node[0] != "relation" or not (set(node[1]) <= {"<", "≤"} or set(node[1]) <= {">", "≥"}):
        return node
    signs, parts = node[1], list(node[2:])
    if signs[0] in ">≥":
        signs, parts = [FLIP[sign] for sign in reversed(signs)], parts[::-1]
    if len(parts) == 2:
        low, high = (read(tokenize(text)) for text in (r"-\infty", r"\infty"))
        left = is_variable(parts[0])
        signs, parts = (["<", *signs], [low, *parts]) if left else ([*signs, "<"], [*parts, high])
    if len(parts) != 3 or not is_variable(parts[1]):
        return node
    if any(end[0] != "value" or variables(end[1]) for end in parts[::2]):
        return node
    return ("tuple", "[("[signs[0] == "<"] + "])"[signs[1] == "<"], parts[0], parts[2])


def proportional(a, b):
    """Whether two relations of two sides say the same: at points chosen at random, the differences of their
    sides are in a constant ratio, positive for inequalities."""
    if any(side[0] != "value" for side in a[2:] + b[2:]):
        return a[1] == b[1] and same(a[2], b[2]) and same(a[3], b[3])
    sign, sign2 = a[1][0], b[1][0]
    a, sign = (a[:1:-1], FLIP[sign]) if sign in ">≥" else (a[2:], sign)
    b, sign2 = (b[:1:-1], FLIP[sign2]) if sign2 in ">≥" else (b[2:], sign2)
    ratios = []
    for point in range(4):
        d, d2 = (to_mp(apply(operator.sub, *(compute(side[1], point) for side in x))) for x in (a, b))
        if min(abs(d), abs(d2)) < mp().mpf(10) ** -30:
            return False
        ratios.append(d / d2)
    constant = all(close(ratio, ratios[0]) for ratio in ratios)
    return sign == sign2 and constant and (sign in "=≠" or mp().re(ratios[0]) > 0)


def same(a, b):
    """Whether two nodes are equal."""
    relations = [x for x in (a, b) if x[0] == "relation"]
    if len(relations) == 2:
        if len(a) == len(b) == 4 and proportional(a, b):
            return True
        names = [{part[1].id for part in x[2:] if is_variable(part)} for x in (a, b)]
        if all(names) and not names[0] & names[1]:
            return False  # x = 5 is not y = 5
    a, b = (("union", *map(interval_of, x[1:])) if x[0] == "set" and y[0] == "union" and x[1][0] == "relation"
            else interval_of(x) for x, y in ((a, b), (b, a)))
    values, values2 = values_of(a), values_of(b)
    if (values, values2) != ([a], [b]):
        return all(x[0] != "relation" and same(x, y) for x in values for y in values2)
    if a[0] != b[0]:
        return False
    if a[0] == "value":
        points = range(3 if variables(a[1]) | variables(b[1]) else 1)
        return all(close(compute(a[1], point), compute(b[1], point)) for point in points)
    if a[0] in ("set", "union"):  # in any order
        left = list(b[1:])
        for x in a[1:]:
            match = next((i for i, y in enumerate(left) if same(x, y)), None)
            if match is None:
                return False
            del left[match]
        return not left
    return len(a) == len(b) and all(
        same(x, y) if isinstance(x, tuple) else x == y for x, y in zip(a[1:], b[1:]))


def plain_words(text):
    return re.sub(r"[⟨⟩\s]+", " ", text).strip().casefold()


def equal_answers(answer, gold):
    """Whether two final answers, as written, are the same."""
    answer, gold = clean(answer), clean(gold)
    if not re.search(r"\w", answer) or not gold:
        return False
    if answer == gold:
        return True
    if choice := re.fullmatch(r"⟨? ?\(?([A-Z])[).]? ?⟩?", gold):
        return bool(re.fullmatch(r"[⟨({ ]*" + choice[1] + r"[)}.:⟩ ]*", answer))
    if re.fullmatch(r"[⟨⟩a-zA-Z -]+", answer + gold) and re.search(r"⟨|[a-zA-Z]{4}", gold):  # words
        return plain_words(answer) == plain_words(gold)
    (value, unit, factor), (value2, unit2, factor2) = split_unit(answer), split_unit(gold)
    if unit and unit2 and unit != unit2:
        return False
    try:
        a, b = parse(value), parse(value2)
        percent = {"percent": Fraction(1, 100)}
        # 25% is 25 or 0.25
        scales = {Fraction(factor, factor2), percent.get(unit, 1) / percent.get(unit2, 1)}
        if scales == {1}:
            return same(a, b)
        return a[0] == b[0] == "value" and not variables(a[1]) | variables(b[1]) and any(
            close(apply(operator.mul, compute(a[1]), Fraction(scale)), compute(b[1])) for scale in scales)
    except (ValueError, ArithmeticError, SyntaxError, RecursionError, MemoryError, LookupError, TypeError):
        return len(gold) > 1 and plain_words(answer) == plain_words(gold)  # no mathematics: compare as words


def math_reward(response, gold):
    """1.0 if the final answer of `response` equals the gold answer, which may be LaTeX or plain text."""
    try:
        gold, answer = str(gold), final_answer(str(response))
        return float(bool(answer) and len(answer) <= 2000 and equal_answers(answer, last_boxed(gold) or gold))
    except (ValueError, ArithmeticError, RecursionError):
        return 0.0


# -------------------------------------------------------------------------------------------------- countdown

def countdown_reward(response, numbers, target):
    """1.0 if the last <answer> is an expression of digits, + - * / and brackets that uses each of `numbers`
    exactly once and equals `target` exactly; a final "= target" is allowed. Without any <answer> tag the
    response must be the demo task's steps: "7*3=21,21+5=26", each using what is left of the numbers and of
    earlier results."""
    try:
        response, left = str(response), list(map(int, numbers))
        if "<answer>" in response:
            inside, closed, _ = response.rpartition("<answer>")[2].partition("</answer>")
            expression = re.sub(rf"\s*=\s*{int(target)}$", "", inside.strip().strip("$").strip())
            tricks = r"\*\s*\*|/\s*/|(?<!\d)0\d|\d\s+\d|[-+*/(]\s*[-+]|^\+"  # a first minus is none
            if not closed or len(expression) > 500 or re.search(tricks, expression):
                return 0.0
            if not re.fullmatch(r"[0-9+\-*/() ]+", expression):
                return 0.0
            tree = ast.parse(expression, mode="eval").body
            used = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
            return float(sorted(used) == sorted(left) and compute(tree) == target)
        for step in response.strip().split(","):
            a, op, b, result = re.fullmatch(r"(\d{1,9})([-+*/])(\d{1,9})=(\d{1,18})", step, re.ASCII).groups()
            left.remove(int(a))
            left.remove(int(b))
            if OPERATORS[op](Fraction(a), Fraction(b)) != int(result):
                return 0.0
            left.append(int(result))
        return float(left == [target])
    except (ValueError, ArithmeticError, TypeError, AttributeError, SyntaxError, RecursionError, MemoryError):
        return 0.0


# ------------------------------------------------------------------------------------------------------- code
#
# Three processes. The trainer starts a grader, which holds the tests; the grader starts a solution process,
# which holds the policy's code and nothing else. A call in a test crosses a pipe as tagged JSON, and so does
# its result: what comes back is plain data, judged by real builtins where the policy's code never runs.

TIME_LIMIT, MEMORY, FILE_SIZE, MESSAGE = 6, 2**30, 2**24, 2**23  # seconds, bytes, bytes, bytes
OPEN_FILES, PROCESSES = 64, 64
UNSHARE = "unshare --user --map-root-user --net --pid --fork --kill-child --mount-proc --".split()
SEQUENCES = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}


def python(function):
    """The command that runs a function of this file in a new Python; as an import, so that it is compiled
    once."""
    folder, name = os.path.split(os.path.splitext(os.path.abspath(__file__))[0])
    program = f"import sys; sys.path.append({folder!r}); import {name}; {name}.{function}()"
    return [sys.executable, "-I", "-c", program]


def encode(x, handles):
    """Plain data -> tagged JSON, a subclass as its base. Any other object stays here, in the list `handles`,
    and its number goes out; where `handles` is None, there is no such way."""
    if x is None or isinstance(x, (bool, str)):
        return ["plain", str.__str__(x) if isinstance(x, str) else x]
    if isinstance(x, int):
        return ["int", hex(int.__index__(x))]
    if isinstance(x, (float, complex)):
        return ["complex" if isinstance(x, complex) else "float", [float.hex(x.real), float.hex(x.imag)]]
    if isinstance(x, (bytes, bytearray)):
        return ["bytes", bytes(x).hex()]
    for name, kind in SEQUENCES.items():
        if isinstance(x, kind):
            return [name, [encode(item, handles) for item in kind.__iter__(x)]]
    if isinstance(x, dict):
        return ["dict", [[encode(key, handles), encode(value, handles)] for key, value in dict.items(x)]]
    if isinstance(x, Remote):
        return ["handle", x._number]
    if hasattr(type(x), "tolist"):  # numpy
        return encode(x.tolist(), handles)
    if handles is None:
        raise TypeError("only plain data can be passed to a solution")
    handles.append(x)
    return ["handle", len(handles) - 1]


def decode(message, resolve):
    kind, x = message
    if kind in SEQUENCES:
        return SEQUENCES[kind](decode(item, resolve) for item in x)
    if kind == "dict":
        return {decode(key, resolve): decode(value, resolve) for key, value in x}
    if kind in ("float", "complex"):
        return float.fromhex(x[0]) if kind == "float" else complex(*map(float.fromhex, x))
    if kind == "int":
        return int(x, 16)
    return {"plain": lambda value: value, "bytes": bytes.fromhex, "handle": resolve}[kind](x)


class Remote:
    """In the grader, an object of the solution process. It can be called and looked into. It cannot say
    whether it is true or equal to something: that would be the policy's code deciding a test."""
    def __init__(self, ask, number):
        self._ask, self._number = ask, number

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("getattr", self, name)

    def _refuse(self, *_):
        raise TypeError("an object of the solution is no plain data")
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __contains__ = _refuse
    __hash__ = None


for _name in ("call", "iter", "next", "len", "str", "getitem"):
    setattr(Remote, f"__{_name}__", lambda self, *a, _name=_name, **k: self._ask(_name, self, *a, **k))


def limit_this_process():
    import resource  # Linux and macOS only
    for name, value in (("CPU", TIME_LIMIT), ("AS", MEMORY), ("FSIZE", FILE_SIZE), ("NOFILE", OPEN_FILES),
                        ("NPROC", PROCESSES), ("CORE", 0)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def serve():
    """The solution process: run the policy's code, then answer calls until the pipe closes."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    for number in (0, 1, 2):  # what the code reads and prints is nobody's business
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    limit_this_process()
    namespace, handles = {"__name__": "solution"}, []
    operations = {"exec": lambda code: exec(code, namespace) or [name for name in namespace],
                  "name": namespace.__getitem__, "call": lambda f, *a, **k: f(*a, **k), "getattr": getattr,
                  "iter": iter, "next": next, "len": len, "str": str, "getitem": operator.getitem}
    for line in source:
        try:
            operation, arguments, keywords = json.loads(line)
            arguments, keywords = (decode(x, handles.__getitem__) for x in (arguments, keywords))
            reply = ["value", encode(operations[operation](*arguments, **keywords), handles)]
        except BaseException as error:  # whatever the policy's code raises is an answer to the test
            reply = ["error", type(error).__name__]
        sink.write(json.dumps(reply).encode() + b"\n")
        sink.flush()


class Deadline(BaseException):
    """Not an Exception, so that no test catches it."""


def grade():
    """The grader: read a task from stdin, print PASS or FAIL, leave no process behind."""
    def on_alarm(*_):
        raise Deadline
    task, verdict = json.loads(sys.stdin.buffer.read()), "FAIL"
    sys.stdout = sys.stderr  # for what the tests print
    prctl = ctypes.CDLL(None).prctl
    prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans of the solution become children of this process
    prctl(4, 0, 0, 0, 0)   # PR_SET_DUMPABLE off: an ordinary user's solution cannot read this memory
    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT, 1)
    with tempfile.TemporaryDirectory(prefix="solution-", ignore_cleanup_errors=True) as folder:
        def start(command, **more):
            environment = {"PATH": os.defpath, "HOME": folder, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
            return subprocess.Popen(  # in a session of its own, or it could signal our process group
                task["prefix"] + command, cwd=folder, env=environment, stderr=subprocess.DEVNULL,
                start_new_session=True, **more)
        try:
            (grade_tests if task["tests"] else grade_output)(task, start)
            verdict = "PASS"
        except (Exception, SystemExit, Deadline):  # a failed test, a broken pipe, the deadline: all the same
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        while True:
            try:
                for path in glob.glob("/proc/self/task/*/children"):
                    for pid in open(path).read().split():
                        os.kill(int(pid), signal.SIGKILL)
                os.waitpid(-1, 0)
            except ProcessLookupError:
                pass
            except ChildProcessError:
                break
    print(verdict, file=sys.__stdout__, flush=True)


def grade_tests(task, start):
    """Raise unless every test passes. The names that the tests use come from the solution process."""
    process = start(python("serve"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(operation, *arguments, **keywords):
        message = json.dumps([operation, encode(arguments, None), encode(keywords, None)])
        process.stdin.write(message.encode() + b"\n")
        process.stdin.flush()
        kind, reply = json.loads(process.stdout.readline(MESSAGE))
        if kind == "value":
            return decode(reply, lambda number: Remote(ask, number))
        error = getattr(builtins, str(reply), None)
        raise error() if isinstance(error, type) and issubclass(error, Exception) else RuntimeError(reply)

    defined = set(ask("exec", task["code"]))
    nodes = [node for test in task["tests"] for node in ast.walk(ast.parse(test))]
    used = {node.id for node in nodes if isinstance(node, ast.Name)} & defined
    # A solution may have a builtin's name. It may not stand in for the builtins and modules that judge it.
    owners = [node.value for node in nodes if isinstance(node, ast.Attribute)]
    modules = {node.id for node in owners if isinstance(node, ast.Name)} & used & sys.stdlib_module_names
    own = {name for name in used - modules if not hasattr(builtins, name)}
    for node in nodes:
        if not own and isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if any(isinstance(n, ast.Name) and n.id in used - {node.func.id} for n in ast.walk(node)):
                used = used - {node.func.id}
    namespace = {name: ask("name", name) for name in own or used - modules}
    namespace |= {name: __import__(name) for name in modules}
    for test in task["tests"]:
        exec(test, namespace)  # the data set's own code


def grade_output(task, start):
    """Raise unless the program prints the expected output for every input; spaces at line ends do not
    count."""
    def lines(text):
        return [line.rstrip() for line in text.rstrip().splitlines()]
    with tempfile.NamedTemporaryFile("w", suffix=".py", encoding="utf8") as program:
        program.write(task["code"])
        program.flush()
        for given, expected in zip(task["inputs"], task["outputs"], strict=True):
            with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout:
                stdin.write(str(given).encode())
                stdin.seek(0)
                process = start([sys.executable, "-I", program.name], stdin=stdin, stdout=stdout,
                                preexec_fn=limit_this_process)
                if process.wait() != 0:
                    raise ValueError("exit status")
                stdout.seek(0)
                if lines(stdout.read().decode()) != lines(str(expected)):
                    raise ValueError("wrong output")


@functools.cache
def sandbox():
    """The command prefix that gives a solution network and process namespaces of its own, if that works
    here."""
    if not sys.platform.startswith("linux"):
        raise RuntimeError("code can be verified on Linux only: elsewhere its limits do not exist")
    found = shutil.which(UNSHARE[0])
    works = found and subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    return UNSHARE if works else []


def code_block(response):
    """-> language and content of the last fenced block; empty strings if there is none or it never ends."""
    parts = response.split("```")
    language, _, code = parts[-2].partition("\n") if len(parts) % 2 and len(parts) > 2 else ("", "", "")
    return language.strip().lower(), code


def code_reward(response, tests=None, inputs=None, outputs=None):
    """1.0 if the last fenced block of `response` passes all `tests` (strings with asserts), or prints
    `outputs`, one for each of `inputs`. The one exception among the rewards: RuntimeError where there is no
    Linux."""
    prefix, (language, code) = sandbox(), code_block(str(response))
    if language not in ("", "py", "python", "python3") or not code.strip() or not (tests or inputs):
        return 0.0
    task = {"code": code, "tests": tests, "inputs": inputs, "outputs": outputs, "prefix": prefix}
    grader = subprocess.Popen(python("grade"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL)
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


def verify_batch(reward, responses, answers, patience=300):
    """-> the rewards of many responses, in order, and {index: exception} of those on which `reward` raised:
    nan. Threads are enough: code runs in processes of its own, all cores at once, so that a slow response
    delays only itself. TimeoutError when no verdict comes for `patience` seconds."""
    rewards, errors, verdicts = [math.nan] * len(responses), {}, []
    jobs = iter(range(len(responses)))

    def work():
        for i in jobs:  # the threads share it: each takes the next
            rewards[i] = None
            try:
                rewards[i] = float(reward(responses[i], answers[i]))
            except (Exception, SystemExit) as error:  # a user's function may raise anything: it is reported
                rewards[i], errors[i] = math.nan, error
            verdicts.append(i)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(os.cpu_count() or 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            before = len(verdicts)
            thread.join(patience)
            if thread.is_alive() and len(verdicts) == before:
                text = str(responses[rewards.index(None)])
                raise TimeoutError(f"no verdict for {patience} seconds on the response {text[:200]!r}")
    return rewards, errors


def extract(kind, response):
    """What the verifier of this kind judges, as text, or None."""
    if kind == "math":
        return final_answer(response)
    if kind == "code":
        return code_block(response)[1] or None
    return response.rpartition("<answer>")[2].partition("</answer>")[0]
