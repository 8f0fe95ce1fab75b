"""Text of a completion -> its final answer, and the comparison that needs no computer algebra."""

import re
from fractions import Fraction

# More than any final answer needs. Python itself converts no more than 4,300 digits.
MAX_CHARACTERS = 10_000
MAX_DIGITS = 1_000
MAX_NUMBER_CHARACTERS = 2_000
MAX_WRAPPINGS = 16
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# A pair with no other answer tag inside, so that a repeated opening tag starts afresh.
CLOSED_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
WHOLE_FORMAT = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)
LAST_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")
MANY_DIGITS = re.compile(rf"\d{{{MAX_DIGITS + 1}}}")
LATEX_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
TEXT_MACRO = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}]*)\}")
DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"))
SAME = {
    "\u2212": "-", "\u2013": "-", "\u03c0": "\\pi", "\\tfrac": "\\frac", "\\dfrac": "\\frac",
    "\\left": "", "\\right": "", "\\!": "", "\\,": "", "\\;": "", "\\ ": " ", "~": " ",
    "{,}": ",", "^{\\circ}": "", "^\\circ": "", "\u00b0": "",
}  # fmt: skip


def tagged_answer(text: str) -> str | None:
    """Return what stands in the last closed `<answer>...</answer>` pair, None without one.

    Example: `tagged_answer("<think>6*3</think><answer> 18 </answer>") == "18"`, and an answer
    that was cut off, `"<answer>18"`, gives None.
    """
    found = CLOSED_ANSWER.findall(text)
    return found[-1].strip() if found else None


def last_number(text: str) -> str | None:
    """Return the last number of the text without thousands separators, None without one.

    A minus sign counts where it is no subtraction: `last_number("15-43 = -28.") == "-28"`,
    `last_number("15-43") == "43"`, `last_number("costs 1,200 now") == "1200"`.
    """
    found = LAST_NUMBER.findall(text.replace("\u2212", "-"))
    return found[-1].replace(",", "").removeprefix("+") if found else None


def has_format(text: str) -> bool:
    """Return whether the text is `<think>...</think><answer>...</answer>` and nothing else.

    Each tag once, in this order; only white space before, between the parts, and after.
    """
    once = all(text.count(tag) == 1 for tag in TAGS)
    return once and WHOLE_FORMAT.fullmatch(text) is not None


def tag_share(text: str) -> float:
    """Return 0.25 for each of the four tags that occurs exactly once: 0 to 1."""
    return sum(0.25 for tag in TAGS if text.count(tag) == 1)


def normalise(answer: str) -> str:
    r"""Return the answer without the marks that do not change its meaning.

    Math delimiters, `\boxed{}`, `\text{}`, spacing macros, degree, currency, thousands
    separators, a full stop at the end, and spaces go; letters become small.

    Example: `normalise("\\boxed{\\text{ 1,200 }}.") == "1200"`, `normalise("$ 5.00$") == "5.00"`.
    """
    text = answer.strip()
    for old, new in SAME.items():
        text = text.replace(old, new)
    text = _unwrap(text)
    text = TEXT_MACRO.sub(r"\1", text)
    text = text.replace("\\$", "").replace("$", "").replace("\u20ac", "").replace("\u00a3", "")
    text = THOUSANDS.sub("", text)
    return re.sub(r"\s+", "", text).rstrip(".").lower()


def as_number(answer: str) -> tuple[Fraction, bool] | None:
    r"""Return the exact value and whether a percent sign follows it; None for anything else.

    Reads integers, decimals, `a/b` and `\frac{a}{b}`, with a unit of letters after them, of
    `MAX_NUMBER_CHARACTERS` at most.

    Example: `as_number("50\\%") == (Fraction(50), True)`, `as_number("0.5") == (1/2, False)`,
    `as_number("27 miles") == (27, False)`, `as_number("2x") is None`.
    """
    if len(answer) > MAX_NUMBER_CHARACTERS:
        return None
    spaced = re.sub(r"\s+", " ", TEXT_MACRO.sub(r" \1", answer)).strip()
    without_unit = re.sub(r"(?<=[\d}]) [A-Za-z][A-Za-z /.^2-3-]*$", "", _unwrap(spaced))
    text = LATEX_FRACTION.sub(r"\1/\2", normalise(without_unit))
    percent = text.endswith("%")
    text = text.removesuffix("%").removesuffix("\\")
    numerator, _, denominator = text.partition("/")
    if not NUMBER.fullmatch(numerator) or not re.fullmatch(r"[1-9]\d*|", denominator):
        return None
    return Fraction(numerator) / int(denominator or 1), percent


def is_beyond_limits(answer: str) -> bool:
    """Return whether the answer has more than `MAX_CHARACTERS`, or `MAX_DIGITS` in a row.

    Thousands separators do not end a row of digits.

    Example: `is_beyond_limits("7" * 1001) is True`, `is_beyond_limits("0." + "3" * 1000) is False`.
    """
    return len(answer) > MAX_CHARACTERS or bool(MANY_DIGITS.search(THOUSANDS.sub("", answer)))


def quick_match(gold: str, answer: str) -> bool | None:
    """Return the verdict where plain comparison settles it, None where algebra has to.

    Equal after `normalise`: right. Two numbers: right when the values are equal; a percent sign
    on one side only may be a unit or a hundredth, so 50 % matches both 50 and 0.5. Two different
    numbers: wrong. An answer of more than `MAX_CHARACTERS`, or of more than `MAX_DIGITS` in a row,
    that is not the gold one to the letter: wrong, so that no arithmetic, here or in the worker,
    is done on it. Everything else is left open.

    Example: `quick_match("1200", "$1,200.00") is True`, `quick_match("18", "19") is False`,
    `quick_match("x+1", "1+x") is None`.
    """
    if not normalise(answer):
        return False
    if normalise(gold) == normalise(answer):
        return True
    if is_beyond_limits(answer):
        return False
    left, right = as_number(gold), as_number(answer)
    if left is None or right is None:
        return None
    if left[1] == right[1]:
        return left[0] == right[0]
    percent, plain = (left[0], right[0]) if left[1] else (right[0], left[0])
    return plain in (percent, percent / 100)


def _unwrap(text: str) -> str:
    """Strip math delimiters, emphasis and boxes around the whole text, nested `MAX_WRAPPINGS` deep.

    Each round copies the text; without the bound, ten thousand boxes would take seconds.
    """
    for _ in range(MAX_WRAPPINGS):
        before, text = text, text.strip().rstrip(".").strip()
        for start, end in DELIMITERS:
            inner = text[len(start) : -len(end)]
            if text.startswith(start) and text.endswith(end) and start not in inner and inner:
                text = inner
        if text.startswith("\\boxed{") and text.endswith("}"):
            text = text[len("\\boxed{") : -1]
        if text == before:
            break
    return text
