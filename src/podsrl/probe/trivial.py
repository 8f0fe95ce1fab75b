"""What can be said of a question without a model: the features that a probe has to beat."""

import re

NUMBER = re.compile(r"\d+(?:\.\d+)?")
OPERATORS = frozenset("+-*/=×÷%^<>")


def trivial_features(question: str, *, num_tokens: int) -> dict[str, float]:
    """Return lengths and counts of a question and moments of the numbers in it, by name.

    num_tokens: of the whole prompt. Numbers are read without their signs; without any, what is
    said of them is 0.

    Example: "3 + 41 =" has 2 numbers, 3 digits, 2 operators, mean 22, first 3, last 41.
    """
    numbers = [float(each) for each in NUMBER.findall(question)]
    return {
        "prompt tokens": float(num_tokens),
        "characters": float(len(question)),
        "words": float(len(question.split())),
        "digits": float(sum(each.isdigit() for each in question)),
        "operators": float(sum(each in OPERATORS for each in question)),
        "numbers": float(len(numbers)),
        "mean of the numbers": sum(numbers) / len(numbers) if numbers else 0.0,
        "largest number": max(numbers, default=0.0),
        "first number": numbers[0] if numbers else 0.0,
        "last number": numbers[-1] if numbers else 0.0,
    }
