"""Check digits agree with known numbers and with their plain definitions."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline import checksums
from tests.scorers.identity_numbers import (
    KNOWN,
    plain_cpf,
    plain_iban,
    plain_luhn,
    plain_verhoeff,
)


@pytest.mark.parametrize("kind", KNOWN)
def test_known_numbers_pass_and_one_wrong_digit_is_seen(kind: str) -> None:
    number, check = KNOWN[kind]
    assert check(number)
    for place, digit in itertools.product(range(len(number)), "0123456789"):
        if number[place].isdecimal() and number[place] != digit:
            assert not check(number[:place] + digit + number[place + 1 :])


@given(st.text("0123456789", min_size=2, max_size=24))
def test_fast_checks_agree_with_the_plain_ones(digits: str) -> None:
    assert checksums.luhn(digits) == plain_luhn(digits)
    assert checksums.verhoeff(digits) == plain_verhoeff(digits)
    if len(digits) > 10 and len(set(digits[:11])) > 1:
        assert checksums.br_cpf(digits[:11]) == plain_cpf(digits[:11])
    assert checksums.iban("GB" + digits) == plain_iban("GB" + digits)


def test_an_iban_without_its_check_digits_is_completed_by_one_pair_of_97() -> None:
    good = [k for k in range(2, 99) if checksums.iban(f"DE{k:02d}370400440532013000")]
    assert good == [89]
