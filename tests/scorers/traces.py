"""Arithmetic traces with noise of known kinds, after TInt (arXiv 2402.04004)."""

from __future__ import annotations

import random


def noisy_characters(text: str, share: float, rng: random.Random) -> str:
    """Static: each digit of each purely numeric word becomes any digit, with this probability."""
    words = []
    for word in text.split(" "):
        if word.isnumeric():
            word = "".join(str(rng.randint(0, 9)) if rng.random() < share else c for c in word)
        words.append(word)
    return " ".join(words)


def noisy_lines(text: str, share: float, rng: random.Random) -> str:
    """Static: each line but the last is deleted, with this probability."""
    *lines, last = text.split("\n")
    return "\n".join([line for line in lines if rng.random() >= share] + [last])


def noisy_number(number: int, share: float, rng: random.Random) -> int:
    """Dynamic: each digit from the first that is not 0 on becomes one of 0 to 8."""
    digits = str(number).lstrip("0")
    return int("".join(str(rng.randrange(9)) if rng.random() < share else c for c in digits) or 0)


def running_sum(numbers: list[int], share: float = 0.0, seed: int = 0) -> str:
    """`a + b = c` line by line; with dynamic noise every sum is written wrong, and carried on."""
    rng, total, lines = random.Random(seed), numbers[0], []
    for number in numbers[1:]:
        right = total + number
        wrong = noisy_number(right, share, rng)
        lines.append(f"{total} + {number} = {wrong}")
        total = wrong
    return "\n".join([*lines, f"The answer is {total}"])
