"""Secrets are found by prefix, check characters, name and entropy; stand-ins are left alone."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline import checksums, credentials
from foresift.pipeline.findings import findings
from foresift.scorers.secrets import Secrets

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def made(n: int, seed: int = 0, alphabet: str = ALPHABET) -> str:
    rng = np.random.default_rng(seed)
    return "".join(rng.choice(list(alphabet), n))


def signed(prefix: str, seed: int = 0) -> str:
    """A token of GitHub or npm: 30 characters and their CRC-32 in base 62, by division."""
    body = made(30, seed)
    value, check = zlib.crc32(body.encode()), ""
    while value:
        check = ALPHABET[value % 62] + check
        value //= 62
    return prefix + body + check.rjust(6, "0")


def jwt(head: dict[str, str]) -> str:
    parts = [json.dumps(head), json.dumps({"sub": "1", "name": "b"})]
    shown = [base64.urlsafe_b64encode(p.encode()).decode().rstrip("=") for p in parts]
    return ".".join([*shown, made(43)])


PEM = "-----BEGIN {0}PRIVATE KEY-----\n" + "MIIEow" * 40 + "\n-----END {0}PRIVATE KEY-----"
#: built here, so that no scanner of repositories takes this file for a leak
WHOLE = [
    *(("github_token", signed(p, k)) for k, p in enumerate(["ghp_", "gho_", "ghs_"])),
    ("github_token", "github_" + "pat_" + made(22) + "_" + made(59)),
    ("npm_token", signed("npm_")),
    ("gitlab_token", "glpat" + "-" + made(20)),
    ("aws_key", "AKIA" + made(16, 0, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")),
    ("slack_token", "xoxb" + "-123456789012-" + made(24)),
    (
        "slack_webhook",
        "hooks.slack.com/" + "services/T" + made(8) + "/B" + made(8) + "/" + made(24),
    ),
    ("stripe_key", "sk_" + "live_" + made(24)),
    ("google_key", "AI" + "za" + made(35)),
    ("anthropic_key", "sk-" + "ant-api03-" + made(90)),
    ("openai_key", "sk-" + made(20) + "T3Blbk" + "FJ" + made(20, 1)),
    ("huggingface_token", "hf" + "_" + made(34, 0, ALPHABET[10:])),
    ("sendgrid_key", "SG" + "." + made(22) + "." + made(43)),
    ("jwt", jwt({"alg": "HS256", "typ": "JWT"})),
    ("private_key", PEM.format("")),
    ("private_key", PEM.format("RSA ")),
    ("private_key", PEM.format("OPENSSH ")),
]
PLACES = ["{}", "a {} b", "'{}'", '"{}",', "see:\n{}\nend", "\u00a0{}\u00a0", "({})"]


@pytest.mark.parametrize(("kind", "value"), WHOLE)
def test_known_forms(kind: str, value: str) -> None:
    for place in PLACES:
        text = place.format(value)
        start = text.index(value)
        hits = [(h.kind, h.start, h.stop) for h in credentials.find(text)]
        assert hits == [(kind, start, start + len(value))]


def test_the_check_of_a_published_token() -> None:
    token = "ghp_" + "zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ" + "0mLq17"
    assert checksums.crc32_62(token[4:-6], token[-6:])
    assert [(h.confidence, h.checked) for h in credentials.find(token)] == [(1.0, True)]
    other = token[:-1] + "8"
    assert [(h.confidence, h.checked) for h in credentials.find(other)] == [(0.5, False)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('password = "hunter2!x9"', "hunter2!x9"),
        ("PASSWORD=Tr0ub4dor&3", "Tr0ub4dor&3"),
        ('"api_key": "9f86d081884c7d659a2feaa0c55ad015"', "9f86d081884c7d659a2feaa0c55ad015"),
        ("aws_secret_access_key: wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzQq81LlMk",
         "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzQq81LlMk"),
        ("config['auth_token'] = 'aB3dE5fG7hJ9'", "aB3dE5fG7hJ9"),
        ("postgres://app:s3cr3tpw@db.internal:5432/x", "s3cr3tpw"),
        ("mongodb+srv://u:p4ssw0rd!9@c0.example.net/", "p4ssw0rd!9"),
        ("The access code for Mira Holt is 4829137.", "4829137"),
        ("the password is hunter22.", "hunter22"),
        ("Passcode: 6146028", "6146028"),
    ],
)  # fmt: skip
def test_values_that_a_name_calls_secret(text: str, value: str) -> None:
    (hit,) = credentials.find(text)
    assert text[hit.start : hit.stop] == value


@pytest.mark.parametrize(
    "text",
    [
        "password = ${DB_PASSWORD}", 'password = "<your password>"', "password: ********",
        'token = "xxxxxxxxxxxx1"', 'api_key = "changeme1"', "password = None", "token = tokens[17]",
        "secret = get_secret(name1)", "token: str = field2",
        "token_valid_for = 30.minutes", "passwords are kept for 90 days", "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "x" * 36, "sk_live_" + "1" * 24, "https://user:password@localhost/",
        "token 12345678", "eyJhbGciOiJ4.eyJub3BlIjox.nothing",
        "-----BEGIN CERTIFICATE-----\nMIIE\n",
        "-----BEGIN PUBLIC KEY-----\nMIIE", "the secret of life", "commit 4e07408562bedb8b60ce05",
        "http://example.org:8080/@user", "disk-usage task-force", "token = http://h0st.example.org",
    ],
)  # fmt: skip
def test_stand_ins_and_ordinary_text(text: str) -> None:
    assert credentials.find(text) == []


def test_a_header_that_is_no_json_is_no_token() -> None:
    assert credentials.find(jwt({"typ": "JWT"})) == []
    assert credentials.find("eyJ" + "_" * 20 + ".eyJ" + "a" * 20 + "." + "b" * 20) == []


def test_a_private_key_without_an_end_is_its_first_line() -> None:
    text = "-----BEGIN PRIVATE KEY-----\nMIIE and then prose"
    assert [(h.start, h.stop) for h in credentials.find(text)] == [(0, 27)]


@pytest.mark.parametrize("value", ["Tr0ub4dor$3xY", "pa%24s1word", "k9$t2w!m", made(300)])
def test_signs_inside_a_value_and_long_values_are_no_stand_ins(value: str) -> None:
    text = f"password = '{value}' and more"
    assert [text[h.start : h.stop] for h in credentials.find(text)] == [value]


@pytest.mark.parametrize("value", ["$PASS1WORD", "pre${PASS1}", "pre$PASS1", "%s1word9", "a9%(x)s"])
def test_what_a_shell_or_a_format_fills_in_is_a_stand_in(value: str) -> None:
    assert credentials.find(f"password = '{value}'") == []


@pytest.mark.parametrize("between", ["\n", "\r\n", "\\n"])
def test_a_private_key_that_is_cut_off_is_covered_to_where_it_ends(between: str) -> None:
    key = between.join(["-----BEGIN PRIVATE KEY-----", made(64, 1), made(64, 2), made(9, 3)])
    assert [(h.start, h.stop) for h in credentials.find(f"a: {key}")] == [(3, 3 + len(key))]
    named = key.replace(between, f"{between}DEK-Info: AES-128-CBC,0A{between * 2}", 1)
    assert [(h.start, h.stop) for h in credentials.find(named)] == [(0, len(named))]
    (hit,) = credentials.find(key[: -9 - len(between)] + "\nand then prose")
    assert key[hit.start : hit.stop] == key[: -9 - len(between)]


@given(st.text("ab01_é", max_size=40))
def test_entropy_is_that_of_the_definition(text: str) -> None:
    shares = [n / len(text) for n in Counter(text).values()]
    assert credentials.entropy(text) == pytest.approx(sum(-p * math.log2(p) for p in shares))
    assert credentials.entropy("ab" * 9) == 1


@given(st.lists(st.sampled_from([
    "password=", "eyJ", ".", "-----BEGIN ", "PRIVATE KEY-----", "-----END ", "://a:b1c@", "'", "x9",
    "İ", "ghp_", " is ", "token", "\n", "A" * 30, "4829"]), max_size=30))  # fmt: skip
def test_hits_are_in_order_apart_and_inside(pieces: list[str]) -> None:
    text, end = "".join(pieces), 0
    for hit in credentials.find(text):
        assert end <= hit.start < hit.stop <= len(text)
        end = hit.stop


def test_letters_that_grow_in_lower_case_do_not_move_places() -> None:
    text = "İİİ password = 'hunter2!x9'"
    (hit,) = credentials.find(text)
    assert text[hit.start : hit.stop] == "hunter2!x9"


@pytest.mark.parametrize(
    "piece",
    ["eyJ", "eyJa.", "password=", "-----BEGIN PRIVATE KEY-----", "://a:", "secret_", "access code ",
     "token: '", "-----BEGIN ", "xoxb-", "sk-"],
)  # fmt: skip
def test_a_long_line_of_one_thing_is_read_to_its_end(piece: str) -> None:
    """Bounded by construction: no pattern reaches further than some 16,000 characters."""
    text = piece * (300_000 // len(piece)) + " the password is hunter22"
    assert credentials.find(text)[-1].stop == len(text)


def test_columns() -> None:
    token = signed("ghp_")
    texts = [f"use {token} and password = 'hunter2!x9'", None, "nothing"]
    told: dict[str, Any] = dict(Secrets().score(pa.table({"text": pa.array(texts)})))
    assert told["count"].tolist() == [2, 0, 0]
    assert told["verified"].tolist() == [1, 0, 0]
    assert told["max_entropy"][0] == pytest.approx(credentials.entropy(token))
    assert np.isnan(told["max_entropy"][1:]).all()
    assert told["share"][0] == pytest.approx((len(token) + 10) / len(str(texts[0])))
    first = next(findings(told["findings"]))
    assert [(f.reason, f.start) for f in first] == [("github_token", 4), ("assigned", 61)]
    assert token not in str(told)
    sure = Secrets(min_confidence=0.95).score(pa.table({"text": pa.array(texts)}))
    assert sure["count"].tolist() == [1, 0, 0]


def test_a_confidence_is_a_share() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Secrets(min_confidence=-1)
