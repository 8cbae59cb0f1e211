"""Verifiers: programs that say whether a response is right, and that a policy under RL cannot fool.

    countdown_reward(response, numbers, target)    an expression that uses each number once
    math_reward(response, gold)                    one final answer, compared exactly with the gold one
    code_reward(response, tests, inputs, outputs)  code, run against asserts, or inputs and outputs

Each returns 1.0 or 0.0, never raises, and is safe in threads. No answer reaches eval or a symbolic algebra
system: a small reader makes it a tree, whose value is computed in exact fractions, or with 50 digits. Length,
digits and exponents are bounded, so that nothing needs a time-out. Code runs in processes of its own. """
import ast, builtins, contextlib, ctypes, functools, importlib, json, math, multiprocessing.pool, operator
import os, random, re, shutil, signal, subprocess, sys, tempfile, textwrap, threading, time, unicodedata
from decimal import Decimal
from fractions import Fraction

# ------------------------------------------------- countdown

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
ERRORS = (ValueError, ArithmeticError, TypeError, AttributeError, LookupError, SyntaxError, RecursionError,
          MemoryError)  # what odd input raises somewhere below: it is no answer

def countdown_reward(response, numbers, target):
    """1.0 if the last <answer> is an expression of digits, + - * / and brackets that uses each of `numbers`
    once and equals `target`; a final "= target" is allowed. Without any <answer> tag the response must be the
    demo task's steps, "7*3=21,21+5=26", each using what is left of the numbers and of earlier results."""
    with contextlib.suppress(*ERRORS):
        response, left = str(response), list(map(int, numbers))
        if "<answer>" not in response:
            for step in response.strip().split(","):
                a, op, b, result = re.fullmatch(r"(\d{1,9})([-+*/])(\d{1,9})=(\d{1,18})", step, re.A).groups()
                left.remove(int(a))
                left.remove(int(b))
                left.append(int(result))
                if OPERATORS[op](Fraction(a), Fraction(b)) != left[-1]:
                    return 0.0
            return float(left == [target])
        inside, closed, _ = response.rpartition("<answer>")[2].partition("</answer>")
        inside = " ".join(inside.strip().strip("$").translate(str.maketrans("×÷−·", "*/-*")).split())
        expression = re.sub(rf"\s*=\s*{int(target)}$", "", inside)
        # A first minus is no trick; a number like 012 or 1 2, a power, a second sign, 2(3) are.
        tricks = r"[*/]\s*[*/]|\b0\d|\d\s+\d|[-+*/(]\s*[-+]|^\+|[\d)]\s*\(|\)\s*\d|[^0-9+\-*/() ]"
        if not closed or len(expression) > 500 or re.search(tricks, expression):
            return 0.0
        used = sorted(map(int, re.findall(r"\d+", expression)))
        return float(used == sorted(left) and compute(Reader(expression).sum("end")) == target)
    return 0.0

# ------------------------------------------ the final answer

BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
MARKER = re.compile(r"####|\banswer\b(?:\W{0,4}is\b|\W*:|[*_]*\s*\n)|<answer>", re.I)
SENTENCE = re.compile(r"\.(?:\s|$)|,? \b(?:because|since|which)\b|</|\n")

def last_boxed(text):
    """The content of the last \\boxed{...} (or \\fbox); None if there is none or its brace never closes."""
    depth, begin = 0, max((match.end() for match in BOX.finditer(text)), default=len(text) + 1)
    for match in re.compile(r"\\.|[{}]", re.S).finditer(text, begin - 1):  # \{ and \} are no braces
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[begin:match.start()]
    return None

def final_answer(response):
    """The one answer of a response, or None: the last box; else the line or sentence after the last '####',
    'answer is', heading 'Final Answer'. What is inside <think> counts only where no answer follows it."""
    after = response.rpartition("</think>")[2]
    response = after if BOX.search(after) or MARKER.search(after) else response
    markers = list(MARKER.finditer(response))
    if BOX.search(response) or not markers:
        return last_boxed(response)
    text = response[markers[-1].end():][:1000].lstrip(" :*_\n")
    return SENTENCE.split(text, maxsplit=1)[0].strip("*_ ")

SYMBOLS = str.maketrans({sign: new for new, signs in {
    "-": "−–", "*": "×·⋅∗", "/": "÷⁄", "|": "∣", "≈": "≅", "(": "⟨", ")": "⟩", r"\pi ": "π", r"\theta ": "θ",
    r"\alpha ": "α", r"\beta ": "β", r"\mathbb R": "ℝ", "=": "∈", "": "\u200b"}.items() for sign in signs})
SCALES = dict(dozen="*12", hundred="*100", thousand="*1000", million="*10^6", billion="*10^9", halves="/2",
              trillion="*10^12", thirds="/3", fourths="/4", fifths="/5", squared="^2", cubed="^3")
COMMANDS = {name: sign for sign, names in {  # commands that mean one sign, or nothing
    "≤": "le leq leqslant", "≥": "ge geq geqslant", "≠": "ne neq", "<": "lt", ">": "gt", " ∪ ": "cup",
    "=": "in", "±": "pm", "∓": "mp", "≈": "approx", "∞": "infty", "∅": "emptyset varnothing",
    "|": "vert lvert rvert mid", "*": "cdot times ast", "/": "div", "(": "langle", ")": "rangle",
    "°": "degree", "...": "ldots cdots dots", r"\frac": "dfrac tfrac cfrac",
    " ": "displaystyle textstyle left right big Big bigg Bigg bigl bigr Bigl Bigr large limits quad qquad"
    }.items() for name in names.split()}
REPLACE = [(re.compile(pattern), new) for pattern, new in (
    (r"[⁰¹²³⁴-⁹⁺⁻⁽⁾ⁿⁱ]+", r"^{\g<0>}"), (r"[₀-₉₊₋₍₎ₙᵢ]+", r"_{\g<0>}"),
    (r"[¼½¾⅐-⅞]", lambda m: r"\frac" + unicodedata.normalize("NFKC", m[0]).replace("⁄", "")),
    (r"[^①-⓿ℝ]+", lambda m: unicodedata.normalize("NFKC", m[0])), (r".+", lambda m: m[0].translate(SYMBOLS)),
    (r"\\\\", "↵"), (r"↵\s*(?=\\end|$)|\\!", ""), (r"√\s*(\d+|\w)", r"\\sqrt{\1}"), (r"√", r"\\sqrt "),
    (r"\\begin\s*\{([vV]?)\w*(?:matrix|array)\}(\s*\{[clr| ]*\})?", lambda m: "|" * len(m[1]) + r"\matrix "),
    (r"\\end\s*\{([vV]?)\w*(?:matrix|array)\}", lambda m: r"\endmatrix " + "|" * len(m[1])),
    (r"\\([a-zA-Z]+)", lambda m: COMMANDS.get(m[1], m[0])),
    (r"\\[,;: ]|~", " "), (r"\{\s*,\s*\}", ","), (r"\\mathbb\s*\{?R\}?", "(-∞,∞)"),
    (r"(\^ ?(?:\{[^{}]*\}|\d))( ?_ ?(?:\{[^{}]*\}|\w))", r"\2\1"),  # v^2_0
    (r"\*\*", "^"), (r"<=", "≤"), (r">=", "≥"), (r"!=", "≠"), (r"\\\{ *\\\}", "∅"), (r"\\%", "%"),
    (r"\^\s*\{?\s*(?:\\circ|°)\s*\}?", "°"), (r"\^\s*\{?\s*\\prime\s*\}?", "'"),
    (r"\\(?:mathbf|mathit|boldsymbol|bm|underline)\s*(?:\{(\w)\}|(?=\{))", r" \1"),
    (r"\\(?:text|mathrm|operatorname)\s*\{\s*([eid])\s*\}", r" \1 "),  # the numbers e and i, upright
    (r"\\(?:text\w*|mbox|mathrm|operatorname)\s*\{([^{}]*)\}", r" ⟨\1⟩ "),
    (r"\{([^{}]*)\\over([^{}]*)\}", r"\\frac{\1}{\2}"), (r"\\[()\[\]]|(?<!\\)\$", " "),
    (r"\\\$|[€£₹¥]", r" \g<0> "), (r"\\frac\s+(\w+)\s+(\w+)", r"\\frac{\1}{\2}"),
    (r"\\(frac|binom) ?(\d) ?(\d)", r"\\\1{\2}{\3}"),  # \frac12
    (r"⟨? *(\d{1,2}):(\d\d) *⟨? *([AaPp])\.? ?[Mm]\b\.? *⟩?", r"⟨at \1.\2 \3⟩"),  # a time of day
    (rf"(?<=[\d)}}])( *⟨? *)\b({'|'.join(SCALES)})\b", lambda m: SCALES[m[2]] + m[1]),
    (r"(?<=\d) ?[xX] ?(?=10 ?\^)", "*"), (r"^\s*[=≈]", " "), (r"\s+", " "),
    (r"(?<=[\d}])(?: \(| ?\((?=\w{2}))([a-zA-Z][a-zA-Z .]*)\)(?=[ .,;]*$)", r" ⟨\1⟩"))]  # 24 (stickers)

def clean(text):
    """The many spellings of LaTeX and Unicode -> one; words that were in \\text{} stand in ⟨⟩."""
    for pattern, new in REPLACE:
        text = pattern.sub(new, text)
    return text.strip() if re.search(r"\d ?\.\.\.\s*$", text) else text.strip().rstrip(".,; ")

# ----------------------------------------------------- units

UNITS = {alias: name for name, aliases in {
    "m": "meter metre", "cm": "centimeter centimetre", "mm": "millimeter millimetre", "in": "inch inche",
    "km": "kilometer kilometre", "ft": "foot feet", "mi": "mile", "kg": "kilogram", "g": "gram", "unit": "",
    "l": "liter litre", "s": "sec second", "min": "minute", "h": "hr hour", "mph": "mi/h", "celsius": "",
    "percent": "% pct percentage", "fahrenheit": "", "degree": "° deg", "degreecelsius": "degreec",
    "/": "per", "degreefahrenheit": "degreef", "dollar": r"\$ $ usd buck", "euro": "€ eur", "pound": "£ gbp",
    "rupee": "₹", "yen": "¥", "cent": "¢"}.items() for alias in (name, *aliases.split())}
POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
NO_UNITS = {"and", "or", "to", "nor", "not", "pi", "sqrt", "sin", "cos", "tan", "ln", "log", "mod", "theta"}
CURRENCY = r"\\\$|[€£₹¥]"
UNIT = (r"⟨[^⟩]*⟩|(?<=⟩ )[/-](?= ⟨)|(?<= )[a-zA-Z]{2,}(?:/[a-z]+)?"           # 12\text{ cm}, 12 apples
        r"|(?<=[\d ])(?:[ck]?m|ft|mi)/(?:s|h|hr|min)|(?<=\d)(?:[cmk]m|kg|ft|min|hr)"  # 5 m/s, 5kg
        rf"|(?<=°) ?[CF]|%|°|{CURRENCY}")
TAIL = re.compile(rf"(?<=[\d)}}!.a-z°]) *((?:{UNIT}) *)+(?:\^ ?\{{?(\d)\}}?)?$")
BASE = re.compile(r"(-?)\(?([\dA-F.]*\d[\dA-F]*)\)?(?:_\{? ?⟨? ?| ⟨? ?base ?⟩? ?)(\d+) ?⟩? ?\}?")

def split_unit(text):
    """'15 ⟨cm⟩^2' -> ('15', 'cm^2'): value, unit in one spelling. The base of '1011_2' counts as one."""
    if base := BASE.fullmatch(text):
        return base[1] + base[2], f"base {base[3]}"
    unit = power = ""
    if match := re.match(rf"(-?) ?({CURRENCY})", text):
        unit, text = UNITS[match[2]], match[1] + text[match.end():].strip()
    tail = TAIL.search(text)
    value = text[:tail.start()].strip() if tail else text
    words = re.findall(rf"[^\W\d_/]+|/|%|°|{CURRENCY}", tail[0].partition("^")[0]) if tail else []
    if not re.search(r"\d|\\pi", value) or NO_UNITS & {*words} or (
            "°" in words and re.search(r"[a-z]{3}\b", value)):
        return text, unit
    for word in words:
        word = word if len(word) < 2 and not unit.startswith("degree") else word.lower()
        if word in POWERS:
            power = f"^{POWERS[word]}"
        elif word not in ("of", "the", "a"):
            word = word if word in UNITS or len(word) < 3 else word.removesuffix("s")
            unit += UNITS.get(word, word)
    return value, UNITS.get(unit, unit) + (f"^{tail[2]}" if tail and tail[2] else power)

# ----------------------------------------------- expressions
#
# A tree is a Fraction, ("name", what), or an operation and its operands: ("+", tree, tree), ("sin", tree) ...

FUNCTIONS = {"arcsin", "arccos", "arctan",
             *"sin cos tan sec csc cot sinh cosh tanh ln log lg exp floor ceil abs".split()}
WORDS = FUNCTIONS | {"sqrt", "pi", "theta", "alpha", "beta", "gamma", "lambda"}
LETTERS = set("alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho sigma tau "
              "phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega ell hbar".split())
SUBSCRIPT = r"(?: ?_ ?(?:\{[^{}]*\}|\\?\w))?"  # with all of its signs: a_{n-1} is not a_{n+1}
TOKEN = re.compile(rf"\s*(\\(?:{'|'.join(LETTERS)})(?![a-zA-Z])'*{SUBSCRIPT}|\\[a-zA-Z]+|\\[{{}}|]"
                   rf"|\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+|(?:{'|'.join(WORDS)})(?![a-z])"
                   rf"|[a-zA-Z]'*{SUBSCRIPT}|[-+*/^_!%°|()\[\]{{}}∞∅&↵])", re.ASCII)
OPEN, CLOSE = ("(", "[", "{", "\\{"), (")", "]", "}", "\\}")
STOP = {*"+-*/^_!%°|&↵", "\\rfloor", "\\rceil", "\\endmatrix", "end", *CLOSE}  # they start no factor
ZERO, ONE, DEGREE = Fraction(0), Fraction(1), ("/", ("name", "\\pi"), Fraction(180))

class Reader:
    """Reads one expression: Reader(text).sum("end") is its tree. Implied products bind like written ones, as
    in 1/2x; the argument of a function without brackets ends at + - * / or the next function."""
    def __init__(self, text):
        if rest := TOKEN.sub("", text).strip():
            raise ValueError(f"unexpected {rest[:10]!r}")
        tokens = [re.sub(r"[ {}]", "", token) if "_" in token[1:] else token for token in TOKEN.findall(text)]
        self.tokens = ["end"] + ["\\" * (token in WORDS) + token for token in tokens[::-1]]
        self.bars = 0

    @property
    def next(self):
        return self.tokens[-1]

    def take(self, *allowed):
        if allowed and self.next not in allowed or len(self.tokens) < 2 and allowed != ("end",):
            raise ValueError(f"{self.next!r} is out of place")
        self.taken = self.tokens.pop()
        return self.taken

    def starts(self):
        return self.next not in STOP or self.next == "|" and not self.bars

    def sum(self, *closing):
        tree = self.product()
        while self.next in ("+", "-"):
            tree = (self.take(), tree, self.product())
        self.take(*closing)
        return tree

    def product(self):
        tree = self.factor()
        while self.next in ("*", "/") or self.starts():
            tree = ("*", tree, self.power()) if self.starts() else (self.take(), tree, self.factor())
        return tree

    def factor(self):
        if self.next in ("+", "-"):
            return self.factor() if self.take() == "+" else ("-", ZERO, self.factor())
        return self.power()

    def power(self):
        tree = self.atom()
        while self.next in ("^", "!", "%", "°"):
            if (sign := self.take()) == "^":
                tree = ("^", tree, self.argument())
            else:
                tree = ("!", tree) if sign == "!" else ("*", tree, {"%": Fraction(1, 100), "°": DEGREE}[sign])
        return tree

    def argument(self):
        """Of \\frac, ^ and the like: a {group}, a number, letter or command. Who writes 2^17 means 2^{17}."""
        if self.next == "-":
            self.take()
            return ("-", ZERO, self.argument())
        return self.atom()

    def atom(self):
        token = self.take()
        name = token[1:]
        if token in OPEN:
            return self.sum(*CLOSE)
        if token == "|":
            self.bars += 1
            tree = ("abs", self.sum("|"))
            self.bars -= 1
            return tree
        if token[0].isdigit() or token[0] == ".":
            mantissa, _, exponent = token.lower().partition("e")
            value = Fraction(mantissa.rstrip(".")) * Fraction(10) ** small(int(exponent or 0), 400)
            if token.isdigit() and self.next == "\\frac":  # 3\frac12
                part = self.atom()
                return ("+" if exact(*part[1:]) else "*", value, part)
            return value
        if name in ("lfloor", "lceil"):
            return (name[1:], self.sum(token.replace("l", "r", 1)))
        if name in ("frac", "binom"):
            return ("/" if name == "frac" else name, self.argument(), self.argument())
        if name == "sqrt":
            root = self.sum("]") if self.next == "[" and self.take() else Fraction(2)
            return ("^", self.argument(), ("/", ONE, root))
        if name in FUNCTIONS:
            return self.called(name)
        if name == "matrix":
            rows = [["row"]]
            while self.taken != "\\endmatrix":
                rows += [["row"]] * (self.taken == "↵")
                rows[-1].append(self.sum("&", "↵", "\\endmatrix"))
            return ("matrix", *map(tuple, rows))
        if token in ("\\pi", "∞", "∅") or token[0].isalpha() or re.match("[a-zA-Z]*", name)[0] in LETTERS:
            return ("name", token)
        raise ValueError(f"unknown {token}")

    def called(self, name):
        base, exponent = [], None
        while self.next in ("_", "^"):
            if self.take() == "_":
                base = [self.argument()]
            elif (exponent := self.argument()) == ("-", 0, 1):
                name, exponent = "arc" + name, None
        if self.next in OPEN or self.next == "|":
            tree = self.atom()
        else:
            tree = self.factor()
            while self.starts() and self.next[1:] not in FUNCTIONS:
                tree = ("*", tree, self.power())
        return (name, tree, *base) if exponent is None else ("^", (name, tree, *base), exponent)

def mp(own=threading.local()):
    """This thread's arithmetic with 50 digits: contexts of mpmath are not safe to share."""
    if not hasattr(own, "mp"):
        import mpmath  # here, because the processes that grade code start faster without
        own.mp = mpmath.MPContext()
        own.mp.dps = 50
    return own.mp

def exact(*values):
    return all(isinstance(value, Fraction) for value in values)

def small(x, bound):
    """x, unless it is so large that to compute with it would take long, or no number."""
    if not abs(x) <= bound:
        raise ValueError("too large")
    return x

def whole(x, bound):
    if not exact(x) or x.denominator != 1 or not 0 <= x <= bound:
        raise ValueError("not a whole number, or too large")
    return int(x)

def power(a, b):
    """a ** b, exact for whole b; an odd root of a negative number is real."""
    if exact(a, b) and b.denominator == 1:
        small(abs(b) * (a.numerator * a.denominator).bit_length(), 250_000)
        return a ** int(b)
    if exact(b) and b.denominator % 2 and mp().im(a) == 0 and mp().re(a) < 0:
        return (-1) ** (b.numerator % 2) * power(-a, b)
    return mp().power(a, small(b, 10**4))

def apply(name, x, y=None):
    """The value of an operation."""
    if hasattr(y, "rows") and name not in "+-*":
        raise ValueError("a matrix is no divisor, exponent or base")
    if name in OPERATORS:
        return OPERATORS[name](mp().convert(x) if exact(x) and not exact(y) else x, y)
    if name == "^":
        return power(x, y)
    if name == "!":
        return Fraction(math.factorial(whole(x, 2500)))
    if name == "binom":
        k = whole(y, 300)
        return math.prod((apply("-", x, Fraction(i)) for i in range(k)), start=ONE) / math.factorial(k)
    if name == "abs":
        return mp().det(x) if hasattr(x, "rows") else abs(x)
    if name in ("floor", "ceil"):
        return Fraction(int(getattr(math if exact(x) else mp(), name)(x)))
    small(x, 10**4 if name == "exp" else 10**30)
    if name in ("log", "lg"):
        return mp().ln(x) / mp().ln(10 if y is None else y)
    return getattr(mp(), name.replace("arc", "a"))(x)

CONSTANTS = {"\\pi": "pi", "e": "e", "i": "j", "∞": "inf"}  # and their names in mpmath
WHOLE = 10  # from this point on, variables are whole numbers

def compute(tree, point=0):
    """The value of a tree, a Fraction or a 50-digit number; `point` numbers a choice of values for the free
    variables: all positive, all negative, any signs, whole. ValueError, ArithmeticError: there is none."""
    if not isinstance(tree, tuple):
        return tree
    name, *operands = tree
    if name == "name" and operands[0] in CONSTANTS:
        return mp().convert(getattr(mp(), CONSTANTS[operands[0]]))
    if name == "name":
        rand = random.Random(f"{operands[0]} {point}" if point < WHOLE else operands[0])
        if point >= WHOLE:  # all of 1 to 12, each name in an order of its own
            return Fraction((rand.randint(0, 11) + rand.choice((1, 5, 7, 11)) * point) % 12 + 1)
        sign = rand.choice((-1, 1)) if point > 1 else 1 - 2 * point
        return sign * Fraction(rand.randint(20, 99), rand.randint(3, 17))
    values = [compute(operand, point) for operand in operands]
    if name in ("row", "matrix"):
        return values if name == "row" else mp().matrix(values)
    if (name, operands[0]) != ("-", 0):  # infinity stands alone or with a sign
        for value in values:
            small((value.numerator * value.denominator).bit_length() if exact(value) else mp().norm(value),
                  300_000 if exact(value) else mp().mpf(10) ** 2000)
    return apply(name, *values)

def names_in(tree):
    """The operations and the variables of a tree, these with a space before them."""
    if not isinstance(tree, tuple):
        return set()
    return {" " + tree[1]} if tree[0] == "name" else {tree[0]}.union(*map(names_in, tree[1:]))

def variables(*trees):
    return {name for tree in trees for name in names_in(tree) if name[0] == " " and name[1:] not in CONSTANTS}

def close(x, y):
    """Equality of two values: exact for fractions, else to 35 digits, which no decimal may stand in for."""
    if exact(x, y) or any(exact(v) and v.denominator > 10**30 for v in (x, y)):
        return exact(x, y) and x == y
    return bool(x == y or mp().norm(apply("-", x, y)) < mp().mpf(10) ** -35 * mp().norm(y))

def agree(a, b):
    """Whether the values of two trees are close wherever both are real; if they nowhere are, where complex.
    Floors are tried at whole numbers too, factorials only there. ValueError where there are no values."""
    names, verdicts = names_in(a) | names_in(b), {True: [], False: []}
    points = [*range(6)] * (not names & {"!", "binom"})
    points += range(WHOLE, WHOLE + 12) if names & {"!", "binom", "floor", "ceil"} else []
    points = points if variables(a, b) else [0]
    for point in points:
        with contextlib.suppress(ValueError, ArithmeticError):
            x, y = compute(a, point), compute(b, point)
            numbers = [z for value in (x, y) for z in (value if hasattr(value, "rows") else [value])]
            real = " i" in names or not any(map(mp().im, numbers))
            verdicts[real].append(close(x, y))
    if not (seen := verdicts[True] or verdicts[False]):
        raise ValueError("no value anywhere")
    return all(seen)

# -------------------------------------- structure of answers
#
# A node is a tuple: ("value", tree, unit), ("word", text), ("set" | "union" | "ratio", nodes ...), ("tuple",
# its brackets, nodes ...), ("relation", its signs, nodes ...), ("named", name, node, relation) for x = 5.

def nesting(text):
    """Every bracket and other character of a text, as a match, with the depth of brackets behind it."""
    depth = 0
    for match in re.finditer(r"\\?[{}]|.", text, re.S):
        depth += (match[0][-1] in "([{⟨") - (match[0][-1] in ")]}⟩")
        yield match, depth

def split(text, separators):
    """Split at one-character separators outside all brackets -> the parts, the separators."""
    found = [match for match, depth in nesting(text) if depth == 0 and match[0] in separators]
    ends = [0, *(end for match in found for end in match.span()), len(text)]
    return [text[a:b].strip() for a, b in zip(ends[::2], ends[1::2])], [match[0] for match in found]

def enclosed(text):
    """(opening, content, closing) if one pair of brackets, of whatever shapes, is around all of the text."""
    end = next((match for match, depth in nesting(text) if depth == 0), None)
    opening = re.match(r"\\?{|[([]|", text)[0]
    if opening and end and end.end() == len(text):
        return opening, text[len(opening):end.start()].strip(), end[0]

def is_name(text):
    """Whether a text is what an answer may be called: x, AB, f(2), P(X > 2), f^{-1}(x), \\angle A, V_1:V_2,
    (x, y), words, e; but not 2x, x^2, \\frac{1}{2}, which are to be solved, or values, as is ln 2."""
    short = re.sub(r"\^\{?-1\}?(?=\(|$)", "'", text.replace(" ", ""))
    if short[:1] == "(":
        return bool(enclosed(short)) and all(map(is_name, split(enclosed(short)[1], ",")[0]))
    frac = "frac" in short
    inner = re.sub(r"\([^()]*\)|\[[^\[\]]*\]|_\{[^{}]*\}|_\w" + r"|\{[^{}]*\}" * (not frac), "", short)
    odd = r"[\d+*!<>|^-]" if frac else r"^[\d.]|[-+*/!<>|%°±^∞]|\\sqrt|\\pi|\\matrix|^i$"
    return bool(re.search(r"[a-zA-Z]", inner)) and not re.search(odd, inner) and (
        text == "e" or kind_of(text) != "constant")

def is_word(text):
    """Yes, AAS, red, June 20 are words, xy and p - q are not: e, i, o, u and capitals spell words."""
    parts = re.split(r"[ -]+", text)
    return text not in WORDS and all(re.fullmatch(r"[A-Za-z']{2,}|\d+|a|I", part) for part in parts) and bool(
        text[0].isalpha() and (len(text) > 3 or re.search(r"[eiouA-Z]", text)))

def kind_of(text):
    """"constant", as ln 2 is, "variable", or None for any other side of a relation."""
    with contextlib.suppress(ValueError):
        _, tree, _ = leaf(text)
        free = variables(tree)
        return "constant" if not free else "variable" if names_in(tree) == free else None

def read(text):
    """A clean answer -> its node. ValueError where it has none."""
    while (whole := enclosed(text)) and whole[0] == "{" and not split(whole[1], ",;")[1]:
        text = whole[1]
    if re.fullmatch(r"⟨[^⟨⟩]*⟩", text) and not text.startswith("⟨at "):
        text = text[1:-1].strip()
    if whole and whole[0] == "\\{":
        condition, bar = split(whole[1], "|:")
        if bar and is_name(split(condition[0], "=")[0][0]):
            return read(condition[1])  # {x | x > 2}
        inner = read(whole[1])
        return inner if inner[0] == "set" else ("set", inner)
    parts = [part.translate(str.maketrans("±∓", signs)) for part in split(text, ",;")[0]  # ± is two answers
             for signs in (("+-", "-+") if re.search("[±∓]", part) else ("±∓",))]
    if len(parts) > 1:
        return ("set", *map(read, parts))
    parts, signs = split(text, "<>≤≥=≠≈")
    if signs:
        return read_relation(parts, signs)
    for kind, separator in (("union", "∪"), ("ratio", ":")):  # from the loosest to the tightest
        if len(parts := split(text, separator)[0]) > 1:
            return (kind, *map(read, parts))
    whole = enclosed(re.sub(r"^[A-Z]'*_?\d? ?(?=\(.*,)", "", text))  # also P(1,2)
    if whole and len(parts := split(whole[1], ",;")[0]) > 1:
        return (*(("set",) if whole[0] == "{" else ("tuple", whole[0] + whole[2])), *map(read, parts))
    return leaf(text)

def leaf(text):
    """A value with its unit; words; or, where the Reader knows no such thing, the plain text."""
    if is_word(text) or text.startswith("⟨at "):
        return ("word", text.casefold())
    value, unit = split_unit(text)
    plain = re.sub(r"\\[a-z]+", "x", value)
    if not re.search(r"(?<![_^\d])[\d.]+ +[\d.]|[a-zA-Z]{2,} [a-zA-Z]{2,}|⟨", plain):  # 1 2, two words
        with contextlib.suppress(ValueError):
            return ("value", Reader(value).sum("end"), unit)
    return ("word", squashed(text))

def read_relation(parts, signs):
    """The sides and signs of x = 5, 0 < x <= 1 or x ≈ 3.14 -> a node."""
    if "≈" in signs:  # behind an exact value it adds nothing; behind a name it is the value
        end = signs.index("≈") or int(is_name(parts[0]))
        parts, signs = parts[:end + 1], [sign.replace("≈", "=") for sign in signs[:end]]
    if not signs:
        return read(parts[0])
    if signs[0] in ">≥" or signs == ["≠"] and kind_of(parts[1]) == "variable":
        parts, signs = parts[::-1], [*"".join(signs[::-1]).translate(str.maketrans("<>≤≥", "><≥≤"))]
    named, kinds = [*map(is_name, parts)], [*map(kind_of, parts)]
    if {*signs} == {"="} and (named[0] or named[-1] or {*kinds} == {"constant"}):
        if not named[0]:
            parts, named = parts[::-1], named[::-1]
        values = [read(part) for part, name in zip(parts[:-1], named) if not name] + [read(parts[-1])]
        if not all(same(value, values[-1]) for value in values) or len(parts) > 2 and values[-1][0] == "word":
            raise ValueError("a chain of unequal values, or of words")
        relation = ("relation", ["="], leaf(parts[0]), values[-1])
        return ("named", parts[0].replace(" ", ""), values[-1], relation) if named[0] else values[-1]
    relation = ("relation", signs, *map(read, parts))
    if len(parts) == 2:  # x < 3 begins at minus infinity
        first = kinds[0] == "variable"
        parts, signs = (["-∞", *parts], ["<", *signs]) if first else ([*parts, "∞"], [*signs, "<"])
        kinds.insert(0 if first else 2, "constant")
    if kinds != ["constant", "variable", "constant"] or {*signs} - {*"<≤≠"} or "≠" in signs[:1] + signs[2:]:
        return relation
    low, variable, high = parts
    interval = "[("[signs[0] == "<"] + f"{low},{high}" + "])"[signs[1] == "<"]
    return ("named", variable, read(f"({low},{high})∪({high},∞)" if "≠" in signs else interval), relation)

@functools.lru_cache(4096)
def parse(text):
    """A clean answer -> its node; ValueError where it has none. Answers of over 600 characters have none."""
    small(len(text), 600)
    text = re.sub(r",[ ,]*,", ",", re.sub(r"⟨? ?\b(?:and|or)\b ?⟩?", ",", text))
    text = re.sub(r"(?<![\d.,])(\d+) (\d+) ?/ ?(\d+)", r"\1\\frac{\2}{\3}", text)
    if not re.search(r"[(\[]|\\\{", text):  # thousands; but (1,234) is a point
        text = re.sub(r"(?<![\d.,])\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?![\d,])",
                      lambda match: re.sub("[, ]", "", match[0]), text)
    text = re.sub(r"(\d*)\.(\d*)(?:\\overline ?\{(\d{1,30})\}|\((\d{1,30})\))(?!\d)", repeating_decimal, text)
    text = re.sub(r"(\d*)\.(\d*?)(\d{1,9}?)\3{2,} ?\.\.\.()", repeating_decimal, text)
    return read(text)

def repeating_decimal(match):
    whole, fixed, *period = match.groups()
    period = period[0] or period[1]
    difference = int(whole + fixed + period) - int(whole + fixed or 0)
    return f"({Fraction(difference, 10 ** len(fixed) * (10 ** len(period) - 1))})"

def proportional(a, b):
    """Whether two relations say the same: side by side; or, with two sides and free variables, if their
    differences are everywhere in one ratio, positive for inequalities."""
    if len(a) == len(b) and a[1] == b[1] and all(map(same, a[2:], b[2:])):
        return True
    if len(a) != 4 or len(b) != 4 or a[1] != b[1] or any(side[0] != "value" for side in a[2:] + b[2:]):
        return False
    d, d2 = (("-", x[2][1], x[3][1]) for x in (a, b))
    if not variables(d) or variables(d) != variables(d2):
        return False
    ratio = apply("/", compute(d), compute(d2))
    return (a[1][0] in "=≠" or mp().re(ratio) > 0) and agree(d, ("*", ratio, d2))

def as_alike(a, b):
    """Node a in the form of b, where it has one: x < 1 or x > 2 as a union, x = 1, y = 2 as a point."""
    names = [x[1] for x in a[1:] if x[0] == "named"] if a[0] == "set" and b[0] in ("union", "tuple") else []
    if len(names) == len(a) - 1 > 0 and names == sorted({*names}) * (len(names) if b[0] == "union" else 1):
        return (b[0], *["()"] * (b[0] == "tuple"), *(x[2] for x in a[1:]))
    return a

def same(a, b):
    """Whether two nodes are equal."""
    if b[0] == "named" != a[0]:
        return same(b, a)
    if a[0] == "named" != b[0]:  # x = 5 is 5, y = 2x + 1 is 2x - y + 1 = 0
        return proportional(a[3], b) if b[0] == "relation" else same(a[2], b)
    if a[0] == "named":  # x = 5 is not y = 5, nor is f(2) = 5 f(3) = 5; but AB = 5 may be x = 5
        marks, marks2 = (re.findall(r"[\d+-]", x[1]) for x in (a, b))
        letters = all(re.fullmatch(r"[a-zA-Z]|\\[a-z]+", x[1]) for x in (a, b))
        unlike = a[1] != b[1] and (letters or marks and marks2 and marks != marks2)
        return proportional(a[3], b[3]) or not unlike and same(a[2], b[2])
    if a[0] == b[0] == "relation":
        return proportional(a, b)
    a, b = as_alike(a, b), as_alike(b, a)
    if a[0] != b[0] or len(a) != len(b):
        return False
    if a[0] == "value":  # units may be left out and not differ; 25% is 25 or 0.25
        units = {a[2], b[2]} - {""}
        if len(units) > 1 and not ("degree" in units and all(unit.startswith("degree") for unit in units)):
            return False
        percent = Fraction(100) ** ((b[2] == "percent") - (a[2] == "percent"))
        return any(agree(a[1] if scale == 1 else ("*", a[1], scale), b[1]) for scale in {ONE, percent})
    if a[0] in ("set", "union"):  # in any order
        left = list(b[1:])
        return all(any(same(x, y) and not left.remove(y) for y in left) for x in a[1:])
    return all(same(x, y) if isinstance(x, tuple) else x == y for x, y in zip(a[1:], b[1:]))

def squashed(text):
    """What is no mathematics as text: spaces, case of words, braces around one character mean nothing."""
    words = not re.search(r"[\\\d^_=+]", text)
    text = re.sub(r"\{(\\?\w|\d+)\}", r"\1", re.sub(r"[⟨⟩]", " ", text))
    return re.sub(r"\s+", " ", text).strip().casefold() if words else re.sub(r"(?<!\d) +| +(?!\d)", "", text)

def equal_answers(answer, gold):
    """Whether two final answers, as written, are the same."""
    answer, gold = clean(answer), clean(gold)
    if not re.search(r"\w|∅|∞", answer) or not gold:
        return False
    with contextlib.suppress(*ERRORS):
        if len({bool(re.search(r", |;|\b(?:and|or)\b", x)) for x in (answer, gold)}) > 1:
            answer, gold = answer.replace(",", ", "), gold.replace(",", ", ")  # 40,150 beside 40, 150
        rounded = [x.rpartition("≈")[2] for x in (answer, gold) if "≈" in x]
        return answer == gold or same(parse(answer), parse(gold)) and (
            len(rounded) < 2 or same(*map(parse, rounded)))
    return len(gold) > 1 and squashed(answer) == squashed(gold)

def math_reward(response, gold):
    """1.0 if the final answer of `response` equals the gold answer, LaTeX or plain text, or one of a list."""
    with contextlib.suppress(*ERRORS):
        golds, answer = gold if isinstance(gold, (list, tuple)) else [gold], final_answer(str(response))
        return float(bool(answer) and len(answer) <= 2000 and any(
            equal_answers(answer, last_boxed(gold) or gold) for gold in map(str, golds)))
    return 0.0

# ------------------------------------------------------ code
#
# Three processes. The trainer starts a grader, which holds the tests; the grader starts a solution process,
# which holds the policy's code and nothing else. A call in a test crosses a pipe as JSON, and so does its
# result: what comes back is plain data, judged by real builtins where the policy's code never runs.

TIME_LIMIT, ALL_CASES, MESSAGE = 6, 60, 2**23  # seconds for a case, for all of them; bytes
LIMITS = {"CPU": TIME_LIMIT, "AS": 2**30, "FSIZE": 2**24, "NOFILE": 64, "NPROC": 64, "CORE": 0}
UNSHARE = "unshare --user --map-root-user --net --pid --fork --kill-child --mount-proc --".split()
LIBRARY = "math collections itertools functools copy operator statistics heapq bisect".split()
KINDS = {kind.__name__: (kind, apart, together) for kind, apart, together in (
    *((kind, list, kind) for kind in (list, tuple, set, frozenset)), (dict, dict.items, dict),
    (bytes, bytes.hex, bytes.fromhex), (bytearray, bytearray.hex, bytearray.fromhex), (complex, str, complex),
    (Decimal, str, Decimal), (Fraction, str, lambda text: Fraction(*map(int, text.split("/")))))}

def python(function):
    """The command that runs a function of this file in a new Python; an import: it is compiled once."""
    folder, name = os.path.split(os.path.splitext(os.path.abspath(__file__))[0])
    program = f"import sys; sys.path.append({folder!r}); sys.set_int_max_str_digits(10**5); import {name}; "
    return [sys.executable, "-I", "-c", f"{program}{name}.{function}()"]

def encode(x, handles):
    """Plain data -> JSON or [kind, parts]; other objects stay in the list `handles`, their numbers go out."""
    if x is None or isinstance(x, (bool, int, float, str)):
        return x
    for name, (kind, apart, _) in KINDS.items():
        if isinstance(x, kind):
            parts = apart(x)
            return [name, parts if isinstance(parts, str) else [encode(part, handles) for part in parts]]
    if isinstance(x, Remote):
        return ["handle", x._number]
    if hasattr(type(x), "tolist"):  # numpy
        return encode(x.tolist(), handles)
    if handles is None:
        raise TypeError("only plain data can be passed to a solution")
    handles.append(x)
    return ["handle", len(handles) - 1]

def decode(x, resolve):
    if not isinstance(x, list):
        return x
    kind, parts = x
    if kind == "handle":
        return resolve(parts)
    return KINDS[kind][2](parts if isinstance(parts, str) else [decode(part, resolve) for part in parts])

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
    for name, value in LIMITS.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))

def serve():
    """The solution process: run the policy's code, then answer calls until the pipe closes."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    for number in (0, 1, 2):  # what the code reads and prints is nobody's business
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    limit_this_process()
    import typing  # as on the sites where such problems come from
    given = {name: getattr(typing, name) for name in typing.__all__}
    namespace, handles = {"__name__": "solution", **given}, []
    operations = {"exec": lambda code: exec(code, namespace) or [
                      name for name in namespace if namespace[name] is not given.get(name, given)],
                  "name": namespace.__getitem__, "call": lambda f, *a, **k: f(*a, **k), "getattr": getattr,
                  "iter": iter, "next": next, "len": len, "str": str, "getitem": operator.getitem}
    for line in source:
        try:
            operation, arguments, keywords = (decode(x, handles.__getitem__) for x in json.loads(line))
            reply = ["value", encode(operations[operation](*arguments, **keywords), handles)]
        except BaseException as error:  # whatever the policy's code raises is an answer to the test
            reply = ["error", type(error).__name__]
        sink.write(json.dumps(reply).encode() + b"\n")
        sink.flush()

def grade():
    """The grader: read a task from stdin, print PASS or FAIL, leave no process behind."""
    task, verdict = json.loads(sys.stdin.buffer.read()), "FAIL"
    sys.stdout = sys.stderr  # for what the tests print
    prctl = ctypes.CDLL(None).prctl
    prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans of the solution become children of this process
    prctl(4, 0, 0, 0, 0)   # PR_SET_DUMPABLE off: an ordinary user's solution cannot read this memory
    signal.signal(signal.SIGALRM, signal.default_int_handler)  # a KeyboardInterrupt: no test catches it
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT, 1)
    with tempfile.TemporaryDirectory(prefix="solution-", ignore_cleanup_errors=True) as folder:
        options = dict(cwd=folder, stderr=subprocess.DEVNULL, start_new_session=True,  # it can't signal us
                       env={"PATH": os.defpath, "HOME": folder, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"})
        with contextlib.suppress(Exception, SystemExit, KeyboardInterrupt):  # each of them is a failed test
            (grade_tests if task["tests"] else grade_output)(task, options)
            verdict = "PASS"
        signal.setitimer(signal.ITIMER_REAL, 0)
        with contextlib.suppress(ChildProcessError):
            while True:
                for thread in os.listdir("/proc/self/task"):
                    for pid in open(f"/proc/self/task/{thread}/children").read().split():
                        os.kill(int(pid), signal.SIGKILL)
                os.waitpid(-1, 0)
    print(verdict, file=sys.__stdout__, flush=True)

def judges_of(nodes, defined):
    """{name: object} of the real builtins, modules and library functions that judge a solution in tests. A
    module is one where it is looked into, a function where another name of the solution is an argument."""
    looked_into = {node.value.id for node in nodes
                   if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    judges = {name: importlib.import_module("numpy" if name == "np" else name)
              for name in looked_into & defined & {*sys.stdlib_module_names, "np"}}
    library = {name: value for module in map(importlib.import_module, LIBRARY)
               for name, value in vars(module).items() if not name.startswith("_")} | vars(builtins)
    for call in nodes:
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in library:
            inside = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)} - {call.func.id}
            if inside & defined - judges.keys():
                judges[call.func.id] = library[call.func.id]
    return judges

def grade_tests(task, options):
    """Raise unless every test passes. The names that the tests use come from the solution process."""
    process = subprocess.Popen(task["prefix"] + python("serve"), stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, **options)

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
    judges = judges_of(nodes, used)
    own = {name for name in used - judges.keys() if not hasattr(builtins, name)}
    # A solution may have a builtin's name where it is all that is tested.
    namespace = {name: ask("name", name) for name in own or used - judges.keys()} | judges
    for test in task["tests"]:
        exec(test, namespace)  # the data set's own code

def lines_of(text):
    """Spaces at line ends do not count."""
    text = "\n".join(map(str, text)) if isinstance(text, list) else str(text)
    return [line.rstrip() for line in text.rstrip().splitlines()]

def grade_output(task, options):
    """Raise unless the program prints the expected output for every input."""
    end = time.monotonic() + ALL_CASES
    with tempfile.NamedTemporaryFile("w", suffix=".py", encoding="utf8") as program:
        program.write(task["code"])
        program.flush()
        for given, expected in zip(task["inputs"], task["outputs"], strict=True):
            signal.setitimer(signal.ITIMER_REAL, max(0.01, min(TIME_LIMIT, end - time.monotonic())), 1)
            given = "\n".join(lines_of(given)) if isinstance(given, list) else given
            with tempfile.TemporaryFile() as stdout:  # whose size has a limit
                subprocess.run([*task["prefix"], sys.executable, "-I", program.name], input=given.encode(),
                               stdout=stdout, preexec_fn=limit_this_process, check=True, **options)
                stdout.seek(0)
                if lines_of(stdout.read().decode()) != lines_of(expected):
                    raise ValueError("wrong output")

@functools.cache
def sandbox():
    """The command prefix that gives a solution network and process namespaces of its own, if that works."""
    if not sys.platform.startswith("linux"):
        raise RuntimeError("code can be verified on Linux only: elsewhere its limits do not exist")
    found = shutil.which(UNSHARE[0])
    return UNSHARE if found and not subprocess.run([*UNSHARE, "true"], capture_output=True).returncode else []

def code_block(response):
    """-> language and content of the last fenced block, or empty strings. A fence closes only on a line of
    its own, not deeper than it was opened: ``` in a docstring or comment is text."""
    language = code = fence = ""
    for line in response.splitlines():
        mark = re.match(r"([ \t]*)(`{3,}|~{3,})\s*([^`]*?)\s*$", line)
        if not fence and mark:
            indent, fence, language = len(mark[1]), mark[2], re.match(r"[{.]*(\w*)", mark[3])[1].lower()
            content = []
        elif fence and mark and not mark[3] and mark[2].startswith(fence) and len(mark[1]) < indent + 4:
            code, fence = textwrap.dedent("\n".join(content)), ""
        elif fence:
            content.append(line)
    return ("", "") if fence else (language, code)

def code_reward(response, tests=None, inputs=None, outputs=None):
    """1.0 if the last fenced block of `response` passes all `tests` (strings with asserts), or prints
    `outputs`, one for each of `inputs` (texts, or lists of lines). RuntimeError where there is no Linux."""
    prefix, (language, code) = sandbox(), code_block(str(response))
    testable = code.strip() and (any(map(is_test, tests or [])) or inputs)
    if language in ("", "py", "python", "python3") and testable:
        task = {"code": code, "tests": tests, "inputs": inputs, "outputs": outputs, "prefix": prefix}
        with contextlib.suppress(subprocess.TimeoutExpired):
            grader = subprocess.run(python("grade"), input=json.dumps(task).encode(), stdout=subprocess.PIPE,
                                    stderr=subprocess.DEVNULL, timeout=ALL_CASES + 2 * TIME_LIMIT + 10)
            return float(grader.stdout == b"PASS\n")
    return 0.0

def is_test(text):
    """Whether a text is Python with an assert or a call in it: something that can fail, no plain answer."""
    with contextlib.suppress(*ERRORS):
        return any(isinstance(node, (ast.Assert, ast.Call)) for node in ast.walk(ast.parse(text)))
    return False

# --------------------------------------------------- a batch

REWARDS = {"math": math_reward,
           "countdown": lambda response, answer: countdown_reward(response, **answer),
           "code": lambda response, answer: code_reward(response, **answer)}

def verify_batch(reward, cases, patience=300):
    """reward(*case) for each of `cases`, tuples that begin with a response, in threads -> the rewards, nan
    where there is none, {index: exception} of those. TimeoutError if the next takes `patience` seconds."""
    def judge(case):
        try:
            value = float(reward(*case))
            if math.isfinite(value):
                return value, None
            raise ValueError(f"the reward is {value}, no finite number")
        except (Exception, SystemExit) as error:  # a user's function may raise anything: it is reported
            return math.nan, error

    pool, verdicts = multiprocessing.pool.ThreadPool(), []
    results = pool.imap(judge, cases)
    try:
        for case in cases:
            verdicts.append(results.next(patience))
    except multiprocessing.TimeoutError:
        raise TimeoutError(f"no verdict for {patience} seconds on {str(case[0])[:200]!r}") from None
    finally:
        pool.terminate()  # which waits for no thread that hangs
    return [value for value, _ in verdicts], {i: e for i, (_, e) in enumerate(verdicts) if e is not None}

EXTRACT = {"math": final_answer, "code": lambda response: code_block(response)[1] or None,  # what is judged
           "countdown": lambda response: response.rpartition("<answer>")[2].partition("</answer>")[0]}
