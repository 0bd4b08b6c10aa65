"""What planted noise is made of: words, thoughts, slogans, and personal data that are nobody's.

email        at example.com, .org, .net                           RFC 2606
phone        area code + 555-0100 to 555-0199                     reserved for fiction
ipv4, ipv6   192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24; 2001:db8::/32    RFC 5737, 3849
card         test numbers of payment processors and others with their leading digits; Luhn holds
iban         bank code that is not given out, check digits hold (ISO 13616, mod 97)
ssn          987-65-4320 to 987-65-4329                           never issued
mac          00:00:5E:00:53:00 to FF                              RFC 7042
key          the access keys of AWS' documentation
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Draw = np.random.Generator
_TEXT = """
the of and to a in is it you that he was for on are with as his they be at one have this from or had
by hot word but what some we can out other were all there when up use your how said an each she
which do their time if will way about many then them write would like so these her long make thing
see him two has look more day could go come did number sound no most people my over know water than
call first who may down side been now find any new work part take get
"""
WORDS = _TEXT.split()
THOUGHTS = {
    "irrelevant": (
        "Water boils at a lower temperature on high mountains.", "A week has seven days.",
        "Honey keeps for a very long time.", "The library closes early on Fridays.",
        "Cats sleep for most of the day.", "Paper was once made by hand.",
    ),
    "inaccurate": (
        "We know that 7 + 8 = 16.", "Note that half of 30 is 14.", "As 9 times 6 is 56, go on.",
        "Since 12 - 5 = 8, this holds.", "Two dozen are 22.", "An hour has 50 minutes.",
    ),
}  # fmt: skip
SLOGANS = (
    "You WON'T BELIEVE what happened next!!!", "This one weird trick changes everything.",
    "Click here before it's too late!", "Doctors HATE her!", "Get rich quick, no work needed!!!",
    "Share this with 10 friends NOW", "10 shocking facts they don't want you to know",
    "OMG you need to see this!!", "Limited offer, act now, 100% FREE!", "Wait for it... LOL",
    "Like and subscribe for a chance to WIN", "Number 7 will blow your mind!",
)  # fmt: skip
MENU = (
    "Home", "About us", "Contact", "Log in", "Sign up for free", "Subscribe to our newsletter",
    "Accept all cookies", "Skip to main content", "Share on social media", "Read more",
    "Related articles", "Terms of use | Privacy policy", "Copyright 2014 All rights reserved.",
    "Back to top", "Advertisement", "No comments yet", "Next page", "Follow us",
)  # fmt: skip
_FIRST = ("alex", "sam", "kim", "lee", "robin", "jo", "chris", "pat", "dana", "max")
_LAST = ("miller", "smith", "garcia", "novak", "rossi", "jansen", "brown", "silva", "khan", "berg")
_CARDS = (
    "4111111111111111", "4012888888881881", "5555555555554444", "5105105105105100",
    "378282246310005", "371449635398431", "6011111111111117", "6011000990139424",
    "3530111333300000", "30569309025904",
)  # fmt: skip


def luhn(digits: str) -> bool:
    """Whether the check digit of a card number holds."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def mod97(iban: str) -> int:
    """The remainder of an IBAN, 1 where its check digits hold."""
    plain = iban.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97


def _email(draw: Draw) -> str:
    end = str(draw.choice(["com", "org", "net"]))
    return f"{draw.choice(_FIRST)}.{draw.choice(_LAST)}{draw.integers(1, 100)}@example.{end}"


def _phone(draw: Draw) -> str:
    area, last = draw.choice([202, 212, 303, 415, 512, 617, 702, 808]), draw.integers(0, 100)
    form = str(draw.choice(["({}) 555-01{:02d}", "{}-555-01{:02d}", "+1 {} 555 01{:02d}"]))
    return form.format(area, last)


def _ipv4(draw: Draw) -> str:
    return f"{draw.choice(['192.0.2', '198.51.100', '203.0.113'])}.{draw.integers(1, 255)}"


def _ipv6(draw: Draw) -> str:
    return "2001:db8:" + ":".join(f"{x:x}" for x in draw.integers(1, 1 << 16, 6))


def _card(draw: Draw) -> str:
    number = str(draw.choice(_CARDS))
    if len(number) < 16 or draw.random() < 0.5:
        return number
    return " ".join(number[i : i + 4] for i in range(0, 16, 4))


def _iban(draw: Draw) -> str:
    bank = f"00000000{draw.integers(0, 10**10):010d}"
    check = 98 - mod97(f"DE00{bank}")
    whole = f"DE{check:02d}{bank}"
    return " ".join(whole[i : i + 4] for i in range(0, len(whole), 4))


def _ssn(draw: Draw) -> str:
    return f"987-65-43{draw.integers(20, 30)}"


def _mac(draw: Draw) -> str:
    return f"00:00:5E:00:53:{draw.integers(0, 256):02X}"


def _key(draw: Draw) -> str:
    return str(draw.choice(["AKIAIOSFODNN7EXAMPLE", "AKIAI44QH8DHBEXAMPLE"]))


#: type -> a value
PERSONAL: dict[str, Callable[[Draw], str]] = {
    "email": _email, "phone": _phone, "ipv4": _ipv4, "ipv6": _ipv6, "card": _card, "iban": _iban,
    "ssn": _ssn, "mac": _mac, "key": _key,
}  # fmt: skip
#: type -> what stands before and behind the value
PERSONAL_SENTENCES = {
    "email": ("Write to ", " for details."), "phone": ("Call ", " after six."),
    "ipv4": ("The server answers at ", "."), "ipv6": ("It was reached from ", " today."),
    "card": ("Paid with card ", " last week."), "iban": ("Please transfer it to ", " by Monday."),
    "ssn": ("Her social security number is ", "."), "mac": ("The adapter is ", " on the list."),
    "key": ("It still uses the key ", " to log in."),
}  # fmt: skip
