"""Licences as headers, notices, tags and addresses state them; classes and priors; no mentions."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresift.pipeline.findings import findings
from foresift.scorers.licence import PRIOR, Licence, _Taken, category

BSD = """Copyright (c) 2019, Some Body. All rights reserved.
Redistribution and use in source and binary forms, with or without
modification, are permitted provided that ..."""
APACHE = """# Copyright 2020 The Authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License."""
LGPL = """ * This library is free software; you can redistribute it under the
 * terms of the GNU Lesser General Public License as published by"""


def run(texts: list[str], **columns: list[Any]) -> dict[str, Any]:
    given = {n: n for n in ("declared", "identity", "url") if n in columns}
    more: Any = {"contested": ["times.example"]} if "url" in columns else {}
    return dict(Licence(**given, **more).score(pa.table({"text": texts, **columns})))


@pytest.mark.parametrize(
    ("text", "licence", "kind", "reasons"),
    [
        ("// SPDX-License-Identifier: GPL-2.0-only\nint x;", "GPL-2.0-only", "copyleft", ["spdx"]),
        ("SPDX-License-Identifier: (MIT OR GPL-3.0)", "(MIT OR GPL-3.0)", "permissive", ["spdx"]),
        (BSD, "BSD", "permissive", ["copyright", "rights_reserved", "licence_text"]),
        (APACHE, "Apache-2.0", "permissive", ["copyright", "licence_text"]),
        (LGPL, "LGPL", "copyleft", ["licence_text"]),
        ("This work is licensed under a Creative Commons Attribution-ShareAlike licence.",
         "CC-BY-SA", "copyleft", ["licence_notice"]),
        ("Text available under CC BY-NC 4.0.", "CC-BY-NC", "reserved", ["licence_notice"]),
        ("<a href='https://creativecommons.org/licenses/by-nd/4.0/'>", "CC-BY-ND-4.0", "reserved",
         ["cc_url"]),
        ("http://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0", "public_domain",
         ["cc_url"]),
        ("This image is in the public domain.", "public-domain", "public_domain",
         ["licence_notice"]),
        ("© 2020 Us. All Rights  Reserved.", "all-rights-reserved", "reserved",
         ["copyright", "rights_reserved"]),
        ("It may not be reproduced without permission.", "all-rights-reserved", "reserved",
         ["no_reproduction"]),
        ("Copyright 2014", None, "unknown", ["copyright"]),
        ("The GPL and the MIT License differ; Apache Kafka is fast. CC BY is short.", None,
         "unknown", []),
        ("", None, "unknown", []),
    ],
)  # fmt: skip
def test_what_a_text_states(text: str, licence: str | None, kind: str, reasons: list[str]) -> None:
    found = run([text])
    assert (found["licence"], found["category"]) == ([licence], [kind])
    assert found["p_delete"].tolist() == [PRIOR[kind]]
    assert found["utility"].tolist() == [-PRIOR[kind]]
    (row,) = findings(found["findings"])
    assert [f.reason for f in row] == reasons
    assert all(text[f.start : f.stop].strip() for f in row)


def test_priors_are_those_of_the_classes() -> None:
    assert PRIOR["permissive"] == PRIOR["public_domain"] == 1e-5
    assert PRIOR["unknown"] == 1e-3
    found = run(
        ["a", "b", "c", "d", "e"],
        declared=["MIT", "", "cc-by-4.0", None, "CC0-1.0"],
        identity=["false", "Ann", "true", None, ""],
        url=["https://x.example", None, "", "https://www.Times.example/1", "x"],
    )
    assert found["p_delete"].tolist() == [1e-5, 1e-2, 1e-2, 1e-1, 1e-5]
    told = [[f.reason for f in row] for row in findings(found["findings"])]
    assert told == [["declared"], ["identity"], ["declared", "identity"], ["contested"],
                    ["declared"]]  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("MIT OR GPL-3.0-only", "permissive"), ("MIT AND GPL-3.0-only", "copyleft"),
        ("(MIT OR GPL-2.0) AND CC-BY-NC-4.0", "reserved"),
        ("MIT AND (GPL-2.0 OR ISC)", "permissive"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "copyleft"), ("cc-by-nc-sa-4.0", "reserved"),
        ("CC-BY-SA-3.0", "copyleft"), ("CC BY 4.0", "permissive"),
        ("Apache License 2.0", "permissive"),
        ("LicenseRef-x", "unknown"), ("", "unknown"), (None, "unknown"), ("(MIT", "permissive"),
        ("AND", "unknown"), ("Unlicense", "public_domain"), ("BSD-3-Clause", "permissive"),
        ("AGPL-3.0", "copyleft"), ("BUSL-1.1", "reserved"), ("submitted", "unknown"),
        ("no permit", "unknown"), ("GPLv3", "copyleft"),
    ],
)  # fmt: skip
def test_expressions(expression: str | None, kind: str) -> None:
    assert category(expression) == kind


def test_declared_licences_win_and_conflicts_are_told() -> None:
    found = run([BSD, BSD, "plain"], declared=["GPL-3.0", "MIT", "MIT"])
    assert found["licence"] == ["GPL-3.0", "MIT", "MIT"]
    assert found["conflict"].tolist() == [True, False, False]


def test_several_licences_are_joined_and_the_worst_counts() -> None:
    found = run([f"{APACHE}\n{LGPL}\nSPDX-License-Identifier: MIT OR ISC"])
    assert found["licence"] == ["Apache-2.0 AND LGPL AND (MIT OR ISC)"]
    assert found["category"] == ["copyleft"]


def test_contested_names_need_a_column() -> None:
    with pytest.raises(ValueError, match="url and contested"):
        Licence(contested=["x"])
    assert Licence(declared="a", identity="b", url="a", contested=["x"]).needs == ("a", "b")


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=8), st.integers(0, 40))
def test_what_meets_a_stretch_is_what_a_plain_search_finds(
    stretches: list[tuple[int, int]], start: int
) -> None:
    spans = [(a, a + size, "MIT") for a, size in stretches]
    stop = start + 3
    assert _Taken(spans).meets(start, stop) == any(a < stop and start < b for a, b, _ in spans)
