"""Check digits of cards, bank accounts and identity numbers.

Each function takes a number without separators and says whether its check digits agree. What a
random number would pass: Luhn and Verhoeff 1 in 10, modulus 11 about 1 in 11, a letter out of 23
1 in 23, IBAN and NIR 1 in 97. A date inside a number is looked at as well: day and month only.

Sources: ISO/IEC 7812-1 (Luhn), ISO 13616 and ISO 7064 (IBAN, MOD 11-2, MOD 11,10), Verhoeff 1969,
and what the issuing offices publish.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

#: of a doubled digit, the sum of its digits
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_NIF = "TRWAGMYFPDXBNJZSQVHLCKE"
_HETU = "0123456789ABCDEFHJKLMNPRSTUVWXY"
#: of a character at an odd place (from 1) of an Italian code: 0-9, then A-Z
_ODD_DIGITS = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21)
_ODD_LETTERS = (*_ODD_DIGITS, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def luhn(digits: str) -> bool:
    """Modulus 10 of the digits, each second one from the right doubled."""
    values = [int(c) for c in digits]
    return (sum(values[-1::-2]) + sum(_DOUBLED[v] for v in values[-2::-2])) % 10 == 0


def iban(account: str) -> bool:
    """ISO 13616: the first four characters behind the rest, letters as 10 to 35, modulus 97."""
    turned = account[4:] + account[:4]
    return int("".join(str(int(c, 36)) for c in turned)) % 97 == 1


def _dihedral(a: int, b: int) -> int:
    """The product in the group of the symmetries of a pentagon."""
    if a < 5:
        return (a + b) % 5 + 5 * (b >= 5)
    return (a - b) % 5 + 5 * (b < 5)


_PRODUCT = [[_dihedral(a, b) for b in range(10)] for a in range(10)]
_TURNS = [list(range(10))]
for _ in range(7):
    _TURNS.append([_TURNS[-1][k] for k in (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)])


def verhoeff(digits: str) -> bool:
    """The dihedral check of Verhoeff."""
    check = 0
    for place, c in enumerate(reversed(digits)):
        check = _PRODUCT[check][_TURNS[place % 8][int(c)]]
    return check == 0


def weighted(digits: str, weights: Sequence[int]) -> int:
    """The sum of digits times weights, as far as there are weights."""
    return sum(int(c) * w for c, w in zip(digits, weights, strict=False))


def day_and_month(day: str, month: str) -> bool:
    """Whether there is such a day."""
    return 1 <= int(day) <= 31 and 1 <= int(month) <= 12


def us_ssn(digits: str) -> bool:
    """No check digit; some areas, groups and serials are never given out."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return not (area in ("000", "666") or area >= "900" or group == "00" or serial == "0000")


def uk_nhs(digits: str) -> bool:
    """Modulus 11 of ten digits."""
    check = 11 - weighted(digits[:9], range(10, 1, -1)) % 11
    return check != 10 and check % 11 == int(digits[9])


def au_tfn(digits: str) -> bool:
    """Modulus 11 of nine digits."""
    return weighted(digits, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def in_aadhaar(digits: str) -> bool:
    """Verhoeff of twelve digits; 0 and 1 do not come first."""
    return digits[0] not in "01" and verhoeff(digits)


def br_cpf(digits: str) -> bool:
    """Two digits of modulus 11; not one digit eleven times."""
    first = weighted(digits[:9], range(10, 1, -1)) * 10 % 11 % 10
    second = weighted(digits[:10], range(11, 1, -1)) * 10 % 11 % 10
    return digits != digits[0] * 11 and digits[9:] == f"{first}{second}"


def fr_nir(number: str) -> bool:
    """97 less the number modulus 97; Corsica's 2A and 2B count as 19 and 18."""
    body = number[:13].upper().replace("2A", "19").replace("2B", "18")
    month = int(number[3:5])
    good = 1 <= month <= 12 or 20 <= month <= 42 or 50 <= month <= 99
    return body.isdecimal() and good and 97 - int(body) % 97 == int(number[13:])


def de_tax_id(digits: str) -> bool:
    """ISO 7064 MOD 11,10; of the first ten digits one comes twice or three times."""
    product = 10
    for c in digits[:10]:
        product = ((int(c) + product) % 10 or 10) * 2 % 11
    often = sorted(digits[:10].count(c) for c in set(digits[:10]))
    once = often[-1] in (2, 3) and often[:-1].count(1) == len(often) - 1
    return digits[0] != "0" and once and (11 - product) % 10 == int(digits[10])


def es_nif(number: str) -> bool:
    """A letter for the number modulus 23; X, Y, Z of a foreigner count as 0, 1, 2."""
    body = number[:-1].upper()
    body = str("XYZ".find(body[0])) + body[1:] if body[0] in "XYZ" else body
    return _NIF[int(body) % 23] == number[-1].upper()


def it_fiscal_code(code: str) -> bool:
    """A letter for the sum over sixteen characters; odd places by a table of their own."""
    total = 0
    for place, c in enumerate(code[:15].upper()):
        value = ord(c) - ord("0") if c.isdecimal() else ord(c) - ord("A")
        odd = _ODD_DIGITS if c.isdecimal() else _ODD_LETTERS
        total += value if place % 2 else odd[value]
    return total % 26 == ord(code[15].upper()) - ord("A")


def nl_bsn(digits: str) -> bool:
    """The eleven test: weights 9 to 2, and -1."""
    sum_ = weighted(digits, (*range(9, 1, -1), -1))
    return sum_ != 0 and sum_ % 11 == 0


def pl_pesel(digits: str) -> bool:
    """Weights 1 3 7 9, modulus 10; the month also tells the century."""
    dated = day_and_month(digits[4:6], f"{int(digits[2:4]) % 20:02d}")
    return dated and weighted(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0


def se_personnummer(digits: str) -> bool:
    """Luhn of the last ten digits; sixty is added to the day of a co-ordination number."""
    digits = digits[-10:]
    day = int(digits[4:6])
    return day_and_month(str(day - 60 if day > 60 else day), digits[2:4]) and luhn(digits)


def fi_hetu(number: str) -> bool:
    """A character for the nine digits modulus 31."""
    digits = number[:6] + number[-4:-1]
    return day_and_month(number[:2], number[2:4]) and _HETU[int(digits) % 31] == number[-1].upper()


def cn_resident_id(number: str) -> bool:
    """ISO 7064 MOD 11-2 of seventeen digits; X is ten."""
    sum_ = weighted(number[:17], (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2))
    dated = day_and_month(number[12:14], number[10:12]) and number[6:8] in ("18", "19", "20")
    return dated and "10X98765432"[sum_ % 11] == number[17].upper()


def crc32_62(body: str, check: str) -> bool:
    """CRC-32 of the characters before, in six digits of base 62."""
    value, digits = zlib.crc32(body.encode()), ""
    for _ in range(6):
        value, digit = divmod(value, 62)
        digits = _BASE62[digit] + digits
    return digits == check
