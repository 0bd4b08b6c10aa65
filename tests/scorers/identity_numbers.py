"""Numbers with check digits for tests: the plain definitions, known ones, and random valid ones."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from foresift.pipeline import checksums
from foresift.pipeline.personal_numbers import IBAN_LENGTH


def plain_luhn(digits: str) -> bool:
    total = 0
    for place, c in enumerate(reversed(digits)):
        value = int(c) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def plain_iban(account: str) -> bool:
    rest = 0
    for c in account[4:] + account[:4]:
        value = int(c) if c.isdecimal() else ord(c) - ord("A") + 10
        rest = (rest * (10 if value < 10 else 100) + value) % 97
    return rest == 1


def plain_verhoeff(digits: str) -> bool:
    """Symmetries of a pentagon as permutations of its corners, composed one after the other."""

    def symmetry(k: int) -> tuple[int, ...]:
        turned = [(corner + k) % 5 for corner in range(5)]
        return tuple(turned if k < 5 else [(k - 5 - corner) % 5 for corner in range(5)])

    names = {symmetry(k): k for k in range(10)}
    power = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]
    check = 0
    for place, c in enumerate(reversed(digits)):
        value = int(c)
        for _ in range(place % 8):
            value = power[value]
        first, second = symmetry(check), symmetry(value)
        check = names[tuple(first[second[corner]] for corner in range(5))]
    return check == 0


def plain_cpf(digits: str) -> bool:
    for length in (9, 10):
        total = sum(int(digits[k]) * (length + 1 - k) for k in range(length))
        want = 11 - total % 11
        if int(digits[length]) != (0 if want > 9 else want):
            return False
    return True


KNOWN = {
    "card": ("4111111111111111", plain_luhn),
    "iban": ("GB82WEST12345698765432", plain_iban),
    "in_aadhaar": ("234123412346", plain_verhoeff),
    "br_cpf": ("52998224725", plain_cpf),
    "uk_nhs": ("9434765919", checksums.uk_nhs),
    "au_tfn": ("123456782", checksums.au_tfn),
    "ca_sin": ("046454286", plain_luhn),
    "fr_nir": ("255081416802538", checksums.fr_nir),
    "de_tax_id": ("86095742719", checksums.de_tax_id),
    "es_nif": ("12345678Z", checksums.es_nif),
    "it_fiscal_code": ("RSSMRA85T10A562S", checksums.it_fiscal_code),
    "nl_bsn": ("111222333", checksums.nl_bsn),
    "pl_pesel": ("44051401359", checksums.pl_pesel),
    "se_personnummer": ("8112189876", checksums.se_personnummer),
    "fi_hetu": ("131052-308T", checksums.fi_hetu),
    "cn_resident_id": ("11010519491231002X", checksums.cn_resident_id),
}


def planted(kind: str, rng: np.random.Generator) -> str:
    """A random valid number of a type, as it is written; found by trying check digits out."""

    def complete(body: str, tails: Any, check: Any) -> str:
        return next((body + t for t in tails if check(body + t)), "") or planted(kind, rng)

    def digits(n: int) -> str:
        return "".join(map(str, rng.integers(0, 10, n)))

    one, two = "0123456789", [f"{k:02d}" for k in range(100)]
    if kind == "card":
        prefix, length = [("4", 16), ("51", 16), ("37", 15), ("6011", 16), ("4", 13), ("36", 14)][
            rng.integers(6)
        ]
        return complete(prefix + digits(length - len(prefix) - 1), one, plain_luhn)
    if kind == "iban":
        country = sorted(IBAN_LENGTH)[rng.integers(len(IBAN_LENGTH))]
        body = digits(IBAN_LENGTH[country] - 4)
        return next(v for k in two if plain_iban(v := f"{country}{k}{body}"))
    if kind == "in_aadhaar":
        v = complete(str(rng.integers(2, 10)) + digits(10), one, plain_verhoeff)
        return v if " " in v else f"{v[:4]} {v[4:8]} {v[8:]}"
    if kind == "br_cpf":
        v = re.sub(r"\D", "", complete(digits(9), two, plain_cpf))
        return f"{v[:3]}.{v[3:6]}.{v[6:9]}-{v[9:]}"
    born = f"{rng.integers(1, 29):02d}", f"{rng.integers(1, 13):02d}", f"{rng.integers(50, 99)}"
    if kind == "fi_hetu":
        return complete("".join(born) + "-" + digits(3), checksums._HETU, checksums.fi_hetu)
    if kind == "se_personnummer":
        v = complete("".join(born[::-1]) + digits(3), one, checksums.se_personnummer)
        return v if "-" in v else f"{v[:6]}-{v[6:]}"
    if kind == "cn_resident_id":
        body = "110105" + "19" + "".join(born[::-1]) + digits(3)
        return complete(body, one + "X", checksums.cn_resident_id)
    if kind == "fr_nir":
        return complete("1" + born[2] + born[1] + digits(8), two, checksums.fr_nir)
    if kind == "es_nif":
        return complete(digits(8), checksums._NIF, checksums.es_nif)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return complete(f"RSSMRA{born[2]}T{born[0]}A{digits(3)}", letters, checksums.it_fiscal_code)
